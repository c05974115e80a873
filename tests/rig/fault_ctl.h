/*
 * fault_ctl.h - a daemon whose system calls fail when a test says so: the real
 * one, linked with rig/kvd/faulty.c
 */
#ifndef TESTS_RIG_FAULT_CTL_H
#define TESTS_RIG_FAULT_CTL_H

#include <stdint.h>

/*
 * From here on rig_daemon_start() starts kvd-faulty (beside the test's binary).
 * 0, or -1 when there is none.
 */
int rig_fault_use(void);
/*
 * Arm "once|forever PREFIX NTH ERRNO", "hang" or "off" (rig/kvd/faulty.c) in the running daemon; returns
 * the points counted since the last call. Asserts.
 */
uint64_t rig_fault(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
