/*
 * test_store_device.c - a block device as a store, and space that goes back to it
 *
 * A loop device, which needs root: skipped where there is none. It shows in the file
 * behind it what was given back. What becomes of a store whose device takes no discard,
 * or nothing at all, is in test_store_space.c too, without one.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/store_priv.h"
#include "tests/rig/rig_store.h"

#define BYTES  (198ull << 20) /* more than the reserve of 64 MiB */
#define N_MOST 2048u
#define BIG    65536u
#define PAGES  4u /* of a record */

static struct rig_store r;
static struct rig_record x[N_MOST];
static char backing[sizeof(r.path)];

/* A loop device of that file; 0: there is none, or no right to it. */
static int attach(const char *file, char dev[64])
{
	char cmd[256];
	FILE *p;
	int ret;

	snprintf(cmd, sizeof(cmd), "losetup -f --show %s 2>/dev/null", file);
	p = popen(cmd, "r");
	if (!p)
		return 0;
	ret = fscanf(p, "%63s", dev) == 1;
	return !pclose(p) && ret;
}

/* It goes when it is closed, however this ends: 0, or what losetup said. */
static int detach(const char *dev)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "losetup -d %s", dev);
	return system(cmd);
}

static void init(enum kio_engine_kind kind, const char *dir)
{
	char dev[64];

	rig_store_init(&r, kind, dir);
	strcpy(backing, r.path);
	ck_assert_int_eq(truncate(backing, (off_t)BYTES), 0);
	ck_assert(attach(backing, dev));
	strcpy(r.path, dev);
}

/* The device is not to be unlinked. */
static void fini(void)
{
	strcpy(r.path, backing);
	rig_store_fini(&r);
}

