/*
 * cpu_attn.h - attention of one instruction set; see mm.h
 *
 * For one kv head, the queries of a block (rows times the heads of the group)
 * meet the tiles in order. A tile is packed once per block: keys as two panels
 * of sixteen tokens, or as rows (attn_wide.h, for many queries), values as
 * panels of sixteen dimensions. Scores of all queries that see the tile are one
 * product; probabilities, outputs and the merge follow for some queries at a
 * time. All ways of doing it give the same bytes.
 *
 * (1) No number of a token that a row does not see reaches it: scores are
 *     selected, values of tokens that nobody sees are packed as 0. Where rows
 *     see different tokens and a value is not finite, each row is done by
 *     itself.
 */
#ifndef KERNELS_CPU_ATTN_H
#define KERNELS_CPU_ATTN_H

#include <math.h>
#include "kernels/mm.h"

#define TILE	 KERN_KV_BLOCK
#define HEAD_MAX KERN_HEAD_DIM_MAX
#define QUERIES	 96u /* of a block: a multiple of MM_MERGE */
#define WIDE_MIN 9u /* queries of a block that attn_wide.h gets */

/* Words from query to query of the packed probabilities. */
#define P_STRIDE(bf16) ((bf16) ? GROUP * MM_X_WORDS : TILE)

/* Where a block of queries is: everything but the state itself is scratch. */
struct attn_block {
	const struct kern_attn *a;
	uint32_t bf16;
	uint32_t kv_head;
	uint32_t head, group; /* query heads [head, head + group) */
	uint32_t row, n_rows; /* n_rows * group queries */
	int64_t pos_min, pos_max;
	uint32_t split_merge; /* outputs are summed first, then merged */
	uint32_t variant; /* of the packed queries; UINT32_MAX: none */
	uint32_t wide; /* how they are packed: 1 as attn_wide.h wants them */
	uint32_t k_words; /* words of k of a panel of keys */
	uint32_t v_words; /* and of tokens of a panel of values */
	uint32_t q_stride; /* words */
	uint32_t n_panels; /* of values */
	uint32_t mask[QUERIES]; /* by row of the block */
	uint32_t row_of[QUERIES]; /* by query: its row of the block */
	size_t state_of[QUERIES]; /* and where its m and l are */
	struct fetch fetch; /* the next tile */
	uint32_t q[(QUERIES + LANES) * HEAD_MAX];
	uint32_t k[HEAD_MAX * TILE];
	uint32_t v[HEAD_MAX * TILE];
	float s[(QUERIES + LANES) * TILE];
	uint32_t p[MM_MERGE * TILE];
	float to[MM_MERGE * HEAD_MAX];
} __attribute__((aligned(64)));

/* exp of lanes <= 0; the twin is ref_exp(). */
static inline struct vec exp_vec(struct vec x)
{
	const struct vec magic = vec_set(EXP_MAGIC);
	const uint32_t keep = vec_not_less(x, vec_set(EXP_LOWEST));
	struct vec t, n, f, p;

	t = vec_fma(x, vec_set(EXP_LOG2E), magic);
	n = vec_sub(t, magic);
	f = vec_fma(n, vec_set(-EXP_LN2_HI), x);
	f = vec_fma(n, vec_set(-EXP_LN2_LO), f);
	p = vec_set(EXP_C6);
	p = vec_fma(p, f, vec_set(EXP_C5));
	p = vec_fma(p, f, vec_set(EXP_C4));
	p = vec_fma(p, f, vec_set(EXP_C3));
	p = vec_fma(p, f, vec_set(EXP_C2));
	p = vec_fma(p, f, vec_set(1.0f));
	p = vec_fma(p, f, vec_set(1.0f));
	return vec_mul_where(keep, p, vec_pow2(t));
}

/* ---- packing ----------------------------------------------------------- */

