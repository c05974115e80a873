/*
 * test_serve.c - requests from submission to end: what hangs, what overtakes whom,
 * what a hostile or unlucky client could do
 */
#include <check.h>
#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"
#include "kvd/base/clock.h"
#include "kvd/base/stat.h"
#include "kvd/serve/gen.h"
#include "tests/rig/rig_serve.h"

/* ---- chunks ------------------------------------------------------------- */

START_TEST(a_chunk_may_be_longer_than_a_segment)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *chunk = rig_ids(2500, 11), *ask = rig_ids(10, 12);
	struct rig_gen *a[3];

	for (int i = 0; i < 3; i++) {
		a[i] = rig_gen_new();
		rig_gen_part(a[i], ask, 5, 0);
		rig_gen_part(a[i], chunk, 2500, SERVE_PART_REUSE);
		rig_gen_part(a[i], ask, 10, 0);
		ck_assert_int_eq(rig_gen_start(a[i], r->session), 0);
		ck_assert(rig_serve_until(r, &a[i]->told));
		ck_assert_int_eq(a[i]->ret, 8);
		ck_assert(!memcmp(a[i]->tokens, a[0]->tokens,
				  8 * sizeof(a[0]->tokens[0])));
		ck_assert_uint_eq(a[i]->gen.stats.n_chunk, i ? 2500 : 0);
	}
	for (int i = 0; i < 3; i++)
		free(a[i]);
	free(chunk);
	free(ask);
	rig_serve_close(r);
}
END_TEST

/* Ask with one chunk between two texts; how much of it was found. */
static uint64_t ask_chunk(struct rig_serve *r, uint64_t seed)
{
	uint32_t *chunk = rig_ids(1000, seed), *ask = rig_ids(10, 12);
	struct rig_gen *a = rig_gen_new();
	uint64_t n;

	rig_gen_part(a, ask, 5, 0);
	rig_gen_part(a, chunk, 1000, SERVE_PART_REUSE);
	rig_gen_part(a, ask, 10, 0);
	ck_assert_int_eq(rig_gen_start(a, r->session), 0);
	ck_assert(rig_serve_until(r, &a->told));
	ck_assert_int_ge(a->ret, 0);
	n = a->gen.stats.n_chunk;
	free(a);
	free(chunk);
	free(ask);
	return n;
}

static struct segment *chunk_of(struct rig_serve *r, uint64_t seed)
{
	uint32_t *chunk = rig_ids(1000, seed);
	const struct map_id id = chunk_id(r->serve->models[0].id, chunk, 1000);

	free(chunk);
	return map_find(&r->tenant->chunks.map, id);
}

static struct rig_gen *ask_long(struct rig_serve *r, uint64_t chunk_seed)
{
	uint32_t *chunk = rig_ids(1000, chunk_seed), *ask = rig_ids(10, 12);
	struct rig_gen *a = rig_gen_new();

	if (chunk_seed)
		rig_gen_part(a, chunk, 1000, SERVE_PART_REUSE);
	rig_gen_part(a, ask, 10, 0);
	a->gen.may_wait = 1;
	a->gen.max_tokens = chunk_seed ? 8 : 1000;
	ck_assert_int_eq(rig_gen_start(a, r->session), 0);
	free(chunk);
	free(ask);
	return a;
}

START_TEST(who_stands_in_line_is_preloaded)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 3 << 20, .max_requests = 1 });
	struct rig_gen *runs, *waits;
	struct pager_info info;
	struct page_run all;
	struct segment *s;

	r->conf.recompute =
		0; /* what was found is read, however slow the disk */
	ck_assert_uint_eq(ask_chunk(r, 1), 0);
	s = chunk_of(r, 1);
	for (uint64_t seed = 2; !range_load_ns(s->range, 0, 1); seed++)
		ck_assert_uint_eq(ask_chunk(r, seed), 0);
	for (uint64_t seed = 2; seed < 100; seed++) { /* room */
		struct segment *other = chunk_of(r, seed);

		if (other)
			segment_forget(other);
	}
	do {
		rig_serve_turn(r);
		pager_info(r->tenant->pager, &info);
	} while (info.n_in_flight); /* that room is free now */
	runs = ask_long(r, 0);
	for (int i = 0; i < 5; i++)
		rig_serve_turn(r);
	waits = ask_long(r, 1);
	segment_pages(s, 0, s->n_tokens, &all);
	while (range_lower_bytes(s->range, 0, all.n)) {
		rig_serve_turn(r);
		ck_assert(!runs->told); /* before it is its turn */
	}
	ck_assert(rig_serve_until(r, &waits->told));
	ck_assert_uint_eq(waits->gen.stats.n_chunk, 1000);
	ck_assert_uint_eq(waits->gen.stats.n_read_back, 0);
	free(runs);
	free(waits);
	rig_serve_close(r);
}
END_TEST

