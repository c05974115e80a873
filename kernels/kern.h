/*
 * kern.h - every arithmetic entry point of kvd, over plain pointers
 *
 * The summation contract. Each result is a pure function of its own row and
 * of the operand it is multiplied with; never of the number of rows, of
 * threads, or of the instruction set:
 *
 *  f32   dot products are one chain of fused multiply-adds, ascending in k.
 *  bf16  operands are rounded to bf16 (nearest even); per group of 32 k the
 *        products of even k and of odd k form one FMA chain each, starting
 *        from +0; acc += (even + odd). Denormal inputs and results are 0.
 *        This is the order of Intel's TDPBF16PS, so AMX, AVX-512, AVX2 and
 *        scalar code give the same bytes, and so does VDPBF16PS on words of
 *        (k, k + 2). A last group of fewer k is the same as one filled up
 *        with zeros.
 *  f16   is storage only: operands widen to f32 and follow the f32 rule.
 *  exp and the like are fixed polynomials of FMAs, never libm.
 *
 * The instruction set is chosen once, by kern_init(), for the whole process.
 * Every function has its scalar twin in ref.h with the same arguments and
 * equal results, byte for byte.
 *
 * Thread: all functions may be called from any thread after kern_init(); they
 * never block, allocate (but for *_pack) or keep state.
 */
#ifndef KERNELS_KERN_H
#define KERNELS_KERN_H

#include <stddef.h>
#include <stdint.h>

#define KERN_KV_BLOCK	  32u /* tokens in one tile of the attention grid */
#define KERN_HEAD_DIM_MIN 32u
#define KERN_HEAD_DIM_MAX 256u /* and a multiple of 8 */
#define KERN_LANES	  16u /* columns of a packed weight panel */

/*
 * The number of this arithmetic: goes up, never back, when a change in an order
 * of sums or in a polynomial gives other bytes. What was computed under another
 * number must not be mixed with what is computed now.
 */
#define KERN_NUMERIC_PATH 1u

enum kern_type {
	KERN_F32 = 0,
	KERN_F16 = 1,
	KERN_BF16 = 2,
	KERN_Q8_0 = 3, /* weights only: 32 int8 and one f16 scale per block */
};

enum kern_isa {
	KERN_ISA_SCALAR = 0,
	KERN_ISA_AVX2 = 1,
	KERN_ISA_AVX512 = 2,
	KERN_ISA_AVX512_BF16 = 3, /* where VDPBF16PS is faster than FMAs */
	KERN_ISA_AMX = 4,
};

/*
 * Choose the instruction set: the best this CPU has, not above max. Each
 * candidate first computes a small known problem; one that differs from the
 * scalar twin is passed over. Returns the enum kern_isa chosen. Call it before
 * any other function; calling it again (tests) switches the whole process.
 */
enum kern_isa kern_init(enum kern_isa max);
enum kern_isa kern_isa(void);
const char *kern_isa_name(enum kern_isa isa);

/* Bytes of one element of F32, F16, BF16; 0 for the others. */
size_t kern_type_bytes(enum kern_type type);

/* Convert n elements; RNE; src and dst do not overlap. */
void kern_from_f32(enum kern_type to, const float *src, void *dst, size_t n);
void kern_to_f32(enum kern_type from, const void *src, float *dst, size_t n);

/* ---- linear layers: y = x W^T --------------------------------------- */

/* A matrix as it lies in a model file. */
struct kern_matrix {
	enum kern_type type;
	const void *data; /* [n_out][n_in] row-major; Q8_0: blocks of 32 */
	uint32_t n_out; /* rows of the file's matrix: outputs */
	uint32_t n_in; /* columns: the k of the sum; Q8_0: % 32 == 0 */
};

struct kern_weight; /* packed in panels of KERN_LANES outputs */

/*
 * Pack src for arithmetic in math (KERN_F32 or KERN_BF16), for the instruction
 * set in use: after a kern_init() that changes it the weights stay correct but
 * may be slow. The caller owns *out and gives it to kern_weight_free().
 * -EINVAL, -ENOMEM.
 */
int kern_weight_pack(struct kern_weight **out, const struct kern_matrix *src,
		     enum kern_type math);
