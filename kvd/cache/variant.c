/*
 * variant.c - CFO of variants, the table of them, and which one goes; see variant.h
 */
#include "kvd/cache/variant.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DECAY	0.9995 /* of the value, at each use of any variant */
#define MIN_CFO 0.05f

struct variant_set { /* of one chunk */
	struct map_id chunk;
	struct list variants;
	uint32_t n;
	struct evict_node rank; /* among those of its table: see rank() */
};

/* ---- one variant ------------------------------------------------------------ */

struct variant *variant_new(uint32_t n_prefix, uint32_t n_tokens)
{
	struct variant *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	list_init(&v->node);
	v->n_prefix = n_prefix;
	v->prefix = calloc(n_prefix + 1, sizeof(*v->prefix));
	v->inter = calloc(n_prefix + 1, sizeof(*v->inter));
	v->score = calloc(n_tokens + 1, sizeof(*v->score));
	if (v->prefix && v->inter && v->score)
		return v;
	variant_free(v);
	return NULL;
}

void variant_free(struct variant *v)
{
	if (!v)
		return;
	free(v->prefix);
	free(v->inter);
	free(v->score);
	free(v);
}

float variant_cci(const struct variant_sums *s, uint32_t n_prefix, uint32_t n)
{
	const double b = (double)s->intra / ((double)n * n);
	double a = 0;

	for (uint32_t j = 0; j < n_prefix; j++)
		a += (double)s->inter[j] / ((double)n * s->prefix_tokens[j]);
	if (b > 0)
		return (float)(1 / (1 + exp(-a / b)));
	return a > 0 ? 1.0f : 0.5f;
}

/* Where id stands in list, or n. */
static uint32_t index_of(struct map_id id, const struct map_id *list,
			 uint32_t n)
{
	uint32_t i = 0;

	while (i < n && !map_id_equal(list[i], id))
		i++;
	return i;
}

float variant_beta(const struct variant *v, const struct map_id *now,
		   uint32_t n_now)
{
	double all = 0, common = 0;

	for (uint32_t j = 0; j < v->n_prefix; j++) {
		all += (double)v->inter[j];
		if (index_of(v->prefix[j], now, n_now) < n_now)
			common += (double)v->inter[j];
	}
	if (!(all > 0))
		return n_now ? 0 : 1;
	return (float)(common / all);
}

float variant_gamma(const struct variant *v, const struct map_id *now,
		    uint32_t n_now)
{
	uint32_t n_pairs = 0, n_discordant = 0;

	for (uint32_t i = 0; i < v->n_prefix; i++) {
		const uint32_t at_i = index_of(v->prefix[i], now, n_now);

		for (uint32_t j = i + 1; j < v->n_prefix; j++) {
			const uint32_t at_j =
				index_of(v->prefix[j], now, n_now);

			if (at_i == n_now || at_j == n_now)
				continue;
			n_pairs++;
			n_discordant += at_i > at_j;
		}
	}
	return n_pairs ? (float)n_discordant / (float)n_pairs : 0;
}

float variant_cfo(const struct variant *v, const struct map_id *now,
		  uint32_t n_now, float alpha)
{
	const float fit = variant_beta(v, now, n_now) *
			  (1 - variant_gamma(v, now, n_now));
	const float cfo = alpha * v->cci * (1 - fit);

	return cfo > 1 ? 1 : cfo > 0 ? cfo : 0;
}

/* ---- the table -------------------------------------------------------------- */

void variant_table_init(struct variant_table *t)
{
	memset(t, 0, sizeof(*t));
	map_init(&t->sets);
	t->max_chunks = VARIANT_CHUNKS;
}

void variant_table_fini(struct variant_table *t)
{
	assert(!t->n && !t->sets.n_used);
	map_fini(&t->sets);
}

double variant_value(const struct variant_table *t, const struct variant *v)
{
	return v->value * pow(DECAY, (double)(t->time - v->used));
}

static void use(struct variant_table *t, struct variant *v, float cfo)
{
	v->value = variant_value(t, v) + 1 / (double)KV_MAX(cfo, MIN_CFO);
	v->used = t->time++;
}

/* ln of the score per byte of v, as if all uses had been at time 0. */
static double key_of(const struct variant *v)
{
	return log(v->value / (double)v->seg->bytes) -
	       (double)v->used * log(DECAY);
}

