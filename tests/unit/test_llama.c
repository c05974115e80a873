/*
 * test_llama.c - steps of real and of tiny models
 *
 * The attention here is the plainest that there is: one contiguous cache a
 * sequence, rotated keys, kern_attn() over one span. The real models must give
 * the reference's tokens, logits and likelihoods.
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvd/base/pool.h"
#include "kvd/model/gguf.h"
#include "kvd/model/llama.h"
#include "kvd/model/tokenizer.h"
#include "tests/rig/rig_gguf.h"

#define ROOM   1024u /* tokens of a sequence */
#define SLICE  128u
#define LAYERS 8u
#define SEQS   4u

/* K and V of one sequence: [kv head][ROOM][head_dim] of the math type. */
struct seq {
	uint32_t n;
	uint8_t *k[LAYERS], *v[LAYERS];
};

/* A model, its memory, and the rows of the step that is under way. */
struct bench {
	struct llama *m;
	struct llama_scratch *scratch;
	struct pool *pool;
	struct seq seqs[SEQS];
	uint32_t tokens[SLICE];
	uint32_t row_seq[SLICE];
	int64_t pos[SLICE];
	uint32_t n_rows;
	int attn_ret;
};

static size_t elem(const struct bench *b)
{
	return kern_type_bytes(llama_shape(b->m)->math);
}

static size_t head_bytes(const struct bench *b)
{
	return ROOM * llama_shape(b->m)->head_dim * elem(b);
}

static void bench_init(struct bench *b, struct llama *m, unsigned int threads)
{
	const struct llama_shape *sh = llama_shape(m);

	*b = (struct bench){ .m = m };
	ck_assert_uint_le(sh->n_layers, LAYERS);
	ck_assert_int_eq(llama_scratch_new(&b->scratch, m, SLICE, SLICE), 0);
	if (threads)
		ck_assert_int_eq(pool_new(&b->pool, threads), 0);
	for (uint32_t i = 0; i < SEQS * sh->n_layers; i++) {
		struct seq *s = &b->seqs[i / sh->n_layers];
		const uint32_t l = i % sh->n_layers;

		s->k[l] = calloc(sh->n_kv_heads, head_bytes(b));
		s->v[l] = calloc(sh->n_kv_heads, head_bytes(b));
		ck_assert(s->k[l] && s->v[l]);
	}
}

static void bench_fini(struct bench *b)
{
	for (uint32_t i = 0; i < SEQS * LAYERS; i++) {
		free(b->seqs[i / LAYERS].k[i % LAYERS]);
		free(b->seqs[i / LAYERS].v[i % LAYERS]);
	}
	if (b->pool)
		pool_free(b->pool);
	llama_scratch_free(b->scratch);
}

/* Row of heads at position pos into the cache, in the math type. */
static void store(const struct bench *b, uint8_t *cache, const float *x,
		  int64_t pos)
{
	const struct llama_shape *sh = llama_shape(b->m);

	for (uint32_t h = 0; h < sh->n_kv_heads; h++) {
		uint8_t *to = cache + h * head_bytes(b) +
			      (size_t)pos * sh->head_dim * elem(b);

		if (sh->math == KERN_F32)
			memcpy(to, x + h * sh->head_dim, sh->head_dim * 4);
		else
			kern_from_f32(KERN_BF16, x + h * sh->head_dim, to,
				      sh->head_dim);
	}
}

