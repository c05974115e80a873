/*
 * gds.c - cuFile, found at run time; see gds.h
 */
#include "kvd/mem/gds.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
#include "io/crc.h"
#include "kernels/gpu.h"

#define SONAME	 "libcufile.so.0"
#define NVFS	 "/proc/driver/nvidia-fs/version"
#define CHUNK	 4096u
#define MOST	 (64u << 20) /* bytes checked at once */
#define N_CHUNKS (MOST / CHUNK)

/* CUfileError_t, CUfileDescr_t of cufile.h */
struct cufile_error {
	int err; /* 0, or CUfileOpError */
	int cuda;
};
struct cufile_descr {
	int type; /* CU_FILE_HANDLE_TYPE_OPAQUE_FD */
	union {
		int fd;
		void *handle;
	} handle;
	const void *ops;
};
enum { OPAQUE_FD = 1 };

#define CUFILE_CALLS(X) \
	X(driver_open, struct cufile_error, "cuFileDriverOpen", (void)) \
	X(driver_close, struct cufile_error, "cuFileDriverClose", (void)) \
	X(add, struct cufile_error, "cuFileHandleRegister", \
	  (void **out, struct cufile_descr *d)) \
	X(drop, void, "cuFileHandleDeregister", (void *handle)) \
	X(read, ssize_t, "cuFileRead", \
	  (void *handle, void *to, size_t n, off_t off, off_t to_off))

struct gds {
	const struct cuda_api *cu;
	cuda_handle ctx;
#define FIELD(name, type, symbol, args) type(*name) args;
	CUFILE_CALLS(FIELD)
#undef FIELD
	int is_open;
	struct kern_gpu *kern;
	/* of checks, one at a time */
	pthread_mutex_t m;
	cuda_stream stream;
	cuda_ptr out; /* u32 [N_CHUNKS] */
	uint32_t *host; /* the same, pinned */
	struct kio_crc_zeros zeros; /* CHUNK of them */
};

struct gds_file {
	struct gds *g;
	void *handle;
};

int gds_is_there(const char *library)
{
	return library || !access(NVFS, R_OK);
}

