/*
 * here.h - faults that the faulting thread resolves itself; inside libkvclient
 *
 * An area is registered with a userfaultfd of its own that raises SIGBUS instead of
 * telling the daemon. The handler maps the page itself if it is there (kv_abi.h,
 * KV_MAP_STATES); if it is not, it touches the same byte of the area's *door*, another
 * mapping of the same file whose faults the daemon answers, and then tries again.
 *
 * The table is the process's, as the handler is. Any thread; not from a signal handler.
 */
#ifndef LIBKVCLIENT_HERE_H
#define LIBKVCLIENT_HERE_H

#include <stddef.h>
#include <stdint.h>

struct kvc_here {
	char *addr; /* of the area */
	char *door; /* of the same size */
	uint64_t n_bytes, page_bytes;
	const uint8_t *states; /* of the area's pages */
	uint64_t *holds; /* [KV_MAP_HOLDS], shared with the daemon */
	uint64_t hold; /* KV_HOLD() of the area's first page */
	int uffd; /* the area's */
};

/* Install the handler, once; whoever had SIGBUS before gets what is not ours. 0, -errno. */
int kvc_here_begin(void);
/* A userfaultfd that raises SIGBUS: -ENOTSUP, -errno. */
int kvc_here_uffd(int *out);
/* From now on faults there are resolved: 0, -ENOMEM. */
int kvc_here_add(const struct kvc_here *h);
/* No more, and no thread is at it any longer. Harmless if it is not there. */
void kvc_here_remove(const char *addr);

#endif
