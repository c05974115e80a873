/*
 * gen.c - the life of a generation; see gen.h
 */
#include "kvd/serve/gen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/serve/batch.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gate.h"
#include "kvd/serve/keeper.h"
#include "kvd/serve/preload.h"
#include "kvd/serve/restore.h"
#include "kvd/serve/share.h"

#define MAX_RETRIES 64u /* each finds at least one lost segment more */
#define MAP_AHEAD   64u /* tokens pinned beyond the next row, at least */

/* ---- the end ------------------------------------------------------------ */

static void release_pins(struct gen *g)
{
	restore_drop(g->restore);
	if (g->wanting)
		page_want_cancel(g->tenant->pager, &g->want);
	g->wanting = 0;
	if (g->n_pinned)
		page_unpin(g->tenant->pager, g->runs, g->n_pinned);
	g->n_pinned = g->n_runs = 0;
	g->pinned_from = g->pinned_to = 0;
}

void gen_release(struct gen *g)
{
	g->model->queued_rows -= g->queued_rows;
	g->queued_rows = 0;
	release_pins(g);
	share_unreserve(g);
	if (g->reserved) {
		pager_unreserve(g->tenant->pager, g->reserved);
		g->tenant->n_active--;
	}
	g->reserved = 0;
}

void gen_free(struct gen *g)
{
	list_del(&g->session_node);
	repair_free(g);
	craft_free(g->craft);
	edit_free(g);
	gen_free_parts(g);
	free(g->tokens);
	free(g->parts);
	free(g->runs);
	preload_end(g);
	free(g->text);
	free(g);
}

static void fill_stats(struct gen *g)
{
	struct serve_gen_stats *st = &g->req->stats;
	const uint64_t now = clock_ns();

	st->n_prompt = g->n_prompt;
	st->n_prefix = g->n_prefix;
	st->n_chunk = g->n_chunk;
	st->n_computed = g->n_computed;
	st->n_moved = edit_n_moved(g);
	for (uint32_t i = 0; i < g->n_groups; i++)
		st->n_repaired += g->groups[i].k;
	st->queue_ns = (g->t_admit ? g->t_admit : now) - g->t_start;
	st->ttft_ns = (g->t_first ? g->t_first : now) - g->t_start;
	st->total_ns = now - g->t_start;
}

static void count_end(struct gen *g)
{
	struct serve_tenant *t = g->tenant;

	if (g->err)
		return;
	stat_add(t->st_prompt, g->n_prompt);
	stat_add(t->st_tokens, g->req->n_out);
	stat_add(t->st_prefix_tokens, g->n_prefix);
	stat_add(t->st_chunk_tokens, g->n_chunk);
	stat_add(t->st_repaired, g->req->stats.n_repaired);
	stat_add(t->st_prefix_hits, g->n_prefix ? 1 : 0);
	for (uint32_t i = 0; i < g->n_parts; i++)
		stat_add(t->st_chunk_hits, g->parts[i].found ? 1 : 0);
	stat_add(t->st_shared, share_tokens(g));
	stat_observe(t->st_ttft, g->req->stats.ttft_ns);
	if (g->n_chunk)
		keeper_used(t->serve->keeper);
	stat_add(t->st_late,
		 g->deadline_ns && g->t_first > g->deadline_ns ? 1 : 0);
}

/* Tell whoever asked, then free. On a turn of its own. */
static void end_now(struct loop_call *c)
{
	struct gen *g = container_of(c, struct gen, end_call);
	struct serve_session *ss = g->session;
	struct serve_tenant *t = g->tenant;

	if (g->counted)
		t->n_requests--;
	else if (g->req)
		t->n_uncounted--;
	list_del(&g->session_node);
	if (g->req) {
		g->req->priv = NULL;
		g->req->wait.done(&g->req->wait,
				  g->err ? g->err : (int)g->req->n_out);
		free(g->req->tokens);
		free(g->req->text);
		free(g->req->logits);
		free(g->req->used);
		g->req = NULL;
	} else if (g->put) {
		g->put->priv = NULL;
		g->put->wait.done(&g->put->wait,
				  g->err ? g->err : (int)g->n_prompt);
	}
	gen_free(g);
	tenant_kick(t);
	if (ss)
		session_request_end(ss);
	else
		serve_look_drained(t->serve);
}

