/*
 * bench_gpu_pages.c - kvbench gpu --pages: what a page should hold
 *
 * Decode attention of all layers, one after the other, over KV in pages of L layers and
 * T tokens: K and V of one layer then lie in runs of L-th parts of a page, a block of
 * tokens of all layers apart. Many layers to a page waste least on short sequences and
 * need least calls; few give long runs. The figure is bytes of K and V a second,
 * against a streaming read of the same memory; the waste is what the last, half full
 * block of a sequence of 2048 tokens takes for nothing.
 */
#include "tools/bench_gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define READ_BLOCKS 1056u
#define BATCH	    16u
#define SHORT	    2048u /* tokens of the sequence that wastes */
#define GOOD	    0.98 /* of the best rate is as good */

/* Of an 8B model; on a device of the tests one that fits. */
struct shape {
	uint32_t layers, heads, kv_heads, dim, tokens, batch;
};

struct table {
	struct gpu *g;
	struct shape s;
	uint32_t page_layers, page_tokens;
	size_t page_bytes, seq_bytes;
	struct gpu_attn a;
	struct gpu_read read;
	struct gpu_block kv, spans, parts, rows, room, q, out;
};

static uint32_t n_groups(const struct table *t)
{
	return t->s.layers / t->page_layers;
}

static uint32_t n_parts(const struct table *t)
{
	return t->s.batch * KV_DIV_UP(t->s.tokens, GPU_SPLIT_TOKENS);
}

static uint64_t kv_bytes(const struct table *t)
{
	return 4ull * t->s.layers * t->s.kv_heads * t->s.dim * t->s.tokens *
	       t->s.batch;
}

static double attend_run(void *arg)
{
	struct table *t = arg;
	const uint64_t t0 = clock_ns();

	for (uint32_t l = 0; l < t->s.layers; l++) {
		t->a.spans =
			t->spans.at + l * t->s.batch * sizeof(struct gpu_span);
		t->a.parts = t->parts.at;
		t->a.rows = t->rows.at;
		if (kern_gpu_attn(t->g->kern, KERN_BF16, &t->a, t->g->st))
			return -1;
	}
	if (t->g->cu->stream_sync(t->g->st))
		return -1;
	return (double)kv_bytes(t) / (double)(clock_ns() - t0);
}

static double read_run(void *arg)
{
	struct table *t = arg;
	const uint64_t t0 = clock_ns();

	if (kern_gpu_read(t->g->kern, &t->read, READ_BLOCKS, t->g->st) ||
	    t->g->cu->stream_sync(t->g->st))
		return -1;
	return (double)(t->read.n_vecs * 16) / (double)(clock_ns() - t0);
}

static struct gpu_span span_of(const struct table *t, uint32_t l, uint32_t r)
{
	const size_t head = (size_t)t->page_tokens * t->s.dim * 2;
	const size_t plane = head * t->s.kv_heads;
	const uint64_t k = t->kv.at + r * t->seq_bytes +
			   l / t->page_layers * t->page_bytes +
			   l % t->page_layers * 2 * plane;

	return (struct gpu_span){ .k = k,
				  .v = k + plane,
				  .head_bytes = head,
				  .page_bytes = n_groups(t) * t->page_bytes,
				  .page_tokens = t->page_tokens,
				  .n_tokens = t->s.tokens };
}

static int lists(struct table *t)
{
	const uint32_t n = t->s.batch, most = n_parts(t);
	struct gpu_span *spans = calloc(t->s.layers * n, sizeof(*spans));
	struct kern_gpu_list *list = calloc(n, sizeof(*list));
	struct gpu_row *rows = calloc(n, sizeof(*rows));
	struct gpu_part *parts = calloc(most, sizeof(*parts));
	int ret = -ENOMEM;

	if (spans && list && rows && parts) {
		for (uint32_t r = 0; r < n; r++)
			list[r] = (struct kern_gpu_list){ t->s.tokens, r, 1 };
		for (uint32_t l = 0; l < t->s.layers; l++)
			for (uint32_t r = 0; r < n; r++)
				spans[l * n + r] = span_of(t, l, r);
		ret = (int)kern_gpu_plan(spans, list, n, parts, most, rows);
		t->a.n_parts = (uint32_t)KV_MAX(ret, 0);
		ret = KV_MIN(ret, 0);
	}
	if (!ret)
		ret = gpu_upload(t->g, &t->spans, spans,
				 t->s.layers * n * sizeof(*spans));
	if (!ret)
		ret = gpu_upload(t->g, &t->parts, parts, most * sizeof(*parts));
	if (!ret)
		ret = gpu_upload(t->g, &t->rows, rows, n * sizeof(*rows));
	free(spans);
	free(list);
	free(rows);
	free(parts);
	return ret;
}

static void lists_free(struct table *t)
{
	gpu_block_free(t->g, &t->spans);
	gpu_block_free(t->g, &t->parts);
	gpu_block_free(t->g, &t->rows);
}

/* Bytes of the last block that a sequence of SHORT tokens does not need. */
static double waste(const struct table *t)
{
	const double token = 4.0 * t->s.layers * t->s.kv_heads * t->s.dim;
	const double used =
		(double)t->page_bytes / t->page_tokens * n_groups(t);

	/* half of a block, and padding of all pages */
	return (used * t->page_tokens / 2 + (used - token) * SHORT) /
	       (token * SHORT) * 100;
}

struct best {
	double gb_s, waste;
	uint32_t layers, tokens;
};

