/*
 * bench_reuse.c - kvbench reuse: the first token of a prompt made of cached chunks
 *
 * A prompt of a system text, eight chunks of 100 tokens and a question. Computed from
 * nothing, and with its chunks cached and 15 % of their tokens computed again: each
 * request has its chunks in another order, so that no prefix is found behind the
 * system text. And cold: the same prompt with chunks that nobody has seen, against
 * a plain one. Both with each repair: blend computes missing chunks alone and repairs
 * them, so that the answer is that of a later request; craft and craft-blend compute
 * them in place, as variants. --model, and a model of the 1B class with random weights.
 */
#include "tools/bench.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_CHUNKS  8u
#define N_CHUNK	  100u
#define N_TEXT	  20u
#define PERMILLE  150u
#define WAIT_MS	  600000
#define MAX_ROUND 31u

enum how { PLAIN, CACHED, COLD };
#define N_WAYS 4u
static const struct {
	uint32_t repair;
	const char *cached, *cold; /* in the names of lines */
} ways[N_WAYS] = {
	{ KV_REPAIR_NONE, "plain.", "" },
	{ KV_REPAIR_BLEND, "", "blend." },
	{ KV_REPAIR_CRAFT, "craft.", "craft." },
	{ KV_REPAIR_CRAFT_BLEND, "craft_blend.", "craft_blend." },
};

struct reuse {
	double overhead[N_WAYS]; /* when nothing is cached, percent */
	const struct bench_daemon *d;
	struct kvc *c;
	uint32_t n_vocab; /* ids below it are used */
	uint32_t n_asked;
	uint32_t tokens[N_CHUNKS + 2][N_CHUNK];
};

/* Reproducible ids: the same seed, the same tokens. */
static void fill(const struct reuse *r, uint32_t *t, uint32_t n, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;

	for (uint32_t i = 0; i < n; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		t[i] = 3 + (uint32_t)(x >> 33) % (r->n_vocab - 3);
	}
}

static struct kvc_part part(const uint32_t *t, uint32_t n, uint32_t flags)
{
	return (struct kvc_part){ .kind = KV_PART_TOKENS,
				  .flags = flags,
				  .tokens = t,
				  .n_tokens = n };
}

/* One request; milliseconds to the first token, or -errno. */
static double ask(struct reuse *r, enum how how, uint32_t repair)
{
	const uint32_t turn = r->n_asked++;
	const uint32_t reuse = how == PLAIN ? 0 : KV_PART_REUSE;
	struct kvc_part parts[N_CHUNKS + 2];
	const struct kvc_generate g = {
		.parts = parts,
		.n_parts = N_CHUNKS + 2,
		.flags = KV_GEN_IGNORE_EOS | KV_GEN_NO_TEXT |
			 (how == PLAIN ? KV_GEN_NO_REUSE : 0),
		.max_tokens = 1,
		.sqe_flags = KV_SQE_WAIT,
		.repair = repair,
		.repair_permille = repair ? PERMILLE : 0,
	};
	struct kv_gen_stats st;
	struct kvc_gen *gen;
	int ret;

	fill(r, r->tokens[0], N_TEXT, 1);
	parts[0] = part(r->tokens[0], N_TEXT, KV_PART_BOS);
	for (uint32_t i = 0; i < N_CHUNKS; i++) {
		uint32_t *t = r->tokens[1 + i];

		/* all orders of a turn that begin differently; each way has its
		   own: variants are not looked for where chunks lie alone */
		fill(r, t, N_CHUNK,
		     how == COLD
			     ? 1000 + turn * N_CHUNKS + i
			     : 2 + repair * N_CHUNKS +
				       (i * (1 + 2 * (turn / N_CHUNKS % 4)) +
					turn) % N_CHUNKS);
		parts[1 + i] = part(t, N_CHUNK, reuse);
	}
	fill(r, r->tokens[N_CHUNKS + 1], N_TEXT, 100 + turn);
	parts[N_CHUNKS + 1] = part(r->tokens[N_CHUNKS + 1], N_TEXT, 0);
	ret = kvc_generate_start(r->c, &g, &gen);
	if (ret)
		return ret;
	ret = kvc_generate_wait(r->c, gen, WAIT_MS);
	st = *kvc_gen_stats(gen);
	kvc_generate_free(r->c, gen);
	if (ret < 0)
		return ret;
	/* what comes after the answer (statistics, keeping) is not the next one's */
	ret = bench_daemon_settle(r->d);
	if (ret)
		return ret;
	if (how == CACHED && st.n_chunk < N_CHUNKS * N_CHUNK)
		return -EILSEQ; /* not what is measured here */
	return (double)st.ttft_ns * 1e-6;
}

struct side {
	struct reuse *r;
	enum how how;
	uint32_t repair;
};

