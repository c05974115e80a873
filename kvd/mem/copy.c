/*
 * copy.c - copies between device and pinned host memory; see copy.h
 *
 *   queue --take()--> chunk at the device --event--> landed --> loop: progress, done
 *
 *  (1) A copy is in its lane's queue until all of it is taken, or it failed.
 *  (2) It is over when it is out of the queue and none of its chunks is in flight;
 *      nothing is touched after that but by the loop's call.
 *  (3) Credits of a direction plus the bytes of its chunks in flight are
 *      credit_bytes.
 *  (4) Each chunk has an event of its own, so an error is told to its owner.
 *
 * Threads: one for each lane; m guards everything but the ring of a lane, which is
 * its thread's. No call of the driver is made with m held.
 */
#include "kvd/mem/copy.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "io/sys.h"
#include "kvd/base/log.h"

#define IN_FLIGHT 16u /* chunks of a lane */

struct chunk {
	struct copy *copy;
	struct copy_part at; /* what is copied */
	uint32_t parts_after; /* have landed when it has */
	cuda_event event; /* (I) */
};

struct lane {
	struct copier *copier; /* (I) */
	enum copy_dir dir; /* (I) */
	enum copy_prio prio; /* (I) */
	cuda_stream stream; /* (I) */
	pthread_t thread;
	int has_thread; /* (I) */
	struct list queue; /* (m) copies */
	int is_stalled; /* (m) its first copy waits for its event */
	struct chunk ring[IN_FLIGHT]; /* the lane's thread */
	uint32_t head, tail;
};

struct copier {
	struct copy_conf conf; /* (I) */
	const struct cuda_api *cu; /* (I) */
	pthread_mutex_t m;
	pthread_cond_t changed;
	int stop; /* (m) */
	_Atomic int lost; /* (A) */
	uint64_t credits[COPY_N_DIRS]; /* (m) bytes */
	struct copy_counts n; /* (m) */
	struct lane lanes[COPY_N_DIRS][COPY_N_PRIOS];
};

static int result(struct copier *k, const char *what, int r)
{
	const int ret = kern_errno(r);

	if (ret == -ENODEV && !atomic_exchange(&k->lost, 1))
		log_error("copy", "%s: %s: the device is lost", what,
			  cuda_error_name(k->cu, r));
	return ret;
}

/* ---- to the loop ------------------------------------------------------------ */

static void tell(struct loop_call *call)
{
	struct copy *c = container_of(call, struct copy, call);
	struct copier *k = c->copier;
	uint32_t n_done;
	int is_over;

	pthread_mutex_lock(&k->m);
	c->is_posted = 0;
	n_done = c->n_done;
	is_over = c->is_over;
	pthread_mutex_unlock(&k->m);
	if (is_over) {
		c->waiter->done(c->waiter, c->ret);
		return; /* c is the caller's */
	}
	if (c->progress && n_done > c->n_told) {
		c->n_told = n_done;
		c->progress(c, n_done);
	}
}

/* Is c to be posted? Called with m held; who gets 1 does it without. */
static int news(struct copy *c)
{
	if (c->is_taken && !c->n_flight && !c->is_over) {
		c->is_over = 1;
		c->copier->n.failed += c->ret != 0;
	}
	if (c->is_posted || (!c->is_over && !c->progress))
		return 0;
	c->is_posted = 1;
	return 1;
}

/* Called with m held; drops it for the post. */
static void post(struct copy *c)
{
	struct copier *k = c->copier;

	if (!news(c))
		return;
	pthread_mutex_unlock(&k->m);
	loop_post(k->conf.loop, &c->call);
	pthread_mutex_lock(&k->m);
}

/* ---- what is next ------------------------------------------------------------- */

/* Out of the queue, whatever is left of it: less urgent lanes may have waited for no
 * more than that. Called with m held. */
static void take_out(struct copy *c)
{
	list_del(&c->node);
	c->is_taken = 1;
	pthread_cond_broadcast(&c->copier->changed);
}

/* Bytes that follow each other in both memories, up to chunk_bytes; none where
 * only empty parts are left. Called with m held. */
