/*
 * edit.c - what an earlier version of a prompt left, in other places; see edit.h
 */
#include "kvd/serve/edit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"

/* The earlier version of a part. */
struct edit_base {
	uint32_t i_part; /* of whole */
	uint32_t *tokens;
	uint32_t n;
};

struct edit {
	struct gen_part *whole; /* the parts as asked for */
	uint32_t n_whole;
	struct edit_base *bases;
	uint32_t n_bases;
	uint32_t n_room; /* of the gen's parts */
	uint32_t n_moved;
};

/* ---- what is the same --------------------------------------------------------- */

#define HASH_BITS 13u
#define FACTOR	  0x9e3779b97f4a7c15u

#define NONE  UINT32_MAX
#define AGAIN (1u << 31) /* the window occurs more than once */

static uint64_t window_hash(const uint32_t *t)
{
	uint64_t h = 0;

	for (uint32_t k = 0; k < EDIT_WINDOW; k++)
		h = (h ^ t[k]) * FACTOR;
	return h;
}

static uint32_t *slot_of(uint32_t *table, uint32_t n_slots, const uint32_t *old,
			 const uint32_t *t)
{
	uint32_t i = (uint32_t)(window_hash(t) >> 32) & (n_slots - 1);

	while (table[i] != NONE &&
	       memcmp(old + (table[i] & ~AGAIN), t, EDIT_WINDOW * sizeof(*t)))
		i = (i + 1) & (n_slots - 1);
	return &table[i];
}

/* Windows of old [0, n): their place, with the top bit those that occur again. */
static uint32_t *index_windows(const uint32_t *old, uint32_t n,
			       uint32_t *n_slots)
{
	uint32_t *table;

	*n_slots = 1u << HASH_BITS;
	while (*n_slots < 2 * n)
		*n_slots *= 2;
	table = malloc(*n_slots * sizeof(*table));
	if (!table)
		return NULL;
	memset(table, 0xff, *n_slots * sizeof(*table));
	for (uint32_t j = 0; j + EDIT_WINDOW <= n; j++) {
		uint32_t *s = slot_of(table, *n_slots, old, old + j);

		*s = *s == NONE ? j : *s | AGAIN;
	}
	return table;
}

/* Runs between what both begin and end with. */
static int match_middle(const uint32_t *old, uint32_t n_old,
			const uint32_t *new, uint32_t n_new,
			struct edit_run *runs, int max)
{
	uint32_t n_slots, from_j = 0, from_i = 0;
	uint32_t *table;
	int n = 0;

	if (n_old < EDIT_WINDOW || n_new < EDIT_WINDOW)
		return 0;
	table = index_windows(old, n_old, &n_slots);
	if (!table)
		return -ENOMEM;
	for (uint32_t i = 0; i + EDIT_WINDOW <= n_new && n < max; i++) {
		uint32_t j = *slot_of(table, n_slots, old, new + i);
		uint32_t len = EDIT_WINDOW, back = 0;

		if (j & AGAIN || j < from_j)
			continue;
		while (i + len < n_new && j + len < n_old &&
		       new[i + len] == old[j + len])
			len++;
		while (i - back > from_i && j - back > from_j &&
		       new[i - back - 1] == old[j - back - 1])
			back++;
		runs[n++] = (struct edit_run){ i - back, j - back, len + back };
		from_i = i + len;
		from_j = j + len;
		i = from_i - 1;
	}
	free(table);
	return n;
}

int edit_match(const uint32_t *old, uint32_t n_old, const uint32_t *new,
	       uint32_t n_new, struct edit_run *runs)
{
	const uint32_t most = KV_MIN(n_old, n_new);
	uint32_t head = 0, tail = 0;
	int n = 0, ret;

	while (head < most && old[head] == new[head])
		head++;
	while (tail < most - head &&
	       old[n_old - tail - 1] == new[n_new - tail - 1])
		tail++;
	if (head)
		runs[n++] = (struct edit_run){ 0, 0, head };
	ret = match_middle(old + head, n_old - head - tail, new + head,
			   n_new - head - tail, runs + n,
			   (int)EDIT_MAX_RUNS - 2);
	if (ret < 0)
		return ret;
	for (int k = n; k < n + ret; k++) {
		runs[k].i += head;
		runs[k].j += head;
	}
	n += ret;
	if (tail)
		runs[n++] =
			(struct edit_run){ n_new - tail, n_old - tail, tail };
	return n;
}

