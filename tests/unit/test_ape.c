/*
 * test_ape.c - chunks side by side: the formula in double, dense where it must be, the same
 * bits however it is run
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_mem.h"
#include "tests/rig/rig_serve.h"

#define DIM	 32u
#define HEADS	 2u /* of q; one of k */
#define THETA	 10000.0
#define MAX_DIFF 1e-5

/* ---- one layer ------------------------------------------------------------------ */

/* A run of tokens as it is seen: from rotary position pos on. */
struct run {
	uint32_t n;
	int64_t pos;
	float temperature, scale;
	int64_t pos0; /* by which its first key is rotated in memory */
	float (*k)[DIM], (*v)[DIM];
};
#define N_RUNS 5u

static float number(uint64_t *s)
{
	return (float)(int64_t)(rig_random(s) % 2001 - 1000) * 1e-3f;
}

static void rotate(const float *x, int64_t pos, double *out)
{
	for (uint32_t i = 0; i < DIM / 2; i++) {
		const double a = (double)pos * pow(THETA, -2.0 * i / DIM);
		const double p = x[i], q = x[i + DIM / 2];

		out[i] = p * cos(a) - q * sin(a);
		out[i + DIM / 2] = p * sin(a) + q * cos(a);
	}
}

/* One softmax over all runs of (temperature, scale): o, and its ln sum exp. */
static double group(const struct run *r, const double *q, float temperature,
		    float scale, double *o)
{
	double top = -INFINITY, sum = 0, k[DIM], s[200];

	memset(o, 0, DIM * sizeof(*o));
	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < N_RUNS; i++) {
			if (r[i].temperature != temperature ||
			    r[i].scale != scale)
				continue;
			for (uint32_t t = 0; t < r[i].n; t++) {
				rotate(r[i].k[t], r[i].pos + t, k);
				s[t] = 0;
				for (uint32_t d = 0; d < DIM; d++)
					s[t] += q[d] * k[d] / sqrt(DIM);
				s[t] /= (double)temperature;
				top = pass ? top : fmax(top, s[t]);
				for (uint32_t d = 0; d < DIM && pass; d++)
					o[d] += exp(s[t] - top) *
						(double)r[i].v[t][d];
				sum += pass ? exp(s[t] - top) : 0;
			}
		}
	for (uint32_t d = 0; d < DIM; d++)
		o[d] /= sum;
	return (top + log(sum)) * (double)scale;
}

/* The sheet's formula, for the pairs that there are. */
static void expected(const struct run *r, const float *q, int64_t pos,
		     double *o)
{
	double rq[DIM], part[N_RUNS][DIM], lse[N_RUNS], top = -INFINITY,
							sum = 0;
	uint32_t n = 0;

	rotate(q, pos, rq);
	for (uint32_t i = 0; i < N_RUNS; i++) {
		uint32_t j = 0;

		while (r[j].temperature != r[i].temperature ||
		       r[j].scale != r[i].scale)
			j++;
		if (j < i)
			continue;
		lse[n] = group(r, rq, r[i].temperature, r[i].scale, part[n]);
		top = fmax(top, lse[n++]);
	}
	memset(o, 0, DIM * sizeof(*o));
	for (uint32_t i = 0; i < n; i++)
		sum += exp(lse[i] - top);
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t d = 0; d < DIM; d++)
			o[d] += part[i][d] * exp(lse[i] - top) / sum;
}

/* Segments with the runs, in a list, pinned. */
static void build(struct rig_mem *mem, struct segment_pool *pool, struct seq *q,
		  struct run *r, uint64_t *seed, struct page_run *pages)
{
	struct kv_layout l = { .n_layers = 1,
			       .n_kv_heads = 1,
			       .head_dim = DIM,
			       .elem_bytes = 4,
			       .page_tokens = 32 };

