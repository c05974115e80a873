/*
 * llama.c - one step of a batch through the layers; see llama.h
 *
 *   embed -> per layer: norm -> q,k,v -> attn (the caller's) -> +o
 *                       norm -> gate,up,swiglu -> +down
 *         -> norm and output of the logit rows
 *
 * A phase is split into parts over output panels and rows by its shape
 * and the number of threads, and joined; small ones run on the calling thread.
 * Each element is computed by one part, in an order that is fixed by kern.h, so
 * the split never shows in the result.
 */
#include "kvd/model/llama.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/model/tokenizer.h"
#include "kvd/model/weights.h"

/* Below these a join costs more than it saves (a few us of one core). */
#define PART_MACS	 65536u
#define PART_ELEMS	 16384u
#define PARTS_PER_THREAD 4u /* for balance */
#define PART_ROWS	 16u /* rows are split only where panels are few */
#define ROWS_MAX	 (1u << 20)

struct llama {
	struct llama_shape sh;
	struct weights w;
	struct tokenizer *tok;
};

/* f32 unless said; x and act are NULL when all is f32. */
struct llama_scratch {
	const struct llama *m;
	uint32_t max_rows, max_logits;
	float *res; /* [max_rows][d_model] residual */
	float *h; /* [max_rows][d_model] normed */
	float *q, *k, *v, *o;
	float *gate, *up; /* [max_rows][n_ff] */
	uint32_t *row; /* [max_rows] of the batch, where some have ended */
	uint32_t *keep; /* [max_rows] */
	uint16_t *x; /* bf16 [max_rows][max(d_model, n_heads * head_dim)] */
	uint16_t *act; /* bf16 [max_rows][n_ff] */
};

/* ---- open --------------------------------------------------------------- */

static int open_gguf(struct llama **out, const struct gguf *g,
		     enum kern_type math, const struct llama_sink *sink,
		     char *err, size_t err_len)
{
	struct llama *m;
	int ret;

	if (err_len)
		err[0] = 0;
	if (math != KERN_F32 && math != KERN_BF16)
		return -EINVAL;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	ret = tokenizer_new(&m->tok, g, err, err_len);
	if (!ret)
		ret = weights_shape(&m->sh, g, tokenizer_n_vocab(m->tok), err,
				    err_len);
	m->sh.math = math;
	if (!ret)
		ret = weights_init(&m->w, &m->sh, g, sink, err, err_len);
	if (ret == -ENOMEM && err_len && !err[0])
		(void)snprintf(err, err_len, "out of memory");
	if (ret)
		llama_close(m);
	else
		*out = m;
	return ret;
}

int llama_open_gguf(struct llama **out, const struct gguf *g,
		    enum kern_type math, char *err, size_t err_len)
{
	return open_gguf(out, g, math, NULL, err, err_len);
}

int llama_open_to(struct llama **out, const char *path, enum kern_type math,
		  const struct llama_sink *sink, char *err, size_t err_len)
{
	struct gguf *g;
	int ret = gguf_open(&g, path, err, err_len);

	if (ret)
		return ret;
	ret = open_gguf(out, g, math, sink, err, err_len);
	gguf_close(g);
	return ret;
}

int llama_open(struct llama **out, const char *path, enum kern_type math,
	       char *err, size_t err_len)
{
	return llama_open_to(out, path, math, NULL, err, err_len);
}

void llama_close(struct llama *m)
{
	if (!m)
		return;
	weights_fini(&m->w, m->sh.n_layers);
	tokenizer_free(m->tok);
	free(m);
}

const struct llama_shape *llama_shape(const struct llama *m)
{
	return &m->sh;
}

const struct tokenizer *llama_tokenizer(const struct llama *m)
{
	return m->tok;
}

void llama_id(const struct llama *m, uint64_t id[2])
{
	id[0] = m->w.id[0];
	id[1] = m->w.id[1];
}

size_t llama_weight_bytes(const struct llama *m)
{
	return m->w.bytes;
}

/* ---- scratch ------------------------------------------------------------ */

static void *lines(size_t n, size_t elem_bytes)
{
	return aligned_alloc(64, (n * elem_bytes + 63) / 64 * 64);
}

