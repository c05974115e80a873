/*
 * relay.c - rows of several sequences that begin with the same segments
 *
 * RelayAttention (Zhu et al. 2024, arXiv:2402.14808): what requests share is read once for
 * all of their rows. Rows whose lists begin alike form a tree; at each node the
 * rows below go through the node's spans together, then on by themselves. Each row
 * meets its spans in its own order, tile by tile, from its own state, so the bits are those
 * of a row alone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/attn_priv.h"

#define MAX_ROWS 64u /* of a group: their queries and states stay in cache */

/* One tree: rows in the order of their lists. */
struct group {
	struct prepared **p; /* [n] */
	uint32_t n;
	size_t q_row; /* elements of a row's queries */
	char *q; /* [variant][n][q_row] */
	int64_t *pos; /* [n] */
	float *o, *m, *l; /* [n] states */
	struct relay *relay;
};

struct relay {
	struct group *groups;
	uint32_t n_groups, n_heads; /* tasks: groups times heads */
	struct stat *st_bytes, *st_shared;
};

/* ---- which lists begin alike ----------------------------------------------------- */

static int order(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

static int by_span(const struct kern_span *a, const struct kern_span *b)
{
	int d = order((uintptr_t)a->k, (uintptr_t)b->k);

	d = d ? d : order(a->n_tokens, b->n_tokens);
	d = d ? d : order((uint64_t)a->pos, (uint64_t)b->pos);
	d = d ? d : order(a->q_variant, b->q_variant);
	return d ? d : order((uintptr_t)a->skip, (uintptr_t)b->skip);
}

/* By shape, then span by span. */
static int by_list(const void *x, const void *y)
{
	const struct prepared *a = *(struct prepared *const *)x;
	const struct prepared *b = *(struct prepared *const *)y;
	const struct seen *s = a->seen, *t = b->seen;
	int d = memcmp(a->it->shape, b->it->shape, sizeof(*a->it->shape));

	for (uint32_t i = 0; !d && i < s->n_spans && i < t->n_spans; i++) {
		d = by_span(&s->spans[i], &t->spans[i]);
		d = d ? d
		      : order((uint64_t)a->delta[s->spans[i].q_variant],
			      (uint64_t)b->delta[t->spans[i].q_variant]);
	}
	return d ? d : order(s->n_spans, t->n_spans);
}

/* Spans from from on that two rows have in common. */
static uint32_t common(const struct prepared *a, const struct prepared *b,
		       uint32_t from)
{
	const struct seen *s = a->seen, *t = b->seen;
	uint32_t i = from;

	while (i < s->n_spans && i < t->n_spans &&
	       !by_span(&s->spans[i], &t->spans[i]) &&
	       a->delta[s->spans[i].q_variant] ==
		       b->delta[t->spans[i].q_variant])
		i++;
	return i - from;
}

static int alike(const struct prepared *a, const struct prepared *b)
{
	return !memcmp(a->it->shape, b->it->shape, sizeof(*a->it->shape)) &&
	       common(a, b, 0);
}

/* ---- one tree, one head ------------------------------------------------------------ */

static uint64_t span_bytes(const struct prepared *p, uint32_t from, uint32_t n)
{
	const struct attn_shape *g = p->it->shape;
	uint64_t tokens = 0;

	for (uint32_t i = from; i < from + n; i++)
		tokens += p->seen->spans[i].n_tokens;
	return tokens * 2 * g->head_dim * kern_type_bytes(g->type);
}

uint64_t attn_read_bytes(const struct prepared *p)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < p->n_seen; i++) {
		struct prepared one = *p;

		one.seen = &p->seen[i];
		bytes += span_bytes(&one, 0, one.seen->n_spans);
	}
	return bytes * p->it->shape->n_kv_heads;
}

/* Rows [a, b) of the group together over n spans from from on, as row a has them. */
static void together(const struct group *g, uint32_t a, uint32_t b,
		     uint32_t from, uint32_t n, uint32_t head)
{
	const struct prepared *p = g->p[a];
	const struct attn_shape *s = p->it->shape;
	const uint64_t bytes = span_bytes(p, from, n);
	const struct kern_attn k = {
		.type = s->type,
		.n_heads = s->n_heads,
		.n_kv_heads = s->n_kv_heads,
		.head_dim = s->head_dim,
		.scale = s->scale,
		.q = g->q,
		.q_variant_elems = g->n * g->q_row,
		.q_pos = g->pos,
		.n_rows = g->n,
		.spans = p->seen->spans + from,
		.n_spans = n,
		.o = g->o,
		.m = g->m,
		.l = g->l,
		.kv_head_from = head,
		.kv_head_to = head + 1,
		.row_from = a,
		.row_to = b,
	};
	const int ret = kern_attn(&k);

	for (uint32_t i = a; i < b && ret; i++)
		g->p[i]->it->ret = ret;
	stat_add(g->relay->st_bytes, bytes);
	stat_add(g->relay->st_shared, bytes * (b - a - 1));
}

/* Row i from span from on. */
static void alone(const struct group *g, uint32_t i, uint32_t from,
		  uint32_t head)
{
	struct prepared p = *g->p[i];
	struct seen rest = *p.seen;
	struct task t = { &p, 0, 1, head, head + 1 };
	struct task_list l = { &t, 1, 1 };

	stat_add(g->relay->st_bytes,
		 span_bytes(g->p[i], from, rest.n_spans - from));
	rest.spans += from;
	rest.n_spans -= from;
	p.seen = &rest;
	attn_run_spans(&l, 0);
}

