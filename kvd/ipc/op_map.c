/*
 * op_map.c - KV_OP_MAP and the messages on the control socket that go with it
 *
 * The client's userfaultfd comes by the socket, the files go by it, each once; the
 * rest is entries of the ring. Descriptors that nobody asked for are closed at once,
 * whatever else the message says.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "kvd/base/log.h"
#include "kvd/ipc/sess.h"

static_assert(SERVE_MAP_HOLDS == KV_MAP_HOLDS &&
		      SERVE_HOLD(3u, 5u) == KV_HOLD(3u, 5u),
	      "one meaning");

#define MAX_ENTRIES 65536u
#define MAX_SKIP    (1u << 18) /* words: 16M tokens */

union ctl_buf {
	char buf[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

/* ---- the socket ---------------------------------------------------------- */

/* The first descriptor of the message, or -1; the others are closed. */
static int take_fd(struct msghdr *msg)
{
	int first = -1;

	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m;
	     m = CMSG_NXTHDR(msg, m)) {
		const size_t n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(fd));
			if (first < 0)
				first = fd;
			else
				(void)close(fd); /* not asked for */
		}
	}
	return first;
}

static void on_broken(struct serve_map_events *e)
{
	sess_close(container_of(e, struct sess, map_events), -EPROTO);
}

