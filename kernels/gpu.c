/*
 * gpu.c - launches of the CUDA kernels; see gpu.h
 */
#include "kernels/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include "kernels/gpu_image.h"

#define N_TYPES	    3
#define N_DIMS	    4
#define GRID_YZ_MAX 65535u

/* Every instantiation, by name. */
static const uint32_t dims[N_DIMS] = { 64, 96, 128, 256 };
static const char *const attn_names[N_TYPES][N_DIMS] = {
	{ "attn_f32_64", "attn_f32_96", "attn_f32_128", "attn_f32_256" },
	{ "attn_f16_64", "attn_f16_96", "attn_f16_128", "attn_f16_256" },
	{ "attn_bf16_64", "attn_bf16_96", "attn_bf16_128", "attn_bf16_256" },
};
static const char *const append_names[N_TYPES] = { "append_f32", "append_f16",
						   "append_bf16" };

struct kern_gpu {
	const struct cuda_api *cu;
	cuda_handle module;
	cuda_handle attn[N_TYPES][N_DIMS], append[N_TYPES];
	cuda_handle merge, rmsnorm, rope, swiglu, read;
};

/* ---- open, close ----------------------------------------------------------- */

static int find(struct kern_gpu *g, cuda_handle *out, const char *name)
{
	return kern_errno(g->cu->module_function(out, g->module, name));
}

static int find_all(struct kern_gpu *g)
{
	int ret = find(g, &g->merge, "attn_merge");

	for (int t = 0; t < N_TYPES && !ret; t++) {
		ret = find(g, &g->append[t], append_names[t]);
		for (int d = 0; d < N_DIMS && !ret; d++)
			ret = find(g, &g->attn[t][d], attn_names[t][d]);
	}
	if (!ret)
		ret = find(g, &g->rmsnorm, "rmsnorm");
	if (!ret)
		ret = find(g, &g->rope, "rope");
	if (!ret)
		ret = find(g, &g->swiglu, "swiglu");
	if (!ret)
		ret = find(g, &g->read, "stream_read");
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

struct grid {
	uint32_t x, y, z;
};

static int launch(struct kern_gpu *g, cuda_handle f, struct grid n,
		  const void *args, cuda_stream st)
{
	void *params[] = { (void *)(uintptr_t)args }; /* only read */

	return kern_errno(g->cu->launch(f, n.x, n.y, n.z, GPU_THREADS, 1, 1, 0,
					st, params, NULL));
}

/* Its row in the tables, or -EINVAL. */
static int type_index(enum kern_type type)
{
	return type == KERN_F32	   ? 0
	       : type == KERN_F16  ? 1
	       : type == KERN_BF16 ? 2
				   : -EINVAL;
}

static int dim_index(uint32_t head_dim)
{
	for (int i = 0; i < N_DIMS; i++)
		if (dims[i] == head_dim)
			return i;
	return -EINVAL;
}

int kern_gpu_attn(struct kern_gpu *g, enum kern_type type,
		  const struct gpu_attn *a, cuda_stream st)
{
	const int t = type_index(type), d = dim_index(a->head_dim);
	uint32_t group;
	int ret = 0;

	if (t < 0 || d < 0 || !a->n_kv_heads || !a->n_heads ||
	    a->n_heads % a->n_kv_heads || a->n_heads > GRID_YZ_MAX ||
	    a->flags & ~(GPU_ATTN_ADD | GPU_ATTN_FINISH))
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	group = a->n_heads / a->n_kv_heads;
	if (a->n_parts) /* a grid of 0 is an error of the driver's */
		ret = launch(
			g, g->attn[t][d],
			(struct grid){ a->n_parts, a->n_kv_heads,
				       (group + GPU_HEADS - 1) / GPU_HEADS },
			a, st);
	if (ret)
		return ret;
	return launch(g, g->merge, (struct grid){ a->n_rows, a->n_heads, 1 }, a,
		      st);
}

int kern_gpu_append(struct kern_gpu *g, enum kern_type type,
		    const struct gpu_append *a, cuda_stream st)
{
	const int t = type_index(type);

	if (t < 0 || !a->n_kv_heads || !a->head_dim)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	return launch(g, g->append[t], (struct grid){ a->n_rows, 1, 1 }, a, st);
}

int kern_gpu_rmsnorm(struct kern_gpu *g, const struct gpu_rmsnorm *a,
		     cuda_stream st)
{
	if (!a->n)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	return launch(g, g->rmsnorm, (struct grid){ a->n_rows, 1, 1 }, a, st);
}

int kern_gpu_rope(struct kern_gpu *g, const struct gpu_rope *a, cuda_stream st)
{
	if ((a->kind != KERN_ROPE_INTERLEAVED && a->kind != KERN_ROPE_HALVES) ||
	    a->n_rot % 2 || a->n_rot > a->head_dim || !a->n_heads)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	return launch(g, g->rope, (struct grid){ a->n_rows, 1, 1 }, a, st);
}

int kern_gpu_swiglu(struct kern_gpu *g, const struct gpu_swiglu *a,
		    cuda_stream st)
{
	const uint64_t n = (a->n + GPU_THREADS - 1) / GPU_THREADS;

	if (!a->n)
		return 0;
	return launch(g, g->swiglu,
		      (struct grid){ n < 4096 ? (uint32_t)n : 4096, 1, 1 }, a,
		      st);
}

int kern_gpu_read(struct kern_gpu *g, const struct gpu_read *a,
		  uint32_t n_blocks, cuda_stream st)
{
	return launch(g, g->read, (struct grid){ n_blocks, 1, 1 }, a, st);
}
