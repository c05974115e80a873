/*
 * test_cuda_api.c - the driver is found or not, its errors, our declarations, and
 * that the fake driver of the other tests is as strict as a device
 */
#include <assert.h>
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#if __has_include(<cuda.h>)
#include <cuda.h>
#endif
#include "tests/rig/rig_cuda.h"

#define PAGE 65536u

static struct cuda_api *api;
static struct fake_ctl ctl;

static const struct cuda_mem_prop prop = {
	.type = CUDA_ALLOCATION_PINNED,
	.location = { CUDA_LOCATION_DEVICE, 0 },
};
static const struct cuda_access rw = { { CUDA_LOCATION_DEVICE, 0 },
				       CUDA_PROT_READWRITE };

/* ---- declarations --------------------------------------------------------- */

static_assert(sizeof(struct cuda_mem_prop) == 32, "ABI of the driver");
static_assert(sizeof(struct cuda_access) == 12, "ABI of the driver");
#ifdef CUDA_VERSION
static_assert(sizeof(struct cuda_mem_prop) == sizeof(CUmemAllocationProp), "");
static_assert(sizeof(struct cuda_access) == sizeof(CUmemAccessDesc), "");
static_assert(offsetof(struct cuda_mem_prop, location) ==
		      offsetof(CUmemAllocationProp, location),
	      "");
static_assert(offsetof(struct cuda_mem_prop, usage) ==
		      offsetof(CUmemAllocationProp, allocFlags.usage),
	      "");
static_assert(sizeof(cuda_ptr) == sizeof(CUdeviceptr), "");
static_assert(sizeof(cuda_mem) == sizeof(CUmemGenericAllocationHandle), "");
static_assert(CUDA_LOCATION_DEVICE == (int)CU_MEM_LOCATION_TYPE_DEVICE, "");
static_assert(CUDA_ALLOCATION_PINNED == (int)CU_MEM_ALLOCATION_TYPE_PINNED, "");
static_assert(CUDA_HANDLE_POSIX_FD ==
		      (int)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	      "");
static_assert(CUDA_PROT_READ == (int)CU_MEM_ACCESS_FLAGS_PROT_READ, "");
static_assert(CUDA_PROT_READWRITE == (int)CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	      "");
static_assert(CUDA_CAPTURE_RELAXED == (int)CU_STREAM_CAPTURE_MODE_RELAXED, "");
static_assert(CUDA_GRANULARITY_MINIMUM == (int)CU_MEM_ALLOC_GRANULARITY_MINIMUM,
	      "");
static_assert(CUDA_STREAM_NON_BLOCKING == (int)CU_STREAM_NON_BLOCKING, "");
static_assert(CUDA_EVENT_BLOCKING_SYNC == (int)CU_EVENT_BLOCKING_SYNC, "");
static_assert(CUDA_EVENT_DISABLE_TIMING == (int)CU_EVENT_DISABLE_TIMING, "");
static_assert(CUDA_FUNC_PTX == (int)CU_FUNC_ATTRIBUTE_PTX_VERSION, "");
static_assert(CUDA_FUNC_DYNAMIC_SHARED ==
		      (int)CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
	      "");
#if CUDA_VERSION >= 12000
static_assert(CUDA_TENSOR_16 == (int)CU_TENSOR_MAP_DATA_TYPE_UINT16, "");
static_assert(CUDA_SWIZZLE_128 == (int)CU_TENSOR_MAP_SWIZZLE_128B, "");
static_assert(CUDA_L2_256 == (int)CU_TENSOR_MAP_L2_PROMOTION_L2_256B, "");
#endif
static_assert(CUDA_HOST_PORTABLE == CU_MEMHOSTREGISTER_PORTABLE, "");
static_assert(CUDA_ATTR_N_SM == (int)CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
	      "");
static_assert(CUDA_ATTR_MAJOR ==
		      (int)CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
	      "");
static_assert(CUDA_ATTR_MINOR ==
		      (int)CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
	      "");
