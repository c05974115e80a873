/*
 * test_serve.c - requests from submission to end: what hangs, what overtakes whom,
 * what a hostile or unlucky client could do
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_serve.h"

static uint64_t state = 5;

/* n token ids, the same for the same seed. */
static uint32_t *ids(size_t n, uint64_t seed)
{
	uint32_t *t = malloc((n + 1) * sizeof(*t));

	ck_assert_ptr_nonnull(t);
	state = seed;
	for (size_t i = 0; i < n; i++)
		t[i] = 3 + (uint32_t)(rig_random(&state) % 300);
	return t;
}

/* ---- chunks ------------------------------------------------------------- */

START_TEST(a_chunk_may_be_longer_than_a_segment)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *chunk = ids(2500, 11), *ask = ids(10, 12);
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

/* ---- the line --------------------------------------------------------------- */

/* The one that is counted stands behind the other, which waits for its end. */
START_TEST(who_waits_for_a_place_is_not_in_the_way)
{
	struct rig_serve *r =
		rig_serve_open((struct rig_serve_options){ .max_requests = 1 });
	struct rig_gen *waits = rig_gen_new(), *counted = rig_gen_new();
	uint32_t *t = ids(20, 3);

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
	uint32_t *t = ids(20, 3);

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

/* ---- scores --------------------------------------------------------------------- */

static struct rig_gen *score(struct rig_serve *r, const uint32_t *t, size_t n,
			     size_t n_empty, const uint32_t *last,
			     size_t n_last)
{
	struct rig_gen *g = rig_gen_new();

	g->gen.flags = SERVE_GEN_SCORE;
	rig_gen_part(g, t, n, 0);
	for (size_t i = 0; i < n_empty; i++)
		rig_gen_part(g, t, 0, 0);
	rig_gen_part(g, last, n_last, 0);
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	return g;
}

START_TEST(scores_do_not_depend_on_what_is_cached)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = ids(64, 21), *last = ids(70, 22);
	struct rig_gen *a = score(r, t, 64, 2, last, 70), *b;

	ck_assert(rig_serve_until(r, &a->told));
	ck_assert_int_eq(a->ret, 70);
	ck_assert(!isnan(a->tokens[0].logprob));
	b = score(r, t, 64, 2, last, 70);
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
	uint32_t *t = ids(20, 23);
	struct rig_gen *g = score(r, t, 10, 0, t + 10, 10);

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
	uint32_t *t = ids(2000, 24);
	struct rig_gen *g = score(r, t, 10, 0, t + 10, 1990);
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

int main(void)
{
	Suite *s = suite_create("serve");
	TCase *t = tcase_create("serve");
	SRunner *sr;
	int failed;

	tcase_add_test(t, a_chunk_may_be_longer_than_a_segment);
	tcase_add_test(t, a_chunk_belongs_to_its_model);
	tcase_add_test(t, who_waits_for_a_place_is_not_in_the_way);
	tcase_add_test(t, who_does_not_wait_takes_no_place_of_one_that_does);
	tcase_add_test(t, scores_do_not_depend_on_what_is_cached);
	tcase_add_test(t, scores_come_with_any_batch);
	tcase_add_test(t, a_score_cancelled_halfway_has_its_text);
	tcase_set_timeout(t, 60);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
