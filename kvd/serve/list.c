/*
 * list.c - "segments" and "chunks": what there may be a million of, as JSON
 *
 * In parts, so that others are served in between. What comes and goes meanwhile may be in it
 * or not; what is there all the time is in it once.
 */
#include "kvd/serve/serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/json.h"
#include "kvd/serve/tenant.h"

#define AT_ONCE 16u /* segments between two looks at the clock */

struct serve_list {
	struct serve *serve;
	struct serve_tenant *only; /* or NULL: all */
	uint32_t i_tenant, at; /* where it is */
	int chunks; /* else all segments */
	int begun, ret;
	char *out;
	size_t room, n; /* of out; written, and what found no room */
};

static void put(struct serve_list *l, const char *text, size_t n)
{
	if (l->n < l->room)
		memcpy(l->out + l->n, text, KV_MIN(n, l->room - l->n));
	l->n += n;
}

static void put_object(struct serve_list *l, json_t *o)
{
	char *text = json_dumps(o, JSON_COMPACT);

	json_decref(o);
	if (!text) {
		l->ret = -ENOMEM;
		return;
	}
	put(l, ",", l->begun ? 1 : 0);
	l->begun = 1;
	put(l, text, strlen(text));
	free(text);
}

static int is_utf8(const char *text, size_t n)
{
	json_t *j = json_stringn(text, n);

	json_decref(j);
	return !!j;
}

/* The text of a chunk, shortened, for a person to recognise it; any bytes may be in it. */
static void set_text(json_t *o, struct serve_tenant *t, const struct segment *s)
{
	const struct tokenizer *tok;
	char text[64];
	int64_t n;

	if (!t->serve->n_models || !s->tokens)
		return;
	tok = llama_tokenizer(t->serve->models[0].llama);
	n = tokenizer_decode(tok, s->tokens, KV_MIN(s->n_tokens, 16u), text,
			     sizeof(text) - 1);
	if (n < 0)
		return;
	n = KV_MIN(n, (int64_t)sizeof(text) - 1);
	while (n && text[n - 1] & 0x80) /* no half character at the end */
		n--;
	for (int64_t i = 0; i < n && !is_utf8(text, (size_t)n); i++)
		if (text[i] & 0x80)
			text[i] = '?';
	json_object_set_new(o, "text", json_stringn(text, (size_t)n));
}

/* It was computed in company: which one of the chunk, behind how many others. */
static void set_variant(json_t *o, const struct variant *v, double value)
{
	char name[17];

	snprintf(name, sizeof(name), "%016llx",
		 (unsigned long long)v->ctx.w[0]);
	set_str(o, "variant", name);
	set_int(o, "behind", v->n_prefix);
	set_int(o, "depth", v->depth);
	json_object_set_new(o, "cci", json_real((double)v->cci));
	json_object_set_new(o, "value", json_real(value));
}

static void segment_object(struct segment *s, void *arg)
{
	struct serve_list *l = arg;
	struct serve_tenant *t = l->serve->tenants[l->i_tenant];
	json_t *o;

	if (l->chunks && !s->is_chunk && !s->is_variant)
		return;
	o = json_object();
	set_str(o, "tenant", t->conf->name);
	if (s->is_chunk || s->is_variant)
		set_id(o, "id", s->is_chunk ? s->chunk_id : s->variant->chunk);
	else if (s->ids)
		set_id(o, "id",
		       s->ids[KV_DIV_UP(s->n_tokens, SEGMENT_BLOCK) - 1]);
	set_int(o, "tokens", s->n_tokens);
	set_int(o, l->chunks ? "hits" : "refs",
		l->chunks ? s->n_hits : s->n_refs);
	set_int(o, "pages", range_n_pages(s->range));
	set_int(o, "resident", range_n_resident(s->range));
	set_int(o, "lower", range_n_lower(s->range));
	json_object_set_new(o, "durable",
			    json_boolean(range_durable(s->range)));
	if (l->chunks)
		set_text(o, t, s);
	if (l->chunks && s->is_variant)
		set_variant(o, s->variant,
			    variant_value(&t->variants, s->variant));
	else if (l->chunks)
		json_object_set_new(o, "value",
				    json_real(chunk_value(&t->chunks, s)));
	if (!l->chunks)
		set_str(o, "kind",
			s->is_chunk	? "chunk"
			: s->is_variant ? "variant"
			: s->sealed	? "prefix"
					: "open");
	put_object(l, o);
}

/* ---- the list -------------------------------------------------------------------- */

int serve_is_list(const char *what)
{
	return !strcmp(what, "segments") || !strcmp(what, "chunks");
}

int serve_list_new(struct serve *s, const struct serve_session *ss,
		   const char *what, const char *arg, char *out, size_t room,
		   struct serve_list **list)
{
	struct serve_tenant *only = ss ? ss->tenant : NULL;
	struct serve_list *l;

	for (uint32_t i = 0; arg[0] && i < s->n_tenants && !only; i++)
		if (!strcmp(arg, s->tenants[i]->conf->name))
			only = s->tenants[i];
	if (arg[0] && (!only || strcmp(arg, only->conf->name)))
		return -ENOENT;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->serve = s;
	l->only = only;
	l->chunks = !strcmp(what, "chunks");
	l->out = out;
	l->room = room;
	put(l, "[", 1);
	*list = l;
	return 0;
}

/* The next of the tenant's; 1: there are more. */
static int tenant_step(struct serve_list *l)
{
	struct serve_tenant *t = l->serve->tenants[l->i_tenant];

	return (!l->only || l->only == t) &&
	       segment_walk(t->pool, &l->at, AT_ONCE, segment_object, l);
}

int64_t serve_list_step(struct serve_list *l, uint64_t until_ns)
{
	while (l->i_tenant < l->serve->n_tenants && !l->ret) {
		if (!tenant_step(l)) {
			l->i_tenant++;
			l->at = 0;
		}
		if (clock_ns() >= until_ns)
			return 0;
	}
	if (l->ret)
		return l->ret;
	put(l, "]", 1);
	return (int64_t)l->n;
}

void serve_list_free(struct serve_list *l)
{
	free(l);
}

/* Into room bytes of out; the size of all of it. */
static int64_t fill(struct serve *s, const struct serve_session *ss,
		    const char *what, const char *arg, char *out, size_t room)
{
	struct serve_list *l;
	int64_t n = serve_list_new(s, ss, what, arg, out, room, &l);

	if (n)
		return n;
	n = serve_list_step(l, UINT64_MAX);
	serve_list_free(l);
	return n;
}

int serve_list_whole(struct serve *s, const struct serve_session *ss,
		     const char *what, const char *arg, char **out)
{
	int64_t n = fill(s, ss, what, arg, NULL, 0);

	if (n < 0)
		return (int)n;
	*out = malloc((size_t)n + 1);
	if (!*out)
		return -ENOMEM;
	n = fill(s, ss, what, arg, *out, (size_t)n);
	if (n < 0) {
		free(*out);
		return (int)n;
	}
	(*out)[n] = 0;
	return 0;
}
