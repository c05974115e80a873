/*
 * journal.c - group commit: puts, deletions and bad slots, on a thread
 *
 *   batch: what waits, as much as one frame holds
 *     flush the data -> make room -> write one frame -> flush the index -> tell
 *
 *  (1) Nobody is told before the second flush. A put whose frame was not flushed
 *      is as if it had not been asked for.
 *  (2) Entries of the live list are this thread's, in order of serial; so their
 *      places in the area ascend too.
 *  (3) After a failed write or flush nothing is written any more: what the device
 *      kept is unknown. The log on disk then ends, at the latest, there.
 *  (4) Live records fill at most LIVE_MAX of an area, a frame LIMIT: so a compaction
 *      always makes room for a frame, and deletions never find the index full.
 *  (5) Deletions become durable in the order in which they were queued. What could not
 *      be written for lack of room or memory is tried again until it can.
 *  (6) A move writes, in one frame, that its record is deleted and what comes instead.
 *      The old one stays in the live list until that frame is on the medium, so a
 *      compaction in between copies it. Its entry is not free before the move ended.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/store_priv.h"
#include "io/sys.h"

#define COMPACT_SLACK (4ull << 20) /* an index below is never worth it */
#define COMPACT_AGAIN 16u /* of an area later, when it failed */
#define RETRY_NS      100000000 /* deletions that could not be written */

struct batch {
	struct kio_commit *puts, *more_puts;
	struct bad_note *bads, *more_bads;
	uint64_t n_dels; /* first ones of dels_now */
};

static uint64_t frame_limit(const struct journal *j)
{
	return index_frame_limit(&j->sb);
}

