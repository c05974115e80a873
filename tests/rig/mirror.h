/*
 * mirror.h - what the daemon should hold of a sequence, in plain memory, and
 * the same kernels run over it in one page: the answer that paging must not
 * change
 *
 * A test appends to the mirror what it sends to the daemon, and compares the
 * outputs by memcmp. Layout of kv: [layer][K|V][token][kv_head][head_dim],
 * keys rotated by their position, element type of the geometry.
 */
#ifndef TESTS_RIG_MIRROR_H
#define TESTS_RIG_MIRROR_H

#include <stddef.h>
#include <stdint.h>
#include "libkvclient/kvclient.h"

#define MIRROR_TOKENS 400u /* room of a sequence */

struct rng {
	uint64_t s;
};
/* 0..n-1; n > 0 */
uint32_t rnd(struct rng *r, uint32_t n);

struct mirror_shape {
	struct kv_geometry g;
	size_t es, kv_row, q_row; /* bytes: element, row of K, row of q */
	int handle; /* the caller's: of the geometry */
};
struct mirror {
	int seq; /* the caller's: handle, 0: none */
	uint32_t n; /* the caller's: tokens in all layers */
	char *kv;
	uint8_t skip[MIRROR_TOKENS];
};

/* A random valid geometry with 1 to 3 layers that runs within a budget. */
void mirror_shape_pick(struct mirror_shape *m, struct rng *r,
		       uint64_t budget_bytes);
/* n random elements of the shape's type. */
void mirror_fill(const struct mirror_shape *m, struct rng *r, char *dst,
		 size_t n);
/* Allocate room; asserts. Ends with mirror_free(). */
void mirror_new(const struct mirror_shape *m, struct mirror *s);
void mirror_free(struct mirror *s);
/* to becomes a copy of from; its handle is the caller's to set. */
void mirror_copy(const struct mirror_shape *m, struct mirror *to,
		 const struct mirror *from);
/* n rows of k and v behind the s->n tokens of a layer; s->n stays. */
void mirror_put(const struct mirror_shape *m, struct mirror *s, uint32_t layer,
		uint32_t n, const char *k, const char *v);
/*
 * Attention of n queries at pos.. over the first n_tokens tokens. q is rotated
 * in place; out [n][n_heads][head_dim].
 */
void mirror_attend(const struct mirror_shape *m, const struct mirror *s,
		   uint32_t layer, uint32_t n_tokens, uint64_t pos, uint32_t n,
		   char *q, char *out);

#endif