	ck_assert_int_eq(kv_layout_init(&l), 0);
	seq_init(q, pool, &l, 1024);
	for (uint32_t i = 0; i < N_RUNS; i++) {
		struct segment *s;

		r[i].k = calloc(r[i].n, sizeof(*r[i].k));
		r[i].v = calloc(r[i].n, sizeof(*r[i].v));
		ck_assert_int_eq(segment_new(pool, &l, r[i].n, r[i].pos0, &s),
				 0);
		segment_seal(s, r[i].n);
		segment_pages(s, 0, r[i].n, &pages[i]);
		pages[i].flags = PAGE_WRITE;
		ck_assert_int_eq(
			pager_reserve(mem->pager, pages[i].n * l.page_bytes),
			0);
		ck_assert_int_eq(rig_mem_want(mem, &pages[i], 1), 0);
		for (uint32_t t = 0; t < r[i].n; t++) {
			float *k = (float *)segment_addr(s, 0, 0, t);
			float *v = (float *)segment_addr(s, 0, 1, t);
			double rk[DIM];

			for (uint32_t d = 0; d < DIM; d++) {
				r[i].k[t][d] = number(seed);
				r[i].v[t][d] = number(seed);
			}
			rotate(r[i].k[t], r[i].pos0 + t, rk);
			for (uint32_t d = 0; d < DIM; d++) {
				k[t % 32 * DIM + d] = (float)rk[d];
				v[t % 32 * DIM + d] = r[i].v[t][d];
			}
		}
		q->context =
			(struct seq_context){ r[i].pos - (int64_t)q->n_tokens,
					      r[i].temperature, r[i].scale };
		ck_assert_int_eq(seq_append(q, s, 0, r[i].n), 0);
	}
}

static void check_seen(float temperature, float scale, float other)
{
	/* shared prefix, three chunks behind it, what follows the longest */
	struct run r[N_RUNS] = {
		{ 37, 0, 1, 1, 0, NULL, NULL },
		{ 50, 37, temperature, scale, 37, NULL, NULL },
		{ 64, 37, temperature, scale, 37, NULL, NULL },
		{ 21, 37, other, scale, 3, NULL, NULL }, /* from elsewhere */
		{ 40, 101, 1, 1, 172, NULL, NULL },
	};
	const struct attn_shape g = { .type = KERN_F32,
				      .n_heads = HEADS,
				      .n_kv_heads = 1,
				      .head_dim = DIM,
				      .scale = 1.0f / sqrtf(DIM),
				      .rope = { KERN_ROPE_HALVES, DIM,
						(float)THETA, 1 } };
	struct rig_mem *mem = rig_mem_open((struct rig_mem_options){
		.memory_bytes = 4 << 20, .disk_bytes = 4 << 20 });
	struct segment_pool *pool;
	struct page_run pages[N_RUNS];
	float qs[HEADS * DIM], o[HEADS * DIM];
	struct attn_scratch s;
	struct seq q;
	uint64_t seed = 17;

	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 4 << 20), 0);
	build(mem, pool, &q, r, &seed, pages);
	for (uint32_t i = 0; i < HEADS * DIM; i++)
		qs[i] = number(&seed);
	struct attn_item it = { .shape = &g,
				.seq = &q,
				.pos = q.n_tokens - 1,
				.n_rows = 1,
				.in = KERN_F32,
				.q = qs,
				.o = o };

	attn_scratch_init(&s);
	ck_assert_int_eq(attn_layer(NULL, NULL, &s, &it, 1, 0), 0);
	attn_scratch_fini(&s);
	for (uint32_t h = 0; h < HEADS; h++) {
		double want[DIM];

		expected(r, qs + h * DIM, 140, want);
		for (uint32_t d = 0; d < DIM; d++)
			ck_assert_msg(fabs(want[d] - (double)o[h * DIM + d]) <
					      MAX_DIFF,
				      "%g %g: %g, not %g", (double)temperature,
				      (double)scale, (double)o[h * DIM + d],
				      want[d]);
	}
	for (uint32_t i = 0; i < N_RUNS; i++) {
		page_unpin(mem->pager, &pages[i], 1);
		pager_unreserve(mem->pager, pages[i].n * q.layout.page_bytes);
		free(r[i].k);
		free(r[i].v);
	}
	seq_fini(&q);
	segment_pool_free(pool);
	rig_mem_close(mem);
}

