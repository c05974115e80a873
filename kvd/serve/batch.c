/*
 * batch.c - build a step of a model from the ready generations, run it
 *
 * One step is in flight at a time. Rows: first one of each decode, then prefill
 * slices in order of arrival, until conf's batch and prefill_slice are used up (an eighth
 * more where that ends a prompt).
 * Only generations of one model share a step; models take turns.
 */
#include "kvd/serve/batch_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/focus.h"
#include "kvd/serve/gen.h"
#include "kvd/serve/restore.h"

#define SCORE_ROWS 32u /* logits of scored rows in one step */
#define FEW_OF	   8u /* of the rows of a slice: that many more end a prompt */

/* ---- on the engine ------------------------------------------------------ */

/* What the layer needs is in memory; the engine waits for it. */
static int pages_in(struct batch *b, uint32_t layer)
{
	return b->restore ? restore_wait(b->lane->engine, b->restore, layer)
			  : 0;
}

static int step_attn(void *ctx, uint32_t layer, float *q, float *k, float *v,
		     float *o)
{
	struct batch *b = ctx;
	const struct attn_shape *s = &b->model->shape;
	const size_t q_row = (size_t)s->n_heads * s->head_dim;
	const size_t kv_row = (size_t)s->n_kv_heads * s->head_dim;
	const int is_last = layer + 1 == b->model->layout.n_layers;
	int ret;

	for (uint32_t i = 0; i < b->n_runs; i++) {
		const struct row_run *r = &b->runs[i];

		b->items[i] = (struct attn_item){
			.shape = s,
			.seq = &r->g->seq,
			.pos = r->pos,
			.n_rows = focus_stops(r->g, r->patched, layer) ? 0
								       : r->n,
			.rows_at = r->patched ? b->rows_at + r->row : NULL,
			.in = KERN_F32,
			.q = is_last && !r->wanted ? NULL : q + r->at * q_row,
			.k = k + r->at * kv_row,
			.v = v + r->at * kv_row,
			.o = o + r->at * q_row,
			.resident_from = r->g->windowed ? r->g->pinned_from : 0,
			.window_bytes = r->g->window_bytes,
			.cancelled = &r->g->cancelled,
		};
		if (r->g->craft && !r->patched)
			craft_queries(r->g, layer, r->pos, r->n,
				      q + r->at * q_row);
	}
	ret = pages_in(b, layer);
	if (ret)
		return ret;
	ret = attn_layer(b->lane->engine, b->pool, &b->lane->scratch, b->items,
			 b->n_runs, layer);
	for (uint32_t i = 0; i < b->n_runs; i++)
		b->runs[i].g->n_window_read += b->items[i].n_read;
	return ret;
}

/* Rows of chunks out of focus end: focus.h. */
static uint32_t step_narrow(void *ctx, uint32_t layer, uint32_t *keep)
{
	struct batch *b = ctx;
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->n_runs; i++) {
		struct row_run *r = &b->runs[i];
		const uint32_t at = layer ? r->at : r->row;

		if (focus_stops(r->g, r->patched, layer))
			continue;
		r->at = n;
		for (uint32_t k = 0; k < r->n; k++)
			keep[n++] = at + k;
	}
	return n;
}

static int focus_step(void *ctx, uint32_t layer, float *q, float *k, float *v,
		      float *o)
{
	struct batch *b = ctx;
	const struct attn_place at = { .pool = b->pool,
				       .scratch = &b->lane->scratch };
	const int ret = pages_in(b, layer);

	return ret ? ret : focus_attn(b->probe, &at, layer, q, k, v, o);
}

/*
 * Layer 0: attention with the keys that are there; nothing is stored, as what the tokens
 * give at layer 0 is there already. Layer 1: how far K and V are off; no further.
 */
static int probe_attn(void *ctx, uint32_t layer, float *q, float *k, float *v,
		      float *o)
{
	struct batch *b = ctx;
	struct repair_group *r = b->probe_group;
	const int ret = pages_in(b, layer);

	if (ret)
		return ret;
	if (layer) { /* there is no q */
		repair_measure(b->probe, r, b->n_rows, k, v, b->pool);
		return -ECANCELED;
	}
	b->items[0] = (struct attn_item){
		.shape = &b->model->shape,
		.seq = &b->probe->seq,
		.pos = r->first + r->n_probed,
		.n_rows = b->n_rows,
		.in = KERN_F32,
		.q = q,
		.o = o,
	};
	return attn_layer(b->lane->engine, b->pool, &b->lane->scratch, b->items,
			  1, 0);
}

