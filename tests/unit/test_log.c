/*
 * test_log.c - levels, the shape of a line, what clients cannot put in it, and how much
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kvd/base/log.h"

static FILE *out;
static char text[1 << 20];

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

static int count(const char *what)
{
	int n = 0;

	for (const char *at = text; (at = strstr(at, what)); at++)
		n++;
	return n;
}

static void say_same(int i)
{
	log_info("m", "said %d times", i);
}

/* Whoever makes the daemon say it: what others say is still found. */
START_TEST(one_place_does_not_fill_the_log)
{
	capture();
	for (int i = 0; i < 10000; i++)
		say_same(i);
	log_info("m", "another place");
	captured();
	ck_assert_int_ge(count("said"), 100);
	ck_assert_int_lt(count("said"), 1000);
	ck_assert_int_eq(count("info m: more of \"said %d times\" is left out"),
			 1);
	ck_assert_int_eq(count("another place"), 1);
	(void)usleep(300000); /* one more may be said */
	say_same(-1);
	captured();
	ck_assert_int_eq(count("said -1 times"), 1);
	ck_assert_int_eq(count("lines of \"said %d times\" were left out"), 1);
}
END_TEST

/* A pipe or a socket whose other end reads nothing. */
START_TEST(who_does_not_read_the_log_stops_nobody)
{
	size_t n = 0;
	ssize_t got;
	int fd[2];

	if (_i)
		ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	else
		ck_assert_int_eq(pipe(fd), 0);
	ck_assert_int_ge(dup2(fd[1], STDERR_FILENO), 0);
	memset(text, 'x', 900);
	text[900] = '\0';
	/* 2 MiB, by places that are all allowed to */
	for (int i = 0; i < 2500; i++) {
		static char places[2500][8];

		strcpy(places[i], "line %s");
		log_line(LOG_LVL_INFO, "m", places[i], text);
	}
	ck_assert_int_eq(fcntl(fd[0], F_SETFL, O_NONBLOCK), 0);
	while ((got = read(fd[0], text, sizeof(text))) > 0)
		n += (size_t)got;
	ck_assert_uint_gt(n, 30000);
	log_info("m", "is heard");
	got = read(fd[0], text, sizeof(text) - 1);
	ck_assert_int_gt(got, 0);
	text[got] = '\0';
	ck_assert_int_eq(count(" lines could not be written\n"), 1);
	ck_assert_int_eq(count("info m: is heard\n"), 1);
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
	tcase_add_test(tc, one_place_does_not_fill_the_log);
	tcase_add_loop_test(tc, who_does_not_read_the_log_stops_nobody, 0, 2);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
