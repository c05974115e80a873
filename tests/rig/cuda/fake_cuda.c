/*
 * fake_cuda.c - devices, memory and failures of the fake driver; see fake_cuda.h
 */
#include "tests/rig/cuda/fake_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/base.h"
#include "tests/rig/cuda/fake_priv.h"

#define N_SYMBOLS 128

struct fake fake = { .m = PTHREAD_MUTEX_INITIALIZER,
		     .changed = PTHREAD_COND_INITIALIZER,
		     .total = 64 << 20,
		     .granularity = 64 << 10 };

static struct {
	const char *symbol;
	uint64_t n;
} calls[N_SYMBOLS];

/* ---- failures ------------------------------------------------------------ */

static void count_call(const char *symbol)
{
	for (int i = 0; i < N_SYMBOLS; i++) {
		if (!calls[i].symbol)
			calls[i].symbol = symbol;
		if (!strcmp(calls[i].symbol, symbol)) {
			calls[i].n++;
			return;
		}
	}
}

int fake_enter(const char *symbol)
{
	int err;

	pthread_mutex_lock(&fake.m);
	count_call(symbol);
	if (fake_told_lost() && !fake.lost)
		fake.lost = CUDA_LAUNCH_FAILED;
	err = fake.lost;
	if (!err && fake_lacks_context(symbol))
		err = CUDA_INVALID_CONTEXT;
	if (!err && fake.mode != FAKE_OFF &&
	    !strncmp(symbol, fake.prefix, strlen(fake.prefix))) {
		fake.count++;
		if (fake.count == fake.nth ||
		    (fake.mode == FAKE_FOREVER && fake.count > fake.nth))
			err = fake.err;
	}
	if (err)
		pthread_mutex_unlock(&fake.m);
	return err;
}

int fake_leave(int result)
{
	pthread_mutex_unlock(&fake.m);
	return result;
}

void fake_arm(enum fake_mode mode, const char *prefix, uint64_t nth, int err);
void fake_arm(enum fake_mode mode, const char *prefix, uint64_t nth, int err)
{
	pthread_mutex_lock(&fake.m);
	fake.mode = mode;
	snprintf(fake.prefix, sizeof(fake.prefix), "%s", prefix);
	fake.nth = nth;
	fake.count = 0;
	fake.err = err;
	pthread_mutex_unlock(&fake.m);
}

uint64_t fake_count(void);
uint64_t fake_count(void)
{
	uint64_t n;

	pthread_mutex_lock(&fake.m);
	n = fake.count;
	pthread_mutex_unlock(&fake.m);
	return n;
}

uint64_t fake_calls(const char *symbol);
uint64_t fake_calls(const char *symbol)
{
	uint64_t n = 0;

	pthread_mutex_lock(&fake.m);
	for (int i = 0; i < N_SYMBOLS && calls[i].symbol; i++)
		if (!strcmp(calls[i].symbol, symbol))
			n = calls[i].n;
	pthread_mutex_unlock(&fake.m);
	return n;
}

void fake_lose(int err);
void fake_lose(int err)
{
	pthread_mutex_lock(&fake.m);
	fake.lost = err;
	pthread_cond_broadcast(&fake.changed);
	pthread_mutex_unlock(&fake.m);
}

void fake_others(uint64_t n);
void fake_others(uint64_t n)
{
	pthread_mutex_lock(&fake.m);
	fake.others = n;
	pthread_mutex_unlock(&fake.m);
}

void fake_stats(struct fake_stats *out);
void fake_stats(struct fake_stats *out)
{
	pthread_mutex_lock(&fake.m);
	*out = fake.st;
	out->used_bytes = fake.used;
	pthread_mutex_unlock(&fake.m);
}

/* FAKE_CUDA=MIB,KIB: memory and granularity from the start, for whole programs. */
static __attribute__((constructor)) void take_environment(void)
{
	const char *env = getenv("FAKE_CUDA");
	unsigned int mib, kib;

	if (env && sscanf(env, "%u,%u", &mib, &kib) == 2) {
		fake.total = (uint64_t)mib << 20;
		fake.granularity = (size_t)kib << 10;
	}
}