/* It may be acknowledged as durable. */
START_TEST(a_chunk_that_is_computed_again_is_kept)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 3 << 20, .persist = CONF_PERSIST_REQUEST });
	struct serve_model *m = &r->serve->models[0];
	struct segment *s;

	ck_assert_uint_eq(ask_chunk(r, 1), 0);
	s = chunk_of(r, 1);
	ck_assert_ptr_nonnull(s);
	for (uint64_t seed = 2; !range_load_ns(s->range, 0, 1); seed++) {
		ck_assert_uint_lt(seed, 100);
		ck_assert_uint_eq(ask_chunk(r, seed), 0);
	}
	m->prefill = (struct rate){ .units = 1e15, .seconds = 1 };
	ck_assert_uint_eq(ask_chunk(r, 1), 0);
	ck_assert_ptr_eq(chunk_of(r, 1), s);
	m->prefill = (struct rate){ .units = 1e-3, .seconds = 1 };
	ck_assert_uint_eq(ask_chunk(r, 1), 1000);
	rig_serve_close(r);
}
END_TEST

struct put {
	struct serve_chunk_put put;
	int told, ret;
};

static void put_done(struct wait *w, int ret)
{
	struct put *p = container_of(
		container_of(w, struct serve_chunk_put, wait), struct put, put);

	p->ret = ret;
	p->told = 1;
}

static void put_chunk(struct rig_serve *r, struct put *p, const char *model,
		      const uint32_t *tokens, size_t n)
{
	*p = (struct put){
		.put = { .wait.done = put_done,
			 .model = model,
			 .part = { .kind = SERVE_PART_TOKENS,
				   .tokens = tokens,
				   .n_tokens = n } },
	};
	ck_assert_int_eq(serve_chunk_put(r->session, &p->put), 0);
}

START_TEST(a_chunk_belongs_to_its_model)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.n_models = 2, .n_vocab = { 640, 320 } });
	struct rig_gen *g = rig_gen_new();
	uint32_t chunk[40];
	struct put p;

	for (uint32_t i = 0; i < 40; i++)
		chunk[i] = 600 + i; /* m1 has no such tokens */
	put_chunk(r, &p, "m0", chunk, 40);
	ck_assert(rig_serve_until(r, &p.told));
	ck_assert_int_eq(p.ret, 40);
	g->gen.model = "m1";
	g->parts[0] = (struct serve_part){ .kind = SERVE_PART_CHUNK,
					   .id = { p.put.id[0], p.put.id[1] } };
	g->gen.n_parts = 1;
	ck_assert_int_eq(rig_gen_start(g, r->session), -EINVAL);
	g->gen.model = "m0";
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	free(g);
	rig_serve_close(r);
}
END_TEST

START_TEST(chunks_of_a_cancelled_request_are_not_computed)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = rig_ids(3000, 13);
	struct rig_gen *g = rig_gen_new();
	const uint64_t steps = rig_serve_steps();

	for (int i = 0; i < 6; i++)
		rig_gen_part(g, t + 500 * i, 500, SERVE_PART_REUSE);
	rig_gen_part(g, t, 10, 0);
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	serve_cancel(r->session, &g->gen);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_eq(g->ret, -ECANCELED);
	rig_serve_close(r); /* waits for chunks too */
	ck_assert_uint_eq(rig_serve_steps(), steps);
	free(g);
	free(t);
}
END_TEST

