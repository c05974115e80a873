/*
 * stores.c - disks, their engines, their events on the loop; see stores.h
 */
#include "kvd/mem/stores_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include "kvd/base/clock.h"

#define SAMPLE_BYTES (4u << 20)
#define BURST_PART   8 /* of a second: what a limit may be ahead */
#define HELD_NS	     1000000u /* the least between two looks */
#define WINDOW_BYTES (16u << 20) /* in the engine at once: some ms of work */
#define NEXT \
	2u /* beyond its depth: there when one ends, before anybody is told */
#define QUANTUM	    (1u << 20) /* for a turn of weight 100 */
#define LEAST_EVERY 8u /* this often the least urgent goes first */
#define PRIOR_RATE  1e9 /* bytes a second, before anything was measured */
#define SILENT_RATE 1.0
#define MANY_DELAYS 10u /* of a tenth of a second each */
#define ASIDE_MOST  8u /* slots, without a write that ended well */
#define ASIDE_PART  64u

static void held_time(struct loop_timer *t);

/* ---- by weight ------------------------------------------------------------- */

void stores_flow_init(struct stores_flow *f, uint32_t weight, uint64_t limit)
{
	memset(f, 0, sizeof(*f));
	f->weight = weight ? weight : 1;
	f->limit = limit;
	list_init(&f->held_node);
	for (uint32_t i = 0; i < STORES_MAX; i++) {
		list_init(&f->lanes[i].node);
		f->lanes[i].flow = f;
	}
}

/* The request of the lane that goes next, by urgency; its prio. */
static uint32_t lane_next(const struct stores_lane *l)
{
	const int least = l->n_sent % LEAST_EVERY == LEAST_EVERY - 1;
	uint32_t best = STORES_PRIOS;

	for (uint32_t i = 0; i < STORES_PRIOS; i++)
		if (l->queue[i].first && (least || best == STORES_PRIOS))
			best = i;
	return best;
}

static void queue_push(struct stores_queue *q, struct kio_req *r)
{
	r->next = NULL;
	if (q->first)
		q->last->next = r;
	else
		q->first = r;
	q->last = r;
}

static struct kio_req *queue_pop(struct stores_queue *q)
{
	struct kio_req *r = q->first;

	if (r)
		q->first = r->next;
	return r;
}

static void send(struct disk *d, struct stores_lane *l, uint32_t prio)
{
	struct kio_req *r = queue_pop(&l->queue[prio]);

	l->credit -= r->n_bytes;
	l->n_sent++;
	if (lane_next(l) == STORES_PRIOS) {
		list_del(&l->node);
		l->credit = 0;
	}
	silent_sent(d);
	d->n_sent++;
	d->sent_bytes += r->n_bytes;
	r->aside = prio == STORES_PRIOS - 1;
	if (r->op == KIO_OP_READ)
		kio_store_read(d->store, r);
	else
		kio_store_write(d->store, r);
}

/* Keep the engine busy, no more. */
static void pump(struct stores *s, struct disk *d)
{
	struct list *n;

	while (!d->silent && d->sent_bytes < s->window_bytes &&
	       d->n_sent < s->conf.depth + NEXT &&
	       (n = list_first(&d->lanes))) {
		struct stores_lane *l = list_entry(n, struct stores_lane, node);
		const uint32_t prio = lane_next(l);

		if (l->queue[prio].first->n_bytes <= l->credit) {
			send(d, l, prio);
			continue;
		}
		l->credit += (uint64_t)QUANTUM / 100 * l->flow->weight;
		list_del(n); /* the next one's turn */
		list_push(&d->lanes, n);
	}
	kio_engine_submit(d->engine);
}

static void io_ready(struct loop_fd *f, uint32_t events)
{
	struct disk *d = container_of(f, struct disk, io_fd);

	(void)events;
	kio_engine_reap(d->engine);
	pump(d->stores, d);
}

