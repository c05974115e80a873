/*
 * vmm_cuda.c - ops, the thread that does them, spaces; see vmm_cuda.h
 */
#include "kvd/mem/vmm_cuda.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/sys.h"
#include "kvd/base/log.h"
#include "kvd/mem/vmm_priv.h"

/* ---- MAP, AHEAD ------------------------------------------------------------ */

/* Fences of the run's IDLE pages. */
static int wait_idle(struct vmm_space *s, uint64_t first, uint64_t n,
		     enum vmm_wait wait)
{
	struct vmm *v = s->vmm;
	struct vmm_batch *b = NULL;

	for (uint64_t i = first; i < first + n; i++) {
		const struct vmm_page *p = &s->pages[i];
		int ret;

		if (vmm_state(p) != VMM_IDLE || p->batch == b)
			continue;
		b = p->batch;
		ret = vmm_batch_over(v, b, VMM_NO_WAIT);
		if (ret == -EAGAIN && wait == VMM_WAIT) {
			v->n.fence_waits++;
			ret = vmm_batch_over(v, b, VMM_WAIT);
		}
		if (ret)
			return ret;
	}
	return 0;
}

/* IDLE pages of the run out of their batches: nobody reclaims them. */
static void hold_idle(struct vmm_space *s, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++) {
		struct vmm_page *p = &s->pages[i];

		if (vmm_state(p) != VMM_IDLE)
			continue;
		if (!--p->batch->n_idle)
			vmm_batch_free(s->vmm, p->batch);
		p->batch = NULL;
	}
}

/* For pages that are dropped together. NULL: no memory. */
static struct vmm_batch *batch_new(struct vmm_space *s, uint64_t first,
				   uint64_t n)
{
	struct vmm_batch *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->space = s;
	b->first = first;
	b->n = n;
	list_push(&s->vmm->batches, &b->node);
	return b;
}

/* The MAP failed: held pages are IDLE again; their fences are passed. */
static void unhold(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm_batch *b = batch_new(s, first, n);

	for (uint64_t i = first; i < first + n; i++) {
		struct vmm_page *p = &s->pages[i];

		if (vmm_state(p) != VMM_IDLE || p->batch)
			continue;
		if (b) {
			p->batch = b;
			b->n_idle++;
		} else {
			s->vmm->n.n_idle -= s->page_frames;
			(void)vmm_unmap(s, i, 1); /* or it is STUCK */
		}
	}
	if (b && !b->n_idle)
		vmm_batch_free(s->vmm, b);
}

static void revive(struct vmm_space *s, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++) {
		if (vmm_state(&s->pages[i]) != VMM_IDLE)
			continue;
		s->vmm->n.n_idle -= s->page_frames;
		s->vmm->n.revived++;
		vmm_set(&s->pages[i], VMM_MAPPED);
	}
}

/* At least n frames in the pool. */
static int fill_pool(struct vmm *v, uint64_t n, enum vmm_wait wait)
{
	while (v->n.n_pool < n) {
		int ret = vmm_frame_create(v);
		int64_t k;

		if (!ret)
			continue;
		if (ret != -ENOSPC && ret != -ENOMEM)
			return ret;
		k = vmm_reclaim(v, n - v->n.n_pool, VMM_NO_WAIT);
		if (!k && wait == VMM_WAIT) {
			v->n.fence_waits++;
			k = vmm_reclaim(v, n - v->n.n_pool, VMM_WAIT);
		}
		if (k <= 0)
			return k ? (int)k : -ENOSPC;
	}
	return 0;
}

/* IDLE pages whose memory others may have, their fences passed: they become EMPTY. */
static void expel(struct vmm_space *s, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++) {
		struct vmm_page *p = &s->pages[i];

		if (vmm_state(p) != VMM_IDLE || !vmm_is_exported(s, i))
			continue;
		if (!--p->batch->n_idle)
			vmm_batch_free(s->vmm, p->batch);
		p->batch = NULL;
		s->vmm->n.n_idle -= s->page_frames;
		(void)vmm_unmap(s, i, 1); /* or it is STUCK */
	}
}

