/*
 * cpu_elem.h - norms, SwiGLU, conversions, angles: one source for all CPUs
 *
 * Plain loops in a written order, compiled once per instruction set without
 * contraction: every vector width gives the same bytes.
 */
#ifndef KERNELS_CPU_ELEM_H
#define KERNELS_CPU_ELEM_H

#include <math.h>
#include <string.h>
#include "kernels/cpu.h"

#define ELEM_LANES KERN_LANES

/* Squares in lanes i % 16, lanes summed by halves. */
static void elem_rmsnorm(const float *x, const float *w, float *y,
			 uint32_t n_rows, uint32_t n, float eps)
{
	for (uint32_t r = 0; r < n_rows; r++) {
		const float *xr = x + (size_t)r * n;
		float *yr = y + (size_t)r * n;
		float lane[ELEM_LANES] = { 0 }, s;
		uint32_t i = 0;

		for (; i + ELEM_LANES <= n; i += ELEM_LANES)
			for (uint32_t k = 0; k < ELEM_LANES; k++)
				lane[k] += xr[i + k] * xr[i + k];
		for (; i < n; i++)
			lane[i % ELEM_LANES] += xr[i] * xr[i];
		for (uint32_t h = ELEM_LANES / 2; h; h /= 2)
			for (uint32_t k = 0; k < h; k++)
				lane[k] += lane[k + h];
		s = 1.0f / sqrtf(lane[0] / (float)n + eps);
		for (i = 0; i < n; i++)
			yr[i] = xr[i] * s * w[i];
	}
}

/* silu(g) = g / (1 + exp(-g)), with exp of a number <= 0 on either side. */
static inline float elem_silu(float g)
{
	const float e = kern_exp(-__builtin_fabsf(g));

	return kern_pick(g > 0, g, g * e) / (1.0f + e);
}

/* y may be gate or up: so a few at a time, in places of their own. */
static void elem_swiglu(const float *gate, const float *up, float *y, size_t n)
{
	float g[ELEM_LANES] = { 0 }, u[ELEM_LANES] = { 0 };

	for (size_t i = 0; i < n; i += ELEM_LANES) {
		const size_t left = n - i < ELEM_LANES ? n - i : ELEM_LANES;

		if (left < ELEM_LANES) {
			memcpy(g, gate + i, left * sizeof(*g));
			memcpy(u, up + i, left * sizeof(*u));
		} else {
			memcpy(g, gate + i, sizeof(g));
			memcpy(u, up + i, sizeof(u));
		}
		for (uint32_t k = 0; k < ELEM_LANES; k++)
			g[k] = elem_silu(g[k]) * u[k];
		if (left < ELEM_LANES)
			memcpy(y + i, g, left * sizeof(*g));
		else
			memcpy(y + i, g, sizeof(g));
	}
}

static void elem_add(const float *x, float *y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] += x[i];
}

/* y = exp((x - max) / t) for x <= max. */
static void elem_exps(const float *x, float max, float t, float *y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		y[i] = kern_exp((x[i] - max) / t);
}

/* x / l, and 0 where there was nothing to sum. */
static void elem_finish(float *x, float l, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] = l > 0 ? x[i] / l : 0;
}

static void elem_to_bf16(const float *src, uint16_t *dst, size_t n)
{
	for (size_t i = 0; i < n; i++)
		dst[i] = kern_bf16(src[i]);
}

static void elem_from_bf16(const uint16_t *src, float *dst, size_t n)
{
	for (size_t i = 0; i < n; i++)
		dst[i] = kern_from_bf16(src[i]);
}

/* Heads of a row: pair i of each by the angle of sn[i], cs[i]. */
static void elem_rotate(float *row, const float *sn, const float *cs,
			uint32_t half, int halves, uint32_t n_heads,
			uint32_t head_dim)
{
	for (uint32_t h = 0; h < n_heads; h++, row += head_dim) {
		for (uint32_t i = 0; i < half && halves; i++) {
			const float x = row[i], y = row[i + half];

			row[i] = x * cs[i] - y * sn[i];
			row[i + half] = x * sn[i] + y * cs[i];
		}
		for (uint32_t i = 0; i < half && !halves; i++) {
			const float x = row[2 * i], y = row[2 * i + 1];

			row[2 * i] = x * cs[i] - y * sn[i];
			row[2 * i + 1] = x * sn[i] + y * cs[i];
		}
	}
}

#define HALF_PI_HI 1.57079632673412561417e+00 /* 33 bits of pi/2 */
#define HALF_PI_LO 6.07710050650619224932e-11 /* the rest */

/*
 * sin and cos of at * f[i], below 1e8: quarter turns off, then Taylor series
 * on [-pi/4, pi/4].
 */
static void elem_sincos(double at, const double *f, float *sn, float *cs,
			uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
		const double x = at * f[i];
		const double t = x * 0.63661977236758134 + magic;
		const double m = t - magic;
		const double r = (x - m * HALF_PI_HI) - m * HALF_PI_LO;
		const double r2 = r * r;
		double s = 1.0 / 6227020800.0, c = -1.0 / 87178291200.0;
		uint64_t q;
		float fs, fc;

		memcpy(&q, &t, sizeof(q)); /* low bits: the quarter */
		s = s * r2 + -1.0 / 39916800;
		s = s * r2 + 1.0 / 362880;
		s = s * r2 + -1.0 / 5040;
		s = s * r2 + 1.0 / 120;
		s = s * r2 + -1.0 / 6;
		s = r * (1 + r2 * s);
		c = c * r2 + 1.0 / 479001600.0;
		c = c * r2 + -1.0 / 3628800;
		c = c * r2 + 1.0 / 40320;
		c = c * r2 + -1.0 / 720;
		c = c * r2 + 1.0 / 24;
		c = c * r2 + -0.5;
		c = 1 + r2 * c;
		fs = (float)(q & 1 ? c : s);
		fc = (float)(q & 1 ? s : c);
		sn[i] = q & 2 ? -fs : fs;
		cs[i] = (q + 1) & 2 ? -fc : fc;
	}
}

#endif
