/*
 * store_priv.h - the store on disk, and its parts; inside io
 *
 *   block 0, 1     superblocks: the one with the higher generation counts
 *   block 8        index area 0, then index area 1
 *   data_off       zones
 *
 * One area is active: frames from its start, each a multiple of 4096 bytes, with
 * the epoch and salt of the superblock, consecutive sequence numbers and the CRC
 * of the frame before. The first that does not fit into this is the end of the
 * log. When an area is nearly full or mostly dead, the live records are written
 * to the other one under the next epoch, then both superblocks name that one.
 * All numbers little-endian. docs/store.md says why.
 */
#ifndef IO_STORE_PRIV_H
#define IO_STORE_PRIV_H

#include <assert.h>
#include <pthread.h>
#include <stdint.h>
#include "io/base.h"
#include "io/store.h"

#define SB_MAGIC      0x65726f747364766bull /* "kvdstore" */
#define SB_MAJOR      1u
#define SB_MINOR      0u
#define FRAME_MAGIC   0x7266766bu /* "kvfr" */
#define INDEX_OFF     (8u * KIO_BLOCK_BYTES)
#define INDEX_MIN     (1ull << 20)
#define FRAME_MAX     (32ull << 20)
#define ZONE_MIN      (4ull << 20)
#define ZONE_MAX      (64ull << 20)
#define N_ZONES_AIMED 64u

struct sb { /* one block; crc over it all with crc = 0 */
	uint64_t magic;
	uint16_t major;
	uint16_t minor;
	uint32_t crc;
	uint8_t uuid[16];
	uint64_t generation;
	uint64_t bytes; /* of the whole store */
	uint64_t zone_bytes;
	uint64_t index_bytes; /* of each area */
	uint64_t data_off;
	uint64_t n_zones;
	uint64_t epoch; /* of the active area */
	uint32_t active; /* 0, 1 */
	uint32_t block_bytes; /* 4096 */
	uint64_t
		salt; /* of the frames of the active area: random, never again */
	uint64_t features; /* 0; a bit that is not known is refused */
	uint8_t rsvd[4096 - 112]; /* 0 */
};
static_assert(sizeof(struct sb) == KIO_BLOCK_BYTES, "on disk");
static_assert(offsetof(struct sb, crc) == 12, "on disk");
static_assert(offsetof(struct sb, generation) == 32, "on disk");
static_assert(offsetof(struct sb, epoch) == 80, "on disk");
static_assert(offsetof(struct sb, salt) == 96, "on disk");
static_assert(offsetof(struct sb, rsvd) == 112, "on disk");

struct frame { /* then records, then zeros up to a block */
	uint32_t magic;
	uint32_t crc; /* CRC32C of the header with crc = 0, and the payload */
	uint64_t epoch;
	uint64_t salt;
	uint64_t seq; /* from 1, within the epoch */
	uint32_t n_bytes; /* of records */
	uint32_t n_records;
	uint32_t prev; /* crc of the frame before; 0 for the first */
	uint32_t rsvd; /* 0 */
};
static_assert(sizeof(struct frame) == 48, "on disk");
static_assert(offsetof(struct frame, seq) == 24, "on disk");
static_assert(offsetof(struct frame, prev) == 40, "on disk");

enum { REC_PUT = 1, REC_DEL = 2, REC_BAD = 3 };

struct rec { /* multiple of 8 bytes */
	uint16_t type;
	uint16_t rsvd;
	uint32_t n_bytes; /* with this header */
	uint64_t serial; /* of the record put, or deleted; 0 for BAD */
};
static_assert(sizeof(struct rec) == 16, "on disk");

struct rec_put { /* then kio_place[n_pages], then the blob, then zeros */
	struct rec h;
	struct kio_key key;
	uint32_t page_bytes;
	uint32_t n_pages;
	uint32_t meta_bytes;
	uint32_t rsvd;
};
static_assert(sizeof(struct rec_put) == 48, "on disk");
static_assert(sizeof(struct kio_place) == 16, "on disk");

struct rec_bad {
	struct rec h;
	uint64_t block;
	uint32_t page_bytes;
	uint32_t rsvd;
};
static_assert(sizeof(struct rec_bad) == 32, "on disk");

/* Of a PUT record with all that follows. */
static inline uint64_t put_bytes(uint64_t n_pages, uint64_t meta_bytes)
{
	return KV_ALIGN_UP(sizeof(struct rec_put) +
				   n_pages * sizeof(struct kio_place) +
				   meta_bytes,
			   8u);
}

/* A frame, or one record, is not larger than this. */
static inline uint64_t index_frame_limit(const struct sb *sb)
{
	return KV_MIN(FRAME_MAX / 2, sb->index_bytes / 8);
}

