/*
 * test_kill.c - kill -9, of the daemon and of its clients, at random moments
 *
 * The daemon under load: every client is told -ECONNRESET and nothing else,
 * reconnects, and gets right answers from the next one. Clients that hold
 * sequences and requests: all they had is free again within a second. Seeds are
 * printed; KVD_SEED=n repeats the moments, KVD_LONG=1 does ten times as many.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/mirror.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_map.h"

#define N_QUESTIONS 8
#define N_CLIENTS   6
#define N_KILLS	    16
#define N_DOOMED    3
#define N_BATCHES   40
#define N_SEQS	    4
#define STEP	    64u
#define PATIENCE_MS 15000 /* then it hangs */

static struct rig_question questions[N_QUESTIONS];
static struct rng dice;

/* What clients tell the test. */
struct board {
	_Atomic int stop;
	struct {
		_Atomic unsigned int n_resets, n_right;
		_Atomic long reset_ms; /* when the last one was seen */
	} of[N_CLIENTS];
};
static struct board *board;

static int times(int n)
{
	return getenv("KVD_LONG") ? 10 * n : n;
}

static long now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int sanitized(void)
{
	const char *bin = rig_daemon_binary();

	return strstr(bin, "asan") || strstr(bin, "tsan") ||
	       strstr(bin, "ubsan");
}

static void setup(void)
{
	const char *s = getenv("KVD_SEED");

	dice.s = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("seed %llu\n", (unsigned long long)dice.s);
	fflush(stdout);
	dice.s *= 0x9e3779b97f4a7c15u;
	rig_questions_load(questions, N_QUESTIONS);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(board, MAP_FAILED);
}

static struct rig_daemon *start(const char *memory, const char *persist)
{
	struct rig_daemon *d;
	char conf[1024];

	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = %s\ndisk = 128M\n"
		 "persist = %s\n",
		 rig_data_dir(), getuid(), memory, persist);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

/* ---- attention of a client: a few sequences that grow and are dropped --------- */

struct own {
	struct kvc *c;
	int geometry, seq[N_SEQS];
	uint32_t n[N_SEQS];
	char *rows;
	struct kv_attend_item *items;
};

/* 0 or the error, of whatever call. */
static int own_open(struct own *w, struct kvc *c)
{
	static const struct kv_geometry g = { .n_layers = 2,
					      .n_heads = 4,
					      .n_kv_heads = 2,
					      .head_dim = 64,
					      .type = KV_BF16 };
	const size_t bytes = STEP * 4 * 64 * 2;

	*w = (struct own){ .c = c };
	w->geometry = kvc_geometry(c, &g);
	if (w->geometry < 0)
		return w->geometry;
	w->rows = kvc_alloc(c, bytes);
	w->items = kvc_alloc(c, N_SEQS * sizeof(*w->items));
	ck_assert_ptr_nonnull(w->rows);
	ck_assert_ptr_nonnull(w->items);
	memset(w->rows, 0x3c, bytes);
	for (int i = 0; i < N_SEQS; i++) {
		w->seq[i] = kvc_seq_new(c, w->geometry, 0);
		if (w->seq[i] < 0)
			return w->seq[i];
	}
	return 0;
}

static int own_step(struct own *w)
{
	const uint64_t rows = kvc_off(w->c, w->rows);
	int ret = 0;

	for (uint32_t l = 0; l < 2 && !ret; l++) {
		for (int i = 0; i < N_SEQS; i++)
			w->items[i] = (struct kv_attend_item){
				.seq = (uint32_t)w->seq[i],
				.n_tokens = STEP,
				.pos = w->n[i],
				.q_off = KV_NO_OFF,
				.o_off = KV_NO_OFF,
				.k_off = rows,
				.v_off = rows,
			};
		ret = kvc_append(w->c, w->items, N_SEQS, l, KV_SQE_WAIT);
	}
	for (int i = 0; i < N_SEQS && !ret; i++) {
		w->n[i] += STEP;
		if (w->n[i] < 1024)
			continue;
		ret = kvc_seq_free(w->c, w->seq[i]);
		w->n[i] = 0;
		w->seq[i] = ret ? 0 : kvc_seq_new(w->c, w->geometry, 0);
		ret = w->seq[i] < 0 ? w->seq[i] : ret;
	}
	return ret;
}

