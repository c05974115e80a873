/*
 * gate.c - measure what reuse does to a model; see gate.h
 */
#include "kvd/serve/gate.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/verdict.h"

#define MAX_CHUNKS  5u
#define MAX_TOKENS  512u /* of a prompt */
/* raised when repair chooses otherwise: 2: blend looks at K too */
#define HOW_VERSION 2u

/* Facts that follow from a chunk before: who "she" is. */
static const struct prompt {
	const char *system, *chunks[MAX_CHUNKS], *question;
} prompts[] = {
	{ "Read the notes and answer the question with one or two words.\n",
	  { "The Milford bell is made of bronze. It first cost 310 crowns. "
	    "It was made by Anna Carver.\n",
	    "Ashby is a town on the river Tarn. The mayor is Clara Winton. "
	    "It has 270 houses.\n",
	    "The new owner of it was Peter Lowell. Its price then rose to "
	    "420 crowns.\n",
	    "The same town later elected Hugo Marsh.\n" },
	  "Question: Who is the new mayor of Ashby?\nAnswer:" },
	{ "Below are some notes. Use only these notes to answer.\n",
	  { "Maria Stone was born in Tarford. She works as a potter.\n",
	    "Later she moved to Linden. Her brother is Oliver Stone.\n",
	    "The Halden harp is made of oak. Its maker was Ruth Barlow. The "
	    "first price was 95 crowns.\n",
	    "In the end it was lost near Wexford. Not much else is known.\n" },
	  "Question: Where did Maria Stone move to?\nAnswer:" },
	{ "You are a careful assistant. Read the notes and answer.\n",
	  { "The town of Norbridge lies on the river Elm. It is known for "
	    "glass.\n",
	    "The same town later elected Karl Denby. Old letters confirm "
	    "it.\n",
	    "Edwin Foss is a carpenter. He was born in Marlow.\n",
	    "In that year he married Julia Penn. They live near the mill.\n" },
	  "Question: Who married Julia Penn?\nAnswer:" },
};

enum way { FULL, PLAIN, BLEND, N_WAYS };

struct gate {
	struct serve *serve;
	struct serve_tenant *tenant;
	struct serve_session *session;
	struct conf_tenant conf;
	struct accounts accounts;
	uint32_t i_model, i_prompt;
	enum way way;
	struct serve_gen gen;
	int in_flight;
	struct serve_part parts[MAX_CHUNKS + 2];
	uint32_t tokens[MAX_TOKENS];
	float *full; /* [n_vocab] logits */
	double error[N_WAYS];
	uint64_t begin_ns;
	struct loop_call next;
	struct wait closed;
	int closing, over;
	struct verdict found[CONF_MAX_MODELS]; /* to be kept */
	uint32_t n_found, n_kept;
	struct loop_work keep;
	uint32_t n_keeping; /* by the worker: [n_kept, n_keeping) */
	int keep_err;
};

const char *gate_name(const struct serve_model *m)
{
	static const char *const names[] = { "off", "pending", "passed",
					     "failed" };

	return names[m->gate];
}

int gate_owns(const struct serve_tenant *t)
{
	const struct gate *g = t->serve->gate;

	return g && g->tenant == t;
}

static struct serve_model *model_of(const struct gate *g)
{
	return &g->serve->models[g->i_model];
}

/* ---- those who wait ----------------------------------------------------------- */

/* Nothing is reused but prefixes, which are exact. */
static void make_exact(struct gen *g)
{
	g->exact = 1;
	g->ape_shift = 0;
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *p = &g->parts[i];

		p->reuse = p->parallel = 0;
		p->found = 0;
		p->group = NULL;
		if (p->seg)
			segment_put(p->seg);
		p->seg = NULL;
	}
	repair_free(g);
	g->groups = NULL;
	g->n_groups = 0;
	craft_free(g->craft);
	g->craft = NULL;
}

static int wants_reuse(const struct gen *g)
{
	if (g->edit)
		return 1;
	for (uint32_t i = 0; i < g->n_parts; i++)
		if (g->parts[i].reuse && g->parts[i].n)
			return 1;
	return 0;
}

int gate_holds(struct gen *g)
{
	struct serve_model *m = g->model;

	if (m->gate <= GATE_OFF || m->gate == GATE_PASSED || g->exact ||
	    !g->req || !wants_reuse(g) || gate_owns(g->tenant))
		return 0;
	if (m->gate == GATE_FAILED) {
		make_exact(g);
		return 0;
	}
	list_push(&m->gate_waiting, &g->waiter.node);
	return 1;
}