START_TEST(the_formula_in_double)
{
	kern_init(KERN_ISA_AMX);
	check_seen(1, 1, 1);
	check_seen(0.5f, 1, 0.5f);
	check_seen(1, 0.8f, 1);
	check_seen(0.2f, 0.3f, 0.2f);
	check_seen(0.7f, 0.9f, 0.4f); /* two groups of chunks */
	check_seen(3, 2, 1);
}
END_TEST

/* A row that sees only what stands before the chunks has the bits of any other request. */
START_TEST(a_row_of_one_group_is_left_alone)
{
	static const float none_l, none_m = -INFINITY, none_o[64];
	float o[64], m = 0.7f, l = 2.9f, was[64];
	const struct kern_attn_group g[] = {
		{ o, &m, &l, 1 }, { none_o, &none_m, &none_l, 0.9f }
	};
	const struct kern_attn a = { .n_heads = 1,
				     .n_kv_heads = 1,
				     .head_dim = 64,
				     .o = o,
				     .m = &m,
				     .l = &l,
				     .kv_head_to = 1,
				     .row_to = 1 };

	kern_init(KERN_ISA_AMX);
	for (uint32_t i = 0; i < 64; i++)
		was[i] = o[i] = (float)i / 7 - 3;
	kern_attn_join(&a, g, 2);
	ck_assert(!memcmp(o, was, sizeof(o)));
	ck_assert(m == 0.7f && l == 2.9f);
}
END_TEST

/* ---- requests --------------------------------------------------------------------- */

#define N_SYSTEM 45u
#define N_ASK	 11u

struct request {
	uint32_t n_chunks; /* 1 to 3 */
	float temperature, scale;
	int plain; /* no chunks: computed in order */
};

static struct rig_gen *ask(struct rig_serve *r, const struct request *q)
{
	static const uint32_t n[] = { 100, 33, 70 };
	uint32_t *t[] = { rig_ids(N_SYSTEM, 1), rig_ids(N_ASK, 2),
			  rig_ids(100, 3), rig_ids(33, 4), rig_ids(70, 5) };
	struct rig_gen *g = rig_gen_new();

	g->gen.may_wait = 1;
	rig_gen_part(g, t[0], N_SYSTEM, SERVE_PART_BOS);
	for (uint32_t i = 0; i < q->n_chunks; i++) {
		rig_gen_part(g, t[2 + i], n[i],
			     q->plain ? 0
				      : SERVE_PART_REUSE | SERVE_PART_PARALLEL);
		g->parts[1 + i].temperature = q->plain ? 0 : q->temperature;
		g->parts[1 + i].scale = q->plain ? 0 : q->scale;
	}
	rig_gen_part(g, t[1], N_ASK, 0);
	ck_assert_int_eq(serve_generate(r->session, &g->gen), 0);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_ge(g->ret, 0);
	serve_check(r->serve);
	for (int i = 0; i < 5; i++)
		free(t[i]);
	return g;
}

static int same(const struct rig_gen *a, const struct rig_gen *b)
{
	return a->n_out == b->n_out &&
	       !memcmp(a->tokens, b->tokens, a->n_out * sizeof(*a->tokens));
}

START_TEST(one_chunk_as_it_is_is_a_full_prefill)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	struct request q = { .n_chunks = 1, .temperature = 1, .scale = 1 };
	struct rig_gen *a = ask(r, &q), *b = ask(r, &q), *c, *d;

	q.plain = 1;
	c = ask(r, &q);
	ck_assert(same(a, b) && same(a, c));
	ck_assert_uint_eq(a->gen.stats.n_chunk, 0);
	ck_assert_uint_eq(b->gen.stats.n_chunk, 100);
	q.plain = 0;
	q.scale = 0.9f;
	d = ask(r, &q); /* the same chunk, seen otherwise */
	ck_assert_uint_eq(d->gen.stats.n_chunk, 100);
	ck_assert(!same(a, d));
	free(a);
	free(b);
	free(c);
	free(d);
	rig_serve_close(r);
}
END_TEST

