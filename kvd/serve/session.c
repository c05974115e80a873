/*
 * session.c - geometries and sequences of one client
 *
 * Handles of sequences are an index and a generation: a handle that was freed is not
 * taken for a newer sequence.
 */
#include "kvd/serve/tenant.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_GEOMETRIES 256u
#define INDEX_BITS     16u
#define MAX_SEQS       ((1u << INDEX_BITS) - 1)
#define MAX_TOKENS     (1ull << 24)
#define DEFAULT_TOKENS 65536u

/* ---- geometries ------------------------------------------------------------ */

static int geometry_ok(const struct serve_geometry *g)
{
	const uint32_t n_rot = g->n_rot ? g->n_rot : g->head_dim;

	if (!g->n_layers || g->n_layers > 256 || !g->n_kv_heads ||
	    g->n_kv_heads > 256 || !g->n_heads || g->n_heads > 256 ||
	    g->n_heads % g->n_kv_heads)
		return 0;
	if (g->head_dim < KERN_HEAD_DIM_MIN ||
	    g->head_dim > KERN_HEAD_DIM_MAX || g->head_dim % 8)
		return 0;
	if (g->type != KERN_F32 && g->type != KERN_F16 && g->type != KERN_BF16)
		return 0;
	if (g->rotary > KERN_ROPE_HALVES || n_rot > g->head_dim || n_rot % 2)
		return 0;
	if (g->rotary && !(isfinite(g->theta) && g->theta > 0))
		return 0;
	return isfinite(g->rope_scale) && g->rope_scale >= 0 &&
	       isfinite(g->scale) && g->page_tokens <= 4096 &&
	       (g->page_tokens % KERN_KV_BLOCK == 0 || g->page_tokens == 1) &&
	       g->page_layers <= g->n_layers;
}

int serve_geometry(struct serve_session *ss, const struct serve_geometry *g)
{
	struct session_geometry *sg;
	int ret;

	if (!geometry_ok(g))
		return -EINVAL;
	/* kernels of the CPU know no such order */
	if (g->page_tokens == 1 && !pager_device(ss->tenant->pager))
		return -ENOTSUP;
	if (ss->tenant->serve->device && !kern_gpu_head_dim_ok(g->head_dim))
		return -ENOTSUP;
	if (ss->n_geometries == MAX_GEOMETRIES)
		return -EDQUOT;
	sg = realloc(ss->geometries, (ss->n_geometries + 1) * sizeof(*sg));
	if (!sg)
		return -ENOMEM;
	ss->geometries = sg;
	sg += ss->n_geometries;
	sg->layout = (struct kv_layout){
		.n_layers = g->n_layers,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.elem_bytes = (uint32_t)kern_type_bytes(g->type),
		.page_tokens = g->page_tokens,
		.page_layers = g->page_layers,
		.page_align = pager_page_align(ss->tenant->pager),
	};
	sg->shape = (struct attn_shape){
		.type = g->type,
		.n_heads = g->n_heads,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.scale = g->scale != 0 ? g->scale
				       : 1.0f / sqrtf((float)g->head_dim),
		.rope = { .kind = g->rotary,
			  .n_rot = g->n_rot ? g->n_rot : g->head_dim,
			  .theta = g->theta,
			  .scale = g->rope_scale > 0 ? g->rope_scale : 1 },
	};
	ret = kv_layout_init(&sg->layout);
	return ret ? ret : (int)++ss->n_geometries;
}

/* ---- sequences ---------------------------------------------------------------- */

struct session_seq *session_seq_find(struct serve_session *ss, uint32_t handle)
{
	const uint32_t i = (handle & MAX_SEQS) - 1;

	if (!handle || i >= ss->n_seq_room || !ss->seqs[i] ||
	    ss->seqs[i]->handle != handle)
		return NULL;
	return ss->seqs[i];
}

