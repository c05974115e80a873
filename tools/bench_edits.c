/*
 * bench_edits.c - kvbench edits: what moving KV behind an edit does to what comes next
 *
 * FILE.jsonl has one edit of a source file a line: before, removed, inserted, after, next. The
 * old text is asked once, so that it is cached; then the new one, computed from nothing, and
 * as a version of the old one with a share computed again (PIE, He et al. 2024,
 * arXiv:2407.03157). Behind it come the first tokens of what follows in the file, one
 * more each time: at each place the distributions of the next token are compared. Then each
 * goes on by itself, greedily.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/bench_rag.h"

#define N_PLACES 8u
#define N_OUT	 16u
#define N_LOGITS 8192u
#define WAIT_MS	 60000
#define N_QUICK	 2u

static const struct how {
	const char *name;
	uint32_t permille;
} hows[] = {
	{ "moved", 0 },	     { "blend@5", 50 },	    { "blend@10", 100 },
	{ "blend@30", 300 }, { "blend@100", 1000 },
};
#define N_HOWS KV_ARRAY_LEN(hows)

struct edit_tally {
	double kl;
	uint32_t n, n_agree, n_edits, n_exact;
	uint64_t n_prompt, n_moved, n_repaired;
};

struct edits {
	struct bench *b;
	struct kvc *c;
	char old[16384], new[16384];
	uint32_t next[N_PLACES];
	uint32_t n_next;
	float full[N_PLACES][N_LOGITS];
	uint32_t n_logits, out[N_OUT], n_out;
	struct edit_tally t[N_HOWS];
};

/* ---- one request ------------------------------------------------------------------- */

/* The new text (of the old one, or NULL), then n of next. */
static int ask(struct edits *e, const struct how *how, uint32_t n,
	       uint32_t max_tokens, struct kvc_gen **out)
{
	struct kvc_part parts[3];
	uint32_t n_parts = 0;
	struct kvc_generate g = {
		.parts = parts,
		.flags = KV_GEN_LOGITS | KV_GEN_IGNORE_EOS |
			 (how ? 0 : KV_GEN_NO_REUSE),
		.max_tokens = max_tokens,
		.n_logits = N_LOGITS,
		.sqe_flags = KV_SQE_WAIT,
		.repair = how && how->permille ? KV_REPAIR_BLEND : 0,
		.repair_permille = how ? how->permille : 0,
	};

	if (how)
		parts[n_parts++] =
			(struct kvc_part){ .flags = KV_PART_BASE | KV_PART_BOS,
					   .text = e->old };
	parts[n_parts++] =
		(struct kvc_part){ .flags = KV_PART_BOS, .text = e->new };
	if (n)
		parts[n_parts++] = (struct kvc_part){ .kind = KV_PART_TOKENS,
						      .tokens = e->next,
						      .n_tokens = n };
	g.n_parts = n_parts;
	return kvc_generate(e->c, &g, out);
}

static uint32_t top_of(const float *x, uint32_t n)
{
	uint32_t top = 0;

	for (uint32_t i = 1; i < n; i++)
		if (x[i] > x[top])
			top = i;
	return top;
}

/* Place n of the edit in one way: kept, or compared with that. */
static int look(struct edits *e, size_t i_how, uint32_t n)
{
	const struct how *how = i_how < N_HOWS ? &hows[i_how] : NULL;
	struct edit_tally *t = how ? &e->t[i_how] : NULL;
	struct kvc_gen *g = NULL;
	int ret = ask(e, how, n, 1, &g);
	const float *x;

	if (ret >= 0 && kvc_gen_n_logits(g) > N_LOGITS)
		ret = -ENOTSUP;
	x = ret < 0 ? NULL : kvc_gen_logits(g);
	if (x && !how) {
		e->n_logits = kvc_gen_n_logits(g);
		memcpy(e->full[n], x, e->n_logits * sizeof(*x));
	} else if (x) {
		t->kl += bench_kl(e->full[n], x, e->n_logits);
		t->n_agree += top_of(x, e->n_logits) ==
			      top_of(e->full[n], e->n_logits);
		t->n++;
	}
	if (x && how && !n) {
		t->n_prompt += kvc_gen_stats(g)->n_prompt;
		t->n_moved += kvc_gen_stats(g)->n_moved;
		t->n_repaired += kvc_gen_stats(g)->n_repaired;
	}
	kvc_generate_free(e->c, g);
	return ret < 0 ? ret : 0;
}

