/*
 * rig_mem.h - a pager with a loop and a store of its own, for tests
 */
#ifndef TESTS_RIG_RIG_MEM_H
#define TESTS_RIG_RIG_MEM_H

#include "kvd/mem/pager.h"
#include "kvd/mem/stores.h"

struct rig_mem {
	struct loop *loop;
	struct stores *stores;
	struct pager *pager;
	char dir[64];
	int (*reclaim)(void *ctx);
	void *ctx;
};
struct rig_mem_options {
	uint64_t memory_bytes, disk_bytes;
	uint64_t store_bytes; /* 0: twice disk_bytes and some */
	uint32_t n_stores; /* of that size, without store; 0: one */
	enum kio_engine_kind kind;
	const char *policy; /* NULL: clock */
	uint64_t io_limit; /* pager_conf's */
	const char *store; /* NULL: a file that nothing survives in */
	int (*found)(void *ctx, uint32_t i_disk, const struct kio_record *r);
	int (*reclaim)(void *ctx);
	void *ctx;
};
/* Both assert (with found, ctx is found's: the rig itself when NULL); closing runs pager_check() first. */
struct rig_mem *rig_mem_open(struct rig_mem_options o);
void rig_mem_close(struct rig_mem *r);
/* One turn of everything; asserts the budget. */
void rig_mem_turn(struct rig_mem *r);
/* 1 until 50 s after since_ns (clock_ns()): nothing takes so long, it hangs. */
int rig_mem_patient(uint64_t since_ns);
/* Want and wait; 0 or what the want was told. */
int rig_mem_want(struct rig_mem *r, struct page_run *runs, uint32_t n);
/* Turn until nothing is in flight. */
void rig_mem_settle(struct rig_mem *r);
/* Pages of run, filled by / compared with seed. 1 if equal. */
void rig_mem_fill(const struct page_run *run, uint32_t seed);
int rig_mem_holds(const struct page_run *run, uint32_t seed);

#endif