int llama_scratch_new(struct llama_scratch **out, const struct llama *m,
		      uint32_t max_rows, uint32_t max_logits)
{
	const struct llama_shape *sh = &m->sh;
	const size_t q = (size_t)sh->n_heads * sh->head_dim;
	const size_t kv = (size_t)sh->n_kv_heads * sh->head_dim;
	const size_t n = max_rows, d = sh->d_model;
	struct llama_scratch *s;

	if (!max_rows || max_rows > ROWS_MAX || max_logits > max_rows)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->m = m;
	s->max_rows = max_rows;
	s->max_logits = max_logits;
	s->res = lines(n * d, sizeof(float));
	s->h = lines(n * d, sizeof(float));
	s->q = lines(n * q, sizeof(float));
	s->k = lines(n * kv, sizeof(float));
	s->v = lines(n * kv, sizeof(float));
	s->o = lines(n * q, sizeof(float));
	s->gate = lines(n * sh->n_ff, sizeof(float));
	s->up = lines(n * sh->n_ff, sizeof(float));
	s->row = calloc(n, sizeof(*s->row));
	s->keep = calloc(n, sizeof(*s->keep));
	if (sh->math == KERN_BF16) {
		s->x = lines(n * (d > q ? d : q), sizeof(*s->x));
		s->act = lines(n * sh->n_ff, sizeof(*s->act));
	}
	if (!s->res || !s->h || !s->q || !s->k || !s->v || !s->o || !s->gate ||
	    !s->up || !s->row || !s->keep ||
	    (sh->math == KERN_BF16 && (!s->x || !s->act))) {
		llama_scratch_free(s);
		return -ENOMEM;
	}
	*out = s;
	return 0;
}

void llama_scratch_free(struct llama_scratch *s)
{
	if (!s)
		return;
	free(s->res);
	free(s->h);
	free(s->q);
	free(s->k);
	free(s->v);
	free(s->o);
	free(s->gate);
	free(s->up);
	free(s->row);
	free(s->keep);
	free(s->x);
	free(s->act);
	free(s);
}

/* ---- splitting ---------------------------------------------------------- */

/* Bound i of n things in n_parts nearly equal runs. */
static uint32_t cut(uint32_t n, uint32_t i, uint32_t n_parts)
{
	return (uint32_t)((uint64_t)n * i / n_parts);
}

/* How many parts work deserves, when one of them should do part of it. */
static uint32_t parts_for(struct pool *pool, uint64_t work, uint32_t part)
{
	uint64_t n = work / part;
	uint64_t most;

	if (!pool || pool_n_threads(pool) < 2 || n < 2)
		return 1;
	most = (uint64_t)pool_n_threads(pool) * PARTS_PER_THREAD;
	return (uint32_t)(n < most ? n : most);
}

static void run_parts(struct pool *pool, void (*fn)(void *arg, uint32_t i),
		      void *arg, uint32_t n_parts)
{
	if (n_parts > 1)
		pool_run(pool, fn, arg, n_parts);
	else
		fn(arg, 0);
}

/* The part of a grid of rows x output panels. */
struct grid {
	uint32_t n_rows, n_panels;
	uint32_t row_parts, panel_parts;
};
struct share {
	uint32_t row, n_rows;
	uint32_t panel_from, panel_to;
};

static struct grid grid_for(struct pool *pool, uint32_t n_rows,
			    uint32_t n_panels, uint32_t n_in)
{
	const uint64_t macs = (uint64_t)n_rows * n_panels * KERN_LANES * n_in;
	const uint32_t want = parts_for(pool, macs, PART_MACS);
	struct grid g = {
		.n_rows = n_rows,
		.n_panels = n_panels,
		.row_parts = 1,
		.panel_parts = want < n_panels ? want : n_panels,
	};

	if (g.panel_parts < want && n_rows >= 2 * PART_ROWS) {
		g.row_parts = want / g.panel_parts;
		if (g.row_parts > n_rows / PART_ROWS)
			g.row_parts = n_rows / PART_ROWS;
	}
	return g;
}

static struct share grid_share(const struct grid *g, uint32_t i)
{
	const uint32_t p = i % g->panel_parts, r = i / g->panel_parts;
	const uint32_t row = cut(g->n_rows, r, g->row_parts);

	return (struct share){
		.row = row,
		.n_rows = cut(g->n_rows, r + 1, g->row_parts) - row,
		.panel_from = cut(g->n_panels, p, g->panel_parts),
		.panel_to = cut(g->n_panels, p + 1, g->panel_parts),
	};
}

