/*
 * attn.c - attention of one layer for rows of several sequences; see attn.h
 */
#include "kvd/serve/attn_priv.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static_assert(SEGMENT_BLOCK == KERN_KV_BLOCK, "one tile grid");

#define ROWS_PER_TASK \
	48u /* whole blocks of 96 queries for groups of 2, 4, 8 ... heads */
#define INLINE_ROWS 16u /* below this many rows threads do not pay */

/* ---- one item, prepared ------------------------------------------------ */

static uint64_t row_pos(const struct attn_item *it, uint32_t r)
{
	return it->rows_at ? it->rows_at[r] : it->pos + r;
}

/* Keys of e were rotated for positions this much below where the rows see them. */
static int64_t entry_delta(const struct prepared *p, const struct seq_entry *e)
{
	return e->pos + e->context.shift - p->shift - (int64_t)e->from -
	       e->seg->pos0;
}

/* The same of its patch, which has true positions. */
static int64_t patch_delta(const struct prepared *p, const struct seq_entry *e)
{
	return e->context.shift - p->shift;
}

static uint32_t variant_of(const struct prepared *p, int64_t d)
{
	uint32_t i = 0;

	if (p->it->shape->rope.kind == KERN_ROPE_NONE)
		return 0;
	while (i < p->n_variants && p->delta[i] != d)
		i++;
	return i;
}

/* For keys that only rows from position from on see; ascending. */
static void add_variant(struct prepared *p, int64_t d, int64_t from)
{
	if (variant_of(p, d) < p->n_variants)
		return;
	p->delta[p->n_variants] = d;
	p->delta_from[p->n_variants++] = from;
}

static void find_variants(struct prepared *p)
{
	const struct seq *q = p->it->seq;

	if (p->it->shape->rope.kind == KERN_ROPE_NONE) {
		p->delta[0] = p->delta_from[0] = 0;
		p->n_variants = 1;
		return;
	}
	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];

		add_variant(p, entry_delta(p, e), e->pos);
		if (e->n_patch)
			add_variant(p, patch_delta(p, e), e->pos);
	}
}

/* In this layer the entry is seen as if it had no patch. */
static int stopped(const struct prepared *p, const struct seq_entry *e)
{
	return e->stop_layer && p->layer >= e->stop_layer;
}

/* The entry's skip bits from token from on, as kern_span wants them. */
static const uint64_t *skip_bits(struct prepared *p, const struct seq_entry *e,
				 uint32_t from, uint32_t n)
{
	const uint32_t n_words = KV_DIV_UP(n, 64);
	uint64_t *bits;

	if (!e->skip || stopped(p, e))
		return NULL;
	if (from % 64 == 0)
		return e->skip + from / 64;
	bits = attn_scratch_alloc(p->scratch, n_words * sizeof(*bits));
	if (!bits) {
		p->it->ret = -ENOMEM;
		return NULL;
	}
	memset(bits, 0, n_words * sizeof(*bits));
	for (uint32_t i = 0; i < n; i++)
		if (e->skip[(from + i) / 64] >> ((from + i) % 64) & 1)
			bits[i / 64] |= 1ull << (i % 64);
	return bits;
}

static struct seen *seen_as(struct prepared *p, const struct seq_context *c)
{
	uint32_t i = 0;

	while (i < p->n_seen && (p->seen[i].temperature != c->temperature ||
				 p->seen[i].scale != c->scale))
		i++;
	return &p->seen[i];
}

/* Does x go on with the tiles of the span before it, if it is of the same part? */
static uint32_t goes_on(const struct kern_span *x, const struct kern_span *prev)
{
	return !prev->at && prev->n_tokens % KERN_KV_BLOCK == 0 &&
	       prev->pos + prev->n_tokens == x->pos &&
	       prev->q_variant == x->q_variant;
}

