/*
 * test_device_fault.c - pagers over a device whose calls fail, whose disk fails, that
 * is lost
 *
 * Whatever fails: bytes that are told are right, the books add up, and nothing that was
 * written and not lost with the device is lost.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/mem/op.h"
#include "tests/rig/rig_dev.h"

#define PAGE	RIG_DEV_FRAME
#define N_PAGES 16u

static struct rig_dev *r;
static uint32_t filled[N_PAGES]; /* what was written; 0: nothing */

static uint32_t *words(struct range *range, uint32_t i)
{
	return (uint32_t *)(range_addr(range) + i * PAGE);
}

static int holds(struct range *range, uint32_t i, uint32_t seed)
{
	const uint32_t *p = words(range, i);
	uint32_t n_bad = 0;

	for (uint32_t k = 0; k < PAGE / 4; k++)
		n_bad += p[k] != seed * 2654435761u + k;
	return !n_bad;
}

/* A page pinned for a moment: written with seed, or (0) compared. 0 or the error. */
static int touch(struct range *range, uint32_t i, uint32_t seed)
{
	struct page_run run = { range, i, 1, seed ? PAGE_WRITE : 0 };
	struct pager *p = range_pager(range);
	int ret;

	ck_assert_int_eq(pager_reserve(p, PAGE), 0);
	ret = rig_dev_want(r, p, &run, 1);
	if (!ret && seed) {
		for (uint32_t k = 0; k < PAGE / 4; k++)
			words(range, i)[k] = seed * 2654435761u + k;
		filled[i] = seed;
	} else if (!ret && filled[i]) {
		ck_assert(holds(range, i, filled[i]));
	}
	if (!ret)
		page_unpin(p, &run, 1);
	pager_unreserve(p, PAGE);
	return ret;
}

/* Everything goes down, comes back, is written again; what fails is passed over. */
static int work(struct range *range)
{
	int n_failed = 0;

	for (uint32_t i = 0; i < N_PAGES; i++)
		n_failed += touch(range, i, i + 1) != 0;
	for (uint32_t i = 0; i < N_PAGES; i++)
		n_failed += touch(range, i, 0) != 0;
	for (uint32_t i = 0; i < N_PAGES; i += 2)
		n_failed += touch(range, i, 100 + i) != 0;
	return n_failed;
}

static struct rig_dev_options small(void)
{
	return (struct rig_dev_options){ .memory_bytes = 3 * PAGE,
					 .host_bytes = 8 * PAGE,
					 .disk_bytes = 32 * PAGE };
}

static int is_stuck(int ret)
{
	struct vmm_counts n;

	vmm_counts(device_vmm(r->device), &n);
	return ret == -EIO && n.n_stuck;
}

/* The nth call fails once. Returns 0 when there were fewer. */
static int fail_nth(uint64_t nth, int err, uint32_t *n_failed)
{
	struct rig_dev_options o = small();
	struct range *range = NULL;
	int reached, ret;

	memset(filled, 0, sizeof(filled));
	clock_set(0);
	o.mode = FAKE_ONCE;
	o.prefix = "cu";
	o.nth = nth;
	o.err = err;
	r = rig_dev_open(o);
	if (!r) {
		++*n_failed;
		return 1;
	}
	ret = range_new(r->pagers[0], PAGE, N_PAGES, &range);
	*n_failed += ret ? 1 : (uint32_t)work(range);
	reached = r->ctl.count() >= nth;
	r->ctl.arm(FAKE_OFF, "", 0, 0);
	clock_set(clock_ns() + 3000000000ull); /* who rests has rested */
	rig_dev_settle(r);
	for (uint32_t i = 0; range && i < N_PAGES; i++) {
		ret = touch(range, i, 0);
		/* a page that cannot be unmapped has no way back */
		ck_assert_msg(!ret || device_lost(r->device) || is_stuck(ret),
			      "call %llu: page %u: %d", (unsigned long long)nth,
			      i, ret);
	}
	range_free(range);
	rig_dev_close(r);
	return reached;
}

