/*
 * test_relay.c - rows that share segments: the same bits as alone, and what is shared is
 * read once
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/stat.h"
#include "kvd/serve/tenant.h"
#include "libkvclient/kv_abi.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_serve.h"

#define DIM	 64u
#define HEADS	 8u
#define KV_HEADS 2u
#define N_SEQS	 80u
#define N_FAMILY 7u

struct call {
	struct serve_attend req;
	struct serve_attend_item items[N_SEQS];
	int told, ret;
};

static void call_done(struct wait *w, int ret)
{
	struct call *c = container_of(
		container_of(w, struct serve_attend, wait), struct call, req);

	c->ret = ret;
	c->told = 1;
}

static void call(struct rig_serve *r, struct call *c)
{
	c->told = 0;
	c->req.wait.done = call_done;
	c->req.items = c->items;
	ck_assert_int_eq(serve_attend(r->session, &c->req), 0);
	ck_assert(rig_serve_until(r, &c->told));
	ck_assert_int_eq(c->ret, 0);
}

/* Any bits that are small numbers, as f32 and as pairs of bf16. */
static void fill(void *p, size_t n_bytes, uint64_t seed)
{
	uint32_t *w = p;

	for (size_t i = 0; i < n_bytes / 4; i++)
		w[i] = ((uint32_t)rig_random(&seed) & 0x807f807fu) |
		       0x3f003f00u;
}

static uint64_t counter(const char *name)
{
	return stat_read(stat_get(STAT_COUNTER, name, "", NULL, NULL, 1));
}

static int geometry(struct rig_serve *r, uint32_t type)
{
	return serve_geometry(r->session, &(struct serve_geometry){
						  .n_layers = 1,
						  .n_heads = HEADS,
						  .n_kv_heads = KV_HEADS,
						  .head_dim = DIM,
						  .type = type,
						  .rotary = KERN_ROPE_HALVES,
						  .theta = 10000 });
}

static void append(struct rig_serve *r, int seq, uint64_t pos, uint32_t n,
		   uint64_t seed)
{
	const size_t bytes = (size_t)n * KV_HEADS * DIM * 4;
	char *k = malloc(bytes), *v = malloc(bytes);
	struct call c = { .req = { .append_only = 1, .n_items = 1 } };

	fill(k, bytes, seed);
	fill(v, bytes, seed + 1);
	c.items[0] = (struct serve_attend_item){
		.seq = (uint32_t)seq, .n_tokens = n, .pos = pos, .k = k, .v = v
	};
	call(r, &c);
	free(k);
	free(v);
}

/* One token's query of each sequence: together, and each in a call of its own. */
static void compare(struct rig_serve *r, const int *seq, const uint32_t *n,
		    uint32_t n_seqs, uint64_t *bytes, uint64_t *shared)
{
	const size_t row = (size_t)HEADS * DIM * 4; /* of the longest type */
	char *q = malloc(n_seqs * row), *o = calloc(n_seqs, row);
	char *alone = calloc(n_seqs, row);
	struct call *c = calloc(1, sizeof(*c));

	fill(q, n_seqs * row, 99);
	for (uint32_t i = 0; i < n_seqs; i++)
		c->items[i] = (struct serve_attend_item){
			.seq = (uint32_t)seq[i],
			.n_tokens = 1,
			.pos = n[i] - 1,
			.q = q + i * row,
			.o = o + i * row,
		};
	c->req.n_items = n_seqs;
	*bytes = counter("kvd_attention_read_bytes_total");
	*shared = counter("kvd_attention_shared_bytes_total");
	call(r, c);
	*bytes = counter("kvd_attention_read_bytes_total") - *bytes;
	*shared = counter("kvd_attention_shared_bytes_total") - *shared;
	for (uint32_t i = 0; i < n_seqs; i++) {
		struct call one = { .req.n_items = 1 };

		one.items[0] = c->items[i];
		one.items[0].o = alone + i * row;
		call(r, &one);
	}
	ck_assert(!memcmp(o, alone, n_seqs * row));
	free(q);
	free(o);
	free(alone);
	free(c);
}

