/*
 * cmd_top.c - top: tenants, their pages and rates, once a second
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tools/cmd.h"

#define MAX_TENANTS 64

struct seen {
	json_int_t tokens, prompt, read, evicted;
};

static json_int_t num(json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static json_t *ask(struct kvc *c, const char *what, int *ret)
{
	char *text;
	json_t *j;

	*ret = kvc_query(c, what, "", &text);
	if (*ret < 0)
		return NULL;
	j = json_loads(text, 0, NULL);
	free(text);
	return j;
}

static void show(json_t *tenants, json_t *pages, struct seen *last, int first)
{
	size_t i;
	json_t *t;

	printf("%-16s %8s %8s %8s %7s %6s %9s %9s %8s %8s\n", "tenant",
	       "mem MB", "of MB", "disk MB", "pinned", "reqs", "prompt/s",
	       "tokens/s", "in/s", "out/s");
	json_array_foreach(tenants, i, t)
	{
		json_t *p = json_array_get(pages, i);
		struct seen now = { num(t, "generated_tokens"),
				    num(t, "prompt_tokens"),
				    num(p, "read_total"),
				    num(p, "evicted_total") };
		struct seen *l = &last[i % MAX_TENANTS];

		if (first)
			*l = now;
		printf("%-16s %8.1f %8.1f %8.1f %7.1f %6lld %9lld %9lld "
		       "%8lld %8lld\n",
		       json_string_value(json_object_get(t, "name")),
		       (double)num(t, "mapped_bytes") / 1e6,
		       (double)num(t, "memory_bytes") / 1e6,
		       (double)num(t, "slot_bytes") / 1e6,
		       (double)num(t, "pinned_bytes") / 1e6,
		       (long long)num(t, "requests"),
		       (long long)(now.prompt - l->prompt),
		       (long long)(now.tokens - l->tokens),
		       (long long)(now.read - l->read),
		       (long long)(now.evicted - l->evicted));
		*l = now;
	}
}

/* One line for each time: totals, of which the caller makes rates. */
static void show_json(json_t *tenants, json_t *pages)
{
	json_t *o = json_pack("{s:O, s:O}", "tenants", tenants, "pages", pages);
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

	if (text)
		printf("%s\n", text);
	free(text);
	json_decref(o);
}

static int top(struct kvc *c, int argc, char **argv)
{
	struct seen last[MAX_TENANTS] = { 0 };
	uint32_t times;
	long n = -1;

	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "-n") && i + 1 < argc &&
		    !cmd_u32(argv[i + 1], &times) && times)
			i++, n = (long)times;
		else if (strcmp(argv[i], "--json"))
			return cmd_usage(&cmd_top);
	for (long i = 0; n < 0 || i < n; i++) {
		json_t *t, *p;
		int ret;

		t = ask(c, "tenants", &ret);
		p = t ? ask(c, "pages", &ret) : NULL;
		if (!p) {
			json_decref(t);
			return cmd_fail("top", ret);
		}
		if (cmd_json)
			show_json(t, p);
		else if (isatty(STDOUT_FILENO))
			printf("\033[H\033[2J");
		if (!cmd_json)
			show(t, p, last, i == 0);
		fflush(stdout);
		json_decref(t);
		json_decref(p);
		if (n < 0 || i + 1 < n)
			sleep(1);
	}
	return EXIT_DONE;
}

const struct cmd cmd_top = { "top", "[-n TIMES]", "tenants live, until Ctrl-C",
			     top, 0 };
