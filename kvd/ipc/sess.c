/*
 * sess.c - one client: its channel, its requests in flight, all it holds
 *
 * Its end comes by the control socket (EOF, or a message that is none of kv_ctl's),
 * by the pidfd of the process that connected (a forked child may hold the
 * socket), by nonsense in the ring, or because the daemon stops. Loop thread.
 */
#include "kvd/ipc/sess.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"

#define BURST	     32 /* entries of one session per turn: fairness */
#define STALL_MS_MAX 64u /* between looks at a client that does not reap */

/* ---- requests in flight ------------------------------------------------ */

struct sess_req *sess_req_begin(struct sess *s, const struct kv_sqe *e)
{
	struct list *n = list_pop(&s->free);
	struct sess_req *r = list_entry(n, struct sess_req, node);

	assert(n); /* (1): n_inflight < cq_entries, checked by sess_poll() */
	r->user_data = e->user_data;
	r->opcode = e->opcode;
	r->copy = NULL;
	r->copy_bytes = 0;
	r->late = 0;
	memset(&r->u, 0, sizeof(r->u));
	list_init(&r->drain);
	list_push(&s->inflight, n);
	s->n_inflight++;
	return r;
}

int sess_req_copy(struct sess_req *r, size_t bytes, void **out)
{
	struct sess *s = r->sess;

	assert(!r->copy);
	if (bytes > SESS_COPY_MAX - s->copied_bytes)
		return -EDQUOT;
	r->copy = malloc(bytes ? bytes : 1);
	if (!r->copy)
		return -ENOMEM;
	r->copy_bytes = bytes;
	s->copied_bytes += bytes;
	*out = r->copy;
	return 0;
}

void sess_req_drop(struct sess_req *r)
{
	struct sess *s = r->sess;

	s->copied_bytes -= r->copy_bytes;
	free(r->copy);
	r->copy = NULL;
	list_del(&r->drain);
	list_del(&r->node);
	list_push_front(&s->free, &r->node);
	s->n_inflight--;
}

static void finish_close(struct sess *s);

void sess_req_end(struct sess_req *r, int res, uint64_t arg0, uint64_t arg1)
{
	const struct kv_cqe e = { .user_data = r->user_data,
				  .res = res,
				  .arg = { arg0, arg1 } };
	struct sess *s = r->sess;

	sess_req_drop(r);
	if (s->closing) {
		finish_close(s);
		return;
	}
	chan_post(&s->ch, &e);
	chan_flush(&s->ch);
	sess_heat(s);
}

int sess_req_more(struct sess_req *r, int res, uint64_t arg0)
{
	const struct kv_cqe e = { .user_data = r->user_data,
				  .res = res,
				  .flags = KV_CQE_MORE,
				  .arg = { arg0 } };
	struct sess *s = r->sess;

	/* Keep a quarter free, or a slow reader's stream stops all else. */
	if (s->closing ||
	    chan_has_room(&s->ch, s->n_inflight + s->ch.cq.n / 4) <= 0)
		return 0;
	chan_post(&s->ch, &e);
	chan_flush(&s->ch);
	return 1;
}

/* ---- the ring ---------------------------------------------------------- */

void sess_heat(struct sess *s)
{
	if (s->closing)
		return;
	s->idle_turns = 0;
	chan_disarm(&s->ch);
	list_del(&s->node);
	list_push(&s->ipc->hot, &s->node);
}

static void stall_over(struct loop_timer *t)
{
	sess_heat(container_of(t, struct sess, stall));
}

/* Entries wait for the client to read completions: look again by and by. */
static void stall(struct sess *s)
{
	s->stall_ms = s->stall_ms ? KV_MIN(2 * s->stall_ms, STALL_MS_MAX) : 1;
	loop_timer_set(s->ipc->loop, &s->stall,
		       clock_ns() + (uint64_t)s->stall_ms * 1000000u);
	list_del(&s->node);
	list_push(&s->ipc->stalled, &s->node);
	s->idle_turns = 0;
	(void)kv_ring_arm(&s->ch.sq); /* a client that made room may ring */
}

static void take(struct sess *s, const struct kv_sqe *e)
{
	const int res = dispatch(s, e);
	const struct kv_cqe c = { .user_data = e->user_data, .res = res };

	if (res != DISPATCH_LATER && !s->closing)
		chan_post(&s->ch, &c);
}

