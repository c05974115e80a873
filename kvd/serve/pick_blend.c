/*
 * pick_blend.c - the tokens whose K and V at layer 1 deviate most from the chunk's
 *
 * CacheBlend (Yao et al. 2025, arXiv:2405.16444); over all chunks of the group, so that the
 * share goes where it is needed. repair_measure(): engine thread.
 */
#include "kvd/serve/pick.h"

/* Squared distance of fresh [dim] from what lies at from. */
static float distance(const struct gen *g, const char *from, const float *fresh,
		      uint32_t dim)
{
	float old[KERN_HEAD_DIM_MAX], sum = 0;

	kern_to_f32(g->model->shape.type, from, old, dim);
	for (uint32_t d = 0; d < dim; d++)
		sum += (fresh[d] - old[d]) * (fresh[d] - old[d]);
	return sum;
}

/* Over all heads, K and V; keys are compared as they lie there, rotated. */
static float deviation(const struct gen *g, const struct attn_target *at_old,
		       const float *k, const float *v)
{
	const struct segment *s = at_old->seg;
	const uint32_t t = at_old->token;
	const struct kv_layout *l = &s->layout;
	const uint32_t dim = l->head_dim;
	const size_t head = layout_head_bytes(l);
	const size_t in_page = t % l->page_tokens * (size_t)dim * l->elem_bytes;
	const char *at[2] = { segment_addr(s, 1, 0, t) + in_page,
			      segment_addr(s, 1, 1, t) + in_page };
	const int64_t pos = s->pos0 + t;
	float key[KERN_HEAD_DIM_MAX], sum = 0;

	for (uint32_t h = 0; h < l->n_kv_heads; h++) {
		kern_rope(&g->model->shape.rope, k + h * (size_t)dim, key, &pos,
			  1, 1, dim);
		sum += distance(g, at[0] + h * head, key, dim) +
		       distance(g, at[1] + h * head, v + h * (size_t)dim, dim);
	}
	return sum;
}

/* Where pos lies, in part i or one behind it; returns which. */
static uint32_t probed_at(const struct gen *g, uint32_t i, uint32_t pos,
			  struct attn_target *out)
{
	const struct gen_part *p;

	while (pos >= g->parts[i].first + g->parts[i].n)
		i++;
	p = &g->parts[i];
	out->seg = g->seq.entries[p->i_entry].seg;
	out->token = p->from + pos - p->first;
	return i;
}

void repair_probed_at(const struct gen *g, const struct repair_group *r,
		      uint32_t n, struct attn_target *out)
{
	uint32_t i = r->i_part;

	for (uint32_t t = 0; t < n; t++)
		i = probed_at(g, i, r->first + r->n_probed + t, &out[t]);
}

#define TOKENS_PER_TASK 16u

struct measure {
	const struct gen *g;
	struct repair_group *r;
	uint32_t n;
	const float *k, *v;
};

static void measure_some(void *arg, uint32_t i_task)
{
	const struct measure *m = arg;
	const struct kv_layout *l = &m->g->model->layout;
	const size_t row = (size_t)l->n_kv_heads * l->head_dim;
	const uint32_t first = m->r->first + m->r->n_probed;
	const uint32_t from = i_task * TOKENS_PER_TASK;
	const uint32_t to = KV_MIN(from + TOKENS_PER_TASK, m->n);
	uint32_t i = m->r->i_part;
	struct attn_target at;

	for (uint32_t t = from; t < to; t++) {
		i = probed_at(m->g, i, first + t, &at);
		m->r->dev[m->r->n_probed + t] =
			deviation(m->g, &at, m->k + t * row, m->v + t * row);
	}
}

void repair_measure(const struct gen *g, struct repair_group *r, uint32_t n,
		    const float *k, const float *v, struct pool *pool)
{
	struct measure m = { g, r, n, k, v };
	const uint32_t n_tasks = KV_DIV_UP(n, TOKENS_PER_TASK);

	if (pool) {
		pool_run(pool, measure_some, &m, n_tasks);
		return;
	}
	for (uint32_t i = 0; i < n_tasks; i++)
		measure_some(&m, i);
}

static int choose(const struct gen *g, const struct repair_group *r,
		  uint32_t *at)
{
	(void)g;
	return repair_pick_largest(r->dev, r->n, r->k, at);
}

const struct pick pick_blend = { .probes = 1, .choose = choose };
