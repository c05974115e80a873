/*
 * test_variant.c - CFO against numbers worked out by hand; who goes when there are too
 * many variants
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/cache/variant.h"
#include "kvd/mem/page.h"
#include "tests/rig/rig_mem.h"

#define CHUNK(i) ((struct map_id){ { (i), 77 } })
#define TOL	 1e-6

static struct rig_mem *mem;
static struct segment_pool *pool;
static struct variant_table table;
static const struct kv_layout shape = {
	.n_layers = 1, .n_kv_heads = 1, .head_dim = 32, .elem_bytes = 2
};

static void setup(void)
{
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 64 << 20,
						     .disk_bytes = 64 << 20 });
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 256 << 20), 0);
	variant_table_init(&table);
}

static void teardown(void)
{
	variant_table_check(&table);
	segment_pool_free(pool);
	variant_table_fini(&table);
	rig_mem_close(mem);
}

/* Behind chunks 1, 2, 3 (20, 10, 5 tokens), 10 tokens long. */
static struct variant *behind_three(void)
{
	static const float inter[] = { 2, 1, 1 };
	static const uint32_t n[] = { 20, 10, 5 };
	struct variant *v = variant_new(3, 10);

	ck_assert_ptr_nonnull(v);
	for (uint32_t j = 0; j < 3; j++) {
		v->prefix[j] = CHUNK(j + 1);
		v->inter[j] = inter[j];
	}
	v->cci = variant_cci(&(struct variant_sums){ inter, n, 4 }, 3, 10);
	return v;
}

static float cfo(const struct variant *v, uint32_t n, uint64_t a, uint64_t b,
		 uint64_t c)
{
	const struct map_id now[] = { CHUNK(a), CHUNK(b), CHUNK(c) };

	return variant_cfo(v, now, n, 1);
}

START_TEST(formulas_are_those_of_the_sheet)
{
	struct variant *v = behind_three();
	const struct map_id back[] = { CHUNK(3), CHUNK(2), CHUNK(1) };
	const struct map_id some[] = { CHUNK(9), CHUNK(3), CHUNK(1) };
	/* a = 2/200 + 1/100 + 1/50 = 0.04, b = 4/100 */
	const double cci = 1 / (1 + exp(-1));

	ck_assert_double_eq_tol((double)v->cci, cci, TOL);
	/* the same order; others in between and behind do not matter */
	ck_assert_double_eq_tol((double)cfo(v, 3, 1, 2, 3), 0, TOL);
	/* nothing in common; nothing at all */
	ck_assert_double_eq_tol((double)cfo(v, 3, 7, 8, 9), cci, TOL);
	ck_assert_double_eq_tol((double)cfo(v, 0, 0, 0, 0), cci, TOL);
	/* the reverse: all pairs discordant */
	ck_assert_double_eq_tol((double)variant_gamma(v, back, 3), 1, TOL);
	ck_assert_double_eq_tol((double)variant_beta(v, back, 3), 1, TOL);
	ck_assert_double_eq_tol((double)cfo(v, 3, 3, 2, 1), cci, TOL);
	/* one neighbouring pair exchanged: gamma = 1/3 */
	ck_assert_double_eq_tol((double)cfo(v, 3, 2, 1, 3), cci / 3, TOL);
	/* 1 and 3 of it, exchanged: beta = 3/4, gamma = 1 */
	ck_assert_double_eq_tol((double)variant_beta(v, some, 3), 0.75, TOL);
	ck_assert_double_eq_tol((double)variant_gamma(v, some, 3), 1, TOL);
	/* only one in common: beta = 1/2, no pair */
	ck_assert_double_eq_tol((double)cfo(v, 3, 8, 1, 9), cci / 2, TOL);
	ck_assert_double_eq_tol((double)variant_cfo(v, back, 3, 5), 1, TOL);
	variant_free(v);
}
END_TEST

START_TEST(without_company_it_fits_only_none)
{
	struct variant *v = variant_new(0, 10);
	const struct variant_sums nothing = { 0 };
	const float inter = 1;
	const uint32_t n = 4;

	v->cci = variant_cci(&nothing, 0, 10);
	ck_assert_double_eq_tol((double)v->cci, 0.5, TOL);
	ck_assert_double_eq_tol((double)cfo(v, 0, 0, 0, 0), 0, TOL);
	ck_assert_double_eq_tol((double)cfo(v, 1, 1, 0, 0), 0.5, TOL);
	/* all of it looks away */
	ck_assert_double_eq_tol(
		(double)variant_cci(&(struct variant_sums){ &inter, &n, 0 }, 1,
				    10),
		1, TOL);
	variant_free(v);
}
END_TEST

