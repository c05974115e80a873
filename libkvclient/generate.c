/*
 * generate.c - one generation: the request in the arena, its results out of it
 *
 * One arena block holds kv_generate, the parts, their texts and tokens, the
 * stop strings, and the room for tokens, text, logits and statistics. Tokens
 * and text are copied into memory of the process as they arrive, so results
 * stay valid when the connection breaks.
 */
#include "libkvclient/kvc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_PER_TOKEN 32u /* bytes of room; the longest pieces are shorter */
#define DEFAULT_LOGITS 131072u
#define MAX_PARTS      1024u

struct kvc_gen {
	struct kvc_req req;
	void (*on_tokens)(void *user, const struct kv_token *tokens, uint32_t n,
			  const char *text, size_t text_len);
	void *user;
	uint32_t epoch; /* of the connection that block belongs to */
	char *block; /* in the arena */
	const struct kv_token *arena_tokens;
	const char *arena_text;
	const float *arena_logits;
	const struct kv_gen_stats *arena_stats;
	struct kv_token *tokens; /* [max_tokens] */
	char *text; /* [max_text + 1] */
	float *logits; /* [max_logits] or NULL */
	uint32_t max_tokens, n_tokens;
	uint32_t max_logits, n_logits;
	uint64_t max_text, n_text;
	const struct kv_chunk_used *arena_used;
	const struct kv_gen_repair *arena_repair; /* or NULL */
	struct kv_gen_repair repair;
	struct kv_chunk_used *used; /* [n_used], or NULL */
	uint32_t n_used;
	struct kv_gen_stats stats;
	enum kv_end end;
};

/* Where everything lies in the block. */
struct plan {
	uint64_t at; /* bytes so far */
	uint64_t parts, data, stop, tokens, text, logits, stats, used, repair;
	uint64_t stop_bytes;
	uint32_t max_tokens;
	uint64_t max_text;
};

static int varies(const struct kvc_generate *g)
{
	return g->repair == KV_REPAIR_CRAFT ||
	       g->repair == KV_REPAIR_CRAFT_BLEND;
}

static uint64_t place(struct plan *p, uint64_t bytes)
{
	const uint64_t at = p->at;

	p->at += (bytes + 63) / 64 * 64;
	return at;
}

static uint64_t part_bytes(const struct kvc_part *p)
{
	if (p->kind == KV_PART_TEXT)
		return p->text_len ? p->text_len : strlen(p->text);
	return p->kind == KV_PART_TOKENS ? p->n_tokens * sizeof(uint32_t) : 0;
}

/* The last part's tokens are scored: so many there can be. */
static uint64_t score_room(const struct kvc_part *p)
{
	return p->kind == KV_PART_TEXT ? part_bytes(p) + 2 : p->n_tokens;
}

static int make_plan(const struct kvc_generate *g, struct plan *p)
{
	uint64_t room = g->max_tokens;

	if (!g->n_parts || g->n_parts > MAX_PARTS ||
	    g->n_stop_tokens > KV_MAX_STOP || g->n_stop > KV_MAX_STOP)
		return -EINVAL;
	if (g->flags & KV_GEN_SCORE)
		room = score_room(&g->parts[g->n_parts - 1]);
	if (room > UINT32_MAX / TEXT_PER_TOKEN - 8)
		return -EMSGSIZE;
	p->max_tokens = (uint32_t)room;
	p->max_text = g->flags & KV_GEN_NO_TEXT
			      ? 0
			      : room * TEXT_PER_TOKEN + TEXT_PER_TOKEN;
	(void)place(p, sizeof(struct kv_generate)); /* at 0 */
	p->parts = place(p, g->n_parts * sizeof(struct kv_part));
	p->data = p->at;
	for (uint32_t i = 0; i < g->n_parts; i++)
		(void)place(p, part_bytes(&g->parts[i])); /* follows data */
	for (uint32_t i = 0; i < g->n_stop; i++)
		p->stop_bytes += strlen(g->stop[i]) + 1;
	p->stop = place(p, p->stop_bytes);
	p->tokens = place(p, room * sizeof(struct kv_token));
	p->text = place(p, p->max_text);
	p->stats = place(p, sizeof(struct kv_gen_stats));
	if (varies(g))
		p->used = place(p, g->n_parts * sizeof(struct kv_chunk_used));
	if (g->repair)
		p->repair = place(p, sizeof(struct kv_gen_repair));
	if (g->flags & KV_GEN_LOGITS)
		p->logits = place(p, sizeof(float) *
					     (g->n_logits ? g->n_logits
							  : DEFAULT_LOGITS));
	return 0;
}

