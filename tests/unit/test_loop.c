/*
 * test_loop.c - what runs when, on which thread, and that idle means asleep
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/base/loop.h"

static struct loop *loop;

static void open_loop(void)
{
	ck_assert_int_eq(loop_new(&loop), 0);
}

static void close_loop(void)
{
	loop_free(loop);
	clock_set(0);
}

static void nap_ms(long ms)
{
	const struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

/* ---- calls -------------------------------------------------------------- */

struct call {
	struct loop_call call;
	int n_ran;
	int again; /* defer itself so many times */
	int stop;
	pthread_t by;
};

static void call_run(struct loop_call *c)
{
	struct call *call = container_of(c, struct call, call);

	call->n_ran++;
	call->by = pthread_self();
	if (call->again-- > 0)
		loop_defer(loop, c);
	if (call->stop)
		loop_stop(loop);
}

START_TEST(deferred_calls_run_later_and_once)
{
	struct call c = { .call.run = call_run };

	loop_defer(loop, &c.call);
	ck_assert_int_eq(c.n_ran, 0);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	ck_assert_int_eq(c.n_ran, 1);
	ck_assert_int_eq(loop_turn(loop, 0), 0);
	ck_assert_int_eq(c.n_ran, 1);
}
END_TEST

START_TEST(a_call_that_defers_itself_waits_a_turn)
{
	struct call c = { .call.run = call_run, .again = 2 };

	loop_defer(loop, &c.call);
	for (int i = 1; i <= 3; i++) {
		loop_turn(loop, -1); /* nothing here may sleep */
		ck_assert_int_eq(c.n_ran, i);
	}
}
END_TEST

START_TEST(run_ends_with_stop_and_turns_may_follow)
{
	struct call c = { .call.run = call_run, .stop = 1 };
	struct call after = { .call.run = call_run };

	loop_defer(loop, &c.call);
	ck_assert_int_eq(loop_run(loop), 0);
	ck_assert_int_eq(c.n_ran, 1);
	loop_defer(loop, &after.call);
	loop_turn(loop, 0);
	ck_assert_int_eq(after.n_ran, 1);
}
END_TEST

#define N_POSTERS 4
#define N_POSTS	  2000

struct poster {
	pthread_t thread;
	struct call calls[N_POSTS];
};

static _Atomic int n_to_come;

static void count_down(struct loop_call *c)
{
	container_of(c, struct call, call)->n_ran++;
	if (atomic_fetch_sub(&n_to_come, 1) == 1)
		loop_stop(loop);
}

static void *post_many(void *arg)
{
	struct poster *p = arg;

	for (int i = 0; i < N_POSTS; i++) {
		p->calls[i].call.run = count_down;
		loop_post(loop, &p->calls[i].call);
		if (i % 100 == 0)
			nap_ms(1); /* let the loop fall asleep */
	}
	return NULL;
}

struct turner {
	struct loop_call call;
	struct loop_timer timer;
	const struct call *until;
	int n_turns;
};

static void turn_until(struct turner *t)
{
	while (!t->until->n_ran && t->n_turns++ < 1000)
		ck_assert_int_ge(loop_turn(loop, 0), 0);
}

static void turner_call(struct loop_call *c)
{
	turn_until(container_of(c, struct turner, call));
}

static void turner_timer(struct loop_timer *t)
{
	turn_until(container_of(t, struct turner, timer));
}

/* What was taken out with it to be run is run by the turn inside. */
START_TEST(a_call_may_turn_the_loop)
{
	struct call last = { .call.run = call_run };
	struct turner t = { .call.run = turner_call,
			    .timer.run = turner_timer,
			    .until = &last };

	loop_defer(loop, &t.call);
	loop_defer(loop, &last.call);
	ck_assert_int_ge(loop_turn(loop, 0), 0);
	ck_assert_int_eq(last.n_ran, 1);
	ck_assert_int_le(t.n_turns, 2);
	last.n_ran = t.n_turns = 0;
	loop_post(loop, &t.call);
	loop_post(loop, &last.call);
	ck_assert_int_ge(loop_turn(loop, 0), 0);
	ck_assert_int_eq(last.n_ran, 1);
	ck_assert_int_le(t.n_turns, 2);
}
END_TEST

struct late {
	struct loop_timer timer;
	struct call *sets;
};

static void late_run(struct loop_timer *t)
{
	container_of(t, struct late, timer)->sets->n_ran++;
}

