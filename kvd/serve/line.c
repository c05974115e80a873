/*
 * line.c - the line of a tenant and its order; see line.h
 */
#include "kvd/serve/line.h"

#include <errno.h>
#include <stdlib.h>
#include "kvd/base/clock.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/preload.h"
#include "kvd/serve/share.h"

#define PRIOR_PREFILL 1e4 /* tokens a second, before any step */
#define LOOK_TILES    4096u /* hashed in a turn: about a millisecond */
#define LOOK_HEADS    16u /* looked at for what has gone */

static struct waiter *waiter_of(struct list *n)
{
	return list_entry(n, struct waiter, node);
}

static int by_prefix(const struct serve_tenant *t)
{
	return t->serve->conf->order;
}

/* ---- the order -------------------------------------------------------------- */

/* When it would have come, by arrival. */
static uint64_t counts_from(const struct waiter *w)
{
	uint64_t gain;

	if (!w->cached || !w->rate)
		return w->since_ns;
	gain = rate_ns(w->rate, (double)LINE_GAIN * w->cached, PRIOR_PREFILL);
	gain = KV_MIN(gain, LINE_AGE_NS);
	return w->since_ns - KV_MIN(gain, w->since_ns);
}

static int goes_before(const struct waiter *w, const struct waiter *o)
{
	const struct waiter *early = o->since_ns <= w->since_ns ? o : w;
	const struct waiter *late = early == o ? w : o;
	const int overtakes = early->yields &&
			      late->priority <= early->priority &&
			      counts_from(late) < counts_from(early);

	return (late == w) == overtakes;
}

/* Into the line, behind at or further ahead. */
static void put(struct serve_tenant *t, struct waiter *w, struct list *at)
{
	uint32_t n_passed = 0;

	while (at != &t->waiting && goes_before(w, waiter_of(at))) {
		n_passed += waiter_of(at)->since_ns < w->since_ns;
		at = at->prev;
	}
	list_push_front(at, &w->node);
	stat_add(t->st_passed, n_passed);
}

/* What is cached of w has changed. */
static void move(struct serve_tenant *t, struct waiter *w)
{
	struct list *at = w->node.prev;

	list_del(&w->node);
	while (at->next != &t->waiting && goes_before(waiter_of(at->next), w))
		at = at->next;
	put(t, w, at);
}

void tenant_wait(struct serve_tenant *t, struct waiter *w)
{
	if (!w->since_ns)
		w->since_ns = clock_ns();
	put(t, w, t->waiting.prev);
}

void tenant_wait_front(struct serve_tenant *t, struct waiter *w)
{
	w->since_ns = 0; /* nobody is sorted before it */
	list_push_front(&t->waiting, &w->node);
}

/* ---- what is cached ------------------------------------------------------------ */

/* Tokens that can be found as a prefix; as in plan.c. */
static uint32_t look_end(const struct gen *g)
{
	const uint32_t last = g->parts[g->n_parts - 1].first;

	if (g->req->flags & SERVE_GEN_NO_REUSE)
		return 0;
	if (g->req->flags & SERVE_GEN_SCORE)
		return last ? last - 1 : 0;
	return g->n_prompt ? g->n_prompt - 1 : 0;
}

int line_next_tile(const struct gen *g, struct gen_chain *c)
{
	const uint32_t end = look_end(g);
	const struct gen_part *p;
	uint32_t from;

	do {
		from = c->at;
		gen_chain_step(g, c);
		p = &g->parts[c->i_part];
		if (c->at == from || c->at > end || p->moved ||
		    craft_fresh(g, p) || p->first >= focus_exact_end(g))
			return 0;
	} while (p->reuse);
	return 1;
}

/* Go on where the last look ended. 0: *tiles are used up before. */
static int look_on(struct gen *g, uint32_t *tiles)
{
	struct map *index = &g->tenant->prefix.map;
	struct line_look *l = &g->look;

	if (!l->seen) {
		l->at.id = prefix_root(g->model->id);
		l->next = l->at;
		l->has_next = line_next_tile(g, &l->next);
		l->seen = 1;
	}
	while (l->has_next && map_find(index, l->next.id)) {
		if (!*tiles)
			return 0;
		--*tiles;
		l->n += KV_MIN(SEGMENT_BLOCK, l->next.at - l->at.at);
		l->at = l->next;
		l->has_next = line_next_tile(g, &l->next);
	}
	l->seen = g->tenant->prefix.n_added + 1;
	return 1;
}

