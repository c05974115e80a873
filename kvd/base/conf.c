/*
 * conf.c - the configuration file; see conf.h
 *
 * inih splits the lines; each key is one row of a table (field, parser,
 * limits). What only the whole file can tell is checked at the end. The first
 * error stands, the rest of the file is then ignored. inih cuts lines and
 * section names that are too long for it in silence, so these are refused here.
 */
#include "kvd/base/conf.h"

#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/base.h"

#define SECTION_MAX 49 /* inih's buffer without its NUL */
#define OVERFLOW_ID 65534

/* What keys of a section were given, by row of its table. */
struct seen {
	uint32_t keys;
};

struct parse {
	const char *path;
	FILE *file;
	int line;
	struct conf *conf;
	struct seen kvd;
	struct seen models[CONF_MAX_MODELS];
	struct seen tenants[CONF_MAX_TENANTS];
	char section[CONF_NAME_MAX]; /* the latest, to see one come again */
	char *err;
	size_t err_len;
	int failed;
};

struct key {
	const char *name;
	/* 0, or -EINVAL; field as off says. */
	int (*set)(const struct key *k, void *field, const char *value);
	size_t off;
	uint64_t min, max; /* of numbers; max: bytes of strings, with NUL */
	const char *expect; /* said when set() fails */
	const char *words; /* " a b c " */
	int is_list; /* may be given again: adds */
};

