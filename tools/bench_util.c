/*
 * bench_util.c - results, medians, memory, the read bandwidth; see bench.h
 */
#include "tools/bench.h"

#include <errno.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "kernels/kern.h"

#define READ_STREAMS 4u
#define READ_CHUNK   (1u << 20) /* what a thread takes at a time */
#define READ_AHEAD   2048u /* bytes; 1 to 4 KiB measure the same */
#define HUGE_BYTES   (2u << 20)
#define FILL_BYTES   (1u << 20)

/* ---- results ------------------------------------------------------------ */

void bench_put(struct bench *b, double value, const char *unit,
	       const char *name, ...)
{
	struct bench_line *l;
	va_list ap;

	l = realloc(b->lines, (b->n_lines + 1) * sizeof(*l));
	if (!l)
		return;
	b->lines = l;
	l += b->n_lines++;
	va_start(ap, name);
	(void)vsnprintf(l->name, sizeof(l->name), name, ap);
	va_end(ap);
	(void)snprintf(l->unit, sizeof(l->unit), "%s", unit);
	l->value = value;
	if (b->json)
		return;
	printf("%s %.6g %s\n", l->name, value, l->unit);
	fflush(stdout);
}

void bench_note(const char *fmt, ...)
{
	va_list ap;

	fputs("# ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

int bench_fail(int err, const char *fmt, ...)
{
	va_list ap;

	fputs("kvbench: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(-err));
	return err;
}

void bench_print_json(const struct bench *b)
{
	json_t *o = json_object();

	for (size_t i = 0; o && i < b->n_lines; i++) {
		const struct bench_line *l = &b->lines[i];
		json_t *v = isfinite(l->value) ? json_real(l->value)
					       : json_null();

		(void)json_object_set_new(
			o, l->name,
			json_pack("{s:o,s:s}", "value", v, "unit", l->unit));
	}
	if (o)
		(void)json_dumpf(o, stdout,
				 JSON_INDENT(1) | JSON_REAL_PRECISION(6));
	putchar('\n');
	json_decref(o);
}

/* ---- samples ------------------------------------------------------------ */

static int by_value(const void *x, const void *y)
{
	const double a = *(const double *)x;
	const double b = *(const double *)y;

	return (a > b) - (a < b);
}

double bench_quantile(double *v, size_t n, double p)
{
	size_t i;

	if (!n)
		return NAN;
	qsort(v, n, sizeof(*v), by_value);
	i = (size_t)ceil(p * (double)n);
	i = i ? i - 1 : 0;
	return v[KV_MIN(i, n - 1)];
}

/* Threads of the pool and of OpenMP still spin when a run is over. */
static void let_spinners_sleep(void)
{
	const struct timespec ts = { .tv_nsec = 5000000 };

	(void)nanosleep(&ts, NULL);
}

static int one_round(struct bench_side *sides, unsigned int n_sides)
{
	for (unsigned int i = 0; i < n_sides; i++) {
		struct bench_side *s = &sides[i];
		double v;

		let_spinners_sleep();
		v = s->run(s->arg);
		if (v < 0)
			return -EIO;
		s->v[s->n++] = v;
	}
	return 0;
}

int bench_rounds(struct bench_side *sides, unsigned int n_sides,
		 unsigned int min_rounds, double budget_s)
{
	const uint64_t t0 = clock_ns();
	double took = 0;
	unsigned int n = 0;
	int ret;

	for (unsigned int i = 0; i < n_sides; i++)
		sides[i].n = 0;
	while (sides[0].n < BENCH_MAX_ROUNDS &&
	       (n < min_rounds || took * (n + 1) / KV_MAX(n, 1u) < budget_s)) {
		ret = one_round(sides, n_sides);
		if (ret)
			return ret;
		took = (double)(clock_ns() - t0) * 1e-9;
		if (!n++ && took < budget_s / 4)
			for (unsigned int i = 0; i < n_sides; i++)
				sides[i].n = 0; /* that was the warm-up */
	}
	return 0;
}

double bench_median(const struct bench_side *s)
{
	double v[BENCH_MAX_ROUNDS];

	memcpy(v, s->v, s->n * sizeof(*v));
	return bench_quantile(v, s->n, 0.5);
}

double bench_ratio(const struct bench_side *a, const struct bench_side *b)
{
	const unsigned int n = KV_MIN(a->n, b->n);
	double v[BENCH_MAX_ROUNDS];

	for (unsigned int i = 0; i < n; i++)
		v[i] = a->v[i] / b->v[i];
	return bench_quantile(v, n, 0.5);
}

/* ---- memory ------------------------------------------------------------- */

void *bench_alloc(size_t n_bytes)
{
	const size_t n = KV_ALIGN_UP(n_bytes, HUGE_BYTES);
	char *p = mmap(NULL, n + HUGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t head;

	if (p == MAP_FAILED)
		return NULL;
	head = (HUGE_BYTES - (uintptr_t)p % HUGE_BYTES) % HUGE_BYTES;
	if (head)
		(void)munmap(p, head); /* the rest is given back the same way */
	p += head;
	(void)munmap(p + n, HUGE_BYTES - head);
	(void)madvise(p, n, MADV_HUGEPAGE); /* a wish */
	memset(p, 0, n);
	return p;
}

void bench_free(void *p, size_t n_bytes)
{
	if (p)
		(void)munmap(p, KV_ALIGN_UP(n_bytes, HUGE_BYTES));
}

void bench_fill_f32(float *p, size_t n)
{
	uint64_t x = 0x9e3779b97f4a7c15u;

	for (size_t i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = (float)(int32_t)(x >> 32) * 0x1p-31f;
	}
}

void bench_fill_bf16(void *p, size_t n_bytes)
{
	/* no period of 2^k */
	const size_t n = FILL_BYTES / sizeof(uint16_t) - 37;
	uint16_t *table = malloc(n * sizeof(*table));
	float *f = malloc(n * sizeof(*f));

	if (table && f) {
		bench_fill_f32(f, n);
		kern_from_f32(KERN_BF16, f, table, n);
		for (size_t at = 0; at < n_bytes; at += n * sizeof(*table))
			memcpy((char *)p + at, table,
			       KV_MIN(n * sizeof(*table), n_bytes - at));
	}
	free(f);
	free(table);
}

/* ---- read bandwidth ----------------------------------------------------- */

/*
 * Sum of n_bytes, a multiple of READ_STREAMS * 64, in READ_STREAMS streams with
 * prefetch: one stream does not keep all outstanding misses of a core busy.
 */
#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t sum_avx512(const char *base,
							      size_t n_bytes)
{
	const size_t step = n_bytes / READ_STREAMS;
	__m512i a = _mm512_setzero_si512();
	__m512i b = a, c = a, d = a;
	uint64_t sum[8];

	for (const char *p = base; p < base + step; p += 64) {
		for (size_t s = 0; s < READ_STREAMS; s++)
			__builtin_prefetch(p + s * step + READ_AHEAD);
		a = _mm512_add_epi64(a, _mm512_load_si512(p));
		b = _mm512_add_epi64(b, _mm512_load_si512(p + step));
		c = _mm512_add_epi64(c, _mm512_load_si512(p + 2 * step));
		d = _mm512_add_epi64(d, _mm512_load_si512(p + 3 * step));
	}
	a = _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d));
	_mm512_storeu_si512(sum, a);
	return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] +
	       sum[7];
}

