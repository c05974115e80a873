/*
 * test_verdict.c - the file of what the gate measured: kept, merged, bounded; nothing of
 * a damaged or foreign one is believed
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kvd/serve/verdict.h"

static char dir[32], path[64];
static struct verdict list[VERDICT_MAX];

static void setup(void)
{
	strcpy(dir, "/tmp/kvd-verdict-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/" VERDICT_FILE, dir);
}

static void teardown(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	ck_assert_int_eq(system(cmd), 0);
}

static struct verdict of(uint64_t model, double blend)
{
	return (struct verdict){ .model = { model, ~model },
				 .how = { 7, 8 },
				 .plain = 2 * blend,
				 .blend = blend };
}

static void keep(uint64_t model, double blend)
{
	const struct verdict v = of(model, blend);

	ck_assert_int_eq(verdict_keep(dir, &v, 1), 0);
}

static void is(const struct verdict *v, uint64_t model, double blend)
{
	const struct verdict want = of(model, blend);

	ck_assert_mem_eq(v, &want, sizeof(want));
}

START_TEST(kept_newest_first)
{
	ck_assert_int_eq(verdict_read(dir, list), -ENOENT);
	keep(1, 0.5);
	keep(2, 0);
	ck_assert_int_eq(verdict_read(dir, list), 2);
	is(&list[0], 2, 0);
	is(&list[1], 1, 0.5);
	keep(1, 0.25); /* measured again */
	ck_assert_int_eq(verdict_read(dir, list), 2);
	is(&list[0], 1, 0.25);
	is(&list[1], 2, 0);
}
END_TEST

START_TEST(bounded)
{
	for (uint64_t i = 0; i < VERDICT_MAX + 10; i++)
		keep(i, 1);
	ck_assert_int_eq(verdict_read(dir, list), VERDICT_MAX);
	is(&list[0], VERDICT_MAX + 9, 1);
	is(&list[VERDICT_MAX - 1], 10, 1);
}
END_TEST

START_TEST(no_numbers_are_not_kept)
{
	keep(1, (double)NAN);
	keep(2, (double)INFINITY);
	keep(3, -1);
	ck_assert_int_eq(verdict_read(dir, list), 0);
}
END_TEST

static char bytes[8192];
static size_t n_bytes;

static void slurp(void)
{
	FILE *f = fopen(path, "r");

	ck_assert_ptr_nonnull(f);
	n_bytes = fread(bytes, 1, sizeof(bytes), f);
	ck_assert_int_eq(fclose(f), 0);
}

static void put(const char *data, size_t n)
{
	FILE *f = fopen(path, "w");

	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(data, 1, n, f), n);
	ck_assert_int_eq(fclose(f), 0);
}

START_TEST(no_bit_may_differ)
{
	keep(1, 0.5);
	keep(2, 0.25);
	slurp();
	for (size_t i = 0; i < n_bytes; i++) {
		bytes[i] ^= (char)(1 << i % 8);
		put(bytes, n_bytes);
		ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
		bytes[i] ^= (char)(1 << i % 8);
	}
	for (size_t i = 0; i < n_bytes; i++) {
		put(bytes, i);
		ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
	}
	put(bytes, n_bytes + 1);
	ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
	put(bytes, sizeof(bytes));
	ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
	/* and it is written over */
	keep(3, 0.75);
	ck_assert_int_eq(verdict_read(dir, list), 1);
	is(&list[0], 3, 0.75);
}
END_TEST

START_TEST(what_is_no_file_is_not_read)
{
	char other[64];

	keep(1, 0.5);
	snprintf(other, sizeof(other), "%s/other", dir);
	ck_assert_int_eq(rename(path, other), 0);
	ck_assert_int_eq(symlink(other, path), 0);
	ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
	keep(2, 0.25); /* in its place; what it pointed to stays */
	ck_assert_int_eq(verdict_read(dir, list), 1);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rename(other, path), 0);
	ck_assert_int_eq(verdict_read(dir, list), 1);
	is(&list[0], 1, 0.5);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(mkfifo(path, 0600), 0); /* nobody hangs */
	ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(mkdir(path, 0700), 0);
	ck_assert_int_eq(verdict_read(dir, list), -EINVAL);
	ck_assert_int_lt(verdict_keep(dir, list, 1), 0);
	ck_assert_int_lt(verdict_keep("/nowhere", list, 1), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("verdict");
	TCase *t = tcase_create("verdict");
	SRunner *r;
	int n;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, kept_newest_first);
	tcase_add_test(t, bounded);
	tcase_add_test(t, no_numbers_are_not_kept);
	tcase_add_test(t, no_bit_may_differ);
	tcase_add_test(t, what_is_no_file_is_not_read);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
