/*
 * store_alloc.c - zones and slots: which are free; see store_priv.h
 *
 *  (1) A zone with page_bytes 0 has no used slot and counts in n_free.
 *  (2) A zone of a class is listed (open) exactly while it has a free slot.
 *  (3) A bit is set from alloc until release; for a deferred slot until it ripens;
 *      for a bad one for ever.
 *  (4) Named slots are used ones: a record says, or may say, that its bytes are
 *      there. They are given out again when that record is gone for good.
 *  (5) A spoilt slot is a used one: what was read there was wrong once, and the
 *      record that names it is not gone yet. Released, it is bad.
 *  (6) A zone that is being emptied (victim) is not listed.
 *
 * The lowest zone with a free slot is filled first, and the lowest free zone opened:
 * what comes and goes stays below, so that zones above come free whole. What stays
 * has zones of its own, until few are free.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/store_priv.h"

#define KEEP_ZONES 2u /* backed and free: not given back to the file system */
#define KEEP_BYTES (64ull << 20)

static uint64_t zone_words(const struct zone *z)
{
	return KV_DIV_UP(z->n_slots, 64u);
}

int slots_init(struct slots *m, const struct sb *sb, uint64_t limit_bytes)
{
	uint64_t usable = sb->n_zones;

	memset(m, 0, sizeof(*m));
	if (limit_bytes && limit_bytes < sb->bytes)
		usable = limit_bytes > sb->data_off
				 ? (limit_bytes - sb->data_off) / sb->zone_bytes
				 : 0;
	usable = KV_MIN(usable, sb->n_zones); /* as it says, whole or not */
	if (sb->n_zones >= NO_ZONE)
		return -EINVAL;
	m->zones = calloc(sb->n_zones + 1, sizeof(*m->zones));
	if (!m->zones)
		return -ENOMEM;
	m->n_zones = (uint32_t)sb->n_zones;
	m->n_usable = m->n_free = (uint32_t)usable;
	m->zone_bytes = sb->zone_bytes;
	m->data_off = sb->data_off;
	m->victim = m->dest = NO_ZONE;
	m->looked[0] = m->looked[1] = UINT64_MAX;
	return 0;
}

void slots_fini(struct slots *m)
{
	struct zone_class *c;

	for (uint32_t i = 0; i < m->n_zones && m->zones; i++) {
		free(m->zones[i].bits);
		free(m->zones[i].owners);
	}
	while ((c = m->classes)) {
		m->classes = c->next;
		free(c);
	}
	free(m->zones);
	free(m->pending);
}

/* ---- classes ------------------------------------------------------------------ */

static uint32_t n_words(const struct slots *m)
{
	return m->n_zones / 64 + 1;
}

static struct zone_class *find_class(const struct slots *m, uint32_t page_bytes,
				     enum slot_kind kind)
{
	struct zone_class *c = m->classes;

	while (c && (c->page_bytes != page_bytes || c->kind != kind))
		c = c->next;
	return c;
}

static struct zone_class *class_of(struct slots *m, uint32_t page_bytes,
				   enum slot_kind kind)
{
	struct zone_class *c = find_class(m, page_bytes, kind);

	if (c)
		return c;
	c = calloc(1, sizeof(*c) + n_words(m) * sizeof(c->open[0]));
	if (!c)
		return NULL;
	c->page_bytes = page_bytes;
	c->kind = kind;
	c->next = m->classes;
	m->classes = c;
	return c;
}

static uint32_t first_open(const struct slots *m, struct zone_class *c)
{
	for (uint32_t w = c->hint / 64; w < n_words(m); w++)
		if (c->open[w]) {
			c->hint =
				w * 64 + (uint32_t)__builtin_ctzll(c->open[w]);
			return c->hint;
		}
	c->hint = m->n_zones;
	return NO_ZONE;
}

static void list_zone(struct slots *m, struct zone_class *c, uint32_t i)
{
	struct zone *z = &m->zones[i];

	if (z->listed || i >= m->n_usable || i == m->victim)
		return;
	z->listed = 1;
	c->n_free_slots += z->n_slots - z->n_used;
	c->open[i / 64] |= 1ull << i % 64;
	c->hint = KV_MIN(c->hint, i);
}

