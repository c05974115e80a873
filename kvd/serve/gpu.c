/*
 * gpu.c - kernels, matrices and lanes of the device; see gpu.h
 */
#include "kvd/serve/gpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cublas_api.h"
#include "kvd/base/conf.h"
#include "kvd/base/log.h"
#include "kvd/base/stat.h"

#define IMAGE_MAX (256u << 20)

struct serve_gpu {
	struct serve_gpu_conf c;
	struct kern_gpu *kern;
	struct cublas *blas; /* NULL: no model yet */
	uint32_t wide; /* kern_gpu_wide_kind() of what wgmma may do */
};

struct gpu_lane {
	struct serve_gpu *g;
	cuda_stream stream;
	struct attn_gpu *attn;
	struct gpu_keep *keep;
	struct llama_gpu_scratch *scratch[CONF_MAX_MODELS];
	const struct llama_gpu *models[CONF_MAX_MODELS];
	uint32_t pad_to; /* rows */
	uint32_t tokens[LLAMA_GPU_LOGIT_ROWS], logit_rows[LLAMA_GPU_LOGIT_ROWS];
	struct gpu_sampler how[LLAMA_GPU_LOGIT_ROWS];
	struct stat *st_graphs, *st_wide;
	uint64_t n_graphs, n_wide; /* told to them */
};

/* ---- the image --------------------------------------------------------------- */

/* The file and a NUL, which PTX ends with. */
static int load_image(const char *path, char **out)
{
	FILE *f = fopen(path, "re");
	long n = -1;
	int ret = 0;

	*out = NULL;
	if (!f)
		return -errno;
	if (!fseek(f, 0, SEEK_END))
		n = ftell(f);
	if (n <= 0 || n > IMAGE_MAX || fseek(f, 0, SEEK_SET))
		ret = -EINVAL;
	if (!ret) {
		*out = calloc(1, (size_t)n + 1);
		ret = *out ? 0 : -ENOMEM;
	}
	if (!ret && fread(*out, 1, (size_t)n, f) != (size_t)n)
		ret = -EIO;
	(void)fclose(f);
	if (ret) {
		free(*out);
		*out = NULL;
	}
	return ret;
}

/* Which prompts go by wgmma. A trial that fails is no reason not to start. */
static int try_wide(struct serve_gpu *g, const void *image)
{
	int ret;

	if (!g->c.wide)
		return 0;
	ret = kern_gpu_wide_check(g->kern, g->c.index, image, &g->wide);
	if (ret == -ETIMEDOUT)
		log_error("gpu",
			  "prompts by wgmma: the trial hangs: the device "
			  "may be slow until this ends; wide_attention = no "
			  "does without it");
	else if (ret && ret != -ENOTSUP)
		log_warn("gpu", "prompts by wgmma: no: the trial: %s",
			 strerror(-ret));
	else if (!ret)
		log_info(
			"gpu",
			"prompts by wgmma, where it has the bits of mma: f16 64 "
			"%s, 128 %s; bf16 64 %s, 128 %s",
			g->wide & 1 ? "yes" : "no", g->wide & 2 ? "yes" : "no",
			g->wide & 4 ? "yes" : "no", g->wide & 8 ? "yes" : "no");
	return kern_errno(g->c.api->ctx_set(g->c.ctx));
}

static int open_kernels(struct serve_gpu *g, char *err, size_t err_len)
{
	char *image = NULL;
	int ret = 0;

	if (g->c.image[0]) {
		ret = load_image(g->c.image, &image);
		if (ret) {
			(void)snprintf(err, err_len, "cuda_image %s: %s",
				       g->c.image, strerror(-ret));
			return ret;
		}
	}
	ret = kern_gpu_open(&g->kern, g->c.api, image);
	if (ret)
		(void)snprintf(
			err, err_len, "kernels: %s",
			ret == -ENOTSUP && !image && !kern_gpu_image_bytes()
				? "this was built without nvcc; cuda_image names a file"
				: strerror(-ret));
	else if ((ret = try_wide(g, image)))
		(void)snprintf(err, err_len, "device: %s", strerror(-ret));
	free(image);
	return ret;
}

