/*
 * pager.c - wants, pins, room; see pager.h. What moves pages is in move.c.
 */
#include "kvd/mem/pager.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/mem/dev_op.h"
#include "kvd/mem/device.h"
#include "kvd/mem/move.h"
#include "kvd/mem/page.h"
#include "kvd/mem/stores.h"

/* A want that misses a page. */
struct page_wait {
	struct list node; /* of the page's waiters */
	struct page_want *want;
};

/* ---- ranges ---------------------------------------------------------------- */

int range_new(struct pager *p, size_t page_bytes, uint32_t n_pages,
	      struct range **out)
{
	struct tier *t;
	struct range *r;
	int64_t first;
	int ret;

	if (!page_bytes || page_bytes % 4096 || !n_pages)
		return -EINVAL;
	ret = tier_get(p, page_bytes, &t);
	if (ret)
		return ret;
	r = calloc(1, sizeof(*r) + n_pages * sizeof(r->pages[0]));
	if (!r)
		return -ENOMEM;
	first = t->space ? space_alloc(t->space, n_pages)
			 : vmm_space_alloc(t->dev_space, n_pages);
	if (first < 0) {
		free(r);
		return -ENOMEM;
	}
	r->pager = p;
	r->tier = t;
	r->first = (uint64_t)first;
	r->n_pages = r->n_virtual = n_pages;
	r->gain = 1;
	for (uint32_t i = 0; i < n_pages; i++) {
		struct page *pg = &r->pages[i];

		pg->range = r;
		pg->slot = -1;
		evict_node_init(&pg->evict, (uint32_t)page_bytes);
		list_init(&pg->starved);
		list_init(&pg->waiters);
	}
	p->n_state[PAGE_EMPTY] += n_pages;
	t->n_ranges++;
	list_init(&r->node);
	list_push(&p->ranges, &r->node);
	*out = r;
	return 0;
}

void range_free(struct range *r)
{
	if (!r)
		return;
	assert(!r->persist);
	durable_forget(r); /* before its slots are given back */
	r->freed = 1;
	r->owner = NULL;
	r->n_busy++; /* ours, so that the last page's end does not free it */
	for (uint32_t i = 0; i < r->n_pages; i++)
		page_discard(&r->pages[i]);
	r->n_busy--;
	range_look_freed(r);
}

void range_trim(struct range *r, uint32_t n_keep)
{
	for (uint32_t i = n_keep; i < r->n_pages; i++)
		page_discard(&r->pages[i]);
	r->n_pages = KV_MIN(n_keep, r->n_pages);
}

char *range_addr(const struct range *r)
{
	return r->tier->base + r->first * r->tier->page_bytes;
}

struct pager *range_pager(const struct range *r)
{
	return r->pager;
}

void range_set_owner(struct range *r, void *owner)
{
	r->owner = owner;
}

void *range_owner(const struct range *r)
{
	return r->owner;
}

uint32_t range_n_pages(const struct range *r)
{
	return r->n_pages;
}

size_t range_page_bytes(const struct range *r)
{
	return r->tier->page_bytes;
}

uint32_t range_n_resident(const struct range *r)
{
	return r->n_resident;
}

/* Whether its disk does not answer. */
static int is_silent(const struct range *r)
{
	return r->pager->conf.stores && r->has_disk &&
	       stores_is_silent(r->pager->conf.stores, r->i_disk);
}

int pager_any_silent(const struct pager *p)
{
	uint32_t i = 0, n = p->conf.stores ? stores_n(p->conf.stores) : 0;

	while (i < n && !stores_is_silent(p->conf.stores, i))
		i++;
	return i < n;
}

int range_is_away(const struct range *r)
{
	/* above a device it may have pages in the host pool */
	return !r->n_resident && !r->pager->conf.device && is_silent(r);
}

uint32_t range_n_lower(const struct range *r)
{
	return r->n_lower;
}

