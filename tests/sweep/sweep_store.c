/*
 * sweep_store.c - every fault point of a store's life, one at a time
 *
 * The scenario (format, write, put, move, delete, mark bad, compact, close, open again) is
 * run with the 1st, 2nd, 3rd... point failing, once and for good, until a run meets
 * none. In each run every call ends, in success or a documented error, and nothing
 * stays open. Then the store is opened without faults:
 *
 *  (1) what was acknowledged and not deleted is there, with its bytes;
 *  (2) whatever else is there has its bytes too;
 *  (3) it works: a record is put.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/fault.h"
#include "tests/rig/rig_alloc.h"
#include "tests/rig/rig_store.h"

#define BYTES	  (34ull << 20)
#define N_RECORDS 24u /* of 90 KB in an index of 1 MiB: it is compacted */
#define META	  90000u
#define MAX_STEPS 4000

enum state { NONE, DOUBT, ACKED, GONE };

struct life {
	struct rig_store r;
	struct rig_record x[N_RECORDS];
	enum state state[N_RECORDS];
	int n_failed; /* requests and puts with an error */
	int n_acked;
	int err; /* armed */
};

static struct life l;

static void expect(int ret)
{
	/*
	 * -EIO: a flush that failed, whatever it said; -ENOSPC: the index is to be
	 * compacted and cannot be
	 */
	ck_assert_msg(!ret || ret == -l.err || ret == -EIO || ret == -ENOSPC,
		      "%s", strerror(-ret));
	l.n_failed += !!ret;
}

/* Slots need no system call, but memory. 1: there are some. */
static int may_be_refused(int ret)
{
	ck_assert(!ret || rig_alloc_fails);
	expect(ret);
	return !ret;
}

static void one_record(uint32_t i)
{
	struct rig_record *x = &l.x[i];
	int ret = rig_store_take(&l.r, x, i + 1, RIG_PAGE, 1 + i % 2, META);

	if (!may_be_refused(ret))
		return;
	ret = rig_store_write(&l.r, x);
	expect(ret);
	if (ret) {
		rig_store_release(&l.r, x);
		return;
	}
	ret = rig_store_commit(&l.r, x);
	expect(ret);
	l.state[i] = !ret ? ACKED : ret == -EIO ? DOUBT : NONE;
	l.n_acked += !ret;
	if (ret) {
		rig_store_release(&l.r, x);
		return;
	}
	ret = rig_store_read(&l.r, x);
	expect(ret);
}

static int n_moved;

static void on_moved(struct kio_commit *c)
{
	(void)c;
	n_moved++;
}

/* Its pages go elsewhere, and those places back. */
static void move_record(uint32_t i)
{
	struct rig_record *x = &l.x[i], to, was = *x;
	uint64_t blocks[RIG_PAGES_MAX];
	int ret = rig_store_take(&l.r, &to, i + 1, RIG_PAGE, x->n_pages, 0);

	if (!may_be_refused(ret))
		return;
	for (uint32_t k = 0; k < x->n_pages; k++)
		blocks[k] = x->places[k].block;
	ret = rig_store_copy(&l.r, &to, x, 0);
	expect(ret);
	if (!ret) {
		to.commit = (struct kio_commit){ .page_bytes = RIG_PAGE,
						 .n_pages = to.n_pages,
						 .places = to.places,
						 .was = blocks,
						 .handle = x->handle,
						 .done = on_moved };
		n_moved = 0;
		kio_store_move(l.r.store, &to.commit);
		while (!n_moved)
			rig_store_turn(&l.r);
		ret = to.commit.ret;
		if (ret != -EBADMSG) /* it could not be read back */
			expect(ret);
	}
	if (ret) {
		rig_store_release(&l.r, &to);
		return;
	}
	memcpy(x->places, to.places, sizeof(x->places));
	rig_store_release(&l.r, &was);
	expect(rig_store_read(&l.r, x));
}

static void use(void)
{
	for (uint32_t i = 0; i < N_RECORDS; i++) {
		one_record(i);
		if (l.state[i] == ACKED && (i % 4 == 3 || i == 1))
			move_record(i);
		if (l.state[i] == ACKED && i % 8 == 7) /* stays, and is bad */
			kio_store_quarantine(l.r.store, l.x[i].places[0].block,
					     RIG_PAGE);
		if (i % 4 == 3 || l.state[i] != ACKED)
			continue; /* some stay */
		l.state[i] = GONE;
		if (i % 4) {
			rig_store_del(&l.r, &l.x[i]);
			continue;
		}
		kio_store_del(l.r.store, l.x[i].handle);
		kio_store_quarantine(l.r.store, l.x[i].places[0].block,
				     RIG_PAGE);
	}
}