/* ---- the line --------------------------------------------------------------- */

/* The one that is counted stands behind the other, which waits for its end. */
START_TEST(who_waits_for_a_place_is_not_in_the_way)
{
	struct rig_serve *r =
		rig_serve_open((struct rig_serve_options){ .max_requests = 1 });
	struct rig_gen *waits = rig_gen_new(), *counted = rig_gen_new();
	uint32_t *t = rig_ids(20, 3);

	rig_gen_part(counted, t, 10, SERVE_PART_REUSE);
	rig_gen_part(counted, t, 10, 0);
	rig_gen_part(waits, t, 20, 0);
	waits->gen.may_wait = 1;
	ck_assert_int_eq(rig_gen_start(counted, r->session), 0);
	ck_assert_int_eq(rig_gen_start(waits, r->session), 0);
	ck_assert(rig_serve_until(r, &counted->told));
	ck_assert(rig_serve_until(r, &waits->told));
	ck_assert_int_eq(counted->ret, 8);
	ck_assert_int_eq(waits->ret, 8);
	free(waits);
	free(counted);
	free(t);
	rig_serve_close(r);
}
END_TEST

START_TEST(who_does_not_wait_takes_no_place_of_one_that_does)
{
	struct rig_serve *r =
		rig_serve_open((struct rig_serve_options){ .max_requests = 2 });
	struct rig_gen *g[3];
	uint32_t *t = rig_ids(20, 3);

	for (int i = 0; i < 3; i++) {
		g[i] = rig_gen_new();
		rig_gen_part(g[i], t, 20, 0);
		g[i]->gen.may_wait = i < 2;
		ck_assert_int_eq(rig_gen_start(g[i], r->session),
				 i < 2 ? 0 : -EDQUOT);
	}
	ck_assert(rig_serve_until(r, &g[0]->told));
	ck_assert(rig_serve_until(r, &g[1]->told));
	ck_assert_int_eq(rig_gen_start(g[2], r->session), 0);
	ck_assert(rig_serve_until(r, &g[2]->told));
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(g[i]->ret, 8);
		free(g[i]);
	}
	free(t);
	rig_serve_close(r);
}
END_TEST

static size_t heap_bytes(void)
{
	const struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

/* The room for what they ask for comes when they run. */
START_TEST(requests_that_wait_hold_little)
{
	struct rig_serve *r =
		rig_serve_open((struct rig_serve_options){ .max_requests = 1 });
	uint32_t *t = rig_ids(20, 3);
	struct rig_gen *g[100];
	size_t before;

	for (int i = 0; i < 100; i++) {
		g[i] = rig_gen_new();
		rig_gen_part(g[i], t, 20, 0);
		g[i]->gen.max_tokens = 4000;
		g[i]->gen.may_wait = 1;
	}
	before = heap_bytes();
	for (int i = 0; i < 100; i++)
		ck_assert_int_eq(rig_gen_start(g[i], r->session), 0);
	for (int i = 0; i < 10; i++)
		rig_serve_turn(r);
	ck_assert_uint_lt(heap_bytes(), before + 100 * 4000 * 4);
	rig_serve_close(r);
	for (int i = 0; i < 100; i++) {
		ck_assert_int_eq(g[i]->ret, -ECANCELED);
		free(g[i]);
	}
	free(t);
}
END_TEST

/* A chunk of the last, though it would fit now, is not computed before the second. */
START_TEST(nobody_gets_ahead_by_asking_for_chunks)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 1 << 20, .disk_bytes = 16 << 20 });
	uint32_t *t = rig_ids(2000, 61);
	struct rig_gen *g[3];
	const struct gen *b, *c;

	for (int i = 0; i < 3; i++)
		g[i] = rig_gen_new();
	rig_gen_part(g[0], t, 1000, 0);
	rig_gen_part(g[1], t + 1000, 900, 0);
	rig_gen_part(g[2], t, 40, SERVE_PART_REUSE);
	rig_gen_part(g[2], t, 10, 0);
	g[0]->gen.max_tokens = 700; /* 870 of 1,024 KiB */
	g[1]->gen.max_tokens = 400;
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(rig_gen_start(g[i], r->session), 0);
	b = g[1]->gen.priv;
	c = g[2]->gen.priv;
	while (!g[0]->told && !g[2]->told) {
		rig_serve_turn(r);
		if (!g[0]->told && b->state == GEN_ADMIT)
			ck_assert_int_eq(c->state, GEN_CHUNKS);
	}
	ck_assert_int_eq(g[0]->ret, 700);
	ck_assert(!g[2]->told);
	for (int i = 1; i < 3; i++) {
		ck_assert(rig_serve_until(r, &g[i]->told));
		ck_assert_int_ge(g[i]->ret, 0);
	}
	for (int i = 0; i < 3; i++)
		free(g[i]);
	free(t);
	rig_serve_close(r);
}
END_TEST

