/*
 * test_identity.c - users and groups: who is let in where, and who the daemon
 * itself becomes; needs root, whose children take other ids
 */
#include <check.h>
#include <errno.h>
#include <grp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define UID_ONE	  20001u /* of tenant one */
#define UID_NONE  20002u /* of no tenant */
#define GID_TWO	  20011u /* of tenant two */
#define GID_THREE 20012u /* of tenant three */
#define GID_ADMIN 20013u
#define GID_NONE  20014u
#define UID_OWN	  20021u /* owns the socket of tenant own */
#define GID_OWN	  20022u
#define UID_KVD	  20031u /* whom the daemon becomes */
#define OVERFLOW  65534u

#define BUDGET "memory = 8M\ndisk = 32M\n"

static struct rig_daemon *d;
static char own[160];

static void start_daemon(void)
{
	char extra[2048];

	/* the folder of the daemon is not known yet: a socket beside it */
	snprintf(own, sizeof(own), "/tmp/kvd-identity-%d.sock", getpid());
	snprintf(extra, sizeof(extra),
		 "admin_group = %u\nsocket_mode = 0666\n"
		 "[tenant one]\nuid = %u\n" BUDGET
		 "[tenant two]\ngid = %u\n" BUDGET
		 "[tenant three]\ngid = %u\n" BUDGET
		 "[tenant own]\nsocket = %s\nsocket_mode = 0660\n" BUDGET,
		 GID_ADMIN, UID_ONE, GID_TWO, GID_THREE, own);
	d = rig_daemon_start(extra);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(chown(own, UID_OWN, GID_OWN), 0);
}

static void end_daemon(void)
{
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	ck_assert_int_eq(access(own, F_OK), -1); /* it cleans up */
}

struct who {
	uid_t uid;
	gid_t gid;
	gid_t more[2]; /* supplementary, 0: none */
};

/* In a child with other ids: what kvc_open() returns, checked by look(). */
static int become(const struct who *w)
{
	const size_t n = w->more[0] ? w->more[1] ? 2 : 1 : 0;

	return setgroups(n, w->more) || setresgid(w->gid, w->gid, w->gid) ||
	       setresuid(w->uid, w->uid, w->uid);
}

static int admin_calls(struct kvc *c, int want)
{
	static const char *const calls[] = { "tenants", "sessions", "metrics" };
	char *json = NULL;

	for (size_t i = 0; i < 3; i++) {
		const int ret = kvc_query(c, calls[i], NULL, &json);

		if (ret >= 0)
			free(json);
		if ((ret < 0 ? ret : 0) != want)
			return 0;
	}
	return 1;
}

/* Own pages, by name of the tenant; those of another are not there. */
static int sees_only_itself(struct kvc *c)
{
	char want[64], *json;
	int ok;

	if (kvc_query(c, "pages", "", &json) < 0)
		return 0;
	snprintf(want, sizeof(want), "\"tenant\":\"%s\"", kvc_tenant(c));
	ok = strstr(json, want) &&
	     strstr(json, "\"tenant\":") == strstr(json, want) &&
	     !strstr(strstr(json, want) + 1, "\"tenant\":");
	free(json);
	return ok;
}