/* Attention of one row, q already rotated. */
static void attend(const struct bench *b, const struct seq *s, uint32_t layer,
		   const float *q, int64_t pos, float *o)
{
	const struct llama_shape *sh = llama_shape(b->m);
	const uint32_t n = sh->n_heads * sh->head_dim;
	float m[64], l[64];
	uint16_t q16[64 * 64];
	const struct kern_span span = {
		.k = s->k[layer],
		.v = s->v[layer],
		.head_bytes = head_bytes(b),
		.page_bytes = sh->n_kv_heads * head_bytes(b),
		.page_tokens = ROOM,
		.n_tokens = (uint32_t)pos + 1,
	};
	struct kern_attn a = {
		.type = sh->math,
		.n_heads = sh->n_heads,
		.n_kv_heads = sh->n_kv_heads,
		.head_dim = sh->head_dim,
		.scale = sh->attn_scale,
		.q = q,
		.q_variant_elems = n,
		.q_pos = &pos,
		.n_rows = 1,
		.spans = &span,
		.n_spans = 1,
		.o = o,
		.m = m,
		.l = l,
		.kv_head_to = sh->n_kv_heads,
		.row_to = 1,
	};

	if (sh->math == KERN_BF16) {
		kern_from_f32(KERN_BF16, q, q16, n);
		a.q = q16;
	}
	kern_attn_clear(&a);
	ck_assert_int_eq(kern_attn(&a), 0);
	kern_attn_finish(&a);
}

static int attn(void *ctx, uint32_t layer, float *q, float *k, float *v,
		float *o)
{
	struct bench *b = ctx;
	const struct llama_shape *sh = llama_shape(b->m);
	const size_t nq = (size_t)sh->n_heads * sh->head_dim;
	const size_t nkv = (size_t)sh->n_kv_heads * sh->head_dim;

	if (b->attn_ret && layer)
		return b->attn_ret;
	kern_rope(&sh->rope, k, k, b->pos, b->n_rows, sh->n_kv_heads,
		  sh->head_dim);
	kern_rope(&sh->rope, q, q, b->pos, b->n_rows, sh->n_heads,
		  sh->head_dim);
	for (uint32_t r = 0; r < b->n_rows; r++) {
		struct seq *s = &b->seqs[b->row_seq[r]];

		store(b, s->k[layer], k + r * nkv, b->pos[r]);
		store(b, s->v[layer], v + r * nkv, b->pos[r]);
	}
	for (uint32_t r = 0; r < b->n_rows; r++)
		attend(b, &b->seqs[b->row_seq[r]], layer, q + r * nq, b->pos[r],
		       o + r * nq);
	return 0;
}

static void push(struct bench *b, uint32_t i_seq, uint32_t token)
{
	const uint32_t r = b->n_rows++;

	ck_assert_uint_lt(r, SLICE);
	ck_assert_uint_lt(b->seqs[i_seq].n, ROOM);
	b->tokens[r] = token;
	b->row_seq[r] = i_seq;
	b->pos[r] = b->seqs[i_seq].n++;
}

/* Run the rows pushed; logits [n_rows][n_vocab] of all of them. */
static int step(struct bench *b, float *logits)
{
	uint32_t rows[SLICE];
	const struct llama_batch batch = {
		.n_rows = b->n_rows,
		.tokens = b->tokens,
		.n_logits = b->n_rows,
		.logit_rows = rows,
		.logits = logits,
		.attn = attn,
		.ctx = b,
	};
	int ret;

	for (uint32_t i = 0; i < SLICE; i++)
		rows[i] = i;
	ret = llama_step(b->m, b->scratch, b->pool, &batch);
	b->n_rows = 0;
	return ret;
}

/* Append n tokens to sequence i_seq; logits [n][n_vocab]. */
static void feed(struct bench *b, uint32_t i_seq, const uint32_t *tokens,
		 uint32_t n, uint32_t slice, float *logits)
{
	const uint32_t n_vocab = llama_shape(b->m)->n_vocab;

	for (uint32_t at = 0; at < n;) {
		const uint32_t from = at;

		for (; at < n && at - from < slice; at++)
			push(b, i_seq, tokens[at]);
		ck_assert_int_eq(step(b, logits + (size_t)from * n_vocab), 0);
	}
}

static struct llama *open_file(const char *name, enum kern_type math)
{
	struct llama *m;
	char err[256] = "";

	ck_assert_msg(!llama_open(&m, rig_data(name), math, err, sizeof(err)),
		      "%s", err);
	return m;
}

