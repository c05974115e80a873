/*
 * test_llama_gpu.c - a step on the device against llama_step()
 *
 * Attention is the same function of the host for both, so that what differs is the rest
 * of the step. On the fake driver, or with KVD_GPU=1 on the first device.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvd/model/llama_gpu.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_gpu.h"

#define ROOM   64u /* tokens of the sequence */
#define LAYERS 8u
#define ROWS   48u

static struct rig_gpu g;
static struct cublas *blas;

/* The plainest attention: f32, one contiguous cache. */
struct plain {
	const struct llama_shape *sh;
	uint32_t n_rows;
	int64_t pos[ROWS];
	float *k[LAYERS], *v[LAYERS]; /* [kv head][ROOM][head_dim] */
	float *hq, *hk, *hv, *ho; /* pinned: of the device's step */
	int ret;
};

static size_t n_q(const struct plain *a)
{
	return (size_t)a->sh->n_heads * a->sh->head_dim;
}

static size_t n_kv(const struct plain *a)
{
	return (size_t)a->sh->n_kv_heads * a->sh->head_dim;
}

static void plain_init(struct plain *a, const struct llama_shape *sh)
{
	memset(a, 0, sizeof(*a));
	a->sh = sh;
	for (uint32_t i = 0; i < sh->n_layers; i++) {
		a->k[i] = calloc(ROOM * n_kv(a), 4);
		a->v[i] = calloc(ROOM * n_kv(a), 4);
	}
	a->hq = rig_gpu_alloc(&g, ROWS * n_q(a) * 4);
	a->ho = rig_gpu_alloc(&g, ROWS * n_q(a) * 4);
	a->hk = rig_gpu_alloc(&g, ROWS * n_kv(a) * 4);
	a->hv = rig_gpu_alloc(&g, ROWS * n_kv(a) * 4);
}

static void plain_fini(struct plain *a)
{
	for (uint32_t i = 0; i < LAYERS; i++) {
		free(a->k[i]);
		free(a->v[i]);
	}
}

static void put(const struct plain *a, float *cache, const float *x, int64_t p)
{
	const uint32_t d = a->sh->head_dim;

	for (uint32_t h = 0; h < a->sh->n_kv_heads; h++)
		memcpy(cache + ((size_t)h * ROOM + (size_t)p) * d, x + h * d,
		       d * sizeof(float));
}

static int attn(void *ctx, uint32_t layer, float *q, float *k, float *v,
		float *o)
{
	struct plain *a = ctx;
	const struct llama_shape *sh = a->sh;
	const struct kern_span span = {
		.k = a->k[layer],
		.v = a->v[layer],
		.head_bytes = ROOM * sh->head_dim * sizeof(float),
		.page_tokens = ROOM,
		.n_tokens = (uint32_t)a->pos[a->n_rows - 1] + 1,
	};
	float m[ROWS * 64], l[ROWS * 64];
	const struct kern_attn args = {
		.type = KERN_F32,
		.n_heads = sh->n_heads,
		.n_kv_heads = sh->n_kv_heads,
		.head_dim = sh->head_dim,
		.scale = sh->attn_scale,
		.q = q,
		.q_pos = a->pos,
		.n_rows = a->n_rows,
		.spans = &span,
		.n_spans = 1,
		.o = o,
		.m = m,
		.l = l,
		.kv_head_to = sh->n_kv_heads,
		.row_to = a->n_rows,
	};

	if (a->ret)
		return a->ret;
	kern_rope(&sh->rope, k, k, a->pos, a->n_rows, sh->n_kv_heads,
		  sh->head_dim);
	kern_rope(&sh->rope, q, q, a->pos, a->n_rows, sh->n_heads,
		  sh->head_dim);
	for (uint32_t r = 0; r < a->n_rows; r++) {
		put(a, a->k[layer], k + r * n_kv(a), a->pos[r]);
		put(a, a->v[layer], v + r * n_kv(a), a->pos[r]);
	}
	kern_attn_clear(&args);
	ck_assert_int_eq(kern_attn(&args), 0);
	kern_attn_finish(&args);
	return 0;
}

