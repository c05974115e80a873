/*
 * test_kvctl.c - the real kvctl against a real daemon: what it prints, and its
 * exit codes
 */
#include <check.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/rig/daemon.h"

static struct rig_daemon *d;
static char kvctl[PATH_MAX + 16];
static char out[1 << 16], in_order[1 << 16];

/* Run kvctl with args; its exit code, and what it printed in out. */
static int run_plain(const char *args)
{
	char cmd[2 * PATH_MAX];
	size_t n;
	FILE *f;
	int status;

	snprintf(cmd, sizeof(cmd), "%s %s 2>&1", kvctl, args);
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	n = fread(out, 1, sizeof(out) - 1, f);
	out[n] = 0;
	status = pclose(f);
	ck_assert_msg(WIFEXITED(status), "%s: %s", args, out);
	return WEXITSTATUS(status);
}

static int run(const char *args)
{
	char all[PATH_MAX];

	snprintf(all, sizeof(all), "--socket %s %s", d->socket, args);
	return run_plain(all);
}

static void setup(void)
{
	const char *data = getenv("KVD_DATA") ? getenv("KVD_DATA")
					      : "tests/data";
	char conf[512], bin[PATH_MAX];

	snprintf(bin, sizeof(bin), "%s", rig_daemon_binary());
	snprintf(kvctl, sizeof(kvctl), "%s/kvctl", dirname(bin));
	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant t]\nuid = %u, 4243\nmemory = 16M\ndisk = 64M\n",
		 data, getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
}

static void teardown(void)
{
	rig_daemon_free(d);
}

/* What was put alone is found in a text that has it between separators. */
START_TEST(a_text_is_split_into_chunks)
{
	static const char c[] =
		"The lamp of Hollow Bridge was lit by a keeper each night.\n\n";
	char cmd[1024];

	snprintf(cmd, sizeof(cmd), "chunk put '%s'", c);
	ck_assert_int_eq(run(cmd), 0);
	snprintf(cmd, sizeof(cmd),
		 "generate --json --max-tokens 2 --system S --split '\n\n' "
		 "--chunk 'A word of its own.\n\n\n\n%sThe end, without one.' "
		 "--question Q",
		 c);
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_ptr_null(strstr(out, "\"chunk_tokens\":0,"));
	ck_assert_ptr_nonnull(strstr(out, "\"chunk_tokens\":"));
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_int_eq(run("chunks"), 0);
}
END_TEST

/* The same requests twice: the chunks of the first ones are found. */
START_TEST(rag_answers_line_by_line)
{
	char cmd[256];
	int n = 0;

	snprintf(cmd, sizeof(cmd),
		 "head -12 tests/data/eval/rag-dev.jsonl > %s/q.jsonl", d->dir);
	ck_assert_int_eq(system(cmd), 0);
	for (int i = 0; i < 2; i++) {
		snprintf(cmd, sizeof(cmd),
			 "rag --max-tokens 16 --stop '\n' %s/q.jsonl", d->dir);
		ck_assert_int_eq(run(cmd), 0);
	}
	ck_assert_ptr_nonnull(strstr(out, "12 requests, 0 failed"));
	ck_assert_ptr_nonnull(strstr(out, "exact match "));
	ck_assert_ptr_null(strstr(out, "exact match 0 "));
	ck_assert_ptr_null(strstr(out, " 0 as chunks"));
	snprintf(cmd, sizeof(cmd),
		 "rag --json --jobs 1 --repair blend@15 %s/q.jsonl 2>/dev/null",
		 d->dir);
	ck_assert_int_eq(run(cmd), 0);
	for (char *at = out; (at = strchr(at, '\n')); at++)
		n++;
	ck_assert_int_ge(n, 12);
	ck_assert_ptr_nonnull(strstr(out, "\"repaired_tokens\":"));
	snprintf(cmd, sizeof(cmd),
		 "rag --max-tokens 16 --stop '\n' --ape 1:1 %s/q.jsonl",
		 d->dir);
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(run(cmd), 0);
	ck_assert_ptr_nonnull(strstr(out, "12 requests, 0 failed"));
	ck_assert_ptr_null(strstr(out, "exact match 0 "));
	ck_assert_ptr_null(strstr(out, " 0 as chunks"));
	snprintf(cmd, sizeof(cmd), "rag --ape 1 %s/q.jsonl", d->dir);
	ck_assert_int_eq(run(cmd), 2);
	/* in another order: the same answers, and in the order of the lines */
	snprintf(cmd, sizeof(cmd),
		 "rag --max-tokens 16 --stop '\n' %s/q.jsonl "
		 "2>/dev/null | grep '^[0-9]*: '",
		 d->dir);
	ck_assert_int_eq(run(cmd), 0);
	strcpy(in_order, out);
	snprintf(cmd, sizeof(cmd),
		 "rag --batch --max-tokens 16 --stop '\n' %s/q.jsonl "
		 "2>/dev/null | grep '^[0-9]*: '",
		 d->dir);
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_str_eq(out, in_order);
	snprintf(cmd, sizeof(cmd), "rag --batch --max-tokens 4 %s/q.jsonl",
		 d->dir);
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_ptr_nonnull(strstr(out, "12 requests in "));
	snprintf(cmd, sizeof(cmd), "echo '{}' >> %s/q.jsonl", d->dir);
	ck_assert_int_eq(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "rag %s/q.jsonl", d->dir);
	ck_assert_int_eq(run(cmd), 2);
	ck_assert_ptr_nonnull(strstr(out, ":13: no question"));
	snprintf(cmd, sizeof(cmd), "%s/q.jsonl", d->dir);
	ck_assert_int_eq(unlink(cmd), 0);
}
END_TEST

