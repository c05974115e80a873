/*
 * test_store_open.c - files that are no store, are damaged, cut, larger, in use
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/store_priv.h"
#include "tests/rig/bad_block.h"
#include "tests/rig/rig_store.h"

#define SMALL (34ull << 20) /* 7 zones of 4 MiB, index areas of 1 MiB */

static struct rig_store r;
static struct rig_record x[64];

static void init(void)
{
	rig_store_init(&r, KIO_ENGINE_AUTO, "/var/tmp");
}

static void open_ok(void)
{
	r.verdict = KIO_RECORD_KEEP;
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), 0);
}

/* A store with n records, closed. */
static void make(uint32_t n)
{
	init();
	open_ok();
	for (uint32_t i = 0; i < n; i++)
		rig_store_add(&r, &x[i], i + 1, 2, 100);
	rig_store_close(&r);
}

static struct sb superblock(int i)
{
	struct sb sb;

	rig_store_peek(&r, (uint64_t)i * KIO_BLOCK_BYTES, &sb, sizeof(sb));
	return sb;
}

static void damage(uint64_t off)
{
	char c;

	rig_store_peek(&r, off, &c, 1);
	c = (char)~c;
	rig_store_poke(&r, off, &c, 1);
}

/* ---- not a store ------------------------------------------------------------ */

START_TEST(foreign_files_are_left_alone)
{
	/* a text; the label of ext4; that of btrfs, behind zeros */
	static const uint64_t offs[] = { 0, 1024 + 56, 65536 + 64 };
	char c = 0;

	init();
	ck_assert_int_eq(truncate(r.path, _i ? 64 << 20 : 5), 0);
	rig_store_poke(&r, offs[_i], "hello", 5);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -EMEDIUMTYPE);
	rig_store_peek(&r, offs[_i] + 4, &c, 1);
	ck_assert_int_eq(c, 'o');
	rig_store_fini(&r);
}
END_TEST

START_TEST(blank_files_are_formatted)
{
	struct stat st;

	init();
	ck_assert_int_eq(truncate(r.path, _i ? SMALL : 0), 0);
	ck_assert_int_eq(rig_store_open(&r, SMALL, KIO_STORE_READONLY),
			 _i ? -ENODATA : -EMEDIUMTYPE);
	open_ok();
	ck_assert_int_eq(r.report.formatted, 1);
	rig_store_close(&r);
	ck_assert_int_eq(stat(r.path, &st), 0);
	ck_assert_int_eq(st.st_size, SMALL);
	ck_assert_int_eq(st.st_mode & 0777, 0600);
	ck_assert_int_eq(rig_store_open(&r, 0, 0), 0); /* as it is */
	ck_assert_int_eq(r.report.formatted, 0);
	rig_store_fini(&r);
}
END_TEST

START_TEST(other_things_are_refused)
{
	char link[160];

	init();
	ck_assert_int_eq(rig_store_open(&r, 1 << 20, 0), -EINVAL); /* small */
	snprintf(link, sizeof(link), "%s.link", r.path);
	ck_assert_int_eq(symlink(r.path, link), 0);
	ck_assert_int_eq(rename(link, r.path), 0);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -ELOOP);
	ck_assert_int_eq(unlink(r.path), 0);
	ck_assert_int_eq(mkfifo(r.path, 0600), 0);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -EMEDIUMTYPE);
	ck_assert_int_eq(unlink(r.path), 0);
	ck_assert_int_eq(mkdir(r.path, 0700), 0);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -EISDIR);
	ck_assert_int_eq(rmdir(r.path), 0);
	rig_store_fini(&r);
}
END_TEST

