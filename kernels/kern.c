/*
 * kern.c - choose the instruction set, check shapes, convert and pack
 */
#include "kernels/kern.h"

#include <cpuid.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>
#include "kernels/cpu.h"
#include "kernels/ref.h"

#define MXCSR_DEFAULT	    0x1f80u /* nearest even, all masked */
#define MXCSR_FTZ_DAZ	    0x8040u
#define ARCH_REQ_XCOMP_PERM 0x1023 /* asm/prctl.h since Linux 5.16 */
#define XFEATURE_TILEDATA   18

static const struct cpu_ops *ops = &cpu_scalar_ops;
static enum kern_isa isa = KERN_ISA_SCALAR;

const struct cpu_ops *kern_ops(void)
{
	return ops;
}

unsigned int kern_set_mxcsr(enum kern_type math)
{
	const unsigned int old = _mm_getcsr();

	_mm_setcsr(MXCSR_DEFAULT | (math == KERN_BF16 ? MXCSR_FTZ_DAZ : 0));
	return old;
}

void kern_restore_mxcsr(unsigned int mxcsr)
{
	_mm_setcsr(mxcsr);
}

/* ---- which instruction set --------------------------------------------- */

/* AMX-BF16 is there and the kernel lets this process use tile data. */
static int amx_usable(void)
{
	unsigned int a, b, c, d;

	if (__get_cpuid_max(0, NULL) < 0x1d)
		return 0;
	__cpuid_count(7, 0, a, b, c, d);
	if (!(d >> 22 & 1) || !(d >> 24 & 1)) /* AMX-BF16, AMX-TILE */
		return 0;
	return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILEDATA);
}

static const struct cpu_ops *candidate(enum kern_isa i)
{
	__builtin_cpu_init();
	if (i == KERN_ISA_SCALAR)
		return &cpu_scalar_ops;
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
	    !__builtin_cpu_supports("f16c"))
		return NULL;
	if (i == KERN_ISA_AVX2)
		return &cpu_avx2_ops;
	if (!__builtin_cpu_supports("avx512f") ||
	    !__builtin_cpu_supports("avx512bw") ||
	    !__builtin_cpu_supports("avx512vl") ||
	    !__builtin_cpu_supports("avx512dq"))
		return NULL;
	if (i == KERN_ISA_AVX512)
		return &cpu_avx512_ops;
	/* Intel's VDPBF16PS has half the rate of its f32 FMAs, AMD's twice */
	if (i == KERN_ISA_AVX512_BF16)
		return __builtin_cpu_is("amd") &&
				       __builtin_cpu_supports("avx512bf16")
			       ? &cpu_avx512bf16_ops
			       : NULL;
	return __builtin_cpu_supports("avx512bf16") && amx_usable()
		       ? &cpu_amx_ops
		       : NULL;
}

#define TEST_K	   70u
#define TEST_N	   33u
#define TEST_M	   21u
#define TEST_D	   64u
#define TEST_T	   75u
#define TEST_PAGE  96u
#define TEST_HEADS 3u

/* n numbers of [-1, 1), some of them denormal in bf16. */
static void test_fill(float *f, size_t n, uint32_t s)
{
	for (size_t i = 0; i < n; i++) {
		s = s * 1664525u + 1013904223u;
		f[i] = (float)(int32_t)s * 0x1p-31f;
		if (s % 61 == 0)
			f[i] *= 0x1p-128f;
	}
}

static int weight_pack(struct kern_weight **out, const struct kern_matrix *src,
		       enum kern_type math, enum cpu_order order);

