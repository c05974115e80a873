/*
 * vmm_priv.h - what vmm_cuda.c (ops, thread) and vmm_frames.c (calls of the
 * driver) share; see vmm_cuda.h
 *
 * Unmarked fields are the vmm thread's. (I) set before it starts, (m) under m, (A)
 * atomic.
 */
#ifndef KVD_MEM_VMM_PRIV_H
#define KVD_MEM_VMM_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include "kvd/mem/extent.h"
#include "kvd/mem/vmm_cuda.h"

#define VMM_NO_FRAME UINT32_MAX
#define VMM_EVENTS   64 /* kept for the next drops */

enum vmm_state {
	VMM_EMPTY,
	VMM_MAPPED,
	VMM_DROPPING, /* by the loop thread, in vmm_start(): not MAPPED any more */
	VMM_IDLE,
	VMM_STUCK,
};
enum vmm_wait { VMM_NO_WAIT, VMM_WAIT };

struct vmm_frame {
	cuda_mem mem;
	uint32_t tenant; /* whose bytes are in it; 0: unknown */
	uint32_t next; /* in the pool, or of those without memory */
	enum { FRAME_NONE, FRAME_POOL, FRAME_USED } where;
	int exported; /* somebody else may have it */
};

struct vmm_page {
	/* (A) release after mapping; acquire in vmm_ready() */
	_Atomic uint8_t state;
	struct vmm_batch *batch; /* IDLE: of its drop; NULL: held by a MAP */
};

/* One drop: pages that are IDLE and name it may go when its events are over. It is
 * freed with the last of them. */
struct vmm_batch {
	struct list node; /* vmm.batches, oldest first */
	struct vmm_space *space;
	uint64_t first, n; /* pages are in this run */
	uint64_t n_idle; /* that many of them */
	cuda_event events[VMM_MAX_STREAMS];
	uint32_t n_events;
};

struct vmm_space {
	struct list node; /* (m) vmm.spaces */
	struct vmm *vmm; /* (I) */
	uint32_t tenant; /* (I) not 0 */
	uint32_t page_frames; /* (I) frames of a page */
	size_t page_bytes; /* (I) */
	uint64_t n_pages; /* (I) */
	cuda_ptr base; /* (I) */
	struct vmm_page *pages; /* [n_pages] */
	uint32_t *frames; /* [n_pages][page_frames] */
	struct extents free; /* loop thread */
};

/* Calls of the driver; each a CUresult. Slots: vmm_frames.c. */
struct vmm_backend {
	int (*reserve)(struct vmm_space *s);
	int (*unreserve)(struct vmm_space *s);
	int (*create)(struct vmm *v, struct vmm_frame *f);
	int (*release)(struct vmm *v, struct vmm_frame *f);
	/* a frame into slot i; then access to [first, first + n) at once */
	int (*map)(struct vmm_space *s, uint64_t i, const struct vmm_frame *f);
	int (*access)(struct vmm_space *s, uint64_t first, uint64_t n);
	int (*unmap)(struct vmm_space *s, uint64_t first, uint64_t n);
};
extern const struct vmm_backend vmm_frames_backend, vmm_uvm_backend;

struct vmm {
	struct vmm_conf conf; /* (I) */
	const struct vmm_backend *ops; /* (I) */
	uint64_t managed_bytes; /* loop thread: in spaces that are managed */
	const struct cuda_api *cu; /* (I) */
	cuda_handle ctx; /* (I) */
	int dev; /* (I) */
	struct cuda_mem_prop prop; /* (I) */
	struct cuda_access access; /* (I) */
	cuda_stream zero; /* its own stream */
	pthread_t thread;
	pthread_mutex_t m;
	pthread_cond_t work, idle;
	struct list urgent, ahead; /* (m) ops */
	struct list spaces; /* (m) */
	uint64_t next_op; /* (m) */
	int stop, is_idle; /* (m) */
	_Atomic int lost; /* (A) */
	struct vmm_frame *frames; /* [max_frames] */
	uint32_t max_frames; /* (I) */
	uint32_t pool, none; /* heads */
	int no_topup; /* until the next MAP */
	struct list batches;
	uint64_t n_orphans; /* frames stuck in spaces that are closed */
	cuda_event events[VMM_EVENTS];
	uint32_t n_events;
	struct vmm_counts n;
	struct vmm_counts shown; /* (m) n after the last op */
};

/* ---- vmm_frames.c; all on the vmm thread ----------------------------------- */

/* A CUresult: 0 or -errno; notes and logs, once, that the device is lost. */
int vmm_result(struct vmm *v, const char *what, int result);
/* One more frame in the pool. -ENOSPC: the budget; -ENOMEM: the card. */
int vmm_frame_create(struct vmm *v);
/* Memory of pool frames back to the system, at most n; how many it were. */
uint64_t vmm_frames_release(struct vmm *v, uint64_t n);
/* Frames for the EMPTY pages of [first, first + n), mapped and zeroed, from the
 * pool, which has enough: 0 or -errno, then the pages are EMPTY again. */
int vmm_map_empty(struct vmm_space *s, uint64_t first, uint64_t n);
/* Unmap [first, first + n), which have frames: to the pool; else they are STUCK. */
int vmm_unmap(struct vmm_space *s, uint64_t first, uint64_t n);
/* Are its events over? 0, -EAGAIN, -errno. */
int vmm_batch_over(struct vmm *v, struct vmm_batch *b, enum vmm_wait wait);
void vmm_batch_free(struct vmm *v, struct vmm_batch *b);
/* Of drops that are over, oldest first: about n_frames to the pool. How many; 0:
 * none is over (VMM_WAIT: there is none); -ENODEV. */
int64_t vmm_reclaim(struct vmm *v, uint64_t n_frames, enum vmm_wait wait);
/* Descriptors of the frames of pages [first, first + n), all MAPPED. */
int vmm_frames_export(struct vmm_space *s, uint64_t first, uint64_t n,
		      int *fds);
/* Does the page have a frame that was exported? */
int vmm_is_exported(const struct vmm_space *s, uint64_t page);
static inline cuda_ptr vmm_slot_at(const struct vmm_space *s, uint64_t slot)
{
	return s->base + slot * s->vmm->conf.frame_bytes;
}
/* vmm_uvm.c: what managed memory asks of the device, and the unit of its pages. */
int vmm_uvm_probe(struct vmm *v, size_t *least);

/* Bytes that the device lacks to spare_bytes; 0 where it does not say. */
uint64_t vmm_missing_bytes(struct vmm *v);

static inline enum vmm_state vmm_state(const struct vmm_page *p)
{
	return atomic_load_explicit(&p->state, memory_order_acquire);
}
static inline void vmm_set(struct vmm_page *p, enum vmm_state st)
{
	atomic_store_explicit(&p->state, (uint8_t)st, memory_order_release);
}

#endif