static int attn_gpu(void *ctx, uint32_t layer, cuda_ptr q, cuda_ptr k,
		    cuda_ptr v, cuda_ptr o, cuda_stream st)
{
	struct plain *a = ctx;
	const size_t nq = a->n_rows * n_q(a) * 4, nkv = a->n_rows * n_kv(a) * 4;
	int ret = kern_errno(g.api->d2h(a->hq, q, nq, st));

	if (!ret)
		ret = kern_errno(g.api->d2h(a->hk, k, nkv, st));
	if (!ret)
		ret = kern_errno(g.api->d2h(a->hv, v, nkv, st));
	if (!ret)
		ret = kern_errno(g.api->stream_sync(st));
	if (!ret)
		ret = attn(a, layer, a->hq, a->hk, a->hv, a->ho);
	return ret ? ret : kern_errno(g.api->h2d(o, a->ho, nq, st));
}

/* ---- models ------------------------------------------------------------------ */

struct pair {
	struct llama *cpu, *host;
	struct llama_gpu *gpu;
	struct llama_scratch *cs;
	struct llama_gpu_scratch *gs;
	struct plain a, b;
};

static void open_pair(struct pair *p, const char *path, enum kern_type math)
{
	const struct llama_gpu_conf c = { g.api, blas, 0, ROWS };
	char err[256] = "";

	memset(p, 0, sizeof(*p));
	ck_assert_msg(!llama_open(&p->cpu, path, math, err, sizeof(err)), "%s",
		      err);
	ck_assert_msg(!llama_gpu_open(&p->gpu, &p->host, &c, path, math, err,
				      sizeof(err)),
		      "%s", err);
	ck_assert_int_eq(llama_scratch_new(&p->cs, p->cpu, ROWS, ROWS), 0);
	ck_assert_int_eq(
		llama_gpu_scratch_new(&p->gs, p->gpu, g.kern, g.stream), 0);
	plain_init(&p->a, llama_shape(p->cpu));
	plain_init(&p->b, llama_shape(p->host));
}

static void close_pair(struct pair *p)
{
	plain_fini(&p->a);
	plain_fini(&p->b);
	llama_scratch_free(p->cs);
	llama_gpu_scratch_free(p->gs);
	llama_gpu_close(p->gpu);
	llama_close(p->host);
	llama_close(p->cpu);
}

static const struct rig_model specs[] = {
	{ .seed = 1, .head_dim = 64, .tied = 1 },
	{ .seed = 2,
	  .head_dim = 96,
	  .n_heads = 2,
	  .n_kv_heads = 1,
	  .types = { KERN_Q8_0, KERN_Q8_0, KERN_Q8_0, KERN_Q8_0 },
	  .embd_type = KERN_Q8_0,
	  .tied = 1 },
	{ .seed = 3,
	  .head_dim = 64,
	  .d_model = 96,
	  .types = { KERN_F32, KERN_Q8_0, KERN_BF16, KERN_F16 },
	  .embd_type = KERN_BF16,
	  .out_type = KERN_F16 },
	{ .seed = 4,
	  .head_dim = 64,
	  .types = { KERN_F16, KERN_F16, KERN_F16, KERN_F16 },
	  .embd_type = KERN_F16,
	  .out_type = KERN_Q8_0 },
};
#define N_SPECS ((int)(sizeof(specs) / sizeof(*specs)))

static const char *spec_path(int i)
{
	static char path[64];

	(void)snprintf(path, sizeof(path), "/tmp/kvd-llama-gpu-%d-%d.gguf",
		       (int)getpid(), i);
	rig_model_write(&specs[i], path);
	return path;
}

static void rows(struct plain *a, uint32_t from, uint32_t n)
{
	a->n_rows = n;
	for (uint32_t i = 0; i < n; i++)
		a->pos[i] = from + i;
}

/* Tokens [from, from + n) on the device; logits of the rows in want. */
static int gpu_step(struct pair *p, const uint32_t *tokens, uint32_t from,
		    uint32_t n, const uint32_t *want, uint32_t n_want,
		    float *logits)
{
	const struct llama_gpu_batch b = {
		.n_rows = n,
		.tokens = tokens + from,
		.n_logits = n_want,
		.logit_rows = want,
		.logits = logits,
		.attn = attn_gpu,
		.ctx = &p->b,
	};

	rows(&p->b, from, n);
	return llama_gpu_step(p->gs, &b);
}

