/*
 * vec_avx512.h - sixteen f32 lanes on AVX-512; see cpu_body.h
 */
#ifndef KERNELS_VEC_AVX512_H
#define KERNELS_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

struct vec {
	__m512 v;
};
struct veci {
	__m512i v;
};

static inline struct vec vec_zero(void)
{
	return (struct vec){ _mm512_setzero_ps() };
}
static inline struct vec vec_set(float x)
{
	return (struct vec){ _mm512_set1_ps(x) };
}
static inline struct vec vec_load(const float *p)
{
	return (struct vec){ _mm512_loadu_ps(p) };
}
static inline void vec_store(float *p, struct vec a)
{
	_mm512_storeu_ps(p, a.v);
}
static inline struct vec vec_add(struct vec a, struct vec b)
{
	return (struct vec){ _mm512_add_ps(a.v, b.v) };
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
	return (struct vec){ _mm512_sub_ps(a.v, b.v) };
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
	return (struct vec){ _mm512_mul_ps(a.v, b.v) };
}
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
	return (struct vec){ _mm512_fmadd_ps(a.v, b.v, c.v) };
}
static inline struct vec vec_max(struct vec a, struct vec b)
{
	return (struct vec){ _mm512_max_ps(a.v, b.v) };
}
/* Lanes whose bit is clear become other. */
static inline struct vec vec_select(uint32_t mask, struct vec a, float other)
{
	return (struct vec){ _mm512_mask_mov_ps(_mm512_set1_ps(other),
						(__mmask16)mask, a.v) };
}
static inline struct veci veci_loadu(const void *p)
{
	return (struct veci){ _mm512_loadu_si512(p) };
}
static inline struct veci veci_set(uint32_t x)
{
	return (struct veci){ _mm512_set1_epi32((int)x) };
}
/* The low and the high bf16 of each pair, widened. */
static inline struct vec vec_even(struct veci a)
{
	return (struct vec){ _mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16)) };
}
static inline struct vec vec_odd(struct veci a)
{
	return (struct vec){ _mm512_castsi512_ps(
		_mm512_and_si512(a.v, _mm512_set1_epi32((int)0xffff0000u))) };
}
static inline struct vec vec_load_bf16(const void *p)
{
	return (struct vec){ _mm512_castsi512_ps(_mm512_slli_epi32(
		_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16)) };
}
/* Eight f16 to memory as f32. */
static inline void vec_half_from_f16(const void *p, float *dst)
{
	_mm256_storeu_ps(dst, _mm256_cvtph_ps(_mm_loadu_si128(p)));
}
static inline float vec_hmax(struct vec a)
{
	return _mm512_reduce_max_ps(a.v);
}
/* Lanes i and i + 8, then i and i + 4, 2, 1. */
static inline float vec_hsum(struct vec a)
{
	const __m256 lo = _mm512_castps512_ps256(a.v);
	const __m256 s8 = _mm256_add_ps(lo, _mm512_extractf32x8_ps(a.v, 1));
	const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8),
				     _mm256_extractf128_ps(s8, 1));
	const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));

	return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
static inline uint32_t vec_equal(struct vec a, struct vec b)
{
	return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
/* 2^n for t = 1.5 * 2^23 + n, n of -126..127. */
static inline struct vec vec_pow2(struct vec t)
{
	const __m512i i = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);

	return (struct vec){ _mm512_castsi512_ps(
		_mm512_add_epi32(i, _mm512_set1_epi32(127 << 23))) };
}
static inline uint32_t vec_not_less(struct vec a, struct vec b)
{
	return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ);
}
/* Lanes whose bit is clear become 0. */
static inline struct vec vec_mul_where(uint32_t mask, struct vec a,
				       struct vec b)
{
	return (struct vec){ _mm512_maskz_mul_ps((__mmask16)mask, a.v, b.v) };
}
/* To bf16, nearest even, kept as f32; a is finite. */
static inline struct vec vec_round_bf16(struct vec a)
{
	const __m512i x = _mm512_castps_si512(a.v);
	const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(x, 16),
					     _mm512_set1_epi32(1));
	const __m512i r = _mm512_add_epi32(_mm512_add_epi32(x, lsb),
					   _mm512_set1_epi32(0x7fff));

	return (struct vec){ _mm512_castsi512_ps(
		_mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000u))) };
}
/* Pairs of the bf16 of two rows: low from a, high from b. */
static inline struct veci veci_pairs(const void *a, const void *b)
{
	const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(a));
	const __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256(b));

	return (struct veci){ _mm512_or_si512(x, _mm512_slli_epi32(y, 16)) };
}
static inline void veci_store(void *p, struct veci a)
{
	_mm512_storeu_si512(p, a.v);
}
static inline struct vec vec_load_f16(const void *p)
{
	return (struct vec){ _mm512_cvtph_ps(_mm256_loadu_si256(p)) };
}

