/*
 * test_store.c - slots, records and what a store does with a file that is not one
 *
 * Looped tests run on io_uring and threads, on a disk and on tmpfs.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/fault.h"
#include "io/store_priv.h"
#include "tests/rig/bad_block.h"
#include "tests/rig/rig_store.h"

#define SMALL (34ull << 20) /* 7 zones of 4 MiB, index areas of 1 MiB */

static struct rig_store r;
static struct rig_record x[64];

static void init(int variant)
{
	rig_store_init(&r, variant & 1 ? KIO_ENGINE_THREADS : KIO_ENGINE_AUTO,
		       variant & 2 ? "/dev/shm" : "/var/tmp");
}

static void open_ok(uint64_t bytes, uint32_t flags)
{
	ck_assert_int_eq(rig_store_open(&r, bytes, flags), 0);
}

static void reopen(void)
{
	rig_store_close(&r);
	r.verdict = KIO_RECORD_KEEP;
	open_ok(SMALL, 0);
}

static struct kio_store_info info(void)
{
	struct kio_store_info i;

	kio_store_info(r.store, &i);
	return i;
}

/* ---- pages ------------------------------------------------------------------ */

START_TEST(pages_are_written_and_read)
{
	init(_i);
	open_ok(SMALL, _i & 1 ? KIO_STORE_SCRATCH : 0);
	ck_assert_int_eq(r.report.formatted, 1);
	ck_assert_int_eq(rig_store_take(&r, &x[0], 7, 4096, 8, 0), 0);
	ck_assert_int_eq(rig_store_take(&r, &x[1], 8, 1u << 20, 3, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[0]), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[1]), 0);
	ck_assert_int_eq(rig_store_read(&r, &x[0]), 0);
	ck_assert_int_eq(rig_store_read(&r, &x[1]), 0);
	ck_assert_uint_eq(info().slot_bytes, 8 * 4096 + (3u << 20));
	ck_assert_uint_eq(info().page_written_bytes, 8 * 4096 + (3u << 20));
	rig_store_release(&r, &x[0]);
	rig_store_release(&r, &x[1]);
	ck_assert_uint_eq(info().slot_bytes, 0);
	ck_assert_uint_eq(info().free_zone_bytes, info().bytes);
	rig_store_fini(&r);
}
END_TEST

START_TEST(a_full_store_says_so)
{
	uint64_t n = 0;
	int64_t at, last = 0;

	init(0);
	open_ok(SMALL, 0);
	ck_assert_int_eq(kio_store_alloc(r.store, 100), -EINVAL);
	ck_assert_int_eq(kio_store_alloc(r.store, 8u << 20), -EINVAL);
	for (; (at = kio_store_alloc(r.store, 1u << 20)) >= 0; n++)
		last = at;
	ck_assert_int_eq((int)at, -ENOSPC);
	ck_assert_uint_eq(n, info().bytes >> 20);
	ck_assert_int_eq(kio_store_alloc(r.store, 4096), -ENOSPC);
	kio_store_release(r.store, (uint64_t)last, 1u << 20);
	ck_assert_int_eq(kio_store_alloc(r.store, 1u << 20), last);
	rig_store_fini(&r);
}
END_TEST

START_TEST(a_zone_that_is_empty_takes_any_size)
{
	static int64_t at[64];
	uint32_t n = 0;

	init(0);
	open_ok(SMALL, 0);
	while (n < 64 && (at[n] = kio_store_alloc(r.store, 1u << 20)) >= 0)
		n++;
	for (uint32_t i = 0; i < n; i++)
		kio_store_release(r.store, (uint64_t)at[i], 1u << 20);
	kio_store_check(r.store);
	for (uint64_t i = 0; i < info().bytes >> 12; i++)
		ck_assert_int_ge(kio_store_alloc(r.store, 4096), 0);
	ck_assert_int_eq(kio_store_alloc(r.store, 4096), -ENOSPC);
	rig_store_fini(&r);
}
END_TEST

