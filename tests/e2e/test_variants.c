/*
 * test_variants.c - chunks in company: exact where the company is the same or all is
 * computed again, the same bits paged, sliced and batched where it is another
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define N	 6
#define N_LOGITS 4096

/* Both that look for variants: loop tests. */
static const uint32_t kinds[] = { KV_REPAIR_CRAFT, KV_REPAIR_CRAFT_BLEND };

static struct rig_question questions[N];
static struct rig_daemon *roomy, *tight;

struct answer {
	char text[128];
	float logits[N_LOGITS];
	uint32_t n_logits;
	struct kv_gen_stats st;
	struct kv_chunk_used used[RIG_MAX_PARTS];
	uint32_t n_used;
};

static struct rig_daemon *start_tenant(const char *kvd, const char *memory,
				       const char *tenant)
{
	char conf[1024];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "%s[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = %s\ndisk = 64M\n%s",
		 kvd, rig_data_dir(), getuid(), memory, tenant);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static struct rig_daemon *start(const char *kvd, const char *memory)
{
	return start_tenant(kvd, memory, "");
}

static void setup(void)
{
	rig_questions_load(questions, N);
	roomy = start("", "64M");
	tight = start("prefill_slice = 7\nthreads = 1\n", "3M");
}

static void teardown(void)
{
	rig_daemon_free(roomy);
	rig_daemon_free(tight);
	rig_questions_free(questions, N);
}

static struct kvc_generate request(const struct kvc_part *parts, uint32_t n,
				   uint32_t repair, uint32_t permille)
{
	static const uint32_t stop[] = { 13 };

	return (struct kvc_generate){ .parts = parts,
				      .n_parts = n,
				      .flags = KV_GEN_LOGITS,
				      .max_tokens = 16,
				      .stop_tokens = stop,
				      .n_stop_tokens = 1,
				      .repair = repair,
				      .repair_permille = permille,
				      .n_logits = N_LOGITS,
				      .sqe_flags = KV_SQE_WAIT };
}

static void take(struct kvc *c, struct kvc_gen *g, struct answer *a)
{
	const int ret = kvc_generate_wait(c, g, -1);
	const struct kv_chunk_used *u;

	ck_assert_msg(ret >= 0, "generate: %s", strerror(-ret));
	memset(a, 0, sizeof(*a));
	snprintf(a->text, sizeof(a->text), "%s", kvc_gen_text(g));
	a->n_logits = kvc_gen_n_logits(g);
	ck_assert_uint_le(a->n_logits, N_LOGITS);
	memcpy(a->logits, kvc_gen_logits(g), a->n_logits * sizeof(float));
	a->st = *kvc_gen_stats(g);
	u = kvc_gen_used(g, &a->n_used);
	if (u)
		memcpy(a->used, u, a->n_used * sizeof(*u));
	kvc_generate_free(c, g);
}

static void ask(struct kvc *c, const struct kvc_generate *r, struct answer *a)
{
	struct kvc_gen *g;

	ck_assert_int_eq(kvc_generate_start(c, r, &g), 0);
	take(c, g, a);
}

static void ask_question(struct kvc *c, int i, uint32_t repair,
			 uint32_t permille, struct answer *a)
{
	const struct kvc_generate r = request(
		questions[i].parts, questions[i].n_parts, repair, permille);

	ask(c, &r, a);
}

static void ask_full(struct kvc *c, int i, struct answer *a)
{
	struct kvc_part plain[RIG_MAX_PARTS];
	struct kvc_generate r;

	memcpy(plain, questions[i].parts, sizeof(plain));
	for (uint32_t k = 0; k < questions[i].n_parts; k++)
		plain[k].flags &= ~KV_PART_REUSE;
	r = request(plain, questions[i].n_parts, 0, 0);
	r.flags |= KV_GEN_NO_REUSE;
	ask(c, &r, a);
}

