/*
 * vec_avx2.h - sixteen f32 lanes on AVX2 and FMA, as two halves; see cpu_body.h
 */
#ifndef KERNELS_VEC_AVX2_H
#define KERNELS_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

struct vec {
	__m256 a, b;
};
struct veci {
	__m256i a, b;
};

static inline struct vec vec_zero(void)
{
	return (struct vec){ _mm256_setzero_ps(), _mm256_setzero_ps() };
}
static inline struct vec vec_set(float x)
{
	return (struct vec){ _mm256_set1_ps(x), _mm256_set1_ps(x) };
}
static inline struct vec vec_load(const float *p)
{
	return (struct vec){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}
static inline void vec_store(float *p, struct vec a)
{
	_mm256_storeu_ps(p, a.a);
	_mm256_storeu_ps(p + 8, a.b);
}
static inline struct vec vec_add(struct vec x, struct vec y)
{
	return (struct vec){ _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b) };
}
static inline struct vec vec_sub(struct vec x, struct vec y)
{
	return (struct vec){ _mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b) };
}
static inline struct vec vec_mul(struct vec x, struct vec y)
{
	return (struct vec){ _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b) };
}
static inline struct vec vec_fma(struct vec x, struct vec y, struct vec z)
{
	return (struct vec){ _mm256_fmadd_ps(x.a, y.a, z.a),
			     _mm256_fmadd_ps(x.b, y.b, z.b) };
}
static inline struct vec vec_max(struct vec x, struct vec y)
{
	return (struct vec){ _mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b) };
}
static inline __m256 half_mask(uint32_t mask)
{
	const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
	const __m256i m = _mm256_and_si256(_mm256_set1_epi32((int)mask), bits);

	return _mm256_castsi256_ps(_mm256_cmpeq_epi32(m, bits));
}
static inline struct vec vec_select(uint32_t mask, struct vec x, float other)
{
	const __m256 o = _mm256_set1_ps(other);

	return (struct vec){ _mm256_blendv_ps(o, x.a, half_mask(mask)),
			     _mm256_blendv_ps(o, x.b, half_mask(mask >> 8)) };
}
static inline struct veci veci_loadu(const void *p)
{
	const __m256i *q = p;

	return (struct veci){ _mm256_loadu_si256(q),
			      _mm256_loadu_si256(q + 1) };
}
static inline struct veci veci_set(uint32_t x)
{
	return (struct veci){ _mm256_set1_epi32((int)x),
			      _mm256_set1_epi32((int)x) };
}
static inline struct vec vec_even(struct veci x)
{
	return (struct vec){ _mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)),
			     _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16)) };
}
static inline __m256 high_half(__m256i x)
{
	return _mm256_castsi256_ps(
		_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u)));
}
static inline struct vec vec_odd(struct veci x)
{
	return (struct vec){ high_half(x.a), high_half(x.b) };
}
/* 2^n for t = 1.5 * 2^23 + n, n of -126..127. */
static inline __m256 half_pow2(__m256 t)
{
	const __m256i i = _mm256_slli_epi32(_mm256_castps_si256(t), 23);

	return _mm256_castsi256_ps(
		_mm256_add_epi32(i, _mm256_set1_epi32(127 << 23)));
}
static inline struct vec vec_pow2(struct vec t)
{
	return (struct vec){ half_pow2(t.a), half_pow2(t.b) };
}
static inline uint32_t vec_not_less(struct vec x, struct vec y)
{
	const __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_NLT_UQ);
	const __m256 b = _mm256_cmp_ps(x.b, y.b, _CMP_NLT_UQ);

	return (uint32_t)_mm256_movemask_ps(a) | (uint32_t)_mm256_movemask_ps(b)
							 << 8;
}
/* Lanes whose bit is clear become 0. */
static inline struct vec vec_mul_where(uint32_t mask, struct vec x,
				       struct vec y)
{
	return (struct vec){
		_mm256_and_ps(_mm256_mul_ps(x.a, y.a), half_mask(mask)),
		_mm256_and_ps(_mm256_mul_ps(x.b, y.b), half_mask(mask >> 8)),
	};
}
static inline __m256 half_round_bf16(__m256 v)
{
	const __m256i x = _mm256_castps_si256(v);
	const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(x, 16),
					     _mm256_set1_epi32(1));
	const __m256i r = _mm256_add_epi32(_mm256_add_epi32(x, lsb),
					   _mm256_set1_epi32(0x7fff));

	return high_half(r);
}
static inline struct vec vec_round_bf16(struct vec x)
{
	return (struct vec){ half_round_bf16(x.a), half_round_bf16(x.b) };
}
static inline __m256i half_pairs(const void *a, const void *b)
{
	const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(a));
	const __m256i y = _mm256_cvtepu16_epi32(_mm_loadu_si128(b));

	return _mm256_or_si256(x, _mm256_slli_epi32(y, 16));
}
static inline struct veci veci_pairs(const void *p, const void *q)
{
	const uint16_t *a = p, *b = q;

	return (struct veci){ half_pairs(a, b), half_pairs(a + 8, b + 8) };
}
static inline void veci_store(void *p, struct veci x)
{
	__m256i *q = p;

	_mm256_storeu_si256(q, x.a);
	_mm256_storeu_si256(q + 1, x.b);
}
/* Pairs of 32 elements of two rows of bf16, as two panels of words. */
static inline void vec_pairs_32(const void *a, const void *b, uint32_t *dst,
				size_t panel_words)
{
	const uint16_t *x = a, *y = b;

	veci_store(dst, veci_pairs(x, y));
	veci_store(dst + panel_words, veci_pairs(x + 16, y + 16));
}
static inline struct vec vec_load_f16(const void *p)
{
	const __m128i *q = p;

	return (struct vec){ _mm256_cvtph_ps(_mm_loadu_si128(q)),
			     _mm256_cvtph_ps(_mm_loadu_si128(q + 1)) };
}
static inline __m256 half_bf16(const void *p)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(
		_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
static inline struct vec vec_load_bf16(const void *p)
{
	return (struct vec){ half_bf16(p), half_bf16((const uint16_t *)p + 8) };
}
/* Eight f16 to memory as f32. */
static inline void vec_half_from_f16(const void *p, float *dst)
{
	_mm256_storeu_ps(dst, _mm256_cvtph_ps(_mm_loadu_si128(p)));
}
static inline float vec_hmax(struct vec x)
{
	const __m256 m8 = _mm256_max_ps(x.a, x.b);
	const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8),
				     _mm256_extractf128_ps(m8, 1));
	const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));

	return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}