/* Spans of one entry's tokens [from, to), cut so that none begins inside a page. */
static void add_spans(struct prepared *p, const struct seq_entry *e,
		      uint32_t from, uint32_t to)
{
	const struct kv_layout *g = &e->seg->layout;
	struct seen *seen = seen_as(p, &e->context);

	while (from < to) {
		const uint32_t t = e->from + from;
		const uint32_t in_page = t % g->page_tokens;
		const uint32_t n =
			in_page ? KV_MIN(to - from, g->page_tokens - in_page)
				: to - from;
		const size_t skew = in_page * layout_row_bytes(g);
		struct kern_span *x = &seen->spans[seen->n_spans++];

		assert(seen->n_spans <= p->n_spans_max);
		*x = (struct kern_span){
			.k = segment_addr(e->seg, p->layer, 0, t) + skew,
			.v = segment_addr(e->seg, p->layer, 1, t) + skew,
			.head_bytes = layout_head_bytes(g),
			.page_bytes = g->page_bytes * g->n_groups,
			.page_tokens = g->page_tokens,
			.n_tokens = n,
			.q_variant = variant_of(p, entry_delta(p, e)),
			.pos = e->pos + from,
			.skip = skip_bits(p, e, from, n),
		};
		if (x != seen->spans && !(from ? 0 : e->begins))
			x->goes_on = goes_on(x, x - 1);
		from += n;
	}
}

/* What the patch of e has of the entry's tokens [from, to), side by side: a tile of it has
 * the same tokens for all rows, whichever they see. */
static void add_patch(struct prepared *p, const struct seq_entry *e,
		      uint32_t from, uint32_t to)
{
	const struct seq_entry run = { .seg = e->patch, .context = e->context };
	struct seen *seen = seen_as(p, &e->context);
	const uint32_t first = seen->n_spans;
	uint32_t i = 0, end;

	while (i < e->n_patch && e->patch_at[i] < from)
		i++;
	for (end = i; end < e->n_patch && e->patch_at[end] < to;)
		end++;
	add_spans(p, &run, e->patch_from + i, e->patch_from + end);
	for (uint32_t k = first; k < seen->n_spans; k++) {
		seen->spans[k].q_variant = variant_of(p, patch_delta(p, e));
		seen->spans[k].pos = e->pos;
		seen->spans[k].at = e->patch_at + i;
		seen->spans[k].goes_on =
			k > first &&
			seen->spans[k - 1].n_tokens % KERN_KV_BLOCK == 0;
		i += seen->spans[k].n_tokens;
	}
}

/* Spans of the positions [from, to). */
void attn_build_spans(struct prepared *p, uint64_t from, uint64_t to)
{
	const struct seq *q = p->it->seq;

	for (uint32_t i = 0; i < p->n_seen; i++)
		p->seen[i].n_spans = 0;
	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];
		const uint64_t pos = (uint64_t)e->pos;
		const uint64_t a = KV_MAX(from, pos);
		const uint64_t b = KV_MIN(to, pos + e->n);

		if (a >= b)
			continue;
		add_spans(p, e, (uint32_t)(a - pos), (uint32_t)(b - pos));
		if (e->patch && !stopped(p, e))
			add_patch(p, e, (uint32_t)(a - pos),
				  (uint32_t)(b - pos));
	}
}

/* At most: two of an entry, and two of its patch. */
static uint32_t max_spans(const struct seq *q)
{
	return 4 * q->n_entries + 1;
}

/* The entry that holds position pos. */
static const struct seq_entry *entry_at(const struct seq *q, int64_t pos)
{
	uint32_t lo = 0, hi = q->n_entries;

	while (hi - lo > 1) {
		const uint32_t mid = lo + (hi - lo) / 2;

		if (q->entries[mid].pos > pos)
			hi = mid;
		else
			lo = mid;
	}
	return &q->entries[lo];
}

/* The ways in which tokens of the list are seen. */
static void find_seen(struct prepared *p)
{
	const struct seq *q = p->it->seq;

	p->seen[0] = (struct seen){ .temperature = 1, .scale = 1 };
	p->n_seen = 1;
	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_context *c = &q->entries[i].context;
		struct seen *seen = seen_as(p, c);

		if (seen == &p->seen[p->n_seen])
			p->seen[p->n_seen++] =
				(struct seen){ .temperature = c->temperature,
					       .scale = c->scale };
	}
}

