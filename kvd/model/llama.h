/*
 * llama.h - a llama-architecture model: weights, and one step of a batch
 *
 * A step takes rows (tokens of any mix of sequences), runs all layers and
 * gives logits for chosen rows. K, V and attention are the caller's: the step
 * hands over unrotated q, k, v of a layer and gets the attention output back, so
 * nothing here knows of pages or sequences. A row's result does not depend on the
 * other rows (kern.h, the summation contract).
 */
#ifndef KVD_MODEL_LLAMA_H
#define KVD_MODEL_LLAMA_H

#include <stddef.h>
#include <stdint.h>
#include "kernels/kern.h"
#include "kvd/base/pool.h"

struct llama;
struct tokenizer;

struct llama_shape {
	uint32_t n_layers, d_model, n_ff, n_vocab;
	uint32_t n_heads, n_kv_heads, head_dim;
	uint32_t n_ctx;		/* trained */
	float norm_eps;
	struct kern_rope rope;
	float attn_scale;
	enum kern_type math;	/* F32 or BF16: also of K and V */
};

/*
 * Open path (GGUF), check every tensor by name, shape and type, and pack the
 * weights for math (KERN_F32 or KERN_BF16). err: the reason in words.
 * -EINVAL, -ENOTSUP an architecture, type or feature that is not supported.
 */
int llama_open(struct llama **out, const char *path, enum kern_type math,
	       char *err, size_t err_len);
void llama_close(struct llama *m);
const struct llama_shape *llama_shape(const struct llama *m);
const struct tokenizer *llama_tokenizer(const struct llama *m);
/* 128-bit identity of the weights and of the arithmetic (part of segment ids). */
void llama_id(const struct llama *m, uint64_t id[2]);
size_t llama_weight_bytes(const struct llama *m);

struct llama_batch {
	uint32_t n_rows;		/* <= max_rows of the scratch */
	const uint32_t *tokens;		/* [n_rows], < n_vocab */
	uint32_t n_logits;		/* rows whose logits are wanted */
	const uint32_t *logit_rows;	/* [n_logits], ascending */
	float *logits;			/* [n_logits][n_vocab] out */
	/*
	 * Attention of one layer: q [n_rows][n_heads][head_dim], k and v
	 * [n_rows][n_kv_heads][head_dim] f32, unrotated, scratch of the step; writes
	 * o [n_rows][n_heads][head_dim]. A negative return ends the step with it.
	 */
	int (*attn)(void *ctx, uint32_t layer, float *q, float *k, float *v,
		    float *o);
	void *ctx;
};
struct llama_scratch;
int llama_scratch_new(struct llama_scratch **out, const struct llama *m,
		      uint32_t max_rows, uint32_t max_logits);
void llama_scratch_free(struct llama_scratch *s);
/* Run on the calling thread and pool's. Blocks only for arithmetic. 0, -EINVAL, or attn's. */
int llama_step(const struct llama *m, struct llama_scratch *s,
	       struct pool *pool, const struct llama_batch *b);

#endif
