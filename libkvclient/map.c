/*
 * map.c - sealed KV as plain read-only memory
 *
 * A segment is an area: a private read-only mapping of the daemon's file (or
 * anonymous memory), registered with the session's userfaultfd, whose other end the
 * daemon holds. A page that is not there, or not yet, stops whoever touches it until
 * the daemon maps it.
 *
 *  (1) No area is ever plain: it is registered before its address is told, and when
 *      the daemon is lost it is made PROT_NONE before it is unregistered, which wakes
 *      who waits. So nobody reads zeros and nobody waits for ever.
 *  (2) A thread of the library watches the control socket from the first map on. A message
 *      is taken off it when what came with it is kept; a process without a free
 *      descriptor finds it there again when it has one.
 *  (3) Areas are not inherited by fork() (MADV_DONTFORK), nor part of a core.
 *  (4) With kvc_map_by_signal() an area's faults are resolved where they happen (here.h),
 *      and what the daemon knows of is its door.
 *
 * Any thread. The lock covers all of struct kvc_maps; no call to the daemon is made
 * under it.
 */
#include "libkvclient/here.h"
#include "libkvclient/map_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define ROOM_FIRST  64u /* entries */
#define SKIP_FIRST  1024u /* words: 64K tokens */
#define NAPS_MAX    5000u
#define WATCH_STACK (64u << 10)
#define AGAIN_MS    20 /* a message that cannot be taken yet is looked at again */
#define LOOKS_MAX   16u /* then its descriptor will never come */

static void lock(struct kvc_maps *ms)
{
	(void)pthread_mutex_lock(&ms->lock); /* cannot fail: plain mutex */
}

static void unlock(struct kvc_maps *ms)
{
	(void)pthread_mutex_unlock(&ms->lock);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd); /* nothing can be lost */
	*fd = -1;
}

static void shut_all_locked(struct kvc_maps *ms)
{
	if (!ms->lost && ms->uffd >= 0)
		for (struct mapping *m = ms->list; m; m = m->next)
			for (uint32_t i = 0; i < m->n_areas; i++)
				kvc_area_shut(ms, &m->areas[i]);
	ms->lost = 1;
}

/* ---- the control socket --------------------------------------------------- */

static void close_fds(const int *fds, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		(void)close(fds[i]); /* nothing can be lost */
}

/* Frames that are not kept are asked for again. */
static void keep_frames_locked(struct kvc_maps *ms, const struct kv_ctl *c,
			       const int *fds, uint32_t n)
{
	struct frames *f = malloc(sizeof(*f) + n * sizeof(f->fds[0]));

	if (!f) {
		close_fds(fds, n);
		ms->frames_err = -ENOMEM;
		return;
	}
	f->id = c->id;
	f->first = c->addr;
	f->n = n;
	memcpy(f->fds, fds, n * sizeof(f->fds[0]));
	f->next = ms->frames;
	ms->frames = f;
}

