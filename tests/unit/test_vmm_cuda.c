/*
 * test_vmm_cuda.c - device memory mapped on demand, against the fake driver
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kvd/mem/extent.h"
#include "tests/rig/rig_vmm.h"

#define MIB (1u << 20)
#define F   ((uint64_t)RIG_FRAME)

static struct rig_vmm r;
static struct vmm_space *sp;

static void setup(uint64_t total, struct vmm_conf c, uint32_t page_frames)
{
	ck_assert_int_eq(rig_vmm_open(&r, total, c), 0);
	ck_assert_int_eq(vmm_space_open(&sp, r.vmm, 1, page_frames * F, 64), 0);
}

static void teardown(void)
{
	vmm_check(r.vmm);
	vmm_space_close(sp);
	rig_vmm_close(&r);
}

static int map(struct vmm_space *s, uint64_t first, uint64_t n)
{
	const int ret = rig_vmm_run(&r, (struct vmm_op){ .verb = VMM_MAP,
							 .space = s,
							 .first = first,
							 .n = n });

	vmm_check(r.vmm);
	ck_assert(ret || vmm_ready(s, first, n));
	return ret;
}

static struct vmm_op drop_op(struct vmm_space *s, uint64_t first, uint64_t n)
{
	return (struct vmm_op){ .verb = VMM_DROP,
				.space = s,
				.first = first,
				.n = n,
				.streams = { r.compute },
				.n_streams = 1 };
}

static int drop(struct vmm_space *s, uint64_t first, uint64_t n)
{
	const int ret = rig_vmm_run(&r, drop_op(s, first, n));

	vmm_check(r.vmm);
	return ret;
}

/* And its fences are over. */
static void drop_now(uint64_t first, uint64_t n)
{
	ck_assert_int_eq(drop(sp, first, n), 0);
	ck_assert_int_eq(r.api->stream_sync(r.compute), 0);
}

static uint64_t trim(uint64_t n_bytes, int expect)
{
	struct rig_vmm_op o;

	rig_vmm_start(&r, &o,
		      (struct vmm_op){ .verb = VMM_TRIM, .n_bytes = n_bytes });
	ck_assert_int_eq(rig_vmm_finish(&r, &o), expect);
	vmm_check(r.vmm);
	return o.op.n_bytes;
}

static unsigned char *page(struct vmm_space *s, uint64_t i, size_t page_bytes)
{
	return (unsigned char *)(vmm_space_base(s) + i * page_bytes);
}

static int all_are(const unsigned char *p, size_t n, unsigned char value)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != value)
			return 0;
	return 1;
}

/* ---- what it does ----------------------------------------------------------- */

START_TEST(a_run_is_one_set_access)
{
	struct vmm_counts n;

	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = MIB }, 2);
	ck_assert_uint_eq(vmm_frame_bytes(r.vmm), F);
	ck_assert(!vmm_ready(sp, 3, 1));
	ck_assert_int_eq(map(sp, 3, 4), 0);
	ck_assert_uint_eq(r.ctl.calls("cuMemSetAccess"), 1);
	ck_assert_uint_eq(r.ctl.calls("cuMemMap"), 8);
	ck_assert(all_are(page(sp, 3, 2 * F), 8 * F, 0));
	memset(page(sp, 3, 2 * F), 5, 8 * F);
	/* what is mapped stays; the rest is two runs */
	ck_assert_int_eq(map(sp, 2, 6), 0);
	ck_assert_uint_eq(r.ctl.calls("cuMemSetAccess"), 3);
	ck_assert(all_are(page(sp, 2, 2 * F), 2 * F, 0));
	ck_assert(all_are(page(sp, 3, 2 * F), 8 * F, 5));
	n = rig_vmm_counts(&r);
	ck_assert_uint_eq(n.n_frames, 12);
	ck_assert_uint_eq(n.n_pool, 0);
	ck_assert_int_eq(drop(sp, 0, 64), 0);
	teardown();
}
END_TEST

