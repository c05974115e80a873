/*
 * fake_stream.c - streams, events and copies of the fake driver; see fake_cuda.h
 */
#include <stdlib.h>
#include <string.h>
#include "tests/rig/cuda/fake_priv.h"
#include "tests/rig/cuda/gpu_emu.h"

/* ---- what a stream does ----------------------------------------------------- */

static void lose(int err)
{
	if (!fake.lost)
		fake.lost = err;
}

/* Bytes, on the stream's thread, locked. */
static void execute(struct fake_stream *s, struct fake_op *op)
{
	if (fake.lost)
		return;
	if (fake.fail_nth && !--fake.fail_nth) {
		if (fake.fail_for_good)
			lose(fake.fail_err);
		else
			s->err = fake.fail_err;
		return;
	}
	if (op->kind == OP_LAUNCH) {
		/* it stays in the queue; others may call meanwhile */
		pthread_mutex_unlock(&fake.m);
		if (op->grid[0])
			emu_run(op->fn, op->args,
				(struct emu_dim){ op->grid[0], op->grid[1],
						  op->grid[2] },
				op->shared);
		else
			op->fn(op->args);
		pthread_mutex_lock(&fake.m);
		return;
	}
	if (!fake_usable(op->dev, op->n)) {
		lose(CUDA_ILLEGAL_ADDRESS);
		return;
	}
	switch (op->kind) {
	case OP_H2D:
		memcpy((void *)op->dev, op->host, op->n);
		break;
	case OP_D2H:
		memcpy(op->host, (const void *)op->dev, op->n);
		break;
	case OP_MOVE:
		break;
	default:
		memset((void *)op->dev, op->value, op->n);
	}
}

/* May the first of the queue begin? */
static int may_run(const struct fake_stream *s)
{
	const struct fake_op *op = s->head;

	if (!op)
		return 0;
	if (fake.lost)
		return 1;
	if (fake.held && !fake.steps && op->kind != OP_EVENT &&
	    op->kind != OP_WAIT)
		return 0;
	return op->kind != OP_WAIT || op->event->s->done >= op->gen;
}

static void run_first(struct fake_stream *s)
{
	struct fake_op *op = s->head;

	if (op->kind == OP_EVENT) {
		op->event->s->done = op->gen;
		op->event->s->err = s->err;
		s->err = 0;
	} else if (op->kind != OP_WAIT) {
		if (fake.held && fake.steps)
			fake.steps--;
		execute(s, op);
	}
	s->head = op->next;
	if (!s->head)
		s->tail = &s->head;
	free(op);
	pthread_cond_broadcast(&fake.changed);
}

static void *stream_main(void *arg)
{
	struct fake_stream *s = arg;

	pthread_mutex_lock(&fake.m);
	while (!s->closing || s->head) {
		if (may_run(s)) {
			run_first(s);
			/* others may come in between */
			pthread_mutex_unlock(&fake.m);
			pthread_mutex_lock(&fake.m);
		} else {
			fake_wait();
		}
	}
	pthread_mutex_unlock(&fake.m);
	return NULL;
}

int fake_queue(struct fake_stream *s, struct fake_op op)
{
	struct fake_op *o;

	if (s->capture)
		return fake_captured(s, &op);
	o = malloc(sizeof(*o));
	if (!o)
		return CUDA_OUT_OF_MEMORY;
	*o = op;
	o->next = NULL;
	*s->tail = o;
	s->tail = &o->next;
	pthread_cond_broadcast(&fake.changed);
	return CUDA_OK;
}

int fake_in_use(uint64_t at, size_t n)
{
	for (const struct fake_stream *s = fake.streams; s; s = s->next)
		for (const struct fake_op *o = s->head; o; o = o->next)
			if (o->kind < OP_EVENT && o->dev < at + n &&
			    at < o->dev + o->n)
				return 1;
	return 0;
}

/* ---- streams --------------------------------------------------------------- */