/* Rows [a, b), which have from spans behind them. The depth is that of the tree. */
static void rows(const struct group *g, uint32_t a, uint32_t b, uint32_t from,
		 uint32_t head)
{
	uint32_t n;

	if (b - a == 1) {
		alone(g, a, from, head);
		return;
	}
	n = common(g->p[a], g->p[b - 1], from); /* and so have those between */
	if (n)
		together(g, a, b, from, n, head);
	from += n;
	for (uint32_t i = a, j; i < b; i = j) {
		j = i + 1;
		while (j < b && common(g->p[i], g->p[j], from))
			j++;
		rows(g, i, j, from, head);
	}
}

static void run_group(void *arg, uint32_t i)
{
	const struct relay *r = arg;
	const struct group *g = &r->groups[i / r->n_heads];
	const uint32_t head = i % r->n_heads;

	if (head >= g->p[0]->it->shape->n_kv_heads)
		return;
	for (uint32_t k = 0; k < g->n; k++) {
		struct task t = { g->p[k], 0, 1, head, head + 1 };
		struct task_list l = { &t, 1, 1 };

		attn_run_clear(&l, 0);
	}
	rows(g, 0, g->n, 0, head);
	for (uint32_t k = 0; k < g->n; k++) {
		struct task t = { g->p[k], 0, 1, head, head + 1 };
		struct task_list l = { &t, 1, 1 };

		attn_run_finish(&l, 0);
	}
}

/* ---- all trees ------------------------------------------------------------------------ */

/* Queries and states of the rows side by side. */
static int gather(struct group *g, struct attn_scratch *s)
{
	const struct attn_shape *shape = g->p[0]->it->shape;
	const size_t es = kern_type_bytes(shape->type);
	uint32_t n_variants = 0;

	g->q_row = (size_t)shape->n_heads * shape->head_dim;
	for (uint32_t i = 0; i < g->n; i++)
		n_variants = KV_MAX(n_variants, g->p[i]->n_variants);
	g->q = attn_scratch_alloc(s, n_variants * g->n * g->q_row * es);
	g->pos = attn_scratch_alloc(s, g->n * sizeof(*g->pos));
	g->o = attn_scratch_alloc(s, g->n * g->q_row * sizeof(float));
	g->m = attn_scratch_alloc(s, g->n * shape->n_heads * sizeof(float));
	g->l = attn_scratch_alloc(s, g->n * shape->n_heads * sizeof(float));
	if (!g->q || !g->pos || !g->o || !g->m || !g->l)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->n; i++) {
		struct prepared *p = g->p[i];

		for (uint32_t v = 0; v < p->n_variants; v++)
			memcpy(g->q + (v * g->n + i) * g->q_row * es,
			       p->q + v * g->q_row * es, g->q_row * es);
		g->pos[i] = p->pos[0];
		p->seen->o = g->o + i * g->q_row;
		p->seen->m = g->m + (size_t)i * shape->n_heads;
		p->seen->l = g->l + (size_t)i * shape->n_heads;
	}
	return 0;
}

static int may_share(const struct prepared *p)
{
	return p->it->n_rows == 1 && !p->it->rows_at && p->n_seen == 1 &&
	       p->seen->n_spans;
}

/* Rows p [n] in order, alike from the first on: groups of them, others to rest. */
static int add_groups(struct relay *r, struct attn_scratch *s,
		      struct prepared **p, uint32_t n, struct prepared *rest,
		      uint32_t *n_rest)
{
	for (uint32_t i = 0, j; i < n; i = j) {
		struct group *g = &r->groups[r->n_groups];

		j = i + 1;
		while (j < n && j - i < MAX_ROWS && alike(p[i], p[j]))
			j++;
		if (j - i == 1) {
			rest[(*n_rest)++] = *p[i];
			continue;
		}
		*g = (struct group){ .p = p + i, .n = j - i, .relay = r };
		if (gather(g, s))
			return -ENOMEM;
		r->n_heads = KV_MAX(r->n_heads, p[i]->it->shape->n_kv_heads);
		r->n_groups++;
	}
	return 0;
}

int attn_relay(struct pool *pool, struct attn_scratch *s, struct prepared *list,
	       uint32_t *n)
{
	struct relay r = { .st_bytes = s->st_bytes, .st_shared = s->st_shared };
	struct prepared **p = attn_scratch_alloc(s, *n * sizeof(*p));
	struct prepared *rest = attn_scratch_alloc(s, *n * sizeof(*rest));
	uint32_t n_p = 0, n_rest = 0;

	r.groups = attn_scratch_alloc(s, *n * sizeof(*r.groups));
	if (!p || !rest || !r.groups)
		return -ENOMEM;
	for (uint32_t i = 0; i < *n; i++)
		if (may_share(&list[i]))
			p[n_p++] = &list[i];
		else
			rest[n_rest++] = list[i];
	if (n_p < 2)
		return 0;
	qsort(p, n_p, sizeof(*p), by_list);
	if (add_groups(&r, s, p, n_p, rest, &n_rest))
		return -ENOMEM;
	if (r.n_groups == 0)
		return 0;
	if (pool)
		pool_run(pool, run_group, &r, r.n_groups * r.n_heads);
	for (uint32_t i = 0; !pool && i < r.n_groups * r.n_heads; i++)
		run_group(&r, i);
	memcpy(list, rest, n_rest * sizeof(*rest));
	*n = n_rest;
	return 0;
}
