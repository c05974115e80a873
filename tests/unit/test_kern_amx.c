/*
 * test_kern_amx.c - the AMX path on any AVX-512 machine: its own source, with
 * the tile instructions spelled out in C as Intel documents them
 *
 * Tiles without a configuration trap here as they do there. Exit 77 without
 * AVX-512.
 */
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512bf16")
#include <check.h>
#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kern.h"
#include "kernels/ref.h"

struct emu_tile {
	uint32_t w[16][16];
};
static struct emu_tile emu[8];
static int emu_configured;

static void emu_loadconfig(const void *p)
{
	const uint8_t *c = p;

	ck_assert_uint_eq(c[0], 1);
	for (int i = 0; i < 8; i++) {
		ck_assert_uint_eq(c[16 + 2 * i], 64);
		ck_assert_uint_eq(c[48 + i], 16);
	}
	emu_configured = 1;
}

static void emu_loadd(int t, const void *base, size_t stride)
{
	ck_assert(emu_configured);
	for (size_t r = 0; r < 16; r++)
		memcpy(emu[t].w[r], (const char *)base + r * stride, 64);
}

static void emu_stored(int t, void *base, size_t stride)
{
	ck_assert(emu_configured);
	for (size_t r = 0; r < 16; r++)
		memcpy((char *)base + r * stride, emu[t].w[r], 64);
}

static void emu_dpbf16ps(int c, int a, int b)
{
	for (int m = 0; m < 16; m++)
		for (int n = 0; n < 16; n++) {
			float acc, even = 0, odd = 0;

			for (int k = 0; k < 16; k++) {
				const uint32_t x = emu[a].w[m][k];
				const uint32_t y = emu[b].w[k][n];

				even = fmaf(ref_from_bf16((uint16_t)x),
					    ref_from_bf16((uint16_t)y), even);
				odd = fmaf(ref_from_bf16((uint16_t)(x >> 16)),
					   ref_from_bf16((uint16_t)(y >> 16)),
					   odd);
			}
			memcpy(&acc, &emu[c].w[m][n], 4);
			acc += even + odd;
			memcpy(&emu[c].w[m][n], &acc, 4);
		}
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(p)	emu_loadconfig(p)
#define _tile_release()		(emu_configured = 0)
#define _tile_zero(t)		memset(&emu[t], 0, sizeof(emu[t]))
#define _tile_loadd(t, p, s)	emu_loadd(t, p, s)
#define _tile_stored(t, p, s)	emu_stored(t, p, s)
#define _tile_dpbf16ps(c, a, b) emu_dpbf16ps(c, a, b)
#define cpu_amx_ops		emu_ops
#include "kernels/cpu_amx.c"

static uint32_t seed = 3;

static uint32_t rnd(uint32_t n)
{
	seed = seed * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)seed * n >> 32);
}

static void fill(uint16_t *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] = ref_bf16((float)(int)rnd(20001) * 1e-4f - 1.0f);
}

START_TEST(linear_equals_its_twin)
{
	for (int i = 0; i < 60; i++) {
		const uint32_t m = 1 + rnd(70), n = 1 + rnd(200);
		const uint32_t k = 1 + rnd(rnd(4) ? 100 : 700);
		uint16_t *w = malloc(2ul * n * k), *x = malloc(2ul * m * k);
		float *y = malloc(4ul * m * n), *want = malloc(4ul * m * n);
		const struct kern_matrix mat = { KERN_BF16, w, n, k };
		struct kern_linear a = { .x = x,
					 .x_stride = k,
					 .y = y,
					 .y_stride = n,
					 .n_rows = m,
					 .out_to = n,
					 .flags = rnd(2) };
		struct kern_weight *p;

		fill(w, (size_t)n * k);
		fill(x, (size_t)m * k);
		for (uint32_t j = 0; j < m * n; j++)
			y[j] = want[j] = 1.5f;
		kern_init(KERN_ISA_SCALAR); /* the order of AMX, too */
		ck_assert_int_eq(kern_weight_pack(&p, &mat, KERN_BF16), 0);
		a.w = p;
		emu_ops.linear(&a);
		a.y = want;
		ref_linear(&a);
		ck_assert_msg(!memcmp(y, want, 4ul * m * n), "%u x %u x %u", m,
			      n, k);
		kern_weight_free(p);
		free(w);
		free(x);
		free(y);
		free(want);
	}
}
END_TEST

START_TEST(attention_equals_its_twin)
{
	for (int i = 0; i < 60; i++) {
		const uint32_t d = 32 + 8 * rnd(29), heads = 1 + rnd(9);
		const uint32_t m = 1 + rnd(60), t = 1 + rnd(150);
		const size_t n_q = (size_t)m * heads * d;
		uint16_t *kv = malloc(2ul * 2 * 160 * d), *q = malloc(2 * n_q);
		float *out[2] = { malloc(4 * (n_q + 2ul * m * heads)),
				  malloc(4 * (n_q + 2ul * m * heads)) };
		int64_t pos[60];
		const struct kern_span s = { .k = kv,
					     .v = kv + 160 * d,
					     .page_tokens = 160,
					     .n_tokens = t };
		struct kern_attn a = { .type = KERN_BF16,
				       .n_heads = heads,
				       .n_kv_heads = 1,
				       .head_dim = d,
				       .scale = 0.2f,
				       .q = q,
				       .q_pos = pos,
				       .n_rows = m,
				       .spans = &s,
				       .n_spans = 1,
				       .kv_head_to = 1,
				       .row_to = m };

		fill(kv, 2ul * 160 * d);
		fill(q, n_q);
		for (uint32_t r = 0; r < m; r++)
			pos[r] = (int64_t)(t + r) - rnd(80);
		for (int j = 0; j < 2; j++) {
			a.o = out[j];
			a.m = a.o + n_q;
			a.l = a.m + m * heads;
			kern_attn_clear(&a);
			(j ? ref_attn : emu_ops.attn)(&a);
		}
		ck_assert_msg(
			!memcmp(out[0], out[1], 4 * (n_q + 2ul * m * heads)),
			"head_dim %u, %u heads, %u rows, %u tokens", d, heads,
			m, t);
		free(kv);
		free(q);
		free(out[0]);
		free(out[1]);
	}
}
END_TEST

int main(void)
{
	SRunner *r;
	Suite *s;
	TCase *t;
	int n;

	if (kern_init(KERN_ISA_AMX) < KERN_ISA_AVX512) {
		puts("test_kern_amx: skipped: no AVX-512 here");
		return 77;
	}
	s = suite_create("kern_amx");
	t = tcase_create("kern_amx");
	tcase_set_timeout(t, 60);
	tcase_add_test(t, linear_equals_its_twin);
	tcase_add_test(t, attention_equals_its_twin);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
