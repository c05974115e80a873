/*
 * move.h - pages between frames and slots; inside kvd/mem
 *
 * Who wants room stands in pager.starved, in order. Whatever gives room (a drop
 * that ended, an unpin, a freed range) calls pager_make_room(), which serves the
 * line and has as many victims on their way as the line lacks.
 */
#ifndef KVD_MEM_MOVE_H
#define KVD_MEM_MOVE_H

#include "kvd/base/stat.h"
#include "kvd/mem/page.h"

/* Space of one page size. */
struct tier {
	struct tier *next;
	size_t page_bytes;
	float ns_per_byte; /* of restoring a page: moving average; 0: none yet */
	struct space *space;
};

struct pager {
	struct pager_conf conf;
	char name[64];
	struct tier *tiers;
	struct list ranges;
	struct list starved; /* struct page.starved */
	const struct evict_policy *policy;
	void *policy_state;
	uint64_t mapped_bytes, pinned_bytes, reserved_bytes, slot_bytes;
	uint64_t freeing_bytes; /* of drops on their way */
	uint64_t cleaning_bytes; /* of writes whose page is dropped after */
	uint32_t n_ops;
	int keep_records; /* the daemon stops */
	struct loop_call room_call;
	int room_queued;
	uint64_t n_state[PAGE_N_STATES];
	uint64_t n_mapped_total, n_evicted_total, n_read_total, n_written_total,
		read_bytes_total, written_bytes_total;
	struct stat *st_mapped, *st_evicted, *st_read, *st_written,
		*st_read_bytes, *st_written_bytes, *st_lost, *st_write_errors,
		*st_mapped_bytes, *st_slot_bytes, *st_page_in;
	uint64_t logged_ns;
};

int tier_get(struct pager *p, size_t page_bytes, struct tier **out);
void page_set_state(struct page *pg, enum page_state s);
void page_release_slot(struct page *pg);
/* pager.c: it took ns to restore a page. */
void tier_note_restore(struct tier *t, uint64_t ns);
void policy_add(struct page *pg); /* if it may go now */
void policy_remove(struct page *pg); /* if it was there */
void policy_hint(struct page *pg); /* its hint or kind is new */
/* Bring up a page that is not resident and not on its way. */
void page_fetch(struct page *pg);
/* Nobody wants its bytes any more: frame and slot go back. */
void page_discard(struct page *pg);
/* Write a dirty page that nobody changes; it stays where it is. -errno. */
int page_write_back(struct page *pg);
/* durable.c: a write of the page has ended. */
void durable_page_written(struct page *pg, int ret);
/* durable.c: the range is freed: so is its record. */
void durable_forget(struct range *r);
/* Free the range's memory once all its pages have let go. */
void range_look_freed(struct range *r);
void pager_make_room(struct pager *p);
/* pager.c: the page is resident; or will not be. */
void page_arrived(struct page *pg, int from_lower);
void page_failed(struct page *pg, int err);

#endif
