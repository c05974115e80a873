/*
 * test_evict.c - each eviction policy against a model of it, and all against what
 * every policy must keep
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/mem/evict.h"
#include "kvd/mem/kind.h"

static uint64_t seed = 1;

static uint32_t rnd(uint32_t n)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(seed >> 33) % n;
}

static double rnd_share(void)
{
	return rnd(1u << 30) * 0x1p-30;
}

static size_t n_policies(void)
{
	size_t n = 0;

	while (evict_policies[n])
		n++;
	return n;
}

/* ---- what holds for all ----------------------------------------------------- */

#define N_NODES 300u

enum { M_OUT, M_HELD, M_PINNED };

struct rig {
	const struct evict_policy *p;
	void *state;
	struct evict_node *nodes[N_NODES]; /* each its own heap block */
	int where[N_NODES];
	uint32_t n_held;
};

static void rig_node(struct rig *r, uint32_t i)
{
	r->nodes[i] = calloc(1, sizeof(struct evict_node));
	ck_assert_ptr_nonnull(r->nodes[i]);
	evict_node_init(r->nodes[i], 1 + rnd(3));
	r->where[i] = M_OUT;
}

static uint32_t rig_index(const struct rig *r, const struct evict_node *n)
{
	uint32_t i = 0;

	while (i < N_NODES && r->nodes[i] != n)
		i++;
	ck_assert_msg(i < N_NODES, "%s: a victim that is nobody's", r->p->name);
	return i;
}

static void rig_victim(struct rig *r)
{
	struct evict_node *n = r->p->victim(r->state);
	uint32_t i;

	ck_assert_msg(!n == !r->n_held, "%s: %u held", r->p->name, r->n_held);
	if (!n)
		return;
	i = rig_index(r, n);
	ck_assert_int_eq(r->where[i], M_HELD);
	r->where[i] = M_OUT;
	r->n_held--;
	if (rnd(8) == 0) { /* it could not go: back after a stay in our list */
		struct list failed;

		list_init(&failed);
		list_push(&failed, &n->list);
		ck_assert_ptr_eq(list_pop(&failed), &n->list);
		r->p->add(r->state, n);
		r->where[i] = M_HELD;
		r->n_held++;
	}
}

static void rig_step(struct rig *r, uint32_t i)
{
	struct evict_node *n = r->nodes[i];

	if (r->where[i] == M_HELD) {
		r->p->remove(r->state, n);
		r->where[i] = M_PINNED;
		r->n_held--;
		if (rnd(4) == 0)
			goto add; /* only written in the background */
	}
	n->kind = (uint8_t)rnd(EVICT_KINDS);
	n->cost = 0.5f + (float)rnd_share();
	n->gain = 1 + (float)rnd(20);
	n->next_use = rnd(1000);
	n->hint = (uint8_t)rnd(EVICT_DEAD + 1);
	r->p->use(r->state, n);
	if (rnd(4) == 0) {
		r->where[i] = r->where[i] == M_OUT ? M_OUT : M_PINNED;
		return; /* stays pinned, or never came */
	}
add:
	r->p->add(r->state, n);
	r->where[i] = M_HELD;
	r->n_held++;
}

static void rig_forget(struct rig *r, uint32_t i)
{
	if (r->where[i] == M_HELD) {
		r->p->remove(r->state, r->nodes[i]);
		r->n_held--;
	}
	r->p->forget(r->state, r->nodes[i]);
	free(r->nodes[i]);
}

START_TEST(any_order_of_calls)
{
	struct rig r = { .p = evict_policies[_i] };

	seed = 11 + (uint64_t)_i;
	ck_assert_int_eq(r.p->open(&r.state), 0);
	for (uint32_t i = 0; i < N_NODES; i++)
		rig_node(&r, i);
	for (uint32_t step = 0; step < 200000; step++) {
		const uint32_t i = rnd(rnd(2) ? N_NODES : N_NODES / 10);

		switch (rnd(8)) {
		case 0:
			rig_forget(&r, i);
			rig_node(&r, i);
			break;
		case 1:
		case 2:
			rig_victim(&r);
			break;
		case 3:
			r.nodes[i]->hint = (uint8_t)rnd(EVICT_DEAD + 1);
			if (r.p->hint)
				r.p->hint(r.state, r.nodes[i]);
			break;
		default:
			rig_step(&r, i);
		}
	}
	for (uint32_t n = r.n_held; n || r.n_held;) {
		rig_victim(&r);
		n = r.n_held;
	}
	ck_assert_ptr_null(r.p->victim(r.state));
	for (uint32_t i = 0; i < N_NODES; i++)
		rig_forget(&r, i);
	r.p->close(r.state);
}
END_TEST

