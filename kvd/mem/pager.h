/*
 * pager.h - virtual ranges of pages, made resident and pinned under a budget
 *
 * One pager per tenant. A range is a contiguous run of virtual pages of one
 * size (space.h: one sparse file per page size, the file offset is the virtual
 * address). A page:
 *
 *            want                 written (crc, slot)          drop
 *   EMPTY --------> DIRTY <------------------------> CLEAN ---------> LOWER
 *                     ^       want with PAGE_WRITE                      |
 *                     +----------------- read, crc checked -------------+
 *
 *  (1) A page has a frame (is charged to the account) in every state but EMPTY, LOWER
 *      and LOST; it is charged before allocation, released after the hole was punched.
 *  (2) A pinned page is resident; it is neither dropped nor moved.
 *  (3) A page on the lower tier has a slot and the CRC32C of its bytes; bytes
 *      that do not match are never mapped: the page becomes LOST.
 *  (4) mapped bytes <= memory_bytes and slots <= disk_bytes at every instant, and
 *      the sums over all pagers of one struct accounts within its pools.
 *  (5) pinned bytes <= reserved bytes: who pins has reserved before, so a want of a
 *      holder always comes to its end (account.h has the argument).
 *
 * Thread: loop thread. fallocate, punching, checksums run on loop workers,
 * reads and writes in the kio_engine. Nothing here blocks.
 */
#ifndef KVD_MEM_PAGER_H
#define KVD_MEM_PAGER_H

#include <stddef.h>
#include <stdint.h>
#include "io/store.h"
#include "kvd/base/list.h"
#include "kvd/base/loop.h"
#include "kvd/base/wait.h"

struct accounts;
struct device;
struct pager;
struct range;
struct stores;

struct pager_conf {
	const char *name; /* of the tenant: metrics and logs */
	uint64_t memory_bytes; /* hard */
	uint64_t disk_bytes; /* hard; 0: nothing is paged out */
	struct accounts *accounts; /* account.h; NULL: a pool for itself */
	uint64_t memory_floor, disk_floor; /* guaranteed */
	uint32_t weight; /* of the rest; 0: 1 */
	uint64_t io_limit; /* bytes a second from and to disks; 0: none */
	int huge_dir; /* of space_huge_dir(), borrowed; 0: none */
	int folios; /* smaller ones, where huge_dir is of no use */
	int mlock; /* lock frames as far as RLIMIT_MEMLOCK goes */
	int numa_node; /* -1: where the thread runs */
	const char *policy; /* evict.h: "clock", "lru", ... */
	struct loop *loop;
	struct stores *stores; /* shared by all pagers, or NULL: no disk */
	/*
	 * device.h: frames are the device's, and what goes down goes to its host pool
	 * first; without stores disk_bytes are bytes of that. NULL: host memory.
	 */
	struct device *device;
	/*
	 * Memory and disk are full of what nobody uses: let go of some of it
	 * (range_free() of at least one range). Returns 0, or -ENOSPC when there
	 * is nothing. Called on the loop thread from a turn of its own.
	 */
	int (*reclaim)(void *ctx);
	/*
	 * A page of r was found bad on disk: r has a LOST page, or it has not but is
	 * not durable any more. The callee may free r. NULL.
	 */
	void (*damaged)(void *ctx, struct range *r);
	/* A reservation that got -EAGAIN may go now; on a turn of its own. NULL. */
	void (*reservable)(void *ctx);
	/*
	 * Does a client hold this page (range_states()) of that file? Then it is not
	 * dropped now. NULL: no states are shown.
	 */
	int (*held)(void *ctx, uint32_t file_id, uint64_t page);
	void *ctx;
};
int pager_new(struct pager **out, const struct pager_conf *conf);
/* All ranges were freed before. Turns the loop until what is in flight has ended. */
void pager_free(struct pager *p);
/* 1 when nothing is in flight and no range is left. */
int pager_idle(const struct pager *p);

/* What page sizes are a multiple of: 4096, or frames of the device. */
size_t pager_page_align(const struct pager *p);
/* 1: somebody waits for room. */
int pager_starved(const struct pager *p);
/* 1: there is a disk, and what is on it can survive a restart. */
int pager_durable(const struct pager *p);

/* ---- ranges ------------------------------------------------------------ */

/*
 * Reserve n_pages consecutive virtual pages of page_bytes (multiple of 4096), all
 * EMPTY. -ENOMEM address space, -EINVAL; -EDQUOT ranges of PAGER_PAGE_SIZES other page
 * sizes exist.
 */
#define PAGER_PAGE_SIZES 24u
int range_new(struct pager *p, size_t page_bytes, uint32_t n_pages,
	      struct range **out);
/* No page is pinned and no want names it. Frames and slots go back (perhaps a
 * little later, when I/O in flight on them has ended). NULL is fine. */
