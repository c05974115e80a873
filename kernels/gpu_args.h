/*
 * gpu_args.h - what the host hands to the kernels of gpu.cu; C and CUDA
 *
 * Every kernel takes one of these by value. Addresses are of the device, as
 * numbers. The layout is the same for both compilers: 8-byte fields first. Whoever
 * changes it renames attn_merge_v4, so that an image of before is refused (gpu.c).
 */
#ifndef KERNELS_GPU_ARGS_H
#define KERNELS_GPU_ARGS_H

#include <stdint.h>

#define GPU_TILE	 32u /* tokens; as KERN_KV_BLOCK */
/*
 * Of one part: fixed, whatever the batch is. At 8 query heads to a kv head of 128 its
 * state, written and read again, is 3 % of the bytes of K and V; one of 256 is 6 %.
 */
#define GPU_SPLIT_TOKENS 512u
#define GPU_THREADS	 128u /* of a block, in every kernel */
#define GPU_WARPS	 (GPU_THREADS / 32u)
#define GPU_HEADS	 8u /* query heads that share what a block reads, f32 */
#define GPU_MMA_HEADS	 16u /* the same for bf16 and f16 */
#define GPU_FLASH_TILE	 64u /* tokens, of these types */

/* As struct kern_span. */
struct gpu_span {
	uint64_t k, v;
	uint64_t skip; /* bits of tokens, 64 in a word; or 0 */
	uint64_t at; /* u32 of each token: it is at pos + at[t]; or 0 */
	uint64_t head_bytes, page_bytes;
	int64_t pos;
	uint32_t page_tokens; /* a multiple of GPU_TILE */
	uint32_t n_tokens;
	uint32_t q_variant;
	/* from token to token of a page; 0: one head.
	 * Otherwise every token may be a page of its own, as in a constant stride;
	 * decode attention and what goes by row_offset() take it. */
	uint32_t row_bytes;
	/*
	 * 1: tiles and parts go on in the next span, the last of a list never: n_tokens is a
	 * multiple of GPU_TILE then, and both have the layout and q_variant of one part.
	 */
	uint32_t goes_on;
	uint32_t pad;
};

/* Tokens [t0, t0 + GPU_SPLIT_TOKENS) of a span and those it goes on in, for one row. */
struct gpu_part {
	uint32_t row, span, t0;
};

/* n_parts of a row that a tile computes. */
#define GPU_ROW_IN_TILE 0xffffffffu

struct gpu_row {
	int64_t pos; /* of the query */
	uint32_t first_part, n_parts; /* in ascending order of the list */
};

/* Rows that share a list, BF16 and F16: what a block of prefill computes. */
struct gpu_tile {
	uint32_t row, n_rows;
	uint32_t first_span, n_spans;
};
/* Query heads times rows of one. */
#define GPU_TILE_ROWS(head_dim) ((head_dim) <= 128 ? 128u : 64u)

#define GPU_ATTN_ADD	1u /* to the state in o, m, l; else from empty */
#define GPU_ATTN_FINISH 2u /* o /= l at the end */

struct gpu_attn {
	uint64_t
		q; /* [variant][n_rows][n_heads][head_dim] of the spans' type */
	uint64_t q_variant_elems;
	uint64_t spans; /* struct gpu_span [] */
	uint64_t parts; /* struct gpu_part [n_parts] */
	uint64_t tiles; /* struct gpu_tile [n_tiles] */
	uint64_t rows; /* struct gpu_row [n_rows] */
	uint64_t part_o; /* f32 [n_parts][n_heads][head_dim]: room */
	uint64_t part_ml; /* f32 [n_parts][n_heads][2]: room */
	uint64_t o; /* f32 [n_rows][n_heads][head_dim] */
	uint64_t m, l; /* f32 [n_rows][n_heads] */
	uint32_t n_heads, n_kv_heads, head_dim;
	uint32_t n_rows, n_parts;
	uint32_t n_tiles;
	uint32_t flags; /* GPU_ATTN_* */
	float scale;
};

/*
 * Tiles by wgmma: rows of K and V as the copy engine sees them, from base on. map is
 * a CUtensorMap.
 */
struct gpu_wide {
	uint64_t map[16] __attribute__((aligned(128)));
	uint64_t base;
	struct gpu_attn a;
};
/* As GPU_TILE_ROWS() for these. */
#define GPU_WIDE_ROWS 64u

/* Rows of K and V into pages. */
struct gpu_append {
	uint64_t k, v; /* f32 [n_rows][n_kv_heads][head_dim] */
	uint64_t
		spans; /* struct gpu_span []: k, v and strides are the target's */
	uint64_t to; /* uint32_t [n_rows][2]: span, token in it */
	uint32_t n_kv_heads, head_dim, n_rows, pad;
};

