/*
 * attn.c - attention of one layer for rows of several sequences; see attn.h
 */
#include "kvd/serve/attn.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static_assert(SEGMENT_BLOCK == KERN_KV_BLOCK, "one tile grid");

#define ROWS_PER_TASK 64u
#define INLINE_ROWS   16u /* below this many rows threads do not pay */

/* ---- scratch ---------------------------------------------------------- */

struct spill {
	struct list node;
	char pad[48];
};
static_assert(sizeof(struct spill) == 64, "keeps the alignment");

void attn_scratch_init(struct attn_scratch *s)
{
	memset(s, 0, sizeof(*s));
	list_init(&s->spill);
}

static void free_spill(struct attn_scratch *s)
{
	struct list *n;

	while ((n = list_pop(&s->spill)))
		free(list_entry(n, struct spill, node));
	s->n_spilled = 0;
}

void attn_scratch_fini(struct attn_scratch *s)
{
	free_spill(s);
	free(s->base);
}

void attn_scratch_reset(struct attn_scratch *s)
{
	const size_t want = KV_ALIGN_UP(s->n_used + s->n_spilled, 4096);
	char *base;

	if (!list_empty(&s->spill)) {
		free_spill(s);
		base = aligned_alloc(64, want);
		if (base) {
			free(s->base);
			s->base = base;
			s->n_bytes = want;
		}
	}
	s->n_used = 0;
}

void *attn_scratch_alloc(struct attn_scratch *s, size_t n_bytes)
{
	const size_t n = KV_ALIGN_UP(n_bytes + 1, 64);
	struct spill *b;
	char *p;

	if (s->n_used + n <= s->n_bytes) {
		p = s->base + s->n_used;
		s->n_used += n;
		return p;
	}
	b = aligned_alloc(64, sizeof(*b) + n);
	if (!b)
		return NULL;
	list_init(&b->node);
	list_push(&s->spill, &b->node);
	s->n_spilled += n;
	return b + 1;
}

/* ---- one item, prepared ------------------------------------------------ */

struct prepared {
	struct attn_item *it;
	uint32_t layer;
	int64_t *pos; /* [n_rows] */
	float *o, *m, *l; /* state */
	char *q; /* [n_variants][n_rows][n_heads][head_dim] typed */
	float *tmp; /* [n_rows][n_heads][head_dim] f32 */
	int64_t *delta; /* [n_variants] */
	uint32_t n_variants;
	struct kern_span *spans;
	uint32_t n_spans;
	uint32_t n_spans_max;
	struct attn_scratch *scratch;
};

static uint64_t row_pos(const struct attn_item *it, uint32_t r)
{
	return it->rows_at ? it->rows_at[r] : it->pos + r;
}

/* Keys of e were rotated for positions this much below where they are used. */
static int64_t entry_delta(const struct seq_entry *e)
{
	return e->pos - (int64_t)e->from - e->seg->pos0;
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

static void find_variants(struct prepared *p)
{
	const struct seq *q = p->it->seq;

	if (p->it->shape->rope.kind == KERN_ROPE_NONE) {
		p->delta[0] = 0;
		p->n_variants = 1;
		return;
	}
	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];

		if (variant_of(p, entry_delta(e)) == p->n_variants)
			p->delta[p->n_variants++] = entry_delta(e);
		if (e->n_patch && variant_of(p, 0) == p->n_variants)
			p->delta[p->n_variants++] = 0; /* true positions */
	}
}

