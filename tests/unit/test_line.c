/*
 * test_line.c - who is next in a tenant's line: longest shared prefix first, with an end to
 * it, and the same answers
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/gen.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_serve.h"

#define SLOW_RATE 100.0 /* tokens a second: what is cached weighs much */

/* ---- the place in line ------------------------------------------------------ */

struct fake {
	struct waiter w;
	char name;
};

static int never(struct waiter *w)
{
	(void)w;
	return -EAGAIN;
}

static struct fake fake(char name, uint64_t since_ms, uint32_t cached,
			const struct rate *rate)
{
	struct fake f = {
		.w = { .since_ns = clock_ns() / 2 + since_ms * 1000000,
		       .cached = cached,
		       .rate = rate,
		       .yields = rate != NULL,
		       .retry = never },
		.name = name,
	};

	return f;
}

/* The names in line, of those n that come in this order; then the line is empty. */
static void expect_line(struct rig_serve *r, struct fake *f, size_t n,
			const char *names)
{
	char line[64] = "";
	size_t k = 0;

	for (size_t i = 0; i < n; i++) {
		list_init(&f[i].w.node);
		tenant_wait(r->tenant, &f[i].w);
	}
	list_for_each(l, &r->tenant->waiting)
		line[k++] = container_of(list_entry(l, struct waiter, node),
					 struct fake, w)
				    ->name;
	for (size_t i = 0; i < n; i++)
		list_del(&f[i].w.node);
	ck_assert_str_eq(line, names);
}

/* 62.5 cached tokens weigh as much as ten seconds: more is of no use. */
START_TEST(more_cached_goes_first_but_not_for_ever)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	const struct rate slow = { .units = SLOW_RATE, .seconds = 1 };
	const uint64_t age = LINE_AGE_NS / 1000000;
	struct fake in_order[] = { fake('a', 0, 0, &slow),
				   fake('b', 10, 10, &slow),
				   fake('c', 20, 40, &slow),
				   fake('d', 30, 10, &slow) };
	struct fake late[] = { fake('a', 0, 0, &slow),
			       fake('b', age - 1, 1000, &slow),
			       fake('c', age + 1, 4000000, &slow),
			       fake('d', 2 * age, 4000000, &slow) };
	struct fake calls[] = { fake('a', 0, 0, &slow), fake('A', 5, 0, NULL),
				fake('b', 10, 50, &slow),
				fake('c', 11, 60, &slow) };
	struct fake urgent[] = { fake('a', 0, 0, &slow), fake('b', 1, 0, &slow),
				 fake('c', 2, 60, &slow),
				 fake('d', 3, 61, &slow) };

	expect_line(r, in_order, 4, "cbda");
	expect_line(r, late, 4, "bacd");
	expect_line(r, calls, 4, "aAcb");
	urgent[2].w.priority = 3; /* and b is a deadline's */
	urgent[1].w.yields = 0;
	expect_line(r, urgent, 4, "abdc");
	rig_serve_close(r);
}
END_TEST

/* Whatever comes, and in what order: nobody waits for whom comes ten seconds later. */
START_TEST(nobody_starves_in_any_line)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	const struct rate rates[2] = { { 1e2, 1 }, { 1e5, 1 } };
	const uint64_t from = clock_ns() / 2;
	uint64_t seed = 0xbeef;
	struct waiter w[60];

	for (int round = 0; round < 200; round++) {
		uint64_t at = from, latest = 0;

		for (size_t i = 0; i < KV_ARRAY_LEN(w); i++) {
			const uint64_t dice = rig_random(&seed);

			at += dice % 2000000000;
			w[i] = (struct waiter){
				.since_ns = at,
				.retry = never,
				.cached = (uint32_t)(dice >> 32) % 100000,
				.priority = (uint32_t)(dice >> 24) % 4,
				.yields = dice >> 20 & 7 ? 1 : 0,
				.rate = dice >> 16 & 7 ? &rates[dice & 1]
						       : NULL,
			};
			list_init(&w[i].node);
			tenant_wait(r->tenant, &w[i]);
		}
		list_for_each(n, &r->tenant->waiting) {
			const struct waiter *i =
				list_entry(n, struct waiter, node);

			ck_assert_uint_lt(latest, i->since_ns + LINE_AGE_NS);
			latest = KV_MAX(latest, i->since_ns);
		}
		for (size_t i = 0; i < KV_ARRAY_LEN(w); i++)
			list_del(&w[i].node);
	}
	rig_serve_close(r);
}
END_TEST