/* Words of k of one row of q or K (d elements); the rest of n words are 0. */
static inline void row_words(const struct attn_block *b, const char *src,
			     uint32_t *dst, uint32_t n)
{
	const uint32_t d = b->a->head_dim;
	uint32_t w = d;

	if (b->a->type == KERN_F16) {
		for (uint32_t i = 0; i < d; i += 8)
			vec_half_from_f16(src + 2 * i, (float *)dst + i);
	} else {
		memcpy(dst, src, d * kern_type_bytes(b->a->type));
		w = b->bf16 ? d / 2 : d;
	}
	memset(dst + w, 0, (n - w) * 4);
}

/* Query i of the block. */
static const char *query_addr(const struct attn_block *b, uint32_t variant,
			      uint32_t i)
{
	const struct kern_attn *a = b->a;
	const size_t r = b->row + i / b->group;
	const size_t h = b->head + i % b->group;

	return (const char *)a->q + (variant * a->q_variant_elems +
				     (r * a->n_heads + h) * a->head_dim) *
					    kern_type_bytes(a->type);
}

/* The queries of the block under one rotation. */
static void pack_queries(struct attn_block *b, uint32_t variant)
{
	const struct kern_attn *a = b->a;
	const size_t es = kern_type_bytes(a->type);
	uint16_t row[HEAD_MAX];

	for (uint32_t i = 0; i < b->n_rows * b->group; i++) {
		const char *src = query_addr(b, variant, i);
		uint32_t *dst = b->q + i * b->q_stride;

		if (!b->bf16) {
			row_words(b, src, dst, b->k_words);
			continue;
		}
		memcpy(row, src, a->head_dim * es);
		memset(row + a->head_dim, 0,
		       (2 * b->k_words - a->head_dim) * es);
		for (uint32_t j = 0; j < b->k_words; j += GROUP)
			mm_pack_x(row + 2 * j, dst + j * MM_X_WORDS);
	}
}

/* Sixteen rows of words, stride bytes apart, as a panel. */
static void transpose_panel(struct attn_block *b, const char *src,
			    size_t stride, uint32_t *dst)
{
	const uint32_t words = b->k_words;

	for (uint32_t w = 0; w + LANES <= words; w += LANES) {
		fetch_some(&b->fetch);
		vec_transpose(src + w * 4, stride, dst + w * LANES, LANES);
	}
	for (uint32_t w = words / LANES * LANES; w < words; w++)
		for (uint32_t i = 0; i < LANES; i++)
			memcpy(dst + w * LANES + i, src + i * stride + w * 4,
			       4);
	if (b->bf16)
		mm_order_panel(dst, words);
}

/* Sixteen tokens, those from n on 0. */
static void pack_keys_16(struct attn_block *b, const char *k, uint32_t n,
			 uint32_t *dst)
{
	const uint32_t d = b->a->head_dim;
	const size_t row = d * kern_type_bytes(b->a->type);
	const uint32_t words = b->k_words;
	uint32_t buf[LANES * HEAD_MAX];
	const char *src = k;
	size_t stride = row;

	if (n < LANES || b->a->type == KERN_F16 || d % 32) {
		for (uint32_t i = 0; i < LANES; i++) {
			if (i < n)
				row_words(b, k + i * row, buf + i * words,
					  words);
			else
				memset(buf + i * words, 0, words * 4);
		}
		src = (const char *)buf;
		stride = words * 4;
	}
	transpose_panel(b, src, stride, dst);
}

/* Tokens [0, n) of a tile; the others 0. */
static void pack_keys(struct attn_block *b, const char *k, uint32_t n)
{
	const size_t half =
		LANES * b->a->head_dim * kern_type_bytes(b->a->type);
	const size_t panel = b->k_words * LANES;

	pack_keys_16(b, k, n < LANES ? n : LANES, b->k);
	if (n > LANES)
		pack_keys_16(b, k + half, n - LANES, b->k + panel);
	else
		memset(b->k + panel, 0, panel * 4);
}

