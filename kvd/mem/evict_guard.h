/*
 * evict_guard.h - is plain LRU better than us? a shadow directory tells; inside
 * kvd/mem
 *
 * The shadow is what LRU would hold with as many bytes as we hold: a list through the
 * nodes, resident or not. Both count their hits in a window that forgets. While the
 * shadow's are more than ours by SLACK, predictions are not to be trusted.
 */
#ifndef KVD_MEM_EVICT_GUARD_H
#define KVD_MEM_EVICT_GUARD_H

#include "kvd/mem/evict.h"

#define EVICT_GUARD_SLACK  0.01 /* of the shadow's hits */
#define EVICT_GUARD_WINDOW 4.0 /* uses, in nodes held */
#define EVICT_GUARD_MIN	   256.0

struct evict_guard {
	struct list shadow; /* node->shadow, last used last */
	uint64_t shadow_bytes;
	uint64_t held_bytes; /* resident, pinned or not */
	uint64_t n_held;
	double hits, shadow_hits;
	int distrust;
};

static inline void evict_guard_init(struct evict_guard *g)
{
	*g = (struct evict_guard){ 0 };
	list_init(&g->shadow);
}

static inline void evict_guard_drop(struct evict_guard *g, struct evict_node *n)
{
	if (list_empty(&n->shadow))
		return;
	list_del(&n->shadow);
	g->shadow_bytes -= n->bytes;
}

/* A use: was it a hit of ours, and of the shadow's? */
static inline void evict_guard_count(struct evict_guard *g, int hit,
				     int shadow_hit)
{
	const double keep = 1 - 1 / (EVICT_GUARD_WINDOW * (double)g->n_held +
				     EVICT_GUARD_MIN);

	g->hits *= keep;
	g->shadow_hits *= keep;
	g->hits += hit ? 1 : 0;
	g->shadow_hits += shadow_hit ? 1 : 0;
	g->distrust = g->shadow_hits * (1 - EVICT_GUARD_SLACK) > g->hits + 1;
}

/* n is used; call before n->where changes. */
static inline void evict_guard_use(struct evict_guard *g, struct evict_node *n)
{
	evict_guard_count(g, n->where != EVICT_OUT, !list_empty(&n->shadow));
	evict_guard_drop(g, n);
	list_push(&g->shadow, &n->shadow);
	g->shadow_bytes += n->bytes;
}

/* n is resident from now on; call before n->where changes. */
static inline void evict_guard_in(struct evict_guard *g, struct evict_node *n)
{
	if (n->where == EVICT_OUT) {
		g->held_bytes += n->bytes;
		g->n_held++;
	}
	while (g->shadow_bytes > g->held_bytes)
		evict_guard_drop(g, list_entry(g->shadow.next,
					       struct evict_node, shadow));
}

/* n was resident and goes. */
static inline void evict_guard_out(struct evict_guard *g, struct evict_node *n)
{
	g->held_bytes -= n->bytes;
	g->n_held--;
}

static inline void evict_guard_forget(struct evict_guard *g,
				      struct evict_node *n)
{
	evict_guard_drop(g, n);
	if (n->where != EVICT_OUT)
		evict_guard_out(g, n);
}

#endif
