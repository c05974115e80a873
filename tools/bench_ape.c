/*
 * bench_ape.c - kvbench ape: a needle in eight chunks side by side
 *
 * A question about one fact; the chunk that has it stands among seven of other questions,
 * each time in another place. Three ways: one after the other (a full prefill), side by side
 * with nothing before them (plain parallel), side by side behind the shared prefix with a
 * temperature and a scale (APE, Yang et al. 2025, arXiv:2502.05431). These two are looked for
 * on a third of the questions, one after the other from 1 to 0.1; what is
 * told of them is measured on the others.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/bench_rag.h"

#define N_CHUNKS 8u
#define N_STEPS	 10u /* of the grid: 0.1 .. 1 */
#define N_OUT	 16u
#define NEWLINE	 13u
#define WAIT_MS	 60000
#define STRIDE	 37u /* to the questions that the others are of */

enum how { SEQUENTIAL, PARALLEL, APE };

struct ape {
	struct bench *b;
	struct rag r; /* the questions */
	struct kvc *c;
	size_t *single, n_single; /* those of one fact */
	const char *(*chunks)[N_CHUNKS]; /* [n_single] */
	size_t n_search; /* the first so many are for the search */
	enum how how;
	float temperature, scale;
};

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

/* ---- the haystacks ------------------------------------------------------------- */

/* The chunk of the question that says the answer, or NULL. */
static const char *needle_of(const json_t *o)
{
	const json_t *chunks = json_object_get(o, "chunks");
	const char *found = NULL;
	size_t i;
	json_t *c;

	json_array_foreach(chunks, i, c)
	{
		if (!strstr(json_string_value(c), text_of(o, "answer")))
			continue;
		if (found)
			return NULL;
		found = json_string_value(c);
	}
	return found;
}

/* Chunks of other questions, none of which says the answer. */
static int fill(struct ape *a, size_t i_item, size_t i)
{
	const json_t *o = a->r.items[i_item];
	const size_t place = i % N_CHUNKS;
	size_t at = i_item, tries = 0;

	a->chunks[i][place] = needle_of(o);
	for (size_t k = 0; k < N_CHUNKS; k++) {
		const char *hay = NULL;

		while (k != place && !hay && tries++ < a->r.n_items) {
			at = (at + STRIDE) % a->r.n_items;
			hay = json_string_value(json_array_get(
				json_object_get(a->r.items[at], "chunks"), 0));
			if (hay && strstr(hay, text_of(o, "answer")))
				hay = NULL;
		}
		if (k != place && !hay)
			return -ENODATA;
		if (k != place)
			a->chunks[i][k] = hay;
	}
	return 0;
}

static int build(struct ape *a)
{
	int ret = 0;

	a->single = calloc(a->r.n_items, sizeof(*a->single));
	a->chunks = calloc(a->r.n_items, sizeof(*a->chunks));
	if (!a->single || !a->chunks)
		return -ENOMEM;
	for (size_t i = 0; i < a->r.n_items && !ret; i++) {
		const char *kind = text_of(a->r.items[i], "kind");

		if (!kind || strcmp(kind, "single") != 0 ||
		    !needle_of(a->r.items[i]))
			continue;
		a->single[a->n_single] = i;
		ret = fill(a, i, a->n_single++);
	}
	a->n_search = a->n_single / 3;
	return a->n_search ? ret : -ENODATA;
}

/* ---- one question ------------------------------------------------------------------ */

static int start(struct ape *a, size_t i, struct kvc_gen **out)
{
	static const uint32_t stop[] = { NEWLINE };
	const json_t *o = a->r.items[a->single[i]];
	const struct kvc_part system = { .flags = KV_PART_BOS,
					 .text = text_of(o, "system") };
	struct kvc_part parts[N_CHUNKS + 2];
	uint32_t n = 0;
	const struct kvc_generate g = {
		.parts = parts,
		.n_parts = N_CHUNKS + 2,
		.flags = a->how == SEQUENTIAL ? KV_GEN_NO_REUSE : 0,
		.max_tokens = N_OUT,
		.stop_tokens = stop,
		.n_stop_tokens = 1,
		.sqe_flags = KV_SQE_WAIT,
	};

	if (a->how != PARALLEL)
		parts[n++] = system;
	for (uint32_t k = 0; k < N_CHUNKS; k++)
		parts[n++] = (struct kvc_part){
			.flags = a->how == SEQUENTIAL
					 ? 0
					 : KV_PART_REUSE | KV_PART_PARALLEL,
			.text = a->chunks[i][k],
			.temperature = a->how == SEQUENTIAL ? 0
							    : a->temperature,
			.scale = a->how == SEQUENTIAL ? 0 : a->scale,
		};
	if (a->how == PARALLEL)
		parts[n++] = system;
	parts[n++] = (struct kvc_part){ .text = text_of(o, "question") };
	return kvc_generate_start(a->c, &g, out);
}