/* For a head_dim that is no multiple of sixteen. */
static void pack_values_slow(struct attn_block *b, const char *v, uint32_t seen)
{
	const uint32_t d = b->a->head_dim;
	const size_t row = d * kern_type_bytes(b->a->type);

	memset(b->v, 0, b->n_panels * b->v_words * LANES * 4);
	for (uint32_t t = 0; t < TILE; t++) {
		const uint16_t *h = (const uint16_t *)(v + t * row);

		for (uint32_t i = 0; i < d && seen >> t & 1; i++) {
			uint32_t *panel = b->v + i / LANES * b->v_words * LANES;

			if (b->bf16)
				panel[cpu_pair_word(MM_ORDER, t) * LANES +
				      i % LANES] |=
					(uint32_t)h[i]
					<< (cpu_pair_half(MM_ORDER, t) * 16);
			else
				kern_to_f32(
					b->a->type, v + t * row + i * (row / d),
					(float *)panel + t * LANES + i % LANES,
					1);
		}
	}
}

/* Tokens of the low and the high half of word j, or token j alone. */
static inline void word_tokens(uint32_t bf16, uint32_t j, uint32_t *lo,
			       uint32_t *hi)
{
	*lo = *hi = j;
	if (!bf16)
		return;
	*lo = MM_ORDER == CPU_ORDER_NEXT ? 2 * j : j / 2 * 4 + j % 2 + 2;
	*hi = MM_ORDER == CPU_ORDER_NEXT ? 2 * j + 1 : j / 2 * 4 + j % 2;
}

/* Tokens x and y of values in panels of pairs, or x alone widened. */
static inline void pack_pair(const struct attn_block *b, const char *x,
			     const char *y, uint32_t *dst)
{
	const uint32_t d = b->a->head_dim;
	const size_t panel = b->v_words * LANES;
	uint32_t i = 0;

	if (b->bf16) {
		for (; i + 2 * LANES <= d; i += 2 * LANES)
			vec_pairs_32(x + 2 * i, y + 2 * i,
				     dst + i / LANES * panel, panel);
		if (i < d)
			veci_store(dst + i / LANES * panel,
				   veci_pairs(x + 2 * i, y + 2 * i));
	} else if (b->a->type == KERN_F32) {
		for (; i < d; i += LANES, dst += panel)
			memcpy(dst, x + 4 * i, 4 * LANES);
	} else {
		for (; i < d; i += LANES, dst += panel)
			vec_store((float *)dst, vec_load_f16(x + 2 * i));
	}
}

/* Values of the tokens seen, the others 0. */
static void pack_values(struct attn_block *b, const char *v, uint32_t seen)
{
	static const char zeros[HEAD_MAX * sizeof(float)];
	const uint32_t d = b->a->head_dim;
	const size_t row = d * kern_type_bytes(b->a->type);

	if (d % LANES) {
		pack_values_slow(b, v, seen);
		return;
	}
	for (uint32_t j = 0; j < b->v_words; j++) {
		uint32_t lo, hi;

		word_tokens(b->bf16, j, &lo, &hi);
		fetch_some(&b->fetch);
		pack_pair(b, seen >> lo & 1 ? v + lo * row : zeros,
			  seen >> hi & 1 ? v + hi * row : zeros,
			  b->v + j * LANES);
	}
}

/* 1 if a packed value is infinite or no number. */
static int values_not_finite(const struct attn_block *b)
{
	const uint32_t n = b->n_panels * b->v_words * LANES;
	uint32_t bad = 0;

	for (uint32_t i = 0; i < n; i++) {
		const uint32_t w = b->v[i];

		bad |= (w & 0x7f800000) == 0x7f800000;
		bad |= b->bf16 && (w & 0x7f80) == 0x7f80;
	}
	return bad != 0;
}

/* ---- a tile ------------------------------------------------------------ */

static void mm_run(const struct attn_block *b, const struct mm *m)
{
	if (b->bf16)
		mm_bf16(m);
	else
		mm_f32(m);
}

