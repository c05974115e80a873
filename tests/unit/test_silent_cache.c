/*
 * test_silent_cache.c - what is kept for reuse while its disk does not answer: what lies there is
 * not given up for room that it would not make, and what could not be made durable
 * meanwhile becomes so when it answers
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/cache/persist.h"
#include "kvd/mem/stores.h"
#include "tests/rig/rig_mem.h"

#define PATIENCE 100000000u /* 0.1 s */
#define MEMORY	 (4u << 20)
#define N_TOKENS 640u /* 240 KiB */
#define N_OLD	 4u
#define N_NEW	 12u

static int hung_fd;
static _Atomic int hangs;

static void hang(int fd)
{
	while (fd == hung_fd && hangs)
		(void)usleep(1000);
}

static ssize_t hung_pread(int fd, void *buf, size_t n, off_t at)
{
	hang(fd);
	return pread(fd, buf, n, at);
}

static ssize_t hung_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	hang(fd);
	return pwrite(fd, buf, n, at);
}

static const struct kio_disk hung = { .pread = hung_pread,
				      .pwrite = hung_pwrite,
				      .fdatasync = fdatasync };

/* ---- a tenant's cache over a pager --------------------------------------------- */

static char path[64];
static struct rig_mem *m;
static struct kv_layout layout;
static struct segment_pool *pool;
static struct prefix_tree prefix;
static struct chunk_table chunks;
static struct variant_table variants;
static struct persist *persist;
static struct page_want asked;
static struct page_run asked_run;
static struct segment *asked_segment;

static int reclaim(void *ctx)
{
	(void)ctx;
	return segment_reclaim(pool);
}

static void leave(void *ctx, uint32_t i_disk)
{
	struct rig_mem *r = ctx;

	pager_leave_disk(r->pager, i_disk);
}

static void token_ids(uint32_t i, uint32_t *t)
{
	for (uint32_t k = 0; k < N_TOKENS; k++)
		t[k] = i * 1000 + k;
}

static struct map_id id_of(uint32_t i)
{
	static const uint64_t model[2] = { 5, 6 };
	uint32_t t[N_TOKENS];

	token_ids(i, t);
	return chunk_id(model, t, N_TOKENS);
}

static void add(uint32_t i)
{
	struct page_run run;
	struct segment *s;

	ck_assert_int_eq(segment_new(pool, &layout, N_TOKENS, 0, &s), 0);
	segment_pages(s, 0, N_TOKENS, &run);
	run.flags = PAGE_WRITE;
	ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
	rig_mem_fill(&run, i);
	page_unpin(m->pager, &run, 1);
	s->tokens = calloc(N_TOKENS, sizeof(*s->tokens));
	token_ids(i, s->tokens);
	segment_seal(s, N_TOKENS);
	ck_assert_int_eq(chunk_add(&chunks, s, id_of(i)), 0);
	persist_add(persist, s);
	segment_put(s);
}

static struct segment *find(uint32_t i)
{
	uint32_t t[N_TOKENS];

	token_ids(i, t);
	return chunk_find(&chunks, id_of(i), t, N_TOKENS);
}

static uint64_t n_durable(void)
{
	struct persist_info info;

	persist_info(persist, &info);
	return info.n_durable;
}

