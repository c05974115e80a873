/*
 * test_gpu_chunks.c - what requests may ask of chunks, by a daemon whose KV lies on a
 * device: variants, chunks side by side, against one in host memory, and against itself sliced and batched
 *
 * On the fake driver.
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
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_gguf.h"

#define VOCAB	2048u
#define N	2
#define N_PARTS 5u /* system, three chunks, the question */

static uint32_t tokens[N][6][64];
static char image[64], deep[80];
static const char *model; /* NULL: rag-draft */
static uint32_t page_tokens = 32;

enum { CPU, DEVICE, SLICED, N_DAEMONS };
static struct rig_daemon *d[N_DAEMONS];
static struct kvc *c[N_DAEMONS];

struct answer {
	char text[128];
	float logits[VOCAB];
	struct kv_gen_stats st;
	struct kv_gen_repair how;
	struct kv_chunk_used used[N_PARTS];
	uint32_t n_used;
};

static void start(int i)
{
	char conf[2048], device[1024] = "";

	if (i != CPU)
		snprintf(device, sizeof(device),
			 "device = cuda\ncuda_library = %s\n"
			 "cublas_library = %s\ncuda_image = %s\n"
			 "host_memory = 8M\n",
			 rig_cuda_path(), rig_cuda_path(), image);
	snprintf(conf, sizeof(conf),
		 "%s%s[model m]\npath = %s%s\nmath = f32\n"
		 "gate = no\npage_tokens = %u\npage_layers = 2\n"
		 "[tenant t]\nuid = %u\nmemory = %s\ndisk = 64M\n",
		 device, i == SLICED ? "prefill_slice = 20\n" : "",
		 model ? "" : rig_data_dir(),
		 model ? model : "/models/rag-draft.gguf", page_tokens,
		 getuid(), i == SLICED ? "2M" : "8M");
	d[i] = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d[i]);
	c[i] = rig_join(d[i]->socket);
}

static void stop(int i)
{
	kvc_close(c[i]);
	ck_assert_int_eq(rig_daemon_stop(d[i]), 0);
	rig_daemon_free(d[i]);
}

static void take(struct kvc *k, struct kvc_gen *g, struct answer *out)
{
	const int ret = kvc_generate_wait(k, g, -1);
	const struct kv_chunk_used *u;

	ck_assert_msg(ret >= 0, "generate: %s", strerror(-ret));
	memset(out, 0, sizeof(*out));
	snprintf(out->text, sizeof(out->text), "%s", kvc_gen_text(g));
	ck_assert_uint_eq(kvc_gen_n_logits(g), VOCAB);
	memcpy(out->logits, kvc_gen_logits(g), sizeof(out->logits));
	out->st = *kvc_gen_stats(g);
	out->how = *kvc_gen_repair(g);
	u = kvc_gen_used(g, &out->n_used);
	if (u)
		memcpy(out->used, u, out->n_used * sizeof(*u));
	kvc_generate_free(k, g);
}

static void ask(struct kvc *k, const struct kvc_generate *r, struct answer *out)
{
	struct kvc_gen *g;

	ck_assert_int_eq(kvc_generate_start(k, r, &g), 0);
	take(k, g, out);
}

/* Numbers that any daemon gets alike: part i of question q. */
static struct kvc_part part(int q, int i, uint32_t flags)
{
	static const uint32_t sizes[] = { 6, 16, 12, 18, 14, 6 };
	const uint32_t n = sizes[i];
	uint32_t *t = tokens[q][i];
	uint64_t x = 88172645463325252u + (uint64_t)(q * 10 + i);

	for (uint32_t k = 0; k < n; k++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		t[k] = 300 + (uint32_t)(x % 1500);
	}
	return (struct kvc_part){ .kind = KV_PART_TOKENS,
				  .tokens = t,
				  .n_tokens = n,
				  .flags = flags };
}

/* A system prompt, three chunks of question q in this order, the question. */
static struct kvc_generate request(struct kvc_part p[N_PARTS], int q,
				   const int order[3])
{
	p[0] = part(q, 0, 0);
	for (int i = 0; i < 3; i++)
		p[1 + i] = part(q, 1 + order[i], KV_PART_REUSE);
	p[4] = part(q, 5, 0);
	return (struct kvc_generate){ .parts = p,
				      .n_parts = N_PARTS,
				      .flags = KV_GEN_LOGITS |
					       KV_GEN_IGNORE_EOS,
				      .max_tokens = 1,
				      .n_logits = VOCAB,
				      .sqe_flags = KV_SQE_WAIT };
}

