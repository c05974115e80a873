/*
 * gguf.h - a GGUF v2/v3 file, mmap'ed and checked as a whole
 *
 * Nothing in the file is believed: counts, lengths, offsets, types and
 * alignment are checked against its size before use. Keys and tensors that are
 * there twice and tensors that overlap are refused. An error names the key or
 * tensor and the byte offset. Specification: ggml docs/gguf.md (version 3).
 *
 * A file that somebody truncates while it is mapped means SIGBUS: open, copy,
 * close. Immutable after open; any thread.
 */
#ifndef KVD_MODEL_GGUF_H
#define KVD_MODEL_GGUF_H

#include <stddef.h>
#include <stdint.h>

enum gguf_type {
	GGUF_U8,
	GGUF_I8,
	GGUF_U16,
	GGUF_I16,
	GGUF_U32,
	GGUF_I32,
	GGUF_F32,
	GGUF_BOOL,
	GGUF_STRING,
	GGUF_ARRAY,
	GGUF_U64,
	GGUF_I64,
	GGUF_F64,
};

struct gguf_str {
	const char *s; /* borrowed from the file, not NUL-terminated */
	uint64_t len;
};

struct gguf_tensor {
	struct gguf_str name;
	uint32_t n_dims; /* 1..4 */
	uint64_t dims[4]; /* dims[0] is contiguous */
	uint32_t
		ggml_type; /* 0 F32, 1 F16, 8 Q8_0, 30 BF16; others kept as is */
	const void *data; /* borrowed; n_bytes of it lie inside the file */
	uint64_t n_bytes; /* 0 for types not known */
};

struct gguf;

/*
 * Map and check path, read only. err: the reason in words with key or tensor
 * and offset. -errno of the file, -EINVAL its content, -ENOMEM. The caller
 * owns *out and all that it borrows from it until gguf_close().
 */
int gguf_open(struct gguf **out, const char *path, char *err, size_t err_len);
/*
 * The same over memory (fuzzing); buf is borrowed until gguf_close(), and
 * aligned to 8 bytes (-EINVAL).
 */
int gguf_open_mem(struct gguf **out, const void *buf, size_t len, char *err,
		  size_t err_len);
void gguf_close(struct gguf *g);

/* Typed look-ups: 0, -ENOENT, or -EINVAL when the key has another type. */
int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out);
int gguf_get_f32(const struct gguf *g, const char *key, float *out);
int gguf_get_bool(const struct gguf *g, const char *key, int *out);
int gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out);
/* Arrays: length, then elements. */
int gguf_get_array(const struct gguf *g, const char *key, enum gguf_type type,
		   uint64_t *n);
int gguf_array_str(const struct gguf *g, const char *key, uint64_t i,
		   struct gguf_str *out); /* O(1) after the first use */
int gguf_array_f32(const struct gguf *g, const char *key, uint64_t i,
		   float *out);
int gguf_array_i32(const struct gguf *g, const char *key, uint64_t i,
		   int32_t *out);
const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name);
/* s with what is not printable ASCII replaced, cut to len - 1, for messages. */
const char *gguf_printable(struct gguf_str s, char *out, size_t len);
uint64_t gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor(const struct gguf *g, uint64_t i);

#endif
