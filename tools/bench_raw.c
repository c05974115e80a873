/*
 * bench_raw.c - reads and writes of a file by io_uring and nothing else; see bench_raw.h
 */
#include "tools/bench_raw.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#include "tools/bench.h"

double raw_cpu_s(void)
{
	struct rusage u;

	(void)getrusage(RUSAGE_SELF, &u); /* cannot fail */
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

uint32_t raw_depth(size_t block)
{
	return (uint32_t)KV_MIN(KV_MAX((8u << 20) / block, 2u), RAW_DEPTH);
}

uint32_t raw_scattered(uint32_t i, uint32_t n)
{
	uint32_t stride = n * 5 / 8 | 1, a = n, b = stride;

	while (b) { /* gcd */
		const uint32_t c = a % b;

		a = b;
		b = c;
		if (!b && a != 1) { /* the next stride */
			stride += 2;
			a = n;
			b = stride;
		}
	}
	return (uint32_t)((uint64_t)i * stride % n);
}

/*
 * A free entry; NULL with no ring of that size. A thread of the kernel gives entries
 * back after it has submitted several, and the first of them may have ended by then.
 */
static struct io_uring_sqe *raw_sqe(struct raw *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);

	while (!sqe && r->how & RAW_SQPOLL) {
		if (io_uring_submit(&r->ring) < 0 ||
		    io_uring_sqring_wait(&r->ring) < 0)
			return NULL;
		sqe = io_uring_get_sqe(&r->ring);
	}
	return sqe;
}

static int raw_submit(struct raw *r, uint32_t block, uint32_t slot, int write)
{
	struct io_uring_sqe *sqe = raw_sqe(r);
	char *buf = r->buf + (size_t)(block % r->n_bufs) * r->block;
	const uint64_t off = raw_scattered(block, r->n_blocks) * r->block;
	const int fd = r->how & RAW_FILES ? 0 : r->fd;
	const unsigned int n = (unsigned int)r->block;

	if (!sqe)
		return -EBUSY;
	if (r->how & RAW_BUFFERS && write)
		io_uring_prep_write_fixed(sqe, fd, buf, n, off, 0);
	else if (r->how & RAW_BUFFERS)
		io_uring_prep_read_fixed(sqe, fd, buf, n, off, 0);
	else if (write)
		io_uring_prep_write(sqe, fd, buf, n, off);
	else
		io_uring_prep_read(sqe, fd, buf, n, off);
	if (r->how & RAW_FILES)
		sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data64(sqe, slot);
	return 0;
}

/* Through the whole file, r->depth in flight; seconds, or -errno. */
static double raw_pass(struct raw *r, int write)
{
	const uint64_t t0 = clock_ns();
	uint32_t next = 0, n_done = 0;
	int ret;

	while (next < KV_MIN(r->depth, r->n_blocks)) {
		ret = raw_submit(r, next, next, write);
		if (ret)
			return ret;
		next++;
	}
	while (n_done < r->n_blocks) {
		struct io_uring_cqe *cqe;

		ret = io_uring_submit_and_wait(&r->ring, 1);
		if (ret < 0 && ret != -EINTR)
			return ret;
		while (!io_uring_peek_cqe(&r->ring, &cqe)) {
			const uint32_t slot = (uint32_t)cqe->user_data;

			if (cqe->res != (int)r->block)
				return cqe->res < 0 ? cqe->res : -EIO;
			io_uring_cqe_seen(&r->ring, cqe);
			n_done++;
			if (next == r->n_blocks)
				continue;
			ret = raw_submit(r, next++, slot, write);
			if (ret)
				return ret;
		}
	}
	return (double)(clock_ns() - t0) * 1e-9;
}

static double raw_gb_s(struct raw *r, int write)
{
	const double s = raw_pass(r, write);

	if (s < 0)
		bench_note("%s %zu bytes by io_uring: %s",
			   write ? "write of" : "read of", r->block,
			   strerror(-(int)s));
	return s < 0 ? s : (double)r->n_blocks * (double)r->block * 1e-9 / s;
}

double raw_read_run(void *arg)
{
	return raw_gb_s(arg, 0);
}

double raw_write_run(void *arg)
{
	return raw_gb_s(arg, 1);
}

void raw_fini(struct raw *r)
{
	io_uring_queue_exit(&r->ring);
	(void)close(r->fd); /* unlinked: nothing is lost */
	free(r->buf);
}

static int raw_open(const char *dir)
{
	char path[4096];
	int fd;

	if ((size_t)snprintf(path, sizeof(path), "%s/kvbench.raw.%d", dir,
			     getpid()) >= sizeof(path))
		return -ENAMETOOLONG;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	(void)unlink(path);
	return fd;
}

static int ring_init(struct raw *r)
{
	const struct iovec all = { r->buf, (size_t)r->n_bufs * r->block };
	struct io_uring_params p = { .sq_thread_idle = 1 };
	int ret;

	p.flags = (r->how & RAW_SQPOLL ? IORING_SETUP_SQPOLL : 0) |
		  (r->how & RAW_IOPOLL ? IORING_SETUP_IOPOLL : 0);
	ret = io_uring_queue_init_params(r->depth, &r->ring, &p);
	if (ret)
		return ret;
	if (r->how & RAW_FILES)
		ret = io_uring_register_files(&r->ring, &r->fd, 1);
	if (!ret && r->how & RAW_BUFFERS)
		ret = io_uring_register_buffers(&r->ring, &all, 1);
	if (ret)
		io_uring_queue_exit(&r->ring);
	return ret;
}

/* The file written; and read where a disk may take the one polled, not the other. */
static int raw_try(struct raw *r)
{
	double s = raw_pass(r, 1);

	if (s >= 0 && r->how & RAW_IOPOLL)
		s = raw_pass(r, 0);
	return s < 0 ? (int)s : 0;
}

int raw_init(struct raw *r, const char *dir, size_t block, uint64_t n_bytes,
	     unsigned int how)
{
	int ret;

	*r = (struct raw){ .block = block,
			   .n_blocks = (uint32_t)(n_bytes / block),
			   .depth = raw_depth(block),
			   .how = how };
	r->fd = raw_open(dir);
	if (r->fd < 0)
		return r->fd;
	r->n_bufs = KV_MAX(r->n_blocks / 4, r->depth);
	r->buf = aligned_alloc(2u << 20, (size_t)r->n_bufs * r->block);
	ret = r->buf ? ring_init(r) : -ENOMEM;
	if (ret) {
		free(r->buf);
		(void)close(r->fd);
		return ret;
	}
	(void)madvise(r->buf, (size_t)r->n_bufs * r->block, MADV_HUGEPAGE);
	bench_fill_f32((float *)r->buf, r->n_bufs * r->block / sizeof(float));
	ret = -posix_fallocate(r->fd, 0, (off_t)(r->n_blocks * r->block));
	if (!ret)
		ret = raw_try(r);
	if (ret)
		raw_fini(r);
	return ret;
}