static void ck_same(const struct answer *a, const struct answer *b)
{
	ck_assert_str_eq(a->text, b->text);
	ck_assert_uint_eq(a->n_logits, b->n_logits);
	ck_assert(!memcmp(a->logits, b->logits, a->n_logits * sizeof(float)));
}

static uint32_t n_of(const struct answer *a, enum kv_chunk_use use)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < a->n_used; i++)
		n += a->used[i].use == use;
	return n;
}

static uint32_t count(struct kvc *c, const char *word)
{
	uint32_t n = 0;
	char *json;

	ck_assert_int_ge(kvc_query(c, "chunks", "", &json), 0);
	for (const char *at = json; (at = strstr(at, word)); at++)
		n++;
	free(json);
	return n;
}

/* Chunks become variants a little after the answer. */
static void await(struct kvc *c, uint32_t n)
{
	for (int i = 0; i < 3000 && count(c, "\"variant\"") < n; i++)
		usleep(10000);
	ck_assert_uint_eq(count(c, "\"variant\""), n);
}

/* The chunks of question i in the company of those of another one, backwards. */
static uint32_t prime(struct kvc *c, int i, uint32_t n_before)
{
	const struct rig_question *q = &questions[i],
				  *o = &questions[(i + 1) % N];
	struct kvc_part p[2 * RIG_MAX_PARTS];
	struct kvc_generate r;
	struct answer a;
	uint32_t n = 0, n_fresh;

	p[n++] = q->parts[0]; /* the same frame */
	p[n++] = o->parts[1];
	for (uint32_t k = q->n_parts - 2; k > 0; k--)
		p[n++] = q->parts[k];
	p[n++] = q->parts[q->n_parts - 1];
	r = request(p, n, KV_REPAIR_CRAFT, KV_REPAIR_ALL);
	r.max_tokens = 1;
	ask(c, &r, &a);
	n_fresh = n_of(&a, KV_CHUNK_FRESH);
	await(c, n_before + n_fresh);
	return n_before + n_fresh;
}

START_TEST(all_of_it_is_a_full_prefill)
{
	struct kvc *c = rig_join(roomy->socket);
	uint32_t n = 0;

	for (int i = 0; i < N; i++) {
		struct answer full, first, again;

		n = prime(c, i, n);
		ask_full(c, i, &full);
		ask_question(c, i, kinds[_i], KV_REPAIR_ALL, &first);
		ck_same(&full, &first);
		n += n_of(&first, KV_CHUNK_FRESH);
		ck_assert_uint_ge(n_of(&first, KV_CHUNK_FRESH), 2);
		await(c, n);
		/* the same before each of them: as they are, and exact */
		for (uint32_t share = 0; share <= KV_REPAIR_BY_LOAD;
		     share += 334) {
			ask_question(c, i, kinds[_i], share, &again);
			ck_same(&full, &again);
			ck_assert_uint_eq(n_of(&again, KV_CHUNK_EXACT),
					  questions[i].n_chunks);
			ck_assert_uint_eq(again.st.n_repaired, 0);
		}
	}
	kvc_close(c);
}
END_TEST

