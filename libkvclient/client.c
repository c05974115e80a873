/*
 * client.c - connect, agree on a version, map, close
 *
 * The daemon makes the mapping and passes it with its doorbell in the answer to
 * kv_hello. Everything in the answer is checked against the descriptor
 * itself before it is used.
 */
#include "libkvclient/kvc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET	"/run/kvd/kvd.sock"
#define DEFAULT_SPIN_US 20u
#define HANDSHAKE_S	5

/* What the daemon answered. */
struct answer {
	struct kv_welcome welcome;
	int fds[2];
};

static int socket_open(const char *path)
{
	const struct timeval limit = { .tv_sec = HANDSHAKE_S };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, err;

	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
	    connect(fd, (const struct sockaddr *)&addr, sizeof(addr))) {
		err = -errno;
		(void)close(fd); /* nothing was written */
		return err;
	}
	return fd;
}

static void take_fds(struct msghdr *msg, int fds[2])
{
	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m;
	     m = CMSG_NXTHDR(msg, m)) {
		const size_t n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(int),
			       sizeof(int));
			if (i < 2 && fds[i] < 0)
				fds[i] = fd;
			else
				(void)close(fd); /* not asked for */
		}
	}
}

/* Say hello, read the answer; the caller owns its descriptors. */
static int greet(int sock, const struct kv_hello *hello, struct answer *a)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = { .iov_base = &a->welcome,
			     .iov_len = sizeof(a->welcome) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = ctl.buf,
			      .msg_controllen = sizeof(ctl.buf) };
	ssize_t n;

	/* A daemon that refuses at once may be gone; its answer is not. */
	n = send(sock, hello, sizeof(*hello), MSG_NOSIGNAL);
	if (n < 0 && errno != EPIPE)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (n == 0)
		return -ECONNRESET;
	take_fds(&msg, a->fds);
	if (n != (ssize_t)sizeof(a->welcome) || a->welcome.magic != KV_MAGIC)
		return -EPROTONOSUPPORT;
	if (a->welcome.err)
		return a->welcome.err < 0 ? a->welcome.err : -EPROTO;
	if (a->welcome.major != KV_ABI_MAJOR)
		return -EPROTONOSUPPORT;
	if (a->fds[0] >= 0 && a->fds[1] >= 0)
		return 0;
	return msg.msg_flags & MSG_CTRUNC ? -EMFILE : -EPROTO;
}

static int power_of_two(uint32_t n)
{
	return n && !(n & (n - 1));
}

static int inside(uint64_t off, uint64_t len, uint64_t all)
{
	return !(off % 64) && off <= all && len <= all - off;
}

/* Adopt the layout in the header, after checking it against the size. */
static int adopt(struct kvc *c)
{
	struct kv_header h;
	uint64_t sq_bytes, cq_bytes;

	memcpy(&h, c->map, sizeof(h));
	sq_bytes = sizeof(struct kv_ring) +
		   (uint64_t)h.sq_entries * sizeof(struct kv_sqe);
	cq_bytes = sizeof(struct kv_ring) +
		   (uint64_t)h.cq_entries * sizeof(struct kv_cqe);
	if (h.magic != KV_MAGIC || h.major != KV_ABI_MAJOR)
		return -EPROTONOSUPPORT;
	if (!power_of_two(h.sq_entries) || !power_of_two(h.cq_entries) ||
	    !inside(h.sq_off, sq_bytes, c->map_bytes) ||
	    !inside(h.cq_off, cq_bytes, c->map_bytes) ||
	    !inside(h.arena_off, h.arena_bytes, c->map_bytes))
		return -EPROTO;
	kv_ring_init(&c->sq, (struct kv_ring *)(c->map + h.sq_off),
		     h.sq_entries);
	kv_ring_init(&c->cq, (struct kv_ring *)(c->map + h.cq_off),
		     h.cq_entries);
	c->sqes = (struct kv_sqe *)(c->sq.ring + 1);
	c->cqes = (const struct kv_cqe *)(c->cq.ring + 1);
	c->arena = c->map + h.arena_off;
	c->arena_bytes = h.arena_bytes;
	/* Saves faults on the first round through the rings; best effort. */
	(void)madvise(c->map, h.arena_off, MADV_POPULATE_WRITE);
	return 0;
}

static int map_session(struct kvc *c, int memfd, uint64_t map_bytes)
{
	struct stat st;
	void *p;

	if (fstat(memfd, &st))
		return -errno;
	if (map_bytes < sizeof(struct kv_header) || st.st_size < 0 ||
	    (uint64_t)st.st_size < map_bytes)
		return -EPROTO;
	p = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (p == MAP_FAILED)
		return -errno;
	c->map = p;
	c->map_bytes = map_bytes;
	/* A child must not write into its parent's session. */
	if (madvise(p, map_bytes, MADV_DONTFORK))
		return -errno;
	return adopt(c);
}

