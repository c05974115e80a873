/*
 * gpu_emu.c - a block's threads, one at a time; see gpu_emu.h
 */
#include "tests/rig/cuda/gpu_emu.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include "kernels/gpu_args.h"

#define STACK (64u << 10)

enum at { RUNS, AT_WARP, AT_BLOCK, ENDED };

struct emu_dim threadIdx, blockIdx, gridDim;

static struct {
	ucontext_t ctx;
	enum at at;
	int parity;
} threads[GPU_THREADS];
static char stacks[GPU_THREADS][STACK] __attribute__((aligned(64)));
static float slots[2][GPU_THREADS];
static ucontext_t scheduler;
static uint32_t current;
static void (*run_fn)(const void *);
static const void *run_args;

static void stop_at(enum at at)
{
	const uint32_t i = current;

	threads[i].at = at;
	if (swapcontext(&threads[i].ctx, &scheduler))
		abort();
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
	ucontext_t *c = &threads[i].ctx;

	threads[i].at = RUNS;
	threads[i].parity = 0;
	if (getcontext(c))
		abort();
	c->uc_stack.ss_sp = stacks[i];
	c->uc_stack.ss_size = STACK;
	c->uc_link = NULL;
	makecontext(c, thread_main, 0);
}

static void run_block(void)
{
	for (uint32_t i = 0; i < GPU_THREADS; i++)
		start(i);
	while (!ended()) {
		int any = 0;

		for (uint32_t i = 0; i < GPU_THREADS; i++) {
			if (threads[i].at != RUNS)
				continue;
			current = i;
			threadIdx.x = i;
			any = 1;
			if (swapcontext(&scheduler, &threads[i].ctx))
				abort();
		}
		for (uint32_t w = 0; w < GPU_THREADS; w += 32)
			any |= release(w, w + 32, AT_WARP);
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
	     struct emu_dim grid)
{
	run_fn = fn;
	run_args = args;
	gridDim = grid;
	for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
		for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
			for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
				run_block();
}
