/*
 * test_transport.c - the real daemon: who gets in, and the end of either side
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"

#define OTHER_UID 20001u /* of tenant t1 */
#define NO_UID	  20002u /* of no tenant */

static struct rig_daemon *d;
static char own_socket[128];

static void start_daemon(void)
{
	char extra[1024];
	char dir[] = "/tmp/kvd-own-XXXXXX";

	ck_assert_ptr_nonnull(mkdtemp(dir));
	(void)chmod(dir, 0755);
	(void)snprintf(own_socket, sizeof(own_socket), "%s/t2", dir);
	(void)snprintf(extra, sizeof(extra),
		       "socket_mode = 0666\n"
		       "[tenant t0]\nuid = %u\nmemory = 64M\ndisk = 256M\n"
		       "[tenant t1]\nuid = %u\nmemory = 64M\ndisk = 256M\n"
		       "[tenant t2]\nsocket = %s\nsocket_mode = 0666\n"
		       "memory = 64M\ndisk = 256M\n",
		       (unsigned int)getuid(), OTHER_UID, own_socket);
	d = rig_daemon_start(extra);
	ck_assert_ptr_nonnull(d);
}

static void end_daemon(void)
{
	rig_daemon_free(d);
	*strrchr(own_socket, '/') = '\0';
	ck_assert_int_eq(rmdir(own_socket), 0);
}

static int open_at(struct kvc **c, const char *path)
{
	const struct kvc_options opt = { .socket = path };

	return kvc_open(c, &opt);
}

static struct kvc *must_open(void)
{
	struct kvc *c;

	ck_assert_int_eq(open_at(&c, d->socket), 0);
	return c;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Sessions the daemon has, asked by an administrator. */
static int n_sessions(struct kvc *c)
{
	char *json;
	int n = 0;

	if (kvc_query(c, "sessions", NULL, &json))
		return -1;
	for (const char *p = json; (p = strstr(p, "\"pid\"")); p++)
		n++;
	free(json);
	return n;
}

static int sessions_become(struct kvc *c, int n)
{
	const uint64_t limit = now_ms() + 1000;

	while (now_ms() < limit) {
		if (n_sessions(c) == n)
			return 1;
		(void)usleep(5000);
	}
	return 0;
}

/* ---- simple life ------------------------------------------------------- */

START_TEST(a_session_opens_works_and_ends)
{
	struct kvc *c = must_open(), *c2 = must_open();
	char *json;

	ck_assert_str_eq(kvc_tenant(c), "t0");
	for (int i = 0; i < 1000; i++)
		ck_assert_int_eq(kvc_nop(c), 0);
	ck_assert_int_eq(n_sessions(c), 2);
	kvc_close(c2);
	ck_assert(sessions_become(c, 1));
	ck_assert_int_eq(kvc_query(c, "status", NULL, &json), 0);
	ck_assert_int_eq(json[0], '{');
	free(json);
	ck_assert_int_eq(kvc_query(c, "metrics", NULL, &json), 0);
	ck_assert_ptr_nonnull(strstr(json, "kvd_sessions 1"));
	free(json);
	kvc_close(c);
}
END_TEST

START_TEST(metrics_are_served_over_http)
{
	static const char get[] = "GET /metrics HTTP/1.0\r\n\r\n";
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	static char text[1 << 18];
	size_t n = 0;
	ssize_t got;

	strcpy(a.sun_path, d->metrics);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	ck_assert_int_gt(write(fd, get, sizeof(get) - 1), 0);
	while ((got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)got;
	ck_assert_ptr_nonnull(strstr(text, "200 OK"));
	ck_assert_ptr_nonnull(strstr(text, "# TYPE kvd_sessions gauge"));
	close(fd);
}
END_TEST

START_TEST(a_term_signal_stops_in_order)
{
	struct kvc *c = must_open();
	char *log;

	ck_assert_int_eq(rig_daemon_stop(d), 0);
	ck_assert_int_eq(access(d->socket, F_OK), -1);
	ck_assert_int_eq(kvc_nop(c), -ECONNRESET);
	kvc_close(c);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "kvd: ready"));
	ck_assert_ptr_nonnull(strstr(log, "kvd: stopped"));
	free(log);
}
END_TEST

START_TEST(an_administrator_drains_and_stops)
{
	struct kvc *c = must_open();
	char *json;
	int ret;

	ck_assert_int_eq(kvc_query(c, "drain", NULL, &json), 0);
	free(json);
	ck_assert_int_eq(kvc_query(c, "drain", NULL, &json), 0);
	free(json);
	ret = kvc_query(c, "stop", NULL, &json);
	ck_assert(!ret || ret == -ECONNRESET);
	if (!ret)
		free(json);
	ck_assert_int_eq(rig_daemon_wait(d), 0);
	kvc_close(c);
}
END_TEST

static int run_kvd(const char *opt, const char *conf)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		(void)!freopen("/dev/null", "w", stderr);
		(void)!freopen("/dev/null", "w", stdout);
		(void)execl(rig_daemon_binary(), "kvd", "-c", conf, opt,
			    (char *)NULL);
		_exit(127);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

