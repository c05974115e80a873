/*
 * test_attn_gpu.c - lists of sequences on the device against attn_layer()
 *
 * Pages lie in host memory, which the fake driver's kernels reach; so both write and read the
 * same ones.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/attn_gpu.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_gpu.h"
#include "tests/rig/rig_mem.h"

#define LAYERS	 3u
#define HEAD	 100u /* tokens of the first part */
#define CHUNK	 45u
#define TAIL	 14u
#define N_PATCH	 5u
#define PATCHED	 (HEAD + CHUNK) /* position of the second chunk */
#define TAIL_AT	 (HEAD + 2 * CHUNK)
#define N_TOKENS (TAIL_AT + TAIL)

static struct rig_gpu g;
static struct rig_mem *mem;
static struct segment_pool *pool;
static struct attn_gpu *dev;
static struct attn_scratch scratch;
static uint64_t seed = 1;

static const struct attn_shape shapes[] = {
	{ KERN_F32, 4, 2, 64, 0.125f, { KERN_ROPE_HALVES, 64, 10000, 1 } },
	{ KERN_BF16, 6, 2, 64, 0.125f, { KERN_ROPE_INTERLEAVED, 48, 500, 1 } },
	{ KERN_F16, 3, 3, 96, 0.1f, { KERN_ROPE_HALVES, 96, 10000, 0.5f } },
	{ KERN_BF16, 2, 1, 128, 0.09f, { .kind = KERN_ROPE_NONE } },
};
static const uint32_t patch_at[N_PATCH] = { 2, 3, 4, 20, 44 };

/* A part, a chunk, a chunk with a patch and hidden tokens, a tail. */
struct sample {
	struct attn_shape shape;
	struct seq seq, chunk;
	struct page_run runs[16], chunk_run;
	uint32_t n_runs;
	size_t nq, nkv;
	float *q, *k, *v; /* [N_TOKENS] rows */
};

static float *values(size_t n)
{
	float *f = malloc(n * sizeof(*f));

	ck_assert_ptr_nonnull(f);
	for (size_t i = 0; i < n; i++)
		f[i] = (float)(rig_random(&seed) >> 40) * 0x1p-24f - 0.5f;
	return f;
}

static void store(struct sample *l, struct seq *seq, uint64_t pos, uint32_t n,
		  const uint32_t *at)
{
	for (uint32_t i = 0; i < LAYERS; i++) {
		struct attn_item it = {
			.shape = &l->shape,
			.seq = seq,
			.pos = pos,
			.rows_at = at,
			.n_rows = n,
			.in = KERN_F32,
			.k = l->k + (pos + i) % 7 * l->nkv,
			.v = l->v + (pos + i) % 5 * l->nkv,
		};

		ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, &it, 1, i),
				 0);
	}
}

static void pin(struct page_run *runs, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		runs[i].flags = PAGE_WRITE;
		ck_assert_int_eq(
			pager_reserve(mem->pager,
				      runs[i].n *
					      range_page_bytes(runs[i].range)),
			0);
	}
	ck_assert_int_eq(rig_mem_want(mem, runs, n), 0);
}

static void unpin(struct page_run *runs, uint32_t n)
{
	page_unpin(mem->pager, runs, n);
	for (uint32_t i = 0; i < n; i++)
		pager_unreserve(mem->pager,
				runs[i].n * range_page_bytes(runs[i].range));
}

static void grow(struct seq *q, uint32_t n)
{
	struct seq_copy copy;

	ck_assert_int_eq(seq_grow(q, n, 0, &copy), 0);
	ck_assert_uint_eq(copy.n, 0);
}

static void make_chunk(struct sample *l, const struct kv_layout *y)
{
	seq_init(&l->chunk, pool, y, 1024);
	grow(&l->chunk, CHUNK);
	ck_assert_uint_eq(
		seq_runs(&l->chunk, 0, CHUNK, UINT32_MAX, &l->chunk_run, 1), 1);
	pin(&l->chunk_run, 1);
	store(l, &l->chunk, 0, CHUNK, NULL);
	seq_seal(&l->chunk);
}

