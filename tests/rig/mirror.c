/*
 * mirror.c - sequences in plain memory and attention over them; see mirror.h
 */
#include "tests/rig/mirror.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"

uint32_t rnd(struct rng *r, uint32_t n)
{
	r->s = r->s * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(r->s >> 33) % n;
}

/* What one sequence needs at least, as docs/ops.md says. */
static uint64_t least_bytes(const struct mirror_shape *m)
{
	const struct kv_geometry *g = &m->g;
	const uint32_t tokens = g->page_tokens ? g->page_tokens : 32;
	const uint32_t layers = g->page_layers ? g->page_layers : g->n_layers;
	const uint32_t groups = (g->n_layers + layers - 1) / layers;

	return (4ull + 2 * groups) * 2 * layers * tokens * m->kv_row;
}

static void pick(struct mirror_shape *m, struct rng *r)
{
	static const uint32_t dims[] = { 32, 64, 72, 128 };
	struct kv_geometry *g = &m->g;

	memset(m, 0, sizeof(*m));
	g->n_layers = 1 + rnd(r, 3);
	g->n_kv_heads = 1 + rnd(r, 2);
	g->n_heads = g->n_kv_heads * (1 + rnd(r, 3));
	g->head_dim = dims[rnd(r, 4)];
	g->type = rnd(r, 3);
	g->rotary = rnd(r, 3);
	g->theta = 10000;
	g->n_rot = rnd(r, 2) ? 0 : 16 + 2 * rnd(r, 9);
	g->rope_scale = rnd(r, 3) ? 0 : 0.5f;
	g->scale = rnd(r, 3) ? 0 : 0.25f;
	g->page_layers = rnd(r, g->n_layers + 1);
	g->page_tokens = 32 * rnd(r, 3);
	m->es = kern_type_bytes(g->type);
	m->kv_row = (size_t)g->n_kv_heads * g->head_dim * m->es;
	m->q_row = (size_t)g->n_heads * g->head_dim * m->es;
}

void mirror_shape_pick(struct mirror_shape *m, struct rng *r,
		       uint64_t budget_bytes)
{
	do
		pick(m, r);
	while (least_bytes(m) > budget_bytes);
}

void mirror_fill(const struct mirror_shape *m, struct rng *r, char *dst,
		 size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const float f = ((float)rnd(r, 2001) - 1000) * 2e-3f;

		kern_from_f32(m->g.type, &f, dst + i * m->es, 1);
	}
}

static size_t bytes(const struct mirror_shape *m)
{
	return (size_t)m->g.n_layers * 2 * MIRROR_TOKENS * m->kv_row;
}

void mirror_new(const struct mirror_shape *m, struct mirror *s)
{
	memset(s, 0, sizeof(*s));
	s->kv = calloc(1, bytes(m));
	ck_assert_ptr_nonnull(s->kv);
}

void mirror_free(struct mirror *s)
{
	free(s->kv);
	memset(s, 0, sizeof(*s));
}

void mirror_copy(const struct mirror_shape *m, struct mirror *to,
		 const struct mirror *from)
{
	*to = *from;
	to->kv = malloc(bytes(m));
	ck_assert_ptr_nonnull(to->kv);
	memcpy(to->kv, from->kv, bytes(m));
}

static char *at(const struct mirror_shape *m, const struct mirror *s,
		uint32_t layer, int v, uint32_t t)
{
	return s->kv + (((size_t)layer * 2 + (size_t)v) * MIRROR_TOKENS + t) *
			       m->kv_row;
}