/* ---- the device ----------------------------------------------------------- */

int cuInit(unsigned int flags);
int cuInit(unsigned int flags)
{
	const int err = fake_enter("cuInit");

	(void)flags;
	return err ? err : fake_leave(CUDA_OK);
}

int cuDriverGetVersion(int *out);
int cuDriverGetVersion(int *out)
{
	const int err = fake_enter("cuDriverGetVersion");

	if (err)
		return err;
	*out = 12040;
	return fake_leave(CUDA_OK);
}

int cuGetErrorName(int result, const char **out);
int cuGetErrorName(int result, const char **out)
{
	static _Thread_local char name[48];

	snprintf(name, sizeof(name), "fake CUDA error %d", result);
	*out = name;
	return CUDA_OK;
}

int cuDeviceGetCount(int *out);
int cuDeviceGetCount(int *out)
{
	const int err = fake_enter("cuDeviceGetCount");

	if (err)
		return err;
	*out = 1;
	return fake_leave(CUDA_OK);
}

int cuDeviceGet(int *out, int i);
int cuDeviceGet(int *out, int i)
{
	const int err = fake_enter("cuDeviceGet");

	if (err)
		return err;
	*out = i;
	return fake_leave(i ? CUDA_INVALID_DEVICE : CUDA_OK);
}

int cuDeviceGetName(char *out, int n, int dev);
int cuDeviceGetName(char *out, int n, int dev)
{
	const int err = fake_enter("cuDeviceGetName");

	(void)dev;
	if (err)
		return err;
	snprintf(out, (size_t)n, "Fake GPU");
	return fake_leave(CUDA_OK);
}

int cuDeviceGetAttribute(int *out, int attr, int dev);
int cuDeviceGetAttribute(int *out, int attr, int dev)
{
	const int err = fake_enter("cuDeviceGetAttribute");

	(void)dev;
	if (err)
		return err;
	*out = attr == CUDA_ATTR_MAJOR	 ? 9
	       : attr == CUDA_ATTR_MINOR ? 0
	       : attr == CUDA_ATTR_N_SM	 ? 8
					 : 1;
	return fake_leave(CUDA_OK);
}

int cuDeviceGetUuid(void *out, int dev);
int cuDeviceGetUuid(void *out, int dev)
{
	const int err = fake_enter("cuDeviceGetUuid");

	if (err)
		return err;
	memcpy(out, "fake gpu, number", 16);
	return fake_leave(dev ? CUDA_INVALID_DEVICE : CUDA_OK);
}

int cuDeviceTotalMem_v2(size_t *out, int dev);
int cuDeviceTotalMem_v2(size_t *out, int dev)
{
	const int err = fake_enter("cuDeviceTotalMem_v2");

	(void)dev;
	if (err)
		return err;
	*out = fake.total;
	return fake_leave(CUDA_OK);
}

int cuMemGetInfo_v2(size_t *n_free, size_t *total);
int cuMemGetInfo_v2(size_t *n_free, size_t *total)
{
	const int err = fake_enter("cuMemGetInfo_v2");
	const uint64_t taken = fake.used + fake.others;

	if (err)
		return err;
	*total = fake.total;
	*n_free = fake.total > taken ? fake.total - taken : 0;
	return fake_leave(CUDA_OK);
}

/* ---- ranges --------------------------------------------------------------- */

struct fake_range *fake_range_new(struct fake_range *list)
{
	for (int i = 0; i < FAKE_MAX; i++)
		if (!list[i].used) {
			list[i] = (struct fake_range){ .used = 1 };
			return &list[i];
		}
	return NULL;
}

/* The one that starts at at, has n bytes. */
static struct fake_range *range_find(struct fake_range *list, uint64_t at,
				     size_t n)
{
	for (int i = 0; i < FAKE_MAX; i++)
		if (list[i].used && list[i].at == at && list[i].n == n)
			return &list[i];
	return NULL;
}

