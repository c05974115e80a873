/*
 * rig_store.c - a store in a file of its own, and waiting for it
 */
#include "tests/rig/rig_store.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/crc.h"
#include "tests/rig/simdisk.h"

void rig_store_init(struct rig_store *r, enum kio_engine_kind kind,
		    const char *dir)
{
	memset(r, 0, sizeof(*r));
	snprintf(r->path, sizeof(r->path), "%s/kvd-store-XXXXXX", dir);
	{
		const int fd = mkstemp(r->path);

		ck_assert_int_ge(fd, 0);
		close(fd);
	}
	r->kind = kind;
	ck_assert_int_eq(kio_engine_new(&r->engine, kind, 8), 0);
}

static void forget_found(struct rig_store *r)
{
	for (uint32_t i = 0; i < r->n_found; i++)
		free(r->found[i].meta);
	free(r->found);
	r->found = NULL;
	r->n_found = r->room = 0;
}

void rig_store_fini(struct rig_store *r)
{
	rig_store_close(r);
	kio_engine_free(r->engine);
	forget_found(r);
	(void)unlink(r->path);
}

static int on_found(void *ctx, const struct kio_record *f)
{
	struct rig_store *r = ctx;
	struct rig_record *x;
	uint32_t n_wrong = 0;

	if (r->n_found == r->room) {
		r->room = r->room ? 2 * r->room : 64;
		r->found = realloc(r->found, r->room * sizeof(*x));
		ck_assert_ptr_nonnull(r->found);
	}
	x = &r->found[r->n_found++];
	*x = (struct rig_record){
		.id = f->key.w[0],
		.handle = f->handle,
		.page_bytes = f->page_bytes,
		.n_pages = f->n_pages,
		.meta_bytes = (uint32_t)f->meta_bytes,
		.meta = malloc(f->meta_bytes + 1),
	};
	ck_assert_ptr_nonnull(x->meta);
	ck_assert_uint_eq(f->key.w[1], ~x->id);
	ck_assert_uint_le(f->n_pages, RIG_PAGES_MAX);
	memcpy(x->places, f->places, f->n_pages * sizeof(*f->places));
	memcpy(x->meta, f->meta, f->meta_bytes);
	for (uint32_t i = 0; i < x->meta_bytes; i++)
		n_wrong += x->meta[i] != (char)(x->id + i);
	ck_assert_uint_eq(n_wrong, 0);
	return r->verdict;
}

int rig_store_open(struct rig_store *r, uint64_t bytes, uint32_t flags)
{
	const struct kio_store_conf c = {
		.path = r->path,
		.bytes = bytes,
		.flags = flags,
		.engine = flags & KIO_STORE_READONLY ? NULL : r->engine,
	};
	int ret;

	forget_found(r);
	ret = kio_store_open(&r->store, &c, on_found, r, &r->report);
	if (!ret)
		kio_store_check(r->store);
	return ret;
}

void rig_store_close(struct rig_store *r)
{
	if (r->store)
		kio_store_check(r->store);
	kio_store_close(r->store);
	if (!r->store)
		return;
	r->store = NULL;
	/* what the store does behind holds the file: see that it ends */
	kio_engine_free(r->engine);
	ck_assert_int_eq(kio_engine_new(&r->engine, r->kind, 8), 0);
}

void rig_store_poll(struct rig_store *r)
{
	kio_engine_submit(r->engine);
	(void)kio_engine_reap(r->engine);
	(void)kio_store_reap(r->store);
}

void rig_store_turn(struct rig_store *r)
{
	struct pollfd bells[2] = {
		{ .fd = kio_engine_event_fd(r->engine), .events = POLLIN },
		{ .fd = kio_store_event_fd(r->store), .events = POLLIN },
	};

	kio_engine_submit(r->engine);
	(void)poll(bells, 2, 10);
	(void)kio_engine_reap(r->engine);
	(void)kio_store_reap(r->store);
}

/* ---- pages ------------------------------------------------------------------ */

