/*
 * plan.c - parts of a request: their tokens, what is cached of them, the list
 *
 * The chain of ids (prefix.h) runs over all parts, chunks by reference included;
 * parts are looked up as long as everything before them was found. At least the
 * last token is computed, for its logits.
 */
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/share.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"

static struct prefix_tree *tree(struct gen *g)
{
	return &g->tenant->prefix;
}

static uint32_t gen_flags(const struct gen *g)
{
	return g->req ? g->req->flags : 0;
}

/* ---- tokens ------------------------------------------------------------- */

static int part_tokens(struct gen *g, const struct serve_part *p, uint32_t *out,
		       size_t n)
{
	const uint32_t n_vocab = llama_shape(g->model->llama)->n_vocab;

	for (size_t i = 0; i < n; i++) {
		if (p->tokens[i] >= n_vocab)
			return -EINVAL;
		out[i] = p->tokens[i];
	}
	return 0;
}

struct segment *gen_fitting(const struct gen *g, struct segment *s)
{
	const struct kv_layout *a = &g->model->layout;
	const struct kv_layout *b = s ? &s->layout : a;

	if (a->n_layers == b->n_layers && a->n_kv_heads == b->n_kv_heads &&
	    a->head_dim == b->head_dim && a->elem_bytes == b->elem_bytes &&
	    a->page_tokens == b->page_tokens &&
	    a->page_layers == b->page_layers && a->order == b->order &&
	    a->page_bytes == b->page_bytes)
		return s;
	segment_forget(s);
	segment_put(s);
	return NULL;
}

/* The id names the model too: is it this one? */
static int named(const struct gen *g, struct gen_part *part,
		 const struct segment *s)
{
	if (!map_id_equal(chunk_id(g->model->id, s->tokens, s->n_tokens),
			  part->chunk))
		return -EINVAL;
	part->reuse = 1;
	part->n = s->n_tokens;
	return 0;
}

/*
 * A chunk named by id: its tokens come from the chunk itself, or from a variant of it:
 * then it is a chunk given by tokens, so what is made of it does not depend on which
 * variants there are.
 */
static int chunk_by_id(struct gen *g, const struct serve_part *p,
		       struct gen_part *part)
{
	const struct segment *v;

	part->chunk = (struct map_id){ { p->id[0], p->id[1] } };
	part->seg = chunk_find(&g->tenant->chunks, part->chunk, NULL, 0);
	if (!part->seg)
		part->seg = share_chunk(g, part->chunk, NULL, 0);
	part->seg = gen_fitting(g, part->seg);
	part->found = part->seg ? 1 : 0;
	if (part->seg)
		return named(g, part, part->seg);
	v = variant_peek(&g->tenant->variants, part->chunk);
	return v ? named(g, part, v) : -ENOENT;
}

static int measure_part(struct gen *g, const struct serve_part *p,
			struct gen_part *part)
{
	uint64_t n;

	part->gen = g;
	list_init(&part->waiting);
	if (p->flags & ~(SERVE_PART_REUSE | SERVE_PART_BOS |
			 SERVE_PART_PARALLEL) ||
	    (p->flags & SERVE_PART_REUSE && p->flags & SERVE_PART_BOS) ||
	    (p->flags & SERVE_PART_PARALLEL && !(p->flags & SERVE_PART_REUSE)))
		return -EINVAL;
	if (p->kind == SERVE_PART_CHUNK)
		return chunk_by_id(g, p, part);
	n = (uint64_t)p->n_tokens + (p->flags & SERVE_PART_BOS ? 1 : 0);
	if (n > llama_shape(g->model->llama)->n_ctx)
		return -EINVAL;
	part->n = (uint32_t)n;
	part->reuse = p->flags & SERVE_PART_REUSE && n ? 1 : 0;
	part->parallel = part->reuse && p->flags & SERVE_PART_PARALLEL ? 1 : 0;
	part->context.temperature = p->temperature;
	part->context.scale = p->scale;
	return 0;
}

