/*
 * test_lent_model.c - tenants on one memory and one disk pool: whatever they keep, free, write
 * and make durable, who stays within its share gets what it asks for
 *
 * Ranges are used or kept for reuse; those in use are at most the tenant's place, all of them its
 * capacity, as segment pools see to. Kept ones may be given up at any time. Budgets are
 * small, so that everything is lent and called back all the time. The seed is printed.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/move.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_mem.h"

#define PAGE	  4096u
#define N_TENANTS 3
#define N_RANGES  40u
#define MOST	  4u /* pages of a range */

static struct loop *loop;
static struct stores *stores;
static struct accounts accounts;
static uint64_t seed, n_done[8];

struct item {
	struct range *range;
	struct tenant *t;
	uint32_t n, fill;
	int kept; /* for reuse: may be given up */
	int open; /* a want: 1 on its way, 2 told */
	int persisting;
	struct page_want want;
	struct page_run run;
	struct range_persist rp;
	int ret;
};
static struct tenant {
	struct pager *pager;
	struct item items[N_RANGES];
	uint64_t bytes, live; /* of all; of those in use */
	uint64_t capacity;
	int makes; /* room for a range of its own */
	uint32_t n_given_up;
} tenants[N_TENANTS];

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(rig_random(&seed) % n);
}

static uint64_t bytes_of(const struct item *it)
{
	return (uint64_t)it->n * PAGE;
}

static void give_up(struct item *it)
{
	struct tenant *t = it->t;

	ck_assert(it->kept && !it->open && !it->persisting);
	it->kept = 0;
	range_free(it->range);
	it->range = NULL;
	t->bytes -= bytes_of(it);
	t->n_given_up++;
}

static int asks(const struct tenant *t)
{
	int n = t->makes;

	for (uint32_t i = 0; i < N_RANGES; i++)
		n += t->items[i].open == 1 || t->items[i].persisting;
	return n;
}

/* For the sake of others: it is above a floor, in memory with pages that could go. */
static int may_be_asked(const struct tenant *t)
{
	const struct account_side *s = t->pager->account.side;

	return s[ACCOUNT_DISK].used > s[ACCOUNT_DISK].floor ||
	       (s[ACCOUNT_MEMORY].used > s[ACCOUNT_MEMORY].floor &&
		t->pager->policy_bytes);
}

static int reclaim(void *ctx)
{
	struct tenant *t = ctx;
	const uint32_t from = rnd(N_RANGES);

	ck_assert(asks(t) || may_be_asked(t));

	for (uint32_t i = 0; i < N_RANGES; i++) {
		struct item *it = &t->items[(from + i) % N_RANGES];

		if (!it->range || !it->kept || it->persisting)
			continue;
		give_up(it);
		return 0;
	}
	return -ENOSPC;
}

static void look_over(void)
{
	for (int i = 0; i < N_TENANTS; i++)
		pager_check(tenants[i].pager);
}

static void turn(void)
{
	stores_turn(stores);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	look_over();
}

/* ---- operations ------------------------------------------------------------- */

static void on_want(struct wait *w, int ret)
{
	struct item *it = container_of(container_of(w, struct page_want, wait),
				       struct item, want);

	ck_assert_msg(!ret, "a want of who has reserved: %s", strerror(-ret));
	it->open = 2;
}

static void begin_want(struct item *it, uint32_t flags)
{
	int ret;

	if (pager_reserve(it->t->pager, bytes_of(it)))
		return;
	it->run = (struct page_run){ it->range, 0, it->n, flags };
	it->want = (struct page_want){ .wait.done = on_want,
				       .runs = &it->run,
				       .n_runs = 1,
				       .prio = rnd(2) ? WANT_STEP : WANT_NEXT };
	list_init(&it->want.node);
	list_init(&it->want.call.node);
	it->open = 1;
	ret = page_want(it->t->pager, &it->want);
	ck_assert_int_ge(ret, 0);
	if (ret)
		it->open = 2;
	n_done[0]++;
}