static void fill(unsigned char *p, uint32_t n, uint64_t id, uint32_t i)
{
	uint64_t s = id * 131 + i;

	for (uint32_t k = 0; k < n; k += 8) {
		const uint64_t v = simdisk_random(&s);

		memcpy(p + k, &v, 8);
	}
}

int rig_store_take(struct rig_store *r, struct rig_record *x, uint64_t id,
		   uint32_t page_bytes, uint32_t n_pages, uint32_t meta_bytes)
{
	*x = (struct rig_record){ .id = id,
				  .page_bytes = page_bytes,
				  .n_pages = n_pages,
				  .meta_bytes = meta_bytes };
	ck_assert_uint_le(n_pages, RIG_PAGES_MAX);
	for (uint32_t i = 0; i < n_pages; i++) {
		const int64_t at = kio_store_alloc(r->store, page_bytes);

		if (at < 0) {
			x->n_pages = i;
			rig_store_release(r, x);
			return (int)at;
		}
		x->places[i].block = (uint64_t)at;
	}
	return 0;
}

struct io {
	struct kio_req req;
	int *n_done;
};

static void io_done(struct kio_req *q)
{
	++*container_of(q, struct io, req)->n_done;
}

/* All pages at once, then wait. */
static int all_pages(struct rig_store *r, const struct rig_record *x,
		     unsigned char *buf, int writes)
{
	struct io ios[RIG_PAGES_MAX] = { 0 };
	int n_done = 0, ret = 0;

	for (uint32_t i = 0; i < x->n_pages; i++) {
		ios[i].n_done = &n_done;
		ios[i].req.buf = buf + (size_t)i * x->page_bytes;
		ios[i].req.n_bytes = x->page_bytes;
		ios[i].req.block = x->places[i].block;
		ios[i].req.done = io_done;
		(writes ? kio_store_write : kio_store_read)(r->store,
							    &ios[i].req);
	}
	while (n_done < (int)x->n_pages)
		rig_store_turn(r);
	for (uint32_t i = 0; i < x->n_pages && !ret; i++)
		ret = ios[i].req.ret;
	return ret;
}

static unsigned char *page_buf(const struct rig_record *x)
{
	void *p;

	ck_assert(
		!posix_memalign(&p, 4096, (size_t)x->page_bytes * x->n_pages));
	return p;
}

int rig_store_write(struct rig_store *r, struct rig_record *x)
{
	unsigned char *buf = page_buf(x);
	int ret;

	for (uint32_t i = 0; i < x->n_pages; i++) {
		unsigned char *p = buf + (size_t)i * x->page_bytes;

		fill(p, x->page_bytes, x->id, i);
		x->places[i].crc = kio_crc32c(0, p, x->page_bytes);
	}
	ret = all_pages(r, x, buf, 1);
	free(buf);
	return ret;
}

int rig_store_copy(struct rig_store *r, struct rig_record *to,
		   const struct rig_record *x, uint32_t first)
{
	unsigned char *buf = page_buf(to);
	int ret;

	for (uint32_t i = 0; i < to->n_pages; i++) {
		fill(buf + (size_t)i * x->page_bytes, x->page_bytes, x->id,
		     first + i);
		to->places[i].crc = x->places[first + i].crc;
	}
	ret = all_pages(r, to, buf, 1);
	free(buf);
	return ret;
}

int rig_store_read(struct rig_store *r, const struct rig_record *x)
{
	unsigned char *buf = page_buf(x), *want = page_buf(x);
	int ret;

	for (uint32_t i = 0; i < x->n_pages; i++)
		fill(want + (size_t)i * x->page_bytes, x->page_bytes, x->id, i);
	ret = all_pages(r, x, buf, 0);
	if (!ret && memcmp(buf, want, (size_t)x->page_bytes * x->n_pages))
		ret = -EBADMSG;
	for (uint32_t i = 0; i < x->n_pages && !ret; i++)
		if (kio_crc32c(0, buf + (size_t)i * x->page_bytes,
			       x->page_bytes) != x->places[i].crc)
			ret = -EBADMSG;
	free(buf);
	free(want);
	return ret;
}

