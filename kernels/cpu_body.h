/*
 * cpu_body.h - linear layers and attention over sixteen lanes
 *
 * Included once per instruction set, behind its vec_*.h. Everything multiplies a
 * few rows by panels of sixteen columns with one micro-kernel, under the
 * contract of kern.h: linear layers (panels of weights), scores (panels of sixteen
 * keys, transposed while they are in L1), outputs (panels of sixteen
 * dimensions of V, tokens in pairs).
 */
#include <math.h>
#include <string.h>
#include "kernels/cpu.h"

#define LANES	  KERN_LANES
#define ROWS	  4u	/* rows of the micro-kernel */
#define K_BLOCK	  512u	/* k of a pass: a pair of panels stays in L1 */
#define ROW_TILE  64u	/* rows that share a pass over a pair of panels */
#define TILE	  KERN_KV_BLOCK
#define HEAD_MAX  KERN_HEAD_DIM_MAX

/* ---- the micro-kernel -------------------------------------------------------- */

/* acc[r][p] of R rows and P panels, bf16: n_pairs pairs, groups of 16 pairs. */
static inline __attribute__((always_inline)) void
micro_bf16(const uint32_t *const *x, const uint32_t *w, size_t panel_words,
	   uint32_t n_pairs, struct vec *acc, const uint32_t R,
	   const uint32_t P)
{
	for (uint32_t j0 = 0; j0 < n_pairs; j0 += 16) {
		const uint32_t end = j0 + 16 < n_pairs ? j0 + 16 : n_pairs;
		struct vec even[R * P], odd[R * P];

		for (uint32_t i = 0; i < R * P; i++)
			even[i] = odd[i] = vec_zero();
		for (uint32_t j = j0; j < end; j++) {
			struct vec we[P], wo[P];

			for (uint32_t p = 0; p < P; p++) {
				const struct veci v = veci_loadu(
					w + p * panel_words +
					(size_t)j * LANES);

				we[p] = vec_even(v);
				wo[p] = vec_odd(v);
			}
			for (uint32_t r = 0; r < R; r++) {
				const struct veci xv = veci_set(x[r][j]);
				const struct vec xe = vec_even(xv);
				const struct vec xo = vec_odd(xv);

				for (uint32_t p = 0; p < P; p++) {
					const uint32_t i = r * P + p;

					even[i] = vec_fma(xe, we[p], even[i]);
					odd[i] = vec_fma(xo, wo[p], odd[i]);
				}
			}
		}
		for (uint32_t i = 0; i < R * P; i++)
			acc[i] = vec_add(acc[i], vec_add(even[i], odd[i]));
	}
}

static inline __attribute__((always_inline)) void
micro_f32(const float *const *x, const float *w, size_t panel_words,
	  uint32_t n_k, struct vec *acc, const uint32_t R, const uint32_t P)
{
	for (uint32_t k = 0; k < n_k; k++) {
		struct vec wv[P];

		for (uint32_t p = 0; p < P; p++)
			wv[p] = vec_load(w + p * panel_words +
					 (size_t)k * LANES);
		for (uint32_t r = 0; r < R; r++) {
			const struct vec xv = vec_set(x[r][k]);

			for (uint32_t p = 0; p < P; p++)
				acc[r * P + p] = vec_fma(xv, wv[p],
							 acc[r * P + p]);
		}
	}
}

/*
 * acc [n_rows][acc_stride] += rows x panels. n_k counts words: pairs (bf16) or
 * k (f32). P panels, side by side in acc.
 */
static inline __attribute__((always_inline)) void
block(const int bf16, const uint32_t *const *x, uint32_t n_rows,
      const uint32_t *w, size_t panel_words, uint32_t n_k, float *acc,
      size_t acc_stride, const uint32_t R, const uint32_t P)
{
	struct vec a[R * P];

	(void)n_rows;
	for (uint32_t r = 0; r < R; r++)
		for (uint32_t p = 0; p < P; p++)
			a[r * P + p] = vec_load(acc + r * acc_stride +
						p * LANES);
	if (bf16)
		micro_bf16(x, w, panel_words, n_k, a, R, P);
	else
		micro_f32((const float *const *)x, (const float *)w,
			  panel_words, n_k, a, R, P);
	for (uint32_t r = 0; r < R; r++)
		for (uint32_t p = 0; p < P; p++)
			vec_store(acc + r * acc_stride + p * LANES,
				  a[r * P + p]);
}

