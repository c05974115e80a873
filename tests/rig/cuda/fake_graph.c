/*
 * fake_graph.c - graphs of the fake driver: what a stream was told, told again
 *
 * Launches, copies and memsets are captured with their arguments as they are; what waits or
 * tells others is not, and breaks the capture. Graphs that live count as handles.
 */
#include <stdlib.h>
#include <string.h>
#include "tests/rig/cuda/fake_priv.h"

int fake_captured(struct fake_stream *s, const struct fake_op *op)
{
	struct fake_graph *g = s->capture;

	if (op->kind == OP_EVENT || op->kind == OP_WAIT) {
		g->broken = 1;
		return CUDA_CAPTURE_UNSUPPORTED;
	}
	if (g->n == g->room) {
		const uint32_t room = 2 * g->room + 64;
		struct fake_op *ops = realloc(g->ops, room * sizeof(*ops));

		if (!ops)
			return CUDA_OUT_OF_MEMORY;
		g->ops = ops;
		g->room = room;
	}
	g->ops[g->n++] = *op;
	return CUDA_OK;
}

int cuStreamBeginCapture_v2(cuda_stream st, int mode);
int cuStreamBeginCapture_v2(cuda_stream st, int mode)
{
	const int err = fake_enter("cuStreamBeginCapture_v2");
	struct fake_stream *s = st;

	if (err)
		return err;
	if (mode != CUDA_CAPTURE_RELAXED || s->capture)
		return fake_leave(CUDA_INVALID_VALUE);
	s->capture = calloc(1, sizeof(*s->capture));
	return fake_leave(s->capture ? CUDA_OK : CUDA_OUT_OF_MEMORY);
}

static void drop(struct fake_graph *g)
{
	free(g->ops);
	free(g);
}

int cuStreamEndCapture(cuda_stream st, cuda_handle *graph);
int cuStreamEndCapture(cuda_stream st, cuda_handle *graph)
{
	const int err = fake_enter("cuStreamEndCapture");
	struct fake_stream *s = st;
	struct fake_graph *g;

	if (err) { /* the capture ends all the same */
		g = s->capture;
		s->capture = NULL;
		if (g)
			drop(g);
		return err;
	}
	g = s->capture;
	s->capture = NULL;
	*graph = NULL;
	if (!g)
		return fake_leave(CUDA_INVALID_VALUE);
	if (g->broken) {
		drop(g);
		return fake_leave(CUDA_CAPTURE_UNSUPPORTED);
	}
	*graph = g;
	fake.st.n_handles++;
	return fake_leave(CUDA_OK);
}

int cuGraphInstantiateWithFlags(cuda_handle *exec, cuda_handle graph,
				unsigned long long flags);
int cuGraphInstantiateWithFlags(cuda_handle *exec, cuda_handle graph,
				unsigned long long flags)
{
	const int err = fake_enter("cuGraphInstantiateWithFlags");
	const struct fake_graph *from = graph;
	struct fake_graph *g;

	if (err)
		return err;
	if (flags)
		return fake_leave(CUDA_INVALID_VALUE);
	g = calloc(1, sizeof(*g));
	if (g)
		g->ops = malloc((from->n + 1) * sizeof(*g->ops));
	if (!g || !g->ops) {
		free(g);
		return fake_leave(CUDA_OUT_OF_MEMORY);
	}
	memcpy(g->ops, from->ops, from->n * sizeof(*g->ops));
	g->n = from->n;
	*exec = g;
	fake.st.n_handles++;
	return fake_leave(CUDA_OK);
}

static int end(const char *symbol, struct fake_graph *g)
{
	const int err = fake_enter(symbol);

	if (err && fake.lost) /* with its context */
		drop(g);
	if (err)
		return err;
	drop(g);
	fake.st.n_handles--;
	return fake_leave(CUDA_OK);
}

int cuGraphDestroy(cuda_handle graph);
int cuGraphDestroy(cuda_handle graph)
{
	return end("cuGraphDestroy", graph);
}

int cuGraphExecDestroy(cuda_handle exec);
int cuGraphExecDestroy(cuda_handle exec)
{
	return end("cuGraphExecDestroy", exec);
}

int cuGraphLaunch(cuda_handle exec, cuda_stream st);
int cuGraphLaunch(cuda_handle exec, cuda_stream st)
{
	const int err = fake_enter("cuGraphLaunch");
	const struct fake_graph *g = exec;
	int ret = CUDA_OK;

	if (err)
		return err;
	for (uint32_t i = 0; i < g->n && !ret; i++)
		ret = fake_queue(st, g->ops[i]);
	return fake_leave(ret);
}
