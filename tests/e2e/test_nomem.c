/*
 * test_nomem.c - an allocation of the daemon fails: the call it was for fails with
 * -ENOMEM, or is done without; nothing else notices, nothing hangs, nothing is lost
 *
 * The real daemon, in which every malloc() and calloc() of its own is a fault point
 * (rig/rig_alloc.h). Tenant a pages all the time, tenant b has the memory it needs.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/fault_ctl.h"
#include "tests/rig/questions.h"

#define N_QUESTIONS 6
#define MOST	    20000 /* allocations of a start, of an answer */
#define EACH	    40 /* of the first so many each one, then of SOME one */
#define SOME	    17

static struct rig_question questions[N_QUESTIONS];
static struct rig_daemon *d;
static struct kvc *a, *b;
static char socket_b[64];

static void begin(void)
{
	char conf[1024];

	rig_questions_load(questions, N_QUESTIONS);
	snprintf(socket_b, sizeof(socket_b), "/tmp/kvd-nomem-%d.sock",
		 getpid());
	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 3M\ndisk = 96M\n"
		 "[tenant b]\nsocket = %s\nmemory = 64M\ndisk = 64M\n",
		 rig_data_dir(), getuid(), socket_b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	a = rig_join(d->socket);
	b = rig_join(socket_b);
	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(b, &questions[i], questions[i].answer, NULL),
			0);
}

static void end(void)
{
	kvc_close(a);
	kvc_close(b);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	rig_questions_free(questions, N_QUESTIONS);
}

static void right(struct kvc *c, int i)
{
	char text[128];
	const int ret = rig_ask(c, &questions[i], text, NULL);

	ck_assert_msg(ret > 0, "question %d: %s", i, strerror(-ret));
	ck_assert_str_eq(text, questions[i].answer);
}

/* The right answer or the documented error; 1: answered. */
static int right_or_error(struct kvc *c, int i)
{
	char text[128];
	const int ret = rig_ask(c, &questions[i], text, NULL);

	if (ret > 0)
		ck_assert_str_eq(text, questions[i].answer);
	else
		ck_assert_msg(ret == -ENOMEM || ret == -ENOSPC,
			      "question %d: %s", i, strerror(-ret));
	return ret > 0;
}

static int next(int nth)
{
	return nth + (nth < EACH || getenv("KVD_LONG") ? 1 : SOME);
}

START_TEST(a_request_that_finds_no_memory_fails_alone)
{
	int n = 0, n_failed = 0, nth = 0;
	uint64_t met;

	do {
		const int i = (nth = next(nth)) % N_QUESTIONS;

		rig_fault("once mem. %d %d", nth, ENOMEM);
		n_failed += !right_or_error(a, i);
		met = rig_fault("off");
		right(a, i);
		right(b, i);
		n++;
		ck_assert_int_lt(nth, MOST);
	} while ((uint64_t)nth <= met);
	printf("%d of %d allocations made a request fail, of %d\n", n_failed, n,
	       (int)met);
	ck_assert_int_gt(n_failed, 0);
}
END_TEST

START_TEST(no_memory_for_long)
{
	int n_failed = 0, nth = 0;
	uint64_t met;

	do {
		const int i = (nth = next(nth)) % N_QUESTIONS;

		rig_fault("forever mem. %d %d", nth, ENOMEM);
		n_failed += !right_or_error(a, i);
		n_failed += !right_or_error(b, i);
		met = rig_fault("off");
		right(a, i);
		right(b, i);
		ck_assert_int_lt(nth, MOST);
	} while ((uint64_t)nth <= met);
	printf("%d requests failed\n", n_failed);
	ck_assert_int_gt(n_failed, 0);
}
END_TEST

/* ---- one session, all it can ask for ------------------------------------------- */

#define HEADS	 2u
#define HEAD_DIM 64u
#define N_TOKENS 48u
#define ROW	 (HEADS * HEAD_DIM * 4u) /* f32 */

static int n_errors;

static int may(const char *what, int ret)
{
	ck_assert_msg(ret >= 0 || ret == -ENOMEM || ret == -ENOSPC ||
			      ret == -ECANCELED,
		      "%s: %s", what, strerror(-ret));
	n_errors += ret < 0;
	return ret;
}

/* Tokens of layer 0 from pos on; what follows needs them. */
static int put(struct kvc *c, int seq, uint64_t pos, uint32_t n)
{
	struct kv_attend_item *item = kvc_alloc(c, sizeof(*item));
	char *kv = kvc_alloc(c, N_TOKENS * ROW);
	char *o = kvc_alloc(c, N_TOKENS * ROW);
	int ret;

	ck_assert_ptr_nonnull(o);
	memset(kv, 0x3c, N_TOKENS * ROW);
	*item = (struct kv_attend_item){ .seq = (uint32_t)seq,
					 .n_tokens = n,
					 .pos = pos,
					 .k_off = kvc_off(c, kv),
					 .v_off = kvc_off(c, kv),
					 .q_off = kvc_off(c, kv),
					 .o_off = kvc_off(c, o) };
	ret = may("attend", kvc_attend(c, item, 1, 0, KV_SQE_WAIT));
	kvc_free(c, item);
	kvc_free(c, kv);
	kvc_free(c, o);
	return ret;
}