static int alloc_spans(struct prepared *p, struct attn_scratch *s)
{
	for (uint32_t i = 0; i < p->n_seen; i++) {
		struct seen *x = &p->seen[i];

		x->spans = attn_scratch_alloc(s, p->n_spans_max *
							 sizeof(*x->spans));
		if (!x->spans)
			return -ENOMEM;
	}
	return 0;
}

static int alloc_states(struct prepared *p, struct attn_scratch *s)
{
	const struct attn_shape *g = p->it->shape;
	const size_t n = (size_t)p->it->n_rows * g->n_heads;

	for (uint32_t i = 0; i < p->n_seen; i++) {
		struct seen *x = &p->seen[i];

		x->o = attn_scratch_alloc(s, n * g->head_dim * sizeof(float));
		x->m = attn_scratch_alloc(s, n * sizeof(float));
		x->l = attn_scratch_alloc(s, n * sizeof(float));
		if (!x->o || !x->m || !x->l)
			return -ENOMEM;
	}
	return 0;
}

int attn_prepare_list(struct prepared *p, struct attn_scratch *s)
{
	struct attn_item *it = p->it;
	const uint32_t n_entries = it->seq->n_entries;

	p->scratch = s;
	p->delta =
		attn_scratch_alloc(s, (2 * n_entries + 2) * sizeof(*p->delta));
	p->delta_from = attn_scratch_alloc(s, (2 * n_entries + 2) *
						      sizeof(*p->delta_from));
	p->seen = attn_scratch_alloc(s, (n_entries + 1) * sizeof(*p->seen));
	if (!p->delta || !p->delta_from || !p->seen)
		return -ENOMEM;
	find_seen(p);
	p->shift = n_entries ? entry_at(it->seq, (int64_t)row_pos(it, 0))
				       ->context.shift
			     : 0;
	find_variants(p);
	p->n_spans_max = max_spans(it->seq);
	p->pos = attn_scratch_alloc(s, it->n_rows * sizeof(*p->pos));
	if (!p->pos || alloc_spans(p, s))
		return -ENOMEM;
	for (uint32_t i = 0; i < it->n_rows; i++)
		p->pos[i] = (int64_t)row_pos(it, i);
	return 0;
}

static int prepare(struct prepared *p, struct attn_scratch *s)
{
	const struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const size_t n_q = (size_t)it->n_rows * g->n_heads * g->head_dim;
	const int ret = attn_prepare_list(p, s);

	if (ret)
		return ret;
	p->tmp = attn_scratch_alloc(s, n_q * sizeof(float));
	p->q = attn_scratch_alloc(s, n_q * p->n_variants *
					     kern_type_bytes(g->type));
	if (!p->tmp || !p->q || alloc_states(p, s))
		return -ENOMEM;
	return 0;
}

/* ---- keys and values in ------------------------------------------------- */

#define STORE_ELEMS 4096u /* of stack, twice; >= KERN_HEAD_DIM_MAX */

struct attn_target attn_target(const struct attn_item *it, uint32_t r)
{
	const int64_t pos = (int64_t)row_pos(it, r);
	const struct seq_entry *e = entry_at(it->seq, pos);
	const uint32_t i_row = (uint32_t)(pos - e->pos);

	uint32_t t;

	if (!e->patch)
		return (struct attn_target){ e->seg, e->from + i_row };
	/* rows of a patched entry are the patch's */
	t = (uint32_t)seq_patch_index(e, i_row);
	assert(t < e->patch->n_tokens);
	return (struct attn_target){ e->patch, t };
}

