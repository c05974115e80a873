/*
 * test_silent_disk.c - a disk that ends nothing: what can go elsewhere does, what waits for it
 * holds no memory that others could have, and nothing is lost
 *
 * Below the storage threads, that io_uring cannot be held up from outside is no matter: it
 * is done() that does not come.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/op.h"
#include "kvd/mem/stores.h"
#include "tests/rig/rig_mem.h"

#define PAGE	 65536u
#define N_FRAMES 16u
#define N_REQS	 12u
#define PATIENCE 100000000u /* 0.1 s */

static int hung_fd;
static _Atomic int hangs;

static void hang(int fd)
{
	while (fd == hung_fd && hangs)
		(void)usleep(1000);
}

static ssize_t hung_pread(int fd, void *buf, size_t n, off_t at)
{
	hang(fd);
	return pread(fd, buf, n, at);
}

static ssize_t hung_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	hang(fd);
	return pwrite(fd, buf, n, at);
}

static const struct kio_disk hung = { .pread = hung_pread,
				      .pwrite = hung_pwrite,
				      .fdatasync = fdatasync };

/* ---- two disks --------------------------------------------------------------- */

#define DISK (64ull << 20)

static struct loop *loop;
static struct stores *stores;
static char paths[2][64];
static uint32_t n_told, n_done;

static void open_two(void)
{
	struct stores_conf c = { .kind = KIO_ENGINE_THREADS,
				 .depth = 4,
				 .n = 2 };
	char err[256] = "";

	ck_assert_int_eq(loop_new(&loop), 0);
	c.loop = loop;
	for (uint32_t i = 0; i < 2; i++) {
		strcpy(paths[i], "/var/tmp/kvd-silent-XXXXXX");
		ck_assert_int_eq(close(mkstemp(paths[i])), 0);
		c.disks[i].path = paths[i];
		c.disks[i].bytes = i ? DISK : 4 * DISK;
	}
	ck_assert_int_eq(stores_new(&stores, &c), 0);
	ck_assert_msg(!stores_open(stores, NULL, NULL, err, sizeof(err)), "%s",
		      err);
}

static void close_two(void)
{
	stores_free(stores);
	loop_free(loop);
	for (uint32_t i = 0; i < 2; i++)
		ck_assert_int_eq(unlink(paths[i]), 0);
}

static void told(void *ctx, uint32_t i_disk)
{
	ck_assert_ptr_eq(ctx, &n_told);
	ck_assert_uint_eq(i_disk, 0);
	n_told++;
}

static void req_done(struct kio_req *r)
{
	stores_end(stores, 0, r);
	ck_assert_int_eq(r->ret, 0);
	n_done++;
}

/* Reads, or writes, of disk 0. */
static void ask(struct kio_req *reqs, struct stores_flow *f, char *buf,
		const int64_t *at, int writes)
{
	n_done = 0;
	for (uint32_t i = 0; i < N_REQS; i++) {
		reqs[i] = (struct kio_req){ .buf = buf + (size_t)i * PAGE,
					    .block = (uint64_t)at[i],
					    .n_bytes = PAGE,
					    .done = req_done };
		(writes ? stores_write : stores_read)(stores, 0, f, 0,
						      &reqs[i]);
	}
}

static void turn(void)
{
	ck_assert_int_eq(loop_turn(loop, 1), 0);
}

