/*
 * durable.h - ranges whose bytes survive a restart
 *
 *   range_persist():  pages that are dirty are written  ->  record put  ->  durable
 *   range_adopt():    record found at start  ->  all pages LOWER, durable
 *   range_free():     record deleted, then frames and slots given back
 *
 * A durable range is never written again. Its pages keep their places on the
 * store, so to evict one of them is to drop its frame.
 *
 * Thread: loop thread.
 */
#ifndef KVD_MEM_DURABLE_H
#define KVD_MEM_DURABLE_H

#include "kvd/mem/pager.h"
#include "kvd/mem/stores.h"

/* The caller's, with what it points to, until told or cancelled. */
struct range_persist {
	struct wait
		wait; /* 0; -ENOSPC no room (left as it is), -EIO, -EBADMSG */
	struct range *range;
	uint64_t key[2]; /* names the content; not two ranges with the same */
	const void *meta;
	size_t meta_bytes;
	/* the pager's */
	struct list node;
	struct kio_commit commit;
	struct kio_place *places;
	struct loop_call call;
	struct loop_timer timer; /* slots come back soon: then again */
	uint32_t n_retries, n_waits;
	int state;
	int ret;
};
/*
 * Make the range durable; its bytes do not change from now on. Readers may pin its
 * pages meanwhile; range_free() must wait. Returns 0 (wait is told), -EALREADY it
 * is, -ENOTSUP no disk, -ENOMEM.
 */
int range_persist(struct range_persist *rp);
/* 1: a range of p is on its way to be durable, and its disk answers. */
int durable_on_the_way(const struct pager *p);
/* 1: a record on stable media names all pages of r. */
int range_durable(const struct range *r);

/*
 * The range of a record, all its pages on disk i_disk. -EDQUOT beyond disk_bytes
 * of the pager, -ENOMEM, -EINVAL; then nothing is charged.
 */
int range_adopt(struct pager *p, uint32_t i_disk, const struct kio_record *rec,
		struct range **out);
/* stores_on_lost(): if it is of a range of p, that is durable no more; damaged is told. */
void pager_record_lost(struct pager *p, uint32_t i_disk, uint64_t handle);
/* Undo range_adopt() while the stores are being opened: the record is not touched. */
void range_disown(struct range *r);
/* The daemon stops: from now on range_free() leaves records where they are. */
void pager_keep_records(struct pager *p);

#endif
