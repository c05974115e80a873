/*
 * test_kern_elem.c - rotation, conversions, norms, sampling: near the truth, and
 * the same bytes on every instruction set
 */
#include <check.h>
#include <math.h>
#include <string.h>
#include "io/base.h"
#include "kernels/kern.h"

static uint64_t state = 42;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}
static float rnf(void)
{
	return (float)((int)rnd(2000001) - 1000000) * 1e-6f;
}

START_TEST(rotation_is_near_the_truth)
{
	const struct kern_rope p = { KERN_ROPE_INTERLEAVED, 64, 10000, 1 };
	float x[64], y[64];

	for (int i = 0; i < 200; i++) {
		const int64_t pos = (int64_t)rnd(1u << 20) - 1000;

		for (int d = 0; d < 64; d++)
			x[d] = rnf();
		kern_rope(&p, x, y, &pos, 1, 1, 64);
		for (int d = 0; d < 32; d++) {
			const long double w =
				powl(10000, -2.0L * d / 64) * (long double)pos;
			const long double want =
				x[2 * d] * cosl(w) - x[2 * d + 1] * sinl(w);

			ck_assert_double_lt(
				fabs((double)(want - (long double)y[2 * d])),
				1e-6);
		}
	}
}
END_TEST

START_TEST(halves_of_f16_survive)
{
	for (uint32_t h = 0; h < 65536; h++) {
		const uint16_t in = (uint16_t)h;
		uint16_t out;
		float f;

		kern_to_f32(KERN_F16, &in, &f, 1);
		kern_from_f32(KERN_F16, &f, &out, 1);
		if (isnan(f))
			ck_assert_uint_gt(out & 0x7fff, 0x7c00);
		else
			ck_assert_uint_eq(in, out);
	}
}
END_TEST

START_TEST(sampling_follows_its_limits)
{
	enum { N = 50 };
	float logits[N];
	_Alignas(8) char scratch[8 * N];
	uint32_t seen[N] = { 0 }, n_seen = 0;
	struct kern_sample p = { .temperature = 1, .top_k = 5, .top_p = 1 };
	float lp;

	for (int i = 0; i < N; i++)
		logits[i] = (float)((i * 7) % N) * 0.1f;
	for (uint64_t i = 0; i < 2000; i++) {
		uint32_t id, again;

		p.pos = i;
		id = kern_sample(&p, logits, N, scratch, &lp);
		again = kern_sample(&p, logits, N, scratch, &lp);
		ck_assert_uint_eq(id, again);
		ck_assert_float_ge(logits[id], 4.5f - 1e-6f);
		n_seen += !seen[id]++;
	}
	ck_assert_uint_eq(n_seen, 5);
	p.temperature = 0;
	ck_assert_uint_eq(kern_sample(&p, logits, N, scratch, &lp),
			  kern_argmax(logits, N));
	p.temperature = 1;
	p.top_k = 0;
	p.min_p = 0.999f;
	ck_assert_uint_eq(kern_sample(&p, logits, N, scratch, &lp),
			  kern_argmax(logits, N));
	p.min_p = 0;
	p.top_p = 0.01f;
	ck_assert_uint_eq(kern_sample(&p, logits, N, scratch, &lp),
			  kern_argmax(logits, N));
}
END_TEST

/* Scores depend on the difference of positions only, in either layout. */
START_TEST(rotation_is_relative)
{
	const struct kern_rope kinds[] = {
		{ KERN_ROPE_INTERLEAVED, 64, 10000, 1 },
		{ KERN_ROPE_HALVES, 48, 500000, 1 },
	};
	float q[64], k[64], rq[64], rk[64];

	for (int i = 0; i < 200; i++) {
		const int64_t m = rnd(5000), n = rnd(5000), by = rnd(100000);
		double a = 0, b = 0;

		for (int d = 0; d < 64; d++) {
			q[d] = rnf();
			k[d] = rnf();
		}
		for (int pass = 0; pass < 2; pass++) {
			const int64_t pm = m + by * pass, pn = n + by * pass;

			kern_rope(&kinds[i % 2], q, rq, &pm, 1, 1, 64);
			kern_rope(&kinds[i % 2], k, rk, &pn, 1, 1, 64);
			for (int d = 0; d < 64; d++)
				*(pass ? &b : &a) +=
					(double)rq[d] * (double)rk[d];
		}
		ck_assert_double_lt(fabs(a - b), 2e-5);
	}
}
END_TEST