#define BLOCK_FN(name, B, R, P)                                             \
	static void name(const uint32_t *const *x, const uint32_t *w,       \
			 size_t pw, uint32_t n_k, float *acc, size_t stride) \
	{                                                                   \
		block(B, x, R, w, pw, n_k, acc, stride, R, P);              \
	}
BLOCK_FN(bf16_1x1, 1, 1, 1)
BLOCK_FN(bf16_2x1, 1, 2, 1)
BLOCK_FN(bf16_3x1, 1, 3, 1)
BLOCK_FN(bf16_4x1, 1, 4, 1)
BLOCK_FN(bf16_1x2, 1, 1, 2)
BLOCK_FN(bf16_2x2, 1, 2, 2)
BLOCK_FN(bf16_3x2, 1, 3, 2)
BLOCK_FN(bf16_4x2, 1, 4, 2)
BLOCK_FN(f32_1x1, 0, 1, 1)
BLOCK_FN(f32_2x1, 0, 2, 1)
BLOCK_FN(f32_3x1, 0, 3, 1)
BLOCK_FN(f32_4x1, 0, 4, 1)
BLOCK_FN(f32_1x2, 0, 1, 2)
BLOCK_FN(f32_2x2, 0, 2, 2)
BLOCK_FN(f32_3x2, 0, 3, 2)
BLOCK_FN(f32_4x2, 0, 4, 2)

typedef void block_fn(const uint32_t *const *x, const uint32_t *w, size_t pw,
		      uint32_t n_k, float *acc, size_t stride);
static block_fn *const block_fns[2][2][ROWS] = {
	{ { f32_1x1, f32_2x1, f32_3x1, f32_4x1 },
	  { f32_1x2, f32_2x2, f32_3x2, f32_4x2 } },
	{ { bf16_1x1, bf16_2x1, bf16_3x1, bf16_4x1 },
	  { bf16_1x2, bf16_2x2, bf16_3x2, bf16_4x2 } },
};

/* All rows (words of x_stride from row to row) by one or two panels. */
static void rows_by_panels(int bf16, const uint32_t *x, size_t x_stride,
			   uint32_t n_rows, const uint32_t *w, size_t pw,
			   uint32_t n_panels, uint32_t n_k, float *acc,
			   size_t acc_stride)
{
	for (uint32_t r = 0; r < n_rows; r += ROWS) {
		const uint32_t n = n_rows - r < ROWS ? n_rows - r : ROWS;
		const uint32_t *xr[ROWS];

		for (uint32_t i = 0; i < n; i++)
			xr[i] = x + (r + i) * x_stride;
		block_fns[bf16][n_panels - 1][n - 1](xr, w, pw, n_k,
						     acc + r * acc_stride,
						     acc_stride);
	}
}

/* ---- linear layers --------------------------------------------------------------- */

static void put_outputs(const struct kern_linear *a, const float *acc,
			uint32_t row, uint32_t n_rows, uint32_t out,
			uint32_t n_out)
{
	for (uint32_t r = 0; r < n_rows; r++) {
		float *y = a->y + (row + r) * a->y_stride + out;
		const float *s = acc + r * 2 * LANES;

		if (a->flags & KERN_LINEAR_ADD)
			for (uint32_t i = 0; i < n_out; i++)
				y[i] += s[i];
		else
			memcpy(y, s, n_out * sizeof(*y));
	}
}