uint64_t range_lower_bytes(const struct range *r, uint32_t first, uint32_t n)
{
	const int silent = is_silent(r);
	uint64_t bytes = 0;

	for (uint32_t i = first; (r->n_lower || silent) && i < first + n; i++) {
		const struct page *pg = &r->pages[i];

		if ((pg->state == PAGE_LOWER && !pg->parked) ||
		    (silent && pg->state == PAGE_READING))
			bytes += r->tier->page_bytes;
	}
	return bytes;
}

uint64_t range_coming_bytes(const struct range *r, uint32_t first, uint32_t n)
{
	uint64_t bytes = 0;

	for (uint32_t i = first; i < first + n; i++)
		if (r->pages[i].state == PAGE_READING ||
		    (r->pages[i].state == PAGE_LOWER &&
		     !list_empty(&r->pages[i].starved)))
			bytes += r->tier->page_bytes;
	return bytes;
}

uint64_t range_load_ns(const struct range *r, uint32_t first, uint32_t n)
{
	const uint64_t bytes = range_lower_bytes(r, first, n);

	if (r->pager->conf.device)
		return dev_load_ns(r, first, n);
	if (!bytes)
		return 0;
	return stores_read_ns(r->pager->conf.stores, r->i_disk, &r->pager->flow,
			      bytes);
}

uint32_t range_disk(const struct range *r)
{
	return r->has_disk ? r->i_disk : 0;
}

uint32_t pager_n_disks(const struct pager *p)
{
	return p->conf.stores ? stores_n(p->conf.stores) : 1;
}

void pager_disk_speed(const struct pager *p, uint32_t i, double *bytes_per_s,
		      uint64_t *queue_bytes)
{
	struct stores_speed v = { 1e9, 0 };

	if (p->conf.stores)
		v = stores_speed(p->conf.stores, i, &p->flow);
	*bytes_per_s = v.bytes_per_s;
	*queue_bytes = v.queue_bytes;
}

void pager_disks_limit(const struct pager *p, double *bytes_per_s,
		       uint64_t *queue_bytes)
{
	const struct stores_speed v = stores_limit(&p->flow);

	*bytes_per_s = v.bytes_per_s;
	*queue_bytes = v.queue_bytes;
}

int range_lost(const struct range *r)
{
	return r->n_lost != 0;
}

void range_hint(struct range *r, enum range_hint hint)
{
	static const uint8_t as[] = {
		[RANGE_COLD] = EVICT_COLD,
		[RANGE_HOT] = EVICT_HOT,
		[RANGE_AWAITED] = EVICT_HOT,
	};

	r->awaited = hint == RANGE_AWAITED;
	for (uint32_t i = 0; i < r->n_pages; i++) {
		r->pages[i].evict.hint = as[hint];
		policy_hint(&r->pages[i]);
	}
}

void range_class(struct range *r, uint32_t first, uint32_t n, uint32_t kind)
{
	assert(kind < EVICT_KINDS);
	for (uint32_t i = first; i < KV_MIN(first + n, r->n_pages); i++) {
		r->pages[i].evict.kind = (uint8_t)kind;
		policy_hint(&r->pages[i]);
	}
}

void range_cost(struct range *r, float ns_per_byte)
{
	r->compute_cost = ns_per_byte;
}

void range_gain(struct range *r, float gain)
{
	assert(gain >= 1 && gain <= RANGE_GAIN_MAX);
	r->gain = gain;
}

size_t pager_page_align(const struct pager *p)
{
	return p->conf.device ? device_frame_bytes(p->conf.device) : 4096;
}

int pager_durable(const struct pager *p)
{
	return p->conf.stores && p->conf.disk_bytes &&
	       !stores_scratch(p->conf.stores);
}

/* ---- what the policy is told --------------------------------------------- */

/* Read or computed again, whichever is faster. */
static void page_cost(struct page *pg)
{
	const float load = pg->range->tier->ns_per_byte;
	const float compute = pg->range->compute_cost;

	if (load > 0 && (compute <= 0 || load < compute))
		pg->evict.cost = load;
	else if (compute > 0)
		pg->evict.cost = compute;
}