/* It has more room, and is asked for nothing more until it answers. */
START_TEST(what_is_new_goes_elsewhere)
{
	static struct kio_req reqs[N_REQS];
	struct stores_flow f;
	int64_t at[N_REQS];
	void *buf;

	open_two();
	stores_flow_init(&f, 100, 0);
	stores_on_silent(stores, PATIENCE, told, &n_told);
	ck_assert(!posix_memalign(&buf, 4096, N_REQS * PAGE));
	memset(buf, 1, N_REQS * PAGE);
	for (uint32_t i = 0; i < N_REQS; i++)
		at[i] = kio_store_alloc(stores_disk(stores, 0), PAGE);
	hung_fd = kio_store_fd(stores_disk(stores, 0));
	kio_sys_disk = &hung;
	ask(reqs, &f, buf, at, 1);
	while (n_done < N_REQS)
		turn();
	ck_assert(!stores_is_silent(stores, 0));
	ck_assert_int_eq(stores_pick(stores, PAGE, 0), 0);
	hangs = 1;
	ask(reqs, &f, buf, at, 0);
	while (n_told < 2)
		turn();
	ck_assert(stores_is_silent(stores, 0) && stores_is_bad(stores, 0));
	ck_assert(!stores_is_silent(stores, 1));
	ck_assert_int_eq(stores_pick(stores, PAGE, 0), 1);
	/* as good as never: years */
	ck_assert_uint_gt(stores_read_ns(stores, 0, &f, 1), 1ull << 48);
	ck_assert_uint_eq(n_done, 0);
	hangs = 0;
	while (n_done < N_REQS)
		turn();
	ck_assert(!stores_is_silent(stores, 0));
	ck_assert_int_eq(stores_pick(stores, PAGE, 0), 0);
	/* nor is it taken to be slow for that */
	ck_assert_uint_lt(stores_read_ns(stores, 0, &f, 1), 1ull << 24);
	free(buf);
	close_two();
}
END_TEST

/* Time for which the daemon was stopped is not the disk's: its threads were, too. */
START_TEST(a_daemon_that_stood_still_does_not_blame_it)
{
	static struct kio_req reqs[N_REQS];
	struct stores_flow f;
	int64_t at[N_REQS];
	uint64_t now;
	void *buf;

	open_two();
	stores_flow_init(&f, 100, 0);
	stores_on_silent(stores, PATIENCE, told, &n_told);
	ck_assert(!posix_memalign(&buf, 4096, N_REQS * PAGE));
	memset(buf, 1, N_REQS * PAGE);
	for (uint32_t i = 0; i < N_REQS; i++)
		at[i] = kio_store_alloc(stores_disk(stores, 0), PAGE);
	hung_fd = kio_store_fd(stores_disk(stores, 0));
	kio_sys_disk = &hung;
	hangs = 1;
	now = clock_ns();
	clock_set(now);
	n_told = 0;
	ask(reqs, &f, buf, at, 1);
	for (int i = 0; i < 3; i++) {
		clock_set(now += 50ull * PATIENCE);
		turn();
		ck_assert(!stores_is_silent(stores, 0));
	}
	while (!n_told) {
		clock_set(now += PATIENCE / 4);
		turn();
	}
	hangs = 0;
	while (n_done < N_REQS)
		turn();
	clock_set(0);
	stores_turn(stores);
	free(buf);
	close_two();
}
END_TEST

/* ---- a pager on a disk --------------------------------------------------------- */

static struct rig_mem *m;

static void leave(void *ctx, uint32_t i_disk)
{
	struct rig_mem *r = ctx;

	n_told++;
	pager_leave_disk(r->pager, i_disk);
}

/* path: of a store that survives; NULL: scratch */
static void open_mem_on(uint32_t n_stores, const char *path)
{
	m = rig_mem_open(
		(struct rig_mem_options){ .memory_bytes = N_FRAMES * PAGE,
					  .disk_bytes = 8 * N_FRAMES * PAGE,
					  .n_stores = n_stores,
					  .store = path,
					  .kind = KIO_ENGINE_THREADS });
	stores_set_window(m->stores, 1); /* one after the other */
	stores_on_silent(m->stores, PATIENCE, leave, m);
	hung_fd = kio_store_fd(stores_disk(m->stores, 0));
	kio_sys_disk = &hung;
}

static void open_mem(uint32_t n_stores)
{
	open_mem_on(n_stores, NULL);
}

static void new_range(struct page_run *run, uint32_t n)
{
	*run = (struct page_run){ .n = n, .flags = PAGE_WRITE };
	ck_assert_int_eq(range_new(m->pager, PAGE, n, &run->range), 0);
}

static int write_run(struct page_run *run, uint32_t seed)
{
	const int ret = rig_mem_want(m, run, 1);

	if (ret)
		return ret;
	rig_mem_fill(run, seed);
	page_unpin(m->pager, run, 1);
	run->flags = 0;
	return 0;
}

