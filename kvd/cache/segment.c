/*
 * segment.c - open, seal, refer to, keep and free segments; see segment.h
 */
#include "kvd/cache/segment.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include "kvd/cache/variant.h"

struct segment_pool {
	struct pager *pager;
	uint64_t capacity_bytes;
	uint64_t bytes;
	uint64_t live_bytes; /* of those referenced */
	uint32_t n;
	struct list live; /* referenced */
	struct list kept; /* for reuse, oldest first */
	struct list aheads; /* of live, not needed yet: segment_ahead.node */
	struct list volatiles; /* see segment_volatiles() */
	struct table_slot {
		struct segment *s; /* or NULL */
		uint32_t next_free;
	} * table; /* of all segments: each stays at its place, for segment_walk() */
	uint32_t n_table, table_room, first_free;
	uint64_t
		sealed_waste; /* of those that are sealed: see segment_waste() */
};

#define NO_SLOT		    UINT32_MAX
#define LAYOUT_MAX	    65536u
#define LAYOUT_BLOCKS_MAX   32u /* of a page in frames */
#define LAYOUT_SHORT	    2048u /* tokens of a sequence that is not to waste */
#define LAYOUT_BY_TOKEN_MAX 16384u /* tokens of a page */

static int layout_ok(const struct kv_layout *g)
{
	return g->n_layers && g->n_layers <= LAYOUT_MAX && g->n_kv_heads &&
	       g->n_kv_heads <= 1024 && g->head_dim && g->head_dim <= 1024 &&
	       (g->elem_bytes == 2 || g->elem_bytes == 4) &&
	       (g->page_tokens % SEGMENT_BLOCK == 0 || g->page_tokens == 1) &&
	       g->page_tokens <= LAYOUT_MAX && g->page_layers <= g->n_layers;
}

/* Bytes of K and V of one layer and SEGMENT_BLOCK tokens. */
static uint64_t block_bytes(const struct kv_layout *g)
{
	return 2ull * g->n_kv_heads * SEGMENT_BLOCK * g->head_dim *
	       g->elem_bytes;
}

/* The smallest page, of up to four blocks, that whole folios hold; 0: none. */
static int choose_folios(struct kv_layout *g)
{
	uint64_t best = UINT64_MAX;

	for (uint32_t blocks = 1; blocks <= 4; blocks *= 2)
		for (uint32_t n = g->n_layers; n; n--) {
			const uint64_t bytes = block_bytes(g) * blocks * n;

			if (g->n_layers % n || bytes % LAYOUT_FOLIO ||
			    bytes >= best)
				continue;
			best = bytes;
			g->page_tokens = blocks * SEGMENT_BLOCK;
			g->page_layers = n;
		}
	return best <= LAYOUT_MAX_FOLIOS * LAYOUT_FOLIO;
}

/*
 * For whole frames of a device: the page that wastes least of a sequence of
 * LAYOUT_SHORT tokens, by padding and by its last block, half full; of equal ones
 * the smallest.
 */
static void choose_frames(struct kv_layout *g)
{
	const double short_tokens = LAYOUT_SHORT;
	double best = INFINITY;
	uint64_t best_bytes = 0;

	for (uint32_t blocks = 1; blocks <= LAYOUT_BLOCKS_MAX; blocks++)
		for (uint32_t n = 1; n <= g->n_layers; n++) {
			const uint64_t raw = block_bytes(g) * blocks * n;
			const uint64_t page =
				KV_ALIGN_UP(raw, (uint64_t)g->page_align);
			const double tokens = blocks * SEGMENT_BLOCK;
			const double pad = (double)page / (double)raw;
			const double waste =
				pad * (1 + tokens / 2 / short_tokens);

			if (g->n_layers % n || waste > best ||
			    (waste >= best && page >= best_bytes))
				continue;
			best = waste;
			best_bytes = page;
			g->page_tokens = blocks * SEGMENT_BLOCK;
			g->page_layers = n;
		}
}

static void choose_small(struct kv_layout *g)
{
	uint64_t n;

	if (!g->page_tokens)
		g->page_tokens = SEGMENT_BLOCK;
	n = LAYOUT_PAGE_TARGET /
	    (block_bytes(g) * (g->page_tokens / SEGMENT_BLOCK));
	if (!g->page_layers)
		g->page_layers = (uint32_t)KV_MIN(KV_MAX(n, 1u), g->n_layers);
}