static void write_parts(const struct kvc *c, const struct kvc_generate *g,
			const struct plan *p, char *block)
{
	struct kv_part *out = (struct kv_part *)(block + p->parts);
	struct plan at = { .at = p->data };

	for (uint32_t i = 0; i < g->n_parts; i++) {
		const struct kvc_part *in = &g->parts[i];
		const uint64_t bytes = part_bytes(in);
		char *to = block + place(&at, bytes);

		out[i] = (struct kv_part){ .kind = in->kind,
					   .flags = in->flags,
					   .temperature = in->temperature,
					   .scale = in->scale };
		if (in->kind == KV_PART_CHUNK) {
			out[i].id[0] = in->id[0];
			out[i].id[1] = in->id[1];
			continue;
		}
		out[i].off = kvc_off(c, to);
		out[i].len = in->kind == KV_PART_TEXT ? bytes : in->n_tokens;
		if (bytes)
			memcpy(to,
			       in->kind == KV_PART_TEXT
				       ? (const void *)in->text
				       : (const void *)in->tokens,
			       bytes);
	}
}

static int write_request(const struct kvc *c, const struct kvc_generate *g,
			 const struct plan *p, char *block)
{
	struct kv_generate r = {
		.parts_off = kvc_off(c, block + p->parts),
		.n_parts = g->n_parts,
		.flags = g->flags,
		.max_tokens = g->max_tokens,
		.n_stop_tokens = g->n_stop_tokens,
		.stop_text_off = kvc_off(c, block + p->stop),
		.stop_text_len = (uint32_t)p->stop_bytes,
		.top_k = g->top_k,
		.temperature = g->temperature,
		.top_p = g->top_p,
		.min_p = g->min_p,
		.seed = g->seed,
		.tokens_off = kvc_off(c, block + p->tokens),
		.text_off = kvc_off(c, block + p->text),
		.text_bytes = p->max_text,
		.stats_off = kvc_off(c, block + p->stats),
		.priority = g->priority,
		.repair = g->repair,
		.repair_permille = g->repair_permille,
		.deadline_ms = g->deadline_ms,
		.used_off = p->used ? kvc_off(c, block + p->used) : 0,
		.repair_off = p->repair ? kvc_off(c, block + p->repair) : 0,
	};
	char *stop = block + p->stop;

	if (g->model && strlen(g->model) >= sizeof(r.model))
		return -ENOENT;
	if (g->model)
		memcpy(r.model, g->model, strlen(g->model));
	for (uint32_t i = 0; i < g->n_stop_tokens; i++)
		r.stop_tokens[i] = g->stop_tokens[i];
	for (uint32_t i = 0; i < g->n_stop; i++) {
		const size_t n = strlen(g->stop[i]) + 1;

		memcpy(stop, g->stop[i], n);
		stop += n;
	}
	if (g->flags & KV_GEN_LOGITS) {
		r.logits_off = kvc_off(c, block + p->logits);
		r.n_logits = g->n_logits ? g->n_logits : DEFAULT_LOGITS;
	}
	memset(block + p->stats, 0, sizeof(struct kv_gen_stats));
	if (p->repair)
		memset(block + p->repair, 0, sizeof(struct kv_gen_repair));
	if (p->used)
		memset(block + p->used, 0,
		       g->n_parts * sizeof(struct kv_chunk_used));
	memcpy(block, &r, sizeof(r));
	write_parts(c, g, p, block);
	return 0;
}

static void take_end(struct kvc_gen *g)
{
	const uint64_t n_vocab = g->arena_stats->n_vocab;

	g->stats = *g->arena_stats;
	if (g->arena_repair)
		g->repair = *g->arena_repair;
	if (g->used)
		memcpy(g->used, g->arena_used, g->n_used * sizeof(*g->used));
	g->end = (enum kv_end)(g->req.arg[1] >> 32);
	if (!g->logits)
		return;
	g->n_logits = n_vocab < g->max_logits ? (uint32_t)n_vocab
					      : g->max_logits;
	memcpy(g->logits, g->arena_logits, g->n_logits * sizeof(float));
}

/* Reaping thread: copy what is new, tell the user. */
static void gen_cqe(struct kvc_req *r)
{
	struct kvc_gen *g = (struct kvc_gen *)r; /* req comes first */
	const uint32_t had = g->n_tokens;
	const uint64_t had_text = g->n_text;

	if (r->res < 0)
		return;
	if ((uint32_t)r->res > had && (uint32_t)r->res <= g->max_tokens) {
		g->n_tokens = (uint32_t)r->res;
		memcpy(g->tokens + had, g->arena_tokens + had,
		       (g->n_tokens - had) * sizeof(*g->tokens));
	}
	if (r->arg[0] > had_text) {
		g->n_text = r->arg[0] < g->max_text ? r->arg[0] : g->max_text;
		memcpy(g->text + had_text, g->arena_text + had_text,
		       g->n_text - had_text);
		g->text[g->n_text] = '\0';
	}
	if (!(r->flags & KV_CQE_MORE))
		take_end(g);
	if (g->on_tokens && (g->n_tokens > had || g->n_text > had_text))
		g->on_tokens(g->user, g->tokens + had, g->n_tokens - had,
			     g->text + had_text, g->n_text - had_text);
}
KV_STATIC_ASSERT(offsetof(struct kvc_gen, req) == 0, "gen_cqe() casts");