/* What was found last has gone. */
static int look_lost(const struct gen *g)
{
	return g->look.n && !map_find(&g->tenant->prefix.map, g->look.at.id);
}

/* Chunks that are there, but for what is computed of them again. */
static uint32_t chunk_tokens(const struct gen *g)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct gen_part *p = &g->parts[i];

		if (!p->seg)
			continue;
		n += p->n;
		if (p->group && p->group->n)
			n -= (uint64_t)p->n * p->group->k / p->group->n;
	}
	return (uint32_t)n;
}

/* 1: it is another number than before. */
static int weigh(struct gen *g)
{
	const uint32_t was = g->waiter.cached;

	g->waiter.cached = g->look.n + chunk_tokens(g);
	return g->waiter.cached != was;
}

void line_stand(struct gen *g)
{
	struct waiter *w = &g->waiter;

	if (!g->req)
		return; /* a chunk job stands as it stood */
	preload_end(g);
	w->gen = g;
	if (!by_prefix(g->tenant))
		return;
	g->look = (struct line_look){ 0 };
	w->rate = &g->model->prefill;
	w->priority = g->req->priority;
	w->yields = !g->deadline_ns;
	(void)weigh(g);
}

void line_follow(struct gen *job, struct gen *g)
{
	struct waiter *w = &job->waiter;
	uint32_t tiles = LOOK_TILES;

	if (!by_prefix(g->tenant) || !g->req || list_empty(&w->node))
		return;
	line_stand(g);
	(void)look_on(g, &tiles);
	(void)weigh(g);
	w->yields = w->rate ? w->yields && g->waiter.yields : g->waiter.yields;
	w->priority = w->rate ? KV_MIN(w->priority, g->waiter.priority)
			      : g->waiter.priority;
	w->rate = g->waiter.rate;
	w->cached = KV_MAX(w->cached, g->waiter.cached);
	move(g->tenant, w);
}

/* Something came into the index, or somebody into the line. */
static void look_for_more(struct serve_tenant *t)
{
	uint32_t tiles = LOOK_TILES;

	list_for_each_safe(n, &t->waiting) {
		struct gen *g = waiter_of(n)->gen;

		if (!g || g->look.seen == t->prefix.n_added + 1)
			continue;
		if (!look_on(g, &tiles))
			return; /* the rest another time */
		if (weigh(g))
			move(t, &g->waiter);
	}
}

/* Who is about to go may have lost what it stands there for. */
static void look_for_less(struct serve_tenant *t)
{
	struct list *n = t->waiting.next;
	uint32_t tiles = LOOK_TILES;

	for (uint32_t i = 0; i < LOOK_HEADS && n != &t->waiting; i++) {
		struct gen *g = waiter_of(n)->gen;

		n = n->next;
		if (!g || !look_lost(g))
			continue;
		g->look = (struct line_look){ 0 };
		(void)look_on(g, &tiles);
		if (weigh(g))
			move(t, &g->waiter);
	}
}

static void look(struct serve_tenant *t)
{
	if (!by_prefix(t) || list_empty(&t->waiting) ||
	    t->waiting.next == t->waiting.prev)
		return;
	look_for_more(t);
	look_for_less(t);
}

/* ---- the line moves --------------------------------------------------------------- */

static void kick_turn(struct loop_call *c)
{
	struct serve_tenant *t = container_of(c, struct serve_tenant, kick);
	int ret = 0;

	t->kicked = 0;
	look(t);
	/* in order: who does not fit now is not overtaken */
	list_for_each_safe(n, &t->waiting) {
		ret = waiter_of(n)->retry(waiter_of(n));
		if (ret == -EAGAIN)
			break;
	}
	if (ret != -EAGAIN)
		pager_reserve_forget(t->pager);
	preload_wake(t);
}

int tenant_reserve_now(struct serve_tenant *t, uint64_t bytes)
{
	const int ret = pager_reserve(t->pager, bytes);

	/* who stands in line waits on, and is to be told */
	if (ret == -EAGAIN && list_empty(&t->waiting))
		pager_reserve_forget(t->pager);
	return ret;
}

int tenant_frees(struct serve_tenant *t)
{
	return t->n_active || (t->persist && !persist_idle(t->persist)) ||
	       measures_give_up(t->serve->measures, t) || share_frees(t);
}

void tenant_kick(struct serve_tenant *t)
{
	if (list_empty(&t->waiting))
		pager_reserve_forget(t->pager);
	if (t->kicked || list_empty(&t->waiting))
		return;
	t->kicked = 1;
	t->kick.run = kick_turn;
	loop_defer(t->serve->loop, &t->kick);
}
