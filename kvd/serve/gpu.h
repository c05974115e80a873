/*
 * gpu.h - what serve computes with where KV lies on a device: kernels, matrices, a lane
 *
 * One serve_gpu has the image of the kernels and cuBLASLt; a lane of it is a stream with the
 * buffers of attention and, for each model, of a step. Only what is pinned whole is
 * computed there, so one lane is enough.
 *
 * Not on a device, and refused with -ENOTSUP or -ENOSPC where it is asked for: sequences larger
 * than their budget, maps.
 *
 * Thread: loop thread at start and end; a lane its engine's meanwhile.
 */
#ifndef KVD_SERVE_GPU_H
#define KVD_SERVE_GPU_H

#include "kvd/model/llama_gpu.h"
#include "kvd/serve/attn_gpu.h"
#include "kvd/serve/gpu_keep.h"

struct serve_gpu;
struct serve_gpu_conf {
	const struct cuda_api *api; /* outlives it */
	cuda_handle ctx;
	struct device *device; /* whose it is */
	int index; /* of the device */
	const char *image; /* a file with the kernels; "": the binary's own */
	const char *cublas; /* library; "": as cublas_open() finds it */
	uint32_t max_rows; /* of a step */
	int graphs; /* steps of decodes become graphs */
	int wide; /* prompts by wgmma where it has the bits of mma */
};
/* err: why not, in words. -ENOTSUP no image; -errno of the file; those of the driver. */
int serve_gpu_new(struct serve_gpu **out, const struct serve_gpu_conf *c,
		  char *err, size_t err_len);
void serve_gpu_free(struct serve_gpu *g); /* NULL is fine */
/* As llama_gpu_open(); cuBLASLt is loaded for the first model: -ENOENT there is none. */
int serve_gpu_model(struct serve_gpu *g, struct llama_gpu **out,
		    struct llama **host, const char *path, enum kern_type math,
		    char *err, size_t err_len);

struct gpu_lane;
int gpu_lane_new(struct gpu_lane **out, struct serve_gpu *g);
void gpu_lane_free(struct gpu_lane *l); /* NULL is fine; before the models */
struct attn_gpu *gpu_lane_attn(struct gpu_lane *l);
/* For steps of m, which is model i of CONF_MAX_MODELS. */
int gpu_lane_add(struct gpu_lane *l, uint32_t i, const struct llama_gpu *m);

/* From a layer on: lists are seen otherwise, rows end. */
struct gpu_step_stage {
	uint32_t layer; /* > 0 */
	struct attn_item
		*items; /* [n_items] of the step; those that end have no rows */
	uint32_t n_rows; /* that are left */
	const uint32_t *rows; /* [n_rows] of those before; NULL: all of them */
};

/* A step of model i. Engine thread; all waits are in it. */
struct gpu_step {
	struct attn_scratch *scratch; /* the lane's */
	uint32_t i_model;
	uint32_t n_rows, n_logits;
	const uint32_t *tokens;
	const uint32_t *logit_rows; /* of the rows that are left at the end */
	float *logits; /* [n_logits][n_vocab] out, or NULL */
	const struct gpu_sampler *how; /* [n_logits], or NULL: choose tokens */
	uint32_t *chosen; /* [n_logits] out, of how */
	float *logprob; /* the same */
	/* As attn_gpu.h has them, for all rows in order; each gets its ret. */
	struct attn_item *items;
	uint32_t n_items;
	/* [n_stages] layers ascending */
	const struct gpu_step_stage *stages;
	uint32_t n_stages;
	/* queries that the host keeps; then all rows stay to the end */
	const struct gpu_kept *kept;
	uint32_t n_kept;
};
/* 0; what attn_gpu_begin() or llama_gpu_step() said. */
int gpu_lane_step(struct gpu_lane *l, const struct gpu_step *s);
/*
 * Layer 0 with the keys that are there, items without k, then how far K and V of layer 1 are
 * from those at [n_rows], into dev [n_rows].
 */
int gpu_lane_probe(struct gpu_lane *l, const struct gpu_step *s,
		   const struct attn_target *at, float *dev);

/*
 * A step whose layers are fn's: rows of q, k, v, o as llama_gpu_batch has them, of the device;
 * nothing is queued. Ends with what fn returns, 0: the next layer.
 */
int gpu_lane_look(struct gpu_lane *l, const struct gpu_step *s,
		  int (*fn)(void *ctx, uint32_t layer, const cuda_ptr qkvo[4]),
		  void *ctx);

#endif
