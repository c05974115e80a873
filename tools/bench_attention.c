/*
 * bench_attention.c - kvbench attention: kern_attn against the machine
 *
 * decode:  one new row each of many sequences of 16K tokens, at least 256 MB
 *          of K and V in all, groups of 1, 4 and 8 query heads, head_dim 64 and
 *          128, bf16. Limit: streaming reads of the same bytes, same threads.
 * prefill: 2048 rows by 2048 tokens, causal, head_dim 128, bf16; FLOPs counted
 *          are those below the diagonal. Limit: oneDNN's bf16 GEMM of 2048^3.
 *
 * Threads split by sequence and kv head (decode), by rows and head (prefill).
 */
#include "tools/bench.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"

#define PAGE_TOKENS   256u
#define SEQ_TOKENS    16384u
#define N_KV_HEADS    4u
#define MAX_GROUP     8u
#define PREFILL	      2048u
#define PREFILL_DIM   128u
#define PREFILL_HEADS 8u
#define PREFILL_ROWS  256u /* a thread's share */
#define GEMM	      2048

static const uint32_t dims[] = { 64, 128 };
static const uint32_t groups[] = { 1, 4, MAX_GROUP };

struct decode {
	struct pool *pool;
	const char *kv;
	size_t kv_bytes, seq_bytes;
	struct kern_attn a; /* of one sequence; spans, q, o by part */
	struct kern_span *spans;
	uint16_t *q;
	float *state; /* [n_seqs][n_heads][head_dim + 2] */
	uint32_t n_seqs;
	int err;
};

static size_t page_bytes(uint32_t head_dim, uint32_t n_kv_heads)
{
	return 2 * sizeof(uint16_t) * head_dim * n_kv_heads * PAGE_TOKENS;
}

static struct kern_span span_at(const char *base, uint32_t head_dim,
				uint32_t n_kv_heads, uint32_t n_tokens)
{
	const size_t page = page_bytes(head_dim, n_kv_heads);

	return (struct kern_span){
		.k = base,
		.v = base + page / 2,
		.head_bytes = page / 2 / n_kv_heads,
		.page_bytes = page,
		.page_tokens = PAGE_TOKENS,
		.n_tokens = n_tokens,
	};
}

/* ---- decode ------------------------------------------------------------- */

static void decode_part(void *arg, uint32_t i_part)
{
	static const int64_t pos[1] = { SEQ_TOKENS - 1 };
	struct decode *d = arg;
	const uint32_t seq = i_part / N_KV_HEADS;
	const size_t heads = d->a.n_heads;
	struct kern_attn a = d->a;

	a.q = d->q + seq * heads * a.head_dim;
	a.q_pos = pos;
	a.spans = &d->spans[seq];
	a.o = d->state + seq * heads * (a.head_dim + 2);
	a.m = a.o + heads * a.head_dim;
	a.l = a.m + heads;
	a.kv_head_from = i_part % N_KV_HEADS;
	a.kv_head_to = a.kv_head_from + 1;
	kern_attn_clear(&a);
	if (kern_attn(&a))
		__atomic_store_n(&d->err, -EINVAL, __ATOMIC_RELAXED);
	kern_attn_finish(&a);
}

/* GB/s of K and V */
static double decode_run(void *arg)
{
	struct decode *d = arg;
	const uint64_t t0 = clock_ns();

	pool_run(d->pool, decode_part, d, d->n_seqs * N_KV_HEADS);
	return d->err ? -1
		      : (double)d->seq_bytes * d->n_seqs /
				(double)(clock_ns() - t0);
}

/* Lay the sequences out for head_dim and group. */
static void decode_shape(struct decode *d, uint32_t head_dim, uint32_t group)
{
	d->seq_bytes =
		SEQ_TOKENS / PAGE_TOKENS * page_bytes(head_dim, N_KV_HEADS);
	d->n_seqs = (uint32_t)(d->kv_bytes / d->seq_bytes);
	for (uint32_t i = 0; i < d->n_seqs; i++)
		d->spans[i] = span_at(d->kv + i * d->seq_bytes, head_dim,
				      N_KV_HEADS, SEQ_TOKENS);
	d->a = (struct kern_attn){
		.type = KERN_BF16,
		.n_heads = N_KV_HEADS * group,
		.n_kv_heads = N_KV_HEADS,
		.head_dim = head_dim,
		.scale = 1.0f / sqrtf((float)head_dim),
		.q_variant_elems = (size_t)N_KV_HEADS * group * head_dim,
		.n_rows = 1,
		.n_spans = 1,
		.row_to = 1,
	};
}