static_assert(
	CUDA_ATTR_VMM ==
		(int)CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
	"");
static_assert(
	CUDA_ATTR_POSIX_FD ==
		(int)CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
	"");
static_assert(
	CUDA_ATTR_RDMA_VMM ==
		(int)CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
	"");
static_assert(sizeof(struct cuda_ipc) == sizeof(CUipcMemHandle), "");
static_assert(sizeof(struct cuda_ipc) == sizeof(CUipcEventHandle), "");
static_assert(CUDA_EVENT_INTERPROCESS == (int)CU_EVENT_INTERPROCESS, "");
static_assert(CUDA_IPC_LAZY_PEER == (int)CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS,
	      "");
static_assert(CUDA_MANAGED_GLOBAL == (int)CU_MEM_ATTACH_GLOBAL, "");
static_assert(CUDA_ADVISE_PREFERRED ==
		      (int)CU_MEM_ADVISE_SET_PREFERRED_LOCATION,
	      "");
static_assert(CUDA_ADVISE_ACCESSED_BY == (int)CU_MEM_ADVISE_SET_ACCESSED_BY,
	      "");
static_assert(CUDA_CPU == (int)CU_DEVICE_CPU, "");
static_assert(CUDA_ATTR_MANAGED == (int)CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, "");
static_assert(CUDA_ATTR_MANAGED_CONCURRENT ==
		      (int)CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS,
	      "");
