/*
 * gpu_sample.cuh - from a row of logits to a token, as kern_sample() does; part of gpu.cu
 *
 * A block has a row. Weights are those of kern_sample() to the bit; they are summed as
 * integers in units of 2^-44, so in any order. Candidates are ordered by weight, equal
 * ones by index, but never sorted: where a sum of the first of them passes a bound is
 * found digit by digit of the weight's bits (radix selection), then by index.
 */
#define DIGITS	  256u
#define UNIT	  17592186044416.0f /* 2^44 */
#define NO_COUNT  0xffffffffu
#define NO_WEIGHT 0xffffffffffffffffull

struct sample_shared {
	uint64_t weight[DIGITS];
	double sum[GPU_THREADS];
	uint32_t count[DIGITS];
	float best[GPU_THREADS];
	uint32_t best_at[GPU_THREADS];
	/* what thread 0 found */
	uint64_t before_w;
	uint32_t before_n, prefix, found, id;
};

/* exp(x) for x <= 0, as kern_exp(). */
INLINE float sample_exp(float x)
{
	const float t = fmaf(x, 1.44269504088896341f, 12582912.0f);
	const float n = t - 12582912.0f;
	const float f =
		fmaf(n, -1.42860677309e-6f, fmaf(n, -0.693145751953125f, x));
	float p = fmaf(1.38888889e-3f, f, 8.33333333e-3f);

	p = fmaf(p, f, 4.16666667e-2f);
	p = fmaf(p, f, 1.66666667e-1f);
	p = fmaf(p, f, 0.5f);
	p = fmaf(p, f, 1.0f);
	p = fmaf(p, f, 1.0f);
	if (!(x >= -87.0f))
		return 0.0f;
	return p * FROM_BITS((TO_BITS(t) - TO_BITS(12582912.0f) + 127) << 23);
}

/* ln x for x >= 1, as kern_log_ge1(). */
INLINE float sample_log(float x)
{
	int e = (int)(TO_BITS(x) >> 23) - 126;
	float m = FROM_BITS((TO_BITS(x) & 0x7fffffu) | 0x3f000000u);
	float s, s2, sum = 0;

	if (m < 0.70710678f) {
		m *= 2;
		e--;
	}
	s = (m - 1) / (m + 1);
	s2 = s * s;
	for (int k = 11; k >= 1; k -= 2)
		sum = sum * s2 + 1.0f / (float)k;
	return 2 * s * sum + (float)e * 0.69314718f;
}

