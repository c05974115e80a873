/*
 * test_example.c - the program of the README is compiled and does what it says
 */
#include <check.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"

static const char *data_dir(void)
{
	const char *d = getenv("KVD_DATA");

	return d ? d : "tests/data";
}

START_TEST(the_example_compiles_and_answers)
{
	char conf[512], bin[PATH_MAX], cmd[3 * PATH_MAX], line[1024];
	struct rig_daemon *d;
	size_t n;
	FILE *f;

	if (strstr(rig_daemon_binary(), "san/"))
		return; /* the library wants its sanitizer in the program */
	snprintf(bin, sizeof(bin), "%s", rig_daemon_binary());
	dirname(bin);
	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant t]\nuid = %u\nmemory = 16M\ndisk = 64M\n",
		 data_dir(), getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	snprintf(cmd, sizeof(cmd),
		 "cc -std=c11 -Wall -Wextra -Werror -Ilibkvclient "
		 "docs/example.c -o %s/example %s/libkvclient.a -pthread "
		 "2>&1 && %s/example %s 'Once upon a time' 2>&1",
		 d->dir, bin, d->dir, d->socket);
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	n = fread(line, 1, sizeof(line) - 1, f);
	line[n] = 0;
	ck_assert_msg(!pclose(f), "%s", line);
	ck_assert_msg(strstr(line, " tokens)") != NULL, "%s", line);
	snprintf(cmd, sizeof(cmd), "rm -f %s/example", d->dir);
	ck_assert_int_eq(system(cmd), 0);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("example");
	TCase *t = tcase_create("example");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 60);
	tcase_add_test(t, the_example_compiles_and_answers);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
