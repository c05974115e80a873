/*
 * cmd_trace.c - trace record: what is asked of the cache, into a file for kvsim
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "tools/cmd.h"

#define POLL_US 200000

static volatile sig_atomic_t ended;

static void on_signal(int sig)
{
	(void)sig;
	ended = 1;
}

/* What is new, to f; -errno. */
static int take(struct kvc *c, FILE *f, uint32_t number, uint64_t *offset)
{
	char arg[64], *text;
	int ret;

	snprintf(arg, sizeof(arg), "read %" PRIu32 " %" PRIu64, number,
		 *offset);
	ret = kvc_query(c, "trace", arg, &text);
	if (ret < 0)
		return ret;
	errno = 0;
	if (fputs(text, f) < 0 || fflush(f))
		ret = errno ? -errno : -EIO;
	*offset += strlen(text);
	free(text);
	return ret < 0 ? ret : 0;
}

static int begin(struct kvc *c, uint32_t *number)
{
	char *text;
	int ret = kvc_query(c, "trace", "on", &text);

	if (ret < 0)
		return ret;
	if (sscanf(text, "{\"recording\":%" SCNu32 "}", number) != 1)
		ret = -EPROTO;
	free(text);
	return ret;
}

static void end(struct kvc *c, uint32_t number)
{
	char arg[32], *text;

	snprintf(arg, sizeof(arg), "off %" PRIu32, number);
	if (kvc_query(c, "trace", arg, &text) >= 0)
		free(text);
}

/* Until it is to end; -errno. */
static int follow(struct kvc *c, FILE *f, uint32_t number, double seconds)
{
	const time_t t0 = time(NULL);
	uint64_t offset = 0;
	int ret;

	do {
		ret = take(c, f, number, &offset);
		(void)usleep(POLL_US);
	} while (ret >= 0 && !ended &&
		 (seconds <= 0 || difftime(time(NULL), t0) < seconds));
	return ret < 0 ? ret : take(c, f, number, &offset);
}

/* The file is emptied when there is a recording, not before. */
static int record(struct kvc *c, const char *path, double seconds)
{
	uint32_t number;
	int ret;
	FILE *f;

	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	ret = begin(c, &number);
	if (ret < 0)
		return cmd_fail("trace", ret);
	f = fopen(path, "we");
	if (!f) {
		fprintf(stderr, "kvctl: %s: %s\n", path, strerror(errno));
		end(c, number);
		return EXIT_REFUSED;
	}
	ret = follow(c, f, number, seconds);
	end(c, number);
	if (fclose(f) && ret >= 0)
		ret = -errno;
	if (ret == -ESTALE) {
		fprintf(stderr,
			"kvctl: trace: another recording was begun; "
			"%s has what was asked before\n",
			path);
		return EXIT_REFUSED;
	}
	return ret < 0 ? cmd_fail("trace", ret) : EXIT_DONE;
}

static int trace(struct kvc *c, int argc, char **argv)
{
	float seconds = 0;

	if ((argc != 3 && argc != 5) || strcmp(argv[1], "record") ||
	    argv[2][0] == '-')
		return cmd_usage(&cmd_trace);
	if (argc == 5 && (strcmp(argv[3], "--seconds") ||
			  cmd_float(argv[4], &seconds) || seconds <= 0))
		return cmd_usage(&cmd_trace);
	return record(c, argv[2], (double)seconds);
}

const struct cmd cmd_trace = { "trace", "record FILE [--seconds N]",
			       "record what is asked of the cache, for kvsim",
			       trace, 0 };
