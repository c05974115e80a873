/*
 * scratch.c - memory of the engine threads' jobs; see attn.h
 *
 * One block that grows to the largest job, and blocks beside it until it has.
 */
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/attn.h"

struct spill {
	struct list node;
	char pad[48];
};
static_assert(sizeof(struct spill) == 64, "keeps the alignment");

void attn_scratch_init(struct attn_scratch *s)
{
	memset(s, 0, sizeof(*s));
	list_init(&s->spill);
	s->st_bytes = stat_get(STAT_COUNTER, "kvd_attention_read_bytes_total",
			       "K and V that attention went over", NULL, NULL,
			       1);
	s->st_shared = stat_get(
		STAT_COUNTER, "kvd_attention_shared_bytes_total",
		"K and V not read again, as rows share them", NULL, NULL, 1);
}

static void free_spill(struct attn_scratch *s)
{
	struct list *n;

	while ((n = list_pop(&s->spill)))
		free(list_entry(n, struct spill, node));
	s->n_spilled = 0;
}

void attn_scratch_fini(struct attn_scratch *s)
{
	free_spill(s);
	free(s->base);
}

void attn_scratch_reset(struct attn_scratch *s)
{
	const size_t want = KV_ALIGN_UP(s->n_used + s->n_spilled, 4096);
	char *base;

	if (!list_empty(&s->spill)) {
		free_spill(s);
		base = aligned_alloc(64, want);
		if (base) {
			free(s->base);
			s->base = base;
			s->n_bytes = want;
		}
	}
	s->n_used = 0;
}

void *attn_scratch_alloc(struct attn_scratch *s, size_t n_bytes)
{
	const size_t n = KV_ALIGN_UP(n_bytes + 1, 64);
	struct spill *b;
	char *p;

	if (s->n_used + n <= s->n_bytes) {
		p = s->base + s->n_used;
		s->n_used += n;
		return p;
	}
	b = aligned_alloc(64, sizeof(*b) + n);
	if (!b)
		return NULL;
	list_init(&b->node);
	list_push(&s->spill, &b->node);
	s->n_spilled += n;
	return b + 1;
}
