/*
 * inter.h - what the tokens of a chunk look at: a second pass over queries and keys
 *
 * The kernels do not tell attention weights. So the queries of chunks that are computed in
 * company are kept, as they come by in each layer, and once the request has its answer
 * they meet the keys again, part of the prompt by part: the log-sum-exp of each part, over
 * all of them, is the share of a row's attention that went there (Cache-Craft, Agarwal et
 * al. 2025, arXiv:2502.15734: inter- and intra-attention, averaged over heads and
 * layers). No weight is ever stored.
 *
 * inter_keep() and inter_layer(): engine thread; the rest loop thread.
 */
#ifndef KVD_SERVE_INTER_H
#define KVD_SERVE_INTER_H

#include "kvd/serve/attn_place.h"

/* A part of the prompt, in order; those before a measured chunk are all there. */
struct inter_part {
	uint32_t first, n; /* positions; n > 0 */
	int is_chunk;
	/* a chunk whose queries are kept; all else of others is NULL */
	int measured;
	uint32_t row; /* of the kept: where its begin */
	double *inter; /* [i_part] attention to each part before, mean over layers */
	double intra; /* to itself */
	float *score; /* [n] of each token to all chunks before, mean over layers */
};

struct inter {
	const struct attn_shape *shape;
	uint32_t n_layers, n_rows;
	size_t n_bytes; /* of q */
	char *q; /* [n_layers][n_rows][n_heads][head_dim], shape->type */
	struct inter_part *parts; /* [n_parts], inter_part() */
	uint32_t n_parts, n_room;
};

/* Bytes that the queries of n_rows take. */
size_t inter_bytes(const struct attn_shape *shape, uint32_t n_layers,
		   uint32_t n_rows);
/* Room for the queries of n_rows and n_parts parts; shape is borrowed. -ENOMEM. */
int inter_new(struct inter **out, const struct attn_shape *shape,
	      uint32_t n_layers, uint32_t n_rows, uint32_t n_parts);
void inter_free(struct inter *x); /* NULL is fine */
/*
 * The next part; measured: its queries are kept, from row *row on. n 0 is left out.
 * -ENOMEM.
 */
int inter_part(struct inter *x, uint32_t first, uint32_t n, int is_chunk,
	       uint32_t *row);
/* q [n][n_heads][head_dim] f32, unrotated, of the kept rows row.. */
void inter_keep(struct inter *x, uint32_t layer, uint32_t row, uint32_t n,
		const float *q);
/* Where the kept row goes as it lies in q, of layer 0; each layer *layer_bytes on. */
char *inter_at(const struct inter *x, uint32_t row, size_t *layer_bytes);
/* The entries of q that hold [from, from + n), borrowed. Any thread. */
struct seq inter_view(const struct seq *q, uint32_t from, uint32_t n);
/*
 * Add one layer to the sums of all measured parts. All of q as far as them is pinned.
 * 0, -ENOMEM, those of a device.
 */
int inter_layer(struct inter *x, const struct attn_place *at,
		const struct seq *q, uint32_t layer);

#endif