START_TEST(what_lies_low_is_filled_first)
{
	static int64_t at[20];
	int64_t back;

	init(0);
	open_ok(SMALL, 0);
	for (int i = 0; i < 20; i++) /* five zones of four */
		at[i] = kio_store_alloc(r.store, 1u << 20);
	for (int i = 2; i < 20; i += 4) /* a hole in each */
		kio_store_release(r.store, (uint64_t)at[i], 1u << 20);
	for (int i = 2; i < 10; i += 4) {
		back = kio_store_alloc(r.store, 1u << 20);
		ck_assert_int_eq(back, at[i]);
	}
	/* the last zone came free: the next size takes it, or one behind it */
	for (int i = 16; i < 20; i++)
		if (i != 18)
			kio_store_release(r.store, (uint64_t)at[i], 1u << 20);
	ck_assert_int_eq(kio_store_alloc(r.store, 4096), at[16]);
	kio_store_check(r.store);
	rig_store_fini(&r);
}
END_TEST

/* ---- records ---------------------------------------------------------------- */

START_TEST(records_survive)
{
	init(_i);
	open_ok(SMALL, 0);
	for (uint32_t i = 0; i < 20; i++)
		rig_store_add(&r, &x[i], i + 1, 1 + i % 8, i * 37);
	ck_assert_uint_eq(info().n_records, 20);
	for (uint32_t i = 0; i < 20; i += 2)
		rig_store_del(&r, &x[i]);
	reopen();
	ck_assert_uint_eq(r.n_found, 10);
	ck_assert_uint_eq(r.report.n_records, 10);
	ck_assert_uint_eq(r.report.n_refused, 0);
	ck_assert_uint_eq(r.report.torn_bytes, 0);
	for (uint32_t i = 1; i < 20; i += 2) {
		const struct rig_record *f = rig_store_find(&r, i + 1);

		ck_assert_ptr_nonnull(f);
		ck_assert_uint_eq(f->meta_bytes, i * 37);
		ck_assert(!memcmp(f->places, x[i].places,
				  x[i].n_pages * sizeof(x[i].places[0])));
		ck_assert_int_eq(rig_store_read(&r, f), 0);
	}
	rig_store_fini(&r);
}
END_TEST

START_TEST(slots_of_records_are_taken_after_a_restart)
{
	uint64_t n = 0;
	int64_t at;

	init(0);
	open_ok(SMALL, 0);
	for (uint32_t i = 0; i < 10; i++)
		rig_store_add(&r, &x[i], i + 1, 8, 0);
	reopen();
	ck_assert_uint_eq(info().slot_bytes, 80 * RIG_PAGE);
	ck_assert_uint_eq(info().durable_bytes, 80 * RIG_PAGE);
	for (; (at = kio_store_alloc(r.store, RIG_PAGE)) >= 0; n++)
		for (uint32_t i = 0; i < 80; i++)
			ck_assert_uint_ne(x[i / 8].places[i % 8].block,
					  (uint64_t)at);
	ck_assert_uint_eq(n + 80, info().bytes / RIG_PAGE);
	rig_store_fini(&r);
}
END_TEST

START_TEST(what_is_put_must_be_given_out_and_unnamed)
{
	init(0);
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 2, 0);
	x[1] = x[0]; /* the same slots */
	ck_assert_int_eq(rig_store_commit(&r, &x[1]), -EINVAL);
	ck_assert_int_eq(rig_store_take(&r, &x[2], 2, RIG_PAGE, 2, 0), 0);
	x[2].places[1] = x[2].places[0];
	ck_assert_int_eq(rig_store_commit(&r, &x[2]), -EINVAL);
	x[2].places[1].block = 3;
	ck_assert_int_eq(rig_store_commit(&r, &x[2]), -EINVAL);
	x[2].n_pages = 1;
	x[2].meta_bytes = 1u << 19; /* more than an eighth of the index */
	ck_assert_int_eq(rig_store_commit(&r, &x[2]), -EMSGSIZE);
	x[2].meta_bytes = 0;
	ck_assert_int_eq(rig_store_commit(&r, &x[2]), 0);
	rig_store_close(&r);
	open_ok(SMALL, KIO_STORE_SCRATCH);
	ck_assert_int_eq(rig_store_take(&r, &x[3], 3, RIG_PAGE, 1, 0), 0);
	ck_assert_uint_eq(info().n_records, 0);
	rig_store_fini(&r);
}
END_TEST

