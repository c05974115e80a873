/*
 * test_relay_lists.c - rows that share segments anywhere in their lists: other orders,
 * lengths, masks, temperatures, twice in one list. Always the bits of each row alone; what
 * is read, by the counters.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/attn.h"
#include "kvd/serve/relay.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_mem.h"

#define N_SEGS	 6u
#define MAX_ROWS 70u
#define LONGEST	 700u

static struct rig_mem *mem;
static struct segment_pool *pool;
static uint64_t seed;

struct row {
	struct seq q;
	struct page_run runs[64];
	uint32_t n_runs;
	uint64_t n_spans; /* tokens of all entries */
};

struct world {
	struct attn_shape g;
	struct kv_layout layout;
	struct seq maker[N_SEGS]; /* each of one segment */
	struct page_run made[N_SEGS][8];
	uint32_t n_made[N_SEGS];
	uint32_t n[N_SEGS];
	struct row rows[MAX_ROWS];
	uint32_t n_rows;
	char *q; /* [MAX_ROWS] queries */
};

static void setup(void)
{
	kern_init(KERN_ISA_AMX);
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 256 << 20,
						     .disk_bytes = 256 << 20 });
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 256 << 20), 0);
	seed = 7;
}

static void teardown(void)
{
	segment_pool_free(pool);
	rig_mem_close(mem);
}

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(rig_random(&seed) % n);
}

static void *numbers(enum kern_type type, size_t n)
{
	float *f = malloc(n * sizeof(*f));
	void *out = malloc(n * sizeof(*f));

	for (size_t i = 0; i < n; i++)
		f[i] = (float)rnd(1u << 20) * 0x1p-18f - 2;
	kern_from_f32(type, f, out, n);
	free(f);
	return out;
}

/* Pin the positions [from, to) of q. */
static uint32_t pin(struct seq *q, uint64_t from, uint64_t to,
		    struct page_run *runs, uint32_t max)
{
	const uint32_t n = seq_runs(q, from, to, UINT32_MAX, runs, max);
	uint64_t pages = 0;

	ck_assert_uint_le(n, max);
	for (uint32_t i = 0; i < n; i++) {
		runs[i].flags = PAGE_WRITE;
		pages += runs[i].n;
	}
	ck_assert_int_eq(
		pager_reserve(mem->pager, pages * q->layout.page_bytes), 0);
	ck_assert_int_eq(rig_mem_want(mem, runs, n), 0);
	return n;
}

static void unpin(struct seq *q, struct page_run *runs, uint32_t n)
{
	uint64_t pages = 0;

	for (uint32_t i = 0; i < n; i++)
		pages += runs[i].n;
	page_unpin(mem->pager, runs, n);
	pager_unreserve(mem->pager, pages * q->layout.page_bytes);
	seq_fini(q);
}

/* n tokens at the end of q, pinned since. */
static uint32_t append(const struct world *w, struct seq *q, uint32_t n,
		       struct page_run *runs, uint32_t max)
{
	const size_t elems = (size_t)n * w->g.n_kv_heads * w->g.head_dim;
	const uint64_t pos = q->n_tokens;
	struct attn_scratch s;
	struct attn_item it = { .shape = &w->g,
				.seq = q,
				.pos = pos,
				.n_rows = n,
				.in = w->g.type };
	struct seq_copy copy;
	uint32_t n_runs;

	attn_scratch_init(&s);
	ck_assert_int_eq(seq_grow(q, n, 0, &copy), 0);
	ck_assert_uint_eq(copy.n, 0);
	n_runs = pin(q, pos, pos + n, runs, max);
	it.k = numbers(w->g.type, elems);
	it.v = numbers(w->g.type, elems);
	ck_assert_int_eq(attn_layer(NULL, NULL, &s, &it, 1, 0), 0);
	free((void *)it.k);
	free((void *)it.v);
	attn_scratch_fini(&s);
	return n_runs;
}

static struct world *open_world(enum kern_type type, uint32_t page_tokens)
{
	struct world *w = calloc(1, sizeof(*w));

	w->g = (struct attn_shape){ .type = type,
				    .n_heads = 6,
				    .n_kv_heads = 2,
				    .head_dim = 64,
				    .scale = 0.125f,
				    .rope = { .kind = KERN_ROPE_HALVES,
					      .n_rot = 64,
					      .theta = 10000,
					      .scale = 1 } };
	w->layout = (struct kv_layout){
		.n_layers = 1,
		.n_kv_heads = w->g.n_kv_heads,
		.head_dim = w->g.head_dim,
		.elem_bytes = (uint32_t)kern_type_bytes(type),
		.page_tokens = page_tokens,
		.page_layers = 1,
	};
	ck_assert_int_eq(kv_layout_init(&w->layout), 0);
	for (uint32_t i = 0; i < N_SEGS; i++) {
		w->n[i] = 40 + rnd(LONGEST - 40);
		seq_init(&w->maker[i], pool, &w->layout, 1024);
		w->n_made[i] = append(w, &w->maker[i], w->n[i], w->made[i], 8);
		seq_seal(&w->maker[i]);
		ck_assert_uint_eq(w->maker[i].n_entries, 1);
	}
	w->q = numbers(type, (size_t)MAX_ROWS * w->g.n_heads * w->g.head_dim);
	return w;
}

