/*
 * durable.c - write what is dirty, then the record; see durable.h
 *
 *   CLEANING --all pages have a place--> COMMITTING --acknowledged--> told
 *      |  ^ a write ended
 *      +--+
 *
 *  (1) range.persist is set while a range_persist() runs: the end of each write of
 *      the range comes here (durable_page_let_go()).
 *  (2) rp->call is queued at most once: CLEANING, to go on after the writes that ended
 *      in this turn, or TELLING.
 *  (3) A place may go bad while the record that names it is on its way (a read or the
 *      scrubber had the page before): then the record goes, and all begins anew.
 */
#include "kvd/mem/durable.h"

#include <errno.h>
#include <stdlib.h>
#include "kvd/base/clock.h"
#include "kvd/mem/move.h"

enum { CLEANING, COMMITTING, TELLING };

/* Of one range, as others use the disk too: pages, or more as long as they are small. */
#define WRITES_AT_ONCE 4u
#define WRITE_BYTES    (8u << 20)
#define MAX_RETRIES    12u /* turns in which writes failed: some bad places */
#define ROOM_NS	       2000000u /* a zone is being emptied, a deletion written */
#define MAX_WAITS      2500u /* of that time each */

static void clean(struct range_persist *rp);

static void tell_turn(struct loop_call *c)
{
	struct range_persist *rp = container_of(c, struct range_persist, call);
	struct pager *p = rp->range->pager;

	if (!rp->ret && !rp->range->durable) { /* spoilt: see (3) */
		rp->state = CLEANING;
		clean(rp);
		return;
	}
	rp->range->persist = NULL;
	free(rp->places);
	rp->places = NULL;
	list_del(&rp->node);
	rp->wait.done(&rp->wait, rp->ret);
	pager_make_room(p); /* it may be given up now */
}

static void tell(struct range_persist *rp, int ret)
{
	loop_timer_cancel(rp->range->pager->conf.loop, &rp->timer);
	rp->ret = ret;
	rp->state = TELLING;
	list_del(&rp->call.node);
	rp->call.run = tell_turn;
	loop_defer(rp->range->pager->conf.loop, &rp->call);
}

static void set_durable(struct range *r, int yes)
{
	struct pager *p = r->pager;
	const uint64_t bytes = (uint64_t)r->n_pages * range_page_bytes(r);

	if (r->durable == yes)
		return;
	r->durable = yes;
	p->n_durable += yes ? 1 : -1ull;
	p->durable_bytes += yes ? bytes : -bytes;
}

void durable_gone(struct range *r)
{
	set_durable(r, 0);
}

/* Is every page still where the record says? */
static int is_true(const struct range_persist *rp)
{
	const struct range *r = rp->range;
	uint32_t i = 0;

	while (i < r->n_pages &&
	       r->pages[i].slot == (int64_t)rp->places[i].block)
		i++;
	return i == r->n_pages;
}

static void committed(struct kio_commit *c)
{
	struct range_persist *rp =
		container_of(c, struct range_persist, commit);

	if (!c->ret) {
		set_durable(rp->range, 1);
		rp->range->record = c->handle;
		if (!is_true(rp))
			durable_spoilt(rp->range);
	}
	tell(rp, c->ret);
}

static void commit(struct range_persist *rp)
{
	struct range *r = rp->range;

	for (uint32_t i = 0; i < r->n_pages; i++) {
		rp->places[i].block = (uint64_t)r->pages[i].slot;
		rp->places[i].crc = r->pages[i].crc;
	}
	rp->state = COMMITTING;
	rp->commit = (struct kio_commit){
		.key = { { rp->key[0], rp->key[1] } },
		.page_bytes = (uint32_t)range_page_bytes(r),
		.n_pages = r->n_pages,
		.places = rp->places,
		.meta = rp->meta,
		.meta_bytes = rp->meta_bytes,
		.done = committed,
	};
	kio_store_put(stores_disk(r->pager->conf.stores, r->i_disk),
		      &rp->commit);
}

