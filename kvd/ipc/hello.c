/*
 * hello.c - the pure part of the handshake: what a hello may say, who is who
 *
 * No descriptors here, so tests and the fuzzer call it as it is.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/list.h"
#include "kvd/ipc/sock.h"

#define SQ_DEFAULT    256u
#define SQ_MAX	      4096u
#define CQ_MAX	      8192u
#define ARENA_DEFAULT (16ull << 20)
#define PAGE	      4096u

int sock_is_overflow(uid_t uid)
{
	static uid_t overflow = (uid_t)-1;
	unsigned int v = 65534;
	FILE *f;

	if (overflow == (uid_t)-1) {
		f = fopen("/proc/sys/kernel/overflowuid", "re");
		if (f) {
			if (fscanf(f, "%u", &v) != 1)
				v = 65534;
			(void)fclose(f); /* only read */
		}
		overflow = v;
	}
	return uid == overflow || uid == (uid_t)-1;
}

/* The tenant that names one of n groups, first in order of the groups. */
static const struct conf_tenant *
tenant_of_groups(const struct conf *conf, const gid_t *groups, uint32_t n)
{
	for (uint32_t g = 0; g < n; g++)
		for (uint32_t t = 0; t < conf->n_tenants; t++)
			for (uint32_t i = 0; i < conf->tenants[t].n_gids; i++)
				if (conf->tenants[t].gids[i] == groups[g])
					return &conf->tenants[t];
	return NULL;
}

const struct conf_tenant *sock_tenant(const struct conf *conf,
				      const struct conf_tenant *own,
				      const struct sock_peer *p)
{
	const struct conf_tenant *t;

	if (sock_is_overflow(p->uid))
		return NULL;
	if (own)
		return own;
	for (uint32_t k = 0; k < conf->n_tenants; k++)
		for (uint32_t i = 0; i < conf->tenants[k].n_uids; i++)
			if (conf->tenants[k].uids[i] == p->uid)
				return &conf->tenants[k];
	t = tenant_of_groups(conf, &p->gid, 1);
	return t ? t : tenant_of_groups(conf, p->groups, p->n_groups);
}

int sock_is_admin(const struct conf *conf, const struct sock_peer *p)
{
	if (sock_is_overflow(p->uid))
		return 0;
	if (p->uid == 0 || p->uid == geteuid())
		return 1;
	if (!conf->has_admin_gid)
		return 0;
	if (p->gid == conf->admin_gid)
		return 1;
	for (uint32_t i = 0; i < p->n_groups; i++)
		if (p->groups[i] == conf->admin_gid)
			return 1;
	return 0;
}

static int power_of_two(uint32_t n)
{
	return n && !(n & (n - 1));
}

static int check_name(const char name[32])
{
	size_t i;

	for (i = 0; i < 32 && name[i]; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return 0;
	for (; i < 32; i++)
		if (name[i])
			return 0;
	return name[31] == '\0';
}

static int check_sizes(struct kv_hello *h, const struct conf *conf,
		       const char **text)
{
	h->sq_entries = h->sq_entries ? h->sq_entries : SQ_DEFAULT;
	if (!power_of_two(h->sq_entries) || h->sq_entries > SQ_MAX) {
		*text = "sq_entries is no power of two in 1..4096";
		return -EINVAL;
	}
	h->cq_entries = h->cq_entries ? h->cq_entries : 2 * h->sq_entries;
	if (!power_of_two(h->cq_entries) || h->cq_entries < h->sq_entries ||
	    h->cq_entries > CQ_MAX) {
		*text = "cq_entries is no power of two in sq_entries..8192";
		return -EINVAL;
	}
	if (!h->arena_bytes)
		h->arena_bytes = KV_MIN(ARENA_DEFAULT, conf->arena_max_bytes);
	if (h->arena_bytes > conf->arena_max_bytes) {
		*text = "arena_bytes is above the configured limit";
		return -EINVAL;
	}
	h->arena_bytes = KV_ALIGN_UP(h->arena_bytes, PAGE);
	return 0;
}

int sock_check_hello(struct kv_hello *h, size_t n, const struct conf *conf,
		     uint64_t features, const char **text)
{
	if (n != sizeof(*h) || h->magic != KV_MAGIC) {
		*text = "this is no kv_hello";
		return -EINVAL;
	}
	if (h->major != KV_ABI_MAJOR) {
		*text = "this daemon speaks version 1 only";
		return -EPROTONOSUPPORT;
	}
	for (size_t i = 0; i < KV_ARRAY_LEN(h->_rsvd); i++) {
		if (h->_rsvd[i]) {
			*text = "reserved fields are not 0";
			return -EINVAL;
		}
	}
	if (!check_name(h->name)) {
		*text = "name is not printable";
		return -EINVAL;
	}
	if (h->features_want & ~features) {
		*text = "a feature that was asked for is missing";
		return -EPROTONOSUPPORT;
	}
	return check_sizes(h, conf, text);
}
