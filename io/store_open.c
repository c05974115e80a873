/*
 * store_open.c - the file of a store, its layout, the records found in it
 *
 * Nothing that is not a store is ever written to, save what is empty or blank.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/store_priv.h"
#include "io/sys.h"

/* ---- format ---------------------------------------------------------------- */

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
	sb->n_zones = KV_MIN((bytes - sb->data_off) / sb->zone_bytes,
			     (uint64_t)NO_ZONE - 1);
	sb->salt = salt_new();
	return kio_sys_random(sb->uuid, sizeof(sb->uuid));
}

/* So that a full file system never stops the index; 0 where that cannot be had. */
static int reserve_index(const struct kio_store *s, const struct sb *sb)
{
	const int ret =
		s->is_device ? 0
			     : kio_sys_fallocate(s->fd, 0, 0,
						 (off_t)(INDEX_OFF +
							 2 * sb->index_bytes));

	return ret == -EOPNOTSUPP || ret == -ENOSYS ? 0 : ret;
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
	ret = reserve_index(s, sb);
	/* else the records of a new file go with its name when power does */
	if (!ret && !s->is_device)
		ret = kio_sys_sync_dir(conf->path);
	return ret ? ret : sb_write_both(s->fd, sb);
}

/*
 * A larger size than before: more zones. A smaller one only limits their use. Then
 * see that both superblocks say the same.
 */
static int adapt(struct kio_store *s, const struct kio_store_conf *conf,
		 uint64_t have, struct sb *sb, int twins)
{
	const uint64_t bytes = conf->bytes    ? conf->bytes
			       : s->is_device ? have
					      : sb->bytes;
	int ret = 0;

	if (have < sb->data_off)
		return -EBADMSG; /* cut inside the index */
	if (conf->flags & KIO_STORE_READONLY)
		return 0;
	if (s->is_device && have < bytes)
		return -ENOSPC;
	if (!s->is_device && have < KV_MAX(bytes, sb->bytes))
		ret = kio_sys_ftruncate(s->fd, (off_t)KV_MAX(bytes, sb->bytes));
	if (ret || (bytes < sb->bytes + sb->zone_bytes && twins))
		return ret;
	if (bytes >= sb->bytes + sb->zone_bytes) {
		sb->bytes = bytes;
		sb->n_zones = KV_MIN((bytes - sb->data_off) / sb->zone_bytes,
				     (uint64_t)NO_ZONE - 1);
	}
	return sb_write_both(s->fd, sb);
}

/* ---- the file -------------------------------------------------------------- */

static int open_direct(struct kio_store *s, const char *path, int flags)
{
	s->direct = 1;
	s->fd = kio_sys_open(path, flags | O_DIRECT, 0600);
	if (s->fd == -EINVAL) {
		s->direct = 0;
		s->fd = kio_sys_open(path, flags, 0600);
	}
	return s->fd < 0 ? s->fd : 0;
}

/* A file of our own beside path: what is at path may be worth keeping. */
static int open_scratch(struct kio_store *s, const char *path)
{
	const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW;
	char *name;
	int ret;

	if (asprintf(&name, "%s.scratch.%d", path, (int)getpid()) < 0)
		return -ENOMEM;
	ret = open_direct(s, name, flags);
	if (ret == -EEXIST && !kio_sys_unlink(name)) /* of a dead namesake */
		ret = open_direct(s, name, flags);
	if (!ret)
		ret = kio_sys_unlink(name);
	free(name);
	return ret;
}

static int file_size(struct kio_store *s, uint64_t *bytes)
{
	struct stat st;
	int ret = kio_sys_fstat(s->fd, &st);

	if (ret)
		return ret;
	s->is_device = S_ISBLK(st.st_mode);
	s->gives_back = s->is_device ? KIO_BACK_DISCARD : KIO_BACK_HOLES;
	if (!s->is_device && !S_ISREG(st.st_mode))
		return -EMEDIUMTYPE;
	*bytes = (uint64_t)st.st_size;
	return s->is_device ? kio_sys_device_bytes(s->fd, bytes) : 0;
}

/* A device is taken for us alone: -EBUSY when it is mounted, say. */
static int claim_device(struct kio_store *s, const char *path)
{
	(void)close(s->fd); /* nothing was written */
	return open_direct(s, path, O_RDWR | O_EXCL | O_NOFOLLOW);
}

/*
 * A device cannot be had beside itself, and what is on it may be worth keeping: it
 * is opened as a store, of which the records are orphans and none is put.
 */
static void scratch_on_device(struct finder *f, const char *path)
{
	struct stat st;

	if (!f->store->scratch || kio_sys_stat(path, &st) ||
	    !S_ISBLK(st.st_mode))
		return;
	f->store->scratch = 0;
	f->store->no_puts = 1;
	f->found = NULL;
}