static void sample(struct batch *b, struct gen *g)
{
	const uint32_t n = llama_shape(b->model->llama)->n_vocab;
	const struct kern_sample p = batch_sampler(g);

	g->sampled = kern_sample(&p, b->logits + (size_t)g->step_logits * n, n,
				 b->sample_scratch, &g->sampled_logprob);
}

static int step_on_cpu(struct batch *b, struct pool *pool)
{
	const struct llama_batch lb = {
		.n_rows = b->n_rows,
		.tokens = b->tokens,
		.n_logits = b->n_logits,
		.logit_rows = b->logit_rows,
		.logits = b->logits,
		.attn = !b->probe	 ? step_attn
			: b->probe_group ? probe_attn
					 : focus_step,
		.narrow = b->probe ? NULL : step_narrow,
		.probe = !!b->probe_group && b->probe,
		.ctx = b,
	};

	b->pool = pool;
	return llama_step(b->model->llama,
			  b->scratch[b->model - b->serve->models], pool, &lb);
}

static void step_run(struct engine_job *j, struct pool *pool)
{
	struct batch *b = container_of(j, struct batch, job);

	b->chose = 0;
	b->ret = b->lane->gpu ? batch_on_device(b) : step_on_cpu(b, pool);
	if (b->probe && b->ret == -ECANCELED)
		b->ret = 0;
	for (uint32_t i = 0; i < b->n_gens && !b->ret && !b->chose; i++)
		if (b->gens[i]->n_step_logits &&
		    !(b->gens[i]->req->flags & SERVE_GEN_SCORE))
			sample(b, b->gens[i]);
}

/* ---- on the loop ----------------------------------------------------------- */

static void kick(struct batch *b)
{
	if (b->queued || b->running)
		return;
	b->queued = 1;
	loop_defer(b->serve->loop, &b->call);
}

/* A failed step of many: each alone again would tell whose fault it was; what
 * fails is a want of a windowed one, so that one ends and the others repeat. */
static int gen_ret(const struct batch *b, const struct gen *g)
{
	if (!b->ret)
		return 0;
	for (uint32_t i = 0; i < b->n_runs; i++)
		if (b->runs[i].g == g && b->items[i].ret)
			return b->items[i].ret;
	return 0;
}

static int blame_all(const struct batch *b)
{
	for (uint32_t i = 0; i < b->n_gens; i++)
		if (gen_ret(b, b->gens[i]))
			return 0;
	return 1;
}

/* There was no memory for all of them at once: each alone; for one, without what is kept
 * for its chunks' statistics. */
static int goes_alone(struct batch *b)
{
	if ((b->ret != -ENOSPC && b->ret != -ENOMEM) || !blame_all(b))
		return 0;
	if (b->n_gens == 1 && !craft_forget_queries(b->gens[0]))
		return 0;
	b->n_alone += b->n_gens;
	return 1;
}

static void probe_done(struct batch *b)
{
	struct gen *g = b->probe;
	int ret = b->ret;

	b->probe = NULL;
	g->state = GEN_READY;
	if (g->restore) {
		ret = restore_stepped(g, ret);
		if (ret && !g->cancelled) {
			gen_pages_failed(g, ret);
			kick(b);
			return;
		}
	}
	if (!ret && g->cancelled)
		ret = -ECANCELED;
	if (!ret && b->probe_group)
		ret = repair_probed(g, b->probe_group, b->n_rows);
	else if (!ret)
		focus_looked(g);
	if (ret)
		gen_end(g, ret);
	else
		batch_add(g);
	kick(b);
}

static void note_rate(struct batch *b)
{
	const uint64_t ns = clock_ns() - b->start_ns;

	if (b->ret || b->lane != &b->serve->lanes[LANE_RESIDENT])
		return;
	if (b->n_rows >= BATCH_PREFILL_ROWS)
		rate_add(&b->model->prefill, b->n_rows, ns);
	else
		rate_add(&b->model->small_steps, 1, ns);
}