static void end_want(struct item *it)
{
	static uint32_t next_fill;

	if (it->fill)
		ck_assert(rig_mem_holds(&it->run, it->fill));
	if (it->run.flags & PAGE_WRITE) {
		it->fill = ++next_fill;
		rig_mem_fill(&it->run, it->fill);
	}
	page_unpin(it->t->pager, &it->run, 1);
	pager_unreserve(it->t->pager, bytes_of(it));
	it->open = 0;
	n_done[1]++;
}

static void op_new(struct tenant *t, struct item *it)
{
	const uint32_t n = 1 + rnd(MOST);

	if (t->live + (uint64_t)n * PAGE > pager_place_bytes(t->pager))
		return;
	t->makes = 1;
	while (t->bytes + (uint64_t)n * PAGE > t->capacity)
		if (reclaim(t))
			break;
	t->makes = 0;
	if (t->bytes + (uint64_t)n * PAGE > t->capacity)
		return;
	memset(it, 0, sizeof(*it));
	it->t = t;
	it->n = n;
	ck_assert_int_eq(range_new(t->pager, PAGE, n, &it->range), 0);
	t->bytes += bytes_of(it);
	t->live += bytes_of(it);
	begin_want(it, PAGE_WRITE);
	n_done[2]++;
}

static void on_durable(struct wait *w, int ret)
{
	struct item *it = container_of(
		container_of(w, struct range_persist, wait), struct item, rp);

	it->persisting = 0;
	it->ret = ret;
	n_done[ret ? 6 : 3]++;
	/* of what is beyond its share when it is begun */
	ck_assert_msg(!ret || ret == -ENOSPC, "durable: %s", strerror(-ret));
}

/* Beyond its share that may fail. */
static void op_persist(struct item *it)
{
	static uint64_t key;

	if (it->open || !it->fill || it->persisting || range_durable(it->range))
		return;
	it->rp = (struct range_persist){ .wait.done = on_durable,
					 .range = it->range,
					 .key = { ++key, key },
					 .meta = "x",
					 .meta_bytes = 1 };
	if (!range_persist(&it->rp))
		it->persisting = 1;
}

static void keep(struct item *it, int kept)
{
	const uint64_t n = bytes_of(it);

	if (it->kept == kept)
		return;
	if (!kept && it->t->live + n > pager_place_bytes(it->t->pager))
		return;
	it->kept = kept;
	it->t->live += kept ? -n : n;
	range_hint(it->range, kept ? RANGE_COLD : RANGE_HOT);
	n_done[4]++;
}

static void step(uint32_t greedy)
{
	struct tenant *t = &tenants[rnd(greedy) ? 0 : rnd(N_TENANTS)];
	struct item *it = &t->items[rnd(N_RANGES)];
	const uint32_t what = rnd(16);

	if (!it->range) {
		op_new(t, it);
	} else if (it->open == 2) {
		end_want(it);
	} else if (it->open) {
		turn();
	} else if (what < 5) {
		if (it->kept)
			keep(it, 0);
		if (!it->kept && !it->persisting)
			begin_want(it,
				   range_durable(it->range) || it->persisting
					   ? 0
					   : rnd(2) * PAGE_WRITE);
	} else if (what < 9) {
		if (it->fill)
			keep(it, 1);
	} else if (what < 11) {
		op_persist(it);
	} else if (what < 12 && !it->persisting) {
		if (!it->kept)
			keep(it, 1);
		give_up(it);
		n_done[5]++;
	} else {
		turn();
	}
}

/* ---- the run ------------------------------------------------------------------- */

/* memory and disk in pages: limit, floor; weight */
static const struct {
	uint64_t memory, memory_floor, disk, disk_floor;
	uint32_t weight;
} conf[][N_TENANTS] = {
	{ { 24, 0, 60, 0, 1 }, { 24, 8, 60, 20, 1 }, { 24, 0, 60, 0, 2 } },
	{ { 30, 4, 80, 10, 1 }, { 30, 4, 80, 10, 4 }, { 30, 12, 40, 20, 1 } },
};
#define POOL_MEMORY 32u
#define POOL_DISK   80u

