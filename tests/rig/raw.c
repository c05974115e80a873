/*
 * raw.c - a session without the library, for tests that break its rules
 */
#include "tests/rig/raw.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int raw_socket(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int err;

	if (fd < 0)
		return -errno;
	strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
	if (!connect(fd, (const struct sockaddr *)&a, sizeof(a)))
		return fd;
	err = -errno;
	(void)close(fd);
	return err;
}

static int receive(struct raw *r, struct kv_welcome *w)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = { w, sizeof(*w) };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = ctl.buf,
			    .msg_controllen = sizeof(ctl.buf) };
	struct cmsghdr *c;
	int fds[2];

	if (recvmsg(r->sock, &m, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*w))
		return -ECONNRESET;
	if (w->err)
		return w->err;
	c = CMSG_FIRSTHDR(&m);
	if (!c)
		return -EPROTO;
	memcpy(fds, CMSG_DATA(c), sizeof(fds));
	r->memfd = fds[0];
	r->doorbell = fds[1];
	return 0;
}

int raw_open(struct raw *r, const char *path, uint32_t sq_entries)
{
	const struct kv_hello h = { .magic = KV_MAGIC,
				    .major = KV_ABI_MAJOR,
				    .sq_entries = sq_entries,
				    .arena_bytes = 1 << 20,
				    .name = "raw" };
	struct kv_welcome w = { 0 };
	int ret;

	memset(r, 0, sizeof(*r));
	r->memfd = r->doorbell = -1;
	r->sock = raw_socket(path);
	if (r->sock < 0)
		return r->sock;
	if (send(r->sock, &h, sizeof(h), MSG_NOSIGNAL) < 0)
		ret = -errno;
	else
		ret = receive(r, &w);
	if (ret) {
		raw_close(r);
		return ret;
	}
	r->map_bytes = w.map_bytes;
	r->map = mmap(NULL, w.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		      r->memfd, 0);
	if (r->map == MAP_FAILED)
		return -errno;
	memcpy(&r->header, r->map, sizeof(r->header));
	r->sq = (struct kv_ring *)(r->map + r->header.sq_off);
	r->cq = (struct kv_ring *)(r->map + r->header.cq_off);
	r->sqes = (struct kv_sqe *)(r->sq + 1);
	r->cqes = (struct kv_cqe *)(r->cq + 1);
	r->arena = r->map + r->header.arena_off;
	return 0;
}

void raw_close(struct raw *r)
{
	if (r->map)
		(void)munmap(r->map, r->map_bytes);
	(void)close(r->sock);
	(void)close(r->memfd);
	(void)close(r->doorbell);
}

void raw_ring(struct raw *r)
{
	const uint64_t one = 1;

	(void)!write(r->doorbell, &one, sizeof(one));
}

void raw_push(struct raw *r, const struct kv_sqe *e)
{
	r->sqes[r->tail & (r->header.sq_entries - 1)] = *e;
	r->tail++;
	__atomic_store_n(&r->sq->tail, r->tail, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&r->sq->asleep, __ATOMIC_SEQ_CST))
		raw_ring(r);
}

uint32_t raw_reap(struct raw *r)
{
	const uint32_t tail = __atomic_load_n(&r->cq->tail, __ATOMIC_ACQUIRE);
	const uint32_t n = tail - r->cq->head;

	__atomic_store_n(&r->cq->head, tail, __ATOMIC_RELEASE);
	return n;
}

static void nap(long ns)
{
	const struct timespec t = { .tv_nsec = ns };

	(void)nanosleep(&t, NULL);
}

int raw_wait_closed(struct raw *r, int timeout_ms)
{
	int err = 0;

	for (int i = 0; i < timeout_ms && !err; i++) {
		err = (int)__atomic_load_n(&r->cq->closed, __ATOMIC_ACQUIRE);
		if (!err)
			nap(1000000);
	}
	return err;
}

/* ---- hostile ----------------------------------------------------------- */

struct scribbler {
	struct raw *r;
	uint64_t seed;
	atomic_int stop;
};

/* Keep changing what the daemon is reading. */
static void *scribble(void *arg)
{
	struct scribbler *s = arg;
	uint64_t *w = (uint64_t *)s->r->arena;
	const uint64_t n = 4096 / sizeof(*w);

	while (!atomic_load(&s->stop)) {
		const uint64_t v = raw_random(&s->seed);

		/* small numbers, offsets and nonsense, all where structs lie */
		w[v % n] = v & 1 ? v >> 32 & 0xfff : v & 2 ? 0 : v;
		if (!(v & 0xfff))
			nap(1000);
	}
	return NULL;
}

