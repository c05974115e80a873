/*
 * trace.c - record what is asked of the cache; see trace.h
 *
 * text holds the bytes [from, from + n) of the recording.
 */
#include "kvd/serve/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/gate.h"
#include "kvd/serve/gen.h"

#define ROOM (4u << 20)

struct trace {
	uint32_t number; /* no other recording of this daemon has it */
	char *text;
	uint64_t from;
	size_t n;
	uint64_t n_dropped;
	uint64_t start_ns;
	unsigned char key[crypto_generichash_KEYBYTES];
};

void trace_free(struct trace *t)
{
	if (!t)
		return;
	free(t->text);
	sodium_memzero(t->key, sizeof(t->key));
	free(t);
}

static uint64_t now_ms(const struct trace *t)
{
	return (clock_ns() - t->start_ns) / 1000000u;
}

/* A number for the tenant: its place in the configuration. */
static uint32_t tenant_number(const struct serve_tenant *t)
{
	uint32_t i = 0;

	while (t->serve->tenants[i] != t)
		i++;
	return i;
}

/* Ids of all blocks of the prompt, each with a space before it. */
static size_t write_ids(const struct trace *t, const struct gen *g, char *out)
{
	unsigned char id[16] = { 0 };
	size_t n = 0;

	for (uint32_t at = 0; at < g->n_prompt; at += SEGMENT_BLOCK) {
		crypto_generichash_state st;
		uint64_t word;

		crypto_generichash_init(&st, t->key, sizeof(t->key),
					sizeof(id));
		crypto_generichash_update(&st, id, sizeof(id));
		crypto_generichash_update(
			&st, (const unsigned char *)(g->tokens + at),
			KV_MIN(SEGMENT_BLOCK, g->n_prompt - at) *
				sizeof(*g->tokens));
		crypto_generichash_final(&st, id, sizeof(id));
		memcpy(&word, id, sizeof(word));
		n += (size_t)sprintf(out + n, " %" PRIx64, word);
	}
	return n;
}

void trace_gen(struct trace *t, const struct gen *g)
{
	const size_t most =
		128 + 17 * (size_t)KV_DIV_UP(g->n_prompt, SEGMENT_BLOCK);
	char *at;
	int n;

	if (!t || !g->session || gate_owns(g->tenant))
		return;
	if (t->n + most > ROOM) {
		t->n_dropped++;
		return;
	}
	at = t->text + t->n;
	n = sprintf(at, "r %" PRIu64 " %u %u %u %u %c", now_ms(t),
		    tenant_number(g->tenant), g->session->id, g->n_prompt,
		    g->req->n_out,
		    g->req->flags & SERVE_GEN_NO_REUSE ? 'o' : '-');
	n += (int)write_ids(t, g, at + n);
	at[n++] = '\n';
	t->n += (size_t)n;
}

void trace_session(struct trace *t, const struct serve_session *ss)
{
	if (!t || gate_owns(ss->tenant))
		return;
	if (t->n + 128 > ROOM) {
		t->n_dropped++;
		return;
	}
	t->n += (size_t)sprintf(t->text + t->n, "e %" PRIu64 " %u %u\n",
				now_ms(t), tenant_number(ss->tenant), ss->id);
}

static int begin(struct trace **out)
{
	static uint32_t n_begun;
	struct trace *t = calloc(1, sizeof(*t));

	if (t)
		t->text = malloc(ROOM);
	if (!t || !t->text) {
		trace_free(t);
		return -ENOMEM;
	}
	t->number = ++n_begun;
	randombytes_buf(t->key, sizeof(t->key));
	t->start_ns = clock_ns();
	t->n = (size_t)sprintf(t->text, "kvd-trace 1 block=%u\n",
			       SEGMENT_BLOCK);
	*out = t;
	return 0;
}

static int read_from(struct trace *t, uint64_t from, char **out)
{
	if (from < t->from || from > t->from + t->n)
		return -EINVAL;
	t->n -= from - t->from;
	memmove(t->text, t->text + (from - t->from), t->n);
	t->from = from;
	if (t->n_dropped && t->n + 64 < ROOM) {
		t->n += (size_t)sprintf(t->text + t->n,
					"# %" PRIu64 " lines were dropped\n",
					t->n_dropped);
		t->n_dropped = 0;
	}
	*out = strndup(t->text, t->n);
	return *out ? 0 : -ENOMEM;
}

static int turn_on(struct trace **t, char **out)
{
	struct trace *fresh;
	int ret = begin(&fresh);

	if (ret)
		return ret;
	if (asprintf(out, "{\"recording\":%u}", fresh->number) < 0) {
		trace_free(fresh);
		return -ENOMEM;
	}
	trace_free(*t);
	*t = fresh;
	return 0;
}

/* The numbers that follow: how many, -EINVAL something else does. */
static int numbers(const char *s, uint64_t v[2])
{
	int n = 0;

	while (*s == ' ' && n < 2) {
		char *end;

		if (s[1] < '0' || s[1] > '9')
			return -EINVAL;
		v[n++] = strtoull(s + 1, &end, 10);
		s = end;
	}
	return *s ? -EINVAL : n;
}

int trace_query(struct trace **t, const char *arg, char **out)
{
	uint64_t v[2];

	if (!strcmp(arg, "on"))
		return turn_on(t, out);
	if (!strncmp(arg, "read", 4) && numbers(arg + 4, v) == 2)
		return *t && (*t)->number == v[0] ? read_from(*t, v[1], out)
						  : -ESTALE;
	if (strncmp(arg, "off", 3) || numbers(arg + 3, v) != 1)
		return -EINVAL;
	if (!*t || (*t)->number != v[0])
		return -ESTALE;
	*out = strdup("{\"recording\":0}");
	if (!*out)
		return -ENOMEM;
	trace_free(*t);
	*t = NULL;
	return 0;
}
