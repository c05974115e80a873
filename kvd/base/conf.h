/*
 * conf.h - the configuration file (INI, read with inih), checked as a whole
 *
 * Sections: [kvd], [model NAME], [tenant NAME], [store NAME]. docs/man/kvd.conf.5 lists the
 * keys. An unknown section or key, a bad value, or budgets that do not add up
 * is an error that names file, line and key.
 */
#ifndef KVD_BASE_CONF_H
#define KVD_BASE_CONF_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CONF_MAX_TENANTS 64
#define CONF_MAX_MODELS	 16
#define CONF_MAX_STORES	 8
#define CONF_MAX_IDS	 32
#define CONF_NAME_MAX	 64
#define CONF_PATH_MAX	 108 /* sun_path */

enum conf_device_memory { CONF_MEMORY_VMM, CONF_MEMORY_UVM };
enum conf_device { CONF_DEVICE_CPU, CONF_DEVICE_CUDA, CONF_DEVICE_AUTO };
enum conf_map { CONF_MAP_NO, CONF_MAP_COPY, CONF_MAP_AUTO };
enum conf_persist { CONF_PERSIST_NO, CONF_PERSIST_REQUEST, CONF_PERSIST_AUTO };

struct conf_tenant {
	char name[CONF_NAME_MAX];
	uid_t uids[CONF_MAX_IDS]; /* uid = 1000, 1001 */
	uint32_t n_uids;
	gid_t gids[CONF_MAX_IDS]; /* gid = ... (a group of the peer) */
	uint32_t n_gids;
	char socket[CONF_PATH_MAX]; /* socket of its own, or "" */
	mode_t socket_mode; /* socket_mode = 0660 */
	uint64_t memory_bytes; /* memory = 256M: hard */
	uint64_t disk_bytes; /* disk = 1G: hard; 0: no paging out */
	uint64_t memory_floor; /* memory_floor = 0: guaranteed */
	uint64_t disk_floor; /* disk_floor = 0 */
	uint32_t weight; /* weight = 100: of what no floor takes */
	uint64_t io_limit; /* io_limit = 0: bytes a second, none */
	uint32_t max_sequences; /* sequences = 1024 */
	uint32_t max_chunks; /* chunks = 16384: alone, and in variants */
	uint32_t max_requests; /* requests = 64: in flight */
	uint32_t max_sessions; /* sessions = 64: connections */
	uint32_t max_maps; /* maps = 4096: segments mapped by clients */
	/* map = auto: files are shared, else copied; copy; no */
	int map; /* enum conf_map */
	int device_share; /* device_share = no|yes: pages to clients, buffers of them */
	/* persist = auto: what can be reused; request: what clients ask for; no */
	int persist; /* enum conf_persist */
	char policy[16]; /* policy = NAME; not given: that of [kvd] */
	char share
		[CONF_NAME_MAX]; /* share = NAME: with tenants that say so too */
};

struct conf_model {
	char name[CONF_NAME_MAX];
	char path[4096];
	int math_f32; /* math = bf16 | f32 */
	uint32_t page_tokens; /* page_tokens = 0: chosen */
	uint32_t page_layers; /* page_layers = 0: chosen */
	int gate; /* gate = auto|no: 1 measure what reuse of chunks does */
};

/* A disk for pages. Without any: one file in state_dir. */
struct conf_store {
	char name[CONF_NAME_MAX];
	char path[4096];
	uint64_t bytes; /* size = 100G; 0 with a block device: all of it */
};

struct conf {
	char socket[CONF_PATH_MAX]; /* socket = /run/kvd/kvd.sock */
	mode_t socket_mode; /* socket_mode = 0666 */
	/* metrics = unix:PATH | tcp:127.0.0.1:PORT | tcp:[::1]:PORT | "" */
	char metrics[CONF_PATH_MAX];
	char state_dir[4096]; /* state_dir = /var/lib/kvd: the default store */
	/* memory, disk: the pools; all floors must fit. After conf_load() not 0:
	 * without, the sum of all tenants' limits. */
	uint64_t memory_bytes;
	uint64_t disk_bytes;
	uint32_t n_threads; /* threads = 0: one per CPU */
	uint64_t spin_ns; /* spin_us = 20 */
	uint64_t arena_max_bytes; /* arena = 64M: largest arena of a session */
	uint32_t prefill_slice; /* prefill_slice = 128 tokens a step */
	uint32_t max_batch; /* batch = 64 rows of decode a step */
	gid_t admin_gid; /* admin_group = NAME|GID */
	int has_admin_gid;
	char policy[16]; /* policy = density: which page goes down next */
	int recompute; /* recompute = auto|no: may a hit on disk be computed */
	int restore_layers; /* restore = layers|whole: 1 compute while it comes */
	int order; /* order = fifo|prefix: 1 who has more cached first, line.h */
	uint64_t scrub_bytes; /* scrub = 4M: a second, each tenant; 0: off */
	uint64_t clean_bytes; /* clean = 256M: a second, all stores; 0: off */
	char huge[16]; /* huge = auto | always | keep | never */
	char huge_dir[4096]; /* huge_dir = PATH; empty: a mount of its own */
	char cuda_library[256]; /* cuda_library = auto | no | /PATH */
	/* cuda_image = PATH: kernels from a file; empty: the binary's own */
	char cuda_image[4096];
	char cublas_library[256]; /* cublas_library = PATH; empty: found */
	int cuda_graphs; /* cuda_graphs = auto | no */
	int wide_attention; /* wide_attention = auto | no */
	int device; /* device = cpu|cuda|auto: enum conf_device */
	uint32_t device_index; /* device_index = 0 */
	/* event_wait_ms = 10000: how long a call waits for a client's event */
	uint32_t event_wait_ms;
	char direct_storage[256]; /* direct_storage = auto | no | /PATH */
	int device_memory; /* device_memory = vmm|uvm: enum conf_device_memory */
	/* host_memory: pinned, between device and disk. After conf_load() not 0: without,
	 * as much as memory. */
	uint64_t host_bytes;
	uint64_t
		device_spare; /* device_spare = 0: left to others of the card */
	char log_level[16]; /* log_level = info */
	int mlock; /* mlock = auto|no: 1 = within RLIMIT_MEMLOCK */
	int numa_node; /* numa_node = auto (-1) or a number */
	int drop_to_uid; /* user = NAME: -1 none */
	int sandbox; /* sandbox = yes|no: seccomp after start */
	struct conf_tenant tenants[CONF_MAX_TENANTS];
	uint32_t n_tenants;
	struct conf_model models[CONF_MAX_MODELS];
	uint32_t n_models;
	struct conf_store stores[CONF_MAX_STORES];
	uint32_t n_stores;
};

/*
 * Read and check path. On failure -errno (-EINVAL for a bad content) and a
 * message with file:line in err. conf is the caller's, overwritten.
 */
int conf_load(const char *path, struct conf *conf, char *err, size_t err_len);
/* "64K" "256M" "2G" or bytes; -EINVAL. */
int conf_parse_size(const char *s, uint64_t *out);

#endif
