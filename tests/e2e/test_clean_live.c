/*
 * test_clean_live.c - zones of one model's pages are emptied for another's, in the real
 * daemon
 *
 * A small store is filled with prompts of one model. A few of them, all over the store, are
 * asked for again and again, while prompts of another model, whose pages have another
 * size, push out the rest: what is hot stays and is moved. kill -9 after each zone that
 * was emptied: all that is hot is found by the next daemon, no page is lost, and every answer
 * is the one that was given before.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define N_FIRST	  96 /* fill the store */
#define N_SECOND  400 /* at most */
#define HOT	  12 /* every so manyth stays in use */
#define HOT_EVERY 4
#define N_BYTES	  100
#define TILE	  32u /* what is left of a prompt is not kept */

struct prompt {
	const char *model;
	char text[N_BYTES + 1];
	char answer[128];
};

static struct prompt first[N_FIRST], second[N_SECOND];
static struct rig_daemon *d;
static struct kvc *c;

static void write_prompt(struct prompt *p, const char *model, int i)
{
	size_t at = 0;

	*p = (struct prompt){ .model = model };
	for (unsigned int s = (unsigned int)i * 2 + (*model == 'n');
	     at < N_BYTES - 12;)
		at += (size_t)snprintf(p->text + at, N_BYTES - at, "%u ",
				       s = s * 1103515245u + 12345u);
}

/* Tokens of the prompt that were not found. */
static uint64_t ask(const struct prompt *p, char out[128])
{
	const struct kvc_part part = { .kind = KV_PART_TEXT, .text = p->text };
	const struct kvc_generate r = { .model = p->model,
					.parts = &part,
					.n_parts = 1,
					.max_tokens = 8,
					.flags = KV_GEN_IGNORE_EOS,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *g = NULL;
	struct kv_gen_stats st;
	const int ret = kvc_generate(c, &r, &g);

	ck_assert_msg(ret >= 0, "%s", strerror(-ret));
	snprintf(out, 128, "%s", kvc_gen_text(g));
	st = *kvc_gen_stats(g);
	kvc_generate_free(c, g);
	return st.n_prompt - st.n_prefix;
}

/* Answers as before; returns how many tokens of one were not found, at most. */
static uint64_t ask_hot(void)
{
	char text[128];
	uint64_t n = 0, most = 0;

	for (int i = 0; i < N_FIRST; i += HOT) {
		n = ask(&first[i], text);
		most = n > most ? n : most;
		ck_assert_str_eq(text, first[i].answer);
	}
	return most;
}

/* What is hot was acknowledged long ago, and is there. */
static void killed(void)
{
	const int ret = kvc_persist(c);
	uint64_t n_missed;

	ck_assert(!ret || ret == -ENOSPC); /* it is full */
	rig_daemon_kill(d);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_gt(rig_counter(c, "tenants", "a", "restored_segments"),
			  N_FIRST / HOT);
	n_missed = ask_hot();
	ck_assert_uint_le(n_missed, TILE);
	ck_assert_uint_eq(rig_counter(c, "pages", "a", "lost"), 0);
}

static void start(const char *dir)
{
	char conf[1024];

	snprintf(conf, sizeof(conf),
		 "recompute = no\n"
		 "[model m]\npath = %s/models/rag-mini.gguf\ngate = no\n"
		 "page_tokens = 32\n"
		 "[model n]\npath = %s/models/rag-draft.gguf\ngate = no\n"
		 "page_tokens = 64\n"
		 "[tenant a]\nuid = %u\nmemory = 8M\ndisk = 128M\n"
		 "[store s]\npath = %s/s\nsize = 34M\n",
		 rig_data_dir(), rig_data_dir(), getuid(), dir);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
}

/* Prompts of the other model come until a zone was emptied for them. */
static int push(int k)
{
	uint64_t n = 0;

	for (; k < N_SECOND && !n; k++) {
		if (k % HOT_EVERY == 0)
			(void)ask_hot();
		write_prompt(&second[k], "n", k);
		(void)ask(&second[k], second[k].answer);
		n = rig_counter(c, "stores", "", "zones_cleaned");
	}
	ck_assert_uint_gt(n, 0);
	ck_assert_uint_gt(rig_counter(c, "stores", "", "moved_bytes"), 0);
	return k;
}

START_TEST(what_is_hot_moves_and_stays)
{
	char dir[] = "/var/tmp/kvd-clean-XXXXXX", path[64], text[128];
	int k = 0;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	start(dir);
	for (int i = 0; i < N_FIRST; i++) {
		write_prompt(&first[i], "m", i);
		(void)ask(&first[i], first[i].answer);
	}
	for (int i = 0; i < 2; i++) {
		k = push(k);
		printf("a zone was emptied after %d prompts\n", k);
		killed();
	}
	for (int i = 0; i < k; i++) { /* from the cache or not */
		(void)ask(&second[i], text);
		ck_assert_str_eq(text, second[i].answer);
	}
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("clean_live");
	TCase *t = tcase_create("clean_live");
	SRunner *r;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_test(t, what_is_hot_moves_and_stays);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