static void same_bits(const struct answer *x, const struct answer *y)
{
	ck_assert_str_eq(x->text, y->text);
	ck_assert(!memcmp(x->logits, y->logits, sizeof(x->logits)));
}

/* Logits off by at most bound of their spread. */
static void near(const struct answer *x, const struct answer *y, double bound)
{
	double sum = 0, sq = 0, most = 0;

	ck_assert_str_eq(x->text, y->text);
	for (uint32_t i = 0; i < VOCAB; i++) {
		const double a = (double)x->logits[i];
		const double diff = fabs(a - (double)y->logits[i]);

		sum += a;
		sq += a * a;
		most = diff > most || isnan(diff) ? diff : most;
	}
	sum /= VOCAB;
	ck_assert_double_lt(most / sqrt(sq / VOCAB - sum * sum), bound);
}

static uint32_t n_of(const struct answer *a, enum kv_chunk_use use)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < a->n_used; i++)
		n += a->used[i].use == use;
	return n;
}

/* ---- variants -------------------------------------------------------------------- */

static const int in_order[3] = { 0, 1, 2 }, other[3] = { 3, 1, 0 };

/* They come a little after the answer. */
static void await(struct kvc *k, uint32_t n)
{
	uint32_t have = 0;

	for (int i = 0; i < 30000 && have < n; i++) {
		char *json;

		usleep(10000);
		have = 0;
		ck_assert_int_ge(kvc_query(k, "chunks", "", &json), 0);
		for (const char *at = json; (at = strstr(at, "\"variant\""));
		     at++)
			have++;
		free(json);
	}
	ck_assert_uint_eq(have, n);
}

/* Chunks in other company; n there are before. Returns how many then. */
static uint32_t prime(struct kvc *k, int q, uint32_t n)
{
	struct kvc_part p[N_PARTS];
	struct kvc_generate r = request(p, q, other);
	struct answer a;

	r.repair = KV_REPAIR_CRAFT;
	r.repair_permille = KV_REPAIR_ALL;
	r.max_tokens = 1;
	ask(k, &r, &a);
	n += n_of(&a, KV_CHUNK_FRESH);
	await(k, n);
	return n;
}

START_TEST(all_of_it_is_a_full_prefill)
{
	struct answer full, fresh, exact, cpu;
	struct kvc_part p[N_PARTS];
	struct kvc_generate r;
	uint32_t n;

	start(CPU);
	start(DEVICE);
	n = prime(c[DEVICE], 0, 0);
	r = request(p, 0, in_order);
	r.flags |= KV_GEN_NO_REUSE;
	for (uint32_t i = 1; i < 4; i++)
		p[i].flags &= ~KV_PART_REUSE;
	ask(c[DEVICE], &r, &full);
	ask(c[CPU], &r, &cpu);
	near(&full, &cpu, 1e-4);
	r = request(p, 0, in_order);
	r.repair_permille = KV_REPAIR_ALL;
	for (r.repair = KV_REPAIR_CRAFT; r.repair <= KV_REPAIR_CRAFT_BLEND;
	     r.repair++) {
		ask(c[DEVICE], &r, &fresh);
		same_bits(&full, &fresh);
		n += n_of(&fresh, KV_CHUNK_FRESH);
		await(c[DEVICE], n);
	}
	r.repair = KV_REPAIR_CRAFT;
	r.repair_permille = 200;
	ask(c[DEVICE], &r, &exact);
	same_bits(&full, &exact);
	ck_assert_uint_eq(n_of(&exact, KV_CHUNK_EXACT), 3);
	ck_assert_uint_eq(exact.st.n_repaired, 0);
	stop(CPU);
	stop(DEVICE);
}
END_TEST

/* All of several chunks again: the patch of the second begins in a page of the first's, and
 * lies in several; its grid is one. _i: pages of 64 tokens, of 128. */
