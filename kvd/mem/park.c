/*
 * park.c - room in the pinned pool, who gets it, who goes; see park.h
 *
 * Writing to disk is in park_flush.c.
 */
#include "kvd/mem/park.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"
#include "kvd/base/clock.h"
#include "kvd/mem/park_mem.h"
#include "kvd/mem/park_priv.h"

/* ---- units ----------------------------------------------------------------- */

char *park_run(const struct parked *h, uint32_t u, size_t *n_bytes)
{
	const struct park *k = h->park;

	*n_bytes = park_run_units(h, u) * k->conf.unit_bytes;
	return k->base + h->unit[u] * k->conf.unit_bytes;
}

uint32_t park_run_units(const struct parked *h, uint32_t u)
{
	uint32_t n = 1;

	while (u + n < h->n_units && h->unit[u + n] == h->unit[u] + n)
		n++;
	return n;
}

uint32_t park_crc(const struct parked *h)
{
	uint32_t crc = 0;
	size_t n;

	for (uint32_t u = 0; u < h->n_units; u += park_run_units(h, u)) {
		const char *p = park_run(h, u, &n);

		crc = kio_crc32c(crc, p, n);
	}
	return crc;
}

/* Before its units change. */
static void meter(const struct park *k, struct park_part *part)
{
	account_meter(&part->meter, part->n_units * k->conf.unit_bytes,
		      clock_ns());
}

/* Side by side if it can be. There are enough. */
static void take_units(struct park *k, struct parked *h)
{
	const int64_t first = extents_take(&k->free, h->n_units);

	for (uint32_t u = 0; u < h->n_units; u++) {
		const int64_t one = first >= 0 ? first + u
					       : extents_take(&k->free, 1);

		assert(one >= 0);
		h->unit[u] = (uint32_t)one;
	}
	k->n_free -= h->n_units;
	meter(k, h->part);
	h->part->n_units += h->n_units;
}

static void give_units(struct parked *h)
{
	struct park *k = h->park;

	for (uint32_t u = 0; u < h->n_units;) {
		const uint32_t n = park_run_units(h, u);

		if (extents_give(&k->free, h->unit[u], n))
			k->n_lost += n; /* no memory to note them */
		else
			k->n_free += n;
		u += n;
	}
}

/* ---- parked pages ---------------------------------------------------------- */

static struct parked *parked_new(struct park_part *part, struct park *k,
				 size_t page_bytes, enum park_for what)
{
	const uint32_t n = (uint32_t)(page_bytes / k->conf.unit_bytes);
	struct parked *h = calloc(1, sizeof(*h) + n * sizeof(h->unit[0]));

	if (!h)
		return NULL;
	if (what == PARK_WRITE && k->conf.has_disk) {
		h->ios = calloc(n, sizeof(*h->ios));
		if (!h->ios) {
			free(h);
			return NULL;
		}
	}
	list_init(&h->node);
	h->park = k;
	h->part = part;
	h->n_units = n;
	h->slot = -1;
	return h;
}

/* Into the list where it belongs. */
void park_list(struct parked *h)
{
	list_del(&h->node);
	if (!h->page || h->is_read || h->is_flushing)
		return;
	list_push(h->is_dirty ? &h->part->dirty : &h->part->clean, &h->node);
}

void park_set_dirty(struct parked *h, int is_dirty)
{
	if (h->is_dirty == is_dirty)
		return;
	h->is_dirty = is_dirty;
	if (is_dirty) {
		h->park->n_dirty += h->n_units;
		h->part->n_dirty += h->n_units;
	} else {
		h->park->n_dirty -= h->n_units;
		h->part->n_dirty -= h->n_units;
	}
}

static void end(struct parked *h)
{
	assert(!h->page && !h->is_flushing && !h->is_read);
	park_set_dirty(h, 0);
	h->park->n_coming -= (uint32_t)h->is_coming;
	list_del(&h->node);
	meter(h->park, h->part);
	h->part->n_units -= h->n_units;
	park_kick(h->park);
	free(h->ios);
	free(h);
}

