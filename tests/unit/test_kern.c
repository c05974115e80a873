/*
 * test_kern.c - every path equals its scalar twin byte for byte, and the truth
 * within the bounds of the design; garbage that nobody may see is never seen
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>
#include "kernels/kern.h"
#include "kernels/ref.h"

static uint64_t state = 42;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}
static float rnf(void)
{
	return (float)((int)rnd(2000001) - 1000000) * 1e-6f;
}
static void *zeroed(size_t n)
{
	void *p = aligned_alloc(64, (n + 127) / 64 * 64);

	ck_assert_ptr_nonnull(p);
	memset(p, 0, (n + 127) / 64 * 64);
	return p;
}

/* ---- linear ------------------------------------------------------------ */

static void linear_case(enum kern_isa isa, enum kern_type math)
{
	const uint32_t m = 1 + rnd(rnd(8) ? 9 : 120), n = 1 + rnd(70);
	const uint32_t k = 1 + rnd(rnd(8) ? 150 : 1200);
	const uint32_t stride = k + rnd(5);
	float *w = zeroed(n * k * 4), *xf = zeroed(m * stride * 4);
	float *y = zeroed(m * n * 4), *want = zeroed(m * n * 4);
	float *one = zeroed(n * 4);
	char *x = zeroed(m * stride * 4);
	const struct kern_matrix mat = { KERN_F32, w, n, k };
	struct kern_linear a = { .x = x,
				 .x_stride = stride,
				 .y = y,
				 .y_stride = n,
				 .n_rows = m,
				 .out_to = n,
				 .flags = rnd(2) };
	struct kern_weight *p;

	for (uint32_t i = 0; i < n * k; i++)
		w[i] = rnf();
	for (uint32_t i = 0; i < m * stride; i++)
		xf[i] = rnd(50) ? rnf() : 1e-40f;
	for (uint32_t i = 0; i < m * n; i++)
		y[i] = want[i] = rnf();
	kern_from_f32(math, xf, x, m * stride);
	memcpy(one, y + (m - 1) * n, n * 4);
	/* packed by the path that uses them, at times by another */
	kern_init(rnd(8) ? isa : (enum kern_isa)rnd(KERN_ISA_AMX + 1));
	ck_assert_int_eq(kern_weight_pack(&p, &mat, math), 0);
	a.w = p;
	if (kern_init(isa) == isa) {
		ck_assert_int_eq(kern_linear(&a), 0);
		a.y = want;
		ref_linear(&a);
		ck_assert_msg(!memcmp(y, want, m * n * 4),
			      "%s %d: %u x %u x %u", kern_isa_name(isa), math,
			      m, n, k);
		/* the last row by itself */
		a.x = x + (m - 1) * stride * kern_type_bytes(math);
		a.y = one;
		a.n_rows = 1;
		ck_assert_int_eq(kern_linear(&a), 0);
		ck_assert(!memcmp(one, want + (m - 1) * n, n * 4));
	}
	kern_weight_free(p);
	free(w);
	free(xf);
	free(y);
	free(want);
	free(one);
	free(x);
}

START_TEST(linear_equals_its_twin)
{
	for (int i = 0; i < 200; i++)
		linear_case(KERN_ISA_AVX2 + (enum kern_isa)_i / 2,
			    _i % 2 ? KERN_BF16 : KERN_F32);
}
END_TEST

/* ---- attention --------------------------------------------------------- */

#define MAX_SPANS 4

struct attn_case {
	struct kern_attn a;
	struct kern_span spans[MAX_SPANS];
	uint64_t skip[MAX_SPANS][64];
	uint32_t at[MAX_SPANS][256];
	char *k[MAX_SPANS], *v[MAX_SPANS], *q;
	int64_t *pos;
	size_t n_state;
	uint32_t n_tokens;
};

