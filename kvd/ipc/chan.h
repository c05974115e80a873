/*
 * chan.h - the daemon's end of a session's shared memory
 *
 * A sealed memfd with both rings and the arena, and the doorbell. All of it is
 * in the client's reach: entries are copied once before they are looked at,
 * sizes are our own, ranges are checked without overflow. Loop thread.
 */
#ifndef KVD_IPC_CHAN_H
#define KVD_IPC_CHAN_H

#include <stddef.h>
#include <stdint.h>
#include "libkvclient/kv_ring.h"

struct chan { /* the caller's memory */
	char *map;
	uint64_t map_bytes;
	struct kv_ring_end sq, cq;
	const struct kv_sqe *sqes;
	struct kv_cqe *cqes;
	char *arena;
	uint64_t arena_bytes;
	uint32_t n_posted; /* written behind cq.mine, not yet published */
	int doorbell; /* eventfd, ours */
};

/*
 * Make the mapping of these sizes (powers of two; arena in bytes, a multiple of
 * 4096) with its header. *memfd is the caller's to pass on and to close.
 * -errno; then nothing is left.
 */
int chan_open(struct chan *ch, uint32_t sq_entries, uint32_t cq_entries,
	      uint64_t arena_bytes, uint64_t features, int *memfd);
/* Unmaps; nobody may hold a pointer into the arena. */
void chan_close(struct chan *ch);

/* Copy the next entry: 1 got one, 0 empty, -EPROTO the indices are nonsense. */
int chan_pop(struct chan *ch, struct kv_sqe *out);
/* Tell the client that entries up to here are taken. */
void chan_taken(struct chan *ch);
/* 1 when an entry is there (or nonsense that chan_pop() will name). */
static inline int chan_pending(struct chan *ch)
{
	return kv_ring_ready(&ch->sq) != 0;
}
/*
 * 1 when more than n_owed completions find room, 0 not now, -EPROTO. With
 * n_owed = requests in flight, one more request (or progress) may go on.
 */
int chan_has_room(struct chan *ch, uint32_t n_owed);
/* Write a completion; there is room (see above). Visible after chan_flush(). */
void chan_post(struct chan *ch, const struct kv_cqe *e);
/* Publish what was posted and wake the client if it sleeps. */
void chan_flush(struct chan *ch);
/* The session is over: say why, wake whoever waits. */
void chan_shut(struct chan *ch, int err);

/* Before the loop sleeps: 1 when there is work after all. */
int chan_arm(struct chan *ch);
void chan_disarm(struct chan *ch);

/* The len bytes at off of the arena, aligned to align (a power of two), or
 * NULL when they are not inside. len 0 is inside anywhere in it. */
void *chan_at(const struct chan *ch, uint64_t off, uint64_t len,
	      uint32_t align);
/* Copy len bytes at off once into daemon memory; -EINVAL. */
int chan_read(const struct chan *ch, uint64_t off, void *dst, uint64_t len);
/* Copy bytes that were checked with chan_at(), once. */
void chan_copy(void *dst, const void *src, size_t len);

#endif