/* ---- requests ------------------------------------------------------------------- */

#define MAX_REQUESTS 64u

struct crowd {
	struct rig_serve *r;
	struct rig_gen *g[MAX_REQUESTS];
	uint32_t n;
	uint32_t order[MAX_REQUESTS]; /* who was told, in order */
	uint32_t n_told;
	uint32_t max_tokens; /* 0: 2 */
	uint32_t n_missing; /* tokens of a chunk before the last part */
};

static void ask(struct crowd *c, const uint32_t *prefix, size_t n_prefix,
		const uint32_t *own, size_t n_own, uint32_t flags)
{
	struct rig_gen *g = rig_gen_new();

	ck_assert_uint_lt(c->n, MAX_REQUESTS);
	if (n_prefix)
		rig_gen_part(g, prefix, n_prefix, flags);
	if (c->n_missing)
		rig_gen_part(g, own + 100, c->n_missing, SERVE_PART_REUSE);
	rig_gen_part(g, own, n_own, 0);
	g->gen.may_wait = 1;
	g->gen.max_tokens = c->max_tokens ? c->max_tokens : 2;
	ck_assert_int_eq(rig_gen_start(g, c->r->session), 0);
	c->g[c->n++] = g;
}

static void look_who_is_told(struct crowd *c)
{
	for (uint32_t i = 0; i < c->n; i++) {
		uint32_t k = 0;

		while (k < c->n_told && c->order[k] != i)
			k++;
		if (k == c->n_told && c->g[i]->told)
			c->order[c->n_told++] = i;
	}
}

/* The only place is taken for a while. */
static void take_place(struct crowd *c, const uint32_t *t)
{
	c->max_tokens = 300;
	ask(c, NULL, 0, t, 20, 0);
	c->max_tokens = 0;
	while (((struct gen *)c->g[0]->gen.priv)->state <= GEN_ADMIT)
		rig_serve_turn(c->r);
	c->r->serve->models[0].prefill =
		(struct rate){ .units = SLOW_RATE, .seconds = 1 };
}

/* Until all are told. */
static void run(struct crowd *c)
{
	const uint64_t limit_ns = clock_ns() + 120000000000ull;

	while (c->n_told < c->n && clock_ns() < limit_ns) {
		rig_serve_turn(c->r);
		look_who_is_told(c);
	}
	ck_assert_uint_eq(c->n_told, c->n);
	for (uint32_t i = 0; i < c->n; i++)
		ck_assert_int_eq(c->g[i]->ret, c->g[i]->gen.max_tokens);
}

static void expect_order(const struct crowd *c, const char *names)
{
	char order[MAX_REQUESTS + 1] = "";

	for (uint32_t i = 0; i < c->n_told; i++)
		order[i] = (char)('0' + c->order[i]);
	ck_assert_str_eq(order, names);
}

static void leave(struct crowd *c)
{
	for (uint32_t i = 0; i < c->n; i++)
		free(c->g[i]);
	memset(c->g, 0, sizeof(c->g));
	c->n = c->n_told = 0;
}

static struct rig_serve *one_place(const char *order)
{
	return rig_serve_open((struct rig_serve_options){ .max_requests = 1,
							  .order = order });
}

/* One at a time: 0 runs; strangers came before those who share its beginning. */
static void one_place_many(const char *order, const char *expected,
			   struct serve_token tokens[MAX_REQUESTS][2])
{
	uint32_t *shared = rig_ids(640, 1), *own = rig_ids(640, 2);
	struct crowd c = { .r = one_place(order) };

