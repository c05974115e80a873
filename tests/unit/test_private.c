/*
 * test_private.c - two runs that differ in what another tenant has: nothing that a tenant can
 * see, cause or time differs. Time is what is done for it: steps, rows, pages, turns
 * of the line; the clock of a busy machine tells less.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/stat.h"
#include "kvd/serve/gen.h"
#include "tests/rig/rig_serve.h"

#define N	 200u
#define N_CHUNK	 150u
#define N_ASKED	 7
#define N_LOGITS 64u

static const char *const counters[] = {
	"kvd_pages_mapped_total",	"kvd_pages_evicted_total",
	"kvd_pages_read_total",		"kvd_pages_written_total",
	"kvd_prefix_hits_total",	"kvd_prefix_tokens_total",
	"kvd_chunk_hits_total",		"kvd_chunk_misses_total",
	"kvd_chunk_tokens_total",	"kvd_hits_loaded_total",
	"kvd_hits_recomputed_total",	"kvd_shared_tokens_total",
	"kvd_generated_tokens_total",	"kvd_prompt_tokens_total",
	"kvd_seq_edits_total",		"kvd_seq_edit_tokens_total",
	"kvd_preloaded_requests_total", "kvd_awaited_segments_total",
};

/* All of it is compared, byte for byte. */
struct seen {
	uint64_t counters[KV_ARRAY_LEN(counters)];
	uint64_t steps, rows, variants, segments, bytes;
	int put, rm, by_id, foreign_rm, foreign_id;
	struct asked {
		int ret;
		uint64_t n_prefix, n_chunk, n_computed, n_repaired, n_moved;
		uint32_t use[8], tokens[8];
		float logits[N_LOGITS];
	} asked[N_ASKED];
};

struct world {
	struct rig_serve *r;
	struct serve_tenant *t[2];
	struct serve_session *ss[2];
	uint32_t *text, *chunk, *secret;
};

static void open_world(struct world *w, const char *share)
{
	w->r = rig_serve_open(
		(struct rig_serve_options){ .share = { share, share } });
	w->r->conf.recompute = 0; /* by rates: they are all tenants' */
	w->t[0] = w->r->tenant;
	w->t[1] = serve_tenant_find(w->r->serve, "t1");
	w->ss[0] = w->r->session;
	ck_assert_int_eq(serve_session_open(w->t[1], &w->ss[1]), 0);
	w->text = rig_ids(N + 50, 1);
	w->chunk = rig_ids(N_CHUNK, 2);
	w->secret = rig_ids(N_CHUNK, 3);
}

static void close_world(struct world *w)
{
	free(w->text);
	free(w->chunk);
	free(w->secret);
	rig_serve_leave(w->r, w->ss[1]);
	rig_serve_close(w->r);
}

/* ---- what is asked ------------------------------------------------------------------ */

enum what { PREFIX, CHUNK, BLEND, CRAFT, MIXED, EDIT, AGAIN };

static void ask(struct world *w, int i, enum what what, const uint32_t *chunk,
		struct asked *a)
{
	struct rig_gen *g = rig_gen_new();

	g->gen.flags = SERVE_GEN_LOGITS;
	if (what == EDIT)
		rig_gen_part(g, w->text, N, SERVE_PART_BASE);
	rig_gen_part(g, w->text + (what == EDIT ? 40 : 0), N, 0);
	if (what != PREFIX && what != EDIT)
		rig_gen_part(g, chunk, N_CHUNK, SERVE_PART_REUSE);
	rig_gen_part(g, w->text + 3, 20, 0);
	g->gen.repair = what == BLEND	? REPAIR_BLEND
			: what == CRAFT ? REPAIR_CRAFT
			: what == MIXED ? REPAIR_CRAFT_BLEND
					: REPAIR_NONE;
	g->gen.repair_permille = g->gen.repair ? 200 : 0;
	ck_assert_int_eq(rig_gen_start(g, w->ss[i]), 0);
	ck_assert(rig_serve_until(w->r, &g->told));
	if (a) {
		a->ret = g->ret;
		a->n_prefix = g->gen.stats.n_prefix;
		a->n_chunk = g->gen.stats.n_chunk;
		a->n_computed = g->gen.stats.n_computed;
		a->n_repaired = g->gen.stats.n_repaired;
		a->n_moved = g->gen.stats.n_moved;
		for (uint32_t k = 0; k < g->gen.n_parts; k++)
			a->use[k] = g->used[k].use;
		for (int k = 0; k < g->ret && k < 8; k++) {
			a->tokens[k] = g->tokens[k].id;
			memcpy(&a->logits[k], &g->tokens[k].logprob,
			       sizeof(float));
		}
	}
	free(g);
}

