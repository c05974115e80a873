/*
 * share.h - what tenants that opted in find of each other's cache
 *
 * share = NAME in the sections of both tenants: then a request that does not find a
 * prefix or a chunk in its own tenant's index looks into those of the others of that
 * name. A tenant without it is looked into by nobody.
 *
 *  (1) A segment stays its maker's: in its pager, on its account, in its records. Others
 *      hold references; freed by its owner it lives until the last of them.
 *  (2) Who pins reserves (account.h), with the owner of each page: a loan. A loan is
 *      taken from what the owner has left while nobody of the owner waits, or not at
 *      all: nobody waits for another tenant. A request that gets none goes on alone, as
 *      if nothing had been found there. So does one that stands in line, when the owner
 *      has no room for a request of its own.
 *  (3) Not for variants, repairs and moved parts, which change what they find.
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_SHARE_H
#define KVD_SERVE_SHARE_H

#include "kvd/serve/gen.h"

/* As prefix_find(), among the others. */
struct segment *share_prefix(const struct gen *g, struct map_id id,
			     const uint32_t *tokens, uint32_t n,
			     uint32_t *block);
/* As chunk_find(). */
struct segment *share_chunk(const struct gen *g, struct map_id id,
			    const uint32_t *tokens, size_t n);
/* Bytes of the pages of the list that are others'. -ENOMEM. */
int share_bytes(const struct gen *g, uint64_t *bytes);
/*
 * Reserve for them with their owners: 0; -EXDEV it is not to be had, go on alone;
 * -ENOMEM.
 */
int share_reserve(struct gen *g);
void share_unreserve(struct gen *g);
/*
 * There is no room for a request of owner. 1: requests of others hold segments of it, and
 * tenant_kick() follows when they have ended; those that run not yet go on alone.
 */
int share_frees(struct serve_tenant *owner);
/* Tokens of the list that are others'. */
uint64_t share_tokens(const struct gen *g);

#endif