#define SAME(ours, theirs) \
	static_assert((int)(ours) == (int)CUDA_ERROR_##theirs, #theirs)
SAME(CUDA_INVALID_VALUE, INVALID_VALUE);
SAME(CUDA_OUT_OF_MEMORY, OUT_OF_MEMORY);
SAME(CUDA_NOT_INITIALIZED, NOT_INITIALIZED);
SAME(CUDA_DEINITIALIZED, DEINITIALIZED);
SAME(CUDA_STUB_LIBRARY, STUB_LIBRARY);
SAME(CUDA_DEVICE_UNAVAILABLE, DEVICE_UNAVAILABLE);
SAME(CUDA_NO_DEVICE, NO_DEVICE);
SAME(CUDA_INVALID_DEVICE, INVALID_DEVICE);
SAME(CUDA_INVALID_IMAGE, INVALID_IMAGE);
SAME(CUDA_INVALID_CONTEXT, INVALID_CONTEXT);
SAME(CUDA_NO_BINARY_FOR_GPU, NO_BINARY_FOR_GPU);
SAME(CUDA_ECC_UNCORRECTABLE, ECC_UNCORRECTABLE);
SAME(CUDA_INVALID_PTX, INVALID_PTX);
SAME(CUDA_NVLINK_UNCORRECTABLE, NVLINK_UNCORRECTABLE);
SAME(CUDA_UNSUPPORTED_PTX_VERSION, UNSUPPORTED_PTX_VERSION);
SAME(CUDA_OPERATING_SYSTEM, OPERATING_SYSTEM);
SAME(CUDA_INVALID_HANDLE, INVALID_HANDLE);
SAME(CUDA_NOT_FOUND, NOT_FOUND);
SAME(CUDA_NOT_READY, NOT_READY);
SAME(CUDA_ILLEGAL_ADDRESS, ILLEGAL_ADDRESS);
SAME(CUDA_LAUNCH_OUT_OF_RESOURCES, LAUNCH_OUT_OF_RESOURCES);
SAME(CUDA_LAUNCH_TIMEOUT, LAUNCH_TIMEOUT);
SAME(CUDA_CONTEXT_IS_DESTROYED, CONTEXT_IS_DESTROYED);
SAME(CUDA_ASSERT, ASSERT);
SAME(CUDA_HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_ALREADY_REGISTERED);
SAME(CUDA_HARDWARE_STACK_ERROR, HARDWARE_STACK_ERROR);
SAME(CUDA_INVALID_PC, INVALID_PC);
SAME(CUDA_LAUNCH_FAILED, LAUNCH_FAILED);
SAME(CUDA_NOT_PERMITTED, NOT_PERMITTED);
SAME(CUDA_NOT_SUPPORTED, NOT_SUPPORTED);
SAME(CUDA_SYSTEM_NOT_READY, SYSTEM_NOT_READY);
SAME(CUDA_SYSTEM_DRIVER_MISMATCH, SYSTEM_DRIVER_MISMATCH);
SAME(CUDA_COMPAT_NOT_SUPPORTED_ON_DEVICE, COMPAT_NOT_SUPPORTED_ON_DEVICE);
SAME(CUDA_UNKNOWN, UNKNOWN);
SAME(CUDA_CAPTURE_UNSUPPORTED, STREAM_CAPTURE_UNSUPPORTED);
SAME(CUDA_CONTEXT_ALREADY_CURRENT, CONTEXT_ALREADY_CURRENT);
SAME(CUDA_MAP_FAILED, MAP_FAILED);
SAME(CUDA_UNMAP_FAILED, UNMAP_FAILED);
SAME(CUDA_ARRAY_IS_MAPPED, ARRAY_IS_MAPPED);
SAME(CUDA_ALREADY_MAPPED, ALREADY_MAPPED);
SAME(CUDA_ALREADY_ACQUIRED, ALREADY_ACQUIRED);
SAME(CUDA_NOT_MAPPED, NOT_MAPPED);
SAME(CUDA_NOT_MAPPED_AS_ARRAY, NOT_MAPPED_AS_ARRAY);
SAME(CUDA_NOT_MAPPED_AS_POINTER, NOT_MAPPED_AS_POINTER);
SAME(CUDA_UNSUPPORTED_LIMIT, UNSUPPORTED_LIMIT);
SAME(CUDA_CONTEXT_ALREADY_IN_USE, CONTEXT_ALREADY_IN_USE);
SAME(CUDA_PEER_ACCESS_UNSUPPORTED, PEER_ACCESS_UNSUPPORTED);
SAME(CUDA_INVALID_GRAPHICS_CONTEXT, INVALID_GRAPHICS_CONTEXT);
SAME(CUDA_JIT_COMPILER_NOT_FOUND, JIT_COMPILER_NOT_FOUND);
SAME(CUDA_JIT_COMPILATION_DISABLED, JIT_COMPILATION_DISABLED);
SAME(CUDA_UNSUPPORTED_EXEC_AFFINITY, UNSUPPORTED_EXEC_AFFINITY);
SAME(CUDA_INVALID_SOURCE, INVALID_SOURCE);
SAME(CUDA_FILE_NOT_FOUND, FILE_NOT_FOUND);
SAME(CUDA_SHARED_OBJECT_SYMBOL_NOT_FOUND, SHARED_OBJECT_SYMBOL_NOT_FOUND);
SAME(CUDA_SHARED_OBJECT_INIT_FAILED, SHARED_OBJECT_INIT_FAILED);
SAME(CUDA_ILLEGAL_STATE, ILLEGAL_STATE);
SAME(CUDA_LAUNCH_INCOMPATIBLE_TEXTURING, LAUNCH_INCOMPATIBLE_TEXTURING);
SAME(CUDA_PEER_ACCESS_ALREADY_ENABLED, PEER_ACCESS_ALREADY_ENABLED);
SAME(CUDA_PEER_ACCESS_NOT_ENABLED, PEER_ACCESS_NOT_ENABLED);
SAME(CUDA_PRIMARY_CONTEXT_ACTIVE, PRIMARY_CONTEXT_ACTIVE);
SAME(CUDA_TOO_MANY_PEERS, TOO_MANY_PEERS);
SAME(CUDA_HOST_MEMORY_NOT_REGISTERED, HOST_MEMORY_NOT_REGISTERED);
SAME(CUDA_COOPERATIVE_LAUNCH_TOO_LARGE, COOPERATIVE_LAUNCH_TOO_LARGE);
SAME(CUDA_CAPTURE_INVALIDATED, STREAM_CAPTURE_INVALIDATED);
SAME(CUDA_CAPTURE_MERGE, STREAM_CAPTURE_MERGE);
SAME(CUDA_CAPTURE_UNMATCHED, STREAM_CAPTURE_UNMATCHED);
SAME(CUDA_CAPTURE_UNJOINED, STREAM_CAPTURE_UNJOINED);
SAME(CUDA_CAPTURE_ISOLATION, STREAM_CAPTURE_ISOLATION);
SAME(CUDA_CAPTURE_IMPLICIT, STREAM_CAPTURE_IMPLICIT);
SAME(CUDA_CAPTURED_EVENT, CAPTURED_EVENT);
SAME(CUDA_CAPTURE_WRONG_THREAD, STREAM_CAPTURE_WRONG_THREAD);
SAME(CUDA_TIMEOUT, TIMEOUT);
SAME(CUDA_GRAPH_EXEC_UPDATE_FAILURE, GRAPH_EXEC_UPDATE_FAILURE);
#endif

/* ---- found or not ---------------------------------------------------------- */

START_TEST(no_library)
{
	char why[256] = "";

	ck_assert_int_eq(cuda_api_open(&api, "/nonexistent/libcuda.so", why,
				       sizeof(why)),
			 -ENOENT);
	ck_assert_ptr_nonnull(strstr(why, "/nonexistent/libcuda.so"));
}
END_TEST

START_TEST(not_a_driver)
{
	char why[256] = "";

	ck_assert_int_eq(cuda_api_open(&api, "libm.so.6", why, sizeof(why)),
			 -ENOSYS);
	ck_assert_str_eq(why, "libm.so.6 has no cuInit");
}
END_TEST

/* Each call of the start fails in turn; the one after that succeeds. */
START_TEST(driver_refuses)
{
	char why[256];
	uint64_t nth = 0;
	int ret;

	api = rig_cuda_open(&ctl, 1 << 20, PAGE);
	cuda_api_close(api);
	do {
		nth++;
		ctl.arm(FAKE_ONCE, "cu", nth, CUDA_NO_DEVICE);
		ret = cuda_api_open(&api, rig_cuda_path(), why, sizeof(why));
		ck_assert(!ret || ret == -ENODEV);
		ck_assert(!ret || strstr(why, "100"));
	} while (ret);
	ck_assert_uint_eq(nth, 4);
	ck_assert_str_eq(why, "driver 12.4, 1 device");
	ctl.arm(FAKE_OFF, "", 0, 0);
	rig_cuda_close(api, &ctl);
}
END_TEST

START_TEST(errors)
{
	static const struct {
		int cu, ret;
	} is[] = {
		{ CUDA_OK, 0 },
		{ CUDA_INVALID_VALUE, -EINVAL },
		{ CUDA_OUT_OF_MEMORY, -ENOMEM },
		{ CUDA_NOT_READY, -EAGAIN },
		{ CUDA_NOT_SUPPORTED, -ENOTSUP },
		{ CUDA_NO_BINARY_FOR_GPU, -ENOTSUP },
		{ CUDA_NOT_PERMITTED, -EPERM },
		{ CUDA_OPERATING_SYSTEM, -EIO },
		{ CUDA_NOT_FOUND, -ENOENT },
		{ CUDA_NO_DEVICE, -ENODEV },
		{ CUDA_ILLEGAL_ADDRESS, -ENODEV },
		{ CUDA_ECC_UNCORRECTABLE, -ENODEV },
		{ CUDA_LAUNCH_FAILED, -ENODEV },
		{ CUDA_DEINITIALIZED, -ENODEV },
		{ 123456, -ENODEV },
		/* of what a client names: nothing else is lost */
		{ CUDA_INVALID_HANDLE, -EINVAL },
		{ CUDA_MAP_FAILED, -EINVAL },
		{ CUDA_ALREADY_MAPPED, -EINVAL },
		{ CUDA_NOT_MAPPED, -EINVAL },
		{ CUDA_TOO_MANY_PEERS, -EINVAL },
		{ CUDA_ILLEGAL_STATE, -EINVAL },
		{ CUDA_PEER_ACCESS_UNSUPPORTED, -ENOTSUP },
		{ CUDA_CAPTURE_WRONG_THREAD, -EINVAL },
		{ CUDA_TIMEOUT, -ETIMEDOUT },
		{ CUDA_UNKNOWN, -ENODEV },
	};

	for (size_t i = 0; i < sizeof(is) / sizeof(*is); i++)
		ck_assert_int_eq(kern_errno(is[i].cu), is[i].ret);
}
END_TEST

/* ---- the fake is strict --------------------------------------------------- */

static int dies(volatile const char *p)
{
	const pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid)
		_exit(*p == 1 ? 43
			      : 42); /* sanitizers exit with codes of theirs */
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return !WIFEXITED(status) || WEXITSTATUS(status) / 2 != 21;
}

