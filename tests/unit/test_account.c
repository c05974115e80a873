/*
 * test_account.c - shares by floor and weight; several pagers on one pool
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/mem/move.h"
#include "kvd/mem/stores.h"
#include "tests/rig/rig_mem.h"

#define M ACCOUNT_MEMORY
#define D ACCOUNT_DISK

/* ---- shares ------------------------------------------------------------- */

static struct accounts as;
static struct account acc[4];

static void open_account(int i, uint64_t limit, uint64_t floor, uint32_t weight)
{
	const struct account_conf c = { .limit = { limit, 10000 },
					.floor = { floor, 0 },
					.weight = weight };

	account_open(&as, &acc[i], &c, 0);
}

START_TEST(shares_are_floor_and_weight)
{
	accounts_init(&as, 1000, 100000);
	open_account(0, 1000, 100, 1);
	open_account(1, 1000, 200, 3);
	open_account(2, 1000, 0, 3);
	ck_assert_uint_eq(account_share(&acc[0], M), 200);
	ck_assert_uint_eq(account_share(&acc[1], M), 500);
	ck_assert_uint_eq(account_share(&acc[2], M), 300);
	accounts_check(&as);
}
END_TEST

/* What a limit cuts off goes to the others; if all fit, each has its limit. */
START_TEST(limits_cut_off)
{
	accounts_init(&as, 1000, 100000);
	open_account(0, 100, 0, 100);
	open_account(1, 1000, 0, 1);
	open_account(2, 1000, 0, 2);
	ck_assert_uint_eq(account_share(&acc[0], M), 100);
	/* a byte may be left over */
	ck_assert_uint_ge(account_share(&acc[1], M), 299);
	ck_assert_uint_ge(account_share(&acc[2], M), 599);
	accounts_init(&as, 1000, 100000);
	open_account(0, 700, 0, 1);
	open_account(1, 200, 10, 7);
	open_account(2, 100, 0, 5);
	ck_assert_uint_eq(account_share(&acc[0], M), 700);
	ck_assert_uint_eq(account_share(&acc[1], M), 200);
	ck_assert_uint_eq(account_share(&acc[2], M), 100);
}
END_TEST

START_TEST(what_cannot_go_to_disk_is_fixed)
{
	const struct account_conf c = { .limit = { 900, 0 }, .weight = 1 };

	accounts_init(&as, 1000, 100000);
	account_open(&as, &acc[0], &c, 0);
	open_account(1, 1000, 0, 1);
	ck_assert_uint_eq(account_share(&acc[0], M), 500);
	ck_assert_uint_eq(account_limit_room(&acc[0], M), 500);
	account_charge(&acc[0], M, 500, 0);
	account_charge(&acc[1], M, 500, 0);
	acc[1].demand = 100;
	account_round(&as);
	ck_assert_ptr_eq(account_victim(&as, M), &acc[1]);
}
END_TEST

START_TEST(the_victim_is_most_above_its_share)
{
	accounts_init(&as, 1000, 100000);
	open_account(0, 1000, 300, 1); /* share 500 */
	open_account(1, 1000, 300, 1);
	account_charge(&acc[0], M, 600, 0);
	account_charge(&acc[1], M, 400, 0);
	acc[1].demand = 50;
	account_round(&as);
	ck_assert_ptr_eq(account_victim(&as, M), &acc[0]);
	acc[1].demand = 250; /* now it would be above */
	ck_assert_ptr_eq(account_victim(&as, M), &acc[1]);
	acc[1].passed = as.round; /* all of it is pinned */
	ck_assert_ptr_eq(account_victim(&as, M), &acc[0]);
	account_leave(&acc[0], 300); /* down to its floor */
	ck_assert_ptr_null(account_victim(&as, M));
	account_round(&as);
	account_leave(&acc[1], 100);
	ck_assert_ptr_eq(account_victim(&as, M), &acc[1]); /* its own demand */
	ck_assert_ptr_eq(account_neediest(&as), &acc[1]);
}
END_TEST