/* Probabilities of one query to p; its largest logit and their sum. */
static inline void softmax_row(const struct attn_block *b, const float *s,
			       uint32_t mask, uint32_t *p, float *m, float *l)
{
	const struct vec scale = vec_set(b->a->scale);
	struct vec x0 = vec_mul(vec_load(s), scale);
	struct vec x1 = vec_mul(vec_load(s + LANES), scale);
	float top;

	x0 = vec_select(mask, x0, -INFINITY);
	x1 = vec_select(mask >> LANES, x1, -INFINITY);
	top = vec_hmax(vec_max(x0, x1)) + 0.0f;
	x0 = exp_vec(vec_sub(x0, vec_set(top)));
	x1 = exp_vec(vec_sub(x1, vec_set(top)));
	if (mask != UINT32_MAX) {
		x0 = vec_select(mask, x0, 0.0f);
		x1 = vec_select(mask >> LANES, x1, 0.0f);
	}
	*m = top;
	if (b->bf16) {
		*l = vec_hsum(mm_pack_p(x0, x1, p));
		return;
	}
	vec_store((float *)p, x0);
	vec_store((float *)p + LANES, x1);
	*l = vec_hsum(vec_add(x0, x1));
}

/*
 * States (m, l) of n queries advance by a tile's (tm, tl); the weights of the
 * outputs are left in g from row on.
 */
static inline void merge_state(const struct attn_block *b, struct merge *g,
			       uint32_t row, const float *tm, const float *tl,
			       uint32_t from, uint32_t n)
{
	float m[LANES] = { 0 }, l[LANES] = { 0 };
	size_t at[LANES];
	struct vec old, tile, top, wa, wb, sum;

	for (uint32_t i = 0; i < n; i++) {
		at[i] = b->state_of[from + i];
		m[i] = b->a->m[at[i]];
		l[i] = b->a->l[at[i]];
	}
	old = vec_load(m);
	tile = vec_load(tm);
	top = vec_max(old, tile);
	wa = vec_select(~vec_equal(old, top), exp_vec(vec_sub(old, top)), 1.0f);
	wb = vec_select(~vec_equal(tile, top), exp_vec(vec_sub(tile, top)),
			1.0f);
	sum = vec_fma(vec_load(tl), wb, vec_mul(vec_load(l), wa));
	vec_store(g->wa + row, wa);
	vec_store(g->wb + row, wb);
	vec_store(m, top);
	vec_store(l, sum);
	for (uint32_t i = 0; i < n; i++) {
		if (!b->mask[b->row_of[from + i]]) {
			g->o[row + i] = NULL;
			continue;
		}
		g->o[row + i] = b->a->o + at[i] * b->a->head_dim;
		b->a->m[at[i]] = m[i];
		b->a->l[at[i]] = l[i];
	}
}

static inline void merge_o(const struct attn_block *b, const struct merge *g,
			   uint32_t n)
{
	const uint32_t d = b->a->head_dim;

	for (uint32_t i = 0; i < n; i++) {
		const struct vec wa = vec_set(g->wa[i]);
		const struct vec wb = vec_set(g->wb[i]);
		const float *to = b->to + i * b->n_panels * LANES;
		float *o = g->o[i];
		uint32_t j = 0;

		if (!o)
			continue;
		for (; j + LANES <= d; j += LANES)
			vec_store(o + j, vec_fma(vec_load(to + j), wb,
						 vec_mul(vec_load(o + j), wa)));
		for (; j < d; j++)
			o[j] = __builtin_fmaf(to[j], g->wb[i], o[j] * g->wa[i]);
	}
}

/* Outputs of n queries whose probabilities are in p. */
static void outputs(struct attn_block *b, const struct merge *g, uint32_t n)
{
	const struct mm m = {
		.x = b->p,
		.x_stride = P_STRIDE(b->bf16),
		.w = b->v,
		.panel_words = b->v_words * LANES,
		.acc = b->to,
		.acc_stride = b->n_panels * LANES,
		.n_rows = n,
		.n_panels = b->n_panels,
		.n_k = b->v_words,
		.merge = b->split_merge ? NULL : g,
		.fetch = &b->fetch,
	};

	mm_run(b, &m);
	if (b->split_merge)
		merge_o(b, g, n);
}

#ifdef MM_FEW
#include "kernels/attn_few.h"
#endif
#include "kernels/attn_wide.h"

