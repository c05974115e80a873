/*
 * cpu_linear.h - linear layers of one instruction set; see mm.h
 *
 * Rows in tiles of ROW_TILE and k in blocks of K_BLOCK words: a pair of panels
 * of a block stays in L1, the packed rows and a chunk of OUT_PANELS panels in
 * L2. Sums stay in acc over all blocks of k, so that y is written once.
 */
#ifndef KERNELS_CPU_LINEAR_H
#define KERNELS_CPU_LINEAR_H

#include "kernels/mm.h"

/* a multiple of MM_SUB; AMX needs pairs of tiles: two sums hide no latency */
#define ROW_TILE   (MM_SUB == 16u ? 64u : 48u)
#define K_BLOCK	   256u /* words: 512 k of bf16 */
#define OUT_PANELS 8u

struct linear_tile {
	const struct kern_linear *a;
	uint32_t row, n_rows, panel, n_panels;
	uint32_t x[ROW_TILE * K_BLOCK * MM_X_WORDS];
	float acc[ROW_TILE * OUT_PANELS * LANES];
} __attribute__((aligned(64)));

/* Words [k, k + n) of the rows of the tile, as mm_bf16() wants them. */
static void linear_pack(struct linear_tile *t, uint32_t k, uint32_t n)
{
	const uint16_t *x = (const uint16_t *)t->a->x;
	const uint32_t n_in = t->a->w->n_in;

	for (uint32_t r = 0; r < t->n_rows; r++) {
		const uint16_t *src = x + (t->row + r) * t->a->x_stride;
		uint32_t *dst = t->x + r * K_BLOCK * MM_X_WORDS;

		for (uint32_t j = k; j < k + n; j += GROUP) {
			const uint32_t left = n_in - 2 * j;
			uint16_t last[2 * GROUP] = { 0 };

			if (left >= 2 * GROUP) {
				mm_pack_x(src + 2 * j, dst);
			} else {
				memcpy(last, src + 2 * j, 2 * left);
				mm_pack_x(last, dst);
			}
			dst += GROUP * MM_X_WORDS;
		}
	}
}

static void linear_put(const struct linear_tile *t)
{
	const struct kern_linear *a = t->a;
	const uint32_t out = t->panel * LANES;
	const uint32_t left = a->out_to - out;
	const uint32_t n = left < t->n_panels * LANES ? left
						      : t->n_panels * LANES;

	for (uint32_t r = 0; r < t->n_rows; r++) {
		float *y = a->y + (t->row + r) * a->y_stride + out;
		const float *s = t->acc + r * OUT_PANELS * LANES;

		if (a->flags & KERN_LINEAR_ADD)
			for (uint32_t i = 0; i < n; i++)
				y[i] += s[i];
		else
			memcpy(y, s, n * sizeof(*y));
	}
}

static void linear_tile(struct linear_tile *t)
{
	const struct kern_weight *w = t->a->w;
	const uint32_t bf16 = w->math == KERN_BF16;
	const uint32_t n_words = (uint32_t)(w->panel_words / LANES);
	struct mm m = { .x = t->x,
			.x_stride = K_BLOCK * MM_X_WORDS,
			.panel_words = w->panel_words,
			.acc = t->acc,
			.acc_stride = OUT_PANELS * LANES,
			.stream = t->a->n_rows <= MM_SUB,
			.n_rows = t->n_rows,
			.n_panels = t->n_panels };

	for (uint32_t k = 0; k < n_words; k += K_BLOCK) {
		m.n_k = n_words - k < K_BLOCK ? n_words - k : K_BLOCK;
		m.w = w->data + t->panel * w->panel_words + (size_t)k * LANES;
		if (bf16) {
			linear_pack(t, k, m.n_k);
			mm_bf16(&m);
		} else {
			m.x = (const uint32_t *)t->a->x +
			      t->row * t->a->x_stride + k;
			m.x_stride = t->a->x_stride;
			mm_f32(&m);
		}
		m.add = 1;
	}
	linear_put(t);
}

static void linear(const struct kern_linear *a)
{
	const uint32_t end = (a->out_to + LANES - 1) / LANES;
	const unsigned int mxcsr = kern_set_mxcsr(a->w->math);
	const int bf16 = a->w->math == KERN_BF16;
	struct linear_tile t;

	t.a = a;
	if (bf16)
		mm_begin();
	for (uint32_t p = a->out_from / LANES; p < end; p += OUT_PANELS)
		for (uint32_t r = 0; r < a->n_rows; r += ROW_TILE) {
			t.row = r;
			t.n_rows = a->n_rows - r < ROW_TILE ? a->n_rows - r
							    : ROW_TILE;
			t.panel = p;
			t.n_panels = end - p < OUT_PANELS ? end - p
							  : OUT_PANELS;
			linear_tile(&t);
		}
	if (bf16)
		mm_end();
	kern_restore_mxcsr(mxcsr);
}

#endif
