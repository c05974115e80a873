/*
 * kvctl.c - administer a kvd: find the subcommand, connect, run it
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tools/cmd.h"

int cmd_json;

static const struct cmd *const others[] = { &cmd_generate, &cmd_rag,
					    &cmd_chunk,	   &cmd_top,
					    &cmd_persist,  &cmd_trace,
					    &cmd_config };
#define N_OTHERS (sizeof(others) / sizeof(others[0]))

static void help_line(const struct cmd *c)
{
	printf("  %-10s %-22s %s\n", c->name, c->args, c->help);
}

static int help(void)
{
	printf("usage: kvctl [--socket PATH] [--json] COMMAND [ARGUMENTS]\n\n");
	for (const struct cmd *c = cmd_queries; c->name; c++)
		help_line(c);
	for (size_t i = 0; i < N_OTHERS; i++)
		help_line(others[i]);
	printf("  %-10s %-22s %s\n", "version", "",
	       "versions of kvctl and of the daemon");
	printf("\nEvery command takes --help. Exit codes: 0 done, 1 the daemon "
	       "refused, 2 usage,\n3 no daemon. --socket defaults to "
	       "$KVD_SOCKET or /run/kvd/kvd.sock.\n");
	return EXIT_DONE;
}

int cmd_usage(const struct cmd *cmd)
{
	fprintf(stderr, "usage: kvctl %s %s\n       %s\n", cmd->name, cmd->args,
		cmd->help);
	return EXIT_USAGE;
}

/* What the daemon means by it. */
static const char *meaning(int err)
{
	switch (-err) {
	case ECONNRESET:
		return "the daemon is gone, or ended the session";
	case ESHUTDOWN:
		return "the daemon takes no new requests";
	case EDQUOT:
		return "a budget of the tenant is used up";
	case ENODEV:
		return "the device is lost";
	default:
		return strerror(-err);
	}
}

int cmd_fail(const char *what, int err)
{
	fprintf(stderr, "kvctl: %s: %s\n", what, meaning(err));
	return err == -ECONNRESET ? EXIT_NO_DAEMON : EXIT_REFUSED;
}

int cmd_u64(const char *arg, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(arg, &end, 10);
	return errno || arg[0] < '0' || arg[0] > '9' || *end ? -1 : 0;
}

int cmd_u32(const char *arg, uint32_t *out)
{
	uint64_t n;

	if (cmd_u64(arg, &n) || n > UINT32_MAX)
		return -1;
	*out = (uint32_t)n;
	return 0;
}

int cmd_float(const char *arg, float *out)
{
	char *end;

	*out = strtof(arg, &end);
	return end == arg || *end || !isfinite(*out) ? -1 : 0;
}

char *cmd_text(const char *arg)
{
	const int from_stdin = !strcmp(arg, "-");
	FILE *f = from_stdin ? stdin : NULL;
	size_t n = 0, room = 4096;
	char *text;

	if (arg[0] == '@')
		f = fopen(arg + 1, "rb");
	else if (!from_stdin)
		return strdup(arg);
	text = f ? malloc(room) : NULL;
	while (text) {
		n += fread(text + n, 1, room - n - 1, f);
		if (n + 1 < room)
			break;
		room *= 2;
		text = realloc(text, room);
	}
	if (text && f && !ferror(f) && !memchr(text, 0, n)) {
		text[n] = 0;
	} else {
		fprintf(stderr, "kvctl: %s: %s\n", arg,
			text && !ferror(f) ? "has a byte 0" : strerror(errno));
		free(text);
		text = NULL;
	}
	if (f && !from_stdin)
		fclose(f);
	return text;
}

static const struct cmd *find(const char *name)
{
	for (const struct cmd *c = cmd_queries; c->name; c++)
		if (!strcmp(c->name, name))
			return c;
	for (size_t i = 0; i < N_OTHERS; i++)
		if (!strcmp(others[i]->name, name))
			return others[i];
	return NULL;
}

