/*
 * test_cost.c - load or recompute, against all cuts tried one by one
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "kvd/base/rate.h"
#include "kvd/serve/cost.h"

static uint64_t rnd(unsigned int *seed, unsigned int n)
{
	return (unsigned int)rand_r(seed) % n;
}

/* By hand: what the header says, cut by cut. */
static double by_hand(const struct cost_now *c, const struct cost_item *items,
		      uint32_t n, uint32_t cut)
{
	double bytes[COST_DISKS] = { 0 }, all = 0, read = 0, turn;
	double rows = (double)c->rest_rows;

	for (uint32_t i = 0; i < n; i++)
		if (i < cut)
			bytes[items[i].i_disk] += (double)items[i].bytes;
		else
			rows += (double)items[i].rows;
	for (uint32_t i = 0; i < COST_DISKS; i++) {
		const struct cost_disk *d = &c->disks[i];
		const double s = bytes[i] > 0
					 ? (bytes[i] + (double)d->queue_bytes) /
						   d->bytes_per_s
					 : 0;

		read = s > read ? s : read;
		all += bytes[i];
	}
	if (all > 0 && c->all.bytes_per_s > 0) {
		all = (all + (double)c->all.queue_bytes) / c->all.bytes_per_s;
		read = all > read ? all : read;
	}
	turn = (double)c->queue_rows / c->rows_per_s;
	return ((read > turn ? read : turn) + rows / c->rows_per_s) * 1e9;
}

/* As much as is free, between least and not all. */
START_TEST(the_share_follows_the_rates)
{
	ck_assert_uint_eq(cost_share(0, 1000000, 150), 150);
	ck_assert_uint_eq(cost_share(149999, 1000000, 150), 150);
	ck_assert_uint_eq(cost_share(268000, 1000000, 150), 268);
	ck_assert_uint_eq(cost_share(5000000, 1000000, 150), 999);
	ck_assert_uint_eq(cost_share(1000000, 0, 150), 150);
	ck_assert_uint_eq(cost_share(UINT64_MAX, 1, 150), 999);
	for (uint64_t load = 0; load < 1000; load += 7)
		for (uint64_t all = 1; all < 3000; all += 13) {
			const uint32_t r = cost_share(load, all, 150);

			/* computing that many takes no longer than loading */
			ck_assert(r == 150 || r * all <= 1000 * load);
			ck_assert(r == 999 || (r + 1) * all > 1000 * load);
		}
}
END_TEST

#define MORE 1.000001 /* than rounding does */

static void check_cut(const struct cost_now *c, const struct cost_item *items,
		      uint32_t n)
{
	const uint32_t cut = cost_cut(c, items, n);
	const double all = by_hand(c, items, n, 0), left = (double)c->left_ns;
	const double ns = by_hand(c, items, n, cut);
	struct cost_now off = *c;
	double best = all, most;

	ck_assert_uint_le(cut, n);
	for (uint32_t k = 0; k <= n; k++) {
		const double t = by_hand(c, items, n, k);

		ck_assert(t <= cost_ns(c, items, n, k) * MORE &&
			  cost_ns(c, items, n, k) <= t * MORE);
		best = t < best ? t : best;
	}
	for (uint32_t i = 0; i < COST_DISKS; i++)
		off.disks[i].bytes_per_s /= 1.1;
	off.all.bytes_per_s /= 1.1;
	/* the promise: also where disks are a tenth slower than they were */
	ck_assert(ns <= all * MORE);
	ck_assert(by_hand(&off, items, n, cut) <= 1.1 * all * MORE);
	if (c->left_ns == COST_NO_DEADLINE)
		most = 1.1 * best < all ? 1.1 * best : all;
	else if (left <= best)
		most = best;
	else
		most = left < all ? left : all;
	ck_assert(ns <= most * MORE);
	for (uint32_t k = cut + 1; k <= n; k++) /* it is the latest */
		ck_assert(by_hand(c, items, n, k) * MORE > most);
}

static struct cost_disk some_disk(unsigned int *seed)
{
	return (struct cost_disk){ 1 + (double)rnd(seed, 100),
				   rnd(seed, 200) * rnd(seed, 2) };
}

/* Two disks are read side by side: the slower one decides, not what both have. */
START_TEST(the_slowest_disk_decides)
{
	struct cost_now c = { .disks = { { 1e6, 0 }, { 1e6, 0 } },
			      .rows_per_s = 1e6,
			      .left_ns = COST_NO_DEADLINE };
	/* a second of each disk, against 1.2 of computing */
	const struct cost_item items[2] = { { 1000000, 600000, 0 },
					    { 1000000, 600000, 1 } };
	const struct cost_bytes both = { { 1000000, 1000000 } };

	ck_assert(cost_load_ns(&c, &both) == 1e9);
	ck_assert_uint_eq(cost_cut(&c, items, 2), 2);
	c.disks[1].bytes_per_s = 5e5; /* however fast the first */
	ck_assert(cost_load_ns(&c, &both) == 2e9);
	ck_assert_uint_eq(cost_cut(&c, items, 2), 0);
	c.disks[1].bytes_per_s = 1e6;
	c.disks[1].queue_bytes = 1000000;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 0);
	c.disks[1].queue_bytes = 0;
	c.all.bytes_per_s = 1e6; /* a limit of both together */
	ck_assert(cost_load_ns(&c, &both) == 2e9);
	ck_assert_uint_eq(cost_cut(&c, items, 2), 0);
}
END_TEST

