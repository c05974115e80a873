/*
 * move.c - carry pages between frames and slots; see move.h and page.h
 *
 * One operation at a time for a page. Each step runs on a worker (fallocate,
 * punch, checksum) or in the storage engine, then comes back to the loop.
 */
#include "kvd/mem/move.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/stores.h"

#define RETRY_NS 1000000000u /* a page whose write failed rests so long */
#define LOG_NS	 1000000000u

enum op_kind { OP_MAP, OP_READ, OP_WRITE, OP_DROP, OP_SCRUB };

struct page_op {
	struct loop_work work;
	struct kio_req req;
	struct page *page;
	enum op_kind kind;
	int ret;
	uint32_t crc;
	int drop_after;
	uint64_t start_ns;
	struct page_scrub *scrub; /* OP_SCRUB */
	uint32_t want_crc;
};

static void op_end(struct page_op *op);

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
}

static void charge(struct page *pg)
{
	struct pager *p = pg->range->pager;

	pg->charged = 1;
	account_charge(&p->account, ACCOUNT_MEMORY, pg->range->tier->page_bytes,
		       clock_ns());
	stat_set(p->st_mapped_bytes, pager_used(p, ACCOUNT_MEMORY));
}

static void uncharge(struct page *pg)
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

/* The disk of the range: chosen with its first slot. */
static int pick_disk(struct range *r)
{
	int i;

	if (r->has_disk)
		return 0;
	i = stores_pick(r->pager->conf.stores,
			(uint64_t)r->n_pages * r->tier->page_bytes);
	if (i < 0) /* not the whole range: then as much as there is */
		i = stores_pick(r->pager->conf.stores, r->tier->page_bytes);
	if (i < 0)
		return i;
	r->i_disk = (uint32_t)i;
	r->has_disk = 1;
	return 0;
}

static int take_slot(struct page *pg)
{
	const size_t bytes = pg->range->tier->page_bytes;
	struct pager *p = pg->range->pager;
	int64_t slot;
	int ret;

	if (!p->conf.stores || account_room(&p->account, ACCOUNT_DISK) < bytes)
		return -ENOSPC;
	ret = pick_disk(pg->range);
	if (ret)
		return ret;
	slot = kio_store_alloc(disk_of(pg), bytes);
	if (slot < 0)
		return (int)slot;
	pg->slot = slot;
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
	if (pg->slot < 0)
		return;
	if (!pg->range->durable) /* else a record still names it */
		kio_store_release(disk_of(pg), (uint64_t)pg->slot,
				  pg->range->tier->page_bytes);
	slot_gone(pg);
}

/* What is there is not what was written: nobody writes there again. */
static void quarantine_slot(struct page *pg)
{
	kio_store_quarantine(disk_of(pg), (uint64_t)pg->slot,
			     pg->range->tier->page_bytes);
	slot_gone(pg);
}

/* ---- steps on workers ---------------------------------------------------------- */

static void work_map(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);
	struct range *r = op->page->range;

	op->ret = space_map(r->tier->space, r->first + page_index(op->page), 1);
}

static void work_drop(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);
	struct range *r = op->page->range;

	op->ret =
		space_drop(r->tier->space, r->first + page_index(op->page), 1);
}

static void work_crc(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);

	op->crc = kio_crc32c(0, page_addr(op->page),
			     op->page->range->tier->page_bytes);
}

static void start_work(struct page_op *op, void (*run)(struct loop_work *w),
		       void (*done)(struct loop_work *w))
{
	op->work.run = run;
	op->work.done = done;
	loop_work_start(op->page->range->pager->conf.loop, &op->work);
}

static struct page_op *op_begin(struct page *pg, enum op_kind kind)
{
	struct page_op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	assert(!pg->busy);
	policy_remove(pg);
	op->page = pg;
	op->kind = kind;
	op->start_ns = clock_ns();
	pg->busy = 1;
	pg->range->n_busy++;
	pg->range->pager->n_ops++;
	return op;
}