START_TEST(a_timer_may_turn_the_loop)
{
	struct call last = { 0 };
	struct turner t = { .timer.run = turner_timer, .until = &last };
	struct late second = { .timer.run = late_run, .sets = &last };

	list_init(&t.timer.node);
	list_init(&second.timer.node);
	loop_timer_set(loop, &t.timer, 1);
	loop_timer_set(loop, &second.timer, 2);
	ck_assert_int_ge(loop_turn(loop, 0), 0);
	ck_assert_int_eq(last.n_ran, 1);
	ck_assert_int_le(t.n_turns, 2);
}
END_TEST

START_TEST(posts_of_threads_all_arrive)
{
	struct poster *p = calloc(N_POSTERS, sizeof(*p));

	ck_assert_ptr_nonnull(p);
	atomic_store(&n_to_come, N_POSTERS * N_POSTS);
	for (int i = 0; i < N_POSTERS; i++)
		ck_assert_int_eq(
			pthread_create(&p[i].thread, NULL, post_many, &p[i]),
			0);
	ck_assert_int_eq(loop_run(loop), 0);
	for (int i = 0; i < N_POSTERS; i++) {
		pthread_join(p[i].thread, NULL);
		for (int k = 0; k < N_POSTS; k++)
			ck_assert_int_eq(p[i].calls[k].n_ran, 1);
	}
	free(p);
}
END_TEST

/* ---- descriptors -------------------------------------------------------- */

struct bell {
	struct loop_fd fd;
	struct bell *other; /* unwatched and closed when this one rings */
	int n_rung;
};

static void bell_ready(struct loop_fd *f, uint32_t events)
{
	struct bell *b = container_of(f, struct bell, fd);
	uint64_t n;

	ck_assert_uint_eq(events, EPOLLIN);
	ck_assert_int_eq(read(f->fd, &n, sizeof(n)), sizeof(n));
	b->n_rung++;
	if (b->other)
		loop_unwatch(loop, &b->other->fd);
}

static void bell_open(struct bell *b)
{
	*b = (struct bell){ .fd = { eventfd(0, EFD_NONBLOCK), EPOLLIN,
				    bell_ready } };
	ck_assert_int_eq(loop_watch(loop, &b->fd), 0);
}

static void bell_ring(struct bell *b)
{
	const uint64_t one = 1;

	ck_assert_int_eq(write(b->fd.fd, &one, sizeof(one)), sizeof(one));
}

START_TEST(a_ready_descriptor_is_told)
{
	struct bell b;

	bell_open(&b);
	loop_turn(loop, 0);
	ck_assert_int_eq(b.n_rung, 0);
	bell_ring(&b);
	loop_turn(loop, -1);
	ck_assert_int_eq(b.n_rung, 1);
	loop_unwatch(loop, &b.fd);
	bell_ring(&b);
	loop_turn(loop, 0);
	ck_assert_int_eq(b.n_rung, 1);
	close(b.fd.fd);
}
END_TEST

/* Both are fetched together; whoever is first takes the other away. */
START_TEST(an_unwatched_descriptor_is_not_told_anything_fetched)
{
	struct bell a, b;

	bell_open(&a);
	bell_open(&b);
	a.other = &b;
	b.other = &a;
	bell_ring(&a);
	bell_ring(&b);
	loop_turn(loop, 0);
	loop_turn(loop, 0);
	ck_assert_int_eq(a.n_rung + b.n_rung, 1);
	close(a.fd.fd);
	close(b.fd.fd);
}
END_TEST

START_TEST(a_bad_descriptor_is_an_error)
{
	struct loop_fd f = { .fd = -1, .events = EPOLLIN };

	ck_assert_int_eq(loop_watch(loop, &f), -EBADF);
	loop_unwatch(loop, &f);
}
END_TEST

/* ---- timers ------------------------------------------------------------- */

struct timer {
	struct loop_timer timer;
	int order; /* when it ran */
	int again;
	struct timer *cancel;
};

static int n_timers_ran;

static void timer_run(struct loop_timer *t)
{
	struct timer *timer = container_of(t, struct timer, timer);

	timer->order = ++n_timers_ran;
	if (timer->cancel)
		loop_timer_cancel(loop, &timer->cancel->timer);
	if (timer->again-- > 0)
		loop_timer_set(loop, t, t->at_ns);
}

static void timer_open(struct timer *t, uint64_t at_ns)
{
	*t = (struct timer){ .timer.run = timer_run };
	list_init(&t->timer.node);
	loop_timer_set(loop, &t->timer, at_ns);
}

