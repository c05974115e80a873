/*
 * gpu_cursor.cuh - which tokens the blocks of gpu_flash.cuh read: the tiles of a list
 * or of a part that somebody sees, and the rows and heads of a block
 */
#define FLASH_TILE GPU_FLASH_TILE /* a word of a skip mask, two of GPU_TILE */
#define LOG2E	   1.4426950408889634f

/* Query heads of a block: blockIdx.y is the kv head, z which of them. */
struct gpu_heads {
	uint32_t first, n;
};

INLINE struct gpu_heads heads_of(const struct gpu_attn *a, uint32_t n_rows)
{
	const uint32_t group = a->n_heads / a->n_kv_heads;
	const uint32_t most = group < n_rows ? group : n_rows;
	const uint32_t from = blockIdx.z * most, left = group - from;
	const struct gpu_heads hs = { blockIdx.y * group + from,
				      left < most ? left : most };

	return hs;
}

/* Where o, m, l of a row of the block are, in heads; -1: it has no such row. */
INLINE int32_t place_of(const struct gpu_attn *a, const struct gpu_tile *tile,
			const struct gpu_heads *hs, uint32_t row)
{
	if (row / hs->n >= tile->n_rows)
		return -1;
	return (int32_t)((tile->row + row / hs->n) * a->n_heads + hs->first +
			 row % hs->n);
}

/* Positions that all rows, and that any row, of a block see up to. */
struct flash_range {
	int64_t low, high;
};

INLINE struct flash_range range_of(const struct gpu_attn *a,
				   const struct gpu_tile *tile)
{
	const struct gpu_row *rows =
		(const struct gpu_row *)a->rows + tile->row;
	struct flash_range x = { INT64_MAX, INT64_MIN };

	for (uint32_t i = 0; i < tile->n_rows; i++) {
		const int64_t pos = rows[i].pos;

		x.low = pos < x.low ? pos : x.low;
		x.high = pos > x.high ? pos : x.high;
	}
	return x;
}

/* A row of a block, in shared memory. */
struct flash_row {
	int64_t pos; /* of rows it does not have: they see nothing */
	float m, l; /* of all parts before this one */
	int32_t at; /* place_of() */
};

INLINE void rows_begin(const struct gpu_attn *a, const struct gpu_tile *tile,
		       const struct gpu_heads *hs, uint32_t n_rows,
		       struct flash_row *rows)
{
	for (uint32_t i = threadIdx.x; i < n_rows; i += GPU_THREADS) {
		const int32_t at = place_of(a, tile, hs, i);
		const struct gpu_row *from =
			(const struct gpu_row *)a->rows + tile->row + i / hs->n;
		const int old = a->flags & GPU_ATTN_ADD && at >= 0;

		rows[i].at = at;
		rows[i].pos = at >= 0 ? from->pos : INT64_MIN / 2;
		rows[i].m = old ? ((const float *)a->m)[at] : -INFINITY;
		rows[i].l = old ? ((const float *)a->l)[at] : 0.0f;
	}
}

INLINE void rows_end(const struct gpu_attn *a, uint32_t n_rows,
		     const struct flash_row *rows)
{
	for (uint32_t i = threadIdx.x; i < n_rows; i += GPU_THREADS)
		if (rows[i].at >= 0) {
			((float *)a->m)[rows[i].at] = rows[i].m;
			((float *)a->l)[rows[i].at] = rows[i].l;
		}
}

/*
 * A tile of which a row of the block sees something: mask. Two halves, as the second may be
 * the first of the span that it goes on in; half[0].s is NULL behind the last tile.
 */
struct flash_cursor {
	struct gpu_half half[2];
	uint64_t mask;
	uint32_t i; /* half[0]: which span of the list */
	uint32_t first; /* span that the grid of parts begins at */
	uint32_t at; /* token of the grid */
};

/* Tokens of the tile that a row at pos sees. */
INLINE uint64_t tile_seen(const struct flash_cursor *c, int64_t pos)
{
	return tile_mask(c->half[0].s, c->half[0].t, pos) |
	       (uint64_t)tile_mask(c->half[1].s, c->half[1].t, pos) << 32;
}

/* half[1] and mask of the tile at half[0]; is any of it seen? */
INLINE int tile_found(struct flash_cursor *c, int64_t pos)
{
	c->half[1] = half_at(c->half[0].s, c->half[0].t + GPU_TILE);
	c->mask = tile_seen(c, pos);
	return c->mask != 0;
}

