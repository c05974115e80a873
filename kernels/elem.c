/*
 * elem.c - norms, rotation, SwiGLU; the loops are in cpu_elem.h
 */
#include "kernels/kern.h"

#include <math.h>
#include <string.h>
#include "kernels/cpu.h"

void kern_rmsnorm(const float *x, const float *w, float *y, uint32_t n_rows,
		  uint32_t n, float eps)
{
	kern_ops()->rmsnorm(x, w, y, n_rows, n, eps);
}

void kern_swiglu(const float *gate, const float *up, float *y, size_t n)
{
	kern_ops()->swiglu(gate, up, y, n);
}

void kern_add(const float *x, float *y, size_t n)
{
	kern_ops()->add(x, y, n);
}

/* ---- rotation ---------------------------------------------------------- */

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

		kern_ops()->sincos(at, f, sn, cs, p->n_rot / 2);
		for (uint32_t h = 0; h < n_heads; h++)
			rotate(p, row + (size_t)h * head_dim,
			       row + (size_t)h * head_dim, sn, cs);
	}
}
