/*
 * raw.h - a session without the library, for tests that break its rules
 */
#ifndef TESTS_RIG_RAW_H
#define TESTS_RIG_RAW_H

#include "libkvclient/kv_abi.h"

struct raw {
	int sock, memfd, doorbell;
	char *map;
	uint64_t map_bytes;
	struct kv_header header;
	struct kv_ring *sq, *cq;
	struct kv_sqe *sqes;
	struct kv_cqe *cqes;
	char *arena;
	uint32_t tail; /* of the sq, as an honest client counts */
};

/* A connected SOCK_SEQPACKET socket, or -errno. */
int raw_socket(const char *path);
/* Full handshake with these ring sizes: 0, or -errno (of the welcome too). */
int raw_open(struct raw *r, const char *path, uint32_t sq_entries);
void raw_close(struct raw *r);
/* Write an entry, publish it, ring if asked to. */
void raw_push(struct raw *r, const struct kv_sqe *e);
void raw_ring(struct raw *r);
/* Read completions away: how many there were. */
uint32_t raw_reap(struct raw *r);
/* Wait for the end of the session: its closed value, or 0 after timeout_ms. */
int raw_wait_closed(struct raw *r, int timeout_ms);

/* Small random numbers, the same on every machine. */
static inline uint64_t raw_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/*
 * One hostile session: n_entries random and mutated entries over an arena of
 * random bytes that a thread keeps rewriting, with jumps of indices at
 * the end when jump is set. 0, or the -errno of raw_open().
 */
struct raw_hostile {
	const char *path;
	uint64_t seed; /* not 0 */
	uint32_t n_entries;
	int jump;
};
int raw_hostile(const struct raw_hostile *h);

#endif
