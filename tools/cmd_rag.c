/*
 * cmd_rag.c - rag: requests over chunks of text, one a line of a file
 *
 * A line is an object {"system": text, "chunks": [text, ...], "question": text,
 * "answer": text}; system and answer may be missing. All lines are read and looked at
 * before the first is asked. Answers come out in the order of the lines.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/cmd.h"

#define MAX_PARTS 258u
#define MAX_JOBS  64u
#define WAIT_MS	  600000

struct rag {
	struct kvc *c;
	struct kvc_generate g; /* what all requests share */
	const char *stop[KV_MAX_STOP];
	uint32_t n_jobs;
	float temperature, scale; /* of chunks side by side; 0: they are not */
	int batch; /* in the order that computes least */
	json_t **lines;
	size_t n_lines;
	size_t n_asked, n_failed, n_known, n_right;
	uint64_t n_prompt, n_prefix, n_chunk, n_repaired;
};

/* ---- the file ----------------------------------------------------------------- */

/* What is wrong with a line, or NULL. */
static const char *wrong(const json_t *o)
{
	const json_t *chunks = json_object_get(o, "chunks");
	size_t i;
	json_t *c;

	if (!json_is_object(o))
		return "not an object";
	if (!json_is_string(json_object_get(o, "question")))
		return "no question";
	if (chunks && !json_is_array(chunks))
		return "chunks are no list";
	if (json_array_size(chunks) > MAX_PARTS - 2)
		return "too many chunks";
	json_array_foreach(
		chunks, i,
		c) if (!json_is_string(c)) return "a chunk is no text";
	return NULL;
}

static int add_line(struct rag *r, const char *file, const char *text,
		    size_t len)
{
	json_error_t e;
	json_t *o = json_loadb(text, len, 0, &e);
	const char *what = o ? wrong(o) : e.text;
	json_t **p;

	if (what) {
		fprintf(stderr, "kvctl: %s:%zu: %s\n", file, r->n_lines + 1,
			what);
		json_decref(o);
		return -EINVAL;
	}
	p = realloc(r->lines, (r->n_lines + 1) * sizeof(json_t *));
	if (!p) {
		json_decref(o);
		return -ENOMEM;
	}
	r->lines = p;
	r->lines[r->n_lines++] = o;
	return 0;
}

static int read_lines(struct rag *r, const char *file)
{
	const int from_stdin = !strcmp(file, "-");
	FILE *f = from_stdin ? stdin : fopen(file, "re");
	char *line = NULL;
	size_t room = 0;
	ssize_t len;
	int ret = 0;

	if (!f) {
		fprintf(stderr, "kvctl: %s: %s\n", file, strerror(errno));
		return -errno;
	}
	while (!ret && (len = getline(&line, &room, f)) > 0)
		ret = add_line(r, file, line, (size_t)len);
	if (!ret && ferror(f)) {
		ret = -errno;
		fprintf(stderr, "kvctl: %s: %s\n", file, strerror(errno));
	}
	free(line);
	if (!from_stdin)
		(void)fclose(f); /* only read */
	return ret;
}

/* ---- one request ----------------------------------------------------------------- */

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

static int start(struct rag *r, const json_t *o, struct kvc_gen **out)
{
	struct kvc_part parts[MAX_PARTS];
	const uint32_t side = r->scale > 0 ? KV_PART_PARALLEL : 0;
	struct kvc_generate g = r->g;
	uint32_t n = 0;
	size_t i;
	json_t *c;

	if (text_of(o, "system"))
		parts[n++] = (struct kvc_part){ .kind = KV_PART_TEXT,
						.flags = KV_PART_BOS,
						.text = text_of(o, "system") };
	json_array_foreach(json_object_get(o, "chunks"), i, c)
		parts[n++] = (struct kvc_part){ .kind = KV_PART_TEXT,
						.flags = KV_PART_REUSE | side,
						.temperature = r->temperature,
						.scale = r->scale,
						.text = json_string_value(c) };
	parts[n] = (struct kvc_part){ .kind = KV_PART_TEXT,
				      .flags = n ? 0 : KV_PART_BOS,
				      .text = text_of(o, "question") };
	g.parts = parts;
	g.n_parts = n + 1;
	return kvc_generate_start(r->c, &g, out);
}

/* 1 when text without white space around it is answer. */
static int matches(const char *text, const char *answer)
{
	size_t n;

	while (isspace((unsigned char)*text))
		text++;
	n = strlen(text);
	while (n && isspace((unsigned char)text[n - 1]))
		n--;
	return n == strlen(answer) && !memcmp(text, answer, n);
}

