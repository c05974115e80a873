/*
 * test_kvbench.c - every subcommand of kvbench prints its lines
 *
 * Runs the built program with --quick. Values must be finite and not negative;
 * how large they are is nobody's business here. What needs the daemon is left
 * out where kvd or the model is missing.
 */
#include <check.h>

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODEL	  "tests/data/models/rag-mini.gguf"
#define MAX_OUT	  65536
#define TIMEOUT_S 240

static char bin[PATH_MAX];
static char out[MAX_OUT];

/* Run `kvbench args`, keep its stdout in out; returns the exit status. */
static int kvbench_at(const char *name, const char *args)
{
	char cmd[2 * PATH_MAX];
	size_t n;
	FILE *f;
	int status;

	ck_assert_int_lt(
		snprintf(cmd, sizeof(cmd), "%s/%s %s", bin, name, args),
		(int)sizeof(cmd));
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	n = fread(out, 1, sizeof(out) - 1, f);
	out[n] = '\0';
	status = pclose(f);
	ck_assert_msg(WIFEXITED(status), "%s: status %d", cmd, status);
	return WEXITSTATUS(status);
}

static int kvbench(const char *args)
{
	return kvbench_at("kvbench", args);
}

/* The value of line name in out; fails when it is not there or not finite. A
 * difference may be below 0. */
static double any_line(const char *name)
{
	const size_t len = strlen(name);
	const char *p = out;
	char *end;
	double v;

	while (p && (strncmp(p, name, len) != 0 || p[len] != ' ')) {
		p = strchr(p, '\n');
		p = p ? p + 1 : NULL;
	}
	ck_assert_msg(p && *p, "no line %s in:\n%s", name, out);
	v = strtod(p + len, &end);
	ck_assert_msg(end > p + len + 1 && *end == ' ', "no number: %s", name);
	ck_assert_msg(isfinite(v), "%s is %g", name, v);
	return v;
}

static double line(const char *name)
{
	const double v = any_line(name);

	ck_assert_msg(v >= 0, "%s is %g", name, v);
	return v;
}

static void lines(const char *const *names)
{
	for (; *names; names++)
		(void)line(*names);
}

static int has_daemon(int with_model)
{
	char path[PATH_MAX + 8];

	(void)snprintf(path, sizeof(path), "%s/kvd", bin);
	if (access(path, X_OK)) {
		printf("no %s: left out\n", path);
		return 0;
	}
	if (with_model && access(MODEL, R_OK)) {
		printf("no %s: left out\n", MODEL);
		return 0;
	}
	return 1;
}

START_TEST(linear_prints_its_lines)
{
	static const char *const names[] = {
		"linear.bf16.gflops",	  "linear.f32.gflops",
		"linear.row1.gb_s",	  "linear.row1.read_gb_s",
		"linear.row1.read_ratio", NULL,
	};

	ck_assert_int_eq(kvbench("linear --quick"), 0);
	lines(names);
}
END_TEST

/* IOPOLL and SQPOLL may not be there. */
START_TEST(io_prints_its_lines)
{
	static const char *const names[] = {
		"io.crc32c.gb_s",
		"io.crc32c.read_ratio",
		"io.2m.plain.gb_s",
		"io.2m.plain.cores_per_gbs",
		"io.2m.files.gb_s",
		"io.2m.buffers.gb_s",
		"io.64k.plain.gb_s",
		"io.64k.files.gb_s",
		"io.64k.files.cores_per_gbs",
		NULL,
	};

	ck_assert_int_eq(kvbench("io --quick"), 0);
	lines(names);
}
END_TEST

START_TEST(durability_behind_requests_is_measured)
{
	ck_assert_int_eq(kvbench("durable --quick"), 0);
	ck_assert(line("store.durable.gb_s") > 0);
	(void)any_line("store.durable.stall");
	(void)any_line("store.durable.lost");
	(void)any_line("store.durable.raw_lost");
}
END_TEST

