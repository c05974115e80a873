/*
 * bad_block.h - a disk of which some blocks cannot be written, or read
 *
 * Under io's pread and pwrite (kio_sys_disk): the threads engine, the index, and what
 * nobody waits for (kio_req.prepare).
 */
#ifndef TESTS_RIG_BAD_BLOCK_H
#define TESTS_RIG_BAD_BLOCK_H

#include <stdint.h>

/* Writes that touch bytes from..to fail with EIO. Any thread. */
void bad_block_begin(int64_t from, int64_t to);
/* Reads, instead. */
void bad_block_unreadable(int64_t from, int64_t to);
/* How many did. */
uint64_t bad_block_end(void);

#endif