int serve_gpu_new(struct serve_gpu **out, const struct serve_gpu_conf *c,
		  char *err, size_t err_len)
{
	struct serve_gpu *g = calloc(1, sizeof(*g));
	int ret;

	if (!g)
		return -ENOMEM;
	g->c = *c;
	ret = kern_errno(c->api->ctx_set(c->ctx));
	if (ret)
		(void)snprintf(err, err_len, "device: %s", strerror(-ret));
	else
		ret = open_kernels(g, err, err_len);
	if (ret) {
		serve_gpu_free(g);
		return ret;
	}
	*out = g;
	return 0;
}

void serve_gpu_free(struct serve_gpu *g)
{
	if (!g)
		return;
	if (g->blas)
		cublas_close(g->blas);
	kern_gpu_close(g->kern);
	free(g);
}

/* ---- models --------------------------------------------------------------------- */

static int need_blas(struct serve_gpu *g, char *err, size_t err_len)
{
	char why[256];
	int ret;

	if (g->blas)
		return 0;
	ret = cublas_open(&g->blas, g->c.cublas[0] ? g->c.cublas : NULL, why,
			  sizeof(why));
	if (ret == -ENOENT && !g->c.cublas[0]) {
		log_warn(
			"gpu",
			"matrices: no cuBLASLt: kernels of our own, slower: %s",
			why);
		return 0;
	}
	if (ret)
		(void)snprintf(err, err_len, "cuBLASLt: %s", why);
	else
		log_info("gpu", "matrices: %s", why);
	return ret;
}

int serve_gpu_model(struct serve_gpu *g, struct llama_gpu **out,
		    struct llama **host, const char *path, enum kern_type math,
		    char *err, size_t err_len)
{
	struct llama_gpu_conf c = { .api = g->c.api,
				    .device = g->c.index,
				    .max_rows = g->c.max_rows };
	int ret = need_blas(g, err, err_len);

	if (ret)
		return ret;
	c.blas = g->blas;
	return llama_gpu_open(out, host, &c, path, math, err, err_len);
}

/* ---- lanes ------------------------------------------------------------------------- */

int gpu_lane_new(struct gpu_lane **out, struct serve_gpu *g)
{
	struct gpu_lane *l = calloc(1, sizeof(*l));
	struct attn_gpu_conf c = { .api = g->c.api,
				   .ctx = g->c.ctx,
				   .kern = g->kern,
				   .device = g->c.device,
				   .dev = g->c.index,
				   .wide = g->wide };
	int ret;

	if (!l)
		return -ENOMEM;
	l->g = g;
	l->pad_to = KV_MIN(g->c.max_rows, LLAMA_GPU_LOGIT_ROWS);
	l->st_graphs = stat_get(STAT_COUNTER, "kvd_device_graph_steps_total",
				"Steps of hosted models launched as one graph",
				NULL, NULL, 1);
	l->st_wide = stat_get(STAT_COUNTER, "kvd_device_wide_launches_total",
			      "Launches of attention by wgmma", NULL, NULL, 1);
	ret = kern_errno(
		g->c.api->stream_new(&l->stream, CUDA_STREAM_NON_BLOCKING, 0));
	c.stream = l->stream;
	if (!ret)
		ret = attn_gpu_new(&l->attn, &c);
	if (!ret)
		ret = gpu_keep_new(&l->keep, c.api, c.kern, c.stream);
	if (ret) {
		gpu_lane_free(l);
		return ret;
	}
	*out = l;
	return 0;
}

void gpu_lane_free(struct gpu_lane *l)
{
	if (!l)
		return;
	if (l->attn)
		(void)attn_gpu_over(l->attn, 0); /* or it is lost */
	for (uint32_t i = 0; i < CONF_MAX_MODELS; i++)
		llama_gpu_scratch_free(l->scratch[i]);
	attn_gpu_free(l->attn);
	gpu_keep_free(l->keep);
	if (l->stream)
		(void)l->g->c.api->stream_free(l->stream); /* or it is lost */
	free(l);
}

struct attn_gpu *gpu_lane_attn(struct gpu_lane *l)
{
	return l->attn;
}

int gpu_lane_add(struct gpu_lane *l, uint32_t i, const struct llama_gpu *m)
{
	l->models[i] = m;
	return llama_gpu_scratch_new(&l->scratch[i], m, l->g->kern, l->stream);
}

/* ---- steps -------------------------------------------------------------------------- */

