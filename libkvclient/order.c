/*
 * order.c - in which order a closed set of prompts is best asked; see kvclient.h
 *
 * Sorted by their units, prompts that begin alike stand together: the prefix tree is the
 * intervals of that order. One level of it is chosen (BatchLLM, Zheng et al. 2024,
 * arXiv:2412.03594): best(v) = max((n_v - 1) tokens(v), sum of best(children)).
 */
#include <errno.h>
#include <stdlib.h>
#include "libkvclient/kvc.h"

struct group {
	uint32_t first, n;
	double ratio; /* tokens that come out over tokens computed */
};

struct tree {
	const struct kvc_prompt *prompts;
	uint32_t *sorted; /* [n] */
	uint32_t *begin; /* [n] where the group of a place begins */
};

static int by_units(const void *a, const void *b, void *ctx)
{
	const struct kvc_prompt *prompts = ctx;
	const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
	const struct kvc_prompt *x = &prompts[i], *y = &prompts[j];

	for (uint32_t k = 0; k < x->n && k < y->n; k++)
		if (x->ids[k] != y->ids[k])
			return x->ids[k] < y->ids[k] ? -1 : 1;
	if (x->n != y->n)
		return x->n < y->n ? -1 : 1;
	return i < j ? -1 : i > j;
}

static const struct kvc_prompt *at(const struct tree *t, uint32_t i)
{
	return &t->prompts[t->sorted[i]];
}

/* Units that two prompts begin with alike, and their tokens. */
static uint32_t common(const struct kvc_prompt *a, const struct kvc_prompt *b,
		       uint64_t *tokens)
{
	uint32_t k = 0;

	*tokens = 0;
	while (k < a->n && k < b->n && a->ids[k] == b->ids[k])
		*tokens += a->n_tokens[k++];
	return k;
}

/* The end of the prompts from i on that have i's unit at depth. */
static uint32_t child_end(const struct tree *t, uint32_t i, uint32_t end,
			  uint32_t depth)
{
	uint32_t j = i + 1;

	if (at(t, i)->n <= depth)
		return j;
	while (j < end && at(t, j)->n > depth &&
	       at(t, j)->ids[depth] == at(t, i)->ids[depth])
		j++;
	return j;
}

/* The most tokens that groups of [from, end) save; marks them. */
static uint64_t best(struct tree *t, uint32_t from, uint32_t end)
{
	uint64_t tokens, below = 0, here;
	uint32_t depth;

	t->begin[from] = from;
	if (end - from == 1)
		return 0;
	depth = common(at(t, from), at(t, end - 1), &tokens);
	for (uint32_t i = from, j; i < end; i = j) {
		j = child_end(t, i, end, depth);
		below += best(t, i, j);
	}
	here = (uint64_t)(end - from - 1) * tokens;
	if (!here || here < below)
		return below;
	for (uint32_t i = from; i < end; i++)
		t->begin[i] = from;
	return here;
}

static double ratio_of(const struct tree *t, uint32_t from, uint32_t n)
{
	uint64_t in = 0, out = 0, shared;

	for (uint32_t i = from; i < from + n; i++) {
		const struct kvc_prompt *p = at(t, i);

		out += p->n_out;
		for (uint32_t k = 0; k < p->n; k++)
			in += p->n_tokens[k];
	}
	(void)common(at(t, from), at(t, from + n - 1), &shared);
	in -= (n - 1) * shared;
	return (double)out / (double)(in ? in : 1);
}

static int by_ratio(const void *a, const void *b)
{
	const struct group *x = a, *y = b;

	if (x->ratio != y->ratio)
		return x->ratio > y->ratio ? -1 : 1;
	return x->first < y->first ? -1 : x->first > y->first;
}

static uint32_t list_groups(const struct tree *t, uint32_t n, struct group *g)
{
	uint32_t n_groups = 0;

	for (uint32_t i = 0, j; i < n; i = j) {
		j = i + 1;
		while (j < n && t->begin[j] == i)
			j++;
		g[n_groups++] =
			(struct group){ i, j - i, ratio_of(t, i, j - i) };
	}
	qsort(g, n_groups, sizeof(*g), by_ratio);
	return n_groups;
}

int kvc_order(const struct kvc_prompt *prompts, uint32_t n,
	      struct kvc_turn *turns)
{
	struct tree t = { .prompts = prompts };
	struct group *groups = calloc(n + 1u, sizeof(*groups));
	uint32_t n_groups = 0, k = 0;
	int ret = -ENOMEM;

	t.sorted = calloc(n + 1u, sizeof(*t.sorted));
	t.begin = calloc(n + 1u, sizeof(*t.begin));
	if (!groups || !t.sorted || !t.begin)
		goto out;
	for (uint32_t i = 0; i < n; i++)
		t.sorted[i] = i;
	qsort_r(t.sorted, n, sizeof(*t.sorted), by_units,
		(void *)(uintptr_t)prompts);
	if (n) {
		(void)best(&t, 0, n);
		n_groups = list_groups(&t, n, groups);
	}
	for (uint32_t g = 0; g < n_groups; g++) {
		const uint32_t first = k;

		for (uint32_t i = 0; i < groups[g].n; i++, k++)
			turns[k] = (struct kvc_turn){
				t.sorted[groups[g].first + i], first
			};
	}
	ret = (int)n_groups;
out:
	free(groups);
	free(t.sorted);
	free(t.begin);
	return ret;
}