START_TEST(timers_run_in_order_when_due)
{
	struct timer t[4];

	clock_set(1000);
	n_timers_ran = 0;
	timer_open(&t[0], 3000);
	timer_open(&t[1], 2000);
	timer_open(&t[2], 9000);
	timer_open(&t[3], 2000);
	loop_turn(loop, 0);
	ck_assert_int_eq(n_timers_ran, 0);
	clock_set(3000);
	loop_turn(loop, 0);
	ck_assert_int_eq(t[1].order, 1);
	ck_assert_int_eq(t[3].order, 2);
	ck_assert_int_eq(t[0].order, 3);
	ck_assert_int_eq(t[2].order, 0);
	loop_timer_cancel(loop, &t[2].timer);
	clock_set(99999);
	loop_turn(loop, 0);
	ck_assert_int_eq(n_timers_ran, 3);
}
END_TEST

START_TEST(setting_again_moves_a_timer)
{
	struct timer t;

	clock_set(1000);
	n_timers_ran = 0;
	timer_open(&t, 2000);
	loop_timer_set(loop, &t.timer, 5000);
	clock_set(4000);
	loop_turn(loop, 0);
	ck_assert_int_eq(n_timers_ran, 0);
	clock_set(5000);
	loop_turn(loop, 0);
	loop_turn(loop, 0);
	ck_assert_int_eq(n_timers_ran, 1);
}
END_TEST

START_TEST(a_timer_set_in_its_call_waits_a_turn)
{
	struct timer t;

	clock_set(1000);
	n_timers_ran = 0;
	timer_open(&t, 500);
	t.again = 2;
	for (int i = 1; i <= 3; i++) {
		loop_turn(loop, 0);
		ck_assert_int_eq(n_timers_ran, i);
	}
}
END_TEST

START_TEST(a_due_timer_can_still_be_cancelled)
{
	struct timer t[2];

	clock_set(1000);
	n_timers_ran = 0;
	timer_open(&t[0], 500);
	timer_open(&t[1], 600);
	t[0].cancel = &t[1];
	loop_turn(loop, 0);
	loop_turn(loop, 0);
	ck_assert_int_eq(n_timers_ran, 1);
}
END_TEST

START_TEST(a_sleeping_loop_wakes_for_a_timer)
{
	const uint64_t at = clock_ns() + 5000000;
	struct timer t;

	n_timers_ran = 0;
	timer_open(&t, at);
	while (!n_timers_ran)
		ck_assert_int_eq(loop_turn(loop, -1), 0);
	ck_assert(clock_ns() >= at);
}
END_TEST

/* ---- pollers ------------------------------------------------------------ */

struct poller {
	struct loop_poller poller;
	int n_polled, n_armed, n_disarmed;
	int work; /* polls that find something */
	int arm_finds; /* arms that find something */
	struct poller *remove;
};

static int poller_poll(struct loop_poller *p)
{
	struct poller *x = container_of(p, struct poller, poller);

	x->n_polled++;
	if (x->remove)
		loop_del_poller(loop, &x->remove->poller);
	return x->work-- > 0;
}

static int poller_arm(struct loop_poller *p)
{
	struct poller *x = container_of(p, struct poller, poller);

	ck_assert_int_eq(x->n_armed, x->n_disarmed);
	x->n_armed++;
	return x->arm_finds-- > 0;
}

static void poller_disarm(struct loop_poller *p)
{
	container_of(p, struct poller, poller)->n_disarmed++;
}

static void poller_open(struct poller *x)
{
	*x = (struct poller){ .poller = { .poll = poller_poll,
					  .arm = poller_arm,
					  .disarm = poller_disarm } };
	loop_add_poller(loop, &x->poller);
}

START_TEST(pollers_are_armed_only_around_sleep)
{
	struct poller x;

	poller_open(&x);
	x.work = 3;
	for (int i = 0; i < 3; i++)
		loop_turn(loop, 1);
	ck_assert_int_eq(x.n_polled, 3);
	ck_assert_int_eq(x.n_armed, 0);
	loop_turn(loop, 1);
	ck_assert_int_eq(x.n_armed, 1);
	ck_assert_int_eq(x.n_disarmed, 1);
	loop_del_poller(loop, &x.poller);
	loop_turn(loop, 0);
	ck_assert_int_eq(x.n_polled, 4);
}
END_TEST

/* With no limit of time it would sleep for ever otherwise. */
START_TEST(work_found_by_arm_keeps_the_loop_awake)
{
	struct poller x;

	poller_open(&x);
	x.arm_finds = 1;
	ck_assert_int_eq(loop_turn(loop, -1), 0);
	ck_assert_int_eq(x.n_disarmed, 1);
	loop_del_poller(loop, &x.poller);
}
END_TEST

