/*
 * fake_serve.c - serve without memory or models, for the tests of ipc alone
 */
#include "tests/rig/fake_serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROW_BYTES  64u /* q, k, v, o of one token */
#define N_SEQS	   64u
#define FAKE_VOCAB 16u

struct serve_tenant {
	struct serve *serve;
	const struct conf_tenant *conf;
	uint32_t n_sessions;
};

struct serve {
	struct loop *loop;
	struct serve_tenant tenants[CONF_MAX_TENANTS];
	uint32_t n_tenants;
	uint32_t n_sessions, n_requests;
	struct wait *drained;
	struct loop_call drain_call;
};

struct serve_session {
	struct serve_tenant *tenant;
	uint32_t n_requests;
	uint64_t tokens[N_SEQS];
	uint8_t used[N_SEQS];
	struct list jobs;
	struct wait *closing;
	struct loop_call call;
};

/* One request in flight: stepped once a turn until it has ended. */
struct job {
	struct loop_call call;
	struct list node;
	struct serve_session *ss;
	struct serve_attend *attend;
	struct serve_gen *gen;
	struct serve_chunk_put *put;
	struct serve_text *text;
	int cancelled;
};

int fake_serve_new(struct serve **out, struct loop *loop,
		   const struct conf *conf)
{
	struct serve *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->loop = loop;
	s->n_tenants = conf->n_tenants;
	for (uint32_t i = 0; i < conf->n_tenants; i++)
		s->tenants[i] =
			(struct serve_tenant){ s, &conf->tenants[i], 0 };
	*out = s;
	return 0;
}

void fake_serve_free(struct serve *s)
{
	free(s);
}

uint32_t fake_serve_n_sessions(const struct serve *s)
{
	return __atomic_load_n(&s->n_sessions, __ATOMIC_RELAXED);
}

uint32_t fake_serve_n_requests(const struct serve *s)
{
	return __atomic_load_n(&s->n_requests, __ATOMIC_RELAXED);
}

struct serve_tenant *serve_tenant_find(struct serve *s, const char *name)
{
	for (uint32_t i = 0; i < s->n_tenants; i++)
		if (!strcmp(s->tenants[i].conf->name, name))
			return &s->tenants[i];
	return NULL;
}

const char *serve_tenant_name(const struct serve_tenant *t)
{
	return t->conf->name;
}

/* ---- sessions ---------------------------------------------------------- */

int serve_session_open(struct serve_tenant *t, struct serve_session **out)
{
	struct serve_session *ss;

	if (t->n_sessions >= t->conf->max_sessions)
		return -EDQUOT;
	ss = calloc(1, sizeof(*ss));
	if (!ss)
		return -ENOMEM;
	ss->tenant = t;
	list_init(&ss->jobs);
	t->n_sessions++;
	__atomic_fetch_add(&t->serve->n_sessions, 1, __ATOMIC_RELAXED);
	*out = ss;
	return 0;
}

static void try_close(struct loop_call *c)
{
	struct serve_session *ss = container_of(c, struct serve_session, call);
	struct wait *w = ss->closing;

	if (ss->n_requests) {
		loop_defer(ss->tenant->serve->loop, c);
		return;
	}
	ss->tenant->n_sessions--;
	__atomic_fetch_sub(&ss->tenant->serve->n_sessions, 1, __ATOMIC_RELAXED);
	free(ss);
	w->done(w, 0);
}

void serve_session_close(struct serve_session *ss, struct wait *w)
{
	list_for_each(n, &ss->jobs)
		list_entry(n, struct job, node)->cancelled = 1;
	ss->closing = w;
	ss->call.run = try_close;
	loop_defer(ss->tenant->serve->loop, &ss->call);
}

uint32_t serve_session_n_requests(const struct serve_session *ss)
{
	return ss->n_requests;
}

/* ---- sequences --------------------------------------------------------- */

int serve_geometry(struct serve_session *ss, const struct serve_geometry *g)
{
	(void)ss;
	return g->n_layers && g->n_layers <= 256 ? 1 : -EINVAL;
}

