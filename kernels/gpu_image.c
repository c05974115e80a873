/*
 * gpu_image.c - the kernels that nvcc compiled, as bytes; see gpu.h
 *
 * KV_FATBIN names the file (kernels/cuda.mk); without it there are none.
 */
#include "kernels/gpu_image.h"

#ifdef KV_FATBIN
__asm__(".section .rodata\n"
	".balign 64\n"
	"kern_gpu_fatbin:\n"
	".incbin \"" KV_FATBIN "\"\n"
	"kern_gpu_fatbin_end:\n"
	".previous\n");
extern const char kern_gpu_fatbin[], kern_gpu_fatbin_end[];

const void *kern_gpu_image(size_t *n_bytes)
{
	*n_bytes = (size_t)(kern_gpu_fatbin_end - kern_gpu_fatbin);
	return kern_gpu_fatbin;
}
#else
const void *kern_gpu_image(size_t *n_bytes)
{
	*n_bytes = 0;
	return NULL;
}
#endif
