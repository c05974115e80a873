/*
 * page.h - a page, its states, a range of pages; inside kvd/mem
 *
 *   EMPTY --map--> DIRTY --write--> WRITING --> CLEAN --drop--> DROPPING --> LOWER
 *                    ^                            |                            |
 *                    +--------- PAGE_WRITE -------+                          read
 *                                                                              |
 *                                          CLEAN <-- READING <-----------------+
 *                                          LOST  <--/ (wrong bytes, bad medium)
 *
 *  (1) has_frame() states are charged to the pager's memory, one page each.
 *  (2) slot >= 0 in CLEAN, DROPPING, LOWER, READING, and in WRITING.
 *  (3) A page with an operation in flight (busy) belongs to it; others only pin. In
 *      WRITING others read its bytes too; who wants to write waits for the end.
 *  (4) In the policy's hands: DIRTY or CLEAN, not pinned, not busy.
 *  (6) With a device (device.h) a slot's bytes may be in the host pool only (parked);
 *      without a disk they always are, and the slot is no more than a mark.
 *  (5) waiters are the wants that miss the page; it has pins for each.
 */
#ifndef KVD_MEM_PAGE_H
#define KVD_MEM_PAGE_H

#include "kvd/mem/evict.h"
#include "kvd/mem/pager.h"
#include "kvd/mem/space.h"

enum page_state {
	PAGE_EMPTY,
	PAGE_MAPPING, /* a frame is on its way */
	PAGE_DIRTY,
	PAGE_WRITING,
	PAGE_CLEAN,
	PAGE_DROPPING,
	PAGE_LOWER,
	PAGE_READING,
	PAGE_LOST,
	PAGE_N_STATES,
};

struct page {
	struct range *range;
	struct evict_node evict;
	struct list starved; /* in a line of the pager: for room, or to move */
	struct list waiters; /* struct page_wait */
	int64_t slot;
	struct parked *parked; /* with a device: its copy in the host pool */
	uint32_t crc;
	uint32_t n_pins;
	uint8_t state;
	uint8_t busy;
	uint8_t in_policy;
	uint8_t doomed; /* trimmed away or freed while busy */
	uint8_t charged;
	uint8_t stuck; /* its frame could not be taken */
	uint8_t resting; /* and that will be tried again; busy until then */
	uint8_t mapped; /* with a device: it has frames (charged comes before) */
	uint8_t prio; /* of the line for room it stands in; else WANT_PRIOS */
	uint8_t to_go; /* WRITING: dropped after, if still asked for */
	int lost_err;
	uint64_t retry_ns; /* not a victim before (a write failed) */
};

struct parked;
struct tier; /* space and page file of one page size */

struct range {
	struct list node; /* of the pager's */
	struct pager *pager;
	struct tier *tier;
	uint64_t first; /* virtual page */
	uint32_t n_pages;
	uint32_t n_virtual;
	uint32_t n_resident, n_lower, n_lost, n_busy;
	void *owner; /* range_set_owner() */
	uint32_t i_disk; /* has_disk: where its slots are */
	int has_disk;
	int freed;
	int awaited; /* RANGE_AWAITED */
	float compute_cost; /* range_cost(); 0: not known */
	float gain; /* range_gain() */
	int durable;
	uint64_t record; /* durable: its handle in the store */
	struct range_persist *persist; /* on its way to be durable */
	struct page pages[];
};

static inline int page_resident(const struct page *p)
{
	return p->state == PAGE_DIRTY || p->state == PAGE_CLEAN ||
	       p->state == PAGE_WRITING;
}
static inline uint32_t page_index(const struct page *p)
{
	return (uint32_t)(p - p->range->pages);
}
static inline char *page_addr(const struct page *p)
{
	return range_addr(p->range) +
	       (size_t)page_index(p) * range_page_bytes(p->range);
}

#endif
