/*
 * store.h - a page store: pages in zones of a file or disk, durable on request
 *
 * One store is one disk: a regular file or a block device, O_DIRECT. Pages of several
 * sizes live in zones; a zone holds slots of one size. A page is written once to
 * its slot, read any number of times, and released. That alone is volatile. A
 * *record* (key, blob, places of the pages with their CRC32C) makes pages durable:
 * kio_store_put() is acknowledged when the pages and the record are on stable media,
 * and kio_store_open() hands back exactly the records that were acknowledged and
 * not deleted, without reading a page. docs/store.md has the format.
 *
 * A slot is reused in place. So pages of one size never make anybody copy: what is
 * written is the payload and its record. A slot that a deleted record named is
 * given out again only after the deletion is durable. When a size finds no room
 * while zones of another are sparse, one of these is emptied: its owner moves the
 * pages (see "cleaning").
 *
 * Thread: one (the loop's). Only the store's own journal thread waits for a disk.
 */
#ifndef IO_STORE_H
#define IO_STORE_H

#include <stddef.h>
#include <stdint.h>
#include "io/engine.h"

#define KIO_BLOCK_BYTES 4096u

struct kio_store;

struct kio_key {
	uint64_t w[2];
};
/* Where a page is: block of 4096 bytes from the start, and its CRC32C. On disk. */
struct kio_place {
	uint64_t block;
	uint32_t crc;
	uint32_t _pad; /* 0 */
};

#define KIO_STORE_SCRATCH  1u /* nothing survives: unlinked file, no index */
#define KIO_STORE_READONLY 2u /* look only: no lock, no slot, no record */

struct kio_store_conf {
	/*
	 * A file, made if missing (0600), or a block device. SCRATCH: a name
	 * beside which a file is made; what is at path is not touched. A
	 * device becomes a store of which the records are orphans.
	 */
	const char *path;
	uint64_t bytes; /* of a file; 0: as it is, a device: all of it */
	uint32_t flags; /* KIO_STORE_* */
	struct kio_engine *engine; /* of the pages; NULL with READONLY */
};

/* What open found; memory borrowed for the call. */
struct kio_record {
	struct kio_key key;
	uint64_t handle;
	uint32_t page_bytes;
	uint32_t n_pages;
	const struct kio_place *places;
	const void *meta;
	size_t meta_bytes;
};
enum {
	KIO_RECORD_KEEP, /* its slots are the caller's from now on */
	KIO_RECORD_ORPHAN, /* stays on disk, dropped when room is needed */
	KIO_RECORD_DROP, /* deleted */
};
struct kio_store_report {
	uint64_t n_records, n_pages, n_bad_slots;
	uint64_t n_refused; /* records that contradict others or the layout */
	uint64_t n_frames, index_bytes;
	/* What the medium gave, by the parts of the index, a MiB and more, that were
	 * read one after the other; 0: it has none so large, or there is no O_DIRECT. */
	double bytes_per_s;
	uint64_t
		torn_bytes; /* of a frame that a crash cut off: nobody was told */
	uint64_t n_lost_frames; /* behind a damaged one: records are lost */
	uint64_t epoch, open_ns;
	int formatted; /* the store is new */
};
/*
 * The end of the log is written and flushed once more: what found gets is on the medium.
 * A store that cannot be written is open all the same, and has failed (kio_store_info).
 * 0; -EBUSY another process has it; -EMEDIUMTYPE it holds something else (left as
 * it is); -EBADMSG both superblocks are damaged; -EPROTONOSUPPORT a newer version;
 * -EINVAL too small; -ENOMEM; -errno. found may be NULL (all are orphans). It must
 * not call back into the store.
 */
int kio_store_open(struct kio_store **out, const struct kio_store_conf *conf,
		   int (*found)(void *ctx, const struct kio_record *r),
		   void *ctx, struct kio_store_report *report);
/*
 * Puts in flight end first (their done() runs); page requests have ended before.
 * The file stays locked until what the store itself has in the engine has ended, at
 * the latest with kio_engine_free().
 * What was released and not deleted stays as records say. NULL is fine.
 */