static struct chunk cut(struct copier *k, struct copy *c)
{
	struct chunk ch = { .copy = c };

	while (c->next_part < c->n_parts) {
		const struct copy_part *p = &c->parts[c->next_part];
		const cuda_ptr dev = p->dev + c->next_off;
		char *host = (char *)p->host + c->next_off;
		size_t n = p->n - c->next_off;

		if (!ch.at.n)
			ch.at = (struct copy_part){ dev, host, 0 };
		else if (dev != ch.at.dev + ch.at.n ||
			 host != (char *)ch.at.host + ch.at.n)
			break;
		else
			k->n.merged++;
		n = KV_MIN(n, k->conf.chunk_bytes - ch.at.n);
		ch.at.n += n;
		c->next_off += n;
		if (c->next_off < p->n)
			break; /* full */
		c->next_part++;
		c->next_off = 0;
		if (ch.at.n == k->conf.chunk_bytes)
			break;
	}
	ch.parts_after = c->next_part;
	return ch;
}

/* May this lane queue something? Called with m held. */
static int may_queue(struct lane *l)
{
	struct copier *k = l->copier;

	for (int p = 0; p < (int)l->prio; p++) {
		const struct lane *o = &k->lanes[l->dir][p];

		if (!list_empty(&o->queue) && !o->is_stalled)
			return 0;
	}
	/* a whole one: what it will be is known when it is cut */
	return k->credits[l->dir] >= k->conf.chunk_bytes &&
	       l->tail - l->head < IN_FLIGHT;
}

/* ---- a lane ---------------------------------------------------------------------- */

/* Nothing of the lane is under way after this. Who cannot even be asked that may
 * write to host memory at any time: it counts as lost. */
static void drain(struct lane *l)
{
	struct copier *k = l->copier;
	const int ret =
		result(k, "cuStreamSynchronize", k->cu->stream_sync(l->stream));

	if (ret && !atomic_exchange(&k->lost, 1))
		log_error("copy",
			  "a stream cannot be waited for: %s: the "
			  "device counts as lost",
			  strerror(-ret));
}

/* The chunk is at the device, or its error is known. */
static int queue_chunk(struct lane *l, struct chunk *ch)
{
	struct copier *k = l->copier;
	const struct copy_part *p = &ch->at;
	int ret;

	if (atomic_load(&k->lost))
		return -ENODEV;
	if (l->dir == COPY_TO_DEVICE)
		ret = result(k, "cuMemcpyHtoDAsync",
			     k->cu->h2d(p->dev, p->host, p->n, l->stream));
	else
		ret = result(k, "cuMemcpyDtoHAsync",
			     k->cu->d2h(p->host, p->dev, p->n, l->stream));
	if (ret)
		return ret;
	ret = result(k, "cuEventRecord",
		     k->cu->event_record(ch->event, l->stream));
	if (ret)
		drain(l); /* it runs, and no event says when it ends */
	return ret;
}

/* Called with m held: a chunk of c ended with ret. */
static void land(struct lane *l, const struct chunk *ch, int ret)
{
	struct copier *k = l->copier;
	struct copy *c = ch->copy;

	k->credits[l->dir] += ch->at.n;
	c->n_flight--;
	if (!ret)
		k->n.bytes[l->dir] += ch->at.n;
	else if (!c->ret)
		c->ret = ret;
	if (!c->ret)
		c->n_done = ch->parts_after;
	if (c->ret && !c->is_taken)
		take_out(c);
	pthread_cond_broadcast(&k->changed);
	post(c);
}

/* The first of the queue: a chunk to the device. Called with m held. */
static void queue_next(struct lane *l)
{
	struct copier *k = l->copier;
	struct copy *c = list_entry(list_first(&l->queue), struct copy, node);
	struct chunk *slot = &l->ring[l->tail % IN_FLIGHT];
	const cuda_event event = slot->event;
	int ret;

	*slot = cut(k, c);
	slot->event = event;
	if (c->next_part == c->n_parts)
		take_out(c);
	if (!slot->at.n) { /* there was nothing to copy */
		post(c);
		return;
	}
	k->credits[l->dir] -= slot->at.n;
	k->n.copies++;
	c->n_flight++;
	pthread_mutex_unlock(&k->m);
	ret = queue_chunk(l, slot);
	pthread_mutex_lock(&k->m);
	if (ret)
		land(l, slot, ret);
	else
		l->tail++;
}