static void fill(enum kern_type type, char *dst, size_t n)
{
	float f[512];

	while (n) {
		const size_t c = n < 512 ? n : 512;

		for (size_t i = 0; i < c; i++)
			f[i] = 2 * rnf();
		kern_from_f32(type, f, dst, c);
		dst += c * kern_type_bytes(type);
		n -= c;
	}
}

static void put_nan(enum kern_type type, char *dst, size_t n)
{
	const float nan = NAN;

	for (size_t i = 0; i < n; i++)
		kern_from_f32(type, &nan, dst + i * kern_type_bytes(type), 1);
}

/* One page, [kv_head][page_tokens][head_dim]; NaN behind the end. */
static void make_span(struct attn_case *c, uint32_t i, uint32_t n, int64_t pos)
{
	struct kern_attn *a = &c->a;
	const size_t es = kern_type_bytes(a->type);
	const uint32_t pt = 32 * (1 + rnd(3));
	const uint32_t n_pages = (n + pt - 1) / pt;
	const size_t head = (size_t)pt * a->head_dim * es;
	const size_t page = head * a->n_kv_heads + 64 * rnd(3);

	c->k[i] = zeroed(page * (n_pages + 1));
	c->v[i] = zeroed(page * (n_pages + 1));
	put_nan(a->type, c->k[i], page * (n_pages + 1) / es);
	put_nan(a->type, c->v[i], page * (n_pages + 1) / es);
	for (uint32_t t = 0; t < n; t++)
		for (uint32_t h = 0; h < a->n_kv_heads; h++) {
			const size_t at = t / pt * page + h * head +
					  t % pt * a->head_dim * es;

			fill(a->type, c->k[i] + at, a->head_dim);
			fill(a->type, c->v[i] + at, a->head_dim);
		}
	c->spans[i] = (struct kern_span){
		.k = c->k[i],
		.v = c->v[i],
		.head_bytes = head,
		.page_bytes = page,
		.page_tokens = pt,
		.n_tokens = n,
		.pos = pos,
		.q_variant = rnd(2),
	};
	if (rnd(3) == 0 && n <= 4096) {
		for (uint32_t w = 0; w < 64; w++)
			c->skip[i][w] = (uint64_t)rnd(1u << 30) << 20;
		c->spans[i].skip = c->skip[i];
	}
	if (rnd(3) == 0 && n <= 256) {
		for (uint32_t t = 0, at = 0; t < n; t++, at += 1 + rnd(3))
			c->at[i][t] = at;
		c->spans[i].at = c->at[i];
	}
}

static void make_case(struct attn_case *c, enum kern_type type,
		      uint32_t longest)
{
	struct kern_attn *a = &c->a;
	int64_t pos = 0;

	memset(c, 0, sizeof(*c));
	a->type = type;
	a->n_kv_heads = 1 + rnd(3);
	a->n_heads = a->n_kv_heads * (1 + rnd(5));
	a->head_dim = rnd(2) ? 32 * (1 + rnd(8)) : 32 + 8 * rnd(29);
	a->scale = 1.0f / sqrtf((float)a->head_dim);
	a->n_rows = 1 + rnd(rnd(3) ? 7 : 60);
	a->n_spans = 1 + rnd(MAX_SPANS);
	for (uint32_t i = 0; i < a->n_spans; i++) {
		const uint32_t n = rnd(6) ? rnd(longest) + 1 : 0;

		make_span(c, i, n, pos);
		pos += n;
	}
	c->n_tokens = (uint32_t)pos;
	a->spans = c->spans;
	c->n_state = (size_t)a->n_rows * a->n_heads;
	a->q_variant_elems = c->n_state * a->head_dim;
	c->q = zeroed(2 * a->q_variant_elems * kern_type_bytes(type));
	fill(type, c->q, 2 * a->q_variant_elems);
	a->q = c->q;
	c->pos = zeroed(a->n_rows * sizeof(*c->pos));
	for (uint32_t r = 0; r < a->n_rows; r++)
		c->pos[r] = rnd(2) ? pos + r : (int64_t)rnd((uint32_t)pos + 1);
	a->q_pos = c->pos;
	a->kv_head_to = a->n_kv_heads;
	a->row_to = a->n_rows;
	a->o = zeroed(a->q_variant_elems * 4);
	a->m = zeroed(c->n_state * 4);
	a->l = zeroed(c->n_state * 4);
	kern_attn_clear(a);
}

