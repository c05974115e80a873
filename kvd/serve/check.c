/*
 * check.c - the invariants of serve, walked: debug builds and tests
 *
 *  (1) A tenant's counters are the sums over its sessions, gens and calls.
 *  (2) Segments, sequences and pages keep their own (segment.h, seq.h, pager.h).
 *  (3) Who holds a reservation is counted active, and nobody else but faults (map.h);
 *      the sum of what they hold is what the pager has reserved.
 *
 * In a debug build the daemon walks them once a second.
 */
#include <stdlib.h>
#include "kvd/base/clock.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"

#define PERIOD_NS 1000000000ull

struct sums {
	uint32_t n_sessions, n_sequences, n_requests, n_uncounted, n_active;
	uint64_t reserved;
	struct map_sums maps;
};

static void check_gen(const struct gen *g, struct sums *s)
{
	if (g->req && g->counted)
		s->n_requests++;
	else if (g->req)
		s->n_uncounted++;
	s->n_active += !!g->reserved;
	s->reserved += g->reserved;
	assert(g->state == GEN_READY || g->state == GEN_STEP ||
	       g->state == GEN_WANT || !g->reserved);
	assert(!g->n_pinned || g->reserved);
	if (g->has_seq)
		seq_check(&g->seq);
}

static void check_session(struct serve_session *ss, struct sums *s)
{
	uint32_t n = 0;

	s->n_sessions++;
	for (uint32_t i = 0; i < ss->n_seq_room; i++) {
		struct session_seq *q = ss->seqs[i];

		if (!q)
			continue;
		s->n_sequences++;
		seq_check(&q->seq);
		assert((q->handle & 0xffff) == i + 1);
		assert(q->seq.n_tokens <= q->max_tokens);
		for (uint32_t l = 0; l < q->seq.layout.n_layers; l++)
			assert(q->layer_tokens[l] <= q->seq.n_tokens);
	}
	list_for_each(l, &ss->requests) {
		check_gen(list_entry(l, struct gen, session_node), s);
		n++;
	}
	n += attend_check(ss, &s->n_active, &s->reserved, &s->n_requests,
			  &s->n_uncounted);
	map_check(ss, &s->maps);
	s->maps.reserved += export_reserved(ss);
	list_for_each(l, &ss->persists)
		n++;
	assert(n <= ss->n_requests);
}

static void check_tenant(struct serve_tenant *t)
{
	struct sums s = { 0 };
	struct pager_info info;

	list_for_each(n, &t->sessions)
		check_session(list_entry(n, struct serve_session, node), &s);
	list_for_each(n, &t->chunk_jobs)
		check_gen(list_entry(n, struct gen, session_node), &s);
	measures_check(t->serve->measures, t, &s.n_active, &s.reserved);
	assert(s.n_sessions == t->n_sessions);
	assert(s.n_sequences == t->n_sequences);
	assert(t->n_sequences <= t->conf->max_sequences);
	assert(s.n_requests == t->n_requests);
	assert(t->n_requests <= t->conf->max_requests);
	assert(s.n_uncounted == t->n_uncounted);
	assert(s.n_active == t->n_active);
	segment_pool_check(t->pool);
	variant_table_check(&t->variants);
	chunk_table_check(&t->chunks);
	if (t->persist)
		persist_check(t->persist);
	pager_check(t->pager);
	pager_info(t->pager, &info);
	assert(s.maps.n_maps == t->maps.n);
	assert(s.reserved + s.maps.reserved + t->lent_bytes ==
	       info.reserved_bytes);
	assert(info.pinned_bytes <= info.reserved_bytes + s.maps.held);
}

void serve_check(struct serve *s)
{
	for (uint32_t i = 0; i < s->n_tenants; i++)
		check_tenant(s->tenants[i]);
}

static void check_turn(struct loop_timer *t)
{
	struct serve *s = container_of(t, struct serve, check_timer);

	serve_check(s);
	serve_check_start(s);
}

void serve_check_start(struct serve *s)
{
	s->check_timer.run = check_turn;
	loop_timer_set(s->loop, &s->check_timer, clock_ns() + PERIOD_NS);
}