	c.r->serve->models[0].prefill =
		(struct rate){ .units = SLOW_RATE, .seconds = 1 };
	ask(&c, shared, 640, own, 20, 0);
	for (uint32_t i = 1; i < 4; i++)
		ask(&c, own + 32 * i, 320, own, 20 + i, 0);
	ask(&c, shared, 320, own, 30, 0);
	ask(&c, shared, 640, own, 40, 0);
	ask(&c, shared, 640, own, 50, 0);
	run(&c);
	expect_order(&c, expected);
	for (uint32_t i = 0; i < c.n; i++)
		memcpy(tokens[i], c.g[i]->tokens, sizeof(tokens[i]));
	leave(&c);
	rig_serve_close(c.r);
	free(shared);
	free(own);
}

START_TEST(who_shares_a_prefix_goes_first)
{
	static struct serve_token with[MAX_REQUESTS][2],
		without[MAX_REQUESTS][2];

	one_place_many("fifo", "0123456", without);
	one_place_many("prefix", "0564123", with);
	ck_assert(!memcmp(with, without, sizeof(with)));
}
END_TEST

/* A chunk that is there counts like a prefix. */
START_TEST(who_has_its_chunk_goes_first)
{
	uint32_t *chunk = rig_ids(400, 1), *own = rig_ids(800, 2);
	struct crowd c = { .r = one_place(NULL) };

	ask(&c, chunk, 400, own, 20, SERVE_PART_REUSE);
	run(&c);
	leave(&c);
	take_place(&c, own);
	ask(&c, own, 300, own, 20, 0);
	ask(&c, own + 32, 300, own, 20, 0);
	ask(&c, chunk, 400, own, 30, SERVE_PART_REUSE);
	run(&c);
	expect_order(&c, "0312");
	leave(&c);
	rig_serve_close(c.r);
	free(chunk);
	free(own);
}
END_TEST

/* There is no memory for the first in line; who has more cached, and its missing chunk, fit. */
START_TEST(a_missing_chunk_stands_where_its_request_does)
{
	struct crowd c = { .r = rig_serve_open((struct rig_serve_options){
				   .memory_bytes = 1 << 20,
				   .disk_bytes = 16 << 20 }) };
	uint32_t *chunk = rig_ids(64, 1), *own = rig_ids(2000, 2);

	ask(&c, chunk, 64, own, 20, SERVE_PART_REUSE);
	run(&c);
	leave(&c);
	c.r->serve->models[0].prefill =
		(struct rate){ .units = SLOW_RATE, .seconds = 1 };
	c.max_tokens = 700;
	ask(&c, NULL, 0, own, 1000, 0); /* 870 of 1,024 KiB */
	c.max_tokens = 400;
	ask(&c, NULL, 0, own + 1000, 900, 0);
	c.max_tokens = 2;
	c.n_missing = 40;
	ask(&c, chunk, 64, own, 10, SERVE_PART_REUSE);
	run(&c);
	expect_order(&c, "201");
	ck_assert_uint_eq(c.g[2]->gen.stats.n_chunk, 64);
	leave(&c);
	rig_serve_close(c.r);
	free(chunk);
	free(own);
}
END_TEST

/* What gave it its place goes before its turn: it is a stranger then. */
START_TEST(what_is_gone_counts_no_more)
{
	uint32_t *shared = rig_ids(320, 1), *own = rig_ids(640, 2);
	struct crowd c = { .r = one_place(NULL) };
	const struct gen *g;
	struct segment *s;

	ask(&c, shared, 320, own, 20, 0);
	run(&c);
	leave(&c);
	take_place(&c, own);
	ask(&c, own, 320, own, 20, 0);
	ask(&c, own + 32, 320, own, 20, 0);
	ask(&c, shared, 320, own, 30, 0);
	g = c.g[3]->gen.priv;
	while (g->waiter.cached < 320)
		rig_serve_turn(c.r);
	ck_assert_ptr_eq(list_first(&c.r->tenant->waiting), &g->waiter.node);
	s = map_find(&c.r->tenant->prefix.map, g->look.at.id);
	ck_assert_ptr_nonnull(s);
	segment_forget(s);
	run(&c);
	expect_order(&c, "0123");
	leave(&c);
	rig_serve_close(c.r);
	free(shared);
	free(own);
}
END_TEST

