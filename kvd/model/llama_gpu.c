/*
 * llama_gpu.c - one step of a batch through the layers, on a stream; see llama_gpu.h
 *
 *   embed -> per layer: rows that end leave
 *                       norm -> q,k,v -> attn (the caller's) -> +o
 *                       norm -> gate,up,swiglu -> +down
 *         -> norm and output of the logit rows, LLAMA_GPU_LOGIT_ROWS at a time
 *
 * Everything of a step is queued in order on one stream; the host waits for logits only.
 */
#include "kvd/model/llama_gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/model/llama_gpu_priv.h"

/* f32 unless said; x and act are h and gate when all is f32. */
struct llama_gpu_scratch {
	const struct llama_gpu *m;
	const struct cuda_api *api;
	struct kern_gpu *kern;
	cuda_stream stream;
	struct llama_gpu_plans plans;
	struct gpu_graphs graphs;
	cuda_ptr workspace;
	cuda_ptr idx; /* uint32_t: tokens, rows of logits, rows that go on */
	cuda_ptr res, h; /* [max_rows][d_model] */
	cuda_ptr q, k, v, o;
	cuda_ptr gate, up; /* [max_rows][n_ff] */
	cuda_ptr x; /* math [max_rows][max(d_model, n_heads * head_dim)] */
	cuda_ptr act; /* math [max_rows][n_ff] */
	cuda_ptr logits; /* [LLAMA_GPU_LOGIT_ROWS][n_vocab] */
	cuda_ptr room; /* uint32_t, as logits: of choosing */
	cuda_ptr how; /* struct gpu_sampler [max_rows] */
	cuda_ptr choice; /* uint32_t token, then f32 logprob: [2][max_rows] */
	uint32_t *host_idx; /* pinned, as idx */
	float *host_logits; /* pinned, as logits */
	struct gpu_sampler *host_how; /* pinned, as how */
	uint32_t *host_choice; /* pinned, as choice */
	cuda_ptr allocs[20];
	uint32_t n_allocs;
};

/* ---- scratch ---------------------------------------------------------------- */

static int take(struct llama_gpu_scratch *s, cuda_ptr *out, size_t n_elems,
		size_t elem_bytes)
{
	const struct cuda_api *cu = s->api;
	const int ret = kern_errno(cu->alloc(out, n_elems * elem_bytes));

	if (!ret)
		s->allocs[s->n_allocs++] = *out;
	return ret;
}

/* Rows that go on: at most once for each layer. */
static size_t idx_room(const struct llama_gpu *m)
{
	return (2 + (size_t)m->sh.n_layers) * m->max_rows;
}

static int take_all(struct llama_gpu_scratch *s)
{
	const struct llama_shape *sh = &s->m->sh;
	const size_t q = (size_t)sh->n_heads * sh->head_dim;
	const size_t kv = (size_t)sh->n_kv_heads * sh->head_dim;
	const size_t n = s->m->max_rows, d = sh->d_model, f = sizeof(float);
	const size_t x = d > q ? d : q;
	const struct {
		cuda_ptr *out;
		size_t n, elem_bytes;
	} list[] = {
		{ &s->workspace, LLAMA_GPU_WORKSPACE, 1 },
		{ &s->idx, idx_room(s->m), sizeof(uint32_t) },
		{ &s->res, n * d, f },
		{ &s->h, n * d, f },
		{ &s->q, n * q, f },
		{ &s->k, n * kv, f },
		{ &s->v, n * kv, f },
		{ &s->o, n * q, f },
		{ &s->gate, n * sh->n_ff, f },
		{ &s->up, n * sh->n_ff, f },
		{ &s->logits, (size_t)LLAMA_GPU_LOGIT_ROWS * sh->n_vocab, f },
		{ &s->room, (size_t)LLAMA_GPU_LOGIT_ROWS * sh->n_vocab, f },
		{ &s->how, n, sizeof(struct gpu_sampler) },
		{ &s->choice, 2 * n, sizeof(uint32_t) },
		{ &s->x, n * x, sizeof(uint16_t) },
		{ &s->act, n * sh->n_ff, sizeof(uint16_t) },
	};
	/* the last two are only of bf16 */
	const size_t n_list =
		sizeof(list) / sizeof(*list) - (sh->math == KERN_BF16 ? 0 : 2);
	int ret = 0;

	for (size_t i = 0; i < n_list && !ret; i++)
		ret = take(s, list[i].out, list[i].n, list[i].elem_bytes);
	return ret;
}

