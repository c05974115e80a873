/*
 * preload.c - pages for requests in line, by layers, and what they find stays; see
 * preload.h
 */
#include "kvd/serve/preload.h"

#include <stdlib.h>
#include "kvd/base/clock.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/restore.h"

#define LOOK_NS	   1000000u /* what was asked for may have come */
#define NO_ROOM_NS 10000000u

enum look { LOOK_DONE, LOOK_COMING, LOOK_NO_ROOM };

/* ---- what there is ---------------------------------------------------------- */

/* Without memory it comes when it is wanted. */
static struct preload *add(struct preload *p, struct preload_item item)
{
	struct preload *more;

	more = realloc(p, sizeof(*p) + (p->n_items + 1) * sizeof(p->items[0]));
	if (more)
		more->items[more->n_items++] = item;
	return more ? more : p;
}

static uint32_t n_tiles(const struct segment *s)
{
	return KV_DIV_UP(s->n_tokens, SEGMENT_BLOCK);
}

/* Which tile of s it is, from on; n_tiles(): none. */
static uint32_t tile_of(const struct segment *s, uint32_t from,
			struct map_id id)
{
	while (from < n_tiles(s) && !map_id_equal(s->ids[from], id))
		from++;
	return from;
}

static struct preload *add_prefix(struct preload *p, const struct gen *g)
{
	struct gen_chain c = { .id = prefix_root(g->model->id) };
	const struct segment *s, *last = NULL;
	uint32_t i = 0;

	while (line_next_tile(g, &c)) {
		uint32_t behind, n;

		s = map_find(&g->tenant->prefix.map, c.id);
		behind = s && s == last ? i + 1 : 0;
		if (s)
			i = tile_of(s, behind, c.id);
		if (!s || i == n_tiles(s)) {
			p->next = c.id;
			p->has_next = 1;
			break;
		}
		n = KV_MIN(SEGMENT_BLOCK, s->n_tokens - i * SEGMENT_BLOCK);
		if (s == last && i == behind && p->n_items)
			p->items[p->n_items - 1].n += n;
		else
			p = add(p, (struct preload_item){ .i_part = UINT32_MAX,
							  .id = c.id,
							  .from = i *
								  SEGMENT_BLOCK,
							  .n = n });
		last = s;
	}
	return p;
}

static struct preload *preload_new(const struct gen *g)
{
	const struct kv_layout *l = &g->model->layout;
	const uint32_t least =
		(uint32_t)KV_DIV_UP((size_t)RESTORE_BYTES, l->page_bytes);
	struct preload *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->n_groups = KV_MAX(KV_DIV_UP(l->n_groups, RESTORE_STAGES), least);
	p->n_groups = KV_MIN(p->n_groups, l->n_groups);
	p->n_stages = KV_DIV_UP(l->n_groups, p->n_groups);
	p = add_prefix(p, g);
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (g->parts[i].seg)
			p = add(p,
				(struct preload_item){ .i_part = i,
						       .from = g->parts[i].from,
						       .n = g->parts[i].n });
	return p;
}

/* Borrowed; NULL: it is not there any more. */
static struct segment *segment_of(const struct gen *g,
				  const struct preload_item *i)
{
	const uint32_t tile = i->from / SEGMENT_BLOCK;
	struct segment *s;

	if (i->i_part != UINT32_MAX)
		return i->i_part < g->n_parts ? g->parts[i->i_part].seg : NULL;
	s = map_find(&g->tenant->prefix.map, i->id);
	if (!s || s->n_tokens < i->from + i->n ||
	    !map_id_equal(s->ids[tile], i->id))
		return NULL;
	return s->layout.n_groups == g->model->layout.n_groups ? s : NULL;
}

/* ---- staying ------------------------------------------------------------------- */

void preload_end(struct gen *g)
{
	struct preload *p = g->preload;

	g->preload = NULL;
	for (uint32_t i = 0; p && i < p->n_items; i++)
		segment_await_end(&p->items[i].await);
	free(p);
}

/* What is found in the index now; what others own is their business. */
static void await_items(struct gen *g)
{
	struct preload *p = g->preload;

	for (uint32_t i = 0; i < p->n_items; i++) {
		struct preload_item *item = &p->items[i];
		struct segment *s = segment_of(g, item);

		if (!s || s == item->await.seg || s->pool != g->tenant->pool)
			continue;
		segment_await_end(&item->await);
		segment_await(s, &item->await);
		stat_add(g->tenant->st_awaited, 1);
	}
}

