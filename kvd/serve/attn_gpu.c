/*
 * attn_gpu.c - lists of sequences to launches of the device; see attn_gpu.h
 *
 * The plan is one block of memory, built in the pinned buffer and copied whole:
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

#include "kvd/serve/attn_priv.h"

/* Of states of parts in one launch; the rest of the rows goes in another. */
#define PART_BYTES   (64u << 20)
/* Of steps that are padded: rotations, query heads to a kv head (no tiles, then). */
#define PAD_VARIANTS 8u
#define PAD_GROUP    32u

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
	*out = g;
	return 0;
}

void attn_gpu_free(struct attn_gpu *g)
{
	if (!g)
		return;
	struct gpu_buf *const bufs[] = { &g->plan, &g->q,      &g->tmp,
					 &g->ml,   &g->part_o, &g->part_ml,
					 &g->in,   &g->f32,    &g->nowhere,
					 &g->rows, &g->more };
	for (size_t i = 0; i < KV_ARRAY_LEN(bufs); i++)
		if (bufs[i]->n_bytes)
			(void)g->c.api->free(bufs[i]->at);
	if (g->host.n_bytes)
		(void)g->c.api->host_free(g->host.p);
	if (g->io.n_bytes)
		(void)g->c.api->host_free(g->io.p);
	free(g->slice);
	free(g);
}

int attn_gpu_use(const struct attn_gpu *g)
{
	return kern_errno(g->c.api->ctx_set(g->c.ctx));
}

/* ---- what the lists need --------------------------------------------------------- */

int attn_gpu_same_shape(const struct attn_shape *a, const struct attn_shape *b)
{
	return a->type == b->type && a->n_heads == b->n_heads &&
	       a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim &&
	       !memcmp(&a->scale, &b->scale, sizeof(a->scale)) &&
	       !memcmp(&a->rope, &b->rope, sizeof(a->rope));
}

int attn_gpu_same_layout(const struct kv_layout *a, const struct kv_layout *b)
{
	return a->page_bytes == b->page_bytes && a->n_groups == b->n_groups &&
	       a->page_layers == b->page_layers &&
	       a->page_tokens == b->page_tokens && a->order == b->order &&
	       a->head_dim == b->head_dim && a->n_kv_heads == b->n_kv_heads &&
	       a->elem_bytes == b->elem_bytes;
}

/* Is everything that the item sees of the kind that is known here? */
static int check_item(const struct gpu_lists *l, const struct attn_item *it)
{
	const struct kv_layout *g = &l->step->items[0].seq->layout;

	if (it->resident_from || !attn_gpu_same_shape(it->shape, l->g->shape))
		return -ENOTSUP;
	for (uint32_t i = 0; i < it->seq->n_entries; i++) {
		const struct seq_entry *e = &it->seq->entries[i];

		if (e->stop_layer ||
		    !attn_gpu_same_layout(&e->seg->layout, g) ||
		    (e->patch && !attn_gpu_same_layout(&e->patch->layout, g)))
			return -ENOTSUP;
	}
	return 0;
}

static uint64_t row_parts(const struct seen *s)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < s->n_spans; i++)
		n += KV_DIV_UP(s->spans[i].n_tokens, GPU_SPLIT_TOKENS);
	return n;
}

static void count_seen(struct gpu_lists *l, const struct attn_item *it,
		       const struct seen *seen)
{
	for (uint32_t k = 0; k < seen->n_spans; k++) {
		const struct kern_span *s = &seen->spans[k];

		l->n_skip_words += s->skip ? KV_DIV_UP(s->n_tokens, 64) : 0;
		l->n_at += s->at ? s->n_tokens : 0;
	}
	l->n_parts += row_parts(seen) * it->n_rows;
	l->g->n_spans += seen->n_spans;
}