int serve_seq_new(struct serve_session *ss, uint32_t geometry,
		  uint64_t max_tokens)
{
	(void)max_tokens;
	if (geometry != 1)
		return -ENOENT;
	for (uint32_t i = 0; i < N_SEQS; i++) {
		if (ss->used[i])
			continue;
		ss->used[i] = 1;
		ss->tokens[i] = 0;
		return (int)i + 1;
	}
	return -EDQUOT;
}

static int known(const struct serve_session *ss, uint32_t seq)
{
	return seq && seq <= N_SEQS && ss->used[seq - 1];
}

int serve_seq_free(struct serve_session *ss, uint32_t seq)
{
	if (!known(ss, seq))
		return -ENOENT;
	ss->used[seq - 1] = 0;
	return 0;
}

int serve_seq_fork(struct serve_session *ss, uint32_t seq)
{
	int ret;

	if (!known(ss, seq))
		return -ENOENT;
	ret = serve_seq_new(ss, 1, 0);
	if (ret > 0)
		ss->tokens[ret - 1] = ss->tokens[seq - 1];
	return ret;
}

int serve_map_mode(const struct serve_tenant *t)
{
	(void)t;
	return CONF_MAP_NO;
}

int serve_map_faults(struct serve_session *ss, int fd,
		     struct serve_map_events *e)
{
	(void)ss;
	(void)fd;
	(void)e;
	return -ENOTSUP;
}

int serve_map_seq(struct serve_session *ss, uint32_t seq, struct serve_map *m)
{
	(void)m;
	return known(ss, seq) ? -ENOTSUP : -ENOENT;
}

int serve_map_at(struct serve_session *ss, uint32_t map, uint64_t addr)
{
	(void)ss;
	(void)map;
	(void)addr;
	return -ENOENT;
}

int serve_unmap(struct serve_session *ss, uint32_t map, struct wait *w)
{
	(void)w;
	(void)ss;
	(void)map;
	return -ENOENT;
}

int serve_map_space(struct serve_session *ss, uint32_t space)
{
	(void)ss;
	(void)space;
	return -ENOENT;
}

int serve_map_states(struct serve_session *ss, uint32_t space)
{
	(void)ss;
	(void)space;
	return -ENOENT;
}

int serve_seq_seal(struct serve_session *ss, uint32_t seq)
{
	return known(ss, seq) ? 0 : -ENOENT;
}

int serve_seq_skip(struct serve_session *ss, uint32_t seq, uint64_t from,
		   uint64_t to)
{
	if (!known(ss, seq))
		return -ENOENT;
	return from <= to && to <= ss->tokens[seq - 1] ? 0 : -EINVAL;
}

int serve_seq_edit(struct serve_session *ss, uint32_t seq, uint64_t at,
		   uint64_t n_removed, uint64_t n_new)
{
	uint64_t *n;

	if (!known(ss, seq))
		return -ENOENT;
	n = &ss->tokens[seq - 1];
	if (at > *n || n_removed > *n - at || n_new > 1u << 24)
		return -EINVAL;
	*n += n_new - n_removed;
	return 0;
}

int serve_seq_truncate(struct serve_session *ss, uint32_t seq,
		       uint64_t n_tokens)
{
	if (!known(ss, seq))
		return -ENOENT;
	if (n_tokens > ss->tokens[seq - 1])
		return -EINVAL;
	ss->tokens[seq - 1] = n_tokens;
	return 0;
}

int serve_seq_info(struct serve_session *ss, uint32_t seq,
		   struct serve_seq_info *out)
{
	if (!known(ss, seq))
		return -ENOENT;
	*out = (struct serve_seq_info){ .n_tokens = ss->tokens[seq - 1] };
	return 0;
}

int serve_seq_shape(struct serve_session *ss, uint32_t seq, size_t *row_q_bytes,
		    size_t *row_kv_bytes)
{
	if (!known(ss, seq))
		return -ENOENT;
	*row_q_bytes = *row_kv_bytes = ROW_BYTES;
	return 0;
}

/* ---- requests ---------------------------------------------------------- */

static void job_end(struct job *j)
{
	list_del(&j->node);
	j->ss->n_requests--;
	__atomic_fetch_sub(&j->ss->tenant->serve->n_requests, 1,
			   __ATOMIC_RELAXED);
	free(j);
}

