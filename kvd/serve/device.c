/*
 * device.c - where KV lies: host memory, or a device with its pinned pool
 *
 * With [kvd] device = cuda all KV of all tenants is in device memory, memory is the
 * budget of its frames, and host_memory the pool between it and the disks. Where no
 * tenant has a disk, the pool is what they have below the device.
 *
 * Thread: loop thread, at start.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/gpu.h"
#include "kvd/base/log.h"
#include "kvd/serve/batch.h"
#include "kvd/serve/gate.h"
#include "kvd/serve/tenant.h"

/* No tenant has a disk: pages go no further than the pinned pool. */
static int pool_only(const struct serve *s)
{
	return s->device && !s->conf->disk_bytes;
}

struct stores *serve_pager_stores(const struct serve *s)
{
	return pool_only(s) ? NULL : s->stores;
}

uint64_t serve_disk_bytes(const struct serve *s, const struct conf_tenant *t)
{
	/* the gate's pages stay where they are */
	return pool_only(s) && t->max_sequences ? s->conf->host_bytes
						: t->disk_bytes;
}

static enum vmm_share wants_share(const struct conf *c)
{
	/* managed memory has no handles: then device_share does nothing */
	for (uint32_t i = 0; i < c->n_tenants; i++)
		if (c->tenants[i].device_share &&
		    c->device_memory == CONF_MEMORY_VMM)
			return VMM_SHAREABLE;
	return VMM_PRIVATE;
}

static int open_device(struct serve *s, char *err, size_t err_len)
{
	const struct device_conf dc = {
		.api = s->cuda,
		.loop = s->loop,
		.index = (int)s->conf->device_index,
		.kind = s->conf->device_memory == CONF_MEMORY_UVM
				? VMM_MANAGED
				: VMM_MAPPED_FRAMES,
		.share = wants_share(s->conf),
		.budget_bytes = s->conf->memory_bytes,
		.host_bytes = s->conf->host_bytes,
		.numa_node = s->conf->numa_node,
		.spare_bytes = s->conf->device_spare,
		.has_disk = s->conf->disk_bytes != 0,
		.direct = strcmp(s->conf->direct_storage, "no")
				  ? s->conf->direct_storage
				  : NULL,
	};

	if (s->cuda)
		return device_open(&s->device, &dc, err, err_len);
	snprintf(err, err_len, "device = cuda: there is no driver");
	return -ENODEV;
}

int serve_open_device(struct serve *s, char *err, size_t err_len)
{
	const int wish = s->conf->device;
	int ret;

	if (wish == CONF_DEVICE_CPU ||
	    (wish == CONF_DEVICE_AUTO &&
	     (!s->cuda ||
	      (!kern_gpu_image_bytes() && !s->conf->cuda_image[0]))))
		return 0;
	ret = open_device(s, err, err_len);
	if (!ret || wish == CONF_DEVICE_CUDA)
		return ret;
	log_warn("serve", "device = auto: %s: KV is kept in host memory", err);
	if (err_len)
		err[0] = '\0';
	return 0;
}

/* What is pinned whole is computed there, and nothing else is (gpu.h): one lane. */
int serve_open_gpu(struct serve *s, char *err, size_t err_len)
{
	const struct conf *c = s->conf;
	struct serve_gpu_conf gc;
	int ret;

	if (!s->device)
		return 0;
	gc = (struct serve_gpu_conf){
		.api = device_api(s->device),
		.ctx = device_ctx(s->device),
		.device = s->device,
		.index = device_index(s->device),
		.image = c->cuda_image,
		.cublas = c->cublas_library,
		.max_rows = batch_max_rows(c),
		.graphs = c->cuda_graphs,
		.wide = c->wide_attention,
	};
	ret = serve_gpu_new(&s->gpu, &gc, err, err_len);
	return ret ? ret : gpu_lane_new(&s->lanes[LANE_RESIDENT].gpu, s->gpu);
}

int serve_check_pages(const struct serve *s, const struct serve_model *m,
		      char *err, size_t err_len)
{
	const size_t most = s->device ? device_page_most(s->device) : SIZE_MAX;

	if (m->layout.page_bytes <= most)
		return 0;
	snprintf(err, err_len,
		 "model %s: pages of %zu bytes; host_memory allows for %zu",
		 m->conf->name, m->layout.page_bytes, most);
	return -EINVAL;
}

int serve_open_accounts(struct serve *s, char *err, size_t err_len)
{
	const struct conf *c = s->conf;
	/* frames are counted once: what the gate has is taken off */
	const uint64_t gate = s->device ? gate_memory(s) : 0;

	if (gate > c->memory_bytes / 2) {
		snprintf(err, err_len,
			 "memory: %llu bytes are needed to measure the models; "
			 "gate = no does without",
			 (unsigned long long)gate);
		return -ENOSPC;
	}
	accounts_init(&s->accounts, c->memory_bytes - gate,
		      pool_only(s) ? c->host_bytes : c->disk_bytes);
	return 0;
}

/* ---- trim ------------------------------------------------------------------ */

struct trim {
	struct device_trim t;
	struct wait wait;
	struct serve_trim *asked;
};

static void trimmed(struct wait *w, int ret)
{
	struct trim *k = container_of(w, struct trim, wait);
	struct serve_trim *t = k->asked;

	t->n_bytes = k->t.n_bytes;
	log_info("serve", "%llu bytes of device memory given back",
		 (unsigned long long)t->n_bytes);
	free(k);
	t->wait.done(&t->wait, ret);
}

int serve_trim(struct serve *s, struct serve_trim *t)
{
	struct trim *k;

	if (!s->device)
		return -ENOTSUP;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->asked = t;
	k->wait.done = trimmed;
	k->t.waiter = &k->wait;
	k->t.n_bytes = t->n_bytes;
	device_trim(s->device, &k->t);
	return 0;
}
