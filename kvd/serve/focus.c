/*
 * focus.c - the question looks at the chunks before they are repaired; see focus.h
 */
#include "kvd/serve/focus.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/inter.h"

/* ---- what there is to look at ------------------------------------------------ */

/* The last chunk, or n_parts. */
static uint32_t last_chunk(const struct gen *g)
{
	uint32_t i = g->n_parts;

	while (i-- > 0)
		if (g->parts[i].reuse && g->parts[i].n)
			return i;
	return g->n_parts;
}

/* First of the parts up to last that follow each other and are chunks. */
static uint32_t first_chunk(const struct gen *g, uint32_t last)
{
	uint32_t i = last, first = last;

	while (i-- > 0 && (g->parts[i].reuse || !g->parts[i].n))
		if (g->parts[i].n)
			first = i;
	return first;
}

static int any_repaired(const struct gen *g, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i <= to; i++)
		if (g->parts[i].group)
			return 1;
	return 0;
}

/* The list without patches, and of the question only the rows that look. */
static int make_view(struct gen *g, struct focus *f)
{
	const struct seq *q = &g->seq;
	const uint32_t q_first = g->parts[f->n_parts].first;

	f->view = *q;
	f->view.n_entries = 0;
	f->view.entries = calloc(q->n_entries, sizeof(*q->entries));
	if (!f->view.entries)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->n_entries; i++) {
		struct seq_entry e = q->entries[i];

		if (e.pos >= q_first) {
			const int64_t cut = (int64_t)f->pos - e.pos;

			if (cut >= (int64_t)e.n)
				continue;
			e.from += cut > 0 ? (uint32_t)cut : 0;
			e.n -= cut > 0 ? (uint32_t)cut : 0;
			e.pos += KV_MAX(cut, 0);
		}
		e.skip = e.patch ? NULL : e.skip;
		e.patch = NULL;
		e.n_patch = 0;
		f->view.entries[f->view.n_entries++] = e;
	}
	return 0;
}

int focus_plan(struct gen *g)
{
	const uint32_t last = last_chunk(g);
	struct focus *f;

	if (!g->req || !(g->req->flags & SERVE_GEN_FOCUS) || g->edit ||
	    g->req->flags & SERVE_GEN_SCORE || !g->n_groups ||
	    last == g->n_parts || g->model->layout.n_layers < 3 ||
	    !any_repaired(g, first_chunk(g, last), last))
		return 0;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	g->focus = f;
	f->i_part = first_chunk(g, last);
	f->n_parts = last + 1;
	f->first = g->parts[f->i_part].first;
	f->pos = g->parts[last].first + g->parts[last].n;
	f->n = KV_MIN(g->n_prompt - f->pos, FOCUS_ROWS);
	f->pos = g->n_prompt - f->n;
	f->share = calloc(f->n_parts, sizeof(*f->share));
	f->in = calloc(f->n_parts, 1);
	f->items = calloc(f->n_parts + 1, sizeof(*f->items));
	f->lse = malloc((size_t)(f->n_parts + 1) * f->n *
			g->model->shape.n_heads * sizeof(*f->lse));
	if (!f->share || !f->in || !f->items || !f->lse || make_view(g, f))
		return -ENOMEM;
	f->pending = 1;
	return 0;
}

void focus_free(struct gen *g)
{
	struct focus *f = g->focus;

	if (!f)
		return;
	free(f->share);
	free(f->in);
	free(f->items);
	free(f->lse);
	free(f->view.entries);
	free(f);
	g->focus = NULL;
}

int focus_holds(const struct gen *g, uint32_t pos)
{
	return g->focus && g->focus->pending && pos >= g->focus->first;
}

int focus_ready(const struct gen *g)
{
	uint32_t pos;

	return g->focus && g->focus->pending &&
	       !gen_next_rows(g, g->pos, 1, &pos) && pos >= g->focus->first;
}

uint32_t focus_exact_end(const struct gen *g)
{
	if (!g->req || !(g->req->flags & SERVE_GEN_FOCUS))
		return UINT32_MAX;
	return g->n_groups ? g->groups[0].first : UINT32_MAX;
}

/* ---- the look ------------------------------------------------------------------- */

/* Of what goes to chunks, as much went to each: lse [n_parts + 1][n][n_heads]. */
static void add_shares(const struct gen *g, struct focus *f)
{
	const uint32_t n_heads = g->model->shape.n_heads;
	const size_t stride = (size_t)f->n * n_heads;

	for (size_t at = 0; at < stride; at++) {
		const float *lse = f->lse + at;
		float top = lse[f->n_parts * stride], sum;

		for (uint32_t j = 0; j < f->n_parts; j++)
			if (g->parts[j].n)
				top = fmaxf(top, lse[j * stride]);
		sum = expf(lse[f->n_parts * stride] - top);
		for (uint32_t j = 0; j < f->n_parts; j++)
			if (g->parts[j].n)
				sum += expf(lse[j * stride] - top);
		for (uint32_t j = f->i_part; j < f->n_parts; j++)
			if (g->parts[j].n)
				f->share[j] +=
					(double)(expf(lse[j * stride] - top) /
						 sum);
	}
}

