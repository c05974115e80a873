/*
 * crc.h - CRC32C (Castagnoli), by the widest path that the CPU has
 */
#ifndef IO_CRC_H
#define IO_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Continue crc (0 to start) over n bytes. The usual pre- and post-inversion. */
uint32_t kio_crc32c(uint32_t crc, const void *buf, size_t n);

/* CRCs of parts, each from 0, to that of the whole; the second part has n bytes. */
struct kio_crc_zeros {
	uint32_t m[32]; /* what n zeros make of each bit */
};
void kio_crc32c_zeros(struct kio_crc_zeros *z, size_t n);
uint32_t kio_crc32c_join(const struct kio_crc_zeros *z, uint32_t first,
			 uint32_t second);

/* The paths, narrowest first, and all before crc is taken: for tests and kvbench. */
struct kio_crc_path {
	const char *name;
	uint32_t (*run)(uint32_t crc, const void *buf, size_t n);
	int usable; /* on this CPU */
};
/* Their number; valid for ever. */
int kio_crc_paths(const struct kio_crc_path **out);

#endif
