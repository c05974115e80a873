/*
 * gpu_image.h - the kernels that nvcc compiled, as bytes; for gpu.c
 */
#ifndef KERNELS_GPU_IMAGE_H
#define KERNELS_GPU_IMAGE_H

#include <stddef.h>

/* A fat binary for cuModuleLoadData(), or NULL and 0. */
const void *kern_gpu_image(size_t *n_bytes);

#endif
