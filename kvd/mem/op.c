/*
 * op.c - an operation over a run of pages: begin, steps, end; see op.h
 */
#include "kvd/mem/op.h"

#define SLOW_BYTES (16ull << 20) /* to map takes milliseconds */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/mem/dev_op.h"
#include "kvd/mem/stores.h"

/* ---- accounts ------------------------------------------------------------- */

void page_set_state(struct page *pg, enum page_state s)
{
	struct range *r = pg->range;
	const int was = page_resident(pg);

	r->pager->n_state[pg->state]--;
	r->pager->n_state[s]++;
	r->n_lower -= pg->state == PAGE_LOWER;
	r->n_lost -= pg->state == PAGE_LOST;
	if (pg->state == PAGE_CLEAN)
		r->pager->clean_bytes -= r->tier->page_bytes;
	if (s == PAGE_CLEAN)
		r->pager->clean_bytes += r->tier->page_bytes;
	pg->state = (uint8_t)s;
	r->n_lower += s == PAGE_LOWER;
	r->n_lost += s == PAGE_LOST;
	if (was != page_resident(pg))
		r->n_resident += was ? UINT32_MAX : 1u;
	if (r->tier->states)
		page_publish(pg);
}

void page_charge(struct page *pg)
{
	struct pager *p = pg->range->pager;

	pg->charged = 1;
	account_charge(&p->account, ACCOUNT_MEMORY, pg->range->tier->page_bytes,
		       clock_ns());
	stat_set(p->st_mapped_bytes, pager_used(p, ACCOUNT_MEMORY));
}

void page_uncharge(struct page *pg)
{
	struct pager *p = pg->range->pager;

	pg->charged = 0;
	account_uncharge(&p->account, ACCOUNT_MEMORY,
			 pg->range->tier->page_bytes, clock_ns());
	stat_set(p->st_mapped_bytes, pager_used(p, ACCOUNT_MEMORY));
}

static struct kio_store *disk_of(const struct page *pg)
{
	return stores_disk(pg->range->pager->conf.stores, pg->range->i_disk);
}

/* No page of it lies on its disk, or is on the way: it may go to another. */
static int may_leave(const struct range *r)
{
	uint32_t i = 0;

	while (i < r->n_virtual && r->pages[i].slot < 0)
		i++;
	return i == r->n_virtual && !r->n_busy;
}

/* The disk of the range: chosen with its first slot. */
static int pick_disk(struct range *r, uint32_t not_those)
{
	struct stores *s = r->pager->conf.stores;
	int i;

	if (r->has_disk && (!stores_is_bad(s, r->i_disk) || !may_leave(r)))
		return 0;
	i = stores_pick(s, (uint64_t)r->n_pages * r->tier->page_bytes,
			not_those);
	if (i < 0) /* not the whole range: then as much as there is */
		i = stores_pick(s, r->tier->page_bytes, not_those);
	if (i < 0)
		return i;
	r->i_disk = (uint32_t)i;
	r->has_disk = 1;
	return 0;
}

/* What is free of a disk may be of no use for pages of that size: then of the next. */
static int64_t alloc_slot(struct range *r)
{
	const size_t bytes = r->tier->page_bytes;
	uint32_t tried = 0;
	int64_t slot;
	int ret;

	while (!(ret = pick_disk(r, tried))) {
		struct kio_store *s =
			stores_disk(r->pager->conf.stores, r->i_disk);

		slot = r->persist ? kio_store_alloc_kept(s, bytes)
				  : kio_store_alloc(s, bytes);
		if (slot != -ENOSPC || tried >> r->i_disk & 1 || !may_leave(r))
			return slot;
		tried |= 1u << r->i_disk;
		r->has_disk = 0;
	}
	return ret;
}

/* Of no page is its slot, or the one it had, written, or being written, or read. */
static int is_nowhere(const struct range *r)
{
	uint32_t i = 0;

	while (i < r->n_virtual &&
	       ((r->pages[i].slot < 0 && !r->pages[i].busy) ||
		r->pages[i].state == PAGE_WRITING ||
		park_is_unwritten(&r->pages[i])))
		i++;
	return i == r->n_virtual;
}