/* bf16 rows whose words are not whole (an odd k or stride): by copies. */
static void linear_copied(const struct kern_linear *a, uint32_t row,
			  uint32_t n_rows, const uint32_t *w,
			  uint32_t n_panels, float *acc)
{
	const uint16_t *x = (const uint16_t *)a->x + row * a->x_stride;
	uint32_t words[ROW_TILE][16];

	for (uint32_t k = 0; k < a->w->n_in; k += 32) {
		const uint32_t left = a->w->n_in - k;
		const uint32_t n = left < 32 ? left : 32;

		memset(words, 0, sizeof(words));
		for (uint32_t r = 0; r < n_rows; r++)
			memcpy(words[r], x + r * a->x_stride + k,
			       n * sizeof(*x));
		rows_by_panels(1, words[0], 16, n_rows,
			       w + (size_t)k / 2 * LANES, a->w->panel_words,
			       n_panels, (n + 1) / 2, acc, 2 * LANES);
	}
}

/* One tile of rows by one or two panels, all k. */
static void linear_tile(const struct kern_linear *a, uint32_t row,
			uint32_t n_rows, uint32_t panel, uint32_t n_panels)
{
	const struct kern_weight *w = a->w;
	const int bf16 = w->math == KERN_BF16;
	const uint32_t *panels = w->data + panel * w->panel_words;
	const uint32_t n_words = bf16 ? (w->n_in + 1) / 2 : w->n_in;
	const int odd = bf16 && (w->n_in % 2 || a->x_stride % 2);
	const size_t x_words = bf16 ? a->x_stride / 2 : a->x_stride;
	const uint32_t *x = (const uint32_t *)a->x + row * x_words;
	const uint32_t out = panel * LANES, n_out = a->out_to - out;
	float acc[ROW_TILE * 2 * LANES];

	memset(acc, 0, n_rows * 2 * LANES * sizeof(*acc));
	for (uint32_t k = 0; k < n_words && !odd; k += K_BLOCK) {
		const uint32_t left = n_words - k;
		const uint32_t n = left < K_BLOCK ? left : K_BLOCK;

		rows_by_panels(bf16, x + k, x_words, n_rows,
			       panels + (size_t)k * LANES, w->panel_words,
			       n_panels, n, acc, 2 * LANES);
	}
	if (odd)
		linear_copied(a, row, n_rows, panels, n_panels, acc);
	put_outputs(a, acc, row, n_rows, out,
		    n_out < n_panels * LANES ? n_out : n_panels * LANES);
}

static void linear(const struct kern_linear *a)
{
	const uint32_t end = (a->out_to + LANES - 1) / LANES;
	const int bf16 = a->w->math == KERN_BF16;
	unsigned int mxcsr = 0;

	if (bf16)
		mxcsr = kern_flush_denormals();
	for (uint32_t p = a->out_from / LANES; p < end; p += 2)
		for (uint32_t r = 0; r < a->n_rows; r += ROW_TILE) {
			const uint32_t n = a->n_rows - r;

			linear_tile(a, r, n < ROW_TILE ? n : ROW_TILE, p,
				    end - p < 2 ? 1 : 2);
		}
	if (bf16)
		kern_restore_denormals(mxcsr);
}

/* ---- attention: one tile ------------------------------------------------------------- */

/* A tile's keys as panels of tokens, its values as panels of dimensions. */
struct tile {
	uint32_t k[HEAD_MAX * TILE]; /* [2 halves][words of k][16] */
	uint32_t v[HEAD_MAX * TILE]; /* [dims/16][words of tokens][16] */
	size_t k_panel, v_panel;     /* words */
	uint32_t k_words, v_words;   /* of the summed index */
};

static inline struct vec exp_vec(struct vec x)
{
	const uint32_t ok = ~vec_less(x, vec_set(EXP_LOWEST));
	const struct vec magic = vec_set(EXP_MAGIC);
	struct vec n, f, p;

	x = vec_max(x, vec_set(EXP_LOWEST));
	n = vec_sub(vec_fma(x, vec_set(EXP_LOG2E), magic), magic);
	f = vec_fma(n, vec_set(-EXP_LN2_HI), x);
	f = vec_fma(n, vec_set(-EXP_LN2_LO), f);
	p = vec_set(EXP_C6);
	p = vec_fma(p, f, vec_set(EXP_C5));
	p = vec_fma(p, f, vec_set(EXP_C4));
	p = vec_fma(p, f, vec_set(EXP_C3));
	p = vec_fma(p, f, vec_set(EXP_C2));
	p = vec_fma(p, f, vec_set(1.0f));
	p = vec_fma(p, f, vec_set(1.0f));
	return vec_select(ok, vec_mul(p, vec_pow2i(n)), 0.0f);
}

