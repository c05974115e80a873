/*
 * store.c - open, close, pages and records of a store; see store.h
 */
#include "io/store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "io/store_priv.h"
#include "io/sys.h"

#define SLAB_ENTRIES 1024u

/* A record nobody knows: its slots, to be given back when room is needed. */
struct orphan {
	struct orphan *next;
	struct entry *entry;
	uint32_t page_bytes;
	uint32_t n_pages;
	uint64_t blocks[];
};

struct slab {
	struct slab *next;
	struct entry entries[];
};

/* A reserve or punch of one zone. */
struct chore {
	struct kio_req req;
	struct kio_store *store;
	uint32_t zone;
	int busy;
};

struct kio_store {
	struct kio_engine *engine;
	int fd;
	int i_fixed;
	int direct;
	int scratch;
	int is_device;
	struct slots slots;
	struct journal journal;
	struct slab *slabs;
	struct entry *entries_found; /* array of open */
	struct entry *free_entries;
	struct orphan *orphans, **orphans_end;
	uint64_t n_records, n_orphans;
	uint64_t turn; /* deletions queued by us */
	uint64_t page_written;
	uint32_t n_ahead; /* zones below were reserved, or tried to be */
	struct chore reserve, punch;
	int no_reserve, no_punch;
	int closing;
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

/* ---- format and open ------------------------------------------------------------ */

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Power of two from bytes / N_ZONES_AIMED, within the limits. */
static uint64_t zone_size(uint64_t bytes)
{
	uint64_t z = ZONE_MIN;

	while (z < ZONE_MAX && z * N_ZONES_AIMED < bytes)
		z *= 2;
	return z;
}

/* Index areas of 1/256 each, zones behind. -EINVAL: not even one zone. */
static int layout(struct sb *sb, uint64_t bytes, int scratch)
{
	*sb = (struct sb){ .magic = SB_MAGIC,
			   .major = SB_MAJOR,
			   .minor = SB_MINOR,
			   .generation = 1,
			   .bytes = bytes,
			   .zone_bytes = zone_size(bytes),
			   .epoch = 1,
			   .block_bytes = KIO_BLOCK_BYTES };
	if (!scratch) {
		sb->index_bytes =
			KV_MAX(bytes / 256 / KIO_BLOCK_BYTES * KIO_BLOCK_BYTES,
			       INDEX_MIN);
		sb->data_off = KV_ALIGN_UP(INDEX_OFF + 2 * sb->index_bytes,
					   2ull << 20);
	}
	if (bytes > 1ull << 59 || sb->data_off + sb->zone_bytes > bytes)
		return -EINVAL;
	sb->n_zones = (bytes - sb->data_off) / sb->zone_bytes;
	if (getrandom(sb->uuid, sizeof(sb->uuid), 0) !=
	    (ssize_t)sizeof(sb->uuid))
		return -EIO;
	return 0;
}

static int sb_put(struct kio_store *s, struct sb *sb)
{
	struct sb *buf;
	int ret;

	if (posix_memalign((void **)&buf, KIO_BLOCK_BYTES, sizeof(*buf)))
		return -ENOMEM;
	sb_seal(sb);
	*buf = *sb;
	ret = kio_sys_pwrite(s->fd, buf, sizeof(*buf),
			     (off_t)(sb->generation % 2 * KIO_BLOCK_BYTES));
	free(buf);
	return ret ? ret : kio_sys_fdatasync(s->fd);
}

static int file_size(struct kio_store *s, uint64_t *bytes)
{
	struct stat st;
	int ret = kio_sys_fstat(s->fd, &st);

	if (ret)
		return ret;
	s->is_device = S_ISBLK(st.st_mode);
	if (!s->is_device && !S_ISREG(st.st_mode))
		return -EMEDIUMTYPE;
	*bytes = (uint64_t)st.st_size;
	if (s->is_device && ioctl(s->fd, BLKGETSIZE64, bytes))
		return -errno;
	return 0;
}

static int format(struct kio_store *s, const struct kio_store_conf *conf,
		  uint64_t have, struct sb *sb)
{
	const uint64_t bytes = conf->bytes ? conf->bytes : have;
	int ret = layout(sb, bytes, s->scratch);

	if (!ret && s->is_device && bytes > have)
		ret = -ENOSPC;
	if (!ret && !s->is_device)
		ret = kio_sys_ftruncate(s->fd, (off_t)bytes);
	if (ret || s->scratch)
		return ret;
	ret = sb_put(s, sb);
	sb->generation++; /* the other copy */
	return ret ? ret : sb_put(s, sb);
}

/* A larger size than before: more zones. A smaller one only limits their use. */
static int grow(struct kio_store *s, const struct kio_store_conf *conf,
		uint64_t have, struct sb *sb)
{
	const uint64_t bytes = conf->bytes    ? conf->bytes
			       : s->is_device ? have
					      : sb->bytes;
	int ret = 0;

	if (conf->flags & KIO_STORE_READONLY)
		return 0;
	if (!s->is_device && have < KV_MAX(bytes, sb->bytes))
		ret = kio_sys_ftruncate(s->fd, (off_t)KV_MAX(bytes, sb->bytes));
	else if (s->is_device && have < bytes)
		ret = -ENOSPC;
	if (ret || bytes < sb->bytes + sb->zone_bytes)
		return ret;
	sb->bytes = bytes;
	sb->n_zones = KV_MIN((bytes - sb->data_off) / sb->zone_bytes,
			     (uint64_t)NO_ZONE - 1);
	sb->generation++;
	return sb_put(s, sb);
}

static int open_flags(const struct kio_store_conf *conf)
{
	if (conf->flags & KIO_STORE_READONLY)
		return O_RDONLY;
	if (conf->flags & KIO_STORE_SCRATCH)
		return O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW;
	return O_RDWR | O_CREAT | O_NOFOLLOW;
}

static int lock_file(int fd)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (!fcntl(fd, F_OFD_SETLK, &l))
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

static int open_file(struct kio_store *s, const struct kio_store_conf *conf)
{
	int flags = open_flags(conf);

	s->direct = 1;
	s->fd = kio_sys_open(conf->path, flags | O_DIRECT, 0600);
	if (s->fd == -EINVAL) {
		s->direct = 0;
		s->fd = kio_sys_open(conf->path, flags, 0600);
	}
	if (s->fd < 0)
		return s->fd;
	if (conf->flags & KIO_STORE_SCRATCH)
		return kio_sys_unlink(conf->path);
	return conf->flags & KIO_STORE_READONLY ? 0 : lock_file(s->fd);
}

/* ---- records found ------------------------------------------------------------------ */

static int keep_orphan(struct kio_store *s, struct entry *e,
		       const struct kio_record *r)
{
	struct orphan *o =
		malloc(sizeof(*o) + r->n_pages * sizeof(o->blocks[0]));

	if (!o)
		return -ENOMEM;
	o->next = NULL;
	o->entry = e;
	o->page_bytes = r->page_bytes;
	o->n_pages = r->n_pages;
	for (uint32_t i = 0; i < r->n_pages; i++)
		o->blocks[i] = r->places[i].block;
	*s->orphans_end = o;
	s->orphans_end = &o->next;
	s->n_orphans++;
	return 0;
}

/* All slots or none. */
static int take_slots(struct kio_store *s, const struct kio_record *r)
{
	for (uint32_t i = 0; i < r->n_pages; i++) {
		const int ret = slots_take(&s->slots, r->places[i].block,
					   r->page_bytes);

		if (!ret)
			continue;
		while (i--)
			slots_release(&s->slots, r->places[i].block,
				      r->page_bytes);
		return ret;
	}
	return 0;
}

struct finder {
	struct kio_store *store;
	int (*found)(void *ctx, const struct kio_record *r);
	void *ctx;
	struct kio_store_report *rep;
	const struct index_image *image;
};

static int one_put(struct finder *f, struct entry *e)
{
	const struct rec_put *p = index_put(f->image, e);
	const struct kio_place *places = (const struct kio_place *)(p + 1);
	const struct kio_record r = {
		.key = p->key,
		.handle = (uint64_t)(uintptr_t)e,
		.page_bytes = p->page_bytes,
		.n_pages = p->n_pages,
		.places = places,
		.meta = places + p->n_pages,
		.meta_bytes = p->meta_bytes,
	};
	struct kio_store *s = f->store;
	int ret = take_slots(s, &r);

	if (ret == -EINVAL) {
		f->rep->n_refused++;
		return 0;
	}
	if (ret)
		return ret;
	f->rep->n_records++;
	f->rep->n_pages += r.n_pages;
	s->n_records++;
	ret = f->found ? f->found(f->ctx, &r) : KIO_RECORD_ORPHAN;
	if (ret == KIO_RECORD_DROP) {
		kio_store_del(s, r.handle);
		for (uint32_t i = 0; i < r.n_pages; i++)
			kio_store_release(s, places[i].block, r.page_bytes);
		return 0;
	}
	return ret == KIO_RECORD_KEEP ? 0 : keep_orphan(s, e, &r);
}

static int one_bad(struct finder *f, const struct entry *e)
{
	const struct rec_bad *b =
		(const struct rec_bad *)(f->image->base + e->off);
	const int ret = slots_take(&f->store->slots, b->block, b->page_bytes);

	if (!ret) {
		slots_set_bad(&f->store->slots, b->block, b->page_bytes);
		f->rep->n_bad_slots++;
	}
	return ret == -EINVAL ? 0 : ret;
}

static int find_all(struct finder *f)
{
	struct kio_store *s = f->store;
	int ret = 0;

	for (uint64_t i = 0; i < f->image->n_entries && !ret; i++) {
		struct entry *e = &s->entries_found[i];

		journal_adopt(&s->journal, e);
		ret = e->is_bad ? one_bad(f, e) : one_put(f, e);
	}
	return ret;
}

static int load(struct finder *f, struct sb *sb, int readonly)
{
	struct kio_store *s = f->store;
	struct index_image x;
	int ret = index_load(s->fd, sb, &x);

	if (ret)
		return ret;
	s->entries_found = x.entries; /* they live on in the journal */
	x.entries = NULL;
	f->image = &x;
	f->rep->n_frames = x.n_frames;
	f->rep->index_bytes = x.end;
	f->rep->torn_bytes = x.torn_bytes;
	f->rep->n_refused = x.n_malformed;
	f->rep->epoch = sb->epoch;
	ret = find_all(f);
	if (!ret && !readonly)
		ret = journal_start(&s->journal, s->fd, sb, &x);
	index_unload(&x);
	return ret;
}

static int open_store(struct kio_store *s, const struct kio_store_conf *conf,
		      struct finder *f)
{
	const int readonly = !!(conf->flags & KIO_STORE_READONLY);
	uint64_t have = 0;
	struct sb sb, both[2];
	int valid[2], ret;