START_TEST(two_do_not_share_a_store)
{
	struct rig_store other;

	make(1);
	rig_store_init(&other, KIO_ENGINE_THREADS, "/var/tmp");
	ck_assert_int_eq(unlink(other.path), 0);
	strcpy(other.path, r.path);
	open_ok();
	ck_assert_int_eq(rig_store_open(&other, SMALL, 0), -EBUSY);
	rig_store_close(&r);
	ck_assert_int_eq(rig_store_open(&other, SMALL, 0), 0);
	ck_assert_uint_eq(other.n_found, 1);
	rig_store_fini(&other);
	rig_store_fini(&r);
}
END_TEST

START_TEST(scratch_leaves_the_store_alone)
{
	make(3);
	ck_assert_int_eq(rig_store_open(&r, SMALL, KIO_STORE_SCRATCH), 0);
	ck_assert_int_eq(rig_store_take(&r, &x[9], 9, RIG_PAGE, 4, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[9]), 0);
	ck_assert_int_eq(rig_store_read(&r, &x[9]), 0);
	ck_assert_int_eq(rig_store_commit(&r, &x[9]), -ENOTSUP);
	rig_store_close(&r);
	open_ok();
	ck_assert_uint_eq(r.n_found, 3);
	rig_store_fini(&r);
}
END_TEST

START_TEST(looking_changes_nothing)
{
	make(3);
	ck_assert_int_eq(rig_store_open(&r, 0, KIO_STORE_READONLY), 0);
	ck_assert_uint_eq(r.n_found, 3);
	rig_store_close(&r);
	damage(0); /* one superblock */
	ck_assert_int_eq(rig_store_open(&r, 0, KIO_STORE_READONLY), 0);
	rig_store_close(&r);
	ck_assert_uint_ne(superblock(0).magic, SB_MAGIC);
	rig_store_fini(&r);
}
END_TEST

/* ---- damage ----------------------------------------------------------------- */

START_TEST(one_superblock_is_enough)
{
	make(3);
	damage((uint64_t)_i * KIO_BLOCK_BYTES + 100);
	open_ok();
	ck_assert_uint_eq(r.n_found, 3);
	rig_store_close(&r);
	damage((uint64_t)!_i * KIO_BLOCK_BYTES + 100); /* it was repaired */
	open_ok();
	ck_assert_uint_eq(r.n_found, 3);
	rig_store_fini(&r);
}
END_TEST

START_TEST(without_superblocks_it_is_not_formatted)
{
	static const char zeros[2 * KIO_BLOCK_BYTES];

	make(3);
	if (_i) {
		rig_store_poke(&r, 0, zeros, sizeof(zeros));
	} else {
		damage(100);
		damage(KIO_BLOCK_BYTES + 100);
	}
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -EBADMSG);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -EBADMSG);
	rig_store_fini(&r);
}
END_TEST

static void change_sb(void (*change)(struct sb *sb))
{
	for (int i = 0; i < 2; i++) {
		struct sb sb = superblock(i);

		change(&sb);
		sb_seal(&sb);
		rig_store_poke(&r, (uint64_t)i * KIO_BLOCK_BYTES, &sb,
			       sizeof(sb));
	}
}

static void newer(struct sb *sb)
{
	sb->major++;
}
static void with_feature(struct sb *sb)
{
	sb->features = 4;
}
static void with_reserved(struct sb *sb)
{
	sb->rsvd[77] = 1;
}
static void larger_than_its_bytes(struct sb *sb)
{
	sb->n_zones *= 2;
}
static void index_of_nothing(struct sb *sb)
{
	sb->index_bytes = 4096;
}
static void third_area(struct sb *sb)
{
	sb->active = 2;
}

static void fewer_zones_than_its_bytes(struct sb *sb)
{
	sb->n_zones = 1;
}

/* It may say that it has few zones; then a limit gives it no more. */
START_TEST(zones_are_as_many_as_the_superblock_says)
{
	struct kio_store_info i;
	int n = 0;

	make(1);
	change_sb(fewer_zones_than_its_bytes);
	ck_assert_int_eq(rig_store_open(&r, SMALL - (8u << 20), 0), 0);
	kio_store_info(r.store, &i);
	ck_assert_uint_eq(i.bytes, 4u << 20);
	while (kio_store_alloc(r.store, 1u << 20) >= 0)
		n++;
	ck_assert_int_eq(n, 0); /* the zone has pages of another size */
	ck_assert_int_eq(rig_store_read(&r, &r.found[0]), 0);
	rig_store_fini(&r);
}
END_TEST

