/*
 * park_mem.c - the memory of a park; see park_mem.h
 */
#include "kvd/mem/park_mem.h"

#include <errno.h>
#include <numa.h>
#include <string.h>
#include <sys/mman.h>
#include "io/sys.h"
#include "kvd/base/log.h"

int park_mem_map(size_t n, int numa_node, char **out)
{
	struct bitmask *m;
	void *p = NULL;
	int ret = kio_sys_mmap(NULL, n, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			       0, &p);

	if (ret)
		return ret;
	/* wishes: what cannot be had is done without */
	(void)kio_sys_madvise(p, n, MADV_HUGEPAGE);
	(void)kio_sys_madvise(p, n, MADV_DONTFORK);
	ret = kio_sys_madvise(p, n, MADV_DONTDUMP);
	if (ret)
		log_warn("park", "a core would hold what tenants said: %s",
			 strerror(-ret));
	if (numa_node >= 0 && numa_available() >= 0) {
		m = numa_allocate_nodemask();
		numa_bitmask_setbit(m, (unsigned int)numa_node);
		ret = kio_sys_prefer_node(p, n, m->maskp, m->size + 1);
		if (ret)
			log_warn("park", "node %d: %s", numa_node,
				 strerror(-ret));
		numa_free_nodemask(m);
	}
	*out = p;
	return 0;
}

void park_mem_unmap(char *p, size_t n)
{
	(void)kio_sys_munmap(p, n);
}
