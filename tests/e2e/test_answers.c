/*
 * test_answers.c - what the hosted model says, bit for bit, whatever is around it
 *
 * Real daemons over real sockets: against the models' reference file, and each
 * truth of docs/design.md as a comparison of logits by memcmp: paging, prefix
 * reuse, neighbours in the batch, slices, many turns.
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"

#define N_ITEMS	 20
#define N_GREEDY 16
#define VOCAB	 2048

struct item {
	uint32_t tokens[1100];
	uint32_t n;
	uint32_t seg[16];
	uint32_t n_seg;
	uint32_t greedy[N_GREEDY];
	uint32_t top_id[5];
	double top_logit[5];
	double nll;
};
static struct item items[N_ITEMS];

static const char *data_dir(void)
{
	const char *d = getenv("KVD_DATA");

	return d ? d : "tests/data";
}

static void load_item(json_t *j, struct item *it)
{
	json_t *a = json_object_get(j, "token_ids");
	json_t *s = json_object_get(j, "segment_lengths");
	json_t *g = json_object_get(j, "greedy_16");
	json_t *top = json_object_get(j, "first_step_top5");

	it->n = (uint32_t)json_array_size(a);
	for (uint32_t i = 0; i < it->n; i++)
		it->tokens[i] =
			(uint32_t)json_integer_value(json_array_get(a, i));
	it->n_seg = (uint32_t)json_array_size(s);
	for (uint32_t i = 0; i < it->n_seg; i++)
		it->seg[i] = (uint32_t)json_integer_value(json_array_get(s, i));
	for (uint32_t i = 0; i < N_GREEDY; i++)
		it->greedy[i] =
			(uint32_t)json_integer_value(json_array_get(g, i));
	for (uint32_t i = 0; i < 5; i++) {
		json_t *t = json_array_get(top, i);

		it->top_id[i] = (uint32_t)json_integer_value(
			json_object_get(t, "token"));
		it->top_logit[i] =
			json_number_value(json_object_get(t, "logit"));
	}
	it->nll = json_number_value(json_object_get(j, "prompt_nll"));
}

static void load_items(void)
{
	char path[512];
	json_t *root, *list;

	snprintf(path, sizeof(path), "%s/eval/reference.json", data_dir());
	root = json_load_file(path, 0, NULL);
	ck_assert_ptr_nonnull(root);
	list = json_object_get(root, "items");
	ck_assert_uint_ge(json_array_size(list), N_ITEMS);
	for (size_t i = 0; i < N_ITEMS; i++)
		load_item(json_array_get(list, i), &items[i]);
	json_decref(root);
}

/* ---- a daemon with one tenant -------------------------------------------- */

struct setup {
	const char *math;
	const char *memory;
	int slice;
};

static struct rig_daemon *start(struct kvc **c, struct setup s)
{
	char conf[2048];
	struct kvc_options opt = { 0 };
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "prefill_slice = %d\n"
		 "[model rag-mini]\npath = %s/models/rag-mini.gguf\n"
		 "math = %s\n"
		 "[tenant t]\nuid = %u\nmemory = %s\ndisk = 256M\n",
		 s.slice ? s.slice : 128, data_dir(), s.math, getuid(),
		 s.memory ? s.memory : "256M");
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	opt.socket = d->socket;
	ck_assert_int_eq(kvc_open(c, &opt), 0);
	return d;
}

static void stop(struct rig_daemon *d, struct kvc *c)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

/* Parts as plain tokens, cut where the prompt's parts are; reuse: the chunks. */
static uint32_t parts_of(const struct item *it, struct kvc_part *p, int whole,
			 int reuse)
{
	uint32_t at = 0;

	if (whole) {
		p[0] = (struct kvc_part){ .kind = KV_PART_TOKENS,
					  .tokens = it->tokens,
					  .n_tokens = it->n };
		return 1;
	}
	for (uint32_t i = 0; i < it->n_seg; i++) {
		p[i] = (struct kvc_part){ .kind = KV_PART_TOKENS,
					  .tokens = it->tokens + at,
					  .n_tokens = it->seg[i] };
		if (reuse && i && i + 1 < it->n_seg)
			p[i].flags = KV_PART_REUSE;
		at += it->seg[i];
	}
	return it->n_seg;
}

struct answer {
	uint32_t ids[64];
	uint32_t n;
	float logprob[64];
	float logits[VOCAB];
	struct kv_gen_stats stats;
};

