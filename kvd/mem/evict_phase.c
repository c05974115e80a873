/*
 * evict_phase.c - Mark&Predict: marking in phases, with one bit for each page
 * (Antoniadis et al. 2023, "Paging with succinct predictions", ICML)
 *
 * A use marks. The victim is an unmarked page with the bit (any), else an unmarked one
 * at random; when all are marked a new phase begins and none is. The bit says: not used
 * in the next phase.
 *
 * Two heaps, marked and unmarked, with key = random in [0, 1) and 1 more without the
 * bit; a new phase exchanges them.
 */
#include <errno.h>
#include <stdlib.h>
#include "kvd/mem/evict_heap.h"

struct phase {
	struct evict_heap heaps[2]; /* n->freq says which */
	unsigned int marked; /* which of them */
	uint64_t phase; /* n->stamp: in which it was used */
	uint64_t random;
};

static int phase_open(void **state)
{
	struct phase *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->phase = 1;
	p->random = 0x9e3779b97f4a7c15u;
	*state = p;
	return 0;
}

/* xorshift64*: Vigna 2016, "An experimental exploration of Marsaglia's xorshift
 * generators, scrambled" */
static double next_random(struct phase *p)
{
	p->random ^= p->random >> 12;
	p->random ^= p->random << 25;
	p->random ^= p->random >> 27;
	return (double)((p->random * 0x2545f4914f6cdd1du) >> 11) * 0x1p-53;
}

static void phase_use(void *state, struct evict_node *n)
{
	struct phase *p = state;

	n->stamp = p->phase;
}

static void phase_add(void *state, struct evict_node *n)
{
	struct phase *p = state;

	if (n->where == EVICT_OUT)
		n->stamp = p->phase; /* loaded: marked in what is now */
	n->where = EVICT_HELD;
	n->freq = (uint8_t)(n->stamp == p->phase ? p->marked : !p->marked);
	n->key = next_random(p) +
		 (n->hint == EVICT_DEAD || n->hint == EVICT_COLD ? 0 : 1);
	evict_heap_push(&p->heaps[n->freq], n);
}

static void phase_remove(void *state, struct evict_node *n)
{
	struct phase *p = state;

	if (n->where == EVICT_HELD)
		evict_heap_del(&p->heaps[n->freq], n);
	n->where = EVICT_PINNED;
}

static struct evict_node *phase_victim(void *state)
{
	struct phase *p = state;
	struct evict_node *n;

	if (!p->heaps[!p->marked].root) {
		p->marked = !p->marked;
		p->phase++;
	}
	n = evict_heap_pop(&p->heaps[!p->marked]);
	if (n)
		n->where = EVICT_OUT;
	return n;
}

static void phase_forget(void *state, struct evict_node *n)
{
	phase_remove(state, n);
	n->where = EVICT_OUT;
	n->stamp = 0;
}

static void phase_hint(void *state, struct evict_node *n)
{
	if (n->where != EVICT_HELD)
		return;
	phase_remove(state, n);
	phase_add(state, n);
}

const struct evict_policy evict_phase = {
	.name = "phase",
	.open = phase_open,
	.close = free,
	.use = phase_use,
	.add = phase_add,
	.remove = phase_remove,
	.victim = phase_victim,
	.forget = phase_forget,
	.hint = phase_hint,
};
