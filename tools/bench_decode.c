/*
 * bench_decode.c - kvbench decode: tokens per second of a hosted model
 *
 * Prompts are token ids, nothing is reused, sampling is greedy, an end of text
 * is ignored: the work is the same in each round. Limit of decoding: each step
 * reads the weights once, so the model's bytes at the read bandwidth (of a
 * buffer of that size: a small model lies in the caches) bound the steps.
 */
#include "tools/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define N_PROMPT 64u
#define N_LONG	 900u
#define N_OUT	 256u
#define N_BATCH	 8u
#define FIRST_ID 300u /* past the control and byte tokens */
#define N_IDS	 1500u
#define WAIT_MS	 60000

struct decoder {
	struct kvc *c;
	uint32_t n_prompt, n_out, n_gens;
	uint32_t tokens[N_BATCH][N_LONG];
	struct kvc_gen *gens[N_BATCH];
};

static int start_all(struct decoder *d)
{
	int ret = 0;

	for (uint32_t i = 0; i < d->n_gens && !ret; i++) {
		const struct kvc_part part = {
			.kind = KV_PART_TOKENS,
			.flags = KV_PART_BOS,
			.tokens = d->tokens[i],
			.n_tokens = d->n_prompt,
		};
		const struct kvc_generate g = {
			.parts = &part,
			.n_parts = 1,
			.flags = KV_GEN_NO_REUSE | KV_GEN_IGNORE_EOS |
				 KV_GEN_NO_TEXT,
			.max_tokens = d->n_out,
			.sqe_flags = KV_SQE_WAIT,
		};

		ret = kvc_generate_start(d->c, &g, &d->gens[i]);
	}
	return ret;
}

/* Sum of tokens, and the stats of all; 0 or -errno. */
static int wait_all(struct decoder *d, uint64_t *first_ns, uint64_t *end_ns,
		    uint64_t *n_tokens)
{
	int ret = 0;

	*first_ns = UINT64_MAX;
	*end_ns = *n_tokens = 0;
	for (uint32_t i = 0; i < d->n_gens; i++) {
		const struct kv_gen_stats *st;
		int n;

		if (!d->gens[i])
			continue;
		n = kvc_generate_wait(d->c, d->gens[i], WAIT_MS);
		if (n < 0) {
			ret = n;
			continue;
		}
		st = kvc_gen_stats(d->gens[i]);
		*first_ns = KV_MIN(*first_ns, st->ttft_ns);
		*end_ns = KV_MAX(*end_ns, st->total_ns);
		*n_tokens += (uint64_t)n;
	}
	return ret;
}

static int generate_all(struct decoder *d, uint64_t *first_ns, uint64_t *end_ns,
			uint64_t *n_tokens)
{
	int ret, failed;

	memset(d->gens, 0, sizeof(d->gens));
	ret = start_all(d);
	failed = wait_all(d, first_ns, end_ns, n_tokens);
	for (uint32_t i = 0; i < d->n_gens; i++)
		kvc_generate_free(d->c, d->gens[i]);
	return ret ? ret : failed;
}

/* Tokens per second from the first token on. */
static double decode_run(void *arg)
{
	struct decoder *d = arg;
	uint64_t first_ns, end_ns, n;
	const int ret = generate_all(d, &first_ns, &end_ns, &n);

	if (ret)
		return (double)bench_fail(ret, "decode: generate");
	return (double)(n - d->n_gens) * 1e9 / (double)(end_ns - first_ns);
}

/* Prompt tokens per second until the first token. */
static double prefill_run(void *arg)
{
	struct decoder *d = arg;
	uint64_t first_ns, end_ns, n;
	const int ret = generate_all(d, &first_ns, &end_ns, &n);

	if (ret)
		return (double)bench_fail(ret, "decode: prefill");
	return d->n_prompt * 1e9 / (double)first_ns;
}