START_TEST(all_of_several_is_a_full_prefill)
{
	static uint32_t more[2][330];
	struct kvc_part p[N_PARTS];
	struct kvc_generate r;
	struct answer full, x;

	page_tokens = _i ? 128 : 64;
	for (uint32_t i = 0; i < 660; i++)
		more[i / 330][i % 330] = 300 + i * 7919 % 1500;
	start(DEVICE);
	r = request(p, 0, in_order);
	for (uint32_t i = 0; i < 2; i++) {
		p[1 + i].tokens = more[i];
		p[1 + i].n_tokens = i ? 330 : 20;
	}
	r.flags |= KV_GEN_NO_REUSE;
	for (uint32_t i = 1; i < 4; i++)
		p[i].flags &= ~KV_PART_REUSE;
	ask(c[DEVICE], &r, &full);
	for (uint32_t i = 1; i < 4; i++)
		p[i].flags |= KV_PART_REUSE;
	r.flags &= ~KV_GEN_NO_REUSE;
	r.repair_permille = 999; /* of less than a thousand: all */
	for (r.repair = KV_REPAIR_FIRST; r.repair <= KV_REPAIR_BLEND;
	     r.repair++) {
		ask(c[DEVICE], &r, &x);
		ck_assert_uint_eq(x.st.n_repaired, 20 + 330 + p[3].n_tokens);
		same_bits(&full, &x);
	}
	stop(DEVICE);
}
END_TEST

/* What was measured is what the host measures, and so are the tokens chosen. */
static void compare_used(const struct answer *x, const struct answer *y)
{
	ck_assert_uint_eq(x->n_used, y->n_used);
	ck_assert_uint_eq(x->st.n_repaired, y->st.n_repaired);
	for (uint32_t i = 0; i < x->n_used; i++) {
		ck_assert_uint_eq(x->used[i].use, y->used[i].use);
		ck_assert_uint_eq(x->used[i].n_repaired, y->used[i].n_repaired);
		ck_assert_int_le(abs((int)x->used[i].cfo_permille -
				     (int)y->used[i].cfo_permille),
				 1);
	}
}

START_TEST(in_other_company)
{
	static const struct {
		uint32_t repair, permille;
	} how[] = { { KV_REPAIR_CRAFT, 200 }, { KV_REPAIR_CRAFT_BLEND, 200 } };
	static struct answer x[N_DAEMONS][N];
	struct kvc_part p[N][N_PARTS];
	uint32_t n[N_DAEMONS] = { 0 };

	for (int i = 0; i < N_DAEMONS; i++) {
		start(i);
		for (int q = 0; q < N; q++)
			n[i] = prime(c[i], q, n[i]);
	}
	for (size_t h = 0; h < sizeof(how) / sizeof(*how); h++) {
		struct kvc_gen *g[N];
		struct kvc_generate r;

		for (int q = 0; q < N; q++) {
			r = request(p[q], q, in_order);
			r.repair = how[h].repair;
			r.repair_permille = how[h].permille;
			ask(c[CPU], &r, &x[CPU][q]);
			ask(c[DEVICE], &r, &x[DEVICE][q]);
			ck_assert_int_eq(
				kvc_generate_start(c[SLICED], &r, &g[q]), 0);
		}
		for (int q = 0; q < N; q++) {
			take(c[SLICED], g[q], &x[SLICED][q]);
			ck_assert_uint_ge(n_of(&x[DEVICE][q], KV_CHUNK_INTER),
					  1);
			ck_assert_uint_gt(x[DEVICE][q].st.n_repaired, 0);
			compare_used(&x[CPU][q], &x[DEVICE][q]);
			near(&x[CPU][q], &x[DEVICE][q], 1e-3);
			same_bits(&x[DEVICE][q], &x[SLICED][q]);
			ck_assert(!memcmp(x[DEVICE][q].used, x[SLICED][q].used,
					  sizeof(x[DEVICE][q].used)));
		}
		/* what was missing is a variant for the next ones, everywhere */
		for (int i = 0; i < N_DAEMONS; i++) {
			for (int q = 0; q < N; q++)
				n[i] += n_of(&x[i][q], KV_CHUNK_FRESH);
			await(c[i], n[i]);
		}
	}
	for (int i = 0; i < N_DAEMONS; i++)
		stop(i);
}
END_TEST

