/*
 * sweep_clean.c - every fault point of cleaning and of scrubbing, one at a time
 *
 * A store has a few pages of 64 KiB in each of its zones, half of them of durable ranges.
 * Then either slots of 256 KiB are asked for until there are none, so that zones are
 * emptied, or a scrubber reads all there is. That is run with the 1st, 2nd, 3rd... point
 * failing, once and for good, until a run meets none. In each run it ends. Then, without
 * faults:
 *
 *  (1) every page is there with its bytes, also when what was released is written over;
 *      of what a scrubber could not read for good, a page may be an error, never others' bytes;
 *  (2) the invariants of pager and store hold, and nothing stays open;
 *  (3) opened again, every durable range is there with its bytes.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/fault.h"
#include "kvd/base/clock.h"
#include "kvd/mem/clean.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/page.h"
#include "kvd/mem/scrub.h"
#include "tests/rig/rig_alloc.h"
#include "tests/rig/rig_mem.h"

#define STORE	  (22ull << 20) /* 5 zones of 4 MiB and an index */
#define ZONE	  (4u << 20)
#define SMALL	  65536u
#define BIG	  262144u
#define N_PAGES	  2u
#define MEMORY	  (8u * SMALL)
#define N_SMALL	  10u
#define N_BIG	  8u
#define N_SLOTS	  1024u
#define MAX_STEPS 1000

/* A range of pages of one size; its bytes follow from its number. */
struct one {
	struct range *range;
	uint32_t id;
	int durable;
};

static struct rig_mem *r;
static struct one all[N_SMALL], big[N_BIG];
static char path[64];
static int n_found, n_cleaned, n_failed, n_bad;

static struct kio_store *store(void)
{
	return stores_disk(r->stores, 0);
}

static struct page_run run_of(const struct one *o, uint32_t flags)
{
	return (struct page_run){ o->range, 0, N_PAGES, flags };
}

/* ---- ranges ------------------------------------------------------------------ */

/* What could not be written makes no room until it is tried again. */
static int want(struct page_run *run)
{
	const uint64_t t0 = clock_ns();
	int ret;

	do
		ret = rig_mem_want(r, run, 1);
	while (ret == -EIO && !n_bad && rig_mem_patient(t0));
	return ret;
}

static void make(struct one *o, uint32_t id, uint32_t page_bytes)
{
	struct page_run run;

	*o = (struct one){ .id = id };
	ck_assert_int_eq(range_new(r->pager, page_bytes, N_PAGES, &o->range),
			 0);
	run = run_of(o, PAGE_WRITE);
	ck_assert_int_eq(want(&run), 0);
	rig_mem_fill(&run, id);
	page_unpin(r->pager, &run, 1);
}

/* 0 it is there; else why not. Never other bytes. */
static int look(const struct one *o)
{
	struct page_run run = run_of(o, 0);
	const int ret = want(&run);

	if (ret)
		return ret;
	ck_assert_msg(rig_mem_holds(&run, o->id), "range %u: other bytes",
		      o->id);
	page_unpin(r->pager, &run, 1);
	return 0;
}

static int is_told, told_ret;

static void saved(struct wait *w, int ret)
{
	(void)w;
	told_ret = ret;
	is_told = 1;
}

static void save(struct one *o)
{
	struct range_persist p = { .wait.done = saved,
				   .range = o->range,
				   .key = { o->id, ~(uint64_t)o->id },
				   .meta = &o->id,
				   .meta_bytes = sizeof(o->id) };

	is_told = 0;
	ck_assert_int_eq(range_persist(&p), 0);
	while (!is_told)
		rig_mem_turn(r);
	ck_assert_int_eq(told_ret, 0);
	o->durable = 1;
}

/* ---- a store ------------------------------------------------------------------- */

static int on_record(void *ctx, uint32_t i_disk, const struct kio_record *rec)
{
	struct rig_mem *m = ctx;
	uint32_t id;

	memcpy(&id, rec->meta, sizeof(id));
	ck_assert_uint_ge(id, 1);
	ck_assert_uint_le(id, N_SMALL);
	ck_assert_ptr_null(all[id - 1].range);
	n_found++;
	ck_assert_int_eq(range_adopt(m->pager, i_disk, rec, &all[id - 1].range),
			 0);
	return KIO_RECORD_KEEP;
}

static void begin(enum kio_engine_kind kind)
{
	n_found = 0;
	for (uint32_t i = 0; i < N_SMALL; i++)
		all[i].range = NULL;
	r = rig_mem_open((struct rig_mem_options){ .memory_bytes = MEMORY,
						   .disk_bytes = STORE,
						   .store_bytes = STORE,
						   .store = path,
						   .kind = kind,
						   .found = on_record });
	ck_assert_int_eq(pager_reserve(r->pager, N_PAGES * BIG), 0);
}