static int pinned(struct llama_gpu_scratch *s, size_t n, void **out)
{
	return kern_errno(s->api->host_alloc(out, n, CUDA_HOST_PORTABLE));
}

static int take_host(struct llama_gpu_scratch *s)
{
	const size_t n = s->m->max_rows;
	const size_t logits = (size_t)LLAMA_GPU_LOGIT_ROWS * s->m->sh.n_vocab;
	void *p[4] = { NULL };
	int ret = pinned(s, idx_room(s->m) * sizeof(*s->host_idx), &p[0]);

	if (!ret)
		ret = pinned(s, logits * sizeof(*s->host_logits), &p[1]);
	if (!ret)
		ret = pinned(s, n * sizeof(*s->host_how), &p[2]);
	if (!ret)
		ret = pinned(s, 2 * n * sizeof(*s->host_choice), &p[3]);
	s->host_idx = p[0];
	s->host_logits = p[1];
	s->host_how = p[2];
	s->host_choice = p[3];
	return ret;
}

int llama_gpu_scratch_new(struct llama_gpu_scratch **out,
			  const struct llama_gpu *m, struct kern_gpu *kern,
			  cuda_stream stream)
{
	struct llama_gpu_scratch *s;
	int ret;

	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->m = m;
	s->api = s->graphs.api = m->api;
	s->kern = kern;
	s->stream = stream;
	ret = llama_gpu_plans_new(&s->plans, m);
	if (!ret)
		ret = take_all(s);
	if (!ret)
		ret = take_host(s);
	if (ret) {
		llama_gpu_scratch_free(s);
		return ret;
	}
	*out = s;
	return 0;
}

/* What a lost device does not take back is gone with it. */
void llama_gpu_scratch_free(struct llama_gpu_scratch *s)
{
	if (!s)
		return;
	gpu_graphs_fini(&s->graphs);
	while (s->n_allocs)
		(void)s->api->free(s->allocs[--s->n_allocs]);
	void *const host[] = { s->host_idx, s->host_logits, s->host_how,
			       s->host_choice };
	for (size_t i = 0; i < sizeof(host) / sizeof(*host); i++)
		if (host[i])
			(void)s->api->host_free(host[i]);
	llama_gpu_plans_free(&s->plans);
	free(s);
}

/* ---- phases ------------------------------------------------------------------ */

struct product {
	enum llama_gpu_role role;
	const struct llama_gpu_matrix *w;
	uint32_t flags; /* GPU_GEMM_ADD: y += x W^T */
};

static int linear(struct llama_gpu_scratch *s, struct product p, cuda_ptr x,
		  cuda_ptr y, uint32_t n_rows)
{
	const struct gpu_gemm a = {
		.x = x,
		.w = p.w->at,
		.y = y,
		.x_stride = p.w->n_in,
		.y_stride = p.w->n_out,
		.n_rows = n_rows,
		.n_out = p.w->n_out,
		.n_in = p.w->n_in,
		.flags = p.flags,
	};

	if (!s->plans.p[p.role])
		return kern_gpu_gemm(s->kern, s->m->sh.math, &a, s->stream);
	return cublas_gemm(s->plans.p[p.role], &a, s->workspace, s->stream);
}

/* f32 rows to what matrices take; *x says where they are then. */
static int typed(struct llama_gpu_scratch *s, cuda_ptr from, cuda_ptr to,
		 size_t n, cuda_ptr *x)
{
	const struct gpu_convert a = { from, to, n };

	*x = from;
	if (s->m->sh.math == KERN_F32)
		return 0;
	*x = to;
	return kern_gpu_from_f32(s->kern, s->m->sh.math, &a, s->stream);
}

/* Rows of the residual (at from), normed into h, then typed. */
static int normed(struct llama_gpu_scratch *s, cuda_ptr from, cuda_ptr norm,
		  uint32_t n_rows, cuda_ptr *x)
{
	const uint32_t d = s->m->sh.d_model;
	const struct gpu_rmsnorm a = {
		.x = from,
		.w = norm,
		.y = s->h,
		.n_rows = n_rows,
		.n = d,
		.eps = s->m->sh.norm_eps,
	};
	const int ret = kern_gpu_rmsnorm(s->kern, &a, s->stream);

	return ret ? ret : typed(s, s->h, s->x, (size_t)n_rows * d, x);
}

/* Where the step is: rows that are left. */
struct run {
	struct llama_gpu_scratch *s;
	const struct llama_gpu_batch *b;
	uint32_t n_rows;
	cuda_ptr x; /* the rows of logits */
};