static const int errors[] = { CUDA_OUT_OF_MEMORY, CUDA_ILLEGAL_ADDRESS };

START_TEST(any_call_may_fail)
{
	const uint64_t step = getenv("KVD_LONG") ? 1 : 5;
	uint32_t n_failed = 0, n = 0;
	uint64_t nth = 1 + (uint64_t)getpid() % step;

	for (; fail_nth(nth, errors[_i], &n_failed); nth += step)
		n++;
	printf("%s: %u places, from %llu by %llu; %u wants or starts failed\n",
	       _i ? "the device is lost" : "out of memory", n,
	       (unsigned long long)(1 + (uint64_t)getpid() % step),
	       (unsigned long long)step, n_failed);
	ck_assert_uint_gt(n, 20);
	ck_assert_uint_gt(n_failed, 0);
	clock_set(0);
}
END_TEST

/* ---- one thing after the other ---------------------------------------------- */

static struct range *open_small(struct rig_dev_options o)
{
	struct range *range;

	memset(filled, 0, sizeof(filled));
	r = rig_dev_open(o);
	ck_assert_ptr_nonnull(r);
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_PAGES, &range), 0);
	return range;
}

static void finish(struct range *range)
{
	range_free(range);
	rig_dev_close(r);
	clock_set(0);
}

/* Others have most of the card: what there is is used in turns. */
START_TEST(the_card_is_full)
{
	struct rig_dev_options o = small();
	struct range *range;
	struct device_info d;

	o.memory_bytes = 6 * PAGE;
	o.host_bytes = 32 * PAGE;
	range = open_small(o);
	vmm_settle(device_vmm(r->device)); /* frames that were made ahead */
	device_info(r->device, &d);
	r->ctl.others((64u << 20) - d.vmm.n_frames * PAGE);
	ck_assert_int_eq(work(range), 0);
	device_info(r->device, &d);
	ck_assert_uint_lt(d.vmm.n_frames, 7);
	r->ctl.others(0);
	finish(range);
}
END_TEST

START_TEST(the_card_has_room_for_two)
{
	struct range *range =
		open_small((struct rig_dev_options){ .memory_bytes = 6 * PAGE,
						     .host_bytes = 32 * PAGE,
						     .disk_bytes = 32 * PAGE });
	struct page_run run = { range, 0, 3, 0 };
	struct device_info d;

	vmm_settle(device_vmm(r->device));
	/* no frame but two can be made from now on */
	r->ctl.arm(FAKE_FOREVER, "cuMemCreate", 1, CUDA_OUT_OF_MEMORY);
	r->armed = 1;
	device_info(r->device, &d);
	ck_assert_int_eq(work(range), 0);
	/* more than there are at once: nobody waits for ever */
	if (d.vmm.n_frames < 3) {
		ck_assert_int_eq(pager_reserve(r->pagers[0], 3 * PAGE), 0);
		ck_assert_int_eq(rig_dev_want(r, r->pagers[0], &run, 1),
				 -ENOSPC);
		pager_unreserve(r->pagers[0], 3 * PAGE);
	}
	finish(range);
}
END_TEST

/* What is below it outlives the device, and the pagers go on answering. */
START_TEST(a_lost_device_leaves_what_is_below)
{
	struct range *range = open_small(small()), *other;
	struct pager_info i;
	struct device_info d;

	ck_assert_int_eq(work(range), 0);
	rig_dev_settle(r);
	r->ctl.lose(CUDA_ILLEGAL_ADDRESS);
	for (uint32_t k = 0; k < 2 * N_PAGES; k++)
		if (touch(range, k % N_PAGES, 0) == -ENODEV && k >= N_PAGES)
			ck_assert(device_lost(r->device));
	ck_assert(device_lost(r->device));
	ck_assert_int_eq(touch(range, 0, 0), -ENODEV);
	ck_assert_int_eq(touch(range, 0, 5), -ENODEV);
	rig_dev_settle(r);
	device_info(r->device, &d);
	pager_info(r->pagers[0], &i);
	ck_assert_uint_gt(i.n_lower, 0);
	ck_assert_uint_gt(d.park.used_bytes, 0);
	ck_assert_uint_eq(i.n_lost, 0);
	if (!range_new(r->pagers[0], 2 * PAGE, 1, &other)) /* or no space */
		range_free(other);
	finish(range);
}
END_TEST

