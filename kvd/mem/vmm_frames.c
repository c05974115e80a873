/*
 * vmm_frames.c - frames, maps and fences of the vmm; see vmm_cuda.h, vmm_priv.h
 *
 * A slot is the place of one frame in a space: page * page_frames + i. While a
 * page is being mapped it is EMPTY with frames in its slots; so what went wrong is
 * undone by looking at the slots.
 *
 * Thread: the vmm's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/vmm_priv.h"

#define LOOK 32 /* frames of the pool that are searched for one's own */

int vmm_result(struct vmm *v, const char *what, int result)
{
	const int ret = kern_errno(result);

	if (ret == -ENODEV && !atomic_exchange(&v->lost, 1))
		log_error("vmm", "%s: %s: the device is lost", what,
			  cuda_error_name(v->cu, result));
	return ret;
}

void vmm_lose(struct vmm *v)
{
	if (!atomic_exchange(&v->lost, 1))
		log_error("vmm", "a stream cannot be waited for: the device "
				 "counts as lost");
}

/* ---- calls ----------------------------------------------------------------- */

static int frames_reserve(struct vmm_space *s)
{
	return s->vmm->cu->reserve(&s->base, s->n_pages * s->page_bytes, 0, 0,
				   0);
}

static int frames_unreserve(struct vmm_space *s)
{
	return s->vmm->cu->unreserve(s->base, s->n_pages * s->page_bytes);
}

static int frames_create(struct vmm *v, struct vmm_frame *f)
{
	return v->cu->create(&f->mem, v->conf.frame_bytes, &v->prop, 0);
}

static int frames_release(struct vmm *v, struct vmm_frame *f)
{
	return v->cu->release(f->mem);
}

static int frames_map(struct vmm_space *s, uint64_t i,
		      const struct vmm_frame *f)
{
	struct vmm *v = s->vmm;

	return v->cu->map(vmm_slot_at(s, i), v->conf.frame_bytes, 0, f->mem, 0);
}

static int frames_access(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;

	return v->cu->set_access(vmm_slot_at(s, first), n * v->conf.frame_bytes,
				 &v->access, 1);
}

static int frames_unmap(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;

	return v->cu->unmap(vmm_slot_at(s, first), n * v->conf.frame_bytes);
}

const struct vmm_backend vmm_frames_backend = {
	.reserve = frames_reserve,
	.unreserve = frames_unreserve,
	.create = frames_create,
	.release = frames_release,
	.map = frames_map,
	.access = frames_access,
	.unmap = frames_unmap,
};

/* ---- the pool -------------------------------------------------------------- */

static void pool_push(struct vmm *v, uint32_t i)
{
	v->frames[i].where = FRAME_POOL;
	v->frames[i].next = v->pool;
	v->pool = i;
	v->n.n_pool++;
}

/* The pool is not empty. One that was the tenant's need not be zeroed. */
static uint32_t pool_pop(struct vmm *v, uint32_t tenant)
{
	uint32_t *at = &v->pool, *best = at;

	for (int i = 0; i < LOOK && *at != VMM_NO_FRAME; i++) {
		if (v->frames[*at].tenant == tenant) {
			best = at;
			break;
		}
		at = &v->frames[*at].next;
	}
	const uint32_t frame = *best;

	*best = v->frames[frame].next;
	v->frames[frame].where = FRAME_USED;
	v->n.n_pool--;
	return frame;
}

int vmm_frame_create(struct vmm *v)
{
	const uint32_t i = v->none;
	const uint64_t start_ns = clock_ns();
	int ret;

	if (i == VMM_NO_FRAME)
		return -ENOSPC;
	ret = vmm_result(v, "cuMemCreate", v->ops->create(v, &v->frames[i]));
	if (ret)
		return ret;
	v->n.create_ns += clock_ns() - start_ns;
	v->n.created++;
	v->n.n_frames++;
	v->none = v->frames[i].next;
	v->frames[i].tenant = 0;
	pool_push(v, i);
	return 0;
}

/* Its memory is the system's again. */
static int frame_end(struct vmm *v, uint32_t i)
{
	const int ret = vmm_result(v, "cuMemRelease",
				   v->ops->release(v, &v->frames[i]));

	if (ret)
		return ret;
	v->frames[i].where = FRAME_NONE;
	v->frames[i].exported = 0;
	v->frames[i].next = v->none;
	v->none = i;
	v->n.n_frames--;
	v->n.released++;
	return 0;
}

/* Out of a page: to the pool, unless others may have it. */
static void frame_back(struct vmm *v, uint32_t i)
{
	/* of managed memory the bytes stay with the slot */
	if (v->conf.kind == VMM_MANAGED)
		v->frames[i].tenant = 0;
	if (!v->frames[i].exported) {
		pool_push(v, i);
	} else if (frame_end(v, i)) {
		v->n.n_stuck++;
		v->n_orphans++;
	}
}

