/*
 * calls.c - the synchronous calls: one entry each, arguments through the arena
 *
 * Results are copied out of the arena before its block is given back. A request
 * that is still in flight when the connection breaks has ended with -ECONNRESET
 * before its block is freed.
 */
#include "libkvclient/kvc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int kvc_nop(struct kvc *c)
{
	struct kv_sqe e = { .opcode = KV_OP_NOP };

	return kvc_call(c, &e);
}

/* One argument struct of n bytes in the arena, copied in and out. */
static int call_with(struct kvc *c, struct kv_sqe *e, void *arg, size_t n)
{
	void *p;
	int ret;

	ret = kvc_arena_take(c, n, &p);
	if (ret)
		return ret;
	memcpy(p, arg, n);
	e->arg[0] = kvc_off(c, p);
	ret = kvc_call(c, e);
	memcpy(arg, p, n);
	kvc_free(c, p);
	return ret;
}

int kvc_geometry(struct kvc *c, const struct kv_geometry *g)
{
	struct kv_sqe e = { .opcode = KV_OP_GEOMETRY };
	struct kv_geometry copy = *g;

	return call_with(c, &e, &copy, sizeof(copy));
}

static int seq_call(struct kvc *c, uint16_t opcode, int seq, uint64_t arg0,
		    uint64_t arg1)
{
	struct kv_sqe e = { .opcode = opcode,
			    .seq = (uint32_t)seq,
			    .arg = { arg0, arg1 } };

	return kvc_call(c, &e);
}

int kvc_seq_new(struct kvc *c, int geometry, uint64_t max_tokens)
{
	return seq_call(c, KV_OP_SEQ_NEW, 0, (uint32_t)geometry, max_tokens);
}

int kvc_seq_free(struct kvc *c, int seq)
{
	return seq_call(c, KV_OP_SEQ_FREE, seq, 0, 0);
}

int kvc_seq_fork(struct kvc *c, int seq)
{
	return seq_call(c, KV_OP_SEQ_FORK, seq, 0, 0);
}

int kvc_seq_truncate(struct kvc *c, int seq, uint64_t n_tokens)
{
	return seq_call(c, KV_OP_SEQ_TRUNCATE, seq, n_tokens, 0);
}

int kvc_seq_seal(struct kvc *c, int seq)
{
	return seq_call(c, KV_OP_SEQ_SEAL, seq, 0, 0);
}

int kvc_seq_skip(struct kvc *c, int seq, uint64_t from, uint64_t to)
{
	return seq_call(c, KV_OP_SEQ_SKIP, seq, from, to);
}

int kvc_seq_edit(struct kvc *c, int seq, uint64_t at, uint64_t n_removed,
		 uint64_t n_new)
{
	struct kv_sqe e = { .opcode = KV_OP_SEQ_EDIT,
			    .seq = (uint32_t)seq,
			    .arg = { at, n_removed, n_new } };

	return kvc_call(c, &e);
}

int kvc_seq_info(struct kvc *c, int seq, struct kv_seq_info *out)
{
	struct kv_sqe e = { .opcode = KV_OP_SEQ_INFO, .seq = (uint32_t)seq };
	struct kv_seq_info info = { 0 };
	int ret = call_with(c, &e, &info, sizeof(info));

	if (ret >= 0)
		*out = info;
	return ret;
}

int kvc_append(struct kvc *c, struct kv_attend_item *items, uint32_t n,
	       uint32_t layer, uint16_t flags)
{
	struct kv_sqe e = { .opcode = KV_OP_APPEND,
			    .flags = flags,
			    .arg = { kvc_off(c, items), n, layer } };

	return kvc_call(c, &e);
}

int kvc_attend(struct kvc *c, struct kv_attend_item *items, uint32_t n,
	       uint32_t layer, uint16_t flags)
{
	struct kv_sqe e = { .opcode = KV_OP_ATTEND,
			    .flags = flags,
			    .arg = { kvc_off(c, items), n, layer } };

	return kvc_call(c, &e);
}

int kvc_persist(struct kvc *c)
{
	struct kv_sqe e = { .opcode = KV_OP_PERSIST };

	return kvc_call(c, &e);
}

static int set_model(char field[32], const char *model)
{
	const size_t n = model ? strlen(model) : 0;

	if (n >= 32)
		return -ENOENT;
	memset(field, 0, 32);
	if (n)
		memcpy(field, model, n);
	return 0;
}