static void chunk_job_end(struct gen *g);

void gen_end(struct gen *g, int err)
{
	if (g->state == GEN_END)
		return;
	list_del(&g->waiter.node);
	preload_end(g);
	list_del(&g->node);
	gen_release(g);
	g->state = GEN_END;
	g->err = err;
	if (g->req) {
		g->req->text = g->text; /* what there is, cancelled or not */
		g->text = NULL;
		fill_stats(g);
		count_end(g);
	}
	if (!g->session)
		chunk_job_end(g);
	gen_unplan(g);
	tenant_kick(g->tenant);
	g->end_call.run = end_now;
	loop_defer(g->tenant->serve->loop, &g->end_call);
}

/* ---- chunks -------------------------------------------------------------- */

struct gen *gen_new(struct serve_tenant *t, struct serve_model *m)
{
	struct gen *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->tenant = t;
	g->model = m;
	g->t_start = clock_ns();
	list_init(&g->node);
	list_init(&g->session_node);
	list_init(&g->waiter.node);
	list_init(&g->chunk_waiters);
	list_init(&g->end_call.node);
	g->state = GEN_CHUNKS;
	list_init(&g->want.node);
	list_init(&g->want.call.node);
	return g;
}

/* A chunk that g waits for is there, or failed. */
static void part_ready(struct gen_part *part, struct segment *s, int err)
{
	struct gen *g = part->gen;

	if (s) {
		segment_get(s);
		part->seg = s;
	}
	if (err) {
		gen_end(g, err);
		return;
	}
	if (!--g->n_missing)
		gen_resume(g);
}

/* The job's segment goes into the table and to who waits. */
static void chunk_job_end(struct gen *g)
{
	struct segment *s = NULL;
	struct list *n;

	if (!g->err) {
		const struct gen_part *p = &g->parts[g->n_parts - 1];

		seq_seal(&g->seq);
		s = g->seq.entries[g->seq.n_entries - 1].seg;
		s->tokens = malloc(p->n * sizeof(*s->tokens));
		if (s->tokens) {
			memcpy(s->tokens, g->tokens + p->first,
			       p->n * sizeof(*s->tokens));
			(void)chunk_add(&g->tenant->chunks, s,
					p->chunk); /* else not kept */
			range_cost(s->range, gen_compute_cost(g));
			if (g->tenant->persist)
				persist_add(g->tenant->persist, s);
		}
	}
	while ((n = list_pop(&g->chunk_waiters)))
		part_ready(list_entry(n, struct gen_part, waiting), s, g->err);
}

static struct gen *find_chunk_job(struct serve_tenant *t, struct map_id id)
{
	list_for_each(n, &t->chunk_jobs) {
		struct gen *g = list_entry(n, struct gen, session_node);

		if (g->state != GEN_END &&
		    map_id_equal(g->parts[g->n_parts - 1].chunk, id))
			return g;
	}
	return NULL;
}

static struct gen *new_chunk_job(struct gen *waiter, struct gen_part *part)
{
	const uint32_t n_before = ape_n_before(waiter, part);
	const uint32_t n_shared = n_before ? waiter->parts[n_before].first : 0;
	struct gen *g = gen_new(waiter->tenant, waiter->model);

	if (!g)
		return NULL;
	g->n_parts = n_before + 1;
	g->parts = calloc(g->n_parts, sizeof(*g->parts));
	g->tokens = malloc((n_shared + part->n + 1) * sizeof(*g->tokens));
	if (!g->parts || !g->tokens) {
		gen_free(g);
		return NULL;
	}
	memcpy(g->tokens, waiter->tokens, n_shared * sizeof(*g->tokens));
	memcpy(g->tokens + n_shared, waiter->tokens + part->first,
	       part->n * sizeof(*g->tokens));
	for (uint32_t i = 0; i <= n_before; i++) {
		struct gen_part *p = &g->parts[i];

		p->first = i < n_before ? waiter->parts[i].first : n_shared;
		p->n = i < n_before ? waiter->parts[i].n : part->n;
		p->gen = g;
		list_init(&p->waiting);
	}
	g->parts[n_before].chunk = part->chunk;
	g->n_prompt = g->n_all = n_shared + part->n;
	list_push(&waiter->tenant->chunk_jobs, &g->session_node);
	return g;
}

