/*
 * gpu_elem.c - launches of what is not attention; see gpu.h
 */
#include "kernels/gpu_priv.h"

#include <errno.h>

#define BLOCKS_MAX 4096u
#define GRID_Y_MAX 65535u

struct gpu_grid gpu_grid_of(uint64_t n)
{
	const uint64_t b = (n + GPU_THREADS - 1) / GPU_THREADS;

	return (struct gpu_grid){ b < BLOCKS_MAX ? (uint32_t)b : BLOCKS_MAX, 1,
				  1 };
}

/* A block a row; no rows, no launch. */
static int by_rows(struct kern_gpu *g, int k, uint32_t n_rows, const void *a,
		   cuda_stream st)
{
	if (k < 0)
		return k;
	if (!n_rows)
		return 0;
	return gpu_launch(g, (enum gpu_kernel)k,
			  (struct gpu_grid){ n_rows, 1, 1 }, a, st);
}

/* A thread an element. */
static int by_elems(struct kern_gpu *g, int k, uint64_t n, const void *a,
		    cuda_stream st)
{
	if (k < 0)
		return k;
	if (!n)
		return 0;
	return gpu_launch(g, (enum gpu_kernel)k, gpu_grid_of(n), a, st);
}

int kern_gpu_append(struct kern_gpu *g, enum kern_type type,
		    const struct gpu_append *a, cuda_stream st)
{
	if (!a->n_kv_heads || !a->head_dim)
		return -EINVAL;
	return by_rows(g, gpu_of_type(GK_APPEND_F32, type), a->n_rows, a, st);
}

int kern_gpu_deviation(struct kern_gpu *g, enum kern_type type,
		       const struct gpu_deviation *a, cuda_stream st)
{
	if (!a->n_kv_heads || !a->head_dim)
		return -EINVAL;
	return by_rows(g, gpu_of_type(GK_DEVIATION_F32, type), a->n_rows, a,
		       st);
}

int kern_gpu_gather(struct kern_gpu *g, enum kern_type type,
		    const struct gpu_gather *a, cuda_stream st)
{
	if (!a->n)
		return -EINVAL;
	return by_rows(g, gpu_of_type(GK_GATHER_F32, type), a->n_rows, a, st);
}

int kern_gpu_pick(struct kern_gpu *g, const struct gpu_pick *a, cuda_stream st)
{
	if (!a->n)
		return -EINVAL;
	return by_rows(g, GK_PICK, a->n_rows, a, st);
}

int kern_gpu_join(struct kern_gpu *g, const struct gpu_join *a, cuda_stream st)
{
	if (!a->n_heads || a->n_heads > GRID_Y_MAX || !a->head_dim)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	return gpu_launch(g, GK_JOIN,
			  (struct gpu_grid){ a->n_rows, a->n_heads, 1 }, a, st);
}

int kern_gpu_rmsnorm(struct kern_gpu *g, const struct gpu_rmsnorm *a,
		     cuda_stream st)
{
	if (!a->n)
		return -EINVAL;
	return by_rows(g, GK_RMSNORM, a->n_rows, a, st);
}

int kern_gpu_rope(struct kern_gpu *g, enum kern_type to,
		  const struct gpu_rope *a, cuda_stream st)
{
	const uint64_t n = (uint64_t)a->n_rows * a->n_variants;

	if ((a->kind != KERN_ROPE_INTERLEAVED && a->kind != KERN_ROPE_HALVES) ||
	    a->n_rot % 2 || a->n_rot > a->head_dim || !a->n_heads ||
	    n > INT32_MAX)
		return -EINVAL;
	return by_rows(g, gpu_of_type(GK_ROPE_F32, to), (uint32_t)n, a, st);
}

int kern_gpu_swiglu(struct kern_gpu *g, const struct gpu_swiglu *a,
		    cuda_stream st)
{
	return by_elems(g, GK_SWIGLU, a->n, a, st);
}

