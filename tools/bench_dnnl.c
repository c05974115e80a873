/*
 * bench_dnnl.c - the oneDNN baseline: one matmul with packed weights
 *
 * Weights are given to the library in the format it prefers (format any and a
 * reorder, not timed), as an inference engine would. Without oneDNN's header at
 * build time (or with NO_DNNL) all this is -ENOSYS, and what needs it says so.
 */
#include "tools/bench.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<oneapi/dnnl/dnnl.h>) && !defined(NO_DNNL)
#include <oneapi/dnnl/dnnl.h>

enum { ARG_X, ARG_W, ARG_Y, N_ARGS };

struct bench_gemm {
	dnnl_engine_t engine;
	dnnl_stream_t stream;
	dnnl_primitive_desc_t pd;
	dnnl_primitive_t prim;
	dnnl_memory_t mem[N_ARGS];
	void *buf[N_ARGS];
	size_t n_bytes[N_ARGS];
	double flops;
};

/* Debian's oneDNN runs on OpenMP; the thread count is set where that is. */
static void set_threads(unsigned int n)
{
	void *sym = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
	void (*set)(int);

	if (!sym)
		return;
	*(void **)&set = sym;
	set((int)n);
}

static int make_desc(struct bench_gemm *g, int64_t m, int64_t n, int64_t k,
		     dnnl_data_type_t type)
{
	const dnnl_dims_t xd = { m, k }, wd = { k, n }, yd = { m, n };
	dnnl_memory_desc_t x, w, y;
	dnnl_matmul_desc_t d;

	if (dnnl_memory_desc_init_by_tag(&x, 2, xd, type, dnnl_ab) ||
	    dnnl_memory_desc_init_by_tag(&w, 2, wd, type,
					 dnnl_format_tag_any) ||
	    dnnl_memory_desc_init_by_tag(&y, 2, yd, dnnl_f32, dnnl_ab) ||
	    dnnl_matmul_desc_init(&d, &x, &w, NULL, &y))
		return -EINVAL;
	if (dnnl_primitive_desc_create(&g->pd, &d, NULL, g->engine, NULL) ||
	    dnnl_primitive_create(&g->prim, g->pd))
		return -ENOTSUP;
	return 0;
}

static int make_memory(struct bench_gemm *g, int i, dnnl_query_t what)
{
	const dnnl_memory_desc_t *d =
		dnnl_primitive_desc_query_md(g->pd, what, 0);

	if (!d)
		return -ENOTSUP;
	g->n_bytes[i] = dnnl_memory_desc_get_size(d);
	g->buf[i] = bench_alloc(g->n_bytes[i]);
	if (!g->buf[i])
		return -ENOMEM;
	return dnnl_memory_create(&g->mem[i], d, g->engine, g->buf[i]) ? -ENOMEM
								       : 0;
}

static void fill(struct bench_gemm *g, int i, int bf16)
{
	/* the packed format is a permutation with zero padding: random numbers
	 * put straight into it cost the same as ones that were reordered */
	if (bf16)
		bench_fill_bf16(g->buf[i], g->n_bytes[i]);
	else
		bench_fill_f32(g->buf[i], g->n_bytes[i] / sizeof(float));
}

int bench_gemm_new(struct bench_gemm **out, int64_t m, int64_t n, int64_t k,
		   int bf16, unsigned int n_threads)
{
	struct bench_gemm *g = calloc(1, sizeof(*g));
	int ret = -ENOMEM;

	if (!g)
		return ret;
	g->flops = 2.0 * (double)m * (double)n * (double)k;
	set_threads(n_threads);
	if (dnnl_engine_create(&g->engine, dnnl_cpu, 0) ||
	    dnnl_stream_create(&g->stream, g->engine,
			       dnnl_stream_default_flags))
		goto fail;
	ret = make_desc(g, m, n, k, bf16 ? dnnl_bf16 : dnnl_f32);
	if (!ret)
		ret = make_memory(g, ARG_X, dnnl_query_src_md);
	if (!ret)
		ret = make_memory(g, ARG_W, dnnl_query_weights_md);
	if (!ret)
		ret = make_memory(g, ARG_Y, dnnl_query_dst_md);
	if (ret)
		goto fail;
	fill(g, ARG_X, bf16);
	fill(g, ARG_W, bf16);
	*out = g;
	return 0;
fail:
	bench_gemm_free(g);
	return ret;
}

void bench_gemm_free(struct bench_gemm *g)
{
	if (!g)
		return;
	for (int i = 0; i < N_ARGS; i++) {
		(void)dnnl_memory_destroy(g->mem[i]); /* NULL is fine */
		bench_free(g->buf[i], g->n_bytes[i]);
	}
	(void)dnnl_primitive_destroy(g->prim);
	(void)dnnl_primitive_desc_destroy(g->pd);
	(void)dnnl_stream_destroy(g->stream);
	(void)dnnl_engine_destroy(g->engine);
	free(g);
}

double bench_gemm_run(void *arg)
{
	struct bench_gemm *g = arg;
	const dnnl_exec_arg_t args[] = {
		{ DNNL_ARG_SRC, g->mem[ARG_X] },
		{ DNNL_ARG_WEIGHTS, g->mem[ARG_W] },
		{ DNNL_ARG_DST, g->mem[ARG_Y] },
	};
	const uint64_t t0 = clock_ns();

	if (dnnl_primitive_execute(g->prim, g->stream, N_ARGS, args) ||
	    dnnl_stream_wait(g->stream))
		return -1;
	return g->flops / (double)(clock_ns() - t0);
}

#else

int bench_gemm_new(struct bench_gemm **out, int64_t m, int64_t n, int64_t k,
		   int bf16, unsigned int n_threads)
{
	(void)out, (void)m, (void)n, (void)k, (void)bf16, (void)n_threads;
	return -ENOSYS;
}

void bench_gemm_free(struct bench_gemm *g)
{
	(void)g;
}

double bench_gemm_run(void *arg)
{
	(void)arg;
	return -1;
}

#endif

const char *bench_no_gemm(int err)
{
	return err == -ENOSYS ? "no oneDNN" : strerror(-err);
}
