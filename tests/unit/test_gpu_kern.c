/*
 * test_gpu_kern.c - the source of the CUDA kernels, run as C, against exact sums and
 * against its twins on the CPU
 *
 * KVD_GPU=1 runs the image in the binary on the first real device instead.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "io/base.h"
#include "kernels/gpu.h"
#include "kernels/kern.h"
#include "tests/rig/rig_gpu.h"

#define MAX_SPANS 12
#define FEW_ROWS  5 /* each with a list of its own */
#define MAX_ROWS  80
#define MAX_TILES 80
#define MAX_PARTS 512
#define N_VARIANT 2

static struct rig_gpu g;
static uint32_t seed;
static const struct kern_gpu_window *window; /* tiles by wgmma */
static int by_token; /* spans may have rows that are not side by side */

static uint32_t next_random(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static float uniform(void)
{
	return (float)next_random() / (float)(1 << 23) - 1.0f;
}

static void setup(void)
{
	const char *env = getenv("KVD_SEED");

	seed = env ? (uint32_t)strtoul(env, NULL, 10) : (uint32_t)time(NULL);
	printf("KVD_SEED=%u\n", seed);
	by_token = 1;
	window = NULL;
	rig_gpu_open(&g);
	kern_init(KERN_ISA_AMX);
}

static void teardown(void)
{
	rig_gpu_close(&g);
}

/* ---- one attention ------------------------------------------------------------ */

struct shape {
	enum kern_type type;
	uint32_t head_dim, n_heads, n_kv_heads, n_rows;
	uint32_t max_tokens; /* of a span */
};

/* Everything in memory of the device, which the host can read too. */
struct problem {
	struct shape s;
	struct gpu_span *spans;
	struct kern_gpu_list lists[MAX_ROWS];
	struct gpu_part *parts;
	struct gpu_row *rows;
	struct gpu_tile *tiles;
	uint32_t n_spans, n_parts, n_tiles;
	char *q;
	float *o, *m, *l, *part_o, *part_ml;
	size_t q_variant_elems;
	float scale;
};

/* n values of the type; now and then large ones, so that a maximum matters. */
static void fill(enum kern_type type, void *to, size_t n)
{
	float x[64];

	for (size_t i = 0; i < n; i += 64) {
		const size_t k = KV_MIN(n - i, (size_t)64);

		for (size_t j = 0; j < k; j++)
			x[j] = uniform() * (next_random() % 50 ? 1 : 8);
		kern_from_f32(type, x, (char *)to + i * kern_type_bytes(type),
			      k);
	}
}

/* Junk, NaN among it, where nobody may look. */
static void poison(const struct problem *p, const struct gpu_span *s,
		   uint32_t t)
{
	const size_t row = p->s.head_dim * kern_type_bytes(p->s.type);
	const size_t step = s->row_bytes ? s->row_bytes : row;

	for (uint32_t h = 0; h < p->s.n_kv_heads; h++) {
		const size_t off = t / s->page_tokens * s->page_bytes +
				   h * s->head_bytes +
				   t % s->page_tokens * step;

		memset((char *)s->k + off, 0xff, row);
		memset((char *)s->v + off, 0xff, row);
	}
}

static void make_span(struct problem *p, struct gpu_span *s, int64_t pos)
{
	const size_t row = p->s.head_dim * kern_type_bytes(p->s.type);
	const uint32_t n = 1 + next_random() % p->s.max_tokens;
	uint64_t *skip;
	uint32_t n_pages, one_in;

	s->page_tokens = 32 * (1 + next_random() % 3);
	n_pages = (n + s->page_tokens - 1) / s->page_tokens;
	if (!by_token || next_random() % 3) {
		s->head_bytes = s->page_tokens * row;
		s->page_bytes = 2 * p->s.n_kv_heads * s->head_bytes;
		s->page_bytes += window ? 4 * row : 64;
	} else { /* token by token */
		s->head_bytes = row;
		s->row_bytes = (uint32_t)(2 * p->s.n_kv_heads * row);
		s->page_bytes = (uint64_t)s->page_tokens * s->row_bytes;
	}
	s->n_tokens = n;
	s->pos = pos;
	s->q_variant = next_random() % N_VARIANT;
	s->k = (uintptr_t)rig_gpu_alloc(&g, n_pages * s->page_bytes);
	s->v = s->k + p->s.n_kv_heads * s->head_bytes;
	fill(p->s.type, (void *)s->k,
	     n_pages * s->page_bytes / kern_type_bytes(p->s.type));
	for (uint32_t t = n; t < n_pages * s->page_tokens; t++)
		poison(p, s, t);
	s->skip = 0;
	s->at = next_random() % 3 ? 0 : rig_gpu_places(&g, n, 8);
	if (next_random() % 2)
		return;
	skip = rig_gpu_alloc(&g, (n / 64 + 1) * 8);
	s->skip = (uintptr_t)skip;
	memset(skip, 0, (n / 64 + 1) * 8);
	one_in = next_random() % 4 ? 3 : 1; /* 1: nothing of it is left */
	for (uint32_t t = 0; t < n; t++)
		if (next_random() % one_in == 0) {
			skip[t / 64] |= 1ull << (t % 64);
			poison(p, s, t);
		}
}

/* Room for everything, but no list. */
static void make_room(struct problem *p, struct shape s)
{
	const size_t n_q = (size_t)s.n_rows * s.n_heads * s.head_dim;

	memset(p, 0, sizeof(*p));
	p->s = s;
	p->scale = 1.0f / sqrtf((float)s.head_dim);
	p->spans = rig_gpu_alloc(&g, MAX_SPANS * sizeof(*p->spans));
	p->parts = rig_gpu_alloc(&g, MAX_PARTS * sizeof(*p->parts));
	p->tiles = rig_gpu_alloc(&g, MAX_TILES * sizeof(*p->tiles));
	p->rows = rig_gpu_alloc(&g, MAX_ROWS * sizeof(*p->rows));
	p->q_variant_elems = n_q;
	p->q = rig_gpu_alloc(&g, N_VARIANT * n_q * kern_type_bytes(s.type));
	fill(s.type, p->q, N_VARIANT * n_q);
	p->o = rig_gpu_alloc(&g, n_q * 4);
	p->m = rig_gpu_alloc(&g, (size_t)s.n_rows * s.n_heads * 4);
	p->l = rig_gpu_alloc(&g, (size_t)s.n_rows * s.n_heads * 4);
	p->part_o = rig_gpu_alloc(&g, MAX_PARTS * s.n_heads * s.head_dim * 4ul);
	p->part_ml = rig_gpu_alloc(&g, MAX_PARTS * s.n_heads * 8ul);
	/* what is not written is seen */
	memset(p->o, 0xff, n_q * 4);
	memset(p->m, 0xff, (size_t)s.n_rows * s.n_heads * 4);
	memset(p->l, 0xff, (size_t)s.n_rows * s.n_heads * 4);
}

/* All rows as parts. */
static void plan_parts(struct problem *p)
{
	const int64_t n = kern_gpu_plan(p->spans, p->lists, p->s.n_rows,
					p->parts, MAX_PARTS, p->rows);

	ck_assert_int_ge(n, 0);
	p->n_parts = (uint32_t)n;
	p->n_tiles = 0;
}

/* As many in tiles as there are to be. */
static void plan_rows(struct problem *p)
{
	const struct kern_gpu_shape s = { p->s.type, p->s.n_heads,
					  p->s.n_kv_heads, p->s.head_dim };
	struct kern_gpu_plan plan = { .parts = p->parts,
				      .tiles = p->tiles,
				      .rows = p->rows,
				      .max_parts = MAX_PARTS,
				      .max_tiles = MAX_TILES,
				      .tile_rows = window ? GPU_WIDE_ROWS : 0 };

	ck_assert_int_eq(
		kern_gpu_plan_rows(&s, p->spans, p->lists, p->s.n_rows, &plan),
		0);
	p->n_parts = plan.n_parts;
	p->n_tiles = plan.n_tiles;
}

/* Up to n spans behind each other; their tokens. */
static int64_t make_spans(struct problem *p, uint32_t n)
{
	int64_t pos = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct gpu_span *sp = &p->spans[p->n_spans++];

		make_span(p, sp, pos);
		pos += sp->n_tokens;
	}
	return pos;
}

