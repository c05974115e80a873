/*
 * attend.c - append and attention calls of clients with their own weights
 *
 * A call goes in rounds. Normally one: all items, all their pages pinned. When
 * that is more than the budget, item by item; when one item alone is more, the rows of
 * one page at a time, with what lies before them in windows (attn.h). The
 * results are the same bits.
 *
 *   serve_attend -> EVENTS -> LINE --reserved--> WANT --pinned--> JOB --more--> WANT
 *                                                                  +--none--> told
 *
 * EVENTS: what the clients' events stand for is waited for before anything that others
 * share is taken, and not for ever: a call on the engine waits for no client.
 *
 * Thread: loop thread; in JOB the engine uses items, sequences do not change
 * (n_busy keeps every other call away).
 */
#include "kvd/serve/attend_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void round_begin(struct attend *a);

/* ---- items ---------------------------------------------------------------- */

void attend_fail(struct attend *a, uint32_t i, int err)
{
	struct attend_item *it = &a->items[i];

	a->req->items[i].res = err;
	if (!it->s)
		return;
	if (a->req->items[i].buffer)
		buffer_let_go(a->ss, a->req->items[i].buffer);
	attend_ungrow(it);
	it->s->n_busy--;
	it->s = NULL;
}

static void prefetch(const struct attend *a, const struct segment *s,
		     uint32_t from, uint32_t to)
{
	struct page_run run;

	segment_pages(s, from, to, &run);
	if (run.n)
		page_prefetch(a->ss->tenant->pager, &run, 1);
}

/* Frames for the tokens that come next, before an append waits for one. */
static void map_ahead(struct attend *a, struct seq *q, uint64_t max_tokens)
{
	const struct segment *s = seq_open_segment(q);
	const uint64_t left = max_tokens - q->n_tokens;
	const uint32_t page = q->layout.page_tokens;
	uint32_t room;

	if (!s || a->req->layer + 1 != q->layout.n_layers)
		return;
	room = s->cap_tokens - s->n_tokens;
	prefetch(a, s, s->n_tokens, s->n_tokens + KV_MIN(page, room));
	if (room >= page || left <= room)
		return;
	s = seq_open_ahead(
		q, (uint32_t)KV_MIN(left - room, SERVE_SEGMENT_TOKENS / 4));
	if (s)
		prefetch(a, s, 0, KV_MIN(page, s->cap_tokens));
}

static void item_done(struct attend *a, uint32_t i)
{
	struct attend_item *it = &a->items[i];
	const struct serve_attend_item *r = &a->req->items[i];

	if (r->k)
		it->s->layer_tokens[a->req->layer] =
			r->pos + r->n_tokens == it->s->hole_end
				? it->s->seq.n_tokens
				: r->pos + r->n_tokens;
	if (r->k)
		map_ahead(a, &it->s->seq, it->s->max_tokens);
	a->req->items[i].res = 0;
	if (r->buffer)
		buffer_let_go(a->ss, r->buffer);
	it->s->n_busy--;
	it->s = NULL;
}

/* ---- memory of calls: kept, so that there is none to allocate in the long run */

#define KEPT_CALLS 64u
#define KEPT_RUNS  4096u

static void attend_free(struct attend *a)
{
	free(a->items);
	free(a->work);
	free(a->work_item);
	free(a->runs);
	free(a);
}

static void attend_put(struct serve *s, struct attend *a)
{
	if (s->n_free_attends == KEPT_CALLS || a->n_room > KEPT_RUNS) {
		attend_free(a);
		return;
	}
	s->n_free_attends++;
	list_push_front(&s->free_attends, &a->node);
}

void attend_free_all(struct serve *s)
{
	struct list *n;

	while ((n = list_pop(&s->free_attends)))
		attend_free(list_entry(n, struct attend, node));
	s->n_free_attends = 0;
}