static void attend_run(struct serve_session *ss, struct serve_attend *a)
{
	for (uint32_t i = 0; i < a->n_items; i++) {
		struct serve_attend_item *it = &a->items[i];
		const size_t n = (size_t)it->n_tokens * ROW_BYTES;

		if (it->k)
			ss->tokens[it->seq - 1] += it->n_tokens;
		if (it->q)
			memmove(it->o, it->q, n);
		it->res = 0;
	}
}

/* 1 when it has ended. */
static int gen_step(struct job *j)
{
	struct serve_gen *g = j->gen;
	const uint32_t n = g->n_out;

	if (n == g->max_tokens && g->flags & SERVE_GEN_IGNORE_EOS)
		return 0; /* until it is cancelled */
	if (n < g->max_tokens) {
		g->tokens[n] = (struct serve_token){ n + 1, -0.5f, 4 * n, 4 };
		memcpy(g->text + 4 * n, "tok ", 4);
		g->n_out++;
		g->n_text += 4;
		if (g->n_out < g->max_tokens ||
		    g->flags & SERVE_GEN_IGNORE_EOS) {
			g->progress(g);
			return 0;
		}
	}
	g->end = 1; /* KV_END_LENGTH */
	g->stats.n_prompt = g->n_parts;
	return 1;
}

static void gen_finish(struct serve_gen *g, int ret)
{
	struct serve_token *tokens = g->tokens;
	float *logits = g->logits;
	char *text = g->text;

	g->wait.done(&g->wait, ret);
	free(tokens);
	free(logits);
	free(text);
}

static void job_run(struct loop_call *c)
{
	struct job *j = container_of(c, struct job, call);
	const int err = j->cancelled ? -ECANCELED : 0;
	struct serve_attend *a = j->attend;
	struct serve_chunk_put *p = j->put;
	struct serve_text *t = j->text;
	struct serve_gen *g = j->gen;

	if (g && !err && !gen_step(j)) {
		loop_defer(j->ss->tenant->serve->loop, c);
		return;
	}
	if (a)
		attend_run(j->ss, a);
	job_end(j);
	if (a)
		a->wait.done(&a->wait, err);
	if (t)
		t->wait.done(&t->wait, 0);
	if (g)
		gen_finish(g, err ? err : (int)g->n_out);
	if (p) {
		p->id[0] = p->part.text_len;
		p->wait.done(&p->wait, err ? err : (int)p->part.text_len);
	}
}

static struct job *job_new(struct serve_session *ss)
{
	struct job *j;

	if (ss->n_requests >= ss->tenant->conf->max_requests)
		return NULL;
	j = calloc(1, sizeof(*j));
	if (!j)
		return NULL;
	j->ss = ss;
	j->call.run = job_run;
	list_push(&ss->jobs, &j->node);
	ss->n_requests++;
	__atomic_fetch_add(&ss->tenant->serve->n_requests, 1, __ATOMIC_RELAXED);
	loop_defer(ss->tenant->serve->loop, &j->call);
	return j;
}

int serve_attend(struct serve_session *ss, struct serve_attend *a)
{
	struct job *j = job_new(ss);

	if (!j)
		return -EDQUOT;
	j->attend = a;
	return 0;
}

int serve_generate(struct serve_session *ss, struct serve_gen *g)
{
	struct job *j;

	if (g->model[0] && strcmp(g->model, "fake"))
		return -ENOENT;
	j = job_new(ss);
	if (!j)
		return -EDQUOT;
	j->gen = g;
	g->tokens = calloc(g->max_tokens + 1u, sizeof(*g->tokens));
	g->text = calloc(g->max_tokens + 1u, 4);
	g->n_vocab = FAKE_VOCAB;
	if (g->flags & SERVE_GEN_LOGITS)
		g->logits = calloc(FAKE_VOCAB, sizeof(float));
	return 0;
}

void serve_cancel(struct serve_session *ss, struct serve_gen *g)
{
	list_for_each(n, &ss->jobs)
		if (list_entry(n, struct job, node)->gen == g)
			list_entry(n, struct job, node)->cancelled = 1;
}

void serve_attend_cancel(struct serve_session *ss, struct serve_attend *a)
{
	list_for_each(n, &ss->jobs)
		if (list_entry(n, struct job, node)->attend == a)
			list_entry(n, struct job, node)->cancelled = 1;
}