static int overlaps(const struct fake_range *list, uint64_t at, size_t n)
{
	for (int i = 0; i < FAKE_MAX; i++)
		if (list[i].used && list[i].at < at + n &&
		    at < list[i].at + list[i].n)
			return 1;
	return 0;
}

struct fake_range *fake_map_of(uint64_t at)
{
	for (int i = 0; i < FAKE_MAX; i++) {
		struct fake_range *r = &fake.maps[i];

		if (r->used && at >= r->at && at - r->at < r->n)
			return r;
	}
	return NULL;
}

int fake_usable(uint64_t at, size_t n)
{
	const uint64_t end = at + n;

	while (at < end) {
		const struct fake_range *r = fake_map_of(at);

		if (!r || !r->readable)
			return 0;
		at = r->at + r->n;
	}
	return 1;
}

int fake_is_pinned(const void *p, size_t n)
{
	const uint64_t at = (uintptr_t)p;

	for (int i = 0; i < FAKE_MAX; i++) {
		const struct fake_range *r = &fake.pinned[i];

		if (r->used && at >= r->at && at + n <= r->at + r->n)
			return 1;
	}
	return 0;
}

int cuMemAddressReserve(cuda_ptr *out, size_t n, size_t align, cuda_ptr at,
			unsigned long long flags);
