/*
 * submit.c - queue, wait, sleep and wake
 *
 * Submission is under the lock. Waiting: one thread takes the role of the
 * reaper, reads completions and delivers those of all; the others ("followers")
 * sleep on turn until something was delivered or the role is free. The reaper
 * spins for spin_ns, then sleeps on the cq's tail, in slices: a dead
 * daemon writes nothing, so at the end of each slice the control socket is
 * asked whether it still has a peer.
 */
#include "libkvclient/kvc.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BATCH	 32
#define SLICE_NS 40000000ull /* a daemon's death is seen within it */
#define ROOM_NS	 1000000000ull /* kvc_submit() waits so long for room */
#define NAP_NS	 50000u
#define FOREVER	 UINT64_MAX

/* The session whose on_cqe runs on this thread: it must not wait. */
static __thread const struct kvc *in_callback;

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* flag: FUTEX_PRIVATE_FLAG, or 0 for a word that the daemon wakes. */
static int futex_wait(const uint32_t *word, uint32_t seen, uint64_t ns,
		      int flag)
{
	const struct timespec t = { .tv_sec = (time_t)(ns / 1000000000u),
				    .tv_nsec = (long)(ns % 1000000000u) };

	return syscall(SYS_futex, word, FUTEX_WAIT | flag, seen, &t, NULL, 0)
		       ? -errno
		       : 0;
}

static void lock(struct kvc *c)
{
	(void)pthread_mutex_lock(&c->lock); /* cannot fail: plain mutex */
}

static void unlock(struct kvc *c)
{
	(void)pthread_mutex_unlock(&c->lock);
}

/* Cannot block: the counter is far from its limit, or nobody listens. */
static void ring_doorbell(struct kvc *c)
{
	const uint64_t one = 1;

	(void)!write(c->doorbell, &one, sizeof(one));
}

/* ---- slots ------------------------------------------------------------- */

int kvc_slots_new(struct kvc *c)
{
	c->slots = calloc(c->cq.n, sizeof(*c->slots));
	if (!c->slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < c->cq.n; i++)
		c->slots[i].next_free = i + 1;
	c->free_slot = 0;
	c->n_free = c->cq.n;
	return 0;
}

static uint64_t slot_take_locked(struct kvc *c, struct kvc_req *r)
{
	const uint32_t i = c->free_slot;
	struct kvc_slot *s = &c->slots[i];

	c->free_slot = s->next_free;
	c->n_free--;
	s->generation++;
	s->req = r;
	return (uint64_t)s->generation << 32 | i;
}

/* Whose completion it is; the slot is freed with the last. */
static struct kvc_req *slot_resolve_locked(struct kvc *c,
					   const struct kv_cqe *e)
{
	const uint32_t i = (uint32_t)e->user_data;
	struct kvc_slot *s = &c->slots[i & (c->cq.n - 1)];
	struct kvc_req *r = s->req;

	if (i >= c->cq.n || s->generation != e->user_data >> 32 ||
	    !(s->generation & 1))
		return NULL;
	if (!(e->flags & KV_CQE_MORE)) {
		s->req = NULL;
		s->generation++;
		s->next_free = c->free_slot;
		c->free_slot = i;
		c->n_free++;
	}
	return r;
}

/* ---- delivery: by the reaper only -------------------------------------- */

static void deliver(struct kvc *c, struct kvc_req *r, const struct kv_cqe *e)
{
	const struct kvc *outer = in_callback;
	void (*on_cqe)(struct kvc_req *) = r->on_cqe;

	r->res = e->res;
	r->flags = e->flags;
	r->arg[0] = e->arg[0];
	r->arg[1] = e->arg[1];
	/* Before done: a waiter stays while its callback runs. */
	if (on_cqe)
		__atomic_store_n(&c->delivering, r, __ATOMIC_RELEASE);
	__atomic_fetch_add(&r->n_cqe, 1, __ATOMIC_RELEASE);
	if (!(e->flags & KV_CQE_MORE))
		__atomic_store_n(&r->done, 1, __ATOMIC_RELEASE);
	if (!on_cqe)
		return;
	in_callback = c;
	on_cqe(r);
	in_callback = outer;
	__atomic_store_n(&c->delivering, NULL, __ATOMIC_RELEASE);
}

static void wake_followers(struct kvc *c)
{
	__atomic_fetch_add(&c->turn, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&c->n_followers, __ATOMIC_SEQ_CST))
		(void)syscall(SYS_futex, &c->turn, FUTEX_WAKE_PRIVATE,
			      INT32_MAX, NULL, NULL, 0);
}

