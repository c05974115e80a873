/*
 * test_persist.c - the blobs of chunks, variants and prefixes as a disk may give them back: each
 * bit flipped, each length, numbers out of range. Nothing of it is used, and what is sound
 * beside it is all there.
 */
#include <check.h>
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/cache/persist.h"
#include "kvd/mem/page.h"
#include "tests/rig/rig_mem.h"

#define TENANT "a tenant"

enum { PREFIX, CHUNK, VARIANT, N_KINDS };

static const uint32_t n_tokens[N_KINDS] = { 70, 50, 40 };
static const uint64_t model[2] = { 5, 6 };
static struct map_id frame = { { 7, 8 } };

/* A tenant's indexes over a pager. */
struct world {
	struct rig_mem *mem;
	struct kv_layout layout;
	struct segment_pool *pool;
	struct prefix_tree prefix;
	struct chunk_table chunks;
	struct variant_table variants;
	struct persist *persist;
};

static uint32_t token(int kind, uint32_t i)
{
	return 100 + (uint32_t)kind * 1000 + i * 7;
}

static void world_init(struct world *w, struct rig_mem *mem)
{
	const struct persist_conf pc = { .tenant = TENANT,
					 .loop = mem->loop,
					 .prefix = &w->prefix,
					 .chunks = &w->chunks,
					 .variants = &w->variants };
	struct persist_conf conf = pc;

	w->mem = mem;
	w->layout = (struct kv_layout){
		.n_layers = 3, .n_kv_heads = 1, .head_dim = 32, .elem_bytes = 2
	};
	ck_assert_int_eq(kv_layout_init(&w->layout), 0);
	ck_assert_int_eq(segment_pool_new(&w->pool, mem->pager, 64 << 20), 0);
	prefix_init(&w->prefix);
	chunk_init(&w->chunks);
	variant_table_init(&w->variants);
	conf.pool = w->pool;
	ck_assert_int_eq(persist_new(&w->persist, &conf), 0);
}

static void world_fini(struct world *w)
{
	persist_free(w->persist);
	segment_pool_free(w->pool);
	prefix_fini(&w->prefix);
	chunk_fini(&w->chunks);
	variant_table_fini(&w->variants);
	rig_mem_close(w->mem);
}

static struct rig_mem *open_mem(const char *store,
				int (*found)(void *ctx, uint32_t i_disk,
					     const struct kio_record *r))
{
	return rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 << 20,
						      .disk_bytes = 32 << 20,
						      .store = store,
						      .found = found });
}

/* ---- what is written ------------------------------------------------------------ */

static struct map_id chunk_of(int kind)
{
	uint32_t t[128];

	for (uint32_t i = 0; i < n_tokens[kind]; i++)
		t[i] = token(kind, i);
	return chunk_id(model, t, n_tokens[kind]);
}

static struct map_id *chain(uint32_t n)
{
	struct map_id *ids = calloc(n / SEGMENT_BLOCK + 1, sizeof(*ids));
	struct map_id id = prefix_root(model);
	uint32_t t[SEGMENT_BLOCK];

	for (uint32_t at = 0; at < n; at += SEGMENT_BLOCK) {
		const uint32_t k = KV_MIN(SEGMENT_BLOCK, n - at);

		for (uint32_t i = 0; i < k; i++)
			t[i] = token(PREFIX, at + i);
		id = prefix_tile(id, t, k, at ? 0 : PREFIX_PART_BEGIN);
		ids[at / SEGMENT_BLOCK] = id;
	}
	return ids;
}

static struct variant *statistics(void)
{
	struct variant *v = variant_new(2, n_tokens[VARIANT]);

	v->chunk = chunk_of(VARIANT);
	v->ctx = (struct map_id){ { 3, 4 } };
	v->frame = frame;
	v->depth = 1;
	v->cci = 0.75f;
	v->value = 2.5;
	for (uint32_t i = 0; i < 2; i++) {
		v->prefix[i] = (struct map_id){ { 11 + i, 12 } };
		v->inter[i] = 0.25f;
	}
	for (uint32_t i = 0; i < n_tokens[VARIANT]; i++)
		v->score[i] = (float)i;
	return v;
}

