/*
 * test_pager.c - pages out and back under a hard budget; every byte compared
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "io/fault.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/op.h"
#include "tests/rig/rig_mem.h"

#define PAGE	 8192u
#define N_RANGES 24u

static uint64_t state = 7;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

static const enum kio_engine_kind kinds[] = { KIO_ENGINE_AUTO,
					      KIO_ENGINE_THREADS };

/* Random ranges of two page sizes against what they should hold. */
struct shadow {
	struct range *r;
	uint32_t n;
	uint32_t seed[8]; /* 0: never written */
};

static int all_zero(const char *p, size_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

static void touch(struct rig_mem *r, struct shadow *s)
{
	struct page_run run = { .range = s->r, .first = rnd(s->n), .n = 1 };
	uint32_t *seed = &s->seed[run.first];
	const size_t bytes = range_page_bytes(s->r);

	run.flags = !*seed || rnd(3) == 0 ? PAGE_WRITE : 0;
	ck_assert_int_eq(pager_reserve(r->pager, bytes), 0);
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	if (*seed)
		ck_assert(rig_mem_holds(&run, *seed));
	else /* whoever had the frame before */
		ck_assert(
			all_zero(range_addr(s->r) + run.first * bytes, bytes));
	if (run.flags) {
		*seed = rnd(1u << 30) + 1;
		rig_mem_fill(&run, *seed);
	}
	page_unpin(r->pager, &run, 1);
	pager_unreserve(r->pager, bytes);
}

START_TEST(bytes_survive_a_tiny_budget)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 6 * PAGE,
		.disk_bytes = 400 * PAGE,
		.kind = kinds[_i % 2],
		.policy = evict_policies[_i / 2]->name });
	struct shadow s[N_RANGES] = { 0 };
	struct pager_info info;

	for (int k = 0; k < 3000; k++) {
		struct shadow *x = &s[rnd(N_RANGES)];

		if (!x->r) {
			x->n = 1 + rnd(8);
			ck_assert_int_eq(range_new(r->pager, PAGE << rnd(2),
						   x->n, &x->r),
					 0);
		} else if (!rnd(40)) {
			range_free(x->r);
			memset(x, 0, sizeof(*x));
		} else if (x->n > 1 && !rnd(60)) {
			range_trim(x->r, --x->n);
		} else {
			touch(r, x);
		}
		if (x->r && !rnd(8)) {
			range_hint(x->r, (enum range_hint)rnd(2));
			range_class(x->r, rnd(x->n), 1, rnd(EVICT_KINDS));
			range_cost(x->r, 1 + (float)rnd(10));
		}
		if (k % 100 == 0)
			pager_check(r->pager);
	}
	pager_info(r->pager, &info);
	ck_assert_uint_gt(info.n_evicted_total, 100);
	ck_assert_uint_gt(info.n_read_total, 100);
	for (uint32_t i = 0; i < N_RANGES; i++)
		range_free(s[i].r);
	rig_mem_settle(r);
	pager_info(r->pager, &info);
	ck_assert_uint_eq(info.mapped_bytes, 0);
	ck_assert_uint_eq(info.slot_bytes, 0);
	ck_assert_uint_eq(info.file_bytes, 0);
	rig_mem_close(r);
}
END_TEST

/* n pages written one after the other; more than fit. */
static struct range *written(struct rig_mem *r, uint32_t n)
{
	struct range *range;

	ck_assert_int_eq(range_new(r->pager, PAGE, n, &range), 0);
	for (uint32_t i = 0; i < n; i++) {
		struct page_run run = { range, i, 1, PAGE_WRITE };

		ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
		rig_mem_fill(&run, i + 1);
		page_unpin(r->pager, &run, 1);
	}
	return range;
}

static int read_page(struct rig_mem *r, struct range *range, uint32_t i)
{
	struct page_run run = { range, i, 1, 0 };
	int ret = rig_mem_want(r, &run, 1);

	if (ret)
		return ret;
	ret = rig_mem_holds(&run, i + 1) ? 0 : -EILSEQ;
	page_unpin(r->pager, &run, 1);
	return ret;
}

