/*
 * emu_mma.c - what all lanes of a warp do together: mma, ldmatrix; and asynchronous
 * copies; see gpu_emu.h
 *
 * The last lane that comes computes for all: nobody goes on before. Layouts are those
 * of the PTX ISA, as gpu_mma.cuh says. A sum begins with the accumulator and goes up
 * the 16 products, each exact; hardware may order and round them otherwise.
 *
 * Copies of a thread are done when they are waited for, or, in every other block, when
 * they are begun: who reads too early, or overwrites too early, finds junk.
 */
#include <stdio.h>
#include <stdlib.h>
#include "kernels/gpu_args.h"
#include "tests/rig/cuda/gpu_emu.h"

#define WARP 32u

/* ---- together ----------------------------------------------------------------- */

struct lane {
	uint32_t a[4], b[2];
	float c[4];
	const void *p;
};

static struct {
	struct lane in[WARP];
	uint32_t out[WARP][4];
	uint32_t n;
} warps[GPU_THREADS / WARP];

/* Leave x, wait for the others, take what fn made of all. */
static void together(const struct lane *x, uint32_t *out,
		     void (*fn)(const struct lane *in, uint32_t (*out)[4]))
{
	const uint32_t w = threadIdx.x / WARP, i = threadIdx.x % WARP;

	warps[w].in[i] = *x;
	if (++warps[w].n == WARP) {
		warps[w].n = 0;
		fn(warps[w].in, warps[w].out);
	}
	emu_sync_warp();
	memcpy(out, warps[w].out[i], sizeof(warps[w].out[i]));
}

/* ---- mma ------------------------------------------------------------------------ */

static float widen_bf16(uint32_t h)
{
	return FROM_BITS(h << 16);
}

/* A table: conversions without the instruction are slow. */
static float widen_f16(uint32_t h)
{
	static float table[65536];
	static int done;

	if (!done) {
		for (uint32_t i = 0; i < 65536; i++)
			table[i] = from_f16(i);
		done = 1;
	}
	return table[h];
}

static void mma(const struct lane *in, uint32_t (*out)[4],
		float (*widen)(uint32_t))
{
	float a[16][16], b[16][8], c[16][8];

	for (uint32_t i = 0; i < WARP; i++) {
		const uint32_t g = i / 4, t = i % 4;

		for (uint32_t k = 0; k < 4; k++) {
			float *at = &a[g + k % 2 * 8][2 * t + k / 2 * 8];

			at[0] = widen(in[i].a[k] & 0xffffu);
			at[1] = widen(in[i].a[k] >> 16);
			c[g + k / 2 * 8][2 * t + k % 2] = in[i].c[k];
		}
		for (uint32_t k = 0; k < 2; k++) {
			b[2 * t + 8 * k][g] = widen(in[i].b[k] & 0xffffu);
			b[2 * t + 8 * k + 1][g] = widen(in[i].b[k] >> 16);
		}
	}
	for (uint32_t r = 0; r < 16; r++)
		for (uint32_t k = 0; k < 16; k++)
			for (uint32_t j = 0; j < 8; j++)
				c[r][j] += a[r][k] * b[k][j];
	for (uint32_t i = 0; i < WARP; i++)
		for (uint32_t k = 0; k < 4; k++)
			out[i][k] = TO_BITS(
				c[i / 4 + k / 2 * 8][i % 4 * 2 + k % 2]);
}

static void all_bf16(const struct lane *in, uint32_t (*out)[4])
{
	mma(in, out, widen_bf16);
}

static void all_f16(const struct lane *in, uint32_t (*out)[4])
{
	mma(in, out, widen_f16);
}

static void multiply(float *c, const uint32_t *a, uint32_t b0, uint32_t b1,
		     void (*fn)(const struct lane *in, uint32_t (*out)[4]))
{
	struct lane x = { .b = { b0, b1 } };

	memcpy(x.a, a, sizeof(x.a));
	memcpy(x.c, c, sizeof(x.c));
	together(&x, (uint32_t *)(void *)c, fn);
}

void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
	multiply(c, a, b0, b1, all_bf16);
}

void mma_f16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
	multiply(c, a, b0, b1, all_f16);
}

/* ---- ldmatrix --------------------------------------------------------------------- */

static uint32_t half_at(const struct lane *in, uint32_t matrix, uint32_t row,
			uint32_t col)
{
	uint16_t h;

	memcpy(&h, (const char *)in[8 * matrix + row].p + 2 * col, sizeof(h));
	return h;
}

static void all_rows(const struct lane *in, uint32_t (*out)[4])
{
	for (uint32_t i = 0; i < WARP; i++)
		for (uint32_t k = 0; k < 4; k++)
			out[i][k] = half_at(in, k, i / 4, i % 4 * 2) |
				    half_at(in, k, i / 4, i % 4 * 2 + 1) << 16;
}

static void all_columns(const struct lane *in, uint32_t (*out)[4])
{
	for (uint32_t i = 0; i < WARP; i++)
		for (uint32_t k = 0; k < 4; k++)
			out[i][k] = half_at(in, k, i % 4 * 2, i / 4) |
				    half_at(in, k, i % 4 * 2 + 1, i / 4) << 16;
}

static void load(uint32_t *r, const void *p,
		 void (*fn)(const struct lane *in, uint32_t (*out)[4]))
{
	const struct lane x = { .p = p };

	if ((uintptr_t)p % 16)
		abort();
	together(&x, r, fn);
}

void ldmatrix(uint32_t *r, const void *p)
{
	load(r, p, all_rows);
}

void ldmatrix_trans(uint32_t *r, const void *p)
{
	load(r, p, all_columns);
}

/* ---- copies ------------------------------------------------------------------------- */

#define MAX_COPIES 128u

static struct {
	struct copy {
		void *to;
		const void *from;
		uint32_t n, group;
	} copies[MAX_COPIES];
	uint32_t n, group; /* waiting; the group that is being made */
} queues[GPU_THREADS];

static void copy(const struct copy *c)
{
	memset(c->to, 0, 16);
	memcpy(c->to, c->from, c->n);
}

void cp_async(void *to, const void *from, uint32_t n)
{
	const uint32_t i = threadIdx.x;
	const struct copy c = { to, from, n, queues[i].group };

	if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || (n && n != 16) ||
	    queues[i].n == MAX_COPIES)
		abort();
	if ((blockIdx.x + blockIdx.y) % 2)
		copy(&c);
	else
		queues[i].copies[queues[i].n++] = c;
}

void cp_commit(void)
{
	queues[threadIdx.x].group++;
}

void cp_wait(uint32_t n)
{
	const uint32_t i = threadIdx.x;
	uint32_t done = 0;

	while (done < queues[i].n &&
	       queues[i].copies[done].group + n < queues[i].group)
		copy(&queues[i].copies[done++]);
	queues[i].n -= done;
	memmove(queues[i].copies, queues[i].copies + done,
		queues[i].n * sizeof(*queues[i].copies));
}

/* A block that ends with copies under way has forgotten to wait. */
void emu_block_begins(uint32_t n_shared)
{
	for (uint32_t i = 0; i < GPU_THREADS; i++) {
		if (queues[i].n) {
			(void)fputs("gpu_emu: copies that nobody waited for\n",
				    stderr);
			abort();
		}
		queues[i].group = 0;
	}
	emu_hopper_begins();
	memset(emu_shared, 0xff, n_shared); /* NaN */
}