/* Word j of a token's key row: a pair of bf16, or one f32 (f16 widened). */
static void key_words(const struct kern_attn *a, const char *row,
		      uint32_t *out)
{
	const uint32_t d = a->head_dim;

	if (a->type != KERN_F16) {
		memcpy(out, row, d * kern_type_bytes(a->type));
		return;
	}
	for (uint32_t i = 0; i < d; i += 8) { /* head_dim is a multiple of 8 */
		uint16_t h[LANES] = { 0 };
		float f[LANES];

		memcpy(h, row + 2 * i, 16);
		vec_store(f, vec_load_f16(h));
		memcpy(out + i, f, 8 * sizeof(float));
	}
}

/* Keys of tokens [0, n) become panels; the missing ones zeros. */
static void pack_keys(const struct kern_attn *a, const char *k, uint32_t n,
		      struct tile *t)
{
	const size_t row = a->head_dim * kern_type_bytes(a->type);
	const uint32_t words = t->k_words;
	uint32_t buf[LANES][HEAD_MAX];

	for (uint32_t half = 0; half < 2; half++) {
		uint32_t *dst = t->k + half * t->k_panel;
		const uint32_t *src = (const uint32_t *)(k + half * LANES *
								     row);
		size_t stride = row / 4;
		uint32_t w = 0;

		if (half * LANES >= n)
			break;
		if (n < (half + 1) * LANES || a->type == KERN_F16) {
			for (uint32_t i = 0; i < LANES; i++) {
				if (half * LANES + i < n)
					key_words(a, (const char *)src +
							     i * row, buf[i]);
				else
					memset(buf[i], 0, words * 4);
			}
			src = buf[0];
			stride = HEAD_MAX;
		}
		for (; w + LANES <= words; w += LANES)
			vec_transpose(src + w, stride, dst + w * LANES, LANES);
		for (; w < words; w++)
			for (uint32_t i = 0; i < LANES; i++)
				dst[w * LANES + i] = src[i * stride + w];
	}
	if (n <= LANES)
		memset(t->k + t->k_panel, 0, t->k_panel * 4);
}

/* Values of sixteen dimensions from d on; bit i of seen: token i is a number. */
static void pack_value_panel(const struct kern_attn *a, const char *v,
			     uint32_t seen, uint32_t d, uint32_t *dst)
{
	const size_t es = kern_type_bytes(a->type);
	const size_t row = a->head_dim * es;
	const size_t n = (a->head_dim - d < LANES ? a->head_dim - d : LANES);
	static const char zero[64];
	char buf[2][64];

	for (uint32_t i = 0; i < TILE; i++) {
		const char *p = seen >> i & 1 ? v + i * row + d * es : zero;

		if (n < LANES && p != zero) {
			memset(buf[i & 1], 0, 64);
			memcpy(buf[i & 1], p, n * es);
			p = buf[i & 1];
		}
		if (a->type == KERN_F16) {
			vec_store((float *)dst + i * LANES,
				  vec_load_f16((const uint16_t *)p));
		} else if (a->type == KERN_F32) {
			memcpy(dst + i * LANES, p, 64);
		} else {
			const char *q;

			i++;
			q = seen >> i & 1 ? v + i * row + d * es : zero;
			if (n < LANES && q != zero) {
				memset(buf[1], 0, 64);
				memcpy(buf[1], q, n * es);
				q = buf[1];
			}
			veci_store(dst + i / 2 * LANES,
				   veci_pairs((const uint16_t *)p,
					      (const uint16_t *)q));
		}
	}
}

