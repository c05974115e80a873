/*
 * test_store_space.c - what a store does with space, and that it comes back
 *
 * Slots of one size are used again in place: a full store goes on for ever at the cost
 * of what is written. What no zone needs goes back to the file system. What zones
 * of another page size hold back is known, and comes free with their last page, or
 * when their owner moves it: which zones those are, and what is kept apart, is here;
 * the owner that moves is in test_clean.c.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/store_priv.h"
#include "tests/rig/rig_store.h"

#define BYTES  (66ull << 20) /* zones of 4 MiB */
#define N_MOST 2048u
#define BIG    65536u
#define PAGES  4u /* of a record: 32 KiB */

static struct rig_store r;
static struct rig_record x[N_MOST];
static unsigned int seed = 7;

static struct kio_store_info info(void)
{
	struct kio_store_info i;

	kio_store_info(r.store, &i);
	return i;
}

static void open_new(uint64_t bytes)
{
	rig_store_init(&r, KIO_ENGINE_AUTO, "/dev/shm");
	ck_assert_int_eq(rig_store_open(&r, bytes, 0), 0);
}

static uint32_t fill(uint32_t page_bytes)
{
	return rig_store_fill(&r, x, N_MOST, page_bytes, PAGES);
}

static uint64_t file_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(kio_store_fd(r.store), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* At 100 % full: three times the store is replaced at random, record by record. */
START_TEST(a_full_store_goes_on_without_cleaning)
{
	struct kio_store_info from, to;
	uint64_t pages, index, id = N_MOST;
	uint32_t n;

	open_new(BYTES);
	n = fill(RIG_PAGE);
	ck_assert_uint_gt(n, 500);
	from = info();
	ck_assert_uint_gt(from.slot_bytes + PAGES * RIG_PAGE, from.bytes);
	for (uint32_t i = 0; i < 3 * n; i++) {
		struct rig_record *o = &x[(uint32_t)rand_r(&seed) % n];
		int ret;

		while (!o->told)
			rig_store_turn(&r);
		ck_assert_int_eq(o->commit.ret, 0);
		o->handle = o->commit.handle;
		rig_store_del(&r, o);
		/* its slots come back with the deletion, and nobody else's */
		while ((ret = rig_store_take(&r, o, ++id, RIG_PAGE, PAGES,
					     40)) == -ENOSPC)
			rig_store_turn(&r);
		ck_assert_int_eq(ret, 0);
		ck_assert_int_eq(rig_store_write(&r, o), 0);
		rig_store_put(&r, o);
	}
	for (uint32_t i = 0; i < n; i++)
		while (!x[i].told)
			rig_store_turn(&r);
	to = info();
	pages = to.page_written_bytes - from.page_written_bytes;
	index = to.index_written_bytes - from.index_written_bytes;
	/* not one page was written but those of the new records */
	ck_assert_uint_eq(pages, 3ull * n * PAGES * RIG_PAGE);
	ck_assert_uint_lt(10 * (pages + index), 13 * pages);
	for (uint32_t i = 0; i < n; i += 7)
		ck_assert_int_eq(rig_store_read(&r, &x[i]), 0);
	kio_store_check(r.store);
	rig_store_fini(&r);
}
END_TEST

/* All but a few go: so do the blocks, but for 64 MiB of reserve. */
static void fill_and_empty(void)
{
	const uint32_t n = fill(BIG);
	const uint64_t full = file_bytes();

	ck_assert_uint_gt(full, info().slot_bytes);
	for (uint32_t i = 10; i < n; i++) {
		x[i].handle = x[i].commit.handle;
		rig_store_del(&r, &x[i]);
	}
	rig_store_settle(&r);
	for (int i = 0; i < 2000 && file_bytes() > full / 2; i++)
		rig_store_turn(&r);
	ck_assert_uint_le(file_bytes(), full / 2);
	ck_assert_uint_le(info().used_bytes, info().bytes / 8);
	for (uint32_t i = 0; i < 10; i++)
		ck_assert_int_eq(rig_store_read(&r, &x[i]), 0);
	/* and it can be filled again */
	ck_assert_int_eq(rig_store_take(&r, &x[20], 9999, BIG, PAGES, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[20]), 0);
	ck_assert_int_eq(rig_store_read(&r, &x[20]), 0);
}

START_TEST(space_goes_back_to_the_file_system)
{
	open_new(3 * BYTES);
	fill_and_empty();
	rig_store_fini(&r);
}
END_TEST

/* As a device that knows no discard: a file knows none either. */
START_TEST(without_discards_there_are_holes)
{
	open_new(3 * BYTES);
	r.store->gives_back = KIO_BACK_DISCARD;
	fill_and_empty();
	ck_assert_int_eq(info().gives_back, KIO_BACK_HOLES);
	rig_store_fini(&r);
}
END_TEST

/* Nothing comes back; that is told, and all goes on. */
START_TEST(who_takes_neither_keeps_the_space)
{
	uint64_t full;
	uint32_t n;

	rig_store_init(&r, KIO_ENGINE_THREADS, "/dev/shm");
	ck_assert_int_eq(rig_store_open(&r, 3 * BYTES, 0), 0);
	r.store->gives_back = _i ? KIO_BACK_DISCARD : KIO_BACK_HOLES;
	n = fill(BIG);
	full = file_bytes();
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.punch", 1, EOPNOTSUPP);
	for (uint32_t i = 10; i < n; i++) {
		x[i].handle = x[i].commit.handle;
		rig_store_del(&r, &x[i]);
	}
	rig_store_settle(&r);
	for (int i = 0; i < 2000 && info().gives_back != KIO_BACK_NO; i++)
		rig_store_turn(&r);
	ck_assert_int_eq(info().gives_back, KIO_BACK_NO);
	kio_fault_disarm();
	ck_assert_uint_eq(file_bytes(), full);
	ck_assert_uint_gt(info().free_zone_bytes, info().bytes / 2);
	for (uint32_t i = 0; i < 10; i++)
		ck_assert_int_eq(rig_store_read(&r, &x[i]), 0);
	for (uint32_t i = 10; i < n; i++)
		ck_assert_int_eq(
			rig_store_take(&r, &x[i], n + i, BIG, PAGES, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[n - 1]), 0);
	ck_assert_int_eq(rig_store_read(&r, &x[n - 1]), 0);
	kio_store_check(r.store);
	rig_store_fini(&r);
}
END_TEST

/*
 * The worst case: of each zone one record stays, and another size is wanted, and nobody
 * says whose the pages are. It is refused; what is held back is told; each zone comes free with its last record.
 */
START_TEST(what_other_sizes_hold_back_is_known)
{
	uint32_t n, n_zones, per_zone;
	uint64_t zone;

	open_new(BYTES);
	n = fill(RIG_PAGE);
	zone = r.store->slots.zone_bytes;
	n_zones = (uint32_t)(info().bytes / zone);
	per_zone = (uint32_t)(zone / RIG_PAGE / PAGES);
	for (uint32_t i = 0; i < n; i++) {
		x[i].handle = x[i].commit.handle;
		if (i % per_zone)
			rig_store_del(&r, &x[i]);
	}
	rig_store_settle(&r);
	ck_assert_uint_eq(info().free_zone_bytes, 0);
	ck_assert_uint_eq(info().slot_bytes,
			  (uint64_t)n_zones * PAGES * RIG_PAGE);
	ck_assert_int_eq(kio_store_alloc(r.store, 65536), -ENOSPC);
	ck_assert_int_ge(kio_store_alloc(r.store, RIG_PAGE), 0);
	/* the owner gives up its oldest, one by one */
	for (uint32_t i = 1; i < n_zones; i++) {
		rig_store_del(&r, &x[i * per_zone]);
		rig_store_settle(&r);
		ck_assert_uint_eq(info().free_zone_bytes, (uint64_t)i * zone);
	}
	for (uint64_t i = 0; i < (n_zones - 1) * (zone / 65536); i++)
		ck_assert_int_ge(kio_store_alloc(r.store, 65536), 0);
	ck_assert_int_eq(kio_store_alloc(r.store, 65536), -ENOSPC);
	rig_store_fini(&r);
}
END_TEST

static int n_wanted;

static void on_clean(void *ctx)
{
	(void)ctx;
	n_wanted++;
}

/* Slots of zone i of 64 KiB: has stay, the others go. */
static void stay(const int64_t *at, uint32_t per_zone, uint32_t i, uint32_t n)
{
	for (uint32_t k = n; k < per_zone; k++)
		kio_store_release(r.store, (uint64_t)at[i * per_zone + k], BIG);
}

static uint64_t zone_of(uint64_t block)
{
	const struct slots *m = &r.store->slots;

	return (block * KIO_BLOCK_BYTES - m->data_off) / m->zone_bytes;
}

/* The emptiest zone goes, the oldest of equal ones; never where nothing is gained. */
START_TEST(the_sparsest_zone_is_the_victim)
{
	static int64_t at[N_MOST];
	uint32_t n_zones, per_zone, n = 0;
	uint64_t block;
	size_t bytes = 0;
	int owner;

	open_new(BYTES);
	kio_store_on_clean(r.store, on_clean, NULL);
	while ((at[n] = kio_store_alloc(r.store, BIG)) >= 0)
		kio_store_own(r.store, (uint64_t)at[n++], BIG, &owner);
	per_zone = (uint32_t)(r.store->slots.zone_bytes / BIG);
	n_zones = n / per_zone;
	ck_assert_uint_gt(n_zones, 4);
	/* a full store of one size: nobody is asked */
	ck_assert_int_eq(kio_store_alloc(r.store, RIG_PAGE), -ENOSPC);
	ck_assert_int_eq(n_wanted, 0);
	stay(at, per_zone, 1, 60);
	stay(at, per_zone, 2, 7);
	ck_assert_int_eq(kio_store_alloc(r.store, RIG_PAGE), -ENOSPC);
	ck_assert_int_eq(n_wanted, 0); /* 7 pages, room for 4 */
	stay(at, per_zone, 3, 5);
	ck_assert_int_eq(kio_store_alloc(r.store, RIG_PAGE), -ENOSPC);
	ck_assert_int_eq(n_wanted, 1);
	ck_assert_uint_eq(kio_store_victim(r.store, &bytes), per_zone);
	ck_assert_uint_eq(bytes, BIG);
	/* 7 and 5 of 64 are in one sixteenth: the older zone goes */
	ck_assert_ptr_eq(kio_store_victim_slot(r.store, 0, &block), &owner);
	ck_assert_uint_eq(zone_of(block), 2);
	/* its pages go to the fullest zone with room */
	ck_assert_uint_eq(zone_of((uint64_t)kio_store_alloc_moved(r.store)), 1);
	/* its own size needs the slots: it is no victim any more */
	for (n = 0; kio_store_alloc(r.store, BIG) >= 0; n++)
		ck_assert_uint_lt(n, N_MOST);
	ck_assert_uint_eq(n, 4 + 57 + 59 - 1);
	ck_assert_uint_eq(kio_store_victim(r.store, &bytes), 0);
	kio_store_on_clean(r.store, NULL, NULL);
	rig_store_fini(&r);
}
END_TEST

/* What stays and what comes and goes: other zones, until few are free. */
START_TEST(kept_and_passing_lie_apart)
{
	uint64_t kept = 0, passing = 0, zone;

	open_new(BYTES);
	zone = r.store->slots.zone_bytes;
	for (uint32_t i = 0; i < 2 * zone / BIG; i++) {
		kept |= 1ull << zone_of(
				(uint64_t)kio_store_alloc_kept(r.store, BIG));
		passing |= 1ull
			   << zone_of((uint64_t)kio_store_alloc(r.store, BIG));
	}
	ck_assert_uint_eq(kept & passing, 0);
	ck_assert_int_eq(__builtin_popcountll(kept), 2);
	/* and all of it can be used for either */
	for (uint64_t n = 4 * zone / BIG; n < info().bytes / BIG; n++)
		ck_assert_int_ge(kio_store_alloc(r.store, BIG), 0);
	ck_assert_int_eq(kio_store_alloc_kept(r.store, BIG), -ENOSPC);
	kio_store_check(r.store);
	rig_store_fini(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("store_space");
	TCase *t = tcase_create("store_space");
	SRunner *sr;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, a_full_store_goes_on_without_cleaning);
	tcase_add_test(t, space_goes_back_to_the_file_system);
	tcase_add_test(t, without_discards_there_are_holes);
	tcase_add_loop_test(t, who_takes_neither_keeps_the_space, 0, 2);
	tcase_add_test(t, what_other_sizes_hold_back_is_known);
	tcase_add_test(t, the_sparsest_zone_is_the_victim);
	tcase_add_test(t, kept_and_passing_lie_apart);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
