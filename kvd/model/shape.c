/*
 * shape.c - the keys of a GGUF to the shape of a llama; see weights.h
 *
 * A key that would change the arithmetic and is not implemented refuses the
 * file: a model that answers a little wrong is worse than none.
 */
#include "kvd/model/weights.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DIM_MAX	   (1u << 20) /* of a row; products stay below 2^63 */
#define LAYERS_MAX 1024u

struct keys {
	const struct gguf *g;
	char *err;
	size_t err_len;
	int ret; /* the first error; later reads keep it */
};

__attribute__((format(printf, 3, 4))) static void fail(struct keys *k, int ret,
						       const char *fmt, ...)
{
	va_list ap;

	if (k->ret)
		return;
	k->ret = ret;
	va_start(ap, fmt);
	(void)vsnprintf(k->err, k->err_len, fmt, ap); /* cut is fine */
	va_end(ap);
}

/* 1..max. */
static uint32_t need_u32(struct keys *k, const char *key, uint32_t max)
{
	uint32_t v = 0;
	int ret = gguf_get_u32(k->g, key, &v);

	if (ret)
		fail(k, -EINVAL, "key \"%s\" is %s", key,
		     ret == -ENOENT ? "missing" : "not an uint32");
	else if (!v || v > max)
		fail(k, -EINVAL, "key \"%s\" is %u, not in 1..%u", key, v, max);
	return v;
}

static uint32_t opt_u32(struct keys *k, const char *key, uint32_t def,
			uint32_t max)
{
	uint32_t v;

	if (gguf_get_u32(k->g, key, &v) == -ENOENT)
		return def;
	return need_u32(k, key, max);
}

static float opt_f32(struct keys *k, const char *key, float def)
{
	float v = def;
	int ret = gguf_get_f32(k->g, key, &v);

	if (ret && ret != -ENOENT)
		fail(k, -EINVAL, "key \"%s\" is not a float32", key);
	else if (!isfinite(v) || v <= 0)
		fail(k, -EINVAL, "key \"%s\" is %g", key, (double)v);
	return v;
}

static void check_arch(struct keys *k)
{
	struct gguf_str s;
	char name[48];

	if (gguf_get_str(k->g, "general.architecture", &s))
		fail(k, -EINVAL, "key \"general.architecture\" is missing");
	else if (s.len != 5 || memcmp(s.s, "llama", 5))
		fail(k, -ENOTSUP,
		     "architecture \"%s\" is not supported, only \"llama\"",
		     gguf_printable(s, name, sizeof(name)));
}

static void check_features(struct keys *k)
{
	static const char *const unknown[] = {
		"llama.attention.sliding_window",
		"llama.attention.max_alibi_bias",
		"llama.attention.clamp_kqv",
		"llama.attention.layer_norm_epsilon",
		"llama.attention.scale",
		"llama.attention.causal",
		"llama.attn_logit_softcapping",
		"llama.final_logit_softcapping",
		"llama.logit_scale",
		"llama.residual_scale",
		"llama.embedding_scale",
		"llama.use_parallel_residual",
		"llama.expert_used_count",
		"llama.expert_shared_count",
	};
	uint32_t n = 0;
	int ret = gguf_get_u32(k->g, "llama.expert_count", &n);

	if (n || (ret && ret != -ENOENT))
		fail(k, -ENOTSUP,
		     "mixture of experts (llama.expert_count) is not supported");
	for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		ret = gguf_get_u32(k->g, unknown[i], &n);
		if (ret == -ENOENT || (!ret && !n))
			continue;
		fail(k, -ENOTSUP, "key \"%s\" is not supported", unknown[i]);
	}
}