static void verdict(struct serve_model *m, enum gate_state state)
{
	struct list *n;

	m->gate = state;
	while ((n = list_pop(&m->gate_waiting)))
		gen_resume(list_entry(n, struct gen, waiter.node));
}

/* ---- one question --------------------------------------------------------------- */

static void next_soon(struct gate *g)
{
	if (list_empty(&g->next.node))
		loop_defer(g->serve->loop, &g->next);
}

/* Squared distance to full, over the spread of full. */
static double error_of(const struct gate *g, const float *x, uint32_t n)
{
	double mean = 0, spread = 0, sum = 0;

	for (uint32_t i = 0; i < n; i++)
		mean += (double)g->full[i] / n;
	for (uint32_t i = 0; i < n; i++) {
		const double f = (double)g->full[i];

		spread += (f - mean) * (f - mean);
		sum += ((double)x[i] - f) * ((double)x[i] - f);
	}
	return sum == 0 ? 0 : sum / spread;
}

static void answered(struct wait *w, int ret)
{
	struct gate *g = container_of(container_of(w, struct serve_gen, wait),
				      struct gate, gen);
	const uint32_t n = g->gen.n_vocab;

	g->in_flight = 0;
	if (ret < 0 || !g->gen.logits) {
		g->error[BLEND] = INFINITY;
		g->i_prompt = KV_ARRAY_LEN(prompts); /* no more of it */
	} else if (g->way == FULL) {
		memcpy(g->full, g->gen.logits, n * sizeof(*g->full));
	} else {
		g->error[g->way] +=
			error_of(g, g->gen.logits, n) / KV_ARRAY_LEN(prompts);
	}
	if (++g->way == N_WAYS) {
		g->way = FULL;
		g->i_prompt++;
	}
	next_soon(g);
}

/* A part of at most max tokens; 0 or -errno. */
static int add_part(struct gate *g, const char *text, uint32_t max,
		    uint32_t *n_tokens, uint32_t flags)
{
	const struct tokenizer *t = llama_tokenizer(model_of(g)->llama);
	struct serve_part *p = &g->parts[g->gen.n_parts];
	int64_t n;

	max = KV_MIN(max, MAX_TOKENS - *n_tokens);
	n = tokenizer_encode(t, text, strlen(text), g->tokens + *n_tokens, max);
	if (n < 0)
		return (int)n;
	*p = (struct serve_part){ .kind = SERVE_PART_TOKENS,
				  .flags = flags,
				  .tokens = g->tokens + *n_tokens,
				  .n_tokens = (size_t)KV_MIN(n, (int64_t)max) };
	*n_tokens += (uint32_t)p->n_tokens;
	g->gen.n_parts++;
	return 0;
}

static int ask(struct gate *g)
{
	const struct prompt *p = &prompts[g->i_prompt];
	const uint32_t n_ctx = llama_shape(model_of(g)->llama)->n_ctx;
	const uint32_t max = KV_MIN(n_ctx, MAX_TOKENS) / (MAX_CHUNKS + 3);
	const uint32_t reuse = g->way == FULL ? 0 : SERVE_PART_REUSE;
	uint32_t n = 0;
	int ret;

	memset(&g->gen, 0, sizeof(g->gen));
	ret = add_part(g, p->system, max, &n, SERVE_PART_BOS);
	for (uint32_t i = 0; i < MAX_CHUNKS && p->chunks[i] && !ret; i++)
		ret = add_part(g, p->chunks[i], max, &n, reuse);
	if (!ret)
		ret = add_part(g, p->question, max, &n, 0);
	if (ret)
		return ret;
	g->gen.wait.done = answered;
	g->gen.model = model_of(g)->conf->name;
	g->gen.parts = g->parts;
	g->gen.flags = SERVE_GEN_LOGITS | SERVE_GEN_NO_TEXT |
		       SERVE_GEN_NO_REUSE;
	g->gen.max_tokens = 1;
	g->gen.priority = 3;
	g->gen.repair = g->way == BLEND ? REPAIR_BLEND : REPAIR_NONE;
	g->gen.repair_permille = g->way == BLEND ? GATE_PERMILLE : 0;
	ret = serve_generate(g->session, &g->gen);
	g->in_flight = !ret;
	return ret;
}

/* ---- kept across restarts ---------------------------------------------------------- */

