/*
 * bench_durable.c - kvbench durable: what it costs a computing daemon that KV is made
 * durable behind its back
 *
 * Sealed segments of 8 MiB in memory are made durable while the loop thread, which
 * all requests go through, is busy with wants of resident pages. Four at a time, though
 * kvd/cache/persist.c has one while nobody waits: it is the worse case.
 *
 * stall: the time that the loop thread is away from requests, by what it spends in turns
 * that took more than three times the median of that while, less the median for each, less
 * those without writes, of the time of the writes (the stall of Maurya et al. 2024,
 * DataStates-LLM, arXiv:2406.10707, who aim at less than 1 % with copies; sealed segments do
 * not change, so nothing is copied and nobody waits). In time on a CPU, so other processes
 * do not count. A turn with nothing to do takes 1 us alone and up to 2 beside writes, where
 * another thread has the other half of the core: that is shared, not stalled, and in lost.
 *
 * lost: how much less work it gets done, whatever the reason: stall, and what the
 * machine has to share (cores, caches, memory, interrupts, the host's own writing where
 * this is a guest). raw_lost is the same while another thread does no more than to write
 * the same bytes by pwrite.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "kvd/mem/durable.h"
#include "kvd/mem/space.h"
#include "tools/bench.h"

#define PAGE	 (2u << 20)
#define N_PAGES	 4u /* of a segment */
#define ROUNDS	 8u
#define AT_ONCE	 4u /* segments on their way */
#define ALONE_NS 50000000u
#define N_BINS	 256u /* 8 for a factor of two, of ns */
#define BUSY	 3 /* times the median: a turn with something to do */

/* What the loop thread did in a while. */
struct phase {
	double ns, n; /* of all of it; units of work */
	/* on a CPU, in turns of the loop that took about as long */
	double turn_ns[N_BINS], n_turns[N_BINS];
};