static void make(struct sample *l, const struct attn_shape *s)
{
	struct kv_layout y = { .n_layers = LAYERS,
			       .n_kv_heads = s->n_kv_heads,
			       .head_dim = s->head_dim,
			       .elem_bytes = (uint32_t)kern_type_bytes(s->type),
			       .page_tokens = 32,
			       .page_layers = 2 };
	uint32_t at[N_PATCH], *own = malloc(sizeof(at));
	struct segment *patch;

	memset(l, 0, sizeof(*l));
	l->shape = *s;
	l->nq = (size_t)s->n_heads * s->head_dim;
	l->nkv = (size_t)s->n_kv_heads * s->head_dim;
	l->q = values(N_TOKENS * l->nq);
	l->k = values(N_TOKENS * l->nkv);
	l->v = values(N_TOKENS * l->nkv);
	ck_assert_int_eq(kv_layout_init(&y), 0);
	make_chunk(l, &y);
	seq_init(&l->seq, pool, &y, 1024);
	grow(&l->seq, HEAD);
	seq_part(&l->seq);
	segment_get(l->chunk.entries->seg);
	ck_assert_int_eq(seq_append(&l->seq, l->chunk.entries->seg, 0, CHUNK),
			 0);
	ck_assert_int_eq(seq_patch_new(&l->seq, N_PATCH, &patch), 0);
	segment_get(l->chunk.entries->seg);
	ck_assert_int_eq(seq_append_patched(&l->seq, l->chunk.entries->seg, 0,
					    CHUNK, patch, 1),
			 0);
	segment_put(patch);
	memcpy(own, patch_at, sizeof(patch_at));
	ck_assert_int_eq(seq_patch(&l->seq, 2, 0, own, N_PATCH), 0);
	seq_part(&l->seq);
	grow(&l->seq, TAIL);
	ck_assert_int_eq(seq_skip(&l->seq, 30, 43), 0);
	ck_assert_int_eq(seq_skip(&l->seq, HEAD + 7, HEAD + 9), 0);
	l->n_runs = seq_runs(&l->seq, 0, N_TOKENS, UINT32_MAX, l->runs, 16);
	ck_assert_uint_le(l->n_runs, 16);
	pin(l->runs, l->n_runs);
	store(l, &l->seq, 0, HEAD, NULL);
	for (uint32_t i = 0; i < N_PATCH; i++)
		at[i] = PATCHED + patch_at[i];
	store(l, &l->seq, at[0], N_PATCH, at);
	store(l, &l->seq, TAIL_AT, TAIL, NULL);
}

static void drop(struct sample *l)
{
	unpin(l->runs, l->n_runs);
	unpin(&l->chunk_run, 1);
	seq_fini(&l->seq);
	seq_fini(&l->chunk);
	free(l->q);
	free(l->k);
	free(l->v);
}

static void near(const struct sample *l, const float *got, const float *want,
		 size_t n, const char *what)
{
	/* of values up to a half; the CPU rounds probabilities of bf16 */
	const double most = l->shape.type == KERN_BF16	? 5e-3
			    : l->shape.type == KERN_F16 ? 5e-4
							: 1e-5;

	for (size_t i = 0; i < n; i++)
		ck_assert_msg(fabs((double)got[i] - (double)want[i]) <= most,
			      "%s: %zu: %g, not %g", what, i, (double)got[i],
			      (double)want[i]);
}

static struct attn_item item(struct sample *l, uint64_t pos, uint32_t n,
			     float *o)
{
	return (struct attn_item){ .shape = &l->shape,
				   .seq = &l->seq,
				   .pos = pos,
				   .n_rows = n,
				   .in = KERN_F32,
				   .q = l->q + pos * l->nq,
				   .o = o };
}

/* The item on the CPU and on the device, at each layer. */
static void both(struct sample *l, struct attn_item it, const char *what)
{
	const size_t n = it.n_rows * l->nq;
	float *want = malloc(n * sizeof(*want));

	for (uint32_t i = 0; i < LAYERS; i += 2) {
		struct attn_item x = it;

		x.o = want;
		ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, &x, 1, i), 0);
		memset(it.o, 0x7f, n * sizeof(*want));
		ck_assert_int_eq(attn_gpu_items(dev, &scratch, &it, 1, i), 0);
		near(l, it.o, want, n, what);
	}
	free(want);
}

/* ---- tests ------------------------------------------------------------------------ */

