/*
 * fuzz_conf.c - any bytes as a configuration file
 *
 * What is accepted must hold what conf.h promises.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kvd/base/conf.h"

#define MAX_BYTES (1u << 16)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int ok)
{
	if (!ok)
		abort();
}

static void check_tenants(const struct conf *c)
{
	uint64_t memory = 0, disk = 0; /* what tenants keep, whatever happens */

	must(c->n_tenants && c->n_tenants <= CONF_MAX_TENANTS);
	for (uint32_t i = 0; i < c->n_tenants; i++) {
		const struct conf_tenant *t = &c->tenants[i];

		must(memchr(t->name, 0, sizeof(t->name)) && t->name[0]);
		must(!!memchr(t->socket, 0, sizeof(t->socket)));
		must(t->n_uids <= CONF_MAX_IDS && t->n_gids <= CONF_MAX_IDS);
		must(t->n_uids || t->n_gids || t->socket[0]);
		must(t->max_sequences && t->max_requests && t->max_sessions);
		for (uint32_t k = 0; k < t->n_uids; k++)
			must(t->uids[k] != 65534 && t->uids[k] != UINT32_MAX);
		must(t->memory_floor <= t->memory_bytes);
		must(t->disk_floor <= t->disk_bytes);
		memory += t->memory_floor;
		disk += t->disk_floor;
	}
	must(memory <= c->memory_bytes && disk <= c->disk_bytes);
}

static void check_models(const struct conf *c)
{
	must(c->n_models <= CONF_MAX_MODELS);
	for (uint32_t i = 0; i < c->n_models; i++) {
		must(c->models[i].name[0] && c->models[i].path[0]);
		must(c->models[i].page_tokens <= 4096 &&
		     c->models[i].page_tokens % 32 == 0);
	}
}

static void check_size(const uint8_t *data, size_t size)
{
	char text[32] = "";
	uint64_t n;

	memcpy(text, data, size < sizeof(text) - 1 ? size : sizeof(text) - 1);
	(void)conf_parse_size(text, &n); /* either way is fine */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct conf conf;
	char path[32], err[256];
	int fd, ret;

	if (size > MAX_BYTES)
		return 0;
	check_size(data, size);
	fd = memfd_create("conf", 0);
	must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = conf_load(path, &conf, err, sizeof(err));
	close(fd);
	if (ret) {
		must(memchr(err, 0, sizeof(err)) && err[0]);
		return 0;
	}
	must(!err[0]);
	check_tenants(&conf);
	check_models(&conf);
	return 0;
}
