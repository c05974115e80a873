/*
 * evict.c - the policies by name; see evict.h
 */
#include "kvd/mem/evict.h"

#include <string.h>

const struct evict_policy *const evict_policies[] = {
	&evict_clock, &evict_lru,	 &evict_s3fifo,
	&evict_gdsf,  &evict_cachecraft, &evict_succinct,
	&evict_phase, &evict_density,	 &evict_belady,
	NULL,
};

const struct evict_policy *evict_find(const char *name)
{
	for (size_t i = 0; evict_policies[i]; i++)
		if (!strcmp(evict_policies[i]->name, name))
			return evict_policies[i];
	return NULL;
}
