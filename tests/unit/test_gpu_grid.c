/*
 * test_gpu_grid.c - a part that lies in several segments has the bits of one that lies in
 * one: tiles and parts of the device's kernels go on from span to span
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
#include "kernels/gpu.h"
#include "kernels/kern.h"
#include "tests/rig/rig_gpu.h"

#define N_TOKENS \
	1290u /* of the part that is cut: two parts of the grid and more */
#define N_BEFORE  45u /* of a part before it */
#define N_BEHIND  70u
#define N_ALL	  (N_BEFORE + N_TOKENS + N_BEHIND)
#define MAX_SPANS 48u
#define MAX_ROWS  40u
#define MAX_PARTS (MAX_ROWS * MAX_SPANS)
#define N_HEADS	  4u
#define N_KV	  2u

static struct rig_gpu g;
static uint32_t seed;

static uint32_t next_random(void)
{
	seed = seed * 1664525u + 1013904223u;
	return seed >> 8;
}

static void setup(void)
{
	const char *env = getenv("KVD_SEED");

	seed = env ? (uint32_t)strtoul(env, NULL, 10) : (uint32_t)time(NULL);
	printf("KVD_SEED=%u\n", seed);
	rig_gpu_open(&g);
	kern_init(KERN_ISA_AMX);
}

static void teardown(void)
{
	rig_gpu_close(&g);
}

struct problem {
	enum kern_type type;
	uint32_t head_dim, n_rows;
	struct gpu_span part[3]; /* as they are, uncut */
	uint64_t *skip; /* of the second; or NULL */
	char *q;
	struct gpu_span *spans;
	struct gpu_part *parts;
	struct gpu_tile *tiles;
	struct gpu_row *rows;
	struct kern_gpu_list lists[MAX_ROWS];
	float *state, *part_o, *part_ml;
	size_t n_state; /* floats: o, m, l */
	const struct kern_gpu_window *window;
};

static void fill(enum kern_type type, void *to, size_t n)
{
	float x[64];

	for (size_t i = 0; i < n; i += 64) {
		for (size_t j = 0; j < 64; j++)
			x[j] = (float)next_random() / (float)(1 << 22) - 2.0f;
		kern_from_f32(type, x, (char *)to + i * kern_type_bytes(type),
			      n - i < 64 ? n - i : 64);
	}
}

/* Pages of one tile, so that a cut behind any of them begins a page. */
static struct gpu_span make_span(const struct problem *p, int64_t pos,
				 uint32_t n)
{
	const size_t row = p->head_dim * kern_type_bytes(p->type);
	struct gpu_span s = { .head_bytes = GPU_TILE * row,
			      .page_bytes = 2 * N_KV * GPU_TILE * row,
			      .page_tokens = GPU_TILE,
			      .pos = pos,
			      .n_tokens = n };
	const size_t bytes =
		(n + GPU_TILE - 1) / GPU_TILE * (size_t)s.page_bytes;

	s.k = (uintptr_t)rig_gpu_alloc(&g, bytes);
	s.v = s.k + N_KV * s.head_bytes;
	fill(p->type, (void *)s.k, bytes / kern_type_bytes(p->type));
	return s;
}

static void make(struct problem *p, enum kern_type type, uint32_t head_dim,
		 uint32_t n_rows, int hide)
{
	const uint32_t n[] = { N_BEFORE, N_TOKENS, N_BEHIND };
	int64_t pos = 0;

	*p = (struct problem){ .type = type,
			       .head_dim = head_dim,
			       .n_rows = n_rows };
	for (uint32_t i = 0; i < 3; pos += n[i++])
		p->part[i] = make_span(p, pos, n[i]);
	if (hide) {
		p->skip = calloc(N_TOKENS / 64 + 1, 8);
		for (uint32_t t = 0; t < N_TOKENS; t++) /* whole tiles, too */
			if (next_random() % 3 == 0 || t / 64 == 3)
				p->skip[t / 64] |= 1ull << (t % 64);
	}
	p->n_state = (size_t)n_rows * N_HEADS * (head_dim + 2);
	p->q = rig_gpu_alloc(&g, (size_t)n_rows * N_HEADS * head_dim *
					 kern_type_bytes(type));
	fill(type, p->q, (size_t)n_rows * N_HEADS * head_dim);
	p->spans = rig_gpu_alloc(&g, MAX_SPANS * sizeof(*p->spans));
	p->parts = rig_gpu_alloc(&g, MAX_PARTS * sizeof(*p->parts));
	p->tiles = rig_gpu_alloc(&g, MAX_ROWS * sizeof(*p->tiles));
	p->rows = rig_gpu_alloc(&g, MAX_ROWS * sizeof(*p->rows));
	p->state = rig_gpu_alloc(&g, p->n_state * sizeof(float));
	p->part_o =
		rig_gpu_alloc(&g, (size_t)MAX_PARTS * N_HEADS * head_dim * 4);
	p->part_ml = rig_gpu_alloc(&g, (size_t)MAX_PARTS * N_HEADS * 8);
}

