/*
 * faulty.c - linked into a kvd of the tests (build/tests/kvd-faulty), never into
 * the real one: arms the points of io/fault.h from outside
 *
 * KVD_FAULT_START="MODE PREFIX NTH ERRNO" arms before main(). KVD_FAULT=PATH: a
 * thread answers on a SOCK_SEQPACKET socket there; each message of that form
 * (or "off") is answered with the number of points counted since the last one.
 *
 * "hang": from now on no pread, pwrite or fdatasync ends, till another message comes. What
 * io_uring does is not held up: see uring.setup.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/sys.h"
#include "tests/rig/rig_alloc.h"

static _Atomic int hangs;

static void hang(void)
{
	while (hangs)
		(void)usleep(10000);
}

static ssize_t hung_pread(int fd, void *buf, size_t n, off_t at)
{
	hang();
	return pread(fd, buf, n, at);
}

static ssize_t hung_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	hang();
	return pwrite(fd, buf, n, at);
}

static int hung_fdatasync(int fd)
{
	hang();
	return fdatasync(fd);
}

static const struct kio_disk hung_disk = { .pread = hung_pread,
					   .pwrite = hung_pwrite,
					   .fdatasync = hung_fdatasync };

static void arm(const char *text)
{
	char mode[16] = "", prefix[32] = "";
	unsigned long long nth = 0;
	int err = 0;

	hangs = !strcmp(text, "hang");
	if (sscanf(text, "%15s %31s %llu %d", mode, prefix, &nth, &err) != 4) {
		kio_fault_disarm();
		return;
	}
	kio_fault_arm(strcmp(mode, "once") ? KIO_FAULT_FOREVER : KIO_FAULT_ONCE,
		      prefix, nth, err);
}

static void *serve(void *arg)
{
	const int fd = (int)(intptr_t)arg;

	for (;;) {
		const int c = accept(fd, NULL, NULL);
		char text[128];
		uint64_t count;
		ssize_t n;

		if (c < 0)
			return NULL;
		while ((n = recv(c, text, sizeof(text) - 1, 0)) > 0) {
			text[n] = '\0';
			count = kio_fault_count();
			arm(text);
			if (send(c, &count, sizeof(count), MSG_NOSIGNAL) < 0)
				break;
		}
		close(c);
	}
}

static void die(const char *what)
{
	perror(what);
	_exit(99);
}

__attribute__((constructor)) static void faulty(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const char *start = getenv("KVD_FAULT_START");
	const char *path = getenv("KVD_FAULT");
	sigset_t all, old;
	pthread_t t;
	int fd;

	rig_alloc_fails = 1; /* where "mem." is armed */
	kio_sys_disk = &hung_disk;
	if (start)
		arm(start);
	if (!path)
		return;
	(void)unlink(path);
	strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) ||
	    listen(fd, 4))
		die(path);
	sigfillset(&all); /* signals are for main's threads */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&t, NULL, serve, (void *)(intptr_t)fd))
		die("pthread_create");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}
