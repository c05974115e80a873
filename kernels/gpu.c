/*
 * gpu.c - launches of the CUDA kernels; see gpu.h
 */
#include "kernels/gpu_priv.h"

#include <errno.h>
#include <stdlib.h>
#include "kernels/gpu_image.h"

#define GRID_YZ_MAX 65535u

/* By enum gpu_kernel. */
#define BY_DIM(name)  name "_64", name "_96", name "_128", name "_256"
#define BY_TYPE(name) name "_f32", name "_f16", name "_bf16"
static const char *const gpu_names[] = {
	BY_DIM("attn_f32"),
	BY_DIM("attn_f16"),
	BY_DIM("attn_bf16"),
	BY_TYPE("append"),
	BY_TYPE("gather"),
	BY_TYPE("from_f32_to"),
	BY_TYPE("to_f32_from"),
	BY_TYPE("deviation"),
	"attn_merge",
	"rmsnorm",
	"rope",
	"swiglu",
	"add",
	"move_runs",
	"stream_read",
};
_Static_assert(sizeof(gpu_names) / sizeof(*gpu_names) == GPU_N_KERNELS,
	       "a name for each kernel");

/* ---- open, close ----------------------------------------------------------- */

static int find_all(struct kern_gpu *g)
{
	int ret = 0;

	for (int i = 0; i < GPU_N_KERNELS && !ret; i++)
		ret = kern_errno(g->cu->module_function(&g->f[i], g->module,
							gpu_names[i]));
	return ret;
}

size_t kern_gpu_image_bytes(void)
{
	size_t n;

	(void)kern_gpu_image(&n);
	return n;
}

int kern_gpu_open(struct kern_gpu **out, const struct cuda_api *api,
		  const void *image)
{
	struct kern_gpu *g;
	size_t n;
	int ret;

	if (!image)
		image = kern_gpu_image(&n);
	if (!image)
		return -ENOTSUP;
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->cu = api;
	ret = kern_errno(api->module_load(&g->module, image));
	if (!ret)
		ret = find_all(g);
	if (ret) {
		kern_gpu_close(g);
		return ret;
	}
	*out = g;
	return 0;
}

void kern_gpu_close(struct kern_gpu *g)
{
	if (!g)
		return;
	if (g->module)
		(void)g->cu->module_unload(g->module); /* or it is lost */
	free(g);
}

/* ---- the plan ---------------------------------------------------------------- */

int64_t kern_gpu_plan(const struct gpu_span *spans,
		      const struct kern_gpu_list *rows, uint32_t n_rows,
		      struct gpu_part *parts, uint32_t max_parts,
		      struct gpu_row *out)
{
	uint32_t n = 0;

	for (uint32_t r = 0; r < n_rows; r++) {
		const uint32_t end = rows[r].first_span + rows[r].n_spans;

		out[r] = (struct gpu_row){ rows[r].pos, n, 0 };
		for (uint32_t i = rows[r].first_span; i < end; i++) {
			const struct gpu_span *s = &spans[i];

			for (uint64_t t = 0; t < s->n_tokens;
			     t += GPU_SPLIT_TOKENS) {
				if (s->pos + (int64_t)t > rows[r].pos)
					break;
				if (n == max_parts)
					return -ENOSPC;
				parts[n++] =
					(struct gpu_part){ r, i, (uint32_t)t };
			}
		}
		out[r].n_parts = n - out[r].first_part;
	}
	return n;
}

/* ---- launches ---------------------------------------------------------------- */

int gpu_launch(struct kern_gpu *g, enum gpu_kernel k, struct gpu_grid n,
	       const void *args, cuda_stream st)
{
	void *params[] = { (void *)(uintptr_t)args }; /* only read */

	return kern_errno(g->cu->launch(g->f[k], n.x, n.y, n.z, GPU_THREADS, 1,
					1, 0, st, params, NULL));
}

int gpu_of_type(enum gpu_kernel base, enum kern_type type)
{
	return type == KERN_F32	   ? (int)base
	       : type == KERN_F16  ? (int)base + 1
	       : type == KERN_BF16 ? (int)base + 2
				   : -EINVAL;
}

/* The kernel of attention, or -EINVAL. */
static int attn_of(enum kern_type type, uint32_t head_dim)
{
	const int t = gpu_of_type(0, type);
	const int d = head_dim == 64	? 0
		      : head_dim == 96	? 1
		      : head_dim == 128 ? 2
		      : head_dim == 256 ? 3
					: -1;

	return t < 0 || d < 0 ? -EINVAL : GK_ATTN_F32_64 + 4 * t + d;
}

int kern_gpu_attn(struct kern_gpu *g, enum kern_type type,
		  const struct gpu_attn *a, cuda_stream st)
{
	const int k = attn_of(type, a->head_dim);
	uint32_t group;
	int ret = 0;

	if (k < 0 || !a->n_kv_heads || !a->n_heads ||
	    a->n_heads % a->n_kv_heads || a->n_heads > GRID_YZ_MAX ||
	    a->flags & ~(GPU_ATTN_ADD | GPU_ATTN_FINISH))
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	group = a->n_heads / a->n_kv_heads;
	if (a->n_parts) /* a grid of 0 is an error of the driver's */
		ret = gpu_launch(g, (enum gpu_kernel)k,
				 (struct gpu_grid){ a->n_parts, a->n_kv_heads,
						    (group + GPU_HEADS - 1) /
							    GPU_HEADS },
				 a, st);
	if (ret)
		return ret;
	return gpu_launch(g, GK_MERGE,
			  (struct gpu_grid){ a->n_rows, a->n_heads, 1 }, a, st);
}
