/*
 * chunk.h - chunks: segments computed alone, found by their tokens
 *
 * A chunk's keys are rotated by positions 0..n-1; at position p it is read with
 * queries rotated by m - p, and no byte is copied (architecture, "rotate the
 * query"). One table per tenant. Thread: loop thread.
 *
 *  (1) There are at most max chunks; the least score per byte goes (Cache-Craft, as in
 *      variant.h): each use adds CHUNK_GAIN, the past halves in CHUNK_HALF_LIFE uses
 *      for each chunk there is. 1 / CFO is not known of what was computed alone: in
 *      company its CFO is VARIANT_ALONE_CFO, and CHUNK_GAIN is one over that.
 */
#ifndef KVD_CACHE_CHUNK_H
#define KVD_CACHE_CHUNK_H

#include "kvd/base/stat.h"
#include "kvd/cache/segment.h"
#include "kvd/mem/evict_heap.h"

#define CHUNK_MAX	16384u
#define CHUNK_GAIN	2.0f
#define CHUNK_HALF_LIFE 4.0

struct chunk_table {
	struct map map; /* chunk id to segment; borrowed */
	struct evict_heap
		heap; /* segment.rank, by log2 of the score per byte */
	double now; /* half-lives since the start */
	uint64_t n_uses;
	uint64_t n_evicted;
	uint32_t max;
	struct stat *st_evicted; /* NULL, or counts too */
};

/* At most CHUNK_MAX; set max for another bound. */
void chunk_init(struct chunk_table *t);
void chunk_fini(struct chunk_table *t);
/* Hash of model and tokens. */
struct map_id chunk_id(const uint64_t model[2], const uint32_t *tokens,
		       size_t n);
/* The chunk with this id, or NULL; tokens may be NULL, else they are compared.
 * The caller owes a segment_put(). */
struct segment *chunk_find(struct chunk_table *t, struct map_id id,
			   const uint32_t *tokens, size_t n);
/* Index the sealed s, which has its tokens; another may go for it. -EALREADY, -ENOMEM. */
int chunk_add(struct chunk_table *t, struct segment *s, struct map_id id);
/* 1: one more takes nobody's place. */
int chunk_room(const struct chunk_table *t);
/* The score of s, which is in t, as of now. */
double chunk_value(const struct chunk_table *t, const struct segment *s);
/* It is value (> 0): s comes from an earlier life. */
void chunk_set_value(struct chunk_table *t, struct segment *s, double value);
/* -ENOENT. Its readers keep it until they are done. */
int chunk_rm(struct chunk_table *t, struct map_id id);
/* Asserts (1). */
void chunk_table_check(const struct chunk_table *t);

#endif