/* How it goes on by itself. */
static int go_on(struct edits *e, size_t i_how)
{
	const struct how *how = i_how < N_HOWS ? &hows[i_how] : NULL;
	const struct kv_token *t;
	struct kvc_gen *g = NULL;
	int ret = ask(e, how, 0, N_OUT, &g);
	uint32_t n = 0, same = 0;

	if (ret >= 0) {
		t = kvc_gen_tokens(g, &n);
		for (uint32_t i = 0; i < n && !how; i++)
			e->out[i] = t[i].id;
		while (how && same < n && same < e->n_out &&
		       t[same].id == e->out[same])
			same++;
		if (!how)
			e->n_out = n;
	}
	if (how) {
		e->t[i_how].n_edits++;
		e->t[i_how].n_exact += same == e->n_out;
	}
	kvc_generate_free(e->c, g);
	return ret < 0 ? ret : 0;
}

/* ---- all edits ----------------------------------------------------------------------- */

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

static int put_text(char *out, size_t n, const json_t *o, const char *middle)
{
	const int len = snprintf(out, n, "%s%s%s", text_of(o, "before"),
				 text_of(o, middle), text_of(o, "after"));

	return len < 0 || (size_t)len >= n ? -E2BIG : 0;
}

static int edit_one(struct edits *e, const json_t *o)
{
	static const char *const keys[] = { "before", "removed", "inserted",
					    "after", "next" };
	const struct kvc_part old = { .flags = KV_PART_BOS, .text = e->old };
	const struct kvc_generate first = { .parts = &old,
					    .n_parts = 1,
					    .max_tokens = 1,
					    .sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *g = NULL;
	int ret = 0;

	for (size_t i = 0; i < KV_ARRAY_LEN(keys); i++)
		if (!text_of(o, keys[i]))
			return -EINVAL;
	if (put_text(e->old, sizeof(e->old), o, "removed") ||
	    put_text(e->new, sizeof(e->new), o, "inserted"))
		return -E2BIG;
	ret = kvc_tokenize(e->c, NULL, text_of(o, "next"),
			   strlen(text_of(o, "next")), e->next, N_PLACES);
	if (ret < 0)
		return ret;
	e->n_next = KV_MIN((uint32_t)ret, N_PLACES);
	ret = kvc_generate(e->c, &first, &g);
	kvc_generate_free(e->c, g);
	for (size_t k = 0; k <= N_HOWS && ret >= 0; k++) {
		const size_t how = k ? k - 1 : N_HOWS; /* full comes first */

		for (uint32_t n = 0; n < e->n_next && ret >= 0; n++)
			ret = look(e, how, n);
		if (ret >= 0)
			ret = go_on(e, how);
	}
	return ret < 0 ? ret : 0;
}

static void report(struct edits *e)
{
	for (size_t i = 0; i < N_HOWS; i++) {
		const struct edit_tally *t = &e->t[i];
		const char *name = hows[i].name;

		bench_put(e->b, t->kl / t->n, "nats", "edits.%s.kl", name);
		bench_put(e->b, 100.0 * t->n_agree / t->n, "%",
			  "edits.%s.agree", name);
		bench_put(e->b, 100.0 * t->n_exact / t->n_edits, "%",
			  "edits.%s.exact_match", name);
		bench_put(e->b,
			  100.0 * (double)t->n_moved / (double)t->n_prompt, "%",
			  "edits.%s.moved", name);
		bench_put(e->b,
			  100.0 * (double)t->n_repaired / (double)t->n_prompt,
			  "%", "edits.%s.repaired", name);
	}
}

static int edit_all(struct edits *e)
{
	FILE *f = fopen(e->b->file, "re");
	const size_t max = e->b->n_items ? e->b->n_items
			   : e->b->quick ? N_QUICK
					 : SIZE_MAX;
	char *line = NULL;
	size_t room = 0, n = 0;
	int ret = f ? 0 : -errno;

	while (!ret && n < max && getline(&line, &room, f) > 0) {
		json_t *o = json_loads(line, 0, NULL);

		n++;
		ret = json_is_object(o) ? edit_one(e, o) : -EINVAL;
		json_decref(o);
	}
	if (!ret && !n)
		ret = -ENODATA;
	if (ret)
		(void)bench_fail(ret, "edits: %s:%zu", e->b->file, n);
	free(line);
	if (f)
		(void)fclose(f);
	if (!ret) {
		bench_put(e->b, (double)n, "edits", "edits.n");
		report(e);
	}
	return ret;
}

int bench_edits(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct edits *e = calloc(1, sizeof(*e));
	struct bench_daemon d;
	int ret;

	if (!e)
		return -ENOMEM;
	e->b = b;
	ret = bench_daemon_start(b, &d, 1);
	if (!ret) {
		opt.socket = d.socket;
		ret = kvc_open(&e->c, &opt);
		if (ret)
			(void)bench_fail(ret, "edits: %s", d.socket);
		else
			ret = edit_all(e);
		if (e->c)
			kvc_close(e->c);
		bench_daemon_stop(&d);
	}
	free(e);
	return ret;
}
