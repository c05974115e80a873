/*
 * test_pagefile.c - slots and their bytes, on both engines and two file systems
 *
 * Each case runs four times: io_uring and threads, on a file under build/
 * (O_DIRECT where the file system has it) and on tmpfs.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/pagefile.h"
#include "io/sys.h"

#define SLOT	(16u << 10)
#define N_SLOTS 200
#define DEPTH	8

static struct kio_engine *engine;
static struct kio_pagefile *file;
static char path[128];

struct req {
	struct kio_req r;
	int n_done;
};

static struct req reqs[N_SLOTS];
static char *bufs; /* N_SLOTS of SLOT */

static void req_done(struct kio_req *r)
{
	((struct req *)r)->n_done++;
}

/* Odd variants run on threads, the upper two on tmpfs. */
static void open_engine(int variant)
{
	snprintf(path, sizeof(path), "%s/kvd-test-pagefile.%d",
		 variant & 2 ? "/dev/shm" : ".", getpid());
	ck_assert_int_eq(kio_engine_new(&engine,
					variant & 1 ? KIO_ENGINE_THREADS
						    : KIO_ENGINE_AUTO,
					DEPTH),
			 0);
	bufs = aligned_alloc(4096, (size_t)SLOT * N_SLOTS);
	ck_assert_ptr_nonnull(bufs);
	memset(reqs, 0, sizeof(reqs));
	for (int i = 0; i < N_SLOTS; i++) {
		reqs[i].r.buf = bufs + (size_t)i * SLOT;
		reqs[i].r.done = req_done;
	}
}

static void open_file(int variant, uint64_t max_slots)
{
	open_engine(variant);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, SLOT, max_slots),
			 0);
}

static void close_file(void)
{
	kio_pagefile_free(file);
	kio_engine_free(engine);
	free(bufs);
}

static void fill(int i, int seed)
{
	uint32_t x = (uint32_t)(i * 7919 + seed);

	for (size_t k = 0; k < SLOT; k++) {
		x = x * 1664525 + 1013904223;
		bufs[(size_t)i * SLOT + k] = (char)(x >> 24);
	}
}

static int is_filled(int i, int seed)
{
	char *was = malloc(SLOT);
	int same;

	ck_assert_ptr_nonnull(was);
	memcpy(was, bufs + (size_t)i * SLOT, SLOT);
	fill(i, seed);
	same = !memcmp(was, bufs + (size_t)i * SLOT, SLOT);
	free(was);
	return same;
}

/* Wait as the loop does: sleep on the event fd, then reap. */
static void reap_all(int n_expected)
{
	struct pollfd bell = { .fd = kio_engine_event_fd(engine),
			       .events = POLLIN };
	int n = 0;

	kio_engine_submit(engine);
	while (n < n_expected) {
		int got = 0;

		ck_assert_int_eq(poll(&bell, 1, 10000), 1);
		for (int i = 0; i < N_SLOTS; i++)
			got -= reqs[i].n_done;
		kio_engine_reap(engine);
		for (int i = 0; i < N_SLOTS; i++)
			got += reqs[i].n_done;
		n += got;
	}
	ck_assert_int_eq(n, n_expected);
}

static struct stat file_stat(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(kio_pagefile_fd(file), &st), 0);
	return st;
}

/* Turn until what the engine does by itself has come so far; else a timeout. */
static void turn(void)
{
	struct pollfd bell = { .fd = kio_engine_event_fd(engine),
			       .events = POLLIN };

	kio_engine_submit(engine);
	(void)poll(&bell, 1, 10);
	kio_engine_reap(engine);
}

static void wait_size(off_t n_bytes)
{
	while (file_stat().st_size < n_bytes)
		turn();
}

static void wait_mib(long low, long high)
{
	long n;

	do {
		turn();
		n = file_stat().st_blocks >> 11;
	} while (n < low || n > high);
}

static void write_slots(int n, int seed)
{
	for (int i = 0; i < n; i++) {
		const int64_t slot = kio_pagefile_alloc(file);

		ck_assert_int_ge(slot, 0);
		reqs[i].r.slot = (uint64_t)slot;
		fill(i, seed);
		kio_pagefile_write(file, &reqs[i].r);
	}
	reap_all(n);
}

/* ---- bytes -------------------------------------------------------------- */