/* Heads [h, h + n) of row r, [n][head_dim] in the pages' type, into the pages. */
static void store_heads(const struct attn_item *it, uint32_t layer, int v,
			const char *heads, uint32_t r, uint32_t h, uint32_t n)
{
	const struct attn_shape *g = it->shape;
	const size_t head = g->head_dim * kern_type_bytes(g->type);
	const struct attn_target to = attn_target(it, r);
	const struct segment *s = to.seg;
	const uint32_t t = to.token;
	const struct kv_layout *l = &s->layout;
	char *at = segment_addr(s, layer, v, t) + t % l->page_tokens * head +
		   h * layout_head_bytes(l);

	for (uint32_t i = 0; i < n; i++)
		memcpy(at + i * layout_head_bytes(l), heads + i * head, head);
}

/* Heads [h, h + n) of row r of k or v, as they are to lie in the pages. */
static void convert_heads(const struct prepared *p, int v, uint32_t r,
			  uint32_t h, uint32_t n, void *typed)
{
	const struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const size_t at = ((size_t)r * g->n_kv_heads + h) * g->head_dim;
	const size_t n_elems = (size_t)n * g->head_dim;
	float f[STORE_ELEMS];

	kern_to_f32(it->in,
		    (const char *)(v ? it->v : it->k) +
			    at * kern_type_bytes(it->in),
		    f, n_elems);
	if (!v)
		kern_rope(&g->rope, f, f, p->pos + r, 1, n, g->head_dim);
	kern_from_f32(g->type, f, typed, n_elems);
}

/* Convert, rotate (keys) and store row r of k or v. */
static void store_row(const struct prepared *p, int v, uint32_t r)
{
	const struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const uint32_t step = STORE_ELEMS / g->head_dim;
	float typed[STORE_ELEMS]; /* no type is longer */

	for (uint32_t h = 0; h < g->n_kv_heads; h += step) {
		const uint32_t n = KV_MIN(step, g->n_kv_heads - h);

		convert_heads(p, v, r, h, n, typed);
		store_heads(it, p->layer, v, (const char *)typed, r, h, n);
	}
}

/* Rows [from, to) of k and v. */
static void store_range(const struct prepared *p, uint32_t from, uint32_t to)
{
	const struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const int same = it->in == g->type;
	const size_t row =
		(size_t)g->n_kv_heads * g->head_dim * kern_type_bytes(it->in);

	for (uint32_t r = from; r < to; r++)
		for (int v = 0; v < 2; v++)
			if (same && (v || g->rope.kind == KERN_ROPE_NONE))
				store_heads(it, p->layer, v,
					    (const char *)(v ? it->v : it->k) +
						    r * row,
					    r, 0, g->n_kv_heads);
			else
				store_row(p, v, r);
}

/* Queries of rows [from, to) under one rotation. */
static void rotate_some(const struct prepared *p, uint32_t i_variant,
			uint32_t from, uint32_t to)
{
	const struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const size_t row = (size_t)g->n_heads * g->head_dim;
	const size_t es = kern_type_bytes(g->type);
	const size_t n = (to - from) * row;
	const char *q =
		(const char *)it->q + from * row * kern_type_bytes(it->in);
	char *dst = p->q + ((size_t)i_variant * it->n_rows + from) * row * es;
	const float *src = (const float *)q;
	float *f = p->tmp + from * row;
	int64_t pos[ROWS_PER_TASK];

	if (g->rope.kind == KERN_ROPE_NONE && it->in == g->type) {
		memcpy(dst, q, n * es);
		return;
	}
	for (uint32_t r = from; r < to; r++)
		pos[r - from] = p->pos[r] - p->delta[i_variant];
	if (it->in != KERN_F32) {
		kern_to_f32(it->in, q, f, n);
		src = f;
	}
	kern_rope(&g->rope, src, f, pos, to - from, g->n_heads, g->head_dim);
	kern_from_f32(g->type, f, dst, n);
}

/* Queries of rows [from, to), rotated for each variant of which they see keys. */
static void rotate_rows(const struct prepared *p, uint32_t from, uint32_t to)
{
	for (uint32_t i = 0; i < p->n_variants; i++) {
		uint32_t r = from;

		while (r < to && p->pos[r] < p->delta_from[i])
			r++;
		if (r < to)
			rotate_some(p, i, r, to);
	}
}