static int prepare_item(struct gpu_lists *l, uint32_t i)
{
	struct attn_item *it = &l->step->items[i];
	struct prepared *p = &l->p[i];
	struct attn_gpu *g = l->g;
	uint32_t more;
	int ret = check_item(l, it);

	memset(p, 0, sizeof(*p));
	p->it = it;
	p->layer = l->step->layer;
	l->first_span[i] = g->n_spans;
	if (!ret && it->n_rows)
		ret = attn_prepare_list(p, l->s);
	if (ret || !it->n_rows)
		return ret;
	if (it->q)
		attn_build_spans(p, 0, (uint64_t)p->pos[it->n_rows - 1] + 1);
	if (it->ret)
		return it->ret;
	for (uint32_t k = 0; k < p->n_seen; k++)
		count_seen(l, it, &p->seen[k]);
	more = attn_gpu_more(p);
	g->n_more += more * it->n_rows;
	l->n_joined += more ? it->n_rows : 0;
	l->n_queries += it->q ? it->n_rows : 0;
	g->n_rows += it->n_rows;
	g->n_kv_rows += it->k ? it->n_rows : 0;
	g->n_variants = KV_MAX(g->n_variants, p->n_variants);
	return 0;
}

/* Targets of rows that are stored: a span for each segment in turn. */
static int find_targets(struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	uint32_t n = 0;

	l->to = attn_scratch_alloc(l->s, (g->n_kv_rows + 1) * sizeof(*l->to));
	l->to_span = attn_scratch_alloc(l->s, (g->n_kv_rows + 1) *
						      sizeof(*l->to_span));
	if (!l->to || !l->to_span)
		return -ENOMEM;
	for (uint32_t i = 0; i < l->step->n_items; i++) {
		const struct attn_item *it = &l->step->items[i];

		for (uint32_t r = 0; it->k && r < it->n_rows; r++, n++) {
			l->to[n] = attn_target(it, r);
			if (!n || l->to[n].seg != l->to[n - 1].seg)
				g->n_spans++;
			l->to_span[n] = g->n_spans - 1;
		}
	}
	return 0;
}

static int prepare_all(struct gpu_lists *l)
{
	const uint32_t n = l->step->n_items;
	int ret = 0;

	l->p = attn_scratch_alloc(l->s, n * sizeof(*l->p));
	l->first_span = attn_scratch_alloc(l->s, n * sizeof(*l->first_span));
	if (!l->p || !l->first_span)
		return -ENOMEM;
	for (uint32_t i = 0; i < n && !ret; i++) {
		l->step->items[i].ret = 0;
		ret = prepare_item(l, i);
		l->step->items[i].ret = ret;
	}
	if (!ret && l->n_parts > UINT32_MAX)
		ret = -ENOSPC;
	return ret ? ret : find_targets(l);
}

/* ---- the plan ------------------------------------------------------------------------ */

static size_t part_bytes(const struct attn_shape *s)
{
	return ((size_t)s->head_dim + 2) * s->n_heads * sizeof(float);
}

static size_t place(size_t *end, size_t n)
{
	const size_t at = (*end + 63) / 64 * 64;

	*end = at + n;
	return at;
}

/* Where everything lies; room for it on both sides. */
static int lay_out(struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	const size_t n = g->n_rows + g->n_more;
	size_t end = 0;
	int ret;

	g->pos_at = place(&end, g->n_variants * n * sizeof(int64_t));
	g->key_pos_at = place(&end, g->n_kv_rows * sizeof(int64_t));
	g->rows_at = place(&end, n * sizeof(struct gpu_row));
	g->to_at = place(&end, g->n_kv_rows * 2 * sizeof(uint32_t));
	g->spans_at = place(&end, (size_t)g->n_layers * g->n_spans *
					  sizeof(struct gpu_span));
	g->tiles_at = place(&end, n * sizeof(struct gpu_tile));
	g->parts_at = place(&end, g->n_parts * sizeof(struct gpu_part));
	g->joined_at = place(&end, l->n_joined * sizeof(struct gpu_joined));
	g->more_at = place(&end, (size_t)g->n_more * sizeof(uint32_t));
	g->mul_at = place(&end, (size_t)g->n_more * sizeof(float));
	g->scale_at = place(&end, (size_t)g->n_more * sizeof(float));
	/* behind all that has the same place in steps that are alike */
	g->skip_at = place(&end, l->n_skip_words * sizeof(uint64_t));
	g->at_at = place(&end, l->n_at * sizeof(uint32_t));
	g->plan_bytes = end;
	ret = pinned_buf_want(g, &g->host, end);
	return ret ? ret : gpu_buf_want(g, &g->plan, end);
}

