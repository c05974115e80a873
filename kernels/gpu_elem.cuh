/*
 * gpu_elem.cuh - the kernels that are not attention; part of gpu.cu
 */

/* ---- append -------------------------------------------------------------------- */

/* Of element i, of all kv heads', of token t. */
static __device__ size_t row_offset(const struct gpu_span *s, uint32_t t,
				    uint32_t i, uint32_t head_dim, uint32_t es)
{
	return tile_offset(s, t, i / head_dim) +
	       (size_t)(t % s->page_tokens) * span_row_bytes(s, head_dim * es) +
	       (size_t)(i % head_dim) * es;
}

/* A block has a row. */
#define APPEND(name, type, convert) \
	KERNEL(name, struct gpu_append) \
	{ \
		const uint32_t *to = (const uint32_t *)a.to + 2 * blockIdx.x; \
		const struct gpu_span *s = \
			(const struct gpu_span *)a.spans + to[0]; \
		const uint32_t n = a.n_kv_heads * a.head_dim, t = to[1]; \
		const float *k = (const float *)a.k + (size_t)blockIdx.x * n; \
		const float *v = (const float *)a.v + (size_t)blockIdx.x * n; \
\
		for (uint32_t i = threadIdx.x; i < n; i += GPU_THREADS) { \
			const size_t off = \
				row_offset(s, t, i, a.head_dim, sizeof(type)); \
\
			*(type *)((char *)s->k + off) = convert(k[i]); \
			*(type *)((char *)s->v + off) = convert(v[i]); \
		} \
	}
#define SAME(x) (x)
APPEND(append_bf16, uint16_t, to_bf16)
APPEND(append_f16, uint16_t, to_f16)
APPEND(append_f32, float, SAME)

/* ---- the rest of a layer --------------------------------------------------------- */

/* Sum of x over the block, for thread 0: by halves. */
static __device__ float block_sum(float *sh, float x)
{
	sh[threadIdx.x] = x;
	__syncthreads();
	for (uint32_t n = GPU_THREADS / 2; n; n /= 2) {
		if (threadIdx.x < n)
			sh[threadIdx.x] += sh[threadIdx.x + n];
		__syncthreads();
	}
	return sh[0];
}

/* A block has a row; threads, then lanes by halves. */
KERNEL(rmsnorm, struct gpu_rmsnorm)
{
	__shared__ float sh[GPU_THREADS];
	const float *x = (const float *)a.x + (size_t)blockIdx.x * a.n;
	const float *w = (const float *)a.w;
	float *y = (float *)a.y + (size_t)blockIdx.x * a.n;
	float sum = 0, f;

	for (uint32_t i = threadIdx.x; i < a.n; i += GPU_THREADS)
		sum = fmaf(x[i], x[i], sum);
	sum = block_sum(sh, sum);
	f = 1.0f / sqrtf(sum / (float)a.n + a.eps);
	for (uint32_t i = threadIdx.x; i < a.n; i += GPU_THREADS)
		y[i] = x[i] * f * w[i];
}

/* cos and sin of pair j of a row at pos. Angles in f64: positions are long. */
static __device__ void rope_angle(const struct gpu_rope *a, double pos,
				  uint32_t j, float *cs)
{
	const double angle = pos * pow((double)a->theta, -2.0 * j / a->n_rot);

	cs[0] = (float)cos(angle);
	cs[1] = (float)sin(angle);
}

