/*
 * rig_cuda.h - the fake CUDA driver, loaded the way a real one is
 */
#ifndef RIG_RIG_CUDA_H
#define RIG_RIG_CUDA_H

#include "kernels/cuda_api.h"
#include "tests/rig/cuda/fake_cuda.h"

/* Beside the test's own binary; static. */
const char *rig_cuda_path(void);
/* The fake as new, with total bytes, and its api; aborts the test if not. */
struct cuda_api *rig_cuda_open(struct fake_ctl *ctl, uint64_t total,
			       size_t granularity);
/* Fails the test if the fake saw what a device would punish, or anything
 * leaked and the device was not lost. */
void rig_cuda_close(struct cuda_api *api, const struct fake_ctl *ctl);
/* The same without the look for leaks: who failed on purpose may leave things. */
void rig_cuda_drop(struct cuda_api *api, const struct fake_ctl *ctl);

#endif
