/*
 * move.c - carry pages between frames and slots; see move.h and page.h
 *
 * One operation (struct move, op.h) carries a run: pages of one range that follow each
 * other, and whose slots do where the disk is involved. So a run costs one
 * fallocate, one read or write, one hole. Each step runs on a worker (fallocate,
 * punch, checksum) or in the storage engine, then comes back to the loop.
 *
 *  (1) A page is in one operation at most, from page_begin() to page_end().
 *  (2) A run that could not be read or mapped is done again page by page, so that
 *      one bad block costs one page. What failed to be written goes alone next time.
 *      A page is lost when its bytes are wrong, or the medium refuses it each
 *      time; what may pass (no memory, an interrupt) costs a want, no page.
 *  (3) Writes and drops are gathered in lines and leave on the next turn, as runs.
 */
#include "kvd/mem/op.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/dev_op.h"
#include "kvd/mem/device.h"
#include "kvd/mem/park_priv.h"
#include "kvd/mem/stores.h"

#define RETRY_NS   1000000000u /* a page whose write failed rests so long */
#define LOG_NS	   1000000000u
#define RUN_BYTES  (2u << 20) /* of a read or write */
#define LAZY_BYTES (8u << 20) /* of a write that nobody waits for */
#define DROP_BYTES (16u << 20)
#define SUM_BYTES  (1u << 20) /* it pays that one thread sums and writes */

/* ---- steps on workers ---------------------------------------------------------- */

static void work_map(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);
	struct range *r = op->page->range;

	op->ret = space_map(r->tier->space, r->first + page_index(op->page),
			    op->n);
}

static void work_drop(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);
	struct range *r = op->page->range;

	op->ret = space_drop(r->tier->space, r->first + page_index(op->page),
			     op->n);
}

static void sum(struct move *op)
{
	const size_t bytes = op->page->range->tier->page_bytes;

	for (uint32_t i = 0; i < op->n; i++)
		op->crc[i] = kio_crc32c(0, page_addr(op->page + i), bytes);
}

static void work_crc(struct loop_work *w)
{
	sum(container_of(w, struct move, work));
}

static void prepare_crc(struct kio_req *r)
{
	const uint64_t t0 = clock_ns();

	sum(container_of(r, struct move, req));
	r->prepare_ns = clock_ns() - t0;
}

/* ---- a run that failed ----------------------------------------------------- */

/*
 * Go on page by page from a step that failed for the run. 0, or -ENOMEM: then it
 * has failed. n_ops and n_busy go over to the parts.
 */
static int op_split(struct move *op, void (*go)(struct move *one))
{
	struct move *one[op->n];
	uint32_t i;

	for (i = 0; i < op->n; i++) {
		one[i] = op_new(op->page + i, 1, op->kind);
		if (!one[i])
			break;
		one[i]->prio = op->prio;
		one[i]->start_ns = op->start_ns;
		one[i]->n_tries = op->n > 1 ? 0 : op->n_tries + 1;
	}
	if (i < op->n) {
		while (i--)
			op_release(one[i]);
		return -ENOMEM;
	}
	for (i = 0; i < op->n; i++)
		go(one[i]);
	op_release(op);
	return 0;
}

/* ---- dropping ------------------------------------------------------------------- */

static void drop_end(struct page *pg, int err)
{
	struct pager *p = pg->range->pager;

	account_left(&p->account, pg->range->tier->page_bytes);
	if (p->closing)
		err = 0; /* the space goes, and all frames with it */
	if (err) { /* the frame is still there: so is the page */
		pg->retry_ns = clock_ns() + RETRY_NS;
		if (pg->state == PAGE_DROPPING)
			page_set_state(pg, PAGE_CLEAN);
		pg->stuck = pg->state != PAGE_CLEAN || pg->doomed;
	} else {
		page_uncharge(pg);
		if (pg->state == PAGE_DROPPING) {
			page_set_state(pg, PAGE_LOWER);
			p->n_evicted_total++;
			stat_add(p->st_evicted, 1);
		}
	}
	page_end(pg, OP_DROP, err);
}

