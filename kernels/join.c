/*
 * join.c - one result of attention over groups of tokens seen differently; see kern.h
 */
#include <math.h>
#include "kernels/cpu.h"
#include "kernels/kern.h"

/* Of (row, head) at: the scaled ln sum exp of a group, -inf without tokens. */
static float group_lse(const struct kern_attn_group *g, size_t at)
{
	return g->l[at] > 0 ? g->scale * (g->m[at] + kern_log_ge1(g->l[at]))
			    : -INFINITY;
}

static void join(const struct kern_attn *a, const struct kern_attn_group *g,
		 uint32_t n, size_t at)
{
	const uint32_t dim = a->head_dim;
	float *o = a->o + at * dim;
	float top = -INFINITY, sum = 0;
	uint32_t others = 0;

	for (uint32_t i = 1; i < n; i++)
		others |= g[i].l[at] > 0;
	if (!others && g->scale == 1) /* as without groups, to the bit */
		return;
	for (uint32_t i = 0; i < n; i++)
		top = fmaxf(top, group_lse(&g[i], at));
	if (top == -INFINITY)
		return;
	for (uint32_t i = 0; i < n; i++) {
		const float lse = group_lse(&g[i], at);
		const float e = lse == -INFINITY ? 0 : kern_exp(lse - top);
		const float w = e > 0 ? e / g[i].l[at] : 0;
		const float *from = g[i].o + at * dim;

		sum += e;
		for (uint32_t d = 0; d < dim; d++)
			o[d] = i ? __builtin_fmaf(from[d], w, o[d])
				 : from[d] * w;
	}
	a->m[at] = top;
	a->l[at] = sum;
}

void kern_attn_join(const struct kern_attn *a, const struct kern_attn_group *g,
		    uint32_t n)
{
	const size_t group = a->n_heads / a->n_kv_heads;

	for (size_t r = a->row_from; r < a->row_to; r++)
		for (size_t h = a->kv_head_from * group;
		     h < a->kv_head_to * group; h++)
			join(a, g, n, r * a->n_heads + h);
}
