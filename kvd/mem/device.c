/*
 * device.c - frames, copies and host pool of one device, together; see device.h
 */
#include "kvd/mem/device.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/base/stat.h"
#include "kvd/mem/stores.h"

#define POOL_FRAMES  16u /* created ahead of need */
#define CHUNK_BYTES  (4u << 20)
#define CREDIT_BYTES (16u << 20)
#define STAT_NS	     1000000000u

enum {
	ST_FRAMES,
	ST_IDLE,
	ST_STUCK,
	ST_LOST,
	ST_HOST,
	ST_HOST_USED,
	ST_HOST_DIRTY,
	ST_UP,
	ST_DOWN,
	ST_CREATED,
	ST_ZEROED,
	ST_FLUSHED,
	ST_DROPPED,
	ST_DIRECT,
	N_STATS
};

struct device {
	struct device_conf conf;
	struct vmm *vmm;
	struct copier *copier;
	struct park *park;
	uint32_t n_tenants;
	char name[64];
	uint64_t total_bytes;
	struct loop_timer timer;
	struct stat *st[N_STATS];
	struct gds *gds; /* NULL: no direct reads */
	struct gds_file *direct[STORES_MAX];
	int tried[STORES_MAX]; /* cuFile has been asked for this disk */
	uint64_t direct_bytes;
	int direct_off; /* -errno of the read that failed */
};

/* ---- statistics ------------------------------------------------------------ */

static void open_stats(struct device *d)
{
	static const struct {
		enum stat_kind kind;
		const char *name, *help;
	} list[N_STATS] = {
		[ST_FRAMES] = { STAT_GAUGE, "kvd_device_frame_bytes",
				"Device memory taken" },
		[ST_IDLE] = { STAT_GAUGE, "kvd_device_idle_bytes",
			      "Device memory taken and in no page's use" },
		[ST_STUCK] = { STAT_GAUGE, "kvd_device_stuck_bytes",
			       "Device memory that could not be unmapped" },
		[ST_LOST] = { STAT_GAUGE, "kvd_device_lost",
			      "1 when the device is lost" },
		[ST_HOST] = { STAT_GAUGE, "kvd_host_pool_bytes",
			      "Pinned host memory" },
		[ST_HOST_USED] = { STAT_GAUGE, "kvd_host_pool_used_bytes",
				   "Pinned host memory with pages" },
		[ST_HOST_DIRTY] = { STAT_GAUGE, "kvd_host_pool_dirty_bytes",
				    "Of these not on disk" },
		[ST_UP] = { STAT_COUNTER, "kvd_device_copy_up_bytes_total",
			    "Bytes copied to the device" },
		[ST_DOWN] = { STAT_COUNTER, "kvd_device_copy_down_bytes_total",
			      "Bytes copied from the device" },
		[ST_CREATED] = { STAT_COUNTER,
				 "kvd_device_frames_created_total",
				 "Frames asked of the driver" },
		[ST_ZEROED] = { STAT_COUNTER, "kvd_device_frames_zeroed_total",
				"Frames zeroed for another tenant" },
		[ST_FLUSHED] = { STAT_COUNTER, "kvd_host_pool_written_total",
				 "Pages written from the pool to disk" },
		[ST_DIRECT] = { STAT_COUNTER, "kvd_device_direct_bytes_total",
				"Bytes read from disk to the device past the host" },
		[ST_DROPPED] = { STAT_COUNTER, "kvd_host_pool_dropped_total",
				 "Pages that left the pool for others" },
	};

	for (int i = 0; i < N_STATS; i++)
		d->st[i] = stat_get(list[i].kind, list[i].name, list[i].help,
				    NULL, NULL, 1);
}

static void show(struct device *d)
{
	const size_t frame = vmm_frame_bytes(d->vmm);
	struct device_info i;

	device_info(d, &i);
	stat_set(d->st[ST_FRAMES], i.vmm.n_frames * frame);
	stat_set(d->st[ST_IDLE], (i.vmm.n_pool + i.vmm.n_idle) * frame);
	stat_set(d->st[ST_STUCK], i.vmm.n_stuck * frame);
	stat_set(d->st[ST_LOST], (uint64_t)i.lost);
	stat_set(d->st[ST_HOST], i.park.bytes);
	stat_set(d->st[ST_HOST_USED], i.park.used_bytes);
	stat_set(d->st[ST_HOST_DIRTY], i.park.dirty_bytes);
	stat_set(d->st[ST_UP], i.copy.bytes[COPY_TO_DEVICE]);
	stat_set(d->st[ST_DOWN], i.copy.bytes[COPY_TO_HOST]);
	stat_set(d->st[ST_CREATED], i.vmm.created);
	stat_set(d->st[ST_ZEROED], i.vmm.zeroed);
	stat_set(d->st[ST_FLUSHED], i.park.flushed);
	stat_set(d->st[ST_DROPPED], i.park.dropped);
}

