/*
 * fake_share.c - what processes share of the fake driver; see fake_cuda.h
 *
 * A handle says which process has which descriptor; who opens it goes by /proc, and
 * is refused where the kernel refuses that. As on a device, a process cannot open
 * a handle of its own.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "tests/rig/cuda/fake_priv.h"

#define MAGIC_MEM   0x6d656d2d656b6166ull
#define MAGIC_EVENT 0x6576652d656b6166ull

struct handle {
	uint64_t magic, n, inode;
	int pid, fd;
};
_Static_assert(sizeof(struct handle) <= sizeof(struct cuda_ipc), "fits");

int fake_share_new(size_t n, void **out)
{
	const int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd > 0 && !ftruncate(fd, (off_t)n))
		p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		if (fd >= 0)
			close(fd);
		return -1;
	}
	*out = p;
	return fd;
}

static int name(struct cuda_ipc *out, uint64_t magic, int fd, size_t n)
{
	struct handle h = { .magic = magic, .n = n, .pid = getpid(), .fd = fd };
	struct stat st;

	if (fstat(fd, &st))
		return CUDA_OPERATING_SYSTEM;
	h.inode = st.st_ino;
	memset(out, 0, sizeof(*out));
	memcpy(out, &h, sizeof(h));
	return CUDA_OK;
}

/* Mapped: its descriptor > 0, or -CUresult. */
static int open_handle(const struct cuda_ipc *in, uint64_t magic, size_t *n,
		       void **out)
{
	struct handle h;
	struct stat st;
	char path[64];
	int fd;

	memcpy(&h, in, sizeof(h));
	if (h.magic != magic || !h.n)
		return -CUDA_INVALID_VALUE;
	if (h.pid == getpid())
		return -CUDA_INVALID_CONTEXT;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", h.pid, h.fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd <= 0)
		return -CUDA_INVALID_VALUE;
	*out = MAP_FAILED;
	if (!fstat(fd, &st) && st.st_ino == h.inode &&
	    (uint64_t)st.st_size == h.n)
		*out = mmap(NULL, h.n, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			    0);
	if (*out == MAP_FAILED) {
		close(fd);
		return -CUDA_INVALID_VALUE;
	}
	*n = h.n;
	return fd;
}

/* ---- memory --------------------------------------------------------------- */

int cuIpcGetMemHandle(struct cuda_ipc *out, cuda_ptr at);
int cuIpcGetMemHandle(struct cuda_ipc *out, cuda_ptr at)
{
	const int err = fake_enter("cuIpcGetMemHandle");
	const struct fake_range *r;

	if (err)
		return err;
	r = fake_map_of(at);
	/* neither mapped nor managed memory has one */
	if (!r || r->mem || r->kind != FAKE_PLAIN)
		return fake_leave(CUDA_INVALID_VALUE);
	return fake_leave(name(out, MAGIC_MEM, r->fd, r->n));
}

int cuIpcOpenMemHandle_v2(cuda_ptr *out, struct cuda_ipc h, unsigned int flags);
int cuIpcOpenMemHandle_v2(cuda_ptr *out, struct cuda_ipc h, unsigned int flags)
{
	const int err = fake_enter("cuIpcOpenMemHandle_v2");
	struct fake_range *r;
	size_t n = 0;
	void *p;
	int fd;

	if (err)
		return err;
	if (flags != CUDA_IPC_LAZY_PEER)
		return fake_leave(CUDA_INVALID_VALUE);
	fd = open_handle(&h, MAGIC_MEM, &n, &p);
	if (fd < 0)
		return fake_leave(-fd);
	r = fake_range_new(fake.maps);
	if (!r) {
		munmap(p, n);
		close(fd);
		return fake_leave(CUDA_OUT_OF_MEMORY);
	}
	r->at = (uintptr_t)p;
	r->n = n;
	r->fd = fd;
	r->readable = 1;
	r->kind = FAKE_OPENED;
	fake.st.n_maps++;
	*out = r->at;
	return fake_leave(CUDA_OK);
}

