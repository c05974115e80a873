/*
 * evict_density.c - least hit density: who is worth the least per byte and moment of
 * room, learned from what became of others like it
 *
 * (Beckmann, Chen and Cidon 2018, "LHD: improving cache hit rate by maximizing hit
 * density", NSDI; the index over the best horizon is Gittins 1979, "Bandit processes
 * and dynamic allocation indices". Buckets of age, the exact order by cells and the
 * smoothing are kvd's.)
 *
 * A node's class is its kind, whether it is COLD (both the caller's) and how often it
 * was used. Its age, in uses of any node since its own last, falls into buckets, two to the octave. A
 * cell is a class and a bucket. For each cell we count how many nodes left it and how
 * many of those by being used; nodes that were evicted are followed on, so that the
 * counts do not depend on what we evict. From them, every so often, the index
 *
 *   max over horizons T of  P(used within T) / E(moments until used or T)
 *
 * and the cells in that order: the victim is the oldest node of the first cell that
 * has one. DEAD goes before all, HOT after all.
 *
 *   track: all nodes known, in order of last use
 *     old ...........................................> new
 *     | bucket 3 | bucket 2  | bucket 1 | bucket 0 |      oldest[b]: first of b
 *                   |<---- shadow: held_bytes ---->|      what LRU would hold
 *
 *  (1) Nodes of one bucket stand together in track, and older buckets before newer.
 *  (2) A HELD node is in the list of its cell, or of DEAD or HOT.
 *  (3) While the shadow has more hits than we (evict_guard.h), the victim is LRU's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/mem/evict_guard.h"

#define N_FREQ	  6u /* uses before the last: 0 1 2 3 4-7 8- */
#define N_KINDS	  12u
#define N_CLASSES (2 * N_FREQ * N_KINDS)
#define N_BUCKETS 36u
#define FIRST_AGE 64u /* end of bucket 0 */
#define N_CELLS	  (N_CLASSES * N_BUCKETS)
#define CELL_DEAD N_CELLS
#define CELL_HOT  (N_CELLS + 1)
#define N_WORDS	  ((N_CELLS + 63) / 64)
#define PRIOR	  8.0f /* nodes' worth of belief in the next coarser count */
#define PRIOR_HIT 0.05f /* of all classes in a bucket: constant, so LRU */
#define FORGET	  0.9f /* what counts keep when the order is made anew */
#define EPOCH_MIN 2048u /* uses between orders, or half of the nodes held */

/* n->flags; AHEAD: not used yet, so it tells nothing of others like it */
enum { TRACKED = 1, SHADOWED = 2, AHEAD = 4 };

struct cell_count {
	float left, used;
};

struct density {
	struct evict_guard guard;
	struct list track;
	struct evict_node *oldest[N_BUCKETS];
	struct evict_node *shadow_end; /* the oldest in the shadow */
	uint64_t bounds[N_BUCKETS]; /* bucket b: age < bounds[b] */
	uint64_t now, next_epoch;
	struct cell_count counts[N_CELLS];
	struct list cells[N_CELLS + 2];
	uint16_t rank[N_CELLS], by_rank[N_CELLS];
	float index[N_CELLS];
	uint64_t filled[N_WORDS]; /* by rank: the cell's list may have nodes */
};

/* ---- cells ---------------------------------------------------------------- */

static unsigned int class_of(const struct evict_node *n)
{
	const unsigned int f = n->freq;
	const unsigned int freq = f < 4 ? f : f < 8 ? 4 : 5;

	return (n->kind % N_KINDS * 2 + (n->hint == EVICT_COLD)) * N_FREQ +
	       freq;
}

static void link_cell(struct density *d, struct evict_node *n)
{
	unsigned int cell = n->cell, r;

	if (n->hint == EVICT_DEAD || n->hint == EVICT_HOT)
		cell = n->hint == EVICT_DEAD ? CELL_DEAD : CELL_HOT;
	list_push(&d->cells[cell], &n->list);
	if (cell >= N_CELLS)
		return;
	r = d->rank[cell];
	d->filled[r / 64] |= 1ull << (r % 64);
}

static unsigned int bucket_of(const struct evict_node *n)
{
	return n->cell % N_BUCKETS;
}

/* ---- track: ages ------------------------------------------------------------- */

static struct evict_node *track_next(struct density *d, struct evict_node *n)
{
	struct list *l = n->shadow.next;

	return l == &d->track ? NULL : list_entry(l, struct evict_node, shadow);
}

/* The one after n in track if it is in the same bucket. */
static struct evict_node *next_in_bucket(struct density *d,
					 struct evict_node *n)
{
	struct evict_node *m = track_next(d, n);

	return m && bucket_of(m) == bucket_of(n) ? m : NULL;
}

