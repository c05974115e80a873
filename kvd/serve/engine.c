/*
 * engine.c - the thread that computes; see engine.h
 *
 * Lock: m guards the queue. The thread spins on n_queued for a while before it
 * sleeps on the condition.
 */
#include "kvd/serve/engine.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "io/sys.h"
#include "kvd/base/clock.h"

struct engine {
	struct loop *loop; /* (I) */
	struct pool *pool; /* (I) */
	uint64_t spin_ns; /* (I) */
	pthread_t thread; /* (I) */
	pthread_mutex_t m;
	pthread_cond_t more;
	struct list queue; /* (m) */
	_Atomic uint32_t n_queued; /* (A) hint for the spinning */
	int stop; /* (m) */
};

static void job_done(struct loop_call *c)
{
	struct engine_job *j = container_of(c, struct engine_job, call);

	j->done(j);
}

static void spin(struct engine *e)
{
	const uint64_t end = clock_ns() + e->spin_ns;

	while (!atomic_load_explicit(&e->n_queued, memory_order_relaxed) &&
	       clock_ns() < end)
		__builtin_ia32_pause();
}

/* The next job, or NULL at the end. */
static struct engine_job *next(struct engine *e)
{
	struct list *n;

	spin(e);
	pthread_mutex_lock(&e->m);
	while (!(n = list_pop(&e->queue)) && !e->stop)
		pthread_cond_wait(&e->more, &e->m);
	if (n)
		atomic_fetch_sub_explicit(&e->n_queued, 1,
					  memory_order_relaxed);
	pthread_mutex_unlock(&e->m);
	return n ? list_entry(n, struct engine_job, node) : NULL;
}

static void *thread_main(void *arg)
{
	struct engine *e = arg;
	struct engine_job *j;

	while ((j = next(e))) {
		j->run(j, e->pool);
		loop_post(e->loop, &j->call);
	}
	return NULL;
}

int engine_new(struct engine **out, struct loop *loop, unsigned int n_threads,
	       uint64_t spin_ns)
{
	struct engine *e = calloc(1, sizeof(*e));
	int ret;

	if (!e)
		return -ENOMEM;
	e->loop = loop;
	e->spin_ns = spin_ns;
	list_init(&e->queue);
	pthread_mutex_init(&e->m, NULL);
	pthread_cond_init(&e->more, NULL);
	ret = pool_new(&e->pool, n_threads);
	if (ret)
		goto out_free;
	ret = kio_sys_thread(&e->thread, thread_main, e, "kvd-engine");
	if (ret)
		goto out_pool;
	*out = e;
	return 0;

out_pool:
	pool_free(e->pool);
out_free:
	free(e);
	return ret;
}

void engine_free(struct engine *e)
{
	if (!e)
		return;
	pthread_mutex_lock(&e->m);
	e->stop = 1;
	pthread_cond_signal(&e->more);
	pthread_mutex_unlock(&e->m);
	pthread_join(e->thread, NULL);
	assert(list_empty(&e->queue));
	pool_free(e->pool);
	pthread_cond_destroy(&e->more);
	pthread_mutex_destroy(&e->m);
	free(e);
}

void engine_start(struct engine *e, struct engine_job *j)
{
	list_init(&j->node);
	list_init(&j->call.node);
	j->engine = e;
	j->call.run = job_done;
	pthread_mutex_lock(&e->m);
	list_push(&e->queue, &j->node);
	atomic_fetch_add_explicit(&e->n_queued, 1, memory_order_relaxed);
	pthread_cond_signal(&e->more);
	pthread_mutex_unlock(&e->m);
}

static void ask_run(struct loop_call *c)
{
	struct engine_ask *a = container_of(c, struct engine_ask, call);

	a->run(a);
}

int engine_ask(struct engine *e, struct engine_ask *a)
{
	list_init(&a->call.node);
	a->call.run = ask_run;
	__atomic_store_n(&a->answered, 0, __ATOMIC_RELAXED);
	loop_post(e->loop, &a->call);
	while (!__atomic_load_n(&a->answered, __ATOMIC_ACQUIRE))
		/* any return is looked at again */
		(void)syscall(SYS_futex, &a->answered, FUTEX_WAIT_PRIVATE, 0,
			      NULL, NULL, 0);
	return a->ret;
}

void engine_answer(struct engine_ask *a, int ret)
{
	uint32_t *word = &a->answered;

	a->ret = ret;
	__atomic_store_n(word, 1, __ATOMIC_RELEASE);
	/* a may be gone now: a wake on an address not waited on is harmless */
	(void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