/* ---- bases --------------------------------------------------------------------- */

static int base_ok(const struct gen *g, uint32_t i)
{
	const struct serve_part *p = &g->in[i];
	const uint32_t flags = SERVE_PART_BASE | SERVE_PART_BOS;

	if (p->kind != SERVE_PART_TOKENS || p->flags & ~flags ||
	    i + 1 == g->n_in || p[1].kind != SERVE_PART_TOKENS ||
	    p[1].flags & ~SERVE_PART_BOS ||
	    p->n_tokens > llama_shape(g->model->llama)->n_ctx)
		return 0;
	for (uint32_t k = 0; k < i; k++) /* chains of chunks are not followed */
		if (g->in[k].kind == SERVE_PART_CHUNK ||
		    g->in[k].flags & SERVE_PART_REUSE)
			return 0;
	return !repair_varies(g->req->repair) &&
	       !(g->req->flags & SERVE_GEN_SCORE && i + 2 == g->n_in);
}

static int take_base(struct gen *g, const struct serve_part *p, uint32_t i_part)
{
	struct edit_base *b = &g->edit->bases[g->edit->n_bases];
	const uint32_t bos = p->flags & SERVE_PART_BOS ? 1 : 0;

	b->tokens = malloc((p->n_tokens + 1) * sizeof(*b->tokens));
	if (!b->tokens)
		return -ENOMEM;
	if (bos)
		b->tokens[0] = tokenizer_bos(llama_tokenizer(g->model->llama));
	if (p->n_tokens)
		memcpy(b->tokens + bos, p->tokens,
		       p->n_tokens * sizeof(*b->tokens));
	b->n = (uint32_t)p->n_tokens + bos;
	b->i_part = i_part;
	g->edit->n_bases++;
	return 0;
}

int edit_begin(struct gen *g)
{
	uint32_t n_bases = 0, n = 0;
	int ret = 0;

	for (uint32_t i = 0; i < g->n_in; i++)
		if (g->in[i].flags & SERVE_PART_BASE) {
			if (!g->req || !base_ok(g, i))
				return -EINVAL;
			n_bases++;
		}
	if (!n_bases)
		return 0;
	g->edit = calloc(1, sizeof(*g->edit));
	if (!g->edit)
		return -ENOMEM;
	g->edit->bases = calloc(n_bases, sizeof(*g->edit->bases));
	if (!g->edit->bases)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->n_in && !ret; i++)
		if (g->in[i].flags & SERVE_PART_BASE)
			ret = take_base(g, &g->in[i], i - g->edit->n_bases);
	for (uint32_t i = 0; i < g->n_in && !ret; i++)
		if (!(g->in[i].flags & SERVE_PART_BASE))
			g->in[n++] = g->in[i];
		else if (g->in[i].own)
			free((void *)(uintptr_t)g->in[i].tokens);
	g->n_in = ret ? g->n_in : n;
	return ret;
}

void edit_free(struct gen *g)
{
	struct edit *e = g->edit;

	if (!e)
		return;
	for (uint32_t i = 0; i < e->n_bases; i++)
		free(e->bases[i].tokens);
	for (uint32_t i = 0; i < e->n_whole; i++)
		if (e->whole[i].seg) /* cutting was not finished */
			segment_put(e->whole[i].seg);
	free(e->bases);
	free(e->whole);
	free(e);
}

/* ---- what of it is there --------------------------------------------------------- */

/* The base's tiles: which segment has them, with references, or NULL. */
struct tiles {
	struct segment **seg;
	uint32_t *block;
	uint32_t n;
};

static int find_tiles(struct gen *g, const struct edit_base *b,
		      struct map_id *id, struct tiles *t)
{
	t->n = KV_DIV_UP(b->n, SEGMENT_BLOCK);
	t->seg = calloc(t->n + 1, sizeof(struct segment *));
	t->block = calloc(t->n + 1, sizeof(*t->block));
	if (!t->seg || !t->block)
		return -ENOMEM;
	for (uint32_t i = 0; i < t->n; i++) {
		const uint32_t at = i * SEGMENT_BLOCK;
		const uint32_t n = KV_MIN(SEGMENT_BLOCK, b->n - at);

		*id = prefix_tile(*id, b->tokens + at, n,
				  i ? 0 : PREFIX_PART_BEGIN);
		t->seg[i] = gen_fitting(g, prefix_find(&g->tenant->prefix, *id,
						       b->tokens + at, n,
						       &t->block[i]));
	}
	return 0;
}

