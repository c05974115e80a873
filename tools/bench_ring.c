/*
 * bench_ring.c - kvbench ring: the no-op round trip against bare memory
 *
 * spin   calls back to back: neither side ever sleeps. Limit: two processes
 *        that pass a counter to and fro in shared memory.
 * sleep  a pause before each call, longer than either side spins: the call
 *        wakes the daemon and the answer wakes the client. Limit: the same
 *        pause and two futex wakes between two bare processes.
 *
 * Both pairs sit on two CPUs, one each: a scheduler that puts a bare pair on
 * one CPU, where a wake costs a tenth, would compare unlike things. What it
 * does when left alone is in the lines named _free. With one CPU, or --socket,
 * all are free.
 */
#include "tools/bench.h"

#include <errno.h>
#include <linux/futex.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define N_SPIN	 20000u
#define N_SLEEP	 200u
#define PAUSE_NS 1000000 /* fifty times the default spin */

/* Two counters in lines of their own; ping is answered by an equal pong. */
struct pair {
	_Alignas(128) uint32_t ping;
	_Alignas(128) uint32_t pong;
};

/* Where the two sides run. */
struct seats {
	cpu_set_t all; /* as found */
	cpu_set_t near, far; /* kvbench; its partner or the daemon */
	pid_t daemon; /* 0: not ours to move */
	int apart; /* there are two CPUs */
};

struct bare {
	const struct seats *seats; /* NULL: anywhere */
	struct pair *pair;
	pid_t pid;
	uint32_t at;
	double *us; /* scratch for one round */
};

struct ours {
	struct kvc *c;
	double *us;
	double p99; /* of the last round */
};

static void futex_wait(uint32_t *word, uint32_t value)
{
	/* woken, changed before, or a signal: the caller looks again */
	(void)syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void spin_until(uint32_t *word, uint32_t value)
{
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) {
#if defined(__x86_64__)
		__builtin_ia32_pause();
#endif
	}
}

static void sleep_until(uint32_t *word, uint32_t value)
{
	uint32_t seen;

	while ((seen = __atomic_load_n(word, __ATOMIC_ACQUIRE)) != value)
		futex_wait(word, seen);
}

static void pause_ns(long ns)
{
	const struct timespec ts = { .tv_nsec = ns };

	(void)nanosleep(&ts, NULL);
}

/* ---- seats -------------------------------------------------------------- */

static void seats_init(struct seats *s, pid_t daemon)
{
	int n = 0;

	*s = (struct seats){ .daemon = daemon };
	if (!daemon || sched_getaffinity(0, sizeof(s->all), &s->all))
		return;
	for (size_t i = 0; i < CPU_SETSIZE && n < 2; i++) {
		if (!CPU_ISSET(i, &s->all))
			continue;
		if (n++)
			CPU_SET(i, &s->far);
		else
			CPU_SET(i, &s->near);
	}
	s->apart = n == 2;
}

/* The daemon's loop is its first thread, the one pid names. */
static void take_seats(const struct seats *s)
{
	if (!s->apart)
		return;
	if (sched_setaffinity(0, sizeof(s->near), &s->near) ||
	    sched_setaffinity(s->daemon, sizeof(s->far), &s->far))
		bench_note("ring: cannot choose the CPUs");
}

static void leave_seats(const struct seats *s)
{
	if (!s->apart)
		return;
	/* they were allowed before */
	(void)sched_setaffinity(0, sizeof(s->all), &s->all);
	(void)sched_setaffinity(s->daemon, sizeof(s->all), &s->all);
}

/* ---- the bare partner --------------------------------------------------- */

static void partner(struct pair *p, void (*until)(uint32_t *, uint32_t),
		    int wake)
{
	for (uint32_t i = 1;; i++) {
		until(&p->ping, i);
		__atomic_store_n(&p->pong, i, __ATOMIC_RELEASE);
		if (wake)
			futex_wake(&p->pong);
	}
}