/* ---- the daemon dies ------------------------------------------------------------ */

/* Work until something fails; its error. */
static int work(struct kvc *c, int me)
{
	struct own w;
	char text[128];
	int ret = own_open(&w, c);

	for (int i = me; !ret && !board->stop; i++) {
		const struct rig_question *q = &questions[i % N_QUESTIONS];

		ret = i & 1 ? own_step(&w) : rig_ask(c, q, text, NULL);
		if (ret >= 0 && !(i & 1)) {
			ck_assert_str_eq(text, q->answer);
			ret = 0;
		}
		if (!ret)
			board->of[me].n_right++;
	}
	return ret;
}

/* Until a daemon answers. Only what says "there is none" may come before. */
static int reconnect(struct kvc *c)
{
	for (;;) {
		const int ret = kvc_reconnect(c);

		if (!ret || board->stop)
			return 0;
		ck_assert_msg(ret == -ECONNREFUSED || ret == -ENOENT ||
				      ret == -ECONNRESET,
			      "reconnect: %s", strerror(-ret));
		usleep(2000);
	}
}

static void live_through(const char *socket, int me)
{
	struct kvc *c = rig_join(socket);

	while (!board->stop) {
		const int ret = work(c, me);

		if (board->stop)
			break;
		ck_assert_msg(ret == -ECONNRESET, "client %d: %s", me,
			      strerror(-ret));
		board->of[me].reset_ms = now_ms();
		board->of[me].n_resets++;
		reconnect(c);
	}
	kvc_close(c);
	_exit(0);
}

static void wait_resets(unsigned int n)
{
	const long limit = now_ms() + PATIENCE_MS;

	for (int i = 0; i < N_CLIENTS; i++)
		while (board->of[i].n_resets < n) {
			ck_assert_msg(now_ms() < limit,
				      "client %d hangs after kill %u", i, n);
			usleep(500);
		}
}

static void wait_right(const unsigned int before[N_CLIENTS])
{
	const long limit = now_ms() + PATIENCE_MS;

	for (int i = 0; i < N_CLIENTS; i++)
		while (board->of[i].n_right <= before[i]) {
			ck_assert_msg(now_ms() < limit, "client %d hangs", i);
			usleep(500);
		}
}

static long worst_ms(long killed_ms)
{
	long worst = 0;

	for (int i = 0; i < N_CLIENTS; i++)
		if (board->of[i].reset_ms - killed_ms > worst)
			worst = board->of[i].reset_ms - killed_ms;
	return worst;
}

static void count_right(unsigned int n[N_CLIENTS])
{
	for (int i = 0; i < N_CLIENTS; i++)
		n[i] = board->of[i].n_right;
}

