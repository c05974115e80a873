/*
 * extent.h - which numbers of [0, n) are free: sorted extents that never touch
 *
 * For virtual pages, which are many, mostly free and taken in runs. First fit.
 * Thread: the caller's.
 */
#ifndef KVD_MEM_EXTENT_H
#define KVD_MEM_EXTENT_H

#include <stdint.h>

struct extents {
	struct extent {
		uint64_t first, n;
	} * list;
	uint32_t n_list, n_room;
};

/* All of [0, n) is free. 0 or -ENOMEM. */
int extents_init(struct extents *e, uint64_t n);
/* Harmless on zeroed memory. */
void extents_fini(struct extents *e);
/* The first of n consecutive numbers, no longer free; -ENOMEM: there are none. */
int64_t extents_take(struct extents *e, uint64_t n);
/* [first, first + n) is free again. -ENOMEM: that cannot be noted; they are lost. */
int extents_give(struct extents *e, uint64_t first, uint64_t n);

#endif
