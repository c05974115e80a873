/*
 * test_split.c - chunks of a text: all of it, in order, cut behind separators
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/base.h"
#include "libkvclient/kvclient.h"

/* A text, what it is cut at, and its chunks, between bars. */
static const struct {
	const char *text, *separator, *chunks;
} cases[] = {
	{ "", "\n", "" },
	{ "a", "\n", "a|" },
	{ "a\n", "\n", "a\n|" },
	{ "a\nb", "\n", "a\n|b|" },
	{ "\na", "\n", "\n|a|" },
	{ "a\n\n\nb\n", "\n", "a\n\n\n|b\n|" },
	{ "a\n\n\nb\n", "\n\n", "a\n\n|\nb\n|" },
	{ "a---b----c", "---", "a---|b---|-c|" },
	{ "aaaa", "aa", "aaaa|" },
	{ "aaa", "aa", "aa|a|" },
	{ "short", "longer than the text", "short|" },
};

START_TEST(chunks_end_behind_separators)
{
	const char *text = cases[_i].text, *at = text;
	struct kvc_part parts[8];
	const int n = kvc_split(text, strlen(text), cases[_i].separator, parts,
				KV_ARRAY_LEN(parts));
	char got[64] = "";

	ck_assert_int_ge(n, 0);
	for (int i = 0; i < n; i++) {
		ck_assert_ptr_eq(parts[i].text, at);
		ck_assert_uint_eq(parts[i].kind, KV_PART_TEXT);
		ck_assert_uint_eq(parts[i].flags, KV_PART_REUSE);
		strncat(got, at, parts[i].text_len);
		strcat(got, "|");
		at += parts[i].text_len;
	}
	ck_assert_ptr_eq(at, text + strlen(text));
	ck_assert_str_eq(got, cases[_i].chunks);
}
END_TEST

START_TEST(what_cannot_be_is_said)
{
	struct kvc_part parts[2];

	ck_assert_int_eq(kvc_split("a\nb\nc", 5, "\n", parts, 2), -ENOSPC);
	ck_assert_int_eq(kvc_split("a\nb\nc", 4, "\n", parts, 2), 2);
	ck_assert_int_eq(kvc_split("a", 1, "", parts, 2), -EINVAL);
	ck_assert_int_eq(kvc_split("a", 1, NULL, parts, 2), -EINVAL);
	ck_assert_int_eq(kvc_split(NULL, 0, "\n", parts, 0), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("split");
	TCase *t = tcase_create("split");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(t, chunks_end_behind_separators, 0,
			    KV_ARRAY_LEN(cases));
	tcase_add_test(t, what_cannot_be_is_said);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
