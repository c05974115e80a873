/*
 * cmd_generate.c - generate: text in, text streaming out
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/cmd.h"

#define MAX_PARTS 256

struct request {
	struct kvc_generate g;
	struct kvc_part parts[MAX_PARTS];
	char *texts[MAX_PARTS]; /* what the parts point into */
	uint32_t n_texts;
	float temperature, scale; /* of chunks to come; 0: one by one */
	const char *split; /* of chunks; NULL: each text is one */
	const char *stop[KV_MAX_STOP];
	int logprobs, score;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	(void)sig;
	interrupted = 1;
}

static void on_tokens(void *user, const struct kv_token *tokens, uint32_t n,
		      const char *text, size_t text_len)
{
	const struct request *r = user;

	if (!r->logprobs && !r->score && !cmd_json) {
		fwrite(text, 1, text_len, stdout);
	} else if (!cmd_json) {
		for (uint32_t i = 0; i < n; i++)
			printf("%u %.6f\n", tokens[i].id,
			       (double)tokens[i].logprob);
	}
	fflush(stdout);
}

enum {
	O_MODEL = 256,
	O_MAX,
	O_TEMP,
	O_TOP_K,
	O_TOP_P,
	O_MIN_P,
	O_SEED,
	O_STOP,
	O_LOGPROBS,
	O_SCORE,
	O_SYSTEM,
	O_CHUNK,
	O_QUESTION,
	O_JSON,
	O_NO_REUSE,
	O_WAIT,
	O_REPAIR,
	O_BASE,
	O_SPLIT,
	O_DEADLINE,
	O_APE,
	O_FOCUS
};

static const struct option options[] = {
	{ "model", 1, NULL, O_MODEL },
	{ "max-tokens", 1, NULL, O_MAX },
	{ "temperature", 1, NULL, O_TEMP },
	{ "top-k", 1, NULL, O_TOP_K },
	{ "top-p", 1, NULL, O_TOP_P },
	{ "min-p", 1, NULL, O_MIN_P },
	{ "seed", 1, NULL, O_SEED },
	{ "stop", 1, NULL, O_STOP },
	{ "logprobs", 0, NULL, O_LOGPROBS },
	{ "score", 0, NULL, O_SCORE },
	{ "system", 1, NULL, O_SYSTEM },
	{ "chunk", 1, NULL, O_CHUNK },
	{ "question", 1, NULL, O_QUESTION },
	{ "json", 0, NULL, O_JSON },
	{ "no-reuse", 0, NULL, O_NO_REUSE },
	{ "wait", 0, NULL, O_WAIT },
	{ "repair", 1, NULL, O_REPAIR },
	{ "base", 1, NULL, O_BASE },
	{ "split", 1, NULL, O_SPLIT },
	{ "deadline", 1, NULL, O_DEADLINE },
	{ "ape", 1, NULL, O_APE },
	{ "focus", 0, NULL, O_FOCUS },
	{ NULL, 0, NULL, 0 },
};

static int add_part(struct request *r, const char *arg, uint32_t flags)
{
	struct kvc_part *p = &r->parts[r->g.n_parts];
	char *text;

	if (r->g.n_parts == MAX_PARTS)
		return -1;
	text = cmd_text(arg);
	if (!text)
		return -1;
	r->texts[r->n_texts++] = text;
	/* the first, and its earlier version */
	if ((!r->g.n_parts ||
	     (r->g.n_parts == 1 && r->parts[0].flags & KV_PART_BASE)) &&
	    !(flags & KV_PART_REUSE))
		flags |= KV_PART_BOS;
	*p = (struct kvc_part){ .kind = KV_PART_TEXT,
				.flags = flags,
				.text = text };
	r->g.n_parts++;
	return 0;
}

/* A text as chunks that end behind r->split. */
static int add_chunks(struct request *r, const char *arg)
{
	char *text;
	int n;

	if (!r->split)
		return add_part(r, arg, KV_PART_REUSE);
	text = cmd_text(arg);
	if (!text)
		return -1;
	n = kvc_split(text, strlen(text), r->split, r->parts + r->g.n_parts,
		      MAX_PARTS - r->g.n_parts);
	if (n <= 0) { /* too many, or nothing */
		free(text);
		return n;
	}
	r->texts[r->n_texts++] = text;
	r->g.n_parts += (uint32_t)n;
	return 0;
}

static int add_side_by_side(struct request *r, const char *arg)
{
	uint32_t i = r->g.n_parts;
	const int ret = add_chunks(r, arg);

	for (; r->scale > 0 && i < r->g.n_parts; i++) {
		r->parts[i].flags |= KV_PART_PARALLEL;
		r->parts[i].temperature = r->temperature;
		r->parts[i].scale = r->scale;
	}
	return ret;
}

