/*
 * uffd.h - page faults of clients on what they have mapped, by userfaultfd
 *
 *   client touches --> kernel queues --> thread reads --> peer->fault() on the loop
 *   client goes on <-- kernel wakes  <-- thread: ioctl <-- uffd_start() by the loop
 *
 * One struct uffd with one thread per tenant: userfaultfd calls take the client's
 * mmap lock, so they may take as long as that client pleases, and only its own
 * tenant waits. A peer is one descriptor that a client made and passed: everything
 * about it is hostile, and what is done to it can only change that client's memory.
 *
 * Thread: the loop thread calls all of this; callbacks run there too.
 */
#ifndef KVD_MEM_UFFD_H
#define KVD_MEM_UFFD_H

#include <stddef.h>
#include <stdint.h>
#include "kvd/base/loop.h"

struct uffd;

#define UFFD_CAN_SHARE 1 /* files can be shared: CONTINUE of shared memory */
#define UFFD_CAN_COPY  2 /* only anonymous memory can be filled: COPY */
/* Ask the kernel, once: what it can do, or why userfaultfd cannot be had (-EPERM,
 * -ENOSYS ...). */
int uffd_probe(void);

/* spin_ns: how long the thread looks for work before it sleeps. */
int uffd_new(struct uffd **out, struct loop *loop, uint64_t spin_ns);
/* All peers were closed. NULL is fine. */
void uffd_free(struct uffd *u);

#define UFFD_PENDING 64u

/* Memory is the caller's until uffd_close() was told. */
struct uffd_peer {
	/* A thread of the client waits for the page at addr since read_ns. It may
	 * be told twice of the same fault. */
	void (*fault)(struct uffd_peer *p, uint64_t addr, uint64_t read_ns);
	/* The descriptor does what none of our clients' does; told once. */
	void (*broken)(struct uffd_peer *p);
	/* uffd.c's */
	struct uffd *u; /* (I) */
	int fd; /* (I) */
	int closed; /* (L) fault and broken are not called any more */
	struct loop_call call;
	int posted; /* (lock) call is queued */
	int muted; /* (lock) pending was full: not looked at */
	int is_broken; /* (lock) */
	int told; /* (L) that it is */
	struct list node; /* (lock) */
	uint32_t n_pending; /* (lock) */
	struct uffd_event {
		uint64_t addr, ns;
	} pending[UFFD_PENDING]; /* (lock) */
};
/*
 * Listen to fd, which a client passed: 0 and it is ours, or -EINVAL it is no
 * userfaultfd or not set up, -errno; then it still is the caller's.
 */
int uffd_open(struct uffd *u, struct uffd_peer *p, int fd);

enum uffd_kind {
	UFFD_CONTINUE, /* map the file's pages, which are there */
	UFFD_COPY, /* copy from src */
	UFFD_POISON, /* whoever touches it gets SIGBUS */
	UFFD_WAKE, /* look again */
	UFFD_CLOSE, /* uffd_close()'s */
};
/* One call for the thread. Memory is the caller's until done(), on the loop. */
struct uffd_job {
	void (*done)(struct uffd_job *j);
	struct uffd_peer *peer;
	enum uffd_kind kind;
	uint64_t addr; /* in the client; whole pages of 4096 */
	size_t n_bytes; /* that must be there afterwards */
	size_t n_ahead; /* bytes behind it that may come along */
	const char *src; /* UFFD_COPY: stays until done() */
	int ret; /* 0; -ENOENT nothing of it is registered there (any more),
		    -ESRCH the process is gone, -EINVAL the kernel has no POISON;
		    others as the kernel says */
	/* uffd.c's */
	struct list node;
	struct loop_call call;
};
/* Jobs run one after the other, in order; they end with waking who waited. */
void uffd_start(struct uffd_job *j);
/* The last job of a peer: its descriptor is closed when j->done() is called. From now
 * on nothing else of the peer is told. Sets all but j->done. */
void uffd_close(struct uffd_peer *p, struct uffd_job *j);

#endif
