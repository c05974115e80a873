/*
 * llama_gpu.h - a llama-architecture model on the device: weights, and one step of a batch
 *
 * The step of llama.h in device memory, on one stream: embeddings, norms, activations and
 * conversions by the kernels of gpu.h, matrices by cuBLASLt. As there, K, V and attention are
 * the caller's, who gets device pointers and queues. Operands are rounded where
 * the CPU rounds them, sums have other orders: f32 logits are within 2e-5 of their
 * spread of those of llama_step(), bf16 within 3e-2 (test_llama_gpu). So the id is another.
 *
 * Thread: any that has the context; a scratch is one thread's at a time.
 */
#ifndef KVD_MODEL_LLAMA_GPU_H
#define KVD_MODEL_LLAMA_GPU_H

#include "kernels/cublas_api.h"
#include "kernels/gpu.h"
#include "kvd/model/llama.h"

/*
 * Part of every id of a model on a device: goes up when this file, the kernels or the way
 * an algorithm is chosen give other bits.
 */
#define LLAMA_GPU_PATH 3u

struct llama_gpu;

struct llama_gpu_conf {
	const struct cuda_api *api; /* both outlive the model */
	struct cublas *blas; /* NULL: kernels of our own */
	int device; /* its number: the one of the context */
	uint32_t max_rows; /* of a step: scratches have as many */
};
/*
 * Open path as llama_open_to() does and copy its weights to the device of the current
 * context: matrices in math, the embedding as it is (Q8_0: widened). *host has shape and
 * tokenizer; the caller closes it, after *out. err: the reason in words. Errors of
 * llama_open(), -ENOSPC the device is full, and those of the driver and of cuBLAS.
 */
int llama_gpu_open(struct llama_gpu **out, struct llama **host,
		   const struct llama_gpu_conf *c, const char *path,
		   enum kern_type math, char *err, size_t err_len);
void llama_gpu_close(struct llama_gpu *m); /* NULL is fine */
/* Identity of weights, kernels, kind of device and algorithms: as llama_id(), and never
 * equal to that of a model on a CPU. */
void llama_gpu_id(const struct llama_gpu *m, uint64_t id[2]);
uint32_t llama_gpu_layers(const struct llama_gpu *m);
#define LLAMA_GPU_LOGIT_ROWS 64u /* logits that lie on the device at once */
/* Of weights, in device memory. */
size_t llama_gpu_bytes(const struct llama_gpu *m);

/*
 * Steps of the same key (and scratch) queue the same launches with the same arguments, the
 * caller's attention too; only what lies in memory differs. From the second on they are one graph.
 * w[0] is 0: no such key.
 */
struct llama_gpu_key {
	uint32_t w[6]; /* the last is the step's own */
};

/* From a layer on only these rows go on: the others end there. */
struct llama_gpu_narrow {
	uint32_t layer, n_rows;
	const uint32_t *rows; /* [n_rows] of the rows before, ascending */
};
/* Of which rows the last layer has q and o, and goes on behind them. */
enum llama_gpu_last {
	LLAMA_GPU_ALL_ROWS,
	LLAMA_GPU_WANTED_ROWS /* those whose logits are wanted; K and V: all */
};

struct llama_gpu_batch {
	uint32_t n_rows; /* <= max_rows of the scratch; 0: nothing happens */
	const uint32_t *tokens; /* [n_rows], < n_vocab */
	uint32_t n_logits; /* rows whose logits are wanted */
	const uint32_t
		*logit_rows; /* [n_logits] of those that are left, ascending */
	/* [n_narrow] layers ascending, each at most once; none with a key */
	const struct llama_gpu_narrow *narrow;
	uint32_t n_narrow;
	enum llama_gpu_last last; /* all, with a key */
	/* [n_logits - n_nobody][n_vocab] out; plain host memory; NULL: not copied */
	float *logits;
	/* How a token is chosen from each [n_logits], n_vocab <= GPU_SAMPLE_MAX; NULL: not */
	const struct gpu_sampler *how;
	uint32_t *chosen; /* [n_logits - n_nobody] out, of how */
	float *logprob; /* the same */
	uint32_t n_nobody; /* the last of the logits are padding */
	struct llama_gpu_key
		key; /* with one, n_logits is at most LLAMA_GPU_LOGIT_ROWS */
	/*
	 * Queue on st attention of one layer: q, k, v as llama_batch's, f32, scratch of the
	 * step, in device memory; writes o there. Rows are those that are left, in their
	 * order. A negative return ends the step with it.
	 */
	int (*attn)(void *ctx, uint32_t layer, cuda_ptr q, cuda_ptr k,
		    cuda_ptr v, cuda_ptr o, cuda_stream st);
	void *ctx;
};

/* What one step at a time needs: buffers, plans of matrices. */
struct llama_gpu_scratch;
/* m, kern and stream outlive it. -EINVAL, -ENOMEM, those of the driver. */
int llama_gpu_scratch_new(struct llama_gpu_scratch **out,
			  const struct llama_gpu *m, struct kern_gpu *kern,
			  cuda_stream stream);
void llama_gpu_scratch_free(struct llama_gpu_scratch *s); /* NULL is fine */
/* 0: no graphs (they are tried otherwise). */
void llama_gpu_scratch_graphs(struct llama_gpu_scratch *s, int allowed);
/* Steps that were launched as graphs. */
uint64_t llama_gpu_scratch_n_graphs(const struct llama_gpu_scratch *s);
/*
 * Run b and wait for it. 0; -EINVAL for a batch outside the above; what attn returned;
 * those of the driver, -ENODEV when the device is lost. Then the logits have any values, and
 * nothing of the step is queued any more.
 */
int llama_gpu_step(struct llama_gpu_scratch *s,
		   const struct llama_gpu_batch *b);

#endif
