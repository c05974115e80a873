/*
 * test_kvsim.c - kvsim as it is called: formats, options, errors; and the figures of
 * the public traces, where they are at hand
 *
 * KVD_TRACES, else ../shared/traces, is the folder of public traces; without it that
 * part is skipped.
 */
#include <check.h>

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define DATA	"tests/data/traces/"
#define MAX_OUT (1u << 20)

static char bin[PATH_MAX];
static char out[MAX_OUT];
static char traces[PATH_MAX]; /* "" without */

/* Run `kvsim args`, keep stdout and stderr in out; returns the exit status. */
static int kvsim(const char *args)
{
	char cmd[3 * PATH_MAX];
	size_t n;
	FILE *f;
	int status;

	ck_assert_int_lt(snprintf(cmd, sizeof(cmd), "%s %s 2>&1", bin, args),
			 (int)sizeof(cmd));
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	n = fread(out, 1, sizeof(out) - 1, f);
	out[n] = '\0';
	status = pclose(f);
	ck_assert_msg(WIFEXITED(status), "%s: status %d", cmd, status);
	return WEXITSTATUS(status);
}

/* --json of one trace. The caller owes a json_decref() of *all. */
static json_t *kvsim_json(const char *args, json_t **all)
{
	char with[3 * PATH_MAX];

	snprintf(with, sizeof(with), "--json %s", args);
	ck_assert_msg(kvsim(with) == 0, "%s: %s", with, out);
	*all = json_loads(out, 0, NULL);
	ck_assert_msg(json_is_array(*all), "%s", out);
	return json_array_get(*all, 0);
}

static double value(json_t *t, const char *policy, int blocks, const char *key)
{
	json_t *r;
	size_t i;

	json_array_foreach(json_object_get(t, "results"), i, r)
	{
		if (!strcmp(json_string_value(json_object_get(r, "policy")),
			    policy) &&
		    json_integer_value(json_object_get(r, "blocks")) == blocks)
			return json_real_value(json_object_get(r, key));
	}
	ck_abort_msg("no %s at %d", policy, blocks);
	return 0;
}

static double rate(json_t *t, const char *policy, int blocks)
{
	return value(t, policy, blocks, "hit_rate");
}

/* ---- formats --------------------------------------------------------------- */

/* Counted with a script of a few lines, once: LRU by an ordered dictionary, the
 * farthest next use by search. */
START_TEST(the_small_trace)
{
	json_t *all,
		*t = kvsim_json("--sizes 50,200 " DATA "conversations.jsonl",
				&all);

	ck_assert_int_eq(json_integer_value(json_object_get(t, "requests")),
			 400);
	ck_assert_int_eq(json_integer_value(json_object_get(t, "blocks")),
			 2708);
	ck_assert_int_eq(json_integer_value(json_object_get(t, "distinct")),
			 1625);
	ck_assert_double_eq_tol(rate(t, "lru", 50), 586 / 2708.0, 1e-9);
	ck_assert_double_eq_tol(rate(t, "lru", 200), 1002 / 2708.0, 1e-9);
	ck_assert_double_eq_tol(rate(t, "belady", 50), 1031 / 2708.0, 1e-9);
	ck_assert_double_le(value(t, "lru", 50, "usable_rate"),
			    rate(t, "lru", 50));
	json_decref(all);
}
END_TEST

