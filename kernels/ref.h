/*
 * ref.h - plain scalar C: the definition of correct
 *
 * Same arguments and same bytes as the functions of kern.h of the same name.
 */
#ifndef KERNELS_REF_H
#define KERNELS_REF_H

#include "kernels/kern.h"

void ref_linear(const struct kern_linear *a);
void ref_attn(const struct kern_attn *a);
/* exp(x) for x <= 0: 2^n * p(f), n = rint(x log2 e), |f| <= ln 2 / 2, p the Taylor
 * polynomial of degree 6 in Horner form, all FMAs; 0 below -87. Relative error 3e-7. */
float ref_exp(float x);
uint16_t ref_bf16(float x);	/* nearest even; NaN stays NaN */
float ref_from_bf16(uint16_t x);
/* Dot product of n pairs under the bf16 rule, added to acc. */
float ref_dot_bf16(const uint16_t *x, size_t x_stride, const uint16_t *w,
		   size_t w_stride, uint32_t n, float acc);

#endif
