/*
 * test_gpu_kern.c - the source of the CUDA kernels, run as C, against exact sums and
 * against its twins on the CPU
 *
 * KVD_GPU=1 runs the image in the binary on the first real device instead.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "io/base.h"
#include "kernels/gpu.h"
#include "kernels/kern.h"
#include "tests/rig/rig_gpu.h"

#define MAX_SPANS 12
#define MAX_ROWS  5
#define MAX_PARTS 128
#define N_VARIANT 2

static struct rig_gpu g;
static uint32_t seed;
static int by_token; /* spans may have rows that are not side by side */

static uint32_t next_random(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static float uniform(void)
{
	return (float)next_random() / (float)(1 << 23) - 1.0f;
}

static void setup(void)
{
	const char *env = getenv("KVD_SEED");

	seed = env ? (uint32_t)strtoul(env, NULL, 10) : (uint32_t)time(NULL);
	printf("KVD_SEED=%u\n", seed);
	by_token = 1;
	rig_gpu_open(&g);
	kern_init(KERN_ISA_AMX);
}

static void teardown(void)
{
	rig_gpu_close(&g);
}

/* ---- one attention ------------------------------------------------------------ */

struct shape {
	enum kern_type type;
	uint32_t head_dim, n_heads, n_kv_heads, n_rows;
	uint32_t max_tokens; /* of a span */
};

/* Everything in memory of the device, which the host can read too. */
struct problem {
	struct shape s;
	struct gpu_span *spans;
	struct kern_gpu_list lists[MAX_ROWS];
	struct gpu_part *parts;
	struct gpu_row *rows;
	uint32_t n_spans, n_parts;
	char *q;
	float *o, *m, *l, *part_o, *part_ml;
	size_t q_variant_elems;
	float scale;
};

/* n values of the type; now and then large ones, so that a maximum matters. */
static void fill(enum kern_type type, void *to, size_t n)
{
	float x[64];

	for (size_t i = 0; i < n; i += 64) {
		const size_t k = KV_MIN(n - i, (size_t)64);

		for (size_t j = 0; j < k; j++)
			x[j] = uniform() * (next_random() % 50 ? 1 : 8);
		kern_from_f32(type, x, (char *)to + i * kern_type_bytes(type),
			      k);
	}
}

/* Junk, NaN among it, where nobody may look. */
static void poison(const struct problem *p, const struct gpu_span *s,
		   uint32_t t)
{
	const size_t row = p->s.head_dim * kern_type_bytes(p->s.type);
	const size_t step = s->row_bytes ? s->row_bytes : row;

	for (uint32_t h = 0; h < p->s.n_kv_heads; h++) {
		const size_t off = t / s->page_tokens * s->page_bytes +
				   h * s->head_bytes +
				   t % s->page_tokens * step;

		memset((char *)s->k + off, 0xff, row);
		memset((char *)s->v + off, 0xff, row);
	}
}

static void make_span(struct problem *p, struct gpu_span *s, int64_t pos)
{
	const size_t row = p->s.head_dim * kern_type_bytes(p->s.type);
	const uint32_t n = 1 + next_random() % p->s.max_tokens;
	uint64_t *skip;
	uint32_t n_pages;

	s->page_tokens = 32 * (1 + next_random() % 3);
	n_pages = (n + s->page_tokens - 1) / s->page_tokens;
	if (!by_token || next_random() % 3) {
		s->head_bytes = s->page_tokens * row;
		s->page_bytes = 2 * p->s.n_kv_heads * s->head_bytes + 64;
	} else { /* token by token */
		s->head_bytes = row;
		s->row_bytes = (uint32_t)(2 * p->s.n_kv_heads * row);
		s->page_bytes = (uint64_t)s->page_tokens * s->row_bytes;
	}
	s->n_tokens = n;
	s->pos = pos;
	s->q_variant = next_random() % N_VARIANT;
	s->k = (uintptr_t)rig_gpu_alloc(&g, n_pages * s->page_bytes);
	s->v = s->k + p->s.n_kv_heads * s->head_bytes;
	fill(p->s.type, (void *)s->k,
	     n_pages * s->page_bytes / kern_type_bytes(p->s.type));
	for (uint32_t t = n; t < n_pages * s->page_tokens; t++)
		poison(p, s, t);
	s->skip = 0;
	if (next_random() % 2)
		return;
	skip = rig_gpu_alloc(&g, (n / 64 + 1) * 8);
	s->skip = (uintptr_t)skip;
	memset(skip, 0, (n / 64 + 1) * 8);
	for (uint32_t t = 0; t < n; t++)
		if (next_random() % 3 == 0) {
			skip[t / 64] |= 1ull << (t % 64);
			poison(p, s, t);
		}
	if (next_random() % 4 == 0) /* nothing of it */
		for (uint32_t t = 0; t < n; t++) {
			skip[t / 64] |= 1ull << (t % 64);
			poison(p, s, t);
		}
}

static void make(struct problem *p, struct shape s)
{
	const size_t n_q = (size_t)s.n_rows * s.n_heads * s.head_dim;
	int64_t n;

	memset(p, 0, sizeof(*p));
	p->s = s;
	p->scale = 1.0f / sqrtf((float)s.head_dim);
	p->spans = rig_gpu_alloc(&g, MAX_SPANS * sizeof(*p->spans));
	p->parts = rig_gpu_alloc(&g, MAX_PARTS * sizeof(*p->parts));
	p->rows = rig_gpu_alloc(&g, MAX_ROWS * sizeof(*p->rows));
	p->q_variant_elems = n_q;
	p->q = rig_gpu_alloc(&g, N_VARIANT * n_q * kern_type_bytes(s.type));
	fill(s.type, p->q, N_VARIANT * n_q);
	for (uint32_t r = 0; r < s.n_rows; r++) {
		const uint32_t n_spans =
			next_random() % (MAX_SPANS / MAX_ROWS + 1);
		int64_t pos = 0;

		p->lists[r].first_span = p->n_spans;
		p->lists[r].n_spans = n_spans;
		for (uint32_t i = 0; i < n_spans; i++) {
			struct gpu_span *sp = &p->spans[p->n_spans++];

			make_span(p, sp, pos);
			pos += sp->n_tokens;
		}
		/* most see all, some do not see the end */
		p->lists[r].pos = next_random() % 3
					  ? pos
					  : (int64_t)(next_random() %
						      (uint32_t)(pos + 1)) -
						    1;
	}
	n = kern_gpu_plan(p->spans, p->lists, s.n_rows, p->parts, MAX_PARTS,
			  p->rows);
	ck_assert_int_ge(n, 0);
	p->n_parts = (uint32_t)n;
	p->o = rig_gpu_alloc(&g, n_q * 4);
	p->m = rig_gpu_alloc(&g, (size_t)s.n_rows * s.n_heads * 4);
	p->l = rig_gpu_alloc(&g, (size_t)s.n_rows * s.n_heads * 4);
	p->part_o = rig_gpu_alloc(&g, MAX_PARTS * s.n_heads * s.head_dim * 4ul);
	p->part_ml = rig_gpu_alloc(&g, MAX_PARTS * s.n_heads * 8ul);
}

static void run(struct problem *p, uint32_t flags)
{
	const struct gpu_attn a = {
		.q = (uintptr_t)p->q,
		.q_variant_elems = p->q_variant_elems,
		.spans = (uintptr_t)p->spans,
		.parts = (uintptr_t)p->parts,
		.rows = (uintptr_t)p->rows,
		.part_o = (uintptr_t)p->part_o,
		.part_ml = (uintptr_t)p->part_ml,
		.o = (uintptr_t)p->o,
		.m = (uintptr_t)p->m,
		.l = (uintptr_t)p->l,
		.n_heads = p->s.n_heads,
		.n_kv_heads = p->s.n_kv_heads,
		.head_dim = p->s.head_dim,
		.n_rows = p->s.n_rows,
		.n_parts = p->n_parts,
		.flags = flags,
		.scale = p->scale,
	};

	ck_assert_int_eq(kern_gpu_attn(g.kern, p->s.type, &a, g.stream), 0);
	rig_gpu_wait(&g);
}

/* ---- the exact sum ---------------------------------------------------------------- */

static double value(const struct problem *p, uint64_t base,
		    const struct gpu_span *s, uint32_t t, uint32_t h,
		    uint32_t d)
{
	const size_t es = kern_type_bytes(p->s.type);
	const char *at =
		(const char *)base + t / s->page_tokens * s->page_bytes +
		h * s->head_bytes +
		t % s->page_tokens *
			(s->row_bytes ? s->row_bytes : p->s.head_dim * es) +
		d * es;
	float x;

	kern_to_f32(p->s.type, at, &x, 1);
	return (double)x;
}

static double query(const struct problem *p, uint32_t variant, uint32_t r,
		    uint32_t h, uint32_t d)
{
	float x;

	kern_to_f32(p->s.type,
		    p->q + (variant * p->q_variant_elems +
			    ((size_t)r * p->s.n_heads + h) * p->s.head_dim +
			    d) * kern_type_bytes(p->s.type),
		    &x, 1);
	return (double)x;
}

static int is_seen(const struct gpu_span *s, uint32_t t, int64_t pos)
{
	const uint64_t *skip = (const uint64_t *)s->skip;

	return s->pos + t <= pos && !(skip && skip[t / 64] >> (t % 64) & 1);
}

/* One row and head in f64, normalised; returns the sum of weights. */
static double exact(const struct problem *p, uint32_t r, uint32_t h, double *o)
{
	const struct kern_gpu_list *li = &p->lists[r];
	const uint32_t kv = h / (p->s.n_heads / p->s.n_kv_heads);
	double top = -INFINITY, sum = 0;

	memset(o, 0, p->s.head_dim * sizeof(*o));
	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < li->n_spans; i++) {
			const struct gpu_span *s =
				&p->spans[li->first_span + i];

			for (uint32_t t = 0; t < s->n_tokens; t++) {
				double dot = 0, w;

				if (!is_seen(s, t, li->pos))
					continue;
				for (uint32_t d = 0; d < p->s.head_dim; d++)
					dot += query(p, s->q_variant, r, h, d) *
					       value(p, s->k, s, t, kv, d);
				dot *= (double)p->scale;
				if (!pass) {
					top = fmax(top, dot);
					continue;
				}
				w = exp(dot - top);
				sum += w;
				for (uint32_t d = 0; d < p->s.head_dim; d++)
					o[d] += w * value(p, s->v, s, t, kv, d);
			}
		}
	for (uint32_t d = 0; d < p->s.head_dim && sum > 0; d++)
		o[d] /= sum;
	return sum;
}

