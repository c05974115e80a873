/*
 * op_gen.c - GENERATE, CANCEL, CHUNK_PUT, TOKENIZE, DETOKENIZE
 *
 * What the client sends (kv_generate, parts, texts, tokens, stop strings) is
 * copied into one block of daemon memory before serve sees it, bounded per
 * session by SESS_COPY_MAX. What serve makes is copied into the arena before
 * the completion that tells of it.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/ipc/sess.h"

#define MAX_PARTS     1024u
#define MAX_STOP_TEXT 1024u
#define MAX_BYTES     (4u << 20) /* of texts and tokens of one request */
#define MAX_TOKENIZE  (1u << 20) /* bytes; detokenizing is done at once */
#define MAX_NEW	      (1u << 20) /* tokens of one generation */

/* A name field must end inside. */
static int name_ok(const char name[32])
{
	return memchr(name, '\0', 32) != NULL;
}

static int all_zero(const uint64_t *w, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (w[i])
			return 0;
	return 1;
}

/* ---- generate: in ------------------------------------------------------ */

/* The block: model, parts, stop strings, then texts and tokens. */
struct gen_copy {
	char model[32];
	char stop[MAX_STOP_TEXT + 1];
	struct serve_part parts[]; /* then data */
};

/* Bytes of a checked part's data; UINT64_MAX when it is not valid. */
static uint64_t part_bytes(const struct kv_part *p)
{
	const uint32_t flags = KV_PART_REUSE | KV_PART_BOS | KV_PART_BASE |
			       KV_PART_PARALLEL;

	if (p->flags & ~flags || (!(p->flags & KV_PART_PARALLEL) &&
				  (p->temperature != 0 || p->scale != 0)))
		return UINT64_MAX;
	switch (p->kind) {
	case KV_PART_TEXT:
		return p->id[0] || p->id[1] || p->len > MAX_BYTES ? UINT64_MAX
								  : p->len;
	case KV_PART_TOKENS:
		if (p->id[0] || p->id[1] || p->len > MAX_BYTES / 4)
			return UINT64_MAX;
		return p->len * sizeof(uint32_t);
	case KV_PART_CHUNK:
		return p->off || p->len || p->flags ? UINT64_MAX : 0;
	default:
		return UINT64_MAX;
	}
}

/* Read part i twice at most: sizes first, then the copy that is used. */
static int read_part(struct sess *s, const struct kv_part *p, char **at,
		     const char *end, struct serve_part *out)
{
	const uint64_t bytes = part_bytes(p);
	int ret;

	/* It may have changed since the sizes were summed. */
	if (bytes == UINT64_MAX || bytes > (uint64_t)(end - *at))
		return -EINVAL;
	ret = bytes ? chan_read(&s->ch, p->off, *at, bytes) : 0;
	if (ret)
		return ret;
	*out = (struct serve_part){ .kind = (enum serve_part_kind)p->kind,
				    .flags = p->flags,
				    .temperature = p->temperature,
				    .scale = p->scale,
				    .id = { p->id[0], p->id[1] } };
	if (p->kind == KV_PART_TEXT) {
		out->text = *at;
		out->text_len = bytes;
	} else if (p->kind == KV_PART_TOKENS) {
		out->tokens = (const uint32_t *)*at;
		out->n_tokens = p->len;
	}
	*at += KV_MIN(KV_ALIGN_UP(bytes, 8), (uint64_t)(end - *at));
	return 0;
}

/* Sum of the parts' data, each rounded up to 8; -EINVAL. */
static int64_t parts_bytes(struct sess *s, const struct kv_generate *q)
{
	struct kv_part p;
	uint64_t sum = 0, bytes;

	for (uint32_t i = 0; i < q->n_parts; i++) {
		if (chan_read(&s->ch, q->parts_off + i * sizeof(p), &p,
			      sizeof(p)))
			return -EINVAL;
		bytes = part_bytes(&p);
		if (bytes > MAX_BYTES)
			return -EINVAL;
		sum += KV_ALIGN_UP(bytes, 8);
		if (sum > MAX_BYTES)
			return -EINVAL;
	}
	return (int64_t)sum;
}

/* NUL-separated strings to pointers; the copy ends in a NUL of its own. */
static int read_stops(struct sess_req *r, const struct kv_generate *q,
		      struct gen_copy *c)
{
	struct serve_gen *g = &r->u.gen.gen;
	uint32_t at = 0;
	int ret;

