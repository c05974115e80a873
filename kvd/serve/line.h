/*
 * line.h - who waits for memory or a place of a tenant, and who is next
 *
 * Longest shared prefix first (Zheng et al. 2023, arXiv:2312.07104), with ageing: a
 * request counts as if it had come earlier by LINE_GAIN times what computing its cached
 * tokens would take now, but by no more than LINE_AGE_NS. The line is in that order. So
 * what is cached is used before it has to go, and
 *
 *  (1) nobody is overtaken by a request that comes LINE_AGE_NS after it or later;
 *  (2) of equal requests the one that came first goes first;
 *  (3) calls of clients' own weights, faults, and requests with a deadline are overtaken
 *      by nobody, one of a more urgent priority not by one of a less urgent;
 *  (4) the order depends on this tenant's requests and index alone.
 *
 * What is cached of a request in line is looked up again when something came into the
 * index: one look at the tile behind what was found. What has gone is noticed at the
 * head, where it matters. With order = fifo the line is in order of arrival.
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_LINE_H
#define KVD_SERVE_LINE_H

#include "kvd/base/map.h"

#define LINE_GAIN   16u
#define LINE_AGE_NS 10000000000ull

struct gen;

/* The chained id (prefix.h) behind the first tokens of a request, up to at. */
struct gen_chain {
	struct map_id id;
	uint32_t i_part;
	uint32_t at; /* token, where id ends */
};

/* How much of a request's prefix is in the index. */
struct line_look {
	struct gen_chain at; /* behind the last tile found */
	struct gen_chain next; /* behind the one that was not */
	int has_next; /* 0: all that can be found was */
	uint32_t n; /* tokens found */
	uint64_t seen; /* prefix_tree.n_added + 1 then; 0: never looked */
};

/* g is about to stand in line: what the order goes by, before tenant_wait(). */
void line_stand(struct gen *g);
/* c goes on to the next tile of g that may be found in the index; 0: there is none. */
int line_next_tile(const struct gen *g, struct gen_chain *c);
/* The chunk job stands where g would, which waits for it, if that is further ahead. */
void line_follow(struct gen *job, struct gen *g);

#endif