START_TEST(a_deleted_slot_waits_for_its_deletion)
{
	struct kio_store_info i;
	int64_t at;

	init(0);
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 1, 0);
	ck_assert_int_eq(rig_store_take(&r, &x[1], 2, RIG_PAGE, 1, 0), 0);
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.fdatasync", 1, EIO);
	rig_store_del(&r, &x[0]);
	rig_store_release(&r, &x[1]); /* nobody named it: free at once */
	for (int k = 0; k < 50 && !info().failed; k++)
		rig_store_turn(&r);
	i = info();
	ck_assert(i.failed);
	ck_assert_uint_eq(i.pending_bytes, RIG_PAGE);
	while ((at = kio_store_alloc(r.store, RIG_PAGE)) >= 0)
		ck_assert_uint_ne((uint64_t)at, x[0].places[0].block);
	kio_fault_disarm();
	reopen(); /* both are fine */
	ck_assert_uint_le(r.n_found, 1);
	rig_store_fini(&r);
}
END_TEST

START_TEST(after_a_failed_flush_nothing_is_acknowledged)
{
	init(0);
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 2, 10);
	ck_assert_int_eq(rig_store_take(&r, &x[1], 2, RIG_PAGE, 2, 10), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[1]), 0);
	kio_fault_arm(KIO_FAULT_ONCE, "sys.fdatasync", 1 + (uint64_t)_i, EIO);
	ck_assert_int_eq(rig_store_commit(&r, &x[1]), -EIO);
	kio_fault_disarm();
	ck_assert(info().failed);
	ck_assert_int_eq(rig_store_take(&r, &x[2], 3, RIG_PAGE, 2, 10), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[2]), 0);
	ck_assert_int_eq(rig_store_commit(&r, &x[2]), -EIO);
	ck_assert_int_eq(rig_store_read(&r, &x[0]), 0);
	ck_assert_int_eq(rig_store_read(&r, &x[2]), 0);
	rig_store_release(&r, &x[1]); /* perhaps it is on disk: not reused */
	ck_assert_uint_gt(info().pending_bytes, 0);
	reopen();
	ck_assert(!info().failed);
	ck_assert_ptr_nonnull(rig_store_find(&r, 1));
	ck_assert_ptr_null(rig_store_find(&r, 3));
	for (uint32_t i = 0; i < r.n_found; i++)
		ck_assert_int_eq(rig_store_read(&r, &r.found[i]), 0);
	rig_store_add(&r, &x[3], 4, 1, 0);
	rig_store_fini(&r);
}
END_TEST

START_TEST(a_full_index_refuses_and_recovers)
{
	uint32_t n = 0;
	int ret = 0;
	struct rig_record *all = calloc(4096, sizeof(*all));

	ck_assert_ptr_nonnull(all);
	init(0);
	open_ok(SMALL, 0);
	for (; n < 4096 && !ret; n++) {
		ck_assert_int_eq(
			rig_store_take(&r, &all[n], n + 1, 4096, 1, 5000), 0);
		ret = rig_store_commit(&r, &all[n]);
	}
	ck_assert_int_eq(ret, -ENOSPC);
	rig_store_release(&r, &all[--n]);
	ck_assert_uint_eq(info().pending_bytes, 0); /* it is not durable */
	for (uint32_t i = 0; i < n; i += 2)
		rig_store_del(&r, &all[i]);
	rig_store_settle(&r);
	for (uint32_t i = 0; i < n; i += 2) {
		ck_assert_int_eq(
			rig_store_take(&r, &all[i], 10000 + i, 4096, 1, 4900),
			0);
		ck_assert_int_eq(rig_store_commit(&r, &all[i]), 0);
	}
	ck_assert_uint_gt(info().n_compactions, 0);
	reopen();
	ck_assert_uint_eq(r.n_found, n);
	ck_assert_uint_eq(r.report.n_refused, 0);
	free(all);
	rig_store_fini(&r);
}
END_TEST