void range_free(struct range *r);
/* Give back all pages from n_keep on; the same conditions for them. */
void range_trim(struct range *r, uint32_t n_keep);
/* Address of page 0; valid until range_free(); read only what is pinned. */
char *range_addr(const struct range *r);
struct pager *range_pager(const struct range *r);
/* Whose it is: the caller's to set, never looked at here; NULL at first. */
void range_set_owner(struct range *r, void *owner);
void *range_owner(const struct range *r);
uint32_t range_n_pages(const struct range *r);
size_t range_page_bytes(const struct range *r);
/* Pages of r that have a frame now. */
uint32_t range_n_resident(const struct range *r);
/*
 * 1: what r has is on a disk that is silent, and nowhere else: to free it makes no room now.
 */
int range_is_away(const struct range *r);
/* Pages of r on the lower tier only. */
uint32_t range_n_lower(const struct range *r);
/*
 * How long it would take now to bring in what of pages [first, first + n) is on disk
 * only; 0: it is in memory, or on its way. In ns, from the rate of the disk.
 */
uint64_t range_load_ns(const struct range *r, uint32_t first, uint32_t n);
/* Bytes of these pages that are on disk only, and not on their way: of a disk that is
 * silent, those too. */
uint64_t range_lower_bytes(const struct range *r, uint32_t first, uint32_t n);
/* Bytes of these pages that are on their way up, or in line for that. */
uint64_t range_coming_bytes(const struct range *r, uint32_t first, uint32_t n);
/* The disk that r lies on, or without one the first. */
uint32_t range_disk(const struct range *r);
uint32_t pager_n_disks(const struct pager *p);
/* Of disk i for this pager: bytes a second of late, bytes queued. */
void pager_disk_speed(const struct pager *p, uint32_t i, double *bytes_per_s,
		      uint64_t *queue_bytes);
/* Of all disks together, that its limit allows: bytes a second, 0 without one. */
void pager_disks_limit(const struct pager *p, double *bytes_per_s,
		       uint64_t *queue_bytes);
/*
 * The disk is silent (stores_on_silent()): what waits to be written there stays dirty, what was to
 * be read and nobody waits for any more gives back its frames.
 */
void pager_leave_disk(struct pager *p, uint32_t i_disk);
/* 1: one of its disks is. */
int pager_any_silent(const struct pager *p);
/* 1 if a page of r is LOST (its bytes failed the check or the read). */
int range_lost(const struct range *r);
/* A hint for eviction. Of each page it holds until that is used, or another comes. */
enum range_hint {
	RANGE_COLD, /* nobody runs on r any more: it is only kept for reuse */
	RANGE_HOT, /* it is about to be used again */
	RANGE_AWAITED, /* HOT, and again after each use, until another comes */
};
void range_hint(struct range *r, enum range_hint hint);
/* Pages [first, first + n) behave like others of that kind (< EVICT_KINDS). */
void range_class(struct range *r, uint32_t first, uint32_t n, uint32_t kind);
/* What a page of r costs to compute again, ns per byte (> 0). When it is not there it
 * costs that, or what pages of that size took to come from the lower tier if less. */
void range_cost(struct range *r, float ns_per_byte);
/* What the next uses of r save, for policies that score by it (evict.h): 1 / max(CFO,
 * 0.05), from 1 (as good as computed anew) to RANGE_GAIN_MAX (used as it is). */
#define RANGE_GAIN_MAX 20.0f
void range_gain(struct range *r, float gain);

/* ---- admission ----------------------------------------------------------- */

/*
 * Reserve bytes for pins: 0; -EAGAIN others hold too much now (reservable() will
 * be told); -ENOSPC more than the share, and not free now.
 */
int pager_reserve(struct pager *p, uint64_t bytes);
void pager_unreserve(struct pager *p, uint64_t bytes);
/* Who got -EAGAIN does not wait any more: the share is not kept free for it. */
void pager_reserve_forget(struct pager *p);
uint64_t pager_reservable(const struct pager *p); /* bytes left now */
/* The share: what a reservation can always wait for. */
uint64_t pager_memory_bytes(const struct pager *p);
/* Bytes of pages that are sure of a place, in memory or on disk. */
uint64_t pager_place_bytes(const struct pager *p);

/* ---- want, pin ------------------------------------------------------------ */

#define PAGE_WRITE 1u /* the holder writes: the page is DIRTY from now on */

/* How urgent. The last two use free frames only and never have a page evicted. */
enum want_prio {
	WANT_STEP, /* the running step waits for it */
	WANT_NEXT, /* the next one will */
	WANT_PREFETCH,
	WANT_BACKGROUND,
	WANT_PRIOS
};