START_TEST(a_flipped_bit_is_never_served)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range = written(r, 12);
	uint32_t lower = 0;
	char buf[4096] __attribute__((aligned(4096)));
	int fd;

	rig_mem_settle(r);
	while (range->pages[lower].state != PAGE_LOWER)
		lower++;
	fd = kio_store_fd(stores_disk(r->stores, 0));
	ck_assert_int_eq(pread(fd, buf, 4096, range->pages[lower].slot * 4096),
			 4096);
	buf[100] ^= 4;
	ck_assert_int_eq(pwrite(fd, buf, 4096, range->pages[lower].slot * 4096),
			 4096);
	for (uint32_t i = 0; i < 12; i++)
		ck_assert_int_eq(read_page(r, range, i),
				 i == lower ? -EBADMSG : 0);
	ck_assert(range_lost(range));
	ck_assert_int_eq(read_page(r, range, lower), -EBADMSG);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

static int scrub_ret, n_scrubbed;

static void on_scrubbed(struct page_scrub *s, int ret)
{
	(void)s;
	scrub_ret = ret;
	n_scrubbed++;
}

static int scrub(struct rig_mem *r, struct page *pg)
{
	struct page_scrub s = { .n_bytes = PAGE, .done = on_scrubbed };

	ck_assert(!posix_memalign(&s.buf, 4096, PAGE));
	ck_assert(page_can_scrub(pg));
	n_scrubbed = 0;
	ck_assert_int_eq(page_scrub_start(pg, &s), 0);
	while (!n_scrubbed)
		rig_mem_turn(r);
	free(s.buf);
	return scrub_ret;
}

START_TEST(scrubbing_keeps_what_is_in_memory)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 8 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range = written(r, 4);
	char buf[4096] __attribute__((aligned(4096)));
	const int fd = kio_store_fd(stores_disk(r->stores, 0));
	struct page *pg = &range->pages[1];
	int64_t slot;

	ck_assert_int_eq(page_write_back(pg), 0);
	rig_mem_settle(r);
	ck_assert_int_eq(pg->state, PAGE_CLEAN);
	ck_assert_int_eq(scrub(r, pg), 0);
	ck_assert_int_eq(pg->state, PAGE_CLEAN);
	slot = pg->slot;
	ck_assert_int_eq(pread(fd, buf, 4096, slot * 4096), 4096);
	buf[99] ^= 1;
	ck_assert_int_eq(pwrite(fd, buf, 4096, slot * 4096), 4096);
	ck_assert_int_eq(scrub(r, pg), -EBADMSG);
	ck_assert_int_eq(pg->state, PAGE_DIRTY);
	ck_assert(!range_lost(range));
	ck_assert_int_eq(page_write_back(pg), 0);
	rig_mem_settle(r);
	ck_assert_int_ne(pg->slot, slot); /* never that place again */
	ck_assert_int_eq(scrub(r, pg), 0);
	for (uint32_t i = 0; i < 4; i++)
		ck_assert_int_eq(read_page(r, range, i), 0);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

START_TEST(a_full_disk_loses_nothing)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 3 * PAGE });
	struct range *range;
	struct page_run run;
	uint32_t n = 0;
	int ret = 0;

	ck_assert_int_eq(range_new(r->pager, PAGE, 12, &range), 0);
	for (; n < 12; n++) {
		run = (struct page_run){ range, n, 1, PAGE_WRITE };
		ret = rig_mem_want(r, &run, 1);
		if (ret)
			break;
		rig_mem_fill(&run, n + 1);
		page_unpin(r->pager, &run, 1);
	}
	ck_assert_int_eq(ret, -ENOSPC);
	ck_assert_uint_ge(n, 4);
	rig_mem_settle(r);
	pager_check(r->pager);
	range_free(range);
	range = written(r, 4);
	for (uint32_t i = 0; i < 4; i++)
		ck_assert_int_eq(read_page(r, range, i), 0);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

static struct range *spare;

static int give_spare(void *ctx)
{
	(void)ctx;
	if (!spare)
		return -ENOSPC;
	range_free(spare);
	spare = NULL;
	return 0;
}

START_TEST(what_nobody_uses_makes_room)
{
	struct rig_mem *r =
		rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						       .disk_bytes = 0,
						       .reclaim = give_spare });
	struct range *range;

	spare = written(r, 3);
	range = written(r, 4);
	ck_assert_ptr_null(spare);
	for (uint32_t i = 0; i < 4; i++)
		ck_assert_int_eq(read_page(r, range, i), 0);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

START_TEST(reservations_are_bounded)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 0 });

	ck_assert_int_eq(pager_reserve(r->pager, 5 * PAGE), -ENOSPC);
	ck_assert_int_eq(pager_reserve(r->pager, 3 * PAGE), 0);
	ck_assert_int_eq(pager_reserve(r->pager, 2 * PAGE), -EAGAIN);
	ck_assert_uint_eq(pager_reservable(r->pager), PAGE);
	pager_unreserve(r->pager, 3 * PAGE);
	rig_mem_close(r);
}
END_TEST

