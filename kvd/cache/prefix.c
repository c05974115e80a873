/*
 * prefix.c - chained ids to segments; see prefix.h
 */
#include "kvd/cache/prefix.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

static struct map_id hash(const void *a, size_t a_len, const void *b,
			  size_t b_len)
{
	crypto_generichash_state st;
	struct map_id id;

	crypto_generichash_init(&st, NULL, 0, sizeof(id));
	crypto_generichash_update(&st, a, a_len);
	crypto_generichash_update(&st, b, b_len);
	crypto_generichash_final(&st, (unsigned char *)&id, sizeof(id));
	return id;
}

void prefix_init(struct prefix_tree *t)
{
	map_init(&t->map);
	t->n_added = 0;
}

void prefix_fini(struct prefix_tree *t)
{
	assert(!t->map.n_used);
	map_fini(&t->map);
}

/* What stands before the tokens of a tile in its hash. */
struct tile_head {
	struct map_id prev;
	uint32_t kind;
	uint32_t n;
};
enum { KIND_ROOT, KIND_TILE, KIND_TILE_BEGIN, KIND_CHUNK };

struct map_id prefix_root(const uint64_t model[2])
{
	struct tile_head h = { .kind = KIND_ROOT };

	return hash(&h, sizeof(h), model, 2 * sizeof(model[0]));
}

struct map_id prefix_tile(struct map_id prev, const uint32_t *tokens,
			  uint32_t n, uint32_t flags)
{
	struct tile_head h = {
		.prev = prev,
		.kind = flags & PREFIX_PART_BEGIN ? KIND_TILE_BEGIN : KIND_TILE,
		.n = n,
	};

	return hash(&h, sizeof(h), tokens, n * sizeof(*tokens));
}

struct map_id prefix_chunk(struct map_id prev, struct map_id chunk)
{
	struct tile_head h = { .prev = prev, .kind = KIND_CHUNK };

	return hash(&h, sizeof(h), &chunk, sizeof(chunk));
}

static uint32_t n_tiles(const struct segment *s)
{
	return KV_DIV_UP(s->n_tokens, SEGMENT_BLOCK);
}

struct segment *prefix_find(struct prefix_tree *t, struct map_id id,
			    const uint32_t *tokens, uint32_t n, uint32_t *block)
{
	struct segment *s = map_find(&t->map, id);
	uint32_t i = 0, at;

	if (!s)
		return NULL;
	while (i < n_tiles(s) && !map_id_equal(s->ids[i], id))
		i++;
	at = i * SEGMENT_BLOCK;
	if (at + n > s->n_tokens ||
	    memcmp(s->tokens + at, tokens, n * sizeof(*tokens)))
		return NULL;
	if (range_lost(s->range)) {
		segment_forget(s);
		return NULL;
	}
	if (!segment_fits(s))
		return NULL;
	segment_get(s);
	range_gain(s->range, RANGE_GAIN_MAX); /* the same bits: CFO 0 */
	*block = i;
	return s;
}

static void unindex(struct segment *s, void *ctx)
{
	struct prefix_tree *t = ctx;

	for (uint32_t i = 0; i < n_tiles(s); i++)
		if (map_find(&t->map, s->ids[i]) == s)
			map_del(&t->map, s->ids[i]);
	s->n_indexed = 0;
}

int prefix_add(struct prefix_tree *t, struct segment *s, struct map_id *ids)
{
	int ret = 0;

	assert(s->sealed && s->tokens && !s->ids);
	t->n_added++;
	s->ids = ids;
	s->unindex = unindex;
	s->unindex_ctx = t;
	for (uint32_t i = 0; i < n_tiles(s) && (!ret || ret == -EALREADY);
	     i++) {
		ret = map_add(&t->map, ids[i], s);
		if (!ret)
			s->n_indexed++;
	}
	return ret == -ENOMEM ? ret : 0;
}