static void open_all(int k, const char *path)
{
	struct stores_conf sc = { .loop = NULL, .depth = 16, .n = 1 };
	char err[256] = "";

	ck_assert_int_eq(loop_new(&loop), 0);
	ck_assert_int_eq(loop_start_workers(loop, 2), 0);
	sc.loop = loop;
	sc.disks[0].path = path;
	sc.disks[0].bytes = 64u << 20;
	ck_assert_int_eq(stores_new(&stores, &sc), 0);
	accounts_init(&accounts, POOL_MEMORY * PAGE, POOL_DISK * PAGE);
	for (int i = 0; i < N_TENANTS; i++) {
		struct tenant *t = &tenants[i];
		const struct pager_conf pc = {
			.name = "t",
			.memory_bytes = conf[k][i].memory * PAGE,
			.memory_floor = conf[k][i].memory_floor * PAGE,
			.disk_bytes = conf[k][i].disk * PAGE,
			.disk_floor = conf[k][i].disk_floor * PAGE,
			.weight = conf[k][i].weight,
			.accounts = &accounts,
			.numa_node = -1,
			.policy = "density",
			.loop = loop,
			.stores = stores,
			.reclaim = reclaim,
			.ctx = t,
		};

		memset(t, 0, sizeof(*t));
		t->capacity = KV_MAX(pc.memory_bytes, pc.disk_bytes);
		ck_assert_int_eq(pager_new(&t->pager, &pc), 0);
	}
	ck_assert_msg(!stores_open(stores, NULL, NULL, err, sizeof(err)), "%s",
		      err);
}

static int busy(void)
{
	for (int i = 0; i < N_TENANTS; i++)
		for (uint32_t k = 0; k < N_RANGES; k++) {
			const struct item *it = &tenants[i].items[k];

			if (it->range && (it->open == 1 || it->persisting))
				return 1;
		}
	return 0;
}

static void close_all(void)
{
	for (uint64_t t0 = clock_ns(); busy() && rig_mem_patient(t0);)
		turn();
	ck_assert(!busy());
	for (int i = 0; i < N_TENANTS; i++) {
		for (uint32_t k = 0; k < N_RANGES; k++) {
			struct item *it = &tenants[i].items[k];

			if (it->range && it->open)
				end_want(it);
			range_free(it->range);
		}
		pager_free(tenants[i].pager);
	}
	stores_free(stores);
	loop_free(loop);
}

START_TEST(who_stays_within_its_share_gets_it)
{
	const char *s = getenv("KVD_SEED");
	const uint32_t n = getenv("KVD_LONG") ? 1000000 : 200000;
	char path[] = "/var/tmp/kvd-lentm-XXXXXX";
	uint32_t n_given_up = 0;

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("seed %llu\n", (unsigned long long)seed);
	ck_assert_int_ge(close(mkstemp(path)), 0);
	open_all(_i, path);
	ck_assert_int_eq(unlink(path), 0);
	for (uint32_t i = 0; i < n; i++)
		step(i / 5000 % 2 ? 6 : 1 + i / 10000 % 2);
	for (int i = 0; i < N_TENANTS; i++)
		n_given_up += tenants[i].n_given_up;
	printf("wants %llu, ended %llu, made %llu, durable %llu, kept %llu, freed %llu, no room %llu, given up %u\n",
	       (unsigned long long)n_done[0], (unsigned long long)n_done[1],
	       (unsigned long long)n_done[2], (unsigned long long)n_done[3],
	       (unsigned long long)n_done[4], (unsigned long long)n_done[5],
	       (unsigned long long)n_done[6], n_given_up);
	ck_assert_uint_gt(n_given_up, 0);
	ck_assert_uint_gt(n_done[3], 4 * n_done[6]);
	close_all();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("lent_model");
	TCase *t = tcase_create("lent_model");
	SRunner *sr;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(t, 3000);
	tcase_add_loop_test(t, who_stays_within_its_share_gets_it, 0, 2);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n != 0;
}
