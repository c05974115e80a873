/*
 * batch.h - who runs in the next step of a model
 *
 * Continuous batching (Yu et al. 2022, Orca) with chunked prefill (Agrawal et al. 2024,
 * Sarathi-Serve, arXiv:2403.02310): every ready decode first, then prefill
 * rows up to the slice, so that no decode waits longer than one slice (and an eighth,
 * where that ends a prompt).
 * A row's result does not depend on the batch. Loop thread.
 */
#ifndef KVD_SERVE_BATCH_H
#define KVD_SERVE_BATCH_H

#include "kvd/serve/tenant.h"

#define BATCH_PREFILL_ROWS 32u /* a step of so many tells the rate of prefill */

struct batch;
struct gen;

/* One for each lane; its steps run on the lane's engine. -ENOMEM. */
int batch_new(struct batch **out, struct serve *s, struct lane *lane);
void batch_free(struct batch *b);
/* g is ready: it takes part in one of the next steps of its lane. */
void batch_add(struct gen *g);
/* Rows of a step at most, on every lane. */
uint32_t batch_max_rows(const struct conf *c);
/* No step runs, and nobody is ready for one. */
int batch_idle(const struct batch *b);

#endif
