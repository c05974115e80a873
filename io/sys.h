/*
 * sys.h - every system call of io and kvd/mem that can fail, with a fault point
 *
 * Each returns what the call returns, or -errno; EINTR is retried. The fault
 * point is "sys." and the name behind kio_sys_, save that openat shares
 * "sys.open" and fallocate with a mode (hole punching) is "sys.punch". munmap
 * has none: nobody could do anything about it; nor have taking a descriptor out of an
 * epoll set and the bells (reads and writes of an eventfd), which cannot fail but for
 * being empty or full. Descriptors are close-on-exec.
 */
#ifndef IO_SYS_H
#define IO_SYS_H

#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct epoll_event;
struct stat;
struct statfs;

int kio_sys_open(const char *path, int flags, mode_t mode);
int kio_sys_openat(int dir_fd, const char *path, int flags, mode_t mode);
int kio_sys_unlink(const char *path);
int kio_sys_eventfd(void); /* not blocking */
int kio_sys_memfd(const char *name, unsigned int flags);
int kio_sys_ftruncate(int fd, off_t n_bytes);
int kio_sys_fallocate(int fd, int mode, off_t off, off_t n_bytes);
int kio_sys_fdatasync(int fd);
/*
 * The directory that the name of this file stands in: a new file without it may be gone
 * when power is. 0 too where it may not be read (the name was there before) or its
 * file system has no such thing.
 */
int kio_sys_sync_dir(const char *path);
int kio_sys_fstat(int fd, struct stat *out);
int kio_sys_stat(const char *path, struct stat *out);
int kio_sys_fchmod(int fd, mode_t mode);
int kio_sys_add_seals(int fd, int seals);
int kio_sys_set_nonblock(int fd);
/* What a small file says, terminated: bytes or -errno. */
int kio_sys_read_text(const char *path, char *buf, size_t n);
/* Bytes, not terminated; n of them may be a part. */
int kio_sys_readlink(const char *path, char *buf, size_t n);
int kio_sys_mmap(void *at, size_t n_bytes, int prot, int flags, int fd,
		 off_t off, void **out);
int kio_sys_munmap(void *at, size_t n_bytes);
/* A mount that no path leads to (fsopen(2), "sys.fsopen" and so on): descriptors. */
int kio_sys_fsopen(const char *type);
int kio_sys_fsconfig(int fs, const char *key, const char *value);
int kio_sys_fsmount(int fs); /* as configured */
int kio_sys_fstatfs(int fd, struct statfs *out);
/* name: what top -H shows, 15 characters at most. */
int kio_sys_thread(pthread_t *out, void *(*run)(void *arg), void *arg,
		   const char *name);
/* 0, 1 and 2 are open, as /dev/null if need be: what is written to them is for nobody
 * else's file. At the start of a program; no fault point. */
void kio_sys_fill_std(void);
/* The whole file, for this open file alone: -EBUSY somebody has it. */
int kio_sys_lock(int fd);
/* A directory, the same way: a descriptor that has it. Point "sys.open", then this. */
int kio_sys_lock_dir(const char *path);
/* Closing it does not, as long as an io_uring has it as a registered file. */
void kio_sys_unlock(int fd);
int kio_sys_device_bytes(int fd, uint64_t *out);
/* Of a device: what is there afterwards is not said. -EOPNOTSUPP it cannot. */
int kio_sys_discard(int fd, off_t off, off_t n_bytes);
int kio_sys_random(void *buf, size_t n); /* n <= 256 */
int kio_sys_epoll(void);
int kio_sys_epoll_ctl(int epoll, int op, int fd, struct epoll_event *e);
/* The one that is not retried: -EINTR. */
int kio_sys_epoll_wait(int epoll, struct epoll_event *e, int n, int timeout_ms);
int kio_sys_poll(struct pollfd *p, nfds_t n, int timeout_ms);
int kio_sys_prefer_node(void *at, size_t n_bytes, const unsigned long *mask,
			unsigned long max_node);
int kio_sys_mlock_on_fault(void *at, size_t n_bytes);
int kio_sys_madvise(void *at, size_t n_bytes, int advice);
/* What is there, without waiting where the file can do that: bytes or -errno. */
ssize_t kio_sys_read_now(int fd, void *buf, size_t n);
/* userfaultfd(2); and its ioctls, "sys.uffd.continue", .copy, .poison, .wake, .api:
 * -EAGAIN is not retried here. */
int kio_sys_userfaultfd(int flags);
int kio_sys_uffd(int fd, unsigned long request, void *arg);
/*
 * Tests put a disk of their own below pread, pwrite and fdatasync: NULL is the
 * kernel's. Set while no other thread runs in io.
 */
struct kio_disk {
	ssize_t (*pread)(int fd, void *buf, size_t n, off_t off);
	ssize_t (*pwrite)(int fd, const void *buf, size_t n, off_t off);
	int (*fdatasync)(int fd);
};
extern const struct kio_disk *kio_sys_disk;
/* All n bytes, or -errno; -ENODATA when the file ends before. */
int kio_sys_pread(int fd, void *buf, size_t n, off_t off);
int kio_sys_pwrite(int fd, const void *buf, size_t n, off_t off);

#endif