START_TEST(in_other_company_the_same_bits_paged_sliced_and_batched)
{
	struct kvc *a = rig_join(roomy->socket), *b = rig_join(tight->socket);
	const uint32_t shares[] = { 0, 150, 500, KV_REPAIR_BY_CFO };
	uint32_t n_a = 0, n_b = 0;

	for (int i = 0; i < N; i++) {
		n_a = prime(a, i, n_a);
		n_b = prime(b, i, n_b);
	}
	ck_assert_uint_eq(n_a, n_b);
	for (size_t s = 0; s < 4; s++) {
		struct answer alone[N], other, full;
		struct kvc_gen *g[N];

		for (int i = 0; i < N; i++) {
			ask_question(a, i, kinds[_i], shares[s], &alone[i]);
			ck_assert_uint_ge(n_of(&alone[i], KV_CHUNK_INTER), 2);
			ck_assert_uint_eq(n_of(&alone[i], KV_CHUNK_ALONE), 0);
			ck_assert(!shares[s] == !alone[i].st.n_repaired);
			ask_full(a, i, &full);
			ck_assert(memcmp(full.logits, alone[i].logits,
					 full.n_logits * sizeof(float)));
		}
		for (int i = 0; i < N; i++) {
			const struct kvc_generate r = request(
				questions[i].parts, questions[i].n_parts,
				kinds[_i], shares[s]);

			ck_assert_int_eq(kvc_generate_start(b, &r, &g[i]), 0);
		}
		for (int i = 0; i < N; i++) {
			take(b, g[i], &other);
			ck_same(&alone[i], &other);
			ck_assert(!memcmp(alone[i].used, other.used,
					  sizeof(other.used)));
		}
	}
	ck_assert_uint_gt(rig_counter(b, "pages", "a", "evicted_total"), 0);
	kvc_close(a);
	kvc_close(b);
}
END_TEST

/* Squared distance, over all questions. */
static double distance(struct kvc *c, uint32_t repair, uint32_t permille,
		       uint64_t *n_repaired)
{
	double sum = 0;

	*n_repaired = 0;
	for (int i = 0; i < N; i++) {
		struct answer full, a;

		ask_full(c, i, &full);
		ask_question(c, i, repair, permille, &a);
		ck_assert_uint_ge(n_of(&a, KV_CHUNK_INTER), 2);
		for (uint32_t k = 0; k < full.n_logits; k++)
			sum += (full.logits[k] - a.logits[k]) *
			       (full.logits[k] - a.logits[k]);
		*n_repaired += a.st.n_repaired;
	}
	return sum;
}

/* The same variants and as many tokens, but others. */
START_TEST(the_selectors_of_variants_differ)
{
	struct kvc *c = rig_join(roomy->socket);
	uint64_t n_none, n_craft, n_blend, n_half;
	uint32_t n = 0;
	double none, craft, blend, half;

	for (int i = 0; i < N; i++)
		n = prime(c, i, n);
	none = distance(c, KV_REPAIR_CRAFT_BLEND, 0, &n_none);
	craft = distance(c, KV_REPAIR_CRAFT, 150, &n_craft);
	blend = distance(c, KV_REPAIR_CRAFT_BLEND, 150, &n_blend);
	half = distance(c, KV_REPAIR_CRAFT_BLEND, 500, &n_half);
	ck_assert_uint_eq(n_none, 0);
	ck_assert_uint_gt(n_blend, 0);
	ck_assert_uint_gt(n_half, 3 * n_blend);
	/* craft takes its share of each chunk, blend of all of them */
	ck_assert_int_le(abs((int)n_craft - (int)n_blend), N * RIG_MAX_PARTS);
	ck_assert_msg(craft != blend && half < none && half < blend,
		      "%g without, %g craft, %g blend, %g half", none, craft,
		      blend, half);
	kvc_close(c);
}
END_TEST

START_TEST(variants_survive_a_restart)
{
	struct kvc *c = rig_join(roomy->socket);
	struct answer before[N], after;
	uint32_t n = 0;

	for (int i = 0; i < N; i++) {
		n = prime(c, i, n);
		ask_question(c, i, KV_REPAIR_CRAFT, 150, &before[i]);
		ck_assert_uint_ge(n_of(&before[i], KV_CHUNK_INTER), 2);
	}
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(roomy), 0);
	ck_assert_int_eq(rig_daemon_restart(roomy), 0);
	c = rig_join(roomy->socket);
	ck_assert_uint_eq(count(c, "\"variant\""), n);
	for (int i = 0; i < N; i++) {
		ask_question(c, i, KV_REPAIR_CRAFT, 150, &after);
		ck_same(&before[i], &after);
		ck_assert(!memcmp(before[i].used, after.used,
				  sizeof(after.used)));
		ck_assert_uint_gt(after.st.n_read_back, 0);
	}
	kvc_close(c);
}
END_TEST

