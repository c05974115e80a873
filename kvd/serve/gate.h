/*
 * gate.h - may chunks of a model be reused? Measured, when the daemon has started
 *
 * Repair rests on two things that a model may lack: that keys may be used at other
 * positions, and that few tokens carry what a chunk takes from those before it. So each
 * model answers built-in questions three ways: full prefill, plain reuse, and blend (15 %).
 * The error of the logits, relative to their spread,
 *
 *   err(x) = |x - full|^2 / |full - mean(full)|^2
 *
 * must be at most GATE_BOUND with blend, or the model gets exact reuse only: prefixes are
 * found, but chunks and earlier versions are computed in place.
 *
 * What was measured is kept for the next start (verdict.h), and not measured again while
 * model, arithmetic and questions are the same.
 *
 * The measurement is a tenant of its own, with its own memory (a few hundred tokens),
 * that nobody sees, through the same calls as any client. Requests with chunks wait for the
 * verdict; others do not. [model] gate = no: chunks are reused, unmeasured.
 *
 * Loop thread.
 */
#ifndef KVD_SERVE_GATE_H
#define KVD_SERVE_GATE_H

#include "kvd/serve/tenant.h"

#define GATE_BOUND    0.1
#define GATE_PERMILLE 150u

struct gen;
struct gate;

/* Bytes of pages that measuring will need; 0: nothing is measured. */
uint64_t gate_memory(const struct serve *s);
/* Models that are to be measured are, from the next turn on. -ENOMEM. */
int gate_new(struct gate **out, struct serve *s);
/* Ends what runs; NULL is fine. */
void gate_free(struct gate *g);
/*
 * Before g's chunks are looked up. 1: g waits for the verdict, gen_resume() follows. 0: go
 * on; if the model failed, g has no chunks any more.
 */
int gate_holds(struct gen *g);
/* 1: t is the gate's, no client's. */
int gate_owns(const struct serve_tenant *t);
const char *gate_name(const struct serve_model *m);

#endif