static int fill_part(struct gen *g, const struct serve_part *p,
		     struct gen_part *part)
{
	uint32_t *out = g->tokens + part->first;
	uint32_t bos = 0;
	int ret;

	if (p->kind == SERVE_PART_CHUNK) {
		const struct segment *s = part->seg;

		if (!s) /* nothing was freed since it was measured */
			s = variant_peek(&g->tenant->variants, part->chunk);
		if (!s || s->n_tokens != part->n)
			return -ENOENT;
		memcpy(out, s->tokens, part->n * sizeof(*out));
		return 0;
	}
	if (p->flags & SERVE_PART_BOS)
		out[bos++] = tokenizer_bos(llama_tokenizer(g->model->llama));
	ret = part_tokens(g, p, out + bos, part->n - bos);
	if (!ret && part->reuse)
		part->chunk = chunk_id(g->model->id, out, part->n);
	return ret;
}

/* The last part is computed in its context: its last row's logits are wanted. */
static void end_with_plain(struct gen *g)
{
	struct gen_part *last;

	while (g->n_parts && !g->parts[g->n_parts - 1].n)
		g->n_parts--;
	if (!g->n_parts || !g->req)
		return;
	last = &g->parts[g->n_parts - 1];
	last->reuse = 0;
	last->parallel = 0;
	if (last->seg)
		segment_put(last->seg);
	last->seg = NULL;
}

/* All of each chunk computed again is no reuse: plain parts, and exact. */
static int plan_repair(struct gen *g)
{
	if (craft_wanted(g))
		return craft_new(g);
	if (g->req && g->req->repair)
		g->permille = g->req->repair_permille == REPAIR_BY_LOAD
				      ? REPAIR_LEAST
				      : g->req->repair_permille;
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *p = &g->parts[i];

		if (!p->reuse || !g->req || !g->req->repair ||
		    g->permille != REPAIR_ALL)
			continue;
		p->reuse = 0;
		p->found = 0;
		if (p->seg)
			segment_put(p->seg);
		p->seg = NULL;
	}
	return repair_plan(g);
}

int gen_tokenize(struct gen *g, const struct serve_part *parts, uint32_t n)
{
	const uint32_t n_ctx = llama_shape(g->model->llama)->n_ctx;
	uint64_t sum = 0;
	int ret = 0;

	g->parts = calloc(n, sizeof(*g->parts));
	if (!g->parts)
		return -ENOMEM;
	for (g->n_parts = 0; g->n_parts < n && !ret; g->n_parts++) {
		struct gen_part *part = &g->parts[g->n_parts];

		ret = measure_part(g, &parts[g->n_parts], part);
		part->first = (uint32_t)sum;
		sum += part->n;
		if (!ret && sum + g->max_tokens > n_ctx)
			ret = -EINVAL;
	}
	if (ret || !sum)
		return ret ? ret : -EINVAL;
	g->n_prompt = g->n_all = (uint32_t)sum;
	g->tokens = calloc(sum + 1, sizeof(*g->tokens));
	if (!g->tokens)
		return -ENOMEM;
	for (uint32_t i = 0; i < n && !ret; i++)
		ret = fill_part(g, &parts[i], &g->parts[i]);
	if (!ret)
		end_with_plain(g);
	if (!ret)
		ret = ape_plan(g);
	return ret ? ret : plan_repair(g);
}

/* ---- what is cached -------------------------------------------------------- */

static int part_add_hit(struct gen_part *part, struct segment *s, uint32_t from,
			uint32_t n)
{
	struct prefix_hit *h = part->n_hits ? &part->hits[part->n_hits - 1]
					    : NULL;

	if (h && h->seg == s && h->from + h->n == from) {
		h->n += n;
		segment_put(s);
		return 0;
	}
	if (!part->hits)
		part->hits = calloc(KV_DIV_UP(part->n, SEGMENT_BLOCK),
				    sizeof(*part->hits));
	if (!part->hits) {
		segment_put(s);
		return -ENOMEM;
	}
	part->hits[part->n_hits++] = (struct prefix_hit){ s, from, n };
	return 0;
}

