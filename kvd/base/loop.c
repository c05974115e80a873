/*
 * loop.c - the event loop; see loop.h
 *
 * A turn: timers that are due, deferred and posted calls, pollers, then epoll,
 * which waits only if nothing is left to do and the spinning time is over.
 * While there is work, or it spins, epoll is looked at every BUSY_TURNS turns.
 *
 * Whatever runs may turn the loop itself until something it needs has happened: what a
 * turn has taken out to run is in lists of the loop, where the turn inside finds it.
 *
 * A sleeper says so (asleep), then looks at n_posted; a poster counts, then
 * looks at asleep: one of them sees the other. Both are seq_cst.
 *
 * Workers: one carries what comes while it keeps up. Two at once are as fast where the
 * memory's bandwidth or the disk is the limit, and cost more: they interrupt each other
 * for their TLBs, wait for each other's locks in the kernel, wake and sleep at each
 * piece. Another is called when some piece waited all the time for BEHIND_NS, or at once
 * when a slow piece is begun and others wait.
 *
 * Locks: post_m guards the posted list, work_m the list of work. Never both.
 */
#include "kvd/base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "io/sys.h"
#include "kvd/base/clock.h"

#define MAX_EVENTS 64
#define BEHIND_NS  4000000u
#define BUSY_TURNS 16 /* between two looks at epoll while there is work */

struct loop {
	int epoll_fd;
	int wake_fd;
	int stopping;
	struct list deferred;
	struct list calls, done, due; /* taken by a turn, not run yet */
	struct list pollers;
	struct list *poller_next; /* where a walk goes on, or NULL */
	struct list timers; /* by time, soonest first */
	uint64_t spin_ns;
	uint64_t last_work_ns;
	int busy_turns;
	struct epoll_event events[MAX_EVENTS]; /* fetched, being delivered */
	int n_events;

	pthread_mutex_t post_m;
	struct list posted; /* (post_m) */
	_Atomic uint32_t n_posted; /* (A) since the last look; counted after
				    * the push, so it may be too many */
	_Atomic uint32_t asleep; /* (A) cleared by the one who wakes */

	pthread_mutex_t work_m;
	pthread_cond_t work_more;
	struct list work; /* (work_m) */
	uint32_t n_work; /* (work_m) pieces in it */
	uint32_t n_awake; /* (work_m) workers, without those at slow work */
	uint32_t n_asleep; /* (work_m) and not called */
	uint32_t n_called; /* (work_m) and not awake yet */
	int caught_up; /* (work_m) none waited, since behind_timer was set */
	struct loop_timer behind_timer;
	struct list work_done; /* (post_m) */
	int workers_stop; /* (work_m) */
	pthread_t *workers;
	unsigned int n_workers;
};

/* ---- life --------------------------------------------------------------- */

int loop_new(struct loop **out)
{
	struct loop *l = calloc(1, sizeof(*l));
	struct epoll_event ev = { .events = EPOLLIN };
	int ret;

	if (!l)
		return -ENOMEM;
	list_init(&l->deferred);
	list_init(&l->calls);
	list_init(&l->done);
	list_init(&l->due);
	list_init(&l->pollers);
	list_init(&l->timers);
	list_init(&l->posted);
	list_init(&l->work);
	list_init(&l->work_done);
	list_init(&l->behind_timer.node);
	pthread_mutex_init(&l->post_m, NULL);
	pthread_mutex_init(&l->work_m, NULL);
	pthread_cond_init(&l->work_more, NULL);
	l->wake_fd = -1;
	ret = l->epoll_fd = kio_sys_epoll();
	if (ret >= 0)
		ret = l->wake_fd = kio_sys_eventfd();
	ev.data.ptr = NULL;
	if (ret >= 0)
		ret = kio_sys_epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->wake_fd,
					&ev);
	if (ret) {
		loop_free(l);
		return ret;
	}
	*out = l;
	return 0;
}

