/*
 * sys.c - every system call that can fail, with a fault point; see sys.h
 */
#include "io/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "io/base.h"
#include "io/fault.h"

#define RETRY(ret, call) \
	do { \
		ret = (call); \
	} while (ret < 0 && errno == EINTR)

void kio_sys_fill_std(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		(void)close(fd); /* nothing was written */
}

int kio_sys_open(const char *path, int flags, mode_t mode)
{
	return kio_sys_openat(AT_FDCWD, path, flags, mode);
}

int kio_sys_openat(int dir_fd, const char *path, int flags, mode_t mode)
{
	int ret = kio_fault("sys.open");

	if (ret)
		return ret;
	RETRY(ret, openat(dir_fd, path, flags | O_CLOEXEC, mode));
	return ret < 0 ? -errno : ret;
}

int kio_sys_unlink(const char *path)
{
	const int ret = kio_fault("sys.unlink");

	if (ret)
		return ret;
	return unlink(path) ? -errno : 0;
}

int kio_sys_eventfd(void)
{
	int ret = kio_fault("sys.eventfd");

	if (ret)
		return ret;
	ret = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ret < 0 ? -errno : ret;
}

int kio_sys_memfd(const char *name, unsigned int flags)
{
	int ret = kio_fault("sys.memfd");

	if (ret)
		return ret;
	ret = memfd_create(name, flags | MFD_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

int kio_sys_ftruncate(int fd, off_t n_bytes)
{
	int ret = kio_fault("sys.ftruncate");

	if (ret)
		return ret;
	RETRY(ret, ftruncate(fd, n_bytes));
	return ret ? -errno : 0;
}

int kio_sys_fallocate(int fd, int mode, off_t off, off_t n_bytes)
{
	int ret = kio_fault(mode ? "sys.punch" : "sys.fallocate");

	if (ret)
		return ret;
	RETRY(ret, fallocate(fd, mode, off, n_bytes));
	return ret ? -errno : 0;
}

const struct kio_disk *kio_sys_disk;

int kio_sys_fdatasync(int fd)
{
	int ret = kio_fault("sys.fdatasync");

	if (ret)
		return ret;
	RETRY(ret, kio_sys_disk ? kio_sys_disk->fdatasync(fd) : fdatasync(fd));
	return ret ? -errno : 0;
}

int kio_sys_sync_dir(const char *path)
{
	int ret = kio_fault("sys.sync_dir");
	char *dir, *end;
	int fd;

	if (ret)
		return ret;
	dir = strdup(path);
	if (!dir)
		return -ENOMEM;
	end = strrchr(dir, '/');
	if (end)
		end[end == dir] = 0;
	fd = open(end ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(dir);
	if (fd < 0)
		return errno == EACCES ? 0 : -errno;
	RETRY(ret, fsync(fd));
	ret = ret && errno != EINVAL ? -errno : 0;
	(void)close(fd); /* only read */
	return ret;
}

int kio_sys_fstat(int fd, struct stat *out)
{
	const int ret = kio_fault("sys.fstat");

	if (ret)
		return ret;
	return fstat(fd, out) ? -errno : 0;
}

int kio_sys_stat(const char *path, struct stat *out)
{
	const int ret = kio_fault("sys.stat");

	if (ret)
		return ret;
	return stat(path, out) ? -errno : 0;
}

int kio_sys_add_seals(int fd, int seals)
{
	const int ret = kio_fault("sys.add_seals");

	if (ret)
		return ret;
	return fcntl(fd, F_ADD_SEALS, seals) ? -errno : 0;
}

int kio_sys_set_nonblock(int fd)
{
	const int ret = kio_fault("sys.set_nonblock");

	if (ret)
		return ret;
	return fcntl(fd, F_SETFL, O_NONBLOCK) ? -errno : 0;
}

int kio_sys_read_text(const char *path, char *buf, size_t n)
{
	int ret = kio_fault("sys.read_text");
	ssize_t got;
	int fd;

	if (ret)
		return ret;
	RETRY(fd, open(path, O_RDONLY | O_CLOEXEC));
	if (fd < 0)
		return -errno;
	RETRY(got, read(fd, buf, n - 1));
	ret = got < 0 ? -errno : (int)got;
	(void)close(fd); /* only read */
	if (ret >= 0)
		buf[ret] = '\0';
	return ret;
}

int kio_sys_readlink(const char *path, char *buf, size_t n)
{
	const int fault = kio_fault("sys.readlink");
	ssize_t ret;

	if (fault)
		return fault;
	ret = readlink(path, buf, n);
	return ret < 0 ? -errno : (int)ret;
}

int kio_sys_fchmod(int fd, mode_t mode)
{
	const int ret = kio_fault("sys.fchmod");

	if (ret)
		return ret;
	return fchmod(fd, mode) ? -errno : 0;
}

int kio_sys_mmap(void *at, size_t n_bytes, int prot, int flags, int fd,
		 off_t off, void **out)
{
	const int ret = kio_fault("sys.mmap");
	void *p;

	if (ret)
		return ret;
	p = mmap(at, n_bytes, prot, flags, fd, off);
	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

int kio_sys_fsopen(const char *type)
{
	int ret = kio_fault("sys.fsopen");

	if (ret)
		return ret;
	ret = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

int kio_sys_fsconfig(int fs, const char *key, const char *value)
{
	const int ret = kio_fault("sys.fsconfig");

	if (ret)
		return ret;
	return syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0)
		       ? -errno
		       : 0;
}

int kio_sys_fsmount(int fs)
{
	int ret = kio_fault("sys.fsmount");

	if (ret)
		return ret;
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -errno;
	ret = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	return ret < 0 ? -errno : ret;
}

int kio_sys_fstatfs(int fd, struct statfs *out)
{
	int ret = kio_fault("sys.fstatfs");

	if (ret)
		return ret;
	RETRY(ret, fstatfs(fd, out));
	return ret ? -errno : 0;
}

int kio_sys_thread(pthread_t *out, void *(*run)(void *arg), void *arg,
		   const char *name)
{
	int ret = kio_fault("sys.thread");

	if (!ret)
		ret = -pthread_create(out, NULL, run, arg);
	if (!ret)
		(void)pthread_setname_np(*out, name); /* for those who look */
	return ret;
}

int kio_sys_lock(int fd)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	const int ret = kio_fault("sys.lock");

	if (ret)
		return ret;
	if (!fcntl(fd, F_OFD_SETLK, &l))
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

int kio_sys_lock_dir(const char *path)
{
	const int fd = kio_sys_open(path, O_RDONLY | O_DIRECTORY, 0);
	int ret = fd < 0 ? fd : kio_fault("sys.lock_dir");

	if (!ret && flock(fd, LOCK_EX | LOCK_NB))
		ret = errno == EWOULDBLOCK ? -EBUSY : -errno;
	if (!ret)
		return fd;
	if (fd >= 0)
		(void)close(fd); /* only read */
	return ret;
}

void kio_sys_unlock(int fd)
{
	struct flock l = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

	/* fails only where there is none */
	(void)fcntl(fd, F_OFD_SETLK, &l);
}

int kio_sys_device_bytes(int fd, uint64_t *out)
{
	const int ret = kio_fault("sys.device_bytes");

	if (ret)
		return ret;
	return ioctl(fd, BLKGETSIZE64, out) ? -errno : 0;
}

int kio_sys_discard(int fd, off_t off, off_t n_bytes)
{
	uint64_t range[2] = { (uint64_t)off, (uint64_t)n_bytes };
	int ret = kio_fault("sys.discard");

	if (ret)
		return ret;
	RETRY(ret, ioctl(fd, BLKDISCARD, range));
	return ret ? -errno : 0;
}

int kio_sys_random(void *buf, size_t n)
{
	const int fault = kio_fault("sys.random");
	ssize_t ret;

	if (fault)
		return fault;
	RETRY(ret, getrandom(buf, n, 0));
	return ret == (ssize_t)n ? 0 : ret < 0 ? -errno : -EIO;
}

int kio_sys_epoll(void)
{
	int ret = kio_fault("sys.epoll");

	if (ret)
		return ret;
	ret = epoll_create1(EPOLL_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

int kio_sys_epoll_ctl(int epoll, int op, int fd, struct epoll_event *e)
{
	const int ret = kio_fault("sys.epoll_ctl");

	if (ret)
		return ret;
	return epoll_ctl(epoll, op, fd, e) ? -errno : 0;
}

int kio_sys_epoll_wait(int epoll, struct epoll_event *e, int n, int timeout_ms)
{
	int ret = kio_fault("sys.epoll_wait");

	if (ret)
		return ret;
	ret = epoll_wait(epoll, e, n, timeout_ms);
	return ret < 0 ? -errno : ret;
}

int kio_sys_poll(struct pollfd *p, nfds_t n, int timeout_ms)
{
	int ret = kio_fault("sys.poll");

	if (ret)
		return ret;
	RETRY(ret, poll(p, n, timeout_ms));
	return ret < 0 ? -errno : ret;
}

int kio_sys_prefer_node(void *at, size_t n_bytes, const unsigned long *mask,
			unsigned long max_node)
{
	const int ret = kio_fault("sys.mbind");

	if (ret)
		return ret;
	return syscall(SYS_mbind, at, n_bytes, MPOL_PREFERRED, mask, max_node,
		       0)
		       ? -errno
		       : 0;
}

int kio_sys_mlock_on_fault(void *at, size_t n_bytes)
{
	const int ret = kio_fault("sys.mlock");

	if (ret)
		return ret;
	return mlock2(at, n_bytes, MLOCK_ONFAULT) ? -errno : 0;
}

int kio_sys_madvise(void *at, size_t n_bytes, int advice)
{
	int ret = kio_fault("sys.madvise");

	if (ret)
		return ret;
	RETRY(ret, madvise(at, n_bytes, advice));
	return ret ? -errno : 0;
}

ssize_t kio_sys_read_now(int fd, void *buf, size_t n)
{
	const struct iovec v = { buf, n };
	const int fault = kio_fault("sys.read_now");
	ssize_t ret;

	if (fault)
		return fault;
	ret = preadv2(fd, &v, 1, -1, RWF_NOWAIT);
	if (ret < 0 && (errno == EOPNOTSUPP || errno == EINVAL))
		ret = read(fd, buf, n);
	return ret < 0 ? -errno : ret;
}

int kio_sys_userfaultfd(int flags)
{
	int ret = kio_fault("sys.userfaultfd");

	if (ret)
		return ret;
	ret = (int)syscall(SYS_userfaultfd, flags | O_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

static const char *uffd_point(unsigned long request)
{
	switch (_IOC_NR(request)) {
	case 0x02:
		return "sys.uffd.wake";
	case 0x03:
		return "sys.uffd.copy";
	case 0x07:
		return "sys.uffd.continue";
	case 0x08:
		return "sys.uffd.poison";
	default:
		return "sys.uffd.api";
	}
}

int kio_sys_uffd(int fd, unsigned long request, void *arg)
{
	int ret = kio_fault(uffd_point(request));

	if (ret)
		return ret;
	RETRY(ret, ioctl(fd, request, arg));
	return ret < 0 ? -errno : ret;
}

int kio_sys_munmap(void *at, size_t n_bytes)
{
	return munmap(at, n_bytes) ? -errno : 0;
}

int kio_sys_pread(int fd, void *buf, size_t n, off_t off)
{
	const int fault = kio_fault("sys.pread");
	char *p = buf;

	if (fault)
		return fault;
	while (n) {
		const ssize_t got = kio_sys_disk
					    ? kio_sys_disk->pread(fd, p, n, off)
					    : pread(fd, p, n, off);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? -errno : -ENODATA;
		p += got;
		off += got;
		n -= (size_t)got;
	}
	return 0;
}

int kio_sys_pwrite(int fd, const void *buf, size_t n, off_t off)
{
	const int fault = kio_fault("sys.pwrite");
	const char *p = buf;

	if (fault)
		return fault;
	while (n) {
		const ssize_t put =
			kio_sys_disk ? kio_sys_disk->pwrite(fd, p, n, off)
				     : pwrite(fd, p, n, off);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put ? -errno : -EIO;
		p += put;
		off += put;
		n -= (size_t)put;
	}
	return 0;
}
