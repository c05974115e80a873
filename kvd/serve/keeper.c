/*
 * keeper.c - snapshots of the statistics, and who waits for them; see keeper.h
 */
#include "kvd/serve/keeper.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/serve/tenant.h"

#define SOON_NS	 1000000000u
#define LATER_NS 60000000000u

struct keeper {
	struct serve *serve;
	struct uses read; /* until the stores are open; then of orphans */
	struct uses out; /* the worker's while busy */
	int opened, busy, ret;
	uint64_t n_used, n_written; /* requests; when it was written last */
	uint64_t due_ns; /* 0: the timer is not set */
	struct loop_timer timer;
	struct loop_work work;
	struct list waits; /* for the next snapshot */
	struct list told; /* for the one being written */
};

static int wanted(const struct serve *s)
{
	if (s->conf->state_dir[0])
		for (uint32_t i = 0; i < s->conf->n_tenants; i++)
			if (s->conf->tenants[i].persist != CONF_PERSIST_NO &&
			    s->conf->tenants[i].disk_bytes)
				return 1;
	return 0;
}

static void timer_run(struct loop_timer *t);

int keeper_new(struct keeper **out, struct serve *s)
{
	struct keeper *k;
	int ret;

	*out = NULL;
	if (!wanted(s))
		return 0;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->serve = s;
	k->timer.run = timer_run;
	list_init(&k->timer.node);
	list_init(&k->work.node);
	list_init(&k->waits);
	list_init(&k->told);
	ret = uses_read(s->conf->state_dir, &k->read);
	if (ret && ret != -ENOENT)
		log_warn("keeper",
			 "%s/" USES_FILE
			 ": %s: chunks have the statistics of when "
			 "they were written",
			 s->conf->state_dir, strerror(-ret));
	*out = k;
	return 0;
}

const struct uses *keeper_uses(const struct keeper *k)
{
	return k ? &k->read : NULL;
}

void keeper_opened(struct keeper *k, uint64_t n_orphans)
{
	uint32_t n = 0;

	if (!k)
		return;
	for (uint32_t i = 0; n_orphans && i < k->read.n; i++)
		if (k->read.list[i].n_hits != PERSIST_CLAIMED)
			k->read.list[n++] = k->read.list[i];
	k->read.n = n;
	if (!n)
		uses_fini(&k->read);
	k->opened = 1;
}

/* ---- one snapshot -------------------------------------------------------------- */

static int snapshot(struct keeper *k)
{
	struct serve *s = k->serve;
	int ret = 0;

	uses_fini(&k->out);
	for (uint32_t i = 0; i < s->n_tenants && !ret; i++)
		if (s->tenants[i]->persist)
			ret = persist_uses(s->tenants[i]->persist, &k->out);
	for (uint32_t i = 0; i < k->read.n && !ret; i++)
		ret = uses_add(&k->out, &k->read.list[i]);
	k->n_written = k->n_used;
	return ret;
}

static void finish(struct keeper *k)
{
	uses_fini(&k->out);
	if (k->ret)
		log_warn("keeper", "%s/" USES_FILE " is not written: %s",
			 k->serve->conf->state_dir, strerror(-k->ret));
}

static void start(struct keeper *k);

static void run(struct loop_work *w)
{
	struct keeper *k = container_of(w, struct keeper, work);

	if (!k->ret)
		k->ret = uses_write(k->serve->conf->state_dir, &k->out);
}

static void done(struct loop_work *w)
{
	struct keeper *k = container_of(w, struct keeper, work);
	struct list *n;

	k->busy = 0;
	finish(k);
	while ((n = list_pop(&k->told))) {
		struct keeper_wait *kw =
			list_entry(n, struct keeper_wait, node);

		kw->wait.done(&kw->wait, 0);
	}
	if (!k->busy && !list_empty(&k->waits))
		start(k);
}

static void start(struct keeper *k)
{
	struct list *n;

	if (k->busy)
		return; /* the timer is set again by who comes next */
	while ((n = list_pop(&k->waits)))
		list_push(&k->told, n);
	k->busy = 1;
	k->ret = snapshot(k);
	k->work.run = run;
	k->work.done = done;
	k->work.slow = 1;
	loop_work_start(k->serve->loop, &k->work);
}

/* ---- when ------------------------------------------------------------------------ */

static void timer_run(struct loop_timer *t)
{
	struct keeper *k = container_of(t, struct keeper, timer);

	k->due_ns = 0;
	start(k);
}

void keeper_used(struct keeper *k)
{
	uint64_t at;

	if (!k || !k->opened)
		return;
	k->n_used++;
	at = clock_ns() +
	     (k->n_used >= 2 * (k->n_written + 1) ? SOON_NS : LATER_NS);
	if (k->due_ns && k->due_ns <= at)
		return;
	k->due_ns = at;
	loop_timer_set(k->serve->loop, &k->timer, at);
}

void keeper_save(struct keeper *k, struct keeper_wait *w)
{
	list_init(&w->node);
	list_push(&k->waits, &w->node);
	start(k);
}

void keeper_cancel(struct keeper_wait *w)
{
	list_del(&w->node);
}

void keeper_free(struct keeper *k)
{
	if (!k)
		return;
	loop_timer_cancel(k->serve->loop, &k->timer);
	while (k->busy)
		if (loop_turn(k->serve->loop, 10) < 0)
			break;
	if (k->opened) {
		k->ret = snapshot(k);
		if (!k->ret)
			k->ret = uses_write(k->serve->conf->state_dir, &k->out);
		finish(k);
	}
	uses_fini(&k->read);
	free(k);
}