/* The nth operation of a stream fails, for good or not. */
START_TEST(a_copy_fails)
{
	for (uint64_t nth = 1; nth < 40; nth += 2) {
		struct range *range = open_small(small());
		int n_failed;

		r->armed = 1;
		r->ctl.fail_op(nth,
			       _i ? CUDA_ILLEGAL_ADDRESS : CUDA_OUT_OF_MEMORY,
			       _i);
		n_failed = work(range);
		ck_assert(!_i || !n_failed || device_lost(r->device));
		r->ctl.fail_op(0, 0, 0);
		clock_set(clock_ns() + 3000000000ull);
		rig_dev_settle(r);
		for (uint32_t i = 0; i < N_PAGES && !_i; i++)
			ck_assert_int_eq(touch(range, i, 0), 0);
		finish(range);
	}
}
END_TEST

/* Disk: writes fail for a while, then all is well; no byte is lost. */
START_TEST(the_disk_fails)
{
	struct range *range;
	struct device_info d;
	int n_failed;

	for (uint64_t nth = 1; nth < 12; nth += 3) {
		range = open_small(small());
		kio_fault_arm(_i ? KIO_FAULT_FOREVER : KIO_FAULT_ONCE,
			      "uring.write", nth, EIO);
		n_failed = work(range);
		rig_dev_settle(r);
		device_info(r->device, &d);
		ck_assert_uint_gt(d.park.flush_errors, 0);
		kio_fault_disarm();
		/* with a full pool that nobody can write wants fail */
		ck_assert(_i || !n_failed);
		clock_set(clock_ns() + 3000000000ull);
		for (uint32_t i = 0; i < N_PAGES; i++)
			ck_assert_int_eq(touch(range, i, 0), 0);
		finish(range);
	}
}
END_TEST

/* ---- of two disks one is of no use --------------------------------------------- */

static struct rig_dev_options two_disks(void)
{
	struct rig_dev_options o = small();

	o.first_bytes = 256u << 20;
	o.second_bytes = 64u << 20;
	o.kind =
		KIO_ENGINE_THREADS; /* reads by io_uring go past kio_sys_disk */
	return o;
}

/* The room of the first is in zones of another size, whose pages nobody can move. */
START_TEST(a_range_goes_where_its_pages_fit)
{
	const uint32_t n = (256u << 20) / (2 * PAGE);
	int64_t *at = calloc(n + 1, sizeof(*at));
	struct range *range = open_small(two_disks());
	struct kio_store *disk = stores_disk(r->stores, 0);
	struct kio_store_info k[2];
	uint32_t i = 0;

	ck_assert_ptr_nonnull(at);
	while ((at[i] = kio_store_alloc(disk, 2 * PAGE)) >= 0)
		i++;
	while (i--)
		if (i % 8)
			kio_store_release(disk, (uint64_t)at[i], 2 * PAGE);
	for (i = 0; i < 2; i++)
		kio_store_info(stores_disk(r->stores, i), &k[i]);
	ck_assert_uint_gt(k[0].bytes - k[0].used_bytes,
			  2 * (k[1].bytes - k[1].used_bytes));
	ck_assert_int_eq(work(range), 0);
	ck_assert_uint_eq(range_disk(range), 1);
	free(at);
	finish(range);
}
END_TEST

static int bad_fd;

static ssize_t bad_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	if (fd != bad_fd)
		return pwrite(fd, buf, n, at);
	errno = EIO;
	return -1;
}

