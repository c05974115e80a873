/*
 * gpu_mma.cuh - tensor cores of sm_80: fragments of a warp, copies into shared memory
 *
 * mma m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with g = lane / 4 and
 * t = lane % 4:
 *   A 16 x 16: a[0] rows g, columns 2t, 2t+1; a[1] rows g+8; a[2], a[3] the same of
 *              columns 2t+8, 2t+9
 *   B 16 x 8:  b[0] rows 2t, 2t+1 of column g; b[1] rows 2t+8, 2t+9
 *   C 16 x 8:  c[0], c[1] row g, columns 2t, 2t+1; c[2], c[3] row g+8
 * The tests have the same in C (emu_mma.c).
 */
#ifdef __CUDACC__
#define INLINE static __device__ __forceinline__

extern "C" {
extern __shared__ __align__(1024) unsigned char gpu_smem[];
}
#define DYN_SHARED(name) unsigned char *const name = gpu_smem

INLINE uint32_t shared_addr(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four 8 x 8 matrices of 16 bits; lane i gives the address of row i % 8 of matrix i / 8. */
INLINE void ldmatrix(uint32_t *r, const void *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
		     "{%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"(shared_addr(p))
		     : "memory");
}

INLINE void ldmatrix_trans(uint32_t *r, const void *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
		     "{%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"(shared_addr(p))
		     : "memory");
}

#define MMA(name, type) \
	INLINE void name(float *c, const uint32_t *a, uint32_t b0, \
			 uint32_t b1) \
	{ \
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type \
			     "." type ".f32 {%0, %1, %2, %3}, " \
			     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
			     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
			     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), \
			       "r"(b0), "r"(b1)); \
	}
MMA(mma_bf16, "bf16")
MMA(mma_f16, "f16")

/* 16 bytes to shared memory, of which n (0 or 16) are read and the rest are zero. */
INLINE void cp_async(void *to, const void *from, uint32_t n)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
		     :
		     : "r"(shared_addr(to)), "l"(from), "r"(n)
		     : "memory");
}

INLINE void cp_commit(void)
{
	asm volatile("cp.async.commit_group;" : : : "memory");
}

/* Until at most n of the newest groups are under way. */
#define cp_wait(n) asm volatile("cp.async.wait_group %0;" : : "n"(n) : "memory")

/* lo in the low half; nearest even. */
INLINE uint32_t pack_bf16(float lo, float hi)
{
	uint32_t w;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(hi), "f"(lo));
	return w;
}

INLINE uint32_t pack_f16(float lo, float hi)
{
	uint32_t w;

	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(hi), "f"(lo));
	return w;
}

/* 2^x for x <= 0: 1 for 0, 0 for -inf; relative error 2^-22. */
INLINE float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}
/* In shared memory; sums of integers, so the order does not matter. */
INLINE void add_count(uint32_t *p, uint32_t n)
{
	atomicAdd(p, n);
}

INLINE void add_weight(uint64_t *p, uint64_t n)
{
	atomicAdd((unsigned long long *)p, (unsigned long long)n);
}
#else
INLINE void add_count(uint32_t *p, uint32_t n)
{
	*p += n;
}

INLINE void add_weight(uint64_t *p, uint64_t n)
{
	*p += n;
}

INLINE uint32_t pack_bf16(float lo, float hi)
{
	return to_bf16(lo) | (uint32_t)to_bf16(hi) << 16;
}

INLINE uint32_t pack_f16(float lo, float hi)
{
	return to_f16(lo) | (uint32_t)to_f16(hi) << 16;
}
#define exp2_fast exp2f
#endif

INLINE float low_bf16(uint32_t w)
{
	return FROM_BITS(w << 16);
}

INLINE float high_bf16(uint32_t w)
{
	return FROM_BITS(w & 0xffff0000u);
}

INLINE float low_f16(uint32_t w)
{
	return from_f16(w & 0xffffu);
}

INLINE float high_f16(uint32_t w)
{
	return from_f16(w >> 16);
}
