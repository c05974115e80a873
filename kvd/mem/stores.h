/*
 * stores.h - the lower tier: one page store a disk, with its engine and events
 *
 * All tenants share the disks; their budgets are the pagers' business. A range
 * lies on one disk whole (chosen at its first write), so that the records of
 * a disk make sense without the other disks.
 *
 * Thread: loop thread.
 */
#ifndef KVD_MEM_STORES_H
#define KVD_MEM_STORES_H

#include "io/store.h"
#include "kvd/base/list.h"
#include "kvd/base/loop.h"

#define STORES_MAX 8u

struct stores;

struct stores_conf {
	struct loop *loop;
	enum kio_engine_kind kind;
	uint32_t depth; /* requests in flight, each disk */
	uint32_t n; /* 1..STORES_MAX */
	struct stores_disk_conf {
		const char *path;
		uint64_t bytes; /* 0 with a block device: all of it */
	} disks[STORES_MAX];
	int scratch; /* 1: nothing survives, the files are unlinked at once */
};
/* Engines and events; nothing is opened yet. 0, -ENOMEM, -errno. */
int stores_new(struct stores **out, const struct stores_conf *conf);
/*
 * Open the disks. With several, one that is not there, is damaged or cannot be read is
 * left out, as it is; err says so then too. found gets each record with the number of its disk and says
 * KIO_RECORD_KEEP, ORPHAN or DROP; it may use the pagers. On failure err tells which
 * disk and why; -errno of kio_store_open().
 */
int stores_open(struct stores *s,
		int (*found)(void *ctx, uint32_t i_disk,
			     const struct kio_record *r),
		void *ctx, char *err, size_t err_len);
/* kio_store_on_lost() of all disks; each is logged, too. NULL: nobody. */
void stores_on_lost(struct stores *s,
		    void (*lost)(void *ctx, uint32_t i_disk, uint64_t handle),
		    void *ctx);
/*
 * A disk that has requests in flight and ends none for patience_ns (0: as it was, and five
 * seconds at first) is silent till it does: a driver that retries, a network that is away. Then
 * no new range goes there, reading from it takes for ever as far as anybody asks
 * (stores_speed()), and on_silent is told, once a second: what can be had without it
 * should be. What is in flight waits: its memory is the kernel's.
 */
void stores_on_silent(struct stores *s, uint64_t patience_ns,
		      void (*on_silent)(void *ctx, uint32_t i_disk), void *ctx);
int stores_is_silent(const struct stores *s, uint32_t i);
/* Those that were left out. */
struct stores_missing {
	char *path;
	char why[80];
};
uint32_t stores_n_missing(const struct stores *s);
const struct stores_missing *stores_missing(const struct stores *s, uint32_t i);
/* Nothing of the caller's is in flight. NULL is fine. */
void stores_free(struct stores *s);

/*
 * So many bytes may be in the engine of each disk at once, and one request more (16
 * MiB). 1: one after the other, in the order of the line.
 */
void stores_set_window(struct stores *s, uint64_t bytes);
struct kio_store *stores_disk(struct stores *s, uint32_t i);
uint32_t stores_n(const struct stores *s);
const char *stores_path(const struct stores *s, uint32_t i);
/* Page requests queued or in flight there. */
uint32_t stores_n_busy(const struct stores *s, uint32_t i);
int stores_scratch(const struct stores *s);
/*
 * The disk for a new range: most free bytes by queue length, orphans being free; one
 * that is bad only if no other has the room. Not those (a bit each). -ENOSPC.
 */
int stores_pick(struct stores *s, uint64_t bytes, uint32_t not_those);
/* 1: it is silent, its index has failed, or no write ended well since many slots refused
 * theirs. */