/* What is in the pool, and not on the disk yet that takes nothing, goes to the other. */
START_TEST(a_range_goes_where_it_can_be_written)
{
	static const struct kio_disk bad = { .pread = pread,
					     .pwrite = bad_pwrite,
					     .fdatasync = fdatasync };
	struct range *range = open_small(two_disks()), *next;
	struct device_info d;

	bad_fd = kio_store_fd(stores_disk(r->stores, 0));
	kio_sys_disk = &bad;
	ck_assert_int_eq(work(range), 0);
	ck_assert_uint_eq(range_disk(range), 1);
	for (uint32_t i = 0; i < 12; i++) { /* until it is known to be bad */
		ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_PAGES, &next),
				 0);
		range_free(range);
		range = next;
		memset(filled, 0, sizeof(filled));
		ck_assert_int_eq(work(range), 0);
		ck_assert_uint_eq(range_disk(range), 1);
	}
	for (uint32_t i = 0; i < N_PAGES; i++)
		ck_assert_int_eq(touch(range, i, 0), 0);
	device_info(r->device, &d);
	ck_assert_uint_gt(d.park.flush_errors, 0);
	finish(range);
	kio_sys_disk = NULL;
}
END_TEST

#define N_MANY 300u /* more than may be on the way to a disk */

static int hung_fd;
static _Atomic int hangs;

static ssize_t hung_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	while (fd == hung_fd && hangs)
		(void)usleep(1000);
	return pwrite(fd, buf, n, at);
}

static ssize_t hung_pread(int fd, void *buf, size_t n, off_t at)
{
	while (fd == hung_fd && hangs)
		(void)usleep(1000);
	return pread(fd, buf, n, at);
}

static void leave(void *ctx, uint32_t i_disk)
{
	(void)ctx;
	pager_leave_disk(r->pagers[0], i_disk);
}

/* All pages one by one: written, or compared. */
static void touch_many(struct range *range, uint32_t salt, int write)
{
	for (uint32_t i = 0; i < N_MANY; i++) {
		struct page_run run = { range, i, 1, write ? PAGE_WRITE : 0 };

		ck_assert_int_eq(rig_dev_want(r, r->pagers[0], &run, 1), 0);
		if (write)
			for (uint32_t k = 0; k < PAGE / 4; k++)
				words(range, i)[k] =
					(i + 1 + salt) * 2654435761u + k;
		else
			ck_assert(holds(range, i, i + 1 + salt));
		page_unpin(r->pagers[0], &run, 1);
	}
}

/* What is on the way to one that is silent keeps nothing from going to the other. */
START_TEST(one_that_is_silent_holds_up_no_other)
{
	static const struct kio_disk hung = { .pread = pread,
					      .pwrite = hung_pwrite,
					      .fdatasync = fdatasync };
	struct rig_dev_options o = two_disks();
	struct range *a, *b;

	o.host_bytes = 512 * PAGE;
	o.disk_bytes = 1024 * PAGE;
	a = open_small(o);
	range_free(a);
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_MANY, &a), 0);
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_MANY, &b), 0);
	ck_assert_int_eq(pager_reserve(r->pagers[0], PAGE), 0);
	stores_on_silent(r->stores, 2000000000, leave, NULL);
	hung_fd = kio_store_fd(stores_disk(r->stores, 0));
	kio_sys_disk = &hung;
	hangs = 1;
	touch_many(a, 0, 1);
	ck_assert_uint_eq(range_disk(a), 0);
	while (!stores_is_silent(r->stores, 0))
		rig_dev_turn(r);
	touch_many(b, N_MANY, 1);
	ck_assert_uint_eq(range_disk(b), 1);
	touch_many(b, N_MANY, 0);
	hangs = 0;
	touch_many(a, 0, 0);
	touch_many(b, N_MANY, 0);
	pager_unreserve(r->pagers[0], PAGE);
	range_free(a);
	finish(b);
	kio_sys_disk = NULL;
}
END_TEST

static void write_all(struct range *range)
{
	for (uint32_t i = 0; i < N_PAGES; i++) {
		struct page_run run = { range, i, 1, PAGE_WRITE };

		ck_assert_int_eq(rig_dev_want(r, r->pagers[0], &run, 1), 0);
		page_unpin(r->pagers[0], &run, 1);
	}
}

static int n_scrubbed, persist_ret;

static void persist_told(struct wait *w, int ret)
{
	(void)w;
	persist_ret = ret;
}

