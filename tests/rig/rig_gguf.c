/*
 * rig_gguf.c - write GGUF files for tests; see rig_gguf.h
 */
#include "tests/rig/rig_gguf.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/model/gguf.h"

#define ALIGN 32u

struct buffer {
	uint8_t *p;
	size_t len, room;
};

struct rig_gguf {
	struct buffer head; /* header, keys, tensor infos */
	struct buffer data;
	uint64_t n_kvs, n_tensors;
};

static void put(struct buffer *b, const void *data, size_t len)
{
	if (b->len + len > b->room) {
		b->room = 2 * (b->len + len) + 256;
		b->p = realloc(b->p, b->room);
		assert(b->p);
	}
	if (len)
		memcpy(b->p + b->len, data, len);
	b->len += len;
}

static void put_u32(struct buffer *b, uint32_t v)
{
	put(b, &v, sizeof(v));
}

static void put_u64(struct buffer *b, uint64_t v)
{
	put(b, &v, sizeof(v));
}

static void put_str(struct buffer *b, const char *s)
{
	put_u64(b, strlen(s));
	put(b, s, strlen(s));
}

static void pad(struct buffer *b)
{
	static const uint8_t zeros[ALIGN];

	put(b, zeros, (ALIGN - b->len % ALIGN) % ALIGN);
}

struct rig_gguf *rig_gguf_new(uint32_t version)
{
	struct rig_gguf *w = calloc(1, sizeof(*w));

	assert(w);
	put(&w->head, "GGUF", 4);
	put_u32(&w->head, version);
	put_u64(&w->head, 0);
	put_u64(&w->head, 0);
	return w;
}

void rig_gguf_raw(struct rig_gguf *w, const char *key, uint32_t type,
		  const void *data, size_t bytes)
{
	put_str(&w->head, key);
	put_u32(&w->head, type);
	put(&w->head, data, bytes);
	w->n_kvs++;
}

void rig_gguf_u32(struct rig_gguf *w, const char *key, uint32_t v)
{
	rig_gguf_raw(w, key, GGUF_U32, &v, sizeof(v));
}

void rig_gguf_f32(struct rig_gguf *w, const char *key, float v)
{
	rig_gguf_raw(w, key, GGUF_F32, &v, sizeof(v));
}

void rig_gguf_bool(struct rig_gguf *w, const char *key, uint8_t v)
{
	rig_gguf_raw(w, key, GGUF_BOOL, &v, sizeof(v));
}

void rig_gguf_str(struct rig_gguf *w, const char *key, const char *v)
{
	rig_gguf_raw(w, key, GGUF_STRING, NULL, 0);
	put_str(&w->head, v);
}

void rig_gguf_array(struct rig_gguf *w, const char *key, uint32_t type,
		    const void *data, uint64_t n, size_t bytes)
{
	rig_gguf_raw(w, key, GGUF_ARRAY, &type, sizeof(type));
	put_u64(&w->head, n);
	put(&w->head, data, n * bytes);
}

void rig_gguf_strs(struct rig_gguf *w, const char *key, const char *const *strs,
		   uint64_t n)
{
	const uint32_t type = GGUF_STRING;

	rig_gguf_raw(w, key, GGUF_ARRAY, &type, sizeof(type));
	put_u64(&w->head, n);
	for (uint64_t i = 0; i < n; i++)
		put_str(&w->head, strs[i]);
}

void rig_gguf_tensor(struct rig_gguf *w, const char *name, uint32_t n_dims,
		     const uint64_t *dims, uint32_t ggml_type, const void *data,
		     size_t bytes)
{
	pad(&w->data);
	put_str(&w->head, name);
	put_u32(&w->head, n_dims);
	put(&w->head, dims, n_dims * sizeof(*dims));
	put_u32(&w->head, ggml_type);
	put_u64(&w->head, w->data.len);
	put(&w->data, data, bytes);
	w->n_tensors++;
}

void *rig_gguf_finish(struct rig_gguf *w, size_t *len)
{
	uint8_t *p;

	if (w->n_tensors)
		pad(&w->head);
	put(&w->head, w->data.p, w->data.len);
	p = w->head.p;
	memcpy(p + 8, &w->n_tensors, sizeof(w->n_tensors));
	memcpy(p + 16, &w->n_kvs, sizeof(w->n_kvs));
	*len = w->head.len;
	/* Exactly as long as the file, so that a sanitizer sees the end. */
	p = realloc(p, *len);
	assert(p);
	free(w->data.p);
	free(w);
	return p;
}

/* ---- a random model ----------------------------------------------------- */

uint64_t rig_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	*state = x;
	return x * 0x2545f4914f6cdd1dull;
}