/* Before the loop looks for events or sleeps: start what was queued. */
static int submit_all(struct loop_poller *p)
{
	struct stores *s = container_of(p, struct stores, poller);

	for (uint32_t i = 0; i < s->conf.n; i++)
		pump(s, &s->disks[i]);
	return 0;
}

static int start_engine(struct stores *s, struct disk *d)
{
	int ret = kio_engine_new(&d->engine, s->conf.kind, s->conf.depth);

	if (ret)
		return ret;
	d->io_fd.fd = kio_engine_event_fd(d->engine);
	d->io_fd.events = EPOLLIN;
	d->io_fd.ready = io_ready;
	ret = loop_watch(s->conf.loop, &d->io_fd);
	if (ret) {
		kio_engine_free(d->engine);
		d->engine = NULL;
	}
	return ret;
}

int stores_new(struct stores **out, const struct stores_conf *conf)
{
	struct stores *s;
	int ret = 0;

	if (!conf->n || conf->n > STORES_MAX)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->conf = *conf;
	s->window_bytes = WINDOW_BYTES;
	s->poller.poll = submit_all;
	s->poller.arm = submit_all;
	list_init(&s->poller.node);
	list_init(&s->held);
	list_init(&s->held_timer.node);
	s->held_timer.run = held_time;
	silent_init(s);
	for (uint32_t i = 0; i < conf->n && !ret; i++) {
		s->disks[i].stores = s;
		list_init(&s->disks[i].lanes);
		s->disks[i].path = strdup(conf->disks[i].path);
		ret = s->disks[i].path ? start_engine(s, &s->disks[i])
				       : -ENOMEM;
	}
	if (ret) {
		stores_free(s);
		return ret;
	}
	loop_add_poller(conf->loop, &s->poller);
	*out = s;
	return 0;
}

void stores_free(struct stores *s)
{
	if (!s)
		return;
	if (!list_empty(&s->poller.node))
		loop_del_poller(s->conf.loop, &s->poller);
	loop_timer_cancel(s->conf.loop, &s->held_timer);
	loop_timer_cancel(s->conf.loop, &s->ear_timer);
	for (uint32_t i = 0; i < s->conf.n; i++) {
		struct disk *d = &s->disks[i];

		if (d->commit_fd.ready)
			loop_unwatch(s->conf.loop, &d->commit_fd);
		if (d->store)
			kio_store_close(d->store);
		if (d->engine) {
			loop_unwatch(s->conf.loop, &d->io_fd);
			kio_engine_free(d->engine);
		}
		free(d->path);
	}
	for (uint32_t i = 0; i < s->n_missing; i++)
		free(s->missing[i].path);
	free(s);
}

void stores_set_window(struct stores *s, uint64_t bytes)
{
	s->window_bytes = bytes;
}

struct kio_store *stores_disk(struct stores *s, uint32_t i)
{
	assert(i < s->conf.n);
	return s->disks[i].store;
}

uint32_t stores_n(const struct stores *s)
{
	return s->conf.n;
}

const char *stores_path(const struct stores *s, uint32_t i)
{
	return s->disks[i].path;
}

uint32_t stores_n_busy(const struct stores *s, uint32_t i)
{
	return s->disks[i].n_busy;
}

int stores_scratch(const struct stores *s)
{
	return s->conf.scratch;
}

/* What a new range may use: orphans go when there is no other room. */
static uint64_t free_bytes(const struct kio_store_info *i)
{
	const uint64_t n = i->bytes - i->used_bytes;

	return i->failed ? n : KV_MIN(n + i->orphan_bytes, i->bytes);
}

int stores_is_bad(const struct stores *s, uint32_t i)
{
	struct kio_store_info info;

	kio_store_info(s->disks[i].store, &info);
	return info.failed || s->disks[i].n_aside >= ASIDE_MOST ||
	       s->disks[i].silent;
}

