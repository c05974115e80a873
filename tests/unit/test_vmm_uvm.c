/*
 * test_vmm_uvm.c - managed memory under the vmm's spaces, and the export of frames,
 * against the fake driver
 */
#include <check.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/rig_vmm.h"

#define MIB (1u << 20)
#define F   ((uint64_t)RIG_FRAME)

static struct rig_vmm r;
static struct vmm_space *sp;

static void open_all(uint64_t total, struct vmm_conf c, uint64_t n_pages)
{
	ck_assert_int_eq(rig_vmm_open(&r, total, c), 0);
	ck_assert_int_eq(vmm_space_open(&sp, r.vmm, 1, 2 * F, n_pages), 0);
}

static void close_all(void)
{
	vmm_check(r.vmm);
	vmm_space_close(sp);
	rig_vmm_close(&r);
}

static int run(enum vmm_verb verb, struct vmm_space *s, uint64_t first,
	       uint64_t n)
{
	const int ret = rig_vmm_run(
		&r, (struct vmm_op){
			    .verb = verb, .space = s, .first = first, .n = n });

	vmm_check(r.vmm);
	return ret;
}

static uint64_t trim(uint64_t n_bytes)
{
	struct rig_vmm_op o;

	rig_vmm_start(&r, &o,
		      (struct vmm_op){ .verb = VMM_TRIM, .n_bytes = n_bytes });
	ck_assert_int_eq(rig_vmm_finish(&r, &o), 0);
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

/* ---- managed memory --------------------------------------------------------- */

static const struct vmm_conf uvm = { .kind = VMM_MANAGED, .budget_bytes = MIB };

START_TEST(a_page_is_prefetched_and_zero)
{
	open_all(8 * MIB, uvm, 8);
	ck_assert(!vmm_ready(sp, 0, 1));
	ck_assert_int_eq(run(VMM_MAP, sp, 1, 3), 0);
	ck_assert(vmm_ready(sp, 1, 3) && !vmm_ready(sp, 0, 1));
	ck_assert_uint_eq(r.ctl.calls("cuMemPrefetchAsync"), 1);
	ck_assert_uint_eq(r.ctl.calls("cuMemCreate"), 0);
	ck_assert(all_are(page(sp, 1, 2 * F), 6 * F, 0));
	memset(page(sp, 1, 2 * F), 5, 6 * F);
	ck_assert_int_eq(run(VMM_DROP, sp, 1, 3), 0);
	/* it is still there */
	ck_assert_int_eq(run(VMM_MAP, sp, 2, 2), 0);
	ck_assert_uint_eq(r.ctl.calls("cuMemPrefetchAsync"), 1);
	ck_assert(all_are(page(sp, 2, 2 * F), 4 * F, 5));
	/* one page goes to the host; the next that needs it finds zeroes */
	ck_assert_uint_eq(trim(1), 2 * F);
	ck_assert_uint_eq(trim(UINT64_MAX), 0);
	ck_assert_int_eq(run(VMM_MAP, sp, 1, 1), 0);
	ck_assert(all_are(page(sp, 1, 2 * F), 2 * F, 0));
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 8), 0);
	close_all();
}
END_TEST

START_TEST(never_more_than_the_budget)
{
	struct vmm_space *other;

	open_all(8 * MIB, uvm, 5); /* 10 of 16 frames */
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 7), -ENOMEM);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 6), 0);
	ck_assert_int_eq(run(VMM_MAP, sp, 0, 5), 0);
	ck_assert_int_eq(run(VMM_MAP, other, 0, 6), 0);
	ck_assert_uint_le(rig_vmm_used(&r), MIB);
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 5), 0);
	ck_assert_int_eq(run(VMM_DROP, other, 0, 6), 0);
	vmm_space_close(other);
	/* addresses that were given back can be had again */
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 6), 0);
	vmm_space_close(other);
	close_all();
}
END_TEST

START_TEST(never_more_than_the_card_has_free)
{
	struct vmm_space *other;
	struct vmm_conf c = uvm;

	c.spare_bytes = F;
	ck_assert_int_eq(rig_vmm_open(&r, MIB, c), -ENOSPC);
	rig_vmm_close(&r);
	open_all(MIB + F, c, 1);
	r.ctl.others(10 * F);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 5), -ENOMEM);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 4), 0);
	vmm_space_close(other);
	close_all();
}
END_TEST

