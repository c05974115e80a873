/*
 * room.c - who gets the next frame, and whose page makes room for it; see move.h
 *
 *   page_fetch --> a line of the pager --room--> page_start_fetch (move.c)
 *
 * All pagers of one struct accounts are served on one turn:
 *  (1) Frames go to the pager furthest below its share that is not at its limit, and
 *      in it to the most urgent line, in order. Nobody overtakes for being smaller.
 *  (2) What is still wanted and not on its way is taken: from the pager's own pages
 *      where its limit is in the way, else from whom account_victim() names.
 *  (3) When nothing can go and nothing is on its way, something kept for reuse is
 *      given up; when there is none, the first in line is told.
 *  (4) Ahead of demand: between two marks frames are freed, and the next to go
 *      are written, so that a want seldom waits for an eviction.
 */
#include <errno.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/mem/device.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/move.h"
#include "kvd/mem/stores.h"

#define CLEAN_AHEAD (8u << 20) /* bytes being written ahead, each pager */
#define FREE_PART   64u /* low mark: this part of a budget is free */
#define FREE_MOST   (16ull << 20) /* and no more than so much */
#define MISSING_NS  1000000000u /* half of what was missing is asked for again */
#define RETRY_NS    2000000u /* for what passes by itself */

static struct pager *pager_of(struct account *a)
{
	return container_of(a, struct pager, account);
}