static void step_done(struct engine_job *j)
{
	struct batch *b = container_of(j, struct batch, job);
	const uint32_t n_vocab = llama_shape(b->model->llama)->n_vocab;
	const int failed = b->ret;
	const int again = failed && !b->probe && goes_alone(b);
	const int all = failed && !again && blame_all(b);

	b->running = 0;
	if (b->probe) {
		b->probed = 1;
		probe_done(b);
		return;
	}
	note_rate(b);
	for (uint32_t i = 0; i < b->n_gens; i++) {
		struct gen *g = b->gens[i];
		const int ret = all ? failed : gen_ret(b, g);

		if (failed && !ret) {
			g->state = GEN_READY;
			batch_add(g);
			continue;
		}
		for (uint32_t k = 0; k < b->n_runs && !ret; k++)
			if (b->runs[k].g == g)
				g->pos = b->rows_at[b->runs[k].row +
						    b->runs[k].n - 1] +
					 1;
		gen_computed(g, g->step_rows);
		if (g->n_step_logits && g->req->flags & SERVE_GEN_SCORE) {
			const float *l =
				b->logits + (size_t)g->step_logits * n_vocab;

			g->step_logits = b->logit_rows[g->step_logits];
			for (uint32_t k = 0; k < b->n_runs; k++) {
				const struct row_run *r = &b->runs[k];

				if (r->g == g && g->step_logits >= r->row &&
				    g->step_logits < r->row + r->n) {
					g->step_logits += r->pos - r->row;
					break;
				}
			}
			gen_step_done(g, l, ret);
			continue;
		}
		gen_step_done(g, b->logits + (size_t)g->step_logits * n_vocab,
			      ret);
	}
	kick(b);
}

/* Rows of both may be one item: early stop ends some parts and not others. */
static int one_item(const struct gen *g, const struct gen_part *a,
		    const struct gen_part *b)
{
	const struct seq_entry *e = g->seq.entries;

	return a == b || (!g->focus && e[a->i_entry].context.shift ==
					       e[b->i_entry].context.shift);
}

/* Neighbours, or rows of patches as the last run's. */
static void add_run(struct batch *b, struct gen *g, uint32_t pos, uint32_t n)
{
	const struct gen_part *patched = gen_patched_part(g, pos);
	struct row_run *last = b->n_runs ? &b->runs[b->n_runs - 1] : NULL;

	if (last && patched && last->g == g && last->patched &&
	    one_item(g, last->patched, patched))
		last->n += n;
	else
		b->runs[b->n_runs++] = (struct row_run){ .g = g,
							 .row = b->n_rows,
							 .n = n,
							 .pos = pos,
							 .at = b->n_rows,
							 .patched = patched };
	for (uint32_t i = 0; i < n; i++) {
		b->rows_at[b->n_rows] = pos + i;
		b->tokens[b->n_rows] = g->tokens[pos + i];
		if (gen_wants_logits(g, pos + i)) {
			if (!g->n_step_logits++)
				g->step_logits = b->n_logits;
			b->runs[b->n_runs - 1].wanted = 1;
			b->logit_rows[b->n_logits++] = b->n_rows;
		}
		b->n_rows++;
	}
}

/* Rows of g from *from on, at most max, into the step if add; returns how many. */
static uint32_t take_rows(struct batch *b, struct gen *g, uint32_t *from,
			  uint32_t max, int add)
{
	const int score = g->req && g->req->flags & SERVE_GEN_SCORE;
	uint32_t pos, n, sum = 0;

	while (sum < max && b->n_runs < b->max_rows) {
		n = gen_next_rows(g, *from, max - sum, &pos);
		if (!n || (!g->windowed && pos + n > g->pinned_to))
			break;
		if (add)
			add_run(b, g, pos, n);
		sum += n;
		*from = pos + n;
		if (score || g->windowed)
			break;
	}
	return sum;
}

/*
 * Rows of g: all it may compute next, at most max; returns how many. The last few of a
 * prompt come along where there is room: a step of their own costs more.
 */