/* How many pages of the run are EMPTY; -EIO: one is STUCK. */
static int64_t count_empty(const struct vmm_space *s, uint64_t first,
			   uint64_t n)
{
	int64_t n_empty = 0;

	for (uint64_t i = first; i < first + n; i++) {
		if (vmm_state(&s->pages[i]) == VMM_STUCK)
			return -EIO;
		n_empty += vmm_state(&s->pages[i]) == VMM_EMPTY;
	}
	return n_empty;
}

static int do_map(struct vmm_op *op, enum vmm_wait wait)
{
	struct vmm_space *s = op->space;
	int64_t n_empty = count_empty(s, op->first, op->n);
	int ret;

	if (n_empty < 0)
		return (int)n_empty;
	s->vmm->no_topup = 0;
	ret = wait_idle(s, op->first, op->n, wait);
	if (ret)
		return ret;
	expel(s, op->first, op->n);
	n_empty = count_empty(s, op->first, op->n);
	if (n_empty < 0)
		return (int)n_empty;
	hold_idle(s, op->first, op->n);
	ret = fill_pool(s->vmm, (uint64_t)n_empty * s->page_frames, wait);
	if (!ret && n_empty)
		ret = vmm_map_empty(s, op->first, op->n);
	if (ret)
		unhold(s, op->first, op->n);
	else
		revive(s, op->first, op->n);
	return ret;
}

/* ---- DROP ------------------------------------------------------------------- */

/* An event behind what is queued on st; where that fails, the end of st itself. */
static int fence(struct vmm *v, struct vmm_batch *b, cuda_stream st)
{
	cuda_event e;
	int ret = 0;

	if (v->n_events)
		e = v->events[--v->n_events];
	else
		ret = vmm_result(
			v, "cuEventCreate",
			v->cu->event_new(&e, CUDA_EVENT_DISABLE_TIMING |
						     CUDA_EVENT_BLOCKING_SYNC));
	if (!ret) {
		ret = vmm_result(v, "cuEventRecord",
				 v->cu->event_record(e, st));
		if (!ret) {
			b->events[b->n_events++] = e;
			return 0;
		}
		v->events[v->n_events++] = e;
	}
	return vmm_result(v, "cuStreamSynchronize", v->cu->stream_sync(st));
}

/* Neither event nor stream tells when: the pages are lost. */
static void stick(struct vmm_space *s, uint64_t i)
{
	vmm_set(&s->pages[i], VMM_STUCK);
	s->vmm->n.n_stuck += s->page_frames;
}

static int do_drop(struct vmm_op *op)
{
	struct vmm_space *s = op->space;
	struct vmm *v = s->vmm;
	struct vmm_batch *b = batch_new(s, op->first, op->n);
	int known = 1;

	for (uint32_t i = 0; i < op->n_streams; i++) {
		int ret = b ? fence(v, b, op->streams[i])
			    : vmm_result(v, "cuStreamSynchronize",
					 v->cu->stream_sync(op->streams[i]));

		known &= !ret;
	}
	if (!known)
		log_error("vmm", "no fence behind %llu pages: they are stuck",
			  (unsigned long long)op->n);
	for (uint64_t i = op->first; i < op->first + op->n; i++) {
		const enum vmm_state st = vmm_state(&s->pages[i]);

		if (st != VMM_MAPPED && st != VMM_DROPPING)
			continue;
		if (!known) {
			stick(s, i);
			continue;
		}
		v->n.n_idle += s->page_frames;
		s->pages[i].batch = b;
		vmm_set(&s->pages[i], VMM_IDLE);
		if (b)
			b->n_idle++;
	}
	if (b && !b->n_idle)
		vmm_batch_free(v, b);
	else if (!b && known)
		unhold(s, op->first, op->n); /* the streams were waited for */
	return atomic_load(&v->lost) ? -ENODEV : 0;
}

/* ---- TRIM ------------------------------------------------------------------ */

static void trim(struct vmm *v, uint64_t n_bytes, uint64_t *given)
{
	const size_t fb = v->conf.frame_bytes;
	const uint64_t n = n_bytes / fb + !!(n_bytes % fb);
	const uint64_t before = v->n.released, unmapped = v->n.unmapped;
	uint64_t done = 0;

	/* of managed memory only what goes to the host is given */
	if (v->conf.kind == VMM_MAPPED_FRAMES)
		done = vmm_frames_release(v, n);
	if (done < n && vmm_reclaim(v, n - done, VMM_NO_WAIT) > 0)
		(void)vmm_frames_release(v, n - done);
	if (n)
		v->no_topup = 1;
	*given = fb * (v->conf.kind == VMM_MANAGED ? v->n.unmapped - unmapped
						   : v->n.released - before);
}

