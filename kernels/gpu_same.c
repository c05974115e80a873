/*
 * gpu_same.c - does wgmma sum as mma does on this device? See kern_gpu_wide_check()
 *
 * The architecture does not say, so it is tried: a prompt of noise by either, and the bits
 * of all that comes out compared. In a context of its own, which takes with it what a
 * kernel may break.
 */
#include "kernels/gpu_priv.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define N_HEADS	    2u
#define N_ROWS	    32u /* one tile, full */
#define N_TOKENS    560u /* more than a part */
#define PAGE_TOKENS 64u
#define N_PAGES	    ((N_TOKENS + PAGE_TOKENS - 1) / PAGE_TOKENS)
#define MAX_DIM	    128u
#define OUT_FLOATS  (N_ROWS * N_HEADS * (MAX_DIM + 2)) /* o, m, l */
#define WINDOW	    (1ull << 30) /* mostly of nothing, as a daemon's */
#define PATIENCE_MS 10000

/* Of the device and, pinned, of the host: one block. */
struct trial {
	struct gpu_span span;
	struct gpu_tile tiles[N_ROWS];
	struct gpu_part parts[N_ROWS];
	struct gpu_row rows[N_ROWS];
	uint16_t q[N_ROWS * N_HEADS * MAX_DIM];
	uint16_t kv[2 * N_PAGES * PAGE_TOKENS * MAX_DIM]
		__attribute__((aligned(256)));
	float out[2][OUT_FLOATS]; /* by mma, by wgmma */
};

struct check {
	const struct cuda_api *cu;
	struct kern_gpu *g;
	int dev;
	cuda_stream st;
	cuda_event end;
	struct trial *t;
	cuda_ptr at; /* of *t on the device */
};

static const struct {
	enum kern_type type;
	uint32_t dim;
} kinds[] = { { KERN_F16, 64 },
	      { KERN_F16, 128 },
	      { KERN_BF16, 64 },
	      { KERN_BF16, 128 } };
#define N_KINDS (sizeof(kinds) / sizeof(*kinds))

uint32_t kern_gpu_wide_kind(enum kern_type type, uint32_t head_dim)
{
	for (uint32_t i = 0; i < N_KINDS; i++)
		if (kinds[i].type == type && kinds[i].dim == head_dim)
			return 1u << i;
	return 0;
}

/* Between 2^-3 and 2^1, either sign: sums that have to be rounded. */
static void noise(uint16_t *to, size_t n, enum kern_type type)
{
	const int bits = type == KERN_F16 ? 10 : 7;
	const uint32_t least = (type == KERN_F16 ? 15 : 127) - 3;
	uint64_t x = 88172645463325252ull;

	for (size_t i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		to[i] = (uint16_t)((x >> 63) << 15 |
				   (least + (x >> 40 & 3)) << bits |
				   (x & ((1u << bits) - 1)));
	}
}

static cuda_ptr there(const struct check *c, const void *p)
{
	return c->at + (size_t)((const char *)p - (const char *)c->t);
}

static int fill(struct check *c, enum kern_type type, uint32_t dim,
		struct gpu_attn *a)
{
	struct trial *t = c->t;
	const struct kern_gpu_shape shape = { type, N_HEADS, 1, dim };
	const uint64_t head = PAGE_TOKENS * dim * 2ull;
	struct kern_gpu_plan p = { .parts = t->parts,
				   .tiles = t->tiles,
				   .rows = t->rows,
				   .max_parts = N_ROWS,
				   .max_tiles = N_ROWS,
				   .tile_rows = GPU_WIDE_ROWS };
	struct kern_gpu_list lists[N_ROWS];

	memset(t, 0, sizeof(*t));
	noise(t->q, sizeof(t->q) / 2, type);
	noise(t->kv, sizeof(t->kv) / 2, type);
	t->span = (struct gpu_span){ .k = there(c, t->kv),
				     .v = there(c, t->kv) + head,
				     .head_bytes = head,
				     .page_bytes = 2 * head,
				     .page_tokens = PAGE_TOKENS,
				     .n_tokens = N_TOKENS };
	for (uint32_t r = 0; r < N_ROWS; r++)
		lists[r] =
			(struct kern_gpu_list){ N_TOKENS - N_ROWS + r, 0, 1 };
	*a = (struct gpu_attn){ .q = there(c, t->q),
				.q_variant_elems = N_ROWS * N_HEADS * dim,
				.spans = there(c, &t->span),
				.tiles = there(c, t->tiles),
				.rows = there(c, t->rows),
				.n_heads = N_HEADS,
				.n_kv_heads = 1,
				.head_dim = dim,
				.n_rows = N_ROWS,
				.flags = GPU_ATTN_FINISH,
				.scale = 0.125f };
	if (kern_gpu_plan_rows(&shape, &t->span, lists, N_ROWS, &p) ||
	    p.n_parts)
		return -EINVAL;
	a->n_tiles = p.n_tiles;
	return 0;
}

