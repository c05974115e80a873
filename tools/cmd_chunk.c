/*
 * cmd_chunk.c - chunk put | ls | rm, persist, and config check
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static int chunk(struct kvc *c, int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "ls"))
		return cmd_query(c, "chunks", "");
	if (argc > 2 && !strcmp(argv[1], "put"))
		return put(c, argv[2],
			   argc > 4 && !strcmp(argv[3], "--model") ? argv[4]
								   : NULL);
	if (argc > 2 && !strcmp(argv[1], "rm"))
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

	(void)argv;
	if (argc > 2) /* --json */
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

/* kvd lies beside kvctl, or on PATH. */
static int config(struct kvc *c, int argc, char **argv)
{
	char path[PATH_MAX], *slash;
	ssize_t n;

	(void)c;
	if (argc != 3 || strcmp(argv[1], "check"))
		return cmd_usage(&cmd_config);
	n = readlink("/proc/self/exe", path, sizeof(path) - 8);
	path[n > 0 ? n : 0] = 0;
	slash = strrchr(path, '/');
	if (slash) {
		strcpy(slash + 1, "kvd");
		execl(path, "kvd", "--check", "-c", argv[2], (char *)NULL);
		strcpy(slash + 1, "../sbin/kvd");
		execl(path, "kvd", "--check", "-c", argv[2], (char *)NULL);
	}
	execlp("kvd", "kvd", "--check", "-c", argv[2], (char *)NULL);
	fprintf(stderr, "kvctl: kvd: %s\n", strerror(errno));
	return EXIT_REFUSED;
}

const struct cmd cmd_config = { "config", "check FILE",
				"is this configuration right?", config, 1 };