static void rotate(const struct mirror_shape *m, char *rows, uint32_t n,
		   uint32_t heads, uint64_t pos)
{
	const struct kern_rope p = {
		.kind = m->g.rotary,
		.n_rot = m->g.n_rot ? m->g.n_rot : m->g.head_dim,
		.theta = m->g.theta,
		.scale = m->g.rope_scale > 0 ? m->g.rope_scale : 1,
	};
	const size_t row = (size_t)heads * m->g.head_dim;
	float *f = malloc(row * sizeof(float));

	for (uint32_t i = 0; i < n && m->g.rotary; i++) {
		const int64_t at_pos = (int64_t)(pos + i);
		char *x = rows + i * row * m->es;

		kern_to_f32(m->g.type, x, f, row);
		kern_rope(&p, f, f, &at_pos, 1, heads, m->g.head_dim);
		kern_from_f32(m->g.type, f, x, row);
	}
	free(f);
}

void mirror_put(const struct mirror_shape *m, struct mirror *s, uint32_t layer,
		uint32_t n, const char *k, const char *v)
{
	ck_assert_uint_le(s->n + n, MIRROR_TOKENS);
	memcpy(at(m, s, layer, 0, s->n), k, n * m->kv_row);
	memcpy(at(m, s, layer, 1, s->n), v, n * m->kv_row);
	rotate(m, at(m, s, layer, 0, s->n), n, m->g.n_kv_heads, s->n);
}

/* One page of tokens for each head: [K|V][kv_head][page_tokens][head_dim]. */
static char *one_page(const struct mirror_shape *m, const struct mirror *s,
		      uint32_t layer, uint32_t n, uint32_t page_tokens)
{
	const size_t d = m->g.head_dim * m->es;
	const size_t head = page_tokens * d;
	char *k = calloc(2, head * m->g.n_kv_heads);
	char *v = k + head * m->g.n_kv_heads;

	ck_assert_ptr_nonnull(k);
	for (uint32_t t = 0; t < n; t++) {
		for (uint32_t h = 0; h < m->g.n_kv_heads; h++) {
			memcpy(k + h * head + t * d,
			       at(m, s, layer, 0, t) + h * d, d);
			memcpy(v + h * head + t * d,
			       at(m, s, layer, 1, t) + h * d, d);
		}
	}
	return k;
}

void mirror_attend(const struct mirror_shape *m, const struct mirror *s,
		   uint32_t layer, uint32_t n_tokens, uint64_t pos, uint32_t n,
		   char *q, char *out)
{
	const struct kv_geometry *g = &m->g;
	const uint32_t pt = (MIRROR_TOKENS + 31) / 32 * 32;
	const size_t head = (size_t)pt * g->head_dim * m->es;
	const size_t n_q = (size_t)n * g->n_heads;
	char *k = one_page(m, s, layer, n_tokens, pt);
	float *o = malloc(n_q * g->head_dim * 4), *ml = malloc(n_q * 8);
	int64_t *qp = malloc(n * 8);
	uint64_t skip[(MIRROR_TOKENS + 63) / 64] = { 0 };
	const struct kern_span span = { .k = k,
					.v = k + head * g->n_kv_heads,
					.head_bytes = head,
					.page_tokens = pt,
					.n_tokens = n_tokens,
					.skip = skip };
	struct kern_attn a = {
		.type = g->type,
		.n_heads = g->n_heads,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.scale = g->scale != 0 ? g->scale
				       : 1.0f / sqrtf((float)g->head_dim),
		.q = q,
		.q_pos = qp,
		.n_rows = n,
		.spans = &span,
		.n_spans = 1,
		.o = o,
		.m = ml,
		.l = ml + n_q,
		.kv_head_to = g->n_kv_heads,
		.row_to = n,
	};

	for (uint32_t t = 0; t < n_tokens; t++)
		skip[t / 64] |= (uint64_t)s->skip[t] << t % 64;
	for (uint32_t i = 0; i < n; i++)
		qp[i] = (int64_t)(pos + i);
	rotate(m, q, n, g->n_heads, pos);
	kern_attn_clear(&a);
	ck_assert_int_eq(kern_attn(&a), 0);
	kern_attn_finish(&a);
	kern_from_f32(g->type, o, out, n_q * g->head_dim);
	free(k);
	free(o);
	free(ml);
	free(qp);
}