/* Philox 4x32-10 keyed by the seed at the position, in [0, 1). */
INLINE double sample_uniform(uint64_t seed, uint64_t pos)
{
	uint32_t c[4] = { (uint32_t)pos, (uint32_t)(pos >> 32), 0, 0 };
	uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

	for (int i = 0; i < 10; i++) {
		const uint64_t a = 0xD2511F53ull * c[0];
		const uint64_t b = 0xCD9E8D57ull * c[2];

		c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
		c[1] = (uint32_t)b;
		c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
		c[3] = (uint32_t)a;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
	return (double)(((uint64_t)c[0] << 21) ^ (c[1] >> 11)) *
	       (1.0 / 9007199254740992.0);
}

INLINE uint64_t sample_units(uint32_t bits)
{
	return (uint64_t)(FROM_BITS(bits) * UNIT);
}

/* The largest of x, the first of them. All threads get it. */
INLINE uint32_t sample_argmax(struct sample_shared *sh, const float *x,
			      uint32_t n)
{
	const uint32_t tid = threadIdx.x;
	float best = -INFINITY;
	uint32_t at = NO_COUNT;

	for (uint32_t i = tid; i < n; i += GPU_THREADS)
		if (x[i] > best) {
			best = x[i];
			at = i;
		}
	sh->best[tid] = best;
	sh->best_at[tid] = at;
	__syncthreads();
	for (uint32_t m = GPU_THREADS / 2; m; m /= 2) {
		if (tid < m) {
			const float y = sh->best[tid + m];
			const uint32_t i = sh->best_at[tid + m];

			if (y > sh->best[tid] ||
			    (y == sh->best[tid] && i < sh->best_at[tid])) {
				sh->best[tid] = y;
				sh->best_at[tid] = i;
			}
		}
		__syncthreads();
	}
	at = sh->best_at[0];
	return at == NO_COUNT ? 0 : at;
}

/* Sums over the block, in a fixed order; all threads get them. */
INLINE double sample_sum(struct sample_shared *sh, double x)
{
	const uint32_t tid = threadIdx.x;

	__syncthreads();
	sh->sum[tid] = x;
	__syncthreads();
	for (uint32_t m = GPU_THREADS / 2; m; m /= 2) {
		if (tid < m)
			sh->sum[tid] += sh->sum[tid + m];
		__syncthreads();
	}
	return sh->sum[0];
}

INLINE uint64_t sample_total(struct sample_shared *sh, uint64_t x)
{
	uint64_t sum = 0;

	__syncthreads();
	sh->weight[threadIdx.x] = x;
	__syncthreads();
	for (uint32_t i = 0; i < GPU_THREADS; i++)
		sum += sh->weight[i];
	return sum;
}

/* The digit in which the bound is passed: thread 0. */
INLINE void sample_digit(struct sample_shared *sh, uint32_t count,
			 uint64_t weight)
{
	sh->found = 0;
	for (uint32_t d = DIGITS; d-- && !sh->found;) {
		if (!sh->count[d])
			continue;
		if ((uint64_t)sh->before_n + sh->count[d] >= count ||
		    sh->before_w + sh->weight[d] > weight) {
			sh->prefix = sh->prefix << 8 | d;
			sh->found = 1;
			break;
		}
		sh->before_n += sh->count[d];
		sh->before_w += sh->weight[d];
	}
}

/* The nth (from 1) of the candidates of a weight, by index. */
INLINE void sample_nth(struct sample_shared *sh, const uint32_t *bits,
		       uint32_t n, uint32_t key, uint64_t nth)
{
	const uint32_t tid = threadIdx.x;
	const uint32_t each = (n + GPU_THREADS - 1) / GPU_THREADS;
	const uint32_t from = tid * each < n ? tid * each : n;
	const uint32_t to = n - from < each ? n : from + each;
	uint64_t before = 0;
	uint32_t k = 0;

	for (uint32_t i = from; i < to; i++)
		k += bits[i] == key;
	__syncthreads();
	sh->count[tid] = k;
	__syncthreads();
	for (uint32_t i = 0; i < tid; i++)
		before += sh->count[i];
	if (before < nth && nth <= before + k)
		for (uint32_t i = from; i < to; i++)
			if (bits[i] == key && ++before == nth)
				sh->id = i;
	__syncthreads();
}

/*
 * The shortest run of candidates from the first on which are count, or whose weights
 * sum to more than weight: their sum; *id is the last of them, if asked for. The sum of
 * all, and *id as it is, if there is none.
 */
INLINE uint64_t sample_select(struct sample_shared *sh, const uint32_t *bits,
			      uint32_t n, uint32_t count, uint64_t weight,
			      uint32_t *id)
{
	const uint32_t tid = threadIdx.x;
	uint64_t units, nth = NO_WEIGHT, sum;

	__syncthreads();
	if (!tid) {
		sh->before_w = 0;
		sh->before_n = sh->prefix = 0;
	}
	for (uint32_t shift = 32; shift;) {
		shift -= 8;
		for (uint32_t d = tid; d < DIGITS; d += GPU_THREADS) {
			sh->count[d] = 0;
			sh->weight[d] = 0;
		}
		__syncthreads();
		for (uint32_t i = tid; i < n; i += GPU_THREADS)
			if ((uint64_t)bits[i] >> (shift + 8) == sh->prefix) {
				const uint32_t d = bits[i] >> shift & 255;

				add_count(&sh->count[d], 1);
				add_weight(&sh->weight[d],
					   sample_units(bits[i]));
			}
		__syncthreads();
		if (!tid)
			sample_digit(sh, count, weight);
		__syncthreads();
		if (!sh->found)
			return sh->before_w;
	}
	units = sample_units(sh->prefix);
	if (units)
		nth = (weight - sh->before_w) / units + 1;
	if (nth > count - sh->before_n)
		nth = count - sh->before_n;
	sum = sh->before_w + nth * units;
	if (id) {
		sample_nth(sh, bits, n, sh->prefix, nth);
		*id = sh->id;
	}
	return sum;
}

/* The weight that the limits leave: of a run of candidates from the first on. */
INLINE uint64_t sample_limits(struct sample_shared *sh,
			      const struct gpu_sampler *p, const uint32_t *bits,
			      uint32_t n)
{
	uint64_t x = 0, total;

	for (uint32_t i = threadIdx.x; i < n; i += GPU_THREADS)
		x += sample_units(bits[i]);
	total = sample_total(sh, x);
	if (p->top_k && p->top_k < n)
		total = sample_select(sh, bits, n, p->top_k, NO_WEIGHT, 0);
	if (p->top_p < 1) {
		const uint64_t need =
			(uint64_t)ceil((double)p->top_p * (double)total);
		const uint64_t y = sample_select(sh, bits, n, NO_COUNT,
						 need ? need - 1 : 0, 0);

		total = y < total ? y : total;
	}
	if (p->min_p > 0) {
		const uint64_t one = (uint64_t)UNIT; /* the largest stays */

		x = 0;
		for (uint32_t i = threadIdx.x; i < n; i += GPU_THREADS)
			if (FROM_BITS(bits[i]) >= p->min_p)
				x += sample_units(bits[i]);
		x = sample_total(sh, x);
		x = x < one ? one : x;
		total = x < total ? x : total;
	}
	return total;
}

KERNEL(sample, struct gpu_sample)
{
	__shared__ struct sample_shared sh;
	const struct gpu_sampler p =
		((const struct gpu_sampler *)a.how)[blockIdx.x];
	const float *x = (const float *)a.logits + (size_t)blockIdx.x * a.n;
	uint32_t *bits = (uint32_t *)a.scratch + (size_t)blockIdx.x * a.n;
	uint32_t id = sample_argmax(&sh, x, a.n);
	const float max = x[id];
	double sum = 0;

	for (uint32_t i = threadIdx.x; i < a.n; i += GPU_THREADS) {
		sum += (double)sample_exp(x[i] - max);
		if (p.temperature > 0)
			bits[i] = TO_BITS(
				sample_exp((x[i] - max) / p.temperature));
	}
	sum = sample_sum(&sh, sum);
	if (p.temperature > 0) {
		const uint64_t total = sample_limits(&sh, &p, bits, a.n);
		uint64_t at = (uint64_t)(sample_uniform(p.seed, p.pos) *
					 (double)total);

		if (at >= total)
			at = total - 1;
		if (total)
			sample_select(&sh, bits, a.n, NO_COUNT, at, &id);
	}
	if (!threadIdx.x) {
		((uint32_t *)a.token)[blockIdx.x] = id;
		((float *)a.logprob)[blockIdx.x] =
			x[id] - (max + sample_log((float)sum));
	}
}
