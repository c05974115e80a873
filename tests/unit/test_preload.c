/*
 * test_preload.c - what stands in line comes up from disk, the first layers of everything
 * first, and no more of it once its request has gone; and what is there stays
 *
 * The tenant has no place for requests until the test gives it one, and pages are read
 * one after the other.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/fault.h"
#include "kvd/mem/page.h"
#include "kvd/mem/stores.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/preload.h"
#include "tests/rig/rig_serve.h"

#define N_LAYERS 4u
#define N_PREFIX 384u /* 3 rows of pages of 256 KiB, one of each layer */
#define N_CHUNK	 256u /* 2 rows */
#define N_OWN	 20u
#define N_PAGES	 20u
#define N_OTHER	 980u /* takes all memory */

struct kit {
	struct rig_serve *r;
	uint32_t *prefix, *chunk, *own;
	struct serve_token first[8]; /* the answer, when nothing was cached */
	struct page_run runs[2]; /* prefix, chunk: all layers */
};

static struct rig_gen *start(struct kit *k)
{
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, k->prefix, N_PREFIX, 0);
	rig_gen_part(g, k->chunk, N_CHUNK, SERVE_PART_REUSE);
	rig_gen_part(g, k->own, N_OWN, 0);
	g->gen.may_wait = 1;
	ck_assert_int_eq(rig_gen_start(g, k->r->session), 0);
	return g;
}

static void idle(struct rig_serve *r)
{
	struct pager_info info;

	do {
		rig_serve_turn(r);
		pager_info(r->tenant->pager, &info);
	} while (info.n_in_flight);
}

/* Another prompt takes all frames, and gives them back. */
static void push_out(struct rig_serve *r)
{
	uint32_t *t = rig_ids(N_OTHER, 77);
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, t, N_OTHER, 0);
	g->gen.flags |= SERVE_GEN_NO_REUSE;
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	free(g);
	free(t);
	idle(r);
}

static void set_places(struct kit *k, uint32_t n)
{
	k->r->conf.tenants[0].max_requests = n;
	tenant_kick(k->r->tenant);
}

/* Of the first tile, and of the chunk. */
static void find_runs(struct kit *k)
{
	struct serve_tenant *t = k->r->tenant;
	const uint64_t *model = k->r->serve->models[0].id;
	const struct segment *s[2];

	s[0] = map_find(&t->prefix.map,
			prefix_tile(prefix_root(model), k->prefix,
				    SEGMENT_BLOCK, PREFIX_PART_BEGIN));
	s[1] = map_find(&t->chunks.map, chunk_id(model, k->chunk, N_CHUNK));
	for (int i = 0; i < 2; i++) {
		ck_assert_ptr_nonnull(s[i]);
		segment_pages(s[i], 0, i ? N_CHUNK : N_PREFIX, &k->runs[i]);
	}
}

static uint64_t lower_pages(const struct kit *k)
{
	uint64_t n = 0;

	for (int i = 0; i < 2; i++)
		n += range_lower_bytes(k->runs[i].range, k->runs[i].first,
				       k->runs[i].n) /
		     range_page_bytes(k->runs[i].range);
	return n;
}

