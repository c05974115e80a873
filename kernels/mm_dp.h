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

/* Of a group: k0 k1 k2 k3 become words (high, low) (k0, k2) (k1, k3). */
static inline __m512i dp_order(__m512i x)
{
	return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi8(
					      4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8,
					      9, 14, 15, 10, 11)));
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

INLINE void dp_block(const struct mm *m, uint32_t row, uint32_t panel,
		     const uint32_t R, const uint32_t P)
{
	const uint32_t *x = m->x + row * m->x_stride;
	const uint32_t *w = m->w + panel * m->panel_words;
	struct vec sum[MM_R * MM_P];

	mm_get(m, sum, row, panel, R, P);

	for (uint32_t g = 0; g < m->n_k; g += GROUP) {
		__m512 even[MM_R * MM_P], odd[MM_R * MM_P];

		UNROLL for (uint32_t i = 0; i < R * P; i++)
			even[i] = odd[i] = _mm512_setzero_ps();
		for (uint32_t j = g; j < g + GROUP; j += 2) {
			__m512i we[MM_P], wo[MM_P];

			UNROLL for (uint32_t p = 0; p < P; p++)
			{
				const uint32_t *at =
					w + p * m->panel_words + j * LANES;
				const __m512i a = _mm512_loadu_si512(at);
				const __m512i b =
					_mm512_loadu_si512(at + LANES);

				if (R < MM_R) {
					__builtin_prefetch(at + AHEAD);
					__builtin_prefetch(at + AHEAD + LANES);
				}
				we[p] = _mm512_mask_mov_epi16(
					_mm512_slli_epi32(a, 16), 0x55555555,
					b);
				wo[p] = _mm512_mask_mov_epi16(
					_mm512_srli_epi32(b, 16), 0xaaaaaaaa,
					a);
			}
			UNROLL for (uint32_t r = 0; r < R; r++)
			{
				const uint32_t *xr = x + r * m->x_stride + j;

				UNROLL for (uint32_t p = 0; p < P; p++)
				{
					const uint32_t i = r * P + p;

					even[i] = dp(even[i], xr[0], we[p]);
					odd[i] = dp(odd[i], xr[1], wo[p]);
				}
			}
		}
		UNROLL for (uint32_t i = 0; i < R * P; i++) sum[i].v =
			_mm512_add_ps(sum[i].v, _mm512_add_ps(even[i], odd[i]));
	}
	mm_put(m, sum, row, panel, R, P);
}

MM_DEFINE(mm_bf16, dp_block)

static inline void mm_begin(void)
{
}
static inline void mm_end(void)
{
}

#endif