START_TEST(what_comes_back_costs_no_call)
{
	uint64_t n_maps;

	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = MIB }, 2);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	memset(page(sp, 0, 2 * F), 9, 8 * F);
	n_maps = r.ctl.calls("cuMemMap");
	ck_assert_int_eq(drop(sp, 0, 4), 0);
	ck_assert(!vmm_ready(sp, 0, 1));
	ck_assert_uint_eq(rig_vmm_counts(&r).n_idle, 8);
	ck_assert_int_eq(map(sp, 1, 2), 0);
	ck_assert_uint_eq(r.ctl.calls("cuMemMap"), n_maps);
	ck_assert(all_are(page(sp, 1, 2 * F), 4 * F, 9));
	ck_assert_uint_eq(rig_vmm_counts(&r).revived, 2);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_idle, 4);
	ck_assert_int_eq(drop(sp, 1, 2), 0);
	teardown();
}
END_TEST

START_TEST(another_tenant_finds_zeroes)
{
	struct vmm_space *other;
	uint64_t zeroed;

	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 8 * F }, 2);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 64), 0);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	memset(page(sp, 0, 2 * F), 7, 8 * F);
	ck_assert_int_eq(drop(sp, 0, 4), 0);
	zeroed = rig_vmm_counts(&r).zeroed;
	ck_assert_int_eq(map(other, 0, 3), 0);
	ck_assert(all_are(page(other, 0, F), 3 * F, 0));
	ck_assert_uint_eq(rig_vmm_counts(&r).zeroed, zeroed + 3);
	ck_assert_int_eq(drop(other, 0, 3), 0);
	/* its own: not zeroed again */
	ck_assert_int_eq(map(other, 10, 3), 0);
	vmm_space_close(NULL);
	ck_assert_int_eq(drop(other, 10, 3), 0);
	vmm_space_close(other);
	teardown();
}
END_TEST

START_TEST(the_budget_is_hard)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 9 * F + 5 }, 2);
	ck_assert_int_eq(map(sp, 0, 5), -ENOSPC);
	ck_assert_uint_le(rig_vmm_used(&r), 9 * F);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	ck_assert_int_eq(map(sp, 4, 1), -ENOSPC);
	ck_assert(vmm_ready(sp, 0, 4));
	/* what is dropped is enough for others */
	ck_assert_int_eq(drop(sp, 1, 2), 0);
	ck_assert_int_eq(map(sp, 4, 2), 0);
	ck_assert_uint_le(rig_vmm_used(&r), 9 * F);
	ck_assert_int_eq(map(sp, 1, 1), -ENOSPC);
	ck_assert_int_eq(drop(sp, 0, 64), 0);
	teardown();
}
END_TEST

/* A failed MAP over idle pages leaves them idle. */
START_TEST(a_failed_map_holds_nothing)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	memset(page(sp, 0, F), 3, 4 * F);
	ck_assert_int_eq(drop(sp, 0, 2), 0);
	ck_assert_int_eq(map(sp, 0, 6), -ENOSPC);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_idle, 2);
	ck_assert_int_eq(map(sp, 0, 2), 0);
	ck_assert(all_are(page(sp, 0, F), 4 * F, 3));
	ck_assert_int_eq(drop(sp, 0, 4), 0);
	teardown();
}
END_TEST

/* For disks only where it is asked for. */
START_TEST(frames_that_disks_can_reach)
{
	struct vmm_conf c = { .budget_bytes = MIB, .pool_frames = 2 };
	struct fake_stats st;

	for (int i = 0; i < 2; i++) {
		c.reach = i ? VMM_DIRECT : VMM_LOCAL;
		ck_assert_int_eq(rig_vmm_open(&r, 8 * MIB, c), 0);
		vmm_settle(r.vmm);
		r.ctl.stats(&st);
		ck_assert_uint_eq(st.n_rdma, i ? st.n_handles : 0);
		ck_assert_uint_gt(st.n_handles, 0);
		rig_vmm_close(&r);
	}
}
END_TEST

