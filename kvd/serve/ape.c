/*
 * ape.c - places and ids of chunks side by side; see ape.h
 */
#include "kvd/serve/ape.h"

#include <errno.h>
#include <sodium.h>
#include "kvd/serve/gen.h"

#define MAX_FACTOR 16.0f
#define MAX_WAYS   16u /* each is a state of every row */

/* The first parallel part; n_parts without one. */
static uint32_t first_of(const struct gen *g)
{
	uint32_t i = 0;

	while (i < g->n_parts && !g->parts[i].parallel)
		i++;
	return i;
}

/* Behind the last one. */
static uint32_t end_of(const struct gen *g)
{
	uint32_t i = g->n_parts;

	while (i && !g->parts[i - 1].parallel)
		i--;
	return i;
}

static int number_ok(float x)
{
	return x > 0 && x <= MAX_FACTOR; /* not if it is none */
}

/* In how many ways chunks are seen: pairs of temperature and scale. */
static uint32_t n_ways(const struct gen *g)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct seq_context *a = &g->parts[i].context;
		uint32_t k = 0;

		while (k < i &&
		       (!g->parts[k].parallel ||
			g->parts[k].context.temperature != a->temperature ||
			g->parts[k].context.scale != a->scale))
			k++;
		n += g->parts[i].parallel && k == i;
	}
	return n;
}

static int parts_ok(const struct gen *g, uint32_t first, uint32_t end)
{
	if ((g->req && (g->req->repair || g->edit)) || n_ways(g) > MAX_WAYS)
		return 0;
	for (uint32_t i = 0; i < end; i++) {
		const struct gen_part *p = &g->parts[i];

		if (i < first ? p->reuse : p->n && !p->parallel)
			return 0;
		if (p->parallel && (!number_ok(p->context.temperature) ||
				    !number_ok(p->context.scale)))
			return 0;
	}
	return 1;
}

/* kind: 1 a chunk behind what is shared, 2 a chunk and how it is seen */
static struct map_id hash(uint64_t kind, struct map_id a, struct map_id b)
{
	const struct {
		char name[8];
		uint64_t kind;
		struct map_id a, b;
	} in = { "ape", kind, a, b };
	struct map_id id;

	crypto_generichash((unsigned char *)&id, sizeof(id),
			   (const unsigned char *)&in, sizeof(in), NULL, 0);
	return id;
}

/* The id of the parts before the first. */
static struct map_id shared_id(const struct gen *g, uint32_t first)
{
	struct map_id id = prefix_root(g->model->id);

	for (uint32_t i = 0; i < first; i++) {
		const struct gen_part *p = &g->parts[i];

		for (uint32_t at = 0; at < p->n; at += SEGMENT_BLOCK)
			id = prefix_tile(id, g->tokens + p->first + at,
					 KV_MIN(SEGMENT_BLOCK, p->n - at),
					 at ? 0 : PREFIX_PART_BEGIN);
	}
	return id;
}

int ape_plan(struct gen *g)
{
	const uint32_t first = first_of(g), end = end_of(g);
	struct map_id shared;
	uint32_t longest = 0, n = 0;

	if (first == g->n_parts)
		return 0;
	if (!parts_ok(g, first, end))
		return -EINVAL;
	shared = shared_id(g, first);
	for (uint32_t i = first; i < end; i++) {
		struct gen_part *p = &g->parts[i];

		p->context.shift =
			(int64_t)g->parts[first].first - (int64_t)p->first;
		p->chunk = hash(1, shared, p->chunk);
		longest = KV_MAX(longest, p->n);
		n += p->n;
	}
	g->ape_shift = (int64_t)longest - (int64_t)n;
	return 0;
}

struct seq_context ape_context(const struct gen *g, const struct gen_part *part)
{
	const struct seq_context plain = { 0, 1, 1 };
	const struct seq_context behind = { g->ape_shift, 1, 1 };

	if (part->parallel)
		return part->context;
	return g->ape_shift && part >= &g->parts[end_of(g)] ? behind : plain;
}

struct map_id ape_id(const struct gen_part *part)
{
	struct map_id seen = { { 0, 0 } };

	_Static_assert(sizeof(float) == 4, "two in a word");
	__builtin_memcpy(&seen.w[0], &part->context.temperature, 4);
	__builtin_memcpy(&seen.w[1], &part->context.scale, 4);
	return hash(2, part->chunk, seen);
}

uint32_t ape_n_before(const struct gen *g, const struct gen_part *part)
{
	return part->parallel ? first_of(g) : 0;
}
