/*
 * test_map.c - sealed KV as plain memory of a client, under budgets so small that
 * everything pages: what is read is what was appended, whoever dies or lies
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

/* Until the tenant's number is what it should become. */
static void wait_for(struct kvc *c, const char *what, const char *key,
		     uint64_t want)
{
	for (int i = 0; i < 500; i++) {
		if (rig_counter(c, what, "a", key) == want)
			return;
		usleep(10000);
	}
	ck_assert_uint_eq(rig_counter(c, what, "a", key), want);
}

static void stop(struct rig_daemon *d, struct kvc *c)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

/* ---- the main path --------------------------------------------------------- */

struct reader {
	pthread_t thread;
	const struct kvc_map *m;
	uint32_t salt, seed, n_bad;
};

static void *read_at_random(void *arg)
{
	struct reader *r = arg;

	for (int i = 0; i < 700; i++) {
		const struct kvc_map_entry *e;

		r->seed = r->seed * 1664525 + 1013904223;
		e = &r->m->entries[(r->seed >> 8) % r->m->n_entries];
		r->n_bad += !rig_token_ok(r->m, e, r->salt,
					  (r->seed >> 16) % e->n_tokens);
	}
	return NULL;
}

static void main_path(const char *more)
{
	struct rig_daemon *d = start(more);
	struct kvc *c = rig_join(d->socket);
	const int seq = rig_sequence(c, 1, 4000),
		  other = rig_sequence(c, 2, 3000);
	struct kvc_map *m = rig_map(c, seq), *o = rig_map(c, other);
	struct reader r[4];

	ck_assert_uint_gt(m->n_entries, 1);
	rig_check_map(m, 1, 4000);
	rig_check_map(o, 2, 3000);
	ck_assert_uint_gt(rig_counter(c, "tenants", "a", "faults_total"), 10);
	for (uint32_t i = 0; i < 4; i++) {
		r[i] = (struct reader){ .m = i % 2 ? o : m,
					.salt = i % 2 ? 2 : 1,
					.seed = 99 + i };
		ck_assert_int_eq(pthread_create(&r[i].thread, NULL,
						read_at_random, &r[i]),
				 0);
	}
	rig_append(c, other, 2, 3000, 500); /* evicts under their hands */
	for (int i = 0; i < 4; i++) {
		pthread_join(r[i].thread, NULL);
		ck_assert_uint_eq(r[i].n_bad, 0);
	}
	rig_check_map(m, 1, 4000);
	ck_assert_uint_gt(rig_counter(c, "pages", "a", "evicted_total"), 100);
	/* the sequence goes, what is mapped stays */
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	rig_check_map(m, 1, 4000);
	wait_for(c, "pages", "pinned_bytes", 0);
	wait_for(c, "tenants", "reserved_bytes", 0);
	ck_assert_int_eq(kvc_unmap(c, m), 0);
	ck_assert_int_eq(kvc_unmap(c, o), 0);
	ck_assert_int_eq(kvc_seq_free(c, other), 0);
	wait_for(c, "tenants", "maps", 0);
	wait_for(c, "tenants", "segments", 0);
	stop(d, c);
}

START_TEST(what_was_appended_is_read)
{
	main_path("");
}
END_TEST

START_TEST(copies_are_the_same)
{
	main_path("map = copy\n");
}
END_TEST

/* Pages of 2 MiB: on a tmpfs of huge pages where it can be mounted. */
START_TEST(huge_pages_too)
{
	char conf[256], *log;
	struct rig_daemon *d;
	struct kvc_map *m;
	struct kvc *c;

	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 8M\ndisk = 256M\n", getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	rig_map_page_tokens = 1024;
	m = rig_map(c, rig_sequence(c, 18, 3000));
	ck_assert_uint_eq(m->page_bytes, 2u << 20);
	rig_check_map(m, 18, 3000);
	rig_append(c, rig_sequence(c, 19, 1024), 19, 1024, 1024);
	rig_check_map(m, 18, 3000);
	ck_assert_uint_gt(rig_counter(c, "pages", "a", "evicted_total"), 4);
	rig_map_page_tokens = 0;
	log = rig_daemon_log(d);
	/* where a tmpfs may be mounted at all */
	ck_assert(!!strstr(log, "tmpfs huge") !=
		  !!strstr(log, "no tmpfs with huge pages"));
	free(log);
	stop(d, c);
}
END_TEST