static void write_positions(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	int64_t *pos = attn_gpu_host(g, g->pos_at);
	int64_t *key = attn_gpu_host(g, g->key_pos_at);
	const size_t n = g->n_rows + g->n_more;
	uint32_t row = 0;

	if (g->padded) { /* nobody's are at 0 */
		memset(pos, 0,
		       (size_t)g->n_variants * g->n_rows * sizeof(*pos));
		memset(key, 0, g->n_kv_rows * sizeof(*key));
	}

	for (uint32_t i = 0; i < l->step->n_items; i++) {
		const struct prepared *p = &l->p[i];

		for (uint32_t r = 0; r < p->it->n_rows; r++, row++) {
			for (uint32_t v = 0; v < g->n_variants; v++)
				pos[v * n + row] =
					p->pos[r] -
					(v < p->n_variants ? p->delta[v] : 0);
			if (p->it->k)
				*key++ = p->pos[r];
		}
	}
}

struct gpu_span attn_gpu_target_span(const struct attn_target *to,
				     uint32_t layer)
{
	const struct kv_layout *g = &to->seg->layout;

	return (struct gpu_span){
		.k = (uintptr_t)segment_addr(to->seg, layer, 0, 0),
		.v = (uintptr_t)segment_addr(to->seg, layer, 1, 0),
		.head_bytes = layout_head_bytes(g),
		.page_bytes = g->page_bytes * g->n_groups,
		.page_tokens = g->page_tokens,
		.row_bytes = (uint32_t)layout_row_bytes(g),
	};
}

/* Where the next words of the plan go. */
struct span_ends {
	struct gpu_span *span;
	uint64_t *skip;
	uint32_t *at;
};

/* Of the device, what lies at p of the plan. */
static uint64_t there(const struct attn_gpu *g, const void *p)
{
	return g->plan.at + (size_t)((const char *)p - g->host.p);
}

static void write_seen(const struct gpu_lists *l, const struct seen *s,
		       struct span_ends *to)
{
	const struct kv_layout *y = &l->step->items[0].seq->layout;

	for (uint32_t k = 0; k < s->n_spans; k++) {
		const struct kern_span *x = &s->spans[k];
		const size_t n = KV_DIV_UP(x->n_tokens, 64);

		*to->span++ = (struct gpu_span){
			.k = (uintptr_t)x->k,
			.v = (uintptr_t)x->v,
			.skip = x->skip ? there(l->g, to->skip) : 0,
			.at = x->at ? there(l->g, to->at) : 0,
			.head_bytes = x->head_bytes,
			.page_bytes = x->page_bytes,
			.pos = x->pos,
			.page_tokens = x->page_tokens,
			.n_tokens = x->n_tokens,
			.q_variant = x->q_variant,
			.row_bytes = (uint32_t)layout_row_bytes(y),
		};
		if (x->skip) {
			memcpy(to->skip, x->skip, n * sizeof(*to->skip));
			to->skip += n;
		}
		if (x->at) {
			memcpy(to->at, x->at, x->n_tokens * sizeof(*to->at));
			to->at += x->n_tokens;
		}
	}
}

