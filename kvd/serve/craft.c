/*
 * craft.c - which variant of each chunk, and which of its tokens again; see craft.h
 */
#include "kvd/serve/craft.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"

int craft_wanted(const struct gen *g)
{
	return g->req && repair_varies(g->req->repair);
}

int craft_new(struct gen *g)
{
	struct craft *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	g->craft = c;
	c->n_parts = g->n_parts;
	c->permille = g->req->repair_permille;
	c->tenant = g->tenant;
	c->parts = calloc(g->n_parts, sizeof(*c->parts));
	c->before = calloc(g->n_parts, sizeof(*c->before));
	g->groups = calloc(g->n_parts, sizeof(*g->groups));
	if (!c->parts || !c->before || !g->groups)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (g->parts[i].reuse && g->parts[i].n) {
			c->parts[i].is_chunk = 1;
			c->parts[i].chunk = g->parts[i].chunk;
		}
	return 0;
}

static void drop_queries(struct craft *c)
{
	if (c->inter)
		c->tenant->query_bytes -= c->inter->n_bytes;
	inter_free(c->inter);
	c->inter = NULL;
}

void craft_free(struct craft *c)
{
	if (!c)
		return;
	drop_queries(c);
	free(c->parts);
	free(c->before);
	free(c);
}

const struct craft_part *craft_part(const struct gen *g,
				    const struct gen_part *part)
{
	const struct craft_part *c;

	if (!g->craft)
		return NULL;
	c = &g->craft->parts[part - g->parts];
	return c->is_chunk ? c : NULL;
}

int craft_fresh(const struct gen *g, const struct gen_part *part)
{
	const struct craft_part *c = craft_part(g, part);

	return c && c->kind == CRAFT_FRESH;
}

uint32_t craft_longest(const struct gen *g)
{
	uint32_t n = 0;

	for (uint32_t i = 0; g->craft && i < g->n_parts; i++)
		if (craft_fresh(g, &g->parts[i]))
			n = KV_MAX(n, g->parts[i].n);
	return n;
}

/* ---- which variant ------------------------------------------------------------ */

/* As far as the parts are walked. */
struct walk {
	struct map_id ctx, frame;
	uint32_t n_before, depth;
};

static struct map_id hash(struct map_id a, const void *data, size_t n)
{
	crypto_generichash_state st;
	struct map_id id;

	crypto_generichash_init(&st, NULL, 0, sizeof(id));
	crypto_generichash_update(&st, (const void *)&a, sizeof(a));
	crypto_generichash_update(&st, data, n);
	crypto_generichash_final(&st, (unsigned char *)&id, sizeof(id));
	return id;
}

static void walk_text(const struct gen *g, const struct gen_part *p,
		      struct walk *w)
{
	const uint32_t *t = g->tokens + p->first;

	w->frame = hash(w->frame, t, p->n * sizeof(*t));
	for (uint32_t at = 0; at < p->n; at += SEGMENT_BLOCK)
		w->ctx = prefix_tile(w->ctx, t + at,
				     KV_MIN(SEGMENT_BLOCK, p->n - at),
				     at ? 0 : PREFIX_PART_BEGIN);
}

static void walk_chunk(struct gen *g, struct craft_part *c, struct walk *w)
{
	/* with focus it is not known what comes of it */
	const uint32_t focus = g->req->flags & SERVE_GEN_FOCUS ? 1u << 31 : 0;
	const uint32_t share = focus | (g->craft->permille == REPAIR_BY_CFO
						? 2 * REPAIR_ALL + c->k
						: g->craft->permille);

	switch (c->kind) {
	case CRAFT_INTER:
	case CRAFT_ALONE:
		c->id = repair_id(
			hash(c->chunk, &c->variant, sizeof(c->variant)),
			(enum repair_kind)g->req->repair, share);
		w->depth = KV_MAX(w->depth, c->depth + 1);
		break;
	default:
		c->id = repair_id(c->chunk, REPAIR_CRAFT, REPAIR_ALL);
	}
	w->ctx = prefix_chunk(w->ctx, c->id);
	g->craft->before[w->n_before++] = c->chunk;
}

/* By CFO: of all, or none? Too deep to be kept, all of a chunk that is there is repaired. */
static void weigh(struct gen *g, struct gen_part *p, struct craft_part *c,
		  const struct walk *w)
{
	c->k = KV_MIN(p->n, (uint32_t)ceil((double)c->cfo * p->n));
	if (g->craft->permille != REPAIR_BY_CFO || c->k < p->n ||
	    w->depth > CRAFT_DEPTH)
		return;
	segment_put(p->seg); /* the same work, and a variant that fits */
	p->seg = NULL;
	c->kind = CRAFT_FRESH;
}

static void use_variant(struct gen *g, struct gen_part *p, struct craft_part *c,
			const struct walk *w, struct segment *s)
{
	if (p->seg)
		segment_put(p->seg);
	p->seg = s;
	c->variant = s->variant->ctx;
	c->depth = s->variant->depth;
	c->kind = map_id_equal(c->variant, c->ctx) ? CRAFT_EXACT : CRAFT_INTER;
	if (c->kind == CRAFT_INTER)
		weigh(g, p, c, w);
}

