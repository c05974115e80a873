/*
 * test_device.c - pagers over device memory, on the fake driver
 *
 * Bytes go device -> host pool -> disk and back; random operations do what a trivial
 * model does, with a disk and without, for one tenant and two.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "io/fault.h"
#include "kvd/base/clock.h"
#include "tests/rig/rig_dev.h"
#include "tests/rig/rig_gguf.h"
#include "tests/rig/rig_mem.h"

#define PAGE RIG_DEV_FRAME

static struct rig_dev *r;

static uint32_t *page_of(struct range *range, uint32_t i)
{
	return (uint32_t *)(range_addr(range) + i * range_page_bytes(range));
}

static void fill(struct range *range, uint32_t i, uint32_t seed)
{
	uint32_t *p = page_of(range, i);

	for (uint32_t k = 0; k < range_page_bytes(range) / 4; k++)
		p[k] = seed * 2654435761u + k;
}

static void check_fill(struct range *range, uint32_t i, uint32_t seed)
{
	const uint32_t *p = page_of(range, i);
	uint32_t n_bad = 0; /* an assertion for each word takes too long */

	for (uint32_t k = 0; k < range_page_bytes(range) / 4; k++)
		n_bad += p[k] != seed * 2654435761u + k;
	ck_assert_uint_eq(n_bad, 0);
}

static void write_page(struct range *range, uint32_t i, uint32_t seed)
{
	struct page_run run = { range, i, 1, PAGE_WRITE };
	struct pager *p = range_pager(range);

	ck_assert_int_eq(pager_reserve(p, range_page_bytes(range)), 0);
	ck_assert_int_eq(rig_dev_want(r, p, &run, 1), 0);
	fill(range, i, seed);
	page_unpin(p, &run, 1);
	pager_unreserve(p, range_page_bytes(range));
}

static void read_page(struct range *range, uint32_t i, uint32_t seed)
{
	struct page_run run = { range, i, 1, 0 };
	struct pager *p = range_pager(range);

	ck_assert_int_eq(pager_reserve(p, range_page_bytes(range)), 0);
	ck_assert_int_eq(rig_dev_want(r, p, &run, 1), 0);
	check_fill(range, i, seed);
	page_unpin(p, &run, 1);
	pager_unreserve(p, range_page_bytes(range));
}

/* 32 pages over 8 frames and a pool of pool pages; and again in another order. */
static void go_round(uint64_t pool, uint64_t disk)
{
	struct device_info d;
	struct pager_info i;
	struct range *range;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 8 * PAGE,
						   .host_bytes = pool * PAGE,
						   .disk_bytes = disk });
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 32, &range), 0);
	for (uint32_t k = 0; k < 32; k++)
		write_page(range, k, k + 1);
	for (uint32_t k = 0; k < 32; k++)
		read_page(range, k, k + 1);
	for (uint32_t k = 32; k--;)
		read_page(range, k, k + 1);
	for (uint32_t k = 0; k < 32; k += 3)
		write_page(range, k, 100 + k);
	for (uint32_t k = 32; k--;)
		read_page(range, k, k % 3 ? k + 1 : 100 + k);
	rig_dev_settle(r);
	rig_dev_check(r);
	pager_info(r->pagers[0], &i);
	device_info(r->device, &d);
	ck_assert_uint_gt(i.n_evicted_total, 0);
	ck_assert_uint_gt(i.n_read_total, 0);
	ck_assert_uint_ge(d.copy.bytes[COPY_TO_HOST], 24 * PAGE);
	ck_assert_uint_ge(d.copy.bytes[COPY_TO_DEVICE], 24 * PAGE);
	if (disk && pool < 32)
		ck_assert_uint_gt(d.park.flushed, 0);
	if (!disk)
		ck_assert_uint_eq(d.park.used_bytes, i.slot_bytes);
	range_free(range);
	rig_dev_close(r);
}

START_TEST(pages_go_down_to_disk_and_come_back)
{
	go_round(8, 64 * PAGE);
}
END_TEST

START_TEST(a_pool_that_holds_all_writes_little)
{
	struct device_info d;
	struct range *range;

	go_round(80, 64 * PAGE);
	/* freed before its time came: nothing was written for it */
	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 8 * PAGE,
						   .host_bytes = 80 * PAGE,
						   .disk_bytes = 64 * PAGE });
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 32, &range), 0);
	for (uint32_t k = 0; k < 32; k++)
		write_page(range, k, k + 1);
	for (uint32_t k = 0; k < 32; k++)
		read_page(range, k, k + 1);
	range_free(range);
	rig_dev_settle(r);
	device_info(r->device, &d);
	ck_assert_uint_eq(d.park.flushed, 0);
	ck_assert_uint_eq(d.park.used_bytes, 0);
	rig_dev_close(r);
}
END_TEST

