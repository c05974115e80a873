/*
 * attn_gpu.c - lists of sequences to launches of the device; see attn_gpu.h
 *
 * The plan is one block of memory, built in the pinned buffer and copied whole; of each
 * range of layers:
 *
 *   positions of queries, by variant | of keys | rows | targets | spans, by layer
 *   | tiles | parts | what is seen otherwise | skip bits
 *
 * Segments of one layout lie alike, so a layer's spans are the first layer's, moved by
 * the same number of bytes.
 */
#include "kvd/serve/attn_gpu_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_TRIES 3 /* for a stream */

/* ---- buffers ------------------------------------------------------------------- */

int gpu_buf_want(struct attn_gpu *g, struct gpu_buf *b, size_t n)
{
	const struct cuda_api *cu = g->c.api;
	int ret;

	if (n <= b->n_bytes)
		return 0;
	if (b->n_bytes)
		(void)cu->free(b->at); /* or the device is lost */
	n += n / 4;
	b->n_bytes = 0;
	g->epoch++;
	ret = kern_errno(cu->alloc(&b->at, n));
	if (!ret)
		b->n_bytes = n;
	return ret == -ENOMEM ? -ENOSPC : ret;
}

int pinned_buf_want(struct attn_gpu *g, struct pinned_buf *b, size_t n)
{
	const struct cuda_api *cu = g->c.api;
	void *p = NULL;
	int ret;

	if (n <= b->n_bytes)
		return 0;
	if (b->n_bytes)
		(void)cu->host_free(b->p);
	n += n / 4;
	b->n_bytes = 0;
	ret = kern_errno(cu->host_alloc(&p, n, CUDA_HOST_PORTABLE));
	if (ret)
		return ret;
	b->p = p;
	b->n_bytes = n;
	return 0;
}

int attn_gpu_new(struct attn_gpu **out, const struct attn_gpu_conf *c)
{
	struct attn_gpu *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	g->c = *c;
	if (!g->c.query_bytes)
		g->c.query_bytes = ATTN_GPU_QUERY_BYTES;
	*out = g;
	return 0;
}

void attn_gpu_free(struct attn_gpu *g)
{
	if (!g)
		return;
	struct gpu_buf *const bufs[] = { &g->plan,   &g->q,	  &g->ml,
					 &g->part_o, &g->part_ml, &g->in,
					 &g->f32,    &g->nowhere, &g->rows,
					 &g->more };
	for (size_t i = 0; i < KV_ARRAY_LEN(bufs); i++)
		if (bufs[i]->n_bytes)
			(void)g->c.api->free(bufs[i]->at);
	if (g->host.n_bytes)
		(void)g->c.api->host_free(g->host.p);
	if (g->io.n_bytes)
		(void)g->c.api->host_free(g->io.p);
	free(g->slice);
	free(g->stages);
	free(g);
}

uint64_t attn_gpu_n_wide(const struct attn_gpu *g)
{
	return g->n_wide;
}

int attn_gpu_use(const struct attn_gpu *g)
{
	return kern_errno(g->c.api->ctx_set(g->c.ctx));
}

int attn_gpu_over(const struct attn_gpu *g, int ret)
{
	const int end = kern_errno(g->c.api->stream_sync(g->c.stream));
	int left = end;

	for (int i = 0; i < WAIT_TRIES && left && left != -ENODEV; i++)
		left = kern_errno(g->c.api->stream_sync(g->c.stream));
	if (left && g->c.device)
		device_lose(g->c.device);
	if (left)
		return -ENODEV;
	return ret ? ret : end;
}

/* ---- a step ---------------------------------------------------------------------------- */

struct attn_gpu_pad attn_gpu_padded(const struct attn_gpu *g)
{
	struct attn_gpu_pad p = { 0 };

	if (g->n_stages == 1 && g->st->padded)
		p = (struct attn_gpu_pad){ g->st->n_rows,
					   { g->st->n_rows, g->st->n_spans,
					     g->st->n_parts, g->st->n_variants,
					     g->epoch } };
	return p;
}

