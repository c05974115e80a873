/*
 * test_clean.c - sparse zones of one page size make room for another
 *
 * A store is filled with pages of one size, of which a few stay, spread over all zones.
 * Then pages of another size come, as many as fit. Each test fails without cleaning.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "kvd/mem/clean.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/page.h"
#include "tests/rig/rig_mem.h"
#include "tests/rig/simdisk.h"

#define MIB    1048576ull
#define STORE  (34 * MIB) /* zones of 4 MiB: 8, or 7 with an index */
#define ZONE   (4 * MIB)
#define SMALL  65536u
#define BIG    262144u
#define MEMORY (4 * MIB)
#define N_MOST 1024u

/* A range of pages of one size; its bytes follow from its number. */
struct one {
	struct range *range;
	uint32_t id, n_pages;
};

static struct rig_mem *r;
static struct cleaner *cleaner;
static struct one small[N_MOST], big[N_MOST];
static uint32_t n_small, n_big, next_id;
static char path[64];
static uint64_t seed;

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(simdisk_random(&seed) % n);
}

static struct page_run run_of(const struct one *o, uint32_t flags)
{
	return (struct page_run){ o->range, 0, o->n_pages, flags };
}

static struct kio_store_info info(void)
{
	struct kio_store_info i;

	kio_store_info(stores_disk(r->stores, 0), &i);
	return i;
}

/* ---- pages ----------------------------------------------------------------- */

static int make(struct one *o, uint32_t page_bytes, uint32_t n_pages)
{
	struct page_run run;
	int ret;

	*o = (struct one){ .id = ++next_id, .n_pages = n_pages };
	ck_assert_int_eq(range_new(r->pager, page_bytes, n_pages, &o->range),
			 0);
	run = run_of(o, PAGE_WRITE);
	ck_assert_int_eq(pager_reserve(r->pager, n_pages * page_bytes), 0);
	ret = rig_mem_want(r, &run, 1);
	if (!ret) {
		rig_mem_fill(&run, o->id);
		page_unpin(r->pager, &run, 1);
	} else {
		range_free(o->range);
		o->range = NULL;
	}
	pager_unreserve(r->pager, n_pages * page_bytes);
	return ret;
}

static int look(const struct one *o)
{
	struct page_run run = run_of(o, 0);
	const uint64_t bytes = o->n_pages * range_page_bytes(o->range);
	int ret;

	ck_assert_int_eq(pager_reserve(r->pager, bytes), 0);
	ret = rig_mem_want(r, &run, 1);
	if (!ret && !rig_mem_holds(&run, o->id))
		ret = -EBADMSG;
	if (ret != 0 && ret != -EBADMSG)
		goto out;
	page_unpin(r->pager, &run, 1);
out:
	pager_unreserve(r->pager, bytes);
	return ret;
}

static void let_go(struct one *o)
{
	range_free(o->range);
	o->range = NULL;
}

struct saving {
	struct range_persist rp;
	int told, ret;
};

static void on_saved(struct wait *w, int ret)
{
	struct saving *s = container_of(
		container_of(w, struct range_persist, wait), struct saving, rp);

	s->told = 1;
	s->ret = ret;
}

static int save(struct one *o)
{
	struct saving s = { .rp = { .wait.done = on_saved,
				    .range = o->range,
				    .key = { o->id, ~(uint64_t)o->id },
				    .meta = &o->id,
				    .meta_bytes = sizeof(o->id) } };
	const int ret = range_persist(&s.rp);

	if (ret)
		return ret;
	while (!s.told)
		rig_mem_turn(r);
	return s.ret;
}

/* ---- a store, and its pages at the next start -------------------------------- */

static struct one *found;
static uint32_t n_found;

static int on_record(void *ctx, uint32_t i_disk, const struct kio_record *rec)
{
	struct rig_mem *m = ctx;
	struct one *o = &found[n_found++];

	*o = (struct one){ .n_pages = rec->n_pages };
	ck_assert_uint_eq(rec->meta_bytes, sizeof(o->id));
	memcpy(&o->id, rec->meta, sizeof(o->id));
	ck_assert_uint_eq(rec->key.w[0], o->id);
	ck_assert_int_eq(range_adopt(m->pager, i_disk, rec, &o->range), 0);
	return KIO_RECORD_KEEP;
}

static void begin(const char *store)
{
	r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = MEMORY,
		.disk_bytes = STORE,
		.store_bytes = STORE,
		.store = store,
		.found = on_record,
	});
	ck_assert_int_eq(cleaner_new(&cleaner, r->loop, r->stores, 1u << 30),
			 0);
	cleaner_adopt(r->pager);
}