static float *new_logits(const struct llama *m, uint32_t n)
{
	float *p = malloc((size_t)n * llama_shape(m)->n_vocab * sizeof(*p));

	ck_assert_ptr_nonnull(p);
	return p;
}

/* Sum of -ln p of tokens 1..n-1. */
static double nll(const float *logits, const uint32_t *tokens, uint32_t n,
		  uint32_t n_vocab)
{
	double sum = 0;

	for (uint32_t i = 0; i + 1 < n; i++) {
		const float *row = logits + (size_t)i * n_vocab;

		sum += (double)kern_logsumexp(row, n_vocab) -
		       (double)row[tokens[i + 1]];
	}
	return sum;
}

/* ---- the reference ------------------------------------------------------ */

static json_t *reference(void)
{
	json_t *j = json_load_file(rig_data("eval/reference.json"), 0, NULL);

	ck_assert_ptr_nonnull(j);
	return j;
}

static uint32_t ids_of(const json_t *array, uint32_t *out, uint32_t max)
{
	const size_t n = json_array_size(array);

	ck_assert_uint_le(n, max);
	for (size_t i = 0; i < n; i++)
		out[i] = (uint32_t)json_integer_value(json_array_get(array, i));
	return (uint32_t)n;
}

/* Greedy from the last row of logits; returns how many of want are met. */
static uint32_t greedy_equal(struct bench *b, const float *last,
			     const uint32_t *want, uint32_t n)
{
	const uint32_t n_vocab = llama_shape(b->m)->n_vocab;
	float *logits = new_logits(b->m, 1);
	uint32_t i;

	for (i = 0; i < n; i++) {
		const uint32_t id = kern_argmax(i ? logits : last, n_vocab);

		if (id != want[i])
			break;
		feed(b, 0, &id, 1, 1, logits);
	}
	free(logits);
	return i;
}

static void top5_equal(const float *last, const json_t *top5)
{
	json_t *t;
	size_t i;

	json_array_foreach(top5, i, t)
	{
		const json_int_t id =
			json_integer_value(json_object_get(t, "token"));
		const double want =
			json_real_value(json_object_get(t, "logit"));

		ck_assert_msg(fabs((double)last[id] - want) < 1e-3,
			      "logit of %d is %f, not %f", (int)id,
			      (double)last[id], want);
	}
}

/* Prefill one item; returns how many of its 16 greedy tokens are met. */
static uint32_t run_item(struct bench *b, const json_t *item, double *nll_off)
{
	const uint32_t n_vocab = llama_shape(b->m)->n_vocab;
	const double want_nll =
		json_real_value(json_object_get(item, "prompt_nll"));
	float *logits = new_logits(b->m, ROOM);
	uint32_t ids[ROOM], want[16], n, met;
	const float *last;

	n = ids_of(json_object_get(item, "token_ids"), ids, ROOM);
	ck_assert_uint_eq(ids_of(json_object_get(item, "greedy_16"), want, 16),
			  16);
	b->seqs[0].n = 0;
	feed(b, 0, ids, n, SLICE, logits);
	last = logits + (size_t)(n - 1) * n_vocab;
	*nll_off = fabs(nll(logits, ids, n, n_vocab) / want_nll - 1);
	if (llama_shape(b->m)->math == KERN_F32)
		top5_equal(last, json_object_get(item, "first_step_top5"));
	met = greedy_equal(b, last, want, 16);
	free(logits);
	return met;
}

START_TEST(f32_equals_the_reference)
{
	struct llama *m = open_file("models/rag-mini.gguf", KERN_F32);
	json_t *ref = reference(), *item;
	struct bench b;
	double off;
	size_t i;

	bench_init(&b, m, 2);
	json_array_foreach(json_object_get(ref, "items"), i, item)
	{
		ck_assert_msg(run_item(&b, item, &off) == 16,
			      "item %zu: other tokens", i);
		ck_assert_msg(off < 1e-4, "item %zu: nll off by %g", i, off);
	}
	ck_assert_uint_eq(i, 20);
	bench_fini(&b);
	llama_close(m);
	json_decref(ref);
}
END_TEST