/* Computed alone: the right bits where nothing stands before it. */
static void use_alone(struct gen *g, struct gen_part *p, struct craft_part *c,
		      const struct walk *w)
{
	c->variant = prefix_root(g->model->id);
	c->depth = 0;
	c->cfo = VARIANT_ALPHA * VARIANT_ALONE_CFO;
	c->kind = map_id_equal(c->variant, c->ctx) ? CRAFT_EXACT : CRAFT_ALONE;
	if (c->kind == CRAFT_ALONE)
		weigh(g, p, c, w);
	else
		c->cfo = 0;
}

/* 0; -EAGAIN it is being computed, alone. */
static int find(struct gen *g, struct gen_part *p, struct craft_part *c,
		const struct walk *w)
{
	const struct variant_place at = { c->ctx, c->frame, g->craft->before,
					  w->n_before };
	const uint32_t *t = g->tokens + p->first;
	struct segment *s = NULL;

	s = variant_find(&g->tenant->variants, c->chunk, t, p->n, &at,
			 VARIANT_ALPHA, &c->cfo);
	s = gen_fitting(g, s);
	if (s && g->craft->permille >= REPAIR_ALL &&
	    g->craft->permille < REPAIR_BY_CFO &&
	    !map_id_equal(s->variant->ctx, c->ctx)) {
		segment_put(s); /* all of it again */
		s = NULL;
	} else if (!s && g->craft->permille != REPAIR_ALL && !p->seg) {
		p->seg = gen_fitting(
			g, chunk_find(&g->tenant->chunks, c->chunk, t, p->n));
	}
	if (s)
		use_variant(g, p, c, w, s);
	else if (p->seg && g->craft->permille != REPAIR_ALL)
		use_alone(g, p, c, w);
	if (s || c->kind != CRAFT_NONE) {
		p->found = 1;
		return 0;
	}
	stat_add(g->tenant->st_chunk_misses, 1);
	if (w->depth <= CRAFT_DEPTH || g->craft->permille == REPAIR_ALL) {
		c->kind = CRAFT_FRESH;
		return 0;
	}
	return gen_start_chunk(g, p) ? -ENOMEM : -EAGAIN;
}

static int plan_chunk(struct gen *g, uint32_t i, struct walk *w)
{
	struct gen_part *p = &g->parts[i];
	struct craft_part *c = &g->craft->parts[i];
	int ret;

	c->kind = CRAFT_NONE;
	c->ctx = w->ctx;
	c->frame = w->frame;
	c->cfo = 1;
	c->n_before = w->n_before;
	p->found = 0;
	if (p->seg && p->seg->variant) { /* of an earlier plan */
		segment_put(p->seg);
		p->seg = NULL;
	}
	ret = find(g, p, c, w);
	if (ret)
		return ret;
	p->reuse = c->kind != CRAFT_FRESH;
	if (c->kind == CRAFT_FRESH) {
		if (p->seg)
			segment_put(p->seg);
		p->seg = NULL;
		p->found = 0;
		c->depth = w->depth;
		c->cfo = 1;
	}
	walk_chunk(g, c, w);
	return 0;
}

/* ---- groups ---------------------------------------------------------------------- */

static enum repair_kind selector(const struct gen *g,
				 const struct craft_part *c)
{
	if (c->kind == CRAFT_INTER && g->req->repair == REPAIR_CRAFT)
		return REPAIR_CRAFT;
	return g->model->layout.n_layers < 2 ? REPAIR_FIRST : REPAIR_BLEND;
}

static void group(struct gen *g)
{
	const uint32_t permille = g->craft->permille;
	struct repair_group *r = NULL;

	g->n_groups = 0;
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct craft_part *c = &g->craft->parts[i];
		struct gen_part *p = &g->parts[i];

		p->group = NULL;
		if (!p->n)
			continue;
		if ((c->kind != CRAFT_INTER && c->kind != CRAFT_ALONE) ||
		    !(permille == REPAIR_BY_CFO ? c->k : permille)) {
			r = NULL;
			continue;
		}
		if (!r || r->kind != selector(g, c)) {
			r = &g->groups[g->n_groups++];
			*r = (struct repair_group){ .i_part = i,
						    .first = p->first,
						    .kind = selector(g, c) };
		}
		p->group = r;
		r->n_parts = i + 1 - r->i_part;
		r->n += p->n;
		r->k = permille == REPAIR_BY_CFO ? r->k + c->k
						 : repair_count(r->n, permille);
	}
}

/* ---- queries of fresh chunks ------------------------------------------------------- */