static uint32_t take_gen(struct batch *b, struct gen *g, uint32_t max)
{
	const int score = g->req && g->req->flags & SERVE_GEN_SCORE;
	const uint32_t few =
		KV_MIN(max / FEW_OF, b->max_rows - b->n_rows - max);
	uint32_t from = g->pos, rest, sum;

	if (score)
		max = KV_MIN(max, SCORE_ROWS);
	g->n_step_logits = 0;
	sum = take_rows(b, g, &from, max, 1);
	rest = from;
	if (sum == max && few && !score && !g->windowed &&
	    take_rows(b, g, &rest, few + 1, 0) <= few)
		sum += take_rows(b, g, &from, few, 1);
	if (!sum)
		return 0;
	list_del(&g->node);
	g->state = GEN_STEP;
	g->step_rows = sum;
	b->gens[b->n_gens++] = g;
	return sum;
}

static int decoding(const struct gen *g)
{
	return g->pos >= g->n_prompt;
}

static void use_restore(struct batch *b, const struct gen *g)
{
	b->restore = g->restore;
	if (b->restore)
		b->restore->n_known = b->restore->n_in;
}

/* The first that has something to compute. */
static void build_alone(struct batch *b)
{
	b->n_alone--;
	list_for_each_safe(n, &b->ready) {
		struct gen *g = list_entry(n, struct gen, node);

		if (g->model == b->model &&
		    take_gen(b, g,
			     decoding(g) ? 1 : b->serve->conf->prefill_slice))
			return;
	}
}

static void build(struct batch *b)
{
	const struct conf *c = b->serve->conf;
	uint32_t prefill = c->prefill_slice;

	b->n_runs = b->n_rows = b->n_logits = b->n_gens = 0;
	if (b->lane == &b->serve->lanes[LANE_RESTORE]) {
		struct gen *g = list_entry(b->ready.next, struct gen, node);

		use_restore(b, g);
		take_gen(b, g, prefill);
		return;
	}
	if (b->n_alone) {
		build_alone(b);
		return;
	}
	list_for_each_safe(n, &b->ready) {
		struct gen *g = list_entry(n, struct gen, node);

		if (g->model == b->model && decoding(g) &&
		    b->n_rows < c->max_batch)
			take_gen(b, g, 1);
	}
	list_for_each_safe(n, &b->ready) {
		struct gen *g = list_entry(n, struct gen, node);
		uint32_t n_taken;

		if (g->model != b->model || decoding(g) || !prefill)
			continue;
		n_taken = take_gen(b, g, prefill);
		prefill -= KV_MIN(prefill, n_taken);
	}
}

/* One layer of so many rows takes no longer than all layers of a slice. */
static uint32_t probe_rows(const struct batch *b)
{
	const uint64_t slice = b->serve->conf->prefill_slice;

	return (uint32_t)KV_MIN(slice * b->model->layout.n_layers,
				(uint64_t)b->max_rows);
}

/* A probe of the first who waits for one; 1 if there is one. */
static int build_probe(struct batch *b)
{
	b->n_runs = b->n_rows = b->n_logits = b->n_gens = 0;
	list_for_each(n, &b->ready) {
		struct gen *g = list_entry(n, struct gen, node);
		struct repair_group *r;

		if (g->model != b->model || !g->n_groups)
			continue;
		r = repair_next_probe(g);
		if (!r && !focus_ready(g))
			continue;
		b->n_rows = r ? KV_MIN(r->n - r->n_probed, probe_rows(b))
			      : g->focus->n;
		memcpy(b->tokens,
		       g->tokens + (r ? r->first + r->n_probed : g->focus->pos),
		       b->n_rows * sizeof(*b->tokens));
		b->probe = g;
		b->probe_group = r;
		use_restore(b, g);
		b->gens[b->n_gens++] = g;
		list_del(n);
		g->state = GEN_STEP;
		return 1;
	}
	return 0;
}

/* Decodes and prefill take turns with probes. */
static void build_any(struct batch *b)
{
	b->probe = NULL;
	if (!b->probed && build_probe(b))
		return;
	b->probed = 0;
	build(b);
	if (!b->n_gens)
		(void)build_probe(b);
}

/* For the largest vocabulary; touched as far as it is used. */
static int new_logits(struct batch *b)
{
	size_t n = 1;

	for (uint32_t i = 0; i < b->serve->n_models; i++)
		n = KV_MAX(n, (size_t)llama_shape(b->serve->models[i].llama)
				      ->n_vocab);
	b->logits = malloc(n * b->max_logits * sizeof(*b->logits));
	b->sample_scratch = malloc(n * 8);
	return b->logits && b->sample_scratch ? 0 : -ENOMEM;
}