static void check_exact(const struct problem *p, double bound)
{
	double o[KERN_HEAD_DIM_MAX];

	for (uint32_t r = 0; r < p->s.n_rows; r++)
		for (uint32_t h = 0; h < p->s.n_heads; h++) {
			const size_t at = (size_t)r * p->s.n_heads + h;
			const double sum = exact(p, r, h, o);

			ck_assert_double_le(fabs((double)p->l[at] - sum),
					    sum * 1e-4);
			ck_assert(sum > 0 || p->m[at] == -INFINITY);
			for (uint32_t d = 0; d < p->s.head_dim; d++) {
				const double x =
					(double)p->o[at * p->s.head_dim + d];

				/* |v| <= 8 */
				ck_assert_msg(fabs(x - o[d]) <= 8 * bound,
					      "row %u head %u dim %u: %g, not "
					      "%g",
					      r, h, d, x, o[d]);
			}
		}
}

/* ---- the twin ------------------------------------------------------------------------ */

/* kern_attn() row by row, as rows have lists of their own. */
static void check_twin(const struct problem *p, double bound)
{
	const uint32_t n = p->s.n_heads * p->s.head_dim;
	float *o = malloc(n * sizeof(*o)), m[64], l[64];

	for (uint32_t r = 0; r < p->s.n_rows; r++) {
		struct kern_span spans[MAX_SPANS];
		struct kern_attn a = {
			.type = p->s.type,
			.n_heads = p->s.n_heads,
			.n_kv_heads = p->s.n_kv_heads,
			.head_dim = p->s.head_dim,
			.scale = p->scale,
			.q = p->q + (size_t)r * n * kern_type_bytes(p->s.type),
			.q_variant_elems = p->q_variant_elems,
			.q_pos = &p->lists[r].pos,
			.n_rows = 1,
			.spans = spans,
			.n_spans = p->lists[r].n_spans,
			.o = o,
			.m = m,
			.l = l,
			.kv_head_to = p->s.n_kv_heads,
			.row_to = 1,
		};

		for (uint32_t i = 0; i < a.n_spans; i++) {
			const struct gpu_span *s =
				&p->spans[p->lists[r].first_span + i];

			spans[i] = (struct kern_span){
				.k = (const void *)s->k,
				.v = (const void *)s->v,
				.head_bytes = s->head_bytes,
				.page_bytes = s->page_bytes,
				.page_tokens = s->page_tokens,
				.n_tokens = s->n_tokens,
				.q_variant = s->q_variant,
				.pos = s->pos,
				.skip = (const uint64_t *)s->skip,
			};
		}
		kern_attn_clear(&a);
		ck_assert_int_eq(kern_attn(&a), 0);
		kern_attn_finish(&a);
		for (uint32_t i = 0; i < n; i++)
			ck_assert_double_le(
				fabs((double)o[i] -
				     (double)p->o[(size_t)r * n + i]),
				8 * bound);
	}
	free(o);
}

