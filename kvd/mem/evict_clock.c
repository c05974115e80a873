/*
 * evict_clock.c - CLOCK: a second chance for what was used since the hand passed
 * (Corbato 1968, "A paging experiment with the Multics system")
 */
#include "kvd/mem/evict.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int clock_open(void **state)
{
	struct list *l = malloc(sizeof(*l));

	if (!l)
		return -ENOMEM;
	list_init(l);
	*state = l;
	return 0;
}

static void clock_close(void *state)
{
	free(state);
}

static void clock_add(void *state, struct evict_node *n)
{
	n->ref = 1;
	list_push(state, &n->node);
}

static void clock_remove(void *state, struct evict_node *n)
{
	(void)state;
	list_del(&n->node);
}

static struct evict_node *clock_victim(void *state)
{
	struct list *l = state, *n;

	while ((n = list_pop(l))) {
		struct evict_node *e = list_entry(n, struct evict_node, node);

		if (!e->ref)
			return e;
		e->ref = 0;
		list_push(l, n);
	}
	return NULL;
}

const struct evict_policy evict_clock = {
	.name = "clock",
	.open = clock_open,
	.close = clock_close,
	.add = clock_add,
	.remove = clock_remove,
	.victim = clock_victim,
};

const struct evict_policy *evict_find(const char *name)
{
	return strcmp(name, evict_clock.name) ? NULL : &evict_clock;
}
