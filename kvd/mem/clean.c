/*
 * clean.c - pages out of the zone that a store wants empty; see clean.h
 *
 *   job: pages of one range --> [ read --> check --> write ] each --> (move of the
 *        record, if the range is durable) --> the pages lie there
 *
 *  (1) A page of a job is busy from its begin to its end: nobody drops, fetches or
 *      writes it to a slot meanwhile. It may be freed, or changed by who has it pinned
 *      (its slot is gone then, so it is not moved).
 *  (2) One job of a range at a time, so one move of a record.
 *  (3) What became of the range is looked at when the job ends: a scratch page is
 *      moved only if no record names it, nor is about to.
 *  (4) Every slot taken for a page is, at the end, either its place, or released, or set
 *      aside as it refused its bytes.
 */
#include "kvd/mem/clean.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/op.h"
#include "kvd/mem/stores.h"

#define N_JOBS	   4u /* of a disk: one that is silent holds up no other */
#define JOB_PAGES  16u
#define JOB_BYTES  (2u << 20) /* or one page */
#define AGAIN_NS   2000000u /* what cannot be moved now may be later */
#define MAX_PASSES 20u /* over a zone without a page that moved */

struct job {
	struct cleaner *cleaner;
	struct work_disk *disk; /* NULL: free */
	struct range *range;
	uint64_t record; /* of a durable range, as it was at the begin */
	int durable;
	uint32_t n, i; /* pages; the one in hand */
	struct page *pages[JOB_PAGES];
	uint64_t was[JOB_PAGES];
	struct kio_place to[JOB_PAGES];
	uint8_t ok[JOB_PAGES]; /* its bytes are there */
	uint8_t refused[JOB_PAGES]; /* that slot is set aside */
	uint32_t crc;
	void *buf;
	struct kio_req req;
	struct loop_work work;
	struct kio_commit commit;
	struct kio_place places[JOB_PAGES]; /* of those that are ok */
	uint64_t from[JOB_PAGES];
};

struct work_disk {
	struct cleaner *cleaner;
	uint32_t i;
	uint32_t at; /* next slot of the victim */
	uint32_t n_passes; /* in which nothing was moved */
	uint32_t n_jobs;
	uint64_t zones_told; /* to the metric */
	struct stat *st_bytes, *st_zones;
};

struct cleaner {
	struct loop *loop;
	struct stores *stores;
	uint64_t bytes_per_s;
	uint64_t next_ns; /* no job before: the budget */
	struct loop_timer timer;
	struct work_disk disks[STORES_MAX];
	struct job jobs[N_JOBS * STORES_MAX];
	uint32_t n_busy;
	struct cleaner_info info;
};

static struct kio_store *store_of(const struct work_disk *d)
{
	return stores_disk(d->cleaner->stores, d->i);
}

static size_t bytes_of(const struct job *j)
{
	return range_page_bytes(j->range);
}

static void again(struct cleaner *c, uint64_t at_ns)
{
	loop_timer_set(c->loop, &c->timer, at_ns);
}

/* ---- the end of a job ------------------------------------------------------- */

/* Has the range still the record of the begin? */
static int is_record(const struct job *j)
{
	const struct range *r = j->range;

	return r->durable && r->record == j->record && !r->freed;
}

/* The page lies there now, or does not: one of the two slots is nobody's. */
static void settle(struct job *j, uint32_t i, int moved)
{
	struct page *pg = j->pages[i];
	struct kio_store *s = store_of(j->disk);
	const size_t bytes = bytes_of(j);

	if (!moved || pg->slot != (int64_t)j->was[i]) {
		if (!j->refused[i])
			kio_store_not_moved(s, j->to[i].block, bytes);
		return;
	}
	pg->slot = (int64_t)j->to[i].block;
	kio_store_own(s, j->to[i].block, bytes, pg);
	if (j->durable && !is_record(j)) /* deleted behind the move */
		kio_store_keep(s, j->to[i].block, bytes);
	kio_store_release(s, j->was[i], bytes);
	j->cleaner->info.n_pages++;
	j->cleaner->info.n_bytes += bytes;
	j->disk->n_passes = 0;
}

