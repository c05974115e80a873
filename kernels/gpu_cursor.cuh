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

/* Tokens t .. t + 63 of a span that a row at pos sees, t a multiple of 64. */
INLINE uint64_t mask_64(const struct gpu_span *s, uint32_t t, int64_t pos)
{
	int64_t n = (int64_t)s->n_tokens - t, seen;
	uint64_t mask;

	n = n > 64 ? 64 : n;
	seen = span_seen(s, t, n, pos);
	if (seen < n)
		n = seen;
	if (n <= 0)
		return 0;
	mask = n >= 64 ? ~0ull : (1ull << n) - 1;
	if (s->skip)
		mask &= ~((const uint64_t *)s->skip)[t / 64];
	return mask;
}

/* A tile of which a row of the block sees something: mask; s is NULL behind the last. */
struct flash_cursor {
	const struct gpu_span *s;
	uint32_t i, t; /* which span of the list, token in it */
	uint64_t mask;
};

/* The first tile of a list at or behind token t of its span i. */
INLINE struct flash_cursor cursor_from(const struct gpu_attn *a,
				       const struct gpu_tile *tile,
				       int64_t high, uint32_t i, uint32_t t)
{
	struct flash_cursor c = { 0, 0, 0, 0 };

	for (; i < tile->n_spans; i++, t = 0) {
		const struct gpu_span *s = (const struct gpu_span *)a->spans +
					   tile->first_span + i;

		for (; t < s->n_tokens && span_seen(s, t, 1, high) > 0;
		     t += FLASH_TILE) {
			c.mask = mask_64(s, t, high);
			if (c.mask) {
				c.s = s;
				c.i = i;
				c.t = t;
				return c;
			}
		}
	}
	return c;
}

/* Are both tiles of one part? */
INLINE int same_part(const struct flash_cursor *a, const struct flash_cursor *b)
{
	return b->s && a->i == b->i &&
	       a->t / GPU_SPLIT_TOKENS == b->t / GPU_SPLIT_TOKENS;
}

/* The first tile at or behind token t of the part that begins at t0. */
INLINE struct flash_cursor part_from(const struct gpu_span *s, uint32_t t,
				     uint32_t t0, int64_t pos)
{
	struct flash_cursor c = { 0, 0, 0, 0 };

	for (; t < t0 + GPU_SPLIT_TOKENS && t < s->n_tokens; t += FLASH_TILE) {
		c.mask = mask_64(s, t, pos);
		if (c.mask) {
			c.s = s;
			c.t = t;
			break;
		}
	}
	return c;
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
	if (!~c->mask && span_seen(c->s, c->t + FLASH_TILE - 1, 1, low) > 0)
		return;
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint64_t mask = c->mask &
				      mask_64(c->s, c->t, row[8 * i].pos);

#pragma unroll
		for (uint32_t j = 0; j < 8; j++)
#pragma unroll
			for (uint32_t k = 0; k < 2; k++)
				if (!(mask >> (8 * j + t + k) & 1))
					s[j][2 * i + k] = -INFINITY;
	}
}