/* A free place in the table; its index, or -errno. */
static int free_place(struct serve_session *ss)
{
	const uint32_t room = ss->n_seq_room ? 2 * ss->n_seq_room : 16;
	const uint32_t first = ss->n_seq_room;
	struct session_seq **s;

	for (uint32_t i = 0; i < first; i++)
		if (!ss->seqs[i])
			return (int)i;
	if (room > MAX_SEQS)
		return -EDQUOT;
	s = realloc(ss->seqs, room * sizeof(struct session_seq *));
	if (!s)
		return -ENOMEM;
	memset(s + ss->n_seq_room, 0,
	       (room - ss->n_seq_room) * sizeof(struct session_seq *));
	ss->seqs = s;
	ss->n_seq_room = room;
	return (int)first;
}

static int new_seq(struct serve_session *ss, uint32_t geometry,
		   uint64_t max_tokens, struct session_seq **out)
{
	struct serve_tenant *t = ss->tenant;
	const struct session_geometry *g = &ss->geometries[geometry - 1];
	struct session_seq *s;
	int place;

	if (t->n_sequences >= t->conf->max_sequences)
		return -EDQUOT;
	place = free_place(ss);
	if (place < 0)
		return place;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->layer_tokens = calloc(g->layout.n_layers, sizeof(uint64_t));
	if (!s->layer_tokens) {
		free(s);
		return -ENOMEM;
	}
	/* by token: so that all of it has one stride */
	seq_init(&s->seq, t->pool, &g->layout,
		 g->layout.order == LAYOUT_BY_TOKEN ? (uint32_t)max_tokens
						    : SERVE_SEGMENT_TOKENS);
	s->geometry = geometry;
	s->max_tokens = max_tokens;
	s->handle = (t->serve->next_seq++ & 0x7fff) << INDEX_BITS |
		    (uint32_t)(place + 1);
	ss->seqs[place] = s;
	t->n_sequences++;
	*out = s;
	return (int)s->handle;
}

int serve_seq_new(struct serve_session *ss, uint32_t geometry,
		  uint64_t max_tokens)
{
	struct session_seq *s;

	if (!geometry || geometry > ss->n_geometries)
		return -ENOENT;
	if (max_tokens > MAX_TOKENS)
		return -EINVAL;
	return new_seq(ss, geometry, max_tokens ? max_tokens : DEFAULT_TOKENS,
		       &s);
}

static void free_seq(struct serve_session *ss, struct session_seq *s)
{
	ss->seqs[(s->handle & MAX_SEQS) - 1] = NULL;
	seq_copy_done(&s->copy);
	seq_fini(&s->seq);
	free(s->layer_tokens);
	free(s);
	ss->tenant->n_sequences--;
	tenant_kick(ss->tenant);
}

void session_free_seqs(struct serve_session *ss)
{
	for (uint32_t i = 0; i < ss->n_seq_room; i++)
		if (ss->seqs[i])
			free_seq(ss, ss->seqs[i]);
	free(ss->seqs);
	ss->seqs = NULL;
	ss->n_seq_room = 0;
}

int serve_seq_free(struct serve_session *ss, uint32_t seq)
{
	struct session_seq *s = session_seq_find(ss, seq);

	if (!s)
		return -ENOENT;
	if (s->n_busy || s->n_tails)
		return -EBUSY;
	free_seq(ss, s);
	return 0;
}

int session_seq_settled(const struct session_seq *s)
{
	for (uint32_t l = 0; l < s->seq.layout.n_layers; l++)
		if (s->layer_tokens[l] != s->seq.n_tokens)
			return 0;
	return !s->copy.n;
}

int serve_seq_fork(struct serve_session *ss, uint32_t seq)
{
	struct session_seq *s = session_seq_find(ss, seq), *f;
	int handle, ret;

	if (!s)
		return -ENOENT;
	if (s->n_busy || s->n_tails || !session_seq_settled(s))
		return -EBUSY;
	handle = new_seq(ss, s->geometry, s->max_tokens, &f);
	if (handle < 0)
		return handle;
	ret = seq_fork(&f->seq, &s->seq);
	if (ret) {
		free_seq(ss, f);
		return ret;
	}
	memcpy(f->layer_tokens, s->layer_tokens,
	       s->seq.layout.n_layers * sizeof(uint64_t));
	return handle;
}