static uint64_t backing_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(stat(backing, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static struct kio_store_info info(void)
{
	struct kio_store_info i;

	kio_store_info(r.store, &i);
	return i;
}

START_TEST(a_device_is_a_store_too)
{
	struct rig_record scratch;
	char dev[64];
	int fd;

	init(KIO_ENGINE_AUTO, "/var/tmp");
	snprintf(dev, sizeof(dev), "%.63s", r.path);
	fd = open(dev, O_RDWR | O_EXCL | O_CLOEXEC); /* a mount, say */
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(rig_store_open(&r, 0, 0), -EBUSY);
	close(fd);
	ck_assert_int_eq(rig_store_open(&r, 0, 0), 0);
	ck_assert_int_eq(r.report.formatted, 1);
	rig_store_add(&r, &x[0], 1, 3, 100);
	rig_store_close(&r);
	ck_assert_int_eq(rig_store_open(&r, 0, KIO_STORE_SCRATCH), 0);
	ck_assert_int_eq(rig_store_take(&r, &scratch, 2, RIG_PAGE, 4, 0), 0);
	ck_assert_int_eq(rig_store_write(&r, &scratch), 0);
	ck_assert_int_eq(rig_store_read(&r, &scratch), 0);
	ck_assert_int_eq(rig_store_commit(&r, &scratch), -ENOTSUP);
	rig_store_close(&r);
	r.verdict = KIO_RECORD_KEEP;
	ck_assert_int_eq(rig_store_open(&r, 0, 0), 0);
	ck_assert_int_eq(detach(dev), 0);
	ck_assert_uint_eq(r.n_found, 1);
	ck_assert_int_eq(rig_store_read(&r, &r.found[0]), 0);
	fini();
}
END_TEST

static const struct {
	const char *what;
	enum kio_engine_kind kind;
	enum kio_fault_mode mode;
	const char *point;
	int err;
	enum kio_back back;
} cases[] = {
	{ "no holes: discards", KIO_ENGINE_AUTO, KIO_FAULT_FOREVER,
	  "uring.punch", EOPNOTSUPP, KIO_BACK_DISCARD },
	{ "the same on threads", KIO_ENGINE_THREADS, KIO_FAULT_FOREVER,
	  "sys.punch", EOPNOTSUPP, KIO_BACK_DISCARD },
	{ "no discards: holes", KIO_ENGINE_AUTO, KIO_FAULT_FOREVER,
	  "sys.discard", EOPNOTSUPP, KIO_BACK_HOLES },
	{ "one fails: a hole, and discards again", KIO_ENGINE_AUTO,
	  KIO_FAULT_ONCE, "sys.discard", EIO, KIO_BACK_DISCARD },
	{ "the thread does not start at once", KIO_ENGINE_AUTO, KIO_FAULT_ONCE,
	  "sys.thread", EAGAIN, KIO_BACK_DISCARD },
};

/* What is given back of a device is free behind it, by either way that it takes. */
START_TEST(space_goes_back_to_a_device)
{
	uint64_t full;
	uint32_t n;

	init(cases[_i].kind, "/dev/shm");
	ck_assert_int_eq(rig_store_open(&r, 0, 0), 0);
	ck_assert_int_eq(detach(r.path), 0);
	ck_assert_int_eq(info().gives_back, KIO_BACK_DISCARD);
	n = rig_store_fill(&r, x, N_MOST, BIG, PAGES);
	full = backing_bytes();
	ck_assert_uint_gt(full, info().slot_bytes);
	kio_fault_arm(cases[_i].mode, cases[_i].point, 1, cases[_i].err);
	for (uint32_t i = 10; i < n; i++) {
		x[i].handle = x[i].commit.handle;
		rig_store_del(&r, &x[i]);
	}
	rig_store_settle(&r);
	for (int i = 0; i < 2000 && backing_bytes() > full / 2; i++)
		rig_store_turn(&r);
	ck_assert_msg(backing_bytes() <= full / 2, "%s: %llu of %llu left",
		      cases[_i].what, (unsigned long long)backing_bytes(),
		      (unsigned long long)full);
	if (strcmp(cases[_i].point + strlen(cases[_i].point) - 5, "punch"))
		ck_assert_uint_gt(kio_fault_count(), 0);
	kio_fault_disarm();
	ck_assert_int_eq(info().gives_back, cases[_i].back);
	for (uint32_t i = 0; i < 10; i++)
		ck_assert_int_eq(rig_store_read(&r, &x[i]), 0);
	/* and it can be filled again */
	for (uint32_t i = 10; i < n; i++) {
		ck_assert_int_eq(
			rig_store_take(&r, &x[i], n + i, BIG, PAGES, 40), 0);
		ck_assert_int_eq(rig_store_write(&r, &x[i]), 0);
	}
	for (uint32_t i = 0; i < n; i += 7)
		ck_assert_int_eq(rig_store_read(&r, &x[i]), 0);
	kio_store_check(r.store);
	fini();
}
END_TEST

/* Closed in the middle of it: nothing waits for ever, or is left. */
START_TEST(a_store_is_closed_while_it_discards)
{
	uint32_t n;

	init(_i ? KIO_ENGINE_THREADS : KIO_ENGINE_AUTO, "/dev/shm");
	ck_assert_int_eq(rig_store_open(&r, 0, 0), 0);
	ck_assert_int_eq(detach(r.path), 0);
	n = rig_store_fill(&r, x, N_MOST, BIG, PAGES);
	for (uint32_t i = 0; i < n; i++) {
		x[i].handle = x[i].commit.handle;
		rig_store_del(&r, &x[i]);
	}
	while (!r.store->punch.busy)
		rig_store_turn(&r);
	fini();
}
END_TEST

static int has_loop_device(void)
{
	char file[] = "/dev/shm/kvd-loop-XXXXXX", dev[64];
	const int fd = mkstemp(file);
	int ret;

	if (fd < 0)
		return 0;
	ret = !ftruncate(fd, 1 << 20) && attach(file, dev) && !detach(dev);
	(void)unlink(file);
	close(fd);
	return ret;
}

int main(void)
{
	Suite *s = suite_create("store_device");
	TCase *t = tcase_create("store_device");
	SRunner *sr;
	int n;

	if (!has_loop_device()) {
		printf("skipped: no loop device\n");
		return 77;
	}
	tcase_set_timeout(t, 120);
	tcase_add_test(t, a_device_is_a_store_too);
	tcase_add_loop_test(t, space_goes_back_to_a_device, 0,
			    sizeof(cases) / sizeof(cases[0]));
	tcase_add_loop_test(t, a_store_is_closed_while_it_discards, 0, 2);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