START_TEST(bf16_is_close_to_the_reference)
{
	struct llama *m = open_file("models/rag-mini.gguf", KERN_BF16);
	json_t *ref = reference(), *item;
	uint32_t first = 0, all = 0, tokens = 0;
	double off, worst = 0;
	struct bench b;
	size_t i;

	bench_init(&b, m, 2);
	json_array_foreach(json_object_get(ref, "items"), i, item)
	{
		const uint32_t met = run_item(&b, item, &off);

		tokens += met;
		first += met > 0;
		all += met == 16;
		worst = off > worst ? off : worst;
	}
	printf("bf16: %u of 20 first tokens, %u of 20 answers of 16, %u of 320 "
	       "tokens, nll off by at most %.3f %%\n",
	       first, all, tokens, 100 * worst);
	ck_assert_uint_ge(first, 18);
	ck_assert_uint_ge(all, 10);
	ck_assert(worst < 0.01);
	bench_fini(&b);
	llama_close(m);
	json_decref(ref);
}
END_TEST

/* Mean -ln p over windows of BOS + 255 tokens of our own text. */
static double text_nll(enum kern_type math, const char *name, uint32_t *n_all)
{
	struct llama *m = open_file(name, math);
	const uint32_t n_vocab = llama_shape(m)->n_vocab;
	float *logits = new_logits(m, 256);
	static char text[16384];
	static uint32_t ids[8192];
	FILE *f = fopen(rig_data("text-own.txt"), "r");
	uint32_t window[256];
	struct bench b;
	double sum = 0;
	size_t len;
	int64_t n;

	ck_assert_ptr_nonnull(f);
	len = fread(text, 1, sizeof(text), f);
	ck_assert_int_eq(fclose(f), 0);
	n = tokenizer_encode(llama_tokenizer(m), text, len, ids, 8192);
	ck_assert(n > 500 && n <= 8192);
	bench_init(&b, m, 2);
	*n_all = 0;
	for (int64_t at = 0; at + 255 <= n; at += 255) {
		window[0] = tokenizer_bos(llama_tokenizer(m));
		memcpy(window + 1, ids + at, 255 * sizeof(*ids));
		b.seqs[0].n = 0;
		feed(&b, 0, window, 256, SLICE, logits);
		sum += nll(logits, window, 256, n_vocab);
		*n_all += 255;
	}
	bench_fini(&b);
	free(logits);
	llama_close(m);
	return sum / *n_all;
}

START_TEST(perplexity_is_that_of_a_model)
{
	uint32_t n;
	const double f32 = text_nll(KERN_F32, "models/rag-mini.gguf", &n);
	const double bf16 = text_nll(KERN_BF16, "models/rag-mini.gguf", &n);
	const double draft = text_nll(KERN_F32, "models/rag-draft.gguf", &n);

	printf("perplexity of %u tokens: %.2f f32, %.2f bf16; draft %.2f\n", n,
	       exp(f32), exp(bf16), exp(draft));
	ck_assert(exp(f32) > 5 && exp(f32) < 60);
	ck_assert(fabs(bf16 - f32) < 0.01);
	ck_assert(draft > f32 && exp(draft) < 200);
}
END_TEST

/* ---- determinism -------------------------------------------------------- */