START_TEST(without_a_disk_the_pool_is_the_place)
{
	go_round(40, 0);
}
END_TEST

/* ---- what survives ----------------------------------------------------------- */

static struct {
	struct range *range;
	int ret;
} found;

static int adopt(void *ctx, uint32_t i_disk, const struct kio_record *rec)
{
	struct rig_dev *rig = ctx;

	found.ret = range_adopt(rig->pagers[0], i_disk, rec, &found.range);
	return found.ret ? KIO_RECORD_ORPHAN : KIO_RECORD_KEEP;
}

struct persisted {
	struct range_persist rp;
	int told, ret;
};

static void persisted(struct wait *w, int ret)
{
	struct persisted *p =
		container_of(container_of(w, struct range_persist, wait),
			     struct persisted, rp);

	p->told = 1;
	p->ret = ret;
}

static int persist(struct range *range)
{
	struct persisted p = { .rp = { .wait.done = persisted,
				       .range = range,
				       .key = { 7, 8 },
				       .meta = "blob",
				       .meta_bytes = 4 } };

	ck_assert_int_eq(range_persist(&p.rp), 0);
	for (uint64_t t0 = clock_ns(); !p.told && rig_mem_patient(t0);)
		rig_dev_turn(r);
	ck_assert(p.told);
	return p.ret;
}

/* A record names only what is on the disk, though pages stay in the pool for long. */
START_TEST(what_is_durable_survives)
{
	char path[] = "/var/tmp/kvd-dev-store-XXXXXX";
	struct rig_dev_options o = { .memory_bytes = 8 * PAGE,
				     .host_bytes = 64 * PAGE,
				     .disk_bytes = 64 * PAGE,
				     .store = path };
	struct device_info d;
	struct range *range;
	const int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	(void)close(fd);
	ck_assert_int_eq(unlink(path), 0);
	r = rig_dev_open(o);
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 16, &range), 0);
	for (uint32_t k = 0; k < 16; k++)
		write_page(range, k, k + 1);
	device_info(r->device, &d);
	ck_assert_uint_eq(d.park.flushed, 0); /* half of it, and less */
	if (_i) /* a write fails: it is done again */
		kio_fault_arm(KIO_FAULT_ONCE, "uring.write", 5, EIO);
	ck_assert_int_eq(persist(range), 0);
	kio_fault_disarm();
	ck_assert(range_durable(range));
	device_info(r->device, &d);
	ck_assert_uint_eq(d.park.dirty_bytes, 0);
	for (uint32_t k = 0; k < 16; k++)
		read_page(range, k, k + 1);
	pager_keep_records(r->pagers[0]);
	range_free(range);
	rig_dev_close(r);

	memset(&found, 0, sizeof(found));
	o.found = adopt;
	r = rig_dev_open(o);
	ck_assert_ptr_nonnull(found.range);
	ck_assert_int_eq(found.ret, 0);
	for (uint32_t k = 16; k--;)
		read_page(found.range, k, k + 1);
	device_info(r->device, &d);
	ck_assert_uint_eq(d.park.flushed, 0);
	range_free(found.range); /* and its record */
	rig_dev_close(r);

	memset(&found, 0, sizeof(found));
	r = rig_dev_open(o);
	ck_assert_ptr_null(found.range);
	rig_dev_close(r);
	ck_assert_int_eq(unlink(path), 0);
}
END_TEST

/* ---- two tenants ------------------------------------------------------------- */