/* Find tiles of the part, at most limit tokens; returns the id behind them. */
static struct map_id find_part(struct gen *g, struct gen_part *part,
			       struct map_id id, uint32_t limit)
{
	while (part->n_found < part->n) {
		const uint32_t at = part->n_found;
		const uint32_t n = KV_MIN(SEGMENT_BLOCK, part->n - at);
		const uint32_t *t = g->tokens + part->first + at;
		struct map_id next =
			prefix_tile(id, t, n, at ? 0 : PREFIX_PART_BEGIN);
		struct segment *s;
		uint32_t block;

		if (at + n > limit)
			break;
		s = prefix_find(tree(g), next, t, n, &block);
		if (!s)
			s = share_prefix(g, next, t, n, &block);
		s = gen_fitting(g, s);
		if (!s || part_add_hit(part, s, block * SEGMENT_BLOCK, n))
			break;
		part->n_found += n;
		id = next;
	}
	return id;
}

/* What the chain of ids knows a chunk by: what comes after depends on its repair. */
static struct map_id part_id(const struct gen *g, const struct gen_part *part)
{
	const struct craft_part *c = craft_part(g, part);

	if (c)
		return c->id;
	if (part->parallel)
		return ape_id(part);
	return part->group ? repair_id(part->chunk,
				       (enum repair_kind)g->req->repair,
				       g->permille)
			   : part->chunk;
}

static void find_prefixes(struct gen *g)
{
	struct map_id id = prefix_root(g->model->id);
	const int score = !!(gen_flags(g) & SERVE_GEN_SCORE);
	const uint32_t scored = g->parts[g->n_parts - 1].first;

	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *part = &g->parts[i];
		uint32_t limit = part->n;

		if (part->moved || part->first >= focus_exact_end(g) ||
		    (!g->req && i + 1 == g->n_parts))
			break; /* a chunk is one segment of its own */
		if (part->reuse) {
			id = prefix_chunk(id, part_id(g, part));
			continue;
		}
		if (craft_fresh(g, part))
			break;
		if (part->first + part->n == g->n_prompt && limit)
			limit = score ? 0 : limit - 1;
		if (score && part->first + part->n == scored && limit)
			limit--; /* its last row predicts the part scored */
		id = find_part(g, part, id, limit);
		g->n_prefix += part->n_found;
		if (part->n_found < part->n)
			break;
	}
}

/* ---- chunks ------------------------------------------------------------------ */

uint32_t gen_prefetch(struct gen *g, const struct segment *s)
{
	struct page_run run;

	segment_pages(s, 0, s->n_tokens, &run);
	if (!range_lower_bytes(run.range, run.first, run.n))
		return 0;
	page_prefetch(g->tenant->pager, &run, 1);
	return 1;
}

int gen_plan(struct gen *g)
{
	struct stat *miss = g->tenant->st_chunk_misses;
	struct cost_bytes bytes = { 0 };

	if (g->craft)
		return craft_plan(g);
	g->n_missing = 0;
	if (edit_plan(g))
		return -ENOMEM;
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *part = &g->parts[i];

		if (!part->reuse || part->seg)
			continue;
		part->seg = chunk_find(&g->tenant->chunks, part->chunk,
				       g->tokens + part->first, part->n);
		if (!part->seg)
			part->seg = share_chunk(g, part->chunk,
						g->tokens + part->first,
						part->n);
		part->seg = gen_fitting(g, part->seg);
		if (part->seg && gen_take_chunk(g, part, &bytes)) {
			part->found = 1;
			continue;
		}
		if (part->seg) {
			(void)gen_prefetch(g, part->seg);
			segment_put(part->seg);
			part->seg = NULL;
		}
		stat_add(miss, 1);
		if (gen_start_chunk(g, part))
			return -ENOMEM;
		g->n_missing++;
	}
	if (g->n_missing)
		return -EAGAIN;
	repair_weigh(g);
	return 0;
}

