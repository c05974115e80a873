/*
 * account.c - shares of memory and disk; see account.h
 */
#include "kvd/mem/account.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include "io/base.h"

#define EACH(a, as) \
	for (struct list *a##_n = (as)->all.next; \
	     a##_n != &(as)->all && \
	     ((a) = list_entry(a##_n, struct account, node), 1); \
	     a##_n = a##_n->next)

/* ---- shares --------------------------------------------------------------- */

/* limit, floor and share from the configuration. */
static uint64_t begin_shares(struct accounts *as, enum account_tier t)
{
	uint64_t rest = as->bytes[t];
	struct account *a;

	EACH(a, as)
	{
		struct account_side *s = &a->side[t];

		s->limit = KV_MIN(a->conf.limit[t], as->bytes[t]);
		s->floor = KV_MIN(a->conf.floor[t], KV_MIN(s->limit, rest));
		s->share = s->floor;
		rest -= s->floor;
	}
	return rest;
}

/* One pass of dealing out rest by weight; returns what limits cut off. */
static uint64_t deal(struct accounts *as, enum account_tier t, uint64_t rest)
{
	uint64_t weights = 0, left = rest;
	struct account *a;

	EACH(a, as)
	weights += a->side[t].share < a->side[t].limit ? a->conf.weight : 0;
	if (!weights)
		return 0;
	EACH(a, as)
	{
		struct account_side *s = &a->side[t];
		const uint64_t part = (uint64_t)((__uint128_t)rest *
						 a->conf.weight / weights);
		const uint64_t more = KV_MIN(part, s->limit - s->share);

		s->share += more;
		left -= more;
	}
	return left < rest ? left : 0;
}

/* What cannot go to disk can only be kept: see account.h. */
static void fix_shares(struct accounts *as)
{
	struct account *a;

	EACH(a, as)
	{
		struct account_side *m = &a->side[ACCOUNT_MEMORY];

		if (a->side[ACCOUNT_DISK].share < m->share)
			m->limit = m->floor = m->share;
	}
}

static void settle(struct accounts *as)
{
	for (int t = 0; t < ACCOUNT_TIERS; t++) {
		uint64_t rest = begin_shares(as, (enum account_tier)t);

		/* ends: each pass fills an account up or leaves a rest < n */
		for (int i = 0; rest && i < 128; i++)
			rest = deal(as, (enum account_tier)t, rest);
	}
	fix_shares(as);
}

void accounts_init(struct accounts *as, uint64_t memory_bytes,
		   uint64_t disk_bytes)
{
	memset(as, 0, sizeof(*as));
	as->bytes[ACCOUNT_MEMORY] = memory_bytes;
	as->bytes[ACCOUNT_DISK] = disk_bytes;
	list_init(&as->all);
	list_init(&as->room_call.node);
	list_init(&as->room_timer.node);
}

void account_open(struct accounts *as, struct account *a,
		  const struct account_conf *conf, uint64_t now_ns)
{
	memset(a, 0, sizeof(*a));
	a->accounts = as;
	a->conf = *conf;
	a->conf.weight = conf->weight ? conf->weight : 1;
	for (int t = 0; t < ACCOUNT_TIERS; t++)
		a->side[t].meter.since_ns = now_ns;
	list_init(&a->node);
	list_push(&as->all, &a->node);
	settle(as);
}

void account_close(struct account *a)
{
	if (!a->accounts)
		return;
	assert(!a->side[ACCOUNT_MEMORY].used && !a->reserved);
	account_unowe(a);
	/* slots of what outlives the daemon stay where they are */
	a->accounts->used[ACCOUNT_DISK] -= a->side[ACCOUNT_DISK].used;
	list_del(&a->node);
	settle(a->accounts);
	a->accounts = NULL;
}

/* ---- charging ---------------------------------------------------------------- */

uint64_t account_limit_room(const struct account *a, enum account_tier t)
{
	const struct account_side *s = &a->side[t];

	return s->limit > s->used ? s->limit - s->used : 0;
}

uint64_t account_room(const struct account *a, enum account_tier t)
{
	const struct accounts *as = a->accounts;
	const uint64_t gone = as->used[t] + (t ? 0 : as->missing);
	const uint64_t pool = as->bytes[t] > gone ? as->bytes[t] - gone : 0;

	return KV_MIN(pool, account_limit_room(a, t));
}

void account_meter(struct account_meter *m, uint64_t used, uint64_t now_ns)
{
	if (now_ns > m->since_ns) {
		m->byte_ns += (double)used * (double)(now_ns - m->since_ns);
		m->since_ns = now_ns;
	}
}

double account_meter_read(const struct account_meter *m, uint64_t used,
			  uint64_t now_ns)
{
	struct account_meter now = *m;

	account_meter(&now, used, now_ns);
	return now.byte_ns * 1e-9;
}

static void tick(struct account_side *s, uint64_t now_ns)
{
	account_meter(&s->meter, s->used, now_ns);
}

void account_charge(struct account *a, enum account_tier t, uint64_t bytes,
		    uint64_t now_ns)
{
	assert(bytes <= account_limit_room(a, t) &&
	       bytes <= a->accounts->bytes[t] - a->accounts->used[t]);
	tick(&a->side[t], now_ns);
	a->side[t].used += bytes;
	a->accounts->used[t] += bytes;
}

void account_uncharge(struct account *a, enum account_tier t, uint64_t bytes,
		      uint64_t now_ns)
{
	assert(bytes <= a->side[t].used);
	tick(&a->side[t], now_ns);
	a->side[t].used -= bytes;
	a->accounts->used[t] -= bytes;
}

void account_leave(struct account *a, uint64_t bytes)
{
	a->leaving += bytes;
	a->accounts->leaving += bytes;
}

void account_left(struct account *a, uint64_t bytes)
{
	assert(bytes <= a->leaving);
	a->leaving -= bytes;
	a->accounts->leaving -= bytes;
}

double account_byte_seconds(const struct account *a, enum account_tier t,
			    uint64_t now_ns)
{
	const struct account_side *s = &a->side[t];

	return account_meter_read(&s->meter, s->used, now_ns);
}

uint64_t account_share(const struct account *a, enum account_tier t)
{
	return a->side[t].share;
}

/* ---- reservations --------------------------------------------------------------- */

/* Memory that reservations and floors of the others hold. */
static uint64_t held_by_others(const struct account *a)
{
	const struct account *o;
	uint64_t sum = 0;

	EACH(o, a->accounts)
	if (o != a)
		sum += KV_MAX(o->reserved, o->side[ACCOUNT_MEMORY].floor);
	return sum;
}

uint64_t account_reservable(const struct account *a)
{
	const struct account_side *s = &a->side[ACCOUNT_MEMORY];
	const int others_owed = a->accounts->n_owed > (a->owed ? 1u : 0u);
	const uint64_t pool = a->accounts->bytes[ACCOUNT_MEMORY];
	const uint64_t held = held_by_others(a);
	uint64_t most = KV_MIN(s->limit, pool > held ? pool - held : 0);

	if (others_owed)
		most = KV_MIN(most, s->share);
	return most > a->reserved ? most - a->reserved : 0;
}

int account_reserve(struct account *a, uint64_t bytes)
{
	const uint64_t share = a->side[ACCOUNT_MEMORY].share;

	if (bytes <= account_reservable(a)) {
		a->reserved += bytes;
		if (bytes >= a->owed)
			account_unowe(a);
		return 0;
	}
	if (bytes > share)
		return -ENOSPC;
	if (a->reserved + bytes <= share) {
		a->accounts->n_owed += a->owed ? 0 : 1;
		a->owed = KV_MAX(a->owed, bytes);
	}
	return -EAGAIN;
}

void account_unreserve(struct account *a, uint64_t bytes)
{
	assert(bytes <= a->reserved);
	a->reserved -= bytes;
}

void account_unowe(struct account *a)
{
	if (!a->owed)
		return;
	a->owed = 0;
	a->accounts->n_owed--;
}

/* ---- who gives, who gets ------------------------------------------------------------- */

/* How far a is above its share, with what it wants. */
static int64_t over(const struct account *a, enum account_tier t)
{
	const struct account_side *s = &a->side[t];
	int64_t n = (int64_t)s->used - (int64_t)s->share;

	if (t == ACCOUNT_MEMORY)
		n += (int64_t)a->demand - (int64_t)a->leaving;
	return n;
}

void account_round(struct accounts *as)
{
	as->round++;
}

int account_may_give(const struct account *a, enum account_tier t)
{
	const uint64_t going = t == ACCOUNT_MEMORY ? a->leaving : 0;
	const struct account_side *s = &a->side[t];

	return s->used - going > s->floor;
}

struct account *account_victim(struct accounts *as, enum account_tier t)
{
	struct account *a, *best = NULL, *own = NULL;

	EACH(a, as)
	{
		if (a->passed == as->round || a->side[t].used == 0)
			continue;
		if (account_may_give(a, t)) {
			if (!best || over(a, t) > over(best, t))
				best = a;
		} else if (a->demand > a->leaving &&
			   (!own || over(a, t) > over(own, t))) {
			own = a;
		}
	}
	return best ? best : own;
}

struct account *account_neediest(struct accounts *as)
{
	struct account *a, *best = NULL;

	EACH(a, as)
	{
		if (!a->demand || a->passed == as->round)
			continue;
		if (!best ||
		    (int64_t)a->side[0].used - (int64_t)a->side[0].share <
			    (int64_t)best->side[0].used -
				    (int64_t)best->side[0].share)
			best = a;
	}
	return best;
}

void accounts_check(const struct accounts *as)
{
	for (int t = 0; t < ACCOUNT_TIERS; t++) {
		uint64_t used = 0, held = 0, leaving = 0;
		const struct account *a;

		EACH(a, as)
		{
			const struct account_side *s = &a->side[t];

			assert(s->used <= s->limit && s->floor <= s->share &&
			       s->share <= s->limit);
			used += s->used;
			held += KV_MAX(t ? 0 : a->reserved, s->floor);
			leaving += a->leaving;
			assert(t || a->leaving <= s->used);
		}
		assert(used == as->used[t] && used <= as->bytes[t]);
		assert(held <= as->bytes[t] && leaving == as->leaving);
	}
}