static void free_case(struct attn_case *c)
{
	for (uint32_t i = 0; i < c->a.n_spans; i++) {
		free(c->k[i]);
		free(c->v[i]);
	}
	free(c->q);
	free(c->pos);
	free(c->a.o);
	free(c->a.m);
	free(c->a.l);
}

/* A second state for the same case. */
static struct kern_attn twin(const struct attn_case *c)
{
	struct kern_attn b = c->a;

	b.o = zeroed(b.q_variant_elems * 4);
	b.m = zeroed(c->n_state * 4);
	b.l = zeroed(c->n_state * 4);
	kern_attn_clear(&b);
	return b;
}

static void same_state(const struct attn_case *c, struct kern_attn *b,
		       const char *what)
{
	ck_assert_msg(!memcmp(c->a.o, b->o, b->q_variant_elems * 4) &&
			      !memcmp(c->a.m, b->m, c->n_state * 4) &&
			      !memcmp(c->a.l, b->l, c->n_state * 4),
		      "%s: type %d, head_dim %u, %u tokens", what, b->type,
		      b->head_dim, c->n_tokens);
	free(b->o);
	free(b->m);
	free(b->l);
}

static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };

START_TEST(attention_equals_its_twin)
{
	const enum kern_isa isa = KERN_ISA_AVX2 + (enum kern_isa)_i / 3;

	for (int i = 0; i < 30; i++) {
		struct attn_case c;
		struct kern_attn b;

		make_case(&c, types[_i % 3], 100);
		b = twin(&c);
		ref_attn(&b);
		if (kern_init(isa) == isa)
			ck_assert_int_eq(kern_attn(&c.a), 0);
		else
			ref_attn(&c.a);
		same_state(&c, &b, kern_isa_name(isa));
		free_case(&c);
	}
}
END_TEST

/* By rows, by heads, by spans cut on the grid and resumed: the same bytes. */
START_TEST(shares_and_cuts_change_nothing)
{
	kern_init(KERN_ISA_AMX);
	for (int i = 0; i < 30; i++) {
		struct attn_case c;
		struct kern_attn b;

		make_case(&c, types[_i], 200);
		ck_assert_int_eq(kern_attn(&c.a), 0);
		b = twin(&c);
		for (uint32_t h = 0; h < b.n_kv_heads; h++)
			for (uint32_t r = 0; r < b.n_rows; r++) {
				struct kern_attn s = b;

				s.kv_head_from = h;
				s.kv_head_to = h + 1;
				s.row_from = r;
				s.row_to = r + 1;
				ck_assert_int_eq(kern_attn(&s), 0);
			}
		same_state(&c, &b, "shares");
		b = twin(&c);
		for (uint32_t k = 0; k < b.n_spans; k++)
			for (uint32_t t = 0; t < c.spans[k].n_tokens;) {
				struct kern_span s = c.spans[k];
				const uint32_t left = s.n_tokens - t;
				struct kern_attn one = b;

				s.k = (const char *)s.k +
				      t / s.page_tokens * s.page_bytes;
				s.v = (const char *)s.v +
				      t / s.page_tokens * s.page_bytes;
				s.pos += s.at ? 0 : t;
				s.at = s.at ? s.at + t : NULL;
				s.n_tokens = left < s.page_tokens
						     ? left
						     : s.page_tokens;
				s.skip = s.skip && t % 64 == 0 ? s.skip + t / 64
							       : NULL;
				if (c.spans[k].skip && t % 64)
					s = c.spans[k], s.n_tokens = 0;
				one.spans = &s;
				one.n_spans = 1;
				if (c.spans[k].skip) {
					one.spans = &c.spans[k];
					t = c.spans[k].n_tokens;
				} else {
					t += s.n_tokens;
				}
				ck_assert_int_eq(kern_attn(&one), 0);
			}
		same_state(&c, &b, "cuts");
		free_case(&c);
	}
}
END_TEST

