/*
 * engine.c - run page requests on io_uring, or on threads where it is forbidden
 *
 *   queued --submit--> in flight --completed--> settle() --> done()
 *      ^                                           |
 *      +---------- short, EAGAIN, EINTR -----------+
 *
 *  (1) At most depth requests are in flight; more wait in queued.
 *  (2) done() runs from kio_engine_reap() only, on the thread that calls it.
 *  (3) Whatever waits in queued or in the ring when reap returns has either
 *      been submitted by it, or event_fd is readable, or something is in
 *      flight: the loop comes back.
 *
 * Both engines share settle(), so both know short transfers and fault points.
 * Threads: they take from a crew's todo and put into finished, both under m.
 * A crew calls a thread for each request, but for what is prepared, which nobody waits
 * for, one at a time: who has prepared one calls the next if there is more to do. A call
 * costs who makes it some 5 us, and 40 where it is for a CPU of a guest that sleeps. What is
 * prepared goes to threads in either engine: io_uring's would be one more to call.
 * Discards have a crew of one in either engine, started with the first of them:
 * io_uring has none before Linux 6.12, and one that takes long delays no page.
 *
 * Reserving and punching go through the engine too: io_uring runs fallocate on
 * a thread of the kernel. From the loop thread it could wait for ever on
 * kernels 6.6 to 6.13, where fallocate waits for direct writes whose
 * completion waits for the thread that submitted them.
 */
#include "io/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <unistd.h>
#include "io/base.h"
#include "io/fault.h"
#include "io/sys.h"

#define N_THREADS     4
#define DEPTH_DEFAULT 32
#define N_FILES	      256 /* registered at most */
#define BLOCK_BYTES   4096

struct fifo {
	struct kio_req *first, **end;
};

/* Threads that take from one queue. */
struct crew {
	struct kio_engine *engine;
	pthread_t threads[N_THREADS];
	int n;
	sem_t calls; /* not a condition: glibc before 2.41 may lose a signal of one */
	struct fifo todo; /* (m) */
	int n_asleep; /* (m) and not called */
	int called; /* (m) one comes, or prepares, that will look for more */
};

struct kio_engine {
	enum kio_engine_kind kind; /* AUTO: none started */
	uint32_t depth;
	uint32_t n_in_flight;
	uint32_t n_discards; /* given to their thread, not counted above */
	int event_fd;
	struct fifo queued;
	struct fifo refused; /* the kernel would not take them: ret is set */
	struct io_uring ring;
	uint8_t used_files[N_FILES]; /* slots of the table taken */
	int n_files; /* size of the table; 0: none */

	struct crew pages, discards;
	pthread_mutex_t m;
	struct fifo finished; /* (m) */
	int stop; /* (m) */
};

static void fifo_init(struct fifo *f)
{
	f->first = NULL;
	f->end = &f->first;
}

static void fifo_push(struct fifo *f, struct kio_req *r)
{
	r->next = NULL;
	*f->end = r;
	f->end = &r->next;
}

static struct kio_req *fifo_pop(struct fifo *f)
{
	struct kio_req *r = f->first;

	if (r) {
		f->first = r->next;
		if (!f->first)
			f->end = &f->first;
	}
	return r;
}

static void ring_bell(struct kio_engine *e)
{
	const uint64_t one = 1;

	/* a full counter is a bell that still rings */
	if (write(e->event_fd, &one, sizeof(one)) < 0)
		return;
}

/* ---- results ------------------------------------------------------------ */

/* Where and how much of a request is still to be done. */
struct span {
	char *buf; /* NULL: nothing is transferred */
	size_t n_bytes;
	off_t off;
};

static struct span span_of(const struct kio_req *r)
{
	const int moves = r->op == KIO_OP_READ || r->op == KIO_OP_WRITE;

