/*
 * bench_rag.h - questions over chunks of text, asked in one way after another: what the
 * modes of kvbench that ask them share
 */
#ifndef TOOLS_BENCH_RAG_H
#define TOOLS_BENCH_RAG_H

#include <jansson.h>
#include "tools/bench.h"

#define MAX_KINDS 16u
#define MAX_MODES 64u

enum mode { FULL, PREFIX, CHUNKS, N_MODES };

struct kind {
	const char *name;
	uint32_t n, n_right;
};

/* One mode's results; ms, flops and right have room for all questions. */
struct tally {
	double *ttft_ms;
	unsigned char *right; /* answered, and so */
	double *floor_ms;
	size_t n;
	uint32_t n_right, n_failed;
	uint64_t n_prompt, n_prefix, n_chunk, n_repaired, n_out;
	uint64_t
		n_probed; /* tokens through the first layer, to choose (blend) */
	double n_work; /* tokens computed again, each the share of layers it went through */
	uint32_t n_layers; /* of the model */
	uint64_t kv_bytes; /* in memory at the end */
	struct kind kinds[MAX_KINDS];
	uint32_t n_kinds;
};

struct rag {
	struct bench *b;
	struct kvc *c;
	json_t **items;
	size_t n_items;
	enum mode mode;
	char name[32]; /* of the mode */
	uint32_t repair, repair_permille;
	uint32_t flags; /* KV_GEN_FOCUS */
	float temperature, scale; /* of chunks side by side; 0: they are not */
	int prime; /* variants of the chunks, in other company, first */
	double prime_s; /* to their first tokens, in all */
	double floor_ms_per_token; /* 0: not known */
	void (*report)(struct rag *r, double wall_s);
	struct {
		char name[32];
		unsigned char *right; /* [n_items] */
	} ran[MAX_MODES]; /* what others are compared with */
	uint32_t n_ran;
	float **first; /* --kl: logits of the first mode, [n_items * MAX_FORCED] */
	const uint32_t
		*forced; /* of the answer, behind the question; or NULL */
	uint32_t n_forced;
	struct tally t;
};

/* The lines of b->file: at most n_default, n_quick with --quick. -errno, said. */
int rag_load(struct rag *r, size_t n_default, size_t n_quick);
void rag_unload(struct rag *r);
/* One of --mode's words; -EINVAL there is no such mode. */
int rag_set_mode(struct rag *r, const char *word, size_t len);
/* 1 when text without white space around it is answer. */
int rag_matches(const char *text, const char *answer);
/* Ask all in that mode, on a daemon of its own. -errno, said. */
int rag_run(struct rag *r);

#endif
