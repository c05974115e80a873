/*
 * folio.h - the folios of pages that lie in a memfd
 *
 * Since Linux 6.11 the memory of a memfd comes in folios of 16 KiB to 2 MiB, if that size is
 * switched on (/sys/kernel/mm/transparent_hugepage/hugepages-<size>kB/shmem_enabled) and
 * the map has asked for it (MADV_HUGEPAGE). The kernel takes the largest size that suits
 * the map: address and offset in the file are the same modulo the size. So a map at an
 * address where that holds up to the folio of a page and no further (folio_shift()) has
 * none that reaches beyond the page, and a page is given back whole.
 */
#ifndef KVD_MEM_FOLIO_H
#define KVD_MEM_FOLIO_H

#include <stddef.h>

/* The largest power of two that divides page_bytes, at most 2 MiB; 0: below 16 KiB. */
size_t folio_of(size_t page_bytes);
/* 1: the kernel gives folios of these bytes to who asks. */
int folio_is_on(size_t bytes);
/* Where a map of a file's begin has to lie, less than 3 x bytes above at. */
char *folio_shift(char *at, size_t bytes);
/* Switch on for who asks ("advise") all sizes that are off. The number of sizes that are on
 * then; none: -errno. */
int folio_switch_on(void);

#endif
