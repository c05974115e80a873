/*
 * attn_priv.h - one layer's attention, between attn.c, windows.c and relay.c
 *
 * Thread: engine thread and its pool.
 */
#ifndef KVD_SERVE_ATTN_PRIV_H
#define KVD_SERVE_ATTN_PRIV_H

#include "kvd/serve/attn.h"

/* What the entries of one temperature and scale give, joined at the end. */
struct seen {
	float temperature, scale;
	float *o, *m, *l; /* state */
	struct kern_span *spans;
	uint32_t n_spans;
};

struct prepared {
	struct attn_item *it;
	uint32_t layer;
	int64_t *pos; /* [n_rows] */
	int64_t shift; /* of the rows, as of their entry */
	struct seen *seen; /* [n_seen]; the first: as it is */
	uint32_t n_seen;
	char *q; /* [n_variants][n_rows][n_heads][head_dim] typed */
	float *tmp; /* [n_rows][n_heads][head_dim] f32 */
	int64_t *delta; /* [n_variants] */
	int64_t *
		delta_from; /* [n_variants] no row before this position needs it */
	uint32_t n_variants;
	uint32_t n_spans_max;
	int in_plan; /* of relay.c: nothing is left to do */
	struct attn_scratch *scratch;
};

struct task {
	struct prepared *p;
	uint32_t row_from, row_to;
	uint32_t head_from, head_to;
};
struct task_list {
	struct task *tasks;
	uint32_t n;
	uint32_t n_rows;
};

/*
 * What of p does not depend on who computes: positions, ways of seeing, rotations, room for
 * spans; p->it and p->layer are set, the rest zero. -ENOMEM.
 */
int attn_prepare_list(struct prepared *p, struct attn_scratch *s);
/* Where K and V of row r go. */
struct attn_target attn_target(const struct attn_item *it, uint32_t r);
/* Spans of the positions [from, to). */
void attn_build_spans(struct prepared *p, uint64_t from, uint64_t to);
/* Tasks of n_items items by rows, or by rows and heads. 0, -ENOMEM. */
int attn_list_tasks(struct task_list *l, struct attn_scratch *s,
		    struct prepared *p, uint32_t n_items, int by_heads);
void attn_run(struct pool *pool, struct task_list *l,
	      void (*fn)(void *arg, uint32_t i));
/* Task i of the list arg: clear the states, add the spans, write the outputs. */
void attn_run_clear(void *arg, uint32_t i);
void attn_run_spans(void *arg, uint32_t i);
void attn_run_finish(void *arg, uint32_t i);
/*
 * relay.c: run the rows of list [*n] that share segments, with their spans built; the others
 * stay in list. 0, or -ENOMEM: nothing ran.
 */
int attn_relay(struct pool *pool, struct attn_scratch *s, struct prepared *list,
	       uint32_t *n);
/* Bytes of K and V of the item's spans, one layer. */
uint64_t attn_read_bytes(const struct prepared *p);
/* An item of which only what lies from resident_from on is pinned. */
int attn_run_windows(struct engine *e, struct pool *pool,
		     struct attn_scratch *s, struct prepared *p);

#endif