static void end(void)
{
	rig_mem_settle(r);
	pager_keep_records(r->pager);
	for (uint32_t i = 0; i < N_SMALL; i++)
		range_free(all[i].range);
	for (uint32_t i = 0; i < N_BIG; i++)
		range_free(big[i].range);
	memset(big, 0, sizeof(big));
	rig_mem_settle(r);
	pager_unreserve(r->pager, N_PAGES * BIG);
	kio_store_check(store());
	rig_mem_close(r);
}

/* So many slots; with most, as many as there are. */
static uint32_t take(int64_t *slots, uint32_t n, uint32_t page_bytes, int most)
{
	uint32_t k = 0;

	while (k < n) {
		slots[k] = kio_store_alloc(store(), page_bytes);
		if (slots[k] == -ENOMEM && rig_alloc_fails)
			continue; /* once */
		if (slots[k] < 0)
			break;
		k++;
	}
	ck_assert(most || k == n);
	return k;
}

static void give(const int64_t *slots, uint32_t n, uint32_t page_bytes)
{
	while (n--)
		kio_store_release(store(), (uint64_t)slots[n], page_bytes);
}

/* Other bytes into all that the store says is nobody's. */
static void scribble(uint32_t page_bytes)
{
	static char junk[BIG];
	static int64_t slots[N_SLOTS];
	const uint32_t n = take(slots, N_SLOTS, page_bytes, 1);
	const int fd = open(path, O_WRONLY | O_CLOEXEC);

	memset(junk, 0xa5, sizeof(junk));
	for (uint32_t i = 0; i < n; i++)
		ck_assert_int_eq(pwrite(fd, junk, page_bytes,
					slots[i] * KIO_BLOCK_BYTES),
				 page_bytes);
	ck_assert_int_eq(close(fd), 0);
	give(slots, n, page_bytes);
}

/* Two ranges in each zone, of which every second is durable. */
static void fill(uint32_t n)
{
	const uint32_t n_between = ZONE / SMALL - 2 * N_PAGES;
	static int64_t slots[N_SLOTS];
	uint32_t n_slots = 0;

	for (uint32_t i = 0; i < n; i++) {
		make(&all[i], i + 1, SMALL);
		if (i % 2) {
			save(&all[i]);
			n_slots += take(slots + n_slots, n_between, SMALL, 1);
		}
	}
	rig_mem_settle(r);
	give(slots, n_slots, SMALL);
}

/* ---- what is swept --------------------------------------------------------------- */

static int64_t wanted[N_SLOTS];
static uint32_t n_wanted;
static int of_allocations;

/* rig_mem_turn() asks how large files are, as often as it is called. */
static void turn(void)
{
	stores_turn(r->stores);
	ck_assert_int_eq(loop_turn(r->loop, 1), 0);
}

/* Slots of the other size for as long as zones are emptied for them. */
static void clean(void)
{
	struct cleaner *c;
	struct cleaner_info i;
	struct kio_store_info k;
	const uint64_t t0 = clock_ns();
	uint32_t n;
	size_t bytes;

	ck_assert_int_eq(cleaner_new(&c, r->loop, r->stores, 1u << 30), 0);
	cleaner_adopt(r->pager);
	rig_alloc_fails = of_allocations;
	n_wanted = 0;
	do {
		n = take(wanted + n_wanted, N_SLOTS - n_wanted, BIG, 1);
		n_wanted += n;
		while (kio_store_victim(store(), &bytes) && rig_mem_patient(t0))
			turn();
		ck_assert(rig_mem_patient(t0));
	} while (n);
	rig_alloc_fails = 0;
	cleaner_info(c, &i);
	kio_store_info(store(), &k);
	n_cleaned += (int)k.n_zones_cleaned;
	n_failed += (int)(i.n_failed + i.n_given_up);
	ck_assert_uint_gt(n_wanted, 0);
	ck_assert_uint_le(n_wanted, 5 * (ZONE / BIG));
	cleaner_free(c);
}

static void scrub(void)
{
	struct scrub *s;
	struct scrub_info i;
	const uint64_t t0 = clock_ns();

	ck_assert_int_eq(scrub_new(&s, r->pager, 1u << 30), 0);
	rig_alloc_fails = of_allocations;
	do {
		turn();
		scrub_info(s, &i);
	} while (!i.n_passes && rig_mem_patient(t0));
	rig_alloc_fails = 0;
	ck_assert_uint_gt(i.n_passes, 0);
	ck_assert_uint_gt(i.n_pages, 0);
	n_bad = (int)i.n_bad;
	scrub_free(s);
}

