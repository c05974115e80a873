/*
 * test_repair.c - which tokens of a chunk are chosen
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "kvd/serve/repair.h"

#define N 200

static unsigned int seed;

/* Ascending and below n. */
static void check_set(const uint32_t *at, uint32_t n, uint32_t k)
{
	for (uint32_t i = 0; i < k; i++) {
		ck_assert_uint_lt(at[i], n);
		ck_assert(!i || at[i] > at[i - 1]);
	}
}

START_TEST(counts_round_up)
{
	ck_assert_uint_eq(repair_count(100, 0), 0);
	ck_assert_uint_eq(repair_count(0, 150), 0);
	ck_assert_uint_eq(repair_count(1, 1), 1);
	ck_assert_uint_eq(repair_count(100, 150), 15);
	ck_assert_uint_eq(repair_count(101, 150), 16);
	ck_assert_uint_eq(repair_count(4000000000u, 1000), 4000000000u);
}
END_TEST

START_TEST(the_largest_are_chosen)
{
	for (int round = 0; round < 2000; round++) {
		const uint32_t n = 1 + (uint32_t)rand_r(&seed) % N;
		const uint32_t k = (uint32_t)rand_r(&seed) % (n + 1);
		float dev[N], least = 1e9f;
		uint32_t at[N], in = 0;

		for (uint32_t i = 0; i < n; i++)
			dev[i] = (float)(rand_r(&seed) % 20);
		ck_assert_int_eq(repair_pick_largest(dev, n, k, at), 0);
		check_set(at, n, k);
		for (uint32_t i = 0; i < k; i++)
			least = dev[at[i]] < least ? dev[at[i]] : least;
		for (uint32_t i = 0; i < n; i++) {
			if (in < k && at[in] == i) {
				in++;
				continue;
			}
			/* left out: smaller, or equal and later */
			ck_assert(!k || dev[i] <= least);
			for (uint32_t j = 0; j < k; j++)
				ck_assert(dev[at[j]] != dev[i] || at[j] < i);
		}
	}
}
END_TEST

START_TEST(random_is_the_same_and_even)
{
	uint32_t count[20] = { 0 }, at[20], again[20];

	for (uint64_t c = 0; c < 4000; c++) {
		const struct map_id chunk = { { c * 7919, c ^ 0x55 } };

		repair_pick(REPAIR_RANDOM, chunk, 20, 5, at);
		repair_pick(REPAIR_RANDOM, chunk, 20, 5, again);
		check_set(at, 20, 5);
		for (int i = 0; i < 5; i++) {
			ck_assert_uint_eq(at[i], again[i]);
			count[at[i]]++;
		}
	}
	for (int i = 0; i < 20; i++) { /* 1000 each, five sigma are 137 */
		ck_assert_uint_gt(count[i], 860);
		ck_assert_uint_lt(count[i], 1140);
	}
}
END_TEST

START_TEST(repairs_have_names)
{
	const struct map_id c = { { 1, 2 } }, d = { { 1, 3 } };
	const struct map_id a = repair_id(c, REPAIR_BLEND, 150);

	ck_assert(map_id_equal(a, repair_id(c, REPAIR_BLEND, 150)));
	ck_assert(!map_id_equal(a, repair_id(c, REPAIR_BLEND, 151)));
	ck_assert(!map_id_equal(a, repair_id(c, REPAIR_FIRST, 150)));
	ck_assert(!map_id_equal(a, repair_id(d, REPAIR_BLEND, 150)));
	ck_assert(!map_id_equal(a, c));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("repair");
	TCase *t = tcase_create("repair");
	SRunner *r;
	int n;

	seed = (unsigned int)time(NULL);
	printf("seed %u\n", seed);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, counts_round_up);
	tcase_add_test(t, the_largest_are_chosen);
	tcase_add_test(t, random_is_the_same_and_even);
	tcase_add_test(t, repairs_have_names);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
