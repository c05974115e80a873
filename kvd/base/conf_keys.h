/*
 * conf_keys.h - the keys of each section; inside conf
 */
#ifndef KVD_BASE_CONF_KEYS_H
#define KVD_BASE_CONF_KEYS_H

#include "kvd/base/conf.h"

#define CONF_OVERFLOW_ID 65534

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

/* Of a table: one bit each of a word. */
#define KEYS_MAX 64u
struct key_table {
	const struct key *keys;
	size_t n;
};
extern const struct key_table conf_kvd_keys, conf_model_keys, conf_tenant_keys,
	conf_store_keys;

#endif
