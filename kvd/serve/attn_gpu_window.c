/*
 * attn_gpu_window.c - the addresses that a step reads, for the tensor copy engine; see
 * attn_gpu_priv.h
 *
 * A window is one range of addresses with a row of K or V at each multiple of a row's bytes. Pages
 * of a tenant lie in spaces that are reserved once, so one window mostly has all that the prompts of
 * a step see. Where it has not, or is larger than the engine can count, prompts go by mma: the same
 * bits.
 */
#include "kvd/serve/attn_gpu_priv.h"

#include <string.h>

/* From the lowest to behind the highest byte of the spans. */
struct range {
	uint64_t from, to;
};

static void add(struct range *r, uint64_t at, const struct gpu_span *s,
		const struct attn_shape *shape)
{
	const uint64_t pages = KV_DIV_UP(s->n_tokens, s->page_tokens);

	r->from = KV_MIN(r->from, at);
	r->to = KV_MAX(r->to, at + (pages - 1) * s->page_bytes +
				      shape->n_kv_heads * s->head_bytes);
}

static const struct gpu_span *layer_spans(const struct attn_gpu *g, uint32_t i)
{
	const struct gpu_span *s = attn_gpu_host(g, g->st->spans_at);

	return s + (size_t)i * g->st->n_spans;
}

/* Later layers lie behind the first: those between are in what both are in. */
static int all_inside(const struct gpu_lists *l)
{
	const struct attn_gpu *g = l->g;

	for (uint32_t i = 0; i < g->st->n_layers;
	     i += KV_MAX(g->st->n_layers - 1, 1u))
		for (uint32_t k = 0; k < l->n_spans; k++)
			if (!kern_gpu_in_window(&g->st->window,
						&layer_spans(g, i)[k],
						g->shape->n_kv_heads))
				return 0;
	return 1;
}

void attn_gpu_find_window(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	const struct attn_shape *s = g->shape;
	struct range r = { UINT64_MAX, 0 };

	if (!(kern_gpu_wide_kind(s->type, s->head_dim) & g->c.wide) ||
	    g->st->padded || !g->st->n_layers)
		return;
	for (uint32_t i = 0; i < g->st->n_layers;
	     i += KV_MAX(g->st->n_layers - 1, 1u))
		for (uint32_t k = 0; k < l->n_spans; k++) {
			const struct gpu_span *x = &layer_spans(g, i)[k];

			if (!x->n_tokens)
				continue; /* only stored to */
			add(&r, x->k, x, s);
			add(&r, x->v, x, s);
		}
	if (r.to <= r.from)
		return;
	r.from &= ~511ull; /* whole rows of either size */
	g->st->has_window = !kern_gpu_window(g->c.kern, g->c.dev, s->type,
					     s->head_dim, r.from, r.to - r.from,
					     &g->st->window) &&
			    all_inside(l);
}
