/*
 * test_stores.c - disks side by side: who gets what is new, and what when one fails
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "io/fault.h"
#include "io/sys.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/page.h"
#include "kvd/mem/stores.h"
#include "tests/rig/rig_mem.h"
#include "tests/rig/rig_store.h"

#define PAGE 8192u

static char path[64];

static void new_path(void)
{
	strcpy(path, "/var/tmp/kvd-stores-XXXXXX");
	close(mkstemp(path));
}

/* ---- a pager on one disk ---------------------------------------------------- */

static int told, told_ret;

static void on_persisted(struct wait *w, int ret)
{
	(void)w;
	told = 1;
	told_ret = ret;
}

static int persist(struct rig_mem *m, struct range *range, uint64_t key)
{
	struct range_persist p = { .wait.done = on_persisted,
				   .range = range,
				   .key = { key, key },
				   .meta = "x",
				   .meta_bytes = 1 };
	const int ret = range_persist(&p);

	told = 0;
	if (ret)
		return ret;
	for (uint64_t t0 = clock_ns(); !told && rig_mem_patient(t0);)
		rig_mem_turn(m);
	ck_assert_int_eq(told, 1);
	return told_ret;
}

static struct range *filled(struct rig_mem *m, uint32_t n)
{
	struct range *range;
	struct page_run run = { .n = n, .flags = PAGE_WRITE };

	ck_assert_int_eq(range_new(m->pager, PAGE, n, &range), 0);
	run.range = range;
	ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
	rig_mem_fill(&run, n);
	page_unpin(m->pager, &run, 1);
	return range;
}

static struct kio_store_info info(struct rig_mem *m)
{
	struct kio_store_info i;

	kio_store_info(stores_disk(m->stores, 0), &i);
	return i;
}

/* Pages of a new range until one is refused: with what, and not never. */
static int want_all(struct rig_mem *m, uint32_t n)
{
	struct range *range;
	int ret = 0;

	ck_assert_int_eq(range_new(m->pager, PAGE, n, &range), 0);
	for (uint32_t i = 0; i < n && !ret; i++) {
		struct page_run run = { range, i, 1, PAGE_WRITE };

		ret = rig_mem_want(m, &run, 1);
		if (!ret)
			page_unpin(m->pager, &run, 1);
	}
	range_free(range);
	return ret;
}

/* Slots whose deletion is never durable are not waited for. */
START_TEST(wants_end_after_a_failed_flush)
{
	struct rig_mem *m;
	struct range *a, *b;

	new_path();
	m = rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						   .disk_bytes = 8 * PAGE,
						   .store = path });
	a = filled(m, 2);
	ck_assert_int_eq(persist(m, a, 1), 0);
	b = filled(m, 1);
	if (_i)
		kio_fault_arm(KIO_FAULT_ONCE, "sys.fdatasync", 1, EIO);
	ck_assert_int_eq(persist(m, b, 2), _i ? -EIO : 0);
	kio_fault_disarm();
	range_free(a);
	rig_mem_settle(m);
	ck_assert_int_eq(info(m).failed, _i);
	if (_i)
		ck_assert_uint_eq(info(m).pending_bytes, 2 * PAGE);
	ck_assert_int_eq(want_all(m, 64), -ENOSPC);
	ck_assert_uint_eq(stores_pending(m->stores), 0);
	range_free(b);
	rig_mem_close(m);
	(void)unlink(path);
}
END_TEST