/* ---- scores --------------------------------------------------------------------- */

START_TEST(scores_do_not_depend_on_what_is_cached)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = rig_ids(64, 21), *last = rig_ids(70, 22);
	struct rig_gen *a = rig_score(r, t, 64, 2, last, 70), *b;

	ck_assert(rig_serve_until(r, &a->told));
	ck_assert_int_eq(a->ret, 70);
	ck_assert(!isnan(a->tokens[0].logprob));
	b = rig_score(r, t, 64, 2, last, 70);
	ck_assert(rig_serve_until(r, &b->told));
	ck_assert_uint_gt(b->gen.stats.n_prefix, 0);
	ck_assert(!memcmp(a->tokens, b->tokens, 70 * sizeof(a->tokens[0])));
	free(a);
	free(b);
	free(t);
	free(last);
	rig_serve_close(r);
}
END_TEST

START_TEST(scores_come_with_any_batch)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.prefill_slice = 1, .max_batch = 1 });
	uint32_t *t = rig_ids(20, 23);
	struct rig_gen *g = rig_score(r, t, 10, 0, t + 10, 10);

	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_eq(g->ret, 10);
	free(g);
	free(t);
	rig_serve_close(r);
}
END_TEST

START_TEST(a_score_cancelled_halfway_has_its_text)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = rig_ids(2000, 24);
	struct rig_gen *g = rig_score(r, t, 10, 0, t + 10, 1990);
	const uint64_t from = rig_serve_steps();

	while (rig_serve_steps() < from + 6)
		rig_serve_turn(r);
	ck_assert(!g->told);
	ck_assert_uint_gt(g->gen.n_text, 0);
	serve_cancel(r->session, &g->gen);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_eq(g->ret, -ECANCELED);
	ck_assert_uint_gt(g->n_text, 0);
	free(g);
	free(t);
	rig_serve_close(r);
}
END_TEST

/* ---- texts ------------------------------------------------------------------ */

struct text {
	struct serve_text t;
	int told;
};

static void text_told(struct wait *w, int ret)
{
	ck_assert_int_eq(ret, 0);
	container_of(container_of(w, struct serve_text, wait), struct text, t)
		->told++;
}

static char *letters(size_t n)
{
	char *s = malloc(n + 1);

	ck_assert_ptr_nonnull(s);
	for (size_t i = 0; i < n; i++)
		s[i] = (char)(i % 7 == 6 ? ' ' : 'a' + i * i % 26);
	s[n] = 0;
	return s;
}

static struct rig_gen *say(struct rig_serve *r, const char *s, size_t n,
			   int want)
{
	struct rig_gen *g = rig_gen_new();

	g->parts[g->gen.n_parts++] = (struct serve_part){
		.kind = SERVE_PART_TEXT, .text = s, .text_len = n
	};
	ck_assert_int_eq(rig_gen_start(g, r->session), want);
	return g;
}