/* Who floods the pool leaves the other its part of it. */
START_TEST(the_pool_goes_by_weight)
{
	struct range *range[2];
	struct pager_info i[2];

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 16 * PAGE,
						   .host_bytes = 64 * PAGE,
						   .disk_bytes = 512 * PAGE,
						   .n_pagers = 2,
						   .weights = { 100, 300 } });
	for (int t = 0; t < 2; t++)
		ck_assert_int_eq(range_new(r->pagers[t], PAGE, 200, &range[t]),
				 0);
	/* the first has it alone; then both write on, in turns */
	for (uint32_t k = 0; k < 100; k++)
		write_page(range[0], k, k + 1);
	pager_info(r->pagers[0], &i[0]);
	ck_assert_uint_gt(i[0].host_bytes, 40 * PAGE);
	/* three times as much when what is on its way has settled: a slow disk takes
	   longer to let go of what the first has */
	i[1].host_bytes = 0;
	for (uint64_t t0 = clock_ns();
	     i[1].host_bytes <= i[0].host_bytes / 2 * 3 &&
	     rig_mem_patient(t0);) {
		for (uint32_t k = 0; k < 100; k++) {
			write_page(range[0], 100 + k, k + 101);
			write_page(range[1], k, k + 1);
		}
		for (int t = 0; t < 2; t++)
			pager_info(r->pagers[t], &i[t]);
	}
	ck_assert_uint_gt(i[1].host_bytes, i[0].host_bytes / 2 * 3);
	for (uint32_t k = 0; k < 100; k += 7) {
		read_page(range[0], k, k + 1);
		read_page(range[1], k, k + 1);
	}
	range_free(range[0]);
	range_free(range[1]);
	rig_dev_close(r);
}
END_TEST

static struct pager_usage_tier host_of(int t)
{
	struct pager_usage u;

	pager_usage(r->pagers[t], &u);
	ck_assert_int_eq(u.n_tiers, PAGER_TIERS);
	return u.tiers[PAGER_TIERS - 1];
}

/* What is had of the pool costs its tenant, and nobody else, as long as it is had. */
START_TEST(time_in_the_pool_is_accounted)
{
	struct pager_usage_tier from, to;
	struct pager_info i;
	struct range *range;
	uint64_t ns[4];
	double had;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 8 * PAGE,
						   .host_bytes = 64 * PAGE,
						   .disk_bytes = 64 * PAGE,
						   .n_pagers = 2,
						   .weights = { 100, 300 } });
	ck_assert_uint_eq(host_of(0).limit, 64 * PAGE);
	ck_assert_uint_eq(host_of(0).share, 16 * PAGE);
	ck_assert_uint_eq(host_of(1).share, 48 * PAGE);
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 24, &range), 0);
	for (uint32_t k = 0; k < 24; k++)
		write_page(range, k, k);
	rig_dev_settle(r);
	rig_dev_check(r);
	pager_info(r->pagers[0], &i);
	ck_assert_uint_ge(i.host_bytes, 16 * PAGE);
	ns[0] = clock_ns();
	from = host_of(0);
	ns[1] = clock_ns();
	ck_assert_uint_eq(from.used, i.host_bytes);
	while (clock_ns() < ns[1] + 1000000)
		;
	ns[2] = clock_ns();
	to = host_of(0);
	ns[3] = clock_ns();
	ck_assert_uint_eq(to.used, from.used);
	ck_assert_double_ge_tol(
		to.byte_seconds - from.byte_seconds,
		(double)to.used * 1e-9 * (double)(ns[2] - ns[1]), 1);
	ck_assert_double_le_tol(
		to.byte_seconds - from.byte_seconds,
		(double)to.used * 1e-9 * (double)(ns[3] - ns[0]), 1);
	had = to.byte_seconds;
	range_free(range);
	rig_dev_settle(r);
	from = host_of(0);
	ck_assert_double_ge(from.byte_seconds, had);
	while (clock_ns() < ns[3] + 2000000)
		;
	to = host_of(0);
	ck_assert_uint_eq(to.used, 0);
	ck_assert_double_eq_tol(to.byte_seconds, from.byte_seconds, 1e-9);
	ck_assert_double_eq_tol(host_of(1).byte_seconds, 0, 1e-9);
	rig_dev_close(r);
}
END_TEST

/* Frames that go from one to the other bring no bytes along. */
START_TEST(nobody_sees_bytes_of_another)
{
	struct page_run run = { .n = 8, .flags = PAGE_WRITE };
	struct range *range[2];
	uint32_t n_bad = 0;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 8 * PAGE,
						   .host_bytes = 64 * PAGE,
						   .disk_bytes = 64 * PAGE,
						   .n_pagers = 2 });
	for (int t = 0; t < 2; t++)
		ck_assert_int_eq(range_new(r->pagers[t], PAGE, 8, &range[t]),
				 0);
	for (uint32_t k = 0; k < 8; k++)
		write_page(range[0], k, 0xabcd);
	run.range = range[1];
	ck_assert_int_eq(pager_reserve(r->pagers[1], 8 * PAGE), 0);
	ck_assert_int_eq(rig_dev_want(r, r->pagers[1], &run, 1), 0);
	for (size_t k = 0; k < 8 * PAGE / 4; k++)
		n_bad += page_of(range[1], 0)[k] != 0;
	ck_assert_uint_eq(n_bad, 0);
	page_unpin(r->pagers[1], &run, 1);
	pager_unreserve(r->pagers[1], 8 * PAGE);
	range_free(range[0]);
	range_free(range[1]);
	rig_dev_close(r);
}
END_TEST