/* Spans of the first layer, the skip bits and the places that they refer to. */
static void write_spans(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	struct span_ends end = { attn_gpu_host(g, g->spans_at),
				 attn_gpu_host(g, g->skip_at),
				 attn_gpu_host(g, g->at_at) };
	uint32_t *to = attn_gpu_host(g, g->to_at);

	for (uint32_t i = 0; i < l->step->n_items; i++)
		for (uint32_t k = 0; k < l->p[i].n_seen; k++)
			write_seen(l, &l->p[i].seen[k], &end);
	for (uint32_t i = 0; i < l->n_kv; i++) {
		if (!i || l->to_span[i] != l->to_span[i - 1])
			*end.span++ =
				attn_gpu_target_span(&l->to[i], l->step->layer);
		to[2 * i] = l->to_span[i];
		to[2 * i + 1] = l->to[i].token;
	}
}

/* Rows, spans and parts that are nobody's: nothing is seen, K and V go nowhere. */
static void write_padding(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	struct gpu_span *spans = attn_gpu_host(g, g->spans_at);
	uint32_t *to = attn_gpu_host(g, g->to_at);
	const size_t head =
		g->shape->head_dim * kern_type_bytes(g->shape->type);
	const struct gpu_span none = {
		.k = g->nowhere.at,
		.v = g->nowhere.at,
		.head_bytes = head,
		.row_bytes = (uint32_t)head,
		.page_tokens = SEGMENT_BLOCK,
	};

	for (uint32_t i = l->n_spans; i < g->n_spans; i++)
		spans[i] = none;
	for (uint32_t i = l->n_kv; i < g->n_kv_rows; i++) {
		to[2 * i] = g->n_spans - 1;
		to[2 * i + 1] = 0;
	}
}

/* Byte of a layer's K in the pages of its tokens, from that of layer 0. */
static size_t layer_bytes(const struct kv_layout *g, uint32_t layer)
{
	return layer / g->page_layers * g->page_bytes +
	       (size_t)(layer % g->page_layers) * 2 * g->n_kv_heads *
		       layout_head_bytes(g);
}

static void write_layers(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	const struct kv_layout *y = &l->step->items[0].seq->layout;
	const struct gpu_span *from = attn_gpu_host(g, g->spans_at);
	const size_t first = layer_bytes(y, g->layer);
	struct gpu_span *to = attn_gpu_host(g, g->spans_at);

	for (uint32_t i = 1; i < g->n_layers; i++) {
		const size_t off = layer_bytes(y, g->layer + i) - first;

		to += g->n_spans;
		for (uint32_t k = 0; k < g->n_spans; k++) {
			to[k] = from[k];
			to[k].k += k < l->n_spans ? off : 0;
			to[k].v += k < l->n_spans ? off : 0;
		}
	}
}

/* What each row attends to. */
static struct kern_gpu_list *row_lists(const struct gpu_lists *l)
{
	struct kern_gpu_list *out = attn_scratch_alloc(
		l->s, (l->n_rows + l->g->n_more) * sizeof(*out));
	uint32_t row = 0;

	for (uint32_t i = 0; out && i < l->step->n_items; i++) {
		const struct prepared *p = &l->p[i];

		for (uint32_t r = 0; r < p->it->n_rows; r++)
			out[row++] = (struct kern_gpu_list){ p->pos[r],
							     l->first_span[i],
							     p->seen->n_spans };
	}
	if (out && l->g->n_more)
		attn_gpu_write_more(l, out);
	return out;
}

/*
 * Rows [row, row + n) in one turn, if their parts have room, else in halves. How rows are
 * cut does not change their bits.
 */