/* The first tile of a list that is seen, at or behind token t of span i of its. */
INLINE struct flash_cursor cursor_from(const struct gpu_attn *a,
				       const struct gpu_tile *tile,
				       int64_t high, struct flash_cursor c,
				       uint32_t t)
{
	const struct gpu_span *const spans =
		(const struct gpu_span *)a->spans + tile->first_span;

	while (c.i < tile->n_spans) {
		const struct gpu_span *const s = &spans[c.i];

		if (t < s->n_tokens && span_seen(s, t, 1, high) > 0) {
			c.half[0].s = s;
			c.half[0].t = t;
			if (tile_found(&c, high))
				return c;
			t += FLASH_TILE;
			c.at += FLASH_TILE;
			continue;
		}
		c.i++;
		t = s->goes_on && t >= s->n_tokens ? t - s->n_tokens : 0;
		if (!s->goes_on) {
			c.first = c.i;
			c.at = 0;
		}
	}
	c.half[0].s = 0;
	return c;
}

INLINE struct flash_cursor cursor_first(const struct gpu_attn *a,
					const struct gpu_tile *tile,
					int64_t high)
{
	const struct flash_cursor c = { { { 0, 0 }, { 0, 0 } }, 0, 0, 0, 0 };

	return cursor_from(a, tile, high, c, 0);
}

/* The one behind c, which is none behind the last. */
INLINE struct flash_cursor cursor_next(const struct gpu_attn *a,
				       const struct gpu_tile *tile,
				       int64_t high,
				       const struct flash_cursor *c)
{
	struct flash_cursor next = *c;

	if (!c->half[0].s)
		return next;
	next.at += FLASH_TILE;
	return cursor_from(a, tile, high, next, c->half[0].t + FLASH_TILE);
}

/* Are both tiles of one part? */
INLINE int same_part(const struct flash_cursor *a, const struct flash_cursor *b)
{
	return b->half[0].s && a->first == b->first &&
	       a->at / GPU_SPLIT_TOKENS == b->at / GPU_SPLIT_TOKENS;
}

/* The first tile of the part c is in, at or behind c, that is seen. */
INLINE struct flash_cursor part_from(struct flash_cursor c, int64_t pos)
{
	for (; c.at < GPU_SPLIT_TOKENS; c.at += FLASH_TILE) {
		c.half[0] = half_at(c.half[0].s, c.half[0].t);
		if (c.half[0].t >= c.half[0].s->n_tokens)
			break;
		if (tile_found(&c, pos))
			return c;
		c.half[0].t += FLASH_TILE;
	}
	c.half[0].s = 0;
	return c;
}

INLINE struct flash_cursor part_first(const struct gpu_span *s, uint32_t t0,
				      int64_t pos)
{
	const struct flash_cursor c = { { { s, t0 }, { 0, 0 } }, 0, 0, 0, 0 };

	return part_from(c, pos);
}

/* The one behind c, which is none behind the last. */
INLINE struct flash_cursor part_next(const struct flash_cursor *c, int64_t pos)
{
	struct flash_cursor next = *c;

	if (!c->half[0].s)
		return next;
	next.half[0].t += FLASH_TILE;
	next.at += FLASH_TILE;
	return part_from(next, pos);
}

/* Bytes from a span's K or V to token t of kv head h. */
INLINE size_t half_offset(const struct gpu_span *s, uint32_t t, uint32_t h,
			  uint32_t row_bytes)
{
	return tile_offset(s, t, h) + (size_t)(t % s->page_tokens) * row_bytes;
}

/* Sum over the four lanes that have the columns of a row. */
INLINE float quad_sum(float x)
{
	x += __shfl_xor_sync(ALL_LANES, x, 1);
	x += __shfl_xor_sync(ALL_LANES, x, 2);
	return x;
}

/* Scores of 16 rows: row is g, row[8] is g + 8; low: all see up to it. */
INLINE void scale_and_mask(float (*s)[4], float scale,
			   const struct flash_cursor *c, int64_t low,
			   const struct flash_row *row)
{
	const uint32_t t = threadIdx.x % 4 * 2;

#pragma unroll
	for (uint32_t j = 0; j < 8; j++)
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			s[j][k] *= scale;
	if (!~c->mask &&
	    span_seen(c->half[1].s, c->half[1].t + GPU_TILE - 1, 1, low) > 0)
		return;
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint64_t mask = c->mask & tile_seen(c, row[8 * i].pos);

#pragma unroll
		for (uint32_t j = 0; j < 8; j++)
#pragma unroll
			for (uint32_t k = 0; k < 2; k++)
				if (!(mask >> (8 * j + t + k) & 1))
					s[j][2 * i + k] = -INFINITY;
	}
}
