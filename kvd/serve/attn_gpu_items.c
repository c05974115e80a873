/*
 * attn_gpu_items.c - rows of clients through the device, and copies of tiles' heads; see
 * attn_gpu.h
 *
 * Calls go in slices of rows that fit the pinned buffer: read once from the client's memory, copied,
 * widened; and back the same way.
 */
#include "kvd/serve/attn_gpu_priv.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SLICE_BYTES (16u << 20) /* of q, k, v and o as f32 */

static int same_shape(const struct attn_item *a, const struct attn_item *b)
{
	return attn_gpu_same_shape(a->shape, b->shape) &&
	       attn_gpu_same_layout(&a->seq->layout, &b->seq->layout) &&
	       !a->q == !b->q && a->in == b->in &&
	       a->on_device == b->on_device && !a->o == !b->o &&
	       !a->lse == !b->lse;
}

/* Where a slice's rows lie, in elements. */
struct slice {
	struct attn_item *items;
	uint32_t n_items;
	size_t q, kv; /* elements of a row */
	uint32_t n_rows, n_kv_rows;
	enum kern_type in;
};

/* Rows of o are wanted. */
static int wants_o(const struct slice *s)
{
	return s->n_items && s->items[0].q && s->items[0].o;
}

static int wants_lse(const struct slice *s)
{
	return s->n_items && s->items[0].q && s->items[0].lse;
}

static size_t slice_elems(const struct slice *s)
{
	return s->n_rows * s->q + s->n_kv_rows * s->kv * 2;
}

/* From the client's memory into the pinned buffer: q, then k, then v. */
static void gather(const struct slice *s, char *to)
{
	const size_t es = kern_type_bytes(s->in);

	for (int what = 0; what < 3; what++)
		for (uint32_t i = 0; i < s->n_items; i++) {
			const struct attn_item *it = &s->items[i];
			const void *from = what == 0   ? it->q
					   : what == 1 ? it->k
						       : it->v;
			const size_t n =
				it->n_rows * (what ? s->kv : s->q) * es;

			if (!from || !n)
				continue;
			memcpy(to, from, n);
			to += n;
		}
}

static void scatter(const struct slice *s, const char *from)
{
	const size_t es = kern_type_bytes(s->in);

	for (uint32_t i = 0; i < s->n_items; i++) {
		const size_t n = s->items[i].n_rows * s->q * es;

		if (s->items[i].o && n)
			memcpy(s->items[i].o, from, n);
		from += n;
	}
}

/* The same of clients' device memory, without a copy: widened from where it is. */
static int widen_there(struct attn_gpu *g, const struct slice *s)
{
	cuda_ptr to = g->f32.at;
	int ret = 0;

	for (int what = 0; what < 3; what++)
		for (uint32_t i = 0; i < s->n_items && !ret; i++) {
			const struct attn_item *it = &s->items[i];
			const void *from = what == 0   ? it->q
					   : what == 1 ? it->k
						       : it->v;
			const struct gpu_convert c = {
				(uintptr_t)from, to,
				it->n_rows * (what ? s->kv : s->q)
			};

			if (!from || !c.n)
				continue;
			ret = kern_gpu_to_f32(g->c.kern, s->in, &c,
					      g->c.stream);
			to += c.n * sizeof(float);
		}
	return ret;
}

static int narrow_there(struct attn_gpu *g, const struct slice *s,
			cuda_ptr from)
{
	int ret = 0;

	for (uint32_t i = 0; i < s->n_items && !ret; i++) {
		const struct gpu_convert c = { from, (uintptr_t)s->items[i].o,
					       s->items[i].n_rows * s->q };

		if (c.n)
			ret = kern_gpu_from_f32(g->c.kern, s->in, &c,
						g->c.stream);
		from += c.n * sizeof(float);
	}
	return ret;
}

/* Maxima and sums of the slice's rows: where the pinned buffer has them. */
static size_t ml_at(const struct slice *s)
{
	const size_t n = slice_elems(s) + s->n_rows * s->q;

	return KV_ALIGN_UP(n * kern_type_bytes(s->in), 64);
}

static size_t ml_elems(const struct slice *s)
{
	return wants_lse(s) ? (size_t)s->n_rows * s->items[0].shape->n_heads
			    : 0;
}

static int fetch_ml(struct attn_gpu *g, const struct slice *s)
{
	const struct cuda_api *cu = g->c.api;
	const size_t n = ml_elems(s) * sizeof(float);
	const size_t l = attn_gpu_sums(g);
	int ret = kern_errno(
		cu->d2h(g->io.p + ml_at(s), g->ml.at, n, g->c.stream));

	if (!ret)
		ret = kern_errno(cu->d2h(g->io.p + ml_at(s) + n, g->ml.at + l,
					 n, g->c.stream));
	return ret;
}