/* A driver counts managed memory as free until it is touched. */
START_TEST(what_nobody_has_touched_counts)
{
	struct vmm_space *other;

	ck_assert_int_eq(rig_vmm_open(&r, 24 * F, uvm), 0);
	ck_assert_int_eq(vmm_space_open(&sp, r.vmm, 1, 2 * F, 4), 0);
	ck_assert_uint_eq(rig_vmm_used(&r), 0);
	r.ctl.others(10 * F); /* 14 are free, 8 of them promised */
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 8), -ENOMEM);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 7), -ENOMEM);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 6), 0);
	ck_assert_int_eq(run(VMM_MAP, sp, 0, 4), 0);
	ck_assert_int_eq(run(VMM_MAP, other, 0, 6), 0);
	ck_assert_int_eq(run(VMM_DROP, other, 0, 6), 0);
	vmm_space_close(other);
	/* what is there is not counted twice */
	ck_assert_uint_eq(rig_vmm_used(&r), 8 * F);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 7), -ENOMEM);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, F, 6), 0);
	vmm_space_close(other);
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 4), 0);
	close_all();
}
END_TEST

START_TEST(managed_memory_cannot_be_exported)
{
	struct vmm_conf c = uvm;

	c.share = VMM_SHAREABLE;
	ck_assert_int_eq(rig_vmm_open(&r, 8 * MIB, c), -ENOTSUP);
	rig_vmm_close(&r);
}
END_TEST

/* A kernel still runs when its page is dropped, and wanted again. */
START_TEST(managed_pages_have_fences_too)
{
	struct rig_vmm_op o;

	open_all(8 * MIB, uvm, 8);
	ck_assert_int_eq(run(VMM_MAP, sp, 0, 1), 0);
	r.ctl.hold();
	ck_assert_int_eq(r.ctl.kernel(r.compute, vmm_space_base(sp), F, 7), 0);
	ck_assert_int_eq(
		rig_vmm_run(&r, (struct vmm_op){ .verb = VMM_DROP,
						 .space = sp,
						 .n = 1,
						 .streams = { r.compute },
						 .n_streams = 1 }),
		0);
	ck_assert_uint_eq(trim(UINT64_MAX), 0); /* not over */
	rig_vmm_start(&r, &o,
		      (struct vmm_op){ .verb = VMM_MAP, .space = sp, .n = 1 });
	for (int i = 0; i < 5; i++)
		ck_assert_int_ge(loop_turn(r.loop, 1), 0);
	ck_assert(!o.is_done);
	r.ctl.go();
	ck_assert_int_eq(rig_vmm_finish(&r, &o), 0);
	ck_assert(all_are(page(sp, 0, F), F, 7));
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 1), 0);
	close_all();
}
END_TEST

/* ---- export ------------------------------------------------------------------ */

static const struct vmm_conf shared = { .share = VMM_SHAREABLE,
					.budget_bytes = 8 * RIG_FRAME };

static int export(struct vmm_space *s, uint64_t first, uint64_t n, int *fds)
{
	const int ret = rig_vmm_run(&r, (struct vmm_op){ .verb = VMM_EXPORT,
							 .space = s,
							 .first = first,
							 .n = n,
							 .fds = fds });

	vmm_check(r.vmm);
	return ret;
}

static void close_fds(int *fds, int n)
{
	while (n--)
		ck_assert_int_eq(close(fds[n]), 0);
}

/* What frame i of those exported has in it now, seen from outside. */
static int first_byte(int fd)
{
	unsigned char c;

	return pread(fd, &c, 1, 0) == 1 ? c : -1;
}

START_TEST(exported_frames_in_order)
{
	int fds[4];

	open_all(8 * MIB, shared, 8);
	ck_assert_int_eq(run(VMM_MAP, sp, 1, 2), 0);
	for (unsigned char k = 0; k < 4; k++)
		memset(page(sp, 1, 2 * F) + k * F, k + 1, F);
	ck_assert_int_eq(export(sp, 1, 2, fds), 0);
	for (int k = 0; k < 4; k++)
		ck_assert_int_eq(first_byte(fds[k]), k + 1);
	ck_assert_uint_eq(rig_vmm_counts(&r).exported, 4);
	ck_assert_int_eq(export(sp, 2, 2, fds), -EINVAL); /* 3 is EMPTY */
	close_fds(fds, 4);
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 8), 0);
	close_all();
}
END_TEST

/* Who keeps a descriptor sees nothing of what comes after, not even of its own
 * tenant. */
START_TEST(an_exported_frame_is_used_once)
{
	struct vmm_space *other;
	int fds[8];

	open_all(8 * MIB, shared, 8);
	ck_assert_int_eq(vmm_space_open(&other, r.vmm, 2, 2 * F, 8), 0);
	ck_assert_int_eq(run(VMM_MAP, sp, 0, 4), 0);
	memset(page(sp, 0, 2 * F), 7, 8 * F);
	ck_assert_int_eq(export(sp, 0, 2, fds), 0);
	ck_assert_int_eq(export(sp, 2, 2, fds + 4), 0);
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 4), 0);
	ck_assert_int_eq(run(VMM_MAP, sp, 0, 1), 0); /* not revived */
	ck_assert_uint_eq(rig_vmm_counts(&r).revived, 0);
	ck_assert(all_are(page(sp, 0, 2 * F), 2 * F, 0));
	memset(page(sp, 0, 2 * F), 8, 2 * F);
	ck_assert_int_eq(run(VMM_MAP, other, 0, 3), 0);
	memset(page(other, 0, 2 * F), 9, 6 * F);
	for (int k = 0; k < 8; k++)
		ck_assert_int_eq(first_byte(fds[k]), 7);
	ck_assert_uint_eq(rig_vmm_counts(&r).n_stuck, 0);
	ck_assert_uint_le(rig_vmm_counts(&r).n_frames, 8);
	close_fds(fds, 8);
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 8), 0);
	ck_assert_int_eq(run(VMM_DROP, other, 0, 8), 0);
	vmm_space_close(other);
	close_all();
}
END_TEST