static int load(struct gds *g, const char *library, char *why, size_t why_len)
{
	void *lib, *p;

	if (!gds_is_there(library)) {
		(void)snprintf(why, why_len, "no %s", NVFS);
		return -ENOENT;
	}
	/* it stays: it has threads of its own */
	lib = dlopen(library ? library : SONAME,
		     RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	if (!lib) {
		(void)snprintf(why, why_len, "%s", dlerror());
		return -ENOENT;
	}
#define LOAD(name, type, symbol, args) \
	p = dlsym(lib, symbol); \
	if (!p) { \
		(void)snprintf(why, why_len, "it has no %s", symbol); \
		return -ENOSYS; \
	} \
	memcpy(&g->name, &p, sizeof(p));
	CUFILE_CALLS(LOAD)
#undef LOAD
	return 0;
}

static int start(struct gds *g, const void *image, char *why, size_t why_len)
{
	const struct cuda_api *cu = g->cu;
	void *host = NULL;
	struct cufile_error e;
	int ret = kern_errno(cu->ctx_set(g->ctx));

	if (!ret)
		ret = kern_gpu_open(&g->kern, cu, image);
	if (ret) {
		(void)snprintf(why, why_len, "no kernels to check with: %s",
			       strerror(-ret));
		return ret;
	}
	e = g->driver_open();
	if (e.err) {
		(void)snprintf(why, why_len, "cuFileDriverOpen: error %d",
			       e.err);
		return -ENODEV;
	}
	g->is_open = 1;
	ret = kern_errno(
		cu->stream_new(&g->stream, CUDA_STREAM_NON_BLOCKING, 0));
	if (!ret)
		ret = kern_errno(cu->alloc(&g->out, N_CHUNKS * 4ull));
	if (!ret)
		ret = kern_errno(cu->host_alloc(&host, N_CHUNKS * 4ull,
						CUDA_HOST_PORTABLE));
	g->host = host;
	(void)snprintf(why, why_len, "%s", ret ? strerror(-ret) : "found");
	return ret;
}

int gds_open(struct gds **out, const struct gds_conf *conf, char *why,
	     size_t why_len)
{
	struct gds *g = calloc(1, sizeof(*g));
	int ret;

	if (!g) {
		(void)snprintf(why, why_len, "out of memory");
		return -ENOMEM;
	}
	g->cu = conf->api;
	g->ctx = conf->ctx;
	(void)pthread_mutex_init(&g->m, NULL); /* no attr: cannot fail */
	kio_crc32c_zeros(&g->zeros, CHUNK);
	ret = load(g, conf->library, why, why_len);
	if (!ret)
		ret = start(g, conf->image, why, why_len);
	if (ret) {
		gds_close(g);
		return ret;
	}
	*out = g;
	return 0;
}

void gds_close(struct gds *g)
{
	const struct cuda_api *cu;

	if (!g)
		return;
	cu = g->cu;
	(void)cu->ctx_set(g->ctx); /* or the device is lost */
	if (g->stream)
		(void)cu->stream_free(g->stream);
	if (g->host)
		(void)cu->host_free(g->host);
	if (g->out)
		(void)cu->free(g->out);
	kern_gpu_close(g->kern);
	if (g->is_open)
		(void)g->driver_close();
	(void)pthread_mutex_destroy(&g->m);
	free(g);
}

int gds_file_open(struct gds_file **out, struct gds *g, int fd)
{
	struct cufile_descr d = { .type = OPAQUE_FD, .handle.fd = fd };
	struct gds_file *f = calloc(1, sizeof(*f));
	struct cufile_error e;

	if (!f)
		return -ENOMEM;
	f->g = g;
	(void)g->cu->ctx_set(g->ctx); /* what follows says if it is lost */
	e = g->add(&f->handle, &d);
	if (e.err) {
		free(f);
		return -ENOTSUP;
	}
	*out = f;
	return 0;
}

void gds_file_close(struct gds_file *f)
{
	if (!f)
		return;
	f->g->drop(f->handle);
	free(f);
}

/* crc of n bytes at p, at most MOST, behind crc. */
static int check(struct gds *g, cuda_ptr p, size_t n, uint32_t *crc)
{
	const struct gpu_crc a = { .src = p,
				   .out = g->out,
				   .n_chunks = (uint32_t)(n / CHUNK),
				   .chunk_bytes = CHUNK };
	int ret = kern_gpu_crc(g->kern, &a, g->stream), sync;

	if (!ret)
		ret = kern_errno(g->cu->d2h(g->host, g->out, a.n_chunks * 4ull,
					    g->stream));
	/* in any case: the kernel must not run on */
	sync = kern_errno(g->cu->stream_sync(g->stream));
	if (sync)
		sync = kern_errno(g->cu->stream_sync(g->stream));
	ret = ret ? ret : sync;
	for (uint32_t i = 0; i < a.n_chunks && !ret; i++)
		*crc = kio_crc32c_join(&g->zeros, *crc, g->host[i]);
	return ret;
}

int gds_read(struct gds_file *f, uint64_t off, cuda_ptr to, size_t n,
	     uint32_t *crc)
{
	struct gds *g = f->g;
	int ret = kern_errno(g->cu->ctx_set(g->ctx));
	size_t at = 0;

	*crc = 0;
	if (ret)
		return ret;
	while (at < n) {
		const ssize_t k = g->read(f->handle, (void *)(uintptr_t)to,
					  n - at, (off_t)(off + at), (off_t)at);

		if (k <= 0 || k % CHUNK)
			return -EIO;
		at += (size_t)k;
	}
	(void)pthread_mutex_lock(&g->m); /* cannot fail: plain mutex */
	for (at = 0; at < n && !ret; at += MOST)
		ret = check(g, to + at, n - at < MOST ? n - at : MOST, crc);
	(void)pthread_mutex_unlock(&g->m);
	return ret;
}