START_TEST(openings_that_are_refused)
{
	struct vmm_space *s;

	ck_assert_int_eq(
		rig_vmm_open(&r, MIB,
			     (struct vmm_conf){ .budget_bytes = F - 1 }),
		-EINVAL);
	rig_vmm_close(&r);
	ck_assert_int_eq(
		rig_vmm_open(&r, MIB,
			     (struct vmm_conf){ .budget_bytes = MIB,
						.frame_bytes = F + 1 }),
		-EINVAL);
	rig_vmm_close(&r);
	ck_assert_int_eq(rig_vmm_open(&r, MIB,
				      (struct vmm_conf){ .budget_bytes = MIB,
							 .device = 1 }),
			 -EINVAL);
	rig_vmm_close(&r);
	ck_assert_int_eq(
		rig_vmm_open(&r, MIB,
			     (struct vmm_conf){ .budget_bytes = MIB,
						.frame_bytes = 2 * F }),
		0);
	ck_assert_int_eq(vmm_space_open(&s, r.vmm, 0, 2 * F, 1), -EINVAL);
	ck_assert_int_eq(vmm_space_open(&s, r.vmm, 1, 3 * F, 1), -EINVAL);
	ck_assert_int_eq(vmm_space_open(&s, r.vmm, 1, 2 * F, 0), -EINVAL);
	ck_assert_int_eq(vmm_space_open(&s, r.vmm, 1, 2 * F, 1ull << 60),
			 -EINVAL);
	rig_vmm_close(&r);
}
END_TEST

/* ---- fences ------------------------------------------------------------------ */

/* Not done while the device is held, done after. */
static void waits_for_go(struct vmm_op op, int expect)
{
	struct rig_vmm_op o;

	rig_vmm_start(&r, &o, op);
	for (int i = 0; i < 20; i++)
		ck_assert_int_ge(loop_turn(r.loop, 1), 0);
	ck_assert(!o.is_done);
	r.ctl.go();
	ck_assert_int_eq(rig_vmm_finish(&r, &o), expect);
}

static struct vmm_op map_op(uint64_t first, uint64_t n)
{
	return (struct vmm_op){
		.verb = VMM_MAP, .space = sp, .first = first, .n = n
	};
}

START_TEST(frames_go_when_the_kernel_is_over)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), 4 * F, 1),
			 0);
	ck_assert_int_eq(drop(sp, 0, 4), 0); /* does not wait */
	waits_for_go(map_op(8, 2), 0);
	ck_assert_uint_eq(rig_vmm_counts(&r).fence_waits, 1);
	ck_assert_int_eq(drop(sp, 8, 2), 0);
	teardown(); /* which looks for violations */
}
END_TEST

START_TEST(pages_come_back_when_the_kernel_is_over)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), 4 * F, 1),
			 0);
	ck_assert_int_eq(drop(sp, 0, 4), 0);
	waits_for_go(map_op(1, 2), 0);
	ck_assert(all_are(page(sp, 1, F), 2 * F, 1));
	ck_assert_int_eq(drop(sp, 1, 2), 0);
	teardown();
}
END_TEST

/* Of two drops the one that is over is taken. */
START_TEST(who_is_over_goes_first)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), F, 1), 0);
	ck_assert_int_eq(drop(sp, 0, 2), 0);
	ck_assert_int_eq(rig_vmm_run(&r, (struct vmm_op){ .verb = VMM_DROP,
							  .space = sp,
							  .first = 2,
							  .n = 2 }),
			 0); /* no stream: over */
	/* the tenant's own frames: nothing is zeroed, which would be held */
	ck_assert_int_eq(map(sp, 10, 2), 0);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_idle, 2);
	r.ctl.go();
	ck_assert_int_eq(drop(sp, 10, 2), 0);
	teardown();
}
END_TEST

START_TEST(no_more_is_unmapped_than_is_needed)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 8 * F }, 2);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	drop_now(0, 4);
	ck_assert_int_eq(map(sp, 10, 1), 0);
	ck_assert_uint_eq(r.ctl.calls("cuMemUnmap"), 1);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_idle, 6);
	ck_assert_int_eq(map(sp, 0, 3), 0); /* the last one went */
	ck_assert_uint_eq(rig_vmm_counts(&r).revived, 3);
	drop_now(0, 64);
	teardown();
}
END_TEST

/* ---- ahead, pool, trim -------------------------------------------------------- */

