/*
 * bench_return.c - kvbench return: a sequence that comes back from disk
 *
 * Two prompts of 4K tokens against a model of the 1B class with random weights, and
 * memory for one of them: whichever comes pushes the other to disk. First time to first
 * token computed, then found on disk, several times in turn; unless it has to be quick,
 * also with pages of some layers each, restored whole and layer by layer.
 */
#include "tools/bench.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define N_TOKENS 4096u
#define ROUNDS	 6u
#define WAIT_MS	 600000

static int first_token(struct kvc *c, uint32_t which, struct kv_gen_stats *st)
{
	static uint32_t tokens[N_TOKENS];
	const struct kvc_part part = { .kind = KV_PART_TOKENS,
				       .flags = KV_PART_BOS,
				       .tokens = tokens,
				       .n_tokens = N_TOKENS - 1 };
	const struct kvc_generate g = { .parts = &part,
					.n_parts = 1,
					.flags = KV_GEN_IGNORE_EOS |
						 KV_GEN_NO_TEXT,
					.max_tokens = 1,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *gen;
	int ret;

	for (uint32_t i = 0; i < N_TOKENS; i++)
		tokens[i] = 3 + (which * 97 + i * 31 + i * i * 7) % 500;
	ret = kvc_generate_start(c, &g, &gen);
	if (ret)
		return ret;
	ret = kvc_generate_wait(c, gen, WAIT_MS);
	if (ret >= 0)
		*st = *kvc_gen_stats(gen);
	kvc_generate_free(c, gen);
	return ret < 0 ? ret : 0;
}

/* Figures of one daemon, medians. */
struct figures {
	double cold_ms, back_ms;
	uint64_t n_ahead; /* layers computed before the last page, at most */
};

static int measure(struct kvc *c, struct figures *f)
{
	double cold[2], back[ROUNDS];
	struct kv_gen_stats st;
	int ret;

	for (uint32_t i = 0; i < 2; i++) {
		ret = first_token(c, i, &st);
		if (ret)
			return ret;
		cold[i] = (double)st.ttft_ns * 1e-6;
	}
	for (uint32_t i = 0; i < ROUNDS; i++) {
		ret = first_token(c, i % 2, &st);
		if (ret)
			return ret;
		if (st.n_prefix < N_TOKENS / 2 || !st.n_read_back)
			return -EILSEQ; /* it did not come from disk */
		f->n_ahead = KV_MAX(f->n_ahead, st.n_ahead);
		back[i] = (double)st.ttft_ns * 1e-6;
	}
	f->cold_ms = bench_quantile(cold, 2, 0);
	f->back_ms = bench_quantile(back, ROUNDS, 0.5);
	return 0;
}

static int with_daemon(struct bench *b, struct figures *f)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct bench_daemon d;
	struct kvc *c;
	int ret;

	memset(f, 0, sizeof(*f));
	ret = bench_daemon_start(b, &d, 1);
	if (ret)
		return ret;
	opt.socket = d.socket;
	ret = kvc_open(&c, &opt);
	if (!ret) {
		ret = measure(c, f);
		kvc_close(c);
	}
	if (ret)
		(void)bench_fail(ret, "return");
	bench_daemon_stop(&d);
	return ret;
}

/* Pages of a quarter of the layers: all of them first, and layer by layer. */
static int by_layers(struct bench *b)
{
	struct figures whole, layers;
	int ret;

	b->model_conf = "page_tokens = 256\npage_layers = 4\n";
	b->daemon_conf = "restore = whole\n";
	ret = with_daemon(b, &whole);
	b->daemon_conf = "restore = layers\n";
	if (!ret)
		ret = with_daemon(b, &layers);
	b->daemon_conf = b->model_conf = NULL;
	if (ret)
		return ret;
	bench_put(b, whole.back_ms, "ms", "paging.return4k.whole_ms");
	bench_put(b, layers.back_ms, "ms", "paging.return4k.layers_ms");
	bench_put(b, layers.back_ms / whole.back_ms, "x",
		  "paging.return4k.layers_ratio");
	bench_put(b, (double)layers.n_ahead, "layers",
		  "paging.return4k.layers_ahead");
	return 0;
}

static int measure_all(struct bench *b, const struct bench_shape *s)
{
	const double kv_bytes =
		4.0 * s->n_layers * s->n_kv_heads * s->head_dim * N_TOKENS;
	struct figures f;
	int ret;

	b->memory_bytes = (uint64_t)(kv_bytes * 1.25);
	ret = with_daemon(b, &f);
	if (ret)
		return ret;
	bench_put(b, f.cold_ms, "ms", "paging.return4k.compute_ms");
	bench_put(b, f.back_ms, "ms", "paging.return4k.return_ms");
	bench_put(b, kv_bytes * 1e-6 / f.back_ms, "GB/s",
		  "paging.return4k.gb_s");
	bench_put(b, f.back_ms / f.cold_ms, "x", "paging.return4k.time_ratio");
	return b->quick ? 0 : by_layers(b);
}

int bench_return(struct bench *b)
{
	const struct bench_shape s = { .n_layers = b->quick ? 1 : 16,
				       .d_model = 2048,
				       .n_ff = 8192,
				       .n_heads = 32,
				       .n_kv_heads = 8,
				       .head_dim = 64,
				       .n_ctx = N_TOKENS + 64 };
	const char *model = b->model;
	const uint64_t memory = b->memory_bytes;
	char path[PATH_MAX];
	int ret;

	if (b->socket)
		return bench_fail(-EINVAL, "return: needs a daemon of its own");
	if ((size_t)snprintf(path, sizeof(path), "%s/kvbench.%d.gguf", b->dir,
			     getpid()) >= sizeof(path))
		return -ENAMETOOLONG;
	bench_note("return: %u layers of 2048, 32 and 8 heads of 64, bf16",
		   s.n_layers);
	ret = bench_model_write(&s, path);
	if (ret) {
		(void)bench_fail(ret, "%s", path);
	} else {
		b->model = path;
		ret = measure_all(b, &s);
		b->model = model;
		b->memory_bytes = memory;
	}
	(void)unlink(path); /* it may not have been made */
	return ret;
}