/* 0: in, as tenant (and administrator or not); -errno: refused; -200..: wrong */
static int enter(const struct who *w, const char *path, const char *tenant,
		 int admin)
{
	const pid_t pid = fork();
	int status, ret;
	struct kvc *c;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		if (become(w))
			_exit(200);
		ret = kvc_open(&c, &(struct kvc_options){ .socket = path });
		if (ret)
			_exit(-ret);
		if (strcmp(kvc_tenant(c), tenant) || kvc_nop(c))
			_exit(201);
		if (!(kvc_features(c) & KV_FEATURE_ADMIN) != !admin ||
		    !admin_calls(c, admin ? 0 : -EACCES))
			_exit(202);
		if (!admin && !sees_only_itself(c))
			_exit(203);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

static const struct {
	struct who who;
	const char *tenant;
	int admin, want;
} table[] = {
	{ { UID_ONE, GID_NONE, { 0 } }, "one", 0, 0 },
	{ { UID_NONE, GID_NONE, { 0 } }, "", 0, -EACCES },
	{ { UID_NONE, GID_TWO, { 0 } }, "two", 0, 0 },
	{ { UID_NONE, GID_NONE, { GID_TWO } }, "two", 0, 0 },
	{ { UID_NONE, GID_NONE, { GID_NONE, GID_THREE } }, "three", 0, 0 },
	/* the user before its groups, the primary before the others */
	{ { UID_ONE, GID_TWO, { GID_THREE } }, "one", 0, 0 },
	{ { UID_NONE, GID_THREE, { GID_TWO } }, "three", 0, 0 },
	{ { UID_NONE, GID_ADMIN, { 0 } }, "", 1, 0 },
	{ { UID_NONE, GID_NONE, { GID_ADMIN } }, "", 1, 0 },
	{ { UID_ONE, GID_NONE, { GID_ADMIN } }, "one", 1, 0 },
	{ { 0, 0, { 0 } }, "", 1, 0 },
	/* the overflow user may be anybody: nothing lets it in */
	{ { OVERFLOW, GID_NONE, { 0 } }, "", 0, -EACCES },
	{ { OVERFLOW, GID_TWO, { GID_ADMIN } }, "", 0, -EACCES },
};

START_TEST(users_and_groups_decide_who_is_who)
{
	ck_assert_int_eq(enter(&table[_i].who, d->socket, table[_i].tenant,
			       table[_i].admin),
			 table[_i].want);
}
END_TEST

START_TEST(a_socket_of_its_own_is_guarded_by_its_mode)
{
	const struct who owner = { UID_OWN, GID_NONE, { 0 } };
	const struct who group = { UID_NONE, GID_NONE, { GID_OWN } };
	const struct who other = { UID_ONE, GID_TWO, { GID_THREE } };
	const struct who nobody = { OVERFLOW, GID_NONE, { GID_OWN } };
	struct stat st;

	ck_assert_int_eq(stat(own, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0660);
	ck_assert_int_eq(stat(d->socket, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0666);
	ck_assert_int_eq(stat(d->metrics, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0660);
	ck_assert_int_eq(enter(&owner, own, "own", 0), 0);
	ck_assert_int_eq(enter(&group, own, "own", 0), 0);
	ck_assert_int_eq(enter(&other, own, "", 0), -EACCES);
	ck_assert_int_eq(enter(&nobody, own, "", 0), -EACCES);
}
END_TEST

START_TEST(who_is_no_administrator_stops_nothing)
{
	const pid_t pid = fork();
	int status;

	if (!pid) {
		const struct who one = { UID_ONE, GID_NONE, { 0 } };
		struct kvc *c;
		char *json;

		if (become(&one))
			_exit(200);
		c = rig_join(d->socket);
		if (kvc_query(c, "stop", NULL, &json) != -EACCES ||
		    kvc_query(c, "drain", NULL, &json) != -EACCES)
			_exit(201);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	kvc_close(rig_join(d->socket));
}
END_TEST

/* ---- the daemon as somebody else -------------------------------------------- */

/* Value of a line of /proc/PID/status. */
static void status_line(pid_t pid, const char *key, char out[256])
{
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "r");
	ck_assert_ptr_nonnull(f);
	out[0] = '\0';
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			strcpy(out, line + strlen(key) + 1);
	fclose(f);
}

static void owned_by_the_user(const char *name)
{
	char path[256];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", d->dir, name);
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert_uint_eq(st.st_uid, UID_KVD);
	ck_assert_uint_eq(st.st_gid, UID_KVD);
	ck_assert_uint_eq(st.st_mode & 077, 0);
}

static void runs_as_the_user(void)
{
	char line[256], want[64];
	unsigned long long caps;

	kvc_close(rig_join(d->socket)); /* who gets an answer finds it so */
	status_line(d->pid, "Uid:", line);
	snprintf(want, sizeof(want), "%u\t%u\t%u\t%u\n", UID_KVD, UID_KVD,
		 UID_KVD, UID_KVD);
	ck_assert_str_eq(line, want);
	status_line(d->pid, "Gid:", line);
	ck_assert_str_eq(line, want);
	status_line(d->pid, "Groups:", line);
	ck_assert_int_eq((int)strspn(line, " \t\n"), (int)strlen(line));
	status_line(d->pid, "NoNewPrivs:", line);
	ck_assert_str_eq(line, "1\n");
	status_line(d->pid, "Seccomp:", line);
	ck_assert_str_eq(line, "2\n");
	status_line(d->pid, "CapEff:", line);
	caps = strtoull(line, NULL, 16);
	/* CAP_IPC_LOCK 14 and CAP_SYS_NICE 23 at most */
	ck_assert_uint_eq(caps & ~(1ull << 14 | 1ull << 23), 0);
	owned_by_the_user("state");
	owned_by_the_user("state/kvd.store");
}

#define N_ASKED 8

/* Paging, chunks, a persisted cache, queries: nothing of it is refused. */
static void everything_works(struct rig_question *q, char answers[][128])
{
	struct kvc *c = rig_join(d->socket);
	char text[128], *json;

	for (int i = 0; i < 2 * N_ASKED; i++) {
		char *to = answers[i % N_ASKED];

		ck_assert_int_gt(rig_ask(c, &q[i % N_ASKED], text, NULL), 0);
		if (!to[0])
			strcpy(to, text);
		ck_assert_str_eq(text, to);
	}
	ck_assert_uint_gt(rig_counter(c, "pages", "a", "evicted_total"), 0);
	ck_assert_uint_gt(rig_counter(c, "pages", "a", "read_total"), 0);
	ck_assert_int_eq(kvc_persist(c), 0);
	ck_assert_int_ge(kvc_query(c, "metrics", NULL, &json), 0);
	ck_assert_ptr_nonnull(strstr(json, "kvd_sessions 1"));
	free(json);
	kvc_close(c);
}

START_TEST(the_daemon_becomes_its_user_and_works_behind_the_filter)
{
	struct rig_question q[N_ASKED];
	char answers[N_ASKED][128] = { "" }, conf[1024];

	rig_questions_load(q, N_ASKED);
	snprintf(conf, sizeof(conf),
		 "user = %u\n[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = 0\nmemory = 3M\ndisk = 64M\n",
		 UID_KVD, rig_data_dir());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	runs_as_the_user();
	everything_works(q, answers);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	/* again, over files that are the user's; the old socket is in the way */
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	runs_as_the_user();
	everything_works(q, answers);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	rig_questions_free(q, N_ASKED);
}
END_TEST

START_TEST(links_in_the_state_folder_are_not_given_away)
{
	char path[256], victim[256], conf[256];
	struct stat st;

	snprintf(conf, sizeof(conf), "user = %u\n[tenant a]\nuid = 0\n" BUDGET,
		 UID_KVD);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	snprintf(path, sizeof(path), "%s/state/kvd.store", d->dir);
	snprintf(victim, sizeof(victim), "%s/victim", d->dir);
	ck_assert_int_eq(rename(path, victim), 0);
	ck_assert_int_eq(chown(victim, 0, 0), 0);
	ck_assert_int_eq(link(victim, path), 0);
	if (!rig_daemon_restart(d))
		ck_assert_int_eq(rig_daemon_stop(d), 0);
	ck_assert_int_eq(stat(victim, &st), 0);
	ck_assert_uint_eq(st.st_uid, 0);
	rig_daemon_free(d);
}
END_TEST

/* The store lies elsewhere; what is known of chunks and models does not. */
START_TEST(its_folder_is_its_own_beside_stores_too)
{
	char conf[1024], dir[] = "/var/tmp/kvd-user-XXXXXX", path[64];
	struct kvc *c;
	uint64_t id[2];

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/one", dir);
	snprintf(conf, sizeof(conf),
		 "user = %u\n[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[store one]\npath = %s\nsize = 64M\n"
		 "[tenant a]\nuid = 0\nmemory = 8M\ndisk = 32M\n",
		 UID_KVD, rig_data_dir(), path);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	ck_assert_int_gt(kvc_chunk_put(c, NULL, "a chunk", 7, id), 0);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	owned_by_the_user("state");
	owned_by_the_user("state/kvd.uses");
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

/* ---- notification, metrics over TCP ------------------------------------------- */

static int notify_socket(struct sockaddr_un *a, socklen_t len)
{
	const struct timeval limit = { .tv_sec = 10 };
	const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)a, len), 0);
	ck_assert_int_eq(
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)),
		0);
	return fd;
}

