/*
 * attn.h - attention of one layer for rows of several sequences
 *
 * For each item: write the new keys and values, rotate the queries once for each
 * distance between where a segment's keys were written and where they are used, run
 * the kernels over the segment list, join. Everything from resident_from on is
 * pinned by the owner; what lies before is brought in window by window, each merged
 * into the rows' (o, m, l) in order, so that a sequence larger than the budget runs
 * and gives the same bits.
 *
 * Thread: engine thread and its pool. Entries of the sequences do not change
 * meanwhile.
 */
#ifndef KVD_SERVE_ATTN_H
#define KVD_SERVE_ATTN_H

#include "kernels/kern.h"
#include "kvd/base/stat.h"
#include "kvd/cache/seq.h"
#include "kvd/serve/engine.h"

struct attn_shape {
	enum kern_type type; /* of K and V in the pages */
	uint32_t n_heads, n_kv_heads, head_dim;
	float scale;
	struct kern_rope rope;
};

struct attn_item {
	const struct attn_shape *shape;
	struct seq *seq;
	uint64_t pos; /* of the first row */
	uint32_t n_rows; /* 0: nothing */
	/*
	 * [n_rows] positions, ascending, all in entries that have a patch, and of one
	 * context.shift; the first is pos; NULL: pos, pos + 1 ...
	 */
	const uint32_t *rows_at;
	enum kern_type in; /* type of q, k, v and o */
	const void *q; /* [n_rows][n_heads][head_dim], or NULL: append only */
	const void *k, *v; /* [n_rows][n_kv_heads][head_dim], or NULL */
	void *o; /* [n_rows][n_heads][head_dim]; NULL with lse: not wanted */
	/* q, k, v and o are addresses of the device; only attn_gpu_items() */
	int on_device;
	float *lse; /* out [n_rows][n_heads] ln sum exp(logits), or NULL */
	uint64_t resident_from; /* position; 0: all is pinned */
	uint64_t window_bytes; /* what a window may pin */
	const int *cancelled; /* loop thread's: nonzero ends it; or NULL */
	uint64_t n_read; /* out: pages brought in for windows */
	int ret; /* out */
};

/* K and V of one token. */
struct attn_target {
	const struct segment *seg;
	uint32_t token;
};

/* Memory of the engine thread's jobs: grows to the largest job, is kept. */
struct attn_scratch {
	char *base;
	size_t n_bytes;
	size_t n_used;
	struct list spill; /* blocks beyond base, until the reset */
	size_t n_spilled;
	/* K and V that passes went over, and what more they would have been had none been
	 * shared by several rows */
	struct stat *st_bytes, *st_shared;
};
void attn_scratch_init(struct attn_scratch *s);
void attn_scratch_fini(struct attn_scratch *s);
void attn_scratch_reset(struct attn_scratch *s);
/* 64-byte aligned, until the reset; NULL without memory. */
void *attn_scratch_alloc(struct attn_scratch *s, size_t n_bytes);

/*
 * Run the items of one layer; each gets its ret: 0, or what a window's want
 * said, -ENOMEM. Returns 0 or the first error.
 */
int attn_layer(struct engine *e, struct pool *pool, struct attn_scratch *s,
	       struct attn_item *items, uint32_t n_items, uint32_t layer);
/* Copy K and V of all layers, as seq_grow() asked. Both sides are pinned. */
void attn_copy(const struct seq_copy *c);

#endif
