/*
 * fault.c - named points at which tests make a call fail; see fault.h
 */
#include "io/fault.h"

#include <stdatomic.h>
#include <string.h>

#define PREFIX_MAX 32

static _Atomic int mode = KIO_FAULT_OFF; /* released after the rest is set */
static _Atomic uint64_t count;
static char prefix[PREFIX_MAX];
static uint64_t nth;
static int fault_err;

void kio_fault_arm(enum kio_fault_mode m, const char *p, uint64_t n, int err)
{
	atomic_store(&mode, KIO_FAULT_OFF);
	strncpy(prefix, p, PREFIX_MAX - 1);
	nth = n;
	fault_err = err;
	atomic_store(&count, 0);
	atomic_store(&mode, (int)m);
}

void kio_fault_disarm(void)
{
	atomic_store(&mode, KIO_FAULT_OFF);
}

uint64_t kio_fault_count(void)
{
	return atomic_load(&count);
}

int kio_fault(const char *name)
{
	const int m = atomic_load_explicit(&mode, memory_order_relaxed);
	uint64_t n;

	if (m == KIO_FAULT_OFF || atomic_load(&mode) == KIO_FAULT_OFF ||
	    strncmp(name, prefix, strlen(prefix)))
		return 0;
	n = atomic_fetch_add(&count, 1) + 1;
	if (n == nth || (m == KIO_FAULT_FOREVER && n > nth))
		return -fault_err;
	return 0;
}