static void cpu_step(struct pair *p, const uint32_t *tokens, uint32_t from,
		     uint32_t n, const uint32_t *want, uint32_t n_want,
		     float *logits)
{
	const struct llama_batch b = {
		.n_rows = n,
		.tokens = tokens + from,
		.n_logits = n_want,
		.logit_rows = want,
		.logits = logits,
		.attn = attn,
		.ctx = &p->a,
	};

	rows(&p->a, from, n);
	ck_assert_int_eq(llama_step(p->cpu, p->cs, NULL, &b), 0);
}

/* Largest difference, over the spread of the row. */
static double off(const float *x, const float *y, uint32_t n)
{
	double sum = 0, sq = 0, most = 0;

	for (uint32_t i = 0; i < n; i++) {
		const double d = fabs((double)x[i] - (double)y[i]);

		sum += (double)x[i];
		sq += (double)x[i] * (double)x[i];
		most = d > most || isnan(d) ? d : most;
	}
	return most / sqrt(sq / n - sum / n * (sum / n));
}

static void compare(const char *path, enum kern_type math, double bound)
{
	static const uint32_t some[] = { 0, 3, 32 }, last[] = { 6 };
	uint32_t tokens[40];
	struct pair p;
	float *x, *y;
	uint32_t n;

	open_pair(&p, path, math);
	n = llama_shape(p.cpu)->n_vocab;
	x = malloc(3 * n * sizeof(*x));
	y = malloc(3 * n * sizeof(*y));
	for (uint32_t i = 0; i < 40; i++)
		tokens[i] = 259 + i * 37 % (n - 259);
	cpu_step(&p, tokens, 0, 33, some, 3, x);
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 33, some, 3, y), 0);
	for (uint32_t i = 0; i < 3; i++)
		ck_assert_double_lt(off(x + i * n, y + i * n, n), bound);
	cpu_step(&p, tokens, 33, 7, last, 1, x);
	ck_assert_int_eq(gpu_step(&p, tokens, 33, 7, last, 1, y), 0);
	ck_assert_double_lt(off(x, y, n), bound);
	printf("%s %s: off by %.2g of the spread\n", path,
	       math == KERN_F32 ? "f32" : "bf16", off(x, y, n));
	free(x);
	free(y);
	close_pair(&p);
}

/* ---- tests ------------------------------------------------------------------- */

#define MINI_KV 128u /* outputs of k and v of rag-mini */

/* _i: math; with cuBLASLt, without, or with one that has nothing for k and v. */
START_TEST(a_trained_model_is_near_the_cpu)
{
	struct cublas *const library = blas;
	const int bf16 = _i % 2;

	if (_i / 2 == 1)
		blas = NULL;
	if (_i / 2 == 2 && g.is_real)
		return;
	if (_i / 2 == 2)
		g.ctl.cublas_refuse(MINI_KV);
	compare(rig_data("models/rag-mini.gguf"), bf16 ? KERN_BF16 : KERN_F32,
		bf16 ? 3e-2 : 2e-5);
	if (!g.is_real)
		g.ctl.cublas_refuse(0);
	blas = library;
}
END_TEST

/* _i: spec, then math */
START_TEST(any_types_are_near_the_cpu)
{
	const char *path = spec_path(_i / 2);

	compare(path, _i % 2 ? KERN_BF16 : KERN_F32, _i % 2 ? 3e-2 : 2e-5);
	(void)unlink(path);
}
END_TEST