static void all_durable(uint64_t n)
{
	for (uint64_t t0 = clock_ns(); n_durable() < n && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert_uint_eq(n_durable(), n);
}

/* Some are durable and on disk only. */
static void begin(void)
{
	struct persist_conf pc = { .tenant = "a tenant",
				   .prefix = &prefix,
				   .chunks = &chunks,
				   .variants = &variants,
				   .automatic = 1 };
	struct page_run all = { .n = MEMORY / 65536, .flags = PAGE_WRITE };

	strcpy(path, "/var/tmp/kvd-silent-XXXXXX");
	ck_assert_int_ge(close(mkstemp(path)), 0);
	ck_assert_int_eq(unlink(path), 0);
	m = rig_mem_open((struct rig_mem_options){ .memory_bytes = MEMORY,
						   .disk_bytes = 64 << 20,
						   .kind = KIO_ENGINE_THREADS,
						   .store = path,
						   .reclaim = reclaim });
	stores_on_silent(m->stores, PATIENCE, leave, m);
	layout = (struct kv_layout){
		.n_layers = 3, .n_kv_heads = 1, .head_dim = 32, .elem_bytes = 2
	};
	ck_assert_int_eq(kv_layout_init(&layout), 0);
	ck_assert_int_eq(segment_pool_new(&pool, m->pager, 64 << 20), 0);
	prefix_init(&prefix);
	chunk_init(&chunks);
	variant_table_init(&variants);
	pc.loop = m->loop;
	pc.pool = pool;
	ck_assert_int_eq(persist_new(&persist, &pc), 0);
	for (uint32_t i = 0; i < N_OLD; i++)
		add(i);
	all_durable(N_OLD);
	ck_assert_int_eq(range_new(m->pager, 65536, all.n, &all.range), 0);
	ck_assert_int_eq(rig_mem_want(m, &all, 1), 0);
	page_unpin(m->pager, &all, 1);
	range_free(all.range);
	rig_mem_settle(m);
	hung_fd = kio_store_fd(stores_disk(m->stores, 0));
	kio_sys_disk = &hung;
}

static void came(struct wait *w, int ret)
{
	(void)w;
	ck_assert_int_eq(ret, 0);
	page_unpin(m->pager, &asked_run, 1);
}

/* Till it answers a read of the last of them is in its engine. */
static void fall_silent(void)
{
	hangs = 1;
	asked_segment = find(N_OLD - 1);
	ck_assert_ptr_nonnull(asked_segment);
	segment_pages(asked_segment, 0, 1, &asked_run);
	asked = (struct page_want){ .runs = &asked_run,
				    .n_runs = 1,
				    .wait.done = came };
	ck_assert_int_eq(page_want(m->pager, &asked), 0);
	for (uint64_t t0 = clock_ns();
	     !stores_is_silent(m->stores, 0) && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert(stores_is_silent(m->stores, 0));
}

static void end(void)
{
	hangs = 0;
	rig_mem_settle(m);
	segment_put(asked_segment);
	persist_stop(persist);
	while (!persist_idle(persist))
		rig_mem_turn(m);
	persist_free(persist);
	segment_pool_free(pool);
	prefix_fini(&prefix);
	chunk_fini(&chunks);
	variant_table_fini(&variants);
	rig_mem_close(m);
	(void)unlink(path);
}

static uint32_t n_found(uint32_t from, uint32_t n)
{
	uint32_t n_there = 0;

	for (uint32_t i = from; i < from + n; i++) {
		struct segment *s = find(i);

		n_there += s != NULL;
		if (s)
			segment_put(s);
	}
	return n_there;
}

/* ---- tests ------------------------------------------------------------------------ */

/* What makes room is what was computed since, and can be neither written nor kept. */
START_TEST(what_lies_there_is_not_given_up_for_room)
{
	begin();
	fall_silent();
	for (uint32_t i = 0; i < 3 * N_NEW; i++)
		add(N_OLD + i);
	ck_assert_uint_eq(n_found(0, N_OLD), N_OLD);
	ck_assert_uint_lt(n_found(N_OLD, 3 * N_NEW), 3 * N_NEW);
	hangs = 0;
	rig_mem_settle(m);
	for (uint32_t i = 0; i < N_OLD; i++) {
		struct segment *s = find(i);
		struct page_run run;

		segment_pages(s, 0, N_TOKENS, &run);
		ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
		ck_assert(rig_mem_holds(&run, i));
		page_unpin(m->pager, &run, 1);
		segment_put(s);
	}
	end();
}
END_TEST

START_TEST(what_could_not_be_made_durable_is_when_it_answers)
{
	struct persist_info info;

	begin();
	fall_silent();
	for (uint32_t i = 0; i < N_NEW / 2; i++)
		add(N_OLD + i);
	do {
		rig_mem_turn(m);
		persist_info(persist, &info);
	} while (!info.n_failed || info.n_queued);
	ck_assert_uint_eq(info.n_durable, N_OLD);
	hangs = 0;
	all_durable(N_OLD + N_NEW / 2);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("silent_cache");
	TCase *tc = tcase_create("room"), *again = tcase_create("again");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, what_lies_there_is_not_given_up_for_room);
	tcase_set_timeout(again, 120);
	tcase_add_test(again,
		       what_could_not_be_made_durable_is_when_it_answers);
	suite_add_tcase(s, tc);
	suite_add_tcase(s, again);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
