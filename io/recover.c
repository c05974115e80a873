/*
 * recover.c - read superblocks and index: which records are whole and live
 *
 * The log ends, cleanly, at the first frame that is not the next of its epoch or
 * does not match its checksum: that is what a crash leaves of an append that
 * nobody was told of.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "io/crc.h"
#include "io/store_priv.h"
#include "io/sys.h"

#define READ_FIRST  (1u << 20) /* then twice as much each time */
#define READ_BYTES  (8u << 20)
#define LABEL_BYTES (1u << 20) /* INDEX_OFF is within it */

/* ---- superblocks ---------------------------------------------------------- */

static uint32_t sb_crc(const struct sb *sb)
{
	struct sb copy = *sb;

	copy.crc = 0;
	return kio_crc32c(0, &copy, sizeof(copy));
}

void sb_seal(struct sb *sb)
{
	sb->crc = sb_crc(sb);
}

static int sb_ok(const struct sb *sb)
{
	return sb->magic == SB_MAGIC && sb->crc == sb_crc(sb);
}

/* What arithmetic over it relies on. */
static int sb_sane(const struct sb *sb)
{
	const uint64_t limit = 1ull << 59;

	return sb->block_bytes == KIO_BLOCK_BYTES && sb->active < 2 &&
	       sb->zone_bytes >= ZONE_MIN && sb->zone_bytes <= ZONE_MAX &&
	       !(sb->zone_bytes & (sb->zone_bytes - 1)) &&
	       sb->index_bytes >= INDEX_MIN && sb->index_bytes < limit &&
	       sb->index_bytes % KIO_BLOCK_BYTES == 0 &&
	       sb->data_off >= INDEX_OFF + 2 * sb->index_bytes &&
	       sb->data_off < limit && sb->data_off % KIO_BLOCK_BYTES == 0 &&
	       sb->bytes < limit && sb->n_zones < NO_ZONE &&
	       sb->data_off + sb->n_zones * sb->zone_bytes <= sb->bytes;
}

/* Nothing was ever written here. */
static int all_zero(const void *p, size_t n)
{
	const unsigned char *c = p;

	return !n || (!c[0] && !memcmp(c, c + 1, n - 1));
}

/*
 * No superblock is whole. Only what is blank as far as the labels of disks and file
 * systems lie is free to be formatted: where an index begins, there was a store.
 */
static int no_sb(int fd, const struct sb both[2])
{
	uint32_t magic;
	char *buf;
	int ret;

	if (posix_memalign((void **)&buf, KIO_BLOCK_BYTES, LABEL_BYTES))
		return -ENOMEM;
	ret = kio_sys_pread(fd, buf, LABEL_BYTES, 0);
	memcpy(&magic, buf + INDEX_OFF, sizeof(magic));
	if (ret)
		ret = ret == -ENODATA ? -EMEDIUMTYPE : ret;
	else if (all_zero(buf, LABEL_BYTES))
		ret = -ENODATA;
	else if (both[0].magic == SB_MAGIC || both[1].magic == SB_MAGIC ||
		 magic == FRAME_MAGIC)
		ret = -EBADMSG;
	else
		ret = -EMEDIUMTYPE;
	free(buf);
	return ret;
}

static int sb_supported(const struct sb *sb)
{
	if (sb->major != SB_MAJOR || sb->features)
		return -EPROTONOSUPPORT;
	return sb_sane(sb) && all_zero(sb->rsvd, sizeof(sb->rsvd)) ? 0
								   : -EBADMSG;
}

/* Each for itself: one that cannot be read is as good as a damaged one. */
static int read_both(int fd, struct sb both[2])
{
	int rets[2];
	struct sb *buf;

	if (posix_memalign((void **)&buf, KIO_BLOCK_BYTES, sizeof(*buf)))
		return -ENOMEM;
	memset(both, 0, 2 * sizeof(both[0]));
	for (int i = 0; i < 2; i++) {
		rets[i] = kio_sys_pread(fd, buf, sizeof(*buf),
					(off_t)i * KIO_BLOCK_BYTES);
		if (!rets[i])
			both[i] = *buf;
	}
	free(buf);
	return rets[0] && rets[1] ? rets[0] : 0;
}

int sb_read(int fd, struct sb *out, struct sb both[2], int valid[2])
{
	int best = -1, ret = read_both(fd, both);

	if (ret)
		return ret == -ENODATA ? -EMEDIUMTYPE : ret;
	for (int i = 0; i < 2; i++) {
		valid[i] = sb_ok(&both[i]);
		if (valid[i] &&
		    (best < 0 || both[i].generation > both[best].generation))
			best = i;
	}
	ret = best < 0 ? no_sb(fd, both) : sb_supported(&both[best]);
	if (!ret)
		*out = both[best];
	return ret;
}

