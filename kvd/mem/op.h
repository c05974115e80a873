/*
 * op.h - an operation over a run of pages, as its kinds see it; inside kvd/mem
 *
 *   page_begin() for each page, op_new() -> steps -> page_end() each, op_free()
 *
 * A step runs on a worker (op_work()) or in the storage engine (op_io()) and comes
 * back to the loop.
 */
#ifndef KVD_MEM_OP_H
#define KVD_MEM_OP_H

#include "io/store.h"
#include "kvd/base/loop.h"
#include "kvd/mem/move.h"

enum op_kind { OP_MAP, OP_READ, OP_WRITE, OP_DROP, OP_SCRUB, OP_CLEAN };

/*
 * scrub.c: read the page's place on disk into buf and compare. done() 0, -EBADMSG,
 * or the error of a medium that refused it three times; then the page is LOST, or dirty
 * if it is in memory, and pager_conf.damaged was called. -ENOMEM.
 */
struct page_scrub {
	void *buf; /* [n_bytes], 4 KiB aligned; the caller's */
	uint64_t n_bytes;
	uint32_t crc;
	void (*done)(struct page_scrub *s, int ret);
};

int page_can_scrub(const struct page *pg);
int page_scrub_start(struct page *pg, struct page_scrub *s);

struct move {
	struct loop_work work;
	struct kio_req req;
	struct page *page; /* the first of n */
	uint32_t n;
	enum op_kind kind;
	int ret;
	uint32_t prio; /* of its request */
	void (*prepare)(struct kio_req *r); /* of its request */
	uint64_t leaving; /* op_io(): bytes of its request that make room */
	uint32_t n_tries; /* READ and SCRUB of one page: that failed */
	uint64_t start_ns;
	struct page_scrub *scrub; /* SCRUB */
	int is_idle; /* SCRUB of a page that has no frame: see pager.n_idle */
	struct dev_op *dev; /* with a device */
	struct pager *spare_of; /* it is that one's spare operation */
	uint32_t crc[]; /* [n] */
};

/* From now on the page belongs to an operation. */
void page_begin(struct page *pg);
/*
 * An operation over n pages that have begun; NULL: no memory. One page can nearly
 * always have one: each pager keeps a spare, so that room is made when there is no
 * memory (not with a device).
 */
struct move *op_new(struct page *pg, uint32_t n, enum op_kind kind);
int op_spare_new(struct pager *p);
void op_work(struct move *op, void (*run)(struct loop_work *w),
	     void (*done)(struct loop_work *w));
/*
 * n_ops pages in operations, leaving bytes of them to make room, go to the disk, are back:
 * while it is silent nobody counts on them.
 */
void pager_to_disk(struct pager *p, uint32_t i_disk, uint32_t n_ops,
		   uint64_t leaving);
void pager_from_disk(struct pager *p, uint32_t i_disk, uint32_t n_ops,
		     uint64_t leaving);
/* Read or write the run; done() calls op_io_end(), which sets op->ret. */
void op_io(struct move *op, void (*done)(struct kio_req *r));
void op_io_end(struct move *op);
/* Of those who wait for one of its pages, the most urgent. */
uint32_t op_prio(const struct move *op);
/* A want of prio waits for a page that is being read or written. */
void page_hurry(struct page *pg, enum want_prio prio);
/*
 * A page of kind's operation has let go; err: why it failed. Whoever waits is
 * told. The range stays until op_free().
 */
void page_end(struct page *pg, enum op_kind kind, int err);
void op_free(struct move *op);
/* Only its memory. */
void op_release(struct move *op);

/* dev_op.c: the steps that move.c would have done are over, op->ret says how. */
void move_mapped(struct move *op);
void move_dropped(struct move *op);
void move_written(struct move *op);
void move_read(
	struct move *op); /* with ret 0 pages whose crc differs are lost */
/*
 * The disk failed: again from go(), page by page, each up to three times. Then the
 * page is lost if the medium refused it; any other error fails its wants only.
 */
void move_read_failed(struct move *op, void (*go)(struct move *one));
#define READ_TRIES 3u /* of a page alone */
/* The medium does not give the bytes back; any other error may pass. */
int move_is_medium(int err);

/* Frames and slots: the books. -ENOSPC, -errno of the store. */
void page_charge(struct page *pg);
void page_uncharge(struct page *pg);
int page_take_slot(struct page *pg);
/* It could not be written there, alone; why (0: with others). */
void page_leave_slot(struct page *pg, int err);
/*
 * With a device: the disk did not take the page. Where nothing of its range is written yet
 * all of it goes to another disk, its slot set aside if so; else -EBUSY, -ENOSPC.
 */
int page_leave_disk(struct page *refused, int aside);
/* What is there is not what was written: nobody writes there again. */
void page_quarantine_slot(struct page *pg);
/* Its frame is to go, whatever state it is in. */
void page_queue_drop(struct page *pg);

#endif