/* The fewest chunks that have FOCUS_SHARE of it: 1 when they are those of before. */
static int narrow(struct focus *f, uint8_t *in)
{
	double sum = 0, have = 0;
	int same;

	memset(in, 0, f->n_parts);
	for (uint32_t j = f->i_part; j < f->n_parts; j++)
		sum += f->share[j];
	while (have < FOCUS_SHARE * sum) {
		uint32_t best = f->n_parts;

		for (uint32_t j = f->i_part; j < f->n_parts; j++)
			if (!in[j] && (best == f->n_parts ||
				       f->share[j] > f->share[best]))
				best = j;
		if (best == f->n_parts)
			break; /* rounding */
		in[best] = 1;
		have += f->share[best];
	}
	same = !memcmp(in, f->in, f->n_parts);
	memcpy(f->in, in, f->n_parts);
	return same;
}

/* Attention to each part apart, and to the question itself. */
static int look(struct gen *g, const struct attn_place *at, uint32_t layer,
		const float *q)
{
	struct focus *f = g->focus;
	const size_t stride = (size_t)f->n * g->model->shape.n_heads;
	struct seq *views = calloc(f->n_parts + 1, sizeof(*views));
	int ret;

	if (!views)
		return -ENOMEM;
	for (uint32_t j = 0; j <= f->n_parts; j++) {
		const struct gen_part *p = &g->parts[j];
		const uint32_t from = j < f->n_parts ? p->first : f->pos;
		const uint32_t n = j < f->n_parts ? p->n : f->n;

		if (n)
			views[j] = inter_view(&f->view, from, n);
		f->items[j] = (struct attn_item){
			.shape = &g->model->shape,
			.seq = &views[j],
			.pos = f->pos,
			.n_rows = n ? f->n : 0,
			.in = KERN_F32,
			.q = q,
			.on_device = !!at->gpu,
			.lse = f->lse + j * stride,
		};
	}
	ret = attn_place_layer(at, f->items, f->n_parts + 1, layer);
	free(views);
	if (!ret)
		add_shares(g, f);
	return ret;
}

int focus_attn(struct gen *g, const struct attn_place *at, uint32_t layer,
	       const float *q, const float *k, const float *v, float *o)
{
	struct focus *f = g->focus;
	const uint32_t n_layers = g->model->layout.n_layers;
	struct attn_item item = {
		.shape = &g->model->shape,
		.seq = &f->view,
		.pos = f->pos,
		.n_rows = f->n,
		.in = KERN_F32,
		.q = q,
		.k = k,
		.v = v,
		.o = o,
		.on_device = !!at->gpu,
	};
	uint8_t in[f->n_parts];
	int ret;

	if (!layer) { /* it may be done again */
		memset(f->share, 0, f->n_parts * sizeof(*f->share));
		memset(f->in, 0, f->n_parts);
		f->n_same = f->stop_layer = 0;
	}
	ret = attn_place_layer(at, &item, 1, layer);
	if (!ret)
		ret = look(g, at, layer, q);
	if (ret)
		return ret;
	f->n_layers = layer + 1;
	f->n_same = narrow(f, in) ? f->n_same + 1 : 0;
	if (f->n_same >= KV_MAX(1u, n_layers / FOCUS_SAME))
		f->stop_layer = layer + 1;
	/* nothing can be won above the last layer but one */
	return f->stop_layer || layer + 2 >= n_layers ? -ECANCELED : 0;
}

void focus_looked(struct gen *g)
{
	struct focus *f = g->focus;

	f->pending = 0;
	for (uint32_t j = f->i_part; j < f->n_parts && f->stop_layer; j++) {
		const struct gen_part *p = &g->parts[j];

		if (p->group && !f->in[j])
			g->seq.entries[p->i_entry].stop_layer = f->stop_layer;
	}
}

int focus_stops(const struct gen *g, const struct gen_part *part,
		uint32_t layer)
{
	const uint32_t stop =
		part && g->focus ? g->seq.entries[part->i_entry].stop_layer : 0;

	return stop && layer >= stop;
}

void focus_report(struct gen *g)
{
	const struct focus *f = g->focus;
	struct serve_gen_repair *r = &g->req->how;

	r->n_layers = g->model->layout.n_layers;
	r->permille = g->craft ? g->craft->permille : g->permille;
	if (r->permille > REPAIR_ALL)
		r->permille = 0; /* each its own */
	for (uint32_t i = 0; i < g->n_groups; i++)
		r->n_probed += g->groups[i].n_probed;
	if (!g->n_groups)
		return;
	if (!f || f->pending)
		return;
	r->n_looked = f->n;
	r->looked_layers = f->n_layers;
	for (uint32_t j = f->i_part; j < f->n_parts; j++) {
		const struct seq_entry *e =
			&g->seq.entries[g->parts[j].i_entry];

		if (!g->parts[j].group || !e->stop_layer)
			continue;
		r->stop_layer = e->stop_layer;
		r->n_stopped += e->n_patch;
	}
	stat_add(g->tenant->st_stopped, r->n_stopped);
}