	return (struct span){
		.buf = moves ? (char *)r->buf + r->done_bytes : NULL,
		.n_bytes = r->n_bytes - r->done_bytes,
		.off = r->off + (off_t)r->done_bytes,
	};
}

static int fault_of(const struct kio_req *r)
{
	static const char *const names[] = { "uring.read", "uring.write",
					     "uring.reserve", "uring.punch",
					     "uring.discard" };

	return kio_fault(names[r->op]);
}

/* What callers are told; -EINVAL is the end of a file cut inside a block. */
static int error_of(int res)
{
	switch (res) {
	case -EDQUOT:
		return -ENOSPC;
	case 0:
	case -EINVAL:
	case -ENODATA:
		return -EIO;
	}
	return res;
}

/* res: bytes or -errno. 1: r is finished, its ret set; 0: it must go on. */
static int settle(struct kio_req *r, int res)
{
	const struct span s = span_of(r);
	const int fault = fault_of(r);

	if (fault)
		res = fault;
	if (res == -EAGAIN || res == -EINTR)
		return 0;
	if (!s.buf) {
		r->ret = res;
		return 1;
	}
	if (res > BLOCK_BYTES && res % BLOCK_BYTES == 0 &&
	    kio_fault("uring.short"))
		res = BLOCK_BYTES;
	if (res <= 0) {
		r->ret = error_of(res);
		return 1;
	}
	r->done_bytes += (size_t)res;
	r->ret = 0;
	return (size_t)res >= s.n_bytes;
}

static int punch_mode(const struct kio_req *r)
{
	return r->op == KIO_OP_PUNCH
		       ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
		       : 0;
}

/* ---- threads ------------------------------------------------------------ */

static int transfer(struct kio_req *r)
{
	const struct span s = span_of(r);
	int ret;

	if (r->op == KIO_OP_DISCARD)
		return kio_sys_discard(r->fd, s.off, (off_t)s.n_bytes);
	if (!s.buf)
		return kio_sys_fallocate(r->fd, punch_mode(r), s.off,
					 (off_t)s.n_bytes);
	ret = r->op == KIO_OP_READ
		      ? kio_sys_pread(r->fd, s.buf, s.n_bytes, s.off)
		      : kio_sys_pwrite(r->fd, s.buf, s.n_bytes, s.off);
	return ret ? ret : (int)s.n_bytes;
}

/* m is held. 1: crew_call() when it is free, else who comes waits for it. */
static int crew_calls(struct crew *c)
{
	if (!c->n_asleep)
		return 0;
	c->n_asleep--;
	return 1;
}

static void crew_call(struct crew *c, int call)
{
	if (call)
		(void)sem_post(&c->calls); /* fails after 2^31 calls only */
}

/* The next request, waited for; NULL: it is over. */
static struct kio_req *crew_take(struct crew *c)
{
	struct kio_engine *e = c->engine;
	struct kio_req *r;
	int stop;

	for (;;) {
		pthread_mutex_lock(&e->m);
		r = fifo_pop(&c->todo);
		stop = e->stop;
		c->n_asleep += !r && !stop;
		pthread_mutex_unlock(&e->m);
		if (r || stop)
			return r;
		while (sem_wait(&c->calls)) /* a signal */
			;
	}
}

static void prepare(struct crew *c, struct kio_req *r)
{
	int call = 0;

	if (r->prepare)
		r->prepare(r);
	pthread_mutex_lock(&c->engine->m);
	if (r->prepare || c->called)
		call = c->called = c->todo.first && crew_calls(c);
	pthread_mutex_unlock(&c->engine->m);
	crew_call(c, call);
}

static void *thread_main(void *arg)
{
	struct crew *c = arg;
	struct kio_engine *e = c->engine;
	struct kio_req *r;

	while ((r = crew_take(c))) {
		prepare(c, r);
		while (!settle(r, transfer(r)))
			;
		pthread_mutex_lock(&e->m);
		fifo_push(&e->finished, r);
		pthread_mutex_unlock(&e->m);
		ring_bell(e);
	}
	return NULL;
}

