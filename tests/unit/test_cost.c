/*
 * test_cost.c - load or recompute, against all cuts tried one by one
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "kvd/base/rate.h"
#include "kvd/serve/cost.h"

static uint64_t total(const uint64_t *load, const uint64_t *compute, uint32_t n,
		      uint32_t cut)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += i < cut ? load[i] : compute[i];
	return sum;
}

START_TEST(no_cut_is_better)
{
	unsigned int seed = (unsigned int)time(NULL);

	printf("seed %u\n", seed);
	for (int k = 0; k < 20000; k++) {
		uint64_t load[24], compute[24];
		const uint32_t n = (uint32_t)rand_r(&seed) % 24;
		uint32_t cut;

		for (uint32_t i = 0; i < n; i++) {
			load[i] = (uint64_t)rand_r(&seed) % 10;
			compute[i] = (uint64_t)rand_r(&seed) % 10;
		}
		cut = cost_cut(load, compute, n);
		ck_assert_uint_le(cut, n);
		for (uint32_t c = 0; c <= n; c++) {
			ck_assert_uint_le(total(load, compute, n, cut),
					  total(load, compute, n, c));
			if (c > cut)
				ck_assert_uint_lt(total(load, compute, n, cut),
						  total(load, compute, n, c));
		}
	}
}
END_TEST

START_TEST(what_is_there_is_taken)
{
	const uint64_t load[3] = { 0 }, compute[3] = { 5, 5, 5 };
	const uint64_t slow[3] = { 100, 100, 100 };

	ck_assert_uint_eq(cost_cut(load, compute, 3), 3);
	ck_assert_uint_eq(cost_cut(slow, compute, 3), 0);
	ck_assert_uint_eq(cost_cut(load, compute, 0), 0);
}
END_TEST

/* The end of the last stage, when computing begins with n_start of them. */
static uint64_t pipe_end(uint32_t n, uint64_t tl, uint64_t tc, uint32_t n_start)
{
	uint64_t t = n_start * tl;

	for (uint32_t i = 0; i < n; i++)
		t = (t > (i + 1) * tl ? t : (i + 1) * tl) + tc;
	return t;
}

/* No other start ends earlier. */
START_TEST(no_start_is_better)
{
	for (uint32_t n = 1; n < 20; n++)
		for (uint64_t tl = 1; tl < 12; tl++)
			for (uint64_t tc = 1; tc < 12; tc++) {
				const uint32_t s = cost_start(n, tl, tc);
				const uint64_t end = pipe_end(n, tl, tc, s);

				ck_assert_uint_ge(s, 1);
				ck_assert_uint_le(s, n);
				ck_assert(n == 1 || s < n);
				for (uint32_t k = 1; k <= n; k++)
					ck_assert_uint_le(
						end, pipe_end(n, tl, tc, k));
				/* and the engine waits for less than one */
				ck_assert_uint_lt(end - s * tl - n * tc, tl);
			}
}
END_TEST

START_TEST(a_hit_is_at_most_a_tenth_slower)
{
	ck_assert_int_eq(cost_load(100, 100), 1);
	ck_assert_int_eq(cost_load(110, 100), 1);
	ck_assert_int_eq(cost_load(111, 100), 0);
	ck_assert_int_eq(cost_load(0, 0), 1);
}
END_TEST

START_TEST(rates_follow)
{
	struct rate r = { 0 };

	ck_assert_uint_eq(rate_ns(&r, 1e9, 1e9), 1000000000u); /* the prior */
	for (int i = 0; i < 100; i++)
		rate_add(&r, 1e6, 1000000); /* 1e9 a second */
	ck_assert_uint_le(rate_ns(&r, 1e9, 1), 1001000000u);
	ck_assert_uint_ge(rate_ns(&r, 1e9, 1), 999000000u);
	for (int i = 0; i < 1000; i++)
		rate_add(&r, 1e6, 10000000); /* 1e8: the disk is busy now */
	ck_assert_uint_ge(rate_ns(&r, 1e9, 1), 9000000000u);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cost");
	TCase *t = tcase_create("cost");
	SRunner *r;
	int n;

	tcase_add_test(t, no_cut_is_better);
	tcase_add_test(t, no_start_is_better);
	tcase_add_test(t, what_is_there_is_taken);
	tcase_add_test(t, a_hit_is_at_most_a_tenth_slower);
	tcase_add_test(t, rates_follow);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