/* What must be there is; whatever is there has its bytes. */
static void compare(int sure)
{
	for (uint32_t i = 0; i < N_RECORDS; i++)
		ck_assert_msg(l.state[i] != ACKED ||
				      rig_store_find(&l.r, i + 1),
			      "record %u was acknowledged and is lost", i);
	for (uint32_t i = 0; i < l.r.n_found; i++) {
		const int ret = rig_store_read(&l.r, &l.r.found[i]);

		ck_assert(l.r.found[i].id <= N_RECORDS);
		ck_assert(l.state[l.r.found[i].id - 1] != NONE);
		if (sure)
			ck_assert_int_eq(ret, 0);
		else
			expect(ret);
	}
}

/* 0, or why it could not begin. */
static int scenario(enum kio_engine_kind kind, int err)
{
	int ret = kio_engine_new(&l.r.engine, kind, 4);
	struct kio_store_info info;

	l.err = err;
	l.n_failed = 0;
	l.r.kind = kind;
	memset(l.state, 0, sizeof(l.state));
	if (ret)
		return ret;
	l.r.verdict = KIO_RECORD_KEEP;
	ret = rig_store_open(&l.r, BYTES, 0);
	if (!ret) {
		use();
		kio_store_check(l.r.store);
		kio_store_info(l.r.store, &info);
		ck_assert(err || info.n_compactions);
		kio_store_close(l.r.store);
		kio_engine_free(l.r.engine);
		l.r.store = NULL;
		l.r.engine = NULL;
		ret = kio_engine_new(&l.r.engine, kind, 4);
		if (!ret)
			ret = rig_store_open(&l.r, BYTES, 0);
		if (!ret)
			compare(0);
		else
			expect(ret);
		ret = 0;
	}
	kio_store_close(l.r.store);
	kio_engine_free(l.r.engine);
	l.r.store = NULL;
	l.r.engine = NULL;
	return ret;
}

/* Without faults, after that: see the top of the file. */
static void afterwards(enum kio_engine_kind kind)
{
	struct rig_record one;

	ck_assert_int_eq(kio_engine_new(&l.r.engine, kind, 4), 0);
	ck_assert_int_eq(rig_store_open(&l.r, BYTES, 0), 0);
	ck_assert_uint_eq(l.r.report.n_refused, 0);
	compare(1);
	rig_store_add(&l.r, &one, N_RECORDS + 1, 2, 100);
	ck_assert_int_eq(rig_store_read(&l.r, &one), 0);
	kio_store_check(l.r.store);
	kio_store_close(l.r.store);
	kio_engine_free(l.r.engine);
	l.r.store = NULL;
	l.r.engine = NULL;
	ck_assert_int_eq(truncate(l.r.path, 0), 0);
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
	int err; /* ENOMEM: of an allocation */
} sweeps[] = {
	{ KIO_ENGINE_AUTO, KIO_FAULT_ONCE, EIO },
	{ KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOSPC },
	{ KIO_ENGINE_URING, KIO_FAULT_ONCE, ENOSPC },
	{ KIO_ENGINE_THREADS, KIO_FAULT_ONCE, EIO },
	{ KIO_ENGINE_THREADS, KIO_FAULT_FOREVER, EIO },
	{ KIO_ENGINE_AUTO, KIO_FAULT_ONCE, ENOMEM },
	{ KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOMEM },
};

