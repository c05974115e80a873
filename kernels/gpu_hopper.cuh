/*
 * gpu_hopper.cuh - what only sm_90a has: wgmma, the tensor copy engine, its barriers
 *
 * PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate": of
 * m64n64k16 a warp has 16 rows, with fragments as in mma (gpu_mma.cuh), N as 8 of its
 * tiles. B is in shared memory, in rows of 128 bytes whose 16-byte chunks are
 * exchanged by row % 8. The tests have the same in C (emu_hopper.c).
 */
#ifdef __CUDACC__
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAVE_WGMMA
#endif
#define KERNEL_CONST(name, args) \
	extern "C" __global__ void __launch_bounds__(GPU_THREADS, 3) \
		name(const __grid_constant__ args w)

#ifdef HAVE_WGMMA
INLINE void mbar_init(uint64_t *bar)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;"
		     :
		     : "r"(shared_addr(bar))
		     : "memory");
}

/* Arrive; the phase ends when so many bytes have come too. */
INLINE void mbar_expect(uint64_t *bar, uint32_t n)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
		     :
		     : "r"(shared_addr(bar)), "r"(n)
		     : "memory");
}

INLINE void mbar_wait(uint64_t *bar, uint32_t parity)
{
	uint32_t done = 0;

	while (!done)
		asm volatile("{\n"
			     ".reg .pred p;\n"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, "
			     "[%1], %2;\n"
			     "selp.u32 %0, 1, 0, p;\n"
			     "}"
			     : "=r"(done)
			     : "r"(shared_addr(bar)), "r"(parity)
			     : "memory");
}

/* The map's box at element x of row y. */
INLINE void tma_load(void *to, const void *map, int32_t x, int32_t y,
		     uint64_t *bar)
{
	asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile."
		     "mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
		     :
		     : "r"(shared_addr(to)), "l"(map), "r"(x), "r"(y),
		       "r"(shared_addr(bar))
		     : "memory");
}

/* What threads wrote to shared memory, before what the engines do with it. */
INLINE void proxy_fence(void)
{
	asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

INLINE void wgmma_fence(void)
{
	asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

INLINE void wgmma_wait(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
	asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
}

#define D4(d, j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define WGMMA_ASM(type, trans, d, a, desc, add) \
	asm volatile("{\n" \
		     ".reg .pred p;\n" \
		     "setp.ne.b32 p, %37, 0;\n" \
		     "wgmma.mma_async.sync.aligned.m64n64k16.f32." type \
		     "." type " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " \
		     "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
		     "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
		     "%30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, " trans \
		     ";\n" \
		     "}" \
		     : D4(d, 0), D4(d, 1), D4(d, 2), D4(d, 3), D4(d, 4), \
		       D4(d, 5), D4(d, 6), D4(d, 7) \
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc), \
		       "r"(add))

/* d [8][4] (+)= A B; across: B is read across its rows. Both are constants. */
#define WGMMA_FN(name, type) \
	INLINE void name(float(*d)[4], const uint32_t *a, uint64_t desc, \
			 int add, int across) \
	{ \
		if (across) \
			WGMMA_ASM(type, "1", d, a, desc, add); \
		else \
			WGMMA_ASM(type, "0", d, a, desc, add); \
	}
WGMMA_FN(wgmma_bf16, "bf16")
WGMMA_FN(wgmma_f16, "f16")
#endif
#else
#define HAVE_WGMMA
#define KERNEL_CONST(name, args) static void name(const args w)
#endif

#if !defined(__CUDACC__) || defined(HAVE_WGMMA)
/* Of 64 x 16 elements: 8 rows of 128 bytes are 1024 from the next 8; swizzled by 128
 * bytes. The offset from 64 to 64 elements across is not used. */
INLINE uint64_t wgmma_desc(const void *p)
{
	return (uint64_t)(shared_addr(p) >> 4 & 0x3fff) | 1ull << 16 |
	       (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

/* Swizzles begin there. */
INLINE unsigned char *align_1k(unsigned char *p)
{
	return p + (-shared_addr(p) & 1023);
}
#endif
