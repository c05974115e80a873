/*
 * questions.h - questions of tests/data/eval/rag-dev.jsonl, asked of a daemon
 */
#ifndef TESTS_RIG_QUESTIONS_H
#define TESTS_RIG_QUESTIONS_H

#include <jansson.h>
#include "libkvclient/kvclient.h"

#define RIG_MAX_PARTS 20

struct rig_question {
	json_t *json;
	struct kvc_part parts[RIG_MAX_PARTS];
	uint32_t n_parts;
	uint32_t n_chunks;
	char answer[128]; /* the caller's: what it got first */
};

/* $KVD_DATA or tests/data. */
const char *rig_data_dir(void);
/* The first n questions; asserts. */
void rig_questions_load(struct rig_question *q, int n);
void rig_questions_free(struct rig_question *q, int n);
/* Ask; out gets the answer. What kvc_generate() returned. st may be NULL. */
int rig_ask(struct kvc *c, const struct rig_question *q, char out[128],
	    struct kv_gen_stats *st);
/* A connection; asserts. */
struct kvc *rig_join(const char *socket);
/* Number of key in the first object of the answer to query what (arg). */
uint64_t rig_counter(struct kvc *c, const char *what, const char *arg,
		     const char *key);

#endif