void gen_unplan(struct gen *g)
{
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *part = &g->parts[i];

		list_del(&part->waiting);
		if (part->seg)
			segment_put(part->seg);
		part->seg = NULL;
		for (uint32_t j = 0; j < part->n_hits; j++)
			segment_put(part->hits[j].seg);
		free(part->hits);
		part->hits = NULL;
		part->n_hits = part->n_found = 0;
	}
	focus_free(g);
	repair_unplan(g);
	g->n_missing = 0;
	g->n_prefix = g->n_chunk = g->n_computed = 0;
	if (g->has_seq)
		seq_fini(&g->seq);
	g->has_seq = 0;
	free(g->owned);
	g->owned = NULL;
}

/* ---- the list ---------------------------------------------------------------- */

static int mark_owned(struct gen *g, uint32_t from)
{
	uint8_t *o = realloc(g->owned, g->seq.n_entries + 1);

	if (!o)
		return -ENOMEM;
	for (uint32_t i = from; i < g->seq.n_entries; i++)
		o[i] = 1;
	g->owned = o;
	return 0;
}

static int append_shared(struct gen *g, struct segment *s, uint32_t from,
			 uint32_t n)
{
	const uint32_t at = g->seq.n_entries;
	int ret;

	segment_get(s);
	ret = seq_append(&g->seq, s, from, n);
	if (ret) {
		segment_put(s);
		return ret;
	}
	ret = mark_owned(g, at);
	for (uint32_t i = at; i < g->seq.n_entries && !ret; i++)
		g->owned[i] = 0;
	return ret;
}

static int append_patched(struct gen *g, struct gen_part *part)
{
	const uint32_t at = g->seq.n_entries;
	int ret = repair_append(g, part);

	if (!ret)
		ret = mark_owned(g, at);
	if (!ret)
		g->owned[at] = 0; /* the chunk; its patch is ours */
	return ret;
}

static int append_new(struct gen *g, uint32_t n)
{
	const uint32_t at = g->seq.n_entries;
	struct seq_copy copy;
	int ret;

	if (!n)
		return 0;
	ret = seq_grow(&g->seq, n, 0, &copy);
	assert(ret || !copy.n);
	return ret ? ret : mark_owned(g, at);
}

static int append_part(struct gen *g, struct gen_part *part)
{
	const int last = part == &g->parts[g->n_parts - 1];
	int ret = 0;

	seq_part(&g->seq);
	g->seq.context = ape_context(g, part);
	if (part->reuse) {
		g->n_chunk += part->found > 0 ? part->n : 0;
		return part->group ? append_patched(g, part)
				   : append_shared(g, part->seg, part->from,
						   part->n);
	}
	for (uint32_t i = 0; i < part->n_hits && !ret; i++)
		ret = append_shared(g, part->hits[i].seg, part->hits[i].from,
				    part->hits[i].n);
	g->n_computed += part->n - part->n_found;
	if (ret)
		return ret;
	return append_new(g,
			  part->n - part->n_found + (last ? g->max_tokens : 0));
}

static void look_up(struct gen *g)
{
	const uint64_t from = clock_ns();

	find_prefixes(g);
	stat_observe(g->tenant->st_lookup,
		     (clock_ns() - from) / (g->n_prefix / SEGMENT_BLOCK + 1));
}

int gen_build_seq(struct gen *g)
{
	int ret = 0;

	if (!(gen_flags(g) & SERVE_GEN_NO_REUSE) && (g->req || g->n_parts > 1))
		look_up(g);
	ret = gen_choose_prefix(g);
	/* a chunk is one segment, whatever its length */
	seq_init(&g->seq, g->tenant->pool, &g->model->layout,
		 g->session ? KV_MAX(SERVE_SEGMENT_TOKENS, craft_longest(g))
			    : g->n_prompt);
	g->has_seq = 1;
	for (uint32_t i = 0; i < g->n_parts && !ret; i++)
		ret = append_part(g, &g->parts[i]);
	return ret ? ret : focus_plan(g);
}