START_TEST(loans_are_not_renewed_over_a_share_that_is_owed)
{
	accounts_init(&as, 1000, 100000);
	open_account(0, 1000, 100, 1); /* share 500 */
	open_account(1, 1000, 100, 1);
	ck_assert_int_eq(account_reserve(&acc[0], 901), -ENOSPC);
	ck_assert_int_eq(account_reserve(&acc[0], 400), 0);
	ck_assert_int_eq(account_reserve(&acc[0], 500), 0); /* a loan of 400 */
	accounts_check(&as);
	ck_assert_int_eq(account_reserve(&acc[1], 100), 0); /* its floor */
	ck_assert_int_eq(account_reserve(&acc[1], 200), -EAGAIN); /* owed */
	account_unreserve(&acc[0], 400);
	ck_assert_int_eq(account_reserve(&acc[0], 100), -EAGAIN);
	ck_assert_int_eq(account_reserve(&acc[1], 200), 0);
	ck_assert_int_eq(account_reserve(&acc[0], 100), 0);
	accounts_check(&as);
	account_unreserve(&acc[0], 600);
	ck_assert_int_eq(account_reserve(&acc[0], 700), 0); /* 300 held */
	ck_assert_int_eq(account_reserve(&acc[1], 100), -EAGAIN);
	account_unowe(&acc[1]); /* it went away */
	account_unreserve(&acc[0], 700);
	ck_assert_int_eq(account_reserve(&acc[0], 650), 0);
	accounts_check(&as);
}
END_TEST

/* What is small and goes before others in line does not end what is owed to these. */
START_TEST(a_small_one_is_not_what_was_owed)
{
	accounts_init(&as, 1000, 100000);
	open_account(0, 1000, 100, 1); /* share 500 */
	open_account(1, 1000, 100, 1);
	ck_assert_int_eq(account_reserve(&acc[0], 700), 0); /* a loan of 200 */
	ck_assert_int_eq(account_reserve(&acc[1], 400), -EAGAIN); /* owed */
	ck_assert_int_eq(account_reserve(&acc[1], 10), 0); /* a fault's */
	account_unreserve(&acc[0], 300);
	ck_assert_int_eq(account_reserve(&acc[0], 300), -EAGAIN);
	account_unreserve(&acc[1], 10);
	ck_assert_int_eq(account_reserve(&acc[1], 400), 0);
	ck_assert_int_eq(account_reserve(&acc[0], 200), 0);
	accounts_check(&as);
}
END_TEST

START_TEST(byte_seconds_are_an_integral)
{
	accounts_init(&as, 1000, 100000);
	open_account(0, 1000, 0, 1);
	account_charge(&acc[0], M, 100, 1000000000u);
	account_charge(&acc[0], M, 100, 3000000000u);
	account_uncharge(&acc[0], M, 150, 4000000000u);
	ck_assert_double_eq_tol(account_byte_seconds(&acc[0], M, 6000000000u),
				100 * 2 + 200 * 1 + 50 * 2, 1e-6);
	ck_assert_double_eq_tol(account_byte_seconds(&acc[0], D, 6000000000u),
				0, 1e-9);
}
END_TEST

/* ---- several pagers ------------------------------------------------------- */

#define PAGE	 4096u
#define N_PAGERS 3
#define N_RANGES 6
#define N_PAGES	 8
#define N_WANTS	 4

static uint64_t state;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

/* One want of a pager; pins from told to a random later step. */
struct holder {
	struct page_want want;
	struct page_run run;
	struct tenant *t;
	int state; /* 0 none, 1 waits, 2 pinned */
	uint32_t age;
};

struct tenant {
	struct pager *pager;
	struct range *ranges[N_RANGES];
	uint32_t seed[N_RANGES][N_PAGES];
	struct holder holders[N_WANTS];
	uint64_t n_evicted, used, page;
	uint64_t n_served;
	uint32_t n_told; /* that a reservation may go now */
	int cancelled; /* pages still leave for a want that is gone, or was served */
};

struct rig {
	struct loop *loop;
	struct stores *stores;
	struct accounts as;
	struct tenant t[N_PAGERS];
	char dir[64];
};

static void reservable(void *ctx)
{
	((struct tenant *)ctx)->n_told++;
}