/* Has the page a place with its present bytes? */
static int placed(const struct page *pg)
{
	return pg->slot >= 0 && pg->state != PAGE_WRITING &&
	       pg->state != PAGE_DIRTY && !park_is_dirty(pg);
}

/* 0: it took too long. */
static int later(struct range_persist *rp)
{
	if (rp->n_waits++ >= MAX_WAITS)
		return 0;
	loop_timer_set(rp->range->pager->conf.loop, &rp->timer,
		       clock_ns() + ROOM_NS);
	return 1;
}

/* Of pages that have no place yet. */
static uint64_t bytes_to_place(const struct range *r)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < r->n_pages; i++)
		n += r->pages[i].slot < 0;
	return n * range_page_bytes(r);
}

/* There is no slot now, but there will be: 1. What is lent is called back then. */
static int wait_for_room(struct range_persist *rp)
{
	const struct pager *p = rp->range->pager;

	return (stores_pending(p->conf.stores) ||
		pager_disk_lent(p, bytes_to_place(rp->range))) &&
	       later(rp);
}

/* A record that is being deleted names one of the places. */
static int is_named(const struct range *r)
{
	struct kio_store *s = stores_disk(r->pager->conf.stores, r->i_disk);
	uint32_t i = 0;

	while (i < r->n_pages && !kio_store_waits(s, (uint64_t)r->pages[i].slot,
						  range_page_bytes(r)))
		i++;
	return i < r->n_pages;
}

static uint32_t most_writes(const struct range *r)
{
	const size_t n = WRITE_BYTES / range_page_bytes(r);

	return (uint32_t)KV_MAX(n, (size_t)WRITES_AT_ONCE);
}

static uint32_t n_writing_of(const struct range *r)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < r->n_pages; i++)
		n += r->pages[i].state == PAGE_WRITING;
	return n;
}

/* Start what may start; go on when all is there. */
static void clean(struct range_persist *rp)
{
	struct range *r = rp->range;
	const uint32_t most = most_writes(r);
	uint32_t n_missing = 0, n_writing = n_writing_of(r);
	int ret = 0;

	for (uint32_t i = 0; i < r->n_pages && !ret; i++) {
		struct page *pg = &r->pages[i];

		if (pg->state == PAGE_LOST)
			ret = pg->lost_err;
		else if (pg->state == PAGE_EMPTY || pg->state == PAGE_MAPPING)
			ret = -EINVAL; /* never written: nothing to keep */
		n_missing += !placed(pg);
		if (ret || n_writing >= most)
			continue;
		if (park_is_dirty(pg)) {
			ret = park_flush(pg);
			n_writing += ret == 1;
			ret = KV_MIN(ret, 0);
		} else if (pg->state == PAGE_DIRTY && !pg->busy) {
			ret = page_write_back(pg);
			n_writing++;
		}
	}
	if (ret == -ENOSPC && wait_for_room(rp))
		return;
	if (ret)
		tell(rp, ret);
	else if (!n_missing && !is_named(r))
		commit(rp);
	else if (!n_missing && !later(rp))
		tell(rp, -ENOSPC);
}

static void clean_again(struct loop_timer *t)
{
	struct range_persist *rp = container_of(t, struct range_persist, timer);

	if (rp->state != CLEANING)
		return;
	(void)pager_call_disk_back(rp->range->pager, bytes_to_place(rp->range));
	clean(rp);
}

static void clean_turn(struct loop_call *c)
{
	struct range_persist *rp = container_of(c, struct range_persist, call);
	const int ret = rp->ret;

	if (rp->state != CLEANING)
		return; /* the timer was first */
	if (ret && n_writing_of(rp->range))
		return; /* their end comes here: perhaps to another disk then */
	rp->ret = 0;
	if (ret && rp->n_retries++ >= MAX_RETRIES)
		tell(rp, ret);
	else
		clean(rp);
}