int stores_pick(struct stores *s, uint64_t bytes, uint32_t not_those)
{
	uint64_t best_free = 0;
	int best = -ENOSPC, best_bad = 1;

	for (uint32_t i = 0; i < s->conf.n; i++) {
		const int bad = stores_is_bad(s, i);
		struct kio_store_info info;
		uint64_t n_free;

		kio_store_info(s->disks[i].store, &info);
		n_free = free_bytes(&info);
		if (n_free < bytes || bad > best_bad || not_those >> i & 1)
			continue;
		n_free /= 1 + s->disks[i].n_busy;
		if (best < 0 || bad < best_bad || n_free > best_free) {
			best_free = n_free;
			best_bad = bad;
			best = (int)i;
		}
	}
	return best;
}

uint64_t stores_pending(const struct stores *s)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < s->conf.n; i++) {
		struct kio_store_info info;

		kio_store_info(s->disks[i].store, &info);
		if (info.failed || s->disks[i].silent)
			continue; /* nothing becomes durable any more */
		n += info.cleaning_bytes;
		if (!s->conf.scratch && info.n_delayed < MANY_DELAYS)
			n += info.pending_bytes;
	}
	return n;
}

/* What the flow may read now, in bytes. */
static double flow_tokens(const struct stores_flow *f)
{
	const double most = (double)f->limit / BURST_PART;
	const double n = f->tokens + (double)(clock_ns() - f->at_ns) *
					     (double)f->limit / 1e9;

	return KV_MIN(n, most);
}

static void begin(struct stores *s, uint32_t i, struct stores_flow *f,
		  uint32_t prio, struct kio_req *r)
{
	struct disk *d = &s->disks[i];
	struct stores_lane *l = &f->lanes[i];

	if (f->limit) {
		/* no more than a second behind, however much was written */
		f->tokens = KV_MAX(flow_tokens(f) - (double)r->n_bytes,
				   -(double)f->limit);
		f->at_ns = clock_ns();
	}

	if (!d->n_busy++) {
		d->busy_since = clock_ns();
		d->done_bytes = 0;
	}
	d->busy_bytes += r->n_bytes;
	queue_push(&l->queue[KV_MIN(prio, STORES_PRIOS - 1)], r);
	if (list_empty(&l->node))
		list_push(&d->lanes, &l->node);
}

/* When the first of those that wait may go on. */
static void held_arm(struct stores *s)
{
	const uint64_t now = clock_ns();
	uint64_t at = UINT64_MAX;

	list_for_each(n, &s->held) {
		const struct stores_flow *f =
			list_entry(n, struct stores_flow, held_node);
		const double behind = -flow_tokens(f) * 1e9 / (double)f->limit;

		at = KV_MIN(at, now + (uint64_t)KV_MAX(behind, 0.0));
		at = KV_MIN(at, f->turn_ns);
	}
	if (at != UINT64_MAX)
		loop_timer_set(s->conf.loop, &s->held_timer,
			       KV_MAX(at, now + HELD_NS));
}

/* The next goes after twice the time that r takes of the limit, at the latest. */
static void held_turn(struct stores_flow *f, const struct kio_req *r)
{
	f->turn_ns = clock_ns() +
		     (uint64_t)(2e9 * (double)r->n_bytes / (double)f->limit);
}

static void hold(struct stores *s, uint32_t i, struct stores_flow *f,
		 uint32_t prio, struct kio_req *r)
{
	queue_push(&f->lanes[i].held[prio], r);
	f->held_bytes += r->n_bytes;
	f->n_held_total++;
	if (!list_empty(&f->held_node))
		return;
	held_turn(f, r);
	list_push(&s->held, &f->held_node);
	held_arm(s);
}