/* The number behind "key": of what was printed. */
static long number(const char *key)
{
	const char *at = strstr(out, key);

	ck_assert_msg(at, "%s", out);
	return strtol(at + strlen(key), NULL, 10);
}

/* A source file, one of whose lines is changed: what stands behind is moved. */
START_TEST(an_edited_file_is_not_computed_again)
{
	static const char ask[] = "generate --json --max-tokens 4 %s "
				  "--system @%s/%s --question 'What is it?'";
	char cmd[512], base[256] = "";
	long n_prompt;

	snprintf(cmd, sizeof(cmd),
		 "cd %s && for i in 1 2 3 4 5 6 7 8 9; do "
		 "echo \"int f$i(int x) { return x + $i; }\"; done > old.c && "
		 "sed 's/x + 4/(x << 4) - x/' old.c > new.c",
		 d->dir);
	ck_assert_int_eq(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), ask, base, d->dir, "old.c");
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_int_eq(number("\"moved_tokens\":"), 0);
	snprintf(base, sizeof(base), "--base @%s/old.c", d->dir);
	snprintf(cmd, sizeof(cmd), ask, base, d->dir, "new.c");
	ck_assert_int_eq(run(cmd), 0);
	n_prompt = number("\"prompt_tokens\":");
	ck_assert_int_gt(n_prompt, 100);
	ck_assert_int_gt(number("\"moved_tokens\":"), n_prompt - 50);
	ck_assert_int_eq(number("\"repaired_tokens\":"), 0);
	strcat(base, " --repair blend@20");
	snprintf(cmd, sizeof(cmd), ask, base, d->dir, "new.c");
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_int_gt(number("\"repaired_tokens\":"), 5);
	snprintf(cmd, sizeof(cmd), "generate --base @%s/old.c", d->dir);
	ck_assert_int_ne(run(cmd), 0); /* of nothing */
	snprintf(cmd, sizeof(cmd), "%s/old.c", d->dir);
	ck_assert_int_eq(unlink(cmd), 0);
	snprintf(cmd, sizeof(cmd), "%s/new.c", d->dir);
	ck_assert_int_eq(unlink(cmd), 0);
}
END_TEST

#define PROMPT \
	"--system 'Answer each question from the notes below. Keep the " \
	"answer short.\n' --chunk 'Tilda Calwick works as a miller. She " \
	"was born in Holminster.\n' --question 'Question: What does " \
	"Tilda Calwick work as?\nAnswer:' --stop '\n'"