__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *base,
							 size_t n_bytes)
{
	const size_t step = n_bytes / READ_STREAMS;
	__m256i acc[2 * READ_STREAMS] = { 0 };
	uint64_t sum[4];

	for (const char *p = base; p < base + step; p += 64)
		for (size_t s = 0; s < READ_STREAMS; s++) {
			const __m256i *at = (const void *)(p + s * step);

			__builtin_prefetch(p + s * step + READ_AHEAD);
			acc[2 * s] = _mm256_add_epi64(acc[2 * s],
						      _mm256_load_si256(at));
			acc[2 * s + 1] = _mm256_add_epi64(
				acc[2 * s + 1], _mm256_load_si256(at + 1));
		}
	for (size_t i = 1; i < 2 * READ_STREAMS; i++)
		acc[0] = _mm256_add_epi64(acc[0], acc[i]);
	_mm256_storeu_si256((void *)sum, acc[0]);
	return sum[0] + sum[1] + sum[2] + sum[3];
}
#endif

static uint64_t sum_plain(const char *base, size_t n_bytes)
{
	const size_t step = n_bytes / READ_STREAMS;
	uint64_t acc[READ_STREAMS] = { 0 };
	uint64_t v;

	for (size_t at = 0; at < step; at += 64)
		for (size_t s = 0; s < READ_STREAMS; s++) {
			const char *p = base + s * step + at;

			__builtin_prefetch(p + READ_AHEAD);
			for (size_t i = 0; i < 64; i += sizeof(v)) {
				memcpy(&v, p + i, sizeof(v));
				acc[s] += v;
			}
		}
	return acc[0] + acc[1] + acc[2] + acc[3];
}

static uint64_t sum_bytes(const char *base, size_t n_bytes)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx512f"))
		return sum_avx512(base, n_bytes);
	if (__builtin_cpu_supports("avx2"))
		return sum_avx2(base, n_bytes);
#endif
	return sum_plain(base, n_bytes);
}

static void read_part(void *arg, uint32_t i_part)
{
	struct bench_read *r = arg;
	const uint64_t sum =
		sum_bytes(r->base + (size_t)i_part * READ_CHUNK, READ_CHUNK);

	__atomic_fetch_add(&r->sum, sum, __ATOMIC_RELAXED);
}

double bench_read_run(void *arg)
{
	struct bench_read *r = arg;
	const uint32_t n_parts = (uint32_t)(r->n_bytes / READ_CHUNK);
	const uint64_t t0 = clock_ns();

	pool_run(r->pool, read_part, r, n_parts);
	return (double)n_parts * READ_CHUNK / (double)(clock_ns() - t0);
}
