/*
 * rig_vmm.h - a vmm over the fake driver, with a loop, for tests
 */
#ifndef RIG_RIG_VMM_H
#define RIG_RIG_VMM_H

#include "kvd/mem/vmm_cuda.h"
#include "tests/rig/rig_cuda.h"

#define RIG_FRAME (64u << 10)

struct rig_vmm {
	struct cuda_api *api;
	struct fake_ctl ctl;
	struct loop *loop;
	struct vmm *vmm;
	cuda_stream compute; /* of the test */
	/* what rig_vmm_open() arms before the first call, unless FAKE_OFF */
	struct {
		enum fake_mode mode;
		uint64_t nth;
		int err;
	} arm;
};
/* The device has total bytes; conf's api and loop are set here. 0, or what
 * vmm_open() said; then only the api and the loop are there. */
int rig_vmm_open(struct rig_vmm *r, uint64_t total, struct vmm_conf conf);
/* Start op and turn the loop until it is told; what it was told. */
int rig_vmm_run(struct rig_vmm *r, struct vmm_op op);
/* Bytes of device memory in the fake. */
uint64_t rig_vmm_used(const struct rig_vmm *r);
struct vmm_counts rig_vmm_counts(struct rig_vmm *r);
/* Checks, closes; looks for leaks unless calls were told to fail or the
 * device is lost. */
void rig_vmm_close(struct rig_vmm *r);

/* An op that is started now and looked at later. */
struct rig_vmm_op {
	struct vmm_op op;
	struct wait wait;
	int is_done, ret;
};
void rig_vmm_start(struct rig_vmm *r, struct rig_vmm_op *o, struct vmm_op op);
int rig_vmm_finish(struct rig_vmm *r, struct rig_vmm_op *o);

#endif