START_TEST(the_command_line_is_checked)
{
	ck_assert_int_eq(run_kvd("--check", d->conf), 0);
	ck_assert_int_eq(run_kvd("--check", "/nonexistent"), 1);
	ck_assert_int_eq(run_kvd("--check", d->log), 1);
	ck_assert_int_eq(run_kvd("--version", d->conf), 0);
	ck_assert_int_eq(run_kvd("--help", d->conf), 0);
	ck_assert_int_eq(run_kvd("--nonsense", d->conf), 2);
	ck_assert_int_eq(run_kvd(NULL, d->conf), 1); /* one is running */
	ck_assert_int_eq(rig_daemon_stop(d), 0);
}
END_TEST

/* ---- death ------------------------------------------------------------- */

static void be_killed(void)
{
	struct kvc *c = must_open();

	if (!fork()) {
		(void)sleep(4);
		_exit(0);
	}
	(void)kvc_nop(c);
	(void)raise(SIGKILL);
}

START_TEST(a_killed_client_is_gone_though_its_child_holds_the_socket)
{
	struct kvc *c = must_open();
	int status;
	pid_t pid = fork();

	if (!pid)
		be_killed();
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
	ck_assert(sessions_become(c, 1));
	kvc_close(c);
}
END_TEST

#define N_WAITERS 4

struct waiter {
	struct kvc *c;
	int ret;
	uint64_t at_ms;
};

static void *wait_nop(void *arg)
{
	struct waiter *w = arg;

	w->ret = kvc_nop(w->c);
	w->at_ms = now_ms();
	return NULL;
}

START_TEST(a_killed_daemon_resets_all_waiters_and_a_new_one_serves)
{
	struct kvc *c = must_open(), *c2 = must_open();
	struct waiter w[N_WAITERS];
	pthread_t t[N_WAITERS];
	uint64_t killed_ms;

	ck_assert_int_eq(kill(d->pid, SIGSTOP), 0); /* so that they wait */
	for (int i = 0; i < N_WAITERS; i++) {
		w[i].c = i == 0 ? c2 : c;
		ck_assert_int_eq(pthread_create(&t[i], NULL, wait_nop, &w[i]),
				 0);
	}
	(void)usleep(100000);
	rig_daemon_kill(d);
	killed_ms = now_ms();
	for (int i = 0; i < N_WAITERS; i++) {
		ck_assert_int_eq(pthread_join(t[i], NULL), 0);
		ck_assert_int_eq(w[i].ret, -ECONNRESET);
		ck_assert_uint_lt(w[i].at_ms, killed_ms + 1000);
	}
	ck_assert_int_eq(kvc_nop(c), -ECONNRESET);
	ck_assert_int_lt(kvc_reconnect(c), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0); /* over the stale socket */
	ck_assert_int_eq(kvc_reconnect(c), 0);
	ck_assert_int_eq(kvc_nop(c), 0);
	ck_assert_ptr_nonnull(kvc_alloc(c, 1 << 20));
	ck_assert_int_eq(kvc_reconnect(c2), 0);
	ck_assert_int_eq(kvc_nop(c2), 0);
	kvc_close(c2);
	kvc_close(c);
}
END_TEST

/* ---- who gets in (root only) ------------------------------------------- */

/* As uid, connect to path: 0 and the tenant is as expected, or -errno. */
static int connect_as(uid_t uid, const char *path, const char *tenant)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		struct kvc *c;
		char *json;
		int ret;

		if (setgid(uid) || setuid(uid))
			_exit(200);
		ret = open_at(&c, path);
		if (ret)
			_exit(-ret);
		if (strcmp(kvc_tenant(c), tenant) || kvc_nop(c))
			_exit(201);
		if (kvc_features(c) & KV_FEATURE_ADMIN ||
		    kvc_query(c, "sessions", NULL, &json) != -EACCES ||
		    kvc_query(c, "stop", NULL, &json) != -EACCES ||
		    kvc_query(c, "drain", NULL, &json) != -EACCES ||
		    kvc_query(c, "tenants", NULL, &json) != -EACCES)
			_exit(202);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

START_TEST(uids_decide_who_is_who)
{
	ck_assert_int_eq(connect_as(OTHER_UID, d->socket, "t1"), 0);
	ck_assert_int_eq(connect_as(NO_UID, d->socket, ""), -EACCES);
	ck_assert_int_eq(connect_as(65534, d->socket, ""), -EACCES);
	ck_assert_int_eq(connect_as(NO_UID, own_socket, "t2"), 0);
	ck_assert_int_eq(connect_as(65534, own_socket, ""), -EACCES);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("transport");
	TCase *t = tcase_create("transport");
	SRunner *sr = srunner_create(s);
	int failed;

	if (!rig_daemon_binary()) {
		(void)puts("skipped: no kvd binary");
		return 77;
	}
	suite_add_tcase(s, t);
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, start_daemon, end_daemon);
	tcase_add_test(t, a_session_opens_works_and_ends);
	tcase_add_test(t, metrics_are_served_over_http);
	tcase_add_test(t, a_term_signal_stops_in_order);
	tcase_add_test(t, an_administrator_drains_and_stops);
	tcase_add_test(t, the_command_line_is_checked);
	tcase_add_test(
		t, a_killed_client_is_gone_though_its_child_holds_the_socket);
	tcase_add_test(t,
		       a_killed_daemon_resets_all_waiters_and_a_new_one_serves);
	if (getuid() == 0)
		tcase_add_test(t, uids_decide_who_is_who);
	else
		(void)puts("uids_decide_who_is_who: skipped, needs root");
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
