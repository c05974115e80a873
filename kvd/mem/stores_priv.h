/*
 * stores_priv.h - disks; inside stores*.c
 */
#ifndef KVD_MEM_STORES_PRIV_H
#define KVD_MEM_STORES_PRIV_H

#include "kvd/base/rate.h"
#include "kvd/mem/stores.h"

struct disk {
	struct stores *stores;
	char *path;
	struct kio_engine *engine;
	struct kio_store *store;
	struct loop_fd io_fd, commit_fd;
	struct list lanes; /* with requests: struct stores_lane.node */
	uint32_t n_sent; /* in the engine */
	uint64_t sent_bytes;
	uint32_t n_busy; /* and those that wait here */
	uint64_t busy_bytes; /* queued or in flight */
	uint64_t busy_since; /* what was done since then */
	uint64_t done_bytes;
	struct rate rate; /* bytes, while it is busy */
	uint32_t n_aside; /* slots, since a write ended well */
	uint64_t heard_ns; /* a request ended then, or the first was sent */
	int silent; /* nothing was heard for too long: stores_is_silent() */
	struct stat *st_silent; /* kvd/base/stat.h: there is another */
};

struct stores {
	struct stores_conf conf;
	uint64_t window_bytes;
	struct loop_poller poller;
	struct list held; /* flows of which reads wait: stores_flow.held_node */
	struct loop_timer held_timer;
	struct loop_timer ear_timer; /* set while something is in an engine */
	uint64_t patience_ns;
	struct disk disks[STORES_MAX];
	struct stores_missing missing[STORES_MAX];
	uint32_t n_missing;
	void (*lost)(void *ctx, uint32_t i_disk, uint64_t handle);
	void *lost_ctx;
	void (*on_silent)(void *ctx, uint32_t i_disk);
	void *silent_ctx;
	/* while open runs */
	int (*found)(void *ctx, uint32_t i_disk, const struct kio_record *r);
	void *ctx;
	uint32_t i_opening;
};

/* stores_silent.c */
void silent_init(struct stores *s);
void silent_opened(struct disk *d); /* its path is known */
void silent_sent(struct disk *d); /* one more is in its engine */
void silent_heard(struct disk *d); /* one has ended */

#endif
