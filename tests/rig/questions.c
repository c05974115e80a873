/*
 * questions.c - questions of tests/data/eval/rag-dev.jsonl, asked of a daemon
 */
#include "tests/rig/questions.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *rig_data_dir(void)
{
	const char *d = getenv("KVD_DATA");

	return d ? d : "tests/data";
}

static void add(struct rig_question *q, json_t *text, uint32_t flags)
{
	ck_assert_uint_lt(q->n_parts, RIG_MAX_PARTS);
	q->parts[q->n_parts++] =
		(struct kvc_part){ .kind = KV_PART_TEXT,
				   .flags = flags,
				   .text = json_string_value(text) };
}

void rig_questions_load(struct rig_question *questions, int n)
{
	char path[512], *line = NULL;
	size_t room = 0, k;
	FILE *f;

	snprintf(path, sizeof(path), "%s/eval/rag-dev.jsonl", rig_data_dir());
	f = fopen(path, "r");
	ck_assert_ptr_nonnull(f);
	for (int i = 0; i < n; i++) {
		struct rig_question *q = &questions[i];
		json_t *c;

		memset(q, 0, sizeof(*q));
		ck_assert_int_gt(getline(&line, &room, f), 0);
		q->json = json_loads(line, 0, NULL);
		add(q, json_object_get(q->json, "system"), KV_PART_BOS);
		json_array_foreach(json_object_get(q->json, "chunks"), k, c)
			add(q, c, KV_PART_REUSE);
		q->n_chunks = q->n_parts - 1;
		add(q, json_object_get(q->json, "question"), 0);
	}
	free(line);
	fclose(f);
}

void rig_questions_free(struct rig_question *q, int n)
{
	for (int i = 0; i < n; i++)
		json_decref(q[i].json);
}

int rig_ask(struct kvc *c, const struct rig_question *q, char out[128],
	    struct kv_gen_stats *st)
{
	static const uint32_t stop[] = { 13 };
	const struct kvc_generate r = { .parts = q->parts,
					.n_parts = q->n_parts,
					.max_tokens = 16,
					.stop_tokens = stop,
					.n_stop_tokens = 1,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *g = NULL;
	const int ret = kvc_generate(c, &r, &g);

	if (ret >= 0) {
		snprintf(out, 128, "%s", kvc_gen_text(g));
		if (st)
			*st = *kvc_gen_stats(g);
	}
	if (g)
		kvc_generate_free(c, g);
	return ret;
}

struct kvc *rig_join(const char *socket)
{
	const struct kvc_options opt = { .socket = socket };
	struct kvc *c;

	ck_assert_int_eq(kvc_open(&c, &opt), 0);
	return c;
}

uint64_t rig_counter(struct kvc *c, const char *what, const char *arg,
		     const char *key)
{
	char *text;
	json_t *j;
	uint64_t n;

	ck_assert_int_ge(kvc_query(c, what, arg, &text), 0);
	j = json_loads(text, 0, NULL);
	n = (uint64_t)json_integer_value(
		json_object_get(json_array_get(j, 0), key));
	json_decref(j);
	free(text);
	return n;
}
