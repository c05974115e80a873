/*
 * cuda_api.h - the CUDA driver, found at run time
 *
 * libcuda is loaded with dlopen(): one binary runs on hosts with and without a
 * driver. The declarations are our own, of what is used and no more, so that
 * nothing of the toolkit is needed to build; where <cuda.h> is found,
 * tests/unit/test_cuda_api.c compares them with it. Only calls whose ABI has been
 * the same since CUDA 11.4 are named, with the suffix of that version.
 *
 * The calls are to be made as the driver documents them; each returns a CUresult,
 * which kern_errno() turns into -errno. Any thread, after ctx_set() on it.
 */
#ifndef KERNELS_CUDA_API_H
#define KERNELS_CUDA_API_H

#include <stddef.h>
#include <stdint.h>

/* CUdeviceptr, CUmemGenericAllocationHandle, CUstream, CUevent, CUfunction ... */
typedef uint64_t cuda_ptr;
typedef uint64_t cuda_mem;
typedef void *cuda_stream;
typedef void *cuda_event;
typedef void *cuda_handle; /* a context, module or function */

/* CUresult: those that kern_errno() knows, and what ends a context. */
enum cuda_result {
	CUDA_OK = 0,
	CUDA_INVALID_VALUE = 1,
	CUDA_OUT_OF_MEMORY = 2,
	CUDA_NOT_INITIALIZED = 3,
	CUDA_DEINITIALIZED = 4,
	CUDA_STUB_LIBRARY = 34,
	CUDA_DEVICE_UNAVAILABLE = 46,
	CUDA_NO_DEVICE = 100,
	CUDA_INVALID_DEVICE = 101,
	CUDA_INVALID_IMAGE = 200,
	CUDA_INVALID_CONTEXT = 201,
	CUDA_CONTEXT_ALREADY_CURRENT = 202,
	CUDA_MAP_FAILED = 205,
	CUDA_UNMAP_FAILED = 206,
	CUDA_ARRAY_IS_MAPPED = 207,
	CUDA_ALREADY_MAPPED = 208,
	CUDA_NO_BINARY_FOR_GPU = 209,
	CUDA_ALREADY_ACQUIRED = 210,
	CUDA_NOT_MAPPED = 211,
	CUDA_NOT_MAPPED_AS_ARRAY = 212,
	CUDA_NOT_MAPPED_AS_POINTER = 213,
	CUDA_ECC_UNCORRECTABLE = 214,
	CUDA_UNSUPPORTED_LIMIT = 215,
	CUDA_CONTEXT_ALREADY_IN_USE = 216,
	CUDA_PEER_ACCESS_UNSUPPORTED = 217,
	CUDA_INVALID_PTX = 218,
	CUDA_INVALID_GRAPHICS_CONTEXT = 219,
	CUDA_NVLINK_UNCORRECTABLE = 220,
	CUDA_JIT_COMPILER_NOT_FOUND = 221,
	CUDA_UNSUPPORTED_PTX_VERSION = 222,
	CUDA_JIT_COMPILATION_DISABLED = 223,
	CUDA_UNSUPPORTED_EXEC_AFFINITY = 224,
	CUDA_INVALID_SOURCE = 300,
	CUDA_FILE_NOT_FOUND = 301,
	CUDA_SHARED_OBJECT_SYMBOL_NOT_FOUND = 302,
	CUDA_SHARED_OBJECT_INIT_FAILED = 303,
	CUDA_OPERATING_SYSTEM = 304,
	CUDA_INVALID_HANDLE = 400,
	CUDA_ILLEGAL_STATE = 401,
	CUDA_NOT_FOUND = 500,
	CUDA_NOT_READY = 600,
	CUDA_ILLEGAL_ADDRESS = 700,
	CUDA_LAUNCH_OUT_OF_RESOURCES = 701,
	CUDA_LAUNCH_TIMEOUT = 702,
	CUDA_LAUNCH_INCOMPATIBLE_TEXTURING = 703,
	CUDA_PEER_ACCESS_ALREADY_ENABLED = 704,
	CUDA_PEER_ACCESS_NOT_ENABLED = 705,
	CUDA_PRIMARY_CONTEXT_ACTIVE = 708,
	CUDA_CONTEXT_IS_DESTROYED = 709,
	CUDA_ASSERT = 710,
	CUDA_TOO_MANY_PEERS = 711,
	CUDA_HOST_MEMORY_ALREADY_REGISTERED = 712,
	CUDA_HOST_MEMORY_NOT_REGISTERED = 713,
	CUDA_HARDWARE_STACK_ERROR = 714,
	CUDA_INVALID_PC = 718,
	CUDA_LAUNCH_FAILED = 719,
	CUDA_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
	CUDA_NOT_PERMITTED = 800,
	CUDA_NOT_SUPPORTED = 801,
	CUDA_SYSTEM_NOT_READY = 802,
	CUDA_SYSTEM_DRIVER_MISMATCH = 803,
	CUDA_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804,
	CUDA_CAPTURE_UNSUPPORTED = 900,
	CUDA_CAPTURE_INVALIDATED = 901,
	CUDA_CAPTURE_MERGE = 902,
	CUDA_CAPTURE_UNMATCHED = 903,
	CUDA_CAPTURE_UNJOINED = 904,
	CUDA_CAPTURE_ISOLATION = 905,
	CUDA_CAPTURE_IMPLICIT = 906,
	CUDA_CAPTURED_EVENT = 907,
	CUDA_CAPTURE_WRONG_THREAD = 908,
	CUDA_TIMEOUT = 909,
	CUDA_GRAPH_EXEC_UPDATE_FAILURE = 910,
	CUDA_UNKNOWN = 999,
};