/* A kernel that hangs is not waited for. */
static int wait_for(struct check *c)
{
	const struct timespec ms = { .tv_nsec = 1000000 };
	int ret = kern_errno(c->cu->event_record(c->end, c->st));

	for (int i = 0; !ret && i < PATIENCE_MS; i++) {
		ret = kern_errno(c->cu->event_query(c->end));
		if (ret != -EAGAIN)
			return ret;
		(void)nanosleep(&ms, NULL);
		ret = 0;
	}
	return ret ? ret : -ETIMEDOUT;
}

static int launch(struct check *c, enum kern_type type, struct gpu_attn *a)
{
	struct kern_gpu_window w;
	const uint64_t base = c->at > WINDOW ? (c->at - WINDOW) & ~4095ull : 0;
	int ret = kern_gpu_window(c->g, c->dev, type, a->head_dim, base,
				  c->at - base + WINDOW, &w);

	if (!ret && !kern_gpu_in_window(&w, &c->t->span, 1))
		ret = -EINVAL;
	for (int way = 0; way < 2 && !ret; way++) {
		const uint64_t n = N_ROWS * N_HEADS * sizeof(float);

		a->o = there(c, c->t->out[way]);
		a->m = a->o + n * a->head_dim;
		a->l = a->m + n;
		ret = way ? kern_gpu_attn_wide(c->g, &w, a, c->st)
			  : kern_gpu_attn(c->g, type, a, c->st);
	}
	return ret;
}

/* 1: the same bits, and something is there. */
static int compare(struct check *c, enum kern_type type, uint32_t dim)
{
	struct trial *t = c->t;
	const size_t n = N_ROWS * N_HEADS * (dim + 2) * sizeof(float);
	struct gpu_attn a;
	int ret = fill(c, type, dim, &a);

	if (!ret)
		ret = kern_errno(c->cu->h2d(c->at, t, sizeof(*t), c->st));
	if (!ret)
		ret = launch(c, type, &a);
	if (!ret)
		ret = kern_errno(c->cu->d2h(t->out, there(c, t->out),
					    sizeof(t->out), c->st));
	if (!ret)
		ret = wait_for(c);
	return ret ? ret
		   : t->out[0][0] != 0 && !memcmp(t->out[0], t->out[1], n);
}

static int open_check(struct check *c, const void *image)
{
	void *p = NULL;
	int ret = kern_gpu_open(&c->g, c->cu, image);

	if (!ret)
		ret = kern_errno(
			c->cu->stream_new(&c->st, CUDA_STREAM_NON_BLOCKING, 0));
	if (!ret)
		ret = kern_errno(
			c->cu->event_new(&c->end, CUDA_EVENT_DISABLE_TIMING));
	if (!ret)
		ret = kern_errno(c->cu->alloc(&c->at, sizeof(*c->t)));
	if (!ret)
		ret = kern_errno(c->cu->host_alloc(&p, sizeof(*c->t),
						   CUDA_HOST_PORTABLE));
	c->t = p;
	return ret;
}

/* Nothing is freed under a kernel; the memory may be gone with the context, though. */
static int close_check(struct check *c)
{
	int ret = c->end ? wait_for(c) : 0;

	if (ret == -ETIMEDOUT)
		return ret; /* what frees would wait, too */
	if (ret)
		(void)c->cu->stream_sync(c->st);
	if (c->t)
		(void)c->cu->host_free(c->t);
	if (c->at)
		(void)c->cu->free(c->at);
	if (c->end)
		(void)c->cu->event_free(c->end);
	if (c->st)
		(void)c->cu->stream_free(c->st);
	kern_gpu_close(c->g);
	return 0;
}

int kern_gpu_wide_check(struct kern_gpu *g, int dev, const void *image,
			uint32_t *same)
{
	struct check c = { .cu = g->cu, .dev = dev };
	cuda_handle ctx;
	int ret;

	*same = 0;
	if (!g->cu->tensor_map || !g->cu->ctx_new || !g->cu->ctx_free ||
	    !gpu_is_hopper(g, dev))
		return -ENOTSUP;
	ret = kern_errno(g->cu->ctx_new(&ctx, 0, dev));
	if (ret)
		return ret;
	ret = open_check(&c, image);
	for (uint32_t i = 0; i < N_KINDS && ret >= 0; i++) {
		ret = compare(&c, kinds[i].type, kinds[i].dim);
		*same |= ret == 1 ? 1u << i : 0;
	}
	if (ret < 0)
		*same = 0;
	if (close_check(&c))
		return -ETIMEDOUT;
	(void)g->cu->ctx_free(ctx);
	return ret < 0 ? ret : 0;
}
