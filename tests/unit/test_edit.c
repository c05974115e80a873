/*
 * test_edit.c - sequences that are edited: what stands behind keeps its bytes and has
 * new positions; compared with attention in double over the same keys and positions
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_serve.h"

#define DIM	 32u
#define HEADS	 2u /* of q; one of k */
#define LAYERS	 3u
#define ROOM	 2500u
#define THETA	 10000.0
#define MAX_DIFF 2e-4

/* A sequence of the daemon, and its keys and values as they were given. */
struct edited {
	struct rig_serve *r;
	int seq;
	uint32_t n;
	float (*k)[LAYERS][DIM];
	float (*v)[LAYERS][DIM];
};

struct call {
	struct serve_attend req;
	struct serve_attend_item item;
	int told, ret;
};

static void call_done(struct wait *w, int ret)
{
	struct call *c = container_of(
		container_of(w, struct serve_attend, wait), struct call, req);

	c->ret = ret;
	c->told = 1;
}

static int call(struct rig_serve *r, struct call *c, uint32_t layer)
{
	c->told = 0;
	c->req.wait.done = call_done;
	c->req.items = &c->item;
	c->req.n_items = 1;
	c->req.layer = layer;
	ck_assert_int_eq(serve_attend(r->session, &c->req), 0);
	ck_assert(rig_serve_until(r, &c->told));
	return c->ret;
}

static float number(uint64_t *s)
{
	return (float)(int64_t)(rig_random(s) % 2001 - 1000) * 1e-3f;
}

/* k and v of n tokens at position at, in every layer, appended by the client. */
static void write_tokens(struct edited *e, uint32_t at, uint32_t n,
			 uint64_t *seed)
{
	float *k = calloc(n, sizeof(float) * DIM);
	float *v = calloc(n, sizeof(float) * DIM);

	for (uint32_t l = 0; l < LAYERS; l++) {
		struct call c = { .req.append_only = 1,
				  .item = { .seq = (uint32_t)e->seq,
					    .n_tokens = n,
					    .pos = at,
					    .k = k,
					    .v = v } };

		for (uint32_t i = 0; i < n; i++)
			for (uint32_t d = 0; d < DIM; d++) {
				k[i * DIM + d] = e->k[at + i][l][d] =
					number(seed);
				v[i * DIM + d] = e->v[at + i][l][d] =
					number(seed);
			}
		ck_assert_int_eq(call(e->r, &c, l), 0);
	}
	free(k);
	free(v);
}

static void begin(struct edited *e, struct rig_serve *r)
{
	const int g = serve_geometry(
		r->session,
		&(struct serve_geometry){ .n_layers = LAYERS,
					  .n_heads = HEADS,
					  .n_kv_heads = 1,
					  .head_dim = DIM,
					  .type = KERN_F32,
					  .rotary = KERN_ROPE_HALVES,
					  .theta = (float)THETA,
					  .page_tokens = 64,
					  .page_layers = 2 });

	ck_assert_int_gt(g, 0);
	e->r = r;
	e->n = 0;
	e->seq = serve_seq_new(r->session, (uint32_t)g, ROOM);
	ck_assert_int_gt(e->seq, 0);
	e->k = calloc(ROOM, sizeof(*e->k));
	e->v = calloc(ROOM, sizeof(*e->v));
}

static void end(struct edited *e)
{
	ck_assert_int_eq(serve_seq_free(e->r->session, (uint32_t)e->seq), 0);
	free(e->k);
	free(e->v);
}

static void append(struct edited *e, uint32_t n, uint64_t *seed)
{
	write_tokens(e, e->n, n, seed);
	e->n += n;
}

static void edit(struct edited *e, uint32_t at, uint32_t removed, uint32_t n,
		 uint64_t *seed)
{
	const uint32_t rest = e->n - at - removed;

	ck_assert_int_eq(
		serve_seq_edit(e->r->session, (uint32_t)e->seq, at, removed, n),
		0);
	memmove(e->k + at + n, e->k + at + removed, rest * sizeof(*e->k));
	memmove(e->v + at + n, e->v + at + removed, rest * sizeof(*e->v));
	if (n)
		write_tokens(e, at, n, seed);
	e->n = at + n + rest;
}

