/*
 * bench_rag.c - kvbench rag: questions over chunks of text
 *
 * FILE.jsonl has one object a line: system, chunks[], question, answer, kind.
 * Modes: full computes each prompt from nothing; prefix reuses what begins
 * alike; chunks lets each chunk be found at any place (or computes it alone).
 * Greedy, at most N_OUT tokens, stops at a newline; exact match after strip.
 *
 * Limit of the first token: the multiply-adds of the prompt tokens that had to
 * be computed, at oneDNN's bf16 rate.
 */
#include "tools/bench_rag.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define MAX_PARTS   64u
#define MAX_COMPANY 8u /* chunks of a question */
#define MAX_JOBS    64u
#define N_OUT	    16u
#define NEWLINE	    13u /* <0x0A> of the byte tokens */
#define N_DEFAULT   100u
#define N_QUICK	    20u
#define WAIT_MS	    60000
#define MAX_FORCED  8u /* tokens of an answer that are looked at */
#define MAX_LOGITS  8192u

/* Beside these, a selector of repair and a percentage: blend@15. */
static const char *const mode_names[] = { "full", "prefix", "chunks" };
static const char *const selectors[] = { "none",  "first", "random",
					 "blend", "craft", "craft-blend" };

/* ---- the questions ------------------------------------------------------ */

static int valid_item(const json_t *o)
{
	const json_t *chunks = json_object_get(o, "chunks");
	size_t i;
	json_t *c;

	if (!json_is_string(json_object_get(o, "system")) ||
	    !json_is_string(json_object_get(o, "question")) ||
	    !json_is_string(json_object_get(o, "answer")) ||
	    !json_is_array(chunks) || json_array_size(chunks) > MAX_PARTS - 2)
		return 0;
	json_array_foreach(chunks, i, c) if (!json_is_string(c)) return 0;
	return 1;
}

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

void rag_unload(struct rag *r)
{
	for (size_t i = 0; i < r->n_items; i++)
		json_decref(r->items[i]);
	free(r->items);
	r->items = NULL;
	r->n_items = 0;
}

static int add_item(struct rag *r, const char *line, size_t len)
{
	json_t *o = json_loadb(line, len, 0, NULL);
	json_t **p;

	if (!o || !valid_item(o)) {
		json_decref(o);
		return -EINVAL;
	}
	p = realloc(r->items, (r->n_items + 1) * sizeof(json_t *));
	if (!p) {
		json_decref(o);
		return -ENOMEM;
	}
	r->items = p;
	r->items[r->n_items++] = o;
	return 0;
}

int rag_load(struct rag *r, size_t n_default, size_t n_quick)
{
	const size_t max = r->b->n_items ? r->b->n_items
			   : r->b->quick ? n_quick
					 : n_default;
	FILE *f = fopen(r->b->file, "re");
	char *line = NULL;
	size_t room = 0;
	ssize_t len;
	int ret = 0;

	if (!f)
		return bench_fail(-errno, "%s", r->b->file);
	while (!ret && r->n_items < max && (len = getline(&line, &room, f)) > 0)
		ret = add_item(r, line, (size_t)len);
	if (ret)
		(void)bench_fail(ret, "%s:%zu", r->b->file, r->n_items + 1);
	else if (!r->n_items)
		ret = bench_fail(-ENODATA, "%s", r->b->file);
	free(line);
	(void)fclose(f);
	if (ret)
		rag_unload(r);
	return ret;
}

/* ---- one question ------------------------------------------------------- */

