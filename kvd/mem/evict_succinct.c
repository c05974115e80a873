/*
 * evict_succinct.c - lazy discard: LRU, but who has the discard bit goes first
 * (after Antoniadis, Boyar, Elias, Favrholdt, Hoeksma, Larsen, Polak and Simon 2023,
 * "Paging with succinct predictions", ICML; the lazy order and the guard are kvd's)
 *
 * The bit is set on pages that nobody has a sequence on any more (COLD), or that will
 * not be used again by what was said (DEAD).
 *
 *   with the bit, the oldest first  -->  the others, the oldest first  -->  HOT
 *
 * Pages with the bit stay as long as nobody needs their room, so a wrong bit costs
 * nothing while memory is ample. With the bits of Belady's algorithm this makes as few
 * misses as that. While the guard distrusts the bits, plain LRU over all.
 */
#include <errno.h>
#include <stdlib.h>
#include "kvd/mem/evict_guard.h"
#include "kvd/mem/evict_heap.h"

enum { Q_DEAD, Q_LIVE, Q_HOT, N_QUEUES };

struct succinct {
	struct evict_heap queues[N_QUEUES]; /* n->freq says which */
	struct evict_guard guard;
	uint64_t n_uses;
};

static int succinct_open(void **state)
{
	struct succinct *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	evict_guard_init(&s->guard);
	*state = s;
	return 0;
}

static void put(struct succinct *s, struct evict_node *n)
{
	n->freq = Q_LIVE;
	if (n->hint == EVICT_DEAD || n->hint == EVICT_COLD)
		n->freq = Q_DEAD;
	if (n->hint == EVICT_HOT)
		n->freq = Q_HOT;
	n->key = (double)n->stamp;
	evict_heap_push(&s->queues[n->freq], n);
}

static void succinct_use(void *state, struct evict_node *n)
{
	struct succinct *s = state;

	evict_guard_use(&s->guard, n);
	n->stamp = ++s->n_uses;
}

static void succinct_add(void *state, struct evict_node *n)
{
	struct succinct *s = state;

	evict_guard_in(&s->guard, n);
	n->where = EVICT_HELD;
	put(s, n);
}

static void succinct_remove(void *state, struct evict_node *n)
{
	struct succinct *s = state;

	if (n->where != EVICT_HELD)
		return;
	evict_heap_del(&s->queues[n->freq], n);
	n->where = EVICT_PINNED;
}

static struct evict_node *succinct_victim(void *state)
{
	struct succinct *s = state;
	struct evict_heap *from = NULL;
	struct evict_node *n;

	for (int i = 0; i < N_QUEUES; i++) {
		struct evict_heap *q = &s->queues[i];

		if (q->root && (!from || (s->guard.distrust &&
					  evict_before(q->root, from->root))))
			from = q;
	}
	if (!from)
		return NULL;
	n = evict_heap_pop(from);
	evict_guard_out(&s->guard, n);
	n->where = EVICT_OUT;
	return n;
}

static void succinct_forget(void *state, struct evict_node *n)
{
	struct succinct *s = state;

	succinct_remove(state, n);
	evict_guard_forget(&s->guard, n);
	n->where = EVICT_OUT;
}

static void succinct_hint(void *state, struct evict_node *n)
{
	if (n->where != EVICT_HELD)
		return;
	succinct_remove(state, n);
	n->where = EVICT_HELD;
	put(state, n);
}

const struct evict_policy evict_succinct = {
	.name = "succinct",
	.open = succinct_open,
	.close = free,
	.use = succinct_use,
	.add = succinct_add,
	.remove = succinct_remove,
	.victim = succinct_victim,
	.forget = succinct_forget,
	.hint = succinct_hint,
};
