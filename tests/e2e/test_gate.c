/*
 * test_gate.c - a trained model passes and its chunks are reused; a random one fails, and
 * answers as if there were no chunks; a request that comes first waits for the verdict
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_gguf.h"

#define N_LOGITS 512

static const struct rig_model noise = { .n_layers = 8,
					.d_model = 128,
					.n_heads = 4,
					.n_kv_heads = 2,
					.n_ctx = 1024,
					.seed = 3 };
static char noise_path[] = "/tmp/kvd-gate-XXXXXX";
static struct rig_daemon *d;

static void setup(void)
{
	const int fd = mkstemp(noise_path);
	char conf[2048];

	ck_assert_int_ge(fd, 0);
	(void)close(fd);
	rig_model_write(&noise, noise_path);
	snprintf(conf, sizeof(conf),
		 "[model good]\npath = %s/models/rag-mini.gguf\n"
		 "[model noise]\npath = %s\n"
		 "[model trusted]\npath = %s\ngate = no\n"
		 "[tenant a]\nuid = %u\nmemory = 64M\ndisk = 64M\n",
		 rig_data_dir(), noise_path, noise_path, getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
}

static void teardown(void)
{
	rig_daemon_free(d);
	(void)unlink(noise_path);
	strcpy(noise_path, "/tmp/kvd-gate-XXXXXX");
}

struct answer {
	float logits[N_LOGITS];
	struct kv_gen_stats st;
};

static struct answer ask(struct kvc *c, const char *model, uint32_t flags,
			 uint32_t repair)
{
	const struct kvc_part parts[] = {
		{ .flags = KV_PART_BOS, .text = "Some notes:\n" },
		{ .flags = flags, .text = "The mill is by the river.\n" },
		{ .flags = flags, .text = "It was sold to Ann.\n" },
		{ .text = "Question: What is Ann's?\nAnswer:" },
	};
	const struct kvc_generate r = { .model = model,
					.parts = parts,
					.n_parts = 4,
					.flags = KV_GEN_LOGITS,
					.max_tokens = 1,
					.n_logits = N_LOGITS,
					.repair = repair,
					.repair_permille = repair ? 150 : 0 };
	struct kvc_gen *g = NULL;
	struct answer a = { 0 };

	ck_assert_int_eq(kvc_generate(c, &r, &g), 1);
	memcpy(a.logits, kvc_gen_logits(g),
	       kvc_gen_n_logits(g) * sizeof(float));
	a.st = *kvc_gen_stats(g);
	kvc_generate_free(c, g);
	return a;
}

static int same(struct answer a, struct answer b)
{
	return !memcmp(a.logits, b.logits, sizeof(a.logits));
}

/* The first call comes before the models are measured. */
START_TEST(noise_is_not_reused)
{
	struct kvc *c = rig_join(d->socket);
	const struct answer first =
		ask(c, "noise", KV_PART_REUSE, KV_REPAIR_NONE);
	const struct answer plain = ask(c, "noise", 0, KV_REPAIR_NONE);

	ck_assert(same(first, plain));
	ck_assert_uint_eq(first.st.n_chunk, 0);
	for (uint32_t r = KV_REPAIR_FIRST; r <= KV_REPAIR_CRAFT_BLEND; r++) {
		const struct answer a = ask(c, "noise", KV_PART_REUSE, r);

		ck_assert(same(a, plain));
		ck_assert_uint_eq(a.st.n_repaired, 0);
		ck_assert_uint_gt(a.st.n_prefix, 0); /* that is exact */
	}
	/* without the gate they would differ */
	ck_assert(same(ask(c, "trusted", 0, 0), plain));
	ck_assert(!same(ask(c, "trusted", KV_PART_REUSE, 0), plain));
	kvc_close(c);
}
END_TEST

START_TEST(a_trained_model_is)
{
	struct kvc *c = rig_join(d->socket);
	const struct answer first =
		ask(c, "good", KV_PART_REUSE, KV_REPAIR_NONE);
	const struct answer again =
		ask(c, "good", KV_PART_REUSE, KV_REPAIR_BLEND);

	ck_assert(!same(first, ask(c, "good", 0, KV_REPAIR_NONE)));
	ck_assert_uint_gt(again.st.n_chunk, 0);
	ck_assert_uint_gt(again.st.n_repaired, 0);
	kvc_close(c);
}
END_TEST

