/*
 * bench_store.c - kvbench store: start, acknowledgement and overhead of a store
 *
 * Start: a sparse store with a million records of a page each, opened again. The
 * index is read with O_DIRECT and dropped from the page cache before, so what is
 * measured is the disk, the checksums and the maps. Then the same with what the daemon
 * does for each record: a million pages as segments of 256 tokens, which it adopts and
 * indexes for one tenant; and as a million segments of a page each.
 *
 * Acknowledgement: one page is written and its record put, one after the other.
 *
 * Overhead: a store that is 80 % full of records; at random one goes and one comes,
 * until twice the capacity was written. Amplification is all that was written
 * over the pages' bytes, by the store's count and by the kernel's.
 */
#include "tools/bench.h"
#include "tools/bench_owner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/store.h"

#define N_MILLION     1000000u
#define MILLION_BYTES (64ull << 30) /* sparse: 0.8 % of it are the index */
#define OWNED_BYTES   (128ull << 30)
#define PAGE	      (64u << 10)
#define PAGES	      8u /* of a record */
#define META	      100u
#define META_MAX      2048u
#define BATCH	      4096u

struct rig {
	struct kio_engine *engine;
	struct kio_store *store;
	char path[256];
	char *buf; /* a page of PAGE bytes */
	uint32_t crc;
	uint64_t seed;
	int n_busy; /* writes */
	int err; /* the first */
};

struct io {
	struct kio_req req;
	struct rig *rig;
};

/* A record. */
struct one {
	struct kio_commit commit;
	struct io ios[PAGES];
	struct kio_place places[PAGES];
	char meta[META_MAX];
	size_t meta_bytes; /* 0: META */
	struct rig *rig;
	uint64_t handle;
	int told;
};

static uint32_t rnd(struct rig *r, uint32_t n)
{
	r->seed = r->seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(r->seed >> 33) % n;
}

/* ---- a store ---------------------------------------------------------------- */

static int count(void *ctx, const struct kio_record *rec)
{
	(void)rec;
	++*(uint64_t *)ctx;
	return KIO_RECORD_KEEP;
}

static int open_store(struct rig *r, uint64_t bytes, uint64_t *n_found,
		      struct kio_store_report *rep)
{
	const struct kio_store_conf c = { .path = r->path,
					  .bytes = bytes,
					  .engine = r->engine };

	*n_found = 0;
	return kio_store_open(&r->store, &c, count, n_found, rep);
}

static void close_store(struct rig *r)
{
	kio_store_close(r->store);
	r->store = NULL;
}

static int new_engine(struct rig *r)
{
	/* and with it all that the store still reserves */
	kio_engine_free(r->engine);
	r->engine = NULL;
	return kio_engine_new(&r->engine, KIO_ENGINE_AUTO, 32);
}

static int rig_init(struct rig *r, const struct bench *b)
{
	*r = (struct rig){ .seed = 1 };
	if ((size_t)snprintf(r->path, sizeof(r->path), "%s/kvbench.%d.store",
			     b->dir, getpid()) >= sizeof(r->path))
		return -ENAMETOOLONG;
	if (posix_memalign((void **)&r->buf, 4096, PAGE))
		return -ENOMEM;
	bench_fill_bf16(r->buf, PAGE);
	r->crc = kio_crc32c(0, r->buf, PAGE);
	return new_engine(r);
}

static void rig_fini(struct rig *r)
{
	close_store(r);
	kio_engine_free(r->engine);
	free(r->buf);
	(void)unlink(r->path); /* a measurement that failed may have none */
}

static void turn(struct rig *r)
{
	struct pollfd bells[2] = {
		{ .fd = kio_engine_event_fd(r->engine), .events = POLLIN },
		{ .fd = kio_store_event_fd(r->store), .events = POLLIN },
	};

	kio_engine_submit(r->engine);
	(void)poll(bells, 2, 1000);
	(void)kio_engine_reap(r->engine);
	(void)kio_store_reap(r->store);
}

static void on_commit(struct kio_commit *c)
{
	struct one *o = container_of(c, struct one, commit);

	o->told = 1;
	o->handle = c->handle;
	if (c->ret && !o->rig->err)
		o->rig->err = c->ret;
}