START_TEST(the_index_is_compacted)
{
	init(_i);
	open_ok(SMALL, 0);
	for (uint32_t i = 0; i < 40; i++)
		rig_store_add(&r, &x[i], i + 1, 1, 3000);
	for (uint32_t i = 0; i < 600; i++) {
		rig_store_del(&r, &x[i % 20]);
		rig_store_add(&r, &x[i % 20], 1000 + i, 1, 3000);
	}
	ck_assert_uint_gt(info().n_compactions, 2);
	ck_assert_uint_eq(info().n_lost_records, 0);
	ck_assert_uint_eq(info().n_records, 40);
	reopen();
	ck_assert_uint_eq(r.n_found, 40);
	for (uint32_t i = 0; i < 40; i++)
		ck_assert_ptr_nonnull(rig_store_find(&r, x[i].id));
	rig_store_fini(&r);
}
END_TEST

#define LARGE	    (4ull << 30)
#define LARGE_INDEX (16ull << 20) /* each area; compacted from 4 MiB on */
#define LARGE_META  (256u << 10)

/* Until the index is full: how many there were. */
static uint32_t fill_index(int *ret)
{
	uint32_t n = 1;

	for (*ret = 0; !*ret && n < KV_ARRAY_LEN(x); n++) {
		ck_assert_int_eq(rig_store_take(&r, &x[n], n + 1, RIG_PAGE, 1,
						LARGE_META),
				 0);
		ck_assert_int_eq(rig_store_write(&r, &x[n]), 0);
		*ret = rig_store_commit(&r, &x[n]);
		if (!*ret)
			rig_store_del(&r, &x[n]);
		else
			rig_store_release(&r, &x[n]);
	}
	return n - 1;
}

/*
 * The other area takes nothing, or this one cannot be read: it goes on where it is, as
 * long as there is room, is not tried all the time, and nothing has failed for good.
 */
START_TEST(what_cannot_be_compacted_goes_on)
{
	int ret;

	init(1);
	open_ok(LARGE, 0);
	rig_store_add(&r, &x[0], 1, 2, 100);
	if (_i)
		kio_fault_arm(KIO_FAULT_FOREVER, "sys.pread", 1, EIO);
	else
		bad_block_begin(INDEX_OFF + LARGE_INDEX,
				INDEX_OFF + 2 * LARGE_INDEX);
	ck_assert_uint_gt(fill_index(&ret), 50);
	ck_assert_int_eq(ret, -ENOSPC);
	ck_assert(!info().failed);
	ck_assert_uint_eq(info().n_compactions, 0);
	ck_assert_uint_gt(info().n_not_compacted, 0);
	ck_assert_uint_lt(info().n_not_compacted, 20);
	if (_i)
		kio_fault_disarm();
	else
		ck_assert_uint_gt(bad_block_end(), 0);
	rig_store_add(&r, &x[1], 2, 1, LARGE_META); /* there is no room here */
	ck_assert_uint_eq(info().n_compactions, 1);
	rig_store_settle(&r);
	rig_store_close(&r);
	r.verdict = KIO_RECORD_KEEP;
	open_ok(LARGE, 0);
	ck_assert_uint_eq(r.n_found, 2);
	ck_assert_int_eq(rig_store_read(&r, rig_store_find(&r, 1)), 0);
	rig_store_fini(&r);
}
END_TEST

