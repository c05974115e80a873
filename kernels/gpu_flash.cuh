/*
 * gpu_flash.cuh - attention on tensor cores for one element type and head size: rows
 * in tiles (prefill), and parts of a row (decode)
 *
 * Included by gpu.cu with HEAD_DIM, M_TILES, TILES_NAME, PARTS_NAME and ELEM (bf16 or
 * f16) set; with WIDE_NAME instead of the names, the kernel is that of gpu_wgmma.cuh.
 *
 * The arithmetic of a row, the same in both: its list in order, each span, with those it
 * goes on in, cut into parts of GPU_SPLIT_TOKENS, a part into tiles of 64 tokens. In a part, from an empty
 * state: scores by mma over ascending dimensions, maximum, probabilities rounded to the
 * type, their sum by column in quads of lanes, values by mma over ascending tokens.
 * Parts are merged in order, one by one (merge of kern.h). Tiles that a row does not see
 * change nothing. So the bits depend on the list alone, whoever computes it with whom.
 *
 * PREFILL, a block: M_TILES * 64 rows, which are query heads of one kv head of tokens
 * that share a list; a warp has 16 * M_TILES of them and all tokens. K of the next tile
 * comes while values are summed, V while scores are.
 * DECODE, a block: a part and up to 16 query heads of one kv head; the warps share out
 * tokens for the scores and dimensions for the values; two tiles are under way.
 *
 * Rows of shared memory are 16 bytes longer than they are read: 8 of them lie in
 * different banks.
 */
#define PITCH	   (HEAD_DIM * 2 + 16) /* bytes */
#define CHUNKS	   (HEAD_DIM / 8) /* of 16 bytes in a row */
#define TILE_BYTES (FLASH_TILE * PITCH)
#define N_TILES	   (HEAD_DIM / 8) /* of 8 dimensions */
#define K_GROUPS   (HEAD_DIM / 32)
#ifdef WIDE_NAME
#define FN(name) CAT3(name, _wide_, CAT3(ELEM, _, HEAD_DIM))
#else
#define FN(name) CAT3(name, _, CAT3(ELEM, _, HEAD_DIM))
#endif
#define MMA_ELEM CAT3(mma, _, ELEM)
#define PACK	 CAT3(pack, _, ELEM)
#define LOW	 CAT3(low, _, ELEM)
#define HIGH	 CAT3(high, _, ELEM)

/* K or V (v) of a tile that somebody sees: tokens not in its mask are zero. */
INLINE void FN(load_tile)(unsigned char *to, const struct flash_cursor *c,
			  int v)
{
	const struct gpu_half *const h = c->half;
	const uint32_t row = span_row_bytes(h[0].s, HEAD_DIM * 2);
	const char *const base = (const char *)(v ? h[0].s->v : h[0].s->k);
	const char *const low =
		base + half_offset(h[0].s, h[0].t, blockIdx.y, row);
	const char *const high = (const char *)(v ? h[1].s->v : h[1].s->k) +
				 half_offset(h[1].s, h[1].t, blockIdx.y, row);

#pragma unroll
	for (uint32_t i = 0; i < FLASH_TILE * CHUNKS / GPU_THREADS; i++) {
		const uint32_t n = threadIdx.x + i * GPU_THREADS;
		const uint32_t t = n / CHUNKS, d = n % CHUNKS * 16;
		const int seen = c->mask >> t & 1;
		const char *from = (t < GPU_TILE ? low : high) +
				   (size_t)(t % GPU_TILE) * row + d;

		cp_async(to + t * PITCH + d, seen ? from : base, seen ? 16 : 0);
	}
}

/*
 * s[x][j] += Q K^T for n_x times 16 rows and n_j times 8 tokens, of dimensions from
 * 32 * kg on; q: fragments of these.
 */
INLINE void FN(scores)(float (*s)[8][4], uint32_t n_x, uint32_t n_j,
		       const uint32_t (*q)[2][4], const unsigned char *k_sh,
		       uint32_t kg)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (uint32_t j = 0; j < n_j; j++) {
		uint32_t b[4];

		ldmatrix(b, k_sh + (8 * j + lane % 8) * PITCH + 64 * kg +
				    lane / 8 * 16);
#pragma unroll
		for (uint32_t x = 0; x < n_x; x++)
			MMA_ELEM(s[x][j], q[x][0], b[0], b[1]);
#pragma unroll
		for (uint32_t x = 0; x < n_x; x++)
			MMA_ELEM(s[x][j], q[x][1], b[2], b[3]);
	}
}

