/*
 * test_stores.c - disks side by side: who gets what is new, and what when one fails
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/fault.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/page.h"
#include "kvd/mem/stores.h"
#include "tests/rig/rig_mem.h"

#define PAGE 8192u

static char path[64];

static void new_path(void)
{
	strcpy(path, "/var/tmp/kvd-stores-XXXXXX");
	close(mkstemp(path));
}

/* ---- a pager on one disk ---------------------------------------------------- */

static int told, told_ret;

static void on_persisted(struct wait *w, int ret)
{
	(void)w;
	told = 1;
	told_ret = ret;
}

static int persist(struct rig_mem *m, struct range *range, uint64_t key)
{
	struct range_persist p = { .wait.done = on_persisted,
				   .range = range,
				   .key = { key, key },
				   .meta = "x",
				   .meta_bytes = 1 };
	const int ret = range_persist(&p);

	told = 0;
	if (ret)
		return ret;
	for (int i = 0; i < 1000000 && !told; i++)
		rig_mem_turn(m);
	ck_assert_int_eq(told, 1);
	return told_ret;
}

static struct range *filled(struct rig_mem *m, uint32_t n)
{
	struct range *range;
	struct page_run run = { .n = n, .flags = PAGE_WRITE };

	ck_assert_int_eq(range_new(m->pager, PAGE, n, &range), 0);
	run.range = range;
	ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
	rig_mem_fill(&run, n);
	page_unpin(m->pager, &run, 1);
	return range;
}

static struct kio_store_info info(struct rig_mem *m)
{
	struct kio_store_info i;

	kio_store_info(stores_disk(m->stores, 0), &i);
	return i;
}

/* Pages of a new range until one is refused: with what, and not never. */
static int want_all(struct rig_mem *m, uint32_t n)
{
	struct range *range;
	int ret = 0;

	ck_assert_int_eq(range_new(m->pager, PAGE, n, &range), 0);
	for (uint32_t i = 0; i < n && !ret; i++) {
		struct page_run run = { range, i, 1, PAGE_WRITE };

		ret = rig_mem_want(m, &run, 1);
		if (!ret)
			page_unpin(m->pager, &run, 1);
	}
	range_free(range);
	return ret;
}

/* Slots whose deletion is never durable are not waited for. */
START_TEST(wants_end_after_a_failed_flush)
{
	struct rig_mem *m;
	struct range *a, *b;

	new_path();
	m = rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						   .disk_bytes = 8 * PAGE,
						   .store = path });
	a = filled(m, 2);
	ck_assert_int_eq(persist(m, a, 1), 0);
	b = filled(m, 1);
	if (_i)
		kio_fault_arm(KIO_FAULT_ONCE, "sys.fdatasync", 1, EIO);
	ck_assert_int_eq(persist(m, b, 2), _i ? -EIO : 0);
	kio_fault_disarm();
	range_free(a);
	rig_mem_settle(m);
	ck_assert_int_eq(info(m).failed, _i);
	if (_i)
		ck_assert_uint_eq(info(m).pending_bytes, 2 * PAGE);
	ck_assert_int_eq(want_all(m, 64), -ENOSPC);
	ck_assert_uint_eq(stores_pending(m->stores), 0);
	range_free(b);
	rig_mem_close(m);
	(void)unlink(path);
}
END_TEST

/* A deletion that could not be written is written again, whether more follow or not. */
START_TEST(wants_end_after_a_full_disk)
{
	struct rig_mem *m;
	struct range *a;

	new_path();
	m = rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						   .disk_bytes = 8 * PAGE,
						   .store = path });
	a = filled(m, 2);
	ck_assert_int_eq(persist(m, a, 1), 0);
	kio_fault_arm(_i ? KIO_FAULT_FOREVER : KIO_FAULT_ONCE, "sys.pwrite", 1,
		      ENOSPC);
	range_free(a);
	while (!kio_fault_count())
		rig_mem_turn(m);
	ck_assert_int_eq(want_all(m, 64), -ENOSPC);
	ck_assert_uint_eq(stores_pending(m->stores), 0);
	ck_assert_int_eq(info(m).failed, 0);
	ck_assert_uint_eq(info(m).pending_bytes, _i ? 2 * PAGE : 0);
	kio_fault_disarm();
	while (info(m).pending_bytes)
		rig_mem_turn(m);
	rig_mem_close(m);
	(void)unlink(path);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("stores");
	TCase *tc = tcase_create("stores");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, wants_end_after_a_failed_flush, 0, 2);
	tcase_add_loop_test(tc, wants_end_after_a_full_disk, 0, 2);
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
