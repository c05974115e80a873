/*
 * conf_keys.c - the keys of the sections, and how each value is read; see conf.h
 *
 * Each key is one row of a table: field, parser, limits, and what is said when
 * the value does not fit.
 */
#include "kvd/base/conf_keys.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include "io/base.h"

/* ---- values ------------------------------------------------------------- */

/* Digits only, in base; -EINVAL. */
static int parse_number(const char *s, int base, uint64_t *out, char **end)
{
	if (*s < '0' || *s > '9')
		return -EINVAL;
	errno = 0;
	*out = strtoull(s, end, base);
	return errno ? -EINVAL : 0;
}

int conf_parse_size(const char *s, uint64_t *out)
{
	static const char units[] = "KMGT";
	uint64_t n;
	char *end;
	const char *unit;
	unsigned int shift;

	if (parse_number(s, 10, &n, &end))
		return -EINVAL;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			return -EINVAL;
		shift = 10 * (unsigned int)(unit - units + 1);
		if (n > UINT64_MAX >> shift)
			return -EINVAL;
		n <<= shift;
	}
	*out = n;
	return 0;
}

static int in_range(const struct key *k, uint64_t n)
{
	return n >= k->min && n <= k->max ? 0 : -EINVAL;
}

static int set_size(const struct key *k, void *field, const char *value)
{
	uint64_t n;

	if (conf_parse_size(value, &n) || in_range(k, n))
		return -EINVAL;
	*(uint64_t *)field = n;
	return 0;
}

static int set_u32(const struct key *k, void *field, const char *value)
{
	uint64_t n;
	char *end;

	if (parse_number(value, 10, &n, &end) || *end || in_range(k, n))
		return -EINVAL;
	*(uint32_t *)field = (uint32_t)n;
	return 0;
}

static int set_page_tokens(const struct key *k, void *field, const char *value)
{
	if (set_u32(k, field, value) || *(uint32_t *)field % 32)
		return -EINVAL;
	return 0;
}

static int set_spin(const struct key *k, void *field, const char *value)
{
	uint32_t us;

	if (set_u32(k, &us, value))
		return -EINVAL;
	*(uint64_t *)field = us * 1000ull;
	return 0;
}

static int set_mode(const struct key *k, void *field, const char *value)
{
	uint64_t n;
	char *end;

	if (parse_number(value, 8, &n, &end) || *end || in_range(k, n))
		return -EINVAL;
	*(mode_t *)field = (mode_t)n;
	return 0;
}

static int set_string(const struct key *k, void *field, const char *value)
{
	const size_t len = strlen(value);

	if (len >= k->max || len < k->min)
		return -EINVAL;
	memcpy(field, value, len + 1);
	return 0;
}

/* Which of k's words value is, or -EINVAL. */
static int which(const struct key *k, const char *value)
{
	const size_t len = strlen(value);
	int i = 0;

	for (const char *w = k->words; *w; i++) {
		const size_t n = strcspn(w, " ");

		if (n == len && !strncmp(w, value, n))
			return i;
		w += n + (w[n] == ' ');
	}
	return -EINVAL;
}

/* An int: the number of the word. */
static int set_choice(const struct key *k, void *field, const char *value)
{
	const int i = which(k, value);

	if (i < 0)
		return i;
	*(int *)field = i;
	return 0;
}

/* A string, but one of the words. */
static int set_word(const struct key *k, void *field, const char *value)
{
	return which(k, value) < 0 ? -EINVAL : set_string(k, field, value);
}

/* "auto", "no" or an absolute path: never what LD_LIBRARY_PATH makes of a name. */
static int set_library(const struct key *k, void *field, const char *value)
{
	if (value[0] != '/' && strcmp(value, "auto") && strcmp(value, "no"))
		return -EINVAL;
	return set_string(k, field, value);
}

static int set_path(const struct key *k, void *field, const char *value)
{
	return value[0] == '/' ? set_string(k, field, value) : -EINVAL;
}

static int set_node(const struct key *k, void *field, const char *value)
{
	uint32_t n;

	if (!strcmp(value, "auto")) {
		*(int *)field = -1;
		return 0;
	}
	if (set_u32(k, &n, value))
		return -EINVAL;
	*(int *)field = (int)n;
	return 0;
}

/* "", unix:PATH, tcp:127.0.0.1:PORT or tcp:[::1]:PORT */
static int set_metrics(const struct key *k, void *field, const char *value)
{
	const char *port = NULL;
	uint64_t n;
	char *end;

	if (!strncmp(value, "tcp:127.0.0.1:", 14))
		port = value + 14;
	else if (!strncmp(value, "tcp:[::1]:", 10))
		port = value + 10;
	else if (*value && (strncmp(value, "unix:", 5) || !value[5]))
		return -EINVAL;
	if (port &&
	    (parse_number(port, 10, &n, &end) || *end || !n || n > 65535))
		return -EINVAL;
	return set_string(k, field, value);
}