/* Live records are not more than this together. */
static inline uint64_t index_live_max(const struct sb *sb)
{
	return sb->index_bytes / 4 * 3;
}

/* A live record: where in the active area it is. Journal thread, once it runs. */
struct entry {
	struct entry *next, *prev; /* live, by serial; or a free list */
	struct entry *q_next; /* deletions queued */
	uint64_t serial;
	uint64_t off; /* from the start of the area */
	uint32_t n_bytes;
	uint32_t crc; /* of the record: what is copied is what was written */
	uint8_t is_bad; /* a BAD record: never deleted */
	uint8_t is_gone; /* not in the log: damaged, or deleted and compacted */
	/* under the journal's lock */
	uint8_t moving; /* a kio_store_move() names it */
	uint8_t is_over; /* deleted; free when that has ended */
};

/* ---- slots (store_alloc.c); loop thread --------------------------------------- */

/* What a zone was begun for: the two are kept apart as long as there is room. */
enum slot_kind {
	SLOT_PASSING, /* paged out: comes and goes */
	SLOT_KEPT, /* of records, and what was moved: stays */
};

struct zone {
	uint32_t page_bytes; /* 0: free */
	uint32_t n_slots, n_used;
	uint32_t n_bad; /* and spoilt */
	uint32_t n_owned; /* with an owner */
	uint8_t listed, backed, punching;
	uint8_t kind; /* enum slot_kind */
	uint64_t *bits; /* used (or pending, or bad) */
	uint64_t *named; /* a record names it, or may */
	uint64_t *spoilt; /* bad as soon as it is released */
	void **owners; /* [n_slots], or NULL: nobody said; store_clean.c */
	uint64_t at; /* slots.n_allocs when one of it was given out last */
	uint64_t rest; /* no victim before slots.n_released is that */
};

struct zone_class {
	uint32_t page_bytes;
	enum slot_kind kind;
	uint64_t n_free_slots; /* in listed zones */
	uint32_t hint; /* no zone below is open */
	struct zone_class *next;
	uint64_t open[]; /* a bit for each zone of it with free slots */
};
#define NO_ZONE UINT32_MAX

/* Released while deletions were on their way. */
struct pending {
	uint64_t block;
	uint64_t turn; /* of the deletion to wait for */
	uint32_t page_bytes;
	uint32_t is_kept; /* not released: its name goes, no more */
};

struct slots {
	struct zone *zones;
	uint32_t n_zones; /* that exist */
	uint32_t n_usable; /* that may be given out */
	uint32_t first_free; /* no zone below is free */
	uint32_t n_free; /* usable and free */
	uint32_t n_free_backed;
	uint64_t zone_bytes, data_off;
	struct zone_class *classes;
	uint64_t slot_bytes, bad_bytes, pending_bytes, named_bytes;
	struct pending *pending; /* ring */
	uint64_t pending_head, pending_tail, pending_room;
	uint64_t n_allocs, n_released; /* so far */
	/* store_clean.c */
	uint32_t victim; /* being emptied, given out from no more; NO_ZONE */
	uint32_t dest; /* where its pages go; NO_ZONE: not chosen */
	uint64_t looked[2]; /* n_released when nothing could be gained: ahead
			       of need, when failed; UINT64_MAX: never */
	uint64_t n_cleaned, moved_bytes;
};

int slots_init(struct slots *m, const struct sb *sb, uint64_t limit_bytes);
void slots_fini(struct slots *m);
int64_t slots_alloc(struct slots *m, uint32_t page_bytes, enum slot_kind kind);
/* A slot of zone i, which has one free. */
int64_t slots_alloc_in(struct slots *m, uint32_t i);
/* Slots of this size that alloc would find. */
uint64_t slots_left(struct slots *m, uint32_t page_bytes);
void slots_release(struct slots *m, uint64_t block, uint32_t page_bytes);
/* Take one slot as found in the index: -EINVAL it cannot be, or is taken. */
int slots_take(struct slots *m, uint64_t block, uint32_t page_bytes);
/*
 * A record is to name a slot that is given out: -EINVAL it is not, or one does
 * already. Until it is released, or the record was not written.
 */
int slots_name(struct slots *m, uint64_t block, uint32_t page_bytes);
void slots_unname(struct slots *m, uint64_t block, uint32_t page_bytes);
int slots_named(const struct slots *m, uint64_t block, uint32_t page_bytes);
/* Not given out again, ever. 1: a BAD record said so already. */
int slots_set_bad(struct slots *m, uint64_t block, uint32_t page_bytes);
/*
 * A BAD record as found, all records having taken theirs: the slot is bad, or will be
 * when the record that has it is gone. -EINVAL it is none, or bad already; -ENOMEM.
 */