/* Read up to BATCH completions and deliver them; how many, or -errno. */
static int reap(struct kvc *c)
{
	struct kvc_req *reqs[BATCH];
	struct kv_cqe cqes[BATCH];
	int n, crowded;

	n = kv_ring_ready(&c->cq);
	if (n <= 0)
		return n;
	crowded = n > (int)(c->cq.n / 2);
	n = n < BATCH ? n : BATCH;
	for (int i = 0; i < n; i++)
		cqes[i] = c->cqes[kv_ring_slot(&c->cq, (uint32_t)i)];
	kv_ring_consume(&c->cq, (uint32_t)n);
	lock(c);
	for (int i = 0; i < n; i++)
		reqs[i] = slot_resolve_locked(c, &cqes[i]);
	/* The daemon may be waiting for room here. */
	if (crowded && __atomic_load_n(&c->sq.ring->asleep, __ATOMIC_SEQ_CST))
		ring_doorbell(c);
	unlock(c);
	for (int i = 0; i < n; i++)
		if (reqs[i])
			deliver(c, reqs[i], &cqes[i]);
	wake_followers(c);
	return n;
}

/* The session is over: every request in flight fails with err. */
static void fail_all(struct kvc *c, int err)
{
	const struct kv_cqe gone = { .res = err };
	struct kvc_req *list = NULL, *r;

	lock(c);
	c->broken = -ECONNRESET;
	for (uint32_t i = 0; i < c->cq.n; i++) {
		struct kvc_slot *s = &c->slots[i];

		if (!s->req)
			continue;
		s->req->next = list;
		list = s->req;
		s->req = NULL;
		s->generation++;
	}
	c->n_free = 0;
	unlock(c);
	while ((r = list)) {
		list = r->next;
		deliver(c, r, &gone);
	}
	wake_followers(c);
}

void kvc_slots_fail(struct kvc *c, int err)
{
	fail_all(c, err);
}