/* Tokens [from, from + n) of the second part as a span of its own. */
static struct gpu_span cut(const struct problem *p, uint32_t from, uint32_t n)
{
	struct gpu_span s = p->part[1];

	s.k += from / GPU_TILE * s.page_bytes;
	s.v += from / GPU_TILE * s.page_bytes;
	s.pos += from;
	s.n_tokens = n;
	if (p->skip) {
		uint64_t *skip = rig_gpu_alloc(&g, (n + 63) / 64 * 8);

		memset(skip, 0, (n + 63) / 64 * 8);
		for (uint32_t t = 0; t < n; t++)
			if (p->skip[(from + t) / 64] >> (from + t) % 64 & 1)
				skip[t / 64] |= 1ull << (t % 64);
		s.skip = (uintptr_t)skip;
	}
	return s;
}

/* The list with its second part in pieces of up to most tokens; one way to cut is none. */
static void lay(struct problem *p, uint32_t most, uint32_t goes_on)
{
	uint32_t n = 0, at = 0;

	p->spans[n++] = p->part[0];
	while (at < N_TOKENS) {
		const uint32_t tiles = 1 + next_random() % (most / GPU_TILE);
		const uint32_t left = N_TOKENS - at;
		const uint32_t k = most >= N_TOKENS || tiles * GPU_TILE > left
					   ? left
					   : tiles * GPU_TILE;

		p->spans[n] = cut(p, at, k);
		at += k;
		p->spans[n++].goes_on = goes_on && at < N_TOKENS;
		ck_assert_uint_lt(n, MAX_SPANS);
	}
	p->spans[n++] = p->part[2];
	for (uint32_t r = 0; r < p->n_rows; r++)
		p->lists[r] = (struct kern_gpu_list){
			/* the last rows see all, the others end all over it */
			r % 4 ? (int64_t)(next_random() % N_ALL)
			      : (int64_t)N_ALL,
			0, n
		};
}

static struct kern_gpu_plan plan(struct problem *p)
{
	const struct kern_gpu_shape s = { p->type, N_HEADS, N_KV, p->head_dim };
	struct kern_gpu_plan x = { .parts = p->parts,
				   .tiles = p->tiles,
				   .rows = p->rows,
				   .max_parts = MAX_PARTS,
				   .max_tiles = MAX_ROWS,
				   .tile_rows = p->window ? GPU_WIDE_ROWS : 0 };

	ck_assert_int_eq(
		kern_gpu_plan_rows(&s, p->spans, p->lists, p->n_rows, &x), 0);
	return x;
}

/* o, m, l, malloc'ed. */
static float *run(struct problem *p)
{
	const struct kern_gpu_plan x = plan(p);
	const size_t n = (size_t)p->n_rows * N_HEADS;
	const struct gpu_attn a = {
		.q = (uintptr_t)p->q,
		.spans = (uintptr_t)p->spans,
		.parts = (uintptr_t)p->parts,
		.tiles = (uintptr_t)p->tiles,
		.rows = (uintptr_t)p->rows,
		.part_o = (uintptr_t)p->part_o,
		.part_ml = (uintptr_t)p->part_ml,
		.o = (uintptr_t)p->state,
		.m = (uintptr_t)(p->state + n * p->head_dim),
		.l = (uintptr_t)(p->state + n * (p->head_dim + 1)),
		.n_heads = N_HEADS,
		.n_kv_heads = N_KV,
		.head_dim = p->head_dim,
		.n_rows = p->n_rows,
		.n_parts = x.n_parts,
		.n_tiles = x.n_tiles,
		.flags = GPU_ATTN_FINISH,
		.scale = 1.0f / sqrtf((float)p->head_dim),
	};
	float *out = malloc(p->n_state * sizeof(float));

	memset(p->state, 0xff, p->n_state * sizeof(float));
	ck_assert_int_eq(
		p->window ? kern_gpu_attn_wide(g.kern, p->window, &a, g.stream)
			  : kern_gpu_attn(g.kern, p->type, &a, g.stream),
		0);
	rig_gpu_wait(&g);
	memcpy(out, p->state, p->n_state * sizeof(float));
	return out;
}

