/*
 * blob.c - read and sum blobs; see blob.h
 */
#include "kvd/cache/blob.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>
#include "kvd/cache/variant.h"

uint32_t blob_tiles(uint32_t n_tokens)
{
	return KV_DIV_UP(n_tokens, SEGMENT_BLOCK);
}

size_t blob_bytes(uint32_t kind, uint32_t n_tokens, uint32_t n_ids)
{
	const size_t n = sizeof(struct blob) +
			 (size_t)n_tokens * sizeof(uint32_t) +
			 (size_t)n_ids * sizeof(struct map_id);

	return kind != KIND_VARIANT
		       ? n
		       : n + sizeof(struct blob_variant) +
				 ((size_t)n_ids + n_tokens) * sizeof(float);
}

static void sip128(const void *p, size_t n, uint64_t sum[2])
{
	static const unsigned char key[16] = "kvd blob, 128 b"; /* no secret */

	crypto_shorthash_siphashx24((unsigned char *)sum, p, n, key);
}

/*
 * Of a head, whose own sum does not count, and the n_bytes behind it: of the head with
 * the sum of what is behind in place of its own. SipHash (Aumasson and Bernstein 2012)
 * takes a third of BLAKE2's time for so little, and a start does it for each record.
 */
void blob_sum(const struct blob *b, const void *rest, size_t n_bytes,
	      uint64_t sum[2])
{
	crypto_generichash_state st;
	struct blob head = *b;

	if (b->version > 3) {
		sip128(rest, n_bytes, head.sum);
		sip128(&head, sizeof(head), sum);
		return;
	}
	head.sum[0] = head.sum[1] = 0;
	crypto_generichash_init(&st, NULL, 0, sizeof(head.sum));
	crypto_generichash_update(&st, (const void *)&head, sizeof(head));
	crypto_generichash_update(&st, rest, n_bytes);
	crypto_generichash_final(&st, (unsigned char *)sum, sizeof(head.sum));
}

int blob_sound(const struct kio_record *r, const struct blob *b)
{
	uint64_t sum[2] = { 0, 0 };

	if (b->version >= 3)
		blob_sum(b, (const char *)r->meta + sizeof(*b),
			 r->meta_bytes - sizeof(*b), sum);
	return sum[0] == b->sum[0] && sum[1] == b->sum[1];
}

int blob_head(const struct kio_record *r, struct blob *b)
{
	if (r->meta_bytes < sizeof(*b))
		return -EINVAL;
	memcpy(b, r->meta, sizeof(*b));
	if (b->magic != BLOB_MAGIC || !b->version ||
	    b->version > BLOB_VERSION ||
	    memchr(b->tenant, 0, sizeof(b->tenant)) == NULL)
		return -EINVAL;
	switch (b->kind) {
	case KIND_PREFIX:
		if (b->n_ids != blob_tiles(b->n_tokens))
			return -EINVAL;
		break;
	case KIND_CHUNK:
		if (b->n_ids)
			return -EINVAL;
		break;
	case KIND_VARIANT:
		if (b->version < 2 || b->n_ids > VARIANT_MAX_PREFIX)
			return -EINVAL;
		break;
	default:
		return -EINVAL;
	}
	if (!b->n_tokens || b->pos0 < 0 || b->pos0 > INT32_MAX ||
	    r->meta_bytes != blob_bytes(b->kind, b->n_tokens, b->n_ids))
		return -EINVAL;
	return 0;
}

int blob_layout(const struct blob *b, const struct kio_record *r,
		size_t page_align, struct kv_layout *g)
{
	*g = (struct kv_layout){
		.n_layers = b->n_layers,
		.n_kv_heads = b->n_kv_heads,
		.head_dim = b->head_dim,
		.elem_bytes = b->elem_bytes,
		.page_tokens = b->page_tokens,
		.page_layers = b->page_layers,
		.page_align = page_align,
	};
	if (g->page_tokens < SEGMENT_BLOCK || !g->page_layers ||
	    kv_layout_init(g))
		return -EINVAL;
	return g->page_bytes == r->page_bytes &&
			       kv_layout_bytes(g, b->n_tokens) ==
				       (uint64_t)r->page_bytes * r->n_pages
		       ? 0
		       : -EINVAL;
}