/* The entry's skip bits from token from on, as kern_span wants them. */
static const uint64_t *skip_bits(struct prepared *p, const struct seq_entry *e,
				 uint32_t from, uint32_t n)
{
	const uint32_t n_words = KV_DIV_UP(n, 64);
	uint64_t *bits;

	if (!e->skip || from % 64 == 0)
		return e->skip ? e->skip + from / 64 : NULL;
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

/* Spans of one entry's tokens [from, to), cut so that none begins inside a page. */
static void add_spans(struct prepared *p, const struct seq_entry *e,
		      uint32_t from, uint32_t to)
{
	const struct kv_layout *g = &e->seg->layout;

	while (from < to) {
		const uint32_t t = e->from + from;
		const uint32_t in_page = t % g->page_tokens;
		const uint32_t n =
			in_page ? KV_MIN(to - from, g->page_tokens - in_page)
				: to - from;
		const size_t skew =
			(size_t)in_page * g->head_dim * g->elem_bytes;

		assert(p->n_spans < p->n_spans_max);
		p->spans[p->n_spans++] = (struct kern_span){
			.k = segment_addr(e->seg, p->layer, 0, t) + skew,
			.v = segment_addr(e->seg, p->layer, 1, t) + skew,
			.head_bytes = layout_head_bytes(g),
			.page_bytes = g->page_bytes * g->n_groups,
			.page_tokens = g->page_tokens,
			.n_tokens = n,
			.q_variant = variant_of(p, entry_delta(e)),
			.pos = e->pos + from,
			.skip = skip_bits(p, e, from, n),
		};
		from += n;
	}
}

/* Tokens [from, from + n) of the patch, which follow each other from pos on. */
static void add_patch(struct prepared *p, const struct seq_entry *e,
		      uint32_t from, uint32_t n, int64_t pos)
{
	const struct seq_entry run = { .seg = e->patch };
	const uint32_t first = p->n_spans;

	add_spans(p, &run, e->patch_from + from, e->patch_from + from + n);
	for (uint32_t i = first; i < p->n_spans; i++) {
		p->spans[i].q_variant = variant_of(p, 0);
		p->spans[i].pos = pos;
		pos += p->spans[i].n_tokens;
	}
}

/*
 * The patch of e, as rows see it: from behind the entry all of it, side by side; from
 * inside, each run of neighbours at its place, as far as to (token of the entry).
 */
static void add_patches(struct prepared *p, const struct seq_entry *e,
			uint32_t to)
{
	const uint64_t row = p->it->pos;
	uint32_t i = 0, n;

	if (row >= (uint64_t)e->pos + e->n) {
		if (to == e->n && e->n_patch)
			add_patch(p, e, 0, e->n_patch, e->pos);
		return;
	}
	for (; i < e->n_patch && e->patch_at[i] < to; i += n) {
		n = 1;
		while (i + n < e->n_patch && e->patch_at[i + n] < to &&
		       e->patch_at[i + n] == e->patch_at[i] + n)
			n++;
		add_patch(p, e, i, n, e->pos + e->patch_at[i]);
	}
}

/* Spans of the positions [from, to). */
static void build_spans(struct prepared *p, uint64_t from, uint64_t to)
{
	const struct seq *q = p->it->seq;

	p->n_spans = 0;
	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];
		const uint64_t pos = (uint64_t)e->pos;
		const uint64_t a = KV_MAX(from, pos);
		const uint64_t b = KV_MIN(to, pos + e->n);

		if (a >= b)
			continue;
		add_spans(p, e, (uint32_t)(a - pos), (uint32_t)(b - pos));
		if (e->patch)
			add_patches(p, e, (uint32_t)(b - pos));
	}
}

/* At most: two of an entry, and two of each run of a patch. */
static uint32_t max_spans(const struct seq *q)
{
	uint32_t n = 2 * q->n_entries + 1;

	for (uint32_t i = 0; i < q->n_entries; i++)
		n += 2 * q->entries[i].n_patch;
	return n;
}

static int prepare(struct prepared *p, struct attn_scratch *s)
{
	struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const size_t n_heads = (size_t)it->n_rows * g->n_heads;
	const size_t n_q = n_heads * g->head_dim;
	const uint32_t n_entries = it->seq->n_entries;

	p->scratch = s;
	p->delta = attn_scratch_alloc(s, (n_entries + 2) * sizeof(*p->delta));
	if (!p->delta)
		return -ENOMEM;
	find_variants(p);
	p->n_spans_max = max_spans(it->seq);
	p->spans = attn_scratch_alloc(s, p->n_spans_max * sizeof(*p->spans));
	p->pos = attn_scratch_alloc(s, it->n_rows * sizeof(*p->pos));
	p->o = attn_scratch_alloc(s, n_q * sizeof(float));
	p->m = attn_scratch_alloc(s, n_heads * sizeof(float));
	p->l = attn_scratch_alloc(s, n_heads * sizeof(float));
	p->tmp = attn_scratch_alloc(s, n_q * sizeof(float));
	p->q = attn_scratch_alloc(s, n_q * p->n_variants *
					     kern_type_bytes(g->type));
	if (!p->spans || !p->pos || !p->o || !p->m || !p->l || !p->tmp || !p->q)
		return -ENOMEM;
	for (uint32_t i = 0; i < it->n_rows; i++)
		p->pos[i] = (int64_t)row_pos(it, i);
	return 0;
}

