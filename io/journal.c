/*
 * journal.c - the index on disk: group commit and compaction, on a thread
 *
 *   batch: all puts, deletions, bad slots that wait
 *     flush the data -> write one frame (or several) -> flush the index -> done
 *
 *  (1) Nobody is told before the second flush. A put whose frame was not flushed
 *      is as if it had not been asked for.
 *  (2) Entries of the live list are this thread's, in order of serial.
 *  (3) After a failed write or flush nothing is written any more: what the device
 *      kept is unknown. The log on disk then ends, at the latest, there.
 *  (4) Compaction writes to the other area; the superblock that names it is
 *      written, and flushed, when all of it is on the medium.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/store_priv.h"
#include "io/sys.h"

#define COMPACT_SLACK (4ull << 20) /* an index below is never worth it */
#define COPY_BYTES    (1u << 20) /* of a frame of a compaction */

struct batch {
	struct kio_commit *puts;
	struct entry *dels;
	struct bad_note *bads;
	uint64_t turn; /* deletions up to here are in it */
};

static uint64_t area_off(const struct journal *j)
{
	return INDEX_OFF + j->sb.active * j->sb.index_bytes;
}

/* ---- live entries --------------------------------------------------------- */

void journal_adopt(struct journal *j, struct entry *e)
{
	e->prev = j->live.prev;
	e->next = &j->live;
	j->live.prev->next = e;
	j->live.prev = e;
	j->live_bytes += e->n_bytes;
	j->n_live++;
}

/* Twice is fine: a deletion that has to be tried again. */
static void live_del(struct journal *j, struct entry *e)
{
	if (!e->prev)
		return;
	e->prev->next = e->next;
	e->next->prev = e->prev;
	e->prev = NULL;
	j->live_bytes -= e->n_bytes;
	j->n_live--;
}

/* ---- frames ------------------------------------------------------------------- */

static int room_for(struct journal *j, size_t n)
{
	char *buf;

	n = KV_ALIGN_UP(n, KIO_BLOCK_BYTES);
	if (n <= j->buf_room)
		return 0;
	if (posix_memalign((void **)&buf, KIO_BLOCK_BYTES, 2 * n))
		return -ENOMEM;
	if (j->buf)
		memcpy(buf, j->buf, j->buf_room);
	free(j->buf);
	j->buf = buf;
	j->buf_room = 2 * n;
	return 0;
}

static struct frame *frame_begin(struct journal *j)
{
	struct frame *f;

	if (room_for(j, sizeof(*f)))
		return NULL;
	f = (struct frame *)j->buf;
	*f = (struct frame){ .magic = FRAME_MAGIC, .epoch = j->sb.epoch };
	return f;
}

/* Room for one record of n bytes in the frame; NULL without memory. */
static void *frame_add(struct journal *j, size_t n)
{
	struct frame *f = (struct frame *)j->buf;
	const size_t at = sizeof(*f) + f->n_bytes;

	if (room_for(j, at + n))
		return NULL;
	f = (struct frame *)j->buf;
	f->n_bytes += (uint32_t)n;
	f->n_records++;
	memset(j->buf + at, 0, n);
	return j->buf + at;
}

static uint64_t frame_room(const struct journal *j)
{
	const struct frame *f = (const struct frame *)j->buf;

	return KV_ALIGN_UP(sizeof(*f) + f->n_bytes, KIO_BLOCK_BYTES);
}

/* Write the frame at the end of the log. -ENOSPC, -errno. */
static int frame_write(struct journal *j)
{
	struct frame *f = (struct frame *)j->buf;
	const size_t n = sizeof(*f) + f->n_bytes;
	const size_t all = KV_ALIGN_UP(n, KIO_BLOCK_BYTES);
	int ret;

	if (!f->n_records)
		return 0;
	if (j->pos + all > j->sb.index_bytes)
		return -ENOSPC;
	memset(j->buf + n, 0, all - n);
	f->seq = j->seq + 1;
	f->crc = 0;
	f->crc = kio_crc32c(0, f, n);
	ret = kio_sys_pwrite(j->fd, j->buf, all, (off_t)(area_off(j) + j->pos));
	if (ret)
		return ret;
	j->pos += all;
	j->seq++;
	j->index_written += all;
	return 0;
}

