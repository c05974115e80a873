/*
 * gpu_wgmma.cuh - attention by tiles on Hopper: TMA and wgmma (sm_90a)
 *
 * Included by gpu_flash.cuh with WIDE_NAME set and M_TILES 1; head size 64 or 128.
 *
 * A block is one warpgroup with 64 rows times heads. One thread asks the copy engine
 * for K and V, two tiles ahead; each has a barrier of its own in each of two stages.
 * Queries and probabilities are in registers (A), K and V in shared memory (B), as
 * blocks of 64 tokens x 64 dimensions of 128-byte rows, swizzled by 128 bytes: K is
 * read along its rows, V across them. Parts, tiles, softmax and merges are those of
 * gpu_flash.cuh; what may differ from it are the sums inside an instruction.
 *
 * Tokens of V that nobody sees are made zero after they came; halves of a tile
 * (32 tokens) that nobody sees are not read.
 */
#define SUB_BYTES   (FLASH_TILE * 128u) /* 64 tokens x 64 dimensions */
#define STAGE_BYTES (HEAD_DIM / 64 * SUB_BYTES)
#define WGMMA	    CAT3(wgmma, _, ELEM)

#ifdef HAVE_WGMMA
/* What a lane has of the warp's 16 rows: fragments A of all dimensions. */
INLINE void FN(load_rows)(uint32_t (*q)[4], const struct gpu_attn *a,
			  const struct flash_row *row, uint32_t variant)
{
	const uint32_t t = threadIdx.x % 4;

#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const int32_t at = row[8 * i].at;
		const uint32_t *from =
			(const uint32_t *)((const char *)a->q +
					   ((size_t)variant *
						    a->q_variant_elems +
					    (size_t)(at < 0 ? 0 : at) *
						    HEAD_DIM) *
						   2);

#pragma unroll
		for (uint32_t k = 0; k < HEAD_DIM / 16; k++)
#pragma unroll
			for (uint32_t j = 0; j < 2; j++)
				q[k][i + 2 * j] =
					at < 0 ? 0 : from[8 * k + 4 * j + t];
	}
}

/* One thread: K and V of a tile into a stage. */
INLINE void FN(fetch)(const struct gpu_wide *w, const struct flash_cursor *c,
		      unsigned char *k_sh, unsigned char *v_sh, uint64_t *k_bar,
		      uint64_t *v_bar)
{
	const uint32_t halves =
		((uint32_t)c->mask ? 1u : 0u) + (c->mask >> 32 ? 1u : 0u);

	proxy_fence();
	mbar_expect(k_bar, halves * 32 * HEAD_DIM * 2);
	mbar_expect(v_bar, halves * 32 * HEAD_DIM * 2);
	for (uint32_t i = 0; i < 2; i++) {
		const struct gpu_span *const s = c->half[i].s;
		const size_t off =
			half_offset(s, c->half[i].t, blockIdx.y, HEAD_DIM * 2);

		if (!(uint32_t)(c->mask >> (32 * i)))
			continue;
		for (uint32_t d = 0; d < HEAD_DIM / 64; d++) {
			const uint32_t to = d * SUB_BYTES + i * 32 * 128;

			tma_load(k_sh + to, w->map, (int32_t)(64 * d),
				 (int32_t)((s->k + off - w->base) /
					   (HEAD_DIM * 2)),
				 k_bar);
			tma_load(v_sh + to, w->map, (int32_t)(64 * d),
				 (int32_t)((s->v + off - w->base) /
					   (HEAD_DIM * 2)),
				 v_bar);
		}
	}
}

/* Tokens of V that are not in mask are zero for all. */
INLINE void FN(hide)(unsigned char *v_sh, uint64_t mask)
{
	const uint4 zero = { 0, 0, 0, 0 };

	for (uint32_t c = threadIdx.x; c < STAGE_BYTES / 16; c += GPU_THREADS)
		if (!(mask >> (c / 8 % FLASH_TILE) & 1))
			*(uint4 *)(v_sh + 16 * c) = zero;
	proxy_fence(); /* the tensor cores see it */
	__syncthreads();
}

