/*
 * test_gpu.c - one daemon with a driver, without one, with one that refuses
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/rig_cuda.h"

/* Its log has the line; it serves whatever was found. */
static void log_has(const char *library, const char *line)
{
	struct rig_daemon *d;
	char extra[8192];
	char *log;

	snprintf(extra, sizeof(extra),
		 "cuda_library = %s\n[tenant t0]\nuid = %u\nmemory = 64M\n"
		 "disk = 256M\n",
		 library, (unsigned int)getuid());
	d = rig_daemon_start(extra);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	log = rig_daemon_log(d);
	ck_assert_msg(strstr(log, line) != NULL, "no \"%s\" in:\n%s", line,
		      log);
	free(log);
	rig_daemon_free(d);
}

START_TEST(a_driver_is_found)
{
	const char *path = rig_cuda_path();

	if (strlen(path) > 200) {
		printf("a_driver_is_found: skipped: %s is too long\n", path);
		return;
	}
	log_has(path, "gpu: found: driver 12.4, 1 device, the first is Fake "
		      "GPU with 64 MiB; ");
	log_has(path, "KiB of kernels; KV is kept in host memory");
}
END_TEST

START_TEST(there_is_no_driver)
{
	log_has("/nonexistent/libcuda.so.1", "gpu: none: /nonexistent");
}
END_TEST

START_TEST(what_is_found_is_no_driver)
{
	char path[200];
	FILE *f;

	snprintf(path, sizeof(path), "/tmp/kvd-not-a-library-%d",
		 (int)getpid());
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	fputs("no library\n", f);
	ck_assert_int_eq(fclose(f), 0);
	log_has(path, "gpu: none: /tmp/kvd-not-a-library");
	ck_assert_int_eq(unlink(path), 0);
}
END_TEST

START_TEST(nobody_looks)
{
	log_has("no", "gpu: not looked for: cuda_library = no");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	if (!rig_daemon_binary()) {
		printf("skipped: no kvd beside the tests\n");
		return 77;
	}
	tcase_add_test(t, a_driver_is_found);
	tcase_add_test(t, there_is_no_driver);
	tcase_add_test(t, what_is_found_is_no_driver);
	tcase_add_test(t, nobody_looks);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