/* The most urgent that waits, whichever disk it is on: 0 there is none. */
static int held_next(struct stores *s, struct stores_flow *f)
{
	for (uint32_t prio = 0; prio < STORES_PRIOS; prio++)
		for (uint32_t i = 0; i < s->conf.n; i++) {
			struct kio_req *r = queue_pop(&f->lanes[i].held[prio]);

			if (!r)
				continue;
			f->held_bytes -= r->n_bytes;
			held_turn(f, r);
			begin(s, i, f, prio, r);
			return 1;
		}
	return 0;
}

static void held_time(struct loop_timer *t)
{
	struct stores *s = container_of(t, struct stores, held_timer);

	list_for_each_safe(n, &s->held) {
		struct stores_flow *f =
			list_entry(n, struct stores_flow, held_node);

		while ((flow_tokens(f) >= 0 || f->turn_ns <= clock_ns()) &&
		       held_next(s, f))
			;
		if (!f->held_bytes)
			list_del(&f->held_node);
	}
	held_arm(s);
}

void stores_read(struct stores *s, uint32_t i, struct stores_flow *f,
		 uint32_t prio, struct kio_req *r)
{
	r->op = KIO_OP_READ;
	prio = KV_MIN(prio, STORES_PRIOS - 1);
	if (f->limit && prio < STORES_PRIOS - 1 &&
	    (!list_empty(&f->held_node) || flow_tokens(f) < 0))
		hold(s, i, f, prio, r);
	else
		begin(s, i, f, prio, r);
}

void stores_write(struct stores *s, uint32_t i, struct stores_flow *f,
		  uint32_t prio, struct kio_req *r)
{
	r->op = KIO_OP_WRITE;
	begin(s, i, f, prio, r);
}

/* The request of the queue that has the block, out of it; or NULL. */
static struct kio_req *queue_take(struct stores_queue *q, uint64_t block)
{
	struct kio_req **at = &q->first, *before = NULL, *r;

	for (; (r = *at); before = r, at = &r->next) {
		if (block - r->block >= r->n_bytes / KIO_BLOCK_BYTES)
			continue;
		*at = r->next;
		if (!r->next)
			q->last = before;
		return r;
	}
	return NULL;
}

int stores_hurry(struct stores *s, uint32_t i, struct stores_flow *f,
		 uint32_t prio, uint64_t block)
{
	struct stores_lane *l = &f->lanes[i];

	assert(i < s->conf.n);
	for (uint32_t k = prio + 1; k < STORES_PRIOS; k++) {
		struct stores_queue *to = &l->queue[prio];
		struct kio_req *r = queue_take(&l->queue[k], block);

		if (!r) {
			to = &l->held[prio];
			r = queue_take(&l->held[k], block);
		}
		if (!r)
			continue;
		queue_push(to, r);
		return 1;
	}
	return 0;
}

/* Those of the queue that are unwanted, in front of the others of out; their bytes. */
static uint64_t queue_sift(struct stores_queue *q, struct kio_req **out,
			   int (*unwanted)(const struct kio_req *r))
{
	struct stores_queue left = { NULL, NULL };
	uint64_t bytes = 0;
	struct kio_req *r;

	while ((r = queue_pop(q))) {
		if (!unwanted(r)) {
			queue_push(&left, r);
			continue;
		}
		bytes += r->n_bytes;
		r->next = *out;
		*out = r;
	}
	*q = left;
	return bytes;
}

void stores_withdraw(struct stores *s, uint32_t i, struct stores_flow *f,
		     int (*unwanted)(const struct kio_req *r))
{
	struct stores_lane *l = &f->lanes[i];
	struct disk *d = &s->disks[i];
	struct kio_req *out = NULL, *r;
	uint64_t bytes;

	for (uint32_t k = 0; k < STORES_PRIOS; k++) {
		bytes = queue_sift(&l->held[k], &out, unwanted);
		f->held_bytes -= bytes;
		d->busy_bytes += bytes; /* stores_end() takes it off */
	}
	if (!f->held_bytes)
		list_del(&f->held_node);
	for (r = out; r; r = r->next)
		d->n_busy++;
	for (uint32_t k = 0; k < STORES_PRIOS; k++)
		(void)queue_sift(&l->queue[k], &out, unwanted);
	if (lane_next(l) == STORES_PRIOS) {
		list_del(&l->node);
		l->credit = 0;
	}
	while ((r = out)) {
		out = r->next;
		r->ret = -ECANCELED;
		r->done(r);
	}
}