static void make(struct problem *p, struct shape s)
{
	make_room(p, s);
	for (uint32_t r = 0; r < s.n_rows; r++) {
		const uint32_t n = next_random() % (MAX_SPANS / FEW_ROWS + 1);
		int64_t pos;

		p->lists[r].first_span = p->n_spans;
		p->lists[r].n_spans = n;
		pos = make_spans(p, n);
		/* most see all, some do not see the end */
		p->lists[r].pos = next_random() % 3
					  ? pos
					  : (int64_t)(next_random() %
						      (uint32_t)(pos + 1)) -
						    1;
	}
	plan_parts(p);
}

/* Rows of a prompt: the last of their list, each seeing up to itself. */
static void make_prompts(struct problem *p, struct shape s, uint32_t n_first)
{
	const uint32_t from[] = { 0, n_first, s.n_rows };

	make_room(p, s);
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t first = p->n_spans;
		const uint32_t n_spans = 1 + next_random() % 3;
		const int64_t end = make_spans(p, n_spans);

		for (uint32_t r = from[i]; r < from[i + 1]; r++)
			p->lists[r] =
				(struct kern_gpu_list){ end - from[i + 1] + r,
							first, n_spans };
	}
}

static void run(struct problem *p, uint32_t flags)
{
	const struct gpu_attn a = {
		.q = (uintptr_t)p->q,
		.q_variant_elems = p->q_variant_elems,
		.spans = (uintptr_t)p->spans,
		.parts = (uintptr_t)p->parts,
		.tiles = (uintptr_t)p->tiles,
		.rows = (uintptr_t)p->rows,
		.part_o = (uintptr_t)p->part_o,
		.part_ml = (uintptr_t)p->part_ml,
		.o = (uintptr_t)p->o,
		.m = (uintptr_t)p->m,
		.l = (uintptr_t)p->l,
		.n_heads = p->s.n_heads,
		.n_kv_heads = p->s.n_kv_heads,
		.head_dim = p->s.head_dim,
		.n_rows = p->s.n_rows,
		.n_parts = p->n_parts,
		.n_tiles = p->n_tiles,
		.flags = flags,
		.scale = p->scale,
	};

	if (window)
		ck_assert_int_eq(
			kern_gpu_attn_wide(g.kern, window, &a, g.stream), 0);
	else
		ck_assert_int_eq(kern_gpu_attn(g.kern, p->s.type, &a, g.stream),
				 0);
	rig_gpu_wait(&g);
}

