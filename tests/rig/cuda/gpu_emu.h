/*
 * gpu_emu.h - what C lacks to compile kernels/gpu.cu: a block's threads, one at a time
 *
 * Each thread is a context of its own, which runs until it meets a barrier of its
 * warp or its block. So shuffles, shared memory and masks are those of the source. A
 * warp runs until it meets a barrier of the block before another does, in every other
 * block in the opposite order: a barrier of the block that is missing makes others
 * read junk. Races between threads of a warp are not seen. A barrier that not all
 * threads of a warp, or of a block, come to ends the process, as does memory that is not
 * there.
 */
#ifndef RIG_CUDA_GPU_EMU_H
#define RIG_CUDA_GPU_EMU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct emu_dim {
	uint32_t x, y, z;
};
extern struct emu_dim threadIdx, blockIdx, gridDim;

typedef struct {
	uint32_t x, y, z, w;
} uint4;

#define KERNEL(name, args) static void name(const args a)
#define __device__
#define __shared__ static
#define INLINE	   static inline
#define ALL_LANES  0xffffffffu

float emu_shuffle_xor(uint32_t mask, float value, uint32_t x);
void emu_sync_warp(void);
void emu_sync_block(void);
#define __shfl_xor_sync(mask, v, x) emu_shuffle_xor(mask, v, x)
#define __syncwarp()		    emu_sync_warp()
#define __syncthreads()		    emu_sync_block()

/* Dynamic shared memory: junk when a block begins. */
#define EMU_SHARED (227u << 10)
extern unsigned char emu_shared[EMU_SHARED];
#define DYN_SHARED(name) unsigned char *const name = emu_shared

/* As in gpu_mma.cuh. */
void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1);
void mma_f16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1);
void ldmatrix(uint32_t *r, const void *p);
void ldmatrix_trans(uint32_t *r, const void *p);
void cp_async(void *to, const void *from, uint32_t n);
void cp_commit(void);
void cp_wait(uint32_t n);
void emu_block_begins(uint32_t n_shared);

/* As in gpu_hopper.cuh. */
uint32_t shared_addr(const void *p);
void mbar_init(uint64_t *at);
void mbar_expect(uint64_t *at, uint32_t n);
void mbar_wait(uint64_t *at, uint32_t parity);
void tma_load(void *to, const void *map, int32_t x, int32_t y, uint64_t *bar);
void wgmma_bf16(float (*d)[4], const uint32_t *a, uint64_t desc, int add,
		int across);
void wgmma_f16(float (*d)[4], const uint32_t *a, uint64_t desc, int add,
	       int across);
#define proxy_fence() ((void)0)
#define wgmma_fence() emu_sync_warp()
#define wgmma_wait()  emu_sync_warp()
void emu_hopper_begins(void);

/* Run fn(args) for every thread of the grid, with so many bytes of dynamic shared
 * memory. */
void emu_run(void (*fn)(const void *args), const void *args,
	     struct emu_dim grid, uint32_t shared);

static inline float FROM_BITS(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}
static inline uint32_t TO_BITS(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}
static inline float from_f16(uint32_t h)
{
	const uint16_t u = (uint16_t)h;
	_Float16 f;

	memcpy(&f, &u, sizeof(f));
	return (float)f;
}
static inline uint16_t to_f16(float x)
{
	const _Float16 f = (_Float16)x;
	uint16_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}

#endif
