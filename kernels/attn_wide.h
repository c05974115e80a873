/*
 * attn_wide.h - a tile for many queries, sixteen to a vector; see cpu_attn.h
 *
 * Scores are computed as keys times panels of sixteen queries, [token][query],
 * so that keys are taken as they lie and maxima, exponentials and sums of
 * sixteen queries are plain vector operations. The probabilities of sixteen
 * queries are turned once, and outputs follow as elsewhere.
 */
#ifndef KERNELS_ATTN_WIDE_H
#define KERNELS_ATTN_WIDE_H

/* The queries of the block as panels, those missing 0. */
static void pack_queries_wide(struct attn_block *b, uint32_t variant)
{
	const uint32_t n = b->n_rows * b->group, words = b->k_words;
	uint32_t buf[LANES * HEAD_MAX];

	for (uint32_t i = 0; i < n; i += LANES) {
		for (uint32_t j = 0; j < LANES; j++) {
			if (i + j < n)
				row_words(b, query_addr(b, variant, i + j),
					  buf + j * words, words);
			else
				memset(buf + j * words, 0, words * 4);
		}
		transpose_panel(b, (const char *)buf, words * 4,
				b->q + i * words);
	}
}

/* Tokens [0, n) of a tile as rows; nobody sees the others. */
static void pack_keys_wide(struct attn_block *b, const char *k, uint32_t n)
{
	const uint32_t d = b->a->head_dim;
	const size_t row = d * kern_type_bytes(b->a->type);
	uint32_t buf[HEAD_MAX];

	for (uint32_t t = 0; t < n; t++) {
		uint32_t *dst = b->k + t * b->q_stride;
		const char *src = k + t * row;

		fetch_some(&b->fetch);
		if (!b->bf16) {
			row_words(b, src, dst, b->k_words);
			continue;
		}
		if (d % (2 * GROUP)) {
			row_words(b, src, buf, b->k_words);
			src = (const char *)buf;
		}
		for (uint32_t j = 0; j < b->k_words; j += GROUP)
			mm_pack_x((const uint16_t *)src + 2 * j,
				  dst + j * MM_X_WORDS);
	}
}

/* Scaled scores of sixteen queries to x, those not seen -inf: the largest. */
static inline struct vec wide_scale(const struct attn_block *b, const float *s,
				    const struct veci *masks, float *x)
{
	const struct vec scale = vec_set(b->a->scale);
	struct vec top = vec_set(-INFINITY);

	for (uint32_t t = 0; t < TILE; t++) {
		struct vec v = vec_mul(vec_load(s + t * QUERIES), scale);

		if (masks)
			v = vec_select(vec_bit(*masks, t), v, -INFINITY);
		top = vec_max(v, top);
		vec_store(x + t * LANES, v);
	}
	return vec_add(top, vec_zero());
}

/* Probability of token t: 0 where it is not seen. */
INLINE struct vec wide_exp(const float *x, struct vec top,
			   const struct veci *masks, uint32_t t)
{
	const struct vec p = exp_vec(vec_sub(vec_load(x + t * LANES), top));

	return masks ? vec_select(vec_bit(*masks, t), p, 0.0f) : p;
}

/*
 * exp(x - top) of the tile, rounded, to pt: words or floats [token][query].
 * Sums of tokens t and t + 16 go to e.
 */
INLINE void wide_exps(const struct attn_block *b, const float *x,
		      struct vec top, const struct veci *masks, uint32_t *pt,
		      float *e)
{
	for (uint32_t j = 0; j < GROUP / 2; j++) {
		struct vec lo[2], hi[2];
		uint32_t u, v;

		word_tokens(1, j, &u, &v);
		for (uint32_t h = 0; h < 2; h++) {
			const uint32_t t = h * LANES;

			lo[h] = wide_exp(x, top, masks, u + t);
			hi[h] = wide_exp(x, top, masks, v + t);
#if MM_X_WORDS == 1
			if (b->bf16) {
				const struct veci w = vec_pair(lo[h], hi[h]);

				veci_store(pt + (j + h * 8) * LANES, w);
				lo[h] = vec_even(w);
				hi[h] = vec_odd(w);
				continue;
			}
#else
			if (b->bf16) {
				lo[h] = vec_round_bf16(lo[h]);
				hi[h] = vec_round_bf16(hi[h]);
			}
#endif
			vec_store((float *)pt + (u + t) * LANES, lo[h]);
			vec_store((float *)pt + (v + t) * LANES, hi[h]);
		}
		vec_store(e + u * LANES, vec_add(lo[0], lo[1]));
		vec_store(e + v * LANES, vec_add(hi[0], hi[1]));
	}
}

/* Probabilities of queries [from, from + 16) to p, largest logits and sums. */
static void wide_softmax(struct attn_block *b, uint32_t from, uint32_t *p,
			 float *tm, float *tl)
{
	const uint32_t n = b->n_rows * b->group, stride = P_STRIDE(b->bf16);
	uint32_t pt[TILE * LANES], mask[LANES], all = UINT32_MAX;
	float x[TILE * LANES], e[LANES * LANES];
	struct veci masks;
	struct vec top;

	for (uint32_t i = 0; i < LANES; i++) {
		mask[i] = from + i < n ? b->mask[b->row_of[from + i]]
				       : UINT32_MAX;
		all &= mask[i];
	}
	masks = veci_loadu(mask);
	if (all == UINT32_MAX) {
		top = wide_scale(b, b->s + from, NULL, x);
		wide_exps(b, x, top, NULL, pt, e);
	} else {
		top = wide_scale(b, b->s + from, &masks, x);
		wide_exps(b, x, top, &masks, pt, e);
	}
	for (uint32_t h = LANES / 2; h; h /= 2)
		for (uint32_t i = 0; i < h * LANES; i += LANES)
			vec_store(e + i, vec_add(vec_load(e + i),
						 vec_load(e + i + h * LANES)));
	vec_store(tm, top);
	vec_store(tl, vec_load(e));
	for (uint32_t w = 0; w < stride; w += LANES)
		vec_transpose((const char *)(pt + w * LANES), LANES * 4, p + w,
			      stride);
}

/*
 * Queries [from, to) against tokens [0, n_tokens) of the tile. Scores of the others are left as
 * they are: the mask keeps them out.
 */
static void run_wide(struct attn_block *b, uint32_t from, uint32_t to,
		     uint32_t n_tokens)
{
	const uint32_t first = from / LANES * LANES;
	const struct mm m = {
		.x = b->k,
		.x_stride = b->q_stride,
		.w = b->q + first * b->k_words,
		.panel_words = b->k_words * LANES,
		.acc = b->s + first,
		.acc_stride = QUERIES,
		.n_rows = n_tokens,
		.n_panels = (to - first + LANES - 1) / LANES,
		.n_k = b->k_words,
		.fetch = &b->fetch,
	};
	float tm[LANES], tl[LANES];
	struct merge g;

	mm_run(b, &m);
	for (uint32_t i = first, n; i < to; i += n) {
		n = to - i < MM_MERGE ? to - i : MM_MERGE;
		for (uint32_t j = 0; j < n; j += LANES) {
			wide_softmax(b, i + j, b->p + j * P_STRIDE(b->bf16), tm,
				     tl);
			merge_state(b, &g, j, tm, tl, i + j,
				    n - j < LANES ? n - j : LANES);
		}
		outputs(b, &g, n);
	}
}

#endif