/* Rotated by pos, halves. */
static void rotate(const float *x, uint32_t pos, double *out)
{
	for (uint32_t i = 0; i < DIM / 2; i++) {
		const double a = pos * pow(THETA, -2.0 * i / DIM);
		const double p = x[i], q = x[i + DIM / 2];

		out[i] = p * cos(a) - q * sin(a);
		out[i + DIM / 2] = p * sin(a) + q * cos(a);
	}
}

/* What the query sees at position pos. */
static void attend(const struct edited *e, uint32_t layer, const float *q,
		   uint32_t pos, double *o)
{
	double rq[DIM], rk[DIM], s[ROOM], top = -INFINITY, sum = 0;

	rotate(q, pos, rq);
	for (uint32_t t = 0; t <= pos; t++) {
		rotate(e->k[t][layer], t, rk);
		s[t] = 0;
		for (uint32_t d = 0; d < DIM; d++)
			s[t] += rq[d] * rk[d] / sqrt(DIM);
		top = fmax(top, s[t]);
	}
	memset(o, 0, DIM * sizeof(*o));
	for (uint32_t t = 0; t <= pos; t++) {
		const double p = exp(s[t] - top);

		sum += p;
		for (uint32_t d = 0; d < DIM; d++)
			o[d] += p * (double)e->v[t][layer][d];
	}
	for (uint32_t d = 0; d < DIM; d++)
		o[d] /= sum;
}

/* Queries at [pos, pos + n); their outputs go to out too, and are as computed above. */
static void look(struct edited *e, uint32_t pos, uint32_t n, uint64_t seed,
		 float *out)
{
	float *q = calloc(n, sizeof(float) * HEADS * DIM);

	for (uint32_t i = 0; i < n * HEADS * DIM; i++)
		q[i] = number(&seed);
	for (uint32_t l = 0; l < LAYERS; l++) {
		float *o = out + (size_t)l * n * HEADS * DIM;
		struct call c = { .item = { .seq = (uint32_t)e->seq,
					    .n_tokens = n,
					    .pos = pos,
					    .q = q,
					    .o = o } };

		ck_assert_int_eq(call(e->r, &c, l), 0);
		for (uint32_t i = 0; i < n * HEADS; i++) {
			double want[DIM];

			attend(e, l, q + i * DIM, pos + i / HEADS, want);
			for (uint32_t d = 0; d < DIM; d++)
				ck_assert_msg(
					fabs(want[d] - (double)o[i * DIM + d]) <
						MAX_DIFF,
					"layer %u, row %u of %u: %g, not %g", l,
					pos + i / HEADS, e->n,
					(double)o[i * DIM + d], want[d]);
		}
	}
	free(q);
}

#define N_OPS	 14u
#define N_LOOKED 5u

/* A life of a sequence: at, removed, inserted; at UINT32_MAX appends. */
static const uint32_t ops[N_OPS][3] = {
	{ UINT32_MAX, 0, 1300 }, /* as it was written */
	{ 70, 10, 4 }, /* in the middle of tiles */
	{ 0, 0, 5 }, /* at the start: only more */
	{ 0, 3, 0 }, /* and only less */
	{ 100, 0, 0 }, /* nothing */
	{ 90, 20, 150 }, /* more than a page */
	{ UINT32_MAX, 0, 1 }, /* behind what was moved */
	{ UINT32_MAX, 0, 40 },
	{ 92, 30, 31 }, /* in what was inserted before */
	{ 64, 64, 64 }, /* on the borders of tiles and pages */
	{ 200, 1, 1 }, /* a token for a token */
	{ 150, 0, 33 },
	{ 3, 200, 1 }, /* most of it goes */
	{ UINT32_MAX, 0, 100 },
};

