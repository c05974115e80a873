/*
 * rig_gguf.h - write GGUF files for tests, sound ones and broken ones
 *
 * The low level writes what it is told, in order; only the two counts of the
 * header and the places of the tensors' data are filled in by finish. One
 * thread; out of memory aborts.
 */
#ifndef TESTS_RIG_RIG_GGUF_H
#define TESTS_RIG_RIG_GGUF_H

#include <stddef.h>
#include <stdint.h>
#include "kernels/kern.h"

struct rig_gguf;

struct rig_gguf *rig_gguf_new(uint32_t version);
void rig_gguf_u32(struct rig_gguf *w, const char *key, uint32_t v);
void rig_gguf_f32(struct rig_gguf *w, const char *key, float v);
void rig_gguf_bool(struct rig_gguf *w, const char *key, uint8_t v);
void rig_gguf_str(struct rig_gguf *w, const char *key, const char *v);
/* data: n elements of bytes each; type: of the elements (enum gguf_type). */
void rig_gguf_array(struct rig_gguf *w, const char *key, uint32_t type,
		    const void *data, uint64_t n, size_t bytes);
void rig_gguf_strs(struct rig_gguf *w, const char *key, const char *const *strs,
		   uint64_t n);
/* A key, its value type, and then bytes as they are. */
void rig_gguf_raw(struct rig_gguf *w, const char *key, uint32_t type,
		  const void *data, size_t bytes);
/* After all keys. data is copied. */
void rig_gguf_tensor(struct rig_gguf *w, const char *name, uint32_t n_dims,
		     const uint64_t *dims, uint32_t ggml_type, const void *data,
		     size_t bytes);
/* Ends and frees w. The caller frees what is returned; *len is its size. */
void *rig_gguf_finish(struct rig_gguf *w, size_t *len);

/* A random model; the same spec gives the same bytes. */
struct rig_model {
	uint32_t n_layers, d_model, n_ff, n_vocab;
	uint32_t n_heads, n_kv_heads, head_dim, n_ctx;
	enum kern_type types[4]; /* used in turn by the matrices */
	enum kern_type embd_type;
	enum kern_type out_type;
	int tied; /* no output.weight */
	uint64_t seed;
	const char *extra; /* one more tensor [d_model] of this name, or NULL */
	const char *missing; /* leave this tensor out, or NULL */
	/* Write more keys, or NULL. */
	void (*more_keys)(struct rig_gguf *w);
};
/*
 * Zero fields mean: 2 layers, 64 wide, ffn 96, 320 tokens, 2 heads, 1 kv
 * head, head_dim 32, context 256, F32. n_vocab is at least 320. The vocabulary
 * is <unk>, <s>, </s>, the 256 bytes, U+2581, a to z, then pairs of these.
 */
void *rig_model_gguf(const struct rig_model *spec, size_t *len);
/* The same into a file; aborts when it cannot be written. */
void rig_model_write(const struct rig_model *spec, const char *path);

/* tests/data/NAME, or below $KVD_DATA; a static buffer, the last 4 hold. */
const char *rig_data(const char *name);
/* The next of a xorshift sequence; *state is not 0. */
uint64_t rig_random(uint64_t *state);

#endif
