/*
 * test_calls_gpu.c - calls of clients' own weights over device memory, while the driver
 * fails: what was not done is not taken for done
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_serve.h"

#define ROW	      64u /* elements of one token's k */
#define HEAD	      45u /* tokens: a tile and a part of one */
#define MORE	      9u
#define N_FRAMES      3
#define OUT_OF_MEMORY 2

struct call {
	struct serve_attend req;
	struct serve_attend_item item;
	int told, ret;
};

static void call_done(struct wait *w, int ret)
{
	struct call *c = container_of(
		container_of(w, struct serve_attend, wait), struct call, req);

	c->ret = ret;
	c->told++;
}

/* n tokens at pos, appended, or only asked about; o NULL: appended only. */
static int call_at(struct rig_serve *r, int seq, uint32_t pos, uint32_t n,
		   const float *at, int append, float *o)
{
	struct call c = {
		.req = { .wait.done = call_done,
			 .n_items = 1,
			 .append_only = !o },
		.item = { .seq = (uint32_t)seq,
			  .n_tokens = n,
			  .pos = pos,
			  .q = o ? at : NULL,
			  .k = append ? at : NULL,
			  .v = append ? at : NULL,
			  .o = o },
	};

	c.req.items = &c.item;
	ck_assert_int_eq(serve_attend(r->session, &c.req), 0);
	ck_assert(rig_serve_until(r, &c.told));
	return c.ret;
}

/* The same of x, which has all tokens. */
static int call(struct rig_serve *r, int seq, uint32_t pos, uint32_t n,
		const float *x, int append, float *o)
{
	return call_at(r, seq, pos, n, x + (size_t)pos * ROW, append, o);
}

static int new_seq(struct rig_serve *r)
{
	const int geometry = serve_geometry(
		r->session, &(struct serve_geometry){ .n_layers = 1,
						      .n_heads = 1,
						      .n_kv_heads = 1,
						      .head_dim = ROW,
						      .type = KERN_F32 });

	ck_assert_int_gt(geometry, 0);
	return serve_seq_new(r->session, (uint32_t)geometry, 0);
}

static int fork_of(struct rig_serve *r, int seq)
{
	const int fork = serve_seq_fork(r->session, (uint32_t)seq);

	ck_assert_int_gt(fork, 0);
	return fork;
}

/* Frames that are used next hold other numbers: they go round, so not always as many. */
static void use_frames(struct rig_serve *r, int other, const float *x,
		       uint64_t n)
{
	int forks[N_FRAMES];

	for (uint64_t i = 0; i < n; i++) {
		forks[i] = fork_of(r, other);
		ck_assert_int_eq(call(r, forks[i], HEAD, MORE, x, 1, NULL), 0);
	}
	while (n--)
		ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)forks[n]),
				 0);
}

/* The head of a tile is copied by the next append: by none that failed. */
START_TEST(a_head_that_was_not_copied_is_copied_later)
{
	/* one that waits for the stream fails with the device only */
	static const char *const which[] = { "cuMemcpyHtoD", "cuLaunchKernel" };
	struct fake_ctl fake;
	struct cuda_api *api = rig_cuda_open(&fake, 64u << 20, 65536);
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .cuda = api, .head_dim = 64 });
	const uint32_t n_all = HEAD + MORE;
	float x[(HEAD + MORE) * ROW], y[(HEAD + MORE) * ROW];
	float o[MORE * ROW], want[MORE * ROW];
	uint64_t n_calls = 1;
	int seq, other, n_failed = 0;

	for (uint32_t i = 0; i < n_all * ROW; i++) {
		x[i] = (float)(i * 37 % 97) * 0x1p-9f;
		y[i] = (float)(i * 41 % 89) * 0x1p-9f;
	}
	seq = new_seq(r);
	other = new_seq(r);
	ck_assert_int_eq(call(r, seq, 0, HEAD, x, 1, NULL), 0);
	ck_assert_int_eq(call(r, other, 0, HEAD, y, 1, NULL), 0);
	for (uint64_t nth = 0; nth <= n_calls; nth++) {
		struct serve_seq_info info;
		int fork, ret;

		use_frames(r, other, y, 1 + nth % N_FRAMES);
		fork = fork_of(r, seq);
		fake.arm(FAKE_ONCE, which[_i], nth ? nth : UINT64_MAX,
			 OUT_OF_MEMORY);
		ret = call(r, fork, HEAD, MORE, x, 1, nth ? o : want);
		n_calls = nth ? n_calls : fake.count();
		fake.arm(FAKE_OFF, "", 0, 0);
		ck_assert(nth || !ret);
		if (ret) {
			n_failed++;
			ck_assert_int_eq(serve_seq_info(r->session,
							(uint32_t)fork, &info),
					 0);
			ck_assert_uint_eq(info.n_tokens, HEAD);
			ret = call(r, fork, HEAD, MORE, x, 1, o);
			ck_assert_int_eq(ret, 0);
		}
		if (nth)
			ck_assert_msg(!memcmp(o, want, sizeof(o)),
				      "after call %u of the driver failed",
				      (unsigned int)nth);
		ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)fork), 0);
	}
	ck_assert_int_gt(n_failed, 1);
	rig_serve_close(r);
	rig_cuda_drop(api, &fake);
}
END_TEST

/* A wait that fails says nothing of what was waited for: pages stay as long as it runs. Where no
 * wait ends well nobody gets them any more. */