static void add(struct world *w, int kind)
{
	const uint32_t n = n_tokens[kind];
	struct segment *s;
	struct page_run run;

	ck_assert_int_eq(segment_new(w->pool, &w->layout, n, 0, &s), 0);
	segment_pages(s, 0, n, &run);
	run.flags = PAGE_WRITE;
	ck_assert_int_eq(rig_mem_want(w->mem, &run, 1), 0);
	rig_mem_fill(&run, (uint32_t)kind + 1);
	page_unpin(w->mem->pager, &run, 1);
	s->tokens = calloc(n, sizeof(*s->tokens));
	for (uint32_t i = 0; i < n; i++)
		s->tokens[i] = token(kind, i);
	segment_seal(s, n);
	if (kind == PREFIX)
		ck_assert_int_eq(prefix_add(&w->prefix, s, chain(n)), 0);
	else if (kind == CHUNK)
		ck_assert_int_eq(chunk_add(&w->chunks, s, chunk_of(kind)), 0);
	else
		ck_assert_int_eq(variant_add(&w->variants, s, statistics()), 0);
	segment_put(s);
}

static void told(struct wait *w, int ret)
{
	(void)w;
	ck_assert_int_eq(ret, 0);
}

static char path[64];

static void setup(void)
{
	struct persist_wait pw = { .wait.done = told };
	struct persist_info info;
	struct world w;

	strcpy(path, "/var/tmp/kvd-persist-XXXXXX");
	ck_assert_int_ge(close(mkstemp(path)), 0);
	ck_assert_int_eq(unlink(path), 0);
	world_init(&w, open_mem(path, NULL));
	for (int kind = 0; kind < N_KINDS; kind++)
		add(&w, kind);
	ck_assert_int_eq(persist_wait(w.persist, &pw), 0);
	do {
		rig_mem_turn(w.mem);
		persist_info(w.persist, &info);
	} while (info.n_durable < N_KINDS);
	rig_mem_settle(w.mem);
	world_fini(&w);
}

static void teardown(void)
{
	(void)unlink(path);
}

/* ---- what is found ---------------------------------------------------------------- */

static struct world *world, *other;
static uint32_t n_found;
static void (*spoil)(uint32_t i_disk, const struct kio_record *r);

/* The true record, after all that is not. */
static int found(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	size_t len = 0;
	const char *name;

	if (!world->mem)
		world_init(world, ctx);
	spoil(i_disk, r);
	name = persist_record_tenant(r, &len);
	ck_assert_ptr_nonnull(name);
	ck_assert(len == strlen(TENANT) && !memcmp(name, TENANT, len));
	ck_assert_int_eq(persist_record_sound(r), 1);
	ck_assert_int_eq(persist_adopt(world->persist, i_disk, r), 0);
	ck_assert_int_eq(persist_adopt(world->persist, i_disk, r), -EALREADY);
	n_found++;
	return KIO_RECORD_KEEP;
}

static void holds(struct segment *s, int kind)
{
	struct page_run run;

	ck_assert_ptr_nonnull(s);
	ck_assert_uint_eq(s->n_tokens, n_tokens[kind]);
	segment_pages(s, 0, s->n_tokens, &run);
	ck_assert_int_eq(rig_mem_want(world->mem, &run, 1), 0);
	ck_assert(rig_mem_holds(&run, (uint32_t)kind + 1));
	page_unpin(world->mem->pager, &run, 1);
}

static void find_all(void)
{
	const struct variant_place at = { .ctx = { { 3, 4 } }, .frame = frame };
	struct map_id *ids = chain(n_tokens[PREFIX]);
	uint32_t t[128], block;
	struct segment *s;
	float cfo;

	for (uint32_t i = 0; i < SEGMENT_BLOCK; i++)
		t[i] = token(PREFIX, i);
	s = prefix_find(&world->prefix, ids[0], t, SEGMENT_BLOCK, &block);
	holds(s, PREFIX);
	segment_put(s);
	free(ids);
	for (uint32_t i = 0; i < n_tokens[CHUNK]; i++)
		t[i] = token(CHUNK, i);
	s = chunk_find(&world->chunks, chunk_of(CHUNK), t, n_tokens[CHUNK]);
	holds(s, CHUNK);
	segment_put(s);
	for (uint32_t i = 0; i < n_tokens[VARIANT]; i++)
		t[i] = token(VARIANT, i);
	s = variant_find(&world->variants, chunk_of(VARIANT), t,
			 n_tokens[VARIANT], &at, 1, &cfo);
	holds(s, VARIANT);
	ck_assert(cfo == 0 && s->variant->cci == 0.75f &&
		  s->variant->score[9] == 9 && s->variant->depth == 1);
	segment_put(s);
	variant_table_check(&world->variants);
	persist_check(world->persist);
}

