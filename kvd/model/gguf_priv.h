/*
 * gguf_priv.h - what gguf.c (open, look up) and gguf_parse.c share
 */
#ifndef KVD_MODEL_GGUF_PRIV_H
#define KVD_MODEL_GGUF_PRIV_H

#include "kvd/model/gguf.h"

struct gguf_kv {
	struct gguf_str key;
	enum gguf_type type;
	enum gguf_type elem; /* of an array */
	uint64_t n; /* elements of an array */
	const uint8_t *data; /* value, or element 0 of an array */
	struct gguf_str *strs; /* a string: [1]; an array of them: [n] */
};

struct gguf {
	const uint8_t *base;
	size_t len;
	int mapped; /* base is ours to unmap */
	struct gguf_kv *kvs; /* sorted by key once parsed */
	uint64_t n_kvs;
	struct gguf_tensor *tensors; /* in file order */
	struct gguf_tensor **sorted; /* by name */
	uint64_t n_tensors;
	uint32_t align;
};

/*
 * Check the whole file at g->base and fill the rest of g. What was made of
 * g stays there on failure, for gguf_close(). -EINVAL, -ENOMEM.
 */
int gguf_parse(struct gguf *g, char *err, size_t err_len);
/* Bytes of a value of fixed size; 0 for strings, arrays and unknown types. */
uint32_t gguf_type_bytes(uint32_t type);
/* Order of struct gguf_kv by key, of struct gguf_tensor * by name. */
int gguf_kv_cmp(const void *a, const void *b);
int gguf_name_cmp(const void *a, const void *b);

#endif