/* A variant of chunk, of n tokens (all i), behind one other chunk and in ctx. */
static int add(uint64_t chunk, uint64_t ctx, uint64_t behind, uint32_t n)
{
	struct kv_layout l = shape;
	struct variant *v = variant_new(1, n);
	struct segment *s;
	int ret;

	ck_assert_int_eq(kv_layout_init(&l), 0);
	ck_assert_int_eq(segment_new(pool, &l, 32 * ((n + 31) / 32), 0, &s), 0);
	segment_seal(s, n);
	s->tokens = calloc(n, sizeof(*s->tokens));
	v->chunk = CHUNK(chunk);
	v->ctx = CHUNK(ctx);
	v->prefix[0] = CHUNK(behind);
	v->inter[0] = 1;
	v->cci = 0.6f;
	ret = variant_add(&table, s, v);
	segment_put(s);
	return ret;
}

static uint32_t zeros[4096];

static int use(uint64_t chunk, uint64_t ctx, uint64_t behind, uint32_t n,
	       float *c)
{
	const struct map_id before = CHUNK(behind);
	const struct variant_place at = {
		CHUNK(ctx), { { 0, 0 } }, &before, 1
	};
	struct segment *s =
		variant_find(&table, CHUNK(chunk), zeros, n, &at, 1, c);

	if (!s)
		return 0;
	ck_assert_float_eq(s->range->gain, 1 / KV_MAX(*c, 0.05f));
	segment_put(s);
	return (int)s->variant->ctx.w[0];
}

START_TEST(the_best_is_found)
{
	struct variant_place other = { CHUNK(9), CHUNK(1), NULL, 0 };
	float c;

	ck_assert_int_eq(add(100, 1, 50, 10), 0);
	ck_assert_int_eq(add(100, 2, 60, 10), 0);
	ck_assert_int_eq(add(100, 2, 60, 10), -EALREADY);
	ck_assert_uint_eq(table.n, 2);
	ck_assert_int_eq(add(102, 1, 60, 10), 0);
	ck_assert_int_eq(variant_rm(&table, CHUNK(102)), 0);
	ck_assert_int_eq(variant_rm(&table, CHUNK(102)), -ENOENT);
	ck_assert_uint_eq(table.n, 2);
	ck_assert_int_eq(use(100, 9, 60, 10, &c), 2); /* its company */
	ck_assert_double_eq_tol((double)c, 0, TOL);
	ck_assert_int_eq(use(100, 1, 60, 10, &c), 1); /* the same bits */
	ck_assert_double_eq_tol((double)c, 0, TOL);
	ck_assert_int_gt(use(100, 9, 70, 10, &c), 0);
	ck_assert_double_eq_tol((double)c, 0.6, TOL);
	ck_assert_int_eq(use(101, 1, 60, 10, &c), 0);
	ck_assert_int_eq(use(100, 1, 60, 11, &c), 0); /* other tokens */
	ck_assert_ptr_null(variant_find(&table, CHUNK(100), zeros, 10, &other,
					1, &c)); /* another frame */
	while (!segment_reclaim(pool))
		;
	ck_assert_uint_eq(table.n, 0);
}
END_TEST

START_TEST(the_least_used_per_byte_goes)
{
	float c;

	/* VARIANT_MAX of one chunk; all but the second are used */
	for (uint64_t i = 1; i <= VARIANT_MAX; i++)
		ck_assert_int_eq(add(1, i, 50 + i, 40), 0);
	for (uint64_t i = 1; i <= VARIANT_MAX; i++)
		if (i != 2)
			ck_assert_int_eq(use(1, i, 50 + i, 40, &c), (int)i);
	ck_assert_int_eq(add(1, 99, 99, 40), 0);
	ck_assert_uint_eq(table.n, VARIANT_MAX);
	ck_assert_uint_eq(table.n_evicted, 1);
	ck_assert_int_ne(use(1, 2, 52, 40, &c), 2);
	while (!segment_reclaim(pool))
		;
	/* used as often, but 32 times as large */
	ck_assert_int_eq(add(1, 1, 50, 1024), 0);
	for (uint64_t i = 2; i <= VARIANT_CHUNKS; i++)
		ck_assert_int_eq(add(i, i, 50, 10), 0);
	ck_assert_uint_eq(table.n, VARIANT_CHUNKS);
	ck_assert_int_eq(add(VARIANT_CHUNKS + 1, 1, 50, 10), 0);
	ck_assert_uint_eq(table.n, VARIANT_CHUNKS);
	ck_assert_int_eq(use(1, 1, 50, 1024, &c), 0);
	ck_assert_int_eq(use(2, 2, 50, 10, &c), 2);
	while (!segment_reclaim(pool))
		;
}
END_TEST

