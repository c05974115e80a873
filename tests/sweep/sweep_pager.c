/*
 * sweep_pager.c - every fault point of a pager's life, one at a time
 *
 * The scenario (spaces, frames, more ranges than memory holds, written back, read
 * again, made durable, cut, freed, closed, opened again and adopted) is run with the 1st,
 * 2nd, 3rd... point failing, once and for good, until a run meets none; then each of
 * its allocations. In each run:
 *
 *  (1) every want and every persist is told: success, or a documented error;
 *  (2) a want that succeeds finds the bytes that were written, or zeros where none were;
 *  (3) budgets hold, the invariants too, everything can be closed, and nothing stays open.
 *
 * Then it is opened without faults: what was acknowledged as durable is there. Most points
 * are writes and flushes of the store's index, which sweep_store goes through too: of
 * those beyond the first EACH one in SOME is taken, all with KVD_LONG=1.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "io/fault.h"
#include "kvd/mem/durable.h"
#include "tests/rig/rig_alloc.h"
#include "tests/rig/rig_mem.h"

#define N_RANGES  8u
#define N_PAGES	  6u
#define PAGE	  16384u
#define MEMORY	  (20u * PAGE) /* of 48 */
#define DISK	  (64u * PAGE)
#define MAX_STEPS 4000
#define EACH	  60u
#define SOME	  7u

enum state { NONE, WRITTEN, CUT, DOUBT, ACKED };

struct life {
	struct rig_mem m; /* dir is ours */
	char path[64];
	enum kio_engine_kind kind;
	struct range *ranges[N_RANGES]; /* NULL: could not be had, or freed */
	enum state state[N_RANGES];
	struct range *found[N_RANGES];
	int err; /* armed; 0: none */
	uint64_t nth; /* the point that fails; 0: none */
	int forever;
	int n_failed, n_acked, n_held, n_closed;
};

static struct life l;

static void expect(int ret)
{
	ck_assert_msg(!ret || ret == -l.err || ret == -EIO || ret == -ENOSPC ||
			      ret == -EBADMSG || ret == -ENOMEM,
		      "%s", strerror(-ret));
	ck_assert_msg(!ret || l.err, "%s without a fault", strerror(-ret));
	l.n_failed += !!ret;
}

static int found(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	struct life *x = ctx;
	uint32_t i;

	ck_assert_uint_eq(r->meta_bytes, sizeof(i));
	memcpy(&i, r->meta, sizeof(i));
	ck_assert_uint_lt(i, N_RANGES);
	ck_assert_ptr_null(x->found[i]);
	return range_adopt(x->m.pager, i_disk, r, &x->found[i])
		       ? KIO_RECORD_ORPHAN
		       : KIO_RECORD_KEEP;
}

/* What there is, in the reverse order. */
static void close_all(void)
{
	if (l.m.pager) {
		pager_keep_records(l.m.pager);
		for (uint32_t i = 0; i < N_RANGES; i++) {
			range_free(l.ranges[i]);
			range_free(l.found[i]);
		}
		pager_free(l.m.pager);
	}
	stores_free(l.m.stores);
	loop_free(l.m.loop);
	memset(&l.m, 0, sizeof(l.m));
	memset(l.ranges, 0, sizeof(l.ranges));
	memset(l.found, 0, sizeof(l.found));
	l.n_closed++;
}

static int open_all(void)
{
	struct stores_conf sc = { .kind = l.kind, .depth = 8, .n = 1 };
	struct pager_conf pc = { .name = "t",
				 .memory_bytes = MEMORY,
				 .disk_bytes = DISK,
				 .numa_node = -1,
				 .policy = "clock" };
	char err[256];
	int ret = loop_new(&l.m.loop);

	if (!ret)
		ret = loop_start_workers(l.m.loop, 2);
	sc.loop = pc.loop = l.m.loop;
	sc.disks[0].path = l.path;
	sc.disks[0].bytes = 40u << 20;
	if (!ret)
		ret = stores_new(&l.m.stores, &sc);
	pc.stores = l.m.stores;
	if (!ret)
		ret = pager_new(&l.m.pager, &pc);
	if (!ret)
		ret = stores_open(l.m.stores, found, &l, err, sizeof(err));
	return ret;
}

