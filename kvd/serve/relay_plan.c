/*
 * relay_plan.c - who shares which spans; see relay.h
 */
#include "kvd/serve/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 64u /* of a plan: their queries and states stay in cache */
#define WORD	 64u /* tokens of a word of a skip mask */
#define MAX_CUTS 4u /* passes; what is then still uneven is not shared */
#define MAX_SPANS \
	16384u /* of a batch: to look at more costs more than it saves */

/* Spans that begin at the same key and are seen in one way; those too short to be cut by length. */
struct place {
	const struct relay_lane *like; /* shape and temperature */
	const void *k;
	uint32_t n_tokens; /* of all; 0: as many as can be cut, or more */
	uint32_t first; /* use */
	uint32_t n; /* uses */
	uint32_t n_left; /* not done */
	uint32_t n_here; /* lanes that stand at it, while planning */
	uint32_t n_short, n_long; /* tokens */
};

struct finder {
	struct attn_scratch *scratch;
	struct relay_lane *lanes; /* [n_lanes] */
	uint32_t n_lanes;
	struct place *places; /* [n_places] */
	uint32_t n_places;
	struct relay_use *uses; /* [n_uses] */
	uint32_t n_uses;
	uint32_t *table, mask; /* places by their k; 0: none, else place + 1 */
};

/* ---- places --------------------------------------------------------------------- */

static int same_way(const struct relay_lane *a, const struct relay_lane *b)
{
	return a->seen->temperature == b->seen->temperature &&
	       !memcmp(a->p->it->shape, b->p->it->shape,
		       sizeof(*a->p->it->shape));
}

/* Every token of it is behind the row, or the row's own. */
static int seen_whole(const struct relay_lane *l, const struct kern_span *s)
{
	const uint32_t last = s->n_tokens - 1;

	return s->n_tokens &&
	       l->p->pos[0] >= s->pos + (s->at ? s->at[last] : last);
}

/* Where s may be cut at most at n: whole words, and in whole pages or inside of one. */
static uint32_t cut_at(const struct kern_span *s, uint32_t n)
{
	const uint32_t unit = s->page_tokens % WORD ? 2 * s->page_tokens : WORD;

	return n / unit * unit;
}

static uint32_t *slot_of(const struct finder *f, const struct place *like)
{
	uint64_t h = (uint64_t)(uintptr_t)like->k * 0x9e3779b97f4a7c15ull;

	for (h = (h >> 32) + like->n_tokens;; h++) {
		uint32_t *slot = &f->table[h & f->mask];
		const struct place *p;

		if (!*slot)
			return slot;
		p = &f->places[*slot - 1];
		if (p->k == like->k && p->n_tokens == like->n_tokens &&
		    same_way(p->like, like->like))
			return slot;
	}
}

static void add_use(struct finder *f, uint32_t lane, uint32_t span)
{
	struct relay_lane *l = &f->lanes[lane];
	const struct kern_span *s = &l->spans[span];
	const struct place new = { .like = l,
				   .k = s->k,
				   .n_tokens = cut_at(s, s->n_tokens)
						       ? 0
						       : s->n_tokens,
				   .first = RELAY_NONE,
				   .n_short = UINT32_MAX };
	uint32_t *slot = slot_of(f, &new);
	struct place *p;

	if (!*slot) {
		f->places[f->n_places] = new;
		*slot = ++f->n_places;
	}
	p = &f->places[*slot - 1];
	f->uses[f->n_uses] = (struct relay_use){
		.lane = lane, .span = span, .place = *slot - 1, .next = p->first
	};
	l->use[span] = f->n_uses;
	p->first = f->n_uses++;
	p->n++;
	p->n_short = KV_MIN(p->n_short, s->n_tokens);
	p->n_long = KV_MAX(p->n_long, s->n_tokens);
}

static uint32_t count_spans(const struct finder *f)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < f->n_lanes; i++)
		n += f->lanes[i].n_spans;
	return n;
}