/* ---- users and groups --------------------------------------------------- */

/* A number, which need not exist, or a name, which must. */
static int parse_id(const char *s, int (*by_name)(const char *, uint32_t *),
		    uint32_t *out)
{
	uint64_t n;
	char *end;

	if (*s < '0' || *s > '9')
		return by_name(s, out);
	if (parse_number(s, 10, &n, &end) || *end || n >= UINT32_MAX)
		return -EINVAL;
	*out = (uint32_t)n;
	return 0;
}

static int user_of_name(const char *name, uint32_t *out)
{
	const struct passwd *pw = getpwnam(name);

	if (!pw)
		return -EINVAL;
	*out = pw->pw_uid;
	return 0;
}

static int group_of_name(const char *name, uint32_t *out)
{
	const struct group *gr = getgrnam(name);

	if (!gr)
		return -EINVAL;
	*out = gr->gr_gid;
	return 0;
}

/* Add the ids of "a, b, c" to ids[*n]. */
static int add_ids(uint32_t *ids, uint32_t *n, const char *value,
		   int (*by_name)(const char *, uint32_t *))
{
	char copy[256], *at = copy, *word;

	if (strlen(value) >= sizeof(copy))
		return -EINVAL;
	memcpy(copy, value, strlen(value) + 1);
	while ((word = strsep(&at, ","))) {
		uint32_t id;
		char *end;

		word += strspn(word, " \t");
		end = word + strcspn(word, " \t");
		if (end[strspn(end, " \t")])
			return -EINVAL; /* two words */
		*end = '\0';
		if (*n == CONF_MAX_IDS || parse_id(word, by_name, &id) ||
		    id == CONF_OVERFLOW_ID)
			return -EINVAL;
		ids[(*n)++] = id;
	}
	return 0;
}

static int set_uids(const struct key *k, void *field, const char *value)
{
	struct conf_tenant *t = field;

	(void)k;
	return add_ids(t->uids, &t->n_uids, value, user_of_name);
}

static int set_gids(const struct key *k, void *field, const char *value)
{
	struct conf_tenant *t = field;

	(void)k;
	return add_ids(t->gids, &t->n_gids, value, group_of_name);
}

static int set_admin(const struct key *k, void *field, const char *value)
{
	struct conf *c = field;
	uint32_t gid;

	(void)k;
	if (parse_id(value, group_of_name, &gid) || gid == CONF_OVERFLOW_ID)
		return -EINVAL;
	c->admin_gid = gid;
	c->has_admin_gid = 1;
	return 0;
}

static int set_user(const struct key *k, void *field, const char *value)
{
	uint32_t uid;

	(void)k;
	if (parse_id(value, user_of_name, &uid) || uid > INT32_MAX)
		return -EINVAL;
	*(int *)field = (int)uid;
	return 0;
}

/* ---- keys --------------------------------------------------------------- */

#define SIZE_TEXT  "a size in bytes, or with K, M, G or T, at most 1024T"
#define RATE_TEXT  "a size in bytes, or with K, M, G or T, at most 1T"
#define PATH_TEXT  "a path of at most 107 bytes"
#define MODE_TEXT  "an octal mode, 0 to 0777"
#define LIMIT_MAX  (1u << 20)
#define SIZE_LIMIT (1ull << 50)

/* As in kvd/mem/evict.c, but for those that need to see the future. */
#define POLICIES "clock lru s3fifo gdsf cachecraft succinct phase density"