static int start_one(struct rag *r, const json_t *o, struct kvc_gen **out)
{
	static const uint32_t stop[] = { NEWLINE };
	const json_t *chunks = json_object_get(o, "chunks");
	struct kvc_part parts[MAX_PARTS + 1] = { 0 };
	uint32_t n = 0;
	size_t i;
	json_t *c;
	struct kvc_generate g = {
		.parts = parts,
		.flags = r->flags | (r->mode == FULL ? KV_GEN_NO_REUSE : 0),
		.max_tokens = N_OUT,
		.stop_tokens = stop,
		.n_stop_tokens = 1,
		.sqe_flags = KV_SQE_WAIT,
		.repair = r->repair,
		.repair_permille = r->repair_permille,
	};

	parts[n++] = (struct kvc_part){ .kind = KV_PART_TEXT,
					.flags = KV_PART_BOS,
					.text = text_of(o, "system") };
	json_array_foreach(chunks, i, c) parts[n++] = (struct kvc_part){
		.kind = KV_PART_TEXT,
		.flags = (r->mode == CHUNKS ? KV_PART_REUSE : 0) |
			 (r->scale > 0 ? KV_PART_PARALLEL : 0),
		.text = json_string_value(c),
		.temperature = r->temperature,
		.scale = r->scale,
	};
	parts[n++] = (struct kvc_part){ .kind = KV_PART_TEXT,
					.text = text_of(o, "question") };
	if (r->forced) {
		g.flags |= KV_GEN_LOGITS;
		g.n_logits = MAX_LOGITS;
		g.max_tokens = 1;
	}
	if (r->n_forced)
		parts[n++] = (struct kvc_part){ .kind = KV_PART_TOKENS,
						.tokens = r->forced,
						.n_tokens = r->n_forced };
	g.n_parts = n;
	return kvc_generate_start(r->c, &g, out);
}

int rag_matches(const char *text, const char *answer)
{
	size_t n;

	while (isspace((unsigned char)*text))
		text++;
	n = strlen(text);
	while (n && isspace((unsigned char)text[n - 1]))
		n--;
	return n == strlen(answer) && !memcmp(text, answer, n);
}

static void count_kind(struct tally *t, const char *name, int right)
{
	uint32_t i = 0;

	if (!name)
		return;
	while (i < t->n_kinds && strcmp(t->kinds[i].name, name) != 0)
		i++;
	if (i == t->n_kinds) {
		if (i == MAX_KINDS)
			return;
		t->kinds[t->n_kinds++] = (struct kind){ .name = name };
	}
	t->kinds[i].n++;
	t->kinds[i].n_right += right ? 1 : 0;
}

/* Of repair, and of looking for what it is worth. */
static double work(const struct kv_gen_stats *st,
		   const struct kv_gen_repair *how)
{
	const double layers = how->n_layers ? how->n_layers : 1;

	return (double)st->n_repaired +
	       ((double)how->n_looked * how->looked_layers -
		(double)how->n_stopped * (layers - how->stop_layer)) /
		       layers;
}

static void finish_one(struct rag *r, const json_t *o, struct kvc_gen *g)
{
	const int n = kvc_generate_wait(r->c, g, WAIT_MS);
	struct tally *t = &r->t;
	int right = 0;

	if (n < 0) {
		t->n_failed++;
		(void)bench_fail(n, "rag: %s", text_of(o, "question"));
	} else {
		const struct kv_gen_stats *st = kvc_gen_stats(g);

		right = rag_matches(kvc_gen_text(g), text_of(o, "answer"));
		t->right[t->n] = (unsigned char)right;
		t->ttft_ms[t->n] = (double)st->ttft_ns * 1e-6;
		/* chunks that were missing were computed too, each alone */
		t->floor_ms[t->n++] =
			(double)(st->n_prompt - st->n_prefix - st->n_chunk) *
			r->floor_ms_per_token;
		t->n_prompt += st->n_prompt;
		t->n_prefix += st->n_prefix;
		t->n_chunk += st->n_chunk;
		t->n_repaired += st->n_repaired;
		t->n_work += work(st, kvc_gen_repair(g));
		t->n_layers = kvc_gen_repair(g)->n_layers;
		t->n_probed += kvc_gen_repair(g)->n_probed;
		t->n_out += (uint64_t)n;
	}
	t->n_right += right ? 1 : 0;
	count_kind(t, text_of(o, "kind"), right);
	kvc_generate_free(r->c, g);
}

/* All questions, n_jobs in flight, in order. */
static int ask_all(struct rag *r)
{
	const size_t n_jobs = KV_MIN(r->b->n_jobs, MAX_JOBS);
	struct kvc_gen *gens[MAX_JOBS] = { 0 };
	size_t next = 0;
	int ret = 0;

	for (size_t i = 0; i < r->n_items; i++) {
		while (!ret && next < r->n_items && next < i + n_jobs) {
			ret = start_one(r, r->items[next],
					&gens[next % n_jobs]);
			next += ret ? 0 : 1;
		}
		if (i >= next)
			break;
		finish_one(r, r->items[i], gens[i % n_jobs]);
	}
	return ret;
}

/* ---- one mode ----------------------------------------------------------- */

