/*
 * states.c - which pages of a space are there, for clients to read; see pager.h
 *
 * One byte a page, in a file that clients of the tenant map for reading. A thread that
 * faults may map pages itself while their byte is 1, if it has said so before (a hold:
 * pager_conf.held). Dekker's handshake; store and load of both sides are sequentially
 * consistent:
 *
 *   client  hold := page;  byte = 1? map it : ask;  hold := 0
 *   here    byte := 0;     held? byte := 1, not now : drop
 *
 * So what is mapped is a page whose bytes are there and stay until the hole is punched,
 * which takes it out of the client again.
 *
 * Loop thread.
 */
#include <errno.h>
#include "kvd/mem/move.h"

/* What is there already; later page_set_state() does it. */
static void publish_all(const struct tier *t, const struct pager *p)
{
	list_for_each(n, &p->ranges) {
		struct range *r = list_entry(n, struct range, node);

		for (uint32_t i = 0; r->tier == t && i < r->n_pages; i++)
			page_publish(&r->pages[i]);
	}
}

static uint8_t *byte_of(const struct page *pg)
{
	const struct range *r = pg->range;

	return r->tier->states + r->first + page_index(pg);
}

void page_publish(struct page *pg)
{
	__atomic_store_n(byte_of(pg), (uint8_t)page_resident(pg),
			 __ATOMIC_RELEASE);
}

int page_may_go(struct page *pg)
{
	const struct range *r = pg->range;
	const struct pager *p = r->pager;

	if (!r->tier->states || !p->conf.held)
		return 1;
	__atomic_store_n(byte_of(pg), 0, __ATOMIC_SEQ_CST);
	if (!p->conf.held(p->conf.ctx, r->tier->id, r->first + page_index(pg)))
		return 1;
	page_publish(pg);
	return 0;
}

int range_states(const struct range *r)
{
	struct tier *t = r->tier;
	const int is_new = !t->states;
	int fd;

	if (!t->space || !r->pager->conf.held)
		return -ENOTSUP;
	fd = space_states(t->space, &t->states);
	if (fd >= 0 && is_new)
		publish_all(t, r->pager);
	return fd;
}