static void tell_lse(const struct attn_gpu *g, const struct slice *s)
{
	const float *m = (const float *)(const void *)(g->io.p + ml_at(s));
	const float *l = m + ml_elems(s);

	for (uint32_t i = 0; i < s->n_items; i++) {
		const struct attn_item *it = &s->items[i];
		const size_t n = (size_t)it->n_rows * it->shape->n_heads;

		for (size_t k = 0; k < n; k++)
			it->lse[k] = *m++ + logf(*l++);
	}
}

static int buffers(struct attn_gpu *g, const struct slice *s)
{
	const size_t n = slice_elems(s) + s->n_rows * s->q;
	int ret = pinned_buf_want(g, &g->io,
				  ml_at(s) + 2 * ml_elems(s) * sizeof(float));

	if (!ret)
		ret = gpu_buf_want(g, &g->in, n * kern_type_bytes(s->in));
	return ret ? ret : gpu_buf_want(g, &g->f32, n * sizeof(float));
}

/* Queue everything of a slice whose lists were begun. */
static int queue(struct attn_gpu *g, const struct slice *s, uint32_t layer)
{
	const struct cuda_api *cu = g->c.api;
	const size_t es = kern_type_bytes(s->in), n = slice_elems(s);
	const size_t n_q = s->n_items && s->items[0].q ? s->n_rows * s->q : 0;
	const size_t n_in = n_q + s->n_kv_rows * s->kv * 2;
	const size_t f = sizeof(float);
	const struct attn_gpu_rows rows = {
		.q = g->f32.at,
		.k = g->f32.at + n_q * f,
		.v = g->f32.at + (n_q + s->n_kv_rows * s->kv) * f,
		.o = g->f32.at + n * f,
	};
	const struct gpu_convert widen = { g->in.at, g->f32.at, n_in };
	const struct gpu_convert narrow = { rows.o, g->in.at + n * es, n_q };
	int ret;

	if (s->items[0].on_device) {
		ret = widen_there(g, s);
		if (!ret)
			ret = attn_gpu_layer(g, layer, &rows);
		return ret || !wants_o(s) ? ret : narrow_there(g, s, rows.o);
	}
	gather(s, g->io.p);
	ret = kern_errno(cu->h2d(g->in.at, g->io.p, n_in * es, g->c.stream));
	if (!ret)
		ret = kern_gpu_to_f32(g->c.kern, s->in, &widen, g->c.stream);
	if (!ret)
		ret = attn_gpu_layer(g, layer, &rows);
	if (ret || !wants_o(s))
		return ret;
	ret = kern_gpu_from_f32(g->c.kern, s->in, &narrow, g->c.stream);
	if (!ret)
		ret = kern_errno(cu->d2h(g->io.p + n * es, g->in.at + n * es,
					 n_q * es, g->c.stream));
	return ret;
}

static int run_slice(struct attn_gpu *g, struct attn_scratch *scratch,
		     struct slice *s, uint32_t layer)
{
	const struct attn_gpu_step step = { .items = s->items,
					    .n_items = s->n_items,
					    .layer = layer,
					    .n_layers = 1 };
	int ret = attn_gpu_begin(g, scratch, &step, 1);

	if (!ret)
		ret = buffers(g, s);
	if (!ret && s->n_rows)
		ret = queue(g, s, layer);
	if (!ret && ml_elems(s))
		ret = fetch_ml(g, s);
	ret = attn_gpu_over(g, ret);
	if (!ret && ml_elems(s))
		tell_lse(g, s);
	if (!ret && wants_o(s) && !s->items[0].on_device)
		scatter(s, g->io.p + slice_elems(s) * kern_type_bytes(s->in));
	return ret;
}

/* Rows [from, from + n) of it. */
static struct attn_item rows_of(const struct attn_item *it, uint32_t from,
				uint32_t n)
{
	const struct attn_shape *g = it->shape;
	const size_t es = kern_type_bytes(it->in);
	const size_t q = from * (size_t)g->n_heads * g->head_dim * es;
	const size_t kv = from * (size_t)g->n_kv_heads * g->head_dim * es;
	struct attn_item r = *it;

	r.pos = it->rows_at ? it->rows_at[from] : it->pos + from;
	r.rows_at = it->rows_at ? it->rows_at + from : NULL;
	r.n_rows = n;
	r.q = it->q ? (const char *)it->q + q : NULL;
	r.k = it->k ? (const char *)it->k + kv : NULL;
	r.v = it->v ? (const char *)it->v + kv : NULL;
	r.o = it->o ? (char *)it->o + q : NULL;
	r.lse = it->lse ? it->lse + (size_t)from * g->n_heads : NULL;
	return r;
}

