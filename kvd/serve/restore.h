/*
 * restore.h - a hit's pages come in layer by layer while the first step computes
 *
 * A page holds page_layers layers, so layers can come one stage of such groups after the
 * other: each stage is a want, all are asked for at once, in the order of their layers,
 * those after n_start as less urgent. The first step begins when n_start stages are in, and its
 * engine waits before the first layer of each stage that is not. When all are in the
 * pins are the gen's, as if it had waited for all of them. Looks at the first layers
 * (repair.h, focus.h) are steps before the first and need no later stage.
 *
 * The start is the rule Lp of Cache-Craft (Agarwal et al. 2025, arXiv:2502.15734):
 * with tl to load and tc to compute one of n stages, n - (n - 1) tc / tl of them; looks
 * count as computing.
 * Rounded down: the engine may wait for less than one stage then, and this lane's
 * engine holds up nobody else (tenant.h).
 *
 * Not for layouts of one group, windows; nor when nothing is on disk. Pages
 * that follow each other on disk would be read apart: a stage has RESTORE_BYTES
 * or more of each run.
 *
 * Loop thread; restore_wait() on the engine.
 */
#ifndef KVD_SERVE_RESTORE_H
#define KVD_SERVE_RESTORE_H

#include <stdatomic.h>
#include "kvd/serve/gen.h"

#define RESTORE_BYTES  (256u << 10)
#define RESTORE_STAGES 16u /* at most */

struct restore_stage {
	struct page_want want;
	struct restore *restore;
	int pinned, asked;
};

struct restore {
	struct gen *g;
	uint32_t n; /* stages */
	uint32_t n_in; /* the first so many are pinned */
	uint32_t n_start; /* so many before the step begins */
	uint32_t layers; /* of a stage; the last may have fewer */
	int err; /* the first failure */
	int waiting; /* the engine, for stage i_wait */
	uint32_t i_wait;
	struct engine_ask ask; /* told how many are in */
	uint32_t n_known; /* engine thread: of n_in */
	_Atomic uint32_t layer; /* (A) relaxed: the engine is at it */
	uint32_t n_ahead; /* layers computed while pages were still missing */
	struct page_run *runs; /* of all stages, in order */
	uint32_t n_runs;
	struct restore_stage stages[];
};

/*
 * Pin [0, to) stage by stage: 1 it began, and gen_pages_in() or gen_pages_failed()
 * will follow; 0 it is not worth it, ask for all; -errno.
 */
int restore_begin(struct gen *g, uint64_t to);
/* Give back all that is pinned, forget what is wanted; NULL is fine. */
void restore_drop(struct restore *r);
/*
 * A step of g, or a look before it, has ended with ret: what it ends with. With an error
 * all is dropped; with none the restore goes on if pages are still missing.
 */
int restore_stepped(struct gen *g, int ret);
/* Its pages will not come: as if one could not be read. It may be gone after. */
void restore_fail(struct restore *r, int err);
/* The gen is cancelled: its engine need not wait. */
void restore_cancel(struct restore *r);
/* Engine thread: before the layer is computed. 0, or why it cannot be. */
int restore_wait(struct engine *e, struct restore *r, uint32_t layer);

#endif