START_TEST(no_cut_is_better)
{
	unsigned int seed = (unsigned int)time(NULL);

	printf("seed %u\n", seed);
	for (int k = 0; k < 20000; k++) {
		struct cost_item items[24];
		const uint32_t n = (uint32_t)rnd(&seed, 24);
		struct cost_now c = {
			.rows_per_s = 1 + (double)rnd(&seed, 100),
			.queue_rows = rnd(&seed, 200) * rnd(&seed, 2),
			.rest_rows = rnd(&seed, 10),
			.left_ns = COST_NO_DEADLINE,
		};

		const unsigned int n_disks =
			1 + (unsigned int)rnd(&seed, COST_DISKS);

		for (uint32_t i = 0; i < n_disks; i++)
			c.disks[i] = some_disk(&seed);
		if (rnd(&seed, 2))
			c.all = some_disk(&seed);
		for (uint32_t i = 0; i < n; i++)
			items[i] = (struct cost_item){
				rnd(&seed, 20) * rnd(&seed, 2), rnd(&seed, 20),
				(uint32_t)rnd(&seed, n_disks)
			};
		check_cut(&c, items, n);
		c.left_ns = rnd(&seed, 10000) * 1000000;
		check_cut(&c, items, n);
	}
}
END_TEST

/* A second of reading against n seconds of computing. */
static uint32_t one(double read_s, double compute_s, uint64_t left_ns)
{
	const struct cost_now c = { .disks[0].bytes_per_s = 1e6,
				    .rows_per_s = 1e6,
				    .left_ns = left_ns };
	const struct cost_item item = { (uint64_t)(read_s * 1e6),
					(uint64_t)(compute_s * 1e6), 0 };

	return cost_cut(&c, &item, 1);
}

START_TEST(what_is_there_is_taken)
{
	const struct cost_now c = { .disks[0] = { 1, 1000 },
				    .rows_per_s = 1,
				    .left_ns = 0 };
	const struct cost_item items[3] = { { 0, 5, 0 },
					    { 0, 5, 0 },
					    { 6, 5, 0 } };

	ck_assert_uint_eq(cost_cut(&c, items, 2), 2);
	ck_assert_uint_eq(cost_cut(&c, items, 3), 2);
	ck_assert_uint_eq(cost_cut(&c, items, 0), 0);
}
END_TEST

START_TEST(a_deadline_decides)
{
	/* computing all takes 20 s, the first read 11, both 11.5 */
	struct cost_now c = { .disks = { { 10, 0 }, { 1, 0 } },
			      .rows_per_s = 1,
			      .left_ns = COST_NO_DEADLINE };
	struct cost_item items[2] = { { 10, 10, 0 }, { 10, 10, 1 } };

	c.disks[1].bytes_per_s = 10 / 11.5;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 2);
	c.left_ns = 11200000000u;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 1);
	c.left_ns = 11600000000u;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 2);
	c.left_ns = 1; /* missed anyway: the fastest */
	ck_assert_uint_eq(cost_cut(&c, items, 2), 1);
	/* 19 s: for nobody but who has the time */
	c.disks[1].bytes_per_s = 10 / 19.0;
	c.left_ns = COST_NO_DEADLINE;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 1);
	c.left_ns = 30000000000u;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 2);
	/* 21: longer than to compute all, whatever time there is */
	c.disks[1].bytes_per_s = 10 / 21.0;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 1);
	/* what is queued at the engine is time to read in */
	c.queue_rows = 100;
	c.left_ns = 1;
	ck_assert_uint_eq(cost_cut(&c, items, 2), 2);
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

/* The tenth that a hit may be slower is the estimate's, which may be wrong. */
START_TEST(a_hit_that_seems_slower_is_computed)
{
	ck_assert_uint_eq(one(1.00, 1, COST_NO_DEADLINE), 1);
	ck_assert_uint_eq(one(0.99, 1, 0), 1);
	ck_assert_uint_eq(one(1.01, 1, COST_NO_DEADLINE), 0);
	ck_assert_uint_eq(one(1.01, 1, 60000000000u), 0);
	ck_assert_uint_eq(one(1.01, 1, 0), 0);
	ck_assert_uint_eq(one(0, 0, 0), 1);
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
	tcase_add_test(t, the_slowest_disk_decides);
	tcase_add_test(t, no_start_is_better);
	tcase_add_test(t, a_deadline_decides);
	tcase_add_test(t, what_is_there_is_taken);
	tcase_add_test(t, a_hit_that_seems_slower_is_computed);
	tcase_add_test(t, the_share_follows_the_rates);
	tcase_add_test(t, rates_follow);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