/* No pinned memory for the queries of fresh chunks (46 tokens, 2 layers, 128 f32): the
 * answer is none the worse, statistics there are none. */
START_TEST(queries_that_have_no_room)
{
	struct answer full, fresh;
	struct kvc_part p[N_PARTS];
	struct kvc_generate r = request(p, 0, in_order);
	char size[16];

	snprintf(size, sizeof(size), "%d", 46 * 2 * 128 * 4);
	ck_assert_int_eq(setenv("FAKE_CUDA_NO_PINNED", size, 1), 0);
	start(DEVICE);
	ck_assert_int_eq(unsetenv("FAKE_CUDA_NO_PINNED"), 0);
	r.repair = KV_REPAIR_CRAFT;
	ask(c[DEVICE], &r, &fresh);
	ck_assert_uint_eq(n_of(&fresh, KV_CHUNK_FRESH), 3);
	r = request(p, 0, in_order);
	r.flags |= KV_GEN_NO_REUSE;
	for (uint32_t i = 1; i < 4; i++)
		p[i].flags &= ~KV_PART_REUSE;
	ask(c[DEVICE], &r, &full);
	same_bits(&full, &fresh);
	stop(DEVICE);
}
END_TEST

/* ---- side by side ------------------------------------------------------------------ */

static void side_by_side(struct kvc_generate *r, struct kvc_part *p,
			 float temperature, float scale)
{
	for (uint32_t i = 1; i + 1 < r->n_parts; i++) {
		p[i].flags |= KV_PART_PARALLEL;
		p[i].temperature = temperature;
		p[i].scale = scale;
	}
}

START_TEST(one_chunk_as_it_is_is_a_full_prefill)
{
	struct answer full, x[3];
	struct kvc_part p[N_PARTS];
	struct kvc_generate r;

	start(DEVICE);
	r = request(p, 0, in_order);
	p[2] = p[4];
	r.n_parts = 3;
	r.flags |= KV_GEN_NO_REUSE;
	p[1].flags = 0;
	ask(c[DEVICE], &r, &full);
	r.flags &= ~(uint32_t)KV_GEN_NO_REUSE;
	p[1].flags = KV_PART_REUSE;
	side_by_side(&r, p, 1, 1);
	for (int i = 0; i < 2; i++) {
		ask(c[DEVICE], &r, &x[i]);
		same_bits(&full, &x[i]);
		ck_assert_uint_eq(x[i].st.n_chunk, i ? p[1].n_tokens : 0);
	}
	side_by_side(&r, p, 1, 0.8f);
	ask(c[DEVICE], &r, &x[2]);
	ck_assert_uint_eq(x[2].st.n_chunk, p[1].n_tokens);
	ck_assert(memcmp(full.logits, x[2].logits, sizeof(full.logits)));
	stop(DEVICE);
}
END_TEST

/* Decodes too, of two at once and one that is not seen so. */
START_TEST(chunks_side_by_side)
{
	static const float how[3][2] = { { 0.8f, 0.9f },
					 { 1, 1 },
					 { 1, 1.3f } };
	static struct answer x[N_DAEMONS][3], again, plain[2];
	struct kvc_part p[3][N_PARTS];
	struct kvc_gen *g[3];
	struct kvc_generate r;

	for (int i = 0; i < N_DAEMONS; i++) {
		start(i);
		for (int k = 0; k < 3; k++) {
			r = request(p[k], k ? k - 1 : 0, in_order);
			r.max_tokens = 3;
			side_by_side(&r, p[k], how[k][0], how[k][1]);
			if (i != SLICED)
				ask(c[i], &r, &x[i][k]);
			else
				ck_assert_int_eq(
					kvc_generate_start(c[i], &r, &g[k]), 0);
		}
	}
	r = request(p[0], 1, in_order);
	r.max_tokens = 3;
	ask(c[SLICED], &r, &plain[0]);
	ask(c[DEVICE], &r, &plain[1]);
	same_bits(&plain[0], &plain[1]);
	for (int k = 0; k < 3; k++) {
		take(c[SLICED], g[k], &x[SLICED][k]);
		near(&x[CPU][k], &x[DEVICE][k], 1e-4);
		same_bits(&x[DEVICE][k], &x[SLICED][k]);
	}
	r = request(p[1], 0, in_order);
	r.max_tokens = 3;
	side_by_side(&r, p[1], how[1][0], how[1][1]);
	ask(c[DEVICE], &r, &again);
	same_bits(&again, &x[DEVICE][1]);
	ck_assert_uint_gt(again.st.n_chunk, 0);
	ck_assert(memcmp(x[DEVICE][0].logits, x[DEVICE][1].logits,
			 sizeof(again.logits)));
	for (int i = 0; i < N_DAEMONS; i++)
		stop(i);
}
END_TEST

