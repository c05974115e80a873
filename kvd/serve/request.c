/*
 * request.c - generations and chunks as a session asks for them
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"

#define MAX_TOKENS (1u << 20)

static struct serve_model *find_model(struct serve *s, const char *name)
{
	if (!*name && s->n_models == 1)
		return &s->models[0];
	for (uint32_t i = 0; i < s->n_models; i++)
		if (!strcmp(s->models[i].conf->name, name))
			return &s->models[i];
	return NULL;
}

static int sampling_ok(const struct serve_gen *r)
{
	return r->temperature >= 0 && isfinite(r->temperature) &&
	       r->top_p >= 0 && r->top_p <= 1 && r->min_p >= 0 &&
	       r->min_p <= 1 && r->n_stop_tokens <= SERVE_MAX_STOP &&
	       r->n_stop <= SERVE_MAX_STOP && r->n_parts >= 1 &&
	       r->n_parts <= 1024 && r->repair < REPAIR_N_KINDS &&
	       r->repair_permille <= REPAIR_ALL &&
	       r->max_tokens <= MAX_TOKENS &&
	       (r->max_tokens || r->flags & SERVE_GEN_SCORE);
}

static int prepare_out(struct gen *g)
{
	struct serve_gen *r = g->req;
	uint32_t n = g->max_tokens;

	if (r->flags & SERVE_GEN_SCORE)
		n = g->parts[g->n_parts - 1].n;
	r->tokens = calloc(n + 1, sizeof(*r->tokens));
	g->text = calloc(1, 64);
	g->n_text_room = g->text ? 64 : 0;
	r->text = NULL;
	r->logits = NULL;
	r->n_out = r->n_text = r->n_vocab = r->end = 0;
	memset(&r->stats, 0, sizeof(r->stats));
	return r->tokens && g->text ? 0 : -ENOMEM;
}

int serve_generate(struct serve_session *ss, struct serve_gen *r)
{
	struct serve_tenant *t = ss->tenant;
	struct serve_model *m = find_model(t->serve, r->model);
	struct gen *g;
	int ret;

	if (t->serve->draining)
		return -ESHUTDOWN;
	if (!m)
		return -ENOENT;
	if (!sampling_ok(r))
		return -EINVAL;
	if (!r->may_wait &&
	    t->n_requests + t->n_uncounted >= t->conf->max_requests) {
		stat_add(t->st_refused, 1);
		return -EDQUOT;
	}
	g = gen_new(t, m);
	if (!g)
		return -ENOMEM;
	g->session = ss;
	g->req = r;
	g->max_tokens = r->flags & SERVE_GEN_SCORE ? 0 : r->max_tokens;
	ret = gen_tokenize(g, r->parts, r->n_parts);
	if (!ret)
		ret = prepare_out(g);
	if (ret) {
		gen_unplan(g);
		free(r->tokens);
		r->tokens = NULL;
		gen_free(g);
		return ret;
	}
	r->priv = g;
	list_push(&ss->requests, &g->session_node);
	session_request_begin(ss);
	stat_add(t->st_requests, 1);
	t->n_uncounted++;
	if (!r->may_wait)
		gen_count(g);
	gen_resume(g);
	return 0;
}

static void gen_cancel(struct gen *g)
{
	g->cancelled = 1;
	if (g->state != GEN_STEP && g->state != GEN_END)
		gen_end(g, -ECANCELED);
}

void serve_cancel(struct serve_session *ss, struct serve_gen *r)
{
	(void)ss;
	if (r->priv)
		gen_cancel(r->priv);
}

void serve_chunk_put_cancel(struct serve_session *ss, struct serve_chunk_put *p)
{
	(void)ss;
	if (p->priv)
		gen_cancel(p->priv);
}

void gen_cancel_session(struct serve_session *ss)
{
	list_for_each_safe(n, &ss->requests)
		gen_cancel(list_entry(n, struct gen, session_node));
}

int serve_chunk_put(struct serve_session *ss, struct serve_chunk_put *p)
{
	struct serve_tenant *t = ss->tenant;
	struct serve_model *m = find_model(t->serve, p->model);
	struct serve_part part = p->part;
	struct gen *g;
	int ret;

	if (t->serve->draining)
		return -ESHUTDOWN;
	if (!m)
		return -ENOENT;
	if (part.kind == SERVE_PART_CHUNK || part.flags)
		return -EINVAL;
	g = gen_new(t, m);
	if (!g)
		return -ENOMEM;
	part.flags = SERVE_PART_REUSE;
	g->session = ss;
	g->put = p;
	ret = gen_tokenize(g, &part, 1);
	if (ret) {
		gen_unplan(g);
		gen_free(g);
		return ret;
	}
	p->id[0] = g->parts[0].chunk.w[0];
	p->id[1] = g->parts[0].chunk.w[1];
	p->priv = g;
	list_push(&ss->requests, &g->session_node);
	session_request_begin(ss);
	gen_resume(g);
	return 0;
}

int serve_chunk_rm(struct serve_session *ss, const uint64_t id[2])
{
	const int ret = chunk_rm(&ss->tenant->chunks,
				 (struct map_id){ { id[0], id[1] } });

	tenant_kick(ss->tenant); /* there is more room now */
	return ret;
}

int64_t serve_tokenize(struct serve_session *ss, const char *model,
		       const char *text, size_t len, uint32_t *out, size_t max)
{
	struct serve_model *m = find_model(ss->tenant->serve, model);

	return m ? tokenizer_encode(llama_tokenizer(m->llama), text, len, out,
				    max)
		 : -ENOENT;
}

int64_t serve_detokenize(struct serve_session *ss, const char *model,
			 const uint32_t *tokens, size_t n, char *out,
			 size_t max)
{
	struct serve_model *m = find_model(ss->tenant->serve, model);

	return m ? tokenizer_decode(llama_tokenizer(m->llama), tokens, n, out,
				    max)
		 : -ENOENT;
}
