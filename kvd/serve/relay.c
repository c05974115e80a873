/*
 * relay.c - what rows of several sequences share is read once
 *
 * RelayAttention (Zhu et al. 2024, arXiv:2402.14808), for any segment at any place of the
 * lists: relay_plan.c says who goes over what with whom; here it is done, head by head.
 * Every row's tiles are merged in the order of its list, so the bits are those of a row
 * alone.
 */
#include "kvd/serve/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE	 256u /* tokens: K and V of a head stay in cache meanwhile */
#define MAX_SEEN 4u /* ways in which a row sees its tokens */

/* One plan and head: all that is needed to run it. */
struct job {
	const struct relay_plan *plan;
	struct relay *relay;
	uint32_t head, group; /* kv head; query heads of it */
	char *q; /* [n_most][group][head_dim] typed */
	int64_t *pos; /* [n_most], behind everything */
	float *o, *m, *l; /* [n_most][group] states of those who stand there */
	float *kept_o, *kept_m, *kept_l; /* [n_kept][group] */
};

struct relay {
	struct relay_plan *plans;
	struct job *jobs;
	uint32_t n_jobs;
	struct stat *st_bytes, *st_shared;
};

/* ---- bytes -------------------------------------------------------------------------- */

static uint64_t bytes_of(const struct prepared *p, const struct kern_span *s,
			 uint32_t n)
{
	const struct attn_shape *g = p->it->shape;
	uint64_t tokens = 0;

	for (uint32_t i = 0; i < n; i++)
		tokens += s[i].n_tokens;
	return tokens * 2 * g->head_dim * kern_type_bytes(g->type);
}

uint64_t attn_read_bytes(const struct prepared *p)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < p->n_seen; i++)
		bytes += bytes_of(p, p->seen[i].spans, p->seen[i].n_spans);
	return bytes * p->it->shape->n_kv_heads;
}

/* ---- steps -------------------------------------------------------------------------- */

static const struct attn_shape *shape_of(const struct job *j)
{
	return j->plan->p[0]->it->shape;
}

/* Elements of a row's query heads of this job. */
static size_t row_elems(const struct job *j)
{
	return (size_t)j->group * shape_of(j)->head_dim;
}

/* One kv head's share as if there were no other; no rows, spans or states yet. */
static struct kern_attn one_head(const struct job *j, const struct seen *seen)
{
	const struct attn_shape *g = shape_of(j);

	return (struct kern_attn){
		.type = g->type,
		.n_heads = j->group,
		.n_kv_heads = 1,
		.head_dim = g->head_dim,
		.scale = g->scale / seen->temperature,
		.q_pos = j->pos,
		.kv_head_to = 1,
	};
}

/* The lane's own state. */
static struct kern_attn own_state(const struct job *j,
				  const struct relay_lane *l)
{
	struct kern_attn a = one_head(j, l->seen);
	const size_t first = (size_t)j->head * j->group;

	a.o = l->seen->o + first * a.head_dim;
	a.m = l->seen->m + first;
	a.l = l->seen->l + first;
	a.n_rows = a.row_to = 1;
	return a;
}

static void run(const struct job *j, const struct relay_use *u,
		const struct kern_attn *a)
{
	const int ret = kern_attn(a);

	if (ret)
		j->plan->lanes[u->lane].p->it->ret = ret;
}

/* Spans of one lane, with its own queries and states. */
static void run_own(const struct job *j, const struct relay_step *s)
{
	const struct relay_lane *l = &j->plan->lanes[s->lane];
	struct prepared p = *l->p;
	struct seen seen = *l->seen;
	struct task t = { &p, 0, 1, j->head, j->head + 1 };
	struct task_list list = { &t, 1, 1 };

	stat_add(j->relay->st_bytes, bytes_of(&p, l->spans + s->span, s->n));
	seen.spans = l->spans + s->span;
	seen.n_spans = s->n;
	p.seen = &seen;
	p.n_seen = 1;
	attn_run_spans(&list, 0);
}

static void run_merge(const struct job *j, const struct relay_step *s)
{
	const struct relay_lane *l = &j->plan->lanes[s->lane];
	const struct kern_attn to = own_state(j, l);
	const size_t first = (size_t)s->tiles * j->group;
	struct kern_attn from = to;

	from.o = j->kept_o + first * to.head_dim;
	from.m = j->kept_m + first;
	from.l = j->kept_l + first;
	from.tile_states = (size_t)s->stride * j->group;
	kern_attn_merge(&to, &from,
			KV_DIV_UP(l->spans[s->span].n_tokens, KERN_KV_BLOCK));
}

