/*
 * engine.c - run page requests on io_uring, or on threads where it is forbidden
 *
 *   queued --submit--> in flight --completed--> (short: queued again) --> done()
 *
 * At most depth requests are in flight. done() runs from kio_engine_reap() only.
 * Threads: they take from todo and put into finished, both under m.
 */
#include "io/engine.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "io/base.h"
#include "io/fault.h"
#include "io/sys.h"

#define N_THREADS 4

struct fifo {
	struct kio_req *first, **end;
};

struct kio_engine {
	enum kio_engine_kind kind;
	uint32_t depth;
	uint32_t n_in_flight;
	int event_fd;
	struct fifo queued;
	struct io_uring ring;

	pthread_t threads[N_THREADS];
	int n_threads;
	pthread_mutex_t m;
	pthread_cond_t more;
	struct fifo todo;     /* (m) */
	struct fifo finished; /* (m) */
	int stop;	      /* (m) */
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

/* ---- threads ------------------------------------------------------------ */

static void ring_bell(struct kio_engine *e)
{
	const uint64_t one = 1;

	/* a full counter is a bell that still rings */
	if (write(e->event_fd, &one, sizeof(one)) < 0)
		return;
}

static int transfer(struct kio_req *r)
{
	const struct kio_span s = kio_req_span(r);
	int ret;

	if (r->op == KIO_OP_READ) {
		ret = kio_fault("uring.read");
		if (!ret)
			ret = kio_sys_pread(s.fd, s.buf, s.n_bytes, s.off);
	} else {
		ret = kio_fault("uring.write");
		if (!ret)
			ret = kio_sys_pwrite(s.fd, s.buf, s.n_bytes, s.off);
	}
	return ret == -ENODATA ? -EIO : ret;
}

static void *thread_main(void *arg)
{
	struct kio_engine *e = arg;
	struct kio_req *r;

	pthread_mutex_lock(&e->m);
	for (;;) {
		while (!(r = fifo_pop(&e->todo)) && !e->stop)
			pthread_cond_wait(&e->more, &e->m);
		if (!r)
			break;
		pthread_mutex_unlock(&e->m);
		r->ret = transfer(r);
		pthread_mutex_lock(&e->m);
		fifo_push(&e->finished, r);
		ring_bell(e);
	}
	pthread_mutex_unlock(&e->m);
	return NULL;
}

static int start_threads(struct kio_engine *e)
{
	e->kind = KIO_ENGINE_THREADS;
	for (; e->n_threads < N_THREADS; e->n_threads++) {
		int ret = pthread_create(&e->threads[e->n_threads], NULL,
					 thread_main, e);

		if (ret)
			return -ret;
	}
	return 0;
}

static void stop_threads(struct kio_engine *e)
{
	pthread_mutex_lock(&e->m);
	e->stop = 1;
	pthread_cond_broadcast(&e->more);
	pthread_mutex_unlock(&e->m);
	for (int i = 0; i < e->n_threads; i++)
		pthread_join(e->threads[i], NULL);
}

/* ---- life ------------------------------------------------------------------ */

static int start_uring(struct kio_engine *e)
{
	int ret = kio_fault("uring.setup");

	if (!ret)
		ret = io_uring_queue_init(e->depth, &e->ring, 0);
	if (ret)
		return ret;
	ret = io_uring_register_eventfd(&e->ring, e->event_fd);
	if (ret) {
		io_uring_queue_exit(&e->ring);
		return ret;
	}
	e->kind = KIO_ENGINE_URING;
	return 0;
}

int kio_engine_new(struct kio_engine **out, enum kio_engine_kind kind,
		   uint32_t depth)
{
	struct kio_engine *e = calloc(1, sizeof(*e));
	int ret = 0;

	if (!e)
		return -ENOMEM;
	e->depth = depth ? depth : 32;
	fifo_init(&e->queued);
	fifo_init(&e->todo);
	fifo_init(&e->finished);
	pthread_mutex_init(&e->m, NULL);
	pthread_cond_init(&e->more, NULL);
	e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->event_fd < 0)
		ret = -errno;
	if (!ret && kind != KIO_ENGINE_THREADS)
		ret = start_uring(e);
	if (!e->kind && (kind == KIO_ENGINE_THREADS ||
			 (ret && kind == KIO_ENGINE_AUTO)))
		ret = start_threads(e);
	if (ret) {
		kio_engine_free(e);
		return ret;
	}
	*out = e;
	return 0;
}