/* Tiles kept apart, then merged: the bytes of those merged at once. */
START_TEST(tiles_apart_and_merged_are_the_same)
{
	const enum kern_isa isa = KERN_ISA_SCALAR + (enum kern_isa)(_i / 3);

	if (kern_init(isa) != isa)
		return;
	for (int i = 0; i < 30; i++) {
		struct attn_case c;
		struct kern_attn b, tiles;
		uint32_t n_tiles = 0;

		make_case(&c, types[_i % 3], 200);
		for (uint32_t k = 0; k < c.a.n_spans; k++)
			n_tiles += (c.spans[k].n_tokens + 31) / 32;
		ck_assert_int_eq(kern_attn(&c.a), 0);
		b = twin(&c);
		tiles = b;
		tiles.tile_states = c.n_state + rnd(3);
		tiles.o = calloc((n_tiles + 1) * tiles.tile_states,
				 tiles.head_dim * 4);
		tiles.m = calloc((n_tiles + 1) * tiles.tile_states, 4);
		tiles.l = malloc((n_tiles + 1) * tiles.tile_states * 4);
		memset(tiles.l, 0x5a, (n_tiles + 1) * tiles.tile_states * 4);
		ck_assert_int_eq(kern_attn(&tiles), 0);
		kern_attn_merge(&b, &tiles, n_tiles);
		same_state(&c, &b, "tiles");
		b = twin(&c);
		ref_attn_merge(&b, &tiles, n_tiles);
		same_state(&c, &b, "tiles merged by the twin");
		free(tiles.o);
		free(tiles.m);
		free(tiles.l);
		free_case(&c);
	}
	kern_init(KERN_ISA_AMX);
}
END_TEST

START_TEST(tiles_too_near_are_refused)
{
	struct attn_case c;

	make_case(&c, KERN_F32, 50);
	c.a.tile_states = c.n_state - 1;
	if (c.a.tile_states)
		ck_assert_int_eq(kern_attn(&c.a), -EINVAL);
	free_case(&c);
}
END_TEST

static double elem(enum kern_type type, const char *p)
{
	float f;

	kern_to_f32(type, p, &f, 1);
	return (double)f;
}

/* Largest error of one (row, head) relative to sum p|v|, in float64. */
static double true_error(const struct attn_case *c, uint32_t row, uint32_t head)
{
	const struct kern_attn *a = &c->a;
	const size_t es = kern_type_bytes(a->type);
	const uint32_t h = head / (a->n_heads / a->n_kv_heads);
	double *o = calloc(a->head_dim, 8), *abs = calloc(a->head_dim, 8);
	double max = -INFINITY, sum = 0, worst = 0;

	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < a->n_spans; i++)
			for (uint32_t t = 0; t < c->spans[i].n_tokens; t++) {
				const struct kern_span *s = &c->spans[i];
				const size_t at =
					t / s->page_tokens * s->page_bytes +
					h * s->head_bytes +
					t % s->page_tokens * a->head_dim * es;
				double x = 0, p;

				if (s->pos + (s->at ? s->at[t] : t) >
					    a->q_pos[row] ||
				    (s->skip && s->skip[t / 64] >> t % 64 & 1))
					continue;
				for (uint32_t d = 0; d < a->head_dim; d++)
					x += elem(a->type,
						  c->q + (s->q_variant *
								  a->q_variant_elems +
							  ((size_t)row *
								   a->n_heads +
							   head) * a->head_dim +
							  d) * es) *
					     elem(a->type, (const char *)s->k +
								   at + d * es);
				x *= (double)a->scale;
				if (!pass) {
					max = x > max ? x : max;
					continue;
				}
				p = exp(x - max);
				sum += p;
				for (uint32_t d = 0; d < a->head_dim; d++) {
					const double v = elem(
						a->type, (const char *)s->v +
								 at + d * es);

					o[d] += p * v;
					abs[d] += p * fabs(v);
				}
			}
	for (uint32_t d = 0; d < a->head_dim; d++) {
		const double got = (double)a->o[((size_t)row * a->n_heads +
						 head) * a->head_dim +
						d];
		const double err =
			sum > 0 ? fabs(got - o[d] / sum) / (abs[d] / sum)
				: fabs(got);

		worst = err > worst ? err : worst;
	}
	free(o);
	free(abs);
	return worst;
}

