/*
 * sample.c - from logits to a token; see kern.h
 *
 * Noise is a counter: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
 * easy as 1, 2, 3") keyed by the seed at the absolute position.
 */
#include "kernels/kern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/ref.h"

uint32_t kern_argmax(const float *x, uint32_t n)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < n; i++)
		if (x[i] > x[best])
			best = i;
	return best;
}

/* ln x, x >= 1: exponent and the series of atanh. */
static float log_ge1(float x)
{
	int e;
	float m = frexpf(x, &e), s, s2, sum = 0;

	if (m < 0.70710678f) {
		m *= 2;
		e--;
	}
	s = (m - 1) / (m + 1);
	s2 = s * s;
	for (int k = 11; k >= 1; k -= 2)
		sum = sum * s2 + 1.0f / (float)k;
	return 2 * s * sum + (float)e * 0.69314718f;
}

float kern_logsumexp(const float *x, uint32_t n)
{
	const float m = x[kern_argmax(x, n)];
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += (double)ref_exp(x[i] - m);
	return m + log_ge1((float)sum);
}

static void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
	for (int i = 0; i < 10; i++) {
		const uint64_t a = 0xD2511F53ull * c[0];
		const uint64_t b = 0xCD9E8D57ull * c[2];

		c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
		c[1] = (uint32_t)b;
		c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
		c[3] = (uint32_t)a;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
}

/* In [0, 1), 53 bits. */
static double uniform(uint64_t seed, uint64_t pos)
{
	uint32_t c[4] = { (uint32_t)pos, (uint32_t)(pos >> 32), 0, 0 };

	philox(c, (uint32_t)seed, (uint32_t)(seed >> 32));
	return (double)(((uint64_t)c[0] << 21) ^ (c[1] >> 11)) * 0x1p-53;
}

struct cand {
	float p; /* logit, then weight relative to the largest */
	uint32_t id;
};

/* Larger first; equal ones by id, so that the order is one. */
static int by_weight(const void *a, const void *b)
{
	const struct cand *x = a, *y = b;

	if (x->p != y->p)
		return x->p > y->p ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

/* Keep the head of the sorted list that the limits allow; its total weight. */
static uint32_t cut(const struct kern_sample *p, const struct cand *c,
		    uint32_t n, double *total)
{
	double all = 0, sum = 0;
	uint32_t k = 0;

	if (p->top_k && p->top_k < n)
		n = p->top_k;
	for (uint32_t i = 0; i < n; i++)
		all += (double)c[i].p;
	while (k < n &&
	       (!k || (sum < (double)p->top_p * all && c[k].p >= p->min_p)))
		sum += (double)c[k++].p;
	*total = sum;
	return k;
}

uint32_t kern_sample(const struct kern_sample *p, const float *logits,
		     uint32_t n, void *scratch, float *logprob)
{
	struct cand *c = scratch;
	uint32_t id = kern_argmax(logits, n), k;
	const float max = logits[id];
	double total, u;

	if (p->temperature > 0) {
		for (uint32_t i = 0; i < n; i++)
			c[i] = (struct cand){
				ref_exp((logits[i] - max) / p->temperature), i
			};
		qsort(c, n, sizeof(*c), by_weight);
		k = cut(p, c, n, &total);
		u = uniform(p->seed, p->pos) * total;
		for (uint32_t i = 0; i < k; i++) {
			id = c[i].id;
			u -= (double)c[i].p;
			if (u < 0)
				break;
		}
	}
	*logprob = logits[id] - kern_logsumexp(logits, n);
	return id;
}