	if (!q->stop_text_len)
		return 0;
	ret = chan_read(&r->sess->ch, q->stop_text_off, c->stop,
			q->stop_text_len);
	if (ret)
		return ret;
	if (c->stop[q->stop_text_len - 1])
		return -EINVAL;
	while (at < q->stop_text_len) {
		if (g->n_stop == SERVE_MAX_STOP || !c->stop[at])
			return -EINVAL;
		g->stop[g->n_stop++] = c->stop + at;
		at += (uint32_t)strlen(c->stop + at) + 1;
	}
	return 0;
}

static int read_copy(struct sess_req *r, const struct kv_generate *q,
		     uint32_t *n_score)
{
	struct serve_gen *g = &r->u.gen.gen;
	struct sess *s = r->sess;
	const int64_t data = parts_bytes(s, q);
	struct gen_copy *c;
	struct kv_part p = { 0 };
	size_t bytes;
	char *at;
	void *mem;
	int ret;

	if (data < 0)
		return (int)data;
	bytes = sizeof(*c) + q->n_parts * sizeof(*c->parts) + (size_t)data;
	ret = sess_req_copy(r, bytes, &mem);
	if (ret)
		return ret;
	c = mem;
	memcpy(c->model, q->model, sizeof(c->model));
	at = (char *)&c->parts[q->n_parts];
	for (uint32_t i = 0; i < q->n_parts; i++) {
		ret = chan_read(&s->ch, q->parts_off + i * sizeof(p), &p,
				sizeof(p));
		if (!ret)
			ret = read_part(s, &p, &at, (char *)mem + bytes,
					&c->parts[i]);
		if (ret)
			return ret;
	}
	/* So many tokens the last part can have. */
	*n_score = p.kind == KV_PART_CHUNK ? 0 : (uint32_t)p.len + 2;
	g->model = c->model;
	g->parts = c->parts;
	g->n_parts = q->n_parts;
	return read_stops(r, q, c);
}

static int generate_ok(const struct kv_generate *q)
{
	const uint32_t flags = KV_GEN_SCORE | KV_GEN_NO_REUSE |
			       KV_GEN_IGNORE_EOS | KV_GEN_LOGITS |
			       KV_GEN_NO_TEXT | KV_GEN_FOCUS;

	return name_ok(q->model) && q->n_parts && q->n_parts <= MAX_PARTS &&
	       !(q->flags & ~flags) && q->max_tokens <= MAX_NEW &&
	       q->n_stop_tokens <= KV_MAX_STOP &&
	       q->stop_text_len <= MAX_STOP_TEXT && q->priority <= 3 &&
	       !q->_pad && !q->_pad2 &&
	       (q->flags & KV_GEN_LOGITS || (!q->n_logits && !q->logits_off));
}

/* The ranges that will be written, before anything begins. */
static int ranges_ok(struct sess *s, const struct kv_generate *q,
		     uint32_t n_room)
{
	const struct chan *ch = &s->ch;

	return chan_at(ch, q->tokens_off, n_room * sizeof(struct kv_token),
		       8) &&
	       (!q->text_bytes || chan_at(ch, q->text_off, q->text_bytes, 1)) &&
	       (!q->n_logits ||
		chan_at(ch, q->logits_off, q->n_logits * sizeof(float), 4)) &&
	       (q->stats_off == KV_NO_OFF ||
		chan_at(ch, q->stats_off, sizeof(struct kv_gen_stats), 8)) &&
	       (!q->repair_off ||
		chan_at(ch, q->repair_off, sizeof(struct kv_gen_repair), 8)) &&
	       (!q->used_off ||
		chan_at(ch, q->used_off,
			q->n_parts * sizeof(struct kv_chunk_used), 8));
}

/* ---- generate: out ----------------------------------------------------- */

KV_STATIC_ASSERT(sizeof(struct serve_token) == sizeof(struct kv_token) &&
			 offsetof(struct serve_token, text_len) ==
				 offsetof(struct kv_token, text_len),
		 "copied as they are");

/* Copy what is new of tokens and text; returns the tokens there are. */
static uint32_t send_new(struct sess_gen *sg, struct chan *ch)
{
	const struct serve_gen *g = &sg->gen;
	const uint32_t n = KV_MIN(g->n_out, sg->n_room);
	const uint32_t text = (uint32_t)KV_MIN(g->n_text, sg->text_bytes);

	if (n > sg->n_sent) {
		memcpy((struct kv_token *)(ch->arena + sg->tokens_off) +
			       sg->n_sent,
		       g->tokens + sg->n_sent,
		       (n - sg->n_sent) * sizeof(struct kv_token));
		sg->n_sent = n;
	}
	if (text > sg->n_text) {
		memcpy(ch->arena + sg->text_off + sg->n_text,
		       g->text + sg->n_text, text - sg->n_text);
		sg->n_text = text;
	}
	return sg->n_sent;
}