static void print_json(const json_t *o, const struct kvc_gen *g)
{
	const struct kv_gen_stats *st = kvc_gen_stats(g);
	json_t *text = json_string(kvc_gen_text(g)), *out;

	/* no text if that is cut in the middle of a character */
	out = json_pack("{s:s, s:o, s:I, s:I, s:I, s:I, s:f}", "question",
			text_of(o, "question"), "text",
			text ? text : json_null(), "prompt_tokens",
			(json_int_t)st->n_prompt, "prefix_tokens",
			(json_int_t)st->n_prefix, "chunk_tokens",
			(json_int_t)st->n_chunk, "repaired_tokens",
			(json_int_t)st->n_repaired, "ttft_ms",
			(double)st->ttft_ns * 1e-6);
	json_dumpf(out, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(out);
}

static void finish(struct rag *r, size_t i, struct kvc_gen *g)
{
	const json_t *o = r->lines[i];
	const char *answer = text_of(o, "answer");
	const int ret = kvc_generate_wait(r->c, g, WAIT_MS);
	const struct kv_gen_stats *st = kvc_gen_stats(g);

	r->n_asked++;
	if (ret < 0) {
		r->n_failed++;
		fprintf(stderr, "kvctl: request %zu: %s\n", i + 1,
			strerror(-ret));
	} else {
		if (cmd_json)
			print_json(o, g);
		else
			printf("%zu: %s\n", i + 1, kvc_gen_text(g));
		fflush(stdout);
		r->n_known += answer ? 1 : 0;
		r->n_right += answer && matches(kvc_gen_text(g), answer);
		r->n_prompt += st->n_prompt;
		r->n_prefix += st->n_prefix;
		r->n_chunk += st->n_chunk;
		r->n_repaired += st->n_repaired;
	}
	kvc_generate_free(r->c, g);
}

/* All, n_jobs in flight; -errno when one could not be asked. */
static int ask_all(struct rag *r)
{
	struct kvc_gen *gens[MAX_JOBS] = { 0 };
	size_t next = 0;
	int ret = 0;

	for (size_t i = 0; i < r->n_lines; i++) {
		while (!ret && next < r->n_lines && next < i + r->n_jobs) {
			ret = start(r, r->lines[next], &gens[next % r->n_jobs]);
			next += ret ? 0 : 1;
		}
		if (i >= next)
			break;
		finish(r, i, gens[i % r->n_jobs]);
	}
	return ret;
}

/* ---- all of them, in the order that computes least --------------------------------- */

static uint64_t text_id(const char *s)
{
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */

	while (*s)
		h = (h ^ (unsigned char)*s++) * 0x100000001b3u;
	return h;
}

/* Units of a line: what it begins with; bytes stand for tokens. */
static void add_unit(struct kvc_prompt *p, uint64_t *ids, uint32_t *n,
		     const char *text)
{
	ids[p->n] = text_id(text);
	n[p->n++] = (uint32_t)strlen(text);
}

static int set_prompt(const struct rag *r, const json_t *o,
		      struct kvc_prompt *p)
{
	const json_t *chunks = json_object_get(o, "chunks");
	const size_t n = json_array_size(chunks) + 2;
	uint64_t *ids = calloc(n, sizeof(*ids));
	uint32_t *n_tokens = calloc(n, sizeof(*n_tokens));
	size_t i;
	json_t *c;

	*p = (struct kvc_prompt){ .ids = ids,
				  .n_tokens = n_tokens,
				  .n_out = r->g.max_tokens };
	if (!ids || !n_tokens)
		return -ENOMEM;
	if (text_of(o, "system"))
		add_unit(p, ids, n_tokens, text_of(o, "system"));
	json_array_foreach(chunks, i, c)
		add_unit(p, ids, n_tokens, json_string_value(c));
	add_unit(p, ids, n_tokens, text_of(o, "question"));
	return 0;
}

static int set_order(struct rag *r, struct kvc_turn *turns)
{
	struct kvc_prompt *p = calloc(r->n_lines + 1, sizeof(*p));
	int ret = p ? 0 : -ENOMEM;

	for (size_t i = 0; i < r->n_lines && !ret; i++)
		ret = set_prompt(r, r->lines[i], &p[i]);
	if (!ret)
		ret = kvc_order(p, (uint32_t)r->n_lines, turns);
	if (ret >= 0)
		fprintf(stderr, "%zu requests in %d groups\n", r->n_lines, ret);
	for (size_t i = 0; p && i < r->n_lines; i++) {
		free((void *)(uintptr_t)p[i].ids);
		free((void *)(uintptr_t)p[i].n_tokens);
	}
	free(p);
	return ret < 0 ? ret : 0;
}

/*
 * Turns in order, n_jobs in flight; who is not first of its group waits for the first. All
 * answers are kept, to come out in the order of the lines.
 */
static int ask_turns(struct rag *r, const struct kvc_turn *turns,
		     struct kvc_gen **gens)
{
	size_t done = 0; /* turns whose end was awaited, in order */
	int ret = 0;

	for (size_t k = 0; k < r->n_lines && !ret; k++) {
		const struct kvc_turn *t = &turns[k];
		const size_t behind = k - done >= r->n_jobs ? k - r->n_jobs + 1
							    : done;
		const size_t need = t->first == k	 ? behind
				    : t->first >= behind ? t->first + 1
							 : behind;

		for (; done < need; done++)
			(void)kvc_generate_wait(r->c, gens[turns[done].prompt],
						WAIT_MS);
		ret = start(r, r->lines[t->prompt], &gens[t->prompt]);
	}
	return ret;
}

static int ask_batch(struct rag *r)
{
	struct kvc_turn *turns = calloc(r->n_lines + 1, sizeof(*turns));
	struct kvc_gen **gens =
		calloc(r->n_lines + 1, sizeof(struct kvc_gen *));
	int ret = turns && gens ? set_order(r, turns) : -ENOMEM;

	if (!ret)
		ret = ask_turns(r, turns, gens);
	for (size_t i = 0; gens && i < r->n_lines; i++)
		if (gens[i])
			finish(r, i, gens[i]); /* as it is by now */
	free(turns);
	free(gens);
	return ret;
}

/* ---- the command ---------------------------------------------------------------------- */

enum {
	O_MODEL = 256,
	O_MAX,
	O_STOP,
	O_JOBS,
	O_REPAIR,
	O_NO_REUSE,
	O_JSON,
	O_BATCH,
	O_FOCUS,
	O_APE
};

static const struct option options[] = {
	{ "model", 1, NULL, O_MODEL },
	{ "max-tokens", 1, NULL, O_MAX },
	{ "stop", 1, NULL, O_STOP },
	{ "jobs", 1, NULL, O_JOBS },
	{ "repair", 1, NULL, O_REPAIR },
	{ "no-reuse", 0, NULL, O_NO_REUSE },
	{ "batch", 0, NULL, O_BATCH },
	{ "json", 0, NULL, O_JSON },
	{ "focus", 0, NULL, O_FOCUS },
	{ "ape", 1, NULL, O_APE },
	{ NULL, 0, NULL, 0 },
};

static int option(struct rag *r, int o)
{
	switch (o) {
	case O_MODEL:
		r->g.model = optarg;
		return 0;
	case O_MAX:
		return cmd_u32(optarg, &r->g.max_tokens) || !r->g.max_tokens;
	case O_STOP:
		if (r->g.n_stop == KV_MAX_STOP)
			return -1;
		r->stop[r->g.n_stop++] = optarg;
		return 0;
	case O_JOBS:
		return cmd_u32(optarg, &r->n_jobs) || !r->n_jobs ||
		       r->n_jobs > MAX_JOBS;
	case O_REPAIR:
		return cmd_repair(&r->g, optarg);
	case O_NO_REUSE:
		r->g.flags |= KV_GEN_NO_REUSE;
		return 0;
	case O_APE:
		return cmd_ape(optarg, &r->temperature, &r->scale);
	case O_FOCUS:
		r->g.flags |= KV_GEN_FOCUS;
		return 0;
	case O_BATCH:
		r->batch = 1;
		return 0;
	case O_JSON:
		return 0;
	default:
		return -1;
	}
}

static void summary(const struct rag *r)
{
	fprintf(stderr,
		"%zu requests, %zu failed, %llu prompt tokens: %llu found as "
		"prefix, %llu as chunks, %llu of them repaired\n",
		r->n_asked, r->n_failed, (unsigned long long)r->n_prompt,
		(unsigned long long)r->n_prefix, (unsigned long long)r->n_chunk,
		(unsigned long long)r->n_repaired);
	if (r->n_known)
		fprintf(stderr, "exact match %zu of %zu\n", r->n_right,
			r->n_known);
}

static int rag(struct kvc *c, int argc, char **argv)
{
	struct rag r = { .c = c,
			 .n_jobs = 4,
			 .g = { .max_tokens = 64, .sqe_flags = KV_SQE_WAIT } };
	int o, ret;

	optind = 1;
	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (option(&r, o))
			return cmd_usage(&cmd_rag);
	if (optind + 1 != argc)
		return cmd_usage(&cmd_rag);
	r.g.stop = r.stop;
	ret = read_lines(&r, argv[optind]) ? EXIT_USAGE : EXIT_DONE;
	if (ret == EXIT_DONE) {
		const int err = r.batch ? ask_batch(&r) : ask_all(&r);

		if (err)
			ret = cmd_fail("rag", err);
		else if (r.n_failed)
			ret = EXIT_REFUSED;
		summary(&r);
	}
	for (size_t i = 0; i < r.n_lines; i++)
		json_decref(r.lines[i]);
	free(r.lines);
	return ret;
}

const struct cmd cmd_rag = {
	"rag", "[OPTIONS] FILE.jsonl|-",
	"requests over chunks, one a line: {\"system\", \"chunks\": [], "
	"\"question\", \"answer\"}; the\nanswers in order, then how much was "
	"found. --model NAME --max-tokens N --stop TEXT\n--jobs N (4) "
	"--repair first|random|blend|craft|craft-blend@PERCENT|load, craft, craft-blend --focus\n"
	"--ape TEMPERATURE:SCALE (chunks side by side) --no-reuse (no prefix is\nfound or kept; chunks are, each computed alone)\n"
	"--batch (asked in the order that computes least)",
	rag, 0
};
