/*
 * pagefile.c - a file of fixed-size slots; see pagefile.h
 *
 * Two bits a slot. The lowest free one is given out, so that the file stays
 * short:
 *
 *            alloc                release
 *   bare ----------> used ------------------> idle (free, has blocks)
 *    ^  ---------->   ^                         | |
 *    |    reserve     +------------ alloc ------+ |
 *    +-------------------------- punch ------------+
 *
 *  (1) n_idle counts the slots that are backed and not used.
 *  (2) At most one reserve and one punch are in flight. A punched slot is bare
 *      from the start of the punch on; it may be given out meanwhile, and
 *      then its requests are held until the punch has ended.
 *  (3) A failed reserve or punch costs only time or room: no call tells of it.
 */
#include "io/pagefile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/base.h"
#include "io/engine.h"
#include "io/sys.h"

#define IDLE_MAX_BYTES	  (64u << 20) /* begin to punch */
#define IDLE_ENOUGH_BYTES (32u << 20) /* and end */
#define STEP_BYTES	  (16u << 20) /* of one reserve or punch */
#define STEP_MAX_SLOTS	  64u

/* A reserve or punch of slots [r.slot, r.slot + n_slots). */
struct chore {
	struct kio_req r;
	uint64_t n_slots; /* 0: not in flight */
};

struct kio_pagefile {
	struct kio_engine *engine;
	int fd;
	int i_fixed;
	int direct;
	int closing; /* freed when its chores are done */
	size_t slot_bytes;
	uint64_t max_slots;
	uint64_t n_used;
	uint64_t n_idle;
	uint64_t n_ahead; /* slots below were reserved, or tried to be */
	uint64_t first_free_word;
	uint64_t *used, *backed; /* bits */
	uint64_t n_words;
	struct chore reserve, punch;
	int no_reserve, no_punch; /* the file system cannot */
	struct kio_req *held, **held_end; /* until the punch has ended */
};

struct kio_span kio_req_span(const struct kio_req *r)
{
	const struct kio_pagefile *f = r->file;
	struct kio_span s = {
		.fd = f->fd,
		.i_fixed = f->i_fixed,
		.n_bytes = f->slot_bytes - r->done_bytes,
		.off = (off_t)(r->slot * f->slot_bytes + r->done_bytes),
	};

	if (r->op == KIO_OP_RESERVE || r->op == KIO_OP_PUNCH)
		s.n_bytes = container_of(r, struct chore, r)->n_slots *
			    f->slot_bytes;
	else
		s.buf = (char *)r->buf + r->done_bytes;
	return s;
}

/* ---- bits --------------------------------------------------------------- */

static int bit(const uint64_t *bits, uint64_t i)
{
	return (int)(bits[i / 64] >> i % 64 & 1);
}

static void bit_set(uint64_t *bits, uint64_t i)
{
	bits[i / 64] |= 1ull << i % 64;
}

static void bit_clear(uint64_t *bits, uint64_t i)
{
	bits[i / 64] &= ~(1ull << i % 64);
}

/* Room for bits of slots [0, n_slots). */
static int more_words(struct kio_pagefile *f, uint64_t n_slots)
{
	const uint64_t n = KV_MAX(KV_DIV_UP(n_slots, 64), 2 * f->n_words);
	const size_t add = (n - f->n_words) * sizeof(uint64_t);
	uint64_t *bits;

	if (n_slots <= f->n_words * 64)
		return 0;
	bits = realloc(f->used, n * sizeof(uint64_t));
	if (!bits)
		return -ENOMEM;
	f->used = bits;
	memset(f->used + f->n_words, 0, add);
	bits = realloc(f->backed, n * sizeof(uint64_t));
	if (!bits)
		return -ENOMEM;
	f->backed = bits;
	memset(f->backed + f->n_words, 0, add);
	f->n_words = n;
	return 0;
}

/* ---- reserve ------------------------------------------------------------ */

static void chore_start(struct kio_pagefile *f, struct chore *c, int op,
			void (*done)(struct kio_req *r))
{
	c->r.file = f;
	c->r.op = op;
	c->r.done = done;
	kio_engine_queue(f->engine, &c->r);
}

static void last_close(struct kio_pagefile *f)
{
	if (f->reserve.n_slots || f->punch.n_slots)
		return;
	kio_engine_del_file(f->engine, f->i_fixed);
	if (f->fd >= 0)
		close(f->fd);
	free(f->used);
	free(f->backed);
	free(f);
}

static uint64_t step_slots(const struct kio_pagefile *f)
{
	return KV_MIN(KV_MAX(STEP_BYTES / f->slot_bytes, 1u), STEP_MAX_SLOTS);
}

static void reserve_done(struct kio_req *r)
{
	struct kio_pagefile *f = r->file;
	const uint64_t n = f->reserve.n_slots;

	f->reserve.n_slots = 0;
	if (f->closing) {
		last_close(f);
		return;
	}
	if (r->ret) {
		/* full or not supported: the writes will find out */
		f->no_reserve = 1;
		return;
	}
	for (uint64_t i = r->slot; i < r->slot + n; i++) {
		f->n_idle += !bit(f->used, i) && !bit(f->backed, i);
		bit_set(f->backed, i);
	}
}

/* Slot was given out: see that there is room behind it. */
static void reserve_ahead(struct kio_pagefile *f, uint64_t slot)
{
	const uint64_t n = KV_MIN(step_slots(f), f->max_slots - f->n_ahead);

	if (f->no_reserve || f->reserve.n_slots || !n ||
	    slot + step_slots(f) / 2 < f->n_ahead ||
	    more_words(f, f->n_ahead + n))
		return;
	f->reserve.r.slot = f->n_ahead;
	f->reserve.n_slots = n;
	f->n_ahead += n;
	chore_start(f, &f->reserve, KIO_OP_RESERVE, reserve_done);
}