/* Until the oldest chunk is over. Called with m held. */
static void wait_oldest(struct lane *l)
{
	struct copier *k = l->copier;
	struct chunk *ch = &l->ring[l->head % IN_FLIGHT];
	int ret;

	pthread_mutex_unlock(&k->m);
	ret = result(k, "cuEventSynchronize", k->cu->event_sync(ch->event));
	if (ret)
		drain(l);
	pthread_mutex_lock(&k->m);
	l->head++;
	land(l, ch, ret);
}

/* What its first copy comes after. Called with m held. */
static void wait_after(struct lane *l, struct copy *c)
{
	struct copier *k = l->copier;
	int ret;

	l->is_stalled = 1;
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->m);
	ret = result(k, "cuEventSynchronize", k->cu->event_sync(c->after));
	pthread_mutex_lock(&k->m);
	l->is_stalled = 0;
	c->after = NULL;
	if (ret && !c->ret)
		c->ret = ret;
}

/* One thing of the lane; 0: there is nothing to do now. Called with m held. */
static int lane_turn(struct lane *l)
{
	struct list *first = list_first(&l->queue);
	struct copy *c = first ? list_entry(first, struct copy, node) : NULL;

	if (c && c->ret) { /* failed or cancelled: no more of it */
		take_out(c);
		post(c);
		return 1;
	}
	if (c && c->after) {
		/* what is in flight first: it may be told before */
		if (l->head != l->tail)
			wait_oldest(l);
		else
			wait_after(l, c);
		return 1;
	}
	if (c && may_queue(l)) {
		queue_next(l);
		return 1;
	}
	l->copier->n.credit_waits += c != NULL;
	if (l->head == l->tail)
		return 0;
	wait_oldest(l);
	return 1;
}

static void *lane_main(void *arg)
{
	struct lane *l = arg;
	struct copier *k = l->copier;

	(void)result(k, "cuCtxSetCurrent", k->cu->ctx_set(k->conf.ctx));
	pthread_mutex_lock(&k->m);
	while (!k->stop)
		if (!lane_turn(l))
			pthread_cond_wait(&k->changed, &k->m);
	pthread_mutex_unlock(&k->m);
	return NULL;
}

/* ---- what others call ------------------------------------------------------------ */

void copy_start(struct copier *k, struct copy *c)
{
	struct lane *l = &k->lanes[c->dir][c->prio];

	c->copier = k;
	c->call.run = tell;
	c->next_part = 0;
	c->next_off = 0;
	c->n_flight = 0;
	c->n_done = 0;
	c->n_told = 0;
	c->is_posted = 0;
	c->is_taken = 0;
	c->is_over = 0;
	c->ret = 0;
	pthread_mutex_lock(&k->m);
	list_push(&l->queue, &c->node);
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->m);
}

void copy_cancel(struct copier *k, struct copy *c)
{
	pthread_mutex_lock(&k->m);
	if (!c->is_taken && !c->ret)
		c->ret = -ECANCELED; /* its lane takes it out */
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->m);
}

void copy_hurry(struct copier *k, struct copy *c, enum copy_prio prio)
{
	pthread_mutex_lock(&k->m);
	if (!list_empty(&c->node) && prio < c->prio && !c->n_flight &&
	    !c->next_part && !c->next_off && !c->after) {
		list_del(&c->node);
		c->prio = prio;
		list_push(&k->lanes[c->dir][prio].queue, &c->node);
		pthread_cond_broadcast(&k->changed);
	}
	pthread_mutex_unlock(&k->m);
}

int copier_lost(const struct copier *k)
{
	return atomic_load(&k->lost);
}

void copier_counts(struct copier *k, struct copy_counts *out)
{
	pthread_mutex_lock(&k->m);
	*out = k->n;
	pthread_mutex_unlock(&k->m);
}