START_TEST(superblocks_are_not_believed)
{
	static const struct {
		void (*change)(struct sb *sb);
		int ret;
	} cases[] = {
		{ newer, -EPROTONOSUPPORT },
		{ with_feature, -EPROTONOSUPPORT },
		{ with_reserved, -EBADMSG },
		{ larger_than_its_bytes, -EBADMSG },
		{ index_of_nothing, -EBADMSG },
		{ third_area, -EBADMSG },
	};

	make(1);
	change_sb(cases[_i].change);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), cases[_i].ret);
	rig_store_fini(&r);
}
END_TEST

/* The last of three records is in the last frame, of one block. */
START_TEST(a_torn_frame_is_the_end_of_the_log)
{
	uint64_t end;

	make(3);
	open_ok();
	end = INDEX_OFF + r.report.index_bytes;
	rig_store_close(&r);
	damage(end - KIO_BLOCK_BYTES + (uint64_t)_i);
	open_ok();
	ck_assert_uint_eq(r.n_found, 2);
	ck_assert_ptr_null(rig_store_find(&r, 3));
	ck_assert_uint_eq(r.report.n_refused, 0);
	rig_store_add(&r, &x[3], 4, 2, 100);
	rig_store_close(&r);
	open_ok();
	ck_assert_uint_eq(r.n_found, 3);
	ck_assert_ptr_nonnull(rig_store_find(&r, 4));
	rig_store_fini(&r);
}
END_TEST

/*
 * Whole frames with the right numbers that are not of this log: those of another
 * store, and one of its own that stood behind another frame once.
 */
START_TEST(frames_of_other_lives_are_not_believed)
{
	char frames[2][KIO_BLOCK_BYTES];

	make(2);
	rig_store_peek(&r, INDEX_OFF, frames, sizeof(frames));
	rig_store_fini(&r);
	if (_i) { /* behind a first frame that is as long and not the same */
		make(1);
		rig_store_poke(&r, INDEX_OFF + KIO_BLOCK_BYTES, frames[1],
			       KIO_BLOCK_BYTES);
	} else {
		make(0);
		rig_store_poke(&r, INDEX_OFF, frames, sizeof(frames));
	}
	open_ok();
	ck_assert_uint_eq(r.n_found, (uint32_t)_i);
	rig_store_fini(&r);
}
END_TEST

START_TEST(a_tail_of_the_same_life_is_not_believed)
{
	char last[KIO_BLOCK_BYTES];

	make(3);
	rig_store_peek(&r, INDEX_OFF + 2 * KIO_BLOCK_BYTES, last, sizeof(last));
	damage(INDEX_OFF + KIO_BLOCK_BYTES + 60);
	damage(INDEX_OFF + 2 * KIO_BLOCK_BYTES + 60);
	open_ok();
	ck_assert_uint_eq(r.n_found, 1);
	rig_store_add(&r, &x[4], 5, 2, 100); /* in the place of the second */
	rig_store_close(&r);
	rig_store_poke(&r, INDEX_OFF + 2 * KIO_BLOCK_BYTES, last, sizeof(last));
	open_ok();
	ck_assert_uint_eq(r.n_found, 2);
	ck_assert_ptr_null(rig_store_find(&r, 3));
	rig_store_fini(&r);
}
END_TEST