int kern_gpu_add(struct kern_gpu *g, const struct gpu_add *a, cuda_stream st)
{
	return by_elems(g, GK_ADD, a->n, a, st);
}

int kern_gpu_from_f32(struct kern_gpu *g, enum kern_type to,
		      const struct gpu_convert *a, cuda_stream st)
{
	return by_elems(g, gpu_of_type(GK_FROM_F32_F32, to), a->n, a, st);
}

int kern_gpu_to_f32(struct kern_gpu *g, enum kern_type from,
		    const struct gpu_convert *a, cuda_stream st)
{
	return by_elems(g, gpu_of_type(GK_TO_F32_F32, from), a->n, a, st);
}

int kern_gpu_move(struct kern_gpu *g, const struct gpu_move *a, cuda_stream st)
{
	if (!a->n_heads || a->n_heads > GRID_Y_MAX || a->n_bytes % 16 ||
	    a->src_head_bytes % 16 || a->dst_head_bytes % 16)
		return -EINVAL;
	if (!a->n_runs || !a->n_bytes)
		return 0;
	return gpu_launch(g, GK_MOVE,
			  (struct gpu_grid){ a->n_runs, a->n_heads, 1 }, a, st);
}

_Static_assert(sizeof(struct gpu_sampler) == sizeof(struct kern_sample) &&
		       offsetof(struct gpu_sampler, top_k) ==
			       offsetof(struct kern_sample, top_k) &&
		       offsetof(struct gpu_sampler, min_p) ==
			       offsetof(struct kern_sample, min_p) &&
		       offsetof(struct gpu_sampler, pos) ==
			       offsetof(struct kern_sample, pos),
	       "they are the same");

int kern_gpu_sample(struct kern_gpu *g, const struct gpu_sample *a,
		    cuda_stream st)
{
	if (!a->n || a->n > GPU_SAMPLE_MAX)
		return -EINVAL;
	return by_rows(g, GK_SAMPLE, a->n_rows, a, st);
}

int kern_gpu_crc(struct kern_gpu *g, const struct gpu_crc *a, cuda_stream st)
{
	const struct gpu_grid n = {
		(a->n_chunks + GPU_THREADS - 1) / GPU_THREADS, 1, 1
	};

	if (a->src % 4 || a->chunk_bytes % 4)
		return -EINVAL;
	return a->n_chunks ? gpu_launch(g, GK_CRC, n, a, st) : 0;
}

int kern_gpu_gemm(struct kern_gpu *g, enum kern_type type,
		  const struct gpu_gemm *a, cuda_stream st)
{
	const int t = gpu_of_type(0, type), few = a->n_rows <= 16;
	const struct gpu_grid n =
		t == 0 ? (struct gpu_grid){ gpu_times(a->n_out, GPU_WARPS),
					    a->n_rows, 1 }
		: few  ? (struct gpu_grid){ gpu_times(a->n_out, 32), 1, 1 }
		       : (struct gpu_grid){ gpu_times(a->n_out, 64),
					    gpu_times(a->n_rows, 64), 1 };
	const int k =
		t == 0 ? (int)GK_GEMM_F32
		       : (few ? (int)GK_GEMM_FEW_F16 : (int)GK_GEMM_MANY_F16) +
				 t - 1;

	if (t < 0 || !a->n_out || !a->n_in || a->n_in % 8 ||
	    a->x_stride < a->n_in || a->y_stride < a->n_out ||
	    a->x_stride % 8 || (a->x | a->w | a->y) % 16 ||
	    a->flags & ~GPU_GEMM_ADD || n.y > GRID_Y_MAX)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	return gpu_launch(g, (enum gpu_kernel)k, n, a, st);
}

int kern_gpu_read(struct kern_gpu *g, const struct gpu_read *a,
		  uint32_t n_blocks, cuda_stream st)
{
	return by_rows(g, GK_READ, n_blocks, a, st);
}