static int items_room(struct attend *a, uint32_t n)
{
	if (n <= a->n_items_room)
		return 0;
	free(a->items);
	free(a->work);
	free(a->work_item);
	a->items = malloc(n * sizeof(*a->items));
	a->work = malloc(n * sizeof(*a->work));
	a->work_item = malloc(n * sizeof(*a->work_item));
	a->n_items_room = a->items && a->work && a->work_item ? n : 0;
	return a->n_items_room ? 0 : -ENOMEM;
}

/* One with room for n items, all else zero; -ENOMEM. */
static int attend_get(struct serve *s, uint32_t n, struct attend **out)
{
	struct list *l = list_pop(&s->free_attends);
	struct attend *a, was = { 0 };

	if (l) {
		a = list_entry(l, struct attend, node);
		was = *a;
		s->n_free_attends--;
	} else {
		a = malloc(sizeof(*a));
		if (!a)
			return -ENOMEM;
	}
	*a = (struct attend){ .items = was.items,
			      .work = was.work,
			      .work_item = was.work_item,
			      .n_items_room = was.n_items_room,
			      .runs = was.runs,
			      .n_room = was.n_room };
	if (items_room(a, n)) {
		attend_free(a);
		return -ENOMEM;
	}
	memset(a->items, 0, n * sizeof(*a->items));
	*out = a;
	return 0;
}

/* ---- end ------------------------------------------------------------------ */

static void uncount(struct attend *a)
{
	if (a->counted)
		a->ss->tenant->n_requests--;
	else
		a->ss->tenant->n_uncounted--;
}

static void tell(struct loop_call *c)
{
	struct attend *a = container_of(c, struct attend, call);
	struct serve_session *ss = a->ss;
	struct serve_attend *r = a->req;
	int ret = 0;

	for (uint32_t i = 0; i < r->n_items && !ret; i++)
		ret = r->items[i].res;
	list_del(&a->node);
	uncount(a);
	attend_put(ss->tenant->serve, a);
	r->priv = NULL;
	r->wait.done(&r->wait, ret);
	tenant_kick(ss->tenant);
	session_request_end(ss);
}

static void attend_end(struct attend *a, int err)
{
	struct serve_tenant *t = a->ss->tenant;

	for (uint32_t i = 0; i < a->req->n_items; i++)
		if (a->items[i].s)
			attend_fail(a, i, err);
	list_del(&a->waiter.node);
	loop_timer_cancel(t->serve->loop, &a->timer);
	if (a->reserved) {
		pager_unreserve(t->pager, a->reserved);
		t->n_active--;
	}
	a->reserved = 0;
	a->in_line = a->no_room = 0;
	a->ended = 1;
	a->call.run = tell;
	loop_defer(t->serve->loop, &a->call);
}

/* ---- pages of a round --------------------------------------------------------- */

static struct page_run *more_runs(struct attend *a, uint32_t n)
{
	struct page_run *r;

	if (a->n_runs + n > a->n_room) {
		const uint32_t room = 2 * (a->n_runs + n);

		r = realloc(a->runs, room * sizeof(*r));
		if (!r)
			return NULL;
		a->runs = r;
		a->n_room = room;
	}
	r = a->runs + a->n_runs;
	a->n_runs += n;
	return r;
}

static int add_runs(struct attend *a, const struct seq *q, uint64_t from,
		    uint64_t to, uint32_t group, uint32_t flags)
{
	const uint32_t n = seq_runs(q, from, to, group, NULL, 0);
	struct page_run *r = more_runs(a, n);

	if (!r)
		return -ENOMEM;
	seq_runs(q, from, to, group, r, n);
	for (uint32_t i = 0; i < n; i++)
		r[i].flags = flags;
	return 0;
}

/* Both sides of a head that an append must copy. */
static int add_copy_runs(struct attend *a, const struct seq_copy *c)
{
	struct page_run *r = more_runs(a, 2);

	if (!r)
		return -ENOMEM;
	segment_pages(c->src, c->src_from, c->src_from + c->n, &r[0]);
	segment_pages(c->dst, 0, c->n, &r[1]);
	r[1].flags = PAGE_WRITE;
	return 0;
}

