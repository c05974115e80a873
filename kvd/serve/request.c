/*
 * request.c - generations and chunks as a session asks for them
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/gen.h"
#include "kvd/serve/restore.h"

#define MAX_TOKENS   (1u << 20)
#define INLINE_BYTES 512u /* of text: some 100 us, as long as a thread hop */

static int share_ok(const struct serve_gen *r)
{
	return r->repair_permille <= REPAIR_ALL ||
	       r->repair_permille == REPAIR_BY_LOAD ||
	       (r->repair_permille == REPAIR_BY_CFO &&
		repair_varies(r->repair));
}

static int sampling_ok(const struct serve_gen *r)
{
	return r->temperature >= 0 && isfinite(r->temperature) &&
	       r->top_p >= 0 && r->top_p <= 1 && r->min_p >= 0 &&
	       r->min_p <= 1 && r->n_stop_tokens <= SERVE_MAX_STOP &&
	       r->n_stop <= SERVE_MAX_STOP && r->n_parts >= 1 &&
	       r->n_parts <= 1024 && r->repair < REPAIR_N_KINDS &&
	       share_ok(r) && r->max_tokens <= MAX_TOKENS &&
	       (r->max_tokens || r->flags & SERVE_GEN_SCORE);
}

static void clear_out(struct serve_gen *r)
{
	r->tokens = NULL;
	r->text = NULL;
	r->logits = NULL;
	r->used = NULL;
	r->n_out = r->n_text = r->n_vocab = r->end = 0;
	memset(&r->stats, 0, sizeof(r->stats));
	memset(&r->how, 0, sizeof(r->how));
}

/* The texts have become tokens: -EINVAL, -ENOENT, -ENOMEM, or it can begin. */
static int texts_known(struct gen *g)
{
	int ret = g->in_err;

	if (!ret)
		ret = edit_begin(g);
	if (!ret)
		ret = gen_tokenize(g, g->in, g->n_in);
	if (ret || g->req)
		return ret;
	g->put->id[0] = g->parts[0].chunk.w[0];
	g->put->id[1] = g->parts[0].chunk.w[1];
	return 0;
}

static void encoded(struct text_job *t)
{
	struct gen *g = container_of(t, struct gen, encode);
	int ret = g->cancelled ? -ECANCELED : texts_known(g);

	if (ret)
		gen_end(g, ret);
	else
		gen_resume(g);
}

/* Short texts at once, longer ones on a thread of their own. After an error g is as it was. */
static int begin(struct gen *g)
{
	const int later = gen_text_bytes(g) > INLINE_BYTES;
	struct serve_session *ss = g->session;
	int ret;

	if (!later) {
		gen_encode(&g->encode);
		ret = texts_known(g);
		if (ret)
			return ret;
	}
	list_push(&ss->requests, &g->session_node);
	session_request_begin(ss);
	if (!later) {
		gen_resume(g);
		return 0;
	}
	g->state = GEN_TEXTS;
	g->encode.run = gen_encode;
	g->encode.done = encoded;
	text_start(ss->tenant, &g->encode);
	return 0;
}

int serve_generate(struct serve_session *ss, struct serve_gen *r)
{
	struct serve_tenant *t = ss->tenant;
	struct serve_model *m = serve_model_find(t->serve, r->model);
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
	if (r->deadline_ms)
		g->deadline_ns = g->t_start + r->deadline_ms * 1000000ull;
	r->priv = g;
	clear_out(r);
	t->n_uncounted++;
	if (!r->may_wait)
		gen_count(g);
	ret = gen_take_parts(g, r->parts, r->n_parts);
	if (!ret)
		ret = begin(g);
	if (!ret) {
		stat_add(t->st_requests, 1);
		return 0;
	}
	if (g->counted)
		t->n_requests--;
	else
		t->n_uncounted--;
	free(r->tokens);
	r->tokens = NULL;
	r->priv = NULL;
	gen_unplan(g);
	gen_free(g);
	return ret;
}

static void gen_cancel(struct gen *g)
{
	g->cancelled = 1;
	restore_cancel(g->restore);
	if (g->state == GEN_TEXTS && !list_empty(&g->encode.node)) {
		list_del(&g->encode.node); /* its turn has not come */
		g->state = GEN_CHUNKS;
	}
	if (g->state != GEN_STEP && g->state != GEN_TEXTS &&
	    g->state != GEN_END)
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

/* ---- disks that do not answer ---------------------------------------------- */

static int lies_on(const struct page_run *runs, uint32_t n, uint32_t i_disk)
{
	while (n && (range_disk(runs->range) != i_disk ||
		     !range_lower_bytes(runs->range, runs->first, runs->n)))
		runs++, n--;
	return n != 0;
}

/* At its begin all can be computed again; later it would be other tokens. */
static void leave_disk(struct gen *g, uint32_t i_disk)
{
	struct restore *r = g->restore;

	if (g->pos)
		return;
	if (r && !r->err && lies_on(r->runs, r->n_runs, i_disk))
		restore_fail(r, -EIO);
	else if (!r && g->state == GEN_WANT && g->wanting &&
		 lies_on(g->runs, g->n_runs, i_disk))
		gen_pages_failed(g, -EIO);
}

void gen_leave_disk(struct serve *s, uint32_t i_disk)
{
	for (uint32_t i = 0; i < s->n_tenants && s->conf->recompute; i++)
		list_for_each_safe(at, &s->tenants[i]->sessions) {
			struct serve_session *ss =
				list_entry(at, struct serve_session, node);

			list_for_each_safe(n, &ss->requests)
				leave_disk(
					list_entry(n, struct gen, session_node),
					i_disk);
		}
}

int serve_chunk_put(struct serve_session *ss, struct serve_chunk_put *p)
{
	struct serve_tenant *t = ss->tenant;
	struct serve_model *m = serve_model_find(t->serve, p->model);
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
	p->priv = g;
	ret = gen_take_parts(g, &part, 1);
	if (!ret)
		ret = begin(g);
	if (ret) {
		p->priv = NULL;
		gen_unplan(g);
		gen_free(g);
	}
	return ret;
}

int serve_chunk_rm(struct serve_session *ss, const uint64_t id[2])
{
	const struct map_id chunk = { { id[0], id[1] } };
	int ret = chunk_rm(&ss->tenant->chunks, chunk);

	if (!variant_rm(&ss->tenant->variants, chunk))
		ret = 0;

	tenant_kick(ss->tenant); /* there is more room now */
	return ret;
}
