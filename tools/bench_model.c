/*
 * bench_model.c - write a GGUF model of a given size with random weights
 *
 * For figures that depend on the size of a model and not on what it says. Weights are
 * bf16; the same sizes give the same bytes. The vocabulary is control tokens, the
 * 256 bytes, and words that nobody needs.
 */
#include "tools/bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN	   32u
#define N_VOCAB	   512u
#define CHUNK_ELEM (1u << 20)

enum { T_U32 = 4, T_I32 = 5, T_F32 = 6, T_STR = 8, T_ARR = 9 };
enum { GGML_F32 = 0, GGML_BF16 = 30 };

struct writer {
	FILE *f;
	uint64_t n_keys, n_tensors, data_bytes, seed;
};

static void put(struct writer *w, const void *p, size_t n)
{
	(void)fwrite(p, 1, n, w->f); /* ferror tells at the end */
}

static void put_u32(struct writer *w, uint32_t v)
{
	put(w, &v, sizeof(v));
}

static void put_u64(struct writer *w, uint64_t v)
{
	put(w, &v, sizeof(v));
}

static void put_str(struct writer *w, const char *s)
{
	put_u64(w, strlen(s));
	put(w, s, strlen(s));
}

static void key(struct writer *w, const char *name, uint32_t type)
{
	put_str(w, name);
	put_u32(w, type);
	w->n_keys++;
}

static void key_u32(struct writer *w, const char *name, uint32_t v)
{
	key(w, name, T_U32);
	put_u32(w, v);
}

static void key_f32(struct writer *w, const char *name, float v)
{
	key(w, name, T_F32);
	put(w, &v, sizeof(v));
}

static void key_str(struct writer *w, const char *name, const char *v)
{
	key(w, name, T_STR);
	put_str(w, v);
}

static void key_array(struct writer *w, const char *name, uint32_t type)
{
	key(w, name, T_ARR);
	put_u32(w, type);
	put_u64(w, N_VOCAB);
}