static int shape_run(struct table *t, struct best *all, uint32_t *n_all)
{
	struct bench_side s[2] = { { .run = read_run, .arg = t },
				   { .run = attend_run, .arg = t } };
	const size_t raw = (size_t)t->page_layers * 4 * t->s.kv_heads *
			   t->s.dim * t->page_tokens;
	int ret;

	t->page_bytes = KV_ALIGN_UP(raw, t->g->page_bytes);
	t->seq_bytes = (size_t)n_groups(t) * t->page_bytes *
		       KV_DIV_UP(t->s.tokens, t->page_tokens);
	if (t->seq_bytes * t->s.batch > t->kv.n || waste(t) > 100)
		return 0;
	ret = lists(t);
	if (!ret)
		ret = bench_rounds(s, 2, 3, t->g->b->quick ? 0.05 : 0.5);
	lists_free(t);
	if (ret)
		return ret;
	bench_put(t->g->b, bench_median(&s[1]), "GB/s",
		  "gpu.pages.l%u.t%u.gb_s", t->page_layers, t->page_tokens);
	bench_put(t->g->b, bench_ratio(&s[1], &s[0]), "ratio",
		  "gpu.pages.l%u.t%u.read_ratio", t->page_layers,
		  t->page_tokens);
	bench_put(t->g->b, waste(t), "percent", "gpu.pages.l%u.t%u.waste",
		  t->page_layers, t->page_tokens);
	all[(*n_all)++] = (struct best){ bench_median(&s[1]), waste(t),
					 t->page_layers, t->page_tokens };
	return 0;
}

/* Of those that are as good as the best, the one that wastes least. */
static void choose(struct bench *b, const struct best *all, uint32_t n)
{
	const struct best *c = NULL;
	double top = 0;

	for (uint32_t i = 0; i < n; i++)
		top = KV_MAX(top, all[i].gb_s);
	for (uint32_t i = 0; i < n; i++)
		if (all[i].gb_s >= GOOD * top &&
		    (!c || all[i].waste < c->waste))
			c = &all[i];
	if (!c)
		return;
	bench_put(b, c->layers, "layers", "gpu.pages.best.layers");
	bench_put(b, c->tokens, "tokens", "gpu.pages.best.tokens");
}

static int memory(struct table *t)
{
	const uint64_t row = (uint64_t)t->s.heads * t->s.dim;
	void *noise;
	int ret, r = t->g->cu->host_alloc(&noise, MIB, CUDA_HOST_PORTABLE);

	if (r)
		return gpu_failed(t->g, "cuMemHostAlloc", r);
	bench_fill_bf16(noise, MIB);
	/* padding may double it */
	ret = gpu_block_new(t->g, &t->kv, 2 * kv_bytes(t));
	if (!ret)
		ret = gpu_block_fill(t->g, &t->kv, noise, MIB);
	if (!ret)
		ret = gpu_block_new(t->g, &t->q, t->s.batch * row * 2);
	if (!ret)
		ret = gpu_block_fill(t->g, &t->q, noise, MIB);
	if (!ret)
		ret = gpu_block_new(t->g, &t->room,
				    n_parts(t) * (row * 4 + t->s.heads * 8ull));
	if (!ret)
		ret = gpu_block_new(
			t->g, &t->out,
			KV_MAX(t->s.batch * (row * 4 + t->s.heads * 8ull),
			       READ_BLOCKS * GPU_THREADS * 4ull));
	(void)t->g->cu->host_free(noise); /* it was ours */
	t->read = (struct gpu_read){ t->kv.at, kv_bytes(t) / 16, t->out.at };
	t->a = (struct gpu_attn){
		.q = t->q.at,
		.q_variant_elems = t->s.batch * row,
		.part_o = t->room.at,
		.part_ml = t->room.at + n_parts(t) * row * 4,
		.o = t->out.at,
		.m = t->out.at + t->s.batch * row * 4,
		.n_heads = t->s.heads,
		.n_kv_heads = t->s.kv_heads,
		.head_dim = t->s.dim,
		.n_rows = t->s.batch,
		.flags = GPU_ATTN_FINISH,
		.scale = 0.088388f,
	};
	t->a.l = t->a.m + t->s.batch * t->s.heads * 4ull;
	return ret;
}

static int all_shapes(struct table *t)
{
	struct best all[64];
	uint32_t n = 0;
	int ret = 0;

	for (uint32_t l = 1; l <= t->s.layers; l *= 2)
		for (uint32_t k = 32; k <= 512 && !ret; k *= 2) {
			t->page_layers = l;
			t->page_tokens = k;
			ret = shape_run(t, all, &n);
		}
	if (!ret)
		choose(t->g->b, all, n);
	return ret;
}

int bench_gpu_pages(struct gpu *g)
{
	struct table t = { .g = g, .s = { 32, 32, 8, 128, 4096, BATCH } };
	int ret;

	if (!g->kern) {
		bench_note("gpu.pages skipped: built without nvcc, or not for "
			   "this device");
		return 0;
	}
	if (g->b->quick)
		t.s.batch = 4;
	if (4 * kv_bytes(&t) > g->n_free)
		t.s = (struct shape){ 4, 2, 2, 64, 128, 1 };
	bench_note("gpu.pages: %u layers, %u kv heads of %u, %u sequences of "
		   "%u tokens",
		   t.s.layers, t.s.kv_heads, t.s.dim, t.s.batch, t.s.tokens);
	ret = memory(&t);
	if (!ret)
		ret = all_shapes(&t);
	gpu_block_free(g, &t.kv);
	gpu_block_free(g, &t.q);
	gpu_block_free(g, &t.room);
	gpu_block_free(g, &t.out);
	return ret;
}
