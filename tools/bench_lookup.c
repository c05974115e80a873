/*
 * bench_lookup.c - kvbench lookup: much KV on disk behind little memory
 *
 * 16 GB of KV of a model with 128 KiB a token (as one of 8e9 weights has), computed
 * with few weights, made durable, behind 1 GB of memory. Then prompts whose first tile
 * is somewhere among it. A look-up is the daemon's own measure: hash, index and
 * comparison of one tile, mean over a request. Metadata is the index on disk and what the
 * daemon's memory grew by, beside its frames.
 */
#include "tools/bench.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define N_TOKENS    256u /* of a prompt */
#define TOKEN_BYTES (128u << 10)
#define N_FIRST	    33u /* a tile, and one token to compute */
#define WAIT_MS	    600000
#define BUCKETS	    48u

static int ask(struct kvc *c, uint64_t which, uint32_t n)
{
	uint32_t tokens[N_TOKENS];
	const struct kvc_part part = { .kind = KV_PART_TOKENS,
				       .flags = KV_PART_BOS,
				       .tokens = tokens,
				       .n_tokens = n - 1 };
	const struct kvc_generate g = { .parts = &part,
					.n_parts = 1,
					.flags = KV_GEN_IGNORE_EOS |
						 KV_GEN_NO_TEXT,
					.max_tokens = 1,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *gen;
	int ret;

	for (uint32_t i = 0; i < N_TOKENS; i++) {
		which = which * 6364136223846793005u + 1442695040888963407u;
		tokens[i] = 3 + (uint32_t)(which >> 33) % 250;
	}
	ret = kvc_generate_start(c, &g, &gen);
	if (ret)
		return ret;
	ret = kvc_generate_wait(c, gen, WAIT_MS);
	if (ret >= 0 && n == N_FIRST && kvc_gen_stats(gen)->n_prefix != 32)
		ret = -EILSEQ; /* it is not there */
	kvc_generate_free(c, gen);
	return ret < 0 ? ret : 0;
}

/* Seconds of each bucket's end, and how many are at most that. */
struct histogram {
	uint32_t n;
	double le[BUCKETS], count[BUCKETS];
};

static int read_histogram(struct kvc *c, struct histogram *h)
{
	static const char name[] = "kvd_lookup_seconds_bucket{";
	char *text, *at;
	int ret = kvc_query(c, "metrics", "", &text);

	if (ret < 0)
		return ret;
	h->n = 0;
	for (at = text; (at = strstr(at, name)) && h->n < BUCKETS; at++) {
		const char *le = strstr(at, "le=\"");
		const char *end = strchr(at, '}');

		if (!le || !end || le > end)
			break;
		h->le[h->n] = strtod(le + 4, NULL);
		h->count[h->n++] = strtod(end + 1, NULL);
	}
	free(text);
	return h->n ? 0 : -EPROTO;
}

/* Of what came in between: as if spread evenly in its bucket, as Prometheus has it. */
static double quantile_us(const struct histogram *from,
			  const struct histogram *to, double q)
{
	const double all = to->count[to->n - 1] - from->count[to->n - 1];
	double n = 0, below = 0, le = 0;
	uint32_t i = 0;

	for (; i < to->n; i++) {
		n = to->count[i] - from->count[i];
		if (n >= q * all || i + 1 == to->n || isinf(to->le[i + 1]))
			break;
		below = n;
		le = to->le[i];
	}
	return 1e6 * (le + (to->le[i] - le) *
				   KV_MIN((q * all - below) / (n - below), 1));
}

/* A number of a JSON answer, the first of that name. */
static double number(struct kvc *c, const char *what, const char *key)
{
	double v = 0;
	char *text, *at;

	if (kvc_query(c, what, "", &text) < 0)
		return 0;
	at = strstr(text, key);
	if (at)
		at = strchr(at + strlen(key) - 1, ':');
	if (at)
		v = strtod(at + 1, NULL);
	free(text);
	return v;
}

static double anon_bytes(pid_t pid)
{
	char path[64], line[128];
	unsigned long kb = 0;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %lu kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return (double)kb * 1024;
}

static int fill(struct kvc *c, uint32_t n)
{
	int ret = 0;

	for (uint32_t i = 0; i < n && !ret; i++)
		ret = ask(c, i, N_TOKENS);
	return ret ? ret : kvc_persist(c);
}

static int measure(struct bench *b, struct kvc *c, pid_t pid, uint32_t n)
{
	const uint32_t n_asks = b->quick ? 200 : 2000;
	const double bytes = (double)n * N_TOKENS * TOKEN_BYTES;
	struct histogram from, to;
	double anon, index;
	uint64_t seed = 1;
	int ret;

	ret = ask(c, UINT32_MAX, N_TOKENS); /* whatever grows once */
	anon = anon_bytes(pid);
	if (!ret)
		ret = fill(c, n);
	anon = anon_bytes(pid) - anon;
	index = number(c, "stores", "\"index_live_bytes\"");
	if (!ret)
		ret = read_histogram(c, &from);
	for (uint32_t i = 0; i < n_asks && !ret; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		ret = ask(c, (seed >> 33) % n, N_FIRST);
	}
	if (!ret)
		ret = read_histogram(c, &to);
	if (ret)
		return ret;
	bench_note("lookup: %u prompts of %u tokens, index of %.2f MiB, memory "
		   "%.2f MiB beside the frames",
		   n, N_TOKENS, index / 1048576, anon / 1048576);
	bench_put(b, bytes / 1e9, "GB", "store.lookup.kv");
	bench_put(b, quantile_us(&from, &to, 0.5), "us", "store.lookup.p50_us");
	bench_put(b, quantile_us(&from, &to, 0.99), "us",
		  "store.lookup.p99_us");
	bench_put(b, 100 * (index + (anon > 0 ? anon : 0)) / bytes, "%",
		  "store.lookup.metadata_ratio");
	return 0;
}

static int with_daemon(struct bench *b, uint32_t n)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct bench_daemon d;
	struct kvc *c;
	int ret = bench_daemon_start(b, &d, 1);

	if (ret)
		return ret;
	opt.socket = d.socket;
	ret = kvc_open(&c, &opt);
	if (!ret) {
		ret = measure(b, c, d.pid, n);
		kvc_close(c);
	}
	if (ret)
		(void)bench_fail(ret, "lookup");
	bench_daemon_stop(&d);
	return ret;
}