/* One key that takes all the weight of the first query. */
static void plant(struct attn_case *c, uint32_t i_span, uint32_t t)
{
	struct kern_span *s = &c->spans[i_span];
	const size_t es = kern_type_bytes(c->a.type);
	const size_t at = t / s->page_tokens * s->page_bytes +
			  t % s->page_tokens * c->a.head_dim * es;

	for (uint32_t d = 0; d < c->a.head_dim; d++) {
		const float big =
			8 * (float)elem(c->a.type,
					c->q + (s->q_variant *
							c->a.q_variant_elems +
						d) * es);

		kern_from_f32(c->a.type, &big, c->k[i_span] + at + d * es, 1);
	}
}

/* At a border of a tile, of a page or of the span. */
static void plant_at_border(struct attn_case *c)
{
	const uint32_t i = rnd(c->a.n_spans);
	const uint32_t n = c->spans[i].n_tokens;
	const uint32_t pt = c->spans[i].page_tokens;
	const uint32_t at[] = { 0, 31, 32, 63, 64, pt - 1, pt, n - 1 };

	if (n)
		plant(c, i, at[rnd(8)] % n);
}

START_TEST(attention_is_near_the_truth)
{
	const double bound = types[_i] == KERN_BF16 ? 5e-3 : 1e-5;

	kern_init(KERN_ISA_AMX);
	for (int i = 0; i < 40; i++) {
		struct attn_case c;

		make_case(&c, types[_i], 1 + rnd(150));
		if (i % 2)
			plant_at_border(&c);
		ck_assert_int_eq(kern_attn(&c.a), 0);
		kern_attn_finish(&c.a);
		for (uint32_t r = 0; r < c.a.n_rows; r++)
			for (uint32_t h = 0; h < c.a.n_heads; h++) {
				const double e = true_error(&c, r, h);

				ck_assert_msg(e <= bound, "type %d: %g",
					      types[_i], e);
			}
		free_case(&c);
	}
}
END_TEST

START_TEST(attention_over_32k_tokens)
{
	const enum kern_type type = types[_i];
	struct attn_case c;

	kern_init(KERN_ISA_AMX);
	make_case(&c, type, 32);
	for (uint32_t i = 0; i < c.a.n_spans; i++) {
		free(c.k[i]);
		free(c.v[i]);
	}
	c.a.n_spans = 1;
	c.a.n_rows = c.a.row_to = 1;
	make_span(&c, 0, 32768, 0);
	c.spans[0].skip = NULL;
	c.pos[0] = 32767;
	plant(&c, 0, 32767);
	ck_assert_int_eq(kern_attn(&c.a), 0);
	kern_attn_finish(&c.a);
	ck_assert_double_le(true_error(&c, 0, c.a.n_heads - 1),
			    type == KERN_BF16 ? 5e-3 : 1e-5);
	free_case(&c);
}
END_TEST

