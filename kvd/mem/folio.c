/*
 * folio.c - the folios of pages in a memfd; see folio.h
 */
#include "kvd/mem/folio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "io/base.h"
#include "io/sys.h"

#define LEAST (16u << 10)
#define MOST  (2u << 20)
#define SYS   "/sys/kernel/mm/transparent_hugepage"

size_t folio_of(size_t page_bytes)
{
	const size_t n = page_bytes & -page_bytes;

	return n < LEAST ? 0 : KV_MIN(n, (size_t)MOST);
}

static void path_of(char path[96], size_t bytes)
{
	(void)snprintf(path, 96, SYS "/hugepages-%zukB/shmem_enabled",
		       bytes >> 10);
}

/* 1, 0, -errno */
static int is_on(const char *path)
{
	char text[128];
	int ret = kio_sys_read_text(path, text, sizeof(text));

	if (ret >= 0 && strstr(text, "[inherit]"))
		ret = kio_sys_read_text(SYS "/shmem_enabled", text,
					sizeof(text));
	return ret < 0 ? ret
		       : strstr(text, "[always]") || strstr(text, "[advise]") ||
				 strstr(text, "[within_size]");
}

int folio_is_on(size_t bytes)
{
	char path[96];

	path_of(path, bytes);
	return is_on(path) == 1;
}

char *folio_shift(char *at, size_t bytes)
{
	const uintptr_t from = (uintptr_t)at % (2 * bytes);

	return at + (from <= bytes ? bytes - from : 3 * bytes - from);
}

static int switch_on(const char *path)
{
	const int fd = kio_sys_open(path, O_WRONLY, 0);
	int ret;

	if (fd < 0)
		return fd;
	ret = kio_sys_pwrite(fd, "advise", 6, 0);
	(void)close(fd);
	return ret;
}

int folio_switch_on(void)
{
	int n = 0, err = 0;

	for (size_t bytes = LEAST; bytes <= MOST; bytes *= 2) {
		char path[96];
		int ret;

		path_of(path, bytes);
		ret = is_on(path);
		if (!ret)
			ret = switch_on(path);
		n += ret >= 0;
		err = KV_MIN(err, ret);
	}
	return n ? n : err;
}
