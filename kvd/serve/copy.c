/*
 * copy.c - K and V of a tile's head, where an append takes it over; see attn.h
 */
#include <string.h>
#include "kvd/serve/attn.h"

void attn_copy(const struct seq_copy *c)
{
	const struct kv_layout *g = &c->src->layout;
	const size_t row = (size_t)g->head_dim * g->elem_bytes;
	const size_t head = layout_head_bytes(g);

	for (uint32_t l = 0; l < g->n_layers; l++)
		for (int v = 0; v < 2; v++) {
			const uint32_t t = c->src_from;
			const char *src = segment_addr(c->src, l, v, t) +
					  t % g->page_tokens * row;
			char *dst = segment_addr(c->dst, l, v, 0);

			for (uint32_t h = 0; h < g->n_kv_heads; h++)
				memcpy(dst + h * head, src + h * head,
				       c->n * row);
		}
}
