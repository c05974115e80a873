/*
 * gpu.cu - the CUDA kernels; see gpu.h
 *
 * Written in what C and CUDA have in common (gpu_emu.h of the tests compiles it as C,
 * one thread after the other), loaded by the driver as an image: nothing of the
 * CUDA runtime is linked.
 *
 * NEVER RUN ON HARDWARE. See docs/gpu.md.
 */
#ifdef __CUDACC__
#include <math.h>
#include <stdint.h>
#define KERNEL(name, args) \
	extern "C" __global__ void __launch_bounds__(GPU_THREADS) \
		name(const args a)
#define ALL_LANES    0xffffffffu
#define FROM_BITS(u) __uint_as_float(u)
#define TO_BITS(f)   __float_as_uint(f)
static __device__ float from_f16(uint32_t h)
{
	float f;

	asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((unsigned short)h));
	return f;
}
static __device__ uint16_t to_f16(float f)
{
	unsigned short h;

	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
	return h;
}
#endif
#include "kernels/gpu_args.h"

/* ---- 8 elements of a lane, 16-byte aligned -------------------------------- */

static __device__ void load8_f32(const void *p, float *x)
{
	const uint4 w = ((const uint4 *)p)[0], v = ((const uint4 *)p)[1];

	x[0] = FROM_BITS(w.x);
	x[1] = FROM_BITS(w.y);
	x[2] = FROM_BITS(w.z);
	x[3] = FROM_BITS(w.w);
	x[4] = FROM_BITS(v.x);
	x[5] = FROM_BITS(v.y);
	x[6] = FROM_BITS(v.z);
	x[7] = FROM_BITS(v.w);
}

