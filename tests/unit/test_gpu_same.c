/*
 * test_gpu_same.c - what a daemon finds out at start: does wgmma have the bits of mma?
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/rig/rig_gpu.h"

static struct rig_gpu g;

/* That may fail, with nothing left behind. */
static const char *const calls[] = {
	"cuCtxCreate", "cuModuleLoad",	 "cuStreamCreate", "cuEventCreate",
	"cuMemAlloc",  "cuMemHostAlloc", "cuMemcpyHtoD",   "cuTensorMap",
	"cuLaunch",    "cuMemcpyDtoH",	 "cuEventRecord",  "cuEventQuery",
};
#define N_CALLS (sizeof(calls) / sizeof(*calls))

/* The daemon's trial: the same bits, others, calls of it that fail. */
START_TEST(the_trial_of_wgmma)
{
	const char *image = g.is_real ? NULL : "fake";
	uint32_t same = 0;
	int ret;

	if (_i == 1 && !g.is_real)
		ck_assert_int_eq(setenv("FAKE_WGMMA", "other", 1), 0);
	ret = kern_gpu_wide_check(g.kern, 0, image, &same);
	ck_assert_int_eq(g.api->ctx_set(g.ctx), 0);
	printf("wide tiles: trial: %d, kinds %x\n", ret, same);
	if (g.is_real) {
		ck_assert(!ret || ret == -ENOTSUP);
		return;
	}
	ck_assert_int_eq(ret, 0);
	ck_assert_uint_eq(same, _i == 1 ? 0 : 15);
	for (size_t i = 0; _i == 2 && i < N_CALLS; i++) {
		g.ctl.arm(FAKE_ONCE, calls[i], 1, CUDA_OUT_OF_MEMORY);
		ret = kern_gpu_wide_check(g.kern, 0, image, &same);
		ck_assert_int_eq(g.api->ctx_set(g.ctx), 0);
		ck_assert_int_eq(ret, -ENOMEM);
		ck_assert_uint_eq(same, 0);
	}
	/* nothing is left of them */
	g.ctl.arm(FAKE_OFF, "", 0, 0);
	ck_assert_int_eq(kern_gpu_wide_check(g.kern, 0, image, &same), 0);
	ck_assert_int_eq(g.api->ctx_set(g.ctx), 0);
	ck_assert_uint_eq(same, _i == 1 ? 0 : 15);
}
END_TEST

static void setup(void)
{
	rig_gpu_open(&g);
}

static void teardown(void)
{
	rig_gpu_close(&g);
}

int main(void)
{
	Suite *s = suite_create("gpu_same");
	TCase *t = tcase_create("all");
	const char *why = rig_gpu_missing();
	SRunner *sr;
	int failed;

	if (why) {
		printf("skipped: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, the_trial_of_wgmma, 0, 3);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
