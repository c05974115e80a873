/*
 * test_damage.c - a page file that lies, clients that vanish, tenants that must
 * not meet: the real daemon, real files, real kill -9
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define N_QUESTIONS 12

static struct rig_question questions[N_QUESTIONS];

static void load(void)
{
	rig_questions_load(questions, N_QUESTIONS);
}

static struct rig_daemon *start(const char *memory, const char *socket_b)
{
	struct rig_daemon *d;
	char conf[1024], b[256] = "";

	if (socket_b)
		snprintf(b, sizeof(b),
			 "[tenant b]\nsocket = %s\n"
			 "memory = 8M\ndisk = 64M\n",
			 socket_b);
	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = %s\ndisk = 64M\n%s",
		 rig_data_dir(), getuid(), memory, b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

/* Flip a bit in every page of the daemon's store; returns how many. */
static int damage(pid_t pid)
{
	char dir[64], path[600], name[600];
	struct dirent *e;
	DIR *d;
	int n = 0;

	snprintf(dir, sizeof(dir), "/proc/%d/fd", pid);
	d = opendir(dir);
	ck_assert_ptr_nonnull(d);
	while ((e = readdir(d))) {
		ssize_t len;
		struct stat st;
		int fd;

		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		len = readlink(path, name, sizeof(name) - 1);
		name[len > 0 ? len : 0] = 0;
		if (!strstr(name, "kvd.store"))
			continue;
		fd = open(path, O_RDWR);
		ck_assert_int_ge(fd, 0);
		ck_assert_int_eq(fstat(fd, &st), 0);
		for (off_t at = 777; at < st.st_size; at += 98304, n++) {
			char byte;

			ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
			byte ^= 16;
			ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
		}
		ck_assert_int_eq(fsync(fd), 0);
		close(fd);
	}
	closedir(d);
	return n;
}

START_TEST(a_page_file_that_lies_is_not_believed)
{
	struct rig_daemon *d = start("3M", NULL);
	struct kvc *c = rig_join(d->socket);
	char text[128];
	char *metrics;

	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
	ck_assert_uint_gt(rig_counter(c, "pages", "a", "evicted_total"), 0);
	ck_assert_int_gt(damage(d->pid), 10);
	for (int i = 0; i < N_QUESTIONS; i++) {
		ck_assert_int_gt(rig_ask(c, &questions[i], text, NULL), 0);
		ck_assert_str_eq(text, questions[i].answer);
	}
	ck_assert_int_ge(kvc_query(c, "metrics", "", &metrics), 0);
	ck_assert_ptr_nonnull(strstr(metrics, "kvd_pages_lost_total"));
	ck_assert_ptr_null(
		strstr(metrics, "kvd_pages_lost_total{tenant=\"a\"} 0\n"));
	free(metrics);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(the_scrubber_finds_it_first)
{
	char conf[1024];
	struct rig_daemon *d;
	struct kvc *c;
	uint64_t n = 0;

	snprintf(conf, sizeof(conf),
		 "scrub = 1G\n[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 3M\ndisk = 64M\n",
		 rig_data_dir(), getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
	ck_assert_int_eq(kvc_persist(c), 0);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "lost_pages_total"),
			  0);
	kvc_close(c);
	rig_daemon_kill(d); /* the first pass begins with the daemon */
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	ck_assert_int_gt(damage(d->pid), 10);
	c = rig_join(d->socket);
	for (int i = 0; i < 200 && !n; i++) { /* nobody asks for anything */
		(void)usleep(50000);
		n = rig_counter(c, "tenants", "a", "lost_pages_total");
	}
	ck_assert_uint_gt(n, 0);
	for (int i = 0; i < N_QUESTIONS; i++) {
		char text[128];

		ck_assert_int_gt(rig_ask(c, &questions[i], text, NULL), 0);
		ck_assert_str_eq(text, questions[i].answer);
	}
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(tenants_do_not_meet)
{
	struct rig_daemon *d;
	struct kvc *a, *b;
	struct kv_gen_stats st;
	char socket_b[64], text[128], again[128], *json;
	uint64_t id[2];

	snprintf(socket_b, sizeof(socket_b), "/tmp/kvd-damage-%d.sock",
		 getpid());
	d = start("8M", socket_b);
	a = rig_join(d->socket);
	b = rig_join(socket_b);
	ck_assert_str_eq(kvc_tenant(a), "a");
	ck_assert_str_eq(kvc_tenant(b), "b");
	for (int i = 0; i < 2; i++)
		ck_assert_int_gt(rig_ask(a, &questions[0], text, &st), 0);
	ck_assert_uint_gt(st.n_chunk, 0);
	ck_assert_uint_gt(st.n_prefix, 0);
	/* the same words from b: nothing of a's is found */
	ck_assert_int_gt(rig_ask(b, &questions[0], again, &st), 0);
	ck_assert_uint_eq(st.n_chunk, 0);
	ck_assert_uint_eq(st.n_prefix, 0);
	ck_assert_str_eq(text, again);
	ck_assert_int_gt(kvc_chunk_put(a, NULL, "a secret", 8, id), 0);
	ck_assert_int_eq(kvc_chunk_rm(b, id), -ENOENT);
	ck_assert_int_eq(kvc_chunk_rm(a, id), 0);
	/* b's list names b only, unless it may administer */
	ck_assert_int_ge(kvc_query(b, "chunks", "", &json), 0);
	if (!(kvc_features(b) & KV_FEATURE_ADMIN))
		ck_assert_ptr_null(strstr(json, "\"tenant\":\"a\""));
	free(json);
	kvc_close(a);
	kvc_close(b);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* A client that asks for much and is killed in the middle of it. */
static pid_t doomed(const char *socket)
{
	const pid_t pid = fork();
	struct kvc_gen *g;
	struct kvc *c;

	ck_assert_int_ge(pid, 0);
	if (pid)
		return pid;
	c = rig_join(socket);
	for (int i = 0;; i++) {
		const struct kvc_generate r = {
			.parts = questions[i % N_QUESTIONS].parts,
			.n_parts = questions[i % N_QUESTIONS].n_parts,
			.flags = KV_GEN_IGNORE_EOS,
			.max_tokens = 300,
			.sqe_flags = KV_SQE_WAIT
		};

		if (kvc_generate_start(c, &r, &g))
			pause();
	}
}

START_TEST(killed_clients_cost_only_themselves)
{
	struct rig_daemon *d = start("4M", NULL);
	struct kvc *c = rig_join(d->socket);
	uint64_t pinned = 1;
	char text[128];

	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
	for (int i = 0; i < 12; i++) {
		const pid_t pid = doomed(d->socket);
		const struct rig_question *q = &questions[i % N_QUESTIONS];

		usleep((useconds_t)(5000 + 17000 * (i % 7)));
		kill(pid, SIGKILL);
		ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
		ck_assert_int_gt(rig_ask(c, q, text, NULL), 0);
		ck_assert_str_eq(text, q->answer);
	}
	for (int i = 0; i < 100 && pinned; i++) {
		usleep(10000);
		pinned = rig_counter(c, "pages", "a", "pinned_bytes");
	}
	ck_assert_uint_eq(pinned, 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("damage");
	TCase *t = tcase_create("damage");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_unchecked_fixture(t, load, NULL);
	tcase_add_test(t, a_page_file_that_lies_is_not_believed);
	tcase_add_test(t, the_scrubber_finds_it_first);
	tcase_add_test(t, tenants_do_not_meet);
	tcase_add_test(t, killed_clients_cost_only_themselves);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
