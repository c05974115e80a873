/*
 * attn_few.h - whole tiles for a few queries, by VDPBF16PS; see cpu_attn.h
 *
 * Decode: every row sees all 32 tokens and there are at most FEW queries to a
 * kv head, so a tile is read once and nothing is packed.
 *
 * Scores: eight keys of 32 k are transposed in units of four k, (even, odd)
 * words, in registers: a lane holds one chain of one token. Keys come in the
 * order 0 1 4 5 .. and 2 3 6 7 .., so that one shuffle of two such blocks puts
 * the even chains, another the odd ones of sixteen tokens in order.
 * Outputs: rows t and t + 2 of values make the words of sixteen dimensions.
 *
 * While a tile is worked on, the same lines of the next are fetched.
 */
#ifndef KERNELS_ATTN_FEW_H
#define KERNELS_ATTN_FEW_H

#define FEW	  8u
#define FEW_AHEAD 1u /* tiles; more measure no better */

/* A tile and where the next one is, relative to it, in bytes. */
struct few_tile {
	const char *k, *v;
	ptrdiff_t next_k, next_v;
};

/* ---- scores ------------------------------------------------------------ */

/* 64-bit units j of rows 0 1 4 5 8 9 12 13 of src to out[j]. */
INLINE void few_transpose(const char *src, size_t row, ptrdiff_t next,
			  __m512i *out)
{
	__m512i r[8], t[8];

	UNROLL for (uint32_t i = 0; i < 8; i++)
	{
		const char *at = src + (i / 2 * 4 + i % 2) * row;

		__builtin_prefetch(at + next);
		r[i] = dp_order(_mm512_loadu_si512(at));
	}
	UNROLL for (uint32_t i = 0; i < 8; i += 2)
	{
		t[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]);
	}
	UNROLL for (uint32_t i = 0; i < 8; i += 4)
	{
		UNROLL for (uint32_t j = 0; j < 2; j++)
		{
			const __m512i a = t[i + j], b = t[i + 2 + j];

			r[i + j] = _mm512_shuffle_i32x4(a, b, 0x88);
			r[i + 2 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
		}
	}
	UNROLL for (uint32_t j = 0; j < 4; j++)
	{
		out[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
		out[4 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
	}
}

/* Sixteen tokens by 32 k: s += their products with N queries. */
INLINE void few_score(const uint32_t *q, size_t q_stride, const __m512i *ka,
		      const __m512i *kb, float *s, const uint32_t first,
		      const uint32_t N)
{
	__m512 a[4], b[4];

	UNROLL for (uint32_t i = 0; i < N; i++)
		a[i] = b[i] = _mm512_setzero_ps();
	UNROLL for (uint32_t j = 0; j < 8; j++)
	{
		UNROLL for (uint32_t i = 0; i < N; i++)
		{
			long long w;
			__m512bh x;

			memcpy(&w, q + i * q_stride + 2 * j, sizeof(w));
			x = (__m512bh)_mm512_set1_epi64(w);
			a[i] = _mm512_dpbf16_ps(a[i], x, (__m512bh)ka[j]);
			b[i] = _mm512_dpbf16_ps(b[i], x, (__m512bh)kb[j]);
		}
	}
	UNROLL for (uint32_t i = 0; i < N; i++)
	{
		const __m512 even = _mm512_shuffle_ps(a[i], b[i], 0x88);
		const __m512 odd = _mm512_shuffle_ps(a[i], b[i], 0xdd);
		__m512 sum = _mm512_add_ps(even, odd);

		if (!first)
			sum = _mm512_add_ps(_mm512_loadu_ps(s + i * TILE), sum);
		_mm512_storeu_ps(s + i * TILE, sum);
	}
}

/* s[N][TILE] of the queries from q on, N 1, 2 or a multiple of 4. */
INLINE void few_scores(const struct attn_block *b, const struct few_tile *t,
		       const uint32_t *q, float *s, const uint32_t N)
{
	const size_t row = b->a->head_dim * 2ul;
	const uint32_t step = N < 4 ? N : 4;

	for (size_t half = 0; half < 2; half++)
		for (size_t w = 0; w < b->k_words; w += GROUP) {
			const char *k = t->k + half * LANES * row + w * 4;
			float *to = s + half * LANES;
			__m512i ka[8], kb[8];

			few_transpose(k, row, t->next_k, ka);
			few_transpose(k + 2 * row, row, t->next_k, kb);
			UNROLL for (uint32_t i = 0; i < N; i += step)
			{
				const uint32_t *at = q + i * b->q_stride + w;

				if (w)
					few_score(at, b->q_stride, ka, kb,
						  to + i * TILE, 0, step);
				else
					few_score(at, b->q_stride, ka, kb,
						  to + i * TILE, 1, step);
			}
		}
}

/* ---- probabilities ----------------------------------------------------- */

/* Lanes (i, i + 8), (i, i + 4), 2, 1 of eight vectors by op, to lanes 0..7. */
#define FEW_REDUCE(name, op) \
	INLINE __m512 name(const __m512 *x) \
	{ \
		const __m512i order = _mm512_setr_epi32( \
			0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0); \
		__m512 h[4], f[2], e, o; \
\
		UNROLL for (int i = 0; i < 4; i++) h[i] = op( \
			_mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x44), \
			_mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xee)); \
		UNROLL for (int i = 0; i < 2; i++) f[i] = op( \
			_mm512_shuffle_f32x4(h[2 * i], h[2 * i + 1], 0x88), \
			_mm512_shuffle_f32x4(h[2 * i], h[2 * i + 1], 0xdd)); \
		e = _mm512_castpd_ps(_mm512_unpacklo_pd( \
			_mm512_castps_pd(f[0]), _mm512_castps_pd(f[1]))); \
		o = _mm512_castpd_ps(_mm512_unpackhi_pd( \
			_mm512_castps_pd(f[0]), _mm512_castps_pd(f[1]))); \
		e = op(e, o); \
		e = op(e, _mm512_movehdup_ps(e)); \
		return _mm512_permutexvar_ps(order, e); \
	}
