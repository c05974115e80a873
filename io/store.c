/*
 * store.c - open, close, pages and records of a store; see store.h
 */
#include "io/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "io/store_priv.h"
#include "io/sys.h"

#define SLAB_ENTRIES 1024u
#define LOW_SLOTS    32u /* with fewer left of a size, orphans go */

struct slab {
	struct slab *next;
	struct entry entries[];
};

/* ---- entries ---------------------------------------------------------------- */

static struct entry *entry_get(struct kio_store *s)
{
	struct entry *e = s->free_entries;
	struct slab *slab;

	if (!e) {
		slab = calloc(1, sizeof(*slab) + SLAB_ENTRIES * sizeof(*e));
		if (!slab)
			return NULL;
		slab->next = s->slabs;
		s->slabs = slab;
		for (uint32_t i = 0; i < SLAB_ENTRIES; i++) {
			slab->entries[i].next = s->free_entries;
			s->free_entries = &slab->entries[i];
		}
		e = s->free_entries;
	}
	s->free_entries = e->next;
	memset(e, 0, sizeof(*e));
	return e;
}

static void entry_put(struct kio_store *s, struct entry *e)
{
	e->next = s->free_entries;
	s->free_entries = e;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int kio_store_open(struct kio_store **out, const struct kio_store_conf *conf,
		   int (*found)(void *ctx, const struct kio_record *r),
		   void *ctx, struct kio_store_report *report)
{
	struct kio_store_report rep = { 0 };
	const uint64_t begin = now_ns();
	struct kio_store *s = calloc(1, sizeof(*s));
	struct finder f = {
		.store = s, .found = found, .ctx = ctx, .rep = &rep
	};
	int ret;

	if (!s)
		return -ENOMEM;
	s->fd = -1;
	s->i_fixed = -1;
	s->engine = conf->engine;
	s->scratch = !!(conf->flags & KIO_STORE_SCRATCH);
	s->orphans_end = &s->orphans;
	s->reserve.store = s->punch.store = s;
	journal_init(&s->journal);
	ret = store_open(&f, conf);
	rep.open_ns = now_ns() - begin;
	if (report)
		*report = rep;
	if (ret) {
		kio_store_close(s);
		return ret;
	}
	*out = s;
	return 0;
}

/* ---- close --------------------------------------------------------------------------- */

static void last_close(struct kio_store *s)
{
	struct slab *slab;
	struct orphan *o;

	if (s->reserve.busy || s->punch.busy)
		return;
	if (s->engine)
		kio_engine_del_file(s->engine, s->i_fixed);
	if (s->fd >= 0) {
		kio_sys_unlock(s->fd);
		(void)close(s->fd); /* what matters was flushed */
	}
	while ((slab = s->slabs)) {
		s->slabs = slab->next;
		free(slab);
	}
	while ((o = s->orphans)) {
		s->orphans = o->next;
		free(o);
	}
	free(s->entries_found);
	slots_fini(&s->slots);
	free(s);
}

void kio_store_close(struct kio_store *s)
{
	if (!s)
		return;
	journal_stop(&s->journal);
	s->closing = 1;
	(void)kio_store_reap(s);
	if (s->journal.event_fd >= 0)
		(void)close(s->journal.event_fd); /* only a bell */
	pthread_cond_destroy(&s->journal.more);
	pthread_mutex_destroy(&s->journal.m);
	last_close(s);
}

/* ---- zones: reserve ahead, punch behind ---------------------------------------------- */

static void chore_start(struct chore *c, int op, uint32_t zone,
			void (*done)(struct kio_req *r))
{
	struct kio_store *s = c->store;

	c->busy = 1;
	c->zone = zone;
	c->req = (struct kio_req){
		.op = op,
		.fd = s->fd,
		.i_fixed = s->i_fixed,
		.off = (off_t)zone_off(&s->slots, zone),
		.n_bytes = s->slots.zone_bytes,
		.done = done,
	};
	kio_engine_queue(s->engine, &c->req);
}

static void reserve_done(struct kio_req *r)
{
	struct chore *c = container_of(r, struct chore, req);
	struct kio_store *s = c->store;
	struct zone *z = &s->slots.zones[c->zone];

	c->busy = 0;
	if (s->closing) {
		last_close(s);
		return;
	}
	if (r->ret) /* full or not supported: the writes will find out */
		s->no_reserve = 1;
	else if (!z->backed) {
		z->backed = 1;
		s->slots.n_free_backed += !z->page_bytes &&
					  c->zone < s->slots.n_usable;
	}
}

/* A slot of this zone was given out: see that there is room behind it. */
static void reserve_ahead(struct kio_store *s, uint32_t zone)
{
	s->slots.zones[zone].backed = 1;
	if (zone + 1 < s->n_ahead || s->no_reserve || s->reserve.busy)
		return;
	while (s->n_ahead <= zone + 1 && s->n_ahead < s->slots.n_usable) {
		const uint32_t i = s->n_ahead++;

		if (s->slots.zones[i].backed && i != zone)
			continue;
		chore_start(&s->reserve, KIO_OP_RESERVE, i, reserve_done);
		return;
	}
}

/* It never will, as opposed to: it failed. */
static int cannot(int ret)
{
	return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY ||
	       ret == -EINVAL || ret == -EPERM;
}

static void punch_done(struct kio_req *r)
{
	struct chore *c = container_of(r, struct chore, req);
	struct kio_store *s = c->store;

	c->busy = 0;
	if (s->closing) {
		last_close(s);
		return;
	}
	s->slots.zones[c->zone].punching = 0;
	if (!cannot(r->ret) || s->gives_back == KIO_BACK_NO)
		return;
	s->gives_back = KIO_BACK_NO;
	if (s->kept)
		s->kept(s->kept_ctx);
}

void kio_store_on_kept(struct kio_store *s, void (*kept)(void *ctx), void *ctx)
{
	s->kept = kept;
	s->kept_ctx = ctx;
}

/* What a discard does not do for a zone, zeros that take no room may. */
static void discard_done(struct kio_req *r)
{
	struct chore *c = container_of(r, struct chore, req);
	struct kio_store *s = c->store;

	if (cannot(r->ret))
		s->gives_back = KIO_BACK_HOLES;
	if (r->ret && !s->closing)
		chore_start(c, KIO_OP_PUNCH, c->zone, punch_done);
	else
		punch_done(r);
}

static void punch_behind(struct kio_store *s)
{
	const int discards = s->gives_back == KIO_BACK_DISCARD;
	uint32_t i;

	if (s->gives_back == KIO_BACK_NO || s->punch.busy || s->closing)
		return;
	i = slots_punchable(&s->slots);
	if (i == NO_ZONE)
		return;
	s->slots.zones[i].punching = 1;
	s->slots.zones[i].backed = 0;
	s->slots.n_free_backed--;
	s->n_ahead = KV_MIN(s->n_ahead, i);
	chore_start(&s->punch, discards ? KIO_OP_DISCARD : KIO_OP_PUNCH, i,
		    discards ? discard_done : punch_done);
}

/* ---- pages --------------------------------------------------------------------------- */

static void drop_orphan(struct kio_store *s)
{
	struct orphan *o = s->orphans;

	s->orphans = o->next;
	if (!o->next)
		s->orphans_end = &s->orphans;
	s->n_orphans--;
	s->orphan_bytes -= (uint64_t)o->n_pages * o->page_bytes;
	kio_store_del(s, (uint64_t)(uintptr_t)o->entry);
	for (uint32_t i = 0; i < o->n_pages; i++)
		kio_store_release(s, o->blocks[i], o->page_bytes);
	free(o);
}

static int64_t alloc(struct kio_store *s, size_t page_bytes,
		     enum slot_kind kind)
{
	struct slots *m = &s->slots;
	int64_t block;

	if (page_bytes > UINT32_MAX)
		return -EINVAL;
	if (s->orphans &&
	    slots_left(&s->slots, (uint32_t)page_bytes) < LOW_SLOTS)
		drop_orphan(s); /* room for those who come after */
	block = slots_alloc(m, (uint32_t)page_bytes, kind);
	if (block == -ENOSPC && m->victim != NO_ZONE &&
	    m->zones[m->victim].page_bytes == page_bytes) {
		kio_store_clean_stop(s); /* its slots are needed as they are */
		block = slots_alloc(m, (uint32_t)page_bytes, kind);
	}
	if (block == -ENOSPC || (block >= 0 && m->n_free <= slots_low(m)))
		clean_look(s, (uint32_t)page_bytes, block < 0);
	if (block >= 0)
		reserve_ahead(s, (uint32_t)(((uint64_t)block * KIO_BLOCK_BYTES -
					     s->slots.data_off) /
					    s->slots.zone_bytes));
	return block;
}

int64_t kio_store_alloc(struct kio_store *s, size_t page_bytes)
{
	return alloc(s, page_bytes, SLOT_PASSING);
}

int64_t kio_store_alloc_kept(struct kio_store *s, size_t page_bytes)
{
	return alloc(s, page_bytes, SLOT_KEPT);
}

/*
 * A slot that a record names, or may name, waits until the deletions queued so far
 * are durable. After a failure that is never: what the medium holds is not known.
 */
void kio_store_release(struct kio_store *s, uint64_t block, size_t page_bytes)
{
	const uint32_t n = (uint32_t)page_bytes;
	int failed;

	if (slots_named(&s->slots, block, n)) {
		const uint64_t durable = journal_durable(&s->journal, &failed);

		if (failed || durable < s->turn) {
			slots_defer(&s->slots, block, n,
				    failed ? UINT64_MAX : s->turn);
			return;
		}
	}
	slots_release(&s->slots, block, n);
	punch_behind(s);
}

void kio_store_keep(struct kio_store *s, uint64_t block, size_t page_bytes)
{
	const uint32_t n = (uint32_t)page_bytes;
	uint64_t durable;
	int failed;

	if (!slots_named(&s->slots, block, n))
		return; /* a later record may name it */
	durable = journal_durable(&s->journal, &failed);
	if (!failed && durable >= s->turn)
		slots_unname(&s->slots, block, n);
	else
		slots_keep(&s->slots, block, n, failed ? UINT64_MAX : s->turn);
}

int kio_store_waits(struct kio_store *s, uint64_t block, size_t page_bytes)
{
	int failed;

	if (!slots_named(&s->slots, block, (uint32_t)page_bytes))
		return 0;
	(void)journal_durable(&s->journal, &failed);
	return !failed;
}

void kio_store_quarantine(struct kio_store *s, uint64_t block,
			  size_t page_bytes)
{
	struct bad_note *n;

	if (slots_set_bad(&s->slots, block, (uint32_t)page_bytes) || s->scratch)
		return;
	n = calloc(1, sizeof(*n));
	if (!n)
		return;
	n->entry = entry_get(s);
	if (!n->entry) {
		free(n);
		return;
	}
	n->rec.block = block;
	n->rec.page_bytes = (uint32_t)page_bytes;
	journal_bad(&s->journal, n);
}

void kio_store_set_aside(struct kio_store *s, uint64_t block, size_t page_bytes)
{
	(void)slots_set_bad(&s->slots, block, (uint32_t)page_bytes);
}

static void page_io(struct kio_store *s, struct kio_req *r, int op)
{
	r->op = op;
	r->fd = s->fd;
	r->i_fixed = s->i_fixed;
	r->off = (off_t)(r->block * KIO_BLOCK_BYTES);
	kio_engine_queue(s->engine, r);
}

void kio_store_read(struct kio_store *s, struct kio_req *r)
{
	page_io(s, r, KIO_OP_READ);
}

void kio_store_write(struct kio_store *s, struct kio_req *r)
{
	s->page_written += r->n_bytes;
	page_io(s, r, KIO_OP_WRITE);
}

/* ---- records -------------------------------------------------------------------------- */

static void unname(struct kio_store *s, const struct kio_commit *c, uint32_t n)
{
	while (n--)
		slots_unname(&s->slots, c->places[n].block, c->page_bytes);
}

static int name_slots(struct kio_store *s, const struct kio_commit *c)
{
	for (uint32_t i = 0; i < c->n_pages; i++) {
		const int ret = slots_name(&s->slots, c->places[i].block,
					   c->page_bytes);

		if (ret) {
			unname(s, c, i);
			return ret;
		}
	}
	return 0;
}

static int put_ok(struct kio_store *s, const struct kio_commit *c)
{
	int failed;

	(void)journal_durable(&s->journal, &failed);
	if (failed)
		return -EIO;
	if (s->scratch || s->no_puts)
		return -ENOTSUP;
	if (!c->n_pages || c->meta_bytes > FRAME_MAX ||
	    put_bytes(c->n_pages, c->meta_bytes) > s->put_max_bytes)
		return -EMSGSIZE;
	return name_slots(s, c);
}

static uint64_t index_bytes_of(const struct kio_commit *c)
{
	return put_bytes(c->n_pages, c->meta_bytes);
}

/*
 * As long as there are orphans the index is not full: as much of them goes as c needs.
 * The deletions are in its batch, or in one before.
 */
static void make_index_room(struct kio_store *s, const struct kio_commit *c)
{
	const uint64_t n = index_bytes_of(c);
	uint64_t freed = 0;

	if (!s->orphans || journal_live(&s->journal) + s->putting_bytes + n <=
				   s->live_max_bytes)
		return;
	while (s->orphans && freed < n) {
		freed += s->orphans->entry->n_bytes;
		drop_orphan(s);
	}
}

void kio_store_put(struct kio_store *s, struct kio_commit *c)
{
	struct entry *e = NULL;

	c->ret = put_ok(s, c);
	c->handle = 0;
	if (!c->ret) {
		make_index_room(s, c);
		e = entry_get(s);
		c->ret = e ? 0 : -ENOMEM;
		if (!e)
			unname(s, c, c->n_pages);
		else
			s->putting_bytes += index_bytes_of(c);
	}
	c->handle = (uint64_t)(uintptr_t)e;
	journal_put(&s->journal, c);
}

void kio_store_move(struct kio_store *s, struct kio_commit *c)
{
	c->ret = s->scratch || s->no_puts ? -ENOTSUP : name_slots(s, c);
	if (c->ret)
		c->handle = 0; /* nothing is named */
	journal_put(&s->journal, c);
}

void kio_store_del(struct kio_store *s, uint64_t handle)
{
	struct entry *e = (struct entry *)(uintptr_t)handle;

	assert(e && !s->scratch);
	s->n_records--;
	s->turn++;
	journal_del(&s->journal, e);
}

int kio_store_event_fd(const struct kio_store *s)
{
	return s->journal.event_fd;
}

/*
 * Moves that have ended: who names which slots. Before any slot ripens and is given out
 * to somebody else, who may name it. Those that were left keep their name until they
 * are released: one may wait for a deletion that was queued behind the move.
 */
static void end_moves(struct kio_store *s, const struct kio_commit *c)
{
	for (; c; c = c->next) {
		if (!c->was || !c->handle)
			continue;
		if (c->ret && c->ret != -EIO)
			unname(s, c, c->n_pages);
	}
}

void kio_store_on_lost(struct kio_store *s,
		       void (*lost)(void *ctx, uint64_t handle), void *ctx)
{
	s->lost = lost;
	s->lost_ctx = ctx;
}

/* Before any of their entries is used again; one that is deleted by now is nobody's. */
static void tell_lost(struct kio_store *s)
{
	uint64_t n, *all = journal_take_lost(&s->journal, &n);

	for (uint64_t i = 0; i < n && s->lost; i++)
		s->lost(s->lost_ctx, all[i]);
	free(all);
}

int kio_store_reap(struct kio_store *s)
{
	struct kio_commit *done;
	struct entry *e, *next;
	uint64_t durable;
	int n = 0;

	tell_lost(s);
	journal_reap(&s->journal, &done, &e, &durable);
	for (; e; e = next) {
		next = e->next;
		entry_put(s, e);
	}
	end_moves(s, done);
	slots_ripen(&s->slots, durable);
	punch_behind(s);
	while (done) {
		struct kio_commit *c = done;

		done = c->next;
		if (c->handle && !c->was)
			s->putting_bytes -= index_bytes_of(c);
		if (c->ret && c->handle && !c->was) {
			entry_put(s, (struct entry *)(uintptr_t)c->handle);
			c->handle = 0;
			if (c->ret != -EIO) /* else it may be on the medium */
				unname(s, c, c->n_pages);
		}
		s->n_records += !c->ret && !c->was;
		n++;
		c->done(c);
	}
	return n;
}

void kio_store_info(struct kio_store *s, struct kio_store_info *out)
{
	struct slots *m = &s->slots;
	struct journal *j = &s->journal;

	*out = (struct kio_store_info){
		.bytes = m->n_usable * m->zone_bytes,
		.slot_bytes = m->slot_bytes,
		.free_zone_bytes = m->n_free * m->zone_bytes,
		.pending_bytes = m->pending_bytes,
		.bad_bytes = m->bad_bytes,
		.durable_bytes = m->named_bytes,
		.n_records = s->n_records,
		.n_orphans = s->n_orphans,
		.orphan_bytes = s->orphan_bytes,
		.page_written_bytes = s->page_written,
		.direct = s->direct,
		.gives_back = s->gives_back,
		.moved_bytes = m->moved_bytes,
		.n_zones_cleaned = m->n_cleaned,
		.cleaning_bytes = clean_left(m),
	};
	out->used_bytes = KV_MIN(m->slot_bytes + m->bad_bytes, out->bytes);
	pthread_mutex_lock(&j->m);
	out->index_bytes = j->shown.pos;
	out->index_live_bytes = j->shown.live_bytes;
	out->index_room_bytes = j->shown.room;
	out->index_written_bytes = j->shown.written;
	out->n_puts = j->n_puts;
	out->n_groups = j->n_groups;
	out->n_compactions = j->shown.n_compactions;
	out->n_not_compacted = j->shown.n_not_compacted;
	out->n_lost_records = j->shown.n_lost;
	out->n_delayed = j->n_delayed;
	out->failed = j->failed;
	pthread_mutex_unlock(&j->m);
}

void kio_store_check(struct kio_store *s)
{
	slots_check(&s->slots);
}

int kio_store_fd(const struct kio_store *s)
{
	return s->fd;
}
