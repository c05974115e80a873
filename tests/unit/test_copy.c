/*
 * test_copy.c - copies between device and pinned memory, against the fake driver
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "kvd/mem/copy.h"
#include "tests/rig/rig_cuda.h"

#define FRAME	(64u << 10)
#define N_BYTES (32u * FRAME) /* on each side */
#define CHUNK	(16u << 10)
#define N_PARTS 64

static struct cuda_api *api;
static struct fake_ctl ctl;
static struct loop *loop;
static struct copier *k;
static cuda_ptr dev;
static cuda_mem mem[N_BYTES / FRAME];
static unsigned char *host;

/* ---- rig --------------------------------------------------------------------- */

static void map_device(void)
{
	const struct cuda_mem_prop prop = {
		.type = CUDA_ALLOCATION_PINNED,
		.location = { CUDA_LOCATION_DEVICE, 0 },
	};
	const struct cuda_access rw = { prop.location, CUDA_PROT_READWRITE };

	ck_assert_int_eq(api->reserve(&dev, N_BYTES, 0, 0, 0), 0);
	for (uint32_t i = 0; i < N_BYTES / FRAME; i++) {
		ck_assert_int_eq(api->create(&mem[i], FRAME, &prop, 0), 0);
		ck_assert_int_eq(api->map(dev + i * FRAME, FRAME, 0, mem[i], 0),
				 0);
	}
	ck_assert_int_eq(api->set_access(dev, N_BYTES, &rw, 1), 0);
}

/* What copier_open() said; nth call of it fails if nth. */
static int setup_failing(uint64_t credits, enum fake_mode mode, uint64_t nth,
			 int err)
{
	struct copy_conf conf = { .chunk_bytes = CHUNK,
				  .credit_bytes = credits * CHUNK };
	int ret;

	k = NULL;
	api = rig_cuda_open(&ctl, 2 * N_BYTES, FRAME);
	ck_assert_int_eq(loop_new(&loop), 0);
	map_device();
	ck_assert_int_eq(api->ctx_retain(&conf.ctx, 0), 0);
	host = mmap(NULL, N_BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert(host != MAP_FAILED);
	conf.api = api;
	conf.loop = loop;
	if (mode != FAKE_OFF)
		ctl.arm(mode, "cu", nth, err);
	ret = copier_open(&k, &conf);
	if (!ret)
		ret = copier_pin(k, host, N_BYTES);
	return ret;
}

static void setup(uint64_t credits)
{
	ck_assert_int_eq(setup_failing(credits, FAKE_OFF, 0, 0), 0);
}

enum how { CLEAN, FAULTY };

static void teardown(enum how how)
{
	if (k && how == CLEAN)
		copier_unpin(k, host);
	copier_close(k);
	loop_free(loop);
	(void)api->ctx_release(0); /* or it is lost */
	if (how == CLEAN) {
		ck_assert_int_eq(api->unmap(dev, N_BYTES), 0);
		ck_assert_int_eq(api->unreserve(dev, N_BYTES), 0);
		for (uint32_t i = 0; i < N_BYTES / FRAME; i++)
			ck_assert_int_eq(api->release(mem[i]), 0);
		rig_cuda_close(api, &ctl);
	} else {
		rig_cuda_drop(api, &ctl);
	}
	ck_assert_int_eq(munmap(host, N_BYTES), 0);
}

struct job {
	struct copy copy;
	struct wait wait;
	struct copy_part parts[N_PARTS];
	uint32_t told; /* parts, by progress() */
	int is_done, ret;
};

static void job_done(struct wait *w, int ret)
{
	struct job *j = container_of(w, struct job, wait);

	ck_assert(!j->is_done);
	j->is_done = 1;
	j->ret = ret;
}

static void job_progress(struct copy *c, uint32_t n_done)
{
	struct job *j = container_of(c, struct job, copy);

	ck_assert(!j->is_done);
	ck_assert_uint_gt(n_done, j->told);
	ck_assert_uint_le(n_done, c->n_parts);
	j->told = n_done;
}

/* n parts of n_bytes each, from off on, gap bytes between them. */
static void job_init(struct job *j, enum copy_dir dir, enum copy_prio prio,
		     size_t off, uint32_t n, size_t n_bytes, size_t gap)
{
	memset(j, 0, sizeof(*j));
	for (uint32_t i = 0; i < n; i++) {
		const size_t at = off + i * (n_bytes + gap);

		ck_assert_uint_le(at + n_bytes, N_BYTES);
		j->parts[i] =
			(struct copy_part){ dev + at, host + at, n_bytes };
	}
	j->wait.done = job_done;
	j->copy = (struct copy){ .dir = dir,
				 .prio = prio,
				 .parts = j->parts,
				 .n_parts = n,
				 .progress = job_progress,
				 .waiter = &j->wait };
}

static int job_finish(struct job *j)
{
	while (!j->is_done)
		ck_assert_int_ge(loop_turn(loop, 1000), 0);
	return j->ret;
}

static int job_run(struct job *j)
{
	copy_start(k, &j->copy);
	return job_finish(j);
}

/* For things that must not happen. */
static void turn_a_while(void)
{
	for (int i = 0; i < 20; i++)
		ck_assert_int_ge(loop_turn(loop, 1), 0);
}

static void fill(unsigned char *p, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (unsigned char)((i + seed) * 2654435761u >> 13);
}

static int holds(const unsigned char *p, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != (unsigned char)((i + seed) * 2654435761u >> 13))
			return 0;
	return 1;
}

