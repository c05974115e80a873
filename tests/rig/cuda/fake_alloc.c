/*
 * fake_alloc.c - plain device memory of the fake driver; see fake_cuda.h
 *
 * An allocation is a reserved range that is one map, usable at once, whose bytes are
 * junk. It counts as used, as reserved and as a map, so leaks are seen.
 */
#include <string.h>
#include <sys/mman.h>
#include "tests/rig/cuda/fake_priv.h"

int cuMemAlloc_v2(cuda_ptr *out, size_t n);
int cuMemAlloc_v2(cuda_ptr *out, size_t n)
{
	const int err = fake_enter("cuMemAlloc_v2");
	struct fake_range *map, *res;
	char *p;

	if (err)
		return err;
	if (!n)
		return fake_leave(CUDA_INVALID_VALUE);
	if (fake.used + fake.others + n > fake.total)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		 -1, 0);
	if (p == MAP_FAILED)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	map = fake_range_new(fake.maps);
	res = map ? fake_range_new(fake.reserved) : NULL;
	if (!res) {
		if (map)
			map->used = 0;
		munmap(p, n);
		return fake_leave(CUDA_OUT_OF_MEMORY);
	}
	memset(p, FAKE_JUNK, n);
	map->at = res->at = (uintptr_t)p;
	map->n = res->n = n;
	map->readable = 1;
	fake.used += n;
	fake.st.n_maps++;
	fake.st.n_reserved++;
	*out = (uintptr_t)p;
	return fake_leave(CUDA_OK);
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
	if (!map || map->mem || map->at != at)
		return fake_leave(CUDA_INVALID_VALUE);
	while (!res->used || res->at != at)
		res++;
	if (fake_in_use(at, map->n))
		fake.st.n_violations++;
	munmap((void *)at, map->n);
	fake.used -= map->n;
	fake.st.n_maps--;
	fake.st.n_reserved--;
	map->used = res->used = 0;
	return fake_leave(CUDA_OK);
}