static void scrubbed(struct page_scrub *s, int ret)
{
	(void)s;
	ck_assert_int_eq(ret, 0);
	n_scrubbed++;
}

/* One of its pages was scrubbed as it was written again: that read is still out. */
START_TEST(a_range_stays_while_a_page_of_it_is_read)
{
	static const struct kio_disk hung = { .pread = hung_pread,
					      .pwrite = hung_pwrite,
					      .fdatasync = fdatasync };
	char path[] = "/var/tmp/kvd-stays-XXXXXX", second[128];
	struct rig_dev_options o = two_disks();
	struct range_persist rp = { .key = { 1, 2 },
				    .meta = "m",
				    .meta_bytes = 1,
				    .wait.done = persist_told };
	struct range *a, *b;
	struct page_scrub scrub = { .n_bytes = PAGE, .done = scrubbed };
	struct page_run run = { .n = 1 };
	struct page *pg;

	ck_assert_int_ge(close(mkstemp(path)), 0);
	ck_assert_int_eq(unlink(path), 0);
	o.store = path;
	range_free(open_small(o));
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 5, &a), 0);
	rp.range = run.range = a;
	pg = &a->pages[0];
	ck_assert(!posix_memalign(&scrub.buf, 4096, PAGE));
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_PAGES, &b), 0);
	stores_on_silent(r->stores, 2000000000, leave, NULL);
	ck_assert_int_eq(touch(a, 0, 1), 0);
	write_all(b); /* a goes down for it */
	ck_assert_int_eq(rig_dev_want(r, r->pagers[0], &run, 1), 0);
	write_all(b); /* and out of the pool */
	page_unpin(r->pagers[0], &run, 1);
	range_free(b);
	rig_dev_settle(r);
	ck_assert(page_can_scrub(pg));
	ck_assert_uint_eq(range_disk(a), 0);
	hung_fd = kio_store_fd(stores_disk(r->stores, 0));
	kio_sys_disk = &hung;
	hangs = 1;
	n_scrubbed = 0;
	ck_assert_int_eq(page_scrub_start(pg, &scrub), 0);
	ck_assert_int_eq(touch(a, 0, 50), 0);
	for (uint32_t i = 1; i < 5; i++) /* no more than the pool keeps */
		ck_assert_int_eq(touch(a, i, i + 1), 0);
	while (!stores_is_silent(r->stores, 0))
		rig_dev_turn(r);
	persist_ret = 1;
	ck_assert_int_eq(range_persist(&rp), 0);
	while (persist_ret == 1)
		rig_dev_turn(r);
	ck_assert_int_eq(persist_ret, -EIO);
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, N_PAGES, &b), 0);
	write_all(b); /* what is in the pool has to go for it */
	ck_assert_int_eq(n_scrubbed, 0);
	hangs = 0;
	while (!n_scrubbed)
		rig_dev_turn(r);
	for (uint32_t i = 0; i < 5; i++)
		ck_assert_int_eq(touch(a, i, 0), 0);
	range_free(b);
	(void)snprintf(second, sizeof(second), "%s/second", r->dir);
	ck_assert_int_eq(unlink(second), 0);
	finish(a);
	free(scrub.buf);
	kio_sys_disk = NULL;
	(void)unlink(path);
}
END_TEST

/* A bit of the page changes on disk. */
static void damage(const struct range *range, uint32_t i)
{
	const int fd = kio_store_fd(stores_disk(r->stores, 0));
	const off_t at = range->pages[i].slot * 4096;
	char buf[4096] __attribute__((aligned(4096)));

	ck_assert_int_eq(pread(fd, buf, 4096, at), 4096);
	buf[100] ^= 4;
	ck_assert_int_eq(pwrite(fd, buf, 4096, at), 4096);
}

