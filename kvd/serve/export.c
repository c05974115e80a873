/*
 * export.c - pages in device memory that clients map in their own process
 *
 *   serve_export -> WANT --pinned--> one struct export a segment --unexport--> gone
 *
 *  (1) An export is a reference to a sealed segment, a reservation, and a pin of all its pages:
 *      a frame that a client has is not moved while kvd uses its page.
 *  (2) Only segments of the session's own tenant, and only while they are pinned. What a
 *      client keeps of them later is never used for anything else (vmm_cuda.h, (5)).
 *  (3) Exports of a tenant hold half of its share of memory at most, as nothing but the
 *      client ends them.
 *  (4) While the open segment of a sequence is exported nothing seals it but an append
 *      that fills it, and nothing takes it out of the sequence, whose reference is the
 *      only one of an open segment.
 *
 * Loop thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/serve/tenant.h"

#define MAX_EXPORTS 1024u /* of a session */

struct export
{
	struct list node; /* of the session's */
	struct serve_session *ss;
	struct session_seq *tail; /* NULL: sealed */
	struct segment
		*seg; /* a reference; of a tail the sequence's own, see (4) */
	struct page_run run;
	uint64_t bytes; /* reserved */
	uint32_t id;
	struct serve_export_pages *asked; /* in flight, or NULL */
	struct vmm_op op;
	struct wait op_wait;
	int gone; /* ends with what is in flight */
};

struct call {
	struct serve_session *ss;
	struct serve_export *x;
	struct session_seq *s;
	struct page_want want;
	struct loop_call later;
	uint64_t bytes;
	int ret;
	struct page_run *runs; /* [x->n_entries] */
	struct export *exports[]; /* the same */
};

int serve_can_export(const struct serve_tenant *t)
{
	return t->conf->device_share && t->serve->device &&
	       t->serve->conf->device_memory == CONF_MEMORY_VMM;
}

uint64_t export_reserved(const struct serve_session *ss)
{
	uint64_t n = 0;

	list_for_each(l, &ss->exports)
		n += list_entry(l, struct export, node)->bytes;
	return n + ss->export_bytes;
}

static uint64_t tenant_reserved(const struct serve_tenant *t)
{
	uint64_t n = 0;

	list_for_each(l, &t->sessions)
		n += export_reserved(list_entry(l, struct serve_session, node));
	return n;
}

int tenant_reserve(struct serve_tenant *t, uint64_t bytes, int may_wait)
{
	const int ret = pager_reserve(t->pager, bytes);

	if (ret != -EAGAIN ||
	    bytes + tenant_reserved(t) <= pager_memory_bytes(t->pager))
		return ret;
	return may_wait ? -EBUSY : -ENOSPC;
}

void tenant_open_exports(struct serve_tenant *t)
{
	const char *v = t->conf->name;

	t->exports.st_n = stat_get(STAT_GAUGE, "kvd_exports",
				   "Segments exported to clients", "tenant", v,
				   1);
	t->exports.st_bytes = stat_get(STAT_GAUGE, "kvd_export_bytes",
				       "Device memory pinned for them",
				       "tenant", v, 1);
	t->exports.st_buffers = stat_get(STAT_GAUGE, "kvd_buffers",
					 "Device memory of clients in use",
					 "tenant", v, 1);
}

void tenant_count_exports(struct serve_tenant *t, int n, int64_t bytes,
			  int n_buffers)
{
	struct tenant_exports *x = &t->exports;

	x->n += (uint32_t)n;
	x->bytes += (uint64_t)bytes;
	x->n_buffers += (uint32_t)n_buffers;
	stat_set(x->st_n, x->n);
	stat_set(x->st_bytes, x->bytes);
	stat_set(x->st_buffers, x->n_buffers);
}

/* ---- end of one --------------------------------------------------------------- */