static void end(void)
{
	cleaner_free(cleaner);
	for (uint32_t i = 0; i < N_MOST; i++) {
		range_free(small[i].range);
		range_free(big[i].range);
		small[i].range = big[i].range = NULL;
	}
	rig_mem_settle(r);
	kio_store_check(stores_disk(r->stores, 0));
	rig_mem_close(r);
}

/* Ranges of n_pages until nothing fits, or n_most. */
static uint32_t fill(struct one *all, uint32_t page_bytes, uint32_t n_pages,
		     uint32_t n_most)
{
	uint32_t n = 0;

	while (n < n_most && !make(&all[n], page_bytes, n_pages)) {
		if (pager_durable(r->pager) && save(&all[n]))
			break;
		n++;
	}
	return n;
}

/* Every so manyth stays. */
static void thin_out(uint32_t n_all, uint32_t stay_every)
{
	for (uint32_t i = 0; i < n_all; i++)
		if (small[i].range && i % stay_every)
			let_go(&small[i]);
	rig_mem_settle(r);
}

static void all_hold(const struct one *all, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (all[i].range)
			ck_assert_int_eq(look(&all[i]), 0);
}

/* ---- tests ------------------------------------------------------------------- */

/* Pages that nothing names: 7 zones with a page of 64 KiB each, then 256 KiB. */
START_TEST(another_size_finds_room)
{
	struct kio_store_info i;

	begin(NULL);
	n_small = fill(small, SMALL, 1, 500);
	ck_assert_uint_eq(n_small, 500);
	thin_out(n_small, ZONE / SMALL);
	ck_assert_uint_lt(info().free_zone_bytes, 3 * ZONE);
	n_big = fill(big, BIG, 1, 110);
	ck_assert_uint_eq(n_big, 110);
	i = info();
	ck_assert_uint_gt(i.n_zones_cleaned, 4);
	ck_assert_uint_gt(i.moved_bytes, 0);
	/* no page was moved twice, and none for nothing */
	ck_assert_uint_le(i.moved_bytes, 2 * (n_small / 64 + 1) * SMALL);
	all_hold(small, n_small);
	all_hold(big, n_big);
	end();
}
END_TEST

/* The same with records, that are there after a restart. */
START_TEST(records_move_and_stay)
{
	uint32_t n_stay = 0, n_same = 0;

	strcpy(path, "/var/tmp/kvd-clean-XXXXXX");
	close(mkstemp(path));
	unlink(path);
	begin(path);
	n_small = fill(small, SMALL, 4, 110);
	ck_assert_uint_eq(n_small, 110);
	thin_out(n_small, ZONE / SMALL / 4);
	n_big = fill(big, BIG, 2, 45);
	ck_assert_uint_eq(n_big, 45);
	ck_assert_uint_gt(info().n_zones_cleaned, 3);
	all_hold(small, n_small);
	all_hold(big, n_big);
	for (uint32_t i = 0; i < n_small; i++)
		n_stay += !!small[i].range;
	cleaner_free(cleaner);
	cleaner = NULL;
	pager_keep_records(r->pager);
	end();
	found = calloc(N_MOST, sizeof(*found));
	n_found = 0;
	begin(path);
	ck_assert_uint_eq(n_found, n_stay + n_big);
	for (uint32_t i = 0; i < n_found; i++) {
		ck_assert_int_eq(look(&found[i]), 0);
		n_same += range_page_bytes(found[i].range) == SMALL;
		let_go(&found[i]);
	}
	ck_assert_uint_eq(n_same, n_stay);
	end();
	free(found);
	unlink(path);
}
END_TEST

/* One size only: whatever comes and goes, nothing is ever moved. */
START_TEST(one_size_is_never_cleaned)
{
	begin(NULL);
	n_small = fill(small, SMALL, 1, 500);
	for (uint32_t i = 0; i < 1500; i++) {
		struct one *o = &small[rnd(n_small)];

		if (o->range)
			let_go(o);
		if (rnd(3))
			(void)make(o, SMALL, 1);
	}
	ck_assert_uint_eq(info().moved_bytes, 0);
	ck_assert_uint_eq(info().n_zones_cleaned, 0);
	all_hold(small, n_small);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("clean");
	TCase *t = tcase_create("clean");
	SRunner *sr;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, another_size_finds_room);
	tcase_add_test(t, records_move_and_stay);
	tcase_add_test(t, one_size_is_never_cleaned);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
