/*
 * test_uses.c - the file of statistics: all of it comes back, nothing of one that is
 * damaged or foreign is believed, the old one stays when a new one cannot be written
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
#include "kvd/cache/uses.h"

#define N 5

static char dir[32], path[64];

static void setup(void)
{
	strcpy(dir, "/tmp/kvd-uses-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/" USES_FILE, dir);
}

static void teardown(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	ck_assert_int_eq(system(cmd), 0);
}

static struct use_entry entry(uint64_t i)
{
	return (struct use_entry){ .key = { i / 2, ~i },
				   .n_hits = 100 + i,
				   .value = (double)i / 8 };
}

static void write_n(uint64_t n)
{
	struct uses u = { 0 };

	for (uint64_t i = n; i-- > 0;) {
		const struct use_entry e = entry(i);

		ck_assert_int_eq(uses_add(&u, &e), 0);
	}
	ck_assert_int_eq(uses_write(dir, &u), 0);
	uses_fini(&u);
}

static void holds_n(uint64_t n)
{
	const uint64_t none[2] = { 7, 7 };
	struct uses u;

	ck_assert_int_eq(uses_read(dir, &u), 0);
	ck_assert_uint_eq(u.n, n);
	for (uint64_t i = 0; i < n; i++) {
		const struct use_entry e = entry(i);
		const struct use_entry *f = uses_find(&u, e.key);

		ck_assert_ptr_nonnull(f);
		ck_assert_mem_eq(f, &e, sizeof(e));
	}
	ck_assert_ptr_null(uses_find(&u, none));
	uses_fini(&u);
}

START_TEST(all_of_it_comes_back)
{
	struct uses u;
	const struct use_entry odd[] = { { { 1, 1 }, 1, -1 },
					 { { 1, 2 }, 1, (double)INFINITY },
					 { { 1, 3 }, 1, (double)NAN } };

	ck_assert_int_eq(uses_read(dir, &u), -ENOENT);
	ck_assert_ptr_null(uses_find(&u, entry(1).key));
	write_n(0);
	holds_n(0);
	write_n(1000);
	holds_n(1000);
	write_n(3); /* it is all that there is */
	holds_n(3);
	ck_assert_int_eq(access(path, F_OK), 0);
	memset(&u, 0, sizeof(u)); /* scores are made sound */
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(uses_add(&u, &odd[i]), 0);
	ck_assert_int_eq(uses_write(dir, &u), 0);
	uses_fini(&u);
	ck_assert_int_eq(uses_read(dir, &u), 0);
	for (int i = 0; i < 3; i++)
		ck_assert(u.list[i].value >= 0 &&
			  u.list[i].value <= USES_VALUE);
	uses_fini(&u);
}
END_TEST

static void put_file(const void *data, size_t n)
{
	FILE *f = fopen(path, "w");

	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(data, 1, n, f), n);
	ck_assert_int_eq(fclose(f), 0);
}

START_TEST(no_bit_and_no_byte_may_differ)
{
	unsigned char data[512] = { 0 };
	struct uses u;
	size_t n;
	FILE *f;

	write_n(N);
	f = fopen(path, "r");
	n = fread(data, 1, sizeof(data), f);
	fclose(f);
	ck_assert_uint_eq(n, 16 + N * 32 + 32);
	for (size_t i = 0; i < 8 * n; i++) {
		data[i / 8] ^= (unsigned char)(1 << i % 8);
		put_file(data, n);
		data[i / 8] ^= (unsigned char)(1 << i % 8);
		ck_assert_int_eq(uses_read(dir, &u), -EINVAL);
		ck_assert(!u.n && !u.list);
	}
	for (size_t i = 0; i < sizeof(data); i++) {
		put_file(data, i);
		ck_assert_int_eq(uses_read(dir, &u), i == n ? 0 : -EINVAL);
		uses_fini(&u);
	}
}
END_TEST

START_TEST(only_a_file_of_ours)
{
	char other[80];
	struct uses u = { 0 };

	ck_assert_int_eq(mkdir(path, 0700), 0);
	ck_assert_int_eq(uses_read(dir, &u), -EINVAL);
	ck_assert_int_lt(uses_write(dir, &u), 0);
	ck_assert_int_eq(rmdir(path), 0);
	write_n(N);
	snprintf(other, sizeof(other), "%s/other", dir);
	ck_assert_int_eq(rename(path, other), 0);
	ck_assert_int_eq(symlink(other, path), 0);
	ck_assert_int_eq(uses_read(dir, &u), -EINVAL);
	write_n(2); /* in place of the link, which is not followed */
	holds_n(2);
	ck_assert_int_eq(rename(other, path), 0);
	holds_n(N);
}
END_TEST

/* Whatever a daemon that was killed left, the whole one counts. */
START_TEST(what_was_begun_is_not_looked_at)
{
	char new[80];
	struct uses u = { 0 };

	write_n(N);
	snprintf(new, sizeof(new), "%s.new", path);
	ck_assert_int_eq(link(path, new), 0);
	ck_assert_int_eq(truncate(new, 40), 0);
	ck_assert_int_eq(uses_read(dir, &u), -EINVAL); /* the same file */
	ck_assert_int_eq(unlink(path), 0);
	write_n(N); /* over what was begun */
	holds_n(N);
	ck_assert_int_ne(access(new, F_OK), 0);
	ck_assert_int_eq(mkdir(new, 0700), 0); /* cannot be written */
	ck_assert_int_lt(uses_write(dir, &u), 0);
	holds_n(N);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("uses");
	TCase *t = tcase_create("uses");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, all_of_it_comes_back);
	tcase_add_test(t, no_bit_and_no_byte_may_differ);
	tcase_add_test(t, only_a_file_of_ours);
	tcase_add_test(t, what_was_begun_is_not_looked_at);
	tcase_set_timeout(t, 60);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
