/*
 * move.h - pages between frames and slots; inside kvd/mem
 *
 * Who wants room stands in a line of its pager (room.c), by urgency. Whatever
 * gives room (a drop that ended, an unpin, a freed range) calls
 * pager_make_room(): on a turn of its own all lines are served, and as many
 * victims sent on their way as the lines lack.
 */
#ifndef KVD_MEM_MOVE_H
#define KVD_MEM_MOVE_H

#include "kvd/base/stat.h"
#include "kvd/mem/account.h"
#include "kvd/mem/page.h"
#include "kvd/mem/park.h"
#include "kvd/mem/stores.h"

/* Space of one page size. */
struct tier {
	struct tier *next;
	uint32_t id; /* from 1, of the pager */
	size_t page_bytes;
	uint32_t n_ranges;
	float ns_per_byte; /* of restoring a page: moving average; 0: none yet */
	char *base; /* of page 0 */
	struct space *space; /* in host memory; else NULL */
	int is_shared; /* others have its file, and can fill its holes */
	uint8_t *states; /* states.c; NULL: nobody asked */
	struct vmm_space *dev_space; /* of the device; else NULL */
	uint64_t n_mapped; /* of the device: pages with frames */
};

struct pager {
	struct pager_conf conf;
	char name[64];
	struct tier *tiers; /* PAGER_PAGE_SIZES at most */
	uint32_t n_tiers_total; /* so far: ids are not used again */
	struct list ranges;
	struct list starved[WANT_PRIOS]; /* struct page.starved */
	const struct evict_policy *policy;
	void *policy_state;
	struct account account;
	struct accounts own; /* conf.accounts NULL: a pool for itself */
	uint64_t pinned_bytes;
	uint64_t clean_bytes; /* in PAGE_CLEAN */
	uint64_t policy_bytes; /* in the policy's hands */
	uint64_t n_durable, durable_bytes; /* ranges */
	uint32_t n_ops; /* pages in operations */
	uint32_t
		n_idle; /* of those: no frame is to be had of them afterwards */
	struct { /* of n_ops, without n_idle: in line at a disk, or with it */
		uint32_t n_ops;
		uint64_t leaving; /* bytes of account.leaving */
	} at_disk[STORES_MAX];
	uint64_t writing_bytes;
	struct list drops, writes; /* page.starved: about to start */
	struct move *spare; /* op_new(); NULL while it is in use */
	struct list resting; /* page.starved: frames that could not be taken */
	struct loop_timer rest_timer;
	int closing; /* frames go with their spaces */
	struct stores_flow flow;
	uint32_t tenant; /* of its frames: with a device */
	struct park_part part; /* the same */
	struct list dev_ops; /* the same: struct dev_op.node */
	int keep_records; /* the daemon stops */
	struct list persists; /* struct range_persist: on their way */
	int refused; /* a reservation had to wait */
	uint64_t n_state[PAGE_N_STATES];
	uint64_t n_map_waits_total;
	uint64_t n_mapped_total, n_evicted_total, n_read_total, n_written_total,
		read_bytes_total, written_bytes_total;
	struct stat *st_mapped, *st_evicted, *st_read, *st_written,
		*st_read_bytes, *st_written_bytes, *st_lost, *st_write_errors,
		*st_mapped_bytes, *st_slot_bytes, *st_io_held, *st_small,
		*st_byte_s[PAGER_TIERS], *st_page_in;
	uint64_t logged_ns;
};

int tier_get(struct pager *p, size_t page_bytes, struct tier **out);
/* 1: its frames are pages of 4 KiB. */
int tier_is_small(const struct tier *t);
/* Bytes of frames of t's pages. */
uint64_t tier_bytes(const struct tier *t);
/* 1: a page that goes down has a place there. */
static inline int pager_has_lower(const struct pager *p)
{
	return p->conf.disk_bytes && (p->conf.stores || p->conf.device);
}
void page_set_state(struct page *pg, enum page_state s);
/*
 * states.c: write down whether pg is there (its tier has states); may its frame be taken?
 * 0: a client is about to map it, so not now.
 */
void page_publish(struct page *pg);
int page_may_go(struct page *pg);
/* Try again to take the frames of pages that rest. */
void pager_wake_resting(struct pager *p);
void page_release_slot(struct page *pg);
/* pager.c: it took ns to restore a page. */
void tier_note_restore(struct tier *t, uint64_t ns);
void policy_add(struct page *pg); /* if it may go now */
void policy_remove(struct page *pg); /* if it was there */
void policy_taken(struct page *pg); /* victim() gave it */
void policy_hint(struct page *pg); /* its hint or kind is new */
/* There is room for n pages from pg on: charge and go. -ENOMEM. */
int page_start_fetch(struct page *pg, uint32_t n, enum want_prio prio);
/* 1: pg[n] can come in one operation with the n pages before it. */
int page_fetches_along(const struct page *pg, uint32_t n);
/* Let a clean page go to the lower tier. */
void page_drop(struct page *pg);
/* Write a dirty page; dropped after if somebody still lacks room. -errno. */
int page_write_out(struct page *pg);
/* Start what page_drop(), page_write_out() and page_write_back() gathered. */
void pager_send(struct pager *p);
/* Nobody wants its bytes any more: frame and slot go back. */
void page_discard(struct page *pg);
/* Write a dirty page that nobody changes; it stays where it is. -errno. */
int page_write_back(struct page *pg);
/* durable.c: an operation that kept the page from being written has ended; ret: of a write. */
void durable_page_let_go(struct page *pg, int ret);
/* durable.c: the range is freed: so is its record. */
void durable_forget(struct range *r);
/* durable.c: it is gone, its record, if that is to stay, is not. */
void durable_gone(struct range *r);
/* One of its places went bad, the bytes did not: its record goes, the rest stays. */
void durable_spoilt(struct range *r);
/* Free the range's memory once all its pages have let go. */
void range_look_freed(struct range *r);
/* room.c: have a page that is not resident and not on its way brought up. */
void page_fetch(struct page *pg, enum want_prio prio);
/* It stands in no line any more. */
void page_unstarve(struct page *pg);
/* The device had no frames for bytes that are charged: others must go first. */
void pager_missing(struct pager *p, uint64_t bytes);
/*
 * Of bytes of disk that p lacks, those that its share has and others have borrowed: if there
 * is no room for them, else 0. And have what these keep for reuse given up, until
 * there is: how many times that was done. From a turn of its own, as reclaim() is.
 */
uint64_t pager_disk_lent(const struct pager *p, uint64_t bytes);
int pager_call_disk_back(struct pager *p, uint64_t bytes);
/* 1: a page that was written to make room is still asked to go. */
int pager_should_drop(const struct pager *p);
void pager_make_room(struct pager *p);
/* The same a little later: something passes by itself. */
void pager_look_again(struct pager *p);
void accounts_make_room(struct accounts *as);
void pager_stat_usage(struct pager *p, uint64_t now_ns);
uint64_t pager_used(const struct pager *p, enum account_tier t);
void pager_charge_slots(struct pager *p, uint64_t bytes);
void pager_uncharge_slots(struct pager *p, uint64_t bytes);
/* pager.c: the page is resident; or will not be. */
void page_arrived(struct page *pg, int from_lower);
void page_failed(struct page *pg, int err);

#endif
