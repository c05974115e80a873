/*
 * llama_gpu_load.c - weights out of a GGUF into device memory; see llama_gpu.h
 *
 * The file's tensors come one by one (llama_open_to()), are converted in pieces into a
 * pinned buffer, and copied from there: one piece on its way while the next is converted.
 */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/base/log.h"
#include "kvd/model/llama_gpu_priv.h"
#include "kvd/model/weights.h"

#define PIECE_BYTES  (4u << 20)
#define N_PIECES     2u
#define TYPICAL_ROWS 64u /* of a step: what algorithms are chosen for */

struct load {
	struct llama_gpu *m;
	int device;
	cuda_stream st;
	char *pieces; /* pinned [N_PIECES][PIECE_BYTES] */
	cuda_event sent[N_PIECES];
	uint32_t turn;
	float *row; /* [n_in] of the widest matrix so far */
	size_t n_row;
	char *err;
	size_t err_len;
};

/* ---- bytes to the device ---------------------------------------------------------- */

static int keep(struct llama_gpu *m, cuda_ptr at, size_t n)
{
	if (m->n_allocs == m->n_room) {
		const uint32_t room = 2 * m->n_room + 16;
		cuda_ptr *p = realloc(m->allocs, room * sizeof(*p));

		if (!p)
			return -ENOMEM;
		m->allocs = p;
		m->n_room = room;
	}
	m->allocs[m->n_allocs++] = at;
	m->n_bytes += n;
	return 0;
}

static int room(struct load *l, cuda_ptr *out, size_t n)
{
	const struct cuda_api *cu = l->m->api;
	int ret = kern_errno(cu->alloc(out, n));

	if (ret == -ENOMEM) {
		(void)snprintf(l->err, l->err_len,
			       "device memory is full: %zu bytes more", n);
		return -ENOSPC;
	}
	if (ret)
		return ret;
	ret = keep(l->m, *out, n);
	if (ret)
		(void)cu->free(*out);
	return ret;
}

/* The next piece, when what it had is copied. */
static int piece(struct load *l, char **out)
{
	*out = l->pieces + (size_t)l->turn * PIECE_BYTES;
	return kern_errno(l->m->api->event_sync(l->sent[l->turn]));
}

static int send(struct load *l, cuda_ptr to, size_t n)
{
	const struct cuda_api *cu = l->m->api;
	const char *from = l->pieces + (size_t)l->turn * PIECE_BYTES;
	int ret = kern_errno(cu->h2d(to, from, n, l->st));

	if (!ret)
		ret = kern_errno(cu->event_record(l->sent[l->turn], l->st));
	l->turn = (l->turn + 1) % N_PIECES;
	return ret;
}

/* ---- matrices ---------------------------------------------------------------------- */

static int widest(struct load *l, uint32_t n)
{
	float *p;

	if (n <= l->n_row)
		return 0;
	p = realloc(l->row, n * sizeof(*p));
	if (!p)
		return -ENOMEM;
	l->row = p;
	l->n_row = n;
	return 0;
}

static size_t src_row_bytes(const struct kern_matrix *src)
{
	if (src->type == KERN_Q8_0)
		return src->n_in / 32 * 34; /* int8 and a scale a block */
	return src->n_in * kern_type_bytes(src->type);
}

static void convert_row(struct load *l, const struct kern_matrix *src,
			uint32_t r, enum kern_type to, void *out)
{
	const size_t n = src_row_bytes(src);
	const char *from = (const char *)src->data + r * n;

	if (src->type == to) {
		memcpy(out, from, n);
		return;
	}
	weights_widen(src->type, from, src->n_in, l->row);
	kern_from_f32(to, l->row, out, src->n_in);
}

static int upload(struct load *l, const struct kern_matrix *src,
		  enum kern_type to, struct llama_gpu_matrix *out)
{
	const size_t row = src->n_in * kern_type_bytes(to);
	const uint32_t step = (uint32_t)(PIECE_BYTES / row);
	char *p;
	int ret;

	if (!step)
		return -ENOTSUP;
	out->n_out = src->n_out;
	out->n_in = src->n_in;
	ret = widest(l, src->n_in);
	if (!ret)
		ret = room(l, &out->at, row * src->n_out);
	for (uint32_t r = 0, n; r < src->n_out && !ret; r += n) {
		n = src->n_out - r < step ? src->n_out - r : step;
		ret = piece(l, &p);
		for (uint32_t i = 0; i < n && !ret; i++)
			convert_row(l, src, r + i, to, p + i * row);
		if (!ret)
			ret = send(l, out->at + r * row, n * row);
	}
	return ret;
}