int stores_is_bad(const struct stores *s, uint32_t i);
/* Bytes of slots that come back: when a deletion is durable, a zone is emptied. */
uint64_t stores_pending(const struct stores *s);
/*
 * The requests of one pager. They wait here, not in the engine, while more than
 * the disk needs to be busy is in flight, and go by weight: deficit round robin over
 * pagers (Shreedhar and Varghese 1995), in a pager by urgency. So the flood of one is
 * no wait for the others.
 */
#define STORES_PRIOS 4u

/*
 * A flow may have a limit, in bytes a second over all disks. All it reads and writes is
 * counted; what waits is reads for somebody of its own (prio below the last), before they
 * count as queued at the disk. Writes never do: others may wait for the frames, nor
 * does the background, which has budgets of its own and works for others, too. However
 * much these take, what waits goes on at half of the limit.
 */
struct stores_flow {
	uint32_t weight;
	uint64_t limit; /* 0: none */
	double tokens; /* bytes it may read now, < 0: is behind; right at at_ns */
	uint64_t at_ns;
	uint64_t turn_ns; /* the first that waits goes then, whatever is left */
	uint64_t held_bytes; /* that wait */
	uint64_t n_held_total;
	struct list held_node; /* of the stores', while some wait */
	struct stores_lane { /* of one disk */
		struct list node; /* of the disk's, while it has requests */
		struct stores_flow *flow;
		struct stores_queue {
			struct kio_req *first, *last;
		} queue[STORES_PRIOS], held[STORES_PRIOS];
		uint64_t
			credit; /* bytes it may send before the next one's turn */
		uint32_t n_sent;
	} lanes[STORES_MAX];
};
void stores_flow_init(struct stores_flow *f, uint32_t weight, uint64_t limit);
/*
 * Read or write r (buf, block, n_bytes, done) on disk i. done() calls stores_end()
 * first. prio: 0 is most urgent; the least urgent is served now and then anyway, and
 * started by a thread of the kernel: pinning 2 MiB and handing them to the disk costs the
 * loop 20 us that nobody gains by.
 */
void stores_read(struct stores *s, uint32_t i, struct stores_flow *f,
		 uint32_t prio, struct kio_req *r);
void stores_write(struct stores *s, uint32_t i, struct stores_flow *f,
		  uint32_t prio, struct kio_req *r);
void stores_end(struct stores *s, uint32_t i, const struct kio_req *r);
/*
 * Somebody more urgent waits for the block now: its request, if it waits here at less
 * than prio, goes to the end of those of prio. 1: it was found.
 */
int stores_hurry(struct stores *s, uint32_t i, struct stores_flow *f,
		 uint32_t prio, uint64_t block);
/*
 * The flow's requests that wait here, and not in the engine of disk i, and are unwanted(): done
 * with -ECANCELED, at once. They call stores_end() as ever.
 */
void stores_withdraw(struct stores *s, uint32_t i, struct stores_flow *f,
		     int (*unwanted)(const struct kio_req *r));
/*
 * A slot could not be written, by itself: 1, set it aside (kio_store_set_aside()).
 * 0: not one more. A disk that takes no writes at all loses eight so, one that takes
 * some a 64th.
 */
int stores_may_set_aside(struct stores *s, uint32_t i, uint64_t bytes);
/*
 * How long reading bytes from disk i would take this flow now: behind what is queued
 * there, at the rate of late; behind what waits for its limit, at its limit.
 */
uint64_t stores_read_ns(const struct stores *s, uint32_t i,
			const struct stores_flow *f, uint64_t bytes);
/* What that is made of. */
struct stores_speed {
	double bytes_per_s;
	uint64_t queue_bytes;
};
struct stores_speed stores_speed(const struct stores *s, uint32_t i,
				 const struct stores_flow *f);
/* What its limit makes of it on all disks together; 0 bytes a second: it has none. */
struct stores_speed stores_limit(const struct stores_flow *f);
/* Submit and reap once; the loop does it too. */
void stores_turn(struct stores *s);
/* "io_uring" or "threads". */
const char *stores_engine_name(const struct stores *s);

#endif
