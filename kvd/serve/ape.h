/*
 * ape.h - chunks side by side: encoded behind a shared prefix only, seen all at once
 *
 * Parts with SERVE_PART_PARALLEL (and SERVE_PART_REUSE) follow each other behind plain parts,
 * the shared prefix. Each is computed behind the prefix alone, once, and found by its tokens
 * and the prefix's. In a request all begin at the rotary position behind the prefix, what
 * comes after them behind the longest; rows see them with a temperature and a
 * scale (seq.h, kern_attn_join(): APE, Yang et al. 2025, arXiv:2502.05431).
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_APE_H
#define KVD_SERVE_APE_H

#include "kvd/base/map.h"
#include "kvd/cache/seq.h"

struct gen;
struct gen_part;

/*
 * Check the parts and give parallel ones their ids. -EINVAL: they do not follow each other, a
 * chunk stands before them, repair or earlier versions are asked for too, a number is
 * out of range, there are more than 16 pairs of numbers.
 */
int ape_plan(struct gen *g);
/* How entries of the part are seen. */
struct seq_context ape_context(const struct gen *g,
			       const struct gen_part *part);
/* What the chain of ids knows a parallel chunk by. */
struct map_id ape_id(const struct gen_part *part);
/* Parts that a job for the chunk computes first. */
uint32_t ape_n_before(const struct gen *g, const struct gen_part *part);

#endif