/* _i: shape */
START_TEST(lists_of_every_kind)
{
	uint32_t at[N_PATCH];
	struct attn_item it;
	struct sample l;
	float *o;

	make(&l, &shapes[_i]);
	o = malloc(N_TOKENS * l.nq * sizeof(*o));
	both(&l, item(&l, N_TOKENS - 1, 1, o), "decode");
	both(&l, item(&l, TAIL_AT, TAIL, o), "tail");
	both(&l, item(&l, 25, 20, o), "first part");
	for (uint32_t i = 0; i < N_PATCH; i++)
		at[i] = PATCHED + patch_at[i];
	it = item(&l, at[0], N_PATCH, o);
	it.rows_at = at;
	both(&l, it, "patch");
	it = item(&l, TAIL_AT, TAIL, o);
	it.k = l.k;
	it.v = l.v;
	both(&l, it, "stored and seen");
	free(o);
	drop(&l);
}
END_TEST

/* _i: shape. Entries seen with a temperature and a scale; a row before them is left alone. */
START_TEST(seen_otherwise)
{
	struct attn_item it[2];
	struct sample l;
	float *o, *plain, *alone, lse[TAIL * 8], want[TAIL * 8];

	make(&l, &shapes[_i]);
	o = malloc(N_TOKENS * l.nq * sizeof(*o));
	plain = malloc(l.nq * sizeof(*plain));
	alone = malloc(l.nq * sizeof(*alone));
	it[0] = item(&l, 40, 1, plain);
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 1, 1), 0);
	/* enough rows for a tile, and a few less */
	for (int i = 0; i < 2; i++) {
		const uint32_t n = i ? 1 : TAIL;

		l.seq.entries[1].context = (struct seq_context){ 0, 0.5f, 1 };
		both(&l, item(&l, N_TOKENS - n, n, o), "sharper");
		l.seq.entries[1].context = (struct seq_context){ 0, 1, 0.7f };
		both(&l, item(&l, N_TOKENS - n, n, o), "less");
		l.seq.entries[2].context = (struct seq_context){ 0, 2, 1.5f };
		both(&l, item(&l, N_TOKENS - n, n, o), "two ways");
		l.seq.entries[2].context = l.seq.entries[1].context;
		both(&l, item(&l, N_TOKENS - n, n, o), "two of one");
	}
	it[0] = item(&l, TAIL_AT, TAIL, o);
	it[0].lse = want;
	ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, it, 1, 1), 0);
	it[0].lse = lse;
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 1, 1), 0);
	for (uint32_t i = 0; i < TAIL * l.shape.n_heads; i++)
		ck_assert_double_eq_tol((double)want[i], (double)lse[i], 5e-3);
	it[1] = item(&l, 40, 1, alone);
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 2, 1), 0);
	ck_assert(!memcmp(alone, plain, l.nq * sizeof(*plain)));
	/* rows enough for tiles, that see nothing plainly */
	l.seq.entries[0].context = (struct seq_context){ 0, 0.7f, 0.9f };
	both(&l, item(&l, 10, 80, o), "tiles");
	it[0] = item(&l, 50, 1, alone);
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 1, 2), 0);
	ck_assert(!memcmp(alone, o + 40 * l.nq, l.nq * sizeof(*o)));
	free(o);
	free(plain);
	free(alone);
	drop(&l);
}
END_TEST

/* _i: shape. Tiles by wgmma, where there is a kernel for it: the bits of mma. */
START_TEST(tiles_by_wgmma)
{
	const struct attn_gpu_conf c = {
		.api = g.api, .ctx = g.ctx, .kern = g.kern, .stream = g.stream
	};
	const int can =
		kern_gpu_wide_kind(shapes[_i].type, shapes[_i].head_dim) != 0;
	struct attn_gpu *plain;
	struct attn_item it;
	struct sample l;
	float *o, *want;

	ck_assert_int_eq(attn_gpu_new(&plain, &c), 0);
	make(&l, &shapes[_i]);
	o = malloc(N_TOKENS * l.nq * sizeof(*o));
	want = malloc(N_TOKENS * l.nq * sizeof(*want));
	l.seq.entries[1].context = (struct seq_context){ 0, 0.5f, 1.5f };
	for (uint32_t k = 0; k < 2; k++) {
		const uint64_t before = attn_gpu_n_wide(dev);

		it = item(&l, k ? 5 : HEAD + 3, k ? 90 : 3, o);
		ck_assert_int_eq(attn_gpu_items(dev, &scratch, &it, 1, k + 1),
				 0);
		it.o = want;
		ck_assert_int_eq(attn_gpu_items(plain, &scratch, &it, 1, k + 1),
				 0);
		ck_assert(!memcmp(o, want, it.n_rows * l.nq * sizeof(*o)));
		/* three rows are by parts */
		ck_assert_int_eq(attn_gpu_n_wide(dev) > before, can && k);
	}
	ck_assert_uint_eq(attn_gpu_n_wide(plain), 0);
	free(o);
	free(want);
	attn_gpu_free(plain);
	drop(&l);
}
END_TEST

