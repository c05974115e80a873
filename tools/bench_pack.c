/*
 * bench_pack.c - kvbench pack: many short prompts, one after the other and all at once
 *
 * Prompts of 4 to 60 tokens. All at once, the rows of several share a step (Prepacking, Zhao et
 * al. 2024, arXiv:2404.09529: packed, nothing is padded); one after the other each has
 * its own. The rows that were computed are counted: none more than there are tokens. The logits
 * are compared: the same bits.
 */
#include "tools/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_PROMPTS 64u
#define N_LONGEST 60u
#define N_LOGITS  4096u
#define WAIT_MS	  60000

struct pack {
	struct kvc *c;
	uint32_t tokens[N_PROMPTS][N_LONGEST], n[N_PROMPTS], n_all;
	float logits[N_PROMPTS][N_LOGITS];
	int has_logits;
	uint64_t rows, steps; /* of the last round */
};

static uint64_t counter(struct kvc *c, const char *name)
{
	char key[64];
	const char *at;
	uint64_t n = 0;
	char *text;

	if (kvc_query(c, "metrics", "", &text) < 0)
		return 0;
	(void)snprintf(key, sizeof(key), "\n%s ", name);
	at = strstr(text, key);
	if (at)
		n = strtoull(at + strlen(key), NULL, 10);
	free(text);
	return n;
}

static int start(struct pack *p, uint32_t i, struct kvc_gen **out)
{
	const struct kvc_part part = { .kind = KV_PART_TOKENS,
				       .flags = KV_PART_BOS,
				       .tokens = p->tokens[i],
				       .n_tokens = p->n[i] - 1 };
	const struct kvc_generate g = {
		.parts = &part,
		.n_parts = 1,
		.flags = KV_GEN_NO_REUSE | KV_GEN_IGNORE_EOS | KV_GEN_NO_TEXT |
			 KV_GEN_LOGITS,
		.max_tokens = 1,
		.n_logits = N_LOGITS,
		.sqe_flags = KV_SQE_WAIT,
	};

	return kvc_generate_start(p->c, &g, out);
}

/* The answer of prompt i is the one of the first round, bit for bit. */
static int finish(struct pack *p, uint32_t i, struct kvc_gen *g)
{
	int ret = kvc_generate_wait(p->c, g, WAIT_MS);

	if (ret >= 0 && kvc_gen_n_logits(g) > N_LOGITS)
		ret = -ENOTSUP;
	if (ret >= 0 && !p->has_logits)
		memcpy(p->logits[i], kvc_gen_logits(g),
		       kvc_gen_n_logits(g) * sizeof(float));
	else if (ret >= 0 && memcmp(p->logits[i], kvc_gen_logits(g),
				    kvc_gen_n_logits(g) * sizeof(float)))
		ret = -EILSEQ;
	kvc_generate_free(p->c, g);
	return ret < 0 ? ret : 0;
}

/* Prompt tokens a second, n_jobs prompts in flight. */
static double run(struct pack *p, uint32_t n_jobs)
{
	const uint64_t rows = counter(p->c, "kvd_step_rows_total");
	const uint64_t steps = counter(p->c, "kvd_steps_total");
	struct kvc_gen *gens[N_PROMPTS];
	uint64_t t0 = clock_ns(), ns;
	uint32_t next = 0;
	int ret = 0;

	for (uint32_t i = 0; i < N_PROMPTS; i++) {
		for (; !ret && next < N_PROMPTS && next < i + n_jobs; next++)
			ret = start(p, next, &gens[next]);
		if (i < next)
			ret = finish(p, i, gens[i]);
		if (ret)
			return (double)bench_fail(ret, "pack");
	}
	ns = clock_ns() - t0;
	p->has_logits = 1;
	p->rows = counter(p->c, "kvd_step_rows_total") - rows;
	p->steps = counter(p->c, "kvd_steps_total") - steps;
	return p->n_all * 1e9 / (double)ns;
}

static double one_by_one(void *arg)
{
	return run(arg, 1);
}

static double all_at_once(void *arg)
{
	return run(arg, N_PROMPTS);
}

static int measure(struct bench *b, struct pack *p)
{
	struct bench_side side[] = { { .run = one_by_one, .arg = p },
				     { .run = all_at_once, .arg = p } };

	if (run(p, 1) < 0 ||
	    bench_rounds(side, 2, b->quick ? 2 : 7, b->quick ? 1 : 10))
		return -EIO;
	bench_put(b, bench_median(&side[0]), "tokens/s", "pack.alone");
	bench_put(b, bench_median(&side[1]), "tokens/s", "pack.together");
	bench_put(b, bench_ratio(&side[1], &side[0]), "x", "pack.speedup");
	if (run(p, N_PROMPTS) < 0)
		return -EIO;
	bench_put(b, (double)p->steps, "steps", "pack.together.steps");
	bench_put(b, (double)p->rows / p->n_all, "x", "pack.rows_ratio");
	bench_put(b, (double)N_PROMPTS * N_LONGEST / p->n_all, "x",
		  "pack.padded.rows_ratio");
	return 0;
}

int bench_pack(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct pack *p = calloc(1, sizeof(*p));
	struct bench_daemon d;
	int ret;

	if (!p)
		return -ENOMEM;
	for (uint32_t i = 0; i < N_PROMPTS; i++) {
		/* short ones are the many, as in chats */
		p->n[i] = i ? 4 + (i * i * 7 + i) % 97 * (i % 5) / 8
			    : N_LONGEST;
		p->n[i] = KV_MIN(p->n[i], N_LONGEST);
		p->n_all += p->n[i];
		for (uint32_t k = 0; k < p->n[i]; k++)
			p->tokens[i][k] = 300 + (i * 911 + k * 37) % 1500;
	}
	ret = bench_daemon_start(b, &d, 1);
	if (!ret) {
		opt.socket = d.socket;
		ret = kvc_open(&p->c, &opt);
		if (ret)
			(void)bench_fail(ret, "pack: %s", d.socket);
		else
			ret = measure(b, p);
		if (p->c)
			kvc_close(p->c);
		bench_daemon_stop(&d);
	}
	free(p);
	return ret;
}
