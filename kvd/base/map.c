/*
 * map.c - hash table from a 128-bit id to a pointer; see map.h
 */
#include "kvd/base/map.h"

#include <errno.h>
#include <stdlib.h>

#define MAP_MIN_SLOTS 64u

void map_init(struct map *m)
{
	m->slots = NULL;
	m->n_slots = 0;
	m->n_used = 0;
}

void map_fini(struct map *m)
{
	free(m->slots);
	map_init(m);
}

static uint64_t home(const struct map *m, struct map_id id)
{
	return id.w[0] & (m->n_slots - 1);
}

/* The slot of id, or the free one where it would go. */
static struct map_slot *probe(const struct map *m, struct map_id id)
{
	uint64_t i = home(m, id);

	while (m->slots[i].value && !map_id_equal(m->slots[i].id, id))
		i = (i + 1) & (m->n_slots - 1);
	return &m->slots[i];
}

static int grow(struct map *m)
{
	struct map big;

	big.n_slots = m->n_slots ? m->n_slots * 2 : MAP_MIN_SLOTS;
	big.n_used = m->n_used;
	big.slots = calloc(big.n_slots, sizeof(*big.slots));
	if (!big.slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < m->n_slots; i++)
		if (m->slots[i].value)
			*probe(&big, m->slots[i].id) = m->slots[i];
	free(m->slots);
	*m = big;
	return 0;
}

void *map_find(const struct map *m, struct map_id id)
{
	return m->n_slots ? probe(m, id)->value : NULL;
}

int map_add(struct map *m, struct map_id id, void *value)
{
	struct map_slot *s;
	int ret;

	if ((m->n_used + 1) * 4 > m->n_slots * 3) {
		ret = grow(m);
		if (ret)
			return ret;
	}
	s = probe(m, id);
	if (s->value)
		return -EALREADY;
	s->id = id;
	s->value = value;
	m->n_used++;
	return 0;
}

/* Move later entries of the run back over the hole at i. */
static void close_gap(struct map *m, uint64_t i)
{
	const uint64_t mask = m->n_slots - 1;
	uint64_t j = i;

	for (;;) {
		j = (j + 1) & mask;
		if (!m->slots[j].value)
			break;
		if (((j - home(m, m->slots[j].id)) & mask) < ((j - i) & mask))
			continue;
		m->slots[i] = m->slots[j];
		i = j;
	}
	m->slots[i].value = NULL;
}

void *map_del(struct map *m, struct map_id id)
{
	struct map_slot *s;
	void *value;

	if (!m->n_slots)
		return NULL;
	s = probe(m, id);
	value = s->value;
	if (value) {
		close_gap(m, (uint64_t)(s - m->slots));
		m->n_used--;
	}
	return value;
}