/* ---- punch -------------------------------------------------------------- */

/* The highest run of idle slots, at most one step of it; n_idle is not 0. */
static uint64_t find_idle(const struct kio_pagefile *f, uint64_t *n)
{
	uint64_t w = f->n_words, first, end, bits;

	do {
		w--;
		bits = f->backed[w] & ~f->used[w];
	} while (!bits);
	end = w * 64 + 64 - (uint64_t)__builtin_clzll(bits);
	first = end - 1;
	while (first && end - first < step_slots(f) &&
	       bit(f->backed, first - 1) && !bit(f->used, first - 1))
		first--;
	*n = end - first;
	return first;
}

static void punch_start(struct kio_pagefile *f);

static void punch_done(struct kio_req *r)
{
	struct kio_pagefile *f = r->file;

	f->punch.n_slots = 0;
	if (f->closing) {
		last_close(f);
		return;
	}
	if (r->ret == -EOPNOTSUPP || r->ret == -ENOSYS)
		f->no_punch = 1;
	while (f->held) {
		struct kio_req *held = f->held;

		f->held = held->next;
		kio_engine_queue(f->engine, held);
	}
	f->held_end = &f->held;
	if (f->n_idle * f->slot_bytes > IDLE_ENOUGH_BYTES)
		punch_start(f);
}

static void punch_start(struct kio_pagefile *f)
{
	uint64_t n, first;

	if (f->no_punch || f->punch.n_slots)
		return;
	first = find_idle(f, &n);
	for (uint64_t i = first; i < first + n; i++)
		bit_clear(f->backed, i);
	f->n_idle -= n;
	if (first + n == f->n_ahead)
		f->n_ahead = first;
	f->punch.r.slot = first;
	f->punch.n_slots = n;
	chore_start(f, &f->punch, KIO_OP_PUNCH, punch_done);
}

/* ---- slots -------------------------------------------------------------- */

int64_t kio_pagefile_alloc(struct kio_pagefile *f)
{
	uint64_t w = f->first_free_word, slot;

	while (w < f->n_words && !~f->used[w])
		w++;
	f->first_free_word = w;
	slot = w * 64;
	if (w < f->n_words)
		slot += (uint64_t)__builtin_ctzll(~f->used[w]);
	if (slot >= f->max_slots || more_words(f, slot + 1))
		return -ENOSPC;
	f->n_idle -= (uint64_t)bit(f->backed, slot);
	bit_set(f->used, slot);
	bit_set(f->backed, slot);
	f->n_used++;
	f->n_ahead = KV_MAX(f->n_ahead, slot + 1);
	reserve_ahead(f, slot);
	return (int64_t)slot;
}

void kio_pagefile_release(struct kio_pagefile *f, uint64_t slot)
{
	assert(slot < f->n_words * 64 && bit(f->used, slot));
	bit_clear(f->used, slot);
	f->first_free_word = KV_MIN(f->first_free_word, slot / 64);
	f->n_used--;
	f->n_idle++;
	if (f->n_idle * f->slot_bytes > IDLE_MAX_BYTES)
		punch_start(f);
}

uint64_t kio_pagefile_n_used(const struct kio_pagefile *f)
{
	return f->n_used;
}

/* ---- requests ----------------------------------------------------------- */

static int is_punched(const struct kio_pagefile *f, uint64_t slot)
{
	return slot - f->punch.r.slot < f->punch.n_slots;
}

static void start(struct kio_pagefile *f, struct kio_req *r, int op)
{
	r->file = f;
	r->op = op;
	r->done_bytes = 0;
	r->ret = 0;
	if (!is_punched(f, r->slot)) {
		kio_engine_queue(f->engine, r);
		return;
	}
	r->next = NULL;
	*f->held_end = r;
	f->held_end = &r->next;
}

void kio_pagefile_read(struct kio_pagefile *f, struct kio_req *r)
{
	start(f, r, KIO_OP_READ);
}

void kio_pagefile_write(struct kio_pagefile *f, struct kio_req *r)
{
	start(f, r, KIO_OP_WRITE);
}

/* ---- life --------------------------------------------------------------- */

static int open_file(struct kio_pagefile *f, const char *path)
{
	const int flags = O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW;

	f->direct = 1;
	f->fd = kio_sys_open(path, flags | O_DIRECT, 0600);
	if (f->fd == -EINVAL) {
		f->direct = 0;
		f->fd = kio_sys_open(path, flags, 0600);
	}
	return f->fd < 0 ? f->fd : 0;
}

int kio_pagefile_new(struct kio_pagefile **out, struct kio_engine *e,
		     const char *path, size_t slot_bytes, uint64_t max_slots)
{
	struct kio_pagefile *f;
	int ret;

	if (!slot_bytes || slot_bytes % 4096 || slot_bytes > 1u << 30)
		return -EINVAL;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->engine = e;
	f->i_fixed = -1;
	f->slot_bytes = slot_bytes;
	/* no offset may overflow */
	f->max_slots = KV_MIN(max_slots, (uint64_t)INT64_MAX / slot_bytes);
	f->held_end = &f->held;
	ret = open_file(f, path);
	if (!ret)
		ret = kio_sys_unlink(path);
	if (ret) {
		kio_pagefile_free(f);
		return ret;
	}
	f->i_fixed = kio_engine_add_file(e, f->fd);
	*out = f;
	return 0;
}

void kio_pagefile_free(struct kio_pagefile *f)
{
	if (!f)
		return;
	f->closing = 1;
	last_close(f);
}

int kio_pagefile_direct(const struct kio_pagefile *f)
{
	return f->direct;
}

int kio_pagefile_fd(const struct kio_pagefile *f)
{
	return f->fd;
}