/* Long texts go by a worker: the same tokens, and the request begins later. */
START_TEST(long_texts_are_the_same_tokens)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	const size_t n = 3000;
	char *s = letters(n);
	uint32_t *tokens = malloc((n + 2) * sizeof(*tokens));
	struct text t = { .t = { .wait.done = text_told,
				 .model = "m0",
				 .text = s,
				 .len = n,
				 .tokens = tokens,
				 .max = n + 2 } };
	struct rig_gen *a, *b = rig_gen_new();

	ck_assert_int_eq(serve_tokenize(r->session, &t.t), 0);
	ck_assert(!t.told);
	ck_assert(rig_serve_until(r, &t.told));
	ck_assert_int_gt(t.t.n, 1000);
	a = say(r, s, n, 0);
	ck_assert_uint_eq(a->gen.stats.n_prompt, 0);
	ck_assert(rig_serve_until(r, &a->told));
	rig_gen_part(b, tokens, (size_t)t.t.n, 0);
	ck_assert_int_eq(rig_gen_start(b, r->session), 0);
	ck_assert(rig_serve_until(r, &b->told));
	ck_assert_int_eq(a->ret, 8);
	ck_assert_uint_eq(a->gen.stats.n_prompt, (uint64_t)t.t.n);
	ck_assert_uint_gt(b->gen.stats.n_prefix, (uint64_t)t.t.n - 64);
	ck_assert(!memcmp(a->tokens, b->tokens, 8 * sizeof(a->tokens[0])));
	free(a);
	free(b);
	free(s);
	free(tokens);
	rig_serve_close(r);
}
END_TEST

START_TEST(texts_may_be_too_long_or_cancelled)
{
	struct rig_serve *r =
		rig_serve_open((struct rig_serve_options){ .n_ctx = 256 });
	char *s = letters(256 * 255 + 1);
	struct serve_session *other = rig_serve_join(r);
	struct rig_gen *g[5];

	g[0] = say(r, s, 256 * 255 + 1, -EINVAL); /* whatever it says */
	g[1] = say(r, s, 4000, 0); /* is found out by counting */
	ck_assert(rig_serve_until(r, &g[1]->told));
	ck_assert_int_eq(g[1]->ret, -EINVAL);
	g[2] = say(r, s, 600, 0);
	g[4] = say(r, s, 600, 0); /* stands behind it */
	serve_cancel(r->session, &g[2]->gen);
	serve_cancel(r->session, &g[4]->gen);
	ck_assert(!g[2]->told && !g[4]->told);
	ck_assert(rig_serve_until(r, &g[2]->told));
	ck_assert(rig_serve_until(r, &g[4]->told));
	ck_assert_int_eq(g[2]->ret, -ECANCELED);
	ck_assert_int_eq(g[4]->ret, -ECANCELED);
	g[3] = rig_gen_new();
	g[3]->parts[0] = g[2]->parts[0];
	g[3]->gen.n_parts = 1;
	ck_assert_int_eq(rig_gen_start(g[3], other), 0);
	rig_serve_leave(r, other);
	ck_assert_int_eq(g[3]->told, 1);
	ck_assert_int_eq(g[3]->ret, -ECANCELED);
	for (int i = 0; i < 5; i++)
		free(g[i]);
	free(s);
	rig_serve_close(r);
}
END_TEST

/* ---- stop strings --------------------------------------------------------- */

START_TEST(a_stop_string_over_two_tokens_is_never_shown)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = rig_ids(20, 31);
	struct rig_gen *a = rig_gen_new(), *b = rig_gen_new();
	char stop[3] = "";
	uint32_t at = 0;

	rig_gen_part(a, t, 20, 0);
	a->gen.max_tokens = 40;
	ck_assert_int_eq(rig_gen_start(a, r->session), 0);
	ck_assert(rig_serve_until(r, &a->told));
	/* the end of a token and the begin of the next, new at this place */
	for (uint32_t i = 3; i + 1 < a->n_out && !at; i++) {
		const uint32_t end = a->tokens[i + 1].text_off;

		if (end < 2 || end >= a->n_text || !a->tokens[i + 1].text_len ||
		    !a->text[end - 1] || !a->text[end])
			continue;
		memcpy(stop, a->text + end - 1, 2);
		if (memmem(a->text, a->n_text, stop, 2) == a->text + end - 1)
			at = end - 1;
	}
	ck_assert_uint_gt(at, 0);
	rig_gen_part(b, t, 20, 0);
	b->gen.max_tokens = 40;
	b->gen.stop[0] = "zzzz";
	b->gen.stop[1] = stop;
	b->gen.n_stop = 2;
	ck_assert_int_eq(rig_gen_start(b, r->session), 0);
	ck_assert(rig_serve_until(r, &b->told));
	ck_assert_uint_eq(b->n_text, at);
	ck_assert_uint_eq(b->n_shown, at);
	ck_assert(!memcmp(b->shown, a->text, at));
	free(a);
	free(b);
	free(t);
	rig_serve_close(r);
}
END_TEST