START_TEST(entries_tell_positions_and_skips)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	const int seq = rig_sequence(c, 3, 1100);
	struct kvc_map *m, *f;
	int fork_seq;

	ck_assert_int_eq(kvc_seq_skip(c, seq, 5, 70), 0);
	ck_assert_int_eq(kvc_seq_skip(c, seq, 1030, 1031), 0);
	m = rig_map(c, seq);
	for (uint32_t t = 0; t < 1100; t++)
		ck_assert_uint_eq(m->skip[t / 64] >> t % 64 & 1,
				  (t >= 5 && t < 70) || t == 1030);
	for (uint32_t i = 0; i < m->n_entries; i++)
		ck_assert_int_eq(m->entries[i].base_pos, m->entries[i].pos);
	/* a fork shares the segments; its open tail is not mapped yet */
	fork_seq = kvc_seq_fork(c, seq);
	ck_assert_int_gt(fork_seq, 0);
	rig_append(c, fork_seq, 3, 1100, 200);
	f = rig_map(c, fork_seq);
	ck_assert_uint_lt(f->n_tokens, 1300);
	ck_assert_int_eq(kvc_unmap(c, f), 0);
	ck_assert_int_eq(kvc_seq_seal(c, fork_seq), 0);
	f = rig_map(c, fork_seq);
	rig_check_map(f, 3, 1300);
	rig_check_map(m, 3, 1100);
	ck_assert_int_eq(kvc_map(c, fork_seq + 12345, &m), -ENOENT);
	stop(d, c); /* unmaps */
}
END_TEST

START_TEST(half_appended_is_busy)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	const int seq = rig_sequence(c, 3, 64);
	struct kvc_map *m;

	rig_append_layer(c, seq, 3, 64, 10, 0);
	ck_assert_int_eq(kvc_map(c, seq, &m), -EBUSY);
	rig_append_layer(c, seq, 3, 64, 10, 1);
	rig_append_layer(c, seq, 3, 64, 10, 2);
	ck_assert_int_eq(kvc_map(c, seq, &m), 0);
	rig_check_map(m, 3, 64);
	stop(d, c);
}
END_TEST

/* ---- what a touch can meet ------------------------------------------------------ */

START_TEST(a_child_does_not_inherit)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 4, 300));
	pid_t pid;
	int status;

	rig_check_map(m, 4, 300);
	rig_catch_signals();
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		struct kvc_map *x;
		int bad = rig_touch(m, &m->entries[0], 4, 7) != SIGSEGV;

		bad |= kvc_map(c, 1, &x) != -EPERM;
		bad |= kvc_unmap(c, m) != -EPERM;
		kvc_close(c);
		_exit(bad);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	rig_check_map(m, 4, 300); /* the parent's goes on */
	stop(d, c);
}
END_TEST

/* Its maps come to lie where the parent's lie in the parent. */
START_TEST(a_child_maps_its_own)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 4, 300));
	pid_t pid;
	int status;

#ifdef __SANITIZE_THREAD__
	printf("a child's own maps: skipped, the sanitizer takes a thread of its for one of the parent's\n");
	stop(d, c);
	return;
#endif
	rig_check_map(m, 4, 300);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		struct kvc *own = rig_join(d->socket);

		kvc_close(c);
		for (uint32_t n = 32; n < 600; n += 96)
			rig_check_map(rig_map(own, rig_sequence(own, 5, n)), 5,
				      n);
		kvc_close(own);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	rig_check_map(m, 4, 300);
	stop(d, c);
}
END_TEST

