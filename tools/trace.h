/*
 * trace.h - kvd's own recordings of what was asked of a cache: text, one event a line
 *
 *   kvd-trace 1 block=512
 *   r TIME_MS TENANT SEQ IN_TOKENS OUT_TOKENS HINT ID...
 *   e TIME_MS TENANT SEQ
 *
 * "r": a request on sequence SEQ whose prompt's blocks of `block` tokens have these
 * ids, hexadecimal: equal ids, equal prefix up to there; the last may be part of a
 * block. HINT: "-", or "o" when its owner said that it is for one use. "e": the
 * sequence was closed or cancelled: who had it will not come back with it. TENANT
 * and SEQ are numbers. Times do not fall. Lines beginning with # are ignored.
 */
#ifndef TOOLS_TRACE_H
#define TOOLS_TRACE_H

#include <stdint.h>
#include <stdio.h>

#define TRACE_VERSION	 1
#define TRACE_ONE_SHOT	 1u
#define TRACE_MAX_BLOCKS (1u << 20) /* of one request */

struct trace_event {
	int end; /* 0: a request, 1: the sequence ended */
	uint64_t time_ms;
	uint32_t tenant;
	uint64_t seq;
	uint64_t in_tokens, out_tokens;
	uint32_t flags; /* TRACE_* */
	const uint64_t *ids; /* [n_ids], borrowed */
	uint32_t n_ids;
};

/* Both return 0 or -errno of the stream. */
int trace_write_head(FILE *f, uint32_t block_tokens);
int trace_write(FILE *f, const struct trace_event *e);

/* Reads one event at a time; ids are valid until the next. */
struct trace_reader {
	FILE *f; /* borrowed */
	uint32_t block_tokens; /* out */
	uint64_t line; /* out: of the last event, from 1 */
	char *text;
	size_t text_room;
	uint64_t *ids;
	size_t ids_room;
	uint64_t last_ms;
};
/* -EBADMSG it is not such a file or of another version. */
int trace_open(struct trace_reader *r, FILE *f);
void trace_close(struct trace_reader *r);
/* 1 an event, 0 the end, -EBADMSG a bad line, -ENOMEM, -EIO. */
int trace_read(struct trace_reader *r, struct trace_event *e);

#endif