/* ---- tasks over items, rows and heads ----------------------------------- */

static void run_rows(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];

	if (t->p->it->k)
		store_range(t->p, t->row_from, t->row_to);
	if (t->p->it->q)
		rotate_rows(t->p, t->row_from, t->row_to);
}

/* Of what is seen in way i. */
static struct kern_attn kern_args(const struct task *t, uint32_t i)
{
	const struct prepared *p = t->p;
	const struct attn_shape *g = p->it->shape;
	const struct seen *seen = &p->seen[i];

	return (struct kern_attn){
		.type = g->type,
		.n_heads = g->n_heads,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.scale = g->scale / seen->temperature,
		.q = p->q,
		.q_variant_elems =
			(size_t)p->it->n_rows * g->n_heads * g->head_dim,
		.q_pos = p->pos,
		.n_rows = p->it->n_rows,
		.spans = seen->spans,
		.n_spans = seen->n_spans,
		.o = seen->o,
		.m = seen->m,
		.l = seen->l,
		.kv_head_from = t->head_from,
		.kv_head_to = t->head_to,
		.row_from = t->row_from,
		.row_to = t->row_to,
	};
}

void attn_run_clear(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];

	for (uint32_t k = 0; k < t->p->n_seen; k++) {
		const struct kern_attn a = kern_args(t, k);

		kern_attn_clear(&a);
	}
}

void attn_run_spans(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];

	for (uint32_t k = 0; k < t->p->n_seen; k++) {
		const struct kern_attn a = kern_args(t, k);
		const int ret = kern_attn(&a);

		if (ret)
			t->p->it->ret = ret;
	}
}

static void tell_lse(const struct task *t)
{
	const struct prepared *p = t->p;
	const uint32_t n = p->it->shape->n_heads;
	const uint32_t group = n / p->it->shape->n_kv_heads;

	for (uint32_t r = t->row_from; r < t->row_to; r++)
		for (size_t h = t->head_from * group; h < t->head_to * group;
		     h++)
			p->it->lse[r * n + h] = p->seen->m[r * n + h] +
						logf(p->seen->l[r * n + h]);
}

static void join_seen(const struct task *t)
{
	const struct prepared *p = t->p;
	const struct kern_attn a = kern_args(t, 0);
	struct kern_attn_group g[p->n_seen];

	for (uint32_t i = 0; i < p->n_seen; i++)
		g[i] = (struct kern_attn_group){ p->seen[i].o, p->seen[i].m,
						 p->seen[i].l,
						 p->seen[i].scale };
	kern_attn_join(&a, g, p->n_seen);
}

void attn_run_finish(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];
	const struct prepared *p = t->p;
	const struct attn_shape *g = p->it->shape;
	const struct kern_attn a = kern_args(t, 0);
	const size_t row = (size_t)g->n_heads * g->head_dim;
	const size_t group = (size_t)(g->n_heads / g->n_kv_heads) * g->head_dim;
	const size_t es = kern_type_bytes(p->it->in);

	if (p->n_seen > 1)
		join_seen(t);
	if (p->it->lse)
		tell_lse(t);
	if (!p->it->o)
		return;
	kern_attn_finish(&a);
	for (size_t r = t->row_from; r < t->row_to; r++) {
		const size_t at = r * row + t->head_from * group;

		kern_from_f32(p->it->in, p->seen->o + at,
			      (char *)p->it->o + at * es,
			      (t->head_to - t->head_from) * group);
	}
}

/* No window, or the only one: all of it in one go. */
static void run_all(void *arg, uint32_t i)
{
	attn_run_clear(arg, i);
	attn_run_spans(arg, i);
	attn_run_finish(arg, i);
}

void attn_run(struct pool *pool, struct task_list *l,
	      void (*fn)(void *arg, uint32_t i))
{
	if (pool && l->n > 1) {
		pool_run(pool, fn, l, l->n);
		return;
	}
	for (uint32_t i = 0; i < l->n; i++)
		fn(l, i);
}