/* Rows [n] of those that are left, at idx of the scratch, go on. */
static int keep_rows(struct run *r, size_t idx, uint32_t n)
{
	struct llama_gpu_scratch *s = r->s;
	const struct gpu_gather a = {
		.table = s->res,
		.idx = s->idx + idx * sizeof(uint32_t),
		.y = s->h,
		.n_rows = n,
		.n = s->m->sh.d_model,
	};
	const struct gpu_convert back = { s->h, s->res, (uint64_t)n * a.n };
	const int ret = kern_gpu_gather(s->kern, KERN_F32, &a, s->stream);

	r->n_rows = n;
	return ret ? ret : kern_gpu_to_f32(s->kern, KERN_F32, &back, s->stream);
}

/* Of all rows, before those that go on are told apart. */
static int keys_and_values(const struct run *r, uint32_t i, cuda_ptr x)
{
	struct llama_gpu_scratch *s = r->s;
	const struct llama_gpu_layer *y = &s->m->layers[i];
	const int ret = linear(s, (struct product){ PLAN_KV, &y->k, 0 }, x,
			       s->k, r->n_rows);

	return ret ? ret
		   : linear(s, (struct product){ PLAN_KV, &y->v, 0 }, x, s->v,
			    r->n_rows);
}

/* Is it the layer behind whose K and V only rows go on whose logits are wanted? */
static int only_wanted(const struct run *r, uint32_t i)
{
	return r->b->last == LLAMA_GPU_WANTED_ROWS &&
	       i + 1 == r->s->m->sh.n_layers && r->b->n_logits < r->n_rows;
}

static int attention(struct run *r, uint32_t i)
{
	struct llama_gpu_scratch *s = r->s;
	const struct llama_gpu_batch *b = r->b;
	const struct llama_gpu_layer *y = &s->m->layers[i];
	const size_t q = (size_t)s->m->sh.n_heads * s->m->sh.head_dim;
	const struct product of_q = { PLAN_Q, &y->q, 0 };
	const int wanted = only_wanted(r, i);
	cuda_ptr x;
	int ret = normed(s, s->res, y->attn_norm, r->n_rows, &x);

	if (!ret && !wanted)
		ret = linear(s, of_q, x, s->q, r->n_rows);
	if (!ret)
		ret = keys_and_values(r, i, x);
	if (!ret && wanted) {
		ret = keep_rows(r, b->n_rows, b->n_logits);
		if (!ret && r->n_rows)
			ret = normed(s, s->res, y->attn_norm, r->n_rows, &x);
		if (!ret && r->n_rows)
			ret = linear(s, of_q, x, s->q, r->n_rows);
	}
	if (!ret)
		ret = b->attn(b->ctx, i, s->q, s->k, s->v, s->o, s->stream);
	if (ret || !r->n_rows)
		return ret;
	ret = typed(s, s->o, s->x, r->n_rows * q, &x);
	return ret ? ret
		   : linear(s, (struct product){ PLAN_O, &y->o, GPU_GEMM_ADD },
			    x, s->res, r->n_rows);
}

static int ffn(const struct run *r, uint32_t i)
{
	struct llama_gpu_scratch *s = r->s;
	const struct llama_gpu_layer *y = &s->m->layers[i];
	const size_t n = (size_t)r->n_rows * s->m->sh.n_ff;
	const struct gpu_swiglu a = { s->gate, s->up, s->gate, n };
	cuda_ptr x;
	int ret = normed(s, s->res, y->ffn_norm, r->n_rows, &x);

	if (!ret)
		ret = linear(s, (struct product){ PLAN_FF, &y->gate, 0 }, x,
			     s->gate, r->n_rows);
	if (!ret)
		ret = linear(s, (struct product){ PLAN_FF, &y->up, 0 }, x,
			     s->up, r->n_rows);
	if (!ret)
		ret = kern_gpu_swiglu(s->kern, &a, s->stream);
	if (!ret)
		ret = typed(s, s->gate, s->act, n, &x);
	return ret ? ret
		   : linear(s,
			    (struct product){ PLAN_DOWN, &y->down,
					      GPU_GEMM_ADD },
			    x, s->res, r->n_rows);
}

/* ---- the step ------------------------------------------------------------------ */

static int ascend(const uint32_t *list, uint32_t n, uint32_t below)
{
	for (uint32_t i = 0; i < n; i++)
		if (list[i] >= below || (i && list[i] <= list[i - 1]))
			return 0;
	return 1;
}