static void crew_init(struct crew *c, struct kio_engine *e)
{
	c->engine = e;
	fifo_init(&c->todo);
	(void)sem_init(&c->calls, 0, 0); /* cannot fail: 0 is no large number */
}

static int crew_start(struct crew *c, int n, const char *name)
{
	int ret = 0;

	for (; c->n < n && !ret; c->n += !ret)
		ret = kio_sys_thread(&c->threads[c->n], thread_main, c, name);
	return ret;
}

/* e->stop is set. */
static void crew_fini(struct crew *c)
{
	for (int i = 0; i < c->n; i++)
		crew_call(c, 1);
	for (int i = 0; i < c->n; i++)
		pthread_join(c->threads[i], NULL);
	(void)sem_destroy(&c->calls);
}

static int start_threads(struct kio_engine *e)
{
	e->kind = KIO_ENGINE_THREADS;
	return crew_start(&e->pages, N_THREADS, "kvd-io");
}

static void stop_threads(struct kio_engine *e)
{
	pthread_mutex_lock(&e->m);
	e->stop = 1;
	pthread_mutex_unlock(&e->m);
	crew_fini(&e->pages);
	crew_fini(&e->discards);
}

static void crew_push(struct crew *c, struct kio_req *r)
{
	int call;

	pthread_mutex_lock(&c->engine->m);
	fifo_push(&c->todo, r);
	call = !(r->prepare && c->called) && crew_calls(c);
	c->called |= call && r->prepare;
	pthread_mutex_unlock(&c->engine->m);
	crew_call(c, call);
}

static void submit_threads(struct kio_engine *e)
{
	while (e->n_in_flight < e->depth && e->queued.first) {
		crew_push(&e->pages, fifo_pop(&e->queued));
		e->n_in_flight++;
	}
}

static void reap_threads(struct kio_engine *e, struct fifo *done)
{
	struct kio_req *r;

	pthread_mutex_lock(&e->m);
	while ((r = fifo_pop(&e->finished))) {
		fifo_push(done, r);
		*(r->op == KIO_OP_DISCARD ? &e->n_discards : &e->n_in_flight) -=
			1;
	}
	pthread_mutex_unlock(&e->m);
}

/* ---- io_uring ----------------------------------------------------------- */

static int start_uring(struct kio_engine *e)
{
	struct io_uring_params p = { .flags = IORING_SETUP_CLAMP };
	int ret = kio_fault("uring.setup");

	if (!ret)
		ret = io_uring_queue_init_params(e->depth, &e->ring, &p);
	if (ret)
		return ret;
	ret = kio_fault("uring.register");
	if (!ret)
		ret = io_uring_register_eventfd(&e->ring, e->event_fd);
	if (ret) {
		io_uring_queue_exit(&e->ring);
		return ret;
	}
	if (!kio_fault("uring.files") &&
	    !io_uring_register_files_sparse(&e->ring, N_FILES))
		e->n_files = N_FILES;
	e->kind = KIO_ENGINE_URING;
	return 0;
}

static int set_file(struct kio_engine *e, int i, int fd)
{
	if (kio_fault("uring.file"))
		return -1;
	return io_uring_register_files_update(&e->ring, (unsigned)i, &fd, 1) ==
			       1
		       ? 0
		       : -1;
}

int kio_engine_add_file(struct kio_engine *e, int fd)
{
	for (int i = 0; i < e->n_files; i++) {
		if (e->used_files[i])
			continue;
		if (set_file(e, i, fd))
			return -1;
		e->used_files[i] = 1;
		return i;
	}
	return -1;
}

void kio_engine_del_file(struct kio_engine *e, int i_fixed)
{
	if (i_fixed < 0)
		return;
	/* a slot that stays full is one that is not used again */
	if (!set_file(e, i_fixed, -1))
		e->used_files[i_fixed] = 0;
}