static void told(int fd, const char *want)
{
	char text[64] = "";

	ck_assert_int_gt(recv(fd, text, sizeof(text) - 1, 0), 0);
	ck_assert_str_eq(text, want);
}

static void notified_at(const char *name)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const socklen_t len =
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) +
			    strlen(name));
	int fd;

	memcpy(a.sun_path, name, strlen(name));
	if (name[0] == '@')
		a.sun_path[0] = '\0';
	fd = notify_socket(&a, len);
	ck_assert_int_eq(setenv("NOTIFY_SOCKET", name, 1), 0);
	d = rig_daemon_start(NULL);
	ck_assert_ptr_nonnull(d);
	told(fd, "READY=1");
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	told(fd, "STOPPING=1");
	rig_daemon_free(d);
	close(fd);
}

START_TEST(the_service_manager_is_told)
{
	char name[64];

	snprintf(name, sizeof(name), "/tmp/kvd-notify-%d", getpid());
	notified_at(name);
	ck_assert_int_eq(unlink(name), 0);
	snprintf(name, sizeof(name), "@kvd-notify-%d", getpid());
	notified_at(name);
}
END_TEST

static unsigned int free_port(struct sockaddr_in *a)
{
	const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(*a);

	*a = (struct sockaddr_in){ .sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	ck_assert_int_eq(bind(fd, (struct sockaddr *)a, len), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)a, &len), 0);
	close(fd);
	return ntohs(a->sin_port);
}

