/*
 * test_gpu_check.c - tools/gpu-check.sh: what it says without a GPU, and its stages, figures
 * and table on the driver library of the tests
 *
 * A directory stands for the machine: the fake driver under the names that are loaded, and an
 * nvidia-smi. KVD_LONG=1: the main job too.
 */
#include <check.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kernels/gpu.h"
#include "tests/rig/daemon.h"
#include "tests/rig/rig_cuda.h"

static char dir[64], out[65536];

static void put(const char *name, const char *text, mode_t mode)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	fputs(text, f);
	ck_assert_int_eq(fchmod(fileno(f), mode), 0);
	ck_assert_int_eq(fclose(f), 0);
}

static void setup(void)
{
	static const char *const libs[] = { "libcuda.so.1", "libcublasLt.so.12",
					    "libcublasLt.so.13" };
	char from[PATH_MAX], to[128];

	snprintf(dir, sizeof(dir), "/tmp/kvd-gpu-check-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_ptr_nonnull(realpath(rig_cuda_path(), from));
	for (size_t i = 0; i < sizeof(libs) / sizeof(*libs); i++) {
		snprintf(to, sizeof(to), "%s/%s", dir, libs[i]);
		ck_assert_int_eq(symlink(from, to), 0);
	}
}

static void teardown(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	ck_assert_int_eq(system(cmd), 0);
}

/* Run the script with these variables; its exit status, what it printed in out. */
static int gpu_check(const char *fmt, ...)
	__attribute__((format(printf, 1, 2)));
static int gpu_check(const char *fmt, ...)
{
	const char *kvd = rig_daemon_binary();
	const int n = (int)(strrchr(kvd, '/') - kvd);
	char vars[1024], cmd[4096];
	size_t end = 0, got;
	va_list ap;
	FILE *f;

	va_start(ap, fmt);
	vsnprintf(vars, sizeof(vars), fmt, ap);
	va_end(ap);
	snprintf(cmd, sizeof(cmd),
		 "NVCC=there GPU_CHECK_OUT=%s/out GPU_CHECK_QUICK=1 %s "
		 "sh tools/gpu-check.sh %.*s 2>&1",
		 dir, vars, n, kvd);
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	while ((got = fread(out + end, 1, sizeof(out) - 1 - end, f)))
		end += got;
	out[end] = '\0';
	return WEXITSTATUS(pclose(f));
}

/* Of the machine with the fake; card: its MIB,KIB. */
static int on_fake(const char *card, const char *stages)
{
	put("nvidia-smi", "#!/bin/sh\necho 'a fake, 12.4'\n", 0755);
	return gpu_check("PATH=\"%s:$PATH\" LD_LIBRARY_PATH=%s %s%s "
			 "GPU_CHECK_STAGES='%s'",
			 dir, dir, card ? "FAKE_CUDA=" : "", card ? card : "",
			 stages);
}

static void has(const char *text)
{
	ck_assert_msg(strstr(out, text) != NULL, "no \"%s\" in: %s", text, out);
}

START_TEST(without_a_driver_it_is_skipped)
{
	put("nvidia-smi", "#!/bin/sh\necho 'no devices were found'\nexit 6\n",
	    0755);
	ck_assert_int_eq(gpu_check("PATH=\"%s:$PATH\"", dir), 77);
	has("skipped: nvidia-smi: no devices were found");
	ck_assert_int_eq(gpu_check("PATH=\"%s:$PATH\" NVCC=", dir), 77);
	has("skipped: no nvcc");
}
END_TEST

START_TEST(stages_figures_and_a_table)
{
	char path[128];

	ck_assert_msg(!on_fake(NULL, "elements queries kvbench"), "%s", out);
	has("a fake, 12.4");
	has("elements                     passed");
	has("queries                      passed");
	has("kvbench                      passed");
	has("100%: Checks: ");
	has("gpu.copy.h2d.link_ratio ");
	has("gpu.attention.prefill.gemm_ratio ");
	snprintf(path, sizeof(path), "%s/out/table", dir);
	ck_assert_int_eq(access(path, R_OK), 0);
	snprintf(path, sizeof(path), "%s/out/logs.tar.gz", dir);
	ck_assert_int_eq(access(path, R_OK), 0);
	if (getenv("KVD_LONG")) {
		ck_assert_msg(!on_fake("2048,2048", "main_job"), "%s", out);
		has("main_job                     passed");
	}
}
END_TEST

/* Every tool has every kernel that there is: attention, elements, products, sampling. */
START_TEST(the_sanitizer_has_all_kernels)
{
	static const char *const tests[] = { "kern", "grid", "elem", "gemm",
					     "sample" };
	char line[64], stages[512];
	size_t end = 0;

	put("compute-sanitizer",
	    "#!/bin/sh\n[ $CK_FORK = no ] && [ -x \"$5\" ] &&\n"
	    "echo \"100%: Checks: of $2 $(basename $5)\"\n",
	    0755);
	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++)
		end += (size_t)snprintf(stages + end, sizeof(stages) - end,
					"gpu_%s_memcheck gpu_%s_racecheck ",
					tests[i], tests[i]);
	ck_assert_msg(!on_fake(NULL, stages), "%s", out);
	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
		snprintf(line, sizeof(line), "Checks: of memcheck test_gpu_%s",
			 tests[i]);
		has(line);
		snprintf(line, sizeof(line), "Checks: of racecheck test_gpu_%s",
			 tests[i]);
		has(line);
	}
}
END_TEST

/* A card that is too small: the stage fails, the others are told, and so is that. */
START_TEST(a_stage_that_fails_is_told)
{
	ck_assert_int_eq(on_fake("4,64", "queries kvbench"), 1);
	has("kvbench                      failed");
	has("queries                      ");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gpu_check");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 600);
	tcase_add_test(t, without_a_driver_it_is_skipped);
	if (kern_gpu_image_bytes()) {
		tcase_add_test(t, stages_figures_and_a_table);
		tcase_add_test(t, a_stage_that_fails_is_told);
		tcase_add_test(t, the_sanitizer_has_all_kernels);
	} else {
		printf("stages: skipped: built without nvcc\n");
	}
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
