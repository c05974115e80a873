/*
 * text.c - text to tokens: what is long, on a thread of its own
 *
 * Tokenizers do not change, so any thread may use them; what it reads and writes
 * belongs to the request, which does not end meanwhile. Not on the loop's workers:
 * pages wait for those. Tenants take turns, one text each, so that nobody waits for
 * more than one text of each other tenant.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"

#define PIECE_BYTES 255u /* no piece of a vocabulary is longer */

struct serve_model *serve_model_find(struct serve *s, const char *name)
{
	if (!*name && s->n_models == 1)
		return &s->models[0];
	for (uint32_t i = 0; i < s->n_models; i++)
		if (!strcmp(s->models[i].conf->name, name))
			return &s->models[i];
	return NULL;
}

/* ---- turns ------------------------------------------------------------------ */

static void next_text(struct serve *s)
{
	struct list *n = NULL;

	for (uint32_t i = 0; i < s->n_tenants && !n; i++) {
		s->text_turn = (s->text_turn + 1) % s->n_tenants;
		n = list_pop(&s->tenants[s->text_turn]->texts);
	}
	s->text_running = !!n;
	if (n)
		engine_start(s->text_engine,
			     &list_entry(n, struct text_job, node)->job);
}

static void job_run(struct engine_job *j, struct pool *pool)
{
	struct text_job *t = container_of(j, struct text_job, job);

	(void)pool;
	t->run(t);
}

static void job_done(struct engine_job *j)
{
	struct text_job *t = container_of(j, struct text_job, job);

	next_text(t->tenant->serve);
	t->done(t); /* it may be gone now */
}

void text_start(struct serve_tenant *tenant, struct text_job *t)
{
	t->tenant = tenant;
	t->job.run = job_run;
	t->job.done = job_done;
	list_init(&t->node);
	list_push(&tenant->texts, &t->node);
	if (!tenant->serve->text_running)
		next_text(tenant->serve);
}

/* ---- parts of a request ---------------------------------------------------- */

int gen_take_parts(struct gen *g, const struct serve_part *parts, uint32_t n)
{
	const uint64_t n_ctx = llama_shape(g->model->llama)->n_ctx;

	g->in = calloc(n, sizeof(*g->in));
	if (!g->in)
		return -ENOMEM;
	memcpy(g->in, parts, n * sizeof(*g->in));
	g->n_in = n;
	/* that many bytes are too many tokens in any vocabulary */
	return gen_text_bytes(g) > n_ctx * PIECE_BYTES ? -EINVAL : 0;
}

uint64_t gen_text_bytes(const struct gen *g)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < g->n_in; i++)
		if (g->in[i].kind == SERVE_PART_TEXT)
			bytes += g->in[i].text_len;
	return bytes;
}

/* A text part becomes one of tokens, which are its own. */
static int encode_part(const struct tokenizer *tok, struct serve_part *p)
{
	const size_t max = p->text_len + 2; /* a token has a byte */
	uint32_t *out = malloc(max * sizeof(*out)), *fit;
	int64_t n;

	if (!out)
		return -ENOMEM;
	n = tokenizer_encode(tok, p->text, p->text_len, out, max);
	if (n < 0 || (uint64_t)n > max) {
		free(out);
		return n < 0 ? (int)n : -EINVAL;
	}
	fit = realloc(out, ((size_t)n + 1) * sizeof(*out));
	p->tokens = fit ? fit : out;
	p->n_tokens = (size_t)n;
	p->kind = SERVE_PART_TOKENS;
	p->own = 1;
	return 0;
}

void gen_encode(struct text_job *t)
{
	struct gen *g = container_of(t, struct gen, encode);
	const struct tokenizer *tok = llama_tokenizer(g->model->llama);

	for (uint32_t i = 0; i < g->n_in && !g->in_err; i++)
		if (g->in[i].kind == SERVE_PART_TEXT)
			g->in_err = encode_part(tok, &g->in[i]);
}

void gen_free_parts(struct gen *g)
{
	for (uint32_t i = 0; i < g->n_in; i++)
		if (g->in[i].own)
			free((void *)(uintptr_t)g->in[i].tokens);
	free(g->in);
}

/* ---- calls that only ask --------------------------------------------------- */

static void text_run(struct text_job *j)
{
	struct serve_text *t = container_of(j, struct serve_text, job);

	t->n = tokenizer_encode(t->tokenizer, t->text, t->len, t->tokens,
				t->max);
}

static void text_done(struct text_job *j)
{
	struct serve_text *t = container_of(j, struct serve_text, job);
	struct serve_session *ss = t->session;

	t->wait.done(&t->wait, 0);
	session_request_end(ss);
}

int serve_tokenize(struct serve_session *ss, struct serve_text *t)
{
	struct serve_model *m = serve_model_find(ss->tenant->serve, t->model);

	if (!m)
		return -ENOENT;
	t->session = ss;
	t->tokenizer = llama_tokenizer(m->llama);
	t->job.run = text_run;
	t->job.done = text_done;
	session_request_begin(ss);
	text_start(ss->tenant, &t->job);
	return 0;
}

int64_t serve_detokenize(struct serve_session *ss, const char *model,
			 const uint32_t *tokens, size_t n, char *out,
			 size_t max)
{
	struct serve_model *m = serve_model_find(ss->tenant->serve, model);

	return m ? tokenizer_decode(llama_tokenizer(m->llama), tokens, n, out,
				    max)
		 : -ENOENT;
}