static cuda_ptr map_one(cuda_mem *mem)
{
	cuda_ptr at;

	ck_assert_int_eq(api->reserve(&at, 4 * PAGE, 0, 0, 0), 0);
	ck_assert_int_eq(api->create(mem, PAGE, &prop, 0), 0);
	ck_assert_int_eq(api->map(at, PAGE, 0, *mem, 0), 0);
	return at;
}

static void unmap_one(cuda_ptr at, cuda_mem mem)
{
	ck_assert_int_eq(api->unmap(at, PAGE), 0);
	ck_assert_int_eq(api->release(mem), 0);
	ck_assert_int_eq(api->unreserve(at, 4 * PAGE), 0);
}

START_TEST(mapping_is_real)
{
	cuda_mem mem;
	cuda_ptr at;
	char *p;

	api = rig_cuda_open(&ctl, 1 << 20, PAGE);
	at = map_one(&mem);
	p = (char *)at;
	ck_assert(dies(p)); /* no access yet */
	ck_assert_int_eq(api->set_access(at, PAGE, &rw, 1), 0);
	ck_assert(!dies(p));
	ck_assert(dies(p + PAGE));
	ck_assert_int_eq((unsigned char)p[PAGE - 1], 0xcd);
	/* twice, a part, what is not there, with maps inside */
	ck_assert_int_ne(api->set_access(at, 2 * PAGE, &rw, 1), 0);
	ck_assert_int_ne(api->unmap(at, PAGE / 2), 0);
	ck_assert_int_ne(api->unmap(at + PAGE, PAGE), 0);
	ck_assert_int_ne(api->unreserve(at, 4 * PAGE), 0);
	unmap_one(at, mem);
	ck_assert(dies(p));
	ck_assert_int_ne(api->release(mem), 0);
	rig_cuda_close(api, &ctl);
}
END_TEST