START_TEST(readers_keep_what_goes)
{
	const struct variant_place at = { .ctx = CHUNK(1) };
	struct segment *s;
	float c;

	ck_assert_int_eq(add(1, 1, 50, 40), 0);
	s = variant_find(&table, CHUNK(1), zeros, 40, &at, 1, &c);
	ck_assert_ptr_nonnull(s);
	segment_forget(s);
	ck_assert_uint_eq(table.n, 0);
	ck_assert_double_eq_tol((double)s->variant->cci, 0.6, TOL);
	segment_put(s);
	ck_assert_uint_eq(segment_pool_n(pool), 0);
}
END_TEST

/* ---- who goes, against a scan of all ------------------------------------------- */

#define N_SMALL 12u /* chunks kept, of N_KINDS */
#define N_KINDS 40u
#define N_STEPS 30000u

static double sums[N_KINDS + 1]; /* of chunks that are there; else 0 */

static void add_sum(struct segment *s, void *arg)
{
	(void)arg;
	if (s->is_variant)
		sums[s->variant->chunk.w[0]] +=
			variant_value(&table, s->variant) / (double)s->bytes;
}

static uint64_t scan(void)
{
	uint64_t least = 0;

	memset(sums, 0, sizeof(sums));
	segment_each(pool, add_sum, NULL);
	for (uint64_t i = 1; i <= N_KINDS; i++)
		if (sums[i] > 0 && (!least || sums[i] < sums[least]))
			least = i;
	return least;
}

static void lose(uint64_t chunk)
{
	struct segment *s = variant_peek(&table, CHUNK(chunk));

	if (s && random() % 4)
		segment_forget(s);
	else if (s)
		variant_set_value(&table, s->variant,
				  (double)(1 + random() % 50) / 3);
}

/* One more of a chunk that is not there: what a scan of all finds goes, and nothing else. */
static uint32_t add_new(uint64_t chunk, uint32_t n)
{
	const int full = !variant_room(&table, CHUNK(chunk));
	double was[N_KINDS + 1];
	const uint64_t least = scan();
	uint32_t n_gone = 0;

	memcpy(was, sums, sizeof(was));
	ck_assert_int_eq(add(chunk, 1 + (uint64_t)random() % 9, 50, n), 0);
	(void)scan();
	for (uint64_t i = 1; i <= N_KINDS; i++) {
		if (!(was[i] > 0) || sums[i] > 0)
			continue;
		/* equal ones: either */
		ck_assert_double_le(was[i], was[least] * (1 + 1e-9));
		n_gone++;
	}
	ck_assert_uint_eq(n_gone, full ? 1 : 0);
	return n_gone;
}

START_TEST(who_goes_is_what_a_scan_finds)
{
	const unsigned seed = (unsigned)getpid();
	uint32_t n_gone = 0;
	float c;

	printf("seed %u\n", seed);
	srandom(seed);
	table.max_chunks = N_SMALL;
	for (uint32_t i = 0; i < N_STEPS; i++) {
		const uint64_t chunk = 1 + (uint64_t)random() % N_KINDS;
		/* equal tokens are equal in number */
		const uint32_t n = 10 + 33 * (uint32_t)(chunk % 7);
		const uint64_t ctx = 1 + (uint64_t)random() % 9;

		if (random() % 3)
			(void)use(chunk, ctx, 50 + ctx, n, &c);
		else if (!(random() % 8))
			lose(chunk);
		else if (variant_peek(&table, CHUNK(chunk)))
			(void)add(chunk, ctx, 50 + ctx, n);
		else
			n_gone += add_new(chunk, n);
		if (i == N_STEPS / 2) /* the past is far behind */
			table.time += 1000000;
		if (i % 100 == 0)
			variant_table_check(&table);
	}
	ck_assert_uint_gt(n_gone, N_STEPS / 100);
	while (!segment_reclaim(pool))
		;
	ck_assert_uint_eq(table.n, 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("variant");
	TCase *t = tcase_create("variant");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, formulas_are_those_of_the_sheet);
	tcase_add_test(t, without_company_it_fits_only_none);
	tcase_add_test(t, the_best_is_found);
	tcase_add_test(t, the_least_used_per_byte_goes);
	tcase_add_test(t, readers_keep_what_goes);
	tcase_add_test(t, who_goes_is_what_a_scan_finds);
	tcase_set_timeout(t, 60);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