/* A tree: a trunk, two branches, leaves of several lengths, and strangers. */
static void grow(uint32_t type, uint32_t es)
{
	const uint64_t token = (uint64_t)2 * KV_HEADS * DIM * es;
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	const int g = geometry(r, type);
	int seq[12], branch[2], trunk, order[12];
	uint32_t n[12], m[12], n_seqs = 0;
	uint64_t bytes, shared, private = 0, all = 0;

	trunk = serve_seq_new(r->session, (uint32_t)g, 2000);
	append(r, trunk, 0, 200, 1);
	for (int b = 0; b < 2; b++) {
		branch[b] = serve_seq_fork(r->session, (uint32_t)trunk);
		ck_assert_int_gt(branch[b], 0);
		append(r, branch[b], 200, b ? 64 : 77, 10 + (uint64_t)b);
		for (uint32_t i = 0; i < 4; i++) {
			const uint32_t base = 200 + (b ? 64 : 77);

			seq[n_seqs] =
				serve_seq_fork(r->session, (uint32_t)branch[b]);
			n[n_seqs] = base + 1 + i * 31;
			append(r, seq[n_seqs], base, 1 + i * 31, 20 + n_seqs);
			n_seqs++;
		}
	}
	for (uint32_t i = 0; i < 2; i++) { /* strangers, and the trunk */
		seq[n_seqs] = serve_seq_new(r->session, (uint32_t)g, 2000);
		n[n_seqs] = 50;
		append(r, seq[n_seqs], 0, 50, 40 + i);
		n_seqs++;
	}
	seq[n_seqs] = trunk;
	n[n_seqs++] = 200;
	for (uint32_t i = 0; i < n_seqs; i++) { /* in any order */
		order[i] = seq[(i * 7 + 3) % n_seqs];
		m[i] = n[(i * 7 + 3) % n_seqs];
		all += m[i];
	}
	compare(r, order, m, n_seqs, &bytes, &shared);
	/* whole tiles of what was forked are shared; the rest was copied */
	private = 2 * 50 + 8; /* the trunk has some more */
	for (uint32_t i = 0; i < 8; i++)
	private += n[i] - 192;
	private -= 3 * 64; /* the second branch's 192 to 256 */
	private -= 3 * 64; /* the first branch's */
	ck_assert_uint_eq(bytes + shared, all * token);
	ck_assert_uint_eq(bytes, (192 + private) * token);
	rig_serve_close(r);
}

START_TEST(a_tree_is_read_once_and_gives_the_same_bits)
{
	grow(KERN_F32, 4);
	grow(KERN_BF16, 2);
	grow(KERN_F16, 2);
}
END_TEST

/* More rows than a group has. */
START_TEST(many_rows_of_one_prompt)
{
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .memory_bytes = 128 << 20 });
	const int g = geometry(r, KERN_BF16);
	const uint64_t token = (uint64_t)2 * KV_HEADS * DIM * 2;
	int seq[60];
	uint32_t n[60];
	uint64_t bytes, shared;

	seq[0] = serve_seq_new(r->session, (uint32_t)g, 2000);
	append(r, seq[0], 0, 1024, 1);
	n[0] = 1024;
	for (uint32_t i = 1; i < 60; i++) {
		seq[i] = serve_seq_fork(r->session, (uint32_t)seq[0]);
		ck_assert_int_gt(seq[i], 0);
		append(r, seq[i], 1024, 3, i);
		n[i] = 1027;
	}
	compare(r, seq, n, 60, &bytes, &shared);
	ck_assert_uint_eq(bytes, (1024 + 59 * 3) * token);
	ck_assert_uint_eq(shared, 59 * 1024 * token);
	rig_serve_close(r);
}
END_TEST