uint64_t vmm_frames_release(struct vmm *v, uint64_t n)
{
	uint64_t done = 0;

	for (; done < n && v->pool != VMM_NO_FRAME; done++) {
		const uint32_t i = pool_pop(v, 0);

		if (frame_end(v, i)) {
			pool_push(v, i);
			break;
		}
	}
	return done;
}

uint64_t vmm_missing_bytes(struct vmm *v)
{
	size_t n_free = 0, total = 0;

	if (!v->conf.spare_bytes ||
	    vmm_result(v, "cuMemGetInfo", v->cu->mem_info(&n_free, &total)))
		return 0;
	return n_free < v->conf.spare_bytes ? v->conf.spare_bytes - n_free : 0;
}

/* ---- unmap ----------------------------------------------------------------- */

/* Slots [first, first + n) have frames. */
static int unmap_slots(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;
	const uint64_t start_ns = clock_ns();
	int ret;

	if (!n)
		return 0;
	ret = vmm_result(v, "cuMemUnmap", v->ops->unmap(s, first, n));
	v->n.unmap_ns += clock_ns() - start_ns;
	v->n.unmaps++;
	if (ret) {
		log_error("vmm", "%llu frames are stuck: cuMemUnmap: %s",
			  (unsigned long long)n, strerror(-ret));
		v->n.n_stuck += n;
		for (uint64_t i = first; i < first + n; i++)
			vmm_set(&s->pages[i / s->page_frames], VMM_STUCK);
		return ret;
	}
	v->n.unmapped += n;
	for (uint64_t i = first; i < first + n; i++) {
		frame_back(v, s->frames[i]);
		s->frames[i] = VMM_NO_FRAME;
	}
	return 0;
}

int vmm_unmap(struct vmm_space *s, uint64_t first, uint64_t n)
{
	const int ret =
		unmap_slots(s, first * s->page_frames, n * s->page_frames);

	for (uint64_t i = first; !ret && i < first + n; i++)
		vmm_set(&s->pages[i], VMM_EMPTY);
	return ret;
}

/* ---- export ---------------------------------------------------------------- */

int vmm_is_exported(const struct vmm_space *s, uint64_t page)
{
	for (uint32_t k = 0; k < s->page_frames; k++) {
		const uint32_t f = s->frames[page * s->page_frames + k];

		if (f != VMM_NO_FRAME && s->vmm->frames[f].exported)
			return 1;
	}
	return 0;
}

int vmm_frames_export(struct vmm_space *s, uint64_t first, uint64_t n, int *fds)
{
	struct vmm *v = s->vmm;
	const uint64_t slot = first * s->page_frames, k = n * s->page_frames;

	for (uint64_t i = 0; i < k; i++) {
		struct vmm_frame *f = &v->frames[s->frames[slot + i]];
		const int ret =
			vmm_result(v, "cuMemExportToShareableHandle",
				   v->cu->export_fd(&fds[i], f->mem,
						    CUDA_HANDLE_POSIX_FD, 0));

		if (ret) {
			while (i--)
				(void)close(fds[i]); /* nobody has it */
			return ret;
		}
		v->n.exported += !f->exported;
		f->exported = 1;
	}
	return 0;
}

/* ---- map ------------------------------------------------------------------- */

static int is_new(const struct vmm_space *s, uint64_t slot)
{
	return vmm_state(&s->pages[slot / s->page_frames]) == VMM_EMPTY;
}

/* Slots [first, first + n), none of which has a frame. */
static int map_slots(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;
	uint64_t start_ns = clock_ns();
	int ret;

	for (uint64_t i = first; i < first + n; i++) {
		const uint32_t f = pool_pop(v, s->tenant);

		ret = vmm_result(v, "cuMemMap",
				 v->ops->map(s, i, &v->frames[f]));
		if (ret) {
			pool_push(v, f);
			return ret;
		}
		s->frames[i] = f;
		v->n.maps++;
		v->n.mapped++;
	}
	v->n.map_ns += clock_ns() - start_ns;
	start_ns = clock_ns();
	/* the dear one of the calls: once for the whole run */
	ret = vmm_result(v, "cuMemSetAccess", v->ops->access(s, first, n));
	v->n.set_access_ns += clock_ns() - start_ns;
	v->n.set_access++;
	return ret;
}

/* Queue zeroes for those of the new slots that hold what is not the tenant's. */
static int zero_slots(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;
	const uint64_t end = first + n;

	for (uint64_t i = first, k; i < end; i = k + 1) {
		int ret;

		for (k = i; k < end && is_new(s, k) &&
			    v->frames[s->frames[k]].tenant != s->tenant;
		     k++)
			v->frames[s->frames[k]].tenant = 0; /* until done */
		if (k == i)
			continue;
		ret = vmm_result(v, "cuMemsetD8Async",
				 v->cu->memset8(vmm_slot_at(s, i), 0,
						(k - i) * v->conf.frame_bytes,
						v->zero));
		if (ret)
			return ret;
		v->n.zeroings++;
		v->n.zeroed += k - i;
	}
	return 0;
}