static void op_io(struct page_op *op, void (*done)(struct kio_req *r))
{
	struct page *pg = op->page;

	op->req.buf = page_addr(pg);
	op->req.block = (uint64_t)pg->slot;
	op->req.n_bytes = pg->range->tier->page_bytes;
	op->req.done = done;
	stores_begin(pg->range->pager->conf.stores, pg->range->i_disk,
		     op->req.n_bytes);
}

static void op_io_end(struct page_op *op)
{
	stores_end(op->page->range->pager->conf.stores, op->page->range->i_disk,
		   op->req.n_bytes);
	op->ret = op->req.ret;
}

/* ---- dropping ------------------------------------------------------------------- */

static void drop_done(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);
	struct page *pg = op->page;
	struct pager *p = pg->range->pager;

	account_left(&p->account, pg->range->tier->page_bytes);
	if (op->ret) { /* the frame is still there: so is the page */
		log_warn("move", "%s: punching a hole: %s", p->name,
			 strerror(-op->ret));
		pg->retry_ns = clock_ns() + RETRY_NS;
		if (pg->state == PAGE_DROPPING)
			page_set_state(pg, PAGE_CLEAN);
	} else {
		uncharge(pg);
		if (pg->state == PAGE_DROPPING) {
			page_set_state(pg, PAGE_LOWER);
			p->n_evicted_total++;
			stat_add(p->st_evicted, 1);
		}
	}
	op_end(op);
}

/* Take the frame; the state says what is left (LOWER, EMPTY or LOST). */
static int start_drop(struct page *pg)
{
	struct page_op *op = op_begin(pg, OP_DROP);

	if (!op)
		return -ENOMEM;
	account_leave(&pg->range->pager->account, pg->range->tier->page_bytes);
	start_work(op, work_drop, drop_done);
	return 0;
}

/* Let a clean page go to the lower tier. */
int page_drop(struct page *pg)
{
	int ret;

	page_set_state(pg, PAGE_DROPPING);
	ret = start_drop(pg);
	if (ret)
		page_set_state(pg, PAGE_CLEAN);
	return ret;
}

/* ---- writing ------------------------------------------------------------------------ */

static void log_write_error(struct pager *p, const struct page *pg, int err)
{
	const uint64_t now = clock_ns();

	stat_add(p->st_write_errors, 1);
	if (now - p->logged_ns < LOG_NS)
		return;
	p->logged_ns = now;
	log_warn("move", "%s: page %llu host->disk: %s, kept in host", p->name,
		 (unsigned long long)(pg->range->first + page_index(pg)),
		 strerror(-err));
}

static void write_end(struct page_op *op)
{
	struct page *pg = op->page;
	struct pager *p = pg->range->pager;
	const size_t bytes = pg->range->tier->page_bytes;

	if (op->drop_after)
		account_left(&p->account, bytes);
	if (op->ret && op->ret != -ECANCELED) {
		log_write_error(p, pg, op->ret);
		pg->retry_ns = clock_ns() + RETRY_NS;
	}
	if (op->ret) {
		page_release_slot(pg);
		page_set_state(pg, PAGE_DIRTY);
	} else {
		pg->crc = op->crc;
		page_set_state(pg, PAGE_CLEAN);
		p->n_written_total++;
		p->written_bytes_total += bytes;
		stat_add(p->st_written, 1);
		stat_add(p->st_written_bytes, bytes);
	}
	op_end(op);
}

static void write_done(struct kio_req *r)
{
	struct page_op *op = container_of(r, struct page_op, req);

	op_io_end(op);
	write_end(op);
}

static void write_crc_done(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);
	struct page *pg = op->page;

	if (pg->doomed) { /* not worth the trip */
		op->ret = -ECANCELED;
		write_end(op);
		return;
	}
	op_io(op, write_done);
	kio_store_write(disk_of(pg), &op->req);
}

static int start_write(struct page *pg, int drop_after)
{
	struct page_op *op;
	int ret = take_slot(pg);

	if (ret)
		return ret;
	op = op_begin(pg, OP_WRITE);
	if (!op) {
		page_release_slot(pg);
		return -ENOMEM;
	}
	op->drop_after = drop_after;
	if (drop_after)
		account_leave(&pg->range->pager->account,
			      pg->range->tier->page_bytes);
	page_set_state(pg, PAGE_WRITING);
	start_work(op, work_crc, write_crc_done);
	return 0;
}