/* All on disk, memory free, and no place. */
static void open_kit(struct kit *k)
{
	struct rig_gen *g;

	*k = (struct kit){ .prefix = rig_ids(N_PREFIX, 1),
			   .chunk = rig_ids(N_CHUNK, 2),
			   .own = rig_ids(N_OWN, 3) };
	k->r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 8 << 20,
		.n_layers = N_LAYERS,
		.n_kv_heads = 4,
		.head_dim = 64,
		.page_tokens = 128,
		.page_layers = 1,
	});
	k->r->conf.recompute = 0;
	stores_set_window(k->r->serve->stores, 1);
	g = start(k);
	ck_assert(rig_serve_until(k->r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	memcpy(k->first, g->tokens, sizeof(k->first));
	free(g);
	find_runs(k);
	push_out(k->r);
	ck_assert_uint_eq(lower_pages(k), N_PAGES);
	set_places(k, 0);
}

static void close_kit(struct kit *k)
{
	set_places(k, 8);
	rig_serve_close(k->r);
	free(k->prefix);
	free(k->chunk);
	free(k->own);
}

/* Bits of the pages that are there, by layer and row. */
static uint32_t pages_in(const struct kit *k, uint32_t layer)
{
	uint32_t bits = 0, row = 0;

	for (int i = 0; i < 2; i++) {
		const struct page_run *r = &k->runs[i];

		for (uint32_t p = layer; p < r->n; p += N_LAYERS, row++)
			if (!range_lower_bytes(r->range, r->first + p, 1) &&
			    !range_coming_bytes(r->range, r->first + p, 1))
				bits |= 1u << row;
	}
	return bits;
}

#define ROWS (N_PAGES / N_LAYERS)

/* Two workers make frames: the read of a page may overtake that of the one before. */
static void layers_in_order(const struct kit *k)
{
	uint32_t n_before = 0; /* that are missing */

	for (uint32_t l = 0; l < N_LAYERS; l++) {
		const uint32_t in = pages_in(k, l);

		if (in)
			ck_assert_msg(
				n_before <= 2,
				"a page of layer %u is there, %u of those "
				"before are not",
				l, n_before);
		n_before += ROWS - (uint32_t)__builtin_popcount(in);
	}
}

START_TEST(the_first_layers_of_everything_come_first)
{
	struct rig_gen *g;
	struct kit k;

	open_kit(&k);
	g = start(&k);
	for (uint32_t l = 0; l < N_LAYERS;) {
		if (pages_in(&k, l) == (1u << ROWS) - 1) {
			l++;
			continue;
		}
		rig_serve_turn(k.r);
		layers_in_order(&k);
	}
	ck_assert(!g->told);
	set_places(&k, 8);
	ck_assert(rig_serve_until(k.r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	ck_assert_uint_eq(g->gen.stats.n_prefix, N_PREFIX);
	ck_assert_uint_eq(g->gen.stats.n_chunk, N_CHUNK);
	ck_assert_uint_eq(g->gen.stats.n_read_back, 0);
	ck_assert(!memcmp(g->tokens, k.first, sizeof(k.first)));
	free(g);
	close_kit(&k);
}
END_TEST

/* 4 of 5 MiB may be on their way; then nobody wants the rest. */
START_TEST(a_cancelled_request_asks_for_no_more)
{
	struct rig_gen *g;
	struct kit k;

	open_kit(&k);
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EAGAIN);
	g = start(&k);
	while (lower_pages(&k) > N_PAGES - PRELOAD_BYTES / (256 << 10))
		rig_serve_turn(k.r);
	for (int i = 0; i < 50; i++)
		rig_serve_turn(k.r);
	ck_assert_uint_gt(lower_pages(&k), 0);
	serve_cancel(k.r->session, &g->gen);
	ck_assert(rig_serve_until(k.r, &g->told));
	ck_assert_int_eq(g->ret, -ECANCELED);
	kio_fault_disarm();
	idle(k.r);
	for (int i = 0; i < 50; i++)
		rig_serve_turn(k.r);
	ck_assert_uint_gt(lower_pages(&k), 0);
	free(g);
	close_kit(&k);
}
END_TEST

/* There is no free frame at first: nobody's page has to go, and later it comes. */
START_TEST(it_takes_free_frames_only_and_waits_for_them)
{
	struct rig_gen *g, *big;
	struct pager_info before, after;
	uint32_t *t = rig_ids(N_OTHER, 5);
	struct kit k;

	open_kit(&k);
	big = rig_gen_new();
	rig_gen_part(big, t, N_OTHER, 0);
	big->gen.flags |= SERVE_GEN_NO_REUSE;
	big->gen.max_tokens = 40;
	set_places(&k, 1);
	ck_assert_int_eq(rig_gen_start(big, k.r->session), 0);
	while (!big->gen.n_out) /* all frames are its own */
		rig_serve_turn(k.r);
	pager_info(k.r->tenant->pager, &before);
	g = start(&k);
	while (!big->told) {
		ck_assert_uint_eq(lower_pages(&k), N_PAGES);
		rig_serve_turn(k.r);
		if (!big->told)
			pager_info(k.r->tenant->pager, &after);
	}
	ck_assert_uint_eq(after.n_evicted_total, before.n_evicted_total);
	ck_assert(rig_serve_until(k.r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	ck_assert(!memcmp(g->tokens, k.first, sizeof(k.first)));
	free(big);
	free(g);
	free(t);
	close_kit(&k);
}
END_TEST

/* ---- what it finds in memory stays ------------------------------------------------ */

#define N_LONG 600u /* tokens of an answer: 5 rows of pages */

/* Two prefixes in memory, each used once, and one place, taken. */
struct crowd {
	struct kit k;
	uint32_t *text[2];
	struct page_run run[2];
	struct rig_gen *big; /* it runs, and needs more and more room */
};

/* Behind the i-th prefix. */
static struct rig_gen *ask(struct crowd *c, int i)
{
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, c->text[i], N_PREFIX, 0);
	rig_gen_part(g, c->k.own, N_OWN, 0);
	g->gen.may_wait = 1;
	ck_assert_int_eq(rig_gen_start(g, c->k.r->session), 0);
	return g;
}

static struct segment *segment_at(const struct crowd *c, int i)
{
	const struct rig_serve *r = c->k.r;
	struct segment *s = map_find(
		&r->tenant->prefix.map,
		prefix_tile(prefix_root(r->serve->models[0].id), c->text[i],
			    SEGMENT_BLOCK, PREFIX_PART_BEGIN));

	ck_assert_ptr_nonnull(s);
	return s;
}

static uint64_t lower_of(const struct page_run *r)
{
	return range_lower_bytes(r->range, r->first, r->n);
}

static void open_crowd(struct crowd *c)
{
	struct rig_gen *g;

	memset(c, 0, sizeof(*c));
	open_kit(&c->k);
	set_places(&c->k, 1);
	for (int i = 0; i < 2; i++) {
		c->text[i] = rig_ids(N_PREFIX, 9 + (uint64_t)i);
		g = ask(c, i);
		ck_assert(rig_serve_until(c->k.r, &g->told));
		ck_assert_int_eq(g->ret, 8);
		free(g);
		segment_pages(segment_at(c, i), 0, N_PREFIX, &c->run[i]);
	}
	c->big = rig_gen_new();
	rig_gen_part(c->big, c->k.own, N_OWN, 0);
	c->big->gen.flags |= SERVE_GEN_NO_REUSE;
	c->big->gen.max_tokens = N_LONG;
	ck_assert_int_eq(rig_gen_start(c->big, c->k.r->session), 0);
	while (!c->big->gen.n_out)
		rig_serve_turn(c->k.r);
	ck_assert_uint_eq(lower_of(&c->run[0]) + lower_of(&c->run[1]), 0);
}

static void close_crowd(struct crowd *c)
{
	free(c->big);
	free(c->text[0]);
	free(c->text[1]);
	close_kit(&c->k);
}

static void stands(struct crowd *c, const struct rig_gen *g)
{
	const struct gen *in = g->gen.priv;

	while (!in->preload && !c->big->told)
		rig_serve_turn(c->k.r);
	ck_assert(!g->told && !c->big->told);
}

static int hint_of(const struct page_run *r)
{
	const struct page *p = &r->range->pages[r->first];

	for (uint32_t i = 1; i < r->n; i++)
		ck_assert_int_eq(p[i].evict.hint, p->evict.hint);
	return p->evict.hint;
}

/* Without anybody in line the one that was used first would go first. */
START_TEST(what_a_request_in_line_will_use_goes_last)
{
	struct rig_gen *g;
	struct crowd c;

	open_crowd(&c);
	g = ask(&c, 0);
	stands(&c, g);
	while (!c.big->told) {
		ck_assert_uint_eq(lower_of(&c.run[0]), 0);
		rig_serve_turn(c.k.r);
	}
	ck_assert_uint_gt(lower_of(&c.run[1]), 0); /* there was need */
	ck_assert(rig_serve_until(c.k.r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	ck_assert_uint_eq(g->gen.stats.n_prefix, N_PREFIX);
	ck_assert_uint_eq(g->gen.stats.n_read_back, 0);
	free(g);
	close_crowd(&c);
}
END_TEST

/* Served or not: who leaves the line takes its claims along. */
START_TEST(who_has_left_the_line_keeps_nothing)
{
	struct rig_gen *g[2];
	struct crowd c;

	open_crowd(&c);
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_COLD);
	g[0] = ask(&c, 0);
	g[1] = ask(&c, 0);
	stands(&c, g[0]);
	stands(&c, g[1]);
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_HOT);
	ck_assert_int_eq(hint_of(&c.run[1]), EVICT_COLD);
	serve_cancel(c.k.r->session, &g[0]->gen);
	ck_assert(rig_serve_until(c.k.r, &g[0]->told));
	ck_assert_int_eq(g[0]->ret, -ECANCELED);
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_HOT);
	serve_cancel(c.k.r->session, &g[1]->gen);
	ck_assert(rig_serve_until(c.k.r, &g[1]->told));
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_COLD);
	free(g[1]);
	g[1] = ask(&c, 0);
	stands(&c, g[1]);
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_HOT);
	serve_cancel(c.k.r->session, &c.big->gen);
	ck_assert(rig_serve_until(c.k.r, &g[1]->told));
	ck_assert_int_eq(g[1]->ret, 8);
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_COLD);
	ck_assert(list_empty(&segment_at(&c, 0)->awaits));
	free(g[0]);
	free(g[1]);
	close_crowd(&c);
}
END_TEST