/* Many more than depth are queued at once. */
START_TEST(what_was_written_is_read)
{
	open_file(_i, N_SLOTS);
	write_slots(N_SLOTS, 1);
	memset(bufs, 0, (size_t)SLOT * N_SLOTS);
	for (int i = 0; i < N_SLOTS; i++)
		kio_pagefile_read(file, &reqs[i].r);
	reap_all(N_SLOTS);
	for (int i = 0; i < N_SLOTS; i++) {
		ck_assert_int_eq(reqs[i].r.ret, 0);
		ck_assert_int_eq(reqs[i].n_done, 2);
		ck_assert_msg(is_filled(i, 1), "slot %d", i);
	}
	close_file();
}
END_TEST

START_TEST(nothing_is_done_outside_reap)
{
	open_file(_i, N_SLOTS);
	reqs[0].r.slot = (uint64_t)kio_pagefile_alloc(file);
	kio_pagefile_write(file, &reqs[0].r);
	kio_engine_submit(engine);
	usleep(20000);
	ck_assert_int_eq(reqs[0].n_done, 0);
	reap_all(1);
	close_file();
}
END_TEST

/* Room is being allocated and holes are punched while the file goes. */
START_TEST(a_file_may_go_with_its_chores_in_flight)
{
	const size_t big = 1u << 20;

	open_engine(_i);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, big, 100), 0);
	for (int i = 0; i < 100; i++)
		kio_pagefile_alloc(file);
	if (_i & 1)
		wait_size(16 << 20);
	for (uint64_t i = 0; i < 100; i++)
		kio_pagefile_release(file, i);
	close_file();
}
END_TEST

/* ---- the file ----------------------------------------------------------- */

START_TEST(the_file_has_no_name_and_mode_0600)
{
	struct stat st;

	open_file(_i, N_SLOTS);
	ck_assert_int_eq(access(path, F_OK), -1);
	ck_assert_int_eq(fstat(kio_pagefile_fd(file), &st), 0);
	ck_assert_uint_eq(st.st_nlink, 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
	close_file();
}
END_TEST

START_TEST(links_and_bad_sizes_are_refused)
{
	open_engine(_i);
	ck_assert_int_eq(symlink("/nonexistent/kvd", path), 0);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, SLOT, 1),
			 -ELOOP);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, 0, 1), -EINVAL);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, 4095, 1),
			 -EINVAL);
	ck_assert_int_eq(
		kio_pagefile_new(&file, engine, "/nonexistent/x/y", SLOT, 1),
		-ENOENT);
	kio_engine_free(engine);
	free(bufs);
}
END_TEST

/* ---- slots -------------------------------------------------------------- */

START_TEST(the_lowest_free_slot_is_given)
{
	open_file(_i, N_SLOTS);
	for (int64_t i = 0; i < 130; i++)
		ck_assert_int_eq(kio_pagefile_alloc(file), i);
	kio_pagefile_release(file, 100);
	kio_pagefile_release(file, 3);
	kio_pagefile_release(file, 64);
	ck_assert_uint_eq(kio_pagefile_n_used(file), 127);
	ck_assert_int_eq(kio_pagefile_alloc(file), 3);
	ck_assert_int_eq(kio_pagefile_alloc(file), 64);
	ck_assert_int_eq(kio_pagefile_alloc(file), 100);
	ck_assert_int_eq(kio_pagefile_alloc(file), 130);
	close_file();
}
END_TEST

START_TEST(max_slots_is_hard)
{
	open_file(_i, 70);
	for (int i = 0; i < 70; i++)
		ck_assert_int_eq(kio_pagefile_alloc(file), i);
	ck_assert_int_eq(kio_pagefile_alloc(file), -ENOSPC);
	kio_pagefile_release(file, 69);
	ck_assert_int_eq(kio_pagefile_alloc(file), 69);
	ck_assert_int_eq(kio_pagefile_alloc(file), -ENOSPC);
	ck_assert_uint_eq(kio_pagefile_n_used(file), 70);
	close_file();
}
END_TEST

/* 1 MiB slots, so that 100 of them pass the 64 MiB that may stay idle. */
START_TEST(space_of_released_slots_comes_back)
{
	const size_t big = 1u << 20;
	char *buf;

	open_engine(_i);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, big, 100), 0);
	buf = aligned_alloc(4096, big);
	ck_assert_ptr_nonnull(buf);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 100; i++) {
			ck_assert_int_eq(kio_pagefile_alloc(file), i);
			memset(buf, i + round, big);
			reqs[0].r.buf = buf;
			reqs[0].r.slot = (uint64_t)i;
			kio_pagefile_write(file, &reqs[0].r);
			reap_all(1);
			ck_assert_int_eq(reqs[0].r.ret, 0);
		}
		wait_mib(99, 101);
		for (uint64_t i = 0; i < 100; i++)
			if (i != 37)
				kio_pagefile_release(file, i);
		wait_mib(1, 34);
		reqs[0].r.slot = 37;
		kio_pagefile_read(file, &reqs[0].r);
		reap_all(1);
		ck_assert_int_eq(buf[0], 37 + round);
		ck_assert_int_eq(memcmp(buf, buf + 1, big - 1), 0);
		kio_pagefile_release(file, 37);
	}
	free(buf);
	close_file();
}
END_TEST