static int plan_turns(const struct gpu_lists *l,
		      const struct kern_gpu_list *lists, uint32_t row,
		      uint32_t n)
{
	struct attn_gpu *g = l->g;
	const struct attn_shape *s = g->shape;
	const struct gpu_turn *last = g->n_turns ? &g->turns[g->n_turns - 1]
						 : NULL;
	const uint32_t part = last ? last->part + last->n_parts : 0;
	const uint32_t tile = last ? last->tile + last->n_tiles : 0;
	const struct kern_gpu_shape shape = { s->type, s->n_heads,
					      s->n_kv_heads, s->head_dim };
	struct kern_gpu_plan p = {
		.parts =
			(struct gpu_part *)attn_gpu_host(g, g->parts_at) + part,
		.tiles =
			(struct gpu_tile *)attn_gpu_host(g, g->tiles_at) + tile,
		.rows = (struct gpu_row *)attn_gpu_host(g, g->rows_at) + row,
		.max_parts = g->n_parts - part,
		.max_tiles = g->n_rows + g->n_more - tile,
	};
	int ret = kern_gpu_plan_rows(&shape, attn_gpu_host(g, g->spans_at),
				     lists + row, n, &p);

	assert(!ret);
	if (n > 1 && p.n_parts * part_bytes(s) > PART_BYTES) {
		ret = plan_turns(l, lists, row, n / 2);
		return ret ? ret : plan_turns(l, lists, row + n / 2, n - n / 2);
	}
	g->turns[g->n_turns++] =
		(struct gpu_turn){ row, n, part, p.n_parts, tile, p.n_tiles };
	return 0;
}

static void pad_parts(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	struct gpu_part *parts = attn_gpu_host(g, g->parts_at);
	struct gpu_row *rows = attn_gpu_host(g, g->rows_at);
	struct gpu_turn *t = g->turns;

	assert(g->n_turns == 1 && !t->n_tiles);
	for (uint32_t i = t->n_parts; i < g->n_parts; i++)
		parts[i] = (struct gpu_part){ 0, g->n_spans - 1, 0 };
	for (uint32_t i = t->n_rows; i < g->n_rows; i++)
		rows[i] = (struct gpu_row){ 0, 0, 0 };
	t->n_parts = g->n_parts;
	t->n_rows = g->n_rows;
}

static int write_parts(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	const struct kern_gpu_list *lists;
	int ret;

	if (!l->n_queries)
		return 0;
	lists = row_lists(l);
	g->turns = attn_scratch_alloc(l->s, (g->n_rows + g->n_more) *
						    sizeof(*g->turns));
	if (!lists || !g->turns)
		return -ENOMEM;
	ret = plan_turns(l, lists, 0, l->n_rows);
	if (!ret && g->n_more)
		ret = plan_turns(l, lists, g->n_rows, g->n_more);
	if (!ret && g->padded)
		pad_parts(l);
	return ret;
}

/* Up to a quarter more, so that steps have few lengths. */
static uint32_t bucket(uint32_t n, uint32_t least)
{
	uint32_t step = least;

	while (8 * step <= n)
		step *= 2;
	return KV_DIV_UP(n, step) * step;
}

/* Of decodes, one row each, all with K and V: a step that others are like. */
static int pad(struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	const struct attn_shape *s = g->shape;
	const uint32_t n = g->n_rows;
	uint32_t rows = 1;

	while (rows < n)
		rows *= 2;
	rows = KV_MIN(rows, l->step->pad_to);
	if (n > rows || !l->n_queries || g->n_more ||
	    g->n_variants > PAD_VARIANTS ||
	    s->n_heads / s->n_kv_heads > PAD_GROUP)
		return 0;
	for (uint32_t i = 0; i < l->step->n_items; i++)
		if (l->step->items[i].n_rows != 1 || !l->step->items[i].k)
			return 0;
	if (bucket((uint32_t)l->n_parts, 16) * part_bytes(s) > PART_BYTES)
		return 0;
	g->padded = 1;
	g->n_rows = g->n_kv_rows = rows;
	g->n_spans = bucket(g->n_spans + 1, 16);
	g->n_parts = bucket((uint32_t)l->n_parts, 16);
	return gpu_buf_want(g, &g->nowhere,
			    (size_t)s->n_kv_heads * s->head_dim *
				    kern_type_bytes(s->type));
}

