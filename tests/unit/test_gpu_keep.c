/*
 * test_gpu_keep.c - queries that a step on the device leaves on the host: more layers than
 * there are slots, and every call of the driver failing
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gpu_keep.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_gpu.h"

#define LAYERS 40u /* more than slots */
#define ROWS   30u
#define DIM    64u
#define HEADS  2u
#define ROW    ((size_t)HEADS * DIM)
#define KEPT   (3u + 10u)

static struct rig_gpu g;
static struct gpu_keep *keep;
static uint64_t seed = 7;
static float *q; /* [LAYERS][ROWS][ROW] */
static char out[LAYERS][KEPT * ROW * 4], want[LAYERS][KEPT * ROW * 4];
static const struct gpu_kept list[] = {
	{ 4, 3, out[0], sizeof(out[0]) },
	{ 19, 10, NULL, sizeof(out[0]) }, /* behind the first */
};

/* A step of n_layers, queued without a wait. The error it ends with. */
static int step(enum kern_type type, uint32_t n_layers)
{
	const struct attn_shape shape = {
		.type = type, .n_heads = HEADS, .n_kv_heads = 1, .head_dim = DIM
	};
	const size_t es = kern_type_bytes(type);
	struct gpu_kept l[2] = { list[0], list[1] };
	int ret;

	l[1].to = out[0] + 3 * ROW * es;
	ret = gpu_keep_begin(keep, &shape, n_layers, l, 2);
	for (uint32_t i = 0; i < n_layers && !ret; i++) {
		const float *x = q + i * ROWS * ROW;

		kern_from_f32(type, x + 4 * ROW, want[i], 3 * ROW);
		kern_from_f32(type, x + 19 * ROW, want[i] + 3 * ROW * es,
			      10 * ROW);
		ret = gpu_keep_layer(keep, i, (uintptr_t)x);
	}
	if (!ret)
		ret = kern_errno(g.api->stream_sync(g.stream));
	if (ret)
		(void)g.api->stream_sync(g.stream);
	else
		gpu_keep_end(keep);
	return ret;
}

static void compare(enum kern_type type, uint32_t n_layers)
{
	for (uint32_t i = 0; i < n_layers; i++)
		ck_assert(!memcmp(out[i], want[i],
				  KEPT * ROW * kern_type_bytes(type)));
}

/* _i: type. Steps of more and fewer layers, one after the other. */
START_TEST(rows_are_those_of_their_layer)
{
	static const uint32_t n[] = { 3, LAYERS, 1, 17, 16 };
	const enum kern_type type = _i ? KERN_BF16 : KERN_F32;

	for (size_t k = 0; k < sizeof(n) / sizeof(*n); k++) {
		memset(out, 0xa5, sizeof(out));
		ck_assert_int_eq(step(type, n[k]), 0);
		compare(type, n[k]);
		for (size_t i = 0; n[k] < LAYERS && i < sizeof(out[0]); i++)
			ck_assert_int_eq((unsigned char)out[n[k]][i], 0xa5);
	}
	/* a step that keeps nothing */
	ck_assert_int_eq(gpu_keep_begin(keep, NULL, 5, NULL, 0), 0);
	ck_assert_int_eq(gpu_keep_layer(keep, 0, 0), 0);
	gpu_keep_end(keep);
}
END_TEST

/* Each call once: the step ends with it, the next one is whole. */
START_TEST(every_call_fails)
{
	int n_failed = 0;

	for (uint32_t nth = 1; nth < 1000; nth++) {
		int ret;

		gpu_keep_free(keep);
		ck_assert_int_eq(gpu_keep_new(&keep, g.api, g.kern, g.stream),
				 0);
		g.ctl.arm(FAKE_ONCE, "cu", nth, CUDA_OUT_OF_MEMORY);
		ret = step(KERN_BF16, 18);
		g.ctl.arm(FAKE_OFF, "", 0, 0);
		if (!ret) {
			compare(KERN_BF16, 18);
			break;
		}
		ck_assert(ret == -ENOMEM || ret == -ENOSPC);
		n_failed++;
		ck_assert_int_eq(step(KERN_BF16, 18), 0);
		compare(KERN_BF16, 18);
	}
	ck_assert_int_gt(n_failed, 50);
}
END_TEST

static void setup(void)
{
	kern_init(KERN_ISA_AMX);
	rig_gpu_open(&g);
	ck_assert_int_eq(gpu_keep_new(&keep, g.api, g.kern, g.stream), 0);
	q = rig_gpu_alloc(&g, LAYERS * ROWS * ROW * sizeof(*q));
	for (size_t i = 0; i < LAYERS * ROWS * ROW; i++)
		q[i] = (float)(rig_random(&seed) >> 40) * 0x1p-24f - 0.5f;
}

static void teardown(void)
{
	gpu_keep_free(keep);
	rig_gpu_close(&g);
}

int main(void)
{
	Suite *s = suite_create("gpu_keep");
	TCase *t = tcase_create("all");
	const char *why = rig_gpu_missing();
	SRunner *r;
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, rows_are_those_of_their_layer, 0, 2);
	if (!getenv("KVD_GPU"))
		tcase_add_test(t, every_call_fails);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
