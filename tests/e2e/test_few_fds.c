/*
 * test_few_fds.c - a client that has no descriptor left: what comes with one is told as
 * -EMFILE, and is there as soon as it has one again, over the same connection
 *
 * So few that each step of the library is reached: what it opens itself, and what the
 * daemon sends.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_map.h"

#define MAX_FDS 96
#define MOST	9 /* with so many free descriptors all goes well */

static int fill[MAX_FDS], n_fill;

/* Only n descriptors are free from now on. */
static void leave_free(int n)
{
	struct rlimit r;
	int fd;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &r), 0);
	r.rlim_cur = MAX_FDS;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &r), 0);
	while ((fd = dup(0)) >= 0)
		fill[n_fill++] = fd;
	ck_assert_int_eq(errno, EMFILE);
	ck_assert_int_gt(n_fill, n);
	while (n--)
		close(fill[--n_fill]);
}

static void free_all(void)
{
	while (n_fill)
		close(fill[--n_fill]);
}

static int n_open(void)
{
	int n = 0;

	for (int i = 0; i < MAX_FDS; i++)
		n += fcntl(i, F_GETFD) >= 0;
	return n;
}

static struct rig_daemon *start(void)
{
	char conf[256];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 1M\ndisk = 48M\n", getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static void stop(struct rig_daemon *d)
{
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

START_TEST(a_map_is_had_when_there_are_descriptors_again)
{
	struct rig_daemon *d = start();
	int n_refused = 0, ret = 0;

	rig_map_by_signal = _i;
	for (int n = 0; n <= MOST; n++) {
		struct kvc *c = rig_join(d->socket);
		const int seq = rig_sequence(c, 1, 1500),
			  other = rig_sequence(c, 2, 100);
		struct kvc_map *m = NULL, *o;

		if (_i)
			ck_assert_int_eq(kvc_map_by_signal(c), 0);
		leave_free(n);
		for (int k = 0; k < 3; k++) {
			ret = kvc_map(c, seq, &m);
			ck_assert_msg(!ret || ret == -EMFILE, "%d free: %s", n,
				      strerror(-ret));
			n_refused += !!ret;
			if (!ret)
				break;
		}
		ck_assert_int_eq(kvc_nop(c), 0);
		free_all();
		ck_assert(ret || n);
		if (ret)
			m = rig_map(c, seq);
		rig_check_map(m, 1, 1500);
		o = rig_map(c, other);
		rig_check_map(o, 2, 100);
		ck_assert_int_eq(kvc_unmap(c, m), 0);
		ck_assert_int_eq(kvc_unmap(c, o), 0);
		ck_assert_uint_eq(rig_counter(c, "tenants", "a", "maps"), 0);
		kvc_close(c);
	}
	ck_assert_int_ge(n_refused, 6);
	ck_assert_int_eq(ret, 0); /* the last */
	stop(d);
}
END_TEST

/* A message that nobody could read does not look like a daemon that lives. */
START_TEST(a_daemon_that_dies_meanwhile_is_noticed)
{
	for (int n = 0; n <= 4; n++) {
		struct rig_daemon *d = start();
		struct kvc *c = rig_join(d->socket);
		const struct kv_sqe nop = { .opcode = KV_OP_NOP };
		const int seq = rig_sequence(c, 1, 100);
		struct kvc_req r = { 0 };
		struct kvc_map *m;

		leave_free(n);
		(void)kvc_map(c, seq, &m);
		ck_assert_int_eq(kill(d->pid, SIGSTOP), 0);
		ck_assert_int_eq(kvc_submit(c, &nop, &r), 0);
		rig_daemon_kill(d);
		ck_assert_int_eq(kvc_wait(c, &r, 10000), -ECONNRESET);
		free_all();
		kvc_close(c);
		rig_daemon_free(d);
	}
}
END_TEST

START_TEST(a_session_is_had_when_there_are_descriptors_again)
{
	struct rig_daemon *d = start();
	const struct kvc_options opt = { .socket = d->socket };
	struct kvc *first = rig_join(d->socket);
	int ret = 0;

	for (int n = 0; n <= 3; n++) {
		struct kvc *c = NULL;
		int before;

		leave_free(n);
		before = n_open();
		ret = kvc_open(&c, &opt);
		ck_assert_int_eq(ret, n < 3 ? -EMFILE : 0);
		if (ret) {
			ck_assert_int_eq(n_open(), before);
			free_all();
			ck_assert_int_eq(kvc_open(&c, &opt), 0);
		}
		free_all();
		ck_assert_int_eq(kvc_nop(c), 0);
		kvc_close(c);
	}
	kvc_close(first);
	stop(d);
}
END_TEST

/* Descriptors of the daemon: n are free from now on; n < 0: as many as it likes. */
static void leave_daemon_free(const struct rig_daemon *d, int n)
{
	static struct rlimit all;
	struct rlimit r;
	char path[64];
	int fd = 0;

	if (!all.rlim_max)
		ck_assert(!prlimit(d->pid, RLIMIT_NOFILE, NULL, &all));
	r = all;
	for (; n >= 0; fd++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)d->pid, fd);
		if (!faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW))
			continue;
		if (!n--)
			r.rlim_cur = (rlim_t)fd;
	}
	ck_assert(!prlimit(d->pid, RLIMIT_NOFILE, &r, NULL));
}