/* 0, or -ENOMEM and it is as before. The descriptor is not kept. */
static int take_states_locked(struct kvc_maps *ms, uint32_t space, int fd)
{
	struct states *s = &ms->states[space];
	struct stat st;
	void *p;

	if (s->bytes || fstat(fd, &st) || st.st_size <= 0)
		return 0;
	/* as an area (area.c): locked memory would be filled, and this is large */
	p = mmap(NULL, (size_t)st.st_size, PROT_NONE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return errno == ENOMEM || errno == EAGAIN ? -ENOMEM : 0;
	(void)madvise(p, (size_t)st.st_size, MADV_DONTFORK); /* a wish */
	if (mprotect(p, (size_t)st.st_size, PROT_READ)) {
		(void)munmap(p, (size_t)st.st_size); /* nobody knows of it */
		return -ENOMEM;
	}
	s->bytes = p;
	s->n = (size_t)st.st_size;
	return 0;
}

/* A message with one descriptor, or none (-1): 0, or why it cannot be taken yet. */
static int take_one_locked(struct kvc_maps *ms, const struct kv_ctl *c, int fd)
{
	int ret = 0;

	if (c->kind == KV_CTL_SPACE && fd >= 0 && c->id < KVC_MAX_SPACES &&
	    ms->spaces[c->id] < 0) {
		ms->spaces[c->id] = fd;
		return 0;
	}
	if (c->kind == KV_CTL_STATES && fd >= 0 && c->id < KVC_MAX_SPACES)
		ret = take_states_locked(ms, c->id, fd);
	if (fd >= 0)
		(void)close(fd); /* mapped, or not asked for */
	if (c->kind == KV_CTL_LOST)
		kvc_area_lose(ms, c->addr, c->n_bytes);
	return ret;
}

struct message {
	struct kv_ctl c;
	ssize_t n_bytes;
	int fds[KV_FRAMES_MAX];
	uint32_t n_fds;
	int is_cut; /* descriptors are missing */
};

/* The first message, which stays: 1, 0 at the end, -EAGAIN, -errno. */
static int look_at_ctl(int sock, struct message *m)
{
	union {
		char buf[CMSG_SPACE(KV_FRAMES_MAX * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = { &m->c, sizeof(m->c) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = ctl.buf,
			      .msg_controllen = sizeof(ctl.buf) };
	struct cmsghdr *h;

	do
		m->n_bytes = recvmsg(
			sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (m->n_bytes < 0 && errno == EINTR);
	if (m->n_bytes <= 0)
		return m->n_bytes ? -errno : 0;
	m->n_fds = 0;
	m->is_cut = msg.msg_flags & MSG_CTRUNC ? 1 : 0;
	h = CMSG_FIRSTHDR(&msg);
	if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) {
		m->n_fds =
			(uint32_t)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(m->fds, CMSG_DATA(h), m->n_fds * sizeof(int));
	}
	return 1;
}

/* Why a descriptor is missing: -EAGAIN it was not to be had, and is now. */
static int why_cut(int sock)
{
	const int fd = fcntl(sock, F_DUPFD_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	(void)close(fd); /* it was free */
	return -EAGAIN;
}

/* 0: it can go; else why not yet. Its descriptors are kept or closed. */
static int take_locked(struct kvc_maps *ms, const struct message *m)
{
	const int known = m->n_bytes == (ssize_t)sizeof(m->c) &&
			  m->c.magic == KV_MAGIC;
	int ret = 0;

	if (known && m->c.kind == KV_CTL_FRAMES && !m->is_cut) {
		keep_frames_locked(ms, &m->c, m->fds, m->n_fds);
		return 0;
	}
	if (known && m->n_fds <= 1 && !m->is_cut)
		return take_one_locked(ms, &m->c, m->n_fds ? m->fds[0] : -1);
	if (known && m->c.kind == KV_CTL_FRAMES) /* they are asked for again */
		ms->frames_err = -EMFILE;
	else if (known && !m->n_fds)
		ret = why_cut(ms->sock);
	close_fds(m->fds, m->n_fds);
	return ret;
}

/*
 * Read what is there: 0, -ECONNRESET, or why the rest cannot be taken now (-EMFILE, -ENFILE,
 * -ENOMEM): it is still there then.
 */
static int read_ctl_locked(struct kvc_maps *ms)
{
	uint32_t n_looks = 0;
	struct message m;
	char byte;
	int ret;

	for (;;) {
		ret = look_at_ctl(ms->sock, &m);
		if (ret <= 0)
			return ret == -EAGAIN ? 0 : -ECONNRESET;
		ret = take_locked(ms, &m);
		if (ret == -EAGAIN && ++n_looks < LOOKS_MAX)
			continue;
		if (ret && ret != -EAGAIN)
			return ret;
		/* what came of it is kept: the message goes */
		(void)recv(ms->sock, &byte, sizeof(byte), MSG_DONTWAIT);
		n_looks = 0;
	}
}

static void *watch(void *arg)
{
	struct kvc_maps *ms = arg;
	struct pollfd p[2] = { { .fd = ms->sock },
			       { .fd = ms->stop, .events = POLLIN } };
	int ret = 0;

	while (ret != -ECONNRESET) {
		/* a message that stays is no event */
		p[0].events = (short)(POLLRDHUP | (ret ? 0 : POLLIN));
		if (poll(p, 2, ret ? AGAIN_MS : -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents)
			return NULL;
		lock(ms);
		ret = read_ctl_locked(ms);
		if (p[0].revents & (POLLHUP | POLLRDHUP | POLLERR))
			ret = -ECONNRESET;
		unlock(ms);
	}
	lock(ms);
	shut_all_locked(ms);
	unlock(ms);
	return NULL;
}

/* The application's signals are not for this thread. */
static int start_watcher(struct kvc_maps *ms)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int ret;

	ms->stop = eventfd(0, EFD_CLOEXEC);
	if (ms->stop < 0)
		return -errno;
	(void)sigfillset(&all); /* cannot fail */
	(void)pthread_attr_init(&attr); /* cannot fail here */
	(void)pthread_attr_setstacksize(&attr, WATCH_STACK); /* or more */
	(void)pthread_sigmask(SIG_SETMASK, &all, &old); /* cannot fail */
	ret = -pthread_create(&ms->watcher, &attr, watch, ms);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	ms->watching = !ret;
	return ret;
}

/* ---- the session's side ------------------------------------------------------ */

static int open_uffd(int *out)
{
	struct uffdio_api api = { .api = UFFD_API };
	const int flags = O_CLOEXEC | O_NONBLOCK;
	int fd = (int)syscall(SYS_userfaultfd, flags);

	if (fd < 0) /* without privileges: user mode only */
		fd = (int)syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM
			       ? -errno
			       : -ENOTSUP;
	if (ioctl(fd, UFFDIO_API, &api)) {
		(void)close(fd); /* nothing is registered */
		return -ENOTSUP;
	}
	*out = fd;
	return 0;
}

static int send_uffd(struct kvc_maps *ms)
{
	struct kv_ctl c = { .magic = KV_MAGIC, .kind = KV_CTL_FAULTS };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = { { 0 } };
	struct iovec iov = { &c, sizeof(c) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = ctl.buf,
			      .msg_controllen = sizeof(ctl.buf) };
	struct cmsghdr *m = CMSG_FIRSTHDR(&msg);

	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(m), &ms->uffd, sizeof(int));
	return sendmsg(ms->sock, &msg, MSG_NOSIGNAL) < 0 ? -ECONNRESET : 0;
}

/* What kvc_map_by_signal() wants; without it the daemon resolves all faults. */
static void begin_here_locked(struct kvc *c, struct kvc_maps *ms)
{
	void *p = NULL;

	if (!c->map_by_signal || !(c->features & KV_FEATURE_STATES) ||
	    kvc_here_begin() || kvc_here_uffd(&ms->uffd_here))
		return;
	if (kvc_arena_take(c, KV_MAP_HOLDS * sizeof(*ms->holds), &p)) {
		close_fd(&ms->uffd_here);
		return;
	}
	ms->holds = p; /* the connection's: the arena goes with it */
	memset(ms->holds, 0, KV_MAP_HOLDS * sizeof(*ms->holds));
}

/* The first map of a connection: descriptor, watcher. */
static int begin_locked(struct kvc *c, struct kvc_maps *ms)
{
	int ret;

	if (ms->lost)
		return -ECONNRESET;
	if (ms->uffd >= 0 && ms->send_again) {
		ms->send_again = 0;
		return send_uffd(ms);
	}
	if (ms->uffd >= 0)
		return 0;
	ms->sock = c->sock;
	ret = open_uffd(&ms->uffd);
	if (ret)
		return ret;
	ret = start_watcher(ms);
	if (ret) { /* the daemon knows nothing of it */
		close_fd(&ms->stop);
		close_fd(&ms->uffd);
		return ret;
	}
	ret = send_uffd(ms);
	if (ret)
		ms->lost = 1; /* the watcher ends as well */
	else
		begin_here_locked(c, ms);
	return ret;
}

static struct kvc_maps *maps_of(struct kvc *c)
{
	struct kvc_maps *ms;

	(void)pthread_mutex_lock(&c->lock); /* cannot fail: plain mutex */
	ms = c->maps;
	if (!ms) {
		ms = calloc(1, sizeof(*ms));
		if (ms) {
			(void)pthread_mutex_init(&ms->lock, NULL); /* no attr */
			ms->uffd = ms->stop = ms->uffd_here = -1;
			memset(ms->spaces, -1, sizeof(ms->spaces));
			c->maps = ms;
		}
	}
	(void)pthread_mutex_unlock(&c->lock);
	return ms;
}

static int maps_get(struct kvc *c, struct kvc_maps **out)
{
	struct kvc_maps *ms = maps_of(c);
	int ret;

	if (!ms)
		return -ENOMEM;
	lock(ms);
	ret = begin_locked(c, ms);
	unlock(ms);
	*out = ms;
	return ret;
}

int kvc_frames_take(struct kvc *c, uint32_t id, uint64_t first, int *fds)
{
	struct kvc_maps *ms = maps_of(c);
	struct frames **at, *f;
	int n;

	if (!ms)
		return -ENOMEM;
	lock(ms);
	if (!ms->watching)
		ms->sock = c->sock;
	n = read_ctl_locked(ms);
	if (!n)
		n = ms->frames_err ? ms->frames_err : -EPROTO;
	for (at = &ms->frames; (f = *at); at = &f->next)
		if (f->id == id && f->first == first) {
			n = (int)f->n;
			memcpy(fds, f->fds, f->n * sizeof(*fds));
			*at = f->next;
			free(f);
			break;
		}
	unlock(ms);
	return n;
}

static void frames_drop(struct kvc_maps *ms)
{
	struct frames *f;

	while ((f = ms->frames)) {
		ms->frames = f->next;
		close_fds(f->fds, f->n);
		free(f);
	}
}

void kvc_maps_lost(struct kvc *c)
{
	struct kvc_maps *ms = c->maps;
	const uint64_t one = 1;

	if (!ms)
		return;
	if (ms->watching && kvc_usable(c)) {
		(void)!write(ms->stop, &one, sizeof(one)); /* cannot fail */
		(void)pthread_join(ms->watcher, NULL); /* it ends */
	}
	ms->watching = 0;
	if (kvc_usable(c)) { /* else nothing of it is in this process */
		lock(ms);
		shut_all_locked(ms);
		unlock(ms);
	}
	frames_drop(ms);
	ms->frames_err = 0;
	close_fd(&ms->stop);
	close_fd(&ms->uffd);
	close_fd(&ms->uffd_here);
	ms->holds = NULL;
	for (uint32_t i = 0; i < KVC_MAX_SPACES; i++) {
		close_fd(&ms->spaces[i]);
		if (ms->states[i].bytes && kvc_usable(c))
			(void)munmap((void *)(uintptr_t)ms->states[i].bytes,
				     ms->states[i].n);
		ms->states[i].bytes = NULL;
	}
	ms->lost = ms->send_again = 0;
}

static void mapping_free(struct mapping *m)
{
	free((void *)(uintptr_t)m->pub.entries);
	free((void *)(uintptr_t)m->pub.skip);
	free(m->areas);
	free(m);
}

void kvc_maps_free(struct kvc *c)
{
	struct kvc_maps *ms = c->maps;
	struct mapping *m;

	if (!ms)
		return;
	kvc_maps_lost(c);
	while ((m = ms->list)) {
		ms->list = m->next;
		for (uint32_t i = 0; kvc_usable(c) && i < m->n_areas; i++)
			kvc_area_unmap(&m->areas[i]);
		mapping_free(m);
	}
	free(ms);
	c->maps = NULL;
}

/* ---- mapping a sequence -------------------------------------------------------- */

/* The daemon's answer, in the arena. */
struct answer {
	struct kv_map *map;
	struct kv_map_entry *entries;
	uint64_t *skip;
};

static void answer_free(struct kvc *c, struct answer *a)
{
	kvc_free(c, a->map);
	kvc_free(c, a->entries);
	kvc_free(c, a->skip);
	memset(a, 0, sizeof(*a));
}

static int answer_new(struct kvc *c, const struct kvc_maps *ms,
		      struct answer *a, uint32_t n_entries, uint64_t n_skip)
{
	void *p[3] = { NULL, NULL, NULL };
	int ret;

	ret = kvc_arena_take(c, sizeof(*a->map), &p[0]);
	if (!ret)
		ret = kvc_arena_take(c, n_entries * sizeof(*a->entries), &p[1]);
	if (!ret)
		ret = kvc_arena_take(c, n_skip * sizeof(uint64_t), &p[2]);
	a->map = p[0];
	a->entries = p[1];
	a->skip = p[2];
	if (ret) {
		answer_free(c, a);
		return ret;
	}
	*a->map = (struct kv_map){ .entries_off = kvc_off(c, a->entries),
				   .n_entries = n_entries,
				   .skip_off = kvc_off(c, a->skip),
				   .n_skip = n_skip };
	if (ms->uffd_here >= 0) {
		a->map->flags = KV_MAP_STATES;
		a->map->holds_off = kvc_off(c, ms->holds);
	}
	return 0;
}

/* A connection of ours is still being ended by the daemon. */
static int nap(uint32_t *n_naps)
{
	const struct timespec t = { .tv_nsec = 1000000 };

	(void)nanosleep(&t, NULL); /* shorter is fine */
	return ++*n_naps < NAPS_MAX;
}

/* Ask, with as much room as it takes; entries, or -errno: then a is empty. */
static int ask(struct kvc *c, const struct kvc_maps *ms, int seq,
	       struct answer *a)
{
	struct kv_sqe e = { .opcode = KV_OP_MAP, .seq = (uint32_t)seq };
	uint32_t n_entries = ROOM_FIRST;
	uint64_t n_skip = SKIP_FIRST;
	uint32_t n_naps = 0;
	int ret;

	for (;;) {
		ret = answer_new(c, ms, a, n_entries, n_skip);
		if (ret)
			return ret;
		e.arg[0] = kvc_off(c, a->map);
		ret = kvc_call(c, &e);
		if (ret >= 0)
			return ret;
		n_entries = a->map->n_entries;
		n_skip = a->map->n_skip;
		answer_free(c, a);
		if (ret != -EMSGSIZE && !(ret == -EAGAIN && nap(&n_naps)))
			return ret;
	}
}

static int call_map_at(struct kvc *c, const struct area *a)
{
	struct kv_sqe e = {
		.opcode = KV_OP_MAP_AT,
		.arg = { a->id,
			 (uint64_t)(uintptr_t)(a->door ? a->door : a->addr) }
	};

	return kvc_call(c, &e);
}

static void call_unmap(struct kvc *c, uint32_t id)
{
	struct kv_sqe e = { .opcode = KV_OP_UNMAP, .arg = { id } };

	(void)kvc_call(c, &e); /* the end of the session does it too */
}

static struct area *area_find(struct mapping *m, uint32_t id)
{
	for (uint32_t i = m->n_areas; i-- > 0;)
		if (m->areas[i].id == id)
			return &m->areas[i];
	return NULL;
}

/* An area for the entry's segment; its address is not told to the daemon yet. */
static int add_area(struct kvc *c, struct kvc_maps *ms, struct mapping *m,
		    const struct kv_map_entry *e, const struct kv_map *k)
{
	struct area *a = &m->areas[m->n_areas];
	int ret;

	a->id = e->map;
	a->epoch = c->epoch;
	lock(ms);
	ret = ms->lost ? -ECONNRESET : read_ctl_locked(ms);
	if (ret != -ECONNRESET) {
		const int err = kvc_area_map(ms, a, e, k);

		/* its file did not come: what stands in the way */
		ret = err == -EPROTO && ret ? ret : err;
	}
	if (!ret)
		m->n_areas++; /* from here on it is shut with the others */
	unlock(ms);
	return ret ? ret : call_map_at(c, a);
}

static int fill(struct kvc *c, struct kvc_maps *ms, struct mapping *m,
		const struct answer *a, uint32_t n)
{
	struct kvc_map_entry *out = calloc(n + 1, sizeof(*out));
	const struct kv_map k = *a->map;
	int ret = 0;

	m->pub.entries = out;
	if (!out)
		return -ENOMEM;
	for (uint32_t i = 0; i < n && !ret; i++) {
		const struct kv_map_entry *e = &a->entries[i];
		struct area *area = area_find(m, e->map);

		if (!area) {
			ret = add_area(c, ms, m, e, &k);
			area = &m->areas[m->n_areas - 1];
		}
		if (ret)
			break;
		out[i] = (struct kvc_map_entry){ .addr = area->addr,
						 .from = e->from,
						 .n_tokens = e->n_tokens,
						 .pos = e->pos,
						 .base_pos = e->base_pos };
		m->pub.n_entries++;
	}
	return ret;
}

static int mapping_new(const struct answer *a, uint32_t n, struct mapping **out)
{
	const struct kv_map *k = a->map;
	struct mapping *m = calloc(1, sizeof(*m));
	uint64_t *skip;

	if (!m)
		return -ENOMEM;
	m->areas = calloc(n + 1, sizeof(*m->areas));
	m->pub.skip = skip = malloc((k->n_skip + 1) * sizeof(*skip));
	if (!m->areas || !skip) {
		mapping_free(m);
		return -ENOMEM;
	}
	memcpy(skip, a->skip, k->n_skip * sizeof(*skip));
	m->pub.n_tokens = k->n_tokens;
	m->pub.page_bytes = k->page_bytes;
	m->pub.n_layers = k->n_layers;
	m->pub.n_kv_heads = k->n_kv_heads;
	m->pub.head_dim = k->head_dim;
	m->pub.elem_bytes = k->elem_bytes;
	m->pub.page_tokens = k->page_tokens;
	m->pub.page_layers = k->page_layers;
	*out = m;
	return 0;
}

/* Out of the list, out of memory, out of the daemon. */
static void mapping_end(struct kvc *c, struct kvc_maps *ms, struct mapping *m)
{
	struct mapping **at;

	lock(ms);
	for (at = &ms->list; *at && *at != m; at = &(*at)->next)
		;
	if (*at)
		*at = m->next;
	for (uint32_t i = 0; i < m->n_areas; i++) {
		if (!ms->lost && ms->uffd >= 0 && m->areas[i].epoch == c->epoch)
			kvc_area_shut(ms, &m->areas[i]); /* wakes who waits */
	}
	unlock(ms);
	for (uint32_t i = 0; i < m->n_areas; i++) {
		/* the daemon first: its work must not meet another mapping */
		if (m->areas[i].epoch == c->epoch)
			call_unmap(c, m->areas[i].id);
		kvc_area_unmap(&m->areas[i]);
	}
	mapping_free(m);
}

static void unmap_told(struct kvc *c, const struct answer *a, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		call_unmap(c, a->entries[i].map);
}

int kvc_map_by_signal(struct kvc *c)
{
	int ret = 0;

	if (!kvc_usable(c))
		return -EPERM;
	(void)pthread_mutex_lock(&c->lock); /* cannot fail: plain mutex */
	if (c->maps && c->maps->uffd >= 0)
		ret = -EBUSY;
	else if (!(c->features & KV_FEATURE_STATES))
		ret = -ENOTSUP;
	else
		c->map_by_signal = 1;
	(void)pthread_mutex_unlock(&c->lock);
	return ret;
}

int kvc_map(struct kvc *c, int seq, struct kvc_map **out)
{
	struct kvc_maps *ms;
	struct mapping *m;
	struct answer a;
	int n, ret;

	if (!kvc_usable(c))
		return -EPERM;
	if (!c->map)
		return -ECONNRESET;
	if (!(c->features & KV_FEATURE_MAP))
		return -ENOTSUP;
	ret = maps_get(c, &ms);
	if (ret)
		return ret;
	n = ask(c, ms, seq, &a);
	if (n == -ENXIO) { /* it did not get our descriptor: it had none left */
		lock(ms);
		ms->send_again = 1;
		unlock(ms);
		return -ENFILE;
	}
	if (n < 0)
		return n;
	ret = mapping_new(&a, (uint32_t)n, &m);
	if (ret) {
		unmap_told(c, &a, (uint32_t)n);
		answer_free(c, &a);
		return ret;
	}
	lock(ms);
	m->next = ms->list;
	ms->list = m;
	unlock(ms);
	ret = fill(c, ms, m, &a, (uint32_t)n);
	if (ret) {
		mapping_end(c, ms, m);
		unmap_told(c, &a, (uint32_t)n); /* those without an area */
	} else {
		*out = &m->pub;
	}
	answer_free(c, &a);
	return ret;
}

int kvc_unmap(struct kvc *c, struct kvc_map *map)
{
	if (!kvc_usable(c))
		return -EPERM;
	if (map)
		mapping_end(c, c->maps,
			    (struct mapping *)((char *)map -
					       offsetof(struct mapping, pub)));
	return 0;
}
