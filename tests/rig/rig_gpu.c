/*
 * rig_gpu.c - kernels on the fake driver or on a real device
 */
#include "tests/rig/rig_gpu.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/rig/rig_cuda.h"

static int is_real(void)
{
	const char *env = getenv("KVD_GPU");

	return env && !strcmp(env, "1");
}

/* In a child: a driver that was started does not survive a fork. */
const char *rig_gpu_missing(void)
{
	static char why[256];
	struct cuda_api *api;
	int p[2], status;
	pid_t pid;

	if (!is_real())
		return NULL;
	if (!kern_gpu_image_bytes())
		return "this was built without nvcc";
	if (pipe(p))
		return "pipe";
	pid = fork();
	if (!pid) {
		const int ret = cuda_api_open(&api, NULL, why, sizeof(why));
		const ssize_t n = write(p[1], why, sizeof(why));

		_exit(ret || n < 0);
	}
	(void)close(p[1]);
	if (read(p[0], why, sizeof(why)) < 0)
		strcpy(why, "no answer");
	(void)close(p[0]);
	return waitpid(pid, &status, 0) == pid && !status ? NULL : why;
}

void rig_gpu_open(struct rig_gpu *g)
{
	rig_gpu_open_with(g, 1 << 20);
}

void rig_gpu_open_with(struct rig_gpu *g, uint64_t total)
{
	char why[256];
	int dev, ret;

	memset(g, 0, sizeof(*g));
	g->is_real = is_real();
	if (g->is_real) {
		ret = cuda_api_open(&g->api, NULL, why, sizeof(why));
		ck_assert_msg(!ret, "%s", why);
	} else {
		g->api = rig_cuda_open(&g->ctl, total, 65536);
	}
	ck_assert_int_eq(g->api->device_get(&dev, 0), 0);
	ck_assert_int_eq(g->api->ctx_retain(&g->ctx, dev), 0);
	ck_assert_int_eq(g->api->ctx_set(g->ctx), 0);
	ck_assert_int_eq(
		g->api->stream_new(&g->stream, CUDA_STREAM_NON_BLOCKING, 0), 0);
	/* the fake takes any image */
	ck_assert_int_eq(
		kern_gpu_open(&g->kern, g->api, g->is_real ? NULL : "fake"), 0);
}

void *rig_gpu_alloc(struct rig_gpu *g, size_t n)
{
	void *p;

	ck_assert_uint_lt(g->n_allocs, RIG_GPU_ALLOCS);
	ck_assert_int_eq(g->api->host_alloc(&p, n, CUDA_HOST_PORTABLE), 0);
	g->allocs[g->n_allocs++] = p;
	return p;
}

uint64_t rig_gpu_places(struct rig_gpu *g, uint32_t n, uint32_t nth)
{
	uint32_t *at = rig_gpu_alloc(g, (n + 1) * sizeof(*at));

	for (uint32_t t = 0; t < n; t++)
		at[t] = t + (t + n) / nth;
	return (uintptr_t)at;
}

void rig_gpu_reset(struct rig_gpu *g)
{
	while (g->n_allocs)
		ck_assert_int_eq(g->api->host_free(g->allocs[--g->n_allocs]),
				 0);
}

void rig_gpu_wait(struct rig_gpu *g)
{
	ck_assert_int_eq(g->api->stream_sync(g->stream), 0);
}

void rig_gpu_close(struct rig_gpu *g)
{
	rig_gpu_reset(g);
	kern_gpu_close(g->kern);
	ck_assert_int_eq(g->api->stream_free(g->stream), 0);
	ck_assert_int_eq(g->api->ctx_release(0), 0);
	if (g->is_real)
		cuda_api_close(g->api);
	else
		rig_cuda_close(g->api, &g->ctl);
}