START_TEST(lists_are_tables_or_json)
{
	static const char *const lists[] = {
		"status", "tenants", "sessions", "sequences", "segments",
		"chunks", "pages",   "models",	 "stores",    "tenants --usage"
	};
	char cmd[64];

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		json_t *j;

		ck_assert_msg(!run(lists[i]), "%s: %s", lists[i], out);
		ck_assert_uint_gt(strlen(out), 2);
		snprintf(cmd, sizeof(cmd), "%s --json", lists[i]);
		ck_assert_int_eq(run(cmd), 0);
		j = json_loads(out, JSON_DECODE_ANY, NULL);
		ck_assert_msg(j != NULL, "%s: %s", lists[i], out);
		json_decref(j);
		snprintf(cmd, sizeof(cmd), "%s --help", lists[i]);
		ck_assert_int_eq(run(cmd), 0);
		ck_assert_ptr_nonnull(strstr(out, "usage:"));
	}
	ck_assert_int_eq(run("tenants --usage --json"), 0);
	ck_assert_ptr_nonnull(strstr(out, "memory_byte_s"));
	ck_assert_ptr_nonnull(strstr(out, "io_written"));
	ck_assert_ptr_nonnull(strstr(out, "io_limit"));
	ck_assert_int_eq(run("pages"), 0);
	ck_assert_ptr_nonnull(strstr(out, "reclaimable_bytes"));
	ck_assert_ptr_nonnull(strstr(out, "small_bytes"));
	ck_assert_int_eq(run("metrics"), 0);
	ck_assert_ptr_nonnull(strstr(out, "# TYPE kvd_requests_total"));
	ck_assert_ptr_nonnull(strstr(out, "kvd_io_held_total{tenant="));
	ck_assert_int_eq(run("top -n 1"), 0);
	ck_assert_ptr_nonnull(strstr(out, "tokens/s"));
	ck_assert_int_eq(run("version"), 0);
	ck_assert_ptr_nonnull(strstr(out, "daemon"));
	ck_assert_int_eq(run("help"), 0);
}
END_TEST

START_TEST(generate_answers)
{
	json_t *j;

	ck_assert_int_eq(run("generate " PROMPT), 0);
	ck_assert_str_eq(out, " miller\n");
	ck_assert_int_eq(run("generate --deadline 60000 --json " PROMPT), 0);
	j = json_loads(out, 0, NULL);
	ck_assert_msg(j != NULL, "%s", out);
	ck_assert_int_gt(json_integer_value(json_object_get(j, "chunk_tokens")),
			 0);
	json_decref(j);
	ck_assert_int_eq(run("generate --score 'It was' ' a dark night'"), 0);
	ck_assert_ptr_nonnull(strstr(out, " -"));
	ck_assert_int_eq(run("generate --model nobody hello"), 1);
	ck_assert_int_eq(run("generate --temperature"), 2);
}
END_TEST

/* The next whole line of a file that somebody writes. */
static void next_line(FILE *f, char *line, int room)
{
	size_t n = 0;

	for (int i = 0; i < 2000; i++) {
		if (fgets(line + n, room - (int)n, f)) {
			n += strlen(line + n);
			if (line[n - 1] == '\n')
				return;
		}
		clearerr(f);
		(void)usleep(10000);
	}
	ck_abort_msg("the recording does not go on");
}

static pid_t recorder(const char *path)
{
	const pid_t pid = fork();

	if (!pid) {
		execl(kvctl, "kvctl", "--socket", d->socket, "trace", "record",
		      path, (char *)NULL);
		_exit(127);
	}
	return pid;
}

/* One that was killed, and one that is under way. */
START_TEST(a_recording_ends_the_one_before)
{
	char path[] = "/tmp/kvd-trace-XXXXXX", line[4096], cmd[128];
	const int fd = mkstemp(path);
	FILE *f = fdopen(fd, "r");
	pid_t pid;
	int status;

	ck_assert_ptr_nonnull(f);
	pid = recorder(path);
	next_line(f, line, sizeof(line));
	ck_assert_int_eq(run("generate " PROMPT), 0);
	next_line(f, line, sizeof(line)); /* the daemon forgot what is before */
	next_line(f, line, sizeof(line));
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(ftruncate(fd, 0), 0);
	rewind(f);
	pid = recorder(path);
	next_line(f, line, sizeof(line));
	ck_assert_str_eq(line, "kvd-trace 1 block=32\n");
	snprintf(cmd, sizeof(cmd), "trace record %s.2 --seconds 0.01", path);
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
	fclose(f);
	snprintf(cmd, sizeof(cmd), "%s.2", path);
	unlink(cmd);
	unlink(path);
}
END_TEST

