/*
 * evict_lru.c - LRU: the one whose last use is the oldest
 *
 * By moment of use, not by moment of release, so a page that was only written in
 * the background comes back to its place.
 */
#include <errno.h>
#include <stdlib.h>
#include "kvd/mem/evict_heap.h"

struct lru {
	struct evict_heap heap;
	uint64_t n_uses;
};

static int lru_open(void **state)
{
	*state = calloc(1, sizeof(struct lru));
	return *state ? 0 : -ENOMEM;
}

static void lru_use(void *state, struct evict_node *n)
{
	struct lru *l = state;

	n->stamp = ++l->n_uses;
}

static void lru_add(void *state, struct evict_node *n)
{
	struct lru *l = state;

	n->where = EVICT_HELD;
	n->key = (double)n->stamp;
	evict_heap_push(&l->heap, n);
}

static void lru_remove(void *state, struct evict_node *n)
{
	struct lru *l = state;

	if (n->where == EVICT_HELD)
		evict_heap_del(&l->heap, n);
	n->where = EVICT_PINNED;
}

static void lru_forget(void *state, struct evict_node *n)
{
	lru_remove(state, n);
	n->where = EVICT_OUT;
}

static struct evict_node *lru_victim(void *state)
{
	struct lru *l = state;
	struct evict_node *n = evict_heap_pop(&l->heap);

	if (n)
		n->where = EVICT_OUT;
	return n;
}

const struct evict_policy evict_lru = {
	.name = "lru",
	.open = lru_open,
	.close = free,
	.use = lru_use,
	.add = lru_add,
	.remove = lru_remove,
	.victim = lru_victim,
	.forget = lru_forget,
};
