/*
 * store_priv.h - the store on disk, and its parts; inside io
 *
 *   block 0, 1     superblocks: the one with the higher generation counts
 *   block 8        index area 0, then index area 1
 *   data_off       zones
 *
 * One area is active: frames from its start, each a multiple of 4096 bytes, with
 * epoch and consecutive sequence numbers. The first that does not fit into this
 * is the end of the log. When an area is nearly full or mostly dead, the live
 * records are written to the other one under the next epoch, then a superblock
 * names that one. All numbers little-endian.
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
	uint8_t rsvd[4096 - 96];
};
static_assert(sizeof(struct sb) == KIO_BLOCK_BYTES, "on disk");
static_assert(offsetof(struct sb, rsvd) == 96, "on disk");

struct frame { /* then records, then zeros up to a block */
	uint32_t magic;
	uint32_t crc; /* CRC32C of the header with crc = 0, and the payload */
	uint64_t epoch;
	uint64_t seq; /* from 1, within the epoch */
	uint32_t n_bytes; /* of records */
	uint32_t n_records;
};
static_assert(sizeof(struct frame) == 32, "on disk");

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

/* A live record: where in the active area it is. Journal thread, once it runs. */
struct entry {
	struct entry *next, *prev; /* live, by serial; or a free list */
	struct entry *q_next; /* deletions queued */
	uint64_t serial;
	uint64_t off; /* from the start of the area */
	uint32_t n_bytes;
	uint32_t crc; /* of the record: what is copied is what was written */
	uint32_t is_bad; /* a BAD record: never deleted */
	uint32_t _pad;
};

/* ---- slots (store_alloc.c); loop thread --------------------------------------- */

struct zone {
	uint32_t page_bytes; /* 0: free */
	uint32_t n_slots, n_used, n_bad;
	uint32_t prev, next; /* zones of the class with free slots */
	uint8_t listed, backed, punching;
	uint64_t *bits; /* used (or pending, or bad) */
};

struct zone_class {
	uint32_t page_bytes;
	uint32_t first; /* zone with free slots, or NO_ZONE */
	struct zone_class *next;
};
#define NO_ZONE UINT32_MAX

/* Released while deletions were on their way. */
struct pending {
	uint64_t block;
	uint64_t turn; /* of the deletion to wait for */
	uint32_t page_bytes;
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
	uint64_t slot_bytes, bad_bytes, pending_bytes;
	struct pending *pending; /* ring */
	uint64_t pending_head, pending_tail, pending_room;
};

int slots_init(struct slots *m, const struct sb *sb, uint64_t limit_bytes);
void slots_fini(struct slots *m);
int64_t slots_alloc(struct slots *m, uint32_t page_bytes);
void slots_release(struct slots *m, uint64_t block, uint32_t page_bytes);
/* Take one slot as found in the index: -EINVAL it cannot be, or is taken. */
int slots_take(struct slots *m, uint64_t block, uint32_t page_bytes);
void slots_set_bad(struct slots *m, uint64_t block, uint32_t page_bytes);
void slots_defer(struct slots *m, uint64_t block, uint32_t page_bytes,
		 uint64_t turn);
void slots_ripen(struct slots *m, uint64_t turn);
/* A free zone whose blocks may be given back, or NO_ZONE. */
uint32_t slots_punchable(const struct slots *m);
void slots_check(const struct slots *m);
static inline uint64_t zone_off(const struct slots *m, uint32_t i)
{
	return m->data_off + i * m->zone_bytes;
}

/* ---- the index on disk (recover.c) ----------------------------------------------- */

struct index_image {
	char *base; /* mmap of the area, read up to the end of the log */
	uint64_t room; /* bytes of base */
	uint64_t end; /* of the last whole frame */
	uint64_t torn_bytes; /* of a frame that was begun there */
	uint64_t seq, epoch;
	uint64_t n_frames;
	uint64_t n_malformed; /* records in whole frames */
	struct entry *entries; /* [n_entries] PUT and BAD, by serial */
	uint64_t n_entries;
	uint64_t serial; /* highest */
};
int sb_read(int fd, struct sb *out, struct sb both[2], int valid[2]);
void sb_seal(struct sb *sb);
int index_load(int fd, const struct sb *sb, struct index_image *out);
void index_unload(struct index_image *x);
/* The PUT record of entry e, checked against its length. */
const struct rec_put *index_put(const struct index_image *x,
				const struct entry *e);

/* ---- the journal (journal.c) -------------------------------------------------------- */

struct journal {
	int fd;
	struct sb sb;
	uint64_t pos, seq, live_bytes;
	struct entry live; /* head of the list */
	uint64_t serial;
	char *buf; /* frame under construction, aligned */
	size_t buf_room;
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
	uint64_t dels_queued, dels_durable; /* deletions; turns */
	int stop, failed;
	uint64_t n_puts, n_groups;
	struct journal_shown { /* copies of what the thread counts */
		uint64_t pos, live_bytes, written, n_compactions, n_lost;
	} shown;
	/* the thread's */
	uint64_t index_written, n_compactions, n_live;
	uint64_t n_lost; /* records that did not match when copied */
	struct entry *stuck; /* deletions that found no room on the disk */
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
/* Take what has ended: puts, and entries that are free again. */
int journal_reap(struct journal *j, struct kio_commit **done,
		 struct entry **entries);
/* Deletions queued so far, and how many of them are durable. */
uint64_t journal_turns(struct journal *j, uint64_t *durable);

#endif