static void send_used(const struct sess_gen *sg, struct chan *ch)
{
	const struct serve_used *u = sg->gen.used;
	struct kv_chunk_used *to =
		(struct kv_chunk_used *)(ch->arena + sg->used_off);

	for (uint32_t i = 0; sg->used_off && u && i < sg->n_used; i++)
		to[i] = (struct kv_chunk_used){ .variant = u[i].variant,
						.use = u[i].use,
						.n_tokens = u[i].n_tokens,
						.n_repaired = u[i].n_repaired,
						.cfo_permille = u[i].cfo };
}

static void send_repair(const struct sess_gen *sg, struct chan *ch)
{
	const struct serve_gen_repair *r = &sg->gen.how;

	if (sg->repair_off)
		*(struct kv_gen_repair *)(ch->arena + sg->repair_off) =
			(struct kv_gen_repair){
				.permille = r->permille,
				.n_layers = r->n_layers,
				.stop_layer = r->stop_layer,
				.n_stopped = r->n_stopped,
				.n_looked = r->n_looked,
				.looked_layers = r->looked_layers,
				.n_probed = r->n_probed,
			};
}

static void send_end(struct sess_gen *sg, struct chan *ch)
{
	const struct serve_gen *g = &sg->gen;
	const struct serve_gen_stats *st = &g->stats;

	(void)send_new(sg, ch);
	if (g->logits)
		memcpy(ch->arena + sg->logits_off, g->logits,
		       KV_MIN(g->n_vocab, sg->n_logits) * sizeof(float));
	send_used(sg, ch);
	send_repair(sg, ch);
	if (sg->stats_off == KV_NO_OFF)
		return;
	*(struct kv_gen_stats *)(ch->arena + sg->stats_off) =
		(struct kv_gen_stats){ .n_prompt = st->n_prompt,
				       .n_prefix = st->n_prefix,
				       .n_chunk = st->n_chunk,
				       .n_computed = st->n_computed,
				       .queue_ns = st->queue_ns,
				       .ttft_ns = st->ttft_ns,
				       .total_ns = st->total_ns,
				       .n_read_back = st->n_read_back,
				       .n_vocab = g->n_vocab,
				       .n_repaired = st->n_repaired,
				       .n_ahead = st->n_ahead,
				       .n_moved = st->n_moved };
}

static struct sess_req *req_of(struct serve_gen *g)
{
	return container_of(g, struct sess_req, u.gen.gen);
}

static void gen_progress(struct serve_gen *g)
{
	struct sess_req *r = req_of(g);
	struct sess_gen *sg = &r->u.gen;

	if (r->sess->closing)
		return;
	/* Not told when there is no room; the next completion says it all. */
	(void)sess_req_more(r, (int)send_new(sg, &r->sess->ch), sg->n_text);
}

static void gen_done(struct wait *w, int ret)
{
	struct sess_req *r = req_of(container_of(w, struct serve_gen, wait));
	struct sess_gen *sg = &r->u.gen;
	const uint64_t end = sg->gen.end;

	if (r->sess->closing) {
		sess_req_end(r, ret, 0, 0);
		return;
	}
	if (ret >= 0 || ret == -ECANCELED)
		send_end(sg, &r->sess->ch);
	sess_req_end(r, ret < 0 ? ret : (int)sg->n_sent, sg->n_text,
		     end << 32 | (uint32_t)sg->gen.stats.n_prompt);
}

static void set_fields(struct sess_gen *sg, const struct kv_generate *q,
		       const struct kv_sqe *e)
{
	struct serve_gen *g = &sg->gen;

	g->wait.done = gen_done;
	g->progress = gen_progress;
	g->flags = q->flags;
	g->max_tokens = q->max_tokens;
	g->n_stop_tokens = q->n_stop_tokens;
	memcpy(g->stop_tokens, q->stop_tokens, sizeof(g->stop_tokens));
	g->temperature = q->temperature;
	g->top_p = q->top_p;
	g->min_p = q->min_p;
	g->top_k = q->top_k;
	g->seed = q->seed;
	g->priority = q->priority;
	g->repair = q->repair;
	g->repair_permille = q->repair_permille;
	g->deadline_ms = q->deadline_ms;
	g->may_wait = e->flags & KV_SQE_WAIT;
	sg->tokens_off = q->tokens_off;
	sg->text_off = q->text_off;
	sg->text_bytes = q->text_bytes;
	sg->logits_off = q->logits_off;
	sg->n_logits = q->n_logits;
	sg->stats_off = q->stats_off;
	sg->used_off = q->used_off;
	sg->repair_off = q->repair_off;
	sg->n_used = q->n_parts;
}