/* ---- the exact sum ---------------------------------------------------------------- */

static double value(const struct problem *p, uint64_t base,
		    const struct gpu_span *s, uint32_t t, uint32_t h,
		    uint32_t d)
{
	const size_t es = kern_type_bytes(p->s.type);
	const char *at =
		(const char *)base + t / s->page_tokens * s->page_bytes +
		h * s->head_bytes +
		t % s->page_tokens *
			(s->row_bytes ? s->row_bytes : p->s.head_dim * es) +
		d * es;
	float x;

	kern_to_f32(p->s.type, at, &x, 1);
	return (double)x;
}

static double query(const struct problem *p, uint32_t variant, uint32_t r,
		    uint32_t h, uint32_t d)
{
	float x;

	kern_to_f32(p->s.type,
		    p->q + (variant * p->q_variant_elems +
			    ((size_t)r * p->s.n_heads + h) * p->s.head_dim +
			    d) * kern_type_bytes(p->s.type),
		    &x, 1);
	return (double)x;
}

static int is_seen(const struct gpu_span *s, uint32_t t, int64_t pos)
{
	const uint64_t *skip = (const uint64_t *)s->skip;
	const uint32_t *at = (const uint32_t *)s->at;

	return s->pos + (at ? at[t] : t) <= pos &&
	       !(skip && skip[t / 64] >> (t % 64) & 1);
}

