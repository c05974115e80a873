/*
 * test_zero_copy.c - a chunk that n requests use at n places is one segment: no byte of it is
 * copied, and what is in memory grows by their own tokens only
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "tests/rig/rig_serve.h"

#define N_CHUNK 1000u
#define N_USERS 8
#define N_OUT	40u

static struct rig_gen *start(struct rig_serve *r, uint32_t i,
			     const uint32_t *chunk, const uint32_t *text,
			     uint32_t repair)
{
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, text, 5 + i, 0); /* each at another place */
	rig_gen_part(g, chunk, N_CHUNK, SERVE_PART_REUSE);
	rig_gen_part(g, text + 50, 10, 0);
	g->gen.max_tokens = N_OUT;
	g->gen.flags = SERVE_GEN_IGNORE_EOS | SERVE_GEN_NO_REUSE;
	g->gen.repair = repair;
	g->gen.repair_permille = repair ? 100 : 0;
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	return g;
}

struct use {
	uint64_t pool_bytes, pinned_bytes;
	uint32_t n_refs;
};

/* What there is while n requests are between their first and last token. */
static struct use used_by(struct rig_serve *r, const struct segment *s,
			  uint32_t n, const uint32_t *chunk,
			  const uint32_t *text, uint32_t repair)
{
	struct rig_gen *g[N_USERS];
	struct pager_info info;
	struct use u = { 0 };

	for (uint32_t i = 0; i < n; i++)
		g[i] = start(r, i, chunk, text, repair);
	for (uint32_t i = 0; i < n; i++)
		while (!g[i]->gen.n_out)
			rig_serve_turn(r);
	for (uint32_t i = 0; i < n; i++)
		ck_assert(!g[i]->told);
	pager_info(r->tenant->pager, &info);
	u.pool_bytes = segment_pool_bytes(r->tenant->pool);
	u.pinned_bytes = info.pinned_bytes;
	u.n_refs = s->n_refs;
	for (uint32_t i = 0; i < n; i++) {
		ck_assert(rig_serve_until(r, &g[i]->told));
		ck_assert_int_eq(g[i]->ret, (int)N_OUT);
		ck_assert_uint_eq(g[i]->gen.stats.n_chunk, N_CHUNK);
		free(g[i]);
	}
	return u;
}

static void check_users(uint32_t repair)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *chunk = rig_ids(N_CHUNK, 1), *text = rig_ids(100, 2);
	const struct kv_layout *l = &r->serve->models[0].layout;
	const uint32_t n_again = repair ? N_CHUNK / 10 : 0;
	/* its own: the text before, question and answer, its patch */
	const uint64_t own = kv_layout_bytes(l, 5 + N_USERS) +
			     kv_layout_bytes(l, 10 + N_OUT) +
			     (n_again ? kv_layout_bytes(l, n_again) : 0);
	struct rig_gen *first = start(r, 0, chunk, text, REPAIR_NONE);
	const struct segment *s;
	struct use one, all;

	ck_assert(rig_serve_until(r, &first->told));
	free(first);
	s = map_find(&serve_tenant_find(r->serve, "t0")->chunks.map,
		     chunk_id(r->serve->models[0].id, chunk, N_CHUNK));
	ck_assert_ptr_nonnull(s);
	ck_assert_uint_gt(s->bytes, 4 * own);
	one = used_by(r, s, 1, chunk, text, repair);
	all = used_by(r, s, N_USERS, chunk, text, repair);
	ck_assert_uint_gt(one.n_refs, 0); /* all have this very segment */
	ck_assert_uint_eq(all.n_refs, N_USERS * one.n_refs);
	ck_assert_uint_ge(one.pinned_bytes, s->bytes);
	ck_assert_uint_le(all.pinned_bytes - one.pinned_bytes,
			  (N_USERS - 1) * own);
	ck_assert_uint_le(all.pool_bytes - one.pool_bytes, (N_USERS - 1) * own);
	free(chunk);
	free(text);
	rig_serve_close(r);
}

START_TEST(users_share_the_bytes)
{
	check_users(REPAIR_NONE);
}
END_TEST

START_TEST(with_repair_too)
{
	check_users(REPAIR_FIRST);
	check_users(REPAIR_BLEND);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("zero_copy");
	TCase *t = tcase_create("zero_copy");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, users_share_the_bytes);
	tcase_add_test(t, with_repair_too);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