/* A slot is taken again while its hole is punched: the write comes after. */
START_TEST(a_write_waits_for_the_punch)
{
	const size_t big = 1u << 20;
	const uint64_t n = 100;
	char *buf = aligned_alloc(4096, big);

	ck_assert_ptr_nonnull(buf);
	open_engine(_i);
	ck_assert_int_eq(kio_pagefile_new(&file, engine, path, big, n), 0);
	for (uint64_t i = 0; i < n; i++)
		kio_pagefile_alloc(file);
	for (uint64_t i = 0; i < n; i++)
		kio_pagefile_release(file, i);
	for (uint64_t i = 0; i < n; i++)
		ck_assert_int_eq(kio_pagefile_alloc(file), (int64_t)i);
	memset(buf, 5, big);
	for (uint64_t i = 0; i < n; i++) {
		reqs[i].r.buf = buf;
		reqs[i].r.slot = i;
		kio_pagefile_write(file, &reqs[i].r);
	}
	reap_all((int)n);
	for (uint64_t i = 0; i < n; i++) {
		memset(buf, 0, big);
		reqs[0].r.slot = i;
		kio_pagefile_read(file, &reqs[0].r);
		reap_all(1);
		ck_assert_int_eq(reqs[0].r.ret, 0);
		ck_assert_msg(buf[0] == 5 && buf[big - 1] == 5, "slot %d",
			      (int)i);
	}
	free(buf);
	close_file();
}
END_TEST

/* ---- faults ------------------------------------------------------------- */

START_TEST(an_error_is_of_one_request)
{
	open_file(_i, N_SLOTS);
	write_slots(10, 1);
	kio_fault_arm(KIO_FAULT_ONCE, "uring.read", 4, EIO);
	memset(bufs, 0, (size_t)SLOT * 10);
	for (int i = 0; i < 10; i++)
		kio_pagefile_read(file, &reqs[i].r);
	reap_all(10);
	kio_fault_disarm();
	for (int i = 0, failed = 0; i < 10; i++) {
		if (reqs[i].r.ret) {
			ck_assert_int_eq(reqs[i].r.ret, -EIO);
			ck_assert_int_eq(failed++, 0);
		} else {
			ck_assert_msg(is_filled(i, 1), "slot %d", i);
		}
		ck_assert(i < 9 || failed == 1);
	}
	close_file();
}
END_TEST

START_TEST(short_and_interrupted_transfers_go_on)
{
	static const int errors[] = { EAGAIN, EINTR };

	open_file(_i, N_SLOTS);
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.short", 1, EIO);
	write_slots(10, 1);
	ck_assert_uint_ge(kio_fault_count(), 10);
	memset(bufs, 0, (size_t)SLOT * 10);
	for (int i = 0; i < 10; i++)
		kio_pagefile_read(file, &reqs[i].r);
	reap_all(10);
	kio_fault_disarm();
	for (int i = 0; i < 10; i++)
		ck_assert(!reqs[i].r.ret && is_filled(i, 1));
	for (int e = 0; e < 2; e++) {
		kio_fault_arm(KIO_FAULT_ONCE, "uring.read", 3, errors[e]);
		memset(bufs, 0, (size_t)SLOT * 10);
		for (int i = 0; i < 10; i++)
			kio_pagefile_read(file, &reqs[i].r);
		reap_all(10);
		kio_fault_disarm();
		for (int i = 0; i < 10; i++)
			ck_assert(!reqs[i].r.ret && is_filled(i, 1));
	}
	close_file();
}
END_TEST

START_TEST(a_cut_file_is_an_error)
{
	open_file(_i, N_SLOTS);
	write_slots(4, 1);
	wait_size(64 * SLOT); /* allocated ahead */
	ck_assert_int_eq(ftruncate(kio_pagefile_fd(file), SLOT + 512), 0);
	for (int i = 0; i < 4; i++)
		kio_pagefile_read(file, &reqs[i].r);
	reap_all(4);
	ck_assert_int_eq(reqs[0].r.ret, 0);
	for (int i = 1; i < 4; i++)
		ck_assert_int_eq(reqs[i].r.ret, -EIO);
	close_file();
}
END_TEST