/* A deletion that could not be written is written again, whether more follow or not. */
START_TEST(wants_end_after_a_full_disk)
{
	struct rig_mem *m;
	struct range *a;

	new_path();
	m = rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						   .disk_bytes = 8 * PAGE,
						   .store = path });
	a = filled(m, 2);
	ck_assert_int_eq(persist(m, a, 1), 0);
	kio_fault_arm(_i ? KIO_FAULT_FOREVER : KIO_FAULT_ONCE, "sys.pwrite", 1,
		      ENOSPC);
	range_free(a);
	while (!kio_fault_count())
		rig_mem_turn(m);
	ck_assert_int_eq(want_all(m, 64), -ENOSPC);
	ck_assert_uint_eq(stores_pending(m->stores), 0);
	ck_assert_int_eq(info(m).failed, 0);
	ck_assert_uint_eq(info(m).pending_bytes, _i ? 2 * PAGE : 0);
	kio_fault_disarm();
	while (info(m).pending_bytes)
		rig_mem_turn(m);
	rig_mem_close(m);
	(void)unlink(path);
}
END_TEST

/* ---- records of nobody ------------------------------------------------------ */

#define LARGE (1u << 20)

/* A store of that size with as many pages in records as it holds: how many. */
static uint32_t fill_store(uint64_t bytes)
{
	struct rig_store r;
	struct rig_record *x = calloc(200, sizeof(*x));
	uint32_t n = 0;

	ck_assert_ptr_nonnull(x);
	rig_store_init(&r, KIO_ENGINE_AUTO, "/var/tmp");
	ck_assert_int_eq(rig_store_open(&r, bytes, 0), 0);
	while (n < 200 && !rig_store_take(&r, &x[n], n + 1, LARGE, 1, 0)) {
		ck_assert_int_eq(rig_store_commit(&r, &x[n]), 0);
		n++;
	}
	rig_store_close(&r);
	strcpy(path, r.path);
	ck_assert_int_eq(rename(r.path, strcat(path, ".full")), 0);
	rig_store_fini(&r);
	free(x);
	return n;
}

static int orphan(void *ctx, uint32_t i, const struct kio_record *rec)
{
	(void)ctx;
	(void)i;
	(void)rec;
	return KIO_RECORD_ORPHAN;
}

/* The room of records that nobody knows is had when there is no other. */
START_TEST(a_store_full_of_orphans_has_room)
{
	const uint32_t n = fill_store((16u << 20) + (64u << 20));
	struct rig_mem *m = rig_mem_open(
		(struct rig_mem_options){ .memory_bytes = 8 * LARGE,
					  .disk_bytes = 8 * LARGE,
					  .store = path,
					  .found = orphan });
	struct range *range;
	struct page_run run = { .n = 1, .flags = PAGE_WRITE };

	ck_assert_uint_ge(n, 64);
	ck_assert_uint_eq(info(m).n_orphans, n);
	ck_assert_uint_eq(info(m).orphan_bytes, (uint64_t)n * LARGE);
	ck_assert_uint_eq(info(m).used_bytes, info(m).bytes);
	for (uint64_t k = 0; k < 4; k++) {
		int ret = -ENOSPC;

		ck_assert_int_eq(range_new(m->pager, LARGE, 1, &range), 0);
		run.range = range;
		ck_assert_int_eq(rig_mem_want(m, &run, 1), 0);
		page_unpin(m->pager, &run, 1);
		for (uint32_t i = 0; i < n && ret == -ENOSPC; i++) {
			ret = persist(m, range, k); /* who asks again */
			while (info(m).pending_bytes)
				rig_mem_turn(m);
		}
		ck_assert_int_eq(ret, 0);
		range_free(range);
	}
	ck_assert_uint_lt(info(m).n_orphans, n);
	ck_assert_uint_gt(info(m).n_orphans, n / 2); /* one by one */
	ck_assert_uint_eq(info(m).orphan_bytes,
			  info(m).n_orphans * (uint64_t)LARGE);
	rig_mem_close(m);
	(void)unlink(path);
}
END_TEST

/* ---- two disks -------------------------------------------------------------- */

#define DISK (64ull << 20)

static struct loop *loop;
static struct stores *stores;
static char paths[2][64];
static uint32_t n_done;
static enum kio_engine_kind two_kind = KIO_ENGINE_AUTO;

