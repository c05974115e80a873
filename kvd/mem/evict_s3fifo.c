/*
 * evict_s3fifo.c - S3-FIFO: a small queue keeps what is used once out of the main one
 * (Yang, Zhang, Qiu, Yue and Rashmi 2023, "FIFO queues are all you need for cache
 * eviction", SOSP)
 *
 *   new --> small --used twice--> main --used--> main again
 *             |                     |
 *             +-> ghost             +-> gone
 *              \--used: straight to main
 *
 * small is a tenth of the bytes. A ghost is a node that remembers when it left: it
 * counts as one until as many bytes as main holds have left small after it.
 *
 *  (1) A pinned page keeps its place; who meets it at the head takes it off, and add()
 *      puts it at the tail of its queue again.
 */
#include <errno.h>
#include <stdlib.h>
#include "kvd/mem/evict.h"

#define SMALL_SHARE 10u
#define FREQ_MAX    3u

/* n->where: as of evict.h, and */
enum { IN_MAIN = 1u << 4, GHOST = 1u << 5, WHERE = 15u };

struct s3fifo {
	struct list small, main;
	uint64_t small_bytes, main_bytes; /* linked, pinned or not */
	uint64_t left_bytes; /* that left small for good, ever */
};

static int s3fifo_open(void **state)
{
	struct s3fifo *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	list_init(&s->small);
	list_init(&s->main);
	*state = s;
	return 0;
}

static int is_ghost(const struct s3fifo *s, const struct evict_node *n)
{
	return n->where & GHOST && s->left_bytes - n->stamp <= s->main_bytes;
}

static void s3fifo_use(void *state, struct evict_node *n)
{
	struct s3fifo *s = state;

	if ((n->where & WHERE) != EVICT_OUT) {
		n->freq = (uint8_t)KV_MIN(n->freq + 1u, FREQ_MAX);
		return;
	}
	n->freq = 0;
	n->where = (uint8_t)(EVICT_OUT | (is_ghost(s, n) ? IN_MAIN : 0));
}

static void put_in(struct s3fifo *s, struct evict_node *n)
{
	if (n->where & IN_MAIN) {
		list_push(&s->main, &n->list);
		s->main_bytes += n->bytes;
	} else {
		list_push(&s->small, &n->list);
		s->small_bytes += n->bytes;
	}
}

static void take_out(struct s3fifo *s, struct evict_node *n)
{
	list_del(&n->list);
	*(n->where & IN_MAIN ? &s->main_bytes : &s->small_bytes) -= n->bytes;
}

static void s3fifo_add(void *state, struct evict_node *n)
{
	n->where = (uint8_t)((n->where & IN_MAIN) | EVICT_HELD);
	if (list_empty(&n->list))
		put_in(state, n);
}

static void s3fifo_remove(void *state, struct evict_node *n)
{
	(void)state;
	n->where = (uint8_t)((n->where & IN_MAIN) | EVICT_PINNED);
}

static void s3fifo_forget(void *state, struct evict_node *n)
{
	if (!list_empty(&n->list))
		take_out(state, n);
	n->where = EVICT_OUT;
}

/* The head of the small queue goes to main, or out: then it is returned. */
static struct evict_node *turn_small(struct s3fifo *s)
{
	struct evict_node *n =
		list_entry(s->small.next, struct evict_node, list);

	take_out(s, n);
	if (n->where == EVICT_PINNED) {
		n->where |= IN_MAIN; /* in use at this age: it has earned it */
		return NULL;
	}
	if (n->freq > 1 || (n->freq && n->hint == EVICT_HOT)) {
		n->freq = 0;
		n->where |= IN_MAIN;
		put_in(s, n);
		return NULL;
	}
	s->left_bytes += n->bytes;
	n->stamp = s->left_bytes;
	n->where = EVICT_OUT | GHOST;
	return n;
}

static struct evict_node *turn_main(struct s3fifo *s)
{
	struct evict_node *n =
		list_entry(s->main.next, struct evict_node, list);

	take_out(s, n);
	if ((n->where & WHERE) == EVICT_PINNED)
		return NULL;
	if (n->freq) {
		n->freq--;
		put_in(s, n);
		return NULL;
	}
	n->where = EVICT_OUT;
	return n;
}

static struct evict_node *s3fifo_victim(void *state)
{
	struct s3fifo *s = state;
	struct evict_node *n = NULL;

	while (!n && (s->small_bytes || s->main_bytes)) {
		const uint64_t all = s->small_bytes + s->main_bytes;

		if (s->small_bytes > all / SMALL_SHARE || !s->main_bytes)
			n = turn_small(s);
		else
			n = turn_main(s);
	}
	return n;
}

const struct evict_policy evict_s3fifo = {
	.name = "s3fifo",
	.open = s3fifo_open,
	.close = free,
	.use = s3fifo_use,
	.add = s3fifo_add,
	.remove = s3fifo_remove,
	.victim = s3fifo_victim,
	.forget = s3fifo_forget,
};