/* ---- tests ---------------------------------------------------------------------------- */

static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };
static const uint32_t dims[] = { 64, 96, 128, 256 };
static const struct {
	uint32_t n_heads, n_kv_heads;
} heads[] = { { 1, 1 }, { 4, 2 }, { 8, 1 }, { 12, 1 }, { 3, 3 } };

/* _i: type and head size. */
START_TEST(equals_exact_sums_and_the_twin)
{
	struct shape s = { .type = types[_i % 3], .head_dim = dims[_i / 3] };
	struct problem p;

	for (int k = 0; k < 5; k++) {
		s.n_heads = heads[k].n_heads;
		s.n_kv_heads = heads[k].n_kv_heads;
		s.n_rows = 1 + next_random() % MAX_ROWS;
		s.max_tokens = k ? 90 : 1200;
		by_token = k & 1; /* which the CPU does not know */
		make(&p, s);
		run(&p, GPU_ATTN_FINISH);
		check_exact(&p, 2e-5);
		if (!by_token)
			check_twin(&p, s.type == KERN_BF16 ? 1e-2 : 2e-5);
		rig_gpu_reset(&g);
	}
}
END_TEST

/* Each row alone has the bits it had in the batch. */
START_TEST(a_row_does_not_know_its_batch)
{
	const struct shape s = { KERN_BF16, 64, 4, 2, MAX_ROWS, 700 };
	const size_t n = 4 * 64;
	static float o[MAX_ROWS * 4 * 64];
	struct problem p;

	make(&p, s);
	run(&p, 0);
	memcpy(o, p.o, sizeof(o));
	for (uint32_t r = 0; r < MAX_ROWS; r++) {
		struct problem one = p;
		int64_t n_parts;

		one.s.n_rows = 1;
		one.lists[0] = p.lists[r];
		one.q = p.q + r * n * 2;
		n_parts = kern_gpu_plan(one.spans, one.lists, 1, one.parts,
					MAX_PARTS, one.rows);
		one.n_parts = (uint32_t)n_parts;
		run(&one, 0);
		ck_assert(!memcmp(o + r * n, one.o, n * 4));
	}
}
END_TEST

