/*
 * gpu_priv.h - what the files of launches share: the kernels by number
 */
#ifndef KERNELS_GPU_PRIV_H
#define KERNELS_GPU_PRIV_H

#include "kernels/gpu.h"

/* Of one kernel for each type that KV may have: in this order. */
#define GPU_TYPES(name) GK_##name##_F32, GK_##name##_F16, GK_##name##_BF16
#define GPU_DIMS(name) \
	GK_##name##_64, GK_##name##_96, GK_##name##_128, GK_##name##_256

/* The order is that of gpu_names[]. */
enum gpu_kernel {
	GPU_DIMS(ATTN_F32),
	GPU_DIMS(ATTN_F16),
	GPU_DIMS(ATTN_BF16),
	GPU_DIMS(TILES_F16),
	GPU_DIMS(TILES_BF16),
	GK_WIDE_F16_64,
	GK_WIDE_F16_128,
	GK_WIDE_BF16_64,
	GK_WIDE_BF16_128,
	GK_GEMM_FEW_F16,
	GK_GEMM_FEW_BF16,
	GK_GEMM_MANY_F16,
	GK_GEMM_MANY_BF16,
	GPU_TYPES(APPEND),
	GPU_TYPES(GATHER),
	GPU_TYPES(FROM_F32),
	GPU_TYPES(TO_F32),
	GPU_TYPES(DEVIATION),
	GPU_TYPES(ROPE),
	GK_GEMM_F32,
	GK_MERGE,
	GK_JOIN,
	GK_PICK,
	GK_RMSNORM,
	GK_SWIGLU,
	GK_ADD,
	GK_MOVE,
	GK_SAMPLE,
	GK_CRC,
	GK_READ,
	GPU_N_KERNELS
};

struct kern_gpu {
	const struct cuda_api *cu;
	cuda_handle module;
	cuda_handle f[GPU_N_KERNELS];
	uint32_t shared[GPU_N_KERNELS]; /* bytes of a block, dynamic */
	int ret[GPU_N_KERNELS]; /* 0, or why it cannot be launched here */
};

struct gpu_grid {
	uint32_t x, y, z;
};
/* GPU_THREADS threads a block. */
int gpu_launch(struct kern_gpu *g, enum gpu_kernel k, struct gpu_grid n,
	       const void *args, cuda_stream st);
/* base + 0 F32, 1 F16, 2 BF16; -EINVAL for others. */
int gpu_of_type(enum gpu_kernel base, enum kern_type type);
/* Are a's shapes those that there are kernels for? */
int gpu_attn_is_valid(enum kern_type type, const struct gpu_attn *a);
/* What kern_gpu_attn() does before and after its tiles. */
int gpu_attn_parts(struct kern_gpu *g, enum kern_type type,
		   const struct gpu_attn *a, cuda_stream st);
int gpu_attn_merge(struct kern_gpu *g, const struct gpu_attn *a,
		   cuda_stream st);
/* How many times n makes m. */
uint32_t gpu_times(uint32_t m, uint32_t n);
/* Blocks for n things, one a thread; some do several. */
struct gpu_grid gpu_grid_of(uint64_t n);

/* 1: the device has sm_90a, and the image too. */
int gpu_is_hopper(struct kern_gpu *g, int dev);
/* Dynamic shared memory of a block of GK_WIDE_*. */
uint32_t gpu_wide_shared(int kernel);

#endif