int cuStreamCreateWithPriority(cuda_stream *out, unsigned int flags, int prio);
int cuStreamCreateWithPriority(cuda_stream *out, unsigned int flags, int prio)
{
	const int err = fake_enter("cuStreamCreateWithPriority");
	struct fake_stream *s;

	(void)flags;
	(void)prio;
	if (err)
		return err;
	s = calloc(1, sizeof(*s));
	if (!s)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	s->tail = &s->head;
	if (pthread_create(&s->thread, NULL, stream_main, s)) {
		free(s);
		return fake_leave(CUDA_OUT_OF_MEMORY);
	}
	s->next = fake.streams;
	fake.streams = s;
	fake.st.n_streams++;
	*out = s;
	return fake_leave(CUDA_OK);
}

/* Locked; unlocks while the thread ends. */
static void end_stream(struct fake_stream *s)
{
	struct fake_stream **at = &fake.streams;

	while (*at != s)
		at = &(*at)->next;
	s->closing = 1;
	pthread_cond_broadcast(&fake.changed);
	pthread_mutex_unlock(&fake.m);
	pthread_join(s->thread, NULL);
	pthread_mutex_lock(&fake.m);
	/* only now: what is queued counts as in use */
	for (at = &fake.streams; *at != s;)
		at = &(*at)->next;
	*at = s->next;
	free(s);
	fake.st.n_streams--;
}

int cuStreamDestroy_v2(cuda_stream st);
int cuStreamDestroy_v2(cuda_stream st)
{
	const int err = fake_enter("cuStreamDestroy_v2");

	if (err)
		return err;
	end_stream(st);
	return fake_leave(CUDA_OK);
}

void fake_end_streams(void)
{
	pthread_mutex_lock(&fake.m);
	fake.held = 0;
	lose(CUDA_DEINITIALIZED);
	while (fake.streams)
		end_stream(fake.streams);
	while (fake.events)
		fake_event_free(fake.events);
	pthread_mutex_unlock(&fake.m);
}

int cuStreamSynchronize(cuda_stream st);
int cuStreamSynchronize(cuda_stream st)
{
	const int err = fake_enter("cuStreamSynchronize");
	struct fake_stream *s = st;
	int ret;

	if (err)
		return err;
	if (s->capture) {
		s->capture->broken = 1;
		return fake_leave(CUDA_CAPTURE_UNSUPPORTED);
	}
	while (s->head)
		fake_wait();
	ret = fake.lost ? fake.lost : s->err;
	s->err = 0;
	return fake_leave(ret);
}

/* ---- events ---------------------------------------------------------------- */

int cuEventCreate(cuda_event *out, unsigned int flags);
int cuEventCreate(cuda_event *out, unsigned int flags)
{
	const int err = fake_enter("cuEventCreate");
	struct fake_event *e;

	if (err)
		return err;
	e = fake_event_new();
	if (!e)
		return fake_leave(CUDA_OUT_OF_MEMORY);
	if (flags & CUDA_EVENT_INTERPROCESS) {
		e->fd = fake_share_new(sizeof(*e->s), (void **)&e->s);
		if (e->fd <= 0) {
			e->s = &e->own;
			fake_event_free(e);
			return fake_leave(CUDA_OUT_OF_MEMORY);
		}
		fake.n_shared_events++;
	}
	*out = e;
	return fake_leave(CUDA_OK);
}

int cuEventDestroy_v2(cuda_event e);
int cuEventDestroy_v2(cuda_event e)
{
	const int err = fake_enter("cuEventDestroy_v2");
	struct fake_event *ev = e;

	if (err)
		return err;
	/* a stream still has it: on a device it would live on */
	while (!ev->opened && ev->s->done < ev->s->recorded)
		fake_wait();
	fake_event_free(ev);
	return fake_leave(CUDA_OK);
}

int cuEventRecord(cuda_event e, cuda_stream st);
int cuEventRecord(cuda_event e, cuda_stream st)
{
	const int err = fake_enter("cuEventRecord");
	struct fake_event *ev = e;
	int ret;

	if (err)
		return err;
	ret = fake_queue(st, (struct fake_op){ .kind = OP_EVENT,
					       .event = ev,
					       .gen = ev->s->recorded + 1 });
	if (!ret)
		ev->s->recorded++;
	return fake_leave(ret);
}