static void stop_workers(struct loop *l)
{
	pthread_mutex_lock(&l->work_m);
	l->workers_stop = 1;
	pthread_cond_broadcast(&l->work_more);
	pthread_mutex_unlock(&l->work_m);
	for (unsigned int i = 0; i < l->n_workers; i++)
		pthread_join(l->workers[i], NULL);
	free(l->workers);
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	stop_workers(l);
	if (l->wake_fd >= 0)
		close(l->wake_fd);
	if (l->epoll_fd >= 0)
		close(l->epoll_fd);
	pthread_cond_destroy(&l->work_more);
	pthread_mutex_destroy(&l->work_m);
	pthread_mutex_destroy(&l->post_m);
	free(l);
}

void loop_stop(struct loop *l)
{
	l->stopping = 1;
}

int loop_run(struct loop *l)
{
	int ret = 0;

	l->stopping = 0;
	while (!l->stopping && !ret)
		ret = loop_turn(l, -1);
	l->stopping = 0; /* turns may follow */
	return ret;
}

void loop_set_spin(struct loop *l, uint64_t spin_ns)
{
	l->spin_ns = spin_ns;
}

/* ---- descriptors -------------------------------------------------------- */

int loop_watch(struct loop *l, struct loop_fd *f)
{
	struct epoll_event ev = { .events = f->events, .data.ptr = f };

	return kio_sys_epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, f->fd, &ev);
}

void loop_unwatch(struct loop *l, struct loop_fd *f)
{
	/* fails only if it was never watched */
	(void)epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, f->fd, NULL);
	for (int i = 0; i < l->n_events; i++)
		if (l->events[i].data.ptr == f)
			l->events[i].events = 0;
}

static void wake(struct loop *l)
{
	const uint64_t one = 1;

	/* EAGAIN: the counter is full, so the loop is awake anyway */
	if (write(l->wake_fd, &one, sizeof(one)) < 0)
		return;
}

static void drain_wake(struct loop *l)
{
	uint64_t n;

	if (read(l->wake_fd, &n, sizeof(n)) < 0)
		return; /* EAGAIN: nothing was there */
}

static void deliver(struct loop *l)
{
	for (int i = 0; i < l->n_events; i++) {
		struct loop_fd *f = l->events[i].data.ptr;

		if (!l->events[i].events)
			continue;
		if (f)
			f->ready(f, l->events[i].events);
		else
			drain_wake(l);
	}
	l->n_events = 0;
}

/* ---- calls -------------------------------------------------------------- */

void loop_defer(struct loop *l, struct loop_call *c)
{
	list_init(&c->node);
	list_push(&l->deferred, &c->node);
}

static void post(struct loop *l, struct list *to, struct list *n)
{
	pthread_mutex_lock(&l->post_m);
	list_init(n);
	list_push(to, n);
	pthread_mutex_unlock(&l->post_m);
	atomic_fetch_add(&l->n_posted, 1);
	if (atomic_load(&l->asleep) && atomic_exchange(&l->asleep, 0))
		wake(l);
}

void loop_post(struct loop *l, struct loop_call *c)
{
	post(l, &l->posted, &c->node);
}

/* Move all of from to the end of to. */
static void splice(struct list *to, struct list *from)
{
	struct list *n;

	while ((n = list_pop(from)))
		list_push(to, n);
}

static int run_calls(struct loop *l)
{
	struct list *n;
	int ran = 0;

	splice(&l->calls, &l->deferred);
	if (atomic_load(&l->n_posted)) {
		pthread_mutex_lock(&l->post_m);
		atomic_store(&l->n_posted, 0);
		splice(&l->calls, &l->posted);
		splice(&l->done, &l->work_done);
		pthread_mutex_unlock(&l->post_m);
	}
	while ((n = list_pop(&l->done))) {
		struct loop_work *w = list_entry(n, struct loop_work, node);

		w->done(w);
		ran = 1;
	}
	while ((n = list_pop(&l->calls))) {
		struct loop_call *c = list_entry(n, struct loop_call, node);

		c->run(c);
		ran = 1;
	}
	return ran;
}

/* ---- pollers ------------------------------------------------------------ */

void loop_add_poller(struct loop *l, struct loop_poller *p)
{
	list_init(&p->node);
	list_push(&l->pollers, &p->node);
}

void loop_del_poller(struct loop *l, struct loop_poller *p)
{
	if (l->poller_next == &p->node)
		l->poller_next = p->node.next;
	list_del(&p->node);
}

