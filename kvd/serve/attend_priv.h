/*
 * attend_priv.h - what attend.c, attend_event.c and attend_room.c share
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_ATTEND_PRIV_H
#define KVD_SERVE_ATTEND_PRIV_H

#include "kvd/serve/tenant.h"

struct attend_item {
	struct session_seq *s; /* NULL: refused or done */
	struct attn_shape shape;
	uint64_t old_tokens; /* of the sequence before it grew */
	int grown;
	void *after; /* event of the buffer it names, until that has passed */
};

struct attend {
	struct engine_job job;
	struct lane *lane; /* of the round */
	struct waiter waiter;
	struct list node; /* of all attends waiting: cancelling */
	struct loop_call call;
	struct loop_timer timer; /* EVENTS: when they are looked at again */
	uint64_t event_until_ns, event_every_ns;
	struct serve_session *ss;
	struct serve_attend *req;
	struct attend_item *items; /* [req->n_items] */
	struct attn_item *work; /* of the round */
	uint32_t n_work;
	uint32_t n_copied; /* of work: what was to be copied first has been */
	uint32_t *work_item; /* index of its item */
	uint32_t n_items_room; /* of these three */
	uint32_t i_item, row; /* mode ONE: where it stands */
	int one_by_one;
	int counted; /* in the tenant's n_requests, else n_uncounted */
	int in_line;
	int no_room; /* in line, until a client gives back what it has */
	int cancelled;
	int ended; /* tell() is on its way */
	uint64_t reserved;
	struct page_want want;
	struct page_run *runs;
	uint32_t n_runs, n_room;
	int ret;
};

/* Item i ends with err, as if it had not been asked for. */
void attend_fail(struct attend *a, uint32_t i, int err);
/*
 * Room for all items: 0 (those that cannot have it have failed); or all wait and none holds any:
 * -EAGAIN what ends by itself gives some back, -EBUSY another client may.
 */
int attend_grow(struct attend *a);
/* The sequence is as it was before the call; of all items. */
void attend_ungrow(struct attend_item *it);
void attend_ungrow_all(struct attend *a);
/* Into the line; everything it waits for is there. */
void attend_admit(struct attend *a);
/* The same when the events of its items have passed, or have not for too long. */
void attend_events(struct attend *a);

#endif