static struct kvc_gen *ask(struct kvc *c, const struct item *it, int whole,
			   int reuse, uint32_t flags, uint32_t n)
{
	struct kvc_part p[17];
	struct kvc_gen *g = NULL;
	struct kvc_generate r = {
		.parts = p,
		.n_parts = parts_of(it, p, whole, reuse),
		.flags = flags | KV_GEN_IGNORE_EOS | KV_GEN_LOGITS,
		.max_tokens = n,
		.sqe_flags = KV_SQE_WAIT,
	};

	ck_assert_int_eq(kvc_generate_start(c, &r, &g), 0);
	return g;
}

static void take(struct kvc *c, struct kvc_gen *g, struct answer *a)
{
	const int ret = kvc_generate_wait(c, g, 60000);
	const struct kv_token *t;

	ck_assert_msg(ret >= 0, "generate: %s", strerror(-ret));
	t = kvc_gen_tokens(g, &a->n);
	ck_assert_uint_le(a->n, 64);
	for (uint32_t i = 0; i < a->n; i++) {
		a->ids[i] = t[i].id;
		a->logprob[i] = t[i].logprob;
	}
	ck_assert_ptr_nonnull(kvc_gen_logits(g));
	memcpy(a->logits, kvc_gen_logits(g), sizeof(a->logits));
	a->stats = *kvc_gen_stats(g);
	kvc_generate_free(c, g);
}

static void same(const struct answer *a, const struct answer *b,
		 const char *what, int i)
{
	ck_assert_msg(a->n == b->n &&
			      !memcmp(a->ids, b->ids, a->n * sizeof(uint32_t)),
		      "%s: item %d: other tokens", what, i);
	ck_assert_msg(!memcmp(a->logits, b->logits, sizeof(a->logits)),
		      "%s: item %d: other logits", what, i);
	ck_assert_msg(!memcmp(a->logprob, b->logprob, a->n * sizeof(float)),
		      "%s: item %d: other log-probabilities", what, i);
}

/* ---- the reference ------------------------------------------------------------ */

START_TEST(f32_equals_the_reference)
{
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){ .math = "f32" });
	for (int i = 0; i < N_ITEMS; i++) {
		struct answer a;

		take(c, ask(c, &items[i], 1, 0, 0, N_GREEDY), &a);
		ck_assert_uint_eq(a.n, N_GREEDY);
		for (uint32_t k = 0; k < N_GREEDY; k++)
			ck_assert_msg(a.ids[k] == items[i].greedy[k],
				      "item %d token %u", i, k);
		for (int k = 0; k < 5; k++)
			ck_assert_msg(
				fabs((double)a.logits[items[i].top_id[k]] -
				     items[i].top_logit[k]) < 1e-3,
				"item %d logit %d: %f", i, k,
				(double)a.logits[items[i].top_id[k]]);
	}
	stop(d, c);
}
END_TEST

/* Sum of -ln p of a prompt's tokens behind BOS. */
static double score(struct kvc *c, const struct item *it)
{
	struct kvc_part p[2] = {
		{ .kind = KV_PART_TOKENS, .tokens = it->tokens, .n_tokens = 1 },
		{ .kind = KV_PART_TOKENS,
		  .tokens = it->tokens + 1,
		  .n_tokens = it->n - 1 },
	};
	struct kvc_generate r = { .parts = p,
				  .n_parts = 2,
				  .flags = KV_GEN_SCORE,
				  .sqe_flags = KV_SQE_WAIT };
	const struct kv_token *t;
	struct kvc_gen *g;
	double sum = 0;
	uint32_t n;

	ck_assert_int_eq(kvc_generate(c, &r, &g), (int)it->n - 1);
	t = kvc_gen_tokens(g, &n);
	for (uint32_t i = 0; i < n; i++) {
		ck_assert_uint_eq(t[i].id, it->tokens[i + 1]);
		sum -= (double)t[i].logprob;
	}
	kvc_generate_free(c, g);
	return sum;
}

START_TEST(f32_scores_equal_the_reference)
{
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){ .math = "f32" });
	for (int i = 0; i < N_ITEMS; i++) {
		const double nll = score(c, &items[i]);

		ck_assert_msg(fabs(nll - items[i].nll) < 1e-4 * items[i].nll,
			      "item %d: %f, reference %f", i, nll,
			      items[i].nll);
		ck_assert(score(c, &items[i]) == nll); /* now from the cache */
	}
	stop(d, c);
}
END_TEST