int cmd_repair(struct kvc_generate *g, const char *arg)
{
	static const char *const kinds[] = { "none",  "first", "random",
					     "blend", "craft", "craft-blend" };
	const char *at = strchr(arg, '@');
	double percent;
	char *end;

	if (!strcmp(arg, "craft") || !strcmp(arg, "craft-blend")) {
		g->repair = arg[5] ? KV_REPAIR_CRAFT_BLEND : KV_REPAIR_CRAFT;
		g->repair_permille = KV_REPAIR_BY_CFO;
		return 0;
	}
	if (!at)
		return -1;
	percent = strtod(at + 1, &end);
	if (!strcmp(at, "@load"))
		g->repair_permille = KV_REPAIR_BY_LOAD;
	else if (end == at + 1 || *end || !(percent >= 0 && percent <= 100))
		return -1;
	else
		g->repair_permille = (uint32_t)(percent * 10 + 0.5);
	for (uint32_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strlen(kinds[i]) == (size_t)(at - arg) &&
		    !strncmp(kinds[i], arg, (size_t)(at - arg))) {
			g->repair = i;
			return 0;
		}
	return -1;
}

int cmd_ape(const char *arg, float *temperature, float *scale)
{
	char end;

	return sscanf(arg, "%f:%f%c", temperature, scale, &end) != 2 ||
			       !(*temperature > 0 && *scale > 0) ||
			       !isfinite(*temperature) || !isfinite(*scale)
		       ? -1
		       : 0;
}

static int option(struct request *r, int o)
{
	switch (o) {
	case O_MODEL:
		r->g.model = optarg;
		return 0;
	case O_MAX:
		return cmd_u32(optarg, &r->g.max_tokens);
	case O_TEMP:
		return cmd_float(optarg, &r->g.temperature);
	case O_TOP_K:
		return cmd_u32(optarg, &r->g.top_k);
	case O_TOP_P:
		return cmd_float(optarg, &r->g.top_p);
	case O_MIN_P:
		return cmd_float(optarg, &r->g.min_p);
	case O_SEED:
		return cmd_u64(optarg, &r->g.seed);
	case O_STOP:
		if (r->g.n_stop == KV_MAX_STOP)
			return -1;
		r->stop[r->g.n_stop++] = optarg;
		return 0;
	case O_LOGPROBS:
		r->logprobs = 1;
		return 0;
	case O_SCORE:
		r->score = 1;
		r->g.flags |= KV_GEN_SCORE;
		return 0;
	case O_NO_REUSE:
		r->g.flags |= KV_GEN_NO_REUSE;
		return 0;
	case O_FOCUS:
		r->g.flags |= KV_GEN_FOCUS;
		return 0;
	case O_WAIT:
		r->g.sqe_flags |= KV_SQE_WAIT;
		return 0;
	case O_REPAIR:
		return cmd_repair(&r->g, optarg);
	case O_DEADLINE:
		return cmd_u32(optarg, &r->g.deadline_ms);
	case O_SYSTEM:
	case O_QUESTION:
		return add_part(r, optarg, 0);
	case O_APE:
		return cmd_ape(optarg, &r->temperature, &r->scale);
	case O_CHUNK:
		return add_side_by_side(r, optarg);
	case O_SPLIT:
		r->split = *optarg ? optarg : NULL;
		return 0;
	case O_BASE:
		return add_part(r, optarg, KV_PART_BASE);
	case O_JSON:
		return 0;
	default:
		return -1;
	}
}

static void print_used(const struct kvc_gen *g)
{
	static const char *const uses[] = { "none", "fresh", "exact", "inter",
					    "alone" };
	uint32_t n, n_out = 0;
	const struct kv_chunk_used *u = kvc_gen_used(g, &n);

	if (!u)
		return;
	printf("\"chunks\":[");
	for (uint32_t i = 0; i < n; i++)
		if (u[i].use && u[i].use < sizeof(uses) / sizeof(uses[0]))
			printf("%s{\"use\":\"%s\",\"variant\":\"%016llx\","
			       "\"tokens\":%u,\"repaired\":%u,\"cfo\":%.3f}",
			       n_out++ ? "," : "", uses[u[i].use],
			       (unsigned long long)u[i].variant, u[i].n_tokens,
			       u[i].n_repaired, u[i].cfo_permille * 1e-3);
	printf("],");
}

static void print_repair(const struct kvc_gen *g)
{
	const struct kv_gen_repair *r = kvc_gen_repair(g);

	if (!r->n_layers)
		return;
	printf("\"repair\":{\"share\":%.3f,\"layers\":%u,\"stop_layer\":%u,"
	       "\"stopped_tokens\":%u,\"looked_tokens\":%u,"
	       "\"looked_layers\":%u,\"probed_tokens\":%u},",
	       r->permille * 1e-3, r->n_layers, r->stop_layer, r->n_stopped,
	       r->n_looked, r->looked_layers, r->n_probed);
}

