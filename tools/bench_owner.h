/*
 * bench_owner.h - who has the records of a store: what a start of the daemon does for
 * each of them
 *
 * Segments of n_pages, 32 tokens each, of one tenant. Thread: one.
 */
#ifndef TOOLS_BENCH_OWNER_H
#define TOOLS_BENCH_OWNER_H

#include <stddef.h>
#include <stdint.h>

#define OWNER_PAGES 8u /* n_pages at most */

struct owner;

/* The store at path is not opened yet. */
int owner_new(struct owner **out, const char *path, uint32_t n_pages);
void owner_free(struct owner *o); /* NULL is fine */
/* The n-th record as the daemon would write it: its bytes, or -ENOMEM. */
int owner_meta(struct owner *o, uint32_t n, void *meta, size_t most,
	       uint64_t key[2]);
/* Open the store: how many records became segments, or -errno. */
int64_t owner_open(struct owner *o);
/* What a request to make durable takes where all are: ms, or a negative number. */
double owner_persist(struct owner *o);

#endif