int slots_take_bad(struct slots *m, uint64_t block, uint32_t page_bytes);
void slots_defer(struct slots *m, uint64_t block, uint32_t page_bytes,
		 uint64_t turn);
/* The slot stays given out; it has no name any more from that turn on. */
void slots_keep(struct slots *m, uint64_t block, uint32_t page_bytes,
		uint64_t turn);
void slots_ripen(struct slots *m, uint64_t turn);
/* The zone is to be emptied: nothing of it is given out; or it is again. */
void slots_shut(struct slots *m, uint32_t i);
void slots_unshut(struct slots *m, uint32_t i);
/* Who has the slot; NULL: nobody that could be asked. -ENOMEM, -EINVAL. */
int slots_own(struct slots *m, uint64_t block, uint32_t page_bytes,
	      void *owner);
/* So few free zones that cleaning begins, and kinds are mixed. */
uint32_t slots_low(const struct slots *m);
/* Free slots of open zones of that size. */
uint64_t slots_open(const struct slots *m, uint32_t page_bytes);
/* A free zone whose blocks may be given back, or NO_ZONE. */
uint32_t slots_punchable(const struct slots *m);
void slots_check(const struct slots *m);
/* store_clean.c: bytes of the victim that are to be moved yet. */
uint64_t clean_left(const struct slots *m);
/* Size page_bytes finds (failed), or soon may find, no room. */
void clean_look(struct kio_store *s, uint32_t page_bytes, int failed);
static inline uint64_t zone_off(const struct slots *m, uint32_t i)
{
	return m->data_off + i * m->zone_bytes;
}

/* ---- the index on disk (recover.c) ----------------------------------------------- */

struct index_image {
	char *base; /* mmap of the area, read up to the end of the log */
	uint64_t room; /* bytes of base */
	uint64_t last, end; /* of the last whole frame */
	uint64_t torn_bytes; /* of a frame that was begun there */
	uint64_t seq, epoch;
	uint32_t prev_crc;
	uint64_t n_frames;
	double bytes_per_s; /* of reads that gave nothing but log, or 0 */
	uint64_t n_beyond; /* frames behind a damaged one: lost */
	uint64_t n_malformed; /* records in whole frames */
	struct entry *entries; /* [n_entries] PUT and BAD, by serial */
	uint64_t n_entries;
	uint64_t serial; /* highest */
};
/*
 * Both superblocks, whether each is whole, and the one that counts. 0; -ENODATA the
 * first MiB is blank; -EMEDIUMTYPE, -EBADMSG, -EPROTONOSUPPORT as kio_store_open();
 * -errno. both and valid are set unless it could not be read.
 */
int sb_read(int fd, struct sb *out, struct sb both[2], int valid[2]);
void sb_seal(struct sb *sb);
/* Both are whole and say the same. */
int sb_twins(const struct sb both[2], const int valid[2]);
/* 0, -errno: then out->end says how much of the area could be read. */
int index_load(int fd, const struct sb *sb, struct index_image *out);
/*
 * What was found is on the medium. The last frame may be in a cache only: its daemon was
 * killed before the flush, or that failed, and then the next one would not tell. So it
 * is written again, as it is. -errno.
 */
int index_settle(int fd, const struct sb *sb, const struct index_image *x);
void index_unload(struct index_image *x);
/* The PUT record of entry e, checked against its length. */
const struct rec_put *index_put(const struct index_image *x,
				const struct entry *e);

/* ---- the journal (journal.c, frame.c) ------------------------------------- */

struct journal {
	int fd;
	/* the thread's, once it runs */
	struct sb sb;
	uint64_t pos, seq, live_bytes;
	uint32_t prev_crc;
	struct entry live; /* head of the list, in order of serial */
	uint64_t serial;
	char *buf; /* frame under construction, aligned */
	size_t buf_room;
	uint64_t index_written, n_compactions, n_not_compacted, n_live;
	uint64_t n_lost; /* records that did not match when copied */
	/* deletions taken: not durable, in order */
	struct entry *dels_now, **dels_now_end;
	int again; /* there is more to do */
	int must_compact; /* the log is damaged: away from there */
	uint64_t compact_from; /* pos; not before: it failed */

	pthread_t thread;
	int started;
	int event_fd;
	pthread_mutex_t m;
	pthread_cond_t more;
	/* (m) */
	struct kio_commit *puts, **puts_end;
	struct entry *dels, **dels_end;
	struct bad_note *bads;
	struct kio_commit *done, **done_end;
	struct entry *free_entries; /* for the loop to take back */
	uint64_t *lost; /* handles, for the loop to tell */
	uint64_t n_lost_told; /* of them */
	uint64_t dels_durable; /* so many of all that were queued */
	int stop, failed;
	uint32_t n_delayed; /* times in a row that dels_now were not written */
	uint64_t n_puts, n_groups;
	struct journal_shown { /* copies of what the thread counts */
		uint64_t pos, live_bytes, written, n_compactions, n_lost;
		uint64_t n_not_compacted, room;
	} shown;
};
/* A quarantined slot to be noted. */
struct bad_note {
	struct bad_note *next;
	struct rec_bad rec;
	struct entry *entry;
};