void park_put(struct parked *h)
{
	give_units(h);
	end(h);
}

void park_lose(struct parked *h)
{
	h->park->n_lost += h->n_units;
	end(h);
}

void park_attach(struct page *pg, struct parked *h, enum park_state st)
{
	assert(!pg->parked && !h->page);
	pg->parked = h;
	h->page = pg;
	h->park->n_coming -= (uint32_t)h->is_coming;
	h->is_coming = 0;
	park_set_dirty(h, st == PARK_DIRTY);
	park_list(h);
	park_kick(h->park);
}

void park_read_begin(struct page *pg)
{
	pg->parked->is_read = 1;
	pg->parked->park->n_coming++;
	park_list(pg->parked);
}

void park_read_end(struct page *pg)
{
	struct parked *h = pg->parked;

	if (!h || !h->is_read)
		return;
	h->is_read = 0;
	h->park->n_coming--;
	park_list(h);
	park_kick(h->park);
}

int park_is_dirty(const struct page *pg)
{
	return pg->parked && pg->parked->is_dirty;
}

int park_is_unwritten(const struct page *pg)
{
	return park_is_dirty(pg) && !pg->parked->is_flushing;
}

int park_forget(struct page *pg)
{
	struct parked *h = pg->parked;

	if (!h)
		return 0;
	assert(!h->is_read);
	pg->parked = NULL;
	h->page = NULL;
	if (h->is_flushing)
		return 1; /* its end puts it, and the slot */
	park_put(h);
	return 0;
}

/* ---- who gives, who gets --------------------------------------------------- */