FEW_REDUCE(few_max, _mm512_max_ps)
FEW_REDUCE(few_sum, _mm512_add_ps)

/* Probabilities of FEW queries; their largest logits and sums. */
static void few_softmax(const struct attn_block *b, float *s, uint32_t *p,
			float *m, float *l)
{
	const __m512 scale = _mm512_set1_ps(b->a->scale);
	__m512 lanes[FEW];

	UNROLL for (uint32_t i = 0; i < FEW; i++)
	{
		float *at = s + i * TILE;
		const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(at), scale);
		const __m512 y =
			_mm512_mul_ps(_mm512_loadu_ps(at + LANES), scale);

		_mm512_storeu_ps(at, x);
		_mm512_storeu_ps(at + LANES, y);
		lanes[i] = _mm512_max_ps(x, y);
	}
	_mm512_storeu_ps(m, _mm512_add_ps(few_max(lanes), _mm512_setzero_ps()));
	UNROLL for (uint32_t i = 0; i < FEW; i++)
	{
		const struct vec top = vec_set(m[i]);
		const float *at = s + i * TILE;
		const struct vec x = exp_vec(vec_sub(vec_load(at), top));
		const struct vec y =
			exp_vec(vec_sub(vec_load(at + LANES), top));

		lanes[i] = mm_pack_p(x, y, p + i * GROUP).v;
	}
	_mm512_storeu_ps(l, few_sum(lanes));
}

/* ---- outputs ----------------------------------------------------------- */

/* Words of sixteen dimensions, the first or the second half of rows x, y. */
INLINE __m512bh few_words(__m512i x, __m512i y, const uint32_t half)
{
	const __m512i first = _mm512_set_epi16(
		15, 47, 14, 46, 13, 45, 12, 44, 11, 43, 10, 42, 9, 41, 8, 40, 7,
		39, 6, 38, 5, 37, 4, 36, 3, 35, 2, 34, 1, 33, 0, 32);
	const __m512i second =
		_mm512_add_epi16(first, _mm512_set1_epi16(LANES));

	return (__m512bh)_mm512_permutex2var_epi16(x, half ? second : first, y);
}