START_TEST(a_recording_is_a_trace)
{
	char path[] = "/tmp/kvd-trace-XXXXXX", line[4096], cmd[128];
	unsigned int in, out_tokens, n_ids = 0;
	const int fd = mkstemp(path);
	FILE *f = fdopen(fd, "r");
	int status;
	pid_t pid;

	ck_assert_ptr_nonnull(f);
	pid = recorder(path);
	next_line(f, line, sizeof(line));
	ck_assert_str_eq(line, "kvd-trace 1 block=32\n");
	ck_assert_int_eq(run("generate " PROMPT), 0);
	next_line(f, line, sizeof(line));
	ck_assert_int_eq(sscanf(line, "r %*u 0 %*u %u %u -", &in, &out_tokens),
			 2);
	for (const char *c = strchr(line, '-'); (c = strchr(c, ' ')); c++)
		n_ids++;
	ck_assert_uint_eq(n_ids, (in + 31) / 32);
	next_line(f, line, sizeof(line));
	ck_assert_int_eq(line[0], 'e');
	ck_assert_int_eq(kill(pid, SIGINT), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status) && !WEXITSTATUS(status));
	fclose(f);
	snprintf(cmd, sizeof(cmd), "trace record %s --seconds 0.01", path);
	ck_assert_int_eq(run(cmd), 0); /* by itself */
	ck_assert_int_eq(run("trace record"), 2);
	unlink(path);
}
END_TEST

START_TEST(chunks_come_and_go)
{
	char id[33], cmd[64];

	ck_assert_int_eq(run("chunk put 'The mill stands by the river.'"), 0);
	memcpy(id, out, 32);
	id[32] = 0;
	ck_assert_int_eq(run("chunk ls"), 0);
	ck_assert_ptr_nonnull(strstr(out, id));
	snprintf(cmd, sizeof(cmd), "chunk rm %s", id);
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_int_eq(run(cmd), 1);
	ck_assert_int_eq(run("chunk put 'The road leads to Falstad.'"), 0);
	ck_assert_int_eq(run("persist"), 0);
	ck_assert_str_eq(out, "durable\n");
	ck_assert_int_eq(run("segments"), 0);
	ck_assert_ptr_nonnull(strstr(out, "true"));
	/* whatever bytes are in it */
	ck_assert_int_eq(run("chunk put \"$(printf 'caf\\351 \\377.')\""), 0);
	ck_assert_int_eq(run("chunks"), 0);
	ck_assert_msg(!!strstr(out, "caf?"), "%s", out);
	ck_assert_int_eq(run("--json chunks"), 0);
	ck_assert_int_eq(run("persist now please"), 2);
	ck_assert_int_eq(run("chunk rm 12"), 2);
	ck_assert_int_eq(run("chunk"), 2);
}
END_TEST

START_TEST(configurations_are_checked)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "config check %s", d->conf);
	ck_assert_msg(!run(cmd), "%s", out);
	snprintf(cmd, sizeof(cmd), "config check --json %s", d->conf);
	ck_assert_int_eq(run(cmd), 0);
	ck_assert_ptr_nonnull(strstr(out, "{\"ok\":true,"));
	/* right, but for a model that is not on this machine */
	ck_assert_int_eq(run("config check docs/kvd.conf.example"), 1);
	ck_assert_str_eq(out, "kvd: docs/kvd.conf.example: [model small]: "
			      "/srv/models/small.gguf: No such file or "
			      "directory\n");
	ck_assert_int_eq(run("--json config check README.md"), 1);
	ck_assert_ptr_nonnull(strstr(out, "{\"ok\":false,\"said\":\""));
	ck_assert_int_eq(run("config check README.md"), 1);
	ck_assert_int_eq(run("config"), 2);
}
END_TEST

