/*
 * test_cache.c - sequences as lists of segments, prefixes and chunks found again
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/cache/chunk.h"
#include "kvd/cache/prefix.h"
#include "kvd/cache/seq.h"
#include "kvd/mem/page.h"
#include "tests/rig/rig_mem.h"

static struct rig_mem *mem;
static struct segment_pool *pool;
static struct kv_layout layout;
static uint64_t state = 3;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

static void setup(void)
{
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 1 << 20,
						     .disk_bytes = 16 << 20 });
	layout = (struct kv_layout){ .n_layers = 3,
				     .n_kv_heads = 1,
				     .head_dim = 32,
				     .elem_bytes = 2,
				     .page_layers = 2 };
	ck_assert_int_eq(kv_layout_init(&layout), 0);
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 16 << 20), 0);
}

/* What is chosen for models of all sizes: layers, heads, dim; tokens, layers. */
START_TEST(pages_of_large_models_are_whole_folios)
{
	static const uint32_t chosen[][5] = {
		{ 6, 2, 64, 32, 6 }, /* rag-mini: small */
		{ 16, 8, 64, 64, 16 }, /* 1B: 2 MiB */
		{ 28, 8, 128, 128, 4 }, /* 3B: 2 MiB */
		{ 32, 8, 128, 32, 16 }, /* 8B: 2 MiB */
		{ 80, 8, 128, 32, 16 }, /* 70B: 2 MiB */
		{ 22, 4, 64, 32, 22 }, /* no such page */
	};

	for (size_t i = 0; i < KV_ARRAY_LEN(chosen); i++) {
		struct kv_layout g = { .n_layers = chosen[i][0],
				       .n_kv_heads = chosen[i][1],
				       .head_dim = chosen[i][2],
				       .elem_bytes = 2 };

		ck_assert_int_eq(kv_layout_init(&g), 0);
		ck_assert_uint_eq(g.page_tokens, chosen[i][3]);
		ck_assert_uint_eq(g.page_layers, chosen[i][4]);
		g.page_tokens = 64; /* what is told is kept */
		g.page_layers = 0;
		ck_assert_int_eq(kv_layout_init(&g), 0);
		ck_assert_uint_eq(g.page_tokens, 64);
	}
}
END_TEST

/* Of a device: { layers, kv heads, head size, align in KiB, tokens, layers } */
START_TEST(pages_of_a_device_waste_little)
{
	static const uint32_t chosen[][6] = {
		{ 6, 2, 64, 2048, 672, 6 }, /* rag-mini */
		{ 6, 2, 64, 64, 64, 2 },
		{ 16, 8, 64, 2048, 64, 16 }, /* 1B */
		{ 28, 8, 128, 2048, 128, 4 }, /* 3B */
		{ 32, 8, 128, 2048, 32, 16 }, /* 8B */
		{ 80, 8, 128, 2048, 32, 16 }, /* 70B */
	};

	for (size_t i = 0; i < KV_ARRAY_LEN(chosen); i++) {
		struct kv_layout g = { .n_layers = chosen[i][0],
				       .n_kv_heads = chosen[i][1],
				       .head_dim = chosen[i][2],
				       .elem_bytes = 2,
				       .page_align = chosen[i][3] << 10 };

		ck_assert_int_eq(kv_layout_init(&g), 0);
		ck_assert_uint_eq(g.page_tokens, chosen[i][4]);
		ck_assert_uint_eq(g.page_layers, chosen[i][5]);
		ck_assert_uint_eq(g.page_bytes % g.page_align, 0);
	}
}
END_TEST