#define EACH_PART(part, k) \
	for (struct list *part##_n = (k)->parts.next; \
	     part##_n != &(k)->parts && \
	     ((part) = list_entry(part##_n, struct park_part, node), 1); \
	     part##_n = part##_n->next)

/* Does a have more for its weight than b? */
static int has_more(const struct park_part *a, const struct park_part *b)
{
	return (__uint128_t)a->n_units * b->weight >
	       (__uint128_t)b->n_units * a->weight;
}

/* Does it have more than its part, by weight, among those that have anything? */
static int is_over(struct park *k, const struct park_part *of)
{
	uint64_t weights = 0;
	struct park_part *part;

	EACH_PART(part, k)
	weights += part->n_units ? part->weight : 0;
	return (__uint128_t)of->n_units * weights >
	       (__uint128_t)k->n_units * of->weight;
}

/* The first of l that does not rest. */
static struct parked *first_of(struct list *l, uint64_t now)
{
	list_for_each(n, l) {
		struct parked *h = list_entry(n, struct parked, node);

		if (h->retry_ns <= now)
			return h;
	}
	return NULL;
}

struct parked *park_oldest(struct park *k, size_t list_off, enum park_of of,
			   uint64_t now)
{
	struct park_part *part, *most = NULL;
	struct parked *best = NULL;

	EACH_PART(part, k)
	{
		struct list *l = (struct list *)((char *)part + list_off);
		struct parked *h;

		if ((most && !has_more(part, most)) ||
		    (of == PARK_OF_OVER && !is_over(k, part)))
			continue;
		h = first_of(l, now);
		if (!h)
			continue;
		most = part;
		best = h;
	}
	return best;
}

static int drop_clean(struct park *k)
{
	struct parked *h = park_oldest(k, offsetof(struct park_part, clean),
				       PARK_OF_ALL, UINT64_MAX);

	if (!h)
		return 0;
	k->n.dropped++;
	(void)park_forget(h->page); /* it is not being written */
	return 1;
}

static uint64_t units_of(const struct park *k, const struct park_req *r)
{
	return r->n * (r->page_bytes / k->conf.unit_bytes);
}

static int has_room(struct park *k, const struct park_req *r)
{
	const uint64_t n = units_of(k, r);

	if (r->what == PARK_WRITE && k->conf.has_disk &&
	    k->n_dirty + n > k->n_dirty_most)
		return 0;
	while (k->n_free < n)
		if (!drop_clean(k))
			return 0;
	return 1;
}

/* There is room. */
static int grant(struct park *k, struct park_req *r)
{
	for (uint32_t i = 0; i < r->n; i++) {
		r->out[i] = parked_new(r->part, k, r->page_bytes, r->what);
		if (!r->out[i]) {
			while (i--)
				park_put(r->out[i]);
			return -ENOMEM;
		}
		take_units(k, r->out[i]);
		r->out[i]->is_coming = 1;
		k->n_coming++;
		/* what is to be written counts from now on */
		park_set_dirty(r->out[i], r->what == PARK_WRITE);
	}
	return 0;
}

static struct park_req *first_in_line(struct park_part *part,
				      enum park_for what)
{
	for (int i = 0; i < WANT_PRIOS; i++) {
		struct list *n = list_first(&part->waiting[what][i]);

		if (n)
			return list_entry(n, struct park_req, node);
	}
	return NULL;
}

static struct park_req *next_in_line(struct park *k, enum park_for what)
{
	struct park_req *best = NULL;
	struct park_part *part;

	EACH_PART(part, k)
	{
		struct park_req *r = first_in_line(part, what);

		if (r &&
		    (!best || r->prio < best->prio ||
		     (r->prio == best->prio && has_more(best->part, part))))
			best = r;
	}
	return best;
}

static void tell(struct park *k, struct park_req *r, int ret)
{
	list_del(&r->node);
	k->n_waiting[r->what]--;
	r->done(r, ret);
}

static void serve(struct park *k, enum park_for what)
{
	struct park_req *r;

	while ((r = next_in_line(k, what)) && has_room(k, r))
		tell(k, r, grant(k, r));
}

static void turn(struct loop_call *c)
{
	struct park *k = container_of(c, struct park, call);
	struct park_req *r;

	k->is_queued = 0;
	for (int i = 0; i < PARK_FORS; i++)
		serve(k, (enum park_for)i);
	park_flush_turn(k);
	/* nothing can be written, and nothing is on its way */
	while (k->is_stuck && (r = next_in_line(k, PARK_WRITE)))
		tell(k, r, -EIO);
}

void park_kick(struct park *k)
{
	if (k->is_queued)
		return;
	k->is_queued = 1;
	k->call.run = turn;
	loop_defer(k->conf.loop, &k->call);
}

int park_get(struct park *k, struct park_part *part, struct park_req *r)
{
	int ret;

	r->part = part;
	list_init(&r->node);
	if (!k->n_waiting[r->what] && has_room(k, r)) {
		ret = grant(k, r);
		park_kick(k); /* it may be time to write */
		return ret ? ret : 1;
	}
	k->n.waits++;
	k->n_waiting[r->what]++;
	list_push(&part->waiting[r->what][r->prio], &r->node);
	park_kick(k);
	return 0;
}

void park_hurry(struct park *k, struct park_req *r, enum want_prio prio)
{
	if (list_empty(&r->node) || r->prio <= prio)
		return;
	list_del(&r->node);
	r->prio = prio;
	list_push(&r->part->waiting[r->what][prio], &r->node);
	park_kick(k);
}

/* ---- start and end --------------------------------------------------------- */

static int open_memory(struct park *k)
{
	const size_t n = k->n_units * k->conf.unit_bytes;
	int ret = park_mem_map(n, k->conf.numa_node, &k->base);

	if (ret)
		return ret;
	ret = copier_pin(k->conf.copier, k->base, n);
	k->is_pinned = !ret;
	return ret;
}

int park_new(struct park **out, const struct park_conf *conf)
{
	const uint64_t n = conf->n_bytes / conf->unit_bytes;
	struct park *k;
	int ret;

	if (n < PARK_LEAST || n > UINT32_MAX || conf->unit_bytes % 4096)
		return -EINVAL;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->conf = *conf;
	k->n_units = k->n_free = n;
	k->n_dirty_most = conf->has_disk ? n - n / 8 : n;
	list_init(&k->parts);
	list_init(&k->call.node);
	list_init(&k->timer.node);
	ret = extents_init(&k->free, n);
	if (!ret)
		ret = open_memory(k);
	if (ret) {
		park_free(k);
		return ret;
	}
	*out = k;
	return 0;
}

void park_unpin(struct park *k)
{
	if (!k)
		return;
	assert(list_empty(&k->parts));
	loop_timer_cancel(k->conf.loop, &k->timer);
	list_del(&k->call.node);
	if (k->is_pinned)
		copier_unpin(k->conf.copier, k->base);
	k->is_pinned = 0;
}

void park_free(struct park *k)
{
	if (!k)
		return;
	if (k->base)
		park_mem_unmap(k->base, k->n_units * k->conf.unit_bytes);
	extents_fini(&k->free);
	free(k);
}

size_t park_most_bytes(const struct park *k)
{
	return k->n_units / 8 * k->conf.unit_bytes;
}

void park_open_part(struct park *k, struct park_part *part, struct pager *p,
		    uint32_t weight)
{
	memset(part, 0, sizeof(*part));
	part->pager = p;
	part->weight = weight ? weight : 1;
	part->meter.since_ns = clock_ns();
	list_init(&part->clean);
	list_init(&part->dirty);
	for (int w = 0; w < PARK_FORS; w++)
		for (int i = 0; i < WANT_PRIOS; i++)
			list_init(&part->waiting[w][i]);
	list_init(&part->node);
	list_push(&k->parts, &part->node);
}

void park_close_part(struct park *k, struct park_part *part)
{
	(void)k;
	assert(!part->n_units);
	list_del(&part->node);
}

/* ---- what there is --------------------------------------------------------- */

void park_info(const struct park *k, struct park_info *out)
{
	const size_t unit = k->conf.unit_bytes;

	*out = k->n;
	out->bytes = k->n_units * unit;
	out->used_bytes = (k->n_units - k->n_free - k->n_lost) * unit;
	out->dirty_bytes = k->n_dirty * unit;
	out->lost_bytes = k->n_lost * unit;
}

void park_part_bytes(const struct park *k, const struct park_part *part,
		     uint64_t *used, uint64_t *dirty)
{
	*used = part->n_units * k->conf.unit_bytes;
	*dirty = part->n_dirty * k->conf.unit_bytes;
}

uint64_t park_part_share(const struct park *k, const struct park_part *part)
{
	const struct park_part *o;
	uint64_t weights = 0;

	EACH_PART(o, k)
	weights += o->weight;
	return (uint64_t)((__uint128_t)k->n_units * part->weight / weights) *
	       k->conf.unit_bytes;
}

double park_part_byte_seconds(const struct park *k,
			      const struct park_part *part, uint64_t now_ns)
{
	return account_meter_read(&part->meter,
				  part->n_units * k->conf.unit_bytes, now_ns);
}

static void check_list(const struct list *l, const struct park_part *part,
		       int is_dirty)
{
	list_for_each(n, l) {
		const struct parked *h = list_entry(n, struct parked, node);

		assert(h->part == part && h->is_dirty == is_dirty && h->page &&
		       h->page->parked == h && !h->is_read && !h->is_flushing);
		assert(h->page->slot >= 0);
	}
}

void park_check(const struct park *k)
{
	uint64_t used = 0, dirty = 0, n_free = 0;
	struct park_part *part;

	EACH_PART(part, k)
	{
		check_list(&part->clean, part, 0);
		check_list(&part->dirty, part, 1);
		used += part->n_units;
		dirty += part->n_dirty;
	}
	for (uint32_t i = 0; i < k->free.n_list; i++)
		n_free += k->free.list[i].n;
	assert(n_free == k->n_free);
	assert(used + k->n_free + k->n_lost == k->n_units);
	assert(dirty == k->n_dirty);
	assert(!k->conf.has_disk || dirty <= k->n_dirty_most);
}