/* ---- keys and values in ------------------------------------------------- */

#define STORE_ELEMS 4096u /* of stack, twice; >= KERN_HEAD_DIM_MAX */

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

/* Heads [h, h + n) of row r, [n][head_dim] in the pages' type, into the pages. */
static void store_heads(const struct attn_item *it, uint32_t layer, int v,
			const char *heads, uint32_t r, uint32_t h, uint32_t n)
{
	const struct attn_shape *g = it->shape;
	const size_t head = g->head_dim * kern_type_bytes(g->type);
	const int64_t pos = (int64_t)row_pos(it, r);
	const struct seq_entry *e = entry_at(it->seq, pos);
	/* rows of a patched entry are the patch's */
	const struct segment *s = e->patch ? e->patch : e->seg;
	const uint32_t i_row = (uint32_t)(pos - e->pos);
	const uint32_t t = e->patch ? (uint32_t)seq_patch_index(e, i_row)
				    : e->from + i_row;
	const struct kv_layout *l = &s->layout;
	char *at = segment_addr(s, layer, v, t) + t % l->page_tokens * head +
		   h * layout_head_bytes(l);

	assert(!e->patch || t < s->n_tokens);

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

/* Queries of rows [from, to), rotated for each variant. */
static void rotate_rows(const struct prepared *p, uint32_t from, uint32_t to)
{
	const struct attn_item *it = p->it;
	const struct attn_shape *g = it->shape;
	const size_t row = (size_t)g->n_heads * g->head_dim;
	const size_t es = kern_type_bytes(g->type);
	const size_t n = (to - from) * row;
	const char *q =
		(const char *)it->q + from * row * kern_type_bytes(it->in);
	float *f = p->tmp + from * row;
	int64_t pos[ROWS_PER_TASK];

	for (uint32_t i = 0; i < p->n_variants; i++) {
		char *dst = p->q + ((size_t)i * it->n_rows + from) * row * es;

		if (g->rope.kind == KERN_ROPE_NONE && it->in == g->type) {
			memcpy(dst, q, n * es);
			continue;
		}
		for (uint32_t r = from; r < to; r++)
			pos[r - from] = p->pos[r] - p->delta[i];
		kern_to_f32(it->in, q, f, n);
		kern_rope(&g->rope, f, f, pos, to - from, g->n_heads,
			  g->head_dim);
		kern_from_f32(g->type, f, dst, n);
	}
}

/* ---- tasks over items, rows and heads ----------------------------------- */

struct task {
	struct prepared *p;
	uint32_t row_from, row_to;
	uint32_t head_from, head_to;
};
struct task_list {
	struct task *tasks;
	uint32_t n;
	uint32_t n_rows;
};

static void run_rows(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];

	if (t->p->it->k)
		store_range(t->p, t->row_from, t->row_to);
	if (t->p->it->q)
		rotate_rows(t->p, t->row_from, t->row_to);
}

static struct kern_attn kern_args(const struct task *t)
{
	const struct prepared *p = t->p;
	const struct attn_shape *g = p->it->shape;

	return (struct kern_attn){
		.type = g->type,
		.n_heads = g->n_heads,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.scale = g->scale,
		.q = p->q,
		.q_variant_elems =
			(size_t)p->it->n_rows * g->n_heads * g->head_dim,
		.q_pos = p->pos,
		.n_rows = p->it->n_rows,
		.spans = p->spans,
		.n_spans = p->n_spans,
		.o = p->o,
		.m = p->m,
		.l = p->l,
		.kv_head_from = t->head_from,
		.kv_head_to = t->head_to,
		.row_from = t->row_from,
		.row_to = t->row_to,
	};
}