/* Pages of a group side by side: from token to token always as far. */
START_TEST(pages_by_token_have_one_stride)
{
	static const uint32_t chosen[][5] = {
		{ 16, 8, 64, 0, 1024 }, /* 2 KiB a token and layer */
		{ 28, 8, 128, 0, 512 },
		{ 28, 8, 128, 7, 512 },
		{ 22, 4, 80, 0, 8192 },
		{ 32, 5, 40, 0, 0 }, /* 800 bytes: no such page */
		{ 28, 8, 128, 5, 0 }, /* layers that do not go in */
	};

	for (size_t i = 0; i < KV_ARRAY_LEN(chosen); i++) {
		struct kv_layout g = { .n_layers = chosen[i][0],
				       .n_kv_heads = chosen[i][1],
				       .head_dim = chosen[i][2],
				       .elem_bytes = 2,
				       .page_tokens = 1,
				       .page_layers = chosen[i][3] };
		const int ret = kv_layout_init(&g);

		ck_assert_int_eq(ret, chosen[i][4] ? 0 : -EINVAL);
		if (ret)
			continue;
		ck_assert_uint_eq(g.page_tokens, chosen[i][4]);
		ck_assert_uint_eq(g.page_bytes,
				  g.page_tokens * layout_row_bytes(&g));
		ck_assert_uint_eq(g.page_bytes % LAYOUT_FOLIO, 0);
		ck_assert_uint_eq(layout_row_bytes(&g),
				  2 * g.n_kv_heads * layout_head_bytes(&g) *
					  g.page_layers);
	}
}
END_TEST

static void teardown(void)
{
	segment_pool_check(pool);
	segment_pool_free(pool);
	rig_mem_close(mem);
}

START_TEST(an_address_is_arithmetic)
{
	struct segment *s;

	ck_assert_uint_eq(layout.n_groups, 2);
	ck_assert_uint_eq(layout.page_bytes, 8192);
	ck_assert_int_eq(segment_new(pool, &layout, 100, 0, &s), 0);
	ck_assert_ptr_eq(segment_addr(s, 0, 0, 0), range_addr(s->range));
	ck_assert_int_eq(segment_addr(s, 1, 1, 31) - segment_addr(s, 0, 0, 0),
			 3 * 32 * 32 * 2);
	ck_assert_int_eq(segment_addr(s, 2, 0, 0) - segment_addr(s, 0, 0, 0),
			 8192);
	ck_assert_int_eq(segment_addr(s, 0, 0, 64) - segment_addr(s, 0, 0, 0),
			 4 * 8192);
	segment_put(s);
}
END_TEST

/* Each position of a sequence has a label; what is copied keeps its label. */
struct labelled {
	struct seq q;
	uint32_t label[700];
};
static uint32_t labels[4096][2048]; /* [segment slot][token] */
static struct segment *slots[4096];
static uint32_t next_label;

static uint32_t *label_of(struct segment *s, uint32_t t)
{
	uint32_t i = 0;

	while (slots[i] && slots[i] != s)
		i++;
	slots[i] = s;
	return &labels[i][t];
}

static void append(struct labelled *l, uint32_t n)
{
	const uint64_t old = l->q.n_tokens;
	struct seq_copy c;

	ck_assert_int_eq(seq_grow(&l->q, n, rnd(100), &c), 0);
	for (uint32_t i = 0; i < c.n; i++)
		*label_of(c.dst, i) = *label_of(c.src, c.src_from + i);
	seq_copy_done(&c);
	ck_assert_uint_eq(l->q.n_tokens, old + n);
	for (uint32_t i = 0; i < l->q.n_entries; i++) {
		struct seq_entry *e = &l->q.entries[i];

		for (uint32_t t = 0; t < e->n; t++)
			if ((uint64_t)e->pos + t >= old) {
				*label_of(e->seg, e->from + t) = ++next_label;
				l->label[(uint64_t)e->pos + t] = next_label;
			}
	}
}

static void check_labels(const struct labelled *l)
{
	seq_check(&l->q);
	for (uint32_t i = 0; i < l->q.n_entries; i++) {
		struct seq_entry *e = &l->q.entries[i];

		for (uint32_t t = 0; t < e->n; t++)
			ck_assert_uint_eq(*label_of(e->seg, e->from + t),
					  l->label[(uint64_t)e->pos + t]);
	}
}

