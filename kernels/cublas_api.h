/*
 * cublas_api.h - matrix products by cuBLASLt, found at run time
 *
 * As cuda_api.h: dlopen(), declarations of our own, compared with <cublasLt.h> by
 * tests/unit/test_gpu_gemm.c where there is one.
 *
 * A plan is the one algorithm by which a matrix is multiplied, whatever the number of
 * rows: the same tile and instruction, so the same order over k, and never a split of
 * k among blocks. So a row's bits depend on the row, the matrix, the plan and the
 * device. Which algorithm it is, is cuBLASLt's choice for the number of rows that the
 * plan was made for: part of the numeric path (cublas_plan_id()).
 *
 * Accumulation is f32; error at most n_in * 2^-22 * sum |x w|, which allows for
 * tensor cores that truncate.
 *
 * Thread: any that has the context, one at a time for a plan.
 */
#ifndef KERNELS_CUBLAS_API_H
#define KERNELS_CUBLAS_API_H

#include "kernels/cuda_api.h"
#include "kernels/gpu_args.h"
#include "kernels/kern.h"

/* cublasStatus_t */
enum cublas_status {
	CUBLAS_OK = 0,
	CUBLAS_NOT_INITIALIZED = 1,
	CUBLAS_ALLOC_FAILED = 3,
	CUBLAS_INVALID_VALUE = 7,
	CUBLAS_ARCH_MISMATCH = 8,
	CUBLAS_MAPPING_ERROR = 11,
	CUBLAS_EXECUTION_FAILED = 13,
	CUBLAS_INTERNAL_ERROR = 14,
	CUBLAS_NOT_SUPPORTED = 15,
	CUBLAS_LICENSE_ERROR = 16,
};

enum {
	CUBLAS_R_32F = 0, /* cudaDataType */
	CUBLAS_R_16F = 2,
	CUBLAS_R_16BF = 14,
	CUBLAS_COMPUTE_F32 = 68, /* cublasComputeType_t */
	CUBLAS_TRANSPOSE = 1, /* cublasOperation_t */
	CUBLAS_DESC_TRANSA = 3, /* cublasLtMatmulDescAttributes_t */
	CUBLAS_LAYOUT_COLS = 3, /* cublasLtMatrixLayoutAttribute_t */
	CUBLAS_LAYOUT_LD = 4,
	CUBLAS_PREF_WORKSPACE = 1, /* cublasLtMatmulPreferenceAttributes_t */
	CUBLAS_PREF_REDUCTION = 3, /* 0: no scheme is allowed */
	CUBLAS_PREF_ALIGN_A = 5, /* B, C, D follow */
	CUBLAS_CONFIG_ID = 0, /* cublasLtMatmulAlgoConfigAttributes_t */
	CUBLAS_CONFIG_TILE = 1,
	CUBLAS_CONFIG_SPLIT_K = 2,
	CUBLAS_CONFIG_REDUCTION = 3,
};

/* cublasLtMatmulAlgo_t */
struct cublas_algo {
	uint64_t data[8];
};

/* cublasLtMatmulHeuristicResult_t */
struct cublas_result {
	struct cublas_algo algo;
	size_t workspace_bytes;
	int state; /* enum cublas_status */
	float waves;
	int reserved[4];
};