/* Positions of the page that holds pos. */
static void page_of(const struct seq *q, uint64_t pos, uint64_t *from,
		    uint64_t *to)
{
	const uint32_t n = q->layout.page_tokens;
	const struct seq_entry *e = q->entries;
	uint64_t first;

	while (pos >= (uint64_t)e->pos + e->n)
		e++;
	first = (e->from + pos - (uint64_t)e->pos) / n * n;
	*to = (uint64_t)e->pos + KV_MIN(first + n - e->from, e->n);
	*from = (uint64_t)e->pos + (first > e->from ? first - e->from : 0);
}

static uint64_t runs_bytes(const struct page_run *r, uint32_t n)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < n; i++)
		bytes += r[i].n * range_page_bytes(r[i].range);
	return bytes;
}

/* Pages for rows [row, row + n) of item i, those before from only if read. */
static int item_runs(struct attend *a, uint32_t i, uint32_t row, uint32_t n,
		     uint64_t from)
{
	const struct attend_item *it = &a->items[i];
	const struct serve_attend_item *r = &a->req->items[i];
	const struct seq *q = &it->s->seq;
	const uint32_t group = a->req->layer / q->layout.page_layers;
	const uint64_t first = r->pos + row;
	int ret = 0;

	if (it->s->copy.n)
		ret = add_copy_runs(a, &it->s->copy);
	if (!ret && r->k)
		ret = add_runs(a, q, first, first + n, group, PAGE_WRITE);
	if (!ret && !a->req->append_only)
		ret = add_runs(a, q, from, first + n, group, 0);
	return ret;
}

static int all_runs(struct attend *a)
{
	int ret = 0;

	a->n_runs = 0;
	for (uint32_t i = 0; i < a->req->n_items && !ret; i++)
		if (a->items[i].s)
			ret = item_runs(a, i, 0, a->req->items[i].n_tokens, 0);
	return ret;
}

/* ---- rounds ---------------------------------------------------------------------- */

static void add_work(struct attend *a, uint32_t i, uint32_t row, uint32_t n,
		     uint64_t resident_from)
{
	const struct attend_item *it = &a->items[i];
	const struct serve_attend_item *r = &a->req->items[i];
	const struct attn_shape *g = &it->shape;
	const size_t es = kern_type_bytes(g->type);
	const size_t q = row * (size_t)g->n_heads * g->head_dim * es;
	const size_t kv = row * (size_t)g->n_kv_heads * g->head_dim * es;
	const uint64_t pinned = runs_bytes(a->runs, a->n_runs);

	a->work_item[a->n_work] = i;
	a->work[a->n_work++] = (struct attn_item){
		.shape = g,
		.seq = &it->s->seq,
		.pos = r->pos + row,
		.n_rows = n,
		.in = g->type,
		.on_device = r->buffer != 0,
		.q = a->req->append_only ? NULL : (const char *)r->q + q,
		.k = r->k ? (const char *)r->k + kv : NULL,
		.v = r->k ? (const char *)r->v + kv : NULL,
		.o = a->req->append_only ? NULL : (char *)r->o + q,
		.resident_from = resident_from,
		.window_bytes = a->reserved > pinned ? a->reserved - pinned : 0,
		.cancelled = &a->cancelled,
	};
}

static void job_run_gpu(struct engine_job *j, struct pool *pool)
{
	struct attend *a = container_of(j, struct attend, job);
	struct attn_gpu *g = gpu_lane_attn(a->lane->gpu);

	(void)pool;
	a->ret = 0;
	for (a->n_copied = 0; a->n_copied < a->n_work; a->n_copied++) {
		const struct session_seq *q =
			a->items[a->work_item[a->n_copied]].s;

		if (q->copy.n)
			a->ret = attn_gpu_copy(g, &q->copy);
		if (a->ret)
			break;
	}
	for (uint32_t i = 0; i < a->n_work && a->ret; i++)
		a->work[i].ret = a->ret;
	if (!a->ret)
		a->ret = attn_gpu_items(g, &a->lane->scratch, a->work,
					a->n_work, a->req->layer);
}