struct probe {
	struct gpu_lane *l;
	const struct gpu_step *s;
	const struct attn_target *at;
	float *dev;
};

static int step_attn(void *ctx, uint32_t layer, cuda_ptr q, cuda_ptr k,
		     cuda_ptr v, cuda_ptr o, cuda_stream st)
{
	const struct probe *p = ctx;
	const struct attn_gpu_rows rows = { q, k, v, o };
	const int ret = gpu_keep_layer(p->l->keep, layer, q);

	(void)st; /* the lane's own */
	return ret ? ret : attn_gpu_layer(p->l->attn, layer, &rows);
}

static int probe_attn(void *ctx, uint32_t layer, cuda_ptr q, cuda_ptr k,
		      cuda_ptr v, cuda_ptr o, cuda_stream st)
{
	const struct probe *p = ctx;
	const struct attn_gpu_old old = {
		.shape = p->s->items[0].shape,
		.layer = 1,
		.n = p->s->n_rows,
		.at = p->at,
		.k = k,
		.v = v,
		.dev = p->dev,
	};
	int ret;

	if (!layer)
		return step_attn(ctx, layer, q, k, v, o, st);
	ret = attn_gpu_deviation(p->l->attn, &old);
	return ret ? ret : -ECANCELED;
}

/* Tokens and rows of logits of a step that got a few rows more. */
static void pad(struct gpu_lane *l, const struct gpu_step *s,
		struct llama_gpu_batch *b)
{
	const struct attn_gpu_pad pad = attn_gpu_padded(l->attn);

	if (!pad.n_rows)
		return;
	for (uint32_t i = 0; i < pad.n_rows; i++) {
		l->tokens[i] = i < s->n_rows ? s->tokens[i] : 0;
		l->logit_rows[i] = i;
		l->how[i] = (struct gpu_sampler){ .top_p = 1 };
		if (s->how && i < s->n_rows)
			l->how[i] = s->how[i];
	}
	b->how = s->how ? l->how : NULL;
	b->n_nobody = pad.n_rows - s->n_rows;
	b->n_rows = b->n_logits = pad.n_rows;
	b->tokens = l->tokens;
	b->logit_rows = l->logit_rows;
	memcpy(b->key.w, pad.key, sizeof(pad.key));
}

/* Only rows whose logits are wanted go on in the last layer. */
static int ends_early(const struct gpu_step *s)
{
	const uint32_t left = s->n_stages ? s->stages[s->n_stages - 1].n_rows
					  : s->n_rows;

	return !s->n_kept && s->n_logits < left;
}

/* Lists of layers [0, n_layers), at most n_stages + 2 ranges; returns how many. */
static uint32_t list_ranges(const struct gpu_step *s, uint32_t n_layers,
			    struct attn_gpu_step *out)
{
	struct attn_gpu_step *to = out;

	*to = (struct attn_gpu_step){ .items = s->items,
				      .n_items = s->n_items };
	for (uint32_t i = 0; i < s->n_stages; i++) {
		to->n_layers = s->stages[i].layer - to->layer;
		*++to = (struct attn_gpu_step){ .items = s->stages[i].items,
						.n_items = s->n_items,
						.layer = s->stages[i].layer };
	}
	to->n_layers = n_layers - to->layer;
	return (uint32_t)(to - out) + 1;
}

/* The last layer apart. */
static uint32_t cut_last(const struct gpu_step *s, struct attn_gpu_step *list,
			 uint32_t n)
{
	struct attn_gpu_step *last = &list[n - 1];

	if (last->n_layers > 1) {
		last[1] = last[0];
		last[1].layer += --last->n_layers;
		last[1].n_layers = 1;
		last++;
		n++;
	}
	last->wanted = s->logit_rows;
	last->n_wanted = s->n_logits;
	return n;
}

static uint32_t list_narrow(const struct gpu_step *s,
			    struct llama_gpu_narrow *out)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n_stages; i++)
		if (s->stages[i].rows)
			out[n++] =
				(struct llama_gpu_narrow){ s->stages[i].layer,
							   s->stages[i].n_rows,
							   s->stages[i].rows };
	return n;
}

