/*
 * bench_gpu_parked.c - kvbench gpu: sequences that are parked on the host between turns
 *
 * A daemon with device = cuda, attention calls of a 1B-class geometry. Conversations take
 * turns: those of a turn decode some tokens, all at once, then others do. All together they
 * are twice the device's budget, those of a turn fit. The figure is tokens a second over
 * those of a daemon whose budget holds them all, and how often a step of that one
 * found a page without a frame.
 */
#include "tools/bench_gpu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct plan {
	uint32_t layers, heads, kv_heads, dim;
	uint32_t prompt, steps; /* tokens of a sequence, and of a turn of it */
	uint32_t n_seqs, n_active, n_turns;
	uint64_t budget; /* of all sequences */
};

struct parked {
	struct gpu *g;
	struct plan p;
	struct kvc *c;
	int *seqs;
	uint64_t *len;
	struct kv_attend_item *items;
	char *q, *k, *v, *o; /* rows, arena */
	double tokens_per_s;
	double map_waits;
	double kv_bytes; /* of all sequences, when they are filled */
};

static size_t row_q(const struct plan *p)
{
	return KV_ALIGN_UP((size_t)p->heads * p->dim * 2, 64);
}

static size_t row_kv(const struct plan *p)
{
	return KV_ALIGN_UP((size_t)p->kv_heads * p->dim * 2, 64);
}

#define WAITS	    "\"map_waits_total\":"
#define PROMPT_STEP 64u /* tokens of one append */

static int open_seqs(struct parked *t)
{
	const struct plan *p = &t->p;
	const struct kv_geometry geo = { .n_layers = p->layers,
					 .n_heads = p->heads,
					 .n_kv_heads = p->kv_heads,
					 .head_dim = p->dim,
					 .type = KV_BF16 };
	const int g = kvc_geometry(t->c, &geo);
	const size_t n = KV_MAX(p->n_active, PROMPT_STEP);

	if (g < 0)
		return g;
	t->items = kvc_alloc(t->c, p->n_active * sizeof(*t->items));
	t->q = kvc_alloc(t->c, n * row_q(p));
	t->o = kvc_alloc(t->c, n * row_q(p));
	t->k = kvc_alloc(t->c, n * row_kv(p));
	t->v = kvc_alloc(t->c, n * row_kv(p));
	if (!t->items || !t->q || !t->o || !t->k || !t->v)
		return -ENOMEM;
	bench_fill_bf16(t->q, n * row_q(p));
	bench_fill_bf16(t->k, n * row_kv(p));
	bench_fill_bf16(t->v, n * row_kv(p));
	for (uint32_t i = 0; i < p->n_seqs; i++) {
		t->seqs[i] = kvc_seq_new(t->c, g, p->prompt + 4096);
		if (t->seqs[i] < 0)
			return t->seqs[i];
	}
	return 0;
}

static int fill_seq(struct parked *t, uint32_t i)
{
	const struct plan *p = &t->p;

	for (uint32_t at = 0; at < p->prompt; at += PROMPT_STEP)
		for (uint32_t l = 0; l < p->layers; l++) {
			int ret;

			t->items[0] = (struct kv_attend_item){
				.seq = (uint32_t)t->seqs[i],
				.n_tokens = KV_MIN(PROMPT_STEP, p->prompt - at),
				.pos = at,
				.q_off = KV_NO_OFF,
				.k_off = kvc_off(t->c, t->k),
				.v_off = kvc_off(t->c, t->v),
				.o_off = KV_NO_OFF,
			};
			ret = kvc_append(t->c, t->items, 1, l, KV_SQE_WAIT);
			if (ret)
				return ret;
		}
	t->len[i] = p->prompt;
	return 0;
}

/* One token of the sequences from first on, all layers. */
static int step(struct parked *t, uint32_t first)
{
	const struct plan *p = &t->p;
	int ret = 0;

	for (uint32_t l = 0; l < p->layers && !ret; l++) {
		for (uint32_t i = 0; i < p->n_active; i++)
			t->items[i] = (struct kv_attend_item){
				.seq = (uint32_t)t->seqs[first + i],
				.n_tokens = 1,
				.pos = t->len[first + i],
				.q_off = kvc_off(t->c, t->q + i * row_q(p)),
				.k_off = kvc_off(t->c, t->k + i * row_kv(p)),
				.v_off = kvc_off(t->c, t->v + i * row_kv(p)),
				.o_off = kvc_off(t->c, t->o + i * row_q(p)),
			};
		ret = kvc_attend(t->c, t->items, p->n_active, l, KV_SQE_WAIT);
	}
	for (uint32_t i = 0; i < p->n_active && !ret; i++)
		t->len[first + i]++;
	return ret;
}

/* A number of the tenant's pages. */
static double pages(struct kvc *c, const char *key)
{
	char *text = NULL, *at;
	double n = -1;

	if (kvc_query(c, "pages", "", &text) < 0)
		return n;
	at = strstr(text, key);
	if (at)
		n = strtod(at + strlen(key), NULL);
	free(text);
	return n;
}

