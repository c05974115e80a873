/*
 * bench_gpu_prefill.c - kvbench gpu: attention of a whole prompt over matrix products
 *
 * Causal attention of n rows over n tokens, 64 query heads of 128 to 8 kv heads, bf16: its
 * multiplications and additions a second, against those of one large matrix product by
 * cuBLASLt of the same run.
 */
#include "kernels/cublas_api.h"
#include "tools/bench_gpu.h"

#include <errno.h>
#include <stdlib.h>

#define PAGE_TOKENS 128u
#define WORKSPACE   (32u << 20)

struct prefill {
	struct gpu *g;
	uint32_t n, heads, kv_heads, dim;
	int is_wide; /* by kern_gpu_attn_wide() */
	struct kern_gpu_window window;
	struct gpu_attn a;
	struct kern_gpu_plan plan;
	struct gpu_block kv, q, out, state, room, span, parts, tiles, rows;
};

/* TFLOP/s. */
static double prefill_run(void *arg)
{
	struct prefill *p = arg;
	const double pairs = (double)p->n * (p->n + 1) / 2;
	const uint64_t t0 = clock_ns();
	const int ret = p->is_wide ? kern_gpu_attn_wide(p->g->kern, &p->window,
							&p->a, p->g->st)
				   : kern_gpu_attn(p->g->kern, KERN_BF16, &p->a,
						   p->g->st);

	if (ret || p->g->cu->stream_sync(p->g->st))
		return -1;
	return 4.0 * p->heads * p->dim * pairs / (double)(clock_ns() - t0) *
	       1e-3;
}

struct product {
	struct gpu *g;
	uint32_t n;
	struct cublas_plan *plan;
	struct gpu_gemm a;
	struct gpu_block x, w, y, workspace;
};

static double product_run(void *arg)
{
	struct product *p = arg;
	const uint64_t t0 = clock_ns();

	if (cublas_gemm(p->plan, &p->a, p->workspace.at, p->g->st) ||
	    p->g->cu->stream_sync(p->g->st))
		return -1;
	return 2.0 * p->n * p->n * p->n / (double)(clock_ns() - t0) * 1e-3;
}

/* ---- the prompt ------------------------------------------------------------------ */

static int plan(struct prefill *p)
{
	const size_t head = PAGE_TOKENS * p->dim * 2ull;
	const struct gpu_span span = {
		.k = p->kv.at,
		.v = p->kv.at + p->kv_heads * head,
		.head_bytes = head,
		.page_bytes = 2 * p->kv_heads * head,
		.page_tokens = PAGE_TOKENS,
		.n_tokens = p->n,
	};
	const struct kern_gpu_shape shape = { KERN_BF16, p->heads, p->kv_heads,
					      p->dim };
	const uint32_t most = p->n * KV_DIV_UP(p->n, GPU_SPLIT_TOKENS);
	struct kern_gpu_list *list = calloc(p->n, sizeof(*list));
	struct kern_gpu_plan *k = &p->plan;
	int ret = -ENOMEM;

	k->max_parts = KV_MIN(most, 1u << 20);
	k->max_tiles = p->n;
	k->tile_rows = p->is_wide ? GPU_WIDE_ROWS : 0;
	k->parts = calloc(k->max_parts, sizeof(*k->parts));
	k->tiles = calloc(k->max_tiles, sizeof(*k->tiles));
	k->rows = calloc(p->n, sizeof(*k->rows));
	if (list && k->parts && k->tiles && k->rows) {
		for (uint32_t r = 0; r < p->n; r++)
			list[r] = (struct kern_gpu_list){ r, 0, 1 };
		ret = kern_gpu_plan_rows(&shape, &span, list, p->n, k);
	}
	free(list);
	if (!ret)
		ret = gpu_upload(p->g, &p->span, &span, sizeof(span));
	if (!ret)
		ret = gpu_upload(p->g, &p->rows, k->rows,
				 p->n * sizeof(*k->rows));
	if (!ret && k->n_parts)
		ret = gpu_upload(p->g, &p->parts, k->parts,
				 k->n_parts * sizeof(*k->parts));
	if (!ret && k->n_tiles)
		ret = gpu_upload(p->g, &p->tiles, k->tiles,
				 k->n_tiles * sizeof(*k->tiles));
	return ret;
}