/* Linear layers, small and odd: 1 if equal to the scalar twin, by bytes. */
static int linear_agrees(const struct cpu_ops *o, enum kern_type math)
{
	float w[TEST_N * TEST_K], f[TEST_M * TEST_K], x[TEST_M * TEST_K];
	float y[2][TEST_M * TEST_N];
	const struct kern_matrix m = { KERN_F32, w, TEST_N, TEST_K };
	struct kern_weight *p;
	int same;

	test_fill(w, TEST_N * TEST_K, 1);
	test_fill(f, TEST_M * TEST_K, 2);
	if (math == KERN_BF16)
		cpu_scalar_ops.to_bf16(f, (uint16_t *)x, TEST_M * TEST_K);
	else
		memcpy(x, f, sizeof(x));
	if (weight_pack(&p, &m, math, o->order))
		return 0;
	for (int i = 0; i < 2; i++) {
		const struct kern_linear a = { .w = p,
					       .x = x,
					       .x_stride = TEST_K,
					       .y = y[i],
					       .y_stride = TEST_N,
					       .n_rows = TEST_M,
					       .out_to = TEST_N };

		(i ? ref_linear : o->linear)(&a);
	}
	same = !memcmp(y[0], y[1], sizeof(y[0]));
	kern_weight_free(p);
	return same;
}

/* The same for causal attention; few rows and whole words have their own. */
static int attn_agrees(const struct cpu_ops *o, enum kern_type type,
		       uint32_t n_rows, uint32_t head_dim)
{
	enum { Q = TEST_M * TEST_HEADS * TEST_D, KV = TEST_PAGE * TEST_D };
	float f[Q + KV], q[Q], k[KV], v[KV];
	float out[2][Q + 2 * TEST_M * TEST_HEADS];
	int64_t pos[TEST_M];
	const struct kern_span s = {
		.k = k, .v = v, .page_tokens = TEST_PAGE, .n_tokens = TEST_T
	};
	struct kern_attn a = { .type = type,
			       .n_heads = TEST_HEADS,
			       .n_kv_heads = 1,
			       .head_dim = head_dim,
			       .scale = 0.16f,
			       .q = q,
			       .q_pos = pos,
			       .n_rows = n_rows,
			       .spans = &s,
			       .n_spans = 1,
			       .kv_head_to = 1,
			       .row_to = n_rows };
	float *dst[] = { q, k, v };
	const size_t n[] = { Q, KV, KV };

	for (uint32_t i = 0; i < 3; i++) {
		test_fill(f, n[i], i + 3);
		if (type == KERN_BF16)
			cpu_scalar_ops.to_bf16(f, (uint16_t *)dst[i], n[i]);
		else
			memcpy(dst[i], f, n[i] * sizeof(*f));
	}
	for (uint32_t i = 0; i < TEST_M; i++)
		pos[i] = 60 + i;
	for (int i = 0; i < 2; i++) {
		a.o = out[i];
		a.m = a.o + Q;
		a.l = a.m + TEST_M * TEST_HEADS;
		memset(out[i], 0, sizeof(out[i]));
		kern_attn_clear(&a);
		(i ? ref_attn : o->attn)(&a);
	}
	return !memcmp(out[0], out[1], sizeof(out[0]));
}

static int agrees(const struct cpu_ops *o)
{
	return linear_agrees(o, KERN_BF16) && linear_agrees(o, KERN_F32) &&
	       attn_agrees(o, KERN_BF16, TEST_M, 40) &&
	       attn_agrees(o, KERN_BF16, TEST_M, TEST_D) &&
	       attn_agrees(o, KERN_BF16, 2, TEST_D) &&
	       attn_agrees(o, KERN_F32, TEST_M, 40);
}

enum kern_isa kern_init(enum kern_isa max)
{
	isa = KERN_ISA_SCALAR;
	ops = &cpu_scalar_ops;
	for (int i = (int)max; i > KERN_ISA_SCALAR; i--) {
		const struct cpu_ops *o = candidate((enum kern_isa)i);

		if (o && agrees(o)) {
			isa = (enum kern_isa)i;
			ops = o;
			break;
		}
	}
	return isa;
}

enum kern_isa kern_isa(void)
{
	return isa;
}

const char *kern_isa_name(enum kern_isa i)
{
	static const char *const names[] = { "scalar", "avx2", "avx512",
					     "avx512bf16", "amx" };

	return i <= KERN_ISA_AMX ? names[i] : "?";
}

