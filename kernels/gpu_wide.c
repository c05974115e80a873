/*
 * gpu_wide.c - launches of attention by TMA and wgmma; see gpu.h
 */
#include "kernels/gpu_priv.h"

#include <errno.h>
#include <string.h>

#define ROWS_MAX (1ull << 31) /* coordinates are signed */

/* K and V of two stages, to be aligned to 1024. */
uint32_t gpu_wide_shared(int kernel)
{
	const uint32_t dim = (kernel - GK_WIDE_F16_64) % 2 ? 128 : 64;

	return 2 * 2 * GPU_FLASH_TILE * dim * 2 + 1024;
}

/* An image without sm_90a has these kernels too, but they do nothing. */
int gpu_is_hopper(struct kern_gpu *g, int dev)
{
	int major = 0, minor = -1, ptx = 0;

	return !g->cu->func_get(&ptx, CUDA_FUNC_PTX, g->f[GK_WIDE_F16_64]) &&
	       ptx == 90 && !g->cu->device_attr(&major, CUDA_ATTR_MAJOR, dev) &&
	       !g->cu->device_attr(&minor, CUDA_ATTR_MINOR, dev) &&
	       major == 9 && minor == 0;
}

int kern_gpu_window(struct kern_gpu *g, int dev, enum kern_type type,
		    uint32_t head_dim, uint64_t base, uint64_t n_bytes,
		    struct kern_gpu_window *out)
{
	const uint64_t row = 2 * (uint64_t)head_dim;
	const uint64_t n[] = { head_dim, row ? n_bytes / row : 0 };
	const uint32_t box[] = { 64, GPU_TILE }, steps[] = { 1, 1 };
	uint64_t map[16] __attribute__((aligned(64)));
	int ret;

	if ((type != KERN_BF16 && type != KERN_F16) ||
	    (head_dim != 64 && head_dim != 128) || !g->cu->tensor_map ||
	    !gpu_is_hopper(g, dev))
		return -ENOTSUP;
	if (base % row || !n[1] || n[1] > ROWS_MAX)
		return -EINVAL;
	*out = (struct kern_gpu_window){
		.type = type, .head_dim = head_dim, .base = base, .n_rows = n[1]
	};
	memset(map, 0, sizeof(map));
	/* only copied: their type does not matter */
	ret = kern_errno(g->cu->tensor_map(map, CUDA_TENSOR_16, 2, (void *)base,
					   n, &row, box, steps, 0,
					   CUDA_SWIZZLE_128, CUDA_L2_256, 0));
	memcpy(out->map, map, sizeof(map));
	return ret;
}

/* Rows of K or V of a span, from its first page to the last. */
static int is_inside(const struct kern_gpu_window *w, const struct gpu_span *s,
		     uint64_t base, uint32_t n_kv_heads)
{
	const uint64_t row = 2 * (uint64_t)w->head_dim;
	const uint64_t pages = gpu_times(s->n_tokens, s->page_tokens);
	const uint64_t end = base + (pages - 1) * s->page_bytes +
			     (n_kv_heads - 1) * s->head_bytes +
			     s->page_tokens * row;

	return base >= w->base && (base - w->base) % row == 0 &&
	       end <= w->base + w->n_rows * row;
}

int kern_gpu_in_window(const struct kern_gpu_window *w,
		       const struct gpu_span *s, uint32_t n_kv_heads)
{
	const uint64_t row = 2 * (uint64_t)w->head_dim;

	if (!s->n_tokens)
		return 1;
	return (!s->row_bytes || s->row_bytes == row) &&
	       s->page_tokens % GPU_TILE == 0 && s->head_bytes % row == 0 &&
	       s->page_bytes % row == 0 && is_inside(w, s, s->k, n_kv_heads) &&
	       is_inside(w, s, s->v, n_kv_heads);
}

static int wide_tiles(struct kern_gpu *g, const struct kern_gpu_window *w,
		      const struct gpu_attn *a, cuda_stream st)
{
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const int k = (w->type == KERN_F16 ? GK_WIDE_F16_64 : GK_WIDE_BF16_64) +
		      (w->head_dim == 128);
	struct gpu_wide args = { .base = w->base, .a = *a };

	if (!a->n_tiles)
		return 0;
	memcpy(args.map, w->map, sizeof(args.map));
	return gpu_launch(
		g, (enum gpu_kernel)k,
		(struct gpu_grid){ a->n_tiles, a->n_kv_heads,
				   gpu_times(group, group < GPU_WIDE_ROWS
							    ? group
							    : GPU_WIDE_ROWS) },
		&args, st);
}

int kern_gpu_attn_wide(struct kern_gpu *g, const struct kern_gpu_window *w,
		       const struct gpu_attn *a, cuda_stream st)
{
	int ret;

	if (!gpu_attn_is_valid(w->type, a) || a->head_dim != w->head_dim)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	ret = gpu_attn_parts(g, w->type, a, st);
	if (!ret)
		ret = wide_tiles(g, w, a, st);
	return ret ? ret : gpu_attn_merge(g, a, st);
}