/* Current on this thread; without one only addresses and frames are to be had. */
static void open_context(void)
{
	cuda_stream st;
	cuda_handle ctx;

	api = rig_cuda_open(&ctl, 1 << 20, PAGE);
	ck_assert_int_eq(api->ctx_set(NULL), 0);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0),
			 CUDA_INVALID_CONTEXT);
	ck_assert_int_eq(api->ctx_retain(&ctx, 0), 0);
	ck_assert_int_eq(api->ctx_set(ctx), 0);
}

static void close_context(void)
{
	ck_assert_int_eq(api->ctx_release(0), 0);
	rig_cuda_close(api, &ctl);
}

START_TEST(memory_is_counted)
{
	cuda_mem mem[17], twin;
	size_t n_free, total;
	int fd;

	open_context();
	for (int i = 0; i < 16; i++)
		ck_assert_int_eq(api->create(&mem[i], PAGE, &prop, 0), 0);
	ck_assert_int_eq(api->create(&mem[16], PAGE, &prop, 0),
			 CUDA_OUT_OF_MEMORY);
	/* exported: it lives until the other, too, lets go */
	ck_assert_int_eq(api->export_fd(&fd, mem[0], CUDA_HANDLE_POSIX_FD, 0),
			 0);
	ck_assert_int_eq(api->import_fd(&twin, (void *)(intptr_t)fd,
					CUDA_HANDLE_POSIX_FD),
			 0);
	ck_assert_int_eq(close(fd), 0);
	for (int i = 0; i < 16; i++)
		ck_assert_int_eq(api->release(mem[i]), 0);
	ck_assert_int_eq(api->mem_info(&n_free, &total), 0);
	ck_assert_uint_eq(n_free, (1 << 20) - PAGE);
	ck_assert_int_eq(api->release(twin), 0);
	close_context();
}
END_TEST

