/*
 * gpu_join.cuh - rows that see tokens in several ways: their queries, and one result out of
 * several; part of gpu.cu. The order is kern_attn_join()'s (APE).
 */

/* A block has a row. */
KERNEL(pick_rows, struct gpu_pick)
{
	const uint32_t row = ((const uint32_t *)a.idx)[blockIdx.x];
	const float mul = ((const float *)a.mul)[blockIdx.x];
	const float *x = (const float *)a.x + (size_t)row * a.n;
	float *y = (float *)a.y + (size_t)blockIdx.x * a.n;

	for (uint32_t i = threadIdx.x; i < a.n; i += GPU_THREADS)
		y[i] = x[i] * mul;
}

/* Scaled ln sum exp of state at; -inf without tokens. */
static __device__ float state_lse(uint64_t m, uint64_t l, size_t at,
				  float scale)
{
	const float sum = ((const float *)l)[at];

	return sum > 0 ? scale * (((const float *)m)[at] + logf(sum))
		       : -INFINITY;
}

/* A block has a head of a row. One that sees nothing otherwise keeps its bits. */
KERNEL(attn_join, struct gpu_join)
{
	const struct gpu_joined row =
		((const struct gpu_joined *)a.rows)[blockIdx.x];
	const size_t at = (size_t)row.row * a.n_heads + blockIdx.y;
	const size_t more = (size_t)row.first * a.n_heads + blockIdx.y;
	const float *scale = (const float *)a.scale + row.first;
	const float own = state_lse(a.m, a.l, at, 1.0f);
	float *o = (float *)a.o + at * a.head_dim;
	float top = -INFINITY, sum;

	for (uint32_t i = 0; i < row.n; i++)
		top = fmaxf(top,
			    state_lse(a.more_m, a.more_l,
				      more + (size_t)i * a.n_heads, scale[i]));
	if (top == -INFINITY)
		return; /* the whole block */
	top = fmaxf(top, own);
	sum = weight_of(own, top);
	for (uint32_t d = threadIdx.x; d < a.head_dim; d += GPU_THREADS)
		o[d] *= sum;
	for (uint32_t i = 0; i < row.n; i++) {
		const size_t from = more + (size_t)i * a.n_heads;
		const float *x = (const float *)a.more_o + from * a.head_dim;
		const float e = weight_of(
			state_lse(a.more_m, a.more_l, from, scale[i]), top);

		sum += e;
		for (uint32_t d = threadIdx.x; d < a.head_dim; d += GPU_THREADS)
			o[d] = fmaf(x[d], e, o[d]);
	}
	for (uint32_t d = threadIdx.x; d < a.head_dim; d += GPU_THREADS)
		o[d] /= sum;
	__syncthreads(); /* everybody has read the old m and l */
	if (!threadIdx.x) {
		((float *)a.m)[at] = top;
		((float *)a.l)[at] = sum;
	}
}