/* Queries [from, from + n) of the block, scores done; n <= MM_SUB. */
static void sub_block(struct attn_block *b, uint32_t from, uint32_t n)
{
	const uint32_t p_stride = P_STRIDE(b->bf16);
	float tm[LANES], tl[LANES];
	struct merge g;

	vec_store(tm, vec_zero());
	vec_store(tl, vec_zero());
	for (uint32_t i = 0; i < n; i++) {
		softmax_row(b, b->s + (from + i) * TILE,
			    b->mask[b->row_of[from + i]], b->p + i * p_stride,
			    &tm[i], &tl[i]);
		fetch_some(&b->fetch);
	}
	merge_state(b, &g, 0, tm, tl, from, n);
	outputs(b, &g, n);
}

/* Queries [from, to) against the packed tile. */
static void run_queries(struct attn_block *b, uint32_t from, uint32_t to)
{
	const struct mm m = {
		.x = b->q + from * b->q_stride,
		.x_stride = b->q_stride,
		.w = b->k,
		.panel_words = b->k_words * LANES,
		.acc = b->s + from * TILE,
		.acc_stride = TILE,
		.n_rows = to - from,
		.n_panels = 2,
		.n_k = b->k_words,
	};

	mm_run(b, &m);
	for (uint32_t i = from, n; i < to; i += n) {
		n = to - i < MM_SUB ? to - i : MM_SUB;
		sub_block(b, i, n);
	}
}

/* Masks of the rows; the union. [*lo, *hi) are rows that see anything. */
static uint32_t tile_masks(struct attn_block *b, const struct kern_span *s,
			   uint32_t t0, uint32_t *lo, uint32_t *hi,
			   uint32_t *same)
{
	const int64_t last = kern_tile_last(s, t0);
	const uint32_t first = kern_tile_mask(s, t0, b->pos_max);
	uint32_t any = 0;

	*lo = 0;
	*hi = b->n_rows;
	*same = b->pos_min >= last;
	if (!first)
		return 0;
	if (*same) {
		for (uint32_t r = 0; r < b->n_rows; r++)
			b->mask[r] = first;
		return first;
	}
	*same = 1;
	for (uint32_t r = 0; r < b->n_rows; r++) {
		b->mask[r] = kern_tile_mask(s, t0, b->a->q_pos[b->row + r]);
		any |= b->mask[r];
		*same &= !b->mask[r] || b->mask[r] == first;
	}
	while (*lo < *hi && !b->mask[*lo])
		++*lo;
	while (*lo < *hi && !b->mask[*hi - 1])
		--*hi;
	return any;
}

/* Have the tile after t0 fetched while this one is worked on. */
static void fetch_next(struct attn_block *b, const struct kern_span *s,
		       uint32_t t0, uint32_t n_queries)
{
	const struct kern_attn *a = b->a;
	const uint32_t left = s->n_tokens - t0;
	const size_t row = a->head_dim * kern_type_bytes(a->type);
	const uint32_t n_points = 24 + n_queries;
	uint32_t n = left < 2 * TILE ? left - TILE : TILE;

	b->fetch.step = 0;
	if (left <= TILE)
		return;
	n = (uint32_t)((n * row + 63) / 64);
	b->fetch.at[0] = kern_tile_addr(a, s, s->k, t0 + TILE, b->kv_head);
	b->fetch.at[1] = kern_tile_addr(a, s, s->v, t0 + TILE, b->kv_head);
	b->fetch.left[0] = n;
	b->fetch.left[1] = n;
	b->fetch.step = (2 * n + n_points - 1) / n_points;
}

/* Have the queries packed under this rotation, wide or not. */
static void want_queries(struct attn_block *b, uint32_t variant, uint32_t wide)
{
	if (b->variant == variant && b->wide == wide)
		return;
	if (wide)
		pack_queries_wide(b, variant);
	else
		pack_queries(b, variant);
	b->variant = variant;
	b->wide = wide;
}