static void holds(struct page_run *run, uint32_t seed)
{
	int ret = -EIO;

	for (uint64_t t0 = clock_ns(); ret && rig_mem_patient(t0);)
		ret = rig_mem_want(m, run, 1);
	ck_assert_int_eq(ret, 0);
	ck_assert(rig_mem_holds(run, seed));
	page_unpin(m->pager, run, 1);
}

static void not_over(struct wait *w, int ret)
{
	(void)w;
	ck_assert_msg(0, "told %d", ret);
}

START_TEST(reads_that_nobody_waits_for_give_back_their_frames)
{
	struct page_want wants[N_REQS];
	struct page_run runs[N_REQS], more, all;

	open_mem(1);
	for (uint32_t i = 0; i < N_REQS; i++) {
		new_range(&runs[i], 1);
		ck_assert_int_eq(write_run(&runs[i], i + 1), 0);
	}
	new_range(&all, N_FRAMES); /* they go down for it */
	ck_assert_int_eq(write_run(&all, 77), 0);
	range_free(all.range);
	rig_mem_settle(m);
	hangs = 1;
	for (uint32_t i = 0; i < N_REQS; i++) {
		wants[i] = (struct page_want){ .runs = &runs[i],
					       .n_runs = 1,
					       .wait.done = not_over };
		ck_assert_int_eq(page_want(m->pager, &wants[i]), 0);
	}
	for (int i = 0; i < 20; i++)
		rig_mem_turn(m);
	for (uint32_t i = 0; i < N_REQS; i++)
		page_want_cancel(m->pager, &wants[i]);
	new_range(&more, N_FRAMES / 2);
	ck_assert_int_eq(write_run(&more, 5), 0);
	ck_assert_uint_gt(n_told, 0);
	ck_assert(stores_is_silent(m->stores, 0));
	hangs = 0;
	holds(&more, 5);
	range_free(more.range);
	for (uint32_t i = 0; i < N_REQS; i++) {
		holds(&runs[i], i + 1);
		range_free(runs[i].range);
	}
	rig_mem_close(m);
}
END_TEST

START_TEST(who_needs_room_that_only_it_could_make_is_told)
{
	struct page_run full, more;
	int ret;

	open_mem(1);
	hangs = 1; /* so none becomes clean */
	new_range(&full, N_FRAMES);
	ck_assert_int_eq(write_run(&full, 3), 0);
	new_range(&more, N_FRAMES / 2);
	ret = write_run(&more, 4);
	ck_assert_msg(ret == -EIO || ret == -ENOSPC, "%d", ret);
	ck_assert(stores_is_silent(m->stores, 0));
	hangs = 0;
	ret = -EIO;
	for (uint64_t t0 = clock_ns(); ret && rig_mem_patient(t0);)
		ret = write_run(&more, 4);
	ck_assert_int_eq(ret, 0);
	holds(&full, 3);
	holds(&more, 4);
	range_free(full.range);
	range_free(more.range);
	rig_mem_close(m);
}
END_TEST

static void persist_over(struct wait *w, int ret)
{
	struct range_persist *rp = container_of(w, struct range_persist, wait);

	n_done++;
	ck_assert_int_eq(ret ? -EIO : 0, range_durable(rp->range) ? 0 : -EIO);
}