/* Elementwise functions: the same bytes on every instruction set. */
START_TEST(elementwise_is_one)
{
	enum { N = 333 };
	const struct kern_rope p = { KERN_ROPE_HALVES, 96, 10000, 0.5f };
	const enum kern_isa isa = KERN_ISA_AVX2 + (enum kern_isa)_i;
	float x[N], w[N], y[2][6][N], scratch[2 * N], lp[2];
	uint32_t id[2];
	const int64_t pos[3] = { -7, 12345, 1 << 20 };
	const struct kern_sample s = { 0.7f, 0, 0.9f, 0, 5, 6 };

	for (int i = 0; i < N; i++) {
		x[i] = 30 * rnf();
		w[i] = rnf();
	}
	memset(y, 0, sizeof(y));
	for (int i = 0; i < 2; i++) {
		if (kern_init(i ? isa : KERN_ISA_SCALAR) != isa && i)
			return;
		kern_rmsnorm(x, w, y[i][0], 1, N, 1e-5f);
		kern_swiglu(x, w, y[i][1], N);
		kern_add(x, y[i][1], N);
		kern_rope(&p, x, y[i][2], pos, 3, 1, 96);
		kern_from_f32(KERN_BF16, x, y[i][3], N);
		kern_to_f32(KERN_BF16, y[i][3], y[i][4], N);
		y[i][5][0] = kern_logsumexp(x, N);
		id[i] = kern_sample(&s, x, N, scratch, &lp[i]);
	}
	ck_assert(!memcmp(y[0], y[1], sizeof(y[0])));
	ck_assert_uint_eq(id[0], id[1]);
	ck_assert(!memcmp(&lp[0], &lp[1], 4));
}
END_TEST

/* The result may take the place of either input; what is no number stays none. */
START_TEST(swiglu_in_place)
{
	enum { N = 1003 };
	float gate[N], up[N], y[N], z[N];

	kern_init(_i ? KERN_ISA_AMX
		     : KERN_ISA_SCALAR); /* or the best there is */
	for (int i = 0; i < N; i++) {
		gate[i] = i % 7 ? 30 * rnf() : -0.0f;
		up[i] = rnf();
	}
	gate[500] = NAN;
	kern_swiglu(gate, up, y, N);
	for (int i = 0; i < N; i++) {
		const double g = (double)gate[i], u = (double)up[i];
		const double want = g / (1 + exp(-g)) * u;

		if (i == 500)
			ck_assert(isnan(y[i]));
		else
			ck_assert_double_le(fabs((double)y[i] - want),
					    1e-6 * fabs(want) + 1e-12);
	}
	memcpy(z, gate, sizeof(z));
	kern_swiglu(z, up, z, N);
	ck_assert(!memcmp(y, z, sizeof(y)));
	memcpy(z, up, sizeof(z));
	kern_swiglu(gate, z, z, N);
	ck_assert(!memcmp(y, z, sizeof(y)));
}
END_TEST

/* Whatever positions and kinds came before: sines are kept, and replaced. */
START_TEST(rotation_has_no_history)
{
	static const int64_t pos[] = { -1,   0, 5,	   1029, 5, -1,
				       1023, 5, 1ll << 40, -1,	 0, 1024,
				       5,    0, -1025,	   2053, 5, 1029 };
	const struct kern_rope p = { KERN_ROPE_INTERLEAVED, 64, 10000, 1 };
	const struct kern_rope other = { KERN_ROPE_HALVES, 32, 500, 1 };
	float x[128], y[2][KV_ARRAY_LEN(pos)][128];

	for (int i = 0; i < 128; i++)
		x[i] = rnf();
	for (int k = 0; k < 2; k++)
		for (size_t i = 0; i < KV_ARRAY_LEN(pos); i++) {
			float z[32];

			if (k) /* everything is forgotten */
				kern_rope(&other, x, z, &pos[i], 1, 1, 32);
			kern_rope(&p, x, y[k][i], &pos[i], 1, 2, 64);
		}
	ck_assert(!memcmp(y[0], y[1], sizeof(y[0])));
	ck_assert(memcmp(y[0][0], y[0][1], sizeof(x)) != 0);
}
END_TEST

