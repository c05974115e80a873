/*
 * chunk.c - token hash to chunk; see chunk.h
 */
#include "kvd/cache/chunk.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>

void chunk_init(struct chunk_table *t)
{
	map_init(&t->map);
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
	return s;
}

static void unindex(struct segment *s, void *ctx)
{
	struct chunk_table *t = ctx;

	map_del(&t->map, s->chunk_id);
	s->is_chunk = 0;
}

int chunk_add(struct chunk_table *t, struct segment *s, struct map_id id)
{
	int ret;

	assert(s->sealed && s->tokens);
	ret = map_add(&t->map, id, s);
	if (ret)
		return ret;
	s->chunk_id = id;
	s->is_chunk = 1;
	s->unindex = unindex;
	s->unindex_ctx = t;
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