static int room_for_rows(struct attn_gpu *g, const struct gpu_stage *st)
{
	const struct attn_shape *s = g->shape;
	const size_t row = (size_t)s->n_heads * s->head_dim;
	const size_t n = st->n_rows + st->n_more;
	size_t most = 0, rows = 0;
	int ret;

	for (uint32_t i = 0; i < st->n_turns; i++) {
		most = KV_MAX(most, (size_t)st->turns[i].n_parts);
		rows = KV_MAX(rows, (size_t)st->turns[i].n_rows);
	}
	ret = gpu_buf_want(g, &g->q,
			   st->n_variants * rows * row *
				   kern_type_bytes(s->type));
	if (!ret)
		ret = gpu_buf_want(g, &g->ml,
				   n * s->n_heads * 2 * sizeof(float));
	if (!ret && st->n_more)
		ret = gpu_buf_want(g, &g->more,
				   2 * st->n_more * row * sizeof(float));
	if (!ret)
		ret = gpu_buf_want(g, &g->part_o, most * row * sizeof(float));
	if (!ret)
		ret = gpu_buf_want(g, &g->part_ml,
				   most * s->n_heads * 2 * sizeof(float));
	return ret;
}

static int want_stages(struct attn_gpu *g, uint32_t n)
{
	struct gpu_stage *p;

	if (n <= g->n_stage_room)
		return 0;
	p = realloc(g->stages, n * sizeof(*p));
	if (!p)
		return -ENOMEM;
	g->stages = p;
	g->n_stage_room = n;
	return 0;
}

/* Every stage in turn is the current one. */
static int write_stages(struct attn_gpu *g, struct gpu_lists *l, size_t n_bytes)
{
	int ret = pinned_buf_want(g, &g->host, n_bytes);

	if (!ret)
		ret = gpu_buf_want(g, &g->plan, n_bytes);
	for (uint32_t i = 0; i < g->n_stages && !ret; i++) {
		g->st = &g->stages[i];
		ret = attn_gpu_write(&l[i]);
	}
	for (uint32_t i = 0; i < g->n_stages && !ret; i++)
		ret = room_for_rows(g, &g->stages[i]);
	if (ret || !n_bytes)
		return ret;
	return kern_errno(
		g->c.api->h2d(g->plan.at, g->host.p, n_bytes, g->c.stream));
}

int attn_gpu_begin(struct attn_gpu *g, struct attn_scratch *s,
		   const struct attn_gpu_step *steps, uint32_t n)
{
	struct gpu_lists *l;
	size_t end = 0;
	int ret = want_stages(g, n);

	attn_scratch_reset(s);
	l = attn_scratch_alloc(s, n * sizeof(*l));
	if (ret || !l)
		return -ENOMEM;
	memset(l, 0, n * sizeof(*l));
	g->shape = steps->items[0].shape;
	g->n_stages = n;
	for (uint32_t i = 0; i < n && !ret; i++) {
		l[i].g = g;
		l[i].s = s;
		l[i].step = &steps[i];
		g->st = &g->stages[i];
		ret = attn_gpu_prepare(&l[i], &end);
	}
	if (!ret)
		ret = write_stages(g, l, end);
	g->st = g->stages;
	return ret;
}

/* ---- one layer --------------------------------------------------------------------------- */

static struct gpu_rope rope_args(const struct attn_gpu *g, size_t pos_at,
				 uint32_t n_rows, uint32_t n_heads)
{
	const struct kern_rope *r = &g->shape->rope;

	return (struct gpu_rope){
		.pos = g->plan.at + pos_at,
		.n_rows = n_rows,
		.n_variants = 1,
		.n_heads = n_heads,
		.head_dim = g->shape->head_dim,
		.kind = r->kind,
		.n_rot = r->n_rot,
		.theta = r->theta,
		.scale = r->scale,
	};
}

int attn_gpu_rotate(struct attn_gpu *g, cuda_ptr k, size_t pos_at,
		    uint32_t n_rows)
{
	struct gpu_rope a = rope_args(g, pos_at, n_rows, g->shape->n_kv_heads);

	a.src = a.dst = k;
	return kern_gpu_rope(g->c.kern, KERN_F32, &a, g->c.stream);
}

static cuda_ptr spans_of(const struct attn_gpu *g, uint32_t layer)
{
	return g->plan.at + g->st->spans_at +
	       (size_t)(layer - g->st->layer) * g->st->n_spans *
		       sizeof(struct gpu_span);
}

