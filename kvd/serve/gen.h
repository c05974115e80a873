/*
 * gen.h - one generation (or one chunk to compute), from parts to tokens
 *
 * (TEXTS, when they are long, comes first: a worker makes tokens of them)
 *   CHUNKS --all there--> ADMIT --reserved--> WANT --pinned--> READY <--> STEP
 *     |                     |                   |                |         |
 *     +---------------------+-------------------+-- failed, cancelled, done: END
 *
 *  (1) Before WANT a gen holds references, no pins and no reservation.
 *  (2) From WANT to END it holds its reservation; in READY and STEP all its pages up to
 *      pinned_to are pinned (windowed: only those of the rows of the next step; with a
 *      restore: the first layers, and the engine waits for the others).
 *  (3) Stored data that fails its check sends it back to CHUNKS, where the lost
 *      segments are not found any more; so it is computed again.
 *
 * Loop thread; in STEP the engine reads tokens, seq and writes results.
 */
#ifndef KVD_SERVE_GEN_H
#define KVD_SERVE_GEN_H

#include "kvd/serve/ape.h"
#include "kvd/serve/cost.h"
#include "kvd/serve/edit.h"
#include "kvd/serve/focus.h"
#include "kvd/serve/line.h"
#include "kvd/serve/repair.h"
#include "kvd/serve/tenant.h"

enum gen_state {
	GEN_TEXTS,
	GEN_CHUNKS,
	GEN_ADMIT,
	GEN_WANT,
	GEN_READY,
	GEN_STEP,
	GEN_END
};

/* Tiles of one segment that follow each other. */
struct prefix_hit {
	struct segment *seg;
	uint32_t from, n;
};

struct gen_part {
	uint32_t first, n; /* tokens of the prompt */
	int reuse; /* a chunk by reference */
	struct map_id chunk;
	uint32_t n_found; /* not reuse: tokens found by prefix */
	struct segment *seg; /* reuse: a reference until the list has it */
	struct prefix_hit
		*hits; /* not reuse: what was found, with references */
	uint32_t n_hits;
	struct list waiting; /* reuse: in the chunk job's waiters */
	struct gen *gen;
	int32_t found; /* reuse: 1 it was there when asked */
	struct repair_group *group; /* reuse, repaired; NULL: not */
	uint32_t i_entry; /* group: of the list */
	enum edit_kind moved; /* reuse: of an earlier version; seg stays */
	uint32_t from; /* moved: first token of seg */
	int parallel; /* reuse: side by side with others, ape.h */
	struct seq_context context; /* parallel: how it is seen */
};

struct gen {
	struct list node; /* batch's ready list */
	struct list session_node; /* session's requests, or chunk_jobs */
	struct waiter waiter; /* ADMIT */
	struct line_look look; /* line.h */
	struct serve_tenant *tenant;
	struct serve_session *session; /* NULL: a chunk job */
	struct serve_model *model;
	enum gen_state state;
	struct serve_gen *req; /* one of these three */
	struct serve_chunk_put *put;
	struct list chunk_waiters; /* chunk job: gen_part.waiting */
	struct preload *preload; /* preload.h; NULL: it has not waited */
	int counted; /* in the tenant's n_requests */
	int cancelled;
	int exact; /* the model failed its gate: prefixes only */
	int err;
	uint32_t n_retries;
	struct loop_call end_call;

	struct serve_part *in; /* [n_in] as asked for; the worker's in TEXTS */
	uint32_t n_in;
	int in_err;
	struct text_job encode;
	uint32_t *tokens; /* [n_prompt], from admission on + max_tokens */
	uint32_t n_prompt, n_all, max_tokens;
	struct gen_part *parts;
	uint32_t n_parts;
	struct repair_group *groups; /* [n_groups] */
	uint32_t n_groups;
	uint32_t permille; /* of each group computed again */
	struct craft *craft; /* variants of chunks; NULL: not asked for */
	int64_t ape_shift; /* rotary positions behind parallel chunks */
	struct focus *focus; /* who looks at which chunks; NULL: not asked */
	struct edit *edit; /* earlier versions of parts; NULL: none */
	uint32_t n_missing; /* chunks still being computed */
	uint32_t n_prefix, n_chunk, n_computed;

	struct seq seq;
	int has_seq;
	uint8_t *owned; /* [seq.n_entries] computed by this gen */
	uint32_t pos; /* next position to compute */
	uint32_t queued_rows; /* its share of the model's */
	uint64_t reserved;
	struct gen_loan { /* reserved with other tenants: share.h */
		struct serve_tenant *owner;
		uint64_t bytes;
	} * loans;
	uint32_t n_loans;
	int alone; /* nothing of others is used */
	int windowed;
	uint64_t pinned_from, pinned_to;
	int wanting; /* the want is on its way, up to want_to */
	uint64_t want_to;
	uint64_t window_bytes;
	struct page_run *runs; /* pinned, n_pinned of them, then those wanted */
	uint32_t n_runs, n_pinned, n_runs_room;
	struct page_want want;
	struct restore *restore; /* restore.h: until all its pages are in */