void journal_init(struct journal *j);
/* A live record that was found; in order of serial, before the start. */
void journal_adopt(struct journal *j, struct entry *e);
/* 0, -errno; event_fd is the caller's to close. */
int journal_start(struct journal *j, int fd, const struct sb *sb,
		  const struct index_image *x);
/* Ends when everything queued has ended. */
void journal_stop(struct journal *j);
/* c->handle is its entry. With c->ret set it ends with that. */
void journal_put(struct journal *j, struct kio_commit *c);
void journal_del(struct journal *j, struct entry *e);
/* n is the journal's from now on. */
void journal_bad(struct journal *j, struct bad_note *n);
/*
 * Take what has ended: puts, entries that are free again; and how many of the
 * deletions queued so far are durable.
 */
void journal_reap(struct journal *j, struct kio_commit **done,
		  struct entry **entries, uint64_t *dels_durable);
/* Before that: records that are gone, *n of them; the caller's to free. NULL: none. */
uint64_t *journal_take_lost(struct journal *j, uint64_t *n);
/* The thread's: these are. */
void journal_lost(struct journal *j, const uint64_t *handles, uint64_t n);
/* Deletions that are durable; *failed: no more will be. */
uint64_t journal_durable(struct journal *j, int *failed);
/* Bytes of live records, as of the last batch. */
uint64_t journal_live(struct journal *j);
/* Out of the live list. Twice is fine: a deletion that is tried again. */
void journal_live_del(struct journal *j, struct entry *e);

/* frame.c: begin a frame, add records, write it at the end of the log. */
int frame_begin(struct journal *j);
/* Room for one record of n bytes, zeros; where it will be. NULL without memory. */
void *frame_add(struct journal *j, size_t n, uint64_t *off);
uint64_t frame_bytes(const struct journal *j); /* so far, with its header */
uint64_t frame_room(const struct journal *j); /* and on disk */
/* 0, -ENOSPC (also of a quota), -errno. One without records is not written. */
int frame_write(struct journal *j);
/* The record of e, as it was written: *out lies in *buf, to be freed. -errno. */
int entry_read(struct journal *j, const struct entry *e, char **buf,
	       struct rec_put **out);
/* 0 or -EIO. */
int journal_flush(struct journal *j);
/*
 * Live records to the other area. 0; -ENOSPC, -ENOMEM: the old area goes on; -EIO: the
 * journal has failed (a flush did; or it may be that a superblock names the new area, so
 * nothing may follow in the old one).
 */
int journal_compact(struct journal *j);
/* Two generations on, both copies, each flushed before the other. */
int sb_write_both(int fd, struct sb *sb);
uint64_t salt_new(void);

/* ---- the store itself ----------------------------------------------------- */

/* A record nobody knows: its slots, to be given back when room is needed. */
struct orphan {
	struct orphan *next;
	struct entry *entry;
	uint32_t page_bytes;
	uint32_t n_pages;
	uint64_t blocks[];
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
	int no_puts; /* scratch on a device: a store, but nothing is put */
	int is_device;
	struct slots slots;
	struct journal journal;
	struct slab *slabs;
	struct entry *entries_found; /* array of open */
	struct entry *free_entries;
	struct orphan *orphans, **orphans_end;
	uint64_t n_records, n_orphans, orphan_bytes;
	uint64_t turn; /* deletions queued by us */
	uint64_t page_written;
	uint64_t put_max_bytes; /* of a record in the index */
	uint64_t live_max_bytes; /* of all of them */
	uint64_t putting_bytes; /* of those on their way */
	uint32_t n_ahead; /* zones below were reserved, or tried to be */
	struct chore reserve, punch;
	int no_reserve;
	enum kio_back gives_back;
	int closing;
	void (*lost)(void *ctx, uint64_t handle); /* kio_store_on_lost() */
	void *lost_ctx;
	void (*clean)(void *ctx); /* kio_store_on_clean() */
	void *clean_ctx;
	void (*kept)(void *ctx); /* kio_store_on_kept() */
	void *kept_ctx;
};

/* Open: the file, its superblock, its records (store_open.c). */
struct finder {
	struct kio_store *store;
	int (*found)(void *ctx, const struct kio_record *r);
	void *ctx;
	struct kio_store_report *rep;
	const struct index_image *image;
	uint64_t have_bytes; /* of the file, as it was found */
};
int store_open(struct finder *f, const struct kio_store_conf *conf);

#endif