START_TEST(a_tied_model_decodes_the_same_twice)
{
	struct llama *m =
		open_file("models/rag-draft.gguf", _i ? KERN_BF16 : KERN_F32);
	const uint32_t n_vocab = llama_shape(m)->n_vocab;
	const char *text = "The road over the hills is";
	float *logits = new_logits(m, 64);
	uint32_t ids[64], got[2][24];
	struct bench b;
	int64_t n;

	ids[0] = tokenizer_bos(llama_tokenizer(m));
	n = tokenizer_encode(llama_tokenizer(m), text, strlen(text), ids + 1,
			     63);
	bench_init(&b, m, 0);
	for (uint32_t round = 0; round < 2; round++) {
		uint32_t id;

		feed(&b, round, ids, (uint32_t)n + 1, SLICE, logits);
		id = kern_argmax(logits + (size_t)n * n_vocab, n_vocab);
		for (uint32_t i = 0; i < 24; i++) {
			got[round][i] = id;
			feed(&b, round, &id, 1, 1, logits);
			id = kern_argmax(logits, n_vocab);
		}
	}
	ck_assert(!memcmp(got[0], got[1], sizeof(got[0])));
	bench_fini(&b);
	free(logits);
	llama_close(m);
}
END_TEST

static const struct rig_model specs[] = {
	{ .seed = 1 },
	{ .seed = 2, .tied = 1 },
	{ .seed = 3,
	  .types = { KERN_F16, KERN_F16, KERN_F16, KERN_F16 },
	  .embd_type = KERN_F16,
	  .tied = 1 },
	{ .seed = 4,
	  .types = { KERN_BF16, KERN_BF16, KERN_BF16, KERN_BF16 },
	  .embd_type = KERN_BF16,
	  .out_type = KERN_BF16 },
	{ .seed = 5,
	  .types = { KERN_Q8_0, KERN_Q8_0, KERN_Q8_0, KERN_Q8_0 },
	  .embd_type = KERN_Q8_0,
	  .tied = 1 },
	{ .seed = 6,
	  .types = { KERN_F32, KERN_Q8_0, KERN_BF16, KERN_F16 },
	  .embd_type = KERN_Q8_0,
	  .out_type = KERN_F16 },
	/* nothing a multiple of a panel: ffn 72, 325 tokens, width 40 */
	{ .seed = 7,
	  .d_model = 40,
	  .n_ff = 72,
	  .n_vocab = 325,
	  .n_heads = 3,
	  .n_kv_heads = 3,
	  .head_dim = 40 },
	{ .seed = 8,
	  .n_layers = 1,
	  .d_model = 96,
	  .n_ff = 200,
	  .n_vocab = 333,
	  .n_heads = 6,
	  .n_kv_heads = 2,
	  .head_dim = 56,
	  .types = { KERN_F16, KERN_BF16, KERN_F32, KERN_F16 } },
};
#define N_SPECS ((int)(sizeof(specs) / sizeof(specs[0])))

static struct llama *open_spec(const struct rig_model *spec,
			       enum kern_type math)
{
	struct llama *m;
	struct gguf *g;
	char err[256] = "";
	size_t len;
	void *p = rig_model_gguf(spec, &len);

	ck_assert_msg(!gguf_open_mem(&g, p, len, err, sizeof(err)), "%s", err);
	ck_assert_msg(!llama_open_gguf(&m, g, math, err, sizeof(err)), "%s",
		      err);
	gguf_close(g);
	memset(p, 0xee, len); /* nothing may depend on it any more */
	free(p);
	return m;
}

static void random_ids(const struct llama *m, uint64_t seed, uint32_t *ids,
		       uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		ids[i] =
			(uint32_t)(rig_random(&seed) % llama_shape(m)->n_vocab);
}

/* All rows at once, in slices, one by one: the same bytes. */
START_TEST(slices_do_not_show)
{
	struct llama *m =
		open_spec(&specs[_i / 2], _i % 2 ? KERN_BF16 : KERN_F32);
	const size_t bytes = 70ull * llama_shape(m)->n_vocab * sizeof(float);
	float *a = new_logits(m, 70), *c = new_logits(m, 70);
	uint32_t ids[70];
	struct bench b;

	random_ids(m, 5, ids, 70);
	bench_init(&b, m, 0);
	feed(&b, 0, ids, 70, 70, a);
	for (size_t i = 0; i < bytes / sizeof(float); i++)
		ck_assert(isfinite(a[i]));
	feed(&b, 1, ids, 70, 1, c);
	ck_assert(!memcmp(a, c, bytes));
	feed(&b, 2, ids, 70, 17, c);
	ck_assert(!memcmp(a, c, bytes));
	bench_fini(&b);
	free(a);
	free(c);
	llama_close(m);
}
END_TEST

