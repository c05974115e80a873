/*
 * test_share.c - tenants that opted in find each other's cache, others never do
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/stat.h"
#include "kvd/serve/share.h"
#include "tests/rig/rig_serve.h"

#define N	500u
#define N_CHUNK 300u

struct two {
	struct rig_serve *r;
	struct serve_tenant *t[2];
	struct serve_session *ss[2];
};

static struct two open_disk(const char *a, const char *b, uint64_t memory,
			    uint64_t disk)
{
	struct two w = { .r = rig_serve_open((struct rig_serve_options){
				 .memory_bytes = memory,
				 .disk_bytes = disk,
				 .share = { a, b } }) };

	w.r->conf.recompute = 0;
	w.t[0] = w.r->tenant;
	w.t[1] = serve_tenant_find(w.r->serve, "t1");
	w.ss[0] = w.r->session;
	ck_assert_int_eq(serve_session_open(w.t[1], &w.ss[1]), 0);
	return w;
}

static struct two open_two(const char *a, const char *b, uint64_t memory)
{
	return open_disk(a, b, memory, 0);
}

static void close_two(struct two *w)
{
	rig_serve_leave(w->r, w->ss[1]);
	rig_serve_close(w->r);
}

static struct rig_gen *start(struct two *w, int i, const uint32_t *t,
			     const uint32_t *chunk)
{
	struct rig_gen *g = rig_gen_new();

	if (chunk) {
		rig_gen_part(g, t, 5, 0);
		rig_gen_part(g, chunk, N_CHUNK, SERVE_PART_REUSE);
	}
	rig_gen_part(g, t, N, 0);
	ck_assert_int_eq(rig_gen_start(g, w->ss[i]), 0);
	return g;
}

static struct rig_gen *run(struct two *w, int i, const uint32_t *t,
			   const uint32_t *chunk)
{
	struct rig_gen *g = start(w, i, t, chunk);

	ck_assert(rig_serve_until(w->r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	return g;
}

static void same(const struct rig_gen *a, const struct rig_gen *b)
{
	ck_assert_int_eq(a->ret, b->ret);
	for (int i = 0; i < a->ret; i++)
		ck_assert(a->tokens[i].id == b->tokens[i].id &&
			  !memcmp(&a->tokens[i].logprob, &b->tokens[i].logprob,
				  sizeof(float)));
}

static uint64_t counter(const char *name, const char *tenant)
{
	return stat_read(stat_get(STAT_COUNTER, name, "", "tenant", tenant, 1));
}

START_TEST(who_opted_in_finds_the_others)
{
	struct two w = open_two("team", "team", 0);
	uint32_t *t = rig_ids(N + 1, 3), *chunk = rig_ids(N_CHUNK, 4);
	struct rig_gen *g[4];
	struct pager_info own;

	g[0] = run(&w, 0, t, NULL);
	g[1] = run(&w, 1, t, NULL);
	ck_assert_uint_ge(g[1]->gen.stats.n_prefix, N - 32);
	ck_assert_uint_eq(counter("kvd_shared_tokens_total", "t1"),
			  g[1]->gen.stats.n_prefix);
	same(g[0], g[1]);
	g[2] = run(&w, 0, t + 1, chunk);
	g[3] = run(&w, 1, t + 1, chunk);
	ck_assert_uint_eq(g[3]->gen.stats.n_chunk, N_CHUNK);
	same(g[2], g[3]);
	/* charged to who made it: the finder has its last tiles only */
	pager_info(w.t[1]->pager, &own);
	ck_assert_uint_le(own.mapped_bytes * 4, w.r->conf.memory_bytes);
	ck_assert_uint_le(segment_pool_bytes(w.t[1]->pool) * 3,
			  segment_pool_bytes(w.t[0]->pool));
	for (int i = 0; i < 4; i++)
		free(g[i]);
	free(t);
	free(chunk);
	close_two(&w);
}
END_TEST

