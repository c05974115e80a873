/*
 * pagefile.h - a file of fixed-size slots, O_DIRECT through io_uring
 *
 * The lower tier of one page size of one tenant: a slot is written once and
 * read any number of times, then freed. Nothing here survives a restart (the
 * page store does). One thread (the loop's) submits and reaps; where
 * io_uring is not to be had, a few threads do pread/pwrite behind the same
 * calls.
 */
#ifndef IO_PAGEFILE_H
#define IO_PAGEFILE_H

#include <stddef.h>
#include <stdint.h>

struct kio_engine;
struct kio_pagefile;

enum kio_engine_kind { KIO_ENGINE_AUTO, KIO_ENGINE_URING, KIO_ENGINE_THREADS };

/*
 * One engine for many files. depth: requests in flight (0: 32). Completions
 * make the event fd readable; then call kio_engine_reap(). AUTO takes threads
 * where io_uring cannot be set up, for whatever reason. 0, -ENOMEM, -errno.
 */
int kio_engine_new(struct kio_engine **out, enum kio_engine_kind kind,
		   uint32_t depth);
/* Waits for what is queued and in flight, with its done(). NULL is fine. */
void kio_engine_free(struct kio_engine *e);
int kio_engine_event_fd(const struct kio_engine *e);
/* "io_uring" or "threads". */
const char *kio_engine_name(const struct kio_engine *e);
/* Start what was queued by read and write: one system call. */
void kio_engine_submit(struct kio_engine *e);
/*
 * Run done() of everything completed, then start what waited for room and what
 * is to be continued. Returns how many were done.
 */
int kio_engine_reap(struct kio_engine *e);

/* One request; memory is the caller's until done(). */
struct kio_req {
	struct kio_req *next; /* the engine's */
	void *buf; /* 4 KiB aligned, slot_bytes long */
	uint64_t slot;
	int ret; /* 0, -EIO, -ENOSPC or another -errno; all or nothing */
	int op; /* the engine's */
	struct kio_pagefile *file; /* the engine's */
	size_t done_bytes; /* the engine's */
	void (*done)(struct kio_req *r);
};

/*
 * Create path (0600, truncated if it exists, no symbolic link) for at most
 * max_slots slots of slot_bytes (multiple of 4096) and unlink it at once, so
 * it never outlives the process. Filesystems without O_DIRECT are used
 * buffered. 0, -EINVAL, -ENOMEM, -errno of open and unlink.
 */
int kio_pagefile_new(struct kio_pagefile **out, struct kio_engine *e,
		     const char *path, size_t slot_bytes, uint64_t max_slots);
/* None of the caller's requests is in flight. Before kio_engine_free(). */
void kio_pagefile_free(struct kio_pagefile *f);
/*
 * Reserve a slot: the number of the lowest free one, or -ENOSPC when max_slots
 * are in use. That the disk is full is told by the write. Never waits. Room for
 * the next slots is allocated ahead (16 MiB, as far as max_slots allow) by the
 * engine, so that writes do not wait for each other in the file system.
 */
int64_t kio_pagefile_alloc(struct kio_pagefile *f);
/*
 * Give it back; nothing is in flight on it. Disk space comes back lazily: up to
 * 64 MiB of free slots keep their blocks for the next writes; beyond that
 * holes are punched by the engine, from the end of the file, down to 32 MiB.
 */
void kio_pagefile_release(struct kio_pagefile *f, uint64_t slot);
uint64_t kio_pagefile_n_used(const struct kio_pagefile *f);
int kio_pagefile_direct(const struct kio_pagefile *f); /* 1: O_DIRECT */
/* The file's descriptor (borrowed), for tests that flip bits in it. */
int kio_pagefile_fd(const struct kio_pagefile *f);

/*
 * Queue r; it starts at the next kio_engine_submit() or kio_engine_reap(), and
 * done() runs from kio_engine_reap(). Never fails at once; when the engine is
 * full the request waits inside it. Reading a slot that was not written is -EIO
 * or zeros.
 */
void kio_pagefile_read(struct kio_pagefile *f, struct kio_req *r);
void kio_pagefile_write(struct kio_pagefile *f, struct kio_req *r);

#endif