/* What is on its way to be durable there frees nothing, either. */
START_TEST(what_becomes_durable_there_is_no_hope)
{
	char path[] = "/var/tmp/kvd-silent-XXXXXX";
	struct page_run kept, full, more;
	struct range_persist rp = { .key = { 1, 2 },
				    .meta = "m",
				    .meta_bytes = 1,
				    .wait.done = persist_over };
	int ret;

	ck_assert_int_eq(close(mkstemp(path)), 0);
	open_mem_on(1, path);
	new_range(&kept, 1);
	ck_assert_int_eq(write_run(&kept, 9), 0);
	hangs = 1;
	rp.range = kept.range;
	n_done = 0;
	ck_assert_int_eq(range_persist(&rp), 0);
	new_range(&full, N_FRAMES - 1);
	ck_assert_int_eq(write_run(&full, 3), 0);
	new_range(&more, N_FRAMES / 2);
	ret = write_run(&more, 4);
	ck_assert_msg(ret == -EIO || ret == -ENOSPC, "%d", ret);
	ck_assert_uint_eq(n_done, 0);
	hangs = 0;
	for (uint64_t t0 = clock_ns(); !n_done && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert_uint_eq(n_done, 1);
	holds(&kept, 9);
	holds(&full, 3);
	range_free(kept.range);
	range_free(full.range);
	range_free(more.range);
	rig_mem_close(m);
	ck_assert_int_eq(unlink(path), 0);
}
END_TEST

/* A page on a disk that works is read again and again. */
static struct page_scrub scrub;
static struct page *scrubbed;
static struct loop_call scrub_call;
static int scrubs, n_scrubs;

static void scrub_again(struct loop_call *c)
{
	(void)c;
	scrubs = hangs && !page_scrub_start(scrubbed, &scrub);
}

static void scrub_done(struct page_scrub *s, int ret)
{
	(void)s;
	ck_assert_int_eq(ret, 0);
	n_scrubs++;
	loop_defer(m->loop, &scrub_call);
}

/* What ends there makes no room for who waits for the other. */
START_TEST(another_disk_that_works_is_no_hope)
{
	struct page_run out[8], full, more, all;
	uint32_t n = 0;
	int ret;

	open_mem(2);
	new_range(&full, 3 * N_FRAMES / 4);
	ck_assert_int_eq(write_run(&full, 3), 0);
	do { /* until one is elsewhere */
		ck_assert_uint_lt(n, KV_ARRAY_LEN(out));
		new_range(&out[n], 1);
		ck_assert_int_eq(write_run(&out[n], 100 + n), 0);
		new_range(&all, N_FRAMES); /* they go down for it */
		ck_assert_int_eq(write_run(&all, 77), 0);
		range_free(all.range);
		rig_mem_settle(m);
	} while (range_disk(out[n++].range) == range_disk(full.range));
	full.flags = PAGE_WRITE;
	ck_assert_int_eq(write_run(&full, 3), 0);
	hung_fd = kio_store_fd(stores_disk(m->stores, range_disk(full.range)));
	hangs = 1;
	scrubbed = &out[n - 1].range->pages[0];
	scrub = (struct page_scrub){ .n_bytes = PAGE, .done = scrub_done };
	scrub_call.run = scrub_again;
	list_init(&scrub_call.node);
	ck_assert(!posix_memalign(&scrub.buf, 4096, PAGE));
	scrubs = !page_scrub_start(scrubbed, &scrub);
	new_range(&more, N_FRAMES / 2);
	n_told = 0;
	ret = write_run(&more, 4);
	ck_assert_msg(ret == -EIO || ret == -ENOSPC, "%d", ret);
	ck_assert_uint_le(n_told, 10);
	ck_assert_int_gt(n_scrubs, 1);
	hangs = 0;
	while (scrubs)
		rig_mem_turn(m);
	ret = -EIO;
	for (uint64_t t0 = clock_ns(); ret && rig_mem_patient(t0);)
		ret = write_run(&more, 4);
	ck_assert_int_eq(ret, 0);
	holds(&full, 3);
	holds(&more, 4);
	range_free(full.range);
	range_free(more.range);
	while (n--) {
		holds(&out[n], 100 + n);
		range_free(out[n].range);
	}
	free(scrub.buf);
	rig_mem_close(m);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("silent_disk");
	TCase *tc = tcase_create("silent_disk");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, what_is_new_goes_elsewhere);
	tcase_add_test(tc, a_daemon_that_stood_still_does_not_blame_it);
	tcase_add_test(tc, reads_that_nobody_waits_for_give_back_their_frames);
	tcase_add_test(tc, who_needs_room_that_only_it_could_make_is_told);
	tcase_add_test(tc, what_becomes_durable_there_is_no_hope);
	tcase_add_test(tc, another_disk_that_works_is_no_hope);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
