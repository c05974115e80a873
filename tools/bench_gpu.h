/*
 * bench_gpu.h - what the parts of kvbench gpu share
 *
 * One device, one stream, its own context on the main thread.
 */
#ifndef TOOLS_BENCH_GPU_H
#define TOOLS_BENCH_GPU_H

#include "kernels/gpu.h"
#include "kvd/base/loop.h"
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

#define GPU_READ_BLOCKS 1056u /* 8 for each of 132 multiprocessors */

/*
 * A wait costs what a short kernel does: how many launches run(arg) is to queue for one,
 * which it takes from *n, so that they are 2 ms at least. 0, -EIO.
 */
int gpu_per_wait(double (*run)(void *), void *arg, uint32_t *n);
struct cuda_mem_prop gpu_mem_prop(const struct gpu *g);

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

/* bench_gpu_map.c: calls that map, runs of pages, managed memory. */
int bench_gpu_map(struct gpu *g, struct loop *l);
/* bench_gpu_pages.c: layers per page x tokens per page. */
int bench_gpu_pages(struct gpu *g);
/* bench_gpu_prefill.c: attention of a prompt over matrix products. */
int bench_gpu_prefill(struct gpu *g);
/* bench_gpu_parked.c: a daemon whose sequences are twice its budget. */
int bench_gpu_parked(struct gpu *g);

#endif