/* One that runs uses what another waits for: it is not forgotten by that. */
START_TEST(what_is_used_is_still_awaited)
{
	struct page_want w = { .n_runs = 1 };
	struct rig_gen *g;
	struct crowd c;

	open_crowd(&c);
	g = ask(&c, 0);
	stands(&c, g);
	w.runs = &c.run[0];
	ck_assert_int_eq(page_want(c.k.r->tenant->pager, &w), 1);
	page_unpin(c.k.r->tenant->pager, w.runs, 1);
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_HOT);
	serve_cancel(c.k.r->session, &g->gen);
	ck_assert(rig_serve_until(c.k.r, &g->told));
	ck_assert_int_eq(hint_of(&c.run[0]), EVICT_COLD);
	serve_cancel(c.k.r->session, &c.big->gen);
	ck_assert(rig_serve_until(c.k.r, &c.big->told));
	free(g);
	close_crowd(&c);
}
END_TEST

/* Nobody holds it. */
START_TEST(what_is_awaited_may_be_forgotten)
{
	struct preload *p;
	struct segment *s;
	struct rig_gen *g;
	struct crowd c;

	open_crowd(&c);
	g = ask(&c, 0);
	stands(&c, g);
	p = ((struct gen *)g->gen.priv)->preload;
	ck_assert_ptr_nonnull(p);
	ck_assert_uint_eq(p->n_items, 1);
	s = p->items[0].await.seg;
	ck_assert_ptr_nonnull(s);
	segment_forget(s);
	ck_assert_ptr_null(p->items[0].await.seg);
	ck_assert(rig_serve_until(c.k.r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	ck_assert_uint_eq(g->gen.stats.n_prefix, 0);
	free(g);
	close_crowd(&c);
}
END_TEST

/* It waits before its prefix is known: what comes into the index then is kept, too. */
START_TEST(what_comes_into_the_index_is_awaited)
{
	uint32_t *t = rig_ids(N_PREFIX, 21), *own = rig_ids(N_OWN, 22);
	const struct preload *p;
	struct rig_gen *g[3];
	struct kit k;

	open_kit(&k);
	set_places(&k, 1);
	for (uint32_t i = 0; i < 3; i++) {
		g[i] = rig_gen_new();
		rig_gen_part(g[i], i == 1 ? own : t, i == 1 ? N_OWN : N_PREFIX,
			     0);
		rig_gen_part(g[i], own, N_OWN - i, 0);
		g[i]->gen.may_wait = 1;
		g[i]->gen.max_tokens = i == 1 ? 400 : 8;
		g[i]->gen.priority = i;
		ck_assert_int_eq(rig_gen_start(g[i], k.r->session), 0);
	}
	while (!g[1]->gen.n_out)
		rig_serve_turn(k.r);
	ck_assert(g[0]->told);
	do {
		rig_serve_turn(k.r);
		p = ((struct gen *)g[2]->gen.priv)->preload;
	} while (!g[1]->told && (!p || !p->n_items || !p->items[0].await.seg));
	ck_assert(!g[1]->told && !g[2]->told);
	ck_assert(rig_serve_until(k.r, &g[2]->told));
	ck_assert_uint_eq(g[2]->gen.stats.n_prefix, N_PREFIX);
	for (uint32_t i = 0; i < 3; i++)
		free(g[i]);
	free(t);
	free(own);
	close_kit(&k);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("preload");
	TCase *tc = tcase_create("preload");
	SRunner *sr = srunner_create(s);
	int n_failed;

	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, the_first_layers_of_everything_come_first);
	tcase_add_test(tc, a_cancelled_request_asks_for_no_more);
	tcase_add_test(tc, it_takes_free_frames_only_and_waits_for_them);
	tcase_add_test(tc, what_a_request_in_line_will_use_goes_last);
	tcase_add_test(tc, who_has_left_the_line_keeps_nothing);
	tcase_add_test(tc, what_is_used_is_still_awaited);
	tcase_add_test(tc, what_is_awaited_may_be_forgotten);
	tcase_add_test(tc, what_comes_into_the_index_is_awaited);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_NORMAL);
	n_failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n_failed ? 1 : 0;
}