int sess_poll(struct sess *s)
{
	struct kv_sqe e;
	int n = 0, ret = 1;

	while (n < BURST && !s->closing && chan_pending(&s->ch)) {
		ret = chan_has_room(&s->ch, s->n_inflight);
		if (ret <= 0)
			break;
		ret = chan_pop(&s->ch, &e);
		if (ret <= 0)
			break;
		n++;
		take(s, &e);
	}
	if (s->closing)
		return 1;
	if (n) {
		chan_flush(&s->ch);
		chan_taken(&s->ch);
		s->n_entries += (uint32_t)n;
		s->stall_ms = 0;
		stat_add(s->ipc->st_entries, (uint64_t)n);
	}
	if (ret < 0) {
		sess_close(s, -EPROTO);
		return 1;
	}
	if (!n && !ret)
		stall(s); /* an entry is there, room is not */
	return n;
}

static void bell_ready(struct loop_fd *f, uint32_t events)
{
	struct sess *s = container_of(f, struct sess, bell);

	(void)events; /* edge-triggered, never read: each write is an event */
	stat_add(s->ipc->st_doorbells, 1);
	sess_heat(s);
}

/* ---- start and end ----------------------------------------------------- */

static void sock_ready(struct loop_fd *f, uint32_t events)
{
	struct sess *s = container_of(f, struct sess, sock);

	int ret = -ECONNRESET;

	if (!(events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)))
		ret = sess_read_ctl(s);
	if (ret < 0)
		sess_close(s, ret);
}

static void pidfd_ready(struct loop_fd *f, uint32_t events)
{
	(void)events;
	sess_close(container_of(f, struct sess, pidfd), -ECONNRESET);
}

static void sess_free(struct sess *s)
{
	chan_close(&s->ch);
	if (s->faults_fd >= 0)
		(void)close(s->faults_fd); /* it was never used */
	free(s->reqs);
	free(s);
}

static void finish_close(struct sess *s)
{
	struct ipc *ipc = s->ipc;

	if (!s->serve_closed || s->n_inflight)
		return;
	list_del(&s->node);
	ipc->n_sessions--;
	if (!s->tenant[0])
		ipc->n_admin--;
	stat_set(ipc->st_sessions, ipc->n_sessions);
	log_debug("sess", "session %u gone", s->id);
	sess_free(s);
	ipc_session_gone(ipc);
}

static void serve_closed(struct wait *w, int ret)
{
	struct sess *s = container_of(w, struct sess, closed);

	(void)ret; /* there is no failure */
	s->ss = NULL;
	s->serve_closed = 1;
	finish_close(s);
}

static void unwatch_close(struct ipc *ipc, struct loop_fd *f)
{
	loop_unwatch(ipc->loop, f);
	(void)close(f->fd); /* nothing can be lost */
}

/* Drain requests and late queries are ours, not serve's: nobody else would end them. */
static void end_drains(struct sess *s)
{
	list_for_each_safe(n, &s->inflight) {
		struct sess_req *r = list_entry(n, struct sess_req, node);

		if (list_empty(&r->drain))
			continue;
		if (r->late)
			admin_late_free(r);
		sess_req_drop(r);
	}
}

/* Why it ends; that a client has done its work is no error. */
static const char *reason(int err)
{
	switch (-err) {
	case ECONNRESET:
		return "closed by the client";
	case ESHUTDOWN:
		return "the daemon stops";
	case EPROTO:
		return "the client broke the protocol";
	default:
		return strerror(-err);
	}
}

void sess_close(struct sess *s, int err)
{
	struct ipc *ipc = s->ipc;

	if (s->closing)
		return;
	s->closing = 1;
	log_info("sess", "session %u (%s, uid %u, pid %d) ends: %s", s->id,
		 s->name, (unsigned int)s->uid, (int)s->pid, reason(err));
	if (err == -EPROTO)
		stat_add(ipc->st_broken, 1);
	chan_shut(&s->ch, err);
	loop_timer_cancel(ipc->loop, &s->stall);
	loop_unwatch(ipc->loop, &s->bell);
	unwatch_close(ipc, &s->pidfd);
	unwatch_close(ipc, &s->sock);
	list_del(&s->node);
	list_push(&ipc->closing, &s->node);
	end_drains(s);
	if (s->ss) {
		serve_session_close(s->ss, &s->closed);
		return;
	}
	/* Not inside the caller, who still looks at s. */
	s->serve_closed = 1;
	loop_defer(ipc->loop, &s->free_call);
}