START_TEST(ahead_never_waits)
{
	struct vmm_op ahead = { .verb = VMM_AHEAD, .n = 2, .first = 8 };

	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ahead.space = sp;
	ck_assert_int_eq(rig_vmm_run(&r, ahead), 0);
	ck_assert(vmm_ready(sp, 8, 2));
	ck_assert_int_eq(map(sp, 8, 2), 0); /* there already: no call */
	ck_assert_uint_eq(r.ctl.calls("cuMemMap"), 2);
	ck_assert_int_eq(map(sp, 0, 2), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), F, 1), 0);
	ck_assert_int_eq(drop(sp, 0, 2), 0);
	ahead.first = 20;
	ck_assert_int_eq(rig_vmm_run(&r, ahead), -ENOSPC);
	ahead.first = 0;
	ck_assert_int_eq(rig_vmm_run(&r, ahead), -EAGAIN);
	r.ctl.go();
	ck_assert_int_eq(drop(sp, 8, 2), 0);
	teardown();
}
END_TEST

/* The thread sits in a MAP; behind it an AHEAD and the DROP of the same pages. */
START_TEST(a_drop_cancels_what_is_ahead_of_it)
{
	struct rig_vmm_op blocked, ahead, gone;

	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), F, 1), 0);
	ck_assert_int_eq(drop(sp, 0, 4), 0);
	rig_vmm_start(&r, &blocked, map_op(8, 1));
	rig_vmm_start(
		&r, &ahead,
		(struct vmm_op){
			.verb = VMM_AHEAD, .space = sp, .first = 20, .n = 1 });
	rig_vmm_start(&r, &gone, drop_op(sp, 20, 1));
	r.ctl.go();
	ck_assert_int_eq(rig_vmm_finish(&r, &gone), 0);
	ck_assert_int_eq(rig_vmm_finish(&r, &blocked), 0);
	ck_assert_int_eq(rig_vmm_finish(&r, &ahead), -ECANCELED);
	ck_assert(!vmm_ready(sp, 20, 1));
	ck_assert_int_eq(drop(sp, 8, 1), 0);
	teardown();
}
END_TEST

START_TEST(the_pool_is_filled_and_trimmed)
{
	setup(8 * MIB,
	      (struct vmm_conf){ .budget_bytes = MIB, .pool_frames = 3 }, 1);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_pool, 3);
	ck_assert_int_eq(map(sp, 0, 2), 0);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_pool, 3);
	ck_assert_uint_eq(rig_vmm_used(&r), 5 * F);
	/* the pool first, then idle pages; what is mapped never */
	ck_assert_uint_eq(trim(2 * F - 1, 0), 2 * F);
	ck_assert_uint_eq(rig_vmm_used(&r), 3 * F);
	drop_now(0, 1);
	ck_assert_uint_eq(trim(UINT64_MAX, 0), 2 * F);
	ck_assert_uint_eq(rig_vmm_used(&r), F);
	ck_assert(vmm_ready(sp, 1, 1));
	ck_assert_uint_eq(trim(UINT64_MAX, 0), 0);
	/* whoever maps wants a pool again */
	ck_assert_int_eq(map(sp, 5, 1), 0);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_pool, 3);
	drop_now(0, 64);
	teardown();
}
END_TEST

START_TEST(others_get_what_they_lack)
{
	setup(16 * F,
	      (struct vmm_conf){ .budget_bytes = 16 * F, .spare_bytes = 4 * F },
	      1);
	ck_assert_int_eq(map(sp, 0, 8), 0);
	drop_now(0, 6);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_idle, 6); /* no pressure */
	ck_assert_uint_eq(trim(0, 0), 0);
	r.ctl.others(7 * F); /* 1 free */
	ck_assert_uint_eq(trim(0, 0), 3 * F);
	ck_assert_uint_eq(rig_vmm_used(&r), 5 * F);
	r.ctl.others(8 * F);
	drop_now(6, 1); /* asks by itself */
	ck_assert_uint_eq(rig_vmm_used(&r), 4 * F);
	drop_now(0, 64);
	teardown();
}
END_TEST

START_TEST(a_full_card)
{
	setup(6 * F, (struct vmm_conf){ .budget_bytes = 16 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 7), -ENOSPC);
	ck_assert_int_eq(map(sp, 0, 6), 0);
	ck_assert_int_eq(drop(sp, 0, 3), 0);
	ck_assert_int_eq(map(sp, 10, 3), 0);
	ck_assert_int_eq(map(sp, 20, 1), -ENOSPC);
	ck_assert_int_eq(drop(sp, 0, 64), 0);
	teardown();
}
END_TEST

