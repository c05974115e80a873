/*
 * test_gpu_plan.c - which rows of an attention go into parts, which into tiles; what
 * lies in the copy engine's window
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include "kernels/gpu.h"
#include "tests/rig/rig_gpu.h"

static struct rig_gpu g;

static void setup(void)
{
	rig_gpu_open(&g);
}

static void teardown(void)
{
	rig_gpu_close(&g);
}

START_TEST(a_plan_is_of_the_row_alone)
{
	enum { N = GPU_SPLIT_TOKENS };
	struct gpu_span s[3] = { { .n_tokens = N + 1, .pos = 0 },
				 { .n_tokens = 0, .pos = N + 1 },
				 { .n_tokens = 2 * N, .pos = N + 1 } };
	const struct kern_gpu_list rows[3] = { { 8 * N, 0, 3 },
					       { N - 1, 0, 3 },
					       { 2 * N + 1, 2, 1 } };
	struct gpu_part parts[8];
	struct gpu_row out[3];

	ck_assert_int_eq(kern_gpu_plan(s, rows, 3, parts, 8, out), 7);
	ck_assert_uint_eq(out[0].n_parts, 4);
	ck_assert_uint_eq(parts[1].t0, N);
	ck_assert_uint_eq(parts[2].span, 2);
	ck_assert_uint_eq(parts[2].t0, 0);
	ck_assert_uint_eq(out[1].n_parts, 1);
	ck_assert_uint_eq(out[2].first_part, 5);
	ck_assert_uint_eq(out[2].n_parts, 2);
	ck_assert_int_eq(kern_gpu_plan(s, rows, 3, parts, 6, out), -ENOSPC);
}
END_TEST

START_TEST(plans_are_tiles_where_rows_are_many)
{
	enum { N = GPU_SPLIT_TOKENS };
	struct gpu_span s[2] = { { .n_tokens = N + 1 }, { .n_tokens = 10 } };
	struct kern_gpu_shape sh = { KERN_BF16, 32, 4, 128 };
	struct kern_gpu_list rows[24];
	struct gpu_part parts[48];
	struct gpu_tile tiles[4];
	struct gpu_row out[24];
	struct kern_gpu_plan p = { parts, tiles, out, 48, 4, 0, 0, 0 };

	/* two of one list, 20 of another, two of the first: 8 heads to a kv head */
	for (uint32_t r = 0; r < 24; r++)
		rows[r] = (struct kern_gpu_list){ N, r >= 2 && r < 22, 1 };
	ck_assert_int_eq(kern_gpu_plan_rows(&sh, s, rows, 24, &p), 0);
	ck_assert_uint_eq(p.n_tiles, 2); /* 16 and 4 */
	ck_assert_uint_eq(tiles[0].row, 2);
	ck_assert_uint_eq(tiles[0].n_rows, 16);
	ck_assert_uint_eq(tiles[1].row, 18);
	ck_assert_uint_eq(tiles[1].n_rows, 4);
	ck_assert_uint_eq(tiles[1].first_span, 1);
	ck_assert_uint_eq(p.n_parts, 8);
	ck_assert_uint_eq(out[2].n_parts, GPU_ROW_IN_TILE);
	ck_assert_uint_eq(out[21].n_parts, GPU_ROW_IN_TILE);
	ck_assert_uint_eq(out[22].n_parts, 2);
	ck_assert_uint_eq(out[22].first_part, 4);
	ck_assert_uint_eq(parts[6].row, 23);
	ck_assert_uint_eq(parts[7].t0, N);
	p.tile_rows = GPU_WIDE_ROWS;
	ck_assert_int_eq(kern_gpu_plan_rows(&sh, s, rows, 24, &p), 0);
	ck_assert_uint_eq(p.n_tiles, 3); /* 8, 8 and 4 */
	p.tile_rows = 0;
	p.max_tiles = 1;
	ck_assert_int_eq(kern_gpu_plan_rows(&sh, s, rows, 24, &p), -ENOSPC);
	p.max_tiles = 4;
	p.max_parts = 7;
	ck_assert_int_eq(kern_gpu_plan_rows(&sh, s, rows, 24, &p), -ENOSPC);
	p.max_parts = 48;
	sh.type = KERN_F32;
	ck_assert_int_eq(kern_gpu_plan_rows(&sh, s, rows, 24, &p), 0);
	ck_assert_uint_eq(p.n_tiles, 0);
	ck_assert_uint_eq(p.n_parts, 28);
}
END_TEST

/* What the copy engine cannot read, and devices that have none. */
START_TEST(windows_that_are_refused)
{
	const uint64_t base = 1ull << 40, row = 128, n = 1ull << 30;
	const struct gpu_span ok = { .k = base + row,
				     .v = base + 33 * row,
				     .head_bytes = 64 * row,
				     .page_bytes = 256 * row,
				     .page_tokens = 32,
				     .n_tokens = 100 };
	struct kern_gpu_window w;
	struct gpu_span s;

#define WINDOW(type, dim, base, n) \
	kern_gpu_window(g.kern, 0, type, dim, base, n, &w)
	ck_assert_int_eq(WINDOW(KERN_F32, 64, base, n), -ENOTSUP);
	ck_assert_int_eq(WINDOW(KERN_BF16, 96, base, n), -ENOTSUP);
	ck_assert_int_eq(WINDOW(KERN_BF16, 64, base + 64, n), -EINVAL);
	ck_assert_int_eq(WINDOW(KERN_BF16, 64, base, 0), -EINVAL);
	ck_assert_int_eq(WINDOW(KERN_BF16, 64, base, 1ull << 39), -EINVAL);
	g.ctl.arm(FAKE_ONCE, "cuTensorMapEncodeTiled", 1, CUDA_NOT_SUPPORTED);
	ck_assert_int_eq(WINDOW(KERN_BF16, 64, base, n), -ENOTSUP);
	ck_assert_int_eq(WINDOW(KERN_BF16, 64, base, n), 0);
	ck_assert(kern_gpu_in_window(&w, &ok, 4));
#define OUTSIDE(change) \
	s = ok; \
	change; \
	ck_assert(!kern_gpu_in_window(&w, &s, 4))
	OUTSIDE(s.k = base - row);
	OUTSIDE(s.v = base + n);
	OUTSIDE(s.v = base + n - 3 * 256 * row - 3 * 64 * row - 31 * row);
	OUTSIDE(s.k += 64);
	OUTSIDE(s.row_bytes = 512);
	OUTSIDE(s.page_bytes += 64);
	OUTSIDE(s.head_bytes += 64);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_plan");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int failed;

	/* on the fake only: there, it is a Hopper */
	if (unsetenv("KVD_GPU"))
		return 1;
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_plan_is_of_the_row_alone);
	tcase_add_test(t, plans_are_tiles_where_rows_are_many);
	tcase_add_test(t, windows_that_are_refused);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
