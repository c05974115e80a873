/*
 * rig_dev.c - pagers over the fake device, with a loop and a store, for tests
 */
#include "tests/rig/rig_dev.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "tests/rig/rig_mem.h"

static void open_stores(struct rig_dev *r, const struct rig_dev_options *o)
{
	char path[128], second[128];
	struct stores_conf sc = { .loop = r->loop,
				  .depth = 16,
				  .kind = o->kind,
				  .n = o->second_bytes ? 2 : 1,
				  .scratch = !o->store };

	snprintf(path, sizeof(path), "%s/store", r->dir);
	snprintf(second, sizeof(second), "%s/second", r->dir);
	sc.disks[0].path = o->store ? o->store : path;
	sc.disks[0].bytes = o->first_bytes ? o->first_bytes
					   : o->disk_bytes * 2 + (64u << 20);
	sc.disks[1].path = second;
	sc.disks[1].bytes = o->second_bytes;
	ck_assert_int_eq(stores_new(&r->stores, &sc), 0);
}

static void open_pagers(struct rig_dev *r, const struct rig_dev_options *o)
{
	static const char *const names[] = { "a", "b" };

	r->n_pagers = o->n_pagers ? o->n_pagers : 1;
	for (uint32_t i = 0; i < r->n_pagers; i++) {
		const struct pager_conf c = {
			.name = names[i],
			.memory_bytes = o->memory_bytes,
			.disk_bytes = o->disk_bytes ? o->disk_bytes
						    : o->host_bytes,
			.accounts = &r->accounts,
			.weight = o->weights[i],
			.numa_node = -1,
			.policy = "clock",
			.loop = r->loop,
			.stores = r->stores,
			.device = r->device,
		};
		ck_assert_int_eq(pager_new(&r->pagers[i], &c), 0);
	}
}

static int open_device(struct rig_dev *r, const struct rig_dev_options *o)
{
	const struct device_conf dc = {
		.api = r->api,
		.loop = r->loop,
		.budget_bytes = o->memory_bytes,
		.host_bytes = o->host_bytes,
		.numa_node = -1,
		.has_disk = o->disk_bytes != 0,
		.direct = o->direct,
	};
	char err[256] = "";
	int ret;

	r->armed = o->mode != FAKE_OFF;
	if (r->armed)
		r->ctl.arm(o->mode, o->prefix, o->nth, o->err);
	ret = device_open(&r->device, &dc, err, sizeof(err));
	ck_assert_msg(!ret || (r->armed && err[0]), "%s", err);
	return ret;
}

struct rig_dev *rig_dev_open(struct rig_dev_options o)
{
	struct rig_dev *r = calloc(1, sizeof(*r));
	char err[256] = "";

	ck_assert_ptr_nonnull(r);
	strcpy(r->dir, "/var/tmp/kvd-dev-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(r->dir));
	r->api = rig_cuda_open(&r->ctl, 64u << 20, RIG_DEV_FRAME);
	ck_assert_int_eq(loop_new(&r->loop), 0);
	ck_assert_int_eq(loop_start_workers(r->loop, 2), 0);
	if (open_device(r, &o)) {
		rig_dev_close(r);
		return NULL;
	}
	accounts_init(&r->accounts, o.memory_bytes,
		      o.disk_bytes ? o.disk_bytes : o.host_bytes);
	if (o.disk_bytes)
		open_stores(r, &o);
	open_pagers(r, &o);
	if (r->stores)
		ck_assert_msg(
			!stores_open(r->stores, o.found, r, err, sizeof(err)),
			"%s", err);
	return r;
}

void rig_dev_turn(struct rig_dev *r)
{
	struct pager_info i;

	if (r->stores)
		stores_turn(r->stores);
	ck_assert_int_eq(loop_turn(r->loop, 0), 0);
	for (uint32_t k = 0; k < r->n_pagers; k++) {
		pager_info(r->pagers[k], &i);
		ck_assert_uint_le(i.mapped_bytes, i.memory_bytes);
		ck_assert_uint_le(i.slot_bytes, i.disk_bytes);
	}
}

void rig_dev_settle(struct rig_dev *r)
{
	struct pager_info i;
	const uint64_t t0 = clock_ns();
	int calm = 0;

	while (calm < 200 && rig_mem_patient(t0)) {
		rig_dev_turn(r);
		calm++;
		for (uint32_t n = 0; n < r->n_pagers; n++) {
			pager_info(r->pagers[n], &i);
			calm = i.n_in_flight ? 0 : calm;
		}
		if (!calm)
			(void)usleep(10);
	}
	ck_assert_int_eq(calm, 200);
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

int rig_dev_want(struct rig_dev *r, struct pager *p, struct page_run *runs,
		 uint32_t n)
{
	struct told t = {
		.want = { .wait.done = on_told, .runs = runs, .n_runs = n }
	};
	const int ret = page_want(p, &t.want);

	if (ret)
		return ret > 0 ? 0 : ret;
	for (uint64_t t0 = clock_ns(); !t.told && rig_mem_patient(t0);) {
		rig_dev_turn(r);
		(void)usleep(1);
	}
	ck_assert_int_eq(t.told, 1);
	return t.ret;
}

void rig_dev_check(struct rig_dev *r)
{
	for (uint32_t i = 0; i < r->n_pagers; i++)
		pager_check(r->pagers[i]);
	park_check(device_park(r->device));
	vmm_check(device_vmm(r->device));
}

void rig_dev_close(struct rig_dev *r)
{
	if (r->n_pagers) {
		rig_dev_settle(r);
		rig_dev_check(r);
	}
	for (uint32_t i = 0; i < r->n_pagers; i++)
		pager_free(r->pagers[i]);
	r->armed |= r->device && device_lost(r->device);
	r->ctl.arm(FAKE_OFF, "", 0, 0);
	device_close(r->device);
	stores_free(r->stores);
	loop_free(r->loop);
	if (r->armed)
		rig_cuda_drop(r->api, &r->ctl);
	else
		rig_cuda_close(r->api, &r->ctl);
	ck_assert_int_eq(rmdir(r->dir), 0);
	free(r);
}
