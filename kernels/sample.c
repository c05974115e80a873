/*
 * sample.c - from logits to a token; see kern.h
 *
 * Noise is a counter: Philox 4x32-10 (Salmon et al. 2011, "Parallel random
 * numbers: as easy as 1, 2, 3") keyed by the seed at the absolute position.
 * Candidates are a heap in the caller's scratch: few are ever taken off it.
 */
#include "kernels/kern.h"

#include <math.h>
#include "kernels/cpu.h"

uint32_t kern_argmax(const float *x, uint32_t n)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < n; i++)
		if (x[i] > x[best])
			best = i;
	return best;
}

#define CHUNK 256u

float kern_logsumexp(const float *x, uint32_t n)
{
	const float m = x[kern_argmax(x, n)];
	float e[CHUNK];
	double sum = 0;

	for (uint32_t i = 0; i < n; i += CHUNK) {
		const uint32_t k = n - i < CHUNK ? n - i : CHUNK;

		kern_ops()->exps(x + i, m, 1, e, k);
		for (uint32_t j = 0; j < k; j++)
			sum += (double)e[j];
	}
	return m + kern_log_ge1((float)sum);
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
	float p; /* weight relative to the largest */
	uint32_t id;
};

/* 1 if a comes before b: heavier, or as heavy with the lower id. */
static int before(const struct cand *a, const struct cand *b)
{
	return a->p != b->p ? a->p > b->p : a->id < b->id;
}

/* Let c[i] sink in the heap of n, the first candidate on top. */
static void sink(struct cand *c, uint32_t n, uint32_t i)
{
	const struct cand x = c[i];
	uint32_t k;

	for (; (k = 2 * i + 1) < n; i = k) {
		k += k + 1 < n && before(&c[k + 1], &c[k]);
		if (!before(&c[k], &x))
			break;
		c[i] = c[k];
	}
	c[i] = x;
}

/* Take the first candidate off a heap of n: it moves behind the others. */
static struct cand pop(struct cand *c, uint32_t n)
{
	const struct cand x = c[0];

	c[0] = c[n - 1];
	c[n - 1] = x;
	sink(c, n - 1, 0);
	return x;
}

/*
 * How many candidates the limits keep, *total their weight. They are taken off
 * the heap in order: the i-th is then c[n - 1 - i]. Where nothing is limited
 * none is, and 0 comes back.
 */
static uint32_t cut(const struct kern_sample *p, struct cand *c, uint32_t n,
		    double *total)
{
	const uint32_t most = p->top_k && p->top_k < n ? p->top_k : n;
	double all = 0, sum = 0, enough;
	uint32_t k;

	if (most == n) {
		for (uint32_t i = 0; i < n; i++)
			all += (double)c[i].p;
	}
	*total = all;
	if (most == n && p->top_p >= 1 && !(p->min_p > 0))
		return 0;
	if (most < n && p->top_p < 1) { /* of the weight of the top k */
		for (k = 0; k < most; k++)
			all += (double)pop(c, n - k).p;
		for (k = 0; k < most; k++)
			if (k && (sum >= (double)p->top_p * all ||
				  c[n - 1 - k].p < p->min_p))
				break;
			else
				sum += (double)c[n - 1 - k].p;
		*total = sum;
		return k;
	}
	enough = p->top_p < 1 ? (double)p->top_p * all : INFINITY;
	for (k = 0; k < most && sum < enough; k++) {
		if (k && c[0].p < p->min_p)
			break;
		sum += (double)pop(c, n - k).p;
	}
	*total = sum;
	return k;
}

/*
 * The candidate at u of the total weight: of the kept ones, or (kept = 0) of
 * all, in order of weight.
 */
static uint32_t draw(struct cand *c, uint32_t n, uint32_t kept, double u)
{
	uint32_t id = c[0].id;

	for (uint32_t i = 0; i < (kept ? kept : n); i++) {
		const struct cand x = kept ? c[n - 1 - i] : pop(c, n - i);

		if (!(x.p > 0))
			break;
		id = x.id;
		u -= (double)x.p;
		if (u < 0)
			break;
	}
	return id;
}

static void weigh(float temperature, const float *logits, uint32_t n, float max,
		  struct cand *c)
{
	float e[CHUNK];

	for (uint32_t i = 0; i < n; i += CHUNK) {
		const uint32_t k = n - i < CHUNK ? n - i : CHUNK;

		kern_ops()->exps(logits + i, max, temperature, e, k);
		for (uint32_t j = 0; j < k; j++)
			c[i + j] = (struct cand){ e[j], i + j };
	}
}

uint32_t kern_sample(const struct kern_sample *p, const float *logits,
		     uint32_t n, void *scratch, float *logprob)
{
	struct cand *c = scratch;
	uint32_t id = kern_argmax(logits, n), kept;
	const float max = logits[id];
	double total;

	if (p->temperature > 0) {
		weigh(p->temperature, logits, n, max, c);
		for (uint32_t i = n / 2; i-- > 0;)
			sink(c, n, i);
		kept = cut(p, c, n, &total);
		id = draw(c, n, kept, uniform(p->seed, p->pos) * total);
	}
	*logprob = logits[id] - kern_logsumexp(logits, n);
	return id;
}
