/*
 * test_stopped.c - who is stopped (SIGSTOP) and goes on later: the daemon, or a client
 *
 * Longer than any limit of either on the other, but for the handshake's five seconds.
 * Nothing is torn down, nothing is answered otherwise.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/raw.h"
#include "tests/rig/rig_map.h"

#define N_QUESTIONS 6
#define N_TOKENS    600u
#define STOP_US	    1500000u /* half-open connections, holds and room: 1 s */
#define SOON_US	    100000u

static struct rig_question questions[N_QUESTIONS];
static struct rig_daemon *d;
static struct kvc *c;

static void begin(void)
{
	char conf[512];

	rig_questions_load(questions, N_QUESTIONS);
	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 4M\ndisk = 96M\n",
		 rig_data_dir(), getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
}

static void end(void)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	rig_questions_free(questions, N_QUESTIONS);
}

static void stop_it(void)
{
	int status;

	ck_assert_int_eq(kill(d->pid, SIGSTOP), 0);
	ck_assert_int_eq(waitpid(d->pid, &status, WUNTRACED), d->pid);
	ck_assert(WIFSTOPPED(status));
}

/* ---- the daemon ------------------------------------------------------------ */

struct asker {
	pthread_t thread;
	_Atomic int n_answered, stop;
	int n_wrong;
};

static void *ask_on(void *arg)
{
	struct asker *a = arg;
	struct kvc *own = rig_join(d->socket);

	for (int i = 0; !a->stop; i++) {
		const struct rig_question *q = &questions[i % N_QUESTIONS];
		char text[128] = "";

		if (rig_ask(own, q, text, NULL) <= 0 || strcmp(text, q->answer))
			a->n_wrong++;
		a->n_answered++;
	}
	kvc_close(own);
	return NULL;
}

static void *open_late(void *arg)
{
	*(struct kvc **)arg = rig_join(d->socket);
	return NULL;
}

static void *read_map(void *arg)
{
	rig_check_map(arg, 3, N_TOKENS);
	return NULL;
}

static void *make_durable(void *arg)
{
	*(int *)arg = kvc_persist(c);
	return NULL;
}

/* Requests, a call with a time limit, faults, a persist call, somebody who connects. */
START_TEST(a_daemon_that_goes_on_goes_on)
{
	struct asker a = { 0 };
	struct kvc *late = NULL, *m = rig_join(d->socket);
	struct kvc_map *map = rig_map(m, rig_sequence(m, 3, N_TOKENS));
	const struct kv_sqe nop = { .opcode = KV_OP_NOP };
	struct kvc_req r = { 0 };
	pthread_t opens, reads, persists;
	int durable = 1, n;

	ck_assert_int_eq(pthread_create(&a.thread, NULL, ask_on, &a), 0);
	while (a.n_answered < N_QUESTIONS)
		(void)usleep(1000);
	stop_it();
	n = a.n_answered;
	ck_assert_int_eq(pthread_create(&opens, NULL, open_late, &late), 0);
	ck_assert_int_eq(pthread_create(&reads, NULL, read_map, map), 0);
	ck_assert_int_eq(
		pthread_create(&persists, NULL, make_durable, &durable), 0);
	ck_assert_int_eq(kvc_submit(m, &nop, &r), 0);
	ck_assert_int_eq(kvc_wait(m, &r, 50), -ETIMEDOUT);
	(void)usleep(STOP_US);
	ck_assert_int_le(a.n_answered, n + 1);
	ck_assert_int_eq(kill(d->pid, SIGCONT), 0);
	ck_assert_int_eq(kvc_wait(m, &r, -1), 0);
	ck_assert_int_eq(pthread_join(opens, NULL), 0);
	ck_assert_int_eq(pthread_join(reads, NULL), 0);
	ck_assert_int_eq(pthread_join(persists, NULL), 0);
	ck_assert_int_eq(durable, 0);
	ck_assert_int_eq(kvc_nop(late), 0);
	n = a.n_answered + 2;
	while (a.n_answered < n)
		(void)usleep(1000);
	a.stop = 1;
	ck_assert_int_eq(pthread_join(a.thread, NULL), 0);
	ck_assert_int_eq(a.n_wrong, 0);
	kvc_close(late);
	kvc_close(m);
}
END_TEST

