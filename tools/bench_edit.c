/*
 * bench_edit.c - kvbench edit: 32 tokens in the middle of 4K are replaced
 *
 * A prompt of 4K tokens against a model of the 1B class with random weights. Then versions
 * of it with other 32 tokens in the middle: computed from there on (what is before is
 * found), with what stands behind moved, and moved with 10 % of it computed again.
 */
#include "tools/bench.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define N_TOKENS 4096u
#define N_EDIT	 32u
#define PERMILLE 100u
#define WAIT_MS	 600000

enum how { SUFFIX, MOVED, REPAIRED, N_HOWS };

struct edit {
	struct kvc *c;
	uint32_t n_asked;
	uint32_t old[N_TOKENS], new[N_TOKENS];
};

/* One request for these parts; milliseconds to the first token, or -errno. */
static double ask(struct edit *e, const struct kvc_part *parts, uint32_t n,
		  int repaired, struct kv_gen_stats *st)
{
	const struct kvc_generate g = {
		.parts = parts,
		.n_parts = n,
		.flags = KV_GEN_IGNORE_EOS | KV_GEN_NO_TEXT,
		.max_tokens = 1,
		.sqe_flags = KV_SQE_WAIT,
		.repair = repaired ? KV_REPAIR_BLEND : KV_REPAIR_NONE,
		.repair_permille = repaired ? PERMILLE : 0,
	};
	struct kvc_gen *gen;
	int ret = kvc_generate_start(e->c, &g, &gen);

	if (ret)
		return ret;
	ret = kvc_generate_wait(e->c, gen, WAIT_MS);
	*st = *kvc_gen_stats(gen);
	kvc_generate_free(e->c, gen);
	return ret < 0 ? ret : (double)st->ttft_ns * 1e-6;
}

/* A version nobody has seen. */
static double ask_edited(struct edit *e, enum how how)
{
	struct kvc_part parts[] = { { .kind = KV_PART_TOKENS,
				      .flags = KV_PART_BASE,
				      .tokens = e->old,
				      .n_tokens = N_TOKENS },
				    { .kind = KV_PART_TOKENS,
				      .tokens = e->new,
				      .n_tokens = N_TOKENS } };
	const uint32_t first = how == SUFFIX ? 1 : 0;
	struct kv_gen_stats st;
	double ms;

	e->n_asked++;
	memcpy(e->new, e->old, sizeof(e->new));
	for (uint32_t i = 0; i < N_EDIT; i++)
		e->new[N_TOKENS / 2 + i] =
			3 + (e->old[N_TOKENS / 2 + i] + e->n_asked) % 500;
	ms = ask(e, parts + first, 2 - first, how == REPAIRED, &st);
	if (ms >= 0 && !first && st.n_moved < N_TOKENS - 2 * N_EDIT)
		return -EILSEQ; /* it was not moved */
	return ms;
}

static int measure(struct bench *b, struct edit *e)
{
	const struct kvc_part old = { .kind = KV_PART_TOKENS,
				      .tokens = e->old,
				      .n_tokens = N_TOKENS };
	const uint32_t n_rounds = b->quick ? 1 : 2;
	double v[N_HOWS][3], ms[N_HOWS];
	struct kv_gen_stats st;
	double ret = ask(e, &old, 1, 0, &st);

	for (uint32_t i = 0; i < n_rounds && ret >= 0; i++)
		for (int how = 0; how < N_HOWS && ret >= 0; how++)
			v[how][i] = ret = ask_edited(e, (enum how)how);
	if (ret < 0)
		return (int)ret;
	for (int how = 0; how < N_HOWS; how++)
		ms[how] = bench_quantile(v[how], n_rounds, 0);
	bench_put(b, ms[SUFFIX], "ms", "edit.4k.suffix_ms");
	bench_put(b, ms[MOVED], "ms", "edit.4k.moved_ms");
	bench_put(b, ms[REPAIRED], "ms", "edit.4k.repaired_ms");
	bench_put(b, ms[MOVED] / ms[SUFFIX], "x", "edit.4k.time_ratio");
	bench_put(b, ms[REPAIRED] / ms[SUFFIX], "x",
		  "edit.4k.repaired.time_ratio");
	return 0;
}

static int with_daemon(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	static struct edit e;
	struct bench_daemon d;
	int ret = bench_daemon_start(b, &d, 1);

	if (ret)
		return ret;
	for (uint32_t i = 0; i < N_TOKENS; i++)
		e.old[i] = 3 + (i * 31 + i * i * 7 + i / 13) % 500;
	opt.socket = d.socket;
	ret = kvc_open(&e.c, &opt);
	if (!ret) {
		ret = measure(b, &e);
		kvc_close(e.c);
	}
	if (ret)
		(void)bench_fail(ret, "edit");
	bench_daemon_stop(&d);
	return ret;
}

int bench_edit(struct bench *b)
{
	const struct bench_shape s = { .n_layers = b->quick ? 2 : 16,
				       .d_model = 2048,
				       .n_ff = 8192,
				       .n_heads = 32,
				       .n_kv_heads = 8,
				       .head_dim = 64,
				       .n_ctx = N_TOKENS + 64 };
	const char *model = b->model;
	char path[PATH_MAX];
	int ret;

	if (b->socket)
		return bench_fail(-EINVAL, "edit: needs a daemon of its own");
	if ((size_t)snprintf(path, sizeof(path), "%s/kvbench.%d.gguf", b->dir,
			     getpid()) >= sizeof(path))
		return -ENAMETOOLONG;
	bench_note("edit: %u layers of 2048, 32 and 8 heads of 64, bf16",
		   s.n_layers);
	ret = bench_model_write(&s, path);
	if (ret) {
		(void)bench_fail(ret, "%s", path);
	} else {
		b->model = path;
		ret = with_daemon(b);
		b->model = model;
	}
	(void)unlink(path); /* it may not have been made */
	return ret;
}
