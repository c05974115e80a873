/*
 * chunk.c - token hash to chunk; see chunk.h
 */
#include "kvd/cache/chunk.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <string.h>

void chunk_init(struct chunk_table *t)
{
	memset(t, 0, sizeof(*t));
	map_init(&t->map);
	t->max = CHUNK_MAX;
}

void chunk_fini(struct chunk_table *t)
{
	assert(!t->map.n_used);
	map_fini(&t->map);
}

struct map_id chunk_id(const uint64_t model[2], const uint32_t *tokens,
		       size_t n)
{
	static const char kind[8] = "chunk 1";
	crypto_generichash_state st;
	struct map_id id;

	crypto_generichash_init(&st, NULL, 0, sizeof(id));
	crypto_generichash_update(&st, (const void *)kind, sizeof(kind));
	crypto_generichash_update(&st, (const void *)model,
				  2 * sizeof(model[0]));
	crypto_generichash_update(&st, (const void *)tokens,
				  n * sizeof(*tokens));
	crypto_generichash_final(&st, (unsigned char *)&id, sizeof(id));
	return id;
}

/* ---- scores --------------------------------------------------------------- */

double chunk_value(const struct chunk_table *t, const struct segment *s)
{
	return exp2(s->rank.key - t->now) * (double)s->bytes;
}

static double worth(const struct segment *s, const void *ctx)
{
	const struct chunk_table *t = ctx;

	return exp2(s->rank.key - t->now);
}

/* All scores shrink alike: a key does not change until the next use. */
static void rank(struct chunk_table *t, struct segment *s, double value)
{
	s->rank.key = t->now + log2(value / (double)s->bytes);
	s->rank.stamp = ++t->n_uses;
	evict_heap_push(&t->heap, &s->rank);
}

void chunk_set_value(struct chunk_table *t, struct segment *s, double value)
{
	evict_heap_del(&t->heap, &s->rank);
	rank(t, s, value);
}

static void use(struct chunk_table *t, struct segment *s, double gain)
{
	t->now += 1 / (CHUNK_HALF_LIFE * (double)(t->map.n_used + 1));
	chunk_set_value(t, s, chunk_value(t, s) + gain);
}

/* ---- the table ------------------------------------------------------------ */

struct segment *chunk_find(struct chunk_table *t, struct map_id id,
			   const uint32_t *tokens, size_t n)
{
	struct segment *s = map_find(&t->map, id);

	if (!s)
		return NULL;
	if (tokens && (s->n_tokens != n ||
		       memcmp(s->tokens, tokens, n * sizeof(*tokens))))
		return NULL;
	if (range_lost(s->range)) {
		segment_forget(s);
		return NULL;
	}
	if (!segment_fits(s))
		return NULL;
	segment_get(s);
	s->n_hits++;
	use(t, s, (double)CHUNK_GAIN);
	range_gain(s->range, CHUNK_GAIN);
	return s;
}

static void unindex(struct segment *s, void *ctx)
{
	struct chunk_table *t = ctx;

	map_del(&t->map, s->chunk_id);
	evict_heap_del(&t->heap, &s->rank);
	s->is_chunk = 0;
	if (!s->evicted)
		return;
	t->n_evicted++;
	if (t->st_evicted)
		stat_add(t->st_evicted, 1);
}

int chunk_room(const struct chunk_table *t)
{
	return t->map.n_used < t->max;
}

int chunk_add(struct chunk_table *t, struct segment *s, struct map_id id)
{
	int ret;

	assert(s->sealed && s->tokens);
	if (map_find(&t->map, id))
		return -EALREADY;
	while (t->heap.root && !chunk_room(t))
		segment_evict(container_of(t->heap.root, struct segment, rank));
	ret = map_add(&t->map, id, s);
	if (ret)
		return ret;
	s->chunk_id = id;
	s->is_chunk = 1;
	s->unindex = unindex;
	s->worth = worth;
	s->unindex_ctx = t;
	/* computing it was a use that saved nothing */
	rank(t, s, 1);
	return 0;
}

int chunk_rm(struct chunk_table *t, struct map_id id)
{
	struct segment *s = map_find(&t->map, id);

	if (!s)
		return -ENOENT;
	segment_forget(s);
	return 0;
}

static uint64_t check_heap(const struct evict_node *n,
			   const struct evict_node *parent)
{
	uint64_t sum = 0;

	for (; n; n = n->next) {
		const struct segment *s = container_of(n, struct segment, rank);

		assert(s->is_chunk && s->sealed && s->tokens);
		assert(!parent || !evict_before(n, parent));
		sum += 1 + check_heap(n->child, n);
	}
	return sum;
}

void chunk_table_check(const struct chunk_table *t)
{
	assert(check_heap(t->heap.root, NULL) == t->map.n_used);
	assert(t->map.n_used <= t->max);
}