/* In the middle: what follows is lost, and said to be; once. */
START_TEST(damage_in_the_log_is_told)
{
	make(6);
	damage(INDEX_OFF + 2 * KIO_BLOCK_BYTES + (uint64_t)_i);
	open_ok();
	ck_assert_uint_eq(r.n_found, 2);
	ck_assert_uint_eq(r.report.n_lost_frames, 3);
	rig_store_add(&r, &x[7], 8, 1, 0);
	rig_store_close(&r);
	open_ok();
	ck_assert_uint_eq(r.n_found, 3);
	ck_assert_uint_eq(r.report.n_lost_frames, 0);
	ck_assert_uint_eq(r.report.epoch, 2);
	rig_store_fini(&r);
}
END_TEST

#define LARGE	   (4ull << 30) /* an index of 16 MiB, read in two steps */
#define LARGE_META (1u << 20)

/* What follows lies where nothing would have been read yet. */
START_TEST(damage_far_into_the_log_is_told)
{
	const uint64_t frame =
		KV_ALIGN_UP(sizeof(struct frame) + put_bytes(1, LARGE_META),
			    KIO_BLOCK_BYTES);
	const uint64_t n = (8u << 20) / frame; /* this one begins below 8 MiB */

	init();
	r.verdict = KIO_RECORD_KEEP;
	ck_assert_int_eq(rig_store_open(&r, LARGE, 0), 0);
	for (uint32_t i = 0; i < n + 3; i++)
		rig_store_add(&r, &x[i], i + 1, 1, LARGE_META);
	rig_store_close(&r);
	damage(INDEX_OFF + n * frame + (uint64_t)_i);
	ck_assert_int_eq(rig_store_open(&r, LARGE, 0), 0);
	ck_assert_uint_eq(r.n_found, n);
	ck_assert_uint_eq(r.report.n_lost_frames, 2);
	rig_store_close(&r);
	ck_assert_int_eq(rig_store_open(&r, LARGE, 0), 0);
	ck_assert_uint_eq(r.n_found, n);
	ck_assert_uint_eq(r.report.epoch, 2);
	rig_store_fini(&r);
}
END_TEST

START_TEST(a_cut_file_loses_only_what_was_cut)
{
	make(1);
	open_ok();
	ck_assert_int_eq(rig_store_take(&r, &x[1], 2, 1u << 20, 8, 0), 0);
	ck_assert_int_eq(rig_store_take(&r, &x[2], 3, 1u << 20, 2, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[2]), 0);
	ck_assert_int_eq(rig_store_commit(&r, &x[2]), 0);
	rig_store_close(&r);
	if (_i) {
		ck_assert_int_eq(truncate(r.path, 1 << 20), 0);
		ck_assert_int_eq(rig_store_open(&r, SMALL, 0), -EBADMSG);
		rig_store_fini(&r);
		return;
	}
	ck_assert_int_eq(
		truncate(r.path, (off_t)x[2].places[1].block * 4096 + 4096), 0);
	open_ok();
	ck_assert_uint_eq(r.report.n_refused, 1);
	ck_assert_uint_eq(r.n_found, 1);
	ck_assert_int_eq(rig_store_read(&r, &r.found[0]), 0);
	rig_store_close(&r);
	open_ok(); /* what was refused is gone */
	ck_assert_uint_eq(r.report.n_refused, 0);
	rig_store_fini(&r);
}
END_TEST

/* Block _i of the index, of which 4 have frames and the next says that the log ends. */
START_TEST(a_block_that_cannot_be_read_matters_where_something_was)
{
	const int64_t at = (int64_t)INDEX_OFF + _i * 4096;
	int ret;

	make(4);
	r.verdict = KIO_RECORD_KEEP;
	bad_block_unreadable(at, at + 1);
	ret = rig_store_open(&r, SMALL, 0);
	ck_assert_uint_gt(bad_block_end(), 0);
	ck_assert_int_eq(ret, _i < 5 ? -EIO : 0);
	if (!ret)
		ck_assert_uint_eq(r.n_found, 4);
	rig_store_close(&r);
	open_ok(); /* as it was */
	ck_assert_uint_eq(r.n_found, 4);
	rig_store_fini(&r);
}
END_TEST