/* ---- what it does ---------------------------------------------------------------- */

/* Parts of any size, there and back. */
START_TEST(there_and_back)
{
	static const size_t sizes[] = { 1, 4095, CHUNK, CHUNK + 1, 5 * CHUNK };
	struct job j;

	setup(3);
	for (int i = 0; i < 5; i++) {
		const size_t n = 7 * (sizes[i] + 100);

		fill(host, n, 7);
		job_init(&j, COPY_TO_DEVICE, COPY_NOW, 50, 7, sizes[i], 100);
		ck_assert_int_eq(job_run(&j), 0);
		memset(host, 0, n);
		job_init(&j, COPY_TO_HOST, COPY_LATER, 50, 7, sizes[i], 100);
		ck_assert_int_eq(job_run(&j), 0);
		for (int p = 0; p < 7; p++) {
			const size_t at = 50 + (size_t)p * (sizes[i] + 100);

			ck_assert(holds(host + at, sizes[i], 7 + (uint32_t)at));
			ck_assert_uint_eq(host[at + sizes[i]], 0);
		}
	}
	teardown(CLEAN);
}
END_TEST

START_TEST(neighbours_are_one_copy)
{
	struct copy_counts n;
	struct job j;

	setup(4);
	job_init(&j, COPY_TO_DEVICE, COPY_NOW, 0, 16, CHUNK / 8, 0);
	ck_assert_int_eq(job_run(&j), 0);
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 2);
	/* a gap in one memory is enough to be two */
	job_init(&j, COPY_TO_DEVICE, COPY_NOW, 0, 2, 100, 0);
	j.parts[1].host = (char *)j.parts[1].host + 1;
	ck_assert_int_eq(job_run(&j), 0);
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 4);
	/* a large part is cut */
	job_init(&j, COPY_TO_DEVICE, COPY_NOW, 0, 1, 3 * CHUNK + 1, 0);
	ck_assert_int_eq(job_run(&j), 0);
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 8);
	copier_counts(k, &n);
	ck_assert_uint_eq(n.copies, 8);
	ck_assert_uint_eq(n.merged, 14);
	ck_assert_uint_eq(n.bytes[COPY_TO_DEVICE],
			  2 * CHUNK + 200 + 3 * CHUNK + 1);
	teardown(CLEAN);
}
END_TEST

START_TEST(nothing_is_done_at_once)
{
	struct job j;

	setup(1);
	job_init(&j, COPY_TO_HOST, COPY_SOON, 0, 0, 0, 0);
	ck_assert_int_eq(job_run(&j), 0);
	job_init(&j, COPY_TO_HOST, COPY_SOON, 0, 5, 0, 10);
	ck_assert_int_eq(job_run(&j), 0);
	ck_assert_uint_eq(ctl.calls("cuMemcpyDtoHAsync_v2"), 0);
	teardown(CLEAN);
}
END_TEST

/* The first layer is told while the others are on their way. */
START_TEST(layers_are_told_as_they_land)
{
	struct job j;

	setup(8);
	fill(host, N_BYTES, 3);
	job_init(&j, COPY_TO_DEVICE, COPY_NOW, 0, 6, CHUNK, 64);
	ctl.hold();
	copy_start(k, &j.copy);
	turn_a_while();
	ck_assert_uint_eq(j.told, 0);
	for (uint32_t n = 1; n < 6; n++) {
		ctl.step(1);
		while (j.told < n)
			ck_assert_int_ge(loop_turn(loop, 1000), 0);
		ck_assert_uint_eq(j.told, n);
		ck_assert(holds((unsigned char *)j.parts[n - 1].dev, CHUNK,
				3 + (n - 1) * (CHUNK + 64)));
	}
	turn_a_while();
	ck_assert(!j.is_done);
	ctl.go();
	ck_assert_int_eq(job_finish(&j), 0);
	teardown(CLEAN);
}
END_TEST