/* The id of the first chunk whose text begins like s; asserts. */
static void id_of(struct kvc *c, const char *s, uint64_t id[2])
{
	json_t *list, *o;
	size_t i;
	char *json;
	int found = 0;

	ck_assert_int_ge(kvc_query(c, "chunks", "", &json), 0);
	list = json_loads(json, 0, NULL);
	free(json);
	ck_assert_ptr_nonnull(list);
	json_array_foreach(list, i, o)
	{
		const char *t = json_string_value(json_object_get(o, "text"));
		const char *x = json_string_value(json_object_get(o, "id"));
		unsigned long long a, b;

		if (found || !t || strncmp(t, s, strlen(t)))
			continue;
		ck_assert_int_eq(sscanf(x, "%16llx%16llx", &a, &b), 2);
		id[0] = a;
		id[1] = b;
		found = 1;
	}
	json_decref(list);
	ck_assert(found);
}

/* What was only computed in company can be named by its id, for every kind of repair;
 * the answers are those of the same chunk given as text. */
START_TEST(an_id_of_a_variant_is_an_id)
{
	static const uint32_t shares[] = { 0, 150, KV_REPAIR_ALL };
	struct kvc *c = rig_join(roomy->socket), *d = rig_join(tight->socket);
	const struct rig_question *q = &questions[0];
	struct kvc_part p[RIG_MAX_PARTS];
	struct kvc_generate r;
	struct answer x, y;
	const uint32_t n = prime(c, 0, 0);

	prime(d, 0, 0);
	memcpy(p, q->parts, sizeof(p));
	for (uint32_t k = 1; k + 1 < q->n_parts; k++) {
		p[k] = (struct kvc_part){ .kind = KV_PART_CHUNK };
		id_of(c, q->parts[k].text, p[k].id);
	}
	for (uint32_t kind = KV_REPAIR_CRAFT + 1; kind-- > 0;)
		for (size_t i = 0; i < 3; i++) {
			r = request(p, q->n_parts, kind, kind ? shares[i] : 0);
			ask(c, &r, &x);
			ask_question(d, 0, kind, kind ? shares[i] : 0, &y);
			ck_same(&x, &y);
			ck_assert(!memcmp(x.used, y.used, sizeof(x.used)));
		}
	ck_assert_uint_ge(count(c, "\"id\""), n + q->n_chunks);
	p[1].id[0]++;
	r = request(p, q->n_parts, KV_REPAIR_CRAFT, 150);
	{
		struct kvc_gen *g = NULL;

		ck_assert_int_eq(kvc_generate(c, &r, &g), -ENOENT);
		kvc_generate_free(c, g);
	}
	kvc_close(c);
	kvc_close(d);
}
END_TEST

/* The value of a metric, name with its labels and a space. */
static uint64_t metric(struct kvc *c, const char *name)
{
	unsigned long long n;
	char *text, line[128];
	const char *at;

	snprintf(line, sizeof(line), "\n%s", name);
	ck_assert_int_ge(kvc_query(c, "metrics", "", &text), 0);
	at = strstr(text, line);
	ck_assert_msg(at != NULL, "%s is not there", name);
	ck_assert_int_eq(sscanf(at + strlen(line), "%llu", &n), 1);
	free(text);
	return n;
}

