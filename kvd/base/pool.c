/*
 * pool.c - fork-join over compute threads; see pool.h
 *
 * A job is numbered; threads sleep on the number. Parts are taken from one word
 * that holds the job's number and how many of its parts are left, so a late
 * thread can take nothing of a job that it has not seen begin.
 *
 *  (1) fn, arg and n_parts change only while `left` of the last job is 0 and
 *      all of its parts are done: who has taken a part may read them.
 *  (2) A sleeper counts itself, then looks at the word again; a waker changes
 *      the word, then looks at the count (both sequentially consistent).
 */
#include "kvd/base/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "io/base.h"
#include "io/sys.h"

#define SPIN_NS 10000u

struct pool {
	unsigned int n_threads; /* (I) with the caller */
	pthread_t *threads; /* (I) n_threads - 1 */
	void (*fn)(void *arg, uint32_t i_part); /* (1) */
	void *arg;
	uint32_t n_parts;
	_Atomic uint64_t left; /* (A) job << 32 | parts not taken */
	_Atomic uint32_t job; /* (A) number of the latest job */
	_Atomic uint32_t n_undone; /* (A) parts not done */
	_Atomic uint32_t n_asleep; /* (A) threads that sleep on job */
	_Atomic uint32_t n_caller; /* (A) 1: the caller sleeps on n_undone */
	_Atomic uint32_t stop;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
	/* any return is looked at again by the caller */
	(void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, uint32_t n)
{
	/* it cannot fail for a word of our own */
	(void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Wait until *word differs from seen: spin, then sleep, counted in *asleep. */
static void wait_change(_Atomic uint32_t *word, uint32_t seen,
			_Atomic uint32_t *asleep)
{
	const uint64_t end = now_ns() + SPIN_NS;

	while (atomic_load(word) == seen) {
		if (now_ns() < end) {
			KV_CPU_RELAX();
			continue;
		}
		atomic_fetch_add(asleep, 1);
		if (atomic_load(word) == seen)
			futex_wait(word, seen);
		atomic_fetch_sub(asleep, 1);
	}
}

/* Take a part of this job: how many were left with it, or 0. */
static uint32_t take(struct pool *p, uint32_t job)
{
	uint64_t at = atomic_load(&p->left);

	do {
		if ((uint32_t)(at >> 32) != job || !(uint32_t)at)
			return 0;
	} while (!atomic_compare_exchange_weak(&p->left, &at, at - 1));
	return (uint32_t)at;
}

/* Run parts of this job until there are none. */
static void work(struct pool *p, uint32_t job)
{
	uint32_t left;

	while ((left = take(p, job))) {
		p->fn(p->arg, p->n_parts - left);
		if (atomic_fetch_sub(&p->n_undone, 1) == 1 &&
		    atomic_load(&p->n_caller))
			futex_wake(&p->n_undone, 1);
	}
}

static void *thread_main(void *arg)
{
	struct pool *p = arg;
	uint32_t seen = 0;

	while (!atomic_load(&p->stop)) {
		wait_change(&p->job, seen, &p->n_asleep);
		seen = atomic_load(&p->job);
		work(p, seen);
	}
	return NULL;
}

int pool_new(struct pool **out, unsigned int n_threads)
{
	struct pool *p = calloc(1, sizeof(*p));

	if (!p || !n_threads) {
		free(p);
		return n_threads ? -ENOMEM : -EINVAL;
	}
	p->threads = calloc(n_threads, sizeof(*p->threads));
	if (!p->threads) {
		free(p);
		return -ENOMEM;
	}
	for (p->n_threads = 1; p->n_threads < n_threads; p->n_threads++) {
		const int ret = kio_sys_thread(&p->threads[p->n_threads - 1],
					       thread_main, p, "kvd-compute");

		if (ret) {
			pool_free(p);
			return ret;
		}
	}
	*out = p;
	return 0;
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	atomic_store(&p->stop, 1);
	atomic_fetch_add(&p->job, 1);
	futex_wake(&p->job, INT32_MAX);
	for (unsigned int i = 0; i + 1 < p->n_threads; i++)
		pthread_join(p->threads[i], NULL);
	free(p->threads);
	free(p);
}

unsigned int pool_n_threads(const struct pool *p)
{
	return p->n_threads;
}

void pool_run(struct pool *p, void (*fn)(void *arg, uint32_t i_part), void *arg,
	      uint32_t n_parts)
{
	const uint32_t job = atomic_load(&p->job) + 1;
	uint32_t undone;

	if (!n_parts)
		return;
	if (p->n_threads == 1 || n_parts == 1) {
		for (uint32_t i = 0; i < n_parts; i++)
			fn(arg, i);
		return;
	}
	p->fn = fn;
	p->arg = arg;
	p->n_parts = n_parts;
	atomic_store(&p->n_undone, n_parts);
	atomic_store(&p->left, (uint64_t)job << 32 | n_parts);
	atomic_store(&p->job, job);
	if (atomic_load(&p->n_asleep))
		futex_wake(&p->job, n_parts - 1);
	work(p, job);
	while ((undone = atomic_load(&p->n_undone)))
		wait_change(&p->n_undone, undone, &p->n_caller);
}