static void open_spoilt(void (*how)(uint32_t i_disk,
				    const struct kio_record *r))
{
	static struct world w, x;

	memset(&w, 0, sizeof(w));
	world = &w;
	other = &x;
	world_init(other, open_mem(NULL, NULL));
	spoil = how;
	n_found = 0;
	(void)open_mem(path, found);
	ck_assert_uint_eq(n_found, N_KINDS);
	find_all();
	world_fini(world);
	world_fini(other);
}

/* ---- damage ------------------------------------------------------------------------- */

static struct kio_record with(const struct kio_record *r, const void *meta,
			      size_t n)
{
	struct kio_record x = *r;

	x.meta = meta;
	x.meta_bytes = n;
	return x;
}

static void refused(uint32_t i_disk, const struct kio_record *x)
{
	size_t len;

	ck_assert_int_eq(persist_adopt(world->persist, i_disk, x), -EINVAL);
	(void)persist_record_tenant(x, &len);
}

static void flip_and_cut(uint32_t i_disk, const struct kio_record *r)
{
	const size_t n = r->meta_bytes;
	char *meta = malloc(n + 8);

	memcpy(meta, r->meta, n);
	memset(meta + n, 0, 8);
	for (size_t i = 0; i < 8 * n; i++) {
		const struct kio_record x = with(r, meta, n);

		meta[i / 8] ^= (char)(1 << i % 8);
		refused(i_disk, &x);
		ck_assert_int_eq(persist_record_sound(&x), 0);
		meta[i / 8] ^= (char)(1 << i % 8);
	}
	for (size_t i = 0; i < n + 8; i++) {
		const struct kio_record x = with(r, meta, i);

		if (i != n)
			refused(i_disk, &x);
	}
	free(meta);
}

START_TEST(no_bit_and_no_byte_may_differ)
{
	open_spoilt(flip_and_cut);
}
END_TEST

static void other_pages(uint32_t i_disk, const struct kio_record *r)
{
	struct kio_record x = *r;

	x.n_pages--;
	refused(i_disk, &x);
	x.n_pages = 0;
	refused(i_disk, &x);
	x = *r;
	x.page_bytes *= 2;
	refused(i_disk, &x);
	x.page_bytes = 0;
	refused(i_disk, &x);
}

START_TEST(pages_are_those_of_the_layout)
{
	open_spoilt(other_pages);
}
END_TEST

/* ---- with a right sum: who can write the disk can make one ----------------------------- */

#define HEAD	152u
#define SUM_AT	136u
#define KIND_AT 6u

#define VERSION_AT 4u

/* docs/store.md: version 4 */
static void seal(char *meta, size_t n)
{
	static const unsigned char key[16] = "kvd blob, 128 b";
	unsigned char sum[16];

	crypto_shorthash_siphashx24(sum, (unsigned char *)meta + HEAD, n - HEAD,
				    key);
	memcpy(meta + SUM_AT, sum, sizeof(sum));
	crypto_shorthash_siphashx24(sum, (unsigned char *)meta, HEAD, key);
	memcpy(meta + SUM_AT, sum, sizeof(sum));
}

/* The same as an older kvd has written it. */
static void seal_as(char *meta, size_t n, uint16_t version)
{
	unsigned char sum[16];

	memcpy(meta + VERSION_AT, &version, sizeof(version));
	memset(meta + SUM_AT, 0, sizeof(sum));
	if (version < 3)
		return;
	crypto_generichash(sum, sizeof(sum), (const unsigned char *)meta, n,
			   NULL, 0);
	memcpy(meta + SUM_AT, sum, sizeof(sum));
}

static void older(uint32_t i_disk, const struct kio_record *r)
{
	const size_t n = r->meta_bytes;
	char *meta = malloc(n);
	uint16_t kind;

	(void)i_disk;
	memcpy(&kind, (const char *)r->meta + KIND_AT, sizeof(kind));
	for (uint16_t v = 1; v <= 5; v++) {
		const struct kio_record x = with(r, meta, n);
		const int sound = v < 5 && (v > 1 || kind - 1 != VARIANT);

		memcpy(meta, r->meta, n);
		if (v == 4)
			seal(meta, n); /* nothing else than what is there */
		else
			seal_as(meta, n, v);
		ck_assert_int_eq(!memcmp(meta, r->meta, n), v == 4);
		ck_assert_int_eq(persist_record_sound(&x), sound);
		meta[HEAD] ^= 1;
		ck_assert_int_eq(persist_record_sound(&x), sound && v < 3);
	}
	free(meta);
}

START_TEST(older_versions_are_read)
{
	open_spoilt(older);
}
END_TEST

