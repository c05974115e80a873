/*
 * chunk.h - chunks: segments computed alone, found by their tokens
 *
 * A chunk's keys are rotated by positions 0..n-1; at position p it is read with
 * queries rotated by m - p, and no byte is copied (architecture, "rotate the
 * query"). One table per tenant. Thread: loop thread.
 */
#ifndef KVD_CACHE_CHUNK_H
#define KVD_CACHE_CHUNK_H

#include "kvd/cache/segment.h"

struct chunk_table {
	struct map map; /* chunk id to segment; borrowed */
};

void chunk_init(struct chunk_table *t);
void chunk_fini(struct chunk_table *t);
/* Hash of model and tokens. */
struct map_id chunk_id(const uint64_t model[2], const uint32_t *tokens,
		       size_t n);
/* The chunk with this id, or NULL; tokens may be NULL, else they are compared.
 * The caller owes a segment_put(). */
struct segment *chunk_find(struct chunk_table *t, struct map_id id,
			   const uint32_t *tokens, size_t n);
/* Index the sealed s, which has its tokens. -EALREADY, -ENOMEM. */
int chunk_add(struct chunk_table *t, struct segment *s, struct map_id id);
/* -ENOENT. Its readers keep it until they are done. */
int chunk_rm(struct chunk_table *t, struct map_id id);

#endif