static double percent(uint64_t part, uint64_t all)
{
	return all ? 100.0 * (double)part / (double)all : 0;
}

/*
 * Tokens times layers of a request whose chunks are all cached, of those of a full prefill:
 * what is no chunk, repair, and for blend all tokens of chunks through one layer.
 */
static void report_flops(struct rag *r)
{
	const struct tally *t = &r->t;
	double n, look = 0;

	if (!r->repair_permille || r->repair_permille > KV_REPAIR_ALL)
		return;
	if (r->repair >= KV_REPAIR_CRAFT)
		n = (double)t->n_chunk;
	else if (r->repair_permille < KV_REPAIR_ALL)
		n = (double)t->n_repaired * KV_REPAIR_ALL / r->repair_permille;
	else
		n = 0; /* nothing is cached */
	if (r->repair == KV_REPAIR_BLEND && t->n_layers)
		look = n / t->n_layers;
	else if (r->repair == KV_REPAIR_CRAFT_BLEND && t->n_layers)
		look = (double)t->n_repaired * KV_REPAIR_ALL /
		       r->repair_permille / t->n_layers;
	bench_put(r->b,
		  100 * ((double)t->n_prompt - n + look + t->n_work) /
			  (double)t->n_prompt,
		  "%", "rag.%s.flop_share", r->name);
}

static void report_exact(const struct rag *r, const char *mode)
{
	const struct tally *t = &r->t;

	bench_put(r->b, percent(t->n_right, r->n_items), "%",
		  "rag.%s.exact_match", mode);
	for (uint32_t i = 0; i < t->n_kinds; i++)
		bench_put(r->b, percent(t->kinds[i].n_right, t->kinds[i].n),
			  "%", "rag.%s.exact_match.%.16s", mode,
			  t->kinds[i].name);
}

static void report(struct rag *r, double wall_s)
{
	const char *mode = r->name;
	struct tally *t = &r->t;
	struct bench *b = r->b;
	double p50;

	report_exact(r, mode);
	if (!strcmp(mode, "chunks")) /* by its other name */
		report_exact(r, "naive");
	if (!strcmp(mode, "naive"))
		report_exact(r, "chunks");
	p50 = bench_quantile(t->ttft_ms, t->n, 0.5);
	bench_put(b, p50, "ms", "rag.%s.ttft_p50_ms", mode);
	bench_put(b, bench_quantile(t->ttft_ms, t->n, 0.99), "ms",
		  "rag.%s.ttft_p99_ms", mode);
	if (r->floor_ms_per_token > 0)
		bench_put(b, p50 / bench_quantile(t->floor_ms, t->n, 0.5), "x",
			  "rag.%s.ttft_ratio", mode);
	bench_put(b, (double)t->n_out / wall_s, "tokens/s",
		  "rag.%s.tokens_per_s", mode);
	bench_put(b, (double)t->n_prompt / wall_s, "tokens/s",
		  "rag.%s.prompt_tokens_per_s", mode);
	bench_put(b, percent(t->n_prefix, t->n_prompt), "%",
		  "rag.%s.prefix_hits", mode);
	bench_put(b, percent(t->n_chunk, t->n_prompt), "%", "rag.%s.chunk_hits",
		  mode);
	if (r->repair) {
		bench_put(b, percent(t->n_repaired, t->n_prompt), "%",
			  "rag.%s.repaired", mode);
		bench_put(b, 100 * t->n_work / (double)t->n_prompt, "%",
			  "rag.%s.repair_work", mode);
		report_flops(r);
	}
	bench_put(b, (double)r->n_items, "questions", "rag.%s.questions", mode);
}

/* Bytes of frames of the tenant; 0 when nobody may ask. */
static uint64_t kv_in_memory(struct kvc *c)
{
	json_t *j;
	char *text;
	uint64_t n;

	if (kvc_query(c, "pages", NULL, &text) < 0)
		return 0;
	j = json_loads(text, 0, NULL);
	free(text);
	n = (uint64_t)json_integer_value(
		json_object_get(json_array_get(j, 0), "mapped_bytes"));
	json_decref(j);
	return n;
}

/*
 * Every chunk once in the company of chunks of other questions, under the same system
 * text: place j of a request is the chunk j of the question (j + 1) * STRIDE further
 * on; the last comes first.
 */