static struct decoder *decoder_new(struct kvc *c, uint32_t n_gens,
				   uint32_t n_prompt, uint32_t n_out)
{
	struct decoder *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->c = c;
	d->n_gens = n_gens;
	d->n_prompt = n_prompt;
	d->n_out = n_out;
	for (uint32_t i = 0; i < N_BATCH; i++)
		for (uint32_t j = 0; j < N_LONG; j++)
			d->tokens[i][j] =
				FIRST_ID + (i * 911 + j * 37 + j * j) % N_IDS;
	return d;
}

/* The limit: a buffer as large as the model's file. */
struct limit {
	struct bench_read read;
	size_t model_bytes;
	size_t n_bytes;
	void *mem;
};

/* Steps per second */
static double limit_run(void *arg)
{
	struct limit *l = arg;
	double best = 0;

	/* the first pass warms the caches, as a step warms them for the next */
	for (int i = 0; i < 5; i++)
		best = KV_MAX(best, bench_read_run(&l->read));
	return best * 1e9 / (double)l->model_bytes;
}

static int limit_init(struct limit *l, struct bench *b, struct pool *pool)
{
	struct stat st;

	memset(l, 0, sizeof(*l));
	if (stat(b->model, &st))
		return -errno;
	l->model_bytes = (size_t)st.st_size;
	l->n_bytes = KV_ALIGN_UP(l->model_bytes, (size_t)1 << 20);
	l->mem = bench_alloc(l->n_bytes);
	l->read = (struct bench_read){ .pool = pool,
				       .base = l->mem,
				       .n_bytes = l->n_bytes };
	return l->mem ? 0 : -ENOMEM;
}

static void report(struct bench *b, const struct bench_side *sides,
		   const struct limit *l)
{
	bench_put(b, bench_median(&sides[1]), "tokens/s",
		  "decode.single.tokens_per_s");
	bench_put(b, bench_median(&sides[2]), "tokens/s",
		  "decode.batch8.tokens_per_s");
	bench_put(b, bench_median(&sides[3]), "tokens/s",
		  "decode.prefill.tokens_per_s");
	if (!l->mem)
		return;
	bench_put(b, bench_median(&sides[0]), "tokens/s",
		  "decode.limit.tokens_per_s");
	bench_put(b, bench_ratio(&sides[1], &sides[0]), "x",
		  "decode.single.read_ratio");
}

static int measure(struct bench *b, struct kvc *c)
{
	struct bench_side sides[4] = { { .run = limit_run },
				       { .run = decode_run },
				       { .run = decode_run },
				       { .run = prefill_run } };
	struct limit l = { .mem = NULL };
	struct pool *pool = NULL;
	int ret = pool_new(&pool, b->n_threads);

	if (ret)
		return ret;
	if (limit_init(&l, b, pool))
		bench_note("decode: no limit: cannot see %s", b->model);
	sides[0].arg = &l;
	sides[1].arg = decoder_new(c, 1, N_PROMPT, N_OUT);
	sides[2].arg = decoder_new(c, N_BATCH, N_PROMPT, N_OUT);
	sides[3].arg = decoder_new(c, 1, N_LONG, 1);
	ret = -ENOMEM;
	if (sides[1].arg && sides[2].arg && sides[3].arg)
		ret = l.mem ? bench_rounds(sides, 4, b->quick ? 1 : 3,
					   b->quick ? 3.0 : 20.0)
			    : bench_rounds(sides + 1, 3, b->quick ? 1 : 3,
					   b->quick ? 3.0 : 20.0);
	if (!ret)
		report(b, sides, &l);
	for (int i = 1; i < 4; i++)
		free(sides[i].arg);
	bench_free(l.mem, l.n_bytes);
	pool_free(pool);
	return ret;
}

int bench_decode(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct bench_daemon d;
	struct kvc *c;
	int ret = bench_daemon_start(b, &d, 1);

	if (ret)
		return ret;
	opt.socket = d.socket;
	ret = kvc_open(&c, &opt);
	if (ret) {
		(void)bench_fail(ret, "decode: %s", d.socket);
		goto out_stop;
	}
	ret = measure(b, c);
	if (ret)
		(void)bench_fail(ret, "decode");
	kvc_close(c);
out_stop:
	bench_daemon_stop(&d);
	return ret;
}