static size_t live(struct rig_serve *r, float *out)
{
	uint64_t seed = 5;
	struct edited e;
	size_t n = 0;

	begin(&e, r);
	for (uint32_t i = 0; i < N_OPS; i++) {
		if (ops[i][0] == UINT32_MAX)
			append(&e, ops[i][2], &seed);
		else
			edit(&e, ops[i][0], ops[i][1], ops[i][2], &seed);
		look(&e, e.n - N_LOOKED, N_LOOKED, i + 1, out + n);
		n += (size_t)LAYERS * N_LOOKED * HEADS * DIM;
		look(&e, e.n / 3, N_LOOKED, i + 100, out + n);
		n += (size_t)LAYERS * N_LOOKED * HEADS * DIM;
	}
	/* to the end, and behind it: nothing is moved */
	edit(&e, e.n - 20, 20, 0, &seed);
	append(&e, 7, &seed);
	look(&e, e.n - N_LOOKED, N_LOOKED, 9, out + n);
	n += (size_t)LAYERS * N_LOOKED * HEADS * DIM;
	/* into what was moved, then on */
	edit(&e, 10, 0, 2, &seed);
	ck_assert_int_eq(serve_seq_truncate(r->session, (uint32_t)e.seq, 75),
			 0);
	e.n = 75;
	append(&e, 50, &seed);
	look(&e, e.n - N_LOOKED, N_LOOKED, 9, out + n);
	n += (size_t)LAYERS * N_LOOKED * HEADS * DIM;
	end(&e);
	return n;
}

START_TEST(an_edit_moves_what_stands_behind)
{
	const size_t room =
		(size_t)(2 * N_OPS + 2) * LAYERS * N_LOOKED * HEADS * DIM;
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	float *a = calloc(room, sizeof(*a)), *b = calloc(room, sizeof(*b));

	ck_assert_uint_eq(live(r, a), room);
	rig_serve_close(r);
	/* the same bits when a sequence is larger than memory */
	r = rig_serve_open(
		(struct rig_serve_options){ .memory_bytes = 1 << 20 });
	ck_assert_uint_eq(live(r, b), room);
	rig_serve_close(r);
	ck_assert(!memcmp(a, b, room * sizeof(*a)));
	free(a);
	free(b);
}
END_TEST

START_TEST(an_edit_is_finished_before_the_next)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	float x[4 * DIM] = { 0 }, o[4 * HEADS * DIM];
	struct serve_session *ss = r->session;
	uint64_t seed = 3;
	struct edited e;
	uint32_t seq;

	begin(&e, r);
	seq = (uint32_t)e.seq;
	append(&e, 100, &seed);
	ck_assert_int_eq(serve_seq_edit(ss, seq + 1, 0, 0, 0), -ENOENT);
	ck_assert_int_eq(serve_seq_edit(ss, seq, 101, 0, 1), -EINVAL);
	ck_assert_int_eq(serve_seq_edit(ss, seq, 50, 51, 1), -EINVAL);
	ck_assert_int_eq(serve_seq_edit(ss, seq, 50, UINT64_MAX, 1), -EINVAL);
	ck_assert_int_eq(serve_seq_edit(ss, seq, 50, 5, ROOM), -ENOSPC);
	ck_assert_int_eq(serve_seq_edit(ss, seq, 50, 5, UINT64_MAX - 5),
			 -ENOSPC);
	ck_assert_int_eq(serve_seq_edit(ss, seq, 50, 5, 3), 0);
	for (uint32_t l = 0; l < LAYERS; l++) {
		struct call c = { .item = { seq, 4, 50, x, x, x, o, 0, 0 } };

		/* more than was inserted, behind it, what is not there yet */
		ck_assert_int_eq(call(r, &c, l), -EINVAL);
		c.item.pos = 98;
		ck_assert_int_eq(call(r, &c, l), -EINVAL);
		c.item = (struct serve_attend_item){ seq,  1, 97, x, NULL,
						     NULL, o, 0,  0 };
		ck_assert_int_eq(call(r, &c, l), -EINVAL);
		ck_assert_int_eq(serve_seq_edit(ss, seq, 0, 1, 0), -EBUSY);
		ck_assert_int_eq(serve_seq_fork(ss, seq), -EBUSY);
		/* in two halves */
		c.item = (struct serve_attend_item){ seq, 1, 50, x, x,
						     x,	  o, 0,	 0 };
		ck_assert_int_eq(call(r, &c, l), 0);
		c.item.pos = 51;
		c.item.n_tokens = 2;
		ck_assert_int_eq(call(r, &c, l), 0);
		c.item = (struct serve_attend_item){ seq,  1, 97, x, NULL,
						     NULL, o, 0,  0 };
		ck_assert_int_eq(call(r, &c, l), 0);
	}
	/* cut off inside what is being inserted */
	ck_assert_int_eq(serve_seq_edit(ss, seq, 20, 1, 9), 0);
	ck_assert_int_eq(serve_seq_truncate(ss, seq, 24), 0);
	for (uint32_t i = 20; i < 24; i++)
		e.n = 20;
	append(&e, 8, &seed);
	ck_assert_int_eq(serve_seq_fork(ss, seq) > 0, 1);
	look(&e, 20, 4, 5, (float[LAYERS * 4 * HEADS * DIM]){ 0 });
	end(&e);
	rig_serve_close(r);
}
END_TEST

