/*
 * scrub.c - one page after the other, slowly; see scrub.h
 *
 *  (1) at is the position of the next page among all pages of all ranges, in the
 *      order of the pager's list. Ranges come and go meanwhile: a page may be missed
 *      or seen twice in a pass, which does no harm.
 *  (2) At most one page is in flight; it is busy, so nobody moves it.
 */
#include "kvd/mem/scrub.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/op.h"
#include "kvd/mem/stores.h"

#define PAUSE_NS  60000000000ull /* between two passes */
#define BUSY_NS	  100000000ull /* the disk has other work */
#define TICK_NS	  1000000ull /* the least between two pages */
#define BUSY_DISK 4u /* requests in flight */

struct scrub {
	struct pager *pager;
	uint64_t bytes_per_s;
	struct loop_timer timer;
	uint64_t at;
	int in_flight;
	struct page_scrub op;
	struct scrub_info info;
	struct stat *st_bytes, *st_bad;
};

/* ---- one page --------------------------------------------------------------- */

int page_can_scrub(const struct page *pg)
{
	return pg->slot >= 0 && !pg->parked && !pg->busy && !pg->doomed &&
	       list_empty(&pg->starved) && /* about to be fetched */
	       !pg->range->persist && /* its places are being written down */
	       (pg->state == PAGE_LOWER || pg->state == PAGE_CLEAN);
}

/* The place is bad. What is in memory is good, and goes to another one. */
static void scrub_failed(struct page *pg, int err)
{
	struct range *r = pg->range;
	struct pager *p = r->pager;

	log_warn("scrub", "%s: page %llu on disk: %s, %s", p->name,
		 (unsigned long long)(r->first + page_index(pg)),
		 err == -EBADMSG ? "checksum differs" : strerror(-err),
		 pg->charged ? "kept in host" : "lost");
	page_quarantine_slot(pg);
	if (!pg->charged) {
		pg->lost_err = err;
		page_set_state(pg, PAGE_LOST);
		stat_add(p->st_lost, 1);
	} else {
		durable_spoilt(r);
		page_set_state(pg, PAGE_DIRTY);
	}
}

static void scrub_end(struct move *op)
{
	struct page *pg = op->page;
	struct page_scrub *s = op->scrub;
	struct pager *p = pg->range->pager;
	/* written meanwhile: that place is nobody's concern any more */
	const int same = pg->slot == (int64_t)op->req.block;
	/* any other error says nothing about the place: it is the turn of the next */
	const int bad = (op->ret == -EBADMSG || move_is_medium(op->ret)) &&
			same && !pg->doomed;

	if (bad)
		scrub_failed(pg, op->ret);
	else
		op->ret = 0;
	s->done(s, op->ret);
	if (bad && !pg->range->freed && p->conf.damaged)
		p->conf.damaged(p->conf.ctx, pg->range);
	p->n_idle -= op->is_idle ? 1 : 0;
	page_end(pg, OP_SCRUB, op->ret);
	op_free(op);
}

static void work_scrub(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);

	op->crc[0] = kio_crc32c(0, op->scrub->buf, op->scrub->n_bytes);
}

static void scrub_crc_done(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);

	op->ret = op->crc[0] == op->scrub->crc ? 0 : -EBADMSG;
	scrub_end(op);
}

static void scrub_read(struct kio_req *r)
{
	struct move *op = container_of(r, struct move, req);

	op_io_end(op);
	if (move_is_medium(op->ret) && ++op->n_tries < READ_TRIES &&
	    op->page->slot == (int64_t)r->block)
		op_io(op, scrub_read);
	else if (op->ret)
		scrub_end(op);
	else
		op_work(op, work_scrub, scrub_crc_done);
}

int page_scrub_start(struct page *pg, struct page_scrub *s)
{
	struct move *op = op_new(pg, 1, OP_SCRUB);

	if (!op)
		return -ENOMEM;
	page_begin(pg);
	op->is_idle = !pg->charged;
	pg->range->pager->n_idle += op->is_idle ? 1 : 0;
	op->scrub = s;
	op->prio = WANT_BACKGROUND;
	s->crc = pg->crc;
	op_io(op, scrub_read);
	return 0;
}

/* ---- one after the other ----------------------------------------------------- */

static void later(struct scrub *s, uint64_t ns)
{
	loop_timer_set(s->pager->conf.loop, &s->timer, clock_ns() + ns);
}

/* The next page on disk from s->at on; NULL: the end of the pass. */
static struct page *next_page(struct scrub *s)
{
	uint64_t i = 0;

	list_for_each(n, &s->pager->ranges) {
		struct range *r = list_entry(n, struct range, node);

		if (r->freed || i + r->n_pages <= s->at) {
			i += r->n_pages;
			continue;
		}
		for (uint32_t k = (uint32_t)(s->at - i); k < r->n_pages; k++) {
			s->at = i + k + 1;
			if (page_can_scrub(&r->pages[k]))
				return &r->pages[k];
		}
		i += r->n_pages;
		s->at = i;
	}
	return NULL;
}

static void scrubbed(struct page_scrub *op, int ret)
{
	struct scrub *s = container_of(op, struct scrub, op);
	const uint64_t ns = op->n_bytes * 1000000000ull / s->bytes_per_s;

	s->in_flight = 0;
	s->info.n_pages++;
	s->info.n_bytes += op->n_bytes;
	s->info.n_bad += ret != 0;
	stat_add(s->st_bytes, op->n_bytes);
	stat_add(s->st_bad, ret ? 1 : 0);
	free(op->buf);
	op->buf = NULL;
	later(s, KV_MAX(ns, TICK_NS));
}

static void tick(struct loop_timer *t)
{
	struct scrub *s = container_of(t, struct scrub, timer);
	struct page *pg;
	void *buf;

	pg = next_page(s);
	if (!pg) {
		s->at = 0;
		s->info.n_passes++;
		later(s, PAUSE_NS);
		return;
	}
	if (stores_n_busy(s->pager->conf.stores, pg->range->i_disk) >
	    BUSY_DISK) {
		s->at--; /* the same one, later */
		later(s, BUSY_NS);
		return;
	}
	if (posix_memalign(&buf, 4096, range_page_bytes(pg->range))) {
		later(s, BUSY_NS);
		return;
	}
	s->op.buf = buf;
	s->op.n_bytes = range_page_bytes(pg->range);
	s->op.done = scrubbed;
	s->in_flight = 1;
	if (page_scrub_start(pg, &s->op)) {
		s->in_flight = 0;
		free(buf);
		later(s, BUSY_NS);
	}
}

int scrub_new(struct scrub **out, struct pager *p, uint64_t bytes_per_s)
{
	struct scrub *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->pager = p;
	s->bytes_per_s = bytes_per_s;
	s->timer.run = tick;
	list_init(&s->timer.node);
	s->st_bytes = stat_get(STAT_COUNTER, "kvd_scrubbed_bytes_total",
			       "Bytes on disk read to check them", "tenant",
			       p->name, 1);
	s->st_bad = stat_get(STAT_COUNTER, "kvd_scrub_errors_total",
			     "Pages found bad by the scrubber", "tenant",
			     p->name, 1);
	later(s, BUSY_NS);
	*out = s;
	return 0;
}

void scrub_free(struct scrub *s)
{
	if (!s)
		return;
	while (s->in_flight) {
		(void)loop_turn(s->pager->conf.loop, 1);
		stores_turn(s->pager->conf.stores);
	}
	loop_timer_cancel(s->pager->conf.loop, &s->timer);
	free(s);
}

void scrub_info(const struct scrub *s, struct scrub_info *out)
{
	*out = s->info;
}
