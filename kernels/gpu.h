/*
 * gpu.h - launches of the CUDA kernels of gpu.cu, and the plan of an attention
 *
 * The kernels are compiled by nvcc, if it is found, and lie in the binary as an image
 * (sm_80, sm_90a, PTX); the driver loads it. Nothing here waits, allocates on the
 * device or copies: what args point to is in device memory, the caller's.
 *
 * The sums have an order of their own (gpu_flash.cuh, gpu_attn.cuh), fixed by the list: a
 * row's bits depend on it and on the device, not on the batch, nor on whether it
 * was computed in a tile. They are not those of kern.h: what one computed must not be
 * mixed with the other's as if it were the same. Against exact arithmetic on the
 * stored values the error of attention is at most 2e-5 of the largest |v| in f32, 1e-3 in
 * f16 and 1e-2 in bf16, whose probabilities are rounded to the type. K and V that a
 * row does not see do not reach it as long as they are finite; those behind a
 * span's end or skipped are never read.
 *
 * Errors: -EINVAL for shapes outside these, then nothing is queued; those of the driver.
 * Thread: any that has the context, one at a time for a stream.
 */
#ifndef KERNELS_GPU_H
#define KERNELS_GPU_H

#include "kernels/cuda_api.h"
#include "kernels/gpu_args.h"
#include "kernels/kern.h"

struct kern_gpu;

/*
 * Load the kernels into the current context.
 * image  NULL: the binary's own. -ENOTSUP: there is none (built without nvcc), or none
 *        for this device; -ENOENT: it lacks a kernel.
 */
int kern_gpu_open(struct kern_gpu **out, const struct cuda_api *api,
		  const void *image);
void kern_gpu_close(struct kern_gpu *g);
/* Bytes of the binary's own image; 0: none. */
size_t kern_gpu_image_bytes(void);

/* 1: there are kernels of attention for heads of so many channels. */
int kern_gpu_head_dim_ok(uint32_t head_dim);

/* What a row attends to: n_spans of the list, in order. */
struct kern_gpu_list {
	int64_t pos; /* of the row; it sees tokens at positions <= pos */
	uint32_t first_span, n_spans;
};
/*
 * Cut the lists of rows into parts of GPU_SPLIT_TOKENS, from the start of each span on that
 * none goes on in; those that no token of is seen are left out. All memory is the host's.
 *
 * parts  [max_parts] and out [n_rows] are written: to be copied to the device.
 * Returns the number of parts, -ENOSPC if there are more than max_parts.
 */
int64_t kern_gpu_plan(const struct gpu_span *spans,
		      const struct kern_gpu_list *rows, uint32_t n_rows,
		      struct gpu_part *parts, uint32_t max_parts,
		      struct gpu_row *out);

/* What kinds of rows there are. */
struct kern_gpu_shape {
	enum kern_type type;
	uint32_t n_heads, n_kv_heads, head_dim;
};
/* Memory of the host, the caller's; what is written is to be copied to the device. */
struct kern_gpu_plan {
	struct gpu_part *parts; /* [max_parts] */
	struct gpu_tile *tiles; /* [max_tiles] */
	struct gpu_row *rows; /* [n_rows] */
	uint32_t max_parts, max_tiles;
	uint32_t n_parts, n_tiles; /* out */
	uint32_t tile_rows; /* 0, or GPU_WIDE_ROWS for kern_gpu_attn_wide() */
};
/*
 * As kern_gpu_plan(), but rows that follow each other and have the same first_span and
 * n_spans go into tiles where they are enough (never in f32). Which of both a row gets
 * does not change its bits. -ENOSPC.
 */
int kern_gpu_plan_rows(const struct kern_gpu_shape *s,
		       const struct gpu_span *spans,
		       const struct kern_gpu_list *rows, uint32_t n_rows,
		       struct kern_gpu_plan *p);

/* As kern_attn(); head_dim 64, 96, 128, 256; K, V and q 16-byte aligned, strides a
 * multiple of 16. One launch for the parts of all rows, however unequal, one for the tiles, and one
 * to merge. -ENOTSUP: a block of this device has too little shared memory. */
int kern_gpu_attn(struct kern_gpu *g, enum kern_type type,
		  const struct gpu_attn *a, cuda_stream st);
/*
 * The same with tiles by TMA and wgmma, for Hopper (sm_90a): K and V must lie in a window,
 * token rows behind each other in a page. Whether a row that was computed in a tile has the
 * bits of one that was not, kern_gpu_wide_check() tells.
 */
struct kern_gpu_window {
	enum kern_type type;
	uint32_t head_dim;
	uint64_t base, n_rows;
	uint64_t map[16];
};
/*
 * Of [base, base + n_bytes) of the device's addresses, which need not be mapped; base a
 * multiple of a row's bytes, below 2^31 rows. dev: the context's device.
 * -ENOTSUP: it is no Hopper, the image has no sm_90a, the driver is older than 12, BF16 and F16 with head_dim 64
 * or 128 only; -EINVAL; those of the driver.
 */