/* ---- prompts ------------------------------------------------------------------ */

#define N_OLD 700u

/* The old version with hunks: at, removed, inserted; ascending. */
struct hunk {
	uint32_t at, removed, n;
};

static uint32_t patch(const uint32_t *old, uint32_t n_old, const struct hunk *h,
		      uint32_t n_hunks, uint32_t *out)
{
	uint32_t n = 0, at = 0;

	for (uint32_t i = 0; i < n_hunks; i++) {
		uint32_t *more = rig_ids(h[i].n + 1, 77 + i);

		while (at < h[i].at)
			out[n++] = old[at++];
		at += h[i].removed;
		memcpy(out + n, more, h[i].n * sizeof(*more));
		n += h[i].n;
		free(more);
	}
	while (at < n_old)
		out[n++] = old[at++];
	return n;
}

START_TEST(runs_are_the_same_and_in_order)
{
	static struct edit_run runs[EDIT_MAX_RUNS];
	uint32_t old[N_OLD], new[2 * N_OLD];
	uint64_t seed = 11;

	for (uint32_t k = 0; k < 300; k++) {
		/* few different tokens: windows that occur again */
		const uint32_t n_kinds = k % 3 ? 300 : 2;
		const uint32_t n_old = (uint32_t)(rig_random(&seed) % N_OLD);
		struct hunk h[4];
		uint32_t at = 0, n_new, i = 0, j = 0, sum = 0, left = n_old;
		int n;

		for (uint32_t t = 0; t < n_old; t++)
			old[t] = (uint32_t)(rig_random(&seed) % n_kinds);
		for (int x = 0; x < 4; x++) {
			h[x].at = at + (uint32_t)(rig_random(&seed) %
						  (n_old - at + 1));
			h[x].removed =
				(uint32_t)(rig_random(&seed) %
					   KV_MIN(60u, n_old - h[x].at + 1));
			h[x].n = (uint32_t)(rig_random(&seed) % 60);
			at = h[x].at + h[x].removed;
			left -= h[x].removed;
		}
		n_new = patch(old, n_old, h, 4, new);
		n = edit_match(old, n_old, new, n_new, runs);
		for (int r = 0; r < n; r++) {
			ck_assert(runs[r].i >= i && runs[r].j >= j);
			i = runs[r].i + runs[r].len;
			j = runs[r].j + runs[r].len;
			ck_assert(runs[r].len && i <= n_new && j <= n_old);
			ck_assert(!memcmp(new + runs[r].i, old + runs[r].j,
					  runs[r].len * sizeof(*new)));
			sum += runs[r].len;
		}
		/* of five runs at most, short ones may be lost */
		if (n_kinds > 2)
			ck_assert_uint_ge(sum + 5 * EDIT_WINDOW, left);
	}
	ck_assert_int_eq(edit_match(old, 100, old, 100, runs), 1);
	ck_assert_uint_eq(runs[0].len, 100);
	ck_assert_int_eq(edit_match(old, 0, new, 100, runs), 0);
	ck_assert_int_eq(edit_match(old, 100, new, 0, runs), 0);
}
END_TEST