/* 32 dimensions at v of N queries, merged into their outputs. */
INLINE void few_output(const char *v, size_t row, ptrdiff_t next,
		       const uint32_t *p, const struct merge *g, uint32_t from,
		       size_t dim, const uint32_t N)
{
	__m512 e[8], o[8];

	UNROLL for (uint32_t i = 0; i < 2 * N; i++)
		e[i] = o[i] = _mm512_setzero_ps();
	UNROLL for (uint32_t t = 0; t < TILE; t += 4)
	{
		__m512i r[4];

		UNROLL for (uint32_t i = 0; i < 4; i++)
		{
			__builtin_prefetch(v + (t + i) * row + next);
			r[i] = _mm512_loadu_si512(v + (t + i) * row);
		}
		UNROLL for (uint32_t h = 0; h < 2; h++)
		{
			const __m512bh we = few_words(r[0], r[2], h);
			const __m512bh wo = few_words(r[1], r[3], h);

			UNROLL for (uint32_t i = 0; i < N; i++)
			{
				const uint32_t *x =
					p + (from + i) * GROUP + t / 2;
				const uint32_t at = 2 * i + h;

				e[at] = dp(e[at], x[0], (__m512i)we);
				o[at] = dp(o[at], x[1], (__m512i)wo);
			}
		}
	}
	UNROLL for (uint32_t i = 0; i < 2 * N; i++)
	{
		float *to = g->o[from + i / 2] + dim + i % 2 * LANES;
		const __m512 sum = _mm512_add_ps(_mm512_add_ps(e[i], o[i]),
						 _mm512_setzero_ps());
		const __m512 old =
			_mm512_mul_ps(_mm512_loadu_ps(to),
				      _mm512_set1_ps(g->wa[from + i / 2]));

		_mm512_storeu_ps(
			to, _mm512_fmadd_ps(sum,
					    _mm512_set1_ps(g->wb[from + i / 2]),
					    old));
	}
}

/* Outputs of queries [from, from + N) of g. */
INLINE void few_outputs(const struct attn_block *b, const struct few_tile *t,
			const uint32_t *p, const struct merge *g, uint32_t from,
			const uint32_t N)
{
	const size_t d = b->a->head_dim;

	for (size_t dim = 0; dim < d; dim += 2 * LANES)
		few_output(t->v + 2 * dim, 2 * d, t->next_v, p, g, from, dim,
			   N);
}

/* ---- a tile ------------------------------------------------------------ */

/* One query. */
static void few_one(struct attn_block *b, const struct few_tile *t,
		    uint32_t from)
{
	float tm[LANES] = { 0 }, tl[LANES] = { 0 };
	struct merge g;

	few_scores(b, t, b->q + from * b->q_stride, b->s, 1);
	softmax_row(b, b->s, UINT32_MAX, b->p, tm, tl);
	merge_state(b, &g, 0, tm, tl, from, 1);
	few_outputs(b, t, b->p, &g, 0, 1);
}

/* Queries [from, from + n), n <= FEW. */
static void few_queries(struct attn_block *b, const struct few_tile *t,
			uint32_t from, uint32_t n)
{
	const uint32_t *q = b->q + from * b->q_stride;
	float tm[LANES] = { 0 }, tl[LANES] = { 0 };
	struct merge g;
	uint32_t i = 0;

	if (n == 1) {
		few_one(b, t, from);
		return;
	}
	if (n <= 2)
		few_scores(b, t, q, b->s, 2);
	else if (n <= 4)
		few_scores(b, t, q, b->s, 4);
	else
		few_scores(b, t, q, b->s, 8);
	few_softmax(b, b->s, b->p, tm, tl);
	merge_state(b, &g, 0, tm, tl, from, n);
	for (; i + 4 <= n; i += 4)
		few_outputs(b, t, b->p, &g, i, 4);
	for (; i + 2 <= n; i += 2)
		few_outputs(b, t, b->p, &g, i, 2);
	if (i < n)
		few_outputs(b, t, b->p, &g, i, 1);
}

#endif