static void open_two(uint64_t first, uint64_t second)
{
	struct stores_conf c = { .kind = two_kind, .depth = 4, .n = 2 };
	char err[256] = "";

	n_done = 0;
	ck_assert_int_eq(loop_new(&loop), 0);
	c.loop = loop;
	for (uint32_t i = 0; i < 2; i++) {
		new_path();
		strcpy(paths[i], path);
		c.disks[i].path = paths[i];
		c.disks[i].bytes = i ? second : first;
	}
	ck_assert_int_eq(stores_new(&stores, &c), 0);
	ck_assert_msg(!stores_open(stores, NULL, NULL, err, sizeof(err)), "%s",
		      err);
}

static void close_two(void)
{
	stores_free(stores);
	loop_free(loop);
	for (uint32_t i = 0; i < 2; i++)
		(void)unlink(paths[i]);
}

static uint64_t n_free(uint32_t i)
{
	struct kio_store_info k;

	kio_store_info(stores_disk(stores, i), &k);
	return k.bytes - k.used_bytes;
}

/* Where there is most room; nowhere where there is none. */
START_TEST(a_range_goes_where_room_is)
{
	open_two(DISK, 2 * DISK);
	while (n_free(1) > n_free(0)) {
		ck_assert_int_eq(stores_pick(stores, LARGE, 0), 1);
		ck_assert_int_ge(kio_store_alloc(stores_disk(stores, 1), LARGE),
				 0);
	}
	ck_assert_int_ge(kio_store_alloc(stores_disk(stores, 1), LARGE), 0);
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 0);
	ck_assert_int_eq(stores_pick(stores, n_free(0), 0), 0);
	ck_assert_int_eq(stores_pick(stores, n_free(0) + 1, 0), -ENOSPC);
	while (n_free(0))
		ck_assert_int_ge(kio_store_alloc(stores_disk(stores, 0), LARGE),
				 0);
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 1);
	while (n_free(1))
		ck_assert_int_ge(kio_store_alloc(stores_disk(stores, 1), LARGE),
				 0);
	ck_assert_int_eq(stores_pick(stores, 1, 0), -ENOSPC);
	close_two();
}
END_TEST

static void written(struct kio_req *r)
{
	stores_end(stores, 0, r);
	ck_assert_int_eq(r->ret, 0);
	n_done++;
}

/* Not where others wait already: half the room for each of them. */
START_TEST(a_range_goes_where_it_is_served_soon)
{
	struct kio_req reqs[3] = { 0 };
	struct stores_flow f;
	void *buf;

	open_two(3 * DISK, DISK);
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 0);
	ck_assert(!posix_memalign(&buf, 4096, LARGE));
	memset(buf, 1, LARGE);
	stores_flow_init(&f, 100, 0);
	for (uint32_t i = 0; i < 3; i++) {
		const int64_t at =
			kio_store_alloc(stores_disk(stores, 0), LARGE);

		reqs[i] = (struct kio_req){ .buf = buf,
					    .block = (uint64_t)at,
					    .n_bytes = LARGE,
					    .done = written };
		ck_assert_int_ge(at, 0);
		ck_assert_int_eq(stores_pick(stores, LARGE, 0), 0);
		stores_write(stores, 0, &f, 0, &reqs[i]);
		ck_assert_uint_eq(stores_n_busy(stores, 0), i + 1);
	}
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 1);
	while (n_done < 3) {
		stores_turn(stores);
		ck_assert_int_eq(loop_turn(loop, 1), 0);
	}
	ck_assert_uint_eq(stores_n_busy(stores, 0), 0);
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 0);
	free(buf);
	close_two();
}
END_TEST

/* ---- shares of the disk's time ------------------------------------------------ */

#define N_REQS 48u

struct flood {
	struct stores_flow flow;
	struct flood_req {
		struct kio_req req;
		struct flood *flood;
	} reqs[N_REQS];
	uint32_t n_done;
	uint64_t end_ns;
};

static void flood_done(struct kio_req *r)
{
	struct flood *f = container_of(r, struct flood_req, req)->flood;

	stores_end(stores, 0, r);
	ck_assert_int_eq(r->ret, 0);
	if (++f->n_done == N_REQS)
		f->end_ns = clock_ns();
}