/* A read that fails, and bytes that are not those that were written. */
START_TEST(what_is_on_disk_is_checked)
{
	struct rig_dev_options o = small();
	struct range *range;
	struct pager_info i;
	uint32_t n_lost = 0;
	int ret;

	o.host_bytes = 8 * PAGE;
	range = open_small(o);
	ck_assert_int_eq(work(range), 0);
	rig_dev_settle(r);
	if (_i)
		kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EIO);
	for (uint32_t k = 0; k < N_PAGES && !_i; k++)
		if (range_lower_bytes(range, k, 1)) {
			damage(range, k);
			break;
		}
	for (uint32_t k = 0; k < N_PAGES; k++) {
		ret = touch(range, k, 0);
		ck_assert(!ret || ret == (_i ? -EIO : -EBADMSG));
		n_lost += ret != 0;
		if (ret)
			kio_fault_disarm();
	}
	pager_info(r->pagers[0], &i);
	ck_assert_uint_eq(n_lost, 1);
	ck_assert_uint_eq(i.n_lost, 1);
	ck_assert(range_lost(range));
	finish(range);
}
END_TEST

static int n_told;

static void on_persisted(struct wait *w, int ret)
{
	(void)w;
	ck_assert_int_eq(ret, 0);
	n_told++;
}

static void persist(struct range *range)
{
	struct range_persist p = { .wait.done = on_persisted,
				   .range = range,
				   .key = { 1, 2 },
				   .meta = "x",
				   .meta_bytes = 1 };

	n_told = 0;
	ck_assert_int_eq(range_persist(&p), 0);
	while (!n_told)
		rig_dev_turn(r);
}

/* A page of a durable range that has no way back: its slot goes with the record. */
START_TEST(a_stuck_address_keeps_no_slot)
{
	char path[] = "/var/tmp/kvd-stuck-XXXXXX";
	struct rig_dev_options o = small();
	struct kio_store_info info;
	struct kio_store *disk;
	struct range *range;
	int n_lost = 0;

	ck_assert_int_ge(close(mkstemp(path)), 0);
	ck_assert_int_eq(unlink(path), 0);
	o.store = path;
	range = open_small(o);
	ck_assert_int_eq(work(range), 0);
	persist(range);
	disk = stores_disk(r->stores, 0);
	r->ctl.arm(FAKE_ONCE, "cuMemUnmap", 1, errors[0]);
	r->armed = 1;
	for (uint32_t k = 0; k < 4 * N_PAGES && !n_lost; k++)
		n_lost += touch(range, k % N_PAGES, 0) && range_lost(range);
	r->ctl.arm(FAKE_OFF, "", 0, 0);
	ck_assert_int_eq(n_lost, 1);
	clock_set(clock_ns() + 3000000000ull);
	rig_dev_settle(r);
	range_free(range);
	do {
		rig_dev_turn(r);
		kio_store_info(disk, &info);
	} while (info.pending_bytes);
	rig_dev_settle(r);
	kio_store_info(disk, &info);
	ck_assert_uint_eq(info.slot_bytes, 0);
	rig_dev_close(r);
	clock_set(0);
	(void)unlink(path);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("device_fault");
	TCase *t = tcase_create("device"), *disk = tcase_create("disk");
	SRunner *sr;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(t, 300);
	tcase_set_timeout(disk, 300);
	tcase_add_loop_test(t, any_call_may_fail, 0, (int)KV_ARRAY_LEN(errors));
	tcase_add_test(t, the_card_is_full);
	tcase_add_test(t, the_card_has_room_for_two);
	tcase_add_test(t, a_lost_device_leaves_what_is_below);
	tcase_add_loop_test(t, a_copy_fails, 0, 2);
	tcase_add_loop_test(disk, the_disk_fails, 0, 2);
	tcase_add_test(disk, a_range_goes_where_its_pages_fit);
	tcase_add_test(disk, a_range_goes_where_it_can_be_written);
	tcase_add_test(disk, one_that_is_silent_holds_up_no_other);
	tcase_add_test(disk, a_range_stays_while_a_page_of_it_is_read);
	tcase_add_loop_test(disk, what_is_on_disk_is_checked, 0, 2);
	tcase_add_test(disk, a_stuck_address_keeps_no_slot);
	suite_add_tcase(s, t);
	suite_add_tcase(s, disk);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
