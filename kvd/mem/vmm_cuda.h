/*
 * vmm_cuda.h - device memory that is mapped on demand: frames, spaces, fences
 *
 * A space is a range of device addresses, reserved once, of pages of one size, of
 * one tenant. A frame is physical memory (cuMemCreate); a page has one or several.
 * Kernels see plain pointers: what is mapped stays where it is, and nothing
 * that a running kernel may address is ever remapped (Prabhu et al. 2024,
 * vAttention, arXiv:2405.04437).
 *
 *             MAP, AHEAD                 DROP
 *   EMPTY ----------------> MAPPED ----------------> IDLE
 *     ^                       ^      MAP, AHEAD       |
 *     |                       +-----------------------+
 *     +-----------------------------------------------+  reclaimed
 *
 * A page that was dropped keeps its frames until somebody needs them; mapped
 * again before that, it costs no call of the driver. Either waits for the
 * fences of the drop first: what was queued on the given streams then is over.
 *
 *  (1) Frames in existence times frame_bytes never exceed the budget.
 *  (2) A frame is in the pool or in one page, never both.
 *  (3) Memory that another tenant had, or nobody, is zero before a page is
 *      MAPPED; a page that comes back to its own tenant has any of its bytes.
 *  (4) A page is MAPPED from the end of its MAP until its DROP is started.
 *  (5) A frame that was exported never leaves its page for another.
 *  (6) Frames that could not be unmapped (STUCK) count, and are not used again.
 *
 * Threads: all calls of the driver are made by one thread of the vmm, since the
 * driver takes them one at a time anyway (kvcached, 4 processes: 1.9x). Everything
 * here is called on the loop thread, but for vmm_ready() and vmm_lost().
 */
#ifndef KVD_MEM_VMM_CUDA_H
#define KVD_MEM_VMM_CUDA_H

#include "kernels/cuda_api.h"
#include "kvd/base/list.h"
#include "kvd/base/loop.h"
#include "kvd/base/wait.h"

#define VMM_MAX_STREAMS 4

struct vmm;
struct vmm_space;

/* How a page gets memory. */
enum vmm_kind {
	VMM_MAPPED_FRAMES, /* cuMemCreate, cuMemMap: what stands above */
	/*
	 * Managed memory (cuMemAllocManaged), for comparison and for small budgets: an
	 * address is memory, so all spaces together have as many addresses as the budget
	 * has bytes, and no more than the device had free; MAP brings pages to
	 * the device ahead of use, TRIM sends them to the host.
	 */
	VMM_MANAGED,
};
enum vmm_share {
	VMM_PRIVATE,
	VMM_SHAREABLE, /* VMM_EXPORT works; not with VMM_MANAGED */
};

/* Who else may reach frames by their addresses on the bus. */
enum vmm_reach {
	VMM_LOCAL,
	VMM_DIRECT, /* disks (GPUDirect), if the device can */
};

struct vmm_conf {
	const struct cuda_api *api; /* outlives the vmm */
	enum vmm_kind kind;
	enum vmm_share share;
	enum vmm_reach reach;
	struct loop *loop;
	int device;
	uint64_t budget_bytes; /* of all frames */
	size_t frame_bytes; /* 0: what the device wants at least */
	uint32_t pool_frames; /* created before they are needed; 0: none */
	uint64_t spare_bytes; /* of the device, to be left to others */
};
/*
 * Take the device: context, thread, a stream to zero with.
 * -ENOTSUP: it has no virtual memory management, no managed memory that works while
 * kernels run, or no handles that can be shared; -EINVAL: frame_bytes is not a
 * multiple of the device's, or no frame fits the budget; -ENOSPC: managed, and the
 * device has not as much free as the budget; -ENODEV; -ENOMEM.
 */
int vmm_open(struct vmm **out, const struct vmm_conf *conf);
/* All spaces are closed and no op is in flight. Blocks. */
void vmm_close(struct vmm *v);
size_t vmm_frame_bytes(const struct vmm *v);
/* The context, for whoever makes calls on another thread. */
cuda_handle vmm_ctx(const struct vmm *v);
/* The device is gone: every op ends with -ENODEV. Any thread. */
int vmm_lost(const struct vmm *v);
/* What runs there cannot be waited for: nothing moves any more, as if it were lost. Any
 * thread. */
void vmm_lose(struct vmm *v);

