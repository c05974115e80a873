/*
 * gpu.c - launches of the CUDA kernels; see gpu.h
 */
#include "kernels/gpu_priv.h"

#include <errno.h>
#include <stdlib.h>
#include "kernels/gpu_image.h"

#define GRID_YZ_MAX 65535u
#define N_DIMS	    4
#define GEMM_PITCH  (64 * 2 + 16) /* gpu_gemm.cuh */
#define GEMM_STAGES 4
/* Rows times heads of a list from which on they are computed in tiles: what a block
 * of decode would read again for each row weighs more than blocks that are few. */
#define TILE_FROM   64u

/* By enum gpu_kernel. */
#define BY_DIM(name)  name "_64", name "_96", name "_128", name "_256"
#define BY_TYPE(name) name "_f32", name "_f16", name "_bf16"
static const char *const gpu_names[] = {
	BY_DIM("attn_f32"),
	BY_DIM("attn_f16"),
	BY_DIM("attn_bf16"),
	BY_DIM("tiles_f16"),
	BY_DIM("tiles_bf16"),
	"wide_f16_64",
	"wide_f16_128",
	"wide_bf16_64",
	"wide_bf16_128",
	"gemm_few_f16",
	"gemm_few_bf16",
	"gemm_many_f16",
	"gemm_many_bf16",
	BY_TYPE("append"),
	BY_TYPE("gather"),
	BY_TYPE("from_f32_to"),
	BY_TYPE("to_f32_from"),
	BY_TYPE("deviation"),
	BY_TYPE("rope"),
	"gemm_f32",
	"attn_merge_v4", /* gpu_args.h */
	"attn_join",
	"pick_rows",
	"rmsnorm",
	"swiglu",
	"add",
	"move_runs",
	"sample",
	"crc32c",
	"stream_read",
};
_Static_assert(sizeof(gpu_names) / sizeof(*gpu_names) == GPU_N_KERNELS,
	       "a name for each kernel");

/* ---- open, close ----------------------------------------------------------- */

static const uint32_t dims[N_DIMS] = { 64, 96, 128, 256 };

/* As gpu_flash.cuh lays it out: rows of 16 bytes more than a head has. */
static uint32_t shared_of(int kernel)
{
	const uint32_t dim = dims[kernel % N_DIMS], pitch = 2 * dim + 16;

	if (kernel >= GK_WIDE_F16_64 && kernel <= GK_WIDE_BF16_128)
		return gpu_wide_shared(kernel);
	if (kernel >= GK_GEMM_FEW_F16 && kernel <= GK_GEMM_MANY_BF16)
		return GEMM_STAGES * GEMM_PITCH *
		       (kernel < GK_GEMM_MANY_F16 ? 16 + 32 : 64 + 64);
	if (kernel < GK_ATTN_F16_64 || kernel >= GK_APPEND_F32)
		return 0;
	if (kernel < GK_TILES_F16_64)
		return 2 * 2 * GPU_FLASH_TILE * pitch;
	return (GPU_TILE_ROWS(dim) + 2 * GPU_FLASH_TILE) * pitch;
}

/* Where a block may have less than it wants, only that kernel cannot be had. */
static int find_all(struct kern_gpu *g)
{
	int ret = 0;

	for (int i = 0; i < GPU_N_KERNELS && !ret; i++) {
		ret = kern_errno(g->cu->module_function(&g->f[i], g->module,
							gpu_names[i]));
		g->shared[i] = shared_of(i);
		if (ret || !g->shared[i])
			continue;
		g->ret[i] = kern_errno(g->cu->func_set(
			g->f[i], CUDA_FUNC_DYNAMIC_SHARED, (int)g->shared[i]));
		if (g->ret[i] == -EINVAL)
			g->ret[i] = -ENOTSUP;
		else
			ret = g->ret[i];
	}
	return ret;
}

size_t kern_gpu_image_bytes(void)
{
	size_t n;

	(void)kern_gpu_image(&n);
	return n;
}

