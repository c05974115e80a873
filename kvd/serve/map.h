/*
 * map.h - what clients have mapped, as map.c and fault.c see it
 *
 * Loop thread. A session owns its maps; a map refers to a segment.
 */
#ifndef KVD_SERVE_MAP_H
#define KVD_SERVE_MAP_H

#include "kvd/mem/uffd.h"
#include "kvd/serve/tenant.h"

struct segmap {
	struct session_maps *of;
	struct segment *seg; /* a reference */
	uint32_t id;
	int placed, gone, copy;
	struct wait *told; /* gone: who asked, or NULL */
	uint64_t addr, n_bytes;
	uint32_t n_faults;
	struct list faults; /* on their way: fault.of_map */
	uint32_t next; /* page after the last one brought in */
	uint32_t window; /* pages that a fault at next brings in */
};

struct session_maps {
	struct serve_session *ss;
	struct uffd_peer peer;
	struct uffd_job close;
	struct serve_map_events *events;
	struct segmap **all; /* [n_all] by id */
	struct segmap **placed; /* [n_placed] by address; the same room */
	uint32_t n_all, n_placed, n_room;
	uint32_t next_id;
	uint32_t n_faults; /* of all maps: what closing waits for */
	struct list faults; /* of all maps, those that are gone too */
	struct fault
		*spare; /* for a fault when there is no memory; or in use */
	int closing, close_started;
	const uint64_t *holds; /* the client's, or NULL */
	struct segmap_hold { /* a word that stands in the way */
		uint64_t what, since_ns, last_ns;
	} stood[SERVE_MAP_HOLDS];
	struct loop_call overdue;
};

/* The map that has this address, or NULL. */
struct segmap *segmap_at(const struct session_maps *sm, uint64_t addr);
/* A fault has ended: free m if it was the last of an unmapped one; go on with the
 * end of the session. */
void segmap_look_gone(struct segmap *m);
void maps_look_closed(struct session_maps *sm);
/* fault.c: uffd_peer.fault */
void fault_told(struct uffd_peer *p, uint64_t addr, uint64_t read_ns);
struct fault *fault_new(void); /* for session_maps.spare, to be free()d; NULL */
/* Nobody waits for the faults of m any more; those at work end by themselves. */
void fault_cancel_map(struct segmap *m);
/* map_check()'s part. */
void fault_check(const struct session_maps *sm, struct map_sums *s);

#endif