static uint32_t panels_of(const struct kern_weight *w)
{
	return (kern_weight_n_out(w) + KERN_LANES - 1) / KERN_LANES;
}

/* ---- linear phases ------------------------------------------------------ */

/* y = x W^T (or +=) of matrices that share x, side by side. */
struct linear_phase {
	struct kern_linear a[3];
	uint32_t n;
	size_t elem_bytes; /* of x */
	uint16_t *act; /* ffn_part(): bf16 copy of the result, or NULL */
	struct grid grid;
};

/* Panels [from, to) of a, which may lie outside it, for the rows of sh. */
static void linear_run(const struct kern_linear *a, size_t elem_bytes,
		       const struct share *sh, uint32_t from, uint32_t to)
{
	const uint32_t n_out = kern_weight_n_out(a->w);
	const uint32_t n_panels = panels_of(a->w);
	struct kern_linear part = *a;
	int ret;

	if (to > n_panels)
		to = n_panels;
	if (from >= to)
		return;
	part.x = (const uint8_t *)a->x + sh->row * a->x_stride * elem_bytes;
	part.y = a->y + sh->row * a->y_stride;
	part.n_rows = sh->n_rows;
	part.out_from = from * KERN_LANES;
	part.out_to = to == n_panels ? n_out : to * KERN_LANES;
	ret = kern_linear(&part);
	assert(!ret); /* shapes were checked at load */
}

static void linear_part(void *arg, uint32_t i)
{
	const struct linear_phase *p = arg;
	const struct share sh = grid_share(&p->grid, i);
	uint32_t base = 0; /* first panel of a[j] in the row of panels */

	for (uint32_t j = 0; j < p->n; j++) {
		const uint32_t n = panels_of(p->a[j].w);

		if (sh.panel_to > base && sh.panel_from < base + n)
			linear_run(&p->a[j], p->elem_bytes, &sh,
				   sh.panel_from > base ? sh.panel_from - base
							: 0,
				   sh.panel_to - base);
		base += n;
	}
}

static void linear(struct llama_scratch *s, struct pool *pool,
		   struct linear_phase *p)
{
	uint32_t n_panels = 0;

	for (uint32_t j = 0; j < p->n; j++)
		n_panels += panels_of(p->a[j].w);
	p->elem_bytes = kern_type_bytes(s->m->sh.math);
	p->grid = grid_for(pool, p->a[0].n_rows, n_panels,
			   kern_weight_n_in(p->a[0].w));
	run_parts(pool, linear_part, p,
		  p->grid.row_parts * p->grid.panel_parts);
}

static struct kern_linear linear_of(const struct kern_weight *w, const void *x,
				    float *y, uint32_t n_rows)
{
	return (struct kern_linear){
		.w = w,
		.x = x,
		.x_stride = kern_weight_n_in(w),
		.y = y,
		.y_stride = kern_weight_n_out(w),
		.n_rows = n_rows,
	};
}

/* res += x W^T */
static void linear_add(struct llama_scratch *s, struct pool *pool,
		       const struct kern_weight *w, const void *x,
		       uint32_t n_rows)
{
	struct linear_phase p = {
		.a = { linear_of(w, x, s->res, n_rows) },
		.n = 1,
	};

	p.a[0].flags = KERN_LINEAR_ADD;
	linear(s, pool, &p);
}

/* gate and up of the same panels, then gate = silu(gate) * up of these. */
static void ffn_part(void *arg, uint32_t i)
{
	const struct linear_phase *p = arg;
	const struct share sh = grid_share(&p->grid, i);
	const struct kern_linear *gate = &p->a[0], *up = &p->a[1];
	const uint32_t n_ff = kern_weight_n_out(gate->w);
	const uint32_t from = sh.panel_from * KERN_LANES;
	uint32_t n = (sh.panel_to - sh.panel_from) * KERN_LANES;

	if (n > n_ff - from)
		n = n_ff - from;
	linear_run(gate, p->elem_bytes, &sh, sh.panel_from, sh.panel_to);
	linear_run(up, p->elem_bytes, &sh, sh.panel_from, sh.panel_to);
	for (uint32_t r = sh.row; r < sh.row + sh.n_rows; r++) {
		const size_t at = (size_t)r * n_ff + from;

		kern_swiglu(gate->y + at, up->y + at, gate->y + at, n);
		if (p->act)
			kern_from_f32(KERN_BF16, gate->y + at, p->act + at, n);
	}
}