START_TEST(names)
{
	const struct evict_policy *p = evict_policies[_i];

	ck_assert_ptr_eq(evict_find(p->name), p);
	ck_assert_ptr_null(evict_find(""));
	ck_assert_ptr_null(evict_find("lr"));
	ck_assert_ptr_null(evict_find("lruu"));
}
END_TEST

/* ---- a small simulator ------------------------------------------------------- */

#define MAX_BLOCKS 4096u

struct cache {
	const struct evict_policy *p;
	void *state;
	struct evict_node nodes[MAX_BLOCKS];
	uint8_t in[MAX_BLOCKS];
	uint32_t n_in, capacity;
	uint32_t last_victim; /* UINT32_MAX: none */
	uint64_t hits;
};

static struct cache *cache_open(const struct evict_policy *p, uint32_t capacity)
{
	struct cache *c = calloc(1, sizeof(*c));

	ck_assert_ptr_nonnull(c);
	c->p = p;
	c->capacity = capacity;
	for (uint32_t b = 0; b < MAX_BLOCKS; b++)
		evict_node_init(&c->nodes[b], 1);
	ck_assert_int_eq(p->open(&c->state), 0);
	return c;
}

static void cache_close(struct cache *c)
{
	c->p->close(c->state);
	free(c);
}

/* The caller has set what it knows in the node. Returns 1 for a hit. */
static int cache_use(struct cache *c, uint32_t b)
{
	struct evict_node *n = &c->nodes[b], *v;
	const int hit = c->in[b];

	c->last_victim = UINT32_MAX;
	if (hit)
		c->p->remove(c->state, n);
	c->p->use(c->state, n);
	if (!hit && c->n_in == c->capacity) {
		v = c->p->victim(c->state);
		ck_assert_ptr_nonnull(v);
		c->last_victim = (uint32_t)(v - c->nodes);
		ck_assert(c->in[c->last_victim]);
		c->in[c->last_victim] = 0;
		c->n_in--;
	}
	c->n_in += !hit;
	c->in[b] = 1;
	c->p->add(c->state, n);
	c->hits += (uint64_t)hit;
	return hit;
}

/* Skewed: low numbers often. */
static uint32_t skewed(uint32_t n)
{
	const double u = rnd_share();

	return (uint32_t)(u * u * u * n);
}

#define N_ACCESSES 20000u

struct trace {
	uint32_t b[N_ACCESSES];
	uint64_t next[N_ACCESSES];
	uint8_t bit[N_ACCESSES]; /* of Belady */
};

static struct trace *trace_new(uint32_t n_blocks)
{
	struct trace *t = calloc(1, sizeof(*t));
	uint64_t at[MAX_BLOCKS];

	ck_assert_ptr_nonnull(t);
	for (uint32_t b = 0; b < MAX_BLOCKS; b++)
		at[b] = EVICT_NEVER;
	for (uint32_t i = 0; i < N_ACCESSES; i++)
		t->b[i] = skewed(n_blocks);
	for (uint32_t i = N_ACCESSES; i-- > 0;) {
		t->next[i] = at[t->b[i]];
		at[t->b[i]] = i;
	}
	return t;
}

/* ---- models ------------------------------------------------------------------- */

START_TEST(lru_takes_the_oldest)
{
	struct cache *c = cache_open(&evict_lru, 50);
	uint64_t used[MAX_BLOCKS] = { 0 };

	seed = 3;
	for (uint64_t i = 1; i < 20000; i++) {
		const uint32_t b = skewed(300);
		uint32_t oldest = UINT32_MAX;

		for (uint32_t j = 0; j < 300; j++)
			if (c->in[j] &&
			    (oldest == UINT32_MAX || used[j] < used[oldest]))
				oldest = j;
		used[b] = i;
		if (!cache_use(c, b) && c->last_victim != UINT32_MAX)
			ck_assert_uint_eq(c->last_victim, oldest);
	}
	ck_assert_uint_gt(c->hits, 5000);
	cache_close(c);
}
END_TEST

