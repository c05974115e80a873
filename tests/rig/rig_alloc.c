/*
 * rig_alloc.c - kvd's allocations as fault points; see rig_alloc.h
 */
#include "tests/rig/rig_alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/fault.h"

int rig_alloc_fails;

static int fails(void)
{
	if (!rig_alloc_fails || !kio_fault("mem.alloc"))
		return 0;
	errno = ENOMEM;
	return 1;
}

void *rig_malloc(size_t n)
{
	return fails() ? NULL : malloc(n);
}

void *rig_calloc(size_t n, size_t each)
{
	return fails() ? NULL : calloc(n, each);
}

void *rig_realloc(void *p, size_t n)
{
	return fails() ? NULL : realloc(p, n);
}

char *rig_strdup(const char *s)
{
	return fails() ? NULL : strdup(s);
}

int rig_posix_memalign(void **out, size_t align, size_t n)
{
	return fails() ? ENOMEM : posix_memalign(out, align, n);
}