/* Per cent of the questions [from, to) that are answered; negative: -errno. */
static double ask(struct ape *a, size_t from, size_t to)
{
	const size_t n_jobs = KV_MIN(a->b->n_jobs, 16u);
	struct kvc_gen *gens[16];
	size_t next = from, n_right = 0;
	int ret = 0;

	for (size_t i = from; i < to && ret >= 0; i++) {
		while (ret >= 0 && next < to && next < i + n_jobs) {
			ret = start(a, next, &gens[next % n_jobs]);
			next += ret >= 0;
		}
		if (i >= next)
			break;
		ret = kvc_generate_wait(a->c, gens[i % n_jobs], WAIT_MS);
		if (ret >= 0)
			n_right += (size_t)rag_matches(
				kvc_gen_text(gens[i % n_jobs]),
				text_of(a->r.items[a->single[i]], "answer"));
		kvc_generate_free(a->c, gens[i % n_jobs]);
	}
	return ret < 0 ? ret : 100.0 * (double)n_right / (double)(to - from);
}

/* ---- the search ---------------------------------------------------------------------- */

/* The best of the grid for *what, the other one staying; of equals the first. */
static int search(struct ape *a, float *what)
{
	const unsigned int n = a->b->quick ? 3 : N_STEPS;
	double best = -1;
	float found = 1;

	for (unsigned int k = 0; k < n; k++) {
		double right;

		*what = (float)(N_STEPS - k) / N_STEPS;
		right = ask(a, 0, a->n_search);
		if (right < 0)
			return (int)right;
		bench_put(a->b, right, "%", "ape.%.1f:%.1f.exact_match",
			  (double)a->temperature, (double)a->scale);
		if (right > best) {
			best = right;
			found = *what;
		}
	}
	*what = found;
	return 0;
}

static int measure(struct ape *a)
{
	double right[APE + 1];
	int ret;

	a->how = APE;
	a->temperature = a->scale = 1;
	ret = search(a, &a->temperature);
	if (!ret)
		ret = search(a, &a->scale);
	if (ret)
		return ret;
	bench_put(a->b, (double)a->temperature, "x", "ape.temperature");
	bench_put(a->b, (double)a->scale, "x", "ape.scale");
	right[APE] = ask(a, a->n_search, a->n_single);
	a->temperature = a->scale = 1;
	for (a->how = SEQUENTIAL; a->how < APE; a->how++)
		right[a->how] = ask(a, a->n_search, a->n_single);
	for (int i = SEQUENTIAL; i <= APE; i++)
		if (right[i] < 0)
			return (int)right[i];
	bench_put(a->b, (double)(a->n_single - a->n_search), "questions",
		  "ape.questions");
	bench_put(a->b, right[SEQUENTIAL], "%", "ape.sequential.exact_match");
	bench_put(a->b, right[PARALLEL], "%", "ape.parallel.exact_match");
	bench_put(a->b, right[APE], "%", "ape.exact_match");
	bench_put(a->b, right[APE] - right[PARALLEL], "points", "ape.gain");
	bench_put(a->b,
		  right[SEQUENTIAL] > 0 ? right[APE] / right[SEQUENTIAL] : 0,
		  "x", "ape.of_sequential");
	return 0;
}

int bench_ape(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct ape a = { .b = b, .r = { .b = b } };
	struct bench_daemon d;
	int ret = rag_load(&a.r, 1000, 60);

	if (ret)
		return ret;
	ret = build(&a);
	if (ret) {
		(void)bench_fail(ret, "ape: %s: no questions of one fact",
				 b->file);
		goto out;
	}
	ret = bench_daemon_start(b, &d, 1);
	if (ret)
		goto out;
	opt.socket = d.socket;
	ret = kvc_open(&a.c, &opt);
	if (!ret) {
		ret = measure(&a);
		kvc_close(a.c);
	}
	if (ret)
		(void)bench_fail(ret, "ape");
	bench_daemon_stop(&d);
out:
	free(a.single);
	free(a.chunks);
	rag_unload(&a.r);
	return ret;
}
