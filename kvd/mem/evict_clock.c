/*
 * evict_clock.c - CLOCK: a second chance for what was used since the hand passed
 * (Corbato 1968, "A paging experiment with the Multics system")
 *
 * A pinned page keeps its place in the ring; the hand takes it off when it comes by,
 * and add() puts it in again.
 */
#include "kvd/mem/evict.h"

#include <errno.h>
#include <stdlib.h>

static int clock_open(void **state)
{
	struct list *l = malloc(sizeof(*l));

	if (!l)
		return -ENOMEM;
	list_init(l);
	*state = l;
	return 0;
}

static void clock_use(void *state, struct evict_node *n)
{
	(void)state;
	n->freq = 1;
}

static void clock_add(void *state, struct evict_node *n)
{
	n->where = EVICT_HELD;
	if (list_empty(&n->list))
		list_push(state, &n->list);
}

static void clock_remove(void *state, struct evict_node *n)
{
	(void)state;
	n->where = EVICT_PINNED;
}

static void clock_forget(void *state, struct evict_node *n)
{
	(void)state;
	n->where = EVICT_OUT;
	list_del(&n->list);
}

static struct evict_node *clock_victim(void *state)
{
	struct list *l = state, *i;

	while ((i = list_pop(l))) {
		struct evict_node *n = list_entry(i, struct evict_node, list);

		if (n->where == EVICT_PINNED)
			continue;
		if (!n->freq) {
			n->where = EVICT_OUT;
			return n;
		}
		n->freq = 0;
		list_push(l, i);
	}
	return NULL;
}

static void clock_hint(void *state, struct evict_node *n)
{
	(void)state;
	n->freq = n->hint == EVICT_HOT;
}

const struct evict_policy evict_clock = {
	.name = "clock",
	.open = clock_open,
	.close = free,
	.use = clock_use,
	.add = clock_add,
	.remove = clock_remove,
	.victim = clock_victim,
	.forget = clock_forget,
	.hint = clock_hint,
};
