/*
 * test_silent.c - a disk that answers nothing any more (kvd-faulty: "hang"): requests that wait
 * for it are computed again, later ones do not ask it, tenants without it notice
 * nothing; when it answers it is used again
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/fault_ctl.h"
#include "tests/rig/questions.h"

#define N 6

static struct rig_question questions[N];
static struct rig_daemon *d;
static struct kvc *a, *b;
static char socket_b[64];

static void begin(void)
{
	char conf[1024];

	rig_questions_load(questions, N);
	snprintf(socket_b, sizeof(socket_b), "/tmp/kvd-silent-%d.sock",
		 getpid());
	snprintf(
		conf, sizeof(conf),
		"[model m]\npath = %s/models/rag-mini.gguf\ngate = no\n"
		"[tenant a]\nuid = %u\nmemory = 32M\ndisk = 128M\n"
		"[tenant b]\nsocket = %s\nmemory = 64M\ndisk = 0\npersist = no\n",
		rig_data_dir(), getuid(), socket_b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
}

static void join(void)
{
	a = rig_join(d->socket);
	b = rig_join(socket_b);
}

static void leave(void)
{
	kvc_close(a);
	kvc_close(b);
}

static void end(void)
{
	leave();
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	rig_questions_free(questions, N);
}

/* All answers, durable; nothing in memory. */
static void store_all(void)
{
	join();
	for (int i = 0; i < N; i++)
		ck_assert_int_gt(
			rig_ask(a, &questions[i], questions[i].answer, NULL),
			0);
	ck_assert_int_eq(kvc_persist(a), 0);
	leave();
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	join();
}

/* The answer is right; how many pages were read for it. */
static uint64_t right(struct kvc *c, int i)
{
	struct kv_gen_stats st;
	char text[128];
	const int ret = rig_ask(c, &questions[i], text, &st);

	ck_assert_msg(ret > 0, "question %d: %s", i, strerror(-ret));
	ck_assert_str_eq(text, questions[i].answer);
	return st.n_read_back;
}

static int store_is_silent(void)
{
	json_t *o;
	char *text;
	int yes;

	ck_assert_int_ge(kvc_query(b, "stores", "", &text), 0);
	o = json_loads(text, 0, NULL);
	free(text);
	ck_assert_msg(json_is_array(o) && json_array_size(o) == 1, "stores");
	yes = json_is_true(json_object_get(json_array_get(o, 0), "silent"));
	json_decref(o);
	return yes;
}

static double silent_seconds(void)
{
	static const char name[] = "kvd_store_silent_seconds{store=";
	const char *at;
	char *text;
	double v;

	ck_assert_int_ge(kvc_query(b, "metrics", "", &text), 0);
	at = strstr(text, name);
	ck_assert_ptr_nonnull(at);
	v = strtod(strchr(at, '}') + 1, NULL);
	free(text);
	return v;
}

static void logged(const char *what)
{
	char *log = rig_daemon_log(d);

	ck_assert_msg(strstr(log, what) != NULL, "no line: %s", what);
	free(log);
}

START_TEST(a_disk_that_hangs_holds_up_nobody_for_good)
{
	store_all();
	ck_assert_uint_gt(right(a, 0), 0);
	ck_assert(!store_is_silent());
	rig_fault("hang");
	right(b, 1);
	right(a, 1); /* it is asked for its pages, and waited for */
	ck_assert(store_is_silent());
	ck_assert(silent_seconds() >= 5);
	logged("no answer for");
	for (int i = 2; i < N - 1; i++) /* and these do not ask it */
		ck_assert_uint_eq(right(a, i), 0);
	right(b, 2);
	ck_assert(store_is_silent());
	rig_fault("off");
	for (int i = 0; i < 5000 && store_is_silent(); i++)
		(void)usleep(10000);
	ck_assert(!store_is_silent());
	ck_assert(!silent_seconds());
	logged("answers again");
	ck_assert_uint_gt(right(a, N - 1), 0);
}
END_TEST

/* Its pages are the client's of no more use, and the disk's memory until it ends. */
START_TEST(who_leaves_a_disk_that_hangs_leaves_at_once)
{
	const struct kvc_options opt = { .socket = d->socket };
	pid_t pid;

	store_all();
	rig_fault("hang");
	pid = fork();
	if (!pid) {
		struct kvc *c;
		char text[128];

		if (!kvc_open(&c, &opt))
			rig_ask(c, &questions[0], text, NULL);
		_exit(0);
	}
	ck_assert_int_gt(pid, 0);
	(void)usleep(300000);
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	right(b, 0);
	right(a, 0);
	rig_fault("off");
	right(a, 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("silent");
	TCase *tc = tcase_create("silent");
	SRunner *sr;
	int failed;

	if (rig_fault_use()) {
		printf("skipped: there is no kvd-faulty binary\n");
		return 77;
	}
	/* io_uring cannot be held up from outside: threads do as it does */
	setenv("KVD_FAULT_START", "forever uring.setup 1 38", 1);
	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, begin, end);
	tcase_add_test(tc, a_disk_that_hangs_holds_up_nobody_for_good);
	tcase_add_test(tc, who_leaves_a_disk_that_hangs_leaves_at_once);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