static int open_file(struct kio_store *s, const struct kio_store_conf *conf,
		     uint64_t *have)
{
	const int readonly = !!(conf->flags & KIO_STORE_READONLY);
	/* without a size it is there, or is not: a device that is gone, say */
	const int flags = O_RDWR | O_NOFOLLOW | (conf->bytes ? O_CREAT : 0);
	int ret;

	if (s->scratch)
		ret = open_scratch(s, conf->path);
	else
		ret = open_direct(s, conf->path, readonly ? O_RDONLY : flags);
	if (!ret)
		ret = file_size(s, have);
	if (!ret && s->is_device && !readonly)
		ret = claim_device(s, conf->path);
	if (!ret && !s->scratch && !readonly)
		ret = kio_sys_lock(s->fd);
	if (!ret && !s->scratch && !readonly)
		ret = file_size(s, have); /* as it is for whoever holds it */
	return ret;
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
	s->orphan_bytes += (uint64_t)o->n_pages * o->page_bytes;
	return 0;
}

/* Of a file that was cut: are the pages still in it? */
static int within(const struct kio_record *r, uint64_t have_bytes)
{
	for (uint32_t i = 0; i < r->n_pages; i++)
		if (r->places[i]._pad ||
		    r->places[i].block >
			    (have_bytes - r->page_bytes) / KIO_BLOCK_BYTES)
			return 0;
	return 1;
}

/* All slots or none. */
static int take_slots(struct kio_store *s, const struct kio_record *r)
{
	for (uint32_t i = 0; i < r->n_pages; i++) {
		int ret = slots_take(&s->slots, r->places[i].block,
				     r->page_bytes);

		if (!ret) /* cannot fail now */
			ret = slots_name(&s->slots, r->places[i].block,
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
	int ret = r.page_bytes <= f->have_bytes && within(&r, f->have_bytes)
			  ? take_slots(s, &r)
			  : -EINVAL;

	if (ret == -EINVAL) { /* nobody may use it, and it must not come back */
		f->rep->n_refused++;
		s->n_records++;
		kio_store_del(s, r.handle);
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
	const int ret =
		slots_take_bad(&f->store->slots, b->block, b->page_bytes);

	f->rep->n_bad_slots += !ret;
	return ret == -EINVAL ? 0 : ret;
}

/* Puts first: none that was acknowledged yields to a bad slot, whichever was first. */
static int find_all(struct finder *f)
{
	struct kio_store *s = f->store;
	int ret = 0;

	for (uint64_t i = 0; i < f->image->n_entries && !ret; i++) {
		struct entry *e = &s->entries_found[i];

		journal_adopt(&s->journal, e);
		ret = e->is_bad ? 0 : one_put(f, e);
	}
	for (uint64_t i = 0; i < f->image->n_entries && !ret; i++)
		if (s->entries_found[i].is_bad)
			ret = one_bad(f, &s->entries_found[i]);
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
	f->rep->bytes_per_s = s->direct ? x.bytes_per_s : 0;
	f->rep->torn_bytes = x.torn_bytes;
	f->rep->n_refused = x.n_malformed;
	f->rep->n_lost_frames = x.n_beyond;
	f->rep->epoch = sb->epoch;
	s->put_max_bytes = index_frame_limit(sb);
	s->live_max_bytes = index_live_max(sb);
	if (!readonly) /* what cannot be written can be read */
		s->journal.failed = !!index_settle(s->fd, sb, &x);
	ret = find_all(f);
	if (!ret && !readonly)
		ret = journal_start(&s->journal, s->fd, sb, &x);
	index_unload(&x);
	return ret;
}

int store_open(struct finder *f, const struct kio_store_conf *conf)
{
	const int readonly = !!(conf->flags & KIO_STORE_READONLY);
	struct kio_store *s = f->store;
	struct sb sb, both[2];
	int valid[2], ret;

	scratch_on_device(f, conf->path);
	ret = open_file(s, conf, &f->have_bytes);
	if (ret)
		return ret;
	ret = s->scratch || (!f->have_bytes && !readonly)
		      ? -ENODATA
		      : sb_read(s->fd, &sb, both, valid);
	if (ret == -ENODATA && !readonly) {
		f->rep->formatted = 1;
		ret = format(s, conf, f->have_bytes, &sb);
		f->have_bytes = sb.bytes;
	} else if (!ret) {
		ret = adapt(s, conf, f->have_bytes, &sb, sb_twins(both, valid));
	}
	if (!ret)
		ret = slots_init(&s->slots, &sb, conf->bytes);
	if (!ret && !s->scratch)
		ret = load(f, &sb, readonly);
	if (!ret && s->engine)
		s->i_fixed = kio_engine_add_file(s->engine, s->fd);
	return ret;
}
