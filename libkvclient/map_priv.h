/*
 * map_priv.h - what map.c and area.c share; see map.c
 */
#ifndef LIBKVCLIENT_MAP_PRIV_H
#define LIBKVCLIENT_MAP_PRIV_H

#include <pthread.h>
#include "libkvclient/kvc.h"

#define KVC_MAX_SPACES 64u

struct area {
	char *addr;
	uint64_t n_bytes;
	uint32_t id; /* the daemon's */
	uint32_t epoch; /* of the connection that it belongs to */
	char *door; /* (4), or NULL */
};

/* What kvc_map() returned, and what only we know of it. */
struct mapping {
	struct kvc_map pub;
	struct mapping *next; /* (lock) */
	struct area *areas;
	uint32_t n_areas; /* (lock) while it is in the list */
};

/* Descriptors of a KV_CTL_FRAMES. */
struct frames {
	struct frames *next;
	uint32_t id;
	uint64_t first;
	uint32_t n;
	int fds[];
};

struct kvc_maps {
	pthread_mutex_t lock;
	struct mapping *list; /* (lock) */
	/* of this connection, (lock) */
	int uffd; /* -1: none */
	int lost; /* the daemon is gone */
	int send_again; /* uffd: it did not arrive */
	int spaces[KVC_MAX_SPACES]; /* descriptors, -1 */
	int uffd_here; /* here.h; -1: faults are the daemon's */
	uint64_t *holds; /* [KV_MAP_HOLDS] in the arena */
	struct states {
		const uint8_t *bytes; /* NULL: none */
		size_t n;
	} states[KVC_MAX_SPACES];
	struct frames *frames; /* received, not yet taken; (lock) */
	int frames_err; /* why some were not kept; (lock) */
	int stop; /* eventfd: ends the watcher */
	int watching;
	pthread_t watcher;
	int sock; /* (I) for the watcher: kvc.sock */
};

/*
 * area.c, all with the lock. An area for the entry, as the daemon's answer k says: 0,
 * -errno; then there is none.
 */
int kvc_area_map(struct kvc_maps *ms, struct area *a,
		 const struct kv_map_entry *e, const struct kv_map *k);
/* From here on a touch is SIGSEGV, now and for whoever waits. */
void kvc_area_shut(const struct kvc_maps *ms, const struct area *a);
/* The memory goes: nobody touches it any more. */
void kvc_area_unmap(const struct area *a);
/* Pages of an area that cannot be had, on a kernel without UFFDIO_POISON. */
void kvc_area_lose(struct kvc_maps *ms, uint64_t addr, uint64_t n);

#endif