START_TEST(json_and_usage_everywhere)
{
	ck_assert_int_eq(run("top -n 1 --json"), 0);
	ck_assert_int_eq(out[0], '{');
	ck_assert_ptr_nonnull(strstr(out, "\"pages\":["));
	ck_assert_int_eq(run("--json version"), 0);
	ck_assert_ptr_nonnull(strstr(out, "{\"kvctl\":\"1"));
	ck_assert_ptr_nonnull(strstr(out, ",\"daemon\":{"));
	ck_assert_int_eq(run("version --help"), 0);
	ck_assert_ptr_nonnull(strstr(out, "usage: kvctl version"));
	ck_assert_int_eq(run("version of what"), 2);
	ck_assert_int_eq(run("generate --max-tokens x hello"), 2);
	ck_assert_int_eq(run("generate --max-tokens -1 hello"), 2);
	ck_assert_int_eq(run("generate --top-p 0.5x hello"), 2);
	ck_assert_int_eq(run("generate --seed 1e hello"), 2);
}
END_TEST

/* Who mistypes an option of stop stops nothing; nothing is taken for something else. */
START_TEST(what_a_command_does_not_take_is_refused)
{
	static const char *const bad[] = {
		"stop --dry-run",
		"stop now",
		"drain --no",
		"status all",
		"stores x",
		"pages t t",
		"pages ''",
		"tenants --all",
		"tenants t t",
		"top -n abc",
		"top -n 1x",
		"top -n 0",
		"chunk put a --modle m",
		"chunk put a --model m b",
		"chunk ls t",
		"persist --now",
		"trace record --seconds 1",
		"trace record x --seconds nan",
		"trace record x --seconds 1y",
		"trace record x --second 1",
		"generate --temperature nan a",
		"generate --top-p inf a",
		"generate --ape 1:0 --chunk a --question b",
		"generate --ape 1:1x --chunk a --question b",
		"generate @/tmp",
		"generate --chunk @/tmp --question b",
		"generate @/dev/zero/x",
		"rag --jobs 4x /dev/null",
		"rag --max-tokens 5x /dev/null",
		"rag /tmp",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ck_assert_msg(run(bad[i]) == 2, "%s: %s", bad[i], out);
		ck_assert_msg(out[0] != '\0', "%s: nothing said", bad[i]);
	}
	ck_assert_int_eq(access("x", F_OK), -1);
	ck_assert_int_eq(run("pages nobody"), 1);
	ck_assert_str_eq(out, "kvctl: pages: there is no tenant nobody\n");
	ck_assert_int_eq(run("tenants --usage nobody --json"), 1);
	ck_assert_int_eq(run("tenants --usage t --json"), 0);
	ck_assert_int_eq(run("status"), 0); /* it is all still there */
	ck_assert_ptr_nonnull(strstr(out, "draining               false"));
}
END_TEST

/* Who looks at the exit code is told of what did not get there. */
START_TEST(a_full_disk_is_told)
{
	static const char *const full[] = { "status",
					    "tenants --json",
					    "metrics",
					    "top -n 1",
					    "version",
					    "--help",
					    "generate --max-tokens 2 hello" };
	char cmd[128];

	for (size_t i = 0; i < sizeof(full) / sizeof(full[0]); i++) {
		snprintf(cmd, sizeof(cmd), "%s >/dev/full", full[i]);
		/* 2>&1 comes behind: it is full, too */
		ck_assert_msg(run(cmd) == 1, "%s", full[i]);
	}
	ck_assert_int_eq(run("status 2>&1 >/dev/full #"), 1);
	ck_assert_str_eq(out, "kvctl: standard output: No space left on "
			      "device\n");
	/* what was closed is not somebody's socket */
	ck_assert_int_eq(run("metrics 2>&1 >&- #"), 0);
	ck_assert_str_eq(out, "");
	ck_assert_int_eq(run("trace record /dev/full --seconds 0.01"), 1);
	ck_assert_str_eq(out, "kvctl: trace: No space left on device\n");
}
END_TEST

/* A recording that was refused leaves the file of another one as it is. */
START_TEST(a_recording_that_is_refused_empties_nothing)
{
	char cmd[2 * PATH_MAX];

	if (geteuid()) {
		printf("skipped: only root can be somebody else\n");
		return;
	}
	snprintf(
		cmd, sizeof(cmd),
		"cp %s %s/k && cd %s && echo old >t && chmod 666 t && "
		/* what a sanitizer is told names a file below another folder */
		"! env -u TSAN_OPTIONS "
		"setpriv --reuid 4243 --regid 4243 --clear-groups ./k "
		"--socket %s trace record t --seconds 0.01 2>said && "
		"grep -qx 'kvctl: trace: Permission denied' said && "
		"grep -qx old t",
		kvctl, d->dir, d->dir, d->socket);
	ck_assert_int_eq(system(cmd), 0);
}
END_TEST

