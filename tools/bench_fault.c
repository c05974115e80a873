/*
 * bench_fault.c - kvbench fault: touching a page of KV that is not in the map
 *
 * A sequence of 64 MiB in pages of 64 KiB, mapped by kvc_map(). Resident: memory for
 * all of it; the map is new each round, and one byte is read of every 33rd page, since
 * a fault maps 2 MiB of what is resident behind it; the same resolved by the thread itself
 * (kvc_map_by_signal(), 128 KiB at once). From disk: memory for an eighth; one
 * byte of each page of the older half, in random order, so that each is read. Then the
 * whole map is read in order.
 */
#include "tools/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define N_HEADS	   4u
#define HEAD_DIM   128u
#define PAGE_BYTES 65536u /* 32 tokens of one layer */
#define N_PAGES	   1024u
#define N_TOKENS   (N_PAGES * 32u)
#define STRIDE	   33u /* pages */
#define STEP	   512u /* tokens */
#define ROUNDS	   12u

static int fill(struct kvc *c, int seq)
{
	const size_t row = N_HEADS * HEAD_DIM * 2;
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	char *kv = kvc_alloc(c, STEP * row);
	int ret = it && kv ? 0 : -ENOMEM;

	if (!ret)
		bench_fill_bf16(kv, STEP * row);
	for (uint32_t t = 0; t < N_TOKENS && !ret; t += STEP) {
		*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
					       .n_tokens = STEP,
					       .pos = t,
					       .q_off = KV_NO_OFF,
					       .o_off = KV_NO_OFF,
					       .k_off = kvc_off(c, kv),
					       .v_off = kvc_off(c, kv) };
		ret = kvc_append(c, it, 1, 0, KV_SQE_WAIT);
	}
	kvc_free(c, it);
	kvc_free(c, kv);
	return ret ? ret : kvc_seq_seal(c, seq);
}

static int sequence(struct kvc *c)
{
	const struct kv_geometry g = { .n_layers = 1,
				       .n_heads = N_HEADS,
				       .n_kv_heads = N_HEADS,
				       .head_dim = HEAD_DIM,
				       .type = KV_BF16 };
	const int geometry = kvc_geometry(c, &g);
	const int seq = geometry < 0 ? geometry : kvc_seq_new(c, geometry, 0);
	const int ret = seq < 0 ? seq : fill(c, seq);

	return ret ? ret : seq;
}

/* The first byte of page i of the sequence. */
static const volatile char *page_at(const struct kvc_map *m, uint32_t i)
{
	const struct kvc_map_entry *e = m->entries;

	while (i >= e->n_tokens / 32)
		i -= e++->n_tokens / 32;
	return e->addr + (uint64_t)i * PAGE_BYTES;
}

static double touch_us(const struct kvc_map *m, uint32_t i)
{
	const volatile char *p = page_at(m, i);
	const uint64_t t0 = clock_ns();

	(void)*p;
	return (double)(clock_ns() - t0) * 1e-3;
}

static void put(struct bench *b, double *v, size_t n, const char *where)
{
	bench_put(b, bench_quantile(v, n, 0.5), "us", "paging.fault%s.p50_us",
		  where);
	bench_put(b, bench_quantile(v, n, 0.99), "us", "paging.fault%s.p99_us",
		  where);
}

static int touch_resident(struct bench *b, struct kvc *c, int seq,
			  const char *name)
{
	static double v[ROUNDS * (N_PAGES / STRIDE + 1)];
	struct kvc_map *m;
	size_t n = 0;
	int ret;

	for (uint32_t round = 0; round < ROUNDS; round++) {
		ret = kvc_map(c, seq, &m);
		if (ret)
			return ret;
		for (uint32_t i = 0; i < N_PAGES; i += STRIDE)
			v[n++] = touch_us(m, i);
		(void)kvc_unmap(c, m); /* it is ours: no failure */
	}
	put(b, v, n, name);
	return 0;
}

static int resident(struct bench *b, struct kvc *c, int seq)
{
	return touch_resident(b, c, seq, "");
}

/* The whole map in order, a byte of each 4 KiB. */
static int scan(struct bench *b, struct kvc *c, int seq, const char *name)
{
	struct kvc_map *m;
	volatile char sum = 0;
	uint64_t t0;
	int ret = kvc_map(c, seq, &m);

	if (ret)
		return ret;
	t0 = clock_ns();
	for (uint32_t i = 0; i < N_PAGES; i++)
		for (uint32_t k = 0; k < PAGE_BYTES; k += 4096)
			sum = (char)(sum + page_at(m, i)[k]);
	bench_put(b, (double)N_PAGES * PAGE_BYTES / (double)(clock_ns() - t0),
		  "GB/s", "paging.fault%s.scan_gb_s", name);
	return kvc_unmap(c, m);
}

/* The same by whoever faults, and both read in order. */
static int by_signal(struct bench *b, struct kvc *c, int seq)
{
	int ret = kvc_map_by_signal(c);

	if (!ret)
		ret = touch_resident(b, c, seq, ".signal");
	return ret ? ret : scan(b, c, seq, ".signal");
}

static int scan_resident(struct bench *b, struct kvc *c, int seq)
{
	return scan(b, c, seq, "");
}

static int from_disk(struct bench *b, struct kvc *c, int seq)
{
	const uint32_t half = N_PAGES / 2;
	double v[N_PAGES / 2];
	struct kvc_map *m;
	uint64_t t0;
	int ret = kvc_map(c, seq, &m);

	if (ret)
		return ret;
	for (uint32_t i = 0; i < half; i++)
		v[i] = touch_us(m, i * 179u % half); /* odd: a permutation */
	put(b, v, half, ".disk");
	t0 = clock_ns();
	for (uint32_t i = 0; i < N_PAGES; i++)
		(void)touch_us(m, i);
	bench_put(b, (double)N_PAGES * PAGE_BYTES / (double)(clock_ns() - t0),
		  "GB/s", "paging.fault.disk.scan_gb_s");
	return kvc_unmap(c, m);
}

static int one(struct bench *b, uint64_t memory_bytes,
	       int (*run)(struct bench *b, struct kvc *c, int seq))
{
	struct bench own = *b;
	struct kvc_options opt = { .name = "kvbench",
				   .features = KV_FEATURE_MAP };
	struct bench_daemon d;
	struct kvc *c;
	int ret, seq;

	own.memory_bytes = memory_bytes;
	ret = bench_daemon_start(&own, &d, 0);
	if (ret)
		return ret;
	opt.socket = d.socket;
	ret = kvc_open(&c, &opt);
	if (!ret) {
		seq = sequence(c);
		ret = seq < 0 ? seq : run(b, c, seq);
		kvc_close(c);
	}
	bench_daemon_stop(&d);
	return ret;
}

int bench_fault(struct bench *b)
{
	const uint64_t all = (uint64_t)N_PAGES * PAGE_BYTES;
	int ret = one(b, 2 * all, resident);

	if (!ret)
		ret = one(b, 2 * all, scan_resident);
	if (!ret)
		ret = one(b, 2 * all, by_signal);
	if (!ret)
		ret = one(b, all / 8, from_disk);
	if (ret == -EPROTONOSUPPORT || ret == -ENOTSUP) {
		bench_note("fault: skipped: userfaultfd cannot be had here");
		return 0;
	}
	return ret ? bench_fail(ret, "fault") : 0;
}
