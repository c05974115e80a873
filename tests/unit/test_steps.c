/*
 * test_steps.c - who takes part in which step: decodes beside prefill, sequences
 * larger than their budget beside others
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "tests/rig/rig_serve.h"

/* ---- steps --------------------------------------------------------------- */

#define SLICE 32u

/* Of each step, every decode has a row; of prefill there is a slice at most. */
START_TEST(no_decode_waits_longer_than_a_slice)
{
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .prefill_slice = SLICE });
	struct rig_gen *d[3], *p[2];
	uint32_t *t = rig_ids(2000, 41), had[3];
	uint64_t steps, rows;

	for (int i = 0; i < 3; i++) {
		d[i] = rig_gen_new();
		rig_gen_part(d[i], t + i, 20, 0);
		d[i]->gen.max_tokens = 2000;
		ck_assert_int_eq(rig_gen_start(d[i], r->session), 0);
		while (!d[i]->n_out)
			rig_serve_turn(r);
	}
	for (int i = 0; i < 2; i++) {
		p[i] = rig_gen_new();
		rig_gen_part(p[i], t + 100 * i, 1800, 0);
		ck_assert_int_eq(rig_gen_start(p[i], r->session), 0);
	}
	for (int i = 0; i < 3; i++)
		had[i] = d[i]->n_out;
	steps = rig_serve_steps();
	rows = rig_serve_rows();
	while (!p[1]->n_out) {
		const uint64_t before = rig_serve_steps();
		const uint64_t rows_before = rig_serve_rows();

		rig_serve_turn(r);
		ck_assert_uint_le(rig_serve_steps() - before, 1);
		ck_assert_uint_le(rig_serve_rows() - rows_before, SLICE + 4);
		for (int i = 0; i < 3; i++) /* one may be under way */
			ck_assert_uint_le(rig_serve_steps() - steps,
					  d[i]->n_out - had[i] + 2);
	}
	ck_assert_uint_ge(rig_serve_steps() - steps, 2 * 1800 / SLICE);
	ck_assert_uint_ge(rig_serve_rows() - rows, 2 * 1800);
	rig_serve_close(r); /* ends them */
	for (int i = 0; i < 3; i++)
		free(d[i]);
	free(p[0]);
	free(p[1]);
	free(t);
}
END_TEST

static uint64_t steps_of(struct rig_serve *r, const uint32_t *t, uint32_t n)
{
	struct rig_gen *g = rig_gen_new();
	const uint64_t before = rig_serve_steps();
	uint64_t steps;

	rig_gen_part(g, t, n, 0);
	g->gen.max_tokens = 1;
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	ck_assert(rig_serve_until(r, &g->told));
	steps = rig_serve_steps() - before;
	free(g);
	return steps;
}

/* An eighth of a slice more is no step of its own. */
START_TEST(the_last_few_rows_come_along)
{
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .prefill_slice = SLICE });
	uint32_t *t = rig_ids(1000, 43);

	ck_assert_uint_eq(steps_of(r, t, SLICE), 1);
	ck_assert_uint_eq(steps_of(r, t + 100, SLICE + SLICE / 8), 1);
	ck_assert_uint_eq(steps_of(r, t + 200, SLICE + SLICE / 8 + 1), 2);
	ck_assert_uint_eq(steps_of(r, t + 300, 2 * SLICE + 1), 2);
	rig_serve_close(r);
	free(t);
}
END_TEST

#define BIG  5000u
#define MANY 200u

static struct rig_gen *start_big(struct rig_serve *r, const uint32_t *t)
{
	return rig_score(r, t, 10, 0, t + 10, BIG - 10);
}

static struct rig_gen *start_small(struct rig_serve *r, const uint32_t *t)
{
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, t, 20, 0);
	g->gen.max_tokens = MANY;
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	return g;
}

/* Tokens of g that come while a step of big is under way. */
static uint32_t tokens_meanwhile(struct rig_serve *r, struct rig_gen *big,
				 struct rig_gen *g)
{
	uint32_t sum = 0;

	while (!g->told && !big->told) {
		const struct gen *b = big->gen.priv;
		const uint32_t had = big->gen.n_out, had_small = g->n_out;
		const int stepping = b->state == GEN_STEP;

		rig_serve_turn(r);
		if (stepping && !big->told && b->state == GEN_STEP &&
		    big->gen.n_out == had)
			sum += g->n_out - had_small;
	}
	return sum;
}

/* The sequence of BIG tokens is some times its budget. */
START_TEST(windows_hold_up_nobody)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.n_ctx = 8192, .memory_bytes = 1 << 20 });
	uint32_t *t = rig_ids(BIG, 51);
	struct rig_gen *big = start_big(r, t), *small, *same[2];

	while (!big->gen.n_out)
		rig_serve_turn(r);
	small = start_small(r, t + 50);
	ck_assert_uint_gt(tokens_meanwhile(r, big, small), 0);
	ck_assert(rig_serve_until(r, &small->told));
	ck_assert(rig_serve_until(r, &big->told));
	ck_assert_int_eq(big->ret, BIG - 10);
	ck_assert_int_eq(small->ret, MANY);
	ck_assert_uint_gt(big->gen.stats.n_read_back, BIG / 32);
	rig_serve_close(r);
	/* the same bits when all is resident */
	r = rig_serve_open((struct rig_serve_options){ .n_ctx = 8192 });
	same[0] = start_big(r, t);
	same[1] = start_small(r, t + 50);
	ck_assert(rig_serve_until(r, &same[0]->told));
	ck_assert(rig_serve_until(r, &same[1]->told));
	ck_assert_uint_eq(same[0]->gen.stats.n_read_back, 0);
	ck_assert(!memcmp(big->tokens, same[0]->tokens,
			  (BIG - 10) * sizeof(big->tokens[0])));
	ck_assert(!memcmp(small->tokens, same[1]->tokens,
			  MANY * sizeof(small->tokens[0])));
	rig_serve_close(r);
	free(big);
	free(small);
	free(same[0]);
	free(same[1]);
	free(t);
}
END_TEST

/* It has some thousand windows to go: their end is not waited for. */
START_TEST(a_step_in_windows_can_be_cancelled)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.n_ctx = 8192, .memory_bytes = 1 << 20 });
	uint32_t *t = rig_ids(BIG, 52);
	struct rig_gen *big = start_big(r, t);
	uint64_t steps;

	while (big->gen.n_out < 3000)
		rig_serve_turn(r);
	steps = rig_serve_steps();
	serve_cancel(r->session, &big->gen);
	ck_assert(rig_serve_until(r, &big->told));
	ck_assert_int_eq(big->ret, -ECANCELED);
	ck_assert_uint_le(rig_serve_steps(), steps + 1);
	free(big);
	free(t);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("steps");
	TCase *t = tcase_create("steps");
	SRunner *sr;
	int failed;

	tcase_add_test(t, no_decode_waits_longer_than_a_slice);
	tcase_add_test(t, the_last_few_rows_come_along);
	tcase_add_test(t, windows_hold_up_nobody);
	tcase_add_test(t, a_step_in_windows_can_be_cancelled);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
