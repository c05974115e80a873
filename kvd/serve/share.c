/*
 * share.c - hits among tenants that opted in; see share.h
 */
#include "kvd/serve/share.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int shares(const struct serve_tenant *a, const struct serve_tenant *b)
{
	return a != b && a->conf->share[0] &&
	       !strcmp(a->conf->share, b->conf->share);
}

static int may_look(const struct gen *g)
{
	return g->req && !g->alone && !g->craft && !g->req->repair &&
	       g->tenant->conf->share[0];
}

#define EACH_SHARING(o, g) \
	for (uint32_t o##_i = 0; o##_i < (g)->tenant->serve->n_tenants; \
	     o##_i++) \
		if (((o) = (g)->tenant->serve->tenants[o##_i]) && \
		    shares((g)->tenant, (o)))

struct segment *share_prefix(const struct gen *g, struct map_id id,
			     const uint32_t *tokens, uint32_t n,
			     uint32_t *block)
{
	struct serve_tenant *o;
	struct segment *s;

	if (!may_look(g))
		return NULL;
	EACH_SHARING(o, g)
	{
		s = prefix_find(&o->prefix, id, tokens, n, block);
		if (s)
			return s;
	}
	return NULL;
}

struct segment *share_chunk(const struct gen *g, struct map_id id,
			    const uint32_t *tokens, size_t n)
{
	struct serve_tenant *o;
	struct segment *s;

	if (!may_look(g))
		return NULL;
	EACH_SHARING(o, g)
	{
		s = chunk_find(&o->chunks, id, tokens, n);
		if (s)
			return s;
	}
	return NULL;
}

uint64_t share_tokens(const struct gen *g)
{
	uint64_t n = 0;

	for (uint32_t i = 0; g->has_seq && i < g->seq.n_entries; i++)
		if (g->seq.entries[i].seg->pool != g->tenant->pool)
			n += g->seq.entries[i].n;
	return n;
}

/* ---- loans ------------------------------------------------------------------- */

static uint64_t bytes_of(const struct page_run *runs, uint32_t n,
			 const struct pager *p)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < n; i++)
		if (range_pager(runs[i].range) == p)
			bytes += runs[i].n * range_page_bytes(runs[i].range);
	return bytes;
}

static int borrow(struct gen *g, struct serve_tenant *o, uint64_t bytes)
{
	if (!list_empty(&o->waiting) || pager_reservable(o->pager) < bytes ||
	    pager_reserve(o->pager, bytes))
		return -EXDEV;
	g->loans[g->n_loans++] = (struct gen_loan){ o, bytes };
	o->lent_bytes += bytes;
	return 0;
}

void share_unreserve(struct gen *g)
{
	while (g->n_loans) {
		const struct gen_loan *l = &g->loans[--g->n_loans];

		l->owner->lent_bytes -= l->bytes;
		pager_unreserve(l->owner->pager, l->bytes);
		tenant_kick(l->owner); /* its segments are let go, too */
	}
	free(g->loans);
	g->loans = NULL;
}

/* Of the list; -ENOMEM. */
static int list_runs(const struct gen *g, struct page_run **runs, uint32_t *n)
{
	*n = seq_runs(&g->seq, 0, g->seq.n_tokens, UINT32_MAX, NULL, 0);
	*runs = calloc(*n + 1, sizeof(**runs));
	if (!*runs)
		return -ENOMEM;
	seq_runs(&g->seq, 0, g->seq.n_tokens, UINT32_MAX, *runs, *n);
	return 0;
}

int share_bytes(const struct gen *g, uint64_t *bytes)
{
	struct serve_tenant *o;
	struct page_run *runs;
	uint32_t n;

	*bytes = 0;
	if (!may_look(g) || !share_tokens(g))
		return 0;
	if (list_runs(g, &runs, &n))
		return -ENOMEM;
	EACH_SHARING(o, g)
	*bytes += bytes_of(runs, n, o->pager);
	free(runs);
	return 0;
}

int share_reserve(struct gen *g)
{
	struct serve_tenant *o;
	struct page_run *runs;
	uint32_t n;
	int ret = list_runs(g, &runs, &n);

	if (ret)
		return ret;
	g->loans = calloc(g->tenant->serve->n_tenants, sizeof(*g->loans));
	if (!g->loans)
		ret = -ENOMEM;
	EACH_SHARING(o, g)
	{
		const uint64_t bytes = ret ? 0 : bytes_of(runs, n, o->pager);

		if (bytes)
			ret = borrow(g, o, bytes);
	}
	free(runs);
	if (ret)
		share_unreserve(g);
	return ret;
}

/* ---- an owner without room ---------------------------------------------------- */

/* Chunks of the owner's that it found, and holds while it waits. */
static int waits_with(const struct gen *g, const struct serve_tenant *owner)
{
	if (g->state != GEN_CHUNKS && g->state != GEN_ADMIT)
		return 0;
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (g->parts[i].seg && g->parts[i].seg->pool == owner->pool)
			return 1;
	return 0;
}

/* Requests of t that wait with something of the owner's go on alone: how many. */
static uint32_t send_alone(struct serve_tenant *t,
			   const struct serve_tenant *owner)
{
	uint32_t n = 0;

	list_for_each(s, &t->sessions) {
		struct serve_session *ss =
			list_entry(s, struct serve_session, node);

		list_for_each(l, &ss->requests) {
			struct gen *g = list_entry(l, struct gen, session_node);

			if (!waits_with(g, owner))
				continue;
			gen_alone(g);
			n++;
		}
	}
	return n;
}

int share_frees(struct serve_tenant *owner)
{
	const struct serve *s = owner->serve;
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n_tenants; i++)
		if (shares(owner, s->tenants[i]))
			n += send_alone(s->tenants[i], owner);
	if (n)
		tenant_kick(owner);
	return n || owner->lent_bytes;
}