/* No byte between two pages, or the stride would not be one. */
static int choose_by_token(struct kv_layout *g)
{
	const size_t align = g->page_align ? g->page_align : LAYOUT_FOLIO;
	uint32_t n = SEGMENT_BLOCK;

	g->order = LAYOUT_BY_TOKEN;
	if (!g->page_layers)
		g->page_layers = 1;
	while (n <= LAYOUT_BY_TOKEN_MAX && n * layout_row_bytes(g) % align)
		n += SEGMENT_BLOCK;
	if (n > LAYOUT_BY_TOKEN_MAX || g->n_layers % g->page_layers)
		return -EINVAL;
	g->page_tokens = n;
	g->n_groups = g->n_layers / g->page_layers;
	g->page_bytes = n * layout_row_bytes(g);
	return 0;
}

int kv_layout_init(struct kv_layout *g)
{
	struct kv_layout f;

	if (!layout_ok(g))
		return -EINVAL;
	if (g->page_tokens == 1)
		return choose_by_token(g);
	f = *g;
	if (!g->page_tokens && !g->page_layers && g->page_align > 4096)
		choose_frames(g);
	else if (!g->page_tokens && !g->page_layers && choose_folios(&f))
		*g = f;
	else
		choose_small(g);
	g->n_groups = KV_DIV_UP(g->n_layers, g->page_layers);
	g->page_bytes =
		KV_ALIGN_UP(block_bytes(g) * (g->page_tokens / SEGMENT_BLOCK) *
				    g->page_layers,
			    g->page_align ? g->page_align : 4096);
	return 0;
}

uint64_t kv_layout_bytes(const struct kv_layout *g, uint32_t n_tokens)
{
	return (uint64_t)KV_DIV_UP(n_tokens, g->page_tokens) * g->n_groups *
	       g->page_bytes;
}

uint64_t kv_layout_token_bytes(const struct kv_layout *g)
{
	return 2ull * g->n_layers * g->n_kv_heads * g->head_dim * g->elem_bytes;
}

int segment_pool_new(struct segment_pool **out, struct pager *pager,
		     uint64_t capacity_bytes)
{
	struct segment_pool *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->pager = pager;
	p->capacity_bytes = capacity_bytes;
	list_init(&p->live);
	list_init(&p->kept);
	list_init(&p->aheads);
	list_init(&p->volatiles);
	p->first_free = NO_SLOT;
	*out = p;
	return 0;
}

/* Wherever it lies. */
static int forget_oldest(struct segment_pool *p)
{
	struct list *n = list_first(&p->kept);

	if (!n)
		return -ENOSPC;
	segment_evict(list_entry(n, struct segment, node));
	return 0;
}

void segment_pool_free(struct segment_pool *p)
{
	if (!p)
		return;
	while (!forget_oldest(p))
		;
	assert(list_empty(&p->live));
	free(p->table);
	free(p);
}

struct pager *segment_pool_pager(struct segment_pool *p)
{
	return p->pager;
}

uint32_t segment_pool_n(const struct segment_pool *p)
{
	return p->n;
}

uint64_t segment_pool_bytes(const struct segment_pool *p)
{
	return p->bytes;
}

uint64_t segment_pool_capacity(const struct segment_pool *p)
{
	return p->capacity_bytes;
}

static int indexed(const struct segment *s)
{
	return s->is_chunk || s->is_variant || s->n_indexed;
}

/* ---- the table --------------------------------------------------------------- */

static uint64_t waste(const struct segment *s)
{
	return s->bytes - s->n_tokens * kv_layout_token_bytes(&s->layout);
}

static int table_grow(struct segment_pool *p)
{
	const uint32_t n = p->table_room ? 2 * p->table_room : 64;
	struct table_slot *t;

	if (n <= p->table_room)
		return -ENOMEM;
	t = realloc(p->table, n * sizeof(*t));
	if (!t)
		return -ENOMEM;
	p->table = t;
	p->table_room = n;
	return 0;
}

static int table_add(struct segment_pool *p, struct segment *s)
{
	uint32_t i = p->first_free;

	if (i != NO_SLOT) {
		p->first_free = p->table[i].next_free;
	} else {
		if (p->n_table == p->table_room && table_grow(p))
			return -ENOMEM;
		i = p->n_table++;
	}
	p->table[i].s = s;
	s->i_table = i;
	return 0;
}