static int do_trim(struct vmm *v, struct vmm_op *op)
{
	trim(v, op->n_bytes ? op->n_bytes : vmm_missing_bytes(v), &op->n_bytes);
	return atomic_load(&v->lost) ? -ENODEV : 0;
}

/* ---- EXPORT ---------------------------------------------------------------- */

static int do_export(struct vmm_op *op)
{
	if (op->space->vmm->conf.share != VMM_SHAREABLE)
		return -ENOTSUP;
	if (!vmm_ready(op->space, op->first, op->n))
		return -EINVAL;
	return vmm_frames_export(op->space, op->first, op->n, op->fds);
}

/* ---- the thread ------------------------------------------------------------ */

static int handle(struct vmm *v, struct vmm_op *op)
{
	uint64_t given;
	int ret;

	if (atomic_load(&v->lost))
		return -ENODEV;
	switch (op->verb) {
	case VMM_MAP:
		return do_map(op, VMM_WAIT);
	case VMM_AHEAD:
		return do_map(op, VMM_NO_WAIT);
	case VMM_DROP:
		ret = do_drop(op);
		given = vmm_missing_bytes(v);
		if (given)
			trim(v, given, &given);
		return ret;
	case VMM_TRIM:
		return do_trim(v, op);
	case VMM_EXPORT:
		return do_export(op);
	}
	return -EINVAL;
}

static void tell(struct loop_call *c)
{
	struct vmm_op *op = container_of(c, struct vmm_op, call);

	op->waiter->done(op->waiter, op->ret);
}

static void finish(struct vmm *v, struct vmm_op *op, int ret)
{
	op->ret = ret;
	op->call.run = tell;
	loop_post(v->conf.loop, &op->call);
}

/* What was to be mapped ahead of drop, and must not be behind it. Called with m
 * held. */
static void take_stale(struct vmm *v, const struct vmm_op *drop,
		       struct list *stale)
{
	list_for_each_safe(it, &v->ahead) {
		struct vmm_op *op = list_entry(it, struct vmm_op, node);

		if (op->space != drop->space || op->seq > drop->seq)
			continue;
		list_del(&op->node);
		list_push(stale, &op->node);
	}
}

/* Called with m held. */
static struct vmm_op *next_op(struct vmm *v, struct list *stale)
{
	struct list *n = list_pop(&v->urgent);
	struct vmm_op *op;

	if (!n)
		n = list_pop(&v->ahead);
	if (!n)
		return NULL;
	op = list_entry(n, struct vmm_op, node);
	if (op->verb == VMM_DROP)
		take_stale(v, op, stale);
	return op;
}

static void show(struct vmm *v)
{
	pthread_mutex_lock(&v->m);
	v->shown = v->n;
	pthread_mutex_unlock(&v->m);
}

/* m is not held. */
static void do_op(struct vmm *v, struct vmm_op *op, struct list *stale)
{
	struct list *n;
	int ret;

	while ((n = list_pop(stale)))
		finish(v, list_entry(n, struct vmm_op, node), -ECANCELED);
	ret = handle(v, op);
	show(v); /* who is told finds it counted */
	finish(v, op, ret);
}

/* One frame more for the pool, if it wants one. 1: ask again. */
static int top_up(struct vmm *v)
{
	if (v->no_topup || v->n.n_pool >= v->conf.pool_frames ||
	    v->none == VMM_NO_FRAME || atomic_load(&v->lost))
		return 0;
	if (vmm_missing_bytes(v) || vmm_frame_create(v)) {
		v->no_topup = 1;
		return 0;
	}
	return 1;
}

static void *vmm_main(void *arg)
{
	struct vmm *v = arg;
	struct vmm_op *op;
	struct list stale;
	int more;

	list_init(&stale);
	(void)vmm_result(v, "cuCtxSetCurrent", v->cu->ctx_set(v->ctx));
	pthread_mutex_lock(&v->m);
	for (;;) {
		op = next_op(v, &stale);
		if (!op && v->stop)
			break;
		pthread_mutex_unlock(&v->m);
		more = 1;
		if (op)
			do_op(v, op, &stale);
		else
			more = top_up(v);
		pthread_mutex_lock(&v->m);
		if (more || !list_empty(&v->urgent) || !list_empty(&v->ahead))
			continue;
		v->shown = v->n;
		v->is_idle = 1;
		pthread_cond_broadcast(&v->idle);
		while (list_empty(&v->urgent) && list_empty(&v->ahead) &&
		       !v->stop)
			pthread_cond_wait(&v->work, &v->m);
		v->is_idle = 0;
	}
	pthread_mutex_unlock(&v->m);
	return NULL;
}