static void job_run(struct engine_job *j, struct pool *pool)
{
	struct attend *a = container_of(j, struct attend, job);

	for (uint32_t i = 0; i < a->n_work; i++) {
		const struct session_seq *q = a->items[a->work_item[i]].s;

		if (q->copy.n)
			attn_copy(&q->copy);
	}
	a->n_copied = a->n_work;
	a->ret = attn_layer(a->lane->engine, pool, &a->lane->scratch, a->work,
			    a->n_work, a->req->layer);
}

static void job_done(struct engine_job *j)
{
	struct attend *a = container_of(j, struct attend, job);

	page_unpin(a->ss->tenant->pager, a->runs, a->n_runs);
	for (uint32_t k = 0; k < a->n_work; k++) {
		const uint32_t i = a->work_item[k];

		if (k < a->n_copied)
			seq_copy_done(&a->items[i].s->copy);
		if (a->work[k].ret)
			attend_fail(a, i, a->work[k].ret);
		else if (!a->one_by_one || a->row >= a->req->items[i].n_tokens)
			item_done(a, i);
	}
	round_begin(a);
}

static void start_job(struct attend *a)
{
	const int windows = a->n_work && a->work[0].resident_from;

	a->lane = &a->ss->tenant->serve
			   ->lanes[windows ? LANE_WINDOWS : LANE_RESIDENT];
	a->job.run = a->lane->gpu ? job_run_gpu : job_run;
	a->job.done = job_done;
	engine_start(a->lane->engine, &a->job);
}

static void want_done(struct wait *w, int ret)
{
	struct attend *a = container_of(container_of(w, struct page_want, wait),
					struct attend, want);

	if (!ret) {
		start_job(a);
		return;
	}
	if (!a->one_by_one && a->n_work > 1) /* whose page is it? */
		a->one_by_one = 1;
	else
		for (uint32_t k = 0; k < a->n_work; k++)
			attend_fail(a, a->work_item[k], ret);
	round_begin(a);
}

/* The next item with rows left; 0 none. */
static int next_item(struct attend *a)
{
	const uint32_t n = a->req->n_items;

	while (a->i_item < n && (!a->items[a->i_item].s ||
				 a->row >= a->req->items[a->i_item].n_tokens)) {
		a->i_item++;
		a->row = 0;
	}
	return a->i_item < n;
}

/* Rows of one item: all, or as many as lie in one page. */
static int round_one(struct attend *a)
{
	const uint32_t i = a->i_item;
	const struct serve_attend_item *r = &a->req->items[i];
	uint32_t n = r->n_tokens - a->row;
	uint64_t from, to;
	int ret;

	a->n_runs = 0;
	ret = item_runs(a, i, a->row, n, 0);
	if (ret || runs_bytes(a->runs, a->n_runs) <= a->reserved) {
		add_work(a, i, a->row, n, 0);
	} else {
		if (a->ss->tenant->serve->device) { /* no windows there */
			add_work(a, i, a->row, n, 0);
			a->row += n;
			return -ENOSPC;
		}
		page_of(&a->items[i].s->seq, r->pos + a->row, &from, &to);
		n = (uint32_t)KV_MIN((uint64_t)n, to - r->pos - a->row);
		a->n_runs = 0;
		ret = item_runs(a, i, a->row, n, from);
		add_work(a, i, a->row, n, a->req->append_only ? 0 : from);
	}
	a->row += n;
	return ret;
}

