/*
 * test_lent.c - disk that was lent comes back when its owner needs it
 *
 * Two tenants, one disk: one fills all of it with what it keeps for reuse, then the
 * other pages out, or makes durable, what fits into its share.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/mem/account.h"
#include "kvd/mem/durable.h"
#include "tests/rig/rig_mem.h"

#define PAGE	 8192u
#define MEMORY	 (4 * PAGE) /* of each */
#define DISK	 (16 * PAGE) /* of both */
#define FLOOR	 (8 * PAGE) /* of the owner; its share is 12 */
#define N_RANGES 40u

static struct loop *loop;
static struct stores *stores;
static struct accounts accounts;
static char path[64];

static struct tenant {
	struct pager *pager;
	struct range *ranges[N_RANGES];
	uint32_t n, n_gone; /* made; of them, given up: the first ones */
	uint32_t n_held; /* in use: the last ones */
	int keeps; /* they are kept for reuse: may be given up */
} borrower, owner;

static uint32_t n_persisting; /* they are referred to meanwhile */

static int reclaim(void *ctx)
{
	struct tenant *t = ctx;

	if (!t->keeps || t->n_gone == t->n - t->n_held || n_persisting)
		return -ENOSPC;
	range_free(t->ranges[t->n_gone++]);
	return 0;
}

static void open_tenant(struct tenant *t, const char *name, uint64_t floor,
			int keeps)
{
	const struct pager_conf c = { .name = name,
				      .memory_bytes = MEMORY,
				      .disk_bytes = DISK,
				      .disk_floor = floor,
				      .accounts = &accounts,
				      .numa_node = -1,
				      .policy = "clock",
				      .loop = loop,
				      .stores = stores,
				      .reclaim = reclaim,
				      .ctx = t };

	memset(t, 0, sizeof(*t));
	t->keeps = keeps;
	ck_assert_int_eq(pager_new(&t->pager, &c), 0);
}

static void turn(void)
{
	stores_turn(stores);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	if (borrower.pager)
		pager_check(borrower.pager);
	pager_check(owner.pager);
}

