/*
 * sim_groups.c - what a closed set of requests can share: all of the prefix tree, or groups
 * of one level of it
 *
 * BatchLLM (Zheng et al. 2024, arXiv:2412.03594) runs the requests of a group together, so
 * that what they begin with is computed once and then forgotten. Which groups:
 *
 *   best(v) = max((n_v - 1) depth(v), sum of best(children))
 *
 * n_v requests go through node v, depth blocks from the root. A block's number names all before
 * it too, so blocks are the nodes.
 */
#include <errno.h>
#include <stdlib.h>
#include "tools/sim.h"

struct node {
	uint32_t parent, depth, n; /* depth from 1 */
	uint64_t below; /* sum of best of its children */
};
#define ROOT UINT32_MAX

static void add(const struct sim_trace *t, const struct sim_request *r,
		struct node *nodes, uint32_t *n_levels)
{
	for (uint32_t i = 0; i < r->n; i++) {
		struct node *v = &nodes[t->blocks[r->first + i]];

		if (!v->n++) {
			v->parent = i ? t->blocks[r->first + i - 1] : ROOT;
			v->depth = i + 1;
		}
	}
	if (r->n > *n_levels)
		*n_levels = r->n;
}

/* Nodes from the deepest on, counted into their levels: [n_blocks], how many there are. */
static uint32_t by_depth(const struct node *nodes, uint32_t n_blocks,
			 uint32_t *first, uint32_t n_levels, uint32_t *order)
{
	uint32_t n = 0;

	for (uint32_t v = 0; v < n_blocks; v++)
		if (nodes[v].n)
			first[n_levels - nodes[v].depth + 1]++;
	for (uint32_t d = 1; d <= n_levels; d++)
		first[d] += first[d - 1];
	for (uint32_t v = 0; v < n_blocks; v++)
		if (nodes[v].n) {
			order[first[n_levels - nodes[v].depth]++] = v;
			n++;
		}
	return n;
}

int sim_groups(const struct sim_trace *t, uint32_t n_requests,
	       struct sim_groups *out)
{
	struct node *nodes = calloc((size_t)t->n_blocks + 1, sizeof(*nodes));
	uint32_t *order = calloc((size_t)t->n_blocks + 1, sizeof(*order));
	uint32_t n_levels = 0, n, *first = NULL;
	uint64_t all = 0, best = 0;

	for (uint32_t i = 0; nodes && i < n_requests && i < t->n_requests;
	     i++) {
		add(t, &t->requests[i], nodes, &n_levels);
		all += t->requests[i].n;
	}
	first = calloc((size_t)n_levels + 2, sizeof(*first));
	if (!nodes || !order || !first) {
		free(nodes);
		free(order);
		free(first);
		return -ENOMEM;
	}
	n = by_depth(nodes, t->n_blocks, first, n_levels, order);
	for (uint32_t i = 0; i < n; i++) {
		const struct node *v = &nodes[order[i]];
		const uint64_t own = (uint64_t)(v->n - 1) * v->depth;
		const uint64_t most = own > v->below ? own : v->below;

		*(v->parent == ROOT ? &best : &nodes[v->parent].below) += most;
	}
	out->tree = all ? 1 - (double)n / (double)all : 0;
	out->one_level = all ? (double)best / (double)all : 0;
	free(nodes);
	free(order);
	free(first);
	return 0;
}
