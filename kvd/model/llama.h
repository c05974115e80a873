/*
 * llama.h - a llama-architecture model: weights, and one step of a batch
 *
 * A step takes rows (tokens of any mix of sequences), runs all layers and
 * gives logits for chosen rows. K, V and attention are the caller's: the step
 * hands over unrotated q, k, v of a layer and gets the attention output back,
 * so nothing here knows of pages or sequences. A row's result does not depend
 * on the other rows, nor on the threads (kern.h, the summation contract).
 *
 * Supported: architecture "llama", matrices F32, F16, BF16, Q8_0, norms F32,
 * rope without scaling or linear; anything else is refused by name.
 */
#ifndef KVD_MODEL_LLAMA_H
#define KVD_MODEL_LLAMA_H

#include <stddef.h>
#include <stdint.h>
#include "kernels/kern.h"
#include "kvd/base/pool.h"

struct gguf;
struct llama;
struct tokenizer;

struct llama_shape {
	uint32_t n_layers, d_model, n_ff, n_vocab;
	uint32_t n_heads, n_kv_heads, head_dim;
	uint32_t n_ctx; /* trained */
	float norm_eps;
	struct kern_rope rope;
	float attn_scale;
	enum kern_type math; /* F32 or BF16: also of K and V */
};

/*
 * Open path (GGUF), check every tensor by name, shape and type, and pack the
 * weights for math (KERN_F32 or KERN_BF16). Nothing depends on the file
 * afterwards. err: the reason in words. -errno of the file, -EINVAL, -ENOMEM,
 * -ENOTSUP an architecture, type or feature that is not supported.
 */
int llama_open(struct llama **out, const char *path, enum kern_type math,
	       char *err, size_t err_len);
/* The same out of an open GGUF, which may be closed then. */
int llama_open_gguf(struct llama **out, const struct gguf *g,
		    enum kern_type math, char *err, size_t err_len);
void llama_close(struct llama *m);

/* Where matrices go that somebody else computes with. */
enum llama_matrix {
	LLAMA_EMBD, /* [n_vocab][d_model], to look up rows */
	LLAMA_OUTPUT, /* the same again when the model has no other */
	LLAMA_Q,
	LLAMA_K,
	LLAMA_V,
	LLAMA_O,
	LLAMA_GATE,
	LLAMA_UP,
	LLAMA_DOWN,
};
struct llama_sink {
	uint32_t numeric_path; /* part of the id instead of this CPU's */
	/* As it lies in the file, for the time of the call; layer 0 for the first two.
	 * sh is complete. Negative: llama_open_to() ends with it. */
	int (*matrix)(void *ctx, const struct llama_shape *sh,
		      enum llama_matrix which, uint32_t layer,
		      const struct kern_matrix *src);
	/* [d_model] f32; layer n_layers: the one before the output */
	int (*norm)(void *ctx, const struct llama_shape *sh, int of_ffn,
		    uint32_t layer, const void *w);
	void *ctx;
};
/*
 * As llama_open(), but weights go to the sink, once each, and are not kept: the model has
 * shape, tokenizer and id, and llama_step() refuses it (-EINVAL).
 */
int llama_open_to(struct llama **out, const char *path, enum kern_type math,
		  const struct llama_sink *sink, char *err, size_t err_len);
const struct llama_shape *llama_shape(const struct llama *m);
const struct tokenizer *llama_tokenizer(const struct llama *m);
/* 128-bit identity of weights and arithmetic (part of segment ids). */
void llama_id(const struct llama *m, uint64_t id[2]);
size_t llama_weight_bytes(const struct llama *m);

struct llama_batch {
	uint32_t n_rows; /* <= max_rows of the scratch */
	const uint32_t *tokens; /* [n_rows], < n_vocab */
	uint32_t n_logits; /* rows whose logits are wanted */
	const uint32_t *logit_rows; /* [n_logits], ascending */
	float *logits; /* [n_logits][n_vocab] out */
	/*
	 * Attention of one layer: q [n_rows][n_heads][head_dim], k and v
	 * [n_rows][n_kv_heads][head_dim] f32, unrotated, scratch of the step;
	 * writes o [n_rows][n_heads][head_dim]. A negative return ends the
	 * step with it. Called once a layer, ascending, on the thread of
	 * llama_step(); may use its pool. In the last layer only o of rows whose logits are
	 * wanted is read.
	 */
	int (*attn)(void *ctx, uint32_t layer, float *q, float *k, float *v,
		    float *o);
	/*
	 * NULL, or before each layer: which rows go on, ascending, into keep
	 * [rows of the layer before]; returns how many. The others end there: later
	 * layers have so many rows, in this order. Rows whose logits are wanted go on.
	 */
	uint32_t (*narrow)(void *ctx, uint32_t layer, uint32_t *keep);
	/*
	 * attn has no use for k and v of layer 0 and q of layer 1, and ends the step there:
	 * they are not computed.
	 */
	int probe;
	void *ctx;
};
struct llama_scratch;
/* The memory of one step at a time of m; m outlives it. -EINVAL, -ENOMEM. */
int llama_scratch_new(struct llama_scratch **out, const struct llama *m,
		      uint32_t max_rows, uint32_t max_logits);
void llama_scratch_free(struct llama_scratch *s);
/*
 * Run b on the calling thread and pool's (NULL: on this one alone). Blocks
 * only for arithmetic. 0; -EINVAL for a batch outside the above, then nothing
 * was written; or what attn returned, then the logits are as before.
 */
int llama_step(const struct llama *m, struct llama_scratch *s,
	       struct pool *pool, const struct llama_batch *b);

#endif