/* Memory that is mapped from now on is locked, which fills it at once. */
static void locked(const char *more)
{
	struct rig_daemon *d = start(more);
	struct kvc *c = rig_join(d->socket);
	const int seq = rig_sequence(c, 23, 2000);
	struct kvc_map *m;

	if (!mlockall(MCL_FUTURE)) { /* else: RLIMIT_MEMLOCK */
		m = rig_map(c, seq);
		rig_check_map(m, 23, 2000);
		ck_assert_int_eq(kvc_unmap(c, m), 0);
		ck_assert_int_eq(munlockall(), 0);
	}
	stop(d, c);
}

START_TEST(locked_memory_is_not_zeros)
{
	locked("");
	locked("map = copy\n");
}
END_TEST

static void lying_disk(const char *more)
{
	struct rig_daemon *d = start(more);
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 5, 3000));
	int n[65] = { 0 };

	rig_damage(d->dir);
	rig_catch_signals();
	for (int round = 0; round < 2; round++)
		for (uint32_t i = 0; i < m->n_entries; i++)
			for (uint32_t t = 0; t < m->entries[i].n_tokens; t++)
				n[rig_touch(m, &m->entries[i], 5, t)]++;
	ck_assert_int_eq(n[1], 0); /* never other bytes */
	ck_assert_int_eq(n[SIGSEGV], 0);
	ck_assert_int_gt(n[SIGBUS], 100);
	ck_assert_int_eq(n[0] + n[SIGBUS], 6000);
	/* others go on */
	rig_check_map(rig_map(c, rig_sequence(c, 6, 100)), 6, 100);
	stop(d, c);
}

START_TEST(what_cannot_be_read_is_sigbus)
{
	lying_disk("");
}
END_TEST

START_TEST(what_cannot_be_copied_is_sigbus)
{
	lying_disk("map = copy\n");
}
END_TEST

START_TEST(a_system_call_gets_it_or_efault)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 7, 2000));
	int pfd[2];
	char *copy = malloc(4096);

	ck_assert(!pipe(pfd));
	for (uint32_t i = 0; i < m->n_entries; i++) {
		const ssize_t ret = write(pfd[1], m->entries[i].addr, 4096);

		if (ret < 0) {
			ck_assert_int_eq(errno, EFAULT);
			continue;
		}
		ck_assert_int_eq(read(pfd[0], copy, (size_t)ret), ret);
		ck_assert(!memcmp(copy, m->entries[i].addr, (size_t)ret));
	}
	rig_check_map(m, 7, 2000);
	free(copy);
	stop(d, c);
}
END_TEST

/* ---- who dies ------------------------------------------------------------------- */

/* A client that reads for ever; it says on fd when it begins. Exit status: the
 * signal that ended its reading, or 99 when it read something else. */
static pid_t reading_client(const char *socket, int say)
{
	const pid_t pid = fork();
	struct kvc_map *m;
	struct kvc *c;
	int ret = 0;

	ck_assert_int_ge(pid, 0);
	if (pid)
		return pid;
	c = rig_join(socket);
	m = rig_map(c, rig_sequence(c, 8, 2500));
	rig_catch_signals();
	(void)!write(say, "x", 1);
	for (uint32_t i = 0; !ret; i = (i + 1) % m->n_entries)
		for (uint32_t t = 0; !ret && t < m->entries[i].n_tokens; t += 9)
			ret = rig_touch(m, &m->entries[i], 8, t);
	if (ret == 1)
		_exit(99);
	/* the end of the session is told as ever, and the map can be ended */
	if (kvc_nop(c) != -ECONNRESET || kvc_unmap(c, m))
		_exit(98);
	kvc_close(c);
	_exit(ret);
}

static pid_t begin_reading(const char *socket)
{
	int p[2];
	pid_t pid;
	char x;

	ck_assert(!pipe(p));
	pid = reading_client(socket, p[1]);
	close(p[1]);
	ck_assert_int_eq(read(p[0], &x, 1), 1);
	close(p[0]);
	usleep(30000);
	return pid;
}

/* Its exit status; it has ten seconds. */
static int ended(pid_t pid)
{
	int status;

	for (int i = 0; i < 1000; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return status;
		usleep(10000);
	}
	kill(pid, SIGKILL);
	ck_abort_msg("the client hangs");
	return -1;
}

