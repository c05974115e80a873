/*
 * evict.h - which page goes down next: one interface, one file for each policy
 *
 * The pager and kvsim drive the same policies in the same way:
 *
 *            add()                  victim()
 *   OUT -----------------> HELD -----------------> OUT
 *                          |  ^
 *                 remove() |  | add()
 *                          v  |
 *                          PINNED (still resident, out of the policy's hands)
 *
 *   use()    OUT or PINNED: somebody uses it now (the pager: it was not pinned,
 *            and is; kvsim: an access). Comes before the victim() that makes room
 *            for it and before its add(). A page that comes up ahead of its use is
 *            add()ed without: it has no more claim than one that was used once, then.
 *   forget() any state: it becomes as if new; before the node's memory goes.
 *
 *  (1) A node outlives its eviction: what a policy remembers of what has gone
 *      (ghosts, shadow directories) stands in the node. Nothing is allocated but
 *      by open().
 *  (2) All calls are O(1) or O(log n), amortised.
 *  (3) Between victim() and add(), node->list is the caller's to use, and is
 *      given back unlinked.
 *  (4) Capacity is what the policy holds: the caller asks for a victim whenever it
 *      needs room, so shares may grow and shrink without the policy being told.
 *
 * Thread: loop thread.
 */
#ifndef KVD_MEM_EVICT_H
#define KVD_MEM_EVICT_H

#include <stdint.h>
#include "kvd/base/list.h"

/* What the caller knows of the future of a page. */
enum evict_hint {
	EVICT_NONE, /* nothing */
	EVICT_HOT, /* about to be used */
	EVICT_COLD, /* nobody runs on it: kept for who may come */
	EVICT_DEAD, /* the discard bit (kvsim): not used again soon */
};

/* node->where; policies add their own from EVICT_OWN on. */
enum evict_where { EVICT_OUT, EVICT_HELD, EVICT_PINNED, EVICT_OWN };

#define EVICT_KINDS 64u
#define EVICT_NEVER UINT64_MAX

/* Embedded in struct page. All zero, then evict_node_init(). */
struct evict_node {
	/* The caller's, set before use(): */
	uint64_t next_use; /* moment of the use after this one (Belady only) */
	uint32_t bytes;
	float cost; /* ns to restore or recompute, per byte; > 0 */
	float gain; /* 1 / max(CFO, 0.05) of this use; 1: computed anew */
	uint8_t hint; /* enum evict_hint; in HELD say so by hint() */
	uint8_t kind; /* < EVICT_KINDS; equal kinds behave alike */
	/* The policy's: */
	uint8_t where;
	uint8_t freq;
	uint8_t flags;
	uint16_t cell;
	struct list list; /* see (3) */
	struct evict_node *child, *next, *prev; /* evict_heap.h */
	struct list shadow;
	double key;
	uint64_t stamp; /* of the last use */
};

static inline void evict_node_init(struct evict_node *n, uint32_t bytes)
{
	n->bytes = bytes;
	n->cost = 1;
	n->gain = 1;
	n->next_use = EVICT_NEVER;
	list_init(&n->list);
	list_init(&n->shadow);
}

struct evict_policy {
	const char *name;
	int needs_future; /* next_use must be right: kvsim only */
	int (*open)(void **state); /* 0, -ENOMEM */
	void (*close)(void *state); /* the nodes are not touched */
	void (*use)(void *state, struct evict_node *n);
	/* It may go from now on. A node that was not used since it was HELD goes
	 * back to where it stood, more or less. */
	void (*add)(void *state, struct evict_node *n);
	/* HELD no more: pinned again, or busy. */
	void (*remove)(void *state, struct evict_node *n);
	/* Take and return the one to go, or NULL: none is HELD. */
	struct evict_node *(*victim)(void *state);
	void (*forget)(void *state, struct evict_node *n);
	/* n->hint or n->kind is new; any state. NULL: of no interest. */
	void (*hint)(void *state, struct evict_node *n);
};

extern const struct evict_policy evict_clock, evict_lru, evict_s3fifo,
	evict_gdsf, evict_succinct, evict_phase, evict_cachecraft,
	evict_density, evict_belady;
/* All of them, NULL at the end. */
extern const struct evict_policy *const evict_policies[];
/* By name; NULL. */
const struct evict_policy *evict_find(const char *name);

#endif