static void tick(struct loop_timer *t)
{
	struct device *d = container_of(t, struct device, timer);

	show(d);
	loop_timer_set(d->conf.loop, &d->timer, clock_ns() + STAT_NS);
}

void device_info(struct device *d, struct device_info *out)
{
	memset(out, 0, sizeof(*out));
	memcpy(out->name, d->name, sizeof(out->name));
	out->total_bytes = d->total_bytes;
	out->index = d->conf.index;
	out->lost = device_lost(d);
	out->budget_bytes = d->conf.budget_bytes;
	out->frame_bytes = vmm_frame_bytes(d->vmm);
	vmm_counts(d->vmm, &out->vmm);
	copier_counts(d->copier, &out->copy);
	park_info(d->park, &out->park);
	out->direct_bytes = d->direct_bytes;
}

/* ---- start and end --------------------------------------------------------- */

static int open_vmm(struct device *d, char *err, size_t err_len)
{
	const char *lib = d->conf.direct;
	const int is_direct = lib && d->conf.has_disk &&
			      gds_is_there(strcmp(lib, "auto") ? lib : NULL);
	const struct vmm_conf vc = {
		.api = d->conf.api,
		.loop = d->conf.loop,
		.kind = d->conf.kind,
		.share = d->conf.share,
		.reach = is_direct ? VMM_DIRECT : VMM_LOCAL,
		.device = d->conf.index,
		.budget_bytes = d->conf.budget_bytes,
		.pool_frames = POOL_FRAMES,
		.spare_bytes = d->conf.spare_bytes,
	};
	const int ret = vmm_open(&d->vmm, &vc);

	if (ret)
		snprintf(err, err_len, "device %d: memory on demand: %s",
			 d->conf.index, strerror(-ret));
	return ret;
}

static int open_copier(struct device *d, char *err, size_t err_len)
{
	const size_t frame = vmm_frame_bytes(d->vmm);
	const struct copy_conf cc = {
		.api = d->conf.api,
		.ctx = vmm_ctx(d->vmm),
		.loop = d->conf.loop,
		.chunk_bytes = KV_MAX((size_t)CHUNK_BYTES, frame),
		.credit_bytes = KV_MAX((size_t)CREDIT_BYTES, 2 * frame),
	};
	const int ret = copier_open(&d->copier, &cc);

	if (ret)
		snprintf(err, err_len, "device %d: copies: %s", d->conf.index,
			 strerror(-ret));
	return ret;
}

int device_pci_node(const char *root, const char *pci)
{
	char path[256], id[32], text[16];
	int node = -1;
	size_t i;

	for (i = 0; pci[i] && i < sizeof(id) - 1; i++)
		id[i] = (char)tolower((unsigned char)pci[i]);
	id[i] = '\0';
	snprintf(path, sizeof(path), "%s/%s/numa_node", root, id);
	if (strchr(id, '/') || kio_sys_read_text(path, text, sizeof(text)) < 0)
		return -1;
	return sscanf(text, "%d", &node) == 1 ? node : -1;
}

static int near_node(const struct device *d)
{
	char pci[32] = "";
	int dev;

	if (d->conf.numa_node >= 0)
		return d->conf.numa_node;
	if (d->conf.api->device_get(&dev, d->conf.index) ||
	    d->conf.api->device_pci(pci, sizeof(pci), dev))
		return -1;
	return device_pci_node("/sys/bus/pci/devices", pci);
}

static int open_park(struct device *d, char *err, size_t err_len)
{
	const struct park_conf pc = {
		.loop = d->conf.loop,
		.copier = d->copier,
		.unit_bytes = vmm_frame_bytes(d->vmm),
		.n_bytes = d->conf.host_bytes,
		.numa_node = near_node(d),
		.has_disk = d->conf.has_disk,
	};
	const int ret = park_new(&d->park, &pc);

	if (ret)
		snprintf(err, err_len, "host_memory: %llu bytes, pinned: %s",
			 (unsigned long long)d->conf.host_bytes,
			 strerror(-ret));
	return ret;
}

/* The card has that much at all; what it is. */
static int check_size(struct device *d, char *err, size_t err_len)
{
	const struct cuda_api *cu = d->conf.api;
	size_t total = 0;
	int dev, ret = kern_errno(cu->device_get(&dev, d->conf.index));

	if (!ret)
		ret = kern_errno(cu->device_bytes(&total, dev));
	if (!ret && cu->device_name(d->name, sizeof(d->name), dev))
		d->name[0] = '\0';
	d->total_bytes = total;
	if (!ret && d->conf.budget_bytes <= total)
		return 0;
	if (ret == -EINVAL)
		snprintf(err, err_len, "there is no device %d", d->conf.index);
	else if (ret)
		snprintf(err, err_len, "device %d: %s", d->conf.index,
			 strerror(-ret));
	else
		snprintf(err, err_len,
			 "device %d has %zu bytes, memory is %llu",
			 d->conf.index, total,
			 (unsigned long long)d->conf.budget_bytes);
	return ret ? ret : -EINVAL;
}

