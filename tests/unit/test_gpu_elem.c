/*
 * test_gpu_elem.c - kernels of rows and elements, run as C, against their twins
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
#include "io/crc.h"
#include "kernels/gpu.h"
#include "kernels/kern.h"
#include "tests/rig/rig_gpu.h"

static struct rig_gpu g;
static uint32_t seed;
static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };

static uint32_t next_random(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static void setup(void)
{
	const char *env = getenv("KVD_SEED");

	seed = env ? (uint32_t)strtoul(env, NULL, 10) : (uint32_t)time(NULL);
	printf("KVD_SEED=%u\n", seed);
	rig_gpu_open(&g);
	kern_init(KERN_ISA_AMX);
}

static void teardown(void)
{
	rig_gpu_close(&g);
}

/* n of the device's, random in [-4, 4). */
static float *floats(size_t n)
{
	float *x = rig_gpu_alloc(&g, n * sizeof(*x));

	for (size_t i = 0; i < n; i++)
		x[i] = (float)next_random() / (float)(1 << 21) - 4.0f;
	return x;
}

static void *typed(enum kern_type type, size_t n)
{
	void *p = rig_gpu_alloc(&g, n * kern_type_bytes(type));

	kern_from_f32(type, floats(n), p, n);
	return p;
}

/* Now and then large ones. */
static void refill(float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] = ((float)next_random() / (float)(1 << 23) - 1.0f) *
		       (next_random() % 50 ? 1.0f : 8.0f);
}

