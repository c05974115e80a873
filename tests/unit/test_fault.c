/*
 * test_fault.c - fault points, and the system calls that have one
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/sys.h"

START_TEST(off_by_default)
{
	ck_assert_int_eq(kio_fault("sys.open"), 0);
	ck_assert_uint_eq(kio_fault_count(), 0);
}
END_TEST

START_TEST(once_fails_the_nth_only)
{
	kio_fault_arm(KIO_FAULT_ONCE, "", 3, EIO);
	ck_assert_int_eq(kio_fault("a"), 0);
	ck_assert_int_eq(kio_fault("b"), 0);
	ck_assert_int_eq(kio_fault("c"), -EIO);
	ck_assert_int_eq(kio_fault("d"), 0);
	ck_assert_uint_eq(kio_fault_count(), 4);
	kio_fault_disarm();
	ck_assert_int_eq(kio_fault("e"), 0);
	ck_assert_uint_eq(kio_fault_count(), 4);
}
END_TEST

START_TEST(forever_fails_from_the_nth_on)
{
	kio_fault_arm(KIO_FAULT_FOREVER, "", 2, ENOSPC);
	ck_assert_int_eq(kio_fault("a"), 0);
	ck_assert_int_eq(kio_fault("a"), -ENOSPC);
	ck_assert_int_eq(kio_fault("a"), -ENOSPC);
	kio_fault_disarm();
}
END_TEST

START_TEST(only_the_prefix_counts)
{
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.", 1, EIO);
	ck_assert_int_eq(kio_fault("sys.open"), 0);
	ck_assert_int_eq(kio_fault("uring"), 0);
	ck_assert_int_eq(kio_fault("uring.read"), -EIO);
	ck_assert_uint_eq(kio_fault_count(), 1);
	kio_fault_arm(KIO_FAULT_FOREVER, "s", 1, EIO);
	ck_assert_uint_eq(kio_fault_count(), 0);
	ck_assert_int_eq(kio_fault("sys.open"), -EIO);
	kio_fault_disarm();
}
END_TEST

static int fd;
static struct stat st;
static struct statfs stfs;
static void *map;
static char byte, text[8];

static int try_open(void)
{
	const int got = kio_sys_open("/dev/null", O_RDONLY, 0);

	return got < 0 ? got : close(got);
}
static int try_memfd(void)
{
	const int got = kio_sys_memfd("t", 0);

	return got < 0 ? got : close(got);
}
static int try_eventfd(void)
{
	const int got = kio_sys_eventfd();

	return got < 0 ? got : close(got);
}
static int try_unlink(void)
{
	const int ret = kio_sys_unlink("/nonexistent/kvd");

	return ret == -ENOENT ? 0 : ret;
}
static int try_ftruncate(void)
{
	return kio_sys_ftruncate(fd, 8192);
}
static int try_fallocate(void)
{
	return kio_sys_fallocate(fd, 0, 0, 4096);
}
static int try_punch(void)
{
	return kio_sys_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 0, 4096);
}
static int try_discard(void)
{
	const int ret = kio_sys_discard(fd, 0, 4096);

	return ret == -ENOTTY ? 0 : ret; /* no device */
}
static int try_fstat(void)
{
	return kio_sys_fstat(fd, &st);
}
static int try_fchmod(void)
{
	return kio_sys_fchmod(fd, 0600);
}
static int try_pread(void)
{
	return kio_sys_pread(fd, &byte, 1, 0);
}
static int try_pwrite(void)
{
	return kio_sys_pwrite(fd, &byte, 1, 0);
}
static int try_mmap(void)
{
	const int ret =
		kio_sys_mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0, &map);

	return ret ? ret : kio_sys_munmap(map, 4096);
}

static int try_sync_dir(void)
{
	return kio_sys_sync_dir("/dev/shm/any");
}
static int try_fstatfs(void)
{
	return kio_sys_fstatfs(fd, &stfs);
}
static int try_random(void)
{
	return kio_sys_random(&byte, 1);
}
static int try_lock(void)
{
	return kio_sys_lock(fd);
}