/* 1 if it was done: see attn_few.h. Where all queries see the whole tile. */
static int few_queries_tile(struct attn_block *b, const struct kern_span *s,
			    uint32_t t0)
{
#ifdef MM_FEW
	const struct kern_attn *a = b->a;
	const uint32_t ahead = t0 + FEW_AHEAD * TILE;
	const uint32_t next = ahead < s->n_tokens ? ahead : t0;
	const char *k = kern_tile_addr(a, s, s->k, t0, b->kv_head);
	const char *v = kern_tile_addr(a, s, s->v, t0, b->kv_head);
	const struct few_tile t = {
		.k = k,
		.v = v,
		.next_k = kern_tile_addr(a, s, s->k, next, b->kv_head) - k,
		.next_v = kern_tile_addr(a, s, s->v, next, b->kv_head) - v,
	};

	if (!b->bf16 || a->head_dim % 32 || b->n_rows * b->group > FEW)
		return 0;
	for (uint32_t r = 0; r < b->n_rows; r++)
		if (b->mask[r] != UINT32_MAX)
			return 0;
	want_queries(b, s->q_variant, 0);
	few_queries(b, &t, 0, b->n_rows * b->group);
	return 1;
#else
	(void)b, (void)s, (void)t0;
	return 0;
#endif
}

static void block_tile(struct attn_block *b, const struct kern_span *s,
		       uint32_t t0)
{
	const struct kern_attn *a = b->a;
	const uint32_t left = s->n_tokens - t0;
	const uint32_t n = left < TILE ? left : TILE;
	const char *k = kern_tile_addr(a, s, s->k, t0, b->kv_head);
	const char *v = kern_tile_addr(a, s, s->v, t0, b->kv_head);
	uint32_t lo, hi, same;
	const uint32_t seen = tile_masks(b, s, t0, &lo, &hi, &same);

	if (!seen)
		return;
	if (few_queries_tile(b, s, t0))
		return;
	fetch_next(b, s, t0, (hi - lo) * b->group);
	pack_values(b, v, seen);
	if (same || !values_not_finite(b)) {
		want_queries(b, s->q_variant, b->n_rows * b->group >= WIDE_MIN);
		if (b->wide) {
			const uint32_t end =
				TILE - (uint32_t)__builtin_clz(seen);

			pack_keys_wide(b, k, end);
			run_wide(b, lo * b->group, hi * b->group, end);
			return;
		}
		pack_keys(b, k, n);
		run_queries(b, lo * b->group, hi * b->group);
		return;
	}
	want_queries(b, s->q_variant, 0);
	pack_keys(b, k, n);
	for (uint32_t r = lo; r < hi; r++) {
		if (!b->mask[r])
			continue;
		pack_values_slow(b, v, b->mask[r]);
		run_queries(b, r * b->group, (r + 1) * b->group);
	}
}

/* ---- tiles apart ------------------------------------------------------- */

/* The block's states begin anew; -0 leaves every number as it is that is added to it. */
static void clear_states(const struct attn_block *b)
{
	const uint32_t d = b->a->head_dim;

	for (uint32_t i = 0; i < b->n_rows * b->group; i++) {
		const size_t at = b->state_of[i];

		for (uint32_t j = 0; j < d; j++)
			b->a->o[at * d + j] = -0.0f;
		b->a->m[at] = -INFINITY;
		b->a->l[at] = 0;
	}
}

/* What merge_state() and merge_o() do, for one state and a tile left at t of from. */
static void merge_one(const struct kern_attn *a, size_t at,
		      const struct kern_attn *from, size_t t)
{
	const uint32_t d = a->head_dim;
	const struct vec old = vec_set(a->m[at]), tile = vec_set(from->m[t]);
	const struct vec top = vec_max(old, tile);
	const struct vec wa = vec_select(~vec_equal(old, top),
					 exp_vec(vec_sub(old, top)), 1.0f);
	const struct vec wb = vec_select(~vec_equal(tile, top),
					 exp_vec(vec_sub(tile, top)), 1.0f);
	const struct vec sum = vec_fma(vec_set(from->l[t]), wb,
				       vec_mul(vec_set(a->l[at]), wa));
	const float *to = from->o + t * d;
	float lanes[4][LANES], *o = a->o + at * d;
	uint32_t j = 0;

	vec_store(lanes[0], top);
	vec_store(lanes[1], sum);
	vec_store(lanes[2], wa);
	vec_store(lanes[3], wb);
	a->m[at] = lanes[0][0];
	a->l[at] = lanes[1][0];
	for (; j + LANES <= d; j += LANES)
		vec_store(o + j, vec_fma(vec_load(to + j), wb,
					 vec_mul(vec_load(o + j), wa)));
	for (; j < d; j++)
		o[j] = __builtin_fmaf(to[j], lanes[3][0], o[j] * lanes[2][0]);
}