START_TEST(our_own_format_says_the_same)
{
	static const char *const from[] = { "conversations.jsonl", "azure.csv",
					    "servegen" };
	char args[512], file[] = "/tmp/kvsim-test-XXXXXX";
	const int fd = mkstemp(file);

	ck_assert_int_ge(fd, 0);
	close(fd);
	for (size_t i = 0; i < sizeof(from) / sizeof(from[0]); i++) {
		json_t *all, *all2, *a, *b;

		snprintf(args, sizeof(args), "--convert %s " DATA "%s", file,
			 from[i]);
		ck_assert_msg(kvsim(args) == 0, "%s", out);
		snprintf(args, sizeof(args), "--sizes 20,100 " DATA "%s",
			 from[i]);
		a = kvsim_json(args, &all);
		snprintf(args, sizeof(args), "--sizes 20,100 %s", file);
		b = kvsim_json(args, &all2);
		ck_assert_double_eq(
			json_real_value(json_object_get(a, "ceiling")),
			json_real_value(json_object_get(b, "ceiling")));
		ck_assert_double_eq(rate(a, "lru", 20), rate(b, "lru", 20));
		ck_assert_double_eq(rate(a, "density", 100),
				    rate(b, "density", 100));
		json_decref(all);
		json_decref(all2);
	}
	unlink(file);
}
END_TEST

/* Write it to a file of its own: `kvsim ARGS FILE`, the exit status. */
static int kvsim_of(const char *args, const char *text)
{
	char all[512], file[] = "/tmp/kvsim-test-XXXXXX";
	const int fd = mkstemp(file);
	int ret;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	snprintf(all, sizeof(all), "%s %s", args, file);
	ret = kvsim(all);
	unlink(file);
	return ret;
}

/* Days apart, over the end of a month; with a zone, as newer traces have; CRLF. */
START_TEST(times_of_azure)
{
	ck_assert_msg(kvsim_of("--convert /dev/stdout",
			       "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
			       "2024-02-28 23:59:59.5000000,600,5\r\n"
			       "2024-02-29 00:00:01.009930+00:00,600,5\r\n"
			       "2024-03-01 00:00:01,600,5\r\n\r\n") == 0,
		      "%s", out);
	ck_assert_str_eq(out, "kvd-trace 1 block=512\n"
			      "r 86399500 0 0 600 5 - 0 1\n"
			      "r 86401009 0 1 600 5 - 0 2\n"
			      "r 172801000 0 2 600 5 - 0 3\n");
}
END_TEST

#define LINE(time, in, ids) \
	"{\"timestamp\": " time ", \"input_length\": " in \
	", \"output_length\": 1, \"hash_ids\": [" ids "]}\r\n"

/* What --convert writes can be read again, or nothing is written without a word. */
START_TEST(what_our_format_cannot_say_is_told)
{
	static const char *const bad[] = {
		LINE("5", "512", "1") LINE("4", "512", "1"),
		LINE("5", "512", "1,2"),
		LINE("5", "1024", "1"),
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ck_assert_int_eq(kvsim_of("--convert /dev/null", bad[i]), 1);
		ck_assert_msg(strstr(out, "--convert: request ") != NULL, "%s",
			      out);
		ck_assert_int_eq(kvsim_of("--sizes 1 --policies lru", bad[i]),
				 0);
	}
	ck_assert_int_eq(
		kvsim_of("--convert /dev/null", LINE("5", "513", "1,2") "\r\n"),
		0);
}
END_TEST

START_TEST(a_full_disk_is_told)
{
	ck_assert_int_eq(kvsim("--sizes 5 " DATA "own.trace 2>&1 >/dev/full #"),
			 1);
	ck_assert_ptr_nonnull(strstr(out, "No space left on device"));
	ck_assert_int_eq(
		kvsim("--json --sizes 5 " DATA "own.trace 2>&1 >/dev/full #"),
		1);
	ck_assert_ptr_nonnull(strstr(out, "No space left on device"));
	ck_assert_int_eq(kvsim("--convert /dev/full " DATA "own.trace"), 1);
	ck_assert_ptr_nonnull(strstr(out, "No space left on device"));
}
END_TEST

/* Two tenants with the same numbers share nothing; an end makes blocks go first. */
START_TEST(our_own_format_by_hand)
{
	json_t *all, *t;

	t = kvsim_json("--sizes 3 " DATA "own.trace", &all);
	ck_assert_int_eq(json_integer_value(json_object_get(t, "distinct")), 6);
	ck_assert_int_eq(json_integer_value(json_object_get(t, "requests")), 6);
	ck_assert_double_eq_tol(rate(t, "lru", 3), 1.0 / 8, 1e-9);
	ck_assert_double_eq_tol(rate(t, "succinct", 3), 2.0 / 8, 1e-9);
	json_decref(all);
}
END_TEST

