/*
 * segment.h - runs of tokens whose K and V lie in one range of pages
 *
 *             segment_seal()            last reference, not indexed
 *   OPEN ---------------------> SEALED -----------------------------> freed
 *
 *  (1) An open segment has one writer and grows; a sealed one never changes.
 *  (2) Every reader holds a reference. An index (prefix.h, chunk.h) holds none: a
 *      sealed segment that is indexed and has no reference is kept for reuse and
 *      stands in its pool's LRU list; segment_reclaim() frees the oldest.
 *  (3) The bytes of all segments of a pool <= capacity; those of the segments that
 *      are referenced <= pager_place_bytes(), so that each page has a place on some
 *      tier whatever others borrowed.
 *
 * Address of an element, token t, layer l, by arithmetic only:
 *   page  = t / page_tokens * n_groups + l / page_layers
 *   inside [page_layers][K|V][kv_head][page_tokens][head_dim], or, by token,
 *          [page_tokens][page_layers][K|V][kv_head][head_dim] without any padding:
 *          pages of one group side by side have one stride from token to token
 *
 * Thread: loop thread; readers of pinned pages on engine threads use
 * segment_addr() only, whose inputs do not change while a reference is held.
 */
#ifndef KVD_CACHE_SEGMENT_H
#define KVD_CACHE_SEGMENT_H

#include <stdint.h>
#include "kvd/base/list.h"
#include "kvd/base/map.h"
#include "kvd/mem/evict.h"
#include "kvd/mem/kind.h"
#include "kvd/mem/pager.h"

#define SEGMENT_BLOCK 32u /* tokens of a tile of the attention grid */

/* How K and V of a model lie in pages. Copied into each segment. */
struct kv_layout {
	uint32_t n_layers;
	uint32_t n_kv_heads;
	uint32_t head_dim;
	uint32_t elem_bytes;
	uint32_t
		page_tokens; /* a multiple of SEGMENT_BLOCK; in: 1, see below */
	uint32_t page_layers;
	enum { LAYOUT_BY_HEAD, LAYOUT_BY_TOKEN } order;
	uint32_t n_groups; /* of page_layers layers */
	size_t page_align; /* of page_bytes: a multiple of 4096; 0: 4096 */
	size_t page_bytes; /* multiple of page_align */
};
/*
 * Fill the derived fields; page_tokens 0 and page_layers 0 are chosen. Both: so
 * that a page is LAYOUT_MAX_FOLIOS or fewer whole folios, with as few bytes as can
 * be (docs/benchmarks, 2026-11-21-zen5-paging.md); with page_align of a device, so that
 * least is wasted (docs/gpu.md). Else 32 tokens, and layers up to
 * LAYOUT_PAGE_TARGET bytes. page_tokens 1 asks for LAYOUT_BY_TOKEN: pages of one layer (or
 * page_layers) and of as many tokens as it takes to fill whole folios, for devices; kernels
 * of the CPU do not know it. -EINVAL for shapes out of range.
 */
#define LAYOUT_PAGE_TARGET (1u << 20)
#define LAYOUT_FOLIO	   (2ull << 20)
#define LAYOUT_MAX_FOLIOS  2u
int kv_layout_init(struct kv_layout *g);
/* Bytes of the pages that hold n_tokens of all layers. */
uint64_t kv_layout_bytes(const struct kv_layout *g, uint32_t n_tokens);
/* Bytes of K and V of one token, without padding. */
uint64_t kv_layout_token_bytes(const struct kv_layout *g);

struct segment_pool;

struct segment {
	struct segment_pool *pool;
	struct list node; /* of all segments, or of those kept for reuse */
	struct kv_layout layout;
	struct range *range;
	uint64_t bytes; /* charged to the capacity */
	uint64_t waste; /* sealed: of them, beyond its tokens */
	uint32_t n_refs;
	uint32_t n_tokens; /* sealed: final; open: its writer's business */
	uint32_t cap_tokens;
	int64_t pos0; /* position token 0's key was rotated by */
	int sealed;
	uint32_t *tokens; /* [n_tokens] ids, or NULL; owned */
	struct map_id *ids; /* [n_blocks] chained ids, or NULL; owned */
	uint32_t i_table; /* the pool's */
	int adopted; /* its tokens lie behind it, and its ids if segment_ids() */
	uint32_t n_indexed; /* of ids in the prefix index */
	struct map_id chunk_id;
	int is_chunk; /* in the chunk table */
	int is_variant; /* in the table of variants */
	struct variant *variant; /* variant.h's, or NULL; owned */
	uint64_t n_hits;
	struct evict_node rank; /* chunk.h's: among the chunks of its table */
	/* Take it out of the index: set by who indexes it. */
	void (*unindex)(struct segment *s, void *ctx);
	/* Its score per byte, of those that have one: less goes first; or NULL. */
	double (*worth)(const struct segment *s, const void *ctx);
	void *unindex_ctx; /* of both */
	int evicted; /* unindex(): to make room */
	struct list awaits; /* who stands in line for it: segment_await.node */
	struct persist_node { /* persist.h's, once it is sealed */
		struct list node;
		uint64_t turn;
		int state;
	} persist;
};

/* One per tenant. pager is borrowed. capacity_bytes: see (3). */
int segment_pool_new(struct segment_pool **out, struct pager *pager,
		     uint64_t capacity_bytes);
