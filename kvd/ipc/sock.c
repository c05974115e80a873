/*
 * sock.c - listening sockets and the handshake
 *
 *   accept -> half open (credentials known, waits for kv_hello) -> sess_new()
 *                  |
 *                  +-- said nothing for a second, too many: dropped
 *
 *  (1) Half-open connections are bounded, in all and per uid, so that one uid
 *      cannot keep others out; they own a socket and a timer, nothing else.
 *  (2) Nothing here waits: sockets are non-blocking, one message each way.
 */
#include "kvd/ipc/sock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/ipc/sess.h"
#include "kvd/ipc/sockfile.h"

#define MAX_HALF	 128u
#define MAX_HALF_PER_UID 32u
#define HELLO_NS	 1000000000ull
#define ACCEPT_BURST	 16
#define PAUSE_NS	 100000000ull /* after EMFILE and the like */
#define MAX_GROUPS	 256u
#define MAX_ADMINS	 64u /* sessions without a tenant */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

struct listener {
	struct loop_fd fd;
	struct loop_timer pause;
	struct sock_set *set;
	const struct conf_tenant *tenant; /* of its own, or NULL */
	char path[CONF_PATH_MAX];
};

struct half {
	struct list node; /* set.free or set.half */
	struct loop_fd fd;
	struct loop_timer limit;
	struct listener *from;
	struct ucred cred;
};

struct sock_set {
	struct ipc *ipc;
	struct list free, half;
	struct half pool[MAX_HALF];
	uint32_t n_listeners;
	struct listener listeners[CONF_MAX_TENANTS + 1];
};

/* ---- the answer -------------------------------------------------------- */

static void set_fds(struct msghdr *msg, const int fds[2])
{
	struct cmsghdr *m = CMSG_FIRSTHDR(msg);

	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(m), fds, 2 * sizeof(int));
}

/* fds NULL: none. -errno when it could not be sent at once. */
static int answer(int sock, const struct kv_welcome *w, const int fds[2])
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} ctl = { { 0 } };
	struct kv_welcome copy = *w;
	struct iovec iov = { &copy, sizeof(copy) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fds) {
		msg.msg_control = ctl.buf;
		msg.msg_controllen = sizeof(ctl.buf);
		set_fds(&msg, fds);
	}
	if (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}

static void refuse(struct ipc *ipc, int sock, const struct ucred *cred, int err,
		   const char *text)
{
	struct kv_welcome w = { .magic = KV_MAGIC,
				.major = KV_ABI_MAJOR,
				.minor = KV_ABI_MINOR,
				.err = err };

	strncpy(w.text, text, sizeof(w.text) - 1);
	log_info("sock", "refused uid %u pid %d: %s (%s)",
		 (unsigned int)cred->uid, (int)cred->pid, text, strerror(-err));
	stat_add(ipc->st_refused, 1);
	(void)answer(sock, &w, NULL); /* the peer may be gone */
}

/* ---- half-open connections --------------------------------------------- */

static void half_drop(struct half *h, int close_fd)
{
	struct sock_set *set = h->from->set;

	loop_timer_cancel(set->ipc->loop, &h->limit);
	loop_unwatch(set->ipc->loop, &h->fd);
	if (close_fd)
		(void)close(h->fd.fd); /* nothing can be lost */
	list_del(&h->node);
	list_push(&set->free, &h->node);
}

static uint32_t half_of_uid(struct sock_set *set, uid_t uid)
{
	uint32_t n = 0;

	list_for_each(at, &set->half)
		n += list_entry(at, struct half, node)->cred.uid == uid;
	return n;
}

static void get_groups(int sock, gid_t groups[MAX_GROUPS], struct sock_peer *p)
{
	socklen_t len = MAX_GROUPS * sizeof(gid_t);

	p->groups = groups;
	p->n_groups = 0;
	if (!getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, groups, &len))
		p->n_groups = (uint32_t)(len / sizeof(gid_t));
}

/* Of the process that connected, even if its number was used again. */
static int peer_pidfd(int sock, pid_t pid)
{
	socklen_t len = sizeof(int);
	int fd;

	if (!getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len))
		return fd;
	if (pid <= 0)
		return -ESRCH;
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? -errno : fd;
}

