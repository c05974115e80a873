/*
 * cpu_avx2.c - the operations on AVX2 and FMA
 */
#define MM_R	 3u /* rows and panels of the innermost block */
#define MM_P	 1u
#define MM_TIGHT /* sixteen registers: see fma_again() */
#include "kernels/vec_avx2.h"
#include "kernels/mm_fma.h"
#include "kernels/cpu_linear.h"
#include "kernels/cpu_attn.h"
#include "kernels/cpu_elem.h"

const struct cpu_ops cpu_avx2_ops = {
	.order = MM_ORDER,
	.linear = linear,
	.attn = attn,
	.attn_merge = attn_merge,
	.rmsnorm = elem_rmsnorm,
	.swiglu = elem_swiglu,
	.add = elem_add,
	.exps = elem_exps,
	.finish = elem_finish,
	.from_bf16 = elem_from_bf16,
	.to_bf16 = elem_to_bf16,
	.sincos = elem_sincos,
	.rotate = elem_rotate,
};