/* ---- memory back to the system -------------------------------------------------- */

static void trim_told(struct wait *w, int ret)
{
	(void)w;
	ck_assert_int_eq(ret, 0);
	found.ret = 1;
}

START_TEST(idle_memory_goes_back)
{
	struct wait w = { trim_told };
	struct device_trim t = { .waiter = &w };
	struct fake_stats st;
	struct range *range;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 40 * PAGE,
						   .host_bytes = 64 * PAGE,
						   .disk_bytes = 64 * PAGE });
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 32, &range), 0);
	for (uint32_t k = 0; k < 32; k++)
		write_page(range, k, k + 1);
	range_trim(range, 20);
	rig_dev_settle(r);
	found.ret = 0;
	device_trim(r->device, &t);
	while (!found.ret)
		rig_dev_turn(r);
	ck_assert_uint_ge(t.n_bytes, 12 * PAGE);
	r->ctl.stats(&st);
	ck_assert_uint_eq(st.used_bytes, 20 * PAGE);
	for (uint32_t k = 0; k < 20; k++)
		read_page(range, k, k + 1);
	range_free(range);
	rig_dev_close(r);
}
END_TEST

/* What gpu.step.map_waits counts: pages mapped ahead, or that have frames, make no want wait. */
START_TEST(mapped_ahead_nobody_waits)
{
	struct page_run run = { .n = 4, .flags = PAGE_WRITE };
	struct page_want w = { .runs = &run, .n_runs = 1 };
	struct pager_info info;
	struct pager *p;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 16 * PAGE,
						   .host_bytes = 16 * PAGE,
						   .disk_bytes = 64 * PAGE });
	p = r->pagers[0];
	ck_assert_int_eq(range_new(p, PAGE, 8, &run.range), 0);
	ck_assert_int_eq(pager_reserve(p, 8 * PAGE), 0);
	page_prefetch(p, &run, 1);
	rig_dev_settle(r);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(page_want(p, &w), 1);
		page_unpin(p, &run, 1);
	}
	pager_info(p, &info);
	ck_assert_uint_eq(info.n_map_waits_total, 0);
	run.first = 4;
	ck_assert_int_eq(rig_dev_want(r, p, &run, 1), 0);
	page_unpin(p, &run, 1);
	pager_info(p, &info);
	ck_assert_uint_eq(info.n_map_waits_total, 4);
	pager_unreserve(p, 8 * PAGE);
	range_free(run.range);
	rig_dev_close(r);
}
END_TEST

/* Pages that the device cannot have are refused, not rounded. */
START_TEST(pages_are_whole_frames)
{
	struct range *range;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 40 * PAGE,
						   .host_bytes = 16 * PAGE,
						   .disk_bytes = 64 * PAGE });
	ck_assert_uint_eq(pager_page_align(r->pagers[0]), PAGE);
	ck_assert_int_eq(range_new(r->pagers[0], 4096, 1, &range), -EINVAL);
	ck_assert_int_eq(range_new(r->pagers[0], 4 * PAGE, 1, &range), -EINVAL);
	ck_assert_int_eq(range_new(r->pagers[0], 2 * PAGE, 1, &range), 0);
	range_free(range);
	rig_dev_close(r);
}
END_TEST

/* Near the device: as the system tells, whatever it tells. */
START_TEST(the_node_of_a_device)
{
	char root[] = "/tmp/kvd-dev-pci-XXXXXX", path[128];
	FILE *f;

	ck_assert_ptr_nonnull(mkdtemp(root));
	snprintf(path, sizeof(path), "%s/0000:3b:00.0", root);
	ck_assert_int_eq(mkdir(path, 0700), 0);
	ck_assert_int_eq(device_pci_node(root, "0000:3B:00.0"), -1);
	snprintf(path, sizeof(path), "%s/0000:3b:00.0/numa_node", root);
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	fputs("3\n", f);
	ck_assert_int_eq(fclose(f), 0);
	ck_assert_int_eq(device_pci_node(root, "0000:3B:00.0"), 3);
	ck_assert_int_eq(device_pci_node(root, "../0000:3b:00.0"), -1);
	ck_assert_int_eq(device_pci_node(root, ""), -1);
	ck_assert_int_eq(unlink(path), 0);
	*strrchr(path, '/') = '\0';
	ck_assert_int_eq(rmdir(path), 0);
	ck_assert_int_eq(rmdir(root), 0);
}
END_TEST