START_TEST(bad_files_are_refused)
{
	static const char *const bad[] = {
		"",
		"{\"timestamp\": 1}\n",
		"{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1, "
		"\"hash_ids\": [\"x\"]}\n",
		"{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1,"
		" \"hash_ids\": [1]}\n",
		"TIMESTAMP,ContextTokens,GeneratedTokens\n",
		"TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\n",
		"2023-11-16 99999999:00:00.0,10,1\n",
		"2023-11-16 1:99999999:00.0,10,1\n",
		"2023-11-16 1:00:1e300,10,1\n",
		"2023-11-16 1:00:nan,10,1\n",
		"2023-11-16 1:00:0.5,-10,1\n",
		"2023-11-16 1:00:0.5,10,-1\n",
		"2023-11-16 1:00:0.5,18446744073709551615,1\n",
		"2023-11-16 1:00:0.5,10,1x\n",
		"2023-11-16 1:00:0.5,10\n",
		"2023-13-16 1:00:0.5,10,1\n",
		"2023-11-16 1:00:0.5,10,1\n2023-11-15 1:00:0.5,10,1\n",
		"kvd-trace 2 block=512\nr 1 0 1 512 1 - a\n",
		"kvd-trace 1 block=0\nr 1 0 1 512 1 - a\n",
		"kvd-trace 1 block=512\nr 1 0 1 512 1 - a b\n",
		"kvd-trace 1 block=512\nr 1 0 1 512 1 - g\n",
		"kvd-trace 1 block=512\nr 1 0 1 512 1 x a\n",
		"kvd-trace 1 block=512\nr 1 0 1 512 1\n",
		"kvd-trace 1 block=512\nr 1 0 99999999999999999999 512 1 - a\n",
		"kvd-trace 1 block=512\nr 1 0 1 18446744073709551615 1 - a\n",
		"kvd-trace 1 block=512\nr 2 0 1 512 1 - a\n"
		"r 1 0 1 512 1 - a\n",
		"kvd-trace 1 block=512\nz 2 0 1\n",
	};
	char args[512], file[] = "/tmp/kvsim-test-XXXXXX";
	const int fd = mkstemp(file);

	ck_assert_int_ge(fd, 0);
	snprintf(args, sizeof(args), "--sizes 1 %s", file);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		const size_t n = strlen(bad[i]);

		ck_assert_int_eq(ftruncate(fd, 0), 0);
		ck_assert_int_eq(pwrite(fd, bad[i], n, 0), (ssize_t)n);
		ck_assert_msg(kvsim(args) == 1, "%zu: %s", i, out);
		ck_assert_msg(strstr(out, file) != NULL, "%zu: %s", i, out);
	}
	close(fd);
	unlink(file);
	ck_assert_int_eq(kvsim("/nonexistent"), 1);
	ck_assert_int_eq(kvsim("tests/data"),
			 1); /* a folder of something else */
	ck_assert_int_eq(kvsim("/nonexistent.gz"), 1);
}
END_TEST