/* One row and head in f64, normalised; returns the sum of weights. */
static double exact(const struct problem *p, uint32_t r, uint32_t h, double *o)
{
	const struct kern_gpu_list *li = &p->lists[r];
	const uint32_t kv = h / (p->s.n_heads / p->s.n_kv_heads);
	double top = -INFINITY, sum = 0;

	memset(o, 0, p->s.head_dim * sizeof(*o));
	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < li->n_spans; i++) {
			const struct gpu_span *s =
				&p->spans[li->first_span + i];

			for (uint32_t t = 0; t < s->n_tokens; t++) {
				double dot = 0, w;

				if (!is_seen(s, t, li->pos))
					continue;
				for (uint32_t d = 0; d < p->s.head_dim; d++)
					dot += query(p, s->q_variant, r, h, d) *
					       value(p, s->k, s, t, kv, d);
				dot *= (double)p->scale;
				if (!pass) {
					top = fmax(top, dot);
					continue;
				}
				w = exp(dot - top);
				sum += w;
				for (uint32_t d = 0; d < p->s.head_dim; d++)
					o[d] += w * value(p, s->v, s, t, kv, d);
			}
		}
	for (uint32_t d = 0; d < p->s.head_dim && sum > 0; d++)
		o[d] /= sum;
	return sum;
}

/* Probabilities are rounded to the type. */
static double bound_of(enum kern_type type)
{
	return type == KERN_F32 ? 2e-5 : type == KERN_F16 ? 1e-3 : 1e-2;
}

static void check_exact(const struct problem *p)
{
	const double bound = bound_of(p->s.type);
	double o[KERN_HEAD_DIM_MAX];

	for (uint32_t r = 0; r < p->s.n_rows; r++)
		for (uint32_t h = 0; h < p->s.n_heads; h++) {
			const size_t at = (size_t)r * p->s.n_heads + h;
			double sum;

			/* of many, some: f64 takes its time */
			if (p->s.n_rows > FEW_ROWS && next_random() % 29)
				continue;
			sum = exact(p, r, h, o);

			ck_assert_double_le(fabs((double)p->l[at] - sum),
					    sum * (1e-4 + bound / 2));
			ck_assert(sum > 0 || p->m[at] == -INFINITY);
			for (uint32_t d = 0; d < p->s.head_dim; d++) {
				const double x =
					(double)p->o[at * p->s.head_dim + d];

				/* |v| <= 8 */
				ck_assert_msg(fabs(x - o[d]) <= 8 * bound,
					      "row %u head %u dim %u: %g, not "
					      "%g",
					      r, h, d, x, o[d]);
			}
		}
}

/* ---- the twin ------------------------------------------------------------------------ */

/* kern_attn() row by row, as rows have lists of their own. */
static void check_twin(const struct problem *p)
{
	const double bound = bound_of(p->s.type);
	const uint32_t n = p->s.n_heads * p->s.head_dim;
	float *o = malloc(n * sizeof(*o)), m[64], l[64];

	for (uint32_t r = 0; r < p->s.n_rows; r++) {
		struct kern_span spans[MAX_SPANS];
		struct kern_attn a = {
			.type = p->s.type,
			.n_heads = p->s.n_heads,
			.n_kv_heads = p->s.n_kv_heads,
			.head_dim = p->s.head_dim,
			.scale = p->scale,
			.q = p->q + (size_t)r * n * kern_type_bytes(p->s.type),
			.q_variant_elems = p->q_variant_elems,
			.q_pos = &p->lists[r].pos,
			.n_rows = 1,
			.spans = spans,
			.n_spans = p->lists[r].n_spans,
			.o = o,
			.m = m,
			.l = l,
			.kv_head_to = p->s.n_kv_heads,
			.row_to = 1,
		};

		for (uint32_t i = 0; i < a.n_spans; i++) {
			const struct gpu_span *s =
				&p->spans[p->lists[r].first_span + i];

			spans[i] = (struct kern_span){
				.k = (const void *)s->k,
				.v = (const void *)s->v,
				.head_bytes = s->head_bytes,
				.page_bytes = s->page_bytes,
				.page_tokens = s->page_tokens,
				.n_tokens = s->n_tokens,
				.q_variant = s->q_variant,
				.pos = s->pos,
				.at = (const uint32_t *)s->at,
				.skip = (const uint64_t *)s->skip,
			};
		}
		kern_attn_clear(&a);
		ck_assert_int_eq(kern_attn(&a), 0);
		kern_attn_finish(&a);
		for (uint32_t i = 0; i < n; i++)
			ck_assert_double_le(
				fabs((double)o[i] -
				     (double)p->o[(size_t)r * n + i]),
				8 * bound);
	}
	free(o);
}