/* Chunks beyond the bound of the tenant go, of both kinds, and are counted. */
START_TEST(chunks_of_a_tenant_are_bounded)
{
	struct rig_daemon *e = start_tenant("", "64M", "chunks = 7\n");
	struct kvc *c = rig_join(e->socket);
	struct answer a, b;
	uint32_t n_alone = 0, n = 0;
	uint64_t n_repaired = 0;

	for (int i = 0; i < N; i++) {
		ask_question(c, i, KV_REPAIR_NONE, 0, &a);
		n_alone += questions[i].n_chunks;
		ck_assert_uint_le(count(c, "\"id\""), 7);
		ask_question(c, i, KV_REPAIR_NONE, 0, &b);
		ck_same(&a, &b);
		ask_question(c, i, KV_REPAIR_BLEND, 150, &b);
		n_repaired += b.st.n_repaired;
	}
	ck_assert_uint_gt(n_alone, 14);
	ck_assert_uint_ge(
		rig_counter(c, "tenants", "a", "chunks_evicted_total"),
		n_alone - 14); /* some may be in two questions */
	ck_assert_uint_eq(
		rig_counter(c, "tenants", "a", "variants_evicted_total"), 0);
	for (int i = 0; i < 3; i++) {
		ask_question(c, i, KV_REPAIR_CRAFT, KV_REPAIR_ALL, &a);
		n += n_of(&a, KV_CHUNK_FRESH);
		for (int k = 0;
		     k < 1000 &&
		     metric(c, "kvd_variants_measured_total ") <= (uint64_t)i;
		     k++)
			usleep(10000);
		ck_assert_uint_le(count(c, "\"variant\""), 7);
	}
	ck_assert_uint_gt(n, 14);
	ck_assert_uint_ge(
		rig_counter(c, "tenants", "a", "variants_evicted_total"),
		n - 14);
	ck_assert_uint_eq(
		metric(c, "kvd_variants_evicted_total{tenant=\"a\"} "),
		rig_counter(c, "tenants", "a", "variants_evicted_total"));
	ck_assert_uint_eq(
		metric(c, "kvd_chunks_evicted_total{tenant=\"a\"} "),
		rig_counter(c, "tenants", "a", "chunks_evicted_total"));
	ck_assert_uint_eq(metric(c, "kvd_repaired_tokens_total{tenant=\"a\"} "),
			  n_repaired);
	kvc_close(c);
	rig_daemon_free(e);
}
END_TEST

struct score { /* of a chunk or variant */
	char id[80];
	json_int_t hits;
	double value;
};

static uint32_t scores(struct kvc *c, struct score *list, uint32_t room)
{
	json_t *array, *o;
	size_t i;
	char *json;

	ck_assert_int_ge(kvc_query(c, "chunks", "", &json), 0);
	array = json_loads(json, 0, NULL);
	free(json);
	ck_assert_uint_le(json_array_size(array), room);
	json_array_foreach(array, i, o)
	{
		const char *v =
			json_string_value(json_object_get(o, "variant"));

		snprintf(list[i].id, sizeof(list[i].id), "%s %s",
			 json_string_value(json_object_get(o, "id")),
			 v ? v : "alone");
		list[i].hits = json_integer_value(json_object_get(o, "hits"));
		list[i].value = json_real_value(json_object_get(o, "value"));
	}
	json_decref(array);
	return (uint32_t)i;
}

/* Those of a are in b, with the same numbers, or those of a while ago; the most hits. */
static json_int_t ck_scores(const struct score *a, uint32_t n_a,
			    const struct score *b, uint32_t n_b, int lazy)
{
	json_int_t most = 0;

	ck_assert_uint_eq(n_a, n_b);
	for (uint32_t i = 0; i < n_a; i++) {
		uint32_t k = 0;

		while (k < n_b && strcmp(a[i].id, b[k].id))
			k++;
		ck_assert_uint_lt(k, n_b);
		ck_assert_int_ge(a[i].hits, b[k].hits);
		most = b[k].hits > most ? b[k].hits : most;
		if (lazy)
			continue;
		ck_assert_int_eq(a[i].hits, b[k].hits);
		ck_assert_double_eq_tol(a[i].value, b[k].value,
					1e-6 * a[i].value);
	}
	return most;
}

