/*
 * vmm_check.c - the invariants of vmm_cuda.h, asserted
 */
#include <stdlib.h>
#include "kvd/mem/vmm_priv.h"

/* Frames in the slots of a space; each is USED and named once. */
static uint64_t check_space(const struct vmm_space *s, uint8_t *seen,
			    uint64_t *n_idle)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < s->n_pages; i++) {
		const enum vmm_state st = vmm_state(&s->pages[i]);

		if (st == VMM_IDLE) {
			assert(s->pages[i].batch->space == s);
			*n_idle += s->page_frames;
		}
		for (uint32_t k = 0; k < s->page_frames; k++) {
			const uint32_t f = s->frames[i * s->page_frames + k];

			assert(st == VMM_STUCK ||
			       (f == VMM_NO_FRAME) == (st == VMM_EMPTY));
			if (f == VMM_NO_FRAME)
				continue;
			assert(s->vmm->frames[f].where == FRAME_USED);
			/* (3): what is mapped is the tenant's */
			assert(st == VMM_STUCK ||
			       s->vmm->frames[f].tenant == s->tenant);
			assert(!seen[f]++);
			n++;
		}
	}
	return n;
}

void vmm_check(struct vmm *v)
{
	uint8_t *seen = calloc(v->max_frames, 1);
	uint64_t n_used = 0, n_pool = 0, n_idle = 0, n_none = 0, n_batch = 0;

	assert(seen);
	vmm_settle(v);
	list_for_each(it, &v->spaces)
		n_used += check_space(list_entry(it, struct vmm_space, node),
				      seen, &n_idle);
	for (uint32_t i = v->pool; i != VMM_NO_FRAME; i = v->frames[i].next) {
		assert(v->frames[i].where == FRAME_POOL && !seen[i]++);
		n_pool++;
	}
	for (uint32_t i = v->none; i != VMM_NO_FRAME; i = v->frames[i].next) {
		assert(v->frames[i].where == FRAME_NONE && !seen[i]++);
		n_none++;
	}
	list_for_each(it, &v->batches) {
		const struct vmm_batch *b =
			list_entry(it, struct vmm_batch, node);

		assert(b->n_idle);
		n_batch += b->n_idle * b->space->page_frames;
	}
	free(seen);
	assert(n_batch == n_idle && v->n.n_idle == n_idle);
	assert(n_pool == v->n.n_pool);
	assert(n_used + n_pool + v->n_orphans == v->n.n_frames);
	assert(v->n.n_frames + n_none == v->max_frames);
}