static void export_end(struct export *e)
{
	struct serve_tenant *t = e->ss->tenant;

	list_del(&e->node);
	e->ss->n_exports--;
	if (e->tail)
		e->tail->n_tails--;
	page_unpin(t->pager, &e->run, 1);
	pager_unreserve(t->pager, e->bytes);
	tenant_count_exports(t, -1, -(int64_t)e->bytes, 0);
	if (!e->tail)
		segment_put(e->seg);
	free(e);
	tenant_kick(t);
}

static struct export *export_find(struct serve_session *ss, uint32_t id)
{
	list_for_each(l, &ss->exports) {
		struct export *e = list_entry(l, struct export, node);

		if (e->id == id && !e->gone)
			return e;
	}
	return NULL;
}

int serve_unexport(struct serve_session *ss, uint32_t id)
{
	struct export *e = export_find(ss, id);

	if (!e)
		return -ENOENT;
	if (e->asked)
		return -EBUSY;
	export_end(e);
	return 0;
}

/* ---- what is asked for ---------------------------------------------------------- */

static void describe(const struct session_seq *s, struct serve_export *x)
{
	const struct seq *q = &s->seq;
	const struct kv_layout *g = &q->layout;

	x->n_entries = q->n_entries;
	x->n_tokens = q->n_tokens;
	if (seq_open_segment(q) && !x->with_tail)
		x->n_tokens -= q->entries[--x->n_entries].n;
	x->page_bytes = g->page_bytes;
	x->token_stride = layout_row_bytes(g);
	x->head_stride = layout_head_bytes(g);
	x->plane_stride = x->head_stride * g->n_kv_heads;
	x->layer_stride = 2 * x->plane_stride;
	x->n_layers = g->n_layers;
	x->n_kv_heads = g->n_kv_heads;
	x->head_dim = g->head_dim;
	x->elem_bytes = g->elem_bytes;
	x->page_tokens = g->page_tokens;
	x->page_layers = g->page_layers;
	x->by_token = g->order == LAYOUT_BY_TOKEN;
}

static int look_at_entries(const struct serve_session *ss, const struct seq *q,
			   uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct seq_entry *e = &q->entries[i];

		if (e->seg->pool != ss->tenant->pool)
			return -EPERM;
		if (e->skip || e->patch)
			return -EOPNOTSUPP;
	}
	return 0;
}

static int look_at_device(const struct serve_tenant *t, struct serve_export *x)
{
	struct device *d = pager_device(t->pager);
	const struct cuda_api *cu;
	int dev, ret;

	if (!serve_can_export(t) || !d)
		return -ENOTSUP;
	cu = device_api(d);
	ret = kern_errno(cu->device_get(&dev, device_index(d)));
	if (!ret)
		ret = kern_errno(cu->device_uuid(x->uuid, dev));
	x->frame_bytes = device_frame_bytes(d);
	return ret;
}

static int look(struct serve_session *ss, struct session_seq *s,
		struct serve_export *x)
{
	int ret = look_at_device(ss->tenant, x);

	if (ret)
		return ret;
	if (!s)
		return -ENOENT;
	if (s->n_busy || !session_seq_settled(s))
		return -EBUSY;
	if (x->with_tail && !seq_open_segment(&s->seq))
		return -EINVAL;
	describe(s, x);
	ret = look_at_entries(ss, &s->seq, x->n_entries);
	if (ret)
		return ret;
	if (x->n_entries > x->n_room)
		return -EMSGSIZE;
	return ss->n_exports + x->n_entries > MAX_EXPORTS ? -EDQUOT : 0;
}

/* ---- WANT ----------------------------------------------------------------------- */

static void call_free(struct call *c)
{
	for (uint32_t i = 0; i < c->x->n_entries; i++)
		free(c->exports[i]);
	free(c->runs);
	free(c);
}