int kern_gpu_window(struct kern_gpu *g, int dev, enum kern_type type,
		    uint32_t head_dim, uint64_t base, uint64_t n_bytes,
		    struct kern_gpu_window *out);
/* Can the span be read through it? */
int kern_gpu_in_window(const struct kern_gpu_window *w,
		       const struct gpu_span *s, uint32_t n_kv_heads);
/* All spans of the tiles are in w; the plan was made with GPU_WIDE_ROWS. */
int kern_gpu_attn_wide(struct kern_gpu *g, const struct kern_gpu_window *w,
		       const struct gpu_attn *a, cuda_stream st);
/* A bit for each kind of KV that it knows; 0: others. */
uint32_t kern_gpu_wide_kind(enum kern_type type, uint32_t head_dim);
/*
 * Does it give the bits of kern_gpu_attn() here? *same: of the kinds that do. Tried with a prompt of
 * noise, in a context of its own; the caller sets its own again. Waits, ten seconds at most.
 * image  as in kern_gpu_open()
 * -ENOTSUP: no Hopper, as kern_gpu_window(); -ETIMEDOUT: a kernel hangs, the context is left as
 * it is; those of the driver. Then *same is 0.
 */
int kern_gpu_wide_check(struct kern_gpu *g, int dev, const void *image,
			uint32_t *same);
/* Convert as kern_from_f32() and store; byte for byte the same. */
int kern_gpu_append(struct kern_gpu *g, enum kern_type type,
		    const struct gpu_append *a, cuda_stream st);
/* As kern_rmsnorm(); relative error 2e-6. */
int kern_gpu_rmsnorm(struct kern_gpu *g, const struct gpu_rmsnorm *a,
		     cuda_stream st);
/*
 * As kern_rope(), kind not NONE, for one or several positions of each row, in one launch; error
 * 1e-6 of the pair's length for positions below 2^24, then converted as kern_from_f32().
 */
int kern_gpu_rope(struct kern_gpu *g, enum kern_type to,
		  const struct gpu_rope *a, cuda_stream st);
/* As kern_swiglu(); relative error 2e-6. */
int kern_gpu_swiglu(struct kern_gpu *g, const struct gpu_swiglu *a,
		    cuda_stream st);
/* As kern_add(); the same bits. */
int kern_gpu_add(struct kern_gpu *g, const struct gpu_add *a, cuda_stream st);
/* As kern_from_f32() and kern_to_f32(), byte for byte but for which NaN it is; F32
 * copies. src and dst do not overlap. */
int kern_gpu_from_f32(struct kern_gpu *g, enum kern_type to,
		      const struct gpu_convert *a, cuda_stream st);
int kern_gpu_to_f32(struct kern_gpu *g, enum kern_type from,
		    const struct gpu_convert *a, cuda_stream st);
/*
 * As cublas_gemm(), by kernels of our own: where there is no cuBLASLt. A numeric path of its
 * own; a row's bits depend on the row and the matrix. n_in and x_stride multiples of 8;
 * in f32 n_rows <= 65535.
 */
int kern_gpu_gemm(struct kern_gpu *g, enum kern_type type,
		  const struct gpu_gemm *a, cuda_stream st);
/* Rows idx[] of a table of the type into f32; exact. Who calls has checked idx. */
int kern_gpu_gather(struct kern_gpu *g, enum kern_type type,
		    const struct gpu_gather *a, cuda_stream st);
/* Rows idx[] of a table times mul[]: one product an element. */
int kern_gpu_pick(struct kern_gpu *g, const struct gpu_pick *a, cuda_stream st);
/*
 * As kern_attn_join(), of states that are finished: o of each of the rows is the whole
 * then, m and l a state of it. Relative error 1e-5; a row that sees nothing otherwise is
 * as before, to the bit. n_heads <= 65535.
 */
int kern_gpu_join(struct kern_gpu *g, const struct gpu_join *a, cuda_stream st);
/* memcpy() of all runs and heads; n_heads <= 65535. */
int kern_gpu_move(struct kern_gpu *g, const struct gpu_move *a, cuda_stream st);
/* Squared distance of rows of V from pages; relative error 1e-5. */
int kern_gpu_deviation(struct kern_gpu *g, enum kern_type type,
		       const struct gpu_deviation *a, cuda_stream st);
/*
 * As kern_sample() for each row, n <= GPU_SAMPLE_MAX, logits without NaN. The token is
 * the same, unless the draw, or top_p of the whole, falls within 2^-24 of a boundary
 * between candidates: weights below 2^-20 of the largest are summed in units of 2^-44.
 * logprob within 1e-6 of the twin's, relative.
 */
int kern_gpu_sample(struct kern_gpu *g, const struct gpu_sample *a,
		    cuda_stream st);
/* kio_crc32c() of each chunk. */
int kern_gpu_crc(struct kern_gpu *g, const struct gpu_crc *a, cuda_stream st);
/* Xor of all words, a part of it for each thread of n_blocks > 0: reads as fast as the
 * memory gives. */
int kern_gpu_read(struct kern_gpu *g, const struct gpu_read *a,
		  uint32_t n_blocks, cuda_stream st);

#endif