void move_dropped(struct move *op)
{
	if (op->ret)
		log_warn("move", "%s: punching a hole: %s",
			 op->page->range->pager->name, strerror(-op->ret));
	for (uint32_t i = 0; i < op->n; i++)
		drop_end(op->page + i, op->ret);
	op_free(op);
}

static void drop_done(struct loop_work *w)
{
	move_dropped(container_of(w, struct move, work));
}

/* ---- lines of pages about to move ----------------------------------------------- */

static void line_push(struct list *line, struct page *pg)
{
	assert(list_empty(&pg->starved));
	pg->prio = WANT_PRIOS; /* it does not wait for room */
	list_push(line, &pg->starved);
	pager_make_room(pg->range->pager);
}

static struct page *line_first(struct list *line)
{
	struct list *n = list_first(line);

	return n ? list_entry(n, struct page, starved) : NULL;
}

/* The first page of the line and those behind it that go along; 0: none. */
static uint32_t line_run(struct list *line, size_t most_bytes,
			 int (*along)(const struct page *pg, uint32_t n),
			 struct page **out)
{
	struct page *pg = line_first(line), *next;
	uint32_t n = 0;

	*out = pg;
	if (!pg)
		return 0;
	do {
		list_del(&pg[n++].starved);
		next = line_first(line);
	} while (next && next->range == pg->range && next == pg + n &&
		 (n + 1) * pg->range->tier->page_bytes <= most_bytes &&
		 along(pg, n));
	return n;
}

/* They stay in line. */
static void line_undo(struct list *line, struct page *pg, uint32_t n)
{
	while (n--)
		list_push_front(line, &pg[n].starved);
}

/* Over the n pages, or the first alone; NULL: no memory, they wait in line for it. */
static struct move *line_op(struct list *line, struct page *pg, uint32_t n,
			    enum op_kind kind)
{
	struct move *op = op_new(pg, n, kind);

	if (op)
		return op;
	line_undo(line, pg + 1, n - 1);
	op = n > 1 ? op_new(pg, 1, kind) : NULL;
	if (!op) {
		line_undo(line, pg, 1);
		pager_look_again(pg->range->pager);
	}
	return op;
}

static void rest_over(struct loop_timer *t)
{
	pager_wake_resting(container_of(t, struct pager, rest_timer));
}

/*
 * The frame could not be taken, and nothing else can be done with the page: not again at
 * once. It is busy, but not an operation that anybody should wait for.
 */
static void rest(struct page *pg)
{
	struct pager *p = pg->range->pager;

	pg->busy = pg->resting = 1;
	pg->range->n_busy++;
	pg->prio = WANT_PRIOS;
	list_push(&p->resting, &pg->starved);
	if (list_empty(&p->rest_timer.node)) {
		p->rest_timer.run = rest_over;
		loop_timer_set(p->conf.loop, &p->rest_timer, pg->retry_ns);
	}
	page_failed(pg, -EIO);
}

void pager_wake_resting(struct pager *p)
{
	struct list *n;

	while ((n = list_pop(&p->resting))) {
		struct page *pg = list_entry(n, struct page, starved);

		pg->busy = pg->resting = pg->stuck = 0;
		if (pg->doomed)
			page_discard(pg);
		else
			page_queue_drop(pg);
		pg->range->n_busy--;
	}
}

/* Take the frame; the state says what is left (LOWER, EMPTY or LOST). */
void page_queue_drop(struct page *pg)
{
	struct pager *p = pg->range->pager;

	if (pg->stuck) {
		rest(pg);
		return;
	}
	page_begin(pg);
	account_leave(&p->account, pg->range->tier->page_bytes);
	line_push(&p->drops, pg);
}

static int always(const struct page *pg, uint32_t n)
{
	(void)pg;
	(void)n;
	return 1;
}

static void send_drops(struct pager *p)
{
	struct page *pg;
	uint32_t n;

	while ((n = line_run(&p->drops, DROP_BYTES, always, &pg))) {
		struct move *op = line_op(&p->drops, pg, n, OP_DROP);

		if (!op)
			return;
		if (op->dev)
			dev_drop(op);
		else
			op_work(op, work_drop, drop_done);
	}
}