/* Slots on the disk for all pages that have one: 0, or -ENOSPC and none is taken. */
static int take_slots(const struct range *r, struct kio_store *s, int64_t *to)
{
	const size_t bytes = r->tier->page_bytes;
	uint32_t i;

	for (i = 0; i < r->n_virtual; i++) {
		to[i] = r->pages[i].slot < 0 ? -1
			: r->persist	     ? kio_store_alloc_kept(s, bytes)
					     : kio_store_alloc(s, bytes);
		if (to[i] < 0 && r->pages[i].slot >= 0)
			break;
	}
	if (i == r->n_virtual)
		return 0;
	while (i--)
		if (to[i] >= 0)
			kio_store_release(s, (uint64_t)to[i], bytes);
	return -ENOSPC;
}

static void move_to_slot(struct page *pg, struct kio_store *to, int64_t slot,
			 int aside)
{
	const size_t bytes = pg->range->tier->page_bytes;
	struct kio_store *from = disk_of(pg);

	kio_store_own(from, (uint64_t)pg->slot, bytes, NULL);
	if (aside)
		kio_store_set_aside(from, (uint64_t)pg->slot, bytes);
	else
		kio_store_release(from, (uint64_t)pg->slot, bytes);
	pg->slot = slot;
	kio_store_own(to, (uint64_t)slot, bytes, pg);
}

int page_leave_disk(struct page *refused, int aside)
{
	struct range *r = refused->range;
	struct stores *s = r->pager->conf.stores;
	int64_t *to;
	int i;

	if (!is_nowhere(r))
		return -EBUSY;
	i = stores_pick(s, (uint64_t)r->n_pages * r->tier->page_bytes,
			1u << r->i_disk);
	if (i < 0 || stores_is_bad(s, (uint32_t)i))
		return -ENOSPC;
	to = calloc(r->n_virtual, sizeof(*to));
	if (!to || take_slots(r, stores_disk(s, (uint32_t)i), to)) {
		free(to);
		return -ENOSPC;
	}
	for (uint32_t k = 0; k < r->n_virtual; k++)
		if (to[k] >= 0)
			move_to_slot(&r->pages[k], stores_disk(s, (uint32_t)i),
				     to[k], aside && &r->pages[k] == refused);
	r->i_disk = (uint32_t)i;
	free(to);
	return 0;
}

int page_take_slot(struct page *pg)
{
	const size_t bytes = pg->range->tier->page_bytes;
	struct pager *p = pg->range->pager;
	int64_t slot;

	if (!pager_has_lower(p) ||
	    account_room(&p->account, ACCOUNT_DISK) < bytes)
		return -ENOSPC;
	if (!p->conf.stores) { /* its place is in the host pool */
		pg->slot = 0;
		pager_charge_slots(p, bytes);
		return 0;
	}
	slot = alloc_slot(pg->range);
	if (slot < 0)
		return (int)slot;
	if (stores_is_silent(p->conf.stores, pg->range->i_disk)) {
		kio_store_release(disk_of(pg), (uint64_t)slot, bytes);
		return -EIO;
	}
	pg->slot = slot;
	kio_store_own(disk_of(pg), (uint64_t)slot, bytes, pg);
	pager_charge_slots(p, bytes);
	return 0;
}

static void slot_gone(struct page *pg)
{
	pg->slot = -1;
	pager_uncharge_slots(pg->range->pager, pg->range->tier->page_bytes);
}

