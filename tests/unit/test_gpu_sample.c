/*
 * test_gpu_sample.c - sampling on the device chooses the tokens of kern_sample()
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

#define N_ROWS 40u
#define MAX_N  3000u

static struct rig_gpu g;
static uint32_t seed;
static struct kern_sample *how;
static float *logits, *logprob;
static uint32_t *token;
static void *scratch, *room;

static uint32_t next_random(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static float uniform(void)
{
	return (float)next_random() / (float)(1 << 24);
}

static void setup(void)
{
	const char *env = getenv("KVD_SEED");

	seed = env ? (uint32_t)strtoul(env, NULL, 10) : (uint32_t)time(NULL);
	printf("KVD_SEED=%u\n", seed);
	rig_gpu_open(&g);
	kern_init(KERN_ISA_AMX);
	how = rig_gpu_alloc(&g, N_ROWS * sizeof(*how));
	logits = rig_gpu_alloc(&g, N_ROWS * MAX_N * 4);
	logprob = rig_gpu_alloc(&g, N_ROWS * 4);
	token = rig_gpu_alloc(&g, N_ROWS * 4);
	scratch = rig_gpu_alloc(&g, N_ROWS * MAX_N * 4);
	room = malloc(8 * MAX_N);
}

static void teardown(void)
{
	free(room);
	rig_gpu_close(&g);
}

static int run(uint32_t n_rows, uint32_t n)
{
	const struct gpu_sample a = {
		.logits = (uintptr_t)logits,
		.how = (uintptr_t)how,
		.scratch = (uintptr_t)scratch,
		.token = (uintptr_t)token,
		.logprob = (uintptr_t)logprob,
		.n_rows = n_rows,
		.n = n,
	};
	const int ret = kern_gpu_sample(g.kern, &a, g.stream);

	rig_gpu_wait(&g);
	return ret;
}

/* All rows with a vocabulary of n, against the twin. */
static void check_rows(uint32_t n)
{
	memset(token, 0xff, N_ROWS * 4);
	memset(logprob, 0xff, N_ROWS * 4);
	ck_assert_int_eq(run(N_ROWS, n), 0);
	for (uint32_t r = 0; r < N_ROWS; r++) {
		const struct kern_sample *h = &how[r];
		float lp;
		const uint32_t id =
			kern_sample(h, logits + r * n, n, room, &lp);

		ck_assert_msg(token[r] == id,
			      "row %u of %u: %u, not %u: t %g k %u p %g m %g",
			      r, n, token[r], id, (double)h->temperature,
			      h->top_k, (double)h->top_p, (double)h->min_p);
		ck_assert_double_le(fabs((double)(logprob[r] - lp)),
				    1e-6 * fabs((double)lp) + 1e-7);
	}
}

static void random_how(uint32_t n)
{
	for (uint32_t r = 0; r < N_ROWS; r++)
		how[r] = (struct kern_sample){
			.temperature = next_random() % 6 ? 0.1f + 2 * uniform()
							 : 0,
			.top_k = next_random() % 2 ? next_random() % (n + 3)
						   : 0,
			.top_p = next_random() % 2 ? uniform() : 1,
			.min_p = next_random() % 3 ? 0 : uniform() / 4,
			.seed = (uint64_t)next_random() << 40 | next_random(),
			.pos = next_random(),
		};
}

/* _i: how the logits lie: spread, many equal ones, one far above, very wide. */
START_TEST(tokens_of_the_twin)
{
	for (int k = 0; k < 12; k++) {
		const uint32_t n = k ? 1 + next_random() % MAX_N : 1;

		for (uint32_t i = 0; i < N_ROWS * n; i++) {
			float x = 8 * uniform() - 4;

			if (_i == 1)
				x = rintf(x / 2);
			if (_i == 2 && i % n == i / n)
				x += 12;
			if (_i == 3)
				x *= 40;
			logits[i] = x;
		}
		random_how(n);
		check_rows(n);
	}
}
END_TEST

/* Nothing, all and the first only; minus infinity for what may not be. */
START_TEST(limits_at_their_ends)
{
	static const struct kern_sample ends[] = {
		{ .temperature = 0, .top_p = 1 },
		{ .temperature = 1, .top_p = 1 },
		{ .temperature = 1, .top_p = 1, .top_k = 1 },
		{ .temperature = 1, .top_p = 0 },
		{ .temperature = 1, .top_p = 1e-30f },
		{ .temperature = 1, .top_p = 0.99999994f },
		{ .temperature = 1, .top_p = 1, .min_p = 1 },
		{ .temperature = 1, .top_p = 1, .min_p = 1e-30f },
		{ .temperature = 1e-6f, .top_p = 1 },
		{ .temperature = 1e6f, .top_p = 1 },
	};
	const uint32_t n = 500;

	for (uint32_t r = 0; r < N_ROWS; r++) {
		how[r] = ends[r % (sizeof(ends) / sizeof(*ends))];
		how[r].seed = r;
		for (uint32_t i = 0; i < n; i++)
			logits[r * n + i] = r % 4 == 0 && i % 5 ? -INFINITY
								: 8 * uniform();
	}
	check_rows(n);
}
END_TEST

/* The same (seed, position) in any row of any batch. */
START_TEST(noise_is_of_seed_and_position)
{
	const uint32_t n = 700;
	uint32_t all[N_ROWS];

	random_how(n);
	for (uint32_t r = 0; r < N_ROWS; r++) {
		how[r] = how[0];
		how[r].temperature = 1.5f;
		how[r].top_k = 0;
		how[r].pos = r / 2;
		for (uint32_t i = 0; i < n; i++)
			logits[r * n + i] = r ? logits[i] : uniform();
	}
	check_rows(n);
	memcpy(all, token, sizeof(all));
	for (uint32_t r = 0; r < N_ROWS; r += 2)
		ck_assert_uint_eq(all[r], all[r + 1]);
	ck_assert_int_eq(run(3, n), 0);
	ck_assert(!memcmp(all, token, 12));
}
END_TEST

START_TEST(sizes_that_are_refused)
{
	ck_assert_int_eq(run(1, 0), -EINVAL);
	ck_assert_int_eq(run(1, GPU_SAMPLE_MAX + 1), -EINVAL);
	ck_assert_int_eq(run(0, 5), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_sample");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60); /* threads are emulated */
	tcase_add_loop_test(t, tokens_of_the_twin, 0, 4);
	tcase_add_test(t, limits_at_their_ends);
	tcase_add_test(t, noise_is_of_seed_and_position);
	tcase_add_test(t, sizes_that_are_refused);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
