/*
 * test_hostile.c - clients that lie to the real daemon, beside one that does
 * not
 *
 * Seeds are printed on failure. The honest session does attention on a small
 * geometry all the while, and its outputs must stay what they were.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/raw.h"

#define N_HEADS	 4u
#define HEAD_DIM 64u
#define N_TOKENS 40u
#define ELEMS	 (N_TOKENS * N_HEADS * HEAD_DIM)

static struct rig_daemon *d;

/* An honest client and what it got the first time. */
struct honest {
	struct kvc *c;
	int geometry;
	float *q, *o;
	struct kv_attend_item *item;
	float first[ELEMS];
	int has_first;
};

static void start_daemon(void)
{
	d = rig_daemon_start(NULL);
	ck_assert_ptr_nonnull(d);
}

static void end_daemon(void)
{
	ck_assert_int_eq(rig_daemon_stop(d), 0); /* it did not crash */
	rig_daemon_free(d);
}

static void honest_open(struct honest *h)
{
	const struct kv_geometry g = { .n_layers = 1,
				       .n_heads = N_HEADS,
				       .n_kv_heads = N_HEADS,
				       .head_dim = HEAD_DIM };

	memset(h, 0, sizeof(*h));
	ck_assert_int_eq(
		kvc_open(&h->c, &(struct kvc_options){ .socket = d->socket }),
		0);
	h->geometry = kvc_geometry(h->c, &g);
	ck_assert_int_gt(h->geometry, 0);
	h->q = kvc_alloc(h->c, ELEMS * sizeof(float));
	h->o = kvc_alloc(h->c, ELEMS * sizeof(float));
	h->item = kvc_alloc(h->c, sizeof(*h->item));
	for (uint32_t i = 0; i < ELEMS; i++)
		h->q[i] = (float)(i * 2654435761u % 1000) / 500.0f - 1.0f;
}

static void honest_check(struct honest *h)
{
	const int seq = kvc_seq_new(h->c, h->geometry, 0);
	const uint64_t q = kvc_off(h->c, h->q);

	ck_assert_int_gt(seq, 0);
	*h->item = (struct kv_attend_item){ .seq = (uint32_t)seq,
					    .n_tokens = N_TOKENS,
					    .q_off = q,
					    .k_off = q,
					    .v_off = q,
					    .o_off = kvc_off(h->c, h->o) };
	ck_assert_int_eq(kvc_attend(h->c, h->item, 1, 0, KV_SQE_WAIT), 0);
	if (!h->has_first)
		memcpy(h->first, h->o, sizeof(h->first));
	h->has_first = 1;
	ck_assert_int_eq(memcmp(h->first, h->o, sizeof(h->first)), 0);
	ck_assert_int_eq(kvc_seq_free(h->c, seq), 0);
}

START_TEST(nonsense_costs_only_its_sender)
{
	struct honest h;

	honest_open(&h);
	honest_check(&h);
	for (uint64_t seed = 1; seed <= 40; seed++) {
		const struct raw_hostile bad = { .path = d->socket,
						 .seed = seed *
							 0x9e3779b97f4a7c15u,
						 .n_entries = 400,
						 .jump = seed % 4 != 0 };
		const int ret = raw_hostile(&bad);

		ck_assert_msg(!ret, "seed %lu: %d", (unsigned long)seed, ret);
		honest_check(&h);
	}
	kvc_close(h.c);
}
END_TEST

START_TEST(hostile_clients_at_once_killed_in_the_middle)
{
	struct honest h;
	pid_t pid[6];

	honest_open(&h);
	for (uint64_t round = 1; round <= 4; round++) {
		for (uint64_t i = 0; i < 6; i++) {
			pid[i] = fork();
			if (pid[i])
				continue;
			for (uint64_t k = 1;; k++)
				(void)raw_hostile(&(struct raw_hostile){
					.path = d->socket,
					.seed = round * 1000003 + i * 7919 + k,
					.n_entries = 300,
					.jump = k & 1 });
		}
		for (int i = 0; i < 10; i++) {
			honest_check(&h);
			(void)usleep(10000);
		}
		for (uint64_t i = 0; i < 6; i++) {
			(void)kill(pid[i], SIGKILL);
			(void)waitpid(pid[i], NULL, 0);
		}
		honest_check(&h);
	}
	kvc_close(h.c);
}
END_TEST