/* Whatever fails, once or for good: the answer is an errno, nothing is lost. */
START_TEST(failures_are_answers)
{
	static const struct {
		const char *point;
		int err;
	} faults[] = { { "uring.write", EIO },
		       { "uring.write", ENOSPC },
		       { "uring.read", EIO },
		       { "uring.short", 1 },
		       { "sys.fallocate", ENOSPC } };

	for (uint64_t n = 1; n < 30; n++) {
		struct rig_mem *r = rig_mem_open(
			(struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						  .disk_bytes = 64 * PAGE,
						  .kind = kinds[n % 2] });
		struct range *range;
		int n_bad = 0;

		ck_assert_int_eq(range_new(r->pager, PAGE, 10, &range), 0);
		kio_fault_arm(KIO_FAULT_ONCE, faults[_i].point, n,
			      faults[_i].err);
		for (uint32_t i = 0; i < 10; i++) {
			struct page_run run = { range, i, 1, PAGE_WRITE };
			int ret = rig_mem_want(r, &run, 1);

			if (ret) /* told; the second time it goes */
				ret = rig_mem_want(r, &run, 1);
			ck_assert_int_eq(ret, 0);
			rig_mem_fill(&run, i + 1);
			page_unpin(r->pager, &run, 1);
		}
		for (uint32_t i = 0; i < 20; i++) {
			const int ret = read_page(r, range, i % 10);

			ck_assert_msg(!ret || ret == -EIO || ret == -ENOSPC,
				      "%s: %d", faults[_i].point, ret);
			n_bad += !!ret;
		}
		ck_assert_int_le(n_bad, 2);
		kio_fault_disarm();
		range_free(range);
		rig_mem_close(r);
	}
}
END_TEST

static uint64_t bad_bytes(struct rig_mem *r)
{
	struct kio_store_info info;

	kio_store_info(stores_disk(r->stores, 0), &info);
	return info.bad_bytes;
}

static uint32_t a_lower_page(const struct range *range)
{
	uint32_t i = 0;

	while (range->pages[i].state != PAGE_LOWER)
		i++;
	return i;
}

/* What may pass costs a want at most, and what passes at once not even that. */
START_TEST(a_read_that_fails_for_a_while_loses_nothing)
{
	static const int errors[] = { ENOMEM, ENOBUFS, EBUSY };
	struct rig_mem *r =
		rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						       .disk_bytes = 64 * PAGE,
						       .kind = kinds[_i % 2] });
	struct range *range = written(r, 12);
	const char *point = _i < 2 ? "uring.read" : "uring.submit";
	/* a ring that is busy is tried again until it is not */
	const uint32_t n = _i < 2 ? KV_ARRAY_LEN(errors) : 2;

	for (uint32_t k = 0; k < n; k++) {
		uint32_t i;

		rig_mem_settle(r);
		i = a_lower_page(range);
		kio_fault_arm(KIO_FAULT_ONCE, point, 1, errors[k]);
		ck_assert_int_eq(read_page(r, range, i), 0);
		ck_assert_uint_gt(kio_fault_count(), 0);
		rig_mem_settle(r);
		i = a_lower_page(range);
		kio_fault_arm(KIO_FAULT_FOREVER, point, 1, errors[k]);
		ck_assert_int_eq(read_page(r, range, i), -errors[k]);
		kio_fault_disarm();
		ck_assert_int_eq(read_page(r, range, i), 0);
	}
	ck_assert(!range_lost(range));
	ck_assert_uint_eq(bad_bytes(r), 0);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

START_TEST(a_medium_that_refuses_each_time_is_bad)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range = written(r, 12);
	uint32_t i;

	rig_mem_settle(r);
	i = a_lower_page(range);
	kio_fault_arm(KIO_FAULT_ONCE, "uring.read", 1, EIO);
	ck_assert_int_eq(read_page(r, range, i), 0);
	ck_assert_uint_eq(bad_bytes(r), 0);
	rig_mem_settle(r);
	i = a_lower_page(range);
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EIO);
	ck_assert_int_eq(read_page(r, range, i), -EIO);
	kio_fault_disarm();
	ck_assert(range_lost(range));
	ck_assert_uint_eq(bad_bytes(r), PAGE);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