/* All spans of all lanes, by where they begin. */
static int find_places(struct finder *f)
{
	const uint32_t n = count_spans(f);
	uint32_t size = 16;

	while (size < 2 * n)
		size *= 2;
	f->mask = size - 1;
	f->n_places = f->n_uses = 0;
	f->places = attn_scratch_alloc(f->scratch, n * sizeof(*f->places));
	f->uses = attn_scratch_alloc(f->scratch, n * sizeof(*f->uses));
	f->table = attn_scratch_alloc(f->scratch, size * sizeof(*f->table));
	if (!f->places || !f->uses || !f->table)
		return -ENOMEM;
	memset(f->table, 0, size * sizeof(*f->table));
	for (uint32_t i = f->n_lanes; i-- > 0;) { /* uses are put in front */
		struct relay_lane *l = &f->lanes[i];

		l->use = attn_scratch_alloc(f->scratch,
					    (l->n_spans + 1) * sizeof(*l->use));
		if (!l->use)
			return -ENOMEM;
		for (uint32_t k = l->n_spans; k-- > 0;) {
			l->use[k] = RELAY_NONE;
			if (seen_whole(l, &l->spans[k]))
				add_use(f, i, k);
		}
	}
	return 0;
}

/* ---- spans of unequal length -------------------------------------------------------- */

/* Tokens [from, from + n) of s, which lie in one page or begin one. */
static struct kern_span piece(const struct relay_lane *l,
			      const struct kern_span *s, uint32_t from,
			      uint32_t n)
{
	const struct attn_shape *g = l->p->it->shape;
	const size_t skew =
		from / s->page_tokens * s->page_bytes +
		from % s->page_tokens * g->head_dim * kern_type_bytes(g->type);
	struct kern_span out = *s;

	out.k = (const char *)s->k + skew;
	out.v = (const char *)s->v + skew;
	out.n_tokens = n;
	if (s->at)
		out.at = s->at + from;
	else
		out.pos += from;
	if (s->skip)
		out.skip = s->skip + from / WORD;
	return out;
}

/* Span i of l becomes its first at tokens and the rest, none of which begins in a page but
 * to end in it. */
static int cut_span(struct finder *f, struct relay_lane *l, uint32_t i,
		    uint32_t at)
{
	const struct kern_span *s = &l->spans[i];
	const uint32_t n = s->n_tokens, in_page = at % s->page_tokens;
	struct kern_span *to =
		attn_scratch_alloc(f->scratch, (l->n_spans + 2) * sizeof(*to));
	uint32_t k = i, from = at;

	if (!to)
		return -ENOMEM;
	memcpy(to, l->spans, i * sizeof(*to));
	to[k++] = piece(l, s, 0, at);
	if (in_page && n - at > s->page_tokens - in_page) {
		to[k++] = piece(l, s, at, s->page_tokens - in_page);
		from += s->page_tokens - in_page;
	}
	to[k++] = piece(l, s, from, n - from);
	memcpy(to + k, s + 1, (l->n_spans - i - 1) * sizeof(*to));
	l->n_spans += k - i - 1;
	l->spans = to;
	return 0;
}

/* Cut what is longer than the shortest that begins alike. 1: something was cut. */
static int cut_lane(struct finder *f, struct relay_lane *l)
{
	int cut = 0;

	for (uint32_t i = l->n_spans; i-- > 0;) { /* those before stay */
		const struct place *p;
		uint32_t at;

		if (l->use[i] == RELAY_NONE)
			continue;
		p = &f->places[f->uses[l->use[i]].place];
		at = cut_at(&l->spans[i], p->n_short);
		if (p->n_short == p->n_long || at >= l->spans[i].n_tokens)
			continue;
		if (cut_span(f, l, i, at))
			return -ENOMEM;
		cut = 1;
	}
	return cut;
}

