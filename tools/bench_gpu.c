/*
 * bench_gpu.c - kvbench gpu: device memory, copies and kernels against the device
 *
 * Without a driver or a device it says so and measures nothing. Device memory is
 * filled with random numbers: zeros draw less power and run faster.
 */
#include "tools/bench_gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/loop.h"
#include "kvd/mem/copy.h"

#define LEAST_NS      2000000u /* of work queued for one wait */
#define MOST_PER_WAIT 1024u
#define HEADS	      64u
#define KV_HEADS      8u
#define DIM	      128u
#define PAGE_TOKENS   128u
#define TOKEN_BYTES   (2ull * KV_HEADS * DIM * 2) /* K and V */

int gpu_failed(const struct gpu *g, const char *what, int result)
{
	return bench_fail(kern_errno(result), "gpu: %s: %s", what,
			  cuda_error_name(g->cu, result));
}

struct cuda_mem_prop gpu_mem_prop(const struct gpu *g)
{
	return (struct cuda_mem_prop){
		.type = CUDA_ALLOCATION_PINNED,
		.location = { CUDA_LOCATION_DEVICE, g->dev },
	};
}

/* ---- memory of the device ------------------------------------------------------ */

int gpu_block_new(const struct gpu *g, struct gpu_block *m, size_t n)
{
	const struct cuda_mem_prop prop = gpu_mem_prop(g);
	const struct cuda_access rw = { prop.location, CUDA_PROT_READWRITE };
	int r;

	m->n = KV_ALIGN_UP(n, g->page_bytes);
	m->at = 0;
	r = g->cu->reserve(&m->at, m->n, 0, 0, 0);
	if (r)
		return gpu_failed(g, "cuMemAddressReserve", r);
	r = g->cu->create(&m->mem, m->n, &prop, 0);
	if (r) {
		(void)g->cu->unreserve(m->at, m->n); /* we are failing */
		m->at = 0;
		return gpu_failed(g, "cuMemCreate", r);
	}
	r = g->cu->map(m->at, m->n, 0, m->mem, 0);
	if (!r)
		r = g->cu->set_access(m->at, m->n, &rw, 1);
	return r ? gpu_failed(g, "cuMemMap", r) : 0;
}

void gpu_block_free(const struct gpu *g, struct gpu_block *m)
{
	if (!m->at)
		return;
	/* the process ends soon: what fails here is lost with it */
	(void)g->cu->unmap(m->at, m->n);
	(void)g->cu->release(m->mem);
	(void)g->cu->unreserve(m->at, m->n);
	m->at = 0;
}

/* n bytes of src to [0, end) of the block, again and again, from pinned memory. */
static int block_copy(const struct gpu *g, const struct gpu_block *m,
		      const void *src, size_t n, size_t end)
{
	void *pinned;
	int r = g->cu->host_alloc(&pinned, n, CUDA_HOST_PORTABLE);

	if (r)
		return gpu_failed(g, "cuMemHostAlloc", r);
	memcpy(pinned, src, n);
	for (size_t off = 0; off < end && !r; off += n)
		r = g->cu->h2d(m->at + off, pinned, KV_MIN(n, end - off),
			       g->st);
	if (!r)
		r = g->cu->stream_sync(g->st);
	(void)g->cu->host_free(pinned); /* it was ours */
	return r ? gpu_failed(g, "cuMemcpyHtoD", r) : 0;
}

int gpu_block_fill(const struct gpu *g, const struct gpu_block *m,
		   const void *src, size_t n)
{
	return block_copy(g, m, src, n, m->n);
}

int gpu_upload(const struct gpu *g, struct gpu_block *m, const void *src,
	       size_t n)
{
	const int ret = gpu_block_new(g, m, n);

	return ret ? ret : block_copy(g, m, src, n, n);
}

struct told {
	struct wait wait;
	int is_done, ret;
};

static void on_done(struct wait *w, int ret)
{
	struct told *t = container_of(w, struct told, wait);

	t->is_done = 1;
	t->ret = ret;
}

int gpu_per_wait(double (*run)(void *), void *arg, uint32_t *n)
{
	uint64_t t0;

	*n = 1;
	if (run(arg) < 0) /* the first is not like the others */
		return -EIO;
	for (;;) {
		t0 = clock_ns();
		if (run(arg) < 0)
			return -EIO;
		if (clock_ns() - t0 >= LEAST_NS || *n >= MOST_PER_WAIT)
			return 0;
		*n *= 2;
	}
}

/* ---- copies ------------------------------------------------------------------------ */

struct copies {
	struct gpu *g;
	struct loop *loop;
	struct copier *k;
	struct gpu_block dev;
	void *host;
	size_t n;
	enum copy_dir dir;
};