/* Uses of chunks alone and in company; then the daemon ends, somehow. */
START_TEST(uses_survive_a_restart)
{
	static struct score a[64], b[64];
	struct kvc *c = rig_join(roomy->socket);
	char path[128];
	struct answer x;
	uint32_t n, n_variants;

	snprintf(path, sizeof(path), "%s/state/kvd.uses", roomy->dir);
	n_variants = prime(c, 0, 0);
	ask_question(c, 1, KV_REPAIR_NONE, 0, &x);
	ck_assert_int_eq(kvc_persist(c), 0); /* the records know of no use */
	ck_assert_int_eq(access(path, F_OK), 0);
	ck_assert_int_eq(unlink(path), 0);
	for (int i = 0; i < 12; i++) {
		ask_question(c, 0, KV_REPAIR_CRAFT, 150, &x);
		ck_assert_uint_ge(n_of(&x, KV_CHUNK_INTER), 2);
		ask_question(c, 1, KV_REPAIR_NONE, 0, &x);
	}
	if (_i == 2) /* lazily: a second after they doubled */
		for (int i = 0; i < 500 && access(path, F_OK); i++)
			usleep(10000);
	n = scores(c, a, 64);
	ck_assert_uint_gt(n, n_variants);
	if (_i == 1) /* nothing but statistics is left to do */
		ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	if (_i == 0)
		ck_assert_int_eq(rig_daemon_stop(roomy), 0);
	else
		rig_daemon_kill(roomy);
	if (_i == 3) { /* nothing was written: a file that is not whole */
		FILE *f = fopen(path, "w");

		fputs("kvduses\n", f);
		fclose(f);
	}
	ck_assert_int_eq(rig_daemon_restart(roomy), 0);
	c = rig_join(roomy->socket);
	n_variants = scores(c, b, 64);
	if (_i == 3) { /* what the records say */
		ck_assert_uint_eq(n, n_variants);
		for (uint32_t i = 0; i < n; i++)
			ck_assert_int_le(b[i].hits, 1);
	} else {
		ck_assert_int_ge(ck_scores(a, n, b, n_variants, _i == 2),
				 _i == 2 ? 2 : 12);
	}
	ask_question(c, 0, KV_REPAIR_CRAFT, 150, &x);
	ck_assert_uint_ge(n_of(&x, KV_CHUNK_INTER), 2);
	kvc_close(c);
}
END_TEST

START_TEST(what_was_computed_alone_is_blended)
{
	struct kvc *c = rig_join(roomy->socket);

	for (int i = 0; i < N; i++) {
		struct answer blend, craft;

		ask_question(c, i, KV_REPAIR_BLEND, 150, &blend);
		ask_question(c, i, kinds[_i], 150, &craft);
		ck_same(&blend, &craft);
		ck_assert_uint_eq(n_of(&craft, KV_CHUNK_ALONE),
				  questions[i].n_chunks);
		ck_assert_uint_eq(craft.st.n_repaired, blend.st.n_repaired);
		for (uint32_t k = 0; k < craft.n_used; k++)
			ck_assert(!craft.used[k].use ||
				  craft.used[k].cfo_permille > 0);
	}
	kvc_close(c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("variants");
	TCase *t = tcase_create("variants");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, all_of_it_is_a_full_prefill, 0, 2);
	tcase_add_loop_test(
		t, in_other_company_the_same_bits_paged_sliced_and_batched, 0,
		2);
	tcase_add_test(t, the_selectors_of_variants_differ);
	tcase_add_test(t, variants_survive_a_restart);
	tcase_add_loop_test(t, what_was_computed_alone_is_blended, 0, 2);
	tcase_add_test(t, an_id_of_a_variant_is_an_id);
	tcase_add_test(t, chunks_of_a_tenant_are_bounded);
	tcase_add_loop_test(t, uses_survive_a_restart, 0, 4);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