static void table_del(struct segment_pool *p, const struct segment *s)
{
	assert(p->table[s->i_table].s == s);
	p->sealed_waste -= s->waste;
	p->table[s->i_table].s = NULL;
	p->table[s->i_table].next_free = p->first_free;
	p->first_free = s->i_table;
}

int segment_walk(struct segment_pool *p, uint32_t *at, uint32_t n,
		 void (*fn)(struct segment *s, void *arg), void *arg)
{
	for (; n && *at < p->n_table; n--, ++*at)
		if (p->table[*at].s)
			fn(p->table[*at].s, arg);
	return *at < p->n_table;
}

uint64_t segment_waste(const struct segment_pool *p)
{
	uint64_t n = p->sealed_waste;

	list_for_each(i, (struct list *)&p->live) {
		const struct segment *s = list_entry(i, struct segment, node);

		n += s->sealed ? 0 : waste(s);
	}
	return n;
}

/* Who stands in line for s does so no more. */
static void drop_awaits(struct segment *s)
{
	struct list *n;

	while ((n = list_pop(&s->awaits)))
		list_entry(n, struct segment_await, node)->seg = NULL;
}

static void release(struct segment *s)
{
	if (!s->adopted || s->ids != segment_ids(s))
		free(s->ids);
	if (!s->adopted)
		free(s->tokens);
	variant_free(s->variant);
	free(s);
}

static void segment_free(struct segment *s)
{
	struct segment_pool *p = s->pool;

	list_del(&s->node);
	list_del(&s->persist.node);
	drop_awaits(s);
	range_free(s->range);
	table_del(p, s);
	p->bytes -= s->bytes;
	p->n--;
	release(s);
}

static int open_segment(struct segment_pool *p, const struct kv_layout *g,
			uint32_t cap_tokens, int64_t pos0, struct segment **out)
{
	const uint64_t bytes = kv_layout_bytes(g, cap_tokens);
	struct segment *s;
	int ret;

	if (p->live_bytes + bytes > pager_place_bytes(p->pager))
		return -EDQUOT;
	while (p->bytes + bytes > p->capacity_bytes)
		if (segment_reclaim(p) && forget_oldest(p))
			return -EDQUOT;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	ret = table_add(p, s);
	if (ret) {
		free(s);
		return ret;
	}
	ret = range_new(p->pager, g->page_bytes,
			KV_DIV_UP(cap_tokens, g->page_tokens) * g->n_groups,
			&s->range);
	if (ret) {
		table_del(p, s);
		free(s);
		return ret;
	}
	s->pool = p;
	s->layout = *g;
	range_set_owner(s->range, s);
	s->bytes = bytes;
	s->n_refs = 1;
	s->cap_tokens = cap_tokens;
	s->pos0 = pos0;
	p->bytes += bytes;
	p->live_bytes += bytes;
	p->n++;
	list_init(&s->node);
	list_init(&s->persist.node);
	list_init(&s->awaits);
	list_push(&p->live, &s->node);
	*out = s;
	return 0;
}

int segment_new(struct segment_pool *p, const struct kv_layout *g,
		uint32_t cap_tokens, int64_t pos0, struct segment **out)
{
	int ret = open_segment(p, g, cap_tokens, pos0, out);
	struct list *n;

	while (ret == -EDQUOT && (n = list_first(&p->aheads))) {
		segment_ahead_drop(list_entry(n, struct segment_ahead, node));
		ret = open_segment(p, g, cap_tokens, pos0, out);
	}
	return ret;
}

int segment_ahead_new(struct segment_pool *p, const struct kv_layout *g,
		      uint32_t cap_tokens, int64_t pos0,
		      struct segment_ahead *a)
{
	const int ret = open_segment(p, g, cap_tokens, pos0, &a->seg);

	if (ret)
		a->seg = NULL;
	else
		list_push(&p->aheads, &a->node);
	return ret;
}

struct segment *segment_ahead_take(struct segment_ahead *a)
{
	struct segment *s = a->seg;

	if (s)
		list_del(&a->node);
	a->seg = NULL;
	return s;
}