/* A list in two calls, the second added to the first. */
START_TEST(a_list_in_two_calls)
{
	const struct shape s = { KERN_F16, 128, 8, 1, 3, 300 };
	struct kern_gpu_list all[MAX_ROWS];
	struct problem p;

	make(&p, s);
	memcpy(all, p.lists, sizeof(all));
	for (int half = 0; half < 2; half++) {
		for (uint32_t r = 0; r < s.n_rows; r++) {
			const uint32_t first = all[r].n_spans / 2;

			p.lists[r] = all[r];
			p.lists[r].n_spans = half ? all[r].n_spans - first
						  : first;
			p.lists[r].first_span += half ? first : 0;
		}
		p.n_parts = (uint32_t)kern_gpu_plan(p.spans, p.lists, s.n_rows,
						    p.parts, MAX_PARTS, p.rows);
		run(&p, half ? GPU_ATTN_ADD | GPU_ATTN_FINISH : 0);
	}
	memcpy(p.lists, all, sizeof(all));
	check_exact(&p, 2e-5);
}
END_TEST

START_TEST(shapes_that_are_refused)
{
	struct gpu_attn a = {
		.n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .n_rows = 0
	};
	struct gpu_rope ro = {
		.kind = KERN_ROPE_NONE, .n_heads = 1, .head_dim = 8, .n_rot = 8
	};

	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream), 0);
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_Q8_0, &a, g.stream),
			 -EINVAL);
	a.head_dim = 80;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream),
			 -EINVAL);
	a.head_dim = 64;
	a.n_kv_heads = 3;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream),
			 -EINVAL);
	a.n_kv_heads = 0;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream),
			 -EINVAL);
	ck_assert_int_eq(kern_gpu_rope(g.kern, &ro, g.stream), -EINVAL);
	ro.kind = KERN_ROPE_HALVES;
	ro.n_rot = 7;
	ck_assert_int_eq(kern_gpu_rope(g.kern, &ro, g.stream), -EINVAL);
	ro.n_rot = 10;
	ck_assert_int_eq(kern_gpu_rope(g.kern, &ro, g.stream), -EINVAL);
}
END_TEST