/* moved: 1 if pages that are ok lie at their new places. */
static void job_end(struct job *j, int moved)
{
	struct cleaner *c = j->cleaner;
	struct range *r = j->range;
	struct pager *p = r->pager;

	for (uint32_t i = 0; i < j->n; i++) {
		settle(j, i, moved && j->ok[i]);
		c->info.n_failed += !j->ok[i] || !moved;
	}
	pager_from_disk(p, j->disk->i, j->n, 0);
	for (uint32_t i = 0; i < j->n; i++)
		page_end(j->pages[i], OP_CLEAN, 0);
	r->n_busy -= j->n;
	free(j->buf);
	j->buf = NULL;
	j->disk->n_jobs--;
	j->disk = NULL;
	j->range = NULL;
	c->n_busy--;
	range_look_freed(r);
	pager_make_room(p);
	again(c, KV_MAX(c->next_ns, clock_ns()));
}

static void committed(struct kio_commit *k)
{
	job_end(container_of(k, struct job, commit), !k->ret);
}

/* Is the record that of the begin, and are the pages where it says? */
static int record_holds(const struct job *j)
{
	if (!is_record(j))
		return 0;
	for (uint32_t i = 0; i < j->n; i++)
		if (j->pages[i]->slot != (int64_t)j->was[i])
			return 0;
	return 1;
}

static void job_commit(struct job *j)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < j->n; i++) {
		if (!j->ok[i])
			continue;
		j->places[n] = j->to[i];
		j->from[n++] = j->was[i];
	}
	if (!n || !record_holds(j)) {
		job_end(j, 0);
		return;
	}
	j->commit = (struct kio_commit){ .page_bytes = (uint32_t)bytes_of(j),
					 .n_pages = n,
					 .places = j->places,
					 .was = j->from,
					 .handle = j->record,
					 .done = committed };
	kio_store_move(store_of(j->disk), &j->commit);
}

/* ---- page by page ------------------------------------------------------------ */

static void job_next(struct job *j);

/* It would be the next one given out, for each zone that is to be emptied. */
static void leave_place(struct job *j, int err)
{
	if (!move_is_medium(err) ||
	    !stores_may_set_aside(j->cleaner->stores, j->disk->i, bytes_of(j)))
		return;
	kio_store_set_aside(store_of(j->disk), j->to[j->i].block, bytes_of(j));
	j->refused[j->i] = 1;
}

static void written(struct kio_req *q)
{
	struct job *j = container_of(q, struct job, req);

	stores_end(j->cleaner->stores, j->disk->i, q);
	leave_place(j, q->ret);
	j->ok[j->i] = !q->ret;
	if (!q->ret) {
		kio_store_moved(store_of(j->disk), q->n_bytes);
		stat_add(j->disk->st_bytes, q->n_bytes);
	}
	j->i++;
	job_next(j);
}

static void work_crc(struct loop_work *w)
{
	struct job *j = container_of(w, struct job, work);

	j->crc = kio_crc32c(0, j->buf, bytes_of(j));
}

static void checked(struct loop_work *w)
{
	struct job *j = container_of(w, struct job, work);
	struct pager *p = j->range->pager;

	if (j->crc != j->to[j->i].crc || j->pages[j->i]->doomed) {
		j->i++; /* who reads it, or the scrubber, finds out */
		job_next(j);
		return;
	}
	j->req = (struct kio_req){ .buf = j->buf,
				   .block = j->to[j->i].block,
				   .n_bytes = bytes_of(j),
				   .done = written };
	stores_write(p->conf.stores, j->disk->i, &p->flow, WANT_BACKGROUND,
		     &j->req);
}

static void was_read(struct kio_req *q)
{
	struct job *j = container_of(q, struct job, req);

	stores_end(j->cleaner->stores, j->disk->i, q);
	if (q->ret) {
		j->i++;
		job_next(j);
		return;
	}
	j->work.run = work_crc;
	j->work.done = checked;
	loop_work_start(j->cleaner->loop, &j->work);
}