int op_generate(struct sess *s, const struct kv_sqe *e)
{
	struct sess_req *r;
	struct kv_generate q;
	uint32_t n_score;
	int ret;

	ret = chan_read(&s->ch, e->arg[0], &q, sizeof(q));
	if (ret)
		return ret;
	if (!generate_ok(&q))
		return -EINVAL;
	r = sess_req_begin(s, e);
	set_fields(&r->u.gen, &q, e);
	ret = read_copy(r, &q, &n_score);
	if (ret)
		goto out_drop;
	r->u.gen.n_room = q.flags & KV_GEN_SCORE ? n_score : q.max_tokens;
	if (!ranges_ok(s, &q, r->u.gen.n_room)) {
		ret = -EINVAL;
		goto out_drop;
	}
	ret = serve_generate(s->ss, &r->u.gen.gen);
	if (!ret)
		return DISPATCH_LATER;
out_drop:
	sess_req_drop(r);
	return ret;
}

int op_cancel(struct sess *s, const struct kv_sqe *e)
{
	list_for_each(n, &s->inflight) {
		struct sess_req *r = list_entry(n, struct sess_req, node);

		if (r->user_data != e->arg[0])
			continue;
		if (r->opcode == KV_OP_GENERATE)
			serve_cancel(s->ss, &r->u.gen.gen);
		else if (r->opcode == KV_OP_CHUNK_PUT)
			serve_chunk_put_cancel(s->ss, &r->u.chunk.put);
		else if (r->opcode == KV_OP_ATTEND || r->opcode == KV_OP_APPEND)
			serve_attend_cancel(s->ss, &r->u.attend.attend);
		return 0;
	}
	return -ENOENT;
}

/* ---- chunks ------------------------------------------------------------ */

struct chunk_copy {
	char model[32];
	uint64_t data[];
};

static void chunk_done(struct wait *w, int ret)
{
	struct sess_chunk *c = container_of(w, struct sess_chunk, put.wait);
	struct sess_req *r = container_of(c, struct sess_req, u.chunk);
	struct kv_chunk_put *to;

	if (!r->sess->closing && ret >= 0) {
		to = (struct kv_chunk_put *)(r->sess->ch.arena + c->off);
		to->id[0] = c->put.id[0];
		to->id[1] = c->put.id[1];
	}
	sess_req_end(r, ret, 0, 0);
}

static int read_chunk(struct sess_req *r, const struct kv_chunk_put *q)
{
	struct serve_chunk_put *put = &r->u.chunk.put;
	const struct kv_part part = { .kind = q->kind,
				      .off = q->off,
				      .len = q->len };
	const uint64_t bytes = part_bytes(&part);
	struct chunk_copy *c;
	char *at;
	void *p;
	int ret;

	if (bytes > MAX_BYTES || q->kind == KV_PART_CHUNK || !q->len)
		return -EINVAL;
	ret = sess_req_copy(r, sizeof(*c) + bytes, &p);
	if (ret)
		return ret;
	c = p;
	memcpy(c->model, q->model, sizeof(c->model));
	put->model = c->model;
	at = (char *)c->data;
	return read_part(r->sess, &part, &at, at + bytes, &put->part);
}

int op_chunk_put(struct sess *s, const struct kv_sqe *e)
{
	struct kv_chunk_put q;
	struct sess_req *r;
	int ret;

	ret = chan_read(&s->ch, e->arg[0], &q, sizeof(q));
	if (ret)
		return ret;
	if (e->arg[0] % 8 || !name_ok(q.model) || q.flags ||
	    !all_zero(q._rsvd, KV_ARRAY_LEN(q._rsvd)))
		return -EINVAL;
	r = sess_req_begin(s, e);
	r->u.chunk = (struct sess_chunk){ .put = { .wait = { chunk_done } },
					  .off = e->arg[0] };
	ret = read_chunk(r, &q);
	if (!ret)
		ret = serve_chunk_put(s->ss, &r->u.chunk.put);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret;
}

/* ---- durability -------------------------------------------------------- */