/* The first time: what of the shape the kernels cannot do. */
static int begin(struct load *l, const struct llama_shape *sh)
{
	struct llama_gpu *m = l->m;
	const uint32_t d = sh->head_dim;

	if (m->layers)
		return 0;
	if (!kern_gpu_head_dim_ok(d) || sh->d_model % 8 || sh->n_ff % 8 ||
	    sh->n_vocab % 8) {
		(void)snprintf(
			l->err, l->err_len,
			"heads of %u, %u and %u channels, %u tokens: on "
			"the device 64, 96, 128 or 256, and multiples of 8",
			d, sh->d_model, sh->n_ff, sh->n_vocab);
		return -ENOTSUP;
	}
	m->sh = *sh;
	m->layers = calloc(sh->n_layers, sizeof(*m->layers));
	return m->layers ? 0 : -ENOMEM;
}

static int take_matrix(void *ctx, const struct llama_shape *sh,
		       enum llama_matrix which, uint32_t layer,
		       const struct kern_matrix *src)
{
	struct load *l = ctx;
	int ret = begin(l, sh);
	struct llama_gpu_layer *y;

	if (ret)
		return ret;
	y = &l->m->layers[layer];
	switch (which) {
	case LLAMA_EMBD:
		l->m->embd_type = src->type == KERN_Q8_0 ? KERN_F32 : src->type;
		return upload(l, src, l->m->embd_type, &l->m->embd);
	case LLAMA_OUTPUT:
		return upload(l, src, sh->math, &l->m->output);
	case LLAMA_Q:
		return upload(l, src, sh->math, &y->q);
	case LLAMA_K:
		return upload(l, src, sh->math, &y->k);
	case LLAMA_V:
		return upload(l, src, sh->math, &y->v);
	case LLAMA_O:
		return upload(l, src, sh->math, &y->o);
	case LLAMA_GATE:
		return upload(l, src, sh->math, &y->gate);
	case LLAMA_UP:
		return upload(l, src, sh->math, &y->up);
	case LLAMA_DOWN:
		return upload(l, src, sh->math, &y->down);
	}
	return -EINVAL;
}

static int take_norm(void *ctx, const struct llama_shape *sh, int of_ffn,
		     uint32_t layer, const void *w)
{
	struct load *l = ctx;
	const struct kern_matrix src = { KERN_F32, w, 1, sh->d_model };
	struct llama_gpu_matrix got;
	int ret = begin(l, sh);

	if (!ret)
		ret = upload(l, &src, KERN_F32, &got);
	if (ret)
		return ret;
	if (layer == sh->n_layers)
		l->m->norm = got.at;
	else if (of_ffn)
		l->m->layers[layer].ffn_norm = got.at;
	else
		l->m->layers[layer].attn_norm = got.at;
	return 0;
}

/* ---- plans ---------------------------------------------------------------------------- */

int llama_gpu_plans_new(struct llama_gpu_plans *p, const struct llama_gpu *m)
{
	const struct llama_gpu_layer *y = m->layers;
	const struct llama_gpu_matrix *const of[N_PLANS] = {
		[PLAN_Q] = &y->q,	[PLAN_KV] = &y->k,
		[PLAN_O] = &y->o,	[PLAN_FF] = &y->gate,
		[PLAN_DOWN] = &y->down, [PLAN_OUT] = &m->output,
	};
	int ret = 0;

	for (int i = 0; i < N_PLANS && !ret; i++) {
		const uint32_t most = i == PLAN_OUT ? LLAMA_GPU_LOGIT_ROWS
						    : m->max_rows;
		const struct cublas_shape s = {
			.type = m->sh.math,
			.n_out = of[i]->n_out,
			.n_in = of[i]->n_in,
			.n_rows = most < TYPICAL_ROWS ? most : TYPICAL_ROWS,
			.max_rows = most,
			.workspace_bytes = LLAMA_GPU_WORKSPACE,
		};

		/* without the library, or if nothing it offers will do: kernels of our own */
		ret = m->blas ? cublas_plan_new(&p->p[i], m->blas, &s)
			      : -ENOTSUP;
		if (ret == -ENOTSUP && s.n_in % 8 == 0)
			ret = 0;
	}
	return ret;
}

void llama_gpu_plans_free(struct llama_gpu_plans *p)
{
	for (int i = 0; i < N_PLANS; i++) {
		if (p->p[i])
			cublas_plan_free(p->p[i]);
		p->p[i] = NULL;
	}
}

/* ---- open, close --------------------------------------------------------------------- */

static void load_fini(struct load *l)
{
	const struct cuda_api *cu = l->m->api;

	for (uint32_t i = 0; i < N_PIECES; i++)
		if (l->sent[i])
			(void)cu->event_free(l->sent[i]);
	if (l->st)
		(void)cu->stream_free(l->st);
	if (l->pieces)
		(void)cu->host_free(l->pieces);
	free(l->row);
}

static int load_init(struct load *l)
{
	const struct cuda_api *cu = l->m->api;
	void *p = NULL;
	int ret = kern_errno(
		cu->host_alloc(&p, N_PIECES * PIECE_BYTES, CUDA_HOST_PORTABLE));

	l->pieces = p;
	if (!ret)
		ret = kern_errno(
			cu->stream_new(&l->st, CUDA_STREAM_NON_BLOCKING, 0));
	for (uint32_t i = 0; i < N_PIECES && !ret; i++)
		ret = kern_errno(
			cu->event_new(&l->sent[i], CUDA_EVENT_DISABLE_TIMING));
	return ret;
}