/* ---- tests ---------------------------------------------------------------------------- */

static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };
static const uint32_t dims[] = { 64, 96, 128, 256 };
static const struct {
	uint32_t n_heads, n_kv_heads;
} heads[] = { { 1, 1 }, { 4, 2 }, { 8, 1 }, { 12, 1 }, { 3, 3 } };

/* _i: type and head size. */
START_TEST(equals_exact_sums_and_the_twin)
{
	struct shape s = { .type = types[_i % 3], .head_dim = dims[_i / 3] };
	struct problem p;

	for (int k = 0; k < 5; k++) {
		s.n_heads = heads[k].n_heads;
		s.n_kv_heads = heads[k].n_kv_heads;
		s.n_rows = 1 + next_random() % FEW_ROWS;
		s.max_tokens = k ? 90 : 1200;
		by_token = k & 1; /* which the CPU does not know */
		make(&p, s);
		run(&p, GPU_ATTN_FINISH);
		check_exact(&p);
		if (!by_token)
			check_twin(&p);
		rig_gpu_reset(&g);
	}
}
END_TEST

/* Each row alone has the bits it had in the batch. */
START_TEST(a_row_does_not_know_its_batch)
{
	const struct shape s = { KERN_BF16, 64, 4, 2, FEW_ROWS, 700 };
	const size_t n = 4 * 64;
	static float o[FEW_ROWS * 4 * 64];
	struct problem p;

	make(&p, s);
	run(&p, 0);
	memcpy(o, p.o, sizeof(o));
	for (uint32_t r = 0; r < FEW_ROWS; r++) {
		struct problem one = p;
		int64_t n_parts;

		one.s.n_rows = 1;
		one.lists[0] = p.lists[r];
		one.q = p.q + r * n * 2;
		n_parts = kern_gpu_plan(one.spans, one.lists, 1, one.parts,
					MAX_PARTS, one.rows);
		one.n_parts = (uint32_t)n_parts;
		run(&one, 0);
		ck_assert(!memcmp(o + r * n, one.o, n * 4));
	}
}
END_TEST

/* A list in two calls, the second added to the first. */
START_TEST(a_list_in_two_calls)
{
	const struct shape s = { KERN_F16, 128, 8, 1, 3, 300 };
	struct kern_gpu_list all[MAX_ROWS];
	struct problem p;

	make(&p, s);
	memcpy(all, p.lists, sizeof(all));
	for (int half = 0; half < 2; half++) {
		for (uint32_t r = 0; r < s.n_rows; r++) {
			const uint32_t first = all[r].n_spans / 2;

			p.lists[r] = all[r];
			p.lists[r].n_spans = half ? all[r].n_spans - first
						  : first;
			p.lists[r].first_span += half ? first : 0;
		}
		p.n_parts = (uint32_t)kern_gpu_plan(p.spans, p.lists, s.n_rows,
						    p.parts, MAX_PARTS, p.rows);
		run(&p, half ? GPU_ATTN_ADD | GPU_ATTN_FINISH : 0);
	}
	memcpy(p.lists, all, sizeof(all));
	check_exact(&p);
}
END_TEST

START_TEST(shapes_that_are_refused)
{
	struct gpu_attn a = {
		.n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .n_rows = 0
	};
	struct gpu_rope ro = {
		.kind = KERN_ROPE_NONE, .n_heads = 1, .head_dim = 8, .n_rot = 8
	};

	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream), 0);
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_Q8_0, &a, g.stream),
			 -EINVAL);
	a.head_dim = 80;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream),
			 -EINVAL);
	a.head_dim = 64;
	a.n_kv_heads = 3;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream),
			 -EINVAL);
	a.n_kv_heads = 0;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16, &a, g.stream),
			 -EINVAL);
	for (uint32_t i = 0; i < 3; i++) { /* kind, odd, longer than the head */
		ck_assert_int_eq(kern_gpu_rope(g.kern, KERN_F32, &ro, g.stream),
				 -EINVAL);
		ro.kind = KERN_ROPE_HALVES;
		ro.n_rot = i ? 10 : 7;
	}
}
END_TEST