static void fill(struct io_uring_sqe *sqe, struct kio_req *r)
{
	const struct span s = span_of(r);
	const int fd = r->i_fixed < 0 ? r->fd : r->i_fixed;

	if (!s.buf)
		io_uring_prep_fallocate(sqe, fd, punch_mode(r), s.off,
					(off_t)s.n_bytes);
	else if (r->op == KIO_OP_READ)
		io_uring_prep_read(sqe, fd, s.buf, (unsigned)s.n_bytes,
				   (uint64_t)s.off);
	else
		io_uring_prep_write(sqe, fd, s.buf, (unsigned)s.n_bytes,
				    (uint64_t)s.off);
	if (r->i_fixed >= 0)
		sqe->flags |= IOSQE_FIXED_FILE;
	if (r->aside)
		sqe->flags |= IOSQE_ASYNC;
	io_uring_sqe_set_data(sqe, r);
}

static void fail_now(struct kio_engine *e, struct kio_req *r, int err)
{
	r->ret = err;
	fifo_push(&e->refused, r);
	ring_bell(e);
}

/*
 * What the kernel would not take becomes NOPs, which it may take later. If it
 * does not take those either they fill the ring, and all that waits fails too.
 */
static void refuse(struct kio_engine *e, int err)
{
	struct io_uring_sq *sq = &e->ring.sq;
	const unsigned int n = io_uring_sq_ready(&e->ring);
	struct kio_req *r;
	int n_failed = 0;

	for (unsigned int i = sq->sqe_tail - n; i != sq->sqe_tail; i++) {
		struct io_uring_sqe *sqe = &sq->sqes[i & sq->ring_mask];

		r = (struct kio_req *)(uintptr_t)sqe->user_data;
		io_uring_prep_nop(sqe);
		io_uring_sqe_set_data(sqe, NULL);
		if (!r)
			continue;
		e->n_in_flight--;
		fail_now(e, r, err);
		n_failed++;
	}
	while (!n_failed && (r = fifo_pop(&e->queued)))
		fail_now(e, r, err);
}

/* A few are as good as all. 0: none can be started. */
static int has_threads(struct kio_engine *e)
{
	(void)crew_start(&e->pages, N_THREADS, "kvd-io");
	return e->pages.n;
}

/* The first of those queued, to threads if it is to be prepared; 0: the ring is full. */
static int start_one(struct kio_engine *e)
{
	struct kio_req *r = e->queued.first;
	struct io_uring_sqe *sqe;

	if (r->prepare && has_threads(e)) {
		crew_push(&e->pages, fifo_pop(&e->queued));
		return 1;
	}
	sqe = io_uring_get_sqe(&e->ring);
	if (!sqe)
		return 0;
	if (r->prepare)
		r->prepare(r);
	r->prepare = NULL;
	fill(sqe, fifo_pop(&e->queued));
	return 1;
}

static void submit_uring(struct kio_engine *e)
{
	while (e->queued.first && e->n_in_flight < e->depth && start_one(e))
		e->n_in_flight++;
	while (io_uring_sq_ready(&e->ring)) {
		int ret = kio_fault("uring.submit");

		if (!ret)
			ret = io_uring_submit(&e->ring);
		if (ret > 0 || ret == -EINTR)
			continue;
		if (!ret || ret == -EAGAIN || ret == -EBUSY)
			ring_bell(e); /* try again in a turn */
		else
			refuse(e, ret);
		break;
	}
}

static void reap_uring(struct kio_engine *e, struct fifo *done)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&e->ring, &cqe)) {
		struct kio_req *r = io_uring_cqe_get_data(cqe);
		const int res = cqe->res;

		io_uring_cqe_seen(&e->ring, cqe);
		if (!r)
			continue;
		e->n_in_flight--;
		if (settle(r, res))
			fifo_push(done, r);
		else
			fifo_push(&e->queued, r);
	}
}