/* A block has a row at one of its positions: angles first, then all heads. */
#define ROPE(name, type, convert) \
	KERNEL(name, struct gpu_rope) \
	{ \
		__shared__ float cs[GPU_THREADS][2]; \
		const uint32_t row = blockIdx.x % a.n_rows; \
		const uint64_t v = blockIdx.x / a.n_rows; \
		const int64_t at = \
			((const int64_t *)a.pos)[v * a.pos_stride + row]; \
		const double pos = (double)at * (double)a.scale; \
		const size_t n = (size_t)a.n_heads * a.head_dim; \
		const float *src = (const float *)a.src + row * n; \
		type *dst = (type *)a.dst + blockIdx.x * n; \
		const uint32_t half = a.n_rot / 2; \
		const uint32_t n_rest = a.head_dim - a.n_rot; \
\
		for (uint32_t j0 = 0; j0 < half; j0 += GPU_THREADS) { \
			const uint32_t n_j = half - j0 < GPU_THREADS \
						     ? half - j0 \
						     : GPU_THREADS; \
\
			if (threadIdx.x < n_j) \
				rope_angle(&a, pos, j0 + threadIdx.x, \
					   cs[threadIdx.x]); \
			__syncthreads(); \
			for (uint32_t i = threadIdx.x; i < a.n_heads * n_j; \
			     i += GPU_THREADS) { \
				const uint32_t k = i % n_j, j = j0 + k; \
				const uint32_t h = i / n_j * a.head_dim; \
				const uint32_t p = \
					h + (a.kind == 1 ? 2 * j : j); \
				const uint32_t q = a.kind == 1 ? p + 1 \
							       : p + half; \
				const float x = src[p], y = src[q]; \
\
				dst[p] = convert(x * cs[k][0] - y * cs[k][1]); \
				dst[q] = convert(x * cs[k][1] + y * cs[k][0]); \
			} \
			__syncthreads(); \
		} \
		for (uint32_t i = threadIdx.x; i < a.n_heads * n_rest; \
		     i += GPU_THREADS) { \
			const uint32_t k = i / n_rest * a.head_dim + a.n_rot + \
					   i % n_rest; \
\
			dst[k] = convert(src[k]); \
		} \
	}
ROPE(rope_f32, float, SAME)
ROPE(rope_f16, uint16_t, to_f16)
ROPE(rope_bf16, uint16_t, to_bf16)

KERNEL(swiglu, struct gpu_swiglu)
{
	const uint64_t step = (uint64_t)gridDim.x * GPU_THREADS;

	for (uint64_t i = (uint64_t)blockIdx.x * GPU_THREADS + threadIdx.x;
	     i < a.n; i += step) {
		const float g = ((const float *)a.gate)[i];

		((float *)a.y)[i] =
			g / (1.0f + expf(-g)) * ((const float *)a.up)[i];
	}
}

/* Several loads in flight for each thread; out keeps them from being left out. */
KERNEL(stream_read, struct gpu_read)
{
	const uint4 *src = (const uint4 *)a.src;
	const uint64_t step = (uint64_t)gridDim.x * GPU_THREADS;
	const uint64_t at = (uint64_t)blockIdx.x * GPU_THREADS + threadIdx.x;
	uint32_t x = 0;

#pragma unroll 8
	for (uint64_t i = at; i < a.n_vecs; i += step) {
		const uint4 w = src[i];

		x ^= w.x ^ w.y ^ w.z ^ w.w;
	}
	((uint32_t *)a.out)[at] = x;
}

/* ---- rows and elements ------------------------------------------------------------ */

KERNEL(add, struct gpu_add)
{
	const uint64_t step = (uint64_t)gridDim.x * GPU_THREADS;

	for (uint64_t i = (uint64_t)blockIdx.x * GPU_THREADS + threadIdx.x;
	     i < a.n; i += step)
		((float *)a.y)[i] += ((const float *)a.x)[i];
}

#define WIDEN_BF16(x) FROM_BITS((uint32_t)(x) << 16)

#define CONVERT(name, from, to, convert) \
	KERNEL(name, struct gpu_convert) \
	{ \
		const uint64_t step = (uint64_t)gridDim.x * GPU_THREADS; \
\
		for (uint64_t i = \
			     (uint64_t)blockIdx.x * GPU_THREADS + threadIdx.x; \
		     i < a.n; i += step) \
			((to *)a.dst)[i] = convert(((const from *)a.src)[i]); \
	}
