/*
 * trace.h - record what is asked of the cache, for kvsim
 *
 * Text as docs/policies.md has it: one line a request, its prompt as ids of blocks of
 * SEGMENT_BLOCK tokens (equal ids, equal prefix up to there), keyed by a secret
 * of each recording: no token and no text can be told from it. Kept in a bounded buffer
 * until it is read; what does not fit is dropped and counted.
 *
 * Thread: loop thread.
 */
#ifndef KVD_SERVE_TRACE_H
#define KVD_SERVE_TRACE_H

#include <stddef.h>
#include <stdint.h>

struct gen;
struct serve_session;
struct trace;

/* NULL-safe below: no trace, nothing is recorded. */
void trace_free(struct trace *t);
/* The request has ended well / the session has ended. */
void trace_gen(struct trace *t, const struct gen *g);
void trace_session(struct trace *t, const struct serve_session *ss);
/*
 * "on": a new recording, its number in *out; one that somebody has left behind, or still
 * reads, is forgotten. "read NUMBER OFFSET": its text from that byte on, what lies before is
 * forgotten. "off NUMBER". *out is malloc'ed. -EINVAL, -ENOMEM, -ESTALE it is not that
 * one that is made now.
 */
int trace_query(struct trace **t, const char *arg, char **out);

#endif
