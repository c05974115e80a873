/*
 * rig_vmm.c - a vmm over the fake driver, with a loop, for tests
 */
#include "tests/rig/rig_vmm.h"

#include <check.h>

int rig_vmm_open(struct rig_vmm *r, uint64_t total, struct vmm_conf conf)
{
	int ret;

	r->api = rig_cuda_open(&r->ctl, total, RIG_FRAME);
	ck_assert_int_eq(loop_new(&r->loop), 0);
	r->vmm = NULL;
	r->compute = NULL;
	if (r->arm.mode != FAKE_OFF)
		r->ctl.arm(r->arm.mode, "cu", r->arm.nth, r->arm.err);
	conf.api = r->api;
	conf.loop = r->loop;
	ret = vmm_open(&r->vmm, &conf);
	if (!ret)
		ret = kern_errno(r->api->stream_new(
			&r->compute, CUDA_STREAM_NON_BLOCKING, 0));
	return ret;
}

static void op_done(struct wait *w, int ret)
{
	struct rig_vmm_op *o = container_of(w, struct rig_vmm_op, wait);

	ck_assert(!o->is_done);
	o->is_done = 1;
	o->ret = ret;
}

void rig_vmm_start(struct rig_vmm *r, struct rig_vmm_op *o, struct vmm_op op)
{
	*o = (struct rig_vmm_op){ .op = op, .wait = { op_done } };
	o->op.waiter = &o->wait;
	vmm_start(r->vmm, &o->op);
}

int rig_vmm_finish(struct rig_vmm *r, struct rig_vmm_op *o)
{
	while (!o->is_done)
		ck_assert_int_ge(loop_turn(r->loop, 1000), 0);
	return o->ret;
}

int rig_vmm_run(struct rig_vmm *r, struct vmm_op op)
{
	struct rig_vmm_op o;

	rig_vmm_start(r, &o, op);
	return rig_vmm_finish(r, &o);
}

uint64_t rig_vmm_used(const struct rig_vmm *r)
{
	struct fake_stats st;

	r->ctl.stats(&st);
	return st.used_bytes;
}

struct vmm_counts rig_vmm_counts(struct rig_vmm *r)
{
	struct vmm_counts n;

	vmm_settle(r->vmm);
	vmm_counts(r->vmm, &n);
	return n;
}

void rig_vmm_close(struct rig_vmm *r)
{
	int clean = r->arm.mode == FAKE_OFF;

	r->ctl.arm(FAKE_OFF, "", 0, 0);
	if (r->vmm) {
		clean &= !vmm_lost(r->vmm);
		vmm_check(r->vmm);
		if (r->compute)
			(void)r->api->stream_free(r->compute); /* or lost */
		vmm_close(r->vmm);
	}
	loop_free(r->loop);
	if (clean)
		rig_cuda_close(r->api, &r->ctl);
	else
		rig_cuda_drop(r->api, &r->ctl);
}
