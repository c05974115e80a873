/*
 * store_clean.c - which zone is emptied for another page size; see store.h
 *
 *  (1) One zone at a time is the victim. Nothing of it is given out; it is free when
 *      its last slot is released, and nobody's victim any more.
 *  (2) A victim is chosen only when a size that has no room, or soon has none, asked
 *      for a slot, and when all its pages fit into open zones of their own size. So what
 *      is moved is at most what is gained, and never opens a zone.
 *  (3) Ahead of need (no alloc has failed yet) only a zone that is at most half full is
 *      worth it.
 *
 * Fewest live bytes first, in steps of 1/16 of a zone; then the one in which a slot was
 * given out the longest ago, since what is cold is likely to stay.
 * (Rosenblum and Ousterhout 1992 weigh the same two, for a log.)
 *
 * Loop thread.
 */
#include <errno.h>
#include "io/store_priv.h"

#define STEPS	   16u
#define REST_SLOTS 16u /* a zone that could not be emptied: after so many */

static uint64_t free_slots(const struct zone *z)
{
	return z->listed ? z->n_slots - z->n_used : 0;
}

static int may_be_victim(const struct slots *m, uint32_t i, uint32_t wanted,
			 int failed)
{
	const struct zone *z = &m->zones[i];

	return z->page_bytes && z->page_bytes != wanted && !z->n_bad &&
	       z->n_owned == z->n_used && z->rest <= m->n_released &&
	       (failed || 2 * z->n_used <= z->n_slots) &&
	       slots_open(m, z->page_bytes) >= free_slots(z) + z->n_used;
}

/* a goes before b. */
static int better(const struct zone *a, const struct zone *b)
{
	const uint64_t sa = (uint64_t)a->n_used * STEPS / a->n_slots;
	const uint64_t sb = (uint64_t)b->n_used * STEPS / b->n_slots;

	return sa != sb ? sa < sb : a->at < b->at;
}

/* Has a size a whole zone of free slots? Else no zone of it can be emptied. */
static int any_sparse(const struct slots *m, uint32_t wanted)
{
	for (const struct zone_class *c = m->classes; c; c = c->next)
		if (c->page_bytes != wanted &&
		    slots_open(m, c->page_bytes) >=
			    m->zone_bytes / c->page_bytes)
			return 1;
	return 0;
}

static uint32_t choose(const struct slots *m, uint32_t wanted, int failed)
{
	uint32_t best = NO_ZONE;

	for (uint32_t i = 0; i < m->n_usable; i++)
		if (may_be_victim(m, i, wanted, failed) &&
		    (best == NO_ZONE || better(&m->zones[i], &m->zones[best])))
			best = i;
	return best;
}

void clean_look(struct kio_store *s, uint32_t page_bytes, int failed)
{
	struct slots *m = &s->slots;
	uint32_t i;

	if (!s->clean || m->victim != NO_ZONE ||
	    m->looked[failed] == m->n_released ||
	    (!failed &&
	     slots_open(m, page_bytes) > m->zone_bytes / page_bytes / 4) ||
	    !any_sparse(m, page_bytes))
		return;
	i = choose(m, page_bytes, failed);
	if (i == NO_ZONE) {
		m->looked[failed] = m->n_released; /* till that changes */
		return;
	}
	slots_shut(m, i);
	s->clean(s->clean_ctx);
}

uint64_t clean_left(const struct slots *m)
{
	const struct zone *z;

	if (m->victim == NO_ZONE)
		return 0;
	z = &m->zones[m->victim];
	return (uint64_t)z->n_used * z->page_bytes;
}

/* ---- what the owner calls ------------------------------------------------- */

void kio_store_own(struct kio_store *s, uint64_t block, size_t page_bytes,
		   void *owner)
{
	/* without memory nobody has it, and it stays where it is */
	(void)slots_own(&s->slots, block, (uint32_t)page_bytes, owner);
}

void kio_store_on_clean(struct kio_store *s, void (*clean)(void *ctx),
			void *ctx)
{
	s->clean = clean;
	s->clean_ctx = ctx;
	if (!clean)
		kio_store_clean_stop(s);
}

uint32_t kio_store_victim(const struct kio_store *s, size_t *page_bytes)
{
	const struct slots *m = &s->slots;

	if (m->victim == NO_ZONE)
		return 0;
	*page_bytes = m->zones[m->victim].page_bytes;
	return m->zones[m->victim].n_slots;
}

void *kio_store_victim_slot(const struct kio_store *s, uint32_t i,
			    uint64_t *block)
{
	const struct slots *m = &s->slots;
	const struct zone *z = &m->zones[m->victim];

	assert(m->victim != NO_ZONE && i < z->n_slots);
	*block = (zone_off(m, m->victim) + (uint64_t)i * z->page_bytes) /
		 KIO_BLOCK_BYTES;
	return z->owners ? z->owners[i] : NULL;
}

/* The fullest zone with room, of those for what stays if there is one. */
static uint32_t choose_dest(const struct slots *m, uint32_t page_bytes)
{
	uint32_t best = NO_ZONE;

	for (uint32_t i = 0; i < m->n_usable; i++) {
		const struct zone *z = &m->zones[i], *b;

		if (!z->listed || z->page_bytes != page_bytes)
			continue;
		b = best == NO_ZONE ? NULL : &m->zones[best];
		if (!b || z->kind > b->kind ||
		    (z->kind == b->kind && z->n_used > b->n_used))
			best = i;
	}
	return best;
}

int64_t kio_store_alloc_moved(struct kio_store *s)
{
	struct slots *m = &s->slots;
	uint32_t page_bytes;

	if (m->victim == NO_ZONE)
		return -ENOSPC;
	page_bytes = m->zones[m->victim].page_bytes;
	if (m->dest == NO_ZONE || !m->zones[m->dest].listed ||
	    m->zones[m->dest].page_bytes != page_bytes)
		m->dest = choose_dest(m, page_bytes);
	return m->dest == NO_ZONE ? -ENOSPC : slots_alloc_in(m, m->dest);
}

void kio_store_not_moved(struct kio_store *s, uint64_t block, size_t page_bytes)
{
	const uint64_t n = s->slots.n_released;

	kio_store_release(s, block, page_bytes);
	s->slots.n_released = n; /* nothing came free: zones that rest go on */
}

void kio_store_moved(struct kio_store *s, uint64_t n_bytes)
{
	s->slots.moved_bytes += n_bytes;
}

void kio_store_clean_stop(struct kio_store *s)
{
	struct slots *m = &s->slots;
	const uint32_t i = m->victim;

	if (i == NO_ZONE)
		return;
	slots_unshut(m, i);
	m->zones[i].rest = m->n_released + REST_SLOTS;
}
