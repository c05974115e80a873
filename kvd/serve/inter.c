/*
 * inter.c - keep queries, then see where they look; see inter.h
 *
 * A part is attended as a sequence of its own: a view of the entries that hold it, with
 * their positions, so that patches and rotations are those of the first pass.
 */
#include "kvd/serve/inter.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t row_bytes(const struct attn_shape *s)
{
	return (size_t)s->n_heads * s->head_dim * kern_type_bytes(s->type);
}

size_t inter_bytes(const struct attn_shape *shape, uint32_t n_layers,
		   uint32_t n_rows)
{
	return row_bytes(shape) * n_layers * n_rows;
}

int inter_new(struct inter **out, const struct attn_shape *shape,
	      uint32_t n_layers, uint32_t n_rows, uint32_t n_parts)
{
	struct inter *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->shape = shape;
	x->n_layers = n_layers;
	x->n_rows = n_rows;
	x->n_room = n_parts;
	x->n_bytes = inter_bytes(shape, n_layers, n_rows);
	x->q = malloc(x->n_bytes + 1);
	x->parts = calloc(n_parts + 1, sizeof(*x->parts));
	if (!x->q || !x->parts) {
		inter_free(x);
		return -ENOMEM;
	}
	*out = x;
	return 0;
}

void inter_free(struct inter *x)
{
	if (!x)
		return;
	for (uint32_t i = 0; i < x->n_parts; i++) {
		free(x->parts[i].inter);
		free(x->parts[i].score);
	}
	free(x->parts);
	free(x->q);
	free(x);
}

int inter_part(struct inter *x, uint32_t first, uint32_t n, int is_chunk,
	       uint32_t *row)
{
	struct inter_part *p = &x->parts[x->n_parts];

	if (!n)
		return 0;
	assert(x->n_parts < x->n_room);
	*p = (struct inter_part){ .first = first,
				  .n = n,
				  .is_chunk = is_chunk };
	if (row) {
		assert(*row + n <= x->n_rows);
		p->measured = 1;
		p->row = *row;
		p->inter = calloc(x->n_parts + 1, sizeof(*p->inter));
		p->score = calloc(n, sizeof(*p->score));
		if (!p->inter || !p->score) {
			free(p->inter);
			free(p->score);
			return -ENOMEM;
		}
		*row += n;
	}
	x->n_parts++;
	return 0;
}

void inter_keep(struct inter *x, uint32_t layer, uint32_t row, uint32_t n,
		const float *q)
{
	const struct attn_shape *s = x->shape;
	const size_t bytes = row_bytes(s);

	assert(layer < x->n_layers && row + n <= x->n_rows);
	kern_from_f32(s->type, q,
		      x->q + ((size_t)layer * x->n_rows + row) * bytes,
		      (size_t)n * s->n_heads * s->head_dim);
}

char *inter_at(const struct inter *x, uint32_t row, size_t *layer_bytes)
{
	*layer_bytes = (size_t)x->n_rows * row_bytes(x->shape);
	return x->q + row * row_bytes(x->shape);
}

struct seq inter_view(const struct seq *q, uint32_t from, uint32_t n)
{
	struct seq view = *q;
	uint32_t first = 0, end;

	while (q->entries[first].pos + q->entries[first].n <= from)
		first++;
	end = first;
	while (end < q->n_entries && q->entries[end].pos < from + n)
		end++;
	view.entries = q->entries + first;
	view.n_entries = end - first;
	return view;
}

/* Shares of each row's attention: lse [n_parts][n_rows][n_heads] to the sums of p. */
static void add_shares(struct inter *x, uint32_t i_part, const float *lse)
{
	struct inter_part *p = &x->parts[i_part];
	const uint32_t n_heads = x->shape->n_heads;
	const size_t stride = (size_t)p->n * n_heads;
	const double unit = 1.0 / x->n_layers / n_heads;

	for (size_t at = 0; at < stride; at++) {
		float top = -INFINITY, sum = 0, w[i_part + 1];

		for (uint32_t j = 0; j <= i_part; j++)
			top = fmaxf(top, lse[j * stride + at]);
		for (uint32_t j = 0; j <= i_part; j++)
			sum += w[j] = expf(lse[j * stride + at] - top);
		for (uint32_t j = 0; j < i_part; j++) {
			const double share = (double)(w[j] / sum) * unit;

			p->inter[j] += share;
			if (x->parts[j].is_chunk)
				p->score[at / n_heads] += (float)share;
		}
		p->intra += (double)(w[i_part] / sum) * unit;
	}
}

static int measure(struct inter *x, const struct attn_place *at,
		   const struct seq *q, uint32_t layer, uint32_t i_part)
{
	const struct inter_part *p = &x->parts[i_part];
	const uint32_t n_heads = x->shape->n_heads;
	const uint32_t n = i_part + 1;
	struct attn_item *items = calloc(n, sizeof(*items));
	struct seq *views = calloc(n, sizeof(*views));
	float *lse = malloc((size_t)n * p->n * n_heads * sizeof(*lse));
	const char *rows = x->q + ((size_t)layer * x->n_rows + p->row) *
					  row_bytes(x->shape);
	const size_t n_bytes = p->n * row_bytes(x->shape);
	int ret = items && views && lse ? 0 : -ENOMEM;

	if (!ret)
		ret = attn_place_rows(at, &rows, n_bytes);
	for (uint32_t j = 0; j < n && !ret; j++) {
		views[j] = inter_view(q, x->parts[j].first, x->parts[j].n);
		items[j] = (struct attn_item){
			.shape = x->shape,
			.seq = &views[j],
			.pos = p->first,
			.n_rows = p->n,
			.in = x->shape->type,
			.q = rows,
			.on_device = !!at->gpu,
			.lse = lse + (size_t)j * p->n * n_heads,
		};
	}
	if (!ret)
		ret = attn_place_layer(at, items, n, layer);
	if (!ret)
		add_shares(x, i_part, lse);
	free(items);
	free(views);
	free(lse);
	return ret;
}

int inter_layer(struct inter *x, const struct attn_place *at,
		const struct seq *q, uint32_t layer)
{
	int ret = 0;

	for (uint32_t i = 0; i < x->n_parts && !ret; i++)
		if (x->parts[i].measured)
			ret = measure(x, at, q, layer, i);
	return ret;
}
