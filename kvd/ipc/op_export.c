/*
 * op_export.c - device memory between the daemon and a client: pages that the client maps,
 * as descriptors over the control socket
 *
 * One message of the socket carries the frames of some pages and goes before the
 * completion of the entry that asked for them. A client that does not read its socket gets
 * -EAGAIN; descriptors that were not sent are closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "kvd/ipc/sess.h"

#define MAX_ENTRIES 4096u

/* ---- export -------------------------------------------------------------------- */

static void write_export(const struct sess_export *a, struct kv_export *to)
{
	const struct serve_export *x = &a->export;

	to->n_entries = x->n_entries;
	to->flags = x->by_token ? KV_EXPORT_BY_TOKEN : 0;
	to->n_tokens = x->n_tokens;
	to->page_bytes = x->page_bytes;
	to->frame_bytes = x->frame_bytes;
	to->token_stride = x->token_stride;
	to->head_stride = x->head_stride;
	to->plane_stride = x->plane_stride;
	to->layer_stride = x->layer_stride;
	to->n_layers = x->n_layers;
	to->n_kv_heads = x->n_kv_heads;
	to->head_dim = x->head_dim;
	to->elem_bytes = x->elem_bytes;
	to->page_tokens = x->page_tokens;
	to->page_layers = x->page_layers;
	memcpy(to->uuid, x->uuid, sizeof(to->uuid));
}

static void write_entry(const struct serve_export_entry *e,
			struct kv_export_entry *to)
{
	*to = (struct kv_export_entry){
		.export_id = e->id,
		.flags = e->is_tail ? KV_EXPORT_WRITE : 0,
		.n_pages = e->n_pages,
		.n_room = e->n_room,
		.from = e->from,
		.n_tokens = e->n_tokens,
		.pos = e->pos,
		.base_pos = e->base_pos,
	};
}

static void export_done(struct wait *w, int ret)
{
	struct sess_export *a =
		container_of(w, struct sess_export, export.wait);
	struct sess_req *r = container_of(a, struct sess_req, u.export);
	struct serve_export *x = &a->export;
	struct kv_export_entry *to;

	if (!ret && !r->sess->closing) {
		write_export(a, chan_at(&r->sess->ch, a->off,
					sizeof(struct kv_export), 8));
		to = chan_at(&r->sess->ch, a->entries_off,
			     x->n_entries * sizeof(*to), 8);
		for (uint32_t i = 0; i < x->n_entries; i++)
			write_entry(&x->entries[i], &to[i]);
	}
	sess_req_end(r, ret ? ret : (int)x->n_entries, 0, 0);
}

/* Copy and check what the client asks. */
static int read_export(struct sess_req *r, uint64_t off)
{
	struct sess_export *a = &r->u.export;
	struct kv_export in;
	void *p;
	int ret = chan_read(&r->sess->ch, off, &in, sizeof(in));

	if (ret)
		return ret;
	if (in.flags & ~KV_EXPORT_TAIL || in.n_entries > MAX_ENTRIES)
		return -EINVAL;
	for (size_t i = 0; i < KV_ARRAY_LEN(in._rsvd); i++)
		if (in._rsvd[i])
			return -EINVAL;
	a->off = off;
	a->entries_off = in.entries_off;
	if (!chan_at(&r->sess->ch, off, sizeof(in), 8) ||
	    !chan_at(&r->sess->ch, in.entries_off,
		     in.n_entries * sizeof(struct kv_export_entry), 8))
		return -EINVAL;
	a->export.with_tail = in.flags & KV_EXPORT_TAIL ? 1 : 0;
	a->export.n_room = in.n_entries;
	ret = sess_req_copy(r, (in.n_entries + 1) * sizeof(*a->export.entries),
			    &p);
	a->export.entries = p;
	return ret;
}

int op_export(struct sess *s, const struct kv_sqe *e)
{
	struct sess_req *r = sess_req_begin(s, e);
	struct sess_export *a = &r->u.export;
	int ret;

	*a = (struct sess_export){ .export = { .wait = { export_done },
					       .seq = e->seq } };
	ret = read_export(r, e->arg[0]);
	if (!ret)
		ret = serve_export(s->ss, &a->export);
	if (!ret)
		return DISPATCH_LATER;
	if (ret == -EMSGSIZE)
		write_export(a, chan_at(&s->ch, a->off,
					sizeof(struct kv_export), 8));
	sess_req_drop(r);
	return ret;
}