/* The next poller of a walk, which survives any loop_del_poller(), or NULL. */
static struct loop_poller *next_poller(struct loop *l)
{
	struct list *n = l->poller_next;

	if (n == &l->pollers)
		return NULL;
	l->poller_next = n->next;
	return list_entry(n, struct loop_poller, node);
}

static int run_pollers(struct loop *l)
{
	struct loop_poller *p;
	int found = 0;

	l->poller_next = l->pollers.next;
	while ((p = next_poller(l)))
		found |= !!p->poll(p);
	return found;
}

/* Returns nonzero if a poller found work on the way to sleep. */
static int arm_pollers(struct loop *l)
{
	struct loop_poller *p;
	int found = 0;

	l->poller_next = l->pollers.next;
	while ((p = next_poller(l)))
		if (p->arm)
			found |= !!p->arm(p);
	return found;
}

static void disarm_pollers(struct loop *l)
{
	struct loop_poller *p;

	l->poller_next = l->pollers.next;
	while ((p = next_poller(l)))
		if (p->disarm)
			p->disarm(p);
}

/* ---- timers ------------------------------------------------------------- */

void loop_timer_set(struct loop *l, struct loop_timer *t, uint64_t at_ns)
{
	struct list *at;

	list_del(&t->node);
	at = l->timers.prev;
	t->at_ns = at_ns;
	while (at != &l->timers &&
	       list_entry(at, struct loop_timer, node)->at_ns > at_ns)
		at = at->prev;
	list_push_front(at, &t->node);
}

void loop_timer_cancel(struct loop *l, struct loop_timer *t)
{
	(void)l;
	list_del(&t->node);
}

/* Those due now; one that is set again meanwhile waits for the next turn. */
static int run_timers(struct loop *l)
{
	struct list *n;
	uint64_t now;
	int ran = 0;

	if (list_empty(&l->timers) && list_empty(&l->due))
		return 0;
	now = clock_ns();
	while ((n = list_first(&l->timers)) &&
	       list_entry(n, struct loop_timer, node)->at_ns <= now) {
		list_del(n);
		list_push(&l->due, n);
	}
	while ((n = list_pop(&l->due))) {
		struct loop_timer *t = list_entry(n, struct loop_timer, node);

		t->run(t);
		ran = 1;
	}
	return ran;
}

/* The time that epoll may sleep, in ms, no longer than limit_ms. */
static int sleep_ms(struct loop *l, int limit_ms)
{
	struct list *n = list_first(&l->timers);
	uint64_t now, at, ms;

	if (!n)
		return limit_ms;
	now = clock_ns();
	at = list_entry(n, struct loop_timer, node)->at_ns;
	ms = at > now ? (at - now + 999999) / 1000000 : 0;
	if (ms > 1000000)
		ms = 1000000;
	return limit_ms < 0 || (int)ms < limit_ms ? (int)ms : limit_ms;
}

/* ---- a turn ------------------------------------------------------------- */

static int idle(struct loop *l)
{
	return list_empty(&l->deferred) && !atomic_load(&l->n_posted);
}

static int wait_events(struct loop *l, int timeout_ms)
{
	l->n_events =
		epoll_wait(l->epoll_fd, l->events, MAX_EVENTS, timeout_ms);
	if (l->n_events < 0) {
		l->n_events = 0;
		return errno == EINTR ? 0 : -errno;
	}
	return 0;
}

/* Sleep until something happens; pollers are armed meanwhile. */
static int doze(struct loop *l, int timeout_ms)
{
	int ret;

	atomic_store(&l->asleep, 1);
	if (arm_pollers(l) || !idle(l))
		timeout_ms = 0;
	ret = wait_events(l, timeout_ms ? sleep_ms(l, timeout_ms) : 0);
	atomic_store(&l->asleep, 0);
	disarm_pollers(l);
	return ret;
}