static void put(struct rig *r, struct one *o, const uint64_t key[2],
		uint32_t page_bytes, uint32_t n_pages)
{
	o->rig = r;
	o->told = 0;
	o->commit = (struct kio_commit){ .key = { { key[0], key[1] } },
					 .page_bytes = page_bytes,
					 .n_pages = n_pages,
					 .places = o->places,
					 .meta = o->meta,
					 .meta_bytes = o->meta_bytes
							       ? o->meta_bytes
							       : META,
					 .done = on_commit };
	kio_store_put(r->store, &o->commit);
}

/* ---- a million records ------------------------------------------------------ */

/* What goes into the n-th record; NULL: nothing in particular. */
typedef int fill_meta(void *arg, uint32_t n, struct one *o, uint64_t key[2]);

/* A million pages in records of n_pages. */
static int fill_million(struct rig *r, uint32_t n_pages, fill_meta *meta,
			void *arg)
{
	const uint32_t n_all = N_MILLION / n_pages;
	struct one *all = calloc(BATCH, sizeof(*all));
	int ret = all ? 0 : -ENOMEM;

	for (uint32_t n = 0; n < n_all && !ret; n += BATCH) {
		uint32_t n_batch = KV_MIN(BATCH, n_all - n), n_put = 0;

		for (; n_put < n_batch && !ret; n_put++) {
			struct one *o = &all[n_put];
			uint64_t key[2] = { n + n_put, n + n_put };
			int64_t at = 0;

			for (uint32_t i = 0; i < n_pages && at >= 0; i++) {
				at = kio_store_alloc(r->store, 4096);
				o->places[i].block = (uint64_t)at;
			}
			ret = at < 0 ? (int)at
			      : meta ? meta(arg, n + n_put, o, key)
				     : 0;
			if (ret)
				break;
			put(r, o, key, 4096, n_pages);
		}
		for (uint32_t i = 0; i < n_put; i++)
			while (!all[i].told)
				turn(r);
		ret = ret ? ret : r->err;
	}
	free(all);
	return ret;
}