struct put {
	struct serve_chunk_put put;
	int told, ret;
};

static void put_done(struct wait *wait, int ret)
{
	struct put *p =
		container_of(container_of(wait, struct serve_chunk_put, wait),
			     struct put, put);

	p->ret = ret;
	p->told = 1;
}

static int put_chunk(struct world *w, int i, const uint32_t *chunk,
		     uint64_t id[2])
{
	struct put p = { .put = { .wait.done = put_done,
				  .model = "",
				  .part = { .kind = SERVE_PART_TOKENS,
					    .tokens = chunk,
					    .n_tokens = N_CHUNK } } };

	ck_assert_int_eq(serve_chunk_put(w->ss[i], &p.put), 0);
	ck_assert(rig_serve_until(w->r, &p.told));
	id[0] = p.put.id[0];
	id[1] = p.put.id[1];
	return p.ret;
}

/* A request that names a chunk by its id. */
static int by_id(struct world *w, int i, const uint64_t id[2])
{
	struct rig_gen *g = rig_gen_new();
	int ret;

	rig_gen_part(g, w->text, 1, 0);
	g->parts[0] = (struct serve_part){ .kind = SERVE_PART_CHUNK,
					   .id = { id[0], id[1] } };
	rig_gen_part(g, w->text, 20, 0);
	ret = rig_gen_start(g, w->ss[i]);
	if (!ret) {
		ck_assert(rig_serve_until(w->r, &g->told));
		ret = g->ret;
	}
	free(g);
	return ret;
}

static uint64_t counter(const char *name)
{
	return stat_read(stat_get(STAT_COUNTER, name, "", "tenant", "t1", 1));
}

/* What t0 did before, and between. */
enum other { NOTHING, OTHER_TEXTS, THE_SAME };

static void t0_does(struct world *w, enum other other, const uint64_t id[2])
{
	uint32_t *chunk = rig_ids(N_CHUNK, 77);
	uint64_t own[2];

	if (other == OTHER_TEXTS)
		ask(w, 0, CHUNK, chunk, NULL);
	for (int what = PREFIX; what <= EDIT && other == THE_SAME; what++)
		ask(w, 0, (enum what)what, w->chunk, NULL);
	if (other == THE_SAME) {
		ask(w, 0, CHUNK, w->secret, NULL);
		ck_assert_int_eq(put_chunk(w, 0, w->secret, own), N_CHUNK);
		ck_assert(own[0] == id[0] && own[1] == id[1]);
	}
	free(chunk);
}

/* All that t1 can do about it; s: zeroed. */
static void look(enum other other, const char *share, struct seen *s)
{
	struct world w;
	struct map_id secret;
	uint64_t before[KV_ARRAY_LEN(counters)], id[2];

	open_world(&w, share);
	secret = chunk_id(w.r->serve->models[0].id, w.secret, N_CHUNK);
	t0_does(&w, other, secret.w);
	for (int k = 0; k < 200; k++) /* statistics of t0's variants */
		rig_serve_turn(w.r);
	for (size_t i = 0; i < KV_ARRAY_LEN(counters); i++)
		before[i] = counter(counters[i]);
	s->steps = rig_serve_steps();
	s->rows = rig_serve_rows();
	s->foreign_id = by_id(&w, 1, secret.w);
	s->foreign_rm = serve_chunk_rm(w.ss[1], secret.w);
	for (int what = 0; what < N_ASKED; what++)
		ask(&w, 1, what == AGAIN ? CHUNK : (enum what)what, w.chunk,
		    &s->asked[what]);
	s->put = put_chunk(&w, 1, w.chunk, id);
	s->by_id = by_id(&w, 1, id);
	s->rm = serve_chunk_rm(w.ss[1], id);
	s->steps = rig_serve_steps() - s->steps;
	s->rows = rig_serve_rows() - s->rows;
	for (size_t i = 0; i < KV_ARRAY_LEN(counters); i++)
		s->counters[i] = counter(counters[i]) - before[i];
	s->variants = w.t[1]->variants.n;
	s->segments = segment_pool_n(w.t[1]->pool);
	s->bytes = segment_pool_bytes(w.t[1]->pool);
	close_world(&w);
}

