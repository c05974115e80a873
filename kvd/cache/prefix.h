/*
 * prefix.h - share the segments of equal token prefixes between sequences
 *
 * A chain id hashes one tile (SEGMENT_BLOCK tokens, or what is left at the end of a
 * part) and the id before it: equal ids, equal prefixes, equal tile grid (Zheng
 * et al. 2023, arXiv:2312.07104; per block as in vLLM, Kwon et al. 2023,
 * arXiv:2309.06180). One tree per tenant: a hit on somebody else's segment would be
 * a timing leak. A look-up compares the tokens too.
 *
 * Thread: loop thread.
 */
#ifndef KVD_CACHE_PREFIX_H
#define KVD_CACHE_PREFIX_H

#include "kvd/cache/segment.h"

struct prefix_tree {
	struct map map; /* chain id to segment; borrowed */
	uint64_t n_added; /* segments so far: has anything come? */
};

void prefix_init(struct prefix_tree *t);
void prefix_fini(struct prefix_tree *t); /* its segments were forgotten */

/* The id before the first tile; model names weights and arithmetic. */
struct map_id prefix_root(const uint64_t model[2]);
#define PREFIX_PART_BEGIN 1u /* the tile is the first of its part */
/* The id of a tile of n <= SEGMENT_BLOCK tokens behind prev. */
struct map_id prefix_tile(struct map_id prev, const uint32_t *tokens,
			  uint32_t n, uint32_t flags);
/* The id behind a chunk that was put in by reference. */
struct map_id prefix_chunk(struct map_id prev, struct map_id chunk);

/*
 * The segment with tile id and these n tokens, or NULL. The caller owes a
 * segment_put(). *block: which tile of the segment it is.
 */
struct segment *prefix_find(struct prefix_tree *t, struct map_id id,
			    const uint32_t *tokens, uint32_t n,
			    uint32_t *block);
/*
 * Index the sealed s by ids, one for each of its tiles; s owns ids (malloc'ed,
 * or segment_ids()) and must have its tokens. Tiles that are there already stay with the other
 * segment. 0, or -ENOMEM (then some are indexed, which does no harm).
 */
int prefix_add(struct prefix_tree *t, struct segment *s, struct map_id *ids);

#endif
