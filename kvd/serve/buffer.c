/*
 * buffer.c - device memory of clients, for attention calls without a copy
 *
 * A buffer is what cuIpcOpenMemHandle() makes of a client's handle, and an event of it.
 *
 *  (1) Only allocations of another process: the driver refuses this one's own, and kvd
 *      never makes handles of its memory.
 *  (2) What a call names lies in the allocation, as the driver knows it.
 *  (3) A buffer is closed when no call uses it, at the latest when its session is freed.
 *
 * Whose memory it is the driver does not say: a client can name what another process
 * of the host told it a handle of. So only for tenants with device_share.
 *
 * Loop thread; handles are opened on a worker.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/tenant.h"

#define MAX_BUFFERS 64u /* of a session */

struct buffer {
	struct list node; /* of the session's */
	uint32_t id;
	uint32_t n_uses;
	cuda_ptr at;
	size_t n_bytes;
	cuda_event event; /* NULL: none */
};

struct job {
	struct loop_work work;
	struct serve_session *ss;
	struct serve_buffer *req;
	struct buffer *b;
	struct device *device;
	int ret;
};

static void close_buffer(struct device *d, struct buffer *b)
{
	const struct cuda_api *cu = device_api(d);

	/* a device that is lost has closed them */
	if (!cu->ctx_set(device_ctx(d))) {
		if (b->event)
			(void)cu->event_free(b->event);
		if (b->at)
			(void)cu->ipc_close(b->at);
	}
	free(b);
}

/* What a hostile handle does to the driver is its error. */
static int open_handles(struct job *j)
{
	const struct cuda_api *cu = device_api(j->device);
	struct buffer *b = j->b;
	cuda_ptr base, at;
	size_t n;
	int r = cu->ctx_set(device_ctx(j->device));

	if (!r)
		r = cu->ipc_open(&at, j->req->memory, CUDA_IPC_LAZY_PEER);
	if (r)
		return kern_errno(r);
	b->at = at;
	r = cu->range_of(&base, &n, at);
	if (!r && (base > at || j->req->n_bytes > n - (at - base)))
		return -EINVAL;
	if (!r && j->req->with_event)
		r = cu->ipc_event_open(&b->event, j->req->event);
	return kern_errno(r);
}

static void run(struct loop_work *w)
{
	struct job *j = container_of(w, struct job, work);

	j->ret = open_handles(j);
	/* of a handle only a device that is lost is more than a bad handle */
	if (j->ret && j->ret != -ENODEV && j->ret != -ENOMEM)
		j->ret = -EINVAL;
}

static void done(struct loop_work *w)
{
	struct job *j = container_of(w, struct job, work);
	struct serve_session *ss = j->ss;
	struct serve_buffer *req = j->req;
	int ret = j->ret;

	if (!ret && ss->closing)
		ret = -ECANCELED;
	if (ret) {
		ss->n_buffers--;
		close_buffer(j->device, j->b);
	} else {
		list_push(&ss->buffers, &j->b->node);
		tenant_count_exports(ss->tenant, 0, 0, 1);
		req->id = j->b->id;
	}
	free(j);
	req->wait.done(&req->wait, ret);
	session_request_end(ss);
}

int serve_buffer(struct serve_session *ss, struct serve_buffer *req)
{
	struct device *d = pager_device(ss->tenant->pager);
	struct job *j;

	if (!serve_can_export(ss->tenant) || !d)
		return -ENOTSUP;
	if (!req->n_bytes)
		return -EINVAL;
	if (ss->n_buffers == MAX_BUFFERS)
		return -EDQUOT;
	j = calloc(1, sizeof(*j));
	if (j)
		j->b = calloc(1, sizeof(*j->b));
	if (!j || !j->b) {
		free(j);
		return -ENOMEM;
	}
	j->ss = ss;
	j->req = req;
	j->device = d;
	j->b->id = ++ss->next_buffer;
	j->b->n_bytes = req->n_bytes;
	ss->n_buffers++;
	session_request_begin(ss);
	j->work.run = run;
	j->work.done = done;
	j->work.slow = 1;
	loop_work_start(ss->tenant->serve->loop, &j->work);
	return 0;
}

static struct buffer *find(struct serve_session *ss, uint32_t id)
{
	list_for_each(l, &ss->buffers) {
		struct buffer *b = list_entry(l, struct buffer, node);

		if (b->id == id)
			return b;
	}
	return NULL;
}

int serve_buffer_free(struct serve_session *ss, uint32_t id)
{
	struct buffer *b = find(ss, id);

	if (!b)
		return -ENOENT;
	if (b->n_uses)
		return -EBUSY;
	list_del(&b->node);
	ss->n_buffers--;
	tenant_count_exports(ss->tenant, 0, 0, -1);
	close_buffer(pager_device(ss->tenant->pager), b);
	return 0;
}

void *serve_buffer_at(struct serve_session *ss, uint32_t id, uint64_t off,
		      uint64_t n)
{
	const struct buffer *b = find(ss, id);

	return b && off <= b->n_bytes && n <= b->n_bytes - off
		       ? (void *)(uintptr_t)(b->at + off)
		       : NULL;
}

void *buffer_use(struct serve_session *ss, uint32_t id)
{
	struct buffer *b = find(ss, id);

	if (!b)
		return NULL;
	b->n_uses++;
	return b->event;
}

int buffer_event_passed(struct serve_session *ss, void *event)
{
	struct device *d = pager_device(ss->tenant->pager);
	const struct cuda_api *cu = device_api(d);
	const int r = cu->ctx_set(device_ctx(d));

	return kern_errno(r ? r : cu->event_query(event));
}

void buffer_let_go(struct serve_session *ss, uint32_t id)
{
	struct buffer *b = find(ss, id);

	if (b)
		b->n_uses--;
}

void session_free_buffers(struct serve_session *ss)
{
	struct list *l;

	while ((l = list_pop(&ss->buffers))) {
		tenant_count_exports(ss->tenant, 0, 0, -1);
		close_buffer(pager_device(ss->tenant->pager),
			     list_entry(l, struct buffer, node));
	}
	ss->n_buffers = 0;
}