/* Strangers keep coming who share what is cached: the one that does not is served. */
START_TEST(a_stranger_is_served_among_many_who_share)
{
	uint32_t *shared = rig_ids(320, 1), *own = rig_ids(640, 2);
	struct crowd c = { .r = one_place(NULL) };
	struct gen *g;

	c.r->serve->models[0].prefill =
		(struct rate){ .units = 1e15, .seconds = 1 };
	ask(&c, shared, 320, own, 20, 0);
	ask(&c, own, 320, own, 20, 0); /* the stranger */
	g = c.g[1]->gen.priv;
	g->waiter.since_ns -= LINE_AGE_NS; /* it has waited long */
	c.r->serve->models[0].prefill =
		(struct rate){ .units = 1, .seconds = 1 };
	while (!c.g[1]->told && c.n < MAX_REQUESTS - 1) {
		ask(&c, shared, 320, own, 20 + c.n, 0);
		while (!c.g[c.n - 2]->told && !c.g[1]->told)
			rig_serve_turn(c.r);
	}
	ck_assert_uint_lt(c.n, 8);
	run(&c);
	leave(&c);
	rig_serve_close(c.r);
	free(shared);
	free(own);
}
END_TEST

/* ---- what it is good for ----------------------------------------------------------- */

#define PREFIXES 8u
#define EACH	 6u
#define LENGTH	 320u

/* A line of many requests over few prefixes, of which a third fits: tokens computed. */
static uint64_t computed(const char *order, struct serve_token *tokens)
{
	struct crowd c = { .r = rig_serve_open((struct rig_serve_options){
				   .memory_bytes = 1 << 20,
				   .disk_bytes = 1 << 20,
				   .max_requests = 1,
				   .order = order }) };
	uint32_t *own = rig_ids(MAX_REQUESTS, 99), *prefix[PREFIXES];
	uint64_t n = 0;

	for (uint32_t i = 0; i < PREFIXES; i++)
		prefix[i] = rig_ids(LENGTH, 100 + i);
	for (uint32_t i = 0; i < EACH * PREFIXES; i++)
		ask(&c, prefix[i % PREFIXES], LENGTH, own, 10 + i, 0);
	run(&c);
	for (uint32_t i = 0; i < c.n; i++) {
		n += c.g[i]->gen.stats.n_computed;
		memcpy(tokens + 2 * i, c.g[i]->tokens, 2 * sizeof(*tokens));
	}
	leave(&c);
	rig_serve_close(c.r);
	for (uint32_t i = 0; i < PREFIXES; i++)
		free(prefix[i]);
	free(own);
	return n;
}

START_TEST(few_prefixes_are_computed_once)
{
	static struct serve_token a[2 * MAX_REQUESTS], b[2 * MAX_REQUESTS];
	const uint64_t fifo = computed("fifo", a);
	const uint64_t prefix = computed("prefix", b);

	printf("line: %u requests over %u prefixes of %u tokens: computed "
	       "%llu tokens in order of arrival, %llu by prefix\n",
	       EACH * PREFIXES, PREFIXES, LENGTH, (unsigned long long)fifo,
	       (unsigned long long)prefix);
	ck_assert(!memcmp(a, b, sizeof(a)));
	ck_assert_uint_lt(2 * prefix, fifo);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("line");
	TCase *tc = tcase_create("line");
	SRunner *sr = srunner_create(s);
	int n_failed;

	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, more_cached_goes_first_but_not_for_ever);
	tcase_add_test(tc, nobody_starves_in_any_line);
	tcase_add_test(tc, who_shares_a_prefix_goes_first);
	tcase_add_test(tc, who_has_its_chunk_goes_first);
	tcase_add_test(tc, a_missing_chunk_stands_where_its_request_does);
	tcase_add_test(tc, what_is_gone_counts_no_more);
	tcase_add_test(tc, a_stranger_is_served_among_many_who_share);
	tcase_add_test(tc, few_prefixes_are_computed_once);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_NORMAL);
	n_failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n_failed ? 1 : 0;
}