/* Weights in double, sorted; those that the limits keep, the rest 0. */
static void naive_keep(const struct kern_sample *p, const float *x,
		       double *kept, uint32_t n)
{
	double w[64], sum = 0, all = 0;
	uint32_t order[64], k;

	for (uint32_t i = 0; i < n; i++) {
		w[i] = exp((double)x[i] / (double)p->temperature);
		kept[i] = 0;
		order[i] = i;
		for (k = i; k && w[order[k - 1]] < w[i]; k--)
			order[k] = order[k - 1];
		order[k] = i;
	}
	const uint32_t most = p->top_k && p->top_k < n ? p->top_k : n;

	for (uint32_t i = 0; i < most; i++)
		all += w[order[i]];
	for (k = 0; k < most; k++) {
		if (k && (sum >= (double)p->top_p * all ||
			  w[order[k]] < (double)p->min_p * w[order[0]]))
			break;
		sum += w[order[k]];
		kept[order[k]] = w[order[k]];
	}
	for (uint32_t i = 0; i < n; i++)
		kept[i] /= sum;
}

START_TEST(sampling_equals_the_naive_one)
{
	enum { N = 40, DRAWS = 20000 };
	static const struct kern_sample limits[] = {
		{ .temperature = 1, .top_p = 1 },
		{ .temperature = 0.6f, .top_k = 7, .top_p = 1 },
		{ .temperature = 1.3f, .top_p = 0.8f },
		{ .temperature = 1, .top_k = 12, .top_p = 0.7f },
		{ .temperature = 1, .top_p = 1, .min_p = 0.2f },
		{ .temperature = 2, .top_k = 9, .top_p = 0.95f, .min_p = 0.1f },
	};
	struct kern_sample p = limits[_i];
	uint32_t count[N] = { 0 };
	_Alignas(8) char scratch[8 * N];
	double kept[N], total = 0;
	float x[N], lp;

	for (uint32_t i = 0; i < N; i++)
		x[i] = 3 * rnf();
	naive_keep(&p, x, kept, N);
	for (uint32_t i = 0; i < N; i++)
		total += exp((double)x[i]);
	p.seed = 11;
	for (p.pos = 0; p.pos < DRAWS; p.pos++) {
		const uint32_t id = kern_sample(&p, x, N, scratch, &lp);

		ck_assert_uint_lt(id, N);
		ck_assert_double_gt(kept[id], 0);
		ck_assert_double_lt(
			fabs((double)lp - (double)x[id] + log(total)), 1e-5);
		count[id]++;
	}
	for (uint32_t i = 0; i < N; i++) {
		const double want = kept[i] * DRAWS;
		const double sigma = sqrt(want * (1 - kept[i])) + 1e-9;

		ck_assert_double_le(fabs(count[i] - want), 5 * sigma + 1);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kern_elem");
	TCase *t = tcase_create("kern_elem");
	SRunner *r;
	int n;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, rotation_is_relative);
	tcase_add_test(t, rotation_has_no_history);
	tcase_add_loop_test(t, elementwise_is_one, 0, 4);
	tcase_add_loop_test(t, swiglu_in_place, 0, 2);
	tcase_add_loop_test(t, sampling_equals_the_naive_one, 0, 6);
	tcase_add_test(t, rotation_is_near_the_truth);
	tcase_add_test(t, halves_of_f16_survive);
	tcase_add_test(t, sampling_follows_its_limits);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