static void free_tiles(struct tiles *t)
{
	for (uint32_t i = 0; t->seg && i < t->n; i++)
		if (t->seg[i])
			segment_put(t->seg[i]);
	free(t->seg);
	free(t->block);
}

/* Tokens [j, end) of the base that lie in a row in one segment, or in none. */
static uint32_t piece(const struct tiles *t, uint32_t j, uint32_t end)
{
	const uint32_t first = j / SEGMENT_BLOCK;
	uint32_t i = first + 1;

	while (i < t->n && t->seg[i] == t->seg[first] &&
	       (!t->seg[i] || t->block[i] == t->block[first] + i - first))
		i++;
	return KV_MIN(end, i * SEGMENT_BLOCK) - j;
}

/* ---- parts ------------------------------------------------------------------------ */

static struct gen_part *new_part(struct gen *g)
{
	struct edit *e = g->edit;
	struct gen_part *p;

	if (g->n_parts == e->n_room) {
		const uint32_t room = 2 * e->n_room + 16;

		p = realloc(g->parts, room * sizeof(*p));
		if (!p)
			return NULL;
		g->parts = p;
		e->n_room = room;
	}
	p = &g->parts[g->n_parts++];
	memset(p, 0, sizeof(*p));
	return p;
}

/* n tokens to compute; with what is computed before them if that is of the same part. */
static int add_plain(struct gen *g, const struct gen_part *whole, uint32_t n)
{
	struct gen_part *p = g->n_parts ? &g->parts[g->n_parts - 1] : NULL;
	const uint32_t first = p ? p->first + p->n : 0;

	if (!n)
		return 0;
	if (p && !p->reuse && p->first >= whole->first) {
		p->n += n;
		return 0;
	}
	p = new_part(g);
	if (!p)
		return -ENOMEM;
	p->first = first;
	p->n = n;
	return 0;
}

static int add_moved(struct gen *g, struct segment *s, uint32_t from,
		     uint32_t n, enum edit_kind kind)
{
	const struct gen_part *last = g->n_parts ? &g->parts[g->n_parts - 1]
						 : NULL;
	const uint32_t first = last ? last->first + last->n : 0;
	struct gen_part *p = new_part(g);

	if (!p)
		return -ENOMEM;
	segment_get(s);
	p->first = first;
	p->n = n;
	p->reuse = 1;
	p->moved = kind;
	p->seg = s;
	p->from = from;
	p->chunk = s->ids[from / SEGMENT_BLOCK]; /* what random draws from */
	g->edit->n_moved += n;
	return 0;
}

/* A run of the part, as far as limit (of its tokens), piece by piece. */
static int add_run(struct gen *g, const struct gen_part *whole,
		   const struct tiles *t, const struct edit_run *r,
		   uint32_t limit, enum edit_kind kind)
{
	const uint32_t end = r->j + KV_MIN(r->len, limit - r->i);
	int ret = 0;

	for (uint32_t j = r->j, n; j < end && !ret; j += n) {
		const uint32_t tile = j / SEGMENT_BLOCK;
		struct segment *s = t->seg[tile];

		n = piece(t, j, end);
		ret = s && n >= EDIT_WINDOW
			      ? add_moved(g, s,
					  t->block[tile] * SEGMENT_BLOCK +
						  j % SEGMENT_BLOCK,
					  n, kind)
			      : add_plain(g, whole, n);
	}
	return ret;
}

/* Where moved tokens must end, as what comes next must be computed. */
static uint32_t moved_end(const struct gen *g)
{
	const struct edit *e = g->edit;
	const struct gen_part *last = &e->whole[e->n_whole - 1];

	return g->req->flags & SERVE_GEN_SCORE
		       ? last->first - KV_MIN(1u, last->first)
		       : g->n_prompt - 1;
}