/* Usable at once, junk, counted; what is no allocation is not freed. */
START_TEST(plain_memory)
{
	cuda_ptr at, other, mapped;
	size_t n_free, total;
	cuda_stream st;
	cuda_mem mem;

	open_context();
	mapped = map_one(&mem);
	ck_assert_int_eq(api->alloc(&at, 5000), 0);
	ck_assert_uint_eq(((unsigned char *)at)[4999], 0xcd);
	ck_assert_int_eq(api->mem_info(&n_free, &total), 0);
	ck_assert_uint_eq(n_free, (1 << 20) - PAGE - 5000);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->memset8(at, 3, 5000, st), 0);
	ck_assert_int_eq(api->stream_sync(st), 0);
	ck_assert_uint_eq(((unsigned char *)at)[4999], 3);
	ck_assert_int_eq(api->alloc(&other, 0), CUDA_INVALID_VALUE);
	ck_assert_int_eq(api->alloc(&other, 1 << 20), CUDA_OUT_OF_MEMORY);
	ck_assert_int_eq(api->free(at + 16), CUDA_INVALID_VALUE);
	ck_assert_int_eq(api->free(mapped), CUDA_INVALID_VALUE);
	ck_assert_int_eq(api->free(at), 0);
	ck_assert_int_eq(api->free(at), CUDA_INVALID_VALUE);
	ck_assert_int_eq(api->stream_free(st), 0);
	unmap_one(mapped, mem);
	close_context();
}
END_TEST

/* What is captured does not run; an instance runs as often as it is launched. */
START_TEST(graphs_are_told_again)
{
	cuda_handle graph, exec;
	cuda_event e;
	cuda_stream st;
	cuda_ptr at;

	open_context();
	ck_assert_int_eq(api->alloc(&at, 64), 0);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->event_new(&e, CUDA_EVENT_DISABLE_TIMING), 0);
	ck_assert_int_eq(api->capture(st, CUDA_CAPTURE_RELAXED), 0);
	ck_assert_int_eq(api->memset8(at, 1, 64, st), 0);
	ck_assert_int_eq(api->memset8(at, 2, 32, st), 0);
	ck_assert_int_eq(api->capture_end(st, &graph), 0);
	ck_assert_int_eq(api->exec_new(&exec, graph, 0), 0);
	ck_assert_int_eq(api->graph_free(graph), 0);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(api->memset8(at, 9, 64, st), 0);
		ck_assert_int_eq(api->stream_sync(st), 0);
		ck_assert_uint_eq(((unsigned char *)at)[0], 9);
		ck_assert_int_eq(api->exec_launch(exec, st), 0);
		ck_assert_int_eq(api->stream_sync(st), 0);
		ck_assert_uint_eq(((unsigned char *)at)[0], 2);
		ck_assert_uint_eq(((unsigned char *)at)[63], 1);
	}
	ck_assert_int_eq(api->exec_free(exec), 0);
	/* who waits inside gets nothing */
	ck_assert_int_eq(api->capture(st, CUDA_CAPTURE_RELAXED), 0);
	ck_assert_int_eq(api->stream_sync(st), CUDA_CAPTURE_UNSUPPORTED);
	ck_assert_int_eq(api->capture_end(st, &graph),
			 CUDA_CAPTURE_UNSUPPORTED);
	ck_assert_int_eq(api->capture(st, CUDA_CAPTURE_RELAXED), 0);
	ck_assert_int_eq(api->event_record(e, st), CUDA_CAPTURE_UNSUPPORTED);
	ck_assert_int_eq(api->capture_end(st, &graph),
			 CUDA_CAPTURE_UNSUPPORTED);
	ck_assert_int_eq(api->stream_sync(st), 0);
	ck_assert_int_eq(api->event_free(e), 0);
	ck_assert_int_eq(api->free(at), 0);
	ck_assert_int_eq(api->stream_free(st), 0);
	close_context();
}
END_TEST

