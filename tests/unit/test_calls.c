/*
 * test_calls.c - calls that append and attend: what waits, what is cancelled, what a
 * tenant may have at a time
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"
#include "kvd/serve/gen.h"
#include "tests/rig/rig_serve.h"

#define ROW 32u /* elements of one token's k */

struct attend {
	struct serve_attend req;
	struct serve_attend_item items[4];
	int told, ret;
};

static void attend_done(struct wait *w, int ret)
{
	struct attend *a = container_of(
		container_of(w, struct serve_attend, wait), struct attend, req);

	a->ret = ret;
	a->told++;
}

static int new_geometry(struct rig_serve *r, uint32_t n_layers)
{
	return serve_geometry(r->session,
			      &(struct serve_geometry){ .n_layers = n_layers,
							.n_heads = 1,
							.n_kv_heads = 1,
							.head_dim = ROW,
							.type = KERN_F32 });
}

/* n tokens behind the sequences'; x serves as q, k, v. */
static void add_item(struct attend *a, int seq, uint64_t pos, uint32_t n,
		     const float *x, float *o)
{
	a->items[a->req.n_items++] = (struct serve_attend_item){
		.seq = (uint32_t)seq,
		.n_tokens = n,
		.pos = pos,
		.q = o ? x : NULL,
		.k = x,
		.v = x,
		.o = o,
	};
}

static int start_attend(struct rig_serve *r, struct attend *a, uint32_t flags)
{
	a->req.wait.done = attend_done;
	a->req.items = a->items;
	a->req.append_only = !a->items[0].o;
	a->req.may_wait = !!(flags & 1);
	return serve_attend(r->session, &a->req);
}

static float *numbers(size_t n)
{
	float *f = malloc(n * sizeof(*f));

	ck_assert_ptr_nonnull(f);
	for (size_t i = 0; i < n; i++)
		f[i] = (float)(i % 97) * 0x1p-6f;
	return f;
}

/* Everything the tenant may have (16 MiB) in sequences of 4,096 tokens. */
#define FULL_TOKENS 4096u
#define FULL_SEQS   16u

static void fill(struct rig_serve *r, int geometry, int seqs[FULL_SEQS],
		 const float *x)
{
	for (uint32_t i = 0; i < FULL_SEQS; i++) {
		struct attend a = { 0 };

		seqs[i] = serve_seq_new(r->session, (uint32_t)geometry,
					2 * FULL_TOKENS);
		ck_assert_int_gt(seqs[i], 0);
		add_item(&a, seqs[i], 0, FULL_TOKENS, x, NULL);
		ck_assert_int_eq(start_attend(r, &a, 0), 0);
		ck_assert(rig_serve_until(r, &a.told));
		ck_assert_int_eq(a.ret, 0);
	}
}

static struct rig_serve *open_full(int seqs[FULL_SEQS], float **x)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 16 << 20, .disk_bytes = 16 << 20 });

	*x = numbers((size_t)FULL_TOKENS * ROW);
	fill(r, new_geometry(r, 1), seqs, *x);
	return r;
}

START_TEST(room_that_a_truncation_gives_is_taken)
{
	int seqs[FULL_SEQS];
	float *x;
	struct rig_serve *r = open_full(seqs, &x);
	struct attend a = { 0 }, b = { 0 };

	add_item(&a, seqs[0], FULL_TOKENS, 32, x, NULL);
	ck_assert_int_eq(start_attend(r, &a, 0), 0);
	ck_assert(rig_serve_until(r, &a.told));
	ck_assert_int_eq(a.ret, -EDQUOT);
	add_item(&b, seqs[0], FULL_TOKENS, 32, x, NULL);
	ck_assert_int_eq(start_attend(r, &b, 1), 0);
	for (int i = 0; i < 20; i++)
		rig_serve_turn(r);
	ck_assert(!b.told);
	ck_assert_int_eq(serve_seq_truncate(r->session, (uint32_t)seqs[1], 1),
			 0);
	ck_assert(rig_serve_until(r, &b.told));
	ck_assert_int_eq(b.ret, 0);
	free(x);
	rig_serve_close(r);
}
END_TEST