static int cut_all(struct finder *f)
{
	int cut = 0;

	for (uint32_t i = 0; i < f->n_lanes; i++) {
		const int ret = cut_lane(f, &f->lanes[i]);

		if (ret < 0)
			return ret;
		cut |= ret;
	}
	return cut;
}

/* Not all are of one row. */
static int is_shared(const struct finder *f, const struct place *p)
{
	const struct prepared *row = f->lanes[f->uses[p->first].lane].p;

	for (uint32_t i = p->first; i != RELAY_NONE; i = f->uses[i].next)
		if (f->lanes[f->uses[i].lane].p != row)
			return 1;
	return 0;
}

/* 1: something is shared. */
static int find_shared(struct finder *f)
{
	int ret, any = 0;

	for (uint32_t i = 0; i <= MAX_CUTS; i++) {
		ret = find_places(f);
		if (ret)
			return ret;
		if (i == MAX_CUTS)
			break;
		ret = cut_all(f);
		if (ret < 0)
			return ret;
		if (!ret)
			break;
	}
	for (uint32_t i = 0; i < f->n_places; i++) {
		struct place *p = &f->places[i];
		const int shared = p->n_short == p->n_long && is_shared(f, p);

		any |= shared;
		p->n_left = shared ? p->n : 0;
		for (uint32_t u = p->first; u != RELAY_NONE && !shared;
		     u = f->uses[u].next)
			f->lanes[f->uses[u].lane].use[f->uses[u].span] =
				RELAY_NONE;
	}
	return any;
}

/* ---- steps ------------------------------------------------------------------------- */

struct planner {
	struct finder f;
	struct relay_plan *plan;
	uint32_t kept_max; /* tiles */
};

static struct place *place_of(const struct planner *x,
			      const struct relay_use *u)
{
	return &x->f.places[u->place];
}

/* Where lane i stands; NULL: at its end. */
static struct place *stands_at(const struct planner *x, uint32_t i)
{
	const struct relay_lane *l = &x->f.lanes[i];

	return l->at < l->n_spans ? place_of(x, &x->f.uses[l->use[l->at]])
				  : NULL;
}

static struct relay_step *add_step(struct planner *x, struct relay_step step)
{
	struct relay_step *s = &x->plan->steps[x->plan->n_steps++];

	*s = step;
	return s;
}

/* Spans [from, to) of the lane, which nobody else wants. */
static void own(struct planner *x, uint32_t lane, uint32_t from, uint32_t to)
{
	if (from < to)
		add_step(x, (struct relay_step){ .kind = RELAY_OWN,
						 .lane = lane,
						 .span = from,
						 .n = to - from });
}

/* The lane goes on by itself until it stands at what others want too, or at its end. */
static void advance(struct planner *x, uint32_t lane)
{
	struct relay_lane *l = &x->f.lanes[lane];
	uint32_t from = l->at;

	for (; l->at < l->n_spans; l->at++) {
		struct relay_use *u = l->use[l->at] == RELAY_NONE
					      ? NULL
					      : &x->f.uses[l->use[l->at]];

		if (u && u->done) {
			own(x, lane, from, l->at);
			add_step(x, (struct relay_step){ .kind = RELAY_MERGE,
							 .lane = lane,
							 .span = l->at,
							 .n = 1,
							 .tiles = u->tiles,
							 .stride = u->stride });
			from = l->at + 1;
		} else if (u && place_of(x, u)->n_left > 1) {
			break;
		} else if (u) { /* the others have had it */
			u->done = 1;
			place_of(x, u)->n_left = 0;
		}
	}
	own(x, lane, from, l->at);
}

static uint32_t n_later(const struct place *p)
{
	return p->n_left - p->n_here;
}

/*
 * Where to go on together: where fewest are still to come, of these where most stand. NULL:
 * all lanes are at their ends.
 */
static struct place *next_place(struct planner *x)
{
	struct place *best = NULL, *p;