/* ---- the same bits, whatever is around --------------------------------------- */

static const char *const maths[] = { "f32", "bf16" };

/* Everything alone, nothing reused, one slice: what the others must equal. */
static struct answer plain[2][N_ITEMS];

/* Once for all tests. */
static void answer_plainly(void)
{
	struct rig_daemon *d;
	struct kvc *c;

	load_items();
	for (int k = 0; k < 2; k++) {
		d = start(&c,
			  (struct setup){ .math = maths[k], .slice = 1024 });
		for (int i = 0; i < N_ITEMS; i++)
			take(c,
			     ask(c, &items[i], 0, 0, KV_GEN_NO_REUSE, N_GREEDY),
			     &plain[k][i]);
		stop(d, c);
	}
}

START_TEST(slices_batches_and_prefixes_change_nothing)
{
	const struct answer *want = plain[_i];
	struct rig_daemon *d;
	struct answer got;
	struct kvc *c;
	uint64_t n_prefix = 0;

	d = start(&c, (struct setup){ .math = maths[_i], .slice = 24 });
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < N_ITEMS; i += 10) {
			struct kvc_gen *g[10];

			for (int k = 0; k < 10; k++)
				g[k] = ask(c, &items[i + k], 0, 0, 0, N_GREEDY);
			for (int k = 0; k < 10; k++) {
				take(c, g[k], &got);
				n_prefix += got.stats.n_prefix;
				same(&want[i + k], &got, "batch", i + k);
			}
		}
	}
	ck_assert_uint_gt(n_prefix, 1000);
	stop(d, c);
}
END_TEST

/* Budgets below one sequence up to a few; each page goes out and comes back. */
static const char *const budgets[] = { "1M", "2M", "6M" };

START_TEST(paging_changes_nothing)
{
	const char *math = maths[_i % 2];
	const struct answer *want = plain[_i % 2];
	struct rig_daemon *d;
	struct answer got;
	struct kvc *c;
	char *json;

	d = start(&c,
		  (struct setup){ .math = math, .memory = budgets[_i / 2] });
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < N_ITEMS; i++) {
			take(c, ask(c, &items[i], 0, 0, 0, N_GREEDY), &got);
			same(&want[i], &got, budgets[_i / 2], i);
		}
	ck_assert_int_ge(kvc_query(c, "pages", "", &json), 0);
	ck_assert_msg(!strstr(json, "\"evicted_total\":0,"), "%s", json);
	free(json);
	stop(d, c);
}
END_TEST

START_TEST(generated_equals_prefilled)
{
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){ .math = maths[_i] });
	for (int i = 0; i < N_ITEMS; i++) {
		struct item turn = items[i];
		struct answer a, cached, fresh;

		take(c, ask(c, &items[i], 0, 0, 0, N_GREEDY), &a);
		/* the second turn: what was said, and a little more */
		memcpy(turn.tokens + turn.n, a.ids,
		       N_GREEDY * sizeof(uint32_t));
		turn.n += N_GREEDY;
		turn.seg[turn.n_seg - 1] += N_GREEDY;
		for (uint32_t k = 0; k < 9; k++)
			turn.tokens[turn.n++] = items[i].tokens[1 + k];
		turn.seg[turn.n_seg - 1] += 9;
		take(c, ask(c, &turn, 0, 0, 0, 8), &cached);
		take(c, ask(c, &turn, 0, 0, KV_GEN_NO_REUSE, 8), &fresh);
		ck_assert_uint_eq(fresh.stats.n_prefix, 0);
		ck_assert_uint_gt(cached.stats.n_prefix, 0);
		same(&fresh, &cached, "turn", i);
	}
	stop(d, c);
}
END_TEST