static const struct key kvd_keys[] = {
	{ "socket", set_string, offsetof(struct conf, socket), 0, CONF_PATH_MAX,
	  PATH_TEXT, NULL, 0 },
	{ "socket_mode", set_mode, offsetof(struct conf, socket_mode), 0, 0777,
	  MODE_TEXT, NULL, 0 },
	{ "metrics", set_metrics, offsetof(struct conf, metrics), 0,
	  CONF_PATH_MAX, "unix:PATH, tcp:127.0.0.1:PORT or tcp:[::1]:PORT",
	  NULL, 0 },
	{ "state_dir", set_string, offsetof(struct conf, state_dir), 1, 4096,
	  "a directory", NULL, 0 },
	{ "memory", set_size, offsetof(struct conf, memory_bytes), 0,
	  SIZE_LIMIT, SIZE_TEXT, NULL, 0 },
	{ "disk", set_size, offsetof(struct conf, disk_bytes), 0, SIZE_LIMIT,
	  SIZE_TEXT, NULL, 0 },
	{ "threads", set_u32, offsetof(struct conf, n_threads), 0, 1024,
	  "0 (one per CPU) to 1024", NULL, 0 },
	{ "spin_us", set_spin, offsetof(struct conf, spin_ns), 0, 1000000,
	  "0 to 1000000 microseconds", NULL, 0 },
	{ "arena", set_size, offsetof(struct conf, arena_max_bytes), 64 << 10,
	  1ull << 32, "a size of 64K to 4G", NULL, 0 },
	{ "prefill_slice", set_u32, offsetof(struct conf, prefill_slice), 1,
	  65536, "1 to 65536 tokens", NULL, 0 },
	{ "batch", set_u32, offsetof(struct conf, max_batch), 1, 4096,
	  "1 to 4096 rows", NULL, 0 },
	{ "admin_group", set_admin, 0, 0, 0,
	  "the name or number of a group, not 65534", NULL, 0 },
	{ "recompute", set_choice, offsetof(struct conf, recompute), 0, 0,
	  "auto or no", "no auto", 0 },
	{ "restore", set_choice, offsetof(struct conf, restore_layers), 0, 0,
	  "layers or whole", "whole layers", 0 },
	{ "order", set_choice, offsetof(struct conf, order), 0, 0,
	  "prefix or fifo", "fifo prefix", 0 },
	{ "scrub", set_size, offsetof(struct conf, scrub_bytes), 0, 1ull << 40,
	  RATE_TEXT, NULL, 0 },
	{ "clean", set_size, offsetof(struct conf, clean_bytes), 0, 1ull << 40,
	  RATE_TEXT, NULL, 0 },
	{ "huge", set_word, offsetof(struct conf, huge), 0, 16,
	  "auto, always, keep or never", "auto always keep never", 0 },
	{ "huge_dir", set_string, offsetof(struct conf, huge_dir), 1, 4096,
	  "a directory", NULL, 0 },
	{ "policy", set_word, offsetof(struct conf, policy), 0, 16, POLICIES,
	  POLICIES, 0 },
	{ "cuda_library", set_library, offsetof(struct conf, cuda_library), 1,
	  256, "auto, no or an absolute path", NULL, 0 },
	{ "cuda_image", set_path, offsetof(struct conf, cuda_image), 1, 4096,
	  "an absolute path", NULL, 0 },
	{ "cuda_graphs", set_choice, offsetof(struct conf, cuda_graphs), 0, 0,
	  "auto or no", "no auto", 0 },
	{ "wide_attention", set_choice, offsetof(struct conf, wide_attention),
	  0, 0, "auto or no", "no auto", 0 },
	{ "cublas_library", set_path, offsetof(struct conf, cublas_library), 1,
	  256, "an absolute path", NULL, 0 },
	{ "device", set_choice, offsetof(struct conf, device), 0, 0,
	  "cpu, cuda or auto", "cpu cuda auto", 0 },
	{ "device_index", set_u32, offsetof(struct conf, device_index), 0, 63,
	  "0 to 63", NULL, 0 },
	{ "direct_storage", set_library, offsetof(struct conf, direct_storage),
	  1, 256, "auto, no or an absolute path", NULL, 0 },
	{ "event_wait_ms", set_u32, offsetof(struct conf, event_wait_ms), 1,
	  3600000, "1 to 3600000 milliseconds", NULL, 0 },
	{ "device_memory", set_choice, offsetof(struct conf, device_memory), 0,
	  0, "vmm or uvm", "vmm uvm", 0 },
	{ "device_spare", set_size, offsetof(struct conf, device_spare), 0,
	  SIZE_LIMIT, SIZE_TEXT, NULL, 0 },
	{ "host_memory", set_size, offsetof(struct conf, host_bytes), 1 << 20,
	  SIZE_LIMIT, "a size of at least 1M", NULL, 0 },
	{ "log_level", set_word, offsetof(struct conf, log_level), 0, 16,
	  "error, warn, info or debug", "error warn info debug", 0 },
	{ "mlock", set_choice, offsetof(struct conf, mlock), 0, 0, "auto or no",
	  "no auto", 0 },
	{ "numa_node", set_node, offsetof(struct conf, numa_node), 0, 1023,
	  "auto or 0 to 1023", NULL, 0 },
	{ "user", set_user, offsetof(struct conf, drop_to_uid), 0, 0,
	  "the name or number of a user", NULL, 0 },
	{ "sandbox", set_choice, offsetof(struct conf, sandbox), 0, 0,
	  "yes or no", "no yes", 0 },
};