/* ---- random operations ------------------------------------------------------ */

#define N_RANGES 24u
#define N_WANTS	 6u
#define MOST	 6u

struct item {
	struct range *range;
	uint32_t n, n_open;
	uint32_t fill[MOST]; /* 0: any bytes */
};
struct open_want {
	struct page_want want;
	struct page_run run;
	struct item *item; /* NULL: free */
	uint64_t reserved;
	int told, ret;
};
static struct item items[N_RANGES];
static struct open_want wants[N_WANTS];
static uint64_t seed, n_done[6];
static uint32_t next_fill;

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(rig_random(&seed) % n);
}

static void done(struct wait *wait, int ret)
{
	struct open_want *w =
		container_of(container_of(wait, struct page_want, wait),
			     struct open_want, want);

	ck_assert(!w->told);
	w->told = 1;
	w->ret = ret;
}

static void finish(struct open_want *w, int pinned)
{
	struct pager *p = range_pager(w->run.range);

	if (pinned)
		page_unpin(p, &w->run, 1);
	pager_unreserve(p, w->reserved);
	w->item->n_open--;
	w->item = NULL;
}

/* What was told: look at each page, and write it if that was asked for. */
static void take(struct open_want *w)
{
	ck_assert_int_eq(w->ret, 0);
	for (uint32_t i = 0; i < w->run.n; i++) {
		const uint32_t k = w->run.first + i;
		uint32_t *f = &w->item->fill[k];

		if (*f)
			check_fill(w->run.range, k, *f);
		if (w->run.flags & PAGE_WRITE && (rnd(4) || !*f))
			fill(w->run.range, k, *f = ++next_fill);
	}
	finish(w, 1);
	n_done[3]++;
}

static uint64_t all_bytes(void)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < N_RANGES; i++)
		if (items[i].range)
			sum += items[i].n * range_page_bytes(items[i].range);
	return sum;
}

static void op_new(struct item *it, uint64_t most)
{
	const size_t bytes = PAGE << rnd(2);

	it->n = 1 + rnd(MOST);
	if (all_bytes() + it->n * bytes > most)
		return;
	ck_assert_int_eq(range_new(r->pagers[rnd(r->n_pagers)], bytes, it->n,
				   &it->range),
			 0);
	it->n_open = 0;
	memset(it->fill, 0, sizeof(it->fill));
	n_done[0]++;
}

static void op_want(struct item *it)
{
	struct open_want *w = &wants[rnd(N_WANTS)];
	int ret;

	if (w->item || it->n_open)
		return;
	memset(w, 0, sizeof(*w));
	w->run.first = rnd(it->n);
	w->run.n = 1 + rnd(it->n - w->run.first);
	w->run.range = it->range;
	w->run.flags = rnd(2) ? PAGE_WRITE : 0;
	w->reserved = w->run.n * range_page_bytes(it->range);
	if (pager_reserve(range_pager(it->range), w->reserved))
		return;
	list_init(&w->want.node);
	list_init(&w->want.call.node);
	w->want.runs = &w->run;
	w->want.n_runs = 1;
	w->want.prio = rnd(2) ? WANT_STEP : WANT_NEXT;
	w->want.wait.done = done;
	w->item = it;
	it->n_open = 1;
	ret = page_want(range_pager(it->range), &w->want);
	ck_assert_int_ge(ret, 0);
	n_done[1]++;
	if (ret)
		done(&w->want.wait, 0);
}

static void op_end(void)
{
	struct open_want *w = &wants[rnd(N_WANTS)];

	if (!w->item)
		return;
	if (w->told) {
		take(w);
	} else if (!rnd(8)) {
		page_want_cancel(range_pager(w->run.range), &w->want);
		finish(w, 0);
		n_done[2]++;
	}
}

static void op_free(struct item *it)
{
	if (it->n_open)
		return;
	if (it->n > 1 && rnd(2)) {
		it->n = 1 + rnd(it->n - 1);
		range_trim(it->range, it->n);
		n_done[4]++;
		return;
	}
	range_free(it->range);
	it->range = NULL;
	n_done[5]++;
}