static int decode_one(struct bench *b, struct decode *d, uint32_t i_dim,
		      uint32_t i_group, double *worst)
{
	const uint32_t dim = dims[i_dim];
	struct bench_read read = { .pool = d->pool,
				   .base = d->kv,
				   .n_bytes = d->kv_bytes };
	struct bench_side sides[2] = {
		{ .run = bench_read_run, .arg = &read },
		{ .run = decode_run, .arg = d },
	};
	double ratio;
	int ret;

	decode_shape(d, dim, groups[i_group]);
	ret = bench_rounds(sides, 2, 3, b->quick ? 0.3 : 2.5);
	if (ret)
		return ret;
	ratio = bench_ratio(&sides[1], &sides[0]);
	bench_put(b, bench_median(&sides[1]), "GB/s",
		  "attention.decode.d%u.g%u.gb_s", dim, groups[i_group]);
	bench_put(b, ratio, "x", "attention.decode.d%u.g%u.read_ratio", dim,
		  groups[i_group]);
	*worst = fmin(*worst, ratio);
	if (i_group + 1 < KV_ARRAY_LEN(groups))
		return 0;
	bench_put(b, *worst, "x", "attention.decode.d%u.read_ratio", dim);
	if (i_dim)
		return 0;
	bench_put(b, bench_median(&sides[0]), "GB/s", "attention.read_gb_s");
	bench_put(b, 1e6 / bench_median(&sides[1]), "ns",
		  "attention.decode.ns_per_mb");
	return 0;
}

static int decode(struct bench *b, struct pool *pool)
{
	const size_t n_q = (size_t)N_KV_HEADS * MAX_GROUP * 128 * 16;
	struct decode d = { .pool = pool,
			    .kv_bytes = b->quick ? 64u << 20 : 256u << 20 };
	void *kv = bench_alloc(d.kv_bytes);
	int ret = -ENOMEM;

	d.kv = kv;
	d.q = aligned_alloc(64, n_q * sizeof(*d.q));
	d.spans = calloc(16, sizeof(*d.spans));
	d.state = aligned_alloc(64, 2 * n_q * sizeof(*d.state));
	if (kv && d.q && d.spans && d.state) {
		bench_fill_bf16(kv, d.kv_bytes);
		bench_fill_bf16(d.q, n_q * sizeof(*d.q));
		ret = 0;
	}
	for (uint32_t i = 0; !ret && i < KV_ARRAY_LEN(dims); i++) {
		double worst = INFINITY;

		for (uint32_t j = 0; !ret && j < KV_ARRAY_LEN(groups); j++)
			ret = decode_one(b, &d, i, j, &worst);
	}
	free(d.state);
	free(d.spans);
	free(d.q);
	bench_free(kv, d.kv_bytes);
	return ret;
}

/* ---- prefill ------------------------------------------------------------ */

struct prefill {
	struct pool *pool;
	struct kern_attn a;
	struct kern_span span;
	char *kv;
	size_t kv_bytes;
	uint16_t *q;
	size_t q_elems;
	int64_t pos[PREFILL];
	float *state;
	uint32_t n_heads; /* computed: fewer than there are on slow paths */
	int err;
};

static void prefill_part(void *arg, uint32_t i_part)
{
	struct prefill *p = arg;
	struct kern_attn a = p->a;
	/* the longest rows first, so that no thread is left with them */
	const uint32_t i_rows =
		PREFILL / PREFILL_ROWS - 1 - i_part / p->n_heads;

	a.kv_head_from = i_part % p->n_heads;
	a.kv_head_to = a.kv_head_from + 1;
	a.row_from = i_rows * PREFILL_ROWS;
	a.row_to = a.row_from + PREFILL_ROWS;
	kern_attn_clear(&a);
	if (kern_attn(&a))
		__atomic_store_n(&p->err, -EINVAL, __ATOMIC_RELAXED);
	kern_attn_finish(&a);
}

/* GFLOP/s: two products of rows * tokens / 2 * head_dim each. */
static double prefill_run(void *arg)
{
	struct prefill *p = arg;
	const uint64_t t0 = clock_ns();

	pool_run(p->pool, prefill_part, p, PREFILL / PREFILL_ROWS * p->n_heads);
	return p->err ? -1
		      : 2.0 * PREFILL * (PREFILL + 1) * PREFILL_DIM *
				p->n_heads / (double)(clock_ns() - t0);
}

