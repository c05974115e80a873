/*
 * restore.c - stages of layers, wanted in order; see restore.h
 */
#include "kvd/serve/restore.h"

#include <errno.h>
#include <stdlib.h>
#include "kvd/serve/batch.h"
#include "kvd/serve/cost.h"
#include "kvd/serve/repair.h"

#define PRIOR_PREFILL 1e4 /* rows a second, before any step */
#define PRIOR_STEPS   50.0 /* small ones a second */

static struct pager *pager_of(const struct restore *r)
{
	return r->g->tenant->pager;
}

/* ---- how many stages -------------------------------------------------------- */

static uint32_t stage_groups(const struct kv_layout *l)
{
	const uint32_t most = KV_DIV_UP(l->n_groups, RESTORE_STAGES);
	const uint32_t least =
		(uint32_t)KV_DIV_UP((size_t)RESTORE_BYTES, l->page_bytes);

	return KV_MAX(most, least);
}

/* How long what is on disk takes; 0: nothing is. */
static uint64_t load_ns(const struct restore *r)
{
	const struct cost_now now = gen_cost_now(r->g, pager_of(r));
	struct cost_bytes bytes = { 0 };
	double ns;

	for (uint32_t i = 0; i < r->n_runs; i++)
		gen_add_lower(&bytes, &r->runs[i]);
	ns = cost_load_ns(&now, &bytes);
	return ns > 0 ? KV_MAX((uint64_t)ns, 1) : 0;
}

/* One step over the rows that are to compute, as far as a step goes. */
static uint64_t step_ns(const struct gen *g)
{
	const uint32_t rows =
		KV_MIN(g->n_computed, g->tenant->serve->conf->prefill_slice);

	return rows >= BATCH_PREFILL_ROWS
		       ? rate_ns(&g->model->prefill, rows, PRIOR_PREFILL)
		       : rate_ns(&g->model->small_steps, 1, PRIOR_STEPS);
}

/* Looks at what is to be repaired, before: one layer. */
static uint64_t look_ns(const struct gen *g)
{
	uint64_t rows = 0;

	for (uint32_t i = 0; i < g->n_groups; i++)
		if (repair_looks(&g->groups[i]))
			rows += g->groups[i].n;
	return rows ? rate_ns(&g->model->prefill, (double)rows, PRIOR_PREFILL) /
			       g->model->layout.n_layers
		    : 0;
}

/* ---- ends ---------------------------------------------------------------------- */

void restore_drop(struct restore *r)
{
	if (!r)
		return;
	for (uint32_t i = 0; i < r->n; i++) {
		struct restore_stage *s = &r->stages[i];

		if (s->pinned)
			page_unpin(pager_of(r), s->want.runs, s->want.n_runs);
		else if (s->asked)
			page_want_cancel(pager_of(r), &s->want);
	}
	r->g->restore = NULL;
	free(r->runs);
	free(r);
}

/* All stages are in: the pins are the gen's. */
static void hand_over(struct restore *r)
{
	struct gen *g = r->g;

	if (g->req)
		for (uint32_t i = 0; i < r->n; i++)
			g->req->stats.n_read_back += r->stages[i].want.n_read;
	if (g->req)
		g->req->stats.n_ahead = r->n_ahead;
	stat_add(g->tenant->st_ahead, r->n_ahead);
	assert(!g->n_pinned && !g->wanting);
	free(g->runs);
	g->runs = r->runs;
	g->n_runs = g->n_pinned = g->n_runs_room = r->n_runs;
	g->restore = NULL;
	free(r);
}

static void answer(struct restore *r, int ret)
{
	r->waiting = 0;
	engine_answer(&r->ask, ret);
}

void restore_fail(struct restore *r, int err)
{
	struct gen *g = r->g;

	if (!r->err)
		r->err = err;
	if (g->state != GEN_STEP) {
		restore_drop(r);
		g->pinned_to = 0;
		list_del(&g->node); /* it may have been ready */
		gen_pages_failed(g, err);
	} else if (r->waiting) {
		answer(r, r->err);
	}
}

static void advance(struct restore *r)
{
	struct gen *g = r->g;

	if (g->state == GEN_STEP) /* until now a page was missing */
		r->n_ahead = KV_MAX(
			r->n_ahead,
			atomic_load_explicit(&r->layer, memory_order_relaxed));
	while (r->n_in < r->n && r->stages[r->n_in].pinned)
		r->n_in++;
	if (r->waiting && r->i_wait < r->n_in)
		answer(r, (int)r->n_in);
	if (g->state == GEN_STEP)
		return; /* its end sees to the rest */
	if (r->n_in == r->n) {
		hand_over(r);
		list_del(&g->node); /* to the lane of those who have all */
		gen_pages_in(g);
	} else if (g->state == GEN_WANT && r->n_in >= r->n_start) {
		gen_pages_in(g);
	}
}