/* They stand as the request does that wants them. */
static void place_chunks(struct gen *g)
{
	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct gen_part *p = &g->parts[i];
		struct gen *job = list_empty(&p->waiting)
					  ? NULL
					  : find_chunk_job(g->tenant, p->chunk);

		if (job)
			line_follow(job, g);
	}
}

static int gen_retry(struct waiter *w);

int gen_start_chunk(struct gen *waiter, struct gen_part *part)
{
	struct gen *g = find_chunk_job(waiter->tenant, part->chunk);

	if (!g) {
		g = new_chunk_job(waiter, part);
		if (!g)
			return -ENOMEM;
		g->state = GEN_ADMIT;
		g->waiter.retry = gen_retry;
		g->waiter.since_ns = waiter->t_start;
		tenant_wait(waiter->tenant, &g->waiter);
		tenant_kick(waiter->tenant);
	}
	list_push(&g->chunk_waiters, &part->waiting);
	return 0;
}

/* ---- memory ------------------------------------------------------------- */

static uint64_t seq_bytes(struct gen *g, uint64_t from, uint64_t to)
{
	uint64_t bytes = 0;
	const uint32_t n = seq_runs(&g->seq, from, to, UINT32_MAX, NULL, 0);
	struct page_run runs[n + 1];

	seq_runs(&g->seq, from, to, UINT32_MAX, runs, n);
	for (uint32_t i = 0; i < n; i++)
		bytes += runs[i].n * range_page_bytes(runs[i].range);
	return bytes;
}

/* What the rows of one step and a window need, for a sequence over budget. */
static uint64_t windowed_bytes(struct gen *g)
{
	const struct kv_layout *l = &g->model->layout;
	const uint64_t rows = 2 * kv_layout_bytes(l, l->page_tokens);
	const uint64_t half = pager_memory_bytes(g->tenant->pager) / 2;

	g->window_bytes = KV_MAX(half > rows ? half - rows : 0, l->page_bytes);
	return rows + g->window_bytes;
}

/* Reserve what is needed: 0, -EAGAIN wait, or never. */
static int gen_reserve(struct gen *g)
{
	uint64_t bytes = seq_bytes(g, 0, g->seq.n_tokens), others;
	int ret = share_bytes(g, &others);

	g->windowed = 0;
	if (ret)
		return ret;
	bytes -= others;
	ret = pager_reserve(g->tenant->pager, bytes);
	if (ret == -ENOSPC && others) /* no windows over what is lent */
		return -EXDEV;
	/* windows are of the CPU's lanes only */
	if (ret == -ENOSPC && !g->model->gpu && !(g->req && g->req->repair)) {
		g->windowed = 1;
		bytes = windowed_bytes(g);
		ret = pager_reserve(g->tenant->pager, bytes);
	}
	if (ret)
		return ret;
	/* last: what is given back wakes who waits, who would try again */
	ret = others ? share_reserve(g) : 0;
	if (ret) {
		pager_unreserve(g->tenant->pager, bytes);
		return ret;
	}
	g->reserved = bytes;
	g->tenant->n_active++;
	return 0;
}

/* Positions [*from, *to) of the page, in its segment, that holds pos. */
static void page_of(const struct gen *g, uint64_t pos, uint64_t *from,
		    uint64_t *to)
{
	const uint32_t n = g->model->layout.page_tokens;
	const struct seq_entry *e = g->seq.entries;
	uint64_t first;

	while (pos >= (uint64_t)e->pos + e->n)
		e++;
	first = (e->from + pos - (uint64_t)e->pos) / n * n;
	*to = (uint64_t)e->pos + KV_MIN(first + n - e->from, e->n);
	*from = (uint64_t)e->pos + (first > e->from ? first - e->from : 0);
}

static int room_for_runs(struct gen *g, uint32_t n)
{
	struct page_run *r;

	if (n <= g->n_runs_room)
		return 0;
	r = realloc(g->runs, 2 * n * sizeof(*r));
	if (!r)
		return -ENOMEM;
	g->runs = r;
	g->n_runs_room = 2 * n;
	return 0;
}