/* Queries of user i to row i; into (or, back, out of) the states of row i as well. */
static void gather(const struct job *j, const struct relay_step *s)
{
	const struct attn_shape *g = shape_of(j);
	const size_t n = row_elems(j), es = kern_type_bytes(g->type);

	for (uint32_t i = 0; i < s->n_now + s->n_later; i++) {
		const struct relay_use *u = j->plan->users[s->first + i];
		const struct relay_lane *l = &j->plan->lanes[u->lane];
		const size_t at =
			l->spans[u->span].q_variant * n * g->n_kv_heads +
			j->head * n;

		memcpy(j->q + i * n * es, l->p->q + at * es, n * es);
	}
	for (uint32_t i = 0; i < s->n_now; i++) {
		const struct relay_use *u = j->plan->users[s->first + i];
		const struct kern_attn a =
			own_state(j, &j->plan->lanes[u->lane]);

		memcpy(j->o + i * n, a.o, n * sizeof(float));
		memcpy(j->m + i * j->group, a.m, j->group * sizeof(float));
		memcpy(j->l + i * j->group, a.l, j->group * sizeof(float));
	}
}

static void scatter(const struct job *j, const struct relay_step *s)
{
	const size_t n = row_elems(j);

	for (uint32_t i = 0; i < s->n_now; i++) {
		const struct relay_use *u = j->plan->users[s->first + i];
		const struct kern_attn a =
			own_state(j, &j->plan->lanes[u->lane]);

		memcpy(a.o, j->o + i * n, n * sizeof(float));
		memcpy(a.m, j->m + i * j->group, j->group * sizeof(float));
		memcpy(a.l, j->l + i * j->group, j->group * sizeof(float));
	}
}

/* Users [from, to) of the step, which have one mask and one kind of state. */
static void run_alike(const struct job *j, const struct relay_step *s,
		      uint32_t from, uint32_t to, uint32_t t, uint32_t n)
{
	const struct relay_use *u = j->plan->users[s->first + from];
	const struct relay_lane *l = &j->plan->lanes[u->lane];
	const uint32_t base = from < s->n_now ? 0 : s->n_now;
	const size_t first =
		((size_t)s->tiles + (size_t)t / KERN_KV_BLOCK * s->stride) *
		j->group;
	struct kern_span span = l->spans[u->span];
	struct kern_attn a = one_head(j, l->seen);

	span.k = (const char *)span.k + t / span.page_tokens * span.page_bytes +
		 j->head * span.head_bytes;
	span.v = (const char *)span.v + t / span.page_tokens * span.page_bytes +
		 j->head * span.head_bytes;
	span.n_tokens = n;
	span.pos = 0;
	span.at = NULL;
	span.q_variant = 0;
	if (span.skip)
		span.skip += t / 64;
	a.spans = &span;
	a.n_spans = 1;
	a.q = j->q + base * row_elems(j) * kern_type_bytes(a.type);
	a.row_from = from - base;
	a.row_to = to - base;
	if (base) {
		a.n_rows = s->n_later;
		a.o = j->kept_o + first * a.head_dim;
		a.m = j->kept_m + first;
		a.l = j->kept_l + first;
		a.tile_states = (size_t)s->stride * j->group;
	} else {
		a.n_rows = s->n_now;
		a.o = j->o;
		a.m = j->m;
		a.l = j->l;
	}
	run(j, u, &a);
}

static const uint64_t *skip_at(const struct job *j, const struct relay_step *s,
			       uint32_t i)
{
	const struct relay_use *u = j->plan->users[s->first + i];

	return j->plan->lanes[u->lane].spans[u->span].skip;
}

/* The first behind user i that needs a call of its own. */
static uint32_t end_of_alike(const struct job *j, const struct relay_step *s,
			     uint32_t i)
{
	const uint32_t end = i < s->n_now ? s->n_now : s->n_now + s->n_later;
	uint32_t k = i + 1;

	while (k < end && skip_at(j, s, k) == skip_at(j, s, i))
		k++;
	return k;
}

/* Tokens that are gone over by all users before the next: all, if there is one call. */
static uint32_t piece_of(const struct job *j, const struct relay_step *s,
			 const struct kern_span *span)
{
	const uint32_t page = span->page_tokens % 64 ? 2 * span->page_tokens
						     : span->page_tokens;

	if (end_of_alike(j, s, 0) == s->n_now + s->n_later)
		return span->n_tokens;
	return KV_DIV_UP(PIECE, page) * page;
}

static void run_together(const struct job *j, const struct relay_step *s)
{
	const struct relay_use *u = j->plan->users[s->first];
	const struct relay_lane *l = &j->plan->lanes[u->lane];
	const struct kern_span *span = &l->spans[u->span];
	const uint64_t bytes = bytes_of(l->p, span, 1);
	const uint32_t n = s->n_now + s->n_later, step = piece_of(j, s, span);

	gather(j, s);
	for (uint32_t t = 0; t < span->n_tokens; t += step)
		for (uint32_t i = 0, k; i < n; i = k) {
			k = end_of_alike(j, s, i);
			run_alike(j, s, i, k, t,
				  KV_MIN(step, span->n_tokens - t));
		}
	scatter(j, s);
	stat_add(j->relay->st_bytes, bytes);
	stat_add(j->relay->st_shared, bytes * (n - 1));
}

