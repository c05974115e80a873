/*
 * cpu.h - inside kernels: packed weights, and one table of functions per
 * instruction set
 *
 * Panels: KERN_LANES outputs side by side.
 *   F32   [n_out/16][n_in][16] f32
 *   BF16  [n_out/16][pairs][16] words of two bf16, see enum cpu_order
 * Missing outputs, and k up to whole groups of 16 pairs, are zeros.
 */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H

#include <math.h>
#include <string.h>
#include "kernels/kern.h"

/* Which k of a group the low and the high half of a word hold. */
enum cpu_order {
	CPU_ORDER_NEXT = 0, /* word j: 2j, 2j + 1 */
	CPU_ORDER_SKIP = 1, /* words j of four k: 2, 0; 3, 1 */
};

/* Half (0 low, 1 high) and word of bf16 k: where it is in a panel. */
static inline uint32_t cpu_pair_word(enum cpu_order order, uint32_t k)
{
	return order == CPU_ORDER_NEXT ? k / 2 : k / 4 * 2 + k % 2;
}
static inline uint32_t cpu_pair_half(enum cpu_order order, uint32_t k)
{
	return order == CPU_ORDER_NEXT ? k % 2 : k % 4 < 2;
}

struct kern_weight {
	enum kern_type math;
	enum cpu_order order;
	uint32_t n_out, n_in;
	uint32_t n_panels;
	size_t panel_words; /* 4-byte words of a panel */
	uint32_t *data; /* 64-byte aligned */
};

struct cpu_ops {
	enum cpu_order order; /* of the weights that linear takes */
	void (*linear)(const struct kern_linear *a);
	void (*attn)(const struct kern_attn *a);
	void (*attn_merge)(const struct kern_attn *a,
			   const struct kern_attn *from, uint32_t n_tiles);
	void (*rmsnorm)(const float *x, const float *w, float *y,
			uint32_t n_rows, uint32_t n, float eps);
	void (*swiglu)(const float *gate, const float *up, float *y, size_t n);
	void (*add)(const float *x, float *y, size_t n);
	void (*exps)(const float *x, float max, float t, float *y, size_t n);
	void (*finish)(float *x, float l, size_t n);
	void (*from_bf16)(const uint16_t *src, float *dst, size_t n);
	void (*to_bf16)(const float *src, uint16_t *dst, size_t n);
	void (*sincos)(double at, const double *f, float *sn, float *cs,
		       uint32_t n);
	void (*rotate)(float *row, const float *sn, const float *cs,
		       uint32_t half, int halves, uint32_t n_heads,
		       uint32_t head_dim);
};

extern const struct cpu_ops cpu_scalar_ops;
extern const struct cpu_ops cpu_avx2_ops;
extern const struct cpu_ops cpu_avx512_ops;
extern const struct cpu_ops cpu_avx512bf16_ops;
extern const struct cpu_ops cpu_amx_ops;

/* The table in use; see kern_init(). */
const struct cpu_ops *kern_ops(void);

/* Constants of exp(x), x <= 0: see kern_exp(). */
#define EXP_LOG2E  1.44269504088896341f
#define EXP_MAGIC  12582912.0f /* 1.5 * 2^23: rounds to an integer */
#define EXP_LN2_HI 0.693145751953125f
#define EXP_LN2_LO 1.42860677309e-6f
#define EXP_LOWEST (-87.0f) /* below: 0 */
#define EXP_C6	   1.38888889e-3f
#define EXP_C5	   8.33333333e-3f
#define EXP_C4	   4.16666667e-2f
#define EXP_C3	   1.66666667e-1f
#define EXP_C2	   0.5f

/* ln x, x >= 1: exponent and the series of atanh. */
static inline float kern_log_ge1(float x)
{
	int e;
	float m = frexpf(x, &e), s, s2, sum = 0;

	if (m < 0.70710678f) {
		m *= 2;
		e--;
	}
	s = (m - 1) / (m + 1);
	s2 = s * s;
	for (int k = 11; k >= 1; k -= 2)
		sum = sum * s2 + 1.0f / (float)k;
	return 2 * s * sum + (float)e * 0.69314718f;
}