/* A wish: what cannot be had is said once and done without. */
static void open_direct(struct device *d)
{
	const char *lib = d->conf.direct;
	struct gds_conf c = { .api = d->conf.api, .ctx = vmm_ctx(d->vmm) };
	char why[256];
	int ret;

	if (!lib || !d->conf.has_disk)
		return;
	c.library = strcmp(lib, "auto") ? lib : NULL;
	ret = gds_open(&d->gds, &c, why, sizeof(why));
	log_info("device", "direct storage (cuFile): %s%s", why,
		 ret ? ": pages come through host memory" : "");
}

int device_open(struct device **out, const struct device_conf *conf, char *err,
		size_t err_len)
{
	struct device *d = calloc(1, sizeof(*d));
	const uint64_t from = clock_ns();
	int ret;

	if (!d)
		return -ENOMEM;
	d->conf = *conf;
	list_init(&d->timer.node);
	ret = check_size(d, err, err_len);
	if (!ret)
		ret = open_vmm(d, err, err_len);
	if (!ret)
		ret = open_copier(d, err, err_len);
	if (!ret)
		ret = open_park(d, err, err_len);
	if (ret) {
		device_close(d);
		return ret;
	}
	open_direct(d);
	open_stats(d);
	d->timer.run = tick;
	tick(&d->timer);
	log_info("device",
		 "%d: %llu MiB for KV in frames of %zu KiB, %llu MiB of pinned "
		 "host memory, in %.1f ms",
		 conf->index, (unsigned long long)(conf->budget_bytes >> 20),
		 vmm_frame_bytes(d->vmm) >> 10,
		 (unsigned long long)(conf->host_bytes >> 20),
		 (double)(clock_ns() - from) / 1e6);
	*out = d;
	return 0;
}

void device_close(struct device *d)
{
	if (!d)
		return;
	loop_timer_cancel(d->conf.loop, &d->timer);
	for (uint32_t i = 0; i < STORES_MAX; i++)
		gds_file_close(d->direct[i]);
	gds_close(d->gds);
	park_unpin(d->park);
	copier_close(d->copier);
	vmm_close(d->vmm); /* and the context: nothing writes any more */
	park_free(d->park);
	free(d);
}

/* ---- past the host ----------------------------------------------------------- */

struct gds_file *device_direct(struct device *d, uint32_t i, int fd)
{
	if (!d->gds || d->direct_off || i >= STORES_MAX)
		return NULL;
	if (!d->tried[i]) {
		const int ret = gds_file_open(&d->direct[i], d->gds, fd);

		d->tried[i] = 1;
		if (ret) {
			d->direct[i] = NULL;
			log_info("device",
				 "disk %u: cuFile does not take it: its pages "
				 "come through host memory",
				 i);
		}
	}
	return d->direct[i];
}

void device_direct_off(struct device *d, int err)
{
	if (d->direct_off)
		return;
	d->direct_off = err;
	log_warn(
		"device",
		"direct storage: %s: pages come through host memory from now on",
		strerror(-err));
}

void device_count_direct(struct device *d, uint64_t bytes)
{
	d->direct_bytes += bytes;
	stat_add(d->st[ST_DIRECT], bytes);
}

/* ---- what others use ------------------------------------------------------- */

const struct cuda_api *device_api(const struct device *d)
{
	return d->conf.api;
}

cuda_handle device_ctx(const struct device *d)
{
	return vmm_ctx(d->vmm);
}

int device_index(const struct device *d)
{
	return d->conf.index;
}

struct copier *device_copier(struct device *d)
{
	return d->copier;
}

struct vmm *device_vmm(struct device *d)
{
	return d->vmm;
}

struct park *device_park(struct device *d)
{
	return d->park;
}

size_t device_frame_bytes(const struct device *d)
{
	return vmm_frame_bytes(d->vmm);
}

size_t device_page_most(const struct device *d)
{
	return park_most_bytes(d->park);
}

int device_lost(const struct device *d)
{
	return vmm_lost(d->vmm) || copier_lost(d->copier);
}

void device_lose(struct device *d)
{
	vmm_lose(d->vmm);
}

uint32_t device_new_tenant(struct device *d)
{
	return ++d->n_tenants;
}

static void trimmed(struct wait *w, int ret)
{
	struct device_trim *t = container_of(w, struct device_trim, wait);

	t->n_bytes = ret ? 0 : t->op.n_bytes;
	t->waiter->done(t->waiter, ret);
}

void device_trim(struct device *d, struct device_trim *t)
{
	/* 0 would be what is missing to the others' part */
	const uint64_t n = t->n_bytes ? t->n_bytes : UINT64_MAX;

	t->wait.done = trimmed;
	t->op = (struct vmm_op){ .verb = VMM_TRIM,
				 .n_bytes = n,
				 .waiter = &t->wait };
	list_init(&t->op.node);
	list_init(&t->op.call.node);
	vmm_start(d->vmm, &t->op);
}