static void close_world(struct world *w)
{
	for (uint32_t i = 0; i < w->n_rows; i++)
		unpin(&w->rows[i].q, w->rows[i].runs, w->rows[i].n_runs);
	for (uint32_t i = 0; i < N_SEGS; i++)
		unpin(&w->maker[i], w->made[i], w->n_made[i]);
	free(w->q);
	free(w);
}

static struct row *new_row(struct world *w)
{
	struct row *r = &w->rows[w->n_rows++];

	ck_assert_uint_le(w->n_rows, MAX_ROWS);
	seq_init(&r->q, pool, &w->layout, 64);
	return r;
}

/* The first n tokens of segment i, from tile to tile or to its end. */
static void add_segment(struct world *w, struct row *r, uint32_t i,
			uint32_t from, uint32_t n)
{
	struct segment *seg = w->maker[i].entries[0].seg;

	segment_get(seg);
	ck_assert_int_eq(seq_append(&r->q, seg, from, n), 0);
	seq_part(&r->q);
}

static void end_row(struct world *w, struct row *r, uint32_t n_own)
{
	seq_part(&r->q);
	r->n_runs = append(w, &r->q, n_own, r->runs, 64);
}

struct counted {
	uint64_t bytes, shared;
};

/* All rows in one call, or one. */
static struct counted run(struct world *w, uint32_t from, uint32_t n, char *o,
			  float *lse)
{
	const size_t elems = (size_t)w->g.n_heads * w->g.head_dim;
	const size_t es = kern_type_bytes(w->g.type);
	struct attn_item it[MAX_ROWS];
	struct attn_scratch s;
	struct counted c;

	attn_scratch_init(&s);
	s.st_bytes = stat_get(STAT_COUNTER, "test_read", "", NULL, NULL, 1);
	s.st_shared = stat_get(STAT_COUNTER, "test_shared", "", NULL, NULL, 1);
	c = (struct counted){ stat_read(s.st_bytes), stat_read(s.st_shared) };
	for (uint32_t i = 0; i < n; i++)
		it[i] = (struct attn_item){
			.shape = &w->g,
			.seq = &w->rows[from + i].q,
			.pos = w->rows[from + i].q.n_tokens - 1,
			.n_rows = 1,
			.in = w->g.type,
			.q = w->q + (from + i) * elems * es,
			.o = o + (from + i) * elems * es,
			.lse = lse ? lse + (from + i) * w->g.n_heads : NULL,
		};
	ck_assert_int_eq(attn_layer(NULL, NULL, &s, it, n, 0), 0);
	c.bytes = stat_read(s.st_bytes) - c.bytes;
	c.shared = stat_read(s.st_shared) - c.shared;
	attn_scratch_fini(&s);
	return c;
}

/* Together as alone; the bytes of both. */
static struct counted compare(struct world *w)
{
	const size_t n = (size_t)MAX_ROWS * w->g.n_heads;
	const size_t bytes = n * w->g.head_dim * kern_type_bytes(w->g.type);
	char *o = calloc(1, bytes), *alone = calloc(1, bytes);
	float *lse = calloc(n, sizeof(*lse)), *lse1 = calloc(n, sizeof(*lse));
	const struct counted c = run(w, 0, w->n_rows, o, lse);
	struct counted sum = { 0, 0 };

	for (uint32_t i = 0; i < w->n_rows; i++) {
		const struct counted one = run(w, i, 1, alone, lse1);

		sum.bytes += one.bytes;
		ck_assert_uint_eq(one.shared, 0);
	}
	ck_assert(!memcmp(o, alone, bytes));
	ck_assert(!memcmp(lse, lse1, n * sizeof(*lse)));
	ck_assert_uint_eq(c.bytes + c.shared, sum.bytes);
	free(o);
	free(alone);
	free(lse);
	free(lse1);
	return c;
}

static uint64_t token_bytes(const struct world *w)
{
	return 2ull * w->g.n_kv_heads * w->g.head_dim *
	       kern_type_bytes(w->g.type);
}

static const enum kern_type types[] = { KERN_F32, KERN_F16, KERN_BF16 };

/* bytes read = shared + sum of private, wherever and in whatever order it is shared. */
START_TEST(chunks_in_any_order_are_read_once)
{
	struct world *w = open_world(types[_i], 0);
	uint64_t tokens = 0;

	for (uint32_t i = 0; i < 24; i++) {
		struct row *r = new_row(w);
		uint32_t order[N_SEGS];

		for (uint32_t k = 0; k < N_SEGS; k++) {
			const uint32_t j = rnd(k + 1);

			order[k] = order[j];
			order[j] = k;
		}
		if (i % 3 == 1) /* some text of one's own in the middle */
			add_segment(w, r, order[0], 0, w->n[order[0]]);
		end_row(w, r, 1 + i);
		seq_part(&r->q);
		for (uint32_t k = i % 3 == 1; k < N_SEGS; k++)
			add_segment(w, r, order[k], 0, w->n[order[k]]);
		tokens += 1 + i;
	}
	for (uint32_t k = 0; k < N_SEGS; k++)
		tokens += w->n[k];
	ck_assert_uint_eq(compare(w).bytes, tokens * token_bytes(w));
	close_world(w);
}
END_TEST