static int prefill_memory(struct prefill *p, const void *noise)
{
	const uint64_t row = (uint64_t)p->heads * p->dim;
	int ret = gpu_block_new(p->g, &p->kv,
				4ull * p->kv_heads * p->dim *
					KV_ALIGN_UP(p->n, PAGE_TOKENS));

	if (!ret)
		ret = gpu_block_fill(p->g, &p->kv, noise, MIB);
	if (!ret)
		ret = gpu_block_new(p->g, &p->q, p->n * row * 2);
	if (!ret)
		ret = gpu_block_fill(p->g, &p->q, noise, MIB);
	if (!ret)
		ret = gpu_block_new(p->g, &p->out, p->n * row * 4);
	if (!ret)
		ret = gpu_block_new(p->g, &p->state, p->n * p->heads * 8ull);
	if (!ret && p->is_wide)
		ret = kern_gpu_window(p->g->kern, p->g->dev, KERN_BF16, p->dim,
				      p->kv.at, p->kv.n, &p->window);
	if (!ret)
		ret = plan(p);
	if (!ret && p->plan.n_parts)
		ret = gpu_block_new(p->g, &p->room,
				    p->plan.n_parts *
					    (row * 4 + p->heads * 8ull));
	p->a = (struct gpu_attn){
		.q = p->q.at,
		.q_variant_elems = p->n * row,
		.spans = p->span.at,
		.parts = p->parts.at,
		.tiles = p->tiles.at,
		.rows = p->rows.at,
		.part_o = p->room.at,
		.part_ml = p->room.at + p->plan.n_parts * row * 4,
		.o = p->out.at,
		.m = p->state.at,
		.l = p->state.at + p->n * p->heads * 4ull,
		.n_heads = p->heads,
		.n_kv_heads = p->kv_heads,
		.head_dim = p->dim,
		.n_rows = p->n,
		.n_parts = p->plan.n_parts,
		.n_tiles = p->plan.n_tiles,
		.flags = GPU_ATTN_FINISH,
		.scale = 0.088388f,
	};
	return ret;
}

static void prefill_free(struct prefill *p)
{
	struct gpu_block *all[] = { &p->kv,    &p->q,	  &p->out,
				    &p->state, &p->room,  &p->span,
				    &p->parts, &p->tiles, &p->rows };

	for (size_t i = 0; i < KV_ARRAY_LEN(all); i++)
		gpu_block_free(p->g, all[i]);
	free(p->plan.parts);
	free(p->plan.tiles);
	free(p->plan.rows);
}

/* ---- the product ----------------------------------------------------------------- */

static int product_new(struct product *p, struct cublas *c, const void *noise)
{
	const size_t bytes = (size_t)p->n * p->n * 2;
	const struct cublas_shape shape = { .type = KERN_BF16,
					    .n_out = p->n,
					    .n_in = p->n,
					    .n_rows = p->n,
					    .max_rows = p->n,
					    .workspace_bytes = WORKSPACE };
	int ret = gpu_block_new(p->g, &p->x, bytes);

	if (!ret)
		ret = gpu_block_fill(p->g, &p->x, noise, MIB);
	if (!ret)
		ret = gpu_block_new(p->g, &p->w, bytes);
	if (!ret)
		ret = gpu_block_fill(p->g, &p->w, noise, MIB);
	if (!ret)
		ret = gpu_block_new(p->g, &p->y, 2 * bytes);
	if (!ret)
		ret = gpu_block_new(p->g, &p->workspace, WORKSPACE);
	if (!ret)
		ret = cublas_plan_new(&p->plan, c, &shape);
	p->a = (struct gpu_gemm){ .x = p->x.at,
				  .w = p->w.at,
				  .y = p->y.at,
				  .x_stride = p->n,
				  .y_stride = p->n,
				  .n_rows = p->n,
				  .n_out = p->n,
				  .n_in = p->n };
	return ret;
}

static void product_free(struct product *p)
{
	if (p->plan)
		cublas_plan_free(p->plan);
	gpu_block_free(p->g, &p->x);
	gpu_block_free(p->g, &p->w);
	gpu_block_free(p->g, &p->y);
	gpu_block_free(p->g, &p->workspace);
}