/* ---- life --------------------------------------------------------------- */

static int start_engine(struct kio_engine *e, enum kio_engine_kind kind)
{
	int ret;

	if (kind == KIO_ENGINE_THREADS)
		return start_threads(e);
	ret = start_uring(e);
	if (ret && kind == KIO_ENGINE_AUTO)
		ret = start_threads(e);
	return ret;
}

int kio_engine_new(struct kio_engine **out, enum kio_engine_kind kind,
		   uint32_t depth)
{
	struct kio_engine *e = calloc(1, sizeof(*e));
	int ret;

	if (!e)
		return -ENOMEM;
	e->depth = depth ? depth : DEPTH_DEFAULT;
	fifo_init(&e->queued);
	fifo_init(&e->refused);
	fifo_init(&e->finished);
	pthread_mutex_init(&e->m, NULL);
	crew_init(&e->pages, e);
	crew_init(&e->discards, e);
	ret = kio_sys_eventfd();
	e->event_fd = ret;
	if (ret >= 0)
		ret = start_engine(e, kind);
	if (ret) {
		kio_engine_free(e);
		return ret;
	}
	*out = e;
	return 0;
}

/* Submit and reap until nothing is left. */
static void drain(struct kio_engine *e)
{
	struct pollfd bell = { .fd = e->event_fd, .events = POLLIN };

	while (e->n_in_flight || e->n_discards || e->queued.first ||
	       e->refused.first) {
		kio_engine_submit(e);
		/* the time limit is for safety only; see (3) */
		(void)kio_sys_poll(&bell, 1, 10);
		(void)kio_engine_reap(e);
	}
}

void kio_engine_free(struct kio_engine *e)
{
	if (!e)
		return;
	drain(e);
	stop_threads(e);
	if (e->kind == KIO_ENGINE_URING)
		io_uring_queue_exit(&e->ring);
	if (e->event_fd >= 0)
		close(e->event_fd);
	pthread_mutex_destroy(&e->m);
	free(e);
}

int kio_engine_event_fd(const struct kio_engine *e)
{
	return e->event_fd;
}

const char *kio_engine_name(const struct kio_engine *e)
{
	return e->kind == KIO_ENGINE_URING ? "io_uring" : "threads";
}

/* ---- submit and reap ---------------------------------------------------- */

static void discard(struct kio_engine *e, struct kio_req *r)
{
	const int ret = crew_start(&e->discards, 1, "kvd-discard");

	if (ret) {
		fail_now(e, r, ret);
		return;
	}
	e->n_discards++;
	crew_push(&e->discards, r);
}

void kio_engine_queue(struct kio_engine *e, struct kio_req *r)
{
	r->done_bytes = 0;
	r->ret = 0;
	if (r->op == KIO_OP_DISCARD)
		discard(e, r);
	else
		fifo_push(&e->queued, r);
}

void kio_engine_submit(struct kio_engine *e)
{
	if (e->kind == KIO_ENGINE_URING)
		submit_uring(e);
	else if (e->queued.first)
		submit_threads(e);
}

int kio_engine_reap(struct kio_engine *e)
{
	struct kio_req *r;
	struct fifo done;
	uint64_t bell;
	int n = 0;

	/* EAGAIN: called without a bell, which is fine */
	if (read(e->event_fd, &bell, sizeof(bell)) < 0)
		bell = 0;
	fifo_init(&done);
	while ((r = fifo_pop(&e->refused)))
		fifo_push(&done, r);
	if (e->kind == KIO_ENGINE_URING)
		reap_uring(e, &done);
	if (e->pages.n || e->discards.n)
		reap_threads(e, &done);
	kio_engine_submit(e); /* the disk does not wait for callbacks */
	for (; (r = fifo_pop(&done)); n++)
		r->done(r);
	kio_engine_submit(e);
	return n;
}