/* A daemon that is not there has no version. */
static int version(const char *socket)
{
	const struct kvc_options opt = { .socket = socket, .name = "kvctl" };
	struct kvc *c = NULL;
	char *out = NULL;

	if (!kvc_open(&c, &opt) && kvc_query(c, "version", "", &out) < 0)
		out = NULL;
	if (cmd_json) {
		printf("{\"kvctl\":\"%s\",\"daemon\":%s}\n", kvc_version(),
		       out ? out : "null");
	} else {
		printf("kvctl %s\n", kvc_version());
		if (out)
			printf("daemon %s\n", out);
	}
	free(out);
	kvc_close(c);
	return EXIT_DONE;
}

static int is_asked(int argc, char **argv, const char *option)
{
	for (int i = 0; i < argc; i++)
		if (!strcmp(argv[i], option))
			return 1;
	return 0;
}

static int run_version(const char *socket, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "--json") && strcmp(argv[i], "--help")) {
			fprintf(stderr, "usage: kvctl version\n");
			return EXIT_USAGE;
		}
	if (is_asked(argc, argv, "--help")) {
		printf("usage: kvctl version\nversions of kvctl and of the "
		       "daemon\n");
		return EXIT_DONE;
	}
	return version(socket);
}

/* As kvc_open() looks for it. */
static const char *socket_name(const char *socket)
{
	const char *env = getenv("KVD_SOCKET");

	return socket ? socket : env && *env ? env : "/run/kvd/kvd.sock";
}

static int run(const struct cmd *cmd, const char *socket, int argc, char **argv)
{
	const struct kvc_options opt = { .socket = socket, .name = "kvctl" };
	struct kvc *c = NULL;
	int ret;

	if (is_asked(argc, argv, "--help")) {
		printf("usage: kvctl %s %s\n%s\n", cmd->name, cmd->args,
		       cmd->help);
		return EXIT_DONE;
	}
	if (!cmd->no_daemon) {
		ret = kvc_open(&c, &opt);
		if (ret == -EACCES || ret == -EDQUOT)
			return cmd_fail("connect", ret);
		if (ret) {
			fprintf(stderr, "kvctl: no daemon at %s: %s\n",
				socket_name(socket), strerror(-ret));
			return EXIT_NO_DAEMON;
		}
	}
	ret = cmd->run(c, argc, argv);
	kvc_close(c);
	return ret;
}

static int dispatch(int argc, char **argv)
{
	const char *socket = NULL;
	const struct cmd *cmd;
	int i = 1;

	for (; i < argc && argv[i][0] == '-'; i++) {
		if (!strcmp(argv[i], "--json"))
			cmd_json = 1;
		else if (!strcmp(argv[i], "--socket") && i + 1 < argc)
			socket = argv[++i];
		else if (!strcmp(argv[i], "--version"))
			return version(socket);
		else if (!strcmp(argv[i], "--help"))
			return help();
		else
			break;
	}
	if (i < argc && !strcmp(argv[i], "help"))
		return help();
	if (is_asked(argc - i, argv + i,
		     "--json")) /* also behind the command */
		cmd_json = 1;
	if (i < argc && !strcmp(argv[i], "version"))
		return run_version(socket, argc - i, argv + i);
	cmd = i < argc ? find(argv[i]) : NULL;
	if (!cmd) {
		fprintf(stderr, "kvctl: %s: no such command; see kvctl help\n",
			i < argc ? argv[i] : "nothing given");
		return EXIT_USAGE;
	}
	return run(cmd, socket, argc - i, argv + i);
}

/* What was printed has got there, or the exit code says that it has not. */
static int printed(int ret)
{
	errno = 0;
	if (!fflush(stdout) && !ferror(stdout))
		return ret;
	fprintf(stderr, "kvctl: standard output: %s\n",
		strerror(errno ? errno : EIO));
	return ret ? ret : EXIT_REFUSED;
}

/* What is printed is for nobody else's file, or for the daemon's socket. */
static void fill_std(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	fill_std();
	return printed(dispatch(argc, argv));
}
