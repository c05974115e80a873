/*
 * park_flush.c - dirty parked pages to their slots on disk; see park.h
 *
 *  (1) A page that is being written counts as an operation of its pager: nobody gives
 *      up for want of room, and the pager is not freed.
 *  (2) Its page may let go of it meanwhile (park_forget()): then slot and room are
 *      given back at the end.
 *  (3) What could not be written goes to another disk, with all of its range, if nothing of
 *      that is written; else it gets another slot, and rests for a second. So does what
 *      would go to a disk that is silent; what is on its way there counts for nothing.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/op.h"
#include "kvd/mem/park_priv.h"
#include "kvd/mem/stores.h"

#define FLIGHT_BYTES (16u << 20)
#define RETRY_NS     1000000000u

static size_t bytes_of(const struct parked *h)
{
	return h->n_units * h->park->conf.unit_bytes;
}

static struct kio_store *disk_of(const struct parked *h)
{
	return stores_disk(h->part->pager->conf.stores, h->i_disk);
}

static void timer_ends(struct loop_timer *t)
{
	park_kick(container_of(t, struct park, timer));
}

static void look_at(struct park *k, uint64_t ns)
{
	k->timer.run = timer_ends;
	loop_timer_set(k->conf.loop, &k->timer, ns);
}

/* ---- the end of a write ---------------------------------------------------- */

/* Another place on that disk: this one may be bad. None: the same again. */
static void move_slot(struct parked *h, int aside)
{
	const int64_t slot = kio_store_alloc(disk_of(h), bytes_of(h));

	if (slot < 0)
		return;
	if (aside)
		kio_store_set_aside(disk_of(h), (uint64_t)h->slot, bytes_of(h));
	else
		kio_store_release(disk_of(h), (uint64_t)h->slot, bytes_of(h));
	h->page->slot = slot;
	kio_store_own(disk_of(h), (uint64_t)slot, bytes_of(h), h->page);
}

/* Another disk, and no rest; or another place, and the disk is left alone for a while. */
static void leave_place(struct parked *h)
{
	const struct range *r = h->page->range;
	const int aside = move_is_medium(h->ret) &&
			  stores_may_set_aside(h->part->pager->conf.stores,
					       h->i_disk, bytes_of(h));

	if (page_leave_disk(h->page, aside)) {
		move_slot(h, aside);
		return;
	}
	for (uint32_t i = 0; i < r->n_virtual; i++)
		if (r->pages[i].parked)
			r->pages[i].parked->retry_ns = 0;
}

static void failed(struct parked *h)
{
	struct park *k = h->park;
	struct pager *p = h->part->pager;
	const uint64_t now = clock_ns();

	k->n.flush_errors++;
	stat_add(p->st_write_errors, 1);
	h->retry_ns = now + RETRY_NS;
	leave_place(h);
	if (now - k->logged_ns > RETRY_NS) {
		k->logged_ns = now;
		log_warn("park", "%s: page host->disk: %s, kept in host",
			 p->name, strerror(-h->ret));
	}
	if (h->retry_ns) /* else there is another disk */
		look_at(k, h->retry_ns);
}

static void flush_end(struct parked *h)
{
	struct park *k = h->park;
	struct pager *p = h->part->pager;
	struct page *pg = h->page;
	const int ret = h->ret;

	h->is_flushing = 0;
	k->flight_bytes[h->i_disk] -= bytes_of(h);
	p->n_ops--;
	pager_from_disk(p, h->i_disk, 1, 0);
	if (!pg) {
		kio_store_release(disk_of(h), (uint64_t)h->slot, bytes_of(h));
		park_put(h);
	} else if (ret) {
		failed(h);
		park_list(h);
	} else {
		k->n.flushed++;
		h->retry_ns = 0;
		park_set_dirty(h, 0);
		park_list(h);
	}
	park_kick(k);
	if (pg)
		durable_page_let_go(pg, ret);
	pager_make_room(p);
}

static void io_done(struct kio_req *r)
{
	struct park_io *io = container_of(r, struct park_io, req);
	struct parked *h = io->parked;

	stores_end(h->part->pager->conf.stores, h->i_disk, r);
	if (r->ret && !h->ret)
		h->ret = r->ret;
	if (!--h->n_ios)
		flush_end(h);
}

/* ---- its begin ------------------------------------------------------------- */

static void start(struct parked *h, enum want_prio prio)
{
	struct pager *p = h->part->pager;
	struct park *k = h->park;
	uint64_t block;
	uint32_t n = 0;

	h->slot = h->page->slot;
	h->i_disk = h->page->range->i_disk;
	h->is_flushing = 1;
	h->ret = 0;
	park_list(h);
	k->flight_bytes[h->i_disk] += bytes_of(h);
	k->stores = p->conf.stores;
	p->n_ops++;
	pager_to_disk(p, h->i_disk, 1, 0);
	block = (uint64_t)h->slot;
	for (uint32_t u = 0; u < h->n_units; u += park_run_units(h, u)) {
		struct park_io *io = &h->ios[n++];
		size_t bytes;

		io->parked = h;
		io->req = (struct kio_req){ .block = block, .done = io_done };
		io->req.buf = park_run(h, u, &bytes);
		io->req.n_bytes = bytes;
		block += bytes / 4096;
	}
	h->n_ios = n;
	for (uint32_t i = 0; i < n; i++)
		stores_write(p->conf.stores, h->i_disk, &p->flow, prio,
			     &h->ios[i].req);
}

/* 1: its disk answers, or it has another now; else it rests, behind all others. */
static int has_ear(struct parked *h, uint64_t now)
{
	const struct stores *s = h->part->pager->conf.stores;

	if (!stores_is_silent(s, h->page->range->i_disk) ||
	    !page_leave_disk(h->page, 0))
		return 1;
	h->retry_ns = now + RETRY_NS;
	list_del(&h->node);
	list_push(&h->part->dirty, &h->node);
	look_at(h->park, h->retry_ns);
	return 0;
}

int park_flush(struct page *pg)
{
	struct parked *h = pg->parked;

	if (!h->is_dirty || h->is_flushing)
		return 0;
	if (!has_ear(h, clock_ns()))
		return -EIO;
	start(h, WANT_NEXT);
	return 1;
}

/* On the way to disks that answer. */
static uint64_t flight(const struct park *k)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < STORES_MAX; i++)
		if (k->flight_bytes[i] && !stores_is_silent(k->stores, i))
			n += k->flight_bytes[i];
	return n;
}

void park_flush_turn(struct park *k)
{
	const int asked = k->n_waiting[PARK_WRITE] != 0;
	const uint64_t now = clock_ns();
	enum park_of of = PARK_OF_ALL;
	struct parked *h = NULL;

	k->is_stuck = 0;
	if (!k->conf.has_disk)
		return;
	if (!asked && k->n_dirty <= k->n_units / 2) {
		/* that others come to their part, if the pool is full */
		if (k->n_free > k->n_units / 8)
			return;
		of = PARK_OF_OVER;
	}
	while (flight(k) < FLIGHT_BYTES) {
		h = park_oldest(k, offsetof(struct park_part, dirty), of, now);
		if (!h)
			break;
		if (has_ear(h, now))
			start(h, asked ? WANT_NEXT : WANT_BACKGROUND);
	}
	/* the rest is on its way to be dirty, or rests */
	k->is_stuck = asked && !flight(k) && !k->n_coming;
}
