/*
 * test_chunks.c - repaired chunks: exact at 100 %, plain reuse at 0 %, and the same bits
 * whatever is paged, sliced or batched beside them
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define N	 6
#define N_LOGITS 4096

static struct rig_question questions[N];
static struct rig_daemon *roomy, *tight;

struct answer {
	char text[128];
	float logits[N_LOGITS];
	uint32_t n_logits;
	struct kv_gen_stats st;
	struct kv_gen_repair how;
};

static struct rig_daemon *start_math(const char *kvd, const char *memory,
				     const char *math)
{
	char conf[1024];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "%s[model m]\npath = %s/models/rag-mini.gguf\nmath = %s\n"
		 "[tenant a]\nuid = %u\nmemory = %s\ndisk = 64M\n",
		 kvd, rig_data_dir(), math, getuid(), memory);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static struct rig_daemon *start(const char *kvd, const char *memory)
{
	return start_math(kvd, memory, "bf16");
}

static void setup(void)
{
	rig_questions_load(questions, N);
	roomy = start("", "64M");
	tight = start("prefill_slice = 7\nthreads = 1\n", "3M");
}

static void teardown(void)
{
	rig_daemon_free(roomy);
	rig_daemon_free(tight);
	rig_questions_free(questions, N);
}

static struct kvc_generate request(const struct kvc_part *parts, uint32_t n,
				   uint32_t repair, uint32_t permille)
{
	static const uint32_t stop[] = { 13 };

	return (struct kvc_generate){ .parts = parts,
				      .n_parts = n,
				      .flags = KV_GEN_LOGITS,
				      .max_tokens = 16,
				      .stop_tokens = stop,
				      .n_stop_tokens = 1,
				      .repair = repair,
				      .repair_permille = permille,
				      .n_logits = N_LOGITS,
				      .sqe_flags = KV_SQE_WAIT };
}

static void take(struct kvc *c, struct kvc_gen *g, struct answer *a)
{
	const int ret = kvc_generate_wait(c, g, -1);

	ck_assert_msg(ret >= 0, "generate: %s", strerror(-ret));
	memset(a, 0, sizeof(*a));
	snprintf(a->text, sizeof(a->text), "%s", kvc_gen_text(g));
	a->n_logits = kvc_gen_n_logits(g);
	ck_assert_uint_gt(a->n_logits, 100);
	ck_assert_uint_le(a->n_logits, N_LOGITS);
	memcpy(a->logits, kvc_gen_logits(g), a->n_logits * sizeof(float));
	a->st = *kvc_gen_stats(g);
	a->how = *kvc_gen_repair(g);
	kvc_generate_free(c, g);
}

static void ask(struct kvc *c, const struct kvc_generate *r, struct answer *a)
{
	struct kvc_gen *g;

	ck_assert_int_eq(kvc_generate_start(c, r, &g), 0);
	take(c, g, a);
}

static void ask_question(struct kvc *c, int i, uint32_t repair,
			 uint32_t permille, struct answer *a)
{
	const struct kvc_generate r = request(
		questions[i].parts, questions[i].n_parts, repair, permille);

	ask(c, &r, a);
}

static void ck_same(const struct answer *a, const struct answer *b)
{
	ck_assert_str_eq(a->text, b->text);
	ck_assert_uint_eq(a->n_logits, b->n_logits);
	ck_assert(!memcmp(a->logits, b->logits, a->n_logits * sizeof(float)));
}

static int differ(const struct answer *a, const struct answer *b)
{
	return memcmp(a->logits, b->logits, a->n_logits * sizeof(float)) != 0;
}

static void all_of_it(const char *socket)
{
	struct kvc *c = rig_join(socket);

	for (int i = 0; i < N; i++) {
		struct kvc_part plain[RIG_MAX_PARTS];
		struct kvc_generate r;
		struct answer full, repaired, naive;

		memcpy(plain, questions[i].parts, sizeof(plain));
		for (uint32_t k = 0; k < questions[i].n_parts; k++)
			plain[k].flags &= ~KV_PART_REUSE;
		r = request(plain, questions[i].n_parts, 0, 0);
		r.flags |= KV_GEN_NO_REUSE;
		ask(c, &r, &full);
		ask_question(c, i, KV_REPAIR_NONE, 0, &naive);
		for (uint32_t kind = KV_REPAIR_FIRST; kind <= KV_REPAIR_BLEND;
		     kind++) {
			ask_question(c, i, kind, 1000, &repaired);
			ck_same(&full, &repaired);
			/* every token, and yet by patches of cached chunks */
			ask_question(c, i, kind, 999, &repaired);
			ck_same(&full, &repaired);
			ck_assert_uint_gt(repaired.st.n_repaired, 0);
			ask_question(c, i, kind, 0, &repaired);
			ck_same(&naive, &repaired);
			ck_assert_uint_eq(repaired.st.n_repaired, 0);
		}
		ck_assert(differ(&full, &naive));
	}
	kvc_close(c);
}

