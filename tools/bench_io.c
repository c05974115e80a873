/*
 * bench_io.c - kvbench io: what io_uring's options are worth on this disk
 *
 * The same reads with plain requests and with registered files and buffers, a thread
 * of the kernel that submits, polled completions. io/engine.c registers files;
 * docs/store.md says why it leaves the rest.
 *
 * Each page that is read or written is summed: by the checksum of io/crc.h over pages that
 * no cache holds, as a ratio to what one thread can read of them.
 */
#include <errno.h>
#include <string.h>
#include "io/crc.h"
#include "kvd/base/pool.h"
#include "tools/bench.h"
#include "tools/bench_raw.h"

struct how {
	const char *name;
	unsigned int how;
};

struct side {
	struct raw raw;
	double cpu_s, gb;
	int ret; /* of its start: not there */
};

static const struct how hows[] = {
	{ "plain", 0 },
	{ "files", RAW_FILES },
	{ "buffers", RAW_FILES | RAW_BUFFERS },
	{ "sqpoll", RAW_FILES | RAW_SQPOLL },
	{ "iopoll", RAW_FILES | RAW_IOPOLL },
};
#define N_HOWS ((unsigned int)KV_ARRAY_LEN(hows))

static double read_run(void *arg)
{
	struct side *s = arg;
	const double before = raw_cpu_s();
	const double gb_s = raw_read_run(&s->raw);

	s->cpu_s += raw_cpu_s() - before;
	s->gb += (double)s->raw.n_blocks * (double)s->raw.block * 1e-9;
	return gb_s;
}

static int one_size(struct bench *b, size_t block, const char *name)
{
	const uint64_t n_bytes = b->quick ? 64u << 20 : 512u << 20;
	struct side sides[N_HOWS];
	struct bench_side run[N_HOWS];
	unsigned int n = 0;
	int ret;

	memset(sides, 0, sizeof(sides));
	memset(run, 0, sizeof(run));
	for (unsigned int i = 0; i < N_HOWS; i++) {
		sides[i].ret = raw_init(&sides[i].raw, b->dir, block, n_bytes,
					hows[i].how);
		if (sides[i].ret)
			bench_note("io: %s: not to be had: %s", hows[i].name,
				   strerror(-sides[i].ret));
		else
			run[n++] = (struct bench_side){ .run = read_run,
							.arg = &sides[i] };
	}
	ret = sides[0].ret ? sides[0].ret
			   : bench_rounds(run, n, b->quick ? 1 : 5,
					  b->quick ? 0.5 : 5);
	for (unsigned int i = 0, k = 0; i < N_HOWS; i++) {
		struct side *s = &sides[i];

		if (s->ret)
			continue;
		if (!ret) {
			bench_put(b, bench_median(&run[k]), "GB/s",
				  "io.%s.%s.gb_s", name, hows[i].name);
			bench_put(b, s->cpu_s / s->gb, "cores",
				  "io.%s.%s.cores_per_gbs", name, hows[i].name);
		}
		raw_fini(&s->raw);
		k++;
	}
	return ret;
}

/* ---- the checksum ----------------------------------------------------------- */

#define PAGE ((size_t)2 << 20)

struct sum {
	const char *base;
	size_t n_bytes;
	uint32_t crc; /* so that nothing is optimised away */
};

static double sum_run(void *arg)
{
	struct sum *s = arg;
	const uint64_t t0 = clock_ns();

	for (size_t at = 0; at < s->n_bytes; at += PAGE)
		s->crc ^= kio_crc32c(0, s->base + at, PAGE);
	return (double)s->n_bytes / (double)(clock_ns() - t0);
}

static int checksum(struct bench *b)
{
	const size_t n = b->quick ? 64u << 20 : 512u << 20;
	struct bench_read read = { .n_bytes = n };
	struct sum sum = { .n_bytes = n };
	struct bench_side sides[2] = { { .run = bench_read_run, .arg = &read },
				       { .run = sum_run, .arg = &sum } };
	void *base = bench_alloc(n);
	int ret = base ? pool_new(&read.pool, 1) : -ENOMEM;

	if (!ret) {
		bench_fill_bf16(base, n);
		read.base = sum.base = base;
		ret = bench_rounds(sides, 2, 3, b->quick ? 0.2 : 2);
		pool_free(read.pool);
	}
	if (!ret) {
		bench_put(b, bench_median(&sides[1]), "GB/s", "io.crc32c.gb_s");
		bench_put(b, bench_ratio(&sides[1], &sides[0]), "x",
			  "io.crc32c.read_ratio");
	}
	if (base)
		bench_free(base, n);
	return ret;
}

int bench_io(struct bench *b)
{
	int ret = checksum(b);

	if (ret)
		return bench_fail(ret, "io: checksum");
	ret = one_size(b, 2u << 20, "2m");

	if (!ret)
		ret = one_size(b, 64u << 10, "64k");
	return ret ? bench_fail(ret, "io: in %s", b->dir) : 0;
}