static void http(const struct sockaddr_in *a, const char *ask, const char *want)
{
	const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	static char text[1 << 18];
	size_t n = 0;
	ssize_t got;

	ck_assert_int_eq(connect(fd, (const struct sockaddr *)a, sizeof(*a)),
			 0);
	ck_assert_int_gt(write(fd, ask, strlen(ask)), 0);
	while ((got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)got;
	text[n] = '\0';
	ck_assert_msg(strstr(text, want) != NULL, "%s: %s", ask, text);
	close(fd);
}

START_TEST(metrics_on_a_loopback_port)
{
	struct sockaddr_in a;
	char conf[256];

	snprintf(conf, sizeof(conf),
		 "metrics = tcp:127.0.0.1:%u\n[tenant a]\nuid = %u\n" BUDGET,
		 free_port(&a), getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	http(&a, "GET /metrics HTTP/1.0\r\n\r\n", "# TYPE kvd_sessions gauge");
	http(&a, "GET / HTTP/1.0\r\n\r\n", "404 Not Found");
	http(&a, "POST /metrics HTTP/1.0\r\n\r\n", "404 Not Found");
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("identity");
	TCase *in = tcase_create("who gets in");
	TCase *own_user = tcase_create("the daemon's user");
	TCase *plain = tcase_create("for anybody");

	tcase_set_timeout(in, 60);
	tcase_set_timeout(own_user, 60);
	tcase_set_timeout(plain, 60);
	tcase_add_checked_fixture(in, start_daemon, end_daemon);
	tcase_add_loop_test(in, users_and_groups_decide_who_is_who, 0,
			    sizeof(table) / sizeof(table[0]));
	tcase_add_test(in, a_socket_of_its_own_is_guarded_by_its_mode);
	tcase_add_test(in, who_is_no_administrator_stops_nothing);
	tcase_add_test(own_user,
		       the_daemon_becomes_its_user_and_works_behind_the_filter);
	tcase_add_test(own_user, links_in_the_state_folder_are_not_given_away);
	tcase_add_test(own_user, its_folder_is_its_own_beside_stores_too);
	tcase_add_test(plain, the_service_manager_is_told);
	tcase_add_test(plain, metrics_on_a_loopback_port);
	if (getuid() == 0) {
		suite_add_tcase(s, in);
		suite_add_tcase(s, own_user);
	} else {
		printf("other users and groups: skipped, needs root\n");
	}
	suite_add_tcase(s, plain);
	return s;
}

int main(void)
{
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	r = srunner_create(suite());
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