static void unlist_zone(struct slots *m, struct zone_class *c, uint32_t i)
{
	struct zone *z = &m->zones[i];

	if (!z->listed)
		return;
	z->listed = 0;
	c->n_free_slots -= z->n_slots - z->n_used;
	c->open[i / 64] &= ~(1ull << i % 64);
}

static struct zone_class *class_of_zone(struct slots *m, uint32_t i)
{
	const struct zone *z = &m->zones[i];

	return class_of(m, z->page_bytes, z->kind); /* there since it is open */
}

static int open_zone(struct slots *m, uint32_t i, uint32_t page_bytes,
		     enum slot_kind kind)
{
	struct zone *z = &m->zones[i];
	const uint32_t n = (uint32_t)(m->zone_bytes / page_bytes);
	const uint64_t n_words = KV_DIV_UP(n, 64u);
	uint64_t *bits = calloc(3 * n_words, sizeof(*bits));

	if (!bits)
		return -ENOMEM;
	z->bits = bits;
	z->named = bits + n_words;
	z->spoilt = bits + 2 * n_words;
	z->page_bytes = page_bytes;
	z->n_slots = n;
	z->n_used = z->n_bad = z->n_owned = 0;
	z->kind = (uint8_t)kind;
	z->rest = 0;
	if (i < m->n_usable) {
		m->n_free--;
		m->n_free_backed -= z->backed;
	}
	return 0;
}

static void close_zone(struct slots *m, uint32_t i)
{
	struct zone *z = &m->zones[i];

	unlist_zone(m, class_of_zone(m, i), i);
	if (i == m->victim) {
		m->victim = NO_ZONE;
		m->n_cleaned++;
	}
	free(z->bits);
	z->bits = z->named = z->spoilt = NULL;
	free(z->owners);
	z->owners = NULL;
	z->page_bytes = 0;
	if (i < m->n_usable) {
		m->n_free++;
		m->n_free_backed += z->backed;
		m->first_free = KV_MIN(m->first_free, i);
	}
}

static uint32_t free_zone(struct slots *m)
{
	uint32_t i = m->first_free;

	while (i < m->n_usable && m->zones[i].page_bytes)
		i++;
	m->first_free = i;
	while (i < m->n_usable &&
	       (m->zones[i].page_bytes || m->zones[i].punching))
		i++;
	return i < m->n_usable ? i : NO_ZONE;
}

/* ---- slots ---------------------------------------------------------------------- */

static void use_slot(struct slots *m, struct zone_class *c, uint32_t i,
		     uint64_t slot)
{
	struct zone *z = &m->zones[i];

	z->bits[slot / 64] |= 1ull << slot % 64;
	z->at = m->n_allocs;
	c->n_free_slots -= z->listed;
	if (++z->n_used == z->n_slots)
		unlist_zone(m, c, i);
	m->slot_bytes += z->page_bytes;
}

static int64_t take_free(struct slots *m, struct zone_class *c, uint32_t i)
{
	struct zone *z = &m->zones[i];
	uint64_t w = 0, slot;

	while (!~z->bits[w])
		w++;
	slot = w * 64 + (uint64_t)__builtin_ctzll(~z->bits[w]);
	assert(slot < z->n_slots);
	use_slot(m, c, i, slot);
	return (int64_t)((zone_off(m, i) + slot * z->page_bytes) /
			 KIO_BLOCK_BYTES);
}

uint64_t slots_open(const struct slots *m, uint32_t page_bytes)
{
	uint64_t n = 0;

	for (const struct zone_class *c = m->classes; c; c = c->next)
		n += c->page_bytes == page_bytes ? c->n_free_slots : 0;
	return n;
}

uint64_t slots_left(struct slots *m, uint32_t page_bytes)
{
	return slots_open(m, page_bytes) +
	       (page_bytes ? m->n_free * (m->zone_bytes / page_bytes) : 0);
}

uint32_t slots_low(const struct slots *m)
{
	return KV_MAX(1u, m->n_usable / 32);
}

int64_t slots_alloc_in(struct slots *m, uint32_t i)
{
	m->n_allocs++;
	return take_free(m, class_of_zone(m, i), i);
}