void stores_end(struct stores *s, uint32_t i, const struct kio_req *r)
{
	struct disk *d = &s->disks[i];
	uint64_t now;

	if (r->ret == -ECANCELED) { /* it was never sent */
		d->n_busy--;
		d->busy_bytes -= r->n_bytes;
		return;
	}
	assert(d->n_sent && d->sent_bytes >= r->n_bytes);
	silent_heard(d);
	if (d->n_busy == 1 && !d->done_bytes) /* the disk had nothing to do */
		d->busy_since += r->prepare_ns;
	d->n_sent--;
	d->sent_bytes -= r->n_bytes;
	d->n_busy--;
	d->busy_bytes -= r->n_bytes;
	d->done_bytes += r->n_bytes;
	if (r->op == KIO_OP_WRITE && !r->ret)
		d->n_aside = 0;
	if (d->n_busy && d->done_bytes < SAMPLE_BYTES)
		return;
	now = clock_ns();
	rate_add(&d->rate, (double)d->done_bytes, now - d->busy_since);
	d->busy_since = now;
	d->done_bytes = 0;
}

int stores_may_set_aside(struct stores *s, uint32_t i, uint64_t bytes)
{
	struct disk *d = &s->disks[i];
	struct kio_store_info info;

	kio_store_info(d->store, &info);
	if (d->n_aside >= ASIDE_MOST ||
	    (info.bad_bytes &&
	     info.bad_bytes + bytes > info.bytes / ASIDE_PART))
		return 0;
	d->n_aside++;
	return 1;
}

struct stores_speed stores_limit(const struct stores_flow *f)
{
	struct stores_speed v = { 0, 0 };
	double behind;

	if (!f->limit)
		return v;
	behind = (double)f->held_bytes - flow_tokens(f);
	v.bytes_per_s = (double)f->limit;
	v.queue_bytes = (uint64_t)KV_MAX(behind, 0.0);
	return v;
}

struct stores_speed stores_speed(const struct stores *s, uint32_t i,
				 const struct stores_flow *f)
{
	struct stores_speed v = { rate_per_s(&s->disks[i].rate, PRIOR_RATE),
				  s->disks[i].busy_bytes };
	const struct stores_speed most = stores_limit(f);

	if (s->disks[i].silent)
		v.bytes_per_s = SILENT_RATE;
	if (!f->limit || most.bytes_per_s >= v.bytes_per_s)
		return v;
	v.queue_bytes = (uint64_t)KV_MAX(
		(double)v.queue_bytes * most.bytes_per_s / v.bytes_per_s,
		(double)most.queue_bytes);
	v.bytes_per_s = most.bytes_per_s;
	return v;
}

uint64_t stores_read_ns(const struct stores *s, uint32_t i,
			const struct stores_flow *f, uint64_t bytes)
{
	const struct stores_speed v = stores_speed(s, i, f);

	return (uint64_t)((double)(bytes + v.queue_bytes) * 1e9 /
			  v.bytes_per_s);
}

void stores_turn(struct stores *s)
{
	for (uint32_t i = 0; i < s->conf.n; i++) {
		pump(s, &s->disks[i]);
		(void)kio_engine_reap(s->disks[i].engine);
		if (s->disks[i].store && !s->conf.scratch)
			(void)kio_store_reap(s->disks[i].store);
	}
}

const char *stores_engine_name(const struct stores *s)
{
	return kio_engine_name(s->disks[0].engine);
}
