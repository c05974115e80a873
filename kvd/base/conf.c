/*
 * conf.c - the configuration file; see conf.h
 *
 * inih splits the lines; each key is one row of a table (field, parser,
 * limits). What only the whole file can tell is checked at the end. The first
 * error stands, the rest of the file is then ignored. inih cuts lines and
 * section names that are too long for it in silence, tells nothing of a section
 * without a key, nor of what stands behind one: so these are looked at here.
 */
#include "kvd/base/conf_keys.h"

#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io/base.h"

#define SECTION_MAX 49 /* inih's buffer without its NUL */

/* What keys of a section were given, by row of its table. */
struct seen {
	uint64_t keys; /* KEYS_MAX */
};

struct parse {
	const char *path;
	FILE *file;
	int line;
	struct conf *conf;
	struct seen kvd;
	int n_kvd; /* sections */
	struct seen models[CONF_MAX_MODELS];
	struct seen tenants[CONF_MAX_TENANTS];
	struct seen stores[CONF_MAX_STORES];
	char section[CONF_NAME_MAX]; /* the latest */
	char *err;
	size_t err_len;
	int failed;
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

/* Set key name of base; seen has one bit per row of the table. */
static int set_key(struct parse *p, const struct key_table *table, void *base,
		   struct seen *seen, const char *name, const char *value)
{
	for (size_t i = 0; i < table->n; i++) {
		const struct key *k = &table->keys[i];

		if (strcmp(k->name, name))
			continue;
		if (seen->keys >> i & 1 && !k->is_list)
			return fail(p, p->line, "[%s] %s: given twice",
				    p->section, name);
		seen->keys |= 1ull << i;
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
	m->gate = 1;
	strcpy(m->name, name);
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
	t->weight = 100;
	t->max_sequences = 1024;
	t->max_chunks = 16384;
	t->max_maps = 4096;
	t->map = CONF_MAP_AUTO;
	t->max_requests = 64;
	t->max_sessions = 64;
	t->persist = CONF_PERSIST_AUTO;
	return 0;
}

static int new_store(struct parse *p, const char *name)
{
	struct conf *c = p->conf;

	for (uint32_t i = 0; i < c->n_stores; i++)
		if (!strcmp(c->stores[i].name, name))
			return fail(p, p->line, "[store %s]: given twice",
				    name);
	if (c->n_stores == CONF_MAX_STORES)
		return fail(p, p->line, "more than %d stores", CONF_MAX_STORES);
	strcpy(c->stores[c->n_stores++].name, name);
	return 0;
}

static const struct {
	const char *kind;
	int (*new)(struct parse *p, const char *name);
} sections[] = {
	{ "model", new_model },
	{ "tenant", new_tenant },
	{ "store", new_store },
};

/* Make what the section describes. */
static int new_section(struct parse *p, const char *section)
{
	const char *name = strpbrk(section, " \t");
	const size_t kind = strcspn(section, " \t");

	strcpy(p->section, section);
	if (name)
		name += strspn(name, " \t");
	if (!strcmp(section, "kvd"))
		return p->n_kvd++ ? fail(p, p->line, "[kvd]: given twice") : 0;
	for (size_t i = 0; i < KV_ARRAY_LEN(sections) && name; i++) {
		if (strlen(sections[i].kind) != kind ||
		    strncmp(section, sections[i].kind, kind))
			continue;
		if (check_name(name))
			return fail(p, p->line,
				    "[%s]: names are of a-z 0-9 _ -", section);
		return sections[i].new(p, name);
	}
	return fail(p, p->line,
		    "[%s]: want [kvd], [model NAME], [tenant NAME] or "
		    "[store NAME]",
		    section);
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
	if (*section == 'k')
		ret = set_key(p, &conf_kvd_keys, c, &p->kvd, name, value);
	else if (*section == 'm')
		ret = set_key(p, &conf_model_keys, &c->models[c->n_models - 1],
			      &p->models[c->n_models - 1], name, value);
	else if (*section == 't')
		ret = set_key(p, &conf_tenant_keys,
			      &c->tenants[c->n_tenants - 1],
			      &p->tenants[c->n_tenants - 1], name, value);
	else if (*section == 's')
		ret = set_key(p, &conf_store_keys, &c->stores[c->n_stores - 1],
			      &p->stores[c->n_stores - 1], name, value);
	else
		ret = fail(p, p->line, "%s: before any section", name);
	return !ret;
}

/* [kind name], and a remark perhaps. What has no end is left to inih. */
static int section_line(struct parse *p, const char *at)
{
	const size_t n = strcspn(at, "]");
	char section[SECTION_MAX];
	const char *rest = at + n + 1;

	if (!at[n])
		return 0;
	if (n >= sizeof(section))
		return fail(p, p->line, "section name longer than %d bytes",
			    SECTION_MAX - 1);
	memcpy(section, at, n);
	section[n] = '\0';
	rest += strspn(rest, " \t\r\n");
	if (*rest && *rest != ';' && *rest != '#')
		return fail(p, p->line,
			    "[%s]: what follows has a line of its own",
			    section);
	return new_section(p, section);
}

/* Counts lines for the messages, and refuses what inih would cut. */
static char *read_line(char *buf, int n, void *user)
{
	struct parse *p = user;
	const char *at = buf;
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
	if (p->line == 1 && !strncmp(at, "\xef\xbb\xbf", 3))
		at += 3;
	at += strspn(at, " \t");
	if (*at == '[' && section_line(p, at + 1))
		return NULL;
	/* what is indented would go on with the value above */
	memmove(buf, at, strlen(at) + 1);
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

/* Where metrics are served is no socket for clients. */
static int check_metrics(struct parse *p)
{
	const struct conf *c = p->conf;
	const char *path = c->metrics + 5; /* unix: */

	if (strncmp(c->metrics, "unix:", 5))
		return 0;
	if (!strcmp(path, c->socket))
		return fail(p, 0, "[kvd] metrics: is socket, too");
	for (uint32_t i = 0; i < c->n_tenants; i++)
		if (!strcmp(path, c->tenants[i].socket))
			return fail(p, 0,
				    "[kvd] metrics: is the socket of "
				    "[tenant %s], too",
				    c->tenants[i].name);
	return 0;
}

static int check_floors(struct parse *p, const char *what, uint64_t pool,
			size_t floor_off, size_t limit_off)
{
	const struct conf *c = p->conf;
	uint64_t floors = 0;

	for (uint32_t i = 0; i < c->n_tenants; i++) {
		const char *t = (const char *)&c->tenants[i];
		const uint64_t floor = *(const uint64_t *)(t + floor_off);

		if (floor > *(const uint64_t *)(t + limit_off))
			return fail(p, 0,
				    "[tenant %s]: %s_floor is more than %s",
				    c->tenants[i].name, what, what);
		floors += floor;
	}
	if (floors > pool)
		return fail(p, 0,
			    "tenants have floors of %llu bytes of %s "
			    "together, [kvd] %s is %llu",
			    (unsigned long long)floors, what, what,
			    (unsigned long long)pool);
	return 0;
}

/* The pools: as given, or what all tenants may have together. */
static int check_pools(struct parse *p)
{
	struct conf *c = p->conf;
	uint64_t memory = 0, disk = 0, stores = 0;
	int ret;

	for (uint32_t i = 0; i < c->n_tenants; i++) {
		memory += c->tenants[i].memory_bytes;
		disk += c->tenants[i].disk_bytes;
	}
	c->memory_bytes = c->memory_bytes ? c->memory_bytes : memory;
	c->disk_bytes = c->disk_bytes ? c->disk_bytes : disk;
	c->host_bytes = c->host_bytes ? c->host_bytes : c->memory_bytes;
	for (uint32_t i = 0; i < c->n_stores; i++)
		stores += c->stores[i].bytes ? c->stores[i].bytes
					     : SIZE_MAX / 16;
	if (c->n_stores && c->disk_bytes > stores)
		c->disk_bytes = stores;
	ret = check_floors(p, "memory", c->memory_bytes,
			   offsetof(struct conf_tenant, memory_floor),
			   offsetof(struct conf_tenant, memory_bytes));
	return ret ? ret
		   : check_floors(p, "disk", c->disk_bytes,
				  offsetof(struct conf_tenant, disk_floor),
				  offsetof(struct conf_tenant, disk_bytes));
}

static int check_store(struct parse *p, uint32_t i)
{
	const struct conf_store *s = p->conf->stores;

	if (!s[i].path[0])
		return fail(p, 0, "[store %s]: needs path", s[i].name);
	for (uint32_t j = 0; j < i; j++)
		if (!strcmp(s[i].path, s[j].path))
			return fail(p, 0,
				    "[store %s]: path is that of [store %s]",
				    s[i].name, s[j].name);
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
	for (uint32_t i = 0; i < c->n_stores && !ret; i++)
		ret = check_store(p, i);
	for (uint32_t i = 0; i < c->n_tenants && !ret; i++) {
		ret = check_tenant(p, &c->tenants[i]);
		for (uint32_t j = 0; j < i && !ret; j++)
			ret = check_pair(p, &c->tenants[j], &c->tenants[i]);
	}
	if (!ret)
		ret = check_metrics(p);
	return ret ? ret : check_pools(p);
}

/* What a tenant does not say, [kvd] does. */
static void inherit(struct conf *c)
{
	for (uint32_t i = 0; i < c->n_tenants; i++)
		if (!*c->tenants[i].policy)
			memcpy(c->tenants[i].policy, c->policy,
			       sizeof(c->policy));
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
	strcpy(c->policy, "density");
	c->recompute = 1;
	c->restore_layers = 1;
	c->order = 1;
	c->scrub_bytes = 4u << 20;
	c->clean_bytes = 256u << 20;
	strcpy(c->huge, "auto");
	strcpy(c->cuda_library, "auto");
	strcpy(c->direct_storage, "auto");
	c->cuda_graphs = 1;
	c->wide_attention = 1;
	c->event_wait_ms = 10000;
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
	inherit(conf);
	return p.failed ? -EINVAL : check_all(&p);
}