INLINE void FN(wide_scores)(float (*s)[4], const uint32_t (*q)[4],
			    const unsigned char *k_sh)
{
	wgmma_fence();
#pragma unroll
	for (uint32_t k = 0; k < HEAD_DIM / 16; k++)
		WGMMA(s, q[k],
		      wgmma_desc(k_sh + k / 4 * SUB_BYTES + k % 4 * 32), k != 0,
		      0);
	wgmma_wait();
}

INLINE void FN(wide_values)(float (*o)[4], const uint32_t (*p)[4],
			    const unsigned char *v_sh)
{
	wgmma_fence();
#pragma unroll
	for (uint32_t d = 0; d < HEAD_DIM / 64; d++)
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			WGMMA(o + 8 * d, p[k],
			      wgmma_desc(v_sh + d * SUB_BYTES + k * 16 * 128),
			      1, 1);
	wgmma_wait();
}
#endif

KERNEL_CONST(WIDE_NAME, struct gpu_wide)
{
#ifdef HAVE_WGMMA
	DYN_SHARED(smem);
	__shared__ struct flash_row rows[64];
	__shared__ struct flash_cursor at[3]; /* this tile, two to come */
	__shared__ struct flash_range seen;
	__shared__ uint64_t bars[4]; /* K of both stages, V */
	unsigned char *const sh = align_1k(smem);
	const struct gpu_tile *const tile =
		(const struct gpu_tile *)w.a.tiles + blockIdx.x;
	const struct gpu_heads hs = heads_of(&w.a, 64);
	struct flash_row *const row =
		rows + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
	uint32_t q[HEAD_DIM / 16][4], variant = 0;
	struct FN(state) st;

	rows_begin(&w.a, tile, &hs, 64, rows);
	if (!threadIdx.x) {
		for (uint32_t i = 0; i < 4; i++)
			mbar_init(&bars[i]);
		proxy_fence();
		seen = range_of(&w.a, tile);
		for (uint32_t i = 0; i < 2; i++) {
			at[i] = i ? cursor_next(&w.a, tile, seen.high, &at[0])
				  : cursor_first(&w.a, tile, seen.high);
			if (at[i].half[0].s)
				FN(fetch)
			(&w, &at[i], sh + i * 2 * STAGE_BYTES,
			 sh + (i * 2 + 1) * STAGE_BYTES, &bars[i],
			 &bars[2 + i]);
		}
	}
	__syncthreads();
	FN(clear)(&st);
	if (!at[0].half[0].s) /* nothing is seen */
		FN(flush)(&st, &w.a, row, 1);
	for (uint32_t n = 0; at[n % 3].half[0].s; n++) {
		const struct flash_cursor *const c = &at[n % 3];
		struct flash_cursor *const next = &at[(n + 1) % 3];
		struct flash_cursor *const then = &at[(n + 2) % 3];
		unsigned char *const k_sh = sh + n % 2 * 2 * STAGE_BYTES;
		unsigned char *const v_sh = k_sh + STAGE_BYTES;
		float s[8][4], f[2];
		uint32_t p[4][4];

		if (!threadIdx.x)
			*then = cursor_next(&w.a, tile, seen.high, next);
		if (!n || c->half[0].s->q_variant != variant) {
			variant = c->half[0].s->q_variant;
			FN(load_rows)(q, &w.a, row, variant);
		}
		mbar_wait(&bars[n % 2], n / 2 % 2);
		FN(wide_scores)(s, q, k_sh);
		mbar_wait(&bars[2 + n % 2], n / 2 % 2);
		if (~c->mask)
			FN(hide)(v_sh, c->mask);
		scale_and_mask(s, w.a.scale, c, seen.low, row);
		FN(softmax)(s, p, st.m[0], st.l[0], f);
#pragma unroll
		for (uint32_t j = 0; j < N_TILES; j++)
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				st.o[j][k] *= f[k / 2];
		FN(wide_values)(st.o, p, v_sh);
		if (!same_part(c, next))
			FN(flush)(&st, &w.a, row, !next->half[0].s);
		__syncthreads(); /* the stage is free, the cursor is there */
		if (!threadIdx.x && then->half[0].s)
			FN(fetch)
		(&w, then, k_sh, v_sh, &bars[n % 2], &bars[2 + n % 2]);
	}
	__syncthreads();
	rows_end(&w.a, 64, rows);
#endif
}

#undef SUB_BYTES
#undef STAGE_BYTES
#undef WGMMA
#undef WIDE_NAME
