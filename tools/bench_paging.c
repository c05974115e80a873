/*
 * bench_paging.c - kvbench paging: the pager against raw O_DIRECT
 *
 * A range larger than the budget is filled (pages are written back as it
 * grows), then read through in order, so that nearly every want reads from the
 * page file. Limit: io_uring reads of a preallocated, already written file of
 * the same size, with the same block, the same number in flight; writes too.
 * A page found resident does not count as paged in.
 *
 * Resident wants are timed, and repeated in a child under strict seccomp, which
 * a single system call would kill.
 */
#include "tools/bench.h"
#include "tools/bench_raw.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "io/crc.h"
#include "kvd/mem/folio.h"
#include "kvd/mem/pager.h"
#include "kvd/mem/space.h"
#include "kvd/mem/stores.h"

#define BLOCK_BYTES (2u << 20) /* that of a 1B-class model */
#define N_RESIDENT  200000u

/* ---- the pager ---------------------------------------------------------- */

/* One of the wants in flight. */
struct slot {
	struct page_want want;
	struct page_run run;
	struct paging *p;
	int busy;
};

struct paging {
	struct loop *loop;
	struct stores *stores;
	struct pager *pager;
	struct range *range;
	struct loop_call starter;
	struct slot slots[4 * RAW_DEPTH];
	size_t page_bytes;
	int huge; /* 1: folios where they can be had */
	int huge_dir;
	uint32_t n_pages;
	uint32_t depth; /* wants at once: a quarter of them is at the disk */
	uint32_t next, n_done, n_read;
	uint32_t flags; /* PAGE_WRITE while filling */
	uint32_t mark; /* what is written into each page */
	int started; /* starter is queued */
	int err;
};

/* The page is pinned: use it, let go of it. */
static void page_there(struct paging *p, struct slot *s)
{
	char *at = range_addr(p->range) + (size_t)s->run.first * p->page_bytes;

	if (p->flags &
	    PAGE_WRITE) /* a word of each block: filling is not paging */
		for (size_t k = 0; k < p->page_bytes; k += 4096)
			at[k] = (char)(p->mark + s->run.first);
	else if (*at != (char)(p->mark + s->run.first))
		p->err = -EBADMSG;
	p->n_read += s->want.n_read;
	page_unpin(p->pager, &s->run, 1);
	s->busy = 0;
	p->n_done++;
}

static void queue_starter(struct paging *p)
{
	if (p->started)
		return;
	p->started = 1;
	loop_defer(p->loop, &p->starter);
}

static void want_over(struct paging *p, struct slot *s, int err)
{
	p->err = err;
	s->busy = 0;
	p->n_done++;
}

static void want_told(struct wait *w, int ret)
{
	struct slot *s = container_of(w, struct slot, want.wait);
	struct paging *p = s->p;

	if (ret)
		want_over(p, s, ret);
	else
		page_there(p, s);
	queue_starter(p);
}

static void start_wants(struct loop_call *c)
{
	struct paging *p = container_of(c, struct paging, starter);
	int ret;

	p->started = 0;
	for (uint32_t i = 0; i < p->depth; i++) {
		struct slot *s = &p->slots[i];

		while (!s->busy && p->next < p->n_pages && !p->err) {
			*s = (struct slot){ .p = p, .busy = 1 };
			s->run = (struct page_run){
				p->range, raw_scattered(p->next++, p->n_pages),
				1, p->flags
			};
			s->want.wait.done = want_told;
			s->want.runs = &s->run;
			s->want.n_runs = 1;
			ret = page_want(p->pager, &s->want);
			if (ret > 0)
				page_there(p, s);
			else if (ret < 0)
				want_over(p, s, ret);
		}
	}
}

/* Want every page of the range in order, p->depth at a time; seconds. */
static double pager_pass(struct paging *p)
{
	const uint64_t t0 = clock_ns();

	p->next = p->n_done = p->n_read = 0;
	queue_starter(p); /* or it still is from the pass before */
	while (p->n_done < (p->err ? p->next : p->n_pages))
		if (loop_turn(p->loop, 100) < 0)
			return -1;
	return p->err ? -1 : (double)(clock_ns() - t0) * 1e-9;
}

/* GB/s of pages that came from the file */
static double page_in_run(void *arg)
{
	struct paging *p = arg;
	double s;

	p->flags = 0;
	s = pager_pass(p);
	return s < 0 ? s : (double)p->n_read * (double)p->page_bytes * 1e-9 / s;
}