/* o[x * n_j + j] += P V for n_x times 16 rows and n_j times 8 dimensions from d0 on. */
INLINE void FN(values)(float (*o)[4], uint32_t n_x, uint32_t n_j, uint32_t d0,
		       const uint32_t (*p)[4][4], const unsigned char *v_sh)
{
	const uint32_t lane = threadIdx.x % 32;

#pragma unroll
	for (uint32_t half = 0; half < 2; half++)
#pragma unroll
		for (uint32_t j = 0; j < n_j; j++) {
			uint32_t b[4];

			ldmatrix_trans(b, v_sh + (32 * half + lane) * PITCH +
						  2 * (d0 + 8 * j));
#pragma unroll
			for (uint32_t x = 0; x < n_x; x++)
				MMA_ELEM(o[x * n_j + j], p[x][2 * half], b[0],
					 b[1]);
#pragma unroll
			for (uint32_t x = 0; x < n_x; x++)
				MMA_ELEM(o[x * n_j + j], p[x][2 * half + 1],
					 b[2], b[3]);
		}
}

/*
 * Scores of 16 rows and 64 tokens, scaled, -inf where not seen, into fragments of
 * probabilities; m, l of rows g and g + 8 follow (l: this lane's columns), f is by what
 * their sums so far are to be multiplied.
 */
INLINE void FN(softmax)(const float (*s)[4], uint32_t (*p)[4], float *m,
			float *l, float *f)
{
	float neg[2], sum[2] = { 0, 0 };

#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		float top = m[i], base;

#pragma unroll
		for (uint32_t j = 0; j < 8; j++)
			top = fmaxf(top, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
		top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
		top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
		base = top == -INFINITY ? 0.0f : top;
		f[i] = exp2_fast((m[i] - base) * LOG2E);
		neg[i] = -base * LOG2E;
		m[i] = top;
	}
#pragma unroll
	for (uint32_t j = 0; j < 8; j++)
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			const uint32_t w = PACK(
				exp2_fast(fmaf(s[j][2 * i], LOG2E, neg[i])),
				exp2_fast(
					fmaf(s[j][2 * i + 1], LOG2E, neg[i])));

			sum[i] += LOW(w) + HIGH(w);
			p[j / 2][j % 2 * 2 + i] = w;
		}
#pragma unroll
	for (uint32_t i = 0; i < 2; i++)
		l[i] = fmaf(l[i], f[i], sum[i]);
}

/* ---- prefill ------------------------------------------------------------------ */

#define M_ROWS (64 * M_TILES)

/* Queries of the block's rows: row i is head i % n_h of token i / n_h. */
INLINE void FN(load_q)(unsigned char *q_sh, const struct gpu_attn *a,
		       const struct gpu_tile *tile, uint32_t variant,
		       uint32_t h0, uint32_t n_h)
{
	for (uint32_t c = threadIdx.x; c < M_ROWS * CHUNKS; c += GPU_THREADS) {
		const uint32_t row = c / CHUNKS, d = c % CHUNKS * 16;
		const uint32_t r = row / n_h, h = h0 + row % n_h;
		uint4 w = { 0, 0, 0, 0 };

		if (r < tile->n_rows)
			w = *(const uint4 *)((const char *)a->q +
					     ((size_t)variant *
						      a->q_variant_elems +
					      ((size_t)(tile->row + r) *
						       a->n_heads +
					       h) * HEAD_DIM) *
						     2 +
					     d);
		*(uint4 *)(q_sh + row * PITCH + d) = w;
	}
}

/* Part's sums of a warp's 16 * M_TILES rows; of 16, a lane has rows g and g + 8. */
struct FN(state) {
	float o[M_TILES * N_TILES][4], m[M_TILES][2], l[M_TILES][2];
};

INLINE void FN(clear)(struct FN(state) * st)
{
#pragma unroll
	for (uint32_t x = 0; x < M_TILES; x++)
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			st->m[x][i] = -INFINITY;
			st->l[x][i] = 0;
		}