START_TEST(a_daemon_killed_under_load_resets_all_and_the_next_one_serves)
{
	struct rig_daemon *d = start("4M", "auto");
	struct kvc *c = rig_join(d->socket);
	unsigned int before[N_CLIENTS];
	pid_t pids[N_CLIENTS];
	long worst = 0;
	int status;

	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
	kvc_close(c);
	for (int i = 0; i < N_CLIENTS; i++) {
		pids[i] = fork();
		ck_assert_int_ge(pids[i], 0);
		if (!pids[i])
			live_through(d->socket, i);
	}
	for (int k = 0; k < times(N_KILLS); k++) {
		long killed_ms;

		count_right(before);
		wait_right(before);
		usleep(rnd(&dice, 300000));
		killed_ms = now_ms();
		rig_daemon_kill(d);
		wait_resets((unsigned int)k + 1);
		if (worst_ms(killed_ms) > worst)
			worst = worst_ms(killed_ms);
		usleep(rnd(&dice, 20000));
		ck_assert_int_eq(rig_daemon_restart(d), 0);
	}
	count_right(before);
	wait_right(before);
	board->stop = 1;
	for (int i = 0; i < N_CLIENTS; i++) {
		ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
		ck_assert_msg(!status, "client %d: status %x", i, status);
	}
	printf("%d kills; the slowest client knew after %ld ms\n",
	       times(N_KILLS), worst);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* ---- clients die ------------------------------------------------------------------ */

/* Sequences, forks, and generations in flight, for as long as it lives. */
static pid_t doomed(const char *socket)
{
	const pid_t pid = fork();
	struct kvc_gen *g;
	struct own w;
	int ret;

	ck_assert_int_ge(pid, 0);
	if (pid)
		return pid;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	ret = own_open(&w, rig_join(socket));
	for (uint32_t i = 0; !ret; i++) {
		const struct rig_question *q = &questions[i % N_QUESTIONS];
		const struct kvc_part p = { .text = q->parts[2].text };
		const struct kvc_generate r = { .parts = &p,
						.n_parts = 1,
						.flags = KV_GEN_IGNORE_EOS |
							 KV_GEN_NO_REUSE,
						.max_tokens = 100,
						.sqe_flags = KV_SQE_WAIT };

		ret = own_step(&w);
		if (!ret && i % 4 == 3)
			ret = kvc_seq_fork(w.c, w.seq[i % N_SEQS]) < 0;
		if (!ret && i < 8)
			ret = kvc_generate_start(w.c, &r, &g);
	}
	for (;;)
		pause(); /* over its budget: it waits for its end */
}

/* Bytes and handles that somebody holds. */
static uint64_t held(struct kvc *c)
{
	static const char *const keys[] = { "pinned_bytes", "slot_bytes",
					    "mapped_bytes" };
	uint64_t n = rig_counter(c, "sequences", "a", "handle");

	for (int i = 0; i < 3; i++)
		n += rig_counter(c, "pages", "a", keys[i]);
	return n;
}

static long freed_after_ms(struct kvc *c)
{
	const long start_ms = now_ms();

	while (held(c) && now_ms() < start_ms + PATIENCE_MS)
		usleep(1000);
	return now_ms() - start_ms;
}

START_TEST(all_that_killed_clients_had_is_freed_within_a_second)
{
	struct rig_daemon *d = start("3M", "no");
	struct kvc *c = rig_join(d->socket);
	pid_t pids[N_DOOMED];
	uint64_t most = 0;
	long worst = 0;

	for (int k = 0; k < times(N_BATCHES); k++) {
		long ms;

		for (int i = 0; i < N_DOOMED; i++)
			pids[i] = doomed(d->socket);
		usleep(rnd(&dice, 150000));
		most = held(c) > most ? held(c) : most;
		for (int i = 0; i < N_DOOMED; i++)
			ck_assert_int_eq(kill(pids[i], SIGKILL), 0);
		for (int i = 0; i < N_DOOMED; i++)
			ck_assert_int_eq(waitpid(pids[i], NULL, 0), pids[i]);
		ms = freed_after_ms(c);
		worst = ms > worst ? ms : worst;
		ck_assert_msg(ms < (sanitized() ? PATIENCE_MS : 1000),
			      "batch %d: after %ld ms %llu are still held", k,
			      ms, (unsigned long long)held(c));
	}
	printf("%d killed; at most %llu bytes, freed after at most %ld ms\n",
	       times(N_BATCHES) * N_DOOMED, (unsigned long long)most, worst);
	ck_assert_uint_gt(most, 1 << 20);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* ---- clients that do anything die, or stand still before ------------------------------ */

#define SALT 7u

/* One of what a client does with a sequence whose every element is known. */
static void any_call(struct kvc *c, struct rng *r, int *seq, uint32_t *n,
		     struct kvc_map **m)
{
	const struct rig_question *q = &questions[rnd(r, N_QUESTIONS)];
	const struct kvc_part p = { .text = q->parts[2].text };
	const struct kvc_generate ask = { .parts = &p,
					  .n_parts = 1,
					  .flags = KV_GEN_IGNORE_EOS,
					  .deadline_ms = rnd(r, 20),
					  .max_tokens = 1 + rnd(r, 40),
					  .sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *g;

	switch (rnd(r, 9)) {
	case 0:
		if (*m && *n)
			(void)kvc_seq_truncate(c, *seq, rnd(r, *n));
		break;
	case 1:
		(void)kvc_seq_fork(c, *seq);
		break;
	case 2:
		if (*m && *n > 9) /* the map stays as it was */
			(void)kvc_seq_edit(c, *seq, *n / 3, *n / 3, rnd(r, 9));
		break;
	case 3:
		(void)kvc_persist(c);
		break;
	case 4:
	case 5:
		(void)kvc_generate_start(c, &ask, &g);
		break;
	case 6:
		if (*m)
			(void)kvc_unmap(c, *m);
		*m = NULL;
		*n = 100 + rnd(r, 500);
		*seq = rig_sequence(c, SALT, *n);
		break;
	default:
		if (!*m && kvc_map(c, *seq, m))
			*m = NULL;
		for (int i = 0; *m && i < 20; i++) {
			const struct kvc_map_entry *e =
				&(*m)->entries[rnd(r, (*m)->n_entries)];

			if (!rig_token_ok(*m, e, SALT, rnd(r, e->n_tokens)))
				_exit(7); /* wrong */
		}
	}
}

static pid_t any_client(const char *socket, uint64_t seed)
{
	const pid_t pid = fork();
	struct rng r = { seed };
	struct kvc_map *m = NULL;
	uint32_t n = 0;
	struct kvc *c;
	int seq = 0;

	ck_assert_int_ge(pid, 0);
	if (pid)
		return pid;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	c = rig_join(socket);
	for (;;)
		any_call(c, &r, &seq, &n, &m);
}

static uint64_t all_held(struct kvc *c, const char *tenant)
{
	static const char *const keys[] = { "pinned_bytes", "reserved_bytes",
					    "sequences", "maps", "requests" };
	uint64_t n = 0;

	for (int i = 0; i < 5; i++)
		n += rig_counter(c, "tenants", tenant, keys[i]);
	return n + rig_counter(c, "tenants", tenant, "sessions") - 1;
}

static uint32_t n_fds_of(pid_t pid)
{
	char path[64];
	uint32_t n = 0;

	for (int i = 0; i < 1024; i++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, i);
		n += !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
	}
	return n;
}

START_TEST(nothing_is_left_of_clients_that_did_anything)
{
	char conf[1024], socket_b[128];
	struct rig_daemon *d;
	struct kvc *c[2];
	pid_t pids[N_CLIENTS];
	uint32_t n_fds = 0;

	snprintf(socket_b, sizeof(socket_b), "/tmp/kvd-kill-%d.sock", getpid());
	snprintf(conf, sizeof(conf),
		 "memory = 5M\n[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 4M\ndisk = 48M\nshare = x\n"
		 "[tenant b]\nsocket = %s\nmemory = 4M\ndisk = 48M\n"
		 "share = x\nmap = copy\n",
		 rig_data_dir(), getuid(), socket_b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c[0] = rig_join(d->socket);
	c[1] = rig_join(socket_b);
	for (int k = 0; k < times(N_BATCHES) / 4; k++) {
		long limit;

		for (int i = 0; i < N_CLIENTS; i++)
			pids[i] = any_client(
				i % 2 ? socket_b : d->socket,
				((uint64_t)rnd(&dice, 1u << 30) << 8) + 1);
		usleep(rnd(&dice, 600000));
		for (int i = 0; i < N_CLIENTS; i += 3)
			ck_assert_int_eq(kill(pids[i], SIGSTOP), 0);
		usleep(rnd(&dice, 300000));
		for (int i = 0; i < N_CLIENTS; i++) {
			int status;

			ck_assert_int_eq(kill(pids[i], SIGKILL), 0);
			ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
			ck_assert_msg(WIFSIGNALED(status),
				      "client %d: status %x", i, status);
			usleep(rnd(&dice, 20000));
		}
		limit = now_ms() + PATIENCE_MS;
		while ((all_held(c[0], "a") || all_held(c[1], "b")) &&
		       now_ms() < limit)
			usleep(1000);
		ck_assert_uint_eq(all_held(c[0], "a"), 0);
		ck_assert_uint_eq(all_held(c[1], "b"), 0);
		/* what tenants open once is there after the first batches;
		 * a file that is being written is open for a moment */
		if (k < 2)
			n_fds = n_fds_of(d->pid);
		while (n_fds_of(d->pid) > n_fds && now_ms() < limit)
			usleep(1000);
		ck_assert_uint_le(n_fds_of(d->pid), n_fds);
	}
	kvc_close(c[0]);
	kvc_close(c[1]);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kill");
	TCase *t = tcase_create("kill");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 120 * times(1) + 60);
	tcase_add_checked_fixture(t, setup, NULL);
	tcase_add_test(
		t,
		a_daemon_killed_under_load_resets_all_and_the_next_one_serves);
	tcase_add_test(t, all_that_killed_clients_had_is_freed_within_a_second);
	tcase_add_test(t, nothing_is_left_of_clients_that_did_anything);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
