/*
 * repair.h - which tokens of a reused chunk are computed again, in their context
 *
 * A chunk that was computed alone does not know what stands before it. Repair computes
 * some of its tokens again, with true positions and everything before them in
 * sight, into a patch (seq.h); the chunk's own bytes stay shared and untouched.
 *
 *   first   the first tokens of the chunk
 *   random  any tokens, by chunk and seed of nothing else: the control
 *   blend   the tokens whose K and V at layer 1 deviate most, squared L2 over all
 *           heads, from what the chunk has (CacheBlend, Yao et al. 2025,
 *           arXiv:2405.16444: one check layer, one top-k, the same tokens in all
 *           layers; its authors' program looks at V only, which is worse here)
 *   craft   variants of chunks in company, see craft.h
 *   craft-blend  the same variants, but which tokens is blend's choice: what a variant
 *           that was computed in other company has, against what this one gives
 *
 * Each is a file of its own, pick_*.c.
 *
 * Blend needs a probe: all tokens of the chunk through layer 0 (whose K and V depend on
 * the tokens only) and K and V of layer 1, against the cache; nothing is stored. What is
 * chosen depends on the request alone, not on batches, slices or paging.
 */
#ifndef KVD_SERVE_REPAIR_H
#define KVD_SERVE_REPAIR_H

#include <stdint.h>
#include "kvd/base/map.h"

enum repair_kind {
	REPAIR_NONE,
	REPAIR_FIRST,
	REPAIR_RANDOM,
	REPAIR_BLEND,
	REPAIR_CRAFT,
	REPAIR_CRAFT_BLEND
};
#define REPAIR_N_KINDS 6u
#define REPAIR_ALL     1000u /* permille: computed as if it were no chunk */
/* instead of a share: how well each variant fits, with variants; as many as can be
 * computed while the chunks are read, REPAIR_LEAST at least */
#define REPAIR_BY_CFO  1001u
#define REPAIR_BY_LOAD 1002u
#define REPAIR_LEAST   150u

struct attn_target;
struct gen;
struct pool;
struct gen_part;

/*
 * Chunks that follow each other are repaired together: the share is of all their tokens, and
 * blend takes the largest deviations of all, so that it goes where it is needed.
 */
struct repair_group {
	uint32_t i_part, n_parts;
	enum repair_kind kind; /* the selector */
	uint32_t first, n; /* tokens of the prompt */
	uint32_t k; /* of them computed again */
	int chosen; /* which they are is known */
	uint32_t n_probed; /* tokens whose dev is known */
	float *dev; /* [n] while probing: the engine's in a probe */
	struct segment *patch; /* while the list is built */
};

/* 1: variants of chunks are looked for and kept. */
static inline int repair_varies(uint32_t kind)
{
	return kind == REPAIR_CRAFT || kind == REPAIR_CRAFT_BLEND;
}
/* Tokens of n that are computed again: ceil, 0 only for permille 0. */
uint32_t repair_count(uint32_t n, uint32_t permille);
/* k of n tokens without a probe (first, random): ascending into at [k]. */
void repair_pick(enum repair_kind kind, struct map_id chunk, uint32_t n,
		 uint32_t k, uint32_t *at);
/* The k largest of dev [n], of equals the first; ascending into at [k]. -ENOMEM. */
int repair_pick_largest(const float *dev, uint32_t n, uint32_t k, uint32_t *at);
/* What stands in the chain of ids for a chunk that was repaired so. */
struct map_id repair_id(struct map_id chunk, enum repair_kind kind,
			uint32_t permille);

/* Form the groups of the parts that are reused. 0, -ENOMEM. */
int repair_plan(struct gen *g);
/* The parts have their segments: how many of each group, if that is by load. */
void repair_weigh(struct gen *g);
/* The list is given back: nothing is chosen any more. */
void repair_unplan(struct gen *g);
void repair_free(struct gen *g);
/*
 * Append the part, whose group it is, to the list. 0, -EDQUOT, -ENOMEM. Loop thread.
 */
int repair_append(struct gen *g, struct gen_part *part);
/* 1: its tokens are chosen by what a look at the first layers tells. */
int repair_looks(const struct repair_group *r);
/* The group that must be probed before the gen can go on, or NULL. Loop thread. */
struct repair_group *repair_next_probe(const struct gen *g);
/*
 * Squared distance of k (unrotated) and v [n][kv_heads * head_dim] (f32, layer 1 of the
 * group's next n tokens) to the chunks', into dev. Engine thread; pool may be NULL.
 */
void repair_measure(const struct gen *g, struct repair_group *r, uint32_t n,
		    const float *k, const float *v, struct pool *pool);
/* Where these tokens lie in the chunks: out [n]. */
void repair_probed_at(const struct gen *g, const struct repair_group *r,
		      uint32_t n, struct attn_target *out);
/* n more tokens were probed; with the last, choose. 0, -ENOMEM. Loop thread. */
int repair_probed(struct gen *g, struct repair_group *r, uint32_t n);
/* Rows to compute of the part from token off of it on: *off moves to the first;
 * returns how many follow each other, 0 none are left. */
uint32_t repair_rows(const struct gen *g, const struct gen_part *part,
		     uint32_t *off);

#endif
