/*
 * fake_cublas.c - the calls of kernels/cublas_api.h over host memory, for tests
 *
 * Offers four algorithms: one that splits k, one that needs a workspace of a megabyte,
 * one that takes at most 16 rows, and one that anybody can use. Each sums in another
 * order, so a test sees which one ran. Products run on the stream, as kernels do.
 */
#include <stdlib.h>
#include <string.h>
#include "kernels/cublas_api.h"
#include "tests/rig/cuda/fake_priv.h"

enum { SPLIT, LARGE, SMALL, PLAIN, N_ALGOS };
#define LARGE_BYTES (1u << 20)
#define SMALL_ROWS  16u
#define VERSION	    130000u

struct layout {
	int type;
	uint64_t rows, cols;
	int64_t ld;
};

struct desc {
	int is_transposed;
};

struct pref {
	uint64_t workspace;
};

static int n_objects; /* made and not freed */
static uint64_t refused; /* outputs of products that nothing fits; 0: none */

/* Of one product, on the stream. */
struct product {
	const void *w, *x;
	float *y;
	uint64_t n_rows, n_out, n_in;
	int64_t x_stride, y_stride;
	float beta;
	int type, algo;
};

/* ---- arithmetic -------------------------------------------------------------- */

/* n is a multiple of 8; eight sums, so that the compiler may use vectors. */
#define DOT(name, type, widen) \
	static float name(const void *a, const void *b, uint64_t n) \
	{ \
		const type *x = a, *w = b; \
		float sum[8] = { 0 }; \
\
		for (uint64_t i = 0; i < n; i += 8) \
			for (uint32_t k = 0; k < 8; k++) \
				sum[k] += widen(x[i + k]) * widen(w[i + k]); \
		for (uint32_t h = 4; h; h /= 2) \
			for (uint32_t k = 0; k < h; k++) \
				sum[k] += sum[k + h]; \
		return sum[0]; \
	}

static inline float widen_bf16(uint16_t x)
{
	const uint32_t u = (uint32_t)x << 16;
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static inline float widen_f16(uint16_t x)
{
	_Float16 f;

	memcpy(&f, &x, sizeof(f));
	return (float)f;
}

#define SAME(x) (x)
DOT(dot_f32, float, SAME)
DOT(dot_f16, uint16_t, widen_f16)
DOT(dot_bf16, uint16_t, widen_bf16)

static float dot_any(const char *x, const char *w, uint64_t n, int type)
{
	return type == CUBLAS_R_16BF  ? dot_bf16(x, w, n)
	       : type == CUBLAS_R_32F ? dot_f32(x, w, n)
				      : dot_f16(x, w, n);
}

static void multiply(const void *args)
{
	const struct product *p = args;
	const uint64_t es = p->type == CUBLAS_R_32F ? 4 : 2;
	/* where the sum is cut, by algorithm */
	const uint64_t part = p->algo == SPLIT	 ? 2
			      : p->algo == LARGE ? 4
			      : p->algo == SMALL ? 3
						 : p->n_in;
	const uint64_t cut = p->n_in / part / 8 * 8;

	for (uint64_t o = 0; o < p->n_out; o++)
		for (uint64_t r = 0; r < p->n_rows; r++) {
			const char *x = (const char *)p->x +
					r * (uint64_t)p->x_stride * es;
			const char *w = (const char *)p->w + o * p->n_in * es;
			float *y = p->y + r * (uint64_t)p->y_stride + o;
			float sum = dot_any(x + cut * es, w + cut * es,
					    p->n_in - cut, p->type);

			if (cut)
				sum += dot_any(x, w, cut, p->type);
			*y = p->beta != 0 ? *y + sum : sum;
		}
}

/* ---- descriptors ------------------------------------------------------------- */

static int enter(const char *symbol)
{
	const int err = fake_enter(symbol);

	return err && fake.lost ? CUBLAS_EXECUTION_FAILED : err;
}

static int make(const char *symbol, void **out, size_t n, const void *from)
{
	const int err = enter(symbol);

	if (err)
		return err;
	*out = malloc(n);
	if (!*out)
		return fake_leave(CUBLAS_ALLOC_FAILED);
	memcpy(*out, from, n);
	n_objects++;
	return fake_leave(CUBLAS_OK);
}

/* As with the real one, also after the device is lost. */
static int drop(void *p)
{
	pthread_mutex_lock(&fake.m);
	free(p);
	n_objects--;
	return fake_leave(CUBLAS_OK);
}

void fake_cublas_refuse(uint64_t n_outputs)
{
	refused = n_outputs;
}

int fake_cublas_objects(void)
{
	int n;

	pthread_mutex_lock(&fake.m);
	n = n_objects;
	return pthread_mutex_unlock(&fake.m) ? -1 : n;
}

size_t cublasLtGetVersion(void)
{
	return VERSION;
}

int cublasLtCreate(void **out)
{
	return make("cublasLtCreate", out, 1, "");
}

int cublasLtDestroy(void *handle)
{
	return drop(handle);
}

int cublasLtMatmulDescCreate(void **out, int compute, int scale)
{
	const struct desc d = { 0 };

	if (compute != CUBLAS_COMPUTE_F32 || scale != CUBLAS_R_32F)
		return CUBLAS_NOT_SUPPORTED;
	return make("cublasLtMatmulDescCreate", out, sizeof(d), &d);
}

int cublasLtMatmulDescDestroy(void *d)
{
	return drop(d);
}

int cublasLtMatmulDescSetAttribute(void *desc, int attr, const void *v,
				   size_t n)
{
	const int err = enter("cublasLtMatmulDescSetAttribute");
	struct desc *d = desc;

	if (err)
		return err;
	if (attr != CUBLAS_DESC_TRANSA || n != 4)
		return fake_leave(CUBLAS_INVALID_VALUE);
	d->is_transposed = *(const int *)v == CUBLAS_TRANSPOSE;
	return fake_leave(CUBLAS_OK);
}

int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows,
			       uint64_t cols, int64_t ld)
{
	const struct layout l = { type, rows, cols, ld };

	return make("cublasLtMatrixLayoutCreate", out, sizeof(l), &l);
}