/* 1: it was looked up, which is hashing: one a turn. */
static int find(struct gen *g)
{
	const struct prefix_tree *t = &g->tenant->prefix;
	struct preload *p = g->preload;
	int counted = 0, is_new;

	if (p && p->seen == t->n_added)
		return 0;
	is_new = !p || (p->has_next && map_find(&t->map, p->next));
	if (is_new) {
		counted = p && p->counted;
		preload_end(g);
		p = g->preload = preload_new(g);
	}
	if (!p)
		return 1;
	p->counted |= counted;
	p->seen = t->n_added;
	await_items(g);
	return is_new;
}

/* ---- asking ------------------------------------------------------------------- */

struct found {
	uint64_t lower, coming; /* bytes */
};

/* The pages of one item in one stage; ask: for those that are on disk. */
static struct found walk(const struct gen *g, uint32_t at, int ask)
{
	const struct preload *p = g->preload;
	const struct preload_item *item = &p->items[at % p->n_items];
	const struct segment *s = segment_of(g, item);
	const uint32_t first = at / p->n_items * p->n_groups;
	struct found f = { 0, 0 };
	struct page_run all, run;

	if (!s)
		return f;
	segment_pages(s, item->from, item->from + item->n, &all);
	run = (struct page_run){ .range = all.range };
	run.n = KV_MIN(p->n_groups, s->layout.n_groups - first);
	for (uint32_t i = 0; i < all.n; i += s->layout.n_groups) {
		uint64_t lower;

		run.first = all.first + i + first;
		lower = range_lower_bytes(run.range, run.first, run.n);
		f.lower += lower;
		f.coming += range_coming_bytes(run.range, run.first, run.n);
		if (lower && ask)
			page_prefetch(g->tenant->pager, &run, 1);
	}
	return f;
}

static enum look look_at(struct gen *g, uint64_t *coming)
{
	struct preload *p = g->preload;
	const uint32_t n = p->n_stages * p->n_items;
	int is_whole = 1; /* all up to here is there */

	for (uint32_t at = p->n_done; at < n; at++) {
		struct found f = walk(g, at, 0);

		if (f.lower && !f.coming && at < p->n_asked) {
			p->n_asked = at;
			return LOOK_NO_ROOM;
		}
		if (f.lower && at >= p->n_asked) {
			if (*coming >= PRELOAD_BYTES)
				return LOOK_COMING;
			if (!p->counted)
				stat_add(g->tenant->st_preloaded, 1);
			p->counted = 1;
			f = walk(g, at, 1);
			f.coming = f.lower;
		}
		p->n_asked = KV_MAX(p->n_asked, at + 1);
		*coming += f.coming;
		is_whole &= !f.coming;
		if (is_whole)
			p->n_done = at + 1;
	}
	return is_whole ? LOOK_DONE : LOOK_COMING;
}

static void look(struct loop_timer *timer)
{
	struct serve_tenant *t =
		container_of(timer, struct serve_tenant, preload);
	uint32_t n_heads = 0;
	enum look now = LOOK_DONE;
	uint64_t coming = 0;
	int is_new = 0;

	list_for_each(n, &t->waiting) {
		struct gen *g = list_entry(n, struct waiter, node)->gen;

		if (!g || !g->n_parts)
			continue;
		if (n_heads++ == PRELOAD_AWAITED || is_new)
			break;
		is_new = find(g);
		if (g->preload && n_heads <= PRELOAD_HEADS &&
		    now != LOOK_NO_ROOM && coming < PRELOAD_BYTES)
			now = look_at(g, &coming);
	}
	if (is_new || (coming && now != LOOK_NO_ROOM))
		loop_timer_set(t->serve->loop, timer, clock_ns() + LOOK_NS);
	else if (now == LOOK_NO_ROOM)
		loop_timer_set(t->serve->loop, timer, clock_ns() + NO_ROOM_NS);
}

void preload_wake(struct serve_tenant *t)
{
	if (!list_empty(&t->preload.node) || list_empty(&t->waiting))
		return;
	t->preload.run = look;
	loop_timer_set(t->serve->loop, &t->preload, clock_ns());
}
