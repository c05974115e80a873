/*
 * variant.h - chunks that were computed in company, and how far one fits another company
 *
 * A variant is a segment with the tokens of a chunk, computed behind other chunks, and what
 * its tokens looked at: how much of their attention went to each chunk before it, and which
 * tokens looked there most. From this follows how much of it must be computed again behind
 * other chunks (Cache-Craft, Agarwal et al. 2025, arXiv:2502.15734):
 *
 *   a_bar = mean over layers of sum over chunks j before it of inter(j) / (n |Cj|)
 *   b_bar = mean over layers of intra / n^2
 *   CCI   = 1 / (1 + exp(-a_bar / b_bar))          1 if b_bar = 0 and a_bar > 0
 *   beta  = sum of inter(j), j before it then and now / sum of inter(j), j before it then
 *           nothing before it then: 1 if nothing is before it now, else 0
 *   gamma = discordant pairs of the common chunks / all their pairs (Kendall)
 *   CFO   = clamp(alpha CCI (1 - beta (1 - gamma)), 0, 1)
 *
 * inter(j) is the attention, averaged over heads, from its tokens to those of chunk j;
 * intra that to its own. Text between chunks is no chunk: it is the frame, and a variant is
 * not looked at under another frame.
 *
 *  (1) A variant is a sealed segment with its tokens; struct variant lives as long
 *      as the segment.
 *  (2) Of one chunk there are at most VARIANT_MAX, of one tenant max_chunks chunks;
 *      the least score per byte goes, where each use adds 1 / max(CFO, 0.05) and the
 *      past decays.
 *
 * One table per tenant: look-ups never see another's. Thread: loop thread.
 */
#ifndef KVD_CACHE_VARIANT_H
#define KVD_CACHE_VARIANT_H

#include "kvd/base/stat.h"
#include "kvd/cache/segment.h"
#include "kvd/mem/evict_heap.h"

#define VARIANT_MAX	   5u /* of one chunk */
#define VARIANT_CHUNKS	   16384u
#define VARIANT_MAX_PREFIX 63u /* chunks before it */
#define VARIANT_ALPHA	   1.0f
#define VARIANT_ALONE_CFO \
	0.5f /* no scores: CCI of a_bar 0, beta 0; times alpha */

struct variant {
	struct segment *seg; /* whose it is; NULL before variant_add() */
	struct map_id chunk; /* chunk_id() of model and tokens */
	struct map_id
		ctx; /* chain id of all before it: equal ids, equal bits */
	struct map_id frame; /* of the text before it, without the chunks */
	uint32_t depth; /* 0: all before it was computed, not reused */
	uint32_t n_prefix;
	float cci;
	double value; /* (2), at time used */
	uint64_t used;
	struct list node; /* of its chunk's set */
	struct map_id *prefix; /* [n_prefix] chunks before it, in order */
	float *inter; /* [n_prefix] mean over layers */
	float *score; /* [n_tokens] attention to chunks before it, mean over layers */
};

/* What was summed for one variant: see kvd/serve/inter.h. */
struct variant_sums {
	const float *inter; /* [n_prefix] mean over layers */
	const uint32_t *prefix_tokens; /* [n_prefix] |Cj| */
	float intra; /* mean over layers */
};

/* Everything zero but the arrays; -ENOMEM. variant_free(NULL) is fine. */
struct variant *variant_new(uint32_t n_prefix, uint32_t n_tokens);
void variant_free(struct variant *v);
/* CCI of a variant of n tokens. */
float variant_cci(const struct variant_sums *s, uint32_t n_prefix, uint32_t n);
/* The formulas above for chunks now [n_now] before it. */
float variant_beta(const struct variant *v, const struct map_id *now,
		   uint32_t n_now);
float variant_gamma(const struct variant *v, const struct map_id *now,
		    uint32_t n_now);
float variant_cfo(const struct variant *v, const struct map_id *now,
		  uint32_t n_now, float alpha);

struct variant_table {
	struct map sets; /* chunk id to struct variant_set */
	struct evict_heap heap; /* of sets, by the score per byte */
	uint64_t time; /* uses so far */
	uint64_t n_ranked;
	uint32_t n; /* variants */
	uint32_t max_chunks;
	uint64_t n_evicted;
	struct stat *st_evicted; /* NULL, or counts too */
};
/* max_chunks is VARIANT_CHUNKS; set it for another bound. */
void variant_table_init(struct variant_table *t);
void variant_table_fini(struct variant_table *t); /* all were forgotten */
void variant_each(struct variant_table *t,
		  void (*fn)(struct segment *s, void *arg), void *arg);

/* What a request has before the chunk. */
struct variant_place {
	struct map_id ctx, frame;
	const struct map_id *prefix; /* [n_prefix] */
	uint32_t n_prefix;
};
/*
 * The variant of the chunk with the least CFO at this place (that with the same ctx
 * comes first, and is CFO 0), or NULL. Counts as a use. The caller owes a
 * segment_put().
 */
struct segment *variant_find(struct variant_table *t, struct map_id chunk,
			     const uint32_t *tokens, uint32_t n,
			     const struct variant_place *at, float alpha,
			     float *cfo);
/* Any variant of the chunk, or NULL; no use, no reference. */
struct segment *variant_peek(const struct variant_table *t,
			     struct map_id chunk);
/* (2) of v, which is in t, as of now. */
double variant_value(const struct variant_table *t, const struct variant *v);
/* It is value (> 0) now: v comes from an earlier life. */
void variant_set_value(struct variant_table *t, struct variant *v,
		       double value);
/* 1: one more of the chunk takes nobody's place. */
int variant_room(const struct variant_table *t, struct map_id chunk);
/*
 * Index the sealed s, which has its tokens, as v, which s owns then (also after an
 * error). Others may go for it. -EALREADY one with this ctx is there, -ENOMEM.
 */
int variant_add(struct variant_table *t, struct segment *s, struct variant *v);
/* All of the chunk; -ENOENT there is none. Readers keep them until they are done. */
int variant_rm(struct variant_table *t, struct map_id chunk);
/* Asserts (1), (2). */
void variant_table_check(const struct variant_table *t);

#endif