/* ---- keep what was computed ---------------------------------------------------- */

/* The end of the part that holds token c->at. */
static uint32_t part_end(const struct gen *g, const struct gen_chain *c)
{
	const struct gen_part *p = &g->parts[c->i_part];

	return c->i_part + 1 == g->n_parts ? g->n_all : p->first + p->n;
}

void gen_chain_step(const struct gen *g, struct gen_chain *c)
{
	const struct gen_part *p = &g->parts[c->i_part];
	uint32_t end = part_end(g, c);

	while (c->at == end && c->i_part + 1 < g->n_parts) {
		p = &g->parts[++c->i_part];
		end = part_end(g, c);
	}
	if ((p->reuse || craft_fresh(g, p)) && c->at < end) {
		c->id = prefix_chunk(c->id, part_id(g, p));
		c->at = end;
		return;
	}
	const uint32_t n = KV_MIN(SEGMENT_BLOCK, end - c->at);

	c->id = prefix_tile(c->id, g->tokens + c->at, n,
			    c->at == p->first ? PREFIX_PART_BEGIN : 0);
	c->at += n;
}

static void index_entry(struct gen *g, struct seq_entry *e, struct gen_chain *c)
{
	const uint32_t n_tiles = KV_DIV_UP(e->n, SEGMENT_BLOCK);
	struct map_id *ids = calloc(n_tiles, sizeof(*ids));

	e->seg->tokens = malloc(e->n * sizeof(uint32_t));
	if (!ids || !e->seg->tokens) {
		free(ids);
		return; /* not kept: freed with the last reference */
	}
	memcpy(e->seg->tokens, g->tokens + e->pos, e->n * sizeof(uint32_t));
	for (uint32_t i = 0; i < n_tiles; i++) {
		gen_chain_step(g, c);
		ids[i] = c->id;
	}
	(void)prefix_add(tree(g), e->seg, ids); /* without memory: not kept */
	range_cost(e->seg->range, gen_compute_cost(g));
	if (g->tenant->persist)
		persist_add(g->tenant->persist, e->seg);
}

/* What the pager's policy may know of this request's pages. */
static void tell_kinds(struct gen *g)
{
	struct kind_facts f = { .n_tokens = g->n_all,
				.found_tokens = g->n_prefix,
				.root_tokens = SEGMENT_BLOCK };

	for (uint32_t i = 0; i < g->seq.n_entries; i++) {
		const struct seq_entry *e = &g->seq.entries[i];

		f.at_token = (uint64_t)e->pos;
		if (!e->seg->is_chunk)
			segment_kind(e->seg, e->from, e->n, &f);
	}
}

static const struct gen_part *part_at(const struct gen *g, uint32_t pos)
{
	uint32_t i = 0;

	while (i + 1 < g->n_parts && g->parts[i].first + g->parts[i].n <= pos)
		i++;
	return &g->parts[i];
}

void gen_index(struct gen *g)
{
	const struct gen_part *last = &g->parts[g->n_parts - 1];
	struct gen_chain c = { .id = prefix_root(g->model->id) };

	/* the part-tile at the end would be found by nobody: whole tiles only */
	g->n_all -= (g->n_all - last->first) % SEGMENT_BLOCK;
	seq_truncate(&g->seq, g->n_all);
	seq_seal(&g->seq);
	tell_kinds(g);
	for (uint32_t i = 0; i < g->seq.n_entries; i++) {
		struct seq_entry *e = &g->seq.entries[i];

		if (e->pos >= edit_exact_end(g) || e->pos >= focus_exact_end(g))
			return;
		while (c.at < e->pos && c.at < g->n_all)
			gen_chain_step(g, &c);
		if (c.at != e->pos)
			return;
		if (craft_fresh(g, part_at(g, c.at)))
			continue; /* a variant to come */
		if (g->owned[i] && !e->from && e->seg->sealed &&
		    e->n == e->seg->n_tokens && !e->seg->tokens)
			index_entry(g, e, &c);
	}
}