void page_drop(struct page *pg)
{
	page_set_state(pg, PAGE_DROPPING);
	page_queue_drop(pg);
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

static void write_page_end(struct move *op, uint32_t i)
{
	struct page *pg = op->page + i;
	struct pager *p = pg->range->pager;
	const size_t bytes = pg->range->tier->page_bytes;

	p->writing_bytes -= bytes;
	if (pg->to_go)
		account_left(&p->account, bytes);
	if (op->ret && op->ret != -ECANCELED) {
		log_write_error(p, pg, op->ret);
		pg->retry_ns = clock_ns() + RETRY_NS;
	}
	if (op->ret) {
		page_leave_slot(pg, op->n == 1 ? op->ret : 0);
		page_set_state(pg, PAGE_DIRTY);
	} else {
		pg->crc = op->crc[i];
		pg->retry_ns = 0;
		page_set_state(pg, PAGE_CLEAN);
		p->n_written_total++;
		p->written_bytes_total += bytes;
		stat_add(p->st_written, 1);
		stat_add(p->st_written_bytes, bytes);
	}
	page_end(pg, OP_WRITE, op->ret);
}

void move_written(struct move *op)
{
	for (uint32_t i = 0; i < op->n; i++)
		write_page_end(op, i);
	op_free(op);
}

static void write_done(struct kio_req *r)
{
	struct move *op = container_of(r, struct move, req);

	op_io_end(op);
	if (op->ret == -ECANCELED) /* withdrawn: it is tried again in a while */
		op->ret = -ETIMEDOUT;
	move_written(op);
}

static void write_crc_done(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);
	uint32_t n_doomed = 0;

	for (uint32_t i = 0; i < op->n; i++)
		n_doomed += op->page[i].doomed;
	if (n_doomed == op->n) { /* not worth the trip */
		op->ret = -ECANCELED;
		move_written(op);
		return;
	}
	op_io(op, write_done);
}

static int writes_along(const struct page *pg, uint32_t n)
{
	const int64_t blocks = (int64_t)(pg->range->tier->page_bytes / 4096);

	return (pg->range->pager->conf.device ||
		pg[n].slot == pg[n - 1].slot + blocks) &&
	       !pg->retry_ns && !pg[n].retry_ns && pg[n].to_go == pg->to_go;
}

/* Of the first of the line. */
static size_t write_run_bytes(struct pager *p)
{
	const struct page *pg = line_first(&p->writes);
	const size_t most = pg && !pg->to_go ? LAZY_BYTES : RUN_BYTES;

	return p->conf.device ? KV_MIN(most, device_page_most(p->conf.device))
			      : most;
}

static void send_writes(struct pager *p)
{
	struct page *pg;
	uint32_t n;

	while ((n = line_run(&p->writes, write_run_bytes(p), writes_along,
			     &pg))) {
		struct move *op = line_op(&p->writes, pg, n, OP_WRITE);

		if (!op)
			return;
		op->prio = pg->to_go ? WANT_NEXT : WANT_BACKGROUND;
		if (op->dev) {
			dev_write(op);
		} else if (pg->to_go ||
			   n * pg->range->tier->page_bytes < SUM_BYTES) {
			op_work(op, work_crc, write_crc_done);
		} else { /* nobody waits: the loop wakes one thread for it, not two */
			op->prepare = prepare_crc;
			op_io(op, write_done);
		}
	}
}