START_TEST(a_plan_is_of_the_row_alone)
{
	enum { N = GPU_SPLIT_TOKENS };
	struct gpu_span s[3] = { { .n_tokens = N + 1, .pos = 0 },
				 { .n_tokens = 0, .pos = N + 1 },
				 { .n_tokens = 2 * N, .pos = N + 1 } };
	const struct kern_gpu_list rows[3] = { { 8 * N, 0, 3 },
					       { N - 1, 0, 3 },
					       { 2 * N + 1, 2, 1 } };
	struct gpu_part parts[8];
	struct gpu_row out[3];

	ck_assert_int_eq(kern_gpu_plan(s, rows, 3, parts, 8, out), 7);
	ck_assert_uint_eq(out[0].n_parts, 4);
	ck_assert_uint_eq(parts[1].t0, N);
	ck_assert_uint_eq(parts[2].span, 2);
	ck_assert_uint_eq(parts[2].t0, 0);
	ck_assert_uint_eq(out[1].n_parts, 1);
	ck_assert_uint_eq(out[2].first_part, 5);
	ck_assert_uint_eq(out[2].n_parts, 2);
	ck_assert_int_eq(kern_gpu_plan(s, rows, 3, parts, 6, out), -ENOSPC);
}
END_TEST

/* _i: type. Pages as kern_from_f32() would have filled them; nothing else. */
START_TEST(append_equals_the_twin)
{
	enum { N = 7, HEADS = 3, DIM = 96 };
	const enum kern_type type = types[_i];
	const size_t es = kern_type_bytes(type), row = DIM * es;
	struct gpu_span *s = rig_gpu_alloc(&g, 2 * sizeof(*s));
	uint32_t *to = rig_gpu_alloc(&g, N * 8);
	float *k = rig_gpu_alloc(&g, N * HEADS * DIM * 4);
	float *v = rig_gpu_alloc(&g, N * HEADS * DIM * 4);
	const size_t page = 2 * HEADS * 32 * row, n_bytes = 3 * page;
	char *want = malloc(2 * n_bytes), *got = rig_gpu_alloc(&g, 2 * n_bytes);
	const struct gpu_append a = {
		.k = (uintptr_t)k,
		.v = (uintptr_t)v,
		.spans = (uintptr_t)s,
		.to = (uintptr_t)to,
		.n_kv_heads = HEADS,
		.head_dim = DIM,
		.n_rows = N,
	};

	fill(KERN_F32, k, N * HEADS * DIM);
	fill(KERN_F32, v, N * HEADS * DIM);
	k[3] = NAN;
	k[4] = INFINITY;
	k[5] = 1e-40f;
	k[6] = 3.4e38f;
	k[7] = 1.00390625f; /* a tie of bf16 */
	memset(want, 0x55, 2 * n_bytes);
	memset(got, 0x55, 2 * n_bytes);
	for (uint32_t i = 0; i < 2; i++)
		s[i] = (struct gpu_span){ .k = (uintptr_t)got + i * n_bytes,
					  .v = (uintptr_t)got + i * n_bytes +
					       HEADS * 32 * row,
					  .head_bytes = 32 * row,
					  .page_bytes = page,
					  .page_tokens = 32 };
	for (uint32_t r = 0; r < N; r++) {
		const uint32_t i = r % 2, t = r * 13;

		to[2 * r] = i;
		to[2 * r + 1] = t;
		for (uint32_t h = 0; h < HEADS; h++) {
			char *at = want + i * n_bytes + t / 32 * page +
				   h * 32 * row + t % 32 * row;

			kern_from_f32(type, k + (r * HEADS + h) * DIM, at, DIM);
			kern_from_f32(type, v + (r * HEADS + h) * DIM,
				      at + HEADS * 32 * row, DIM);
		}
	}
	ck_assert_int_eq(kern_gpu_append(g.kern, type, &a, g.stream), 0);
	rig_gpu_wait(&g);
	/* which NaN it is, is the converter's */
	for (size_t i = 0; i < 2 * n_bytes; i += es) {
		float x, y;

		kern_to_f32(type, want + i, &x, 1);
		kern_to_f32(type, got + i, &y, 1);
		ck_assert(isnan(x) ? isnan(y) : !memcmp(want + i, got + i, es));
	}
	free(want);
}
END_TEST

