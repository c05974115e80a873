/*
 * fake_context.c - which thread has the context, and what a program leaves when it ends; see
 * fake_cuda.h
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/cuda/fake_priv.h"

/* Of the calling thread. */
static _Thread_local cuda_handle context;
static char second; /* its address is a context that a program made */

/* All but these want one; mapping of memory names its device instead. */
int fake_lacks_context(const char *symbol)
{
	static const char *const without[] = { "cuInit",
					       "cuDriver",
					       "cuDevice",
					       "cuCtxSet",
					       "cuCtxCreate",
					       "cuMemAddress",
					       "cuMemGetAllocation",
					       "cuMemCreate",
					       "cuMemRelease",
					       "cuMemMap",
					       "cuMemUnmap",
					       "cuMemSet",
					       "cuMemExport",
					       "cuMemImport",
					       "cuTensorMap",
					       "cublas" };

	if (context)
		return 0;
	for (size_t i = 0; i < sizeof(without) / sizeof(*without); i++)
		if (!strncmp(symbol, without[i], strlen(without[i])))
			return 0;
	return 1;
}

int cuDevicePrimaryCtxRetain(cuda_handle *out, int dev);
int cuDevicePrimaryCtxRetain(cuda_handle *out, int dev)
{
	const int err = fake_enter("cuDevicePrimaryCtxRetain");

	(void)dev;
	if (err)
		return err;
	fake.st.ctx_refs++;
	*out = &fake;
	return fake_leave(CUDA_OK);
}

int cuDevicePrimaryCtxRelease_v2(int dev);
int cuDevicePrimaryCtxRelease_v2(int dev)
{
	const int err = fake_enter("cuDevicePrimaryCtxRelease_v2");

	(void)dev;
	if (err)
		return err;
	fake.st.ctx_refs--;
	return fake_leave(CUDA_OK);
}

int cuCtxSetCurrent(cuda_handle ctx);
int cuCtxSetCurrent(cuda_handle ctx)
{
	const int err = fake_enter("cuCtxSetCurrent");

	if (!ctx || ctx == &fake || ctx == &second)
		context = ctx; /* also where it is told to fail */
	if (err)
		return err;
	return fake_leave(context == ctx ? CUDA_OK : CUDA_INVALID_CONTEXT);
}

int cuCtxCreate_v2(cuda_handle *out, unsigned int flags, int dev);
int cuCtxCreate_v2(cuda_handle *out, unsigned int flags, int dev)
{
	const int err = fake_enter("cuCtxCreate_v2");

	(void)flags;
	(void)dev;
	if (err)
		return err;
	context = *out = &second;
	return fake_leave(CUDA_OK);
}

int cuCtxDestroy_v2(cuda_handle ctx);
int cuCtxDestroy_v2(cuda_handle ctx)
{
	const int err = fake_enter("cuCtxDestroy_v2");

	if (err)
		return err;
	if (context == ctx)
		context = NULL;
	return fake_leave(ctx == &second ? CUDA_OK : CUDA_INVALID_CONTEXT);
}

int cuCtxGetStreamPriorityRange(int *least, int *most);
int cuCtxGetStreamPriorityRange(int *least, int *most)
{
	const int err = fake_enter("cuCtxGetStreamPriorityRange");

	if (err)
		return err;
	*least = 0;
	*most = -5;
	return fake_leave(CUDA_OK);
}

/* What a device would punish; for whole programs too, whose tests do not see it. */
static __attribute__((destructor)) void tell_violations(void)
{
	if (!fake.st.n_violations && !fake.st.n_pageable)
		return;
	fprintf(stderr, "fake CUDA: %u violations, %u copies not pinned\n",
		fake.st.n_violations, fake.st.n_pageable);
	_exit(86);
}
