/*
 * rig_cuda.c - the fake CUDA driver, loaded the way a real one is
 */
#include "tests/rig/rig_cuda.h"

#include <check.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TOTAL	    (64ull << 20)
#define GRANULARITY (64u << 10)

const char *rig_cuda_path(void)
{
	static char path[PATH_MAX + 32];
	char self[PATH_MAX];
	const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	ck_assert_int_gt(n, 0);
	self[n] = '\0';
	slash = strrchr(self, '/');
	*slash = '\0';
	snprintf(path, sizeof(path), "%s/libfakecuda.so", self);
	return path;
}

static void find(void *lib, const char *name, void *field)
{
	void *p = dlsym(lib, name);

	ck_assert_msg(p != NULL, "%s", name);
	memcpy(field, &p, sizeof(p));
}

struct cuda_api *rig_cuda_open(struct fake_ctl *ctl, uint64_t total,
			       size_t granularity)
{
	struct cuda_api *api;
	char why[256];
	int ret;

	ret = cuda_api_open(&api, rig_cuda_path(), why, sizeof(why));
	ck_assert_msg(!ret, "%s", why);
#define FAKE_FIND(name, type, args) find(api->lib, "fake_" #name, &ctl->name);
	FAKE_CALLS(FAKE_FIND)
#undef FAKE_FIND
	ctl->reset(total, granularity);
	return api;
}

void rig_cuda_drop(struct cuda_api *api, const struct fake_ctl *ctl)
{
	struct fake_stats st;

	ctl->stats(&st);
	ck_assert_uint_eq(st.n_violations, 0);
	ck_assert_uint_eq(st.n_pageable, 0);
	ctl->reset(TOTAL, GRANULARITY);
	cuda_api_close(api);
}

void rig_cuda_close(struct cuda_api *api, const struct fake_ctl *ctl)
{
	struct fake_stats st;

	ctl->stats(&st);
	ck_assert_uint_eq(st.used_bytes, 0);
	ck_assert_uint_eq(st.n_handles, 0);
	ck_assert_uint_eq(st.n_maps, 0);
	ck_assert_uint_eq(st.n_reserved, 0);
	ck_assert_uint_eq(st.n_streams, 0);
	ck_assert_uint_eq(st.n_events, 0);
	ck_assert_uint_eq(st.n_pinned, 0);
	ck_assert_int_eq(st.ctx_refs, 0);
	rig_cuda_drop(api, ctl);
}