/* A message to the client; fd < 0: none goes with it. */
static int send_ctl(struct sess *s, const struct kv_ctl *c, int fd)
{
	struct kv_ctl copy = *c;
	union ctl_buf ctl = { { 0 } };
	struct iovec iov = { &copy, sizeof(copy) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *m;

	copy.magic = KV_MAGIC;
	if (fd >= 0) {
		msg.msg_control = ctl.buf;
		msg.msg_controllen = sizeof(ctl.buf);
		m = CMSG_FIRSTHDR(&msg);
		m->cmsg_level = SOL_SOCKET;
		m->cmsg_type = SCM_RIGHTS;
		m->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(m), &fd, sizeof(int));
	}
	if (sendmsg(s->sock.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}

/* Who does not read its messages would wait for ever: it ends instead. */
static void on_lost(struct serve_map_events *e, uint64_t addr, uint64_t n)
{
	struct sess *s = container_of(e, struct sess, map_events);
	const struct kv_ctl c = { .kind = KV_CTL_LOST,
				  .addr = addr,
				  .n_bytes = n };

	if (send_ctl(s, &c, -1))
		sess_close(s, -EPROTO);
}

static int is_faults(const struct kv_ctl *c, ssize_t n)
{
	return n == (ssize_t)sizeof(*c) && c->magic == KV_MAGIC &&
	       c->kind == KV_CTL_FAULTS && !c->id && !c->_pad && !c->addr &&
	       !c->n_bytes;
}

/* 0: it is in use, or waits until op_map() tries again. */
static int take_faults(struct sess *s, int fd)
{
	const int ret = s->faults_fd >= 0
				? -EALREADY
				: serve_map_faults(s->ss, fd, &s->map_events);

	if (ret != -ENOMEM && ret != -EMFILE && ret != -ENFILE)
		return ret;
	s->faults_fd = fd;
	return 0;
}

static int retry_faults(struct sess *s)
{
	int ret = 0;

	if (s->faults_fd >= 0)
		ret = serve_map_faults(s->ss, s->faults_fd, &s->map_events);
	if (!ret)
		s->faults_fd = -1;
	return ret;
}

/* MAP is -ENXIO then, and it is sent again. */
static int no_fd_left(const struct sess *s)
{
	log_warn("sess", "session %u: no descriptor left for its faults",
		 s->id);
	return 0;
}

int sess_read_ctl(struct sess *s)
{
	struct kv_ctl c;
	union ctl_buf ctl;
	struct iovec iov = { &c, sizeof(c) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = ctl.buf,
			      .msg_controllen = sizeof(ctl.buf) };
	ssize_t n;
	int fd, ret;

	n = recvmsg(s->sock.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -ECONNRESET;
	fd = take_fd(&msg);
	if (n == 0 && fd < 0)
		return -ECONNRESET;
	ret = -EPROTO;
	s->map_events.broken = on_broken;
	s->map_events.lost = on_lost;
	if (is_faults(&c, n) && fd >= 0 && s->ss &&
	    !(msg.msg_flags & MSG_CTRUNC))
		ret = take_faults(s, fd);
	else if (is_faults(&c, n) && fd < 0 && msg.msg_flags & MSG_CTRUNC)
		ret = no_fd_left(s);
	if (!ret)
		return 1;
	if (fd >= 0)
		(void)close(fd); /* it is nobody's */
	log_info("sess", "session %u: what it sent by the socket: %s", s->id,
		 strerror(-ret));
	return -EPROTO;
}

/* The file of this space, or that of its states, if the client does not have it. */
static int send_file(struct sess *s, enum kv_ctl_kind kind, uint32_t space,
		     uint64_t *sent)
{
	const struct kv_ctl c = { .kind = kind, .id = space };
	int fd, ret;

	if (!space || *sent >> (space % 64) & 1)
		return 0;
	if (space >= 64)
		return -EDQUOT;
	fd = kind == KV_CTL_SPACE ? serve_map_space(s->ss, space)
				  : serve_map_states(s->ss, space);
	if (fd < 0)
		return fd;
	ret = send_ctl(s, &c, fd);
	if (!ret)
		*sent |= 1ull << space;
	return ret;
}

/* ---- entries ---------------------------------------------------------------- */

/* Room of the answer, checked: where its parts lie in the arena. */
struct room {
	struct kv_map *map;
	struct kv_map_entry *entries;
	uint64_t *skip; /* or NULL: not asked for */
	const uint64_t *holds; /* or NULL: no states asked for */
};

static int read_map(struct sess *s, uint64_t off, struct kv_map *in,
		    struct room *to)
{
	int ret = chan_read(&s->ch, off, in, sizeof(*in));

	if (ret)
		return ret;
	if (in->flags & ~KV_MAP_STATES || in->n_entries > MAX_ENTRIES ||
	    in->n_skip > MAX_SKIP)
		return -EINVAL;
	for (size_t i = 0; i < KV_ARRAY_LEN(in->_rsvd); i++)
		if (in->_rsvd[i])
			return -EINVAL;
	to->map = chan_at(&s->ch, off, sizeof(*in), 8);
	to->entries = chan_at(&s->ch, in->entries_off,
			      in->n_entries * sizeof(*to->entries), 8);
	to->holds = NULL;
	if (in->flags & KV_MAP_STATES) {
		to->holds = chan_at(&s->ch, in->holds_off,
				    KV_MAP_HOLDS * sizeof(uint64_t), 8);
		if (!to->holds)
			return -EINVAL;
	} else if (in->holds_off) {
		return -EINVAL;
	}
	to->skip = NULL;
	if (in->skip_off != KV_NO_OFF) {
		to->skip = chan_at(&s->ch, in->skip_off,
				   in->n_skip * sizeof(uint64_t), 8);
		if (!to->skip)
			return -EINVAL;
	}
	return to->map && to->entries ? 0 : -EINVAL;
}

static void write_numbers(const struct serve_map *m, struct kv_map *to)
{
	to->n_entries = m->n_entries;
	to->flags = (m->copy ? KV_MAP_COPY : 0) |
		    (m->states ? KV_MAP_STATES : 0);
	to->n_skip = m->n_skip;
	to->n_tokens = m->n_tokens;
	to->page_bytes = m->page_bytes;
	to->n_layers = m->n_layers;
	to->n_kv_heads = m->n_kv_heads;
	to->head_dim = m->head_dim;
	to->elem_bytes = m->elem_bytes;
	to->page_tokens = m->page_tokens;
	to->page_layers = m->page_layers;
}

static void write_entry(const struct serve_map_entry *e,
			struct kv_map_entry *to)
{
	*to = (struct kv_map_entry){ .map = e->map,
				     .space = e->space,
				     .file_off = e->file_off,
				     .n_bytes = e->n_bytes,
				     .from = e->from,
				     .n_tokens = e->n_tokens,
				     .pos = e->pos,
				     .base_pos = e->base_pos };
}

/* Undo: what was mapped and cannot be told. */
static void unmap_all(struct sess *s, const struct serve_map *m)
{
	for (uint32_t i = 0; i < m->n_entries; i++)
		/* some twice */
		(void)serve_unmap(s->ss, m->entries[i].map, NULL);
}

static int map_to(struct sess *s, uint32_t seq, struct serve_map *m,
		  const struct room *to)
{
	int ret = serve_map_seq(s->ss, seq, m);

	if (!ret || ret == -EMSGSIZE)
		write_numbers(m, to->map);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < m->n_entries && !ret; i++) {
		ret = send_file(s, KV_CTL_SPACE, m->entries[i].space,
				&s->spaces_sent);
		if (!ret && m->states)
			ret = send_file(s, KV_CTL_STATES, m->entries[i].space,
					&s->states_sent);
		write_entry(&m->entries[i], &to->entries[i]);
	}
	if (ret) {
		unmap_all(s, m);
		return ret;
	}
	if (to->skip)
		memcpy(to->skip, m->skip, m->n_skip * sizeof(uint64_t));
	return (int)m->n_entries;
}

int op_map(struct sess *s, const struct kv_sqe *e)
{
	struct serve_map m = { 0 };
	struct room to;
	struct kv_map in;
	int ret;

	ret = read_map(s, e->arg[0], &in, &to);
	if (ret)
		return ret;
	/* it was sent before the entry, so it is there */
	ret = sess_read_ctl(s);
	if (ret < 0) {
		sess_close(s, ret);
		return ret;
	}
	ret = retry_faults(s);
	if (ret)
		return ret;
	m.holds = to.holds;
	m.n_room = in.n_entries;
	m.n_skip_room = to.skip ? in.n_skip : MAX_SKIP;
	m.entries = calloc(m.n_room + 1, sizeof(*m.entries));
	m.skip = calloc(m.n_skip_room + 1, sizeof(*m.skip));
	ret = m.entries && m.skip ? map_to(s, e->seq, &m, &to) : -ENOMEM;
	free(m.entries);
	free(m.skip);
	return ret;
}

int op_map_at(struct sess *s, const struct kv_sqe *e)
{
	if (e->arg[0] > UINT32_MAX)
		return -ENOENT;
	return serve_map_at(s->ss, (uint32_t)e->arg[0], e->arg[1]);
}

static void unmap_done(struct wait *w, int ret)
{
	sess_req_end(container_of(w, struct sess_req, u.unmap), ret, 0, 0);
}

int op_unmap(struct sess *s, const struct kv_sqe *e)
{
	struct sess_req *r;
	int ret;

	if (e->arg[0] > UINT32_MAX)
		return -ENOENT;
	r = sess_req_begin(s, e);
	r->u.unmap.done = unmap_done;
	ret = serve_unmap(s->ss, (uint32_t)e->arg[0], &r->u.unmap);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret < 0 ? ret : 0;
}