static int call_new(struct serve_session *ss, struct session_seq *s,
		    struct serve_export *x, struct call **out)
{
	const uint32_t n = x->n_entries;
	struct call *c = calloc(1, sizeof(*c) + n * sizeof(c->exports[0]));

	if (!c)
		return -ENOMEM;
	c->ss = ss;
	c->s = s;
	c->x = x;
	c->runs = calloc(n + 1, sizeof(*c->runs));
	if (!c->runs)
		goto fail;
	for (uint32_t i = 0; i < n; i++) {
		struct segment *seg = s->seq.entries[i].seg;
		struct export *e = c->exports[i] = calloc(1, sizeof(*e));

		if (!e)
			goto fail;
		c->runs[i] = (struct page_run){
			.range = seg->range,
			.n = range_n_pages(seg->range),
			.flags = seg->sealed ? 0 : PAGE_WRITE,
		};
		e->ss = ss;
		e->seg = seg;
		e->run = c->runs[i];
		e->bytes = e->run.n * range_page_bytes(seg->range);
		e->tail = seg->sealed ? NULL : s;
		c->bytes += e->bytes;
	}
	*out = c;
	return 0;
fail:
	call_free(c);
	return -ENOMEM;
}

static void fill_entry(const struct seq_entry *from, const struct export *e,
		       struct serve_export_entry *to)
{
	*to = (struct serve_export_entry){
		.id = e->id,
		.n_pages = e->run.n,
		.n_room = from->seg->cap_tokens,
		.from = from->from,
		.n_tokens = from->n,
		.pos = from->pos,
		.base_pos = from->seg->pos0 + from->from,
		.is_tail = e->tail != NULL,
	};
}

static void pinned(struct call *c)
{
	for (uint32_t i = 0; i < c->x->n_entries; i++) {
		struct export *e = c->exports[i];

		c->exports[i] = NULL;
		e->id = ++c->ss->next_export;
		list_push(&c->ss->exports, &e->node);
		c->ss->n_exports++;
		tenant_count_exports(c->ss->tenant, 1, (int64_t)e->bytes, 0);
		if (e->tail)
			e->tail->n_tails++;
		fill_entry(&c->s->seq.entries[i], e, &c->x->entries[i]);
	}
}

static void tell(struct loop_call *l)
{
	struct call *c = container_of(l, struct call, later);
	struct serve_session *ss = c->ss;
	struct serve_export *x = c->x;
	const int ret = ss->closing && !c->ret ? -ECANCELED : c->ret;

	c->s->n_busy--;
	ss->export_bytes -= c->bytes;
	if (!ret) {
		pinned(c);
	} else {
		if (!c->ret) /* pinned, for nobody */
			page_unpin(ss->tenant->pager, c->runs, x->n_entries);
		for (uint32_t i = 0; i < x->n_entries; i++)
			if (!c->exports[i]->tail)
				segment_put(c->exports[i]->seg);
		pager_unreserve(ss->tenant->pager, c->bytes);
	}
	call_free(c);
	x->priv = NULL;
	list_del(&x->node);
	x->wait.done(&x->wait, ret);
	tenant_kick(ss->tenant);
	session_request_end(ss);
}

static void tell_later(struct call *c, int ret)
{
	c->ret = ret;
	c->later.run = tell;
	loop_defer(c->ss->tenant->serve->loop, &c->later);
}

static void want_done(struct wait *w, int ret)
{
	tell_later(container_of(container_of(w, struct page_want, wait),
				struct call, want),
		   ret);
}

static int reserve(struct serve_tenant *t, uint64_t bytes)
{
	if (tenant_reserved(t) + bytes > pager_memory_bytes(t->pager) / 2)
		return -EDQUOT;
	return tenant_reserve_now(t, bytes); /* the client asks again */
}

