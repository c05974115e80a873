/*
 * sweep_map.c - every fault point of frames and of userfaultfd, one at a time
 *
 * What sweep_pager does not go through: a tmpfs of our own with huge pages, frames in
 * it, the descriptor and the states that clients get, the memory that a device's pages
 * are parked in, and the thread that fills clients' memory (probed, started, a peer, more
 * faults at once than it keeps, copy, poison, wake, closed). Each scenario is run
 * with the 1st, 2nd, 3rd... point failing, once and for good, until a run meets none.
 * In each run every call ends, in success or a documented error, what succeeded is
 * true, and nothing stays open or mapped. A kernel or user that has no such thing is
 * told as skipped.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "io/base.h"
#include "io/fault.h"
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/base/loop.h"
#include "kvd/mem/park_mem.h"
#include "kvd/mem/folio.h"
#include "kvd/mem/space.h"
#include "kvd/mem/uffd.h"
#include "tests/rig/rig_alloc.h"

#define HUGE	  (2ull << 20)
#define MOUNT	  (16ull << 20)
#define PAGE	  4096u
#define MAX_STEPS 500
#define N_TOUCH	  80u /* of UFFD_PENDING */
#define WAIT_NS	  10000000000ull

static int err; /* armed */
static int n_failed, n_done;

static int expect(int ret)
{
	/* -ENOMEM, -ENOENT: what is asked for follows from what failed before */
	ck_assert_msg(ret >= 0 || ret == -err, "%s", strerror(-ret));
	n_failed += ret < 0;
	return ret < 0 ? ret : 0;
}

/* ---- frames ------------------------------------------------------------------ */

/* Who may open it again cannot cut it off under us. */
static void stays_as_long(int fd)
{
	char path[32];
	int again;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	ck_assert_int_ge(again, 0);
	ck_assert_int_eq(ftruncate(again, 0), -1);
	ck_assert_int_eq(errno, EPERM);
	(void)close(again);
}

static void share(struct space *s, int64_t at)
{
	const int fd = space_share_fd(s);
	uint8_t *states;
	char c = 0;
	int ret;

	if (!expect(fd)) {
		ck_assert_int_eq(pread(fd, &c, 1, (off_t)((uint64_t)at * HUGE)),
				 1);
		ck_assert_int_eq(c, 7);
		ck_assert_int_eq(ftruncate(fd, 0), -1); /* it is to read */
		if (!strcmp(space_kind(s), "memfd"))
			stays_as_long(fd);
	}
	ret = space_states(s, &states);
	if (expect(ret))
		ret = space_states(s, &states); /* asked again */
	if (expect(ret))
		return;
	states[at] = 3;
	ck_assert_int_eq(pread(ret, &c, 1, (off_t)at), 1);
	ck_assert_int_eq(c, 3);
	stays_as_long(ret);
	n_done++;
}

static void use_space(struct space *s)
{
	const int64_t at = space_alloc(s, 2);

	ck_assert_int_ge(at, 0);
	if (!expect(space_map(s, (uint64_t)at, 2))) {
		char *p = space_base(s) + (uint64_t)at * HUGE;

		ck_assert_int_eq(p[0] | p[2 * HUGE - 1], 0);
		p[0] = 7;
		share(s, at);
	}
	(void)expect(space_drop(s, (uint64_t)at, 2));
	ck_assert_int_eq(space_free(s, (uint64_t)at, 2), 0);
}

/* What the kernel refuses here even without faults. */
static int no_mount;

static void frames(void)
{
	struct space_conf c = {
		.name = "sweep", .page_bytes = HUGE, .mlock = 1, .numa_node = -1
	};
	struct space *s = NULL;
	int dir = no_mount ? -EPERM : space_huge_dir(NULL, MOUNT);

	if (!no_mount)
		(void)expect(dir);
	c.huge_dir = KV_MAX(dir, 0);
	if (no_mount) {
		(void)folio_switch_on(); /* it can be done without */
		c.folios = 1;
	}
	if (!expect(space_open(&s, &c)))
		use_space(s);
	space_close(s);
	if (dir > 0)
		(void)close(dir);
	/* no mount: what a client gets is a memfd */
	c.huge_dir = 0;
	s = NULL;
	if (!expect(space_open(&s, &c)))
		use_space(s);
	space_close(s);
	dir = space_huge_dir("/dev/shm", 0);
	if (!expect(dir))
		(void)close(dir);
}

static void parked(void)
{
	char *p = NULL;

	if (expect(park_mem_map(HUGE, 0, &p)))
		return;
	ck_assert_int_eq(p[0] | p[HUGE - 1], 0);
	p[HUGE - 1] = 1;
	park_mem_unmap(p, HUGE);
	n_done++;
}

/* ---- userfaultfd --------------------------------------------------------------- */

struct told {
	struct uffd_job job;
	int n;
};

static void on_done(struct uffd_job *j)
{
	container_of(j, struct told, job)->n++;
}

