/*
 * emu_hopper.c - wgmma, the tensor copy engine and its barriers, in C; see gpu_emu.h
 *
 * Descriptors, swizzles and layouts are decoded as the PTX ISA has them, not as the
 * kernels mean them. A copy is done when somebody waits for it or, in every other
 * block, when it is begun. Products are done at once.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/cuda_api.h"
#include "tests/rig/cuda/fake_priv.h"
#include "tests/rig/cuda/gpu_emu.h"

#define MAX_LOADS 64
#define MAX_BARS  8

/* What the fake makes of a tensor map: two dimensions of 16 bits, 128-byte rows. */
struct map {
	uint64_t magic, base, pitch, n[2];
	uint32_t box[2];
};
#define MAGIC 0x74656e736f72ull

static struct bar {
	uint64_t *at;
	int64_t bytes; /* to come */
	int arrived;
	uint32_t phase;
} bars[MAX_BARS];

static struct load {
	unsigned char *to;
	const struct map *map;
	int32_t x, y;
	uint64_t *bar;
} loads[MAX_LOADS];
static uint32_t n_loads;

static void die(const char *why)
{
	(void)fprintf(stderr, "gpu_emu: %s\n", why);
	abort();
}

uint32_t shared_addr(const void *p)
{
	const ptrdiff_t at = (const unsigned char *)p - emu_shared;

	if (at < 0 || at >= EMU_SHARED)
		die("not shared memory");
	return (uint32_t)at;
}

/* Chunks of 16 bytes within 128 are exchanged by the row: bits 7 to 9. */
static uint32_t swizzle(uint32_t at)
{
	return at ^ ((at >> 7 & 7) << 4);
}

/* ---- barriers ------------------------------------------------------------------- */

static struct bar *bar_of(const uint64_t *at)
{
	for (int i = 0; i < MAX_BARS; i++)
		if (bars[i].at == at)
			return &bars[i];
	die("no such barrier");
	return NULL;
}

void mbar_init(uint64_t *at)
{
	for (int i = 0; i < MAX_BARS; i++)
		if (!bars[i].at) {
			bars[i] = (struct bar){ .at = at };
			return;
		}
	die("too many barriers");
}

static void end_phase(struct bar *b)
{
	if (b->arrived && !b->bytes) {
		b->phase ^= 1;
		b->arrived = 0;
	}
}

void mbar_expect(uint64_t *at, uint32_t n)
{
	struct bar *b = bar_of(at);

	if (b->arrived)
		die("a barrier of one arrival has two");
	b->bytes += n;
	b->arrived = 1;
	end_phase(b);
}

static void load(const struct load *l)
{
	const struct map *m = l->map;
	struct bar *b = bar_of(l->bar);

	for (uint32_t r = 0; r < m->box[1]; r++) {
		const char *from = (const char *)m->base +
				   (size_t)(l->y + (int64_t)r) * m->pitch +
				   2 * (size_t)l->x;

		for (uint32_t c = 0; c < m->box[0] * 2 / 16; c++)
			memcpy(emu_shared + swizzle(shared_addr(l->to) +
						    128 * r + 16 * c),
			       from + 16 * c, 16);
	}
	b->bytes -= m->box[0] * 2 * m->box[1];
	end_phase(b);
}

void mbar_wait(uint64_t *at, uint32_t parity)
{
	const struct bar *b = bar_of(at);
	uint32_t kept = 0;

	if (b->phase != parity)
		return; /* that phase is over */
	for (uint32_t i = 0; i < n_loads; i++)
		if (loads[i].bar == at)
			load(&loads[i]);
		else
			loads[kept++] = loads[i];
	n_loads = kept;
	if (b->phase == parity)
		die("a barrier that nothing comes to");
}

/* ---- copies ------------------------------------------------------------------------ */

void tma_load(void *to, const void *map, int32_t x, int32_t y, uint64_t *bar)
{
	const struct load l = { to, map, x, y, bar };

	if (l.map->magic != MAGIC || shared_addr(to) % 1024 || x < 0 || y < 0 ||
	    (uint64_t)x + l.map->box[0] > l.map->n[0] ||
	    (uint64_t)y + l.map->box[1] > l.map->n[1] || n_loads == MAX_LOADS)
		die("a copy that is not allowed");
	if ((blockIdx.x + blockIdx.y) % 2)
		load(&l);
	else
		loads[n_loads++] = l;
}