/* ---- compaction -------------------------------------------------------------------- */

/*
 * The record of e, read from the area that is being left. One that is not what was
 * written there is left out: it names pages, so it must not be guessed.
 */
static int copy_entry(struct journal *j, int from, struct entry *e,
		      uint64_t *new_off)
{
	const uint64_t area = INDEX_OFF + (uint64_t)from * j->sb.index_bytes;
	const uint64_t off = e->off / KIO_BLOCK_BYTES * KIO_BLOCK_BYTES;
	const size_t skip = e->off - off;
	const size_t n = KV_ALIGN_UP(skip + e->n_bytes, KIO_BLOCK_BYTES);
	struct frame *f = (struct frame *)j->buf;
	char *raw;
	void *to;
	int ret;

	if (posix_memalign((void **)&raw, KIO_BLOCK_BYTES, n))
		return -ENOMEM;
	*new_off = 0;
	ret = kio_sys_pread(j->fd, raw, n, (off_t)(area + off));
	if (!ret && kio_crc32c(0, raw + skip, e->n_bytes) == e->crc) {
		*new_off = j->pos + sizeof(*f) + f->n_bytes;
		to = frame_add(j, e->n_bytes);
		if (to)
			memcpy(to, raw + skip, e->n_bytes);
		else
			ret = -ENOMEM;
	}
	free(raw);
	return ret;
}

static int copy_live(struct journal *j, int from, uint64_t *offs)
{
	uint64_t i = 0;
	int ret = frame_begin(j) ? 0 : -ENOMEM;

	for (struct entry *e = j->live.next; e != &j->live && !ret;
	     e = e->next) {
		if (frame_room(j) >= COPY_BYTES) {
			ret = frame_write(j);
			if (!ret && !frame_begin(j))
				ret = -ENOMEM;
		}
		if (!ret)
			ret = copy_entry(j, from, e, &offs[i++]);
	}
	return ret ? ret : frame_write(j);
}

/* Both copies, one after the other: a damaged one never takes us back. */
static int sb_write(struct journal *j)
{
	struct sb *buf;
	int ret = 0;

	if (posix_memalign((void **)&buf, KIO_BLOCK_BYTES, sizeof(*buf)))
		return -EIO; /* as bad as a disk that does not write */
	for (int i = 0; i < 2 && !ret; i++) {
		j->sb.generation++;
		sb_seal(&j->sb);
		*buf = j->sb;
		ret = kio_sys_pwrite(
			j->fd, buf, sizeof(*buf),
			(off_t)(j->sb.generation % 2 * KIO_BLOCK_BYTES));
		if (!ret)
			ret = kio_sys_fdatasync(j->fd);
	}
	free(buf);
	return ret ? -EIO : 0;
}

/*
 * 0, or -ENOSPC, -ENOMEM: the old area goes on; else the journal has failed (it may
 * be that a superblock names the new area, so nothing may follow in the old one).
 */
static int compact(struct journal *j)
{
	const struct journal old = *j;
	uint64_t *offs = calloc(j->n_live + 1, sizeof(*offs));
	uint64_t i = 0;
	int ret;

	if (!offs)
		return -ENOMEM;
	j->sb.active = !j->sb.active;
	j->sb.epoch++;
	j->pos = j->seq = 0;
	ret = copy_live(j, (int)old.sb.active, offs);
	if (!ret)
		ret = kio_sys_fdatasync(j->fd);
	if (ret) {
		j->sb = old.sb;
		j->pos = old.pos;
		j->seq = old.seq;
		free(offs);
		return ret;
	}
	ret = sb_write(j);
	for (struct entry *e = j->live.next, *next; e != &j->live; e = next) {
		next = e->next;
		e->off = offs[i++];
		if (e->off)
			continue;
		live_del(j, e);
		j->n_lost++;
	}
	free(offs);
	j->n_compactions++;
	return ret;
}

static int mostly_dead(const struct journal *j)
{
	return j->pos > 2 * j->live_bytes + COMPACT_SLACK;
}

/* ---- a batch --------------------------------------------------------------------------- */