static uint64_t some_off(uint64_t v)
{
	switch (v >> 60 & 3) {
	case 0:
		return v & 0xfc0; /* where the structs are */
	case 1:
		return (1 << 20) - (v & 0xff);
	case 2:
		return v & 0xfffff;
	default:
		return 0 - (v & 0xff);
	}
}

static void random_entry(uint64_t *seed, struct kv_sqe *e)
{
	static const uint16_t ops[] = { 0, 1,  2,  3,  4,  5,  6,  7,  8,
					9, 10, 16, 17, 18, 19, 20, 21, 32 };
	const uint64_t v = raw_random(seed);
	uint64_t *w = (uint64_t *)e;

	if (v % 16 == 0) { /* all nonsense */
		for (size_t i = 0; i < sizeof(*e) / sizeof(*w); i++)
			w[i] = raw_random(seed);
		return;
	}
	*e = (struct kv_sqe){ .user_data = v };
	e->opcode = ops[(v >> 8) % (sizeof(ops) / sizeof(ops[0]))];
	e->seq = v & 1 << 20 ? (uint32_t)(v >> 24 & 7) : 0;
	e->flags = v & 7 << 21 ? 0 : 1;
	e->arg[0] = some_off(raw_random(seed));
	if (v & 1 << 30)
		e->arg[0] = v >> 32 & 7; /* a handle, a count */
	e->arg[1] = raw_random(seed) & 15;
	if (v & 1 << 29)
		e->arg[1] = 0;
	e->arg[2] = raw_random(seed) & 3;
	if (v & 3 << 27)
		e->arg[2] = 0;
}

/* Well-formed structs at 0, so that mutations come far. */
static void seed_arena(struct raw *r)
{
	struct kv_geometry *g = (struct kv_geometry *)r->arena;
	struct kv_attend_item *it = (struct kv_attend_item *)(r->arena + 256);

	memset(r->arena, 0, 4096);
	*g = (struct kv_geometry){
		.n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 32
	};
	for (uint32_t i = 0; i < 4; i++)
		it[i] = (struct kv_attend_item){ .seq = 1 + i,
						 .n_tokens = 2,
						 .q_off = 8192,
						 .k_off = 8192,
						 .v_off = 8192,
						 .o_off = 16384 };
}

static void jump_indices(struct raw *r, uint64_t *seed)
{
	static const uint32_t jumps[] = { 0x80000000u, 5000, 0xffffff00u };
	const uint64_t v = raw_random(seed);

	if (v & 1)
		__atomic_store_n(&r->cq->head,
				 r->cq->head - 1 - (uint32_t)(v >> 8 & 3),
				 __ATOMIC_RELEASE);
	__atomic_store_n(&r->sq->tail, r->tail + jumps[(v >> 1) % 3],
			 __ATOMIC_SEQ_CST);
	raw_ring(r);
}

int raw_hostile(const struct raw_hostile *h)
{
	const struct kv_sqe first[] = {
		{ .opcode = KV_OP_GEOMETRY },
		{ .opcode = KV_OP_SEQ_NEW, .arg = { 1 } },
		{ .opcode = KV_OP_SEQ_NEW, .arg = { 1, 256 } },
	};
	uint64_t seed = h->seed;
	struct scribbler s = { .seed = h->seed ^ 0x5555 };
	struct raw r;
	pthread_t t;
	int ret;

	ret = raw_open(&r, h->path, 64);
	if (ret)
		return ret;
	seed_arena(&r);
	for (size_t i = 0; i < 3; i++)
		raw_push(&r, &first[i]);
	nap(1000000);
	s.r = &r;
	if (pthread_create(&t, NULL, scribble, &s)) {
		raw_close(&r);
		return -EAGAIN;
	}
	for (uint32_t i = 0; i < h->n_entries && !r.cq->closed; i++) {
		struct kv_sqe e;

		random_entry(&seed, &e);
		for (int k = 0;
		     r.tail - __atomic_load_n(&r.sq->head, __ATOMIC_ACQUIRE) >=
			     r.header.sq_entries &&
		     k < 1000 && !r.cq->closed;
		     k++) {
			(void)raw_reap(&r);
			nap(20000);
		}
		raw_push(&r, &e);
		if (i % 16 == 0)
			(void)raw_reap(&r);
	}
	if (h->jump) {
		jump_indices(&r, &seed);
		ret = raw_wait_closed(&r, 2000) == -EPROTO ? 0 : -ETIME;
	}
	atomic_store(&s.stop, 1);
	(void)pthread_join(t, NULL);
	raw_close(&r);
	return ret;
}