int op_unexport(struct sess *s, const struct kv_sqe *e)
{
	return e->arg[0] > UINT32_MAX
		       ? -ENOENT
		       : serve_unexport(s->ss, (uint32_t)e->arg[0]);
}

int op_seq_wrote(struct sess *s, const struct kv_sqe *e)
{
	return serve_seq_wrote(s->ss, e->seq, e->arg[0]);
}

/* ---- frames --------------------------------------------------------------------- */

static int send_frames(struct sess *s, const struct kv_ctl *c, const int *fds,
		       uint32_t n)
{
	struct kv_ctl copy = *c;
	union {
		char buf[CMSG_SPACE(KV_FRAMES_MAX * sizeof(int))];
		struct cmsghdr align;
	} ctl = { { 0 } };
	struct iovec iov = { &copy, sizeof(copy) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = ctl.buf,
			      .msg_controllen = CMSG_SPACE(n * sizeof(int)) };
	struct cmsghdr *m = CMSG_FIRSTHDR(&msg);

	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(m), fds, n * sizeof(int));
	if (sendmsg(s->sock.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}

static void pages_done(struct wait *w, int ret)
{
	struct sess_pages *a = container_of(w, struct sess_pages, pages.wait);
	struct sess_req *r = container_of(a, struct sess_req, u.pages);
	const struct serve_export_pages *p = &a->pages;
	const struct kv_ctl c = { .magic = KV_MAGIC,
				  .kind = KV_CTL_FRAMES,
				  .id = p->id,
				  .addr = p->first,
				  .n_bytes = p->n_fds };

	if (!ret) {
		ret = r->sess->closing
			      ? -ECANCELED
			      : send_frames(r->sess, &c, a->fds, p->n_fds);
		for (uint32_t i = 0; i < p->n_fds; i++)
			(void)close(a->fds[i]); /* the client has its own */
	}
	sess_req_end(r, ret ? ret : (int)p->n_fds, 0, 0);
}

int op_export_pages(struct sess *s, const struct kv_sqe *e)
{
	struct sess_req *r;
	struct sess_pages *a;
	int ret;

	if (e->arg[0] > UINT32_MAX)
		return -ENOENT;
	if (e->arg[1] > UINT32_MAX || e->arg[2] > UINT32_MAX)
		return -EINVAL;
	r = sess_req_begin(s, e);
	a = &r->u.pages;
	a->pages = (struct serve_export_pages){
		.wait = { pages_done },
		.id = (uint32_t)e->arg[0],
		.first = (uint32_t)e->arg[1],
		.n = (uint32_t)e->arg[2],
		.fds = a->fds,
		.n_fds_room = KV_FRAMES_MAX,
	};
	ret = serve_export_pages(s->ss, &a->pages);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret;
}

/* ---- buffers --------------------------------------------------------------------- */

static void buffer_done(struct wait *w, int ret)
{
	struct sess_buffer *b =
		container_of(w, struct sess_buffer, buffer.wait);

	sess_req_end(container_of(b, struct sess_req, u.buffer),
		     ret ? ret : (int)b->buffer.id, 0, 0);
}

int op_buffer(struct sess *s, const struct kv_sqe *e)
{
	struct kv_buffer in;
	struct sess_req *r;
	struct serve_buffer *b;
	int ret = chan_read(&s->ch, e->arg[0], &in, sizeof(in));

	if (ret)
		return ret;
	if (in.flags & ~KV_BUFFER_EVENT || in._pad)
		return -EINVAL;
	for (size_t i = 0; i < KV_ARRAY_LEN(in._rsvd); i++)
		if (in._rsvd[i])
			return -EINVAL;
	r = sess_req_begin(s, e);
	b = &r->u.buffer.buffer;
	*b = (struct serve_buffer){ .wait = { buffer_done },
				    .with_event = in.flags & KV_BUFFER_EVENT,
				    .n_bytes = in.n_bytes };
	memcpy(&b->memory, in.memory, sizeof(b->memory));
	memcpy(&b->event, in.event, sizeof(b->event));
	ret = serve_buffer(s->ss, b);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret;
}

int op_buffer_free(struct sess *s, const struct kv_sqe *e)
{
	return e->arg[0] > UINT32_MAX
		       ? -ENOENT
		       : serve_buffer_free(s->ss, (uint32_t)e->arg[0]);
}
