/*
 * measure.c - fresh chunks become variants: what they look at, after the answer
 *
 * A measure has a fork of the request's list, and the queries. It begins when the
 * engine has nothing to do (or after PATIENCE_NS), pins the list under a reservation of its
 * own, which it only takes when nobody stands in line for one, and goes as many layers
 * at a time as QUANTUM_NS holds; steps come in between. One runs at a time. It must keep up
 * with the requests: a chunk whose measure waits is computed again by whoever asks. One that
 * waits is dropped when its segments are all that keeps a request from its room.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/batch.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"

#define PAUSE_NS    1000000u
#define PATIENCE_NS 20000000u /* busy engine: then layers all the same */
#define QUANTUM_NS  5000000u /* a layer at least */
#define GIVE_UP_NS  20000000000u /* no memory so long: not kept */

struct measure {
	struct list node;
	struct serve_tenant *tenant;
	struct serve_model *model;
	struct seq seq;
	struct craft *craft;
	struct page_want want;
	uint64_t reserved;
	int pinned, wanting;
	uint32_t layer;
	uint64_t since_ns;
	int ret;
};

struct measures {
	struct serve *serve;
	struct list list; /* the first is the one that runs, or is next */
	struct engine_job job;
	int running; /* the job */
	struct loop_timer timer;
	struct stat *st_n, *st_ns, *st_dropped;
};

static void release(struct measure *m)
{
	struct serve_tenant *t = m->tenant;

	list_del(&m->node);
	if (m->wanting)
		page_want_cancel(t->pager, &m->want);
	if (m->pinned)
		page_unpin(t->pager, m->want.runs, m->want.n_runs);
	if (m->reserved) {
		pager_unreserve(t->pager, m->reserved);
		t->n_active--;
	}
	seq_fini(&m->seq);
	craft_free(m->craft);
	free(m->want.runs);
	free(m);
	tenant_kick(t);
}

static void drop(struct measures *ms, struct measure *m)
{
	release(m);
	serve_look_drained(ms->serve);
}

/* ---- the end: variants ------------------------------------------------------- */

static struct segment *segment_at(const struct measure *m, uint32_t pos,
				  uint32_t n)
{
	for (uint32_t i = 0; i < m->seq.n_entries; i++) {
		const struct seq_entry *e = &m->seq.entries[i];

		if (e->pos == pos && e->n == n && !e->from && !e->patch &&
		    e->seg->n_tokens == n && e->seg->tokens &&
		    !e->seg->is_chunk && !e->seg->n_indexed && !e->seg->variant)
			return e->seg;
	}
	return NULL;
}

/* The sums over parts, as those over the chunks before it. */
static struct variant *new_variant(const struct craft *c,
				   const struct craft_part *cp,
				   const struct inter_part *p)
{
	const struct inter *x = c->inter;
	struct variant *v = variant_new(cp->n_before, p->n);
	uint32_t tokens[VARIANT_MAX_PREFIX + 1], n = 0;

	if (!v)
		return NULL;
	for (const struct inter_part *o = x->parts; o < p; o++)
		if (o->is_chunk) {
			tokens[n] = o->n;
			v->inter[n++] = (float)p->inter[o - x->parts];
		}
	assert(n == cp->n_before);
	memcpy(v->prefix, c->before, n * sizeof(*v->prefix));
	memcpy(v->score, p->score, p->n * sizeof(*v->score));
	v->chunk = cp->chunk;
	v->ctx = cp->ctx;
	v->frame = cp->frame;
	v->depth = cp->depth;
	v->cci = variant_cci(
		&(struct variant_sums){ v->inter, tokens, (float)p->intra }, n,
		p->n);
	return v;
}

static const struct craft_part *part_of(const struct craft *c, uint32_t row)
{
	uint32_t i = 0;

	while (c->parts[i].kind != CRAFT_FRESH || c->parts[i].row != row)
		i++;
	return &c->parts[i];
}

static void keep(struct measure *m)
{
	const struct inter *x = m->craft->inter;
	struct serve_tenant *t = m->tenant;

	for (uint32_t i = 0; i < x->n_parts; i++) {
		const struct inter_part *p = &x->parts[i];
		struct segment *s;
		struct variant *v;

		s = p->measured ? segment_at(m, p->first, p->n) : NULL;
		v = s ? new_variant(m->craft, part_of(m->craft, p->row), p)
		      : NULL;
		if (v && !variant_add(&t->variants, s, v) && t->persist)
			persist_add(t->persist, s);
	}
}

/* ---- layers -------------------------------------------------------------------- */

static void look(struct measures *ms, uint64_t delay_ns)
{
	loop_timer_set(ms->serve->loop, &ms->timer, clock_ns() + delay_ns);
}

