/*
 * cost.h - load or recompute: the one place where that is decided
 *
 * KV on disk can be read, or computed again from the tokens. What is faster is not a
 * matter of habit: a fast disk beats any CPU, a loaded or cold one may lose to a
 * small model. Costs come from rates and queues measured while the daemon runs
 * (ALISA, Zhao et al. 2024, arXiv:2403.17312, decides the same from a profile).
 *
 * Any thread; nothing is kept.
 */
#ifndef KVD_SERVE_COST_H
#define KVD_SERVE_COST_H

#include <stdint.h>

#define COST_NO_DEADLINE UINT64_MAX

#define COST_DISKS 8u
/* What has to come from each disk. */
struct cost_bytes {
	uint64_t on[COST_DISKS];
};
struct cost_disk {
	double bytes_per_s; /* of late; > 0 where something is read from it */
	uint64_t queue_bytes; /* before ours */
};
struct cost_now {
	/* they are read side by side, so the slowest decides */
	struct cost_disk disks[COST_DISKS];
	struct cost_disk all; /* what they give us together; 0: no limit */
	double rows_per_s; /* prefill, of late; > 0 */
	uint64_t queue_rows; /* at the engine before ours; read meanwhile */
	uint64_t rest_rows; /* computed after ours in any case */
	uint64_t left_ns; /* to the first token's deadline, or none */
};
/* Something that can be had by reading bytes or computing rows. */
struct cost_item {
	uint64_t bytes; /* on disk; 0: it is in memory */
	uint64_t rows;
	uint32_t i_disk; /* < COST_DISKS */
};

/* Time to read that, in ns. */
double cost_load_ns(const struct cost_now *now, const struct cost_bytes *bytes);

/* Time to the first token in ns when the items before cut are read, the others computed. */
double cost_ns(const struct cost_now *now, const struct cost_item *items,
	       uint32_t n, uint32_t cut);
/*
 * n items follow each other: those before the cut are read, the others computed.
 * Returns the latest cut (what is read leaves the processor to others) that takes
 *   no more than a tenth longer than the fastest, without a deadline;
 *   the fastest, with a deadline that it misses or meets narrowly;
 *   no more than the deadline allows, else;
 * and never longer than computing all. A hit is to be slower than computing it by a tenth at
 * most: that tenth is for rates that were wrong, and nothing of it is spent here. A thing
 * that can only be had whole is one item: 1 is to read it.
 */
uint32_t cost_cut(const struct cost_now *now, const struct cost_item *items,
		  uint32_t n);
/*
 * Permille of tokens to compute again while they are loaded: as many as that takes no longer
 * (CacheBlend's controller, Yao et al. 2025, arXiv:2405.16444: r with T_rec(r) = T_load, but
 * r* at least), where computing all takes compute_ns. least..999.
 */
uint32_t cost_share(uint64_t load_ns, uint64_t compute_ns, uint32_t least);
/*
 * Of n stages that are loaded one after the other, each of them in load_ns, and then
 * computed in compute_ns: how many to have before the computing begins so that it ends
 * as early as can be and waits for less than one stage. 1..n.
 */
uint32_t cost_start(uint32_t n, uint64_t load_ns, uint64_t compute_ns);

#endif