static int alive_new(struct kvc *c)
{
	void *p = mmap(NULL, sizeof(uint32_t), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	c->alive = p;
	if (madvise(p, sizeof(uint32_t), MADV_WIPEONFORK))
		return -errno;
	*c->alive = 1;
	return 0;
}

/* Undo connect_session(), also half done. In a forked child the mapping is not
 * there and something else may be in its place. */
static void disconnect(struct kvc *c)
{
	kvc_maps_lost(c);
	if (c->map && kvc_usable(c))
		(void)munmap(c->map, c->map_bytes); /* our own arguments */
	if (c->sock >= 0)
		(void)close(c->sock); /* nothing can be lost */
	if (c->doorbell >= 0)
		(void)close(c->doorbell); /* nothing can be lost */
	free(c->slots);
	c->map = NULL;
	c->arena = NULL;
	c->arena_bytes = 0;
	c->slots = NULL;
	c->n_free = 0;
	c->sock = c->doorbell = -1;
}

static int connect_session(struct kvc *c)
{
	struct answer a = { .fds = { -1, -1 } };
	int ret;

	c->sock = ret = socket_open(c->path);
	if (ret < 0)
		goto out;
	ret = greet(c->sock, &c->hello, &a);
	c->doorbell = a.fds[1];
	if (ret)
		goto out;
	ret = map_session(c, a.fds[0], a.welcome.map_bytes);
	if (ret)
		goto out;
	ret = kvc_slots_new(c);
	if (ret)
		goto out;
	c->features = a.welcome.features;
	memcpy(c->tenant, a.welcome.tenant, sizeof(a.welcome.tenant));
	kvc_arena_reset(c);
	c->epoch++;
	c->broken = 0;
out:
	if (a.fds[0] >= 0)
		(void)close(a.fds[0]); /* the mapping keeps it */
	if (ret)
		disconnect(c);
	return ret;
}

/* Only printable characters are accepted by the daemon. */
static void set_name(struct kv_hello *h, const char *name)
{
	size_t i;

	for (i = 0; name[i] && i < sizeof(h->name) - 1; i++)
		h->name[i] = name[i] > ' ' && name[i] < 127 ? name[i] : '_';
	h->name[i] = '\0';
}

static int set_options(struct kvc *c, const struct kvc_options *opt)
{
	const struct kvc_options none = { 0 };
	const char *path;

	opt = opt ? opt : &none;
	path = opt->socket ? opt->socket : secure_getenv("KVD_SOCKET");
	if (!path || !*path)
		path = DEFAULT_SOCKET;
	if (strlen(path) >= sizeof(c->path))
		return -ENAMETOOLONG;
	memcpy(c->path, path, strlen(path) + 1);
	c->hello = (struct kv_hello){ .magic = KV_MAGIC,
				      .major = KV_ABI_MAJOR,
				      .minor = KV_ABI_MINOR,
				      .features_want = opt->features,
				      .sq_entries = opt->sq_entries,
				      .arena_bytes = opt->arena_bytes };
	set_name(&c->hello,
		 opt->name ? opt->name : program_invocation_short_name);
	c->spin_ns = (uint64_t)(opt->spin_us ? opt->spin_us : DEFAULT_SPIN_US) *
		     1000u;
	return 0;
}

int kvc_open(struct kvc **out, const struct kvc_options *opt)
{
	struct kvc *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return -ENOMEM;
	c->sock = c->doorbell = -1;
	(void)pthread_mutex_init(&c->lock, NULL); /* cannot fail: no attr */
	(void)pthread_mutex_init(&c->arena_lock, NULL);
	ret = set_options(c, opt);
	if (!ret)
		ret = alive_new(c);
	if (!ret)
		ret = connect_session(c);
	if (ret) {
		kvc_close(c);
		return ret;
	}
	*out = c;
	return 0;
}

void kvc_close(struct kvc *c)
{
	if (!c)
		return;
	if (kvc_usable(c) && c->slots)
		kvc_slots_fail(c, -ECANCELED);
	kvc_maps_free(c);
	disconnect(c);
	if (c->alive)
		(void)munmap((void *)(uintptr_t)c->alive, sizeof(uint32_t));
	/* Not destroyed: in a child of fork() they may be held for ever. */
	free(c);
}

int kvc_reconnect(struct kvc *c)
{
	int ret;

	if (!kvc_usable(c))
		return -EPERM;
	if (c->slots)
		kvc_slots_fail(c, -ECONNRESET);
	disconnect(c);
	ret = connect_session(c);
	if (ret)
		c->broken = -ECONNRESET;
	return ret;
}

const char *kvc_tenant(const struct kvc *c)
{
	return c->tenant;
}

uint64_t kvc_features(const struct kvc *c)
{
	return c->features;
}

const char *kvc_version(void)
{
	return KV_VERSION;
}