static struct flood *flood_new(uint32_t weight, uint64_t limit)
{
	struct flood *f = calloc(1, sizeof(*f));

	ck_assert_ptr_nonnull(f);
	stores_flow_init(&f->flow, weight, limit);
	return f;
}

/* All at once; where to and from is no matter. */
static void flood_start(struct flood *f, void *buf, uint32_t prio, int writes)
{
	f->n_done = 0;
	for (uint32_t i = 0; i < N_REQS; i++) {
		const int64_t at =
			kio_store_alloc(stores_disk(stores, 0), LARGE);

		ck_assert_int_ge(at, 0);
		f->reqs[i].flood = f;
		f->reqs[i].req = (struct kio_req){ .buf = buf,
						   .block = (uint64_t)at,
						   .n_bytes = LARGE,
						   .done = flood_done };
		(writes ? stores_write : stores_read)(stores, 0, &f->flow, prio,
						      &f->reqs[i].req);
	}
}

static void turn(void)
{
	stores_turn(stores);
	ck_assert_int_eq(loop_turn(loop, 1), 0);
}

static void *large_buf(void)
{
	void *buf;

	ck_assert(!posix_memalign(&buf, 4096, LARGE));
	memset(buf, 1, LARGE);
	return buf;
}

START_TEST(who_weighs_three_times_as_much_is_served_so)
{
	struct flood *a = flood_new(100, 0), *b = flood_new(300, 0);
	void *buf = large_buf();

	open_two(4 * DISK, DISK);
	stores_set_window(stores, 1); /* one after the other */
	flood_start(a, buf, 0, 1);
	flood_start(b, buf, 0, 1);
	while (b->n_done < N_REQS)
		turn();
	ck_assert_uint_ge(a->n_done, N_REQS / 3 - 2);
	ck_assert_uint_le(a->n_done, N_REQS / 3 + 2);
	while (a->n_done < N_REQS)
		turn();
	free(a);
	free(b);
	free(buf);
	close_two();
}
END_TEST

static void takes_long(struct kio_req *r)
{
	const uint64_t t0 = clock_ns();

	(void)usleep(250000);
	r->prepare_ns = clock_ns() - t0;
}

/* Four of a MiB in more than a second, by a disk that is not that slow. */
START_TEST(what_is_prepared_makes_no_disk_slow)
{
	struct flood *a = flood_new(100, 0);
	struct kio_req *r = &a->reqs[0].req;
	void *buf = large_buf();

	open_two(4 * DISK, DISK);
	a->reqs[0].flood = a;
	*r = (struct kio_req){ .buf = buf,
			       .block = (uint64_t)kio_store_alloc(
				       stores_disk(stores, 0), LARGE),
			       .n_bytes = LARGE,
			       .prepare = takes_long,
			       .done = flood_done };
	for (uint32_t n = 1; n <= 4; n++) {
		stores_write(stores, 0, &a->flow, STORES_PRIOS - 1, r);
		while (a->n_done < n)
			turn();
	}
	ck_assert(stores_speed(stores, 0, &a->flow).bytes_per_s > 20e6);
	free(a);
	free(buf);
	close_two();
}
END_TEST