/* CUmemLocation, CUmemAllocationProp, CUmemAccessDesc */
struct cuda_location {
	int type; /* CUDA_LOCATION_DEVICE */
	int id; /* number of the device */
};

struct cuda_mem_prop {
	int type; /* CUDA_ALLOCATION_PINNED */
	int handle_types; /* CUDA_HANDLE_POSIX_FD or 0 */
	struct cuda_location location;
	void *win32;
	unsigned char compression;
	unsigned char rdma;
	unsigned short usage;
	unsigned char reserved[4];
};

struct cuda_access {
	struct cuda_location location;
	int flags; /* CUDA_PROT_READWRITE */
};

/* CUipcMemHandle, CUipcEventHandle: by value */
struct cuda_ipc {
	char bytes[64];
};

enum {
	CUDA_LOCATION_DEVICE = 1,
	CUDA_ALLOCATION_PINNED = 1,
	CUDA_HANDLE_POSIX_FD = 1,
	CUDA_PROT_READ = 1,
	CUDA_PROT_READWRITE = 3,
	CUDA_GRANULARITY_MINIMUM = 0,
	CUDA_CAPTURE_RELAXED = 2, /* CU_STREAM_CAPTURE_MODE_RELAXED */
	CUDA_STREAM_NON_BLOCKING = 1,
	CUDA_EVENT_BLOCKING_SYNC = 1,
	CUDA_EVENT_DISABLE_TIMING = 2,
	CUDA_EVENT_INTERPROCESS = 4,
	CUDA_IPC_LAZY_PEER = 1,
	CUDA_HOST_PORTABLE = 1,
	CUDA_MANAGED_GLOBAL = 1,
	CUDA_ADVISE_PREFERRED = 3,
	CUDA_ADVISE_ACCESSED_BY = 5,
	CUDA_CPU = -1, /* as a device */
	CUDA_TENSOR_16 = 1, /* elements of 16 bits */
	CUDA_SWIZZLE_128 = 3,
	CUDA_L2_256 = 3,
	CUDA_FUNC_PTX = 5, /* 10 times the architecture it was compiled for */
	CUDA_FUNC_DYNAMIC_SHARED = 8, /* bytes a launch may ask for */
	CUDA_ATTR_N_SM = 16,
	CUDA_ATTR_MAJOR = 75,
	CUDA_ATTR_MINOR = 76,
	CUDA_ATTR_MANAGED = 83, /* managed memory */
	CUDA_ATTR_MANAGED_CONCURRENT = 89, /* while kernels run */
	CUDA_ATTR_VMM = 102, /* virtual memory management */
	CUDA_ATTR_RDMA_VMM = 110, /* cuda_mem_prop.rdma */
	CUDA_ATTR_POSIX_FD = 103, /* handles as file descriptors */
};

