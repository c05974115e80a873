/*
 * bench_zipf.c - kvbench zipf: the steady state. Chunks that come again in changing order
 * and company, memory for a third of them
 */
#include <stdlib.h>
#include <string.h>
#include "tools/bench_rag.h"

static double percent(uint64_t part, uint64_t all)
{
	return all ? 100.0 * (double)part / (double)all : 0;
}

static uint64_t n_computed(const struct tally *t)
{
	return t->n_prompt - t->n_prefix - t->n_chunk + t->n_repaired;
}

/* And what was looked at to choose, each the share of layers it went through. */
static double work(const struct tally *t)
{
	return (double)n_computed(t) +
	       (t->n_layers ? (double)t->n_probed / t->n_layers : 0);
}

static void report_nothing(struct rag *r, double wall_s)
{
	(void)r;
	(void)wall_s;
}

static void report_part(struct rag *r, const char *name, size_t from, size_t to)
{
	uint32_t n_right = 0;

	for (size_t i = from; i < to; i++)
		n_right += r->t.right[i];
	bench_put(r->b, percent(n_right, to - from), "%",
		  "reuse.zipf.%s.exact_match", name);
	bench_put(r->b, bench_quantile(r->t.ttft_ms + from, to - from, 0.5),
		  "ms", "reuse.zipf.%s.ttft_p50_ms", name);
}

static void report_parts(struct rag *r, double wall_s)
{
	const size_t n = r->t.n / 4;

	report_part(r, "early", n, 2 * n);
	report_part(r, "late", r->t.n - n, r->t.n);
	bench_put(r->b, (double)r->t.n / wall_s, "requests/s",
		  "reuse.zipf.requests_per_s");
}

int bench_zipf(struct bench *b)
{
	const uint64_t memory = b->memory_bytes;
	const char *word = strcmp(b->mode, "all") ? b->mode : "chunks";
	struct rag r = { .b = b, .report = report_nothing };
	uint64_t plain;
	int ret = rag_load(&r, 2000, 60);

	if (ret)
		return ret;
	b->memory_bytes = 4ull << 30; /* all of it, to see how much it is */
	ret = rag_set_mode(&r, word, strlen(word));
	if (ret)
		(void)bench_fail(ret, "zipf: no mode %s", word);
	if (!ret)
		ret = rag_run(&r);
	b->memory_bytes = r.t.kv_bytes / 3;
	if (!ret)
		ret = rag_set_mode(&r, "prefix", strlen("prefix"));
	if (!ret)
		ret = rag_run(&r);
	plain = n_computed(&r.t);
	r.report = report_parts;
	if (!ret)
		ret = rag_set_mode(&r, word, strlen(word));
	if (!ret)
		ret = rag_run(&r);
	if (!ret) {
		bench_put(b, (double)n_computed(&r.t) / (double)plain, "x",
			  "reuse.zipf.computed_ratio");
		bench_put(b, work(&r.t) / (double)plain, "x",
			  "reuse.zipf.work_ratio");
		bench_put(b, (double)b->memory_bytes * 1e-6, "MB",
			  "reuse.zipf.memory_mb");
	}
	b->memory_bytes = memory;
	rag_unload(&r);
	return ret;
}
