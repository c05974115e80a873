/*
 * test_gpu_gemm.c - products by cuBLASLt: its declarations, which algorithm is taken,
 * results against f64, and every call that fails; and by our own kernels
 *
 * KVD_GPU=1 runs it on the first real device and the real library instead, but for
 * what fails.
 */
#include <assert.h>
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if __has_include(<cublasLt.h>) && __has_include(<cuda.h>)
#include <cublasLt.h>
#endif
#include "kernels/cublas_api.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_gpu.h"

#define WORKSPACE (1u << 20)

/* ---- declarations --------------------------------------------------------- */

static_assert(sizeof(struct cublas_algo) == 64, "ABI of cuBLASLt");
static_assert(sizeof(struct cublas_result) == 96, "ABI of cuBLASLt");
#ifdef CUBLAS_VERSION
static_assert(sizeof(struct cublas_algo) == sizeof(cublasLtMatmulAlgo_t), "");
static_assert(sizeof(struct cublas_result) ==
		      sizeof(cublasLtMatmulHeuristicResult_t),
	      "");
static_assert(offsetof(struct cublas_result, state) ==
		      offsetof(cublasLtMatmulHeuristicResult_t, state),
	      "");
static_assert(offsetof(struct cublas_result, workspace_bytes) ==
		      offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize),
	      "");