START_TEST(chunks_do_not_depend_on_history)
{
	struct answer first[N_ITEMS], got;
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){ .math = maths[_i] });
	for (int i = 0; i < N_ITEMS; i++) {
		take(c, ask(c, &items[i], 0, 1, 0, N_GREEDY), &first[i]);
		ck_assert_uint_eq(
			first[i].stats.n_computed + first[i].stats.n_prefix,
			items[i].seg[0] + items[i].seg[items[i].n_seg - 1]);
	}
	stop(d, c);
	d = start(&c, (struct setup){ .math = maths[_i], .memory = "3M" });
	for (int i = N_ITEMS - 1; i >= 0; i--) {
		take(c, ask(c, &items[i], 0, 1, 0, N_GREEDY), &got);
		same(&first[i], &got, "chunks, other order, paged", i);
		take(c, ask(c, &items[i], 0, 1, 0, N_GREEDY), &got);
		ck_assert_uint_gt(got.stats.n_chunk, 0);
		same(&first[i], &got, "chunks again", i);
	}
	stop(d, c);
}
END_TEST

START_TEST(seeded_sampling_repeats)
{
	struct rig_daemon *d;
	struct kvc *c;
	int n_other = 0;

	d = start(&c, (struct setup){ .math = "bf16" });
	for (int i = 0; i < N_ITEMS; i++) {
		struct kvc_part p[17];
		struct kvc_generate r = {
			.parts = p,
			.n_parts = parts_of(&items[i], p, 0, 0),
			.flags = KV_GEN_IGNORE_EOS,
			.max_tokens = 24,
			.temperature = 1.5f,
			.top_k = 200,
			.seed = 7,
		};
		struct kvc_gen *a, *b, *o;

		ck_assert_int_eq(kvc_generate(c, &r, &a), 24);
		r.flags |= KV_GEN_NO_REUSE;
		ck_assert_int_eq(kvc_generate(c, &r, &b), 24);
		r.seed = 8;
		ck_assert_int_eq(kvc_generate(c, &r, &o), 24);
		ck_assert_str_eq(kvc_gen_text(a), kvc_gen_text(b));
		n_other += !!strcmp(kvc_gen_text(a), kvc_gen_text(o));
		kvc_generate_free(c, a);
		kvc_generate_free(c, b);
		kvc_generate_free(c, o);
	}
	ck_assert_int_gt(n_other, N_ITEMS / 2);
	stop(d, c);
}
END_TEST

/* ---- ends and refusals ------------------------------------------------------------ */

START_TEST(stops_and_cancels)
{
	static const char *const newline[] = { "\n" };
	struct rig_daemon *d;
	struct kvc *c;
	struct kvc_part p[17];
	struct kvc_generate r = {
		.parts = p, .max_tokens = 16, .stop = newline, .n_stop = 1
	};
	struct kvc_gen *g;
	int ret;

	d = start(&c, (struct setup){ .math = "bf16" });
	r.n_parts = parts_of(&items[0], p, 0, 0);
	ck_assert_int_gt(kvc_generate(c, &r, &g), 0);
	ck_assert_int_eq(kvc_gen_end(g), KV_END_STOP);
	ck_assert_ptr_null(strchr(kvc_gen_text(g), '\n'));
	kvc_generate_free(c, g);

	r.n_stop = 0;
	r.flags = KV_GEN_IGNORE_EOS;
	r.max_tokens = 600;
	ck_assert_int_eq(kvc_generate_start(c, &r, &g), 0);
	ck_assert_int_eq(kvc_generate_cancel(c, g), 0);
	ret = kvc_generate_wait(c, g, 10000);
	ck_assert_msg(ret == -ECANCELED || ret == 600, "%d", ret);
	kvc_generate_free(c, g);

	r.max_tokens = 5000; /* beyond the model's context */
	ck_assert_int_eq(kvc_generate(c, &r, &g), -EINVAL);
	kvc_generate_free(c, g);
	r.max_tokens = 4;
	r.model = "nobody";
	ck_assert_int_eq(kvc_generate(c, &r, &g), -ENOENT);
	kvc_generate_free(c, g);
	stop(d, c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("answers");
	TCase *t = tcase_create("answers");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_unchecked_fixture(t, answer_plainly, NULL);
	tcase_set_timeout(t, 300);
	tcase_add_test(t, f32_equals_the_reference);
	tcase_add_test(t, f32_scores_equal_the_reference);
	tcase_add_loop_test(t, slices_batches_and_prefixes_change_nothing, 0,
			    2);
	tcase_add_loop_test(t, paging_changes_nothing, 0, 6);
	tcase_add_loop_test(t, generated_equals_prefilled, 0, 2);
	tcase_add_loop_test(t, chunks_do_not_depend_on_history, 0, 2);
	tcase_add_test(t, seeded_sampling_repeats);
	tcase_add_test(t, stops_and_cancels);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