START_TEST(every_point)
{
	const struct sweep *s = &sweeps[_i];
	uint64_t nth = 0, met, n_failed = 0, n_refused = 0;
	int ret, before;

	rig_store_init(&l.r, KIO_ENGINE_AUTO, "/dev/shm");
	kio_engine_free(l.r.engine);
	l.r.engine = NULL;
	before = n_open();
	if (scenario(s->kind, 0)) {
		/* io_uring is forbidden here; the other kinds are run */
		ck_assert_int_eq(s->kind, KIO_ENGINE_URING);
		return;
	}
	ck_assert_int_eq(l.n_acked, N_RECORDS);
	do {
		ck_assert_int_eq(truncate(l.r.path, 0), 0);
		rig_alloc_fails = s->err == ENOMEM;
		kio_fault_arm(s->mode, rig_alloc_fails ? "mem." : "", ++nth,
			      s->err);
		ret = scenario(s->kind, s->err);
		met = kio_fault_count();
		kio_fault_disarm();
		ck_assert_msg(!ret || ret == -s->err, "point %d: %s", (int)nth,
			      strerror(-ret));
		n_refused += !!ret;
		n_failed += (uint64_t)l.n_failed;
		ck_assert_int_eq(n_open(), before);
		afterwards(s->kind == KIO_ENGINE_URING ? KIO_ENGINE_AUTO
						       : s->kind);
		ck_assert_uint_lt(nth, MAX_STEPS);
	} while (nth <= met);
	ck_assert_uint_gt(n_refused, 0);
	ck_assert_uint_gt(n_failed, 0);
	printf("sweep %d: %d points, %d refusals, %d failed requests\n", _i,
	       (int)nth - 1, (int)n_refused, (int)n_failed);
	(void)unlink(l.r.path);
}
END_TEST

#define ABREAST 3u /* so many are put and deleted at once */

/* Record i goes in, one before it out; mostly in one batch with its neighbours. */
static void exchange(uint32_t i)
{
	const uint32_t old = i - 2 * ABREAST;

	if (i >= 2 * ABREAST && l.state[old] == ACKED) {
		kio_store_del(l.r.store, l.x[old].handle);
		l.state[old] = GONE;
	}
	rig_store_put(&l.r, &l.x[i]);
	if (i >= 2 * ABREAST && l.state[old] == GONE)
		rig_store_release(&l.r, &l.x[old]);
}

/* Until something fails, and once more: before the log is compacted again. */
static void use_side_by_side(void)
{
	uint32_t end = N_RECORDS;

	for (uint32_t i = 0; i < end; i += ABREAST) {
		for (uint32_t k = i; k < i + ABREAST; k++) {
			ck_assert_int_eq(
				rig_store_take(&l.r, &l.x[k], k + 1, RIG_PAGE,
					       1, META - k * 7919 % 30000),
				0);
			ck_assert_int_eq(rig_store_write(&l.r, &l.x[k]), 0);
		}
		for (uint32_t k = i; k < i + ABREAST; k++)
			exchange(k);
		for (uint32_t k = i; k < i + ABREAST; k++) {
			int *told = &l.x[k].told, ret;

			while (!*told)
				rig_store_turn(&l.r);
			ret = l.x[k].commit.ret;
			expect(ret);
			l.state[k] = !ret ? ACKED : ret == -EIO ? DOUBT : NONE;
			if (!ret)
				continue;
			rig_store_release(&l.r, &l.x[k]);
			end = KV_MIN(end, i + 2 * ABREAST);
		}
	}
}

/* A frame that cannot be written, also just after a compaction left deleted records out. */
START_TEST(every_frame_with_deletions)
{
	uint64_t nth = 0, met;

	rig_store_init(&l.r, KIO_ENGINE_AUTO, "/dev/shm");
	kio_engine_free(l.r.engine);
	l.err = ENOSPC;
	do {
		ck_assert_int_eq(
			kio_engine_new(&l.r.engine, KIO_ENGINE_AUTO, 4), 0);
		ck_assert_int_eq(truncate(l.r.path, 0), 0);
		memset(l.state, 0, sizeof(l.state));
		l.r.verdict = KIO_RECORD_KEEP;
		ck_assert_int_eq(rig_store_open(&l.r, BYTES, 0), 0);
		kio_fault_arm(KIO_FAULT_ONCE, "sys.pwrite", ++nth, ENOSPC);
		use_side_by_side();
		met = kio_fault_count();
		kio_fault_disarm();
		kio_store_check(l.r.store);
		kio_store_close(l.r.store);
		kio_engine_free(l.r.engine);
		l.r.store = NULL;
		l.r.engine = NULL;
		afterwards(KIO_ENGINE_AUTO);
	} while (nth <= met);
	ck_assert_uint_gt(nth, N_RECORDS);
	(void)unlink(l.r.path);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sweep_store");
	TCase *tc = tcase_create("sweep");
	SRunner *sr;
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 300);
	tcase_add_loop_test(tc, every_point, 0,
			    (int)(sizeof(sweeps) / sizeof(sweeps[0])));
	tcase_add_test(tc, every_frame_with_deletions);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
