/*
 * test_durable.c - what the disk does to a range that is, or is to be, durable: places
 * that go bad under a good page, places that cannot be written. What was told
 * durable is there when the store is opened again.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "io/fault.h"
#include "io/sys.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/op.h"
#include "tests/rig/bad_block.h"
#include "tests/rig/rig_mem.h"

#define PAGE 8192u
#define MOST 16u

static char path[64];
static struct rig_mem *m;
static struct range *found[MOST]; /* by key */
static uint32_t n_found;
static _Atomic int held; /* flushes wait */

static int adopt(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	struct rig_mem *rig = ctx;

	ck_assert_uint_lt(r->key.w[0], MOST);
	ck_assert_ptr_null(found[r->key.w[0]]);
	ck_assert_int_eq(
		range_adopt(rig->pager, i_disk, r, &found[r->key.w[0]]), 0);
	n_found++;
	return KIO_RECORD_KEEP;
}

static void open_again(void)
{
	memset(found, 0, sizeof(found));
	n_found = 0;
	m = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 64 * PAGE,
		.disk_bytes = 256 * PAGE,
		.kind = KIO_ENGINE_THREADS, /* reads by io_uring go past kio_sys_disk */
		.store = path,
		.found = adopt });
}

static void close_keeping(struct range **ranges, uint32_t n)
{
	pager_keep_records(m->pager);
	for (uint32_t i = 0; i < n; i++)
		range_free(ranges[i]);
	rig_mem_close(m);
}

static void setup(void)
{
	strcpy(path, "/var/tmp/kvd-durable-XXXXXX");
	ck_assert_int_ge(close(mkstemp(path)), 0);
	ck_assert_int_eq(unlink(path), 0);
	open_again();
}

static void teardown(void)
{
	held = 0;
	(void)bad_block_end();
	(void)unlink(path);
}

static struct range *written(uint32_t n, uint32_t seed)
{
	struct page_run run = { .n = n, .flags = PAGE_WRITE };

	ck_assert_int_eq(range_new(m->pager, PAGE, n, &run.range), 0);
	ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
	rig_mem_fill(&run, seed);
	page_unpin(m->pager, &run, 1);
	return run.range;
}

static void holds(struct range *r, uint32_t n, uint32_t seed)
{
	struct page_run run = { r, 0, n, 0 };

	ck_assert_ptr_nonnull(r);
	ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
	ck_assert(rig_mem_holds(&run, seed));
	page_unpin(m->pager, &run, 1);
}

static int told, told_ret;

static void on_told(struct wait *w, int ret)
{
	(void)w;
	told = 1;
	told_ret = ret;
}