void page_release_slot(struct page *pg)
{
	int is_written = 0;

	if (pg->slot < 0)
		return;
	if (pg->parked)
		is_written = park_forget(pg);
	/* none: its records were found, and then it could not be opened after all */
	if (pg->range->pager->conf.stores && disk_of(pg)) {
		const size_t bytes = pg->range->tier->page_bytes;

		kio_store_own(disk_of(pg), (uint64_t)pg->slot, bytes, NULL);
		/* durable: a record still names it */
		if (!pg->range->durable && !is_written)
			kio_store_release(disk_of(pg), (uint64_t)pg->slot,
					  bytes);
	}
	slot_gone(pg);
}

void page_quarantine_slot(struct page *pg)
{
	kio_store_quarantine(disk_of(pg), (uint64_t)pg->slot,
			     pg->range->tier->page_bytes);
	slot_gone(pg);
}

/* The lowest free slot is the next one given out: to be refused again, for ever. */
void page_leave_slot(struct page *pg, int err)
{
	const struct range *r = pg->range;
	struct pager *p = r->pager;

	if (p->conf.device || r->durable || !move_is_medium(err) ||
	    !stores_may_set_aside(p->conf.stores, r->i_disk,
				  r->tier->page_bytes)) {
		page_release_slot(pg);
		return;
	}
	kio_store_set_aside(disk_of(pg), (uint64_t)pg->slot,
			    r->tier->page_bytes);
	slot_gone(pg);
}

void op_work(struct move *op, void (*run)(struct loop_work *w),
	     void (*done)(struct loop_work *w))
{
	op->work.run = run;
	op->work.done = done;
	op->work.slow = op->n * op->page->range->tier->page_bytes > SLOW_BYTES;
	loop_work_start(op->page->range->pager->conf.loop, &op->work);
}

void page_begin(struct page *pg)
{
	assert(!pg->busy);
	policy_remove(pg);
	pg->busy = 1;
	pg->range->n_busy++;
	pg->range->pager->n_ops++;
}

static size_t op_bytes(uint32_t n)
{
	return sizeof(struct move) + n * sizeof(uint32_t);
}

int op_spare_new(struct pager *p)
{
	p->spare = calloc(1, op_bytes(1));
	return p->spare ? 0 : -ENOMEM;
}

static struct move *op_alloc(struct pager *p, uint32_t n)
{
	struct move *op = calloc(1, op_bytes(n));

	if (op || n > 1 || !p->spare || p->conf.device)
		return op;
	op = p->spare;
	p->spare = NULL;
	memset(op, 0, op_bytes(1));
	op->spare_of = p;
	return op;
}

struct move *op_new(struct page *pg, uint32_t n, enum op_kind kind)
{
	struct move *op = op_alloc(pg->range->pager, n);

	if (!op)
		return NULL;
	op->page = pg;
	op->n = n;
	op->kind = kind;
	op->start_ns = clock_ns();
	if (pg->range->pager->conf.device && kind != OP_SCRUB) {
		op->dev = dev_op_new(pg->range, n, kind);
		if (!op->dev) {
			free(op);
			return NULL;
		}
	}
	return op;
}

/* While it is in an operation, in no line, prio says who waits for it. */
void page_hurry(struct page *pg, enum want_prio prio)
{
	struct pager *p = pg->range->pager;

	if (!list_empty(&pg->starved) || prio >= pg->prio)
		return;
	if (p->conf.device) {
		dev_hurry(pg, prio);
		return;
	}
	if (pg->state != PAGE_READING && pg->state != PAGE_WRITING)
		return;
	pg->prio = (uint8_t)prio;
	(void)stores_hurry(p->conf.stores, pg->range->i_disk, &p->flow, prio,
			   (uint64_t)pg->slot);
}

void pager_to_disk(struct pager *p, uint32_t i_disk, uint32_t n_ops,
		   uint64_t leaving)
{
	p->at_disk[i_disk].n_ops += n_ops;
	p->at_disk[i_disk].leaving += leaving;
}

void pager_from_disk(struct pager *p, uint32_t i_disk, uint32_t n_ops,
		     uint64_t leaving)
{
	assert(p->at_disk[i_disk].n_ops >= n_ops &&
	       p->at_disk[i_disk].leaving >= leaving);
	p->at_disk[i_disk].n_ops -= n_ops;
	p->at_disk[i_disk].leaving -= leaving;
}

