/*
 * llama_gpu_graph.c - steps that queue the same are told to the device once; see
 * llama_gpu_priv.h
 *
 * What is seen for the first time is queued as ever, the second time it is captured. What
 * cannot be captured here is not tried again.
 */
#include <errno.h>
#include <string.h>

#include "kvd/model/llama_gpu_priv.h"

static struct gpu_graph *find(struct gpu_graphs *g,
			      const struct llama_gpu_key *key)
{
	struct gpu_graph *oldest = &g->list[0];

	for (uint32_t i = 0; i < GPU_GRAPHS; i++) {
		struct gpu_graph *x = &g->list[i];

		if (x->turn && !memcmp(&x->key, key, sizeof(*key)))
			return x;
		if (x->turn < oldest->turn)
			oldest = x;
	}
	if (oldest->exec)
		(void)g->api->exec_free(oldest->exec);
	*oldest = (struct gpu_graph){ .key = *key };
	return oldest;
}

/* 0: x has an instance; else queue's error, or *cannot is set and nothing is queued. */
static int capture(struct gpu_graphs *g, struct gpu_graph *x, cuda_stream st,
		   int (*queue)(void *arg), void *arg, int *cannot)
{
	cuda_handle graph = NULL;
	int ret, end;

	*cannot = g->api->capture(st, CUDA_CAPTURE_RELAXED) != CUDA_OK;
	if (*cannot)
		return 0;
	ret = queue(arg);
	end = g->api->capture_end(st, &graph);
	*cannot = end != CUDA_OK;
	if (!ret && !*cannot)
		*cannot = g->api->exec_new(&x->exec, graph, 0) != CUDA_OK;
	if (*cannot)
		x->exec = NULL;
	if (graph)
		(void)g->api->graph_free(graph);
	return *cannot ? 0 : ret;
}

int gpu_graphs_run(struct gpu_graphs *g, const struct llama_gpu_key *key,
		   cuda_stream st, int (*queue)(void *arg), void *arg)
{
	struct gpu_graph *x;
	int cannot = 0, ret = 0;

	if (g->off || !key->w[0])
		return queue(arg);
	x = find(g, key);
	if (x->turn && !x->exec)
		ret = capture(g, x, st, queue, arg, &cannot);
	x->turn = ++g->turn;
	g->off = cannot;
	if (ret || !x->exec)
		return ret ? ret : queue(arg);
	g->n_launched++;
	return kern_errno(g->api->exec_launch(x->exec, st));
}

void gpu_graphs_fini(struct gpu_graphs *g)
{
	for (uint32_t i = 0; i < GPU_GRAPHS; i++)
		if (g->list[i].exec)
			(void)g->api->exec_free(g->list[i].exec);
}
