/*
 * pick_random.c - any tokens, always the same of a chunk: the control
 */
#include "kvd/serve/pick.h"

/* splitmix64: the same tokens for the same chunk, for ever. */
static uint64_t next_random(uint64_t *s)
{
	uint64_t z = *s += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* Knuth's selection sampling: each k-subset is as likely, in ascending order. */
static void some(struct map_id chunk, uint32_t n, uint32_t k, uint32_t *at)
{
	uint64_t seed = chunk.w[0] ^ chunk.w[1];
	uint32_t m = 0;

	for (uint32_t i = 0; i < n && m < k; i++)
		if (next_random(&seed) % (n - i) < k - m)
			at[m++] = i;
}

const struct pick pick_random = { .some = some, .choose = pick_each };
