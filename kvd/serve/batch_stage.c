/*
 * batch_stage.c - where a step becomes narrower; see batch_stage.h
 */
#include "kvd/serve/batch_stage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/focus.h"

void batch_items(const struct batch *b, uint32_t layer, struct attn_item *items)
{
	for (uint32_t i = 0; i < b->n_runs; i++) {
		const struct row_run *r = &b->runs[i];

		items[i] = (struct attn_item){
			.shape = &b->model->shape,
			.seq = &r->g->seq,
			.pos = r->pos,
			.n_rows = focus_stops(r->g, r->patched, layer) ? 0
								       : r->n,
			.rows_at = r->patched ? b->rows_at + r->row : NULL,
			.in = KERN_F32,
			.q = b, /* only whether there are any counts */
			.k = b,
			.resident_from = r->g->windowed ? r->g->pinned_from : 0,
		};
	}
}

/* stops [n_layers]: 1 where an entry of the step's lists stops; returns how many. */
static uint32_t find_stops(const struct batch *b, uint8_t *stops)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->n_runs; i++) {
		const struct gen *g = b->runs[i].g;

		for (uint32_t k = 0; g->focus && k < g->seq.n_entries; k++) {
			const uint32_t at = g->seq.entries[k].stop_layer;

			n += at && !stops[at];
			stops[at] = 1;
		}
	}
	return n;
}

/* Rows of the step, of those that are left before, that go on at the layer. */
static uint32_t rows_left(const struct batch *b, uint32_t before,
			  uint32_t layer, uint32_t *rows)
{
	uint32_t n = 0, at = 0;

	for (uint32_t i = 0; i < b->n_runs; i++) {
		const struct row_run *r = &b->runs[i];

		if (focus_stops(r->g, r->patched, before))
			continue;
		for (uint32_t k = 0; k < r->n; k++, at++)
			if (!focus_stops(r->g, r->patched, layer))
				rows[n++] = at;
	}
	return n;
}

static void find_logit_rows(const struct batch *b, uint32_t layer,
			    uint32_t *out)
{
	uint32_t at = 0, n = 0;

	for (uint32_t i = 0; i < b->n_runs; i++) {
		const struct row_run *r = &b->runs[i];
		const uint32_t end = r->row + r->n;

		if (focus_stops(r->g, r->patched, layer))
			continue;
		for (; n < b->n_logits && b->logit_rows[n] < end; n++)
			out[n] = at + b->logit_rows[n] - r->row;
		at += r->n;
	}
	assert(n == b->n_logits); /* who wants logits goes on */
}

static int room(const struct batch *b, struct batch_stages *x, uint32_t n)
{
	x->list = calloc(n, sizeof(*x->list));
	x->items = calloc((size_t)n * b->n_runs, sizeof(*x->items));
	x->rows = calloc((size_t)n * b->n_rows, sizeof(*x->rows));
	x->logit_rows = calloc(b->n_logits + 1, sizeof(*x->logit_rows));
	return x->list && x->items && x->rows && x->logit_rows ? 0 : -ENOMEM;
}

int batch_stages(const struct batch *b, struct gpu_step *s,
		 struct batch_stages *out)
{
	const uint32_t n_layers = b->model->layout.n_layers;
	uint8_t stops[n_layers + 1];
	uint32_t n, i = 0, before = 0;

	memset(stops, 0, sizeof(stops));
	n = find_stops(b, stops);
	if (!n)
		return 0;
	if (room(b, out, n))
		return -ENOMEM;
	for (uint32_t layer = 1; layer < n_layers; layer++) {
		struct gpu_step_stage *x = &out->list[i];
		uint32_t *rows = out->rows + (size_t)i * b->n_rows;

		if (!stops[layer])
			continue;
		x->layer = layer;
		x->items = out->items + (size_t)i * b->n_runs;
		batch_items(b, s->n_kept ? 0 : layer, x->items);
		x->n_rows = s->n_kept ? b->n_rows
				      : rows_left(b, before, layer, rows);
		x->rows = s->n_kept ? NULL : rows;
		before = layer;
		i++;
	}
	s->stages = out->list;
	s->n_stages = i;
	if (s->n_kept)
		return 0;
	find_logit_rows(b, before, out->logit_rows);
	s->logit_rows = out->logit_rows;
	return 0;
}

void batch_stages_free(struct batch_stages *x)
{
	free(x->list);
	free(x->items);
	free(x->rows);
	free(x->logit_rows);
}