static float random_real(uint64_t *state)
{
	return (float)((double)(rig_random(state) >> 11) * 0x1p-52 - 1.0);
}

static size_t pack_row(enum kern_type type, const float *x, uint32_t n,
		       uint8_t *out)
{
	size_t len = 0;

	if (type == KERN_F32) {
		memcpy(out, x, n * sizeof(*x));
		return n * sizeof(*x);
	}
	if (type != KERN_Q8_0) {
		kern_from_f32(type, x, out, n);
		return 2 * (size_t)n;
	}
	for (uint32_t i = 0; i < n; i += 32) {
		const float scale = 1.0f / 127;

		kern_from_f32(KERN_F16, &scale, out + len, 1);
		for (uint32_t j = 0; j < 32; j++)
			out[len + 2 + j] = (uint8_t)(int8_t)(x[i + j] * 127);
		len += 34;
	}
	return len;
}

static uint32_t ggml_type(enum kern_type type)
{
	static const uint32_t types[] = {
		[KERN_F32] = 0,
		[KERN_F16] = 1,
		[KERN_BF16] = 30,
		[KERN_Q8_0] = 8,
	};

	return types[type];
}

struct maker {
	const struct rig_model *m;
	struct rig_gguf *w;
	uint64_t state;
	uint32_t n; /* matrices so far */
};

/* Entries of about 1/sqrt(cols), so that activations keep their size. */
static void matrix_of(struct maker *k, const char *name, enum kern_type type,
		      uint32_t cols, uint32_t rows)
{
	const uint64_t dims[2] = { cols, rows };
	float *row = malloc(cols * sizeof(*row));
	uint8_t *data = malloc((size_t)rows * cols * 4);
	float scale = 1;
	size_t len = 0;

	assert(row && data);
	while (scale * scale * (float)cols > 2)
		scale /= 2;
	for (uint32_t r = 0; r < rows; r++) {
		for (uint32_t i = 0; i < cols; i++)
			row[i] = random_real(&k->state) * scale;
		len += pack_row(type, row, cols, data + len);
	}
	if (!k->m->missing || strcmp(name, k->m->missing))
		rig_gguf_tensor(k->w, name, 2, dims, ggml_type(type), data,
				len);
	free(data);
	free(row);
}

static void matrix(struct maker *k, uint32_t layer, const char *name,
		   uint32_t cols, uint32_t rows)
{
	char full[64];

	(void)snprintf(full, sizeof(full), "blk.%u.%s.weight", layer, name);
	matrix_of(k, full, k->m->types[k->n++ % 4], cols, rows);
}

static void norm(struct maker *k, const char *name)
{
	const uint64_t dims[1] = { k->m->d_model };
	float *x = malloc(k->m->d_model * sizeof(*x));

	assert(x);
	for (uint32_t i = 0; i < k->m->d_model; i++)
		x[i] = 1 + random_real(&k->state) / 4;
	if (!k->m->missing || strcmp(name, k->m->missing))
		rig_gguf_tensor(k->w, name, 1, dims, 0, x,
				k->m->d_model * sizeof(*x));
	free(x);
}

static void layer(struct maker *k, uint32_t i)
{
	const struct rig_model *m = k->m;
	const uint32_t q = m->n_heads * m->head_dim;
	const uint32_t kv = m->n_kv_heads * m->head_dim;
	char name[64];

	(void)snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", i);
	norm(k, name);
	matrix(k, i, "attn_q", m->d_model, q);
	matrix(k, i, "attn_k", m->d_model, kv);
	matrix(k, i, "attn_v", m->d_model, kv);
	matrix(k, i, "attn_output", q, m->d_model);
	(void)snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", i);
	norm(k, name);
	matrix(k, i, "ffn_gate", m->d_model, m->n_ff);
	matrix(k, i, "ffn_up", m->d_model, m->n_ff);
	matrix(k, i, "ffn_down", m->n_ff, m->d_model);
}

#define PIECE_BYTES 16

static void piece(uint32_t i, char out[PIECE_BYTES], int32_t *type)
{
	static const char *const special[] = { "<unk>", "<s>", "</s>" };
	uint32_t n;

	*type = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
	if (i < 3)
		(void)snprintf(out, PIECE_BYTES, "%s", special[i]);
	else if (i < 259)
		(void)snprintf(out, PIECE_BYTES, "<0x%02X>", i - 3);
	else if (i == 259)
		(void)snprintf(out, PIECE_BYTES, "\xe2\x96\x81");
	else if (i < 286)
		(void)snprintf(out, PIECE_BYTES, "%c", 'a' + (int)i - 260);
	else if (i < 286 + 26)
		(void)snprintf(out, PIECE_BYTES, "\xe2\x96\x81%c",
			       'a' + (int)i - 286);
	else {
		n = i - 312;
		(void)snprintf(out, PIECE_BYTES, "%c%c", 'a' + (int)(n % 26),
			       'a' + (int)(n / 26 % 26));
		if (n >= 26 * 26) /* more than there are pairs */
			(void)snprintf(out, PIECE_BYTES, "#%u", n);
	}
}

