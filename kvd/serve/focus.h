/*
 * focus.h - which chunks the question looks at: the others are not repaired to the end
 *
 * Early stop of Cache-Craft (Agarwal et al. 2025, arXiv:2502.15734): from layer to layer it
 * becomes clear which chunks the question attends to; once that does not change any more, the
 * tokens of the others are not computed further, and in the layers above they are seen
 * as they are cached. There the question is watched while chunks are recomputed. Here it looks
 * first: its last FOCUS_ROWS tokens go through the layers, over chunks as they are cached,
 * until the fewest chunks that have FOCUS_SHARE of what goes to chunks, summed over the layers so
 * far, have been the same for a while (once in 6 layers, 4 times in 32; the paper: 10 to 15 of
 * 32 layers). So it is the same however steps are cut.
 *
 * It is about the chunks that follow each other right before the question. What comes behind
 * repaired chunks depends on the question then: it is not kept, nor looked up.
 *
 * Loop thread, but focus_attn().
 */
#ifndef KVD_SERVE_FOCUS_H
#define KVD_SERVE_FOCUS_H

#include "kvd/serve/attn_place.h"

#define FOCUS_ROWS  32u
#define FOCUS_SHARE 0.5
#define FOCUS_SAME  8u /* layers of the model for each time */

struct gen;
struct gen_part;

struct focus {
	int pending; /* nothing of the chunks may be computed before */
	uint32_t first; /* position of the chunks */
	uint32_t pos, n; /* the rows that look: the question's last */
	uint32_t i_part, n_parts; /* the parts before the question */
	double *share; /* [n_parts] attention that went there, of chunks */
	uint8_t *in; /* [n_parts] it is looked at */
	uint32_t n_same;
	struct seq view; /* the list, as cached */
	struct attn_item *items; /* [n_parts + 1] */
	float *lse; /* [n_parts + 1][n][n_heads] */
	uint32_t stop_layer; /* out: where the others stop; 0: nowhere */
	uint32_t n_layers; /* out: that it took */
};

/* The list is built: is there anything to look for? 0, -ENOMEM. */
int focus_plan(struct gen *g);
void focus_free(struct gen *g);
/* 1: rows from position pos on are not computed before the look. */
int focus_holds(const struct gen *g, uint32_t pos);
/* 1: g is to look now. */
int focus_ready(const struct gen *g);
/*
 * One layer of the look: q, o [n][n_heads][head_dim], k, v [n][n_kv_heads][head_dim], of the
 * device where K and V lie there. 0, -ECANCELED it is known, -ENOMEM, those of the device.
 * Engine thread.
 */
int focus_attn(struct gen *g, const struct attn_place *at, uint32_t layer,
	       const float *q, const float *k, const float *v, float *o);
/* The look is over: the others stop. */
void focus_looked(struct gen *g);
/* Position from which on nothing is found or kept. */
uint32_t focus_exact_end(const struct gen *g);
/* 1: rows of the part do not go through layer. */
int focus_stops(const struct gen *g, const struct gen_part *part,
		uint32_t layer);

/* What was repaired, and how far, goes into the request's how. */
void focus_report(struct gen *g);

#endif