/* Scores of one row to probabilities; returns what kern.h calls (m, l). */
static void tile_softmax(const struct kern_attn *a, uint32_t mask, float *s,
			 float *m_out, float *l_out)
{
	const struct vec scale = vec_set(a->scale);
	struct vec x0 = vec_mul(vec_load(s), scale);
	struct vec x1 = vec_mul(vec_load(s + LANES), scale);
	float lanes[LANES], m;

	x0 = vec_select(mask & 0xffff, x0, -INFINITY);
	x1 = vec_select(mask >> 16, x1, -INFINITY);
	vec_store(lanes, vec_max(x0, x1));
	m = lanes[0];
	for (uint32_t i = 1; i < LANES; i++)
		m = lanes[i] > m ? lanes[i] : m;
	x0 = vec_select(mask & 0xffff, exp_vec(vec_sub(x0, vec_set(m))), 0);
	x1 = vec_select(mask >> 16, exp_vec(vec_sub(x1, vec_set(m))), 0);
	if (a->type == KERN_BF16) {
		x0 = vec_round_bf16(x0);
		x1 = vec_round_bf16(x1);
		vec_store_bf16((uint16_t *)s, x0);
		vec_store_bf16((uint16_t *)s + LANES, x1);
	} else {
		vec_store(s, x0);
		vec_store(s + LANES, x1);
	}
	vec_store(lanes, vec_add(x0, x1));
	for (uint32_t n = LANES / 2; n; n /= 2)
		for (uint32_t i = 0; i < n; i++)
			lanes[i] += lanes[i + n];
	*m_out = m;
	*l_out = lanes[0];
}

static inline float exp_one(float x)
{
	float f[LANES];

	vec_store(f, exp_vec(vec_set(x)));
	return f[0];
}

/* Merge a tile's (o, m, l) into the row's state; l > 0. */
static void merge(float *o, float *m, float *l, const float *to, float tm,
		  float tl, uint32_t d)
{
	const float top = *m > tm ? *m : tm;
	const float a = *m == top ? 1.0f : exp_one(*m - top);
	const float b = tm == top ? 1.0f : exp_one(tm - top);
	const struct vec va = vec_set(a), vb = vec_set(b);
	uint32_t i = 0;

	for (; i + LANES <= d; i += LANES)
		vec_store(o + i, vec_fma(vec_load(to + i), vb,
					 vec_mul(vec_load(o + i), va)));
	for (; i < d; i++)
		o[i] = __builtin_fmaf(to[i], b, o[i] * a);
	*l = __builtin_fmaf(tl, b, *l * a);
	*m = top;
}

/* ---- attention: rows of a share ----------------------------------------------------------- */

/* Up to ROWS queries, (row, head) each, that meet the same tile. */
struct queries {
	uint32_t n;
	uint32_t row[ROWS], head[ROWS], mask[ROWS];
	uint32_t words[ROWS][HEAD_MAX]; /* f16 widened */
	const uint32_t *x[ROWS];
};

static void run_queries(const struct kern_attn *a, const struct tile *t,
			struct queries *q)
{
	const int bf16 = a->type == KERN_BF16;
	const uint32_t d = a->head_dim;
	const uint32_t n_panels = (d + LANES - 1) / LANES;
	float s[ROWS][TILE], o[ROWS][HEAD_MAX];
	const uint32_t *p[ROWS];
	float m[ROWS], l[ROWS];

	memset(s, 0, q->n * sizeof(s[0]));
	memset(o, 0, q->n * sizeof(o[0]));
	block_fns[bf16][1][q->n - 1](q->x, t->k, t->k_panel, t->k_words, s[0],
				     TILE);
	for (uint32_t i = 0; i < q->n; i++) {
		tile_softmax(a, q->mask[i], s[i], &m[i], &l[i]);
		p[i] = (const uint32_t *)s[i];
	}
	for (uint32_t i = 0; i < n_panels; i += 2)
		block_fns[bf16][n_panels - i > 1][q->n - 1](
			p, t->v + i * t->v_panel, t->v_panel, t->v_words,
			o[0] + i * LANES, HEAD_MAX);
	for (uint32_t i = 0; i < q->n; i++) {
		const size_t at = (size_t)q->row[i] * a->n_heads + q->head[i];

		merge(a->o + at * d, a->m + at, a->l + at, o[i], m[i], l[i],
		      d);
	}
	q->n = 0;
}

