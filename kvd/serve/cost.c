/*
 * cost.c - load or recompute; see cost.h
 */
#include "kvd/serve/cost.h"

#include "io/base.h"

uint32_t cost_cut(const uint64_t *load_ns, const uint64_t *compute_ns,
		  uint32_t n)
{
	uint64_t sum = 0, best;
	uint32_t cut = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += compute_ns[i];
	best = sum;
	for (uint32_t i = 0; i < n; i++) {
		sum = sum - compute_ns[i] + load_ns[i];
		if (sum <= best) {
			best = sum;
			cut = i + 1;
		}
	}
	return cut;
}

int cost_load(uint64_t load_ns, uint64_t compute_ns)
{
	return load_ns <= compute_ns + compute_ns / 10;
}

uint32_t cost_start(uint32_t n, uint64_t load_ns, uint64_t compute_ns)
{
	if (n <= 1 || load_ns <= compute_ns)
		return 1;
	/* n - (n - 1) tc / tl, rounded down */
	return n - (uint32_t)KV_DIV_UP((n - 1) * compute_ns, load_ns);
}