static void stage_done(struct wait *w, int ret)
{
	struct restore_stage *s =
		container_of(container_of(w, struct page_want, wait),
			     struct restore_stage, want);

	s->asked = 0;
	if (ret) {
		restore_fail(s->restore, ret);
		return;
	}
	s->pinned = 1;
	advance(s->restore);
}

int restore_stepped(struct gen *g, int ret)
{
	struct restore *r = g->restore;

	if (!r)
		return ret;
	assert(!r->waiting);
	ret = r->err ? r->err : ret;
	if (ret) {
		restore_drop(r);
		g->pinned_to = 0;
	} else if (r->n_in == r->n) {
		hand_over(r);
	} /* else it was a look at the first layers only */
	return ret;
}

void restore_cancel(struct restore *r)
{
	if (r && r->waiting)
		answer(r, -ECANCELED);
}

/* ---- begin ------------------------------------------------------------------------ */

static struct seq_groups groups_of(const struct restore *r, uint32_t i)
{
	const struct kv_layout *l = &r->g->model->layout;
	const uint32_t n = r->layers / l->page_layers;

	return (struct seq_groups){ i * n, KV_MIN(n, l->n_groups - i * n) };
}

static int list_runs(struct restore *r, uint64_t to)
{
	const struct seq *q = &r->g->seq;
	uint32_t at = 0;

	for (uint32_t i = 0; i < r->n; i++)
		r->n_runs += seq_group_runs(q, 0, to, groups_of(r, i), NULL, 0);
	r->runs = calloc(r->n_runs, sizeof(*r->runs));
	if (!r->runs)
		return -ENOMEM;
	for (uint32_t i = 0; i < r->n; i++) {
		struct page_want *w = &r->stages[i].want;

		r->stages[i].restore = r;
		list_init(&w->node);
		list_init(&w->call.node);
		w->wait.done = stage_done;
		w->runs = r->runs + at;
		w->n_runs = seq_group_runs(q, 0, to, groups_of(r, i), w->runs,
					   r->n_runs - at);
		at += w->n_runs;
	}
	gen_mark_writes(r->g, r->runs, r->n_runs);
	return 0;
}

static int ask_all(struct restore *r)
{
	for (uint32_t i = 0; i < r->n; i++) {
		struct restore_stage *s = &r->stages[i];
		int ret;

		s->want.prio = i < r->n_start ? WANT_STEP : WANT_NEXT;
		s->want.ahead = 1; /* what the request begins with */
		ret = page_want(pager_of(r), &s->want);
		if (ret < 0)
			return ret;
		s->asked = !ret;
		s->pinned = ret;
	}
	return 0;
}

static struct restore *restore_new(struct gen *g)
{
	const struct kv_layout *l = &g->model->layout;
	const uint32_t per_stage = stage_groups(l);
	const uint32_t n = KV_DIV_UP(l->n_groups, per_stage);
	struct restore *r;

	r = calloc(1, sizeof(*r) + n * sizeof(r->stages[0]));
	if (!r)
		return NULL;
	r->g = g;
	r->n = n;
	r->layers = per_stage * l->page_layers;
	return r;
}

int restore_begin(struct gen *g, uint64_t to)
{
	const struct kv_layout *l = &g->model->layout;
	struct restore *r;
	uint64_t ns;
	int ret;

	if (!g->tenant->serve->conf->restore_layers || g->model->gpu ||
	    stage_groups(l) >= l->n_groups || g->windowed || !g->n_computed ||
	    (!g->n_prefix && !g->n_chunk))
		return 0;
	r = restore_new(g);
	if (!r)
		return -ENOMEM;
	g->restore = r;
	ret = list_runs(r, to);
	ns = ret ? 0 : load_ns(r);
	if (ns) {
		r->n_start = cost_start(r->n, ns / r->n,
					(look_ns(g) + step_ns(g)) / r->n);
		ret = ask_all(r);
	}
	if (ret || !ns) {
		restore_drop(r);
		return ret;
	}
	g->state = GEN_WANT;
	g->pinned_to = to;
	advance(r);
	return 1;
}

/* ---- the engine's side --------------------------------------------------------------- */

static void wait_turn(struct engine_ask *a)
{
	struct restore *r = container_of(a, struct restore, ask);

	if (r->n_in < r->n) /* all before are computed */
		r->n_ahead = KV_MAX(r->n_ahead, r->i_wait * r->layers);
	if (r->g->cancelled)
		engine_answer(a, -ECANCELED);
	else if (r->i_wait < r->n_in)
		engine_answer(a, (int)r->n_in);
	else if (r->err)
		engine_answer(a, r->err);
	else
		r->waiting = 1;
}

int restore_wait(struct engine *e, struct restore *r, uint32_t layer)
{
	const uint32_t i = layer / r->layers;
	int ret;

	atomic_store_explicit(&r->layer, layer, memory_order_relaxed);
	if (i < r->n_known)
		return 0;
	r->i_wait = i;
	r->ask.run = wait_turn;
	ret = engine_ask(e, &r->ask);
	if (ret < 0)
		return ret;
	r->n_known = (uint32_t)ret;
	return 0;
}
