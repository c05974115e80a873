/*
 * bench_durable.c - kvbench durable: what it costs a computing daemon that KV is made
 * durable behind its back
 *
 * Sealed segments of 8 MiB in memory are made durable while the loop thread, which
 * all requests go through, is busy with wants of resident pages: how much less of these it
 * gets done is what requests lose (the stall of Maurya et al. 2024, DataStates-LLM,
 * arXiv:2406.10707, who aim at less than 1 % with copies; sealed segments do not
 * change, so nothing is copied and nobody waits). Checksums and flushes are other
 * threads'.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "kvd/mem/durable.h"
#include "kvd/mem/space.h"
#include "tools/bench.h"

#define PAGE	(2u << 20)
#define N_PAGES 4u /* of a segment */
#define ROUNDS	8u
#define AT_ONCE 4u /* segments on their way, as in kvd/cache/persist.c */

struct durable {
	struct loop *loop;
	struct stores *stores;
	struct pager *pager;
	struct range **ranges;
	struct range_persist *todo;
	uint32_t n, n_started, n_done, limit;
	int huge_dir, err;
	char path[4096];
};

static void start_next(struct durable *d);

static void persisted(struct wait *w, int ret)
{
	struct durable *d = *(struct durable *const *)container_of(
				     w, struct range_persist, wait)
				     ->meta;

	d->err = ret ? ret : d->err;
	d->n_done++;
	start_next(d);
}

static void start_next(struct durable *d)
{
	while (!d->err && d->n_started < d->limit &&
	       d->n_started < d->n_done + AT_ONCE) {
		const uint32_t i = d->n_started++;
		struct range_persist *p = &d->todo[i];

		*p = (struct range_persist){ .wait.done = persisted,
					     .range = d->ranges[i],
					     .key = { i + 1, 1 },
					     .meta = &d->todo[d->n].meta,
					     .meta_bytes = sizeof(d) };
		d->err = range_persist(p);
	}
}

static int none_found(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	(void)ctx;
	(void)i_disk;
	(void)r;
	return KIO_RECORD_DROP;
}

static int begin(struct durable *d, const struct bench *b)
{
	const uint64_t bytes = (uint64_t)d->n * N_PAGES * PAGE;
	struct stores_conf sc = { .kind = KIO_ENGINE_AUTO,
				  .depth = 32,
				  .n = 1 };
	struct pager_conf pc = { .name = "bench",
				 .memory_bytes = bytes + (64u << 20),
				 .disk_bytes = 2 * bytes,
				 .numa_node = -1,
				 .policy = "clock" };
	char err[256] = "";
	int ret = loop_new(&d->loop);

	if (!ret)
		ret = loop_start_workers(d->loop, 2);
	if (ret)
		return ret;
	(void)snprintf(d->path, sizeof(d->path), "%s/kvbench.durable.%d",
		       b->dir, getpid());
	d->huge_dir = space_huge_dir(NULL, pc.memory_bytes + (64u << 20));
	pc.huge_dir = d->huge_dir > 0 ? d->huge_dir : 0;
	sc.loop = pc.loop = d->loop;
	sc.disks[0].path = d->path;
	sc.disks[0].bytes = 2 * bytes + (64u << 20);
	ret = stores_new(&d->stores, &sc);
	if (ret)
		return ret;
	pc.stores = d->stores;
	ret = pager_new(&d->pager, &pc);
	if (!ret)
		ret = stores_open(d->stores, none_found, d, err, sizeof(err));
	return ret ? bench_fail(ret, "durable: %s", err) : 0;
}

static void told(struct wait *w, int ret)
{
	(void)w;
	(void)ret;
}

/* All segments in memory, dirty. */
static int fill(struct durable *d)
{
	for (uint32_t i = 0; i < d->n; i++) {
		struct page_run run = { .n = N_PAGES, .flags = PAGE_WRITE };
		struct page_want w = { .wait.done = told,
				       .runs = &run,
				       .n_runs = 1 };
		int ret = range_new(d->pager, PAGE, N_PAGES, &d->ranges[i]);

		if (ret)
			return ret;
		run.range = d->ranges[i];
		ret = pager_reserve(d->pager, N_PAGES * PAGE);
		if (!ret)
			ret = page_want(d->pager, &w);
		while (!ret && w.n_missing)
			(void)loop_turn(d->loop, 10);
		if (ret < 0)
			return ret;
		bench_fill_f32((float *)range_addr(run.range),
			       N_PAGES * PAGE / sizeof(float));
		page_unpin(d->pager, &run, 1);
		pager_unreserve(d->pager, N_PAGES * PAGE);
	}
	return 0;
}

/* What a busy loop thread does: wants of a page that is there. 1 when it was. */
static int work(struct durable *d)
{
	struct page_run run = { .range = d->ranges[0], .n = 1 };
	struct page_want w = { .runs = &run, .n_runs = 1 };

	for (int i = 0; i < 2000; i++) {
		if (page_want(d->pager, &w) != 1)
			return 0;
		page_unpin(d->pager, &run, 1);
	}
	return 1;
}

/* Units of work a second, turning the loop between them, until all that was started
 * is durable and ns have passed; negative when something failed. */
static double work_rate(struct durable *d, uint64_t ns)
{
	const uint64_t t0 = clock_ns();
	uint64_t n = 0, t = t0;

	while (!d->err && (t - t0 < ns || d->n_done < d->n_started)) {
		if (!work(d))
			return -1;
		(void)loop_turn(d->loop, 0);
		n++;
		t = clock_ns();
	}
	return d->err ? -1 : (double)n / ((double)(t - t0) * 1e-9);
}

/* In rounds, each with its own rate without: machines are noisy. */
static int measure(struct bench *b, struct durable *d)
{
	const uint32_t step = d->n / ROUNDS;
	double lost[ROUNDS], gb_s[ROUNDS];

	for (uint32_t i = 0; i < ROUNDS; i++) {
		const double alone = work_rate(d, 50000000);
		const uint64_t t0 = clock_ns();
		double both;

		d->limit = (i + 1) * step;
		start_next(d);
		both = work_rate(d, 0);
		if (alone <= 0 || both < 0)
			return d->err ? d->err : -EIO;
		lost[i] = both < alone ? 100 * (1 - both / alone) : 0;
		gb_s[i] = (double)step * N_PAGES * PAGE /
			  (double)(clock_ns() - t0);
	}
	bench_put(b, bench_quantile(gb_s, ROUNDS, 0.5), "GB/s",
		  "store.durable.gb_s");
	bench_put(b, bench_quantile(lost, ROUNDS, 0.5), "%",
		  "store.durable.stall");
	return 0;
}

static void end(struct durable *d)
{
	for (uint32_t i = 0; d->ranges && i < d->n; i++)
		range_free(d->ranges[i]);
	if (d->pager)
		pager_free(d->pager);
	stores_free(d->stores);
	loop_free(d->loop);
	if (d->huge_dir > 0)
		(void)close(d->huge_dir);
	(void)unlink(d->path);
	free(d->ranges);
	free(d->todo);
}

int bench_durable(struct bench *b)
{
	struct durable d = { .n = b->quick ? 8 : 128 };
	int ret = -ENOMEM;

	d.ranges = calloc(d.n, sizeof(struct range *));
	d.todo = calloc(d.n + 1, sizeof(*d.todo));
	if (d.ranges && d.todo) {
		d.todo[d.n].meta = &d;
		ret = begin(&d, b);
	}
	if (!ret)
		ret = fill(&d);
	if (!ret)
		ret = measure(b, &d);
	end(&d);
	return ret ? bench_fail(ret, "durable: in %s", b->dir) : 0;
}