/* The range is another one, and each page of it was written to; seconds. */
static double fill(struct paging *p)
{
	p->range = NULL;
	if (range_new(p->pager, p->page_bytes, p->n_pages, &p->range))
		return -1;
	p->mark++;
	p->flags = PAGE_WRITE;
	return pager_pass(p);
}

/*
 * GB/s written back while a range is filled. Memory is full of another's pages when the clock
 * starts: while it fills, there is nothing to write.
 */
static double page_out_run(void *arg)
{
	struct paging *p = arg;
	struct pager_info before, after;
	struct range *old;
	double s;

	if (!p->range && fill(p) < 0)
		return -1;
	old = p->range;
	pager_info(p->pager, &before);
	s = fill(p);
	pager_info(p->pager, &after);
	range_free(old);
	return s < 0 ? s
		     : (double)(after.written_bytes_total -
				before.written_bytes_total) *
			       1e-9 / s;
}

static void paging_fini(struct paging *p)
{
	if (p->pager) {
		range_free(p->range);
		pager_free(p->pager);
	}
	stores_free(p->stores);
	loop_free(p->loop);
	if (p->huge_dir > 0)
		(void)close(p->huge_dir);
}

static int paging_start(struct paging *p, const char *dir)
{
	struct pager_conf conf = {
		.name = "bench",
		.memory_bytes =
			KV_MAX((uint64_t)p->n_pages / 4, p->depth * 3ull / 2) *
			p->page_bytes,
		.disk_bytes = (uint64_t)p->n_pages * 3 * p->page_bytes,
		.numa_node = -1,
		.policy = "clock",
		.loop = p->loop,
		.stores = p->stores,
	};
	struct stores_conf sc = {
		.loop = p->loop, .depth = p->depth / 4, .n = 1, .scratch = 1
	};
	char path[4200], err[256];
	int ret;

	if (p->huge)
		p->huge_dir =
			space_huge_dir(NULL, conf.memory_bytes + (2u << 20));
	conf.huge_dir = p->huge_dir;
	conf.folios = p->huge && folio_switch_on() > 0;
	snprintf(path, sizeof(path), "%s/kvbench.store", dir);
	sc.disks[0] = (struct stores_disk_conf){ path, 2 * conf.disk_bytes };
	ret = stores_new(&p->stores, &sc);
	if (ret)
		return ret;
	conf.stores = p->stores;
	ret = pager_new(&p->pager, &conf);
	if (!ret)
		ret = stores_open(p->stores, NULL, NULL, err, sizeof(err));
	if (!ret)
		ret = pager_reserve(p->pager,
				    (uint64_t)p->depth * p->page_bytes);
	return ret;
}

static int paging_init(struct paging *p, const char *dir, size_t page_bytes,
		       uint64_t n_bytes)
{
	int ret = loop_new(&p->loop);

	if (ret)
		return ret;
	p->page_bytes = page_bytes;
	p->n_pages = (uint32_t)(n_bytes / page_bytes);
	p->depth = 4 * raw_depth(page_bytes);
	p->starter.run = start_wants;
	list_init(&p->starter.node);
	loop_set_spin(p->loop, 20000);
	ret = loop_start_workers(p->loop, 2);
	if (ret)
		goto fail;
	ret = paging_start(p, dir);
	if (!ret)
		return 0;
fail:
	paging_fini(p);
	return ret;
}

/* ---- resident ----------------------------------------------------------- */

/* n wants and unpins of page i, which is resident: 0, or -1. */
static int touch_resident(struct paging *p, uint32_t i, uint32_t n)
{
	struct page_run run = { p->range, i, 1, 0 };
	struct page_want w = { .runs = &run, .n_runs = 1 };

	while (n--) {
		if (page_want(p->pager, &w) != 1)
			return -1;
		page_unpin(p->pager, &run, 1);
	}
	return 0;
}