/* ---- records ---------------------------------------------------------------- */

static void on_commit(struct kio_commit *c)
{
	struct rig_record *x = container_of(c, struct rig_record, commit);

	x->told++;
	x->handle = c->handle;
	free(x->meta);
	x->meta = NULL;
}

void rig_store_put(struct rig_store *r, struct rig_record *x)
{
	x->told = 0;
	x->meta = malloc(x->meta_bytes + 1);
	ck_assert_ptr_nonnull(x->meta);
	for (uint32_t i = 0; i < x->meta_bytes; i++)
		x->meta[i] = (char)(x->id + i);
	x->commit = (struct kio_commit){ .key = { { x->id, ~x->id } },
					 .page_bytes = x->page_bytes,
					 .n_pages = x->n_pages,
					 .places = x->places,
					 .meta = x->meta,
					 .meta_bytes = x->meta_bytes,
					 .done = on_commit };
	kio_store_put(r->store, &x->commit);
}

int rig_store_commit(struct rig_store *r, struct rig_record *x)
{
	rig_store_put(r, x);
	while (!x->told)
		rig_store_turn(r);
	ck_assert_int_eq(x->told, 1);
	return x->commit.ret;
}

void rig_store_add(struct rig_store *r, struct rig_record *x, uint64_t id,
		   uint32_t n_pages, uint32_t meta_bytes)
{
	ck_assert_int_eq(
		rig_store_take(r, x, id, RIG_PAGE, n_pages, meta_bytes), 0);
	ck_assert_int_eq(rig_store_write(r, x), 0);
	ck_assert_int_eq(rig_store_commit(r, x), 0);
}

void rig_store_release(struct rig_store *r, const struct rig_record *x)
{
	for (uint32_t i = 0; i < x->n_pages; i++)
		kio_store_release(r->store, x->places[i].block, x->page_bytes);
}

uint32_t rig_store_fill(struct rig_store *r, struct rig_record *x,
			uint32_t n_most, uint32_t page_bytes, uint32_t n_pages)
{
	uint32_t n = 0;

	while (n < n_most &&
	       !rig_store_take(r, &x[n], n + 1, page_bytes, n_pages, 40)) {
		ck_assert_int_eq(rig_store_write(r, &x[n]), 0);
		rig_store_put(r, &x[n++]);
	}
	for (uint32_t i = 0; i < n; i++)
		while (!x[i].told)
			rig_store_turn(r);
	return n;
}

void rig_store_del(struct rig_store *r, struct rig_record *x)
{
	kio_store_del(r->store, x->handle);
	rig_store_release(r, x);
}

void rig_store_settle(struct rig_store *r)
{
	struct kio_store_info i;

	for (;;) {
		kio_store_info(r->store, &i);
		if (!i.pending_bytes)
			return;
		rig_store_turn(r);
	}
}

const struct rig_record *rig_store_find(const struct rig_store *r, uint64_t id)
{
	for (uint32_t i = 0; i < r->n_found; i++)
		if (r->found[i].id == id)
			return &r->found[i];
	return NULL;
}

/* ---- behind its back -------------------------------------------------------- */

static int raw_fd(struct rig_store *r)
{
	const int fd = open(r->path, O_RDWR | O_CLOEXEC);

	ck_assert_ptr_null(r->store);
	ck_assert_int_ge(fd, 0);
	return fd;
}

void rig_store_poke(struct rig_store *r, uint64_t off, const void *bytes,
		    size_t n)
{
	const int fd = raw_fd(r);

	ck_assert_int_eq(pwrite(fd, bytes, n, (off_t)off), (ssize_t)n);
	close(fd);
}

void rig_store_peek(struct rig_store *r, uint64_t off, void *bytes, size_t n)
{
	const int fd = raw_fd(r);

	ck_assert_int_eq(pread(fd, bytes, n, (off_t)off), (ssize_t)n);
	close(fd);
}