START_TEST(what_cannot_be_written_can_be_read)
{
	struct kio_store_info i;

	make(3);
	kio_fault_arm(KIO_FAULT_FOREVER, _i ? "sys.fdatasync" : "sys.pwrite", 1,
		      EIO);
	open_ok();
	kio_fault_disarm();
	ck_assert_uint_eq(r.n_found, 3);
	ck_assert_int_eq(rig_store_read(&r, &r.found[2]), 0);
	kio_store_info(r.store, &i);
	ck_assert(i.failed);
	ck_assert_int_eq(rig_store_take(&r, &x[9], 9, RIG_PAGE, 1, 0), 0);
	ck_assert_int_eq(rig_store_commit(&r, &x[9]), -EIO);
	rig_store_close(&r);
	open_ok();
	ck_assert_uint_eq(r.n_found, 3);
	rig_store_add(&r, &x[9], 9, 1, 0);
	rig_store_fini(&r);
}
END_TEST

/* ---- size ------------------------------------------------------------------- */

START_TEST(it_grows_and_is_limited)
{
	struct kio_store_info i;

	make(2);
	ck_assert_int_eq(rig_store_open(&r, 2 * SMALL, 0), 0);
	kio_store_info(r.store, &i);
	ck_assert_uint_eq(i.bytes, 64u << 20);
	ck_assert_uint_eq(r.n_found, 2);
	for (int k = 0; k < 40; k++)
		ck_assert_int_ge(kio_store_alloc(r.store, 1u << 20), 0);
	ck_assert_int_eq(rig_store_take(&r, &x[5], 6, 1u << 20, 2, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[5]), 0);
	ck_assert_int_eq(rig_store_commit(&r, &x[5]), 0);
	rig_store_close(&r);
	open_ok(); /* smaller: what lies beyond stays, nothing new goes there */
	ck_assert_uint_eq(r.n_found, 3);
	kio_store_info(r.store, &i);
	ck_assert_uint_eq(i.bytes, 28u << 20);
	for (int64_t at; (at = kio_store_alloc(r.store, 1u << 20)) >= 0;)
		ck_assert_uint_lt((uint64_t)at * 4096, SMALL);
	ck_assert_int_eq(rig_store_read(&r, rig_store_find(&r, 6)), 0);
	rig_store_fini(&r);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("store_open");
	TCase *tc = tcase_create("store_open");

	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, foreign_files_are_left_alone, 0, 3);
	tcase_add_loop_test(tc, blank_files_are_formatted, 0, 2);
	tcase_add_test(tc, other_things_are_refused);
	tcase_add_test(tc, two_do_not_share_a_store);
	tcase_add_test(tc, scratch_leaves_the_store_alone);
	tcase_add_test(tc, looking_changes_nothing);
	tcase_add_loop_test(tc, one_superblock_is_enough, 0, 2);
	tcase_add_loop_test(tc, without_superblocks_it_is_not_formatted, 0, 2);
	tcase_add_test(tc, zones_are_as_many_as_the_superblock_says);
	tcase_add_loop_test(tc, superblocks_are_not_believed, 0, 6);
	tcase_add_loop_test(tc, a_torn_frame_is_the_end_of_the_log, 0, 49);
	tcase_add_loop_test(tc, frames_of_other_lives_are_not_believed, 0, 2);
	tcase_add_test(tc, a_tail_of_the_same_life_is_not_believed);
	tcase_add_loop_test(tc, damage_in_the_log_is_told, 0, 49);
	tcase_add_loop_test(tc, damage_far_into_the_log_is_told, 0, 2);
	tcase_add_loop_test(tc, a_cut_file_loses_only_what_was_cut, 0, 2);
	tcase_add_loop_test(
		tc, a_block_that_cannot_be_read_matters_where_something_was, 0,
		7);
	tcase_add_loop_test(tc, what_cannot_be_written_can_be_read, 0, 2);
	tcase_add_test(tc, it_grows_and_is_limited);
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