static size_t put_bytes(const struct kio_commit *c)
{
	return KV_ALIGN_UP(sizeof(struct rec_put) +
				   c->n_pages * sizeof(struct kio_place) +
				   c->meta_bytes,
			   8u);
}

static int add_put(struct journal *j, struct kio_commit *c)
{
	struct entry *e = (struct entry *)(uintptr_t)c->handle;
	const size_t n = put_bytes(c);
	const uint64_t off = j->pos + ((struct frame *)j->buf)->n_bytes +
			     sizeof(struct frame);
	struct rec_put *p = frame_add(j, n);

	if (!p)
		return -ENOMEM;
	e->serial = ++j->serial;
	e->off = off;
	e->n_bytes = (uint32_t)n;
	*p = (struct rec_put){
		.h = { REC_PUT, 0, (uint32_t)n, e->serial },
		.key = c->key,
		.page_bytes = c->page_bytes,
		.n_pages = c->n_pages,
		.meta_bytes = (uint32_t)c->meta_bytes,
	};
	memcpy(p + 1, c->places, c->n_pages * sizeof(*c->places));
	memcpy((char *)(p + 1) + c->n_pages * sizeof(*c->places), c->meta,
	       c->meta_bytes);
	e->crc = kio_crc32c(0, p, n);
	return 0;
}

static int add_dels(struct journal *j, const struct batch *b)
{
	for (struct entry *e = b->dels; e; e = e->q_next) {
		struct rec *r = frame_add(j, sizeof(*r));

		if (!r)
			return -ENOMEM;
		*r = (struct rec){ REC_DEL, 0, sizeof(*r), e->serial };
	}
	return 0;
}

static int add_bads(struct journal *j, const struct batch *b)
{
	for (struct bad_note *n = b->bads; n; n = n->next) {
		const uint64_t off = j->pos + sizeof(struct frame) +
				     ((struct frame *)j->buf)->n_bytes;
		struct rec_bad *r = frame_add(j, sizeof(*r));

		if (!r)
			return -ENOMEM;
		n->entry->serial = ++j->serial;
		n->entry->off = off;
		n->entry->n_bytes = sizeof(*r);
		n->entry->is_bad = 1;
		n->rec.h = (struct rec){ REC_BAD, 0, sizeof(*r), j->serial };
		*r = n->rec;
		n->entry->crc = kio_crc32c(0, r, sizeof(*r));
	}
	return 0;
}

/* All of the batch as one frame; puts that do not fit are left out, at the end. */
static int build(struct journal *j, struct batch *b, struct kio_commit **rest)
{
	struct kio_commit *c = b->puts, *last = NULL;
	int ret = frame_begin(j) ? 0 : -ENOMEM;

	*rest = NULL;
	if (!ret)
		ret = add_dels(j, b);
	if (!ret)
		ret = add_bads(j, b);
	for (; c && !ret; last = c, c = c->next) {
		if (last && ((struct frame *)j->buf)->n_bytes + put_bytes(c) >
				    FRAME_MAX / 2)
			break;
		ret = add_put(j, c);
	}
	if (ret)
		return ret;
	if (last)
		last->next = NULL;
	*rest = c;
	return 0;
}

/* Room in the active area for what build() made, compacting if that helps. */
static int make_room(struct journal *j, struct batch *b,
		     struct kio_commit **rest)
{
	int ret;

	for (struct entry *e = b->dels; e; e = e->q_next)
		live_del(j, e);
	ret = build(j, b, rest);
	if (ret ||
	    (!mostly_dead(j) && j->pos + frame_room(j) <= j->sb.index_bytes))
		return ret;
	if (j->live_bytes + j->live_bytes / 64 + frame_room(j) +
		    COPY_BYTES / 16 >
	    j->sb.index_bytes)
		return -ENOSPC; /* it would be in vain */
	for (struct kio_commit *c = b->puts; c && *rest; c = c->next)
		if (!c->next) {
			c->next = *rest; /* one list again */
			*rest = NULL;
		}
	ret = compact(j);
	if (ret)
		return ret;
	b->dels = NULL; /* gone with the old area, durably */
	return build(j, b, rest);
}