/* Pairs of 32 elements of two rows of bf16, as two panels of words. */
static inline void vec_pairs_32(const void *a, const void *b, uint32_t *dst,
				size_t panel_words)
{
	const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
	const __m512i lo = _mm512_unpacklo_epi16(x, y);
	const __m512i hi = _mm512_unpackhi_epi16(x, y);
	const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
	const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);

	_mm512_storeu_si512(dst, _mm512_permutex2var_epi64(lo, first, hi));
	_mm512_storeu_si512(dst + panel_words,
			    _mm512_permutex2var_epi64(lo, second, hi));
}

#ifdef __AVX512BF16__
/* Two times sixteen lanes to 32 bf16 in order, nearest even. */
static inline __m512i vec_to_bf16(struct vec a, struct vec b)
{
	return (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
}
/* Words of lo and hi, rounded to nearest even. */
static inline struct veci vec_pair(struct vec lo, struct vec hi)
{
	const __m512i turn = _mm512_set_epi16(
		31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
		23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);

	return (struct veci){ _mm512_permutexvar_epi16(turn,
						       vec_to_bf16(lo, hi)) };
}
/* The sums of elements i and i + 16. */
static inline struct vec vec_sum_bf16(__m512i x)
{
	const __m512i a = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
	const __m512i b =
		_mm512_cvtepu16_epi32(_mm512_extracti32x8_epi32(x, 1));

	return (struct vec){ _mm512_add_ps(
		_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
		_mm512_castsi512_ps(_mm512_slli_epi32(b, 16))) };
}
#endif

/* Lanes of a whose bit t is set. */
static inline uint32_t vec_bit(struct veci a, uint32_t t)
{
	return _mm512_test_epi32_mask(a.v, _mm512_set1_epi32((int)(1u << t)));
}

/*
 * Transpose 16 x 16 words: row r (stride bytes apart) to column r of rows that
 * are dst_stride words apart.
 */
static inline void vec_transpose(const char *src, size_t stride, uint32_t *dst,
				 size_t dst_stride)
{
	const char *const at[4] = { src, src + 4 * stride, src + 8 * stride,
				    src + 12 * stride };
	__m512i r[16], t[16];

	for (int i = 0; i < 4; i++) {
		r[4 * i] = _mm512_loadu_si512(at[i]);
		r[4 * i + 1] = _mm512_loadu_si512(at[i] + stride);
		r[4 * i + 2] = _mm512_loadu_si512(at[i] + 2 * stride);
		r[4 * i + 3] = _mm512_loadu_si512(at[i] + 3 * stride);
	}
	for (int i = 0; i < 8; i++) {
		t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
		t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
	}
	for (int i = 0; i < 4; i++) {
		r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
		r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
		r[4 * i + 2] =
			_mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
		r[4 * i + 3] =
			_mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
	}
	for (int i = 0; i < 4; i++) {
		t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
		t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
		t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
		t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
	}
	for (int i = 0; i < 4; i++) {
		r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
		r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
		r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
		r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
	}
	for (size_t i = 0; i < 16; i++)
		_mm512_storeu_si512(dst + i * dst_stride, r[i]);
}

#endif