/* ---- types ------------------------------------------------------------- */

size_t kern_type_bytes(enum kern_type type)
{
	switch (type) {
	case KERN_F32:
		return 4;
	case KERN_F16:
	case KERN_BF16:
		return 2;
	default:
		return 0;
	}
}

static float from_f16(uint16_t h)
{
	const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
	const uint32_t e = h >> 10 & 31, m = h & 0x3ff;
	uint32_t u;
	float f;

	if (!e) {
		f = (float)m * 0x1p-24f;
		return sign ? -f : f;
	}
	u = sign | (e == 31 ? 0x7f800000 : (e + 112) << 23) | m << 13;
	memcpy(&f, &u, sizeof(f));
	return f;
}

static uint16_t to_f16(float x)
{
	uint32_t u, sign, e, m, r;

	memcpy(&u, &x, sizeof(u));
	sign = u >> 16 & 0x8000;
	u &= 0x7fffffff;
	if (u >= 0x7f800000)
		return (uint16_t)(sign | 0x7c00 | (u > 0x7f800000 ? 0x200 : 0));
	if (u >= 0x477ff000) /* rounds past the largest */
		return (uint16_t)(sign | 0x7c00);
	e = u >> 23;
	if (e < 113) { /* denormal: shift the full mantissa */
		const uint32_t shift = 126 - e;

		if (shift > 24)
			return (uint16_t)sign;
		m = (u & 0x7fffff) | 0x800000;
		r = m >> shift;
		m &= (1u << shift) - 1;
		r += m > 1u << (shift - 1) || (m == 1u << (shift - 1) && r & 1);
		return (uint16_t)(sign | r);
	}
	r = (u - (112u << 23)) >> 13;
	m = u & 0x1fff;
	r += m > 0x1000 || (m == 0x1000 && r & 1);
	return (uint16_t)(sign | r);
}

void kern_from_f32(enum kern_type to, const float *src, void *dst, size_t n)
{
	uint16_t *h = dst;

	if (to == KERN_F32)
		memcpy(dst, src, n * sizeof(*src));
	else if (to == KERN_BF16)
		ops->to_bf16(src, h, n);
	else
		for (size_t i = 0; i < n; i++)
			h[i] = to_f16(src[i]);
}

void kern_to_f32(enum kern_type from, const void *src, float *dst, size_t n)
{
	const uint16_t *h = src;

	if (from == KERN_F32)
		memcpy(dst, src, n * sizeof(*dst));
	else if (from == KERN_BF16)
		ops->from_bf16(h, dst, n);
	else
		for (size_t i = 0; i < n; i++)
			dst[i] = from_f16(h[i]);
}

/* ---- weights ----------------------------------------------------------- */

#define Q8_BLOCK 32u

/* Row r of the file's matrix as f32. */
static void row_f32(const struct kern_matrix *m, uint32_t r, float *out)
{
	const size_t at = (size_t)r * m->n_in;
	const char *p = m->data;

	if (m->type != KERN_Q8_0) {
		kern_to_f32(m->type, p + at * kern_type_bytes(m->type), out,
			    m->n_in);
		return;
	}
	p += at / Q8_BLOCK * (Q8_BLOCK + 2);
	for (uint32_t i = 0; i < m->n_in; i += Q8_BLOCK) {
		uint16_t h;
		float d;

		memcpy(&h, p, sizeof(h));
		d = from_f16(h);
		for (uint32_t k = 0; k < Q8_BLOCK; k++)
			out[i + k] = d * (float)(int8_t)p[2 + k];
		p += Q8_BLOCK + 2;
	}
}

static void put_row(struct kern_weight *w, uint32_t r, const float *x)
{
	uint32_t *panel = w->data + r / KERN_LANES * w->panel_words;
	const uint32_t lane = r % KERN_LANES;

	for (uint32_t k = 0; k < w->n_in; k++) {
		if (w->math == KERN_F32) {
			memcpy(panel + (size_t)k * KERN_LANES + lane, x + k, 4);
			continue;
		}
		panel[(size_t)cpu_pair_word(w->order, k) * KERN_LANES + lane] |=
			(uint32_t)ref_bf16(x[k])
			<< (cpu_pair_half(w->order, k) * 16);
	}
}