static struct kvc_gen *gen_new(const struct kvc_generate *g,
			       const struct plan *p)
{
	struct kvc_gen *gen = calloc(1, sizeof(*gen));

	if (!gen)
		return NULL;
	gen->on_tokens = g->on_tokens;
	gen->user = g->user;
	gen->req.on_cqe = gen_cqe;
	gen->max_tokens = p->max_tokens;
	gen->max_text = p->max_text;
	gen->tokens = calloc((size_t)p->max_tokens + 1, sizeof(*gen->tokens));
	gen->text = calloc(1, p->max_text + 1);
	if (g->flags & KV_GEN_LOGITS) {
		gen->max_logits = g->n_logits ? g->n_logits : DEFAULT_LOGITS;
		gen->logits = calloc(gen->max_logits, sizeof(float));
	}
	if (varies(g)) {
		gen->n_used = g->n_parts;
		gen->used = calloc(g->n_parts, sizeof(*gen->used));
	}
	if (gen->tokens && gen->text && (!gen->max_logits || gen->logits) &&
	    (!gen->n_used || gen->used))
		return gen;
	free(gen->used);
	free(gen->tokens);
	free(gen->text);
	free(gen->logits);
	free(gen);
	return NULL;
}

static void gen_free(struct kvc *c, struct kvc_gen *gen)
{
	if (gen->block && gen->epoch == c->epoch)
		kvc_free(c, gen->block);
	free(gen->used);
	free(gen->tokens);
	free(gen->text);
	free(gen->logits);
	free(gen);
}

int kvc_generate_start(struct kvc *c, const struct kvc_generate *g,
		       struct kvc_gen **out)
{
	struct kv_sqe e = { .opcode = KV_OP_GENERATE, .flags = g->sqe_flags };
	struct plan p = { 0 };
	struct kvc_gen *gen;
	void *block;
	int ret;

	ret = make_plan(g, &p);
	if (ret)
		return ret;
	gen = gen_new(g, &p);
	if (!gen)
		return -ENOMEM;
	ret = kvc_arena_take(c, p.at, &block);
	if (ret)
		goto fail;
	gen->block = block;
	gen->epoch = c->epoch;
	gen->arena_tokens = (struct kv_token *)(gen->block + p.tokens);
	gen->arena_text = gen->block + p.text;
	gen->arena_logits = (const float *)(gen->block + p.logits);
	gen->arena_stats = (struct kv_gen_stats *)(gen->block + p.stats);
	gen->arena_used = (struct kv_chunk_used *)(gen->block + p.used);
	if (p.repair)
		gen->arena_repair =
			(struct kv_gen_repair *)(gen->block + p.repair);
	ret = write_request(c, g, &p, gen->block);
	if (ret)
		goto fail;
	e.arg[0] = kvc_off(c, gen->block);
	ret = kvc_submit(c, &e, &gen->req);
	if (ret)
		goto fail;
	*out = gen;
	return 0;
fail:
	gen_free(c, gen);
	return ret;
}

int kvc_generate_wait(struct kvc *c, struct kvc_gen *g, int timeout_ms)
{
	return kvc_wait(c, &g->req, timeout_ms);
}

int kvc_generate_cancel(struct kvc *c, struct kvc_gen *g)
{
	return kvc_cancel(c, &g->req);
}

const struct kv_token *kvc_gen_tokens(const struct kvc_gen *g, uint32_t *n)
{
	*n = g->n_tokens;
	return g->tokens;
}

const char *kvc_gen_text(const struct kvc_gen *g)
{
	return g->text;
}

const struct kv_gen_stats *kvc_gen_stats(const struct kvc_gen *g)
{
	return &g->stats;
}

const struct kv_gen_repair *kvc_gen_repair(const struct kvc_gen *g)
{
	return &g->repair;
}

const struct kv_chunk_used *kvc_gen_used(const struct kvc_gen *g, uint32_t *n)
{
	*n = g->n_used;
	return g->used;
}

const float *kvc_gen_logits(const struct kvc_gen *g)
{
	return g->logits;
}

uint32_t kvc_gen_n_logits(const struct kvc_gen *g)
{
	return g->n_logits;
}

enum kv_end kvc_gen_end(const struct kvc_gen *g)
{
	return g->end;
}

void kvc_generate_free(struct kvc *c, struct kvc_gen *g)
{
	if (!g)
		return;
	if (!__atomic_load_n(&g->req.done, __ATOMIC_ACQUIRE)) {
		(void)kvc_cancel(c, &g->req); /* if not, its end is awaited */
		(void)kvc_wait(c, &g->req, -1); /* whatever the result */
	}
	gen_free(c, g);
}

int kvc_generate(struct kvc *c, const struct kvc_generate *g,
		 struct kvc_gen **out)
{
	int ret;

	*out = NULL;
	ret = kvc_generate_start(c, g, out);
	return ret ? ret : kvc_generate_wait(c, *out, -1);
}
