/*
 * loop.h - the event loop: epoll, deferred calls, timers, work on threads
 *
 * One loop per daemon; everything here is called on the loop thread, save
 * loop_post() (any thread). The loop thread owns all metadata without locks.
 */
#ifndef KVD_BASE_LOOP_H
#define KVD_BASE_LOOP_H

#include <stdint.h>
#include "kvd/base/list.h"

struct loop;

int loop_new(struct loop **out);
void loop_free(struct loop *l);
/* Run until loop_stop(). Returns 0 or -errno of epoll. */
int loop_run(struct loop *l);
void loop_stop(struct loop *l);
/* One turn: at most timeout_ms of sleep (-1: no limit); for tests. */
int loop_turn(struct loop *l, int timeout_ms);

/* A watched descriptor; memory is the caller's until loop_unwatch(). */
struct loop_fd {
	int fd;
	uint32_t events; /* EPOLLIN ... asked for */
	void (*ready)(struct loop_fd *f, uint32_t events);
};
int loop_watch(struct loop *l, struct loop_fd *f);
/* After this ready() is not called, even for events already fetched. */
void loop_unwatch(struct loop *l, struct loop_fd *f);

/* A call made later: on this turn (defer) or by another thread (post). */
struct loop_call {
	struct list node;
	void (*run)(struct loop_call *c);
};
/* Run c on the next turn of the loop. Loop thread. c is not queued already. */
void loop_defer(struct loop *l, struct loop_call *c);
/* The same from any thread; wakes the loop. */
void loop_post(struct loop *l, struct loop_call *c);

/*
 * A poller is asked on every turn while the loop is awake and before it goes
 * to sleep. poll() returns nonzero when it found work. The loop spins for
 * spin_ns after the last work, then calls arm() on each (which may still
 * return nonzero: work arrived), sleeps, and calls disarm().
 */
struct loop_poller {
	struct list node;
	int (*poll)(struct loop_poller *p);
	int (*arm)(struct loop_poller *p); /* about to sleep; or NULL */
	void (*disarm)(struct loop_poller *p); /* awake again; or NULL */
};
void loop_add_poller(struct loop *l, struct loop_poller *p);
void loop_del_poller(struct loop *l, struct loop_poller *p);
/* 0: never spin. Set once before loop_run(). */
void loop_set_spin(struct loop *l, uint64_t spin_ns);

/* Memory is the caller's. run() once at or after at_ns (CLOCK_MONOTONIC). */
struct loop_timer {
	struct list node;
	uint64_t at_ns;
	void (*run)(struct loop_timer *t);
};
/* t must be initialised with list_init(&t->node). Re-arming moves it. */
void loop_timer_set(struct loop *l, struct loop_timer *t, uint64_t at_ns);
void loop_timer_cancel(struct loop *l, struct loop_timer *t);

/*
 * Work for the worker threads: fallocate, hole punching, zeroing, checksums.
 * run() on a worker, then done() on the loop thread.
 */
struct loop_work {
	struct list node;
	void (*run)(struct loop_work *w);
	void (*done)(struct loop_work *w);
	int slow; /* it may take long (a file, a driver): what is behind it gets
		   * another worker at once */
};
/* Start n_threads workers; before the first loop_work_start(). */
int loop_start_workers(struct loop *l, unsigned int n_threads);
void loop_work_start(struct loop *l, struct loop_work *w);

#endif