int page_write_back(struct page *pg)
{
	return start_write(pg, 0);
}

int page_write_out(struct page *pg)
{
	return start_write(pg, 1);
}

/* ---- mapping and reading ---------------------------------------------------------------- */

/* A frame that did not get its bytes: give it back and say why. */
static void fetch_failed(struct page_op *op, int lost)
{
	struct page *pg = op->page;
	struct pager *p = pg->range->pager;

	if (lost) {
		quarantine_slot(pg);
		pg->lost_err = op->ret;
		page_set_state(pg, PAGE_LOST);
		stat_add(p->st_lost, 1);
		log_warn(
			"move", "%s: page %llu disk->host: %s, lost", p->name,
			(unsigned long long)(pg->range->first + page_index(pg)),
			op->ret == -EBADMSG ? "checksum differs"
					    : strerror(-op->ret));
	} else {
		page_set_state(pg, pg->slot >= 0 ? PAGE_LOWER : PAGE_EMPTY);
	}
	op_end(op);
}

static void read_crc_done(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);
	struct page *pg = op->page;
	struct pager *p = pg->range->pager;

	if (op->crc != pg->crc) {
		op->ret = -EBADMSG;
		fetch_failed(op, 1);
		return;
	}
	page_set_state(pg, PAGE_CLEAN);
	p->n_read_total++;
	p->read_bytes_total += pg->range->tier->page_bytes;
	stat_add(p->st_read, 1);
	stat_add(p->st_read_bytes, pg->range->tier->page_bytes);
	stat_observe(p->st_page_in, clock_ns() - op->start_ns);
	tier_note_restore(pg->range->tier, clock_ns() - op->start_ns);
	op_end(op);
}

static void read_done(struct kio_req *r)
{
	struct page_op *op = container_of(r, struct page_op, req);

	op_io_end(op);
	if (op->ret)
		fetch_failed(op, 1);
	else
		start_work(op, work_crc, read_crc_done);
}

static void map_done(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);
	struct page *pg = op->page;
	struct pager *p = pg->range->pager;

	if (op->ret) {
		if (op->ret == -ENOMEM || op->ret == -EFBIG)
			op->ret = -ENOSPC;
		fetch_failed(op, 0);
		return;
	}
	p->n_mapped_total++;
	stat_add(p->st_mapped, 1);
	if (op->kind == OP_MAP) {
		page_set_state(pg, PAGE_DIRTY);
		op_end(op);
		return;
	}
	op_io(op, read_done);
	kio_store_read(disk_of(pg), &op->req);
}

int page_start_fetch(struct page *pg)
{
	const int lower = pg->state == PAGE_LOWER;
	struct page_op *op = op_begin(pg, lower ? OP_READ : OP_MAP);

	if (!op)
		return -ENOMEM;
	charge(pg);
	page_set_state(pg, lower ? PAGE_READING : PAGE_MAPPING);
	start_work(op, work_map, map_done);
	return 0;
}

/* ---- looking after what is on disk ------------------------------------------------------ */

int page_can_scrub(const struct page *pg)
{
	return pg->slot >= 0 && !pg->busy && !pg->doomed &&
	       list_empty(&pg->starved) && /* about to be fetched */
	       !pg->range->persist && /* its places are being written down */
	       list_empty(&pg->starved) && /* about to be read anyway */
	       (pg->state == PAGE_LOWER || pg->state == PAGE_CLEAN);
}

/* The place is bad. What is in memory is good, and goes to another one. */
static void scrub_failed(struct page_op *op)
{
	struct page *pg = op->page;
	struct range *r = pg->range;
	struct pager *p = r->pager;

	log_warn("scrub", "%s: page %llu on disk: %s, %s", p->name,
		 (unsigned long long)(r->first + page_index(pg)),
		 op->ret == -EBADMSG ? "checksum differs" : strerror(-op->ret),
		 pg->charged ? "kept in host" : "lost");
	quarantine_slot(pg);
	if (!pg->charged) {
		pg->lost_err = op->ret;
		page_set_state(pg, PAGE_LOST);
		stat_add(p->st_lost, 1);
	} else {
		durable_forget(r);
		page_set_state(pg, PAGE_DIRTY);
	}
}