/* No references are left; frees what was kept for reuse. */
void segment_pool_free(struct segment_pool *p);
struct pager *segment_pool_pager(struct segment_pool *p);
uint32_t segment_pool_n(const struct segment_pool *p);
uint64_t segment_pool_bytes(const struct segment_pool *p);
uint64_t segment_pool_capacity(const struct segment_pool *p);

/*
 * A new open segment with room for cap_tokens, with one reference. Frees
 * segments kept for reuse if the capacity asks for it; -EDQUOT when that is
 * not enough or those in use have no place for more, -ENOMEM.
 */
int segment_new(struct segment_pool *p, const struct kv_layout *g,
		uint32_t cap_tokens, int64_t pos0, struct segment **out);

/*
 * A segment that is not needed yet: it is given up when something else needs the room.
 * Zero before; seg is NULL when there is none (any more). -EDQUOT, -ENOMEM as above, but
 * others that are not needed yet are not given up for it.
 */
struct segment_ahead {
	struct list node; /* of the pool's */
	struct segment *seg;
};
int segment_ahead_new(struct segment_pool *p, const struct kv_layout *g,
		      uint32_t cap_tokens, int64_t pos0,
		      struct segment_ahead *a);
void segment_ahead_drop(struct segment_ahead *a);
/* It is needed: the caller's reference. */
struct segment *segment_ahead_take(struct segment_ahead *a);
/*
 * A sealed segment over a range that holds n_tokens already (a restart). Takes over
 * the range; one reference. -EINVAL the range has another size, -EDQUOT, -ENOMEM:
 * then the range stays the caller's. It has memory for its tokens, which the caller is to
 * fill, and for n_ids ids at segment_ids(), where prefix_add() may be told they are.
 */
int segment_adopt(struct segment_pool *p, const struct kv_layout *g,
		  uint32_t n_tokens, int64_t pos0, uint32_t n_ids,
		  struct range *range, struct segment **out);
static inline struct map_id *segment_ids(struct segment *s)
{
	return (struct map_id *)(s + 1);
}
/* Undo: the only reference, not indexed. The range is the caller's again. */
struct range *segment_disown(struct segment *s);
/* Make s immutable with n_tokens and give back the pages beyond. */
void segment_seal(struct segment *s, uint32_t n_tokens);
/* The segment over a range; NULL: it is no segment's. */
struct segment *segment_over(const struct range *r);
/* 1 when a reference may be taken without breaking (3). */
int segment_fits(const struct segment *s);
void segment_get(struct segment *s);
/* The last reference of an unindexed segment frees it. */
void segment_put(struct segment *s);
/*
 * Somebody is about to use s, without a reference yet: until the last of these ends its
 * pages go after all others of the tenant, and it is the last that segment_reclaim() frees
 * of those that are kept now. a is zero before; a->seg is NULL when it has ended, or s
 * has gone.
 */
struct segment_await {
	struct list node; /* of the segment's */
	struct segment *seg;
};
void segment_await(struct segment *s, struct segment_await *a);
void segment_await_end(struct segment_await *a);
/* Drop from its index; freed at once if nobody refers to it. */
void segment_forget(struct segment *s);
/* The same, to make room: its index counts it. */
void segment_evict(struct segment *s);
/*
 * Free the oldest segment kept for reuse; if that has a score, the one with the
 * least score of the SEGMENT_SAMPLE oldest. Not what is away (range_is_away()): that would be
 * lost, and make no room. -ENOSPC if there is none.
 */
#define SEGMENT_SAMPLE 32u
int segment_reclaim(struct segment_pool *p);
/* segment.persist.node of those sealed that are not durable, and not about to be. */
struct list *segment_volatiles(struct segment_pool *p);
void segment_each(struct segment_pool *p,
		  void (*fn)(struct segment *s, void *arg), void *arg);
/*
 * The same in parts: the next n places from *at (0 at first) on; 1: there are more. Between two
 * calls segments may come and go: who is there all the time is seen once.
 */
int segment_walk(struct segment_pool *p, uint32_t *at, uint32_t n,
		 void (*fn)(struct segment *s, void *arg), void *arg);
/* Bytes of pages beyond those of tokens. */
uint64_t segment_waste(const struct segment_pool *p);

/* K (v = 0) or V (v = 1) of token 0 of the page that holds token t, kv head 0. */
char *segment_addr(const struct segment *s, uint32_t layer, int v, uint32_t t);
static inline size_t layout_head_bytes(const struct kv_layout *g)
{
	return (size_t)(g->order == LAYOUT_BY_TOKEN ? 1 : g->page_tokens) *
	       g->head_dim * g->elem_bytes;
}
/* From token to token of a page. */
static inline size_t layout_row_bytes(const struct kv_layout *g)
{
	const size_t head = (size_t)g->head_dim * g->elem_bytes;

	return g->order == LAYOUT_BY_TOKEN
		       ? 2 * head * g->n_kv_heads * g->page_layers
		       : head;
}
/* Pages [first, first + n) that hold tokens [from, to) of all layers. */
void segment_pages(const struct segment *s, uint32_t from, uint32_t to,
		   struct page_run *run);
/*
 * Tell the pager what kind of use tokens [from, from + n) had. f is of the request;
 * f->at_token is the position of `from` in it, f->page_tokens is filled in here.
 */
void segment_kind(struct segment *s, uint32_t from, uint32_t n,
		  const struct kind_facts *f);
/* Asserts (1) to (3). */
void segment_pool_check(struct segment_pool *p);

#endif