static uint64_t live_max(const struct journal *j)
{
	return index_live_max(&j->sb);
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

void journal_live_del(struct journal *j, struct entry *e)
{
	if (!e->prev)
		return;
	e->prev->next = e->next;
	e->next->prev = e->prev;
	e->prev = NULL;
	j->live_bytes -= e->n_bytes;
	j->n_live--;
}

/* ---- the frame of a batch ------------------------------------------------- */

static int add_dels(struct journal *j, const struct batch *b)
{
	const struct entry *e = j->dels_now;

	for (uint64_t i = 0; i < b->n_dels; i++, e = e->q_next) {
		struct rec *r;

		if (e->is_gone)
			continue;
		r = frame_add(j, sizeof(*r), NULL);
		if (!r)
			return -ENOMEM;
		*r = (struct rec){ REC_DEL, 0, sizeof(*r), e->serial };
	}
	return 0;
}

static void seal_entry(struct entry *e, const void *rec, size_t n)
{
	e->n_bytes = (uint32_t)n;
	e->crc = kio_crc32c(0, rec, n);
}

static int add_bads(struct journal *j, struct batch *b)
{
	struct bad_note **end = &b->bads;

	for (struct bad_note *n; (n = *end); end = &n->next) {
		struct rec_bad *r;

		if (frame_bytes(j) + sizeof(*r) > frame_limit(j))
			break;
		if (j->live_bytes > live_max(j) + frame_limit(j) / 2)
			continue; /* so many: not noted */
		r = frame_add(j, sizeof(*r), &n->entry->off);
		if (!r)
			return -ENOMEM;
		n->entry->serial = ++j->serial;
		n->entry->is_bad = 1;
		n->rec.h = (struct rec){ REC_BAD, 0, sizeof(*r), j->serial };
		*r = n->rec;
		seal_entry(n->entry, r, sizeof(*r));
	}
	b->more_bads = *end;
	*end = NULL;
	return 0;
}

static int add_put(struct journal *j, struct kio_commit *c)
{
	const size_t places = c->n_pages * sizeof(*c->places);
	const size_t n = put_bytes(c->n_pages, c->meta_bytes);
	struct entry *e = (struct entry *)(uintptr_t)c->handle;
	struct rec_put *p = frame_add(j, n, &e->off);

	if (!p)
		return -ENOMEM;
	e->serial = ++j->serial;
	*p = (struct rec_put){
		.h = { REC_PUT, 0, (uint32_t)n, e->serial },
		.key = c->key,
		.page_bytes = c->page_bytes,
		.n_pages = c->n_pages,
		.meta_bytes = (uint32_t)c->meta_bytes,
	};
	memcpy(p + 1, c->places, places);
	if (c->meta_bytes)
		memcpy((char *)(p + 1) + places, c->meta, c->meta_bytes);
	seal_entry(e, p, n);
	return 0;
}

/* The record with the new places; -EINVAL it does not say what the caller thinks. */
static int patch(struct rec_put *p, const struct kio_commit *c)
{
	struct kio_place *at = (struct kio_place *)(p + 1);

	if (p->page_bytes != c->page_bytes)
		return -EINVAL;
	for (uint32_t i = 0; i < c->n_pages; i++) {
		uint32_t k = 0;

		while (k < p->n_pages && at[k].block != c->was[i])
			k++;
		if (k == p->n_pages || at[k].crc != c->places[i].crc)
			return -EINVAL;
		at[k].block = c->places[i].block;
	}
	return 0;
}

/* The record of c->handle as it will be, for the frame; c->ret: why not. */
static int add_moved(struct journal *j, struct kio_commit *c, struct rec_put *p)
{
	struct entry *e = (struct entry *)(uintptr_t)c->handle;
	struct rec *del;
	void *to;

	c->ret = patch(p, c);
	if (c->ret)
		return 0;
	del = frame_add(j, sizeof(*del), NULL);
	if (!del)
		return -ENOMEM;
	*del = (struct rec){ REC_DEL, 0, sizeof(*del), e->serial };
	to = frame_add(j, e->n_bytes, &c->moved.off);
	if (!to)
		return -ENOMEM;
	c->moved.serial = p->h.serial = ++j->serial;
	c->moved.crc = kio_crc32c(0, p, e->n_bytes);
	memcpy(to, p, e->n_bytes);
	return 0;
}

static int add_move(struct journal *j, struct kio_commit *c)
{
	const struct entry *e = (struct entry *)(uintptr_t)c->handle;
	struct rec_put *p;
	char *buf;
	int ret;

	if (!e->prev) { /* deleted, or lost in a compaction */
		c->ret = -ENOENT;
		return 0;
	}
	c->ret = entry_read(j, e, &buf, &p);
	if (c->ret)
		return 0;
	ret = add_moved(j, c, p);
	free(buf);
	return ret;
}

/* What c adds to a frame. */
static uint64_t commit_bytes(const struct kio_commit *c)
{
	const struct entry *e = (struct entry *)(uintptr_t)c->handle;

	return c->was ? sizeof(struct rec) + e->n_bytes
		      : put_bytes(c->n_pages, c->meta_bytes);
}

/*
 * Those that find no room end with -ENOSPC, those beyond the frame are for later. A move
 * leaves as much live as there was.
 */
static int add_puts(struct journal *j, struct batch *b)
{
	struct kio_commit **end = &b->puts;
	uint64_t n_added = 0, sum = 0;
	int ret = 0;

	for (struct kio_commit *c; (c = *end) && !ret; end = &c->next) {
		const uint64_t n = commit_bytes(c);

		if (n_added && frame_bytes(j) + n > frame_limit(j))
			break;
		if (c->was) {
			ret = add_move(j, c);
			n_added += !c->ret;
			continue;
		}
		c->ret = j->live_bytes + sum + n > live_max(j) ? -ENOSPC : 0;
		if (c->ret)
			continue;
		ret = add_put(j, c);
		sum += n;
		n_added++;
	}
	if (ret)
		return ret;
	b->more_puts = *end;
	*end = NULL;
	return 0;
}

static int build(struct journal *j, struct batch *b)
{
	int ret = frame_begin(j);

	if (!ret)
		ret = add_dels(j, b);
	if (!ret)
		ret = add_bads(j, b);
	return ret ? ret : add_puts(j, b);
}

/* What build() set apart, one list again. */
static void unbuild(struct batch *b)
{
	struct kio_commit **c = &b->puts;
	struct bad_note **n = &b->bads;

	while (*c)
		c = &(*c)->next;
	*c = b->more_puts;
	while (*n)
		n = &(*n)->next;
	*n = b->more_bads;
	b->more_puts = NULL;
	b->more_bads = NULL;
}

static int wants_compaction(const struct journal *j)
{
	return j->pos >= j->compact_from &&
	       (j->must_compact || j->pos > 2 * j->live_bytes + COMPACT_SLACK);
}

/*
 * The log has none of the batch's deletions any more, whether a frame can be written now or
 * not: a record of one would name what is not there.
 */
static void left_out(struct journal *j, const struct batch *b)
{
	struct entry *e = j->dels_now;

	for (uint64_t i = 0; i < b->n_dels; i++, e = e->q_next)
		e->is_gone = 1;
}

/* A compaction leaves the deleted records out. One that fails leaves all as it was. */
static int compact(struct journal *j, const struct batch *b)
{
	const int ret = journal_compact(j);

	if (ret) {
		j->n_not_compacted++;
		j->compact_from = j->pos + j->sb.index_bytes / COMPACT_AGAIN;
		return ret;
	}
	j->must_compact = 0;
	j->compact_from = 0;
	left_out(j, b);
	return 0;
}

/* The frame of b, and room for it: where the log is, if need be. */
static int make_room(struct journal *j, struct batch *b)
{
	int ret = build(j, b), fits;

	if (ret)
		return ret;
	fits = j->pos + frame_room(j) <= j->sb.index_bytes;
	if (fits && !wants_compaction(j))
		return 0;
	unbuild(b);
	ret = compact(j, b);
	if (ret == -EIO || (ret && !fits))
		return ret;
	return build(j, b);
}

/* ---- a batch -------------------------------------------------------------- */

static void mark_dels(struct journal *j, struct batch *b)
{
	const uint64_t most = frame_limit(j) / 2 / sizeof(struct rec);

	for (struct entry *e = j->dels_now; e && b->n_dels < most;
	     e = e->q_next) {
		journal_live_del(j, e);
		b->n_dels++;
	}
}

static int work(struct journal *j, struct batch *b)
{
	int ret = 0;

	mark_dels(j, b);
	if (b->puts)
		ret = journal_flush(j); /* the pages */
	if (!ret)
		ret = make_room(j, b);
	if (!ret)
		ret = frame_write(j);
	if (!ret)
		ret = journal_flush(j);
	/* these two leave the log as it was */
	return ret && ret != -ENOSPC && ret != -ENOMEM ? -EIO : ret;
}

/* The entry is that of the record that came. */
static void adopt_moved(struct journal *j, const struct kio_commit *c)
{
	struct entry *e = (struct entry *)(uintptr_t)c->handle;

	journal_live_del(j, e);
	e->off = c->moved.off;
	e->serial = c->moved.serial;
	e->crc = c->moved.crc;
	journal_adopt(j, e);
}

/* In order of serial: bad slots stand before puts in a frame. */
static void adopt_batch(struct journal *j, struct batch *b)
{
	for (struct bad_note *n = b->bads; n; n = n->next)
		if (n->entry->n_bytes) {
			journal_adopt(j, n->entry);
			n->entry = NULL;
		}
	for (struct kio_commit *c = b->puts; c; c = c->next)
		if (!c->ret && c->was)
			adopt_moved(j, c);
		else if (!c->ret)
			journal_adopt(j, (struct entry *)(uintptr_t)c->handle);
}

static void fail_batch(struct batch *b, int err)
{
	unbuild(b);
	for (struct kio_commit *c = b->puts; c; c = c->next)
		c->ret = err;
}

/* ---- back to the loop; called with m held --------------------------------- */

static void append_done(struct journal *j, struct kio_commit *c)
{
	*j->done_end = c;
	while (*j->done_end)
		j->done_end = &(*j->done_end)->next;
}

static void free_entry(struct journal *j, struct entry *e)
{
	if (e->moving) {
		e->is_over = 1;
		return;
	}
	e->next = j->free_entries;
	j->free_entries = e;
}

/* Those of the batch that have ended, not those that it left for later. */
static void end_moves(struct journal *j, const struct kio_commit *c)
{
	for (; c; c = c->next) {
		struct entry *e = (struct entry *)(uintptr_t)c->handle;

		if (!c->was || !e)
			continue;
		e->moving = 0;
		if (e->is_over)
			free_entry(j, e);
	}
}

static void end_dels(struct journal *j, uint64_t n)
{
	j->dels_durable += n;
	while (n--) {
		struct entry *e = j->dels_now;

		j->dels_now = e->q_next;
		free_entry(j, e);
	}
	if (!j->dels_now)
		j->dels_now_end = &j->dels_now;
}

/* Noted or not (then the next read finds out again). */
static void end_bads(struct journal *j, struct bad_note *n)
{
	while (n) {
		struct bad_note *next = n->next;

		if (n->entry)
			free_entry(j, n->entry);
		free(n);
		n = next;
	}
}

/* In front of what was queued meanwhile. */
static void requeue(struct journal *j, struct batch *b)
{
	struct kio_commit **c = &b->more_puts;
	struct bad_note **n = &b->more_bads;

	while (*c)
		c = &(*c)->next;
	*c = j->puts;
	if (!j->puts)
		j->puts_end = c;
	j->puts = b->more_puts;
	if (!j->puts)
		j->puts_end = &j->puts;
	while (*n)
		n = &(*n)->next;
	*n = j->bads;
	j->bads = b->more_bads;
}

static void show(struct journal *j)
{
	j->shown = (struct journal_shown){
		.pos = j->pos,
		.live_bytes = j->live_bytes,
		.written = j->index_written,
		.n_compactions = j->n_compactions,
		.n_not_compacted = j->n_not_compacted,
		.n_lost = j->n_lost,
		.room = j->sb.index_bytes,
	};
}

static void ring_bell(const struct journal *j)
{
	const uint64_t one = 1;

	if (write(j->event_fd, &one, sizeof(one)) < 0)
		return; /* a full counter rings too */
}

static void run_batch(struct journal *j, struct batch *b)
{
	int ret = j->failed ? -EIO : work(j, b);

	if (ret)
		fail_batch(b, ret);
	else
		adopt_batch(j, b);
	pthread_mutex_lock(&j->m);
	j->failed |= ret == -EIO;
	j->n_groups++;
	if (!ret)
		end_dels(j, b->n_dels);
	j->again = !ret && j->dels_now;
	j->n_delayed = ret && j->dels_now && !j->failed ? j->n_delayed + 1 : 0;
	end_moves(j, b->puts);
	append_done(j, b->puts);
	end_bads(j, b->bads);
	requeue(j, b);
	show(j);
	pthread_mutex_unlock(&j->m);
	ring_bell(j);
}

/* ---- thread --------------------------------------------------------------- */

static int has_work(const struct journal *j)
{
	return j->puts || j->dels || j->bads || j->again;
}

static void take_batch(struct journal *j, struct batch *b)
{
	*b = (struct batch){ .puts = j->puts, .bads = j->bads };
	if (j->dels) {
		*j->dels_now_end = j->dels;
		j->dels_now_end = j->dels_end;
	}
	j->puts = NULL;
	j->puts_end = &j->puts;
	j->dels = NULL;
	j->dels_end = &j->dels;
	j->bads = NULL;
}

/* For more, or until it is time to try deletions again. */
static void wait_for_more(struct journal *j)
{
	struct timespec t;

	if (!j->n_delayed) {
		pthread_cond_wait(&j->more, &j->m);
		return;
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail */
	t.tv_nsec += RETRY_NS;
	t.tv_sec += t.tv_nsec / 1000000000;
	t.tv_nsec %= 1000000000;
	j->again = pthread_cond_timedwait(&j->more, &j->m, &t) == ETIMEDOUT;
}

static void *journal_main(void *arg)
{
	struct journal *j = arg;
	struct batch b;
	int is_last = 0;

	pthread_mutex_lock(&j->m);
	for (;;) {
		while (!has_work(j) && !j->stop)
			wait_for_more(j);
		if (!has_work(j) && (!j->n_delayed || is_last))
			break;
		is_last = j->stop &&
			  !has_work(j); /* once more, and that's it */
		take_batch(j, &b);
		pthread_mutex_unlock(&j->m);
		run_batch(j, &b);
		pthread_mutex_lock(&j->m);
	}
	pthread_mutex_unlock(&j->m);
	return NULL;
}

void journal_init(struct journal *j)
{
	pthread_condattr_t monotonic;

	memset(j, 0, sizeof(*j));
	j->event_fd = -1;
	j->live.next = j->live.prev = &j->live;
	j->puts_end = &j->puts;
	j->dels_end = &j->dels;
	j->dels_now_end = &j->dels_now;
	j->done_end = &j->done;
	pthread_mutex_init(&j->m, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&j->more, &monotonic);
	pthread_condattr_destroy(&monotonic);
}

int journal_start(struct journal *j, int fd, const struct sb *sb,
		  const struct index_image *x)
{
	int ret;

	j->fd = fd;
	j->sb = *sb;
	j->pos = x->end;
	j->seq = x->seq;
	j->prev_crc = x->prev_crc;
	j->serial = x->serial;
	j->must_compact = j->again = !!x->n_beyond;
	ret = kio_sys_eventfd();
	if (ret < 0)
		return ret;
	j->event_fd = ret;
	show(j);
	ret = kio_sys_thread(&j->thread, journal_main, j, "kvd-journal");
	j->started = !ret;
	return ret;
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
	end_bads(j, j->bads); /* of a store that was never started */
	j->bads = NULL;
	free(j->buf);
	j->buf = NULL;
	free(j->lost);
	j->lost = NULL;
}

/* ---- what the loop calls -------------------------------------------------- */

/* Without memory they are counted and not told. */
void journal_lost(struct journal *j, const uint64_t *handles, uint64_t n)
{
	uint64_t *all;

	pthread_mutex_lock(&j->m);
	all = realloc(j->lost, (j->n_lost_told + n) * sizeof(*all));
	if (all) {
		memcpy(all + j->n_lost_told, handles, n * sizeof(*all));
		j->lost = all;
		j->n_lost_told += n;
	}
	pthread_mutex_unlock(&j->m);
}

uint64_t *journal_take_lost(struct journal *j, uint64_t *n)
{
	uint64_t *all;

	pthread_mutex_lock(&j->m);
	all = j->lost;
	*n = j->n_lost_told;
	j->lost = NULL;
	j->n_lost_told = 0;
	pthread_mutex_unlock(&j->m);
	return all;
}

void journal_reap(struct journal *j, struct kio_commit **done,
		  struct entry **entries, uint64_t *dels_durable)
{
	uint64_t bell;

	/* without a bell, or without a thread (scratch): fine */
	if (read(j->event_fd, &bell, sizeof(bell)) < 0)
		bell = 0;
	pthread_mutex_lock(&j->m);
	*done = j->done;
	j->done = NULL;
	j->done_end = &j->done;
	*entries = j->free_entries;
	j->free_entries = NULL;
	*dels_durable = j->dels_durable;
	pthread_mutex_unlock(&j->m);
}

/* j->m is free: else the thread wakes to wait for it, and leaving it costs the loop a call. */
static void call_thread(struct journal *j)
{
	pthread_cond_signal(&j->more);
}

void journal_put(struct journal *j, struct kio_commit *c)
{
	const int refused = c->ret; /* else it may end any time */

	c->next = NULL;
	pthread_mutex_lock(&j->m);
	if (refused) {
		append_done(j, c);
	} else {
		if (c->was)
			((struct entry *)(uintptr_t)c->handle)->moving = 1;
		*j->puts_end = c;
		j->puts_end = &c->next;
		j->n_puts++;
	}
	pthread_mutex_unlock(&j->m);
	if (refused)
		ring_bell(j);
	else
		call_thread(j);
}

void journal_del(struct journal *j, struct entry *e)
{
	e->q_next = NULL;
	pthread_mutex_lock(&j->m);
	*j->dels_end = e;
	j->dels_end = &e->q_next;
	pthread_mutex_unlock(&j->m);
	call_thread(j);
}

uint64_t journal_durable(struct journal *j, int *failed)
{
	uint64_t n;

	pthread_mutex_lock(&j->m);
	n = j->dels_durable;
	*failed = j->failed;
	pthread_mutex_unlock(&j->m);
	return n;
}

uint64_t journal_live(struct journal *j)
{
	uint64_t n;

	pthread_mutex_lock(&j->m);
	n = j->shown.live_bytes;
	pthread_mutex_unlock(&j->m);
	return n;
}

void journal_bad(struct journal *j, struct bad_note *n)
{
	pthread_mutex_lock(&j->m);
	n->next = j->bads;
	j->bads = n;
	pthread_mutex_unlock(&j->m);
	call_thread(j);
}