void policy_add(struct page *pg)
{
	struct pager *p = pg->range->pager;

	if (pg->in_policy || pg->n_pins || pg->busy || pg->doomed ||
	    (pg->state != PAGE_DIRTY && pg->state != PAGE_CLEAN))
		return;
	page_cost(pg);
	pg->in_policy = 1;
	p->policy_bytes += pg->range->tier->page_bytes;
	p->policy->add(p->policy_state, &pg->evict);
}

void policy_taken(struct page *pg)
{
	pg->in_policy = 0;
	pg->range->pager->policy_bytes -= pg->range->tier->page_bytes;
}

void policy_remove(struct page *pg)
{
	struct pager *p = pg->range->pager;

	if (!pg->in_policy)
		return;
	policy_taken(pg);
	p->policy->remove(p->policy_state, &pg->evict);
}

void policy_hint(struct page *pg)
{
	struct pager *p = pg->range->pager;

	if (p->policy->hint)
		p->policy->hint(p->policy_state, &pg->evict);
}

void tier_note_restore(struct tier *t, uint64_t ns)
{
	const float one = (float)ns / (float)t->page_bytes;

	t->ns_per_byte += t->ns_per_byte > 0 ? (one - t->ns_per_byte) / 64
					     : one;
}

/* ---- pins -------------------------------------------------------------------------- */

static void pin(struct page *pg)
{
	struct pager *p = pg->range->pager;

	policy_remove(pg);
	if (!pg->n_pins++) {
		p->pinned_bytes += pg->range->tier->page_bytes;
		pg->evict.hint = pg->range->awaited ? EVICT_HOT : EVICT_NONE;
		pg->evict.gain = pg->range->gain;
		p->policy->use(p->policy_state, &pg->evict);
	}
}

static void unpin(struct page *pg)
{
	struct pager *p = pg->range->pager;

	assert(pg->n_pins);
	if (--pg->n_pins)
		return;
	p->pinned_bytes -= pg->range->tier->page_bytes;
	policy_add(pg);
}

/* Bytes change from now on: what the lower tier has is old. */
static void begin_write(struct page *pg)
{
	assert(pg->state == PAGE_DIRTY || pg->state == PAGE_CLEAN);
	if (pg->state == PAGE_CLEAN) {
		assert(!pg->range->durable);
		page_release_slot(pg);
		page_set_state(pg, PAGE_DIRTY);
	}
}

static struct page *run_page(const struct page_run *r, uint32_t i)
{
	assert(r->first + i < r->range->n_pages);
	return &r->range->pages[r->first + i];
}