static int check_batch(const struct llama_gpu_scratch *s,
		       const struct llama_gpu_batch *b)
{
	uint32_t n = b->n_rows;

	if (b->n_rows > s->m->max_rows || b->n_logits > b->n_rows || !b->attn ||
	    b->n_nobody > b->n_logits ||
	    (b->how && s->m->sh.n_vocab > GPU_SAMPLE_MAX) ||
	    (b->key.w[0] && b->n_logits > LLAMA_GPU_LOGIT_ROWS))
		return -EINVAL;
	if (b->key.w[0] && (b->n_narrow || b->last != LLAMA_GPU_ALL_ROWS))
		return -EINVAL;
	for (uint32_t i = 0; i < b->n_rows; i++)
		if (b->tokens[i] >= s->m->sh.n_vocab)
			return -EINVAL;
	for (uint32_t i = 0; i < b->n_narrow; i++) {
		const struct llama_gpu_narrow *x = &b->narrow[i];

		if ((i && x->layer <= x[-1].layer) ||
		    x->layer >= s->m->sh.n_layers ||
		    !ascend(x->rows, x->n_rows, n))
			return -EINVAL;
		n = x->n_rows;
	}
	return ascend(b->logit_rows, b->n_logits, n) ? 0 : -EINVAL;
}

/* Tokens and rows to the device. */
static int upload(struct llama_gpu_scratch *s, const struct llama_gpu_batch *b)
{
	const size_t n = b->n_rows;
	size_t end = n + b->n_logits;
	int ret;

	memcpy(s->host_idx, b->tokens, n * sizeof(*b->tokens));
	if (b->n_logits)
		memcpy(s->host_idx + n, b->logit_rows,
		       b->n_logits * sizeof(*b->logit_rows));
	for (uint32_t i = 0; i < b->n_narrow; i++) {
		const struct llama_gpu_narrow *x = &b->narrow[i];

		memcpy(s->host_idx + end, x->rows,
		       x->n_rows * sizeof(*x->rows));
		end += x->n_rows;
	}
	ret = kern_errno(s->api->h2d(s->idx, s->host_idx,
				     end * sizeof(*s->host_idx), s->stream));
	if (ret || !b->how || !b->n_logits)
		return ret;
	memcpy(s->host_how, b->how, b->n_logits * sizeof(*b->how));
	return kern_errno(s->api->h2d(
		s->how, s->host_how, b->n_logits * sizeof(*b->how), s->stream));
}

/* Embeddings of the tokens into the residual. */
static int embed(struct llama_gpu_scratch *s, const struct llama_gpu_batch *b)
{
	const struct gpu_gather a = {
		.table = s->m->embd.at,
		.idx = s->idx,
		.y = s->res,
		.n_rows = b->n_rows,
		.n = s->m->sh.d_model,
	};

	return kern_gpu_gather(s->kern, s->m->embd_type, &a, s->stream);
}

/* The rows whose logits are wanted, normed, typed; no others are left, or all are. */
static int last_rows(struct run *r)
{
	struct llama_gpu_scratch *s = r->s;
	const struct llama_gpu_batch *b = r->b;
	const struct gpu_gather a = {
		.table = s->res,
		.idx = s->idx + b->n_rows * sizeof(uint32_t),
		.y = s->h,
		.n_rows = b->n_logits,
		.n = s->m->sh.d_model,
	};
	int ret;

	if (b->last == LLAMA_GPU_WANTED_ROWS && r->n_rows == b->n_logits)
		return normed(s, s->res, s->m->norm, b->n_logits, &r->x);
	ret = kern_gpu_gather(s->kern, KERN_F32, &a, s->stream);
	return ret ? ret : normed(s, s->h, s->m->norm, b->n_logits, &r->x);
}

/* A token for each of n rows of logits, rows from on of the batch. */
static int choose(struct llama_gpu_scratch *s, uint32_t from, uint32_t n)
{
	const size_t most = s->m->max_rows, f = sizeof(float);
	const struct gpu_sample a = {
		.logits = s->logits,
		.how = s->how + from * sizeof(struct gpu_sampler),
		.scratch = s->room,
		.token = s->choice + from * f,
		.logprob = s->choice + (most + from) * f,
		.n_rows = n,
		.n = s->m->sh.n_vocab,
	};
	int ret = kern_gpu_sample(s->kern, &a, s->stream);

	if (!ret)
		ret = kern_errno(s->api->d2h(s->host_choice + from, a.token,
					     n * f, s->stream));
	if (!ret)
		ret = kern_errno(s->api->d2h(s->host_choice + most + from,
					     a.logprob, n * f, s->stream));
	return ret;
}