int sb_twins(const struct sb both[2], const int valid[2])
{
	struct sb a = both[0], b = both[1];

	if (!valid[0] || !valid[1])
		return 0;
	a.crc = b.crc = 0;
	a.generation = b.generation = 0;
	return !memcmp(&a, &b, sizeof(a));
}

/* ---- frames --------------------------------------------------------------------- */

struct loader {
	int fd;
	const struct sb *sb;
	struct index_image *x;
	uint64_t have; /* bytes read */
	uint64_t step; /* of the reads */
	uint64_t n_room; /* of entries */
	uint64_t read_bytes,
		read_ns; /* but for the last: the log may end in it */
	uint64_t last_bytes, last_ns;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int read_at(const struct loader *l, uint64_t area, uint64_t n)
{
	return kio_sys_pread(l->fd, l->x->base + l->have, n,
			     (off_t)(area + l->have));
}

/* The log went on behind the read before, so that was all log. Small ones tell nothing. */
static void count_read(struct loader *l, uint64_t n, uint64_t ns)
{
	l->read_bytes += l->last_bytes;
	l->read_ns += l->last_ns;
	l->last_bytes = n < READ_FIRST ? 0 : n;
	l->last_ns = n < READ_FIRST ? 0 : ns;
	l->have += n;
	if (l->step >= READ_FIRST)
		l->step = KV_MIN(2 * l->step, (uint64_t)READ_BYTES);
}

/* See that base holds [0, end), as far as the area goes. */
static int need(struct loader *l, uint64_t end)
{
	const uint64_t area = INDEX_OFF + l->sb->active * l->sb->index_bytes;

	if (end > l->x->room)
		return -ENODATA;
	while (l->have < end) {
		const uint64_t n = KV_MIN(l->step, l->x->room - l->have);
		const uint64_t begin = now_ns();
		const int ret = read_at(l, area, n);

		if (ret == -EIO && n > KIO_BLOCK_BYTES)
			/* perhaps of what is not needed */
			l->step = KIO_BLOCK_BYTES;
		else if (ret)
			return ret;
		else
			count_read(l, n, now_ns() - begin);
	}
	return 0;
}

/* The next frame whole in memory: 0, -ENODATA the log ends, -errno. */
static int next_frame(struct loader *l, struct frame *f)
{
	struct index_image *x = l->x;
	const uint64_t at = x->end;
	struct frame *here = (struct frame *)(x->base + at);
	uint32_t crc;
	int ret = need(l, at + KIO_BLOCK_BYTES);

	if (ret)
		return ret;
	*f = *here;
	if (f->magic != FRAME_MAGIC || f->epoch != x->epoch ||
	    f->salt != l->sb->salt || f->seq != x->seq + 1)
		return -ENODATA;
	x->torn_bytes = KIO_BLOCK_BYTES; /* begun; unless it is whole */
	if (f->n_bytes > FRAME_MAX || f->n_bytes % 8 || f->rsvd ||
	    f->prev != x->prev_crc)
		return -ENODATA;
	ret = need(l,
		   at + KV_ALIGN_UP(sizeof(*f) + f->n_bytes, KIO_BLOCK_BYTES));
	if (ret)
		return ret;
	here->crc = 0;
	crc = kio_crc32c(0, here, sizeof(*f) + f->n_bytes);
	here->crc = f->crc;
	if (crc != f->crc)
		return -ENODATA;
	x->torn_bytes = 0;
	return 0;
}

static int add_entry(struct loader *l, const struct rec *r, uint64_t off)
{
	struct index_image *x = l->x;

	if (x->n_entries == l->n_room) {
		const uint64_t n = l->n_room ? 2 * l->n_room : 1024;
		struct entry *e = realloc(x->entries, n * sizeof(*e));

		if (!e)
			return -ENOMEM;
		x->entries = e;
		l->n_room = n;
	}
	x->entries[x->n_entries++] =
		(struct entry){ .serial = r->serial,
				.off = off,
				.n_bytes = r->n_bytes,
				.crc = kio_crc32c(0, r, r->n_bytes),
				.is_bad = r->type == REC_BAD };
	return 0;
}

/* Serials of puts ascend, so this is a search by halves. */
static struct entry *find_serial(const struct index_image *x, uint64_t serial)
{
	uint64_t lo = 0, hi = x->n_entries;