struct attn_gpu_pad attn_gpu_padded(const struct attn_gpu *g)
{
	struct attn_gpu_pad p = { 0 };

	if (g->padded)
		p = (struct attn_gpu_pad){ g->n_rows,
					   { g->n_rows, g->n_spans, g->n_parts,
					     g->n_variants, g->epoch } };
	return p;
}

static int room_for_rows(struct attn_gpu *g)
{
	const struct attn_shape *s = g->shape;
	const size_t row = (size_t)s->n_heads * s->head_dim;
	const size_t n = g->n_rows + g->n_more;
	size_t most = 0;
	int ret;

	for (uint32_t i = 0; i < g->n_turns; i++)
		most = KV_MAX(most, (size_t)g->turns[i].n_parts);
	ret = gpu_buf_want(g, &g->q,
			   g->n_variants * n * row * kern_type_bytes(s->type));
	if (!ret)
		ret = gpu_buf_want(g, &g->tmp, n * row * sizeof(float));
	if (!ret)
		ret = gpu_buf_want(g, &g->ml,
				   n * s->n_heads * 2 * sizeof(float));
	if (!ret && g->n_more)
		ret = gpu_buf_want(g, &g->more,
				   2 * g->n_more * row * sizeof(float));
	if (!ret)
		ret = gpu_buf_want(g, &g->part_o, most * row * sizeof(float));
	if (!ret)
		ret = gpu_buf_want(g, &g->part_ml,
				   most * s->n_heads * 2 * sizeof(float));
	return ret;
}

int attn_gpu_begin(struct attn_gpu *g, struct attn_scratch *s,
		   const struct attn_gpu_step *step)
{
	struct gpu_lists l = { .g = g, .s = s, .step = step };
	int ret;

	attn_scratch_reset(s);
	g->shape = step->items[0].shape;
	g->layer = step->layer;
	g->n_layers = step->n_layers;
	g->n_rows = g->n_kv_rows = g->n_variants = g->n_spans = 0;
	g->n_more = 0;
	g->n_turns = 0;
	g->padded = 0;
	ret = prepare_all(&l);
	l.n_rows = g->n_rows;
	l.n_kv = g->n_kv_rows;
	l.n_spans = g->n_spans;
	g->n_joined = l.n_joined;
	g->n_parts = (uint32_t)l.n_parts;
	if (!ret && g->n_rows && step->pad_to)
		ret = pad(&l);
	if (!ret)
		ret = lay_out(&l);
	if (ret || !g->n_rows)
		return ret;
	write_positions(&l);
	write_spans(&l);
	write_padding(&l);
	write_layers(&l);
	ret = write_parts(&l);
	if (!ret)
		ret = room_for_rows(g);
	if (ret)
		return ret;
	return kern_errno(g->c.api->h2d(g->plan.at, g->host.p, g->plan_bytes,
					g->c.stream));
}

/* ---- one layer --------------------------------------------------------------------------- */

int attn_gpu_rotate(struct attn_gpu *g, cuda_ptr src, cuda_ptr dst,
		    size_t pos_at, uint32_t n_rows, uint32_t n_heads)
{
	const struct kern_rope *r = &g->shape->rope;
	const struct gpu_rope a = {
		.src = src,
		.dst = dst,
		.pos = g->plan.at + pos_at,
		.n_rows = n_rows,
		.n_heads = n_heads,
		.head_dim = g->shape->head_dim,
		.kind = r->kind,
		.n_rot = r->n_rot,
		.theta = r->theta,
		.scale = r->scale,
	};

	return kern_gpu_rope(g->c.kern, &a, g->c.stream);
}