START_TEST(lru_a_write_is_no_use)
{
	struct cache *c = cache_open(&evict_lru, 3);

	for (uint32_t b = 0; b < 3; b++)
		cache_use(c, b);
	c->p->remove(c->state, &c->nodes[0]);
	c->p->add(c->state, &c->nodes[0]);
	cache_use(c, 3);
	ck_assert_uint_eq(c->last_victim, 0);
	cache_close(c);
}
END_TEST

START_TEST(clock_gives_a_second_chance)
{
	struct cache *c = cache_open(&evict_clock, 4);

	for (uint32_t b = 0; b < 4; b++)
		cache_use(c, b);
	cache_use(c, 4); /* the hand clears all, takes 0; ring 1 2 3 4 */
	ck_assert_uint_eq(c->last_victim, 0);
	cache_use(c, 1); /* keeps its place, marked */
	cache_use(c, 5);
	ck_assert_uint_eq(c->last_victim, 2);
	cache_use(c, 6); /* ring was 3 4 1 5 */
	ck_assert_uint_eq(c->last_victim, 3);
	c->nodes[1].hint = EVICT_HOT;
	c->p->hint(c->state, &c->nodes[1]);
	c->nodes[4].hint = EVICT_COLD;
	c->p->hint(c->state, &c->nodes[4]);
	cache_use(c, 7); /* 4 lost its mark */
	ck_assert_uint_eq(c->last_victim, 4);
	cache_close(c);
}
END_TEST

START_TEST(s3fifo_once_used_passes_through)
{
	struct cache *c = cache_open(&evict_s3fifo, 100);

	for (uint32_t round = 0; round < 4; round++)
		for (uint32_t b = 0; b < 60; b++)
			cache_use(c, b);
	c->hits = 0;
	for (uint32_t b = 1000; b < 3000; b++) { /* a scan */
		cache_use(c, b);
		ck_assert_msg(c->last_victim == UINT32_MAX ||
				      c->last_victim >= 60,
			      "the scan took %u", c->last_victim);
	}
	for (uint32_t b = 0; b < 60; b++)
		cache_use(c, b);
	ck_assert_uint_eq(c->hits, 60);
	cache_close(c);
}
END_TEST

START_TEST(s3fifo_remembers_ghosts)
{
	struct cache *c = cache_open(&evict_s3fifo, 100);

	for (uint32_t round = 0; round < 4; round++)
		for (uint32_t b = 0; b < 80; b++)
			cache_use(c, b);
	for (uint32_t b = 1000; b < 1030; b++)
		cache_use(c, b);
	ck_assert(!c->in[1000]);
	cache_use(c, 1000); /* a ghost: to main at once */
	for (uint32_t b = 2000; b < 2100; b++)
		cache_use(c, b);
	ck_assert(c->in[1000]);
	ck_assert(!c->in[1001]); /* that many have left since */
	cache_use(c, 1001); /* no ghost any more */
	for (uint32_t b = 3000; b < 3100; b++)
		cache_use(c, b);
	ck_assert(!c->in[1001]);
	cache_close(c);
}
END_TEST

START_TEST(gdsf_is_its_formula)
{
	struct cache *c = cache_open(&evict_gdsf, 40);
	double key[MAX_BLOCKS] = { 0 }, age = 0;
	uint32_t uses[MAX_BLOCKS] = { 0 };

	seed = 5;
	for (uint32_t i = 0; i < 20000; i++) {
		const uint32_t b = skewed(400);
		double least = INFINITY;

		c->nodes[b].cost = 0.25f * (float)(1 + b % 9);
		uses[b] = c->in[b] ? KV_MIN(uses[b] + 1, 255u) : 1;
		for (uint32_t j = 0; j < 400; j++)
			if (c->in[j] && j != b)
				least = fmin(least, key[j]);
		key[b] = age + uses[b] * (double)c->nodes[b].cost;
		if (cache_use(c, b) || c->last_victim == UINT32_MAX)
			continue;
		ck_assert_double_eq_tol(key[c->last_victim], least, 1e-9);
		age = fmax(age, least);
	}
	cache_close(c);
}
END_TEST

