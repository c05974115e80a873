/*
 * kind.h - kinds of pages: what is known of a page's tokens when it is used
 *
 * Policies that learn (evict_density.c) count apart what differs in how often it comes
 * back. The facts are those of the request that uses the page, at that time: what the
 * prefix index found, what it had to compute. No more than that is known of any page.
 */
#ifndef KVD_MEM_KIND_H
#define KVD_MEM_KIND_H

#include <stdint.h>

struct kind_facts {
	uint64_t n_tokens; /* of the prompt */
	uint64_t found_tokens; /* its prefix that was in the index */
	uint64_t root_tokens; /* what every prompt begins with, found or not */
	uint64_t at_token; /* first of the page */
	uint64_t page_tokens;
};

enum page_kind {
	KIND_UNKNOWN,
	KIND_TAIL, /* not full: only the same prompt again would find it */
	KIND_FRESH, /* computed; nothing but the root was found before it */
	KIND_FRESH_2K,
	KIND_FRESH_8K,
	KIND_FRESH_32K,
	KIND_MORE, /* computed, behind what was found */
	KIND_MORE_1K,
	KIND_MORE_4K,
	KIND_FOUND, /* found, and little came after it */
	KIND_FOUND_2K,
	KIND_N,
};

static inline enum page_kind page_kind_of(const struct kind_facts *f)
{
	const uint64_t added = f->n_tokens > f->found_tokens
				       ? f->n_tokens - f->found_tokens
				       : 0;

	if (f->at_token + f->page_tokens > f->n_tokens)
		return KIND_TAIL;
	if (f->at_token < f->found_tokens)
		return added <= 2048 ? KIND_FOUND : KIND_FOUND_2K;
	if (f->found_tokens > f->root_tokens)
		return added <= 1024   ? KIND_MORE
		       : added <= 4096 ? KIND_MORE_1K
				       : KIND_MORE_4K;
	return added <= 2048	? KIND_FRESH
	       : added <= 8192	? KIND_FRESH_2K
	       : added <= 32768 ? KIND_FRESH_8K
				: KIND_FRESH_32K;
}

#endif
