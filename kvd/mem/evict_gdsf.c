/*
 * evict_gdsf.c - GDSF: uses times cost over size, and an age that creeps up
 * (Cherkasova 1998, "Improving WWW proxies performance with Greedy-Dual-Size-
 * Frequency caching policy", HP Labs HPL-98-69R1)
 *
 *   key = L + uses * cost,   L = key of the last victim
 *
 * cost is the node's: measured ns to restore or recompute, per byte, which is cost
 * over size already.
 */
#include <errno.h>
#include <stdlib.h>
#include "kvd/mem/evict_heap.h"

struct gdsf {
	struct evict_heap heap;
	uint64_t n_uses;
	double age; /* L */
};

static int gdsf_open(void **state)
{
	*state = calloc(1, sizeof(struct gdsf));
	return *state ? 0 : -ENOMEM;
}

static void gdsf_use(void *state, struct evict_node *n)
{
	struct gdsf *g = state;

	if (n->where == EVICT_OUT)
		n->freq = 0;
	n->freq = (uint8_t)KV_MIN(n->freq + 1u, (unsigned int)UINT8_MAX);
	n->stamp = ++g->n_uses;
	n->key = g->age + (double)n->freq * (double)n->cost;
}

static void gdsf_add(void *state, struct evict_node *n)
{
	struct gdsf *g = state;

	n->where = EVICT_HELD;
	evict_heap_push(&g->heap, n);
}

static void gdsf_remove(void *state, struct evict_node *n)
{
	struct gdsf *g = state;

	if (n->where != EVICT_HELD)
		return;
	evict_heap_del(&g->heap, n);
	n->where = EVICT_PINNED;
}

static void gdsf_forget(void *state, struct evict_node *n)
{
	gdsf_remove(state, n);
	n->where = EVICT_OUT;
}

static struct evict_node *gdsf_victim(void *state)
{
	struct gdsf *g = state;
	struct evict_node *n = evict_heap_pop(&g->heap);

	if (n) {
		g->age = KV_MAX(g->age, n->key);
		n->where = EVICT_OUT;
	}
	return n;
}

const struct evict_policy evict_gdsf = {
	.name = "gdsf",
	.open = gdsf_open,
	.close = free,
	.use = gdsf_use,
	.add = gdsf_add,
	.remove = gdsf_remove,
	.victim = gdsf_victim,
	.forget = gdsf_forget,
};
