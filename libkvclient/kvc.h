/*
 * kvc.h - a session inside the library
 *
 *  (1) lock covers the sq end, the slots and broken. The role of the reaper
 *      (reaping, taken by exchange) covers the cq end and delivery; who holds
 *      it may take the lock, not the other way round.
 *  (2) A slot is taken from submission until its last completion was read; the
 *      table has cq_entries of them, so a last completion always finds room.
 *  (3) alive points to a page that fork() wipes: 0 in a child.
 */
#ifndef LIBKVCLIENT_KVC_H
#define LIBKVCLIENT_KVC_H

#include <pthread.h>
#include "libkvclient/kv_ring.h"
#include "libkvclient/kvclient.h"

#define KVC_NO_SLOT UINT32_MAX

struct kvc_slot {
	struct kvc_req *req; /* NULL: free, or nobody asks for the result */
	uint32_t generation; /* high half of user_data; odd: taken */
	uint32_t next_free;
};

/* A block of the arena; lies 64 bytes before what kvc_alloc() returned. */
struct kvc_block;
struct kvc_maps; /* map.c */

struct kvc {
	pthread_mutex_t lock;
	pthread_mutex_t arena_lock;
	/* as asked for, kept for kvc_reconnect() */
	char path[108];
	struct kv_hello hello;
	uint64_t spin_ns;
	/* of this connection */
	int sock, doorbell;
	char *map;
	uint64_t map_bytes;
	uint64_t features;
	char tenant[33];
	struct kv_ring_end sq, cq;
	struct kv_sqe *sqes;
	const struct kv_cqe *cqes;
	char *arena;
	uint64_t arena_bytes;
	uint32_t epoch; /* counts connections */
	int broken; /* (lock) -errno once it is over */
	struct kvc_slot *slots; /* (lock) [cq.n] */
	uint32_t free_slot; /* (lock) */
	uint32_t n_free; /* (lock) */
	uint32_t reaping; /* (A) 1: some thread is the reaper */
	uint32_t turn; /* (A) futex: counts deliveries */
	uint32_t rang; /* (A) the daemon was woken since the last wait */
	uint32_t n_followers; /* (A) threads that sleep on turn */
	uint64_t look_ns; /* (reaper) when kvc_poll() looks for the peer */
	struct kvc_req *delivering; /* (A) on_cqe of it is running */
	struct kvc_block *free_list; /* (arena_lock) */
	volatile uint32_t *alive;
	struct kvc_maps *maps; /* (lock) from the first kvc_map() on */
	int map_by_signal; /* (lock) kvc_map_by_signal() was called */
};

/* 1 when this process may use c. */
static inline int kvc_usable(const struct kvc *c)
{
	return c->alive && *c->alive;
}

/* submit.c: one free slot per entry of the cq; -ENOMEM. */
int kvc_slots_new(struct kvc *c);
/* End the session: all requests in flight are delivered err. No other thread
 * is inside. */
void kvc_slots_fail(struct kvc *c, int err);
/* map.c: this connection ends: nothing of its maps can be read any more. */
void kvc_maps_lost(struct kvc *c);
/* And they are unmapped, and forgotten. */
void kvc_maps_free(struct kvc *c);
/*
 * map.c: the descriptors of a KV_CTL_FRAMES that was sent before a completion that was read;
 * at most KV_FRAMES_MAX, the caller's. How many; -EPROTO there is none, -EMFILE, -ENFILE,
 * -ENOMEM they could not be kept, -ECONNRESET.
 */
int kvc_frames_take(struct kvc *c, uint32_t id, uint64_t first, int *fds);
/* arena.c: the whole arena becomes one free block. */
void kvc_arena_reset(struct kvc *c);
/* kvc_alloc() with its reason: -EAGAIN, -EMSGSIZE, -ECONNRESET, -EPERM. */
int kvc_arena_take(struct kvc *c, size_t bytes, void **out);

#endif