START_TEST(streams_are_late)
{
	cuda_stream a, b;
	cuda_event e;
	cuda_mem mem;
	cuda_ptr at;
	void *host;

	open_context();
	at = map_one(&mem);
	ck_assert_int_eq(api->set_access(at, PAGE, &rw, 1), 0);
	ck_assert_int_eq(api->host_alloc(&host, PAGE, 0), 0);
	ck_assert_int_eq(api->stream_new(&a, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->stream_new(&b, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->event_new(&e, CUDA_EVENT_DISABLE_TIMING), 0);
	ck_assert_int_eq(api->event_query(e), 0); /* never recorded: done */
	ctl.hold();
	ck_assert_int_eq(api->memset8(at, 7, PAGE, a), 0);
	ck_assert_int_eq(api->event_record(e, a), 0);
	/* b copies what a will have written */
	ck_assert_int_eq(api->stream_wait(b, e, 0), 0);
	ck_assert_int_eq(api->d2h(host, at, PAGE, b), 0);
	ck_assert_int_eq(api->event_query(e), CUDA_NOT_READY);
	ck_assert_int_eq(((char *)host)[5], 0);
	ctl.go();
	ck_assert_int_eq(api->stream_sync(b), 0);
	ck_assert_int_eq(((char *)host)[5], 7);
	ck_assert_int_eq(api->event_query(e), 0);
	ck_assert_int_eq(api->event_free(e), 0);
	ck_assert_int_eq(api->stream_free(a), 0);
	ck_assert_int_eq(api->stream_free(b), 0);
	ck_assert_int_eq(api->host_free(host), 0);
	unmap_one(at, mem);
	close_context();
}
END_TEST

/* What waits in a stream meets no memory: the context is gone for good. */
START_TEST(unmapped_under_a_stream)
{
	struct fake_stats st;
	cuda_stream a;
	cuda_mem mem;
	cuda_ptr at;

	open_context();
	at = map_one(&mem);
	ck_assert_int_eq(api->set_access(at, PAGE, &rw, 1), 0);
	ck_assert_int_eq(api->stream_new(&a, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ctl.hold();
	ck_assert_int_eq(ctl.kernel(a, at, PAGE, 1), 0);
	ck_assert_int_eq(api->unmap(at, PAGE), 0);
	ctl.stats(&st);
	ck_assert_uint_eq(st.n_violations, 1);
	ctl.go();
	ck_assert_int_eq(api->stream_sync(a), CUDA_ILLEGAL_ADDRESS);
	ck_assert_int_eq(api->release(mem), CUDA_ILLEGAL_ADDRESS);
	ctl.reset(1 << 20, PAGE);
	rig_cuda_close(api, &ctl);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cuda_api");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	tcase_add_test(t, no_library);
	tcase_add_test(t, not_a_driver);
	tcase_add_test(t, driver_refuses);
	tcase_add_test(t, errors);
	tcase_add_test(t, mapping_is_real);
	tcase_add_test(t, memory_is_counted);
	tcase_add_test(t, plain_memory);
	tcase_add_test(t, graphs_are_told_again);
	tcase_add_test(t, streams_are_late);
	tcase_add_test(t, unmapped_under_a_stream);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
