/*
 * gpu_gemm.cuh - y = x W^T on tensor cores where there is no cuBLASLt
 *
 * Included by gpu.cu with ELEM (bf16 or f16) set. Blocks of 16 rows x 32 outputs (few
 * rows: decode) or 64 x 64. The sum of an element begins with zero and goes up the
 * inputs by 16, whatever the block: a row's bits depend on the row and the matrix. Inputs
 * are read 64 at a time, GEMM_STAGES deep; what lies outside is zero.
 */
#define MMA_ELEM CAT3(mma, _, ELEM)

/* n_rows x 64 elements from row from on, of a matrix of n x n_in, stride elements apart. */
INLINE void CAT3(gemm_load, _, ELEM)(unsigned char *to, uint64_t base,
				     uint64_t stride, uint32_t from,
				     uint32_t n_rows, uint32_t n, uint32_t k0,
				     uint32_t n_in)
{
	for (uint32_t c = threadIdx.x; c < n_rows * 8; c += GPU_THREADS) {
		const uint32_t r = c / 8, k = k0 + c % 8 * 8;
		const int in = from + r < n && k < n_in;
		const char *at = (const char *)base +
				 ((size_t)(from + r) * stride + k) * 2;

		cp_async(to + r * GEMM_PITCH + c % 8 * 16,
			 in ? at : (const char *)base, in ? 16 : 0);
	}
}

/* A warp's 16 rows and n_j times 8 outputs, 64 inputs. */
INLINE void CAT3(gemm_step, _, ELEM)(float (*s)[4], uint32_t n_j,
				     const unsigned char *x_sh,
				     const unsigned char *w_sh)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (uint32_t k = 0; k < 2; k++) {
		const unsigned char *row =
			x_sh + lane % 16 * GEMM_PITCH + 64 * k + lane / 16 * 16;
		uint32_t a[2][4], b[4];

		ldmatrix(a[0], row);
		ldmatrix(a[1], row + 32);
#pragma unroll
		for (uint32_t j = 0; j < n_j; j++) {
			ldmatrix(b, w_sh + (8 * j + lane % 8) * GEMM_PITCH +
					    64 * k + lane / 8 * 16);
			MMA_ELEM(s[j], a[0], b[0], b[1]);
			MMA_ELEM(s[j], a[1], b[2], b[3]);
		}
	}
}

/* rows x outs of a block, of which a warp has 16 rows from row0 and 8 * n_j outputs from
 * out0 on. */
INLINE void CAT3(gemm_block, _, ELEM)(const struct gpu_gemm *a, uint32_t rows,
				      uint32_t outs, uint32_t row0,
				      uint32_t out0, uint32_t n_j)
{
	DYN_SHARED(smem);
	const uint32_t r = blockIdx.y * rows, o = blockIdx.x * outs;
	const uint32_t stage = (rows + outs) * GEMM_PITCH;
	const uint32_t n = (a->n_in + 63) / 64, lane = threadIdx.x % 32;
	float s[8][4];

#pragma unroll
	for (uint32_t j = 0; j < 8; j++)
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			s[j][k] = 0;
	for (uint32_t i = 0; i < n + GEMM_STAGES - 1; i++) {
		unsigned char *to = smem + i % GEMM_STAGES * stage;

		if (i < n) {
			CAT3(gemm_load, _, ELEM)
			(to, a->x, a->x_stride, r, rows, a->n_rows, 64 * i,
			 a->n_in);
			CAT3(gemm_load, _, ELEM)
			(to + rows * GEMM_PITCH, a->w, a->n_in, o, outs,
			 a->n_out, 64 * i, a->n_in);
		}
		cp_commit();
		if (i + 1 < GEMM_STAGES)
			continue;
		cp_wait(GEMM_STAGES - 1);
		__syncthreads(); /* the oldest stage is there */
		to = smem + (i + 1) % GEMM_STAGES * stage;
		CAT3(gemm_step, _, ELEM)
		(s, n_j, to + row0 * GEMM_PITCH,
		 to + (rows + out0) * GEMM_PITCH);
		__syncthreads(); /* and is free */
	}
#pragma unroll
	for (uint32_t j = 0; j < n_j; j++)
#pragma unroll
		for (uint32_t k = 0; k < 4; k++) {
			const uint32_t row = r + row0 + lane / 4 + k / 2 * 8;
			const uint32_t out =
				o + out0 + 8 * j + lane % 4 * 2 + k % 2;
			float *y =
				(float *)a->y + (size_t)row * a->y_stride + out;

			if (row < a->n_rows && out < a->n_out)
				*y = a->flags & GPU_GEMM_ADD ? *y + s[j][k]
							     : s[j][k];
		}
}

KERNEL(CAT3(gemm_few, _, ELEM), struct gpu_gemm)
{
	CAT3(gemm_block, _, ELEM)(&a, 16, 32, 0, threadIdx.x / 32 * 8, 1);
}

KERNEL(CAT3(gemm_many, _, ELEM), struct gpu_gemm)
{
	CAT3(gemm_block, _, ELEM)(&a, 64, 64, threadIdx.x / 32 * 16, 0, 8);
}

#undef MMA_ELEM