static void track_drop(struct density *d, struct evict_node *n)
{
	if (!(n->flags & TRACKED))
		return;
	if (d->oldest[bucket_of(n)] == n)
		d->oldest[bucket_of(n)] = next_in_bucket(d, n);
	if (n->flags & SHADOWED) {
		if (d->shadow_end == n)
			d->shadow_end = track_next(d, n);
		d->guard.shadow_bytes -= n->bytes;
	}
	list_del(&n->shadow);
	n->flags = 0;
}

static void track_push(struct density *d, struct evict_node *n)
{
	list_push(&d->track, &n->shadow);
	n->flags = TRACKED | SHADOWED;
	n->cell = (uint16_t)(class_of(n) * N_BUCKETS);
	if (!d->oldest[0])
		d->oldest[0] = n;
	if (!d->shadow_end)
		d->shadow_end = n;
	d->guard.shadow_bytes += n->bytes;
}

static void shadow_trim(struct density *d)
{
	while (d->guard.shadow_bytes > d->guard.held_bytes) {
		struct evict_node *n = d->shadow_end;

		n->flags &= (uint8_t)~SHADOWED;
		d->guard.shadow_bytes -= n->bytes;
		d->shadow_end = track_next(d, n);
	}
}

/* n is too old for its bucket. */
static void grow_older(struct density *d, struct evict_node *n)
{
	const unsigned int b = bucket_of(n);
	const int linked = !list_empty(&n->list);

	d->counts[n->cell].left += n->flags & AHEAD ? 0 : 1;
	d->oldest[b] = next_in_bucket(d, n);
	n->cell++;
	if (!d->oldest[b + 1])
		d->oldest[b + 1] = n;
	if (!linked || n->where != EVICT_HELD)
		return;
	list_del(&n->list);
	link_cell(d, n);
}

static void tick(struct density *d)
{
	d->now++;
	for (unsigned int b = N_BUCKETS - 1; b-- > 0;) {
		struct evict_node *n;

		while ((n = d->oldest[b]) && d->now - n->stamp >= d->bounds[b])
			grow_older(d, n);
	}
}

/* ---- the order of cells --------------------------------------------------------- */

/* Of the nodes that reach each bucket, the share used in it. */
static void shares(const struct cell_count *c, const float *prior, float *q)
{
	for (unsigned int b = 0; b < N_BUCKETS; b++)
		q[b] = (c[b].used + PRIOR * prior[b]) / (c[b].left + PRIOR);
}

static void class_index(const struct density *d, const float *q, float *index)
{
	for (unsigned int b = 0; b < N_BUCKETS; b++) {
		float alive = 1, used = 0, moments = 0, best = 0;

		for (unsigned int t = b; t < N_BUCKETS; t++) {
			const uint64_t from = t ? d->bounds[t - 1] : 0;
			const float width = (float)(d->bounds[t] - from);

			used += alive * q[t];
			moments += alive * width * (1 - q[t] / 2);
			alive *= 1 - q[t];
			best = KV_MAX(best, used / moments);
		}
		index[b] = best;
	}
}

/* Bottom-up merge sort of by_rank[] by index; stable, so that the order is a
 * function of the counts alone. */
static void sort_cells(struct density *d)
{
	uint16_t other[N_CELLS], *from = d->by_rank, *to = other, *t;

	for (unsigned int w = 1; w < N_CELLS; w *= 2) {
		for (unsigned int at = 0; at < N_CELLS; at += 2 * w) {
			unsigned int i = at, mid = KV_MIN(at + w, N_CELLS);
			unsigned int j = mid, end = KV_MIN(mid + w, N_CELLS);

			for (unsigned int k = at; k < end; k++)
				to[k] = j == end || (i < mid &&
						     d->index[from[i]] <=
							     d->index[from[j]])
						? from[i++]
						: from[j++];
		}
		t = from;
		from = to;
		to = t;
	}
	if (from != d->by_rank)
		memcpy(d->by_rank, from, sizeof(d->by_rank));
}

static void make_order(struct density *d)
{
	struct cell_count all[N_BUCKETS] = { 0 };
	float prior[N_BUCKETS], q[N_BUCKETS];

	for (unsigned int i = 0; i < N_CELLS; i++) {
		all[i % N_BUCKETS].left += d->counts[i].left;
		all[i % N_BUCKETS].used += d->counts[i].used;
	}
	for (unsigned int b = 0; b < N_BUCKETS; b++)
		prior[b] = PRIOR_HIT;
	shares(all, prior, q);
	memcpy(prior, q, sizeof(prior));
	for (unsigned int c = 0; c < N_CLASSES; c++) {
		shares(&d->counts[c * N_BUCKETS], prior, q);
		class_index(d, q, &d->index[c * N_BUCKETS]);
	}
	for (unsigned int i = 0; i < N_CELLS; i++) {
		d->counts[i].left *= FORGET;
		d->counts[i].used *= FORGET;
		d->by_rank[i] = (uint16_t)i;
	}
	sort_cells(d);
	memset(d->filled, 0, sizeof(d->filled));
	for (unsigned int r = 0; r < N_CELLS; r++) {
		d->rank[d->by_rank[r]] = (uint16_t)r;
		if (!list_empty(&d->cells[d->by_rank[r]]))
			d->filled[r / 64] |= 1ull << (r % 64);
	}
	d->next_epoch = d->now + KV_MAX(EPOCH_MIN, d->guard.n_held / 2);
}

