/*
 * gpu_crc.cuh - CRC32C of chunks of device memory; part of gpu.cu
 *
 * A thread has a chunk, 4 bytes at a time by the bytewise table, which each block makes
 * for itself in shared memory. Chunks are joined on the host (kio_crc32c_join()).
 */
#define CRC_POLY 0x82f63b78u

KERNEL(crc32c, struct gpu_crc)
{
	__shared__ uint32_t table[256];
	const uint32_t i = blockIdx.x * GPU_THREADS + threadIdx.x;
	const uint32_t *p =
		(const uint32_t *)(a.src + (uint64_t)i * a.chunk_bytes);
	uint32_t crc = 0xffffffffu;

	for (uint32_t b = threadIdx.x; b < 256; b += GPU_THREADS) {
		uint32_t x = b;

		for (int k = 0; k < 8; k++)
			x = (x >> 1) ^ (x & 1 ? CRC_POLY : 0);
		table[b] = x;
	}
	__syncthreads();
	if (i >= a.n_chunks)
		return;
	for (uint32_t w = 0; w < a.chunk_bytes / 4; w++) {
		crc ^= p[w];
		crc = table[crc & 0xff] ^ (crc >> 8);
		crc = table[crc & 0xff] ^ (crc >> 8);
		crc = table[crc & 0xff] ^ (crc >> 8);
		crc = table[crc & 0xff] ^ (crc >> 8);
	}
	((uint32_t *)a.out)[i] = ~crc;
}