static struct attn_item *slice_room(struct attn_gpu *g, uint32_t n)
{
	struct attn_item *p;

	if (n <= g->n_slice_room)
		return g->slice;
	p = realloc(g->slice, n * sizeof(*p));
	if (!p)
		return NULL;
	g->slice = p;
	g->n_slice_room = n;
	return p;
}

/* Items of one shape, all their rows, slice by slice; earlier rows come first. */
static int run_alike(struct attn_gpu *g, struct attn_scratch *scratch,
		     struct attn_item *items, uint32_t n, uint32_t layer)
{
	const struct attn_shape *y = items[0].shape;
	struct slice s = { .items = slice_room(g, n),
			   .q = (size_t)y->n_heads * y->head_dim,
			   .kv = (size_t)y->n_kv_heads * y->head_dim,
			   .in = items[0].in };
	const size_t row = (2 * s.q + 2 * s.kv) * sizeof(float);
	const uint32_t most = (uint32_t)KV_MAX(SLICE_BYTES / row, 1u);
	uint32_t i = 0, at = 0, k;
	int ret = s.items ? 0 : -ENOMEM;

	while (i < n && !ret) {
		s.n_items = s.n_rows = s.n_kv_rows = 0;
		while (i < n && s.n_rows < most) {
			k = KV_MIN(items[i].n_rows - at, most - s.n_rows);
			s.items[s.n_items++] = rows_of(&items[i], at, k);
			s.n_rows += k;
			s.n_kv_rows += items[i].k ? k : 0;
			at += k;
			if (at == items[i].n_rows) {
				at = 0;
				i++;
			}
		}
		ret = run_slice(g, scratch, &s, layer);
	}
	return ret;
}

/* One that cannot be done does not take others with it. */
static void run_group(struct attn_gpu *g, struct attn_scratch *s,
		      struct attn_item *items, uint32_t n, uint32_t layer)
{
	int ret = run_alike(g, s, items, n, layer);

	for (uint32_t i = 0; i < n; i++) {
		if (ret && n > 1 && ret != -ENODEV)
			items[i].ret = run_alike(g, s, &items[i], 1, layer);
		else
			items[i].ret = ret;
	}
}

int attn_gpu_items(struct attn_gpu *g, struct attn_scratch *s,
		   struct attn_item *items, uint32_t n_items, uint32_t layer)
{
	uint32_t n;
	int ret = attn_gpu_use(g);

	for (uint32_t i = 0; i < n_items; i += n) {
		n = 1;
		while (i + n < n_items && same_shape(&items[i], &items[i + n]))
			n++;
		if (ret)
			for (uint32_t k = 0; k < n; k++)
				items[i + k].ret = ret;
		else
			run_group(g, s, &items[i], n, layer);
	}
	for (uint32_t i = 0; i < n_items && !ret; i++)
		ret = items[i].ret;
	return ret;
}

int attn_gpu_put(struct attn_gpu *g, const void *p, size_t n, cuda_ptr *out)
{
	const struct cuda_api *cu = g->c.api;
	int ret = attn_gpu_use(g);

	if (!ret)
		ret = gpu_buf_want(g, &g->rows, n);
	for (size_t at = 0; at < n && !ret; at += SLICE_BYTES) {
		const size_t k = KV_MIN(n - at, (size_t)SLICE_BYTES);

		ret = pinned_buf_want(g, &g->io, k);
		if (ret)
			break;
		memcpy(g->io.p, (const char *)p + at, k);
		ret = kern_errno(
			cu->h2d(g->rows.at + at, g->io.p, k, g->c.stream));
		ret = attn_gpu_over(g, ret);
	}
	*out = g->rows.at;
	return ret;
}

/* ---- heads of tiles ------------------------------------------------------------- */

/* From and to of run i of the copy: of a layer, K or V, and, by token, a token. */
static void copy_run(const struct seq_copy *c, uint32_t i, uint64_t out[2])
{
	const struct kv_layout *y = &c->src->layout;
	const uint32_t per = y->order == LAYOUT_BY_TOKEN ? c->n : 1;
	const uint32_t l = i / per / 2, t = i % per;
	const int v = (int)(i / per % 2);
	const uint32_t at = c->src_from + t;
	const size_t row = layout_row_bytes(y);

	out[0] = (uintptr_t)segment_addr(c->src, l, v, at) +
		 at % y->page_tokens * row;
	out[1] = (uintptr_t)segment_addr(c->dst, l, v, t) +
		 t % y->page_tokens * row;
}