static int keep_queries(struct gen *g)
{
	struct craft *c = g->craft;
	const uint32_t n_layers = g->model->layout.n_layers;
	uint32_t n_rows = 0, row = 0;
	size_t bytes;
	int ret = 0;

	drop_queries(c);
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (c->parts[i].kind == CRAFT_FRESH &&
		    c->parts[i].n_before <= VARIANT_MAX_PREFIX)
			n_rows += g->parts[i].n;
	bytes = inter_bytes(&g->model->shape, n_layers, n_rows);
	if (!n_rows || bytes + g->tenant->query_bytes > CRAFT_QUERY_BYTES ||
	    g->req->flags & (SERVE_GEN_NO_REUSE | SERVE_GEN_FOCUS))
		return 0;
	if (inter_new(&c->inter, &g->model->shape, n_layers, n_rows,
		      g->n_parts))
		return 0; /* no memory for what is not needed */
	g->tenant->query_bytes += c->inter->n_bytes;
	for (uint32_t i = 0; i < g->n_parts && !ret; i++) {
		const struct gen_part *p = &g->parts[i];
		const int kept = c->parts[i].kind == CRAFT_FRESH &&
				 c->parts[i].n_before <= VARIANT_MAX_PREFIX;

		c->parts[i].row = row;
		ret = inter_part(c->inter, p->first, p->n, c->parts[i].is_chunk,
				 kept ? &row : NULL);
	}
	return ret;
}

int craft_forget_queries(struct gen *g)
{
	const int any = g->craft && g->craft->inter;

	if (any)
		drop_queries(g->craft);
	return any;
}

/* The part whose queries are kept that has position pos, or NULL. */
static const struct inter_part *kept_part(const struct gen *g, uint32_t pos)
{
	const struct inter *x = g->craft ? g->craft->inter : NULL;

	for (uint32_t i = 0; x && i < x->n_parts; i++) {
		const struct inter_part *p = &x->parts[i];

		if (p->measured && pos >= p->first && pos < p->first + p->n)
			return p;
	}
	return NULL;
}

void craft_queries(const struct gen *g, uint32_t layer, uint32_t pos,
		   uint32_t n, const float *q)
{
	const struct inter_part *p = kept_part(g, pos);

	if (p)
		inter_keep(g->craft->inter, layer, p->row + pos - p->first, n,
			   q);
}

char *craft_queries_at(const struct gen *g, uint32_t pos, size_t *layer_bytes)
{
	const struct inter_part *p = kept_part(g, pos);

	return p ? inter_at(g->craft->inter, p->row + pos - p->first,
			    layer_bytes)
		 : NULL;
}

/* ---- the plan ------------------------------------------------------------------------ */

/* What there is of a chunk, or NULL; borrowed: its index keeps it for now. */
static const struct segment *peek(const struct gen *g, struct map_id chunk)
{
	const struct segment *s = variant_peek(&g->tenant->variants, chunk);

	return s ? s : map_find(&g->tenant->chunks.map, chunk);
}

/* As many as can be computed while the chunks are read (CacheBlend's controller). */
static uint32_t share_by_load(const struct gen *g)
{
	struct cost_bytes bytes = { 0 };
	struct page_run run;
	uint64_t n = 0;

	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct craft_part *c = &g->craft->parts[i];
		const struct segment *s = c->is_chunk ? peek(g, c->chunk)
						      : NULL;

		if (!s)
			continue;
		run = (struct page_run){ s->range, 0, range_n_pages(s->range),
					 0 };
		gen_add_lower(&bytes, &run);
		n += s->n_tokens;
	}
	return gen_share_by_load(g, &bytes, n);
}

int craft_plan(struct gen *g)
{
	struct walk w = { .ctx = prefix_root(g->model->id) };
	int ret = 0;

	g->n_missing = 0;
	if (g->req->repair_permille == REPAIR_BY_LOAD)
		g->craft->permille = share_by_load(g);
	for (uint32_t i = 0; i < g->n_parts && !ret; i++) {
		if (!g->parts[i].n)
			continue;
		if (g->craft->parts[i].is_chunk)
			ret = plan_chunk(g, i, &w);
		else
			walk_text(g, &g->parts[i], &w);
	}
	if (ret == -EAGAIN)
		g->n_missing = 1;
	if (ret)
		return ret;
	group(g);
	return keep_queries(g);
}

void craft_report(struct gen *g)
{
	struct serve_used *u;

	if (!g->craft)
		return;
	u = calloc(g->req->n_parts, sizeof(*u));
	g->req->used = u;
	for (uint32_t i = 0; u && i < g->n_parts; i++) {
		const struct craft_part *c = &g->craft->parts[i];
		const struct gen_part *p = &g->parts[i];

		if (!c->is_chunk)
			continue;
		u[i].use = c->kind;
		u[i].n_tokens = p->n;
		u[i].variant = c->kind == CRAFT_FRESH ? 0 : c->variant.w[0];
		u[i].n_repaired = p->group ? g->seq.entries[p->i_entry].n_patch
					   : 0;
		u[i].cfo = (uint32_t)(c->cfo * (float)REPAIR_ALL + 0.5f);
	}
}