/* Returns silu(x Wg^T) * (x Wu^T), [n_rows][n_ff] of the math type. */
static const void *ffn(struct llama_scratch *s, struct pool *pool,
		       const struct weights_layer *y, const void *x,
		       uint32_t n_rows)
{
	struct linear_phase p = {
		.a = { linear_of(y->gate, x, s->gate, n_rows),
		       linear_of(y->up, x, s->up, n_rows) },
		.n = 2,
		.elem_bytes = kern_type_bytes(s->m->sh.math),
		.act = s->act,
		/* both matrices: twice the work of a panel */
		.grid = grid_for(pool, n_rows, panels_of(y->gate),
				 2 * s->m->sh.d_model),
	};

	run_parts(pool, ffn_part, &p, p.grid.row_parts * p.grid.panel_parts);
	if (s->act)
		return s->act;
	return s->gate;
}

/* ---- phases by rows ----------------------------------------------------- */

struct rows_phase {
	struct llama_scratch *s;
	const struct llama_batch *b;
	const float *src; /* [][n] */
	const float *norm; /* [n], or NULL: only convert */
	const uint32_t *index; /* rows of src, or NULL: 0, 1, ... */
	uint32_t n, n_rows, n_parts;
};

static void run_rows(struct pool *pool, struct rows_phase *p,
		     void (*fn)(void *arg, uint32_t i))
{
	p->n_parts = parts_for(pool, (uint64_t)p->n_rows * p->n, PART_ELEMS);
	if (p->n_parts > p->n_rows)
		p->n_parts = p->n_rows;
	run_parts(pool, fn, p, p->n_parts);
}

static void embed_part(void *arg, uint32_t i)
{
	const struct rows_phase *p = arg;
	const uint32_t to = cut(p->n_rows, i + 1, p->n_parts);

	for (uint32_t r = cut(p->n_rows, i, p->n_parts); r < to; r++)
		weights_embed(&p->s->m->w, p->b->tokens[r], p->n,
			      p->s->res + (size_t)r * p->n);
}

static void norm_part(void *arg, uint32_t i)
{
	const struct rows_phase *p = arg;
	const uint32_t to = cut(p->n_rows, i + 1, p->n_parts);
	struct llama_scratch *s = p->s;

	for (uint32_t r = cut(p->n_rows, i, p->n_parts); r < to; r++) {
		const size_t at = (size_t)r * p->n;
		const float *y =
			p->src + (p->index ? p->index[r] : r) * (size_t)p->n;

		if (p->norm) {
			kern_rmsnorm(y, p->norm, s->h + at, 1, p->n,
				     s->m->sh.norm_eps);
			y = s->h + at;
		}
		if (s->x)
			kern_from_f32(KERN_BF16, y, s->x + at, p->n);
	}
}

/* Returns the rows of the residual, normed, in the math type. */
static const void *normed(struct llama_scratch *s, struct pool *pool,
			  const float *norm, const uint32_t *index,
			  uint32_t n_rows)
{
	struct rows_phase p = {
		.s = s,
		.src = s->res,
		.norm = norm,
		.index = index,
		.n = s->m->sh.d_model,
		.n_rows = n_rows,
	};

	run_rows(pool, &p, norm_part);
	if (s->x)
		return s->x;
	return s->h;
}

/* Returns the attention output in the math type. */
static const void *attended(struct llama_scratch *s, struct pool *pool,
			    uint32_t n_rows)
{
	struct rows_phase p = {
		.s = s,
		.src = s->o,
		.n = s->m->sh.n_heads * s->m->sh.head_dim,
		.n_rows = n_rows,
	};

	if (!s->x)
		return s->o;
	run_rows(pool, &p, norm_part);
	return s->x;
}

/* ---- the step ----------------------------------------------------------- */

static int check_batch(const struct llama *m, const struct llama_scratch *s,
		       const struct llama_batch *b)
{
	if (!m->w.output || s->m != m || b->n_rows > s->max_rows ||
	    b->n_logits > s->max_logits || !b->attn)
		return -EINVAL;
	for (uint32_t i = 0; i < b->n_rows; i++)
		if (b->tokens[i] >= m->sh.n_vocab)
			return -EINVAL;
	for (uint32_t i = 0; i < b->n_logits; i++)
		if (b->logit_rows[i] >= b->n_rows ||
		    (i && b->logit_rows[i] <= b->logit_rows[i - 1]))
			return -EINVAL;
	return 0;
}