static void add_query(const struct kern_attn *a, const struct kern_span *s,
		      const struct tile *t, struct queries *q, uint32_t row,
		      uint32_t head, uint32_t mask)
{
	const size_t at = s->q_variant * a->q_variant_elems +
			  ((size_t)row * a->n_heads + head) * a->head_dim;
	const char *src = (const char *)a->q + at * kern_type_bytes(a->type);
	const uint32_t i = q->n++;

	q->row[i] = row;
	q->head[i] = head;
	q->mask[i] = mask;
	if (a->type == KERN_F16) {
		key_words(a, src, q->words[i]);
		q->x[i] = q->words[i];
	} else {
		q->x[i] = (const uint32_t *)src;
	}
	if (q->n == ROWS)
		run_queries(a, t, q);
}

/* The union of what rows see; 0: the tile is not needed. */
static uint32_t seen_by_rows(const struct kern_attn *a,
			     const struct kern_span *s, uint32_t t0)
{
	uint32_t seen = 0;

	for (uint32_t r = a->row_from; r < a->row_to; r++)
		seen |= kern_tile_mask(s, t0, a->q_pos[r]);
	return seen;
}

static void prefetch(const char *p, size_t n_bytes)
{
	for (size_t i = 0; i < n_bytes; i += 64)
		__builtin_prefetch(p + i);
}

static void attn_tile(const struct kern_attn *a, const struct kern_span *s,
		      uint32_t t0, uint32_t h, struct tile *t)
{
	const uint32_t seen = seen_by_rows(a, s, t0);
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const uint32_t left = s->n_tokens - t0;
	const char *v = kern_tile_addr(a, s, s->v, t0, h);
	const size_t bytes = TILE * a->head_dim * kern_type_bytes(a->type);
	struct queries q = { .n = 0 };

	if (!seen)
		return;
	if (left > TILE) {
		prefetch(kern_tile_addr(a, s, s->k, t0 + TILE, h), bytes);
		prefetch(kern_tile_addr(a, s, s->v, t0 + TILE, h), bytes);
	}
	pack_keys(a, kern_tile_addr(a, s, s->k, t0, h),
		  left < TILE ? left : TILE, t);
	for (uint32_t d = 0; d < a->head_dim; d += LANES)
		pack_value_panel(a, v, seen, d,
				 t->v + d / LANES * t->v_panel);
	for (uint32_t r = a->row_from; r < a->row_to; r++) {
		const uint32_t mask = kern_tile_mask(s, t0, a->q_pos[r]);

		for (uint32_t g = 0; g < group && mask; g++)
			add_query(a, s, t, &q, r, h * group + g, mask);
	}
	if (q.n)
		run_queries(a, t, &q);
}

static void attn(const struct kern_attn *a)
{
	const int bf16 = a->type == KERN_BF16;
	unsigned int mxcsr = 0;
	struct tile t;

	t.k_words = bf16 ? a->head_dim / 2 : a->head_dim;
	t.v_words = bf16 ? TILE / 2 : TILE;
	t.k_panel = (size_t)t.k_words * LANES;
	t.v_panel = (size_t)t.v_words * LANES;
	if (bf16)
		mxcsr = kern_flush_denormals();
	for (uint32_t h = a->kv_head_from; h < a->kv_head_to; h++)
		for (uint32_t i = 0; i < a->n_spans; i++)
			for (uint32_t t0 = 0; t0 < a->spans[i].n_tokens;
			     t0 += TILE)
				attn_tile(a, &a->spans[i], t0, h, &t);
	if (bf16)
		kern_restore_denormals(mxcsr);
}

const struct cpu_ops VEC_NAME(ops) = { .linear = linear, .attn = attn };