#define STRIDE 7u

static const json_t *company(const struct rag *r, size_t i, size_t j)
{
	const char *system = text_of(r->items[i], "system");
	size_t left = (j + 1) * STRIDE;

	while (left) {
		i = (i + 1) % r->n_items;
		left -= !strcmp(text_of(r->items[i], "system"), system);
	}
	return json_array_get(json_object_get(r->items[i], "chunks"), j);
}

static int prime_one(struct rag *r, size_t i)
{
	struct kvc_part parts[MAX_PARTS] = { 0 };
	struct kvc_generate g = {
		.parts = parts,
		.max_tokens = 1,
		.sqe_flags = KV_SQE_WAIT,
		.repair = KV_REPAIR_CRAFT,
		.repair_permille = KV_REPAIR_ALL,
	};
	struct kvc_gen *gen = NULL;
	int ret;

	parts[g.n_parts++] =
		(struct kvc_part){ .kind = KV_PART_TEXT,
				   .flags = KV_PART_BOS,
				   .text = text_of(r->items[i], "system") };
	for (size_t j = MAX_COMPANY; j-- > 0;) {
		const json_t *c = company(r, i, j);

		if (c)
			parts[g.n_parts++] = (struct kvc_part){
				.kind = KV_PART_TEXT,
				.flags = KV_PART_REUSE,
				.text = json_string_value(c),
			};
	}
	parts[g.n_parts++] =
		(struct kvc_part){ .kind = KV_PART_TEXT, .text = "Question:" };
	ret = kvc_generate(r->c, &g, &gen);
	if (ret >= 0)
		r->prime_s += (double)kvc_gen_stats(gen)->ttft_ns * 1e-9;
	kvc_generate_free(r->c, gen);
	return ret < 0 ? bench_fail(ret, "rag: priming") : 0;
}

static size_t n_variants(struct rag *r)
{
	size_t n = 0;
	char *json;

	if (kvc_query(r->c, "chunks", "", &json) < 0)
		return 0;
	for (const char *at = json; (at = strstr(at, "\"variant\"")); at++)
		n++;
	free(json);
	return n;
}

/* Time of the engine for what the variants look at, after the answers. */
static double measure_s(struct rag *r)
{
	static const char key[] = "\nkvd_variants_layer_seconds_sum ";
	const char *at;
	double s = 0;
	char *text;

	if (kvc_query(r->c, "metrics", "", &text) < 0)
		return 0;
	at = strstr(text, key);
	if (at)
		s = atof(at + sizeof(key) - 1);
	free(text);
	return s;
}

static int prime(struct rag *r)
{
	size_t n = 0, before = 1;
	int ret = 0;

	r->prime_s = 0;
	for (size_t i = 0; i < r->n_items && !ret; i++)
		ret = prime_one(r, i);
	while (!ret && n != before) {
		(void)nanosleep(&(struct timespec){ .tv_nsec = 500000000 },
				NULL);
		before = n;
		n = n_variants(r);
	}
	if (!ret && r->prime_s > 0)
		bench_put(r->b, 100 * measure_s(r) / r->prime_s, "%",
			  "reuse.stats.overhead");
	bench_put(r->b, (double)n, "variants", "rag.%s.variants", r->name);
	return ret;
}

/* ---- modes against each other ---------------------------------------------- */

static void compare(struct rag *r)
{
	unsigned char *right;

	for (uint32_t k = 0; k < r->n_ran && !r->t.n_failed; k++) {
		uint32_t n[2] = { 0 };

		if (strcmp(r->ran[k].name, "chunks") != 0 &&
		    strcmp(r->ran[k].name, "naive") != 0 &&
		    strncmp(r->ran[k].name, "random", 6) != 0)
			continue;
		for (size_t i = 0; i < r->n_items; i++)
			if (r->t.right[i] != r->ran[k].right[i])
				n[r->t.right[i]]++;
		bench_put(r->b, bench_mcnemar(n[0], n[1]), "p",
			  "rag.%s.mcnemar_p.%s", r->name, r->ran[k].name);
	}
	right = malloc(r->n_items);
	if (!right || r->n_ran == MAX_MODES || r->t.n_failed) {
		free(right);
		return;
	}
	memcpy(right, r->t.right, r->n_items);
	memcpy(r->ran[r->n_ran].name, r->name, sizeof(r->name));
	r->ran[r->n_ran++].right = right;
}

