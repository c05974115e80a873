/*
 * emit.c - what a step gave: tokens and text for the client, stops, scores
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"

/* enum kv_end of the ABI. */
enum { END_LENGTH = 1, END_STOP = 2, END_EOS = 3, END_SCORED = 4 };

static int text_room(struct gen *g, uint32_t n)
{
	char *t;

	if (g->req->n_text + n + 1 <= g->n_text_room)
		return 0;
	t = realloc(g->text, 2 * (g->req->n_text + n + 64));
	if (!t)
		return -ENOMEM;
	g->text = t;
	g->n_text_room = 2 * (g->req->n_text + n + 64);
	return 0;
}

static int emit(struct gen *g, uint32_t id, float logprob)
{
	struct serve_gen *r = g->req;
	const struct tokenizer *tok = llama_tokenizer(g->model->llama);
	uint32_t n = 0;
	char piece[256];

	if (!(r->flags & SERVE_GEN_NO_TEXT))
		n = tokenizer_piece(tok, id, piece, sizeof(piece));
	n = KV_MIN(n, (uint32_t)sizeof(piece));
	if (text_room(g, n))
		return -ENOMEM;
	r->tokens[r->n_out++] =
		(struct serve_token){ id, logprob, r->n_text, n };
	memcpy(g->text + r->n_text, piece, n);
	r->n_text += n;
	g->text[r->n_text] = 0;
	r->text = NULL;
	return 0;
}

/* A stop string that ends in the newest piece: cut the text before it. */
static int hit_stop(struct gen *g, uint32_t old_len)
{
	struct serve_gen *r = g->req;

	for (uint32_t i = 0; i < r->n_stop; i++) {
		const size_t len = strlen(r->stop[i]);
		size_t at = old_len + 1 > len ? old_len + 1 - len : 0;

		for (; len && at + len <= r->n_text; at++) {
			if (memcmp(g->text + at, r->stop[i], len))
				continue;
			r->n_text = (uint32_t)at;
			g->text[at] = 0;
			return 1;
		}
	}
	return 0;
}

/*
 * Bytes at the end of the text that may turn out to begin a stop string: not
 * shown before that is known.
 */
static uint32_t held_back(const struct gen *g)
{
	const struct serve_gen *r = g->req;
	uint32_t most = 0;

	for (uint32_t i = 0; i < r->n_stop; i++) {
		const size_t len = strlen(r->stop[i]);
		uint32_t n =
			(uint32_t)KV_MIN((size_t)r->n_text, len ? len - 1 : 0);

		while (n > most &&
		       memcmp(g->text + r->n_text - n, r->stop[i], n))
			n--;
		most = KV_MAX(most, n);
	}
	return most;
}

static void tell_progress(struct gen *g)
{
	struct serve_gen *r = g->req;
	const uint32_t n_text = r->n_text;

	if (!r->progress)
		return;
	r->text = g->text;
	r->n_text -= held_back(g);
	r->progress(r);
	r->n_text = n_text;
	r->text = NULL;
}

/* Why it ends after this token, or 0. */
static uint32_t why_end(struct gen *g, uint32_t id, uint32_t old_len)
{
	struct serve_gen *r = g->req;
	const struct tokenizer *tok = llama_tokenizer(g->model->llama);

	if (id == tokenizer_eos(tok) && !(r->flags & SERVE_GEN_IGNORE_EOS))
		return END_EOS;
	for (uint32_t i = 0; i < r->n_stop_tokens; i++)
		if (r->stop_tokens[i] == id)
			return END_STOP;
	if (hit_stop(g, old_len))
		return END_STOP;
	return r->n_out >= g->max_tokens ? END_LENGTH : 0;
}

static void finish(struct gen *g, uint32_t why)
{
	g->req->end = why;
	trace_gen(g->tenant->serve->trace, g);
	craft_report(g);
	focus_report(g);
	gen_release(g); /* sealing gives back pages that were mapped ahead */
	if (!(g->req->flags & SERVE_GEN_NO_REUSE)) {
		g->n_all = g->pos;
		gen_index(g);
		craft_keep(g);
	}
	gen_end(g, 0);
}

static int keep_logits(struct gen *g, const float *logits)
{
	const uint32_t n = llama_shape(g->model->llama)->n_vocab;

	if (!(g->req->flags & SERVE_GEN_LOGITS) || g->req->logits)
		return 0;
	g->req->logits = malloc(n * sizeof(float));
	if (!g->req->logits)
		return -ENOMEM;
	memcpy(g->req->logits, logits, n * sizeof(float));
	g->req->n_vocab = n;
	return 0;
}

/* The sampled token is told; returns 1 when the gen has ended. */
int gen_take_token(struct gen *g, const float *logits)
{
	const uint32_t old_len = g->req->n_text;
	uint32_t why;
	int ret;

	if (!g->t_first)
		g->t_first = clock_ns();
	ret = keep_logits(g, logits);
	if (!ret)
		ret = emit(g, g->sampled, g->sampled_logprob);
	if (ret) {
		gen_end(g, ret);
		return 1;
	}
	why = why_end(g, g->sampled, old_len);
	if (why) {
		finish(g, why);
		return 1;
	}
	g->tokens[g->n_all++] = g->sampled;
	tell_progress(g);
	return 0;
}

/* Log-probabilities of the tokens behind the rows of the step. */
static int take_scores(struct gen *g, const float *logits, uint32_t first)
{
	const uint32_t n_vocab = llama_shape(g->model->llama)->n_vocab;
	const struct gen_part *last = &g->parts[g->n_parts - 1];
	int ret = 0;

	for (uint32_t i = 0; i < g->n_step_logits && !ret; i++) {
		const float *row = logits + (size_t)i * n_vocab;
		const uint32_t id = g->tokens[first + i + 1];
		const float lse = kern_logsumexp(row, n_vocab);

		if (!g->req->n_out && first + i + 1 > last->first)
			ret = emit(g, g->tokens[last->first], NAN);
		if (!ret)
			ret = emit(g, id, row[id] - lse);
	}
	return ret;
}

int gen_take_scores(struct gen *g, const float *logits)
{
	const struct gen_part *last = &g->parts[g->n_parts - 1];
	int ret = 0;

	if (!g->t_first && g->n_step_logits)
		g->t_first = clock_ns();
	if (g->n_step_logits) {
		ret = keep_logits(g, logits);
		if (!ret)
			ret = take_scores(g, logits, g->step_logits);
	}
	if (!ret && g->pos >= g->n_prompt) {
		if (!g->req->n_out &&
		    last->n) /* a single token, no row before */
			ret = emit(g, g->tokens[last->first], NAN);
		if (!ret) {
			finish(g, END_SCORED);
			return 1;
		}
	}
	if (ret)
		gen_end(g, ret);
	return !!ret;
}