START_TEST(a_killed_daemon_wakes_who_waits)
{
	struct rig_daemon *d;
	int status;
	pid_t pid;

	for (int stopped = 0; stopped < 2; stopped++) {
		d = start("");
		pid = begin_reading(d->socket);
		if (stopped) { /* so it certainly waits for a page */
			kill(d->pid, SIGSTOP);
			usleep(100000);
		}
		rig_daemon_kill(d);
		status = ended(pid);
		ck_assert(WIFEXITED(status));
		ck_assert_int_eq(WEXITSTATUS(status), SIGSEGV);
		rig_daemon_free(d);
	}
}
END_TEST

START_TEST(an_orderly_stop_ends_the_maps)
{
	struct rig_daemon *d = start("");
	const pid_t pid = begin_reading(d->socket);
	int status;

	ck_assert_int_eq(rig_daemon_stop(d), 0);
	status = ended(pid);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), SIGSEGV);
	rig_daemon_free(d);
}
END_TEST

START_TEST(a_killed_client_costs_nothing)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 9, 600));

	for (int i = 0; i < 6; i++) {
		const pid_t pid = begin_reading(d->socket);

		usleep((useconds_t)(1000 + 7000 * i));
		kill(pid, SIGKILL);
		ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
		rig_check_map(m, 9, 600);
	}
	wait_for(c, "tenants", "sessions", 1);
	wait_for(c, "tenants", "maps", m->n_entries);
	wait_for(c, "tenants", "reserved_bytes", 0);
	wait_for(c, "pages", "pinned_bytes", 0);
	stop(d, c);
}
END_TEST

START_TEST(reconnect_ends_the_maps)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *old, *m;

	rig_catch_signals();
	for (int i = 0; i < 20; i++) {
		old = rig_map(c, rig_sequence(c, 10, 500));
		ck_assert_int_eq(rig_touch(old, &old->entries[0], 10, 3), 0);
		ck_assert_int_eq(kvc_reconnect(c), 0);
		ck_assert_int_eq(rig_touch(old, &old->entries[0], 10, 3),
				 SIGSEGV);
		ck_assert_int_eq(kvc_unmap(c, old), 0);
		m = rig_map(c, rig_sequence(c, 11, 700));
		rig_check_map(m, 11, 700);
		ck_assert_int_eq(kvc_unmap(c, m), 0);
	}
	stop(d, c);
}
END_TEST

/* ---- others in line --------------------------------------------------------------- */

struct busy {
	pthread_t thread;
	const char *socket;
	int stop;
	uint32_t n_done;
};

/* Attention that needs all the memory there is, again and again. */
static void *attend_on(void *arg)
{
	struct busy *b = arg;
	struct kvc *c = rig_join(b->socket);

	while (!__atomic_load_n(&b->stop, __ATOMIC_RELAXED)) {
		const int seq = rig_sequence(c, 16, 640);

		ck_assert_int_eq(kvc_seq_free(c, seq), 0);
		b->n_done++;
	}
	kvc_close(c);
	return NULL;
}

START_TEST(faults_and_requests_both_go_on)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 17, 2500));
	struct busy b[2] = { { .socket = d->socket }, { .socket = d->socket } };
	struct reader r[3];

	for (int i = 0; i < 2; i++)
		ck_assert(
			!pthread_create(&b[i].thread, NULL, attend_on, &b[i]));
	for (uint32_t i = 0; i < 3; i++) {
		r[i] = (struct reader){ .m = m, .salt = 17, .seed = 7 + i };
		ck_assert(!pthread_create(&r[i].thread, NULL, read_at_random,
					  &r[i]));
	}
	for (int i = 0; i < 3; i++) {
		pthread_join(r[i].thread, NULL);
		ck_assert_uint_eq(r[i].n_bad, 0);
	}
	for (int i = 0; i < 2; i++) {
		__atomic_store_n(&b[i].stop, 1, __ATOMIC_RELAXED);
		pthread_join(b[i].thread, NULL);
		ck_assert_uint_gt(b[i].n_done, 0);
	}
	stop(d, c);
}
END_TEST

