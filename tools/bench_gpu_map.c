/*
 * bench_gpu_map.c - kvbench gpu: what mapping costs, by cuMem and with managed memory
 */
#include "tools/bench_gpu.h"

#include <stdlib.h>
#include <string.h>
#include "kvd/base/loop.h"
#include "kvd/mem/vmm_cuda.h"

#define N_CALLS 64u /* of each kind, for their costs */

/* ---- what calls cost -------------------------------------------------------------- */

enum { CREATE, MAP, ACCESS, UNMAP, RELEASE, N_COSTS };

/* One page through all of them: microseconds. */
static int one_page(const struct gpu *g, cuda_ptr at, double *us)
{
	const struct cuda_mem_prop prop = gpu_mem_prop(g);
	const struct cuda_access rw = { prop.location, CUDA_PROT_READWRITE };
	uint64_t t[N_COSTS + 1];
	cuda_mem mem;
	int r;

	t[0] = clock_ns();
	r = g->cu->create(&mem, g->page_bytes, &prop, 0);
	t[1] = clock_ns();
	if (r)
		return gpu_failed(g, "cuMemCreate", r);
	r = g->cu->map(at, g->page_bytes, 0, mem, 0);
	t[2] = clock_ns();
	if (!r)
		r = g->cu->set_access(at, g->page_bytes, &rw, 1);
	t[3] = clock_ns();
	if (!r)
		r = g->cu->unmap(at, g->page_bytes);
	t[4] = clock_ns();
	if (!r)
		r = g->cu->release(mem);
	t[5] = clock_ns();
	if (r)
		return gpu_failed(g, "mapping", r);
	for (int i = 0; i < N_COSTS; i++)
		us[i] = (double)(t[i + 1] - t[i]) * 1e-3;
	return 0;
}

static int call_costs(struct gpu *g)
{
	static const char *const names[N_COSTS] = { "create", "map",
						    "set_access", "unmap",
						    "release" };
	/* what was published of 2 MiB; nothing of a release */
	static const double kvcached_us[N_COSTS] = { 193, 1.5, 36, 26, 0 };
	double us[N_COSTS][N_CALLS], one[N_COSTS];
	cuda_ptr at;
	int r = g->cu->reserve(&at, N_CALLS * g->page_bytes, 0, 0, 0);

	if (r)
		return gpu_failed(g, "cuMemAddressReserve", r);
	for (uint32_t i = 0; i < N_CALLS; i++) {
		r = one_page(g, at + i * g->page_bytes, one);
		if (r)
			return r;
		for (int k = 0; k < N_COSTS; k++)
			us[k][i] = one[k];
	}
	for (int k = 0; k < N_COSTS; k++) {
		bench_put(g->b, bench_quantile(us[k], N_CALLS, 0.5), "us",
			  "gpu.map.%s_us", names[k]);
		if (kvcached_us[k] > 0)
			bench_note("gpu.map.%s_us: kvcached, on an A100: %g",
				   names[k], kvcached_us[k]);
	}
	(void)g->cu->unreserve(at, N_CALLS * g->page_bytes);
	return 0;
}

struct told {
	struct wait wait;
	int is_done, ret;
};

static void on_done(struct wait *w, int ret)
{
	struct told *t = container_of(w, struct told, wait);

	t->is_done = 1;
	t->ret = ret;
}

static int op_run(struct loop *l, struct vmm *v, struct vmm_op op)
{
	struct told t = { .wait = { on_done } };

	op.waiter = &t.wait;
	vmm_start(v, &op);
	while (!t.is_done)
		if (loop_turn(l, 1000) < 0)
			abort();
	return t.ret;
}

/* One way to a run of pages. */
struct way {
	enum vmm_kind kind;
	double run_us; /* a page of the run, to be mapped */
	double gb_s; /* of a streaming read of them; 0: not measured */
};

struct pages {
	struct gpu *g;
	struct gpu_read a;
	uint32_t n; /* reads for each wait */
};

static double read_run(void *arg)
{
	const struct pages *p = arg;
	const uint64_t t0 = clock_ns();
	int ret = 0;

	for (uint32_t i = 0; i < p->n && !ret; i++)
		ret = kern_gpu_read(p->g->kern, &p->a, GPU_READ_BLOCKS,
				    p->g->st);
	if (ret || p->g->cu->stream_sync(p->g->st))
		return -1;
	return (double)p->n * (double)p->a.n_vecs * 16 /
	       (double)(clock_ns() - t0);
}

static int read_rate(struct gpu *g, cuda_ptr at, uint64_t n_bytes, double *gb_s)
{
	struct pages p = { .g = g };
	struct bench_side s = { .run = read_run, .arg = &p };
	struct gpu_block out;
	int ret;

	if (!g->kern)
		return 0;
	ret = gpu_block_new(g, &out, GPU_READ_BLOCKS * GPU_THREADS * 4ull);
	if (ret)
		return ret;
	p.a = (struct gpu_read){ at, n_bytes / 16, out.at };
	ret = gpu_per_wait(read_run, &p, &p.n);
	if (!ret)
		ret = bench_rounds(&s, 1, 3, g->b->quick ? 0.2 : 1);
	if (!ret)
		*gb_s = bench_median(&s);
	gpu_block_free(g, &out);
	return ret;
}

/* Pages by the daemon's own way: from the pool, as one run. -ENOTSUP: not on this device. */
static int run_cost(struct gpu *g, struct loop *l, struct way *w)
{
	const uint64_t n = KV_MIN(N_CALLS, g->n_free / 4 / g->page_bytes);
	const struct vmm_conf conf = { .api = g->cu,
				       .loop = l,
				       .device = g->dev,
				       .kind = w->kind,
				       .budget_bytes = n * g->page_bytes,
				       .frame_bytes = g->page_bytes,
				       .pool_frames = (uint32_t)n };
	struct vmm_op op = { .verb = VMM_MAP, .n = n };
	struct vmm *v;
	uint64_t t0;
	int ret = vmm_open(&v, &conf);

	if (ret)
		return ret;
	ret = vmm_space_open(&op.space, v, 1, g->page_bytes, n);
	if (!ret) {
		vmm_settle(v);
		t0 = clock_ns();
		ret = op_run(l, v, op);
		w->run_us = (double)(clock_ns() - t0) * 1e-3 / (double)n;
		if (!ret)
			ret = read_rate(g, vmm_space_base(op.space),
					n * g->page_bytes, &w->gb_s);
		op.verb = VMM_DROP;
		(void)op_run(l, v, op); /* only if it is lost */
		vmm_space_close(op.space);
	}
	vmm_close(v);
	return ret;
}

int bench_gpu_map(struct gpu *g, struct loop *l)
{
	struct way frames = { .kind = VMM_MAPPED_FRAMES };
	struct way managed = { .kind = VMM_MANAGED };
	int ret = call_costs(g);

	if (ret)
		return ret;
	ret = run_cost(g, l, &frames);
	if (ret)
		return bench_fail(ret, "gpu: map: %s", strerror(-ret));
	bench_put(g->b, frames.run_us, "us", "gpu.map.run_us");
	ret = run_cost(g, l, &managed);
	if (ret) {
		bench_note("gpu.managed skipped: %s", strerror(-ret));
		return 0;
	}
	bench_put(g->b, managed.run_us, "us", "gpu.managed.run_us");
	bench_put(g->b, managed.run_us / frames.run_us, "ratio",
		  "gpu.managed.run_ratio");
	if (frames.gb_s > 0)
		bench_put(g->b, managed.gb_s / frames.gb_s, "ratio",
			  "gpu.managed.read_ratio");
	return 0;
}