/* Logits behind n_forced tokens of the answer: kept, or compared with those. */
static int diverge(struct rag *r, const json_t *o, float **first, double *kl)
{
	struct kvc_gen *g;
	const float *x;
	uint32_t n;
	int ret = start_one(r, o, &g);

	if (ret)
		return ret;
	ret = kvc_generate_wait(r->c, g, WAIT_MS);
	x = kvc_gen_logits(g);
	n = kvc_gen_n_logits(g);
	if (ret >= 0 && (!x || n > MAX_LOGITS))
		ret = -ENOTSUP;
	if (ret >= 0 && *first) {
		*kl += bench_kl(*first, x, n);
	} else if (ret >= 0) {
		*first = malloc(n * sizeof(**first));
		if (*first)
			memcpy(*first, x, n * sizeof(**first));
		else
			ret = -ENOMEM;
	}
	kvc_generate_free(r->c, g);
	return ret < 0 ? ret : 0;
}

static int diverge_one(struct rag *r, size_t i, double *kl, size_t *n_all)
{
	const char *answer = text_of(r->items[i], "answer");
	uint32_t tokens[MAX_FORCED];
	int n = kvc_tokenize(r->c, NULL, answer, strlen(answer), tokens,
			     MAX_FORCED);
	int ret = 0;

	if (n < 0)
		return n;
	n = KV_MIN(n, (int)MAX_FORCED);
	r->forced = tokens;
	for (r->n_forced = 0; (int)r->n_forced < n && !ret; r->n_forced++) {
		ret = diverge(r, r->items[i],
			      &r->first[i * MAX_FORCED + r->n_forced], kl);
		(*n_all)++;
	}
	r->forced = NULL;
	r->n_forced = 0;
	return ret;
}

static int measure_kl(struct rag *r)
{
	double sum = 0;
	size_t n_all = 0;
	int ret = 0;

	if (!r->first)
		r->first = calloc(r->n_items * MAX_FORCED, sizeof(*r->first));
	if (!r->first)
		return -ENOMEM;
	for (size_t i = 0; i < r->n_items && !ret; i++)
		ret = diverge_one(r, i, &sum, &n_all);
	if (!ret && n_all)
		bench_put(r->b, sum / (double)n_all, "nats", "rag.%s.kl",
			  r->name);
	return ret;
}

/* On a daemon of its own, so that no mode finds what another has kept. */
int rag_run(struct rag *r)
{
	struct kvc_options opt = { .name = "kvbench" };
	double *room =
		calloc(2 * r->n_items + r->n_items / 8 + 1, sizeof(*room));
	struct bench_daemon d;
	uint64_t t0;
	int ret;

	if (!room)
		return -ENOMEM;
	r->t = (struct tally){
		.ttft_ms = room,
		.floor_ms = room + r->n_items,
		.right = (unsigned char *)(room + 2 * r->n_items),
	};
	ret = bench_daemon_start(r->b, &d, 1);
	if (ret)
		goto out_free;
	opt.socket = d.socket;
	ret = kvc_open(&r->c, &opt);
	if (ret) {
		(void)bench_fail(ret, "rag: %s", d.socket);
		goto out_stop;
	}
	ret = r->prime && r->repair >= KV_REPAIR_CRAFT ? prime(r) : 0;
	t0 = clock_ns();
	if (!ret)
		ret = ask_all(r);
	r->t.kv_bytes = kv_in_memory(r->c);
	if (ret)
		(void)bench_fail(ret, "rag");
	else
		r->report(r, (double)(clock_ns() - t0) * 1e-9);
	if (!ret && r->report == report)
		compare(r);
	if (!ret && r->b->kl && r->report == report) {
		ret = measure_kl(r);
		if (ret)
			(void)bench_fail(ret, "rag: --kl");
	}
	if (!ret && r->t.n_failed)
		ret = -EIO;
	kvc_close(r->c);
out_stop:
	bench_daemon_stop(&d);
out_free:
	free(room);
	return ret;
}