static float rope_scale(struct keys *k)
{
	struct gguf_str s = { "none", 4 };
	char name[48];
	float factor = opt_f32(k, "llama.rope.scale_linear", 1.0f);
	int ret = gguf_get_str(k->g, "llama.rope.scaling.type", &s);

	if (ret && ret != -ENOENT)
		fail(k, -EINVAL,
		     "key \"llama.rope.scaling.type\" is not a string");
	if (s.len == 6 && !memcmp(s.s, "linear", 6))
		factor = opt_f32(k, "llama.rope.scaling.factor", factor);
	else if (s.len != 4 || memcmp(s.s, "none", 4))
		fail(k, -ENOTSUP,
		     "rope scaling \"%s\" is not supported, only none, linear",
		     gguf_printable(s, name, sizeof(name)));
	return 1.0f / factor;
}

static void read_heads(struct keys *k, struct llama_shape *sh)
{
	uint32_t v_len;

	sh->n_heads = need_u32(k, "llama.attention.head_count", 1024);
	sh->n_kv_heads =
		opt_u32(k, "llama.attention.head_count_kv", sh->n_heads, 1024);
	if (k->ret)
		return;
	if (sh->n_heads % sh->n_kv_heads)
		fail(k, -EINVAL, "%u heads are no multiple of %u kv heads",
		     sh->n_heads, sh->n_kv_heads);
	sh->head_dim = opt_u32(k, "llama.attention.key_length",
			       sh->d_model / sh->n_heads, DIM_MAX);
	v_len = opt_u32(k, "llama.attention.value_length", sh->head_dim,
			DIM_MAX);
	if (v_len != sh->head_dim)
		fail(k, -ENOTSUP, "values of %u and keys of %u elements", v_len,
		     sh->head_dim);
	if (sh->head_dim < KERN_HEAD_DIM_MIN ||
	    sh->head_dim > KERN_HEAD_DIM_MAX || sh->head_dim % 8)
		fail(k, -ENOTSUP,
		     "head dimension %u, supported are multiples of 8 in %u..%u",
		     sh->head_dim, KERN_HEAD_DIM_MIN, KERN_HEAD_DIM_MAX);
}

static void read_rope(struct keys *k, struct llama_shape *sh)
{
	sh->rope = (struct kern_rope){
		.kind = KERN_ROPE_INTERLEAVED,
		.n_rot = opt_u32(k, "llama.rope.dimension_count", sh->head_dim,
				 DIM_MAX),
		.theta = opt_f32(k, "llama.rope.freq_base", 10000.0f),
		.scale = rope_scale(k),
	};
	if (sh->rope.n_rot > sh->head_dim || sh->rope.n_rot % 2)
		fail(k, -EINVAL, "rope of %u of %u dimensions", sh->rope.n_rot,
		     sh->head_dim);
}

int weights_shape(struct llama_shape *sh, const struct gguf *g,
		  uint32_t n_vocab, char *err, size_t err_len)
{
	struct keys k = { .g = g, .err = err, .err_len = err_len };
	float eps;

	check_arch(&k);
	check_features(&k);
	sh->n_layers = need_u32(&k, "llama.block_count", LAYERS_MAX);
	sh->d_model = need_u32(&k, "llama.embedding_length", DIM_MAX);
	sh->n_ff = need_u32(&k, "llama.feed_forward_length", DIM_MAX);
	sh->n_ctx = need_u32(&k, "llama.context_length", 1u << 30);
	sh->n_vocab = opt_u32(&k, "llama.vocab_size", n_vocab, UINT32_MAX);
	if (sh->n_vocab != n_vocab)
		fail(&k, -EINVAL, "key \"llama.vocab_size\" is %u, tokens %u",
		     sh->n_vocab, n_vocab);
	if (gguf_get_f32(g, "llama.attention.layer_norm_rms_epsilon", &eps))
		fail(&k, -EINVAL,
		     "key \"llama.attention.layer_norm_rms_epsilon\" is "
		     "missing or not a float32");
	sh->norm_eps =
		opt_f32(&k, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	read_heads(&k, sh);
	if (!k.ret)
		read_rope(&k, sh);
	if (!k.ret)
		sh->attn_scale = (float)(1.0 / sqrt((double)sh->head_dim));
	return k.ret;
}