static int n_broken;
static char told_of[N_TOUCH];
static uint64_t touched_at;

static void on_fault(struct uffd_peer *p, uint64_t addr, uint64_t read_ns)
{
	(void)p;
	ck_assert_uint_ge(addr, touched_at);
	ck_assert_uint_lt(addr, touched_at + sizeof(told_of) * PAGE);
	ck_assert_uint_gt(read_ns, 0);
	told_of[(addr - touched_at) / PAGE] = 1;
}

static void on_broken(struct uffd_peer *p)
{
	(void)p;
	n_broken++;
}

static int wait_for(struct loop *l, struct told *t)
{
	const uint64_t t0 = clock_ns();

	while (!t->n && clock_ns() - t0 < WAIT_NS)
		(void)loop_turn(l, 10);
	ck_assert_msg(t->n == 1, "a job never ended");
	return t->job.ret;
}

/* As a client has it: pages that nobody filled. */
static int client_side(char **map, uint32_t n_pages)
{
	const size_t n_bytes = (size_t)n_pages * PAGE;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	const int fd = (int)syscall(
		SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	ck_assert_int_ge(fd, 0);
	*map = mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0);
	ck_assert_ptr_ne(*map, MAP_FAILED);
	reg.range.start = (uintptr_t)*map;
	reg.range.len = n_bytes;
	ck_assert_int_eq(ioctl(fd, UFFDIO_API, &api), 0);
	ck_assert_int_eq(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	return fd;
}

static const char bytes[N_TOUCH * PAGE] = "what a client is to see";

static int run_job(struct loop *l, struct uffd_peer *p, enum uffd_kind kind,
		   char *at, size_t n_bytes)
{
	struct told t = { .job = { .done = on_done,
				   .peer = p,
				   .kind = kind,
				   .addr = (uintptr_t)at,
				   .n_bytes = n_bytes,
				   .src = bytes } };
	int ret;

	uffd_start(&t.job);
	ret = wait_for(l, &t);
	if (ret == -EINVAL && kind == UFFD_POISON)
		return 0; /* before Linux 6.6 */
	if (!expect(ret) && kind == UFFD_COPY)
		ck_assert_str_eq(at, bytes);
	return ret;
}

static void use_peer(struct loop *l, struct uffd *u)
{
	struct uffd_peer p = { .fault = on_fault, .broken = on_broken };
	struct told end = { .job.done = on_done };
	char *map;
	const int fd = client_side(&map, 2);

	if (expect(uffd_open(u, &p, fd))) {
		(void)close(fd); /* it still is ours */
		(void)munmap(map, 2 * PAGE);
		return;
	}
	if (run_job(l, &p, UFFD_COPY, map, PAGE))
		(void)run_job(l, &p, UFFD_COPY, map, PAGE); /* tried again */
	(void)run_job(l, &p, UFFD_COPY, map, PAGE); /* it is there already */
	(void)run_job(l, &p, UFFD_POISON, map + PAGE, PAGE);
	(void)run_job(l, &p, UFFD_WAKE, map, PAGE);
	uffd_close(&p, &end.job);
	ck_assert_int_eq(wait_for(l, &end), 0);
	(void)munmap(map, 2 * PAGE);
	n_done++;
}

static void *touch(void *at)
{
	return (void *)(intptr_t) * (volatile char *)at;
}

/* What the thread writes under its own lock: ThreadSanitizer is not to see it. */
__attribute__((noinline, no_sanitize("thread"))) static uint32_t
peek(const volatile void *at)
{
	return *(const volatile uint32_t *)at;
}

/* The thread has stopped to look, or cannot. */
static int has_stopped(const struct uffd_peer *p)
{
	return peek(&p->muted) || peek(&p->is_broken);
}

/* Every fault is told, or that no more will be: what waits can be let go either way. */
static void let_go(struct loop *l, struct uffd_peer *p)
{
	const uint64_t t0 = clock_ns();

	while (!has_stopped(p) && clock_ns() - t0 < WAIT_NS)
		(void)usleep(100);
	ck_assert(has_stopped(p));
	(void)usleep(10000); /* it would go on about here */
	ck_assert_uint_le(peek(&p->n_pending), UFFD_PENDING);
	while (!n_broken && memchr(told_of, 0, N_TOUCH) &&
	       clock_ns() - t0 < WAIT_NS)
		(void)loop_turn(l, 1);
	ck_assert(n_broken || !memchr(told_of, 0, N_TOUCH));
	ck_assert(!n_broken || err);
	n_failed += n_broken;
}

/* As many threads of a client wait at once as are more than the table has room for. */
static void use_many(struct loop *l, struct uffd *u)
{
	struct uffd_peer p = { .fault = on_fault, .broken = on_broken };
	struct told end = { .job.done = on_done };
	pthread_t threads[N_TOUCH];
	char *map;
	const int fd = client_side(&map, N_TOUCH);
	void *got;

	touched_at = (uintptr_t)map;
	memset(told_of, 0, sizeof(told_of));
	n_broken = 0;
	if (expect(uffd_open(u, &p, fd))) {
		(void)close(fd); /* it still is ours */
		(void)munmap(map, N_TOUCH * PAGE);
		return;
	}
	for (uint32_t i = 0; i < N_TOUCH; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, touch,
						map + (size_t)i * PAGE),
				 0);
	let_go(l, &p);
	(void)run_job(l, &p, UFFD_COPY, map, sizeof(bytes));
	uffd_close(&p, &end.job); /* wakes who still waits */
	ck_assert_int_eq(wait_for(l, &end), 0);
	ck_assert_int_le(n_broken, 1);
	for (uint32_t i = 0; i < N_TOUCH; i++) {
		pthread_join(threads[i], &got);
		ck_assert(err || (intptr_t)got == bytes[i * PAGE]);
	}
	(void)munmap(map, N_TOUCH * PAGE);
	n_done++;
}