/* Against the driver of the tests: that it works, not how fast a device is. */
START_TEST(gpu_prints_its_lines)
{
	static const char *const names[] = {
		"gpu.map.create_us",
		"gpu.map.map_us",
		"gpu.map.set_access_us",
		"gpu.map.unmap_us",
		"gpu.map.release_us",
		"gpu.map.run_us",
		"gpu.managed.run_us",
		"gpu.managed.run_ratio",
		"gpu.copy.h2d.gb_s",
		"gpu.copy.h2d.link_ratio",
		"gpu.copy.d2h.gb_s",
		"gpu.copy.d2h.link_ratio",
		NULL,
	};
	char args[2 * PATH_MAX + 128];

	(void)snprintf(args, sizeof(args),
		       "gpu --quick --cuda %s/tests/libfakecuda.so "
		       "--cublas %s/tests/libfakecuda.so",
		       bin, bin);
	ck_assert_int_eq(kvbench(args), 0);
	lines(names);
	if (strstr(out, "gpu.attention")) { /* built with nvcc */
		(void)line("gpu.attention.decode.read_ratio");
		(void)line("gpu.attention.prefill.gemm_ratio");
		(void)line("gpu.step.map_waits");
		(void)line("gpu.oversubscribed.tokens_ratio");
		(void)snprintf(
			args, sizeof(args),
			"gpu --pages --quick --cuda %s/tests/libfakecuda.so",
			bin);
		ck_assert_int_eq(kvbench(args), 0);
		(void)line("gpu.pages.l1.t128.gb_s");
		(void)line("gpu.pages.best.layers");
		(void)line("gpu.pages.best.tokens");
	}
	ck_assert_int_ne(kvbench("gpu --cuda /nonexistent 2>&1"), 0);
	ck_assert_ptr_nonnull(strstr(out, "gpu skipped: /nonexistent"));
}
END_TEST

START_TEST(attention_prints_its_lines)
{
	static const char *const names[] = {
		"attention.decode.d64.read_ratio",
		"attention.decode.d128.read_ratio",
		"attention.decode.d64.g1.gb_s",
		"attention.decode.d128.g8.read_ratio",
		"attention.decode.ns_per_mb",
		"attention.read_gb_s",
		"attention.prefill.gflops",
		NULL,
	};

	ck_assert_int_eq(kvbench("attention --quick"), 0);
	lines(names);
}
END_TEST

/* The page was wanted under a filter that kills at the first system call. */
START_TEST(what_returns_from_disk_is_found)
{
	static const char *const names[] = { "paging.return4k.compute_ms",
					     "paging.return4k.return_ms",
					     "paging.return4k.time_ratio",
					     "paging.return4k.gb_s", NULL };

	ck_assert_int_eq(kvbench("return --quick"), 0);
	for (size_t i = 0; names[i]; i++)
		ck_assert(line(names[i]) > 0);
}
END_TEST

START_TEST(cached_chunks_are_measured)
{
	static const char *const names[] = {
		"reuse.mini.full_ms",	   "reuse.mini.repaired_ms",
		"reuse.mini.ttft_speedup", "reuse.mini.plain.ttft_speedup",
		"reuse.1b.ttft_speedup",   NULL
	};

	ck_assert_int_eq(kvbench("reuse --quick"), 0);
	lines(names);
	ck_assert_ptr_nonnull(strstr(out, "reuse.mini.cold.overhead "));
	ck_assert_ptr_nonnull(strstr(out, "reuse.cold.overhead "));
	ck_assert_ptr_nonnull(strstr(out, "reuse.mini.again.overhead "));
	ck_assert_ptr_nonnull(strstr(out, "reuse.cold.blend.overhead "));
	ck_assert_ptr_nonnull(strstr(out, "reuse.cold.craft.overhead "));
	ck_assert_ptr_nonnull(strstr(out, "reuse.cold.craft_blend.overhead "));
	ck_assert(line("reuse.mini.craft.ttft_speedup") > 0);
	ck_assert(line("reuse.mini.craft_blend.ttft_speedup") > 0);
}
END_TEST

START_TEST(an_edit_is_measured)
{
	static const char *const names[] = {
		"edit.4k.suffix_ms",	       "edit.4k.moved_ms",
		"edit.4k.repaired_ms",	       "edit.4k.time_ratio",
		"edit.4k.repaired.time_ratio", NULL
	};

	ck_assert_int_eq(kvbench("edit --quick"), 0);
	lines(names);
}
END_TEST

START_TEST(what_rows_share_is_read_once)
{
	static const char *const names[] = { "reuse.relay.alone_us",
					     "reuse.relay.shared_us",
					     "reuse.relay.time_ratio",
					     "reuse.relay.alone_tokens",
					     "reuse.relay.shared_tokens",
					     "reuse.relay.moved.time_ratio",
					     NULL };

	ck_assert_int_eq(kvbench("relay --quick"), 0);
	lines(names);
	ck_assert(line("reuse.relay.bytes_ratio") == 1);
	ck_assert(line("reuse.relay.moved.bytes_ratio") == 1);
	ck_assert(line("reuse.relay.alone_tokens") == 16 * 2080);
}
END_TEST