#pragma unroll
	for (uint32_t j = 0; j < M_TILES * N_TILES; j++)
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			st->o[j][k] = 0;
}

/* Dimensions of a row into a->o: fmaf(part's, y, those before * x), over div. */
INLINE void FN(put_row)(float *to, const float (*o)[4], uint32_t i, float x,
			float y, int is_first, int finish, float div)
{
#pragma unroll
	for (uint32_t j = 0; j < N_TILES; j++)
#pragma unroll
		for (uint32_t k = 0; k < 2; k++) {
			const float was = is_first ? 0.0f : to[8 * j + k];
			float sum = fmaf(o[j][2 * i + k], y, was * x);

			if (finish)
				sum = div > 0 ? sum / div : 0.0f;
			to[8 * j + k] = sum;
		}
}

/* Add the part to the rows' states; last: there will be no other. */
INLINE void FN(flush)(struct FN(state) * st, const struct gpu_attn *a,
		      struct flash_row *row, int last)
{
	const int finish = last && a->flags & GPU_ATTN_FINISH;

#pragma unroll
	for (uint32_t x = 0; x < M_TILES; x++)
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			struct flash_row *const to = &row[16 * x + 8 * i];
			const float m = to->m, top = fmaxf(m, st->m[x][i]);
			const float f = weight_of(m, top);
			const float y = weight_of(st->m[x][i], top);
			const float sum =
				fmaf(quad_sum(st->l[x][i]), y, to->l * f);

			__syncwarp(); /* all four lanes have read */
			if (!(threadIdx.x % 4)) {
				to->m = top;
				to->l = sum;
			}
			if (to->at >= 0)
				FN(put_row)
			((float *)a->o + (size_t)to->at * HEAD_DIM +
				 threadIdx.x % 4 * 2,
			 &st->o[x * N_TILES], i, f, y, m == -INFINITY, finish,
			 sum);
		}
	FN(clear)(st);
}

