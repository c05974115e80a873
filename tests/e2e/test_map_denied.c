/*
 * test_map_denied.c - maps where userfaultfd, the tenant or the user may not
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_map.h"

#define CONF "[tenant a]\nuid = %u\nmemory = 1M\ndisk = 48M\n%s"

static struct rig_daemon *start(const char *more)
{
	char conf[512];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf), CONF, getuid(), more);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static void stop(struct rig_daemon *d, struct kvc *c)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

/* ---- where it is forbidden ------------------------------------------------------ */

static void forbid_userfaultfd(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);

	ck_assert_ptr_nonnull(ctx);
	ck_assert_int_eq(seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM),
					  SCMP_SYS(userfaultfd), 0),
			 0);
	ck_assert_int_eq(seccomp_load(ctx), 0);
	seccomp_release(ctx);
}

START_TEST(a_client_that_may_not)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m;
	int seq;

	forbid_userfaultfd();
	seq = rig_sequence(c, 12, 100);
	ck_assert(kvc_features(c) & KV_FEATURE_MAP);
	ck_assert_int_eq(kvc_map(c, seq, &m), -ENOTSUP);
	ck_assert_int_eq(kvc_map(c, seq, &m), -ENOTSUP);
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	stop(d, c);
}
END_TEST

START_TEST(a_daemon_that_may_not)
{
	struct rig_daemon *d;
	struct kvc_map *m;
	struct kvc *c;
	char *log;
	int seq;

	forbid_userfaultfd();
	d = start("");
	c = rig_join(d->socket);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "clients cannot map"));
	free(log);
	ck_assert(!(kvc_features(c) & KV_FEATURE_MAP));
	seq = rig_sequence(c, 12, 1000);
	ck_assert_int_eq(kvc_map(c, seq, &m), -ENOTSUP);
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	stop(d, c);
}
END_TEST

START_TEST(a_tenant_that_may_not)
{
	struct rig_daemon *d = start("map = no\n");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m;

	ck_assert(!(kvc_features(c) & KV_FEATURE_MAP));
	ck_assert_int_eq(kvc_map(c, rig_sequence(c, 12, 100), &m), -ENOTSUP);
	stop(d, c);
}
END_TEST

/* ---- a client without privileges ------------------------------------------------- */

#define STRANGER 4242u

/* What it got can only be read. Returns how many files there were. */
static int files_are_read_only(void)
{
	char path[64], link[128];
	int n = 0;

	for (int fd = 3; fd < 256; fd++) {
		ssize_t len;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		len = readlink(path, link, sizeof(link) - 1);
		link[len > 0 ? len : 0] = '\0';
		if (!strstr(link, "memfd:a"))
			continue;
		n++;
		if (open(path, O_RDWR) >= 0 || open(path, O_WRONLY) >= 0 ||
		    !ftruncate(fd, 0) || !fallocate(fd, 0, 0, 4096) ||
		    write(fd, "x", 1) >= 0 || !fchmod(fd, 0666) ||
		    mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 0) != MAP_FAILED ||
		    !fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE))
			return -1;
	}
	return n;
}

static int stranger(const char *socket)
{
	struct kvc_map *m;
	struct kvc *c;
	int seq, p[2], n_efault = 0;

	if (setgroups(0, NULL) || setresgid(STRANGER, STRANGER, STRANGER) ||
	    setresuid(STRANGER, STRANGER, STRANGER) ||
	    prctl(PR_SET_DUMPABLE, 1))
		return 90;
	c = rig_join(socket);
	seq = rig_sequence(c, 15, 2000);
	m = rig_map(c, seq);
	if (files_are_read_only() != 1)
		return 91;
	if (pipe(p))
		return 92;
	for (uint32_t i = 0; i < m->n_entries; i++)
		if (write(p[1], m->entries[i].addr, 64) < 0)
			n_efault += errno == EFAULT;
	if (n_efault != (int)m->n_entries)
		return 93; /* nothing was touched before */
	rig_check_map(m, 15, 2000);
	kvc_close(c);
	return 0;
}

START_TEST(a_client_without_privileges)
{
	struct rig_daemon *d;
	int status;
	pid_t pid;

	if (geteuid()) {
		printf("a_client_without_privileges: needs root\n");
		return;
	}
	d = rig_daemon_start("[tenant a]\nuid = 4242\nmemory = 1M\n"
			     "disk = 48M\n");
	ck_assert_ptr_nonnull(d);
	pid = fork();
	if (!pid)
		_exit(stranger(d->socket));
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("map_denied");
	TCase *t = tcase_create("map_denied");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_test(t, a_client_that_may_not);
	tcase_add_test(t, a_daemon_that_may_not);
	tcase_add_test(t, a_tenant_that_may_not);
	tcase_add_test(t, a_client_without_privileges);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