/* Where the file system could not reserve the index. */
START_TEST(a_quota_refuses_and_recovers)
{
	init(0);
	open_ok(SMALL, 0);
	ck_assert_int_eq(rig_store_take(&r, &x[0], 1, RIG_PAGE, 2, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[0]), 0);
	kio_fault_arm(KIO_FAULT_ONCE, "sys.pwrite", 1, EDQUOT);
	ck_assert_int_eq(rig_store_commit(&r, &x[0]), -ENOSPC);
	kio_fault_disarm();
	ck_assert(!info().failed);
	ck_assert_int_eq(rig_store_commit(&r, &x[0]), 0);
	reopen();
	ck_assert_uint_eq(r.n_found, 1);
	rig_store_fini(&r);
}
END_TEST

/* More deletions than a frame may hold: they go in several. */
START_TEST(any_number_of_deletions)
{
	const uint32_t n = 12000;
	struct rig_record *all = calloc(n, sizeof(*all));

	ck_assert_ptr_nonnull(all);
	init(0);
	open_ok(64ull << 20, 0);
	for (uint32_t i = 0; i < n; i++) {
		ck_assert_int_eq(rig_store_take(&r, &all[i], i + 1, 4096, 1, 0),
				 0);
		rig_store_put(&r, &all[i]);
	}
	for (uint32_t i = 0; i < n; i++) {
		while (!all[i].told)
			rig_store_turn(&r);
		ck_assert_int_eq(all[i].commit.ret, 0);
	}
	for (uint32_t i = 0; i < n - 1; i++)
		rig_store_del(&r, &all[i]);
	rig_store_settle(&r);
	ck_assert_uint_eq(info().slot_bytes, 4096);
	rig_store_close(&r);
	open_ok(64ull << 20, 0);
	ck_assert_uint_eq(r.n_found, 1);
	ck_assert_ptr_nonnull(rig_store_find(&r, n));
	free(all);
	rig_store_fini(&r);
}
END_TEST

/* Even if nothing else is queued, and at the latest when the store is closed. */
START_TEST(a_deletion_that_found_no_room_is_tried_again)
{
	init(0);
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 2, 0);
	kio_fault_arm(KIO_FAULT_ONCE, "sys.pwrite", 1, ENOSPC);
	rig_store_del(&r, &x[0]);
	while (!kio_fault_count())
		rig_store_poll(&r);
	if (_i)
		rig_store_settle(&r);
	reopen();
	kio_fault_disarm();
	ck_assert_uint_eq(r.n_found, 0);
	rig_store_fini(&r);
}
END_TEST

START_TEST(bad_slots_are_never_used_again)
{
	int64_t at;

	init(0);
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 2, 0);
	kio_store_del(r.store, x[0].handle);
	kio_store_quarantine(r.store, x[0].places[0].block, RIG_PAGE);
	kio_store_release(r.store, x[0].places[1].block, RIG_PAGE);
	for (int k = 0; k < 2; k++) {
		rig_store_settle(&r);
		ck_assert_uint_eq(info().bad_bytes, RIG_PAGE);
		while ((at = kio_store_alloc(r.store, RIG_PAGE)) >= 0)
			ck_assert_uint_ne((uint64_t)at, x[0].places[0].block);
		reopen();
		ck_assert_uint_eq(r.report.n_bad_slots, 1);
	}
	rig_store_fini(&r);
}
END_TEST

/*
 * The slot went bad, and the power before its record was deleted: the record is there,
 * and nobody gets the slot when it goes, in that life or in a later one.
 */