START_TEST(two_runs_are_equal)
{
	static struct seen nothing, others, same, shared;

	look(NOTHING, "", &nothing);
	look(OTHER_TEXTS, "", &others);
	look(THE_SAME, "", &same);
	look(THE_SAME, "team", &shared);
	ck_assert_int_eq(nothing.foreign_id, -ENOENT);
	ck_assert_int_eq(nothing.foreign_rm, -ENOENT);
	ck_assert_int_gt(nothing.asked[CHUNK].ret, 0);
	ck_assert_uint_gt(nothing.asked[AGAIN].n_chunk, 0); /* its own */
	ck_assert_uint_ne(nothing.asked[CRAFT].use[1], 0);
	ck_assert_uint_gt(nothing.rows, N);
	ck_assert_uint_eq(same.steps, nothing.steps);
	ck_assert_uint_eq(same.rows, nothing.rows);
	ck_assert(!memcmp(&same, &nothing, sizeof(same)));
	ck_assert(!memcmp(&others, &nothing, sizeof(others)));
	/* and this can tell: here they opted in */
	ck_assert_uint_gt(shared.asked[PREFIX].n_prefix, 0);
	ck_assert_int_ge(shared.foreign_id, 0);
}
END_TEST

/* Answers to all that tenant 1 may ask of the daemon, but for how long that runs. */
static void query(struct world *w, char *out, size_t room)
{
	static const char *const what[] = { "status",	"models",   "usage",
					    "pages",	"segments", "chunks",
					    "sequences" };
	size_t n = 0;

	for (size_t i = 0; i < KV_ARRAY_LEN(what); i++) {
		char *text, *up;

		ck_assert_int_eq(
			serve_query(w->r->serve, w->ss[1], what[i], "", &text),
			0);
		up = strstr(text, "uptime_s");
		if (up)
			memset(up, 'x', strcspn(up, ",}"));
		n += (size_t)snprintf(out + n, room - n, "%s\n", text);
		free(text);
	}
	ck_assert_uint_lt(n, room);
}

START_TEST(what_can_be_asked_tells_nothing_of_others)
{
	static char before[16384], after[16384];
	struct serve_session *more;
	struct rig_gen *g;
	struct world w;

	open_world(&w, "");
	query(&w, before, sizeof(before));
	more = rig_serve_join(w.r); /* of tenant 0 */
	g = rig_gen_new();
	rig_gen_part(g, w.text, N, 0);
	ck_assert_int_eq(rig_gen_start(g, more), 0);
	for (int i = 0; i < 3; i++)
		rig_serve_turn(w.r);
	ck_assert(!g->told);
	query(&w, after, sizeof(after));
	ck_assert_str_eq(after, before);
	ck_assert(rig_serve_until(w.r, &g->told));
	query(&w, after, sizeof(after));
	ck_assert_str_eq(after, before);
	free(g);
	rig_serve_leave(w.r, more);
	close_world(&w);
}
END_TEST

/* Pages of another shape under an id of this model: a disk that lies. */
START_TEST(a_segment_of_another_shape_is_not_used)
{
	struct asked first = { 0 }, again = { 0 };
	struct segment *s;
	struct world w;

	open_world(&w, "");
	ask(&w, 1, CHUNK, w.chunk, &first);
	s = map_find(&w.t[1]->chunks.map,
		     chunk_id(w.r->serve->models[0].id, w.chunk, N_CHUNK));
	ck_assert_ptr_nonnull(s);
	s->layout.head_dim--;
	ask(&w, 1, CHUNK, w.chunk, &again);
	ck_assert_uint_eq(again.n_chunk, 0);
	ck_assert_mem_eq(again.tokens, first.tokens, sizeof(first.tokens));
	ck_assert_mem_eq(again.logits, first.logits, sizeof(first.logits));
	ask(&w, 1, CHUNK, w.chunk, &again);
	ck_assert_uint_eq(again.n_chunk, N_CHUNK);
	close_world(&w);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("private");
	TCase *t = tcase_create("private");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, two_runs_are_equal);
	tcase_add_test(t, what_can_be_asked_tells_nothing_of_others);
	tcase_add_test(t, a_segment_of_another_shape_is_not_used);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
