/*
 * op_attend.c - APPEND and ATTEND: a batch of items over arena pointers
 *
 * The items are copied once. The bytes behind q, k, v and o follow from the
 * sequence's geometry and are checked here, so serve gets plain pointers of
 * which every element lies in the arena.
 */
#include <errno.h>
#include "kvd/ipc/sess.h"

#define ARENA_ALIGN 64u

/* Pointer to n rows of row_bytes at off; NULL when not inside. */
static void *rows_at(struct sess *s, uint64_t off, uint64_t n,
		     uint64_t row_bytes)
{
	uint64_t bytes;

	if (__builtin_mul_overflow(n, row_bytes, &bytes))
		return NULL;
	return chan_at(&s->ch, off, bytes, ARENA_ALIGN);
}

/* The same in the arena, or in the buffer that the item names. */
static void *item_rows(struct sess *s, uint32_t buffer, uint64_t off,
		       uint64_t n, uint64_t row_bytes)
{
	uint64_t bytes;

	if (!buffer)
		return rows_at(s, off, n, row_bytes);
	if (off % ARENA_ALIGN || __builtin_mul_overflow(n, row_bytes, &bytes))
		return NULL;
	return serve_buffer_at(s->ss, buffer, off, bytes);
}

/* off must be KV_NO_OFF or 0 where nothing is read or written. */
static int unused(uint64_t off)
{
	return off == KV_NO_OFF || off == 0;
}

static int check_item(struct sess *s, const struct kv_attend_item *in,
		      int append_only, struct serve_attend_item *out)
{
	const int with_kv = append_only || in->k_off != KV_NO_OFF;
	size_t row_q, row_kv;
	int ret;

	*out = (struct serve_attend_item){ .seq = in->seq,
					   .n_tokens = in->n_tokens,
					   .pos = in->pos,
					   .buffer = in->buffer };
	if (in->_rsvd)
		return -EINVAL;
	ret = serve_seq_shape(s->ss, in->seq, &row_q, &row_kv);
	if (ret)
		return ret;
	if (with_kv) {
		out->k = item_rows(s, in->buffer, in->k_off, in->n_tokens,
				   row_kv);
		out->v = item_rows(s, in->buffer, in->v_off, in->n_tokens,
				   row_kv);
		if (!out->k || !out->v)
			return -EINVAL;
	} else if (!unused(in->v_off)) {
		return -EINVAL;
	}
	if (append_only)
		return unused(in->q_off) && unused(in->o_off) ? 0 : -EINVAL;
	out->q = item_rows(s, in->buffer, in->q_off, in->n_tokens, row_q);
	out->o = item_rows(s, in->buffer, in->o_off, in->n_tokens, row_q);
	return out->q && out->o ? 0 : -EINVAL;
}

static void attend_done(struct wait *w, int ret)
{
	struct sess_attend *a =
		container_of(w, struct sess_attend, attend.wait);
	struct sess_req *r = container_of(a, struct sess_req, u.attend);
	struct kv_attend_item *items;
	const uint32_t n = a->attend.n_items;

	if (!r->sess->closing) {
		items = chan_at(&r->sess->ch, a->items_off, n * sizeof(*items),
				8);
		for (uint32_t i = 0; i < n; i++)
			items[i].res = a->attend.items[i].res;
	}
	sess_req_end(r, ret, 0, 0);
}

/* Copy and check the items; a bad one fails the entry, nothing begins. */
static int read_items(struct sess_req *r, const struct kv_attend_item *from,
		      uint32_t n)
{
	struct sess_attend *a = &r->u.attend;
	struct kv_attend_item in;
	void *p;
	int ret;

	ret = sess_req_copy(r, n * sizeof(*a->attend.items), &p);
	if (ret)
		return ret;
	a->attend.items = p;
	for (uint32_t i = 0; i < n; i++) {
		chan_copy(&in, &from[i], sizeof(in));
		ret = check_item(r->sess, &in, a->attend.append_only,
				 &a->attend.items[i]);
		if (ret)
			return ret;
	}
	return 0;
}

int op_attend(struct sess *s, const struct kv_sqe *e)
{
	const struct kv_attend_item *from;
	struct sess_req *r;
	int ret;

	if (!e->arg[1] || e->arg[1] > SERVE_MAX_ITEMS || e->arg[2] > UINT32_MAX)
		return -EINVAL;
	from = chan_at(&s->ch, e->arg[0], e->arg[1] * sizeof(*from), 8);
	if (!from)
		return -EINVAL;
	r = sess_req_begin(s, e);
	r->u.attend = (struct sess_attend){
		.attend = { .wait = { attend_done },
			    .layer = (uint32_t)e->arg[2],
			    .n_items = (uint32_t)e->arg[1],
			    .append_only = e->opcode == KV_OP_APPEND,
			    .may_wait = e->flags & KV_SQE_WAIT },
		.items_off = e->arg[0]
	};
	ret = read_items(r, from, (uint32_t)e->arg[1]);
	if (!ret)
		ret = serve_attend(s->ss, &r->u.attend.attend);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret;
}
