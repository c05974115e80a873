/*
 * attn_place.h - attention of a layer where K and V lie: in host memory, or on a device
 *
 * For those who look only: statistics of variants, and where a question looks.
 *
 * Thread: engine thread.
 */
#ifndef KVD_SERVE_ATTN_PLACE_H
#define KVD_SERVE_ATTN_PLACE_H

#include "kvd/serve/attn_gpu.h"

struct attn_place {
	struct pool *pool; /* of the host; or NULL */
	struct attn_scratch *scratch;
	struct attn_gpu *gpu; /* NULL: K and V are in host memory */
};
/* As attn_layer() without windows, or attn_gpu_items(): then q is an address of the device. */
int attn_place_layer(const struct attn_place *at, struct attn_item *items,
		     uint32_t n_items, uint32_t layer);
/* *rows [n_bytes] of the host as an address for items: until the next call. 0, -ENOMEM, those
 * of the device. */
int attn_place_rows(const struct attn_place *at, const char **rows,
		    size_t n_bytes);

#endif