static int forget_cache(const struct rig *r)
{
	const int fd = open(r->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	(void)fdatasync(fd); /* only to have nothing dirty */
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	(void)close(fd);
	return 0;
}

static double cpu_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* cannot fail */
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int restart(struct bench *b)
{
	struct kio_store_report rep = { 0 };
	const unsigned int n_rounds = b->quick ? 3 : 9;
	double ms[9], cpu = 0;
	uint64_t n_found;
	struct rig r;
	int ret = rig_init(&r, b);

	if (!ret)
		ret = open_store(&r, MILLION_BYTES, &n_found, NULL);
	if (!ret)
		ret = fill_million(&r, 1, NULL, NULL);
	for (unsigned int i = 0; i < n_rounds && !ret; i++) {
		uint64_t t0;

		close_store(&r);
		ret = new_engine(&r);
		if (!ret)
			ret = forget_cache(&r);
		t0 = clock_ns();
		cpu = cpu_ms();
		if (!ret)
			ret = open_store(&r, 0, &n_found, &rep);
		ms[i] = (double)(clock_ns() - t0) / 1e6;
		cpu = cpu_ms() - cpu;
		if (!ret && n_found != N_MILLION)
			ret = -EBADMSG;
	}
	if (!ret) {
		bench_note("store: %llu records, index of %.1f MiB, cold; %.0f "
			   "ms of CPU",
			   (unsigned long long)n_found,
			   (double)rep.index_bytes / 1048576, cpu);
		bench_put(b, bench_quantile(ms, n_rounds, 0.5), "ms",
			  "store.restart_1m_ms");
		bench_put(b, (double)rep.index_bytes / N_MILLION, "bytes",
			  "store.record_bytes");
	}
	rig_fini(&r);
	return ret;
}

/* ---- the same in the daemon --------------------------------------------------- */

static int owned_meta(void *arg, uint32_t n, struct one *o, uint64_t key[2])
{
	const int ret = owner_meta(arg, n, o->meta, META_MAX, key);

	o->meta_bytes = ret < 0 ? 0 : (size_t)ret;
	return ret < 0 ? ret : 0;
}

static int fill_owned(struct rig *r, uint32_t n_pages)
{
	struct owner *o = NULL; /* it names the records */
	uint64_t n_found;
	int ret = owner_new(&o, r->path, n_pages);

	ret = ret ? ret : open_store(r, OWNED_BYTES, &n_found, NULL);
	ret = ret ? ret : fill_million(r, n_pages, owned_meta, o);
	close_store(r);
	ret = ret ? ret : new_engine(r); /* or it may still be locked */
	owner_free(o);
	return ret;
}

/* ms of a start, and of a request to make durable then, or a negative number. */
static double owned_start(struct rig *r, uint32_t n_pages, double *cpu,
			  double *persist)
{
	struct owner *o = NULL;
	int ret = owner_new(&o, r->path, n_pages);
	double ms = -1, was = cpu_ms();
	uint64_t t0;

	ret = ret ? ret : forget_cache(r);
	t0 = clock_ns();
	if (!ret && owner_open(o) == N_MILLION / n_pages) {
		ms = (double)(clock_ns() - t0) / 1e6;
		*cpu = cpu_ms() - was;
		*persist = owner_persist(o);
		if (*persist < 0)
			ms = -1;
	}
	owner_free(o);
	return ms;
}

static int restart_owned(struct bench *b, uint32_t n_pages, const char *name)
{
	const unsigned int n_rounds = b->quick ? 1 : 5;
	double ms[5], persist[5], cpu = 0;
	struct rig r;
	int ret = rig_init(&r, b);

	ret = ret ? ret : fill_owned(&r, n_pages);
	for (unsigned int i = 0; i < n_rounds && !ret; i++) {
		ms[i] = owned_start(&r, n_pages, &cpu, &persist[i]);
		ret = ms[i] < 0 ? -EBADMSG : 0;
	}
	if (!ret) {
		bench_note("store: %u segments of %u pages found: %.0f ms of "
			   "CPU",
			   N_MILLION / n_pages, n_pages, cpu);
		bench_put(b, bench_quantile(ms, n_rounds, 0.5), "ms",
			  "store.restart_1m.%s_ms", name);
		bench_put(b, bench_quantile(persist, n_rounds, 0.5), "ms",
			  "store.restart_1m.%s_persist_ms", name);
	}
	rig_fini(&r);
	return ret;
}

/* ---- pages and their records ------------------------------------------------ */

static void on_written(struct kio_req *q)
{
	struct rig *r = container_of(q, struct io, req)->rig;

	r->n_busy--;
	if (q->ret && !r->err)
		r->err = q->ret;
}

/* n slots, written, and the record queued. */
static int make(struct rig *r, struct one *o, uint64_t key, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		int64_t at = kio_store_alloc(r->store, PAGE);

		/* what was deleted comes back with the next flush */
		for (int k = 0; at == -ENOSPC && k < 1000; k++) {
			turn(r);
			at = kio_store_alloc(r->store, PAGE);
		}
		if (at < 0)
			return (int)at;
		o->places[i] = (struct kio_place){ .block = (uint64_t)at,
						   .crc = r->crc };
		o->ios[i] = (struct io){ .rig = r,
					 .req = { .buf = r->buf,
						  .n_bytes = PAGE,
						  .block = (uint64_t)at,
						  .done = on_written } };
		kio_store_write(r->store, &o->ios[i].req);
		r->n_busy++;
	}
	while (r->n_busy)
		turn(r);
	put(r, o, (const uint64_t[2]){ key, key }, PAGE, n);
	return r->err;
}

static int persist(struct bench *b)
{
	const unsigned int n = b->quick ? 200 : 2000;
	double *ms = calloc(n, sizeof(*ms));
	uint64_t n_found;
	struct one o;
	struct rig r;
	int ret = rig_init(&r, b);

	if (!ret)
		ret = ms ? open_store(&r, 1ull << 30, &n_found, NULL) : -ENOMEM;
	for (unsigned int i = 0; i < n && !ret; i++) {
		const uint64_t t0 = clock_ns();

		memset(&o, 0, sizeof(o));
		ret = make(&r, &o, i, 1);
		while (!ret && !o.told)
			turn(&r);
		ms[i] = (double)(clock_ns() - t0) / 1e6;
		ret = ret ? ret : r.err;
	}
	if (!ret) {
		bench_put(b, bench_quantile(ms, n, 0.5), "ms",
			  "store.persist.p50_ms");
		bench_put(b, bench_quantile(ms, n, 0.99), "ms",
			  "store.persist.p99_ms");
	}
	rig_fini(&r);
	free(ms);
	return ret;
}

