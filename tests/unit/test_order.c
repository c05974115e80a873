/*
 * test_order.c - the order of a batch saves as much as one level of its prefix tree can; short
 * prompts share steps without padding
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/tenant.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_serve.h"

#define MAX_N	  40u
#define MAX_UNITS 6u

struct set {
	struct kvc_prompt p[MAX_N];
	uint64_t ids[MAX_N][MAX_UNITS];
	uint32_t n_tokens[MAX_N][MAX_UNITS];
	struct kvc_turn turns[MAX_N];
	uint32_t n;
	int n_groups;
};

static uint64_t begin_alike(const struct set *s, uint32_t a, uint32_t b)
{
	uint64_t tokens = 0;

	for (uint32_t k = 0;
	     k < s->p[a].n && k < s->p[b].n && s->ids[a][k] == s->ids[b][k];
	     k++)
		tokens += s->n_tokens[a][k];
	return tokens;
}

/* Tokens that the groups save, by looking at all members. */
static uint64_t saved(const struct set *s)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < s->n; i++) {
		const uint32_t first = s->turns[i].first;
		uint64_t least = UINT64_MAX;
		uint32_t n = 0;

		if (first != i)
			continue;
		for (; i + n < s->n && s->turns[i + n].first == first; n++) {
			const uint64_t t = begin_alike(s,
						       s->turns[first].prompt,
						       s->turns[i + n].prompt);

			least = t < least ? t : least;
		}
		sum += (n - 1) * least;
	}
	return sum;
}

static int compare(const void *a, const void *b, void *ctx)
{
	const struct set *s = ctx;
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	for (uint32_t k = 0; k < s->p[x].n && k < s->p[y].n; k++)
		if (s->ids[x][k] != s->ids[y][k])
			return s->ids[x][k] < s->ids[y][k] ? -1 : 1;
	return (int)s->p[x].n - (int)s->p[y].n;
}

/* 1: [j, i) of the sorted prompts are all that begin so. */
static int is_node(const struct set *s, const uint32_t *sorted, uint32_t j,
		   uint32_t i)
{
	const uint64_t depth = begin_alike(s, sorted[j], sorted[i - 1]);

	return (!j || begin_alike(s, sorted[j - 1], sorted[j]) < depth) &&
	       (i == s->n || begin_alike(s, sorted[i - 1], sorted[i]) < depth);
}

/* The most that one level of nodes of the prefix tree saves: by trying all cuts. */
static uint64_t most(const struct set *s)
{
	uint64_t best[MAX_N + 1] = { 0 };
	uint32_t sorted[MAX_N];

	for (uint32_t i = 0; i < s->n; i++)
		sorted[i] = i;
	qsort_r(sorted, s->n, sizeof(*sorted), compare, (void *)(uintptr_t)s);
	for (uint32_t i = 1; i <= s->n; i++)
		for (uint32_t j = 0; j < i; j++) {
			const uint64_t one =
				j + 1 < i && is_node(s, sorted, j, i)
					? (i - j - 1) *
						  begin_alike(s, sorted[j],
							      sorted[i - 1])
					: 0;

			if (j + 1 == i || one)
				best[i] = best[j] + one > best[i]
						  ? best[j] + one
						  : best[i];
		}
	return best[s->n];
}

static void check_order(struct set *s)
{
	int seen[MAX_N] = { 0 }, n_groups = 0;

	s->n_groups = kvc_order(s->p, s->n, s->turns);
	for (uint32_t i = 0; i < s->n; i++) {
		ck_assert_uint_lt(s->turns[i].prompt, s->n);
		ck_assert_int_eq(seen[s->turns[i].prompt]++, 0);
		ck_assert_uint_le(s->turns[i].first, i);
		ck_assert(s->turns[i].first == i ||
			  s->turns[i].first == s->turns[i - 1].first);
		n_groups += s->turns[i].first == i;
	}
	ck_assert_int_eq(n_groups, s->n_groups);
	ck_assert_uint_eq(saved(s), most(s));
}