/* What stands behind keeps its labels; so does what was rotated how far. */
static void edit(struct labelled *l)
{
	const uint32_t n = (uint32_t)l->q.n_tokens, at = rnd(n + 1);
	const uint32_t removed = rnd(rnd(2) ? 3 : n - at + 1) % (n - at + 1);
	const uint32_t rest = n - at - removed;
	const uint32_t n_new = n < 400 ? rnd(rnd(2) ? 3 : 150) : 0;

	ck_assert_int_eq(seq_edit(&l->q, n + 1, 0, 0), -EINVAL);
	ck_assert_int_eq(seq_edit(&l->q, at, n - at + 1, 0), -EINVAL);
	ck_assert_int_eq(seq_edit(&l->q, at, removed, n_new), 0);
	if (!rest) {
		ck_assert_uint_eq(l->q.n_tokens, at);
		return;
	}
	ck_assert_uint_eq(l->q.n_tokens, at + n_new + rest);
	memmove(l->label + at + n_new, l->label + at + removed,
		rest * sizeof(*l->label));
	for (uint32_t i = 0; i < l->q.n_entries; i++) {
		struct seq_entry *e = &l->q.entries[i];

		for (uint32_t t = 0; t < e->n; t++) {
			const uint64_t pos = (uint64_t)e->pos + t;

			if (pos < at || pos >= at + n_new)
				continue;
			ck_assert_int_eq(e->pos, e->seg->pos0 + e->from);
			*label_of(e->seg, e->from + t) = ++next_label;
			l->label[pos] = next_label;
		}
	}
}

START_TEST(forks_cuts_and_appends_keep_their_tokens)
{
	struct labelled *l = calloc(6, sizeof(*l));

	for (int i = 0; i < 6; i++)
		seq_init(&l[i].q, pool, &layout, 128);
	for (int k = 0; k < 400; k++) {
		struct labelled *a = &l[rnd(6)], *b = &l[rnd(6)];
		const uint64_t n = a->q.n_tokens;

		switch (rnd(6)) {
		case 5:
			edit(a);
			break;
		case 0:
			if (a == b)
				break;
			seq_fini(&b->q);
			seq_init(&b->q, pool, &layout, 128);
			ck_assert_int_eq(seq_fork(&b->q, &a->q), 0);
			memcpy(b->label, a->label, sizeof(a->label));
			break;
		case 1:
			seq_truncate(&a->q, rnd((uint32_t)n + 1));
			break;
		case 2:
			seq_seal(&a->q);
			break;
		default:
			if (n < 500)
				append(a, 1 + rnd(rnd(2) ? 4 : 190));
		}
		check_labels(a);
		check_labels(b);
	}
	for (int i = 0; i < 6; i++)
		seq_fini(&l[i].q);
	ck_assert_uint_eq(segment_pool_n(pool), 0);
	free(l);
}
END_TEST

/* n more, as an append that is done and undone before: copied, entries, the last of them. */
static void grow_again(struct seq *q, uint32_t n)
{
	const uint64_t old = q->n_tokens;
	struct seq_entry first;
	struct seq_copy c;
	uint32_t n_entries, copied;

	ck_assert_int_eq(seq_grow(q, n, 0, &c), 0);
	copied = c.n;
	seq_copy_done(&c);
	first = q->entries[q->n_entries - 1];
	n_entries = q->n_entries;
	seq_truncate(q, old);
	ck_assert_int_eq(seq_grow(q, n, 0, &c), 0);
	ck_assert_uint_eq(copied, c.n);
	seq_copy_done(&c);
	ck_assert_uint_eq(q->n_entries, n_entries);
	ck_assert_int_eq(q->entries[n_entries - 1].begins, first.begins);
	ck_assert_int_eq(q->entries[n_entries - 1].pos, first.pos);
}

/* A grid that is new behind an edit is so after an append that failed; a list that is cut
 * before the edit knows nothing of it. */
START_TEST(cuts_keep_where_a_part_begins)
{
	struct seq q;
	struct seq_copy c;
	const struct seq_entry *e;

	seq_init(&q, pool, &layout, 1024);
	ck_assert_int_eq(seq_grow(&q, 100, 0, &c), 0);
	ck_assert_int_eq(seq_edit(&q, 32, 32, 32), 0); /* nothing moves */
	ck_assert_uint_eq(q.n_entries, 3);
	ck_assert(q.entries[0].begins && !q.entries[1].begins);
	grow_again(&q, 10);
	e = &q.entries[q.n_entries - 1];
	ck_assert(e->begins && e->pos == 100 && e->n == 10);
	seq_truncate(&q, 50);
	ck_assert_int_eq(seq_grow(&q, 10, 0, &c), 0);
	ck_assert_uint_eq(c.n, 50 % SEGMENT_BLOCK);
	seq_copy_done(&c);
	for (uint32_t i = 0; i < q.n_entries; i++)
		ck_assert_int_eq(q.entries[i].begins, !i);
	ck_assert_uint_eq(q.n_tokens, 60);
	ck_assert_int_eq(seq_edit(&q, 20, 1, 0), 0);
	ck_assert_int_eq(seq_edit(&q, 5, 0, 32),
			 0); /* as if it were the only one */
	ck_assert_int_eq(q.entries[1].pos, 5);
	ck_assert_int_eq(q.entries[1].begins, 0);
	seq_check(&q);
	seq_fini(&q);
	ck_assert_uint_eq(segment_pool_n(pool), 0);
}
END_TEST