START_TEST(pollers_may_remove_each_other)
{
	struct poller a, b, c;

	poller_open(&a);
	poller_open(&b);
	poller_open(&c);
	a.remove = &b;
	loop_turn(loop, 0);
	ck_assert_int_eq(a.n_polled, 1);
	ck_assert_int_eq(b.n_polled, 0);
	ck_assert_int_eq(c.n_polled, 1);
	a.remove = &a;
	loop_turn(loop, 0);
	ck_assert_int_eq(c.n_polled, 2);
	loop_del_poller(loop, &c.poller);
}
END_TEST

/* Test time stands still, so the spinning lasts until it is moved. */
START_TEST(spins_for_its_time_then_sleeps)
{
	struct poller x;

	clock_set(1000000);
	loop_set_spin(loop, 20000);
	poller_open(&x);
	x.work = 1;
	for (int i = 0; i < 100; i++)
		loop_turn(loop, 1);
	ck_assert_int_eq(x.n_polled, 100);
	ck_assert_int_eq(x.n_armed, 0);
	clock_set(1020000);
	loop_turn(loop, 1);
	ck_assert_int_eq(x.n_armed, 1);
	loop_del_poller(loop, &x.poller);
}
END_TEST

START_TEST(events_are_seen_while_it_spins)
{
	struct poller x;
	struct bell b;

	clock_set(1000000);
	loop_set_spin(loop, 20000);
	poller_open(&x);
	bell_open(&b);
	x.work = 1 << 30;
	bell_ring(&b);
	for (int i = 0; i < 50; i++)
		loop_turn(loop, 1);
	ck_assert_int_eq(b.n_rung, 1);
	loop_unwatch(loop, &b.fd);
	close(b.fd.fd);
	loop_del_poller(loop, &x.poller);
}
END_TEST

/* ---- idle --------------------------------------------------------------- */

static void *stop_later(void *arg)
{
	nap_ms(200);
	loop_post(loop, arg);
	return NULL;
}

/* CPU time, not elapsed time: a loop that turned all the while used 200 ms. */
START_TEST(idle_is_asleep)
{
	struct call c = { .call.run = call_run, .stop = 1 };
	struct poller x;
	struct timespec a, b;
	pthread_t t;

	loop_set_spin(loop, 20000);
	poller_open(&x);
	ck_assert_int_eq(pthread_create(&t, NULL, stop_later, &c.call), 0);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
	ck_assert_int_eq(loop_run(loop), 0);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
	pthread_join(t, NULL);
	ck_assert_int_lt((b.tv_sec - a.tv_sec) * 1000 +
				 (b.tv_nsec - a.tv_nsec) / 1000000,
			 50);
	ck_assert_int_le(x.n_armed, 3);
	loop_del_poller(loop, &x.poller);
}
END_TEST

/* ---- workers ------------------------------------------------------------ */

#define N_WORKS 100

struct gate {
	struct loop_work work;
	_Atomic int open;
};

struct work {
	struct loop_work work;
	struct gate *gate; /* that it opens */
	pthread_t ran_by, done_by;
	int value;
};

static void work_run(struct loop_work *w)
{
	struct work *x = container_of(w, struct work, work);

	x->ran_by = pthread_self();
	x->value++;
}

static void work_done(struct loop_work *w)
{
	struct work *x = container_of(w, struct work, work);

	x->done_by = pthread_self();
	x->value *= 2;
	if (atomic_fetch_sub(&n_to_come, 1) == 1)
		loop_stop(loop);
}

START_TEST(work_runs_elsewhere_and_ends_here)
{
	static struct work x[N_WORKS];

	ck_assert_int_eq(loop_start_workers(loop, 3), 0);
	atomic_store(&n_to_come, N_WORKS);
	for (int i = 0; i < N_WORKS; i++) {
		x[i] = (struct work){ .work = { .run = work_run,
						.done = work_done },
				      .value = i };
		loop_work_start(loop, &x[i].work);
	}
	ck_assert_int_eq(loop_run(loop), 0);
	for (int i = 0; i < N_WORKS; i++) {
		ck_assert_int_eq(x[i].value, 2 * (i + 1));
		ck_assert(pthread_equal(x[i].done_by, pthread_self()));
		ck_assert(!pthread_equal(x[i].ran_by, pthread_self()));
	}
}
END_TEST