/* No more than the credits are at the device, and who is urgent is next. */
START_TEST(urgent_copies_overtake)
{
	struct fake_stats st;
	struct job later, now;

	setup(2);
	job_init(&later, COPY_TO_DEVICE, COPY_LATER, 0, 10, CHUNK, 64);
	job_init(&now, COPY_TO_DEVICE, COPY_NOW, N_BYTES - CHUNK, 1, CHUNK, 0);
	ctl.hold();
	copy_start(k, &later.copy);
	while (ctl.calls("cuMemcpyHtoDAsync_v2") < 2)
		turn_a_while();
	turn_a_while();
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 2);
	copy_start(k, &now.copy);
	turn_a_while();
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 2);
	ctl.step(1); /* one place comes free */
	while (ctl.calls("cuMemcpyHtoDAsync_v2") < 3)
		turn_a_while();
	ctl.stats(&st);
	ck_assert_uint_eq(st.last_h2d, dev + N_BYTES - CHUNK);
	ck_assert(!later.is_done);
	ctl.go();
	ck_assert_int_eq(job_finish(&now), 0);
	ck_assert_int_eq(job_finish(&later), 0);
	teardown(CLEAN);
}
END_TEST

/* An urgent one that is cancelled before it is at the device was all that others waited
 * for. */
START_TEST(who_leaves_lets_others_go)
{
	struct job now, later;

	setup(1);
	for (int i = 0; i < 200; i++) {
		job_init(&now, COPY_TO_DEVICE, COPY_NOW, 0, 1, CHUNK, 0);
		job_init(&later, COPY_TO_DEVICE, COPY_LATER, CHUNK, 1, CHUNK,
			 0);
		copy_start(k, &now.copy);
		copy_start(k, &later.copy);
		copy_cancel(k, &now.copy);
		(void)job_finish(&now); /* cancelled, or just not */
		ck_assert_int_eq(job_finish(&later), 0);
	}
	teardown(CLEAN);
}
END_TEST

/* The other direction has credits of its own. */
START_TEST(directions_do_not_wait_for_each_other)
{
	struct job in, out;

	setup(1);
	job_init(&in, COPY_TO_DEVICE, COPY_NOW, 0, 4, CHUNK, 64);
	job_init(&out, COPY_TO_HOST, COPY_LATER, N_BYTES / 2, 1, CHUNK, 0);
	ctl.hold();
	copy_start(k, &in.copy);
	copy_start(k, &out.copy);
	while (!ctl.calls("cuMemcpyDtoHAsync_v2") ||
	       !ctl.calls("cuMemcpyHtoDAsync_v2"))
		turn_a_while(); /* two threads: either may be first */
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 1);
	ctl.go();
	ck_assert_int_eq(job_finish(&in), 0);
	ck_assert_int_eq(job_finish(&out), 0);
	teardown(CLEAN);
}
END_TEST

START_TEST(a_copy_comes_after_its_kernel)
{
	struct job j, other;
	cuda_stream st;
	cuda_event e;

	setup(4);
	memset((void *)dev, 1, N_BYTES);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->event_new(&e, CUDA_EVENT_DISABLE_TIMING), 0);
	ctl.hold();
	ck_assert_int_eq(ctl.kernel(st, dev, CHUNK, 9), 0);
	ck_assert_int_eq(api->event_record(e, st), 0);
	job_init(&j, COPY_TO_HOST, COPY_NOW, 0, 1, CHUNK, 0);
	j.copy.after = e;
	copy_start(k, &j.copy);
	/* who waits for a kernel holds up nobody */
	job_init(&other, COPY_TO_HOST, COPY_LATER, CHUNK, 1, CHUNK, 0);
	copy_start(k, &other.copy);
	while (!ctl.calls("cuMemcpyDtoHAsync_v2"))
		turn_a_while();
	turn_a_while();
	ck_assert_uint_eq(ctl.calls("cuMemcpyDtoHAsync_v2"), 1);
	ctl.go();
	ck_assert_int_eq(job_finish(&j), 0);
	ck_assert_int_eq(job_finish(&other), 0);
	ck_assert_uint_eq(host[CHUNK - 1], 9);
	ck_assert_uint_eq(host[CHUNK], 1);
	ck_assert_int_eq(api->event_free(e), 0);
	ck_assert_int_eq(api->stream_free(st), 0);
	teardown(CLEAN);
}
END_TEST