/* A token's values may be anything for the rows that do not see it. */
START_TEST(unseen_values_never_arrive)
{
	const float bad[] = { NAN, INFINITY };

	kern_init(KERN_ISA_AMX);
	for (int i = 0; i < 40; i++) {
		struct attn_case c;
		struct kern_attn b;
		uint32_t t;

		make_case(&c, types[_i], 100);
		t = c.spans[0].n_tokens ? rnd(c.spans[0].n_tokens) : 0;
		for (uint32_t r = 0; r < c.a.n_rows; r++)
			c.pos[r] = (int64_t)t - 3 + r;
		ck_assert_int_eq(kern_attn(&c.a), 0);
		if (c.spans[0].n_tokens)
			for (uint32_t d = 0; d < c.a.head_dim; d++) {
				const struct kern_span *s = &c.spans[0];
				const size_t es = kern_type_bytes(c.a.type);

				kern_from_f32(c.a.type, &bad[i % 2],
					      c.v[0] +
						      t / s->page_tokens *
							      s->page_bytes +
						      (t % s->page_tokens *
							       c.a.head_dim +
						       d) * es,
					      1);
			}
		b = twin(&c);
		ck_assert_int_eq(kern_attn(&b), 0);
		for (uint32_t r = 0; r < c.a.n_rows; r++) {
			const size_t n = (size_t)c.a.n_heads * c.a.head_dim;

			if (c.pos[r] >= (int64_t)t)
				continue;
			ck_assert(!memcmp(b.o + r * n, c.a.o + r * n, n * 4));
		}
		free(b.o);
		free(b.m);
		free(b.l);
		free_case(&c);
	}
}
END_TEST

/* The caller's rounding mode and denormals neither matter nor change. */
START_TEST(the_callers_mxcsr_is_kept)
{
	const unsigned int odd = _mm_getcsr() | 0x8040 | 0x2000;
	const unsigned int usual = _mm_getcsr();

	kern_init(KERN_ISA_AMX);
	for (int i = 0; i < 20; i++) {
		struct attn_case c;
		struct kern_attn b;

		make_case(&c, types[_i], 80);
		ck_assert_int_eq(kern_attn(&c.a), 0);
		b = twin(&c);
		_mm_setcsr(odd);
		ck_assert_int_eq(kern_attn(&b), 0);
		ck_assert_uint_eq(_mm_getcsr() & ~0x3fu, odd & ~0x3fu);
		_mm_setcsr(usual);
		same_state(&c, &b, "mxcsr");
		free_case(&c);
	}
}
END_TEST

/* A path that the self-test passes over would be tested by nobody. */
START_TEST(every_path_of_this_cpu_is_taken)
{
	__builtin_cpu_init();
	ck_assert_int_eq(kern_init(KERN_ISA_SCALAR), KERN_ISA_SCALAR);
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		ck_assert_int_eq(kern_init(KERN_ISA_AVX2), KERN_ISA_AVX2);
	if (__builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512vl") &&
	    __builtin_cpu_supports("avx512dq"))
		ck_assert_int_eq(kern_init(KERN_ISA_AVX512), KERN_ISA_AVX512);
	if (__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16"))
		ck_assert_int_eq(kern_init(KERN_ISA_AVX512_BF16),
				 KERN_ISA_AVX512_BF16);
	printf("test_kern: best here: %s\n",
	       kern_isa_name(kern_init(KERN_ISA_AMX)));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kern");
	TCase *t = tcase_create("kern");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, every_path_of_this_cpu_is_taken);
	tcase_add_loop_test(t, linear_equals_its_twin, 0, 8);
	tcase_add_loop_test(t, attention_equals_its_twin, 0, 12);
	tcase_add_loop_test(t, shares_and_cuts_change_nothing, 0, 3);
	tcase_add_loop_test(t, tiles_apart_and_merged_are_the_same, 0, 15);
	tcase_add_test(t, tiles_too_near_are_refused);
	tcase_add_loop_test(t, attention_is_near_the_truth, 0, 3);
	tcase_add_loop_test(t, attention_over_32k_tokens, 0, 3);
	tcase_add_loop_test(t, unseen_values_never_arrive, 0, 3);
	tcase_add_loop_test(t, the_callers_mxcsr_is_kept, 0, 3);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