static void free_later(struct loop_call *c)
{
	finish_close(container_of(c, struct sess, free_call));
}

static int make_reqs(struct sess *s, uint32_t n)
{
	s->reqs = calloc(n, sizeof(*s->reqs));
	if (!s->reqs)
		return -ENOMEM;
	list_init(&s->free);
	list_init(&s->inflight);
	for (uint32_t i = 0; i < n; i++) {
		s->reqs[i].sess = s;
		list_init(&s->reqs[i].drain);
		list_push(&s->free, &s->reqs[i].node);
	}
	return 0;
}

static int watch_all(struct sess *s, const struct sess_args *a)
{
	struct loop *loop = a->ipc->loop;
	int ret;

	s->sock = (struct loop_fd){ a->sock, EPOLLIN | EPOLLRDHUP, sock_ready };
	s->pidfd = (struct loop_fd){ a->pidfd, EPOLLIN, pidfd_ready };
	s->bell = (struct loop_fd){ s->ch.doorbell, EPOLLIN | EPOLLET,
				    bell_ready };
	ret = loop_watch(loop, &s->sock);
	if (ret)
		return ret;
	ret = loop_watch(loop, &s->pidfd);
	if (ret)
		goto out_sock;
	ret = loop_watch(loop, &s->bell);
	if (!ret)
		return 0;
	loop_unwatch(loop, &s->pidfd);
out_sock:
	loop_unwatch(loop, &s->sock);
	return ret;
}

/* Its place in the configuration; CONF_MAX_TENANTS: it has none. */
static uint32_t tenant_number(const struct sess_args *a)
{
	const struct conf *c = a->ipc->conf;

	for (uint32_t i = 0; i < c->n_tenants; i++)
		if (!strcmp(c->tenants[i].name, a->tenant_name))
			return i;
	return CONF_MAX_TENANTS;
}

static void describe(struct sess *s, const struct sess_args *a)
{
	s->ipc = a->ipc;
	s->id = ++a->ipc->next_session;
	s->flags = a->flags;
	s->uid = a->uid;
	s->pid = a->pid;
	s->opened_ns = clock_ns();
	memcpy(s->name, a->hello->name, sizeof(s->name));
	s->name[sizeof(s->name) - 1] = '\0';
	strncpy(s->tenant, a->tenant_name, sizeof(s->tenant) - 1);
	s->i_tenant = tenant_number(a);
	s->closed.done = serve_closed;
	s->stall.run = stall_over;
	s->free_call.run = free_later;
	s->faults_fd = -1;
	list_init(&s->node);
	list_init(&s->stall.node);
}

int sess_new(struct sess **out, const struct sess_args *a, int *memfd)
{
	struct ipc *ipc = a->ipc;
	struct sess *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return -ENOMEM;
	describe(s, a);
	ret = make_reqs(s, a->hello->cq_entries);
	if (ret)
		goto out_free;
	ret = chan_open(&s->ch, a->hello->sq_entries, a->hello->cq_entries,
			a->hello->arena_bytes, a->features, memfd);
	if (ret)
		goto out_free;
	ret = watch_all(s, a);
	if (ret)
		goto out_chan;
	ret = a->tenant ? serve_session_open(a->tenant, &s->ss) : 0;
	if (ret)
		goto out_watch;
	ipc->n_sessions++;
	if (!s->tenant[0])
		ipc->n_admin++;
	list_push(&ipc->hot, &s->node);
	stat_add(ipc->st_accepted, 1);
	stat_set(ipc->st_sessions, ipc->n_sessions);
	*out = s;
	return 0;

out_watch:
	loop_unwatch(ipc->loop, &s->bell);
	loop_unwatch(ipc->loop, &s->pidfd);
	loop_unwatch(ipc->loop, &s->sock);
out_chan:
	(void)close(*memfd); /* nothing was written */
	chan_close(&s->ch);
out_free:
	free(s->reqs);
	free(s);
	return ret;
}
