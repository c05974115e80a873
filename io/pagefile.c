/*
 * pagefile.c - a file of fixed-size slots; see pagefile.h
 *
 * Free slots are bits; the lowest free one is given out, so that the file
 * stays short, and a long free end is cut off.
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

#define CUT_BYTES (64u << 20) /* a free end of this size is given back */

struct kio_pagefile {
	struct kio_engine *engine;
	int fd;
	int direct;
	size_t slot_bytes;
	uint64_t max_slots;
	uint64_t n_used;
	uint64_t n_top;	  /* slots [0, n_top) were given out at some time */
	uint64_t first_free_word;
	uint64_t *used;	  /* bits */
	uint64_t n_words;
};

struct kio_span kio_req_span(const struct kio_req *r)
{
	const struct kio_pagefile *f = r->file;

	return (struct kio_span){
		.fd = f->fd,
		.buf = (char *)r->buf + r->done_bytes,
		.n_bytes = f->slot_bytes - r->done_bytes,
		.off = (off_t)(r->slot * f->slot_bytes + r->done_bytes),
	};
}

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

	if (!slot_bytes || slot_bytes % 4096)
		return -EINVAL;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->engine = e;
	f->slot_bytes = slot_bytes;
	f->max_slots = max_slots;
	ret = open_file(f, path);
	if (ret) {
		free(f);
		return ret;
	}
	ret = kio_sys_unlink(path);
	if (ret) {
		kio_pagefile_free(f);
		return ret;
	}
	*out = f;
	return 0;
}

void kio_pagefile_free(struct kio_pagefile *f)
{
	if (!f)
		return;
	close(f->fd);
	free(f->used);
	free(f);
}

static int more_words(struct kio_pagefile *f)
{
	const uint64_t n = f->n_words ? 2 * f->n_words : 16;
	uint64_t *used = realloc(f->used, n * sizeof(*used));

	if (!used)
		return -ENOSPC;
	memset(used + f->n_words, 0, (n - f->n_words) * sizeof(*used));
	f->used = used;
	f->n_words = n;
	return 0;
}

int64_t kio_pagefile_alloc(struct kio_pagefile *f)
{
	uint64_t w = f->first_free_word, slot;

	while (w < f->n_words && !~f->used[w])
		w++;
	if (w == f->n_words && more_words(f))
		return -ENOSPC;
	slot = w * 64 + (uint64_t)__builtin_ctzll(~f->used[w]);
	if (slot >= f->max_slots)
		return -ENOSPC;
	f->first_free_word = w;
	f->used[w] |= 1ull << (slot % 64);
	f->n_used++;
	f->n_top = KV_MAX(f->n_top, slot + 1);
	return (int64_t)slot;
}

static void cut_end(struct kio_pagefile *f)
{
	uint64_t top = f->n_top;

	while (top && !(f->used[(top - 1) / 64] >> ((top - 1) % 64) & 1))
		top--;
	if ((f->n_top - top) * f->slot_bytes < CUT_BYTES)
		return;
	/* a failure only means that the room comes back later */
	(void)kio_sys_ftruncate(f->fd, (off_t)(top * f->slot_bytes));
	f->n_top = top;
}

void kio_pagefile_release(struct kio_pagefile *f, uint64_t slot)
{
	assert(f->used[slot / 64] >> (slot % 64) & 1);
	f->used[slot / 64] &= ~(1ull << (slot % 64));
	f->first_free_word = KV_MIN(f->first_free_word, slot / 64);
	f->n_used--;
	if (slot + 1 == f->n_top)
		cut_end(f);
}

uint64_t kio_pagefile_n_used(const struct kio_pagefile *f)
{
	return f->n_used;
}

int kio_pagefile_direct(const struct kio_pagefile *f)
{
	return f->direct;
}

int kio_pagefile_fd(const struct kio_pagefile *f)
{
	return f->fd;
}

static void start(struct kio_pagefile *f, struct kio_req *r, int op)
{
	r->file = f;
	r->op = op;
	r->done_bytes = 0;
	r->ret = 0;
	kio_engine_queue(f->engine, r);
}

void kio_pagefile_read(struct kio_pagefile *f, struct kio_req *r)
{
	start(f, r, KIO_OP_READ);
}

void kio_pagefile_write(struct kio_pagefile *f, struct kio_req *r)
{
	start(f, r, KIO_OP_WRITE);
}