/* What the peer may do; 0, or -EACCES with its reason. */
static int permit(struct sess_args *a, const struct conf_tenant *own,
		  const struct ucred *cred, const char **text)
{
	struct ipc *ipc = a->ipc;
	const struct conf_tenant *t;
	gid_t groups[MAX_GROUPS];
	struct sock_peer peer = { .uid = cred->uid,
				  .gid = cred->gid,
				  .pid = cred->pid };

	get_groups(a->sock, groups, &peer);
	t = sock_tenant(ipc->conf, own, &peer);
	if (sock_is_admin(ipc->conf, &peer)) {
		a->flags |= SESS_ADMIN;
		a->features |= KV_FEATURE_ADMIN;
	}
	if (!t && !(a->flags & SESS_ADMIN)) {
		*text = "this uid belongs to no tenant";
		return -EACCES;
	}
	if (!t && ipc->n_admin >= MAX_ADMINS) {
		*text = "too many sessions of administrators";
		return -EDQUOT;
	}
	a->tenant_name = t ? t->name : "";
	if (!t)
		return 0;
	a->features |= KV_FEATURE_ATTEND | KV_FEATURE_EDIT |
		       KV_FEATURE_PARALLEL;
	if (ipc->conf->n_models)
		a->features |= KV_FEATURE_GENERATE | KV_FEATURE_REPAIR |
			       KV_FEATURE_VARIANTS | KV_FEATURE_BLENDED |
			       KV_FEATURE_DEADLINE | KV_FEATURE_FOCUS;
	if (t->persist != CONF_PERSIST_NO && t->disk_bytes)
		a->features |= KV_FEATURE_PERSIST;
	a->tenant = serve_tenant_find(ipc->serve, t->name);
	if (!a->tenant)
		return -EACCES;
	if (serve_map_mode(a->tenant))
		a->features |= KV_FEATURE_MAP | KV_FEATURE_STATES;
	if (serve_can_export(a->tenant))
		a->features |= KV_FEATURE_EXPORT | KV_FEATURE_BUFFERS;
	return 0;
}

/* A good hello: make the session and pass its descriptors. */
static int establish(struct sess_args *a, const char **text)
{
	struct kv_welcome w = { .magic = KV_MAGIC,
				.major = KV_ABI_MAJOR,
				.minor = KV_ABI_MINOR,
				.features = a->features };
	struct sess *s;
	int ret, fds[2];

	a->pidfd = peer_pidfd(a->sock, a->pid);
	if (a->pidfd == -EMFILE || a->pidfd == -ENFILE || a->pidfd == -ENOMEM) {
		*text = "the session could not be made";
		return a->pidfd;
	}
	if (a->pidfd < 0) {
		*text = "the peer's process cannot be seen from here";
		return -EACCES;
	}
	ret = sess_new(&s, a, &fds[0]);
	if (ret) {
		*text = ret == -EDQUOT ? "the tenant's sessions are used up"
				       : "the session could not be made";
		(void)close(a->pidfd); /* only watched */
		return ret;
	}
	w.session = s->id;
	w.map_bytes = s->ch.map_bytes;
	memcpy(w.tenant, s->tenant, strnlen(s->tenant, sizeof(w.tenant) - 1));
	fds[1] = s->ch.doorbell;
	log_info("sock", "session %u: %s, tenant \"%s\", uid %u, pid %d", s->id,
		 s->name, s->tenant, (unsigned int)s->uid, (int)s->pid);
	if (answer(a->sock, &w, fds))
		sess_close(s, -ECONNRESET);
	(void)close(fds[0]); /* the mapping keeps it */
	return 0;
}

