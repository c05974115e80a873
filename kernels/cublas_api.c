/*
 * cublas_api.c - matrix products by cuBLASLt; see cublas_api.h
 *
 * cuBLASLt thinks in columns: what is y[n][N] = x[n][K] W[N][K]^T here is D = A^T B
 * there, with A = W (K x N), B = x (K x n), D = y (N x n). All that changes from call
 * to call is the number of columns and two strides.
 */
#include "kernels/cublas_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_OFFERS 16

struct cublas_plan {
	struct cublas *c;
	struct cublas_shape s;
	struct cublas_algo algo;
	void *desc, *a, *b, *d;
	uint64_t id;
};

int cublas_errno(int status)
{
	switch (status) {
	case CUBLAS_OK:
		return 0;
	case CUBLAS_NOT_INITIALIZED: /* no device, or its context is broken */
		return -ENODEV;
	case CUBLAS_ALLOC_FAILED:
		return -ENOMEM;
	case CUBLAS_INVALID_VALUE:
		return -EINVAL;
	case CUBLAS_ARCH_MISMATCH:
	case CUBLAS_NOT_SUPPORTED:
		return -ENOTSUP;
	case CUBLAS_LICENSE_ERROR:
		return -EPERM;
	default:
		return -EIO;
	}
}

/* ---- open, close ----------------------------------------------------------- */

static void *load(const char *library, char *why, size_t why_len)
{
	static const char *const names[] = { "libcublasLt.so.13",
					     "libcublasLt.so.12",
					     "libcublasLt.so.11" };
	const int flags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;
	void *lib = NULL;

	if (library)
		lib = dlopen(library, flags);
	for (size_t i = 0;
	     !library && !lib && i < sizeof(names) / sizeof(*names); i++)
		lib = dlopen(names[i], flags);
	if (!lib)
		snprintf(why, why_len, "%s", dlerror());
	return lib;
}

/* Every call of the table; the name of one that is missing, or NULL. */
static const char *fill(struct cublas *c)
{
	void *p;

#define CUBLAS_LOAD(field, symbol, args) \
	p = dlsym(c->lib, symbol); \
	if (!p) \
		return symbol; \
	memcpy(&c->field, &p, sizeof(c->field));
	CUBLAS_CALLS(CUBLAS_LOAD)
	CUBLAS_LOAD(get_version, "cublasLtGetVersion", )
#undef CUBLAS_LOAD
	return NULL;
}

int cublas_open(struct cublas **out, const char *library, char *why,
		size_t why_len)
{
	struct cublas *c = calloc(1, sizeof(*c));
	const char *missing;
	int ret;

	if (!c) {
		snprintf(why, why_len, "out of memory");
		return -ENOMEM;
	}
	c->lib = load(library, why, why_len);
	if (!c->lib) {
		free(c);
		return -ENOENT;
	}
	missing = fill(c);
	if (missing) {
		snprintf(why, why_len, "%s is missing", missing);
		cublas_close(c);
		return -ENOSYS;
	}
	ret = c->create(&c->handle);
	if (ret) {
		c->handle = NULL;
		snprintf(why, why_len, "cublasLtCreate: status %d", ret);
		cublas_close(c);
		return cublas_errno(ret);
	}
	c->version = c->get_version();
	snprintf(why, why_len, "cuBLASLt %zu", c->version);
	*out = c;
	return 0;
}

void cublas_close(struct cublas *c)
{
	if (!c)
		return;
	if (c->handle)
		(void)c->destroy(c->handle); /* or it is lost */
	(void)dlclose(c->lib); /* a count only: RTLD_NODELETE */
	free(c);
}

/* ---- plans ------------------------------------------------------------------- */

static int data_type(enum kern_type type)
{
	return type == KERN_F32	   ? CUBLAS_R_32F
	       : type == KERN_F16  ? CUBLAS_R_16F
	       : type == KERN_BF16 ? CUBLAS_R_16BF
				   : -1;
}

static int describe(struct cublas_plan *p)
{
	const struct cublas_shape *s = &p->s;
	const int type = data_type(s->type), op = CUBLAS_TRANSPOSE;
	struct cublas *c = p->c;
	int r = c->desc_new(&p->desc, CUBLAS_COMPUTE_F32, CUBLAS_R_32F);

	if (!r)
		r = c->desc_set(p->desc, CUBLAS_DESC_TRANSA, &op, sizeof(op));
	if (!r)
		r = c->layout_new(&p->a, type, s->n_in, s->n_out, s->n_in);
	if (!r)
		r = c->layout_new(&p->b, type, s->n_in, s->n_rows, s->n_in);
	if (!r)
		r = c->layout_new(&p->d, CUBLAS_R_32F, s->n_out, s->n_rows,
				  s->n_out);
	return r;
}

/* Rows of x and y, and the strides between them. */
static int set_rows(struct cublas_plan *p, uint64_t n, int64_t x_stride,
		    int64_t y_stride)
{
	struct cublas *c = p->c;
	int r = c->layout_set(p->b, CUBLAS_LAYOUT_COLS, &n, sizeof(n));

	if (!r)
		r = c->layout_set(p->d, CUBLAS_LAYOUT_COLS, &n, sizeof(n));
	if (!r)
		r = c->layout_set(p->b, CUBLAS_LAYOUT_LD, &x_stride,
				  sizeof(x_stride));
	if (!r)
		r = c->layout_set(p->d, CUBLAS_LAYOUT_LD, &y_stride,
				  sizeof(y_stride));
	return r;
}

