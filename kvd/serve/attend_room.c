/*
 * attend_room.c - room for what calls append, and who waits for it; see attend.c
 *
 * A call that waits for memory or room may be in line. Memory, and room that requests hold,
 * come back by themselves: nobody overtakes who waits for that. Room that sequences hold comes
 * back when their clients like: who waits for it holds nothing and is in nobody's way.
 *
 * Loop thread.
 */
#include "kvd/serve/attend_priv.h"

#include <errno.h>

void attend_ungrow(struct attend_item *it)
{
	if (it->grown)
		seq_truncate(&it->s->seq, it->old_tokens);
	it->grown = 0;
	seq_copy_undo(&it->s->seq, &it->s->copy);
}

void attend_ungrow_all(struct attend *a)
{
	for (uint32_t i = 0; i < a->req->n_items; i++)
		if (a->items[i].s)
			attend_ungrow(&a->items[i]);
}

static int grow(struct attend *a, uint32_t i)
{
	struct attend_item *it = &a->items[i];
	const struct serve_attend_item *r = &a->req->items[i];
	struct seq *q = &it->s->seq;
	const uint64_t end = r->pos + r->n_tokens;
	const uint64_t left = it->s->max_tokens - q->n_tokens;
	struct seq_copy copy;
	int ret;

	if (!r->k || end <= q->n_tokens || it->grown)
		return 0;
	it->old_tokens = q->n_tokens;
	ret = seq_grow(
		q, (uint32_t)(end - q->n_tokens),
		q->layout.order == LAYOUT_BY_TOKEN
			? (uint32_t)left /* one stride for all */
			: (uint32_t)KV_MIN(left, SERVE_SEGMENT_TOKENS / 4),
		&copy);
	if (ret)
		return ret;
	if (copy.n)
		it->s->copy = copy;
	it->grown = 1;
	return 0;
}

static uint32_t n_held(const struct attend *a)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < a->req->n_items; i++)
		n += a->items[i].s != NULL;
	return n;
}

/*
 * Does the tenant have a sequence that its client may free or cut? None of a call that
 * waits for room itself: calls that wait for each other would do so for ever.
 */
static int others_may_give(const struct attend *a)
{
	const struct serve_tenant *t = a->ss->tenant;
	uint32_t n = n_held(a);

	list_for_each(i, &t->sessions) {
		const struct serve_session *ss =
			list_entry(i, struct serve_session, node);

		list_for_each(k, &ss->attends) {
			const struct attend *o =
				list_entry(k, struct attend, node);

			n += o != a && o->no_room ? n_held(o) : 0;
		}
	}
	return n < t->n_sequences;
}

int attend_grow(struct attend *a)
{
	a->no_room = 0;
	for (uint32_t i = 0; i < a->req->n_items; i++) {
		int ret = a->items[i].s ? grow(a, i) : 0, wait = 0;

		if (ret == -EDQUOT && a->req->may_wait)
			wait = tenant_frees(a->ss->tenant) ? -EAGAIN
			       : others_may_give(a)	   ? -EBUSY
							   : 0;
		a->no_room = wait == -EBUSY;
		if (wait) {
			attend_ungrow_all(a);
			return wait;
		}
		if (ret)
			attend_fail(a, i, ret);
	}
	return 0;
}