int loop_turn(struct loop *l, int timeout_ms)
{
	int worked = run_timers(l);
	int spinning, ret;

	worked |= run_calls(l);
	worked |= run_pollers(l);
	if (l->stopping)
		return 0;
	if (worked && l->spin_ns)
		l->last_work_ns = clock_ns();
	spinning = l->spin_ns && !list_empty(&l->pollers) &&
		   clock_ns() - l->last_work_ns < l->spin_ns;
	if (timeout_ms && (worked || spinning) && ++l->busy_turns < BUSY_TURNS)
		return 0;
	l->busy_turns = 0;
	if (worked || spinning || !idle(l) || !timeout_ms)
		ret = wait_events(l, 0);
	else
		ret = doze(l, timeout_ms);
	if (l->n_events && l->spin_ns)
		l->last_work_ns = clock_ns();
	deliver(l);
	return ret;
}

/* ---- workers ------------------------------------------------------------ */

/*
 * work_m is held. 1: another worker is called, work_more is to be signalled. behind: those
 * awake do not keep up.
 */
static int call_worker(struct loop *l, int behind)
{
	if (!l->n_work || !l->n_asleep || (l->n_awake && !behind))
		return 0;
	l->n_asleep--;
	l->n_called++;
	l->n_awake++;
	return 1;
}

/* work_m is held. Returns called, or stopped. */
static void worker_sleep(struct loop *l)
{
	l->n_awake--;
	l->n_asleep++;
	while (!l->n_called && !l->workers_stop)
		pthread_cond_wait(&l->work_more, &l->work_m);
	if (l->n_called) {
		l->n_called--;
	} else {
		l->n_asleep--;
		l->n_awake++;
	}
}

/* work_m is held; it is not while w runs. */
static void worker_run(struct loop *l, struct loop_work *w)
{
	const int slow = w->slow;

	if (!--l->n_work)
		l->caught_up = 1;
	if (slow) {
		l->n_awake--;
		if (call_worker(l, 0))
			pthread_cond_signal(&l->work_more);
	}
	pthread_mutex_unlock(&l->work_m);
	w->run(w);
	post(l, &l->work_done, &w->node);
	pthread_mutex_lock(&l->work_m);
	if (slow)
		l->n_awake++;
}

static void *worker_main(void *arg)
{
	struct loop *l = arg;
	struct list *n;

	pthread_mutex_lock(&l->work_m);
	l->n_awake++;
	for (;;) {
		n = list_pop(&l->work);
		if (n)
			worker_run(l, list_entry(n, struct loop_work, node));
		else if (l->workers_stop)
			break;
		else
			worker_sleep(l);
	}
	l->n_awake--;
	pthread_mutex_unlock(&l->work_m);
	return NULL;
}

int loop_start_workers(struct loop *l, unsigned int n_threads)
{
	l->workers = calloc(n_threads, sizeof(*l->workers));
	if (!l->workers)
		return -ENOMEM;
	for (; l->n_workers < n_threads; l->n_workers++) {
		const int ret = kio_sys_thread(&l->workers[l->n_workers],
					       worker_main, l, "kvd-worker");

		if (ret)
			return ret;
	}
	return 0;
}

static void watch_work(struct loop *l);

static void look_behind(struct loop_timer *t)
{
	struct loop *l = container_of(t, struct loop, behind_timer);
	int call, waits;

	pthread_mutex_lock(&l->work_m);
	call = call_worker(l, !l->caught_up);
	waits = l->n_work && l->n_asleep;
	pthread_mutex_unlock(&l->work_m);
	if (call)
		pthread_cond_signal(&l->work_more);
	if (waits)
		watch_work(l);
}

/* Some piece waits behind others. */
static void watch_work(struct loop *l)
{
	if (!list_empty(&l->behind_timer.node))
		return;
	pthread_mutex_lock(&l->work_m);
	l->caught_up = !l->n_work;
	pthread_mutex_unlock(&l->work_m);
	l->behind_timer.run = look_behind;
	loop_timer_set(l, &l->behind_timer, clock_ns() + BEHIND_NS);
}

void loop_work_start(struct loop *l, struct loop_work *w)
{
	int call, waits;

	assert(l->n_workers);
	pthread_mutex_lock(&l->work_m);
	list_init(&w->node);
	list_push(&l->work, &w->node);
	l->n_work++;
	call = call_worker(l, 0);
	waits = !call && l->n_asleep;
	pthread_mutex_unlock(&l->work_m);
	/* not before: who wakes would wait for the lock, and be woken twice */
	if (call)
		pthread_cond_signal(&l->work_more);
	if (waits)
		watch_work(l);
}
