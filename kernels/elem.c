/*
 * elem.c - norms, rotation, SwiGLU: elementwise, portable, one source for all CPUs
 *
 * Multiplications and additions only (no contraction), in a written order, so
 * every CPU and every vector width give the same bytes.
 */
#include "kernels/kern.h"

#include <math.h>
#include <string.h>
#include "kernels/ref.h"

#define LANES KERN_LANES

void kern_rmsnorm(const float *x, const float *w, float *y, uint32_t n_rows,
		  uint32_t n, float eps)
{
	for (uint32_t r = 0; r < n_rows; r++) {
		const float *xr = x + (size_t)r * n;
		float *yr = y + (size_t)r * n;
		float lane[LANES] = { 0 }, s;
		uint32_t i = 0;

		for (; i + LANES <= n; i += LANES)
			for (uint32_t k = 0; k < LANES; k++)
				lane[k] += xr[i + k] * xr[i + k];
		for (; i < n; i++)
			lane[i % LANES] += xr[i] * xr[i];
		for (uint32_t h = LANES / 2; h; h /= 2)
			for (uint32_t k = 0; k < h; k++)
				lane[k] += lane[k + h];
		s = 1.0f / sqrtf(lane[0] / (float)n + eps);
		for (i = 0; i < n; i++)
			yr[i] = xr[i] * s * w[i];
	}
}

/* silu(g) = g / (1 + exp(-g)), with exp of a number <= 0 on either side. */
static float silu(float g)
{
	const float e = ref_exp(g > 0 ? -g : g);

	return g > 0 ? g / (1.0f + e) : g * e / (1.0f + e);
}

void kern_swiglu(const float *gate, const float *up, float *y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] = silu(gate[i]) * up[i];
}

void kern_add(const float *x, float *y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] += x[i];
}

/* ---- rotation ------------------------------------------------------------------ */

/* ln x for x > 0: x = 2^e m, ln m by the series of atanh; error below 1e-15. */
static double log_f64(double x)
{
	int e;
	double m = frexp(x, &e), s, s2, sum = 0;

	if (m < 0.70710678118654752) {
		m *= 2;
		e--;
	}
	s = (m - 1) / (m + 1);
	s2 = s * s;
	for (int k = 25; k >= 1; k -= 2)
		sum = sum * s2 + 1.0 / k;
	return 2 * s * sum + e * 0.69314718055994531;
}

static double exp_f64(double x)
{
	const double n = rint(x * 1.4426950408889634);
	const double f = x - n * 0.69314718055994531;
	double p = 1;

	for (int k = 16; k >= 1; k--)
		p = p * f / k + 1;
	return ldexp(p, (int)n);
}

#define HALF_PI_HI 1.57079632673412561417e+00 /* 33 bits of pi/2 */
#define HALF_PI_LO 6.07710050650619224932e-11 /* the rest */

/* sin and cos of an angle below 1e8: quarter turns off, then Taylor series. */
static void sincos_f64(double x, float *sn, float *cs)
{
	const double n = rint(x * 0.63661977236758134);
	const double r = (x - n * HALF_PI_HI) - n * HALF_PI_LO, r2 = r * r;
	const int64_t q = (int64_t)n;
	double s, c;

	s = r * (1 + r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 +
	    r2 * (1.0 / 362880 + r2 * (-1.0 / 39916800 +
	    r2 * (1.0 / 6227020800.0)))))));
	c = 1 + r2 * (-0.5 + r2 * (1.0 / 24 + r2 * (-1.0 / 720 +
	    r2 * (1.0 / 40320 + r2 * (-1.0 / 3628800 +
	    r2 * (1.0 / 479001600.0 + r2 * (-1.0 / 87178291200.0)))))));
	*sn = (float)(q & 1 ? c : s);
	*cs = (float)(q & 1 ? s : c);
	if (q & 2)
		*sn = -*sn;
	if ((q + 1) & 2)
		*cs = -*cs;
}

struct frequencies {
	float theta;
	uint32_t n_rot;
	double f[KERN_HEAD_DIM_MAX / 2];
};

/* theta^(-2i/n_rot): the same for a whole model, so the last is kept. */
static const double *frequencies(const struct kern_rope *p)
{
	static _Thread_local struct frequencies last;
	double ln;

	if (last.theta == p->theta && last.n_rot == p->n_rot)
		return last.f;
	ln = log_f64((double)p->theta);
	for (uint32_t i = 0; i < p->n_rot / 2; i++)
		last.f[i] = exp_f64(-ln * 2 * i / p->n_rot);
	last.theta = p->theta;
	last.n_rot = p->n_rot;
	return last.f;
}

static void rotate(const struct kern_rope *p, const float *src, float *dst,
		   const float *sn, const float *cs)
{
	const uint32_t half = p->n_rot / 2;
	const int halves = p->kind == KERN_ROPE_HALVES;

	for (uint32_t i = 0; i < half; i++) {
		const uint32_t a = halves ? i : 2 * i;
		const uint32_t b = halves ? i + half : 2 * i + 1;
		const float x = src[a], y = src[b];

		dst[a] = x * cs[i] - y * sn[i];
		dst[b] = x * sn[i] + y * cs[i];
	}
}

void kern_rope(const struct kern_rope *p, const float *src, float *dst,
	       const int64_t *pos, uint32_t n_rows, uint32_t n_heads,
	       uint32_t head_dim)
{
	float sn[KERN_HEAD_DIM_MAX / 2], cs[KERN_HEAD_DIM_MAX / 2];
	const double *f;

	if (src != dst)
		memcpy(dst, src,
		       (size_t)n_rows * n_heads * head_dim * sizeof(*dst));
	if (p->kind == KERN_ROPE_NONE)
		return;
	f = frequencies(p);
	for (uint32_t r = 0; r < n_rows; r++) {
		const double at = (double)pos[r] * (double)p->scale;
		float *row = dst + (size_t)r * n_heads * head_dim;

		for (uint32_t i = 0; i < p->n_rot / 2; i++)
			sincos_f64(at * f[i], &sn[i], &cs[i]);
		for (uint32_t h = 0; h < n_heads; h++)
			rotate(p, row + (size_t)h * head_dim,
			       row + (size_t)h * head_dim, sn, cs);
	}
}