int copier_pin(struct copier *k, void *p, size_t n)
{
	const int ret =
		result(k, "cuCtxSetCurrent", k->cu->ctx_set(k->conf.ctx));

	if (ret)
		return ret;
	return result(k, "cuMemHostRegister",
		      k->cu->host_register(p, n, CUDA_HOST_PORTABLE));
}

void copier_unpin(struct copier *k, void *p)
{
	(void)result(k, "cuCtxSetCurrent", k->cu->ctx_set(k->conf.ctx));
	(void)result(k, "cuMemHostUnregister", k->cu->host_unregister(p));
}

/* ---- open, close ------------------------------------------------------------------- */

static int lane_open(struct lane *l, int stream_prio)
{
	struct copier *k = l->copier;
	int ret = result(k, "cuStreamCreate",
			 k->cu->stream_new(&l->stream, CUDA_STREAM_NON_BLOCKING,
					   stream_prio));

	for (uint32_t i = 0; i < IN_FLIGHT && !ret; i++)
		ret = result(
			k, "cuEventCreate",
			k->cu->event_new(&l->ring[i].event,
					 CUDA_EVENT_DISABLE_TIMING |
						 CUDA_EVENT_BLOCKING_SYNC));
	if (!ret)
		ret = kio_sys_thread(&l->thread, lane_main, l, "kvd-copy");
	l->has_thread = !ret;
	return ret;
}

static void lane_close(struct lane *l)
{
	const struct cuda_api *cu = l->copier->cu;

	if (l->has_thread)
		pthread_join(l->thread, NULL);
	for (uint32_t i = 0; i < IN_FLIGHT; i++)
		if (l->ring[i].event)
			(void)result(l->copier, "cuEventDestroy",
				     cu->event_free(l->ring[i].event));
	if (l->stream)
		(void)result(l->copier, "cuStreamDestroy",
			     cu->stream_free(l->stream));
}

/* Urgent lanes have urgent streams. */
static int open_lanes(struct copier *k)
{
	int least = 0, most = 0, ret;

	ret = result(k, "cuCtxSetCurrent", k->cu->ctx_set(k->conf.ctx));
	if (!ret)
		ret = result(k, "cuCtxGetStreamPriorityRange",
			     k->cu->ctx_prio(&least, &most));
	for (int d = 0; d < COPY_N_DIRS && !ret; d++)
		for (int p = 0; p < COPY_N_PRIOS && !ret; p++)
			ret = lane_open(&k->lanes[d][p],
					KV_MIN(most + p, least));
	return ret;
}

int copier_open(struct copier **out, const struct copy_conf *conf)
{
	struct copier *k;
	int ret;

	if (!conf->chunk_bytes || conf->credit_bytes < conf->chunk_bytes)
		return -EINVAL;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->conf = *conf;
	k->cu = conf->api;
	pthread_mutex_init(&k->m, NULL);
	pthread_cond_init(&k->changed, NULL);
	for (int d = 0; d < COPY_N_DIRS; d++) {
		k->credits[d] = conf->credit_bytes;
		for (int p = 0; p < COPY_N_PRIOS; p++) {
			struct lane *l = &k->lanes[d][p];

			l->copier = k;
			l->dir = (enum copy_dir)d;
			l->prio = (enum copy_prio)p;
			list_init(&l->queue);
		}
	}
	ret = open_lanes(k);
	if (ret) {
		copier_close(k);
		return ret;
	}
	*out = k;
	return 0;
}

void copier_close(struct copier *k)
{
	if (!k)
		return;
	pthread_mutex_lock(&k->m);
	k->stop = 1;
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->m);
	(void)result(k, "cuCtxSetCurrent", k->cu->ctx_set(k->conf.ctx));
	for (int d = 0; d < COPY_N_DIRS; d++) {
		for (int p = 0; p < COPY_N_PRIOS; p++) {
			assert(list_empty(&k->lanes[d][p].queue));
			lane_close(&k->lanes[d][p]);
		}
		assert(k->credits[d] == k->conf.credit_bytes);
	}
	pthread_cond_destroy(&k->changed);
	pthread_mutex_destroy(&k->m);
	free(k);
}