/* Who said hello in time is served, though the daemon could not see it in time. */
START_TEST(a_hello_is_not_late_because_the_daemon_is)
{
	const struct kv_hello h = { .magic = KV_MAGIC,
				    .major = KV_ABI_MAJOR,
				    .sq_entries = 8,
				    .arena_bytes = 1 << 20,
				    .name = "late" };
	struct kv_welcome w = { 0 };
	const int sock = raw_socket(d->socket);

	ck_assert_int_ge(sock, 0);
	(void)usleep(SOON_US); /* it is accepted */
	stop_it();
	ck_assert_int_eq(send(sock, &h, sizeof(h), MSG_NOSIGNAL), sizeof(h));
	(void)usleep(STOP_US);
	ck_assert_int_eq(kill(d->pid, SIGCONT), 0);
	ck_assert_int_eq(recv(sock, &w, sizeof(w), 0), sizeof(w));
	ck_assert_int_eq(w.err, 0);
	(void)close(sock);
}
END_TEST

START_TEST(a_stopped_daemon_ends_in_order_when_it_goes_on)
{
	stop_it();
	ck_assert_int_eq(kill(d->pid, SIGTERM), 0);
	(void)usleep(SOON_US);
	ck_assert_int_eq(kill(d->pid, SIGCONT), 0);
	ck_assert_int_eq(rig_daemon_wait(d), 0);
	ck_assert_int_eq(kvc_nop(c), -ECONNRESET);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
}
END_TEST

/* ---- a client -------------------------------------------------------------- */

/* Reads its map and asks, again and again; 0 when told to end. */
static void client(int told)
{
	struct kvc *own = rig_join(d->socket);
	struct kvc_map *map = rig_map(own, rig_sequence(own, 4, N_TOKENS));
	int wrong = 0;
	char byte;

	while (recv(told, &byte, 1, MSG_DONTWAIT) < 0 && !wrong) {
		const struct rig_question *q = &questions[0];
		char text[128] = "";

		rig_check_map(map, 4, N_TOKENS);
		wrong = rig_ask(own, q, text, NULL) <= 0 ||
			strcmp(text, q->answer);
	}
	kvc_close(own);
	_exit(wrong);
}

START_TEST(a_client_that_goes_on_goes_on)
{
	int told[2], status;
	pid_t pid;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, told), 0);
	pid = fork();
	if (!pid)
		client(told[1]);
	for (int i = 0; i < 5; i++) {
		(void)usleep(SOON_US + 7919u * (unsigned int)i);
		ck_assert_int_eq(kill(pid, SIGSTOP), 0);
		ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
		ck_assert(WIFSTOPPED(status));
		for (int k = 0; k < N_QUESTIONS; k++) {
			char text[128] = "";

			ck_assert_int_gt(rig_ask(c, &questions[k], text, NULL),
					 0);
			ck_assert_str_eq(text, questions[k].answer);
		}
		if (i == 4)
			(void)usleep(STOP_US);
		ck_assert_int_eq(kill(pid, SIGCONT), 0);
	}
	ck_assert_int_eq(send(told[0], "", 1, 0), 1);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(!status, "the client: %x", status);
	(void)close(told[0]);
	(void)close(told[1]);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("stopped");
	TCase *tc = tcase_create("stopped");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, begin, end);
	tcase_add_test(tc, a_daemon_that_goes_on_goes_on);
	tcase_add_test(tc, a_hello_is_not_late_because_the_daemon_is);
	tcase_add_test(tc, a_stopped_daemon_ends_in_order_when_it_goes_on);
	tcase_add_test(tc, a_client_that_goes_on_goes_on);
	suite_add_tcase(s, tc);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
