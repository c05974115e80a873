/*
 * rig_mem.c - a pager with a loop and a store of its own
 */
#include "tests/rig/rig_mem.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "kvd/base/clock.h"

int rig_mem_patient(uint64_t since_ns)
{
	return clock_ns() - since_ns < 50000000000ull;
}

static void open_stores(struct rig_mem *r, const struct rig_mem_options *o,
			struct pager_conf *c)
{
	char path[STORES_MAX][128], err[256] = "";
	struct stores_conf sc = { .loop = r->loop,
				  .kind = o->kind,
				  .depth = 16,
				  .n = o->n_stores ? o->n_stores : 1,
				  .scratch = !o->store };

	for (uint32_t i = 0; i < sc.n; i++) {
		snprintf(path[i], sizeof(path[i]), "%s/store%u", r->dir, i);
		sc.disks[i].path = o->store ? o->store : path[i];
		sc.disks[i].bytes = o->store_bytes
					    ? o->store_bytes
					    : o->disk_bytes * 2 + (64u << 20);
	}
	ck_assert_int_eq(stores_new(&r->stores, &sc), 0);
	c->stores = r->stores;
	ck_assert_int_eq(pager_new(&r->pager, c), 0);
	ck_assert_msg(!stores_open(r->stores, o->found, o->ctx ? o->ctx : r,
				   err, sizeof(err)),
		      "%s", err);
}

struct rig_mem *rig_mem_open(struct rig_mem_options o)
{
	struct rig_mem *r = calloc(1, sizeof(*r));
	struct pager_conf c = {
		.name = "t", .numa_node = -1, .folios = 1, .policy = "clock"
	};

	ck_assert_ptr_nonnull(r);
	strcpy(r->dir, "/var/tmp/kvd-mem-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(r->dir));
	ck_assert_int_eq(loop_new(&r->loop), 0);
	ck_assert_int_eq(loop_start_workers(r->loop, 2), 0);
	if (o.policy)
		c.policy = o.policy;
	c.memory_bytes = o.memory_bytes;
	c.disk_bytes = o.disk_bytes;
	c.io_limit = o.io_limit;
	c.loop = r->loop;
	c.reclaim = o.reclaim;
	c.ctx = o.ctx;
	open_stores(r, &o, &c);
	return r;
}

void rig_mem_turn(struct rig_mem *r)
{
	struct pager_info i;

	stores_turn(r->stores);
	ck_assert_int_eq(loop_turn(r->loop, 0), 0);
	pager_info(r->pager, &i);
	ck_assert_uint_le(i.mapped_bytes, i.memory_bytes);
	ck_assert_uint_le(i.slot_bytes, i.disk_bytes);
}

struct told {
	struct page_want want;
	int told, ret;
};

static void on_told(struct wait *w, int ret)
{
	struct told *t = container_of(container_of(w, struct page_want, wait),
				      struct told, want);

	t->told++;
	t->ret = ret;
}

int rig_mem_want(struct rig_mem *r, struct page_run *runs, uint32_t n)
{
	struct told t = {
		.want = { .wait.done = on_told, .runs = runs, .n_runs = n }
	};
	const int ret = page_want(r->pager, &t.want);

	if (ret)
		return ret > 0 ? 0 : ret;
	for (uint64_t t0 = clock_ns(); !t.told && rig_mem_patient(t0);)
		rig_mem_turn(r);
	ck_assert_int_eq(t.told, 1);
	return t.ret;
}

void rig_mem_settle(struct rig_mem *r)
{
	struct pager_info i;
	const uint64_t t0 = clock_ns();
	int calm = 0;

	while (calm < 100 && rig_mem_patient(t0)) {
		rig_mem_turn(r);
		pager_info(r->pager, &i);
		calm = i.n_in_flight ? 0 : calm + 1;
	}
	ck_assert_int_eq(calm, 100);
}

static uint32_t word(uint32_t seed, uint32_t i)
{
	return (seed * 2654435761u) ^ (i * 40503u + (seed >> 3));
}

void rig_mem_fill(const struct page_run *run, uint32_t seed)
{
	const size_t n = run->n * range_page_bytes(run->range) / 4;
	uint32_t *p = (uint32_t *)(range_addr(run->range) +
				   run->first * range_page_bytes(run->range));

	for (uint32_t i = 0; i < n; i++)
		p[i] = word(seed, i);
}

int rig_mem_holds(const struct page_run *run, uint32_t seed)
{
	const size_t n = run->n * range_page_bytes(run->range) / 4;
	const uint32_t *p =
		(const uint32_t *)(range_addr(run->range) +
				   run->first * range_page_bytes(run->range));

	for (uint32_t i = 0; i < n; i++)
		if (p[i] != word(seed, i))
			return 0;
	return 1;
}

void rig_mem_close(struct rig_mem *r)
{
	rig_mem_settle(r);
	pager_check(r->pager);
	pager_free(r->pager);
	stores_free(r->stores);
	loop_free(r->loop);
	ck_assert_int_eq(rmdir(r->dir), 0);
	free(r);
}
