/*
 * frame.c - write the index: frames, compaction, superblocks; see store_priv.h
 *
 *  (1) A frame names the one before by its checksum, and its area's life by a
 *      random salt. So what an earlier life, an earlier attempt or an owner's blob
 *      left behind a frame never looks like the next one.
 *  (2) Compaction writes to the other area; superblocks that name it are written,
 *      and flushed, when all of it is on the medium. Both: then the loss of
 *      either does not take us back.
 *
 * The journal's thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/crc.h"
#include "io/store_priv.h"
#include "io/sys.h"

#define COPY_BYTES   (1u << 20) /* of a frame of a compaction */
#define WINDOW_BYTES (4u << 20) /* of the reads of a compaction */

static uint64_t area_off(const struct sb *sb)
{
	return INDEX_OFF + sb->active * sb->index_bytes;
}

uint64_t salt_new(void)
{
	uint64_t salt = 0;

	/* cannot fail for 8 bytes; were it 0, (1) would hold by epoch and CRC */
	(void)kio_sys_random(&salt, sizeof(salt));
	return salt;
}

/* ---- frames --------------------------------------------------------------- */

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

int frame_begin(struct journal *j)
{
	if (room_for(j, sizeof(struct frame)))
		return -ENOMEM;
	*(struct frame *)j->buf = (struct frame){ .magic = FRAME_MAGIC };
	return 0;
}

uint64_t frame_bytes(const struct journal *j)
{
	return sizeof(struct frame) + ((const struct frame *)j->buf)->n_bytes;
}

uint64_t frame_room(const struct journal *j)
{
	return KV_ALIGN_UP(frame_bytes(j), KIO_BLOCK_BYTES);
}

void *frame_add(struct journal *j, size_t n, uint64_t *off)
{
	const size_t at = frame_bytes(j);
	struct frame *f;

	if (room_for(j, at + n))
		return NULL;
	f = (struct frame *)j->buf;
	f->n_bytes += (uint32_t)n;
	f->n_records++;
	memset(j->buf + at, 0, n);
	if (off)
		*off = j->pos + at;
	return j->buf + at;
}

int frame_write(struct journal *j)
{
	struct frame *f = (struct frame *)j->buf;
	const size_t n = frame_bytes(j), all = frame_room(j);
	int ret;

	if (!f->n_records)
		return 0;
	if (j->pos + all > j->sb.index_bytes)
		return -ENOSPC;
	memset(j->buf + n, 0, all - n);
	f->epoch = j->sb.epoch;
	f->salt = j->sb.salt;
	f->seq = j->seq + 1;
	f->prev = j->prev_crc;
	f->crc = 0;
	f->crc = kio_crc32c(0, f, n);
	ret = kio_sys_pwrite(j->fd, j->buf, all,
			     (off_t)(area_off(&j->sb) + j->pos));
	if (ret)
		return ret == -EDQUOT ? -ENOSPC : ret;
	j->pos += all;
	j->seq++;
	j->prev_crc = f->crc;
	j->index_written += all;
	return 0;
}

/*
 * Whatever a failed flush says (-ENOSPC, too): what was written before it may be lost,
 * and the next one would not tell.
 */
int journal_flush(struct journal *j)
{
	return kio_sys_fdatasync(j->fd) ? -EIO : 0;
}

/* ---- superblocks ---------------------------------------------------------- */

/* buf: aligned. */
static int write_both(int fd, struct sb *sb, struct sb *buf)
{
	int ret = 0;

	for (int i = 0; i < 2 && !ret; i++) {
		sb->generation++;
		sb_seal(sb);
		*buf = *sb;
		ret = kio_sys_pwrite(
			fd, buf, sizeof(*buf),
			(off_t)(sb->generation % 2 * KIO_BLOCK_BYTES));
		if (!ret)
			ret = kio_sys_fdatasync(fd);
	}
	return ret;
}

int sb_write_both(int fd, struct sb *sb)
{
	struct sb *buf;
	int ret;

	if (posix_memalign((void **)&buf, KIO_BLOCK_BYTES, sizeof(*buf)))
		return -ENOMEM;
	ret = write_both(fd, sb, buf);
	free(buf);
	return ret;
}

/* ---- compaction ----------------------------------------------------------- */

/* A part of the area that is being left; records are read in order. */
struct window {
	int fd;
	uint64_t area, end; /* of the log there */
	uint64_t at, n;
	char *buf;
	size_t room;
};