	for (uint32_t i = 0; i < x->f.n_lanes; i++)
		if ((p = stands_at(x, i)))
			p->n_here = 0;
	for (uint32_t i = 0; i < x->f.n_lanes; i++)
		if ((p = stands_at(x, i)))
			p->n_here++;
	for (uint32_t i = 0; i < x->f.n_lanes; i++) {
		p = stands_at(x, i);
		if (p &&
		    (!best || n_later(p) < n_later(best) ||
		     (n_later(p) == n_later(best) && p->n_here > best->n_here)))
			best = p;
	}
	return best;
}

static uintptr_t skip_of(const struct planner *x, const struct relay_use *u)
{
	return (uintptr_t)x->f.lanes[u->lane].spans[u->span].skip;
}

/* Users of the place who stand at it, or come later; those of one mask side by side. */
static uint32_t add_users(struct planner *x, const struct place *p, int later)
{
	struct relay_plan *plan = x->plan;
	const uint32_t from = plan->n_users;

	for (uint32_t i = p->first; i != RELAY_NONE; i = x->f.uses[i].next) {
		struct relay_use *u = &x->f.uses[i];
		uint32_t k = plan->n_users;

		if (u->done || (x->f.lanes[u->lane].at != u->span) != later)
			continue;
		for (;
		     k > from && skip_of(x, plan->users[k - 1]) > skip_of(x, u);
		     k--)
			plan->users[k] = plan->users[k - 1];
		plan->users[k] = u;
		plan->n_users++;
	}
	return plan->n_users - from;
}

static void together(struct planner *x, struct place *p)
{
	struct relay_plan *plan = x->plan;
	const uint32_t n_tiles = KV_DIV_UP(p->n_long, KERN_KV_BLOCK);
	struct relay_step *s =
		add_step(x, (struct relay_step){ .kind = RELAY_TOGETHER,
						 .first = plan->n_users,
						 .tiles = plan->n_kept });
	uint32_t n;

	s->n_now = add_users(x, p, 0);
	if (plan->n_kept + (uint64_t)n_tiles * (p->n_left - s->n_now) <=
	    x->kept_max)
		s->n_later = add_users(x, p, 1);
	s->stride = s->n_later;
	n = s->n_now + s->n_later;
	for (uint32_t i = 0; i < n; i++) {
		struct relay_use *u = plan->users[s->first + i];

		u->done = 1;
		if (i < s->n_now) {
			x->f.lanes[u->lane].at++;
			continue;
		}
		u->tiles = s->tiles + i - s->n_now;
		u->stride = s->stride;
	}
	p->n_left -= n;
	plan->n_kept += n_tiles * s->n_later;
	plan->n_most = KV_MAX(plan->n_most, n);
}

static int schedule(struct planner *x)
{
	struct attn_scratch *s = x->f.scratch;
	const uint32_t n = count_spans(&x->f);
	struct place *p;

	/* a span is one's own or of several, and may be merged afterwards */
	x->plan->steps = attn_scratch_alloc(s, 3 * n * sizeof(*x->plan->steps));
	x->plan->users = attn_scratch_alloc(s, n * sizeof(*x->plan->users));
	if (!x->plan->steps || !x->plan->users)
		return -ENOMEM;
	do {
		for (uint32_t i = 0; i < x->f.n_lanes; i++)
			advance(x, i);
		p = next_place(x);
		if (p)
			together(x, p);
	} while (p);
	return 0;
}

/* ---- rows that have to do with each other ------------------------------------------- */

/* Lanes of the rows. */
static int find_lanes(struct finder *f, struct prepared *const *p, uint32_t n)
{
	uint32_t n_lanes = 0;

	for (uint32_t i = 0; i < n; i++)
		n_lanes += p[i]->n_seen;
	f->n_lanes = 0;
	f->lanes = attn_scratch_alloc(f->scratch, n_lanes * sizeof(*f->lanes));
	if (!f->lanes)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < p[i]->n_seen; k++)
			f->lanes[f->n_lanes++] = (struct relay_lane){
				.p = p[i],
				.seen = &p[i]->seen[k],
				.spans = p[i]->seen[k].spans,
				.n_spans = p[i]->seen[k].n_spans,
			};
	return 0;
}