static void job_next(struct job *j)
{
	struct range *r = j->range;
	struct pager *p = r->pager;

	if (j->i < j->n) {
		j->req = (struct kio_req){ .buf = j->buf,
					   .block = j->was[j->i],
					   .n_bytes = bytes_of(j),
					   .done = was_read };
		stores_read(p->conf.stores, j->disk->i, &p->flow,
			    WANT_BACKGROUND, &j->req);
	} else if (j->durable) {
		job_commit(j);
	} else {
		job_end(j, !r->durable && !r->persist);
	}
}

/* ---- what goes into a job ---------------------------------------------------- */

static int in_a_job(const struct cleaner *c, const struct range *r)
{
	for (uint32_t i = 0; i < KV_ARRAY_LEN(c->jobs); i++)
		if (c->jobs[i].range == r)
			return 1;
	return 0;
}

static int may_move(const struct cleaner *c, const struct page *pg,
		    uint64_t block)
{
	return page_can_scrub(pg) && pg->slot == (int64_t)block &&
	       !pg->range->freed && !in_a_job(c, pg->range);
}

/* -ENOSPC: there is no other place. */
static int add_page(struct job *j, struct page *pg, uint64_t block)
{
	const int64_t to = kio_store_alloc_moved(store_of(j->disk));

	if (to < 0)
		return -ENOSPC;
	j->pages[j->n] = pg;
	j->was[j->n] = block;
	j->ok[j->n] = j->refused[j->n] = 0;
	j->to[j->n++] =
		(struct kio_place){ .block = (uint64_t)to, .crc = pg->crc };
	return 0;
}

/* Pages of one range, from the cursor on; -ENOSPC. */
static int gather(struct job *j, uint32_t n_slots, size_t page_bytes)
{
	const uint32_t most =
		(uint32_t)KV_MIN(JOB_PAGES, KV_MAX(1u, JOB_BYTES / page_bytes));
	struct work_disk *d = j->disk;
	int ret = 0;

	for (; d->at < n_slots && j->n < most; d->at++) {
		uint64_t block;
		struct page *pg =
			kio_store_victim_slot(store_of(d), d->at, &block);

		if (!pg)
			continue;
		if (j->n && pg->range != j->pages[0]->range)
			break; /* the next job's */
		if (!may_move(d->cleaner, pg, block))
			continue;
		ret = add_page(j, pg, block);
		if (ret)
			break;
	}
	return j->n ? 0 : ret;
}

/* Undo add_page(). */
static void drop_all(struct job *j, size_t page_bytes)
{
	while (j->n)
		kio_store_not_moved(store_of(j->disk), j->to[--j->n].block,
				    page_bytes);
	j->disk = NULL;
}

static void job_start(struct job *j, uint64_t now)
{
	struct cleaner *c = j->cleaner;
	uint64_t bytes;

	j->range = j->pages[0]->range;
	j->durable = j->range->durable;
	j->record = j->range->record;
	j->i = 0;
	for (uint32_t i = 0; i < j->n; i++)
		page_begin(j->pages[i]);
	pager_to_disk(j->range->pager, j->disk->i, j->n, 0);
	c->n_busy++;
	j->disk->n_jobs++;
	bytes = (uint64_t)j->n * bytes_of(j);
	c->next_ns = KV_MAX(c->next_ns, now) +
		     (uint64_t)((double)bytes * 1e9 / (double)c->bytes_per_s);
	job_next(j);
}

static struct job *free_job(struct cleaner *c)
{
	for (uint32_t i = 0; i < KV_ARRAY_LEN(c->jobs); i++)
		if (!c->jobs[i].disk)
			return &c->jobs[i];
	return NULL;
}

static void give_up(struct work_disk *d)
{
	kio_store_clean_stop(store_of(d));
	d->cleaner->info.n_given_up++;
}