	while (lo < hi) {
		const uint64_t mid = lo + (hi - lo) / 2;

		if (x->entries[mid].serial < serial)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < x->n_entries && x->entries[lo].serial == serial
		       ? &x->entries[lo]
		       : NULL;
}

static int put_ok(const struct rec *r)
{
	const struct rec_put *p = (const struct rec_put *)r;

	return r->n_bytes >= sizeof(*p) && !p->rsvd && p->n_pages &&
	       p->n_pages <= FRAME_MAX / sizeof(struct kio_place) &&
	       p->meta_bytes <= FRAME_MAX &&
	       r->n_bytes == put_bytes(p->n_pages, p->meta_bytes);
}

static int take_record(struct loader *l, const struct rec *r, uint64_t off)
{
	struct index_image *x = l->x;
	struct entry *e;

	switch (r->type) {
	case REC_PUT:
	case REC_BAD:
		if (r->serial <= x->serial || r->serial == UINT64_MAX ||
		    (r->type == REC_PUT ? !put_ok(r)
					: r->n_bytes != sizeof(struct rec_bad)))
			break;
		x->serial = r->serial;
		return add_entry(l, r, off);
	case REC_DEL:
		e = find_serial(x, r->serial);
		if (!e || e->is_bad)
			break;
		e->n_bytes = 0; /* deleted */
		return 0;
	}
	x->n_malformed++;
	return 0;
}

static int take_frame(struct loader *l, const struct frame *f)
{
	struct index_image *x = l->x;
	const uint64_t begin = x->end + sizeof(*f);
	uint64_t at = 0;
	int ret = 0;

	while (at + sizeof(struct rec) <= f->n_bytes && !ret) {
		const struct rec *r =
			(const struct rec *)(x->base + begin + at);

		if (r->n_bytes < sizeof(*r) || r->n_bytes % 8 || r->rsvd ||
		    r->n_bytes > f->n_bytes - at) {
			x->n_malformed++;
			break;
		}
		ret = take_record(l, r, begin + at);
		at += r->n_bytes;
	}
	return ret;
}

static int is_later_frame(const struct loader *l, uint64_t at)
{
	const struct index_image *x = l->x;
	const struct frame *f = (const struct frame *)(x->base + at);

	return f->magic == FRAME_MAGIC && f->epoch == x->epoch &&
	       f->salt == l->sb->salt && f->seq > x->seq + 1 &&
	       f->n_bytes <= FRAME_MAX;
}

/*
 * A frame is written when the one before is on the medium. So behind what a crash
 * left there is never one of this life that is later than the next: where there is,
 * the log was damaged, and what those frames say is lost. Looked for as far as the
 * next could be away, were the one in between whole; and again from each.
 */
static void look_beyond(struct loader *l)
{
	const uint64_t reach =
		2 * index_frame_limit(l->sb) + 2 * KIO_BLOCK_BYTES;
	struct index_image *x = l->x;
	uint64_t end = KV_MAX(x->end + reach, l->have);

	for (uint64_t at = x->end + KIO_BLOCK_BYTES;
	     at < end && !need(l, at + KIO_BLOCK_BYTES);
	     at += KIO_BLOCK_BYTES) {
		if (!is_later_frame(l, at))
			continue;
		x->n_beyond++;
		end = KV_MAX(end, at + reach);
	}
}

int index_load(int fd, const struct sb *sb, struct index_image *x)
{
	struct loader l = { .fd = fd, .sb = sb, .x = x, .step = READ_FIRST };
	struct frame f;
	uint64_t n = 0;
	void *p;
	int ret;

	memset(x, 0, sizeof(*x));
	x->room = sb->index_bytes;
	x->epoch = sb->epoch;
	ret = kio_sys_mmap(NULL, x->room, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
			   &p);
	if (ret)
		return ret;
	x->base = p;
	/* or a hundred MiB are faulted in 4 KiB at a time; a wish */
	(void)kio_sys_madvise(p, x->room, MADV_HUGEPAGE);
	while (!(ret = next_frame(&l, &f))) {
		ret = take_frame(&l, &f);
		if (ret)
			break;
		x->last = x->end;
		x->end += KV_ALIGN_UP(sizeof(f) + f.n_bytes, KIO_BLOCK_BYTES);
		x->seq = f.seq;
		x->prev_crc = f.crc;
		x->n_frames++;
	}
	if (ret != -ENODATA) {
		index_unload(x);
		x->end = l.have;
		return ret;
	}
	if (l.read_bytes >= READ_FIRST && l.read_ns)
		x->bytes_per_s = (double)l.read_bytes * 1e9 / (double)l.read_ns;
	look_beyond(&l);
	for (uint64_t i = 0; i < x->n_entries; i++)
		if (x->entries[i].n_bytes)
			x->entries[n++] = x->entries[i];
	x->n_entries = n;
	return 0;
}

int index_settle(int fd, const struct sb *sb, const struct index_image *x)
{
	const uint64_t area = INDEX_OFF + sb->active * sb->index_bytes;
	const int ret = kio_sys_pwrite(fd, x->base + x->last, x->end - x->last,
				       (off_t)(area + x->last));

	return ret ? ret : kio_sys_fdatasync(fd);
}

void index_unload(struct index_image *x)
{
	if (x->base)
		(void)kio_sys_munmap(x->base, x->room); /* cannot fail */
	free(x->entries);
	memset(x, 0, sizeof(*x));
}

const struct rec_put *index_put(const struct index_image *x,
				const struct entry *e)
{
	return (const struct rec_put *)(x->base + e->off);
}
