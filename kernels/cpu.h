/*
 * cpu.h - inside kernels: packed weights, and one table of functions per
 * instruction set
 *
 * Panels: KERN_LANES outputs side by side.
 *   F32   [n_out/16][n_in][16] f32
 *   BF16  [n_out/16][pairs][16] words, a pair of bf16 of even and odd k each
 * Missing outputs and a missing odd k are zeros. Sixteen rows more than needed
 * are never read.
 */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H

#include "kernels/kern.h"

struct kern_weight {
	enum kern_type math;
	uint32_t n_out, n_in;
	uint32_t n_panels;
	size_t panel_words; /* 4-byte words of a panel */
	uint32_t *data;	    /* 64-byte aligned */
};

struct cpu_ops {
	void (*linear)(const struct kern_linear *a);
	void (*attn)(const struct kern_attn *a);
};

extern const struct cpu_ops cpu_scalar_ops;
extern const struct cpu_ops avx2_ops;
extern const struct cpu_ops avx512_ops;

/* Constants of exp(x), x <= 0: see ref_exp(). */
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

/* Tokens of tile tile of s that the row at q_pos sees, one bit each. */
static inline uint32_t kern_tile_mask(const struct kern_span *s, uint32_t t0,
				      int64_t q_pos)
{
	const uint32_t left = s->n_tokens - t0;
	const int64_t sees = q_pos - (s->pos + (int64_t)t0) + 1;
	uint32_t n = left < KERN_KV_BLOCK ? left : KERN_KV_BLOCK;
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

/* MXCSR for the bf16 rule: denormals are zero both ways. */
unsigned int kern_flush_denormals(void);
void kern_restore_denormals(unsigned int mxcsr);

#endif