START_TEST(add_equals_the_twin)
{
	const size_t n = 1000 + next_random() % 1000;
	float *x = floats(n), *y = floats(n), *want = malloc(n * 4);
	const struct gpu_add a = { (uintptr_t)x, (uintptr_t)y, n };

	memcpy(want, y, n * 4);
	kern_add(x, want, n);
	ck_assert_int_eq(kern_gpu_add(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	ck_assert(!memcmp(y, want, n * 4));
	free(want);
}
END_TEST

/* _i: type. There and back; nothing behind the end. */
START_TEST(conversions_equal_the_twins)
{
	const enum kern_type type = types[_i];
	const size_t n = 700 + next_random() % 100, es = kern_type_bytes(type);
	float *x = floats(n), *back = floats(n + 1), *want = malloc(n * 4);
	char *y = rig_gpu_alloc(&g, (n + 1) * es), *twin = malloc(n * es);
	struct gpu_convert a = { (uintptr_t)x, (uintptr_t)y, n };

	x[0] = 1e-40f;
	x[1] = INFINITY;
	x[2] = 3.4e38f;
	x[3] = 1.00390625f; /* a tie of bf16 */
	x[4] = -0.0f;
	memset(y, 0x55, (n + 1) * es);
	back[n] = 7;
	kern_from_f32(type, x, twin, n);
	kern_to_f32(type, twin, want, n);
	ck_assert_int_eq(kern_gpu_from_f32(g.kern, type, &a, g.stream), 0);
	a.src = (uintptr_t)y;
	a.dst = (uintptr_t)back;
	ck_assert_int_eq(kern_gpu_to_f32(g.kern, type, &a, g.stream), 0);
	rig_gpu_wait(&g);
	ck_assert(!memcmp(y, twin, n * es));
	ck_assert_int_eq(y[n * es], 0x55);
	ck_assert(!memcmp(back, want, n * 4));
	ck_assert(back[n] == 7);
	free(twin);
	free(want);
}
END_TEST

/* _i: type. Any rows, one of them twice. */
START_TEST(gathers_rows)
{
	enum { ROWS = 40, N = 5 };
	const enum kern_type type = types[_i];
	const uint32_t n = 1 + next_random() % 300;
	const char *table = typed(type, ROWS * n);
	uint32_t *idx = rig_gpu_alloc(&g, N * 4);
	float *y = floats(N * n), *want = malloc(n * 4);
	const struct gpu_gather a = { (uintptr_t)table, (uintptr_t)idx,
				      (uintptr_t)y, N, n };

	for (uint32_t r = 0; r < N; r++)
		idx[r] = next_random() % ROWS;
	idx[N - 1] = idx[0];
	idx[1] = ROWS - 1;
	ck_assert_int_eq(kern_gpu_gather(g.kern, type, &a, g.stream), 0);
	rig_gpu_wait(&g);
	for (uint32_t r = 0; r < N; r++) {
		kern_to_f32(type, table + idx[r] * n * kern_type_bytes(type),
			    want, n);
		ck_assert(!memcmp(y + r * n, want, n * 4));
	}
	free(want);
}
END_TEST

enum { J_ROWS = 5, J_HEADS = 3, J_DIM = 96, J_MORE = 3 };

/* [rows][heads] states: o finished. */
struct states {
	float *o, *m, *l;
};

static struct states some_states(size_t n)
{
	struct states s = { floats(n * J_DIM), floats(n), floats(n) };

	for (size_t i = 0; i < n; i++) {
		s.l[i] = next_random() % 5 ? fabsf(s.l[i]) * 40 + 1 : 0;
		s.m[i] = s.l[i] > 0 ? s.m[i] * 9 : -INFINITY;
		for (size_t d = 0; d < J_DIM && !(s.l[i] > 0); d++)
			s.o[i * J_DIM + d] = 0;
	}
	return s;
}

/* State at of s and n of more from from on, a row apart, as the host joins them. */
static void join_here(const struct states *s, size_t at,
		      const struct states *more, size_t from, uint32_t n,
		      const float *scale, float *out)
{
	float o[J_MORE + 1][J_DIM], m = s->m[at], l = s->l[at];
	struct kern_attn_group list[J_MORE + 1] = { { o[0], &m, &l, 1 } };
	const struct kern_attn a = { .n_heads = 1,
				     .n_kv_heads = 1,
				     .head_dim = J_DIM,
				     .o = o[0],
				     .m = &m,
				     .l = &l,
				     .kv_head_to = 1,
				     .row_to = 1 };

	for (uint32_t d = 0; d < J_DIM; d++)
		o[0][d] = s->o[at * J_DIM + d] * l;
	for (uint32_t k = 0; k < n; k++) {
		const size_t x = from + (size_t)k * J_HEADS;

		list[1 + k] = (struct kern_attn_group){ o[1 + k], &more->m[x],
							&more->l[x], scale[k] };
		for (uint32_t d = 0; d < J_DIM; d++)
			o[1 + k][d] = more->o[x * J_DIM + d] * more->l[x];
	}
	kern_attn_join(&a, list, n + 1);
	for (uint32_t d = 0; d < J_DIM; d++)
		out[d] = l > 0 ? o[0][d] / l : 0;
}

/* _i more of each row but one. */
START_TEST(joins_states)
{
	const uint32_t n = (uint32_t)_i;
	const struct states s = some_states(J_ROWS * J_HEADS);
	const struct states more = some_states(J_MORE * J_ROWS * J_HEADS);
	float *scale = floats(J_MORE * J_ROWS), want[J_ROWS * J_HEADS][J_DIM];
	struct gpu_joined *rows = rig_gpu_alloc(&g, J_ROWS * sizeof(*rows));
	const struct gpu_join a = { (uintptr_t)rows,
				    (uintptr_t)s.o,
				    (uintptr_t)s.m,
				    (uintptr_t)s.l,
				    (uintptr_t)more.o,
				    (uintptr_t)more.m,
				    (uintptr_t)more.l,
				    (uintptr_t)scale,
				    J_ROWS - 1,
				    J_HEADS,
				    J_DIM,
				    0 };

	memcpy(want, s.o, sizeof(want));
	for (uint32_t i = 0; i < J_MORE * J_ROWS; i++)
		scale[i] = 0.5f + (float)(next_random() % 16) / 16;
	for (uint32_t i = 0; i + 1 < J_ROWS; i++) {
		const uint32_t row = J_ROWS - 1 - i;

		rows[i] = (struct gpu_joined){ row, i * n, n, 0 };
		for (uint32_t h = 0; h < J_HEADS; h++)
			join_here(&s, (size_t)row * J_HEADS + h, &more,
				  (size_t)i * n * J_HEADS + h, n, scale + i * n,
				  want[row * J_HEADS + h]);
	}
	ck_assert_int_eq(kern_gpu_join(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	for (uint32_t i = 0; i < J_ROWS * J_HEADS * J_DIM; i++)
		ck_assert_float_eq_tol(s.o[i], (&want[0][0])[i], 1e-5f);
}
END_TEST

START_TEST(picks_rows)
{
	enum { ROWS = 7, N = 4, LEN = 200 };
	const float *x = floats(ROWS * LEN), *mul = floats(N);
	uint32_t *idx = rig_gpu_alloc(&g, N * 4);
	float *y = floats(N * LEN);
	const struct gpu_pick a = {
		(uintptr_t)x, (uintptr_t)idx, (uintptr_t)mul, (uintptr_t)y, N,
		LEN
	};

	for (uint32_t i = 0; i < N; i++)
		idx[i] = next_random() % ROWS;
	ck_assert_int_eq(kern_gpu_pick(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	for (uint32_t i = 0; i < N * LEN; i++)
		ck_assert(y[i] ==
			  x[idx[i / LEN] * LEN + i % LEN] * mul[i / LEN]);
}
END_TEST

/* Heads of runs to where they belong, and no byte elsewhere. */
START_TEST(moves_runs)
{
	enum { RUNS = 6, HEADS = 3, SRC = 2048, DST = 3072, N = 1040 };
	const size_t n_src = RUNS * HEADS * SRC, n_dst = RUNS * HEADS * DST;
	unsigned char *src = rig_gpu_alloc(&g, n_src);
	unsigned char *dst = rig_gpu_alloc(&g, n_dst), *want = malloc(n_dst);
	uint64_t *runs = rig_gpu_alloc(&g, RUNS * 16);
	struct gpu_move a = { (uintptr_t)runs, N, SRC, DST, RUNS, HEADS };

	for (size_t i = 0; i < n_src; i++)
		src[i] = (unsigned char)next_random();
	memset(dst, 0xa5, n_dst);
	memset(want, 0xa5, n_dst);
	for (size_t r = 0; r < RUNS; r++) {
		const size_t from = r * HEADS * SRC + 16 * (r % 3);
		const size_t to = (RUNS - 1 - r) * HEADS * DST + 32;

		runs[2 * r] = (uintptr_t)src + from;
		runs[2 * r + 1] = (uintptr_t)dst + to;
		for (size_t h = 0; h < HEADS; h++)
			memcpy(want + to + h * DST, src + from + h * SRC, N);
	}
	ck_assert_int_eq(kern_gpu_move(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	ck_assert(!memcmp(dst, want, n_dst));
	free(want);
	a.n_bytes = 24;
	ck_assert_int_eq(kern_gpu_move(g.kern, &a, g.stream), -EINVAL);
	a.n_bytes = 32;
	a.n_heads = 0;
	ck_assert_int_eq(kern_gpu_move(g.kern, &a, g.stream), -EINVAL);
}
END_TEST

/* _i: type. */
START_TEST(deviation_near_exact)
{
	enum { N = 9, HEADS = 3, DIM = 96, TOKENS = 64 };
	const enum kern_type type = types[_i];
	const size_t es = kern_type_bytes(type), head = 32 * DIM * es;
	const size_t page = 2 * HEADS * head;
	char *pages = typed(type, 2 * 2 * HEADS * TOKENS * DIM);
	struct gpu_span *s = rig_gpu_alloc(&g, 2 * sizeof(*s));
	uint32_t *at = rig_gpu_alloc(&g, N * 8);
	float *v = floats(N * HEADS * DIM), *dev = floats(N);
	const struct gpu_deviation a = {
		.v = (uintptr_t)v,
		.spans = (uintptr_t)s,
		.at = (uintptr_t)at,
		.dev = (uintptr_t)dev,
		.n_kv_heads = HEADS,
		.head_dim = DIM,
		.n_rows = N,
	};

	for (size_t i = 0; i < 2; i++)
		s[i] = (struct gpu_span){ .v = (uintptr_t)pages + HEADS * head +
					       2 * i * page,
					  .head_bytes = head,
					  .page_bytes = page,
					  .page_tokens = 32,
					  .n_tokens = TOKENS };
	for (uint32_t r = 0; r < N; r++) {
		at[2 * r] = next_random() % 2;
		at[2 * r + 1] = next_random() % TOKENS;
	}
	ck_assert_int_eq(kern_gpu_deviation(g.kern, type, &a, g.stream), 0);
	rig_gpu_wait(&g);
	for (uint32_t r = 0; r < N; r++) {
		const uint32_t t = at[2 * r + 1];
		double sum = 0;

		for (uint32_t h = 0; h < HEADS; h++) {
			float old[DIM];

			kern_to_f32(type,
				    (const char *)s[at[2 * r]].v +
					    t / 32 * page + h * head +
					    t % 32 * DIM * es,
				    old, DIM);
			for (uint32_t d = 0; d < DIM; d++) {
				const double x =
					(double)v[(r * HEADS + h) * DIM + d] -
					(double)old[d];

				sum += x * x;
			}
		}
		ck_assert_double_le(fabs((double)dev[r] - sum), 1e-5 * sum);
	}
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

	refill(k, N * HEADS * DIM);
	refill(v, N * HEADS * DIM);
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
		refill(x, 3 * n);
		refill(w, n);
		kern_rmsnorm(x, w, want, 3, n, a.eps);
		ck_assert_int_eq(kern_gpu_rmsnorm(g.kern, &a, g.stream), 0);
		rig_gpu_wait(&g);
		near(y, want, 3 * n, 2e-6, 0);
		free(want);
	}
}
END_TEST

/* _i: kind. In place, partly rotated, far and negative positions; wide heads. */
START_TEST(rope_near_the_twin)
{
	enum { N = 4, HEADS = 3, DIM = 256 };
	const struct kern_rope p = { (enum kern_rope_kind)_i, 200, 10000,
				     0.5f };
	float *x = rig_gpu_alloc(&g, N * HEADS * DIM * 4);
	int64_t *pos = rig_gpu_alloc(&g, N * 8);
	static float want[N * HEADS * DIM];
	const struct gpu_rope a = { .src = (uintptr_t)x,
				    .dst = (uintptr_t)x,
				    .pos = (uintptr_t)pos,
				    .n_rows = N,
				    .n_variants = 1,
				    .n_heads = HEADS,
				    .head_dim = DIM,
				    .kind = p.kind,
				    .n_rot = p.n_rot,
				    .theta = p.theta,
				    .scale = p.scale };

	refill(x, N * HEADS * DIM);
	pos[0] = 0;
	pos[1] = -5;
	pos[2] = 131071;
	pos[3] = (1 << 24) - 1;
	kern_rope(&p, x, want, pos, N, HEADS, DIM);
	ck_assert_int_eq(kern_gpu_rope(g.kern, KERN_F32, &a, g.stream), 0);
	rig_gpu_wait(&g);
	near(x, want, N * HEADS * DIM, 0, 16e-6);
}
END_TEST

/* _i: type. All positions of a row in one launch, rounded: the bits of one by one. */
START_TEST(rope_at_several_positions)
{
	enum { N = 5, VARIANTS = 3, STRIDE = 7, HEADS = 2, DIM = 64 };
	const enum kern_type type = types[_i];
	const size_t es = kern_type_bytes(type), n = N * HEADS * DIM;
	float *x = rig_gpu_alloc(&g, n * 4), *f = rig_gpu_alloc(&g, n * 4);
	char *y = rig_gpu_alloc(&g, VARIANTS * n * es);
	int64_t *pos = rig_gpu_alloc(&g, VARIANTS * STRIDE * 8);
	char want[N * HEADS * DIM * 4];
	struct gpu_rope a = { .src = (uintptr_t)x,
			      .dst = (uintptr_t)y,
			      .pos = (uintptr_t)pos,
			      .pos_stride = STRIDE,
			      .n_rows = N,
			      .n_variants = VARIANTS,
			      .n_heads = HEADS,
			      .head_dim = DIM,
			      .kind = KERN_ROPE_HALVES,
			      .n_rot = DIM,
			      .theta = 10000,
			      .scale = 1 };

	refill(x, n);
	for (int i = 0; i < VARIANTS * STRIDE; i++)
		pos[i] = i * i * 97 % 5000 - 300;
	ck_assert_int_eq(kern_gpu_rope(g.kern, type, &a, g.stream), 0);
	a.dst = (uintptr_t)f;
	a.n_variants = 1;
	for (size_t v = 0; v < VARIANTS; v++) {
		a.pos = (uintptr_t)(pos + v * STRIDE);
		ck_assert_int_eq(kern_gpu_rope(g.kern, KERN_F32, &a, g.stream),
				 0);
		rig_gpu_wait(&g);
		kern_from_f32(type, f, want, n);
		ck_assert(!memcmp(want, y + v * n * es, n * es));
	}
	ck_assert(memcmp(y, y + n * es, n * es));
}
END_TEST

START_TEST(swiglu_near_the_twin)
{
	const size_t n = 1000;
	float *x = rig_gpu_alloc(&g, n * 4), *up = rig_gpu_alloc(&g, n * 4);
	const struct gpu_swiglu a = { (uintptr_t)x, (uintptr_t)up, (uintptr_t)x,
				      n };
	static float want[1000];

	refill(x, n);
	refill(up, n);
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

/* More than a block of them; what is behind the last is left alone. */
START_TEST(checksums_of_chunks)
{
	enum { N = GPU_THREADS + 13, BYTES = 68 };
	uint32_t *src = rig_gpu_alloc(&g, N * BYTES);
	uint32_t *out = rig_gpu_alloc(&g, (N + 1) * 4);
	const struct gpu_crc a = { (uintptr_t)src, (uintptr_t)out, N, BYTES };
	struct gpu_crc odd = a;

	for (uint32_t i = 0; i < N * BYTES / 4; i++)
		src[i] = next_random() << 8 ^ next_random();
	out[N] = 12345;
	ck_assert_int_eq(kern_gpu_crc(g.kern, &a, g.stream), 0);
	rig_gpu_wait(&g);
	for (uint32_t i = 0; i < N; i++)
		ck_assert_uint_eq(out[i],
				  kio_crc32c(0, src + i * BYTES / 4, BYTES));
	ck_assert_uint_eq(out[N], 12345);
	odd.chunk_bytes = 66;
	ck_assert_int_eq(kern_gpu_crc(g.kern, &odd, g.stream), -EINVAL);
}
END_TEST

START_TEST(nothing_to_do_is_no_launch)
{
	const struct gpu_add add = { 0 };
	const struct gpu_convert convert = { 0 };
	const struct gpu_gather gather = { .n = 4 }, none = { 0 };
	const struct gpu_move move = { .n_heads = 1 };
	const struct gpu_deviation dev = { .n_kv_heads = 1, .head_dim = 64 };

	ck_assert_int_eq(kern_gpu_add(g.kern, &add, g.stream), 0);
	ck_assert_int_eq(
		kern_gpu_from_f32(g.kern, KERN_BF16, &convert, g.stream), 0);
	ck_assert_int_eq(kern_gpu_to_f32(g.kern, KERN_Q8_0, &convert, g.stream),
			 -EINVAL);
	ck_assert_int_eq(kern_gpu_gather(g.kern, KERN_F16, &gather, g.stream),
			 0);
	ck_assert_int_eq(kern_gpu_gather(g.kern, KERN_F16, &none, g.stream),
			 -EINVAL);
	ck_assert_int_eq(kern_gpu_move(g.kern, &move, g.stream), 0);
	ck_assert_int_eq(kern_gpu_deviation(g.kern, KERN_F32, &dev, g.stream),
			 0);
	if (!g.is_real)
		ck_assert_uint_eq(g.ctl.calls("cuLaunchKernel"), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_elem");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, add_equals_the_twin);
	tcase_add_loop_test(t, conversions_equal_the_twins, 0, 3);
	tcase_add_loop_test(t, gathers_rows, 0, 3);
	tcase_add_loop_test(t, joins_states, 0, 4);
	tcase_add_test(t, picks_rows);
	tcase_add_test(t, moves_runs);
	tcase_add_loop_test(t, deviation_near_exact, 0, 3);
	tcase_add_loop_test(t, append_equals_the_twin, 0, 3);
	tcase_add_test(t, rmsnorm_near_the_twin);
	tcase_add_loop_test(t, rope_near_the_twin, 1, 3);
	tcase_add_loop_test(t, rope_at_several_positions, 0, 3);
	tcase_add_test(t, swiglu_near_the_twin);
	tcase_add_test(t, reads_every_byte);
	tcase_add_test(t, checksums_of_chunks);
	tcase_add_test(t, nothing_to_do_is_no_launch);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
