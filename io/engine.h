/*
 * engine.h - the two ways to run a kio_req: io_uring, or threads
 *
 * Inside io only; pagefile.h is what others see.
 */
#ifndef IO_ENGINE_H
#define IO_ENGINE_H

#include <stdint.h>
#include <sys/types.h>
#include "io/pagefile.h"

enum kio_op {
	KIO_OP_READ,
	KIO_OP_WRITE,
	KIO_OP_RESERVE, /* fallocate */
	KIO_OP_PUNCH, /* fallocate: give the blocks back, keep the size */
};

/* Where and how much of r is still to be done. */
struct kio_span {
	int fd;
	int i_fixed; /* of kio_engine_add_file(), or -1 */
	char *buf; /* NULL: RESERVE and PUNCH */
	size_t n_bytes;
	off_t off;
};
/* pagefile.c tells; the engine asks at each submission of r. */
struct kio_span kio_req_span(const struct kio_req *r);
/* Queue r in its engine. */
void kio_engine_queue(struct kio_engine *e, struct kio_req *r);
/*
 * Register fd: its number for the engine, or -1 when that cannot be had (no
 * io_uring, table full), which only costs time. Nothing is in flight on a
 * file that is removed. Loop thread.
 */
int kio_engine_add_file(struct kio_engine *e, int fd);
void kio_engine_del_file(struct kio_engine *e, int i_fixed);

#endif