START_TEST(scrubbing_that_cannot_read_says_nothing)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range = written(r, 12);
	struct page *pg;

	rig_mem_settle(r);
	pg = &range->pages[a_lower_page(range)];
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, ENOMEM);
	ck_assert_int_eq(scrub(r, pg), 0);
	kio_fault_arm(KIO_FAULT_ONCE, "uring.read", 1, EIO);
	ck_assert_int_eq(scrub(r, pg), 0);
	ck_assert_int_eq(pg->state, PAGE_LOWER);
	ck_assert_uint_eq(bad_bytes(r), 0);
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EIO);
	ck_assert_int_eq(scrub(r, pg), -EIO);
	kio_fault_disarm();
	ck_assert_int_eq(pg->state, PAGE_LOST);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

START_TEST(a_cancelled_want_holds_nothing)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range = written(r, 10);
	struct page_run run = { range, 0, 4, 0 };
	struct page_want w = { .runs = &run, .n_runs = 1 };
	struct pager_info info;

	ck_assert_int_eq(page_want(r->pager, &w), 0);
	page_want_cancel(r->pager, &w);
	rig_mem_settle(r);
	pager_info(r->pager, &info);
	ck_assert_uint_eq(info.pinned_bytes, 0);
	for (uint32_t i = 0; i < 10; i++)
		ck_assert_int_eq(read_page(r, range, i), 0);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

static int told, told_ret;

static void on_told(struct wait *w, int ret)
{
	(void)w;
	told++;
	told_ret = ret;
}

/* No thread changes bytes that another one reads for the disk. */
START_TEST(a_writer_waits_for_the_end_of_the_write)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range = written(r, 1);
	struct page_run run = { range, 0, 1, 0 };
	struct page_run out = { range, 0, 1, PAGE_WRITE };
	struct page_want reader = { .runs = &run, .n_runs = 1 };
	struct page_want writer = { .wait.done = on_told,
				    .runs = &out,
				    .n_runs = 1 };

	told = 0;
	ck_assert_int_eq(page_write_back(&range->pages[0]), 0);
	ck_assert_int_eq(page_want(r->pager, &reader), 1);
	page_unpin(r->pager, &run, 1);
	ck_assert_int_eq(page_want(r->pager, &writer), 0);
	ck_assert_int_eq(range->pages[0].state, PAGE_WRITING);
	while (!told)
		rig_mem_turn(r);
	ck_assert_int_eq(told_ret, 0);
	ck_assert_int_eq(range->pages[0].state, PAGE_DIRTY);
	ck_assert_int_eq(range->pages[0].slot, -1);
	rig_mem_fill(&out, 77);
	page_unpin(r->pager, &out, 1);
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	ck_assert(rig_mem_holds(&run, 77));
	page_unpin(r->pager, &run, 1);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

START_TEST(pages_mapped_ahead_make_no_want_wait)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 16 * PAGE, .disk_bytes = 64 * PAGE });
	struct range *range;
	struct page_run run = { .n = 4, .flags = PAGE_WRITE };
	struct page_want w = { .runs = &run, .n_runs = 1 };
	struct pager_info info;

	ck_assert_int_eq(range_new(r->pager, PAGE, 12, &range), 0);
	run.range = range;
	page_prefetch(r->pager, &run, 1);
	run.first = 4;
	page_prefetch(r->pager, &run, 1);
	rig_mem_settle(r);
	for (run.first = 0; run.first < 8; run.first += 4) {
		ck_assert_int_eq(page_want(r->pager, &w), 1);
		page_unpin(r->pager, &run, 1);
	}
	pager_info(r->pager, &info);
	ck_assert_uint_eq(info.n_map_waits_total, 0);
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	page_unpin(r->pager, &run, 1);
	pager_info(r->pager, &info);
	ck_assert_uint_eq(info.n_map_waits_total, 4);
	range_free(range);
	rig_mem_close(r);
}
END_TEST