/* ---- failures ------------------------------------------------------------------ */

START_TEST(a_lost_device_says_so_and_lets_go)
{
	struct rig_vmm_op o;

	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), F, 1), 0);
	ck_assert_int_eq(drop(sp, 0, 3), 0);
	rig_vmm_start(&r, &o, map_op(8, 2)); /* waits for the fence */
	r.ctl.lose(CUDA_ECC_UNCORRECTABLE);
	ck_assert_int_eq(rig_vmm_finish(&r, &o), -ENODEV);
	ck_assert(vmm_lost(r.vmm));
	ck_assert_int_eq(map(sp, 0, 1), -ENODEV);
	ck_assert_int_eq(drop(sp, 3, 1), -ENODEV);
	ck_assert_uint_eq(trim(UINT64_MAX, -ENODEV), UINT64_MAX);
	teardown();
}
END_TEST

/* A kernel faults: the next MAP that asks the device hears of it. */
START_TEST(an_asynchronous_failure_is_heard)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	ck_assert_int_eq(map(sp, 0, 2), 0);
	r.ctl.fail_op(1, CUDA_ILLEGAL_ADDRESS, 1);
	ck_assert_int_eq(map(sp, 2, 2), -ENODEV); /* its own zeroes */
	ck_assert(vmm_lost(r.vmm));
	teardown();
}
END_TEST

START_TEST(zeroes_that_fail_once_map_nothing)
{
	setup(8 * MIB, (struct vmm_conf){ .budget_bytes = 4 * F }, 1);
	r.ctl.fail_op(1, CUDA_INVALID_VALUE, 0);
	ck_assert_int_eq(map(sp, 0, 4), -EINVAL);
	ck_assert_int_eq(map(sp, 0, 4), 0);
	ck_assert(all_are(page(sp, 0, F), 4 * F, 0));
	ck_assert_int_eq(drop(sp, 0, 4), 0);
	teardown();
}
END_TEST

/* A life with everything in it; 0, or the first error. */
static int scenario(void)
{
	struct vmm_space *s, *t;
	struct vmm_op trim_op = { .verb = VMM_TRIM, .n_bytes = 2 * F };
	int ret, any = 0;

	ret = rig_vmm_open(&r, 16 * F,
			   (struct vmm_conf){ .budget_bytes = 8 * F,
					      .pool_frames = 2,
					      .spare_bytes = 2 * F });
	if (ret)
		return ret;
	ret = vmm_space_open(&s, r.vmm, 1, 2 * F, 8);
	if (ret)
		return ret;
	ret = vmm_space_open(&t, r.vmm, 2, F, 8);
	if (ret) {
		vmm_space_close(s);
		return ret;
	}
	for (int i = 0; i < 3; i++) {
		ret = map(s, 0, 3);
		any = any ? any : ret;
		if (!ret) {
			memset(page(s, 0, 2 * F), 0x11, 6 * F);
			(void)r.ctl.kernel(r.compute, vmm_space_base(s), 2 * F,
					   0x22);
		}
		ret = drop(s, 0, 3);
		any = any ? any : ret;
		ret = map(t, (uint64_t)i, 4);
		any = any ? any : ret;
		if (!ret && !i)
			ck_assert(all_are(page(t, 0, F), 4 * F, 0));
		ret = drop(t, 0, 8);
		any = any ? any : ret;
		ret = rig_vmm_run(&r, trim_op);
		any = any ? any : ret;
		vmm_check(r.vmm);
		ck_assert_uint_le(rig_vmm_used(&r), 8 * F);
	}
	vmm_space_close(s);
	vmm_space_close(t);
	return any;
}

/* A third tenant is served, unless all memory is stuck. */
static void works_again(void)
{
	const uint64_t n_stuck = rig_vmm_counts(&r).n_stuck;
	struct vmm_space *s;
	int ret;

	ck_assert_int_eq(vmm_space_open(&s, r.vmm, 3, F, 1), 0);
	ret = map(s, 0, 1);
	ck_assert(!ret || (ret == -ENOSPC && n_stuck > 4));
	if (!ret)
		ck_assert(all_are(page(s, 0, F), F, 0));
	ck_assert_int_eq(drop(s, 0, 1), 0);
	vmm_space_close(s);
}