static const struct key model_keys[] = {
	{ "path", set_string, offsetof(struct conf_model, path), 1, 4096,
	  "a file", NULL, 0 },
	{ "math", set_choice, offsetof(struct conf_model, math_f32), 0, 0,
	  "bf16 or f32", "bf16 f32", 0 },
	{ "page_tokens", set_page_tokens,
	  offsetof(struct conf_model, page_tokens), 0, 4096,
	  "0 (chosen), or a multiple of 32 to 4096", NULL, 0 },
	{ "page_layers", set_u32, offsetof(struct conf_model, page_layers), 0,
	  1024, "0 (chosen) to 1024", NULL, 0 },
	{ "gate", set_choice, offsetof(struct conf_model, gate), 0, 0,
	  "auto or no", "no auto", 0 },
};

static const struct key tenant_keys[] = {
	{ "uid", set_uids, 0, 0, 0,
	  "up to 32 users by name or number, not 65534", NULL, 1 },
	{ "gid", set_gids, 0, 0, 0,
	  "up to 32 groups by name or number, not 65534", NULL, 1 },
	{ "socket", set_string, offsetof(struct conf_tenant, socket), 1,
	  CONF_PATH_MAX, PATH_TEXT, NULL, 0 },
	{ "socket_mode", set_mode, offsetof(struct conf_tenant, socket_mode), 0,
	  0777, MODE_TEXT, NULL, 0 },
	{ "memory", set_size, offsetof(struct conf_tenant, memory_bytes),
	  1 << 20, SIZE_LIMIT, "a size of at least 1M", NULL, 0 },
	{ "disk", set_size, offsetof(struct conf_tenant, disk_bytes), 0,
	  SIZE_LIMIT, SIZE_TEXT, NULL, 0 },
	{ "memory_floor", set_size, offsetof(struct conf_tenant, memory_floor),
	  0, SIZE_LIMIT, SIZE_TEXT, NULL, 0 },
	{ "disk_floor", set_size, offsetof(struct conf_tenant, disk_floor), 0,
	  SIZE_LIMIT, SIZE_TEXT, NULL, 0 },
	{ "weight", set_u32, offsetof(struct conf_tenant, weight), 1, 10000,
	  "1 to 10000", NULL, 0 },
	{ "io_limit", set_size, offsetof(struct conf_tenant, io_limit),
	  16 << 20, SIZE_LIMIT, "a size of at least 16M", NULL, 0 },
	{ "policy", set_word, offsetof(struct conf_tenant, policy), 0, 16,
	  POLICIES, POLICIES, 0 },
	{ "persist", set_choice, offsetof(struct conf_tenant, persist), 0, 0,
	  "no, request or auto", "no request auto", 0 },
	{ "sequences", set_u32, offsetof(struct conf_tenant, max_sequences), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
	{ "chunks", set_u32, offsetof(struct conf_tenant, max_chunks), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
	{ "requests", set_u32, offsetof(struct conf_tenant, max_requests), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
	{ "sessions", set_u32, offsetof(struct conf_tenant, max_sessions), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
	{ "maps", set_u32, offsetof(struct conf_tenant, max_maps), 1, LIMIT_MAX,
	  "1 to 1048576", NULL, 0 },
	{ "map", set_choice, offsetof(struct conf_tenant, map), 0, 0,
	  "no, copy or auto", "no copy auto", 0 },
	{ "device_share", set_choice,
	  offsetof(struct conf_tenant, device_share), 0, 0, "no or yes",
	  "no yes", 0 },
	{ "share", set_string, offsetof(struct conf_tenant, share), 1,
	  CONF_NAME_MAX, "a name of up to 63 bytes", NULL, 0 },
};

static const struct key store_keys[] = {
	{ "path", set_string, offsetof(struct conf_store, path), 1, 4096,
	  "a file or block device", NULL, 0 },
	{ "size", set_size, offsetof(struct conf_store, bytes), 0, SIZE_LIMIT,
	  SIZE_TEXT, NULL, 0 },
};

static_assert(KV_ARRAY_LEN(kvd_keys) <= KEYS_MAX &&
		      KV_ARRAY_LEN(model_keys) <= KEYS_MAX &&
		      KV_ARRAY_LEN(tenant_keys) <= KEYS_MAX,
	      "struct seen has a bit for each");

const struct key_table conf_kvd_keys = { kvd_keys, KV_ARRAY_LEN(kvd_keys) };
const struct key_table conf_model_keys = { model_keys,
					   KV_ARRAY_LEN(model_keys) };
const struct key_table conf_tenant_keys = { tenant_keys,
					    KV_ARRAY_LEN(tenant_keys) };
const struct key_table conf_store_keys = { store_keys,
					   KV_ARRAY_LEN(store_keys) };
