/*
 * extent.c - which numbers of [0, n) are free; see extent.h
 */
#include "kvd/mem/extent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROOM 16

int extents_init(struct extents *e, uint64_t n)
{
	e->list = calloc(ROOM, sizeof(*e->list));
	if (!e->list)
		return -ENOMEM;
	e->n_room = ROOM;
	e->n_list = 1;
	e->list[0] = (struct extent){ 0, n };
	return 0;
}

void extents_fini(struct extents *e)
{
	free(e->list);
	e->list = NULL;
}

static void drop(struct extents *e, uint32_t i)
{
	e->n_list--;
	memmove(e->list + i, e->list + i + 1,
		(e->n_list - i) * sizeof(*e->list));
}

int64_t extents_take(struct extents *e, uint64_t n)
{
	for (uint32_t i = 0; i < e->n_list; i++) {
		struct extent *x = &e->list[i];
		const uint64_t first = x->first;

		if (x->n < n)
			continue;
		x->first += n;
		x->n -= n;
		if (!x->n)
			drop(e, i);
		return (int64_t)first;
	}
	return -ENOMEM;
}

static int insert(struct extents *e, uint32_t at, struct extent x)
{
	if (e->n_list == e->n_room) {
		struct extent *l = realloc(e->list, 2 * e->n_room * sizeof(*l));

		if (!l)
			return -ENOMEM;
		e->list = l;
		e->n_room *= 2;
	}
	memmove(e->list + at + 1, e->list + at,
		(e->n_list - at) * sizeof(*e->list));
	e->list[at] = x;
	e->n_list++;
	return 0;
}

/* The first extent behind a number. */
static uint32_t behind(const struct extents *e, uint64_t first)
{
	uint32_t lo = 0, hi = e->n_list;

	while (lo < hi) {
		const uint32_t mid = (lo + hi) / 2;

		if (e->list[mid].first < first)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

int extents_give(struct extents *e, uint64_t first, uint64_t n)
{
	struct extent *l = e->list;
	const uint32_t i = behind(e, first);

	if (i && l[i - 1].first + l[i - 1].n == first) {
		l[i - 1].n += n;
		if (i < e->n_list && first + n == l[i].first) {
			l[i - 1].n += l[i].n;
			drop(e, i);
		}
		return 0;
	}
	if (i < e->n_list && first + n == l[i].first) {
		l[i].first = first;
		l[i].n += n;
		return 0;
	}
	return insert(e, i, (struct extent){ first, n });
}
