/*
 * gpu_attn.cuh - attention of parts in f32, for checks, of one head size
 *
 * Included by gpu.cu with ATTN_NAME, HEAD_DIM, LOAD8 and ELEM_BYTES set.
 *
 * A block has one part (512 tokens) of one row, one kv head and up to 8 of the query
 * heads that share it. A warp has every fourth tile of 32 tokens and a state of its
 * own, so the loop has no barrier of the block. In a warp 8 dimensions are a lane's,
 * LANES lanes a token's; the warp reads ROWS tokens at once, 16 bytes a lane.
 * Partial dot products of 8 heads are summed over lanes by exchanging halves: after
 * three steps a lane has one head. Tokens that a row does not see are not read.
 *
 * Order, and with it the bits: of the part alone. Tiles of a warp ascending, warps
 * 0 to 3, then parts ascending (attn_merge).
 */
#if HEAD_DIM <= 64
#define LANES 8
#elif HEAD_DIM <= 128
#define LANES 16
#else
#define LANES 32
#endif
#define ROWS (32 / LANES)

KERNEL(ATTN_NAME, struct gpu_attn)
{
	__shared__ float p_sh[GPU_WARPS][GPU_TILE][GPU_HEADS];
	__shared__ float o_sh[GPU_WARPS][GPU_HEADS][HEAD_DIM];
	__shared__ float m_sh[GPU_WARPS][GPU_HEADS], l_sh[GPU_WARPS][GPU_HEADS];
	const uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
	const uint32_t sub = lane / LANES, at = lane % LANES, d0 = at * 8;
	const struct gpu_part part =
		((const struct gpu_part *)a.parts)[blockIdx.x];
	const struct gpu_span *const first =
		(const struct gpu_span *)a.spans + part.span;
	const int64_t pos = ((const struct gpu_row *)a.rows)[part.row].pos;
	const uint32_t group = a.n_heads / a.n_kv_heads;
	const uint32_t h0 = blockIdx.y * group + blockIdx.z * GPU_HEADS;
	const uint32_t left = group - blockIdx.z * GPU_HEADS;
	const uint32_t row = span_row_bytes(first, HEAD_DIM * ELEM_BYTES);
	const uint32_t n_h = left < GPU_HEADS ? left : GPU_HEADS;
	const int active = d0 < HEAD_DIM;
	float q[GPU_HEADS][8], o[GPU_HEADS][8], m[GPU_HEADS], l[GPU_HEADS];

#pragma unroll
	for (uint32_t h = 0; h < GPU_HEADS; h++) {
		m[h] = -INFINITY;
		l[h] = 0;
#pragma unroll
		for (uint32_t d = 0; d < 8; d++)
			q[h][d] = o[h][d] = 0;
		if (h < n_h && active)
			LOAD8((const char *)a.q +
				      ((size_t)first->q_variant *
					       a.q_variant_elems +
				       ((size_t)part.row * a.n_heads + h0 + h) *
					       HEAD_DIM +
				       d0) * ELEM_BYTES,
			      q[h]);
	}
	for (uint32_t j = warp * GPU_TILE; j < GPU_SPLIT_TOKENS;
	     j += GPU_WARPS * GPU_TILE) {
		const struct gpu_half tile = half_at(first, part.t0 + j);
		const uint32_t mask = tile_mask(tile.s, tile.t, pos);
		const size_t off =
			tile_offset(tile.s, tile.t, blockIdx.y) +
			(size_t)(tile.t % tile.s->page_tokens) * row +
			(size_t)d0 * ELEM_BYTES;
		const char *k = (const char *)tile.s->k + off;
		const char *v = (const char *)tile.s->v + off;

		if (!mask)
			continue; /* the whole warp */
#pragma unroll 4
		for (uint32_t t = sub; t < GPU_TILE; t += ROWS) {
			float dot[GPU_HEADS] = { 0 }, x[8];

			if ((mask >> t & 1) && active) {
				LOAD8(k + (size_t)t * row, x);
#pragma unroll
				for (uint32_t h = 0; h < GPU_HEADS; h++)
#pragma unroll
					for (uint32_t d = 0; d < 8; d++)
						dot[h] = fmaf(q[h][d], x[d],
							      dot[h]);
			}
			halve(dot, at, LANES);
			if (at < GPU_HEADS)
				p_sh[warp][t][head_of(at)] = dot[0];
		}
		__syncwarp();
		tile_softmax(p_sh[warp], mask >> lane & 1, lane, a.scale, m, l,
			     o);
		__syncwarp();
#pragma unroll 4
		for (uint32_t t = sub; t < GPU_TILE; t += ROWS) {
			float x[8];

			if (!(mask >> t & 1) || !active)
				continue;
			LOAD8(v + (size_t)t * row, x);
#pragma unroll
			for (uint32_t h = 0; h < GPU_HEADS; h++) {
				const float p = p_sh[warp][t][h];

#pragma unroll
				for (uint32_t d = 0; d < 8; d++)
					o[h][d] = fmaf(p, x[d], o[h][d]);
			}
		}
		__syncwarp();
	}
	/* tokens of one warp that lie in different lanes */
#pragma unroll
	for (uint32_t h = 0; h < GPU_HEADS; h++) {
#pragma unroll
		for (uint32_t d = 0; d < 8; d++) {
#pragma unroll
			for (uint32_t x = LANES; x < 32; x *= 2)
				o[h][d] +=
					__shfl_xor_sync(ALL_LANES, o[h][d], x);
			if (!sub && active)
				o_sh[warp][h][d0 + d] = o[h][d];
		}
		if (!lane) {
			m_sh[warp][h] = m[h];
			l_sh[warp][h] = l[h];
		}
	}
	__syncthreads();
	for (uint32_t i = tid; i < n_h * HEAD_DIM; i += GPU_THREADS) {
		const uint32_t h = i / HEAD_DIM, d = i % HEAD_DIM;

		merge_warps(&a, (size_t)blockIdx.x * a.n_heads + h0 + h, d,
			    &o_sh[0][h][d], GPU_HEADS * HEAD_DIM, &m_sh[0][h],
			    &l_sh[0][h]);
	}
}

#undef LANES
#undef ROWS
#undef ATTN_NAME
#undef HEAD_DIM