/* ---- overhead --------------------------------------------------------------- */

/* What the kernel has written for this process; 0 where it does not say. */
static uint64_t kernel_written(void)
{
	FILE *f = fopen("/proc/self/io", "re");
	unsigned long long n = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "write_bytes: %llu", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

static void wait_for(struct rig *r, const struct one *all, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		while (!all[i].told)
			turn(r);
}

static int fill(struct rig *r, struct one *all, uint32_t n)
{
	int ret = 0;

	for (uint32_t i = 0; i < n && !ret; i++)
		ret = make(r, &all[i], i, PAGES);
	if (!ret)
		wait_for(r, all, n);
	return ret ? ret : r->err;
}

/* One goes, one comes, n times; records in flight as many as it takes. */
static int replace(struct rig *r, struct one *all, uint32_t n_all, uint32_t n)
{
	int ret = 0;

	for (uint32_t i = 0; i < n && !ret; i++) {
		struct one *o = &all[rnd(r, n_all)];

		while (!o->told)
			turn(r);
		kio_store_del(r->store, o->handle);
		for (uint32_t k = 0; k < PAGES; k++)
			kio_store_release(r->store, o->places[k].block, PAGE);
		ret = make(r, o, n_all + i, PAGES);
	}
	if (!ret)
		wait_for(r, all, n_all);
	return ret ? ret : r->err;
}

static void put_overhead(struct bench *b, const struct kio_store_info *from,
			 const struct kio_store_info *to, uint64_t kernel)
{
	const double moved = (double)(to->moved_bytes - from->moved_bytes);
	const double pages =
		(double)(to->page_written_bytes - from->page_written_bytes) -
		moved;
	const double index =
		(double)(to->index_written_bytes - from->index_written_bytes);

	bench_note(
		"store: %.0f MiB of pages, %.2f MiB of index in %llu groups, "
		"%llu compactions",
		pages / 1048576, index / 1048576,
		(unsigned long long)(to->n_groups - from->n_groups),
		(unsigned long long)(to->n_compactions - from->n_compactions));
	bench_put(b, (pages + moved + index) / pages, "x",
		  "store.write_amplification");
	if (kernel)
		bench_put(b, (double)kernel / pages, "x",
			  "store.write_amplification.kernel");
	bench_put(b,
		  100 * (double)to->index_live_bytes /
			  (double)to->durable_bytes,
		  "%", "store.metadata_ratio");
	bench_put(b, 100 * (double)to->index_bytes / (double)to->durable_bytes,
		  "%", "store.index_ratio");
	bench_put(b, 100 * (double)to->durable_bytes / (double)to->bytes, "%",
		  "store.full");
}

static int overhead(struct bench *b)
{
	const uint64_t bytes = b->quick ? 128ull << 20 : 1ull << 30;
	struct kio_store_info from, to;
	struct one *all = NULL;
	uint64_t n_found, kernel = 0;
	uint32_t n = 0;
	struct rig r;
	int ret = rig_init(&r, b);

	if (!ret)
		ret = open_store(&r, bytes, &n_found, NULL);
	if (!ret) {
		kio_store_info(r.store, &from);
		n = (uint32_t)(from.bytes / 10 * 8 / PAGE / PAGES);
		all = calloc(n, sizeof(*all));
		ret = all ? fill(&r, all, n) : -ENOMEM;
	}
	if (!ret) {
		kio_store_info(r.store, &from);
		kernel = kernel_written();
		ret = replace(&r, all, n, 2 * n);
	}
	if (!ret) {
		kio_store_info(r.store, &to);
		put_overhead(b, &from, &to, kernel_written() - kernel);
	}
	rig_fini(&r);
	free(all);
	return ret;
}

int bench_store(struct bench *b)
{
	int ret = persist(b);

	if (!ret)
		ret = overhead(b);
	if (!ret)
		ret = restart(b);
	if (!ret)
		ret = restart_owned(b, PAGES, "segments");
	if (!ret)
		ret = restart_owned(b, 1, "single");
	return ret ? bench_fail(ret, "store: in %s", b->dir) : 0;
}
