/*
 * chan.c - the daemon's end of a session's shared memory
 *
 *   0       struct kv_header       written once, never read here
 *   4096    sq: kv_ring, entries
 *   ...     cq: kv_ring, entries   each at its own page
 *   ...     arena
 *
 *  (1) The memfd is sealed against resizing, so no access here can fault, and
 *      has mode 0600, so no other uid can reopen it.
 *  (2) What the client can write is loaded once (volatile) and used from the
 *  copy.
 */
#include "kvd/ipc/chan.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kvd/base/list.h"

#define PAGE 4096u
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u /* Linux 6.3 */
#endif

static int memfd_sealed(uint64_t bytes)
{
	int fd, err;

	fd = memfd_create("kvd-session",
			  MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("kvd-session",
				  MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (!ftruncate(fd, (off_t)bytes) && !fchmod(fd, 0600) &&
	    !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return fd;
	err = -errno;
	(void)close(fd); /* nothing was written */
	return err;
}

static void write_header(struct chan *ch, const struct kv_header *h)
{
	memcpy(ch->map, h, sizeof(*h));
	kv_ring_init(&ch->sq, (struct kv_ring *)(ch->map + h->sq_off),
		     h->sq_entries);
	kv_ring_init(&ch->cq, (struct kv_ring *)(ch->map + h->cq_off),
		     h->cq_entries);
	ch->sqes = (const struct kv_sqe *)(ch->sq.ring + 1);
	ch->cqes = (struct kv_cqe *)(ch->cq.ring + 1);
	ch->arena = ch->map + h->arena_off;
	ch->arena_bytes = h->arena_bytes;
}

int chan_open(struct chan *ch, uint32_t sq_entries, uint32_t cq_entries,
	      uint64_t arena_bytes, uint64_t features, int *memfd)
{
	const uint64_t sq_bytes =
		sizeof(struct kv_ring) + sq_entries * sizeof(struct kv_sqe);
	const uint64_t cq_bytes =
		sizeof(struct kv_ring) + cq_entries * sizeof(struct kv_cqe);
	struct kv_header h = { .magic = KV_MAGIC,
			       .major = KV_ABI_MAJOR,
			       .minor = KV_ABI_MINOR,
			       .features = features,
			       .sq_entries = sq_entries,
			       .cq_entries = cq_entries,
			       .sq_off = PAGE,
			       .arena_bytes = arena_bytes };
	void *p;
	int fd, err;

	memset(ch, 0, sizeof(*ch));
	h.cq_off = KV_ALIGN_UP(h.sq_off + sq_bytes, PAGE);
	h.arena_off = KV_ALIGN_UP(h.cq_off + cq_bytes, PAGE);
	ch->map_bytes = h.arena_off + arena_bytes;
	fd = memfd_sealed(ch->map_bytes);
	if (fd < 0)
		return fd;
	p = mmap(NULL, ch->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		 0);
	if (p == MAP_FAILED) {
		err = -errno;
		goto out_fd;
	}
	ch->map = p;
	ch->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ch->doorbell < 0) {
		err = -errno;
		goto out_map;
	}
	write_header(ch, &h);
	*memfd = fd;
	return 0;

out_map:
	(void)munmap(ch->map, ch->map_bytes); /* our own arguments */
out_fd:
	(void)close(fd); /* nothing was written */
	return err;
}

void chan_close(struct chan *ch)
{
	(void)munmap(ch->map, ch->map_bytes); /* our own arguments */
	(void)close(ch->doorbell); /* nothing can be lost */
	ch->map = NULL;
}

/* ---- submission ring --------------------------------------------------- */

static void copy_sqe(struct kv_sqe *out, const struct kv_sqe *from)
{
	const volatile uint64_t *src = (const volatile uint64_t *)from;
	uint64_t w[sizeof(*out) / sizeof(uint64_t)];

	for (size_t i = 0; i < KV_ARRAY_LEN(w); i++)
		w[i] = src[i];
	memcpy(out, w, sizeof(w));
}

int chan_pop(struct chan *ch, struct kv_sqe *out)
{
	const int n = kv_ring_ready(&ch->sq);

	if (n <= 0)
		return n;
	copy_sqe(out, &ch->sqes[kv_ring_slot(&ch->sq, 0)]);
	ch->sq.mine++;
	return 1;
}

void chan_taken(struct chan *ch)
{
	kv_ring_consume(&ch->sq, 0);
}

int chan_arm(struct chan *ch)
{
	if (!kv_ring_arm(&ch->sq))
		return 0;
	kv_ring_disarm(&ch->sq);
	return 1;
}

void chan_disarm(struct chan *ch)
{
	kv_ring_disarm(&ch->sq);
}

/* ---- completion ring --------------------------------------------------- */

int chan_has_room(struct chan *ch, uint32_t n_owed)
{
	const uint32_t want = n_owed + ch->n_posted + 1;
	const int room = kv_ring_room(&ch->cq, want);

	return room < 0 ? room : (uint32_t)room >= want;
}

void chan_post(struct chan *ch, const struct kv_cqe *e)
{
	ch->cqes[kv_ring_slot(&ch->cq, ch->n_posted)] = *e;
	ch->n_posted++;
}

static void wake(const uint32_t *word)
{
	/* Nobody sleeps there: 0. No other failure is possible. */
	(void)syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void chan_flush(struct chan *ch)
{
	const uint32_t n = ch->n_posted;

	if (!n)
		return;
	ch->n_posted = 0;
	if (kv_ring_publish(&ch->cq, n))
		wake(&ch->cq.ring->tail);
}

void chan_shut(struct chan *ch, int err)
{
	chan_flush(ch);
	__atomic_store_n(&ch->cq.ring->closed, (uint32_t)err, __ATOMIC_SEQ_CST);
	wake(&ch->cq.ring->tail);
}

/* ---- arena ------------------------------------------------------------- */

void *chan_at(const struct chan *ch, uint64_t off, uint64_t len, uint32_t align)
{
	if (off > ch->arena_bytes || len > ch->arena_bytes - off ||
	    off & (align - 1))
		return NULL;
	return ch->arena + off;
}

void __attribute__((noinline)) chan_copy(void *dst, const void *src, size_t len)
{
	memcpy(dst, src, len);
	/* From here on only the copy is used, whatever the compiler knows. */
	__asm__ volatile("" : : : "memory");
}

int chan_read(const struct chan *ch, uint64_t off, void *dst, uint64_t len)
{
	const void *src = chan_at(ch, off, len, 1);

	if (!src)
		return -EINVAL;
	chan_copy(dst, src, len);
	return 0;
}
