/*
 * mm_amx.h - bf16 products by TDPBF16PS (AMX-BF16); see mm.h
 *
 * Tiles are always 16 rows of 64 bytes: the callers' buffers have room for
 * whole tiles of rows, and k is filled up with zeros. tmm0..3 sum two by two
 * tiles, tmm4, 5 hold rows of x, tmm6, 7 panels of w.
 */
#ifndef KERNELS_MM_AMX_H
#define KERNELS_MM_AMX_H

#define MM_MERGE 32u /* rows of outputs at a time: pairs of tiles */

#include "kernels/mm.h"

#define MM_SUB 16u
#define MM_NO_MERGE
#define MM_X_WORDS 1u
#define MM_ORDER   CPU_ORDER_NEXT

/* Panels are in this order as they are. */
static inline void mm_order_panel(uint32_t *panel, uint32_t n)
{
	(void)panel;
	(void)n;
}

/* A group of 32 bf16 of a row, as it is. */
static inline void mm_pack_x(const uint16_t *src, uint32_t *dst)
{
	memcpy(dst, src, 2 * GROUP * sizeof(*src));
}

/* 32 probabilities, rounded to bf16 here; lanes i and i + 16 summed. */
static inline struct vec mm_pack_p(struct vec p0, struct vec p1, uint32_t *dst)
{
	const __m512i x = vec_to_bf16(p0, p1);

	_mm512_storeu_si512(dst, x);
	return vec_sum_bf16(x);
}

/* Palette 1, eight tiles of 16 x 64 bytes. */
struct amx_config {
	uint8_t palette, start_row, rsvd[14];
	uint16_t row_bytes[16];
	uint8_t rows[16];
} __attribute__((packed, aligned(64)));

static inline void mm_begin(void)
{
	struct amx_config c = { .palette = 1 };

	for (int i = 0; i < 8; i++) {
		c.row_bytes[i] = 64;
		c.rows[i] = 16;
	}
	_tile_loadconfig(&c);
}

static inline void mm_end(void)
{
	_tile_release();
}

#define AMX_ROWS 16u

/* Tile (i, j) of the block: from acc, or zero. */
#define AMX_START(tmm, i, j) \
	do { \
		if (m->add) \
			_tile_loadd(tmm, \
				    acc + (i)*AMX_ROWS * m->acc_stride + \
					    (j)*LANES, \
				    acc_bytes); \
		else \
			_tile_zero(tmm); \
	} while (0)
#define AMX_STORE(tmm, i, j) \
	_tile_stored(tmm, acc + (i)*AMX_ROWS * m->acc_stride + (j)*LANES, \
		     acc_bytes)

static void amx_2x2(const struct mm *m, const uint32_t *x, const uint32_t *w,
		    float *acc)
{
	const size_t acc_bytes = m->acc_stride * sizeof(*acc);
	const size_t x_bytes = m->x_stride * sizeof(*x);

	AMX_START(0, 0, 0);
	AMX_START(1, 0, 1);
	AMX_START(2, 1, 0);
	AMX_START(3, 1, 1);
	for (uint32_t j = 0; j < m->n_k; j += GROUP) {
		const uint32_t *wj = w + j * LANES;

		_tile_loadd(6, wj, 64);
		_tile_loadd(4, x + j, x_bytes);
		_tile_loadd(7, wj + m->panel_words, 64);
		_tile_loadd(5, x + AMX_ROWS * m->x_stride + j, x_bytes);
		_tile_dpbf16ps(0, 4, 6);
		_tile_dpbf16ps(1, 4, 7);
		_tile_dpbf16ps(2, 5, 6);
		_tile_dpbf16ps(3, 5, 7);
	}
	AMX_STORE(0, 0, 0);
	AMX_STORE(1, 0, 1);
	AMX_STORE(2, 1, 0);
	AMX_STORE(3, 1, 1);
}

static void amx_1x2(const struct mm *m, const uint32_t *x, const uint32_t *w,
		    float *acc)
{
	const size_t acc_bytes = m->acc_stride * sizeof(*acc);
	const size_t x_bytes = m->x_stride * sizeof(*x);

	AMX_START(0, 0, 0);
	AMX_START(1, 0, 1);
	for (uint32_t j = 0; j < m->n_k; j += GROUP) {
		const uint32_t *wj = w + j * LANES;

		for (uint32_t i = 0; i < GROUP && m->stream; i++) {
			__builtin_prefetch(wj + AHEAD + i * LANES);
			__builtin_prefetch(wj + AHEAD + i * LANES +
					   m->panel_words);
		}
		_tile_loadd(4, x + j, x_bytes);
		_tile_loadd(6, wj, 64);
		_tile_loadd(7, wj + m->panel_words, 64);
		_tile_dpbf16ps(0, 4, 6);
		_tile_dpbf16ps(1, 4, 7);
	}
	AMX_STORE(0, 0, 0);
	AMX_STORE(1, 0, 1);
}

static void amx_1x1(const struct mm *m, const uint32_t *x, const uint32_t *w,
		    float *acc)
{
	const size_t acc_bytes = m->acc_stride * sizeof(*acc);
	const size_t x_bytes = m->x_stride * sizeof(*x);

	AMX_START(0, 0, 0);
	for (uint32_t j = 0; j < m->n_k; j += GROUP) {
		_tile_loadd(4, x + j, x_bytes);
		_tile_loadd(6, w + j * LANES, 64);
		_tile_dpbf16ps(0, 4, 6);
	}
	AMX_STORE(0, 0, 0);
}

static void mm_bf16(const struct mm *m)
{
	const uint32_t n_tiles = (m->n_rows + AMX_ROWS - 1) / AMX_ROWS;

	for (uint32_t p = 0; p < m->n_panels; p += 2) {
		const int one = m->n_panels - p == 1;
		const uint32_t *w = m->w + p * m->panel_words;

		for (uint32_t t = 0, n; t < n_tiles; t += n) {
			const size_t row = t * AMX_ROWS;
			const uint32_t *x = m->x + row * m->x_stride;
			float *acc = m->acc + row * m->acc_stride + p * LANES;

			if (m->fetch)
				fetch_some(m->fetch);
			n = !one && n_tiles - t > 1 ? 2 : 1;
			if (one)
				amx_1x1(m, x, w, acc);
			else if (n == 2)
				amx_2x2(m, x, w, acc);
			else
				amx_1x2(m, x, w, acc);
		}
	}
}

#endif