/* The limit holds all reads of a while: then the order is that of who waits. */
START_TEST(a_step_goes_before_what_is_prefetched)
{
	struct rig_mem *r = rig_mem_open(
		(struct rig_mem_options){ .memory_bytes = 40 * PAGE,
					  .disk_bytes = 400 * PAGE,
					  .io_limit = 64 * PAGE });
	struct range *range = written(r, 32);
	struct page_run run = { range, 0, 1, 0 };
	struct pager_info before, after;

	range_free(written(r, 120));
	rig_mem_settle(r);
	pager_info(r->pager, &before);
	for (uint32_t i = 0; i < 32; i++) {
		run.first = i * 7 % 32;
		ck_assert_int_eq(range->pages[run.first].state, PAGE_LOWER);
		page_prefetch(r->pager, &run, 1);
	}
	while (range->pages[run.first].state == PAGE_LOWER)
		rig_mem_turn(r);
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	pager_info(r->pager, &after);
	ck_assert_uint_le(after.n_read_total, before.n_read_total + 3);
	ck_assert(rig_mem_holds(&run, run.first + 1));
	page_unpin(r->pager, &run, 1);
	range_free(range);
	rig_mem_settle(r);
	rig_mem_close(r);
}
END_TEST

static int durable_ret;
static int is_durable;

static void on_durable(struct wait *w, int ret)
{
	(void)w;
	durable_ret = ret;
	is_durable = 1;
}

static int make_durable(struct rig_mem *r, struct range *range)
{
	struct range_persist p = { .wait.done = on_durable,
				   .range = range,
				   .key = { 1, 2 },
				   .meta = &p,
				   .meta_bytes = 8 };
	const int ret = range_persist(&p);

	is_durable = 0;
	for (uint64_t t0 = clock_ns();
	     !ret && !is_durable && rig_mem_patient(t0);)
		rig_mem_turn(r);
	ck_assert(ret || is_durable);
	return ret ? ret : durable_ret;
}

/*
 * Behind everybody's back: 12 MiB of small pages go in two requests, not hundreds. A
 * request that fails is done again.
 */
START_TEST(what_nobody_waits_for_goes_in_large_writes)
{
	const uint32_t n = (12u << 20) / PAGE;
	char path[] = "/var/tmp/kvd-pager-XXXXXX";
	const uint64_t fails = _i % 2 ? 2 : UINT64_MAX; /* this request */
	struct page_run run = { .n = n, .flags = PAGE_WRITE };
	struct rig_mem *r;

	ck_assert_int_ge(close(mkstemp(path)), 0);
	r = rig_mem_open((struct rig_mem_options){ .memory_bytes = 16u << 20,
						   .disk_bytes = 32u << 20,
						   .kind = kinds[_i / 2],
						   .store = path });
	ck_assert_int_eq(range_new(r->pager, PAGE, n, &run.range), 0);
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	rig_mem_fill(&run, 5);
	page_unpin(r->pager, &run, 1);
	kio_fault_arm(KIO_FAULT_ONCE, "uring.write", fails, EIO);
	ck_assert_int_eq(make_durable(r, run.range), 0);
	if (_i % 2 == 0)
		ck_assert_uint_eq(kio_fault_count(), 2);
	else
		ck_assert_uint_gt(kio_fault_count(), 2);
	kio_fault_disarm();
	ck_assert_int_eq(range_durable(run.range), 1);
	ck_assert_int_eq(make_durable(r, run.range), -EALREADY);
	for (uint32_t i = 0; i < n; i++) {
		ck_assert_int_eq(run.range->pages[i].state, PAGE_CLEAN);
		page_drop(&run.range->pages[i]);
	}
	rig_mem_settle(r);
	run.flags = 0;
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	ck_assert(rig_mem_holds(&run, 5));
	page_unpin(r->pager, &run, 1);
	range_free(run.range);
	rig_mem_close(r);
	(void)unlink(path);
}
END_TEST

/* Address space is taken for each page size: clients choose them. */
/* By cachecraft, what saves less of a use goes first, however it was told before. */
START_TEST(what_a_use_saves_decides)
{
	struct rig_mem *r = rig_mem_open(
		(struct rig_mem_options){ .memory_bytes = 4 * PAGE,
					  .disk_bytes = 64 * PAGE,
					  .policy = "cachecraft" });
	struct range *little = written(r, 1), *much = written(r, 1), *more;
	struct page_run run;

	range_gain(little, 1.25f);
	range_gain(much, RANGE_GAIN_MAX);
	ck_assert_int_eq(read_page(r, much, 0), 0);
	ck_assert_int_eq(read_page(r, little, 0), 0); /* the last one used */
	ck_assert_float_eq(little->pages[0].evict.gain, 1.25f);
	ck_assert_float_eq(much->pages[0].evict.gain, RANGE_GAIN_MAX);
	ck_assert_int_eq(range_new(r->pager, PAGE, 3, &more), 0);
	run = (struct page_run){ more, 0, 3, PAGE_WRITE };
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	ck_assert_uint_eq(range_n_resident(much), 1);
	ck_assert_uint_eq(range_n_resident(little), 0);
	page_unpin(r->pager, &run, 1);
	range_free(little);
	range_free(much);
	range_free(more);
	rig_mem_close(r);
}
END_TEST