struct durable {
	struct loop *loop;
	struct stores *stores;
	struct pager *pager;
	struct range **ranges;
	struct range_persist *todo;
	uint32_t n, n_started, n_done, limit;
	int huge_dir, err;
	struct loop_work raw; /* writes ranges [raw_from, raw_to) to raw_fd */
	uint32_t raw_from, raw_to, raw_done;
	int raw_fd, raw_err;
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

static double cpu_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void add_turn(struct phase *p, double ns)
{
	const double bin = 8 * log2(KV_MAX(ns, 1.0));
	const uint32_t i = KV_MIN((uint32_t)bin, N_BINS - 1);

	p->turn_ns[i] += ns;
	p->n_turns[i]++;
}

/* What the median turn takes. */
static double idle_ns(const struct phase *p)
{
	double before = 0;
	uint32_t i = 0;

	while (i < N_BINS - 1 && before + p->n_turns[i] <= p->n / 2)
		before += p->n_turns[i++];
	return p->turn_ns[i] / KV_MAX(p->n_turns[i], 1.0);
}

/* Of turns with something to do, beyond what they take without. */
static double busy_ns(const struct phase *p)
{
	const double idle = idle_ns(p);
	double sum = 0;

	for (uint32_t i = 0; i < N_BINS; i++)
		if (p->turn_ns[i] > BUSY * idle * p->n_turns[i])
			sum += p->turn_ns[i] - idle * p->n_turns[i];
	return sum;
}

/* Work, turning the loop in between, until ns have passed and all is written that
 * was started. -EIO when a page was gone, or the error of a write. */
static int spend(struct durable *d, uint64_t ns, struct phase *p)
{
	const uint64_t t0 = clock_ns();
	uint64_t t = t0;

	memset(p, 0, sizeof(*p));
	while (!d->err && (t - t0 < ns || d->n_done < d->n_started ||
			   d->raw_done < d->raw_to)) {
		double from;

		if (!work(d))
			return -EIO;
		from = cpu_ns();
		(void)loop_turn(d->loop, 0);
		add_turn(p, cpu_ns() - from);
		p->n++;
		t = clock_ns();
	}
	p->ns = (double)(t - t0);
	return d->err;
}

static void raw_run(struct loop_work *w)
{
	struct durable *d = container_of(w, struct durable, raw);
	const size_t bytes = (size_t)N_PAGES * PAGE;

	for (uint32_t i = d->raw_from; i < d->raw_to && !d->raw_err; i++)
		if (pwrite(d->raw_fd, range_addr(d->ranges[i]), bytes,
			   (off_t)(i * bytes)) != (ssize_t)bytes)
			d->raw_err = -EIO;
}

static void raw_over(struct loop_work *w)
{
	struct durable *d = container_of(w, struct durable, raw);

	d->raw_done = d->raw_to;
	d->err = d->err ? d->err : d->raw_err;
}

/* Blocks that nobody wrote yet, as the store's. */
static int raw_begin(struct durable *d, const struct bench *b)
{
	const off_t bytes = (off_t)d->n * N_PAGES * PAGE;

	d->raw.run = raw_run;
	d->raw.done = raw_over;
	d->raw_fd =
		open(b->dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
	if (d->raw_fd < 0)
		return -errno;
	return fallocate(d->raw_fd, 0, 0, bytes) ? -errno : 0;
}

struct round {
	struct phase alone, durable, raw;
};

/* With the work alone next to each: machines are noisy. */
static int one_round(struct durable *d, uint32_t to, struct round *r,
		     double *lost, double *raw_lost)
{
	struct phase again;
	int ret = spend(d, ALONE_NS, &r->alone);

	d->limit = to;
	start_next(d);
	if (!ret)
		ret = spend(d, 0, &r->durable);
	if (!ret)
		ret = spend(d, ALONE_NS, &again);
	if (ret)
		return ret;
	d->raw_from = d->raw_to;
	d->raw_to = to;
	loop_work_start(d->loop, &d->raw);
	ret = spend(d, 0, &r->raw);
	r->alone.ns += again.ns;
	r->alone.n += again.n;
	for (uint32_t i = 0; i < N_BINS; i++) {
		r->alone.turn_ns[i] += again.turn_ns[i];
		r->alone.n_turns[i] += again.n_turns[i];
	}
	*lost = 100 *
		(1 - r->durable.n / r->durable.ns / (r->alone.n / r->alone.ns));
	*raw_lost = 100 * (1 - r->raw.n / r->raw.ns / (again.n / again.ns));
	return ret;
}

static int measure(struct bench *b, struct durable *d)
{
	const uint32_t step = d->n / ROUNDS;
	double lost[ROUNDS], raw_lost[ROUNDS], gb_s[ROUNDS], stall[ROUNDS];

	for (uint32_t i = 0; i < ROUNDS; i++) {
		struct round r;
		int ret = one_round(d, (i + 1) * step, &r, &lost[i],
				    &raw_lost[i]);

		if (ret)
			return ret;
		gb_s[i] = (double)step * N_PAGES * PAGE / r.durable.ns;
		stall[i] = 100 * (busy_ns(&r.durable) / r.durable.ns -
				  busy_ns(&r.alone) / r.alone.ns);
	}
	bench_put(b, bench_quantile(gb_s, ROUNDS, 0.5), "GB/s",
		  "store.durable.gb_s");
	bench_put(b, bench_quantile(stall, ROUNDS, 0.5), "%",
		  "store.durable.stall");
	bench_put(b, bench_quantile(lost, ROUNDS, 0.5), "%",
		  "store.durable.lost");
	bench_put(b, bench_quantile(raw_lost, ROUNDS, 0.5), "%",
		  "store.durable.raw_lost");
	return 0;
}

static void end(struct durable *d)
{
	while (d->raw_done < d->raw_to) /* it reads the ranges */
		(void)loop_turn(d->loop, 10);
	for (uint32_t i = 0; d->ranges && i < d->n; i++)
		range_free(d->ranges[i]);
	if (d->pager)
		pager_free(d->pager);
	stores_free(d->stores);
	loop_free(d->loop);
	if (d->huge_dir > 0)
		(void)close(d->huge_dir);
	if (d->raw_fd >= 0)
		(void)close(d->raw_fd);
	(void)unlink(d->path);
	free(d->ranges);
	free(d->todo);
}

int bench_durable(struct bench *b)
{
	struct durable d = { .n = b->quick ? 8 : 128, .raw_fd = -1 };
	int ret = -ENOMEM;

	d.ranges = calloc(d.n, sizeof(struct range *));
	d.todo = calloc(d.n + 1, sizeof(*d.todo));
	if (d.ranges && d.todo) {
		d.todo[d.n].meta = &d;
		ret = begin(&d, b);
	}
	if (!ret)
		ret = raw_begin(&d, b);
	if (!ret)
		ret = fill(&d);
	if (!ret)
		ret = measure(b, &d);
	end(&d);
	return ret ? bench_fail(ret, "durable: in %s", b->dir) : 0;
}