START_TEST(an_append_that_waits_can_be_cancelled)
{
	int seqs[FULL_SEQS];
	float *x;
	struct rig_serve *r = open_full(seqs, &x);
	struct serve_seq_info info;
	struct attend a = { 0 };

	add_item(&a, seqs[0], FULL_TOKENS, 32, x, NULL);
	ck_assert_int_eq(start_attend(r, &a, 1), 0);
	for (int i = 0; i < 20; i++)
		rig_serve_turn(r);
	ck_assert(!a.told);
	serve_attend_cancel(r->session, &a.req);
	serve_attend_cancel(r->session, &a.req);
	ck_assert(rig_serve_until(r, &a.told));
	ck_assert_int_eq(a.ret, -ECANCELED);
	ck_assert_int_eq(serve_seq_info(r->session, (uint32_t)seqs[0], &info),
			 0);
	ck_assert_uint_eq(info.n_tokens, FULL_TOKENS);
	ck_assert_int_eq(a.told, 1);
	free(x);
	rig_serve_close(r);
}
END_TEST

/* A sealed tail was to be copied: cutting it off is no matter of waiting. */
START_TEST(a_cut_behind_a_cancelled_append_goes)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 1 << 20, .disk_bytes = 16 << 20 });
	const int geometry = new_geometry(r, 1);
	float *x = numbers(4096 * ROW), o[2 * ROW], o2[2 * ROW];
	struct attend big = { 0 }, a[4] = { 0 };
	int seq, other;

	seq = serve_seq_new(r->session, (uint32_t)geometry, 8192);
	other = serve_seq_new(r->session, (uint32_t)geometry, 8192);
	add_item(&a[0], seq, 0, 40, x, NULL);
	ck_assert_int_eq(start_attend(r, &a[0], 0), 0);
	ck_assert(rig_serve_until(r, &a[0].told));
	ck_assert_int_eq(serve_seq_seal(r->session, (uint32_t)seq), 0);
	/* holds all there is, so the next stands in line with its copy */
	add_item(&big, other, 0, 3500, x, NULL);
	ck_assert_int_eq(start_attend(r, &big, 0), 0);
	add_item(&a[1], seq, 40, 3500, x, NULL);
	ck_assert_int_eq(start_attend(r, &a[1], 0), 0);
	serve_attend_cancel(r->session, &a[1].req);
	ck_assert(rig_serve_until(r, &a[1].told));
	ck_assert_int_eq(a[1].ret, -ECANCELED);
	ck_assert(rig_serve_until(r, &big.told));
	ck_assert_int_eq(big.ret, 0);
	ck_assert_int_eq(serve_seq_truncate(r->session, (uint32_t)seq, 36), 0);
	add_item(&a[2], seq, 36, 2, x, o);
	ck_assert_int_eq(start_attend(r, &a[2], 0), 0);
	ck_assert(rig_serve_until(r, &a[2].told));
	ck_assert_int_eq(a[2].ret, 0);
	ck_assert_int_eq(serve_seq_truncate(r->session, (uint32_t)seq, 30), 0);
	/* the same tokens at once */
	ck_assert_int_eq(serve_seq_truncate(r->session, (uint32_t)other, 36),
			 0);
	add_item(&a[3], other, 36, 2, x, o2);
	ck_assert_int_eq(start_attend(r, &a[3], 0), 0);
	ck_assert(rig_serve_until(r, &a[3].told));
	ck_assert(!memcmp(o, o2, sizeof(o)));
	free(x);
	rig_serve_close(r);
}
END_TEST

/* Queries over what is there: no room is needed. */
static void look_back(struct rig_serve *r, int seq, uint32_t n, const float *x,
		      float *o)
{
	struct attend a = { 0 };

	add_item(&a, seq, 0, n, x, o);
	a.items[0].k = a.items[0].v = NULL;
	ck_assert_int_eq(start_attend(r, &a, 0), 0);
	ck_assert(rig_serve_until(r, &a.told));
	ck_assert_int_eq(a.ret, 0);
}

