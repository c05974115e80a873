/*
 * ref.c - plain scalar C: the definition of correct; see ref.h
 */
#include "kernels/ref.h"

#include <math.h>
#include <string.h>
#include "kernels/cpu.h"

#define TILE KERN_KV_BLOCK

float ref_from_bf16(uint16_t x)
{
	return kern_from_bf16(x);
}

uint16_t ref_bf16(float x)
{
	return kern_bf16(x);
}

float ref_exp(float x)
{
	return kern_exp(x);
}

/* The chain of every second k of one group; a short one ends in zeros. */
static float chain(const uint16_t *x, const uint16_t *w, uint32_t k, uint32_t n)
{
	float sum = 0;

	for (; k < n; k += 2)
		sum = fmaf(ref_from_bf16(x[k]), ref_from_bf16(w[k]), sum);
	return n < 32 ? sum + 0.0f : sum;
}

float ref_dot_bf16(const uint16_t *x, const uint16_t *w, uint32_t n, float acc)
{
	for (uint32_t k = 0; k < n; k += 32) {
		const uint32_t g = n - k < 32 ? n - k : 32;

		acc += chain(x + k, w + k, 0, g) + chain(x + k, w + k, 1, g);
	}
	return acc;
}

/* ---- linear ------------------------------------------------------------ */

/* Weight k of the lane at panel. */
static uint16_t weight_at(const struct kern_weight *w, const uint32_t *panel,
			  uint32_t k)
{
	const size_t word = cpu_pair_word(w->order, k);

	return (uint16_t)(panel[word * KERN_LANES] >>
			  (cpu_pair_half(w->order, k) * 16));
}

static float one_output(const struct kern_linear *a, uint32_t row, uint32_t out)
{
	const struct kern_weight *w = a->w;
	const uint32_t *panel = w->data + out / KERN_LANES * w->panel_words;
	const uint32_t lane = out % KERN_LANES;
	float acc = 0;

	if (w->math == KERN_F32) {
		const float *x = (const float *)a->x + row * a->x_stride;
		const float *p = (const float *)panel;

		for (uint32_t k = 0; k < w->n_in; k++)
			acc = fmaf(x[k], p[(size_t)k * KERN_LANES + lane], acc);
		return acc;
	}
	const uint16_t *x = (const uint16_t *)a->x + row * a->x_stride;

	for (uint32_t k0 = 0; k0 < w->n_in; k0 += 32) {
		uint16_t wk[32];
		const uint32_t left = w->n_in - k0;
		const uint32_t n = left < 32 ? left : 32;

		for (uint32_t k = 0; k < n; k++)
			wk[k] = weight_at(w, panel + lane, k0 + k);
		acc = ref_dot_bf16(x + k0, wk, n, acc);
	}
	return acc;
}

void ref_linear(const struct kern_linear *a)
{
	const unsigned int mxcsr = kern_set_mxcsr(a->w->math);

	for (uint32_t r = 0; r < a->n_rows; r++)
		for (uint32_t o = a->out_from; o < a->out_to; o++) {
			float *y = a->y + r * a->y_stride + o;
			const float s = one_output(a, r, o);

			*y = a->flags & KERN_LINEAR_ADD ? *y + s : s;
		}
	kern_restore_mxcsr(mxcsr);
}

/* ---- attention --------------------------------------------------------- */

static void widen(enum kern_type type, const void *src, float *dst, uint32_t n)
{
	kern_to_f32(type, src, dst, n);
}

static float score(const struct kern_attn *a, const char *q, const char *k)
{
	float fq[KERN_HEAD_DIM_MAX], fk[KERN_HEAD_DIM_MAX], acc = 0;

	if (a->type == KERN_BF16)
		return ref_dot_bf16((const uint16_t *)q, (const uint16_t *)k,
				    a->head_dim, 0);
	widen(a->type, q, fq, a->head_dim);
	widen(a->type, k, fk, a->head_dim);
	for (uint32_t i = 0; i < a->head_dim; i++)
		acc = fmaf(fq[i], fk[i], acc);
	return acc;
}

/* Probabilities of the tokens seen (others 0), their sum, the largest logit. */
static void softmax(const struct kern_attn *a, uint32_t mask, float *s,
		    float *m, float *l)
{
	float lanes[KERN_LANES];

	*m = -INFINITY;
	for (uint32_t t = 0; t < TILE; t++) {
		s[t] *= a->scale;
		if (mask >> t & 1 && s[t] > *m)
			*m = s[t];
	}
	*m += 0.0f; /* no -0 */
	for (uint32_t t = 0; t < TILE; t++) {
		s[t] = mask >> t & 1 ? ref_exp(s[t] - *m) : 0;
		if (a->type == KERN_BF16)
			s[t] = ref_from_bf16(ref_bf16(s[t]));
	}
	/* the sum: lanes i and i + 16, then halves */
	for (uint32_t i = 0; i < KERN_LANES; i++)
		lanes[i] = s[i] + s[i + KERN_LANES];
	for (uint32_t n = KERN_LANES / 2; n; n /= 2)
		for (uint32_t i = 0; i < n; i++)
			lanes[i] += lanes[i + n];
	*l = lanes[0];
}

