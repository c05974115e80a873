/*
 * cost.h - load or recompute: the one place where that is decided
 *
 * KV on disk can be read, or computed again from the tokens. What is faster is not a
 * matter of habit: a fast disk beats any CPU, a loaded or cold one may lose to a
 * small model. Both costs come from rates measured while the daemon runs (ALISA,
 * Zhao et al. 2024, arXiv:2403.17312, decides the same from a profile).
 */
#ifndef KVD_SERVE_COST_H
#define KVD_SERVE_COST_H

#include <stdint.h>

/*
 * A prefix of n tiles can be cut anywhere: tiles before the cut are loaded, one after
 * the other, the others computed. load_ns, compute_ns [n]. Returns the cut with
 * the least sum, the latest of equals (what is loaded is not computed twice).
 */
uint32_t cost_cut(const uint64_t *load_ns, const uint64_t *compute_ns,
		  uint32_t n);
/*
 * A thing that can only be had whole: 1 to load it. A load that is slower by up to a
 * tenth is taken too: it leaves the processor to others.
 */
int cost_load(uint64_t load_ns, uint64_t compute_ns);
/*
 * Of n stages that are loaded one after the other, each of them in load_ns, and then
 * computed in compute_ns: how many to have before the computing begins so that it ends
 * as early as can be and waits for less than one stage. 1..n.
 */
uint32_t cost_start(uint32_t n, uint64_t load_ns, uint64_t compute_ns);

#endif
