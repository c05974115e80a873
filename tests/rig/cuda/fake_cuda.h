/*
 * fake_cuda.h - a CUDA driver over host memory, for tests
 *
 * build/tests/libfakecuda.so answers the calls of kernels/cuda_api.h. Device memory
 * is a memfd, reserved ranges are PROT_NONE, mapping and access are mmap() and
 * mprotect(): who touches what is not mapped dies. New memory is 0xcd, never
 * zero. A stream is a queue with a thread of its own; so copies are really
 * asynchronous, and an operation that meets memory without access is what it
 * is on a device: an illegal address, which ends the context.
 *
 * Tests reach what is here by dlsym() (rig_cuda.h). In a daemon, which nobody reaches, the
 * device is lost as soon as there is a file $FAKE_CUDA_LOST. Any thread.
 */
#ifndef RIG_CUDA_FAKE_CUDA_H
#define RIG_CUDA_FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

enum fake_mode {
	FAKE_OFF,
	FAKE_ONCE, /* the nth call fails, without effect; the others pass */
	FAKE_FOREVER, /* the nth and all later */
};

struct fake_stats {
	uint64_t used_bytes; /* device memory of handles that live */
	uint32_t n_handles, n_maps, n_reserved;
	uint32_t n_streams, n_events, n_pinned; /* host_register, host_alloc */
	uint32_t n_rdma; /* handles made for GPUDirect */
	uint32_t n_pageable; /* copies from or to memory that is not pinned */
	/* unmapped while a queued operation would use it, or mapped twice */
	uint32_t n_violations;
	int ctx_refs;
	uint64_t last_h2d; /* where the newest copy to the device goes */
};

/* X(name, return type, arguments): all of them are called fake_NAME. */
#define FAKE_CALLS(X) \
	/* Everything as it was when the library was loaded; waits for         \
	 * streams. total and granularity in bytes. */ \
	X(reset, void, (uint64_t total, size_t granularity)) \
	/* The nth (from 1) of the calls whose symbol starts with prefix. */ \
	X(arm, void, \
	  (enum fake_mode mode, const char *prefix, uint64_t nth, int err)) \
	/* Calls counted since arm(). */ \
	X(count, uint64_t, (void)) \
	/* Calls of one symbol since reset(). */ \
	X(calls, uint64_t, (const char *symbol)) \
	/* From now on every call fails with err; streams drop their work. */ \
	X(lose, void, (int err)) \
	/* The nth operation that streams execute from now on fails with err:  \
	 * as lose(), or, if not for good, for the next events of its stream   \
	 * only. */ \
	X(fail_op, void, (uint64_t nth, int err, int for_good)) \
	/* No stream executes anything until go(). */ \
	X(hold, void, (void)) \
	X(go, void, (void)) \
	/* n operations in all may pass while held. */ \
	X(step, void, (uint32_t n)) \
	/* Queue a "kernel" that writes value to [at, at + n). */ \
	X(kernel, int, (void *st, uint64_t at, size_t n, unsigned char value)) \
	/* Handles, plans and the like of fake_cublas.c that were not freed. */ \
	X(cublas_objects, int, (void)) \
	/* Of products with so many outputs only what splits is offered; 0: as ever. */ \
	X(cublas_refuse, void, (uint64_t n_outputs)) \
	/* Attention in f32 of heads of 64 by plain loops: other bits, not the kernel's; \
	 * for tests of what is around it. Until it is told otherwise. */ \
	X(quick, void, (int on)) \
	/* Memory that others have taken. */ \
	X(others, void, (uint64_t n)) \
	X(stats, void, (struct fake_stats * out))

#define FAKE_FIELD(name, type, args) type(*name) args;
struct fake_ctl {
	FAKE_CALLS(FAKE_FIELD)
};
#undef FAKE_FIELD

#endif