/* A hosted model: requests with the same beginning decode as one of them alone. */
START_TEST(requests_with_a_common_prompt)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *system = rig_ids(300, 1);
	struct rig_gen *alone[N_FAMILY], *g[N_FAMILY];
	uint32_t *texts[N_FAMILY];
	uint64_t shared;

	for (int pass = 0; pass < 2; pass++) {
		shared = counter("kvd_attention_shared_bytes_total");
		for (uint32_t i = 0; i < N_FAMILY; i++) {
			uint32_t *t = rig_ids(5 + i, 10 + i);

			g[i] = rig_gen_new();
			g[i]->gen.max_tokens = 20;
			rig_gen_part(g[i], system, 300, SERVE_PART_BOS);
			rig_gen_part(g[i], t, 5 + i, 0);
			ck_assert_int_eq(serve_generate(r->session, &g[i]->gen),
					 0);
			if (!pass)
				ck_assert(rig_serve_until(r, &g[i]->told));
			texts[i] = t;
		}
		for (uint32_t i = 0; i < N_FAMILY; i++) {
			ck_assert(rig_serve_until(r, &g[i]->told));
			ck_assert_int_eq(g[i]->ret, 20);
			free(texts[i]);
			if (!pass) {
				alone[i] = g[i];
				continue;
			}
			ck_assert(!memcmp(g[i]->tokens, alone[i]->tokens,
					  20 * sizeof(*g[i]->tokens)));
			free(g[i]);
			free(alone[i]);
		}
		shared = counter("kvd_attention_shared_bytes_total") - shared;
		ck_assert_int_eq(!!shared, pass);
	}
	free(system);
	serve_check(r->serve);
	rig_serve_close(r);
}
END_TEST

#define N_CHUNKS 4u

/* A request with the chunks in order i, a question of its own. */
static struct rig_gen *with_chunks(uint32_t *const *chunks, uint32_t i,
				   const uint32_t *question,
				   enum kv_repair repair)
{
	struct rig_gen *g = rig_gen_new();

	g->gen.max_tokens = 20;
	g->gen.repair = repair;
	g->gen.repair_permille = repair ? 200 : 0;
	rig_gen_part(g, question, 1 + i % 2, SERVE_PART_BOS);
	for (uint32_t k = 0; k < N_CHUNKS; k++)
		rig_gen_part(g, chunks[(i * (k + 1) + k) % N_CHUNKS], 70 + 9,
			     SERVE_PART_REUSE);
	rig_gen_part(g, question, 5 + i, 0);
	return g;
}

/* In other orders, some twice; with a repair each has a mask of its own. */
static void chunks_in_other_orders(enum kv_repair repair)
{
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .memory_bytes = 64 << 20 });
	uint32_t *chunks[N_CHUNKS], *questions = rig_ids(5 + N_FAMILY, 10);
	struct rig_gen *alone[N_FAMILY], *g[N_FAMILY];
	uint64_t shared = 0, bytes = 0;

	for (uint32_t i = 0; i < N_CHUNKS; i++)
		chunks[i] = rig_ids(70 + 9, 100 + i);
	for (int pass = 0; pass < 2; pass++) {
		shared = counter("kvd_attention_shared_bytes_total");
		bytes = counter("kvd_attention_read_bytes_total");
		for (uint32_t i = 0; i < N_FAMILY; i++) {
			g[i] = with_chunks(chunks, i, questions, repair);
			ck_assert_int_eq(serve_generate(r->session, &g[i]->gen),
					 0);
			if (!pass)
				ck_assert(rig_serve_until(r, &g[i]->told));
		}
		for (uint32_t i = 0; i < N_FAMILY; i++) {
			ck_assert(rig_serve_until(r, &g[i]->told));
			ck_assert_int_eq(g[i]->ret, 20);
			if (!pass) {
				alone[i] = g[i];
				continue;
			}
			ck_assert(!memcmp(g[i]->tokens, alone[i]->tokens,
					  20 * sizeof(*g[i]->tokens)));
			free(g[i]);
			free(alone[i]);
		}
		shared = counter("kvd_attention_shared_bytes_total") - shared;
		bytes = counter("kvd_attention_read_bytes_total") - bytes;
		/* four chunks of nearly all that seven requests look at */
		ck_assert(pass ? shared > bytes : !shared);
	}
	for (uint32_t i = 0; i < N_CHUNKS; i++)
		free(chunks[i]);
	free(questions);
	serve_check(r->serve);
	rig_serve_close(r);
}

START_TEST(requests_with_chunks_in_other_orders)
{
	chunks_in_other_orders(KV_REPAIR_NONE);
	chunks_in_other_orders(KV_REPAIR_BLEND);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("relay");
	TCase *t = tcase_create("relay");
	SRunner *sr;
	int failed;

	tcase_add_test(t, a_tree_is_read_once_and_gives_the_same_bits);
	tcase_add_test(t, many_rows_of_one_prompt);
	tcase_add_test(t, requests_with_a_common_prompt);
	tcase_add_test(t, requests_with_chunks_in_other_orders);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
