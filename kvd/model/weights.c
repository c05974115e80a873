/*
 * weights.c - check, copy and pack the tensors of a llama; see weights.h
 *
 * Every tensor of the file is used once or the file is refused: one that we
 * do not know (a bias, a rope table, an expert) would change the result.
 */
#include "kvd/model/weights.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Part of every model id: the kernels' arithmetic, and a number that goes up
 * when llama.c begins to give other bytes from the same kernels.
 */
#define LLAMA_PATH   0u
#define NUMERIC_PATH (LLAMA_PATH << 16 | KERN_NUMERIC_PATH)

#define Q8_ELEMS 32u
#define Q8_BYTES 34u

struct loader {
	struct weights *w;
	const struct llama_shape *sh;
	const struct gguf *g;
	const struct llama_sink *sink; /* or NULL */
	uint8_t *used; /* [n_tensors] */
	crypto_generichash_state hash;
	char *err;
	size_t err_len;
};

static int fail(struct loader *l, const char *name, const char *what, int ret)
{
	if (l->err_len)
		(void)snprintf(l->err, l->err_len, "tensor \"%s\" %s", name,
			       what);
	return ret;
}

/* The sink may have said why. */
static int refused(struct loader *l, const char *name, int ret)
{
	if (l->err_len && l->err[0])
		return ret;
	return fail(l, name, strerror(-ret), ret);
}

static int kern_type_of(uint32_t ggml_type)
{
	switch (ggml_type) {
	case 0:
		return KERN_F32;
	case 1:
		return KERN_F16;
	case 8:
		return KERN_Q8_0;
	case 30:
		return KERN_BF16;
	default:
		return -ENOTSUP;
	}
}