/* What is asked, and how: another question is another measurement. */
static void how_measured(uint64_t how[2])
{
	const uint32_t n[] = { HOW_VERSION, GATE_PERMILLE, MAX_TOKENS,
			       MAX_CHUNKS };
	crypto_generichash_state st;

	crypto_generichash_init(&st, NULL, 0, 16);
	crypto_generichash_update(&st, (const void *)n, sizeof(n));
	for (uint32_t i = 0; i < KV_ARRAY_LEN(prompts); i++) {
		const struct prompt *p = &prompts[i];
		const char *all[MAX_CHUNKS + 2] = { p->system, p->question };

		memcpy(all + 2, p->chunks, sizeof(p->chunks));
		for (uint32_t k = 0; k < KV_ARRAY_LEN(all); k++)
			if (all[k])
				crypto_generichash_update(&st,
							  (const void *)all[k],
							  strlen(all[k]) + 1);
	}
	crypto_generichash_final(&st, (unsigned char *)how, 16);
}

static void keep_next(struct gate *g);

static void keep_run(struct loop_work *w)
{
	struct gate *g = container_of(w, struct gate, keep);

	g->keep_err = verdict_keep(g->serve->conf->state_dir,
				   g->found + g->n_kept,
				   g->n_keeping - g->n_kept);
}

static void keep_done(struct loop_work *w)
{
	struct gate *g = container_of(w, struct gate, keep);

	if (g->keep_err)
		log_info("gate", "%s: not kept for the next start: %s",
			 g->serve->conf->state_dir, strerror(-g->keep_err));
	g->n_kept = g->n_keeping;
	g->n_keeping = 0;
	keep_next(g);
}

static void keep_next(struct gate *g)
{
	if (g->n_keeping || g->n_kept == g->n_found)
		return;
	g->n_keeping = g->n_found;
	g->keep.run = keep_run;
	g->keep.done = keep_done;
	g->keep.slow = 1;
	loop_work_start(g->serve->loop, &g->keep);
}

static void keep(struct gate *g, const struct serve_model *m)
{
	struct verdict *v = &g->found[g->n_found];

	if (!isfinite(m->gate_error) || !isfinite(m->gate_plain_error))
		return; /* it was not measured */
	memcpy(v->model, m->id, sizeof(v->model));
	how_measured(v->how);
	v->plain = m->gate_plain_error;
	v->blend = m->gate_error;
	g->n_found++;
	keep_next(g);
}

/* ---- models, one after the other --------------------------------------------------- */

static struct stat *st_failed(void)
{
	return stat_get(STAT_COUNTER, "kvd_gate_failed_total",
			"Models whose chunks are not reused", NULL, NULL, 1);
}

/* The errors are known, from now or (ms < 0) from before. */
static enum gate_state judge_model(struct serve_model *m, double ms)
{
	char when[32] = "as measured before";

	if (ms >= 0)
		(void)snprintf(when, sizeof(when), "%.0f ms", ms);
	if (m->gate_error <= GATE_BOUND) {
		log_info("gate",
			 "model %s: reuse is off by %.3g, with blend by %.3g "
			 "(at most %.3g), %s",
			 m->conf->name, m->gate_plain_error, m->gate_error,
			 GATE_BOUND, when);
		return GATE_PASSED;
	}
	log_warn("gate",
		 "model %s: reuse is off by %.3g, with blend by %.3g, "
		 "more than %.3g: chunks are computed in place, %s",
		 m->conf->name, m->gate_plain_error, m->gate_error, GATE_BOUND,
		 when);
	stat_add(st_failed(), 1);
	return GATE_FAILED;
}

static void judge(struct gate *g)
{
	struct serve_model *m = model_of(g);

	m->gate_error = g->error[BLEND];
	m->gate_plain_error = g->error[PLAIN];
	free(g->full);
	g->full = NULL;
	keep(g, m);
	verdict(m, judge_model(m, (double)(clock_ns() - g->begin_ns) * 1e-6));
}

/* Models that an earlier daemon measured need not be. */
static void recall(struct serve *s)
{
	struct verdict list[VERDICT_MAX];
	const int n = verdict_read(s->conf->state_dir, list);
	uint64_t how[2];

	if (n < 0 && n != -ENOENT)
		log_warn("gate", "%s/" VERDICT_FILE ": %s: models are measured",
			 s->conf->state_dir,
			 n == -EINVAL ? "damaged" : strerror(-n));
	how_measured(how);
	for (uint32_t i = 0; i < s->n_models; i++) {
		struct serve_model *m = &s->models[i];

		for (int k = 0; k < n && m->gate == GATE_PENDING; k++) {
			if (memcmp(list[k].model, m->id, sizeof(m->id)) ||
			    memcmp(list[k].how, how, sizeof(how)))
				continue;
			m->gate_error = list[k].blend;
			m->gate_plain_error = list[k].plain;
			m->gate_kept = 1;
			m->gate = judge_model(m, -1);
		}
	}
}