/*
 * Reserve addresses for n_pages pages of page_bytes, a multiple of the frame's,
 * of tenant (not 0). Blocks for some microseconds. -EINVAL, -ENOMEM (managed: the
 * budget, or what the device has free), -ENODEV.
 */
int vmm_space_open(struct vmm_space **out, struct vmm *v, uint32_t tenant,
		   size_t page_bytes, uint64_t n_pages);
/* No page is MAPPED (unless the device is lost); idle ones wait for their fences.
 * Blocks. */
void vmm_space_close(struct vmm_space *s);
cuda_ptr vmm_space_base(const struct vmm_space *s);
/* Numbers of n consecutive pages, as space_alloc(). Pages in them may be IDLE. */
int64_t vmm_space_alloc(struct vmm_space *s, uint64_t n_pages);
int vmm_space_free(struct vmm_space *s, uint64_t first, uint64_t n_pages);
/* Are all of [first, first + n) MAPPED? Any thread. */
int vmm_ready(const struct vmm_space *s, uint64_t first, uint64_t n);
/* 1: the page could not be unmapped; nothing is mapped there again. Any thread. */
int vmm_stuck(const struct vmm_space *s, uint64_t page);

enum vmm_verb {
	/*
	 * Map what of the run is not mapped: all of it or, when it fails, no more
	 * than before. -ENOSPC: the budget, or the card, is full and nothing is
	 * idle; -ENODEV; others of the driver.
	 */
	VMM_MAP,
	/*
	 * The same, when there is nothing else to do and without waiting for a
	 * fence; what fails will be met again by MAP. -ECANCELED: a DROP of the
	 * space came after it.
	 */
	VMM_AHEAD,
	/* Nobody uses the run after what is queued on streams now. Never fails but
	 * with -ENODEV; done when the fences are set, not when they are passed. */
	VMM_DROP,
	/*
	 * Give memory back to the system: n_bytes, first what lies in the pool, then
	 * idle pages whose fences are passed; 0: only what is missing to spare_bytes.
	 * n_bytes becomes what was given back.
	 */
	VMM_TRIM,
	/*
	 * Descriptors of the memory of MAPPED pages, for another process to map:
	 * fds[n * frames of a page], the caller's; when it fails none. Such memory
	 * is never used for anything else once its page is dropped, but given back to
	 * the system: who has a descriptor, or mapped one, keeps it for as long as it
	 * likes, to read and to write. -ENOTSUP, -EINVAL a page is not MAPPED, -EMFILE.
	 */
	VMM_EXPORT,
};

struct vmm_op {
	enum vmm_verb verb;
	struct vmm_space *space; /* not of TRIM */
	uint64_t first, n; /* pages */
	uint64_t n_bytes; /* TRIM */
	int *fds; /* EXPORT: out */
	cuda_stream streams[VMM_MAX_STREAMS]; /* DROP: of the last users */
	uint32_t n_streams;
	struct wait *waiter; /* told on the loop thread; never NULL */
	struct list node; /* from here on: the vmm's */
	struct loop_call call;
	uint64_t seq;
	int ret;
};
/* Ops of one space take effect in the order of their start, save AHEAD. The op is
 * the caller's again when its waiter is told. */
void vmm_start(struct vmm *v, struct vmm_op *op);

/* An AHEAD that has not begun is a MAP from now on. */
void vmm_hurry(struct vmm *v, struct vmm_op *op);

/* Since the start; n_frames, n_pool, n_idle, n_stuck: frames now. */
struct vmm_counts {
	uint64_t n_frames, n_pool, n_idle, n_stuck;
	uint64_t created, released; /* frames */
	uint64_t maps, set_access, unmaps, zeroings; /* calls */
	uint64_t mapped, unmapped, zeroed; /* frames in them */
	uint64_t exported; /* frames */
	uint64_t revived; /* pages mapped again without a call */
	uint64_t fence_waits; /* a MAP had to wait for a fence */
	uint64_t create_ns, map_ns, set_access_ns, unmap_ns; /* in calls */
};
void vmm_counts(struct vmm *v, struct vmm_counts *out);
/* Until the thread has nothing left to do, frames of the pool included; for tests. */
void vmm_settle(struct vmm *v);
/* Assert the invariants; waits for the thread. */
void vmm_check(struct vmm *v);

#endif
