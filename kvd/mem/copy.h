/*
 * copy.h - copies between device and pinned host memory
 *
 * Six lanes: a direction times an urgency, each with a stream and a thread of its
 * own, so copies overlap with each other and with compute. Neighbours in both
 * memories become one copy of up to chunk_bytes (Shen et al. 2024, FastSwitch,
 * arXiv:2411.18424: many small copies cost their dispatch); larger parts are
 * cut. Of a direction no more than credit_bytes are queued at the device, and
 * lanes that are less urgent queue nothing while a more urgent one has work: so
 * an urgent copy waits for credit_bytes of others at most.
 *
 * A copy may be told part by part: with a part for each layer, compute begins when
 * the first has landed.
 *
 * Everything is called on the loop thread and told there, never inside a call.
 */
#ifndef KVD_MEM_COPY_H
#define KVD_MEM_COPY_H

#include "kernels/cuda_api.h"
#include "kvd/base/list.h"
#include "kvd/base/loop.h"
#include "kvd/base/wait.h"

enum copy_dir { COPY_TO_DEVICE, COPY_TO_HOST, COPY_N_DIRS };
enum copy_prio {
	COPY_NOW, /* a step waits for it */
	COPY_SOON, /* a request will */
	COPY_LATER, /* written down ahead of need */
	COPY_N_PRIOS
};

struct copier;

struct copy_conf {
	const struct cuda_api *api; /* outlives the copier, as does ctx */
	cuda_handle ctx;
	struct loop *loop;
	size_t chunk_bytes; /* of one copy; > 0 */
	uint64_t credit_bytes; /* of a direction; >= chunk_bytes */
};
/* -EINVAL, -ENOMEM, -ENODEV. */
int copier_open(struct copier **out, const struct copy_conf *conf);
/* No copy is in flight. Blocks. */
void copier_close(struct copier *k);
/* The device is gone: all copies end with -ENODEV. Any thread. */
int copier_lost(const struct copier *k);

/* Host memory [p, p + n) that copies use; page aligned. Blocks for as long as the
 * kernel needs to lock it. -EINVAL (pinned already), -ENOMEM, -ENODEV. */
int copier_pin(struct copier *k, void *p, size_t n);
void copier_unpin(struct copier *k, void *p);

struct copy_part {
	cuda_ptr dev; /* mapped, until the copy is told */
	void *host; /* pinned */
	size_t n; /* bytes */
};

struct copy {
	enum copy_dir dir;
	enum copy_prio prio;
	const struct copy_part *parts; /* [n_parts], borrowed */
	uint32_t n_parts;
	/* waited for before the first byte, without holding up other lanes: what the
	 * compute stream wrote. Recorded already, the caller's. Or NULL. */
	cuda_event after;
	/* parts [0, n_done) have landed, n_done grows; or NULL. Not for those that
	 * the waiter is told of in the same turn. */
	void (*progress)(struct copy *c, uint32_t n_done);
	/*
	 * All parts have landed: 0. Else the first error, and any bytes may be in the
	 * targets: -ECANCELED; others of the driver; -ENODEV: the device is lost, and
	 * until its context is gone it may still write to host memory: such memory
	 * is not used again. Look at copier_lost() after any error.
	 */
	struct wait *waiter;
	struct list node; /* from here on: the copier's, (m) */
	struct loop_call call;
	struct copier *copier;
	uint32_t next_part; /* not queued at the device yet: from here */
	size_t next_off;
	uint32_t n_flight; /* copies at the device */
	uint32_t n_done, n_told;
	int is_posted, is_taken, is_over, ret;
};
/* Copies of a lane start in order. c is the caller's again when it is told. */
void copy_start(struct copier *k, struct copy *c);
/* What is not at the device stays undone; the waiter is told -ECANCELED, or 0 if
 * there was nothing left. Harmless on one that is over but not told. */
void copy_cancel(struct copier *k, struct copy *c);

/* c goes with those of prio, if it is less urgent and nothing of it is at the device. */
void copy_hurry(struct copier *k, struct copy *c, enum copy_prio prio);

struct copy_counts {
	uint64_t bytes[COPY_N_DIRS]; /* landed */
	uint64_t copies,
		merged; /* calls; parts that needed none of their own */
	uint64_t failed; /* struct copy that ended with an error */
	uint64_t credit_waits; /* times a lane had work that had to wait */
};
void copier_counts(struct copier *k, struct copy_counts *out);

#endif