void gen_mark_writes(struct gen *g, struct page_run *runs, uint32_t n)
{
	for (uint32_t i = 0; i < g->seq.n_entries; i++) {
		const struct seq_entry *e = &g->seq.entries[i];
		const struct range *r = g->owned[i] ? e->seg->range
					: e->patch  ? e->patch->range
						    : NULL;

		for (uint32_t j = 0; j < n && r; j++)
			if (runs[j].range == r)
				runs[j].flags = PAGE_WRITE;
	}
}

static void keep(struct gen *g)
{
	g->n_pinned = g->n_runs;
	g->pinned_to = g->want_to;
	if (g->req)
		g->req->stats.n_read_back += g->want.n_read;
	g->want.n_read = 0;
}

void gen_pages_in(struct gen *g)
{
	g->state = GEN_READY;
	batch_add(g);
}

void gen_pages_failed(struct gen *g, int err)
{
	g->state = GEN_ADMIT; /* nothing of the want is left */
	if ((err == -EBADMSG || err == -EIO) && !g->pos &&
	    g->n_retries++ < MAX_RETRIES) {
		log_warn("gen", "%s: %s: computing again",
			 g->tenant->conf->name,
			 err == -EIO ? "pages not read, or no room made"
				     : "stored pages are damaged");
		gen_release(g);
		for (uint32_t i = 0; i < g->n_parts; i++)
			g->parts[i].found = 0; /* it may turn out otherwise */
		gen_unplan(g);
		gen_resume(g);
		return;
	}
	gen_end(g, err);
}

static void want_done(struct wait *w, int ret)
{
	struct gen *g = container_of(container_of(w, struct page_want, wait),
				     struct gen, want);

	g->wanting = 0;
	if (!ret)
		keep(g);
	else
		g->n_runs = g->n_pinned;
	if (g->state != GEN_WANT)
		return; /* ahead of the need; what failed is asked for again */
	if (!ret)
		gen_pages_in(g);
	else
		gen_pages_failed(g, ret);
}

/* Pin [from, to) beyond what is pinned: 1 done, 0 want_done() follows, -errno. */
static int ask(struct gen *g, uint64_t from, uint64_t to)
{
	struct page_run *runs;
	uint32_t n;
	int ret;

	n = seq_runs(&g->seq, from, to, UINT32_MAX, NULL, 0);
	if (room_for_runs(g, g->n_pinned + n))
		return -ENOMEM;
	runs = g->runs + g->n_pinned;
	seq_runs(&g->seq, from, to, UINT32_MAX, runs, n);
	gen_mark_writes(g, runs, n);
	g->n_runs = g->n_pinned + n;
	g->want_to = to;
	g->want.runs = runs;
	g->want.n_runs = n;
	g->want.wait.done = want_done;
	/* nor does an append wait for what the request begins with */
	g->want.ahead = g->state != GEN_WANT || (!g->n_pinned && !g->windowed);
	ret = n ? page_want(g->tenant->pager, &g->want) : 1;
	g->wanting = !ret;
	if (ret > 0)
		keep(g);
	else if (ret < 0)
		g->n_runs = g->n_pinned;
	return ret;
}

/* The next step needs [from, to): ready when it is pinned. */
static void want_pages(struct gen *g, uint64_t from, uint64_t to)
{
	int ret;

	g->state = GEN_WANT;
	if (g->wanting) { /* on their way */
		page_want_waits(&g->want);
		return;
	}
	ret = ask(g, from, to);
	if (ret > 0)
		gen_pages_in(g);
	else if (ret < 0)
		gen_pages_failed(g, ret);
}

/* End of the rows that the next step may compute. */
static uint64_t next_to(const struct gen *g)
{
	const uint64_t to =
		KV_MAX((uint64_t)g->n_prompt, (uint64_t)g->pos + 1) + MAP_AHEAD;

	return KV_MIN(to, g->seq.n_tokens);
}

