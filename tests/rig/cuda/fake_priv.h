/*
 * fake_priv.h - what the files of the fake driver share; see fake_cuda.h
 *
 * fake.m guards everything. Streams execute with it held, so no call sees an
 * operation half done.
 */
#ifndef RIG_CUDA_FAKE_PRIV_H
#define RIG_CUDA_FAKE_PRIV_H

#include <pthread.h>
#include "kernels/cuda_api.h"
#include "tests/rig/cuda/fake_cuda.h"

#define FAKE_JUNK 0xcd /* what new device memory is full of */
#define FAKE_MAX  8192 /* handles, maps, ranges: each */

struct fake_mem { /* a handle's memory */
	int used; /* this entry */
	int fd;
	size_t n;
	uint32_t refs; /* handle, imports and maps */
	uint32_t handles; /* of refs: those of the user */
	int foreign; /* imported: another process made it */
};

#define FAKE_MOVE 4096u

struct fake_range { /* reserved, mapped or pinned */
	int used;
	uint64_t at;
	size_t n;
	struct fake_mem *mem;
	int readable; /* access was set */
	int fd; /* of cuMemAlloc(): its memory, also in reserved; else 0 */
	enum { FAKE_PLAIN, FAKE_MANAGED, FAKE_OPENED } kind;
	unsigned char *
		there; /* FAKE_MANAGED: of each FAKE_MOVE, is it on the device? */
	size_t n_there; /* bytes that are */
};

struct fake_op {
	struct fake_op *next;
	enum {
		OP_H2D,
		OP_D2H,
		OP_SET,
		OP_MOVE,
		OP_EVENT,
		OP_WAIT,
		OP_LAUNCH
	} kind;
	uint64_t dev; /* device range [dev, dev + n) */
	void *host;
	size_t n;
	unsigned char value;
	struct fake_event *event;
	uint64_t gen; /* of the event */
	void (*fn)(const void *args); /* LAUNCH: a kernel of gpu.cu */
	char args[512];
	uint32_t grid[3]; /* 0: fn is no kernel, and is called once */
	uint32_t shared; /* bytes */
};

struct fake_stream {
	struct fake_stream *next;
	struct fake_op *head, **tail;
	pthread_t thread;
	int closing;
	int err; /* for its next events */
	struct fake_graph *capture; /* what is queued goes there; NULL: not */
};

/* Operations in order; what a capture has made, or an instance of that. */
struct fake_graph {
	struct fake_op *ops;
	uint32_t n, room;
	int broken; /* something came that cannot be captured */
};
/* At the end of the capture. CUresult. */
int fake_captured(struct fake_stream *s, const struct fake_op *op);

struct fake_event_state {
	_Atomic uint64_t recorded; /* generations: queued */
	_Atomic uint64_t done; /* and executed */
	int err;
};

struct fake_event {
	struct fake_event *next;
	struct fake_event_state own, *s; /* s: own, or shared by processes */
	int fd; /* of what is shared; else 0 */
	int opened; /* another process made it */
};

struct fake {
	pthread_mutex_t m;
	pthread_cond_t changed;
	uint64_t total, others, used;
	size_t granularity;
	struct fake_mem mem[FAKE_MAX];
	struct fake_range reserved[FAKE_MAX], maps[FAKE_MAX], pinned[FAKE_MAX];
	struct fake_stream *streams;
	struct fake_event *events;
	int n_shared_events;
	struct fake_stats st;
	int lost;
	int held;
	uint32_t steps;
	uint64_t fail_nth;
	int fail_err, fail_for_good;
	enum fake_mode mode;
	char prefix[48];
	uint64_t nth, count;
	int err;
};
extern struct fake fake;

/* 1: the file of $FAKE_CUDA_LOST is there: the device of a daemon is to be lost. */
int fake_told_lost(void);
/* 1: the thread has no context, and the call wants one. */
int fake_lacks_context(const char *symbol);
/* Locks, counts the call and decides its fate: 0, or a CUresult; then it is not
 * locked. */
int fake_enter(const char *symbol);
int fake_leave(int result);
/* An unused entry of list, taken; NULL: there is none. */
struct fake_range *fake_range_new(struct fake_range *list);
/* The mapped range that holds at, or NULL. */
struct fake_range *fake_map_of(uint64_t at);
/* All of it mapped with access. */
int fake_usable(uint64_t at, size_t n);
int fake_is_pinned(const void *p, size_t n);
/* At the end of a stream. CUresult. */
int fake_queue(struct fake_stream *s, struct fake_op op);
/* Is something queued that uses [at, at + n)? */
int fake_in_use(uint64_t at, size_t n);
/* Until something changed; with shared events also now and then. */
void fake_wait(void);
struct fake_event *fake_event_new(void);
void fake_event_free(struct fake_event *e);
/* Memory that another process can open: its descriptor > 0, mapped at *out. */
int fake_share_new(size_t n, void **out);
/* Of an allocation of n bytes, and what guards it. */
void fake_alloc_unmap(uint64_t at, size_t n);
/* Ends all streams, frees all events. */
void fake_end_streams(void);

#endif
