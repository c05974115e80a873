/*
 * kv_ring.h - operations on one end of a ring, the same for client and daemon
 *
 *   producer: room, write entries[mine + i], publish      mine is the tail
 *   consumer: ready, read entries[mine + i], consume      mine is the head
 *
 *  (1) Own indices are kept in private memory and only ever written to the
 *      ring, never read back: what the peer does to them has no effect.
 *  (2) The peer's index is read once per call; a distance above n, or a head
 *      that goes back, is -EPROTO.
 *  (3) Sleep: store asleep, load tail. Publish: store tail, load asleep. All
 *      four are sequentially consistent (a full fence between), so one of both
 *      sees the other and no wake is lost. A publisher that must ring clears
 *      asleep.
 *
 * One thread per end at a time. No system calls here.
 */
#ifndef LIBKVCLIENT_KV_RING_H
#define LIBKVCLIENT_KV_RING_H

#include <errno.h>
#include "libkvclient/kv_abi.h"

struct kv_ring_end {
	struct kv_ring *ring;
	uint32_t n; /* entries, a power of two: our own copy */
	uint32_t mine; /* producer: tail; consumer: head */
	uint32_t other; /* the peer's index as it was last seen */
};

static inline void kv_ring_init(struct kv_ring_end *e, struct kv_ring *ring,
				uint32_t n)
{
	e->ring = ring;
	e->n = n;
	e->mine = e->other = 0;
}

/* Slot of the i-th entry from ours on. */
static inline uint32_t kv_ring_slot(const struct kv_ring_end *e, uint32_t i)
{
	return (e->mine + i) & (e->n - 1);
}

/*
 * Producer: entries that can be written now, or -EPROTO. Looks at the peer's
 * head only when fewer than want are known to be free.
 */
static inline int kv_ring_room(struct kv_ring_end *e, uint32_t want)
{
	uint32_t head;

	if (e->n - (e->mine - e->other) >= want)
		return (int)(e->n - (e->mine - e->other));
	head = __atomic_load_n(&e->ring->head, __ATOMIC_ACQUIRE);
	if (head - e->other > e->mine - e->other)
		return -EPROTO;
	e->other = head;
	return (int)(e->n - (e->mine - head));
}

/* Producer: make n more entries visible. 1: the consumer must be woken. */
static inline int kv_ring_publish(struct kv_ring_end *e, uint32_t n)
{
	e->mine += n;
	__atomic_store_n(&e->ring->tail, e->mine, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&e->ring->asleep, __ATOMIC_SEQ_CST))
		return 0;
	__atomic_store_n(&e->ring->asleep, 0, __ATOMIC_RELAXED);
	return 1;
}

/* Consumer: entries that can be read now, or -EPROTO. */
static inline int kv_ring_ready(struct kv_ring_end *e)
{
	const uint32_t tail = __atomic_load_n(&e->ring->tail, __ATOMIC_SEQ_CST);
	const uint32_t n = tail - e->mine;

	e->other = tail;
	return n > e->n ? -EPROTO : (int)n;
}

/* Consumer: give n entries back. */
static inline void kv_ring_consume(struct kv_ring_end *e, uint32_t n)
{
	e->mine += n;
	__atomic_store_n(&e->ring->head, e->mine, __ATOMIC_RELEASE);
}

/* Consumer, before sleeping. Nonzero: entries (or nonsense) are there, stay. */
static inline int kv_ring_arm(struct kv_ring_end *e)
{
	__atomic_store_n(&e->ring->asleep, 1, __ATOMIC_SEQ_CST);
	return kv_ring_ready(e);
}

static inline void kv_ring_disarm(struct kv_ring_end *e)
{
	__atomic_store_n(&e->ring->asleep, 0, __ATOMIC_RELAXED);
}

#endif