/* The pages of a run end one by one, and fail so: looked at once, all together. */
void durable_page_let_go(struct page *pg, int ret)
{
	struct range_persist *rp = pg->range->persist;

	if (!rp || rp->state != CLEANING)
		return;
	rp->ret = ret ? ret : rp->ret;
	if (!list_empty(&rp->call.node))
		return;
	rp->call.run = clean_turn;
	loop_defer(pg->range->pager->conf.loop, &rp->call);
}

int range_persist(struct range_persist *rp)
{
	struct range *r = rp->range;
	struct pager *p = r->pager;

	if (!pager_durable(p))
		return -ENOTSUP;
	if (r->durable || r->persist)
		return -EALREADY;
	rp->places = calloc(r->n_pages, sizeof(*rp->places));
	if (!rp->places)
		return -ENOMEM;
	rp->state = CLEANING;
	rp->ret = 0;
	rp->n_retries = rp->n_waits = 0;
	rp->timer.run = clean_again;
	list_init(&rp->timer.node);
	list_init(&rp->call.node);
	r->persist = rp;
	list_push(&p->persists, &rp->node);
	clean(rp);
	return 0;
}

int durable_on_the_way(const struct pager *p)
{
	list_for_each(n, &p->persists) {
		const struct range *r =
			list_entry(n, struct range_persist, node)->range;

		if (!r->has_disk ||
		    !stores_is_silent(p->conf.stores, r->i_disk))
			return 1;
	}
	return 0;
}

int range_durable(const struct range *r)
{
	return r->durable;
}

void durable_forget(struct range *r)
{
	if (!r->durable || r->pager->keep_records)
		return;
	set_durable(r, 0);
	kio_store_del(stores_disk(r->pager->conf.stores, r->i_disk), r->record);
}

void durable_spoilt(struct range *r)
{
	struct kio_store *s = stores_disk(r->pager->conf.stores, r->i_disk);

	if (!r->durable || r->pager->keep_records)
		return;
	durable_forget(r);
	for (uint32_t i = 0; i < r->n_pages; i++)
		if (r->pages[i].slot >= 0)
			kio_store_keep(s, (uint64_t)r->pages[i].slot,
				       range_page_bytes(r));
}

void pager_record_lost(struct pager *p, uint32_t i_disk, uint64_t handle)
{
	list_for_each(n, &p->ranges) {
		struct range *r = list_entry(n, struct range, node);

		if (!r->durable || r->freed || r->i_disk != i_disk ||
		    r->record != handle)
			continue;
		durable_spoilt(r);
		if (!r->durable && p->conf.damaged)
			p->conf.damaged(p->conf.ctx, r);
		return;
	}
}

int range_adopt(struct pager *p, uint32_t i_disk, const struct kio_record *rec,
		struct range **out)
{
	const uint64_t bytes = (uint64_t)rec->page_bytes * rec->n_pages;
	struct range *r;
	int ret;

	if (bytes > account_room(&p->account, ACCOUNT_DISK))
		return -EDQUOT;
	ret = range_new(p, rec->page_bytes, rec->n_pages, &r);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < r->n_pages; i++) {
		r->pages[i].slot = (int64_t)rec->places[i].block;
		r->pages[i].crc = rec->places[i].crc;
		page_set_state(&r->pages[i], PAGE_LOWER);
	}
	r->i_disk = i_disk;
	r->has_disk = 1;
	set_durable(r, 1);
	r->record = rec->handle;
	pager_charge_slots(p, bytes);
	*out = r;
	return 0;
}

void range_disown(struct range *r)
{
	struct pager *p = r->pager;

	for (uint32_t i = 0; i < r->n_pages; i++) {
		r->pages[i].slot = -1;
		page_set_state(&r->pages[i], PAGE_EMPTY);
	}
	pager_uncharge_slots(p, (uint64_t)r->n_pages * range_page_bytes(r));
	set_durable(r, 0);
	range_free(r);
}

void pager_keep_records(struct pager *p)
{
	p->keep_records = 1;
}