static void near(const float *got, const float *want, size_t n, double rel,
		 double abs)
{
	for (size_t i = 0; i < n; i++)
		ck_assert_msg(fabs((double)got[i] - (double)want[i]) <=
				      rel * fabs((double)want[i]) + abs,
			      "%zu: %g, not %g", i, (double)got[i],
			      (double)want[i]);
}

START_TEST(rmsnorm_near_the_twin)
{
	for (uint32_t n = 1; n < 1500; n = n * 3 + 1) {
		float *x = rig_gpu_alloc(&g, 3 * n * 4), *y;
		float *w = rig_gpu_alloc(&g, n * 4);
		float *want = malloc(3 * n * 4);
		struct gpu_rmsnorm a = { .x = (uintptr_t)x,
					 .w = (uintptr_t)w,
					 .n_rows = 3,
					 .n = n,
					 .eps = 1e-5f };

		y = rig_gpu_alloc(&g, 3 * n * 4);
		a.y = (uintptr_t)y;
		fill(KERN_F32, x, 3 * n);
		fill(KERN_F32, w, n);
		kern_rmsnorm(x, w, want, 3, n, a.eps);
		ck_assert_int_eq(kern_gpu_rmsnorm(g.kern, &a, g.stream), 0);
		rig_gpu_wait(&g);
		near(y, want, 3 * n, 2e-6, 0);
		free(want);
	}
}
END_TEST