static void fail_puts(struct kio_commit *c, int err)
{
	for (; c; c = c->next)
		c->ret = err;
}

static int flush_batch(struct journal *j, struct batch *b,
		       struct kio_commit **rest)
{
	int ret = 0;

	if (b->puts)
		ret = kio_sys_fdatasync(j->fd); /* the pages */
	if (!ret)
		ret = make_room(j, b, rest);
	if (!ret)
		ret = frame_write(j);
	if (!ret)
		ret = kio_sys_fdatasync(j->fd);
	return ret;
}

static void settle_batch(struct journal *j, struct batch *b, int ret)
{
	/* in order of serial: bad slots stand before puts in a frame */
	for (struct bad_note *n = b->bads; n && !ret; n = n->next)
		journal_adopt(j, n->entry);
	for (struct kio_commit *c = b->puts; c; c = c->next) {
		c->ret = ret;
		if (!ret)
			journal_adopt(j, (struct entry *)(uintptr_t)c->handle);
	}
}

/*
 * The index is full of live records, or the disk is: puts fail; deletions are durable
 * once the live records were compacted without them. What finds no room waits.
 */
static int without_puts(struct journal *j, struct batch *b)
{
	struct batch few = { .bads = b->bads };
	struct kio_commit *none;
	int ret = b->dels ? compact(j) : 0;

	if (!ret && few.bads)
		ret = build(j, &few, &none);
	if (!ret && few.bads)
		ret = frame_write(j);
	if (!ret && few.bads)
		ret = kio_sys_fdatasync(j->fd);
	if (ret)
		b->bads = NULL; /* not noted: found again by the next read */
	return ret;
}

static void append_done(struct journal *j, struct kio_commit *c)
{
	*j->done_end = c;
	while (*j->done_end)
		j->done_end = &(*j->done_end)->next;
}

static void give_back(struct journal *j, struct entry *e, struct bad_note *n)
{
	while (e) {
		struct entry *next = e->q_next;

		e->next = j->free_entries;
		j->free_entries = e;
		e = next;
	}
	while (n) {
		struct bad_note *next = n->next;

		free(n);
		n = next;
	}
}

/* Everything of the batch, as far as it goes; sets ret of the puts. */
static int work(struct journal *j, struct batch *b, struct kio_commit **rest)
{
	int ret = flush_batch(j, b, rest);

	if (ret != -ENOSPC && ret != -ENOMEM) {
		settle_batch(j, b, ret ? -EIO : 0);
		return ret;
	}
	fail_puts(b->puts, ret);
	b->puts = NULL;
	ret = without_puts(j, b);
	settle_batch(j, b, ret);
	return ret;
}

/* In front of what was queued meanwhile. */
static void requeue(struct journal *j, struct kio_commit *rest)
{
	struct kio_commit **end = &rest->next;

	while (*end)
		end = &(*end)->next;
	*end = j->puts;
	if (!j->puts)
		j->puts_end = end;
	j->puts = rest;
}

static void show(struct journal *j)
{
	j->shown = (struct journal_shown){
		.pos = j->pos,
		.live_bytes = j->live_bytes,
		.written = j->index_written,
		.n_compactions = j->n_compactions,
		.n_lost = j->n_lost,
	};
}

static void run_batch(struct journal *j, struct batch *b)
{
	struct kio_commit *puts = b->puts, *rest = NULL;
	struct bad_note *const bads = b->bads;
	struct entry *dels, **end = &j->stuck;
	const uint64_t one = 1;
	int ret = -EIO;

	while (*end)
		end = &(*end)->q_next;
	*end = b->dels;
	dels = b->dels = j->stuck;
	j->stuck = NULL;
	if (!j->failed)
		ret = work(j, b, &rest);
	else
		fail_puts(puts, -EIO);
	if (ret) {
		j->stuck = dels;
		dels = NULL;
	}
	pthread_mutex_lock(&j->m);
	j->failed |= ret && ret != -ENOSPC && ret != -ENOMEM;
	j->n_groups++;
	append_done(j, puts);
	if (!ret)
		j->dels_durable = b->turn;
	give_back(j, dels, bads);
	if (rest)
		requeue(j, rest);
	show(j);
	pthread_mutex_unlock(&j->m);
	if (write(j->event_fd, &one, sizeof(one)) < 0)
		return; /* a full counter rings too */
}

