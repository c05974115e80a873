/*
 * account.h - shares of the daemon's memory and disk bytes, lent while unused
 *
 * One struct accounts for the daemon, one struct account for each tenant (a pager
 * has it). For memory and for disk an account has a hard limit, a floor and a
 * weight. Its share is the floor plus its part by weight of what no floor takes,
 * never beyond the limit; what a limit cuts off goes to the others. So the shares
 * together are at most the pool, and each is its limit when all limits fit.
 *
 *  (1) used <= limit for each account, sum of used <= pool, at every instant: room
 *      is charged before it is taken.
 *  (2) Whoever is below its limit may use what is free (a loan). When the pool is
 *      full, account_victim() names who gives: the account that is most above its
 *      share, its own demand counted in. What another wants never takes an account
 *      below its floor (by at most the rest of one page).
 *  (3) reserved <= limit, and sum of max(reserved, floor) <= pool.
 *  (4) A loan is not renewed while somebody is owed its share: then only those
 *      are admitted who stay within theirs. A smaller reservation of the same account
 *      does not end that.
 *
 * No deadlock. Who pins has reserved, so pinned <= reserved (pins that a want
 * still waits for included). Let a holder i miss m bytes in a full pool, used + m >
 * pool. If every account had used_j <= max(reserved_j, floor_j), and i with m
 * too, the sum would be <= pool by (3), which it is not. So some account is above
 * both: being above its pins it has a page that is not pinned, being above its
 * floor it may be asked for it (i itself may always be asked for its own). That
 * page can go, because it has a place on disk: segments in use of one account are
 * at most max(memory share, disk share) bytes, and an account whose disk share is
 * smaller than its share of memory is given a fixed share (limit = floor = share):
 * it neither lends nor borrows. A want therefore ends, unless a disk fails, which
 * is an answer too.
 *
 * No starvation. A reservation up to the share waits for its own account's others,
 * or for loans to end, which (4) bounds by the requests that run. One beyond
 * the share gets what is free now or -ENOSPC, and its owner works in windows.
 *
 * Thread: loop thread. No I/O, no clock: the caller tells the time.
 */
#ifndef KVD_MEM_ACCOUNT_H
#define KVD_MEM_ACCOUNT_H

#include <stdint.h>
#include "kvd/base/list.h"
#include "kvd/base/loop.h"

enum account_tier { ACCOUNT_MEMORY, ACCOUNT_DISK, ACCOUNT_TIERS };

struct accounts {
	uint64_t bytes[ACCOUNT_TIERS]; /* the pools */
	uint64_t used[ACCOUNT_TIERS];
	uint64_t leaving; /* memory: on its way out */
	/* memory of the pool that was not to be had of late (a device whose memory
	 * others have): nobody is given it. The pagers' */
	uint64_t missing, missing_ns;
	struct list all; /* struct account.node */
	uint32_t round; /* of account_victim() */
	uint32_t n_owed;
	/* the pagers': who wants room is served on a turn of its own */
	struct loop_call room_call;
	struct loop_timer room_timer;
	int room_queued;
	int loosened; /* reservations that had to wait may go now */
};

/* Bytes times time: right up to since_ns. */
struct account_meter {
	uint64_t since_ns;
	double byte_ns;
};

struct account_side {
	uint64_t limit, floor; /* in force; a fixed share has both = share */
	uint64_t share;
	uint64_t used;
	struct account_meter meter;
};

struct account_conf {
	uint64_t limit[ACCOUNT_TIERS];
	uint64_t floor[ACCOUNT_TIERS]; /* <= limit; sum <= pool */
	uint32_t weight; /* 0: 1 */
};

struct account {
	struct list node;
	struct accounts *accounts;
	struct account_conf conf;
	struct account_side side[ACCOUNT_TIERS];
	uint64_t reserved;
	uint64_t leaving; /* memory on its way out, part of used */
	uint64_t demand; /* memory that somebody waits for */
	uint32_t passed; /* the round in which it had nothing */
	uint64_t owed; /* see (4): to a reservation of so many bytes; or 0 */
};

void accounts_init(struct accounts *as, uint64_t memory_bytes,
		   uint64_t disk_bytes);
/* Enter a into the books; all shares are computed anew. */
void account_open(struct accounts *as, struct account *a,
		  const struct account_conf *conf, uint64_t now_ns);
/* Nothing is used or reserved. */
void account_close(struct account *a);

/* Bytes that could be charged at once. */
uint64_t account_room(const struct account *a, enum account_tier t);
/* Bytes until its own limit. */
uint64_t account_limit_room(const struct account *a, enum account_tier t);
/* They fit: see account_room(). */
void account_charge(struct account *a, enum account_tier t, uint64_t bytes,
		    uint64_t now_ns);
void account_uncharge(struct account *a, enum account_tier t, uint64_t bytes,
		      uint64_t now_ns);
/* Memory that is being freed (1) or turned out to stay, or is gone (-1). */
void account_leave(struct account *a, uint64_t bytes);
void account_left(struct account *a, uint64_t bytes);

/*
 * Reserve memory for pins: 0; -EAGAIN later; -ENOSPC never, or it is beyond the
 * share and not free now.
 */
int account_reserve(struct account *a, uint64_t bytes);
void account_unreserve(struct account *a, uint64_t bytes);
/* Nobody of this account waits for a reservation any more. */
void account_unowe(struct account *a);
/* Bytes that account_reserve() would give now. */
uint64_t account_reservable(const struct account *a);
/* The most that one reservation can wait for: the share. */
uint64_t account_share(const struct account *a, enum account_tier t);

/* Begin to look for room: nobody has been passed over. */
void account_round(struct accounts *as);
/* 1: it is above its floor, what is leaving taken off. */
int account_may_give(const struct account *a, enum account_tier t);
/*
 * Who gives memory (or disk) next, so that those with demand get it; NULL: nobody
 * is left. At its floor an account is asked only for its own demand. The caller
 * sets passed = accounts.round for an account that has nothing to give.
 */
struct account *account_victim(struct accounts *as, enum account_tier t);
/* Of those with demand that their limit allows, the one furthest below its share. */
struct account *account_neediest(struct accounts *as);

/* used bytes were had up to now. Before they change. */
void account_meter(struct account_meter *m, uint64_t used, uint64_t now_ns);
/* Byte-seconds, with those bytes up to now. */
double account_meter_read(const struct account_meter *m, uint64_t used,
			  uint64_t now_ns);
/* Byte-seconds used since account_open(). */
double account_byte_seconds(const struct account *a, enum account_tier t,
			    uint64_t now_ns);
/* Asserts (1) to (3) over the whole. */
void accounts_check(const struct accounts *as);

#endif
