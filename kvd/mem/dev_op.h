/*
 * dev_op.h - operations over pages of a device (pager_conf.device); inside kvd/mem
 *
 *   map    a call of the driver on its thread           -> move_mapped()
 *   drop   the same                                     -> move_dropped()
 *   write  host pool -> copy down -> checksum           -> move_written()
 *   read   (host pool -> disk -> checksum) -> copy up   -> move_read()
 *
 * They take the place of what move.c does in host memory; states, accounts and lines
 * are the same. Thread: loop thread.
 */
#ifndef KVD_MEM_DEV_OP_H
#define KVD_MEM_DEV_OP_H

#include "kvd/mem/op.h"

struct dev_op;

/* For an operation of that kind over n pages of r; NULL: no memory. */
struct dev_op *dev_op_new(const struct range *r, uint32_t n, enum op_kind kind);
void dev_op_free(struct dev_op *d);

void dev_map(struct move *op);
void dev_drop(struct move *op);
void dev_write(struct move *op);
void dev_read(struct move *op);

/* A want of prio waits for a page that is being mapped, read or written: whatever line its
 * operation stands in, it goes before those that are less urgent. */
void dev_hurry(struct page *pg, enum want_prio prio);

/* A space of the device for t. As space_open(). */
int dev_space_open(struct pager *p, struct tier *t);
/* As range_load_ns(): from the host pool, or from disk. */
uint64_t dev_load_ns(const struct range *r, uint32_t first, uint32_t n);
/* 1: the device cannot use the page's address any more. */
int dev_is_stuck(const struct page *pg);
/* Bytes of an operation at most. */
size_t dev_run_bytes(const struct page *pg, size_t most);

#endif