/* Three sequences in one batch, in mixed order, and each by itself. */
START_TEST(company_does_not_show)
{
	struct llama *m =
		open_spec(&specs[_i / 2], _i % 2 ? KERN_BF16 : KERN_F32);
	const size_t n_vocab = llama_shape(m)->n_vocab;
	float *all = new_logits(m, 60), *one = new_logits(m, 20);
	uint32_t ids[3][20];
	struct bench b;

	for (uint32_t s = 0; s < 3; s++)
		random_ids(m, 11 + s, ids[s], 20);
	bench_init(&b, m, 0);
	for (uint32_t i = 0; i < 20; i++)
		for (uint32_t s = 0; s < 3; s++)
			push(&b, (s + i) % 3, ids[(s + i) % 3][i]);
	ck_assert_int_eq(step(&b, all), 0);
	for (uint32_t s = 0; s < 3; s++) {
		b.seqs[3].n = 0;
		feed(&b, 3, ids[s], 20, 20, one);
		for (uint32_t i = 0; i < 20; i++) {
			const uint32_t at = 3 * i + (s + 3 - i % 3) % 3;

			ck_assert(!memcmp(all + at * n_vocab, one + i * n_vocab,
					  n_vocab * sizeof(*one)));
		}
	}
	bench_fini(&b);
	free(all);
	free(one);
	llama_close(m);
}
END_TEST

START_TEST(threads_do_not_show)
{
	struct llama *m =
		open_file("models/rag-mini.gguf", _i ? KERN_BF16 : KERN_F32);
	const size_t bytes = 133ull * llama_shape(m)->n_vocab * sizeof(float);
	float *a = new_logits(m, 133), *c = new_logits(m, 133);
	uint32_t ids[133];

	random_ids(m, 9, ids, 133);
	for (unsigned int threads = 0; threads < 6; threads++) {
		struct bench b;
		float *to = threads ? c : a;

		bench_init(&b, m, threads);
		feed(&b, 0, ids, 130, 128, to);
		feed(&b, 0, ids + 130, 3, 1,
		     to + 130ull * llama_shape(m)->n_vocab);
		ck_assert_msg(!threads || !memcmp(a, c, bytes), "%u threads",
			      threads);
		bench_fini(&b);
	}
	free(a);
	free(c);
	llama_close(m);
}
END_TEST

START_TEST(the_instruction_set_does_not_show)
{
	const enum kern_type math = _i % 2 ? KERN_BF16 : KERN_F32;
	float *logits[2];
	uint32_t ids[40];
	size_t bytes = 0;

	for (int i = 0; i < 2; i++) {
		struct llama *m;
		struct bench b;

		(void)kern_init(i ? KERN_ISA_AMX : KERN_ISA_SCALAR);
		m = open_spec(&specs[_i / 2], math);
		bytes = 40ull * llama_shape(m)->n_vocab * sizeof(float);
		logits[i] = new_logits(m, 40);
		random_ids(m, 6, ids, 40);
		bench_init(&b, m, 0);
		feed(&b, 0, ids, 40, 33, logits[i]);
		bench_fini(&b);
		llama_close(m);
	}
	ck_assert(!memcmp(logits[0], logits[1], bytes));
	free(logits[0]);
	free(logits[1]);
}
END_TEST

/* ---- the rest ----------------------------------------------------------- */

