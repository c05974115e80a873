/*
 * fuzz_gguf.c - a GGUF from anywhere: parser, tokenizer, model
 *
 * What is accepted is used: every tensor's bytes are read, some text is
 * encoded and decoded, and a model runs one step.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/model/gguf.h"
#include "kvd/model/llama.h"
#include "kvd/model/tokenizer.h"

#define FILE_MAX_BYTES (1u << 20) /* and with it all that is allocated */
#define WEIGHTS_MAX    (1u << 24)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_tensors(const struct gguf *g)
{
	volatile uint8_t sum = 0;

	for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
		const struct gguf_tensor *t = gguf_tensor(g, i);
		const uint8_t *p = t->data;

		if (t->n_bytes)
			sum = (uint8_t)(sum + p[0] + p[t->n_bytes - 1]);
	}
}

static void use_tokenizer(const struct tokenizer *t)
{
	static const char text[] = " the\xe2\x96\x81 \xff<s>\n ab";
	uint32_t ids[64];
	char back[512];
	int64_t n = tokenizer_encode(t, text, sizeof(text), ids, 64);

	for (int64_t i = 0; i < n && i < 64; i++)
		if (ids[i] >= tokenizer_n_vocab(t))
			abort();
	if (n > 0)
		(void)tokenizer_decode(t, ids, n < 64 ? (size_t)n : 64, back,
				       sizeof(back));
}

static int no_attn(void *ctx, uint32_t layer, float *q, float *k, float *v,
		   float *o)
{
	(void)layer;
	(void)k;
	(void)v;
	memcpy(o, q, *(const size_t *)ctx * sizeof(*o));
	return 0;
}

static void use_model(const struct llama *m)
{
	const struct llama_shape *sh = llama_shape(m);
	const uint32_t tokens[2] = { 0, sh->n_vocab - 1 }, row = 1;
	size_t n = 2ull * sh->n_heads * sh->head_dim; /* of q and of o */
	struct llama_scratch *s;
	struct llama_batch b = {
		.n_rows = 2,
		.tokens = tokens,
		.n_logits = 1,
		.logit_rows = &row,
		.attn = no_attn,
		.ctx = &n,
	};

	if (llama_weight_bytes(m) > WEIGHTS_MAX ||
	    llama_scratch_new(&s, m, 2, 1))
		return;
	b.logits = malloc(sh->n_vocab * sizeof(float));
	if (b.logits && llama_step(m, s, NULL, &b))
		abort();
	free(b.logits);
	llama_scratch_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int ready;
	struct tokenizer *t;
	struct llama *m;
	struct gguf *g;
	char err[128];
	void *copy;

	if (!ready) {
		(void)kern_init(KERN_ISA_AMX);
		ready = 1;
	}
	if (size > FILE_MAX_BYTES)
		return 0;
	copy = malloc(size ? size : 1); /* aligned, and ends where it ends */
	if (!copy)
		return 0;
	memcpy(copy, data, size);
	if (gguf_open_mem(&g, copy, size, err, sizeof(err)))
		goto out_free;
	use_tensors(g);
	if (!tokenizer_new(&t, g, err, sizeof(err))) {
		use_tokenizer(t);
		tokenizer_free(t);
	}
	if (!llama_open_gguf(&m, g, size % 2 ? KERN_BF16 : KERN_F32, err,
			     sizeof(err))) {
		use_model(m);
		llama_close(m);
	}
	gguf_close(g);
out_free:
	free(copy);
	return 0;
}
