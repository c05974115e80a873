/*
 * clock.h - monotonic time; tests may replace it
 */
#ifndef KVD_BASE_CLOCK_H
#define KVD_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC, or of the test's clock. Any thread. */
uint64_t clock_ns(void);
/* Tests: fixed time from now on; 0 goes back to the real one. */
void clock_set(uint64_t now_ns);

#endif
