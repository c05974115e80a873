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
	memcpy(op.args, args[0], e->n_bytes);
	return fake_leave(fake_queue(st, op));
}
