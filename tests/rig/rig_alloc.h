/*
 * rig_alloc.h - what kvd itself allocates, as fault points ("mem.alloc" of io/fault.h)
 *
 * The sweeps are linked with a copy of the core in which malloc() and its like are
 * these (tests/tests.mk). The tests' own memory, and that of libraries, never fails.
 */
#ifndef RIG_RIG_ALLOC_H
#define RIG_RIG_ALLOC_H

#include <stddef.h>

/* 0 (the default): allocations are no fault points. */
extern int rig_alloc_fails;

void *rig_malloc(size_t n);
void *rig_calloc(size_t n, size_t each);
void *rig_realloc(void *p, size_t n);
char *rig_strdup(const char *s);
int rig_posix_memalign(void **out, size_t align, size_t n);

#endif