START_TEST(what_is_waited_for_goes_first)
{
	struct flood *a = flood_new(100, 0), *b = flood_new(100, 0);
	struct kio_req *last = &a->reqs[N_REQS - 1].req;
	struct flood_req more = { .flood = a };
	void *buf = large_buf();

	open_two(4 * DISK, DISK);
	stores_set_window(stores, 1);
	flood_start(a, buf, 2, 0);
	flood_start(b, buf, 1, 0); /* another's queues are its own */
	ck_assert(!stores_hurry(stores, 0, &b->flow, 0, last->block));
	ck_assert(stores_hurry(stores, 0, &a->flow, 0,
			       last->block + LARGE / 4096 - 1));
	ck_assert(!stores_hurry(stores, 0, &a->flow, 0, last->block));
	last->ret = 1; /* none yet */
	while (last->ret == 1)
		turn();
	ck_assert_uint_le(a->n_done, 2);
	/* those that were there still are: the new last one, too */
	ck_assert(stores_hurry(stores, 0, &a->flow, 1,
			       a->reqs[N_REQS - 2].req.block));
	more.req = (struct kio_req){ .buf = buf,
				     .block = a->reqs[0].req.block,
				     .n_bytes = LARGE,
				     .done = flood_done };
	stores_read(stores, 0, &a->flow, 2, &more.req);
	while (a->n_done < N_REQS + 1 || b->n_done < N_REQS)
		turn();
	ck_assert_uint_eq(stores_n_busy(stores, 0), 0);
	free(a);
	free(b);
	free(buf);
	close_two();
}
END_TEST

/* 48 MiB at 64 MiB a second, of which 8 may be ahead: more than half a second. */
START_TEST(a_limit_holds_reads_of_its_own_only)
{
	const uint64_t limit = 64u << 20;
	struct flood *a = flood_new(100, limit), *b = flood_new(100, 0),
		     *c = flood_new(100, limit);
	void *bufs[] = { large_buf(), large_buf(), large_buf() };
	const uint64_t t0 = clock_ns();
	struct stores_speed v;

	open_two(4 * DISK, DISK);
	flood_start(a, bufs[0], 0, 0);
	ck_assert_uint_eq(a->flow.held_bytes, (N_REQS - 9u) * LARGE);
	v = stores_speed(stores, 0, &a->flow); /* nothing was measured yet */
	ck_assert(v.bytes_per_s == (double)limit);
	ck_assert_uint_ge(v.queue_bytes, a->flow.held_bytes);
	ck_assert_uint_ge(stores_read_ns(stores, 0, &a->flow, limit),
			  1500000000u);
	flood_start(b, bufs[1], 0, 0);
	flood_start(c, bufs[2], 0, 1); /* never held, and they count */
	ck_assert_uint_eq(b->flow.held_bytes + c->flow.held_bytes, 0);
	while (b->n_done < N_REQS || c->n_done < N_REQS)
		turn();
	while (a->n_done < N_REQS)
		turn();
	ck_assert_uint_ge(a->end_ns - t0, (48 - 8 - 1) * 1000000000ull / 64);
	ck_assert_uint_eq(a->flow.held_bytes, 0);
	ck_assert_uint_eq(stores_n_busy(stores, 0), 0);
	flood_start(c, bufs[2], STORES_PRIOS - 1, 0); /* nor background */
	ck_assert_uint_eq(c->flow.held_bytes, 0);
	while (c->n_done < N_REQS)
		turn();
	flood_start(c, bufs[2], 1, 0); /* behind by now */
	ck_assert_uint_gt(c->flow.held_bytes, 0);
	while (c->n_done < N_REQS)
		turn();
	free(a);
	free(b);
	free(c);
	for (int i = 0; i < 3; i++)
		free(bufs[i]);
	close_two();
}
END_TEST

/* It writes all that its limit lets through, without end: what it reads comes all the
 * same, at half of it. */
START_TEST(reads_go_on_beside_writes_without_end)
{
	const uint64_t limit = 64u << 20;
	struct flood *a = flood_new(100, limit);
	void *buf = large_buf();
	const uint64_t t0 = clock_ns();

	open_two(4 * DISK, DISK);
	a->flow.tokens = -(double)limit;
	a->flow.at_ns = t0;
	flood_start(a, buf, 0, 0);
	ck_assert_uint_eq(a->flow.held_bytes, N_REQS * (uint64_t)LARGE);
	while (a->n_done < N_REQS && rig_mem_patient(t0)) {
		a->flow.tokens = -(double)limit; /* as if it had written */
		a->flow.at_ns = clock_ns();
		turn();
	}
	ck_assert_uint_eq(a->n_done, N_REQS);
	ck_assert_uint_ge(a->end_ns - t0, (N_REQS - 1) * 1000000000ull / 32);
	ck_assert_uint_eq(a->flow.held_bytes, 0);
	free(a);
	free(buf);
	close_two();
}
END_TEST

