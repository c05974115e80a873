/*
 * crc.h - CRC32C (Castagnoli), SSE4.2 where the CPU has it, else a table
 */
#ifndef IO_CRC_H
#define IO_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Continue crc (0 to start) over n bytes. The usual pre- and post-inversion. */
uint32_t kio_crc32c(uint32_t crc, const void *buf, size_t n);
/* The portable path, for the tests. */
uint32_t kio_crc32c_table(uint32_t crc, const void *buf, size_t n);

#endif