START_TEST(short_prompts_are_packed)
{
	ck_assert_int_eq(kvbench("pack --quick"), 0);
	ck_assert(line("pack.alone") > 0);
	ck_assert(line("pack.together") > 0);
	ck_assert(line("pack.rows_ratio") == 1);
	ck_assert(line("pack.padded.rows_ratio") > 2);
	ck_assert(line("pack.together.steps") < 64);
}
END_TEST

START_TEST(edits_of_source_files_change_little)
{
	static const char *const names[] = {
		"edits.moved.agree",	 "edits.moved.moved",
		"edits.blend@10.agree",	 "edits.blend@10.repaired",
		"edits.blend@100.agree", NULL
	};

	ck_assert_int_eq(kvbench("edits --quick tests/data/eval/edits.jsonl"),
			 0);
	lines(names);
	ck_assert(line("edits.blend@100.kl") == 0);
	ck_assert(line("edits.moved.kl") < 0.01);
	ck_assert(line("edits.moved.moved") > 50);
}
END_TEST

START_TEST(a_needle_side_by_side_is_found)
{
	static const char *const names[] = { "ape.1.0:1.0.exact_match",
					     "ape.temperature",
					     "ape.scale",
					     "ape.questions",
					     "ape.sequential.exact_match",
					     "ape.parallel.exact_match",
					     "ape.exact_match",
					     NULL };

	ck_assert_int_eq(
		kvbench("ape --quick tests/data/eval/rag-dev-1k.jsonl"), 0);
	lines(names);
	ck_assert(line("ape.of_sequential") >= 0.9);
}
END_TEST

START_TEST(a_chunk_cache_computes_less_than_a_prefix_cache)
{
	static const char *const names[] = {
		"reuse.zipf.early.exact_match",
		"reuse.zipf.early.ttft_p50_ms",
		"reuse.zipf.late.exact_match",
		"reuse.zipf.late.ttft_p50_ms",
		"reuse.zipf.requests_per_s",
		"reuse.zipf.memory_mb",
		NULL,
	};

	ck_assert_int_eq(kvbench("zipf --quick tests/data/eval/rag-zipf.jsonl"),
			 0);
	lines(names);
	ck_assert(line("reuse.zipf.computed_ratio") < 1);
	ck_assert(line("reuse.zipf.work_ratio") >=
		  line("reuse.zipf.computed_ratio"));
}
END_TEST

START_TEST(look_ups_find_what_is_on_disk)
{
	static const char *const names[] = {
		"store.lookup.kv", "store.lookup.p50_us", "store.lookup.p99_us",
		"store.lookup.metadata_ratio", NULL
	};

	ck_assert_int_eq(kvbench("lookup --quick"), 0);
	for (size_t i = 0; names[i]; i++)
		ck_assert(line(names[i]) > 0);
/* sanitizers take memory of their own */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	ck_assert(line("store.lookup.metadata_ratio") < 0.5);
#endif
}
END_TEST

START_TEST(a_store_is_opened_and_used)
{
	static const char *const names[] = {
		"store.persist.p50_ms",
		"store.persist.p99_ms",
		"store.restart_1m_ms",
		"store.record_bytes",
		"store.restart_1m.segments_ms",
		"store.restart_1m.single_ms",
		"store.restart_1m.single_persist_ms",
		"store.metadata_ratio",
		"store.index_ratio",
		"store.full",
		NULL
	};

	ck_assert_int_eq(kvbench("store --quick"), 0);
	for (size_t i = 0; names[i]; i++)
		ck_assert(line(names[i]) > 0);
	/* counts, not times */
	ck_assert(line("store.write_amplification") > 1);
	ck_assert(line("store.write_amplification") <= 1.3);
	ck_assert(line("store.full") > 75);
}
END_TEST

