/*
 * test_narrow.c - rows that end before the last layer: the others' logits are the same bits
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/model/llama.h"
#include "tests/rig/rig_gguf.h"

#define N_ROWS	 40u
#define N_LAYERS 5u
#define N_VOCAB	 512u

static char path[] = "/tmp/kvd-narrow-XXXXXX";
static struct llama *m;
static struct llama_scratch *s;
static float logits[2][N_ROWS * N_VOCAB];

/* Row r ends before layer ends[r]. */
struct run {
	uint32_t ends[N_ROWS];
	uint32_t live[N_ROWS], n_live;
	float first[N_LAYERS][N_ROWS]; /* of q */
	int wrong;
};

static uint32_t narrow(void *ctx, uint32_t layer, uint32_t *keep)
{
	struct run *x = ctx;
	uint32_t n = 0;

	for (uint32_t i = 0; i < x->n_live; i++)
		if (x->ends[x->live[i]] > layer) {
			keep[n] = i;
			x->live[n++] = x->live[i];
		}
	x->n_live = n;
	return n;
}

/* As rows do not see each other here, q is what identifies them. */
static int attn(void *ctx, uint32_t layer, float *q, float *k, float *v,
		float *o)
{
	const struct llama_shape *sh = llama_shape(m);
	const size_t row = (size_t)sh->n_heads * sh->head_dim;
	struct run *x = ctx;

	(void)k;
	(void)v;
	for (uint32_t i = 0; i < x->n_live; i++) {
		if (!x->first[layer][x->live[i]])
			x->first[layer][x->live[i]] = q[i * row];
		x->wrong |= x->first[layer][x->live[i]] != q[i * row];
	}
	memcpy(o, q, x->n_live * row * sizeof(*o));
	return 0;
}

static void step(struct run *x, uint32_t n_logits, const uint32_t *rows,
		 float *out)
{
	uint32_t tokens[N_ROWS];
	struct llama_batch b = { .n_rows = N_ROWS,
				 .tokens = tokens,
				 .n_logits = n_logits,
				 .logit_rows = rows,
				 .logits = out,
				 .attn = attn,
				 .narrow = narrow,
				 .ctx = x };

	for (uint32_t i = 0; i < N_ROWS; i++) {
		tokens[i] = (i * 37 + 5) % 200;
		x->live[i] = i;
	}
	x->n_live = N_ROWS;
	ck_assert_int_eq(llama_step(m, s, NULL, &b), 0);
	ck_assert(!x->wrong);
}

static void setup(void)
{
	static const struct rig_model tiny = { .n_layers = N_LAYERS,
					       .d_model = 64,
					       .n_heads = 4,
					       .n_kv_heads = 2,
					       .n_ctx = 256,
					       .seed = 7 };
	char err[256];
	const int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	(void)close(fd);
	rig_model_write(&tiny, path);
	ck_assert_msg(!llama_open(&m, path, KERN_BF16, err, sizeof(err)), "%s",
		      err);
	(void)unlink(path);
	ck_assert_uint_le(llama_shape(m)->n_vocab, N_VOCAB);
	ck_assert_int_eq(llama_scratch_new(&s, m, N_ROWS, N_ROWS), 0);
}

START_TEST(the_others_are_the_same_bits)
{
	uint32_t all[N_ROWS], some[N_ROWS], n = 0;
	const uint32_t n_vocab = llama_shape(m)->n_vocab;
	struct run x = { 0 };

	for (uint32_t i = 0; i < N_ROWS; i++) {
		all[i] = i;
		x.ends[i] = N_LAYERS;
	}
	step(&x, N_ROWS, all, logits[0]);
	for (uint32_t i = 0; i < N_ROWS; i++) { /* some at once, some never */
		x.ends[i] = i * 7 % (N_LAYERS + 1);
		if (x.ends[i] == N_LAYERS)
			some[n++] = i;
	}
	ck_assert_uint_gt(n, 3);
	step(&x, n, some, logits[1]);
	for (uint32_t i = 0; i < n; i++)
		ck_assert(!memcmp(logits[1] + i * n_vocab,
				  logits[0] + some[i] * n_vocab,
				  n_vocab * sizeof(float)));
}
END_TEST

START_TEST(all_may_end)
{
	struct run x = { 0 };

	for (uint32_t i = 0; i < N_ROWS; i++)
		x.ends[i] = i % N_LAYERS;
	step(&x, 0, NULL, NULL);
	ck_assert_uint_eq(x.n_live, 0);
}
END_TEST

static void teardown(void)
{
	llama_scratch_free(s);
	llama_close(m);
}

int main(void)
{
	Suite *suite = suite_create("narrow");
	TCase *t = tcase_create("narrow");
	SRunner *r;
	int n;

	kern_init(KERN_ISA_AMX);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, the_others_are_the_same_bits);
	tcase_add_test(t, all_may_end);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