#define SAME_NUMBER(ours, theirs) \
	static_assert((int)(ours) == (int)(theirs), #theirs)
SAME_NUMBER(CUBLAS_OK, CUBLAS_STATUS_SUCCESS);
SAME_NUMBER(CUBLAS_NOT_INITIALIZED, CUBLAS_STATUS_NOT_INITIALIZED);
SAME_NUMBER(CUBLAS_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED);
SAME_NUMBER(CUBLAS_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME_NUMBER(CUBLAS_ARCH_MISMATCH, CUBLAS_STATUS_ARCH_MISMATCH);
SAME_NUMBER(CUBLAS_MAPPING_ERROR, CUBLAS_STATUS_MAPPING_ERROR);
SAME_NUMBER(CUBLAS_EXECUTION_FAILED, CUBLAS_STATUS_EXECUTION_FAILED);
SAME_NUMBER(CUBLAS_INTERNAL_ERROR, CUBLAS_STATUS_INTERNAL_ERROR);
SAME_NUMBER(CUBLAS_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME_NUMBER(CUBLAS_LICENSE_ERROR, CUBLAS_STATUS_LICENSE_ERROR);
SAME_NUMBER(CUBLAS_R_32F, CUDA_R_32F);
SAME_NUMBER(CUBLAS_R_16F, CUDA_R_16F);
SAME_NUMBER(CUBLAS_R_16BF, CUDA_R_16BF);
SAME_NUMBER(CUBLAS_COMPUTE_F32, CUBLAS_COMPUTE_32F);
SAME_NUMBER(CUBLAS_TRANSPOSE, CUBLAS_OP_T);
SAME_NUMBER(CUBLAS_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME_NUMBER(CUBLAS_LAYOUT_COLS, CUBLASLT_MATRIX_LAYOUT_COLS);
SAME_NUMBER(CUBLAS_LAYOUT_LD, CUBLASLT_MATRIX_LAYOUT_LD);
SAME_NUMBER(CUBLAS_PREF_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME_NUMBER(CUBLAS_PREF_REDUCTION, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME_NUMBER(CUBLAS_PREF_ALIGN_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME_NUMBER(CUBLAS_PREF_ALIGN_A + 3,
	    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME_NUMBER(CUBLAS_CONFIG_ID, CUBLASLT_ALGO_CONFIG_ID);
SAME_NUMBER(CUBLAS_CONFIG_TILE, CUBLASLT_ALGO_CONFIG_TILE_ID);
SAME_NUMBER(CUBLAS_CONFIG_SPLIT_K, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
SAME_NUMBER(CUBLAS_CONFIG_REDUCTION, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
SAME_NUMBER(0, CUBLASLT_REDUCTION_SCHEME_NONE);
#endif

/* ---- the rig --------------------------------------------------------------------- */

static struct rig_gpu g;
static struct cublas *blas;
static uint32_t seed;
static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };

static uint32_t next_random(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static void setup(void)
{
	const char *env = getenv("KVD_SEED");
	char why[256];
	int ret;

	seed = env ? (uint32_t)strtoul(env, NULL, 10) : (uint32_t)time(NULL);
	printf("KVD_SEED=%u\n", seed);
	rig_gpu_open(&g);
	kern_init(KERN_ISA_AMX);
	ret = cublas_open(&blas, g.is_real ? NULL : rig_cuda_path(), why,
			  sizeof(why));
	ck_assert_msg(!ret, "%s", why);
}

static void teardown(void)
{
	cublas_close(blas);
	if (!g.is_real)
		ck_assert_int_eq(g.ctl.cublas_objects(), 0);
	rig_gpu_close(&g);
}

struct product {
	struct cublas_shape s;
	struct cublas_plan *plan;
	struct gpu_gemm a;
	cuda_ptr workspace;
	void *x, *w;
	float *y, *before;
};

static void *typed(enum kern_type type, size_t n)
{
	float *x = malloc(n * sizeof(*x));
	void *p = rig_gpu_alloc(&g, n * kern_type_bytes(type));

	for (size_t i = 0; i < n; i++)
		x[i] = (float)next_random() / (float)(1 << 23) - 1.0f;
	kern_from_f32(type, x, p, n);
	free(x);
	return p;
}

static void make(struct product *p, struct cublas_shape s, uint32_t n_rows)
{
	const uint64_t x_stride = s.n_in + 8, y_stride = s.n_out + 4;
	const size_t n_y = s.max_rows * y_stride;

	p->s = s;
	p->x = typed(s.type, s.max_rows * x_stride);
	p->w = typed(s.type, (size_t)s.n_out * s.n_in);
	p->y = typed(KERN_F32, n_y);
	p->before = malloc(n_y * sizeof(float));
	memcpy(p->before, p->y, n_y * sizeof(float));
	p->workspace = 0;
	if (s.workspace_bytes)
		p->workspace = (uintptr_t)rig_gpu_alloc(&g, s.workspace_bytes);
	p->a = (struct gpu_gemm){ .x = (uintptr_t)p->x,
				  .w = (uintptr_t)p->w,
				  .y = (uintptr_t)p->y,
				  .x_stride = x_stride,
				  .y_stride = y_stride,
				  .n_rows = n_rows,
				  .n_out = s.n_out,
				  .n_in = s.n_in };
	ck_assert_int_eq(cublas_plan_new(&p->plan, blas, &s), 0);
}

static void drop(struct product *p)
{
	cublas_plan_free(p->plan);
	free(p->before);
	rig_gpu_reset(&g);
}

static float element(enum kern_type type, const void *p, size_t i)
{
	float x;

	kern_to_f32(type, (const char *)p + i * kern_type_bytes(type), &x, 1);
	return x;
}

/* Against f64; what lies between and behind the rows is untouched. */
static void check_product(const struct product *p)
{
	const struct gpu_gemm *a = &p->a;
	const enum kern_type t = p->s.type;

	for (size_t i = 0; i < p->s.max_rows * a->y_stride; i++) {
		const size_t r = i / a->y_stride, o = i % a->y_stride;
		const double old = (double)p->before[i];
		double sum = 0, size = fabs(old);

		if (r >= a->n_rows || o >= a->n_out) {
			ck_assert(p->y[i] == p->before[i]);
			continue;
		}
		for (size_t k = 0; k < a->n_in; k++) {
			const double m =
				(double)element(t, p->x, r * a->x_stride + k) *
				(double)element(t, p->w, o * a->n_in + k);

			sum += m;
			size += fabs(m);
		}
		if (a->flags & GPU_GEMM_ADD)
			sum += old;
		ck_assert_msg(fabs((double)p->y[i] - sum) <=
				      size * a->n_in * 0x1p-22,
			      "row %zu of %u, output %zu: %g, not %g", r,
			      a->n_rows, o, (double)p->y[i], sum);
	}
}

/* ---- tests -------------------------------------------------------------------------- */

/* _i: type. */
START_TEST(equals_exact_sums)
{
	struct product p;

	for (int k = 0; k < 6; k++) {
		const uint32_t max = 1 + next_random() % 40;
		const struct cublas_shape s = {
			.type = types[_i],
			.n_out = 8 * (1 + next_random() % 20),
			.n_in = 8 * (1 + next_random() % 30),
			.n_rows = 1 + next_random() % max,
			.max_rows = max,
			.workspace_bytes = k % 2 ? WORKSPACE : 0,
		};

		make(&p, s, next_random() % (max + 1));
		p.a.flags = k % 3 ? 0 : GPU_GEMM_ADD;
		ck_assert_int_eq(
			cublas_gemm(p.plan, &p.a, p.workspace, g.stream), 0);
		rig_gpu_wait(&g);
		check_product(&p);
		drop(&p);
	}
}
END_TEST

/* Alone, in any batch, at any place of it: the same bits. */
START_TEST(a_row_does_not_know_its_batch)
{
	enum { ROWS = 33, OUT = 64, IN = 256 };
	const struct cublas_shape s = { KERN_BF16, OUT, IN, 8, ROWS, 0 };
	float *all;
	struct product p;

	make(&p, s, ROWS);
	all = malloc(ROWS * p.a.y_stride * 4);
	ck_assert_int_eq(cublas_gemm(p.plan, &p.a, 0, g.stream), 0);
	rig_gpu_wait(&g);
	memcpy(all, p.y, ROWS * p.a.y_stride * 4);
	for (uint32_t r = 0; r < ROWS; r++)
		for (uint32_t n = 1; n <= ROWS - r; n *= 3) {
			struct gpu_gemm a = p.a;

			a.x += r * a.x_stride * 2;
			a.n_rows = n;
			ck_assert_int_eq(cublas_gemm(p.plan, &a, 0, g.stream),
					 0);
			rig_gpu_wait(&g);
			ck_assert(!memcmp(p.y, all + r * a.y_stride, OUT * 4));
		}
	free(all);
	drop(&p);
}
END_TEST

static int multiply(struct product *p, const struct gpu_gemm *a)
{
	return kern_gpu_gemm(g.kern, p->s.type, a, g.stream);
}

/* _i: type. Kernels of our own; few rows and many. */
START_TEST(our_own_equal_exact_sums)
{
	static const uint32_t rows[] = { 1, 5, 16, 17, 64, 70 };
	struct product p;

	for (int k = 0; k < 6; k++) {
		const struct cublas_shape s = {
			.type = types[_i],
			.n_out = 8 * (1 + next_random() % 14),
			.n_in = 8 * (1 + next_random() % 40),
			.n_rows = 1,
			.max_rows = rows[k],
		};

		make(&p, s, rows[k]);
		p.a.flags = k % 2 ? 0 : GPU_GEMM_ADD;
		ck_assert_int_eq(multiply(&p, &p.a), 0);
		rig_gpu_wait(&g);
		check_product(&p);
		p.a.x_stride -= 4;
		ck_assert_int_eq(multiply(&p, &p.a), -EINVAL);
		drop(&p);
	}
}
END_TEST

/* _i: type. Alone or with others, in blocks of either kind. */
START_TEST(our_own_rows_do_not_know_their_batch)
{
	enum { ROWS = 67, OUT = 72, IN = 200 };
	const struct cublas_shape s = { types[_i], OUT, IN, 8, ROWS, 0 };
	const size_t es = kern_type_bytes(types[_i]);
	float *all;
	struct product p;

	make(&p, s, ROWS);
	all = malloc(ROWS * p.a.y_stride * 4);
	ck_assert_int_eq(multiply(&p, &p.a), 0);
	rig_gpu_wait(&g);
	memcpy(all, p.y, ROWS * p.a.y_stride * 4);
	for (uint32_t r = 0; r < ROWS; r += 5)
		for (uint32_t n = 1; n <= ROWS - r; n *= 5) {
			struct gpu_gemm a = p.a;

			a.x += r * a.x_stride * es;
			a.n_rows = n;
			ck_assert_int_eq(multiply(&p, &a), 0);
			rig_gpu_wait(&g);
			ck_assert(!memcmp(p.y, all + r * a.y_stride, OUT * 4));
		}
	free(all);
	drop(&p);
}
END_TEST

/* Its id says which one; it changes with all that can change bits. */
START_TEST(takes_what_splits_nothing)
{
	struct cublas_shape s = { KERN_BF16, 64, 64, 8, 8, 0 };
	struct cublas_plan *small, *again, *plain, *large, *wide;

	ck_assert_int_eq(cublas_plan_new(&small, blas, &s), 0);
	ck_assert_int_eq(cublas_plan_new(&again, blas, &s), 0);
	s.max_rows = 17; /* more than one of them takes */
	ck_assert_int_eq(cublas_plan_new(&plain, blas, &s), 0);
	s.workspace_bytes = WORKSPACE;
	ck_assert_int_eq(cublas_plan_new(&large, blas, &s), 0);
	s.n_out = 72;
	ck_assert_int_eq(cublas_plan_new(&wide, blas, &s), 0);
	ck_assert_uint_ne(cublas_plan_id(small), 0);
	ck_assert_uint_eq(cublas_plan_id(small), cublas_plan_id(again));
	if (!g.is_real) { /* the fake has one of each kind */
		ck_assert_uint_ne(cublas_plan_id(small), cublas_plan_id(plain));
		ck_assert_uint_ne(cublas_plan_id(plain), cublas_plan_id(large));
	}
	ck_assert_uint_ne(cublas_plan_id(large), cublas_plan_id(wide));
	cublas_plan_free(small);
	cublas_plan_free(again);
	cublas_plan_free(plain);
	cublas_plan_free(large);
	cublas_plan_free(wide);
}
END_TEST

START_TEST(shapes_that_are_refused)
{
	const struct cublas_shape ok = { KERN_BF16, 64, 64, 8, 8, 0 };
	struct cublas_shape s = ok;
	struct cublas_plan *plan;
	struct product p;
	struct gpu_gemm a;

#define REFUSED(change) \
	s = ok; \
	change; \
	ck_assert_int_eq(cublas_plan_new(&plan, blas, &s), -EINVAL)
	REFUSED(s.type = KERN_Q8_0);
	REFUSED(s.n_out = 0);
	REFUSED(s.n_in = 0);
	REFUSED(s.n_in = 60);
	REFUSED(s.n_out = 63);
	REFUSED(s.n_rows = 0);
	REFUSED(s.max_rows = 7);
	make(&p, ok, 8);
#define REFUSED_RUN(change) \
	a = p.a; \
	change; \
	ck_assert_int_eq(cublas_gemm(p.plan, &a, 0, g.stream), -EINVAL)
	REFUSED_RUN(a.n_rows = 9);
	REFUSED_RUN(a.n_in = 56);
	REFUSED_RUN(a.n_out = 56);
	REFUSED_RUN(a.x_stride = 56);
	REFUSED_RUN(a.y_stride = 60);
	REFUSED_RUN(a.x_stride = 68);
	REFUSED_RUN(a.x += 8);
	REFUSED_RUN(a.flags = 2);
	a.flags = 0;
	a = p.a;
	a.n_rows = 0;
	ck_assert_int_eq(cublas_gemm(p.plan, &a, 0, g.stream), 0);
	drop(&p);
}
END_TEST

START_TEST(a_library_that_is_not_there)
{
	struct cublas *c;
	char why[256];

	ck_assert_int_eq(cublas_open(&c, "/nonexistent", why, sizeof(why)),
			 -ENOENT);
	ck_assert_ptr_nonnull(strstr(why, "/nonexistent"));
	ck_assert_int_eq(cublas_open(&c, "libm.so.6", why, sizeof(why)),
			 -ENOSYS);
	ck_assert_ptr_nonnull(strstr(why, "cublasLtCreate"));
}
END_TEST

START_TEST(statuses_become_errno)
{
	static const int map[][2] = {
		{ CUBLAS_OK, 0 },
		{ CUBLAS_NOT_INITIALIZED, -ENODEV },
		{ CUBLAS_ALLOC_FAILED, -ENOMEM },
		{ CUBLAS_INVALID_VALUE, -EINVAL },
		{ CUBLAS_ARCH_MISMATCH, -ENOTSUP },
		{ CUBLAS_NOT_SUPPORTED, -ENOTSUP },
		{ CUBLAS_LICENSE_ERROR, -EPERM },
		{ CUBLAS_EXECUTION_FAILED, -EIO },
		{ CUBLAS_MAPPING_ERROR, -EIO },
		{ CUBLAS_INTERNAL_ERROR, -EIO },
		{ 4711, -EIO },
	};

	for (size_t i = 0; i < sizeof(map) / sizeof(*map); i++)
		ck_assert_int_eq(cublas_errno(map[i][0]), map[i][1]);
}
END_TEST

/* Open, plan and product, with the nth call failing: nothing is lost, and all is
 * well afterwards. */
START_TEST(every_call_may_fail)
{
	const struct cublas_shape s = { KERN_BF16, 16, 16, 2, 20, 0 };
	struct product p;
	int n_failed = 0, ret;

	if (g.is_real)
		return;
	make(&p, s, 2);
	for (uint64_t nth = 1;; nth++) {
		struct cublas *c = NULL;
		struct cublas_plan *plan = NULL;
		char why[256];
		const int objects = g.ctl.cublas_objects();

		g.ctl.arm(FAKE_ONCE, "cublasLt", nth, CUBLAS_ALLOC_FAILED);
		ret = cublas_open(&c, rig_cuda_path(), why, sizeof(why));
		if (!ret)
			ret = cublas_plan_new(&plan, c, &s);
		if (!ret)
			ret = cublas_gemm(plan, &p.a, 0, g.stream);
		cublas_plan_free(plan);
		cublas_close(c);
		ck_assert_int_eq(g.ctl.cublas_objects(), objects);
		if (g.ctl.count() < nth)
			break;
		/* a check that fails only passes an algorithm over */
		ck_assert(ret == -ENOMEM || ret == -ENOTSUP || !ret);
		n_failed += ret != 0;
	}
	ck_assert_int_eq(ret, 0);
	ck_assert_int_gt(n_failed, 12);
	rig_gpu_wait(&g);
	check_product(&p);
	drop(&p);
}
END_TEST

START_TEST(a_lost_device)
{
	const struct cublas_shape s = { KERN_BF16, 16, 16, 2, 2, 0 };
	struct cublas_plan *plan;
	struct product p;

	if (g.is_real)
		return;
	make(&p, s, 2);
	g.ctl.lose(CUDA_ILLEGAL_ADDRESS);
	ck_assert_int_eq(cublas_gemm(p.plan, &p.a, 0, g.stream), -EIO);
	ck_assert_int_eq(cublas_plan_new(&plan, blas, &s), -EIO);
	cublas_plan_free(p.plan);
	free(p.before);
	g.ctl.lose(0);
	rig_gpu_reset(&g);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_gemm");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, equals_exact_sums, 0, 3);
	tcase_add_test(t, a_row_does_not_know_its_batch);
	tcase_set_timeout(t, 60); /* threads are emulated */
	tcase_add_loop_test(t, our_own_equal_exact_sums, 0, 3);
	tcase_add_loop_test(t, our_own_rows_do_not_know_their_batch, 0, 3);
	tcase_add_test(t, takes_what_splits_nothing);
	tcase_add_test(t, shapes_that_are_refused);
	tcase_add_test(t, a_library_that_is_not_there);
	tcase_add_test(t, statuses_become_errno);
	tcase_add_test(t, every_call_may_fail);
	tcase_add_test(t, a_lost_device);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