START_TEST(no_other_groups_save_more)
{
	uint64_t seed = 21;
	struct set s;

	for (uint32_t round = 0; round < 500; round++) {
		memset(&s, 0, sizeof(s));
		s.n = (uint32_t)(rig_random(&seed) % (MAX_N + 1));
		for (uint32_t i = 0; i < s.n; i++) {
			s.p[i].n =
				(uint32_t)(rig_random(&seed) % (MAX_UNITS + 1));
			s.p[i].n_out = 10;
			s.p[i].ids = s.ids[i];
			s.p[i].n_tokens = s.n_tokens[i];
			for (uint32_t k = 0; k < s.p[i].n; k++) {
				s.ids[i][k] = rig_random(&seed) % 3;
				s.n_tokens[i][k] =
					5 + (uint32_t)s.ids[i][k] * 7 + k;
			}
		}
		check_order(&s);
	}
}
END_TEST

START_TEST(what_gives_most_comes_first)
{
	static const uint64_t ids[] = { 1, 2, 1, 3, 9 };
	static const uint32_t n[] = { 100, 10, 100, 10, 20 };
	const struct kvc_prompt p[] = { { ids + 4, n + 4, 1, 5 },
					{ ids, n, 2, 8 },
					{ ids + 2, n + 2, 2, 40 } };
	struct kvc_turn t[3];

	/* 48 of 120 tokens together, 5 of 20 alone */
	ck_assert_int_eq(kvc_order(p, 3, t), 2);
	ck_assert_uint_eq(t[0].prompt, 1);
	ck_assert_uint_eq(t[1].prompt, 2);
	ck_assert_uint_eq(t[1].first, 0);
	ck_assert_uint_eq(t[2].prompt, 0);
	ck_assert_uint_eq(t[2].first, 2);
}
END_TEST

/* ---- packing ---------------------------------------------------------------------- */

#define N_SHORT 20u

/* Prompts of all lengths share steps; no row is padding; each has the bits it has alone. */
START_TEST(short_prompts_are_packed)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.prefill_slice = 128, .max_batch = 64 });
	struct rig_gen *alone[N_SHORT], *g[N_SHORT];
	uint32_t *t[N_SHORT], sum = 0;
	uint64_t rows, steps;

	for (uint32_t i = 0; i < N_SHORT; i++) {
		t[i] = rig_ids(3 + i * 2, 50 + i);
		sum += 3 + i * 2;
		alone[i] = rig_gen_new();
		alone[i]->gen.max_tokens = 1;
		alone[i]->gen.flags |= SERVE_GEN_NO_REUSE;
		rig_gen_part(alone[i], t[i], 3 + i * 2, 0);
		ck_assert_int_eq(serve_generate(r->session, &alone[i]->gen), 0);
		ck_assert(rig_serve_until(r, &alone[i]->told));
	}
	rows = rig_serve_rows();
	steps = rig_serve_steps();
	for (uint32_t i = 0; i < N_SHORT; i++) {
		g[i] = rig_gen_new();
		g[i]->gen.max_tokens = 1;
		g[i]->gen.flags |= SERVE_GEN_NO_REUSE;
		rig_gen_part(g[i], t[i], 3 + i * 2, 0);
		ck_assert_int_eq(serve_generate(r->session, &g[i]->gen), 0);
	}
	for (uint32_t i = 0; i < N_SHORT; i++) {
		ck_assert(rig_serve_until(r, &g[i]->told));
		ck_assert_int_eq(g[i]->ret, 1);
		ck_assert(!memcmp(g[i]->tokens, alone[i]->tokens,
				  sizeof(*g[i]->tokens)));
		free(g[i]);
		free(alone[i]);
		free(t[i]);
	}
	ck_assert_uint_eq(rig_serve_rows() - rows, sum);
	/* full slices, but for the last, and the first ones: however fast they come */
	ck_assert_uint_le(rig_serve_steps() - steps, sum / 128 + N_SHORT / 4);
	serve_check(r->serve);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("order");
	TCase *t = tcase_create("order");
	SRunner *sr;
	int failed;

	tcase_add_test(t, no_other_groups_save_more);
	tcase_add_test(t, what_gives_most_comes_first);
	tcase_add_test(t, short_prompts_are_packed);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
