/*
 * mm_dp.h - bf16 products by VDPBF16PS (AVX512_BF16); see mm.h
 *
 * VDPBF16PS adds the product of the high halves, then that of the low halves,
 * as two FMAs in this order. So a word of (k, k + 2) continues a chain of even
 * k, and one of (k + 1, k + 3) a chain of odd k: the contract's two chains, at
 * twice the rate of f32 FMAs where the core has full-rate units (AMD Zen 4 and
 * later: equal in 4,800,000 of 4,800,000 outputs, denormals included).
 * kern_init() compares it with the scalar twin before it is used.
 */
#ifndef KERNELS_MM_DP_H
#define KERNELS_MM_DP_H

#include "kernels/mm.h"

#define MM_SUB	   12u
#define MM_X_WORDS 1u
#define MM_ORDER   CPU_ORDER_SKIP
#define MM_FEW	   /* attn_few.h is for this one */

/* Of a group: k0 k1 k2 k3 become words (high, low) (k0, k2) (k1, k3). */
static inline __m512i dp_order(__m512i x)
{
	return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi8(
					      4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8,
					      9, 14, 15, 10, 11)));
}

/* Words of pairs (k0, k1) (k2, k3) in n rows of a panel become those. */
static inline void mm_order_panel(uint32_t *panel, uint32_t n)
{
	for (uint32_t j = 0; j < n; j += 2, panel += 2 * LANES) {
		const __m512i a = _mm512_loadu_si512(panel);
		const __m512i b = _mm512_loadu_si512(panel + LANES);

		_mm512_storeu_si512(
			panel, _mm512_mask_mov_epi16(_mm512_slli_epi32(a, 16),
						     0x55555555, b));
		_mm512_storeu_si512(
			panel + LANES,
			_mm512_mask_mov_epi16(_mm512_srli_epi32(b, 16),
					      0xaaaaaaaa, a));
	}
}

static inline void mm_pack_x(const uint16_t *src, uint32_t *dst)
{
	_mm512_storeu_si512(dst, dp_order(_mm512_loadu_si512(src)));
}

/* 32 probabilities, rounded to bf16 here; lanes i and i + 16 summed. */
static inline struct vec mm_pack_p(struct vec p0, struct vec p1, uint32_t *dst)
{
	const __m512i x = vec_to_bf16(p0, p1);

	_mm512_storeu_si512(dst, dp_order(x));
	return vec_sum_bf16(x);
}

INLINE __m512 dp(__m512 acc, uint32_t x, __m512i w)
{
	return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32((int)x),
				(__m512bh)w);
}

/* Four k: words j and j + 1 of a group, of R rows and P panels. */
INLINE void dp_step(const uint32_t *x, size_t x_stride, const uint32_t *w,
		    size_t w_stride, __m512 *even, __m512 *odd,
		    const uint32_t R, const uint32_t P)
{
	const uint32_t *half = x + 3 * x_stride; /* for short addresses */
	__m512i we[MM_P], wo[MM_P];

	UNROLL for (uint32_t p = 0; p < P; p++)
	{
		we[p] = _mm512_loadu_si512(w + p * w_stride);
		wo[p] = _mm512_loadu_si512(w + p * w_stride + LANES);
	}
	UNROLL for (uint32_t r = 0; r < R; r++)
	{
		const uint32_t *xr = r < 3 ? x + r * x_stride
					   : half + (r - 3) * x_stride;

		UNROLL for (uint32_t p = 0; p < P; p++)
		{
			even[r * P + p] = dp(even[r * P + p], xr[0], we[p]);
			odd[r * P + p] = dp(odd[r * P + p], xr[1], wo[p]);
		}
	}
}

INLINE void dp_block(const struct mm *m, uint32_t row, uint32_t panel,
		     const uint32_t R, const uint32_t P)
{
	const size_t x_stride = m->x_stride, w_stride = m->panel_words;
	const uint32_t *x = m->x + row * x_stride;
	const uint32_t *w = m->w + panel * w_stride;
	const uint32_t *const end = x + m->n_k;
	struct vec sum[MM_R * MM_P];

	mm_get(m, sum, row, panel, R, P);

	for (; x < end; x += GROUP, w += GROUP * LANES) {
		__m512 even[MM_R * MM_P], odd[MM_R * MM_P];

		if (R < MM_R && m->stream)
			for (size_t j = 0; j < GROUP; j++)
				for (size_t p = 0; p < P; p++)
					__builtin_prefetch(w + AHEAD +
							   p * w_stride +
							   j * LANES);
		UNROLL for (uint32_t i = 0; i < R * P; i++)
			even[i] = odd[i] = _mm512_setzero_ps();
		UNROLL for (size_t j = 0; j < GROUP; j += 2)
			dp_step(x + j, x_stride, w + j * LANES, w_stride, even,
				odd, R, P);
		UNROLL for (uint32_t i = 0; i < R * P; i++) sum[i].v =
			_mm512_add_ps(sum[i].v, _mm512_add_ps(even[i], odd[i]));
	}
	mm_put(m, sum, row, panel, R, P);
}

MM_DEFINE(mm_bf16, dp_block, MM_ROWS_BF16, MM_R)

static inline void mm_begin(void)
{
}
static inline void mm_end(void)
{
}

#endif