struct page_run {
	struct range *range;
	uint32_t first;
	uint32_t n;
	uint32_t flags; /* PAGE_WRITE */
};
/* Memory is the caller's, runs too, until told or cancelled. */
struct page_want {
	struct wait wait; /* told 0: all are pinned; else none is */
	struct list node; /* the pager's */
	struct page_run *runs;
	uint32_t n_runs;
	enum want_prio prio;
	int ahead; /* 1: nobody waits yet, so no wait for a mapping is counted */
	uint32_t n_missing; /* the pager's: pages not yet there */
	uint32_t n_read; /* out: pages that came from the lower tier */
	int ret; /* the pager's */
	struct loop_call call; /* the pager's */
};
/* One that was asked for ahead is waited for now. */
void page_want_waits(struct page_want *w);
/*
 * Make all pages of the runs resident and pinned, all or nothing. An EMPTY page
 * becomes a frame of zeros. Returns 1 when they are already (then wait is not told), 0
 * when the wait will be: 0, -EBADMSG a page failed its check, -EIO, -ENOSPC
 * neither memory nor disk could be had.
 */
int page_want(struct pager *p, struct page_want *w);
/* Forget w; it is not told, nothing stays pinned for it. */
void page_want_cancel(struct pager *p, struct page_want *w);
/* Undo a successful want. */
void page_unpin(struct pager *p, const struct page_run *runs, uint32_t n_runs);
/* Bring pages up (an EMPTY page gets a frame) without pinning, WANT_PREFETCH.
 * Best effort. */
void page_prefetch(struct pager *p, const struct page_run *runs,
		   uint32_t n_runs);

/*
 * For export (vmm_cuda.h): with a device, the space that r lies in and its first page
 * there; NULL in host memory.
 */
struct vmm_space;
struct vmm_space *range_vmm_space(const struct range *r, uint64_t *first);
/* The device of p; NULL: host memory. */
struct device *pager_device(const struct pager *p);

/*
 * For maps of clients (uffd.h). The file behind r: a read-only descriptor (the
 * pager's), where page 0 lies in it, and the number of the file (> 0, of this
 * pager). -errno when there is no such descriptor.
 */
struct range_file {
	int fd;
	uint32_t id;
	uint64_t off_bytes;
};
int range_file(const struct range *r, struct range_file *out);
/*
 * The bytes that tell which pages of that file are there, one a page (1: it is; page 0 of
 * r is off_bytes / page_bytes): a read-only descriptor, the pager's. Who reads them,
 * and says what it holds, may map what is there (states.c). -errno: cannot be had.
 */
int range_states(const struct range *r);
/*
 * Pin those pages from first on, at most n, that are resident already, for a
 * moment and without a reservation: nobody may wait for anything of the pager's
 * while holding them. Returns how many; page_let_go() undoes it.
 */
uint32_t page_hold(struct range *r, uint32_t first, uint32_t n);
void page_let_go(struct range *r, uint32_t first, uint32_t n);

/* ---- what there is ---------------------------------------------------------- */

struct pager_info {
	uint64_t memory_bytes, mapped_bytes, pinned_bytes, reserved_bytes;
	uint64_t evictable_bytes; /* of mapped: whatever could go now */
	uint64_t disk_bytes, slot_bytes;
	uint64_t n_durable, durable_bytes; /* ranges */
	uint64_t n_empty, n_dirty, n_clean, n_lower, n_in_flight, n_lost;
	uint64_t n_mapped_total, n_evicted_total, n_read_total, n_written_total;
	uint64_t read_bytes_total, written_bytes_total, n_lost_total;
	uint64_t n_map_waits_total; /* somebody waited for a frame of zeros */
	/* st_blocks * 512 of the space files; with a device: pages with frames */
	uint64_t file_bytes;
	uint64_t small_bytes; /* of them in pages of 4 KiB (folio.h) */
	uint64_t host_bytes, host_dirty_bytes; /* device.h: in the host pool */
};
void pager_info(struct pager *p, struct pager_info *out);
/*
 * The account: of memory [0] and disk [1]; with a device, of its host pool [2], where
 * nothing is guaranteed and all that others leave may be had. Without a disk those
 * bytes are the disk's, too.
 */
#define PAGER_TIERS 3
struct pager_usage {
	uint32_t weight;
	int n_tiers; /* 2, 3 */
	uint64_t io_limit, io_held; /* reads that waited for the limit */
	struct pager_usage_tier {
		uint64_t limit, floor, share, used;
		double byte_seconds; /* since the start */
	} tiers[PAGER_TIERS];
};
void pager_usage(struct pager *p, struct pager_usage *out);
/* Walk every invariant; asserts. st_blocks of the space files equals the sum
 * of the pages with frames (only when nothing is in flight). Debug and tests. */
void pager_check(struct pager *p);

#endif
