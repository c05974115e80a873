/*
 * evict.h - which page goes down next: one interface, one file for each policy
 *
 * A policy holds the pages that may go: resident, unpinned, not on their way.
 * Thread: loop thread.
 */
#ifndef KVD_MEM_EVICT_H
#define KVD_MEM_EVICT_H

#include "kvd/base/list.h"

/* Embedded in struct page; the policy's. */
struct evict_node {
	struct list node;
	unsigned int ref;
};

struct evict_policy {
	const char *name;
	int (*open)(void **state); /* 0, -ENOMEM */
	void (*close)(void *state);
	/* The page has been used and may go from now on. */
	void (*add)(void *state, struct evict_node *n);
	/* It is pinned again, or gone. */
	void (*remove)(void *state, struct evict_node *n);
	/* Remove and return the one to go, or NULL. */
	struct evict_node *(*victim)(void *state);
};

extern const struct evict_policy evict_clock;
/* By name; NULL. */
const struct evict_policy *evict_find(const char *name);

#endif