void kio_store_close(struct kio_store *s);

/* ---- pages ----------------------------------------------------------------- */

/*
 * A slot for a page (multiple of 4096): its first block, or -ENOSPC, -EINVAL a page
 * is larger than a zone. Never waits. That the disk is full is told by the write.
 * alloc() is for what comes and goes, alloc_kept() for what a record is to name: they
 * use different zones as long as there is room.
 */
int64_t kio_store_alloc(struct kio_store *s, size_t page_bytes);
int64_t kio_store_alloc_kept(struct kio_store *s, size_t page_bytes);
/* Give it back; nothing is in flight on it. */
void kio_store_release(struct kio_store *s, uint64_t block, size_t page_bytes);
/*
 * It stays the caller's although the record that named it was deleted: when that is
 * durable it may be put again. 1: not yet; 0: it is, or the store failed.
 */
void kio_store_keep(struct kio_store *s, uint64_t block, size_t page_bytes);
int kio_store_waits(struct kio_store *s, uint64_t block, size_t page_bytes);
/* Instead: what is there went bad. It is not given out again, ever. */
void kio_store_quarantine(struct kio_store *s, uint64_t block,
			  size_t page_bytes);
/* Or: it cannot be written. It is not given out again before the next open. */
void kio_store_set_aside(struct kio_store *s, uint64_t block,
			 size_t page_bytes);
/* Queue r (buf, block, n_bytes, done) in the engine. */
void kio_store_read(struct kio_store *s, struct kio_req *r);
void kio_store_write(struct kio_store *s, struct kio_req *r);

/* ---- records ------------------------------------------------------------------ */

/* The caller's, with all it points to, until done(). */
struct kio_commit {
	struct kio_commit *next; /* the store's */
	struct kio_key key;
	uint32_t page_bytes;
	uint32_t n_pages;
	const struct kio_place *places; /* [n_pages]; their writes have ended */
	const void *meta;
	size_t meta_bytes;
	uint64_t handle; /* out: for kio_store_del() */
	int ret;
	void (*done)(struct kio_commit *c); /* from kio_store_reap() */
	const uint64_t *was; /* kio_store_move(); else NULL */
	struct {
		uint64_t off, serial;
		uint32_t crc;
	} moved; /* the store's: the record that comes */
};
/*
 * ret 0: on stable media. -ENOSPC the index is full of live records; -ENOTSUP scratch;
 * -EMSGSIZE a record of more than 1/8 of the index, or 16 MiB; -EINVAL a place is no
 * slot that was given out, or a record has it; -ENOMEM: then nothing is durable. -EIO
 * the disk failed: whether the record is there is unknown until the store is opened
 * again; till then every put fails, and slots that records name are not given out
 * again. All puts and deletions that wait share one flush of the data and one of the
 * index.
 */
void kio_store_put(struct kio_store *s, struct kio_commit *c);
/*
 * Pages of a record lie elsewhere now: n_pages of them, page_bytes each, that were at
 * blocks was[] are at places[] (same bytes, so same CRCs; their writes have ended). In
 * one frame of the index the record is deleted and put again with the new places; the
 * handle stays. key and meta are not looked at. One move of a record at a time; it may
 * be deleted meanwhile.
 * ret 0: on stable media; the slots at was[] are the caller's to
 * release. Else the record is as it was and those at places[] are to be released:
 * -ENOENT it is deleted, or lost; -EINVAL was[] is not what it says; -EBADMSG it could not
 * be read back; -ENOMEM; -ENOSPC no room even for that; -ENOTSUP. With -EIO both may be
 * named, as with a put.
 */
void kio_store_move(struct kio_store *s, struct kio_commit *c);
/* Delete a record; call it before its slots are released. Never fails or waits. */
void kio_store_del(struct kio_store *s, uint64_t handle);
/*
 * lost() is called from kio_store_reap() for a record that was found damaged in the
 * index, and is durable no more: the handle is to be deleted, the pages are where they
 * were. Also for one that was deleted meanwhile.
 */