/* Of o, m, l. */
static float *state_copy(const struct problem *p)
{
	const size_t n = (size_t)p->s.n_rows * p->s.n_heads;
	float *x = malloc(n * (p->s.head_dim + 2) * sizeof(*x));

	memcpy(x, p->o, n * p->s.head_dim * 4);
	memcpy(x + n * p->s.head_dim, p->m, n * 4);
	memcpy(x + n * (p->s.head_dim + 1), p->l, n * 4);
	return x;
}

static int state_is(const struct problem *p, const float *x)
{
	const size_t n = (size_t)p->s.n_rows * p->s.n_heads;

	return !memcmp(x, p->o, n * p->s.head_dim * 4) &&
	       !memcmp(x + n * p->s.head_dim, p->m, n * 4) &&
	       !memcmp(x + n * (p->s.head_dim + 1), p->l, n * 4);
}

/* _i: heads, type and head size. Two prompts, one perhaps too short for tiles. */
START_TEST(tiles_equal_exact_sums_and_parts)
{
	static const struct {
		uint32_t n_heads, n_kv_heads, n_rows, n_first;
	} all[] = { { 8, 1, 40, 33 },
		    { 4, 2, 70, 68 },
		    { 70, 1, 4, 3 },
		    { 6, 2, 50, 23 } };
	const __typeof__(*all) *at = &all[_i % 4];
	const struct shape s = { types[1 + _i / 4 % 2],
				 dims[_i / 8],
				 at->n_heads,
				 at->n_kv_heads,
				 at->n_rows,
				 _i / 8 < 2 && _i % 4 == 3 ? 560 : 120 };
	struct problem p;
	float *tiles;

	by_token = _i % 4 != 3; /* which the CPU does not know */
	make_prompts(&p, s, at->n_first);
	plan_rows(&p);
	ck_assert_uint_gt(p.n_tiles, 0);
	run(&p, _i % 2 ? GPU_ATTN_FINISH : 0);
	tiles = state_copy(&p);
	if (_i % 2)
		check_exact(&p);
	if (_i % 4 == 3)
		check_twin(&p);
	memset(p.o, 0xff, (size_t)s.n_rows * s.n_heads * 4);
	plan_parts(&p);
	run(&p, _i % 2 ? GPU_ATTN_FINISH : 0);
	ck_assert(state_is(&p, tiles));
	free(tiles);
}
END_TEST

/* First half of the list by parts, second by tiles, and the other way round. */
START_TEST(tiles_add_to_a_state)
{
	const struct shape s = { KERN_BF16, 128, 8, 2, 30, 300 };
	struct kern_gpu_list all[MAX_ROWS];
	float *first = NULL;
	struct problem p;

	make_prompts(&p, s, 30);
	memcpy(all, p.lists, sizeof(all));
	for (int way = 0; way < 2; way++) {
		for (int half = 0; half < 2; half++) {
			for (uint32_t r = 0; r < s.n_rows; r++) {
				const uint32_t n = all[r].n_spans / 2;

				p.lists[r] = all[r];
				p.lists[r].n_spans = half ? all[r].n_spans - n
							  : n;
				p.lists[r].first_span += half ? n : 0;
			}
			if (half ^ way)
				plan_rows(&p);
			else
				plan_parts(&p);
			run(&p, half ? GPU_ATTN_ADD | GPU_ATTN_FINISH : 0);
		}
		if (!way)
			first = state_copy(&p);
	}
	ck_assert(state_is(&p, first));
	memcpy(p.lists, all, sizeof(all));
	check_exact(&p);
	free(first);
}
END_TEST

/* What needs more shared memory than a block may have cannot be launched; the rest
 * can. */
