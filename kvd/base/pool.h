/*
 * pool.h - compute threads that split one job at a time into parts
 *
 * pool_run() is a fork-join: fn(arg, i) for i in [0, n_parts), on the calling
 * thread and the pool's; it returns when all parts are done. Short waits spin,
 * longer ones sleep on a futex. One caller at a time.
 */
#ifndef KVD_BASE_POOL_H
#define KVD_BASE_POOL_H

#include <stdint.h>

struct pool;

/* n_threads >= 1 counts the caller: n_threads - 1 are created. */
int pool_new(struct pool **out, unsigned int n_threads);
void pool_free(struct pool *p);
unsigned int pool_n_threads(const struct pool *p);
void pool_run(struct pool *p, void (*fn)(void *arg, uint32_t i_part), void *arg,
	      uint32_t n_parts);

#endif
