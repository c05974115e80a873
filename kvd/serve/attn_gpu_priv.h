/*
 * attn_gpu_priv.h - buffers of a lane on the device and the plan of a step, between the
 * files attn_gpu*.c
 *
 * Thread: engine thread.
 */
#ifndef KVD_SERVE_ATTN_GPU_PRIV_H
#define KVD_SERVE_ATTN_GPU_PRIV_H

#include "kvd/serve/attn_gpu.h"
#include "kvd/serve/attn_priv.h"

/* Grows when nothing is queued; contents are lost then. */
struct gpu_buf {
	cuda_ptr at;
	size_t n_bytes;
};
struct pinned_buf {
	char *p;
	size_t n_bytes;
};

/* Rows [row, row + n) of one launch, with their parts and tiles. */
struct gpu_turn {
	uint32_t row, n_rows, part, n_parts, tile, n_tiles;
};

/* A range of layers of a step. */
struct gpu_stage {
	uint32_t layer, n_layers;
	uint32_t n_rows, n_kv_rows, n_variants, n_spans; /* with padding */
	uint32_t n_more; /* rows behind them: attn_gpu_more() */
	uint32_t n_joined; /* rows that see tokens in several ways */
	uint32_t n_parts; /* room for them in plan */
	int padded;
	/* of all spans, if there is one: tiles go by kern_gpu_attn_wide() */
	struct kern_gpu_window window;
	int has_window;
	struct gpu_turn *turns; /* [n_turns] of the scratch */
	uint32_t n_turns;
	/* where they lie in plan */
	size_t pos_at, key_pos_at, rows_at, to_at, skip_at, spans_at, at_at,
		tiles_at, parts_at, joined_at, more_at, mul_at, scale_at;
};

struct attn_gpu {
	struct attn_gpu_conf c;
	struct gpu_buf plan; /* as host, copied */
	struct pinned_buf host;
	struct gpu_buf more; /* f32 queries, then o, of n_more rows */
	/* of a turn: typed [n_variants][n_rows][n_heads][head_dim] */
	struct gpu_buf q;
	struct gpu_buf ml; /* f32 [2][n_rows + n_more][n_heads] */
	struct gpu_buf part_o, part_ml;
	struct gpu_buf nowhere; /* K and V of padding */
	/* of the step */
	const struct attn_shape *shape;
	uint32_t epoch; /* goes up when a buffer moves */
	uint64_t n_wide;
	struct gpu_stage *stages,
		*st; /* [n_stages] ascending; the current one */
	uint32_t n_stages, n_stage_room;
	/* attn_gpu_items.c: one slice of rows */
	struct gpu_buf in, f32; /* as in the call; widened */
	struct pinned_buf io;
	struct gpu_buf rows; /* attn_gpu_put() */
	struct attn_item *slice;
	uint32_t n_slice_room;
};

/* A row that attends: of an item. */
struct gpu_query {
	uint32_t item, row;
};

/* The lists of a stage while its plan is made. */
struct gpu_lists {
	struct attn_gpu *g;
	struct attn_scratch *s;
	const struct attn_gpu_step *step;
	struct prepared *p; /* [n_items] */
	uint32_t *first_span; /* [n_items] */
	struct gpu_query *queries; /* [n_rows] */
	uint32_t next_row, next_wanted; /* while they are found */
	struct attn_target *to; /* [n_kv] */
	uint32_t *to_span; /* [n_kv] */
	uint32_t n_rows, n_kv, n_spans; /* without padding */
	size_t n_skip_words, n_at;
	uint64_t n_parts; /* at most */
};

/* attn_gpu_plan.c: of the current stage. Where its plan lies: from *end on, which moves.
 * Errors of attn_gpu_begin(). */
int attn_gpu_prepare(struct gpu_lists *l, size_t *end);
/* Into the pinned buffer, which has room. -ENOMEM. */
int attn_gpu_write(struct gpu_lists *l);

/* attn_gpu_window.c: the window of the current stage, whose spans are written. */
void attn_gpu_find_window(const struct gpu_lists *l);

/* What lies there in the plan. */
static inline void *attn_gpu_host(const struct attn_gpu *g, size_t at)
{
	return g->host.p + at;
}

/* In ml, sums behind maxima. */
static inline size_t attn_gpu_sums(const struct attn_gpu *g)
{
	return ((size_t)g->st->n_rows + g->st->n_more) * g->shape->n_heads *
	       sizeof(float);
}

/*
 * attn_gpu_more.c: rows that see tokens with a temperature and a scale (seq.h). Each such way is a
 * row more, behind the step's, with the same query over the temperature; the results
 * become one at the end.
 */
/* Ways beside the plain one in which the item's rows see something. */
uint32_t attn_gpu_more(const struct prepared *p);
/* Rows n_rows.. of positions and of lists, and what joins them. */
void attn_gpu_write_more(const struct gpu_lists *l,
			 struct kern_gpu_list *lists);
/* Their queries, out of those of the step. */
int attn_gpu_pick(struct attn_gpu *g, cuda_ptr q);
/* Where their outputs go. */
cuda_ptr attn_gpu_more_o(const struct attn_gpu *g);
/* Into the step's. */
int attn_gpu_join(struct attn_gpu *g, cuda_ptr o);

/* At least n bytes; -ENOSPC there is no more, those of the driver. */
int gpu_buf_want(struct attn_gpu *g, struct gpu_buf *b, size_t n);
int pinned_buf_want(struct attn_gpu *g, struct pinned_buf *b, size_t n);

/* Row 0 of the segment as a span, for stores and comparisons. */
struct gpu_span attn_gpu_target_span(const struct attn_target *to,
				     uint32_t layer);
/* Keys, f32 in place, by the positions at pos_at of the plan. */
int attn_gpu_rotate(struct attn_gpu *g, cuda_ptr k, size_t pos_at,
		    uint32_t n_rows);
int attn_gpu_same_shape(const struct attn_shape *a, const struct attn_shape *b);
int attn_gpu_same_layout(const struct kv_layout *a, const struct kv_layout *b);

#endif