/* Bytes of the character of UTF-8 that s begins with; 0: it does not. */
static size_t character(const char *s)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char c = (unsigned char)*s;
	const size_t n = c < 0x80	  ? 1
			 : c >> 5 == 0x6  ? 2
			 : c >> 4 == 0xe  ? 3
			 : c >> 3 == 0x1e ? 4
					  : 0;
	uint32_t u = n > 1 ? c & (0x7fu >> n) : c;

	for (size_t i = 1; i < n; i++) {
		if (((unsigned char)s[i] & 0xc0) != 0x80)
			return 0;
		u = u << 6 | ((unsigned char)s[i] & 0x3f);
	}
	return n && u >= least[n] && u <= 0x10ffff && u >> 11 != 0x1b ? n : 0;
}

static void print_json(const struct kvc_gen *g)
{
	const struct kv_gen_stats *st = kvc_gen_stats(g);
	const struct kv_token *t;
	uint32_t n;

	t = kvc_gen_tokens(g, &n);
	printf("{\"prompt_tokens\":%llu,\"prefix_tokens\":%llu,"
	       "\"chunk_tokens\":%llu,\"repaired_tokens\":%llu,\"moved_tokens\":%llu,\"ttft_ms\":%.3f,\"total_ms\":%.3f,"
	       "\"tokens\":[",
	       (unsigned long long)st->n_prompt,
	       (unsigned long long)st->n_prefix,
	       (unsigned long long)st->n_chunk,
	       (unsigned long long)st->n_repaired,
	       (unsigned long long)st->n_moved, (double)st->ttft_ns * 1e-6,
	       (double)st->total_ns * 1e-6);
	for (uint32_t i = 0; i < n; i++)
		if (isnan(t[i].logprob))
			printf("%s[%u,null]", i ? "," : "", t[i].id);
		else
			printf("%s[%u,%.6f]", i ? "," : "", t[i].id,
			       (double)t[i].logprob);
	printf("],");
	print_used(g);
	print_repair(g);
	printf("\"text\":\"");
	for (const char *s = kvc_gen_text(g); *s;) {
		const size_t len = character(s);

		if (!len) /* cut in the middle, or never one */
			printf("\\ufffd");
		else if ((unsigned char)*s < ' ' || *s == '"' || *s == '\\')
			printf("\\u%04x", (unsigned)(unsigned char)*s);
		else
			fwrite(s, 1, len, stdout);
		s += len ? len : 1;
	}
	printf("\"}\n");
}

static int generate(struct kvc *c, int argc, char **argv)
{
	struct request r = { .g = { .max_tokens = 64 } };
	struct kvc_gen *gen;
	int o, ret, cancelled = 0;

	optind = 1;
	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (option(&r, o))
			return cmd_usage(&cmd_generate);
	for (; optind < argc; optind++)
		if (add_part(&r, argv[optind], 0))
			return EXIT_USAGE;
	if (!r.g.n_parts && add_part(&r, "-", 0))
		return EXIT_USAGE;
	r.g.parts = r.parts;
	r.g.stop = r.stop;
	r.g.on_tokens = on_tokens;
	r.g.user = &r;
	signal(SIGINT, on_signal);
	ret = kvc_generate_start(c, &r.g, &gen);
	if (ret < 0)
		return cmd_fail("generate", ret);
	do {
		ret = kvc_generate_wait(c, gen, 100);
		if (interrupted && !cancelled++)
			(void)kvc_generate_cancel(c, gen); /* ends soon */
	} while (ret == -ETIMEDOUT);
	if (ret >= 0 && cmd_json)
		print_json(gen);
	else if (ret >= 0)
		printf("\n");
	kvc_generate_free(c, gen);
	for (uint32_t i = 0; i < r.n_texts; i++)
		free(r.texts[i]);
	return ret < 0 ? cmd_fail("generate", ret) : EXIT_DONE;
}

const struct cmd cmd_generate = {
	"generate", "[OPTIONS] [TEXT|@FILE|-]...",
	"text in, text out. Parts in order: --system T, --chunk T (reused), "
	"--question T or TEXT; --base T: not in the prompt, an earlier version of the part "
	"behind it,\nfrom which is taken what both have;\n--model NAME --max-tokens N --temperature X "
	"--top-k N --top-p X --min-p X --seed N\n--stop TEXT --logprobs "
	"--score --no-reuse --wait --deadline MS (of the first token)\n"
	"--split SEPARATOR (of the chunks that follow)\n"
	"--ape TEMPERATURE:SCALE (they stand side by side)\n"
	"--repair first|random|blend|craft|craft-blend@PERCENT|load, craft, craft-blend\n"
	"--focus (what the question does not look at is not repaired to the end)\n"
	"T is text itself; of a file it is @FILE, of standard input -: --chunk notes.txt "
	"is a chunk\nof nine characters. --no-reuse: no prefix is found or kept; a --chunk is, "
	"computed alone.",
	generate, 0
};