static void session_closed(struct wait *w, int ret)
{
	struct gate *g = container_of(w, struct gate, closed);

	(void)ret;
	g->session = NULL;
	next_soon(g);
}

static void close_all(struct gate *g)
{
	if (g->session && !g->closing) {
		g->closing = 1;
		g->closed.done = session_closed;
		serve_session_close(g->session, &g->closed);
	} else if (!g->session && g->tenant &&
		   !list_empty(&g->tenant->chunk_jobs)) {
		next_soon(g); /* they end for nobody */
	} else if (!g->session && g->tenant) {
		serve_tenant_free(g->tenant);
		g->tenant = NULL;
		g->over = 1;
	}
}

static int begin_model(struct gate *g)
{
	const struct serve_model *m = model_of(g);
	const uint32_t n_vocab = llama_shape(m->llama)->n_vocab;

	memset(g->error, 0, sizeof(g->error));
	g->i_prompt = 0;
	g->way = FULL;
	g->begin_ns = clock_ns();
	g->full = malloc(n_vocab * sizeof(*g->full));
	return g->full ? 0 : -ENOMEM;
}

/* The next question, model, or the end. */
static void turn(struct loop_call *c)
{
	struct gate *g = container_of(c, struct gate, next);

	if (g->serve->draining) /* who waits is answered, from nothing */
		for (uint32_t i = 0; i < g->serve->n_models; i++)
			if (g->serve->models[i].gate == GATE_PENDING)
				verdict(&g->serve->models[i], GATE_FAILED);
	if (g->closing || g->serve->draining) {
		close_all(g);
		return;
	}
	if (g->full && g->i_prompt >= KV_ARRAY_LEN(prompts)) {
		judge(g);
		g->i_model++;
	}
	while (g->i_model < g->serve->n_models &&
	       model_of(g)->gate != GATE_PENDING)
		g->i_model++;
	if (g->i_model == g->serve->n_models) {
		close_all(g);
		return;
	}
	if ((!g->full && begin_model(g)) || ask(g)) {
		g->error[BLEND] = INFINITY;
		judge(g);
		g->i_model++;
		next_soon(g);
	}
}

/* Room for a prompt in place, and for one in chunks and its patch, of any model. */
uint64_t gate_memory(const struct serve *s)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct kv_layout *l = &s->models[i].layout;
		const uint32_t room =
			MAX_TOKENS + 4 * MAX_CHUNKS * l->page_tokens;

		if (s->models[i].gate == GATE_PENDING)
			bytes = KV_MAX(bytes, kv_layout_bytes(l, room));
	}
	return bytes * KV_ARRAY_LEN(prompts);
}

int gate_new(struct gate **out, struct serve *s)
{
	struct gate *g;
	int ret;

	(void)st_failed(); /* it is shown, 0 too */
	recall(s);
	if (!gate_memory(s))
		return 0;
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->serve = s;
	g->next.run = turn;
	list_init(&g->next.node);
	accounts_init(&g->accounts, gate_memory(s), 0);
	strcpy(g->conf.name, "(gate)");
	g->conf.memory_bytes = gate_memory(s);
	g->conf.weight = 1;
	g->conf.max_sessions = g->conf.max_requests = 1;
	strcpy(g->conf.policy, s->conf->policy[0] ? s->conf->policy : "clock");
	ret = serve_tenant_new(&g->tenant, s, &g->conf, &g->accounts);
	if (!ret)
		ret = serve_session_open(g->tenant, &g->session);
	if (ret) {
		serve_tenant_free(g->tenant);
		free(g);
		return ret;
	}
	*out = g;
	next_soon(g);
	return 0;
}

void gate_free(struct gate *g)
{
	if (!g)
		return;
	g->serve->draining = 1;
	if (!g->over)
		close_all(g);
	while (!g->over || g->n_keeping)
		if (loop_turn(g->serve->loop, 10) < 0)
			break;
	list_del(&g->next.node);
	free(g->full);
	free(g);
}