/* 1 when resident wants made no system call, else 0. */
static int resident_is_quiet(struct paging *p, uint32_t i)
{
	const pid_t pid = fork();
	int status = 1;

	if (!pid) {
		int ret;

		(void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
		ret = touch_resident(p, i, 1000);
		(void)syscall(SYS_exit, ret ? 1 : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 0;
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

static int resident(struct bench *b, struct paging *p)
{
	const uint32_t i = raw_scattered(p->n_pages - 1, p->n_pages);
	uint64_t t0;

	if (touch_resident(p, i, 1))
		return -EIO;
	t0 = clock_ns();
	if (touch_resident(p, i, N_RESIDENT))
		return -EIO;
	bench_put(b, (double)(clock_ns() - t0) / N_RESIDENT, "ns",
		  "paging.resident.ns");
	bench_put(b, resident_is_quiet(p, i) ? 0 : 1, "calls",
		  "paging.resident.syscalls");
	return 0;
}

/* ---- all ---------------------------------------------------------------- */

static int measure(struct bench *b, struct raw *r, struct paging *p)
{
	struct bench_side in[2] = { { .run = raw_read_run, .arg = r },
				    { .run = page_in_run, .arg = p } };
	struct bench_side out[2] = { { .run = raw_write_run, .arg = r },
				     { .run = page_out_run, .arg = p } };
	const double budget_s = b->quick ? 1.5 : 10.0;
	struct pager_info info;
	int ret = bench_rounds(out, 2, b->quick ? 1 : 3, budget_s);

	if (ret)
		return ret;
	p->flags = 0;
	if (pager_pass(p) < 0) /* what is still dirty is written back here */
		return p->err;
	ret = bench_rounds(in, 2, b->quick ? 1 : 3, budget_s);
	if (!ret)
		ret = resident(b, p);
	if (ret)
		return ret;
	pager_info(p->pager, &info);
	bench_put(b, bench_median(&in[0]), "GB/s", "paging.raw.gb_s");
	bench_put(b, bench_median(&in[1]), "GB/s", "paging.in.gb_s");
	bench_put(b, bench_ratio(&in[1], &in[0]), "x", "paging.in.raw_ratio");
	bench_put(b, bench_median(&out[0]), "GB/s", "paging.raw.write_gb_s");
	bench_put(b, bench_median(&out[1]), "GB/s", "paging.out.gb_s");
	bench_put(b, bench_ratio(&out[1], &out[0]), "x",
		  "paging.out.raw_ratio");
	bench_put(b, (double)info.n_read_total, "pages", "paging.in.pages");
	return 0;
}

/* ---- restore: the shapes of frames against each other --------------------- */

struct restore {
	struct paging p;
	double cores[BENCH_MAX_ROUNDS]; /* per GB/s, of each round */
	unsigned int n;
};

/*
 * The second of two passes. While others ran, frames lay free, and where the kernel hands
 * those to the host (virtio's free page reporting) clearing one takes ten times as long.
 */
static double restore_run(void *arg)
{
	struct restore *r = arg;
	double gb_s = page_in_run(&r->p), before = raw_cpu_s();

	if (gb_s < 0)
		return gb_s;
	gb_s = page_in_run(&r->p);
	if (gb_s > 0 && r->n < KV_ARRAY_LEN(r->cores))
		r->cores[r->n++] =
			(raw_cpu_s() - before) /
			((double)r->p.n_read * (double)r->p.page_bytes * 1e-9);
	return gb_s;
}

/*
 * CPU that no restore into new frames does without, of the same run: raw requests, the kernel's
 * clearing of folios that were free a moment ago, a checksum of what lies in memory.
 */
struct least {
	struct raw *raw;
	double cpu_s, gb; /* of raw requests */
	double clear_s, crc_s, part_gb;
};

#define PART_BYTES (128u << 20)

static char *new_folios(void)
{
	char *p = mmap(NULL, PART_BYTES + (2u << 20), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, PART_BYTES + (2u << 20), MADV_HUGEPAGE);
	if (madvise(p, PART_BYTES + (2u << 20), MADV_POPULATE_WRITE))
		for (size_t i = 0; i < PART_BYTES + (2u << 20); i += 4096)
			p[i] = 1;
	return p;
}

static void drop_folios(char *p)
{
	(void)munmap(p, PART_BYTES + (2u << 20));
}

static int least_parts(struct least *l)
{
	double before;
	char *p = new_folios();

	if (!p)
		return -1;
	drop_folios(p);
	before = raw_cpu_s();
	p = new_folios();
	if (!p)
		return -1;
	l->clear_s += raw_cpu_s() - before;
	before = raw_cpu_s();
	for (size_t i = 0; i < PART_BYTES; i += 2u << 20)
		*(volatile uint32_t *)p = kio_crc32c(0, p + i, 2u << 20);
	l->crc_s += raw_cpu_s() - before;
	l->part_gb += PART_BYTES * 1e-9;
	drop_folios(p);
	return 0;
}

static double least_run(void *arg)
{
	struct least *l = arg;
	const double before = raw_cpu_s(), gb_s = raw_read_run(l->raw);

	l->cpu_s += raw_cpu_s() - before;
	l->gb += (double)(l->raw->n_blocks * l->raw->block) * 1e-9;
	return gb_s < 0 || least_parts(l) ? -1 : gb_s;
}

static double least_cores(const struct least *l)
{
	return l->cpu_s / l->gb + (l->clear_s + l->crc_s) / l->part_gb;
}

/*
 * The raw file by faults of a plain map, its page cache empty before. most bounds that cache:
 * a block that was read goes at once, for it is not wanted again, then what was read ahead
 * first, which is better than the kernel's own order. The clock stands still meanwhile.
 */
struct mapped {
	const struct raw *r;
	const char *at;
	size_t most; /* bytes */
	unsigned char *in; /* of each page, see mincore(2) */
	uint32_t *
		since; /* of each block, when it was first seen there; 0: it is not */
	uint32_t now;
};

static void block_forget(struct mapped *m, uint32_t block)
{
	const size_t off = block * m->r->block;

	(void)madvise((void *)(m->at + off), m->r->block, MADV_DONTNEED);
	(void)posix_fadvise(m->r->fd, (off_t)off, (off_t)m->r->block,
			    POSIX_FADV_DONTNEED);
	m->since[block] = 0;
}

static size_t block_cached(const struct mapped *m, uint32_t block)
{
	const size_t n = m->r->block / 4096;
	size_t sum = 0;

	for (size_t k = block * n; k < (block + 1) * n; k++)
		sum += m->in[k] & 1;
	return sum * 4096;
}

/* Bytes in the cache; oldest: the block that is there longest. */
static size_t cached(struct mapped *m, uint32_t *oldest)
{
	const struct raw *r = m->r;
	size_t sum = 0;

	*oldest = 0;
	if (mincore((void *)m->at, r->n_blocks * r->block, m->in))
		return 0;
	for (uint32_t i = 0; i < r->n_blocks; i++) {
		const size_t n = block_cached(m, i);

		sum += n;
		if (!n)
			m->since[i] = 0;
		else if (!m->since[i])
			m->since[i] = m->now;
		if (m->since[i] &&
		    (!m->since[*oldest] || m->since[i] < m->since[*oldest]))
			*oldest = i;
	}
	return sum;
}

static void cache_trim(struct mapped *m, uint32_t block)
{
	uint32_t oldest;

	m->now++;
	block_forget(m, block);
	for (uint32_t i = 0; i < m->r->n_blocks && cached(m, &oldest) > m->most;
	     i++)
		block_forget(m, oldest);
}

/* GB/s of n blocks */
static double mapped_read(struct mapped *m, uint32_t n_blocks)
{
	const struct raw *r = m->r;
	volatile char sum = 0;
	uint64_t ns = 0;

	(void)posix_fadvise(r->fd, 0, 0, POSIX_FADV_DONTNEED);
	for (uint32_t i = 0; i < n_blocks; i++) {
		const uint32_t block = raw_scattered(i, r->n_blocks);
		const uint64_t t0 = clock_ns();

		for (size_t k = 0; k < r->block; k += 4096)
			sum = (char)(sum + m->at[block * r->block + k]);
		ns += clock_ns() - t0;
		if (m->in)
			cache_trim(m, block);
	}
	return (double)(n_blocks * r->block) / (double)ns;
}

/* most: of the cache; 0: as much as there is */
static double mmap_blocks(const struct raw *r, uint32_t n_blocks, size_t most)
{
	const size_t n = r->n_blocks * r->block;
	struct mapped m = { .r = r, .most = most };
	double gb_s = -1;

	m.at = mmap(NULL, n, PROT_READ, MAP_SHARED, r->fd, 0);
	if (m.at == MAP_FAILED)
		return -1;
	if (most) {
		m.in = calloc(n / 4096, 1);
		m.since = calloc(r->n_blocks, sizeof(*m.since));
	}
	if (!most || (m.in && m.since))
		gb_s = mapped_read(&m, n_blocks);
	free(m.in);
	free(m.since);
	(void)munmap((void *)m.at, n);
	return gb_s;
}

/* With as much memory as the pager has. */
static double mmap_run(void *arg)
{
	const struct raw *r = arg;

	return mmap_blocks(r, r->n_blocks, r->n_blocks / 4 * r->block);
}

static double mmap_free_run(void *arg)
{
	const struct raw *r = arg;

	return mmap_blocks(r, r->n_blocks, 0);
}

/* What others wrote lies between: what is read ahead of it is in vain. */
static double mmap_part_run(void *arg)
{
	const struct raw *r = arg;

	return mmap_blocks(r, r->n_blocks / 4, 0);
}

/* Lines of one shape; beside: only its rate and CPU, under its name. */
static int restore_shape(struct bench *b, struct raw *r, size_t page_bytes,
			 int huge, const char *beside)
{
	const uint64_t n_bytes = (uint64_t)r->n_blocks * r->block;
	const unsigned int n = b->quick ? 1 : 3;
	struct restore x = { .p.huge = huge };
	struct least least = { .raw = r };
	struct bench_side in[5] = { { .run = least_run, .arg = &least },
				    { .run = restore_run, .arg = &x },
				    { .run = mmap_run, .arg = r },
				    { .run = mmap_free_run, .arg = r },
				    { .run = mmap_part_run, .arg = r } };
	struct bench_side out[2] = { { .run = raw_write_run, .arg = r },
				     { .run = page_out_run, .arg = &x.p } };
	int ret = paging_init(&x.p, b->dir, page_bytes, n_bytes);

	if (ret)
		return ret;
	loop_set_spin(x.p.loop, 0);
	ret = bench_rounds(out, 2, n, b->quick ? 1 : 5);
	x.p.flags = 0;
	if (!ret && pager_pass(&x.p) < 0)
		ret = x.p.err ? x.p.err : -EIO;
	if (!ret)
		ret = bench_rounds(in, beside[0] ? 2 : 5,
				   beside[0] || b->quick ? n : 5,
				   b->quick ? 1 : 5);
	if (!ret) {
		bench_put(b, bench_median(&in[1]), "GB/s",
			  "paging.restore%s.gb_s", beside);
		bench_put(b, bench_ratio(&in[1], &in[0]), "x",
			  "paging.restore%s.raw_ratio", beside);
		bench_put(b, bench_quantile(x.cores, x.n, 0.5), "cores",
			  "paging.restore%s.cores_per_gbs", beside);
		bench_put(b, bench_ratio(&out[1], &out[0]), "x",
			  "paging.write%s.raw_ratio", beside);
	}
	if (!ret && !beside[0]) {
		bench_put(b, least_cores(&least), "cores",
			  "paging.restore.cores_least");
		bench_put(b, bench_ratio(&in[1], &in[2]), "x",
			  "paging.restore.mmap_ratio");
		bench_put(b, bench_ratio(&in[1], &in[3]), "x",
			  "paging.restore.mmap_free_ratio");
		bench_put(b, bench_ratio(&in[1], &in[4]), "x",
			  "paging.restore.mmap_part_ratio");
		bench_put(b, bench_ratio(&in[0], &in[3]), "x",
			  "paging.raw.mmap_free_ratio");
	}
	pager_unreserve(x.p.pager, (uint64_t)x.p.depth * page_bytes);
	paging_fini(&x.p);
	return ret;
}

/* 2 MiB folios where they can be had; a memfd with holes beside it. */
static int restore(struct bench *b)
{
	struct raw r;
	int ret = raw_init(&r, b->dir, 2u << 20,
			   b->quick ? 96u << 20 : 512u << 20, 0);

	if (ret)
		return bench_fail(ret, "paging: raw file in %s", b->dir);
	ret = restore_shape(b, &r, 2u << 20, 1, "");
	if (!ret)
		ret = restore_shape(b, &r, 2u << 20, 0, ".memfd");
	if (!ret)
		ret = restore_shape(b, &r, 256u << 10, 0, ".small");
	if (!ret)
		ret = restore_shape(b, &r, 256u << 10, 1, ".folios");
	raw_fini(&r);
	return ret ? bench_fail(ret, "paging: restore") : 0;
}

int bench_paging(struct bench *b)
{
	const uint64_t n_bytes = (b->quick ? 96u << 20 : 512u << 20);
	struct paging p = { .huge = 1 };
	struct raw r;
	int ret = raw_init(&r, b->dir, BLOCK_BYTES, n_bytes, 0);

	if (ret)
		return bench_fail(ret, "paging: raw file in %s", b->dir);
	ret = paging_init(&p, b->dir, BLOCK_BYTES, n_bytes);
	if (ret) {
		(void)bench_fail(ret, "paging: pager in %s", b->dir);
		goto out_raw;
	}
	bench_note("paging: %s in %s, %u KiB a page, %u requests at the disk",
		   stores_engine_name(p.stores), b->dir, BLOCK_BYTES >> 10,
		   p.depth / 4);
	ret = measure(b, &r, &p);
	if (ret)
		(void)bench_fail(ret, "paging");
	pager_unreserve(p.pager, (uint64_t)p.depth * BLOCK_BYTES);
	paging_fini(&p);
out_raw:
	raw_fini(&r);
	return ret ? ret : restore(b);
}