/* Whoever is told of a range finds its segment without looking through all. */
START_TEST(a_range_knows_its_segment)
{
	struct segment *s[20], *other;
	struct range *range;

	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(segment_new(pool, &layout, 64, 0, &s[i]), 0);
	for (int i = 0; i < 20; i++)
		ck_assert_ptr_eq(segment_over(s[i]->range), s[i]);
	segment_seal(s[7], 33);
	ck_assert_ptr_eq(segment_over(s[7]->range), s[7]);
	/* it goes from one to another, and has none in between */
	range = segment_disown(s[7]);
	ck_assert_ptr_null(segment_over(range));
	ck_assert_int_eq(segment_adopt(pool, &layout, 33, 0, 0, range, &other),
			 0);
	ck_assert_ptr_eq(segment_over(range), other);
	s[7] = other;
	segment_pool_check(pool);
	ck_assert_int_eq(range_new(mem->pager, layout.page_bytes, 1, &range),
			 0);
	ck_assert_ptr_null(segment_over(range)); /* nobody's */
	range_free(range);
	for (int i = 0; i < 20; i++)
		segment_put(s[i]);
}
END_TEST

static void count_seen(struct segment *s, void *arg)
{
	uint32_t *seen = arg;

	seen[s->pos0]++;
}

/* Who is there all the time is seen once, whatever comes and goes. */
START_TEST(a_walk_in_parts_sees_all_that_stay)
{
	struct segment *stay[40], *come[40] = { NULL };
	uint32_t seen[41] = { 0 }, at = 0, n_parts = 0;
	uint64_t waste = 0;

	for (int i = 0; i < 40; i++) {
		ck_assert_int_eq(segment_new(pool, &layout, 64, i, &stay[i]),
				 0);
		ck_assert_int_eq(segment_new(pool, &layout, 64, 40, &come[i]),
				 0);
	}
	while (segment_walk(pool, &at, 7, count_seen, seen)) {
		const uint32_t i = rnd(40);

		n_parts++;
		if (come[i])
			segment_put(come[i]);
		come[i] = NULL;
		if (!come[39 - i])
			ck_assert_int_eq(segment_new(pool, &layout, 64, 40,
						     &come[39 - i]),
					 0);
	}
	ck_assert_uint_ge(n_parts, 80 / 7);
	for (int i = 0; i < 40; i++) {
		ck_assert_uint_eq(seen[i], 1);
		if (i % 3)
			segment_seal(stay[i], 33);
	}
	for (int i = 0; i < 40; i++) {
		waste += stay[i]->bytes -
			 stay[i]->n_tokens * kv_layout_token_bytes(&layout);
		if (come[i])
			segment_put(come[i]);
	}
	ck_assert_uint_gt(waste, 0);
	ck_assert_uint_eq(segment_waste(pool), waste);
	segment_pool_check(pool);
	for (int i = 0; i < 40; i++)
		segment_put(stay[i]);
	ck_assert_uint_eq(segment_waste(pool), 0);
}
END_TEST

START_TEST(capacity_is_an_answer)
{
	struct seq q;
	struct seq_copy c;
	uint64_t n;

	seq_init(&q, pool, &layout, 1024);
	while (!seq_grow(&q, 700, 0, &c))
		;
	n = q.n_tokens;
	ck_assert_int_eq(seq_grow(&q, 100000, 0, &c), -EDQUOT);
	ck_assert_uint_eq(q.n_tokens, n);
	seq_check(&q);
	ck_assert_uint_le(segment_pool_bytes(pool), 16 << 20);
	seq_fini(&q);
}
END_TEST