/* Lanes i and i + 8, then i and i + 4, 2, 1. */
static inline float vec_hsum(struct vec x)
{
	const __m256 s8 = _mm256_add_ps(x.a, x.b);
	const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8),
				     _mm256_extractf128_ps(s8, 1));
	const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));

	return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
static inline uint32_t vec_equal(struct vec x, struct vec y)
{
	const __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ);
	const __m256 b = _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ);

	return (uint32_t)_mm256_movemask_ps(a) | (uint32_t)_mm256_movemask_ps(b)
							 << 8;
}
/* Lanes of x whose bit t is set. */
static inline uint32_t vec_bit(struct veci x, uint32_t t)
{
	const __m128i n = _mm_cvtsi32_si128((int)(31 - t));
	const __m256 a = _mm256_castsi256_ps(_mm256_sll_epi32(x.a, n));
	const __m256 b = _mm256_castsi256_ps(_mm256_sll_epi32(x.b, n));

	return (uint32_t)_mm256_movemask_ps(a) | (uint32_t)_mm256_movemask_ps(b)
							 << 8;
}
/* Transpose 8 x 8 words. */
static inline void transpose_8(const char *src, size_t stride, uint32_t *dst,
			       size_t dst_stride)
{
	__m256 r[8], t[8];

	for (size_t i = 0; i < 8; i++)
		r[i] = _mm256_loadu_ps((const float *)(src + i * stride));
	for (int i = 0; i < 4; i++) {
		t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
		t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
	}
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++) {
			const __m256 a = t[4 * i + j], b = t[4 * i + 2 + j];

			r[4 * i + 2 * j] = _mm256_shuffle_ps(a, b, 0x44);
			r[4 * i + 2 * j + 1] = _mm256_shuffle_ps(a, b, 0xee);
		}
	for (size_t i = 0; i < 4; i++) {
		_mm256_storeu_ps((float *)dst + i * dst_stride,
				 _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
		_mm256_storeu_ps((float *)dst + (4 + i) * dst_stride,
				 _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
	}
}
/*
 * Transpose 16 x 16 words: row r (stride bytes apart) to column r of rows that
 * are dst_stride words apart.
 */
static inline void vec_transpose(const char *src, size_t stride, uint32_t *dst,
				 size_t dst_stride)
{
	for (uint32_t i = 0; i < 2; i++)
		for (uint32_t k = 0; k < 2; k++)
			transpose_8(src + 8 * i * stride + 32 * k, stride,
				    dst + 8 * k * dst_stride + 8 * i,
				    dst_stride);
}

#endif