#ifdef WIDE_NAME
#include "kernels/gpu_wgmma.cuh"
#else
/* Scores of all rows of a warp: s = Q K^T. */
INLINE void FN(all_scores)(float (*s)[8][4], const unsigned char *q_sh,
			   const unsigned char *k_sh)
{
	const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const unsigned char *const row =
		q_sh + (warp * 16 * M_TILES + lane % 16) * PITCH +
		lane / 16 * 16;

#pragma unroll
	for (uint32_t x = 0; x < M_TILES; x++)
#pragma unroll
		for (uint32_t j = 0; j < 8; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				s[x][j][k] = 0;
#pragma unroll
	for (uint32_t kg = 0; kg < K_GROUPS; kg++) {
		uint32_t q[M_TILES][2][4];

#pragma unroll
		for (uint32_t x = 0; x < M_TILES; x++) {
			ldmatrix(q[x][0], row + 16 * x * PITCH + 64 * kg);
			ldmatrix(q[x][1], row + 16 * x * PITCH + 64 * kg + 32);
		}
		FN(scores)(s, M_TILES, 8, q, k_sh, kg);
	}
}

/* One tile's scores into the state; row: g of the warp's first 16. */
INLINE void FN(all_values)(struct FN(state) * st, float (*s)[8][4], float scale,
			   const struct flash_cursor *c, int64_t low,
			   const struct flash_row *row,
			   const unsigned char *v_sh)
{
	uint32_t p[M_TILES][4][4];

#pragma unroll
	for (uint32_t x = 0; x < M_TILES; x++) {
		float f[2];

		scale_and_mask(s[x], scale, c, low, row + 16 * x);
		FN(softmax)(s[x], p[x], st->m[x], st->l[x], f);
#pragma unroll
		for (uint32_t j = 0; j < N_TILES; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				st->o[x * N_TILES + j][k] *= f[k / 2];
	}
	FN(values)(st->o, M_TILES, N_TILES, 0, p, v_sh);
}

/* Of a tile of tokens that somebody sees: K or V into shared memory. */
INLINE void FN(load_at)(unsigned char *to, const struct flash_cursor *c, int v)
{
	if (c->half[0].s)
		FN(load_tile)
	(to, c, v);
	cp_commit();
}

KERNEL(TILES_NAME, struct gpu_attn)
{
	DYN_SHARED(smem);
	__shared__ struct flash_row rows[M_ROWS];
	__shared__ struct flash_cursor at[2]; /* this tile, the next */
	__shared__ struct flash_range seen;
	unsigned char *const q_sh = smem, *const k_sh = smem + M_ROWS * PITCH;
	unsigned char *const v_sh = k_sh + TILE_BYTES;
	const struct gpu_tile *const tile =
		(const struct gpu_tile *)a.tiles + blockIdx.x;
	const struct gpu_heads hs = heads_of(&a, M_ROWS);
	struct flash_row *const row =
		rows + threadIdx.x / 32 * 16 * M_TILES + threadIdx.x % 32 / 4;
	uint32_t variant = 0, has_q = 0, b = 0;
	struct FN(state) st;

	rows_begin(&a, tile, &hs, M_ROWS, rows);
	if (!threadIdx.x) {
		seen = range_of(&a, tile);
		at[0] = cursor_first(&a, tile, seen.high);
	}
	__syncthreads();
	FN(clear)(&st);
	if (!at[0].half[0].s) /* nothing is seen */
		FN(flush)(&st, &a, row, 1);
	FN(load_at)(k_sh, &at[0], 0);
	while (at[b].half[0].s) {
		float s[M_TILES][8][4];

		cp_wait(0);
		__syncthreads(); /* K is there, V, Q and the cursor are free */
		FN(load_at)(v_sh, &at[b], 1);
		if (!has_q || at[b].half[0].s->q_variant != variant) {
			has_q = 1;
			variant = at[b].half[0].s->q_variant;
			FN(load_q)(q_sh, &a, tile, variant, hs.first, hs.n);
			__syncthreads();
		}
		if (!threadIdx.x)
			at[b ^ 1] = cursor_next(&a, tile, seen.high, &at[b]);
		FN(all_scores)(s, q_sh, k_sh);
		cp_wait(0);
		__syncthreads(); /* V and the cursor are there, K is free */
		FN(load_at)(k_sh, &at[b ^ 1], 0);
		FN(all_values)(&st, s, a.scale, &at[b], seen.low, row, v_sh);
		if (!same_part(&at[b], &at[b ^ 1]))
			FN(flush)(&st, &a, row, !at[b ^ 1].half[0].s);
		b ^= 1;
	}
	__syncthreads();
	rows_end(&a, M_ROWS, rows);
}

/* ---- decode ---------------------------------------------------------------------- */

/* Fragments of up to 16 heads of a row: the k-th 32 dimensions are q[2k], q[2k + 1]. */
INLINE void FN(load_heads)(uint32_t (*q)[4], const struct gpu_attn *a,
			   uint32_t row, uint32_t variant,
			   const struct gpu_heads *hs)
{
	const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
	const uint32_t *from =
		(const uint32_t *)((const char *)a->q +
				   ((size_t)variant * a->q_variant_elems +
				    ((size_t)row * a->n_heads + hs->first) *
					    HEAD_DIM) *
					   2);

#pragma unroll
	for (uint32_t k = 0; k < HEAD_DIM / 16; k++)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			const uint32_t h = g + i % 2 * 8;

			q[k][i] = h < hs->n ? from[(h * HEAD_DIM + 16 * k +
						    i / 2 * 8) /
							   2 +
						   t]
					    : 0;
		}
}

/* A part's state, whose dimensions from d0 on are the warp's. */
INLINE void FN(put_part)(const struct gpu_attn *a, const struct gpu_heads *hs,
			 const float (*o)[4], const float *m, const float *l,
			 uint32_t d0)
{
	const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
	const float sum[2] = { quad_sum(l[0]), quad_sum(l[1]) };

#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t h = g + 8 * i;
		const size_t to =
			(size_t)blockIdx.x * a->n_heads + hs->first + h;

		if (h >= hs->n)
			continue;
#pragma unroll
		for (uint32_t j = 0; j < N_TILES / 4; j++)
#pragma unroll
			for (uint32_t k = 0; k < 2; k++)
				((float *)a->part_o)[to * HEAD_DIM + d0 +
						     8 * j + 2 * t + k] =
					o[j][2 * i + k];
		if (!d0 && !t) {
			((float *)a->part_ml)[2 * to] = m[i];
			((float *)a->part_ml)[2 * to + 1] = sum[i];
		}
	}
}