/* A zone of that size and the other kind, with a free slot. */
static uint32_t other_open(struct slots *m, uint32_t page_bytes,
			   enum slot_kind kind)
{
	struct zone_class *c = find_class(
		m, page_bytes, kind == SLOT_KEPT ? SLOT_PASSING : SLOT_KEPT);

	return c ? first_open(m, c) : NO_ZONE;
}

int64_t slots_alloc(struct slots *m, uint32_t page_bytes, enum slot_kind kind)
{
	struct zone_class *c;
	uint32_t i;

	if (!page_bytes || page_bytes % KIO_BLOCK_BYTES ||
	    page_bytes > m->zone_bytes)
		return -EINVAL;
	c = class_of(m, page_bytes, kind);
	if (!c)
		return -ENOMEM;
	i = first_open(m, c);
	if (i == NO_ZONE && m->n_free <= slots_low(m))
		i = other_open(m, page_bytes, kind);
	if (i != NO_ZONE)
		return slots_alloc_in(m, i);
	i = free_zone(m);
	if (i == NO_ZONE)
		i = other_open(m, page_bytes,
			       kind); /* some are being punched */
	else if (open_zone(m, i, page_bytes, kind))
		return -ENOMEM;
	else
		list_zone(m, c, i);
	return i == NO_ZONE ? -ENOSPC : slots_alloc_in(m, i);
}

/* The zone and slot of a block; -EINVAL it is none. */
static int locate(const struct slots *m, uint64_t block, uint32_t page_bytes,
		  uint32_t *i, uint32_t *slot)
{
	const uint64_t off = block * KIO_BLOCK_BYTES - m->data_off;
	uint64_t in;

	if (block > UINT64_MAX / KIO_BLOCK_BYTES ||
	    block * KIO_BLOCK_BYTES < m->data_off || !page_bytes ||
	    page_bytes % KIO_BLOCK_BYTES || page_bytes > m->zone_bytes ||
	    off / m->zone_bytes >= m->n_zones)
		return -EINVAL;
	*i = (uint32_t)(off / m->zone_bytes);
	in = off % m->zone_bytes;
	if (in % page_bytes || in + page_bytes > m->zone_bytes)
		return -EINVAL;
	*slot = (uint32_t)(in / page_bytes);
	return 0;
}

int slots_take(struct slots *m, uint64_t block, uint32_t page_bytes)
{
	struct zone_class *c;
	struct zone *z;
	uint32_t i, slot;

	if (locate(m, block, page_bytes, &i, &slot))
		return -EINVAL;
	z = &m->zones[i];
	c = class_of(m, page_bytes, z->page_bytes ? z->kind : SLOT_KEPT);
	if (!c || (!z->page_bytes && open_zone(m, i, page_bytes, SLOT_KEPT)))
		return -ENOMEM;
	if (z->page_bytes != page_bytes || z->bits[slot / 64] >> slot % 64 & 1)
		return -EINVAL;
	z->backed = 1;
	list_zone(m, c, i);
	use_slot(m, c, i, slot);
	return 0;
}

/* ---- records name slots --------------------------------------------------- */

int slots_named(const struct slots *m, uint64_t block, uint32_t page_bytes)
{
	uint32_t i, slot;

	if (locate(m, block, page_bytes, &i, &slot) ||
	    m->zones[i].page_bytes != page_bytes)
		return 0;
	return (int)(m->zones[i].named[slot / 64] >> slot % 64 & 1);
}

int slots_name(struct slots *m, uint64_t block, uint32_t page_bytes)
{
	struct zone *z;
	uint32_t i, slot;

	if (locate(m, block, page_bytes, &i, &slot))
		return -EINVAL;
	z = &m->zones[i];
	if (z->page_bytes != page_bytes ||
	    !(z->bits[slot / 64] >> slot % 64 & 1) ||
	    z->named[slot / 64] >> slot % 64 & 1)
		return -EINVAL;
	z->named[slot / 64] |= 1ull << slot % 64;
	m->named_bytes += page_bytes;
	return 0;
}

void slots_unname(struct slots *m, uint64_t block, uint32_t page_bytes)
{
	uint32_t i, slot;

	if (!slots_named(m, block, page_bytes) ||
	    locate(m, block, page_bytes, &i, &slot))
		return;
	m->zones[i].named[slot / 64] &= ~(1ull << slot % 64);
	m->named_bytes -= page_bytes;
}