/* Turns: the first is a warm-up, in which all are parked that do not fit. */
static int turns(struct parked *t)
{
	const struct plan *p = &t->p;
	uint64_t n = 0, ns = 0;
	double waits = 0;

	for (uint32_t turn = 0; turn < p->n_turns + 1; turn++)
		for (uint32_t first = 0; first + p->n_active <= p->n_seqs;
		     first += p->n_active) {
			const double before = pages(t->c, WAITS);
			const uint64_t t0 = clock_ns();

			for (uint32_t i = 0; i < p->steps; i++) {
				const int ret = step(t, first);

				if (ret)
					return bench_fail(ret,
							  "gpu: parked: %s",
							  strerror(-ret));
			}
			if (!turn)
				continue;
			ns += clock_ns() - t0;
			n += (uint64_t)p->steps * p->n_active;
			if (before < 0)
				return bench_fail(-EPROTO,
						  "gpu: parked: no " WAITS);
			waits += pages(t->c, WAITS) - before;
		}
	t->tokens_per_s = (double)n / (double)ns * 1e9;
	t->map_waits = waits;
	return 0;
}

static int talk(struct parked *t, const char *socket)
{
	int ret = kvc_open(&t->c,
			   &(struct kvc_options){ .socket = socket,
						  .arena_bytes = 64 << 20 });

	if (ret)
		return bench_fail(ret, "gpu: %s: %s", socket, strerror(-ret));
	t->seqs = calloc(t->p.n_seqs, sizeof(*t->seqs));
	t->len = calloc(t->p.n_seqs, sizeof(*t->len));
	ret = t->seqs && t->len ? open_seqs(t) : -ENOMEM;
	for (uint32_t i = 0; i < t->p.n_seqs && !ret; i++)
		ret = fill_seq(t, i);
	if (ret)
		(void)bench_fail(ret, "gpu: parked: %s", strerror(-ret));
	t->kv_bytes = pages(t->c, "\"mapped_bytes\":");
	if (!ret)
		ret = turns(t);
	kvc_close(t->c);
	free(t->seqs);
	free(t->len);
	return ret;
}

/* A daemon with that much of the device. */
static int run(struct parked *t, uint64_t memory)
{
	struct bench b = *t->g->b;
	struct bench_daemon d;
	char conf[1024];
	int ret;

	(void)snprintf(conf, sizeof(conf),
		       "cuda_library = %s\n%s%s\n"
		       "device = cuda\nhost_memory = %llu\n",
		       b.cuda ? b.cuda : "auto",
		       b.cublas ? "cublas_library = " : "",
		       b.cublas ? b.cublas : "",
		       (unsigned long long)(t->p.budget * 5 / 4));
	b.socket = NULL;
	b.daemon_conf = conf;
	b.tenant_conf = "disk = 0\npersist = no\n";
	b.memory_bytes = memory;
	ret = bench_daemon_start(&b, &d, 0);
	if (ret)
		return ret;
	ret = talk(t, d.socket);
	bench_daemon_stop(&d);
	return ret;
}

static struct plan plan_of(const struct gpu *g)
{
	struct plan p = { .layers = 16,
			  .heads = 32,
			  .kv_heads = 8,
			  .dim = 64,
			  .prompt = 4096,
			  .steps = 64,
			  .n_seqs = 64,
			  .n_active = 16,
			  .n_turns = 2 };
	uint64_t bytes;

	if (g->b->quick)
		p.n_turns = 1;
	if (g->n_free < 1024 * MIB) /* of the tests */
		p = (struct plan){ .layers = 2,
				   .heads = 2,
				   .kv_heads = 1,
				   .dim = 64,
				   .prompt = 192,
				   .steps = 2,
				   .n_seqs = 16,
				   .n_active = 4,
				   .n_turns = 1 };
	bytes = 4ull * p.layers * p.kv_heads * p.dim * (p.prompt + 256);
	/* pages are whole frames, of all groups */
	p.budget = p.n_seqs * KV_ALIGN_UP(bytes, 8 * g->page_bytes);
	return p;
}

int bench_gpu_parked(struct gpu *g)
{
	struct parked all = { .g = g }, half = { .g = g };
	int ret;

	if (!g->kern)
		return 0; /* said before */
	all.p = half.p = plan_of(g);
	ret = run(&all, all.p.budget * 5 / 4);
	if (ret)
		return ret;
	bench_put(g->b, all.tokens_per_s, "tokens/s",
		  "gpu.resident.tokens_per_s");
	bench_put(g->b, all.map_waits, "waits", "gpu.step.map_waits");
	ret = run(&half, (uint64_t)all.kv_bytes / 2);
	if (ret)
		return ret;
	bench_put(g->b, half.tokens_per_s, "tokens/s",
		  "gpu.oversubscribed.tokens_per_s");
	bench_put(g->b, half.tokens_per_s / all.tokens_per_s, "ratio",
		  "gpu.oversubscribed.tokens_ratio");
	return 0;
}
