/*
 * test_inter.c - attention of a chunk's tokens to the parts before it, against a plain
 * softmax in f64: with chunks that were computed elsewhere, f32 and bf16
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/inter.h"
#include "tests/rig/rig_mem.h"

#define N_LAYERS 2
#define N_HEADS	 4
#define N_KV	 2
#define DIM	 32
#define N_PARTS	 4
#define N_TOKENS (10 + 40 + 33 + 50)
#define ROW	 (N_HEADS * DIM)
#define KV_ROW	 (N_KV * DIM)

static const uint32_t part_n[N_PARTS] = { 10, 40, 33, 50 };
static struct rig_mem *mem;
static struct segment_pool *pool;
static float q[N_LAYERS][N_TOKENS][ROW], k[N_LAYERS][N_TOKENS][KV_ROW];
static uint64_t seed = 88172645463325252u;

static void setup(void)
{
	kern_init(KERN_ISA_AMX);
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 64 << 20,
						     .disk_bytes = 64 << 20 });
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 64 << 20), 0);
}

static void teardown(void)
{
	segment_pool_free(pool);
	rig_mem_close(mem);
}

static float value(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (float)(seed >> 40) * 0x1p-23f - 1;
}

static void fill(void *to, size_t n_bytes)
{
	float *f = to;

	for (size_t i = 0; i < n_bytes / sizeof(*f); i++)
		f[i] = value();
}

static uint32_t first_of(uint32_t i_part)
{
	uint32_t first = 0;

	while (i_part--)
		first += part_n[i_part];
	return first;
}

static struct attn_shape shape(enum kern_type type)
{
	return (struct attn_shape){ .type = type,
				    .n_heads = N_HEADS,
				    .n_kv_heads = N_KV,
				    .head_dim = DIM,
				    .scale = 0.4f,
				    .rope = { .kind = KERN_ROPE_HALVES,
					      .n_rot = DIM,
					      .theta = 10000,
					      .scale = 1 } };
}

/* ---- the same in f64 -------------------------------------------------------- */

static double rotated(const float *x, uint32_t d, double pos)
{
	const uint32_t half = DIM / 2, i = d % half;
	const double a = pos * pow(10000, -2.0 * i / DIM);
	const double u = (double)x[i], v = (double)x[i + half];

	return d < half ? u * cos(a) - v * sin(a) : u * sin(a) + v * cos(a);
}

/* Weights of row t, head h over the tokens [0, t]. */
static void weights(uint32_t layer, uint32_t t, uint32_t h, double *w)
{
	double sum = 0;

	for (uint32_t c = 0; c <= t; c++) {
		double s = 0;

		for (uint32_t d = 0; d < DIM; d++)
			s += rotated(q[layer][t] + h * DIM, d, t) *
			     rotated(k[layer][c] + h / 2 * DIM, d, c);
		sum += w[c] = exp(0.4 * s);
	}
	for (uint32_t c = 0; c <= t; c++)
		w[c] /= sum;
}

struct sums {
	double inter[N_PARTS], score[50];
};

static void naive(struct sums *s)
{
	const uint32_t first = first_of(3);
	double w[N_TOKENS];

	memset(s, 0, sizeof(*s));
	for (uint32_t i = 0; i < N_LAYERS * 50 * N_HEADS; i++) {
		const uint32_t t = i / N_HEADS % 50;

		weights(i / N_HEADS / 50, first + t, i % N_HEADS, w);
		for (uint32_t c = 0, p = 0; c <= first + t; c++) {
			p += c >= first_of(p) + part_n[p];
			s->inter[p] += w[c] / N_LAYERS / N_HEADS;
			if (p == 1 || p == 2)
				s->score[t] += w[c] / N_LAYERS / N_HEADS;
		}
	}
}

/* ---- in kvd ------------------------------------------------------------------ */

/* Keys [first, first + n) of the prompt go into the tail of s. */
static void write_keys(struct seq *s, const struct attn_shape *g,
		       uint32_t first, uint32_t n)
{
	static float o[N_TOKENS * ROW];
	struct attn_scratch scratch;

	attn_scratch_init(&scratch);
	for (uint32_t l = 0; l < N_LAYERS; l++) {
		struct attn_item it = { .shape = g,
					.seq = s,
					.pos = s->n_tokens - n,
					.n_rows = n,
					.in = KERN_F32,
					.q = q[l][first],
					.k = k[l][first],
					.v = k[l][first],
					.o = o };

		ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, &it, 1, l),
				 0);
	}
	attn_scratch_fini(&scratch);
}