/* What it said. 0: nothing as yet. */
static int half_read(struct half *h)
{
	const struct loop_fd *f = &h->fd;
	const struct conf_tenant *own = h->from->tenant;
	const struct ucred cred = h->cred;
	struct kv_hello hello;
	struct sess_args a = { .ipc = h->from->set->ipc,
			       .hello = &hello,
			       .uid = cred.uid,
			       .pid = cred.pid,
			       .sock = f->fd };
	const char *text = "";
	ssize_t n;
	int ret;

	n = recv(f->fd, &hello, sizeof(hello), MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	half_drop(h, 0); /* from here on the socket is a's */
	ret = n <= 0 ? -ECONNRESET : permit(&a, own, &cred, &text);
	if (!ret)
		ret = sock_check_hello(&hello, (size_t)n, a.ipc->conf,
				       a.features, &text);
	if (!ret)
		ret = establish(&a, &text);
	if (ret && n > 0)
		refuse(a.ipc, a.sock, &cred, ret, text);
	if (ret)
		(void)close(a.sock); /* the answer is on its way */
	return 1;
}

static void half_ready(struct loop_fd *f, uint32_t events)
{
	(void)events;
	(void)half_read(container_of(f, struct half, fd));
}

/* It is looked at once more: the daemon itself may be late (stopped, suspended). */
static void half_late(struct loop_timer *t)
{
	struct half *h = container_of(t, struct half, limit);

	if (half_read(h))
		return;
	log_debug("sock", "pid %d said nothing", (int)h->cred.pid);
	half_drop(h, 1);
}

/* ---- accept ------------------------------------------------------------ */

static void half_new(struct listener *l, int fd)
{
	struct sock_set *set = l->set;
	struct ipc *ipc = set->ipc;
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	struct list *n;
	struct half *h;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		goto out_close;
	if (half_of_uid(set, cred.uid) >= MAX_HALF_PER_UID)
		goto out_close;
	n = list_pop(&set->free);
	if (!n)
		goto out_close;
	h = list_entry(n, struct half, node);
	h->from = l;
	h->cred = cred;
	h->fd = (struct loop_fd){ fd, EPOLLIN, half_ready };
	h->limit.run = half_late;
	list_push(&set->half, n);
	if (loop_watch(ipc->loop, &h->fd)) {
		list_del(n);
		list_push(&set->free, n);
		goto out_close;
	}
	loop_timer_set(ipc->loop, &h->limit, clock_ns() + HELLO_NS);
	return;

out_close:
	stat_add(ipc->st_refused, 1);
	(void)close(fd); /* nothing was said */
}

static void pause_over(struct loop_timer *t)
{
	struct listener *l = container_of(t, struct listener, pause);

	if (loop_watch(l->set->ipc->loop, &l->fd))
		loop_timer_set(l->set->ipc->loop, t, clock_ns() + PAUSE_NS);
}

static void listen_ready(struct loop_fd *f, uint32_t events)
{
	struct listener *l = container_of(f, struct listener, fd);
	struct loop *loop = l->set->ipc->loop;
	int fd;

	(void)events;
	for (int i = 0; i < ACCEPT_BURST; i++) {
		fd = accept4(f->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			half_new(l, fd);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
		    errno == ENOBUFS) {
			log_warn("sock", "%s: %s, no new clients for a moment",
				 l->path, strerror(errno));
			loop_unwatch(loop, f);
			loop_timer_set(loop, &l->pause, clock_ns() + PAUSE_NS);
		}
		return;
	}
}

/* ---- listening --------------------------------------------------------- */

static int open_listener(struct listener *l, mode_t mode)
{
	const struct conf_tenant *t = l->tenant;
	int fd, ret;

	fd = sockfile_open(l->path, SOCK_SEQPACKET, mode);
	if (fd < 0)
		return fd;
	if (t && sockfile_own(l->path, t->n_uids ? t->uids[0] : (uid_t)-1,
			      t->n_gids ? t->gids[0] : (gid_t)-1))
		log_info("sock", "%s keeps its owner", l->path);
	l->fd = (struct loop_fd){ fd, EPOLLIN, listen_ready };
	ret = loop_watch(l->set->ipc->loop, &l->fd);
	if (!ret)
		return 0;
	(void)unlink(l->path); /* ours */
	(void)close(fd); /* nobody was answered */
	return ret;
}

static int add(struct sock_set *set, const char *path, mode_t mode,
	       const struct conf_tenant *t, char *err, size_t err_len)
{
	struct listener *l = &set->listeners[set->n_listeners];
	int ret;

	l->set = set;
	l->tenant = t;
	list_init(&l->pause.node);
	l->pause.run = pause_over;
	strncpy(l->path, path, sizeof(l->path) - 1);
	ret = open_listener(l, mode);
	if (ret) {
		(void)snprintf(err, err_len, "socket %s: %s", path,
			       strerror(-ret));
		return ret;
	}
	set->n_listeners++;
	log_info("sock", "listening on %s%s%s", path, t ? " for " : "",
		 t ? t->name : "");
	return 0;
}

int sock_listen(struct sock_set **out, struct ipc *ipc, char *err,
		size_t err_len)
{
	const struct conf *conf = ipc->conf;
	struct sock_set *set = calloc(1, sizeof(*set));
	int ret = 0;

	if (!set)
		return -ENOMEM;
	set->ipc = ipc;
	list_init(&set->free);
	list_init(&set->half);
	for (uint32_t i = 0; i < MAX_HALF; i++) {
		list_init(&set->pool[i].limit.node);
		list_push(&set->free, &set->pool[i].node);
	}
	for (uint32_t i = 0; !ret && i < conf->n_tenants; i++)
		if (conf->tenants[i].socket[0])
			ret = add(set, conf->tenants[i].socket,
				  conf->tenants[i].socket_mode,
				  &conf->tenants[i], err, err_len);
	/* the last one: when it is there, all are */
	if (!ret && conf->socket[0])
		ret = add(set, conf->socket, conf->socket_mode, NULL, err,
			  err_len);
	if (ret) {
		sock_close(set);
		return ret;
	}
	*out = set;
	return 0;
}

void sock_close(struct sock_set *set)
{
	struct loop *loop = set->ipc->loop;

	while (!list_empty(&set->half))
		half_drop(list_entry(list_first(&set->half), struct half, node),
			  1);
	for (uint32_t i = 0; i < set->n_listeners; i++) {
		struct listener *l = &set->listeners[i];

		if (list_empty(&l->pause.node))
			loop_unwatch(loop, &l->fd);
		loop_timer_cancel(loop, &l->pause);
		(void)close(l->fd.fd); /* nothing can be lost */
		if (unlink(l->path))
			log_debug("sock", "%s stays: %s", l->path,
				  strerror(errno));
	}
	free(set);
}
