/*
 * mm_fma.h - bf16 products by FMAs: both operands widened to f32; see mm.h
 */
#ifndef KERNELS_MM_FMA_H
#define KERNELS_MM_FMA_H

#include "kernels/mm.h"

#define MM_SUB	   12u /* rows that are worth a call */
#define MM_X_WORDS 2u /* words of x for a pair of k */
#define MM_ORDER   CPU_ORDER_NEXT

/* Panels are in this order as they are. */
static inline void mm_order_panel(uint32_t *panel, uint32_t n)
{
	(void)panel;
	(void)n;
}

/* A group of 32 bf16 of a row. */
static inline void mm_pack_x(const uint16_t *src, uint32_t *dst)
{
	vec_store((float *)dst, vec_load_bf16(src));
	vec_store((float *)dst + LANES, vec_load_bf16(src + LANES));
}

/* 32 probabilities, rounded to bf16 here; lanes i and i + 16 summed. */
static inline struct vec mm_pack_p(struct vec p0, struct vec p1, uint32_t *dst)
{
	p0 = vec_round_bf16(p0);
	p1 = vec_round_bf16(p1);
	vec_store((float *)dst, p0);
	vec_store((float *)dst + LANES, p1);
	return vec_add(p0, p1);
}

/*
 * The same address, but the compiler does not know: with sixteen registers words are
 * read twice, as those of the even half have no place to stay beside twelve sums.
 */
INLINE const uint32_t *fma_again(const uint32_t *at)
{
#ifdef MM_TIGHT
	__asm__("" : "+r"(at));
#endif
	return at;
}

/* The even or odd k of a word of P panels, with R rows of x. */
INLINE void fma_half(const uint32_t *at, size_t panel_words, const int odd,
		     const float *x, size_t x_stride, struct vec *sum,
		     const uint32_t R, const uint32_t P)
{
	struct vec w[MM_P];

	UNROLL for (uint32_t p = 0; p < P; p++)
	{
		const struct veci v = veci_loadu(at + p * panel_words);

		w[p] = odd ? vec_odd(v) : vec_even(v);
	}
	UNROLL for (uint32_t r = 0; r < R; r++)
	{
		const struct vec xv = vec_set(x[r * x_stride]);

		UNROLL for (uint32_t p = 0; p < P; p++)
			sum[r * P + p] = vec_fma(xv, w[p], sum[r * P + p]);
	}
}

INLINE void fma_block(const struct mm *m, uint32_t row, uint32_t panel,
		      const uint32_t R, const uint32_t P)
{
	const float *x = (const float *)m->x + row * m->x_stride;
	const uint32_t *w = m->w + panel * m->panel_words;
	struct vec sum[MM_R * MM_P];

	mm_get(m, sum, row, panel, R, P);

	for (uint32_t g = 0; g < m->n_k; g += GROUP) {
		struct vec even[MM_R * MM_P], odd[MM_R * MM_P];

		UNROLL for (uint32_t i = 0; i < R * P; i++)
			even[i] = odd[i] = vec_zero();
		_Pragma("GCC unroll 4") for (uint32_t j = 0; j < GROUP; j++)
		{
			const uint32_t *at = w + j * LANES;
			const float *xj = x + 2 * j;

			if (R < MM_R && m->stream)
				UNROLL for (uint32_t p = 0; p < P; p++)
					__builtin_prefetch(at +
							   p * m->panel_words +
							   AHEAD);
			fma_half(at, m->panel_words, 0, xj, m->x_stride, even,
				 R, P);
			fma_half(fma_again(at), m->panel_words, 1, xj + 1,
				 m->x_stride, odd, R, P);
		}
		w += GROUP * LANES;
		x += GROUP * MM_X_WORDS;
		UNROLL for (uint32_t i = 0; i < R * P; i++)
			sum[i] = vec_add(sum[i], vec_add(even[i], odd[i]));
	}
	mm_put(m, sum, row, panel, R, P);
}

MM_DEFINE(mm_bf16, fma_block, MM_ROWS_BF16, MM_R)

static inline void mm_begin(void)
{
}
static inline void mm_end(void)
{
}

#endif
