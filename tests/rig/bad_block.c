/*
 * bad_block.c - a disk of which some blocks cannot be written; see bad_block.h
 */
#include "tests/rig/bad_block.h"

#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>
#include "io/sys.h"

static _Atomic int64_t bad_from, bad_to;
static _Atomic uint64_t n_refused;

static ssize_t bad_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	if (at < bad_to && at + (off_t)n > bad_from) {
		n_refused++;
		errno = EIO;
		return -1;
	}
	return pwrite(fd, buf, n, at);
}

static const struct kio_disk bad = { .pread = pread,
				     .pwrite = bad_pwrite,
				     .fdatasync = fdatasync };

void bad_block_begin(int64_t from, int64_t to)
{
	bad_from = from;
	bad_to = to;
	n_refused = 0;
	kio_sys_disk = &bad;
}

uint64_t bad_block_end(void)
{
	kio_sys_disk = NULL;
	return n_refused;
}