/* GB/s of one copy of everything. */
static double raw_copy(void *arg)
{
	const struct copies *c = arg;
	const struct gpu *g = c->g;
	const uint64_t t0 = clock_ns();
	int r = c->dir == COPY_TO_DEVICE
			? g->cu->h2d(c->dev.at, c->host, c->n, g->st)
			: g->cu->d2h(c->host, c->dev.at, c->n, g->st);

	if (!r)
		r = g->cu->stream_sync(g->st);
	return r ? -1 : (double)c->n / (double)(clock_ns() - t0);
}

/* The same by the copy engine. */
static double our_copy(void *arg)
{
	struct copies *c = arg;
	struct told t = { .wait = { on_done } };
	const struct copy_part part = { c->dev.at, c->host, c->n };
	struct copy op = { .dir = c->dir,
			   .prio = COPY_NOW,
			   .parts = &part,
			   .n_parts = 1,
			   .waiter = &t.wait };
	const uint64_t t0 = clock_ns();

	copy_start(c->k, &op);
	while (!t.is_done)
		if (loop_turn(c->loop, 1000) < 0)
			abort();
	return t.ret ? -1 : (double)c->n / (double)(clock_ns() - t0);
}

static int copy_rates(struct copies *c)
{
	static const char *const names[COPY_N_DIRS] = { "h2d", "d2h" };
	const double budget_s = c->g->b->quick ? 0.5 : 3;

	for (int d = 0; d < COPY_N_DIRS; d++) {
		struct bench_side s[2] = { { .run = raw_copy, .arg = c },
					   { .run = our_copy, .arg = c } };
		int ret;

		c->dir = (enum copy_dir)d;
		ret = bench_rounds(s, 2, 3, budget_s);
		if (ret)
			return bench_fail(ret, "gpu: copy %s", names[d]);
		bench_put(c->g->b, bench_median(&s[1]), "GB/s",
			  "gpu.copy.%s.gb_s", names[d]);
		bench_put(c->g->b, bench_ratio(&s[1], &s[0]), "ratio",
			  "gpu.copy.%s.link_ratio", names[d]);
	}
	return 0;
}

static int copies(struct gpu *g, struct loop *l)
{
	struct copies c = { .g = g, .loop = l };
	const struct copy_conf conf = { .api = g->cu,
					.ctx = g->ctx,
					.loop = l,
					.chunk_bytes = 2 * MIB,
					.credit_bytes = 16 * MIB };
	int ret, r;

	c.n = KV_MIN(256 * MIB, g->n_free / 4);
	ret = copier_open(&c.k, &conf);
	if (ret)
		return bench_fail(ret, "gpu: copier: %s", strerror(-ret));
	ret = gpu_block_new(g, &c.dev, c.n);
	if (!ret) {
		r = g->cu->host_alloc(&c.host, c.n, CUDA_HOST_PORTABLE);
		ret = r ? gpu_failed(g, "cuMemHostAlloc", r) : 0;
	}
	if (!ret) {
		bench_fill_bf16(c.host, c.n);
		ret = copy_rates(&c);
	}
	if (c.host)
		(void)g->cu->host_free(c.host); /* it was ours */
	gpu_block_free(g, &c.dev);
	copier_close(c.k);
	return ret;
}

/* ---- attention ---------------------------------------------------------------------- */

struct attn {
	struct gpu *g;
	struct gpu_attn a;
	struct gpu_read read;
	uint64_t n_bytes; /* of K and V */
	uint32_t n_attn, n_read; /* launches for each wait */
	struct gpu_block kv, q, spans, parts, rows, room, out;
};

/* GB/s of K and V. */
static double attn_run(void *arg)
{
	struct attn *t = arg;
	const uint64_t t0 = clock_ns();
	int ret = 0;

	for (uint32_t i = 0; i < t->n_attn && !ret; i++)
		ret = kern_gpu_attn(t->g->kern, KERN_BF16, &t->a, t->g->st);
	if (ret || t->g->cu->stream_sync(t->g->st))
		return -1;
	return (double)t->n_attn * (double)t->n_bytes /
	       (double)(clock_ns() - t0);
}

static double read_run(void *arg)
{
	struct attn *t = arg;
	const uint64_t t0 = clock_ns();
	int ret = 0;

	for (uint32_t i = 0; i < t->n_read && !ret; i++)
		ret = kern_gpu_read(t->g->kern, &t->read, GPU_READ_BLOCKS,
				    t->g->st);
	if (ret || t->g->cu->stream_sync(t->g->st))
		return -1;
	return (double)t->n_read * (double)t->n_bytes /
	       (double)(clock_ns() - t0);
}