void kern_weight_free(struct kern_weight *w);
uint32_t kern_weight_n_out(const struct kern_weight *w);
uint32_t kern_weight_n_in(const struct kern_weight *w);
size_t kern_weight_bytes(const struct kern_weight *w);

#define KERN_LINEAR_ADD 1u /* y += x W^T: one f32 add after the whole sum */

struct kern_linear {
	const struct kern_weight *w;
	const void *x; /* [n_rows][x_stride] of the weight's math type */
	size_t x_stride; /* elements from row to row, >= n_in */
	float *y; /* [n_rows][y_stride] f32 */
	size_t y_stride; /* elements from row to row, >= n_out */
	uint32_t n_rows; /* 0 does nothing */
	uint32_t out_from; /* outputs [out_from, out_to): a thread's share; */
	uint32_t out_to; /* both multiples of KERN_LANES, or n_out */
	uint32_t flags; /* KERN_LINEAR_* */
};
int kern_linear(const struct kern_linear *a);

/* ---- attention ------------------------------------------------------ */

/*
 * One run of consecutive tokens of one segment, starting on the tile grid.
 * Token t of kv head h: k + (t / page_tokens) * page_bytes + h * head_bytes
 *                         + (t % page_tokens) * head_dim * element size.
 */
struct kern_span {
	const void *k; /* K of token 0, kv head 0, of this layer */
	const void *v; /* the same for V */
	size_t head_bytes; /* from kv head to kv head inside a page */
	size_t page_bytes; /* from page to page of the same layer group */
	uint32_t page_tokens; /* a multiple of KERN_KV_BLOCK */
	uint32_t n_tokens; /* 0 is an exact identity */
	uint32_t q_variant; /* which rotation of the queries meets it */
	int64_t pos; /* position of token 0 in the sequence */
	/* token t is at pos + at[t], ascending; or NULL: at pos + t */
	const uint32_t *at;
	const uint64_t *skip; /* bit t set: token t is hidden; or NULL */
	/*
	 * 1: it goes on where the span before it ends, at a multiple of KERN_KV_BLOCK of the
	 * same part. To kern_attn() the same; for those with larger tiles (gpu.h).
	 */
	uint32_t goes_on;
};

/*
 * Add spans to the partial attention (o, m, l) of rows, in list order, tile
 * by tile of KERN_KV_BLOCK tokens: each tile starts from the empty state and is
 * merged into the row's state (Milakov & Gimelshein 2018, arXiv:1805.02867).
 * A row at position p sees the tokens at positions <= p. Rows whose state is
 * (0, -inf, 0) are empty. Tokens past n_tokens are never read as numbers, nor
 * does a token's K or V, whatever it is, reach a row that does not see it.
 *
 * One tile, for one row and head:
 *   s_t = scale * (q . k_t) by the rule of the type; m = max s_t of those seen
 *   p_t = exp(s_t - m), rounded to bf16 for BF16; 0 for tokens not seen
 *   l   = sum p_t: t and t + 16 are added, then lanes i and i + 8, 4, 2, 1
 *   o_d = sum p_t v_td by the rule of the type, with the 32 t as k
 * and merged into the row's (O, M, L): M' = max(M, m), a = exp(M - M'),
 * b = exp(m - M'), O' = fma(o, b, O * a), L' = fma(l, b, L * a).
 */
struct kern_attn {
	enum kern_type type; /* of q and of the spans: F32, F16, BF16 */
	uint32_t n_heads; /* query heads, a multiple of n_kv_heads */
	uint32_t n_kv_heads;
	uint32_t head_dim;
	float scale; /* of the logits, usually 1/sqrt(head_dim) */
	const void *q; /* [variant][n_rows][n_heads][head_dim] */
	size_t q_variant_elems; /* elements from variant to variant */
	const int64_t *q_pos; /* [n_rows] */
	uint32_t n_rows;
	const struct kern_span *spans;
	uint32_t n_spans;
	float *o; /* [n_rows][n_heads][head_dim], unnormalised */
	float *m; /* [n_rows][n_heads] largest scaled logit */
	float *l; /* [n_rows][n_heads] sum of exp(logit - m) */
	uint32_t kv_head_from; /* a thread's share: kv heads [from, to) */
	uint32_t kv_head_to;
	uint32_t row_from; /* and rows [from, to) */
	uint32_t row_to;
	/*
	 * Not 0: tile i of all spans, counted from 0, is not merged but left as a
	 * state of its own, tile_states * i states further; what was there is lost.
	 * At least n_rows * n_heads.
	 */
	size_t tile_states;
};
/* Set the rows and heads of the share to the empty state. */
void kern_attn_clear(const struct kern_attn *a);
/* -EINVAL for a shape outside the above; then nothing was written. */
int kern_attn(const struct kern_attn *a);
/*
 * Tokens that are seen differently (APE, Yang et al. 2025, arXiv:2502.05431): each group
 * has had its own pass, with its own kern_attn.scale. The share's o, m, l of a become,
 * with e_i = scale_i (m_i + ln l_i) and top = max e_i, in the order of the groups:
 *   l = sum exp(e_i - top), o = sum o_i exp(e_i - top) / l_i, m = top
 * The first group's state is a's, of scale 1; the others have the same shape. A row that
 * only the first has tokens for keeps its state as it is.
 */
