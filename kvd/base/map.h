/*
 * map.h - hash table from a 128-bit id to a pointer
 *
 * Open addressing, linear probing, grows by doubling at 3/4. Ids are hashes
 * already: the low word chooses the slot. Not thread-safe.
 */
#ifndef KVD_BASE_MAP_H
#define KVD_BASE_MAP_H

#include <stdint.h>

struct map_id {
	uint64_t w[2];
};
struct map_slot {
	struct map_id id;
	void *value; /* NULL: free */
};
struct map {
	struct map_slot *slots;
	uint64_t n_slots; /* 0 or a power of two */
	uint64_t n_used;
};

static inline int map_id_equal(struct map_id a, struct map_id b)
{
	return a.w[0] == b.w[0] && a.w[1] == b.w[1];
}
void map_init(struct map *m);
void map_fini(struct map *m);
void *map_find(const struct map *m, struct map_id id);
/* value is not NULL. -EALREADY the id is there; -ENOMEM. */
int map_add(struct map *m, struct map_id id, void *value);
/* Returns what was there, or NULL. */
void *map_del(struct map *m, struct map_id id);

#endif
