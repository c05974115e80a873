/*
 * cmd_chunk.c - chunk put | ls | rm, persist, and config check
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tools/cmd.h"

static int put(struct kvc *c, const char *arg, const char *model)
{
	char *text = cmd_text(arg);
	uint64_t id[2];
	int ret;

	if (!text)
		return EXIT_USAGE;
	ret = kvc_chunk_put(c, model, text, strlen(text), id);
	free(text);
	if (ret < 0)
		return cmd_fail("chunk put", ret);
	if (cmd_json)
		printf("{\"id\":\"%016" PRIx64 "%016" PRIx64
		       "\",\"tokens\":%d}\n",
		       id[0], id[1], ret);
	else
		printf("%016" PRIx64 "%016" PRIx64 " %d tokens\n", id[0], id[1],
		       ret);
	return EXIT_DONE;
}

static int rm(struct kvc *c, const char *hex)
{
	uint64_t id[2];
	int ret, end = 0;

	if (strlen(hex) != 32 ||
	    sscanf(hex, "%16" SCNx64 "%16" SCNx64 "%n", &id[0], &id[1], &end) !=
		    2 ||
	    end != 32)
		return cmd_usage(&cmd_chunk);
	ret = kvc_chunk_rm(c, id);
	return ret < 0 ? cmd_fail("chunk rm", ret) : EXIT_DONE;
}

/* Without --json, of which kvctl knows; how many there are. */
static int without_json(int argc, char **argv)
{
	int n = 0;

	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], "--json"))
			argv[n++] = argv[i];
	return n;
}

static int chunk(struct kvc *c, int argc, char **argv)
{
	const char *what;
	int model;

	argc = without_json(argc, argv);
	what = argc > 1 ? argv[1] : "";
	model = argc == 5 && !strcmp(argv[3], "--model");
	if (argc == 2 && !strcmp(what, "ls"))
		return cmd_query(c, "chunks", "");
	if ((argc == 3 || model) && !strcmp(what, "put"))
		return put(c, argv[2], model ? argv[4] : NULL);
	if (argc == 3 && !strcmp(what, "rm"))
		return rm(c, argv[2]);
	return cmd_usage(&cmd_chunk);
}

const struct cmd cmd_chunk = { "chunk",
			       "put TEXT|@FILE|- [--model NAME] | ls | rm ID",
			       "compute a chunk once, list them, forget one",
			       chunk, 0 };

static int persist(struct kvc *c, int argc, char **argv)
{
	int ret;

	if (without_json(argc, argv) > 1)
		return cmd_usage(&cmd_persist);
	ret = kvc_persist(c);
	if (ret < 0)
		return cmd_fail("persist", ret);
	printf(cmd_json ? "{\"durable\":true}\n" : "durable\n");
	return EXIT_DONE;
}

const struct cmd cmd_persist = {
	"persist", "", "wait until what this tenant can reuse is on disk",
	persist, 0
};

/* kvd lies beside kvctl, or on PATH. Returns if it is nowhere. */
static void exec_check(const char *file)
{
	char path[PATH_MAX], *slash;
	const ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);

	path[n > 0 ? n : 0] = 0;
	slash = strrchr(path, '/');
	if (slash) {
		strcpy(slash + 1, "kvd");
		execl(path, "kvd", "--check", "-c", file, (char *)NULL);
		strcpy(slash + 1, "../sbin/kvd");
		execl(path, "kvd", "--check", "-c", file, (char *)NULL);
	}
	execlp("kvd", "kvd", "--check", "-c", file, (char *)NULL);
	fprintf(stderr, "kvctl: kvd: %s\n", strerror(errno));
}

/* What kvd says of it, all of it, as one string. */
static int check_json(const char *file)
{
	char said[8192];
	size_t n = 0;
	ssize_t got = 1;
	int fd[2], status = -1;
	json_t *o;
	pid_t pid;

	if (pipe(fd))
		return cmd_fail("pipe", -errno);
	pid = fork();
	if (!pid) {
		dup2(fd[1], STDOUT_FILENO);
		dup2(fd[1], STDERR_FILENO);
		close(fd[0]);
		exec_check(file);
		_exit(EXIT_REFUSED);
	}
	close(fd[1]);
	while (got > 0 && n < sizeof(said)) {
		got = read(fd[0], said + n, sizeof(said) - n);
		n += got > 0 ? (size_t)got : 0;
	}
	close(fd[0]);
	if (pid > 0)
		waitpid(pid, &status, 0);
	while (n && said[n - 1] == '\n')
		n--;
	o = json_pack("{s:b, s:s%}", "ok", !status, "said", said, n);
	if (o)
		json_dumpf(o, stdout, JSON_COMPACT);
	printf("\n");
	json_decref(o);
	return status ? EXIT_REFUSED : EXIT_DONE;
}

static int config(struct kvc *c, int argc, char **argv)
{
	const char *file = NULL;

	(void)c;
	if (argc < 2 || strcmp(argv[1], "check"))
		return cmd_usage(&cmd_config);
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "--json"))
			continue;
		if (file)
			return cmd_usage(&cmd_config);
		file = argv[i];
	}
	if (!file)
		return cmd_usage(&cmd_config);
	if (cmd_json)
		return check_json(file);
	exec_check(file);
	return EXIT_REFUSED;
}

const struct cmd cmd_config = { "config", "check FILE",
				"is this configuration right?", config, 1 };