int cuStreamWaitEvent(cuda_stream st, cuda_event e, unsigned int flags);
int cuStreamWaitEvent(cuda_stream st, cuda_event e, unsigned int flags)
{
	const int err = fake_enter("cuStreamWaitEvent");
	struct fake_event *ev = e;

	(void)flags;
	if (err)
		return err;
	return fake_leave(
		fake_queue(st, (struct fake_op){ .kind = OP_WAIT,
						 .event = ev,
						 .gen = ev->s->recorded }));
}

int cuEventQuery(cuda_event e);
int cuEventQuery(cuda_event e)
{
	const int err = fake_enter("cuEventQuery");
	const struct fake_event *ev = e;

	if (err)
		return err;
	return fake_leave(ev->s->done < ev->s->recorded ? CUDA_NOT_READY
							: ev->s->err);
}

int cuEventSynchronize(cuda_event e);
int cuEventSynchronize(cuda_event e)
{
	const int err = fake_enter("cuEventSynchronize");
	const struct fake_event *ev = e;

	if (err)
		return err;
	while (ev->s->done < ev->s->recorded && !fake.lost)
		fake_wait();
	return fake_leave(fake.lost ? fake.lost : ev->s->err);
}

/* ---- copies ---------------------------------------------------------------- */

int cuMemcpyHtoDAsync_v2(cuda_ptr to, const void *from, size_t n,
			 cuda_stream st);
int cuMemcpyHtoDAsync_v2(cuda_ptr to, const void *from, size_t n,
			 cuda_stream st)
{
	const int err = fake_enter("cuMemcpyHtoDAsync_v2");

	if (err)
		return err;
	fake.st.n_pageable += !fake_is_pinned(from, n);
	fake.st.last_h2d = to;
	return fake_leave(fake_queue(
		st, (struct fake_op){ .kind = OP_H2D,
				      .dev = to,
				      .host = (void *)(uintptr_t)from,
				      .n = n }));
}

int cuMemcpyDtoHAsync_v2(void *to, cuda_ptr from, size_t n, cuda_stream st);
int cuMemcpyDtoHAsync_v2(void *to, cuda_ptr from, size_t n, cuda_stream st)
{
	const int err = fake_enter("cuMemcpyDtoHAsync_v2");

	if (err)
		return err;
	fake.st.n_pageable += !fake_is_pinned(to, n);
	return fake_leave(fake_queue(
		st, (struct fake_op){
			    .kind = OP_D2H, .dev = from, .host = to, .n = n }));
}

int cuMemsetD8Async(cuda_ptr to, unsigned char value, size_t n, cuda_stream st);
int cuMemsetD8Async(cuda_ptr to, unsigned char value, size_t n, cuda_stream st)
{
	const int err = fake_enter("cuMemsetD8Async");

	if (err)
		return err;
	return fake_leave(fake_queue(st, (struct fake_op){ .kind = OP_SET,
							   .dev = to,
							   .n = n,
							   .value = value }));
}

/* ---- for the tests ------------------------------------------------------------ */

int fake_kernel(void *st, uint64_t at, size_t n, unsigned char value);
int fake_kernel(void *st, uint64_t at, size_t n, unsigned char value)
{
	int ret;

	pthread_mutex_lock(&fake.m);
	ret = fake_queue(st, (struct fake_op){ .kind = OP_SET,
					       .dev = at,
					       .n = n,
					       .value = value });
	return fake_leave(ret);
}

void fake_fail_op(uint64_t nth, int err, int for_good);
void fake_fail_op(uint64_t nth, int err, int for_good)
{
	pthread_mutex_lock(&fake.m);
	fake.fail_nth = nth;
	fake.fail_err = err;
	fake.fail_for_good = for_good;
	pthread_mutex_unlock(&fake.m);
}

static void set_held(int held, uint32_t steps)
{
	pthread_mutex_lock(&fake.m);
	fake.held = held;
	fake.steps = steps;
	pthread_cond_broadcast(&fake.changed);
	pthread_mutex_unlock(&fake.m);
}

void fake_hold(void);
void fake_hold(void)
{
	set_held(1, 0);
}

void fake_go(void);
void fake_go(void)
{
	set_held(0, 0);
}

void fake_step(uint32_t n);
void fake_step(uint32_t n)
{
	set_held(1, n);
}