/* Start a job if there is one: 1. 0: nothing (more) can be done now. */
static int disk_next(struct work_disk *d, uint64_t now)
{
	struct cleaner *c = d->cleaner;
	struct job *j = free_job(c);
	size_t page_bytes = 0;
	const uint32_t n_slots = kio_store_victim(store_of(d), &page_bytes);
	int ret;

	if (!n_slots || !j || d->n_jobs == N_JOBS ||
	    stores_is_silent(c->stores, d->i))
		return 0;
	j->disk = d;
	j->n = 0;
	ret = gather(j, n_slots, page_bytes);
	if (!j->n) {
		j->disk = NULL;
		d->at = 0;
		if (ret || (!d->n_jobs && d->n_passes++ == MAX_PASSES))
			give_up(d);
		return 0;
	}
	if (posix_memalign(&j->buf, 4096, page_bytes)) {
		j->buf = NULL;
		drop_all(j, page_bytes);
		return 0;
	}
	job_start(j, now);
	return 1;
}

/* What was done is told; with a store that has failed no more is. */
static void look(struct work_disk *d)
{
	struct kio_store_info k;

	kio_store_info(store_of(d), &k);
	stat_add(d->st_zones, k.n_zones_cleaned - d->zones_told);
	d->zones_told = k.n_zones_cleaned;
	if (k.failed && k.cleaning_bytes)
		give_up(d);
}

static void tick(struct loop_timer *t)
{
	struct cleaner *c = container_of(t, struct cleaner, timer);
	const uint64_t now = clock_ns();
	int has_victim = 0;

	for (uint32_t i = 0; i < stores_n(c->stores); i++) {
		struct work_disk *d = &c->disks[i];
		size_t bytes;

		look(d);
		while (c->next_ns <= now && disk_next(d, now))
			;
		has_victim |= kio_store_victim(store_of(d), &bytes) != 0;
	}
	if (has_victim)
		again(c, KV_MAX(c->next_ns, now + AGAIN_NS));
}

/* The store has chosen; from within its alloc, so not now. */
static void wanted(void *ctx)
{
	struct work_disk *d = ctx;

	d->at = 0;
	d->n_passes = 0;
	again(d->cleaner, clock_ns());
}

/* ---- start, end -------------------------------------------------------------- */

int cleaner_new(struct cleaner **out, struct loop *loop, struct stores *s,
		uint64_t bytes_per_s)
{
	struct cleaner *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->loop = loop;
	c->stores = s;
	c->bytes_per_s = bytes_per_s;
	c->timer.run = tick;
	list_init(&c->timer.node);
	for (uint32_t i = 0; i < KV_ARRAY_LEN(c->jobs); i++)
		c->jobs[i].cleaner = c;
	for (uint32_t i = 0; i < stores_n(s); i++) {
		struct work_disk *d = &c->disks[i];

		d->cleaner = c;
		d->i = i;
		d->st_bytes = stat_get(STAT_COUNTER,
				       "kvd_store_moved_bytes_total",
				       "Bytes written to empty sparse zones",
				       "store", stores_path(s, i), 1);
		d->st_zones = stat_get(STAT_COUNTER,
				       "kvd_store_zones_cleaned_total",
				       "Sparse zones that were emptied",
				       "store", stores_path(s, i), 1);
		kio_store_on_clean(store_of(d), wanted, d);
	}
	*out = c;
	return 0;
}

void cleaner_free(struct cleaner *c)
{
	if (!c)
		return;
	for (uint32_t i = 0; i < stores_n(c->stores); i++)
		kio_store_on_clean(store_of(&c->disks[i]), NULL, NULL);
	while (c->n_busy) {
		(void)loop_turn(c->loop, 1);
		stores_turn(c->stores);
	}
	loop_timer_cancel(c->loop, &c->timer);
	free(c);
}

void cleaner_adopt(struct pager *p)
{
	list_for_each(n, &p->ranges) {
		struct range *r = list_entry(n, struct range, node);

		for (uint32_t i = 0; r->has_disk && i < r->n_pages; i++)
			if (r->pages[i].slot >= 0)
				kio_store_own(
					stores_disk(p->conf.stores, r->i_disk),
					(uint64_t)r->pages[i].slot,
					range_page_bytes(r), &r->pages[i]);
	}
}

void cleaner_info(const struct cleaner *c, struct cleaner_info *out)
{
	*out = c->info;
}