/* It has none left: sessions are refused, maps have to wait, nobody is ended. */
START_TEST(a_daemon_without_descriptors_goes_on_when_it_has_some)
{
	struct rig_daemon *d = start();
	const struct kvc_options opt = { .socket = d->socket };
	struct kvc *first = rig_join(d->socket);
	int n_refused = 0, n_late = 0;

	for (int n = 0; n <= MOST; n++) {
		struct kvc *c = rig_join(d->socket), *o;
		const int seq = rig_sequence(c, (uint32_t)n, 40);
		struct kvc_map *m;
		int ret;

		leave_daemon_free(d, n);
		for (int k = 0; k < 2; k++) {
			ret = kvc_map(c, seq, &m);
			ck_assert_msg(!ret || ret == -ENFILE || ret == -EMFILE,
				      "%d free: %s", n, strerror(-ret));
			if (!ret)
				break;
			n_late++;
		}
		leave_daemon_free(d, n ? n : 1);
		if (!kvc_open(&o, &opt)) {
			kvc_close(o);
		} else {
			ck_assert_int_eq(kvc_open(&o, &opt), -EMFILE);
			n_refused++;
		}
		ck_assert_int_eq(kvc_nop(c), 0);
		leave_daemon_free(d, -1);
		if (ret)
			m = rig_map(c, seq);
		rig_check_map(m, (uint32_t)n, 40);
		kvc_close(c);
	}
	ck_assert_int_gt(n_late, 0);
	ck_assert_int_gt(n_refused, 0);
	ck_assert_int_eq(kvc_nop(first), 0);
	kvc_close(first);
	stop(d);
}
END_TEST

START_TEST(an_export_is_had_when_there_are_descriptors_again)
{
	const struct kvc_export_args args = { .cuda_library = rig_cuda_path() };
	char conf[1024];
	struct rig_daemon *d;
	struct kvc_export *x;
	int n_refused = 0, seq, before;
	struct kvc *c;

	snprintf(conf, sizeof(conf),
		 "cuda_library = %s\ncuda_image = %s\ndevice = cuda\n"
		 "host_memory = 8M\n"
		 "[tenant a]\nuid = %u\nmemory = 16M\ndisk = 0\n"
		 "device_share = yes\n",
		 rig_cuda_path(), rig_cuda_path(), (unsigned int)getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	seq = rig_sequence(c, 1, 300);
	/* once, so that the driver has what it keeps */
	ck_assert_int_eq(kvc_export(c, seq, &args, &x), 0);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	before = n_open();
	for (int n = 0; n <= MOST; n++) {
		int ret;

		leave_free(n);
		ret = kvc_export(c, seq, &args, &x);
		free_all();
		ck_assert_msg(!ret || ret == -EMFILE, "%d free: %s", n,
			      strerror(-ret));
		n_refused += !!ret;
		if (ret)
			ck_assert_int_eq(kvc_export(c, seq, &args, &x), 0);
		ck_assert_int_eq(kvc_unexport(c, x), 0);
		ck_assert_int_eq(n_open(), before);
		ck_assert_uint_eq(rig_counter(c, "pages", "a", "pinned_bytes"),
				  0);
	}
	ck_assert_int_gt(n_refused, 0);
	kvc_close(c);
	stop(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("few_fds");
	TCase *t = tcase_create("few_fds");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, a_map_is_had_when_there_are_descriptors_again, 0,
			    2);
	tcase_add_test(t, a_daemon_that_dies_meanwhile_is_noticed);
	tcase_add_test(t, a_session_is_had_when_there_are_descriptors_again);
	tcase_add_test(t,
		       a_daemon_without_descriptors_goes_on_when_it_has_some);
	tcase_add_test(t, an_export_is_had_when_there_are_descriptors_again);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
