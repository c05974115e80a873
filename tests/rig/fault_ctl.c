/*
 * fault_ctl.c - a daemon whose system calls fail when a test says so
 */
#include "tests/rig/fault_ctl.h"

#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char path[96];

int rig_fault_use(void)
{
	char bin[4096];
	const ssize_t n = readlink("/proc/self/exe", bin, sizeof(bin) - 32);
	char *slash;

	if (n <= 0)
		return -1;
	bin[n] = '\0';
	slash = strrchr(bin, '/');
	strcpy(slash, "/kvd-faulty");
	if (access(bin, X_OK) || setenv("KVD_BIN", bin, 1))
		return -1;
	snprintf(path, sizeof(path), "/tmp/kvd-fault-%d", getpid());
	return setenv("KVD_FAULT", path, 1);
}

uint64_t rig_fault(const char *fmt, ...)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	char text[128];
	uint64_t count;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	strcpy(a.sun_path, path);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	ck_assert_int_gt(send(fd, text, strlen(text), 0), 0);
	ck_assert_int_eq(recv(fd, &count, sizeof(count), 0), sizeof(count));
	close(fd);
	return count;
}
