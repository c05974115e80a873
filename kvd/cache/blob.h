/*
 * blob.h - what the record of a segment says of it, as it lies on disk (docs/store.md)
 *
 * Nothing of a blob is trusted before blob_head() and blob_sound(). Thread: any.
 */
#ifndef KVD_CACHE_BLOB_H
#define KVD_CACHE_BLOB_H

#include "kvd/cache/segment.h"
#include "kvd/mem/durable.h"

/*
 * What a record says of its pages; then uint32_t tokens[n_tokens], then
 * struct map_id ids[n_ids]; of a variant (from version 2 on) then struct blob_variant, float
 * inter[n_ids], float score[n_tokens]. Little-endian, docs/store.md.
 */
struct blob {
	uint32_t magic;
	uint16_t version;
	uint16_t kind;
	char tenant[64];
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
	uint32_t n_tokens, n_ids;
	int64_t pos0;
	uint64_t chunk_id[2];
	uint64_t n_hits;
	uint64_t sum[2]; /* from version 3 on, of all of it; before: 0 */
};
static_assert(sizeof(struct blob) == 152, "on disk");
#define BLOB_MAGIC   0x6773766bu /* "kvsg" */
#define BLOB_VERSION 4u /* 1 had no variants, 1 and 2 no sum, 3 another one */
enum { KIND_PREFIX = 1, KIND_CHUNK = 2, KIND_VARIANT = 3 };

struct blob_variant { /* ids: of the chunks before it */
	uint64_t ctx[2], frame[2];
	double value;
	float cci;
	uint32_t depth;
};
static_assert(sizeof(struct blob_variant) == 48, "on disk");

/* Tiles of n_tokens: as many ids has a prefix. */
uint32_t blob_tiles(uint32_t n_tokens);
size_t blob_bytes(uint32_t kind, uint32_t n_tokens, uint32_t n_ids);
/* Of b and the n_bytes behind it, as its version has it. */
void blob_sum(const struct blob *b, const void *rest, size_t n_bytes,
	      uint64_t sum[2]);
/* The head of a blob that is ours, by its shape; or -EINVAL. */
int blob_head(const struct kio_record *r, struct blob *b);
/* It is as it was written, as far as its version can tell. */
int blob_sound(const struct kio_record *r, const struct blob *b);
/* The layout that it tells, complete and equal to the record's pages; or -EINVAL. */
int blob_layout(const struct blob *b, const struct kio_record *r,
		size_t page_align, struct kv_layout *g);

#endif