/* A sealed segment of n tokens with their ids, indexed by its chain. */
static struct segment *indexed(struct prefix_tree *t, const uint32_t *tokens,
			       uint32_t n, struct map_id *id)
{
	struct map_id *ids = calloc((n + 31) / 32, sizeof(*ids));
	struct segment *s;

	ck_assert_int_eq(segment_new(pool, &layout, n, 0, &s), 0);
	segment_seal(s, n);
	s->tokens = malloc(n * sizeof(*tokens));
	memcpy(s->tokens, tokens, n * sizeof(*tokens));
	for (uint32_t i = 0; i * 32 < n; i++) {
		*id = prefix_tile(*id, tokens + i * 32, KV_MIN(32, n - i * 32),
				  i ? 0 : PREFIX_PART_BEGIN);
		ids[i] = *id;
	}
	ck_assert_int_eq(prefix_add(t, s, ids), 0);
	return s;
}

START_TEST(a_prefix_is_found_tile_by_tile)
{
	const uint64_t model[2] = { 1, 2 }, other[2] = { 1, 3 };
	struct map_id id = prefix_root(model), at;
	struct prefix_tree t;
	struct segment *s, *f;
	uint32_t tokens[100], block;

	for (uint32_t i = 0; i < 100; i++)
		tokens[i] = rnd(1000);
	prefix_init(&t);
	s = indexed(&t, tokens, 100, &id);
	segment_put(s); /* kept for reuse */
	ck_assert_uint_eq(segment_pool_n(pool), 1);
	at = prefix_root(model);
	for (uint32_t i = 0; i < 4; i++) {
		const uint32_t n = i < 3 ? 32 : 4;

		at = prefix_tile(at, tokens + 32 * i, n,
				 i ? 0 : PREFIX_PART_BEGIN);
		f = prefix_find(&t, at, tokens + 32 * i, n, &block);
		ck_assert_ptr_eq(f, s);
		ck_assert_uint_eq(block, i);
		segment_put(f);
		/* the same id with other tokens is refused */
		tokens[32 * i]++;
		ck_assert_ptr_null(
			prefix_find(&t, at, tokens + 32 * i, n, &block));
		tokens[32 * i]--;
	}
	at = prefix_tile(prefix_root(other), tokens, 32, PREFIX_PART_BEGIN);
	ck_assert_ptr_null(prefix_find(&t, at, tokens, 32, &block));
	at = prefix_tile(prefix_root(model), tokens, 32, 0);
	ck_assert_ptr_null(prefix_find(&t, at, tokens, 32, &block));
	ck_assert_int_eq(segment_reclaim(pool), 0);
	ck_assert_int_eq(segment_reclaim(pool), -ENOSPC);
	ck_assert_ptr_null(prefix_find(&t, id, tokens, 4, &block));
	prefix_fini(&t);
}
END_TEST

/* Tokens [32, 96) of a segment are tokens [64, 128) of a prompt of 110, of which 96
 * were found. */
START_TEST(pages_have_the_kind_of_their_use)
{
	const struct kind_facts f = { .n_tokens = 110,
				      .found_tokens = 96,
				      .root_tokens = 32,
				      .at_token = 64 };
	static const enum page_kind want[] = { KIND_UNKNOWN, KIND_FOUND,
					       KIND_TAIL, KIND_UNKNOWN };
	struct segment *s;

	ck_assert_int_eq(segment_new(pool, &layout, 128, 0, &s), 0);
	segment_kind(s, 32, 64, &f);
	for (uint32_t i = 0; i < range_n_pages(s->range); i++)
		ck_assert_int_eq(s->range->pages[i].evict.kind, want[i / 2]);
	segment_put(s);
}
END_TEST

/* A chunk of n tokens, all i, in t; its id. */
static struct map_id put_chunk(struct chunk_table *t, uint32_t i, uint32_t n)
{
	const uint64_t model[2] = { 1, 2 };
	struct segment *s;
	struct map_id id;

	ck_assert_int_eq(segment_new(pool, &layout, n, 0, &s), 0);
	segment_seal(s, n);
	s->tokens = calloc(n, sizeof(*s->tokens));
	for (uint32_t k = 0; k < n; k++)
		s->tokens[k] = i;
	id = chunk_id(model, s->tokens, n);
	ck_assert_int_eq(chunk_add(t, s, id), 0);
	ck_assert_int_eq(chunk_add(t, s, id), -EALREADY);
	segment_put(s);
	chunk_table_check(t);
	return id;
}

