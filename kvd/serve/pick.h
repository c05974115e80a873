/*
 * pick.h - selectors: which tokens of chunks are computed again (repair.h); one file each
 *
 * Loop thread.
 */
#ifndef KVD_SERVE_PICK_H
#define KVD_SERVE_PICK_H

#include "kvd/serve/gen.h"

struct pick {
	int probes; /* it looks at r->dev: repair_measure() comes first */
	/* k of a chunk's n tokens, ascending into at [k]; NULL: there is no such thing */
	void (*some)(struct map_id chunk, uint32_t n, uint32_t k, uint32_t *at);
	/* r->k of the group's, ascending into at. 0, -ENOMEM. */
	int (*choose)(const struct gen *g, const struct repair_group *r,
		      uint32_t *at);
};
extern const struct pick pick_first, pick_random, pick_blend, pick_craft;

/* choose() by some(): the same share of each chunk, as far as r->k goes. */
int pick_each(const struct gen *g, const struct repair_group *r, uint32_t *at);

#endif
