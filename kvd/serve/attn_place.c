/*
 * attn_place.c - the host's attention or the device's; see attn_place.h
 */
#include "kvd/serve/attn_place.h"

int attn_place_layer(const struct attn_place *at, struct attn_item *items,
		     uint32_t n_items, uint32_t layer)
{
	if (at->gpu)
		return attn_gpu_items(at->gpu, at->scratch, items, n_items,
				      layer);
	return attn_layer(NULL, at->pool, at->scratch, items, n_items, layer);
}

int attn_place_rows(const struct attn_place *at, const char **rows,
		    size_t n_bytes)
{
	cuda_ptr there;
	int ret;

	if (!at->gpu)
		return 0;
	ret = attn_gpu_put(at->gpu, *rows, n_bytes, &there);
	*rows = (const char *)(uintptr_t)there;
	return ret;
}