static void look_at(struct kvc *c, int seq)
{
	struct kvc_map *m;

	if (may("seal", kvc_seq_seal(c, seq)) ||
	    may("map", kvc_map(c, seq, &m)))
		return;
	if (m->n_entries)
		ck_assert_int_eq(*(const char *)kvc_map_row(m, &m->entries[0],
							    0, 1, 0, 0),
				 0x3c);
	ck_assert_int_eq(kvc_unmap(c, m), 0);
}

static int change(struct kvc *c, int seq)
{
	int ret = put(c, seq, N_TOKENS, 1);

	if (!ret)
		ret = may("truncate", kvc_seq_truncate(c, seq, 7));
	if (!ret)
		ret = put(c, seq, 7, 20);
	if (!ret)
		ret = may("skip", kvc_seq_skip(c, seq, 2, 4));
	if (!ret)
		ret = may("edit", kvc_seq_edit(c, seq, 10, 2, 3));
	return ret ? ret : put(c, seq, 10, 3);
}

static void own(struct kvc *c)
{
	const struct kv_geometry g = { .n_layers = 1,
				       .n_heads = HEADS,
				       .n_kv_heads = HEADS,
				       .head_dim = HEAD_DIM,
				       .rotary = KV_ROTARY_HALVES,
				       .theta = 10000 };
	const int h = may("geometry", kvc_geometry(c, &g));
	const int seq = h < 0 ? h : may("seq_new", kvc_seq_new(c, h, 4096));
	int fork;

	if (seq < 0 || put(c, seq, 0, N_TOKENS))
		return;
	fork = may("fork", kvc_seq_fork(c, seq));
	if (fork >= 0) {
		if (!change(c, fork))
			look_at(c, fork);
		ck_assert_int_eq(kvc_seq_free(c, fork), 0);
	}
	look_at(c, seq);
}

static void ask_for(struct kvc *c, int i, uint32_t repair)
{
	const struct rig_question *q = &questions[i];
	const struct kvc_generate r = { .parts = q->parts,
					.n_parts = q->n_parts,
					.max_tokens = 4,
					.repair = repair,
					.repair_permille = repair ? 200 : 0,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *g = NULL;

	(void)may("generate", kvc_generate(c, &r, &g));
	kvc_generate_free(c, g);
}

static void hosted(struct kvc *c, int i)
{
	static const char text[] = "the key of the north gate is 4711.";
	uint32_t tokens[32];
	uint64_t id[2];
	char *json;
	int ret;

	(void)may("tokenize",
		  kvc_tokenize(c, "m", text, sizeof(text) - 1, tokens, 32));
	if (may("chunk", kvc_chunk_put(c, "m", text, sizeof(text) - 1, id)) >
	    0) {
		ret = kvc_chunk_rm(c, id);
		if (ret != -ENOENT) /* it could not be kept */
			(void)may("chunk_rm", ret);
	}
	ask_for(c, i, 0);
	ask_for(c, i, KV_REPAIR_CRAFT);
	ask_for(c, i, KV_REPAIR_BLEND);
	(void)may("persist", kvc_persist(c));
	if (may("query", kvc_query(c, "chunks", "", &json)) >= 0)
		free(json);
}

/* How many calls failed. */
static int session(int i)
{
	const struct kvc_options opt = { .socket = d->socket };
	struct kvc *c;
	int ret;

	n_errors = 0;
	ret = kvc_open(&c, &opt);
	if (ret) { /* it hung up */
		ck_assert_msg(ret == -ENOMEM || ret == -ECONNRESET, "open: %s",
			      strerror(-ret));
		return 1;
	}
	own(c);
	hosted(c, i);
	kvc_close(c);
	return n_errors;
}

/* What the session had goes with it, and nothing else. */
static void nothing_is_left(void)
{
	int k = 0;

	while (rig_counter(b, "tenants", "a", "sequences") ||
	       rig_counter(b, "tenants", "a", "maps") ||
	       rig_counter(b, "tenants", "a", "requests")) {
		ck_assert_int_lt(k++, 2000);
		(void)usleep(10000);
	}
	ck_assert_uint_eq(rig_counter(b, "tenants", "a", "sessions"), 1);
}

START_TEST(any_call_of_a_session)
{
	int n = 0, n_failed = 0, nth = 0;
	uint64_t met;

	ck_assert_int_eq(session(0), 0);
	do {
		const int i = (nth = next(nth)) % N_QUESTIONS;

		rig_fault("once mem. %d %d", nth, ENOMEM);
		n_failed += session(i) > 0;
		met = rig_fault("off");
		nothing_is_left();
		right(b, i);
		n++;
		ck_assert_int_lt(nth, MOST);
	} while ((uint64_t)nth <= met);
	for (int i = 0; i < N_QUESTIONS; i++)
		right(a, i);
	ck_assert_int_eq(session(1), 0);
	printf("%d of %d allocations made a call fail, of %d\n", n_failed, n,
	       (int)met);
	ck_assert_int_gt(n_failed, 0);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("nomem");
	TCase *t = tcase_create("with a daemon");

	tcase_set_timeout(t, 300);
	tcase_add_checked_fixture(t, begin, end);
	tcase_add_test(t, a_request_that_finds_no_memory_fails_alone);
	tcase_add_test(t, no_memory_for_long);
	tcase_add_test(t, any_call_of_a_session);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	SRunner *r;
	int n;

	if (rig_fault_use()) {
		printf("skipped: there is no kvd-faulty binary\n");
		return 77;
	}
	r = srunner_create(suite());
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
