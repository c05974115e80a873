/*
 * fake_serve.h - serve without memory or models, for the tests of ipc alone
 *
 * Whoever calls fake_serve_new() gets all of serve.h from here: sequences count
 * tokens, attention copies q to o, a generation says "tok " for each token, one
 * a turn of the loop (with IGNORE_EOS it ends only when cancelled). Everything
 * ends on a later turn, as in the real one.
 */
#ifndef TESTS_RIG_FAKE_SERVE_H
#define TESTS_RIG_FAKE_SERVE_H

#include "kvd/serve/serve.h"

/* The names of conf's tenants are known; conf is borrowed. */
int fake_serve_new(struct serve **out, struct loop *loop,
		   const struct conf *conf);
void fake_serve_free(struct serve *s);
/* Sessions open now, and requests in flight of all of them. */
uint32_t fake_serve_n_sessions(const struct serve *s);
uint32_t fake_serve_n_requests(const struct serve *s);

#endif
