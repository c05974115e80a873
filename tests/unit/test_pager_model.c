/*
 * test_pager_model.c - a pager does what a trivial model does, for any operations
 *
 * The model knows for each page of each range what was written last (or that it is
 * zeros), and who holds it. Budgets are small, so everything goes to disk and back all
 * the time; wants stay open while other things happen. The seed is printed.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kvd/mem/evict.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_mem.h"

#define N_RANGES 48u
#define N_WANTS	 6u
#define MOST	 12u /* pages of a range */
#define MEMORY	 (512u << 10)
#define DISK	 (4u << 20)

static struct rig_mem *r;
static uint64_t seed, n_done[8], next_fill;

struct item {
	struct range *range;
	uint32_t n, n_open; /* pages; open wants */
	uint64_t fill[MOST]; /* 0: zeros */
};
static struct item items[N_RANGES];

/* A want of one run, open or told. */
struct open_want {
	struct page_want want;
	struct page_run run;
	struct item *item; /* NULL: free */
	uint64_t reserved;
	int told, ret;
};
static struct open_want wants[N_WANTS];

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(rig_random(&seed) % n);
}

static struct page_run page_of(const struct open_want *w, uint32_t i)
{
	return (struct page_run){ w->run.range, w->run.first + i, 1, 0 };
}

static void look(const struct open_want *w)
{
	for (uint32_t i = 0; i < w->run.n; i++) {
		const struct page_run one = page_of(w, i);
		const uint64_t f = w->item->fill[w->run.first + i];
		const char *p = range_addr(one.range) +
				one.first * range_page_bytes(one.range);

		if (f)
			ck_assert(rig_mem_holds(&one, (uint32_t)f));
		else
			ck_assert(!p[0] && !memcmp(p, p + 1, 4095));
	}
}

static void fill(struct open_want *w)
{
	for (uint32_t i = 0; i < w->run.n; i++) {
		const struct page_run one = page_of(w, i);

		w->item->fill[w->run.first + i] = ++next_fill;
		rig_mem_fill(&one, (uint32_t)next_fill);
	}
}

static void done(struct wait *wait, int ret)
{
	struct open_want *w =
		container_of(container_of(wait, struct page_want, wait),
			     struct open_want, want);

	ck_assert(!w->told);
	w->told = 1;
	w->ret = ret;
}

static void finish(struct open_want *w, int pinned)
{
	if (pinned)
		page_unpin(r->pager, &w->run, 1);
	pager_unreserve(r->pager, w->reserved);
	w->item->n_open--;
	w->item = NULL;
}

/* What was told: the bytes are there, and may be written if asked for so. */
static void take(struct open_want *w)
{
	ck_assert_int_eq(w->ret, 0);
	if (w->run.flags & PAGE_WRITE && rnd(4))
		fill(w);
	else
		look(w);
	finish(w, 1);
	n_done[3]++;
}

/* ---- operations ------------------------------------------------------------- */

static void op_new(struct item *it)
{
	const uint32_t n = 1 + rnd(MOST);

	if (range_new(r->pager, rnd(3) ? 4096 : 16384, n, &it->range)) {
		it->range = NULL;
		return;
	}
	it->n = n;
	it->n_open = 0;
	memset(it->fill, 0, sizeof(it->fill));
	n_done[0]++;
}

/* Bytes of all ranges: they must have a place, as segment pools see to. */
static uint64_t bytes(void)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < N_RANGES; i++)
		if (items[i].range)
			sum += items[i].n * range_page_bytes(items[i].range);
	return sum;
}

/* Two wants of a range, one of which writes, would be two who write. */
static void op_want(struct item *it)
{
	struct open_want *w = &wants[rnd(N_WANTS)];
	int ret;

	if (w->item || it->n_open)
		return;
	memset(w, 0, sizeof(*w));
	w->run.first = rnd(it->n);
	w->run.n = 1 + rnd(it->n - w->run.first);
	w->run.range = it->range;
	w->run.flags = rnd(2) ? PAGE_WRITE : 0;
	w->reserved = w->run.n * range_page_bytes(it->range);
	if (pager_reserve(r->pager, w->reserved))
		return;
	list_init(&w->want.node);
	list_init(&w->want.call.node);
	w->want.runs = &w->run;
	w->want.n_runs = 1;
	w->want.prio = rnd(2) ? WANT_STEP : WANT_NEXT;
	w->want.wait.done = done;
	w->item = it;
	it->n_open = 1;
	ret = page_want(r->pager, &w->want);
	ck_assert_int_ge(ret, 0);
	n_done[1]++;
	if (ret)
		done(&w->want.wait, 0);
}

static void op_end(void)
{
	struct open_want *w = &wants[rnd(N_WANTS)];

	if (!w->item)
		return;
	if (w->told) {
		take(w);
	} else if (!rnd(8)) {
		page_want_cancel(r->pager, &w->want);
		finish(w, 0);
		n_done[2]++;
	}
}

