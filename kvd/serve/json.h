/*
 * json.h - members of the objects that queries are answered with; inside kvd/serve
 */
#ifndef KVD_SERVE_JSON_H
#define KVD_SERVE_JSON_H

#include <jansson.h>
#include <stdio.h>
#include "kvd/base/map.h"

static inline void set_int(json_t *o, const char *key, uint64_t n)
{
	json_object_set_new(o, key, json_integer((json_int_t)n));
}

static inline void set_str(json_t *o, const char *key, const char *s)
{
	json_object_set_new(o, key, json_string(s));
}

static inline void set_id(json_t *o, const char *key, struct map_id id)
{
	char hex[33];

	snprintf(hex, sizeof(hex), "%016llx%016llx",
		 (unsigned long long)id.w[0], (unsigned long long)id.w[1]);
	set_str(o, key, hex);
}

#endif
