/*
 * crc.c - CRC32C; see crc.h
 *
 * The SSE4.2 path runs three streams at once (the instruction takes 3 cycles
 * and starts every cycle) and joins them with shifts by tables (Gopal et al.
 * 2011, "Fast CRC computation for iSCSI polynomial using CRC32 instruction").
 */
#include "io/crc.h"

#include <string.h>

#define POLY   0x82f63b78u /* reflected Castagnoli */
#define STREAM 1024u /* bytes of one of the three streams */

static uint32_t table[256];
static uint32_t shift1[4][256]; /* advance a crc by STREAM zero bytes */
static uint32_t shift2[4][256]; /* by 2 * STREAM */

static uint32_t step_byte(uint32_t crc)
{
	for (int k = 0; k < 8; k++)
		crc = crc & 1 ? crc >> 1 ^ POLY : crc >> 1;
	return crc;
}

static uint32_t advance(uint32_t crc, uint32_t n_zeros)
{
	while (n_zeros--)
		crc = table[crc & 0xff] ^ crc >> 8;
	return crc;
}

/* The advance is linear: a table of each byte of the crc serves. */
static void make_shift(uint32_t t[4][256], uint32_t n_zeros)
{
	for (int k = 0; k < 4; k++) {
		uint32_t bit[8];

		for (int i = 0; i < 8; i++)
			bit[i] = advance(1u << (8 * k + i), n_zeros);
		for (uint32_t b = 0; b < 256; b++) {
			t[k][b] = 0;
			for (int i = 0; i < 8; i++)
				t[k][b] ^= b >> i & 1 ? bit[i] : 0;
		}
	}
}

/* Before main(), so that threads only read. */
__attribute__((constructor)) static void make_tables(void)
{
	for (uint32_t b = 0; b < 256; b++)
		table[b] = step_byte(b);
	make_shift(shift1, STREAM);
	make_shift(shift2, 2 * STREAM);
}

uint32_t kio_crc32c_table(uint32_t crc, const void *buf, size_t n)
{
	const unsigned char *p = buf;

	crc = ~crc;
	while (n--)
		crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
	return ~crc;
}

#ifdef __x86_64__
#include <nmmintrin.h>

static uint32_t shift(uint32_t t[4][256], uint32_t crc)
{
	return t[0][crc & 0xff] ^ t[1][crc >> 8 & 0xff] ^
	       t[2][crc >> 16 & 0xff] ^ t[3][crc >> 24];
}

static uint64_t load(const unsigned char *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

__attribute__((target("sse4.2"))) static uint32_t
crc_sse42(uint32_t crc, const unsigned char *p, size_t n)
{
	uint64_t a = ~crc;

	while (n >= 3 * STREAM) {
		uint64_t b = 0, c = 0;

		for (size_t i = 0; i < STREAM; i += 8) {
			a = _mm_crc32_u64(a, load(p + i));
			b = _mm_crc32_u64(b, load(p + STREAM + i));
			c = _mm_crc32_u64(c, load(p + 2 * STREAM + i));
		}
		a = shift(shift2, (uint32_t)a) ^ shift(shift1, (uint32_t)b) ^ c;
		p += 3 * STREAM;
		n -= 3 * STREAM;
	}
	for (; n >= 8; n -= 8, p += 8)
		a = _mm_crc32_u64(a, load(p));
	while (n--)
		a = _mm_crc32_u8((uint32_t)a, *p++);
	return ~(uint32_t)a;
}

uint32_t kio_crc32c(uint32_t crc, const void *buf, size_t n)
{
	if (__builtin_cpu_supports("sse4.2"))
		return crc_sse42(crc, buf, n);
	return kio_crc32c_table(crc, buf, n);
}
#else
uint32_t kio_crc32c(uint32_t crc, const void *buf, size_t n)
{
	return kio_crc32c_table(crc, buf, n);
}
#endif