static int window_move(struct window *w, uint64_t off, uint64_t n)
{
	const uint64_t at = off / KIO_BLOCK_BYTES * KIO_BLOCK_BYTES;
	const size_t least = KV_ALIGN_UP(off + n - at, KIO_BLOCK_BYTES);

	if (w->room < least) {
		free(w->buf);
		w->buf = NULL;
		w->room = KV_MAX(least, WINDOW_BYTES);
		if (posix_memalign((void **)&w->buf, KIO_BLOCK_BYTES,
				   w->room)) {
			w->buf = NULL;
			w->room = w->n = 0;
			return -ENOMEM;
		}
	}
	w->at = at;
	w->n = KV_MAX(least, KV_MIN(w->room, w->end - at));
	return kio_sys_pread(w->fd, w->buf, w->n, (off_t)(w->area + at));
}

static int window_get(struct window *w, const struct entry *e, const char **out)
{
	int ret = 0;

	if (e->off < w->at || e->off + e->n_bytes > w->at + w->n)
		ret = window_move(w, e->off, e->n_bytes);
	if (ret)
		w->n = 0;
	else
		*out = w->buf + (e->off - w->at);
	return ret;
}

/*
 * One that is not what was written is left out (*new_off 0): it names pages, so it
 * must not be guessed.
 */
static int copy_entry(struct journal *j, struct window *w, struct entry *e,
		      uint64_t *new_off)
{
	const char *raw;
	void *to;
	int ret = window_get(w, e, &raw);

	*new_off = 0;
	if (ret || kio_crc32c(0, raw, e->n_bytes) != e->crc)
		return ret;
	to = frame_add(j, e->n_bytes, new_off);
	if (!to)
		return -ENOMEM;
	memcpy(to, raw, e->n_bytes);
	return 0;
}

static int copy_live(struct journal *j, struct window *w, uint64_t *offs)
{
	uint64_t i = 0;
	int ret = frame_begin(j);

	for (struct entry *e = j->live.next; e != &j->live && !ret;
	     e = e->next) {
		if (frame_room(j) >= COPY_BYTES) {
			ret = frame_write(j);
			if (!ret)
				ret = frame_begin(j);
		}
		if (!ret)
			ret = copy_entry(j, w, e, &offs[i++]);
	}
	return ret ? ret : frame_write(j);
}

int entry_read(struct journal *j, const struct entry *e, char **buf,
	       struct rec_put **out)
{
	struct window w = { .fd = j->fd,
			    .area = area_off(&j->sb),
			    .end = e->off + e->n_bytes }; /* no more is read */
	const char *raw;
	int ret = window_get(&w, e, &raw);

	if (!ret && kio_crc32c(0, raw, e->n_bytes) != e->crc)
		ret = -EBADMSG;
	if (ret) {
		free(w.buf);
		return ret == -ENOMEM ? ret : -EBADMSG;
	}
	*buf = w.buf;
	*out = (struct rec_put *)(w.buf + (raw - w.buf));
	return 0;
}

/* Where the log goes on. */
struct log_end {
	struct sb sb;
	uint64_t pos, seq;
	uint32_t prev_crc;
};

static int fill_other(struct journal *j, uint64_t *offs)
{
	const struct log_end old = { j->sb, j->pos, j->seq, j->prev_crc };
	struct window w = { .fd = j->fd,
			    .area = area_off(&j->sb),
			    .end = j->pos };
	int ret;

	j->sb.active = !j->sb.active;
	j->sb.epoch++;
	j->sb.salt = salt_new();
	j->pos = j->seq = 0;
	j->prev_crc = 0;
	ret = copy_live(j, &w, offs);
	if (ret) /* one that cannot be read or written harms nobody here */
		ret = ret == -ENOMEM ? ret : -ENOSPC;
	else
		ret = journal_flush(j);
	free(w.buf);
	if (!ret)
		return 0;
	j->sb = old.sb;
	j->pos = old.pos;
	j->seq = old.seq;
	j->prev_crc = old.prev_crc;
	return ret;
}

int journal_compact(struct journal *j)
{
	uint64_t *offs = calloc(j->n_live + 1, sizeof(*offs));
	const uint64_t n_lost = j->n_lost;
	uint64_t i = 0;
	int ret;

	if (!offs)
		return -ENOMEM;
	ret = fill_other(j, offs);
	if (ret) {
		free(offs);
		return ret;
	}
	/* its frames are written: the buffer, of a block at least, is free */
	ret = write_both(j->fd, &j->sb, (struct sb *)j->buf) ? -EIO : 0;
	for (struct entry *e = j->live.next, *next; e != &j->live; e = next) {
		next = e->next;
		e->off = offs[i++];
		if (e->off)
			continue;
		journal_live_del(j, e);
		e->is_gone = 1;
		offs[j->n_lost++ - n_lost] = (uint64_t)(uintptr_t)e;
	}
	j->n_compactions++;
	if (j->n_lost > n_lost)
		journal_lost(j, offs, j->n_lost - n_lost);
	free(offs);
	return ret;
}
