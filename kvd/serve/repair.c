/*
 * repair.c - groups of chunks, the tokens chosen, their patch; see repair.h
 */
#include "kvd/serve/repair.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "kvd/serve/pick.h"

uint32_t repair_count(uint32_t n, uint32_t permille)
{
	return (uint32_t)KV_DIV_UP((uint64_t)n * permille, REPAIR_ALL);
}

/* ---- selectors ------------------------------------------------------------- */

static const struct pick *const picks[REPAIR_N_KINDS] = {
	[REPAIR_FIRST] = &pick_first,	    [REPAIR_RANDOM] = &pick_random,
	[REPAIR_BLEND] = &pick_blend,	    [REPAIR_CRAFT] = &pick_craft,
	[REPAIR_CRAFT_BLEND] = &pick_blend,
};

void repair_pick(enum repair_kind kind, struct map_id chunk, uint32_t n,
		 uint32_t k, uint32_t *at)
{
	picks[kind]->some(chunk, n, k, at);
}

int pick_each(const struct gen *g, const struct repair_group *r, uint32_t *at)
{
	uint64_t sum = 0;
	uint32_t done = 0;

	for (uint32_t i = r->i_part; i < r->i_part + r->n_parts; i++) {
		const struct gen_part *p = &g->parts[i];
		uint32_t n;

		if (!p->group)
			continue;
		sum += p->n;
		n = (uint32_t)KV_MIN(sum * r->k / r->n - done, (uint64_t)p->n);
		repair_pick(r->kind, p->chunk, p->n, n, at + done);
		for (uint32_t k = 0; k < n; k++)
			at[done + k] += p->first - r->first;
		done += n;
	}
	assert(done == r->k);
	return 0;
}

struct ranked {
	float dev;
	uint32_t i;
};

static int by_dev(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->dev != y->dev)
		return x->dev > y->dev ? -1 : 1;
	return x->i < y->i ? -1 : x->i > y->i;
}

static int by_index(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

int repair_pick_largest(const float *dev, uint32_t n, uint32_t k, uint32_t *at)
{
	struct ranked *r = malloc(n * sizeof(*r));

	if (!r)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		r[i] = (struct ranked){ dev[i], i };
	qsort(r, n, sizeof(*r), by_dev);
	for (uint32_t i = 0; i < k; i++)
		at[i] = r[i].i;
	qsort(at, k, sizeof(*at), by_index);
	free(r);
	return 0;
}

struct map_id repair_id(struct map_id chunk, enum repair_kind kind,
			uint32_t permille)
{
	const struct {
		char name[8];
		struct map_id chunk;
		uint32_t kind, permille;
	} in = { "repair3", chunk, kind, permille };
	struct map_id id;

	crypto_generichash((unsigned char *)&id, sizeof(id),
			   (const unsigned char *)&in, sizeof(in), NULL, 0);
	return id;
}

/* ---- groups of a generation ------------------------------------------------------ */

static enum repair_kind kind_of(const struct gen *g)
{
	/* a model of one layer has no deviation to look at */
	if (g->req->repair == REPAIR_BLEND && g->model->layout.n_layers < 2)
		return REPAIR_FIRST;
	return (enum repair_kind)g->req->repair;
}

int repair_plan(struct gen *g)
{
	struct repair_group *r = NULL;
	const uint32_t permille = g->permille;

	if (!permille || !g->req->repair)
		return 0;
	g->groups = calloc(g->n_parts, sizeof(*g->groups));
	if (!g->groups)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *p = &g->parts[i];

		if (!p->n)
			continue;
		if (!p->reuse || p->moved == EDIT_EXACT) {
			r = NULL;
			continue;
		}
		if (!r) {
			r = &g->groups[g->n_groups++];
			r->i_part = i;
			r->kind = kind_of(g);
			r->first = p->first;
		}
		p->group = r;
		r->n_parts = i + 1 - r->i_part;
		r->n += p->n;
		r->k = repair_count(r->n, permille);
	}
	return 0;
}

void repair_weigh(struct gen *g)
{
	struct cost_bytes bytes = { 0 };
	uint64_t n = 0;

	if (!g->n_groups || g->req->repair_permille != REPAIR_BY_LOAD)
		return;
	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct gen_part *p = &g->parts[i];
		struct page_run run;

		if (!p->group)
			continue;
		segment_pages(p->seg, p->from, p->from + p->n, &run);
		n += p->n;
		gen_add_lower(&bytes, &run);
	}
	g->permille = gen_share_by_load(g, &bytes, n);
	for (uint32_t i = 0; i < g->n_groups; i++)
		g->groups[i].k = repair_count(g->groups[i].n, g->permille);
}

void repair_unplan(struct gen *g)
{
	for (uint32_t i = 0; i < g->n_groups; i++) {
		struct repair_group *r = &g->groups[i];

		if (r->patch)
			segment_put(r->patch);
		r->patch = NULL;
		free(r->dev);
		r->dev = NULL;
		r->chosen = 0;
		r->n_probed = 0;
	}
}

