/*
 * batch_gpu.c - a step where KV lies on a device: what batch.c built, for gpu.h
 *
 * Thread: engine thread.
 */
#include "kvd/serve/batch_priv.h"

#include <errno.h>
#include <stdlib.h>
#include "kvd/serve/batch_stage.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/focus.h"

struct kern_sample batch_sampler(const struct gen *g)
{
	const struct serve_gen *r = g->req;

	return (struct kern_sample){
		.temperature = r->temperature,
		.top_k = r->top_k,
		.top_p = r->top_p > 0 ? r->top_p : 1.0f,
		.min_p = r->min_p,
		.seed = r->seed,
		.pos = g->n_all,
	};
}

static int probe_on_device(struct batch *b, struct gpu_step *s)
{
	struct repair_group *r = b->probe_group;
	struct attn_target *at = malloc(b->n_rows * sizeof(*at));
	int ret;

	if (!at)
		return -ENOMEM;
	repair_probed_at(b->probe, r, b->n_rows, at);
	s->items[0] = (struct attn_item){ .shape = &b->model->shape,
					  .seq = &b->probe->seq,
					  .pos = r->first + r->n_probed,
					  .n_rows = b->n_rows,
					  .in = KERN_F32,
					  .q = b };
	s->n_items = 1;
	ret = gpu_lane_probe(b->lane->gpu, s, at, r->dev + r->n_probed);
	free(at);
	return ret;
}

/* One layer of the question's look. */
static int look(void *ctx, uint32_t layer, const cuda_ptr qkvo[4])
{
	struct batch *b = ctx;
	const struct attn_place at = { .scratch = &b->lane->scratch,
				       .gpu = gpu_lane_attn(b->lane->gpu) };
	float *p[4];

	for (int i = 0; i < 4; i++)
		p[i] = (float *)(uintptr_t)qkvo[i];
	return focus_attn(b->probe, &at, layer, p[0], p[1], p[2], p[3]);
}

/* 1: all rows of logits are for choosing one token each: that is done there. */
static int list_samplers(struct batch *b, struct gpu_step *s)
{
	if (llama_shape(b->model->llama)->n_vocab > GPU_SAMPLE_MAX)
		return 0;
	s->logits = NULL;
	for (uint32_t i = 0; i < b->n_gens; i++) {
		const struct gen *g = b->gens[i];
		struct kern_sample p;

		if (!g->n_step_logits)
			continue;
		if (g->req->flags & SERVE_GEN_SCORE)
			return 0;
		if (g->req->flags & SERVE_GEN_LOGITS && !g->req->logits)
			s->logits = b->logits;
		p = batch_sampler(g);
		b->how[g->step_logits] =
			(struct gpu_sampler){ p.temperature, p.top_k, p.top_p,
					      p.min_p,	     p.seed,  p.pos };
	}
	return 1;
}

static void take_tokens(struct batch *b)
{
	for (uint32_t i = 0; i < b->n_gens; i++) {
		struct gen *g = b->gens[i];

		if (!g->n_step_logits)
			continue;
		g->sampled = b->chosen[g->step_logits];
		g->sampled_logprob = b->chosen_logprob[g->step_logits];
	}
}

/* Queries of chunks that are to become variants. */
static int list_kept(const struct batch *b, struct gpu_step *s,
		     struct gpu_kept **out)
{
	struct gpu_kept *list = NULL;
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->n_runs; i++) {
		const struct row_run *r = &b->runs[i];
		struct gpu_kept x = { .row = r->row, .n = r->n };

		if (r->patched)
			continue;
		x.to = craft_queries_at(r->g, r->pos, &x.layer_bytes);
		if (!x.to)
			continue;
		if (!list)
			list = malloc(b->n_runs * sizeof(*list));
		if (!list)
			return -ENOMEM;
		list[n++] = x;
	}
	s->kept = *out = list;
	s->n_kept = n;
	return 0;
}

int batch_on_device(struct batch *b)
{
	struct gpu_step s = {
		.scratch = &b->lane->scratch,
		.i_model = (uint32_t)(b->model - b->serve->models),
		.n_rows = b->n_rows,
		.n_logits = b->n_logits,
		.tokens = b->tokens,
		.logit_rows = b->logit_rows,
		.logits = b->logits,
		.items = b->items,
		.n_items = b->n_runs,
		.chosen = b->chosen,
		.logprob = b->chosen_logprob,
	};
	struct batch_stages stages = { 0 };
	struct gpu_kept *kept = NULL;
	int ret;

	if (b->probe)
		return b->probe_group
			       ? probe_on_device(b, &s)
			       : gpu_lane_look(b->lane->gpu, &s, look, b);
	batch_items(b, 0, b->items);
	ret = list_kept(b, &s, &kept);
	if (!ret)
		ret = batch_stages(b, &s, &stages);
	if (!ret) {
		if (list_samplers(b, &s))
			s.how = b->how;
		else
			s.logits = b->logits;
		ret = gpu_lane_step(b->lane->gpu, &s);
	}
	batch_stages_free(&stages);
	free(kept);
	b->chose = !ret && s.how;
	if (b->chose)
		take_tokens(b);
	return ret;
}