START_TEST(paging_reads_back_and_resident_wants_are_quiet)
{
	static const char *const names[] = {
		"paging.in.gb_s",
		"paging.in.raw_ratio",
		"paging.raw.gb_s",
		"paging.out.gb_s",
		"paging.out.raw_ratio",
		"paging.raw.write_gb_s",
		"paging.resident.ns",
		"paging.restore.raw_ratio",
		"paging.restore.mmap_ratio",
		"paging.restore.mmap_free_ratio",
		"paging.restore.mmap_part_ratio",
		"paging.write.raw_ratio",
		"paging.restore.cores_per_gbs",
		"paging.restore.cores_least",
		"paging.restore.memfd.cores_per_gbs",
		"paging.restore.small.cores_per_gbs",
		"paging.restore.folios.cores_per_gbs",
		NULL,
	};

	ck_assert_int_eq(kvbench("paging --quick"), 0);
	lines(names);
	ck_assert(line("paging.in.pages") > 0);
	ck_assert(line("paging.resident.syscalls") == 0);
}
END_TEST

START_TEST(faults_are_timed)
{
	static const char *const names[] = {
		"paging.fault.p50_us",		 "paging.fault.p99_us",
		"paging.fault.disk.p50_us",	 "paging.fault.disk.p99_us",
		"paging.fault.disk.scan_gb_s",	 "paging.fault.scan_gb_s",
		"paging.fault.signal.p50_us",	 "paging.fault.signal.p99_us",
		"paging.fault.signal.scan_gb_s", NULL
	};

	ck_assert_int_eq(kvbench("fault --quick"), 0);
	for (size_t i = 0; names[i]; i++)
		ck_assert(line(names[i]) > 0);
	ck_assert(line("paging.fault.p50_us") <= line("paging.fault.p99_us"));
}
END_TEST

START_TEST(ring_prints_its_lines)
{
	static const char *const names[] = {
		"ring.spin.p50_us",   "ring.spin.p99_us",
		"ring.spin.ratio",    "ring.sleep.p50_us",
		"ring.sleep.ratio",   "ring.bare.spin_us",
		"ring.bare.futex_us", NULL,
	};

	if (!has_daemon(0))
		return;
	ck_assert_int_eq(kvbench("ring --quick"), 0);
	lines(names);
}
END_TEST

START_TEST(decode_prints_its_lines)
{
	static const char *const names[] = {
		"decode.single.tokens_per_s",  "decode.batch8.tokens_per_s",
		"decode.prefill.tokens_per_s", "decode.limit.tokens_per_s",
		"decode.single.read_ratio",    NULL,
	};

	if (!has_daemon(1))
		return;
	ck_assert_int_eq(kvbench("decode --quick --model " MODEL), 0);
	lines(names);
}
END_TEST

/* ---- rag ---------------------------------------------------------------- */

static const char questions[] =
	"{\"system\": \"Below are some notes from an archive. Use only these "
	"notes to answer.\\n\", \"chunks\": [\"The Luxmar chest is made of "
	"amber. It first cost 279 crowns. It was made by Adam Harward.\\n\", "
	"\"The Calrox bell is made of ivory. Its maker was Erik Wenton. The "
	"first price was 120 crowns.\\n\"], \"question\": \"Question: What is "
	"the Calrox bell made of?\\nAnswer:\", \"answer\": \"ivory\", "
	"\"kind\": \"single\"}\n"
	"{\"system\": \"Below are some notes from an archive. Use only these "
	"notes to answer.\\n\", \"chunks\": [\"The Calrox bell is made of "
	"ivory. Its maker was Erik Wenton. The first price was 120 "
	"crowns.\\n\", \"The Luxmar chest is made of amber. It first cost 279 "
	"crowns. It was made by Adam Harward.\\n\"], \"question\": "
	"\"Question: What is the Luxmar chest made of?\\nAnswer:\", "
	"\"answer\": \"amber\", \"kind\": \"single\"}\n";

static void write_file(char *path, const char *text)
{
	const int fd = mkstemp(path);
	FILE *f;

	ck_assert_int_ge(fd, 0);
	f = fdopen(fd, "w");
	ck_assert_ptr_nonnull(f);
	ck_assert_int_ge(fputs(text, f), 0);
	ck_assert_int_eq(fclose(f), 0);
}

