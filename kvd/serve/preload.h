/*
 * preload.h - what requests in line will need stays in memory, and comes up from disk
 * before their turn
 *
 * Of the first PRELOAD_AWAITED in line the prefixes found are awaited (segment.h): to the
 * policy their pages are about to be used, from the line until the request leaves it, however it
 * does. What comes into the index meanwhile is looked up when the line moves.
 *
 * The first PRELOAD_HEADS requests in line, in its order; of each what was found of its
 * prefix and its chunks, layer group by layer group, as the first step will use them: the
 * first group of everything, then the second (Cache-Craft, Agarwal et al. 2025,
 * arXiv:2502.15734). A stage has RESTORE_BYTES of each run or more, as in restore.h.
 *
 *  (1) Pages are asked for as WANT_PREFETCH: into free frames, behind all that is
 *      wanted. When there is no room it is tried again, for the same request.
 *  (2) At most PRELOAD_BYTES of a tenant are on their way. A request that has left
 *      the line, cancelled or admitted, has nothing more asked for.
 *  (3) No references are held: what leaves the index meanwhile is passed over.
 *  (4) One request a turn is hashed, and nobody behind the first PRELOAD_AWAITED looked at.
 *  (5) Only the tenant's own segments are awaited, so it only moves its own pages.
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_PRELOAD_H
#define KVD_SERVE_PRELOAD_H

#include <stdint.h>
#include "kvd/base/map.h"
#include "kvd/cache/segment.h"

#define PRELOAD_BYTES	(4u << 20)
#define PRELOAD_HEADS	8u
#define PRELOAD_AWAITED 64u

struct gen;
struct serve_tenant;

/* Of one segment. */
struct preload_item {
	uint32_t i_part; /* a chunk of this part; UINT32_MAX: of the prefix */
	struct map_id id; /* prefix: of its first tile, in the index */
	uint32_t from, n; /* tokens of the segment */
	struct segment_await await;
};

struct preload {
	uint32_t n_stages, n_groups; /* layer groups of a stage */
	/* Of n_stages * n_items, stage by stage: are there; were asked for. */
	uint32_t n_done, n_asked;
	uint64_t seen; /* prefix_tree.n_added then */
	int has_next, counted;
	struct map_id next; /* of the first tile that was not there */
	uint32_t n_items;
	struct preload_item items[];
};

/* Somebody stands in line, or the line has moved: look soon. */
void preload_wake(struct serve_tenant *t);
/* g has left the line, or begins anew: nothing is awaited for it, nor asked for. */
void preload_end(struct gen *g);

#endif
