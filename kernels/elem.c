/*
 * elem.c - norms, rotation, SwiGLU; the loops are in cpu_elem.h
 */
#include "kernels/kern.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
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

/*
 * Sines and cosines of the positions met lately: each layer of a step, each head's
 * row and each chunk asks for the same ones. One for each thread, by position modulo
 * its size; forgotten when the frequencies change.
 */
#define N_TURNS 1024u

struct turns {
	struct kern_rope of;
	const struct cpu_ops *ops; /* who made them */
	int64_t at[N_TURNS]; /* position of each, INT64_MIN: none */
	float *v; /* [N_TURNS][2][n_rot / 2]: sines, then cosines */
};

static _Thread_local struct turns *turns;
static pthread_key_t turns_key;

static void turns_free(void *arg)
{
	struct turns *t = arg;

	free(t->v);
	free(t);
}

__attribute__((constructor)) static void turns_init(void)
{
	(void)pthread_key_create(&turns_key, turns_free);
}

/* This thread's, for p; NULL: no memory. */
static struct turns *turns_of(const struct kern_rope *p)
{
	struct turns *t = turns;

	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			return NULL;
		if (pthread_setspecific(turns_key, t)) {
			free(t);
			return NULL;
		}
		turns = t;
	}
	if (t->v && t->ops == kern_ops() && t->of.theta == p->theta &&
	    t->of.n_rot == p->n_rot && t->of.scale == p->scale)
		return t;
	free(t->v);
	for (uint32_t i = 0; i < N_TURNS; i++)
		t->at[i] = INT64_MIN;
	t->of = *p;
	t->ops = kern_ops();
	t->v = malloc((size_t)N_TURNS * p->n_rot * sizeof(*t->v));
	return t->v ? t : NULL;
}

/* Sines and cosines of position pos; room [n_rot] serves when t is NULL. */
static const float *turn(struct turns *t, const struct kern_rope *p,
			 const double *f, int64_t pos, float *room)
{
	const uint32_t i = (uint64_t)pos % N_TURNS;
	float *v = t ? t->v + (size_t)i * p->n_rot : room;

	if (!t || t->at[i] != pos) {
		kern_ops()->sincos((double)pos * (double)p->scale, f, v,
				   v + p->n_rot / 2, p->n_rot / 2);
		if (t)
			t->at[i] = pos;
	}
	return v;
}

void kern_rope(const struct kern_rope *p, const float *src, float *dst,
	       const int64_t *pos, uint32_t n_rows, uint32_t n_heads,
	       uint32_t head_dim)
{
	float room[KERN_HEAD_DIM_MAX];
	struct turns *t;
	const double *f;

	if (src != dst)
		memcpy(dst, src,
		       (size_t)n_rows * n_heads * head_dim * sizeof(*dst));
	if (p->kind == KERN_ROPE_NONE)
		return;
	f = frequencies(p);
	t = turns_of(p);
	for (uint32_t r = 0; r < n_rows; r++) {
		float *row = dst + (size_t)r * n_heads * head_dim;
		const float *sn = turn(t, p, f, pos[r], room);
		const float *cs = sn + p->n_rot / 2;

		kern_ops()->rotate(row, sn, cs, p->n_rot / 2,
				   p->kind == KERN_ROPE_HALVES, n_heads,
				   head_dim);
	}
}
