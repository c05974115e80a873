/*
 * test_engine.c - the storage engine: io_uring and threads behind the same calls
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/engine.h"
#include "io/fault.h"

#define BLOCK	4096u
#define LONG_MS 50000 /* that it hangs */
#define N_MANY	200u

static const enum kio_engine_kind kinds[] = { KIO_ENGINE_AUTO,
					      KIO_ENGINE_THREADS };

struct rig {
	struct kio_engine *e;
	int fd;
	char *buf;
	uint32_t n_done;
};
static struct rig rig;

struct req {
	struct kio_req io; /* first */
	uint32_t i;
	uint32_t n_prepared;
	pthread_t by;
};

static void setup(int i_kind, uint32_t depth)
{
	char path[] = "/var/tmp/kvd-engine-XXXXXX";

	rig.n_done = 0;
	rig.fd = mkstemp(path);
	ck_assert_int_ge(rig.fd, 0);
	ck_assert_int_eq(unlink(path), 0);
	rig.buf = aligned_alloc(BLOCK, (size_t)N_MANY * BLOCK);
	ck_assert_ptr_nonnull(rig.buf);
	ck_assert_int_eq(kio_engine_new(&rig.e, kinds[i_kind], depth), 0);
}

static void teardown(void)
{
	kio_engine_free(rig.e);
	free(rig.buf);
	close(rig.fd);
}

static void queue(struct req *r, int op, uint32_t i,
		  void (*done)(struct kio_req *r))
{
	*r = (struct req){ .i = i };
	r->io = (struct kio_req){ .buf = rig.buf + (size_t)i * BLOCK,
				  .n_bytes = BLOCK,
				  .off = (off_t)i * BLOCK,
				  .op = op,
				  .fd = rig.fd,
				  .i_fixed = -1,
				  .done = done };
	kio_engine_queue(rig.e, &r->io);
}