/* ---- focus --------------------------------------------------------------------------- */

/* Where it looks, where the others stop, and the answer; next to one whose queries are kept. */
START_TEST(where_the_question_looks)
{
	static struct answer x[N_DAEMONS][N], all, fresh[2];
	struct kvc_part p[N + 1][N_PARTS];
	struct kvc_gen *g[N + 1];
	struct kvc_generate r, keeps = request(p[N], 1, other);
	uint32_t n_stopped = 0;

	rig_model_write(&(struct rig_model){ .n_layers = 4,
					     .n_vocab = VOCAB,
					     .head_dim = 64,
					     .n_ctx = 512,
					     .seed = 3 },
			deep);
	model = deep;
	keeps.repair = KV_REPAIR_CRAFT;
	keeps.repair_permille = KV_REPAIR_ALL;
	for (int i = 0; i < N_DAEMONS; i++)
		start(i);
	for (int q = 0; q < N; q++) {
		r = request(p[q], q, in_order);
		r.repair = KV_REPAIR_BLEND;
		r.repair_permille = 400;
		r.max_tokens = 3;
		ask(c[DEVICE], &r, &all);
		r.flags |= KV_GEN_FOCUS;
		ask(c[CPU], &r, &x[CPU][q]);
		ask(c[DEVICE], &r, &x[DEVICE][q]);
		ck_assert_int_eq(kvc_generate_start(c[SLICED], &r, &g[q]), 0);
		n_stopped += x[DEVICE][q].how.n_stopped;
		if (x[DEVICE][q].how.n_stopped)
			ck_assert(memcmp(all.logits, x[DEVICE][q].logits,
					 sizeof(all.logits)));
	}
	ck_assert_int_eq(kvc_generate_start(c[SLICED], &keeps, &g[N]), 0);
	for (int q = 0; q < N; q++) {
		take(c[SLICED], g[q], &x[SLICED][q]);
		near(&x[CPU][q], &x[DEVICE][q], 1e-3);
		same_bits(&x[DEVICE][q], &x[SLICED][q]);
		for (int i = 0; i < N_DAEMONS; i++)
			ck_assert(!memcmp(&x[i][q].how, &x[CPU][q].how,
					  sizeof(x[i][q].how)));
		ck_assert_uint_gt(x[DEVICE][q].how.n_looked, 0);
	}
	ck_assert_uint_gt(n_stopped, 0);
	take(c[SLICED], g[N], &fresh[0]);
	ask(c[DEVICE], &keeps, &fresh[1]);
	same_bits(&fresh[0], &fresh[1]);
	await(c[SLICED], 3);
	for (int i = 0; i < N_DAEMONS; i++)
		stop(i);
}
END_TEST

static void setup(void)
{
	FILE *f;

	snprintf(image, sizeof(image), "/tmp/kvd-gpu-chunks-%d", (int)getpid());
	snprintf(deep, sizeof(deep), "%s.gguf", image);
	f = fopen(image, "w");
	ck_assert_ptr_nonnull(f);
	fputs("the fake takes any image\n", f);
	ck_assert_int_eq(fclose(f), 0);
}

static void teardown(void)
{
	(void)unlink(image);
	(void)unlink(deep);
}

int main(void)
{
	Suite *s = suite_create("gpu_chunks");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, all_of_it_is_a_full_prefill);
	tcase_add_loop_test(t, all_of_several_is_a_full_prefill, 0, 2);
	tcase_add_test(t, in_other_company);
	tcase_add_test(t, queries_that_have_no_room);
	tcase_add_test(t, one_chunk_as_it_is_is_a_full_prefill);
	tcase_add_test(t, chunks_side_by_side);
	tcase_add_test(t, where_the_question_looks);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
