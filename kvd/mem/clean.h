/*
 * clean.h - empty sparse zones of a store, so that other page sizes find room
 *
 * The store says which zone (io/store.h, "cleaning"); here are the pages that lie in
 * it. Each is read from its slot, checked, written to a slot of another zone, and then
 * lies there: a scratch page at once, one of a durable range when a record that names
 * its new place is on stable media (kio_store_move()). Old slots are given back after
 * that. A page that cannot be moved now stays where it is.
 *
 * Bounded: so many bytes a second and in flight, and never more than is gained.
 *
 * Thread: loop thread; checksums run on workers.
 */
#ifndef KVD_MEM_CLEAN_H
#define KVD_MEM_CLEAN_H

#include "kvd/mem/pager.h"

struct cleaner;
struct stores;

/* s is open and outlives it. bytes_per_s > 0. -ENOMEM. */
int cleaner_new(struct cleaner **out, struct loop *loop, struct stores *s,
		uint64_t bytes_per_s);
/* Turns the loop until what is in flight has ended. Before the pagers go. NULL is fine. */
void cleaner_free(struct cleaner *c);
/* Tell the stores where pages of p lie that were adopted while they were opened. */
void cleaner_adopt(struct pager *p);

struct cleaner_info {
	uint64_t n_pages, n_bytes; /* moved */
	uint64_t n_failed; /* could not be read, written or committed */
	uint64_t n_given_up; /* zones */
};
void cleaner_info(const struct cleaner *c, struct cleaner_info *out);

#endif