int kern_gpu_head_dim_ok(uint32_t head_dim)
{
	return head_dim == 64 || head_dim == 96 || head_dim == 128 ||
	       head_dim == 256;
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

/* Parts of row r from span *i on, and on in those it goes on in: *i is behind them. As
 * kern_gpu_plan(). */
static int64_t plan_grid(const struct gpu_span *spans,
			 const struct kern_gpu_list *rows, uint32_t r,
			 uint32_t *i, struct gpu_part *parts,
			 uint32_t max_parts)
{
	uint64_t t = 0;
	uint32_t n = 0;

	for (;;) {
		const struct gpu_span *s = &spans[*i];

		if (t < s->n_tokens && s->pos + (int64_t)t <= rows[r].pos) {
			if (n == max_parts)
				return -ENOSPC;
			parts[n++] = (struct gpu_part){ r, *i, (uint32_t)t };
			t += GPU_SPLIT_TOKENS;
			continue;
		}
		++*i;
		if (!s->goes_on)
			return n;
		t = t < s->n_tokens ? 0 : t - s->n_tokens;
	}
}

int64_t kern_gpu_plan(const struct gpu_span *spans,
		      const struct kern_gpu_list *rows, uint32_t n_rows,
		      struct gpu_part *parts, uint32_t max_parts,
		      struct gpu_row *out)
{
	uint32_t n = 0;

	for (uint32_t r = 0; r < n_rows; r++) {
		const uint32_t end = rows[r].first_span + rows[r].n_spans;

		out[r] = (struct gpu_row){ rows[r].pos, n, 0 };
		for (uint32_t i = rows[r].first_span; i < end;) {
			const int64_t more = plan_grid(
				spans, rows, r, &i, parts + n, max_parts - n);

			if (more < 0)
				return more;
			n += (uint32_t)more;
		}
		out[r].n_parts = n - out[r].first_part;
	}
	return n;
}

/* Rows from r on that have the list of r. */
static uint32_t same_list(const struct kern_gpu_list *rows, uint32_t r,
			  uint32_t n_rows)
{
	uint32_t n = 1;

	while (r + n < n_rows && rows[r + n].first_span == rows[r].first_span &&
	       rows[r + n].n_spans == rows[r].n_spans)
		n++;
	return n;
}

int kern_gpu_plan_rows(const struct kern_gpu_shape *s,
		       const struct gpu_span *spans,
		       const struct kern_gpu_list *rows, uint32_t n_rows,
		       struct kern_gpu_plan *p)
{
	const uint32_t group = s->n_heads / s->n_kv_heads;
	const uint32_t room = p->tile_rows ? p->tile_rows
					   : GPU_TILE_ROWS(s->head_dim);
	const uint32_t most = group < room ? room / group : 1;
	uint32_t r = 0;

	p->n_parts = p->n_tiles = 0;
	while (r < n_rows) {
		const uint32_t n = same_list(rows, r, n_rows), end = r + n;
		int64_t n_parts;

		/* fewer would leave too much of a tile empty */
		if (s->type != KERN_F32 && rows[r].n_spans &&
		    n * (uint64_t)group >= TILE_FROM)
			while (r < end) {
				const uint32_t k = end - r < most ? end - r
								  : most;

				if (p->n_tiles == p->max_tiles)
					return -ENOSPC;
				p->tiles[p->n_tiles++] =
					(struct gpu_tile){ r, k,
							   rows[r].first_span,
							   rows[r].n_spans };
				for (const uint32_t to = r + k; r < to; r++)
					p->rows[r] = (struct gpu_row){
						rows[r].pos, 0, GPU_ROW_IN_TILE
					};
			}
		if (r == end)
			continue;
		n_parts = kern_gpu_plan(spans, rows + r, n,
					p->parts + p->n_parts,
					p->max_parts - p->n_parts, p->rows + r);
		if (n_parts < 0)
			return (int)n_parts;
		for (uint32_t i = 0; i < n_parts; i++)
			p->parts[p->n_parts + i].row += r;
		for (; r < end; r++)
			p->rows[r].first_part += p->n_parts;
		p->n_parts += (uint32_t)n_parts;
	}
	return 0;
}

/* ---- launches ---------------------------------------------------------------- */

int gpu_launch(struct kern_gpu *g, enum gpu_kernel k, struct gpu_grid n,
	       const void *args, cuda_stream st)
{
	void *params[] = { (void *)(uintptr_t)args }; /* only read */

	if (g->ret[k])
		return g->ret[k];
	return kern_errno(g->cu->launch(g->f[k], n.x, n.y, n.z, GPU_THREADS, 1,
					1, g->shared[k], st, params, NULL));
}

int gpu_of_type(enum gpu_kernel base, enum kern_type type)
{
	return type == KERN_F32	   ? (int)base
	       : type == KERN_F16  ? (int)base + 1
	       : type == KERN_BF16 ? (int)base + 2
				   : -EINVAL;
}

/* 0 to 3, or -EINVAL. */
static int dim_index(uint32_t head_dim)
{
	for (int i = 0; i < N_DIMS; i++)
		if (dims[i] == head_dim)
			return i;
	return -EINVAL;
}

uint32_t gpu_times(uint32_t m, uint32_t n)
{
	return (m + n - 1) / n;
}

int gpu_attn_is_valid(enum kern_type type, const struct gpu_attn *a)
{
	return gpu_of_type(0, type) >= 0 && dim_index(a->head_dim) >= 0 &&
	       a->n_kv_heads && a->n_heads && a->n_heads % a->n_kv_heads == 0 &&
	       a->n_heads <= GRID_YZ_MAX && (type != KERN_F32 || !a->n_tiles) &&
	       (uint64_t)a->n_rows * a->n_heads <= INT32_MAX &&
	       !(a->flags & ~(GPU_ATTN_ADD | GPU_ATTN_FINISH));
}

int gpu_attn_parts(struct kern_gpu *g, enum kern_type type,
		   const struct gpu_attn *a, cuda_stream st)
{
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const uint32_t most = type == KERN_F32 ? GPU_HEADS : GPU_MMA_HEADS;
	const int k = GK_ATTN_F32_64 + N_DIMS * gpu_of_type(0, type) +
		      dim_index(a->head_dim);

	if (!a->n_parts) /* a grid of 0 is an error of the driver's */
		return 0;
	return gpu_launch(g, (enum gpu_kernel)k,
			  (struct gpu_grid){ a->n_parts, a->n_kv_heads,
					     gpu_times(group, most) },
			  a, st);
}

int gpu_attn_merge(struct kern_gpu *g, const struct gpu_attn *a, cuda_stream st)
{
	return gpu_launch(g, GK_MERGE,
			  (struct gpu_grid){ a->n_rows, a->n_heads, 1 }, a, st);
}

static int attn_tiles(struct kern_gpu *g, enum kern_type type,
		      const struct gpu_attn *a, cuda_stream st)
{
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const uint32_t room = GPU_TILE_ROWS(a->head_dim);
	const int k = GK_TILES_F16_64 + N_DIMS * (gpu_of_type(0, type) - 1) +
		      dim_index(a->head_dim);

	if (!a->n_tiles)
		return 0;
	return gpu_launch(
		g, (enum gpu_kernel)k,
		(struct gpu_grid){
			a->n_tiles, a->n_kv_heads,
			gpu_times(group, group < room ? group : room) },
		a, st);
}

int kern_gpu_attn(struct kern_gpu *g, enum kern_type type,
		  const struct gpu_attn *a, cuda_stream st)
{
	int ret;

	if (!gpu_attn_is_valid(type, a))
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	ret = gpu_attn_parts(g, type, a, st);
	if (!ret)
		ret = attn_tiles(g, type, a, st);
	return ret ? ret : gpu_attn_merge(g, a, st);
}