START_TEST(cachecraft_is_its_formula)
{
	struct cache *c = cache_open(&evict_cachecraft, 40);
	double score[MAX_BLOCKS] = { 0 };

	seed = 6;
	for (uint32_t i = 0; i < 20000; i++) {
		const uint32_t b = skewed(300);
		/* half-life: 4 times what is in, which grows to 40 */
		const double decay = exp2(-1 / (4.0 * (c->n_in + 1)));
		double least = INFINITY;

		c->nodes[b].gain = (float)(1 + b % 20);
		c->nodes[b].bytes = 1 + b % 3;
		for (uint32_t j = 0; j < 300; j++) {
			score[j] *= decay;
			if (c->in[j] && j != b)
				least = fmin(least, score[j]);
		}
		score[b] += (1 + b % 20) / (double)(1 + b % 3);
		if (!cache_use(c, b) && c->last_victim != UINT32_MAX)
			ck_assert_double_le(score[c->last_victim],
					    least * (1 + 1e-9));
	}
	cache_close(c);
}
END_TEST

/* ---- the future, and bits of it ------------------------------------------------- */

static uint64_t run_belady(struct trace *t, uint32_t capacity)
{
	struct cache *c = cache_open(&evict_belady, capacity);
	uint64_t hits, last[MAX_BLOCKS] = { 0 };

	memset(t->bit, 0, sizeof(t->bit));
	for (uint32_t i = 0; i < N_ACCESSES; i++) {
		uint64_t far = 0;

		for (uint32_t j = 0; j < 600; j++)
			if (c->in[j] && j != t->b[i])
				far = KV_MAX(far, c->nodes[j].next_use);
		c->nodes[t->b[i]].next_use = t->next[i];
		cache_use(c, t->b[i]);
		last[t->b[i]] = i;
		if (c->last_victim == UINT32_MAX)
			continue;
		ck_assert_uint_eq(c->nodes[c->last_victim].next_use, far);
		t->bit[last[c->last_victim]] = 1;
	}
	hits = c->hits;
	cache_close(c);
	return hits;
}

static uint64_t run_bits(const struct evict_policy *p, const struct trace *t,
			 uint32_t capacity, double flip)
{
	struct cache *c = cache_open(p, capacity);
	uint64_t hits;

	for (uint32_t i = 0; i < N_ACCESSES; i++) {
		const int bit = t->bit[i] ^ (rnd_share() < flip);

		c->nodes[t->b[i]].hint = bit ? EVICT_DEAD : EVICT_NONE;
		cache_use(c, t->b[i]);
	}
	hits = c->hits;
	cache_close(c);
	return hits;
}

START_TEST(perfect_bits_are_belady)
{
	static const uint32_t sizes[] = { 1, 10, 60, 200, 599 };

	seed = 17;
	for (size_t i = 0; i < KV_ARRAY_LEN(sizes); i++) {
		struct trace *t = trace_new(600);
		const uint64_t best = run_belady(t, sizes[i]);

		ck_assert_uint_eq(run_bits(&evict_succinct, t, sizes[i], 0),
				  best);
		for (size_t j = 0; evict_policies[j]; j++)
			if (!evict_policies[j]->needs_future)
				ck_assert_uint_le(run_bits(evict_policies[j], t,
							   sizes[i], 0),
						  best);
		free(t);
	}
}
END_TEST

START_TEST(the_guard_bounds_wrong_bits)
{
	const double flips[] = { 0.5, 0.8, 1 };

	seed = 19;
	for (size_t i = 0; i < KV_ARRAY_LEN(flips); i++) {
		struct trace *t = trace_new(600);
		uint64_t lru, ours;

		(void)run_belady(t, 100);
		lru = run_bits(&evict_lru, t, 100, 0);
		ours = run_bits(&evict_succinct, t, 100, flips[i]);
		ck_assert_msg(ours + N_ACCESSES / 50 >= lru,
			      "flips %g: %lu, LRU %lu", flips[i],
			      (unsigned long)ours, (unsigned long)lru);
		free(t);
	}
}
END_TEST

