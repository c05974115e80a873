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

/* Row of the step: its more, from *next on. */
static void write_row(const struct gpu_lists *l, uint32_t row, uint32_t *next,
		      struct kern_gpu_list *lists)
{
	struct attn_gpu *g = l->g;
	const struct gpu_query *q = &l->queries[row];
	const struct prepared *p = &l->p[q->item];
	const size_t n = g->st->n_rows + g->st->n_more;
	int64_t *pos = attn_gpu_host(g, g->st->pos_at);
	uint32_t *from = attn_gpu_host(g, g->st->more_at);
	float *mul = attn_gpu_host(g, g->st->mul_at);
	float *scale = attn_gpu_host(g, g->st->scale_at);
	uint32_t span = l->first_span[q->item] + p->seen->n_spans;

	for (uint32_t k = 1; k < p->n_seen; k++) {
		const struct seen *s = &p->seen[k];
		const uint32_t at = *next;

		if (!s->n_spans)
			continue;
		from[at] = row;
		mul[at] = 1 / s->temperature;
		scale[at] = s->scale;
		for (uint32_t v = 0; v < g->st->n_variants; v++)
			pos[v * n + g->st->n_rows + at] = pos[v * n + row];
		lists[g->st->n_rows + at] =
			(struct kern_gpu_list){ p->pos[q->row], span,
						s->n_spans };
		span += s->n_spans;
		++*next;
	}
}

void attn_gpu_write_more(const struct gpu_lists *l, struct kern_gpu_list *lists)
{
	struct attn_gpu *g = l->g;
	struct gpu_joined *joined = attn_gpu_host(g, g->st->joined_at);
	uint32_t next = 0;

	for (uint32_t row = 0; row < l->n_rows; row++) {
		const uint32_t first = next;

		write_row(l, row, &next, lists);
		if (next > first)
			*joined++ = (struct gpu_joined){ .row = row,
							 .first = first,
							 .n = next - first };
	}
}

int attn_gpu_pick(struct attn_gpu *g, cuda_ptr q)
{
	const struct gpu_pick a = {
		.x = q,
		.idx = g->plan.at + g->st->more_at,
		.mul = g->plan.at + g->st->mul_at,
		.y = g->more.at,
		.n_rows = g->st->n_more,
		.n = g->shape->n_heads * g->shape->head_dim,
	};

	return kern_gpu_pick(g->c.kern, &a, g->c.stream);
}

cuda_ptr attn_gpu_more_o(const struct attn_gpu *g)
{
	const size_t row = (size_t)g->shape->n_heads * g->shape->head_dim;

	return g->more.at + g->st->n_more * row * sizeof(float);
}

int attn_gpu_join(struct attn_gpu *g, cuda_ptr o)
{
	const size_t heads = g->shape->n_heads;
	const size_t own = g->st->n_rows * heads * sizeof(float);
	const size_t all = attn_gpu_sums(g);
	const struct gpu_join a = {
		.rows = g->plan.at + g->st->joined_at,
		.o = o,
		.m = g->ml.at,
		.l = g->ml.at + all,
		.more_o = attn_gpu_more_o(g),
		.more_m = g->ml.at + own,
		.more_l = g->ml.at + all + own,
		.scale = g->plan.at + g->st->scale_at,
		.n_rows = g->st->n_joined,
		.n_heads = g->shape->n_heads,
		.head_dim = g->shape->head_dim,
	};

	return kern_gpu_join(g->c.kern, &a, g->c.stream);
}