static int bare_start(struct bare *b, void (*until)(uint32_t *, uint32_t),
		      int wake)
{
	const pid_t parent = getpid();

	b->at = 0;
	b->pair = mmap(NULL, sizeof(*b->pair), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (b->pair == MAP_FAILED)
		return -ENOMEM;
	b->pid = fork();
	if (b->pid < 0) {
		(void)munmap(b->pair, sizeof(*b->pair));
		return -errno;
	}
	if (!b->pid) {
		(void)signal(SIGINT, SIG_DFL);
		(void)signal(SIGTERM, SIG_DFL);
		bench_die_with_parent(parent);
		if (b->seats && b->seats->apart)
			(void)sched_setaffinity(0, sizeof(b->seats->far),
						&b->seats->far);
		partner(b->pair, until, wake);
	}
	return 0;
}

static void bare_stop(struct bare *b)
{
	(void)kill(b->pid, SIGKILL);
	(void)waitpid(b->pid, NULL, 0);
	(void)munmap(b->pair, sizeof(*b->pair));
}

static double us_since(uint64_t t0)
{
	return (double)(clock_ns() - t0) * 1e-3;
}

/* A partner lives for one round only: a spinning one would take a CPU. */
static double bare_spin_run(void *arg)
{
	struct bare *b = arg;

	if (bare_start(b, spin_until, 0))
		return -1;
	for (uint32_t i = 0; i < N_SPIN; i++) {
		const uint64_t t0 = clock_ns();

		__atomic_store_n(&b->pair->ping, ++b->at, __ATOMIC_RELEASE);
		spin_until(&b->pair->pong, b->at);
		b->us[i] = us_since(t0);
	}
	bare_stop(b);
	return bench_quantile(b->us, N_SPIN, 0.5);
}

static double bare_futex_run(void *arg)
{
	struct bare *b = arg;

	if (bare_start(b, sleep_until, 1))
		return -1;
	for (uint32_t i = 0; i < N_SLEEP; i++) {
		uint64_t t0;

		pause_ns(PAUSE_NS);
		t0 = clock_ns();
		__atomic_store_n(&b->pair->ping, ++b->at, __ATOMIC_RELEASE);
		futex_wake(&b->pair->ping);
		sleep_until(&b->pair->pong, b->at);
		b->us[i] = us_since(t0);
	}
	bare_stop(b);
	return bench_quantile(b->us, N_SLEEP, 0.5);
}

/* ---- ours --------------------------------------------------------------- */

static double nop_run(struct ours *o, uint32_t n, long wait_ns)
{
	double p50;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t t0;

		if (wait_ns)
			pause_ns(wait_ns);
		t0 = clock_ns();
		if (kvc_nop(o->c))
			return -1;
		o->us[i] = us_since(t0);
	}
	p50 = bench_quantile(o->us, n, 0.5);
	o->p99 = bench_quantile(o->us, n, 0.99);
	return p50;
}

static double spin_run(void *arg)
{
	return nop_run(arg, N_SPIN, 0);
}

static double sleep_run(void *arg)
{
	return nop_run(arg, N_SLEEP, PAUSE_NS);
}

/* Not a measurement: the p99 of the round just made. */
static double p99_run(void *arg)
{
	return ((struct ours *)arg)->p99;
}

static int measure_spin(struct bench *b, struct bare *bare, struct ours *o)
{
	struct bench_side side[3] = {
		{ .run = bare_spin_run, .arg = bare },
		{ .run = spin_run, .arg = o },
		{ .run = p99_run, .arg = o },
	};
	const int ret = bench_rounds(side, 3, 3, b->quick ? 1.0 : 6.0);

	if (ret)
		return ret;
	bench_put(b, bench_median(&side[0]), "us", "ring.bare.spin_us");
	bench_put(b, bench_median(&side[1]), "us", "ring.spin.p50_us");
	bench_put(b, bench_median(&side[2]), "us", "ring.spin.p99_us");
	bench_put(b, bench_ratio(&side[1], &side[0]), "x", "ring.spin.ratio");
	return 0;
}

static int measure_sleep(struct bench *b, struct bare *bare, struct ours *o,
			 const char *name)
{
	struct bench_side side[3] = {
		{ .run = bare_futex_run, .arg = bare },
		{ .run = sleep_run, .arg = o },
		{ .run = p99_run, .arg = o },
	};
	const int ret = bench_rounds(side, 3, 3, b->quick ? 1.5 : 8.0);

	if (ret)
		return ret;
	bench_put(b, bench_median(&side[0]), "us", "ring.bare.futex%s_us",
		  name);
	bench_put(b, bench_median(&side[1]), "us", "ring.sleep%s.p50_us", name);
	bench_put(b, bench_median(&side[2]), "us", "ring.sleep%s.p99_us", name);
	bench_put(b, bench_ratio(&side[1], &side[0]), "x", "ring.sleep%s.ratio",
		  name);
	return 0;
}

static int measure(struct bench *b, struct kvc *c, double *us, pid_t daemon)
{
	struct seats seats;
	struct bare bare = { .us = us, .seats = &seats };
	struct ours o = { .c = c, .us = us };
	int ret;

	seats_init(&seats, daemon);
	take_seats(&seats);
	ret = measure_spin(b, &bare, &o);
	if (!ret)
		ret = measure_sleep(b, &bare, &o, "");
	leave_seats(&seats);
	bare.seats = NULL;
	if (!ret)
		ret = measure_sleep(b, &bare, &o, "_free");
	return ret;
}

int bench_ring(struct bench *b)
{
	double *us = malloc(N_SPIN * sizeof(*us));
	struct kvc_options opt = { .name = "kvbench" };
	struct bench_daemon d;
	struct kvc *c;
	int ret;

	if (!us)
		return -ENOMEM;
	ret = bench_daemon_start(b, &d, 0);
	if (ret)
		goto out_free;
	opt.socket = d.socket;
	ret = kvc_open(&c, &opt);
	if (ret) {
		(void)bench_fail(ret, "ring: %s", d.socket);
		goto out_stop;
	}
	ret = measure(b, c, us, d.pid);
	if (ret)
		(void)bench_fail(ret, "ring");
	kvc_close(c);
out_stop:
	bench_daemon_stop(&d);
out_free:
	free(us);
	return ret;
}