static int weight_pack(struct kern_weight **out, const struct kern_matrix *src,
		       enum kern_type math, enum cpu_order order)
{
	struct kern_weight *w;
	size_t bytes;
	float *row;

	if ((math != KERN_F32 && math != KERN_BF16) || !src->n_in ||
	    !src->n_out || src->type > KERN_Q8_0 ||
	    (src->type == KERN_Q8_0 && src->n_in % Q8_BLOCK))
		return -EINVAL;
	w = calloc(1, sizeof(*w));
	row = malloc(src->n_in * sizeof(*row));
	if (!w || !row)
		goto fail;
	w->math = math;
	w->order = order;
	w->n_out = src->n_out;
	w->n_in = src->n_in;
	w->n_panels = (src->n_out + KERN_LANES - 1) / KERN_LANES;
	w->panel_words = math == KERN_F32 ? src->n_in
					  : ((size_t)src->n_in + 31) / 32 * 16;
	w->panel_words *= KERN_LANES;
	bytes = w->n_panels * w->panel_words * 4;
	w->data = aligned_alloc(64, bytes);
	if (!w->data)
		goto fail;
	memset(w->data, 0, bytes);
	for (uint32_t r = 0; r < src->n_out; r++) {
		row_f32(src, r, row);
		put_row(w, r, row);
	}
	free(row);
	*out = w;
	return 0;
fail:
	free(row);
	free(w);
	return -ENOMEM;
}

int kern_weight_pack(struct kern_weight **out, const struct kern_matrix *src,
		     enum kern_type math)
{
	return weight_pack(out, src, math, ops->order);
}

void kern_weight_free(struct kern_weight *w)
{
	if (!w)
		return;
	free(w->data);
	free(w);
}

uint32_t kern_weight_n_out(const struct kern_weight *w)
{
	return w->n_out;
}

uint32_t kern_weight_n_in(const struct kern_weight *w)
{
	return w->n_in;
}

size_t kern_weight_bytes(const struct kern_weight *w)
{
	return w->n_panels * w->panel_words * 4;
}

/* ---- what the sanitizers are told ---------------------------------------- */

/*
 * The files of the instruction sets are not instrumented by ThreadSanitizer (it takes 20
 * times as long), nor, in the daemon, by AddressSanitizer (8 times): what a call reads and
 * writes is said here, in ranges. Tests of kernels have instrumented ones (tests.mk).
 */
#if defined(__SANITIZE_THREAD__)
void __tsan_read_range(void *at, long n);
void __tsan_write_range(void *at, long n);

static void tell_read(const void *at, size_t n)
{
	__tsan_read_range((void *)(uintptr_t)at, (long)n);
}

static void tell_write(void *at, size_t n)
{
	__tsan_write_range(at, (long)n);
}
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>

/* Touches the first byte that must not be: that is reported. */
static void tell_read(const void *at, size_t n)
{
	volatile const char *bad =
		__asan_region_is_poisoned((void *)(uintptr_t)at, n);

	if (bad)
		(void)*bad;
}

static void tell_write(void *at, size_t n)
{
	volatile char *bad = __asan_region_is_poisoned(at, n);

	if (bad)
		*bad = 0;
}
#endif

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
static void tell_tokens(const struct kern_attn *a, const struct kern_span *s,
			const void *base)
{
	const size_t row = a->head_dim * kern_type_bytes(a->type);

	for (uint32_t t = 0; t < s->n_tokens; t += s->page_tokens)
		for (uint32_t h = a->kv_head_from; h < a->kv_head_to; h++) {
			const uint32_t left = s->n_tokens - t;
			const char *at = (const char *)base +
					 t / s->page_tokens * s->page_bytes +
					 h * s->head_bytes;

			tell_read(at, row * (left < s->page_tokens
						     ? left
						     : s->page_tokens));
		}
}