/* The first step: by layers, where that pays. */
static void want_first(struct gen *g)
{
	const int ret = restore_begin(g, next_to(g));

	if (ret < 0)
		gen_pages_failed(g, ret);
	else if (!ret)
		want_pages(g, 0, next_to(g));
}

/* Have pinned what the next step needs, then be ready. */
static void gen_want_next(struct gen *g)
{
	uint64_t from, to;
	uint32_t pos;

	if (g->windowed) {
		if (!gen_next_rows(g, g->pos, 1, &pos))
			pos = g->pos;
		release_pins(g);
		page_of(g, pos, &from, &to);
		want_pages(g, from, to);
		g->pinned_from = from;
	} else if (g->pinned_to < g->seq.n_tokens &&
		   g->pos + 1 > g->pinned_to) {
		/* run borders are page borders: re-pinning a page is counted */
		want_pages(g, g->pinned_to, next_to(g));
	} else {
		/* in time: a decode that waits for pages misses steps */
		if (g->pinned_to < g->seq.n_tokens && !g->wanting &&
		    !g->restore && g->pos + 1 + MAP_AHEAD / 2 > g->pinned_to)
			(void)ask(g, g->pinned_to, next_to(g));
		gen_pages_in(g);
	}
}

/* ---- admission ------------------------------------------------------------ */

void gen_count(struct gen *g)
{
	g->tenant->n_uncounted--;
	g->tenant->n_requests++;
	g->counted = 1;
}

static int gen_admit(struct gen *g)
{
	struct serve_tenant *t = g->tenant;
	int ret;

	if (g->req && !g->counted) {
		if (t->n_requests >= t->conf->max_requests)
			return -EBUSY;
		gen_count(g);
	}
	ret = gen_build_seq(g);
	if (ret == -EDQUOT && tenant_frees(t))
		ret = -EAGAIN;
	if (!ret)
		ret = gen_reserve(g);
	if (ret == -EAGAIN || ret == -EBUSY) {
		struct gen_part *p = g->parts;

		/* the list is built anew; chunks found stay referenced */
		for (uint32_t i = 0; i < g->n_parts; i++)
			if (p[i].seg)
				segment_get(p[i].seg);
		struct segment *kept[g->n_parts];
		for (uint32_t i = 0; i < g->n_parts; i++)
			kept[i] = p[i].seg;
		gen_unplan(g);
		for (uint32_t i = 0; i < g->n_parts; i++)
			p[i].seg = kept[i];
	}
	return ret;
}

/* Room for what comes out: not before, as any number of requests may wait. */
static int room_for_out(struct gen *g)
{
	struct serve_gen *r = g->req;
	const uint32_t n = r->flags & SERVE_GEN_SCORE
				   ? g->parts[g->n_parts - 1].n
				   : g->max_tokens;
	uint32_t *t;

	if (r->tokens) /* it began before */
		return 0;
	t = realloc(g->tokens,
		    ((size_t)g->n_prompt + g->max_tokens + 1) * sizeof(*t));
	if (!t)
		return -ENOMEM;
	g->tokens = t;
	g->text = calloc(1, 64);
	g->n_text_room = g->text ? 64 : 0;
	r->tokens = calloc((size_t)n + 1, sizeof(*r->tokens));
	return g->text && r->tokens ? 0 : -ENOMEM;
}

void gen_alone(struct gen *g)
{
	list_del(&g->waiter.node);
	preload_end(g);
	g->alone = 1;
	for (uint32_t i = 0; i < g->n_parts; i++)
		g->parts[i].found = 0; /* it may turn out otherwise */
	gen_unplan(g);
	gen_resume(g);
}

static int gen_retry(struct waiter *w)
{
	struct gen *g = container_of(w, struct gen, waiter);
	int ret = -ECANCELED; /* a chunk that nobody waits for any more */

	if (g->session || !list_empty(&g->chunk_waiters))
		ret = gen_admit(g);
	if (ret == -EAGAIN || ret == -EBUSY)
		return ret;
	if (!ret && g->req)
		ret = room_for_out(g);
	list_del(&g->waiter.node);
	preload_end(g);
	if (ret == -EXDEV) { /* others have no memory for it now */
		gen_alone(g);
		return 0;
	}
	if (ret) {
		gen_end(g, ret);
		return 0;
	}
	g->t_admit = clock_ns();
	g->queued_rows = g->req ? g->n_computed : g->n_prompt;
	g->model->queued_rows += g->queued_rows;
	if (g->windowed)
		gen_want_next(g);
	else
		want_first(g);
	return 0;
}