static int round_all(struct attend *a)
{
	int ret = all_runs(a);

	for (uint32_t i = 0; i < a->req->n_items; i++)
		if (a->items[i].s)
			add_work(a, i, 0, a->req->items[i].n_tokens, 0);
	return ret;
}

static void round_begin(struct attend *a)
{
	struct pager *pager = a->ss->tenant->pager;
	int ret;

	a->n_work = a->n_runs = 0;
	if (a->cancelled || !next_item(a)) {
		attend_end(a, a->cancelled ? -ECANCELED : 0);
		return;
	}
	ret = a->one_by_one ? round_one(a) : round_all(a);
	if (!ret) {
		a->want.wait.done = want_done;
		a->want.runs = a->runs;
		a->want.n_runs = a->n_runs;
		ret = a->n_runs ? page_want(pager, &a->want) : 1;
	}
	if (ret > 0)
		start_job(a);
	else if (ret < 0)
		want_done(&a->want.wait, ret);
}

/* ---- admission ---------------------------------------------------------------------- */

/* What one row of the neediest item needs at least: copy, its page, a window. */
static uint64_t least_bytes(struct attend *a)
{
	uint64_t most = 0;

	for (uint32_t i = 0; i < a->req->n_items; i++) {
		const struct attend_item *it = &a->items[i];
		const struct kv_layout *g;
		uint64_t pages =
			4; /* a page may be counted for read and write */

		if (!it->s)
			continue;
		g = &it->s->seq.layout;
		if (it->s->copy.n)
			pages += 2ull * g->n_groups;
		most = KV_MAX(most, pages * g->page_bytes);
	}
	return most;
}

/* What the largest item needs: without windows it has to be there whole. */
static uint64_t most_bytes(struct attend *a)
{
	uint64_t most = 0;

	for (uint32_t i = 0; i < a->req->n_items; i++) {
		a->n_runs = 0;
		if (a->items[i].s &&
		    !item_runs(a, i, 0, a->req->items[i].n_tokens, 0))
			most = KV_MAX(most, runs_bytes(a->runs, a->n_runs));
	}
	return most;
}

static int reserve(struct attend *a)
{
	struct pager *pager = a->ss->tenant->pager;
	const uint64_t half = pager_memory_bytes(pager) / 2;
	uint64_t bytes;
	int ret;

	ret = all_runs(a);
	if (ret)
		return ret;
	bytes = runs_bytes(a->runs, a->n_runs);
	a->one_by_one = bytes > half;
	if (a->one_by_one)
		bytes = KV_MAX(half, least_bytes(a));
	if (a->one_by_one && a->ss->tenant->serve->device)
		bytes = KV_MAX(bytes, most_bytes(a));
	ret = tenant_reserve(a->ss->tenant, bytes, a->req->may_wait);
	if (ret)
		return ret;
	a->reserved = bytes;
	a->ss->tenant->n_active +=
		!!bytes; /* who holds nothing gives nothing */
	return 0;
}

static void count(struct attend *a)
{
	a->ss->tenant->n_uncounted--;
	a->ss->tenant->n_requests++;
	a->counted = 1;
}

static int attend_retry(struct waiter *w)
{
	struct attend *a = container_of(w, struct attend, waiter);
	const struct serve_tenant *t = a->ss->tenant;
	int ret;

	if (!a->counted && t->n_requests >= t->conf->max_requests)
		return -EBUSY;
	if (!a->counted)
		count(a);
	ret = attend_grow(a);
	if (!ret)
		ret = reserve(a);
	if (ret == -EBUSY)
		attend_ungrow_all(a); /* perhaps for ever */
	if (ret == -EAGAIN || ret == -EBUSY)
		return ret;
	list_del(&a->waiter.node);
	a->in_line = 0;
	if (ret)
		attend_end(a, ret);
	else
		round_begin(a);
	return 0;
}

void attend_admit(struct attend *a)
{
	struct serve_tenant *t = a->ss->tenant;

	if (!list_empty(&t->waiting) || attend_retry(&a->waiter) < 0) {
		tenant_wait(t, &a->waiter);
		tenant_kick(t);
	}
}

