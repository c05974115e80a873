/*
 * rig_dev.h - pagers over the fake device, with a loop and a store, for tests
 */
#ifndef RIG_RIG_DEV_H
#define RIG_RIG_DEV_H

#include "kvd/mem/account.h"
#include "kvd/mem/device.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/pager.h"
#include "kvd/mem/stores.h"
#include "tests/rig/rig_cuda.h"

#define RIG_DEV_FRAME  (64u << 10)
#define RIG_DEV_PAGERS 2u

struct rig_dev_options {
	const char *direct; /* libcufile; NULL: none */
	uint64_t memory_bytes; /* of the device, all pagers */
	uint64_t host_bytes; /* pinned pool */
	uint64_t disk_bytes; /* 0: no disk, the pool is the lowest tier */
	uint32_t n_pagers; /* 0: 1 */
	uint32_t weights[RIG_DEV_PAGERS];
	const char *store; /* NULL: nothing survives */
	uint64_t second_bytes; /* of a second disk; 0: there is none */
	uint64_t first_bytes; /* 0: twice disk_bytes and more */
	enum kio_engine_kind kind; /* 0: what there is */
	int (*found)(void *ctx, uint32_t i_disk, const struct kio_record *r);
	/* the nth call of those that start so fails from the start on */
	enum fake_mode mode;
	const char *prefix;
	uint64_t nth;
	int err;
};
struct rig_dev {
	struct cuda_api *api;
	struct fake_ctl ctl;
	struct loop *loop;
	struct stores *stores; /* or NULL */
	struct device *device;
	struct accounts accounts;
	struct pager *pagers[RIG_DEV_PAGERS];
	uint32_t n_pagers;
	char dir[64];
	int armed;
};
/* Asserts all but the device: NULL when it could not be opened (then nothing is
 * left). found gets the rig. */
struct rig_dev *rig_dev_open(struct rig_dev_options o);
/* Checks, closes, looks for leaks unless calls were told to fail. */
void rig_dev_close(struct rig_dev *r);
/* One turn of everything; asserts the budgets. */
void rig_dev_turn(struct rig_dev *r);
/* Until nothing is in flight. */
void rig_dev_settle(struct rig_dev *r);
/* Want and wait; 0 or what the want was told. */
int rig_dev_want(struct rig_dev *r, struct pager *p, struct page_run *runs,
		 uint32_t n);
/* Assert the invariants of all of it; nothing is in flight. */
void rig_dev_check(struct rig_dev *r);

#endif