/* fn for each page of the runs. */
#define EACH_PAGE(pg, runs, n_runs) \
	for (uint32_t pg##_r = 0; pg##_r < (n_runs); pg##_r++) \
		for (uint32_t pg##_i = 0; pg##_i < (runs)[pg##_r].n; pg##_i++) \
			if ((pg = run_page(&(runs)[pg##_r], pg##_i)))

static void forget_waits(struct page *pg, struct page_want *w)
{
	list_for_each_safe(n, &pg->waiters) {
		struct page_wait *pw = list_entry(n, struct page_wait, node);

		if (pw->want == w) {
			list_del(n);
			free(pw);
		}
	}
}

/* Unpin the first n pages of the want and forget its waits. */
static void undo(struct page_want *w, uint32_t n)
{
	struct page *pg;
	uint32_t i = 0;

	EACH_PAGE(pg, w->runs, w->n_runs)
	{
		if (i++ == n)
			return;
		forget_waits(pg, w);
		if (list_empty(&pg->waiters))
			page_unstarve(pg);
		unpin(pg);
	}
}

static int is_unmapped(const struct page *pg)
{
	return pg->state == PAGE_EMPTY || pg->state == PAGE_MAPPING;
}

static int add_wait(struct page *pg, struct page_want *w)
{
	struct page_wait *pw = malloc(sizeof(*pw));

	if (!pw)
		return -ENOMEM;
	if (!w->ahead && is_unmapped(pg))
		pg->range->pager->n_map_waits_total++;
	pw->want = w;
	list_init(&pw->node);
	list_push(&pg->waiters, &pw->node);
	w->n_missing++;
	return 0;
}

/* In a line for room page_fetch() sees to it; on its way the disk's line is next. */
static int wait_for(struct page *pg, struct page_want *w)
{
	const int ret = add_wait(pg, w);

	if (!ret)
		page_hurry(pg, w->prio);
	return ret;
}

/* Nobody writes into a page while its bytes are read for the lower tier. */
static int must_wait(const struct page *pg, uint32_t flags)
{
	return !page_resident(pg) ||
	       (flags & PAGE_WRITE && pg->state == PAGE_WRITING);
}

int page_want(struct pager *p, struct page_want *w)
{
	struct page *pg;
	uint32_t n = 0;
	int ret = 0;

	if (p->conf.device && device_lost(p->conf.device))
		return -ENODEV;
	w->n_missing = w->n_read = 0;
	w->ret = 0;
	EACH_PAGE(pg, w->runs, w->n_runs)
	{
		if (ret)
			break; /* of this run; the others end here too */
		pin(pg);
		n++;
		if (pg->state == PAGE_LOST)
			ret = pg->lost_err;
		else if (pg->resting)
			ret = -EIO;
		else if (must_wait(pg, w->runs[pg_r].flags))
			ret = wait_for(pg, w);
		else if (w->runs[pg_r].flags & PAGE_WRITE)
			begin_write(pg);
	}
	if (ret) {
		undo(w, n);
		return ret;
	}
	if (!w->n_missing)
		return 1;
	EACH_PAGE(pg, w->runs, w->n_runs)
	page_fetch(pg, w->prio);
	return 0;
}

void page_want_waits(struct page_want *w)
{
	struct page *pg;

	EACH_PAGE(pg, w->runs, w->n_runs)
	if (w->ahead && is_unmapped(pg))
		pg->range->pager->n_map_waits_total++;
	w->ahead = 0;
}

void page_want_cancel(struct pager *p, struct page_want *w)
{
	(void)p;
	undo(w, UINT32_MAX);
	w->n_missing = 0;
}

void page_unpin(struct pager *p, const struct page_run *runs, uint32_t n_runs)
{
	struct page *pg;

	EACH_PAGE(pg, runs, n_runs)
	unpin(pg);
	pager_make_room(p);
}

void page_prefetch(struct pager *p, const struct page_run *runs,
		   uint32_t n_runs)
{
	struct page *pg;

	(void)p;
	EACH_PAGE(pg, runs, n_runs)
	if (pg->state == PAGE_LOWER || pg->state == PAGE_EMPTY)
		page_fetch(pg, WANT_PREFETCH);
}

/* ---- for maps of clients -------------------------------------------------------- */

int range_file(const struct range *r, struct range_file *out)
{
	const int fd = r->tier->space ? space_share_fd(r->tier->space)
				      : -ENOTSUP;

	if (fd < 0)
		return fd;
	r->tier->is_shared = 1;
	*out = (struct range_file){ .fd = fd,
				    .id = r->tier->id,
				    .off_bytes =
					    r->first * r->tier->page_bytes };
	return 0;
}

uint32_t page_hold(struct range *r, uint32_t first, uint32_t n)
{
	uint32_t i = 0;

	for (; i < n && first + i < r->n_pages; i++) {
		if (!page_resident(&r->pages[first + i]))
			break;
		pin(&r->pages[first + i]);
	}
	/* on its way back: nobody has to fail for want of these frames */
	r->pager->n_ops += i;
	return i;
}

void page_let_go(struct range *r, uint32_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		unpin(&r->pages[first + i]);
	r->pager->n_ops -= n;
	pager_make_room(r->pager);
}

/* ---- what became of a page ------------------------------------------------------------ */

/* PAGE_WRITE of those who waited. */
static int wants_write(const struct page_want *w, const struct page *pg)
{
	for (uint32_t i = 0; i < w->n_runs; i++)
		if (w->runs[i].range == pg->range &&
		    w->runs[i].flags & PAGE_WRITE &&
		    page_index(pg) - w->runs[i].first < w->runs[i].n)
			return 1;
	return 0;
}

void page_arrived(struct page *pg, int from_lower)
{
	struct list *n;

	while ((n = list_pop(&pg->waiters))) {
		struct page_wait *pw = list_entry(n, struct page_wait, node);
		struct page_want *w = pw->want;

		free(pw);
		w->n_read += (uint32_t) !!from_lower;
		if (wants_write(w, pg))
			begin_write(pg);
		if (!--w->n_missing)
			w->wait.done(&w->wait, 0);
	}
	policy_add(pg);
}

void page_failed(struct page *pg, int err)
{
	struct range *r = pg->range;
	struct list *n;

	r->n_busy++; /* who is told may free the range */
	while ((n = list_first(&pg->waiters))) {
		struct page_want *w =
			list_entry(n, struct page_wait, node)->want;

		undo(w, UINT32_MAX); /* takes all its waits off this list */
		w->n_missing = 0;
		w->wait.done(&w->wait, err);
	}
	r->n_busy--;
	range_look_freed(r);
}

/* ---- information ------------------------------------------------------------------------ */

void pager_info(struct pager *p, struct pager_info *out)
{
	memset(out, 0, sizeof(*out));
	out->memory_bytes = p->conf.memory_bytes;
	out->disk_bytes = p->conf.disk_bytes;
	out->mapped_bytes = pager_used(p, ACCOUNT_MEMORY);
	out->pinned_bytes = p->pinned_bytes;
	out->evictable_bytes = p->policy_bytes;
	out->reserved_bytes = p->account.reserved;
	out->slot_bytes = pager_used(p, ACCOUNT_DISK);
	out->n_durable = p->n_durable;
	out->durable_bytes = p->durable_bytes;
	out->n_empty = p->n_state[PAGE_EMPTY];
	out->n_dirty = p->n_state[PAGE_DIRTY];
	out->n_clean = p->n_state[PAGE_CLEAN];
	out->n_lower = p->n_state[PAGE_LOWER];
	out->n_lost = p->n_state[PAGE_LOST];
	out->n_in_flight = p->n_ops;
	out->n_map_waits_total = p->n_map_waits_total;
	out->n_mapped_total = p->n_mapped_total;
	out->n_evicted_total = p->n_evicted_total;
	out->n_read_total = p->n_read_total;
	out->n_written_total = p->n_written_total;
	out->read_bytes_total = p->read_bytes_total;
	out->n_lost_total = stat_read(p->st_lost);
	out->written_bytes_total = p->written_bytes_total;
	for (struct tier *t = p->tiers; t; t = t->next) {
		out->file_bytes += tier_bytes(t);
		out->small_bytes += tier_is_small(t) ? tier_bytes(t) : 0;
	}
	if (p->conf.device)
		park_part_bytes(device_park(p->conf.device), &p->part,
				&out->host_bytes, &out->host_dirty_bytes);
}

/* What the counters of a pager are sums of. */
struct sums {
	uint64_t mapped, pinned, slots, clean, policy, writing, demand, leaving;
	uint64_t parked, unwritten;
	uint64_t n_state[PAGE_N_STATES];
	uint32_t n_busy, n_resident, n_lower, n_lost; /* of the range in hand */
	uint64_t n_ops;
	uint32_t n_persists;
	uint64_t n_durable, durable_bytes;
};

/* Its frame is being taken. */
static int is_leaving(const struct page *pg)
{
	return pg->charged && pg->busy && !pg->resting &&
	       (pg->state == PAGE_DROPPING || pg->state == PAGE_EMPTY ||
		pg->state == PAGE_LOWER || pg->state == PAGE_LOST);
}

static void add_page(struct sums *s, const struct page *pg)
{
	const size_t bytes = pg->range->tier->page_bytes;
	const int writing = pg->state == PAGE_WRITING;

	s->mapped += pg->charged ? bytes : 0;
	s->pinned += pg->n_pins ? bytes : 0;
	s->slots += pg->slot >= 0 ? bytes : 0;
	s->clean += pg->state == PAGE_CLEAN ? bytes : 0;
	s->policy += pg->in_policy ? bytes : 0;
	s->writing += writing ? bytes : 0;
	s->leaving += is_leaving(pg) || (writing && pg->to_go) ? bytes : 0;
	if (!list_empty(&pg->starved) && pg->prio < WANT_PREFETCH)
		s->demand += bytes;
	if (pg->parked)
		s->parked += bytes;
	if (park_is_dirty(pg))
		s->unwritten += bytes;
	s->n_state[pg->state]++;
	s->n_busy += pg->busy;
	s->n_ops += pg->busy && !pg->resting;
	s->n_resident += page_resident(pg) ? 1 : 0;
	s->n_lower += pg->state == PAGE_LOWER;
	s->n_lost += pg->state == PAGE_LOST;
}

static void check_page(const struct page *pg)
{
	assert(!page_resident(pg) || pg->charged);
	assert(pg->state != PAGE_LOWER || pg->busy ||
	       (pg->slot >= 0 && !pg->charged));
	assert(pg->state != PAGE_CLEAN || pg->slot >= 0);
	assert(!pg->parked || pg->slot >= 0);
	assert(!pg->in_policy ||
	       ((pg->state == PAGE_DIRTY || pg->state == PAGE_CLEAN) &&
		!pg->n_pins && !pg->busy));
	assert(list_empty(&pg->waiters) || pg->n_pins);
}

/* All of r; it may be in the middle of something. */
static void check_range(const struct range *r, struct sums *s)
{
	s->n_busy = s->n_resident = s->n_lower = s->n_lost = 0;
	for (uint32_t i = 0; i < r->n_virtual; i++) {
		check_page(&r->pages[i]);
		add_page(s, &r->pages[i]);
	}
	assert(s->n_busy == r->n_busy && s->n_resident == r->n_resident);
	assert(s->n_lower == r->n_lower && s->n_lost == r->n_lost);
	s->n_persists += r->persist != NULL;
	s->n_durable += r->durable ? 1 : 0;
	s->durable_bytes +=
		r->durable ? (uint64_t)r->n_pages * range_page_bytes(r) : 0;
}

/* In the host pool; more while pages come, or are written after they were let go of. */
static void check_parked(struct pager *p, const struct sums *s)
{
	uint64_t used, dirty;

	if (!p->conf.device)
		return;
	park_part_bytes(device_park(p->conf.device), &p->part, &used, &dirty);
	assert(s->parked <= used && s->unwritten <= dirty);
	assert(p->n_ops || (s->parked == used && s->unwritten == dirty));
}

void pager_check(struct pager *p)
{
	struct sums s = { 0 };
	uint64_t files = 0;
	int busy = 0, is_shared = 0;

	list_for_each(n, &p->ranges) {
		struct range *r = list_entry(n, struct range, node);

		busy |= r->n_busy || r->freed;
		check_range(r, &s);
	}
	accounts_check(p->account.accounts);
	assert(s.mapped == pager_used(p, ACCOUNT_MEMORY));
	assert(s.pinned == p->pinned_bytes);
	assert(s.slots == pager_used(p, ACCOUNT_DISK));
	assert(s.clean == p->clean_bytes && s.policy == p->policy_bytes);
	assert(s.writing == p->writing_bytes);
	list_for_each(n, &p->persists)
		s.n_persists--;
	assert(!s.n_persists);
	assert(s.n_durable == p->n_durable &&
	       s.durable_bytes == p->durable_bytes);
	assert(s.demand == p->account.demand);
	assert(s.leaving == p->account.leaving);
	assert(s.n_ops <=
	       p->n_ops); /* and what is held, or written from the pool */
	for (int i = 0; i < PAGE_N_STATES; i++)
		assert(s.n_state[i] == p->n_state[i]);
	for (struct tier *t = p->tiers; t; t = t->next) {
		files += tier_bytes(t);
		is_shared |= t->is_shared;
	}
	assert(busy || files == s.mapped || (is_shared && files > s.mapped));
	check_parked(p, &s);
}