/* ---- both ------------------------------------------------------------------------- */

/* The worst ratio so far of each way: by mma, by wgmma. */
struct worst {
	double mma, wide;
};

static void put(struct prefill *p, const struct bench_side *s,
		const struct bench_side *product, double *worst)
{
	const char *name = p->is_wide ? "prefill_wide" : "prefill";
	const double ratio = bench_ratio(s, product);

	bench_put(p->g->b, bench_median(s), "TFLOP/s",
		  "gpu.attention.%s.t%u.tflop_s", name, p->n);
	bench_put(p->g->b, ratio, "ratio", "gpu.attention.%s.t%u.gemm_ratio",
		  name, p->n);
	*worst = KV_MIN(*worst, ratio);
}

static int one_length(struct prefill *p, struct product *m, const void *noise,
		      struct worst *worst)
{
	struct prefill w = *p;
	struct bench_side s[3] = { { .run = product_run, .arg = m },
				   { .run = prefill_run, .arg = p },
				   { .run = prefill_run, .arg = &w } };
	int ret = prefill_memory(p, noise), wide;

	w.is_wide = 1;
	wide = ret ? ret : prefill_memory(&w, noise);
	if (wide == -ENOTSUP)
		bench_note("gpu.attention.prefill_wide skipped: no Hopper, or "
			   "no kernels for it");
	else if (wide)
		ret = wide;
	if (!ret)
		ret = bench_rounds(s, wide ? 2 : 3, 3,
				   p->g->b->quick ? 0.3 : 3);
	if (!ret) {
		bench_put(p->g->b, bench_median(&s[0]), "TFLOP/s",
			  "gpu.gemm.t%u.tflop_s", p->n);
		put(p, &s[1], &s[0], &worst->mma);
	}
	if (!ret && !wide)
		put(&w, &s[2], &s[0], &worst->wide);
	prefill_free(&w);
	prefill_free(p);
	return ret;
}

static int lengths(struct gpu *g, struct product *m, const void *noise)
{
	static const uint32_t n[] = { 8192, 16384, 32768 };
	const int is_small = g->n_free < 1024 * MIB;
	struct worst worst = { 1e9, 1e9 };
	int ret = 0;

	for (size_t i = 0; i < KV_ARRAY_LEN(n) && !ret; i++) {
		struct prefill p = { .g = g,
				     .n = is_small ? 64 : n[i],
				     .heads = is_small ? 2 : 64,
				     .kv_heads = is_small ? 1 : 8,
				     .dim = is_small ? 64 : 128 };

		if (i && (is_small || g->b->quick))
			break;
		ret = one_length(&p, m, noise, &worst);
	}
	if (!ret && worst.mma < 1e9)
		bench_put(g->b, worst.mma, "ratio",
			  "gpu.attention.prefill.gemm_ratio");
	if (!ret && worst.wide < 1e9)
		bench_put(g->b, worst.wide, "ratio",
			  "gpu.attention.prefill_wide.gemm_ratio");
	return ret;
}

int bench_gpu_prefill(struct gpu *g)
{
	struct product m = { .g = g };
	struct cublas *c = NULL;
	void *noise;
	char why[256];
	int ret, r;

	if (!g->kern)
		return 0; /* said before */
	m.n = g->n_free < 1024 * MIB ? 64 : 8192;
	ret = cublas_open(&c, g->b->cublas, why, sizeof(why));
	if (ret) {
		bench_note("gpu.attention.prefill skipped: %s", why);
		return 0;
	}
	r = g->cu->host_alloc(&noise, MIB, CUDA_HOST_PORTABLE);
	if (r) {
		cublas_close(c);
		return gpu_failed(g, "cuMemHostAlloc", r);
	}
	bench_fill_bf16(noise, MIB);
	ret = product_new(&m, c, noise);
	if (ret)
		(void)bench_fail(ret, "gpu: matrix product: %d", ret);
	else
		ret = lengths(g, &m, noise);
	product_free(&m);
	cublas_close(c);
	(void)g->cu->host_free(noise); /* it was ours */
	return ret;
}