/* 1: something has ended that nobody was told of. */
static int rings(int ms)
{
	struct pollfd p = { .fd = kio_engine_event_fd(rig.e),
			    .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}

static void run_until(uint32_t n)
{
	kio_engine_submit(rig.e);
	while (rig.n_done < n) {
		ck_assert(rings(LONG_MS));
		(void)kio_engine_reap(rig.e);
	}
}

static void was_done(struct kio_req *r)
{
	ck_assert_int_eq(r->ret, 0);
	rig.n_done++;
}

/* The other one ends while this callback runs. */
static void first_done(struct kio_req *r)
{
	was_done(r);
	ck_assert(rings(LONG_MS));
}

/* What waits for room is at the disk before anybody is told of what made it. */
START_TEST(the_disk_does_not_wait_for_callbacks)
{
	struct req a, b;

	setup(_i, 1);
	memset(rig.buf, 1, 2 * BLOCK);
	queue(&a, KIO_OP_WRITE, 0, first_done);
	queue(&b, KIO_OP_WRITE, 1, was_done);
	run_until(2);
	teardown();
}
END_TEST

static struct req many[N_MANY];

static int is_filled(uint32_t i)
{
	for (uint32_t k = 0; k < BLOCK; k++)
		if (rig.buf[(size_t)i * BLOCK + k] != (char)(i + 1))
			return 0;
	return 1;
}

static void read_done(struct kio_req *r)
{
	ck_assert(is_filled(((struct req *)r)->i));
	was_done(r);
}

static void written(struct kio_req *r)
{
	const uint32_t i = ((struct req *)r)->i;

	was_done(r);
	memset(r->buf, 0, BLOCK);
	queue(&many[i], KIO_OP_READ, i, read_done);
}

/* Far more than fit: each ends once, and callbacks queue others. */
START_TEST(any_number_ends_once)
{
	setup(_i, 4);
	for (uint32_t i = 0; i < N_MANY; i++) {
		memset(rig.buf + (size_t)i * BLOCK, (int)(i + 1), BLOCK);
		queue(&many[i], KIO_OP_WRITE, i, written);
	}
	run_until(2 * N_MANY);
	ck_assert_int_eq(kio_engine_reap(rig.e), 0);
	ck_assert_uint_eq(rig.n_done, 2 * N_MANY);
	teardown();
}
END_TEST

static void failed_done(struct kio_req *r)
{
	ck_assert_int_eq(r->ret, -EIO);
	rig.n_done++;
}

START_TEST(beyond_the_end_is_an_error)
{
	struct req r;

	setup(_i, 4);
	queue(&r, KIO_OP_READ, 3, failed_done);
	run_until(1);
	teardown();
}
END_TEST

static void refused_done(struct kio_req *r)
{
	ck_assert_int_eq(r->ret, -ENOTTY);
	rig.n_done++;
}

/* The engine has room for one, the file is none that can: pages go by. */
START_TEST(discards_are_in_nobodys_way)
{
	struct req d[8], w[8];

	setup(_i, 1);
	memset(rig.buf, 1, 8 * BLOCK);
	for (uint32_t i = 0; i < 8; i++) {
		queue(&d[i], KIO_OP_DISCARD, i, refused_done);
		queue(&w[i], KIO_OP_WRITE, i, was_done);
	}
	run_until(16);
	queue(&d[0], KIO_OP_DISCARD, 0, refused_done);
	teardown(); /* waits for it */
	ck_assert_uint_eq(rig.n_done, 17);
}
END_TEST

/* No thread for it: that is told, and the next one is tried again. */
START_TEST(without_a_thread_a_discard_fails)
{
	struct req d;

	setup(_i, 4);
	kio_fault_arm(KIO_FAULT_ONCE, "sys.thread", 1, EIO);
	queue(&d, KIO_OP_DISCARD, 0, failed_done);
	run_until(1);
	queue(&d, KIO_OP_DISCARD, 0, refused_done);
	run_until(2);
	kio_fault_disarm();
	teardown();
}
END_TEST

static void fill(struct kio_req *r)
{
	struct req *q = (struct req *)r;

	memset(r->buf, (int)(q->i + 1), BLOCK);
	q->n_prepared++;
	q->by = pthread_self();
}

static void prepared_written(struct kio_req *r)
{
	const struct req *q = (struct req *)r;

	ck_assert_uint_eq(q->n_prepared, 1);
	written(r);
}

static void elsewhere(struct kio_req *r)
{
	ck_assert(!pthread_equal(((struct req *)r)->by, pthread_self()));
	prepared_written(r);
}

/* The bytes are there once they are prepared, and are what is read back. */
static void write_prepared(uint32_t n, void (*done)(struct kio_req *r))
{
	memset(rig.buf, 0, (size_t)n * BLOCK);
	for (uint32_t i = 0; i < n; i++) {
		queue(&many[i], KIO_OP_WRITE, i, done);
		many[i].io.prepare = fill;
	}
}

START_TEST(prepared_once_by_another_and_then_written)
{
	setup(_i, 8);
	write_prepared(N_MANY, elsewhere);
	run_until(2 * N_MANY);
	for (uint32_t round = 0; round < 200;
	     round++) { /* they sleep between */
		write_prepared(1 + round % 6, elsewhere);
		rig.n_done = 0;
		run_until(2 * (1 + round % 6));
	}
	teardown();
}
END_TEST

static void here(struct kio_req *r)
{
	ck_assert(pthread_equal(((struct req *)r)->by, pthread_self()));
	prepared_written(r);
}

/* With one that could be started that one does all; with none, who submits. */
START_TEST(who_prepares_depends_on_threads)
{
	setup(0, 4);
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.thread", 1, EAGAIN);
	write_prepared(10, here);
	run_until(20);
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.thread", 2, EAGAIN);
	write_prepared(10, elsewhere);
	run_until(40);
	kio_fault_disarm();
	teardown();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("engine");
	TCase *t = tcase_create("engine");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(t, the_disk_does_not_wait_for_callbacks, 0, 2);
	tcase_add_loop_test(t, any_number_ends_once, 0, 2);
	tcase_add_loop_test(t, beyond_the_end_is_an_error, 0, 2);
	tcase_add_loop_test(t, discards_are_in_nobodys_way, 0, 2);
	tcase_add_loop_test(t, without_a_thread_a_discard_fails, 0, 2);
	tcase_add_loop_test(t, prepared_once_by_another_and_then_written, 0, 2);
	tcase_add_test(t, who_prepares_depends_on_threads);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