/* Dimension d of the output of a tile: sum over tokens of p v. */
static float weighted(const struct kern_attn *a, const char *v, uint32_t mask,
		      const float *p, uint32_t d)
{
	const size_t es = kern_type_bytes(a->type);
	float acc = 0, f;
	uint16_t bp[TILE], bv[TILE];

	for (uint32_t t = 0; t < TILE; t++) {
		const char *at = v + (t * a->head_dim + d) * es;

		if (a->type == KERN_BF16) {
			bp[t] = ref_bf16(p[t]);
			bv[t] = 0;
			if (mask >> t & 1)
				memcpy(&bv[t], at, sizeof(bv[t]));
			continue;
		}
		f = 0;
		if (mask >> t & 1)
			widen(a->type, at, &f, 1);
		acc = fmaf(p[t], f, acc);
	}
	return a->type == KERN_BF16 ? ref_dot_bf16(bp, bv, TILE, 0) : acc;
}

static void merge(const struct kern_attn *a, size_t at, const float *to,
		  float tm, float tl)
{
	float *o = a->o + at * a->head_dim, *m = a->m + at, *l = a->l + at;
	const float top = *m > tm ? *m : tm;
	const float wa = *m == top ? 1.0f : ref_exp(*m - top);
	const float wb = tm == top ? 1.0f : ref_exp(tm - top);

	for (uint32_t d = 0; d < a->head_dim; d++)
		o[d] = fmaf(to[d], wb, o[d] * wa);
	*l = fmaf(tl, wb, *l * wa);
	*m = top;
}

/* -0 is what leaves every number as it is when it is added to. */
static void clear(const struct kern_attn *a, size_t at)
{
	for (uint32_t d = 0; d < a->head_dim; d++)
		a->o[at * a->head_dim + d] = -0.0f;
	a->m[at] = -INFINITY;
	a->l[at] = 0;
}

static void one_tile(const struct kern_attn *a, const struct kern_span *s,
		     uint32_t t0, uint32_t row, uint32_t head, size_t to)
{
	const uint32_t h = head / (a->n_heads / a->n_kv_heads);
	const uint32_t mask = kern_tile_mask(s, t0, a->q_pos[row]);
	const size_t es = kern_type_bytes(a->type);
	const char *k = kern_tile_addr(a, s, s->k, t0, h);
	const char *v = kern_tile_addr(a, s, s->v, t0, h);
	const size_t at = (size_t)row * a->n_heads + head;
	const char *q =
		(const char *)a->q +
		(s->q_variant * a->q_variant_elems + at * a->head_dim) * es;
	float p[TILE] = { 0 }, o[KERN_HEAD_DIM_MAX], m, l;

	if (!mask)
		return;
	for (uint32_t t = 0; t < TILE; t++)
		if (mask >> t & 1)
			p[t] = score(a, q, k + t * a->head_dim * es);
	softmax(a, mask, p, &m, &l);
	for (uint32_t d = 0; d < a->head_dim; d++)
		o[d] = weighted(a, v, mask, p, d);
	merge(a, to, o, m, l);
}

/* All tiles of one row and head. */
static void one_row(const struct kern_attn *a, uint32_t row, uint32_t head)
{
	size_t to = (size_t)row * a->n_heads + head;

	for (uint32_t i = 0; i < a->n_spans; i++)
		for (uint32_t t = 0; t < a->spans[i].n_tokens; t += TILE) {
			if (a->tile_states)
				clear(a, to);
			one_tile(a, &a->spans[i], t, row, head, to);
			to += a->tile_states;
		}
}

void ref_attn(const struct kern_attn *a)
{
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const unsigned int mxcsr = kern_set_mxcsr(a->type);

	for (uint32_t r = a->row_from; r < a->row_to; r++)
		for (uint32_t h = a->kv_head_from * group;
		     h < a->kv_head_to * group; h++)
			one_row(a, r, h);
	kern_restore_mxcsr(mxcsr);
}

void ref_attn_merge(const struct kern_attn *a, const struct kern_attn *from,
		    uint32_t n_tiles)
{
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const unsigned int mxcsr = kern_set_mxcsr(a->type);

	for (size_t r = a->row_from; r < a->row_to; r++)
		for (size_t h = a->kv_head_from * group;
		     h < a->kv_head_to * group; h++)
			for (size_t i = 0; i < n_tiles; i++) {
				const size_t at = r * a->n_heads + h;
				const size_t t = at + i * from->tile_states;

				if (from->l[t] != 0)
					merge(a, at, from->o + t * a->head_dim,
					      from->m[t], from->l[t]);
			}
	kern_restore_mxcsr(mxcsr);
}