int cublasLtMatrixLayoutDestroy(void *l)
{
	return drop(l);
}

int cublasLtMatrixLayoutSetAttribute(void *layout, int attr, const void *v,
				     size_t n)
{
	const int err = enter("cublasLtMatrixLayoutSetAttribute");
	struct layout *l = layout;

	if (err)
		return err;
	if (n != 8 || (attr != CUBLAS_LAYOUT_COLS && attr != CUBLAS_LAYOUT_LD))
		return fake_leave(CUBLAS_INVALID_VALUE);
	if (attr == CUBLAS_LAYOUT_COLS)
		l->cols = *(const uint64_t *)v;
	else
		l->ld = *(const int64_t *)v;
	return fake_leave(CUBLAS_OK);
}

int cublasLtMatmulPreferenceCreate(void **out)
{
	const struct pref p = { 0 };

	return make("cublasLtMatmulPreferenceCreate", out, sizeof(p), &p);
}

int cublasLtMatmulPreferenceDestroy(void *p)
{
	return drop(p);
}

int cublasLtMatmulPreferenceSetAttribute(void *pref, int attr, const void *v,
					 size_t n)
{
	const int err = enter("cublasLtMatmulPreferenceSetAttribute");
	struct pref *p = pref;

	if (err)
		return err;
	if (n != (attr == CUBLAS_PREF_WORKSPACE ? 8 : 4))
		return fake_leave(CUBLAS_INVALID_VALUE);
	if (attr == CUBLAS_PREF_WORKSPACE)
		p->workspace = *(const uint64_t *)v;
	return fake_leave(CUBLAS_OK);
}

/* ---- algorithms ---------------------------------------------------------------- */

static int is_product(const struct desc *d, const struct layout *a,
		      const struct layout *b, const struct layout *c)
{
	return d->is_transposed && a->type == b->type &&
	       c->type == CUBLAS_R_32F && a->rows == b->rows &&
	       a->cols == c->rows && b->cols == c->cols &&
	       a->ld >= (int64_t)a->rows && b->ld >= (int64_t)b->rows &&
	       c->ld >= (int64_t)c->rows;
}