/* Several threads map and unmap: addresses are used again at once. */
static void *map_on(void *arg)
{
	struct reader *r = arg;
	struct kvc *c = (struct kvc *)(uintptr_t)r->m;

	for (int i = 0; i < 50; i++) {
		struct kvc_map *m;

		if (kvc_map(c, (int)r->seed, &m)) {
			r->n_bad++;
			continue;
		}
		for (uint32_t k = 0; k < m->n_entries; k++)
			for (uint32_t t = 0; t < m->entries[k].n_tokens;
			     t += 97)
				r->n_bad += !rig_token_ok(m, &m->entries[k],
							  r->salt, t);
		r->n_bad += kvc_unmap(c, m) != 0;
	}
	return NULL;
}

START_TEST(addresses_are_used_again)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct reader r[4];

	for (uint32_t i = 0; i < 4; i++) {
		r[i] = (struct reader){ .m = (const void *)c, .salt = 20 + i };
		r[i].seed = (uint32_t)rig_sequence(c, 20 + i, 700 + 300 * i);
	}
	for (uint32_t i = 0; i < 4; i++)
		ck_assert(!pthread_create(&r[i].thread, NULL, map_on, &r[i]));
	for (int i = 0; i < 4; i++) {
		pthread_join(r[i].thread, NULL);
		ck_assert_uint_eq(r[i].n_bad, 0);
	}
	wait_for(c, "tenants", "maps", 0);
	stop(d, c);
}
END_TEST

START_TEST(maps_have_a_quota)
{
	struct rig_daemon *d = start("maps = 5\n");
	struct kvc *c = rig_join(d->socket), *o = rig_join(d->socket);
	const int seq = rig_sequence(c, 13, 32),
		  many = rig_sequence(c, 14, 4000);
	struct kvc_map *m[5], *x;

	for (int i = 0; i < 5; i++)
		m[i] = rig_map(c, seq);
	ck_assert_int_eq(kvc_map(c, seq, &x), -EDQUOT);
	ck_assert_int_eq(kvc_map(o, rig_sequence(o, 13, 32), &x), -EDQUOT);
	ck_assert_int_eq(kvc_unmap(c, m[2]), 0);
	ck_assert_int_eq(kvc_map(c, many, &x), -EDQUOT); /* all or nothing */
	m[2] = rig_map(c, seq);
	for (int i = 0; i < 5; i++)
		rig_check_map(m[i], 13, 32);
	kvc_close(o);
	stop(d, c);
}
END_TEST

/* ---- faults that the thread resolves itself ---------------------------------------- */

static void by_signal(void)
{
	rig_catch_signals();
	rig_map_by_signal = 1;
}

static void by_daemon(void)
{
	rig_map_by_signal = 0;
}

START_TEST(what_is_in_memory_is_no_matter_for_the_daemon)
{
	char conf[128];
	struct rig_daemon *d;
	struct kvc_map *m;
	struct kvc *c;

	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 32M\ndisk = 48M\n", getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	ck_assert(kvc_features(c) & KV_FEATURE_STATES);
	m = rig_map(c, rig_sequence(c, 20, 2000));
	ck_assert_int_eq(kvc_map_by_signal(c), -EBUSY);
	rig_check_map(m, 20, 2000);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "faults_total"), 0);
	stop(d, c);
}
END_TEST

