/*
 * keeper.h - when the statistics of chunks are written; see kvd/cache/uses.h
 *
 *   at an orderly stop; before a persist call is answered; and after requests: a second
 *   later when there were as many again as before, else a minute later
 *
 * One snapshot at a time goes to a worker. An error is logged and costs statistics.
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_KEEPER_H
#define KVD_SERVE_KEEPER_H

#include "kvd/base/list.h"
#include "kvd/base/wait.h"
#include "kvd/cache/uses.h"

struct serve;
struct keeper;

/* Reads the file. NULL in *out and 0: no tenant's chunks outlive the daemon. -ENOMEM. */
int keeper_new(struct keeper **out, struct serve *s);
/* What was read, until keeper_opened(); NULL for a NULL k. */
const struct uses *keeper_uses(const struct keeper *k);
/*
 * The stores are open: from now on it is written. n_orphans: records that nobody has
 * now; what the file says of those is kept for them.
 */
void keeper_opened(struct keeper *k, uint64_t n_orphans);
/* A request with chunks has ended. NULL k is fine. */
void keeper_used(struct keeper *k);

struct keeper_wait {
	struct wait wait; /* 0 */
	struct list node; /* keeper's */
};
/* Told when statistics of now or later are written, or could not be. */
void keeper_save(struct keeper *k, struct keeper_wait *w);
void keeper_cancel(struct keeper_wait *w);
/* Writes them once more, if the stores were opened. NULL is fine. */
void keeper_free(struct keeper *k);

#endif