START_TEST(the_same_bits_paged_sliced_and_from_the_cache)
{
	struct rig_serve *roomy =
		rig_serve_open((struct rig_serve_options){ 0 });
	struct rig_serve *tight = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 1 << 20, .prefill_slice = 7 });

	for (uint32_t n = 1; n <= 3; n++) {
		struct request q = { .n_chunks = n,
				     .temperature = 0.8f,
				     .scale = 0.9f };
		struct rig_gen *a = ask(roomy, &q), *b = ask(roomy, &q);
		struct rig_gen *c = ask(tight, &q), *d;

		ck_assert(same(a, b) && same(a, c));
		ck_assert_uint_eq(b->gen.stats.n_chunk, n == 1	 ? 100
							: n == 2 ? 133
								 : 203);
		q.plain = 1;
		d = ask(roomy, &q);
		ck_assert(!same(a, d));
		free(a);
		free(b);
		free(c);
		free(d);
	}
	rig_serve_close(roomy);
	rig_serve_close(tight);
}
END_TEST

START_TEST(bad_requests_are_refused)
{
	static const struct {
		uint32_t flags[4];
		float temperature, scale;
		uint32_t repair;
	} bad[] = {
		{ { 0, SERVE_PART_PARALLEL, 0, 0 }, 1, 1, 0 },
		{ { 0, 9, 0, 9 }, 1, 1, 0 }, /* apart; the last is plain */
		{ { 0, 9, 0, 0 }, 0, 1, 0 },
		{ { 0, 9, 0, 0 }, 1, -1, 0 },
		{ { 0, 9, 0, 0 }, NAN, 1, 0 },
		{ { 0, 9, 0, 0 }, 1, INFINITY, 0 },
		{ { 0, 9, 0, 0 }, 1, 1, REPAIR_FIRST },
		{ { 1, 9, 0, 0 }, 1, 1, 0 }, /* behind a chunk */
		{ { 0, 9, 1, 9 }, 1, 1, 0 },
		{ { 4, 0, 9, 0 }, 1, 1, 0 }, /* and an earlier version */
	};
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = rig_ids(50, 4);

	for (size_t k = 0; k < KV_ARRAY_LEN(bad); k++) {
		struct rig_gen *g = rig_gen_new();

		for (int i = 0; i < 5; i++)
			rig_gen_part(g, t, 50, i < 4 ? bad[k].flags[i] : 0);
		for (int i = 0; i < 4; i++) {
			g->parts[i].temperature = bad[k].temperature;
			g->parts[i].scale = bad[k].scale;
		}
		g->gen.repair = bad[k].repair;
		g->gen.repair_permille = 100;
		ck_assert_msg(rig_gen_start(g, r->session) == -EINVAL, "%zu",
			      k);
		free(g);
	}
	free(t);
	rig_serve_close(r);
}
END_TEST

/* Each way in which chunks are seen is a state of every row: there are not too many. */
START_TEST(ways_are_counted)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	struct serve_part parts[20];
	uint32_t *t = rig_ids(20, 9);

	for (uint32_t n = 16; n < 18; n++) {
		struct rig_gen *g = rig_gen_new();

		for (uint32_t i = 0; i < 20; i++)
			parts[i] = (struct serve_part){
				.kind = SERVE_PART_TOKENS,
				.flags = i && i < 19 ? 9 : 0,
				.tokens = t + i,
				.n_tokens = 1,
				.temperature = 1 + 0.25f * (float)(i % n % 4),
				.scale = 1 + 0.25f * (float)(i % n / 4)
			};
		g->gen.parts = parts;
		g->gen.n_parts = 20;
		g->gen.max_tokens = 1;
		ck_assert_int_eq(rig_gen_start(g, r->session),
				 n > 16 ? -EINVAL : 0);
		if (n == 16)
			ck_assert(rig_serve_until(r, &g->told));
		ck_assert_int_eq(g->ret, n > 16 ? 0 : 1);
		free(g);
	}
	free(t);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ape");
	TCase *t = tcase_create("ape");
	SRunner *sr;
	int failed;

	tcase_add_test(t, the_formula_in_double);
	tcase_add_test(t, a_row_of_one_group_is_left_alone);
	tcase_add_test(t, one_chunk_as_it_is_is_a_full_prefill);
	tcase_add_test(t, the_same_bits_paged_sliced_and_from_the_cache);
	tcase_add_test(t, bad_requests_are_refused);
	tcase_add_test(t, ways_are_counted);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