/* Tasks of n_items items by rows, or by rows and heads. */
int attn_list_tasks(struct task_list *l, struct attn_scratch *s,
		    struct prepared *p, uint32_t n_items, int by_heads)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_items; i++)
		n += KV_DIV_UP(p[i].it->n_rows, ROWS_PER_TASK) *
		     (by_heads ? p[i].it->shape->n_kv_heads : 1);
	l->n = l->n_rows = 0;
	l->tasks = attn_scratch_alloc(s, n * sizeof(*l->tasks));
	if (!l->tasks)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_items; i++) {
		const uint32_t rows = p[i].it->n_rows;
		const uint32_t heads = p[i].it->shape->n_kv_heads;
		const uint32_t step = by_heads ? 1 : heads;

		l->n_rows += rows;
		for (uint32_t r = 0; r < rows; r += ROWS_PER_TASK)
			for (uint32_t h = 0; h < heads; h += step)
				l->tasks[l->n++] = (struct task){
					&p[i], r,
					KV_MIN(r + ROWS_PER_TASK, rows), h,
					h + step
				};
	}
	return 0;
}

/* ---- one layer --------------------------------------------------------------- */

static int run_resident(struct pool *pool, struct attn_scratch *s,
			struct prepared *p, uint32_t n)
{
	struct prepared *list;
	struct task_list l;
	uint32_t n_list = 0;

	list = attn_scratch_alloc(s, n * sizeof(*list));
	if (!list)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		if (!p[i].it->q || p[i].it->resident_from)
			continue;
		attn_build_spans(&p[i], 0,
				 row_pos(p[i].it, p[i].it->n_rows - 1) + 1);
		list[n_list++] = p[i];
	}
	if (attn_relay(pool, s, list, &n_list) ||
	    attn_list_tasks(&l, s, list, n_list, 1))
		return -ENOMEM;
	for (uint32_t i = 0; i < n_list; i++)
		stat_add(s->st_bytes,
			 KV_DIV_UP(list[i].it->n_rows, ROWS_PER_TASK) *
				 attn_read_bytes(&list[i]));
	attn_run(pool, &l, run_all);
	return 0;
}

static int run_prepared(struct engine *e, struct pool *pool,
			struct attn_scratch *s, struct prepared *p, uint32_t n)
{
	struct task_list l;
	int ret;

	ret = attn_list_tasks(&l, s, p, n, 0);
	if (ret)
		return ret;
	attn_run(l.n_rows > INLINE_ROWS ? pool : NULL, &l, run_rows);
	ret = run_resident(pool, s, p, n);
	for (uint32_t i = 0; i < n && !ret; i++)
		if (p[i].it->q && p[i].it->resident_from)
			p[i].it->ret = attn_run_windows(e, pool, s, &p[i]);
	return ret;
}

int attn_layer(struct engine *e, struct pool *pool, struct attn_scratch *s,
	       struct attn_item *items, uint32_t n_items, uint32_t layer)
{
	struct prepared *p;
	uint32_t n = 0;
	int ret = 0, first = 0;

	attn_scratch_reset(s);
	p = attn_scratch_alloc(s, n_items * sizeof(*p));
	for (uint32_t i = 0; i < n_items; i++) {
		items[i].ret = p ? 0 : -ENOMEM;
		if (!p || !items[i].n_rows)
			continue;
		memset(&p[n], 0, sizeof(p[n]));
		p[n].it = &items[i];
		p[n].layer = layer;
		items[i].ret = prepare(&p[n], s);
		n += !items[i].ret;
	}
	if (n)
		ret = run_prepared(e, pool, s, p, n);
	for (uint32_t i = 0; i < n_items; i++) {
		if (ret && !items[i].ret)
			items[i].ret = ret; /* nothing ran */
		if (items[i].ret && !first)
			first = items[i].ret;
	}
	return first;
}