static uint32_t root(uint32_t *of, uint32_t i)
{
	while (of[i] != i)
		i = of[i] = of[of[i]];
	return i;
}

/* row[lane] is in the group of row of[row[lane]]. */
static void join_rows(const struct finder *f, const uint32_t *row, uint32_t *of)
{
	for (uint32_t i = 0; i < f->n_places; i++) {
		const uint32_t first = f->places[i].first;

		for (uint32_t u = first; u != RELAY_NONE; u = f->uses[u].next) {
			const uint32_t a = root(of, row[f->uses[u].lane]);
			const uint32_t b = root(of, row[f->uses[first].lane]);

			of[KV_MAX(a, b)] = KV_MIN(a, b);
		}
	}
}

/* of[i]: the first of the rows that row i shares with, directly or by others. */
static int find_groups(struct attn_scratch *s, struct prepared *const *p,
		       uint32_t n, uint32_t *of)
{
	struct finder f = { .scratch = s };
	uint32_t *row;

	if (find_lanes(&f, p, n))
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		of[i] = i;
	if (count_spans(&f) > MAX_SPANS)
		return 0;
	if (find_places(&f))
		return -ENOMEM;
	row = attn_scratch_alloc(s, f.n_lanes * sizeof(*row));
	if (!row)
		return -ENOMEM;
	for (uint32_t i = 0, k = 0; i < n; i++)
		for (uint32_t j = 0; j < p[i]->n_seen; j++)
			row[k++] = i;
	join_rows(&f, row, of);
	for (uint32_t i = 0; i < n; i++)
		of[i] = root(of, i);
	return 0;
}

/* 1: the rows share something, and plan is theirs. */
static int make_plan(struct attn_scratch *s, struct prepared **p, uint32_t n,
		     struct relay_plan *plan)
{
	const struct attn_shape *g = p[0]->it->shape;
	const size_t tile =
		(size_t)g->n_heads * (g->head_dim + 2) * sizeof(float);
	struct planner x = { .f = { .scratch = s },
			     .plan = plan,
			     .kept_max = (uint32_t)(RELAY_KEPT_BYTES / tile) };
	int ret;

	*plan = (struct relay_plan){ .p = p, .n = n };
	ret = find_lanes(&x.f, p, n);
	ret = ret ? ret : find_shared(&x.f);
	if (ret <= 0)
		return ret;
	ret = schedule(&x);
	plan->lanes = x.f.lanes;
	plan->n_lanes = x.f.n_lanes;
	return ret ? ret : 1;
}

int relay_plan(struct attn_scratch *s, struct prepared **p, uint32_t n,
	       struct relay_plan *plans)
{
	uint32_t *of = attn_scratch_alloc(s, 2 * n * sizeof(*of));
	uint32_t *size = of + n, n_plans = 0;

	if (!of || find_groups(s, p, n, of))
		return -ENOMEM;
	memset(size, 0, n * sizeof(*size));
	for (uint32_t i = 0; i < n; i++)
		size[of[i]]++;
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t left = KV_MIN(size[of[i]], MAX_ROWS);
		struct prepared **list;
		uint32_t n_list = 0;
		int ret;

		if (left < 2 || !p[i])
			continue;
		list = attn_scratch_alloc(s, left * sizeof(struct prepared *));
		if (!list)
			return -ENOMEM;
		for (uint32_t k = i; n_list < left; k++)
			if (of[k] == of[i] && p[k]) {
				list[n_list++] = p[k];
				p[k] = NULL;
			}
		size[of[i]] -= left;
		ret = make_plan(s, list, left, &plans[n_plans]);
		if (ret < 0)
			return ret;
		n_plans += (uint32_t)ret;
	}
	return (int)n_plans;
}
