/*
 * craft.h - chunks in variants: which one, how much of it again, and keeping new ones
 *
 * A request with repair = craft or craft-blend takes of each chunk the variant that fits best
 * (kvd/cache/variant.h) and has those tokens computed again that looked most at the chunks
 * before them:
 *
 *   FRESH  no variant fits: computed here, as if it were no chunk, and kept as a new one
 *   EXACT  a variant with the same before it, bit for bit: nothing is computed again
 *   INTER  another variant: the tokens with the largest inter-attention; with
 *          craft-blend those that deviate most
 *   ALONE  only what was computed alone is there: the tokens that deviate most
 *
 * How many: a fixed share; or by CFO, for each chunk; or as many as can be computed
 * while the chunks are read from disk, but REPAIR_LEAST of them at least.
 *
 * What is kept was computed behind at most CRAFT_DEPTH generations of repaired chunks;
 * beyond, a chunk that is missing is computed alone. So what repair leaves does not pile up.
 *
 * What variants look at is measured after the request has its answer, when the engine has
 * nothing else to do (struct measure, in measure.c); they can be found from then on.
 *
 * Thread: loop thread, but craft_queries() and craft_queries_at().
 */
#ifndef KVD_SERVE_CRAFT_H
#define KVD_SERVE_CRAFT_H

#include "kvd/cache/variant.h"
#include "kvd/serve/inter.h"
#include "kvd/serve/repair.h"
#include "kvd/serve/tenant.h"

#define CRAFT_DEPTH 2u
#define CRAFT_QUERY_BYTES \
	(256ull << 20) /* of a tenant; beyond, nothing is kept */

enum craft_kind {
	CRAFT_NONE, /* no chunk */
	CRAFT_FRESH,
	CRAFT_EXACT,
	CRAFT_INTER,
	CRAFT_ALONE
};

struct craft_part {
	int is_chunk;
	enum craft_kind kind;
	struct map_id chunk, ctx, frame;
	struct map_id id; /* in the chain of ids */
	struct map_id variant; /* which one: its ctx */
	uint32_t depth; /* FRESH: of the variant that it becomes */
	uint32_t n_before; /* chunks */
	float cfo;
	uint32_t k; /* tokens again, by CFO */
	uint32_t row; /* FRESH: of the queries kept */
};

struct craft {
	struct craft_part *parts; /* [n_parts] of the gen */
	uint32_t n_parts;
	uint32_t permille; /* the fixed share; by CFO: REPAIR_BY_CFO */
	struct map_id *before; /* [n_parts] ids of chunks, in order */
	struct inter *inter; /* queries of FRESH parts; NULL: none are kept */
	struct serve_tenant *tenant; /* who is charged for them */
};

/* 1 when the request asks for variants. */
int craft_wanted(const struct gen *g);
/* Parts are known. -ENOMEM. */
int craft_new(struct gen *g);
void craft_free(struct craft *c); /* NULL is fine */
/* Find variants, form the groups. 0, -EAGAIN chunks are being computed, -ENOMEM. */
int craft_plan(struct gen *g);
/* Of a part that is a chunk, else NULL. */
const struct craft_part *craft_part(const struct gen *g,
				    const struct gen_part *part);
/* 1: the part is a chunk that is computed here. */
int craft_fresh(const struct gen *g, const struct gen_part *part);
/* Tokens of the longest chunk that is computed here. */
uint32_t craft_longest(const struct gen *g);
/* Queries q [n][n_heads][head_dim] of the positions pos.. come by. Engine thread. */
void craft_queries(const struct gen *g, uint32_t layer, uint32_t pos,
		   uint32_t n, const float *q);
/* None are kept any more; 0: none were. Loop thread, no step of g runs. */
int craft_forget_queries(struct gen *g);
/* Where they go, where somebody else brings them: as inter_at(); NULL: nowhere. */
char *craft_queries_at(const struct gen *g, uint32_t pos, size_t *layer_bytes);

/* What was used goes into the request's used. */
void craft_report(struct gen *g);

/* measure.c: the answer is out and the list sealed: fresh chunks become variants. */
void craft_keep(struct gen *g);
struct measures;
int measures_new(struct measures **out, struct serve *s);
/* The engine has nothing to do. */
void measures_look(struct measures *m);
/* Waits for the one that runs; NULL is fine. */
void measures_free(struct measures *m);
/* Those that have not begun are dropped; 1: none is left. */
int measures_drain(struct measures *m);
/* The last one of t that has not begun is dropped; 0: there is none. NULL is fine. */
int measures_give_up(struct measures *m, const struct serve_tenant *t);
/* What they hold of t. */
void measures_check(const struct measures *m, const struct serve_tenant *t,
		    uint32_t *n_active, uint64_t *reserved);

#endif