/* Its client may wait for ever for what only others can give: nobody else does. */
START_TEST(who_waits_for_room_of_others_is_in_nobodys_way)
{
	int seqs[FULL_SEQS];
	float *x;
	struct rig_serve *r = open_full(seqs, &x);
	struct attend a = { 0 }, b = { 0 };
	float o[32 * ROW];

	add_item(&a, seqs[0], FULL_TOKENS, 32, x, NULL);
	ck_assert_int_eq(start_attend(r, &a, 1), 0);
	look_back(r, seqs[3], 32, x, o);
	/* half of it fits: it holds nothing meanwhile */
	ck_assert_int_eq(serve_seq_truncate(r->session, (uint32_t)seqs[1],
					    FULL_TOKENS - 1024),
			 0);
	ck_assert(rig_serve_until(r, &a.told));
	ck_assert_int_eq(a.ret, 0);
	a = (struct attend){ 0 };
	add_item(&a, seqs[2], FULL_TOKENS, 512, x, NULL);
	add_item(&a, seqs[3], FULL_TOKENS, FULL_TOKENS, x, NULL);
	ck_assert_int_eq(start_attend(r, &a, 1), 0);
	for (int i = 0; i < 20; i++)
		rig_serve_turn(r);
	ck_assert(!a.told);
	add_item(&b, seqs[4], FULL_TOKENS, 512, x, NULL);
	ck_assert_int_eq(start_attend(r, &b, 0), 0);
	ck_assert(rig_serve_until(r, &b.told));
	ck_assert_int_eq(b.ret, 0);
	ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)seqs[5]), 0);
	ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)seqs[6]), 0);
	ck_assert(rig_serve_until(r, &a.told));
	ck_assert_int_eq(a.ret, 0);
	free(x);
	rig_serve_close(r);
}
END_TEST

/* Each has half and wants more: whoever asks last is told, as nobody else can give. */
START_TEST(calls_that_wait_for_each_other_end)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 2 << 20, .disk_bytes = 2 << 20 });
	const int geometry = new_geometry(r, 1);
	float *x = numbers((size_t)FULL_TOKENS * ROW);
	struct attend a[2] = { 0 };
	int seqs[2];

	for (int i = 0; i < 2; i++) {
		struct attend f = { 0 };

		seqs[i] = serve_seq_new(r->session, (uint32_t)geometry,
					2 * FULL_TOKENS);
		add_item(&f, seqs[i], 0, FULL_TOKENS, x, NULL);
		ck_assert_int_eq(start_attend(r, &f, 0), 0);
		ck_assert(rig_serve_until(r, &f.told));
		ck_assert_int_eq(f.ret, 0);
	}
	for (int i = 0; i < 2; i++) {
		add_item(&a[i], seqs[i], FULL_TOKENS, 32, x, NULL);
		ck_assert_int_eq(start_attend(r, &a[i], 1), 0);
	}
	ck_assert(rig_serve_until(r, &a[1].told));
	ck_assert_int_eq(a[1].ret, -EDQUOT);
	ck_assert(!a[0].told);
	ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)seqs[1]), 0);
	ck_assert(rig_serve_until(r, &a[0].told));
	ck_assert_int_eq(a[0].ret, 0);
	free(x);
	rig_serve_close(r);
}
END_TEST