static void op_ahead(struct item *it)
{
	const struct page_run all = { it->range, 0, it->n, 0 };

	page_prefetch(range_pager(it->range), &all, 1);
}

static void step(uint64_t most)
{
	struct item *it = &items[rnd(N_RANGES)];
	const uint32_t what = rnd(100);

	if (what >= 70)
		rig_dev_turn(r);
	else if (what >= 45)
		op_end();
	else if (!it->range)
		op_new(it, most);
	else if (what >= 12)
		op_want(it);
	else if (what >= 7)
		op_free(it);
	else
		op_ahead(it);
}

static void settle(void)
{
	for (uint32_t i = 0; i < N_WANTS; i++) {
		while (wants[i].item && !wants[i].told)
			rig_dev_turn(r);
		if (wants[i].item)
			take(&wants[i]);
	}
	rig_dev_settle(r);
	rig_dev_check(r);
	for (uint32_t i = 0; i < N_RANGES; i++)
		for (uint32_t k = 0; items[i].range && k < items[i].n; k++)
			if (items[i].fill[k])
				read_page(items[i].range, k, items[i].fill[k]);
}

static const struct rig_dev_options mixes[] = {
	{ .memory_bytes = 24 * PAGE,
	  .host_bytes = 32 * PAGE,
	  .disk_bytes = 160 * PAGE },
	{ .memory_bytes = 24 * PAGE,
	  .host_bytes = 16 * PAGE,
	  .disk_bytes = 160 * PAGE,
	  .n_pagers = 2,
	  .weights = { 100, 300 } },
	{ .memory_bytes = 24 * PAGE, .host_bytes = 100 * PAGE },
	{ .memory_bytes = 24 * PAGE,
	  .host_bytes = 200 * PAGE,
	  .n_pagers = 2,
	  .weights = { 100, 100 } },
};

START_TEST(a_device_does_what_a_model_does)
{
	const struct rig_dev_options *o = &mixes[_i];
	const char *s = getenv("KVD_SEED");
	const uint32_t n = getenv("KVD_LONG") ? 400000 : 10000;
	/* two tenants have half of it each */
	const uint64_t place = o->disk_bytes ? o->disk_bytes : o->host_bytes;
	const uint64_t most = place / (o->n_pagers ? o->n_pagers : 1);
	struct device_info d;

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("mix %d, seed %llu\n", _i, (unsigned long long)seed);
	r = rig_dev_open(*o);
	device_info(r->device, &d);
	/* until the pool was short of room too, however slow the disk is */
	for (uint32_t i = 0;
	     i < n || (o->disk_bytes && !d.park.dropped && i < 20 * n); i++) {
		step(most / 4 * 3);
		if (i % (n / 10) == n / 10 - 1)
			settle();
		device_info(r->device, &d);
	}
	settle();
	printf("ranges %llu, wants %llu, cancelled %llu, told %llu, cut %llu, "
	       "freed %llu; pages of pool: %llu written, %llu dropped\n",
	       (unsigned long long)n_done[0], (unsigned long long)n_done[1],
	       (unsigned long long)n_done[2], (unsigned long long)n_done[3],
	       (unsigned long long)n_done[4], (unsigned long long)n_done[5],
	       (unsigned long long)d.park.flushed,
	       (unsigned long long)d.park.dropped);
	for (size_t i = 0; i < KV_ARRAY_LEN(n_done); i++)
		ck_assert_uint_gt(n_done[i], 0);
	if (o->disk_bytes)
		ck_assert_uint_gt(d.park.dropped, 0);
	for (uint32_t i = 0; i < N_RANGES; i++)
		range_free(items[i].range);
	rig_dev_close(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("device");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(t, 300);
	tcase_add_test(t, pages_go_down_to_disk_and_come_back);
	tcase_add_test(t, a_pool_that_holds_all_writes_little);
	tcase_add_test(t, without_a_disk_the_pool_is_the_place);
	tcase_add_loop_test(t, what_is_durable_survives, 0, 2);
	tcase_add_test(t, the_pool_goes_by_weight);
	tcase_add_test(t, time_in_the_pool_is_accounted);
	tcase_add_test(t, nobody_sees_bytes_of_another);
	tcase_add_test(t, idle_memory_goes_back);
	tcase_add_test(t, mapped_ahead_nobody_waits);
	tcase_add_test(t, pages_are_whole_frames);
	tcase_add_test(t, the_node_of_a_device);
	tcase_add_loop_test(t, a_device_does_what_a_model_does, 0,
			    (int)KV_ARRAY_LEN(mixes));
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