int serve_seq_seal(struct serve_session *ss, uint32_t seq)
{
	struct session_seq *s = session_seq_find(ss, seq);

	if (!s)
		return -ENOENT;
	if (s->n_busy || s->n_tails || !session_seq_settled(s))
		return -EBUSY;
	seq_seal(&s->seq);
	tenant_kick(ss->tenant); /* its open segment had room to spare */
	return 0;
}

int serve_seq_skip(struct serve_session *ss, uint32_t seq, uint64_t from,
		   uint64_t to)
{
	struct session_seq *s = session_seq_find(ss, seq);

	if (!s)
		return -ENOENT;
	if (s->n_busy)
		return -EBUSY;
	return seq_skip(&s->seq, from, to);
}

int serve_seq_edit(struct serve_session *ss, uint32_t seq, uint64_t at,
		   uint64_t n_removed, uint64_t n_new)
{
	struct session_seq *s = session_seq_find(ss, seq);
	uint64_t rest;
	int ret;

	if (!s)
		return -ENOENT;
	if (s->n_busy || s->n_tails || !session_seq_settled(s))
		return -EBUSY;
	if (at > s->seq.n_tokens || n_removed > s->seq.n_tokens - at)
		return -EINVAL;
	rest = s->seq.n_tokens - at - n_removed;
	if (n_new > s->max_tokens || at + n_new + rest > s->max_tokens)
		return -ENOSPC;
	ret = seq_edit(&s->seq, at, n_removed, (uint32_t)n_new);
	if (ret)
		return ret;
	s->hole_end = rest && n_new ? at + n_new : 0;
	for (uint32_t l = 0; l < s->seq.layout.n_layers; l++)
		s->layer_tokens[l] = s->hole_end ? at : s->seq.n_tokens;
	stat_add(ss->tenant->st_edits, 1);
	stat_add(ss->tenant->st_edit_tokens, rest);
	tenant_kick(ss->tenant);
	return 0;
}

int serve_seq_truncate(struct serve_session *ss, uint32_t seq,
		       uint64_t n_tokens)
{
	struct session_seq *s = session_seq_find(ss, seq);

	if (!s)
		return -ENOENT;
	if (s->n_busy || s->n_tails)
		return -EBUSY;
	if (n_tokens > s->seq.n_tokens)
		return -EINVAL;
	seq_truncate(&s->seq, n_tokens);
	if (s->copy.n && seq_open_segment(&s->seq) != s->copy.dst)
		seq_copy_done(&s->copy); /* the place it would go to is gone */
	tenant_kick(ss->tenant);
	if (s->hole_end >= n_tokens)
		s->hole_end = 0; /* what is left of it is the end */
	for (uint32_t l = 0; l < s->seq.layout.n_layers; l++)
		s->layer_tokens[l] = KV_MIN(s->layer_tokens[l], n_tokens);
	return 0;
}

int serve_seq_info(struct serve_session *ss, uint32_t seq,
		   struct serve_seq_info *out)
{
	struct session_seq *s = session_seq_find(ss, seq);

	if (!s)
		return -ENOENT;
	memset(out, 0, sizeof(*out));
	out->n_tokens = s->seq.n_tokens;
	for (uint32_t i = 0; i < s->seq.n_entries; i++) {
		const struct seq_entry *e = &s->seq.entries[i];

		out->n_sealed += e->seg->sealed ? e->n : 0;
		out->n_pages += range_n_pages(e->seg->range);
		out->n_resident += range_n_resident(e->seg->range);
	}
	return 0;
}

int serve_seq_shape(struct serve_session *ss, uint32_t seq, size_t *row_q_bytes,
		    size_t *row_kv_bytes)
{
	struct session_seq *s = session_seq_find(ss, seq);
	const struct attn_shape *g;
	size_t head;

	if (!s)
		return -ENOENT;
	g = &ss->geometries[s->geometry - 1].shape;
	head = g->head_dim * kern_type_bytes(g->type);
	*row_q_bytes = g->n_heads * head;
	*row_kv_bytes = g->n_kv_heads * head;
	return 0;
}
