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
	tcase_add_test(t, moves_runs);
	tcase_add_loop_test(t, deviation_near_exact, 0, 3);
	tcase_add_test(t, nothing_to_do_is_no_launch);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
