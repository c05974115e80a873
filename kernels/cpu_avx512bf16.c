/*
 * cpu_avx512bf16.c - the operations on AVX-512 with VDPBF16PS
 */
#define MM_R 6u /* rows and panels of the innermost block */
#define MM_P 2u
#include "kernels/vec_avx512.h"
#include "kernels/mm_dp.h"
#include "kernels/cpu_linear.h"
#include "kernels/cpu_attn.h"
#include "kernels/cpu_elem.h"

const struct cpu_ops cpu_avx512bf16_ops = {
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