static struct page_run run_of(uint32_t i, uint32_t n)
{
	return (struct page_run){ .range = l.ranges[i], .n = n };
}

/* The first n pages of the range hold what was written. */
static int holds(struct range *r, uint32_t i, uint32_t n)
{
	const struct page_run run = { .range = r, .n = n };

	return rig_mem_holds(&run, i + 1);
}

static void write_one(uint32_t i)
{
	struct page_run run;
	int ret = range_new(l.m.pager, PAGE, N_PAGES, &l.ranges[i]);

	expect(ret);
	if (ret) {
		l.ranges[i] = NULL;
		return;
	}
	run = run_of(i, N_PAGES);
	run.flags = PAGE_WRITE;
	ret = rig_mem_want(&l.m, &run, 1);
	expect(ret);
	if (ret)
		return;
	ck_assert_mem_eq(range_addr(l.ranges[i]), (char[PAGE]){ 0 }, PAGE);
	rig_mem_fill(&run, i + 1);
	page_unpin(l.m.pager, &run, 1);
	l.state[i] = WRITTEN;
}

static void read_one(struct range *r, uint32_t i, uint32_t n)
{
	struct page_run run = { .range = r, .n = n };
	const int ret = rig_mem_want(&l.m, &run, 1);

	expect(ret);
	if (ret)
		return;
	l.n_held++;
	ck_assert_msg(holds(r, i, n), "range %u has other bytes", i);
	page_unpin(l.m.pager, &run, 1);
}

static int told_ret;
static int is_told;

static void persisted(struct wait *w, int ret)
{
	(void)w;
	told_ret = ret;
	is_told = 1;
}

static void persist_one(uint32_t i)
{
	struct range_persist p = { .wait.done = persisted,
				   .range = l.ranges[i],
				   .key = { i + 1, ~(uint64_t)i },
				   .meta = &i,
				   .meta_bytes = sizeof(i) };

	is_told = 0;
	told_ret = range_persist(&p);
	for (uint64_t t0 = clock_ns();
	     !told_ret && !is_told && rig_mem_patient(t0);)
		rig_mem_turn(&l.m);
	ck_assert(told_ret || is_told);
	expect(told_ret);
	/* a record that failed may have been written all the same */
	l.state[i] = told_ret ? DOUBT : ACKED;
	l.n_acked += !told_ret;
}

/*
 * Until nothing is in flight; what failed may be tried again for ever. What waits
 * for memory for its operation goes on when there is some again.
 */
static void settle(void)
{
	struct pager_info i;
	const uint64_t t0 = clock_ns();
	int calm = 0;

	rig_alloc_fails = 0;
	while (calm < 20 && rig_mem_patient(t0)) {
		rig_mem_turn(&l.m);
		pager_info(l.m.pager, &i);
		calm = i.n_in_flight ? 0 : calm + 1;
	}
	ck_assert_int_eq(calm, 20);
}

static void use(void)
{
	int ret = pager_reserve(l.m.pager, (uint64_t)N_PAGES * PAGE);

	ck_assert_int_eq(ret, 0);
	for (uint32_t i = 0; i < N_RANGES; i++)
		write_one(i);
	for (uint32_t i = 0; i < N_RANGES; i++)
		if (l.state[i] == WRITTEN && i % 2)
			persist_one(i);
	for (uint32_t i = 0; i < N_RANGES; i++)
		if (l.state[i] != NONE)
			read_one(l.ranges[i], i, N_PAGES);
	for (uint32_t i = 0; i < 4; i += 2) /* 0 is cut, 2 goes */
		if (l.state[i] == WRITTEN && !i) {
			range_trim(l.ranges[i], 2);
			read_one(l.ranges[i], i, 2);
			l.state[i] = CUT;
		} else if (l.ranges[i]) {
			range_free(l.ranges[i]);
			l.ranges[i] = NULL;
			l.state[i] = NONE;
		}
	for (uint32_t i = 0; i < N_RANGES; i++)
		if (l.state[i] != NONE)
			read_one(l.ranges[i], i,
				 l.state[i] == CUT ? 2 : N_PAGES);
	pager_unreserve(l.m.pager, (uint64_t)N_PAGES * PAGE);
	settle();
	/* it asks how large the files are: not that is to fail */
	if (!l.forever && kio_fault_count() >= l.nth)
		pager_check(l.m.pager);
}