/* ---- owners, and a zone that is to be emptied ------------------------------ */

static void disown(struct zone *z, uint32_t slot)
{
	if (!z->owners || !z->owners[slot])
		return;
	z->owners[slot] = NULL;
	z->n_owned--;
}

int slots_own(struct slots *m, uint64_t block, uint32_t page_bytes, void *owner)
{
	struct zone *z;
	uint32_t i, slot;

	if (locate(m, block, page_bytes, &i, &slot) ||
	    m->zones[i].page_bytes != page_bytes)
		return -EINVAL;
	z = &m->zones[i];
	if (!owner) {
		disown(z, slot);
		return 0;
	}
	if (!(z->bits[slot / 64] >> slot % 64 & 1))
		return -EINVAL;
	if (!z->owners)
		z->owners = calloc(z->n_slots, sizeof(*z->owners));
	if (!z->owners)
		return -ENOMEM; /* it stays where it is */
	z->n_owned += !z->owners[slot];
	z->owners[slot] = owner;
	return 0;
}

void slots_shut(struct slots *m, uint32_t i)
{
	unlist_zone(m, class_of_zone(m, i), i);
	m->victim = i;
	if (m->dest == i)
		m->dest = NO_ZONE;
}

void slots_unshut(struct slots *m, uint32_t i)
{
	m->victim = NO_ZONE;
	if (m->zones[i].n_used < m->zones[i].n_slots)
		list_zone(m, class_of_zone(m, i), i);
}

/* ---- release -------------------------------------------------------------- */

void slots_release(struct slots *m, uint64_t block, uint32_t page_bytes)
{
	struct zone_class *c;
	struct zone *z;
	uint32_t i, slot;
	const int ret = locate(m, block, page_bytes, &i, &slot);

	assert(!ret);
	z = &m->zones[i];
	assert(z->page_bytes == page_bytes &&
	       z->bits[slot / 64] >> slot % 64 & 1);
	if (z->spoilt[slot / 64] >> slot % 64 & 1) {
		(void)slots_set_bad(m, block, page_bytes); /* as recorded */
		return;
	}
	slots_unname(m, block, page_bytes);
	disown(z, slot);
	z->bits[slot / 64] &= ~(1ull << slot % 64);
	m->slot_bytes -= page_bytes;
	m->n_released++;
	c = class_of_zone(m, i);
	c->n_free_slots += z->listed;
	if (!--z->n_used)
		close_zone(m, i);
	else
		list_zone(m, c, i);
}

int slots_set_bad(struct slots *m, uint64_t block, uint32_t page_bytes)
{
	uint32_t i, slot;
	struct zone *z;
	int known;

	if (locate(m, block, page_bytes, &i, &slot))
		return 0;
	z = &m->zones[i];
	known = (int)(z->spoilt[slot / 64] >> slot % 64 & 1);
	z->spoilt[slot / 64] &= ~(1ull << slot % 64);
	z->n_bad += !known;
	slots_unname(m, block, page_bytes);
	disown(z, slot);
	m->slot_bytes -= page_bytes;
	m->bad_bytes += page_bytes;
	return known;
}

int slots_take_bad(struct slots *m, uint64_t block, uint32_t page_bytes)
{
	uint32_t i, slot;
	int ret;

	if (!slots_named(m, block, page_bytes)) {
		ret = slots_take(m, block, page_bytes);
		if (!ret)
			(void)slots_set_bad(m, block, page_bytes);
		return ret;
	}
	if (locate(m, block, page_bytes, &i, &slot) ||
	    m->zones[i].spoilt[slot / 64] >> slot % 64 & 1)
		return -EINVAL;
	m->zones[i].spoilt[slot / 64] |= 1ull << slot % 64;
	m->zones[i].n_bad++;
	return 0;
}

/* ---- deferred releases -------------------------------------------------------------- */

static int more_pending(struct slots *m)
{
	const uint64_t room = m->pending_room ? 2 * m->pending_room : 256;
	struct pending *p = malloc(room * sizeof(*p));

	if (!p)
		return -ENOMEM;
	for (uint64_t i = m->pending_head; i != m->pending_tail; i++)
		p[i % room] = m->pending[i % m->pending_room];
	free(m->pending);
	m->pending = p;
	m->pending_room = room;
	return 0;
}