static void prefill_fini(struct prefill *p)
{
	bench_free(p->kv, p->kv_bytes);
	bench_free(p->state, p->q_elems * 2 * sizeof(float));
	bench_free(p->q, p->q_elems * sizeof(*p->q));
}

static int prefill_init(struct prefill *p, struct pool *pool)
{
	const size_t elems = (size_t)PREFILL * PREFILL_HEADS * PREFILL_DIM;

	memset(p, 0, sizeof(*p));
	p->pool = pool;
	p->n_heads = PREFILL_HEADS;
	p->q_elems = elems;
	p->kv_bytes =
		PREFILL / PAGE_TOKENS * page_bytes(PREFILL_DIM, PREFILL_HEADS);
	p->kv = bench_alloc(p->kv_bytes);
	p->q = bench_alloc(elems * sizeof(*p->q));
	p->state = bench_alloc(elems * 2 * sizeof(float));
	if (!p->kv || !p->q || !p->state) {
		prefill_fini(p);
		return -ENOMEM;
	}
	bench_fill_bf16(p->kv, p->kv_bytes);
	bench_fill_bf16(p->q, elems * sizeof(*p->q));
	for (uint32_t i = 0; i < PREFILL; i++)
		p->pos[i] = i;
	p->span = span_at(p->kv, PREFILL_DIM, PREFILL_HEADS, PREFILL);
	p->a = (struct kern_attn){
		.type = KERN_BF16,
		.n_heads = PREFILL_HEADS,
		.n_kv_heads = PREFILL_HEADS,
		.head_dim = PREFILL_DIM,
		.scale = 1.0f / sqrtf(PREFILL_DIM),
		.q = p->q,
		.q_variant_elems = elems,
		.q_pos = p->pos,
		.n_rows = PREFILL,
		.spans = &p->span,
		.n_spans = 1,
		.o = p->state,
		.m = p->state + elems,
		.l = p->state + elems + (size_t)PREFILL * PREFILL_HEADS,
	};
	return 0;
}

/* One head first: on slow paths the others are left out. */
static void choose_heads(struct bench *b, struct prefill *p)
{
	const uint64_t t0 = clock_ns();
	double s;

	p->n_heads = 1;
	(void)prefill_run(p);
	s = (double)(clock_ns() - t0) * 1e-9;
	if (s * PREFILL_HEADS < (b->quick ? 0.5 : 3.0))
		p->n_heads = PREFILL_HEADS;
	else
		bench_note("attention: one head: %.3g s each", s);
}

static int prefill(struct bench *b, struct pool *pool)
{
	struct bench_side sides[2] = { { .run = bench_gemm_run },
				       { .run = prefill_run } };
	struct prefill *p = malloc(sizeof(*p));
	struct bench_gemm *g = NULL;
	int no_gemm, ret;

	ret = p ? prefill_init(p, pool) : -ENOMEM;
	if (ret) {
		free(p);
		return ret;
	}
	choose_heads(b, p);
	no_gemm = bench_gemm_new(&g, GEMM, GEMM, GEMM, 1, b->n_threads);
	if (no_gemm)
		bench_note("attention.prefill.gemm_ratio skipped: %s",
			   bench_no_gemm(no_gemm));
	sides[0].arg = g;
	sides[1].arg = p;
	ret = bench_rounds(sides + !!no_gemm, no_gemm ? 1 : 2, 3,
			   b->quick ? 1.0 : 6.0);
	if (!ret)
		bench_put(b, bench_median(&sides[1]), "GFLOP/s",
			  "attention.prefill.gflops");
	if (!ret && !no_gemm) {
		bench_put(b, bench_median(&sides[0]), "GFLOP/s",
			  "attention.gemm_gflops");
		bench_put(b, bench_ratio(&sides[1], &sides[0]), "x",
			  "attention.prefill.gemm_ratio");
	}
	bench_gemm_free(g);
	prefill_fini(p);
	free(p);
	return ret;
}

int bench_attention(struct bench *b)
{
	struct pool *pool;
	int ret;

	(void)kern_init(KERN_ISA_AMX);
	bench_note("attention: %s, %u threads", kern_isa_name(kern_isa()),
		   b->n_threads);
	ret = pool_new(&pool, b->n_threads);
	if (ret)
		return bench_fail(ret, "attention: threads");
	ret = decode(b, pool);
	if (!ret)
		ret = prefill(b, pool);
	pool_free(pool);
	return ret ? bench_fail(ret, "attention") : 0;
}