/* Lists, their plan and the arguments: one span for each row. */
static int attn_lists(struct attn *t, uint32_t batch, uint32_t tokens)
{
	const uint32_t max_parts = batch * KV_DIV_UP(tokens, GPU_SPLIT_TOKENS);
	struct gpu_span *spans = calloc(batch, sizeof(*spans));
	struct kern_gpu_list *lists = calloc(batch, sizeof(*lists));
	struct gpu_row *rows = calloc(batch, sizeof(*rows));
	struct gpu_part *parts = calloc(max_parts, sizeof(*parts));
	const size_t head = PAGE_TOKENS * DIM * 2;
	int ret = -ENOMEM;

	if (!spans || !lists || !rows || !parts)
		goto out;
	for (uint32_t r = 0; r < batch; r++) {
		const uint64_t k =
			t->kv.at + (uint64_t)r * tokens * TOKEN_BYTES;

		spans[r] = (struct gpu_span){ .k = k,
					      .v = k + KV_HEADS * head,
					      .head_bytes = head,
					      .page_bytes =
						      PAGE_TOKENS * TOKEN_BYTES,
					      .page_tokens = PAGE_TOKENS,
					      .n_tokens = tokens };
		lists[r] = (struct kern_gpu_list){ tokens, r, 1 };
	}
	ret = (int)kern_gpu_plan(spans, lists, batch, parts, max_parts, rows);
	t->a.n_parts = max_parts;
	if (ret >= 0)
		ret = gpu_upload(t->g, &t->spans, spans,
				 batch * sizeof(*spans));
	if (!ret)
		ret = gpu_upload(t->g, &t->parts, parts,
				 max_parts * sizeof(*parts));
	if (!ret)
		ret = gpu_upload(t->g, &t->rows, rows, batch * sizeof(*rows));
out:
	free(spans);
	free(lists);
	free(rows);
	free(parts);
	return ret;
}

static int attn_new(struct attn *t, uint32_t batch, uint32_t tokens,
		    const void *noise)
{
	const uint64_t row = HEADS * DIM,
		       n_parts = batch * KV_DIV_UP(tokens, GPU_SPLIT_TOKENS);
	int ret;

	t->n_bytes = (uint64_t)batch * tokens * TOKEN_BYTES;
	ret = gpu_block_new(t->g, &t->kv, t->n_bytes);
	if (!ret)
		ret = gpu_block_fill(t->g, &t->kv, noise, MIB);
	if (!ret)
		ret = gpu_block_new(t->g, &t->q, batch * row * 2);
	if (!ret)
		ret = gpu_block_fill(t->g, &t->q, noise, MIB);
	if (!ret)
		ret = gpu_block_new(t->g, &t->room,
				    n_parts * (row * 4 + HEADS * 8));
	if (!ret)
		ret = gpu_block_new(
			t->g, &t->out,
			KV_MAX(batch * (row * 4 + HEADS * 8),
			       GPU_READ_BLOCKS * GPU_THREADS * 4ull));
	if (!ret)
		ret = attn_lists(t, batch, tokens);
	t->read = (struct gpu_read){ t->kv.at, t->n_bytes / 16, t->out.at };
	t->a.q = t->q.at;
	t->a.q_variant_elems = batch * row;
	t->a.spans = t->spans.at;
	t->a.parts = t->parts.at;
	t->a.rows = t->rows.at;
	t->a.part_o = t->room.at;
	t->a.part_ml = t->room.at + n_parts * row * 4;
	t->a.o = t->out.at;
	t->a.m = t->out.at + batch * row * 4;
	t->a.l = t->a.m + batch * HEADS * 4ull;
	t->a.n_heads = HEADS;
	t->a.n_kv_heads = KV_HEADS;
	t->a.head_dim = DIM;
	t->a.n_rows = batch;
	t->a.flags = GPU_ATTN_FINISH;
	t->a.scale = 0.088388f;
	return ret;
}

static void attn_free(struct attn *t)
{
	struct gpu_block *all[] = { &t->kv,   &t->q,	&t->spans, &t->parts,
				    &t->rows, &t->room, &t->out };

	for (size_t i = 0; i < KV_ARRAY_LEN(all); i++)
		gpu_block_free(t->g, all[i]);
}