void kio_engine_free(struct kio_engine *e)
{
	if (!e)
		return;
	while (e->n_in_flight || e->queued.first) {
		kio_engine_submit(e);
		if (!kio_engine_reap(e))
			usleep(100);
	}
	stop_threads(e);
	if (e->kind == KIO_ENGINE_URING)
		io_uring_queue_exit(&e->ring);
	if (e->event_fd >= 0)
		close(e->event_fd);
	pthread_cond_destroy(&e->more);
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

/* ---- submit and reap ----------------------------------------------------------- */

void kio_engine_queue(struct kio_engine *e, struct kio_req *r)
{
	fifo_push(&e->queued, r);
}

static void submit_threads(struct kio_engine *e)
{
	struct kio_req *r;

	pthread_mutex_lock(&e->m);
	while (e->n_in_flight < e->depth && (r = fifo_pop(&e->queued))) {
		fifo_push(&e->todo, r);
		e->n_in_flight++;
	}
	pthread_cond_broadcast(&e->more);
	pthread_mutex_unlock(&e->m);
}

static void prepare(struct io_uring_sqe *sqe, struct kio_req *r)
{
	const struct kio_span s = kio_req_span(r);

	if (r->op == KIO_OP_READ)
		io_uring_prep_read(sqe, s.fd, s.buf, (unsigned)s.n_bytes,
				   (uint64_t)s.off);
	else
		io_uring_prep_write(sqe, s.fd, s.buf, (unsigned)s.n_bytes,
				    (uint64_t)s.off);
	io_uring_sqe_set_data(sqe, r);
}

void kio_engine_submit(struct kio_engine *e)
{
	if (!e->queued.first)
		return;
	if (e->kind == KIO_ENGINE_THREADS) {
		submit_threads(e);
		return;
	}
	while (e->queued.first && e->n_in_flight < e->depth) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);

		if (!sqe)
			break;
		prepare(sqe, fifo_pop(&e->queued));
		e->n_in_flight++;
	}
	/* what the kernel does not take now stays in the ring for the next call */
	(void)io_uring_submit(&e->ring);
}

/* What the completion says: 1 finished, 0 it goes on. */
static int settle(struct kio_req *r, int res)
{
	const struct kio_span s = kio_req_span(r);
	const int fault = kio_fault(r->op == KIO_OP_READ ? "uring.read" :
							   "uring.write");

	if (fault)
		res = fault;
	if (res > 4096 && res % 4096 == 0 && kio_fault("uring.short"))
		res = 4096;
	if (res == -EAGAIN || res == -EINTR)
		return 0;
	if (res <= 0) {
		r->ret = res ? res : -EIO; /* 0: the file ends before */
		return 1;
	}
	r->done_bytes += (size_t)res;
	r->ret = 0;
	return (size_t)res >= s.n_bytes;
}

static int reap_uring(struct kio_engine *e, struct fifo *done)
{
	struct io_uring_cqe *cqe;
	int n = 0;

	while (!io_uring_peek_cqe(&e->ring, &cqe)) {
		struct kio_req *r = io_uring_cqe_get_data(cqe);
		const int res = cqe->res;

		io_uring_cqe_seen(&e->ring, cqe);
		e->n_in_flight--;
		if (settle(r, res))
			fifo_push(done, r);
		else
			fifo_push(&e->queued, r);
		n++;
	}
	return n;
}

static int reap_threads(struct kio_engine *e, struct fifo *done)
{
	struct kio_req *r;
	int n = 0;

	pthread_mutex_lock(&e->m);
	while ((r = fifo_pop(&e->finished))) {
		fifo_push(done, r);
		e->n_in_flight--;
		n++;
	}
	pthread_mutex_unlock(&e->m);
	return n;
}

int kio_engine_reap(struct kio_engine *e)
{
	struct kio_req *r;
	struct fifo done;
	uint64_t bell;
	int n;

	/* EAGAIN: called without a bell, which is fine */
	if (read(e->event_fd, &bell, sizeof(bell)) < 0)
		bell = 0;
	fifo_init(&done);
	n = e->kind == KIO_ENGINE_URING ? reap_uring(e, &done) :
					  reap_threads(e, &done);
	while ((r = fifo_pop(&done)))
		r->done(r);
	return n;
}