static void run_job(void *arg, uint32_t i)
{
	const struct relay *r = arg;
	const struct job *j = &r->jobs[i];
	const struct relay_plan *plan = j->plan;

	for (uint32_t k = 0; k < plan->n; k++) {
		struct task t = { plan->p[k], 0, 1, j->head, j->head + 1 };
		struct task_list l = { &t, 1, 1 };

		attn_run_clear(&l, 0);
	}
	for (uint32_t k = 0; k < plan->n_steps; k++) {
		const struct relay_step *s = &plan->steps[k];

		if (s->kind == RELAY_OWN)
			run_own(j, s);
		else if (s->kind == RELAY_MERGE)
			run_merge(j, s);
		else
			run_together(j, s);
	}
	for (uint32_t k = 0; k < plan->n; k++) {
		struct task t = { plan->p[k], 0, 1, j->head, j->head + 1 };
		struct task_list l = { &t, 1, 1 };

		attn_run_finish(&l, 0);
	}
}

/* ---- a batch ------------------------------------------------------------------------- */

static int alloc_job(struct job *j, struct attn_scratch *s)
{
	const size_t n = j->plan->n_most, dim = shape_of(j)->head_dim;
	const size_t es = kern_type_bytes(shape_of(j)->type);
	const size_t states = n * j->group;
	const size_t kept = (size_t)j->plan->n_kept * j->group;

	j->q = attn_scratch_alloc(s, states * dim * es);
	j->pos = attn_scratch_alloc(s, n * sizeof(*j->pos));
	j->o = attn_scratch_alloc(s, states * dim * sizeof(float));
	j->m = attn_scratch_alloc(s, states * sizeof(float));
	j->l = attn_scratch_alloc(s, states * sizeof(float));
	j->kept_o = attn_scratch_alloc(s, kept * dim * sizeof(float));
	j->kept_m = attn_scratch_alloc(s, kept * sizeof(float));
	j->kept_l = attn_scratch_alloc(s, kept * sizeof(float));
	if (!j->q || !j->pos || !j->o || !j->m || !j->l || !j->kept_o ||
	    !j->kept_m || !j->kept_l)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		j->pos[i] = INT64_MAX / 2;
	return 0;
}

static int add_jobs(struct relay *r, const struct relay_plan *plan,
		    struct attn_scratch *s)
{
	const struct attn_shape *g = plan->p[0]->it->shape;

	for (uint32_t h = 0; h < g->n_kv_heads; h++) {
		struct job *j = &r->jobs[r->n_jobs++];

		*j = (struct job){ .plan = plan,
				   .relay = r,
				   .head = h,
				   .group = g->n_heads / g->n_kv_heads };
		if (alloc_job(j, s))
			return -ENOMEM;
	}
	return 0;
}

static int make_jobs(struct relay *r, struct attn_scratch *s, uint32_t n_plans)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_plans; i++)
		n += r->plans[i].p[0]->it->shape->n_kv_heads;
	r->jobs = attn_scratch_alloc(s, n * sizeof(*r->jobs));
	if (!r->jobs)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_plans; i++)
		if (add_jobs(r, &r->plans[i], s))
			return -ENOMEM;
	return 0;
}

static int may_share(const struct prepared *p)
{
	return p->it->n_rows == 1 && !p->it->rows_at && p->n_seen <= MAX_SEEN;
}

/* Those of list that no plan has stay in it. */
static void leave_rest(struct prepared *list, uint32_t *n,
		       const struct relay *r, uint32_t n_plans)
{
	const uint32_t n_list = *n;

	for (uint32_t i = 0; i < n_plans; i++)
		for (uint32_t k = 0; k < r->plans[i].n; k++)
			r->plans[i].p[k]->in_plan = 1;
	*n = 0;
	for (uint32_t i = 0; i < n_list; i++)
		if (!list[i].in_plan)
			list[(*n)++] = list[i];
}

int attn_relay(struct pool *pool, struct attn_scratch *s, struct prepared *list,
	       uint32_t *n)
{
	struct relay r = { .st_bytes = s->st_bytes, .st_shared = s->st_shared };
	struct prepared **p = attn_scratch_alloc(s, *n * sizeof(*p));
	uint32_t n_p = 0;
	int ret;

	if (!p)
		return -ENOMEM;
	for (uint32_t i = 0; i < *n; i++)
		if (may_share(&list[i]))
			p[n_p++] = &list[i];
	if (n_p < 2)
		return 0;
	r.plans = attn_scratch_alloc(s, n_p / 2 * sizeof(*r.plans));
	ret = r.plans ? relay_plan(s, p, n_p, r.plans) : -ENOMEM;
	if (ret <= 0)
		return ret;
	if (make_jobs(&r, s, (uint32_t)ret))
		return -ENOMEM;
	if (pool)
		pool_run(pool, run_job, &r, r.n_jobs);
	for (uint32_t i = 0; !pool && i < r.n_jobs; i++)
		run_job(&r, i);
	leave_rest(list, n, &r, (uint32_t)ret);
	return 0;
}
