/*
 * engine.h - run reads, writes, fallocate, discards: on io_uring, or on threads
 *
 * One thread (the loop's) queues, submits and reaps. Where io_uring is not to be
 * had, a few threads do pread/pwrite behind the same calls. Discards, which a device
 * may take its time for, are done by a thread of their own, one by one.
 */
#ifndef IO_ENGINE_H
#define IO_ENGINE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct kio_engine;

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
/* Start what was queued: one system call. */
void kio_engine_submit(struct kio_engine *e);
/*
 * Start what waited for room and what is to be continued, run done() of everything
 * completed, then start what those queued. Returns how many were done.
 */
int kio_engine_reap(struct kio_engine *e);

enum kio_op {
	KIO_OP_READ,
	KIO_OP_WRITE,
	KIO_OP_RESERVE, /* fallocate */
	KIO_OP_PUNCH, /* fallocate: give the blocks back, keep the size */
	KIO_OP_DISCARD, /* of a device: what is read there is not said */
};

/* One request; memory is the caller's until done(). */
struct kio_req {
	struct kio_req *next; /* the engine's */
	void *buf; /* 4 KiB aligned, n_bytes long; only reads and writes */
	size_t n_bytes;
	uint64_t block; /* store.h: where */
	off_t off; /* of the file; the store sets it */
	int op; /* enum kio_op */
	int fd;
	int i_fixed; /* of kio_engine_add_file(), or -1 */
	/*
	 * 1: a thread of the kernel starts it, not the one that submits, which has
	 * more urgent things to do. It may be overtaken; the store keeps it.
	 */
	int aside;
	/*
	 * NULL, or called before the bytes are transferred: on a thread of the engine, which
	 * then transfers them itself, and nobody else has to be woken. May be cleared.
	 */
	void (*prepare)(struct kio_req *r);
	uint64_t prepare_ns; /* how long that took; prepare() sets it */
	int ret; /* 0, -EIO, -ENOSPC or another -errno; all or nothing */
	size_t done_bytes; /* the engine's */
	void (*done)(struct kio_req *r);
};
/*
 * Queue r with buf, n_bytes, off, op, fd, i_fixed and done. It starts at the next
 * kio_engine_submit() or kio_engine_reap(); done() runs from kio_engine_reap().
 * Never fails at once; when the engine is full the request waits inside it.
 * Reading beyond the end of the file is -EIO.
 */
void kio_engine_queue(struct kio_engine *e, struct kio_req *r);
/*
 * Register fd: its number for the engine, or -1 when that cannot be had (no
 * io_uring, table full), which only costs time. Nothing is in flight on a
 * file that is removed.
 */
int kio_engine_add_file(struct kio_engine *e, int fd);
void kio_engine_del_file(struct kio_engine *e, int i_fixed);

#endif
