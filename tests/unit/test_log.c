/*
 * test_log.c - levels, the shape of a line, and what clients cannot put in it
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kvd/base/log.h"

static FILE *out;
static char text[8192];

/* stderr goes into a file for the rest of this test's process. */
static void capture(void)
{
	out = tmpfile();
	ck_assert_ptr_nonnull(out);
	ck_assert_int_ge(dup2(fileno(out), STDERR_FILENO), 0);
}

static const char *captured(void)
{
	size_t n;

	rewind(out);
	n = fread(text, 1, sizeof(text) - 1, out);
	text[n] = '\0';
	return text;
}

START_TEST(a_line_has_time_level_module_text)
{
	int y, mon, d, h, m, s, ms, end = 0;

	capture();
	log_warn("move", "page %d %s", 812, "kept");
	ck_assert_int_eq(sscanf(captured(), "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ %n",
				&y, &mon, &d, &h, &m, &s, &ms, &end),
			 7);
	ck_assert_str_eq(text + end, "warn move: page 812 kept\n");
}
END_TEST

START_TEST(levels_above_the_set_one_are_silent)
{
	capture();
	log_set_level(LOG_LVL_WARN);
	log_error("m", "one");
	log_warn("m", "two");
	log_info("m", "three");
	log_debug("m", "four");
	captured();
	ck_assert_ptr_nonnull(strstr(text, "error m: one\n"));
	ck_assert_ptr_nonnull(strstr(text, "warn m: two\n"));
	ck_assert_ptr_null(strstr(text, "three"));
	ck_assert_ptr_null(strstr(text, "four"));
	log_set_level(LOG_LVL_DEBUG);
	log_debug("m", "five");
	ck_assert_ptr_nonnull(strstr(captured(), "debug m: five\n"));
}
END_TEST

START_TEST(a_text_stays_one_line)
{
	capture();
	log_info("m", "%s", "evil\n2026-01-01 error m: fake\033[2J\177");
	captured();
	ck_assert_ptr_eq(strchr(text, '\n'), text + strlen(text) - 1);
	ck_assert_ptr_nonnull(strstr(text, "evil?2026-01-01 error m: "
					   "fake?[2J?\n"));
}
END_TEST

START_TEST(long_lines_are_cut)
{
	char name[3000];

	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	capture();
	log_info("m", "%s", name);
	log_info(name, "%s", name);
	captured();
	for (char *line = text; *line; line = strchr(line, '\n') + 1) {
		ck_assert_ptr_nonnull(strchr(line, '\n'));
		ck_assert_int_le(strchr(line, '\n') - line, 1023);
		ck_assert_int_ge(strchr(line, '\n') - line, 1000);
	}
}
END_TEST

START_TEST(level_names)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };
	enum log_level lvl;

	for (int i = 0; i < 4; i++) {
		ck_assert_int_eq(log_parse_level(names[i], &lvl), 0);
		ck_assert_int_eq((int)lvl, i);
	}
	ck_assert_int_eq(log_parse_level("loud", &lvl), -EINVAL);
	ck_assert_int_eq(log_parse_level("", &lvl), -EINVAL);
}
END_TEST

START_TEST(the_journal_gets_priorities)
{
	char where[64];
	struct stat st;

	capture();
	ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
	snprintf(where, sizeof(where), "%llu:%llu",
		 (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", where, 1);
	log_warn("m", "text");
	ck_assert_str_eq(captured(), "<4>warn m: text\n");
}
END_TEST

START_TEST(another_ones_journal_is_not_ours)
{
	setenv("JOURNAL_STREAM", "1:2", 1);
	capture();
	log_warn("m", "text");
	ck_assert_int_eq(captured()[4], '-');
}
END_TEST

int main(void)
{
	Suite *s = suite_create("log");
	TCase *tc = tcase_create("log");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, a_line_has_time_level_module_text);
	tcase_add_test(tc, levels_above_the_set_one_are_silent);
	tcase_add_test(tc, a_text_stays_one_line);
	tcase_add_test(tc, long_lines_are_cut);
	tcase_add_test(tc, level_names);
	tcase_add_test(tc, the_journal_gets_priorities);
	tcase_add_test(tc, another_ones_journal_is_not_ours);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