	/* of the step; the engine's while in STEP */
	uint32_t step_rows; /* rows of this step */
	uint64_t n_window_read; /* pages brought in for its windows */
	uint32_t step_logits; /* first row of its logits */
	uint32_t n_step_logits;
	uint32_t sampled;
	float sampled_logprob;

	uint64_t deadline_ns; /* of the first token, or 0 */
	uint64_t t_start, t_admit, t_first;
	uint32_t n_text_room;
	char *text;
};

/* Zeroed; NULL without memory. Freed by gen_free() before it began, else by gen_end(). */
struct gen *gen_new(struct serve_tenant *t, struct serve_model *m);
void gen_free(struct gen *g);
/* Tokens are known: begin, or go on after chunks have come. */
void gen_resume(struct gen *g);
/* Nothing is reserved: let go of all, and look again without what others have. */
void gen_alone(struct gen *g);
/* From now on it is one of the requests in flight that the tenant may have. */
void gen_count(struct gen *g);
/* Step done: rows computed, sampled says which token comes next. */
void gen_step_done(struct gen *g, const float *logits, int ret);
/* The next contiguous rows to compute from pos on: returns n, *pos; 0 none. */
uint32_t gen_next_rows(const struct gen *g, uint32_t from, uint32_t max,
		       uint32_t *pos);
/* The part with a patch that row pos is computed for, or NULL. */
const struct gen_part *gen_patched_part(const struct gen *g, uint32_t pos);
/* 1 when the step that computes row pos needs its logits. */
int gen_wants_logits(const struct gen *g, uint32_t pos);
/* n rows of it were computed: the queue is so much shorter. */
static inline void gen_computed(struct gen *g, uint32_t n)
{
	const uint32_t less = KV_MIN(n, g->queued_rows);

	g->queued_rows -= less;
	g->model->queued_rows -= less;
}
/* restore.c: what the next step needs is pinned; or could not be, and nothing is. */
void gen_pages_in(struct gen *g);
void gen_pages_failed(struct gen *g, int err);
/* Runs of segments that this gen writes are wanted as dirty. */
void gen_mark_writes(struct gen *g, struct page_run *runs, uint32_t n);
/* Give back pins and the reservation. */
void gen_release(struct gen *g);
/* The end, told on a later turn; err 0 or why. Harmless if it has ended. */
void gen_end(struct gen *g, int err);
/* emit.c: the sampled token, or the scores of the step. 1: the gen has ended. */
int gen_take_token(struct gen *g, const float *logits);
int gen_take_scores(struct gen *g, const float *logits);
/* choose.c: keep of the prefix found what is to be read, if on disk. 0, -ENOMEM. */
int gen_choose_prefix(struct gen *g);
/*
 * Load a chunk that was found, beside bytes of others of the request? If not, a copy
 * is computed for who waits now, and the chunk, whose record may be acknowledged, stays
 * and comes up for the next.
 */
int gen_take_chunk(struct gen *g, const struct gen_part *part,
		   struct cost_bytes *bytes);
/* Rates and queues of now as pages of p see them, and the deadline; rest_rows is left 0. */
struct cost_now gen_cost_now(const struct gen *g, const struct pager *p);
/*
 * Permille of n tokens that can be computed while bytes are read: REPAIR_LEAST at least,
 * not all.
 */
uint32_t gen_share_by_load(const struct gen *g, const struct cost_bytes *bytes,
			   uint64_t n);
/* Of these pages what is on disk only. */
void gen_add_lower(struct cost_bytes *bytes, const struct page_run *run);
/* What computing its KV again takes, ns per byte. */
float gen_compute_cost(const struct gen *g);
/* plan.c */
/*
 * s, which was found by its id, or NULL: what a disk gave back may have an id of this model
 * and pages of another shape. Then it goes. Takes the reference.
 */
struct segment *gen_fitting(const struct gen *g, struct segment *s);
/* Ask for what of s is on disk, as far as memory is free; 1: something is. */
uint32_t gen_prefetch(struct gen *g, const struct segment *s);
/* One tile (or whole chunk) on, of [0, n_all); the id of what was passed. */
void gen_chain_step(const struct gen *g, struct gen_chain *c);
int gen_plan(struct gen *g); /* tokens and parts are known: find, count */
void gen_unplan(struct gen *g); /* give back all references */
int gen_build_seq(struct gen *g); /* the whole list, with room for max_tokens */
void gen_index(struct gen *g); /* keep what was computed, for reuse */
/* From parts of tokens and chunks. */
int gen_tokenize(struct gen *g, const struct serve_part *parts, uint32_t n);
/* text.c: copy the parts; -EINVAL too much text, -ENOMEM. */
int gen_take_parts(struct gen *g, const struct serve_part *parts, uint32_t n);
uint64_t gen_text_bytes(const struct gen *g);
/* Texts of the parts to tokens, into in and in_err. Any thread. */
void gen_encode(struct text_job *t);
void gen_free_parts(struct gen *g);
/* Have the part's chunk computed; -ENOMEM: then nobody does it. */
int gen_start_chunk(struct gen *waiter, struct gen_part *part);

#endif