void segment_ahead_drop(struct segment_ahead *a)
{
	struct segment *s = segment_ahead_take(a);

	if (s)
		segment_put(s);
}

int segment_adopt(struct segment_pool *p, const struct kv_layout *g,
		  uint32_t n_tokens, int64_t pos0, uint32_t n_ids,
		  struct range *range, struct segment **out)
{
	const uint64_t bytes = kv_layout_bytes(g, n_tokens);
	const size_t behind = n_ids * sizeof(*(*out)->ids) +
			      (size_t)n_tokens * sizeof(*(*out)->tokens);
	struct segment *s;

	if (bytes / g->page_bytes != range_n_pages(range) ||
	    g->page_bytes != range_page_bytes(range))
		return -EINVAL;
	if (bytes > p->capacity_bytes - p->bytes)
		return -EDQUOT;
	/* once for all of it: a start does so a million times */
	s = malloc(sizeof(*s) + behind);
	if (!s)
		return -ENOMEM;
	*s = (struct segment){ .adopted = 1 };
	if (table_add(p, s)) {
		free(s);
		return -ENOMEM;
	}
	s->tokens = (uint32_t *)(segment_ids(s) + n_ids);
	s->pool = p;
	s->layout = *g;
	s->range = range;
	range_set_owner(range, s);
	s->bytes = bytes;
	s->n_refs = 1;
	s->sealed = 1;
	s->n_tokens = s->cap_tokens = n_tokens;
	s->pos0 = pos0;
	p->bytes += bytes;
	p->live_bytes += bytes;
	s->waste = waste(s);
	p->sealed_waste += s->waste;
	p->n++;
	list_init(&s->node);
	list_init(&s->persist.node);
	list_init(&s->awaits);
	list_push(&p->live, &s->node);
	*out = s;
	return 0;
}

struct segment *segment_over(const struct range *r)
{
	return range_owner(r);
}

struct range *segment_disown(struct segment *s)
{
	struct range *r = s->range;

	range_set_owner(r, NULL);
	assert(s->n_refs == 1 && !indexed(s));
	list_del(&s->node);
	drop_awaits(s);
	s->pool->bytes -= s->bytes;
	s->pool->live_bytes -= s->bytes;
	s->pool->n--;
	table_del(s->pool, s);
	release(s);
	return r;
}

void segment_seal(struct segment *s, uint32_t n_tokens)
{
	const uint64_t bytes = kv_layout_bytes(&s->layout, n_tokens);

	assert(!s->sealed && n_tokens <= s->cap_tokens && n_tokens);
	s->sealed = 1;
	list_push(&s->pool->volatiles, &s->persist.node);
	s->n_tokens = n_tokens;
	range_trim(s->range, (uint32_t)(bytes / s->layout.page_bytes));
	s->pool->bytes -= s->bytes - bytes;
	s->pool->live_bytes -= s->bytes - bytes;
	s->bytes = bytes;
	s->waste = waste(s);
	s->pool->sealed_waste += s->waste;
}

int segment_fits(const struct segment *s)
{
	return s->n_refs || s->pool->live_bytes + s->bytes <=
				    pager_place_bytes(s->pool->pager);
}

static void hint(struct segment *s)
{
	range_hint(s->range, !list_empty(&s->awaits) ? RANGE_AWAITED
			     : s->n_refs	     ? RANGE_HOT
						     : RANGE_COLD);
}

void segment_get(struct segment *s)
{
	if (!s->n_refs++) {
		s->pool->live_bytes += s->bytes;
		list_del(&s->node);
		list_push(&s->pool->live, &s->node);
		hint(s);
	}
}

void segment_put(struct segment *s)
{
	assert(s->n_refs);
	if (--s->n_refs)
		return;
	s->pool->live_bytes -= s->bytes;
	if (!indexed(s) || range_lost(s->range)) {
		segment_forget(s);
		return;
	}
	list_del(&s->node);
	list_push(&s->pool->kept, &s->node);
	hint(s);
}

void segment_await(struct segment *s, struct segment_await *a)
{
	a->seg = s;
	list_push(&s->awaits, &a->node);
	hint(s);
	if (s->n_refs)
		return;
	list_del(&s->node);
	list_push(&s->pool->kept, &s->node);
}

void segment_await_end(struct segment_await *a)
{
	struct segment *s = a->seg;

	if (!s)
		return;
	a->seg = NULL;
	list_del(&a->node);
	if (list_empty(&s->awaits))
		hint(s);
}

