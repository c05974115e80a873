/*
 * device.h - the device whose memory holds the KV: frames, copies, host pool
 *
 *   frames of the device (vmm_cuda.h)
 *     |  copies (copy.h)
 *   pinned host pool (park.h)
 *     |  io_uring (stores.h)
 *   disk
 *
 * Pagers that have one (pager_conf.device) keep their pages there. A page that goes
 * down is copied to the host pool, where its checksum is taken; its slot on disk is
 * written later, or never. One that comes back is copied from the pool, or read
 * into it first.
 *
 *  (1) range_addr() is an address of the device: only who computes there follows it.
 *  (2) Who unpins has waited for what uses the page on its streams.
 *  (3) A page that was EMPTY has any bytes of its own tenant, not zeros.
 *  (4) A device that is lost: wants end with -ENODEV, frames count as gone, what is
 *      in the host pool or on disk stays.
 *
 * Thread: loop thread; device_lost() any.
 */
#ifndef KVD_MEM_DEVICE_H
#define KVD_MEM_DEVICE_H

#include "kernels/cuda_api.h"
#include "kvd/base/loop.h"
#include "kvd/base/wait.h"
#include "kvd/mem/copy.h"
#include "kvd/mem/gds.h"
#include "kvd/mem/park.h"
#include "kvd/mem/vmm_cuda.h"

struct device;

struct device_conf {
	const struct cuda_api *api; /* outlives the device */
	struct loop *loop; /* with workers */
	int index; /* which one */
	enum vmm_kind kind;
	enum vmm_share share;
	uint64_t budget_bytes; /* of frames */
	uint64_t host_bytes; /* of the pinned pool */
	int numa_node; /* of the pool; -1: next to the device, if it tells */
	uint64_t spare_bytes; /* of the device, to be left to others */
	const char *direct; /* gds.h: a library, "auto"; NULL: no */
	int has_disk; /* pagers have stores; 0: the pool is the lowest tier */
};
/*
 * Take the device and pin the pool; blocks. err tells what failed. -ENODEV,
 * -ENOTSUP no virtual memory management, -EINVAL a budget that holds nothing, or
 * more than the device has, -ENOMEM.
 */
int device_open(struct device **out, const struct device_conf *conf, char *err,
		size_t err_len);
/* All pagers are freed, the stores are not yet (device_direct()). NULL is fine. Blocks. */
void device_close(struct device *d);

/* What others need to compute there. */
const struct cuda_api *device_api(const struct device *d);
cuda_handle device_ctx(const struct device *d);
int device_index(const struct device *d);
struct copier *device_copier(struct device *d);
struct vmm *device_vmm(struct device *d);
struct park *device_park(struct device *d);
/*
 * Disk i (of stores.h), open as fd with O_DIRECT, for reads past the host; NULL: through the
 * host. Until device_direct_off().
 */
struct gds_file *device_direct(struct device *d, uint32_t i, int fd);
/* A read failed: from now on all go through the host. */
void device_direct_off(struct device *d, int err);
void device_count_direct(struct device *d, uint64_t bytes);
/* Pages are multiples of it. */
size_t device_frame_bytes(const struct device *d);
/* The largest page. */
size_t device_page_most(const struct device *d);
/*
 * The NUMA node of a PCI device, as "0000:3B:00.0", as the system tells below
 * /sys/bus/pci/devices (root, for tests); -1.
 */
int device_pci_node(const char *root, const char *pci);
/* It is gone, and what was in it. Any thread. */
int device_lost(const struct device *d);
/* As vmm_lose(). */
void device_lose(struct device *d);
/* A number for a tenant's frames, never used before. */
uint32_t device_new_tenant(struct device *d);

/* Give memory that no page needs back to the system. */
struct device_trim {
	struct wait *waiter; /* told 0 or -ENODEV */
	uint64_t n_bytes; /* in: at most; out: given back */
	struct vmm_op op; /* the device's, as the rest */
	struct wait wait;
};
void device_trim(struct device *d, struct device_trim *t);

struct device_info {
	char name[64];
	int index, lost;
	uint64_t budget_bytes, frame_bytes, free_bytes, total_bytes;
	struct vmm_counts vmm;
	struct copy_counts copy;
	struct park_info park;
	uint64_t direct_bytes; /* read past the host */
};
void device_info(struct device *d, struct device_info *out);

#endif