void serve_chunk_put_cancel(struct serve_session *ss, struct serve_chunk_put *p)
{
	list_for_each(n, &ss->jobs)
		if (list_entry(n, struct job, node)->put == p)
			list_entry(n, struct job, node)->cancelled = 1;
}

int serve_chunk_put(struct serve_session *ss, struct serve_chunk_put *p)
{
	struct job *j = job_new(ss);

	if (!j)
		return -EDQUOT;
	j->put = p;
	return 0;
}

int serve_chunk_rm(struct serve_session *ss, const uint64_t id[2])
{
	(void)ss;
	return id[0] ? 0 : -ENOENT;
}

int serve_persist(struct serve_session *ss, struct serve_persist *p)
{
	(void)ss;
	(void)p;
	return -ENOTSUP;
}

int serve_tokenize(struct serve_session *ss, struct serve_text *t)
{
	struct job *j = job_new(ss);

	if (!j)
		return -EDQUOT;
	for (size_t i = 0; i < t->len && i < t->max; i++)
		t->tokens[i] = (unsigned char)t->text[i];
	t->n = (int64_t)t->len;
	j->text = t;
	return 0;
}

int64_t serve_detokenize(struct serve_session *ss, const char *model,
			 const uint32_t *tokens, size_t n, char *out,
			 size_t max)
{
	(void)ss;
	(void)model;
	for (size_t i = 0; i < n && i < max; i++)
		out[i] = (char)tokens[i];
	return (int64_t)n;
}

int serve_query(struct serve *s, struct serve_session *ss, const char *what,
		const char *arg, char **out)
{
	(void)s;
	(void)ss;
	(void)arg;
	if (strcmp(what, "status"))
		return -ENOENT;
	*out = strdup("{\"fake\":true}");
	return *out ? 0 : -ENOMEM;
}

int serve_is_list(const char *what)
{
	(void)what;
	return 0;
}

int serve_list_new(struct serve *s, const struct serve_session *ss,
		   const char *what, const char *arg, char *out, size_t room,
		   struct serve_list **list)
{
	(void)s;
	(void)ss;
	(void)what;
	(void)arg;
	(void)out;
	(void)room;
	(void)list;
	return -ENOENT;
}

int64_t serve_list_step(struct serve_list *l, uint64_t until_ns)
{
	(void)l;
	(void)until_ns;
	return -ENOENT;
}

void serve_list_free(struct serve_list *l)
{
	(void)l;
}

int serve_trim(struct serve *s, struct serve_trim *t)
{
	(void)s;
	(void)t;
	return -ENOTSUP;
}

static void tell_drained(struct loop_call *c)
{
	struct serve *s = container_of(c, struct serve, drain_call);

	s->drained->done(s->drained, 0);
}

void serve_drain(struct serve *s, struct wait *w)
{
	s->drained = w;
	s->drain_call.run = tell_drained;
	loop_defer(s->loop, &s->drain_call);
}

/* ---- what it has not --------------------------------------------------------- */

int serve_can_export(const struct serve_tenant *t)
{
	(void)t;
	return 0;
}

int serve_export(struct serve_session *ss, struct serve_export *x)
{
	(void)ss;
	(void)x;
	return -ENOTSUP;
}

int serve_export_pages(struct serve_session *ss, struct serve_export_pages *p)
{
	(void)ss;
	(void)p;
	return -ENOENT;
}

int serve_unexport(struct serve_session *ss, uint32_t id)
{
	(void)ss;
	(void)id;
	return -ENOENT;
}

int serve_seq_wrote(struct serve_session *ss, uint32_t seq, uint64_t n)
{
	(void)ss;
	(void)seq;
	(void)n;
	return -ENOENT;
}

int serve_buffer(struct serve_session *ss, struct serve_buffer *b)
{
	(void)ss;
	(void)b;
	return -ENOTSUP;
}

int serve_buffer_free(struct serve_session *ss, uint32_t id)
{
	(void)ss;
	(void)id;
	return -ENOENT;
}

void *serve_buffer_at(struct serve_session *ss, uint32_t id, uint64_t off,
		      uint64_t n)
{
	(void)ss;
	(void)id;
	(void)off;
	(void)n;
	return NULL;
}