static int try_stat(void)
{
	return kio_sys_stat("/dev/null", &st);
}
static int try_madvise(void)
{
	const int ret = kio_sys_mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &map);
	const int said = kio_sys_madvise(map, 4096, MADV_DONTDUMP);

	return ret ? ret : kio_sys_munmap(map, 4096) ? -EINVAL : said;
}
static int try_add_seals(void)
{
	return kio_sys_add_seals(fd, F_SEAL_GROW);
}
static int try_set_nonblock(void)
{
	return kio_sys_set_nonblock(fd);
}
static int try_read_text(void)
{
	const int ret = kio_sys_read_text("/proc/self/comm", text, 5);

	return ret < 0 ? ret : ret == 4 && !text[4] ? 0 : -EINVAL;
}
static int try_readlink(void)
{
	const int ret = kio_sys_readlink("/proc/self/exe", text, 5);

	return ret < 0 ? ret : ret == 5 ? 0 : -EINVAL;
}
static int try_poll(void)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	const int ret = kio_sys_poll(&p, 1, 0);

	return ret < 0 ? ret : ret == 1 ? 0 : -EINVAL;
}
static int try_epoll_wait(void)
{
	struct epoll_event e;
	const int at = kio_sys_epoll();
	const int ret = kio_sys_epoll_wait(at, &e, 1, 0);

	return at < 0 || close(at) ? -EINVAL : ret;
}

static const struct {
	const char *point;
	int (*call)(void);
} calls[] = {
	{ "sys.open", try_open },
	{ "sys.memfd", try_memfd },
	{ "sys.eventfd", try_eventfd },
	{ "sys.unlink", try_unlink },
	{ "sys.ftruncate", try_ftruncate },
	{ "sys.fallocate", try_fallocate },
	{ "sys.punch", try_punch },
	{ "sys.discard", try_discard },
	{ "sys.fstat", try_fstat },
	{ "sys.fchmod", try_fchmod },
	{ "sys.pread", try_pread },
	{ "sys.pwrite", try_pwrite },
	{ "sys.mmap", try_mmap },
	{ "sys.sync_dir", try_sync_dir },
	{ "sys.fstatfs", try_fstatfs },
	{ "sys.random", try_random },
	{ "sys.lock", try_lock },
	{ "sys.stat", try_stat },
	{ "sys.madvise", try_madvise },
	{ "sys.add_seals", try_add_seals },
	{ "sys.set_nonblock", try_set_nonblock },
	{ "sys.read_text", try_read_text },
	{ "sys.readlink", try_readlink },
	{ "sys.poll", try_poll },
	{ "sys.epoll_wait", try_epoll_wait },
};

/* Works, fails when told to, works again. */
START_TEST(each_call_has_its_point)
{
	fd = kio_sys_memfd("test", MFD_ALLOW_SEALING);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(kio_sys_ftruncate(fd, 4096), 0);
	ck_assert_int_eq(calls[_i].call(), 0);
	kio_fault_arm(KIO_FAULT_ONCE, calls[_i].point, 1, EUCLEAN);
	ck_assert_int_eq(calls[_i].call(), -EUCLEAN);
	ck_assert_int_eq(calls[_i].call(), 0);
	ck_assert_uint_eq(kio_fault_count(), 2);
	kio_fault_disarm();
	close(fd);
}
END_TEST

START_TEST(real_errors_are_told)
{
	char buf[16];

	ck_assert_int_eq(kio_sys_open("/nonexistent/x", O_RDONLY, 0), -ENOENT);
	ck_assert_int_eq(kio_sys_fstat(-1, &st), -EBADF);
	fd = kio_sys_memfd("test", 0);
	ck_assert_int_eq(kio_sys_pwrite(fd, "0123", 4, 0), 0);
	ck_assert_int_eq(kio_sys_pread(fd, buf, 4, 0), 0);
	ck_assert_mem_eq(buf, "0123", 4);
	ck_assert_int_eq(kio_sys_pread(fd, buf, 5, 0), -ENODATA);
	ck_assert_int_ne(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
	close(fd);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fault");
	TCase *tc = tcase_create("fault");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, off_by_default);
	tcase_add_test(tc, once_fails_the_nth_only);
	tcase_add_test(tc, forever_fails_from_the_nth_on);
	tcase_add_test(tc, only_the_prefix_counts);
	tcase_add_loop_test(tc, each_call_has_its_point, 0,
			    (int)(sizeof(calls) / sizeof(calls[0])));
	tcase_add_test(tc, real_errors_are_told);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