/* X(field, symbol, arguments) */
#define CUBLAS_CALLS(X) \
	X(create, "cublasLtCreate", (void **out)) \
	X(destroy, "cublasLtDestroy", (void *handle)) \
	X(desc_new, "cublasLtMatmulDescCreate", \
	  (void **out, int compute, int scale)) \
	X(desc_free, "cublasLtMatmulDescDestroy", (void *desc)) \
	X(desc_set, "cublasLtMatmulDescSetAttribute", \
	  (void *desc, int attr, const void *v, size_t n)) \
	X(layout_new, "cublasLtMatrixLayoutCreate", \
	  (void **out, int type, uint64_t rows, uint64_t cols, int64_t ld)) \
	X(layout_free, "cublasLtMatrixLayoutDestroy", (void *layout)) \
	X(layout_set, "cublasLtMatrixLayoutSetAttribute", \
	  (void *layout, int attr, const void *v, size_t n)) \
	X(pref_new, "cublasLtMatmulPreferenceCreate", (void **out)) \
	X(pref_free, "cublasLtMatmulPreferenceDestroy", (void *pref)) \
	X(pref_set, "cublasLtMatmulPreferenceSetAttribute", \
	  (void *pref, int attr, const void *v, size_t n)) \
	X(heuristic, "cublasLtMatmulAlgoGetHeuristic", \
	  (void *handle, void *desc, void *a, void *b, void *c, void *d, \
	   void *pref, int n, struct cublas_result *out, int *n_out)) \
	X(check, "cublasLtMatmulAlgoCheck", \
	  (void *handle, void *desc, void *a, void *b, void *c, void *d, \
	   const struct cublas_algo *algo, struct cublas_result *out)) \
	X(config, "cublasLtMatmulAlgoConfigGetAttribute", \
	  (const struct cublas_algo *algo, int attr, void *v, size_t n, \
	   size_t *n_out)) \
	X(matmul, "cublasLtMatmul", \
	  (void *handle, void *desc, const void *alpha, const void *a, \
	   void *la, const void *b, void *lb, const void *beta, const void *c, \
	   void *lc, void *d, void *ld, const struct cublas_algo *algo, \
	   void *workspace, size_t n_workspace, cuda_stream st))

#define CUBLAS_FIELD(field, symbol, args) int(*field) args;
struct cublas {
	void *lib;
	void *handle;
	size_t version; /* 130000 is 13.0.0 */
	size_t (*get_version)(void);
	CUBLAS_CALLS(CUBLAS_FIELD)
};
#undef CUBLAS_FIELD

/*
 * Load the library and make a handle for the current context.
 *
 * library  path or soname; NULL: libcublasLt.so.13, .12, .11
 * why      [why_len] what was found, or why not, one line
 *
 * Returns 0; -ENOENT no such library; -ENOSYS it lacks a call; what cublas_errno()
 * says. Takes a second or two with the real one (it is large).
 */
int cublas_open(struct cublas **out, const char *library, char *why,
		size_t why_len);
/* After its plans. The library stays loaded. */
void cublas_close(struct cublas *c);

/* A cublasStatus_t as -errno. */
int cublas_errno(int status);

/* What a plan is made for. */
struct cublas_shape {
	enum kern_type type; /* of x and w: F32, F16, BF16 */
	uint32_t n_out, n_in; /* multiples of 8 */
	uint32_t n_rows; /* > 0: what it is to be fast for */
	uint32_t max_rows; /* >= n_rows: the most that come */
	size_t workspace_bytes; /* the caller's; may be 0 */
};
struct cublas_plan;

/*
 * Choose the algorithm. -EINVAL shape; -ENOTSUP: none of those offered splits nothing,
 * fits the workspace and takes 1, n_rows and max_rows alike; -ENOMEM; other errors.
 */
int cublas_plan_new(struct cublas_plan **out, struct cublas *c,
		    const struct cublas_shape *s);
void cublas_plan_free(struct cublas_plan *p);
/* Shape, algorithm and version of the library as one number: 0 is never it. */
uint64_t cublas_plan_id(const struct cublas_plan *p);

/*
 * Queue y = x W^T, or y += x W^T (GPU_GEMM_ADD). The shape is the plan's, n_rows <=
 * max_rows; strides in elements, multiples of 8 for x and 4 for y; x, w, y 16-byte
 * aligned. workspace: 256-byte aligned, workspace_bytes, of no other work on another
 * stream; 0 if that is 0. n_rows = 0 does nothing. May be captured in a graph.
 * -EINVAL; errors of cublas_errno().
 */
int cublas_gemm(struct cublas_plan *p, const struct gpu_gemm *a,
		cuda_ptr workspace, cuda_stream st);

#endif
