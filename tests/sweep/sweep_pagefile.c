/*
 * sweep_pagefile.c - every fault point of the page file's life, one at a time
 *
 * The scenario is run with the 1st, 2nd, 3rd... point failing, once and for
 * good, until a run meets none. Each run ends with every request done, its
 * result 0 or a documented error, right bytes where it is 0, and nothing left
 * open; then the same scenario works without faults.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/pagefile.h"

#define SLOT	  (1u << 20)
#define N_SLOTS	  70 /* more than may stay idle, so that holes are punched */
#define N_REQS	  4
#define DEPTH	  3
#define MAX_STEPS 2000

struct run {
	struct kio_engine *engine;
	struct kio_pagefile *file;
	struct kio_req reqs[N_REQS];
	char *bufs;
	int n_done;
	int n_failed;
	int armed;
};

static struct run *run_now;

static void req_done(struct kio_req *r)
{
	(void)r;
	run_now->n_done++;
}

static void reap(struct run *x, int n)
{
	struct pollfd bell = { .fd = kio_engine_event_fd(x->engine),
			       .events = POLLIN };

	kio_engine_submit(x->engine);
	while (x->n_done < n) {
		ck_assert_int_eq(poll(&bell, 1, 10000), 1);
		kio_engine_reap(x->engine);
	}
	ck_assert_int_eq(x->n_done, n);
	x->n_done = 0;
}

/*
 * The results of one batch; only an armed run may have errors. A slot of which
 * the write failed may lie behind the end of the file.
 */
static void look(struct run *x, int err, const int *wrote)
{
	for (int i = 0; i < N_REQS; i++) {
		const int ret = x->reqs[i].ret;

		ck_assert_msg(!ret || (x->armed && ret == -err) ||
				      (!wrote[i] && ret == -EIO),
			      "%s", strerror(-ret));
		x->n_failed += !!ret;
	}
}

static void batch(struct run *x, uint64_t first, int writes, int err)
{
	int wrote[N_REQS];

	for (int i = 0; i < N_REQS; i++) {
		struct kio_req *r = &x->reqs[i];

		wrote[i] = writes || !r->ret;
		r->slot = first + (uint64_t)i;
		r->done = req_done;
		r->buf = x->bufs + (size_t)i * SLOT;
		memset(r->buf, writes ? (int)r->slot + 1 : 0, SLOT);
		(writes ? kio_pagefile_write : kio_pagefile_read)(x->file, r);
	}
	reap(x, N_REQS);
	look(x, err, wrote);
	for (int i = 0; i < N_REQS && !writes; i++)
		if (wrote[i] && !x->reqs[i].ret)
			ck_assert_int_eq(x->bufs[(size_t)i * SLOT + SLOT - 1],
					 (char)(first + (uint64_t)i + 1));
}

static void use(struct run *x, int err)
{
	for (int round = 0; round < 2; round++) {
		for (int64_t i = 0; i < N_SLOTS; i++)
			ck_assert_int_eq(kio_pagefile_alloc(x->file), i);
		ck_assert_int_eq(kio_pagefile_alloc(x->file), -ENOSPC);
		batch(x, N_SLOTS - N_REQS, 1, err);
		batch(x, N_SLOTS - N_REQS, 0, err);
		for (uint64_t i = 0; i < N_SLOTS; i++)
			kio_pagefile_release(x->file, i);
		ck_assert_uint_eq(kio_pagefile_n_used(x->file), 0);
	}
}

/* 0, or why it could not begin. */
static int scenario(enum kio_engine_kind kind, const char *path, int err,
		    int armed, int *n_failed)
{
	struct run x = { .armed = armed };
	int ret;

	run_now = &x;
	ret = kio_engine_new(&x.engine, kind, DEPTH);
	if (ret)
		return ret;
	ret = kio_pagefile_new(&x.file, x.engine, path, SLOT, N_SLOTS);
	if (!ret) {
		x.bufs = aligned_alloc(4096, (size_t)SLOT * N_REQS);
		ck_assert_ptr_nonnull(x.bufs);
		use(&x, err);
		kio_pagefile_free(x.file);
		free(x.bufs);
	}
	kio_engine_free(x.engine);
	*n_failed += x.n_failed;
	return ret;
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

struct sweep {
	enum kio_engine_kind kind;
	enum kio_fault_mode mode;
	int err;
};

static const struct sweep sweeps[] = {
	{ KIO_ENGINE_AUTO, KIO_FAULT_ONCE, EIO },
	{ KIO_ENGINE_AUTO, KIO_FAULT_FOREVER, ENOSPC },
	{ KIO_ENGINE_URING, KIO_FAULT_ONCE, ENOSPC },
	{ KIO_ENGINE_THREADS, KIO_FAULT_ONCE, EIO },
	{ KIO_ENGINE_THREADS, KIO_FAULT_FOREVER, ENOSPC },
};

START_TEST(every_point)
{
	const struct sweep *s = &sweeps[_i];
	const int before = n_open();
	int n_failed = 0, n_refused = 0, ret;
	char path[64];
	uint64_t nth = 0, met;

	snprintf(path, sizeof(path), "kvd-sweep-pagefile.%d", getpid());
	if (scenario(s->kind, path, 0, 0, &n_failed)) {
		/* io_uring is forbidden here; the other kinds are run */
		ck_assert_int_eq(s->kind, KIO_ENGINE_URING);
		return;
	}
	do {
		kio_fault_arm(s->mode, "", ++nth, s->err);
		ret = scenario(s->kind, path, s->err, 1, &n_failed);
		met = kio_fault_count();
		kio_fault_disarm();
		(void)unlink(path); /* it stays when unlink was the fault */
		ck_assert_msg(!ret || ret == -s->err, "point %d: %s", (int)nth,
			      strerror(-ret));
		n_refused += !!ret;
		ck_assert_int_eq(n_open(), before);
		ck_assert_int_eq(scenario(s->kind, path, 0, 0, &n_failed), 0);
		ck_assert_int_eq(access(path, F_OK), -1);
		ck_assert_uint_lt(nth, MAX_STEPS);
	} while (nth <= met);
	ck_assert_int_gt(n_refused, 0);
	ck_assert_int_gt(n_failed, 0);
	printf("sweep %d: %d points, %d refusals, %d failed requests\n", _i,
	       (int)nth - 1, n_refused, n_failed);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sweep_pagefile");
	TCase *tc = tcase_create("sweep");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 300);
	tcase_add_loop_test(tc, every_point, 0,
			    (int)(sizeof(sweeps) / sizeof(sweeps[0])));
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
