/*
 * test_room.c - who may wait gets its room when all that is in the way is work of the daemon's
 * own: statistics of variants, segments that become durable; who waits for other clients holds
 * up nobody
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_map.h"

#define N_ROUNDS 8u
#define N_ALL	 800u /* tokens: twice as many are more than disk = 4M */
#define N_APPEND 128u

/* What holds segments behind an answer: statistics, or writes to disk. */
static const struct {
	const char *persist;
	uint32_t repair;
} ways[] = { { "no", KV_REPAIR_CRAFT }, { "auto", KV_REPAIR_NONE } };
static uint32_t tokens[N_ALL];

static struct rig_daemon *start(const char *persist)
{
	char conf[512];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\ngate = no\n"
		 "[tenant a]\nuid = %u\nmemory = 3M\ndisk = 4M\n"
		 "persist = %s\n",
		 rig_data_dir(), getuid(), persist);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static void other_tokens(void)
{
	for (uint32_t i = 0; i < N_ALL; i++)
		tokens[i] = 20 + (uint32_t)random() % 2000;
}

/* n tokens from `from` on: as a chunk, or nothing of it reused. */
static struct kvc_gen *begin(struct kvc *c, uint32_t from, uint32_t n,
			     uint32_t part_flags, uint32_t repair)
{
	const struct kvc_part p[] = {
		{ .kind = KV_PART_TOKENS, .tokens = tokens, .n_tokens = 30 },
		{ .kind = KV_PART_TOKENS,
		  .tokens = tokens + from,
		  .n_tokens = n,
		  .flags = part_flags },
		{ .kind = KV_PART_TOKENS, .tokens = tokens, .n_tokens = 20 },
	};
	const struct kvc_generate r = {
		.parts = p,
		.n_parts = 3,
		.max_tokens = 1,
		.flags = part_flags ? 0 : KV_GEN_NO_REUSE,
		.repair = repair,
		.repair_permille = repair ? 150 : 0,
		.sqe_flags = KV_SQE_WAIT,
	};
	struct kvc_gen *g = NULL;

	ck_assert_int_eq(kvc_generate_start(c, &r, &g), 0);
	return g;
}

static int end(struct kvc *c, struct kvc_gen *g)
{
	const int ret = kvc_generate_wait(c, g, -1);

	kvc_generate_free(c, g);
	return ret;
}

/*
 * New chunks, and what is done with them next: two at once, so that the statistics of one
 * wait for those of the other; or writes.
 */
struct ahead {
	struct kvc_gen *g[2];
	struct kvc_req persist;
};

static void ask_chunks(struct kvc *c, int way, struct ahead *a)
{
	const uint32_t repair = ways[way].repair, half = N_ALL / 2;
	struct kv_sqe e = { .opcode = KV_OP_PERSIST };

	memset(a, 0, sizeof(*a));
	if (repair) {
		a->g[0] = begin(c, 0, half, KV_PART_REUSE, repair);
		a->g[1] = begin(c, half, half, KV_PART_REUSE, repair);
		return;
	}
	ck_assert_int_eq(end(c, begin(c, 0, N_ALL, KV_PART_REUSE, 0)), 1);
	ck_assert_int_eq(kvc_submit(c, &e, &a->persist), 0);
}

static void end_chunks(struct kvc *c, int way, struct ahead *a)
{
	for (int i = 0; ways[way].repair && i < 2; i++)
		ck_assert_int_eq(end(c, a->g[i]), 1);
	if (!ways[way].repair)
		ck_assert_int_eq(kvc_wait(c, &a->persist, -1), 0);
}