/* Rows that end before layer i leave the residual. */
static void drop_rows(struct llama_scratch *s, struct llama_batch *b,
		      uint32_t i)
{
	const size_t d = s->m->sh.d_model;
	const uint32_t n = b->narrow(b->ctx, i, s->keep);

	assert(n <= b->n_rows);
	for (uint32_t r = 0; r < n && n < b->n_rows; r++) {
		if (s->keep[r] == r)
			continue;
		memcpy(s->res + r * d, s->res + s->keep[r] * d,
		       d * sizeof(*s->res));
		s->row[r] = s->row[s->keep[r]];
	}
	b->n_rows = n;
}

/* Where the rows whose logits are wanted are now. */
static void find_logit_rows(struct llama_scratch *s, struct llama_batch *b)
{
	uint32_t r = 0;

	for (uint32_t i = 0; i < b->n_logits; i++) {
		while (s->row[r] != b->logit_rows[i])
			r++;
		s->keep[i] = r;
	}
	b->logit_rows = s->keep;
}

/* Only rows whose logits are wanted go on: they come first. */
static void keep_logit_rows(struct llama_scratch *s, struct llama_batch *b)
{
	const size_t d = s->m->sh.d_model;
	const size_t q = (size_t)s->m->sh.n_heads * s->m->sh.head_dim;

	if (b->narrow)
		find_logit_rows(s, b);
	for (size_t i = 0; i < b->n_logits; i++) {
		const size_t r = b->logit_rows[i];

		if (r == i)
			continue;
		memcpy(s->res + i * d, s->res + r * d, d * sizeof(*s->res));
		memcpy(s->o + i * q, s->o + r * q, q * sizeof(*s->o));
	}
	b->n_rows = b->n_logits;
}

static int layer(struct llama_scratch *s, struct pool *pool,
		 struct llama_batch *b, uint32_t i)
{
	const struct weights_layer *y = &s->m->w.layers[i];
	const void *x = normed(s, pool, y->attn_norm, NULL, b->n_rows);
	struct linear_phase qkv = { .n = 0 };
	int ret;

	if (!b->probe || i != 1)
		qkv.a[qkv.n++] = linear_of(y->q, x, s->q, b->n_rows);
	if (!b->probe || i) {
		qkv.a[qkv.n++] = linear_of(y->k, x, s->k, b->n_rows);
		qkv.a[qkv.n++] = linear_of(y->v, x, s->v, b->n_rows);
	}
	linear(s, pool, &qkv);
	ret = b->attn(b->ctx, i, s->q, s->k, s->v, s->o);
	if (ret < 0)
		return ret;
	if (i + 1 == s->m->sh.n_layers)
		keep_logit_rows(s, b);
	if (!b->n_rows)
		return 0;
	x = attended(s, pool, b->n_rows);
	linear_add(s, pool, y->o, x, b->n_rows);
	x = normed(s, pool, y->ffn_norm, NULL, b->n_rows);
	x = ffn(s, pool, y, x, b->n_rows);
	linear_add(s, pool, y->down, x, b->n_rows);
	return 0;
}

int llama_step(const struct llama *m, struct llama_scratch *s,
	       struct pool *pool, const struct llama_batch *all)
{
	struct llama_batch live = *all, *b = &live;
	struct rows_phase embed = {
		.s = s,
		.b = b,
		.n = m->sh.d_model,
		.n_rows = b->n_rows,
	};
	struct linear_phase output = { .n = 1 };
	const void *x;
	int ret = check_batch(m, s, b);

	if (ret || !b->n_rows)
		return ret;
	run_rows(pool, &embed, embed_part);
	for (uint32_t i = 0; i < b->n_rows && b->narrow; i++)
		s->row[i] = i;
	for (uint32_t i = 0; i < m->sh.n_layers; i++) {
		if (b->narrow)
			drop_rows(s, b, i);
		if (!b->n_rows)
			return 0;
		ret = layer(s, pool, b, i);
		if (ret)
			return ret;
	}
	if (!b->n_logits)
		return 0;
	x = normed(s, pool, m->w.norm, NULL, b->n_logits);
	output.a[0] = linear_of(m->w.output, x, b->logits, b->n_logits);
	linear(s, pool, &output);
	return 0;
}
