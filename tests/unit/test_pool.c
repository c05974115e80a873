/*
 * test_pool.c - fork-join: every part once, nothing before or after the job
 */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "kvd/base/pool.h"

#define MAX_PARTS 1000

static struct pool *pool;
static _Atomic uint32_t ran[MAX_PARTS];
static uint32_t plain[MAX_PARTS]; /* what parts write and the caller reads */

static void part(void *arg, uint32_t i)
{
	atomic_fetch_add(&ran[i], 1);
	plain[i] = *(uint32_t *)arg + i;
}

static void run_and_look(uint32_t base, uint32_t n)
{
	memset(ran, 0, sizeof(ran));
	pool_run(pool, part, &base, n);
	for (uint32_t i = 0; i < MAX_PARTS; i++)
		ck_assert_uint_eq(ran[i], i < n);
	for (uint32_t i = 0; i < n; i++)
		ck_assert_uint_eq(plain[i], base + i);
}

/* _i threads; more than there are CPUs in the end. */
START_TEST(each_part_runs_once)
{
	static const uint32_t sizes[] = { 0, 1, 2, 3, 7, 64, MAX_PARTS };

	ck_assert_int_eq(pool_new(&pool, (unsigned int)_i), 0);
	ck_assert_uint_eq(pool_n_threads(pool), (unsigned int)_i);
	for (uint32_t k = 0; k < 7; k++)
		run_and_look(k * 10000, sizes[k]);
	pool_free(pool);
}
END_TEST

/* Short jobs one after another: late threads meet the next job. */
START_TEST(late_threads_take_nothing_twice)
{
	ck_assert_int_eq(pool_new(&pool, 6), 0);
	for (uint32_t k = 0; k < 3000; k++) {
		const uint32_t n = 2 + k % 5;
		uint32_t base = k;

		for (uint32_t i = 0; i < 8; i++)
			atomic_store(&ran[i], 0);
		pool_run(pool, part, &base, n);
		for (uint32_t i = 0; i < 8; i++)
			ck_assert_uint_eq(ran[i], i < n);
		for (uint32_t i = 0; i < n; i++)
			ck_assert_uint_eq(plain[i], k + i);
	}
	pool_free(pool);
}
END_TEST

/* Long enough between jobs, and parts long enough, that both sides sleep. */
static void slow_part(void *arg, uint32_t i)
{
	const struct timespec t = { .tv_nsec = 1000000 };

	(void)arg;
	nanosleep(&t, NULL);
	atomic_fetch_add(&ran[i], 1);
}

START_TEST(sleepers_wake)
{
	const struct timespec t = { .tv_nsec = 1000000 };

	ck_assert_int_eq(pool_new(&pool, 3), 0);
	memset(ran, 0, sizeof(ran));
	for (uint32_t k = 0; k < 30; k++) {
		nanosleep(&t, NULL);
		pool_run(pool, slow_part, NULL, 4);
	}
	for (uint32_t i = 0; i < 4; i++)
		ck_assert_uint_eq(ran[i], 30);
	pool_free(pool);
}
END_TEST

static void by_whom(void *arg, uint32_t i)
{
	const struct timespec t = { .tv_nsec = 2000000 };

	nanosleep(&t, NULL); /* leaves the other parts to the others */
	((int *)arg)[i] = gettid();
}

START_TEST(threads_share_the_parts)
{
	int tid[16] = { 0 }, others = 0;

	ck_assert_int_eq(pool_new(&pool, 4), 0);
	pool_run(pool, by_whom, tid, 16);
	for (int i = 0; i < 16; i++)
		others += tid[i] != gettid();
	ck_assert_int_gt(others, 0);
	pool_free(pool);
}
END_TEST

static double cpu_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 200 ms without work cost far less than 200 ms of three threads. */
START_TEST(idle_threads_sleep)
{
	const struct timespec t = { .tv_nsec = 200000000 };
	uint32_t base = 0;
	double before;

	ck_assert_int_eq(pool_new(&pool, 4), 0);
	pool_run(pool, part, &base, 8);
	before = cpu_s();
	nanosleep(&t, NULL);
	ck_assert_double_lt(cpu_s() - before, 0.1);
	pool_free(pool);
}
END_TEST

START_TEST(no_thread_is_an_error)
{
	ck_assert_int_eq(pool_new(&pool, 0), -EINVAL);
	pool_free(NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pool");
	TCase *tc = tcase_create("pool");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, each_part_runs_once, 1, 9);
	tcase_add_test(tc, late_threads_take_nothing_twice);
	tcase_add_test(tc, sleepers_wake);
	tcase_add_test(tc, threads_share_the_parts);
	tcase_add_test(tc, idle_threads_sleep);
	tcase_add_test(tc, no_thread_is_an_error);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