	ret = open_file(s, conf);
	if (!ret)
		ret = file_size(s, &have);
	if (ret)
		return ret;
	ret = s->scratch || !have ? -ENODATA : sb_read(s->fd, &sb, both, valid);
	if (ret == -ENODATA && !readonly) {
		f->rep->formatted = 1;
		ret = format(s, conf, have, &sb);
	} else if (!ret) {
		ret = grow(s, conf, have, &sb);
	}
	if (!ret)
		ret = slots_init(&s->slots, &sb, conf->bytes);
	if (!ret && !s->scratch)
		ret = load(f, &sb, readonly);
	if (!ret && s->engine)
		s->i_fixed = kio_engine_add_file(s->engine, s->fd);
	return ret;
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
	ret = open_store(s, conf, &f);
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
	if (s->fd >= 0)
		(void)close(s->fd); /* what matters was flushed */
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
	if (s->journal.event_fd >= 0) {
		(void)kio_store_reap(s);
		(void)close(s->journal.event_fd); /* only a bell */
	}
	pthread_cond_destroy(&s->journal.more);
	pthread_mutex_destroy(&s->journal.m);
	s->closing = 1;
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
	if (r->ret == -EOPNOTSUPP || r->ret == -ENOSYS)
		s->no_punch = 1;
}

static void punch_behind(struct kio_store *s)
{
	uint32_t i;

	if (s->no_punch || s->punch.busy || s->closing)
		return;
	i = slots_punchable(&s->slots);
	if (i == NO_ZONE)
		return;
	s->slots.zones[i].punching = 1;
	s->slots.zones[i].backed = 0;
	s->slots.n_free_backed--;
	s->n_ahead = KV_MIN(s->n_ahead, i);
	chore_start(&s->punch, KIO_OP_PUNCH, i, punch_done);
}

/* ---- pages --------------------------------------------------------------------------- */

static void drop_orphan(struct kio_store *s)
{
	struct orphan *o = s->orphans;

	s->orphans = o->next;
	if (!o->next)
		s->orphans_end = &s->orphans;
	s->n_orphans--;
	kio_store_del(s, (uint64_t)(uintptr_t)o->entry);
	for (uint32_t i = 0; i < o->n_pages; i++)
		kio_store_release(s, o->blocks[i], o->page_bytes);
	free(o);
}

int64_t kio_store_alloc(struct kio_store *s, size_t page_bytes)
{
	int64_t block;

	if (page_bytes > UINT32_MAX)
		return -EINVAL;
	if (s->orphans && s->slots.n_free <= 2)
		drop_orphan(s); /* room for those who come after */
	block = slots_alloc(&s->slots, (uint32_t)page_bytes);
	if (block >= 0)
		reserve_ahead(s, (uint32_t)(((uint64_t)block * KIO_BLOCK_BYTES -
					     s->slots.data_off) /
					    s->slots.zone_bytes));
	return block;
}

void kio_store_release(struct kio_store *s, uint64_t block, size_t page_bytes)
{
	uint64_t durable = 0;

	if (!s->scratch && s->turn &&
	    journal_turns(&s->journal, &durable) > durable) {
		slots_defer(&s->slots, block, (uint32_t)page_bytes, s->turn);
		return;
	}
	slots_release(&s->slots, block, (uint32_t)page_bytes);
	punch_behind(s);
}

void kio_store_quarantine(struct kio_store *s, uint64_t block,
			  size_t page_bytes)
{
	struct bad_note *n = calloc(1, sizeof(*n));

	slots_set_bad(&s->slots, block, (uint32_t)page_bytes);
	if (s->scratch || !n) {
		free(n);
		return;
	}
	n->entry = entry_get(s);
	if (!n->entry) {
		free(n);
		return;
	}
	n->rec.block = block;
	n->rec.page_bytes = (uint32_t)page_bytes;
	journal_bad(&s->journal, n);
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

static int put_ok(const struct kio_store *s, const struct kio_commit *c)
{
	if (s->scratch)
		return -ENOTSUP;
	if (!c->n_pages || c->meta_bytes > FRAME_MAX / 4 ||
	    c->n_pages > FRAME_MAX / 4 / sizeof(*c->places))
		return -EMSGSIZE;
	return 0;
}

void kio_store_put(struct kio_store *s, struct kio_commit *c)
{
	struct entry *e = NULL;

	c->ret = put_ok(s, c);
	c->handle = 0;
	if (!c->ret) {
		e = entry_get(s);
		c->ret = e ? 0 : -ENOMEM;
	}
	c->handle = (uint64_t)(uintptr_t)e;
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

int kio_store_reap(struct kio_store *s)
{
	struct kio_commit *done;
	struct entry *e, *next;
	uint64_t durable;
	int n = 0;

	if (s->journal.event_fd < 0)
		return 0;
	journal_reap(&s->journal, &done, &e);
	(void)journal_turns(&s->journal, &durable);
	for (; e; e = next) {
		next = e->next;
		entry_put(s, e);
	}
	slots_ripen(&s->slots, durable);
	punch_behind(s);
	while (done) {
		struct kio_commit *c = done;

		done = c->next;
		if (c->ret && c->handle) {
			entry_put(s, (struct entry *)(uintptr_t)c->handle);
			c->handle = 0;
		}
		s->n_records += !c->ret;
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
		.n_records = s->n_records,
		.n_orphans = s->n_orphans,
		.page_written_bytes = s->page_written,
		.direct = s->direct,
	};
	out->used_bytes = KV_MIN(m->slot_bytes + m->bad_bytes, out->bytes);
	pthread_mutex_lock(&j->m);
	out->index_bytes = j->shown.pos;
	out->index_live_bytes = j->shown.live_bytes;
	out->index_room_bytes = j->sb.index_bytes;
	out->index_written_bytes = j->shown.written;
	out->n_puts = j->n_puts;
	out->n_groups = j->n_groups;
	out->n_compactions = j->shown.n_compactions;
	out->n_lost_records = j->shown.n_lost;
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