/* The worst read_ratio so far goes to *worst. */
static int attn_shape(struct gpu *g, uint32_t batch, uint32_t tokens,
		      const void *noise, double *worst)
{
	struct attn t = { .g = g };
	struct bench_side s[2] = { { .run = read_run, .arg = &t },
				   { .run = attn_run, .arg = &t } };
	int ret = attn_new(&t, batch, tokens, noise);

	if (!ret)
		ret = gpu_per_wait(attn_run, &t, &t.n_attn);
	if (!ret)
		ret = gpu_per_wait(read_run, &t, &t.n_read);
	if (!ret)
		ret = bench_rounds(s, 2, 3, g->b->quick ? 0.5 : 3);
	if (!ret) {
		const double ratio = bench_ratio(&s[1], &s[0]);

		bench_put(g->b, bench_median(&s[0]), "GB/s",
			  "gpu.read_gb_s.b%u.t%u", batch, tokens);
		bench_put(g->b, bench_median(&s[1]), "GB/s",
			  "gpu.attention.decode.b%u.t%u.gb_s", batch, tokens);
		bench_put(g->b, ratio, "ratio",
			  "gpu.attention.decode.b%u.t%u.read_ratio", batch,
			  tokens);
		*worst = KV_MIN(*worst, ratio);
	}
	attn_free(&t);
	return ret;
}

static int attention(struct gpu *g)
{
	static const struct {
		uint32_t batch, tokens;
	} shapes[] = { { 16, 4096 },  { 64, 4096 },   { 16, 32768 },
		       { 64, 32768 }, { 16, 131072 }, { 64, 131072 } };
	void *noise;
	double worst = 1e9;
	int ret, r;

	if (!g->kern) {
		bench_note("gpu.attention skipped: built without nvcc, or not "
			   "for this device");
		return 0;
	}
	r = g->cu->host_alloc(&noise, MIB, CUDA_HOST_PORTABLE);
	if (r)
		return gpu_failed(g, "cuMemHostAlloc", r);
	bench_fill_bf16(noise, MIB);
	/* a device that is a small fake one has a small shape */
	ret = g->n_free < 1024 * MIB ? attn_shape(g, 1, 512, noise, &worst) : 0;
	for (size_t i = 0; i < KV_ARRAY_LEN(shapes) && !ret; i++) {
		if (shapes[i].batch * TOKEN_BYTES * shapes[i].tokens >
			    g->n_free / 2 ||
		    (g->b->quick && i > 1))
			continue;
		ret = attn_shape(g, shapes[i].batch, shapes[i].tokens, noise,
				 &worst);
	}
	if (!ret && worst < 1e9)
		bench_put(g->b, worst, "ratio",
			  "gpu.attention.decode.read_ratio");
	(void)g->cu->host_free(noise); /* it was ours */
	return ret;
}

/* ---- all ----------------------------------------------------------------------------- */

static int start(struct gpu *g)
{
	struct cuda_mem_prop prop;
	size_t least, total;
	int r;

	r = g->cu->device_get(&g->dev, 0);
	if (!r)
		r = g->cu->ctx_retain(&g->ctx, g->dev);
	if (!r)
		r = g->cu->ctx_set(g->ctx);
	if (!r)
		r = g->cu->stream_new(&g->st, CUDA_STREAM_NON_BLOCKING, 0);
	prop = gpu_mem_prop(g);
	if (!r)
		r = g->cu->granularity(&least, &prop, CUDA_GRANULARITY_MINIMUM);
	if (!r)
		r = g->cu->mem_info(&g->n_free, &total);
	if (r)
		return gpu_failed(g, "start", r);
	g->page_bytes = KV_ALIGN_UP(2 * MIB, least);
	if (g->n_free < 40 * g->page_bytes)
		g->page_bytes = least;
	r = kern_gpu_open(&g->kern, g->cu, NULL);
	return r == -ENOTSUP ? 0 : r;
}

int bench_gpu(struct bench *b)
{
	struct gpu g = { .b = b };
	struct loop *l;
	char why[256];
	int ret = cuda_api_open(&g.cu, b->cuda, why, sizeof(why));

	if (ret) {
		bench_note("gpu skipped: %s", why);
		return b->cuda ? ret : 0;
	}
	bench_note("gpu: %s", why);
	ret = start(&g);
	if (ret)
		return ret;
	ret = loop_new(&l);
	if (ret)
		return bench_fail(ret, "gpu: loop: %s", strerror(-ret));
	if (b->pages) {
		ret = bench_gpu_pages(&g);
		goto out;
	}
	ret = bench_gpu_map(&g, l);
	if (!ret)
		ret = copies(&g, l);
	if (!ret)
		ret = attention(&g);
	if (!ret)
		ret = bench_gpu_prefill(&g);
	if (!ret)
		ret = bench_gpu_parked(&g);
out:
	loop_free(l);
	kern_gpu_close(g.kern);
	(void)g.cu->stream_free(g.st); /* the process ends */
	(void)g.cu->ctx_release(g.dev);
	cuda_api_close(g.cu);
	return ret;
}