/* Work that was started is run, even if nobody is there for its end. */
START_TEST(free_waits_for_work)
{
	static struct work x[N_WORKS];
	struct loop *own;

	ck_assert_int_eq(loop_new(&own), 0);
	ck_assert_int_eq(loop_start_workers(own, 2), 0);
	for (int i = 0; i < N_WORKS; i++) {
		x[i] = (struct work){ .work = { .run = work_run,
						.done = work_done } };
		loop_work_start(own, &x[i].work);
	}
	loop_free(own);
	for (int i = 0; i < N_WORKS; i++)
		ck_assert_int_eq(x[i].value, 1);
}
END_TEST

/* It ends when others have run; if they wait behind it the test does not end. */
static void gate_run(struct loop_work *w)
{
	struct gate *g = container_of(w, struct gate, work);

	while (!atomic_load(&g->open))
		(void)usleep(100);
}

static void open_run(struct loop_work *w)
{
	struct work *x = container_of(w, struct work, work);

	work_run(w);
	atomic_store(&x->gate->open, 1);
}

static void gate_done(struct loop_work *w)
{
	(void)w;
	if (atomic_fetch_sub(&n_to_come, 1) == 1)
		loop_stop(loop);
}

START_TEST(nothing_waits_behind_slow_work)
{
	struct gate g = {
		.work = { .run = gate_run, .done = gate_done, .slow = 1 }
	};
	struct work x = { .work = { .run = open_run, .done = work_done },
			  .gate = &g };

	ck_assert_int_eq(loop_start_workers(loop, 2), 0);
	for (int i = 0; i < 20; i++) {
		const int before = i % 2; /* the slow one is begun, or is not */

		atomic_store(&g.open, 0);
		atomic_store(&n_to_come, 2);
		loop_work_start(loop, &g.work);
		if (before)
			(void)usleep(1000);
		loop_work_start(loop, &x.work);
		ck_assert_int_eq(loop_run(loop), 0);
	}
}
END_TEST

START_TEST(another_worker_is_called_when_work_waits)
{
	static struct work x[N_WORKS];
	struct gate g = { .work = { .run = gate_run, .done = gate_done } };

	ck_assert_int_eq(loop_start_workers(loop, 2), 0);
	for (int i = 0; i < 20; i++) {
		atomic_store(&g.open, 0);
		atomic_store(&n_to_come, N_WORKS + 1);
		loop_work_start(loop, &g.work);
		for (int k = 0; k < N_WORKS; k++) {
			x[k] = (struct work){ .work = { .run = open_run,
							.done = work_done },
					      .gate = &g };
			loop_work_start(loop, &x[k].work);
		}
		ck_assert_int_eq(loop_run(loop), 0);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("loop");
	TCase *tc = tcase_create("loop");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, open_loop, close_loop);
	tcase_add_test(tc, deferred_calls_run_later_and_once);
	tcase_add_test(tc, a_call_that_defers_itself_waits_a_turn);
	tcase_add_test(tc, run_ends_with_stop_and_turns_may_follow);
	tcase_add_test(tc, a_call_may_turn_the_loop);
	tcase_add_test(tc, a_timer_may_turn_the_loop);
	tcase_add_test(tc, posts_of_threads_all_arrive);
	tcase_add_test(tc, a_ready_descriptor_is_told);
	tcase_add_test(tc,
		       an_unwatched_descriptor_is_not_told_anything_fetched);
	tcase_add_test(tc, a_bad_descriptor_is_an_error);
	tcase_add_test(tc, timers_run_in_order_when_due);
	tcase_add_test(tc, setting_again_moves_a_timer);
	tcase_add_test(tc, a_timer_set_in_its_call_waits_a_turn);
	tcase_add_test(tc, a_due_timer_can_still_be_cancelled);
	tcase_add_test(tc, a_sleeping_loop_wakes_for_a_timer);
	tcase_add_test(tc, pollers_are_armed_only_around_sleep);
	tcase_add_test(tc, work_found_by_arm_keeps_the_loop_awake);
	tcase_add_test(tc, pollers_may_remove_each_other);
	tcase_add_test(tc, spins_for_its_time_then_sleeps);
	tcase_add_test(tc, events_are_seen_while_it_spins);
	tcase_add_test(tc, idle_is_asleep);
	tcase_add_test(tc, work_runs_elsewhere_and_ends_here);
	tcase_add_test(tc, free_waits_for_work);
	tcase_add_test(tc, nothing_waits_behind_slow_work);
	tcase_add_test(tc, another_worker_is_called_when_work_waits);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
