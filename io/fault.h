/*
 * fault.h - named points at which tests make a call fail
 *
 * io/sys.c asks at every system call that can fail, io/ring.c at every
 * completion. Off (the default) costs one relaxed load.
 */
#ifndef IO_FAULT_H
#define IO_FAULT_H

#include <stdint.h>

enum kio_fault_mode {
	KIO_FAULT_OFF,
	KIO_FAULT_ONCE,	   /* the nth point reached fails, the others pass */
	KIO_FAULT_FOREVER, /* the nth and all later ones fail */
};

/* Arm: the nth (from 1) fault point whose name starts with prefix ("" all) fails with -err. */
void kio_fault_arm(enum kio_fault_mode mode, const char *prefix, uint64_t nth,
		   int err);
void kio_fault_disarm(void);
/* Points counted since the last arm; tells a sweep when to end. */
uint64_t kio_fault_count(void);
/* Asked at a fault point: 0, or the -errno to pretend. Any thread. */
int kio_fault(const char *name);

#endif