uint32_t op_prio(const struct move *op)
{
	uint32_t prio = op->prio;

	for (uint32_t i = 0; i < op->n && op->kind != OP_SCRUB; i++)
		prio = KV_MIN(prio, op->page[i].prio);
	return prio;
}

void op_io(struct move *op, void (*done)(struct kio_req *r))
{
	struct page *pg = op->page;
	struct pager *p = pg->range->pager;
	const uint32_t prio = op_prio(op);

	op->req = (struct kio_req){
		.buf = op->kind == OP_SCRUB ? op->scrub->buf : page_addr(pg),
		.block = (uint64_t)pg->slot,
		.n_bytes = op->n * pg->range->tier->page_bytes,
		.prepare = op->prepare,
		.done = done,
	};
	op->leaving = op->kind == OP_WRITE && pg->to_go ? op->req.n_bytes : 0;
	pager_to_disk(p, pg->range->i_disk, op->is_idle ? 0 : op->n,
		      op->leaving);
	if (op->kind != OP_WRITE)
		stores_read(p->conf.stores, pg->range->i_disk, &p->flow, prio,
			    &op->req);
	else
		stores_write(p->conf.stores, pg->range->i_disk, &p->flow, prio,
			     &op->req);
}

void op_io_end(struct move *op)
{
	const struct range *r = op->page->range;

	stores_end(r->pager->conf.stores, r->i_disk, &op->req);
	pager_from_disk(r->pager, r->i_disk, op->is_idle ? 0 : op->n,
			op->leaving);
	op->ret = op->req.ret;
}

/* ---- the end of an operation ------------------------------------------------- */

/* A page of kind's operation has let go; err: why it failed. */
static void settle(struct page *pg, enum op_kind kind, int err)
{
	if (pg->doomed || pg->range->freed) {
		page_discard(pg);
		return;
	}
	if (err && kind == OP_DROP && pg->charged && pg->state != PAGE_CLEAN) {
		page_queue_drop(pg);
		return;
	}
	if (err && (kind == OP_READ || kind == OP_MAP)) {
		const int again = err == -ENOSPC && pg->charged &&
				  pg->range->pager->conf.device;

		if (again) /* its drop ends with a page_fetch() */
			pager_missing(pg->range->pager,
				      pg->range->tier->page_bytes);
		if (pg->charged) /* the frame of a page that is not there */
			page_queue_drop(pg);
		if (!again)
			page_failed(pg, err);
		return;
	}
	if (kind == OP_WRITE && pg->to_go && pg->state == PAGE_CLEAN &&
	    !pg->n_pins && pager_should_drop(pg->range->pager) &&
	    page_may_go(pg)) {
		page_drop(pg);
		return;
	}
	if (pg->state == PAGE_LOST) { /* the scrubber was first */
		page_failed(pg, pg->lost_err);
		return;
	}
	if (page_resident(pg))
		page_arrived(pg, kind == OP_READ);
	else if (pg->n_pins && !list_empty(&pg->waiters))
		page_fetch(pg, WANT_STEP);
}

void page_end(struct page *pg, enum op_kind kind, int err)
{
	pg->busy = 0;
	pg->range->pager->n_ops--;
	settle(pg, kind, err);
	/* dirty again while it was scrubbed or moved: it can be written now */
	if (kind == OP_WRITE || kind == OP_SCRUB || kind == OP_CLEAN)
		durable_page_let_go(pg, kind == OP_WRITE ? err : 0);
}

void op_release(struct move *op)
{
	dev_op_free(op->dev);
	if (op->spare_of)
		op->spare_of->spare = op;
	else
		free(op);
}

void op_free(struct move *op)
{
	struct range *r = op->page->range;
	struct pager *p = r->pager;

	r->n_busy -= op->n;
	op_release(op);
	range_look_freed(r);
	pager_make_room(p);
}