/* X(field, symbol, arguments): everything that is called. */
#define CUDA_CALLS(X) \
	X(init, "cuInit", (unsigned int flags)) \
	X(driver_version, "cuDriverGetVersion", (int *out)) \
	X(error_name, "cuGetErrorName", (int result, const char **out)) \
	X(device_count, "cuDeviceGetCount", (int *out)) \
	X(device_get, "cuDeviceGet", (int *out, int i)) \
	X(device_name, "cuDeviceGetName", (char *out, int n, int dev)) \
	X(device_pci, "cuDeviceGetPCIBusId", (char *out, int n, int dev)) \
	X(device_uuid, "cuDeviceGetUuid", (void *out, int dev)) \
	X(device_attr, "cuDeviceGetAttribute", (int *out, int attr, int dev)) \
	X(device_bytes, "cuDeviceTotalMem_v2", (size_t * out, int dev)) \
	X(ctx_retain, "cuDevicePrimaryCtxRetain", \
	  (cuda_handle * out, int dev)) \
	X(ctx_release, "cuDevicePrimaryCtxRelease_v2", (int dev)) \
	X(ctx_set, "cuCtxSetCurrent", (cuda_handle ctx)) \
	X(ctx_prio, "cuCtxGetStreamPriorityRange", (int *least, int *most)) \
	X(mem_info, "cuMemGetInfo_v2", (size_t * n_free, size_t * total)) \
	X(alloc, "cuMemAlloc_v2", (cuda_ptr * out, size_t n)) \
	X(free, "cuMemFree_v2", (cuda_ptr at)) \
	X(alloc_managed, "cuMemAllocManaged", \
	  (cuda_ptr * out, size_t n, unsigned int flags)) \
	X(advise, "cuMemAdvise", (cuda_ptr at, size_t n, int advice, int dev)) \
	X(prefetch, "cuMemPrefetchAsync", \
	  (cuda_ptr at, size_t n, int dev, cuda_stream st)) \
	X(range_of, "cuMemGetAddressRange_v2", \
	  (cuda_ptr * base, size_t * n, cuda_ptr at)) \
	X(ipc_mem, "cuIpcGetMemHandle", (struct cuda_ipc * out, cuda_ptr at)) \
	X(ipc_open, "cuIpcOpenMemHandle_v2", \
	  (cuda_ptr * out, struct cuda_ipc h, unsigned int flags)) \
	X(ipc_close, "cuIpcCloseMemHandle", (cuda_ptr at)) \
	X(ipc_event, "cuIpcGetEventHandle", \
	  (struct cuda_ipc * out, cuda_event e)) \
	X(ipc_event_open, "cuIpcOpenEventHandle", \
	  (cuda_event * out, struct cuda_ipc h)) \
	X(reserve, "cuMemAddressReserve", \
	  (cuda_ptr * out, size_t n, size_t align, cuda_ptr at, \
	   unsigned long long flags)) \
	X(unreserve, "cuMemAddressFree", (cuda_ptr at, size_t n)) \
	X(granularity, "cuMemGetAllocationGranularity", \
	  (size_t * out, const struct cuda_mem_prop *prop, int option)) \
	X(create, "cuMemCreate", \
	  (cuda_mem * out, size_t n, const struct cuda_mem_prop *prop, \
	   unsigned long long flags)) \
	X(release, "cuMemRelease", (cuda_mem mem)) \
	X(map, "cuMemMap", \
	  (cuda_ptr at, size_t n, size_t off, cuda_mem mem, \
	   unsigned long long flags)) \
	X(set_access, "cuMemSetAccess", \
	  (cuda_ptr at, size_t n, const struct cuda_access *a, size_t n_a)) \
	X(unmap, "cuMemUnmap", (cuda_ptr at, size_t n)) \
	X(export_fd, "cuMemExportToShareableHandle", \
	  (void *out, cuda_mem mem, int type, unsigned long long flags)) \
	X(import_fd, "cuMemImportFromShareableHandle", \
	  (cuda_mem * out, void *handle, int type)) \
	X(host_register, "cuMemHostRegister_v2", \
	  (void *p, size_t n, unsigned int flags)) \
	X(host_unregister, "cuMemHostUnregister", (void *p)) \
	X(host_alloc, "cuMemHostAlloc", \
	  (void **out, size_t n, unsigned int flags)) \
	X(host_free, "cuMemFreeHost", (void *p)) \
	X(stream_new, "cuStreamCreateWithPriority", \
	  (cuda_stream * out, unsigned int flags, int priority)) \
	X(stream_free, "cuStreamDestroy_v2", (cuda_stream st)) \
	X(stream_sync, "cuStreamSynchronize", (cuda_stream st)) \
	X(stream_wait, "cuStreamWaitEvent", \
	  (cuda_stream st, cuda_event e, unsigned int flags)) \
	X(event_new, "cuEventCreate", (cuda_event * out, unsigned int flags)) \
	X(event_free, "cuEventDestroy_v2", (cuda_event e)) \
	X(event_record, "cuEventRecord", (cuda_event e, cuda_stream st)) \
	X(event_query, "cuEventQuery", (cuda_event e)) \
	X(event_sync, "cuEventSynchronize", (cuda_event e)) \
	X(h2d, "cuMemcpyHtoDAsync_v2", \
	  (cuda_ptr to, const void *from, size_t n, cuda_stream st)) \
	X(d2h, "cuMemcpyDtoHAsync_v2", \
	  (void *to, cuda_ptr from, size_t n, cuda_stream st)) \
	X(memset8, "cuMemsetD8Async", \
	  (cuda_ptr to, unsigned char value, size_t n, cuda_stream st)) \
	X(capture, "cuStreamBeginCapture_v2", (cuda_stream st, int mode)) \
	X(capture_end, "cuStreamEndCapture", \
	  (cuda_stream st, cuda_handle * graph)) \
	X(graph_free, "cuGraphDestroy", (cuda_handle graph)) \
	X(exec_new, "cuGraphInstantiateWithFlags", \
	  (cuda_handle * exec, cuda_handle graph, unsigned long long flags)) \
	X(exec_free, "cuGraphExecDestroy", (cuda_handle exec)) \
	X(exec_launch, "cuGraphLaunch", (cuda_handle exec, cuda_stream st)) \
	X(module_load, "cuModuleLoadData", \
	  (cuda_handle * out, const void *image)) \
	X(module_unload, "cuModuleUnload", (cuda_handle module)) \
	X(module_function, "cuModuleGetFunction", \
	  (cuda_handle * out, cuda_handle module, const char *name)) \
	X(func_get, "cuFuncGetAttribute", (int *out, int attr, cuda_handle f)) \
	X(func_set, "cuFuncSetAttribute", \
	  (cuda_handle f, int attr, int value)) \
	X(launch, "cuLaunchKernel", \
	  (cuda_handle f, unsigned int gx, unsigned int gy, unsigned int gz, \
	   unsigned int bx, unsigned int by, unsigned int bz, \
	   unsigned int shared, cuda_stream st, void **args, void **extra))

