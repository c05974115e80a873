/*
 * switches.c - see switches.h
 */
#include "tests/rig/switches.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIR_OF_THEM "/sys/kernel/mm/transparent_hugepage"
#define LEAST_KIB   16u
#define MOST_KIB    2048u

static void path_of(char path[128], unsigned int kib, const char *name)
{
	(void)snprintf(path, 128, DIR_OF_THEM "/hugepages-%ukB%s", kib, name);
}

static int put(unsigned int kib, const char *word)
{
	char path[128], text[32];
	const int n = snprintf(text, sizeof(text), "[%s]\n", word);
	int fd, ok;

	path_of(path, kib, "");
	if (mkdir(path, 0755))
		return -errno;
	path_of(path, kib, "/shmem_enabled");
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		return -errno;
	ok = write(fd, text, (size_t)n) == n;
	return close(fd) || !ok ? -EIO : 0;
}

int rig_switches(const char *word)
{
	int ret = 0;

	if (access(DIR_OF_THEM, F_OK) || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("rig", DIR_OF_THEM, "tmpfs", 0, "mode=755"))
		return -errno;
	for (unsigned int kib = LEAST_KIB; !ret && kib <= MOST_KIB; kib *= 2)
		ret = put(kib, word);
	return ret;
}

int rig_switch_is(unsigned int kib, const char *text)
{
	char path[128], is[32] = "";
	int fd;

	path_of(path, kib, "/shmem_enabled");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (read(fd, is, sizeof(is) - 1) < 0)
		is[0] = '\0';
	(void)close(fd);
	return !strncmp(is, text, strlen(text));
}
