/*
 * engine.h - the thread that computes, and its pool
 *
 * Jobs run one after the other, in the order of engine_start(). A job sees only
 * pinned pages. What it still lacks (windows of sequences that are larger than the
 * budget) it asks of the loop thread with engine_call() and sleeps meanwhile.
 */
#ifndef KVD_SERVE_ENGINE_H
#define KVD_SERVE_ENGINE_H

#include <stdint.h>
#include "kvd/base/loop.h"
#include "kvd/base/pool.h"

struct engine;

struct engine_job {
	struct list node;
	void (*run)(struct engine_job *j, struct pool *pool); /* engine */
	void (*done)(struct engine_job *j); /* loop */
	struct loop_call call; /* the engine's */
	struct engine *engine; /* the engine's */
};

/* n_threads >= 1 compute threads in all; spin_ns before the thread sleeps. */
int engine_new(struct engine **out, struct loop *loop, unsigned int n_threads,
	       uint64_t spin_ns);
/* No job is left. */
void engine_free(struct engine *e);
/* Loop thread. */
void engine_start(struct engine *e, struct engine_job *j);

/* A question of a running job to the loop thread. */
struct engine_ask {
	struct loop_call call; /* the engine's */
	void (*run)(struct engine_ask *a); /* loop; must lead to an answer */
	uint32_t answered; /* futex-like, the engine's */
	int ret;
};
/* Engine thread: run a->run on the loop and wait for engine_answer(). */
int engine_ask(struct engine *e, struct engine_ask *a);
/* Loop thread, once per ask, now or later. */
void engine_answer(struct engine_ask *a, int ret);

#endif