/* The nth call of the driver fails, for all n, until a pass meets none. */
static void sweep(enum fake_mode mode, int err)
{
	uint64_t met = 1, n_failed = 0;

	for (uint64_t nth = 1; met; nth++) {
		int ret;

		r.arm.mode = mode;
		r.arm.nth = nth;
		r.arm.err = err;
		ret = scenario();
		met = r.ctl.count() >= nth;
		r.ctl.arm(FAKE_OFF, "", 0, 0);
		ck_assert_msg(!ret || ret == kern_errno(err) ||
				      ret == -ENOSPC || ret == -EIO,
			      "call %llu: %d", (unsigned long long)nth, ret);
		ck_assert(met || !ret);
		n_failed += ret != 0;
		if (r.vmm && r.compute && !vmm_lost(r.vmm))
			works_again();
		rig_vmm_close(&r);
	}
	ck_assert_uint_gt(n_failed, 10);
}

START_TEST(each_call_fails_once)
{
	sweep(FAKE_ONCE, CUDA_INVALID_VALUE);
}
END_TEST

START_TEST(each_call_runs_out_of_memory)
{
	sweep(FAKE_ONCE, CUDA_OUT_OF_MEMORY);
}
END_TEST

START_TEST(each_call_fails_from_then_on)
{
	sweep(FAKE_FOREVER, CUDA_OUT_OF_MEMORY);
}
END_TEST

START_TEST(each_call_finds_the_device_lost)
{
	sweep(FAKE_FOREVER, CUDA_LAUNCH_FAILED);
}
END_TEST

/* ---- against a model ----------------------------------------------------------- */

#define N_SPACES 3
#define N_PAGES	 24

struct model {
	struct vmm_space *s;
	size_t page_bytes;
	unsigned char value[N_PAGES]; /* of its bytes */
	unsigned char mapped[N_PAGES];
};

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

/* After a MAP: what was mapped has kept its bytes; what is new has no byte of another
 * tenant, whose values are others. */
static void look(struct model *m, uint32_t i_space, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++) {
		const unsigned char *p = page(m->s, i, m->page_bytes);
		const unsigned char *end = p + m->page_bytes;

		for (; p < end; p += F) {
			ck_assert(all_are(p, F, *p));
			if (m->mapped[i])
				ck_assert_uint_eq(*p, m->value[i]);
			else
				ck_assert(!*p || *p % N_SPACES == i_space);
		}
	}
}

static void random_op(struct model *models, uint32_t *seed)
{
	const uint32_t k = next_random(seed) % N_SPACES;
	struct model *m = &models[k];
	const uint64_t first = next_random(seed) % N_PAGES;
	const uint64_t n = 1 + next_random(seed) % KV_MIN(5, N_PAGES - first);
	const uint32_t what = next_random(seed) % 10;
	int ret;

	if (what < 5) {
		ret = map(m->s, first, n);
		ck_assert(!ret || ret == -ENOSPC);
		if (ret)
			return;
		look(m, k, first, n);
		for (uint64_t i = first; i < first + n; i++) {
			/* values 1.. of its own residue */
			m->value[i] =
				(unsigned char)(N_SPACES *
							(1 + next_random(seed) %
								     80) +
						k);
			m->mapped[i] = 1;
			ck_assert_int_eq(r.ctl.kernel(r.compute,
						      vmm_space_base(m->s) +
							      i * m->page_bytes,
						      m->page_bytes,
						      m->value[i]),
					 0);
		}
		ck_assert_int_eq(r.api->stream_sync(r.compute), 0);
	} else if (what < 9) {
		/* something still runs over it */
		for (uint64_t i = first; i < first + n; i++)
			if (m->mapped[i])
				ck_assert_int_eq(
					r.ctl.kernel(r.compute,
						     vmm_space_base(m->s) +
							     i * m->page_bytes,
						     m->page_bytes,
						     m->value[i]),
					0);
		ck_assert_int_eq(drop(m->s, first, n), 0);
		memset(m->mapped + first, 0, n);
	} else {
		(void)trim(next_random(seed) % (6 * RIG_FRAME), 0);
	}
	ck_assert_uint_le(rig_vmm_used(&r), 40 * F);
}