/* A prompt has no room beside them. */
START_TEST(a_prompt_waits_for_what_ends_by_itself)
{
	struct rig_daemon *d = start(ways[_i].persist);
	struct kvc *c = rig_join(d->socket);
	struct ahead a;

	for (uint32_t i = 0; i < N_ROUNDS; i++) {
		other_tokens();
		ask_chunks(c, _i, &a);
		ck_assert_int_eq(end(c, begin(c, 0, N_ALL, 0, 0)), 1);
		end_chunks(c, _i, &a);
	}
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* Tokens that a new sequence takes until there is no room. */
static uint32_t fill(struct kvc *c, int *out)
{
	const struct kv_geometry g = {
		.n_layers = 1, .n_heads = 4, .n_kv_heads = 4, .head_dim = 64
	};
	const int seq = *out = kvc_seq_new(c, kvc_geometry(c, &g), 0);
	const size_t n_bytes = N_APPEND * 4 * 64 * sizeof(float);
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	char *buf = kvc_alloc(c, n_bytes);
	int ret = 0;

	ck_assert_int_gt(seq, 0);
	memset(buf, 0, n_bytes);
	memset(it, 0, sizeof(*it));
	it->seq = (uint32_t)seq;
	it->n_tokens = N_APPEND;
	it->q_off = it->o_off = KV_NO_OFF;
	it->k_off = it->v_off = kvc_off(c, buf);
	while (!ret) {
		ret = kvc_append(c, it, 1, 0, KV_SQE_WAIT);
		it->pos += ret ? 0 : N_APPEND;
	}
	ck_assert_int_eq(ret, -EDQUOT);
	ret = (int)it->pos;
	kvc_free(c, buf);
	kvc_free(c, it);
	return (uint32_t)ret;
}

/* So does an append; and where a client has it all, a prompt is told at once. */
START_TEST(so_does_an_append)
{
	struct rig_daemon *d = start(ways[_i].persist);
	struct kvc *c = rig_join(d->socket);
	struct ahead a;
	int seq;
	const uint32_t n = fill(c, &seq);

	ck_assert_uint_gt(n, N_APPEND);
	for (uint32_t i = 0; i < N_ROUNDS; i++) {
		ck_assert_int_eq(kvc_seq_free(c, seq), 0);
		other_tokens();
		ask_chunks(c, _i, &a);
		ck_assert_uint_eq(fill(c, &seq), n);
		end_chunks(c, _i, &a);
		ck_assert_int_eq(end(c, begin(c, 0, N_ALL, 0, 0)), -EDQUOT);
	}
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* Read a map from its end, so that nothing is brought in ahead. */
static void read_backwards(const struct kvc_map *m, uint32_t salt)
{
	for (uint32_t i = m->n_entries; i-- > 0;) {
		const struct kvc_map_entry *e = &m->entries[i];

		for (uint32_t t = e->n_tokens; t;) {
			t -= t < 32 ? t : 32;
			ck_assert(rig_token_ok(m, e, salt, t));
		}
	}
}

/*
 * It waits for what other clients of the tenant hold: they have it as long as they like,
 * and whatever needs no room of its own goes on, faults as well.
 */
START_TEST(who_waits_for_others_is_in_nobodys_way)
{
	char conf[256];
	struct rig_daemon *d;
	struct kvc *a, *b;
	struct kvc_req waits = { 0 };
	struct kv_sqe e = { .opcode = KV_OP_APPEND, .flags = KV_SQE_WAIT };
	struct kv_attend_item *it;
	struct kvc_map *m;
	int seq, full;

	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 1M\ndisk = 8M\n", getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	a = rig_join(d->socket);
	b = rig_join(d->socket);
	seq = rig_sequence(b, 1, 1000);
	m = rig_map(b, seq);
	full = rig_sequence(a, 2, 900);
	/* more than there is */
	it = kvc_alloc(a, sizeof(*it));
	*it = (struct kv_attend_item){
		.seq = (uint32_t)full,
		.n_tokens = 500,
		.pos = 900,
		.q_off = KV_NO_OFF,
		.o_off = KV_NO_OFF,
		.k_off = kvc_off(a, kvc_alloc(a, 500 * 512)),
		.v_off = kvc_off(a, kvc_alloc(a, 500 * 512))
	};
	e.arg[0] = kvc_off(a, it);
	e.arg[1] = 1;
	ck_assert_int_eq(kvc_submit(a, &e, &waits), 0);
	for (int i = 0; i < 3; i++)
		read_backwards(m, 1);
	ck_assert_uint_gt(rig_counter(b, "tenants", "a", "faults_total"), 100);
	ck_assert_int_eq(kvc_wait(a, &waits, 0), -ETIMEDOUT);
	ck_assert_int_eq(kvc_unmap(b, m), 0);
	ck_assert_int_eq(kvc_seq_free(b, seq), 0);
	ck_assert_int_eq(kvc_wait(a, &waits, -1), 0);
	kvc_close(a);
	kvc_close(b);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("room");
	TCase *t = tcase_create("room");
	SRunner *sr;
	int failed;

	if (!rig_daemon_binary()) {
		fprintf(stderr, "skipped: no kvd\n");
		return 77;
	}
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, a_prompt_waits_for_what_ends_by_itself, 0, 2);
	tcase_add_loop_test(t, so_does_an_append, 0, 2);
	tcase_add_test(t, who_waits_for_others_is_in_nobodys_way);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
