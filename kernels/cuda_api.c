/*
 * cuda_api.c - the CUDA driver, found at run time; see cuda_api.h
 */
#include "kernels/cuda_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SONAME "libcuda.so.1"

/*
 * What a call was asked for cannot be: a bad argument, a handle that is nobody's, memory that
 * is mapped or not. The context goes on, and so does everybody else.
 */
static int is_misuse(int result)
{
	switch (result) {
	case CUDA_INVALID_VALUE:
	case CUDA_INVALID_DEVICE:
	case CUDA_INVALID_CONTEXT:
	case CUDA_CONTEXT_ALREADY_CURRENT:
	case CUDA_MAP_FAILED:
	case CUDA_UNMAP_FAILED:
	case CUDA_ARRAY_IS_MAPPED:
	case CUDA_ALREADY_MAPPED:
	case CUDA_ALREADY_ACQUIRED:
	case CUDA_NOT_MAPPED:
	case CUDA_NOT_MAPPED_AS_ARRAY:
	case CUDA_NOT_MAPPED_AS_POINTER:
	case CUDA_CONTEXT_ALREADY_IN_USE:
	case CUDA_INVALID_GRAPHICS_CONTEXT:
	case CUDA_INVALID_SOURCE:
	case CUDA_SHARED_OBJECT_INIT_FAILED:
	case CUDA_INVALID_HANDLE:
	case CUDA_ILLEGAL_STATE:
	case CUDA_LAUNCH_INCOMPATIBLE_TEXTURING:
	case CUDA_PEER_ACCESS_ALREADY_ENABLED:
	case CUDA_PEER_ACCESS_NOT_ENABLED:
	case CUDA_PRIMARY_CONTEXT_ACTIVE:
	case CUDA_TOO_MANY_PEERS:
	case CUDA_HOST_MEMORY_ALREADY_REGISTERED:
	case CUDA_HOST_MEMORY_NOT_REGISTERED:
	case CUDA_COOPERATIVE_LAUNCH_TOO_LARGE:
	case CUDA_GRAPH_EXEC_UPDATE_FAILURE:
		return 1;
	default: /* of stream capture */
		return result >= CUDA_CAPTURE_UNSUPPORTED &&
		       result <= CUDA_CAPTURE_WRONG_THREAD;
	}
}

int kern_errno(int result)
{
	if (is_misuse(result))
		return -EINVAL;
	switch (result) {
	case CUDA_OK:
		return 0;
	case CUDA_OUT_OF_MEMORY:
	case CUDA_LAUNCH_OUT_OF_RESOURCES:
		return -ENOMEM;
	case CUDA_NOT_READY:
		return -EAGAIN;
	case CUDA_NOT_FOUND:
	case CUDA_FILE_NOT_FOUND:
	case CUDA_SHARED_OBJECT_SYMBOL_NOT_FOUND:
		return -ENOENT;
	case CUDA_TIMEOUT:
		return -ETIMEDOUT;
	case CUDA_NOT_PERMITTED:
		return -EPERM;
	case CUDA_NOT_SUPPORTED:
	case CUDA_INVALID_IMAGE:
	case CUDA_INVALID_PTX:
	case CUDA_NO_BINARY_FOR_GPU:
	case CUDA_UNSUPPORTED_PTX_VERSION:
	case CUDA_UNSUPPORTED_LIMIT:
	case CUDA_UNSUPPORTED_EXEC_AFFINITY:
	case CUDA_PEER_ACCESS_UNSUPPORTED:
	case CUDA_JIT_COMPILER_NOT_FOUND:
	case CUDA_JIT_COMPILATION_DISABLED:
		return -ENOTSUP;
	case CUDA_OPERATING_SYSTEM:
		return -EIO;
	default:
		/*
		 * No device, an uncorrectable error, a fault of a kernel: all of
		 * them end the context (and, unknown, so might the rest).
		 */
		return -ENODEV;
	}
}

const char *cuda_error_name(const struct cuda_api *api, int result)
{
	const char *name = NULL;

	if (api->error_name(result, &name) || !name)
		return "an unknown CUDA error";
	return name;
}

/* Every call of the table; the name of one that is missing, or NULL. */
static const char *fill(struct cuda_api *a)
{
	void *p;

	/* POSIX has dlsym() give functions as void *: copied, not cast */
#define CUDA_LOAD(field, symbol, args) \
	p = dlsym(a->lib, symbol); \
	if (!p) \
		return symbol; \
	memcpy(&a->field, &p, sizeof(a->field));
	CUDA_CALLS(CUDA_LOAD)
#undef CUDA_LOAD
	p = dlsym(a->lib, "cuTensorMapEncodeTiled");
	memcpy(&a->tensor_map, &p, sizeof(a->tensor_map));
	p = dlsym(a->lib, "cuCtxCreate_v2");
	memcpy(&a->ctx_new, &p, sizeof(a->ctx_new));
	p = dlsym(a->lib, "cuCtxDestroy_v2");
	memcpy(&a->ctx_free, &p, sizeof(a->ctx_free));
	return NULL;
}

static int start(struct cuda_api *a, char *why, size_t why_len)
{
	const char *call = "cuInit";
	int r = a->init(0);

	if (!r) {
		call = "cuDriverGetVersion";
		r = a->driver_version(&a->version);
	}
	if (!r) {
		call = "cuDeviceGetCount";
		r = a->device_count(&a->n_devices);
	}
	if (r) {
		snprintf(why, why_len, "%s: %s", call, cuda_error_name(a, r));
		return kern_errno(r);
	}
	if (a->n_devices < 1) {
		snprintf(why, why_len, "driver %d.%d has no device",
			 a->version / 1000, a->version % 1000 / 10);
		return -ENODEV;
	}
	snprintf(why, why_len, "driver %d.%d, %d device%s", a->version / 1000,
		 a->version % 1000 / 10, a->n_devices,
		 a->n_devices == 1 ? "" : "s");
	return 0;
}

int cuda_api_open(struct cuda_api **out, const char *library, char *why,
		  size_t why_len)
{
	struct cuda_api *a = calloc(1, sizeof(*a));
	const char *missing;
	int ret;

	if (!a) {
		snprintf(why, why_len, "out of memory");
		return -ENOMEM;
	}
	if (!library)
		library = SONAME;
	/* it stays: threads of the driver may outlive its last use */
	a->lib = dlopen(library, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	if (!a->lib) {
		snprintf(why, why_len, "%s", dlerror());
		free(a);
		return -ENOENT;
	}
	missing = fill(a);
	if (missing) {
		snprintf(why, why_len, "%s has no %s", library, missing);
		ret = -ENOSYS;
	} else {
		ret = start(a, why, why_len);
	}
	if (ret) {
		cuda_api_close(a);
		return ret;
	}
	*out = a;
	return 0;
}

void cuda_api_close(struct cuda_api *api)
{
	if (!api)
		return;
	(void)dlclose(api->lib); /* a count only, see above */
	free(api);
}