/* Its owner forgets everything while the other one reads it. */
START_TEST(freed_by_its_owner_while_used)
{
	struct two w = open_two("team", "team", 0);
	uint32_t *t = rig_ids(N + 1, 5);
	struct rig_gen *g[2];

	g[0] = run(&w, 0, t, NULL);
	g[1] = start(&w, 1, t, NULL);
	while (!g[1]->n_out)
		rig_serve_turn(w.r);
	ck_assert_uint_gt(share_tokens(g[1]->gen.priv), 0);
	ck_assert_uint_gt(w.t[0]->lent_bytes, 0);
	while (!segment_reclaim(w.t[0]->pool))
		; /* what nobody uses */
	for (const struct seq_entry *e =
		     ((struct gen *)g[1]->gen.priv)->seq.entries;
	     e->seg->pool == w.t[0]->pool; e++)
		segment_forget(e->seg);
	ck_assert(rig_serve_until(w.r, &g[1]->told));
	same(g[0], g[1]);
	ck_assert_uint_eq(w.t[0]->lent_bytes, 0);
	ck_assert_uint_eq(segment_pool_n(w.t[0]->pool), 0);
	free(g[0]);
	free(g[1]);
	free(t);
	close_two(&w);
}
END_TEST

/* The owner's memory is all reserved: nobody waits for it, and nothing is found. */
START_TEST(without_a_loan_it_goes_alone)
{
	struct two w = open_two("team", "team", 1 << 20);
	uint32_t *t = rig_ids(N + 1, 6);
	struct rig_gen *g[2];
	uint64_t all;

	g[0] = run(&w, 0, t, NULL);
	all = pager_reservable(w.t[0]->pager);
	w.t[0]->lent_bytes += all; /* for serve_check() */
	ck_assert_int_eq(pager_reserve(w.t[0]->pager, all), 0);
	g[1] = run(&w, 1, t, NULL);
	ck_assert_uint_eq(g[1]->gen.stats.n_prefix, 0);
	same(g[0], g[1]);
	w.t[0]->lent_bytes -= all;
	pager_unreserve(w.t[0]->pager, all);
	free(g[0]);
	free(g[1]);
	free(t);
	close_two(&w);
}
END_TEST

#define N_MOST 1500u /* tokens: most of the owner's place */
#define N_OWN  1000u

static struct rig_gen *ask(struct two *w, int i, const uint32_t *t, uint32_t n,
			   uint32_t flags)
{
	static const uint32_t end[3] = { 5, 6, 7 };
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, t, n, flags);
	rig_gen_part(g, end, 3, 0);
	g->gen.max_tokens = 64;
	ck_assert_int_eq(rig_gen_start(g, w->ss[i]), 0);
	return g;
}

static void finish(struct two *w, struct rig_gen *g, int ret)
{
	ck_assert(rig_serve_until(w->r, &g->told));
	ck_assert_int_eq(g->ret, ret);
	free(g);
}

/* The other one's request refers to most of what the owner has a place for: the owner's own
 * is not refused, it waits until that has ended. */
START_TEST(what_others_read_is_no_quota_of_the_owner)
{
	struct two w = open_disk("team", "team", 1 << 20, 1 << 20);
	uint32_t *t = rig_ids(N_MOST, 9), *own = rig_ids(N_OWN, 10);
	struct rig_gen *g;

	finish(&w, ask(&w, 0, t, N_MOST, 0), 64);
	g = ask(&w, 1, t, N_MOST, 0);
	while (!g->n_out)
		rig_serve_turn(w.r);
	ck_assert_uint_gt(w.t[0]->lent_bytes, (1 << 20) / 2);
	finish(&w, ask(&w, 0, own, N_OWN, 0), 64);
	ck_assert(g->told);
	finish(&w, g, 64);
	free(t);
	free(own);
	close_two(&w);
}
END_TEST