/* ---- the policy ------------------------------------------------------------------- */

static int density_open(void **state)
{
	struct density *d = calloc(1, sizeof(*d));
	uint64_t bound = FIRST_AGE;

	if (!d)
		return -ENOMEM;
	evict_guard_init(&d->guard);
	list_init(&d->track);
	for (unsigned int i = 0; i < N_CELLS + 2; i++)
		list_init(&d->cells[i]);
	for (unsigned int b = 0; b < N_BUCKETS; b++) {
		d->bounds[b] = b % 2 ? bound + bound / 2 : bound;
		bound *= 1 + b % 2;
	}
	make_order(d);
	*state = d;
	return 0;
}

static void density_use(void *state, struct evict_node *n)
{
	struct density *d = state;

	evict_guard_count(&d->guard, n->where != EVICT_OUT,
			  n->flags & SHADOWED);
	tick(d);
	if (n->flags & TRACKED && !(n->flags & AHEAD)) {
		d->counts[n->cell].left += 1;
		d->counts[n->cell].used += 1;
		n->freq = (uint8_t)KV_MIN(n->freq + 1u, 255u);
	}
	track_drop(d, n);
	n->stamp = d->now;
	track_push(d, n);
	if (d->now >= d->next_epoch)
		make_order(d);
}

static void density_add(void *state, struct evict_node *n)
{
	struct density *d = state;

	if (n->where == EVICT_OUT) {
		d->guard.held_bytes += n->bytes;
		d->guard.n_held++;
	}
	if (!(n->flags & TRACKED)) { /* it stands as if used once, now */
		n->stamp = d->now;
		track_push(d, n);
		n->flags |= AHEAD;
	}
	shadow_trim(d);
	n->where = EVICT_HELD;
	link_cell(d, n);
}

static void density_remove(void *state, struct evict_node *n)
{
	(void)state;
	if (n->where != EVICT_HELD)
		return;
	list_del(&n->list);
	n->where = EVICT_PINNED;
}

/* What LRU would take of what we hold, but for HOT. */
static struct list *oldest_list(struct density *d)
{
	struct list *best = NULL;
	uint64_t stamp = UINT64_MAX;

	for (unsigned int i = 0; i <= CELL_DEAD; i++) {
		struct list *l = list_first(&d->cells[i]);

		if (l &&
		    list_entry(l, struct evict_node, list)->stamp < stamp) {
			best = &d->cells[i];
			stamp = list_entry(l, struct evict_node, list)->stamp;
		}
	}
	return best;
}

static struct list *least_list(struct density *d)
{
	if (!list_empty(&d->cells[CELL_DEAD]))
		return &d->cells[CELL_DEAD];
	for (unsigned int w = 0; w < N_WORDS; w++) {
		while (d->filled[w]) {
			const unsigned int r =
				w * 64 +
				(unsigned int)__builtin_ctzll(d->filled[w]);
			struct list *l = &d->cells[d->by_rank[r]];

			if (!list_empty(l))
				return l;
			d->filled[w] &= d->filled[w] - 1;
		}
	}
	return NULL;
}

static struct evict_node *density_victim(void *state)
{
	struct density *d = state;
	struct list *l = d->guard.distrust ? oldest_list(d) : least_list(d);
	struct evict_node *n;

	if (!l)
		l = &d->cells[CELL_HOT];
	if (list_empty(l))
		return NULL;
	n = list_entry(list_pop(l), struct evict_node, list);
	evict_guard_out(&d->guard, n);
	n->where = EVICT_OUT;
	return n;
}

static void density_forget(void *state, struct evict_node *n)
{
	struct density *d = state;

	density_remove(state, n);
	track_drop(d, n);
	if (n->where != EVICT_OUT)
		evict_guard_out(&d->guard, n);
	n->where = EVICT_OUT;
	n->freq = 0;
}

/* Another class, the same age. */
static void density_hint(void *state, struct evict_node *n)
{
	struct density *d = state;

	if (n->flags & TRACKED)
		n->cell = (uint16_t)(class_of(n) * N_BUCKETS + bucket_of(n));
	if (n->where != EVICT_HELD)
		return;
	list_del(&n->list);
	link_cell(d, n);
}

const struct evict_policy evict_density = {
	.name = "density",
	.open = density_open,
	.close = free,
	.use = density_use,
	.add = density_add,
	.remove = density_remove,
	.victim = density_victim,
	.forget = density_forget,
	.hint = density_hint,
};