/* New slots back to the pool. */
static void undo(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;
	const uint64_t end = first + n;
	/* nothing may be zeroed that has gone to somebody else; where even that
	 * cannot be known the frames stay where they are */
	const int known = !vmm_result(v, "cuStreamSynchronize",
				      v->cu->stream_sync(v->zero));

	for (uint64_t i = first, k; i < end; i = k + 1) {
		for (k = i;
		     k < end && s->frames[k] != VMM_NO_FRAME && is_new(s, k);
		     k++)
			;
		if (known) {
			(void)unmap_slots(s, i, k - i); /* says it itself */
			continue;
		}
		v->n.n_stuck += k - i;
		for (uint64_t j = i; j < k; j++)
			vmm_set(&s->pages[j / s->page_frames], VMM_STUCK);
	}
}

static int map_new(struct vmm_space *s, uint64_t first, uint64_t n)
{
	struct vmm *v = s->vmm;
	const uint64_t end = first + n, zeroings = v->n.zeroings;
	int ret = 0;

	for (uint64_t i = first, k; i < end && !ret; i = k + 1) {
		for (k = i; k < end && is_new(s, k); k++)
			;
		if (k == i)
			continue;
		ret = map_slots(s, i, k - i);
		if (!ret)
			ret = zero_slots(s, i, k - i);
	}
	if (!ret && v->n.zeroings != zeroings)
		ret = vmm_result(v, "cuStreamSynchronize",
				 v->cu->stream_sync(v->zero));
	return ret;
}

int vmm_map_empty(struct vmm_space *s, uint64_t first, uint64_t n)
{
	const uint64_t slot = first * s->page_frames, k = n * s->page_frames;
	const int ret = map_new(s, slot, k);

	if (ret) {
		undo(s, slot, k);
		return ret;
	}
	for (uint64_t i = slot; i < slot + k; i++)
		if (is_new(s, i))
			s->vmm->frames[s->frames[i]].tenant = s->tenant;
	for (uint64_t i = first; i < first + n; i++)
		if (vmm_state(&s->pages[i]) == VMM_EMPTY)
			vmm_set(&s->pages[i], VMM_MAPPED);
	return 0;
}

/* ---- fences ---------------------------------------------------------------- */

int vmm_batch_over(struct vmm *v, struct vmm_batch *b, enum vmm_wait wait)
{
	for (uint32_t i = 0; i < b->n_events; i++) {
		const int ret =
			wait == VMM_WAIT
				? vmm_result(v, "cuEventSynchronize",
					     v->cu->event_sync(b->events[i]))
				: vmm_result(v, "cuEventQuery",
					     v->cu->event_query(b->events[i]));

		if (ret)
			return ret;
	}
	return 0;
}

void vmm_batch_free(struct vmm *v, struct vmm_batch *b)
{
	for (uint32_t i = 0; i < b->n_events; i++) {
		if (v->n_events < VMM_EVENTS)
			v->events[v->n_events++] = b->events[i];
		else
			(void)vmm_result(v, "cuEventDestroy",
					 v->cu->event_free(b->events[i]));
	}
	list_del(&b->node);
	free(b);
}

/* From its end, where pages are least likely to be wanted again first. */
static uint64_t unmap_idle(struct vmm *v, struct vmm_batch *b, uint64_t n)
{
	struct vmm_space *s = b->space;
	uint64_t end = b->first + b->n, freed = 0;

	while (end > b->first && b->n_idle && freed < n) {
		uint64_t i = end;
		uint64_t k;

		while (i > b->first &&
		       vmm_state(&s->pages[i - 1]) == VMM_IDLE &&
		       s->pages[i - 1].batch == b &&
		       freed + (end - i) * s->page_frames < n)
			i--;
		k = end - i;
		end = i - (i > b->first && !k);
		if (!k)
			continue;
		b->n_idle -= k;
		v->n.n_idle -= k * s->page_frames;
		if (!vmm_unmap(s, i, k))
			freed += k * s->page_frames;
	}
	return freed;
}

int64_t vmm_reclaim(struct vmm *v, uint64_t n_frames, enum vmm_wait wait)
{
	uint64_t n = 0;

	list_for_each_safe(it, &v->batches) {
		struct vmm_batch *b = list_entry(it, struct vmm_batch, node);
		int ret;

		if (n >= n_frames)
			break;
		ret = b->n_idle ? vmm_batch_over(v, b, wait) : 0;
		if (ret == -ENODEV)
			return ret;
		if (ret)
			continue; /* not over, or not known: another time */
		if (b->n_idle)
			n += unmap_idle(v, b, n_frames - n);
		if (!b->n_idle)
			vmm_batch_free(v, b);
	}
	return (int64_t)n;
}
