/*
 * weights.h - the weights of a llama model, checked and packed
 *
 * Immutable after open; any thread.
 */
#ifndef KVD_MODEL_WEIGHTS_H
#define KVD_MODEL_WEIGHTS_H

#include "kvd/model/gguf.h"
#include "kvd/model/llama.h"

struct weights_layer {
	float *attn_norm; /* [d_model] */
	float *ffn_norm; /* [d_model] */
	struct kern_weight *q, *k, *v, *o;
	struct kern_weight *gate, *up, *down;
};

/* All owned; freed by weights_fini(). */
struct weights {
	void *embd; /* [n_vocab] rows of embd_row_bytes, as in the file */
	enum kern_type embd_type;
	size_t embd_row_bytes;
	struct weights_layer *layers; /* [n_layers] */
	float *norm; /* [d_model], before the output */
	struct kern_weight *output; /* of the embedding when tied */
	size_t bytes; /* of all of the above */
	uint64_t id[2];
};

/* Keys of g to a shape (all of it, but for math). -EINVAL, -ENOTSUP. */
int weights_shape(struct llama_shape *sh, const struct gguf *g,
		  uint32_t n_vocab, char *err, size_t err_len);
/*
 * Check each tensor of g by name, shape and type, and pack it for sh->math; or give
 * it to sink, if that is not NULL, and keep none.
 * w is the caller's, zeroed, and finished by weights_fini() in any case.
 * -EINVAL, -ENOTSUP, -ENOMEM.
 */
int weights_init(struct weights *w, const struct llama_shape *sh,
		 const struct gguf *g, const struct llama_sink *sink, char *err,
		 size_t err_len);
void weights_fini(struct weights *w, uint32_t n_layers);
/* n elements at src, of any type a matrix may have, as f32: exact. */
void weights_widen(enum kern_type type, const void *src, uint32_t n,
		   float *out);
/* Row token of the embedding as f32 [d_model], exactly widened. */
void weights_embed(const struct weights *w, uint32_t token, uint32_t d_model,
		   float *out);

#endif