/* What is as long as the shortest is read once, the next once by those who have it ... */
START_TEST(beginnings_of_a_segment_are_read_once)
{
	struct world *w = open_world(types[_i], 0);
	const uint32_t tiles = w->n[0] / 64;
	uint64_t tokens = 0;
	struct counted c;

	for (uint32_t i = 0; i < 12; i++) {
		struct row *r = new_row(w);

		add_segment(w, r, 0, 0,
			    i % 3 ? KV_MIN(64 * (i % 4 + 1), tiles * 64)
				  : w->n[0]);
		end_row(w, r, 3);
		tokens += 3;
	}
	c = compare(w);
	ck_assert_uint_eq(c.bytes, (w->n[0] + tokens) * token_bytes(w));
	close_world(w);
}
END_TEST

/* One piece of a list at random: which, from where, how far, how seen. */
static void add_random(struct world *w, struct row *r)
{
	const uint32_t i = rnd(N_SEGS);
	const uint32_t from = rnd(3) ? 0 : rnd(w->n[i]) / 64 * 64;
	const uint32_t left = w->n[i] - from;
	const uint32_t n = rnd(3) ? left : 1 + rnd(left);
	const uint64_t pos = r->q.n_tokens;

	r->q.context = (struct seq_context){ .temperature = 1, .scale = 1 };
	if (!rnd(3)) {
		r->q.context.shift = (int64_t)rnd(3) * 64;
		r->q.context.temperature = 0.8f;
		r->q.context.scale = rnd(2) ? 0.9f : 1;
	}
	add_segment(w, r, i, from, n);
	if (!rnd(3)) {
		const uint64_t a = pos + rnd(n), b = a + rnd(40);

		if (a < b)
			ck_assert_int_eq(seq_skip(&r->q, a, KV_MIN(b, pos + n)),
					 0);
	}
}

START_TEST(random_lists_give_the_bits_of_each_alone)
{
	static const uint32_t pages[] = { 0, 32, 96, 128 };
	uint64_t shared = 0;

	for (uint32_t round = 0; round < 6; round++) {
		struct world *w = open_world(types[_i % 3], pages[_i / 3]);
		const uint32_t n = 2 + rnd(MAX_ROWS - 2);

		for (uint32_t i = 0; i < n; i++) {
			struct row *r = new_row(w);
			const uint32_t n_pieces = rnd(8);

			for (uint32_t k = 0; k < n_pieces; k++)
				add_random(w, r);
			r->q.context = (struct seq_context){ .temperature = 1,
							     .scale = 1 };
			end_row(w, r, 1 + rnd(40));
		}
		shared += compare(w).shared;
		close_world(w);
	}
	ck_assert_uint_gt(shared, 0);
}
END_TEST

/* Few tokens are shared by those who have as few. */
START_TEST(one_short_beginning_keeps_nobody_apart)
{
	struct world *w = open_world(KERN_BF16, 0);

	for (uint32_t i = 0; i < 6; i++) {
		struct row *r = new_row(w);

		add_segment(w, r, 0, 0, i < 2 ? 20 : w->n[0]);
		end_row(w, r, 1);
	}
	ck_assert_uint_ge(w->n[0], 64);
	ck_assert_uint_eq(compare(w).bytes,
			  (20 + w->n[0] + 6) * token_bytes(w));
	close_world(w);
}
END_TEST

/* Two orders of much text: what does not fit into what may be kept is read again. */
START_TEST(what_is_kept_has_a_bound)
{
	struct world *w = open_world(KERN_F32, 0);
	const size_t tile = 6 * (64 + 2) * sizeof(float);
	struct counted c;
	uint64_t all = 0;

	for (uint32_t i = 0; i < MAX_ROWS; i++) {
		struct row *r = new_row(w);

		for (uint32_t k = 0; k < 40; k++) {
			const uint32_t j = i % 2 ? k : 39 - k;

			add_segment(w, r, j % N_SEGS, 0, w->n[j % N_SEGS]);
		}
		end_row(w, r, 1);
		all += r->q.n_tokens;
	}
	/* as many tiles as there are to be kept: more than may be */
	ck_assert_uint_gt(all / 32 / 2 * tile, RELAY_KEPT_BYTES);
	c = compare(w);
	ck_assert_uint_gt(c.shared, c.bytes);
	close_world(w);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("relay_lists");
	TCase *t = tcase_create("relay_lists");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, chunks_in_any_order_are_read_once, 0, 3);
	tcase_add_loop_test(t, beginnings_of_a_segment_are_read_once, 0, 3);
	tcase_add_loop_test(t, random_lists_give_the_bits_of_each_alone, 0, 12);
	tcase_add_test(t, one_short_beginning_keeps_nobody_apart);
	tcase_add_test(t, what_is_kept_has_a_bound);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
