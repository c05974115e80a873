/*
 * bench_raw.h - io_uring and O_DIRECT alone on a preallocated, already written file: the
 * limit that kvbench's figures of storage are ratios of
 *
 * Thread: one.
 */
#ifndef TOOLS_BENCH_RAW_H
#define TOOLS_BENCH_RAW_H

#include <liburing.h>
#include <stddef.h>
#include <stdint.h>

#define RAW_DEPTH 16u

/* What of io_uring is used beside plain requests. */
#define RAW_FILES   1u /* a registered file */
#define RAW_BUFFERS 2u /* registered buffers */
#define RAW_SQPOLL  4u /* a thread of the kernel takes the requests */
#define RAW_IOPOLL  8u /* the disk is asked instead of interrupting */

struct raw {
	struct io_uring ring;
	int fd;
	/*
	 * [n_bufs][block]: as much as the pager has memory. A small buffer stays in
	 * the CPU's cache, which what is read to be kept cannot.
	 */
	char *buf;
	size_t block;
	uint32_t n_blocks, n_bufs, depth;
	unsigned int how; /* RAW_* */
};

/*
 * A file of n_bytes in dir, without a name, written once; requests of block bytes.
 * -errno: also of what of how the kernel or the disk does not have, when
 * it says so here (IOPOLL may say so with the first request).
 */
int raw_init(struct raw *r, const char *dir, size_t block, uint64_t n_bytes,
	     unsigned int how);
void raw_fini(struct raw *r);
/* bench_side run(): through the whole file once, GB/s. arg: struct raw. */
double raw_read_run(void *arg);
double raw_write_run(void *arg);

/* The i-th block to read: all n of them once, far apart, as those of segments lie. */
uint32_t raw_scattered(uint32_t i, uint32_t n);
/* So many in flight: 8 MiB of them, or RAW_DEPTH. */
uint32_t raw_depth(size_t block);
/* CPU seconds of this process, kernel and its workers included. */
double raw_cpu_s(void);

#endif