int attn_gpu_copy(struct attn_gpu *g, const struct seq_copy *c)
{
	const struct kv_layout *y = &c->src->layout;
	const int by_token = y->order == LAYOUT_BY_TOKEN;
	struct gpu_move m = {
		.n_bytes = (size_t)(by_token ? 1 : c->n) * y->head_dim *
			   y->elem_bytes,
		.src_head_bytes = layout_head_bytes(y),
		.dst_head_bytes = layout_head_bytes(&c->dst->layout),
		.n_runs = 2 * y->n_layers * (by_token ? c->n : 1),
		.n_heads = y->n_kv_heads,
	};
	const size_t n = m.n_runs * 2 * sizeof(uint64_t);
	int ret = attn_gpu_use(g);

	if (!ret)
		ret = pinned_buf_want(g, &g->host, n);
	if (!ret)
		ret = gpu_buf_want(g, &g->plan, n);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < m.n_runs; i++)
		copy_run(c, i, (uint64_t *)(void *)g->host.p + 2 * (size_t)i);
	m.runs = g->plan.at;
	ret = kern_errno(g->c.api->h2d(g->plan.at, g->host.p, n, g->c.stream));
	if (!ret)
		ret = kern_gpu_move(g->c.kern, &m, g->c.stream);
	return attn_gpu_over(g, ret);
}

/* ---- fresh rows against old ones -------------------------------------------------- */

/* Where things lie in the plan: V is compared through the first spans and targets, K
 * through the second. */
struct old_at {
	size_t pos, spans, to, dev, end;
};

static struct old_at old_places(uint32_t n)
{
	struct old_at p = { .pos = 0 };

	p.spans = p.pos + n * sizeof(int64_t);
	p.to = p.spans + 2 * n * sizeof(struct gpu_span);
	p.dev = p.to + 2 * n * 2 * sizeof(uint32_t);
	p.end = p.dev + 2 * n * sizeof(float);
	return p;
}

static void write_old(struct attn_gpu *g, const struct attn_gpu_old *a,
		      const struct old_at *p)
{
	int64_t *pos = (int64_t *)(void *)(g->host.p + p->pos);
	struct gpu_span *spans =
		(struct gpu_span *)(void *)(g->host.p + p->spans);
	uint32_t *to = (uint32_t *)(void *)(g->host.p + p->to);

	for (uint32_t i = 0; i < a->n; i++) {
		pos[i] = a->at[i].seg->pos0 + a->at[i].token;
		spans[i] = attn_gpu_target_span(&a->at[i], a->layer);
		spans[a->n + i] = spans[i];
		spans[a->n + i].v = spans[i].k;
		to[2 * i] = i;
		to[2 * (a->n + i)] = a->n + i;
		to[2 * i + 1] = to[2 * (a->n + i) + 1] = a->at[i].token;
	}
}

/* what: 0 V, 1 K */
static int compare(struct attn_gpu *g, const struct attn_gpu_old *a,
		   const struct old_at *p, uint32_t what)
{
	const size_t off = what * (size_t)a->n;
	const struct gpu_deviation d = {
		.v = what ? a->k : a->v,
		.spans = g->plan.at + p->spans,
		.at = g->plan.at + p->to + off * 2 * sizeof(uint32_t),
		.dev = g->plan.at + p->dev + off * sizeof(float),
		.n_kv_heads = a->shape->n_kv_heads,
		.head_dim = a->shape->head_dim,
		.n_rows = a->n,
	};

	return kern_gpu_deviation(g->c.kern, a->shape->type, &d, g->c.stream);
}

int attn_gpu_deviation(struct attn_gpu *g, const struct attn_gpu_old *a)
{
	const struct old_at p = old_places(a->n);
	const struct cuda_api *cu = g->c.api;
	const float *dev;
	int ret = kern_errno(cu->stream_sync(g->c.stream));

	if (!ret)
		ret = pinned_buf_want(g, &g->host, p.end);
	if (!ret)
		ret = gpu_buf_want(g, &g->plan, p.end);
	if (ret)
		return ret;
	g->shape = a->shape;
	write_old(g, a, &p);
	ret = kern_errno(cu->h2d(g->plan.at, g->host.p, p.dev, g->c.stream));
	if (!ret && a->shape->rope.kind != KERN_ROPE_NONE)
		ret = attn_gpu_rotate(g, a->k, p.pos, a->n);
	for (uint32_t what = 0; what < 2 && !ret; what++)
		ret = compare(g, a, &p, what);
	if (!ret)
		ret = kern_errno(cu->d2h(g->host.p + p.dev, g->plan.at + p.dev,
					 p.end - p.dev, g->c.stream));
	if (!ret)
		ret = kern_errno(cu->stream_sync(g->c.stream));
	dev = (const float *)(const void *)(g->host.p + p.dev);
	for (uint32_t i = 0; i < a->n && !ret; i++)
		a->dev[i] = dev[i] + dev[a->n + i];
	return ret;
}
