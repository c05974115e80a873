/*
 * dispatch.c - one entry of the ring, checked, to one call of serve
 *
 * A table says per opcode which fields it uses; all others must be 0. Handles
 * are resolved by serve, against the session only.
 */
#include <errno.h>
#include <string.h>
#include "kvd/ipc/sess.h"

#define USES_SEQ    1u
#define USES_WAIT   2u /* KV_SQE_WAIT */
#define NO_TENANT   4u /* an administrator without a tenant may call it */
#define USES_ARG(n) ((uint32_t)(n) << 8) /* arg[0..n) */

struct op {
	uint32_t uses;
	int (*run)(struct sess *s, const struct kv_sqe *e);
};

static int op_nop(struct sess *s, const struct kv_sqe *e)
{
	(void)s;
	(void)e;
	return 0;
}

static int op_geometry(struct sess *s, const struct kv_sqe *e)
{
	struct kv_geometry g;
	int ret;

	ret = chan_read(&s->ch, e->arg[0], &g, sizeof(g));
	if (ret)
		return ret;
	for (size_t i = 0; i < KV_ARRAY_LEN(g._rsvd); i++)
		if (g._rsvd[i])
			return -EINVAL;
	return serve_geometry(s->ss, &(struct serve_geometry){
					     .n_layers = g.n_layers,
					     .n_heads = g.n_heads,
					     .n_kv_heads = g.n_kv_heads,
					     .head_dim = g.head_dim,
					     .type = g.type,
					     .rotary = g.rotary,
					     .n_rot = g.n_rot,
					     .theta = g.theta,
					     .rope_scale = g.rope_scale,
					     .scale = g.scale,
					     .page_tokens = g.page_tokens,
					     .page_layers = g.page_layers });
}

static int op_seq_new(struct sess *s, const struct kv_sqe *e)
{
	if (e->arg[0] > UINT32_MAX)
		return -ENOENT;
	return serve_seq_new(s->ss, (uint32_t)e->arg[0], e->arg[1]);
}

static int op_seq_free(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_free(s->ss, e->seq);
}

static int op_seq_fork(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_fork(s->ss, e->seq);
}

static int op_seq_truncate(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_truncate(s->ss, e->seq, e->arg[0]);
}

static int op_seq_seal(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_seal(s->ss, e->seq);
}

static int op_seq_skip(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_skip(s->ss, e->seq, e->arg[0], e->arg[1]);
}

static int op_seq_edit(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_edit(s->ss, e->seq, e->arg[0], e->arg[1], e->arg[2]);
}

static int op_seq_info(struct sess *s, const struct kv_sqe *e)
{
	struct kv_seq_info *to = chan_at(&s->ch, e->arg[0], sizeof(*to), 8);
	struct serve_seq_info info;
	int ret;

	if (!to)
		return -EINVAL;
	ret = serve_seq_info(s->ss, e->seq, &info);
	if (ret)
		return ret;
	*to = (struct kv_seq_info){ .n_tokens = info.n_tokens,
				    .n_sealed = info.n_sealed,
				    .n_pages = info.n_pages,
				    .n_resident = info.n_resident };
	return 0;
}

static int op_chunk_rm(struct sess *s, const struct kv_sqe *e)
{
	return serve_chunk_rm(s->ss, e->arg);
}

static const struct op ops[] = {
	[KV_OP_NOP] = { NO_TENANT, op_nop },
	[KV_OP_GEOMETRY] = { USES_ARG(1), op_geometry },
	[KV_OP_SEQ_NEW] = { USES_ARG(2), op_seq_new },
	[KV_OP_SEQ_FREE] = { USES_SEQ, op_seq_free },
	[KV_OP_SEQ_FORK] = { USES_SEQ, op_seq_fork },
	[KV_OP_SEQ_TRUNCATE] = { USES_SEQ | USES_ARG(1), op_seq_truncate },
	[KV_OP_SEQ_SEAL] = { USES_SEQ, op_seq_seal },
	[KV_OP_SEQ_SKIP] = { USES_SEQ | USES_ARG(2), op_seq_skip },
	[KV_OP_APPEND] = { USES_WAIT | USES_ARG(3), op_attend },
	[KV_OP_ATTEND] = { USES_WAIT | USES_ARG(3), op_attend },
	[KV_OP_SEQ_INFO] = { USES_SEQ | USES_ARG(1), op_seq_info },
	[KV_OP_MAP] = { USES_SEQ | USES_ARG(1), op_map },
	[KV_OP_MAP_AT] = { USES_ARG(2), op_map_at },
	[KV_OP_UNMAP] = { USES_ARG(1), op_unmap },
	[KV_OP_SEQ_EDIT] = { USES_SEQ | USES_ARG(3), op_seq_edit },
	[KV_OP_GENERATE] = { USES_WAIT | USES_ARG(1), op_generate },
	[KV_OP_CANCEL] = { USES_ARG(1), op_cancel },
	[KV_OP_CHUNK_PUT] = { USES_WAIT | USES_ARG(1), op_chunk_put },
	[KV_OP_CHUNK_RM] = { USES_ARG(2), op_chunk_rm },
	[KV_OP_TOKENIZE] = { USES_ARG(1), op_tokenize },
	[KV_OP_DETOKENIZE] = { USES_ARG(1), op_detokenize },
	[KV_OP_PERSIST] = { 0, op_persist },
	[KV_OP_EXPORT] = { USES_SEQ | USES_ARG(1), op_export },
	[KV_OP_EXPORT_PAGES] = { USES_ARG(3), op_export_pages },
	[KV_OP_UNEXPORT] = { USES_ARG(1), op_unexport },
	[KV_OP_SEQ_WROTE] = { USES_SEQ | USES_ARG(1), op_seq_wrote },
	[KV_OP_BUFFER] = { USES_ARG(1), op_buffer },
	[KV_OP_BUFFER_FREE] = { USES_ARG(1), op_buffer_free },
	[KV_OP_QUERY] = { NO_TENANT | USES_ARG(1), op_query },
};

int dispatch(struct sess *s, const struct kv_sqe *e)
{
	const struct op *op;
	uint32_t n_args;

	if (e->opcode >= KV_ARRAY_LEN(ops) || !ops[e->opcode].run)
		return -EINVAL;
	op = &ops[e->opcode];
	n_args = op->uses >> 8;
	if (e->_rsvd[0] || e->_rsvd[1] ||
	    e->flags & ~(op->uses & USES_WAIT ? KV_SQE_WAIT : 0u) ||
	    (e->seq && !(op->uses & USES_SEQ)))
		return -EINVAL;
	for (uint32_t i = n_args; i < KV_ARRAY_LEN(e->arg); i++)
		if (e->arg[i])
			return -EINVAL;
	if (!s->ss && !(op->uses & NO_TENANT))
		return -EACCES;
	return op->run(s, e);
}
