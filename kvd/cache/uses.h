/*
 * uses.h - how chunks and variants were used, kept across restarts
 *
 * The records of a store (persist.h) are written once, with the statistics of that
 * moment. What became of them since stands in one small file of the host,
 * state_dir/kvd.uses: for each chunk and variant its hits and its score, by the key of
 * its record. It is written whole under another name, flushed and renamed: whenever the
 * daemon is killed, the old one or the new one is there. Nothing depends on it but which
 * chunks go first: one that is damaged, older or not there costs statistics, and those of
 * the records stand. docs/store.md has the format.
 *
 * Thread: any, one at a time.
 */
#ifndef KVD_CACHE_USES_H
#define KVD_CACHE_USES_H

#include <stddef.h>
#include <stdint.h>

#define USES_FILE  "kvd.uses"
#define USES_MAX   (1u << 20) /* entries; beyond, none are kept */
#define USES_VALUE 1e12 /* the largest score */

struct use_entry { /* on disk too */
	uint64_t key[2]; /* of the record */
	uint64_t n_hits;
	double value; /* when it was written; finite, >= 0 */
};
struct uses {
	struct use_entry *list; /* [n], read: ascending by key */
	uint32_t n, room;
};

/*
 * All that dir's file has. -ENOENT there is none, -EINVAL it is damaged, of another
 * version, or no file of ours, -ENOMEM; then u is empty.
 */
int uses_read(const char *dir, struct uses *u);
/* The entry with this key of what was read, or NULL. */
struct use_entry *uses_find(const struct uses *u, const uint64_t key[2]);
/* 0, also when it is one too many; -ENOMEM. */
int uses_add(struct uses *u, const struct use_entry *e);
/* Write u, whose order changes. -errno: the file is as it was. */
int uses_write(const char *dir, struct uses *u);
void uses_fini(struct uses *u);

#endif