/* DROPPING here and now: who asks after this must not find the page ready. */
static void mark(const struct vmm_op *op)
{
	for (uint64_t i = op->first; i < op->first + op->n; i++)
		if (vmm_state(&op->space->pages[i]) == VMM_MAPPED)
			vmm_set(&op->space->pages[i], VMM_DROPPING);
}

void vmm_start(struct vmm *v, struct vmm_op *op)
{
	assert(op->verb == VMM_TRIM ||
	       (op->first <= op->space->n_pages &&
		op->n <= op->space->n_pages - op->first));
	if (op->verb == VMM_DROP)
		mark(op);
	pthread_mutex_lock(&v->m);
	op->seq = ++v->next_op;
	list_push(op->verb == VMM_AHEAD ? &v->ahead : &v->urgent, &op->node);
	v->is_idle = 0;
	pthread_cond_signal(&v->work);
	pthread_mutex_unlock(&v->m);
}

void vmm_hurry(struct vmm *v, struct vmm_op *op)
{
	pthread_mutex_lock(&v->m);
	list_for_each_safe(it, &v->ahead) {
		if (it != &op->node)
			continue;
		list_del(it);
		op->verb = VMM_MAP;
		list_push(&v->urgent, it);
	}
	pthread_mutex_unlock(&v->m);
}

void vmm_settle(struct vmm *v)
{
	pthread_mutex_lock(&v->m);
	while (!v->is_idle)
		pthread_cond_wait(&v->idle, &v->m);
	pthread_mutex_unlock(&v->m);
}

void vmm_counts(struct vmm *v, struct vmm_counts *out)
{
	pthread_mutex_lock(&v->m);
	*out = v->shown;
	pthread_mutex_unlock(&v->m);
}

/* ---- spaces ---------------------------------------------------------------- */

int vmm_space_open(struct vmm_space **out, struct vmm *v, uint32_t tenant,
		   size_t page_bytes, uint64_t n_pages)
{
	struct vmm_space *s;
	uint64_t n_slots;
	int ret = -ENOMEM;

	if (!tenant || !page_bytes || !n_pages ||
	    page_bytes % v->conf.frame_bytes || n_pages > SIZE_MAX / page_bytes)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->vmm = v;
	s->tenant = tenant;
	s->page_bytes = page_bytes;
	s->page_frames = (uint32_t)(page_bytes / v->conf.frame_bytes);
	s->n_pages = n_pages;
	n_slots = n_pages * s->page_frames;
	s->pages = calloc(n_pages, sizeof(*s->pages));
	s->frames = malloc(n_slots * sizeof(*s->frames));
	if (!s->pages || !s->frames || extents_init(&s->free, n_pages))
		goto fail;
	memset(s->frames, 0xff, n_slots * sizeof(*s->frames));
	ret = vmm_result(v, "cuCtxSetCurrent", v->cu->ctx_set(v->ctx));
	if (!ret)
		ret = vmm_result(v, "cuMemAddressReserve", v->ops->reserve(s));
	if (ret)
		goto fail;
	pthread_mutex_lock(&v->m);
	list_push(&v->spaces, &s->node);
	pthread_mutex_unlock(&v->m);
	*out = s;
	return 0;
fail:
	extents_fini(&s->free);
	free(s->frames);
	free(s->pages);
	free(s);
	return ret;
}

static void end_batches(struct vmm_space *s)
{
	struct vmm *v = s->vmm;

	list_for_each_safe(it, &v->batches) {
		struct vmm_batch *b = list_entry(it, struct vmm_batch, node);

		if (b->space != s)
			continue;
		if (!atomic_load(&v->lost))
			(void)vmm_batch_over(v, b,
					     VMM_WAIT); /* or it is lost */
		vmm_batch_free(v, b);
	}
}