static uint64_t used(void)
{
	struct fake_stats st;

	g.ctl.stats(&st);
	return st.used_bytes;
}

/* _i: shape. Queries of two rows at a time, rotated for all distances: the same bits, with less
 * memory. */
START_TEST(queries_in_turns)
{
	const size_t es = kern_type_bytes(shapes[_i].type);
	struct attn_gpu_conf c = {
		.api = g.api, .ctx = g.ctx, .kern = g.kern, .stream = g.stream
	};
	uint64_t few_bytes, all_bytes;
	struct attn_gpu *few;
	struct attn_item it;
	struct sample l;
	float *o, *want;

	make(&l, &shapes[_i]);
	c.query_bytes = 5 * l.nq * es; /* there is more than one distance */
	ck_assert_int_eq(attn_gpu_new(&few, &c), 0);
	o = malloc(N_TOKENS * l.nq * sizeof(*o));
	want = malloc(N_TOKENS * l.nq * sizeof(*want));
	l.seq.entries[1].context = (struct seq_context){ 0, 0.5f, 1.5f };
	for (uint32_t k = 0; k < 2; k++) {
		const uint32_t at = k ? HEAD - 20 : TAIL_AT;
		const uint32_t n = k ? 64 : TAIL;
		uint64_t before = used();

		it = item(&l, at, n, o);
		ck_assert_int_eq(attn_gpu_items(few, &scratch, &it, 1, 2), 0);
		few_bytes = used() - before;
		before = used();
		it.o = want;
		ck_assert_int_eq(attn_gpu_items(dev, &scratch, &it, 1, 2), 0);
		all_bytes = used() - before;
		ck_assert(!memcmp(o, want, n * l.nq * sizeof(*o)));
		if (!k && l.shape.rope.kind != KERN_ROPE_NONE)
			ck_assert_uint_lt(few_bytes, all_bytes);
	}
	free(o);
	free(want);
	attn_gpu_free(few);
	drop(&l);
}
END_TEST

/* As a client's: rows in the pages' own type. */
START_TEST(rows_of_the_type_of_the_pages)
{
	struct attn_item it;
	struct sample l;
	float *want, *got;
	uint16_t *q, *k, *v, *o, *p;
	size_t n;

	make(&l, &shapes[1]);
	n = TAIL * l.nq;
	q = malloc(n * 2);
	o = malloc(n * 2);
	p = malloc(n * 2);
	k = malloc(TAIL * l.nkv * 2);
	v = malloc(TAIL * l.nkv * 2);
	got = malloc(n * 4);
	want = malloc(n * 4);
	kern_from_f32(KERN_BF16, l.q, q, n);
	kern_from_f32(KERN_BF16, l.k, k, TAIL * l.nkv);
	kern_from_f32(KERN_BF16, l.v, v, TAIL * l.nkv);
	it = item(&l, TAIL_AT, TAIL, NULL);
	it.in = KERN_BF16;
	it.q = q;
	it.k = k;
	it.v = v;
	it.o = p;
	ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, &it, 1, 1), 0);
	it.o = o;
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, &it, 1, 1), 0);
	kern_to_f32(KERN_BF16, p, want, n);
	kern_to_f32(KERN_BF16, o, got, n);
	near(&l, got, want, n, "bf16");
	free(q);
	free(o);
	free(p);
	free(k);
	free(v);
	free(got);
	free(want);
	drop(&l);
}
END_TEST

