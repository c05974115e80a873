/*
 * mm.h - rows times panels of sixteen columns, under the contract of kern.h
 *
 * Included by the files of one instruction set, behind its vec_*.h; mm_fma.h,
 * mm_dp.h and mm_amx.h give mm_bf16(). Linear layers (panels of weights),
 * scores (panels of sixteen keys) and outputs (panels of sixteen dimensions of
 * V, tokens as k) are all this one product.
 *
 * A panel is [n_k][16] words: f32, or pairs of bf16 of an even and the next odd
 * k. For bf16 n_k is a multiple of 16 pairs; the caller fills up with zeros.
 */
#ifndef KERNELS_MM_H
#define KERNELS_MM_H

#include <string.h>
#include "kernels/cpu.h"

#define LANES  KERN_LANES
#define GROUP  16u /* pairs of a bf16 group */
#define AHEAD  (48 * LANES) /* words: few rows stream w from memory */
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

/* Rows of a block of f32 products, with one sum where bf16 has two. */
#define MM_R_F32 6u

/* Lines to be fetched, a few at each step of the work, evenly. */
struct fetch {
	const char *at[2];
	uint32_t left[2]; /* lines */
	uint32_t step;
};

static inline void fetch_some(struct fetch *f)
{
	uint32_t n = f->step;

	for (uint32_t i = 0; i < 2; i++)
		for (; n && f->left[i]; n--, f->left[i]--) {
			__builtin_prefetch(f->at[i]);
			f->at[i] += 64;
		}
}

#ifndef MM_MERGE
#define MM_MERGE 48u /* rows: a multiple of MM_SUB and of LANES */
#endif

/* Where rows of a product go: o = o wa + product wb; o NULL: nowhere. */
struct merge {
	float wa[MM_MERGE], wb[MM_MERGE];
	float *o[MM_MERGE];
};

/*
 * acc[n_rows][16 n_panels] = or += x w. Rows of x and acc up to a multiple of
 * MM_SUB may be read and written: the caller gives room for them.
 */
struct mm {
	const uint32_t *x; /* f32, or what mm_pack_x() writes */
	size_t x_stride; /* words */
	const uint32_t *w;
	size_t panel_words;
	float *acc;
	size_t acc_stride;
	uint32_t n_rows, n_panels, n_k;
	uint32_t stream; /* w comes from memory: fetch it ahead */
	uint32_t add; /* 0: acc starts from 0 */
	const struct merge *merge; /* or NULL; then acc is not written */
	struct fetch *fetch; /* or NULL */
};

/* Rows of the next block: whole ones, the last two of equal size. */
static inline uint32_t mm_take(uint32_t left, uint32_t most)
{
	if (left <= most)
		return left;
	return left < 2 * most ? (left + 1) / 2 : most;
}

/* The first step of a block of R rows and P panels: its sums so far. */
INLINE void mm_get(const struct mm *m, struct vec *sum, uint32_t row,
		   uint32_t panel, const uint32_t R, const uint32_t P)
{
	const float *at = m->acc + row * m->acc_stride + panel * LANES;

	UNROLL for (uint32_t i = 0; i < R * P; i++) sum[i] = vec_zero();
	if (!m->add)
		return;
	UNROLL for (uint32_t i = 0; i < R * P; i++)
		sum[i] = vec_load(at + i / P * m->acc_stride + i % P * LANES);
}

/* The last step. */
INLINE void mm_put(const struct mm *m, const struct vec *sum, uint32_t row,
		   uint32_t panel, const uint32_t R, const uint32_t P)
{
	float *at = m->acc + row * m->acc_stride + panel * LANES;

	if (!m->merge) {
		UNROLL for (uint32_t i = 0; i < R * P; i++) vec_store(
			at + i / P * m->acc_stride + i % P * LANES, sum[i]);
		return;
	}
	UNROLL for (uint32_t r = 0; r < R; r++)
	{
		const struct vec wa = vec_set(m->merge->wa[row + r]);
		const struct vec wb = vec_set(m->merge->wb[row + r]);
		float *o = m->merge->o[row + r];
		struct vec old[MM_P];

		if (!o)
			continue;
		o += panel * LANES;
		UNROLL for (uint32_t p = 0; p < P; p++)
			old[p] = vec_mul(vec_load(o + p * LANES), wa);
		UNROLL for (uint32_t p = 0; p < P; p++) vec_store(
			o + p * LANES, vec_fma(sum[r * P + p], wb, old[p]));
	}
}

INLINE void f32_block(const struct mm *m, uint32_t row, uint32_t panel,
		      const uint32_t R, const uint32_t P)
{
	const float *x = (const float *)m->x + row * m->x_stride;
	const float *w = (const float *)m->w + panel * m->panel_words;
	struct vec a[MM_R_F32 * MM_P];

	mm_get(m, a, row, panel, R, P);
	for (uint32_t k = 0; k < m->n_k; k++) {
		struct vec wv[MM_P];

		UNROLL for (uint32_t p = 0; p < P; p++)
		{
			const float *at = w + p * m->panel_words + k * LANES;

			if (R < MM_R_F32 && m->stream)
				__builtin_prefetch(at + AHEAD);
			wv[p] = vec_load(at);
		}
		UNROLL for (uint32_t r = 0; r < R; r++)
		{
			const struct vec xv = vec_set(x[r * m->x_stride + k]);

			UNROLL for (uint32_t p = 0; p < P; p++)
				a[r * P + p] = vec_fma(xv, wv[p], a[r * P + p]);
		}
	}
	mm_put(m, a, row, panel, R, P);
}

/* Instantiate name(m, row, n_rows, panel) over block(), of at most 3 or 6 rows. */
#define MM_ROWS_3(block, P) \
	switch (n_rows) { \
	case 1: \
		return block(m, row, panel, 1, P); \
	case 2: \
		return block(m, row, panel, 2, P); \
	default: \
		return block(m, row, panel, 3, P); \
	}
#define MM_ROWS_6(block, P) \
	switch (n_rows) { \
	case 1: \
		return block(m, row, panel, 1, P); \
	case 2: \
		return block(m, row, panel, 2, P); \
	case 3: \
		return block(m, row, panel, 3, P); \
	case 4: \
		return block(m, row, panel, 4, P); \
	case 5: \
		return block(m, row, panel, 5, P); \
	default: \
		return block(m, row, panel, 6, P); \
	}
#if MM_R == 6
#define MM_ROWS_BF16 MM_ROWS_6
#else
#define MM_ROWS_BF16 MM_ROWS_3
#endif

#define MM_DEFINE(name, block, rows, n_most) \
	static void name##_1(const struct mm *m, uint32_t row, \
			     uint32_t n_rows, uint32_t panel) \
	{ \
		rows(block, 1) \
	} \
	static void name##_p(const struct mm *m, uint32_t row, \
			     uint32_t n_rows, uint32_t panel) \
	{ \
		rows(block, MM_P) \
	} \
	static void name(const struct mm *m) \
	{ \
		for (uint32_t p = 0; p < m->n_panels; p += MM_P) \
			for (uint32_t r = 0, n; r < m->n_rows; r += n) { \
				if (m->fetch) \
					fetch_some(m->fetch); \
				n = mm_take(m->n_rows - r, n_most); \
				if (m->n_panels - p < MM_P) \
					name##_1(m, r, n, p); \
				else \
					name##_p(m, r, n, p); \
			} \
	}

MM_DEFINE(mm_f32, f32_block, MM_ROWS_6, MM_R_F32)

#endif