START_TEST(page_sizes_are_few)
{
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 1 << 20, .disk_bytes = 1 << 20 });
	struct range *all[PAGER_PAGE_SIZES], *more;
	struct page_run run = { .n = 1, .flags = PAGE_WRITE };

	for (uint32_t i = 0; i < PAGER_PAGE_SIZES; i++)
		ck_assert_int_eq(
			range_new(r->pager, (i + 1) * 4096, 2, all + i), 0);
	more = NULL;
	ck_assert_int_eq(range_new(r->pager, 25 * 4096, 1, &more), -EDQUOT);
	ck_assert_ptr_null(more);
	ck_assert_int_eq(range_new(r->pager, 4096, 1, &more), 0);
	range_free(more);
	/* one that nobody uses any more makes room, again and again */
	for (uint32_t i = 0; i < 200; i++) {
		run.range = all[i % 3];
		ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
		rig_mem_fill(&run, i);
		page_unpin(r->pager, &run, 1);
		range_free(all[i % 3]);
		rig_mem_settle(r);
		ck_assert_int_eq(
			range_new(r->pager, (30 + i) * 4096, 2, all + i % 3),
			0);
	}
	for (uint32_t i = 0; i < PAGER_PAGE_SIZES; i++)
		range_free(all[i]);
	rig_mem_close(r);
}
END_TEST

static uint64_t mapped_bytes(void)
{
	unsigned long n_pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(fscanf(f, "%lu", &n_pages), 1);
	(void)fclose(f);
	return n_pages * 4096ull;
}

/* With addresses for one space and a half each page size has its own. */
START_TEST(page_sizes_share_few_addresses)
{
	const uint64_t all = mapped_bytes() + (3ull << 39);
	const struct rlimit few = { all, all };
	struct rig_mem *r;
	struct range *ranges[PAGER_PAGE_SIZES];

	ck_assert_int_eq(setrlimit(RLIMIT_AS, &few), 0);
	r = rig_mem_open((struct rig_mem_options){ .memory_bytes = 1 << 20,
						   .disk_bytes = 1 << 20 });
	for (uint32_t i = 0; i < PAGER_PAGE_SIZES; i++) {
		struct page_run run = { .n = 1, .flags = PAGE_WRITE };

		ck_assert_int_eq(
			range_new(r->pager, (i + 1) * 4096, 2, &ranges[i]), 0);
		run.range = ranges[i];
		ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
		rig_mem_fill(&run, i);
		page_unpin(r->pager, &run, 1);
	}
	for (uint32_t i = 0; i < PAGER_PAGE_SIZES; i++)
		range_free(ranges[i]);
	rig_mem_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pager");
	TCase *t = tcase_create("pager");
	SRunner *r;
	int n, n_policies = 0;

	tcase_set_timeout(t, 120);
	while (evict_policies[n_policies])
		n_policies++;
	tcase_add_loop_test(t, bytes_survive_a_tiny_budget, 0, 2 * n_policies);
	tcase_add_test(t, page_sizes_are_few);
	tcase_add_test(t, page_sizes_share_few_addresses);
	tcase_add_test(t, what_a_use_saves_decides);
	tcase_add_test(t, a_flipped_bit_is_never_served);
	tcase_add_test(t, scrubbing_keeps_what_is_in_memory);
	tcase_add_test(t, a_full_disk_loses_nothing);
	tcase_add_test(t, what_nobody_uses_makes_room);
	tcase_add_test(t, reservations_are_bounded);
	tcase_add_loop_test(t, failures_are_answers, 0, 5);
	tcase_add_loop_test(t, a_read_that_fails_for_a_while_loses_nothing, 0,
			    3);
	tcase_add_test(t, a_medium_that_refuses_each_time_is_bad);
	tcase_add_test(t, scrubbing_that_cannot_read_says_nothing);
	tcase_add_test(t, a_cancelled_want_holds_nothing);
	tcase_add_test(t, a_writer_waits_for_the_end_of_the_write);
	tcase_add_test(t, pages_mapped_ahead_make_no_want_wait);
	tcase_add_test(t, a_step_goes_before_what_is_prefetched);
	tcase_add_loop_test(t, what_nobody_waits_for_goes_in_large_writes, 0,
			    4);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