int cuIpcCloseMemHandle(cuda_ptr at);
int cuIpcCloseMemHandle(cuda_ptr at)
{
	const int err = fake_enter("cuIpcCloseMemHandle");
	struct fake_range *r;

	if (err)
		return err;
	r = fake_map_of(at);
	if (!r || r->kind != FAKE_OPENED || r->at != at)
		return fake_leave(CUDA_INVALID_VALUE);
	if (fake_in_use(at, r->n))
		fake.st.n_violations++;
	munmap((void *)at, r->n);
	close(r->fd);
	r->used = 0;
	fake.st.n_maps--;
	return fake_leave(CUDA_OK);
}

int cuMemGetAddressRange_v2(cuda_ptr *base, size_t *n, cuda_ptr at);
int cuMemGetAddressRange_v2(cuda_ptr *base, size_t *n, cuda_ptr at)
{
	const int err = fake_enter("cuMemGetAddressRange_v2");
	const struct fake_range *r;

	if (err)
		return err;
	r = fake_map_of(at);
	if (!r)
		return fake_leave(CUDA_INVALID_VALUE);
	*base = r->at;
	*n = r->n;
	return fake_leave(CUDA_OK);
}

/* ---- events --------------------------------------------------------------- */

struct fake_event *fake_event_new(void)
{
	struct fake_event *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->s = &e->own;
	e->next = fake.events;
	fake.events = e;
	fake.st.n_events++;
	return e;
}

void fake_event_free(struct fake_event *e)
{
	struct fake_event **at = &fake.events;

	while (*at != e)
		at = &(*at)->next;
	*at = e->next;
	if (e->s != &e->own) {
		munmap(e->s, sizeof(*e->s));
		close(e->fd);
		fake.n_shared_events--;
	}
	free(e);
	fake.st.n_events--;
}

void fake_wait(void)
{
	struct timespec t;

	if (!fake.n_shared_events) {
		pthread_cond_wait(&fake.changed, &fake.m);
		return;
	}
	/* another process tells nobody */
	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_nsec += 1000000;
	t.tv_sec += t.tv_nsec / 1000000000;
	t.tv_nsec %= 1000000000;
	pthread_cond_timedwait(&fake.changed, &fake.m, &t);
}

int cuIpcGetEventHandle(struct cuda_ipc *out, cuda_event e);
int cuIpcGetEventHandle(struct cuda_ipc *out, cuda_event e)
{
	const int err = fake_enter("cuIpcGetEventHandle");
	const struct fake_event *ev = e;

	if (err)
		return err;
	if (ev->s == &ev->own || ev->opened)
		return fake_leave(CUDA_INVALID_VALUE);
	return fake_leave(name(out, MAGIC_EVENT, ev->fd, sizeof(*ev->s)));
}

int cuIpcOpenEventHandle(cuda_event *out, struct cuda_ipc h);
int cuIpcOpenEventHandle(cuda_event *out, struct cuda_ipc h)
{
	const int err = fake_enter("cuIpcOpenEventHandle");
	struct fake_event *e;
	size_t n = 0;
	void *p;
	int fd;

	if (err)
		return err;
	fd = open_handle(&h, MAGIC_EVENT, &n, &p);
	if (fd < 0)
		return fake_leave(-fd);
	e = fake_event_new();
	if (!e || n != sizeof(*e->s)) {
		munmap(p, n);
		close(fd);
		if (e)
			fake_event_free(e);
		return fake_leave(CUDA_INVALID_VALUE);
	}
	e->s = p;
	e->fd = fd;
	e->opened = 1;
	fake.n_shared_events++;
	*out = e;
	return fake_leave(CUDA_OK);
}

/* ---- where it is ----------------------------------------------------------- */

int cuDeviceGetPCIBusId(char *out, int n, int dev);
int cuDeviceGetPCIBusId(char *out, int n, int dev)
{
	const int err = fake_enter("cuDeviceGetPCIBusId");

	if (err)
		return err;
	snprintf(out, (size_t)n, "%s", "0000:FF:1F.7");
	return fake_leave(dev ? CUDA_INVALID_DEVICE : CUDA_OK);
}