static int cut_part(struct gen *g, const struct gen_part *whole,
		    const struct edit_base *b, const struct tiles *t)
{
	struct edit_run *runs = malloc(EDIT_MAX_RUNS * sizeof(*runs));
	const uint32_t end = moved_end(g);
	const uint32_t limit =
		end > whole->first ? KV_MIN(whole->n, end - whole->first) : 0;
	uint32_t at = 0;
	int n, ret = 0;

	if (!runs)
		return -ENOMEM;
	n = edit_match(b->tokens, b->n, g->tokens + whole->first, whole->n,
		       runs);
	if (n < 0)
		ret = n;
	for (int k = 0; k < n && !ret; k++) {
		const struct edit_run *r = &runs[k];
		const int exact = b == g->edit->bases && !r->i && !r->j;

		if (r->i >= limit)
			break;
		ret = add_plain(g, whole, r->i - at);
		if (!ret)
			ret = add_run(g, whole, t, r, limit,
				      exact ? EDIT_EXACT : EDIT_MOVED);
		at = KV_MIN(r->i + r->len, limit);
	}
	free(runs);
	return ret ? ret : add_plain(g, whole, whole->n - at);
}

/* A part as it was asked for; the whole's reference goes with it. */
static int copy_part(struct gen *g, struct gen_part *whole)
{
	struct gen_part *p = new_part(g);

	if (!p)
		return -ENOMEM;
	*p = *whole;
	p->group = NULL;
	whole->seg = NULL;
	return 0;
}

static int cut_parts(struct gen *g)
{
	struct map_id id = prefix_root(g->model->id);
	struct edit *e = g->edit;
	uint32_t i_base = 0;
	int ret = 0;

	for (uint32_t i = 0; i < e->n_whole && !ret; i++) {
		const struct edit_base *b = &e->bases[i_base];
		struct gen_part *p = &e->whole[i];
		const uint32_t *tokens = g->tokens + p->first;
		struct tiles t = { 0 };

		if (i_base < e->n_bases && b->i_part == i) {
			ret = find_tiles(g, b, &id, &t);
			if (!ret)
				ret = cut_part(g, p, b, &t);
			free_tiles(&t);
			i_base++;
			continue;
		}
		for (uint32_t at = 0; at < p->n && i_base < e->n_bases;
		     at += SEGMENT_BLOCK)
			id = prefix_tile(id, tokens + at,
					 KV_MIN(SEGMENT_BLOCK, p->n - at),
					 at ? 0 : PREFIX_PART_BEGIN);
		ret = copy_part(g, p);
	}
	return ret;
}

/* Nothing is used of it: 100 % is no reuse, and without prefixes there is none. */
static int in_vain(const struct gen *g)
{
	return g->exact || g->req->flags & SERVE_GEN_NO_REUSE ||
	       (g->req->repair && g->req->repair_permille == REPAIR_ALL);
}

/* 1: the parts are cut and hold their segments. */
static int planned(const struct gen *g)
{
	if (!g->edit->whole)
		return 0;
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (g->parts[i].moved && !g->parts[i].seg)
			return 0;
	return 1;
}

int edit_plan(struct gen *g)
{
	struct edit *e = g->edit;
	int ret;

	if (!e || in_vain(g) || planned(g))
		return 0;
	if (!e->whole) {
		e->whole = g->parts;
		e->n_whole = g->n_parts;
		g->parts = NULL;
	}
	g->n_parts = 0;
	e->n_moved = 0;
	repair_free(g);
	g->groups = NULL;
	g->n_groups = 0;
	ret = cut_parts(g);
	for (uint32_t i = 0; i < g->n_parts; i++) {
		g->parts[i].gen = g;
		list_init(&g->parts[i].waiting);
	}
	if (!ret)
		ret = repair_plan(g);
	stat_add(g->tenant->st_edits, 1);
	stat_add(g->tenant->st_edit_tokens, e->n_moved);
	return ret;
}

uint32_t edit_n_moved(const struct gen *g)
{
	return g->edit ? g->edit->n_moved : 0;
}

uint32_t edit_exact_end(const struct gen *g)
{
	for (uint32_t i = 0; i < g->n_parts && g->edit; i++)
		if (g->parts[i].moved)
			return g->parts[i].first;
	return UINT32_MAX;
}
