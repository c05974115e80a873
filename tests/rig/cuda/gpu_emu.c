/*
 * gpu_emu.c - a block's threads, one at a time; see gpu_emu.h
 */
#include "tests/rig/cuda/gpu_emu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/gpu_args.h"
#if defined(__SANITIZE_THREAD__) || !defined(__x86_64__)
#include <ucontext.h>
#define EMU_UCONTEXT
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define STACK (64u << 10)
#define TOP   4096u /* of a stack: its first frames */

enum at { RUNS, AT_WARP, AT_BLOCK, ENDED };

struct emu_dim threadIdx, blockIdx, gridDim;
unsigned char emu_shared[EMU_SHARED] __attribute__((aligned(1024)));

/* ---- contexts: ucontext where there is nothing better, else 20 times faster ----- */

#ifdef EMU_UCONTEXT
struct emu_ctx {
	ucontext_t u;
};

static void switch_to(struct emu_ctx *from, struct emu_ctx *to)
{
	if (swapcontext(&from->u, &to->u))
		abort();
}

static void ctx_init(struct emu_ctx *c, char *stack, void (*fn)(void))
{
	if (getcontext(&c->u))
		abort();
	c->u.uc_stack.ss_sp = stack;
	c->u.uc_stack.ss_size = STACK;
	c->u.uc_link = NULL;
	makecontext(&c->u, fn, 0);
}
#else
/* What a call must keep lies on the stack. */
struct emu_ctx {
	void *sp;
	const void *stack; /* for ASan: its lowest byte, its size, */
	size_t stack_bytes;
	void *fake; /* and what ASan keeps of it meanwhile */
};

void emu_switch(void **from, void *to);
__asm__(".text\n"
	".hidden emu_switch\n"
	".globl emu_switch\n"
	".type emu_switch, @function\n"
	"emu_switch:\n"
	"	push %rbp\n	push %rbx\n"
	"	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n"
	"	pop %rbx\n	pop %rbp\n"
	"	ret\n"
	".size emu_switch, . - emu_switch\n");

#ifdef __SANITIZE_ADDRESS__
static struct emu_ctx scheduler;

static void leave(struct emu_ctx *from, const struct emu_ctx *to)
{
	__sanitizer_start_switch_fiber(&from->fake, to->stack, to->stack_bytes);
}

/* What the thread before never returned from: thread_main, stop_at. */
static void forget(char *stack)
{
	__asan_unpoison_memory_region(stack + STACK - TOP, TOP);
}

/* Only the scheduler's stack is one that nobody told ASan of: that of who called. */
static void arrive(struct emu_ctx *at)
{
	const void *stack;
	size_t n;

	__sanitizer_finish_switch_fiber(at->fake, &stack, &n);
	if (at == &scheduler)
		return;
	scheduler.stack = stack;
	scheduler.stack_bytes = n;
}
#else
static void leave(struct emu_ctx *from, const struct emu_ctx *to)
{
	(void)from;
	(void)to;
}

static void arrive(struct emu_ctx *at)
{
	(void)at;
}

static void forget(char *stack)
{
	(void)stack;
}
#endif

static void switch_to(struct emu_ctx *from, struct emu_ctx *to)
{
	leave(from, to);
	emu_switch(&from->sp, to->sp);
	arrive(from);
}

/* The first switch returns into fn, which sees a stack as after a call. */
static void ctx_init(struct emu_ctx *c, char *stack, void (*fn)(void))
{
	void **sp = (void **)(stack + STACK) - 8;

	forget(stack);
	for (int i = 0; i < 8; i++)
		sp[i] = NULL;
	memcpy(&sp[6], &fn, sizeof(fn));
	*c = (struct emu_ctx){ .sp = sp, .stack = stack, .stack_bytes = STACK };
}
#endif

static struct {
	struct emu_ctx ctx;
	enum at at;
	int parity;
} threads[GPU_THREADS];
static char stacks[GPU_THREADS][STACK] __attribute__((aligned(64)));
static float slots[2][GPU_THREADS];
static struct emu_ctx scheduler;
static uint32_t current;
static void (*run_fn)(const void *);
static const void *run_args;
static uint32_t n_shared;

static void stop_at(enum at at)
{
	const uint32_t i = current;

	threads[i].at = at;
	switch_to(&threads[i].ctx, &scheduler);
}

void emu_sync_warp(void)
{
	stop_at(AT_WARP);
}

void emu_sync_block(void)
{
	stop_at(AT_BLOCK);
}

/* Two sets of slots: who is a barrier ahead does not overwrite what others read. */
float emu_shuffle_xor(uint32_t mask, float value, uint32_t x)
{
	const uint32_t i = current;
	const int p = threads[i].parity ^= 1;

	if (mask != ALL_LANES || x > 31)
		abort();
	slots[p][i] = value;
	stop_at(AT_WARP);
	return slots[p][i ^ x];
}

static void thread_main(void)
{
#ifndef EMU_UCONTEXT
	arrive(&threads[current].ctx);
#endif
	run_fn(run_args);
	stop_at(ENDED);
}

/* All of [from, to) at the same place: go on. */
static int release(uint32_t from, uint32_t to, enum at at)
{
	for (uint32_t i = from; i < to; i++)
		if (threads[i].at != at)
			return 0;
	for (uint32_t i = from; i < to; i++)
		threads[i].at = RUNS;
	return 1;
}

static int ended(void)
{
	for (uint32_t i = 0; i < GPU_THREADS; i++)
		if (threads[i].at != ENDED)
			return 0;
	return 1;
}

static void start(uint32_t i)
{
	threads[i].at = RUNS;
	threads[i].parity = 0;
	ctx_init(&threads[i].ctx, stacks[i], thread_main);
}

/* A warp until it meets a barrier of the block; was there anything to do? */
static int run_warp(uint32_t from)
{
	int any = 0, again = 1;

	while (again) {
		for (uint32_t i = from; i < from + 32; i++) {
			if (threads[i].at != RUNS)
				continue;
			current = i;
			threadIdx.x = i;
			any = 1;
			switch_to(&scheduler, &threads[i].ctx);
		}
		again = release(from, from + 32, AT_WARP);
	}
	return any;
}

static void run_block(void)
{
	/* every other block the other way round: an order that is luck fails */
	const uint32_t turn = blockIdx.x % 2 ? GPU_THREADS - 32 : 0;

	emu_block_begins(n_shared);
	for (uint32_t i = 0; i < GPU_THREADS; i++)
		start(i);
	while (!ended()) {
		int any = 0;

		for (uint32_t w = 0; w < GPU_THREADS; w += 32)
			any |= run_warp(w ^ turn);
		any |= release(0, GPU_THREADS, AT_BLOCK);
		if (!any) {
			(void)fputs("gpu_emu: a barrier that some threads do "
				    "not come to\n",
				    stderr);
			abort();
		}
	}
}

void emu_run(void (*fn)(const void *args), const void *args,
	     struct emu_dim grid, uint32_t shared)
{
	static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&one); /* of all streams */
	run_fn = fn;
	run_args = args;
	gridDim = grid;
	n_shared = shared;
	for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
		for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
			for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
				run_block();
	pthread_mutex_unlock(&one);
}