START_TEST(a_row_does_not_know_its_batch)
{
	static const uint32_t third[] = { 2 }, first[] = { 0 };
	uint32_t tokens[9];
	float *x, *y;
	struct pair p;
	uint32_t n;

	open_pair(&p, rig_data("models/rag-mini.gguf"), KERN_BF16);
	n = llama_shape(p.cpu)->n_vocab;
	x = malloc(n * sizeof(*x));
	y = malloc(n * sizeof(*y));
	for (uint32_t i = 0; i < 9; i++)
		tokens[i] = 300 + i;
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 9, third, 1, x), 0);
	for (uint32_t i = 0; i < 3; i++)
		ck_assert_int_eq(gpu_step(&p, tokens, i, 1, first, 1, y), 0);
	ck_assert(!memcmp(x, y, n * sizeof(*x)));
	free(x);
	free(y);
	close_pair(&p);
}
END_TEST

START_TEST(ids_tell_where_it_was_computed)
{
	struct cublas *const library = blas;
	const int n = g.is_real ? 5 : 6;
	uint64_t id[6][2];
	struct pair p;

	for (int i = 0; i < 2; i++) {
		open_pair(&p, rig_data("models/rag-mini.gguf"),
			  i ? KERN_BF16 : KERN_F32);
		llama_id(p.cpu, id[i]);
		llama_gpu_id(p.gpu, id[2 + i]);
		ck_assert_uint_gt(llama_gpu_bytes(p.gpu), 1 << 20);
		close_pair(&p);
	}
	blas = NULL;
	open_pair(&p, rig_data("models/rag-mini.gguf"), KERN_BF16);
	llama_gpu_id(p.gpu, id[4]);
	close_pair(&p);
	blas = library;
	if (n > 5) {
		g.ctl.cublas_refuse(MINI_KV);
		open_pair(&p, rig_data("models/rag-mini.gguf"), KERN_BF16);
		llama_gpu_id(p.gpu, id[5]);
		close_pair(&p);
		g.ctl.cublas_refuse(0);
	}
	for (int i = 0; i < n; i++)
		for (int k = 0; k < i; k++)
			ck_assert(memcmp(id[i], id[k], sizeof(id[i])));
}
END_TEST

START_TEST(bad_batches_are_refused)
{
	static const uint32_t twice[] = { 1, 1 }, beyond[] = { 4 };
	uint32_t tokens[ROWS + 1] = { 0 };
	float *x;
	struct pair p;

	open_pair(&p, rig_data("models/rag-draft.gguf"), KERN_BF16);
	x = malloc(2 * llama_shape(p.cpu)->n_vocab * sizeof(*x));
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 4, twice, 2, x), -EINVAL);
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 4, beyond, 1, x), -EINVAL);
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 0, NULL, 0, x), 0);
	tokens[3] = llama_shape(p.cpu)->n_vocab;
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 4, NULL, 0, x), -EINVAL);
	p.b.ret = -ECANCELED;
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 2, NULL, 0, x), -ECANCELED);
	/* only the CPU's arithmetic is refused by what has no weights here */
	ck_assert_int_eq(llama_step(p.host, p.cs, NULL,
				    &(struct llama_batch){ .attn = attn }),
			 -EINVAL);
	free(x);
	close_pair(&p);
}
END_TEST

START_TEST(heads_that_no_kernel_has)
{
	const struct llama_gpu_conf c = { g.api, blas, 0, ROWS };
	const struct rig_model spec = { .seed = 9 }; /* heads of 32 */
	char path[64], err[256] = "";
	struct llama_gpu *m;
	struct llama *host;

	(void)snprintf(path, sizeof(path), "/tmp/kvd-llama-gpu-%d.gguf",
		       (int)getpid());
	rig_model_write(&spec, path);
	ck_assert_int_eq(
		llama_gpu_open(&m, &host, &c, path, KERN_F32, err, sizeof(err)),
		-ENOTSUP);
	ck_assert_msg(strstr(err, "heads of 32"), "%s", err);
	(void)unlink(path);
}
END_TEST