/* The head of a tile that was to be copied is where it was: the sequence is whole. */
START_TEST(an_append_that_was_cancelled_leaves_nothing_to_do)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 1 << 20, .disk_bytes = 16 << 20 });
	const int geometry = new_geometry(r, 1);
	float *x = numbers(4096 * ROW), o[40 * ROW], o2[40 * ROW];
	const uint32_t n[] = { 40, 20 }; /* with and without tiles before it */

	for (int i = 0; i < 2; i++) {
		struct attend big[2] = { 0 }, a[2] = { 0 };
		struct serve_seq_info info;
		int seq, others[2], fork;

		seq = serve_seq_new(r->session, (uint32_t)geometry, 8192);
		add_item(&a[0], seq, 0, n[i], x, NULL);
		ck_assert_int_eq(start_attend(r, &a[0], 0), 0);
		ck_assert(rig_serve_until(r, &a[0].told));
		look_back(r, seq, n[i], x, o);
		ck_assert_int_eq(serve_seq_skip(r->session, (uint32_t)seq,
						n[i] - 3, n[i] - 1),
				 0);
		look_back(r, seq, n[i], x, o2);
		ck_assert(memcmp(o, o2, n[i] * ROW * sizeof(float)));
		ck_assert_int_eq(serve_seq_seal(r->session, (uint32_t)seq), 0);
		/* they hold half of all there is each */
		for (int k = 0; k < 2; k++) {
			others[k] = serve_seq_new(r->session,
						  (uint32_t)geometry, 8192);
			add_item(&big[k], others[k], 0, 3500, x, NULL);
			ck_assert_int_eq(start_attend(r, &big[k], 0), 0);
		}
		add_item(&a[1], seq, n[i], 3500, x, NULL);
		ck_assert_int_eq(start_attend(r, &a[1], 0), 0);
		serve_attend_cancel(r->session, &a[1].req);
		ck_assert(rig_serve_until(r, &a[1].told));
		ck_assert_int_eq(a[1].ret, -ECANCELED);
		ck_assert(rig_serve_until(r, &big[0].told));
		ck_assert(rig_serve_until(r, &big[1].told));
		fork = serve_seq_fork(r->session, (uint32_t)seq);
		ck_assert_int_gt(fork, 0);
		look_back(r, fork, n[i], x, o);
		ck_assert(!memcmp(o, o2, n[i] * ROW * sizeof(float)));
		ck_assert_int_eq(
			serve_seq_info(r->session, (uint32_t)seq, &info), 0);
		ck_assert_uint_eq(info.n_tokens, n[i]);
		ck_assert_uint_eq(info.n_sealed, n[i]);
		ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)seq), 0);
		for (int k = 0; k < 2; k++)
			ck_assert_int_eq(
				serve_seq_free(r->session, (uint32_t)others[k]),
				0);
		ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)fork), 0);
	}
	free(x);
	rig_serve_close(r);
}
END_TEST

/* What a call may take of the tenant's places is what a generation may. */
START_TEST(attention_has_a_place_among_the_requests)
{
	struct rig_serve *r =
		rig_serve_open((struct rig_serve_options){ .max_requests = 2 });
	const int geometry = new_geometry(r, 1);
	float *x = numbers(32 * ROW);
	struct attend a[4] = { 0 };

	for (int i = 0; i < 4; i++)
		add_item(&a[i],
			 serve_seq_new(r->session, (uint32_t)geometry, 0), 0,
			 32, x, NULL);
	ck_assert_int_eq(start_attend(r, &a[0], 0), 0);
	ck_assert_int_eq(start_attend(r, &a[1], 0), 0);
	ck_assert_int_eq(start_attend(r, &a[2], 0), -EDQUOT);
	ck_assert_int_eq(start_attend(r, &a[3], 1), 0);
	ck_assert(rig_serve_until(r, &a[3].told));
	ck_assert(a[0].told && a[1].told);
	ck_assert_int_eq(a[3].ret, 0);
	ck_assert_int_eq(start_attend(r, &a[2], 0), 0);
	ck_assert(rig_serve_until(r, &a[2].told));
	free(x);
	rig_serve_close(r);
}
END_TEST

static void drained(struct wait *w, int ret)
{
	(void)w;
	(void)ret;
}

START_TEST(draining_takes_no_new_attention)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	const int geometry = new_geometry(r, 1);
	float *x = numbers(32 * ROW);
	struct attend a = { 0 };
	struct wait w = { 0 };

	add_item(&a, serve_seq_new(r->session, (uint32_t)geometry, 0), 0, 32, x,
		 NULL);
	w.done = drained;
	serve_drain(r->serve, &w);
	ck_assert_int_eq(start_attend(r, &a, 0), -ESHUTDOWN);
	free(x);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("calls");
	TCase *t = tcase_create("calls");
	SRunner *sr;
	int failed;

	tcase_add_test(t, room_that_a_truncation_gives_is_taken);
	tcase_add_test(t, an_append_that_waits_can_be_cancelled);
	tcase_add_test(t, a_cut_behind_a_cancelled_append_goes);
	tcase_add_test(t, who_waits_for_room_of_others_is_in_nobodys_way);
	tcase_add_test(t, calls_that_wait_for_each_other_end);
	tcase_add_test(t, an_append_that_was_cancelled_leaves_nothing_to_do);
	tcase_add_test(t, attention_has_a_place_among_the_requests);
	tcase_add_test(t, draining_takes_no_new_attention);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
