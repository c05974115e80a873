/*
 * attn_gpu.h - attention on the device for rows of several sequences
 *
 * What attn.h does, for pages in device memory. The lists of a step are prepared once on
 * the host (spans, parts, rotations, targets), for all of its layers, and copied in one
 * piece from a pinned buffer; then each layer is a few launches: keys are rotated and
 * stored, queries rotated once for each distance, attention in parts of the lists.
 * A row's bits depend on its list and on the device alone (gpu.h).
 *
 * Not here: windows (everything is pinned); -ENOTSUP.
 *
 * Thread: one at a time, an engine's; the context is set by attn_gpu_use().
 */
#ifndef KVD_SERVE_ATTN_GPU_H
#define KVD_SERVE_ATTN_GPU_H

#include "kernels/gpu.h"
#include "kvd/mem/device.h"
#include "kvd/serve/attn.h"

struct attn_gpu;

struct attn_gpu_conf {
	const struct cuda_api *api; /* all outlive it */
	cuda_handle ctx;
	struct kern_gpu *kern;
	cuda_stream stream; /* its own */
	struct device *
		device; /* told when the stream cannot be waited for; or NULL */
	size_t query_bytes; /* as ATTN_GPU_QUERY_BYTES; 0: that */
	int dev; /* the context's device */
	uint32_t
		wide; /* kinds of KV whose prompts kern_gpu_attn_wide() may do */
};
/*
 * Of queries that are there at once, rotated for every distance at which keys of the step
 * lie: rows go in turns beyond it. A prompt of a thousand chunks has as many distances.
 */
#define ATTN_GPU_QUERY_BYTES (512u << 20)
/* -ENOMEM. Memory of the device is taken when it is needed, and kept. */
int attn_gpu_new(struct attn_gpu **out, const struct attn_gpu_conf *c);
/* Nothing is queued. NULL is fine. */
void attn_gpu_free(struct attn_gpu *g);
/* Launches by kern_gpu_attn_wide() so far. */
uint64_t attn_gpu_n_wide(const struct attn_gpu *g);
/* The calling thread computes from now on. Errors of the driver. */
int attn_gpu_use(const struct attn_gpu *g);
/*
 * Nothing of the stream runs after this, however the calls before ended (ret): pages may go, and
 * buffers be used again. ret, or the error of waiting; -ENODEV it could not be waited for:
 * then the device counts as lost.
 */
int attn_gpu_over(const struct attn_gpu *g, int ret);

struct attn_gpu_step {
	/*
	 * [n_items] of equal shape and layout; the rows of one follow those of the one before.
	 * Of q and k only counts whether they are NULL; those with q, or all without. No entry
	 * stops inside of the layers.
	 */
	struct attn_item *items;
	uint32_t n_items;
	uint32_t layer, n_layers; /* that will be asked for */
	uint32_t
		pad_to; /* rows that a step of decodes may be padded to; 0: not */
	/* [n_wanted] the rows that attend, ascending: q and o have these only; NULL: all */
	const uint32_t *wanted;
	uint32_t n_wanted;
};
/*
 * A step of decodes can be padded, so that steps of other lengths queue the same launches with
 * the same arguments: n_rows is then more (those behind the items' are nobody's, any numbers
 * in q, k, v), and key the same for those that do. n_rows 0: it was not.
 */
struct attn_gpu_pad {
	uint32_t n_rows;
	uint32_t key[5];
};
struct attn_gpu_pad attn_gpu_padded(const struct attn_gpu *g);
/*
 * Prepare the lists of n ranges of layers that follow each other, with the rows of each, and
 * queue their copy. The scratch is used as by attn_layer(). Nothing is queued on the stream
 * from before. 0, -ENOTSUP, -ENOSPC a list is too long, -ENOMEM, the
 * driver's.
 */
int attn_gpu_begin(struct attn_gpu *g, struct attn_scratch *s,
		   const struct attn_gpu_step *steps, uint32_t n);
/*
 * Queue one layer of what was begun: f32 rows in device memory, as struct attn_item has
 * them; k and v: of the items that have them, side by side; k is overwritten. o gets all rows
 * that attend. Layers ascend.
 */
struct attn_gpu_rows {
	cuda_ptr q, k, v, o;
};
int attn_gpu_layer(struct attn_gpu *g, uint32_t layer,
		   const struct attn_gpu_rows *rows);
/*
 * How far fresh rows are from what the pages hold: squared distance of k, rotated as it lies
 * there, and of v. Waits for what is queued, and for the result; k is overwritten.
 */
struct attn_gpu_old {
	const struct attn_shape *shape;
	uint32_t layer, n;
	const struct attn_target *at; /* [n] */
	cuda_ptr k, v; /* f32 [n][n_kv_heads][head_dim], unrotated */
	float *dev; /* [n] out */
};
int attn_gpu_deviation(struct attn_gpu *g, const struct attn_gpu_old *a);
/* As attn_copy(), and wait for it. */
int attn_gpu_copy(struct attn_gpu *g, const struct seq_copy *c);
/*
 * As attn_layer() without windows: q, k, v, o in host memory, which are read once (or of the
 * device: on_device; lse is always the host's). Each item gets its ret. Waits. Returns 0 or the first error.
 */
int attn_gpu_items(struct attn_gpu *g, struct attn_scratch *s,
		   struct attn_item *items, uint32_t n_items, uint32_t layer);

/* Rows of host memory on the device: *out until the next call. Waits. Errors of buffers and
 * of the driver. */
int attn_gpu_put(struct attn_gpu *g, const void *p, size_t n, cuda_ptr *out);

#endif