static void vocabulary(struct writer *w)
{
	char text[16];

	key_str(w, "tokenizer.ggml.model", "llama");
	key_array(w, "tokenizer.ggml.tokens", T_STR);
	for (uint32_t i = 0; i < N_VOCAB; i++) {
		if (i < 3)
			snprintf(text, sizeof(text), "%s",
				 i == 0	  ? "<unk>"
				 : i == 1 ? "<s>"
					  : "</s>");
		else if (i < 259)
			snprintf(text, sizeof(text), "<0x%02X>", i - 3);
		else
			snprintf(text, sizeof(text), "w%u", i);
		put_str(w, text);
	}
	key_array(w, "tokenizer.ggml.scores", T_F32);
	for (uint32_t i = 0; i < N_VOCAB; i++) {
		const float score = -(float)i;

		put(w, &score, sizeof(score));
	}
	key_array(w, "tokenizer.ggml.token_type", T_I32);
	for (uint32_t i = 0; i < N_VOCAB;
	     i++) /* unknown, control, byte, normal */
		put_u32(w, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
	key_u32(w, "tokenizer.ggml.bos_token_id", 1);
	key_u32(w, "tokenizer.ggml.eos_token_id", 2);
	key_u32(w, "tokenizer.ggml.unknown_token_id", 0);
}

static void keys(struct writer *w, const struct bench_shape *s)
{
	key_str(w, "general.architecture", "llama");
	key_u32(w, "general.alignment", ALIGN);
	key_u32(w, "llama.vocab_size", N_VOCAB);
	key_u32(w, "llama.context_length", s->n_ctx);
	key_u32(w, "llama.embedding_length", s->d_model);
	key_u32(w, "llama.block_count", s->n_layers);
	key_u32(w, "llama.feed_forward_length", s->n_ff);
	key_u32(w, "llama.attention.head_count", s->n_heads);
	key_u32(w, "llama.attention.head_count_kv", s->n_kv_heads);
	key_u32(w, "llama.attention.key_length", s->head_dim);
	key_u32(w, "llama.attention.value_length", s->head_dim);
	key_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	key_u32(w, "llama.rope.dimension_count", s->head_dim);
	key_f32(w, "llama.rope.freq_base", 10000.0f);
	vocabulary(w);
}

/* Either describe a tensor (pass 0) or write its data (pass 1). */
static void tensor(struct writer *w, int pass, const char *name, uint64_t n_in,
		   uint64_t n_out)
{
	const int is_norm = !n_out;
	const uint64_t n = n_in * (is_norm ? 1 : n_out);
	const uint64_t bytes = n * (is_norm ? 4 : 2);
	static const char zeros[ALIGN];

	if (!pass) {
		put_str(w, name);
		put_u32(w, is_norm ? 1 : 2);
		put_u64(w, n_in);
		if (!is_norm)
			put_u64(w, n_out);
		put_u32(w, is_norm ? GGML_F32 : GGML_BF16);
		put_u64(w, w->data_bytes);
		w->data_bytes += KV_ALIGN_UP(bytes, ALIGN);
		w->n_tensors++;
		return;
	}
	for (uint64_t i = 0; i < n && is_norm; i++) {
		const float one = 1.0f;

		put(w, &one, sizeof(one));
	}
	for (uint64_t i = 0; i < n && !is_norm;) {
		static uint16_t chunk[CHUNK_ELEM];
		const uint64_t m = KV_MIN((uint64_t)CHUNK_ELEM, n - i);
		/* an exponent that keeps the sums of n_in products near 1 */
		const uint16_t exponent =
			(uint16_t)(126 - (int)(log2((double)n_in) / 2)) << 7;

		for (uint64_t k = 0; k < m; k++) {
			w->seed = w->seed * 6364136223846793005u + 1;
			chunk[k] = (uint16_t)((w->seed >> 63 << 15) | exponent |
					      (w->seed >> 50 & 0x7f));
		}
		put(w, chunk, m * sizeof(chunk[0]));
		i += m;
	}
	put(w, zeros, KV_ALIGN_UP(bytes, ALIGN) - bytes);
}

static void tensors(struct writer *w, int pass, const struct bench_shape *s)
{
	const uint64_t d = s->d_model, q = s->n_heads * s->head_dim;
	const uint64_t kv = s->n_kv_heads * s->head_dim;
	const struct {
		const char *name;
		uint64_t n_in, n_out;
	} list[] = {
		{ "attn_norm", d, 0 },	    { "attn_q", d, q },
		{ "attn_k", d, kv },	    { "attn_v", d, kv },
		{ "attn_output", q, d },    { "ffn_norm", d, 0 },
		{ "ffn_gate", d, s->n_ff }, { "ffn_up", d, s->n_ff },
		{ "ffn_down", s->n_ff, d },
	};
	char name[64];

	tensor(w, pass, "token_embd.weight", d, N_VOCAB);
	for (uint32_t l = 0; l < s->n_layers; l++)
		for (size_t i = 0; i < KV_ARRAY_LEN(list); i++) {
			snprintf(name, sizeof(name), "blk.%u.%s.weight", l,
				 list[i].name);
			tensor(w, pass, name, list[i].n_in, list[i].n_out);
		}
	tensor(w, pass, "output_norm.weight", d, 0);
}

int bench_model_write(const struct bench_shape *s, const char *path)
{
	struct writer w = { .f = fopen(path, "wbe"), .seed = 20241 };
	static const char zeros[ALIGN];
	long at;
	int bad;

	if (!w.f)
		return -errno;
	put(&w, "GGUF", 4);
	put_u32(&w, 3);
	put_u64(&w, 0); /* the counts come when they are known */
	put_u64(&w, 0);
	keys(&w, s);
	tensors(&w, 0, s);
	at = ftell(w.f);
	put(&w, zeros, KV_ALIGN_UP((size_t)at, ALIGN) - (size_t)at);
	tensors(&w, 1, s);
	(void)fseek(w.f, 8, SEEK_SET); /* ferror tells */
	put_u64(&w, w.n_tensors);
	put_u64(&w, w.n_keys);
	bad = ferror(w.f);
	return fclose(w.f) || bad ? -EIO : 0;
}