/* Laws that nothing can be drawn from, or without end. */
START_TEST(bad_clients_are_refused)
{
	static const char *const bad[] = {
		"0,1,1,Gamma,inf,1",	 "0,1,1,Gamma,1,inf",
		"0,1,1,Gamma,1,1e-300",	 "0,1,1,Gamma,1e-9,1",
		"0,1,1,Weibull,1,nan",	 "0,999999,1",
		"nan,1,1,Gamma,0.8,25",	 "1e300,1,1,Gamma,0.8,25",
		"0,-1,1,Gamma,0.8,25.0", "0,inf,1,Gamma,0.8,25.0",
	};
	static const char data[] = "{ \"0\": { \"input_tokens\": \"{300: 1}\", "
				   "\"output_tokens\": \"{10: 1}\" } }";
	char dir[] = "/tmp/kvsim-test-XXXXXX", csv[64], json[64], args[128];
	FILE *f;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(csv, sizeof(csv), "%s/chunk-0-trace.csv", dir);
	snprintf(json, sizeof(json), "%s/chunk-0-dataset.json", dir);
	snprintf(args, sizeof(args), "--sizes 1 --policies lru %s", dir);
	f = fopen(json, "w");
	ck_assert_ptr_nonnull(f);
	fputs(data, f);
	ck_assert_int_eq(fclose(f), 0);
	for (size_t i = 0; i <= sizeof(bad) / sizeof(bad[0]); i++) {
		const int good = i == sizeof(bad) / sizeof(bad[0]);

		f = fopen(csv, "w");
		ck_assert_ptr_nonnull(f);
		fprintf(f, "%s\n", good ? "0,1,1,Gamma,0.8,25.0" : bad[i]);
		ck_assert_int_eq(fclose(f), 0);
		ck_assert_msg(kvsim(args) == !good, "%zu: %s", i, out);
		ck_assert_msg(good || strstr(out, csv), "%zu: %s", i, out);
	}
	ck_assert_int_eq(unlink(csv), 0);
	ck_assert_int_eq(unlink(json), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

START_TEST(usage)
{
	static const char *const bad[] = {
		"",
		"--sizes 0 x",
		"--sizes 1,,x x",
		"--sizes '' x",
		"--sizes , x",
		"--sizes 1, x",
		"--policies , x",
		"--policies lru,,clock x",
		"--groups , x",
		"--policies lifo x",
		"--flip 2 x",
		"--ends -1 x",
		"--bits some x",
		"--seed 1x x",
		"--what x",
		"--plot a.svg x y",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(kvsim(bad[i]) == 2, "%s", bad[i]);
	ck_assert_int_eq(kvsim("--help"), 0);
	ck_assert_ptr_nonnull(strstr(out, "density"));
	ck_assert_int_eq(kvsim("--sizes 5 --plot x.gif " DATA "own.trace"), 1);
	ck_assert_ptr_nonnull(strstr(out, ".svg or .png"));
}
END_TEST

START_TEST(a_plot_or_a_reason)
{
	char args[512], file[] = "/tmp/kvsim-test-XXXXXX.svg", head[256] = "";
	const int fd = mkstemps(file, 4);
	int ret;

	ck_assert_int_ge(fd, 0);
	snprintf(args, sizeof(args),
		 "--sizes 5,50 --plot %s " DATA "conversations.jsonl", file);
	ret = kvsim(args);
	if (ret) {
		ck_assert_int_eq(ret, 1);
		ck_assert_msg(strstr(out, "gnuplot is not installed") != NULL,
			      "%s", out);
	} else {
		ck_assert_int_gt(pread(fd, head, sizeof(head) - 1, 0), 0);
		ck_assert_ptr_nonnull(strstr(head, "<svg"));
	}
	close(fd);
	unlink(file);
}
END_TEST

/* ---- the public traces --------------------------------------------------------- */

#define TOL 0.003

START_TEST(conversation_figures)
{
	char args[2 * PATH_MAX];
	json_t *all, *t;

	snprintf(args, sizeof(args),
		 "--sizes 5000,50000 %s/mooncake_conversation_trace.jsonl.gz",
		 traces);
	t = kvsim_json(args, &all);
	ck_assert_double_eq_tol(json_real_value(json_object_get(t, "ceiling")),
				0.3664, 0.00005);
	ck_assert_double_eq_tol(rate(t, "lru", 5000), 0.110, TOL);
	ck_assert_double_eq_tol(rate(t, "lru", 50000), 0.355, TOL);
	ck_assert_double_eq_tol(rate(t, "belady", 5000), 0.341, TOL);
	ck_assert_double_eq_tol(rate(t, "belady", 50000), 0.366, TOL);
	/* the default, with nothing told to it */
	ck_assert_double_ge(rate(t, "density", 5000), 0.165);
	ck_assert_double_ge(rate(t, "density", 50000),
			    rate(t, "lru", 50000) - 0.01);
	json_decref(all);
}
END_TEST

/* Three requests by hand: a b c, a b d, e: of 7 blocks 2 are a b again. */
START_TEST(groups_by_hand)
{
	char path[] = "/tmp/kvd-groups-XXXXXX", args[64];
	const int fd = mkstemp(path);
	FILE *f = fdopen(fd, "w");

	ck_assert_ptr_nonnull(f);
	fputs("kvd-trace 1 block=512\n"
	      "r 1 0 1 1536 1 - a b c\n"
	      "r 2 0 2 1536 1 - a b d\n"
	      "r 3 0 3 512 1 - e\n"
	      "r 4 0 4 512 1 - a\n",
	      f);
	ck_assert_int_eq(fclose(f), 0);
	snprintf(args, sizeof(args), "--groups 3,4 %s", path);
	ck_assert_msg(kvsim(args) == 0, "%s", out);
	ck_assert_ptr_nonnull(strstr(out, "first 3 requests: tree 0.2857, "
					  "groups of one level 0.2857"));
	/* the fourth: 3 of 8 by the tree; either a thrice, or a b twice */
	ck_assert_ptr_nonnull(strstr(out, "first 4 requests: tree 0.3750, "
					  "groups of one level 0.2500"));
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(kvsim("--groups 0 " DATA "own.trace"), 2);
	ck_assert_int_eq(kvsim("--groups 3 --json " DATA "own.trace"), 0);
}
END_TEST

/* As measured for BatchLLM's one level against all of the tree. */
START_TEST(groups_of_public_traces)
{
	static const struct {
		const char *trace, *first, *second;
	} want[] = {
		{ "conversation", "tree 0.1612, groups of one level 0.1310",
		  "tree 0.2891, groups of one level 0.2537" },
		{ "synthetic", "tree 0.0845, groups of one level 0.0844",
		  "tree 0.3282, groups of one level 0.3277" },
	};
	char args[2 * PATH_MAX];

	for (int i = 0; i < 2; i++) {
		snprintf(args, sizeof(args),
			 "--groups 500,2000 %s/mooncake_%s_trace.jsonl.gz",
			 traces, want[i].trace);
		ck_assert_msg(kvsim(args) == 0, "%s", out);
		ck_assert_msg(strstr(out, want[i].first) &&
				      strstr(out, want[i].second),
			      "%s", out);
	}
}
END_TEST

START_TEST(perfect_bits_equal_belady)
{
	static const char *const names[] = { "conversation", "synthetic" };
	static const int sizes[] = { 1000, 5000, 20000, 50000 };
	char args[2 * PATH_MAX];

	for (int i = 0; i < 2; i++) {
		json_t *all, *t;

		snprintf(args, sizeof(args),
			 "--bits perfect --policies succinct,belady --sizes "
			 "1000,5000,20000,50000 "
			 "%s/mooncake_%s_trace.jsonl.gz",
			 traces, names[i]);
		t = kvsim_json(args, &all);
		for (int j = 0; j < 4; j++)
			ck_assert_double_eq(rate(t, "succinct", sizes[j]),
					    rate(t, "belady", sizes[j]));
		json_decref(all);
	}
}
END_TEST

/* As in the table of the sheet; wrong bits never cost more than 0.02 of LRU. */
START_TEST(wrong_bits)
{
	static const struct {
		const char *flip;
		double at_5000;
	} want[] = { { "0.1", 0.2588 }, { "0.3", 0.1678 }, { "0.5", 0.11 } };
	static const int sizes[] = { 1000, 5000, 20000, 50000 };
	char args[2 * PATH_MAX];

	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		json_t *all, *t;

		snprintf(args, sizeof(args),
			 "--bits perfect --flip %s --policies lru,succinct "
			 "--sizes 1000,5000,20000,50000 "
			 "%s/mooncake_conversation_trace.jsonl.gz",
			 want[i].flip, traces);
		t = kvsim_json(args, &all);
		ck_assert_double_eq_tol(rate(t, "succinct", 5000),
					want[i].at_5000, TOL);
		for (int j = 0; j < 4; j++)
			ck_assert_double_ge(rate(t, "succinct", sizes[j]),
					    rate(t, "lru", sizes[j]) - 0.02);
		json_decref(all);
	}
}
END_TEST

/* Half of the gap from LRU to Belady, with four of five ends told. */
START_TEST(half_of_the_gap)
{
	char args[2 * PATH_MAX];
	json_t *all, *t;

	snprintf(args, sizeof(args),
		 "--ends 0.8 --sizes 5000 "
		 "%s/mooncake_conversation_trace.jsonl.gz",
		 traces);
	t = kvsim_json(args, &all);
	ck_assert_double_ge(rate(t, "density", 5000),
			    (rate(t, "lru", 5000) + rate(t, "belady", 5000)) /
				    2);
	json_decref(all);
}
END_TEST

START_TEST(azure_loads)
{
	char args[2 * PATH_MAX];
	json_t *all, *t;

	snprintf(args, sizeof(args),
		 "--policies lru --sizes 1000 "
		 "%s/AzureLLMInferenceTrace_code.csv.gz",
		 traces);
	t = kvsim_json(args, &all);
	ck_assert_int_eq(json_integer_value(json_object_get(t, "requests")),
			 8819);
	json_decref(all);
}
END_TEST

static int find_bin(void)
{
	const char *end = "/tests/test_kvsim";
	ssize_t n = readlink("/proc/self/exe", bin, sizeof(bin) - 1);
	char *at;

	if (n < 0)
		return -1;
	bin[n] = '\0';
	at = strstr(bin, end);
	if (!at)
		return -1;
	strcpy(at, "/kvsim");
	return access(bin, X_OK);
}

static void find_traces(void)
{
	const char *env = getenv("KVD_TRACES");
	char path[PATH_MAX + 64];

	snprintf(traces, sizeof(traces), "%s", env ? env : "../shared/traces");
	snprintf(path, sizeof(path), "%s/mooncake_conversation_trace.jsonl.gz",
		 traces);
	if (access(path, R_OK))
		*traces = '\0';
}

int main(void)
{
	Suite *s = suite_create("kvsim");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	if (find_bin()) {
		printf("test_kvsim: skipped: kvsim is not built\n");
		return 77;
	}
	find_traces();
	tcase_set_timeout(t, 300);
	tcase_add_test(t, the_small_trace);
	tcase_add_test(t, our_own_format_says_the_same);
	tcase_add_test(t, our_own_format_by_hand);
	tcase_add_test(t, times_of_azure);
	tcase_add_test(t, what_our_format_cannot_say_is_told);
	tcase_add_test(t, a_full_disk_is_told);
	tcase_add_test(t, groups_by_hand);
	tcase_add_test(t, bad_files_are_refused);
	tcase_add_test(t, bad_clients_are_refused);
	tcase_add_test(t, usage);
	tcase_add_test(t, a_plot_or_a_reason);
	if (*traces) {
		tcase_add_test(t, conversation_figures);
		tcase_add_test(t, groups_of_public_traces);
		tcase_add_test(t, perfect_bits_equal_belady);
		tcase_add_test(t, wrong_bits);
		tcase_add_test(t, half_of_the_gap);
		tcase_add_test(t, azure_loads);
	}
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	if (!failed && !*traces) {
		printf("test_kvsim: the rest is skipped: no public traces "
		       "(KVD_TRACES)\n");
		return 77;
	}
	return failed ? 1 : 0;
}
