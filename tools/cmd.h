/*
 * cmd.h - subcommands of kvctl, one file for each group
 */
#ifndef TOOLS_CMD_H
#define TOOLS_CMD_H

#include "libkvclient/kvclient.h"

/* Exit codes of kvctl. */
enum { EXIT_DONE = 0, EXIT_REFUSED = 1, EXIT_USAGE = 2, EXIT_NO_DAEMON = 3 };

struct cmd {
	const char *name;
	const char *args;
	const char *help;
	/* c is NULL for commands that need no daemon. Returns an exit code. */
	int (*run)(struct kvc *c, int argc, char **argv);
	int no_daemon;
};

extern int cmd_json; /* --json */
extern const struct cmd cmd_generate, cmd_chunk, cmd_top, cmd_config,
	cmd_persist, cmd_trace, cmd_rag;
extern const struct cmd cmd_queries[]; /* ends with a NULL name */

/* Say what went wrong; EXIT_REFUSED or EXIT_NO_DAEMON. */
int cmd_fail(const char *what, int err);
int cmd_usage(const struct cmd *cmd);
/* Ask and print: JSON as it is, or a table of its objects. */
int cmd_query(struct kvc *c, const char *what, const char *arg);
/* A number and nothing behind it; 0, or -1: it is none. */
int cmd_u32(const char *arg, uint32_t *out);
int cmd_u64(const char *arg, uint64_t *out);
int cmd_float(const char *arg, float *out);
/* TEXT, or @FILE's contents, or - for standard input; malloc'ed, or NULL. */
char *cmd_text(const char *arg);
/* TEMPERATURE:SCALE; 0, or -1: it is none. */
int cmd_ape(const char *arg, float *temperature, float *scale);
/* SELECTOR@PERCENT into g; 0, or -1: it is none. */
int cmd_repair(struct kvc_generate *g, const char *arg);

#endif