/* Items of several shapes in one call, each as alone, bit for bit. */
START_TEST(a_row_does_not_know_its_company)
{
	struct attn_item it[6], one;
	struct sample l[3];
	float *o[6], *alone;

	for (int i = 0; i < 3; i++)
		make(&l[i], &shapes[i == 2 ? 0 : 0 + i]);
	for (int i = 0; i < 6; i++) {
		struct sample *x = &l[(int[]){ 0, 2, 0, 1, 1, 2 }[i]];

		o[i] = malloc(TAIL * x->nq * sizeof(float));
		it[i] = item(x, i == 3 ? TAIL_AT : N_TOKENS - 1 - (uint32_t)i,
			     i == 3 ? TAIL : 1, o[i]);
	}
	it[4].n_rows = 0;
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 6, 2), 0);
	for (int i = 0; i < 6; i++) {
		const size_t n = (size_t)it[i].n_rows * it[i].shape->n_heads *
				 it[i].shape->head_dim * sizeof(float);

		alone = malloc(n + 1);
		one = it[i];
		one.o = alone;
		ck_assert_int_eq(attn_gpu_items(dev, &scratch, &one, 1, 2), 0);
		ck_assert(!memcmp(alone, o[i], n));
		free(alone);
		free(o[i]);
	}
	for (int i = 0; i < 3; i++)
		drop(&l[i]);
}
END_TEST

/* As a model's step: all layers of one plan. */
START_TEST(a_plan_of_all_layers)
{
	struct attn_item it[2];
	struct attn_gpu_step step = { .items = it,
				      .n_items = 2,
				      .n_layers = LAYERS };
	struct attn_gpu_rows rows;
	struct sample l;
	float *q, *o, *want, *k, *v;
	size_t n;

	make(&l, &shapes[1]);
	n = 3 * l.nq;
	want = malloc(n * sizeof(*want));
	q = rig_gpu_alloc(&g, n * sizeof(*q));
	o = rig_gpu_alloc(&g, n * sizeof(*o));
	k = rig_gpu_alloc(&g, l.nkv * sizeof(*k));
	v = rig_gpu_alloc(&g, l.nkv * sizeof(*v));
	it[0] = item(&l, 50, 2, want);
	it[1] = item(&l, N_TOKENS - 1, 1, want + 2 * l.nq);
	it[1].k = l.k;
	it[1].v = l.v;
	memcpy(q, l.q + 50 * l.nq, 2 * l.nq * sizeof(*q));
	memcpy(q + 2 * l.nq, l.q + (N_TOKENS - 1) * l.nq, l.nq * sizeof(*q));
	memcpy(v, l.v, l.nkv * sizeof(*v));
	rows = (struct attn_gpu_rows){ (uintptr_t)q, (uintptr_t)k, (uintptr_t)v,
				       (uintptr_t)o };
	ck_assert_int_eq(attn_gpu_begin(dev, &scratch, &step, 1), 0);
	for (uint32_t i = 0; i < LAYERS; i++) {
		memcpy(k, l.k, l.nkv * sizeof(*k));
		ck_assert_int_eq(attn_gpu_layer(dev, i, &rows), 0);
		rig_gpu_wait(&g);
		memcpy(want, o, n * sizeof(*o));
		o[0] = 0;
		/* the same plan again: the other way in gives the same bits */
		it[0].o = malloc(n * sizeof(*o));
		it[1].o = (float *)it[0].o + 2 * l.nq;
		ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 2, i), 0);
		ck_assert(!memcmp(it[0].o, want, n * sizeof(*want)));
		free(it[0].o);
		ck_assert_int_eq(attn_gpu_begin(dev, &scratch, &step, 1), 0);
	}
	rig_gpu_wait(&g);
	free(want);
	drop(&l);
}
END_TEST

/* Ranges of layers: from one on an entry is seen without its patch, in the last one only some
 * rows attend. Each as by itself. */