START_TEST(bad_slots_of_live_records_are_never_used_again)
{
	const uint32_t page = _i & 1 ? 65536 : RIG_PAGE; /* of those after it */
	uint64_t bad;

	init(0);
	r.verdict = KIO_RECORD_KEEP;
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 2, 0);
	bad = x[0].places[0].block;
	kio_store_quarantine(r.store, bad, RIG_PAGE);
	reopen();
	ck_assert_uint_eq(r.n_found, 1);
	ck_assert_uint_eq(r.report.n_bad_slots, 1);
	ck_assert_uint_eq(info().bad_bytes, 0); /* as yet */
	x[0].handle = rig_store_find(&r, 1)->handle;
	if (_i & 2) { /* read, and wrong again */
		kio_store_del(r.store, x[0].handle);
		kio_store_quarantine(r.store, bad, RIG_PAGE);
		kio_store_release(r.store, x[0].places[1].block, RIG_PAGE);
	} else {
		rig_store_del(&r, &x[0]);
	}
	rig_store_settle(&r);
	ck_assert_uint_eq(info().bad_bytes, RIG_PAGE);
	ck_assert_uint_eq(info().slot_bytes, 0);
	for (uint32_t i = 1; i < 9; i++) {
		ck_assert_int_eq(rig_store_take(&r, &x[i], i + 1, page, 3, 0),
				 0);
		for (uint32_t k = 0; k < 3; k++)
			ck_assert_uint_ne(x[i].places[k].block, bad);
		ck_assert_int_eq(rig_store_write(&r, &x[i]), 0);
		ck_assert_int_eq(rig_store_commit(&r, &x[i]), 0);
	}
	reopen();
	ck_assert_uint_eq(r.n_found, 8);
	ck_assert_uint_eq(r.report.n_refused, 0);
	ck_assert_uint_eq(r.report.n_bad_slots, 1);
	ck_assert_uint_eq(info().bad_bytes, RIG_PAGE);
	for (uint32_t i = 0; i < 8; i++)
		ck_assert_int_eq(rig_store_read(&r, &r.found[i]), 0);
	rig_store_fini(&r);
}
END_TEST

/* In a store of before that: a record in a slot that had gone bad. It was acknowledged. */
START_TEST(records_do_not_yield_to_bad_slots)
{
	init(0);
	open_ok(SMALL, 0);
	ck_assert_int_eq(rig_store_take(&r, &x[0], 1, RIG_PAGE, 2, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[0]), 0);
	kio_store_quarantine(r.store, x[0].places[1].block, RIG_PAGE);
	rig_store_add(&r, &x[1], 2, 1, 0); /* so it is noted */
	ck_assert_int_eq(rig_store_commit(&r, &x[0]), 0);
	reopen();
	ck_assert_uint_eq(r.n_found, 2);
	ck_assert_uint_eq(r.report.n_refused, 0);
	ck_assert_uint_eq(r.report.n_bad_slots, 1);
	x[0].handle = rig_store_find(&r, 1)->handle;
	ck_assert_int_eq(rig_store_read(&r, rig_store_find(&r, 1)), 0);
	rig_store_del(&r, &x[0]);
	rig_store_settle(&r);
	ck_assert_uint_eq(info().bad_bytes, RIG_PAGE);
	rig_store_fini(&r);
}
END_TEST

START_TEST(orphans_go_when_room_is_needed)
{
	uint32_t n_kept;

	init(0);
	open_ok(SMALL, 0);
	for (uint32_t i = 0; i < 4; i++) {
		ck_assert_int_eq(
			rig_store_take(&r, &x[i], i + 1, 1u << 20, 5, 0), 0);
		ck_assert_int_eq(rig_store_commit(&r, &x[i]), 0);
	}
	rig_store_close(&r);
	r.verdict = KIO_RECORD_ORPHAN;
	open_ok(SMALL, 0);
	ck_assert_uint_eq(info().n_orphans, 4);
	for (uint32_t i = 0; i < 100; i++) {
		ck_assert_int_ge(kio_store_alloc(r.store, 4096), 0);
		rig_store_turn(&r);
	}
	n_kept = (uint32_t)info().n_orphans;
	ck_assert_uint_ge(n_kept, 3); /* there was room */
	for (uint32_t i = 0; i < 20; i++) {
		while (kio_store_alloc(r.store, 1u << 20) == -ENOSPC)
			rig_store_turn(&r);
		rig_store_turn(&r);
	}
	ck_assert_uint_lt(info().n_orphans, n_kept);
	rig_store_fini(&r);
}
END_TEST