static void run_clear(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];
	const struct kern_attn a = kern_args(t);

	kern_attn_clear(&a);
}

static void run_attn(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];
	const struct kern_attn a = kern_args(t);
	const int ret = kern_attn(&a);

	if (ret)
		t->p->it->ret = ret;
}

static void tell_lse(const struct task *t)
{
	const struct prepared *p = t->p;
	const uint32_t n = p->it->shape->n_heads;
	const uint32_t group = n / p->it->shape->n_kv_heads;

	for (uint32_t r = t->row_from; r < t->row_to; r++)
		for (size_t h = t->head_from * group; h < t->head_to * group;
		     h++)
			p->it->lse[r * n + h] =
				p->m[r * n + h] + logf(p->l[r * n + h]);
}

static void run_finish(void *arg, uint32_t i)
{
	const struct task *t = &((struct task_list *)arg)->tasks[i];
	const struct prepared *p = t->p;
	const struct attn_shape *g = p->it->shape;
	const struct kern_attn a = kern_args(t);
	const size_t row = (size_t)g->n_heads * g->head_dim;
	const size_t group = (size_t)(g->n_heads / g->n_kv_heads) * g->head_dim;
	const size_t es = kern_type_bytes(p->it->in);

	if (p->it->lse)
		tell_lse(t);
	if (!p->it->o)
		return;
	kern_attn_finish(&a);
	for (size_t r = t->row_from; r < t->row_to; r++) {
		const size_t at = r * row + t->head_from * group;

		kern_from_f32(p->it->in, p->o + at, (char *)p->it->o + at * es,
			      (t->head_to - t->head_from) * group);
	}
}

/* No window, or the only one: all of it in one go. */
static void run_all(void *arg, uint32_t i)
{
	run_clear(arg, i);
	run_attn(arg, i);
	run_finish(arg, i);
}