START_TEST(a_hint_while_held_counts)
{
	const struct evict_policy *p[] = { &evict_succinct, &evict_phase,
					   &evict_density };

	for (size_t i = 0; i < KV_ARRAY_LEN(p); i++) {
		struct cache *c = cache_open(p[i], 4);

		for (uint32_t b = 0; b < 4; b++)
			cache_use(c, b);
		c->nodes[2].hint = EVICT_DEAD;
		p[i]->hint(c->state, &c->nodes[2]);
		cache_use(c, 4);
		ck_assert_uint_eq(c->last_victim, 2);
		cache_close(c);
	}
}
END_TEST

START_TEST(phase_marks_and_predicts)
{
	struct cache *c = cache_open(&evict_phase, 10);

	for (uint32_t b = 0; b < 10; b++) {
		c->nodes[b].hint = b == 4 ? EVICT_DEAD : EVICT_NONE;
		cache_use(c, b);
	}
	cache_use(c, 10); /* all marked: a new phase; the one with the bit */
	ck_assert_uint_eq(c->last_victim, 4);
	for (uint32_t b = 0; b < 5; b++)
		if (c->in[b])
			cache_use(c, b); /* marked in this phase */
	for (uint32_t b = 11; b < 16; b++) { /* so it takes 5 to 9 */
		cache_use(c, b);
		ck_assert_uint_ge(c->last_victim, 5);
		ck_assert_uint_le(c->last_victim, 9);
	}
	cache_close(c);
}
END_TEST

/* ---- density learns ---------------------------------------------------------------- */

/* Kind 1 comes back after 160 accesses, of which 40 of kind 1; kind 2 does not. LRU of
 * 60 misses all. */
START_TEST(density_tells_kinds_apart)
{
	struct cache *lru = cache_open(&evict_lru, 60);
	struct cache *c = cache_open(&evict_density, 60);
	struct cache *both[] = { lru, c };

	seed = 23;
	for (size_t i = 0; i < 2; i++) {
		for (uint32_t n = 0; n < 100000; n++) {
			const uint32_t once = 1000 + n % 3000;
			const uint32_t twice = n / 2 % 900;

			both[i]->nodes[once].kind = 2;
			both[i]->nodes[twice].kind = 1;
			cache_use(both[i], once);
			if (n % 2)
				cache_use(both[i], twice);
			if (n % 2 && n > 100) {
				const uint32_t again = (n / 2 - 40) % 900;

				both[i]->nodes[again].kind = 2;
				cache_use(both[i], again);
			}
			if (n == 50000)
				both[i]->hits = 0;
		}
	}
	ck_assert_uint_lt(lru->hits, 1000);
	ck_assert_msg(c->hits > 20000, "%lu of 25000", (unsigned long)c->hits);
	cache_close(lru);
	cache_close(c);
}
END_TEST

/* A loop a little larger than the cache, the worst case of LRU. */
START_TEST(density_keeps_part_of_a_loop)
{
	struct cache *c = cache_open(&evict_density, 400);

	for (uint32_t n = 0; n < 100000; n++) {
		if (n == 50000)
			c->hits = 0;
		cache_use(c, n % 500);
	}
	ck_assert_msg(c->hits > 50000 * 0.6, "%lu of 50000",
		      (unsigned long)c->hits);
	cache_close(c);
}
END_TEST

/* What it has learned is worth nothing any more: the guard sees to it. */
START_TEST(density_is_never_far_below_lru)
{
	struct trace *t = trace_new(600);
	struct cache *lru = cache_open(&evict_lru, 100);
	struct cache *c = cache_open(&evict_density, 100);
	struct cache *both[] = { lru, c };

	for (size_t i = 0; i < 2; i++) {
		for (uint32_t n = 0; n < 60000; n++)
			cache_use(both[i], n % 110);
		both[i]->hits = 0;
		for (uint32_t n = 0; n < N_ACCESSES; n++)
			cache_use(both[i], t->b[n]);
	}
	ck_assert_msg(c->hits + N_ACCESSES / 20 >= lru->hits, "%lu, LRU %lu",
		      (unsigned long)c->hits, (unsigned long)lru->hits);
	cache_close(lru);
	cache_close(c);
	free(t);
}
END_TEST

