/*
 * bench_stats.c - how far two answers are apart, and whether that is chance
 */
#include "tools/bench.h"

#include <math.h>

double bench_mcnemar(uint32_t n_only_a, uint32_t n_only_b)
{
	const uint32_t n = n_only_a + n_only_b;
	const uint32_t k = KV_MIN(n_only_a, n_only_b);
	double p = 0;

	for (uint32_t i = 0; i <= k; i++)
		p += exp(lgamma(n + 1.0) - lgamma(i + 1.0) -
			 lgamma(n - i + 1.0) - n * log(2.0));
	return 2 * p < 1 ? 2 * p : 1;
}

static double log_sum(const float *x, uint32_t n)
{
	double max = -INFINITY, sum = 0;

	for (uint32_t i = 0; i < n; i++)
		max = fmax(max, (double)x[i]);
	for (uint32_t i = 0; i < n; i++)
		sum += exp((double)x[i] - max);
	return max + log(sum);
}

double bench_kl(const float *p, const float *q, uint32_t n)
{
	const double lp = log_sum(p, n), lq = log_sum(q, n);
	double kl = 0;

	for (uint32_t i = 0; i < n; i++) {
		const double l = (double)p[i] - lp;

		kl += exp(l) * (l - ((double)q[i] - lq));
	}
	return kl;
}
