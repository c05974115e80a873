/*
 * uffd.c - page faults of clients on what they have mapped; see uffd.h
 *
 *  (1) The thread reads with RWF_NOWAIT (or, before Linux 6.10, from a descriptor
 *      that we set O_NONBLOCK): a client that steals events or clears the flag can
 *      at most hold up its own tenant's thread.
 *  (2) A full table of pending faults mutes the peer until the loop has taken them:
 *      what is not read stays in the kernel, nothing is lost.
 *  (3) After UFFD_CLOSE no event of the peer is looked at: the thread takes it out of
 *      the epoll set itself, between two batches of events.
 *
 * One lock, for the queue of jobs and the peers' tables; nothing is called under it.
 */
#include "kvd/mem/uffd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "io/base.h"
#include "io/sys.h"
#include "kvd/base/clock.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFDIO_POISON /* Linux 6.6 */
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#define PAGE	  4096u
#define N_MSGS	  16
#define N_EVENTS  16
#define N_RETRIES 100u
#define NAP_NS	  1000000

struct uffd {
	struct loop *loop; /* (I) */
	uint64_t spin_ns; /* (I) */
	pthread_t thread;
	int epoll, bell; /* (I) */
	pthread_mutex_t lock;
	struct list jobs; /* (lock) */
	struct list peers; /* (lock) open ones */
	int n_jobs; /* (A) written under the lock, read by who spins */
	int stop; /* (lock) */
};

static void lock(struct uffd *u)
{
	(void)pthread_mutex_lock(&u->lock); /* cannot fail: plain mutex */
}

static void unlock(struct uffd *u)
{
	(void)pthread_mutex_unlock(&u->lock);
}

int uffd_probe(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = kio_sys_userfaultfd(UFFD_USER_MODE_ONLY);
	int ret;

	if (fd < 0)
		return fd;
	ret = kio_sys_uffd(fd, UFFDIO_API, &api);
	(void)close(fd); /* nothing is registered */
	if (ret)
		return ret;
	return api.features & UFFD_FEATURE_MINOR_SHMEM &&
			       api.features & UFFD_FEATURE_MISSING_SHMEM
		       ? UFFD_CAN_SHARE
		       : UFFD_CAN_COPY;
}

/* ---- calls of the thread ------------------------------------------------------ */

/* One step of the job at its offset: 0, or -errno; *did bytes are done. */
static int step(const struct uffd_job *j, uint64_t off, uint64_t n,
		int64_t *did)
{
	const struct uffdio_range to = { j->addr + off, n };
	struct uffdio_continue cont = { .range = to };
	struct uffdio_poison poison = { .range = to };
	struct uffdio_copy copy = { .dst = j->addr + off,
				    .src = (uint64_t)(uintptr_t)j->src + off,
				    .len = n };
	int ret;

	switch (j->kind) {
	case UFFD_CONTINUE:
		ret = kio_sys_uffd(j->peer->fd, UFFDIO_CONTINUE, &cont);
		*did = cont.mapped;
		return ret;
	case UFFD_COPY:
		ret = kio_sys_uffd(j->peer->fd, UFFDIO_COPY, &copy);
		*did = copy.copy;
		return ret;
	case UFFD_POISON:
		ret = kio_sys_uffd(j->peer->fd, UFFDIO_POISON, &poison);
		*did = poison.updated;
		return ret;
	default:
		*did = (int64_t)n;
		return 0;
	}
}

/*
 * [from, to) of the job. What is there already is passed over with must, else it is
 * the end. Returns 0, 1 when waking is left to do, or -errno.
 */
static int resolve(const struct uffd_job *j, uint64_t from, uint64_t to,
		   int must)
{
	uint32_t n_retries = 0;
	int wake = 0, ret;
	int64_t did = 0;

	while (from < to) {
		ret = step(j, from, to - from, &did);
		if (!ret)
			break;
		if (ret == -EAGAIN && did > 0) {
			from += (uint64_t)did;
		} else if (ret == -EEXIST && must) {
			from += PAGE;
			wake = 1;
		} else if (ret == -EAGAIN && must) {
			if (n_retries++ == N_RETRIES)
				return 1; /* touched again, it is told again */
		} else {
			return must ? ret : wake;
		}
	}
	return wake;
}

/* It may be there no more. */
static void unwatch(struct uffd_peer *p)
{
	(void)epoll_ctl(p->u->epoll, EPOLL_CTL_DEL, p->fd, NULL);
}

static void forget(struct uffd_peer *p)
{
	unwatch(p);
	lock(p->u);
	list_del(&p->node);
	unlock(p->u);
}