static int store(struct attn_gpu *g, uint32_t layer,
		 const struct attn_gpu_rows *rows)
{
	const struct attn_shape *s = g->shape;
	const struct gpu_append a = {
		.k = rows->k,
		.v = rows->v,
		.spans = spans_of(g, layer),
		.to = g->plan.at + g->st->to_at,
		.n_kv_heads = s->n_kv_heads,
		.head_dim = s->head_dim,
		.n_rows = g->st->n_kv_rows,
	};
	int ret = 0;

	if (s->rope.kind != KERN_ROPE_NONE)
		ret = attn_gpu_rotate(g, rows->k, g->st->key_pos_at,
				      g->st->n_kv_rows);
	return ret ? ret : kern_gpu_append(g->c.kern, s->type, &a, g->c.stream);
}

/* Queries of the turn, f32 at q, for all variants, typed, into g->q. */
static int rotate_turn(struct attn_gpu *g, const struct gpu_turn *t, cuda_ptr q)
{
	const struct attn_shape *s = g->shape;
	const struct gpu_convert c = {
		q, g->q.at, (size_t)t->n_rows * s->n_heads * s->head_dim
	};
	struct gpu_rope a = rope_args(g,
				      g->st->pos_at + t->row * sizeof(int64_t),
				      t->n_rows, s->n_heads);

	if (s->rope.kind == KERN_ROPE_NONE) /* one variant */
		return kern_gpu_from_f32(g->c.kern, s->type, &c, g->c.stream);
	a.src = q;
	a.dst = g->q.at;
	a.n_variants = g->st->n_variants;
	a.pos_stride = (uint64_t)g->st->n_rows + g->st->n_more;
	return kern_gpu_rope(g->c.kern, s->type, &a, g->c.stream);
}

static int attend(struct attn_gpu *g, uint32_t layer, const struct gpu_turn *t,
		  const struct attn_gpu_rows *rows)
{
	const struct attn_shape *s = g->shape;
	const size_t row = (size_t)s->n_heads * s->head_dim;
	const size_t ml = (size_t)t->row * s->n_heads * sizeof(float);
	const int more = t->row >= g->st->n_rows;
	const size_t at =
		(t->row - (more ? g->st->n_rows : 0)) * row * sizeof(float);
	const struct gpu_attn a = {
		.q = g->q.at,
		.q_variant_elems = t->n_rows * row,
		.spans = spans_of(g, layer),
		.parts = g->plan.at + g->st->parts_at +
			 t->part * sizeof(struct gpu_part),
		.tiles = g->plan.at + g->st->tiles_at +
			 t->tile * sizeof(struct gpu_tile),
		.rows = g->plan.at + g->st->rows_at +
			t->row * sizeof(struct gpu_row),
		.part_o = g->part_o.at,
		.part_ml = g->part_ml.at,
		.o = (more ? attn_gpu_more_o(g) : rows->o) + at,
		.m = g->ml.at + ml,
		.l = g->ml.at + ml + attn_gpu_sums(g),
		.n_heads = s->n_heads,
		.n_kv_heads = s->n_kv_heads,
		.head_dim = s->head_dim,
		.n_rows = t->n_rows,
		.n_parts = t->n_parts,
		.n_tiles = t->n_tiles,
		.flags = GPU_ATTN_FINISH,
		.scale = s->scale,
	};
	const int ret = rotate_turn(g, t, (more ? g->more.at : rows->q) + at);

	if (ret || !t->n_tiles || !g->st->has_window)
		return ret ? ret
			   : kern_gpu_attn(g->c.kern, s->type, &a, g->c.stream);
	g->n_wide++;
	return kern_gpu_attn_wide(g->c.kern, &g->st->window, &a, g->c.stream);
}

int attn_gpu_layer(struct attn_gpu *g, uint32_t layer,
		   const struct attn_gpu_rows *rows)
{
	int ret = 0;

	while (layer >= g->st->layer + g->st->n_layers &&
	       g->st + 1 < g->stages + g->n_stages)
		g->st++;
	assert(layer >= g->st->layer && layer < g->st->layer + g->st->n_layers);
	if (g->st->n_kv_rows)
		ret = store(g, layer, rows);
	if (!ret && g->st->n_more)
		ret = attn_gpu_pick(g, rows->q);
	for (uint32_t i = 0; i < g->st->n_turns && !ret; i++)
		ret = attend(g, layer, &g->st->turns[i], rows);
	if (!ret && g->st->n_joined)
		ret = attn_gpu_join(g, rows->o);
	return ret;
}