static int persist(struct range *r, uint64_t key)
{
	struct range_persist p = { .wait.done = on_told,
				   .range = r,
				   .key = { key, key },
				   .meta = "x",
				   .meta_bytes = 1 };

	told = 0;
	ck_assert_int_eq(range_persist(&p), 0);
	for (uint64_t t0 = clock_ns(); !told && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert_int_eq(told, 1);
	return told_ret;
}

static struct kio_store_info info(void)
{
	struct kio_store_info i;

	kio_store_info(stores_disk(m->stores, 0), &i);
	return i;
}

/* ---- a place that goes bad ------------------------------------------------- */

static void on_scrubbed(struct page_scrub *s, int ret)
{
	(void)s;
	told = 1;
	told_ret = ret;
}

static int scrub(struct page *pg)
{
	struct page_scrub s = { .n_bytes = PAGE, .done = on_scrubbed };

	ck_assert(!posix_memalign(&s.buf, 4096, PAGE));
	told = 0;
	ck_assert_int_eq(page_scrub_start(pg, &s), 0);
	while (!told)
		rig_mem_turn(m);
	free(s.buf);
	return told_ret;
}

static void damage_block(int64_t block, uint32_t at)
{
	const int fd = kio_store_fd(stores_disk(m->stores, 0));
	char buf[4096] __attribute__((aligned(4096)));

	ck_assert_int_eq(pread(fd, buf, 4096, block * 4096), 4096);
	buf[at] ^= 1;
	ck_assert_int_eq(pwrite(fd, buf, 4096, block * 4096), 4096);
}

static void damage(const struct page *pg)
{
	damage_block(pg->slot, 9);
}

/* At once, while the deletion of the old record is on its way, and twice. */
START_TEST(what_the_scrubber_repairs_is_durable_again)
{
	struct range *r = written(4, 7);

	ck_assert_int_eq(persist(r, 1), 0);
	page_drop(&r->pages[3]); /* one that is on disk only */
	rig_mem_settle(m);
	for (uint32_t i = 1; i < 3; i++) {
		damage(&r->pages[i]);
		ck_assert_int_eq(scrub(&r->pages[i]), -EBADMSG);
		ck_assert(!range_durable(r));
		ck_assert_int_eq(persist(r, 1 + i), 0);
		ck_assert(range_durable(r));
		kio_store_check(stores_disk(m->stores, 0));
	}
	ck_assert_uint_eq(info().bad_bytes, 2 * PAGE);
	ck_assert_uint_eq(info().durable_bytes, 4 * PAGE);
	close_keeping(&r, 1);
	open_again();
	ck_assert_uint_eq(n_found, 1);
	holds(found[3], 4, 7);
	range_free(found[3]);
	rig_mem_settle(m);
	rig_mem_close(m);
}
END_TEST

/* ---- long runs ------------------------------------------------------------- */

#define LONG \
	192u /* pages: a run of more than a MiB, summed by the threads of the disk */

static void open_long(enum kio_engine_kind kind)
{
	memset(found, 0, sizeof(found));
	n_found = 0;
	m = rig_mem_open(
		(struct rig_mem_options){ .memory_bytes = 2 * LONG * PAGE,
					  .disk_bytes = 4 * LONG * PAGE,
					  .kind = kind,
					  .store = path,
					  .found = adopt });
}

/* Once the first write fails: what is written again is summed again. */
START_TEST(long_runs_become_durable)
{
	const enum kio_engine_kind kind = _i & 1 ? KIO_ENGINE_THREADS
						 : KIO_ENGINE_AUTO;
	struct range *r;

	rig_mem_close(m);
	(void)unlink(path);
	open_long(kind);
	r = written(LONG, 5);
	if (_i & 2)
		kio_fault_arm(KIO_FAULT_ONCE, "uring.write", 1, EIO);
	ck_assert_int_eq(persist(r, 1), 0);
	kio_fault_disarm();
	for (uint32_t i = 0; i < LONG; i++)
		page_drop(&r->pages[i]);
	rig_mem_settle(m);
	holds(r, LONG, 5); /* read back, by their sums */
	close_keeping(&r, 1);
	open_long(kind);
	ck_assert_uint_eq(n_found, 1);
	holds(found[1], LONG, 5);
	range_free(found[1]);
	rig_mem_settle(m);
	rig_mem_close(m);
}
END_TEST

/* ---- a record that goes bad -------------------------------------------------- */

static void on_lost(void *ctx, uint32_t i_disk, uint64_t handle)
{
	pager_record_lost(((struct rig_mem *)ctx)->pager, i_disk, handle);
}

/* A compaction finds it, while the pages are good: it is put again. */
START_TEST(what_is_lost_from_the_index_is_durable_again)
{
	struct range *r = written(4, 7), *other = written(1, 8), *passing;

	stores_on_lost(m->stores, on_lost, m);
	ck_assert_int_eq(persist(r, 1), 0);
	ck_assert_int_eq(persist(other, 2), 0);
	damage_block(8, 100); /* of the first frame */
	for (uint64_t k = 0; !info().n_compactions; k++) {
		ck_assert_uint_lt(k, 1000);
		ck_assert(range_durable(r));
		passing = written(1, 9);
		ck_assert_int_eq(persist(passing, 3), 0);
		range_free(passing);
		rig_mem_settle(m);
	}
	rig_mem_settle(m);
	ck_assert_uint_eq(info().n_lost_records, 1);
	ck_assert(!range_durable(r));
	ck_assert(range_durable(other));
	ck_assert_int_eq(persist(r, 1), 0);
	kio_store_check(stores_disk(m->stores, 0));
	close_keeping((struct range *[]){ r, other }, 2);
	open_again();
	ck_assert_uint_eq(n_found, 2);
	holds(found[1], 4, 7);
	holds(found[2], 1, 8);
	range_free(found[1]);
	range_free(found[2]);
	rig_mem_settle(m);
	rig_mem_close(m);
}
END_TEST

/* Instead of being put again it goes: its places are given out again. */
START_TEST(what_the_scrubber_repairs_can_be_freed)
{
	struct range *r = written(4, 7);

	ck_assert_int_eq(persist(r, 1), 0);
	damage(&r->pages[1]);
	ck_assert_int_eq(scrub(&r->pages[1]), -EBADMSG);
	range_free(r);
	for (int i = 0; i < 1000 && info().pending_bytes; i++) {
		rig_mem_turn(m);
		(void)usleep(100);
	}
	ck_assert_uint_eq(info().pending_bytes, 0);
	ck_assert_uint_eq(info().slot_bytes, 0);
	ck_assert_uint_eq(info().durable_bytes, 0);
	kio_store_check(stores_disk(m->stores, 0));
	close_keeping(NULL, 0);
	open_again();
	ck_assert_uint_eq(n_found, 0);
	rig_mem_close(m);
}
END_TEST

/* The deletion never becomes durable: an answer, and no put that overtakes it. */
START_TEST(what_the_scrubber_repairs_on_a_dead_disk_is_an_error)
{
	struct range *r = written(4, 7);

	ck_assert_int_eq(persist(r, 1), 0);
	damage(&r->pages[1]);
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.fdatasync", 1, EIO);
	ck_assert_int_eq(scrub(&r->pages[1]), -EBADMSG);
	ck_assert_int_eq(persist(r, 2), -EIO);
	kio_fault_disarm();
	ck_assert_int_eq(persist(r, 3), -EIO); /* failed until it is opened */
	holds(r, 4, 7);
	range_free(r);
	rig_mem_close(m);
}
END_TEST

/* ---- while it becomes durable ------------------------------------------------ */

static int held_fdatasync(int fd)
{
	while (held)
		(void)usleep(1000);
	return fdatasync(fd);
}

static const struct kio_disk slow = { .pread = pread,
				      .pwrite = pwrite,
				      .fdatasync = held_fdatasync };

static void written_back(struct range *r)
{
	for (uint32_t i = 0; i < range_n_pages(r); i++)
		ck_assert_int_eq(page_write_back(&r->pages[i]), 0);
	rig_mem_settle(m);
}

static struct range_persist persist_begin(struct range *r, uint64_t key)
{
	return (struct range_persist){ .wait.done = on_told,
				       .range = r,
				       .key = { key, key },
				       .meta = "x",
				       .meta_bytes = 1 };
}

static int persist_end(void)
{
	for (uint64_t t0 = clock_ns(); !told && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert_int_eq(told, 1);
	return told_ret;
}

static int n_scrubbed, scrub_ret;

static void on_scrubbed_too(struct page_scrub *s, int ret)
{
	(void)s;
	n_scrubbed++;
	scrub_ret = ret;
}

/* The scrubber has the page, which is written anew and is to be durable at once. */
START_TEST(what_is_scrubbed_and_changed_becomes_durable)
{
	struct page_scrub s = { .n_bytes = PAGE, .done = on_scrubbed_too };
	struct range *r = written(1, 7);
	struct page_run run = { r, 0, 1, PAGE_WRITE };

	written_back(r);
	ck_assert(!posix_memalign(&s.buf, 4096, PAGE));
	n_scrubbed = 0;
	ck_assert_int_eq(page_scrub_start(&r->pages[0], &s), 0);
	ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
	rig_mem_fill(&run, 8);
	page_unpin(m->pager, &run, 1);
	ck_assert_int_eq(persist(r, 1), 0);
	ck_assert_int_eq(n_scrubbed, 1);
	free(s.buf);
	close_keeping(&r, 1);
	open_again();
	holds(found[1], 1, 8);
	range_free(found[1]);
	rig_mem_close(m);
}
END_TEST

/* The scrubber finds a bad place when the record that names it is on its way. */
START_TEST(what_goes_bad_while_it_is_recorded_is_recorded_again)
{
	struct page_scrub s = { .n_bytes = PAGE, .done = on_scrubbed_too };
	struct range *r = written(4, 7);
	struct range_persist p = persist_begin(r, 1);

	written_back(r);
	damage(&r->pages[1]);
	ck_assert(!posix_memalign(&s.buf, 4096, PAGE));
	kio_sys_disk = &slow;
	held = 1;
	n_scrubbed = told = 0;
	ck_assert_int_eq(page_scrub_start(&r->pages[1], &s), 0);
	ck_assert_int_eq(range_persist(&p), 0);
	for (uint64_t t0 = clock_ns(); !n_scrubbed && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert_int_eq(scrub_ret, -EBADMSG);
	ck_assert_int_eq(told, 0);
	held = 0;
	ck_assert_int_eq(persist_end(), 0);
	ck_assert(range_durable(r));
	free(s.buf);
	close_keeping(&r, 1);
	open_again();
	ck_assert_uint_eq(n_found, 1);
	holds(found[1], 4, 7);
	range_free(found[1]);
	rig_mem_close(m);
}
END_TEST

/* The same, of a page that is on disk only: it cannot be told to be durable. */
START_TEST(what_is_lost_while_it_is_recorded_is_an_error)
{
	struct page_scrub s = { .n_bytes = PAGE, .done = on_scrubbed_too };
	struct range *r = written(4, 7);
	struct range_persist p = persist_begin(r, 1);

	written_back(r);
	page_drop(&r->pages[1]);
	rig_mem_settle(m);
	damage(&r->pages[1]);
	ck_assert(!posix_memalign(&s.buf, 4096, PAGE));
	kio_sys_disk = &slow;
	held = 1;
	n_scrubbed = told = 0;
	ck_assert_int_eq(page_scrub_start(&r->pages[1], &s), 0);
	ck_assert_int_eq(range_persist(&p), 0);
	for (uint64_t t0 = clock_ns(); !n_scrubbed && rig_mem_patient(t0);)
		rig_mem_turn(m);
	held = 0;
	ck_assert_int_eq(persist_end(), -EBADMSG);
	ck_assert(!range_durable(r));
	free(s.buf);
	close_keeping(&r, 1);
	open_again();
	ck_assert_uint_eq(n_found, 0);
	rig_mem_close(m);
}
END_TEST

/* ---- places that cannot be written ------------------------------------------ */

/* The next n places to be given out are bad. */
static void next_are_bad(uint32_t n)
{
	const int64_t at =
		kio_store_alloc_kept(stores_disk(m->stores, 0), PAGE);

	ck_assert_int_gt(at, 0);
	kio_store_release(stores_disk(m->stores, 0), (uint64_t)at, PAGE);
	bad_block_begin(at * 4096 + 4096, at * 4096 + (int64_t)n * PAGE);
}

START_TEST(places_that_cannot_be_written_stop_nobody)
{
	struct range *r[MOST];
	uint32_t n_bad;

	r[0] = written(1, 1);
	ck_assert_int_eq(persist(r[0], 0), 0);
	next_are_bad(3);
	for (uint32_t i = 1; i < 8; i++) {
		r[i] = written(2, i + 1);
		ck_assert_int_eq(persist(r[i], i), 0);
	}
	n_bad = (uint32_t)(info().bad_bytes / PAGE);
	ck_assert_uint_eq(n_bad, 3);
	/* in runs and alone, and then nobody was sent there again */
	ck_assert_uint_le(bad_block_end(), 2 * 3);
	close_keeping(r, 8);
	open_again();
	ck_assert_uint_eq(n_found, 8);
	ck_assert_uint_eq(info().bad_bytes, 0); /* perhaps it was the cable */
	for (uint32_t i = 0; i < 8; i++) {
		holds(found[i], i ? 2 : 1, i + 1);
		range_free(found[i]);
	}
	rig_mem_close(m);
}
END_TEST

/* A disk that takes nothing is not used up by trying. */
START_TEST(a_disk_that_takes_no_writes_keeps_its_places)
{
	struct range *r[MOST];

	r[0] = written(1, 1);
	ck_assert_int_eq(persist(r[0], 0), 0);
	next_are_bad(4000);
	for (uint32_t i = 1; i < 6; i++) {
		r[i] = written(2, i + 1);
		ck_assert_int_eq(persist(r[i], i), -EIO);
	}
	ck_assert_uint_gt(bad_block_end(), 30);
	ck_assert_uint_eq(info().bad_bytes, 8 * PAGE);
	for (uint32_t i = 1; i < 6; i++)
		ck_assert_int_eq(persist(r[i], i), 0);
	for (uint32_t i = 0; i < 6; i++)
		range_free(r[i]);
	rig_mem_settle(m);
	rig_mem_close(m);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("durable");
	TCase *t = tcase_create("durable");
	SRunner *sr;
	int n;

	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, what_the_scrubber_repairs_is_durable_again);
	tcase_add_loop_test(t, long_runs_become_durable, 0, 4);
	tcase_add_test(t, what_is_lost_from_the_index_is_durable_again);
	tcase_add_test(t, what_the_scrubber_repairs_can_be_freed);
	tcase_add_test(t, what_the_scrubber_repairs_on_a_dead_disk_is_an_error);
	tcase_add_test(t, what_is_scrubbed_and_changed_becomes_durable);
	tcase_add_test(t, what_goes_bad_while_it_is_recorded_is_recorded_again);
	tcase_add_test(t, what_is_lost_while_it_is_recorded_is_an_error);
	tcase_add_test(t, places_that_cannot_be_written_stop_nobody);
	tcase_add_test(t, a_disk_that_takes_no_writes_keeps_its_places);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n != 0;
}