/* Whatever still has frames; the thread is idle. */
static void unmap_all(struct vmm_space *s)
{
	struct vmm *v = s->vmm;
	uint64_t n;

	for (uint64_t i = 0; i < s->n_pages; i += n + !n) {
		for (n = 0; i + n < s->n_pages &&
			    vmm_state(&s->pages[i + n]) == VMM_IDLE;
		     n++)
			v->n.n_idle -= s->page_frames;
		if (n && !atomic_load(&v->lost))
			(void)vmm_unmap(s, i, n); /* or they are STUCK */
	}
	for (uint64_t i = 0; i < s->n_pages; i++)
		assert(atomic_load(&v->lost) ||
		       vmm_state(&s->pages[i]) == VMM_EMPTY ||
		       vmm_state(&s->pages[i]) == VMM_STUCK);
	for (uint64_t i = 0; i < s->n_pages * s->page_frames; i++)
		v->n_orphans += s->frames[i] != VMM_NO_FRAME;
}

void vmm_space_close(struct vmm_space *s)
{
	struct vmm *v;

	if (!s)
		return;
	v = s->vmm;
	vmm_settle(v);
	(void)vmm_result(v, "cuCtxSetCurrent", v->cu->ctx_set(v->ctx));
	end_batches(s);
	unmap_all(s);
	/* with a stuck page in it, it stays */
	if (vmm_result(v, "cuMemAddressFree", v->ops->unreserve(s)))
		log_warn("vmm", "%llu bytes of addresses stay reserved",
			 (unsigned long long)(s->n_pages * s->page_bytes));
	pthread_mutex_lock(&v->m);
	list_del(&s->node);
	pthread_mutex_unlock(&v->m);
	show(v);
	extents_fini(&s->free);
	free(s->frames);
	free(s->pages);
	free(s);
}

cuda_ptr vmm_space_base(const struct vmm_space *s)
{
	return s->base;
}

int64_t vmm_space_alloc(struct vmm_space *s, uint64_t n_pages)
{
	return extents_take(&s->free, n_pages);
}

int vmm_space_free(struct vmm_space *s, uint64_t first, uint64_t n_pages)
{
	const uint64_t end = first + n_pages;
	int ret = 0;

	/* addresses that are stuck are nobody's again */
	for (uint64_t i = first, n; i < end && !ret; i += n + 1) {
		for (n = 0;
		     i + n < end && vmm_state(&s->pages[i + n]) != VMM_STUCK;
		     n++)
			;
		if (n)
			ret = extents_give(&s->free, i, n);
	}
	return ret;
}

int vmm_ready(const struct vmm_space *s, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		if (vmm_state(&s->pages[i]) != VMM_MAPPED)
			return 0;
	return 1;
}

int vmm_stuck(const struct vmm_space *s, uint64_t page)
{
	return vmm_state(&s->pages[page]) == VMM_STUCK;
}

/* ---- open, close ----------------------------------------------------------- */

static int has(struct vmm *v, int attr)
{
	int is = 0;
	const int ret = vmm_result(v, "cuDeviceGetAttribute",
				   v->cu->device_attr(&is, attr, v->dev));

	return ret ? ret : is ? 0 : -ENOTSUP;
}

/* The context, what the device can do, and what a frame is. */
static int probe(struct vmm *v)
{
	const struct cuda_api *cu = v->cu;
	int ret, rdma = -ENOTSUP; /* without it reads go another way */
	size_t least = 0;

	ret = vmm_result(v, "cuDeviceGet",
			 cu->device_get(&v->dev, v->conf.device));
	if (!ret && v->conf.kind == VMM_MAPPED_FRAMES)
		ret = has(v, CUDA_ATTR_VMM);
	if (!ret && v->conf.share == VMM_SHAREABLE)
		ret = v->conf.kind == VMM_MANAGED ? -ENOTSUP
						  : has(v, CUDA_ATTR_POSIX_FD);
	if (!ret && v->conf.reach == VMM_DIRECT)
		rdma = has(v, CUDA_ATTR_RDMA_VMM);
	if (!ret)
		ret = vmm_result(v, "cuDevicePrimaryCtxRetain",
				 cu->ctx_retain(&v->ctx, v->dev));
	if (ret)
		return ret;
	v->prop = (struct cuda_mem_prop){
		.type = CUDA_ALLOCATION_PINNED,
		.handle_types = v->conf.share == VMM_SHAREABLE
					? CUDA_HANDLE_POSIX_FD
					: 0,
		.location = { CUDA_LOCATION_DEVICE, v->dev },
		.rdma = !rdma,
	};
	v->access =
		(struct cuda_access){ v->prop.location, CUDA_PROT_READWRITE };
	ret = vmm_result(v, "cuCtxSetCurrent", cu->ctx_set(v->ctx));
	if (!ret && v->conf.kind == VMM_MANAGED)
		ret = vmm_uvm_probe(v, &least);
	else if (!ret)
		ret = vmm_result(v, "cuMemGetAllocationGranularity",
				 cu->granularity(&least, &v->prop,
						 CUDA_GRANULARITY_MINIMUM));
	if (ret)
		return ret;
	if (!v->conf.frame_bytes)
		v->conf.frame_bytes = least;
	if (!least || v->conf.frame_bytes % least)
		return -EINVAL;
	return 0;
}

