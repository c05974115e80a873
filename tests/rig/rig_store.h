/*
 * rig_store.h - a store in a file of its own, and waiting for it
 */
#ifndef TESTS_RIG_STORE_H
#define TESTS_RIG_STORE_H

#include "io/base.h"
#include "io/store.h"

#define RIG_PAGE      8192u
#define RIG_PAGES_MAX 8u

struct rig_store {
	struct kio_engine *engine;
	enum kio_engine_kind kind;
	struct kio_store *store;
	struct kio_store_report report;
	char path[128];
	/* what the next open finds, see rig_store_record */
	int verdict; /* KIO_RECORD_*: of all that are found */
	struct rig_record *found;
	uint32_t n_found, room;
};

/* A record as the test remembers it. */
struct rig_record {
	struct kio_commit commit;
	struct kio_place places[RIG_PAGES_MAX];
	uint64_t id; /* key, meta and bytes follow from it */
	uint64_t handle;
	uint32_t page_bytes, n_pages;
	uint32_t meta_bytes;
	int told;
	char *meta;
};

/* dir: where the file is made. Asserts. */
void rig_store_init(struct rig_store *r, enum kio_engine_kind kind,
		    const char *dir);
/* The file goes with it. */
void rig_store_fini(struct rig_store *r);
/* What kio_store_open() returns; what was found lies in r->found, by order. */
int rig_store_open(struct rig_store *r, uint64_t bytes, uint32_t flags);
void rig_store_close(struct rig_store *r);
/* Submit, sleep shortly if nothing came, reap. */
void rig_store_turn(struct rig_store *r);
void rig_store_poll(struct rig_store *r); /* without sleeping */

/* Take slots for a record of that shape: 0, or what alloc said (then none). */
int rig_store_take(struct rig_store *r, struct rig_record *x, uint64_t id,
		   uint32_t page_bytes, uint32_t n_pages, uint32_t meta_bytes);
/* Write its pages: the first error, or 0. */
int rig_store_write(struct rig_store *r, struct rig_record *x);
/* Write, at the places of to, pages of x from first on. */
int rig_store_copy(struct rig_store *r, struct rig_record *to,
		   const struct rig_record *x, uint32_t first);
/* Queue the record; told and commit.ret say how it ended. */
void rig_store_put(struct rig_store *r, struct rig_record *x);
/* And wait for it: what it ended with. */
int rig_store_commit(struct rig_store *r, struct rig_record *x);
/* All four; asserts that it works. */
void rig_store_add(struct rig_store *r, struct rig_record *x, uint64_t id,
		   uint32_t n_pages, uint32_t meta_bytes);
/* Records of that shape from id 1 on until nothing fits, or n_most: how many. */
uint32_t rig_store_fill(struct rig_store *r, struct rig_record *x,
			uint32_t n_most, uint32_t page_bytes, uint32_t n_pages);
/* Delete and release. */
void rig_store_del(struct rig_store *r, struct rig_record *x);
void rig_store_release(struct rig_store *r, const struct rig_record *x);
/* Until nothing is pending: what was deleted is durably gone. */
void rig_store_settle(struct rig_store *r);
/* Read its pages: 0, -errno, or -EBADMSG other bytes. */
int rig_store_read(struct rig_store *r, const struct rig_record *x);
/* Of r->found: the one with that id, or NULL. */
const struct rig_record *rig_store_find(const struct rig_store *r, uint64_t id);

/* Bytes in the file, behind the store's back (asserts that it is closed). */
void rig_store_poke(struct rig_store *r, uint64_t off, const void *bytes,
		    size_t n);
void rig_store_peek(struct rig_store *r, uint64_t off, void *bytes, size_t n);

#endif