START_TEST(connects_by_the_thousand)
{
	struct honest h;
	struct kvc *c;

	honest_open(&h);
	for (int i = 0; i < 3000; i++) {
		const int fd = raw_socket(d->socket);

		if (fd >= 0) {
			if (i % 3 == 0)
				(void)!write(fd, "garbage", 7);
			(void)close(fd);
		}
		if (i % 10 == 0) {
			const int ret = kvc_open(
				&c,
				&(struct kvc_options){ .socket = d->socket });

			ck_assert_int_eq(ret, 0);
			kvc_close(c);
		}
		if (i % 500 == 0)
			honest_check(&h);
	}
	honest_check(&h);
	kvc_close(h.c);
}
END_TEST

#define N_ASKERS 4
#define N_ASKED	 32
#define N_SEQS	 10000

/* Long lists, asked for as often as the rings take it. */
struct asker {
	struct kvc *c;
	struct kvc_req reqs[N_ASKED];
};

static void ask_for_lists(struct asker *a)
{
	struct kv_sqe e = { .opcode = KV_OP_QUERY };
	struct kv_query *q = kvc_alloc(a->c, sizeof(*q));
	void *out = kvc_alloc(a->c, 64); /* it does not even want it all */

	ck_assert(q && out);
	memset(q, 0, sizeof(*q));
	strcpy(q->what, "sequences");
	q->out_off = kvc_off(a->c, out);
	q->out_bytes = 64;
	e.arg[0] = kvc_off(a->c, q);
	memset(a->reqs, 0, sizeof(a->reqs));
	for (int i = 0; i < N_ASKED; i++)
		ck_assert_int_eq(kvc_submit(a->c, &e, &a->reqs[i]), 0);
}

static int n_answered(struct asker *a)
{
	int n = 0;

	(void)kvc_poll(a->c);
	for (int i = 0; i < N_ASKED; i++)
		n += a->reqs[i].done;
	return n;
}

/* What a tenant asks about itself takes its own time. */
START_TEST(questions_of_one_tenant_stop_no_other)
{
	const struct kv_geometry g = { .n_layers = 1,
				       .n_heads = N_HEADS,
				       .n_kv_heads = N_HEADS,
				       .head_dim = HEAD_DIM };
	struct asker askers[N_ASKERS];
	char conf[512], path[64], *text;
	struct rig_daemon *e;
	struct kvc *other;
	int geometry, n = 0;

	snprintf(path, sizeof(path), "/tmp/kvd-other-%d", (int)getpid());
	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 64M\nsequences = 100000\n"
		 "[tenant b]\nsocket = %s\nmemory = 64M\n",
		 getuid(), path);
	e = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(e);
	for (int i = 0; i < N_ASKERS; i++)
		ck_assert_int_eq(
			kvc_open(&askers[i].c,
				 &(struct kvc_options){ .socket = e->socket }),
			0);
	ck_assert_int_eq(
		kvc_open(&other, &(struct kvc_options){ .socket = path }), 0);
	ck_assert_str_eq(kvc_tenant(other), "b");
	geometry = kvc_geometry(askers[0].c, &g);
	for (int i = 0; i < N_SEQS; i++)
		ck_assert_int_ge(kvc_seq_new(askers[0].c, geometry, 1), 0);
	for (int i = 0; i < N_ASKERS; i++)
		ask_for_lists(&askers[i]);
	ck_assert_int_eq(kvc_nop(other), 0);
	for (int i = 0; i < N_ASKERS; i++)
		n += n_answered(&askers[i]);
	ck_assert_int_lt(n, N_ASKED / 2);
	/* whose session ends gets no answers any more, and others theirs */
	for (int i = 0; i < N_ASKERS - 1; i++)
		kvc_close(askers[i].c);
	for (int i = 0; i < N_ASKED; i++)
		ck_assert_int_ge(kvc_wait(askers[N_ASKERS - 1].c,
					  &askers[N_ASKERS - 1].reqs[i], -1),
				 2);
	ck_assert_int_ge(
		kvc_query(askers[N_ASKERS - 1].c, "sequences", "", &text), 0);
	free(text);
	/* and some wait at the end of the daemon */
	ask_for_lists(&askers[N_ASKERS - 1]);
	ck_assert_int_eq(rig_daemon_stop(e), 0);
	kvc_close(askers[N_ASKERS - 1].c);
	kvc_close(other);
	rig_daemon_free(e);
}
END_TEST

