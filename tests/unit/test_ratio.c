/*
 * test_ratio.c - repair by load: the share follows what is on disk and the rates of now, and the
 * answer tells it
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "tests/rig/rig_serve.h"

#define N_CHUNK 1000u

static struct rig_gen *ask(struct rig_serve *r, uint64_t seed, uint32_t repair,
			   uint32_t permille)
{
	uint32_t *chunk = rig_ids(N_CHUNK, seed), *text = rig_ids(10, 12);
	struct rig_gen *a = rig_gen_new();

	rig_gen_part(a, text, 5, 0);
	rig_gen_part(a, chunk, N_CHUNK, SERVE_PART_REUSE);
	rig_gen_part(a, text, 10, 0);
	a->gen.repair = repair;
	a->gen.repair_permille = permille;
	ck_assert_int_eq(rig_gen_start(a, r->session), 0);
	ck_assert(rig_serve_until(r, &a->told));
	ck_assert_int_ge(a->ret, 0);
	free(chunk);
	free(text);
	return a;
}

static struct segment *chunk_of(struct rig_serve *r, uint64_t seed)
{
	uint32_t *chunk = rig_ids(N_CHUNK, seed);
	const struct map_id id =
		chunk_id(r->serve->models[0].id, chunk, N_CHUNK);

	free(chunk);
	return map_find(&serve_tenant_find(r->serve, "t0")->chunks.map, id);
}

/* Others come until something of the chunk is on disk only: how many bytes. */
static uint64_t push_out(struct rig_serve *r, const struct segment *s)
{
	static uint64_t seed = 100;
	const uint32_t n = range_n_pages(s->range);

	for (int i = 0; !range_lower_bytes(s->range, 0, n); i++) {
		ck_assert_int_lt(i, 100);
		free(ask(r, seed++, REPAIR_NONE, 0));
	}
	return range_lower_bytes(s->range, 0, n);
}

/* Prefill as fast as it takes for the disk to be worth want permille. */
static uint32_t set_rate(struct rig_serve *r, const struct segment *s,
			 uint64_t bytes, double want)
{
	struct serve_model *m = &r->serve->models[0];
	double bytes_per_s, load_s;
	uint64_t queue;

	pager_disk_speed(range_pager(s->range), range_disk(s->range),
			 &bytes_per_s, &queue);
	load_s = (double)(bytes + queue) / bytes_per_s;
	m->prefill = (struct rate){ .units = N_CHUNK / load_s * want / 1000,
				    .seconds = 1 };
	return (uint32_t)want;
}

static void follows(uint32_t repair, double wanted)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 3 << 20, .persist = CONF_PERSIST_REQUEST });
	uint32_t want, got;
	struct segment *s;
	struct rig_gen *a;

	r->conf.recompute = 0; /* what was found is read */
	free(ask(r, 1, REPAIR_NONE, 0));
	s = chunk_of(r, 1);
	ck_assert_ptr_nonnull(s);
	want = set_rate(r, s, push_out(r, s), wanted);
	want = KV_MIN(KV_MAX(want, REPAIR_LEAST), REPAIR_ALL - 1);
	a = ask(r, 1, repair, REPAIR_BY_LOAD);
	got = a->gen.how.permille;
	ck_assert_msg(got + 2 >= want && got <= want + 2, "%u, not %u", got,
		      want);
	ck_assert_uint_eq(a->gen.stats.n_chunk, N_CHUNK);
	ck_assert_uint_eq(a->gen.stats.n_repaired, repair_count(N_CHUNK, got));
	free(a);
	/* now it is in memory: nothing is free */
	a = ask(r, 1, repair, REPAIR_BY_LOAD);
	ck_assert_uint_eq(a->gen.how.permille, REPAIR_LEAST);
	free(a);
	rig_serve_close(r);
}

static const double wants[] = { 50, 200, 268, 700, 5000 };

START_TEST(blend_follows_disk_and_prefill)
{
	for (size_t i = 0; i < KV_ARRAY_LEN(wants); i++)
		follows(REPAIR_BLEND, wants[i]);
}
END_TEST

START_TEST(craft_does_too)
{
	follows(REPAIR_CRAFT, 50);
	follows(REPAIR_CRAFT, 400);
	follows(REPAIR_CRAFT_BLEND, 400);
}
END_TEST