static uint32_t n_runs, n_pages;
static struct page_run runs[16];

static void grow(struct seq *s, const struct attn_shape *g, uint32_t first,
		 uint32_t n)
{
	struct seq_copy copy;

	seq_part(s);
	ck_assert_int_eq(seq_grow(s, n, 0, &copy), 0);
	ck_assert_uint_eq(seq_runs(s, s->n_tokens - n, s->n_tokens, UINT32_MAX,
				   &runs[n_runs], 1),
			  1);
	runs[n_runs].flags = PAGE_WRITE;
	ck_assert_int_eq(rig_mem_want(mem, &runs[n_runs], 1), 0);
	n_pages += runs[n_runs++].n;
	write_keys(s, g, first, n);
}

/* Part 2 is computed alone and put in by reference. */
static void build(struct seq *s, struct seq *alone, const struct attn_shape *g)
{
	struct kv_layout l = { .n_layers = N_LAYERS,
			       .n_kv_heads = N_KV,
			       .head_dim = DIM,
			       .elem_bytes =
				       (uint32_t)kern_type_bytes(g->type) };

	n_runs = n_pages = 0;
	ck_assert_int_eq(kv_layout_init(&l), 0);
	ck_assert_int_eq(pager_reserve(mem->pager, 32 * l.page_bytes), 0);
	seq_init(alone, pool, &l, 1024);
	grow(alone, g, first_of(2), part_n[2]);
	seq_seal(alone);
	seq_init(s, pool, &l, 1024);
	grow(s, g, 0, part_n[0]);
	grow(s, g, first_of(1), part_n[1]);
	seq_part(s);
	segment_get(alone->entries[0].seg);
	ck_assert_int_eq(seq_append(s, alone->entries[0].seg, 0, part_n[2]), 0);
	grow(s, g, first_of(3), part_n[3]);
}

static void compare(const struct inter *x, double within)
{
	const struct inter_part *p = &x->parts[3];
	struct sums want;

	naive(&want);
	for (uint32_t j = 0; j < 3; j++)
		ck_assert_double_eq_tol(p->inter[j], want.inter[j],
					within * part_n[3]);
	ck_assert_double_eq_tol(p->intra, want.inter[3], within * part_n[3]);
	for (uint32_t t = 0; t < part_n[3]; t++)
		ck_assert_double_eq_tol((double)p->score[t], want.score[t],
					within);
	/* it sees something at all, and not everything */
	ck_assert_double_gt(want.inter[1], 1);
	ck_assert_double_gt(want.inter[3], 1);
}

START_TEST(shares_are_those_of_a_plain_softmax)
{
	const enum kern_type type = _i ? KERN_BF16 : KERN_F32;
	const struct attn_shape g = shape(type);
	struct attn_scratch scratch;
	struct attn_place at = { .scratch = &scratch };
	struct seq s, alone;
	struct inter *x;
	uint32_t row = 0;

	fill(q, sizeof(q));
	fill(k, sizeof(k));
	build(&s, &alone, &g);
	ck_assert_int_eq(inter_new(&x, &g, N_LAYERS, part_n[3], N_PARTS), 0);
	for (uint32_t i = 0; i < N_PARTS; i++)
		ck_assert_int_eq(inter_part(x, first_of(i), part_n[i], i > 0,
					    i == 3 ? &row : NULL),
				 0);
	attn_scratch_init(&scratch);
	for (uint32_t l = 0; l < N_LAYERS; l++) {
		/* as slices of a prefill bring them */
		inter_keep(x, l, 0, 7, q[l][first_of(3)]);
		inter_keep(x, l, 7, 43, q[l][first_of(3) + 7]);
		ck_assert_int_eq(inter_layer(x, &at, &s, l), 0);
	}
	attn_scratch_fini(&scratch);
	compare(x, type == KERN_F32 ? 1e-5 : 1e-2);
	inter_free(x);
	page_unpin(mem->pager, runs, n_runs);
	pager_unreserve(mem->pager, 32 * s.layout.page_bytes);
	seq_fini(&s);
	seq_fini(&alone);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("inter");
	TCase *t = tcase_create("inter");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, shares_are_those_of_a_plain_softmax, 0, 2);
	tcase_set_timeout(t, 60);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
