/*
 * list.h - circular doubly linked list; the node lives in its owner
 */
#ifndef KVD_BASE_LIST_H
#define KVD_BASE_LIST_H

#include "io/base.h"

struct list {
	struct list *next, *prev;
};

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}
static inline int list_empty(const struct list *l)
{
	return l->next == l;
}
static inline void list_add_before(struct list *at, struct list *n)
{
	n->next = at;
	n->prev = at->prev;
	at->prev->next = n;
	at->prev = n;
}
/* Append at the tail / prepend at the head of a list. */
static inline void list_push(struct list *head, struct list *n)
{
	list_add_before(head, n);
}
static inline void list_push_front(struct list *head, struct list *n)
{
	list_add_before(head->next, n);
}
/* Unlink and make n empty; harmless on an initialised, unlinked node. */
static inline void list_del(struct list *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	list_init(n);
}
static inline struct list *list_first(struct list *head)
{
	return list_empty(head) ? NULL : head->next;
}
static inline struct list *list_pop(struct list *head)
{
	struct list *n = list_first(head);

	if (n)
		list_del(n);
	return n;
}
#define list_entry(n, type, member) container_of(n, type, member)
#define list_for_each(n, head) \
	for (struct list *n = (head)->next; n != (head); n = n->next)
/* n may be unlinked in the body, its successor not. */
#define list_for_each_safe(n, head) \
	for (struct list *n = (head)->next, *n##_next = n->next; n != (head); \
	     n = n##_next, n##_next = n->next)

#endif
