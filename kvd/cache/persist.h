/*
 * persist.h - make sealed segments durable, and find them again after a restart
 *
 *          persist_add()           a job takes it        record durable
 *   NONE --------------> QUEUED -----------------> BUSY ---------------> DURABLE
 *    ^                     |                         |
 *    +---------------------+-------------------------+
 *          not indexed any more, or failed
 *
 *  (1) Only sealed, indexed segments stand here: their bytes never change, so pages
 *      are written while others read them and nobody waits for that.
 *  (2) A page is written once: the place to which it was evicted is the place that
 *      the record names. Writing back and making durable are the same write.
 *  (3) While BUSY a job holds a reference. A segment that is freed has its record
 *      deleted first, and its slots are used again only after that is durable.
 *      What failed as a disk is silent is queued again when that answers, if automatic.
 *  (4) What comes back after a restart has the id it had: the ids name model,
 *      arithmetic and tokens, so what another build computed is never found.
 *
 * Lazily: without a waiter one segment at a time, and none while somebody waits
 * for room (DataStates-LLM, Maurya et al. 2024, arXiv:2406.10707: lazy copies of
 * immutable data). With a waiter as many as there are jobs; their records share
 * the store's flushes.
 *
 * One per tenant. Thread: loop thread.
 */
#ifndef KVD_CACHE_PERSIST_H
#define KVD_CACHE_PERSIST_H

#include "kvd/base/wait.h"
#include "kvd/cache/chunk.h"
#include "kvd/cache/prefix.h"
#include "kvd/cache/uses.h"
#include "kvd/cache/variant.h"
#include "kvd/mem/durable.h"

struct persist;

struct persist_conf {
	const char *tenant; /* goes into the records; <= 63 bytes */
	struct loop *loop;
	struct segment_pool *pool;
	struct prefix_tree *prefix;
	struct chunk_table *chunks;
	struct variant_table *variants;
	const struct uses *uses; /* what persist_adopt() looks at; or NULL */
	/* A job's reference is gone; or NULL. */
	void (*let_go)(void *ctx);
	void *ctx;
	int automatic; /* 1: persist_add() queues; 0: only persist_wait() does */
};
int persist_new(struct persist **out, const struct persist_conf *conf);
/*
 * Durable segments of the pool stay so: call it before segment_pool_free(), with
 * persist_idle() true. NULL is fine.
 */
void persist_free(struct persist *p);
/* 1: nothing is being written. */
int persist_idle(const struct persist *p);
/* Start nothing new, forget the queue (waiters get -ECANCELED). */
void persist_stop(struct persist *p);

/* The sealed s has been indexed. */
void persist_add(struct persist *p, struct segment *s);

/* The range of s is not durable any more (a page went bad on disk): once more. */
void persist_again(struct persist *p, struct segment *s);

struct persist_wait {
	struct wait wait; /* 0, or the first error: -ENOSPC, -EIO, -ENOTSUP */
	struct list node; /* persist's */
	uint64_t turn; /* persist's */
	int ret; /* persist's */
};
/*
 * Told when all segments indexed so far are on stable media, or cannot be. Returns
 * 1 when they already are (then wait is not told), 0; -ENOTSUP no store,
 * -ESHUTDOWN.
 */
int persist_wait(struct persist *p, struct persist_wait *w);
void persist_wait_cancel(struct persist_wait *w);

/*
 * The blob of a record of s, and its key: [*n_bytes], malloc'ed. NULL: no memory. Of s its
 * layout, tokens, ids and what it is are looked at, not its range.
 */
void *persist_record_new(const struct persist *p, const struct segment *s,
			 size_t *n_bytes, uint64_t key[2]);

/*
 * A record that a store found. The tenant it belongs to: *len bytes of the blob, not
 * NUL-terminated; NULL if the blob is not one of ours. Its sum is not looked at.
 */
const char *persist_record_tenant(const struct kio_record *r, size_t *len);
/* The blob is one of ours, and as it was written. */
int persist_record_sound(const struct kio_record *r);
/*
 * Make it a segment again: indexed, all pages on the lower tier, on disk
 * i_disk. 0; -EINVAL the blob is damaged or from another version; -EDQUOT it does
 * not fit into the budgets any more; -EALREADY it is there; -ENOMEM.
 */
int persist_adopt(struct persist *p, uint32_t i_disk,
		  const struct kio_record *r);

/*
 * What is known of the record's uses since it was written is taken over from conf.uses,
 * unless the record knows of more; the entry's n_hits becomes PERSIST_CLAIMED.
 */
#define PERSIST_CLAIMED UINT64_MAX
/* Hits and score of all chunks and variants, for the next life. -ENOMEM. */
int persist_uses(struct persist *p, struct uses *u);

struct persist_info {
	uint64_t n_queued, n_durable, durable_bytes, n_adopted, n_failed;
};
void persist_info(const struct persist *p, struct persist_info *out);
/* Segments that would be found again, were they durable. Looks at all there are. */
struct persist_left {
	uint64_t n, bytes;
};
struct persist_left persist_left(const struct persist *p);
/* Asserts (1) to (3). */
void persist_check(const struct persist *p);

#endif
