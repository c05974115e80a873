/*
 * rig_gpu.h - kernels on the fake driver, which runs their source as C, or, with
 * KVD_GPU=1, on the first real device
 */
#ifndef RIG_RIG_GPU_H
#define RIG_RIG_GPU_H

#include "kernels/gpu.h"
#include "tests/rig/cuda/fake_cuda.h"

#define RIG_GPU_ALLOCS 256

struct rig_gpu {
	struct cuda_api *api;
	cuda_handle ctx; /* current where it was opened */
	struct kern_gpu *kern;
	cuda_stream stream;
	int is_real;
	struct fake_ctl ctl; /* of the fake */
	void *allocs[RIG_GPU_ALLOCS];
	uint32_t n_allocs;
};
/* Aborts the test if it cannot. */
void rig_gpu_open(struct rig_gpu *g);
/* The same with so much memory of the fake's. */
void rig_gpu_open_with(struct rig_gpu *g, uint64_t total);
void rig_gpu_close(struct rig_gpu *g);
/* Memory that both sides see at the same address; until reset or close. */
void *rig_gpu_alloc(struct rig_gpu *g, size_t n);
/* u32 [n], as gpu_span.at wants them: every nth (of some) is a place further. */
uint64_t rig_gpu_places(struct rig_gpu *g, uint32_t n, uint32_t nth);
void rig_gpu_reset(struct rig_gpu *g);
/* Until the stream is empty; asserts that nothing failed. */
void rig_gpu_wait(struct rig_gpu *g);
/* NULL, or why a real device, if asked for, cannot be had: to be skipped. */
const char *rig_gpu_missing(void);

#endif