/* Nearest even; NaN stays NaN. */
static __device__ uint16_t to_bf16(float f)
{
	const uint32_t u = TO_BITS(f);

	if ((u & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(u >> 16 | 0x40u);
	return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

/* ---- attention --------------------------------------------------------------- */

/* Tokens from t0 on that a row at pos sees, at most n: those of a span are ascending. */
static __device__ int64_t span_seen(const struct gpu_span *s, uint32_t t0,
				    int64_t n, int64_t pos)
{
	const uint32_t *at = (const uint32_t *)s->at;
	int64_t i = 0;

	if (!at)
		return pos - (s->pos + t0) + 1;
	while (i < n && s->pos + at[t0 + i] <= pos)
		i++;
	return i;
}

/* Bit t: token t0 + t is seen; as kern_tile_mask(). */
static __device__ uint32_t tile_mask(const struct gpu_span *s, uint32_t t0,
				     int64_t pos)
{
	int64_t n = (int64_t)s->n_tokens - t0, seen;
	uint32_t mask;

	n = n > 32 ? 32 : n;
	seen = span_seen(s, t0, n, pos);
	if (seen < n)
		n = seen;
	if (n <= 0)
		return 0;
	mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
	if (s->skip)
		mask &= ~(uint32_t)(((const uint64_t *)s->skip)[t0 / 64] >>
				    (t0 % 64));
	return mask;
}

/* GPU_TILE tokens from token t of a span on. */
struct gpu_half {
	const struct gpu_span *s;
	uint32_t t;
};

/* Token t of a span and those it goes on in: t is below n_tokens, or there is none. */
static __device__ struct gpu_half half_at(const struct gpu_span *s, uint32_t t)
{
	struct gpu_half h = { s, t };

	while (h.t >= h.s->n_tokens && h.s->goes_on) {
		h.t -= h.s->n_tokens;
		h.s++;
	}
	return h;
}

/* From token to token of a page. */
static __device__ uint32_t span_row_bytes(const struct gpu_span *s,
					  uint32_t head)
{
	return s->row_bytes ? s->row_bytes : head;
}

/* Of token 0 of t0's page, kv head h. */
static __device__ size_t tile_offset(const struct gpu_span *s, uint32_t t0,
				     uint32_t h)
{
	return (size_t)(t0 / s->page_tokens) * s->page_bytes +
	       (size_t)h * s->head_bytes;
}

/* Which head a lane has after halve(). */
static __device__ uint32_t head_of(uint32_t at)
{
	return (at & 1) * 4 + (at & 2) + (at >> 2 & 1);
}

/* Sums of x[8] over n_lanes (8, 16, 32) lanes: x[0] is that of head_of(at). */
static __device__ void halve(float *x, uint32_t at, uint32_t n_lanes)
{
#pragma unroll
	for (uint32_t n = 4, bit = 1; n; n /= 2, bit *= 2) {
#pragma unroll
		for (uint32_t i = 0; i < n; i++) {
			const float keep = at & bit ? x[i + n] : x[i];
			const float send = at & bit ? x[i] : x[i + n];

			x[i] = keep + __shfl_xor_sync(ALL_LANES, send, bit);
		}
	}
#pragma unroll
	for (uint32_t bit = 8; bit < n_lanes; bit *= 2)
		x[0] += __shfl_xor_sync(ALL_LANES, x[0], bit);
}

/* exp(m - top), 0 for an empty state. */
static __device__ float weight_of(float m, float top)
{
	return m == -INFINITY ? 0.0f : expf(m - top);
}

/*
 * Scores of a tile into probabilities, and the warp's state to the new maximum.
 * p is [token][head]; a lane has a token here.
 */
static __device__ void tile_softmax(float (*p)[GPU_HEADS], int seen,
				    uint32_t lane, float scale, float *m,
				    float *l, float (*o)[8])
{
#pragma unroll
	for (uint32_t h = 0; h < GPU_HEADS; h++) {
		const float s = seen ? p[lane][h] * scale : -INFINITY;
		float top = s, sum, f;

#pragma unroll
		for (uint32_t x = 16; x; x /= 2)
			top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, x));
		top = fmaxf(top, m[h]);
		sum = seen ? weight_of(s, top) : 0.0f;
		p[lane][h] = sum;
#pragma unroll
		for (uint32_t x = 16; x; x /= 2)
			sum += __shfl_xor_sync(ALL_LANES, sum, x);
		f = weight_of(m[h], top);
		l[h] = fmaf(l[h], f, sum);
		m[h] = top;
#pragma unroll
		for (uint32_t d = 0; d < 8; d++)
			o[h][d] *= f;
	}
}

/* Dimension d of the states of a block's warps, 0 to 3, into its part's: o is
 * [warp] with a stride, m and l are [warp][GPU_HEADS]. */
static __device__ void merge_warps(const struct gpu_attn *a, size_t to,
				   uint32_t d, const float *o, uint32_t stride,
				   const float *m, const float *l)
{
	float top = m[0], acc = 0, sum = 0;

	for (uint32_t w = 1; w < GPU_WARPS; w++)
		top = fmaxf(top, m[w * GPU_HEADS]);
	for (uint32_t w = 0; w < GPU_WARPS; w++) {
		const float f = weight_of(m[w * GPU_HEADS], top);

		acc = fmaf(o[w * stride], f, acc);
		sum = fmaf(l[w * GPU_HEADS], f, sum);
	}
	((float *)a->part_o)[to * a->head_dim + d] = acc;
	if (!d) {
		((float *)a->part_ml)[2 * to] = top;
		((float *)a->part_ml)[2 * to + 1] = sum;
	}
}

#include "kernels/gpu_mma.cuh"
#include "kernels/gpu_cursor.cuh"
#include "kernels/gpu_hopper.cuh"
#define GEMM_PITCH     (64 * 2 + 16) /* bytes of a row in shared memory */
#define GEMM_STAGES    4
#define CAT3_(a, b, c) a##b##c
#define CAT3(a, b, c)  CAT3_(a, b, c)
#define ELEM	       bf16
#include "kernels/gpu_gemm.cuh"
#define TILES_NAME tiles_bf16_64
#define PARTS_NAME attn_bf16_64
#define HEAD_DIM   64
#define M_TILES	   2
#include "kernels/gpu_flash.cuh"
#define TILES_NAME tiles_bf16_96
#define PARTS_NAME attn_bf16_96
#define HEAD_DIM   96
#define M_TILES	   2
#include "kernels/gpu_flash.cuh"
#define TILES_NAME tiles_bf16_128
#define PARTS_NAME attn_bf16_128
#define HEAD_DIM   128
#define M_TILES	   2
#include "kernels/gpu_flash.cuh"
#define TILES_NAME tiles_bf16_256
#define PARTS_NAME attn_bf16_256
#define HEAD_DIM   256
#define M_TILES	   1
#include "kernels/gpu_flash.cuh"
#define WIDE_NAME wide_bf16_64
#define HEAD_DIM  64
#define M_TILES	  1
#include "kernels/gpu_flash.cuh"
#define WIDE_NAME wide_bf16_128
#define HEAD_DIM  128
#define M_TILES	  1
#include "kernels/gpu_flash.cuh"
#undef ELEM
#define ELEM f16
#include "kernels/gpu_gemm.cuh"
#define TILES_NAME tiles_f16_64
#define PARTS_NAME attn_f16_64
#define HEAD_DIM   64
#define M_TILES	   2
#include "kernels/gpu_flash.cuh"
#define TILES_NAME tiles_f16_96
#define PARTS_NAME attn_f16_96
#define HEAD_DIM   96
#define M_TILES	   2
#include "kernels/gpu_flash.cuh"
#define TILES_NAME tiles_f16_128
#define PARTS_NAME attn_f16_128
#define HEAD_DIM   128
#define M_TILES	   2
#include "kernels/gpu_flash.cuh"
#define TILES_NAME tiles_f16_256
#define PARTS_NAME attn_f16_256
#define HEAD_DIM   256
#define M_TILES	   1
#include "kernels/gpu_flash.cuh"
#define WIDE_NAME wide_f16_64
#define HEAD_DIM  64
#define M_TILES	  1
#include "kernels/gpu_flash.cuh"
#define WIDE_NAME wide_f16_128
#define HEAD_DIM  128
#define M_TILES	  1
#include "kernels/gpu_flash.cuh"
#undef ELEM
#define LOAD8	   load8_f32
#define ELEM_BYTES 4
#define ATTN_NAME  attn_f32_64
#define HEAD_DIM   64
#include "kernels/gpu_attn.cuh"
#define ATTN_NAME attn_f32_96
#define HEAD_DIM  96
#include "kernels/gpu_attn.cuh"
#define ATTN_NAME attn_f32_128
#define HEAD_DIM  128
#include "kernels/gpu_attn.cuh"
#define ATTN_NAME attn_f32_256
#define HEAD_DIM  256
#include "kernels/gpu_attn.cuh"

/* A block has a head of a row: its parts are added one by one. */
KERNEL(attn_merge_v4, struct gpu_attn)
{
	const size_t at = (size_t)blockIdx.x * a.n_heads + blockIdx.y;
	const struct gpu_row row = ((const struct gpu_row *)a.rows)[blockIdx.x];
	const float *ml = (const float *)a.part_ml;
	const int old = a.flags & GPU_ATTN_ADD;
	const float m0 = old ? ((const float *)a.m)[at] : -INFINITY;
	const float l0 = old ? ((const float *)a.l)[at] : 0.0f;
	float top = m0, sum = l0;

	if (row.n_parts == GPU_ROW_IN_TILE)
		return;
	for (uint32_t d = threadIdx.x; d < a.head_dim; d += GPU_THREADS) {
		float *o = (float *)a.o + at * a.head_dim + d;
		float acc = m0 == -INFINITY ? 0.0f : *o;

		top = m0;
		sum = l0;
		for (uint32_t i = 0; i < row.n_parts; i++) {
			const size_t p =
				(size_t)(row.first_part + i) * a.n_heads +
				blockIdx.y;
			const float m = ml[2 * p], next = fmaxf(top, m);
			const float x = weight_of(top, next);
			const float y = weight_of(m, next);

			acc = fmaf(
				((const float *)a.part_o)[p * a.head_dim + d],
				y, acc * x);
			sum = fmaf(ml[2 * p + 1], y, sum * x);
			top = next;
		}
		if (a.flags & GPU_ATTN_FINISH)
			acc = sum > 0 ? acc / sum : 0.0f;
		*o = acc;
	}
	__syncthreads(); /* everybody has read the old m and l */
	if (!threadIdx.x) {
		((float *)a.m)[at] = top;
		((float *)a.l)[at] = sum;
	}
}

#include "kernels/gpu_join.cuh"
#include "kernels/gpu_elem.cuh"
#include "kernels/gpu_crc.cuh"
#include "kernels/gpu_sample.cuh"