int cuMemAddressReserve(cuda_ptr *out, size_t n, size_t align, cuda_ptr at,
			unsigned long long flags)
{
	const int err = fake_enter("cuMemAddressReserve");
	struct fake_range *r;
	char *p;

	(void)align;
	if (err)
		return err;
	if (!n || n % fake.granularity || at || flags)
		return fake_leave(CUDA_INVALID_VALUE);
	p = mmap(NULL, n, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	r = p == MAP_FAILED ? NULL : fake_range_new(fake.reserved);
	if (!r)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	r->at = (uintptr_t)p;
	r->n = n;
	fake.st.n_reserved++;
	*out = r->at;
	return fake_leave(CUDA_OK);
}

int cuMemAddressFree(cuda_ptr at, size_t n);
int cuMemAddressFree(cuda_ptr at, size_t n)
{
	const int err = fake_enter("cuMemAddressFree");
	struct fake_range *r;

	if (err)
		return err;
	r = range_find(fake.reserved, at, n);
	if (!r || overlaps(fake.maps, at, n))
		return fake_leave(CUDA_INVALID_VALUE);
	munmap((void *)at, n);
	r->used = 0;
	fake.st.n_reserved--;
	return fake_leave(CUDA_OK);
}

/* ---- memory --------------------------------------------------------------- */

/* A handle is the address of its entry. */
static struct fake_mem *mem_of(cuda_mem handle)
{
	const uint64_t off = handle - (uintptr_t)fake.mem;
	struct fake_mem *m;

	if (handle < (uintptr_t)fake.mem || off >= sizeof(fake.mem) ||
	    off % sizeof(*fake.mem))
		return NULL;
	m = &fake.mem[off / sizeof(*fake.mem)];
	return m->used ? m : NULL;
}

static void mem_put(struct fake_mem *m)
{
	if (--m->refs)
		return;
	close(m->fd);
	m->used = 0;
	if (!m->foreign)
		fake.used -= m->n;
}

static int fill(int fd, size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		return -1;
	memset(p, FAKE_JUNK, n);
	return munmap(p, n);
}

int cuMemGetAllocationGranularity(size_t *out, const struct cuda_mem_prop *prop,
				  int option);
int cuMemGetAllocationGranularity(size_t *out, const struct cuda_mem_prop *prop,
				  int option)
{
	const int err = fake_enter("cuMemGetAllocationGranularity");

	(void)option;
	if (err)
		return err;
	if (prop->type != CUDA_ALLOCATION_PINNED)
		return fake_leave(CUDA_INVALID_VALUE);
	*out = fake.granularity;
	return fake_leave(CUDA_OK);
}

int cuMemCreate(cuda_mem *out, size_t n, const struct cuda_mem_prop *prop,
		unsigned long long flags);
int cuMemCreate(cuda_mem *out, size_t n, const struct cuda_mem_prop *prop,
		unsigned long long flags)
{
	const int err = fake_enter("cuMemCreate");
	struct fake_mem *m = fake.mem;

	if (err)
		return err;
	if (!n || n % fake.granularity || flags ||
	    prop->type != CUDA_ALLOCATION_PINNED ||
	    prop->location.type != CUDA_LOCATION_DEVICE)
		return fake_leave(CUDA_INVALID_VALUE);
	while (m < fake.mem + FAKE_MAX && m->used)
		m++;
	if (m == fake.mem + FAKE_MAX ||
	    fake.used + fake.others + n > fake.total)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	*m = (struct fake_mem){ .used = 1, .n = n, .refs = 1, .handles = 1 };
	m->fd = memfd_create("fake-gpu", MFD_CLOEXEC);
	if (m->fd < 0 || ftruncate(m->fd, (off_t)n) || fill(m->fd, n)) {
		if (m->fd >= 0)
			close(m->fd);
		m->used = 0;
		return fake_leave(CUDA_OUT_OF_MEMORY);
	}
	fake.used += n;
	fake.st.n_rdma += prop->rdma;
	fake.st.n_handles++;
	*out = (uintptr_t)m;
	return fake_leave(CUDA_OK);
}

int cuMemRelease(cuda_mem mem);
int cuMemRelease(cuda_mem mem)
{
	const int err = fake_enter("cuMemRelease");
	struct fake_mem *m;

	if (err)
		return err;
	m = mem_of(mem);
	if (!m || !m->handles)
		return fake_leave(CUDA_INVALID_VALUE);
	m->handles--;
	fake.st.n_handles--;
	mem_put(m);
	return fake_leave(CUDA_OK);
}

int cuMemMap(cuda_ptr at, size_t n, size_t off, cuda_mem mem,
	     unsigned long long flags);
int cuMemMap(cuda_ptr at, size_t n, size_t off, cuda_mem mem,
	     unsigned long long flags)
{
	const int err = fake_enter("cuMemMap");
	struct fake_mem *m;
	struct fake_range *r;

	if (err)
		return err;
	m = mem_of(mem);
	if (overlaps(fake.maps, at, n))
		fake.st.n_violations++;
	/* on a device, too, a handle is mapped whole */
	if (!m || !m->handles || off || flags || n != m->n ||
	    overlaps(fake.maps, at, n) || !overlaps(fake.reserved, at, n))
		return fake_leave(CUDA_INVALID_VALUE);
	r = fake_range_new(fake.maps);
	if (!r)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	if (mmap((void *)at, n, PROT_NONE, MAP_SHARED | MAP_FIXED, m->fd, 0) ==
	    MAP_FAILED) {
		r->used = 0;
		return fake_leave(CUDA_OUT_OF_MEMORY);
	}
	r->at = at;
	r->n = n;
	r->mem = m;
	m->refs++;
	fake.st.n_maps++;
	return fake_leave(CUDA_OK);
}

int cuMemSetAccess(cuda_ptr at, size_t n, const struct cuda_access *a,
		   size_t n_a);
int cuMemSetAccess(cuda_ptr at, size_t n, const struct cuda_access *a,
		   size_t n_a)
{
	const int err = fake_enter("cuMemSetAccess");
	struct fake_range *r;
	uint64_t end = at + n, i = at;

	if (err)
		return err;
	for (; i < end; i += r->n) { /* whole maps, without a hole */
		r = fake_map_of(i);
		if (!r || r->at != i || i + r->n > end)
			return fake_leave(CUDA_INVALID_VALUE);
	}
	if (n_a != 1 || (a->flags & CUDA_PROT_READ) == 0 ||
	    mprotect((void *)at, n,
		     a->flags == CUDA_PROT_READ ? PROT_READ
						: PROT_READ | PROT_WRITE))
		return fake_leave(CUDA_INVALID_VALUE);
	for (i = at; i < end; i += r->n) {
		r = fake_map_of(i);
		r->readable = 1;
	}
	return fake_leave(CUDA_OK);
}

int cuMemUnmap(cuda_ptr at, size_t n);
int cuMemUnmap(cuda_ptr at, size_t n)
{
	const int err = fake_enter("cuMemUnmap");
	struct fake_range *r;
	uint64_t i;

	if (err)
		return err;
	for (i = at; i < at + n; i += r->n) {
		r = fake_map_of(i);
		if (!r || r->at != i || i + r->n > at + n)
			return fake_leave(CUDA_INVALID_VALUE);
	}
	if (fake_in_use(at, n))
		fake.st.n_violations++;
	if (mmap((void *)at, n, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		 0) == MAP_FAILED)
		return fake_leave(CUDA_UNKNOWN);
	for (i = at; i < at + n; i += r->n) {
		r = fake_map_of(i);
		r->used = 0;
		fake.st.n_maps--;
		mem_put(r->mem);
	}
	return fake_leave(CUDA_OK);
}

int cuMemExportToShareableHandle(void *out, cuda_mem mem, int type,
				 unsigned long long flags);
int cuMemExportToShareableHandle(void *out, cuda_mem mem, int type,
				 unsigned long long flags)
{
	const int err = fake_enter("cuMemExportToShareableHandle");
	struct fake_mem *m;
	int fd;

	if (err)
		return err;
	m = mem_of(mem);
	if (!m || type != CUDA_HANDLE_POSIX_FD || flags)
		return fake_leave(CUDA_INVALID_VALUE);
	fd = dup(m->fd);
	if (fd < 0)
		return fake_leave(CUDA_OPERATING_SYSTEM);
	memcpy(out, &fd, sizeof(fd));
	return fake_leave(CUDA_OK);
}

/* What another process made. */
static int import_foreign(cuda_mem *out, int fd, const struct stat *st)
{
	struct fake_mem *m = fake.mem;

	if (!S_ISREG(st->st_mode) || st->st_size <= 0 ||
	    (size_t)st->st_size % fake.granularity)
		return CUDA_INVALID_VALUE;
	while (m < fake.mem + FAKE_MAX && m->used)
		m++;
	if (m == fake.mem + FAKE_MAX)
		return CUDA_OUT_OF_MEMORY;
	*m = (struct fake_mem){ .used = 1,
				.fd = dup(fd),
				.n = (size_t)st->st_size,
				.refs = 1,
				.handles = 1,
				.foreign = 1 };
	if (m->fd < 0) {
		m->used = 0;
		return CUDA_OPERATING_SYSTEM;
	}
	fake.st.n_handles++;
	*out = (uintptr_t)m;
	return CUDA_OK;
}

int cuMemImportFromShareableHandle(cuda_mem *out, void *handle, int type);
int cuMemImportFromShareableHandle(cuda_mem *out, void *handle, int type)
{
	const int err = fake_enter("cuMemImportFromShareableHandle");
	struct stat want, st;

	if (err)
		return err;
	if (type != CUDA_HANDLE_POSIX_FD || fstat((int)(intptr_t)handle, &want))
		return fake_leave(CUDA_INVALID_VALUE);
	for (struct fake_mem *m = fake.mem; m < fake.mem + FAKE_MAX; m++) {
		if (!m->used || fstat(m->fd, &st) || st.st_ino != want.st_ino)
			continue;
		m->refs++;
		m->handles++;
		fake.st.n_handles++;
		*out = (uintptr_t)m;
		return fake_leave(CUDA_OK);
	}
	return fake_leave(import_foreign(out, (int)(intptr_t)handle, &want));
}

/* ---- host memory ---------------------------------------------------------- */

static int pin(void *p, size_t n)
{
	struct fake_range *r;

	if (overlaps(fake.pinned, (uintptr_t)p, n))
		return CUDA_HOST_MEMORY_ALREADY_REGISTERED;
	r = fake_range_new(fake.pinned);
	if (!r)
		return CUDA_OUT_OF_MEMORY;
	r->at = (uintptr_t)p;
	r->n = n;
	fake.st.n_pinned++;
	return CUDA_OK;
}

static struct fake_range *unpin(void *p)
{
	for (int i = 0; i < FAKE_MAX; i++) {
		struct fake_range *r = &fake.pinned[i];

		if (!r->used || r->at != (uintptr_t)p)
			continue;
		r->used = 0;
		fake.st.n_pinned--;
		return r;
	}
	return NULL;
}

int cuMemHostRegister_v2(void *p, size_t n, unsigned int flags);
int cuMemHostRegister_v2(void *p, size_t n, unsigned int flags)
{
	const int err = fake_enter("cuMemHostRegister_v2");

	(void)flags;
	return err ? err : fake_leave(pin(p, n));
}

int cuMemHostUnregister(void *p);
int cuMemHostUnregister(void *p)
{
	const int err = fake_enter("cuMemHostUnregister");

	if (err)
		return err;
	return fake_leave(unpin(p) ? CUDA_OK : CUDA_INVALID_VALUE);
}

/* FAKE_CUDA_NO_PINNED=BYTES: of so many there are none. */
static int refused(size_t n)
{
	const char *env = getenv("FAKE_CUDA_NO_PINNED");

	return env && strtoull(env, NULL, 10) == n;
}

int cuMemHostAlloc(void **out, size_t n, unsigned int flags);
int cuMemHostAlloc(void **out, size_t n, unsigned int flags)
{
	const int err = fake_enter("cuMemHostAlloc");
	void *p;
	int ret;

	(void)flags;
	if (err)
		return err;
	if (refused(n))
		return fake_leave(CUDA_OUT_OF_MEMORY);
	p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		 -1, 0);
	if (p == MAP_FAILED)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	ret = pin(p, n);
	if (ret)
		munmap(p, n);
	else
		*out = p;
	return fake_leave(ret);
}