static cuda_ptr spans_of(const struct attn_gpu *g, uint32_t layer)
{
	return g->plan.at + g->spans_at +
	       (size_t)(layer - g->layer) * g->n_spans *
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
		.to = g->plan.at + g->to_at,
		.n_kv_heads = s->n_kv_heads,
		.head_dim = s->head_dim,
		.n_rows = g->n_kv_rows,
	};
	int ret = 0;

	if (s->rope.kind != KERN_ROPE_NONE)
		ret = attn_gpu_rotate(g, rows->k, rows->k, g->key_pos_at,
				      g->n_kv_rows, s->n_kv_heads);
	return ret ? ret : kern_gpu_append(g->c.kern, s->type, &a, g->c.stream);
}

/* Queries [n] at q for variant v, typed: rows from row on of g->q. */
static int rotate_rows(struct attn_gpu *g, cuda_ptr q, uint32_t v, uint32_t row,
		       uint32_t n)
{
	const struct attn_shape *s = g->shape;
	const size_t at = (size_t)v * (g->n_rows + g->n_more) + row;
	const size_t elems = (size_t)s->n_heads * s->head_dim;
	const int turns = s->rope.kind != KERN_ROPE_NONE;
	const cuda_ptr to = g->q.at + at * elems * kern_type_bytes(s->type);
	const cuda_ptr f = s->type == KERN_F32
				   ? to
				   : g->tmp.at + row * elems * sizeof(float);
	const struct gpu_convert a = { turns ? f : q, to, n * elems };
	int ret = 0;

	if (turns)
		ret = attn_gpu_rotate(g, q, f, g->pos_at + at * sizeof(int64_t),
				      n, s->n_heads);
	if (!ret && a.src != a.dst)
		ret = kern_gpu_from_f32(g->c.kern, s->type, &a, g->c.stream);
	return ret;
}

/* Queries for each variant, typed, into g->q. */
static int rotate_queries(struct attn_gpu *g, cuda_ptr q)
{
	int ret = g->n_more ? attn_gpu_pick(g, q) : 0;

	for (uint32_t i = 0; i < g->n_variants && !ret; i++) {
		ret = rotate_rows(g, q, i, 0, g->n_rows);
		if (!ret && g->n_more)
			ret = rotate_rows(g, g->more.at, i, g->n_rows,
					  g->n_more);
	}
	return ret;
}

static int attend(struct attn_gpu *g, uint32_t layer, const struct gpu_turn *t,
		  cuda_ptr o)
{
	const struct attn_shape *s = g->shape;
	const size_t row = (size_t)s->n_heads * s->head_dim;
	const size_t ml = (size_t)t->row * s->n_heads * sizeof(float);
	const uint32_t n = g->n_rows + g->n_more;
	const cuda_ptr out =
		t->row < g->n_rows
			? o + t->row * row * sizeof(float)
			: attn_gpu_more_o(g) +
				  (t->row - g->n_rows) * row * sizeof(float);
	const struct gpu_attn a = {
		.q = g->q.at + t->row * row * kern_type_bytes(s->type),
		.q_variant_elems = n * row,
		.spans = spans_of(g, layer),
		.parts = g->plan.at + g->parts_at +
			 t->part * sizeof(struct gpu_part),
		.tiles = g->plan.at + g->tiles_at +
			 t->tile * sizeof(struct gpu_tile),
		.rows = g->plan.at + g->rows_at +
			t->row * sizeof(struct gpu_row),
		.part_o = g->part_o.at,
		.part_ml = g->part_ml.at,
		.o = out,
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

	return kern_gpu_attn(g->c.kern, s->type, &a, g->c.stream);
}

int attn_gpu_layer(struct attn_gpu *g, uint32_t layer,
		   const struct attn_gpu_rows *rows)
{
	int ret = 0;

	assert(layer >= g->layer && layer < g->layer + g->n_layers);
	if (g->n_kv_rows)
		ret = store(g, layer, rows);
	if (!ret && g->n_turns)
		ret = rotate_queries(g, rows->q);
	for (uint32_t i = 0; i < g->n_turns && !ret; i++)
		ret = attend(g, layer, &g->turns[i], rows->o);
	if (!ret && g->n_joined)
		ret = attn_gpu_join(g, rows->o);
	return ret;
}