static int start_write(struct page *pg, int to_go)
{
	struct pager *p = pg->range->pager;
	const size_t bytes = pg->range->tier->page_bytes;
	const int ret = page_take_slot(pg);

	if (ret)
		return ret;
	page_begin(pg);
	page_set_state(pg, PAGE_WRITING);
	p->writing_bytes += bytes;
	pg->to_go = (uint8_t)to_go;
	if (to_go)
		account_leave(&p->account, bytes);
	line_push(&p->writes, pg);
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

void pager_send(struct pager *p)
{
	send_drops(p);
	send_writes(p);
}

/* ---- mapping and reading ---------------------------------------------------------------- */

/* A frame that did not get its bytes: give it back and say why. */
static void fetch_failed(struct page *pg, enum op_kind kind, int err, int lost)
{
	struct pager *p = pg->range->pager;

	park_read_end(pg);
	if (lost) {
		page_quarantine_slot(pg);
		pg->lost_err = err;
		page_set_state(pg, PAGE_LOST);
		stat_add(p->st_lost, 1);
		log_warn(
			"move", "%s: page %llu disk->host: %s, lost", p->name,
			(unsigned long long)(pg->range->first + page_index(pg)),
			err == -EBADMSG ? "checksum differs" : strerror(-err));
	} else {
		page_set_state(pg, pg->slot >= 0 ? PAGE_LOWER : PAGE_EMPTY);
	}
	page_end(pg, kind, err);
}

static void page_read(struct page *pg, uint64_t ns)
{
	struct pager *p = pg->range->pager;

	park_read_end(pg);
	page_set_state(pg, PAGE_CLEAN);
	p->n_read_total++;
	p->read_bytes_total += pg->range->tier->page_bytes;
	stat_add(p->st_read, 1);
	stat_add(p->st_read_bytes, pg->range->tier->page_bytes);
	stat_observe(p->st_page_in, ns);
	page_end(pg, OP_READ, 0);
}

static void read_over(struct move *op)
{
	const uint64_t ns = clock_ns() - op->start_ns;

	tier_note_restore(op->page->range->tier, ns / op->n);
	for (uint32_t i = 0; i < op->n; i++) {
		struct page *pg = op->page + i;

		if (op->crc[i] == pg->crc)
			page_read(pg, ns);
		else
			fetch_failed(pg, OP_READ, -EBADMSG, 1);
	}
	op_free(op);
}

static void read_crc_done(struct loop_work *w)
{
	read_over(container_of(w, struct move, work));
}

void move_read(struct move *op)
{
	if (!op->ret) {
		read_over(op);
		return;
	}
	for (uint32_t i = 0; i < op->n; i++) {
		struct page *pg = op->page + i;
		const int bad = !pg->parked && op->crc[i] &&
				op->crc[i] != pg->crc;

		fetch_failed(pg, OP_READ, bad ? -EBADMSG : op->ret, bad);
	}
	op_free(op);
}

static void read_done(struct kio_req *r);

static void read_one(struct move *op)
{
	op_io(op, read_done);
}

static void read_done(struct kio_req *r)
{
	struct move *op = container_of(r, struct move, req);

	op_io_end(op);
	if (!op->ret) {
		op_work(op, work_crc, read_crc_done);
	} else if (op->ret == -ECANCELED) { /* withdrawn */
		for (uint32_t i = 0; i < op->n; i++)
			fetch_failed(op->page + i, OP_READ, -EIO, 0);
		op_free(op);
	} else {
		move_read_failed(op, read_one);
	}
}

/* Writes are tried again, reads that nobody waits for are not missed. */
static int unwanted(const struct kio_req *r)
{
	const struct move *op = container_of(r, const struct move, req);
	uint32_t i = 0;

	if (r->done == write_done)
		return 1;
	if (r->done != read_done)
		return 0;
	while (i < op->n && list_empty(&op->page[i].waiters))
		i++;
	return i == op->n;
}

void pager_leave_disk(struct pager *p, uint32_t i_disk)
{
	if (!p->conf.stores)
		return;
	stores_withdraw(p->conf.stores, i_disk, &p->flow, unwanted);
	if (!p->at_disk[i_disk].n_ops)
		return;
	pager_make_room(p); /* what is there does not count any more */
	if (p->conf.device)
		park_kick(device_park(p->conf.device));
}

int move_is_medium(int err)
{
	return err == -EIO || err == -EILSEQ || err == -EREMOTEIO;
}

void move_read_failed(struct move *op, void (*go)(struct move *one))
{
	const int last = op->n == 1 && op->n_tries + 1 >= READ_TRIES;

	if (!last && !op_split(op, go))
		return;
	for (uint32_t i = 0; i < op->n; i++)
		fetch_failed(op->page + i, OP_READ, op->ret,
			     last && move_is_medium(op->ret));
	op_free(op);
}

static void map_done(struct loop_work *w);

static void map_one(struct move *op)
{
	if (op->dev)
		dev_map(op);
	else
		op_work(op, work_map, map_done);
}

/* The device cannot use the address again: there is no way back for the page. */
static void stuck(struct move *op)
{
	struct page *pg = op->page;

	log_warn("move", "%s: page %llu has an address that is stuck, lost",
		 pg->range->pager->name,
		 (unsigned long long)(pg->range->first + page_index(pg)));
	park_read_end(pg);
	if (!pg->range->durable) /* else it goes with its record */
		page_release_slot(pg);
	pg->lost_err = -EIO;
	page_set_state(pg, PAGE_LOST);
	stat_add(pg->range->pager->st_lost, 1);
	page_end(pg, op->kind, -EIO);
	op_free(op);
}

static void map_failed(struct move *op)
{
	if (op->ret == -ENOMEM || op->ret == -EFBIG)
		op->ret = -ENOSPC;
	if (op->n > 1 && !op_split(op, map_one))
		return;
	if (op->dev && op->n == 1 && dev_is_stuck(op->page)) {
		stuck(op);
		return;
	}
	for (uint32_t i = 0; i < op->n; i++)
		fetch_failed(op->page + i, op->kind, op->ret, 0);
	op_free(op);
}

static void map_done(struct loop_work *w)
{
	move_mapped(container_of(w, struct move, work));
}

void move_mapped(struct move *op)
{
	struct pager *p = op->page->range->pager;

	if (op->ret) {
		map_failed(op);
		return;
	}
	p->n_mapped_total += op->n;
	stat_add(p->st_mapped, op->n);
	if (op->kind == OP_READ) {
		if (op->dev)
			dev_read(op);
		else
			op_io(op, read_done);
		return;
	}
	for (uint32_t i = 0; i < op->n; i++) {
		page_set_state(op->page + i, PAGE_DIRTY);
		page_end(op->page + i, OP_MAP, 0);
	}
	op_free(op);
}

int page_fetches_along(const struct page *pg, uint32_t n)
{
	const size_t bytes = pg->range->tier->page_bytes;

	if (page_index(pg) + n >= pg->range->n_pages || pg[n].busy ||
	    pg[n].state != pg->state ||
	    (n + 1) * bytes > dev_run_bytes(pg, RUN_BYTES))
		return 0;
	if (pg->parked || pg[n].parked)
		return pg->parked && pg[n].parked;
	return pg->state == PAGE_EMPTY ||
	       pg[n].slot == pg[n - 1].slot + (int64_t)(bytes / 4096);
}

int page_start_fetch(struct page *pg, uint32_t n, enum want_prio prio)
{
	const int lower = pg->state == PAGE_LOWER;
	struct move *op = op_new(pg, n, lower ? OP_READ : OP_MAP);

	if (!op)
		return -ENOMEM;
	op->prio = prio;
	for (uint32_t i = 0; i < n; i++) {
		page_begin(pg + i);
		page_charge(pg + i);
		page_set_state(pg + i, lower ? PAGE_READING : PAGE_MAPPING);
		if (pg[i].parked)
			park_read_begin(pg + i);
	}
	map_one(op);
	return 0;
}

/* ---- letting go -------------------------------------------------------------------------------- */

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
	if (pg->charged)
		page_queue_drop(pg);
}

void range_look_freed(struct range *r)
{
	struct pager *p = r->pager;

	if (!r->freed || r->n_busy)
		return;
	p->n_state[PAGE_EMPTY] -= r->n_virtual;
	if (r->tier->space)
		(void)space_free(r->tier->space, r->first, r->n_virtual);
	else
		(void)vmm_space_free(r->tier->dev_space, r->first,
				     r->n_virtual);
	r->tier->n_ranges--;
	durable_gone(r);
	list_del(&r->node);
	free(r);
}