static const char *type_name(uint32_t ggml_type)
{
	static const char *const names[] = {
		[0] = "F32",	 [1] = "F16",	   [2] = "Q4_0",
		[3] = "Q4_1",	 [6] = "Q5_0",	   [7] = "Q5_1",
		[8] = "Q8_0",	 [9] = "Q8_1",	   [10] = "Q2_K",
		[11] = "Q3_K",	 [12] = "Q4_K",	   [13] = "Q5_K",
		[14] = "Q6_K",	 [15] = "Q8_K",	   [16] = "IQ2_XXS",
		[17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S",
		[20] = "IQ4_NL", [21] = "IQ3_S",   [22] = "IQ2_S",
		[23] = "IQ4_XS", [24] = "I8",	   [25] = "I16",
		[26] = "I32",	 [27] = "I64",	   [28] = "F64",
		[29] = "IQ1_M",	 [30] = "BF16",	   [34] = "TQ1_0",
		[35] = "TQ2_0",	 [39] = "MXFP4",
	};

	if (ggml_type >= sizeof(names) / sizeof(names[0]) || !names[ggml_type])
		return "unknown";
	return names[ggml_type];
}

static int fail_type(struct loader *l, const char *name, uint32_t type,
		     const char *supported)
{
	char what[96];

	(void)snprintf(what, sizeof(what), "has type %s (%u), supported are %s",
		       type_name(type), type, supported);
	return fail(l, name, what, -ENOTSUP);
}

/* Find name with the shape [rows][cols] (1-d when rows is 0), hash it. */
static int take(struct loader *l, const char *name, uint32_t cols,
		uint32_t rows, const struct gguf_tensor **out)
{
	const struct gguf_tensor *t = gguf_find(l->g, name);
	char what[160];

	if (!t)
		return fail(l, name, "is missing", -EINVAL);
	if (t->n_dims != (rows ? 2u : 1u) || t->dims[0] != cols ||
	    (rows && t->dims[1] != rows)) {
		(void)snprintf(what, sizeof(what),
			       "has %u dimensions %llu x %llu, not %u x %u",
			       t->n_dims, (unsigned long long)t->dims[0],
			       (unsigned long long)t->dims[1], cols,
			       rows ? rows : 1);
		return fail(l, name, what, -EINVAL);
	}
	if (kern_type_of(t->ggml_type) < 0)
		return fail_type(l, name, t->ggml_type, "F32, F16, BF16, Q8_0");
	l->used[t - gguf_tensor(l->g, 0)] = 1;
	crypto_generichash_update(&l->hash, (const uint8_t *)name,
				  strlen(name) + 1);
	crypto_generichash_update(&l->hash, (const uint8_t *)&t->ggml_type,
				  sizeof(t->ggml_type));
	crypto_generichash_update(&l->hash, t->data, t->n_bytes);
	*out = t;
	return 0;
}

static int load_norm(struct loader *l, const char *name, int of_ffn,
		     uint32_t layer, float **out)
{
	const struct gguf_tensor *t;
	int ret = take(l, name, l->sh->d_model, 0, &t);

	if (ret)
		return ret;
	if (t->ggml_type != 0)
		return fail_type(l, name, t->ggml_type, "F32");
	l->w->bytes += t->n_bytes;
	if (l->sink) {
		ret = l->sink->norm(l->sink->ctx, l->sh, of_ffn, layer,
				    t->data);
		return ret ? refused(l, name, ret) : 0;
	}
	*out = malloc(t->n_bytes);
	if (!*out)
		return fail(l, name, "does not fit in memory", -ENOMEM);
	memcpy(*out, t->data, t->n_bytes);
	return 0;
}

static struct kern_matrix matrix_of(const struct gguf_tensor *t)
{
	return (struct kern_matrix){
		.type = (enum kern_type)kern_type_of(t->ggml_type),
		.data = t->data,
		.n_out = (uint32_t)t->dims[1],
		.n_in = (uint32_t)t->dims[0],
	};
}

/* Where a matrix belongs. */
struct place {
	enum llama_matrix which;
	uint32_t layer;
	struct kern_weight **out;
};

static int give(struct loader *l, const char *name, const struct gguf_tensor *t,
		const struct place *p)
{
	const struct kern_matrix src = matrix_of(t);
	const int ret =
		l->sink->matrix(l->sink->ctx, l->sh, p->which, p->layer, &src);

	l->w->bytes += t->n_bytes;
	return ret ? refused(l, name, ret) : 0;
}

static int pack(struct loader *l, const char *name, const struct gguf_tensor *t,
		const struct place *p)
{
	const struct kern_matrix src = matrix_of(t);
	int ret;

	if (l->sink)
		return give(l, name, t, p);
	ret = kern_weight_pack(p->out, &src, l->sh->math);
	if (ret)
		return fail(l, name, "cannot be packed", ret);
	l->w->bytes += kern_weight_bytes(*p->out);
	return 0;
}

static int load_matrix(struct loader *l, const char *name, uint32_t cols,
		       uint32_t rows, const struct place *p)
{
	const struct gguf_tensor *t;
	int ret = take(l, name, cols, rows, &t);

	return ret ? ret : pack(l, name, t, p);
}

/* As it lies in the file. */
static int keep_embd(struct loader *l, const char *name,
		     const struct gguf_tensor *t)
{
	struct weights *w = l->w;

	w->embd = malloc(t->n_bytes);
	if (!w->embd)
		return fail(l, name, "does not fit in memory", -ENOMEM);
	memcpy(w->embd, t->data, t->n_bytes);
	w->embd_type = (enum kern_type)kern_type_of(t->ggml_type);
	w->embd_row_bytes = t->n_bytes / l->sh->n_vocab;
	w->bytes += t->n_bytes;
	return 0;
}

/* The embedding; packed too when it is the output. */
static int load_embd(struct loader *l)
{
	static const char name[] = "token_embd.weight";
	const struct place embd = { .which = LLAMA_EMBD },
			   output = { .which = LLAMA_OUTPUT,
				      .out = &l->w->output };
	const struct gguf_tensor *t;
	int ret = take(l, name, l->sh->d_model, l->sh->n_vocab, &t);

	if (ret)
		return ret;
	ret = l->sink ? give(l, name, t, &embd) : keep_embd(l, name, t);
	if (ret)
		return ret;
	if (gguf_find(l->g, "output.weight"))
		return load_matrix(l, "output.weight", l->sh->d_model,
				   l->sh->n_vocab, &output);
	return pack(l, name, t, &output);
}

static int load_layer(struct loader *l, uint32_t i)
{
	const uint32_t d = l->sh->d_model, ff = l->sh->n_ff;
	const uint32_t q = l->sh->n_heads * l->sh->head_dim;
	const uint32_t kv = l->sh->n_kv_heads * l->sh->head_dim;
	struct weights_layer *y = &l->w->layers[i];
	const struct {
		const char *name;
		uint32_t cols, rows;
		struct place p;
	} matrices[] = {
		{ "attn_q", d, q, { LLAMA_Q, i, &y->q } },
		{ "attn_k", d, kv, { LLAMA_K, i, &y->k } },
		{ "attn_v", d, kv, { LLAMA_V, i, &y->v } },
		{ "attn_output", q, d, { LLAMA_O, i, &y->o } },
		{ "ffn_gate", d, ff, { LLAMA_GATE, i, &y->gate } },
		{ "ffn_up", d, ff, { LLAMA_UP, i, &y->up } },
		{ "ffn_down", ff, d, { LLAMA_DOWN, i, &y->down } },
	};
	char name[64];
	int ret;

	(void)snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", i);
	ret = load_norm(l, name, 0, i, &y->attn_norm);
	if (ret)
		return ret;
	(void)snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", i);
	ret = load_norm(l, name, 1, i, &y->ffn_norm);
	for (size_t j = 0; j < sizeof(matrices) / sizeof(matrices[0]) && !ret;
	     j++) {
		(void)snprintf(name, sizeof(name), "blk.%u.%s.weight", i,
			       matrices[j].name);
		ret = load_matrix(l, name, matrices[j].cols, matrices[j].rows,
				  &matrices[j].p);
	}
	return ret;
}

static int check_all_used(struct loader *l)
{
	const uint64_t n = gguf_n_tensors(l->g);
	char name[80];

	for (uint64_t i = 0; i < n; i++)
		if (!l->used[i])
			return fail(l,
				    gguf_printable(gguf_tensor(l->g, i)->name,
						   name, sizeof(name)),
				    "is not part of a llama that is supported",
				    -ENOTSUP);
	return 0;
}

/* The shape goes in field by field: padding has no value. */
static void hash_shape(struct loader *l)
{
	const struct llama_shape *sh = l->sh;
	const uint32_t words[] = {
		l->sink ? l->sink->numeric_path : NUMERIC_PATH,
		(uint32_t)sh->math,
		sh->n_layers,
		sh->d_model,
		sh->n_ff,
		sh->n_vocab,
		sh->n_heads,
		sh->n_kv_heads,
		sh->head_dim,
		sh->rope.n_rot,
		(uint32_t)sh->rope.kind,
	};
	const float reals[] = { sh->norm_eps, sh->attn_scale, sh->rope.theta,
				sh->rope.scale };

	crypto_generichash_update(&l->hash, (const uint8_t *)words,
				  sizeof(words));
	crypto_generichash_update(&l->hash, (const uint8_t *)reals,
				  sizeof(reals));
}

static int load_all(struct loader *l)
{
	struct weights *w = l->w;
	int ret;

	hash_shape(l);
	ret = load_embd(l);
	for (uint32_t i = 0; i < l->sh->n_layers && !ret; i++)
		ret = load_layer(l, i);
	if (!ret)
		ret = load_norm(l, "output_norm.weight", 0, l->sh->n_layers,
				&w->norm);
	if (!ret)
		ret = check_all_used(l);
	if (!ret)
		crypto_generichash_final(&l->hash, (uint8_t *)w->id,
					 sizeof(w->id));
	return ret;
}

int weights_init(struct weights *w, const struct llama_shape *sh,
		 const struct gguf *g, const struct llama_sink *sink, char *err,
		 size_t err_len)
{
	struct loader l = {
		.w = w,
		.sh = sh,
		.g = g,
		.sink = sink,
		.err = err,
		.err_len = err_len,
	};
	int ret;

	if (sodium_init() < 0)
		return fail(&l, "", "hash: libsodium does not start", -EIO);
	crypto_generichash_init(&l.hash, NULL, 0, sizeof(w->id));
	l.used = calloc(gguf_n_tensors(g) + 1, 1);
	w->layers = calloc(sh->n_layers, sizeof(*w->layers));
	ret = l.used && w->layers ? load_all(&l) : -ENOMEM;
	free(l.used);
	return ret;
}

static void layer_fini(struct weights_layer *y)
{
	free(y->attn_norm);
	free(y->ffn_norm);
	kern_weight_free(y->q);
	kern_weight_free(y->k);
	kern_weight_free(y->v);
	kern_weight_free(y->o);
	kern_weight_free(y->gate);
	kern_weight_free(y->up);
	kern_weight_free(y->down);
}

void weights_fini(struct weights *w, uint32_t n_layers)
{
	for (uint32_t i = 0; w->layers && i < n_layers; i++)
		layer_fini(&w->layers[i]);
	free(w->layers);
	free(w->embd);
	free(w->norm);
	kern_weight_free(w->output);
}

/* A scale has 11 bits and a weight 8: the products are exact. */
static void q8_to_f32(const uint8_t *blocks, uint32_t n, float *out)
{
	for (uint32_t i = 0; i < n; i += Q8_ELEMS, blocks += Q8_BYTES) {
		const int8_t *q = (const int8_t *)blocks + 2;
		uint16_t half;
		float scale;

		memcpy(&half, blocks, sizeof(half));
		kern_to_f32(KERN_F16, &half, &scale, 1);
		for (uint32_t j = 0; j < Q8_ELEMS; j++)
			out[i + j] = scale * (float)q[j];
	}
}

void weights_widen(enum kern_type type, const void *src, uint32_t n, float *out)
{
	if (type == KERN_Q8_0)
		q8_to_f32(src, n, out);
	else if (type == KERN_F32)
		memcpy(out, src, n * sizeof(*out));
	else
		kern_to_f32(type, src, out, n);
}

void weights_embed(const struct weights *w, uint32_t token, uint32_t d_model,
		   float *out)
{
	weights_widen(w->embd_type,
		      (const uint8_t *)w->embd + token * w->embd_row_bytes,
		      d_model, out);
}
