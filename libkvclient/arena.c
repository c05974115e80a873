/*
 * arena.c - blocks of the session's arena, for the client's own use
 *
 * The whole arena is a row of blocks, each led by a 64-byte head that knows the
 * block before it; free ones are also in a list. First fit, neighbours join at
 * once: two free blocks never touch. The daemon reads none of it. Any thread,
 * under arena_lock.
 */
#include "libkvclient/kvc.h"

#include <errno.h>

#define BLOCK_USED 0x6b766375u
#define BLOCK_FREE 0x6b766366u

struct kvc_block {
	uint32_t state;
	uint32_t _pad;
	uint64_t bytes; /* with this head, a multiple of 64 */
	uint64_t prev_bytes; /* of the block before; 0: this is the first */
	struct kvc_block *next, *prev; /* free list */
	uint64_t _pad2[3];
};
KV_STATIC_ASSERT(sizeof(struct kvc_block) == 64, "keeps blocks aligned");

static struct kvc_block *after(const struct kvc *c, struct kvc_block *b)
{
	char *p = (char *)b + b->bytes;

	return p < c->arena + c->arena_bytes ? (struct kvc_block *)p : NULL;
}

static void list_in(struct kvc *c, struct kvc_block *b)
{
	b->state = BLOCK_FREE;
	b->prev = NULL;
	b->next = c->free_list;
	if (b->next)
		b->next->prev = b;
	c->free_list = b;
}

static void list_out(struct kvc *c, struct kvc_block *b)
{
	if (b->prev)
		b->prev->next = b->next;
	else
		c->free_list = b->next;
	if (b->next)
		b->next->prev = b->prev;
}

/* Give the part of b beyond bytes back; b is in no list. */
static void split(struct kvc *c, struct kvc_block *b, uint64_t bytes)
{
	struct kvc_block *rest, *end;

	if (b->bytes - bytes < 2 * sizeof(*b))
		return;
	rest = (struct kvc_block *)((char *)b + bytes);
	rest->bytes = b->bytes - bytes;
	rest->prev_bytes = bytes;
	b->bytes = bytes;
	end = after(c, rest);
	if (end)
		end->prev_bytes = rest->bytes;
	list_in(c, rest);
}

void kvc_arena_reset(struct kvc *c)
{
	struct kvc_block *b = (struct kvc_block *)c->arena;

	c->free_list = NULL;
	c->arena_bytes -= c->arena_bytes % 64;
	if (c->arena_bytes < 2 * sizeof(*b))
		return;
	b->bytes = c->arena_bytes;
	b->prev_bytes = 0;
	list_in(c, b);
}

static struct kvc_block *first_fit(struct kvc *c, uint64_t bytes)
{
	struct kvc_block *b = c->free_list;

	while (b && b->bytes < bytes)
		b = b->next;
	if (!b)
		return NULL;
	list_out(c, b);
	split(c, b, bytes);
	b->state = BLOCK_USED;
	return b;
}

int kvc_arena_take(struct kvc *c, size_t bytes, void **out)
{
	struct kvc_block *b;
	uint64_t all;

	if (!kvc_usable(c))
		return -EPERM;
	if (!c->arena)
		return -ECONNRESET;
	if (bytes > c->arena_bytes)
		return -EMSGSIZE;
	all = (bytes + 63) / 64 * 64 + sizeof(*b);
	if (all == sizeof(*b))
		all += 64;
	if (all > c->arena_bytes)
		return -EMSGSIZE;
	(void)pthread_mutex_lock(&c->arena_lock); /* cannot fail: plain mutex */
	b = first_fit(c, all);
	(void)pthread_mutex_unlock(&c->arena_lock);
	if (!b)
		return -EAGAIN;
	*out = b + 1;
	return 0;
}

void *kvc_alloc(struct kvc *c, size_t bytes)
{
	void *p;

	return kvc_arena_take(c, bytes, &p) ? NULL : p;
}

static void join_and_list(struct kvc *c, struct kvc_block *b)
{
	struct kvc_block *next = after(c, b), *prev;

	if (next && next->state == BLOCK_FREE) {
		list_out(c, next);
		b->bytes += next->bytes;
	}
	if (b->prev_bytes) {
		prev = (struct kvc_block *)((char *)b - b->prev_bytes);
		if (prev->state == BLOCK_FREE) {
			list_out(c, prev);
			prev->bytes += b->bytes;
			b->state = 0;
			b = prev;
		}
	}
	next = after(c, b);
	if (next)
		next->prev_bytes = b->bytes;
	list_in(c, b);
}

void kvc_free(struct kvc *c, void *p)
{
	struct kvc_block *b;

	if (!p || !kvc_usable(c) || !c->arena || (char *)p < c->arena + 64 ||
	    (char *)p >= c->arena + c->arena_bytes)
		return;
	b = (struct kvc_block *)p - 1;
	(void)pthread_mutex_lock(&c->arena_lock); /* cannot fail: plain mutex */
	if (b->state == BLOCK_USED) /* else: of an earlier connection */
		join_and_list(c, b);
	(void)pthread_mutex_unlock(&c->arena_lock);
}

uint64_t kvc_off(const struct kvc *c, const void *p)
{
	return p ? (uint64_t)((const char *)p - c->arena) : KV_NO_OFF;
}