static void persist_done(struct wait *w, int ret)
{
	struct serve_persist *p = container_of(w, struct serve_persist, wait);

	sess_req_end(container_of(p, struct sess_req, u.persist), ret, 0, 0);
}

int op_persist(struct sess *s, const struct kv_sqe *e)
{
	struct sess_req *r = sess_req_begin(s, e);
	int ret;

	r->u.persist = (struct serve_persist){ .wait = { persist_done } };
	ret = serve_persist(s->ss, &r->u.persist);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret < 0 ? ret : 0;
}

/* ---- tokenizer --------------------------------------------------------- */

static int clamp(int64_t n)
{
	return n > INT_MAX ? INT_MAX : n < INT_MIN + 1 ? -EIO : (int)n;
}

/* Read and check the argument; both ranges lie in the arena. */
static int read_tokenize(struct sess *s, const struct kv_sqe *e,
			 struct kv_tokenize *q)
{
	const int ret = chan_read(&s->ch, e->arg[0], q, sizeof(*q));

	if (ret)
		return ret;
	if (!name_ok(q->model) || !all_zero(q->_rsvd, 2) ||
	    q->n_tokens > s->ch.arena_bytes / sizeof(uint32_t) ||
	    !chan_at(&s->ch, q->text_off, q->text_bytes, 1) ||
	    !chan_at(&s->ch, q->tokens_off, q->n_tokens * sizeof(uint32_t), 4))
		return -EINVAL;
	return 0;
}

static void text_told(struct wait *w, int ret)
{
	struct serve_text *t = container_of(w, struct serve_text, wait);
	struct sess_text *st = container_of(t, struct sess_text, text);
	struct sess_req *r = container_of(st, struct sess_req, u.text);

	(void)ret; /* n says it all */
	if (!r->sess->closing && t->n > 0)
		memcpy(r->sess->ch.arena + st->tokens_off, t->tokens,
		       KV_MIN((uint64_t)t->n, t->max) * sizeof(*t->tokens));
	sess_req_end(r, clamp(t->n), 0, 0);
}

/* The copy: model, tokens, text. */
struct text_copy {
	char model[32];
	uint32_t tokens[];
};

static int read_text(struct sess_req *r, const struct kv_tokenize *q)
{
	struct serve_text *t = &r->u.text.text;
	const size_t room = KV_MIN(q->n_tokens, q->text_bytes + 2);
	struct text_copy *c;
	void *p;
	int ret;

	ret = sess_req_copy(
		r, sizeof(*c) + room * sizeof(uint32_t) + q->text_bytes, &p);
	if (ret)
		return ret;
	c = p;
	memcpy(c->model, q->model, sizeof(c->model));
	chan_copy(c->tokens + room, r->sess->ch.arena + q->text_off,
		  q->text_bytes);
	t->wait.done = text_told;
	t->model = c->model;
	t->tokens = c->tokens;
	t->max = room;
	t->text = (const char *)(c->tokens + room);
	t->len = q->text_bytes;
	r->u.text.tokens_off = q->tokens_off;
	return 0;
}

int op_tokenize(struct sess *s, const struct kv_sqe *e)
{
	struct kv_tokenize q;
	struct sess_req *r;
	int ret;

	ret = read_tokenize(s, e, &q);
	if (ret)
		return ret;
	if (q.text_bytes > MAX_TOKENIZE)
		return -EINVAL;
	r = sess_req_begin(s, e);
	ret = read_text(r, &q);
	if (!ret)
		ret = serve_tokenize(s->ss, &r->u.text.text);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret;
}

int op_detokenize(struct sess *s, const struct kv_sqe *e)
{
	struct kv_tokenize q;
	uint32_t *ids;
	char *text;
	size_t room;
	int64_t n;
	int ret;

	ret = read_tokenize(s, e, &q);
	if (ret)
		return ret;
	if (q.n_tokens > MAX_TOKENIZE / sizeof(*ids))
		return -EINVAL;
	room = KV_MIN(q.text_bytes, (uint64_t)MAX_BYTES);
	ids = malloc(q.n_tokens * sizeof(*ids) + room + 1);
	if (!ids)
		return -ENOMEM;
	text = (char *)(ids + q.n_tokens);
	chan_copy(ids, s->ch.arena + q.tokens_off, q.n_tokens * sizeof(*ids));
	n = serve_detokenize(s->ss, q.model, ids, q.n_tokens, text, room);
	if (n > 0)
		memcpy(s->ch.arena + q.text_off, text,
		       KV_MIN((uint64_t)n, room));
	free(ids);
	return clamp(n);
}