START_TEST(rag_answers_in_every_mode_and_finds_moved_chunks)
{
	static const char *const names[] = {
		"rag.full.exact_match",
		"rag.prefix.exact_match",
		"rag.chunks.exact_match",
		"rag.naive.exact_match",
		"rag.naive.exact_match.single",
		"rag.full.exact_match.single",
		"rag.full.ttft_p50_ms",
		"rag.prefix.ttft_p99_ms",
		"rag.chunks.tokens_per_s",
		"rag.full.prefix_hits",
		NULL,
	};
	char path[] = "/tmp/test_kvbench.XXXXXX";
	char args[256];

	if (!has_daemon(1))
		return;
	write_file(path, questions);
	(void)snprintf(args, sizeof(args), "rag %s --quick --model %s", path,
		       MODEL);
	ck_assert_int_eq(kvbench(args), 0);
	lines(names);
	ck_assert(line("rag.full.questions") == 2);
	ck_assert(line("rag.full.prefix_hits") == 0);
	ck_assert(line("rag.full.chunk_hits") == 0);
	ck_assert(line("rag.chunks.chunk_hits") > 0);
	(void)unlink(path);
}
END_TEST

START_TEST(rag_compares_modes)
{
	static const char *const names[] = { "rag.chunks.kl",
					     "rag.blend@30.kl",
					     "rag.blend@30.mcnemar_p.chunks",
					     "rag.blend@30.mcnemar_p.random@30",
					     "rag.craft@30.exact_match",
					     "rag.craft@30.variants",
					     "reuse.stats.overhead",
					     NULL };

	ck_assert_int_eq(kvbench("rag --kl -n 12 --jobs 4 --mode "
				 "full,chunks,random@30,blend@30,blend@100,"
				 "craft@30 "
				 "tests/data/eval/rag-dev.jsonl"),
			 0);
	lines(names);
	ck_assert(line("rag.blend@30.kl") < line("rag.chunks.kl"));
	/* all of them again is the full prefill, bit for bit */
	ck_assert_ptr_nonnull(strstr(out, "rag.blend@100.kl 0 nats"));
}
END_TEST

START_TEST(rag_refuses_what_is_no_question)
{
	char path[] = "/tmp/test_kvbench.XXXXXX";
	char args[256];

	write_file(path, "{\"system\": \"a\", \"chunks\": [1]}\n");
	(void)snprintf(args, sizeof(args), "rag %s --quick 2>/dev/null", path);
	ck_assert_int_eq(kvbench(args), 1);
	(void)unlink(path);
}
END_TEST

/* ---- the command line --------------------------------------------------- */

START_TEST(json_is_one_object)
{
	json_t *o, *v;

	ck_assert_int_eq(kvbench("paging --quick --json"), 0);
	o = json_loads(out, 0, NULL);
	ck_assert_ptr_nonnull(o);
	v = json_object_get(o, "paging.in.gb_s");
	ck_assert(json_is_number(json_object_get(v, "value")));
	ck_assert_str_eq(json_string_value(json_object_get(v, "unit")), "GB/s");
	json_decref(o);
}
END_TEST

START_TEST(start_prints_its_lines)
{
	static const char *const names[] = { "daemon.start.first_token_ms",
					     "daemon.idle.cpu_percent", NULL };

	if (!has_daemon(1))
		return;
	ck_assert_int_eq(kvbench("start --quick"), 0);
	lines(names);
}
END_TEST

START_TEST(without_onednn_the_baseline_is_skipped_by_name)
{
	ck_assert_int_eq(
		kvbench_at("tests/kvbench-plain", "linear --quick 2>&1"), 0);
	ck_assert_ptr_nonnull(
		strstr(out, "linear.bf16.onednn_ratio skipped: no oneDNN"));
	ck_assert_ptr_nonnull(
		strstr(out, "linear.f32.onednn_ratio skipped: no oneDNN"));
	(void)line("linear.bf16.gflops");
}
END_TEST

START_TEST(usage_errors_exit_2_and_help_0)
{
	ck_assert_int_eq(kvbench("2>/dev/null"), 2);
	ck_assert_int_eq(kvbench("nosuch 2>/dev/null"), 2);
	ck_assert_int_eq(kvbench("ring --threads x 2>/dev/null"), 2);
	ck_assert_int_eq(kvbench("ring extra 2>/dev/null"), 2);
	ck_assert_int_eq(kvbench("rag 2>/dev/null"), 2);
	ck_assert_int_eq(kvbench("--help"), 0);
	ck_assert_ptr_nonnull(strstr(out, "attention"));
	ck_assert_int_eq(kvbench("rag --help"), 0);
	ck_assert_ptr_nonnull(strstr(out, "exact_match"));
	/* figures that got nowhere */
	ck_assert_int_eq(kvbench("--help 2>/dev/null >/dev/full"), 1);
}
END_TEST

