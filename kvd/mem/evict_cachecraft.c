/*
 * evict_cachecraft.c - the score of Cache-Craft: what reuse has saved, per byte
 * (Agarwal et al. 2025, "Cache-Craft: managing chunk-caches for efficient
 * retrieval-augmented generation", arXiv:2502.15734; the decay is kvd's)
 *
 *   f = f * decay + gain at each use,   gain = 1 / max(CFO, 0.05)
 *
 * and the least f / bytes goes first. The decay is by age: f halves over as many
 * uses as HALF_LIFE times the nodes held. As all scores shrink alike, a node keeps
 *   key = log2(f / bytes) + t / half-life,   t the moment of its last use,
 * which does not change until it is used again.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include "kvd/mem/evict_heap.h"

#define HALF_LIFE 4.0

struct craft {
	struct evict_heap heap;
	uint64_t n_uses;
	uint64_t n_in; /* resident, as far as we were told */
	double now; /* half-lives since the start */
};

static int craft_open(void **state)
{
	*state = calloc(1, sizeof(struct craft));
	return *state ? 0 : -ENOMEM;
}

static void craft_use(void *state, struct evict_node *n)
{
	struct craft *c = state;
	const double fresh = log2((double)n->gain / (double)n->bytes);

	c->now += 1 / (HALF_LIFE * (double)(c->n_in + 1));
	if (n->stamp && n->key - c->now > fresh - 60)
		n->key = c->now + log2(exp2(n->key - c->now) + exp2(fresh));
	else
		n->key = c->now + fresh;
	n->stamp = ++c->n_uses;
}

static void craft_add(void *state, struct evict_node *n)
{
	struct craft *c = state;

	c->n_in += n->where == EVICT_OUT;
	if (!n->stamp) /* it came ahead: as if computed now, and never used */
		n->key = c->now - log2((double)n->bytes);
	n->where = EVICT_HELD;
	evict_heap_push(&c->heap, n);
}

static void craft_remove(void *state, struct evict_node *n)
{
	struct craft *c = state;

	if (n->where != EVICT_HELD)
		return;
	evict_heap_del(&c->heap, n);
	n->where = EVICT_PINNED;
}

static struct evict_node *craft_victim(void *state)
{
	struct craft *c = state;
	struct evict_node *n = evict_heap_pop(&c->heap);

	if (n) {
		n->where = EVICT_OUT;
		c->n_in--;
	}
	return n;
}

static void craft_forget(void *state, struct evict_node *n)
{
	struct craft *c = state;

	craft_remove(state, n);
	c->n_in -= n->where != EVICT_OUT;
	n->where = EVICT_OUT;
	n->stamp = 0;
}

const struct evict_policy evict_cachecraft = {
	.name = "cachecraft",
	.open = craft_open,
	.close = free,
	.use = craft_use,
	.add = craft_add,
	.remove = craft_remove,
	.victim = craft_victim,
	.forget = craft_forget,
};