/* Though there are slots: an index that is full of records nobody knows is none. */
START_TEST(orphans_go_when_the_index_is_needed)
{
	uint32_t n = 0;
	int ret = 0;

	init(0);
	open_ok(SMALL, 0);
	for (; !ret; n++) {
		ck_assert_int_eq(
			rig_store_take(&r, &x[0], n + 1, 4096, 1, 20000), 0);
		ret = rig_store_commit(&r, &x[0]);
	}
	ck_assert_int_eq(ret, -ENOSPC);
	ck_assert_uint_gt(--n, 20);
	rig_store_close(&r);
	r.verdict = KIO_RECORD_ORPHAN;
	open_ok(SMALL, 0);
	ck_assert_uint_eq(info().n_orphans, n);
	for (uint32_t i = 0; i < 10; i++) /* side by side, some of them */
		ck_assert_int_eq(
			rig_store_take(&r, &x[i], 1000 + i, 4096, 1, 20000), 0);
	for (uint32_t i = 0; i < 5; i++)
		ck_assert_int_eq(rig_store_commit(&r, &x[i]), 0);
	for (uint32_t i = 5; i < 10; i++)
		rig_store_put(&r, &x[i]);
	for (uint32_t i = 5; i < 10; i++) {
		while (!x[i].told)
			rig_store_turn(&r);
		ck_assert_int_eq(x[i].commit.ret, 0);
	}
	ck_assert_uint_gt(info().n_orphans, n - 20); /* no more than need be */
	reopen();
	for (uint32_t i = 0; i < 10; i++)
		ck_assert_ptr_nonnull(rig_store_find(&r, 1000 + i));
	rig_store_fini(&r);
}
END_TEST

START_TEST(what_the_owner_drops_is_gone)
{
	init(0);
	open_ok(SMALL, 0);
	rig_store_add(&r, &x[0], 1, 2, 0);
	rig_store_close(&r);
	r.verdict = KIO_RECORD_DROP;
	open_ok(SMALL, 0);
	ck_assert_uint_eq(r.n_found, 1);
	rig_store_settle(&r);
	ck_assert_uint_eq(info().slot_bytes, 0);
	ck_assert_uint_eq(info().n_records, 0);
	reopen();
	ck_assert_uint_eq(r.n_found, 0);
	rig_store_fini(&r);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("store");
	TCase *tc = tcase_create("store");

	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, pages_are_written_and_read, 0, 4);
	tcase_add_test(tc, a_full_store_says_so);
	tcase_add_test(tc, a_zone_that_is_empty_takes_any_size);
	tcase_add_test(tc, what_lies_low_is_filled_first);
	tcase_add_loop_test(tc, records_survive, 0, 4);
	tcase_add_test(tc, slots_of_records_are_taken_after_a_restart);
	tcase_add_test(tc, what_is_put_must_be_given_out_and_unnamed);
	tcase_add_test(tc, a_deleted_slot_waits_for_its_deletion);
	tcase_add_loop_test(tc, after_a_failed_flush_nothing_is_acknowledged, 0,
			    2);
	tcase_add_test(tc, a_full_index_refuses_and_recovers);
	tcase_add_loop_test(tc, the_index_is_compacted, 0, 2);
	tcase_add_loop_test(tc, what_cannot_be_compacted_goes_on, 0, 2);
	tcase_add_test(tc, a_quota_refuses_and_recovers);
	tcase_add_test(tc, any_number_of_deletions);
	tcase_add_loop_test(tc, a_deletion_that_found_no_room_is_tried_again, 0,
			    2);
	tcase_add_test(tc, bad_slots_are_never_used_again);
	tcase_add_loop_test(tc, bad_slots_of_live_records_are_never_used_again,
			    0, 4);
	tcase_add_test(tc, records_do_not_yield_to_bad_slots);
	tcase_add_test(tc, orphans_go_when_room_is_needed);
	tcase_add_test(tc, orphans_go_when_the_index_is_needed);
	tcase_add_test(tc, what_the_owner_drops_is_gone);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	SRunner *sr = srunner_create(suite());
	int n;

	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