struct kern_attn_group {
	const float *o, *m, *l;
	float scale; /* of ln sum exp */
};
void kern_attn_join(const struct kern_attn *a, const struct kern_attn_group *g,
		    uint32_t n);
/*
 * Merge n_tiles tiles that kern_attn() left at from with tile_states into the share's
 * states of a, in their order: the same bytes as if they had been merged at once. Of a
 * only the shape, the states and the share are read, of from the states and tile_states.
 */
void kern_attn_merge(const struct kern_attn *a, const struct kern_attn *from,
		     uint32_t n_tiles);
/* o /= l in place for the share; a row with l = 0 becomes 0. */
void kern_attn_finish(const struct kern_attn *a);

/* ---- the rest of a llama layer -------------------------------------- */

/* y[i] = x[i] * rsqrt(mean(x^2) + eps) * w[i] per row; y may be x. */
void kern_rmsnorm(const float *x, const float *w, float *y, uint32_t n_rows,
		  uint32_t n, float eps);

enum kern_rope_kind {
	KERN_ROPE_NONE = 0,
	KERN_ROPE_INTERLEAVED = 1, /* pairs (2i, 2i+1): GGUF llama */
	KERN_ROPE_HALVES = 2, /* pairs (i, i + n/2): Hugging Face */
};
struct kern_rope {
	enum kern_rope_kind kind;
	uint32_t n_rot; /* dimensions rotated, even, <= head_dim */
	float theta; /* base of the frequencies, e.g. 10000 */
	float scale; /* of positions (linear scaling), usually 1 */
};
/*
 * Rotate [n_rows][n_heads][head_dim] f32 from src to dst (may be equal), row r
 * by position pos[r] (may be negative). Angles in f64 by our own reduction
 * and polynomials: the same bytes on every CPU.
 */
void kern_rope(const struct kern_rope *p, const float *src, float *dst,
	       const int64_t *pos, uint32_t n_rows, uint32_t n_heads,
	       uint32_t head_dim);

/* y[i] = silu(gate[i]) * up[i], n elements; y may be gate or up. */
void kern_swiglu(const float *gate, const float *up, float *y, size_t n);
/* y[i] += x[i] */
void kern_add(const float *x, float *y, size_t n);

/* ---- sampling ------------------------------------------------------- */

/* ln sum exp(x[i]); serial order, fixed polynomials. */
float kern_logsumexp(const float *x, uint32_t n);
/* Index of the largest x[i], the lowest such index. */
uint32_t kern_argmax(const float *x, uint32_t n);

struct kern_sample {
	float temperature; /* 0: greedy */
	uint32_t top_k; /* 0: off */
	float top_p; /* 1: off; nucleus, Holtzman et al. 2020 */
	float min_p; /* 0: off; fraction of the largest probability */
	uint64_t seed;
	uint64_t pos; /* absolute position: the noise is keyed by both */
};
/*
 * Choose a token from logits [n], n >= 1. scratch holds 8 * n bytes, 4-aligned,
 * borrowed. Candidates are ordered by weight, equal ones by index; top_k cuts
 * first, top_p then counts the weight that is left, min_p compares with the
 * largest. *logprob gets ln p of the token under the unmodified logits.
 */
uint32_t kern_sample(const struct kern_sample *p, const float *logits,
		     uint32_t n, void *scratch, float *logprob);

#endif