static int item_check(struct attend *a, uint32_t i)
{
	const struct serve_attend_item *r = &a->req->items[i];
	struct session_seq *s = session_seq_find(a->ss, r->seq);
	uint64_t have;

	if (!s)
		return -ENOENT;
	if (s->n_busy)
		return -EBUSY;
	if (a->req->layer >= s->seq.layout.n_layers || !r->k != !r->v ||
	    r->pos > s->max_tokens || (a->req->append_only && !r->k))
		return -EINVAL;
	have = s->layer_tokens[a->req->layer];
	if (r->k ? r->pos != have : r->pos + r->n_tokens > have)
		return -EINVAL;
	/* what was inserted ends where it ends */
	if (r->k && have < s->hole_end && r->pos + r->n_tokens > s->hole_end)
		return -EINVAL;
	if (r->pos + r->n_tokens > s->max_tokens)
		return -ENOSPC;
	s->n_busy++;
	a->items[i].s = s;
	if (r->buffer)
		a->items[i].after = buffer_use(a->ss, r->buffer);
	a->items[i].shape = a->ss->geometries[s->geometry - 1].shape;
	return 0;
}

int serve_attend(struct serve_session *ss, struct serve_attend *r)
{
	struct serve_tenant *t = ss->tenant;
	struct attend *a;
	int ret;

	if (t->serve->draining)
		return -ESHUTDOWN;
	if (!r->n_items || r->n_items > SERVE_MAX_ITEMS)
		return -EINVAL;
	if (!r->may_wait &&
	    t->n_requests + t->n_uncounted >= t->conf->max_requests) {
		stat_add(t->st_refused, 1);
		return -EDQUOT;
	}
	ret = attend_get(t->serve, r->n_items, &a);
	if (ret)
		return ret;
	a->ss = ss;
	a->req = r;
	list_init(&a->node);
	list_init(&a->waiter.node);
	list_init(&a->timer.node);
	list_init(&a->call.node);
	list_init(&a->want.node);
	list_init(&a->want.call.node);
	for (uint32_t i = 0; i < r->n_items; i++)
		r->items[i].res = item_check(a, i);
	r->priv = a;
	stat_add(t->st_attends, 1);
	t->n_uncounted++;
	if (!r->may_wait)
		count(a);
	session_request_begin(ss);
	list_push(&ss->attends, &a->node);
	a->waiter.retry = attend_retry;
	a->in_line = 1;
	attend_events(a);
	return 0;
}

/* In line, or for events: at once. With pages on their way or on the engine: after this round. */
static void cancel(struct attend *a)
{
	if (a->ended)
		return;
	a->cancelled = 1;
	if (a->in_line)
		attend_end(a, -ECANCELED);
}

uint32_t attend_check(struct serve_session *ss, uint32_t *n_active,
		      uint64_t *reserved, uint32_t *n_requests,
		      uint32_t *n_uncounted)
{
	uint32_t n_calls = 0;

	list_for_each(n, &ss->attends) {
		const struct attend *a = list_entry(n, struct attend, node);

		n_calls++;
		*n_requests += a->counted ? 1 : 0;
		*n_uncounted += a->counted ? 0 : 1;
		*n_active += !!a->reserved;
		*reserved += a->reserved;
		assert(!a->reserved || (!a->in_line && !a->ended));
		for (uint32_t i = 0; i < a->req->n_items; i++)
			assert(!a->items[i].s || a->items[i].s->n_busy == 1);
	}
	return n_calls;
}

void serve_attend_cancel(struct serve_session *ss, struct serve_attend *r)
{
	(void)ss;
	if (r->priv)
		cancel(r->priv);
}

void attend_cancel_session(struct serve_session *ss)
{
	list_for_each_safe(n, &ss->attends)
		cancel(list_entry(n, struct attend, node));
}
