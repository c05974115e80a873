/*
 * bench_gpu.h - what the parts of kvbench gpu share
 *
 * One device, one stream, its own context on the main thread.
 */
#ifndef TOOLS_BENCH_GPU_H
#define TOOLS_BENCH_GPU_H

#include "kernels/gpu.h"
#include "tools/bench.h"

#define MIB (1ull << 20)

struct gpu {
	struct bench *b;
	struct cuda_api *cu;
	struct kern_gpu *kern; /* NULL: no kernels in this binary */
	cuda_handle ctx;
	cuda_stream st;
	int dev;
	size_t page_bytes; /* 2 MiB, or what the device wants */
	size_t n_free;
};

/* A CUresult, said on stderr; -errno. */
int gpu_failed(const struct gpu *g, const char *what, int result);

/* Device memory of cuMemCreate(). */
struct gpu_block {
	cuda_ptr at; /* 0: none */
	cuda_mem mem;
	size_t n;
};
int gpu_block_new(const struct gpu *g, struct gpu_block *m, size_t n);
void gpu_block_free(const struct gpu *g, struct gpu_block *m);
/* n bytes of src, again and again. */
int gpu_block_fill(const struct gpu *g, const struct gpu_block *m,
		   const void *src, size_t n);
/* A new block with these bytes. */
int gpu_upload(const struct gpu *g, struct gpu_block *m, const void *src,
	       size_t n);

/* bench_gpu_pages.c: layers per page x tokens per page. */
int bench_gpu_pages(struct gpu *g);
/* bench_gpu_prefill.c: attention of a prompt over matrix products. */
int bench_gpu_prefill(struct gpu *g);
/* bench_gpu_parked.c: a daemon whose sequences are twice its budget. */
int bench_gpu_parked(struct gpu *g);

#endif