/* ---- what came up ahead, and nobody used -------------------------------------------- */

/* Some come back now and then, and one grows: it is used again at once. */
static void live(struct cache *c, uint32_t i)
{
	const uint32_t grows = 3100 + i / 4 % 900;

	c->nodes[grows].hint = EVICT_NONE;
	cache_use(c, i % 4 ? grows : 100 + skewed(3000));
}

/* A page that was prefetched and not used has no more claim than one that was used once at
 * that moment: it goes as these go. */
START_TEST(what_nobody_used_goes_as_what_was_used_once)
{
	const struct evict_policy *p = evict_policies[_i];
	struct cache *c = cache_open(p, 100);
	uint32_t n_used = p->needs_future ? 0 : 10, n_unused = 0;

	seed = 29;
	for (uint32_t b = 0; b < MAX_BLOCKS; b++)
		c->nodes[b].bytes = 65536;
	for (uint32_t i = 0; i < 2000; i++)
		live(c, i);
	for (uint32_t b = 0; b < 20; b++) {
		c->nodes[b].hint = EVICT_COLD;
		if (b >= 10) {
			cache_use(c, b);
			continue;
		}
		c->in[p->victim(c->state) - c->nodes] = 0;
		c->in[b] = 1;
		p->add(c->state, &c->nodes[b]);
	}
	for (uint32_t i = 0; i < 20000 && n_used; i++) {
		live(c, 2000 + i);
		n_used = n_unused = 0;
		for (uint32_t b = 0; b < 20; b++)
			*(b < 10 ? &n_unused : &n_used) += c->in[b];
	}
	ck_assert_uint_eq(n_used, 0);
	ck_assert_msg(n_unused <= 1, "%s: %u of 10", p->name, n_unused);
	cache_close(c);
}
END_TEST

/* ---- kinds -------------------------------------------------------------------------- */

START_TEST(kinds)
{
	struct kind_facts f = { .n_tokens = 1000,
				.root_tokens = 100,
				.page_tokens = 100 };

	ck_assert_int_eq(page_kind_of(&f), KIND_FRESH);
	f.at_token = 950;
	ck_assert_int_eq(page_kind_of(&f), KIND_TAIL);
	f.at_token = 500;
	f.found_tokens = 600;
	ck_assert_int_eq(page_kind_of(&f), KIND_FOUND);
	f.at_token = 600;
	ck_assert_int_eq(page_kind_of(&f), KIND_MORE);
	f.n_tokens = 100000;
	ck_assert_int_eq(page_kind_of(&f), KIND_MORE_4K);
	f.at_token = 0;
	ck_assert_int_eq(page_kind_of(&f), KIND_FOUND_2K);
	f.found_tokens = 0;
	ck_assert_int_eq(page_kind_of(&f), KIND_FRESH_32K);
	ck_assert_int_le(KIND_N, (int)EVICT_KINDS);
	f.found_tokens = UINT64_MAX;
	ck_assert_int_eq(page_kind_of(&f), KIND_FOUND);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("evict");
	TCase *t = tcase_create("all");
	const int n = (int)n_policies();
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, any_order_of_calls, 0, n);
	tcase_add_loop_test(t, names, 0, n);
	tcase_add_test(t, lru_takes_the_oldest);
	tcase_add_test(t, lru_a_write_is_no_use);
	tcase_add_test(t, clock_gives_a_second_chance);
	tcase_add_test(t, s3fifo_once_used_passes_through);
	tcase_add_test(t, s3fifo_remembers_ghosts);
	tcase_add_test(t, gdsf_is_its_formula);
	tcase_add_test(t, cachecraft_is_its_formula);
	tcase_add_test(t, perfect_bits_are_belady);
	tcase_add_test(t, the_guard_bounds_wrong_bits);
	tcase_add_test(t, a_hint_while_held_counts);
	tcase_add_test(t, phase_marks_and_predicts);
	tcase_add_test(t, density_tells_kinds_apart);
	tcase_add_test(t, density_keeps_part_of_a_loop);
	tcase_add_test(t, density_is_never_far_below_lru);
	tcase_add_loop_test(t, what_nobody_used_goes_as_what_was_used_once, 0,
			    n);
	tcase_add_test(t, kinds);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