int serve_export(struct serve_session *ss, struct serve_export *x)
{
	struct session_seq *s = session_seq_find(ss, x->seq);
	struct call *c;
	int ret = look(ss, s, x);

	if (!ret)
		ret = call_new(ss, s, x, &c);
	if (ret)
		return ret;
	ret = reserve(ss->tenant, c->bytes);
	if (ret) {
		call_free(c);
		return ret;
	}
	for (uint32_t i = 0; i < x->n_entries; i++)
		if (!c->exports[i]->tail)
			segment_get(c->exports[i]->seg);
	session_request_begin(ss);
	s->n_busy++;
	ss->export_bytes += c->bytes;
	x->priv = c;
	list_push(&ss->export_calls, &x->node);
	c->want.wait.done = want_done;
	c->want.runs = c->runs;
	c->want.n_runs = x->n_entries;
	c->want.prio = WANT_STEP;
	ret = page_want(ss->tenant->pager, &c->want);
	if (ret)
		tell_later(c, KV_MIN(ret, 0));
	return 0;
}

/* ---- frames --------------------------------------------------------------------- */

static void op_done(struct wait *w, int ret)
{
	struct export *e = container_of(w, struct export, op_wait);
	struct serve_export_pages *p = e->asked;
	struct serve_session *ss = e->ss;

	e->asked = NULL;
	if (e->gone)
		export_end(e);
	p->priv = NULL;
	p->wait.done(&p->wait, ret);
	session_request_end(ss);
}

int serve_export_pages(struct serve_session *ss, struct serve_export_pages *p)
{
	struct export *e = export_find(ss, p->id);
	struct device *d = pager_device(ss->tenant->pager);
	uint64_t page, frames;

	if (!e)
		return -ENOENT;
	if (e->asked)
		return -EBUSY;
	frames = range_page_bytes(e->run.range) / device_frame_bytes(d);
	if (!p->n || p->first > e->run.n || p->n > e->run.n - p->first ||
	    p->n * frames > p->n_fds_room)
		return -EINVAL;
	p->n_fds = (uint32_t)(p->n * frames);
	e->op = (struct vmm_op){ .verb = VMM_EXPORT,
				 .n = p->n,
				 .fds = p->fds,
				 .waiter = &e->op_wait };
	e->op.space = range_vmm_space(e->run.range, &page);
	e->op.first = page + p->first;
	e->op_wait.done = op_done;
	e->asked = p;
	session_request_begin(ss);
	vmm_start(device_vmm(d), &e->op);
	return 0;
}

/* ---- the tail ------------------------------------------------------------------- */

int serve_seq_wrote(struct serve_session *ss, uint32_t seq, uint64_t n)
{
	struct session_seq *s = session_seq_find(ss, seq);
	const struct segment *open;
	struct seq_copy copy;
	int ret;

	if (!s)
		return -ENOENT;
	if (s->n_busy || !session_seq_settled(s))
		return -EBUSY;
	open = seq_open_segment(&s->seq);
	if (!s->n_tails || !open)
		return -EINVAL;
	if (n > open->cap_tokens - open->n_tokens ||
	    n > s->max_tokens - s->seq.n_tokens)
		return -ENOSPC;
	ret = seq_grow(&s->seq, (uint32_t)n, 0, &copy);
	if (ret)
		return ret;
	assert(!copy.n);
	for (uint32_t l = 0; l < s->seq.layout.n_layers; l++)
		s->layer_tokens[l] = s->seq.n_tokens;
	return 0;
}

/* ---- the end of a session ---------------------------------------------------------- */

void export_cancel_session(struct serve_session *ss)
{
	list_for_each(l, &ss->export_calls) {
		struct call *c = list_entry(l, struct serve_export, node)->priv;

		if (c->later.run)
			continue; /* it is over */
		page_want_cancel(ss->tenant->pager, &c->want);
		tell_later(c, -ECANCELED);
	}
	list_for_each_safe(l, &ss->exports) {
		struct export *e = list_entry(l, struct export, node);

		if (e->asked)
			e->gone = 1;
		else
			export_end(e);
	}
}