KERNEL(PARTS_NAME, struct gpu_attn)
{
	DYN_SHARED(smem);
	__shared__ float s_sh[16][FLASH_TILE + 4];
	__shared__ struct flash_row rows[16];
	__shared__ struct flash_cursor at[3]; /* this tile, two to come */
	const struct gpu_part part =
		((const struct gpu_part *)a.parts)[blockIdx.x];
	const struct gpu_span *sp =
		(const struct gpu_span *)a.spans + part.span;
	const int64_t pos = ((const struct gpu_row *)a.rows)[part.row].pos;
	const struct gpu_heads hs = heads_of(&a, 16);
	const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const uint32_t g = lane / 4, t = lane % 4, d0 = warp * (HEAD_DIM / 4);
	float o[N_TILES / 4][4], m[2] = { -INFINITY, -INFINITY };
	float l[2] = { 0, 0 };
	uint32_t q[K_GROUPS][2][4];

	if (threadIdx.x < 16)
		rows[threadIdx.x].pos = pos;
	if (!threadIdx.x) {
		at[0] = part_first(sp, part.t0, pos);
		at[1] = part_next(&at[0], pos);
	}
	__syncthreads();
	FN(load_heads)(&q[0][0], &a, part.row, sp->q_variant, &hs);
#pragma unroll
	for (uint32_t j = 0; j < N_TILES / 4; j++)
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			o[j][k] = 0;
	if (at[0].half[0].s)
		FN(load_tile)(smem, &at[0], 0);
	cp_commit();
	if (at[0].half[0].s)
		FN(load_tile)(smem + TILE_BYTES, &at[0], 1);
	cp_commit();
	for (uint32_t n = 0; at[n % 3].half[0].s; n++) {
		const struct flash_cursor *const c = &at[n % 3];
		const struct flash_cursor *const next = &at[(n + 1) % 3];
		unsigned char *const here = smem + n % 2 * 2 * TILE_BYTES;
		unsigned char *const there =
			smem + (n + 1) % 2 * 2 * TILE_BYTES;
		float s[1][8][4], f[2];
		uint32_t p[1][4][4];

		if (next->half[0].s)
			FN(load_tile)(there, next, 0);
		cp_commit();
		if (next->half[0].s)
			FN(load_tile)(there + TILE_BYTES, next, 1);
		cp_commit();
		if (!threadIdx.x)
			at[(n + 2) % 3] = part_next(next, pos);
		cp_wait(3);
		__syncthreads(); /* K of this tile */
#pragma unroll
		for (uint32_t j = 0; j < 2; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				s[0][j][k] = 0;
#pragma unroll
		for (uint32_t kg = 0; kg < K_GROUPS; kg++)
			FN(scores)
		(s, 1, 2, &q[kg], here + warp * 16 * PITCH, kg);
#pragma unroll
		for (uint32_t j = 0; j < 2; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				s_sh[g + k / 2 * 8][16 * warp + 8 * j + 2 * t +
						    k % 2] = s[0][j][k];
		cp_wait(2);
		__syncthreads(); /* V, and the scores of all warps */
#pragma unroll
		for (uint32_t j = 0; j < 8; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				s[0][j][k] = s_sh[g + k / 2 * 8]
						 [8 * j + 2 * t + k % 2];
		scale_and_mask(s[0], a.scale, c, pos, rows);
		FN(softmax)(s[0], p[0], m, l, f);
#pragma unroll
		for (uint32_t j = 0; j < N_TILES / 4; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				o[j][k] *= f[k / 2];
		FN(values)(o, 1, N_TILES / 4, d0, p, here + TILE_BYTES);
		__syncthreads(); /* tile and scores may be written, the cursor is there */
	}
	FN(put_part)(&a, &hs, o, m, l, d0);
}

#endif

#undef PITCH
#undef CHUNKS
#undef TILE_BYTES
#undef N_TILES
#undef K_GROUPS
#undef M_ROWS
#undef FN
#undef MMA_ELEM
#undef PACK
#undef LOW
#undef HIGH
#undef HEAD_DIM
#undef M_TILES
#undef TILES_NAME
#undef PARTS_NAME