void kio_store_on_lost(struct kio_store *s,
		       void (*lost)(void *ctx, uint64_t handle), void *ctx);
/* Readable when puts or deletions have ended: then kio_store_reap(). -1: scratch. */
int kio_store_event_fd(const struct kio_store *s);
int kio_store_reap(struct kio_store *s);

/* ---- cleaning (store_clean.c) ---------------------------------------------- */

/*
 * Who can move the page in a slot that was given out; NULL: nobody any more. Until the
 * slot is released. Zones with a slot that has no owner are not emptied.
 */
void kio_store_own(struct kio_store *s, uint64_t block, size_t page_bytes,
		   void *owner);
/*
 * clean() is called from kio_store_alloc() when a size finds no room, or soon will, and
 * another has a zone whose pages all fit into its other zones: a victim. It must not
 * call the store at once. Without clean nothing is ever chosen.
 */
void kio_store_on_clean(struct kio_store *s, void (*clean)(void *ctx),
			void *ctx);
/* The zone being emptied: its number of slots and their size; 0: there is none. */
uint32_t kio_store_victim(const struct kio_store *s, size_t *page_bytes);
/* The owner of slot i of it, and its block; NULL: free, or on its way to be. */
void *kio_store_victim_slot(const struct kio_store *s, uint32_t i,
			    uint64_t *block);
/* Where a page of it goes: a slot of an open zone of its size; -ENOSPC. */
int64_t kio_store_alloc_moved(struct kio_store *s);
/* Give it back: no page went there. */
void kio_store_not_moved(struct kio_store *s, uint64_t block,
			 size_t page_bytes);
/* So many bytes were written to such slots. */
void kio_store_moved(struct kio_store *s, uint64_t n_bytes);
/* It cannot be emptied now: slots of it are given out again. */
void kio_store_clean_stop(struct kio_store *s);

/* How the bytes of zones that are free go back to the file system or device. */
enum kio_back {
	KIO_BACK_HOLES, /* fallocate; of a device: as zeros without blocks */
	KIO_BACK_DISCARD, /* of a device */
	KIO_BACK_NO, /* it takes neither: they stay */
};

/* kept() is called once, from kio_engine_reap(), when it has become KIO_BACK_NO. */
void kio_store_on_kept(struct kio_store *s, void (*kept)(void *ctx), void *ctx);

struct kio_store_info {
	uint64_t bytes; /* of slots and free zones, as far as configured */
	uint64_t
		used_bytes; /* in slots given out, with the waste of their zones */
	uint64_t slot_bytes; /* in slots given out */
	uint64_t durable_bytes; /* of those: that records name, or may name */
	uint64_t free_zone_bytes; /* for any page size */
	uint64_t pending_bytes; /* released, deletion not durable yet */
	uint64_t bad_bytes; /* quarantined */
	uint64_t n_records, n_orphans;
	uint64_t orphan_bytes; /* used, and had for the asking */
	uint64_t index_bytes, index_live_bytes, index_room_bytes;
	uint64_t page_written_bytes, index_written_bytes; /* since open */
	uint64_t moved_bytes; /* of page_written_bytes: by cleaning */
	uint64_t n_zones_cleaned;
	uint64_t cleaning_bytes; /* to be moved yet, out of the victim */
	uint64_t n_puts, n_groups, n_compactions;
	uint64_t n_not_compacted; /* it was tried, and failed */
	uint64_t
		n_lost_records; /* damaged in the index, so left out of a copy */
	uint32_t n_delayed; /* times in a row that deletions found no room */
	int failed; /* puts are refused */
	int direct; /* 1: O_DIRECT */
	enum kio_back gives_back; /* as far as it was tried */
};
void kio_store_info(struct kio_store *s, struct kio_store_info *out);
/* Asserts that slots, zones and counters agree. */
void kio_store_check(struct kio_store *s);
/* The file's descriptor (borrowed), for tests that damage it. */
int kio_store_fd(const struct kio_store *s);

#endif
