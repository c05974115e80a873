/*
 * cmd_query.c - commands that ask the daemon and print what it says
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/cmd.h"

#define CELL 40

static void cell(json_t *v, char *out)
{
	if (json_is_string(v)) {
		snprintf(out, CELL, "%s", json_string_value(v));
		for (char *c = out; *c; c++)
			if ((unsigned char)*c < ' ')
				*c = ' ';
	} else {
		char *s = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

		snprintf(out, CELL, "%s", s ? s : "?");
		free(s);
	}
}

static void print_object(json_t *o)
{
	const char *key;
	char text[CELL];
	json_t *v;

	json_object_foreach(o, key, v)
	{
		cell(v, text);
		printf("%-22s %s\n", key, text);
	}
}

/* Columns are the keys of the first object. */
static void print_table(json_t *list)
{
	json_t *head = json_array_get(list, 0), *o, *v;
	int width[64];
	const char *key;
	char text[CELL];
	size_t i, n = 0;

	json_object_foreach(head, key, v)
	{
		if (n == 64)
			break;
		width[n] = (int)strlen(key);
		json_array_foreach(list, i, o)
		{
			cell(json_object_get(o, key), text);
			if ((int)strlen(text) > width[n])
				width[n] = (int)strlen(text);
		}
		printf("%-*s  ", width[n++], key);
	}
	printf("\n");
	json_array_foreach(list, i, o)
	{
		n = 0;
		json_object_foreach(head, key, v)
		{
			if (n == 64)
				break;
			cell(json_object_get(o, key), text);
			printf(json_is_number(v) ? "%*s  " : "%-*s  ",
			       width[n++], text);
		}
		printf("\n");
	}
}

int cmd_query(struct kvc *c, const char *what, const char *arg)
{
	char *text;
	json_t *j;
	const int ret = kvc_query(c, what, arg, &text);

	if (ret < 0)
		return cmd_fail(what, ret);
	j = cmd_json ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);
	if (!j)
		printf("%s\n", text);
	else if (json_is_array(j) && json_array_size(j))
		print_table(j);
	else if (json_is_array(j))
		printf("none\n");
	else if (json_is_object(j))
		print_object(j);
	else
		printf("%s\n", text);
	json_decref(j);
	free(text);
	return EXIT_DONE;
}

static int run_tenants(struct kvc *c, int argc, char **argv)
{
	const char *what = "tenants", *name = "";

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--usage"))
			what = "usage";
		else if (!strcmp(argv[i], "--json"))
			continue;
		else if (argv[i][0] == '-' || name[0])
			return EXIT_USAGE;
		else
			name = argv[i];
	}
	return cmd_query(c, what, name);
}

static int run(struct kvc *c, int argc, char **argv)
{
	const char *arg = argc > 1 && argv[1][0] != '-' ? argv[1] : "";

	if (argc > 3)
		return EXIT_USAGE;
	return cmd_query(c, argv[0], arg);
}

const struct cmd cmd_queries[] = {
	{ "status", "", "the daemon: version, arithmetic, sessions", run, 0 },
	{ "tenants", "[--usage] [NAME]",
	  "budgets, shares, what is used of them", run_tenants, 0 },
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