/* It may be taken for something, elsewhere: that something is in order. */
static void try_other(uint32_t i_disk, const struct kio_record *x)
{
	const int ret = persist_adopt(other->persist, i_disk, x);

	ck_assert_msg(!ret || ret == -EINVAL || ret == -EALREADY ||
			      ret == -EDQUOT,
		      "%s", strerror(-ret));
}

static void numbers(uint32_t i_disk, const struct kio_record *r)
{
	/* a shape that takes as many pages is that of another model: gen_fitting() */
	/* layers, heads, dim, bytes, page tokens, page layers, tokens, ids */
	static const uint32_t values[] = { 0,	       1,	   5,
					   4096,       0x7fffffff, 0x80000000,
					   0xffffffff, 0xffffffe0 };
	static const int64_t places[] = { -1, INT64_MIN, INT64_MAX, 1ll << 31 };
	const size_t n = r->meta_bytes;
	char *meta = malloc(n);

	for (size_t at = 72; at < 104; at += 4)
		for (size_t k = 0; k < KV_ARRAY_LEN(values); k++) {
			const struct kio_record x = with(r, meta, n);
			uint32_t old;

			memcpy(meta, r->meta, n);
			memcpy(&old, meta + at, 4);
			memcpy(meta + at, &values[k], 4);
			seal(meta, n);
			if (old != values[k])
				refused(i_disk, &x);
		}
	for (size_t k = 0; k < KV_ARRAY_LEN(places); k++) {
		const struct kio_record x = with(r, meta, n);

		memcpy(meta, r->meta, n);
		memcpy(meta + 104, &places[k], 8);
		seal(meta, n);
		refused(i_disk, &x);
	}
	free(meta);
}

START_TEST(numbers_out_of_range_are_refused)
{
	open_spoilt(numbers);
}
END_TEST

/* Statistics that are no numbers, below 0, beyond 1. */
static void statistics_of(uint32_t i_disk, const struct kio_record *r)
{
	static const float bad[] = { -1, 1e30f, -0.001f };
	const size_t n = r->meta_bytes;
	const size_t at = HEAD + n_tokens[VARIANT] * 4 + 2 * 16;
	const float nan_value = strtof("nan", NULL);
	char *meta = malloc(n);
	uint16_t kind;

	memcpy(&kind, (const char *)r->meta + KIND_AT, 2);
	for (size_t i = at + 40; i < n && kind == 3; i += 4) {
		const struct kio_record x = with(r, meta, n);

		if (i == at + 44)
			continue; /* the depth */
		for (size_t k = 0; k <= KV_ARRAY_LEN(bad); k++) {
			memcpy(meta, r->meta, n);
			memcpy(meta + i,
			       k < KV_ARRAY_LEN(bad) ? &bad[k] : &nan_value, 4);
			seal(meta, n);
			refused(i_disk, &x);
		}
	}
	free(meta);
}

START_TEST(statistics_are_looked_at)
{
	open_spoilt(statistics_of);
}
END_TEST

static uint64_t state;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

static void anything(uint32_t i_disk, const struct kio_record *r)
{
	const size_t room = r->meta_bytes + 64;
	char *meta = malloc(room);

	for (int k = 0; k < 3000; k++) {
		size_t n = r->meta_bytes;
		struct kio_record x;

		memcpy(meta, r->meta, n);
		memset(meta + n, 0, room - n);
		if (!rnd(4))
			n = HEAD + rnd((uint32_t)(room - HEAD));
		for (uint32_t i = 1 + rnd(4); i; i--)
			meta[rnd((uint32_t)n)] = (char)rnd(256);
		seal(meta, n);
		x = with(r, meta, n);
		try_other(i_disk, &x);
	}
	free(meta);
	persist_check(other->persist);
	segment_pool_check(other->pool);
	variant_table_check(&other->variants);
}

START_TEST(anything_else_is_in_order)
{
	const char *env = getenv("KVD_SEED");

	state = env ? strtoull(env, NULL, 10) : 20;
	printf("seed %llu\n", (unsigned long long)state);
	open_spoilt(anything);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("persist");
	TCase *t = tcase_create("persist");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, no_bit_and_no_byte_may_differ);
	tcase_add_test(t, pages_are_those_of_the_layout);
	tcase_add_test(t, older_versions_are_read);
	tcase_add_test(t, numbers_out_of_range_are_refused);
	tcase_add_test(t, statistics_are_looked_at);
	tcase_add_test(t, anything_else_is_in_order);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