/* ---- who does not wait -------------------------------------------------------------- */

/* A reservation that was not to be had, and is not waited for, does not make the pager forget
 * those who wait. */
START_TEST(who_does_not_wait_leaves_the_line_as_it_is)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	struct serve_tenant *t = r->tenant;
	const uint64_t all = pager_reservable(t->pager);
	uint32_t *ask = rig_ids(10, 78);
	struct rig_gen *a = rig_gen_new();

	t->lent_bytes += all; /* for serve_check() */
	ck_assert_int_eq(pager_reserve(t->pager, all), 0);
	rig_gen_part(a, ask, 10, 0);
	ck_assert_int_eq(rig_gen_start(a, r->session), 0);
	for (int i = 0; i < 100; i++)
		rig_serve_turn(r);
	ck_assert(!list_empty(&t->waiting));
	ck_assert_int_eq(tenant_reserve_now(t, 4096), -EAGAIN);
	t->lent_bytes -= all;
	pager_unreserve(t->pager, all);
	for (int i = 0; i < 10000 && !a->told; i++)
		rig_serve_turn(r);
	ck_assert_int_eq(a->told, 1);
	ck_assert_int_eq(a->ret, 8);
	ck_assert_int_eq(tenant_reserve_now(t, 4096), 0);
	pager_unreserve(t->pager, 4096);
	free(a);
	free(ask);
	rig_serve_close(r);
}
END_TEST

/* ---- what is shown ---------------------------------------------------------------- */

/* Memory is held, and nothing happens: it costs all the same. */
START_TEST(byte_seconds_grow_while_nothing_happens)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	struct stat *st = stat_get(STAT_COUNTER,
				   "kvd_memory_byte_seconds_total", "",
				   "tenant", "t0", 1);
	const uint64_t limit_ns = clock_ns() + 30000000000ull;
	uint64_t n;

	(void)ask_chunk(r, 77);
	for (int i = 0; i < 300; i++) /* what is left to do is done */
		rig_serve_turn(r);
	n = stat_read(st);
	while (stat_read(st) == n && clock_ns() < limit_ns)
		rig_serve_turn(r);
	ck_assert_uint_gt(stat_read(st), n);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("serve");
	TCase *t = tcase_create("serve");
	SRunner *sr;
	int failed;

	tcase_add_test(t, a_chunk_may_be_longer_than_a_segment);
	tcase_add_test(t, a_chunk_that_is_computed_again_is_kept);
	tcase_add_test(t, who_stands_in_line_is_preloaded);
	tcase_add_test(t, a_chunk_belongs_to_its_model);
	tcase_add_test(t, chunks_of_a_cancelled_request_are_not_computed);
	tcase_add_test(t, who_waits_for_a_place_is_not_in_the_way);
	tcase_add_test(t, who_does_not_wait_takes_no_place_of_one_that_does);
	tcase_add_test(t, nobody_gets_ahead_by_asking_for_chunks);
	tcase_add_test(t, requests_that_wait_hold_little);
	tcase_add_test(t, scores_do_not_depend_on_what_is_cached);
	tcase_add_test(t, scores_come_with_any_batch);
	tcase_add_test(t, a_score_cancelled_halfway_has_its_text);
	tcase_add_test(t, a_stop_string_over_two_tokens_is_never_shown);
	tcase_add_test(t, long_texts_are_the_same_tokens);
	tcase_add_test(t, texts_may_be_too_long_or_cancelled);
	tcase_add_test(t, who_does_not_wait_leaves_the_line_as_it_is);
	tcase_add_test(t, byte_seconds_grow_while_nothing_happens);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
