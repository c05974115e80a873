/*
 * scrub.h - read what lies on disk now and then, before somebody needs it
 *
 * Walks the pages of a pager that have a place on a store, a page at a time, within a
 * budget of bytes a second, and compares checksums. A page that went bad and is
 * on disk only is LOST; one that is in memory too is written again elsewhere. Either
 * way its slot is never used again, and the owner of the range is told (pager_conf.damaged).
 * It holds back while others use the disk.
 *
 * Thread: loop thread.
 */
#ifndef KVD_MEM_SCRUB_H
#define KVD_MEM_SCRUB_H

#include "kvd/mem/pager.h"

struct scrub;

/* bytes_per_s > 0. p outlives it. -ENOMEM. */
int scrub_new(struct scrub **out, struct pager *p, uint64_t bytes_per_s);
/* Turns the loop until the page in flight has ended. NULL is fine. */
void scrub_free(struct scrub *s);

struct scrub_info {
	uint64_t n_pages, n_bytes, n_bad;
	uint64_t n_passes; /* over all pages there are */
};
void scrub_info(const struct scrub *s, struct scrub_info *out);

#endif