KV_PRINTF(3, 4)
static int fail(struct parse *p, int line, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (p->failed)
		return -EINVAL;
	p->failed = 1;
	if (!p->err_len)
		return -EINVAL;
	if (line)
		n = snprintf(p->err, p->err_len, "%s:%d: ", p->path, line);
	else
		n = snprintf(p->err, p->err_len, "%s: ", p->path);
	if (n < 0 || (size_t)n >= p->err_len)
		return -EINVAL;
	va_start(ap, fmt);
	(void)vsnprintf(p->err + n, p->err_len - (size_t)n, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

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
		    id == OVERFLOW_ID)
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
	if (parse_id(value, group_of_name, &gid) || gid == OVERFLOW_ID)
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

#define SIZE_TEXT  "a size in bytes, or with K, M, G or T"
#define PATH_TEXT  "a path of at most 107 bytes"
#define MODE_TEXT  "an octal mode, 0 to 0777"
#define LIMIT_MAX  (1u << 20)
#define SIZE_LIMIT (1ull << 50)

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
	{ "huge", set_word, offsetof(struct conf, huge), 0, 16,
	  "auto, always or never", "auto always never", 0 },
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
	  offsetof(struct conf_model, page_tokens), 32, 4096,
	  "a multiple of 32, 32 to 4096", NULL, 0 },
	{ "page_layers", set_u32, offsetof(struct conf_model, page_layers), 0,
	  1024, "0 (chosen) to 1024", NULL, 0 },
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
	{ "sequences", set_u32, offsetof(struct conf_tenant, max_sequences), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
	{ "requests", set_u32, offsetof(struct conf_tenant, max_requests), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
	{ "sessions", set_u32, offsetof(struct conf_tenant, max_sessions), 1,
	  LIMIT_MAX, "1 to 1048576", NULL, 0 },
};

/* Set key name of base; seen has one bit per row of keys. */
static int set_key(struct parse *p, const struct key *keys, size_t n_keys,
		   void *base, struct seen *seen, const char *name,
		   const char *value)
{
	for (size_t i = 0; i < n_keys; i++) {
		const struct key *k = &keys[i];

		if (strcmp(k->name, name))
			continue;
		if (seen->keys >> i & 1 && !k->is_list)
			return fail(p, p->line, "[%s] %s: given twice",
				    p->section, name);
		seen->keys |= 1u << i;
		if (k->set(k, (char *)base + k->off, value))
			return fail(p, p->line, "[%s] %s = \"%s\": want %s",
				    p->section, name, value, k->expect);
		return 0;
	}
	return fail(p, p->line, "[%s] %s: unknown key", p->section, name);
}

/* ---- sections ----------------------------------------------------------- */

static int check_name(const char *s)
{
	static const char ok[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
	const size_t len = strlen(s);

	return len && len < CONF_NAME_MAX && strspn(s, ok) == len ? 0 : -EINVAL;
}

static int new_model(struct parse *p, const char *name)
{
	struct conf *c = p->conf;
	struct conf_model *m;

	for (uint32_t i = 0; i < c->n_models; i++)
		if (!strcmp(c->models[i].name, name))
			return fail(p, p->line, "[model %s]: given twice",
				    name);
	if (c->n_models == CONF_MAX_MODELS)
		return fail(p, p->line, "more than %d models", CONF_MAX_MODELS);
	m = &c->models[c->n_models++];
	strcpy(m->name, name);
	m->page_tokens = 32;
	return 0;
}

static int new_tenant(struct parse *p, const char *name)
{
	struct conf *c = p->conf;
	struct conf_tenant *t;

	for (uint32_t i = 0; i < c->n_tenants; i++)
		if (!strcmp(c->tenants[i].name, name))
			return fail(p, p->line, "[tenant %s]: given twice",
				    name);
	if (c->n_tenants == CONF_MAX_TENANTS)
		return fail(p, p->line, "more than %d tenants",
			    CONF_MAX_TENANTS);
	t = &c->tenants[c->n_tenants++];
	strcpy(t->name, name);
	t->socket_mode = 0660;
	t->memory_bytes = 256ull << 20;
	t->disk_bytes = 1ull << 30;
	t->max_sequences = 1024;
	t->max_requests = 64;
	t->max_sessions = 64;
	return 0;
}

/* The first key of a section: make what it describes. */
static int new_section(struct parse *p, const char *section)
{
	const char *name = strpbrk(section, " \t");
	const size_t kind = strcspn(section, " \t");

	if (strlen(section) >= SECTION_MAX)
		return fail(p, p->line, "section name longer than %d bytes",
			    SECTION_MAX - 1);
	strcpy(p->section, section);
	if (name)
		name += strspn(name, " \t");
	if (!strcmp(section, "kvd"))
		return p->kvd.keys ? fail(p, p->line, "[kvd]: given twice") : 0;
	if (!name || ((kind != 5 || strncmp(section, "model", 5)) &&
		      (kind != 6 || strncmp(section, "tenant", 6))))
		return fail(p, p->line,
			    "[%s]: want [kvd], [model NAME] or [tenant NAME]",
			    section);
	if (check_name(name))
		return fail(p, p->line, "[%s]: names are of a-z 0-9 _ -",
			    section);
	return *section == 'm' ? new_model(p, name) : new_tenant(p, name);
}

/* inih: 1 for right, 0 for an error. */
static int on_key(void *user, const char *section, const char *name,
		  const char *value)
{
	struct parse *p = user;
	struct conf *c = p->conf;
	int ret = 0;

	if (p->failed)
		return 0;
	if (strcmp(section, p->section))
		ret = new_section(p, section);
	if (ret)
		return 0;
	if (*section == 'k')
		ret = set_key(p, kvd_keys, KV_ARRAY_LEN(kvd_keys), c, &p->kvd,
			      name, value);
	else if (*section == 'm')
		ret = set_key(p, model_keys, KV_ARRAY_LEN(model_keys),
			      &c->models[c->n_models - 1],
			      &p->models[c->n_models - 1], name, value);
	else if (*section == 't')
		ret = set_key(p, tenant_keys, KV_ARRAY_LEN(tenant_keys),
			      &c->tenants[c->n_tenants - 1],
			      &p->tenants[c->n_tenants - 1], name, value);
	else
		ret = fail(p, p->line, "%s: before any section", name);
	return !ret;
}

/* Counts lines for the messages, and refuses what inih would cut. */
static char *read_line(char *buf, int n, void *user)
{
	struct parse *p = user;
	size_t len;

	if (p->failed || !fgets(buf, n, p->file))
		return NULL;
	p->line++;
	len = strlen(buf);
	if ((!len || buf[len - 1] != '\n') && !feof(p->file)) {
		fail(p, p->line, "line of more than %d bytes, or with a NUL",
		     n - 2);
		return NULL;
	}
	return buf;
}

/* ---- checks of the whole ------------------------------------------------ */

static int same_id(const uint32_t *a, uint32_t n_a, const uint32_t *b,
		   uint32_t n_b, uint32_t *id)
{
	for (uint32_t i = 0; i < n_a; i++)
		for (uint32_t j = 0; j < n_b; j++)
			if (a[i] == b[j]) {
				*id = a[i];
				return 1;
			}
	return 0;
}

/* Two tenants that one peer could be. */
static int check_pair(struct parse *p, const struct conf_tenant *a,
		      const struct conf_tenant *b)
{
	uint32_t id;

	if (same_id(a->uids, a->n_uids, b->uids, b->n_uids, &id))
		return fail(p, 0, "uid %u is in [tenant %s] and [tenant %s]",
			    id, a->name, b->name);
	if (same_id(a->gids, a->n_gids, b->gids, b->n_gids, &id))
		return fail(p, 0, "gid %u is in [tenant %s] and [tenant %s]",
			    id, a->name, b->name);
	if (a->socket[0] && !strcmp(a->socket, b->socket))
		return fail(p, 0, "socket %s is in [tenant %s] and [tenant %s]",
			    a->socket, a->name, b->name);
	return 0;
}

static int check_tenant(struct parse *p, const struct conf_tenant *t)
{
	const struct conf *c = p->conf;

	if (!t->n_uids && !t->n_gids && !t->socket[0])
		return fail(p, 0, "[tenant %s]: needs uid, gid or socket",
			    t->name);
	if (!c->socket[0] && !t->socket[0])
		return fail(p, 0, "[tenant %s]: there is no socket for it",
			    t->name);
	if (t->socket[0] && !strcmp(t->socket, c->socket))
		return fail(p, 0, "[tenant %s]: socket is that of [kvd]",
			    t->name);
	return 0;
}

static int check_memory(struct parse *p)
{
	struct conf *c = p->conf;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < c->n_tenants; i++)
		sum += c->tenants[i].memory_bytes;
	if (!c->memory_bytes)
		c->memory_bytes = sum;
	if (sum > c->memory_bytes)
		return fail(p, 0,
			    "tenants have %llu bytes of memory together, "
			    "[kvd] memory is %llu",
			    (unsigned long long)sum,
			    (unsigned long long)c->memory_bytes);
	return 0;
}

static int check_all(struct parse *p)
{
	const struct conf *c = p->conf;
	int ret = 0;

	if (!c->n_tenants)
		return fail(p, 0, "there is no [tenant NAME]");
	for (uint32_t i = 0; i < c->n_models; i++)
		if (!c->models[i].path[0])
			return fail(p, 0, "[model %s]: needs path",
				    c->models[i].name);
	for (uint32_t i = 0; i < c->n_tenants && !ret; i++) {
		ret = check_tenant(p, &c->tenants[i]);
		for (uint32_t j = 0; j < i && !ret; j++)
			ret = check_pair(p, &c->tenants[j], &c->tenants[i]);
	}
	return ret ? ret : check_memory(p);
}

static void set_defaults(struct conf *c)
{
	memset(c, 0, sizeof(*c));
	strcpy(c->socket, "/run/kvd/kvd.sock");
	c->socket_mode = 0666;
	strcpy(c->state_dir, "/var/lib/kvd");
	c->spin_ns = 20000;
	c->arena_max_bytes = 64ull << 20;
	c->prefill_slice = 128;
	c->max_batch = 64;
	strcpy(c->huge, "auto");
	strcpy(c->log_level, "info");
	c->mlock = 1;
	c->numa_node = -1;
	c->drop_to_uid = -1;
	c->sandbox = 1;
}

int conf_load(const char *path, struct conf *conf, char *err, size_t err_len)
{
	struct parse p = {
		.path = path, .conf = conf, .err = err, .err_len = err_len
	};
	int ret, bad_line;

	if (err_len)
		err[0] = '\0';
	set_defaults(conf);
	p.file = fopen(path, "re");
	if (!p.file) {
		ret = -errno;
		fail(&p, 0, "%s", strerror(-ret));
		return ret;
	}
	bad_line = ini_parse_stream(read_line, &p, on_key, &p);
	ret = ferror(p.file) ? -EIO : 0;
	(void)fclose(p.file); /* only read */
	if (ret) {
		fail(&p, 0, "cannot be read");
		return ret;
	}
	/* a line that inih could not split comes before our own error */
	if (bad_line > 0 && (!p.failed || bad_line < p.line)) {
		p.failed = 0;
		return fail(&p, bad_line, "neither a section nor key = value");
	}
	return p.failed ? -EINVAL : check_all(&p);
}