static void on_put(struct kio_commit *c)
{
	ck_assert_int_eq(c->ret, -EIO);
	n_done++;
}

/* Not where no record becomes durable any more, as long as there is another disk. */
START_TEST(a_range_goes_where_it_can_be_kept)
{
	struct kio_place place = { 0 };
	struct kio_commit c = { .page_bytes = LARGE,
				.n_pages = 1,
				.places = &place,
				.done = on_put };

	open_two(2 * DISK, DISK);
	place.block = (uint64_t)kio_store_alloc(stores_disk(stores, 0), LARGE);
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 0);
	kio_fault_arm(KIO_FAULT_ONCE, "sys.fdatasync", 1, EIO);
	kio_store_put(stores_disk(stores, 0), &c);
	while (!n_done) {
		stores_turn(stores);
		ck_assert_int_eq(loop_turn(loop, 1), 0);
	}
	kio_fault_disarm();
	ck_assert_int_eq(stores_pick(stores, LARGE, 0), 1);
	ck_assert_int_eq(stores_pick(stores, n_free(1) + 1, 0), 0);
	close_two();
}
END_TEST

/* ---- a pager on two disks --------------------------------------------------- */

static struct pager *pager;

static void open_pager(void)
{
	const struct pager_conf c = { .name = "t",
				      .memory_bytes = 16 * PAGE,
				      .disk_bytes = DISK,
				      .numa_node = -1,
				      .policy = "clock",
				      .loop = loop,
				      .stores = stores };

	ck_assert_int_eq(loop_start_workers(loop, 2), 0);
	ck_assert_int_eq(pager_new(&pager, &c), 0);
}

static struct range *kept(uint64_t key, int *ret)
{
	struct rig_mem m = { .loop = loop, .stores = stores, .pager = pager };
	struct range *r = filled(&m, 2);

	*ret = persist(&m, r, key);
	return r;
}

static void is_held(struct range *r)
{
	struct rig_mem m = { .loop = loop, .stores = stores, .pager = pager };
	struct page_run run = { r, 0, 2, 0 };

	ck_assert_int_eq(rig_mem_want(&m, &run, 1), 0);
	ck_assert(rig_mem_holds(&run, 2));
	page_unpin(pager, &run, 1);
}

/* The room of the first is in zones of another size, whose pages nobody can move. */
START_TEST(a_range_goes_where_its_pages_fit)
{
	const uint32_t n = 4 * DISK / 65536;
	int64_t *at = calloc(n, sizeof(*at));
	struct range *r[30];
	uint32_t i = 0;
	int ret;

	ck_assert_ptr_nonnull(at);
	open_two(4 * DISK, DISK);
	open_pager();
	while ((at[i] = kio_store_alloc(stores_disk(stores, 0), 65536)) >= 0)
		i++;
	while (i--)
		if (i % 8)
			kio_store_release(stores_disk(stores, 0),
					  (uint64_t)at[i], 65536);
	ck_assert_uint_gt(n_free(0), 2 * n_free(1));
	for (i = 0; i < KV_ARRAY_LEN(r); i++) {
		r[i] = kept(i + 1, &ret);
		ck_assert_int_eq(ret, 0);
		ck_assert_uint_eq(range_disk(r[i]), 1);
	}
	for (i = 0; i < KV_ARRAY_LEN(r); i++) {
		is_held(r[i]);
		range_free(r[i]);
	}
	pager_free(pager);
	free(at);
	close_two();
}
END_TEST

static int bad_fd;

static ssize_t bad_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	if (fd != bad_fd)
		return pwrite(fd, buf, n, at);
	errno = EIO;
	return -1;
}