void repair_free(struct gen *g)
{
	repair_unplan(g);
	free(g->groups);
}

/*
 * Where in the patch what follows n tokens of a part begins. When all is computed again
 * each part's tokens are on the tile grid, as in a prefill of the same list: the bits
 * are the same.
 */
static uint32_t patch_room(const struct repair_group *r, uint32_t n)
{
	return r->k == r->n ? KV_ALIGN_UP(n, SEGMENT_BLOCK) : n;
}

/* Tokens of the group's patch. */
static uint32_t patch_tokens(const struct gen *g, const struct repair_group *r)
{
	uint32_t n = 0;

	if (r->k < r->n)
		return r->k;
	for (uint32_t i = r->i_part; i < r->i_part + r->n_parts; i++)
		if (g->parts[i].group)
			n += patch_room(r, g->parts[i].n);
	return n;
}

/* Tokens at [k], ascending, of the whole group: each to its entry. */
static int spread(struct gen *g, struct repair_group *r, const uint32_t *at)
{
	uint32_t done = 0, to = 0;

	for (uint32_t i = r->i_part; i < r->i_part + r->n_parts; i++) {
		const struct gen_part *p = &g->parts[i];
		const uint32_t begin = p->first - r->first;
		uint32_t n = 0, *own;
		int ret;

		if (!p->group)
			continue;
		while (done + n < r->k && at[done + n] < begin + p->n)
			n++;
		own = malloc((n + 1) * sizeof(*own));
		if (!own)
			return -ENOMEM;
		for (uint32_t k = 0; k < n; k++)
			own[k] = at[done + k] - begin;
		ret = seq_patch(&g->seq, p->i_entry, to, own, n);
		if (ret) {
			free(own);
			return ret;
		}
		done += n;
		to += patch_room(r, n);
	}
	return 0;
}

static int choose(struct gen *g, struct repair_group *r)
{
	uint32_t *at = malloc(r->k * sizeof(*at));
	int ret = at ? 0 : -ENOMEM;

	if (!ret)
		ret = picks[r->kind]->choose(g, r, at);
	if (!ret)
		ret = spread(g, r, at);
	r->chosen = !ret;
	free(at);
	free(r->dev);
	r->dev = NULL;
	return ret;
}

/* The list has all of the group: prepare the probe, or choose. */
static int begin(struct gen *g, struct repair_group *r)
{
	segment_put(r->patch); /* the entries have theirs */
	r->patch = NULL;
	if (!picks[r->kind]->probes)
		return choose(g, r);
	r->dev = calloc(r->n, sizeof(*r->dev));
	return r->dev ? 0 : -ENOMEM;
}

int repair_append(struct gen *g, struct gen_part *part)
{
	struct repair_group *r = part->group;
	const int is_last = part->first + part->n == r->first + r->n;
	int ret = 0;

	if (!r->patch)
		ret = seq_patch_new(&g->seq, patch_tokens(g, r), &r->patch);
	if (ret)
		return ret;
	part->i_entry = g->seq.n_entries;
	segment_get(part->seg);
	ret = seq_append_patched(&g->seq, part->seg, part->from, part->n,
				 r->patch, is_last);
	if (ret) {
		segment_put(part->seg);
		return ret;
	}
	if (!is_last)
		return 0;
	g->n_computed += r->k;
	return begin(g, r);
}

int repair_looks(const struct repair_group *r)
{
	return picks[r->kind]->probes;
}

struct repair_group *repair_next_probe(const struct gen *g)
{
	uint32_t from = g->pos;

	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct gen_part *p = &g->parts[i];
		const uint32_t end = p->first + p->n;

		if (from >= end)
			continue;
		if (p->group && !p->group->chosen)
			return p->group;
		if (p->group) {
			uint32_t off = from - p->first;

			if (repair_rows(g, p, &off))
				return NULL;
		} else if (!p->reuse && p->first + p->n_found < end) {
			return NULL;
		}
		from = end;
	}
	return NULL;
}

uint32_t repair_rows(const struct gen *g, const struct gen_part *part,
		     uint32_t *off)
{
	const struct seq_entry *e = &g->seq.entries[part->i_entry];
	uint32_t i = 0, n = 1;

	while (i < e->n_patch && e->patch_at[i] < *off)
		i++;
	if (i == e->n_patch)
		return 0;
	*off = e->patch_at[i];
	while (i + n < e->n_patch && e->patch_at[i + n] == *off + n)
		n++;
	return n;
}

/* ---- the probe --------------------------------------------------------------------- */

int repair_probed(struct gen *g, struct repair_group *r, uint32_t n)
{
	r->n_probed += n;
	return r->n_probed < r->n ? 0 : choose(g, r);
}
