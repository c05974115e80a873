/*
 * cublas_api.h - matrix products on the device: cuBLASLt, found at run time
 *
 * libcublasLt is loaded with dlopen(), as cuda_api.h loads the driver. For each (n_in,
 * n_out, type) one algorithm is chosen when it is first met, without a split over n_in, and
 * kept: a row's bits do not depend on the other rows nor on how many they are.
 *
 * Thread: the one with the context; an open handle is of one stream at a time, as its
 * workspace is.
 */
#ifndef KERNELS_CUBLAS_API_H
#define KERNELS_CUBLAS_API_H

#include "kernels/cuda_api.h"
#include "kernels/kern.h"

struct kern_blas;

/* y = x W^T, or y += x W^T with KERN_LINEAR_ADD. All in device memory, 16-byte aligned. */
struct gpu_linear {
	uint64_t x; /* [n_rows][n_in] of the type */
	uint64_t w; /* [n_out][n_in] of the type */
	uint64_t y; /* f32 [n_rows][n_out] */
	uint32_t n_rows, n_in, n_out;
	uint32_t flags; /* KERN_LINEAR_* */
};

/*
 * Load the library and open a handle in the current context.
 * library  path or soname; NULL: the first of libcublasLt.so.13, .12, .11
 * why      [why_len] what was found, or why not, one line
 * -ENOENT no such library; -ENOSYS it lacks a call; -ENOMEM; -ENODEV.
 */
int kern_blas_open(struct kern_blas **out, const struct cuda_api *cu,
		   const char *library, char *why, size_t why_len);
void kern_blas_close(struct kern_blas *b); /* NULL is fine */
/*
 * Queue it. Type BF16, or F32 (never rounded to TF32); sums in f32. 0; -EINVAL, -ENOTSUP no
 * algorithm without a split; those of the driver.
 */
int kern_blas_linear(struct kern_blas *b, enum kern_type type,
		     const struct gpu_linear *a, cuda_stream st);

#endif