START_TEST(wide_tiles_equal_exact_sums)
{
	static const uint32_t at[][4] = { { 8, 1, 40, 33 },
					  { 4, 2, 70, 68 },
					  { 12, 2, 30, 9 } };
	const struct shape s = { types[1 + _i % 2], dims[_i / 2 % 2 * 2],
				 at[_i % 3][0],	    at[_i % 3][1],
				 at[_i % 3][2],	    _i < 3 ? 560 : 150 };
	struct kern_gpu_window w;
	const uint64_t here = (uintptr_t)rig_gpu_alloc(&g, 4096);
	const uint64_t base =
		here < 1ull << 35 ? 0 : (here - (1ull << 35)) & ~4095ull;
	struct problem p;
	float *tiles;
	int ret;

	ret = kern_gpu_window(g.kern, 0, s.type, s.head_dim, base, 1ull << 36,
			      &w);
	if (ret == -ENOTSUP && g.is_real)
		return; /* no Hopper */
	ck_assert_int_eq(ret, 0);
	window = &w;
	by_token = 0;
	make_prompts(&p, s, at[_i % 3][3]);
	for (uint32_t i = 0; i < p.n_spans; i++)
		ck_assert(kern_gpu_in_window(&w, &p.spans[i], s.n_kv_heads));
	plan_rows(&p);
	ck_assert_uint_gt(p.n_tiles, 0);
	run(&p, GPU_ATTN_FINISH);
	check_exact(&p);
	check_twin(&p);
	tiles = state_copy(&p);
	plan_parts(&p);
	run(&p, GPU_ATTN_FINISH);
	/* on a device it remains to be seen */
	ck_assert(g.is_real || state_is(&p, tiles));
	printf("wide tiles: bits of parts: %s\n",
	       state_is(&p, tiles) ? "the same" : "others");
	free(tiles);
}
END_TEST

START_TEST(a_device_with_small_blocks)
{
	const struct shape s = { KERN_BF16, 64, 8, 1, 1, 90 };
	struct kern_gpu *k = g.kern;
	struct problem p;

	if (g.is_real)
		return;
	g.ctl.arm(FAKE_ONCE, "cuFuncSetAttribute", 1, CUDA_INVALID_VALUE);
	ck_assert_int_eq(kern_gpu_open(&g.kern, g.api, "fake"), 0);
	make(&p, s);
	run(&p, GPU_ATTN_FINISH);
	check_exact(&p);
	kern_gpu_close(g.kern);
	g.ctl.arm(FAKE_FOREVER, "cuFuncSetAttribute", 1, CUDA_INVALID_VALUE);
	ck_assert_int_eq(kern_gpu_open(&g.kern, g.api, "fake"), 0);
	p.n_parts = 1;
	ck_assert_int_eq(kern_gpu_attn(g.kern, KERN_BF16,
				       &(struct gpu_attn){ .n_heads = 8,
							   .n_kv_heads = 1,
							   .head_dim = 64,
							   .n_rows = 1,
							   .n_parts = 1 },
				       g.stream),
			 -ENOTSUP);
	kern_gpu_close(g.kern);
	g.ctl.arm(FAKE_ONCE, "cuFuncSetAttribute", 3, CUDA_OUT_OF_MEMORY);
	ck_assert_int_eq(kern_gpu_open(&g.kern, g.api, "fake"), -ENOMEM);
	g.kern = k;
}
END_TEST

START_TEST(what_nvcc_built_is_an_image)
{
	struct kern_gpu *k;

	if (kern_gpu_image_bytes()) {
		ck_assert_uint_gt(kern_gpu_image_bytes(), 1000);
		return;
	}
	printf("what_nvcc_built_is_an_image: built without nvcc\n");
	ck_assert_int_eq(kern_gpu_open(&k, g.api, NULL), -ENOTSUP);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_kern");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, equals_exact_sums_and_the_twin, 0, 12);
	tcase_add_test(t, a_row_does_not_know_its_batch);
	tcase_add_test(t, a_list_in_two_calls);
	tcase_add_test(t, shapes_that_are_refused);
	tcase_add_loop_test(t, tiles_equal_exact_sums_and_parts, 0, 32);
	tcase_add_test(t, tiles_add_to_a_state);
	tcase_add_loop_test(t, wide_tiles_equal_exact_sums, 0, 12);
	tcase_add_test(t, a_device_with_small_blocks);
	tcase_add_test(t, what_nvcc_built_is_an_image);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
