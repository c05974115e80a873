/*
 * cmd_query.c - commands that ask the daemon and print what it says
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/cmd.h"

#define MAX_COLUMNS 96

/* What is shown of a value; the caller frees it. NULL: memory is out. */
static char *cell(json_t *v)
{
	char *s;

	if (!v)
		return strdup("-");
	if (!json_is_string(v))
		return json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT |
					     JSON_REAL_PRECISION(6));
	s = strdup(json_string_value(v));
	for (char *c = s; c && *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127)
			*c = ' ';
	return s;
}

/* Characters of UTF-8. */
static int length(const char *s)
{
	int n = 0;

	for (; *s; s++)
		n += (*s & 0xc0) != 0x80;
	return n;
}

static void print_cell(json_t *v, int width)
{
	char *s = cell(v);
	const int pad = s ? width - length(s) : 0;

	if (json_is_number(v))
		printf("%*s%s  ", pad, "", s ? s : "?");
	else
		printf("%s%*s  ", s ? s : "?", pad, "");
	free(s);
}

static void print_object(json_t *o)
{
	const char *key;
	json_t *v;

	json_object_foreach(o, key, v)
	{
		char *s = cell(v);

		printf("%-22s %s\n", key, s ? s : "?");
		free(s);
	}
}

/* Columns: the keys of all objects, as they come; not all have all. */
static size_t columns(json_t *list, const char *keys[MAX_COLUMNS])
{
	const char *key;
	size_t n = 0, i, k;
	json_t *o, *v;

	json_array_foreach(list, i, o)
	{
		json_object_foreach(o, key, v)
		{
			for (k = 0; k < n && strcmp(keys[k], key);)
				k++;
			if (k == n && n < MAX_COLUMNS)
				keys[n++] = key;
		}
	}
	return n;
}

static int width_of(json_t *list, const char *key)
{
	int most = (int)strlen(key);
	size_t i;
	json_t *o;

	json_array_foreach(list, i, o)
	{
		char *s = cell(json_object_get(o, key));
		const int n = s ? length(s) : 1;

		most = n > most ? n : most;
		free(s);
	}
	return most;
}

static void print_table(json_t *list)
{
	const char *keys[MAX_COLUMNS];
	const size_t n = columns(list, keys);
	int width[MAX_COLUMNS];
	size_t i;
	json_t *o;

	for (size_t k = 0; k < n; k++) {
		width[k] = width_of(list, keys[k]);
		printf("%-*s  ", width[k], keys[k]);
	}
	printf("\n");
	json_array_foreach(list, i, o)
	{
		for (size_t k = 0; k < n; k++)
			print_cell(json_object_get(o, keys[k]), width[k]);
		printf("\n");
	}
}

int cmd_query(struct kvc *c, const char *what, const char *arg)
{
	char *text;
	json_t *j;
	const int ret = kvc_query(c, what, arg, &text);

	if (ret == -ENOENT && arg[0]) {
		fprintf(stderr, "kvctl: %s: there is no tenant %s\n", what,
			arg);
		return EXIT_REFUSED;
	}
	if (ret < 0)
		return cmd_fail(what, ret);
	j = cmd_json ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);
	if (!j)
		printf("%s\n", text);
	else if (json_is_array(j) && json_array_size(j))
		print_table(j);
	else if (json_is_array(j))
		printf("none\n");
	else if (json_is_object(j) && json_object_size(j))
		print_object(j);
	else if (json_is_object(j))
		printf("none\n");
	else
		printf("%s\n", text);
	json_decref(j);
	free(text);
	return EXIT_DONE;
}

static const struct cmd *query_named(const char *name)
{
	const struct cmd *c = cmd_queries;

	while (strcmp(c->name, name))
		c++;
	return c;
}

/* Nothing but what the command takes: who mistypes an option of stop stops nothing. */
static int run(struct kvc *c, int argc, char **argv)
{
	const struct cmd *cmd = query_named(argv[0]);
	const char *what = cmd->name, *arg = "";

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json"))
			continue;
		if (!strcmp(argv[i], "--usage") && strstr(cmd->args, "--usage"))
			what = "usage";
		else if (argv[i][0] && argv[i][0] != '-' && !arg[0] &&
			 cmd->args[0])
			arg = argv[i];
		else
			return cmd_usage(cmd);
	}
	return cmd_query(c, what, arg);
}

const struct cmd cmd_queries[] = {
	{ "status", "", "the daemon: version, arithmetic, sessions", run, 0 },
	{ "tenants", "[--usage] [NAME]",
	  "budgets, shares, what is used of them", run, 0 },
	{ "sessions", "", "connected clients", run, 0 },
	{ "sequences", "[TENANT]", "sequences of clients", run, 0 },
	{ "segments", "[TENANT]", "runs of tokens with their pages", run, 0 },
	{ "chunks", "[TENANT]", "chunks kept for reuse", run, 0 },
	{ "pages", "[TENANT]", "pages by state and tier", run, 0 },
	{ "device", "", "the device: frames, pinned host memory, copies", run,
	  0 },
	{ "trim", "[BYTES]",
	  "give device memory that nobody uses back to the system", run, 0 },
	{ "stores", "", "disks: zones, slots, records, index", run, 0 },
	{ "models", "", "hosted models", run, 0 },
	{ "metrics", "", "Prometheus text", run, 0 },
	{ "drain", "", "take no new requests, wait for the last", run, 0 },
	{ "stop", "", "end the daemon in order", run, 0 },
	{ NULL, NULL, NULL, NULL, 0 },
};