static int begin(struct probe *p, uint32_t n_layers, enum llama_gpu_last last)
{
	const struct gpu_step *s = p->s;
	/* where all rows want their logits: a step of decodes */
	const int decodes = !p->at && p->l->g->c.graphs && s->n_rows &&
			    !s->n_kept && !s->n_stages &&
			    s->n_logits == s->n_rows &&
			    s->n_rows <= p->l->pad_to;
	struct attn_gpu_step lists[s->n_stages + 2];
	uint32_t n = list_ranges(s, n_layers, lists);
	int ret = attn_gpu_use(p->l->attn);

	if (last == LLAMA_GPU_WANTED_ROWS)
		n = cut_last(s, lists, n);
	lists->pad_to = decodes ? p->l->pad_to : 0;
	if (!ret)
		ret = attn_gpu_begin(p->l->attn, s->scratch, lists, n);
	return ret ? ret
		   : gpu_keep_begin(p->l->keep, s->items[0].shape, n_layers,
				    s->kept, s->n_kept);
}

static int run(struct probe *p, uint32_t n_layers)
{
	const struct gpu_step *s = p->s;
	struct llama_gpu_narrow narrow[s->n_stages + 1];
	struct llama_gpu_batch b = {
		.n_rows = s->n_rows,
		.tokens = s->tokens,
		.n_logits = s->n_logits,
		.logit_rows = s->logit_rows,
		.narrow = narrow,
		.n_narrow = list_narrow(s, narrow),
		.last = !p->at && ends_early(s) ? LLAMA_GPU_WANTED_ROWS
						: LLAMA_GPU_ALL_ROWS,
		.logits = s->logits,
		.how = s->how,
		.chosen = s->chosen,
		.logprob = s->logprob,
		.attn = p->at ? probe_attn : step_attn,
		.ctx = p,
	};
	int ret = begin(p, n_layers, b.last);

	if (!ret) {
		pad(p->l, s, &b);
		ret = llama_gpu_step(p->l->scratch[s->i_model], &b);
	}
	if (ret)
		ret = attn_gpu_over(p->l->attn, ret);
	else
		gpu_keep_end(p->l->keep);
	return ret;
}

static void count_launches(struct gpu_lane *l)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < CONF_MAX_MODELS; i++)
		n += l->scratch[i] ? llama_gpu_scratch_n_graphs(l->scratch[i])
				   : 0;
	stat_add(l->st_graphs, n - l->n_graphs);
	l->n_graphs = n;
	n = attn_gpu_n_wide(l->attn);
	stat_add(l->st_wide, n - l->n_wide);
	l->n_wide = n;
}

int gpu_lane_step(struct gpu_lane *l, const struct gpu_step *s)
{
	struct probe p = { .l = l, .s = s };
	const int ret = run(&p, llama_gpu_layers(l->models[s->i_model]));

	count_launches(l);
	return ret;
}

int gpu_lane_probe(struct gpu_lane *l, const struct gpu_step *s,
		   const struct attn_target *at, float *dev)
{
	struct probe p = { l, s, at, dev };
	const int ret = run(&p, 1);

	return ret == -ECANCELED ? 0 : ret;
}

/* ---- looks --------------------------------------------------------------------------- */

struct look {
	struct gpu_lane *l;
	int (*fn)(void *ctx, uint32_t layer, const cuda_ptr qkvo[4]);
	void *ctx;
};

static int look_attn(void *ctx, uint32_t layer, cuda_ptr q, cuda_ptr k,
		     cuda_ptr v, cuda_ptr o, cuda_stream st)
{
	const struct look *x = ctx;
	const cuda_ptr qkvo[4] = { q, k, v, o };
	const int ret = kern_errno(x->l->g->c.api->stream_sync(st));

	return ret ? ret : x->fn(x->ctx, layer, qkvo);
}

int gpu_lane_look(struct gpu_lane *l, const struct gpu_step *s,
		  int (*fn)(void *ctx, uint32_t layer, const cuda_ptr qkvo[4]),
		  void *ctx)
{
	struct look x = { l, fn, ctx };
	const struct llama_gpu_batch b = {
		.n_rows = s->n_rows,
		.tokens = s->tokens,
		.attn = look_attn,
		.ctx = &x,
	};
	int ret = attn_gpu_use(l->attn);

	if (!ret)
		ret = llama_gpu_step(l->scratch[s->i_model], &b);
	return ret ? attn_gpu_over(l->attn, ret) : 0;
}