static struct measure *first_of(const struct measures *ms)
{
	const struct list *n = list_first((struct list *)&ms->list);

	return n ? list_entry(n, struct measure, node) : NULL;
}

static void run_layers(struct engine_job *j, struct pool *pool)
{
	struct measures *ms = container_of(j, struct measures, job);
	struct measure *m = first_of(ms);
	struct lane *lane = &ms->serve->lanes[LANE_RESIDENT];
	const struct attn_place at = {
		.pool = pool,
		.scratch = &lane->scratch,
		.gpu = lane->gpu ? gpu_lane_attn(lane->gpu) : NULL,
	};
	const uint64_t begin_ns = clock_ns();
	uint64_t now_ns = begin_ns, layer_ns;

	do {
		layer_ns = now_ns;
		m->ret = inter_layer(m->craft->inter, &at, &m->seq, m->layer++);
		now_ns = clock_ns();
		stat_observe(ms->st_ns, now_ns - layer_ns);
	} while (!m->ret && m->layer < m->model->layout.n_layers &&
		 now_ns - begin_ns < QUANTUM_NS);
}

static void layers_done(struct engine_job *j)
{
	struct measures *ms = container_of(j, struct measures, job);
	struct measure *m = first_of(ms);

	ms->running = 0;
	if (!m->ret && m->layer < m->model->layout.n_layers) {
		look(ms, 0);
		return;
	}
	if (!m->ret)
		keep(m);
	stat_add(m->ret ? ms->st_dropped : ms->st_n, 1);
	drop(ms, m);
	if (first_of(ms))
		look(ms, 0);
}

static void wanted(struct wait *w, int ret)
{
	struct measure *m = container_of(
		container_of(w, struct page_want, wait), struct measure, want);
	struct measures *ms = m->tenant->serve->measures;

	m->wanting = 0;
	m->pinned = !ret;
	if (ret) {
		stat_add(ms->st_dropped, 1);
		drop(ms, m);
	}
	look(ms, 0);
}

static uint64_t list_runs(struct measure *m)
{
	const uint32_t n =
		seq_runs(&m->seq, 0, m->seq.n_tokens, UINT32_MAX, NULL, 0);
	uint64_t bytes = 0;

	m->want.runs = calloc(n, sizeof(*m->want.runs));
	if (!m->want.runs)
		return 0;
	m->want.n_runs = seq_runs(&m->seq, 0, m->seq.n_tokens, UINT32_MAX,
				  m->want.runs, n);
	for (uint32_t i = 0; i < n; i++)
		bytes += m->want.runs[i].n *
			 range_page_bytes(m->want.runs[i].range);
	return bytes;
}

/* Pins: 1 it has them, 0 later. */
static int pin(struct measures *ms, struct measure *m)
{
	struct pager *pager = m->tenant->pager;
	const uint64_t bytes = m->want.runs ? 0 : list_runs(m);
	int ret;

	if (m->pinned || m->wanting)
		return m->pinned;
	ret = !list_empty(&m->tenant->waiting) ? -EAGAIN
	      : bytes			       ? pager_reserve(pager, bytes)
					       : -ENOMEM;
	if (ret) {
		if (list_empty(&m->tenant->waiting))
			pager_reserve_forget(pager);
		free(m->want.runs);
		m->want.runs = NULL;
		if (ret != -EAGAIN || clock_ns() - m->since_ns > GIVE_UP_NS) {
			stat_add(ms->st_dropped, 1);
			drop(ms, m);
		} else { /* those of other tenants need not wait for it */
			list_del(&m->node);
			list_push(&ms->list, &m->node);
		}
		look(ms, PAUSE_NS);
		return 0;
	}
	m->reserved = bytes;
	m->tenant->n_active++;
	m->want.prio = WANT_NEXT;
	m->want.wait.done = wanted;
	ret = page_want(pager, &m->want);
	m->pinned = ret > 0;
	m->wanting = !ret;
	if (ret >= 0)
		return m->pinned;
	stat_add(ms->st_dropped, 1);
	drop(ms, m);
	look(ms, 0);
	return 0;
}

static void turn(struct loop_timer *timer)
{
	struct measures *ms = container_of(timer, struct measures, timer);
	struct measure *m = first_of(ms);

	if (!m || ms->running)
		return;
	if (!batch_idle(ms->serve->lanes[LANE_RESIDENT].batch) &&
	    clock_ns() - m->since_ns < PATIENCE_NS) {
		look(ms, PAUSE_NS);
		return;
	}
	if (!pin(ms, m))
		return;
	ms->running = 1;
	ms->job.run = run_layers;
	ms->job.done = layers_done;
	engine_start(ms->serve->lanes[LANE_RESIDENT].engine, &ms->job);
}

