/*
 * park_priv.h - what park.c (room) and park_flush.c (disk) share; see park.h
 */
#ifndef KVD_MEM_PARK_PRIV_H
#define KVD_MEM_PARK_PRIV_H

#include "kvd/base/loop.h"
#include "kvd/mem/extent.h"
#include "kvd/mem/move.h"
#include "kvd/mem/park.h"

struct park {
	struct park_conf conf;
	char *base;
	int is_pinned;
	uint64_t n_units, n_free, n_dirty, n_dirty_most;
	uint64_t n_lost; /* not to be used again */
	struct extents free;
	struct list parts;
	uint32_t n_waiting[PARK_FORS];
	uint32_t n_coming; /* pages on their way in, or being read */
	uint64_t flight_bytes[STORES_MAX]; /* being written, to each disk */
	struct stores *stores; /* where to */
	int is_stuck; /* what is dirty cannot be written now */
	struct loop_call call;
	int is_queued;
	struct loop_timer timer; /* what failed may be tried again */
	uint64_t logged_ns;
	struct park_info n;
};

/* Look for work on a turn of its own. */
void park_kick(struct park *k);
void park_list(struct parked *h);
void park_set_dirty(struct parked *h, int is_dirty);
/*
 * The oldest of the list at list_off in struct park_part, of the part that has most for
 * its weight, that may be tried at now; NULL.
 */
enum park_of { PARK_OF_ALL, PARK_OF_OVER /* those beyond their part */ };
struct parked *park_oldest(struct park *k, size_t list_off, enum park_of of,
			   uint64_t now);
/* park_flush.c: write what has to be; sets is_stuck. */
void park_flush_turn(struct park *k);

#endif