/* 1 when dir/kvbench.XXXXXX/kvd.sock is there: the daemon listens. */
static int daemon_listens(const char *dir)
{
	char path[PATH_MAX];
	struct dirent *e;
	DIR *d = opendir(dir);
	int found = 0;

	ck_assert_ptr_nonnull(d);
	while ((e = readdir(d))) {
		(void)snprintf(path, sizeof(path), "%s/%s/kvd.sock", dir,
			       e->d_name);
		if (e->d_name[0] != '.' && !access(path, F_OK))
			found = 1;
	}
	(void)closedir(d);
	return found;
}

START_TEST(an_interrupt_ends_the_daemon_and_leaves_nothing)
{
	const struct timespec ts = { .tv_nsec = 10000000 };
	char dir[] = "/tmp/test_kvbench.XXXXXX";
	char path[PATH_MAX + 16];
	int status = 0;
	pid_t pid;

	if (!has_daemon(0))
		return;
	ck_assert_ptr_nonnull(mkdtemp(dir));
	(void)snprintf(path, sizeof(path), "%s/kvbench", bin);
	pid = fork();
	if (!pid) {
		(void)execl(path, path, "ring", "--dir", dir, (char *)NULL);
		_exit(127);
	}
	for (int i = 0; i < 1000 && !daemon_listens(dir); i++)
		(void)nanosleep(&ts, NULL);
	ck_assert_msg(daemon_listens(dir), "no daemon within 10 s");
	(void)kill(pid, SIGINT);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGINT);
	ck_assert_msg(!rmdir(dir), "%s is not empty", dir);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("kvbench");
	TCase *t = tcase_create("all");

	tcase_set_timeout(t, TIMEOUT_S);
	tcase_add_test(t, usage_errors_exit_2_and_help_0);
	tcase_add_test(t, linear_prints_its_lines);
	tcase_add_test(t, io_prints_its_lines);
	tcase_add_test(t, durability_behind_requests_is_measured);
	tcase_add_test(t, gpu_prints_its_lines);
	tcase_add_test(t, start_prints_its_lines);
	tcase_add_test(t, without_onednn_the_baseline_is_skipped_by_name);
	tcase_add_test(t, attention_prints_its_lines);
	tcase_add_test(t, cached_chunks_are_measured);
	tcase_add_test(t, an_edit_is_measured);
	tcase_add_test(t, what_rows_share_is_read_once);
	tcase_add_test(t, short_prompts_are_packed);
	tcase_add_test(t, edits_of_source_files_change_little);
	tcase_add_test(t, a_needle_side_by_side_is_found);
	tcase_add_test(t, a_chunk_cache_computes_less_than_a_prefix_cache);
	tcase_add_test(t, a_store_is_opened_and_used);
	tcase_add_test(t, paging_reads_back_and_resident_wants_are_quiet);
	tcase_add_test(t, faults_are_timed);
	tcase_add_test(t, what_returns_from_disk_is_found);
	tcase_add_test(t, look_ups_find_what_is_on_disk);
	tcase_add_test(t, json_is_one_object);
	tcase_add_test(t, ring_prints_its_lines);
	tcase_add_test(t, decode_prints_its_lines);
	tcase_add_test(t, rag_answers_in_every_mode_and_finds_moved_chunks);
	tcase_add_test(t, rag_compares_modes);
	tcase_add_test(t, rag_refuses_what_is_no_question);
	tcase_add_test(t, an_interrupt_ends_the_daemon_and_leaves_nothing);
	suite_add_tcase(s, t);
	return s;
}

/* The build folder: the tests lie in a folder of it. */
static int find_bin(void)
{
	char path[PATH_MAX + 16];
	ssize_t n = readlink("/proc/self/exe", bin, sizeof(bin) - 1);

	if (n < 0)
		return -errno;
	bin[n] = '\0';
	for (int i = 0; i < 2; i++) {
		char *slash = strrchr(bin, '/');

		if (!slash)
			return -ENOENT;
		*slash = '\0';
	}
	(void)snprintf(path, sizeof(path), "%s/kvbench", bin);
	return access(path, X_OK) ? -ENOENT : 0;
}

int main(void)
{
	SRunner *r;
	int failed;

	if (find_bin()) {
		printf("skipped: no kvbench in %s\n", bin);
		return 77;
	}
	r = srunner_create(suite());
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