/* All chunks are there, or it begins (again). */
void gen_resume(struct gen *g)
{
	int ret;

	if (g->cancelled) {
		gen_end(g, -ECANCELED);
		return;
	}
	g->state = GEN_CHUNKS;
	if (gate_holds(g))
		return;
	ret = gen_plan(g);
	if (ret == -EAGAIN) {
		place_chunks(g);
		return;
	}
	if (ret || g->put) {
		gen_end(g, ret);
		return;
	}
	g->state = GEN_ADMIT;
	g->waiter.retry = gen_retry;
	g->waiter.since_ns = g->session ? g->t_start : g->waiter.since_ns;
	line_stand(g);
	tenant_wait(g->tenant, &g->waiter);
	tenant_kick(g->tenant);
}

/* ---- steps ------------------------------------------------------------------ */

/* The part that holds position pos. */
static const struct gen_part *part_at(const struct gen *g, uint32_t pos)
{
	uint32_t i = 0;

	while (i + 1 < g->n_parts && g->parts[i].first + g->parts[i].n <= pos)
		i++;
	return &g->parts[i];
}

uint32_t gen_next_rows(const struct gen *g, uint32_t from, uint32_t max,
		       uint32_t *pos)
{
	uint64_t limit = g->n_all, begin;

	while (from < g->n_prompt) {
		const struct gen_part *p = part_at(g, from);
		const uint32_t end = p->first + p->n;

		if (!p->reuse && from >= p->first + p->n_found) {
			limit = KV_MIN(limit, end);
			break;
		}
		if (p->group) {
			uint32_t off = from - p->first, n;

			if (!p->group->chosen || focus_holds(g, from)) {
				/* after a probe */
				*pos = from;
				return 0;
			}
			n = repair_rows(g, p, &off);
			if (n) {
				from = p->first + off;
				limit = from + n;
				break;
			}
			from = end;
			continue;
		}
		from = p->reuse ? end : p->first + p->n_found;
	}
	*pos = from;
	if (from >= limit)
		return 0;
	if (g->windowed) { /* the rows of one page at a time */
		page_of(g, from, &begin, &limit);
		limit = KV_MIN(limit, g->n_all);
		if (from < g->n_prompt)
			limit = KV_MIN(limit, g->n_prompt);
	}
	return (uint32_t)KV_MIN((uint64_t)max, limit - from);
}

const struct gen_part *gen_patched_part(const struct gen *g, uint32_t pos)
{
	const struct gen_part *p = part_at(g, pos);

	return p->group && pos < g->n_prompt ? p : NULL;
}

int gen_wants_logits(const struct gen *g, uint32_t pos)
{
	const struct gen_part *last = &g->parts[g->n_parts - 1];

	if (!g->req)
		return 0;
	if (g->req->flags & SERVE_GEN_SCORE)
		return pos + 1 >= last->first && pos + 1 < g->n_prompt;
	return pos + 1 == g->n_all;
}

void gen_step_done(struct gen *g, const float *logits, int ret)
{
	int ended = 0;

	g->state = GEN_READY;
	if (g->req)
		g->req->stats.n_read_back += g->n_window_read;
	g->n_window_read = 0;
	if (g->restore) {
		ret = restore_stepped(g, ret);
		if (ret && !g->cancelled) {
			gen_pages_failed(g, ret);
			return;
		}
	}
	if (!ret && g->cancelled)
		ret = -ECANCELED;
	if (ret) {
		gen_end(g, ret);
		return;
	}
	if (!g->req) {
		uint32_t pos;

		if (!gen_next_rows(g, g->pos, 1, &pos)) {
			gen_end(g, 0);
			return;
		}
	} else if (g->req->flags & SERVE_GEN_SCORE) {
		ended = gen_take_scores(g, logits);
	} else if (g->n_step_logits) {
		ended = gen_take_token(g, logits);
	}
	if (!ended)
		gen_want_next(g);
}