/* ---- thread ---------------------------------------------------------------------------------- */

static void *journal_main(void *arg)
{
	struct journal *j = arg;
	struct batch b;

	pthread_mutex_lock(&j->m);
	for (;;) {
		while (!j->puts && !j->dels && !j->bads && !j->stop)
			pthread_cond_wait(&j->more, &j->m);
		if (!j->puts && !j->dels && !j->bads)
			break;
		b = (struct batch){ j->puts, j->dels, j->bads, j->dels_queued };
		j->puts = NULL;
		j->puts_end = &j->puts;
		j->dels = NULL;
		j->dels_end = &j->dels;
		j->bads = NULL;
		pthread_mutex_unlock(&j->m);
		run_batch(j, &b);
		pthread_mutex_lock(&j->m);
	}
	pthread_mutex_unlock(&j->m);
	return NULL;
}

void journal_init(struct journal *j)
{
	memset(j, 0, sizeof(*j));
	j->event_fd = -1;
	j->live.next = j->live.prev = &j->live;
	j->puts_end = &j->puts;
	j->dels_end = &j->dels;
	j->done_end = &j->done;
	pthread_mutex_init(&j->m, NULL);
	pthread_cond_init(&j->more, NULL);
}

int journal_start(struct journal *j, int fd, const struct sb *sb,
		  const struct index_image *x)
{
	int ret;

	j->fd = fd;
	j->sb = *sb;
	j->pos = x->end;
	j->seq = x->seq;
	j->serial = x->serial;
	ret = kio_sys_eventfd();
	if (ret < 0)
		return ret;
	j->event_fd = ret;
	show(j);
	ret = pthread_create(&j->thread, NULL, journal_main, j);
	j->started = !ret;
	return -ret;
}

int journal_reap(struct journal *j, struct kio_commit **done,
		 struct entry **entries)
{
	uint64_t bell;

	if (read(j->event_fd, &bell, sizeof(bell)) < 0)
		bell = 0; /* called without a bell, which is fine */
	pthread_mutex_lock(&j->m);
	*done = j->done;
	j->done = NULL;
	j->done_end = &j->done;
	*entries = j->free_entries;
	j->free_entries = NULL;
	pthread_mutex_unlock(&j->m);
	return 0;
}

void journal_stop(struct journal *j)
{
	if (j->started) {
		pthread_mutex_lock(&j->m);
		j->stop = 1;
		pthread_cond_signal(&j->more);
		pthread_mutex_unlock(&j->m);
		pthread_join(j->thread, NULL);
		j->started = 0;
	}
	free(j->buf);
	j->buf = NULL;
}

void journal_put(struct journal *j, struct kio_commit *c)
{
	const uint64_t one = 1;

	c->next = NULL;
	pthread_mutex_lock(&j->m);
	if (c->ret) {
		append_done(j, c);
		pthread_mutex_unlock(&j->m);
		if (write(j->event_fd, &one, sizeof(one)) < 0)
			return; /* a full counter rings too */
		return;
	}
	*j->puts_end = c;
	j->puts_end = &c->next;
	j->n_puts++;
	pthread_cond_signal(&j->more);
	pthread_mutex_unlock(&j->m);
}

void journal_del(struct journal *j, struct entry *e)
{
	e->q_next = NULL;
	pthread_mutex_lock(&j->m);
	*j->dels_end = e;
	j->dels_end = &e->q_next;
	j->dels_queued++;
	pthread_cond_signal(&j->more);
	pthread_mutex_unlock(&j->m);
}

uint64_t journal_turns(struct journal *j, uint64_t *durable)
{
	uint64_t queued;

	pthread_mutex_lock(&j->m);
	queued = j->dels_queued;
	*durable = j->dels_durable;
	pthread_mutex_unlock(&j->m);
	return queued;
}

void journal_bad(struct journal *j, struct bad_note *n)
{
	pthread_mutex_lock(&j->m);
	n->next = j->bads;
	j->bads = n;
	pthread_cond_signal(&j->more);
	pthread_mutex_unlock(&j->m);
}