/* Two bytes a weight, two operations a weight and token. */
static void measure_floor(struct rag *r)
{
	struct bench_side side = { .run = bench_gemm_run };
	struct bench_gemm *g;
	struct stat st;
	int ret;

	if (stat(r->b->model, &st))
		return;
	ret = bench_gemm_new(&g, 512, 2048, 2048, 1, r->b->n_threads);
	if (ret) {
		bench_note("rag.gemm_gflops skipped: %s", bench_no_gemm(ret));
		return;
	}
	side.arg = g;
	if (!bench_rounds(&side, 1, 3, 0.3)) {
		const double gflops = bench_median(&side);

		bench_put(r->b, gflops, "GFLOP/s", "rag.gemm_gflops");
		r->floor_ms_per_token = (double)st.st_size / gflops * 1e-6;
	}
	bench_gemm_free(g);
}

/* ape, or ape@TEMPERATURE:SCALE */
static int set_ape(struct rag *r, const char *word, size_t len)
{
	char *end = r->name + 3;

	if (len >= sizeof(r->name))
		return -EINVAL;
	memcpy(r->name, word, len);
	r->name[len] = 0;
	r->mode = CHUNKS;
	r->repair = r->repair_permille = 0;
	r->temperature = r->scale = 1;
	if (!*end)
		return 0;
	r->temperature = strtof(end + 1, &end);
	if (*end == ':')
		r->scale = strtof(end + 1, &end);
	return !*end && r->temperature > 0 && r->scale > 0 ? 0 : -EINVAL;
}

int rag_set_mode(struct rag *r, const char *word, size_t len)
{
	static const char focus[] = ":focus";
	const char *at = memchr(word, '@', len);
	const size_t n = at ? (size_t)(at - word) : len;
	char *tail;

	r->flags = 0;
	r->temperature = r->scale = 0;
	if (n == 3 && !memcmp(word, "ape", 3))
		return set_ape(r, word, len);

	r->repair = r->repair_permille = 0;
	if (len >= sizeof(r->name))
		return -EINVAL;
	memcpy(r->name, word, len);
	r->name[len] = 0;
	tail = strstr(r->name, focus);
	if (tail && !tail[sizeof(focus) - 1]) {
		int ret;

		ret = rag_set_mode(r, word, len - (sizeof(focus) - 1));
		memcpy(r->name, word, len);
		r->name[len] = 0;
		r->flags = KV_GEN_FOCUS;
		return r->repair ? ret : -EINVAL;
	}
	if (!strcmp(r->name, "craft") || !strcmp(r->name, "craft-blend")) {
		r->mode = CHUNKS; /* as many as CFO says */
		r->repair = r->name[5] ? KV_REPAIR_CRAFT_BLEND
				       : KV_REPAIR_CRAFT;
		r->repair_permille = KV_REPAIR_BY_CFO;
		return 0;
	}
	if (!strcmp(r->name, "naive")) { /* chunks, by its other name */
		r->mode = CHUNKS;
		return 0;
	}
	for (uint32_t i = 0; i < N_MODES && !at; i++)
		if (!strcmp(r->name, mode_names[i])) {
			r->mode = (enum mode)i;
			return 0;
		}
	for (uint32_t i = 1; i < KV_ARRAY_LEN(selectors) && at; i++)
		if (strlen(selectors[i]) == n &&
		    !memcmp(selectors[i], word, n)) {
			const double percent_of = atof(r->name + n + 1);

			if (!(percent_of >= 0 && percent_of <= 100))
				return -EINVAL;
			r->mode = CHUNKS;
			r->repair = i;
			r->repair_permille = (uint32_t)(percent_of * 10 + 0.5);
			return 0;
		}
	return -EINVAL;
}

int bench_rag(struct bench *b)
{
	const char *word = strcmp(b->mode, "all") ? b->mode
						  : "full,prefix,chunks";
	struct rag r = { .b = b, .report = report, .prime = 1 };
	int ret = rag_load(&r, N_DEFAULT, N_QUICK);

	if (ret)
		return ret;
	measure_floor(&r);
	while (*word && !ret) {
		const size_t len = strcspn(word, ",");

		ret = rag_set_mode(&r, word, len);
		if (ret)
			(void)bench_fail(ret, "rag: no mode %s", word);
		else
			ret = rag_run(&r);
		word += len + (word[len] == ',');
	}
	for (uint32_t i = 0; i < r.n_ran; i++)
		free(r.ran[i].right);
	for (size_t i = 0; r.first && i < r.n_items * MAX_FORCED; i++)
		free(r.first[i]);
	free(r.first);
	rag_unload(&r);
	return ret;
}