int cuMemFreeHost(void *p);
int cuMemFreeHost(void *p)
{
	const int err = fake_enter("cuMemFreeHost");
	struct fake_range *r;

	if (err)
		return err;
	r = unpin(p);
	if (r)
		munmap(p, r->n);
	return fake_leave(r ? CUDA_OK : CUDA_INVALID_VALUE);
}

/* ---- from the start -------------------------------------------------------- */

void fake_reset(uint64_t total, size_t granularity);
void fake_reset(uint64_t total, size_t granularity)
{
	fake_end_streams();
	pthread_mutex_lock(&fake.m);
	for (int i = 0; i < FAKE_MAX; i++) {
		if (fake.mem[i].used)
			close(fake.mem[i].fd);
		if (fake.reserved[i].used && fake.reserved[i].fd)
			fake_alloc_unmap(fake.reserved[i].at,
					 fake.reserved[i].n);
		else if (fake.reserved[i].used)
			munmap((void *)fake.reserved[i].at, fake.reserved[i].n);
		fake.mem[i].used = 0;
		fake.reserved[i].used = 0;
		if (fake.maps[i].used && fake.maps[i].kind == FAKE_MANAGED)
			free(fake.maps[i].there);
		fake.maps[i].used = 0;
		fake.pinned[i].used = 0;
	}
	fake.total = total;
	fake.granularity = granularity;
	fake.used = 0;
	fake.others = 0;
	fake.lost = 0;
	fake.held = 0;
	fake.steps = 0;
	fake.fail_nth = 0;
	fake.mode = FAKE_OFF;
	memset(&fake.st, 0, sizeof(fake.st));
	memset(calls, 0, sizeof(calls));
	pthread_mutex_unlock(&fake.m);
}