/* The word of key in the object of this name, as in "gate":"passed". */
static int says(const char *json, const char *name, const char *word)
{
	char key[64];
	const char *at, *end;

	snprintf(key, sizeof(key), "\"name\":\"%s\"", name);
	at = strstr(json, key);
	ck_assert_ptr_nonnull(at);
	end = strchr(at, '}');
	at = strstr(at, word);
	return at && at < end;
}

START_TEST(it_is_told)
{
	struct kvc *c = rig_join(d->socket);
	char *json, *log;

	(void)ask(c, "noise", KV_PART_REUSE, KV_REPAIR_NONE);
	ck_assert_int_ge(kvc_query(c, "models", "", &json), 0);
	ck_assert(says(json, "good", "\"gate\":\"passed\""));
	ck_assert(says(json, "good", "\"reuse\":\"chunks\""));
	ck_assert(says(json, "noise", "\"gate\":\"failed\""));
	ck_assert(says(json, "noise", "\"reuse\":\"prefixes\""));
	ck_assert(says(json, "trusted", "\"gate\":\"off\""));
	free(json);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "gate: model noise"));
	free(log);
	ck_assert_int_ge(kvc_query(c, "metrics", "", &json), 0);
	ck_assert_ptr_nonnull(strstr(json, "\nkvd_gate_failed_total 1\n"));
	free(json);
	kvc_close(c);
}
END_TEST

static void wait_for(struct kvc *c, const char *from)
{
	char *json, word[64];

	(void)ask(c, "noise", KV_PART_REUSE, KV_REPAIR_NONE);
	(void)ask(c, "good", KV_PART_REUSE, KV_REPAIR_NONE);
	ck_assert_int_ge(kvc_query(c, "models", "", &json), 0);
	snprintf(word, sizeof(word), "\"gate_from\":\"%s\"", from);
	ck_assert(says(json, "good", "\"gate\":\"passed\""));
	ck_assert(says(json, "noise", "\"gate\":\"failed\""));
	ck_assert(says(json, "good", word));
	ck_assert(says(json, "noise", word));
	free(json);
}

/* A file of the daemon's, changed in one byte. */
static void damage(const char *name)
{
	char path[128];
	FILE *f;
	int byte;

	snprintf(path, sizeof(path), "%s/state/%s", d->dir, name);
	f = fopen(path, "r+");
	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(fseek(f, 60, SEEK_SET), 0);
	byte = fgetc(f);
	ck_assert_int_eq(fseek(f, 60, SEEK_SET), 0);
	ck_assert_int_ge(fputc(byte ^ 4, f), 0);
	ck_assert_int_eq(fclose(f), 0);
}

static void restart(void)
{
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
}

/* Nothing is measured again, and nothing believed that is not as it was written. */
START_TEST(it_is_kept)
{
	struct kvc *c = rig_join(d->socket);
	const struct answer before =
		ask(c, "noise", KV_PART_REUSE, KV_REPAIR_NONE);
	char *metrics, *log;

	wait_for(c, "measured");
	kvc_close(c);
	restart();
	c = rig_join(d->socket);
	ck_assert_int_ge(kvc_query(c, "metrics", "", &metrics), 0);
	ck_assert_ptr_nonnull(strstr(metrics, "\nkvd_gate_failed_total 1\n"));
	ck_assert_ptr_nonnull(strstr(metrics, "\nkvd_steps_total 0\n"));
	free(metrics);
	ck_assert(same(ask(c, "noise", KV_PART_REUSE, KV_REPAIR_NONE), before));
	wait_for(c, "kept");
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	damage("kvd.gates");
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	wait_for(c, "measured");
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "kvd.gates: damaged"));
	free(log);
	kvc_close(c);
	restart();
	c = rig_join(d->socket);
	wait_for(c, "kept");
	kvc_close(c);
}
END_TEST

/* Nobody hangs who waits for it. */
START_TEST(it_may_stop_at_once)
{
	struct kvc *c = rig_join(d->socket);

	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	for (int i = 0; i < 10; i++) {
		char path[128];

		snprintf(path, sizeof(path), "%s/state/kvd.gates", d->dir);
		(void)unlink(path);
		ck_assert_int_eq(rig_daemon_restart(d), 0);
		usleep((useconds_t)i * 5000);
		ck_assert_int_eq(rig_daemon_stop(d), 0);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gate");
	TCase *t = tcase_create("gate");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, noise_is_not_reused);
	tcase_add_test(t, a_trained_model_is);
	tcase_add_test(t, it_is_told);
	tcase_add_test(t, it_is_kept);
	tcase_add_test(t, it_may_stop_at_once);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