START_TEST(nothing_is_exported_unasked)
{
	const struct vmm_conf c = { .budget_bytes = MIB };
	int fds[2];

	open_all(8 * MIB, c, 8);
	ck_assert_int_eq(run(VMM_MAP, sp, 0, 1), 0);
	ck_assert_int_eq(export(sp, 0, 1, fds), -ENOTSUP);
	ck_assert_int_eq(run(VMM_DROP, sp, 0, 1), 0);
	close_all();
}
END_TEST

/* ---- failures ------------------------------------------------------------------ */

/* A life; the first error of it. */
static int scenario(struct vmm_conf c)
{
	struct vmm_op trim_op = { .verb = VMM_TRIM, .n_bytes = 2 * F };
	struct vmm_space *s, *t;
	int fds[4], ret, any = 0;

	ret = rig_vmm_open(&r, 24 * F, c);
	if (ret)
		return ret;
	ret = vmm_space_open(&s, r.vmm, 1, 2 * F, 2);
	if (ret)
		return ret;
	ret = vmm_space_open(&t, r.vmm, 2, F, 4);
	for (int i = 0; i < 3 && !ret; i++) {
		ret = run(VMM_MAP, s, 0, 2);
		any = any ? any : ret;
		if (!ret && c.share == VMM_SHAREABLE) {
			ret = export(s, 0, 2, fds);
			any = any ? any : ret;
			if (!ret)
				close_fds(fds, 4);
		}
		ret = run(VMM_DROP, s, 0, 2);
		any = any ? any : ret;
		ret = run(VMM_MAP, t, 0, 4);
		any = any ? any : ret;
		if (!ret && !i)
			ck_assert(all_are(page(t, 0, F), 4 * F, 0));
		ret = run(VMM_DROP, t, 0, 4);
		any = any ? any : ret;
		ret = rig_vmm_run(&r, trim_op);
		any = any ? any : ret;
		vmm_check(r.vmm);
		ret = 0;
	}
	vmm_space_close(s);
	if (!ret)
		vmm_space_close(t);
	return any ? any : ret;
}

static void sweep(struct vmm_conf c, enum fake_mode mode, int err)
{
	uint64_t met = 1, n_failed = 0;

	for (uint64_t nth = 1; met; nth++) {
		int ret;

		r.arm.mode = mode;
		r.arm.nth = nth;
		r.arm.err = err;
		ret = scenario(c);
		met = r.ctl.count() >= nth;
		r.ctl.arm(FAKE_OFF, "", 0, 0);
		ck_assert_msg(!ret || ret == kern_errno(err) ||
				      ret == -ENOSPC || ret == -EIO,
			      "call %llu: %d", (unsigned long long)nth, ret);
		ck_assert(met || !ret);
		n_failed += ret != 0;
		rig_vmm_close(&r);
	}
	ck_assert_uint_gt(n_failed, 5);
}

START_TEST(each_call_fails)
{
	const struct vmm_conf confs[] = {
		{ .kind = VMM_MANAGED, .budget_bytes = 8 * F },
		{ .share = VMM_SHAREABLE, .budget_bytes = 6 * F },
	};

	sweep(confs[_i], FAKE_ONCE, CUDA_INVALID_VALUE);
	sweep(confs[_i], FAKE_ONCE, CUDA_OUT_OF_MEMORY);
	sweep(confs[_i], FAKE_FOREVER, CUDA_OUT_OF_MEMORY);
	sweep(confs[_i], FAKE_FOREVER, CUDA_LAUNCH_FAILED);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vmm_uvm");
	TCase *t = tcase_create("all");
	SRunner *sr = srunner_create(s);
	int n;

	tcase_add_test(t, a_page_is_prefetched_and_zero);
	tcase_add_test(t, never_more_than_the_budget);
	tcase_add_test(t, never_more_than_the_card_has_free);
	tcase_add_test(t, what_nobody_has_touched_counts);
	tcase_add_test(t, managed_memory_cannot_be_exported);
	tcase_add_test(t, managed_pages_have_fences_too);
	tcase_add_test(t, exported_frames_in_order);
	tcase_add_test(t, an_exported_frame_is_used_once);
	tcase_add_test(t, nothing_is_exported_unasked);
	tcase_add_loop_test(t, each_call_fails, 0, 2);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