static void do_job(struct uffd *u, struct uffd_job *j)
{
	struct uffdio_range all = { j->addr, j->n_bytes };
	int ret = j->kind == UFFD_WAKE;

	if (j->kind == UFFD_CLOSE) {
		forget(j->peer);
		(void)close(j->peer->fd); /* nothing can be lost */
	} else if (!ret) {
		ret = resolve(j, 0, j->n_bytes, 1);
	}
	if (ret > 0)
		ret = kio_sys_uffd(j->peer->fd, UFFDIO_WAKE, &all);
	j->ret = ret < 0 ? ret : 0;
	if (!ret && j->n_ahead)
		(void)resolve(j, j->n_bytes, j->n_bytes + j->n_ahead, 0);
	loop_post(u->loop, &j->call);
}

static struct uffd_job *next_job(struct uffd *u, int *stop)
{
	struct list *n;

	lock(u);
	n = list_pop(&u->jobs);
	if (n)
		__atomic_store_n(&u->n_jobs, u->n_jobs - 1, __ATOMIC_RELAXED);
	*stop = u->stop;
	unlock(u);
	return n ? list_entry(n, struct uffd_job, node) : NULL;
}

/* ---- what the thread reads ------------------------------------------------------ */

static void post_locked(struct uffd_peer *p)
{
	if (p->posted)
		return;
	p->posted = 1;
	loop_post(p->u->loop, &p->call);
}

static int watch(struct uffd_peer *p, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.ptr = p };

	return kio_sys_epoll_ctl(p->u->epoll, EPOLL_CTL_MOD, p->fd, &e);
}

/* Nothing more is heard of it, which must not leave its client waiting. */
static void set_broken_locked(struct uffd_peer *p)
{
	if (p->is_broken)
		return;
	unwatch(p);
	p->is_broken = 1;
	post_locked(p);
}

/* At most n messages: how many, 0 for none now, or -errno. */
static int read_msgs(struct uffd_peer *p, struct uffd_msg *msgs, size_t n)
{
	const ssize_t got =
		kio_sys_read_now(p->fd, msgs, n * sizeof(*msgs)); /* (1) */

	if (got < 0)
		return got == -EAGAIN || got == -EINTR ? 0 : (int)got;
	return (int)((size_t)got / sizeof(*msgs));
}

/* None of our clients asks for any other event; a fork brings a descriptor. */
static int is_fault(const struct uffd_msg *m)
{
	if (m->event == UFFD_EVENT_FORK)
		(void)close((int)m->arg.fork.ufd); /* unused */
	return m->event == UFFD_EVENT_PAGEFAULT;
}

static void note_locked(struct uffd_peer *p, uint64_t addr, uint64_t ns)
{
	for (uint32_t i = 0; i < p->n_pending; i++)
		if (p->pending[i].addr == addr)
			return;
	p->pending[p->n_pending++] = (struct uffd_event){ addr, ns };
}

static void peer_ready(struct uffd_peer *p, uint32_t events)
{
	struct uffd_msg msgs[N_MSGS];
	const uint64_t now = clock_ns();
	int n, bad = events & (EPOLLERR | EPOLLHUP);

	n = bad ? 0 : read_msgs(p, msgs, N_MSGS);
	lock(p->u);
	for (int i = 0; i < n; i++) {
		if (is_fault(&msgs[i]))
			note_locked(p, msgs[i].arg.pagefault.address, now);
		else
			bad = 1;
	}
	if (n > 0)
		post_locked(p);
	if (p->n_pending + N_MSGS > UFFD_PENDING) {
		p->muted = 1;
		bad |= watch(p, 0);
	}
	if (bad || n < 0)
		set_broken_locked(p);
	unlock(p->u);
}

/* The kernel tells of no fault any more: who waits for one is to know. */
static void break_all(struct uffd *u)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };

	lock(u);
	list_for_each(n, &u->peers)
		set_broken_locked(list_entry(n, struct uffd_peer, node));
	unlock(u);
	(void)nanosleep(&nap, NULL); /* jobs are looked for all the same */
}

static void wait_events(struct uffd *u, int timeout_ms)
{
	struct epoll_event ev[N_EVENTS];
	uint64_t count;
	int n = kio_sys_epoll_wait(u->epoll, ev, N_EVENTS, timeout_ms);

	if (n < 0 && n != -EINTR)
		break_all(u);
	for (int i = 0; i < n; i++) {
		if (ev[i].data.ptr)
			peer_ready(ev[i].data.ptr, ev[i].events);
		else
			(void)!read(u->bell, &count, sizeof(count));
	}
}

/* After work comes work: look for a while before sleeping. */
static int spin(struct uffd *u)
{
	const uint64_t end = clock_ns() + u->spin_ns;

	do {
		for (int i = 0; i < 64; i++) {
			if (__atomic_load_n(&u->n_jobs, __ATOMIC_ACQUIRE))
				return 1;
			KV_CPU_RELAX();
		}
	} while (clock_ns() < end);
	return 0;
}

static void *thread_main(void *arg)
{
	struct uffd *u = arg;
	struct uffd_job *j;
	int stop = 0;

	while (!stop) {
		while ((j = next_job(u, &stop)))
			do_job(u, j);
		wait_events(u, spin(u) || stop ? 0 : -1);
	}
	return NULL;
}