/* Every call of the driver and of the library, once and for good: nothing leaks. */
START_TEST(every_call_fails)
{
	const struct llama_gpu_conf c = { g.api, blas, 0, ROWS };
	const char *path = rig_data("models/rag-draft.gguf");
	static const char *const prefix[] = {
		"cuMemAlloc",	  "cuMemHostAlloc", "cuMemcpy",
		"cuEventCreate",  "cuEventRecord",  "cuEventSync",
		"cuStreamCreate", "cuStreamSync"
	};
	char err[256];
	int n_failed = 0;

	for (size_t k = 0; k < sizeof(prefix) / sizeof(*prefix); k++)
		for (uint64_t nth = 1; nth < 100; nth += 1 + nth / 8) {
			struct llama_gpu_scratch *s = NULL;
			struct llama_gpu *m = NULL;
			struct llama *host = NULL;
			int ret;

			g.ctl.arm(FAKE_ONCE, prefix[k], nth,
				  CUDA_OUT_OF_MEMORY);
			ret = llama_gpu_open(&m, &host, &c, path, KERN_BF16,
					     err, sizeof(err));
			if (ret)
				ck_assert_msg(err[0] != 0, "no reason");
			if (!ret)
				ret = llama_gpu_scratch_new(&s, m, g.kern,
							    g.stream);
			n_failed += !!ret;
			g.ctl.arm(FAKE_OFF, "", 0, 0);
			llama_gpu_scratch_free(s);
			llama_gpu_close(m);
			llama_close(host);
		}
	ck_assert_int_gt(n_failed, 15);
}
END_TEST

/* An attention that is queued whole: o is q. */
static int attn_copy_q(void *ctx, uint32_t layer, cuda_ptr q, cuda_ptr k,
		       cuda_ptr v, cuda_ptr o, cuda_stream st)
{
	const struct gpu_convert a = { q, o, *(const size_t *)ctx };

	(void)layer;
	(void)k;
	(void)v;
	return kern_gpu_from_f32(g.kern, KERN_F32, &a, st);
}

/* Rows end before some layers, and in the last one those without logits: the others' bits do
 * not change. _i: types */
