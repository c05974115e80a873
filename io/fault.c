/*
 * fault.c - named points at which tests make a call fail; see fault.h
 *
 * What is armed is guarded by m; the mode is also read without it, so that a
 * point costs one load when nothing is armed.
 */
#include "io/fault.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define PREFIX_MAX 32

static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int mode = KIO_FAULT_OFF; /* written under m */
static char prefix[PREFIX_MAX]; /* (m) */
static uint64_t count; /* (m) */
static uint64_t nth; /* (m) */
static int fault_err; /* (m) */

void kio_fault_arm(enum kio_fault_mode new_mode, const char *p, uint64_t n,
		   int err)
{
	pthread_mutex_lock(&m);
	strncpy(prefix, p, PREFIX_MAX - 1);
	count = 0;
	nth = n;
	fault_err = err;
	atomic_store(&mode, (int)new_mode);
	pthread_mutex_unlock(&m);
}

void kio_fault_disarm(void)
{
	pthread_mutex_lock(&m);
	atomic_store(&mode, KIO_FAULT_OFF);
	pthread_mutex_unlock(&m);
}

uint64_t kio_fault_count(void)
{
	uint64_t n;

	pthread_mutex_lock(&m);
	n = count;
	pthread_mutex_unlock(&m);
	return n;
}

int kio_fault(const char *name)
{
	int ret = 0;

	if (atomic_load_explicit(&mode, memory_order_relaxed) == KIO_FAULT_OFF)
		return 0;
	pthread_mutex_lock(&m);
	if (mode != KIO_FAULT_OFF && !strncmp(name, prefix, strlen(prefix))) {
		count++;
		if (count == nth || (mode == KIO_FAULT_FOREVER && count > nth))
			ret = -fault_err;
	}
	pthread_mutex_unlock(&m);
	return ret;
}