/* Another kind of device may choose other algorithms. */
static int path_of(const struct cuda_api *cu, int device, uint32_t *out)
{
	int major, minor, dev, ret;

	ret = kern_errno(cu->device_get(&dev, device));
	if (!ret)
		ret = kern_errno(cu->device_attr(&major, CUDA_ATTR_MAJOR, dev));
	if (!ret)
		ret = kern_errno(cu->device_attr(&minor, CUDA_ATTR_MINOR, dev));
	if (!ret)
		*out = 1u << 31 | LLAMA_GPU_PATH << 16 |
		       ((uint32_t)major & 0xff) << 8 | ((uint32_t)minor & 0xff);
	return ret;
}

/* Said once: scratches choose the same. */
static void warn_of_own(const struct llama_gpu *m,
			const struct llama_gpu_plans *p)
{
	static const char *const names[N_PLANS] = {
		[PLAN_Q] = " q",       [PLAN_KV] = " k,v",
		[PLAN_O] = " o",       [PLAN_FF] = " gate,up",
		[PLAN_DOWN] = " down", [PLAN_OUT] = " output",
	};
	char list[64] = "";

	for (int i = 0; i < N_PLANS && m->blas; i++)
		if (!p->p[i])
			strcat(list, names[i]);
	if (list[0])
		log_warn("gpu",
			 "matrices: cuBLASLt offers nothing that fits for%s: "
			 "kernels of our own, slower",
			 list);
}

/* The algorithms by which matrices are multiplied are part of what a model is. */
static int identify(struct load *l, const struct llama *host)
{
	struct {
		uint64_t host[2], plans[N_PLANS];
	} in;
	struct llama_gpu_plans p = { 0 };
	const int ret = llama_gpu_plans_new(&p, l->m);

	if (ret)
		(void)snprintf(l->err, l->err_len,
			       "no algorithm for its matrices: %s",
			       strerror(-ret));
	else
		warn_of_own(l->m, &p);
	llama_id(host, in.host);
	for (int i = 0; i < N_PLANS && !ret; i++)
		in.plans[i] = p.p[i] ? cublas_plan_id(p.p[i]) : 0;
	if (!ret)
		crypto_generichash((uint8_t *)l->m->id, sizeof(l->m->id),
				   (const uint8_t *)&in, sizeof(in), NULL, 0);
	llama_gpu_plans_free(&p);
	return ret;
}

static int load(struct load *l, struct llama **host, const char *path,
		enum kern_type math)
{
	struct llama_sink sink = { .matrix = take_matrix,
				   .norm = take_norm,
				   .ctx = l };
	int ret = path_of(l->m->api, l->device, &sink.numeric_path);

	if (!ret)
		ret = load_init(l);
	if (ret)
		return ret;
	ret = llama_open_to(host, path, math, &sink, l->err, l->err_len);
	if (ret)
		return ret;
	ret = kern_errno(l->m->api->stream_sync(l->st));
	if (!ret)
		ret = identify(l, *host);
	if (ret) {
		llama_close(*host);
		*host = NULL;
	}
	return ret;
}

int llama_gpu_open(struct llama_gpu **out, struct llama **host,
		   const struct llama_gpu_conf *c, const char *path,
		   enum kern_type math, char *err, size_t err_len)
{
	struct load l = { .device = c->device, .err = err, .err_len = err_len };
	int ret;

	if (err_len)
		err[0] = 0;
	if (!c->max_rows || c->max_rows > LLAMA_GPU_ROWS_MAX)
		return -EINVAL;
	l.m = calloc(1, sizeof(*l.m));
	if (!l.m)
		return -ENOMEM;
	l.m->api = c->api;
	l.m->blas = c->blas;
	l.m->max_rows = c->max_rows;
	ret = load(&l, host, path, math);
	load_fini(&l);
	if (ret && err_len && !err[0])
		(void)snprintf(err, err_len, "the device: %s", strerror(-ret));
	if (ret)
		llama_gpu_close(l.m);
	else
		*out = l.m;
	return ret;
}

void llama_gpu_close(struct llama_gpu *m)
{
	if (!m)
		return;
	/* a lost device takes nothing back, and has nothing */
	while (m->n_allocs)
		(void)m->api->free(m->allocs[--m->n_allocs]);
	free(m->allocs);
	free(m->layers);
	free(m);
}

void llama_gpu_id(const struct llama_gpu *m, uint64_t id[2])
{
	id[0] = m->id[0];
	id[1] = m->id[1];
}

uint32_t llama_gpu_layers(const struct llama_gpu *m)
{
	return m->sh.n_layers;
}

size_t llama_gpu_bytes(const struct llama_gpu *m)
{
	return m->n_bytes;
}