/* a if so, else b, both computed: loops without branches become vectors. */
static inline float kern_pick(int so, float a, float b)
{
	const uint32_t mask = 0 - (uint32_t)so;
	uint32_t ia, ib;

	memcpy(&ia, &a, sizeof(ia));
	memcpy(&ib, &b, sizeof(ib));
	ib = (ia & mask) | (ib & ~mask);
	memcpy(&b, &ib, sizeof(b));
	return b;
}

/*
 * exp(x) for x <= 0: 2^n p(f), n = x log2 e to an integer, |f| <= ln 2 / 2, p
 * the Taylor polynomial of degree 6, all FMAs; 0 below -87. Rel. error 3e-7.
 */
static inline float kern_exp(float x)
{
	const float t = __builtin_fmaf(x, EXP_LOG2E, EXP_MAGIC);
	const float n = t - EXP_MAGIC, magic = EXP_MAGIC;
	uint32_t it, im;
	float f, p, pow2;

	f = __builtin_fmaf(n, -EXP_LN2_HI, x);
	f = __builtin_fmaf(n, -EXP_LN2_LO, f);
	p = __builtin_fmaf(EXP_C6, f, EXP_C5);
	p = __builtin_fmaf(p, f, EXP_C4);
	p = __builtin_fmaf(p, f, EXP_C3);
	p = __builtin_fmaf(p, f, EXP_C2);
	p = __builtin_fmaf(p, f, 1.0f);
	p = __builtin_fmaf(p, f, 1.0f);
	memcpy(&it, &t, sizeof(it));
	memcpy(&im, &magic, sizeof(im));
	it = (it - im + 127) << 23;
	memcpy(&pow2, &it, sizeof(pow2));
	return kern_pick(x < EXP_LOWEST, 0.0f, p * pow2);
}

/* Nearest even; NaN stays NaN. */
static inline uint16_t kern_bf16(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof(u));
	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float kern_from_bf16(uint16_t x)
{
	const uint32_t u = (uint32_t)x << 16;
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

/* Tokens [t0, t0 + n) of s, which has places of its own, that the row at q_pos sees. */
static inline int64_t kern_apart_seen(const struct kern_span *s, uint32_t t0,
				      uint32_t n, int64_t q_pos)
{
	uint32_t i = 0;

	while (i < n && s->pos + (int64_t)s->at[t0 + i] <= q_pos)
		i++;
	return i;
}

/* Tokens of the tile at t0 of s that the row at q_pos sees, one bit each. */
static inline uint32_t kern_tile_mask(const struct kern_span *s, uint32_t t0,
				      int64_t q_pos)
{
	const uint32_t left = s->n_tokens - t0;
	uint32_t n = left < KERN_KV_BLOCK ? left : KERN_KV_BLOCK;
	const int64_t sees = s->at ? kern_apart_seen(s, t0, n, q_pos)
				   : q_pos - (s->pos + (int64_t)t0) + 1;
	uint32_t mask;

	if (sees <= 0)
		return 0;
	if (sees < (int64_t)n)
		n = (uint32_t)sees;
	mask = n == 32 ? UINT32_MAX : (1u << n) - 1;
	if (s->skip)
		mask &= ~(uint32_t)(s->skip[t0 / 64] >> (t0 % 64));
	return mask;
}
/* All rows from this position on see the whole tile at t0 of s. */
static inline int64_t kern_tile_last(const struct kern_span *s, uint32_t t0)
{
	const uint32_t left = s->n_tokens - t0;

	if (!s->at)
		return s->pos + (int64_t)t0 + KERN_KV_BLOCK - 1;
	return s->pos +
	       s->at[t0 + (left < KERN_KV_BLOCK ? left : KERN_KV_BLOCK) - 1];
}
/* Where token t0 (a tile's first) of kv head h begins, in K or V. */
static inline const char *kern_tile_addr(const struct kern_attn *a,
					 const struct kern_span *s,
					 const void *base, uint32_t t0,
					 uint32_t h)
{
	const size_t row = a->head_dim * kern_type_bytes(a->type);

	return (const char *)base + t0 / s->page_tokens * s->page_bytes +
	       h * s->head_bytes + t0 % s->page_tokens * row;
}

/*
 * Rounding to nearest; denormals are zero for bf16, numbers for f32 and
 * f16, whatever the caller's state. Returns that, for kern_restore_mxcsr().
 */
unsigned int kern_set_mxcsr(enum kern_type math);
void kern_restore_mxcsr(unsigned int mxcsr);

#endif
