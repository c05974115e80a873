/*
 * bad_block.c - a disk of which some blocks cannot be used; see bad_block.h
 */
#include "tests/rig/bad_block.h"

#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>
#include "io/sys.h"

static _Atomic int64_t bad_from, bad_to;
static _Atomic uint64_t n_refused;

static int is_bad(size_t n, off_t at)
{
	if (at >= bad_to || at + (off_t)n <= bad_from)
		return 0;
	n_refused++;
	errno = EIO;
	return 1;
}

static ssize_t bad_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	return is_bad(n, at) ? -1 : pwrite(fd, buf, n, at);
}

static ssize_t bad_pread(int fd, void *buf, size_t n, off_t at)
{
	return is_bad(n, at) ? -1 : pread(fd, buf, n, at);
}

static const struct kio_disk bad = { .pread = pread,
				     .pwrite = bad_pwrite,
				     .fdatasync = fdatasync };
static const struct kio_disk unreadable = { .pread = bad_pread,
					    .pwrite = pwrite,
					    .fdatasync = fdatasync };

static void begin(int64_t from, int64_t to, const struct kio_disk *disk)
{
	bad_from = from;
	bad_to = to;
	n_refused = 0;
	kio_sys_disk = disk;
}

void bad_block_begin(int64_t from, int64_t to)
{
	begin(from, to, &bad);
}

void bad_block_unreadable(int64_t from, int64_t to)
{
	begin(from, to, &unreadable);
}

uint64_t bad_block_end(void)
{
	kio_sys_disk = NULL;
	return n_refused;
}