/* What has more room has it because it takes nothing. */
START_TEST(a_range_goes_where_it_can_be_written)
{
	static const struct kio_disk bad = { .pread = pread,
					     .pwrite = bad_pwrite,
					     .fdatasync = fdatasync };
	struct range *r[30];
	int ret;

	two_kind =
		KIO_ENGINE_THREADS; /* reads by io_uring go past kio_sys_disk */
	open_two(4 * DISK, DISK);
	open_pager();
	bad_fd = kio_store_fd(stores_disk(stores, 0));
	kio_sys_disk = &bad;
	for (uint32_t i = 0; i < KV_ARRAY_LEN(r); i++) {
		r[i] = kept(i + 1, &ret);
		ck_assert_int_eq(ret, 0);
		ck_assert_uint_eq(range_disk(r[i]), 1);
	}
	for (uint32_t i = 0; i < KV_ARRAY_LEN(r); i++) {
		is_held(r[i]);
		range_free(r[i]);
	}
	pager_free(pager);
	close_two();
	kio_sys_disk = NULL;
}
END_TEST

/* A store is used to the last slot, and all of it is free again. */
static void use_all(struct rig_mem *m)
{
	static int64_t at[8192];
	struct kio_store *store = stores_disk(m->stores, 0);
	uint32_t n = 0;

	while (n < 8192 && (at[n] = kio_store_alloc(store, 65536)) >= 0)
		n++;
	ck_assert_uint_gt(n, 2048);
	while (n--)
		kio_store_release(store, (uint64_t)at[n], 65536);
	for (int i = 0; i < 20; i++)
		rig_mem_turn(m);
}

/* Free space that cannot go back to the file system: one line, however often. */
START_TEST(space_that_stays_is_told_once)
{
	char text[4096], *line;
	FILE *out = tmpfile();
	struct rig_mem *m;

	new_path();
	m = rig_mem_open((struct rig_mem_options){ .memory_bytes = 4 * PAGE,
						   .disk_bytes = 8 * PAGE,
						   .store_bytes = 256u << 20,
						   .kind = KIO_ENGINE_THREADS,
						   .store = path });
	ck_assert_ptr_nonnull(out);
	ck_assert_int_ge(dup2(fileno(out), STDERR_FILENO), 0);
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.punch", 1, EOPNOTSUPP);
	for (uint64_t t0 = clock_ns();
	     info(m).gives_back != KIO_BACK_NO && rig_mem_patient(t0);)
		use_all(m);
	use_all(m);
	kio_fault_disarm();
	rewind(out);
	text[fread(text, 1, sizeof(text) - 1, out)] = 0;
	line = strstr(text, ": knows no discard, no holes: what is free stays");
	ck_assert_ptr_nonnull(line);
	ck_assert_ptr_null(strstr(line + 10, "knows no discard"));
	rig_mem_close(m);
	unlink(path);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("stores");
	TCase *tc = tcase_create("stores");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, wants_end_after_a_failed_flush, 0, 2);
	tcase_add_loop_test(tc, wants_end_after_a_full_disk, 0, 2);
	tcase_add_test(tc, a_store_full_of_orphans_has_room);
	tcase_add_test(tc, a_range_goes_where_room_is);
	tcase_add_test(tc, a_range_goes_where_it_is_served_soon);
	tcase_add_test(tc, who_weighs_three_times_as_much_is_served_so);
	tcase_add_test(tc, what_is_prepared_makes_no_disk_slow);
	tcase_add_test(tc, what_is_waited_for_goes_first);
	tcase_add_test(tc, a_limit_holds_reads_of_its_own_only);
	tcase_add_test(tc, reads_go_on_beside_writes_without_end);
	tcase_add_test(tc, a_range_goes_where_it_can_be_kept);
	tcase_add_test(tc, a_range_goes_where_its_pages_fit);
	tcase_add_test(tc, a_range_goes_where_it_can_be_written);
	tcase_add_test(tc, space_that_stays_is_told_once);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	SRunner *sr = srunner_create(suite());
	int n;

	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
