/*
 * test_repair.c - which tokens of a chunk are chosen, and how far they deviate
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "kvd/serve/attn.h"
#include "kvd/base/pool.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/repair.h"
#include "kvd/serve/tenant.h"
#include "tests/rig/rig_mem.h"

#define N 200

static unsigned int seed;

/* Ascending and below n. */
static void check_set(const uint32_t *at, uint32_t n, uint32_t k)
{
	for (uint32_t i = 0; i < k; i++) {
		ck_assert_uint_lt(at[i], n);
		ck_assert(!i || at[i] > at[i - 1]);
	}
}

START_TEST(counts_round_up)
{
	ck_assert_uint_eq(repair_count(100, 0), 0);
	ck_assert_uint_eq(repair_count(0, 150), 0);
	ck_assert_uint_eq(repair_count(1, 1), 1);
	ck_assert_uint_eq(repair_count(100, 150), 15);
	ck_assert_uint_eq(repair_count(101, 150), 16);
	ck_assert_uint_eq(repair_count(4000000000u, 1000), 4000000000u);
}
END_TEST

START_TEST(the_largest_are_chosen)
{
	for (int round = 0; round < 2000; round++) {
		const uint32_t n = 1 + (uint32_t)rand_r(&seed) % N;
		const uint32_t k = (uint32_t)rand_r(&seed) % (n + 1);
		float dev[N], least = 1e9f;
		uint32_t at[N], in = 0;

		for (uint32_t i = 0; i < n; i++)
			dev[i] = (float)(rand_r(&seed) % 20);
		ck_assert_int_eq(repair_pick_largest(dev, n, k, at), 0);
		check_set(at, n, k);
		for (uint32_t i = 0; i < k; i++)
			least = dev[at[i]] < least ? dev[at[i]] : least;
		for (uint32_t i = 0; i < n; i++) {
			if (in < k && at[in] == i) {
				in++;
				continue;
			}
			/* left out: smaller, or equal and later */
			ck_assert(!k || dev[i] <= least);
			for (uint32_t j = 0; j < k; j++)
				ck_assert(dev[at[j]] != dev[i] || at[j] < i);
		}
	}
}
END_TEST

START_TEST(random_is_the_same_and_even)
{
	uint32_t count[20] = { 0 }, at[20], again[20];

	for (uint64_t c = 0; c < 4000; c++) {
		const struct map_id chunk = { { c * 7919, c ^ 0x55 } };

		repair_pick(REPAIR_RANDOM, chunk, 20, 5, at);
		repair_pick(REPAIR_RANDOM, chunk, 20, 5, again);
		check_set(at, 20, 5);
		for (int i = 0; i < 5; i++) {
			ck_assert_uint_eq(at[i], again[i]);
			count[at[i]]++;
		}
	}
	for (int i = 0; i < 20; i++) { /* 1000 each, five sigma are 137 */
		ck_assert_uint_gt(count[i], 860);
		ck_assert_uint_lt(count[i], 1140);
	}
}
END_TEST

START_TEST(repairs_have_names)
{
	const struct map_id c = { { 1, 2 } }, d = { { 1, 3 } };
	const struct map_id a = repair_id(c, REPAIR_BLEND, 150);

	ck_assert(map_id_equal(a, repair_id(c, REPAIR_BLEND, 150)));
	ck_assert(!map_id_equal(a, repair_id(c, REPAIR_BLEND, 151)));
	ck_assert(!map_id_equal(a, repair_id(c, REPAIR_FIRST, 150)));
	ck_assert(!map_id_equal(a, repair_id(d, REPAIR_BLEND, 150)));
	ck_assert(!map_id_equal(a, c));
}
END_TEST

#define LAYERS	  2u
#define TOKENS	  70u
#define KV_ROW	  (3u * 64) /* three heads of 64 */
#define CHANGED_K 33u
#define CHANGED_V 66u

static const struct attn_shape shape = { .type = KERN_F32,
					 .n_heads = 3,
					 .n_kv_heads = 3,
					 .head_dim = 64,
					 .scale = 0.125f,
					 .rope = { .kind = KERN_ROPE_HALVES,
						   .n_rot = 64,
						   .theta = 10000,
						   .scale = 1 } };