/* States of seq, by hand: holds for its first pages are put into place. */
static void hold_pages(struct kvc *c, int seq)
{
	struct kv_map *k = kvc_alloc(c, sizeof(*k));
	struct kv_map_entry *e = kvc_alloc(c, 64 * sizeof(*e));
	uint64_t *holds = kvc_alloc(c, KV_MAP_HOLDS * sizeof(*holds));
	struct kv_sqe sqe = { .opcode = KV_OP_MAP, .seq = (uint32_t)seq };

	ck_assert(k && e && holds);
	memset(holds, 0, KV_MAP_HOLDS * sizeof(*holds));
	*k = (struct kv_map){ .entries_off = kvc_off(c, e),
			      .n_entries = 64,
			      .skip_off = KV_NO_OFF,
			      .flags = KV_MAP_STATES,
			      .holds_off = 8 + kvc_off(c, holds) };
	sqe.arg[0] = kvc_off(c, k);
	k->flags = KV_MAP_COPY;
	ck_assert_int_eq(kvc_call(c, &sqe), -EINVAL);
	k->flags = 0; /* and holds */
	ck_assert_int_eq(kvc_call(c, &sqe), -EINVAL);
	k->flags = KV_MAP_STATES;
	k->holds_off = kvc_off(c, holds) + (1ull << 40);
	ck_assert_int_eq(kvc_call(c, &sqe), -EINVAL);
	k->holds_off = kvc_off(c, holds) + 4;
	ck_assert_int_eq(kvc_call(c, &sqe), -EINVAL);
	k->holds_off = kvc_off(c, holds);
	ck_assert_int_gt(kvc_call(c, &sqe), 0);
	ck_assert_uint_eq(k->flags, KV_MAP_STATES);
	k->flags = KV_MAP_STATES;
	k->n_entries = 64;
	k->holds_off = kvc_off(c, holds) + 64; /* another place */
	ck_assert_int_eq(kvc_call(c, &sqe), -EINVAL);
	for (uint32_t i = 0; i < KV_MAP_HOLDS; i++)
		holds[i] = KV_HOLD(e[0].space, e[0].file_off / 65536 + i);
}

/* Sixteen pages are all the memory there is. */
START_TEST(who_holds_for_ever_is_ended)
{
	struct rig_daemon *d = start("");
	struct kvc *bad = rig_join(d->socket), *good = rig_join(d->socket);
	const int seq = rig_sequence(bad, 21, 8 * 32);

	(void)rig_map(bad, seq); /* a descriptor for its faults */
	hold_pages(bad, seq);
	/* the other's goes on, be it a second later */
	rig_check_map(rig_map(good, rig_sequence(good, 22, 2000)), 22, 2000);
	ck_assert_int_eq(kvc_nop(bad), -ECONNRESET);
	wait_for(good, "tenants", "sessions", 1);
	kvc_close(bad);
	stop(d, good);
}
END_TEST

static void add_tests(TCase *t)
{
	tcase_set_timeout(t, 300);
	tcase_add_test(t, what_was_appended_is_read);
	tcase_add_test(t, copies_are_the_same);
	tcase_add_test(t, huge_pages_too);
	tcase_add_test(t, entries_tell_positions_and_skips);
	tcase_add_test(t, half_appended_is_busy);
	tcase_add_test(t, a_child_does_not_inherit);
	tcase_add_test(t, a_child_maps_its_own);
	tcase_add_test(t, locked_memory_is_not_zeros);
	tcase_add_test(t, what_cannot_be_read_is_sigbus);
	tcase_add_test(t, what_cannot_be_copied_is_sigbus);
	tcase_add_test(t, a_system_call_gets_it_or_efault);
	tcase_add_test(t, a_killed_daemon_wakes_who_waits);
	tcase_add_test(t, an_orderly_stop_ends_the_maps);
	tcase_add_test(t, a_killed_client_costs_nothing);
	tcase_add_test(t, reconnect_ends_the_maps);
	tcase_add_test(t, maps_have_a_quota);
	tcase_add_test(t, faults_and_requests_both_go_on);
	tcase_add_test(t, addresses_are_used_again);
}

int main(void)
{
	Suite *s = suite_create("map");
	TCase *t = tcase_create("map");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_checked_fixture(t, by_daemon, NULL);
	add_tests(t);
	tcase_add_test(t, who_holds_for_ever_is_ended);
	suite_add_tcase(s, t);
	t = tcase_create("by signal");
	tcase_add_checked_fixture(t, by_signal, NULL);
	add_tests(t);
	tcase_add_test(t, what_is_in_memory_is_no_matter_for_the_daemon);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