static void tell_attn(const struct kern_attn *a)
{
	for (uint32_t i = 0; i < a->n_spans; i++) {
		tell_tokens(a, &a->spans[i], a->spans[i].k);
		tell_tokens(a, &a->spans[i], a->spans[i].v);
	}
}

static void tell_linear(const struct kern_linear *a)
{
	const size_t es = kern_type_bytes(a->w->math);

	for (uint32_t r = 0; r < a->n_rows; r++) {
		const char *x = (const char *)a->x + r * a->x_stride * es;

		tell_read(x, a->w->n_in * es);
		tell_write(a->y + r * a->y_stride + a->out_from,
			   (a->out_to - a->out_from) * sizeof(float));
	}
}
#else
static void tell_attn(const struct kern_attn *a)
{
	(void)a;
}

static void tell_linear(const struct kern_linear *a)
{
	(void)a;
}
#endif

/* ---- checked entry points ---------------------------------------------- */

int kern_linear(const struct kern_linear *a)
{
	const struct kern_weight *w = a->w;

	if (a->out_from > a->out_to || a->out_to > w->n_out ||
	    a->out_from % KERN_LANES ||
	    (a->out_to % KERN_LANES && a->out_to != w->n_out) ||
	    a->x_stride < w->n_in || a->y_stride < w->n_out)
		return -EINVAL;
	if (!a->n_rows || a->out_from == a->out_to)
		return 0;
	tell_linear(a);
	if (w->math == KERN_BF16 && w->order != ops->order)
		ref_linear(a);
	else
		ops->linear(a);
	return 0;
}

static int attn_ok(const struct kern_attn *a)
{
	if (a->type > KERN_BF16 || a->head_dim < KERN_HEAD_DIM_MIN ||
	    a->head_dim > KERN_HEAD_DIM_MAX || a->head_dim % 8 ||
	    !a->n_kv_heads || a->n_heads % a->n_kv_heads ||
	    a->kv_head_from > a->kv_head_to || a->kv_head_to > a->n_kv_heads ||
	    a->row_from > a->row_to || a->row_to > a->n_rows ||
	    (a->tile_states && a->tile_states < (size_t)a->n_rows * a->n_heads))
		return 0;
	for (uint32_t i = 0; i < a->n_spans; i++)
		if (!a->spans[i].page_tokens ||
		    a->spans[i].page_tokens % KERN_KV_BLOCK)
			return 0;
	return 1;
}

int kern_attn(const struct kern_attn *a)
{
	if (!attn_ok(a))
		return -EINVAL;
	tell_attn(a);
	ops->attn(a);
	return 0;
}

void kern_attn_merge(const struct kern_attn *a, const struct kern_attn *from,
		     uint32_t n_tiles)
{
	ops->attn_merge(a, from, n_tiles);
}

/* Call fn for each (row, head) of the share: the index of its state. */
static void each_state(const struct kern_attn *a,
		       void (*fn)(const struct kern_attn *a, size_t at))
{
	const uint32_t group = a->n_heads / a->n_kv_heads;

	for (uint32_t r = a->row_from; r < a->row_to; r++)
		for (uint32_t h = a->kv_head_from * group;
		     h < a->kv_head_to * group; h++)
			fn(a, (size_t)r * a->n_heads + h);
}

static void clear_one(const struct kern_attn *a, size_t at)
{
	memset(a->o + at * a->head_dim, 0, a->head_dim * sizeof(float));
	a->m[at] = -INFINITY;
	a->l[at] = 0;
}

static void finish_one(const struct kern_attn *a, size_t at)
{
	ops->finish(a->o + at * a->head_dim, a->l[at], a->head_dim);
}

void kern_attn_clear(const struct kern_attn *a)
{
	each_state(a, clear_one);
}

void kern_attn_finish(const struct kern_attn *a)
{
	each_state(a, finish_one);
}