/* Cut at random, it has the bits of the whole; with a grid of its own for each piece it has
 * not, or the comparison would tell nothing. */
static void compare(struct problem *p)
{
	const uint32_t most[] = { 32, 64, 224, 640 };
	const uint32_t was = seed;
	const size_t n = p->n_state * sizeof(float);
	int differs = 0;
	float *whole, *got;

	lay(p, N_TOKENS, 0);
	whole = run(p);
	for (uint32_t i = 0; i < 5; i++) {
		struct kern_gpu_list rows[MAX_ROWS];

		memcpy(rows, p->lists, sizeof(rows));
		lay(p, most[i % 4], i < 4);
		for (uint32_t r = 0; r < p->n_rows; r++)
			p->lists[r].pos = rows[r].pos;
		got = run(p);
		if (i == 4)
			differs = memcmp(got, whole, n) != 0;
		else
			ck_assert_msg(!memcmp(got, whole, n),
				      "pieces of up to %u tokens (seed %u)",
				      most[i], was);
		free(got);
	}
	ck_assert(differs);
	free(whole);
	free(p->skip);
}

static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };
static const uint32_t dims[] = { 64, 96, 128, 256 };

/* Three rows: parts, of every kind. */
START_TEST(decodes)
{
	struct problem p;

	make(&p, types[_i % 3], dims[_i / 3], 3, _i % 2);
	compare(&p);
}
END_TEST

/* As many rows as are tiles. */
START_TEST(prompts)
{
	struct problem p;

	make(&p, types[1 + _i % 2], dims[_i], MAX_ROWS, _i % 3 == 0);
	compare(&p);
}
END_TEST

START_TEST(wide_prompts)
{
	const uint64_t here = (uintptr_t)rig_gpu_alloc(&g, 4096);
	const uint64_t base =
		here < 1ull << 35 ? 0 : (here - (1ull << 35)) & ~4095ull;
	struct kern_gpu_window w;
	struct problem p;
	int ret;

	make(&p, types[1 + _i % 2], dims[_i / 2 * 2], MAX_ROWS, _i % 2);
	ret = kern_gpu_window(g.kern, 0, p.type, p.head_dim, base, 1ull << 36,
			      &w);
	if (ret == -ENOTSUP && g.is_real) {
		free(p.skip);
		return; /* no Hopper */
	}
	ck_assert_int_eq(ret, 0);
	p.window = &w;
	compare(&p);
}
END_TEST

/* The parts are those of the whole, wherever it is cut. */
START_TEST(plans)
{
	struct problem p;
	struct kern_gpu_plan x;

	make(&p, KERN_F32, 64, 1, 0);
	for (uint32_t i = 0; i < 20; i++) {
		lay(&p, 32u << next_random() % 5, 1);
		p.lists[0].pos = N_ALL;
		x = plan(&p);
		ck_assert_uint_eq(x.n_parts, 1 + 3 + 1);
		for (uint32_t k = 0; k < 3; k++) {
			const struct gpu_part *part = &p.parts[1 + k];

			ck_assert_int_eq(p.spans[part->span].pos + part->t0,
					 N_BEFORE + k * GPU_SPLIT_TOKENS);
			ck_assert_uint_lt(part->t0,
					  p.spans[part->span].n_tokens);
		}
		/* who ends in the second part of it has no third */
		p.lists[0].pos = N_BEFORE + 2 * GPU_SPLIT_TOKENS - 1;
		x = plan(&p);
		ck_assert_uint_eq(x.n_parts, 1 + 2);
		p.lists[0].pos = N_BEFORE + 2 * GPU_SPLIT_TOKENS;
		x = plan(&p);
		ck_assert_uint_eq(x.n_parts, 1 + 3);
		p.lists[0].pos = N_BEFORE - 1;
		x = plan(&p);
		ck_assert_uint_eq(x.n_parts, 1);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_grid");
	TCase *t = tcase_create("all");
	SRunner *sr;
	const char *why = rig_gpu_missing();
	int failed;

	if (why) {
		printf("skipped: no GPU: %s\n", why);
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, decodes, 0, 12);
	tcase_add_loop_test(t, prompts, 0, 4);
	tcase_add_loop_test(t, wide_prompts, 0, 4);
	tcase_add_test(t, plans);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
