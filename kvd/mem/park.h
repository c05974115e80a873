/*
 * park.h - pinned host memory between device and disk; inside kvd/mem
 *
 * Pages that were copied off the device are parked here. A parked page is dirty until
 * its slot on disk is written; that happens when half of the pool is dirty, when its part
 * has too much of a full pool, when somebody needs the room, or when it is to become durable (park_flush()). What is clean goes
 * when the room is needed, oldest first. Without a disk the pool is the lowest tier
 * and nothing goes.
 *
 * Memory is a set of units, each as large as a frame of the device. A page takes
 * any units, so nothing is ever too scattered to be used.
 *
 *  (1) A unit is free or of one parked page.
 *  (2) With a disk, dirty pages and those that are to be take all units but an eighth,
 *      so that a page can always be read back through the pool.
 *  (3) A parked page is in a list of its part (clean or dirty) unless somebody reads it
 *      or it is being written.
 *  (4) Room is taken from the part that has most for its weight, and goes to the one
 *      that has least; reads go first.
 *
 * Thread: loop thread, but for park_crc().
 */
#ifndef KVD_MEM_PARK_H
#define KVD_MEM_PARK_H

#include <stddef.h>
#include <stdint.h>
#include "kvd/base/list.h"
#include "kvd/mem/account.h"
#include "kvd/mem/copy.h"
#include "kvd/mem/pager.h"

struct page;
struct park;

struct park_conf {
	struct loop *loop;
	struct copier *copier;
	size_t unit_bytes;
	uint64_t n_bytes; /* of the pool; at least PARK_LEAST units */
	int numa_node; /* -1: where the thread runs */
	int has_disk;
};
#define PARK_LEAST 8u
/* Maps and pins the memory; blocks. -EINVAL, -ENOMEM, -ENODEV, -errno. */
int park_new(struct park **out, const struct park_conf *conf);
/* Unpin it. All parts are closed. */
void park_unpin(struct park *k);
/* The copier and its context are gone: free the memory. NULL is fine. */
void park_free(struct park *k);
/* The largest page that it can be used for, in bytes. */
size_t park_most_bytes(const struct park *k);

enum park_for { PARK_READ, PARK_WRITE, PARK_FORS };

/* What one pager has there. */
struct park_part {
	struct list node;
	struct pager *pager;
	uint32_t weight;
	uint64_t n_units, n_dirty;
	struct account_meter meter; /* of its bytes */
	struct list clean, dirty; /* struct parked.node, oldest first */
	struct list waiting[PARK_FORS][WANT_PRIOS]; /* struct park_req.node */
};
void park_open_part(struct park *k, struct park_part *part, struct pager *p,
		    uint32_t weight);
/* It has no page there and nothing is in flight. */
void park_close_part(struct park *k, struct park_part *part);

struct parked {
	struct list node;
	struct park *park;
	struct park_part *part;
	struct page *page; /* NULL: not attached, or its page let go of it */
	int is_dirty, is_read, is_flushing;
	int is_coming; /* not attached yet */
	uint64_t retry_ns; /* dirty: a write failed */
	/* being written */
	int64_t slot;
	uint32_t i_disk, n_ios;
	int ret;
	struct park_io {
		struct kio_req req;
		struct parked *parked;
	} * ios; /* [n_units]; NULL: never dirty */
	uint32_t n_units;
	uint32_t unit[];
};

/* Room for n pages of page_bytes; memory is the caller's until told. */
struct park_req {
	struct list node; /* the park's, as part */
	struct park_part *part;
	size_t page_bytes;
	uint32_t n;
	enum park_for what;
	enum want_prio prio;
	struct parked **out; /* [n] */
	void (*done)(struct park_req *r, int ret); /* 0, -EIO nothing goes */
};
/* 1: out is there; 0: done() will be called; -ENOMEM. */
int park_get(struct park *k, struct park_part *part, struct park_req *r);
/* r is to be served with those of prio, if it waits and is less urgent. */
void park_hurry(struct park *k, struct park_req *r, enum want_prio prio);
/* Undo a part of it: h is nobody's. */
void park_put(struct parked *h);
/* The same, but something may still write to its memory: it is not used again. */
void park_lose(struct parked *h);
/* h has the bytes of pg (and its slot has them too unless dirty). */
enum park_state { PARK_CLEAN, PARK_DIRTY };
void park_attach(struct page *pg, struct parked *h, enum park_state st);
/* pg->parked stays until park_read_end(), which does nothing if it is not so. */
void park_read_begin(struct page *pg);
void park_read_end(struct page *pg);
/*
 * The bytes of pg->parked are not wanted any more. 1: its slot is being written, and
 * is given back to the store when that has ended; 0: the slot is the caller's.
 */
int park_forget(struct page *pg);
/* pg->parked is dirty: have its slot written: 1, durable_page_let_go() tells. 0: that is
 * under way already. -EIO: its disk is silent. */
int park_flush(struct page *pg);
/* Is pg's slot not written yet? */
int park_is_dirty(const struct page *pg);
/* And nobody is writing it? */
int park_is_unwritten(const struct page *pg);

/* From unit u on: address, and bytes that follow each other. */
char *park_run(const struct parked *h, uint32_t u, size_t *n_bytes);
/* Units of such a run. */
uint32_t park_run_units(const struct parked *h, uint32_t u);
/* CRC32C over the page. Any thread. */
uint32_t park_crc(const struct parked *h);

struct park_info {
	uint64_t bytes, used_bytes, dirty_bytes, lost_bytes;
	uint64_t flushed, flush_errors, dropped, waits; /* pages; requests */
};
void park_info(const struct park *k, struct park_info *out);
/* Bytes of the part: in the pool, and of these not on disk. */
void park_part_bytes(const struct park *k, const struct park_part *part,
		     uint64_t *used, uint64_t *dirty);
/* What of the pool is the part's by weight, when all want it. */
uint64_t park_part_share(const struct park *k, const struct park_part *part);
double park_part_byte_seconds(const struct park *k,
			      const struct park_part *part, uint64_t now_ns);
/* Assert the invariants. */
void park_check(const struct park *k);

#endif