/*
 * How far new rows of V are from what the pages hold: dev[r] = sum over heads and
 * dimensions of (v - page)^2.
 */
struct gpu_deviation {
	uint64_t v; /* f32 [n_rows][n_kv_heads][head_dim] */
	uint64_t spans, at; /* as in struct gpu_append; only v is read */
	uint64_t dev; /* f32 [n_rows] */
	uint32_t n_kv_heads, head_dim, n_rows, pad;
};

/* Runs of bytes from page to page: of token rows, a run a layer and K or V. */
struct gpu_move {
	uint64_t runs; /* uint64_t [n_runs][2]: from, to, of kv head 0 */
	uint64_t n_bytes; /* of one head, a multiple of 16, all aligned to it */
	uint64_t src_head_bytes, dst_head_bytes;
	uint32_t n_runs, n_heads;
};

/* Rows of a table, widened: embeddings, or the rows whose logits are wanted. */
struct gpu_gather {
	uint64_t table; /* [..][n] of the type */
	uint64_t idx; /* uint32_t [n_rows] */
	uint64_t y; /* f32 [n_rows][n] */
	uint32_t n_rows, n;
};

/* Rows of a table, each times a number. */
struct gpu_pick {
	uint64_t x; /* f32 [..][n] */
	uint64_t idx; /* uint32_t [n_rows] */
	uint64_t mul; /* f32 [n_rows] */
	uint64_t y; /* f32 [n_rows][n] */
	uint32_t n_rows, n;
};

/* A row and what it sees otherwise: [first, first + n) of more. */
struct gpu_joined {
	uint32_t row, first, n, pad;
};

/* Finished states into one, as kern_attn_join(): in place of the rows' own. */
struct gpu_join {
	uint64_t rows; /* struct gpu_joined [n_rows] */
	uint64_t o, m, l; /* f32 [..][n_heads][head_dim], [..][n_heads] */
	uint64_t more_o, more_m, more_l; /* the same */
	uint64_t scale; /* f32, of each of more */
	uint32_t n_rows, n_heads, head_dim, pad;
};

struct gpu_convert {
	uint64_t src, dst;
	uint64_t n;
};

#define GPU_GEMM_ADD 1u /* y += x W^T: one f32 add after the whole sum */

/* y[n_rows][n_out] = x[n_rows][n_in] W[n_out][n_in]^T */
struct gpu_gemm {
	uint64_t x, w; /* of the type */
	uint64_t y; /* f32 */
	uint64_t x_stride, y_stride; /* elements from row to row */
	uint32_t n_rows, n_out, n_in;
	uint32_t flags; /* GPU_GEMM_* */
};

struct gpu_add {
	uint64_t x, y; /* f32 [n]; y += x */
	uint64_t n;
};

struct gpu_rmsnorm {
	uint64_t x, w, y; /* f32 [n_rows][n], [n], [n_rows][n]; y may be x */
	uint32_t n_rows, n;
	float eps;
	uint32_t pad;
};

struct gpu_rope {
	uint64_t src; /* f32 [n_rows][n_heads][head_dim] */
	/* of the type [n_variants][n_rows][n_heads][head_dim]; F32, one variant: may be src */
	uint64_t dst;
	uint64_t
		pos; /* int64_t [n_variants][pos_stride], the first n_rows of each */
	uint64_t pos_stride;
	uint32_t n_rows, n_variants, n_heads, head_dim;
	uint32_t kind, n_rot; /* as struct kern_rope */
	float theta, scale;
};

/* As struct kern_sample, field by field. */
struct gpu_sampler {
	float temperature;
	uint32_t top_k;
	float top_p, min_p;
	uint64_t seed, pos;
};
#define GPU_SAMPLE_MAX \
	(1u << 19) /* tokens of a vocabulary: weights sum in 64 bits */

struct gpu_sample {
	uint64_t logits; /* f32 [n_rows][n] */
	uint64_t how; /* struct gpu_sampler [n_rows] */
	uint64_t scratch; /* uint32_t [n_rows][n]: room */
	uint64_t token; /* uint32_t [n_rows] */
	uint64_t logprob; /* f32 [n_rows] */
	uint32_t n_rows, n;
};

/* CRC32C of chunks, each by itself. */
struct gpu_crc {
	uint64_t src; /* 4-byte aligned */
	uint64_t out; /* uint32_t [n_chunks] */
	uint32_t n_chunks, chunk_bytes; /* a multiple of 4 */
};

/* The machine's limit, for kvbench: all bytes once. */
struct gpu_read {
	uint64_t src; /* 16-byte aligned */
	uint64_t n_vecs; /* of 16 bytes */
	uint64_t out; /* uint32_t [blocks * GPU_THREADS] */
};

struct gpu_swiglu {
	uint64_t gate, up, y; /* f32 [n]; y may be gate or up */
	uint64_t n;
};

#endif