/* K and V of both layers, k rotated for positions from 0 on. */
static void write_chunk(struct seq *q, const float *k, const float *v)
{
	struct attn_scratch scratch;
	struct attn_item it = { .shape = &shape,
				.seq = q,
				.n_rows = TOKENS,
				.in = KERN_F32,
				.k = k,
				.v = v };

	attn_scratch_init(&scratch);
	for (uint32_t l = 0; l < LAYERS; l++)
		ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, &it, 1, l),
				 0);
	attn_scratch_fini(&scratch);
}

/* Somewhere else in a prompt: only what changed deviates, by as much as it did. */
static void measure_at(struct gen *g, uint32_t first, float *k, float *v)
{
	float dev[TOKENS];
	struct gen_part part = { .first = first, .n = TOKENS };
	struct repair_group r = {
		.n_parts = 1, .first = first, .n = TOKENS, .dev = dev
	};
	struct pool *pool;

	ck_assert_int_eq(pool_new(&pool, 2), 0);
	g->parts = &part;
	g->n_parts = 1;
	k[CHANGED_K * KV_ROW + 100] += 0.5f;
	v[CHANGED_V * KV_ROW + 7] -= 2;
	repair_measure(g, &r, 40, k, v, pool); /* in two probes */
	r.n_probed = 40;
	repair_measure(g, &r, TOKENS - 40, k + 40 * KV_ROW, v + 40 * KV_ROW,
		       NULL);
	pool_free(pool);
	k[CHANGED_K * KV_ROW + 100] -= 0.5f;
	v[CHANGED_V * KV_ROW + 7] += 2;
	for (uint32_t t = 0; t < TOKENS; t++)
		ck_assert_float_eq_tol(dev[t],
				       t == CHANGED_K	? 0.25f
				       : t == CHANGED_V ? 4
							: 0,
				       1e-5f);
}

START_TEST(deviation_is_of_k_and_v_wherever_they_stand)
{
	struct kv_layout l = { .n_layers = LAYERS,
			       .n_kv_heads = 3,
			       .head_dim = 64,
			       .elem_bytes = 4,
			       .page_tokens = 32 };
	static float k[TOKENS * KV_ROW], v[TOKENS * KV_ROW];
	struct serve_model model = { .shape = shape };
	struct gen *g = calloc(1, sizeof(*g));
	struct segment_pool *pool;
	struct page_run run;
	struct seq_copy copy;
	struct rig_mem *mem;

	kern_init(KERN_ISA_AMX);
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 16 << 20,
						     .disk_bytes = 16 << 20 });
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 16 << 20), 0);
	ck_assert_int_eq(kv_layout_init(&l), 0);
	ck_assert_ptr_nonnull(g);
	model.layout = l;
	g->model = &model;
	seq_init(&g->seq, pool, &l, 1024);
	ck_assert_int_eq(seq_grow(&g->seq, TOKENS, 0, &copy), 0);
	ck_assert_uint_eq(seq_runs(&g->seq, 0, TOKENS, UINT32_MAX, &run, 1), 1);
	run.flags = PAGE_WRITE;
	ck_assert_int_eq(pager_reserve(mem->pager, run.n * l.page_bytes), 0);
	ck_assert_int_eq(rig_mem_want(mem, &run, 1), 0);
	for (uint32_t i = 0; i < TOKENS * KV_ROW; i++) {
		k[i] = (float)(rand_r(&seed) % 2000) * 1e-3f - 1;
		v[i] = (float)(rand_r(&seed) % 2000) * 1e-3f - 1;
	}
	write_chunk(&g->seq, k, v);
	measure_at(g, 0, k, v);
	measure_at(g, 1234, k, v);
	page_unpin(mem->pager, &run, 1);
	pager_unreserve(mem->pager, run.n * l.page_bytes);
	seq_fini(&g->seq);
	free(g);
	segment_pool_free(pool);
	rig_mem_close(mem);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("repair");
	TCase *t = tcase_create("repair");
	SRunner *r;
	int n;

	seed = (unsigned int)time(NULL);
	printf("seed %u\n", seed);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, counts_round_up);
	tcase_add_test(t, the_largest_are_chosen);
	tcase_add_test(t, random_is_the_same_and_even);
	tcase_add_test(t, repairs_have_names);
	tcase_add_test(t, deviation_is_of_k_and_v_wherever_they_stand);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
