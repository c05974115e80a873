/*
 * engine.h - the two ways to run a kio_req: io_uring, or threads
 *
 * Inside io only; pagefile.h is what others see.
 */
#ifndef IO_ENGINE_H
#define IO_ENGINE_H

#include <sys/types.h>
#include "io/pagefile.h"

enum { KIO_OP_READ, KIO_OP_WRITE };

/* Where and how much of r is still to be moved. */
struct kio_span {
	int fd;
	char *buf;
	size_t n_bytes;
	off_t off;
};
struct kio_span kio_req_span(const struct kio_req *r);
/* Queue r in its engine. */
void kio_engine_queue(struct kio_engine *e, struct kio_req *r);

#endif