void segment_forget(struct segment *s)
{
	if (indexed(s) && s->unindex)
		s->unindex(s, s->unindex_ctx);
	assert(!indexed(s));
	if (!s->n_refs)
		segment_free(s);
}

void segment_evict(struct segment *s)
{
	s->evicted = 1;
	segment_forget(s);
}

static double worth(const struct segment *s)
{
	return s->worth(s, s->unindex_ctx);
}

/* Who goes instead of the oldest, which has a score. */
static struct segment *least_worth(struct segment_pool *p,
				   struct segment *oldest)
{
	struct segment *least = oldest;
	uint32_t n = 0;

	list_for_each(node, &p->kept) {
		struct segment *s = list_entry(node, struct segment, node);

		if (s->worth && worth(s) < worth(least) &&
		    !range_is_away(s->range))
			least = s;
		if (++n == SEGMENT_SAMPLE)
			break;
	}
	return least;
}

int segment_reclaim(struct segment_pool *p)
{
	list_for_each(n, &p->kept) {
		struct segment *s = list_entry(n, struct segment, node);

		if (range_is_away(s->range))
			continue;
		segment_evict(s->worth ? least_worth(p, s) : s);
		return 0;
	}
	return -ENOSPC;
}

struct list *segment_volatiles(struct segment_pool *p)
{
	return &p->volatiles;
}

void segment_each(struct segment_pool *p,
		  void (*fn)(struct segment *s, void *arg), void *arg)
{
	list_for_each(n, &p->live)
		fn(list_entry(n, struct segment, node), arg);
	list_for_each(n, &p->kept)
		fn(list_entry(n, struct segment, node), arg);
}

char *segment_addr(const struct segment *s, uint32_t layer, int v, uint32_t t)
{
	const struct kv_layout *g = &s->layout;
	const size_t page = (size_t)(t / g->page_tokens) * g->n_groups +
			    layer / g->page_layers;
	const size_t plane = (size_t)(layer % g->page_layers) * 2 + (size_t)v;

	return range_addr(s->range) + page * g->page_bytes +
	       plane * g->n_kv_heads * layout_head_bytes(g);
}

void segment_pages(const struct segment *s, uint32_t from, uint32_t to,
		   struct page_run *run)
{
	const struct kv_layout *g = &s->layout;
	const uint32_t first = from / g->page_tokens;
	const uint32_t end = KV_DIV_UP(to, g->page_tokens);

	run->range = s->range;
	run->first = first * g->n_groups;
	run->n = end > first ? (end - first) * g->n_groups : 0;
	run->flags = 0;
}

void segment_kind(struct segment *s, uint32_t from, uint32_t n,
		  const struct kind_facts *f)
{
	const uint32_t page = s->layout.page_tokens;
	const uint32_t n_groups = s->layout.n_groups;
	struct kind_facts at = *f;

	at.page_tokens = page;
	for (uint32_t i = from / page; i < KV_DIV_UP(from + n, page); i++) {
		const uint64_t ahead = f->at_token + (uint64_t)i * page;

		at.at_token = ahead > from ? ahead - from : 0;
		range_class(s->range, i * n_groups, n_groups,
			    page_kind_of(&at));
	}
}

static void check_one(struct segment *s, void *arg)
{
	uint64_t *bytes = arg;

	assert(s->pool->table[s->i_table].s == s);
	bytes[0] += s->bytes;
	bytes[2] += s->waste;
	bytes[1] += s->n_refs ? s->bytes : 0;
	assert(s->n_refs || (s->sealed && indexed(s)));
	list_for_each(n, &s->awaits)
		assert(list_entry(n, struct segment_await, node)->seg == s);
	assert(s->n_tokens <= s->cap_tokens);
	assert(segment_over(s->range) == s);
	assert(s->bytes / s->layout.page_bytes == range_n_pages(s->range));
}

void segment_pool_check(struct segment_pool *p)
{
	uint64_t bytes[3] = { 0 };

	segment_each(p, check_one, bytes);
	assert(bytes[0] == p->bytes && bytes[0] <= p->capacity_bytes);
	assert(bytes[1] == p->live_bytes);
	assert(bytes[2] == p->sealed_waste);
}
