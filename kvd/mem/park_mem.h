/*
 * park_mem.h - the memory of a park (park.h): large, near, in no child and no core
 */
#ifndef KVD_MEM_PARK_MEM_H
#define KVD_MEM_PARK_MEM_H

#include <stddef.h>

/* n bytes, on that NUMA node if it can be (-1: anywhere). 0, -errno. */
int park_mem_map(size_t n, int numa_node, char **out);
void park_mem_unmap(char *p, size_t n);

#endif