START_TEST(cancelled)
{
	struct job j, next;

	setup(2);
	job_init(&j, COPY_TO_DEVICE, COPY_NOW, 0, 10, CHUNK, 64);
	job_init(&next, COPY_TO_DEVICE, COPY_NOW, 0, 1, CHUNK, 0);
	ctl.hold();
	copy_start(k, &j.copy);
	copy_start(k, &next.copy);
	while (ctl.calls("cuMemcpyHtoDAsync_v2") < 2)
		turn_a_while();
	copy_cancel(k, &j.copy);
	copy_cancel(k, &j.copy);
	ctl.go();
	ck_assert_int_eq(job_finish(&j), -ECANCELED);
	ck_assert_int_eq(job_finish(&next), 0);
	ck_assert_uint_eq(ctl.calls("cuMemcpyHtoDAsync_v2"), 3);
	teardown(CLEAN);
}
END_TEST

START_TEST(refused)
{
	struct copy_conf c = { .chunk_bytes = 0, .credit_bytes = 5 };
	struct copier *none;

	setup(1);
	ck_assert_int_eq(copier_pin(k, host, FRAME), -EINVAL); /* it is */
	ck_assert_int_eq(copier_open(&none, &c), -EINVAL);
	c.chunk_bytes = 6;
	ck_assert_int_eq(copier_open(&none, &c), -EINVAL);
	teardown(CLEAN);
}
END_TEST

/* ---- failures -------------------------------------------------------------------- */

/* One operation of a stream fails: its copy is told, the others are whole. */
START_TEST(who_failed_is_told)
{
	struct copy_counts n;
	struct job j[3];

	setup(8);
	fill(host, N_BYTES, 1);
	ctl.hold();
	ctl.fail_op(2, CUDA_INVALID_VALUE, 0);
	for (uint32_t i = 0; i < 3; i++) {
		job_init(&j[i], COPY_TO_DEVICE, COPY_NOW, i * 2 * CHUNK, 1,
			 CHUNK, 0);
		copy_start(k, &j[i].copy);
	}
	ctl.go();
	ck_assert_int_eq(job_finish(&j[0]), 0);
	ck_assert_int_eq(job_finish(&j[1]), -EINVAL);
	ck_assert_int_eq(job_finish(&j[2]), 0);
	ck_assert(holds((unsigned char *)dev, CHUNK, 1));
	ck_assert(
		holds((unsigned char *)dev + 4 * CHUNK, CHUNK, 1 + 4 * CHUNK));
	ck_assert(!copier_lost(k));
	copier_counts(k, &n);
	ck_assert_uint_eq(n.failed, 1);
	teardown(CLEAN);
}
END_TEST

START_TEST(a_lost_device_ends_all)
{
	struct job j[6];

	setup(2);
	ctl.hold();
	for (int i = 0; i < 6; i++) {
		job_init(&j[i], i % 2 ? COPY_TO_HOST : COPY_TO_DEVICE,
			 (enum copy_prio)(i / 2), (size_t)i * 4 * CHUNK, 4,
			 CHUNK, 0);
		copy_start(k, &j[i].copy);
	}
	ctl.lose(CUDA_ECC_UNCORRECTABLE);
	for (int i = 0; i < 6; i++)
		ck_assert_int_eq(job_finish(&j[i]), -ENODEV);
	ck_assert(copier_lost(k));
	job_init(&j[0], COPY_TO_HOST, COPY_NOW, 0, 1, CHUNK, 0);
	ck_assert_int_eq(job_run(&j[0]), -ENODEV);
	teardown(FAULTY);
}
END_TEST

/* The 3rd operation takes the context with it. */
START_TEST(a_fault_on_the_way_ends_all)
{
	struct job j;

	setup(2);
	ctl.fail_op(3, CUDA_ILLEGAL_ADDRESS, 1);
	job_init(&j, COPY_TO_DEVICE, COPY_NOW, 0, 8, CHUNK, 64);
	ck_assert_int_eq(job_run(&j), -ENODEV);
	ck_assert_uint_le(j.told, 2);
	teardown(FAULTY);
}
END_TEST

/* What was told 0 is right; 0, or the first error. */
static int scenario(void)
{
	struct job in, out;
	int ret, any = 0;

	for (uint32_t i = 0; i < 3 && !copier_lost(k); i++) {
		fill(host, 8 * CHUNK, i);
		memset(host + N_BYTES / 2, 0, 8 * CHUNK);
		job_init(&in, COPY_TO_DEVICE, (enum copy_prio)i, 0, 3,
			 CHUNK + 10, 0);
		ret = job_run(&in);
		any = any ? any : ret;
		if (ret)
			continue;
		job_init(&out, COPY_TO_HOST, (enum copy_prio)i, 0, 3,
			 CHUNK + 10, 0);
		for (uint32_t p = 0; p < 3; p++)
			out.parts[p].host =
				(char *)out.parts[p].host + N_BYTES / 2;
		ret = job_run(&out);
		any = any ? any : ret;
		if (!ret)
			ck_assert(
				holds(host + N_BYTES / 2, 3 * (CHUNK + 10), i));
	}
	return any;
}

