/*
 * fake_alloc.c - plain device memory of the fake driver; see fake_cuda.h
 *
 * An allocation is a reserved range that is one map, usable at once, whose bytes are
 * junk; behind its last page is one that is not there, and what is left of the last is
 * poison for ASan. It counts as used, as reserved and as a map, so leaks are seen. Its
 * memory is a file, so that another process can open it (fake_share.c). Managed
 * memory is the same, but takes memory of the device only where it was prefetched to it; what
 * the host touches is not looked at.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "tests/rig/cuda/fake_priv.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)	  ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define PAGE 4096u

static size_t pages(size_t n)
{
	return (n + PAGE - 1) / PAGE * PAGE;
}

/* Where what lies at p ends with a page that is not there; NULL. */
static char *with_guard(void *p, size_t n)
{
	char *to = mmap(NULL, pages(n) + PAGE, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (to == MAP_FAILED)
		return NULL;
	if (mremap(p, pages(n), pages(n), MREMAP_MAYMOVE | MREMAP_FIXED, to) ==
	    MAP_FAILED) {
		munmap(to, pages(n) + PAGE);
		return NULL;
	}
	ASAN_POISON_MEMORY_REGION(to + n, pages(n) - n);
	return to;
}

void fake_alloc_unmap(uint64_t at, size_t n)
{
	ASAN_UNPOISON_MEMORY_REGION((char *)at + n, pages(n) - n);
	munmap((void *)at, pages(n) + PAGE);
}

static int alloc(cuda_ptr *out, size_t n, int kind)
{
	struct fake_range *map, *res;
	char *at;
	void *p;
	int fd;

	if (!n)
		return CUDA_INVALID_VALUE;
	/* of managed memory a driver gives more than there is, and may hang later */
	if (kind != FAKE_MANAGED && fake.used + fake.others + n > fake.total)
		return CUDA_OUT_OF_MEMORY;
	fd = fake_share_new(n, &p);
	if (fd <= 0)
		return CUDA_OUT_OF_MEMORY;
	map = fake_range_new(fake.maps);
	res = map ? fake_range_new(fake.reserved) : NULL;
	at = res ? with_guard(p, n) : NULL;
	if (!at) {
		if (map)
			map->used = 0;
		if (res)
			res->used = 0;
		munmap(p, n);
		close(fd);
		return CUDA_OUT_OF_MEMORY;
	}
	memset(at, FAKE_JUNK, n);
	map->at = res->at = (uintptr_t)at;
	map->n = res->n = n;
	map->readable = 1;
	map->fd = res->fd = fd;
	map->kind = kind;
	if (kind == FAKE_MANAGED)
		map->there = calloc(n / FAKE_MOVE + 1, 1);
	else
		fake.used += n;
	fake.st.n_maps++;
	fake.st.n_reserved++;
	*out = (uintptr_t)at;
	return CUDA_OK;
}

int fake_told_lost(void)
{
	static const char *path;
	static int asked;

	if (!asked) {
		asked = 1;
		path = getenv("FAKE_CUDA_LOST");
	}
	return path && !access(path, F_OK);
}

int cuMemAlloc_v2(cuda_ptr *out, size_t n);
int cuMemAlloc_v2(cuda_ptr *out, size_t n)
{
	const int err = fake_enter("cuMemAlloc_v2");

	return err ? err : fake_leave(alloc(out, n, FAKE_PLAIN));
}

int cuMemAllocManaged(cuda_ptr *out, size_t n, unsigned int flags);
int cuMemAllocManaged(cuda_ptr *out, size_t n, unsigned int flags)
{
	const int err = fake_enter("cuMemAllocManaged");

	if (err)
		return err;
	if (flags != CUDA_MANAGED_GLOBAL)
		return fake_leave(CUDA_INVALID_VALUE);
	return fake_leave(alloc(out, n, FAKE_MANAGED));
}

int cuMemFree_v2(cuda_ptr at);
int cuMemFree_v2(cuda_ptr at)
{
	const int err = fake_enter("cuMemFree_v2");
	struct fake_range *map, *res = fake.reserved;

	if (err)
		return err;
	map = fake_map_of(at);
	/* one of cuMemMap() has memory of a handle */
	if (!map || map->mem || map->at != at || map->kind == FAKE_OPENED)
		return fake_leave(CUDA_INVALID_VALUE);
	while (!res->used || res->at != at)
		res++;
	if (fake_in_use(at, map->n))
		fake.st.n_violations++;
	fake_alloc_unmap(at, map->n);
	close(map->fd);
	fake.used -= map->kind == FAKE_MANAGED ? map->n_there : map->n;
	free(map->there);
	fake.st.n_maps--;
	fake.st.n_reserved--;
	map->used = res->used = 0;
	return fake_leave(CUDA_OK);
}

/* ---- managed memory ---------------------------------------------------------- */

/* All of it in one allocation. */
static int managed(cuda_ptr at, size_t n)
{
	const struct fake_range *r = fake_map_of(at);

	return n && r && r->kind == FAKE_MANAGED && n <= r->n - (at - r->at);
}

/* It takes memory of the device from now on, or does no more. */
static void migrate(cuda_ptr at, size_t n, int to_device)
{
	struct fake_range *r = fake_map_of(at);
	const size_t first = (at - r->at) / FAKE_MOVE;

	for (size_t i = first; i < first + n / FAKE_MOVE; i++) {
		if (r->there[i] == to_device)
			continue;
		r->there[i] = (unsigned char)to_device;
		if (to_device) {
			r->n_there += FAKE_MOVE;
			fake.used += FAKE_MOVE;
		} else {
			r->n_there -= FAKE_MOVE;
			fake.used -= FAKE_MOVE;
		}
	}
	/* a device can stop answering */
	fake.st.n_violations += fake.used + fake.others > fake.total;
}

int cuMemAdvise(cuda_ptr at, size_t n, int advice, int dev);
int cuMemAdvise(cuda_ptr at, size_t n, int advice, int dev)
{
	const int err = fake_enter("cuMemAdvise");

	if (err)
		return err;
	return fake_leave(!managed(at, n) || advice < 1 || advice > 6 ||
					  (dev && dev != CUDA_CPU)
				  ? CUDA_INVALID_VALUE
				  : CUDA_OK);
}

int cuMemPrefetchAsync(cuda_ptr at, size_t n, int dev, cuda_stream st);
int cuMemPrefetchAsync(cuda_ptr at, size_t n, int dev, cuda_stream st)
{
	const int err = fake_enter("cuMemPrefetchAsync");

	if (err)
		return err;
	if (!managed(at, n))
		return fake_leave(CUDA_INVALID_VALUE);
	if (dev && dev != CUDA_CPU)
		return fake_leave(CUDA_INVALID_DEVICE);
	migrate(at, n, dev != CUDA_CPU);
	/* its bytes are where they were */
	return fake_leave(fake_queue(
		st, (struct fake_op){ .kind = OP_MOVE, .dev = at, .n = n }));
}
