/*
 * attn_gpu_more.c - tokens seen with a temperature and a scale; see attn_gpu_priv.h
 */
#include "kvd/serve/attn_gpu_priv.h"

uint32_t attn_gpu_more(const struct prepared *p)
{
	uint32_t n = 0;

	for (uint32_t k = 1; k < p->n_seen; k++)
		n += !!p->seen[k].n_spans;
	return n;
}

/* Row r of the item, row of the step: its more, from *next on. */
static void write_row(const struct gpu_lists *l, uint32_t i_item, uint32_t r,
		      uint32_t row, uint32_t *next, struct kern_gpu_list *lists)
{
	struct attn_gpu *g = l->g;
	const struct prepared *p = &l->p[i_item];
	const size_t n = g->n_rows + g->n_more;
	int64_t *pos = attn_gpu_host(g, g->pos_at);
	uint32_t *from = attn_gpu_host(g, g->more_at);
	float *mul = attn_gpu_host(g, g->mul_at);
	float *scale = attn_gpu_host(g, g->scale_at);
	uint32_t span = l->first_span[i_item] + p->seen->n_spans;

	for (uint32_t k = 1; k < p->n_seen; k++) {
		const struct seen *s = &p->seen[k];
		const uint32_t at = *next;

		if (!s->n_spans)
			continue;
		from[at] = row;
		mul[at] = 1 / s->temperature;
		scale[at] = s->scale;
		for (uint32_t v = 0; v < g->n_variants; v++)
			pos[v * n + g->n_rows + at] = pos[v * n + row];
		lists[g->n_rows + at] =
			(struct kern_gpu_list){ p->pos[r], span, s->n_spans };
		span += s->n_spans;
		++*next;
	}
}

void attn_gpu_write_more(const struct gpu_lists *l, struct kern_gpu_list *lists)
{
	struct attn_gpu *g = l->g;
	struct gpu_joined *joined = attn_gpu_host(g, g->joined_at);
	uint32_t row = 0, next = 0;

	for (uint32_t i = 0; i < l->step->n_items; i++) {
		const struct prepared *p = &l->p[i];

		for (uint32_t r = 0; r < p->it->n_rows; r++, row++) {
			const uint32_t first = next;

			write_row(l, i, r, row, &next, lists);
			if (next > first)
				*joined++ = (struct gpu_joined){ .row = row,
								 .first = first,
								 .n = next -
								      first };
		}
	}
}

int attn_gpu_pick(struct attn_gpu *g, cuda_ptr q)
{
	const struct gpu_pick a = {
		.x = q,
		.idx = g->plan.at + g->more_at,
		.mul = g->plan.at + g->mul_at,
		.y = g->more.at,
		.n_rows = g->n_more,
		.n = g->shape->n_heads * g->shape->head_dim,
	};

	return kern_gpu_pick(g->c.kern, &a, g->c.stream);
}

cuda_ptr attn_gpu_more_o(const struct attn_gpu *g)
{
	const size_t row = (size_t)g->shape->n_heads * g->shape->head_dim;

	return g->more.at + g->n_more * row * sizeof(float);
}

int attn_gpu_join(struct attn_gpu *g, cuda_ptr o)
{
	const size_t heads = g->shape->n_heads;
	const size_t own = g->n_rows * heads * sizeof(float);
	const size_t all = attn_gpu_sums(g);
	const struct gpu_join a = {
		.rows = g->plan.at + g->joined_at,
		.o = o,
		.m = g->ml.at,
		.l = g->ml.at + all,
		.more_o = attn_gpu_more_o(g),
		.more_m = g->ml.at + own,
		.more_l = g->ml.at + all + own,
		.scale = g->plan.at + g->scale_at,
		.n_rows = g->n_joined,
		.n_heads = g->shape->n_heads,
		.head_dim = g->shape->head_dim,
	};

	return kern_gpu_join(g->c.kern, &a, g->c.stream);
}