START_TEST(a_plan_of_ranges)
{
	static const uint32_t some[] = { 1, 2, 4 };
	struct attn_item it[2];
	const struct attn_gpu_step steps[] = {
		{ .items = it, .n_items = 2, .n_layers = 1 },
		{ .items = it, .n_items = 2, .layer = 1, .n_layers = 1 },
		{ .items = it,
		  .n_items = 2,
		  .layer = 2,
		  .n_layers = 1,
		  .wanted = some,
		  .n_wanted = 3 },
	};
	struct attn_gpu_rows rows;
	struct sample l;
	float *q, *o, *want, *some_q, *k, *v;
	size_t n;

	make(&l, &shapes[0]);
	n = 5 * l.nq;
	want = malloc(n * sizeof(*want));
	l.seq.entries[2].stop_layer = 1;
	o = malloc(TAIL * l.nq * sizeof(*o));
	both(&l, item(&l, TAIL_AT, TAIL, o), "stopped");
	free(o);
	q = rig_gpu_alloc(&g, n * sizeof(*q));
	o = rig_gpu_alloc(&g, n * sizeof(*o));
	k = rig_gpu_alloc(&g, 2 * l.nkv * sizeof(*k));
	v = rig_gpu_alloc(&g, 2 * l.nkv * sizeof(*v));
	some_q = rig_gpu_alloc(&g, 3 * l.nq * sizeof(*some_q));
	it[0] = item(&l, 50, 3, want);
	it[1] = item(&l, N_TOKENS - 2, 2, want + 3 * l.nq);
	memcpy(q, l.q + 50 * l.nq, 3 * l.nq * sizeof(*q));
	memcpy(q + 3 * l.nq, l.q + (N_TOKENS - 2) * l.nq,
	       2 * l.nq * sizeof(*q));
	for (uint32_t i = 0; i < 3; i++)
		memcpy(some_q + i * l.nq, q + some[i] * l.nq,
		       l.nq * sizeof(*q));
	it[1].k = l.k;
	it[1].v = l.v;
	memcpy(v, l.v, 2 * l.nkv * sizeof(*v));
	rows = (struct attn_gpu_rows){ (uintptr_t)q, (uintptr_t)k, (uintptr_t)v,
				       (uintptr_t)o };
	for (uint32_t i = 0; i < LAYERS; i++) {
		memcpy(k, l.k, 2 * l.nkv * sizeof(*k));
		ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 2, i), 0);
		/* the plan is one of all layers, this one is looked at */
		ck_assert_int_eq(attn_gpu_begin(dev, &scratch, steps, 3), 0);
		rows.q = (uintptr_t)(i == 2 ? some_q : q);
		ck_assert_int_eq(attn_gpu_layer(dev, i, &rows), 0);
		rig_gpu_wait(&g);
		for (uint32_t r = 0; r < (i == 2 ? 3u : 5u); r++)
			ck_assert(!memcmp(o + r * l.nq,
					  want + (i == 2 ? some[r] : r) * l.nq,
					  l.nq * sizeof(*o)));
	}
	free(want);
	drop(&l);
}
END_TEST

/* _i: shape. Sums alone, of rows of the host and of rows that are there: those that come with
 * outputs. */
START_TEST(sums_without_outputs)
{
	struct attn_item it[2];
	struct sample l;
	float want[TAIL * 8], lse[3][TAIL * 8], *q, *o;
	size_t n;

	make(&l, &shapes[_i]);
	n = TAIL * l.shape.n_heads;
	o = malloc(TAIL * l.nq * sizeof(*o));
	q = rig_gpu_alloc(&g, TAIL * l.nq * sizeof(*q));
	memcpy(q, l.q + TAIL_AT * l.nq, TAIL * l.nq * sizeof(*q));
	it[0] = item(&l, TAIL_AT, TAIL, NULL);
	it[0].lse = want;
	ck_assert_int_eq(attn_layer(NULL, NULL, &scratch, it, 1, 1), 0);
	it[0].lse = lse[0];
	it[1] = it[0];
	it[1].lse = lse[1];
	it[1].q = q;
	it[1].on_device = 1;
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 2, 1), 0);
	it[0].o = o;
	it[0].lse = lse[2];
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 1, 1), 0);
	for (size_t i = 0; i < n; i++)
		ck_assert_double_eq_tol((double)want[i], (double)lse[0][i],
					5e-3);
	ck_assert(!memcmp(lse[0], lse[1], n * sizeof(float)));
	ck_assert(!memcmp(lse[0], lse[2], n * sizeof(float)));
	free(o);
	drop(&l);
}
END_TEST

