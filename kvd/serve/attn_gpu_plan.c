/*
 * attn_gpu_plan.c - what the lists of a step need, and how it lies in the plan; see
 * attn_gpu_priv.h
 */
#include "kvd/serve/attn_gpu_priv.h"

#include <errno.h>
#include <string.h>

/* Of states of parts in one launch; the rest of the rows goes in another. */
#define PART_BYTES   (64u << 20)
/* Of steps that are padded: rotations, query heads to a kv head (no tiles, then). */
#define PAD_VARIANTS 8u
#define PAD_GROUP    32u

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

		if ((e->stop_layer > l->step->layer &&
		     e->stop_layer < l->step->layer + l->step->n_layers) ||
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

static void count_seen(struct gpu_lists *l, uint32_t n_rows,
		       const struct seen *seen)
{
	for (uint32_t k = 0; k < seen->n_spans; k++) {
		const struct kern_span *s = &seen->spans[k];

		l->n_skip_words += s->skip ? KV_DIV_UP(s->n_tokens, 64) : 0;
		l->n_at += s->at ? s->n_tokens : 0;
	}
	l->n_parts += row_parts(seen) * n_rows;
	l->g->st->n_spans += seen->n_spans;
}

/* The rows of item i that attend, behind those of the items before; returns how many. */
static uint32_t find_queries(struct gpu_lists *l, uint32_t i)
{
	const struct attn_gpu_step *step = l->step;
	const struct attn_item *it = &step->items[i];
	const uint32_t before = l->n_rows;

	for (uint32_t r = 0; it->q && r < it->n_rows; r++, l->next_row++) {
		if (step->wanted) {
			if (l->next_wanted == step->n_wanted ||
			    step->wanted[l->next_wanted] != l->next_row)
				continue;
			l->next_wanted++;
		}
		l->queries[l->n_rows++] = (struct gpu_query){ i, r };
	}
	return l->n_rows - before;
}

static int prepare_item(struct gpu_lists *l, uint32_t i)
{
	struct attn_item *it = &l->step->items[i];
	struct prepared *p = &l->p[i];
	struct gpu_stage *st = l->g->st;
	uint32_t more, n;
	int ret = check_item(l, it);

	memset(p, 0, sizeof(*p));
	p->it = it;
	p->layer = l->step->layer;
	l->first_span[i] = st->n_spans;
	if (!ret && it->n_rows)
		ret = attn_prepare_list(p, l->s);
	if (ret || !it->n_rows)
		return ret;
	n = find_queries(l, i);
	if (n)
		attn_build_spans(
			p, 0,
			(uint64_t)p->pos[l->queries[l->n_rows - 1].row] + 1);
	if (it->ret)
		return it->ret;
	for (uint32_t k = 0; k < p->n_seen; k++)
		count_seen(l, n, &p->seen[k]);
	more = n ? attn_gpu_more(p) : 0;
	st->n_more += more * n;
	st->n_joined += more ? n : 0;
	st->n_rows += n;
	st->n_kv_rows += it->k ? it->n_rows : 0;
	st->n_variants = KV_MAX(st->n_variants, p->n_variants);
	return 0;
}

/* Targets of rows that are stored: a span for each segment in turn. */
static int find_targets(struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	uint32_t n = 0;

	l->to = attn_scratch_alloc(l->s,
				   (g->st->n_kv_rows + 1) * sizeof(*l->to));
	l->to_span = attn_scratch_alloc(l->s, (g->st->n_kv_rows + 1) *
						      sizeof(*l->to_span));
	if (!l->to || !l->to_span)
		return -ENOMEM;
	for (uint32_t i = 0; i < l->step->n_items; i++) {
		const struct attn_item *it = &l->step->items[i];

		for (uint32_t r = 0; it->k && r < it->n_rows; r++, n++) {
			l->to[n] = attn_target(it, r);
			if (!n || l->to[n].seg != l->to[n - 1].seg)
				g->st->n_spans++;
			l->to_span[n] = g->st->n_spans - 1;
		}
	}
	return 0;
}

static int prepare_all(struct gpu_lists *l)
{
	const uint32_t n = l->step->n_items;
	uint32_t n_rows = 0;
	int ret = 0;

	for (uint32_t i = 0; i < n; i++)
		n_rows += l->step->items[i].n_rows;
	l->queries =
		attn_scratch_alloc(l->s, (n_rows + 1) * sizeof(*l->queries));
	l->p = attn_scratch_alloc(l->s, n * sizeof(*l->p));
	l->first_span = attn_scratch_alloc(l->s, n * sizeof(*l->first_span));
	if (!l->p || !l->first_span || !l->queries)
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

/* Of n rows' queries for every distance. */
static size_t query_bytes(const struct attn_gpu *g, uint32_t n)
{
	const struct attn_shape *s = g->shape;

	return (size_t)g->st->n_variants * n * s->n_heads * s->head_dim *
	       kern_type_bytes(s->type);
}

static size_t place(size_t *end, size_t n)
{
	const size_t at = (*end + 63) / 64 * 64;

	*end = at + n;
	return at;
}

/* Where everything lies, from *end on. */
static void lay_out(struct gpu_lists *l, size_t *end)
{
	struct attn_gpu *g = l->g;
	const size_t n = g->st->n_rows + g->st->n_more;

	g->st->pos_at = place(end, g->st->n_variants * n * sizeof(int64_t));
	g->st->key_pos_at = place(end, g->st->n_kv_rows * sizeof(int64_t));
	g->st->rows_at = place(end, n * sizeof(struct gpu_row));
	g->st->to_at = place(end, g->st->n_kv_rows * 2 * sizeof(uint32_t));
	g->st->spans_at = place(end, (size_t)g->st->n_layers * g->st->n_spans *
					     sizeof(struct gpu_span));
	g->st->tiles_at = place(end, n * sizeof(struct gpu_tile));
	g->st->parts_at = place(end, g->st->n_parts * sizeof(struct gpu_part));
	g->st->joined_at =
		place(end, g->st->n_joined * sizeof(struct gpu_joined));
	g->st->more_at = place(end, (size_t)g->st->n_more * sizeof(uint32_t));
	g->st->mul_at = place(end, (size_t)g->st->n_more * sizeof(float));
	g->st->scale_at = place(end, (size_t)g->st->n_more * sizeof(float));
	/* behind all that has the same place in steps that are alike */
	g->st->skip_at = place(end, l->n_skip_words * sizeof(uint64_t));
	g->st->at_at = place(end, l->n_at * sizeof(uint32_t));
}

static void write_positions(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	int64_t *pos = attn_gpu_host(g, g->st->pos_at);
	int64_t *key = attn_gpu_host(g, g->st->key_pos_at);
	const size_t n = g->st->n_rows + g->st->n_more;

	if (g->st->padded) { /* nobody's are at 0 */
		memset(pos, 0, g->st->n_variants * n * sizeof(*pos));
		memset(key, 0, g->st->n_kv_rows * sizeof(*key));
	}
	for (uint32_t i = 0; i < l->n_rows; i++) {
		const struct prepared *p = &l->p[l->queries[i].item];
		const int64_t at = p->pos[l->queries[i].row];

		for (uint32_t v = 0; v < g->st->n_variants; v++)
			pos[v * n + i] =
				at - (v < p->n_variants ? p->delta[v] : 0);
	}
	for (uint32_t i = 0; i < l->step->n_items; i++) {
		const struct prepared *p = &l->p[i];

		for (uint32_t r = 0; p->it->k && r < p->it->n_rows; r++)
			*key++ = p->pos[r];
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
			.goes_on = k + 1 < s->n_spans && x[1].goes_on,
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
	struct span_ends end = { attn_gpu_host(g, g->st->spans_at),
				 attn_gpu_host(g, g->st->skip_at),
				 attn_gpu_host(g, g->st->at_at) };
	uint32_t *to = attn_gpu_host(g, g->st->to_at);

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
	struct gpu_span *spans = attn_gpu_host(g, g->st->spans_at);
	uint32_t *to = attn_gpu_host(g, g->st->to_at);
	const size_t head =
		g->shape->head_dim * kern_type_bytes(g->shape->type);
	const struct gpu_span none = {
		.k = g->nowhere.at,
		.v = g->nowhere.at,
		.head_bytes = head,
		.row_bytes = (uint32_t)head,
		.page_tokens = SEGMENT_BLOCK,
	};

	for (uint32_t i = l->n_spans; i < g->st->n_spans; i++)
		spans[i] = none;
	for (uint32_t i = l->n_kv; i < g->st->n_kv_rows; i++) {
		to[2 * i] = g->st->n_spans - 1;
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
	const struct gpu_span *from = attn_gpu_host(g, g->st->spans_at);
	const size_t first = layer_bytes(y, g->st->layer);
	struct gpu_span *to = attn_gpu_host(g, g->st->spans_at);

	for (uint32_t i = 1; i < g->st->n_layers; i++) {
		const size_t off = layer_bytes(y, g->st->layer + i) - first;

		to += g->st->n_spans;
		for (uint32_t k = 0; k < g->st->n_spans; k++) {
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
		l->s, (l->n_rows + l->g->st->n_more) * sizeof(*out));

	for (uint32_t i = 0; out && i < l->n_rows; i++) {
		const struct gpu_query *q = &l->queries[i];

		out[i] = (struct kern_gpu_list){ l->p[q->item].pos[q->row],
						 l->first_span[q->item],
						 l->p[q->item].seen->n_spans };
	}
	if (out && l->g->st->n_more)
		attn_gpu_write_more(l, out);
	return out;
}

/*
 * Rows [row, row + n) in one turn, if their parts and queries have room, else in halves. How
 * rows are cut does not change their bits.
 */
static int plan_turns(const struct gpu_lists *l,
		      const struct kern_gpu_list *lists, uint32_t row,
		      uint32_t n)
{
	struct attn_gpu *g = l->g;
	const struct attn_shape *s = g->shape;
	const struct gpu_turn *last =
		g->st->n_turns ? &g->st->turns[g->st->n_turns - 1] : NULL;
	const uint32_t part = last ? last->part + last->n_parts : 0;
	const uint32_t tile = last ? last->tile + last->n_tiles : 0;
	const struct kern_gpu_shape shape = { s->type, s->n_heads,
					      s->n_kv_heads, s->head_dim };
	struct kern_gpu_plan p = {
		.parts = (struct gpu_part *)attn_gpu_host(g, g->st->parts_at) +
			 part,
		.tiles = (struct gpu_tile *)attn_gpu_host(g, g->st->tiles_at) +
			 tile,
		.rows = (struct gpu_row *)attn_gpu_host(g, g->st->rows_at) +
			row,
		.max_parts = g->st->n_parts - part,
		.max_tiles = g->st->n_rows + g->st->n_more - tile,
		.tile_rows = g->st->has_window ? GPU_WIDE_ROWS : 0,
	};
	int ret = kern_gpu_plan_rows(&shape, attn_gpu_host(g, g->st->spans_at),
				     lists + row, n, &p);

	assert(!ret);
	if (n > 1 && (p.n_parts * part_bytes(s) > PART_BYTES ||
		      query_bytes(g, n) > g->c.query_bytes)) {
		ret = plan_turns(l, lists, row, n / 2);
		return ret ? ret : plan_turns(l, lists, row + n / 2, n - n / 2);
	}
	g->st->turns[g->st->n_turns++] =
		(struct gpu_turn){ row, n, part, p.n_parts, tile, p.n_tiles };
	return 0;
}

static void pad_parts(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	struct gpu_part *parts = attn_gpu_host(g, g->st->parts_at);
	struct gpu_row *rows = attn_gpu_host(g, g->st->rows_at);
	struct gpu_turn *t = g->st->turns;

	assert(g->st->n_turns == 1 && !t->n_tiles);
	for (uint32_t i = t->n_parts; i < g->st->n_parts; i++)
		parts[i] = (struct gpu_part){ 0, g->st->n_spans - 1, 0 };
	for (uint32_t i = t->n_rows; i < g->st->n_rows; i++)
		rows[i] = (struct gpu_row){ 0, 0, 0 };
	t->n_parts = g->st->n_parts;
	t->n_rows = g->st->n_rows;
}

static int write_parts(const struct gpu_lists *l)
{
	struct attn_gpu *g = l->g;
	const struct kern_gpu_list *lists;
	int ret;

	if (!l->n_rows)
		return 0;
	lists = row_lists(l);
	g->st->turns = attn_scratch_alloc(
		l->s, (g->st->n_rows + g->st->n_more) * sizeof(*g->st->turns));
	if (!lists || !g->st->turns)
		return -ENOMEM;
	ret = plan_turns(l, lists, 0, l->n_rows);
	if (!ret && g->st->n_more)
		ret = plan_turns(l, lists, g->st->n_rows, g->st->n_more);
	if (!ret && g->st->padded)
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
	const uint32_t n = g->st->n_rows;
	uint32_t rows = 1;

	while (rows < n)
		rows *= 2;
	rows = KV_MIN(rows, l->step->pad_to);
	if (n > rows || n != g->st->n_kv_rows || g->st->n_more ||
	    g->st->n_variants > PAD_VARIANTS ||
	    s->n_heads / s->n_kv_heads > PAD_GROUP)
		return 0;
	for (uint32_t i = 0; i < l->step->n_items; i++)
		if (l->step->items[i].n_rows != 1 || !l->step->items[i].k)
			return 0;
	if (bucket((uint32_t)l->n_parts, 16) * part_bytes(s) > PART_BYTES ||
	    query_bytes(g, rows) > g->c.query_bytes)
		return 0;
	g->st->padded = 1;
	g->st->n_rows = g->st->n_kv_rows = rows;
	g->st->n_spans = bucket(g->st->n_spans + 1, 16);
	g->st->n_parts = bucket((uint32_t)l->n_parts, 16);
	return gpu_buf_want(g, &g->nowhere,
			    (size_t)s->n_kv_heads * s->head_dim *
				    kern_type_bytes(s->type));
}

int attn_gpu_prepare(struct gpu_lists *l, size_t *end)
{
	struct gpu_stage *st = l->g->st;
	int ret;

	*st = (struct gpu_stage){ .layer = l->step->layer,
				  .n_layers = l->step->n_layers };
	ret = prepare_all(l);
	l->n_kv = st->n_kv_rows;
	l->n_spans = st->n_spans;
	st->n_parts = (uint32_t)l->n_parts;
	if (!ret && st->n_rows && l->step->pad_to)
		ret = pad(l);
	if (!ret)
		lay_out(l, end);
	return ret;
}

int attn_gpu_write(struct gpu_lists *l)
{
	const struct gpu_stage *st = l->g->st;

	if (!st->n_rows && !st->n_kv_rows)
		return 0;
	write_positions(l);
	write_spans(l);
	write_padding(l);
	write_layers(l);
	attn_gpu_find_window(l);
	return write_parts(l);
}