/* Without memory the slot is lost until the next open: 0. */
static int pend(struct slots *m, struct pending p)
{
	if (m->pending_tail - m->pending_head == m->pending_room &&
	    more_pending(m))
		return 0;
	m->pending[m->pending_tail++ % m->pending_room] = p;
	return 1;
}

void slots_defer(struct slots *m, uint64_t block, uint32_t page_bytes,
		 uint64_t turn)
{
	(void)slots_own(m, block, page_bytes, NULL);
	if (pend(m, (struct pending){ block, turn, page_bytes, 0 }))
		m->pending_bytes += page_bytes;
}

void slots_keep(struct slots *m, uint64_t block, uint32_t page_bytes,
		uint64_t turn)
{
	(void)pend(m, (struct pending){ block, turn, page_bytes, 1 });
}

void slots_ripen(struct slots *m, uint64_t turn)
{
	while (m->pending_head != m->pending_tail) {
		const struct pending *p =
			&m->pending[m->pending_head % m->pending_room];

		if (p->turn > turn)
			return;
		m->pending_head++;
		if (p->is_kept) {
			slots_unname(m, p->block, p->page_bytes);
			continue;
		}
		m->pending_bytes -= p->page_bytes;
		slots_release(m, p->block, p->page_bytes);
	}
}

/* ---- giving back ---------------------------------------------------------------------- */

uint32_t slots_punchable(const struct slots *m)
{
	const uint64_t keep = KV_MAX(KEEP_ZONES, KEEP_BYTES / m->zone_bytes);

	if (m->n_free_backed <= keep)
		return NO_ZONE;
	for (uint32_t i = m->n_usable; i-- > 0;)
		if (!m->zones[i].page_bytes && m->zones[i].backed &&
		    !m->zones[i].punching)
			return i;
	return NO_ZONE;
}

static void class_check(const struct slots *m, const struct zone_class *c)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < m->n_zones; i++) {
		const struct zone *z = &m->zones[i];
		const int is_open = (int)(c->open[i / 64] >> i % 64 & 1);

		assert(is_open ==
		       (z->listed && z->page_bytes == c->page_bytes &&
			z->kind == c->kind));
		assert(!is_open || i >= c->hint);
		n += is_open ? z->n_slots - z->n_used : 0;
	}
	assert(n == c->n_free_slots);
}

void slots_check(const struct slots *m)
{
	uint64_t bytes = 0, named = 0;
	uint32_t n_free = 0, n_backed = 0;

	for (uint32_t i = 0; i < m->n_zones; i++) {
		const struct zone *z = &m->zones[i];
		uint32_t n = 0, n_named = 0, n_owned = 0;

		if (!z->page_bytes) {
			assert(!z->bits && !z->listed && !z->owners);
			assert(i != m->victim);
			n_free += i < m->n_usable;
			n_backed += i < m->n_usable && z->backed;
			continue;
		}
		for (uint64_t w = 0; w < zone_words(z); w++) {
			assert(!((z->named[w] | z->spoilt[w]) & ~z->bits[w]));
			n += (uint32_t)__builtin_popcountll(z->bits[w]);
			n_named += (uint32_t)__builtin_popcountll(z->named[w]);
		}
		for (uint32_t k = 0; z->owners && k < z->n_slots; k++) {
			assert(!z->owners[k] || z->bits[k / 64] >> k % 64 & 1);
			n_owned += !!z->owners[k];
		}
		assert(n_owned == z->n_owned);
		assert(n == z->n_used && n);
		assert(i >= m->n_usable ||
		       z->listed == (n < z->n_slots && i != m->victim));
		bytes += (uint64_t)n * z->page_bytes;
		named += (uint64_t)n_named * z->page_bytes;
	}
	for (const struct zone_class *c = m->classes; c; c = c->next)
		class_check(m, c);
	assert(n_free == m->n_free && n_backed == m->n_free_backed);
	assert(bytes == m->slot_bytes + m->bad_bytes);
	assert(named == m->named_bytes);
}
