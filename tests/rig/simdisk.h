/*
 * simdisk.h - a disk with a volatile cache, in memory, that can lose power
 *
 * Under io's pread, pwrite and fdatasync (kio_sys_disk). What was written and not
 * flushed may, at a crash, be there, be missing, or be there in part (sectors of
 * 512 bytes), each write for itself, whatever the order: as drives are.
 */
#ifndef TESTS_RIG_SIMDISK_H
#define TESTS_RIG_SIMDISK_H

#include <stddef.h>
#include <stdint.h>

/* One disk at a time; zeros. Asserts. */
void simdisk_open(size_t n_bytes);
void simdisk_close(void);
/* From now on writes and flushes fail with EIO and change nothing. */
void simdisk_die(void);
/* That, at the nth write or flush from now on (1: the next). */
void simdisk_die_at(uint32_t nth);
/*
 * The nth flush from now on (1: the next) fails with EIO: what it was for can be read,
 * and is never written, whatever is flushed later. As file systems and drives do it.
 */
void simdisk_spoil_flush(uint32_t nth);
/*
 * The power comes back: what was not flushed is kept or lost by seed (NULL: lost), and
 * the disk works again. Nobody is in io.
 */
void simdisk_revive(uint64_t *seed);
/* What a reader would see, into the file fd. Asserts. */
void simdisk_save(int fd);
/* Writes that are not flushed. */
uint64_t simdisk_n_pending(void);
/* Small generator shared by the tests that need one (splitmix64). */
uint64_t simdisk_random(uint64_t *seed);

#endif