#define N_MANY 1500

/* Each with a segment of its own. */
static void many_segments(struct honest *h)
{
	const uint64_t q = kvc_off(h->c, h->q);

	for (int i = 0; i < N_MANY; i++) {
		const int seq = kvc_seq_new(h->c, h->geometry, 32);

		ck_assert_int_gt(seq, 0);
		*h->item =
			(struct kv_attend_item){ .seq = (uint32_t)seq,
						 .n_tokens = 1,
						 .q_off = q,
						 .k_off = q,
						 .v_off = q,
						 .o_off = kvc_off(h->c, h->o) };
		ck_assert_int_eq(kvc_attend(h->c, h->item, 1, 0, KV_SQE_WAIT),
				 0);
	}
}

static void ask_segments(struct kvc *c, struct kv_query *q, char *out,
			 uint32_t room, struct kvc_req *r)
{
	struct kv_sqe e = { .opcode = KV_OP_QUERY, .arg[0] = kvc_off(c, q) };

	memset(q, 0, sizeof(*q));
	memset(r, 0, sizeof(*r));
	strcpy(q->what, "segments");
	q->out_off = kvc_off(c, out);
	q->out_bytes = room;
	ck_assert_int_eq(kvc_submit(c, &e, r), 0);
}

/* A list is made in parts, and others are served in between. */
START_TEST(a_long_list_holds_up_nobody)
{
	struct honest h, leaver;
	struct kv_query *q;
	struct kvc_req r;
	char conf[256], *text, *out;
	int n = 0, size;

	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 64M\nsequences = 10000\n",
		 getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	honest_open(&h);
	many_segments(&h);
	ck_assert_int_eq(kvc_query(h.c, "segments", "", &text), 0);
	size = (int)strlen(text);
	for (const char *at = text; (at = strstr(at, "\"open\"")); at++)
		n++;
	ck_assert_int_eq(n, N_MANY);
	/* what fits, and no more */
	q = kvc_alloc(h.c, sizeof(*q));
	out = kvc_alloc(h.c, 200);
	memset(out, 'x', 200);
	(void)usleep(1000000); /* it need not wait for what it had */
	ask_segments(h.c, q, out, 100, &r);
	for (n = 0; !r.done; n++)
		ck_assert_int_eq(kvc_nop(h.c), 0);
	ck_assert_int_ge(n, 5);
	ck_assert_int_eq(r.res, size);
	ck_assert(!memcmp(out, text, 100) && out[100] == 'x');
	free(text);
	ck_assert_int_eq(kvc_query(h.c, "segments", "nobody", &text), -ENOENT);
	/* who leaves in the middle of one, and one at the daemon's end */
	honest_open(&leaver);
	ask_segments(leaver.c, kvc_alloc(leaver.c, sizeof(*q)),
		     kvc_alloc(leaver.c, 200), 200, &r);
	ck_assert_int_eq(kvc_nop(leaver.c), 0);
	kvc_close(leaver.c);
	honest_check(&h);
	ask_segments(h.c, q, out, 100, &r);
	ck_assert_int_eq(kvc_nop(h.c), 0);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	kvc_close(h.c);
	ck_assert_int_eq(rig_daemon_restart(d), 0); /* for end_daemon() */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("hostile");
	TCase *t = tcase_create("hostile");
	SRunner *sr = srunner_create(s);
	int failed;

	if (!rig_daemon_binary()) {
		(void)puts("skipped: no kvd binary");
		return 77;
	}
	suite_add_tcase(s, t);
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, start_daemon, end_daemon);
	tcase_add_test(t, nonsense_costs_only_its_sender);
	tcase_add_test(t, hostile_clients_at_once_killed_in_the_middle);
	tcase_add_test(t, connects_by_the_thousand);
	tcase_add_test(t, questions_of_one_tenant_stop_no_other);
	tcase_add_test(t, a_long_list_holds_up_nobody);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