/* A limit on the size of files makes real writes fail, as a full disk does. */
START_TEST(a_write_that_does_not_fit_is_told)
{
	const struct rlimit small = { 10 * SLOT, 10 * SLOT };

	open_file(_i, N_SLOTS);
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	write_slots(12, 1);
	for (int i = 0; i < 12; i++)
		ck_assert_int_eq(reqs[i].r.ret, i < 10 ? 0 : -EFBIG);
	close_file();
}
END_TEST

/* ---- the engine --------------------------------------------------------- */

START_TEST(without_io_uring_there_are_threads)
{
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.setup", 1, _i ? ENOSYS : EPERM);
	ck_assert_int_eq(kio_engine_new(&engine, KIO_ENGINE_AUTO, 4), 0);
	ck_assert_str_eq(kio_engine_name(engine), "threads");
	kio_engine_free(engine);
	ck_assert_int_eq(kio_engine_new(&engine, KIO_ENGINE_URING, 4),
			 _i ? -ENOSYS : -EPERM);
	kio_fault_disarm();
}
END_TEST

START_TEST(without_registered_files_it_works_too)
{
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.files", 1, EINVAL);
	open_file(0, N_SLOTS);
	kio_fault_disarm();
	write_slots(20, 3);
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(reqs[i].r.ret, 0);
	close_file();
}
END_TEST

/* More files than the table has room for, each with its own bytes. */
START_TEST(many_files)
{
	enum { N = 300 };
	static struct kio_pagefile *files[N];

	open_engine(_i & 1);
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(
			kio_pagefile_new(&files[i], engine, path, SLOT, 1), 0);
		ck_assert_int_eq(kio_pagefile_alloc(files[i]), 0);
		fill(0, i);
		reqs[0].r.slot = 0;
		kio_pagefile_write(files[i], &reqs[0].r);
		reap_all(1);
		ck_assert_int_eq(reqs[0].r.ret, 0);
	}
	for (int i = 0; i < N; i++) {
		kio_pagefile_read(files[i], &reqs[0].r);
		reap_all(1);
		ck_assert_msg(is_filled(0, i), "file %d", i);
		kio_pagefile_free(files[i]);
	}
	kio_engine_free(engine);
	free(bufs);
}
END_TEST

/* What io_uring_enter refuses fails or is tried again; it never hangs. */
START_TEST(a_refused_submission)
{
	open_file(0, N_SLOTS);
	if (strcmp(kio_engine_name(engine), "io_uring")) {
		close_file();
		return;
	}
	kio_fault_arm(KIO_FAULT_ONCE, "uring.submit", 1, _i ? EAGAIN : EPERM);
	for (int i = 0; i < 20; i++) {
		reqs[i].r.slot = (uint64_t)kio_pagefile_alloc(file);
		kio_pagefile_write(file, &reqs[i].r);
	}
	reap_all(20);
	kio_fault_disarm();
	for (int i = 0; i < 20; i++)
		if (_i || i + 1 >= DEPTH) /* one of them is the reserve */
			ck_assert_int_eq(reqs[i].r.ret, 0);
		else
			ck_assert_int_eq(reqs[i].r.ret, -EPERM);
	close_file();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pagefile");
	TCase *tc = tcase_create("pagefile");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, what_was_written_is_read, 0, 4);
	tcase_add_loop_test(tc, nothing_is_done_outside_reap, 0, 4);
	tcase_add_loop_test(tc, a_file_may_go_with_its_chores_in_flight, 0, 4);
	tcase_add_loop_test(tc, the_file_has_no_name_and_mode_0600, 0, 4);
	tcase_add_loop_test(tc, links_and_bad_sizes_are_refused, 0, 4);
	tcase_add_loop_test(tc, the_lowest_free_slot_is_given, 0, 4);
	tcase_add_loop_test(tc, max_slots_is_hard, 0, 4);
	tcase_add_loop_test(tc, space_of_released_slots_comes_back, 0, 4);
	tcase_add_loop_test(tc, a_write_waits_for_the_punch, 0, 4);
	tcase_add_loop_test(tc, an_error_is_of_one_request, 0, 4);
	tcase_add_loop_test(tc, short_and_interrupted_transfers_go_on, 0, 4);
	tcase_add_loop_test(tc, a_cut_file_is_an_error, 0, 4);
	tcase_add_loop_test(tc, a_write_that_does_not_fit_is_told, 0, 4);
	tcase_add_loop_test(tc, without_io_uring_there_are_threads, 0, 2);
	tcase_add_test(tc, without_registered_files_it_works_too);
	tcase_add_loop_test(tc, many_files, 0, 2);
	tcase_add_loop_test(tc, a_refused_submission, 0, 2);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
