/*
 * test_device_hurry.c - pages of a device that were asked for ahead, and are waited for now
 *
 * On the fake driver, while another tenant reads without end through a pool that is small.
 */
#include <check.h>
#include <stdint.h>
#include "tests/rig/rig_dev.h"

#define PAGE	RIG_DEV_FRAME
#define N_FLOOD 44u
#define N_PAGES 200u

static struct rig_dev *r;

static struct flood {
	struct page_want want;
	struct page_run run;
	int told;
} flood[N_FLOOD];
static uint32_t n_flood;

static void flood_told(struct wait *w, int ret)
{
	ck_assert_int_eq(ret, 0);
	container_of(container_of(w, struct page_want, wait), struct flood,
		     want)
		->told = 1;
}

static void take(struct pager *p, struct flood *f)
{
	const int ret = page_want(p, &f->want);

	ck_assert_int_ge(ret, 0);
	f->told = ret;
}

static void write_page(struct range *range, uint32_t i)
{
	struct page_run run = { range, i, 1, PAGE_WRITE };
	struct pager *p = range_pager(range);

	ck_assert_int_eq(pager_reserve(p, PAGE), 0);
	ck_assert_int_eq(rig_dev_want(r, p, &run, 1), 0);
	*(uint32_t *)(range_addr(range) + i * PAGE) = 7;
	page_unpin(p, &run, 1);
	pager_unreserve(p, PAGE);
}

/* Each takes another page as soon as it has one, or ends. */
static void flood_on(struct range *range, int ends)
{
	for (uint32_t i = 0; i < N_FLOOD; i++) {
		struct flood *f = &flood[i];

		if (f->run.n && !f->told)
			continue;
		if (f->run.n)
			page_unpin(r->pagers[0], &f->run, 1);
		f->told = 0;
		f->run.n = 0;
		if (ends)
			continue;
		f->run = (struct page_run){ .range = range,
					    .first = n_flood++ * 7 % N_PAGES,
					    .n = 1 };
		f->want = (struct page_want){ .wait.done = flood_told,
					      .runs = &f->run,
					      .n_runs = 1 };
		take(r->pagers[0], f);
	}
	rig_dev_turn(r);
}

/* Asked for ahead, and waited for now: others' reads without end do not pass it by. */
START_TEST(what_is_waited_for_is_not_behind_others)
{
	struct range *range[2], *passing;
	struct page_run one = { .n = 1 };
	struct flood b = { .want.wait.done = flood_told };
	uint32_t from;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 64 * PAGE,
						   .host_bytes = 8 * PAGE,
						   .disk_bytes = 512 * PAGE,
						   .n_pagers = 2,
						   .weights = { 1000, 1 } });
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_PAGES, &range[0]), 0);
	ck_assert_int_eq(range_new(r->pagers[1], PAGE, 1, &range[1]), 0);
	one.range = range[1];
	write_page(range[1], 0);
	for (uint32_t k = 0; k < 2 * N_PAGES; k++)
		write_page(range[0], k % N_PAGES);
	/* frames that are free then, as nothing is evicted for what is asked ahead */
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 64, &passing), 0);
	for (uint32_t k = 0; k < 64; k++)
		write_page(passing, k);
	range_free(passing);
	rig_dev_settle(r);
	ck_assert_uint_eq(range_lower_bytes(range[1], 0, 1), PAGE);
	ck_assert_int_eq(pager_reserve(r->pagers[0], N_FLOOD * PAGE), 0);
	ck_assert_int_eq(pager_reserve(r->pagers[1], PAGE), 0);
	flood_on(range[0], 0);
	page_prefetch(r->pagers[1], &one, 1);
	flood_on(range[0], 0);
	ck_assert_uint_eq(range_coming_bytes(range[1], 0, 1), PAGE);
	for (from = n_flood; n_flood - from < N_FLOOD;)
		flood_on(range[0], 0); /* now it stands in the pool's line */
	b.want.runs = &one;
	b.want.n_runs = 1;
	take(r->pagers[1], &b);
	ck_assert(!b.told);
	for (from = n_flood; !b.told && n_flood - from < 20 * N_PAGES;)
		flood_on(range[0], 0);
	ck_assert(b.told);
	ck_assert_uint_eq(*(uint32_t *)range_addr(range[1]), 7);
	page_unpin(r->pagers[1], &one, 1);
	pager_unreserve(r->pagers[1], PAGE);
	for (uint32_t i = 0; i < N_FLOOD; i++)
		while (flood[i].run.n)
			flood_on(range[0], 1);
	pager_unreserve(r->pagers[0], N_FLOOD * PAGE);
	range_free(range[0]);
	range_free(range[1]);
	rig_dev_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("device_hurry");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int n;

	tcase_set_timeout(t, 300);
	tcase_add_test(t, what_is_waited_for_is_not_behind_others);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