/* What was taken is as good as the same share asked for. */
START_TEST(the_same_bits_as_a_fixed_share)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 3 << 20, .persist = CONF_PERSIST_REQUEST });
	struct rig_gen *a, *b;
	struct segment *s;

	r->conf.recompute = 0;
	free(ask(r, 1, REPAIR_NONE, 0));
	s = chunk_of(r, 1);
	(void)set_rate(r, s, push_out(r, s), 400);
	a = ask(r, 1, REPAIR_BLEND, REPAIR_BY_LOAD);
	ck_assert_uint_gt(a->gen.how.permille, REPAIR_LEAST);
	b = ask(r, 1, REPAIR_BLEND, a->gen.how.permille);
	ck_assert_uint_eq(b->gen.how.permille, a->gen.how.permille);
	ck_assert_uint_eq(a->n_out, b->n_out);
	ck_assert(
		!memcmp(a->tokens, b->tokens, a->n_out * sizeof(a->tokens[0])));
	free(a);
	free(b);
	rig_serve_close(r);
}
END_TEST

/* ---- two disks ----------------------------------------------------------------- */

static struct rig_gen *ask_both(struct rig_serve *r, const uint64_t *seeds)
{
	uint32_t *text = rig_ids(10, 12), *chunks[2];
	struct rig_gen *a = rig_gen_new();

	rig_gen_part(a, text, 5, 0);
	for (int i = 0; i < 2; i++) {
		chunks[i] = rig_ids(N_CHUNK, seeds[i]);
		rig_gen_part(a, chunks[i], N_CHUNK, SERVE_PART_REUSE);
	}
	rig_gen_part(a, text, 10, 0);
	a->gen.repair = REPAIR_BLEND;
	a->gen.repair_permille = REPAIR_BY_LOAD;
	ck_assert_int_eq(rig_gen_start(a, r->session), 0);
	ck_assert(rig_serve_until(r, &a->told));
	ck_assert_int_ge(a->ret, 0);
	free(chunks[0]);
	free(chunks[1]);
	free(text);
	return a;
}

static uint64_t lower_of(struct rig_serve *r, uint64_t seed)
{
	struct segment *s = chunk_of(r, seed);

	return s ? range_lower_bytes(s->range, 0, range_n_pages(s->range)) : 0;
}

/* Chunks come until one of each disk is wholly there, and nowhere else. */
static void one_of_each(struct rig_serve *r, uint64_t *seeds)
{
	uint64_t have[2] = { 0 };

	for (uint64_t seed = 1; !have[0] || !have[1]; seed++) {
		ck_assert_uint_lt(seed, 100);
		free(ask(r, seed, REPAIR_NONE, 0));
		for (uint64_t k = 1; k <= seed; k++)
			if (lower_of(r, k) &&
			    lower_of(r, k) ==
				    range_n_pages(chunk_of(r, k)->range) *
					    range_page_bytes(
						    chunk_of(r, k)->range))
				have[range_disk(chunk_of(r, k)->range)] = k;
	}
	memcpy(seeds, have, sizeof(have));
}

/* Both are read at once: as long as the slower of them takes. */
START_TEST(two_disks_are_read_side_by_side)
{
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .memory_bytes = 3 << 20,
					    .two_disks = 1,
					    .persist = CONF_PERSIST_REQUEST });
	const uint32_t want = 400;
	double bytes_per_s, load_s = 0, s;
	uint64_t seeds[2], queue;
	struct rig_gen *a;

	r->conf.recompute = 0;
	one_of_each(r, seeds);
	ck_assert_uint_eq(pager_n_disks(r->tenant->pager), 2);
	for (uint32_t i = 0; i < 2; i++) {
		pager_disk_speed(r->tenant->pager, i, &bytes_per_s, &queue);
		s = (double)(lower_of(r, seeds[i]) + queue) / bytes_per_s;
		load_s = KV_MAX(load_s, s);
	}
	r->serve->models[0].prefill =
		(struct rate){ .units = 2 * N_CHUNK / load_s * want / 1000,
			       .seconds = 1 };
	a = ask_both(r, seeds);
	ck_assert_uint_eq(a->gen.stats.n_chunk, 2 * N_CHUNK);
	ck_assert_msg(a->gen.how.permille + 2 >= want &&
			      a->gen.how.permille <= want + 2,
		      "%u, not %u", a->gen.how.permille, want);
	free(a);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ratio");
	TCase *t = tcase_create("ratio");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, blend_follows_disk_and_prefill);
	tcase_add_test(t, craft_does_too);
	tcase_add_test(t, the_same_bits_as_a_fixed_share);
	tcase_add_test(t, two_disks_are_read_side_by_side);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