/* ---- the loop's side ---------------------------------------------------------------- */

static void tell(struct loop_call *c)
{
	struct uffd_peer *p = container_of(c, struct uffd_peer, call);
	struct uffd_event events[UFFD_PENDING];
	uint32_t n;
	int is_broken;

	lock(p->u);
	n = p->n_pending;
	memcpy(events, p->pending, n * sizeof(events[0]));
	p->n_pending = 0;
	if (p->muted && !p->closed && !p->is_broken && watch(p, EPOLLIN))
		set_broken_locked(p);
	p->posted = 0;
	p->muted = 0;
	is_broken = p->is_broken && !p->told;
	p->told |= is_broken;
	unlock(p->u);
	for (uint32_t i = 0; i < n && !p->closed; i++)
		p->fault(p, events[i].addr, events[i].ns);
	if (is_broken && !p->closed)
		p->broken(p);
}

/* 0, or -EINVAL. The kernel's name for it cannot be had by any other file. */
static int check_userfaultfd(int fd)
{
	static const char name[] = "anon_inode:[userfaultfd]";
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char path[32], link[sizeof(name) + 1];
	int ret;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = kio_sys_readlink(path, link, sizeof(link));
	if (ret < 0)
		return ret;
	if (ret != (int)sizeof(name) - 1 || memcmp(link, name, (size_t)ret))
		return -EINVAL;
	ret = kio_sys_set_nonblock(fd);
	if (!ret)
		ret = kio_sys_poll(&p, 1, 0);
	if (ret < 0)
		return ret;
	/* one that is not set up is in error */
	return p.revents & (POLLERR | POLLNVAL) ? -EINVAL : 0;
}

int uffd_open(struct uffd *u, struct uffd_peer *p, int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.ptr = p };
	int ret = check_userfaultfd(fd);

	if (ret)
		return ret;
	p->u = u;
	p->fd = fd;
	p->closed = p->posted = p->muted = p->is_broken = p->told = 0;
	p->n_pending = 0;
	p->call.run = tell;
	list_init(&p->call.node);
	list_init(&p->node);
	lock(u);
	ret = kio_sys_epoll_ctl(u->epoll, EPOLL_CTL_ADD, fd, &e);
	if (!ret)
		list_push(&u->peers, &p->node);
	unlock(u);
	return ret;
}

static void job_done(struct loop_call *c)
{
	struct uffd_job *j = container_of(c, struct uffd_job, call);

	j->done(j);
}

static void ring(struct uffd *u)
{
	const uint64_t one = 1;

	(void)!write(u->bell, &one, sizeof(one)); /* far from its limit */
}

void uffd_start(struct uffd_job *j)
{
	struct uffd *u = j->peer->u;

	j->call.run = job_done;
	list_init(&j->call.node);
	list_init(&j->node);
	lock(u);
	list_push(&u->jobs, &j->node);
	__atomic_store_n(&u->n_jobs, u->n_jobs + 1, __ATOMIC_RELEASE);
	unlock(u);
	ring(u);
}

void uffd_close(struct uffd_peer *p, struct uffd_job *j)
{
	p->closed = 1;
	j->peer = p;
	j->kind = UFFD_CLOSE;
	uffd_start(j);
}

/* ---- start and end --------------------------------------------------------------------- */

static int start(struct uffd *u)
{
	struct epoll_event e = { .events = EPOLLIN };
	int ret;

	u->bell = kio_sys_eventfd();
	if (u->bell < 0)
		return u->bell;
	ret = u->epoll = kio_sys_epoll();
	if (ret >= 0)
		ret = kio_sys_epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->bell, &e);
	if (!ret)
		ret = kio_sys_thread(&u->thread, thread_main, u, "kvd-uffd");
	if (!ret)
		return 0;
	(void)close(u->bell); /* nobody rang */
	if (u->epoll >= 0)
		(void)close(u->epoll); /* only ours */
	return ret;
}

int uffd_new(struct uffd **out, struct loop *loop, uint64_t spin_ns)
{
	struct uffd *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return -ENOMEM;
	u->loop = loop;
	u->spin_ns = spin_ns;
	u->epoll = -1;
	list_init(&u->jobs);
	list_init(&u->peers);
	(void)pthread_mutex_init(&u->lock, NULL); /* cannot fail: no attr */
	ret = start(u);
	if (ret) {
		free(u);
		return ret;
	}
	*out = u;
	return 0;
}

void uffd_free(struct uffd *u)
{
	if (!u)
		return;
	lock(u);
	assert(list_empty(&u->jobs));
	u->stop = 1;
	unlock(u);
	ring(u);
	(void)pthread_join(u->thread, NULL); /* it is ours and ends */
	(void)close(u->epoll); /* only ours */
	(void)close(u->bell); /* nobody rings any more */
	(void)pthread_mutex_destroy(&u->lock); /* nobody holds it */
	free(u);
}