static void scrub_end(struct page_op *op)
{
	struct page *pg = op->page;
	struct page_scrub *s = op->scrub;
	struct pager *p = pg->range->pager;
	/* written meanwhile: that place is nobody's concern any more */
	const int same = pg->slot == (int64_t)op->req.block;
	const int bad = op->ret && same && !pg->doomed;

	if (bad)
		scrub_failed(op);
	else
		op->ret = 0;
	s->done(s, op->ret);
	if (bad && !pg->range->freed && p->conf.damaged)
		p->conf.damaged(p->conf.ctx, pg->range);
	op_end(op);
}

static void work_scrub(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);

	op->crc = kio_crc32c(0, op->scrub->buf, op->scrub->n_bytes);
}

static void scrub_crc_done(struct loop_work *w)
{
	struct page_op *op = container_of(w, struct page_op, work);

	op->ret = op->crc == op->want_crc ? 0 : -EBADMSG;
	scrub_end(op);
}

static void scrub_read(struct kio_req *r)
{
	struct page_op *op = container_of(r, struct page_op, req);

	op_io_end(op);
	if (op->ret)
		scrub_end(op);
	else
		start_work(op, work_scrub, scrub_crc_done);
}

int page_scrub_start(struct page *pg, struct page_scrub *s)
{
	struct page_op *op = op_begin(pg, OP_SCRUB);

	if (!op)
		return -ENOMEM;
	op->scrub = s;
	op->want_crc = pg->crc;
	op_io(op, scrub_read);
	op->req.buf = s->buf;
	kio_store_read(disk_of(pg), &op->req);
	return 0;
}

/* ---- the end of an operation ----------------------------------------------------------------- */

static void settle(struct page *pg, const struct page_op *op)
{
	if (pg->doomed || pg->range->freed) {
		page_discard(pg);
		return;
	}
	if (op->ret && (op->kind == OP_READ || op->kind == OP_MAP)) {
		if (pg->charged) /* the frame of a page that is not there */
			(void)start_drop(pg); /* retried by the next end */
		page_failed(pg, op->ret);
		return;
	}
	if (op->drop_after && pg->state == PAGE_CLEAN && !pg->n_pins &&
	    pager_should_drop(pg->range->pager) && !page_drop(pg))
		return;
	if (pg->state == PAGE_LOST) { /* the scrubber was first */
		page_failed(pg, pg->lost_err);
		return;
	}
	if (page_resident(pg))
		page_arrived(pg, op->kind == OP_READ);
	else if (pg->n_pins && !list_empty(&pg->waiters))
		page_fetch(pg, WANT_STEP);
}

static void op_end(struct page_op *op)
{
	struct page *pg = op->page;
	struct range *r = pg->range;
	struct pager *p = r->pager;

	pg->busy = 0;
	p->n_ops--;
	settle(pg, op);
	if (op->kind == OP_WRITE)
		durable_page_written(pg, op->ret);
	free(op);
	r->n_busy--;
	range_look_freed(r);
	pager_make_room(p);
}

void page_discard(struct page *pg)
{
	struct pager *p = pg->range->pager;

	assert(!pg->n_pins);
	pg->doomed = 1;
	policy_remove(pg);
	page_unstarve(pg);
	if (pg->busy)
		return; /* its end comes here again */
	p->policy->forget(p->policy_state, &pg->evict);
	page_release_slot(pg);
	page_set_state(pg, PAGE_EMPTY);
	if (pg->charged && start_drop(pg))
		log_warn("move", "%s: no memory to free a page", p->name);
}

void range_look_freed(struct range *r)
{
	struct pager *p = r->pager;

	if (!r->freed || r->n_busy)
		return;
	p->n_state[PAGE_EMPTY] -= r->n_virtual;
	(void)space_free(r->tier->space, r->first, r->n_virtual);
	list_del(&r->node);
	free(r);
}