/* _i: kind. In place, partly rotated, far and negative positions. */
START_TEST(rope_near_the_twin)
{
	enum { N = 4, HEADS = 3, DIM = 64 };
	const struct kern_rope p = { (enum kern_rope_kind)_i, 48, 10000, 0.5f };
	float *x = rig_gpu_alloc(&g, N * HEADS * DIM * 4);
	int64_t *pos = rig_gpu_alloc(&g, N * 8);
	static float want[N * HEADS * DIM];
	const struct gpu_rope a = { .src = (uintptr_t)x,
				    .dst = (uintptr_t)x,
				    .pos = (uintptr_t)pos,
				    .n_rows = N,
				    .n_heads = HEADS,
				    .head_dim = DIM,
				    .kind = p.kind,
				    .n_rot = p.n_rot,
				    .theta = p.theta,
				    .scale = p.scale };

	fill(KERN_F32, x, N * HEADS * DIM);
	pos[0] = 0;
	pos[1] = -5;
	pos[2] = 131071;
	pos[3] = (1 << 24) - 1;
	kern_rope(&p, x, want, pos, N, HEADS, DIM);
	ck_assert_int_eq(kern_gpu_rope(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	near(x, want, N * HEADS * DIM, 0, 16e-6);
}
END_TEST

START_TEST(swiglu_near_the_twin)
{
	const size_t n = 1000;
	float *x = rig_gpu_alloc(&g, n * 4), *up = rig_gpu_alloc(&g, n * 4);
	const struct gpu_swiglu a = { (uintptr_t)x, (uintptr_t)up, (uintptr_t)x,
				      n };
	static float want[1000];

	fill(KERN_F32, x, n);
	fill(KERN_F32, up, n);
	kern_swiglu(x, up, want, n);
	ck_assert_int_eq(kern_gpu_swiglu(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	near(x, want, n, 2e-6, 1e-30);
}
END_TEST

START_TEST(reads_every_byte)
{
	const size_t n = 5000;
	uint32_t *src = rig_gpu_alloc(&g, n * 16), x = 0;
	uint32_t *out = rig_gpu_alloc(&g, 2 * GPU_THREADS * 4);
	const struct gpu_read a = { (uintptr_t)src, n, (uintptr_t)out };

	for (size_t i = 0; i < 4 * n; i++) {
		src[i] = next_random();
		x ^= src[i];
	}
	ck_assert_int_eq(kern_gpu_read(g.kern, &a, 2, g.stream), 0);
	rig_gpu_wait(&g);
	for (uint32_t i = 0; i < 2 * GPU_THREADS; i++)
		x ^= out[i];
	ck_assert_uint_eq(x, 0);
}
END_TEST

START_TEST(what_nvcc_built_is_an_image)
{
	struct kern_gpu *k;

	if (kern_gpu_image_bytes()) {
		ck_assert_uint_gt(kern_gpu_image_bytes(), 1000);
		return;
	}
	printf("what_nvcc_built_is_an_image: built without nvcc\n");
	ck_assert_int_eq(kern_gpu_open(&k, g.api, NULL), -ENOTSUP);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_kern");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, equals_exact_sums_and_the_twin, 0, 12);
	tcase_add_test(t, a_row_does_not_know_its_batch);
	tcase_add_test(t, a_list_in_two_calls);
	tcase_add_test(t, shapes_that_are_refused);
	tcase_add_test(t, a_plan_is_of_the_row_alone);
	tcase_add_loop_test(t, append_equals_the_twin, 0, 3);
	tcase_add_test(t, rmsnorm_near_the_twin);
	tcase_add_loop_test(t, rope_near_the_twin, 1, 3);
	tcase_add_test(t, swiglu_near_the_twin);
	tcase_add_test(t, reads_every_byte);
	tcase_add_test(t, what_nvcc_built_is_an_image);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