/* A text that ends within a character, or is none at all. */
START_TEST(json_is_json_whatever_the_model_says)
{
	int n_odd = 0;
	char cmd[128];
	json_t *j;

	for (int i = 0; i < 40; i++) {
		snprintf(cmd, sizeof(cmd),
			 "generate --json --temperature 1000 --seed %d "
			 "--max-tokens 8 hello",
			 i + 1);
		ck_assert_int_eq(run(cmd), 0);
		j = json_loads(out, 0, NULL);
		ck_assert_msg(j != NULL, "%s", out);
		json_decref(j);
		n_odd += strstr(out, "\\ufffd") != NULL;
	}
	ck_assert_int_gt(n_odd, 0);
}
END_TEST

/* Whichever tenant comes first, and however long a name is. */
START_TEST(tables_show_everything)
{
	char dir[] = "/var/tmp/kvd-a-directory-with-quite-a-long-name-XXXXXX";
	char conf[512], path[128];
	struct rig_daemon *other = d;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/store", dir);
	snprintf(conf, sizeof(conf),
		 "[tenant first]\nuid = 4242\npersist = no\n"
		 "[tenant t]\nuid = %u\nmemory = 16M\ndisk = 64M\n"
		 "[store one]\npath = %s\nsize = 128M\n",
		 getuid(), path);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(run("tenants"), 0);
	ck_assert_msg(strstr(out, "restored_segments") != NULL, "%s", out);
	ck_assert_int_eq(run("stores"), 0);
	ck_assert_msg(strstr(out, path) != NULL, "%s", out);
	rig_daemon_free(d);
	d = other;
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

/* Errors name the socket that was tried, wherever its name came from. */
START_TEST(the_socket_is_named)
{
	char socket[sizeof(d->socket)];

	memcpy(socket, d->socket, sizeof(socket));
	snprintf(d->socket, sizeof(d->socket), "/nowhere/a.sock");
	ck_assert_int_eq(run("status"), 3);
	ck_assert_ptr_nonnull(strstr(out, "no daemon at /nowhere/a.sock:"));
	setenv("KVD_SOCKET", "/nowhere/b.sock", 1);
	ck_assert_int_eq(run_plain("status"), 3);
	ck_assert_ptr_nonnull(strstr(out, "no daemon at /nowhere/b.sock:"));
	unsetenv("KVD_SOCKET");
	memcpy(d->socket, socket, sizeof(socket));
}
END_TEST

START_TEST(it_ends_in_order)
{
	ck_assert_int_eq(run("nonsense"), 2);
	ck_assert_int_eq(run("drain"), 0);
	ck_assert_int_eq(run("generate hello"), 1);
	ck_assert_str_eq(out, "kvctl: generate: the daemon takes no new "
			      "requests\n");
	ck_assert_int_eq(run("stop"), 0);
	ck_assert_int_eq(rig_daemon_wait(d), 0);
	ck_assert_int_eq(run("status"), 3);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kvctl");
	TCase *t = tcase_create("kvctl");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, lists_are_tables_or_json);
	tcase_add_test(t, generate_answers);
	tcase_add_test(t, a_text_is_split_into_chunks);
	tcase_add_test(t, rag_answers_line_by_line);
	tcase_add_test(t, an_edited_file_is_not_computed_again);
	tcase_add_test(t, a_recording_is_a_trace);
	tcase_add_test(t, a_recording_ends_the_one_before);
	tcase_add_test(t, chunks_come_and_go);
	tcase_add_test(t, configurations_are_checked);
	tcase_add_test(t, json_and_usage_everywhere);
	tcase_add_test(t, what_a_command_does_not_take_is_refused);
	tcase_add_test(t, a_full_disk_is_told);
	tcase_add_test(t, a_recording_that_is_refused_empties_nothing);
	tcase_add_test(t, json_is_json_whatever_the_model_says);
	tcase_add_test(t, tables_show_everything);
	tcase_add_test(t, the_socket_is_named);
	tcase_add_test(t, it_ends_in_order);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