/* Messages that nobody has read yet (map.c) tell nothing of it. */
static int peer_gone(struct kvc *c)
{
	struct pollfd p = { .fd = c->sock, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0;
}

/* ---- waiting ----------------------------------------------------------- */

struct goal {
	struct kvc_req *req;
	int more; /* 1: a new completion is enough */
	uint64_t deadline_ns;
};

static int reached(const struct kvc *c, const struct goal *g)
{
	if (g->more &&
	    __atomic_load_n(&g->req->n_cqe, __ATOMIC_ACQUIRE) != g->req->n_seen)
		return 1;
	return __atomic_load_n(&g->req->done, __ATOMIC_ACQUIRE) &&
	       __atomic_load_n(&c->delivering, __ATOMIC_ACQUIRE) != g->req;
}

static int closed(const struct kvc *c)
{
	return (int)__atomic_load_n(&c->cq.ring->closed, __ATOMIC_ACQUIRE);
}

/* Spin until a completion is there, the session closed, or spin_ns passed. */
static int spin(struct kvc *c)
{
	uint64_t start = 0;

	for (uint32_t i = 0;; i++) {
		if (kv_ring_ready(&c->cq) || closed(c))
			return 1;
		relax();
		if (i % 64 != 63)
			continue;
		if (!start)
			start = now_ns();
		else if (now_ns() - start > c->spin_ns)
			return 0;
	}
}

static uint64_t left_ns(uint64_t deadline_ns, uint64_t most)
{
	uint64_t now;

	if (deadline_ns == FOREVER)
		return most;
	now = now_ns();
	if (now >= deadline_ns)
		return 0;
	return deadline_ns - now < most ? deadline_ns - now : most;
}

/* Sleep for a slice at most. 1: the daemon is gone. */
static int sleep_slice(struct kvc *c, uint64_t deadline_ns)
{
	const uint64_t ns = left_ns(deadline_ns, SLICE_NS);
	int ret = 0;

	if (!kv_ring_arm(&c->cq) && !closed(c))
		ret = futex_wait(&c->cq.ring->tail, c->cq.mine, ns, 0);
	kv_ring_disarm(&c->cq);
	return ret == -ETIMEDOUT && peer_gone(c);
}

/*
 * Not when the daemon was just woken: that takes longer than spin_ns, and it
 * may be waking on this very CPU (there: 48 us with spinning, 7 without).
 */
static int worth_spinning(struct kvc *c)
{
	return !__atomic_exchange_n(&c->rang, 0, __ATOMIC_RELAXED);
}

/* As the reaper: until the goal, the deadline or the end of the session. */
static void reap_until(struct kvc *c, const struct goal *g)
{
	int over, n, dead = 0;

	while (!reached(c, g)) {
		over = closed(c) || dead; /* read before the tail */
		n = reap(c);
		if (n > 0)
			continue;
		if (n < 0 || over) {
			fail_all(c, -ECONNRESET);
			return;
		}
		if (worth_spinning(c) && spin(c))
			continue;
		if (!left_ns(g->deadline_ns, 1))
			return;
		dead = sleep_slice(c, g->deadline_ns);
	}
}

static int role_try(struct kvc *c)
{
	return !__atomic_load_n(&c->reaping, __ATOMIC_RELAXED) &&
	       !__atomic_exchange_n(&c->reaping, 1, __ATOMIC_ACQ_REL);
}

static void role_drop(struct kvc *c)
{
	__atomic_store_n(&c->reaping, 0, __ATOMIC_SEQ_CST);
	wake_followers(c);
}

/* Sleep until something was delivered or the role is free. */
static void follow(struct kvc *c, const struct goal *g)
{
	const uint32_t turn = __atomic_load_n(&c->turn, __ATOMIC_SEQ_CST);
	const uint64_t ns = left_ns(g->deadline_ns, ROOM_NS);

	__atomic_fetch_add(&c->n_followers, 1, __ATOMIC_SEQ_CST);
	if (!reached(c, g) && __atomic_load_n(&c->reaping, __ATOMIC_SEQ_CST))
		(void)futex_wait(&c->turn, turn, ns, FUTEX_PRIVATE_FLAG);
	__atomic_fetch_sub(&c->n_followers, 1, __ATOMIC_SEQ_CST);
}

static int wait_for(struct kvc *c, const struct goal *g)
{
	if (!kvc_usable(c))
		return -EPERM;
	if (in_callback == c)
		return reached(c, g) ? 0 : -EDEADLK;
	while (!reached(c, g)) {
		if (role_try(c)) {
			reap_until(c, g);
			role_drop(c);
		} else {
			follow(c, g);
		}
		if (!reached(c, g) && !left_ns(g->deadline_ns, 1))
			return -ETIMEDOUT;
	}
	return 0;
}

static uint64_t deadline(int timeout_ms)
{
	return timeout_ms < 0 ? FOREVER
			      : now_ns() + (uint64_t)timeout_ms * 1000000u;
}

int kvc_wait(struct kvc *c, struct kvc_req *r, int timeout_ms)
{
	const struct goal g = { .req = r, .deadline_ns = deadline(timeout_ms) };
	int ret = wait_for(c, &g);

	return ret ? ret : r->res;
}

int kvc_wait_more(struct kvc *c, struct kvc_req *r, int timeout_ms)
{
	const struct goal g = { .req = r,
				.more = 1,
				.deadline_ns = deadline(timeout_ms) };
	int ret = wait_for(c, &g);

	if (ret)
		return ret;
	r->n_seen = __atomic_load_n(&r->n_cqe, __ATOMIC_ACQUIRE);
	return r->res;
}

/* Who polls in a loop asks for the peer once per slice only. */
static int time_to_look(struct kvc *c)
{
	const uint64_t now = now_ns();

	if (now < c->look_ns)
		return 0;
	c->look_ns = now + SLICE_NS;
	return 1;
}

int kvc_poll(struct kvc *c)
{
	int n, over, sum = 0;

	if (!kvc_usable(c))
		return -EPERM;
	if (in_callback == c || !role_try(c))
		return 0;
	if (!c->map) {
		role_drop(c);
		return -ECONNRESET;
	}
	do {
		over = closed(c);
		n = reap(c);
		sum += n > 0 ? n : 0;
	} while (n > 0);
	if (n < 0 || over || (!sum && time_to_look(c) && peer_gone(c))) {
		fail_all(c, -ECONNRESET);
		sum = sum ? sum : -ECONNRESET;
	}
	role_drop(c);
	return sum;
}

/* ---- submission -------------------------------------------------------- */

static int push_locked(struct kvc *c, const struct kv_sqe *sqe,
		       struct kvc_req *r)
{
	struct kv_sqe *e;
	uint64_t id;

	if (c->broken)
		return c->broken;
	if (!c->n_free || kv_ring_room(&c->sq, 1) < 1)
		return -EAGAIN;
	id = slot_take_locked(c, r);
	if (r)
		r->id = id;
	e = &c->sqes[kv_ring_slot(&c->sq, 0)];
	*e = *sqe;
	e->user_data = id;
	if (kv_ring_publish(&c->sq, 1)) {
		ring_doorbell(c);
		__atomic_store_n(&c->rang, 1, __ATOMIC_RELAXED);
	}
	return 0;
}

static int push(struct kvc *c, const struct kv_sqe *sqe, struct kvc_req *r)
{
	int ret;

	lock(c);
	ret = push_locked(c, sqe, r);
	unlock(c);
	return ret;
}

int kvc_submit(struct kvc *c, const struct kv_sqe *sqe, struct kvc_req *r)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	uint64_t limit = 0;
	int ret;

	if (!kvc_usable(c))
		return -EPERM;
	r->next = NULL;
	r->res = 0;
	r->flags = 0;
	r->arg[0] = r->arg[1] = 0;
	r->done = 0;
	r->n_cqe = r->n_seen = 0;
	while ((ret = push(c, sqe, r)) == -EAGAIN && in_callback != c) {
		if (!limit)
			limit = now_ns() + ROOM_NS;
		else if (now_ns() > limit)
			break;
		if (kvc_poll(c) <= 0)
			(void)nanosleep(&nap, NULL); /* shorter is fine */
	}
	return ret;
}

int kvc_call(struct kvc *c, struct kv_sqe *sqe)
{
	struct kvc_req r = { 0 };
	int ret = kvc_usable(c) && in_callback == c ? -EDEADLK
						    : kvc_submit(c, sqe, &r);

	return ret ? ret : kvc_wait(c, &r, -1);
}

int kvc_cancel(struct kvc *c, struct kvc_req *r)
{
	const struct kv_sqe sqe = { .opcode = KV_OP_CANCEL, .arg = { r->id } };

	if (!kvc_usable(c))
		return -EPERM;
	return push(c, &sqe, NULL);
}