/* Greedy tokens behind system, the version of the text, a question. */
struct prompt {
	const uint32_t *text, *base;
	uint32_t n, n_base; /* n_base 0: no base is named */
	uint32_t repair, permille;
	int score;
};

#define N_SYSTEM   40u
#define N_QUESTION 9u

static struct rig_gen *ask(struct rig_serve *r, const struct prompt *p)
{
	uint32_t *system = rig_ids(N_SYSTEM, 1), *q = rig_ids(N_QUESTION, 2);
	struct rig_gen *g = rig_gen_new();

	g->gen.repair = p->repair;
	g->gen.repair_permille = p->permille;
	g->gen.may_wait = 1;
	if (p->score)
		g->gen.flags = SERVE_GEN_SCORE;
	rig_gen_part(g, system, N_SYSTEM, SERVE_PART_BOS);
	if (p->n_base)
		rig_gen_part(g, p->base, p->n_base, SERVE_PART_BASE);
	rig_gen_part(g, p->text, p->n, 0);
	rig_gen_part(g, q, N_QUESTION, 0);
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_ge(g->ret, 0);
	free(system);
	free(q);
	return g;
}

static void same_bits(const struct rig_gen *a, const struct rig_gen *b)
{
	ck_assert_uint_eq(a->n_out, b->n_out);
	ck_assert(!memcmp(a->tokens, b->tokens, a->n_out * sizeof(*a->tokens)));
}

static const struct {
	uint32_t n;
	struct hunk h[2];
} edits[] = {
	{ 1, { { 300, 20, 33 } } }, /* in the middle of tiles */
	{ 1, { { 0, 0, 17 } } }, /* at the start */
	{ 1, { { 0, 30, 0 } } },
	{ 1, { { N_OLD, 0, 50 } } }, /* at the end */
	{ 1, { { N_OLD - 40, 40, 0 } } },
	{ 0, { { 0 } } }, /* nothing is edited */
	{ 1, { { 100, 3, 150 } } }, /* more than a page */
	{ 2, { { 64, 32, 32 }, { 400, 1, 9 } } }, /* twice */
	{ 1, { { 0, N_OLD, 60 } } }, /* nothing is left */
};

/* With one layer K and V do not know what stands before them: all is as computed. */
START_TEST(with_one_layer_an_edit_is_exact)
{
	uint32_t *old = rig_ids(N_OLD, 9), new[2 * N_OLD];

	for (size_t k = 0; k < KV_ARRAY_LEN(edits); k++) {
		struct rig_serve *r = rig_serve_open(
			(struct rig_serve_options){ .n_layers = 1 });
		const struct prompt before = { .text = old, .n = N_OLD };
		struct prompt p = { .text = new, .base = old, .n_base = N_OLD };
		struct rig_gen *a, *b;
		uint64_t sum;

		p.n = patch(old, N_OLD, edits[k].h, edits[k].n, new);
		free(ask(r, &before));
		a = ask(r, &p);
		p.n_base = 0;
		b = ask(r, &p);
		sum = a->gen.stats.n_prefix + a->gen.stats.n_moved +
		      a->gen.stats.n_computed;
		ck_assert_uint_eq(sum, a->gen.stats.n_prompt);
		if (edits[k].h[0].removed < N_OLD)
			ck_assert_uint_le(a->gen.stats.n_computed,
					  edits[k].h[0].n + edits[k].h[1].n +
						  N_QUESTION + 64);
		for (uint32_t i = 0; i < 8; i++) {
			ck_assert_uint_eq(a->tokens[i].id, b->tokens[i].id);
			ck_assert(fabsf(a->tokens[i].logprob -
					b->tokens[i].logprob) < 1e-4f);
		}
		free(a);
		free(b);
		rig_serve_close(r);
	}
	free(old);
}
END_TEST