static void run(struct pool *pool, struct task_list *l,
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
static int list_tasks(struct task_list *l, struct attn_scratch *s,
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

/* ---- windows -------------------------------------------------------------- */

struct window {
	struct engine_ask ask;
	struct page_want want;
	struct pager *pager;
	const int *cancelled;
	struct page_run *runs; /* of the window wanted */
	uint32_t n_runs;
	struct page_run *held; /* pinned before; given back first */
	uint32_t n_held;
};

static void window_done(struct wait *w, int ret)
{
	struct window *win = container_of(
		container_of(w, struct page_want, wait), struct window, want);

	engine_answer(&win->ask, ret);
}

static void window_turn(struct engine_ask *a)
{
	struct window *win = container_of(a, struct window, ask);
	int ret;

	if (win->n_held)
		page_unpin(win->pager, win->held, win->n_held);
	win->n_held = 0;
	if (!win->n_runs) {
		engine_answer(a, 0);
		return;
	}
	if (win->cancelled && *win->cancelled) {
		engine_answer(a, -ECANCELED);
		return;
	}
	win->want.wait.done = window_done;
	win->want.runs = win->runs;
	win->want.n_runs = win->n_runs;
	ret = page_want(win->pager, &win->want);
	if (ret)
		engine_answer(a, ret > 0 ? 0 : ret);
}

/* The end of the window that starts at from and pins at most max_pages. */
static uint64_t window_end(const struct seq *q, uint64_t from, uint64_t to,
			   uint64_t max_pages, uint32_t page_tokens)
{
	uint64_t end = from, n_pages = 0;

	for (uint32_t i = 0; i < q->n_entries && end < to; i++) {
		const struct seq_entry *e = &q->entries[i];
		const uint64_t stop = KV_MIN(to, (uint64_t)e->pos + e->n);

		while (end < stop && n_pages < max_pages) {
			const uint64_t t = e->from + end - (uint64_t)e->pos;

			end += page_tokens - t % page_tokens;
			end = KV_MIN(end, stop);
			n_pages++;
		}
		if (n_pages >= max_pages)
			break;
	}
	return end;
}

/* Bring in [from, to) of the item's layer and run its tasks over it. */
static int run_window(struct engine *e, struct pool *pool, struct task_list *l,
		      struct window *win, uint64_t from, uint64_t to,
		      struct page_run *room[2])
{
	struct prepared *p = l->tasks[0].p;
	const struct seq *q = p->it->seq;
	const uint32_t group = p->layer / q->layout.page_layers;
	int ret;

	win->runs = room[win->runs == room[0]];
	win->n_runs = seq_runs(q, from, to, group, win->runs, UINT32_MAX);
	ret = engine_ask(e, &win->ask);
	if (ret) {
		win->n_runs = 0;
		return ret;
	}
	p->it->n_read += win->want.n_read;
	win->held = win->runs;
	win->n_held = win->n_runs;
	build_spans(p, from, to);
	run(pool, l, run_attn);
	return 0;
}

static int run_windows(struct engine *e, struct pool *pool,
		       struct attn_scratch *s, struct prepared *p)
{
	struct attn_item *it = p->it;
	const struct seq *q = it->seq;
	const uint64_t max_pages = it->window_bytes / q->layout.page_bytes;
	struct window win = { .ask.run = window_turn,
			      .cancelled = it->cancelled,
			      .pager = segment_pool_pager(q->pool) };
	const uint32_t group = p->layer / q->layout.page_layers;
	const uint32_t n_runs = seq_runs(q, 0, q->n_tokens, group, NULL, 0);
	struct page_run *room[2];
	struct task_list l;
	int ret = -ENOMEM;

	room[0] = attn_scratch_alloc(s, n_runs * sizeof(*room[0]));
	room[1] = attn_scratch_alloc(s, n_runs * sizeof(*room[1]));
	if (!room[0] || !room[1] || list_tasks(&l, s, p, 1, 1))
		return ret;
	run(pool, &l, run_clear);
	ret = max_pages ? 0 : -ENOSPC;
	for (uint64_t at = 0; !ret && at < it->resident_from;) {
		const uint64_t end = window_end(q, at, it->resident_from,
						max_pages,
						q->layout.page_tokens);

		ret = run_window(e, pool, &l, &win, at, end, room);
		at = end;
	}
	win.n_runs = 0;
	if (win.n_held)
		(void)engine_ask(e, &win.ask); /* only gives back */
	if (ret)
		return ret;
	build_spans(p, it->resident_from, it->pos + it->n_rows);
	run(pool, &l, run_attn);
	run(pool, &l, run_finish);
	return it->ret;
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
		build_spans(&p[i], 0,
			    row_pos(p[i].it, p[i].it->n_rows - 1) + 1);
		list[n_list++] = p[i];
	}
	if (list_tasks(&l, s, list, n_list, 1))
		return -ENOMEM;
	run(pool, &l, run_all);
	return 0;
}

static int run_prepared(struct engine *e, struct pool *pool,
			struct attn_scratch *s, struct prepared *p, uint32_t n)
{
	struct task_list l;
	int ret;

	ret = list_tasks(&l, s, p, n, 0);
	if (ret)
		return ret;
	run(l.n_rows > INLINE_ROWS ? pool : NULL, &l, run_rows);
	ret = run_resident(pool, s, p, n);
	for (uint32_t i = 0; i < n && !ret; i++)
		if (p[i].it->q && p[i].it->resident_from)
			p[i].it->ret = run_windows(e, pool, s, &p[i]);
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

void attn_copy(const struct seq_copy *c)
{
	const struct kv_layout *g = &c->src->layout;
	const size_t row = (size_t)g->head_dim * g->elem_bytes;
	const size_t head = layout_head_bytes(g);

	for (uint32_t l = 0; l < g->n_layers; l++)
		for (int v = 0; v < 2; v++) {
			const uint32_t t = c->src_from;
			const char *src = segment_addr(c->src, l, v, t) +
					  t % g->page_tokens * row;
			char *dst = segment_addr(c->dst, l, v, 0);

			for (uint32_t h = 0; h < g->n_kv_heads; h++)
				memcpy(dst + h * head, src + h * head,
				       c->n * row);
		}
}
