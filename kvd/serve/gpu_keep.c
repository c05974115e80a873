/*
 * gpu_keep.c - kept queries by way of pinned slots; see gpu_keep.h
 */
#include "kvd/serve/gpu_keep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS	    16u
#define SLOTS_BYTES (32u << 20) /* no more than that, but two slots */

struct gpu_keep {
	const struct cuda_api *api;
	struct kern_gpu *kern;
	cuda_stream st;
	cuda_event landed[SLOTS];
	cuda_ptr there; /* a layer's rows, rounded */
	char *here; /* pinned [n_slots] slots */
	size_t n_there, n_here; /* bytes */
	/* of the step */
	const struct gpu_kept *list;
	uint32_t n;
	enum kern_type type;
	size_t row_elems, slot_bytes;
	uint32_t n_slots;
	uint32_t n_queued, n_emptied; /* layers */
};

int gpu_keep_new(struct gpu_keep **out, const struct cuda_api *api,
		 struct kern_gpu *kern, cuda_stream st)
{
	struct gpu_keep *k = calloc(1, sizeof(*k));

	if (!k)
		return -ENOMEM;
	k->api = api;
	k->kern = kern;
	k->st = st;
	*out = k;
	return 0;
}

/* What a lost device does not take back is gone with it. */
void gpu_keep_free(struct gpu_keep *k)
{
	if (!k)
		return;
	for (uint32_t i = 0; i < SLOTS; i++)
		if (k->landed[i])
			(void)k->api->event_free(k->landed[i]);
	if (k->n_there)
		(void)k->api->free(k->there);
	if (k->n_here)
		(void)k->api->host_free(k->here);
	free(k);
}

static int room_there(struct gpu_keep *k)
{
	int ret;

	if (k->slot_bytes <= k->n_there)
		return 0;
	if (k->n_there)
		(void)k->api->free(k->there);
	k->n_there = 0;
	ret = kern_errno(k->api->alloc(&k->there, k->slot_bytes));
	if (!ret)
		k->n_there = k->slot_bytes;
	return ret == -ENOMEM ? -ENOSPC : ret;
}

static int room_here(struct gpu_keep *k)
{
	const size_t n = k->slot_bytes * k->n_slots;
	void *p = NULL;
	int ret;

	if (n <= k->n_here)
		return 0;
	if (k->n_here)
		(void)k->api->host_free(k->here);
	k->n_here = 0;
	ret = kern_errno(k->api->host_alloc(&p, n, CUDA_HOST_PORTABLE));
	k->here = p;
	if (!ret)
		k->n_here = n;
	return ret;
}

static int events(struct gpu_keep *k)
{
	int ret = 0;

	for (uint32_t i = 0; i < k->n_slots && !ret; i++)
		if (!k->landed[i])
			ret = kern_errno(k->api->event_new(
				&k->landed[i], CUDA_EVENT_DISABLE_TIMING));
	return ret;
}

int gpu_keep_begin(struct gpu_keep *k, const struct attn_shape *shape,
		   uint32_t n_layers, const struct gpu_kept *list, uint32_t n)
{
	uint64_t rows = 0;
	int ret;

	k->list = list;
	k->n = n;
	k->n_queued = k->n_emptied = 0;
	if (!n)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		rows += list[i].n;
	k->type = shape->type;
	k->row_elems = (size_t)shape->n_heads * shape->head_dim;
	k->slot_bytes = rows * k->row_elems * kern_type_bytes(k->type);
	k->n_slots = (uint32_t)KV_MIN(KV_MAX(SLOTS_BYTES / k->slot_bytes, 2u),
				      KV_MIN(SLOTS, n_layers));
	ret = room_there(k);
	if (!ret)
		ret = room_here(k);
	return ret ? ret : events(k);
}

/* The oldest slot's rows to where they are kept. */
static void empty_slot(struct gpu_keep *k)
{
	const uint32_t layer = k->n_emptied++;
	const char *from = k->here + layer % k->n_slots * k->slot_bytes;

	for (uint32_t i = 0; i < k->n; i++) {
		const struct gpu_kept *x = &k->list[i];
		const size_t n = x->n * k->row_elems * kern_type_bytes(k->type);

		memcpy(x->to + layer * x->layer_bytes, from, n);
		from += n;
	}
}

int gpu_keep_layer(struct gpu_keep *k, uint32_t layer, cuda_ptr q)
{
	const uint32_t slot = k->n ? layer % k->n_slots : 0;
	cuda_ptr to = k->there;
	int ret = 0;

	if (!k->n)
		return 0;
	assert(layer == k->n_queued);
	if (k->n_queued - k->n_emptied == k->n_slots) {
		ret = kern_errno(k->api->event_sync(k->landed[slot]));
		if (ret)
			return ret;
		empty_slot(k);
	}
	for (uint32_t i = 0; i < k->n && !ret; i++) {
		const struct gpu_convert c = {
			q + k->list[i].row * k->row_elems * sizeof(float), to,
			k->list[i].n * k->row_elems
		};

		ret = kern_gpu_from_f32(k->kern, k->type, &c, k->st);
		to += c.n * kern_type_bytes(k->type);
	}
	if (!ret)
		ret = kern_errno(k->api->d2h(k->here + slot * k->slot_bytes,
					     k->there, k->slot_bytes, k->st));
	if (!ret)
		ret = kern_errno(k->api->event_record(k->landed[slot], k->st));
	k->n_queued += !ret;
	return ret;
}

void gpu_keep_end(struct gpu_keep *k)
{
	while (k->n_emptied < k->n_queued)
		empty_slot(k);
}
