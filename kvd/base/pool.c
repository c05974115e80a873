/*
 * pool.c - fork-join over compute threads; see pool.h
 *
 * A job is numbered; threads sleep on the number. Parts are taken from a counter
 * that carries the job's number in its high half, so that a late thread cannot
 * take a part of the next job by mistake.
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

#define SPIN_NS 10000u

struct pool {
	unsigned int n_threads;	   /* (I) with the caller */
	pthread_t *threads;	   /* (I) n_threads - 1 */
	void (*fn)(void *arg, uint32_t i); /* (I) while a job runs */
	void *arg;
	_Atomic uint32_t n_parts;
	_Atomic uint32_t job;	   /* number; released after the fields above */
	_Atomic uint64_t next;	   /* job << 32 | next part */
	_Atomic uint32_t n_left;   /* parts not done */
	_Atomic uint32_t n_asleep; /* threads in futex-wait on job */
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

static void futex_wake_all(_Atomic uint32_t *word)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL,
		      NULL, 0);
}

/* Wait until *word differs from seen: spin, then sleep. */
static void wait_change(struct pool *p, _Atomic uint32_t *word, uint32_t seen)
{
	const uint64_t end = now_ns() + SPIN_NS;

	while (atomic_load(word) == seen) {
		if (now_ns() < end) {
			__builtin_ia32_pause();
			continue;
		}
		atomic_fetch_add(&p->n_asleep, 1);
		if (atomic_load(word) == seen)
			futex_wait(word, seen);
		atomic_fetch_sub(&p->n_asleep, 1);
	}
}

/* Run parts of this job until there are none. */
static void work(struct pool *p, uint32_t job)
{
	for (;;) {
		uint64_t at = atomic_load(&p->next);
		uint32_t i;

		do {
			if ((uint32_t)(at >> 32) != job)
				return;
			i = (uint32_t)at;
			if (i >= atomic_load(&p->n_parts))
				return;
		} while (!atomic_compare_exchange_weak(&p->next, &at, at + 1));
		p->fn(p->arg, i);
		if (atomic_fetch_sub(&p->n_left, 1) == 1 &&
		    atomic_load(&p->n_asleep))
			futex_wake_all(&p->n_left);
	}
}

static void *thread_main(void *arg)
{
	struct pool *p = arg;
	uint32_t seen = 0;

	while (!atomic_load(&p->stop)) {
		wait_change(p, &p->job, seen);
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
		int ret = pthread_create(&p->threads[p->n_threads - 1], NULL,
					 thread_main, p);

		if (ret) {
			pool_free(p);
			return -ret;
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
	atomic_store(&p->n_parts, 0);
	atomic_fetch_add(&p->job, 1);
	futex_wake_all(&p->job);
	for (unsigned int i = 0; i + 1 < p->n_threads; i++)
		pthread_join(p->threads[i], NULL);
	free(p->threads);
	free(p);
}

unsigned int pool_n_threads(const struct pool *p)
{
	return p->n_threads;
}

void pool_run(struct pool *p, void (*fn)(void *arg, uint32_t i_part),
	      void *arg, uint32_t n_parts)
{
	const uint32_t job = atomic_load(&p->job) + 1;
	uint32_t left;

	if (!n_parts)
		return;
	if (p->n_threads == 1 || n_parts == 1) {
		for (uint32_t i = 0; i < n_parts; i++)
			fn(arg, i);
		return;
	}
	p->fn = fn;
	p->arg = arg;
	atomic_store(&p->n_parts, n_parts);
	atomic_store(&p->n_left, n_parts);
	atomic_store(&p->next, (uint64_t)job << 32);
	atomic_store(&p->job, job);
	if (atomic_load(&p->n_asleep))
		futex_wake_all(&p->job);
	work(p, job);
	while ((left = atomic_load(&p->n_left)))
		wait_change(p, &p->n_left, left);
}