START_TEST(all_of_it_is_a_full_prefill)
{
	all_of_it(roomy->socket);
}
END_TEST

START_TEST(all_of_it_is_a_full_prefill_in_f32)
{
	struct rig_daemon *d = start_math("", "64M", "f32");

	all_of_it(d->socket);
	rig_daemon_free(d);
}
END_TEST

/* RMS of the difference of the logits, in logits. */
static double deviation(const struct answer *a, const struct answer *b)
{
	double sum = 0;

	for (uint32_t i = 0; i < a->n_logits; i++) {
		const double d = (double)a->logits[i] - (double)b->logits[i];

		sum += d * d;
	}
	return sqrt(sum / a->n_logits);
}

/* CacheBlend's check: the more is computed again, the nearer to a full prefill. */
START_TEST(the_deviation_falls_with_the_share)
{
	static const uint32_t shares[] = { 0, 100, 250, 500, 750, 1000 };
	struct kvc *c = rig_join(roomy->socket);

	for (uint32_t kind = KV_REPAIR_FIRST; kind <= KV_REPAIR_BLEND; kind++) {
		double last = 0;

		for (size_t k = 0; k < sizeof(shares) / sizeof(*shares); k++) {
			double sum = 0;

			for (int i = 0; i < N; i++) {
				struct answer full, a;

				ask_question(c, i, kind, 1000, &full);
				ask_question(c, i, kind, shares[k], &a);
				sum += deviation(&full, &a) / N;
			}
			ck_assert_msg(!k || sum < last, "%u: %g, before %g",
				      shares[k], sum, last);
			last = sum;
		}
		ck_assert_double_eq(last, 0);
	}
	kvc_close(c);
}
END_TEST

START_TEST(the_same_bits_paged_sliced_and_batched)
{
	struct kvc *a = rig_join(roomy->socket), *b = rig_join(tight->socket);

	for (uint32_t kind = KV_REPAIR_FIRST; kind <= KV_REPAIR_BLEND; kind++) {
		struct answer alone[N], other, naive;
		struct kvc_gen *g[N];

		for (int i = 0; i < N; i++) {
			ask_question(a, i, kind, 150, &alone[i]);
			ck_assert_uint_gt(alone[i].st.n_repaired, 0);
			ask_question(a, i, KV_REPAIR_NONE, 0, &naive);
			ck_assert(differ(&alone[i], &naive));
			ask_question(a, i, kind, 150, &other); /* cached */
			ck_same(&alone[i], &other);
		}
		for (int i = 0; i < N; i++) {
			const struct kvc_generate r =
				request(questions[i].parts,
					questions[i].n_parts, kind, 150);

			ck_assert_int_eq(kvc_generate_start(b, &r, &g[i]), 0);
		}
		for (int i = 0; i < N; i++) {
			take(b, g[i], &other);
			ck_same(&alone[i], &other);
		}
	}
	ck_assert_uint_gt(rig_counter(b, "pages", "a", "evicted_total"), 0);
	kvc_close(a);
	kvc_close(b);
}
END_TEST

/* Chunks out of focus: the answer tells of it, and it is the request's alone. */
START_TEST(early_stop)
{
	struct kvc *a = rig_join(roomy->socket), *b = rig_join(tight->socket);
	uint32_t n_stopped = 0, n_differ = 0;

	for (uint32_t kind = KV_REPAIR_FIRST; kind <= KV_REPAIR_BLEND; kind++) {
		struct answer alone[N], other, all;
		struct kvc_gen *g[N];

		for (int i = 0; i < N; i++) {
			struct kvc_generate r = request(questions[i].parts,
							questions[i].n_parts,
							kind, 300);

			ask(a, &r, &all);
			ck_assert_uint_eq(all.how.n_stopped, 0);
			ck_assert_uint_eq(all.how.n_looked, 0);
			ck_assert_uint_eq(all.how.permille, 300);
			r.flags |= KV_GEN_FOCUS;
			ask(a, &r, &alone[i]);
			ck_assert_uint_eq(alone[i].st.n_repaired,
					  all.st.n_repaired);
			ck_assert_uint_gt(alone[i].how.n_looked, 0);
			ck_assert_uint_lt(alone[i].how.n_stopped,
					  all.st.n_repaired);
			ck_assert_uint_lt(alone[i].how.stop_layer,
					  alone[i].how.n_layers);
			ck_assert_int_eq(!alone[i].how.n_stopped,
					 !alone[i].how.stop_layer);
			n_stopped += alone[i].how.n_stopped;
			n_differ += !!differ(&alone[i], &all);
			ask(a, &r, &other); /* cached */
			ck_same(&alone[i], &other);
			ck_assert_int_eq(kvc_generate_start(b, &r, &g[i]), 0);
		}
		for (int i = 0; i < N; i++) {
			take(b, g[i], &other);
			ck_same(&alone[i], &other);
			ck_assert_mem_eq(&alone[i].how, &other.how,
					 sizeof(other.how));
		}
	}
	ck_assert_uint_gt(n_stopped, 0);
	ck_assert_uint_gt(n_differ, 0);
	kvc_close(a);
	kvc_close(b);
}
END_TEST

