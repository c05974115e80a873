/*
 * edit.h - a prompt that is an edited version of an earlier one
 *
 * A part with SERVE_PART_BASE is not in the prompt: it is the earlier version of the part
 * behind it. What both have in common is taken from the segments that the earlier prompt
 * left: before the first difference as it is, behind it with other positions (PIE, He et
 * al. 2024, arXiv:2407.03157: entries of the list change their base, keys stay as they
 * are). Only the rest is computed. Behind the first difference K and V are those of the
 * earlier context, unless repair (repair.h) computes some of them again.
 *
 * The part becomes several (gen.parts): moved ones, by reference, and plain ones. What
 * was not found is plain. Nothing from the first moved part on enters an index, as it
 * depends on what was found.
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_EDIT_H
#define KVD_SERVE_EDIT_H

#include <stdint.h>

struct gen;

enum edit_kind {
	EDIT_PLAIN, /* not moved */
	EDIT_MOVED,
	EDIT_EXACT /* found where it was, nothing before it changed */
};

/* len tokens that are the same from i (of the new version) and j (of the old) on. */
struct edit_run {
	uint32_t i, j, len;
};
#define EDIT_MAX_RUNS 256u
#define EDIT_WINDOW   16u /* tokens; shorter runs are not worth an entry */
/*
 * What is the same in both: what they begin and end with, and between these, in order,
 * runs of at least EDIT_WINDOW tokens that begin with a window that the old version has
 * once. Writes at most EDIT_MAX_RUNS, ascending; returns how many, or -ENOMEM.
 */
int edit_match(const uint32_t *old, uint32_t n_old, const uint32_t *new,
	       uint32_t n_new, struct edit_run *runs);

/*
 * Take the bases out of g->in, whose texts have become tokens. 0, -ENOMEM, -EINVAL: a base
 * with no plain part behind it, or behind a chunk, or of the part that is scored, or
 * with variants of chunks.
 */
int edit_begin(struct gen *g);
/* Find what is the same, cut parts, once. 0, -ENOMEM. Before chunks are looked up. */
int edit_plan(struct gen *g);
/* Tokens taken from an earlier version. */
uint32_t edit_n_moved(const struct gen *g);
/* First token of the prompt that is not as if there had been no base. */
uint32_t edit_exact_end(const struct gen *g);
void edit_free(struct gen *g);

#endif