/* The one that splits is offered whatever the mask says: who asks has to look. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *desc, void *a, void *b,
				   void *c, void *d, void *pref, int n,
				   struct cublas_result *out, int *n_out)
{
	const int err = enter("cublasLtMatmulAlgoGetHeuristic");
	const struct pref *p = pref;

	(void)handle;
	if (err)
		return err;
	if (!is_product(desc, a, b, d) || c != d)
		return fake_leave(CUBLAS_INVALID_VALUE);
	if (refused && ((struct layout *)d)->rows == refused) {
		out[0] = (struct cublas_result){ .algo = { { SPLIT } } };
		*n_out = 1;
		return fake_leave(CUBLAS_OK);
	}
	*n_out = n < N_ALGOS ? n : N_ALGOS;
	for (int i = 0; i < *n_out; i++) {
		out[i] = (struct cublas_result){ .algo = { { (uint64_t)i } } };
		if (i == LARGE && p->workspace < LARGE_BYTES)
			out[i].state = CUBLAS_NOT_SUPPORTED;
	}
	return fake_leave(CUBLAS_OK);
}

int cublasLtMatmulAlgoCheck(void *handle, void *desc, void *a, void *b, void *c,
			    void *d, const struct cublas_algo *algo,
			    struct cublas_result *out)
{
	const int err = enter("cublasLtMatmulAlgoCheck");
	const struct layout *x = b;

	(void)handle;
	if (err)
		return err;
	if (!is_product(desc, a, b, d) || c != d || algo->data[0] >= N_ALGOS)
		return fake_leave(CUBLAS_INVALID_VALUE);
	if (algo->data[0] == SMALL && x->cols > SMALL_ROWS)
		return fake_leave(CUBLAS_NOT_SUPPORTED);
	memset(out, 0, sizeof(*out));
	out->workspace_bytes = algo->data[0] == LARGE ? LARGE_BYTES : 0;
	return fake_leave(CUBLAS_OK);
}

int cublasLtMatmulAlgoConfigGetAttribute(const struct cublas_algo *algo,
					 int attr, void *v, size_t n,
					 size_t *n_out)
{
	const int err = enter("cublasLtMatmulAlgoConfigGetAttribute");
	const int32_t split = algo->data[0] == SPLIT ? 2 : 1, none = 0;

	if (err)
		return err;
	if (n != 4)
		return fake_leave(CUBLAS_INVALID_VALUE);
	*n_out = n;
	memcpy(v, attr == CUBLAS_CONFIG_SPLIT_K ? &split : &none, n);
	return fake_leave(CUBLAS_OK);
}

int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a,
		   void *la, const void *b, void *lb, const void *beta,
		   const void *c, void *lc, void *d, void *ld,
		   const struct cublas_algo *algo, void *workspace,
		   size_t n_workspace, cuda_stream st)
{
	const int err = enter("cublasLtMatmul");
	const struct layout *w = la, *x = lb, *y = ld;
	const struct product p = { .w = a,
				   .x = b,
				   .y = d,
				   .n_rows = x->cols,
				   .n_out = w->cols,
				   .n_in = w->rows,
				   .x_stride = x->ld,
				   .y_stride = y->ld,
				   .beta = *(const float *)beta,
				   .type = w->type,
				   .algo = (int)algo->data[0] };
	struct fake_op op = { .kind = OP_LAUNCH, .fn = multiply };

	(void)handle;
	if (err)
		return err;
	if (!is_product(desc, la, lb, ld) || *(const float *)alpha != 1 ||
	    c != d || lc != ld || algo->data[0] >= N_ALGOS ||
	    (p.algo == SMALL && p.n_rows > SMALL_ROWS) ||
	    (p.algo == LARGE && (!workspace || n_workspace < LARGE_BYTES)))
		return fake_leave(CUBLAS_INVALID_VALUE);
	memcpy(op.args, &p, sizeof(p));
	return fake_leave(fake_queue(st, op) ? CUBLAS_ALLOC_FAILED : CUBLAS_OK);
}
