/*
 * ref.h - plain scalar C: the definition of correct
 *
 * Same arguments and same bytes as the functions of kern.h of the same name.
 * The elementwise ones have one source for all CPUs (cpu_elem.h).
 */
#ifndef KERNELS_REF_H
#define KERNELS_REF_H

#include "kernels/kern.h"

void ref_linear(const struct kern_linear *a);
void ref_attn(const struct kern_attn *a);
void ref_attn_merge(const struct kern_attn *a, const struct kern_attn *from,
		    uint32_t n_tiles);
/* exp(x), x <= 0; see kern_exp(). */
float ref_exp(float x);
uint16_t ref_bf16(float x); /* nearest even; NaN stays NaN */
float ref_from_bf16(uint16_t x);
/* Dot product of n pairs under the bf16 rule, added to acc. */
float ref_dot_bf16(const uint16_t *x, const uint16_t *w, uint32_t n, float acc);

#endif
