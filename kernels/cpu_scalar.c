/*
 * cpu_scalar.c - the operations in plain C: the definitions of ref.h
 */
#include "kernels/cpu_elem.h"
#include "kernels/ref.h"

const struct cpu_ops cpu_scalar_ops = {
	.linear = ref_linear,
	.attn = ref_attn,
	.attn_merge = ref_attn_merge,
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