/*
 * Where the set stands: ln of the sum over its variants. All scores shrink alike, so that a
 * key does not change until a variant is used, comes or goes.
 */
static void rank(struct variant_table *t, struct variant_set *set)
{
	double max = -INFINITY, sum = 0;

	list_for_each(node, &set->variants)
		max = fmax(max, key_of(list_entry(node, struct variant, node)));
	list_for_each(node, &set->variants)
		sum += exp(key_of(list_entry(node, struct variant, node)) -
			   max);
	set->rank.key = max + log(sum);
	set->rank.stamp = ++t->n_ranked;
	evict_heap_push(&t->heap, &set->rank);
}

static void rank_again(struct variant_table *t, struct variant_set *set)
{
	evict_heap_del(&t->heap, &set->rank);
	rank(t, set);
}

static int same_tokens(const struct segment *s, const uint32_t *tokens,
		       uint32_t n)
{
	return s->n_tokens == n &&
	       !memcmp(s->tokens, tokens, n * sizeof(*tokens));
}

/* The least CFO of the set. What is lost goes with its last reader, or when it is found
 * out; until then it is passed over. */
static struct variant *least(struct variant_set *set, const uint32_t *tokens,
			     uint32_t n, const struct variant_place *at,
			     float alpha, float *cfo)
{
	struct variant *best = NULL;

	list_for_each(node, &set->variants) {
		struct variant *v = list_entry(node, struct variant, node);
		const int same = map_id_equal(v->ctx, at->ctx);
		float c = 0;

		if (!map_id_equal(v->frame, at->frame) ||
		    range_lost(v->seg->range) ||
		    !same_tokens(v->seg, tokens, n) || !segment_fits(v->seg))
			continue;
		if (!same)
			c = variant_cfo(v, at->prefix, at->n_prefix, alpha);
		if (best && !same && c >= *cfo)
			continue;
		best = v;
		*cfo = c;
		if (same)
			break;
	}
	return best;
}

void variant_set_value(struct variant_table *t, struct variant *v, double value)
{
	v->value = value;
	v->used = t->time;
	rank_again(t, map_find(&t->sets, v->chunk));
}

struct segment *variant_find(struct variant_table *t, struct map_id chunk,
			     const uint32_t *tokens, uint32_t n,
			     const struct variant_place *at, float alpha,
			     float *cfo)
{
	struct variant_set *set = map_find(&t->sets, chunk);
	struct variant *v;

	v = set ? least(set, tokens, n, at, alpha, cfo) : NULL;
	if (!v)
		return NULL;
	use(t, v, *cfo);
	rank_again(t, set);
	segment_get(v->seg);
	v->seg->n_hits++;
	range_gain(v->seg->range, 1 / KV_MAX(*cfo, MIN_CFO));
	return v->seg;
}

struct segment *variant_peek(const struct variant_table *t, struct map_id chunk)
{
	const struct variant_set *set = map_find(&t->sets, chunk);

	return set ? list_entry(set->variants.next, struct variant, node)->seg
		   : NULL;
}

static void unindex(struct segment *s, void *ctx)
{
	struct variant_table *t = ctx;
	struct variant *v = s->variant;
	struct variant_set *set = map_find(&t->sets, v->chunk);

	list_del(&v->node);
	s->is_variant = 0;
	t->n--;
	t->n_evicted += s->evicted ? 1 : 0;
	if (s->evicted && t->st_evicted)
		stat_add(t->st_evicted, 1);
	if (--set->n) {
		rank_again(t, set);
		return;
	}
	evict_heap_del(&t->heap, &set->rank);
	map_del(&t->sets, set->chunk);
	free(set);
}

/* ---- what goes for others ----------------------------------------------------- */

static double worth(const struct segment *s, const void *ctx)
{
	return variant_value(ctx, s->variant) / (double)s->bytes;
}

static struct variant *least_worth(const struct variant_table *t,
				   struct variant_set *set)
{
	struct variant *least_v = NULL;

	list_for_each(node, &set->variants) {
		struct variant *v = list_entry(node, struct variant, node);

		if (!least_v || worth(v->seg, t) < worth(least_v->seg, t))
			least_v = v;
	}
	return least_v;
}

