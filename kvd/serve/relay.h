/*
 * relay.h - which rows of a batch go over which spans together, and in which order
 *
 * A lane is one state: a row, as it sees those of its tokens that have one temperature and
 * scale. Lanes meet their spans in the order of their lists. A span of several lanes is
 * read once: lanes that stand at it merge its tiles at once, for those that come to it
 * later the tiles are kept apart until then. As each tile is computed from the empty state
 * (kern.h), both give the bits of a lane alone.
 *
 * Thread: engine thread; a plan is read by its pool.
 */
#ifndef KVD_SERVE_RELAY_H
#define KVD_SERVE_RELAY_H

#include "kvd/serve/attn_priv.h"

/* Tiles kept apart, of a batch and layer: beyond it a span is read again. */
#define RELAY_KEPT_BYTES (16u << 20)

struct relay_lane {
	struct prepared *p; /* of one row */
	struct seen *seen;
	struct kern_span *spans; /* the row's, cut where others end */
	uint32_t n_spans;
	uint32_t *use; /* [n_spans] of one that several have, or RELAY_NONE */
	uint32_t at; /* while planning: the next */
};
#define RELAY_NONE UINT32_MAX

/* One lane's use of a span that several have. */
struct relay_use {
	uint32_t lane, span;
	uint32_t place; /* where it is, to the planner */
	uint32_t next; /* of the same place, or RELAY_NONE */
	uint32_t tiles,
		stride; /* as of the step, if its tiles are kept apart */
	int done;
};

enum relay_kind {
	RELAY_OWN, /* spans of one lane */
	RELAY_TOGETHER, /* one span of several */
	RELAY_MERGE, /* tiles kept before, into their lane */
};

struct relay_step {
	enum relay_kind kind;
	uint32_t lane, span, n; /* OWN, MERGE: n spans from span on */
	/* TOGETHER: users from first on, n_now and n_later, each sorted by skip mask */
	uint32_t first, n_now, n_later;
	/* tiles kept apart: the first, and how far it is from one to the next of a lane */
	uint32_t tiles, stride;
};

/* Rows that share something, directly or by others. */
struct relay_plan {
	struct prepared **p; /* [n] rows */
	uint32_t n;
	struct relay_lane *lanes; /* [n_lanes] */
	uint32_t n_lanes;
	struct relay_step *steps; /* [n_steps] */
	uint32_t n_steps;
	struct relay_use **users; /* [n_users] */
	uint32_t n_users;
	uint32_t n_most; /* users of a step */
	uint32_t
		n_kept; /* tiles kept apart: each a state for each query head of a group */
};

/*
 * Plans for the n rows p, whose spans are built; p is used up. A row that shares nothing is
 * in none. Memory is s's. How many, at most n / 2; -ENOMEM.
 */
int relay_plan(struct attn_scratch *s, struct prepared **p, uint32_t n,
	       struct relay_plan *plans);

#endif