static int make_frames(struct vmm *v)
{
	const uint64_t n = v->conf.budget_bytes / v->conf.frame_bytes;

	if (!n || n >= VMM_NO_FRAME)
		return -EINVAL;
	v->frames = calloc(n, sizeof(*v->frames));
	if (!v->frames)
		return -ENOMEM;
	v->max_frames = (uint32_t)n;
	for (uint32_t i = 0; i < v->max_frames; i++)
		v->frames[i].next = i + 1 < v->max_frames ? i + 1
							  : VMM_NO_FRAME;
	v->none = 0;
	v->pool = VMM_NO_FRAME;
	return 0;
}

/* All that vmm_open() made, as far as it came. */
static void fini(struct vmm *v)
{
	const struct cuda_api *cu = v->cu;

	if (v->ctx)
		(void)vmm_result(v, "cuCtxSetCurrent", cu->ctx_set(v->ctx));
	if (v->frames)
		(void)vmm_frames_release(v, UINT64_MAX);
	while (v->n_events)
		(void)vmm_result(v, "cuEventDestroy",
				 cu->event_free(v->events[--v->n_events]));
	if (v->zero)
		(void)vmm_result(v, "cuStreamDestroy",
				 cu->stream_free(v->zero));
	if (v->ctx)
		(void)vmm_result(v, "cuDevicePrimaryCtxRelease",
				 cu->ctx_release(v->dev));
	pthread_cond_destroy(&v->idle);
	pthread_cond_destroy(&v->work);
	pthread_mutex_destroy(&v->m);
	free(v->frames);
	free(v);
}

int vmm_open(struct vmm **out, const struct vmm_conf *conf)
{
	struct vmm *v = calloc(1, sizeof(*v));
	int ret;

	if (!v)
		return -ENOMEM;
	v->conf = *conf;
	v->cu = conf->api;
	v->ops = conf->kind == VMM_MANAGED ? &vmm_uvm_backend
					   : &vmm_frames_backend;
	list_init(&v->urgent);
	list_init(&v->ahead);
	list_init(&v->spaces);
	list_init(&v->batches);
	pthread_mutex_init(&v->m, NULL);
	pthread_cond_init(&v->work, NULL);
	pthread_cond_init(&v->idle, NULL);
	ret = probe(v);
	if (!ret)
		ret = make_frames(v);
	if (!ret)
		ret = vmm_result(v, "cuStreamCreate",
				 v->cu->stream_new(&v->zero,
						   CUDA_STREAM_NON_BLOCKING,
						   0));
	if (!ret)
		ret = kio_sys_thread(&v->thread, vmm_main, v, "kvd-vmm");
	if (ret) {
		fini(v);
		return ret;
	}
	*out = v;
	return 0;
}

void vmm_close(struct vmm *v)
{
	if (!v)
		return;
	assert(list_empty(&v->spaces));
	pthread_mutex_lock(&v->m);
	v->stop = 1;
	pthread_cond_signal(&v->work);
	pthread_mutex_unlock(&v->m);
	pthread_join(v->thread, NULL);
	fini(v);
}

size_t vmm_frame_bytes(const struct vmm *v)
{
	return v->conf.frame_bytes;
}

cuda_handle vmm_ctx(const struct vmm *v)
{
	return v->ctx;
}

int vmm_lost(const struct vmm *v)
{
	return atomic_load(&v->lost);
}