/* Logits of rows [from, from + n) of x, and what is wanted of them, to pinned memory. */
static int queue_logits(struct llama_gpu_scratch *s,
			const struct llama_gpu_batch *b, cuda_ptr x,
			uint32_t from, uint32_t n)
{
	const struct llama_shape *sh = &s->m->sh;
	const size_t row = (size_t)sh->d_model * kern_type_bytes(sh->math);
	const struct product p = { PLAN_OUT, &s->m->output, 0 };
	int ret = linear(s, p, x + from * row, s->logits, n);

	if (!ret && b->how)
		ret = choose(s, from, n);
	if (ret || !b->logits)
		return ret;
	return kern_errno(s->api->d2h(s->host_logits, s->logits,
				      n * (size_t)sh->n_vocab * sizeof(float),
				      s->stream));
}

static uint32_t at_most(uint32_t n)
{
	return n < LLAMA_GPU_LOGIT_ROWS ? n : LLAMA_GPU_LOGIT_ROWS;
}

/* All of a step up to the first logits. */
static int queue(void *arg)
{
	struct run *r = arg;
	struct llama_gpu_scratch *s = r->s;
	const struct llama_gpu_batch *b = r->b;
	const struct llama_gpu_narrow *next = b->narrow;
	size_t idx = (size_t)b->n_rows + b->n_logits;
	int ret = embed(s, b);

	r->n_rows = b->n_rows;
	for (uint32_t i = 0; i < s->m->sh.n_layers && !ret && r->n_rows; i++) {
		if (next < b->narrow + b->n_narrow && next->layer == i) {
			ret = keep_rows(r, idx, next->n_rows);
			idx += next++->n_rows;
		}
		if (!ret && r->n_rows)
			ret = attention(r, i);
		if (!ret && r->n_rows)
			ret = ffn(r, i);
	}
	if (ret || !b->n_logits)
		return ret;
	ret = last_rows(r);
	return ret ? ret : queue_logits(s, b, r->x, 0, at_most(b->n_logits));
}

static int take_choice(const struct run *r, uint32_t n)
{
	const uint32_t *from = r->s->host_choice;

	memcpy(r->b->chosen, from, n * sizeof(*from));
	memcpy(r->b->logprob, from + r->s->m->max_rows, n * sizeof(*from));
	for (uint32_t i = 0; i < n; i++)
		if (from[i] >= r->s->m->sh.n_vocab)
			return -EIO; /* of numbers that are none */
	return 0;
}

/* Those that are there, then the rest in turns. */
static int take_logits(const struct run *r)
{
	struct llama_gpu_scratch *s = r->s;
	const size_t n_vocab = s->m->sh.n_vocab;
	const uint32_t wanted = r->b->n_logits - r->b->n_nobody;
	int ret = 0;

	for (uint32_t i = 0, n; i < wanted && !ret; i += n) {
		n = at_most(wanted - i);
		if (i)
			ret = queue_logits(s, r->b, r->x, i, n);
		if (!ret)
			ret = kern_errno(s->api->stream_sync(s->stream));
		if (!ret && r->b->logits)
			memcpy(r->b->logits + i * n_vocab, s->host_logits,
			       n * n_vocab * sizeof(float));
	}
	return ret || !r->b->how ? ret : take_choice(r, wanted);
}

int llama_gpu_step(struct llama_gpu_scratch *s, const struct llama_gpu_batch *b)
{
	struct run r = { .s = s, .b = b };
	struct llama_gpu_key key = b->key;
	int ret = check_batch(s, b), end;

	key.w[5] = (b->logits ? 1u : 0) | (b->how ? 2u : 0);
	if (ret || !b->n_rows)
		return ret;
	ret = upload(s, b);
	if (!ret)
		ret = gpu_graphs_run(&s->graphs, &key, s->stream, queue, &r);
	if (!ret)
		ret = take_logits(&r);
	end = kern_errno(s->api->stream_sync(s->stream));
	return ret ? ret : end;
}

void llama_gpu_scratch_graphs(struct llama_gpu_scratch *s, int allowed)
{
	s->graphs.off = !allowed;
}

uint64_t llama_gpu_scratch_n_graphs(const struct llama_gpu_scratch *s)
{
	return s->graphs.n_launched;
}