static void vocabulary(struct rig_gguf *w, uint32_t n)
{
	char(*text)[PIECE_BYTES] = calloc(n, PIECE_BYTES);
	const char **strs = calloc(n, sizeof(*strs));
	float *scores = calloc(n, sizeof(*scores));
	int32_t *types = calloc(n, sizeof(*types));

	assert(text && strs && scores && types);
	for (uint32_t i = 0; i < n; i++) {
		piece(i, text[i], &types[i]);
		strs[i] = text[i];
		scores[i] = i < 259 ? 0 : -(float)(i - 259);
	}
	rig_gguf_str(w, "tokenizer.ggml.model", "llama");
	rig_gguf_strs(w, "tokenizer.ggml.tokens", strs, n);
	rig_gguf_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, n, 4);
	rig_gguf_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, n, 4);
	rig_gguf_u32(w, "tokenizer.ggml.bos_token_id", 1);
	rig_gguf_u32(w, "tokenizer.ggml.eos_token_id", 2);
	free(types);
	free(scores);
	free(strs);
	free(text);
}

static void keys(const struct rig_model *m, struct rig_gguf *w)
{
	rig_gguf_str(w, "general.architecture", "llama");
	rig_gguf_u32(w, "general.alignment", ALIGN);
	rig_gguf_u32(w, "llama.vocab_size", m->n_vocab);
	rig_gguf_u32(w, "llama.context_length", m->n_ctx);
	rig_gguf_u32(w, "llama.embedding_length", m->d_model);
	rig_gguf_u32(w, "llama.block_count", m->n_layers);
	rig_gguf_u32(w, "llama.feed_forward_length", m->n_ff);
	rig_gguf_u32(w, "llama.attention.head_count", m->n_heads);
	rig_gguf_u32(w, "llama.attention.head_count_kv", m->n_kv_heads);
	rig_gguf_u32(w, "llama.attention.key_length", m->head_dim);
	rig_gguf_u32(w, "llama.attention.value_length", m->head_dim);
	rig_gguf_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	rig_gguf_u32(w, "llama.rope.dimension_count", m->head_dim);
	rig_gguf_f32(w, "llama.rope.freq_base", 10000.0f);
	vocabulary(w, m->n_vocab);
	if (m->more_keys)
		m->more_keys(w);
}

static uint32_t or_default(uint32_t v, uint32_t def)
{
	return v ? v : def;
}

void *rig_model_gguf(const struct rig_model *spec, size_t *len)
{
	struct rig_model m = *spec;
	struct maker k = { .m = &m, .w = rig_gguf_new(3) };

	m.n_layers = or_default(m.n_layers, 2);
	m.d_model = or_default(m.d_model, 64);
	m.n_ff = or_default(m.n_ff, 96);
	m.n_vocab = or_default(m.n_vocab, 320);
	m.n_heads = or_default(m.n_heads, 2);
	m.n_kv_heads = or_default(m.n_kv_heads, 1);
	m.head_dim = or_default(m.head_dim, 32);
	m.n_ctx = or_default(m.n_ctx, 256);
	k.state = m.seed * 2654435761u + 88172645463325252ull;
	keys(&m, k.w);
	matrix_of(&k, "token_embd.weight", m.embd_type, m.d_model, m.n_vocab);
	for (uint32_t i = 0; i < m.n_layers; i++)
		layer(&k, i);
	norm(&k, "output_norm.weight");
	if (!m.tied)
		matrix_of(&k, "output.weight", m.out_type, m.d_model,
			  m.n_vocab);
	if (m.extra)
		norm(&k, m.extra);
	return rig_gguf_finish(k.w, len);
}

void rig_model_write(const struct rig_model *spec, const char *path)
{
	size_t len, n;
	void *p = rig_model_gguf(spec, &len);
	FILE *f = fopen(path, "wb");

	assert(f);
	n = fwrite(p, 1, len, f);
	assert(n == len);
	n = (size_t)fclose(f);
	assert(!n);
	free(p);
}

const char *rig_data(const char *name)
{
	static char paths[4][512];
	static unsigned int next;
	const char *root = getenv("KVD_DATA");
	char *path = paths[next++ % 4];

	(void)snprintf(path, sizeof(paths[0]), "%s/%s",
		       root ? root : "tests/data", name);
	return path;
}