int cuTensorMapEncodeTiled(void *out, int type, uint32_t rank, void *base,
			   const uint64_t *n, const uint64_t *strides,
			   const uint32_t *box, const uint32_t *steps,
			   int interleave, int swizzled, int l2, int fill);
int cuTensorMapEncodeTiled(void *out, int type, uint32_t rank, void *base,
			   const uint64_t *n, const uint64_t *strides,
			   const uint32_t *box, const uint32_t *steps,
			   int interleave, int swizzled, int l2, int fill)
{
	const int err = fake_enter("cuTensorMapEncodeTiled");
	const struct map m = { MAGIC,
			       (uintptr_t)base,
			       strides[0],
			       { n[0], n[1] },
			       { box[0], box[1] } };

	(void)l2;
	if (err)
		return err;
	if (type != CUDA_TENSOR_16 || rank != 2 || (uintptr_t)base % 16 ||
	    strides[0] % 16 || n[0] > 1ull << 32 || n[1] > 1ull << 32 ||
	    box[0] > 256 || box[1] > 256 || box[0] * 2 > 128 || steps[0] != 1 ||
	    steps[1] != 1 || interleave || swizzled != CUDA_SWIZZLE_128 || fill)
		return fake_leave(CUDA_INVALID_VALUE);
	memcpy(out, &m, sizeof(m));
	return fake_leave(CUDA_OK);
}

void emu_hopper_begins(void)
{
	if (n_loads)
		die("copies that nobody waited for");
	memset(bars, 0, sizeof(bars));
}

/* ---- products ----------------------------------------------------------------------- */

/* Element k of N n: along rows K is contiguous, across them N is. */
static uint32_t element(uint64_t desc, uint32_t k, uint32_t n, int across)
{
	const uint32_t start = (uint32_t)(desc & 0x3fff) << 4;
	const uint32_t step = (uint32_t)(desc >> 32 & 0x3fff) << 4;
	const uint32_t row = across ? k : n, col = across ? n : k;
	uint16_t h;

	if (desc >> 62 != 1 || desc >> 49 & 7)
		die("not a descriptor of 128-byte swizzles");
	memcpy(&h,
	       emu_shared + swizzle(start + row / 8 * step + row % 8 * 128 +
				    2 * col),
	       sizeof(h));
	return h;
}

static void multiply(float (*d)[4], const uint32_t *a, uint64_t desc, int add,
		     int across,
		     void (*mma)(float *, const uint32_t *, uint32_t, uint32_t))
{
	const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

	for (uint32_t j = 0; j < 8; j++) {
		const uint32_t n = 8 * j + g;

		if (!add)
			memset(d[j], 0, sizeof(d[j]));
		mma(d[j], a,
		    element(desc, 2 * t, n, across) |
			    element(desc, 2 * t + 1, n, across) << 16,
		    element(desc, 2 * t + 8, n, across) |
			    element(desc, 2 * t + 9, n, across) << 16);
	}
}

/* FAKE_WGMMA=other: a device whose wgmma rounds otherwise than its mma. */
static void round_otherwise(float (*d)[4])
{
	static int is_other = -1;

	if (is_other < 0)
		is_other = getenv("FAKE_WGMMA") != NULL;
	for (uint32_t i = 0; is_other && i < 32; i++)
		d[i / 4][i % 4] = nextafterf(d[i / 4][i % 4], INFINITY);
}

void wgmma_bf16(float (*d)[4], const uint32_t *a, uint64_t desc, int add,
		int across)
{
	multiply(d, a, desc, add, across, mma_bf16);
	round_otherwise(d);
}

void wgmma_f16(float (*d)[4], const uint32_t *a, uint64_t desc, int add,
	       int across)
{
	multiply(d, a, desc, add, across, mma_f16);
	round_otherwise(d);
}
