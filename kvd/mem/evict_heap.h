/*
 * evict_heap.h - nodes by key, the least first: a pairing heap inside the nodes
 * (Fredman et al. 1986, "The pairing heap"); inside kvd/mem and kvd/cache
 *
 * push and merge O(1), pop and del O(log n) amortised, no memory but the nodes'.
 * Equal keys: the older stamp first. A node is in one heap at most.
 */
#ifndef KVD_MEM_EVICT_HEAP_H
#define KVD_MEM_EVICT_HEAP_H

#include "kvd/mem/evict.h"

struct evict_heap {
	struct evict_node *root;
};

static inline int evict_before(const struct evict_node *a,
			       const struct evict_node *b)
{
	return a->key < b->key || (a->key == b->key && a->stamp < b->stamp);
}

/* Two roots; the one that loses becomes the first child of the other. */
static inline struct evict_node *evict_meld(struct evict_node *a,
					    struct evict_node *b)
{
	struct evict_node *t;

	if (!a || !b)
		return a ? a : b;
	if (evict_before(b, a)) {
		t = a;
		a = b;
		b = t;
	}
	b->next = a->child;
	if (b->next)
		b->next->prev = b;
	b->prev = a;
	a->child = b;
	return a;
}

/* The children of a root become one heap, in two passes. */
static inline struct evict_node *evict_pair(struct evict_node *first)
{
	struct evict_node *done = NULL, *a, *b;

	while ((a = first)) {
		b = a->next;
		first = b ? b->next : NULL;
		a->next = a->prev = NULL;
		if (b)
			b->next = b->prev = NULL;
		a = evict_meld(a, b);
		a->next = done;
		done = a;
	}
	a = NULL;
	while ((b = done)) {
		done = b->next;
		b->next = NULL;
		a = evict_meld(a, b);
	}
	return a;
}

static inline void evict_heap_push(struct evict_heap *h, struct evict_node *n)
{
	n->child = n->next = n->prev = NULL;
	h->root = evict_meld(h->root, n);
}

static inline struct evict_node *evict_heap_pop(struct evict_heap *h)
{
	struct evict_node *n = h->root;

	if (!n)
		return NULL;
	h->root = evict_pair(n->child);
	n->child = NULL;
	return n;
}

/* n is in h. */
static inline void evict_heap_del(struct evict_heap *h, struct evict_node *n)
{
	if (n == h->root) {
		(void)evict_heap_pop(h);
		return;
	}
	if (n->prev->child == n)
		n->prev->child = n->next;
	else
		n->prev->next = n->next;
	if (n->next)
		n->next->prev = n->prev;
	n->next = n->prev = NULL;
	h->root = evict_meld(h->root, evict_pair(n->child));
	n->child = NULL;
}

#endif