#define EACH_PAGER(p, as) \
	for (struct list *p##_n = (as)->all.next; \
	     p##_n != &(as)->all && \
	     ((p) = pager_of(list_entry(p##_n, struct account, node)), 1); \
	     p##_n = p##_n->next)

static size_t bytes_of(const struct page *pg)
{
	return pg->range->tier->page_bytes;
}

uint64_t pager_used(const struct pager *p, enum account_tier t)
{
	return p->account.side[t].used;
}

void pager_charge_slots(struct pager *p, uint64_t bytes)
{
	account_charge(&p->account, ACCOUNT_DISK, bytes, clock_ns());
	stat_set(p->st_slot_bytes, pager_used(p, ACCOUNT_DISK));
}

void pager_uncharge_slots(struct pager *p, uint64_t bytes)
{
	account_uncharge(&p->account, ACCOUNT_DISK, bytes, clock_ns());
	stat_set(p->st_slot_bytes, pager_used(p, ACCOUNT_DISK));
}

/* ---- lines ------------------------------------------------------------------ */

void page_fetch(struct page *pg, enum want_prio prio)
{
	struct pager *p = pg->range->pager;

	if (pg->busy || page_resident(pg) || pg->state == PAGE_LOST)
		return;
	if (!list_empty(&pg->starved)) {
		if (pg->prio <= prio)
			return;
		page_unstarve(pg);
	}
	pg->prio = (uint8_t)prio;
	list_push(&p->starved[prio], &pg->starved);
	if (prio < WANT_PREFETCH)
		p->account.demand += bytes_of(pg);
	pager_make_room(p);
}

void page_unstarve(struct page *pg)
{
	if (list_empty(&pg->starved) || pg->prio == WANT_PRIOS)
		return;
	list_del(&pg->starved);
	if (pg->prio < WANT_PREFETCH)
		pg->range->pager->account.demand -= bytes_of(pg);
}

static struct page *first_of(struct pager *p, enum want_prio from,
			     enum want_prio to)
{
	for (int i = (int)from; i < (int)to; i++) {
		struct list *n = list_first(&p->starved[i]);

		if (n)
			return list_entry(n, struct page, starved);
	}
	return NULL;
}

int pager_starved(const struct pager *p)
{
	return p->account.demand != 0;
}

/*
 * Bring in pg, and what follows it in the range and in the line, as far as there is
 * room. What stands further back in line comes later for a reason (restore.h).
 */
static void start(struct page *pg, uint64_t room)
{
	const enum want_prio prio = pg->prio;
	const size_t bytes = bytes_of(pg);
	struct range *r = pg->range;
	uint32_t n = 1;

	while ((n + 1) * bytes <= room && page_fetches_along(pg, n) &&
	       pg[n - 1].starved.next == &pg[n].starved)
		n++;
	for (uint32_t i = 0; i < n; i++)
		page_unstarve(pg + i);
	if (!page_start_fetch(pg, n, prio))
		return;
	r->n_busy++; /* until all have been told */
	while (n--)
		page_failed(&pg[n], -ENOMEM);
	r->n_busy--;
	range_look_freed(r);
}

static void serve(struct accounts *as)
{
	struct account *a;

	account_round(as);
	while ((a = account_neediest(as))) {
		struct page *pg = first_of(pager_of(a), 0, WANT_PREFETCH);

		const uint64_t room = account_room(a, ACCOUNT_MEMORY);

		if (room >= bytes_of(pg))
			start(pg, room);
		else if (account_limit_room(a, ACCOUNT_MEMORY) < bytes_of(pg))
			a->passed = as->round;
		else
			break;
	}
}

/* Who may wait takes what is free now; the rest forget it. */
static void serve_spare(struct accounts *as, uint64_t keep_free)
{
	struct pager *p;

	EACH_PAGER(p, as)
	{
		struct page *pg;

		while ((pg = first_of(p, WANT_PREFETCH, WANT_PRIOS))) {
			const uint64_t room =
				account_room(&p->account, ACCOUNT_MEMORY);

			if (room >= bytes_of(pg) + keep_free)
				start(pg, room - keep_free);
			else
				page_unstarve(pg);
		}
	}
}

/* ---- victims ------------------------------------------------------------------ */

static int drop(struct page *pg)
{
	if (!page_may_go(pg))
		return -EBUSY;
	page_drop(pg);
	return 0;
}

/* -EBUSY goes before other errors: it passes. */
static int worse(int err, int ret)
{
	return ret && err == -EBUSY ? err : ret;
}

/* One page on its way down; 0, -ENOENT nobody can go, or why not. */
static int evict(struct pager *p, uint64_t now)
{
	struct evict_node *n;
	struct list failed, *i;
	struct page *pg;
	int ret = -ENOENT;

	list_init(&failed);
	while (ret && (n = p->policy->victim(p->policy_state))) {
		pg = container_of(n, struct page, evict);
		policy_taken(pg);
		if (pg->retry_ns > now)
			ret = worse(ret, -EIO);
		else if (pg->state == PAGE_CLEAN)
			ret = worse(ret, drop(pg));
		else
			ret = worse(ret, page_write_out(pg));
		if (ret)
			list_push(&failed, &n->list);
	}
	while ((i = list_pop(&failed)))
		policy_add(container_of(i, struct page, evict.list));
	return ret;
}

static uint64_t beyond(uint64_t n, uint64_t have)
{
	return n > have ? n - have : 0;
}

/* 1: what p has at disk i will not come back soon. */
static int is_held_up(const struct pager *p, uint32_t i)
{
	return p->at_disk[i].n_ops && stores_is_silent(p->conf.stores, i);
}

/* What is leaving, and not waiting for a disk that is silent. */
static uint64_t leaving(const struct pager *p)
{
	uint64_t n = p->account.leaving;

	for (uint32_t i = 0; i < STORES_MAX; i++)
		if (is_held_up(p, i))
			n -= p->at_disk[i].leaving;
	return n;
}

/* Demand of p beyond what its own limit lets it have or is leaving. */
static uint64_t limit_short(const struct pager *p)
{
	const struct account *a = &p->account;

	return beyond(a->demand,
		      account_limit_room(a, ACCOUNT_MEMORY) + leaving(p));
}

/* All demand that limits allow, beyond what is free or leaving. */
static uint64_t pool_short(struct accounts *as, uint64_t keep_free)
{
	uint64_t need = keep_free, n_leaving = as->leaving;
	struct pager *p;

	EACH_PAGER(p, as)
	{
		need += KV_MIN(p->account.demand,
			       account_limit_room(&p->account, ACCOUNT_MEMORY) +
				       leaving(p));
		n_leaving -= p->account.leaving - leaving(p);
	}
	return beyond(need + as->missing, as->bytes[ACCOUNT_MEMORY] -
						  as->used[ACCOUNT_MEMORY] +
						  n_leaving);
}

void pager_missing(struct pager *p, uint64_t bytes)
{
	struct accounts *as = p->account.accounts;

	as->missing = KV_MIN(as->missing + bytes, as->bytes[ACCOUNT_MEMORY]);
	as->missing_ns = clock_ns();
	pager_make_room(p);
}

/* Perhaps it can be had again: see what happens. */
static void forget_missing(struct accounts *as, uint64_t now)
{
	if (!as->missing || now - as->missing_ns < MISSING_NS)
		return;
	as->missing /= 2;
	as->missing_ns = now;
}

int pager_should_drop(const struct pager *p)
{
	const struct account *a = &p->account;

	return a->demand > a->leaving || (account_may_give(a, ACCOUNT_MEMORY) &&
					  pool_short(a->accounts, 0));
}

/* 0, or why p's own pages do not make room for it. */
static int make_own(struct pager *p, uint64_t now)
{
	int ret = 0;

	while (!ret && limit_short(p))
		ret = evict(p, now);
	return ret;
}

static int make_pool(struct accounts *as, uint64_t now, uint64_t keep_free)
{
	struct account *a;
	int ret = 0, err = 0;

	account_round(as);
	while (pool_short(as, keep_free)) {
		a = account_victim(as, ACCOUNT_MEMORY);
		if (!a)
			return err ? err : -ENOENT;
		ret = evict(pager_of(a), now);
		if (ret) {
			a->passed = as->round;
			err = err && ret == -ENOENT ? err : worse(err, ret);
		}
	}
	return 0;
}

/* ---- the end of the line ---------------------------------------------------------- */

static int reclaim(struct pager *p)
{
	return p->conf.reclaim ? p->conf.reclaim(p->conf.ctx) : -ENOSPC;
}

/*
 * Let go of something kept for reuse, of who is most above its share of t. For memory, of
 * who has pages there that find no place below: they, or their places, are what it frees.
 */
static int reclaim_of(struct accounts *as, enum account_tier t)
{
	struct account *a;

	account_round(as);
	while ((a = account_victim(as, t))) {
		struct pager *p = pager_of(a);

		if ((t != ACCOUNT_MEMORY || p->policy_bytes) && !reclaim(p))
			return 0;
		a->passed = as->round;
	}
	return -ENOSPC;
}

uint64_t pager_disk_lent(const struct pager *p, uint64_t bytes)
{
	const struct account_side *s = &p->account.side[ACCOUNT_DISK];
	const uint64_t own = s->share > s->used ? s->share - s->used : 0;

	bytes = KV_MIN(bytes, own);
	return account_room(&p->account, ACCOUNT_DISK) < bytes ? bytes : 0;
}

int pager_call_disk_back(struct pager *p, uint64_t bytes)
{
	struct accounts *as = p->account.accounts;
	struct account *a;
	int n = 0;

	bytes = pager_disk_lent(p, bytes);
	account_round(as);
	while (account_room(&p->account, ACCOUNT_DISK) < bytes &&
	       (a = account_victim(as, ACCOUNT_DISK))) {
		const struct account_side *s = &a->side[ACCOUNT_DISK];

		if (s->used > s->share && !reclaim(pager_of(a)))
			n++;
		else
			a->passed = as->round;
	}
	return n;
}

static void retry(struct loop_timer *t)
{
	struct accounts *as = container_of(t, struct accounts, room_timer);

	accounts_make_room(as);
}

static void tell_first(struct pager *p, int err)
{
	struct page *pg = first_of(p, 0, WANT_PREFETCH);

	if (!pg)
		return;
	page_unstarve(pg);
	page_failed(pg, err == -EIO ? -EIO : -ENOSPC);
}

static size_t largest_page(const struct pager *p)
{
	size_t most = 0;

	for (const struct tier *t = p->tiers; t; t = t->next)
		most = KV_MAX(most, t->page_bytes);
	return most;
}

/* What becomes durable is referred to meanwhile, and can be given up soon: 1. */
static int persists(struct pager *p)
{
	if (!durable_on_the_way(p))
		return 0;
	pager_look_again(p);
	return 1;
}

static int any_persists(struct accounts *as)
{
	struct pager *p;

	EACH_PAGER(p, as)
	if (persists(p))
		return 1;
	return 0;
}

/* Nothing of p can go and nothing of it is on its way. */
static void give_up_own(struct pager *p, int err)
{
	const int is_back = err == -ENOSPC &&
			    pager_call_disk_back(p, largest_page(p));

	if (!is_back && reclaim(p)) {
		if (persists(p) || (pager_disk_lent(p, largest_page(p)) &&
				    any_persists(p->account.accounts)))
			return;
		tell_first(p, err);
	}
	pager_make_room(p);
}

static void give_up_pool(struct accounts *as, int err)
{
	struct pager *p;
	int ret = -ENOSPC;

	if (err == -ENOSPC && as->bytes[ACCOUNT_DISK] - as->used[ACCOUNT_DISK] <
				      as->bytes[ACCOUNT_DISK] / FREE_PART)
		ret = reclaim_of(as, ACCOUNT_DISK);
	if (ret)
		ret = reclaim_of(as, ACCOUNT_MEMORY);
	if (ret && any_persists(as))
		return;
	if (ret) {
		EACH_PAGER(p, as)
		tell_first(p, err);
	}
	accounts_make_room(as);
}

void pager_look_again(struct pager *p)
{
	struct accounts *as = p->account.accounts;

	as->room_timer.run = retry;
	loop_timer_set(p->conf.loop, &as->room_timer, clock_ns() + RETRY_NS);
}

/* What stood in the way passes: slots that come back when a deletion is durable, pages
 * that a client holds. */
static int passes(struct pager *p, int err)
{
	if (err != -EBUSY &&
	    (!p->conf.stores || !stores_pending(p->conf.stores)))
		return 0;
	pager_look_again(p);
	return 1;
}

/* ---- ahead of demand ----------------------------------------------------------------- */

/* Bytes that should be free of a budget; 0: it is too small for that. */
static uint64_t free_mark(const struct pager *p, uint64_t budget)
{
	const uint64_t mark = KV_MIN(budget / FREE_PART, FREE_MOST);

	return mark >= largest_page(p) ? mark : 0;
}

/* The next to go is clean: if it is not, write it. It stays where it is. 1: done. */
static int write_next(struct pager *p, uint64_t now)
{
	struct evict_node *n = p->policy->victim(p->policy_state);
	struct page *pg;

	if (!n)
		return 0;
	pg = container_of(n, struct page, evict);
	policy_taken(pg);
	if (pg->state == PAGE_DIRTY && pg->retry_ns <= now &&
	    !page_write_back(pg))
		return 1;
	policy_add(pg);
	return 0;
}

static void write_ahead(struct pager *p, uint64_t now)
{
	const struct account_side *s = &p->account.side[ACCOUNT_MEMORY];
	const uint64_t budget = KV_MIN(s->limit, s->share);

	if (!pager_has_lower(p) || p->account.demand ||
	    s->used < budget / 8 * 7 || p->clean_bytes > budget / 8)
		return;
	while (p->writing_bytes < CLEAN_AHEAD && write_next(p, now))
		;
}

static void free_ahead(struct pager *p, uint64_t now)
{
	const struct account *a = &p->account;
	const uint64_t mark = free_mark(p, a->side[ACCOUNT_MEMORY].limit);

	if (!p->conf.disk_bytes ||
	    account_limit_room(a, ACCOUNT_MEMORY) + a->leaving >= mark)
		return;
	while (account_limit_room(a, ACCOUNT_MEMORY) + a->leaving < 2 * mark)
		if (evict(p, now))
			return;
}

/* Free and clean ahead; returns the low mark of the pool. */
static uint64_t ahead(struct accounts *as, uint64_t now)
{
	uint64_t mark = UINT64_MAX;
	struct pager *p;

	EACH_PAGER(p, as)
	{
		mark = KV_MIN(mark, free_mark(p, as->bytes[ACCOUNT_MEMORY]));
		free_ahead(p, now);
		write_ahead(p, now);
	}
	if (mark && mark != UINT64_MAX && pool_short(as, mark))
		(void)make_pool(as, now, 2 * mark); /* as far as it goes */
	return mark;
}

/* The device is lost: 1, and who waits for a frame is told. */
static int fail_all(struct accounts *as)
{
	struct pager *p;
	struct page *pg;
	int is_lost = 0;

	EACH_PAGER(p, as)
	{
		if (!p->conf.device || !device_lost(p->conf.device))
			continue;
		is_lost = 1;
		while ((pg = first_of(p, 0, WANT_PRIOS))) {
			page_unstarve(pg);
			page_failed(pg, -ENODEV);
		}
	}
	return is_lost;
}

/* ---- a turn ------------------------------------------------------------------------------ */

static void tell_reservable(struct accounts *as)
{
	struct pager *p;

	if (!as->loosened)
		return;
	as->loosened = 0;
	EACH_PAGER(p, as)
	{
		if (!p->refused || !p->conf.reservable)
			continue;
		p->refused = 0;
		p->conf.reservable(p->conf.ctx);
	}
}

/* Pages of p on their way, that will get there. */
static uint32_t n_ops_of(const struct pager *p)
{
	uint32_t n = p->n_ops - p->n_idle;

	for (uint32_t i = 0; i < STORES_MAX; i++)
		if (is_held_up(p, i))
			n -= p->at_disk[i].n_ops;
	return n;
}

static uint32_t n_ops(struct accounts *as)
{
	struct pager *p;
	uint32_t n = 0;

	EACH_PAGER(p, as)
	n += n_ops_of(p);
	return n;
}

static int take(struct accounts *as, uint64_t now)
{
	struct pager *p;
	int ret;

	EACH_PAGER(p, as)
	{
		ret = p->account.demand ? make_own(p, now) : 0;
		if (!ret || n_ops_of(p) || passes(p, ret))
			continue;
		give_up_own(p, ret);
		return 1;
	}
	ret = make_pool(as, now, 0);
	if (!ret || n_ops(as))
		return ret;
	EACH_PAGER(p, as)
	if (p->account.demand && passes(p, ret))
		return ret;
	give_up_pool(as, ret);
	return 1;
}

static void room_turn(struct loop_call *c)
{
	struct accounts *as = container_of(c, struct accounts, room_call);
	const uint64_t now = clock_ns();
	struct pager *p;
	uint64_t mark;

	as->room_queued = 0;
	forget_missing(as, now);
	serve(as);
	if (fail_all(as)) {
		; /* the device is gone: nobody comes or goes */
	} else if (!take(as, now)) {
		mark = ahead(as, now);
		serve_spare(as, mark == UINT64_MAX ? 0 : mark);
	}
	EACH_PAGER(p, as)
	{
		pager_send(p);
		pager_stat_usage(p, now);
	}
	tell_reservable(as);
}

void accounts_make_room(struct accounts *as)
{
	struct list *n = list_first(&as->all);

	if (as->room_queued || !n)
		return;
	as->room_queued = 1;
	as->room_call.run = room_turn;
	loop_defer(pager_of(list_entry(n, struct account, node))->conf.loop,
		   &as->room_call);
}

void pager_make_room(struct pager *p)
{
	accounts_make_room(p->account.accounts);
}

/* ---- admission ---------------------------------------------------------------------------- */

/* Others may have reservations, or loans, again. */
static void loosen(struct pager *p)
{
	p->account.accounts->loosened = 1;
	pager_make_room(p);
}

int pager_reserve(struct pager *p, uint64_t bytes)
{
	const uint64_t owed = p->account.owed;
	const int ret = account_reserve(&p->account, bytes);

	if (ret == -EAGAIN)
		p->refused = 1;
	if (owed && !p->account.owed)
		loosen(p);
	return ret;
}

void pager_unreserve(struct pager *p, uint64_t bytes)
{
	account_unreserve(&p->account, bytes);
	loosen(p);
}

void pager_reserve_forget(struct pager *p)
{
	p->refused = 0;
	if (!p->account.owed)
		return;
	account_unowe(&p->account);
	loosen(p);
}

uint64_t pager_reservable(const struct pager *p)
{
	return account_reservable(&p->account);
}

uint64_t pager_memory_bytes(const struct pager *p)
{
	return account_share(&p->account, ACCOUNT_MEMORY);
}

uint64_t pager_place_bytes(const struct pager *p)
{
	return KV_MAX(account_share(&p->account, ACCOUNT_MEMORY),
		      account_share(&p->account, ACCOUNT_DISK));
}