#define CUDA_FIELD(field, symbol, args) int(*field) args;
struct cuda_api {
	void *lib;
	int version; /* of the driver: 12040 is 12.4 */
	int n_devices;
	CUDA_CALLS(CUDA_FIELD)
	/* cuTensorMapEncodeTiled of CUDA 12, or NULL */
	int (*tensor_map)(void *out, int type, uint32_t rank, void *base,
			  const uint64_t *n, const uint64_t *strides,
			  const uint32_t *box, const uint32_t *steps,
			  int interleave, int swizzle, int l2, int fill);
	/* cuCtxCreate_v2, current then, and cuCtxDestroy_v2; or NULL */
	int (*ctx_new)(cuda_handle *out, unsigned int flags, int dev);
	int (*ctx_free)(cuda_handle ctx);
};
#undef CUDA_FIELD

/*
 * Load the driver and initialise it.
 *
 * library  path or soname; NULL: libcuda.so.1
 * why      [why_len] what was found, or why not, one line
 *
 * Returns 0; -ENOENT no such library; -ENOSYS it lacks a call; -ENODEV no device
 * or the driver refuses; other errors of kern_errno(). Then *out is not written.
 * May take a second where there are many GPUs; not for the loop thread while it
 * serves.
 */
int cuda_api_open(struct cuda_api **out, const char *library, char *why,
		  size_t why_len);
/* Nothing of the driver is in use any more. The library stays loaded. */
void cuda_api_close(struct cuda_api *api);

/*
 * A CUresult as -errno; the only place where that is decided. A device that is
 * lost, or a context that is broken for good, is -ENODEV. Not ready is -EAGAIN.
 */
int kern_errno(int result);
/* "CUDA_ERROR_OUT_OF_MEMORY", never NULL. */
const char *cuda_error_name(const struct cuda_api *api, int result);

#endif