START_TEST(rows_that_end)
{
	static const uint32_t some[] = { 0, 2, 3, 7, 8, 9 }, few[] = { 1, 5 };
	static const uint32_t want[] = { 2, 9 }, left[] = { 0, 1 };
	static const uint32_t all[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
	const struct llama_gpu_narrow to[] = { { 1, 6, some }, { 2, 2, few } };
	char path[64];
	uint32_t tokens[10];
	float *x, *y;
	struct pair p;
	size_t n, n_elems;

	(void)snprintf(path, sizeof(path), "/tmp/kvd-llama-gpu-%d-end.gguf",
		       (int)getpid());
	rig_model_write(&(struct rig_model){ .n_layers = 4, .head_dim = 64 },
			path);
	open_pair(&p, path, _i ? KERN_BF16 : KERN_F32);
	(void)unlink(path);
	n = llama_shape(p.host)->n_vocab;
	n_elems = 10 * n_q(&p.a);
	x = malloc(10 * n * sizeof(*x));
	y = malloc(2 * n * sizeof(*y));
	for (uint32_t i = 0; i < 10; i++)
		tokens[i] = 300 + i;
	for (int turn = 0; turn < 5; turn++) {
		/* all; at the end; before layers; both; none is wanted */
		struct llama_gpu_batch b = { .n_rows = 10,
					     .tokens = tokens,
					     .n_logits = turn ? 2 : 10,
					     .logit_rows = !turn      ? all
							   : turn > 1 ? left
								      : want,
					     .narrow = to,
					     .n_narrow = turn > 1 ? 2 : 0,
					     .logits = turn ? y : x,
					     .attn = attn_copy_q,
					     .ctx = &n_elems };

		if (turn == 1 || turn > 2)
			b.last = LLAMA_GPU_WANTED_ROWS;
		if (turn == 4)
			b.n_logits = 0;
		ck_assert_int_eq(llama_gpu_step(p.gs, &b), 0);
		for (uint32_t i = 0; turn && i < b.n_logits; i++)
			ck_assert(!memcmp(y + i * n, x + want[i] * n,
					  n * sizeof(*x)));
		memset(y, 0, 2 * n * sizeof(*y));
		b.n_narrow = 2;
		b.n_logits = 1;
		b.logit_rows = want; /* there are two rows left */
		ck_assert_int_eq(llama_gpu_step(p.gs, &b), -EINVAL);
		b.n_logits = 0;
		b.key.w[0] = 1;
		ck_assert_int_eq(llama_gpu_step(p.gs, &b), -EINVAL);
	}
	free(x);
	free(y);
	close_pair(&p);
}
END_TEST

/*
 * Steps of one key: first as ever, then captured; the same bits. What cannot be captured is not
 * tried again, and costs nothing but that.
 */
START_TEST(steps_that_are_alike)
{
	static const uint32_t both[] = { 0, 1 };
	static const char *const failing[] = { "", "cuStreamBeginCapture",
					       "cuStreamEndCapture",
					       "cuGraphInstantiate" };
	uint32_t tokens[2] = { 300, 301 };
	float *x, *y;
	struct pair p;
	size_t n_elems;
	uint32_t n;

	open_pair(&p, rig_data("models/rag-draft.gguf"), KERN_BF16);
	n = llama_shape(p.cpu)->n_vocab;
	n_elems = 2 * n_q(&p.b);
	x = malloc(2 * n * sizeof(*x));
	y = malloc(2 * n * sizeof(*y));
	for (uint32_t k = 0; k < 4; k++) {
		struct llama_gpu_batch b = { .n_rows = 2,
					     .tokens = tokens,
					     .n_logits = 2,
					     .logit_rows = both,
					     .logits = x,
					     .attn = attn_copy_q,
					     .ctx = &n_elems };
		const uint64_t before = llama_gpu_scratch_n_graphs(p.gs);

		ck_assert_int_eq(llama_gpu_step(p.gs, &b), 0);
		b.key.w[0] = 2;
		b.key.w[1] = k;
		b.logits = y;
		if (k)
			g.ctl.arm(FAKE_FOREVER, failing[k], 1,
				  CUDA_OUT_OF_MEMORY);
		for (int i = 0; i < 4; i++) {
			memset(y, 0, 2 * n * sizeof(*y));
			ck_assert_int_eq(llama_gpu_step(p.gs, &b), 0);
			ck_assert(!memcmp(x, y, 2 * n * sizeof(*x)));
		}
		g.ctl.arm(FAKE_OFF, "", 0, 0);
		ck_assert_uint_eq(llama_gpu_scratch_n_graphs(p.gs) - before,
				  k ? 0 : 3);
		/* padding is computed, and nobody's */
		memset(y, 0, 2 * n * sizeof(*y));
		b.n_nobody = 1;
		ck_assert_int_eq(llama_gpu_step(p.gs, &b), 0);
		ck_assert(!memcmp(x, y, n * sizeof(*x)));
		ck_assert(y[n] == 0 && y[2 * n - 1] == 0);
		llama_gpu_scratch_graphs(p.gs, 1);
	}
	/* more keys than are kept */
	for (uint32_t k = 0; k < 60; k++) {
		struct llama_gpu_batch b = { .n_rows = 1,
					     .tokens = tokens,
					     .attn = attn_copy_q,
					     .ctx = &n_elems };

		b.key.w[0] = 1;
		b.key.w[2] = k / 2;
		ck_assert_int_eq(llama_gpu_step(p.gs, &b), 0);
	}
	free(x);
	free(y);
	close_pair(&p);
}
END_TEST

/* As the host would from the same logits; with and without those, in slices, as a graph. */
START_TEST(tokens_are_chosen_there)
{
	uint32_t tokens[70], all[70], chosen[70];
	struct gpu_sampler how[70];
	float *x, *scratch, logprob[70], lp;
	const struct llama_gpu_conf c = { g.api, blas, 0, 70 };
	struct llama_gpu_scratch *s;
	struct llama_gpu *m;
	struct llama *host;
	char err[256];
	size_t n_elems;
	uint32_t n;

	ck_assert_int_eq(llama_gpu_open(&m, &host, &c,
					rig_data("models/rag-draft.gguf"),
					KERN_BF16, err, sizeof(err)),
			 0);
	ck_assert_int_eq(llama_gpu_scratch_new(&s, m, g.kern, g.stream), 0);
	n = llama_shape(host)->n_vocab;
	n_elems = 70 * (size_t)llama_shape(host)->n_heads *
		  llama_shape(host)->head_dim;
	x = malloc(70 * n * sizeof(*x));
	scratch = malloc(2 * n * sizeof(*scratch));
	for (uint32_t i = 0; i < 70; i++) {
		tokens[i] = 300 + i;
		all[i] = i;
		how[i] = (struct gpu_sampler){ .temperature =
						       (float)(i % 3) * 0.5f,
					       .top_k = i % 5 ? 40 : 0,
					       .top_p = i % 2 ? 0.9f : 1,
					       .seed = i,
					       .pos = 7 * i };
	}
	for (int turn = 0; turn < 5; turn++) {
		const uint32_t k = turn ? 5 : 70;
		const size_t some = n_elems / 70 * k;
		struct llama_gpu_batch b = { .n_rows = k,
					     .tokens = tokens,
					     .n_logits = k,
					     .logit_rows = all,
					     .logits = turn ? NULL : x,
					     .how = how,
					     .chosen = chosen,
					     .logprob = logprob,
					     .attn = attn_copy_q,
					     .ctx = (void *)(uintptr_t)&some };

		b.key.w[0] = turn > 1 ? k : 0;
		memset(chosen, 0xff, sizeof(chosen));
		ck_assert_int_eq(llama_gpu_step(s, &b), 0);
		for (uint32_t i = 0; i < k; i++) {
			const struct kern_sample p = {
				how[i].temperature, how[i].top_k, how[i].top_p,
				how[i].min_p,	    how[i].seed,  how[i].pos
			};

			ck_assert_uint_eq(chosen[i],
					  kern_sample(&p, x + (size_t)i * n, n,
						      scratch, &lp));
			ck_assert_float_eq_tol(logprob[i], lp, 1e-4f);
		}
	}
	ck_assert_uint_eq(llama_gpu_scratch_n_graphs(s), 2);
	free(x);
	free(scratch);
	llama_gpu_scratch_free(s);
	llama_gpu_close(m);
	llama_close(host);
}
END_TEST

START_TEST(the_device_is_lost)
{
	static const uint32_t one[] = { 0 };
	uint32_t tokens[4] = { 300, 301, 302, 303 };
	struct pair p;
	float *x;

	open_pair(&p, rig_data("models/rag-draft.gguf"), KERN_BF16);
	x = malloc(llama_shape(p.cpu)->n_vocab * sizeof(*x));
	g.ctl.fail_op(7, CUDA_ILLEGAL_ADDRESS, 1);
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 4, one, 1, x), -ENODEV);
	ck_assert_int_eq(gpu_step(&p, tokens, 0, 4, one, 1, x), -ENODEV);
	free(x);
	close_pair(&p);
	cublas_close(blas);
	blas = NULL;
	kern_gpu_close(g.kern);
	rig_cuda_drop(g.api, &g.ctl);
	g.api = NULL;
}
END_TEST

static void setup(void)
{
	char why[256];

	rig_gpu_open_with(&g, 64 << 20);
	kern_init(KERN_ISA_AMX);
	ck_assert_msg(!cublas_open(&blas, g.is_real ? NULL : rig_cuda_path(),
				   why, sizeof(why)),
		      "%s", why);
}

static void teardown(void)
{
	cublas_close(blas);
	if (g.api)
		rig_gpu_close(&g);
}

int main(void)
{
	Suite *s = suite_create("llama_gpu");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, a_trained_model_is_near_the_cpu, 0, 6);
	tcase_add_loop_test(t, any_types_are_near_the_cpu, 0, 2 * N_SPECS);
	tcase_add_test(t, a_row_does_not_know_its_batch);
	tcase_add_test(t, ids_tell_where_it_was_computed);
	tcase_add_test(t, bad_batches_are_refused);
	tcase_add_test(t, heads_that_no_kernel_has);
	tcase_add_test(t, tokens_are_chosen_there);
	tcase_add_loop_test(t, rows_that_end, 0, 2);
	if (!getenv("KVD_GPU")) {
		tcase_add_test(t, every_call_fails);
		tcase_add_test(t, steps_that_are_alike);
		tcase_add_test(t, the_device_is_lost);
	}
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
