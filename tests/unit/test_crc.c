/*
 * test_crc.c - CRC32C: known values, and both paths equal at all sizes
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"

static const struct kio_crc_path *paths;
static int n_paths; /* that this CPU has */

static void find_paths(void)
{
	const int n = kio_crc_paths(&paths);

	for (n_paths = 0; n_paths < n && paths[n_paths].usable; n_paths++)
		printf("path %s\n", paths[n_paths].name);
	ck_assert_int_ge(n_paths, 1);
}

/* RFC 3720, appendix B.4. */
START_TEST(known_values)
{
	unsigned char buf[32];

	ck_assert_uint_eq(kio_crc32c(0, "123456789", 9), 0xe3069283);
	memset(buf, 0, sizeof(buf));
	ck_assert_uint_eq(kio_crc32c(0, buf, 32), 0x8a9136aa);
	memset(buf, 0xff, sizeof(buf));
	ck_assert_uint_eq(kio_crc32c(0, buf, 32), 0x62a8ab43);
	for (unsigned char i = 0; i < 32; i++)
		buf[i] = i;
	ck_assert_uint_eq(kio_crc32c(0, buf, 32), 0x46dd794e);
	for (int i = 0; i < n_paths; i++)
		ck_assert_uint_eq(paths[i].run(0, buf, 32), 0x46dd794e);
}
END_TEST

START_TEST(nothing_changes_nothing)
{
	ck_assert_uint_eq(kio_crc32c(0, NULL, 0), 0);
	ck_assert_uint_eq(kio_crc32c(0x12345678, NULL, 0), 0x12345678);
}
END_TEST

static unsigned char *random_bytes(size_t n)
{
	unsigned char *p = malloc(n);
	uint32_t x = 1;

	ck_assert_ptr_nonnull(p);
	for (size_t i = 0; i < n; i++) {
		x = x * 1664525 + 1013904223;
		p[i] = (unsigned char)(x >> 24);
	}
	return p;
}

/* Sizes on both sides of what the streams and the accumulators take at once. */
START_TEST(paths_agree)
{
	unsigned char *p = random_bytes(120000);

	for (int i = 1; i < n_paths; i++) {
		for (size_t n = 0; n < 10000; n += n < 1200 ? 1 : 97)
			for (size_t at = 0; at < 9; at += 4)
				ck_assert_uint_eq(paths[i].run(7, p + at, n),
						  paths[0].run(7, p + at, n));
		for (size_t n = 45000; n < 119000; n += 1531)
			ck_assert_uint_eq(paths[i].run(7, p + 3, n),
					  paths[0].run(7, p + 3, n));
	}
	free(p);
}
END_TEST

START_TEST(pieces_equal_the_whole)
{
	const size_t n = 20000;
	unsigned char *p = random_bytes(n);
	const uint32_t whole = kio_crc32c(0, p, n);

	for (size_t cut = 0; cut <= n; cut += 617)
		ck_assert_uint_eq(
			kio_crc32c(kio_crc32c(0, p, cut), p + cut, n - cut),
			whole);
	free(p);
}
END_TEST

START_TEST(every_bit_counts)
{
	const size_t n = 4096;
	unsigned char *p = random_bytes(n);
	const uint32_t whole = kio_crc32c(0, p, n);

	for (size_t bit = 0; bit < n * 8; bit += 13) {
		p[bit / 8] ^= (unsigned char)(1u << bit % 8);
		ck_assert_uint_ne(kio_crc32c(0, p, n), whole);
		p[bit / 8] ^= (unsigned char)(1u << bit % 8);
	}
	free(p);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("crc");
	TCase *tc = tcase_create("crc");
	SRunner *sr;
	int failed;

	tcase_add_unchecked_fixture(tc, find_paths, NULL);
	tcase_add_test(tc, known_values);
	tcase_add_test(tc, nothing_changes_nothing);
	tcase_add_test(tc, paths_agree);
	tcase_add_test(tc, pieces_equal_the_whole);
	tcase_add_test(tc, every_bit_counts);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