static struct kvc_part text(const char *s, uint32_t flags)
{
	return (struct kvc_part){ .kind = KV_PART_TEXT,
				  .flags = flags,
				  .text = s };
}

START_TEST(odd_chunks)
{
	static const char one[] = "a", twice[] = "The mill is by the river.\n";
	char longer[1200] = "";
	struct kvc *c = rig_join(roomy->socket), *d = rig_join(tight->socket);

	for (int i = 0; i < 20; i++)
		strcat(longer, "A long chunk of many words. ");
	for (uint32_t kind = KV_REPAIR_FIRST; kind <= KV_REPAIR_BLEND; kind++)
		for (uint32_t permille = 1; permille <= 999; permille += 499) {
			const struct kvc_part p[] = {
				text(one, KV_PART_REUSE), /* position 0 */
				text(twice, KV_PART_REUSE),
				text("", 0),
				text(longer, KV_PART_REUSE),
				text("And then:\n", 0),
				text(twice, KV_PART_REUSE),
				text(one, KV_PART_REUSE),
				text("Question: Where is the mill?\nAnswer:",
				     0),
			};
			struct kvc_generate r = request(p, 8, kind, permille);
			struct answer x, y;

			ask(c, &r, &x);
			ask(d, &r, &y);
			ck_same(&x, &y);
			r.flags |= KV_GEN_FOCUS;
			ask(c, &r, &x);
			ask(d, &r, &y);
			ck_same(&x, &y);
		}
	kvc_close(c);
	kvc_close(d);
}
END_TEST

/* A chunk without a token is not there; one at the end is computed in its place, as its
 * last row's logits are wanted, and so is one before empty parts. */
START_TEST(empty_and_last_chunks)
{
	static const char s[] = "The mill is by the river.\n",
			  q[] = "Where is the mill? It is by the";
	struct kvc *c = rig_join(roomy->socket), *d = rig_join(tight->socket);

	for (uint32_t kind = KV_REPAIR_NONE; kind <= KV_REPAIR_CRAFT_BLEND;
	     kind++) {
		const struct kvc_part odd[] = {
			text("", KV_PART_REUSE), text(s, KV_PART_REUSE),
			text("", KV_PART_REUSE), text(q, KV_PART_REUSE),
			text("", KV_PART_REUSE), text("", 0),
		};
		const struct kvc_part even[] = { text(s, KV_PART_REUSE),
						 text(q, 0) };
		const uint32_t share = kind ? 300 : 0;
		struct kvc_generate r = request(odd, 6, kind, share);
		struct answer x, y;

		ask(c, &r, &x);
		ask(c, &r, &y); /* found */
		ck_same(&x, &y);
		ask(d, &r, &y);
		ck_same(&x, &y);
		r = request(even, 2, kind, share);
		ask(d, &r, &y);
		ck_same(&x, &y);
		r = request(odd + 3, 1, kind, share); /* nothing but the last */
		ask(c, &r, &x);
		ask(d, &r, &y);
		ck_same(&x, &y);
		ck_assert_uint_eq(x.st.n_chunk, 0);
	}
	kvc_close(c);
	kvc_close(d);
}
END_TEST

START_TEST(bad_requests_are_refused)
{
	struct kvc *c = rig_join(roomy->socket);
	struct kvc_generate r =
		request(questions[0].parts, questions[0].n_parts, 9, 100);
	struct kvc_gen *g = NULL;

	ck_assert_int_eq(kvc_generate(c, &r, &g), -EINVAL);
	kvc_generate_free(c, g);
	g = NULL;
	r.repair = KV_REPAIR_BLEND;
	r.repair_permille = 1001;
	ck_assert_int_eq(kvc_generate(c, &r, &g), -EINVAL);
	kvc_generate_free(c, g);
	kvc_close(c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("chunks");
	TCase *t = tcase_create("chunks");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, all_of_it_is_a_full_prefill);
	tcase_add_test(t, all_of_it_is_a_full_prefill_in_f32);
	tcase_add_test(t, the_deviation_falls_with_the_share);
	tcase_add_test(t, the_same_bits_paged_sliced_and_batched);
	tcase_add_test(t, early_stop);
	tcase_add_test(t, odd_chunks);
	tcase_add_test(t, empty_and_last_chunks);
	tcase_add_test(t, bad_requests_are_refused);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