/* The head of a tile goes to another segment, every layer. */
START_TEST(heads_of_tiles)
{
	struct seq_copy copy;
	struct page_run run[16];
	struct seq fork;
	struct sample l;
	uint32_t n;

	make(&l, &shapes[1]);
	seq_init(&fork, pool, &l.seq.layout, 1024);
	ck_assert_int_eq(seq_fork(&fork, &l.seq), 0);
	seq_truncate(&fork, N_TOKENS - 4);
	ck_assert_int_eq(seq_grow(&fork, 3, 0, &copy), 0);
	ck_assert_uint_gt(copy.n, 0);
	n = seq_runs(&fork, N_TOKENS - 4, N_TOKENS - 1, UINT32_MAX, run, 16);
	pin(run, n);
	ck_assert_int_eq(attn_gpu_copy(dev, &copy), 0);
	for (uint32_t i = 0; i < LAYERS; i++)
		for (int v = 0; v < 2; v++) {
			const struct kv_layout *y = &l.seq.layout;
			const size_t row = (size_t)y->head_dim * y->elem_bytes;
			const char *a =
				segment_addr(copy.src, i, v, copy.src_from) +
				copy.src_from % y->page_tokens * row;
			const char *b = segment_addr(copy.dst, i, v, 0);

			for (uint32_t h = 0; h < y->n_kv_heads; h++)
				ck_assert(!memcmp(a + h * layout_head_bytes(y),
						  b + h * layout_head_bytes(y),
						  copy.n * row));
		}
	unpin(run, n);
	seq_copy_done(&copy);
	seq_fini(&fork);
	drop(&l);
}
END_TEST

START_TEST(what_is_refused)
{
	struct attn_item it[2];
	struct sample l;
	float *o;

	make(&l, &shapes[0]);
	o = malloc(2 * l.nq * sizeof(*o));
	it[0] = item(&l, 5, 1, o);
	it[0].resident_from = 1;
	it[1] = item(&l, 6, 1, o + l.nq);
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 2, 0), -ENOTSUP);
	ck_assert_int_eq(it[0].ret, -ENOTSUP);
	ck_assert_int_eq(it[1].ret, 0); /* not the other's fault */
	it[0] = item(&l, N_TOKENS - 1, 1, o);
	g.ctl.lose(CUDA_LAUNCH_FAILED);
	ck_assert_int_eq(attn_gpu_items(dev, &scratch, it, 2, 0), -ENODEV);
	ck_assert_int_eq(it[1].ret, -ENODEV);
	g.ctl.lose(0);
	free(o);
	drop(&l);
}
END_TEST

static void setup(void)
{
	struct attn_gpu_conf c;

	kern_init(KERN_ISA_AMX);
	rig_gpu_open_with(&g, 64 << 20);
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 64 << 20,
						     .disk_bytes = 64 << 20 });
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 64 << 20), 0);
	c = (struct attn_gpu_conf){
		.api = g.api,
		.ctx = g.ctx,
		.kern = g.kern,
		.stream = g.stream,
		.wide = UINT32_MAX,
	};
	ck_assert_int_eq(attn_gpu_new(&dev, &c), 0);
	attn_scratch_init(&scratch);
}

static void teardown(void)
{
	attn_scratch_fini(&scratch);
	attn_gpu_free(dev);
	segment_pool_free(pool);
	rig_mem_close(mem);
	rig_gpu_close(&g);
}

int main(void)
{
	Suite *s = suite_create("attn_gpu");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int failed;

	if (getenv("KVD_GPU")) {
		printf("skipped: a device does not reach these pages\n");
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, lists_of_every_kind, 0,
			    sizeof(shapes) / sizeof(*shapes));
	tcase_add_loop_test(t, seen_otherwise, 0,
			    sizeof(shapes) / sizeof(*shapes));
	tcase_add_loop_test(t, tiles_by_wgmma, 0,
			    sizeof(shapes) / sizeof(*shapes));
	tcase_add_loop_test(t, queries_in_turns, 0,
			    sizeof(shapes) / sizeof(*shapes));
	tcase_add_loop_test(t, sums_without_outputs, 0,
			    sizeof(shapes) / sizeof(*shapes));
	tcase_add_test(t, rows_of_the_type_of_the_pages);
	tcase_add_test(t, a_row_does_not_know_its_company);
	tcase_add_test(t, a_plan_of_all_layers);
	tcase_add_test(t, a_plan_of_ranges);
	tcase_add_test(t, heads_of_tiles);
	tcase_add_test(t, what_is_refused);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