/* The same of one that stands in line, with a chunk of the owner's: it goes on alone. */
START_TEST(what_others_wait_with_is_no_quota_of_the_owner)
{
	struct two w = open_disk("team", "team", 1 << 20, 1 << 20);
	uint32_t *t = rig_ids(N_MOST, 11), *own = rig_ids(N_OWN, 12);
	struct pager *p = w.t[1]->pager;
	const uint64_t all = pager_reservable(p);
	struct rig_gen *g;
	uint64_t n;

	finish(&w, ask(&w, 0, t, N_MOST, SERVE_PART_REUSE), 64);
	w.t[1]->lent_bytes += all; /* for serve_check() */
	ck_assert_int_eq(pager_reserve(p, all), 0);
	g = ask(&w, 1, t, N_MOST, SERVE_PART_REUSE);
	while (!w.t[1]->st_lookup->count || list_empty(&w.t[1]->waiting))
		rig_serve_turn(w.r);
	n = w.t[1]->st_lookup->count;
	for (int i = 0; i < 100; i++)
		rig_serve_turn(w.r);
	/* it waits: what it would borrow is not asked for again and again */
	ck_assert_uint_le(w.t[1]->st_lookup->count - n, 2);
	finish(&w, ask(&w, 0, own, N_OWN, 0), 64);
	ck_assert(!g->told);
	w.t[1]->lent_bytes -= all;
	pager_unreserve(p, all);
	ck_assert(rig_serve_until(w.r, &g->told));
	ck_assert_uint_eq(g->gen.stats.n_chunk, 0);
	finish(&w, g, 64);
	free(t);
	free(own);
	close_two(&w);
}
END_TEST

static const char *const counters[] = {
	"kvd_pages_mapped_total",     "kvd_pages_evicted_total",
	"kvd_pages_read_total",	      "kvd_pages_written_total",
	"kvd_prefix_hits_total",      "kvd_prefix_tokens_total",
	"kvd_chunk_hits_total",	      "kvd_chunk_misses_total",
	"kvd_chunk_tokens_total",     "kvd_hits_loaded_total",
	"kvd_hits_recomputed_total",  "kvd_shared_tokens_total",
	"kvd_generated_tokens_total", "kvd_prompt_tokens_total",
};

struct seen {
	uint64_t n[KV_ARRAY_LEN(counters)];
	uint64_t prefix[2], chunk[2], computed[2], segments, bytes;
};

/* What t1 does and sees, with t0 having the same in its cache or not. */
static struct seen look(const char *a, const char *b, int filled)
{
	struct two w = open_two(a, b, 0);
	uint32_t *t = rig_ids(N + 1, 7), *chunk = rig_ids(N_CHUNK, 8);
	uint64_t before[KV_ARRAY_LEN(counters)];
	struct seen s = { 0 };

	if (filled) {
		free(run(&w, 0, t, NULL));
		free(run(&w, 0, t + 1, chunk));
	}
	for (size_t i = 0; i < KV_ARRAY_LEN(counters); i++)
		before[i] = counter(counters[i], "t1");
	for (int i = 0; i < 2; i++) {
		struct rig_gen *g = run(&w, 1, t + i, i ? chunk : NULL);

		s.prefix[i] = g->gen.stats.n_prefix;
		s.chunk[i] = g->gen.stats.n_chunk;
		s.computed[i] = g->gen.stats.n_computed;
		free(g);
	}
	for (size_t i = 0; i < KV_ARRAY_LEN(counters); i++)
		s.n[i] = counter(counters[i], "t1") - before[i];
	s.segments = segment_pool_n(w.t[1]->pool);
	s.bytes = segment_pool_bytes(w.t[1]->pool);
	free(t);
	free(chunk);
	close_two(&w);
	return s;
}

/* Nothing that t1 can see, or cause, depends on what t0 has. */
START_TEST(who_did_not_sees_nothing)
{
	static const char *const names[][2] = {
		{ "", "" }, { "team", "" }, { "", "team" }, { "team", "other" }
	};

	for (size_t i = 0; i < KV_ARRAY_LEN(names); i++) {
		const struct seen with = look(names[i][0], names[i][1], 1);
		const struct seen without = look(names[i][0], names[i][1], 0);

		ck_assert(!memcmp(&with, &without, sizeof(with)));
		ck_assert_uint_eq(with.prefix[0], 0);
	}
	/* and this can tell */
	ck_assert_uint_gt(look("team", "team", 1).prefix[0], 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("share");
	TCase *t = tcase_create("share");
	SRunner *sr;
	int failed;

	tcase_add_test(t, who_opted_in_finds_the_others);
	tcase_add_test(t, freed_by_its_owner_while_used);
	tcase_add_test(t, without_a_loan_it_goes_alone);
	tcase_add_test(t, what_others_read_is_no_quota_of_the_owner);
	tcase_add_test(t, what_others_wait_with_is_no_quota_of_the_owner);
	tcase_add_test(t, who_did_not_sees_nothing);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
