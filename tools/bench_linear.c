/*
 * bench_linear.c - kvbench linear: packed linear layers against oneDNN
 *
 * 512 x 2048 x 8192 (rows, inputs, outputs) in bf16 and f32, and one row over
 * weights that are too large for the caches, against the read bandwidth. The
 * threads split the outputs in panels, as the model does.
 */
#include "tools/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"

#define N_ROWS	512u
#define N_IN	2048u
#define N_OUT	8192u
#define SHARE	128u /* outputs a thread takes at a time */
#define ONE_IN	4096u
#define ONE_OUT 32768u /* 256 MiB of bf16 */

struct linear {
	struct kern_linear a;
	struct pool *pool;
	struct kern_weight *w;
	size_t x_bytes, y_bytes;
	uint32_t n_out;
	int err;
};

static void linear_part(void *arg, uint32_t i_part)
{
	struct linear *l = arg;
	struct kern_linear a = l->a;

	a.out_from = i_part * SHARE;
	a.out_to = KV_MIN(a.out_from + SHARE, l->n_out);
	if (kern_linear(&a))
		__atomic_store_n(&l->err, -EINVAL, __ATOMIC_RELAXED);
}

static double linear_seconds(struct linear *l)
{
	const uint64_t t0 = clock_ns();

	pool_run(l->pool, linear_part, l, KV_DIV_UP(l->n_out, SHARE));
	return l->err ? -1 : (double)(clock_ns() - t0) * 1e-9;
}

/* GFLOP/s */
static double linear_run(void *arg)
{
	struct linear *l = arg;
	const double s = linear_seconds(l);

	return 2e-9 * l->a.n_rows * kern_weight_n_in(l->w) * l->n_out / s;
}

/* GB/s of packed weights */
static double stream_run(void *arg)
{
	struct linear *l = arg;

	return (double)kern_weight_bytes(l->w) * 1e-9 / linear_seconds(l);
}

static void linear_fini(struct linear *l)
{
	bench_free((void *)l->a.x, l->x_bytes);
	bench_free(l->a.y, l->y_bytes);
	kern_weight_free(l->w);
}

static int linear_init(struct linear *l, struct pool *pool, uint32_t n_rows,
		       uint32_t n_in, uint32_t n_out, enum kern_type type)
{
	const size_t elem = kern_type_bytes(type);
	struct kern_matrix m = { .type = type, .n_in = n_in, .n_out = n_out };
	const size_t w_bytes = elem * n_in * n_out;
	void *src = bench_alloc(w_bytes);
	void *x;
	int ret = -ENOMEM;

	*l = (struct linear){ .pool = pool, .n_out = n_out };
	l->x_bytes = elem * n_rows * n_in;
	l->y_bytes = sizeof(float) * n_rows * n_out;
	x = bench_alloc(l->x_bytes);
	l->a = (struct kern_linear){
		.x = x,
		.x_stride = n_in,
		.n_rows = n_rows,
		.y = bench_alloc(l->y_bytes),
		.y_stride = n_out,
	};
	if (src && x && l->a.y) {
		if (type == KERN_F32) {
			bench_fill_f32(src, (size_t)n_in * n_out);
			bench_fill_f32(x, (size_t)n_rows * n_in);
		} else {
			bench_fill_bf16(src, w_bytes);
			bench_fill_bf16(x, l->x_bytes);
		}
		m.data = src;
		ret = kern_weight_pack(&l->w, &m, type);
	}
	bench_free(src, w_bytes);
	l->a.w = l->w;
	if (ret)
		linear_fini(l);
	return ret;
}

/* Rows so that one call stays within seconds on a slow path (scalar code). */
static uint32_t choose_rows(struct bench *b, struct linear *l)
{
	const uint32_t probe = 8;
	double per_row;

	l->a.n_rows = probe;
	(void)linear_seconds(l); /* touches everything */
	per_row = linear_seconds(l) / probe;
	if (per_row * N_ROWS < (b->quick ? 0.4 : 2.0))
		return N_ROWS;
	bench_note("linear: %u rows instead of %u: %.3g s a row", probe, N_ROWS,
		   per_row);
	return probe;
}

static int many_rows(struct bench *b, struct pool *pool, enum kern_type type,
		     const char *name, double budget_s)
{
	struct bench_side sides[2] = { { .run = bench_gemm_run },
				       { .run = linear_run } };
	struct bench_gemm *g = NULL;
	struct linear l;
	int ret = linear_init(&l, pool, N_ROWS, N_IN, N_OUT, type);
	int no_gemm;

	if (ret)
		return bench_fail(ret, "linear: cannot pack %s", name);
	sides[1].arg = &l;
	l.a.n_rows = choose_rows(b, &l);
	no_gemm = bench_gemm_new(&g, N_ROWS, N_OUT, N_IN, type == KERN_BF16,
				 b->n_threads);
	if (no_gemm)
		bench_note("linear.%s.onednn_ratio skipped: %s", name,
			   bench_no_gemm(no_gemm));
	sides[0].arg = g;
	ret = bench_rounds(sides + !!no_gemm, no_gemm ? 1 : 2, 3, budget_s);
	if (!ret) {
		bench_put(b, bench_median(&sides[1]), "GFLOP/s",
			  "linear.%s.gflops", name);
		if (!no_gemm) {
			bench_put(b, bench_median(&sides[0]), "GFLOP/s",
				  "linear.%s.onednn_gflops", name);
			bench_put(b, bench_ratio(&sides[1], &sides[0]), "x",
				  "linear.%s.onednn_ratio", name);
		}
	}
	bench_gemm_free(g);
	linear_fini(&l);
	return ret ? bench_fail(ret, "linear: %s", name) : 0;
}

static int one_row(struct bench *b, struct pool *pool, double budget_s)
{
	struct bench_read read = { .pool = pool };
	struct linear l;
	struct bench_side sides[2] = {
		{ .run = bench_read_run, .arg = &read },
		{ .run = stream_run, .arg = &l },
	};
	void *mem;
	int ret = linear_init(&l, pool, 1, ONE_IN, ONE_OUT, KERN_BF16);

	if (ret)
		return bench_fail(ret, "linear: cannot pack one row's weights");
	read.n_bytes = (size_t)ONE_IN * ONE_OUT * 2;
	mem = bench_alloc(read.n_bytes);
	read.base = mem;
	ret = mem ? bench_rounds(sides, 2, 3, budget_s) : -ENOMEM;
	if (!ret) {
		bench_put(b, bench_median(&sides[0]), "GB/s",
			  "linear.row1.read_gb_s");
		bench_put(b, bench_median(&sides[1]), "GB/s",
			  "linear.row1.gb_s");
		bench_put(b, bench_ratio(&sides[1], &sides[0]), "x",
			  "linear.row1.read_ratio");
	}
	bench_free(mem, read.n_bytes);
	linear_fini(&l);
	return ret ? bench_fail(ret, "linear: one row") : 0;
}

int bench_linear(struct bench *b)
{
	const double budget_s = b->quick ? 0.8 : 7.0;
	struct pool *pool;
	int ret;

	(void)kern_init(KERN_ISA_AMX);
	bench_note("linear: %s, %u threads", kern_isa_name(kern_isa()),
		   b->n_threads);
	ret = pool_new(&pool, b->n_threads);
	if (ret)
		return bench_fail(ret, "linear: threads");
	ret = many_rows(b, pool, KERN_BF16, "bf16", budget_s);
	if (!ret)
		ret = many_rows(b, pool, KERN_F32, "f32", budget_s);
	if (!ret)
		ret = one_row(b, pool, budget_s);
	pool_free(pool);
	return ret;
}