static void setup(void)
{
	struct stores_conf sc = { .depth = 16, .n = 1 };
	char err[256] = "";

	strcpy(path, "/var/tmp/kvd-lent-XXXXXX");
	ck_assert_int_ge(close(mkstemp(path)), 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(loop_new(&loop), 0);
	ck_assert_int_eq(loop_start_workers(loop, 2), 0);
	sc.loop = loop;
	sc.disks[0].path = path;
	sc.disks[0].bytes = 64u << 20;
	ck_assert_int_eq(stores_new(&stores, &sc), 0);
	accounts_init(&accounts, 2 * MEMORY, DISK);
	open_tenant(&borrower, "borrower", 0, 1);
	open_tenant(&owner, "owner", FLOOR, 0);
	ck_assert_msg(!stores_open(stores, NULL, NULL, err, sizeof(err)), "%s",
		      err);
}

static void close_tenant(struct tenant *t)
{
	while (t->n_gone < t->n)
		range_free(t->ranges[t->n_gone++]);
	pager_free(t->pager);
}

static void teardown(void)
{
	close_tenant(&borrower);
	close_tenant(&owner);
	stores_free(stores);
	loop_free(loop);
	(void)unlink(path);
}

/* ---- pages ------------------------------------------------------------------- */

static int told, told_ret;

static void on_told(struct wait *w, int ret)
{
	(void)w;
	told = 1;
	told_ret = ret;
}

static int wait_told(void)
{
	for (uint64_t t0 = clock_ns(); !told && rig_mem_patient(t0);)
		turn();
	ck_assert_int_eq(told, 1);
	return told_ret;
}

static int want(struct tenant *t, struct page_run *run)
{
	struct page_want w = { .wait.done = on_told, .runs = run, .n_runs = 1 };
	int ret;

	told = 0;
	ret = page_want(t->pager, &w);
	return ret ? (ret > 0 ? 0 : ret) : wait_told();
}

/* One more range of a page. */
static int make(struct tenant *t)
{
	struct page_run run = { .n = 1, .flags = PAGE_WRITE };
	int ret;

	ck_assert_uint_lt(t->n, N_RANGES);
	ck_assert_int_eq(range_new(t->pager, PAGE, 1, &run.range), 0);
	ret = want(t, &run);
	if (ret) {
		range_free(run.range);
		return ret;
	}
	rig_mem_fill(&run, t->n);
	page_unpin(t->pager, &run, 1);
	t->ranges[t->n++] = run.range;
	return 0;
}

static void all_hold(struct tenant *t)
{
	for (uint32_t i = t->n_gone; i < t->n; i++) {
		struct page_run run = { t->ranges[i], 0, 1, 0 };

		ck_assert_int_eq(want(t, &run), 0);
		ck_assert(rig_mem_holds(&run, i));
		page_unpin(t->pager, &run, 1);
	}
}

static uint64_t slots(struct tenant *t)
{
	struct pager_info i;

	pager_info(t->pager, &i);
	return i.slot_bytes;
}

static void borrow_all(void)
{
	while (slots(&borrower) < DISK)
		ck_assert_int_eq(make(&borrower), 0);
	ck_assert_uint_eq(borrower.n_gone, 0);
}

/* What is left to the borrower is its share, and perhaps what was freed at once. */
static void only_loans_went(void)
{
	struct pager_usage u;

	pager_usage(borrower.pager, &u);
	ck_assert_uint_gt(borrower.n_gone, 0);
	ck_assert_uint_ge(u.tiers[1].used, u.tiers[1].share);
	all_hold(&borrower);
}

/* More than its memory, within its share of the disk; nothing of it may go. */
START_TEST(a_share_comes_back_to_who_pages_out)
{
	borrow_all();
	while (owner.n < (MEMORY + FLOOR) / PAGE)
		ck_assert_int_eq(make(&owner), 0);
	all_hold(&owner);
	ck_assert_uint_eq(owner.n_gone, 0);
	ck_assert_uint_ge(slots(&owner), FLOOR);
	only_loans_went();
}
END_TEST

static int persist(struct range *r, uint64_t key)
{
	struct range_persist p = { .wait.done = on_told,
				   .range = r,
				   .key = { key, key },
				   .meta = "x",
				   .meta_bytes = 1 };

	told = 0;
	ck_assert_int_eq(range_persist(&p), 0);
	return wait_told();
}

START_TEST(a_share_comes_back_to_who_makes_durable)
{
	borrow_all();
	while (owner.n < FLOOR / PAGE) {
		ck_assert_int_eq(make(&owner), 0);
		ck_assert_int_eq(persist(owner.ranges[owner.n - 1], owner.n),
				 0);
	}
	all_hold(&owner);
	only_loans_went();
}
END_TEST

/* Beyond its share it takes nothing from anybody. */
START_TEST(a_loan_is_not_called_back_for_a_loan)
{
	uint32_t n_gone;

	borrow_all();
	for (int ret = 0; !ret;) {
		ret = make(&owner);
		ck_assert(!ret || ret == -ENOSPC);
		if (!ret)
			ret = persist(owner.ranges[owner.n - 1], owner.n);
		ck_assert(!ret || ret == -ENOSPC);
		if (ret)
			break;
	}
	n_gone = borrower.n_gone;
	ck_assert_uint_eq(slots(&owner), 12 * PAGE);
	ck_assert_int_eq(make(&owner), 0);
	ck_assert_int_eq(persist(owner.ranges[owner.n - 1], owner.n), -ENOSPC);
	ck_assert_uint_eq(borrower.n_gone, n_gone);
	only_loans_went();
}
END_TEST

/* ---- who has nothing that would help --------------------------------------------- */

static struct tenant third;

static void open_other(struct tenant *t, const char *name, uint64_t memory,
		       uint64_t disk, uint32_t weight)
{
	const struct pager_conf c = { .name = name,
				      .memory_bytes = memory * PAGE,
				      .disk_bytes = disk * PAGE,
				      .weight = weight,
				      .accounts = &accounts,
				      .numa_node = -1,
				      .policy = "clock",
				      .loop = loop,
				      .stores = stores,
				      .reclaim = reclaim,
				      .ctx = t };

	memset(t, 0, sizeof(*t));
	t->keeps = 1;
	ck_assert_int_eq(pager_new(&t->pager, &c), 0);
}

/* Pin n ranges from the last on, with a reservation. */
static void hold(struct tenant *t, uint32_t n)
{
	ck_assert_int_eq(pager_reserve(t->pager, n * PAGE), 0);
	t->n_held = n;
	for (uint32_t i = 1; i <= n; i++) {
		struct page_run run = { t->ranges[t->n - i], 0, 1, 0 };

		ck_assert_int_eq(want(t, &run), 0);
	}
}

static void let_go(struct tenant *t, uint32_t n)
{
	for (uint32_t i = 1; i <= n; i++) {
		struct page_run run = { t->ranges[t->n - i], 0, 1, 0 };

		page_unpin(t->pager, &run, 1);
	}
	pager_unreserve(t->pager, n * PAGE);
	t->n_held = 0;
}

/*
 * The first has more than has a place on its disk; the second has all of its memory in
 * use, and what it keeps is on disk; the third needs what the first has borrowed. It is the
 * first that gives up what it keeps: what the second could would help nobody.
 */
START_TEST(who_has_no_page_to_give_keeps_what_it_has)
{
	close_tenant(&borrower);
	close_tenant(&owner);
	accounts_init(&accounts, 16 * PAGE, 64 * PAGE);
	open_other(&borrower, "borrower", 12, 8, 8); /* shares of 8, 3, 5 */
	open_other(&owner, "owner", 3, 16, 3);
	open_other(&third, "third", 12, 16, 5);
	while (owner.n < 6)
		ck_assert_int_eq(make(&owner), 0);
	hold(&owner, 3);
	while (borrower.n < 12)
		ck_assert_int_eq(make(&borrower), 0);
	third.keeps = 0; /* they are all in use */
	for (int i = 0; i < 11; i++) {
		ck_assert_int_eq(make(&third), 0);
		ck_assert_int_eq(pager_reserve(third.pager, PAGE), 0);
		ck_assert_int_eq(
			want(&third,
			     &(struct page_run){ third.ranges[i], 0, 1, 0 }),
			0);
	}
	ck_assert_uint_eq(owner.n_gone, 0);
	ck_assert_uint_gt(borrower.n_gone, 0);
	let_go(&third, 11);
	let_go(&owner, 3);
	all_hold(&owner);
	all_hold(&borrower);
	close_tenant(&third);
}
END_TEST

/* ---- what becomes durable ---------------------------------------------------------- */

static void on_durable(struct wait *w, int ret)
{
	(void)w;
	ck_assert_int_eq(ret, 0);
	n_persisting--;
}

/*
 * The disk is full of what is kept and becomes durable just now, so none of it can be given up. A
 * page that is wanted meanwhile is waited for, not refused.
 */
START_TEST(what_becomes_durable_can_be_given_up_soon)
{
	struct range_persist p[10];
	struct page_run run = { .n = 1 };

	close_tenant(&borrower);
	borrower.pager = NULL;
	close_tenant(&owner);
	accounts_init(&accounts, 4 * PAGE, 12 * PAGE);
	open_other(&owner, "owner", 4, 24, 1);
	while (owner.n < 16)
		ck_assert_int_eq(make(&owner), 0);
	ck_assert_uint_eq(slots(&owner), 12 * PAGE);
	for (uint32_t i = 0; i < 10; i++) {
		ck_assert_uint_eq(range_n_lower(owner.ranges[i]), 1);
		p[i] = (struct range_persist){ .wait.done = on_durable,
					       .range = owner.ranges[i],
					       .key = { i + 1, i + 1 },
					       .meta = "x",
					       .meta_bytes = 1 };
		n_persisting++;
		ck_assert_int_eq(range_persist(&p[i]), 0);
	}
	owner.n_held = 6; /* in use */
	run.range = owner.ranges[10];
	ck_assert_uint_eq(range_n_lower(run.range), 1);
	ck_assert_int_eq(pager_reserve(owner.pager, PAGE), 0);
	ck_assert_int_eq(want(&owner, &run), 0);
	ck_assert(rig_mem_holds(&run, 10));
	page_unpin(owner.pager, &run, 1);
	pager_unreserve(owner.pager, PAGE);
	while (n_persisting)
		turn();
	ck_assert_uint_gt(owner.n_gone, 0);
	owner.n_held = 0;
	all_hold(&owner);
	open_tenant(&borrower, "borrower", 0, 1); /* for the end */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("lent");
	TCase *t = tcase_create("lent");
	SRunner *sr;
	int n;

	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_share_comes_back_to_who_pages_out);
	tcase_add_test(t, a_share_comes_back_to_who_makes_durable);
	tcase_add_test(t, a_loan_is_not_called_back_for_a_loan);
	tcase_add_test(t, who_has_no_page_to_give_keeps_what_it_has);
	tcase_add_test(t, what_becomes_durable_can_be_given_up_soon);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n != 0;
}