static void again(int sure)
{
	ck_assert_int_eq(pager_reserve(l.m.pager, (uint64_t)N_PAGES * PAGE), 0);
	for (uint32_t i = 0; i < N_RANGES; i++) {
		if (sure)
			ck_assert_msg(l.found[i] || l.state[i] != ACKED,
				      "range %u was durable and is lost", i);
		if (!l.found[i])
			continue;
		ck_assert(l.state[i] == ACKED || l.state[i] == DOUBT);
		read_one(l.found[i], i, N_PAGES);
	}
	pager_unreserve(l.m.pager, (uint64_t)N_PAGES * PAGE);
}

/* 0, or why it could not begin. */
static int scenario(int err)
{
	int ret;

	l.err = err;
	l.n_failed = 0;
	memset(l.state, 0, sizeof(l.state));
	ret = open_all();
	if (!ret)
		use();
	close_all();
	if (ret)
		return ret;
	if (!open_all())
		again(0);
	close_all();
	return 0;
}

static int n_open(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	ck_assert_ptr_nonnull(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static const struct sweep {
	enum kio_engine_kind kind;
	enum kio_fault_mode mode;
	int err;
	int alloc; /* of allocations alone */
} sweeps[] = {
	{ KIO_ENGINE_AUTO, KIO_FAULT_ONCE, EIO, 0 },
	{ KIO_ENGINE_AUTO, KIO_FAULT_ONCE, ENOMEM, 0 },
	{ KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOSPC, 0 },
	{ KIO_ENGINE_THREADS, KIO_FAULT_ONCE, EIO, 0 },
	{ KIO_ENGINE_THREADS, KIO_FAULT_FOREVER, EIO, 0 },
	{ KIO_ENGINE_AUTO, KIO_FAULT_ONCE, ENOMEM, 1 },
	{ KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOMEM, 1 },
};

static uint64_t sweep_once(const struct sweep *s, uint64_t nth, int *refused)
{
	uint64_t met;
	int ret;

	rig_alloc_fails = s->alloc;
	kio_fault_arm(s->mode, s->alloc ? "mem." : "", nth, s->err);
	l.nth = nth;
	l.forever = s->mode == KIO_FAULT_FOREVER;
	ret = scenario(s->err);
	met = kio_fault_count();
	kio_fault_disarm();
	ck_assert_msg(!ret || ret == -s->err, "point %d: %s", (int)nth,
		      strerror(-ret));
	*refused += !!ret;
	l.err = l.forever = 0;
	l.nth = 0;
	ck_assert_int_eq(open_all(), 0);
	again(1);
	close_all();
	ck_assert_int_eq(truncate(l.path, 0), 0);
	return met;
}

START_TEST(every_point)
{
	const struct sweep *s = &sweeps[_i];
	uint64_t nth = 0, met, n_failed = 0;
	int refused = 0, before;

	memset(&l, 0, sizeof(l));
	strcpy(l.path, "/dev/shm/kvd-sweep-XXXXXX");
	ck_assert_int_ge(close(mkstemp(l.path)), 0);
	l.kind = s->kind;
	l.forever = 0;
	before = n_open();
	ck_assert_int_eq(scenario(0), 0);
	ck_assert_int_eq(l.n_acked, N_RANGES / 2);
	ck_assert_int_gt(l.n_held, (int)N_RANGES * 2);
	ck_assert_int_eq(truncate(l.path, 0), 0);
	do {
		nth += nth < EACH || getenv("KVD_LONG") ? 1 : SOME;
		met = sweep_once(s, nth, &refused);
		n_failed += (uint64_t)l.n_failed;
		ck_assert_int_eq(n_open(), before);
		ck_assert_uint_lt(nth, MAX_STEPS);
	} while (nth <= met);
	ck_assert_int_gt(refused, 0);
	ck_assert_uint_gt(n_failed, 0);
	printf("sweep %d: %d points, %d refusals, %d failed calls\n", _i,
	       (int)nth - 1, refused, (int)n_failed);
	(void)unlink(l.path);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sweep_pager");
	TCase *tc = tcase_create("sweep");
	SRunner *sr;
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 300);
	tcase_add_loop_test(tc, every_point, 0,
			    (int)(sizeof(sweeps) / sizeof(sweeps[0])));
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