static int use_chunk(struct chunk_table *t, struct map_id id)
{
	struct segment *s = chunk_find(t, id, NULL, 0);

	if (!s)
		return 0;
	segment_put(s);
	chunk_table_check(t);
	return 1;
}

START_TEST(chunks_are_bounded_by_what_they_saved_for_each_byte)
{
	struct map_id id[6];
	struct chunk_table t;
	struct segment *s;

	chunk_init(&t);
	t.max = 4;
	for (uint32_t i = 0; i < 4; i++)
		id[i] = put_chunk(&t, i, i == 3 ? 320 : 32);
	ck_assert(!chunk_room(&t));
	/* 0 is the oldest, but used; 3 is used as often, for ten times the bytes */
	for (int k = 0; k < 2; k++)
		ck_assert(use_chunk(&t, id[0]) && use_chunk(&t, id[3]));
	ck_assert(use_chunk(&t, id[1]) && use_chunk(&t, id[2]));
	s = chunk_find(&t, id[3], NULL, 0); /* being read: it goes as well */
	ck_assert_double_gt(chunk_value(&t, s), 4);
	ck_assert_float_eq(s->range->gain, CHUNK_GAIN);
	id[4] = put_chunk(&t, 4, 32);
	ck_assert_uint_eq(t.n_evicted, 1);
	ck_assert_ptr_null(chunk_find(&t, id[3], NULL, 0));
	ck_assert_uint_eq(s->n_tokens, 320);
	segment_put(s);
	for (int i = 0; i < 3; i++)
		ck_assert(use_chunk(&t, id[i]));
	/* now 4, which nobody ever used; then uses of long ago count little */
	id[5] = put_chunk(&t, 5, 32);
	ck_assert(!use_chunk(&t, id[4]));
	for (int k = 0; k < 200; k++)
		ck_assert(use_chunk(&t, id[1]) && use_chunk(&t, id[2]) &&
			  use_chunk(&t, id[5]));
	put_chunk(&t, 6, 32);
	ck_assert(!use_chunk(&t, id[0]));
	ck_assert_uint_eq(t.n_evicted, 3);
	ck_assert_uint_eq(t.map.n_used, 4);
	while (!segment_reclaim(pool))
		chunk_table_check(&t);
	chunk_fini(&t);
}
END_TEST

START_TEST(what_saved_least_goes_for_room)
{
	struct map_id id[3];
	struct chunk_table t;

	chunk_init(&t);
	for (uint32_t i = 0; i < 3; i++)
		id[i] = put_chunk(&t, i, 32);
	ck_assert(use_chunk(&t, id[0]) && use_chunk(&t, id[0]));
	ck_assert(use_chunk(&t, id[1]) && use_chunk(&t, id[2]));
	ck_assert(use_chunk(&t, id[1]));
	/* the oldest by its last use is 0, then 2 */
	ck_assert_int_eq(segment_reclaim(pool), 0);
	ck_assert(!use_chunk(&t, id[2]));
	ck_assert(use_chunk(&t, id[0]) && use_chunk(&t, id[1]));
	ck_assert_uint_eq(t.n_evicted, 1);
	while (!segment_reclaim(pool))
		;
	chunk_fini(&t);
}
END_TEST