static int set_preference(const struct cublas_plan *p, void *pref)
{
	struct cublas *c = p->c;
	const uint64_t n = p->s.workspace_bytes;
	const uint32_t no_scheme = 0, align = 16;
	int r = c->pref_set(pref, CUBLAS_PREF_WORKSPACE, &n, sizeof(n));

	if (!r)
		r = c->pref_set(pref, CUBLAS_PREF_REDUCTION, &no_scheme,
				sizeof(no_scheme));
	for (int i = 0; i < 4 && !r; i++)
		r = c->pref_set(pref, CUBLAS_PREF_ALIGN_A + i, &align,
				sizeof(align));
	return r;
}

/* Is k in one piece, and does it take any number of rows in this workspace? */
static int is_fit(struct cublas_plan *p, const struct cublas_algo *algo)
{
	const uint32_t rows[] = { 1, p->s.n_rows, p->s.max_rows };
	struct cublas *c = p->c;
	struct cublas_result res;
	uint32_t scheme = 0;
	int32_t split = 0;
	size_t n;

	if (c->config(algo, CUBLAS_CONFIG_SPLIT_K, &split, sizeof(split), &n) ||
	    c->config(algo, CUBLAS_CONFIG_REDUCTION, &scheme, sizeof(scheme),
		      &n) ||
	    split < 0 || split > 1 || scheme)
		return 0;
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		if (set_rows(p, rows[i], p->s.n_in, p->s.n_out) ||
		    c->check(c->handle, p->desc, p->a, p->b, p->d, p->d, algo,
			     &res) ||
		    res.workspace_bytes > p->s.workspace_bytes)
			return 0;
	return 1;
}

/* FNV-1a over words. */
static uint64_t mix(uint64_t h, const void *data, size_t n)
{
	const unsigned char *p = data;

	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * 0x100000001b3ull;
	return h;
}

static void identify(struct cublas_plan *p)
{
	const uint64_t shape[] = { (uint64_t)p->s.type, p->s.n_out, p->s.n_in,
				   p->c->version };
	uint64_t h = mix(0xcbf29ce484222325ull, shape, sizeof(shape));

	h = mix(h, &p->algo, sizeof(p->algo));
	p->id = h ? h : 1;
}

/* The first of those offered that fits. A status, CUBLAS_NOT_SUPPORTED if none. */
static int choose(struct cublas_plan *p)
{
	struct cublas_result offers[N_OFFERS];
	struct cublas *c = p->c;
	void *pref;
	int n = 0, r = c->pref_new(&pref);

	if (r)
		return r;
	r = set_preference(p, pref);
	if (!r)
		r = c->heuristic(c->handle, p->desc, p->a, p->b, p->d, p->d,
				 pref, N_OFFERS, offers, &n);
	(void)c->pref_free(pref);
	if (r)
		return r;
	for (int i = 0; i < n; i++)
		if (!offers[i].state && is_fit(p, &offers[i].algo)) {
			p->algo = offers[i].algo;
			identify(p);
			return 0;
		}
	return CUBLAS_NOT_SUPPORTED;
}

int cublas_plan_new(struct cublas_plan **out, struct cublas *c,
		    const struct cublas_shape *s)
{
	struct cublas_plan *p;
	int ret;

	if (data_type(s->type) < 0 || !s->n_out || !s->n_in || s->n_out % 8 ||
	    s->n_in % 8 || !s->n_rows || s->max_rows < s->n_rows)
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->c = c;
	p->s = *s;
	ret = describe(p);
	if (!ret)
		ret = choose(p);
	if (ret) {
		cublas_plan_free(p);
		return cublas_errno(ret);
	}
	*out = p;
	return 0;
}

void cublas_plan_free(struct cublas_plan *p)
{
	if (!p)
		return;
	if (p->desc)
		(void)p->c->desc_free(p->desc); /* or it is lost */
	if (p->a)
		(void)p->c->layout_free(p->a);
	if (p->b)
		(void)p->c->layout_free(p->b);
	if (p->d)
		(void)p->c->layout_free(p->d);
	free(p);
}

uint64_t cublas_plan_id(const struct cublas_plan *p)
{
	return p->id;
}

int cublas_gemm(struct cublas_plan *p, const struct gpu_gemm *a,
		cuda_ptr workspace, cuda_stream st)
{
	const float alpha = 1, beta = a->flags & GPU_GEMM_ADD ? 1.0f : 0.0f;
	const struct cublas_shape *s = &p->s;
	struct cublas *c = p->c;
	int r;

	if (a->n_out != s->n_out || a->n_in != s->n_in ||
	    a->n_rows > s->max_rows || a->x_stride < a->n_in ||
	    a->y_stride < a->n_out || a->x_stride % 8 || a->y_stride % 4 ||
	    (a->x | a->w | a->y) % 16 || a->flags & ~GPU_GEMM_ADD)
		return -EINVAL;
	if (!a->n_rows)
		return 0;
	r = set_rows(p, a->n_rows, (int64_t)a->x_stride, (int64_t)a->y_stride);
	if (!r)
		r = c->matmul(c->handle, p->desc, &alpha, (const void *)a->w,
			      p->a, (const void *)a->x, p->b, &beta,
			      (const void *)a->y, p->d, (void *)a->y, p->d,
			      &p->algo, (void *)workspace, s->workspace_bytes,
			      st);
	return cublas_errno(r);
}