static const struct sweep {
	void (*scenario)(void);
	uint32_t n; /* ranges */
	enum kio_engine_kind kind;
	enum kio_fault_mode mode;
	int err;
	int may_lose; /* what the disk does not give for good */
	int alloc; /* of allocations alone */
} sweeps[] = {
	{ clean, N_SMALL, KIO_ENGINE_AUTO, KIO_FAULT_ONCE, EIO, 0, 0 },
	{ clean, N_SMALL, KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOSPC, 0, 0 },
	{ clean, N_SMALL, KIO_ENGINE_THREADS, KIO_FAULT_ONCE, ENOSPC, 0, 0 },
	{ scrub, 4, KIO_ENGINE_AUTO, KIO_FAULT_ONCE, EIO, 0, 0 },
	{ scrub, 4, KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOMEM, 0, 0 },
	{ scrub, 4, KIO_ENGINE_THREADS, KIO_FAULT_FOREVER, EIO, 1, 0 },
	{ clean, N_SMALL, KIO_ENGINE_AUTO, KIO_FAULT_ONCE, ENOMEM, 0, 1 },
	{ scrub, 4, KIO_ENGINE_AUTO, KIO_FAULT_ONCE, ENOMEM, 0, 1 },
};

/* Nothing fails now. */
static void compare(const struct sweep *s)
{
	int n_lost = 0;

	for (uint32_t i = 0; i < s->n; i++) {
		const int ret = all[i].range ? look(&all[i]) : -ENOENT;

		ck_assert_msg(!ret || s->may_lose, "range %u: %s", i + 1,
			      strerror(-ret));
		n_lost += !!ret;
	}
	ck_assert(!n_lost || n_bad);
	ck_assert(s->may_lose || !n_bad);
}

/* The points met; failing at the nth, if it is one. */
static uint64_t run(const struct sweep *s, uint64_t nth)
{
	uint64_t met;
	int bad;

	n_wanted = 0;
	n_bad = 0;
	memset(all, 0, sizeof(all));
	ck_assert_int_eq(truncate(path, 0), 0);
	begin(s->kind);
	fill(s->n);
	of_allocations = s->alloc;
	kio_fault_arm(s->mode, s->alloc ? "mem." : "", nth, s->err);
	s->scenario();
	met = kio_fault_count();
	kio_fault_disarm();
	compare(s);
	bad = n_bad;
	n_bad = 0; /* nothing more is */
	give(wanted, n_wanted, BIG);
	scribble(BIG);
	scribble(SMALL);
	compare(s);
	for (uint32_t i = 0; i < N_BIG; i++)
		make(&big[i], N_SMALL + 1 + i, BIG);
	for (uint32_t i = 0; i < N_BIG; i++)
		ck_assert_int_eq(look(&big[i]), 0);
	n_bad = bad;
	compare(s);
	end();
	begin(s->kind);
	for (uint32_t i = 0; i < s->n; i++) {
		ck_assert_msg(!all[i].durable || all[i].range || s->may_lose,
			      "range %u was durable and is lost", i + 1);
		ck_assert(!all[i].range || !look(&all[i]) || s->may_lose);
	}
	end();
	return met;
}

/* ---- the sweep --------------------------------------------------------------------- */

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

START_TEST(every_point)
{
	const struct sweep *s = &sweeps[_i];
	uint64_t nth = 0, met;
	int before;

	strcpy(path, "/dev/shm/kvd-sweep-XXXXXX");
	ck_assert_int_ge(close(mkstemp(path)), 0);
	before = n_open();
	met = run(s, UINT64_MAX);
	ck_assert_uint_gt(met, s->alloc ? 3 : 10);
	ck_assert(s->scenario != clean || n_cleaned >= 2);
	ck_assert_int_eq(n_failed, 0);
	do {
		/* for good, what cannot be moved is tried often */
		nth += s->mode == KIO_FAULT_FOREVER && !getenv("KVD_LONG") ? 2
									   : 1;
		met = run(s, nth);
		ck_assert_int_eq(n_open(), before);
		ck_assert_uint_lt(nth, MAX_STEPS);
	} while (nth <= met);
	ck_assert(s->scenario != clean || s->alloc || n_failed);
	printf("sweep %d: %d points, %d zones emptied, %d failed moves\n", _i,
	       (int)nth - 1, n_cleaned, n_failed);
	(void)unlink(path);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sweep_clean");
	TCase *tc = tcase_create("sweep");
	SRunner *sr;
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 300);
	tcase_add_loop_test(tc, every_point, 0,
			    (int)(sizeof(sweeps) / sizeof(sweeps[0])));
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
