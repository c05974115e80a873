/*
 * gpu_keep.h - queries of a step on the device, kept on the host
 *
 * Rows are rounded to the pages' type there and go, layer by layer, through a ring of pinned
 * slots: the host waits only for a slot that the layers before have not left yet, while
 * layers behind it are queued.
 *
 * Thread: engine thread.
 */
#ifndef KVD_SERVE_GPU_KEEP_H
#define KVD_SERVE_GPU_KEEP_H

#include "kernels/gpu.h"
#include "kvd/serve/attn.h"

/* Rows [row, row + n) of the step: of layer i to to + i * layer_bytes, [n][n_heads][head_dim]
 * of the type. */
struct gpu_kept {
	uint32_t row, n;
	char *to;
	size_t layer_bytes;
};

struct gpu_keep;
/* All outlive it. -ENOMEM. */
int gpu_keep_new(struct gpu_keep **out, const struct cuda_api *api,
		 struct kern_gpu *kern, cuda_stream st);
/* Nothing is queued. NULL is fine. */
void gpu_keep_free(struct gpu_keep *k);
/* A step of n_layers begins that keeps list [n], borrowed. 0, -ENOSPC, those of the driver. */
int gpu_keep_begin(struct gpu_keep *k, const struct attn_shape *shape,
		   uint32_t n_layers, const struct gpu_kept *list, uint32_t n);
/* Queue the rows of q [rows][n_heads][head_dim] f32; layers ascend. */
int gpu_keep_layer(struct gpu_keep *k, uint32_t layer, cuda_ptr q);
/* Everything queued is done: the last slots are emptied. */
void gpu_keep_end(struct gpu_keep *k);

#endif