static void turn(struct loop_call *call)
{
	struct batch *b = container_of(call, struct batch, call);
	struct list *first = list_first(&b->ready);

	b->queued = 0;
	if (!b->running && !first)
		measures_look(b->serve->measures);
	if (b->running || !first)
		return;
	b->model = list_entry(first, struct gen, node)->model;
	build_any(b);
	if (!b->n_gens)
		return;
	stat_add(b->st_steps, 1);
	stat_add(b->st_rows, b->n_rows);
	b->running = 1;
	b->start_ns = clock_ns();
	b->job.run = step_run;
	b->job.done = step_done;
	engine_start(b->lane->engine, &b->job);
}

int batch_idle(const struct batch *b)
{
	return !b->running && !b->queued && list_empty(&b->ready);
}

void batch_add(struct gen *g)
{
	struct serve *s = g->tenant->serve;
	const int lane = g->windowed  ? LANE_WINDOWS
			 : g->restore ? LANE_RESTORE
				      : LANE_RESIDENT;
	struct batch *b = s->lanes[lane].batch;

	list_push(&b->ready, &g->node);
	kick(b);
}

/* Of model i, where this lane computes it. */
static int new_scratch(struct batch *b, uint32_t i)
{
	const struct serve_model *m = &b->serve->models[i];

	if (!m->gpu)
		return llama_scratch_new(&b->scratch[i], m->llama, b->max_rows,
					 b->max_logits);
	return b->lane->gpu ? gpu_lane_add(b->lane->gpu, i, m->gpu) : 0;
}

uint32_t batch_max_rows(const struct conf *c)
{
	return KV_MAX(c->max_batch + c->prefill_slice, FOCUS_ROWS);
}

int batch_new(struct batch **out, struct serve *s, struct lane *lane)
{
	struct batch *b = calloc(1, sizeof(*b));
	int ret = 0;

	if (!b)
		return -ENOMEM;
	b->serve = s;
	b->lane = lane;
	b->call.run = turn;
	list_init(&b->call.node);
	list_init(&b->ready);
	b->max_rows = batch_max_rows(s->conf);
	b->max_logits = b->max_rows;
	b->tokens = calloc(b->max_rows, sizeof(*b->tokens));
	b->rows_at = calloc(b->max_rows, sizeof(*b->rows_at));
	b->logit_rows = calloc(b->max_logits, sizeof(*b->logit_rows));
	b->runs = calloc(b->max_rows, sizeof(*b->runs));
	b->items = calloc(b->max_rows, sizeof(*b->items));
	b->gens = calloc(b->max_rows, sizeof(*b->gens));
	b->st_steps = stat_get(STAT_COUNTER, "kvd_steps_total",
			       "Steps of hosted models", NULL, NULL, 1);
	b->st_rows = stat_get(STAT_COUNTER, "kvd_step_rows_total",
			      "Rows (tokens) of these steps", NULL, NULL, 1);
	b->how = calloc(b->max_logits, sizeof(*b->how));
	b->chosen = calloc(b->max_logits, sizeof(*b->chosen));
	b->chosen_logprob = calloc(b->max_logits, sizeof(*b->chosen_logprob));
	if (!b->how || !b->chosen || !b->chosen_logprob)
		ret = -ENOMEM;
	if (!b->tokens || !b->rows_at || !b->logit_rows || !b->runs ||
	    !b->items || !b->gens)
		ret = -ENOMEM;
	if (!ret)
		ret = new_logits(b);
	for (uint32_t i = 0; i < s->n_models && !ret; i++)
		ret = new_scratch(b, i);
	if (ret) {
		batch_free(b);
		return ret;
	}
	*out = b;
	return 0;
}

void batch_free(struct batch *b)
{
	if (!b)
		return;
	for (uint32_t i = 0; i < CONF_MAX_MODELS; i++)
		if (b->scratch[i])
			llama_scratch_free(b->scratch[i]);
	free(b->tokens);
	free(b->rows_at);
	free(b->logit_rows);
	free(b->logits);
	free(b->sample_scratch);
	free(b->how);
	free(b->chosen);
	free(b->chosen_logprob);
	free(b->runs);
	free(b->items);
	free(b->gens);
	free(b);
}