static void rig_open(struct rig *r, uint64_t pool_pages,
		     const uint64_t conf[N_PAGERS][3])
{
	struct stores_conf sc = { .depth = 16, .n = 1, .scratch = 1 };
	char path[128], err[256] = "";

	memset(r, 0, sizeof(*r));
	strcpy(r->dir, "/var/tmp/kvd-acc-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(r->dir));
	ck_assert_int_eq(loop_new(&r->loop), 0);
	ck_assert_int_eq(loop_start_workers(r->loop, 2), 0);
	snprintf(path, sizeof(path), "%s/store", r->dir);
	sc.loop = r->loop;
	sc.disks[0] = (struct stores_disk_conf){ path, 64u << 20 };
	ck_assert_int_eq(stores_new(&r->stores, &sc), 0);
	accounts_init(&r->as, pool_pages * PAGE, 4000 * PAGE);
	for (int i = 0; i < N_PAGERS; i++) {
		const struct pager_conf pc = {
			.name = "t",
			.memory_bytes = conf[i][0] * PAGE,
			.memory_floor = conf[i][1] * PAGE,
			.disk_bytes = 1000 * PAGE,
			.weight = (uint32_t)conf[i][2],
			.accounts = &r->as,
			.numa_node = -1,
			.policy = "lru",
			.loop = r->loop,
			.stores = r->stores,
			.reservable = reservable,
			.ctx = &r->t[i],
		};

		ck_assert_int_eq(pager_new(&r->t[i].pager, &pc), 0);
	}
	ck_assert_int_eq(stores_open(r->stores, NULL, NULL, err, sizeof(err)),
			 0);
}

static int waits(const struct tenant *t)
{
	for (int i = 0; i < N_WANTS; i++)
		if (t->holders[i].state == 1)
			return 1;
	return 0;
}

/* The books are right, and nobody was pushed below its floor by another. */
static void rig_turn(struct rig *r)
{
	int waited[N_PAGERS];

	for (int i = 0; i < N_PAGERS; i++)
		waited[i] = waits(&r->t[i]);
	stores_turn(r->stores);
	ck_assert_int_eq(loop_turn(r->loop, 0), 0);
	for (int i = 0; i < N_PAGERS; i++) {
		struct tenant *t = &r->t[i];
		const uint64_t floor = t->pager->account.side[M].floor;
		const uint64_t used = pager_used(t->pager, M);

		ck_assert_msg(used >= t->used || waited[i] || waits(t) ||
				      t->cancelled || used >= floor,
			      "tenant %d: %lu below its floor of %lu", i,
			      (unsigned long)used, (unsigned long)floor);
		ck_assert_uint_le(t->pager->pinned_bytes,
				  t->pager->account.reserved);
		pager_check(t->pager);
		t->used = used;
		t->cancelled = (t->cancelled || waited[i]) &&
			       t->pager->account.leaving;
	}
}

static void rig_close(struct rig *r)
{
	for (int i = 0; i < N_PAGERS; i++) {
		for (int k = 0; k < N_RANGES; k++)
			range_free(r->t[i].ranges[k]);
		pager_free(r->t[i].pager);
	}
	stores_free(r->stores);
	loop_free(r->loop);
	ck_assert_int_eq(rmdir(r->dir), 0);
}

static void fill(const struct holder *h)
{
	const uint32_t k = (uint32_t)(h - h->t->holders); /* any number */

	for (uint32_t i = 0; i < h->run.n; i++) {
		struct page_run one = { h->run.range, h->run.first + i, 1, 0 };
		uint32_t *seed = NULL;

		for (int n = 0; n < N_RANGES; n++)
			if (h->t->ranges[n] == h->run.range)
				seed = &h->t->seed[n][one.first];
		ck_assert_ptr_nonnull(seed);
		if (*seed)
			ck_assert(rig_mem_holds(&one, *seed));
		if (h->run.flags & PAGE_WRITE) {
			*seed = rnd(1u << 30) + 1 + k;
			rig_mem_fill(&one, *seed);
		}
	}
}

static void told(struct wait *w, int ret)
{
	struct holder *h = container_of(container_of(w, struct page_want, wait),
					struct holder, want);

	ck_assert_int_eq(ret, 0); /* who has reserved gets it */
	h->state = 2;
	h->t->n_served++;
	fill(h);
}

/* A page that another want of the tenant writes is left alone: see page_want. */
static int overlaps(const struct tenant *t, const struct page_run *run)
{
	for (int i = 0; i < N_WANTS; i++) {
		const struct holder *h = &t->holders[i];

		if (h->state && h->run.range == run->range &&
		    h->run.first < run->first + run->n &&
		    run->first < h->run.first + h->run.n)
			return 1;
	}
	return 0;
}

static void begin(struct tenant *t, struct holder *h)
{
	const uint32_t k = rnd(N_RANGES);
	int ret;

	if (!t->ranges[k])
		ck_assert_int_eq(
			range_new(t->pager, PAGE, N_PAGES, &t->ranges[k]), 0);
	h->run = (struct page_run){ .range = t->ranges[k],
				    .first = rnd(N_PAGES),
				    .flags = rnd(2) ? PAGE_WRITE : 0 };
	h->run.n = 1 + rnd(N_PAGES - h->run.first);
	if (overlaps(t, &h->run) || pager_reserve(t->pager, h->run.n * PAGE))
		return;
	h->want = (struct page_want){ .wait.done = told,
				      .runs = &h->run,
				      .n_runs = 1,
				      .prio = rnd(2) ? WANT_NEXT : WANT_STEP };
	h->t = t;
	h->age = 0;
	h->state = 1;
	ret = page_want(t->pager, &h->want);
	ck_assert_int_ge(ret, 0);
	if (ret)
		told(&h->want.wait, 0);
}

static void end(struct tenant *t, struct holder *h)
{
	if (h->state == 1) {
		page_want_cancel(t->pager, &h->want);
		t->cancelled = 1;
	} else {
		page_unpin(t->pager, &h->run, 1);
	}
	pager_unreserve(t->pager, h->run.n * PAGE);
	h->state = 0;
}

static void step(struct rig *r, uint32_t greedy)
{
	struct tenant *t = &r->t[rnd(greedy) ? 0 : rnd(N_PAGERS)];
	struct holder *h = &t->holders[rnd(N_WANTS)];

	if (!h->state)
		begin(t, h);
	else if (h->state == 2 || !rnd(30))
		end(t, h);
	for (int i = 0; i < N_PAGERS; i++)
		for (int k = 0; k < N_WANTS; k++) {
			h = &r->t[i].holders[k];
			h->age += h->state == 1;
			/* nobody waits for ever: pins of others end */
			ck_assert_uint_lt(h->age, 200000);
		}
	rig_turn(r);
}

static void all_end(struct rig *r)
{
	for (int i = 0; i < N_PAGERS; i++)
		for (int k = 0; k < N_WANTS; k++)
			if (r->t[i].holders[k].state)
				end(&r->t[i], &r->t[i].holders[k]);
}

static const uint64_t tenants[][N_PAGERS][3] = {
	{ { 20, 4, 1 }, { 20, 6, 1 }, { 20, 0, 2 } },
	{ { 16, 0, 1 }, { 16, 16, 1 }, { 8, 0, 1 } },
	{ { 24, 8, 1 }, { 24, 8, 1 }, { 24, 8, 1 } },
};

static int somebody_waits(const struct rig *r)
{
	int n = 0;

	for (int i = 0; i < N_PAGERS; i++)
		n += !!waits(&r->t[i]);
	return n;
}

START_TEST(random_pagers_keep_their_floors)
{
	struct rig r;

	state = 77 + (uint64_t)_i;
	rig_open(&r, 24, tenants[_i]);
	for (int i = 0; i < 12000; i++)
		step(&r, i / 4000 % 2 ? 8 : 2);
	/* whoever waits now is told without anybody else letting go */
	for (uint64_t t0 = clock_ns();
	     somebody_waits(&r) && rig_mem_patient(t0);)
		rig_turn(&r);
	for (int i = 0; i < N_PAGERS; i++) {
		ck_assert(!waits(&r.t[i]));
		ck_assert_uint_gt(r.t[i].n_served, 20);
		pager_check(r.t[i].pager);
	}
	all_end(&r);
	rig_close(&r);
}
END_TEST

/* A fills all memory; B's share is there for it, page after page. */
START_TEST(a_loan_comes_back_at_once)
{
	static const uint64_t conf[N_PAGERS][3] = { { 32, 0, 1 },
						    { 32, 8, 1 },
						    { 1, 0, 1 } };
	struct rig r;
	struct tenant *a, *b;

	rig_open(&r, 32, conf);
	a = &r.t[0];
	b = &r.t[1];
	state = 1;
	for (int i = 0; i < 4000; i++) {
		struct holder *h = &a->holders[0];

		if (h->state)
			end(a, h);
		else
			begin(a, h);
		for (uint64_t t0 = clock_ns();
		     h->state == 1 && rig_mem_patient(t0);)
			rig_turn(&r);
		if (pager_used(a->pager, M) >= 31 * PAGE)
			break;
	}
	ck_assert_uint_ge(pager_used(a->pager, M), 31 * PAGE);
	ck_assert_int_eq(range_new(b->pager, PAGE, N_PAGES, &b->ranges[0]), 0);
	b->holders[0] = (struct holder){ .t = b,
					 .run = { b->ranges[0], 0, N_PAGES,
						  PAGE_WRITE },
					 .want = { .wait.done = told,
						   .runs = &b->holders[0].run,
						   .n_runs = 1 },
					 .state = 1 };
	ck_assert_int_eq(pager_reserve(b->pager, N_PAGES * PAGE), 0);
	ck_assert_int_eq(page_want(b->pager, &b->holders[0].want), 0);
	for (uint64_t t0 = clock_ns();
	     b->holders[0].state == 1 && rig_mem_patient(t0);)
		rig_turn(&r);
	ck_assert_int_eq(b->holders[0].state, 2);
	ck_assert_uint_eq(pager_used(b->pager, M), N_PAGES * PAGE);
	all_end(&r);
	rig_close(&r);
}
END_TEST

/* A waits with a loan as B is owed its share; once B has it, A is told. */
START_TEST(who_waits_for_a_loan_is_told_when_nothing_is_owed)
{
	static const uint64_t conf[N_PAGERS][3] = { { 32, 0, 1 },
						    { 32, 0, 1 },
						    { 2, 0, 1 } };
	struct pager *a, *b;
	struct rig r;
	uint32_t n;

	rig_open(&r, 32, conf);
	a = r.t[0].pager; /* shares of 15 */
	b = r.t[1].pager;
	ck_assert_int_eq(pager_reserve(a, 20 * PAGE), 0);
	ck_assert_int_eq(pager_reserve(b, 14 * PAGE), -EAGAIN);
	pager_unreserve(a, 10 * PAGE);
	while (!r.t[1].n_told)
		rig_turn(&r);
	ck_assert_int_eq(pager_reserve(a, 8 * PAGE), -EAGAIN);
	n = r.t[0].n_told;
	ck_assert_int_eq(pager_reserve(b, 14 * PAGE), 0);
	for (uint64_t t0 = clock_ns();
	     r.t[0].n_told == n && rig_mem_patient(t0);)
		rig_turn(&r);
	ck_assert_uint_eq(r.t[0].n_told, n + 1);
	ck_assert_int_eq(pager_reserve(a, 8 * PAGE), 0);
	pager_unreserve(a, 18 * PAGE);
	pager_unreserve(b, 14 * PAGE);
	rig_close(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("account");
	TCase *t = tcase_create("account");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, shares_are_floor_and_weight);
	tcase_add_test(t, limits_cut_off);
	tcase_add_test(t, what_cannot_go_to_disk_is_fixed);
	tcase_add_test(t, the_victim_is_most_above_its_share);
	tcase_add_test(t, loans_are_not_renewed_over_a_share_that_is_owed);
	tcase_add_test(t, a_small_one_is_not_what_was_owed);
	tcase_add_test(t, byte_seconds_are_an_integral);
	tcase_add_loop_test(t, random_pagers_keep_their_floors, 0, 3);
	tcase_add_test(t, a_loan_comes_back_at_once);
	tcase_add_test(t, who_waits_for_a_loan_is_told_when_nothing_is_owed);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