static int room_for(const struct bench *b, uint64_t bytes)
{
	struct statvfs v;

	if (statvfs(b->dir, &v))
		return bench_fail(-errno, "%s", b->dir);
	if (v.f_bavail * v.f_frsize < bytes + (bytes >> 2))
		return bench_fail(-ENOSPC, "lookup: %s: too little room",
				  b->dir);
	return 0;
}

int bench_lookup(struct bench *b)
{
	const struct bench_shape s = { .n_layers = 1,
				       .d_model = 64,
				       .n_ff = 64,
				       .n_heads = 128,
				       .n_kv_heads = 128,
				       .head_dim = 256,
				       .n_ctx = 2 * N_TOKENS };
	const uint64_t bytes = b->quick ? 512ull << 20 : 16ull << 30;
	const struct bench saved = *b;
	char path[PATH_MAX];
	int ret;

	if (b->socket)
		return bench_fail(-EINVAL, "lookup: needs a daemon of its own");
	if ((size_t)snprintf(path, sizeof(path), "%s/kvbench.%d.gguf", b->dir,
			     getpid()) >= sizeof(path))
		return -ENAMETOOLONG;
	ret = room_for(b, bytes);
	if (ret)
		return ret;
	ret = bench_model_write(&s, path);
	if (ret) {
		(void)bench_fail(ret, "%s", path);
	} else {
		b->model = path;
		b->memory_bytes = KV_MAX(bytes / 16, (uint64_t)96 << 20);
		b->tenant_conf = "disk = 20G\npersist = auto\n";
		b->daemon_conf = "recompute = no\nscrub = 0\n";
		ret = with_daemon(b,
				  (uint32_t)(bytes / TOKEN_BYTES / N_TOKENS));
		b->model = saved.model;
		b->memory_bytes = saved.memory_bytes;
		b->tenant_conf = b->daemon_conf = NULL;
	}
	(void)unlink(path); /* it may not have been made */
	return ret;
}