CONVERT(from_f32_to_f32, float, float, SAME)
CONVERT(from_f32_to_f16, float, uint16_t, to_f16)
CONVERT(from_f32_to_bf16, float, uint16_t, to_bf16)
CONVERT(to_f32_from_f32, float, float, SAME)
CONVERT(to_f32_from_f16, uint16_t, float, from_f16)
CONVERT(to_f32_from_bf16, uint16_t, float, WIDEN_BF16)

/* A block has a row. */
#define GATHER(name, type, convert) \
	KERNEL(name, struct gpu_gather) \
	{ \
		const uint32_t row = ((const uint32_t *)a.idx)[blockIdx.x]; \
		const type *x = (const type *)a.table + (size_t)row * a.n; \
		float *y = (float *)a.y + (size_t)blockIdx.x * a.n; \
\
		for (uint32_t i = threadIdx.x; i < a.n; i += GPU_THREADS) \
			y[i] = convert(x[i]); \
	}
GATHER(gather_f32, float, SAME)
GATHER(gather_f16, uint16_t, from_f16)
GATHER(gather_bf16, uint16_t, WIDEN_BF16)

/* ---- pages -------------------------------------------------------------------------- */

/* A block has a head of a run. */
KERNEL(move_runs, struct gpu_move)
{
	const uint64_t *run = (const uint64_t *)a.runs + 2 * blockIdx.x;
	const uint4 *src =
		(const uint4 *)(run[0] + blockIdx.y * a.src_head_bytes);
	uint4 *dst = (uint4 *)(run[1] + blockIdx.y * a.dst_head_bytes);

	for (uint64_t i = threadIdx.x; i < a.n_bytes / 16; i += GPU_THREADS)
		dst[i] = src[i];
}

/* A block has a row. */
#define DEVIATION(name, type, convert) \
	KERNEL(name, struct gpu_deviation) \
	{ \
		__shared__ float sh[GPU_THREADS]; \
		const uint32_t *at = (const uint32_t *)a.at + 2 * blockIdx.x; \
		const struct gpu_span *s = \
			(const struct gpu_span *)a.spans + at[0]; \
		const uint32_t n = a.n_kv_heads * a.head_dim, t = at[1]; \
		const float *v = (const float *)a.v + (size_t)blockIdx.x * n; \
		const char *page = (const char *)s->v; \
		float sum = 0; \
\
		for (uint32_t i = threadIdx.x; i < n; i += GPU_THREADS) { \
			const size_t off = \
				row_offset(s, t, i, a.head_dim, sizeof(type)); \
			const float d = \
				v[i] - convert(*(const type *)(page + off)); \
\
			sum = fmaf(d, d, sum); \
		} \
		sum = block_sum(sh, sum); \
		if (!threadIdx.x) \
			((float *)a.dev)[blockIdx.x] = sum; \
	}
DEVIATION(deviation_f32, float, SAME)
DEVIATION(deviation_f16, uint16_t, from_f16)
DEVIATION(deviation_bf16, uint16_t, WIDEN_BF16)

/* ---- products in f32, for checks ------------------------------------------------------ */

/* A warp has an output of a row; lanes, then halves. */
KERNEL(gemm_f32, struct gpu_gemm)
{
	const uint32_t lane = threadIdx.x % 32;
	const uint32_t o = blockIdx.x * GPU_WARPS + threadIdx.x / 32;
	const float *x = (const float *)a.x + blockIdx.y * a.x_stride;
	const float *w = (const float *)a.w + (size_t)o * a.n_in;
	float *y = (float *)a.y + blockIdx.y * a.y_stride + o;
	float sum = 0;

	for (uint32_t i = lane; i < a.n_in && o < a.n_out; i += 32)
		sum = fmaf(x[i], w[i], sum);
#pragma unroll
	for (uint32_t n = 16; n; n /= 2)
		sum += __shfl_xor_sync(ALL_LANES, sum, n);
	if (!lane && o < a.n_out)
		*y = a.flags & GPU_GEMM_ADD ? *y + sum : sum;
}
