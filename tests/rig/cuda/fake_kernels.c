/*
 * fake_kernels.c - modules and launches of the fake driver: kernels/gpu.cu as C
 *
 * Whatever image is loaded, these are its kernels. They run on the stream's thread.
 */
#include "tests/rig/cuda/gpu_emu.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#pragma GCC diagnostic ignored "-Wconversion"
#include "kernels/gpu.cu"
#pragma GCC diagnostic pop

#include "tests/rig/cuda/fake_priv.h"

#define STATIC_MAX (48u << 10) /* what every kernel may have */

#define ATTN_ALL(X, d) \
	X(attn_bf16_##d, gpu_attn) \
	X(attn_f16_##d, gpu_attn) \
	X(attn_f32_##d, gpu_attn) \
	X(tiles_bf16_##d, gpu_attn) X(tiles_f16_##d, gpu_attn)
#define KERNELS(X) \
	ATTN_ALL(X, 64) \
	ATTN_ALL(X, 96) \
	ATTN_ALL(X, 128) \
	ATTN_ALL(X, 256) \
	X(wide_bf16_64, gpu_wide) \
	X(wide_f16_64, gpu_wide) \
	X(wide_bf16_128, gpu_wide) \
	X(wide_f16_128, gpu_wide) \
	X(gemm_few_bf16, gpu_gemm) \
	X(gemm_few_f16, gpu_gemm) \
	X(gemm_many_bf16, gpu_gemm) \
	X(gemm_many_f16, gpu_gemm) \
	X(gemm_f32, gpu_gemm) \
	X(attn_merge_v4, gpu_attn) \
	X(attn_join, gpu_join) \
	X(pick_rows, gpu_pick) \
	X(append_bf16, gpu_append) \
	X(append_f16, gpu_append) \
	X(append_f32, gpu_append) \
	X(gather_bf16, gpu_gather) \
	X(gather_f16, gpu_gather) \
	X(gather_f32, gpu_gather) \
	X(from_f32_to_bf16, gpu_convert) \
	X(from_f32_to_f16, gpu_convert) \
	X(from_f32_to_f32, gpu_convert) \
	X(to_f32_from_bf16, gpu_convert) \
	X(to_f32_from_f16, gpu_convert) \
	X(to_f32_from_f32, gpu_convert) \
	X(deviation_bf16, gpu_deviation) \
	X(deviation_f16, gpu_deviation) \
	X(deviation_f32, gpu_deviation) \
	X(move_runs, gpu_move) \
	X(sample, gpu_sample) \
	X(add, gpu_add) \
	X(crc32c, gpu_crc) \
	X(rmsnorm, gpu_rmsnorm) \
	X(rope_bf16, gpu_rope) \
	X(rope_f16, gpu_rope) \
	X(rope_f32, gpu_rope) \
	X(swiglu, gpu_swiglu) X(stream_read, gpu_read)

#define CALL(name, type) \
	static void call_##name(const void *args) \
	{ \
		struct type a; \
\
		memcpy(&a, args, sizeof(a)); \
		name(a); \
	}
KERNELS(CALL)

#define ENTRY(name, type) { #name, sizeof(struct type), call_##name },
static const struct entry {
	const char *name;
	size_t n_bytes;
	void (*fn)(const void *args);
} entries[] = { KERNELS(ENTRY) };
static int is_quick;

/* What a block of attn_f32_64 leaves of part p, for one head; sums in another order. */
static void quick_part(const struct gpu_attn *a, uint32_t p, uint32_t head)
{
	const struct gpu_part part = ((const struct gpu_part *)a->parts)[p];
	const struct gpu_span *first =
		(const struct gpu_span *)a->spans + part.span;
	const int64_t pos = ((const struct gpu_row *)a->rows)[part.row].pos;
	const uint32_t kv = head / (a->n_heads / a->n_kv_heads);
	const size_t row = span_row_bytes(first, 64 * sizeof(float));
	const size_t to = (size_t)p * a->n_heads + head;
	const float *q = (const float *)a->q +
			 first->q_variant * a->q_variant_elems +
			 ((size_t)part.row * a->n_heads + head) * 64;
	float *o = (float *)a->part_o + to * 64, *ml = (float *)a->part_ml;
	float m = -INFINITY, l = 0;

	memset(o, 0, 64 * sizeof(*o));
	for (uint32_t j = 0; j < GPU_SPLIT_TOKENS; j += GPU_TILE) {
		const struct gpu_half at = half_at(first, part.t0 + j);
		const uint32_t mask = tile_mask(at.s, at.t, pos);

		for (uint32_t t = 0; t < GPU_TILE && mask >> t; t++) {
			const size_t off = tile_offset(at.s, at.t, kv) +
					   (at.t % at.s->page_tokens + t) * row;
			const float *k = (const float *)(at.s->k + off);
			const float *v = (const float *)(at.s->v + off);
			float dot = 0, top, x, y;

			if (!(mask >> t & 1))
				continue;
			for (uint32_t d = 0; d < 64; d++)
				dot += q[d] * k[d];
			top = fmaxf(m, dot * a->scale);
			x = m == -INFINITY ? 0 : expf(m - top);
			y = expf(dot * a->scale - top);
			for (uint32_t d = 0; d < 64; d++)
				o[d] = o[d] * x + y * v[d];
			l = l * x + y;
			m = top;
		}
	}
	ml[2 * to] = m;
	ml[2 * to + 1] = l;
}

static void quick_attn(const void *args)
{
	struct gpu_attn a;

	memcpy(&a, args, sizeof(a));
	for (uint32_t p = 0; p < a.n_parts; p++)
		for (uint32_t h = 0; h < a.n_heads; h++)
			quick_part(&a, p, h);
}

void fake_quick(int on);
void fake_quick(int on)
{
	is_quick = on;
}

static unsigned int
	allowed[sizeof(entries) / sizeof(*entries)]; /* shared bytes */

int cuModuleLoadData(cuda_handle *out, const void *image);
int cuModuleLoadData(cuda_handle *out, const void *image)
{
	const int err = fake_enter("cuModuleLoadData");

	if (err)
		return err;
	*out = (void *)(uintptr_t)entries;
	return fake_leave(image ? CUDA_OK : CUDA_INVALID_VALUE);
}

int cuModuleUnload(cuda_handle module);
int cuModuleUnload(cuda_handle module)
{
	const int err = fake_enter("cuModuleUnload");

	if (err)
		return err;
	return fake_leave(module == entries ? CUDA_OK : CUDA_INVALID_HANDLE);
}

int cuModuleGetFunction(cuda_handle *out, cuda_handle module, const char *name);
int cuModuleGetFunction(cuda_handle *out, cuda_handle module, const char *name)
{
	const int err = fake_enter("cuModuleGetFunction");

	if (err)
		return err;
	for (size_t i = 0; i < sizeof(entries) / sizeof(*entries); i++)
		if (module == entries && !strcmp(entries[i].name, name)) {
			*out = (void *)(uintptr_t)&entries[i];
			return fake_leave(CUDA_OK);
		}
	return fake_leave(CUDA_NOT_FOUND);
}

int cuFuncGetAttribute(int *out, int attr, cuda_handle f);
int cuFuncGetAttribute(int *out, int attr, cuda_handle f)
{
	const int err = fake_enter("cuFuncGetAttribute");

	if (err)
		return err;
	if (!f || attr != CUDA_FUNC_PTX)
		return fake_leave(CUDA_INVALID_VALUE);
	*out = 90;
	return fake_leave(CUDA_OK);
}

int cuFuncSetAttribute(cuda_handle f, int attr, int value);
int cuFuncSetAttribute(cuda_handle f, int attr, int value)
{
	const int err = fake_enter("cuFuncSetAttribute");
	const struct entry *e = f;

	if (err)
		return err;
	if (attr != CUDA_FUNC_DYNAMIC_SHARED || value < 0 ||
	    (unsigned int)value > EMU_SHARED)
		return fake_leave(CUDA_INVALID_VALUE);
	allowed[e - entries] = (unsigned int)value;
	return fake_leave(CUDA_OK);
}

int cuLaunchKernel(cuda_handle f, unsigned int gx, unsigned int gy,
		   unsigned int gz, unsigned int bx, unsigned int by,
		   unsigned int bz, unsigned int shared, cuda_stream st,
		   void **args, void **extra);
int cuLaunchKernel(cuda_handle f, unsigned int gx, unsigned int gy,
		   unsigned int gz, unsigned int bx, unsigned int by,
		   unsigned int bz, unsigned int shared, cuda_stream st,
		   void **args, void **extra)
{
	const int err = fake_enter("cuLaunchKernel");
	const struct entry *e = f;
	struct fake_op op = { .kind = OP_LAUNCH,
			      .grid = { gx, gy, gz },
			      .shared = shared };

	if (err)
		return err;
	if (!gx || !gy || !gz || gy > 65535 || gz > 65535 ||
	    bx != GPU_THREADS || by != 1 || bz != 1 || extra ||
	    (shared > STATIC_MAX && shared > allowed[e - entries]))
		return fake_leave(CUDA_INVALID_VALUE);
	op.fn = e->fn;
	if (is_quick && e->fn == call_attn_f32_64) {
		op.fn = quick_attn;
		op.grid[0] = 0;
	}
	memcpy(op.args, args[0], e->n_bytes);
	return fake_leave(fake_queue(st, op));
}