static void sweep(enum fake_mode mode, int err)
{
	uint64_t met = 1, n_failed = 0;

	for (uint64_t nth = 1; met; nth++) {
		int ret = setup_failing(2, mode, nth, err);
		const int pinned = !ret;

		if (!ret)
			ret = scenario();
		met = ctl.count() >= nth;
		ctl.arm(FAKE_OFF, "", 0, 0);
		ck_assert_msg(!ret || ret == kern_errno(err) || ret == -ENODEV,
			      "call %u: %d", (unsigned int)nth, ret);
		ck_assert(met || !ret);
		n_failed += ret != 0;
		if (k && pinned && !copier_lost(k))
			ck_assert_int_eq(scenario(), 0);
		teardown(FAULTY);
	}
	ck_assert_uint_gt(n_failed, 10);
}

START_TEST(each_call_fails_once)
{
	sweep(FAKE_ONCE, CUDA_NOT_SUPPORTED);
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

/* ---- many at once ------------------------------------------------------------------ */

#define N_JOBS 24

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

/* Each job has its own part of both memories: device bytes are the seed's when it went
 * in, host bytes when it came out. */
static void random_job(struct job *j, uint32_t i, uint32_t *seed)
{
	const size_t room = N_BYTES / N_JOBS;
	const uint32_t n = 1 + next_random(seed) % 20;
	const size_t n_bytes = 1 + next_random(seed) % (room / n - 64);
	const enum copy_dir dir = (enum copy_dir)(next_random(seed) % 2);

	job_init(j, dir, (enum copy_prio)(next_random(seed) % 3), i * room, n,
		 n_bytes, next_random(seed) % 3 ? 64 : 0);
	fill(host + i * room, room, i + (dir == COPY_TO_HOST));
	memset((char *)dev + i * room, 0, room);
	fill((unsigned char *)dev + i * room, room,
	     i + (dir == COPY_TO_DEVICE));
}

static void check_job(const struct job *j, uint32_t i)
{
	const size_t room = N_BYTES / N_JOBS;

	for (uint32_t p = 0; p < j->copy.n_parts; p++) {
		const struct copy_part *q = &j->parts[p];
		const size_t at = q->dev - dev - i * room;

		ck_assert(holds((const unsigned char *)q->dev, q->n,
				i + (uint32_t)at));
		ck_assert(holds(q->host, q->n, i + (uint32_t)at));
	}
}

START_TEST(any_order)
{
	static struct job jobs[N_JOBS];
	const char *env = getenv("KVD_SEED");
	uint32_t seed = env ? (uint32_t)strtoul(env, NULL, 10)
			    : (uint32_t)time(NULL);

	printf("any_order: KVD_SEED=%u\n", seed);
	setup(3);
	for (int round = 0; round < 30; round++) {
		for (uint32_t i = 0; i < N_JOBS; i++) {
			random_job(&jobs[i], i, &seed);
			copy_start(k, &jobs[i].copy);
			if (next_random(&seed) % 8 == 0)
				copy_cancel(k, &jobs[i].copy);
		}
		for (uint32_t i = 0; i < N_JOBS; i++) {
			const int ret = job_finish(&jobs[i]);

			ck_assert(!ret || ret == -ECANCELED);
			if (!ret)
				check_job(&jobs[i], i);
		}
	}
	teardown(CLEAN);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("copy");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int failed;

	tcase_add_test(t, there_and_back);
	tcase_add_test(t, neighbours_are_one_copy);
	tcase_add_test(t, nothing_is_done_at_once);
	tcase_add_test(t, layers_are_told_as_they_land);
	tcase_add_loop_test(t, urgent_copies_overtake, 0, 8);
	tcase_add_test(t, who_leaves_lets_others_go);
	tcase_add_test(t, directions_do_not_wait_for_each_other);
	tcase_add_test(t, a_copy_comes_after_its_kernel);
	tcase_add_test(t, cancelled);
	tcase_add_test(t, refused);
	tcase_add_test(t, who_failed_is_told);
	tcase_add_test(t, a_lost_device_ends_all);
	tcase_add_test(t, a_fault_on_the_way_ends_all);
	tcase_add_test(t, each_call_fails_once);
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
