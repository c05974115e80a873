/*
 * fault.h - named points at which tests make a call fail
 *
 * io/sys.c asks at every system call that can fail ("sys.open" ...),
 * io/engine.c at every completion ("uring.read", "uring.write", "uring.punch",
 * "uring.reserve", "uring.discard"), at set-up and submission ("uring.setup", "uring.register",
 * "uring.files", "uring.file", "uring.submit"),
 * and whether to call a transfer short ("uring.short": any err). The threads
 * engine has the same points. Off (the default) costs one relaxed load.
 */
#ifndef IO_FAULT_H
#define IO_FAULT_H

#include <stdint.h>

enum kio_fault_mode {
	KIO_FAULT_OFF,
	KIO_FAULT_ONCE, /* the nth point reached fails, the others pass */
	KIO_FAULT_FOREVER, /* the nth and all later ones fail */
};

/*
 * Arm: the nth (from 1) point reached whose name starts with prefix ("" all, at
 * most 31 bytes) fails with -err. Any thread.
 */
void kio_fault_arm(enum kio_fault_mode mode, const char *prefix, uint64_t nth,
		   int err);
void kio_fault_disarm(void);
/* Points counted since the last arm; tells a sweep when to end. */
uint64_t kio_fault_count(void);
/* Asked at a fault point: 0, or the -errno to pretend. Any thread. */
int kio_fault(const char *name);

#endif