START_TEST(the_file_may_go_after_open)
{
	char path[] = "/tmp/test_llama.XXXXXX";
	const struct rig_model spec = { .seed = 1 };
	const uint32_t ids[2] = { 5, 300 };
	int fd = mkstemp(path);
	struct llama *m, *same = open_spec(&spec, KERN_F32);
	float *a, *c;
	struct bench b;
	char err[256] = "";

	ck_assert_int_ge(fd, 0);
	rig_model_write(&spec, path);
	ck_assert_msg(!llama_open(&m, path, KERN_F32, err, sizeof(err)), "%s",
		      err);
	ck_assert_int_eq(ftruncate(fd, 0), 0);
	ck_assert_int_eq(close(fd), 0);
	ck_assert_int_eq(unlink(path), 0);
	a = new_logits(m, 2);
	c = new_logits(m, 2);
	bench_init(&b, m, 0);
	feed(&b, 0, ids, 2, 2, a);
	bench_fini(&b);
	bench_init(&b, same, 0);
	feed(&b, 0, ids, 2, 2, c);
	bench_fini(&b);
	ck_assert(!memcmp(a, c, 2 * 320 * sizeof(float)));
	free(a);
	free(c);
	llama_close(m);
	llama_close(same);
	ck_assert_int_eq(llama_open(&m, path, KERN_F32, err, sizeof(err)),
			 -ENOENT);
	ck_assert_int_eq(llama_open(&m, rig_data("models/rag-draft.gguf"),
				    KERN_F16, err, sizeof(err)),
			 -EINVAL);
}
END_TEST

START_TEST(bad_batches_are_refused)
{
	struct llama *m = open_spec(&specs[0], KERN_F32);
	float *logits = new_logits(m, 2);
	uint32_t tokens[2] = { 1, 2 }, rows[2] = { 0, 1 };
	struct llama_batch batch = {
		.n_rows = 2,
		.tokens = tokens,
		.n_logits = 2,
		.logit_rows = rows,
		.logits = logits,
		.attn = attn,
	};
	struct llama_scratch *s;
	struct bench b;

	ck_assert_int_eq(llama_scratch_new(&s, m, 0, 0), -EINVAL);
	ck_assert_int_eq(llama_scratch_new(&s, m, 2, 3), -EINVAL);
	ck_assert_int_eq(llama_scratch_new(&s, m, 2, 1), 0);
	bench_init(&b, m, 0);
	batch.ctx = &b;
	b.n_rows = 2;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), -EINVAL);
	batch.n_logits = 1;
	batch.n_rows = 3;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), -EINVAL);
	batch.n_rows = 2;
	tokens[1] = 320;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), -EINVAL);
	tokens[1] = 2;
	rows[0] = 2;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), -EINVAL);
	rows[0] = 1;
	b.attn_ret = -ECANCELED;
	logits[0] = 77;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), -ECANCELED);
	ck_assert(logits[0] == 77);
	b.attn_ret = 0;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), 0);
	ck_assert(logits[0] != 77);
	batch.n_rows = batch.n_logits = 0;
	ck_assert_int_eq(llama_step(m, s, NULL, &batch), 0);
	bench_fini(&b);
	llama_scratch_free(s);
	free(logits);
	llama_close(m);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("llama");
	TCase *t = tcase_create("llama");

	tcase_set_timeout(t, 900); /* sanitizers */
	tcase_add_test(t, f32_equals_the_reference);
	tcase_add_test(t, bf16_is_close_to_the_reference);
	tcase_add_test(t, perplexity_is_that_of_a_model);
	tcase_add_loop_test(t, a_tied_model_decodes_the_same_twice, 0, 2);
	tcase_add_loop_test(t, slices_do_not_show, 0, 2 * N_SPECS);
	tcase_add_loop_test(t, company_does_not_show, 0, 2 * N_SPECS);
	tcase_add_loop_test(t, threads_do_not_show, 0, 2);
	tcase_add_loop_test(t, the_instruction_set_does_not_show, 0,
			    2 * N_SPECS);
	tcase_add_test(t, the_file_may_go_after_open);
	tcase_add_test(t, bad_batches_are_refused);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	SRunner *r;
	int failed;

	printf("isa: %s\n", kern_isa_name(kern_init(KERN_ISA_AMX)));
	(void)fflush(stdout); /* before Check forks */
	r = srunner_create(suite());
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
