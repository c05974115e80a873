/*
 * seq.h - a sequence: a list of (segment, token range, position, skip mask)
 *
 *  (1) Only the last entry may be an open segment, and then this sequence is its
 *      only reader and its writer.
 *  (2) Entries follow each other without a gap in positions; n_tokens is their sum.
 *  (3) The tiles of an entry are those of its segment's grid. Inside a part it starts
 *      on the part's grid too: an append behind a sealed part-tile takes over the
 *      tile's head by a copy (struct seq_copy). Only what stands behind an edit may
 *      start inside a tile: then its tiles begin there, and anew with the next page.
 *
 * Thread: loop thread; while a job runs on an engine thread the entries do not
 * change (the owner sees to that).
 */
#ifndef KVD_CACHE_SEQ_H
#define KVD_CACHE_SEQ_H

#include "kvd/cache/segment.h"

/*
 * How an entry is seen. Parallel chunks (APE, Yang et al. 2025, arXiv:2502.05431) begin at
 * the same rotary position, and rows see all of one temperature and scale together: logits over
 * temperature, ln sum exp times scale, then joined with the others.
 */
struct seq_context {
	int64_t shift; /* rotary position less position in the list */
	float temperature; /* of the logits, > 0; 1 */
	float scale; /* of ln sum exp; 1 */
};

struct seq_entry {
	struct segment *seg; /* a reference */
	uint32_t from; /* first token of the segment */
	uint32_t n; /* tokens */
	int64_t pos; /* position of the first */
	int begins; /* a part: its grid is new. 0: it goes on with that before */
	uint64_t *skip; /* [(n_cap + 63) / 64] hidden tokens, or NULL */
	struct seq_context context;
	/*
	 * A patch: K and V of hidden tokens, computed again in their context, with
	 * true positions, side by side. The segment's bytes stay as they are.
	 */
	struct segment
		*patch; /* a reference, or NULL; several entries may share it */
	uint32_t patch_from; /* of the patch: where this entry's tokens begin */
	int patch_pages; /* its pages go with this entry's (one of those sharing) */
	uint32_t n_patch; /* 0 until they are chosen */
	uint32_t *patch_at; /* [n_patch] tokens of the entry, ascending */
	uint32_t
		stop_layer; /* from this layer on as without the patch; 0: never */
};

struct seq {
	struct segment_pool *pool;
	struct kv_layout layout;
	struct seq_entry *entries;
	uint32_t n_entries;
	uint32_t n_room;
	uint32_t seg_tokens; /* room of a new open segment */
	uint64_t n_tokens;
	int part_begins; /* the next append opens a segment */
	struct segment_ahead
		ahead; /* the next open one, if it is there already */
	struct seq_context context; /* of entries to come */
};

/* Tokens whose K and V must be copied, all layers, before the append. */
struct seq_copy {
	struct segment *src, *dst; /* borrowed from the list */
	uint32_t src_from;
	uint32_t n; /* 0: nothing to do; < SEGMENT_BLOCK */
	struct segment *owned; /* reference to src: seq_copy_done() */
};

void seq_init(struct seq *q, struct segment_pool *pool,
	      const struct kv_layout *g, uint32_t seg_tokens);
void seq_fini(struct seq *q);
/*
 * Room for n more tokens behind the last; the caller writes K and V. cap_hint:
 * tokens that a new open segment should at least have room for. Returns 0, or
 * -EDQUOT, -ENOMEM: then nothing changed. *copy is what to copy first; its
 * seq_copy_done() follows the copying.
 */
int seq_grow(struct seq *q, uint32_t n, uint32_t cap_hint,
	     struct seq_copy *copy);
void seq_copy_done(struct seq_copy *copy);
/*
 * Nothing was copied, and what it was for is cut off again: the head stays where it was, and
 * nothing is left to do. Without memory it is still to be copied.
 */
void seq_copy_undo(struct seq *q, struct seq_copy *copy);
/*
 * The segment, of at least n tokens, that follows the open one, before an append needs it,
 * so that its first page can be mapped: NULL if there is none to be had. The list keeps
 * the reference.
 */
struct segment *seq_open_ahead(struct seq *q, uint32_t n);
/* The next token starts a new part: a new grid. Seals what was open. */
void seq_part(struct seq *q);
/* Append n tokens of a sealed segment from on; takes over the reference. */
int seq_append(struct seq *q, struct segment *s, uint32_t from, uint32_t n);
/* A segment for n tokens of patches of entries to come; one reference. -EDQUOT, -ENOMEM. */
int seq_patch_new(struct seq *q, uint32_t n, struct segment **out);
/*
 * The same with a patch, which several appends may share (each takes a reference of its
 * own); pages: 1 for the last of them. Its tokens are chosen later.
 * -ENOMEM: then the reference to s stays the caller's.
 */
int seq_append_patched(struct seq *q, struct segment *s, uint32_t from,
		       uint32_t n, struct segment *patch, int pages);
/*
 * Choose the tokens of entry i that the patch replaces, from token from of the patch on:
 * at [n] ascending, of the entry; takes over at (malloc'ed). Their rows are computed
 * after. -ENOMEM: then at stays the caller's.
 */
int seq_patch(struct seq *q, uint32_t i, uint32_t from, uint32_t *at,
	      uint32_t n);
/* Where in the patch token off of the entry is, or -1. */
int64_t seq_patch_index(const struct seq_entry *e, uint32_t off);
/* Keep n tokens. Where a part began there, one begins again; before that, none does. */
void seq_truncate(struct seq *q, uint64_t n);
/*
 * Replace tokens [at, at + n_removed) by n_new whose K and V the caller writes, in
 * segments of their own; what stands behind moves (PIE, He et al. 2024,
 * arXiv:2407.03157): entries change their positions, no byte is copied. Seals the
 * tail. Where nothing stands behind, tokens are cut off only, and seq_grow() makes room as
 * ever. 0, or -EINVAL, -EDQUOT, -ENOMEM: then nothing changed.
 */
int seq_edit(struct seq *q, uint64_t at, uint64_t n_removed, uint32_t n_new);
/* Seal the open tail. */
void seq_seal(struct seq *q);
/* dst (initialised, empty) gets the tokens of src; seals src's tail. */
int seq_fork(struct seq *dst, struct seq *src);
/* Hide tokens [from, to). -EINVAL, -ENOMEM. */
int seq_skip(struct seq *q, uint64_t from, uint64_t to);
/* The open segment at the end, or NULL. */
struct segment *seq_open_segment(const struct seq *q);
/*
 * Page runs of the positions [from, to) of layer group group (UINT32_MAX: all).
 * Returns how many there are; at most max are written. Flags are 0.
 */
uint32_t seq_runs(const struct seq *q, uint64_t from, uint64_t to,
		  uint32_t group, struct page_run *runs, uint32_t max);
/* The same of layer groups [first, first + n), all of which the layout has; n
 * UINT32_MAX: all. */
struct seq_groups {
	uint32_t first, n;
};
uint32_t seq_group_runs(const struct seq *q, uint64_t from, uint64_t to,
			struct seq_groups groups, struct page_run *runs,
			uint32_t max);
void seq_check(const struct seq *q);

#endif