static void waiting(void)
{
	struct loop *l = NULL;
	struct uffd *u = NULL;

	if (expect(loop_new(&l)))
		return;
	if (!expect(uffd_new(&u, l, 0)))
		use_many(l, u);
	uffd_free(u);
	loop_free(l);
}

static void faults(void)
{
	struct loop *l = NULL;
	struct uffd *u = NULL;

	if (expect(loop_new(&l)))
		return;
	if (!expect(uffd_probe()) && !expect(uffd_new(&u, l, 0)))
		use_peer(l, u);
	uffd_free(u);
	loop_free(l);
}

/* ---- the sweep ------------------------------------------------------------------- */

static int n_open(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	ck_assert_ptr_nonnull(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int n_lines(const char *path, const char *with)
{
	FILE *f = fopen(path, "r");
	char line[512];
	int n = 0;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		n += !!strstr(line, with);
	(void)fclose(f);
	return n;
}

static const struct sweep {
	void (*scenario)(void);
	enum kio_fault_mode mode;
	int err;
	const char *points; /* so they begin */
} sweeps[] = {
	{ frames, KIO_FAULT_ONCE, EIO, "" },
	{ frames, KIO_FAULT_FOREVER, ENOMEM, "" },
	{ parked, KIO_FAULT_ONCE, EIO, "" },
	{ faults, KIO_FAULT_ONCE, EIO, "" },
	{ faults, KIO_FAULT_FOREVER, ENOMEM, "" },
	{ waiting, KIO_FAULT_ONCE, EIO, "" },
	{ waiting, KIO_FAULT_FOREVER, ENOMEM, "" },
	/* how often it waits and reads is chance: these alone are always met */
	{ waiting, KIO_FAULT_ONCE, EIO, "sys.epoll_ctl" },
	{ frames, KIO_FAULT_FOREVER, ENOMEM, "mem." },
	{ faults, KIO_FAULT_FOREVER, ENOMEM, "mem." },
};

START_TEST(every_point)
{
	const struct sweep *s = &sweeps[_i];
	uint64_t nth = 0, met;
	int before, maps, dir;

	if ((s->scenario == faults || s->scenario == waiting) &&
	    uffd_probe() < 0) {
		printf("sweep %d: skipped: no userfaultfd here\n", _i);
		return;
	}
	dir = space_huge_dir(NULL, MOUNT);
	no_mount = dir < 0;
	if (no_mount)
		printf("without a mount of our own: %s\n", strerror(-dir));
	else
		(void)close(dir);
	before = n_open();
	maps = n_lines("/proc/self/maps", "memfd:");
	rig_alloc_fails = !strcmp(s->points, "mem.");
	kio_fault_arm(KIO_FAULT_ONCE, "", UINT64_MAX, EIO);
	s->scenario();
	ck_assert_uint_ge(kio_fault_count(), 4);
	kio_fault_disarm();
	ck_assert_int_eq(n_failed, 0);
	ck_assert_int_gt(n_done, 0);
	do {
		err = s->err;
		kio_fault_arm(s->mode, s->points, ++nth, err);
		s->scenario();
		met = kio_fault_count();
		kio_fault_disarm();
		err = 0;
		ck_assert_int_eq(n_open(), before);
		ck_assert_int_eq(n_lines("/proc/self/maps", "memfd:"), maps);
		ck_assert_uint_lt(nth, MAX_STEPS);
	} while (nth <= met);
	ck_assert_int_gt(n_failed, 0);
	n_failed = n_done = 0;
	s->scenario(); /* works again */
	ck_assert_int_eq(n_failed, 0);
	ck_assert_int_gt(n_done, 0);
	printf("sweep %d: %d points\n", _i, (int)nth - 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sweep_map");
	TCase *tc = tcase_create("sweep");
	SRunner *sr;
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, every_point, 0,
			    (int)(sizeof(sweeps) / sizeof(sweeps[0])));
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