static void op_free(struct item *it)
{
	if (it->n_open)
		return;
	if (it->n > 1 && rnd(2)) {
		it->n = 1 + rnd(it->n - 1);
		range_trim(it->range, it->n);
		n_done[4]++;
		return;
	}
	range_free(it->range);
	it->range = NULL;
	n_done[5]++;
}

static void op_tell(struct item *it)
{
	const struct page_run all = { it->range, 0, it->n, 0 };

	range_hint(it->range, (enum range_hint)rnd(3));
	range_class(it->range, rnd(it->n), 1, rnd(EVICT_KINDS));
	range_cost(it->range, 1 + (float)rnd(9));
	page_prefetch(r->pager, &all, 1);
	n_done[6]++;
}

/* Resident pages can be held without asking; they are what they were. */
static void op_hold(struct item *it)
{
	const uint32_t first = rnd(it->n);
	struct open_want w = { .item = it };
	uint32_t n;

	if (it->n_open) /* its bytes may change */
		return;
	n = page_hold(it->range, first, it->n - first);
	w.run = (struct page_run){ it->range, first, n, 0 };
	look(&w);
	page_let_go(it->range, first, n);
	n_done[7] += n;
}

static void step(void)
{
	struct item *it = &items[rnd(N_RANGES)];
	const uint32_t what = rnd(100);

	if (what >= 70) {
		rig_mem_turn(r);
	} else if (what >= 45) {
		op_end();
	} else if (!it->range) {
		if (bytes() < DISK - (MOST << 14))
			op_new(it);
	} else if (what >= 15) {
		op_want(it);
	} else if (what >= 11) {
		op_free(it);
	} else if (what >= 6) {
		op_tell(it);
	} else {
		op_hold(it);
	}
	if (what == 70) /* in the middle of whatever goes on */
		pager_check(r->pager);
}

/* Everything is brought to its end, and every page looked at. */
static void settle(void)
{
	for (uint32_t i = 0; i < N_WANTS; i++) {
		while (wants[i].item && !wants[i].told)
			rig_mem_turn(r);
		if (wants[i].item)
			take(&wants[i]);
	}
	rig_mem_settle(r);
	pager_check(r->pager);
	for (uint32_t i = 0; i < N_RANGES; i++) {
		struct open_want w = { .item = &items[i] };

		if (!items[i].range)
			continue;
		w.run = (struct page_run){ items[i].range, 0, items[i].n, 0 };
		ck_assert_int_eq(rig_mem_want(r, &w.run, 1), 0);
		look(&w);
		page_unpin(r->pager, &w.run, 1);
	}
}

START_TEST(a_pager_does_what_a_model_does)
{
	const char *s = getenv("KVD_SEED");
	const uint32_t n = getenv("KVD_LONG") ? 1000000 : 100000;
	struct pager_info info;

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("seed %llu, %s\n", (unsigned long long)seed,
	       evict_policies[_i]->name);
	r = rig_mem_open(
		(struct rig_mem_options){ .memory_bytes = MEMORY,
					  .disk_bytes = DISK,
					  .policy = evict_policies[_i]->name });
	for (uint32_t i = 0; i < n; i++) {
		step();
		if (i % (n / 20) == n / 20 - 1)
			settle();
	}
	pager_info(r->pager, &info);
	printf("ranges %llu, wants %llu, cancelled %llu, told %llu, cut %llu, "
	       "freed %llu, hints %llu, held %llu; %llu pages read, %llu "
	       "written\n",
	       (unsigned long long)n_done[0], (unsigned long long)n_done[1],
	       (unsigned long long)n_done[2], (unsigned long long)n_done[3],
	       (unsigned long long)n_done[4], (unsigned long long)n_done[5],
	       (unsigned long long)n_done[6], (unsigned long long)n_done[7],
	       (unsigned long long)info.n_read_total,
	       (unsigned long long)info.n_written_total);
	for (size_t i = 0; i < KV_ARRAY_LEN(n_done); i++)
		ck_assert_uint_gt(n_done[i], 0);
	/* it was on disk and came back; how often, the policy and the disk say */
	ck_assert_uint_gt(info.n_read_total, n / 1000);
	for (uint32_t i = 0; i < N_RANGES; i++)
		range_free(items[i].range);
	rig_mem_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pager_model");
	TCase *tc = tcase_create("pager_model");
	int n = 0, n_policies = 0;
	SRunner *sr;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 3000);
	while (getenv("KVD_LONG") && evict_policies[n_policies])
		n_policies++; /* else the first only */
	tcase_add_loop_test(tc, a_pager_does_what_a_model_does, 0,
			    n_policies ? n_policies : 1);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