void measures_look(struct measures *ms)
{
	if (ms && first_of(ms) && !ms->running)
		turn(&ms->timer);
}

/* ---- begin, end -------------------------------------------------------------------- */

/* Segments of fresh chunks get their tokens; where the last of them ends. */
static uint32_t name_segments(struct gen *g)
{
	uint32_t end = 0;

	for (uint32_t i = 0; i < g->seq.n_entries; i++) {
		const struct seq_entry *e = &g->seq.entries[i];
		uint32_t k = 0;

		while (k < g->n_parts &&
		       (g->parts[k].first != e->pos || g->parts[k].n != e->n))
			k++;
		if (k == g->n_parts || !craft_fresh(g, &g->parts[k]) ||
		    !e->seg->sealed || e->seg->tokens)
			continue;
		e->seg->tokens = malloc(e->n * sizeof(*e->seg->tokens));
		if (!e->seg->tokens)
			continue;
		memcpy(e->seg->tokens, g->tokens + e->pos,
		       e->n * sizeof(*e->seg->tokens));
		end = (uint32_t)e->pos + e->n;
	}
	return end;
}

void craft_keep(struct gen *g)
{
	struct measures *ms = g->tenant->serve->measures;
	struct measure *m;
	uint32_t end;

	if (!g->craft || !g->craft->inter || g->windowed || ms->serve->draining)
		return;
	end = name_segments(g);
	m = end ? calloc(1, sizeof(*m)) : NULL;
	if (!m)
		return;
	m->tenant = g->tenant;
	m->model = g->model;
	m->since_ns = clock_ns();
	list_init(&m->node);
	list_init(&m->want.node);
	list_init(&m->want.call.node);
	seq_init(&m->seq, g->tenant->pool, &g->model->layout,
		 SERVE_SEGMENT_TOKENS);
	if (seq_fork(&m->seq, &g->seq)) {
		seq_fini(&m->seq);
		free(m);
		return;
	}
	seq_truncate(&m->seq, end);
	m->craft = g->craft;
	g->craft = NULL;
	list_push(&ms->list, &m->node);
	if (!ms->running)
		look(ms, 0);
}

int measures_drain(struct measures *ms)
{
	if (!ms || !ms->serve->draining)
		return 1;
	list_for_each_safe(n, &ms->list) {
		struct measure *m = list_entry(n, struct measure, node);

		if (!ms->running || m != first_of(ms))
			release(m);
	}
	return !ms->running;
}

int measures_give_up(struct measures *ms, const struct serve_tenant *t)
{
	struct measure *last = NULL;

	if (!ms)
		return 0;
	list_for_each(n, &ms->list) {
		struct measure *m = list_entry(n, struct measure, node);

		if (m->tenant == t && !m->reserved)
			last = m;
	}
	if (!last)
		return 0;
	stat_add(ms->st_dropped, 1);
	release(last);
	return 1;
}

void measures_check(const struct measures *ms, const struct serve_tenant *t,
		    uint32_t *n_active, uint64_t *reserved)
{
	list_for_each(n, (struct list *)&ms->list) {
		const struct measure *m = list_entry(n, struct measure, node);

		seq_check(&m->seq);
		if (m->tenant != t)
			continue;
		*n_active += !!m->reserved;
		*reserved += m->reserved;
	}
}

int measures_new(struct measures **out, struct serve *s)
{
	struct measures *ms = calloc(1, sizeof(*ms));

	if (!ms)
		return -ENOMEM;
	ms->serve = s;
	list_init(&ms->list);
	list_init(&ms->timer.node);
	ms->timer.run = turn;
	ms->st_n = stat_get(STAT_COUNTER, "kvd_variants_measured_total",
			    "Requests whose new chunks became variants", NULL,
			    NULL, 1);
	ms->st_dropped = stat_get(STAT_COUNTER, "kvd_variants_dropped_total",
				  "Requests whose new chunks did not", NULL,
				  NULL, 1);
	ms->st_ns = stat_get(STAT_HISTOGRAM, "kvd_variants_layer_seconds",
			     "Time of the engine for a layer of it", NULL, NULL,
			     1e-9);
	*out = ms;
	return 0;
}

void measures_free(struct measures *ms)
{
	struct measure *m;

	if (!ms)
		return;
	while (ms->running)
		if (loop_turn(ms->serve->loop, 10) < 0)
			break;
	while ((m = first_of(ms)))
		release(m);
	loop_timer_cancel(ms->serve->loop, &ms->timer);
	free(ms);
}