static void attn_merge(const struct kern_attn *a, const struct kern_attn *from,
		       uint32_t n_tiles)
{
	const unsigned int mxcsr = kern_set_mxcsr(a->type);
	const uint32_t group = a->n_heads / a->n_kv_heads;

	for (size_t r = a->row_from; r < a->row_to; r++)
		for (size_t h = a->kv_head_from * group;
		     h < a->kv_head_to * group; h++)
			for (size_t i = 0; i < n_tiles; i++) {
				const size_t at = r * a->n_heads + h;
				const size_t t = at + i * from->tile_states;

				if (from->l[t] != 0)
					merge_one(a, at, from, t);
			}
	kern_restore_mxcsr(mxcsr);
}

/* ---- a share ----------------------------------------------------------- */

static void all_tiles(struct attn_block *b)
{
	const struct kern_attn *a = b->a;

	for (uint32_t i = 0; i < a->n_spans; i++)
		for (uint32_t t = 0; t < a->spans[i].n_tokens; t += TILE) {
			if (a->tile_states)
				clear_states(b);
			block_tile(b, &a->spans[i], t);
			if (!a->tile_states)
				continue;
			for (uint32_t k = 0; k < b->n_rows * b->group; k++)
				b->state_of[k] += a->tile_states;
		}
}

static void attn_rows(struct attn_block *b, uint32_t row, uint32_t n_rows)
{
	const struct kern_attn *a = b->a;

	b->row = row;
	b->n_rows = n_rows;
	b->variant = UINT32_MAX;
	b->wide = 0;
	b->fetch.step = 0;
	for (uint32_t i = 0; i < n_rows * b->group; i++) {
		b->row_of[i] = i / b->group;
		b->state_of[i] = (size_t)(row + i / b->group) * a->n_heads +
				 b->head + i % b->group;
	}
	b->pos_min = b->pos_max = a->q_pos[row];
	for (uint32_t r = row + 1; r < row + n_rows; r++) {
		if (a->q_pos[r] < b->pos_min)
			b->pos_min = a->q_pos[r];
		if (a->q_pos[r] > b->pos_max)
			b->pos_max = a->q_pos[r];
	}
	all_tiles(b);
}

static void attn_heads(struct attn_block *b)
{
	const uint32_t n_rows = QUERIES / b->group;

	for (uint32_t r = b->a->row_from; r < b->a->row_to; r += n_rows) {
		const uint32_t left = b->a->row_to - r;

		attn_rows(b, r, left < n_rows ? left : n_rows);
	}
}

static void attn(const struct kern_attn *a)
{
	const unsigned int mxcsr = kern_set_mxcsr(a->type);
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const uint32_t d = a->head_dim;
	struct attn_block b;

	b.a = a;
	b.bf16 = a->type == KERN_BF16;
	b.k_words = b.bf16 ? (d + 31) / 32 * GROUP : d;
	b.v_words = b.bf16 ? TILE / 2 : TILE;
	b.q_stride = b.bf16 ? b.k_words * MM_X_WORDS : d;
	b.n_panels = (d + LANES - 1) / LANES;
#ifdef MM_NO_MERGE
	b.split_merge = b.bf16 || d % LANES;
#else
	b.split_merge = d % LANES;
#endif
	if (b.bf16)
		mm_begin();
	for (uint32_t h = a->kv_head_from; h < a->kv_head_to; h++)
		for (uint32_t g = 0; g < group; g += QUERIES) {
			b.kv_head = h;
			b.head = h * group + g;
			b.group = group - g < QUERIES ? group - g : QUERIES;
			attn_heads(&b);
		}
	if (b.bf16)
		mm_end();
	kern_restore_mxcsr(mxcsr);
}

#endif