int kvc_chunk_put(struct kvc *c, const char *model, const char *text,
		  size_t len, uint64_t id[2])
{
	struct kv_sqe e = { .opcode = KV_OP_CHUNK_PUT, .flags = KV_SQE_WAIT };
	struct kv_chunk_put put = { .kind = KV_PART_TEXT, .len = len };
	void *p;
	int ret;

	ret = set_model(put.model, model);
	if (ret)
		return ret;
	ret = kvc_arena_take(c, len, &p);
	if (ret)
		return ret;
	memcpy(p, text, len);
	put.off = kvc_off(c, p);
	ret = call_with(c, &e, &put, sizeof(put));
	kvc_free(c, p);
	if (ret < 0)
		return ret;
	id[0] = put.id[0];
	id[1] = put.id[1];
	return ret;
}

int kvc_chunk_rm(struct kvc *c, const uint64_t id[2])
{
	return seq_call(c, KV_OP_CHUNK_RM, 0, id[0], id[1]);
}

/* Room for what may be returned: all of it where that is reasonable. */
static size_t at_most(size_t n, size_t most)
{
	return n < most ? n : most;
}

int kvc_tokenize(struct kvc *c, const char *model, const char *text, size_t len,
		 uint32_t *out, size_t max)
{
	struct kv_sqe e = { .opcode = KV_OP_TOKENIZE };
	struct kv_tokenize t = { .text_bytes = len };
	void *text_p, *tokens_p;
	int ret;

	max = at_most(max, len + 2); /* a token has a byte, save BOS */
	ret = set_model(t.model, model);
	if (ret)
		return ret;
	ret = kvc_arena_take(c, len, &text_p);
	if (ret)
		return ret;
	ret = kvc_arena_take(c, max * sizeof(*out), &tokens_p);
	if (ret)
		goto out_text;
	memcpy(text_p, text, len);
	t.text_off = kvc_off(c, text_p);
	t.tokens_off = kvc_off(c, tokens_p);
	t.n_tokens = max;
	ret = call_with(c, &e, &t, sizeof(t));
	if (ret > 0 && max)
		memcpy(out, tokens_p, at_most((size_t)ret, max) * sizeof(*out));
	kvc_free(c, tokens_p);
out_text:
	kvc_free(c, text_p);
	return ret;
}

int kvc_detokenize(struct kvc *c, const char *model, const uint32_t *tokens,
		   size_t n, char *out, size_t max)
{
	struct kv_sqe e = { .opcode = KV_OP_DETOKENIZE };
	struct kv_tokenize t = { .n_tokens = n, .text_bytes = max };
	void *text_p, *tokens_p;
	int ret;

	ret = set_model(t.model, model);
	if (ret)
		return ret;
	if (n > SIZE_MAX / sizeof(*tokens))
		return -EMSGSIZE;
	ret = kvc_arena_take(c, n * sizeof(*tokens), &tokens_p);
	if (ret)
		return ret;
	ret = kvc_arena_take(c, max, &text_p);
	if (ret)
		goto out_tokens;
	memcpy(tokens_p, tokens, n * sizeof(*tokens));
	t.text_off = kvc_off(c, text_p);
	t.tokens_off = kvc_off(c, tokens_p);
	ret = call_with(c, &e, &t, sizeof(t));
	if (ret > 0 && max)
		memcpy(out, text_p, at_most((size_t)ret, max));
	kvc_free(c, text_p);
out_tokens:
	kvc_free(c, tokens_p);
	return ret;
}

/* Ask with this much room; the size of the answer, or -errno. */
static int query_once(struct kvc *c, struct kv_query *q, size_t room,
		      char **out)
{
	struct kv_sqe e = { .opcode = KV_OP_QUERY };
	void *p;
	int ret;

	ret = kvc_arena_take(c, room, &p);
	if (ret)
		return ret;
	q->out_off = kvc_off(c, p);
	q->out_bytes = room;
	ret = call_with(c, &e, q, sizeof(*q));
	if (ret >= 0 && (size_t)ret <= room) {
		*out = malloc((size_t)ret + 1);
		if (*out) {
			memcpy(*out, p, (size_t)ret);
			(*out)[ret] = '\0';
		} else {
			ret = -ENOMEM;
		}
	}
	kvc_free(c, p);
	return ret;
}

int kvc_query(struct kvc *c, const char *what, const char *arg, char **out)
{
	struct kv_query q = { 0 };
	size_t room = 65536;
	int ret;

	if (strlen(what) >= sizeof(q.what) ||
	    (arg && strlen(arg) >= sizeof(q.arg)))
		return -EINVAL;
	memcpy(q.what, what, strlen(what));
	if (arg)
		memcpy(q.arg, arg, strlen(arg));
	for (;;) {
		ret = query_once(c, &q, room, out);
		if (ret < 0 || (size_t)ret <= room)
			return ret < 0 ? ret : 0;
		room = (size_t)ret + (size_t)ret / 4; /* it may grow */
	}
}