/* Who is about to use it holds no reference: it is the last to go, but it may. */
START_TEST(what_is_awaited_goes_last)
{
	struct segment_await a[3] = { 0 };
	struct map_id id[3];
	struct segment *s;
	struct chunk_table t;

	chunk_init(&t);
	for (uint32_t i = 0; i < 3; i++)
		id[i] = put_chunk(&t, i, 32);
	s = chunk_find(&t, id[0], NULL, 0);
	s->worth = NULL; /* as of a prefix */
	segment_put(s);
	ck_assert(use_chunk(&t, id[1]) && use_chunk(&t, id[2]));
	segment_await(s, &a[0]);
	segment_await(s, &a[1]);
	segment_pool_check(pool);
	ck_assert_int_eq(s->range->pages[0].evict.hint, EVICT_HOT);
	ck_assert_int_eq(segment_reclaim(pool), 0);
	ck_assert(!use_chunk(&t, id[1]));
	segment_await_end(&a[0]);
	ck_assert_int_eq(s->range->pages[0].evict.hint, EVICT_HOT);
	segment_get(s);
	segment_put(s);
	ck_assert_int_eq(s->range->pages[0].evict.hint, EVICT_HOT);
	segment_await_end(&a[1]);
	segment_await_end(&a[1]);
	ck_assert_int_eq(s->range->pages[0].evict.hint, EVICT_COLD);
	segment_await(s, &a[0]);
	segment_await(s, &a[2]);
	while (!segment_reclaim(pool))
		;
	ck_assert_ptr_null(a[0].seg);
	segment_await_end(&a[0]);
	segment_await_end(&a[2]);
	chunk_fini(&t);
}
END_TEST

START_TEST(a_chunk_is_found_by_its_tokens)
{
	const uint64_t model[2] = { 1, 2 };
	const uint32_t tokens[5] = { 5, 6, 7, 8, 9 };
	struct map_id id = chunk_id(model, tokens, 5);
	struct chunk_table t;
	struct segment *s;

	chunk_init(&t);
	ck_assert_int_eq(segment_new(pool, &layout, 5, 0, &s), 0);
	segment_seal(s, 5);
	s->tokens = malloc(sizeof(tokens));
	memcpy(s->tokens, tokens, sizeof(tokens));
	ck_assert_int_eq(chunk_add(&t, s, id), 0);
	segment_put(s);
	ck_assert_ptr_eq(chunk_find(&t, id, tokens, 5), s);
	ck_assert_ptr_null(chunk_find(&t, id, tokens, 4));
	ck_assert_int_eq(chunk_rm(&t, id), 0); /* still read by us */
	ck_assert_int_eq(chunk_rm(&t, id), -ENOENT);
	ck_assert_uint_eq(segment_pool_n(pool), 1);
	segment_put(s);
	ck_assert_uint_eq(segment_pool_n(pool), 0);
	chunk_fini(&t);
}
END_TEST

START_TEST(a_map_forgets_nothing)
{
	struct map m;
	uint64_t n = 0;

	map_init(&m);
	for (uint64_t i = 1; i < 5000; i++) {
		const struct map_id id = { { (i * 7) % 61, i } };

		ck_assert_int_eq(map_add(&m, id, (void *)(uintptr_t)i), 0);
		ck_assert_int_eq(map_add(&m, id, &m), -EALREADY);
		if (i % 3 == 0)
			ck_assert_ptr_eq(map_del(&m, id), (void *)(uintptr_t)i);
	}
	for (uint64_t i = 1; i < 5000; i++) {
		const struct map_id id = { { (i * 7) % 61, i } };
		void *v = map_find(&m, id);

		ck_assert_ptr_eq(v, i % 3 ? (void *)(uintptr_t)i : NULL);
		n += !!v;
	}
	ck_assert_uint_eq(n, m.n_used);
	map_fini(&m);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cache");
	TCase *t = tcase_create("cache");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, an_address_is_arithmetic);
	tcase_add_test(t, pages_of_large_models_are_whole_folios);
	tcase_add_test(t, pages_of_a_device_waste_little);
	tcase_add_test(t, pages_by_token_have_one_stride);
	tcase_add_test(t, forks_cuts_and_appends_keep_their_tokens);
	tcase_add_test(t, cuts_keep_where_a_part_begins);
	tcase_add_test(t, a_range_knows_its_segment);
	tcase_add_test(t, a_walk_in_parts_sees_all_that_stay);
	tcase_add_test(t, capacity_is_an_answer);
	tcase_add_test(t, a_prefix_is_found_tile_by_tile);
	tcase_add_test(t, pages_have_the_kind_of_their_use);
	tcase_add_test(t, a_chunk_is_found_by_its_tokens);
	tcase_add_test(t, chunks_are_bounded_by_what_they_saved_for_each_byte);
	tcase_add_test(t, what_saved_least_goes_for_room);
	tcase_add_test(t, what_is_awaited_goes_last);
	tcase_add_test(t, a_map_forgets_nothing);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