/* More layers: exact where it must be, and the same bits however it is run. */
START_TEST(edited_prompts_repaired_paged_and_unknown)
{
	uint32_t *old = rig_ids(N_OLD, 9), new[2 * N_OLD];
	struct rig_serve *roomy =
		rig_serve_open((struct rig_serve_options){ 0 });
	struct rig_serve *tight = rig_serve_open((struct rig_serve_options){
		.memory_bytes = 2 << 20, .prefill_slice = 7 });
	const struct prompt before = { .text = old, .n = N_OLD };
	struct prompt p = { .text = new, .base = old, .n_base = N_OLD };
	const struct prompt scored = {
		.text = new, .base = old, .n_base = N_OLD, .score = 1
	};
	struct rig_gen *full, *naive, *a, *b;

	p.n = patch(old, N_OLD, edits[7].h, edits[7].n, new);
	/* nobody has seen the old version: as if it had not been named */
	a = ask(tight, &p);
	p.n_base = 0;
	full = ask(roomy, &p);
	p.n_base = N_OLD;
	ck_assert_uint_eq(a->gen.stats.n_moved, 0);
	same_bits(a, full);
	free(a);
	free(ask(roomy, &before));
	free(ask(tight, &before));
	naive = ask(roomy, &p);
	ck_assert_uint_gt(naive->gen.stats.n_moved, 600);
	ck_assert(
		memcmp(naive->tokens, full->tokens, 8 * sizeof(*full->tokens)));
	for (p.repair = 0; p.repair <= REPAIR_BLEND; p.repair++)
		for (p.permille = 0; p.permille <= 1000; p.permille += 250) {
			a = ask(roomy, &p);
			b = ask(tight, &p);
			same_bits(a, b);
			if (p.repair && p.permille == 1000)
				same_bits(a, full);
			else if (!p.repair || !p.permille)
				same_bits(a, naive);
			else /* what was moved, but for the part before */
				ck_assert_uint_eq(
					a->gen.stats.n_repaired,
					repair_count(304, p.permille) +
						repair_count(299, p.permille));
			free(a);
			free(b);
		}
	free(naive);
	free(full);
	p = scored;
	p.n = patch(old, N_OLD, edits[7].h, edits[7].n, new);
	a = ask(roomy, &p);
	b = ask(tight, &p);
	ck_assert_uint_eq(a->n_out, N_QUESTION);
	ck_assert_uint_gt(a->gen.stats.n_moved, 600);
	same_bits(a, b);
	free(a);
	free(b);
	free(old);
	rig_serve_close(roomy);
	rig_serve_close(tight);
}
END_TEST

START_TEST(bases_in_the_wrong_place_are_refused)
{
	static const uint32_t flags[][3] = {
		{ 0, SERVE_PART_BASE, UINT32_MAX }, /* nothing behind it */
		{ SERVE_PART_BASE, SERVE_PART_BASE, 0 },
		{ SERVE_PART_BASE, SERVE_PART_REUSE, 0 },
		{ SERVE_PART_BASE | SERVE_PART_REUSE, 0, 0 },
		{ SERVE_PART_REUSE, SERVE_PART_BASE, 0 },
	};
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){ 0 });
	uint32_t *t = rig_ids(50, 4);

	for (size_t k = 0; k <= KV_ARRAY_LEN(flags); k++) {
		struct rig_gen *g = rig_gen_new();

		for (int i = 0; i < 3 && k < KV_ARRAY_LEN(flags); i++)
			if (flags[k][i] != UINT32_MAX)
				rig_gen_part(g, t, 50, flags[k][i]);
		if (k == KV_ARRAY_LEN(flags)) { /* of what is scored */
			g->gen.flags = SERVE_GEN_SCORE;
			rig_gen_part(g, t, 50, 0);
			rig_gen_part(g, t, 50, SERVE_PART_BASE);
			rig_gen_part(g, t, 50, 0);
		}
		ck_assert_int_eq(rig_gen_start(g, r->session), -EINVAL);
		free(g);
	}
	free(t);
	rig_serve_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("edit");
	TCase *t = tcase_create("edit");
	SRunner *sr;
	int failed;

	tcase_add_test(t, an_edit_moves_what_stands_behind);
	tcase_add_test(t, an_edit_is_finished_before_the_next);
	tcase_add_test(t, runs_are_the_same_and_in_order);
	tcase_add_test(t, with_one_layer_an_edit_is_exact);
	tcase_add_test(t, edited_prompts_repaired_paged_and_unknown);
	tcase_add_test(t, bases_in_the_wrong_place_are_refused);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