START_TEST(any_order)
{
	static struct model m[N_SPACES];
	const char *env = getenv("KVD_SEED");
	uint32_t seed = env ? (uint32_t)strtoul(env, NULL, 10)
			    : (uint32_t)time(NULL);

	printf("any_order: KVD_SEED=%u\n", seed);
	ck_assert_int_eq(
		rig_vmm_open(&r, 64 * F,
			     (struct vmm_conf){ .budget_bytes = 40 * F,
						.pool_frames = 3,
						.spare_bytes = 20 * F }),
		0);
	for (uint32_t k = 0; k < N_SPACES; k++) {
		m[k].page_bytes = (k + 1) * F;
		ck_assert_int_eq(vmm_space_open(&m[k].s, r.vmm, k + 1,
						m[k].page_bytes, N_PAGES),
				 0);
	}
	for (int i = 0; i < 1500; i++)
		random_op(m, &seed);
	for (uint32_t k = 0; k < N_SPACES; k++) {
		ck_assert_int_eq(drop(m[k].s, 0, N_PAGES), 0);
		vmm_space_close(m[k].s);
	}
	rig_vmm_close(&r);
}
END_TEST

/* ---- extents --------------------------------------------------------------------- */

START_TEST(extents)
{
	struct extents e = { 0 };
	unsigned char taken[200] = { 0 };
	uint32_t seed = 7;

	ck_assert_int_eq(extents_init(&e, 200), 0);
	ck_assert_int_eq(extents_take(&e, 201), -ENOMEM);
	for (int i = 0; i < 4000; i++) {
		const uint64_t n = 1 + next_random(&seed) % 9;
		uint64_t at = next_random(&seed) % (200 - n);

		if (memchr(taken + at, 0, n)) { /* not all of it is ours */
			const int64_t got = extents_take(&e, n);

			if (got < 0)
				continue;
			ck_assert(!memchr(taken + got, 1, n));
			memset(taken + got, 1, n);
		} else {
			ck_assert_int_eq(extents_give(&e, at, n), 0);
			memset(taken + at, 0, n);
		}
	}
	for (uint32_t i = 0; i + 1 < e.n_list; i++)
		ck_assert_uint_lt(e.list[i].first + e.list[i].n,
				  e.list[i + 1].first);
	extents_fini(&e);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vmm_cuda");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int failed;

	tcase_add_test(t, extents);
	tcase_add_test(t, a_run_is_one_set_access);
	tcase_add_test(t, what_comes_back_costs_no_call);
	tcase_add_test(t, another_tenant_finds_zeroes);
	tcase_add_test(t, the_budget_is_hard);
	tcase_add_test(t, a_failed_map_holds_nothing);
	tcase_add_test(t, frames_that_disks_can_reach);
	tcase_add_test(t, openings_that_are_refused);
	tcase_add_test(t, frames_go_when_the_kernel_is_over);
	tcase_add_test(t, pages_come_back_when_the_kernel_is_over);
	tcase_add_test(t, who_is_over_goes_first);
	tcase_add_test(t, no_more_is_unmapped_than_is_needed);
	tcase_add_test(t, ahead_never_waits);
	tcase_add_test(t, a_drop_cancels_what_is_ahead_of_it);
	tcase_add_test(t, the_pool_is_filled_and_trimmed);
	tcase_add_test(t, others_get_what_they_lack);
	tcase_add_test(t, a_full_card);
	tcase_add_test(t, a_lost_device_says_so_and_lets_go);
	tcase_add_test(t, an_asynchronous_failure_is_heard);
	tcase_add_test(t, zeroes_that_fail_once_map_nothing);
	tcase_add_test(t, each_call_fails_once);
	tcase_add_test(t, each_call_runs_out_of_memory);
	tcase_add_test(t, each_call_fails_from_then_on);
	tcase_add_test(t, each_call_finds_the_device_lost);
	tcase_add_test(t, any_order);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
