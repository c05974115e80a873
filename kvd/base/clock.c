/*
 * clock.c - monotonic time; see clock.h
 */
#include "kvd/base/clock.h"

#include <stdatomic.h>
#include <time.h>

static _Atomic uint64_t fixed_ns;

uint64_t clock_ns(void)
{
	const uint64_t fixed =
		atomic_load_explicit(&fixed_ns, memory_order_relaxed);
	struct timespec ts;

	if (fixed)
		return fixed;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void clock_set(uint64_t now_ns)
{
	atomic_store_explicit(&fixed_ns, now_ns, memory_order_relaxed);
}
