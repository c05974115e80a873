/*
 * evict_belady.c - the optimum: who is used last of all goes first (Belady 1966, "A
 * study of replacement algorithms for a virtual-storage computer")
 *
 * Needs next_use of the future, which only the simulator has.
 */
#include <errno.h>
#include <stdlib.h>
#include "kvd/mem/evict_heap.h"

struct belady {
	struct evict_heap heap;
	uint64_t n_uses;
};

static int belady_open(void **state)
{
	*state = calloc(1, sizeof(struct belady));
	return *state ? 0 : -ENOMEM;
}

static void belady_use(void *state, struct evict_node *n)
{
	struct belady *b = state;

	n->stamp = ++b->n_uses;
	n->key = -(double)n->next_use;
}

static void belady_add(void *state, struct evict_node *n)
{
	struct belady *b = state;

	n->where = EVICT_HELD;
	evict_heap_push(&b->heap, n);
}

static void belady_remove(void *state, struct evict_node *n)
{
	struct belady *b = state;

	if (n->where == EVICT_HELD)
		evict_heap_del(&b->heap, n);
	n->where = EVICT_PINNED;
}

static void belady_forget(void *state, struct evict_node *n)
{
	belady_remove(state, n);
	n->where = EVICT_OUT;
}

static struct evict_node *belady_victim(void *state)
{
	struct belady *b = state;
	struct evict_node *n = evict_heap_pop(&b->heap);

	if (n)
		n->where = EVICT_OUT;
	return n;
}

const struct evict_policy evict_belady = {
	.name = "belady",
	.needs_future = 1,
	.open = belady_open,
	.close = free,
	.use = belady_use,
	.add = belady_add,
	.remove = belady_remove,
	.victim = belady_victim,
	.forget = belady_forget,
};