START_TEST(a_call_ends_when_nothing_of_it_runs)
{
	struct fake_ctl fake;
	struct cuda_api *api = rig_cuda_open(&fake, 64u << 20, 65536);
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .cuda = api, .head_dim = 64 });
	const int append = _i & 1, for_ever = _i & 2;
	float x[(HEAD + MORE) * ROW], o[MORE * ROW];
	struct call c = {
		.req = { .wait.done = call_done,
			 .n_items = 1,
			 .append_only = append },
		.item = { .n_tokens = MORE,
			  .pos = append ? HEAD : 0,
			  .q = append ? NULL : x,
			  .k = append ? x : NULL,
			  .v = append ? x : NULL,
			  .o = append ? NULL : o },
	};
	const int seq = new_seq(r);
	int fork;

	for (uint32_t i = 0; i < (HEAD + MORE) * ROW; i++)
		x[i] = 1;
	ck_assert_int_eq(call(r, seq, 0, HEAD, x, 1, NULL), 0);
	fork = fork_of(r, seq); /* its frames are there for the next */
	ck_assert_int_eq(call(r, fork, HEAD, MORE, x, 1, NULL), 0);
	ck_assert_int_eq(serve_seq_free(r->session, (uint32_t)fork), 0);
	fork = fork_of(r, seq);
	for (int i = 0; i < 100; i++)
		rig_serve_turn(r);
	fake.hold();
	fake.arm(for_ever ? FAKE_FOREVER : FAKE_ONCE, "cuStreamSynchronize", 1,
		 OUT_OF_MEMORY);
	c.item.seq = (uint32_t)fork;
	c.req.items = &c.item;
	ck_assert_int_eq(serve_attend(r->session, &c.req), 0);
	while (!fake.count())
		rig_serve_turn(r);
	for (int i = 0; i < 100; i++)
		rig_serve_turn(r);
	ck_assert(c.told == !!for_ever);
	ck_assert(!for_ever || c.ret == -ENODEV);
	ck_assert(!for_ever || call(r, seq, 0, 1, x, 0, o) == -ENODEV);
	fake.go();
	ck_assert(rig_serve_until(r, &c.told));
	fake.arm(FAKE_OFF, "", 0, 0);
	rig_serve_close(r);
	rig_cuda_drop(api, &fake);
}
END_TEST

/* ---- what clients have mapped --------------------------------------------------- */

#define STEP	 4096u
#define EXPORTED (3 * STEP) /* 6 of 16 MiB */
#define LARGE	 (6 * STEP) /* 12 of them: too much beside it */

static void exported(struct wait *w, int ret)
{
	struct serve_export *e = container_of(w, struct serve_export, wait);

	ck_assert_int_eq(ret, 0);
	e->n_room = 0;
}

/* Exports stay as long as their clients like. */
START_TEST(what_does_not_fit_beside_exports_is_in_nobodys_way)
{
	struct fake_ctl fake;
	struct cuda_api *api = rig_cuda_open(&fake, 64u << 20, 65536);
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .cuda = api, .head_dim = 64 });
	float *x = calloc(STEP * ROW, sizeof(*x)), o[ROW];
	struct serve_export_entry entries[64];
	struct serve_export e = { .wait.done = exported,
				  .entries = entries,
				  .n_room = 64 };
	struct call waits = {
		.req = { .wait.done = call_done, .n_items = 1, .may_wait = 1 },
		.item = { .n_tokens = 1, .pos = LARGE - 1, .q = x, .o = o },
	};
	const int a = new_seq(r), b = new_seq(r), c = new_seq(r);

	for (uint32_t n = 0; n < EXPORTED; n += STEP)
		ck_assert_int_eq(call_at(r, a, n, STEP, x, 1, NULL), 0);
	for (uint32_t n = 0; n < LARGE; n += STEP)
		ck_assert_int_eq(call_at(r, b, n, STEP, x, 1, NULL), 0);
	ck_assert_int_eq(call_at(r, c, 0, 32, x, 1, NULL), 0);
	ck_assert_int_eq(serve_seq_seal(r->session, (uint32_t)a), 0);
	e.seq = (uint32_t)a;
	ck_assert_int_eq(serve_export(r->session, &e), 0);
	while (e.n_room)
		rig_serve_turn(r);
	/* who does not wait is told */
	ck_assert_int_eq(call_at(r, b, LARGE - 1, 1, x, 0, o), -ENOSPC);
	waits.item.seq = (uint32_t)b;
	waits.req.items = &waits.item;
	ck_assert_int_eq(serve_attend(r->session, &waits.req), 0);
	ck_assert_int_eq(call_at(r, c, 31, 1, x, 0, o), 0);
	ck_assert(!waits.told);
	for (uint32_t i = 0; i < e.n_entries; i++)
		ck_assert_int_eq(serve_unexport(r->session, entries[i].id), 0);
	ck_assert(rig_serve_until(r, &waits.told));
	ck_assert_int_eq(waits.ret, 0);
	free(x);
	rig_serve_close(r);
	rig_cuda_drop(api, &fake);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("calls_gpu");
	TCase *t = tcase_create("calls_gpu");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(t, a_head_that_was_not_copied_is_copied_later, 0,
			    2);
	tcase_add_loop_test(t, a_call_ends_when_nothing_of_it_runs, 0, 4);
	tcase_add_test(t, what_does_not_fit_beside_exports_is_in_nobodys_way);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