/* All of one chunk; the set goes with the last. */
static void drop_set(struct variant_set *set, void (*drop)(struct segment *s))
{
	for (uint32_t n = set->n; n; n--)
		drop(list_entry(list_first(&set->variants), struct variant,
				node)
			     ->seg);
}

int variant_rm(struct variant_table *t, struct map_id chunk)
{
	struct variant_set *set = map_find(&t->sets, chunk);

	if (!set)
		return -ENOENT;
	drop_set(set, segment_forget);
	return 0;
}

/* All of the chunk that is worth least. */
static void evict_chunk(struct variant_table *t)
{
	if (t->heap.root)
		drop_set(container_of(t->heap.root, struct variant_set, rank),
			 segment_evict);
}

static struct variant_set *set_of(struct variant_table *t, struct map_id chunk)
{
	struct variant_set *set = map_find(&t->sets, chunk);

	if (set)
		return set;
	if (t->sets.n_used >= t->max_chunks)
		evict_chunk(t);
	set = calloc(1, sizeof(*set));
	if (!set)
		return NULL;
	set->chunk = chunk;
	list_init(&set->variants);
	if (map_add(&t->sets, chunk, set)) {
		free(set);
		return NULL;
	}
	return set;
}

int variant_room(const struct variant_table *t, struct map_id chunk)
{
	const struct variant_set *set = map_find(&t->sets, chunk);

	return set ? set->n < VARIANT_MAX : t->sets.n_used < t->max_chunks;
}

static int has_ctx(const struct variant_set *set, struct map_id ctx)
{
	list_for_each(node, (struct list *)&set->variants)
		if (map_id_equal(list_entry(node, struct variant, node)->ctx,
				 ctx))
			return 1;
	return 0;
}

int variant_add(struct variant_table *t, struct segment *s, struct variant *v)
{
	struct variant_set *set = map_find(&t->sets, v->chunk);

	assert(s->sealed && s->tokens && !s->variant && !s->is_chunk);
	s->variant = v;
	v->seg = s;
	if (set && has_ctx(set, v->ctx))
		return -EALREADY;
	if (set && set->n >= VARIANT_MAX)
		segment_evict(least_worth(t, set)->seg);
	set = set_of(t, v->chunk); /* the last one may have gone */
	if (!set)
		return -ENOMEM;
	v->used = t->time;
	if (!(v->value > 0))
		v->value = 1; /* as one use that computed all of it */
	if (set->n)
		evict_heap_del(&t->heap, &set->rank);
	list_push(&set->variants, &v->node);
	set->n++;
	rank(t, set);
	t->n++;
	s->is_variant = 1;
	s->unindex = unindex;
	s->worth = worth;
	s->unindex_ctx = t;
	return 0;
}

void variant_each(struct variant_table *t,
		  void (*fn)(struct segment *s, void *arg), void *arg)
{
	for (uint64_t i = 0; i < t->sets.n_slots; i++) {
		struct variant_set *set = t->sets.slots[i].value;

		if (!set)
			continue;
		list_for_each(n, &set->variants)
			fn(list_entry(n, struct variant, node)->seg, arg);
	}
}

static uint64_t check_heap(const struct evict_node *n,
			   const struct evict_node *parent)
{
	uint64_t sum = 0;

	for (; n; n = n->next) {
		assert(container_of(n, struct variant_set, rank)->n);
		assert(!parent || !evict_before(n, parent));
		sum += 1 + check_heap(n->child, n);
	}
	return sum;
}

void variant_table_check(const struct variant_table *t)
{
	uint32_t n = 0;

	for (uint64_t i = 0; i < t->sets.n_slots; i++) {
		const struct variant_set *set = t->sets.slots[i].value;
		uint32_t n_set = 0;

		if (!set)
			continue;
		list_for_each(node, (struct list *)&set->variants) {
			const struct variant *v =
				list_entry(node, struct variant, node);

			assert(v->seg->is_variant && v->seg->variant == v);
			assert(v->seg->sealed && v->seg->tokens);
			assert(map_id_equal(v->chunk, set->chunk));
			n_set++;
		}
		assert(n_set == set->n && n_set && n_set <= VARIANT_MAX);
		n += n_set;
	}
	assert(n == t->n && t->sets.n_used <= t->max_chunks);
	assert(check_heap(t->heap.root, NULL) == t->sets.n_used);
}