static double side_run(void *arg)
{
	const struct side *s = arg;

	return ask(s->r, s->how, s->repair);
}

/* Until the chunks are found: variants are when their statistics are known. */
static int prime(struct reuse *r, uint32_t repair)
{
	double ms = -EILSEQ;

	for (int i = 0; i < 20 && ms == -EILSEQ; i++)
		ms = ask(r, CACHED, repair);
	return ms < 0 ? (int)ms : 0;
}

static int measure(struct bench *b, struct reuse *r, const char *name)
{
	struct side s[2 + 2 * N_WAYS] = { { r, PLAIN, 0 } };
	struct bench_side in[KV_ARRAY_LEN(s)];
	double ms = ask(r, COLD, 0); /* whatever the first one has to do */
	int ret = ms < 0 ? (int)ms : 0;

	for (uint32_t i = 0; i < N_WAYS && !ret; i++) {
		s[1 + i] = (struct side){ r, CACHED, ways[i].repair };
		s[1 + N_WAYS + i] = (struct side){ r, COLD, ways[i].repair };
		ret = prime(r, ways[i].repair);
	}
	s[1 + 2 * N_WAYS] = s[0]; /* what such a ratio is worth today */
	for (size_t i = 0; i < KV_ARRAY_LEN(s); i++)
		in[i] = (struct bench_side){ .run = side_run, .arg = &s[i] };
	if (!ret)
		ret = bench_rounds(in, KV_ARRAY_LEN(s), b->quick ? 1 : 7,
				   b->quick ? 1 : 40);
	if (ret)
		return ret;
	bench_put(b, bench_median(&in[0]), "ms", "reuse.%s.full_ms", name);
	bench_put(b, bench_median(&in[2]), "ms", "reuse.%s.repaired_ms", name);
	for (uint32_t i = 0; i < N_WAYS; i++)
		bench_put(b, bench_ratio(&in[0], &in[1 + i]), "x",
			  "reuse.%s.%sttft_speedup", name, ways[i].cached);
	for (uint32_t i = 0; i < N_WAYS; i++) {
		r->overhead[i] =
			(bench_ratio(&in[1 + N_WAYS + i], &in[0]) - 1) * 100;
		bench_put(b, r->overhead[i], "%", "reuse.%s.cold.%soverhead",
			  name, ways[i].cold);
	}
	bench_put(b, (bench_ratio(&in[1 + 2 * N_WAYS], &in[0]) - 1) * 100, "%",
		  "reuse.%s.again.overhead", name);
	return 0;
}

static int with_model(struct bench *b, const char *name, uint32_t n_vocab,
		      double *overhead)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct reuse *r = calloc(1, sizeof(*r));
	struct bench_daemon d;
	int ret;

	if (!r)
		return -ENOMEM;
	r->n_vocab = n_vocab;
	ret = bench_daemon_start(b, &d, 1);
	if (ret) {
		free(r);
		return ret;
	}
	r->d = &d;
	opt.socket = d.socket;
	ret = kvc_open(&r->c, &opt);
	if (!ret) {
		ret = measure(b, r, name);
		kvc_close(r->c);
	}
	if (ret)
		(void)bench_fail(ret, "reuse");
	bench_daemon_stop(&d);
	memcpy(overhead, r->overhead, sizeof(r->overhead));
	free(r);
	return ret;
}

int bench_reuse(struct bench *b)
{
	const struct bench_shape s = { .n_layers = b->quick ? 2 : 16,
				       .d_model = 2048,
				       .n_ff = 8192,
				       .n_heads = 32,
				       .n_kv_heads = 8,
				       .head_dim = 64,
				       .n_ctx = 2048 };
	const char *model = b->model;
	double overhead[2][N_WAYS] = { 0 };
	char path[PATH_MAX];
	int ret;

	if (b->socket)
		return bench_fail(-EINVAL, "reuse: needs a daemon of its own");
	if ((size_t)snprintf(path, sizeof(path), "%s/kvbench.%d.gguf", b->dir,
			     getpid()) >= sizeof(path))
		return -ENAMETOOLONG;
	ret = with_model(b, "mini", 500, overhead[0]);
	if (ret)
		return ret;
	bench_note("reuse.1b: %u layers of 2048, 32 and 8 heads of 64, bf16",
		   s.n_layers);
	ret = bench_model_write(&s, path);
	if (ret) {
		(void)bench_fail(ret, "%s", path);
	} else {
		b->model = path;
		ret = with_model(b, "1b", 500, overhead[1]);
		b->model = model;
	}
	for (uint32_t i = 0; i < N_WAYS && !ret; i++)
		bench_put(b, KV_MAX(overhead[0][i], overhead[1][i]), "%",
			  "reuse.cold.%soverhead", ways[i].cold);
	(void)unlink(path); /* it may not have been made */
	return ret;
}
