/*
 * vmm_uvm.c - managed memory under the same spaces; see vmm_cuda.h, VMM_MANAGED
 *
 * A space is one allocation; a frame is a piece of the budget and has no memory of
 * its own. The device pages it by itself; MAP asks for that ahead of use. A device
 * that is asked for more managed memory than it has free can stop answering, so
 * what is allocated never exceeds that, nor the budget: memory nobody has touched counts.
 *
 * Thread: as vmm_frames.c; reserve and unreserve on the loop thread.
 */
#include <errno.h>
#include "kvd/mem/vmm_priv.h"

#define LEAST (2u << 20) /* what the driver migrates at once */

/* Bytes that may be allocated now, of the device. */
static int room(struct vmm *v, uint64_t *out)
{
	size_t n_free = 0, total = 0;
	const int r = v->cu->mem_info(&n_free, &total);

	*out = n_free > v->conf.spare_bytes ? n_free - v->conf.spare_bytes : 0;
	return r;
}

int vmm_uvm_probe(struct vmm *v, size_t *least)
{
	uint64_t n;
	int has = 0;
	int ret = vmm_result(
		v, "cuDeviceGetAttribute",
		v->cu->device_attr(&has, CUDA_ATTR_MANAGED_CONCURRENT, v->dev));

	if (ret)
		return ret;
	if (!has)
		return -ENOTSUP;
	ret = vmm_result(v, "cuMemGetInfo", room(v, &n));
	if (ret)
		return ret;
	if (n < v->conf.budget_bytes)
		return -ENOSPC;
	ret = vmm_result(v, "cuDeviceGetAttribute",
			 v->cu->device_attr(&has, CUDA_ATTR_VMM, v->dev));
	if (ret)
		return ret;
	*least = LEAST;
	if (!has)
		return 0;
	return vmm_result(
		v, "cuMemGetAllocationGranularity",
		v->cu->granularity(least, &v->prop, CUDA_GRANULARITY_MINIMUM));
}

/*
 * Bytes of spaces that the device counts as free, as no page of them has come to it.
 * What is being prefetched is not there yet.
 */
static uint64_t not_there_yet(struct vmm *v)
{
	struct vmm_counts n;
	uint64_t there;

	vmm_counts(v, &n);
	there = (n.n_frames - n.n_pool) * v->conf.frame_bytes;
	return v->managed_bytes - KV_MIN(there, v->managed_bytes);
}

static int uvm_reserve(struct vmm_space *s)
{
	struct vmm *v = s->vmm;
	const uint64_t n = s->n_pages * s->page_bytes;
	const uint64_t owed = not_there_yet(v);
	uint64_t n_room;
	int r = room(v, &n_room);

	if (r)
		return r;
	if (owed > n_room || n > n_room - owed ||
	    n > v->conf.budget_bytes - v->managed_bytes)
		return CUDA_OUT_OF_MEMORY;
	r = v->cu->alloc_managed(&s->base, n, CUDA_MANAGED_GLOBAL);
	if (r)
		return r;
	r = v->cu->advise(s->base, n, CUDA_ADVISE_PREFERRED, v->dev);
	if (!r)
		r = v->cu->advise(s->base, n, CUDA_ADVISE_ACCESSED_BY, v->dev);
	if (r)
		(void)v->cu->free(s->base); /* r says more */
	else
		v->managed_bytes += n;
	return r;
}

/* With a page that is STUCK something may still be on its way to it: it stays. */
static int uvm_unreserve(struct vmm_space *s)
{
	int r;

	for (uint64_t i = 0; i < s->n_pages; i++)
		if (vmm_state(&s->pages[i]) == VMM_STUCK)
			return CUDA_INVALID_VALUE;
	r = s->vmm->cu->free(s->base);
	if (!r)
		s->vmm->managed_bytes -= s->n_pages * s->page_bytes;
	return r;
}

static int uvm_create(struct vmm *v, struct vmm_frame *f)
{
	(void)v;
	(void)f;
	return CUDA_OK;
}

static int uvm_map(struct vmm_space *s, uint64_t i, const struct vmm_frame *f)
{
	(void)s;
	(void)i;
	(void)f;
	return CUDA_OK;
}

/* Whoever MAPs waits for the zeroes that are queued behind it. */
static int uvm_access(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;

	return v->cu->prefetch(vmm_slot_at(s, first), n * v->conf.frame_bytes,
			       v->dev, v->zero);
}

static int uvm_unmap(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;
	const int r = v->cu->prefetch(vmm_slot_at(s, first),
				      n * v->conf.frame_bytes, CUDA_CPU,
				      v->zero);

	return r ? r : v->cu->stream_sync(v->zero);
}

const struct vmm_backend vmm_uvm_backend = {
	.reserve = uvm_reserve,
	.unreserve = uvm_unreserve,
	.create = uvm_create,
	.release = uvm_create, /* neither is a call */
	.map = uvm_map,
	.access = uvm_access,
	.unmap = uvm_unmap,
};
