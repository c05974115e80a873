/*
 * test_restart.c - what was acknowledged as durable is there after kill -9, and
 * nothing wrong is ever served: the real daemon, a real file
 *
 * KVD_CYCLES: how often the daemon is killed under load (30).
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define N 12
static struct rig_question questions[N];

static void load(void)
{
	rig_questions_load(questions, N);
}

static void unload(void)
{
	rig_questions_free(questions, N);
}

static struct rig_daemon *start_recompute(const char *recompute,
					  const char *persist)
{
	char conf[1024];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "recompute = %s\n"
		 "[model m]\npath = %s/models/rag-mini.gguf\ngate = no\n"
		 "[tenant a]\nuid = %u\nmemory = 32M\ndisk = 128M\n%s",
		 recompute, rig_data_dir(), getuid(), persist);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static struct rig_daemon *start(const char *persist)
{
	return start_recompute("no", persist);
}

static void store_path(const struct rig_daemon *d, char path[128])
{
	snprintf(path, 128, "%s/state/kvd.store", d->dir);
}

/* All questions once: their answers are the truth from now on. */
static void ask_all(struct kvc *c)
{
	for (int i = 0; i < N; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
}

/* Prompt tokens that were not in the cache. */
static uint64_t n_missed(const struct kv_gen_stats *st)
{
	return st->n_prompt - st->n_prefix - st->n_chunk;
}

/* The answers are the same; returns how many prompt tokens were not found. */
static uint64_t ask_again(struct kvc *c, uint64_t *n_prompt)
{
	uint64_t n = 0;

	*n_prompt = 0;
	for (int i = 0; i < N; i++) {
		struct kv_gen_stats st;
		char text[128];

		ck_assert_int_gt(rig_ask(c, &questions[i], text, &st), 0);
		ck_assert_str_eq(text, questions[i].answer);
		n += n_missed(&st);
		*n_prompt += st.n_prompt;
	}
	return n;
}

START_TEST(acknowledged_is_warm_after_kill)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	uint64_t n_durable, n_missing, n_prompt;

	ck_assert(kvc_features(c) & KV_FEATURE_PERSIST);
	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	ck_assert_int_eq(kvc_persist(c), 0); /* and it is not done twice */
	n_durable = rig_counter(c, "tenants", "a", "durable_segments");
	ck_assert_uint_gt(n_durable, N);
	rig_daemon_kill(d);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "restored_segments"),
			  n_durable);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "mapped_bytes"), 0);
	n_missing = ask_again(c, &n_prompt);
	/* the questions themselves are shorter than a tile */
	ck_assert_uint_le(n_missing, n_prompt / 4);
	ck_assert_uint_gt(rig_counter(c, "pages", "a", "read_total"), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(an_orderly_stop_keeps_everything)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	uint64_t n_prompt;

	ask_all(c);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	for (int i = 0; i < 2; i++) { /* and again, from what was restored */
		ck_assert_int_eq(rig_daemon_restart(d), 0);
		c = rig_join(d->socket);
		ck_assert_uint_le(ask_again(c, &n_prompt), n_prompt / 4);
		kvc_close(c);
		ck_assert_int_eq(rig_daemon_stop(d), 0);
	}
	rig_daemon_free(d);
}
END_TEST

START_TEST(no_means_no)
{
	struct rig_daemon *d = start("persist = no\n");
	struct kvc *c = rig_join(d->socket);
	char path[128];

	ck_assert(!(kvc_features(c) & KV_FEATURE_PERSIST));
	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), -ENOTSUP);
	store_path(d, path);
	ck_assert_int_ne(access(path, F_OK), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(on_request_only)
{
	struct rig_daemon *d = start("persist = request\n");
	struct kvc *c = rig_join(d->socket);
	uint64_t n_prompt;

	ask_all(c);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "restored_segments"),
			  0);
	ck_assert_uint_gt(ask_again(c, &n_prompt), 0);
	ck_assert_int_eq(kvc_persist(c), 0);
	rig_daemon_kill(d);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_le(ask_again(c, &n_prompt), n_prompt / 4);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* ---- damage -------------------------------------------------------------------- */

static void flip(const char *path, off_t at)
{
	const int fd = open(path, O_RDWR);
	char byte;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
	byte ^= 8;
	ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
	ck_assert_int_eq(close(fd), 0);
}

START_TEST(damaged_pages_are_computed_again)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	struct stat st;
	char path[128];
	uint64_t n_prompt;

	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	rig_daemon_kill(d);
	kvc_close(c);
	store_path(d, path);
	ck_assert_int_eq(stat(path, &st), 0);
	/* far behind both indexes; holes become damage nobody notices */
	for (off_t at = 8 << 20; at < (40 << 20) && at < st.st_size; at += 9973)
		flip(path, at);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_gt(ask_again(c, &n_prompt), n_prompt / 4);
	ck_assert_uint_gt(rig_counter(c, "tenants", "a", "lost_pages_total"),
			  0);
	/* what was computed again is durable again */
	ck_assert_int_eq(kvc_persist(c), 0);
	rig_daemon_kill(d);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_le(ask_again(c, &n_prompt), n_prompt / 4);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(a_damaged_superblock_is_refused_and_kept)
{
	struct rig_daemon *d = start("");
	char path[128], *log;

	ck_assert_int_eq(rig_daemon_stop(d), 0);
	store_path(d, path);
	flip(path, 100);
	/* by the other copy, which is copied back */
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	flip(path, 100);
	flip(path, 4096 + 100);
	ck_assert_int_eq(rig_daemon_restart(d), -1);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "damaged: kvfsck tells more"));
	free(log);
	flip(path, 100);
	flip(path, 4096 + 100);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(a_file_of_others_is_not_touched)
{
	struct rig_daemon *d = start("");
	char path[128], *log, text[64] = "";
	int fd;

	ck_assert_int_eq(rig_daemon_stop(d), 0);
	store_path(d, path);
	fd = open(path, O_RDWR | O_TRUNC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, "precious", 8), 8);
	ck_assert_int_eq(ftruncate(fd, 1 << 20), 0);
	ck_assert_int_eq(rig_daemon_restart(d), -1);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "not a page store"));
	free(log);
	ck_assert_int_eq(pread(fd, text, 8, 0), 8);
	ck_assert_str_eq(text, "precious");
	close(fd);
	rig_daemon_free(d);
}
END_TEST

/* ---- several disks ---------------------------------------------------------------- */

static struct rig_daemon *start_two(const char *dir)
{
	char conf[1024];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 32M\ndisk = 128M\n"
		 "[store one]\npath = %s/one\nsize = 128M\n"
		 "[store two]\npath = %s/two\nsize = 128M\n",
		 rig_data_dir(), getuid(), dir, dir);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

/* The daemon goes on with the other, says so, and has all again when it is whole. */
START_TEST(a_damaged_disk_is_left_out)
{
	char dir[] = "/var/tmp/kvd-stores-XXXXXX", path[64], *text;
	uint64_t n_durable, n_restored, n_prompt;
	struct rig_daemon *d;
	struct kvc *c;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/one", dir);
	d = start_two(dir);
	c = rig_join(d->socket);
	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	n_durable = rig_counter(c, "tenants", "a", "durable_segments");
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	flip(path, 100);
	flip(path, 4096 + 100);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	text = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(
		text, "kvfsck tells more: left as it is; the others serve"));
	free(text);
	c = rig_join(d->socket);
	ck_assert_int_ge(kvc_query(c, "metrics", "", &text), 0);
	ck_assert_ptr_nonnull(strstr(text, "kvd_stores_missing 1"));
	free(text);
	n_restored = rig_counter(c, "tenants", "a", "restored_segments");
	ck_assert_uint_gt(n_restored, 0);
	ck_assert_uint_lt(n_restored, n_durable);
	(void)ask_again(c, &n_prompt);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	flip(path, 100);
	flip(path, 4096 + 100);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_ge(rig_counter(c, "tenants", "a", "restored_segments"),
			  n_durable);
	ck_assert_uint_le(ask_again(c, &n_prompt), n_prompt / 4);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	ck_assert_int_eq(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/two", dir);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

START_TEST(a_lost_disk_costs_what_was_on_it)
{
	char dir[] = "/var/tmp/kvd-stores-XXXXXX", path[64];
	uint64_t n_durable, n_restored, n_prompt, used[2] = { 0 };
	struct rig_daemon *d;
	struct kvc *c;
	char *text;
	json_t *j, *o;
	size_t i;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	d = start_two(dir);
	c = rig_join(d->socket);
	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	n_durable = rig_counter(c, "tenants", "a", "durable_segments");
	if (kvc_query(c, "stores", "", &text) >= 0) { /* else no admin */
		j = json_loads(text, 0, NULL);
		json_array_foreach(j, i, o)
			used[i] = (uint64_t)json_integer_value(
				json_object_get(o, "records"));
		ck_assert_uint_gt(used[0], n_durable / 4);
		ck_assert_uint_gt(used[1], n_durable / 4);
		json_decref(j);
		free(text);
	}
	kvc_close(c);
	rig_daemon_kill(d);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "restored_segments"),
			  n_durable);
	kvc_close(c);
	rig_daemon_kill(d);
	snprintf(path, sizeof(path), "%s/two", dir);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	n_restored = rig_counter(c, "tenants", "a", "restored_segments");
	ck_assert_uint_gt(n_restored, 0);
	ck_assert_uint_lt(n_restored, n_durable);
	(void)ask_again(c, &n_prompt);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	ck_assert_int_eq(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/one", dir);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

/* Statistics lie there: each would write those of the other away. */
START_TEST(no_two_daemons_share_a_state_directory)
{
	char dir[] = "/var/tmp/kvd-stores-XXXXXX", more[512], own[96], *log;
	struct rig_daemon *d, *e;
	FILE *f;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	d = start_two(dir);
	e = rig_daemon_start(NULL);
	ck_assert_ptr_nonnull(e);
	ck_assert_int_eq(rig_daemon_stop(e), 0);
	snprintf(own, sizeof(own), "%s/own", e->dir);
	snprintf(more, sizeof(more),
		 "[kvd]\nsocket = %s\nstate_dir = %s/state\n"
		 "[tenant a]\nuid = %u\nmemory = 32M\ndisk = 64M\n"
		 "[store own]\npath = %s\nsize = 64M\n",
		 e->socket, d->dir, getuid(), own);
	f = fopen(e->conf, "w");
	ck_assert_ptr_nonnull(f);
	fputs(more, f);
	fclose(f);
	ck_assert_int_eq(rig_daemon_restart(e), -1);
	log = rig_daemon_log(e);
	ck_assert_ptr_nonnull(strstr(log, "in use by another kvd"));
	free(log);
	rig_daemon_kill(d); /* at once it can be had */
	ck_assert_int_eq(rig_daemon_restart(e), 0);
	ck_assert_int_eq(rig_daemon_stop(e), 0);
	rig_daemon_free(e);
	rig_daemon_free(d);
	snprintf(own, sizeof(own), "%s/one", dir);
	ck_assert_int_eq(unlink(own), 0);
	snprintf(own, sizeof(own), "%s/two", dir);
	ck_assert_int_eq(unlink(own), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

/* ---- a tenant that is not configured ------------------------------------------------ */

static void rewrite(const struct rig_daemon *d, const char *from,
		    const char *to)
{
	char text[4096], *at;
	FILE *f = fopen(d->conf, "r+");
	size_t n;

	ck_assert_ptr_nonnull(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = 0;
	at = strstr(text, from);
	ck_assert_ptr_nonnull(at);
	ck_assert_uint_eq(strlen(from), strlen(to));
	memcpy(at, to, strlen(to));
	rewind(f);
	ck_assert_uint_eq(fwrite(text, 1, n, f), n);
	fclose(f);
}

START_TEST(a_mistake_in_the_configuration_costs_nothing)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	uint64_t n_prompt;

	ask_all(c);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rewrite(d, "[tenant a]", "[tenant b]");
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_str_eq(kvc_tenant(c), "b");
	ck_assert_uint_gt(ask_again(c, &n_prompt), n_prompt / 4);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rewrite(d, "[tenant b]", "[tenant a]");
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_le(ask_again(c, &n_prompt), n_prompt / 4);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* ---- another configuration ------------------------------------------------------------ */

/* Whatever was found, the answers are the same; what was found or not is found now. */
static void restart_and_ask(struct rig_daemon *d, int is_warm)
{
	uint64_t n_prompt, n;
	struct kvc *c;

	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	n = ask_again(c, &n_prompt);
	if (is_warm)
		ck_assert_uint_le(n, n_prompt / 4);
	else
		ck_assert_uint_gt(n, n_prompt / 4);
	ck_assert_uint_le(ask_again(c, &n_prompt), n_prompt / 4);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	rig_daemon_kill(d);
}

START_TEST(changes_of_the_configuration_cost_no_answer)
{
	char conf[1024], dir[] = "/var/tmp/kvd-stores-XXXXXX", path[64];
	char with[160], without[160];
	struct rig_daemon *d;
	struct kvc *c;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(with, sizeof(with),
		 "[store two]\npath = %s/two\nsize = 128M\n", dir);
	snprintf(without, sizeof(without),
		 "#store two]\n#ath = %s/two\n#ize = 128M\n", dir);
	snprintf(conf, sizeof(conf),
		 "recompute = no\n"
		 "[model m]\npath = %s/models/rag-mini.gguf\ngate = no\n"
		 "page_tokens = 32\n"
		 "[tenant a]\nuid = %u\nmemory = 32M\ndisk = 128M\n"
		 "[store one]\npath = %s/one\nsize = 128M\n%s",
		 rig_data_dir(), getuid(), dir, with);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	rig_daemon_kill(d);
	/* the disks in another order */
	rewrite(d, "/one\nsize", "/xxx\nsize");
	rewrite(d, "/two\nsize", "/one\nsize");
	rewrite(d, "/xxx\nsize", "/two\nsize");
	restart_and_ask(d, 1);
	rewrite(d, "/two\nsize", "/xxx\nsize");
	rewrite(d, "/one\nsize", "/two\nsize");
	rewrite(d, "/xxx\nsize", "/one\nsize");
	/* pages of another size, and back */
	rewrite(d, "page_tokens = 32", "page_tokens = 64");
	restart_and_ask(d, 0);
	restart_and_ask(d, 1);
	rewrite(d, "page_tokens = 64", "page_tokens = 32");
	restart_and_ask(d, 0);
	/* a disk is not there for a while; then much is there twice */
	rewrite(d, with, without);
	restart_and_ask(d, 0);
	restart_and_ask(d, 1);
	rewrite(d, without, with);
	restart_and_ask(d, 1);
	restart_and_ask(d, 1);
	rig_daemon_free(d);
	snprintf(path, sizeof(path), "%s/two", dir);
	ck_assert_int_eq(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/one", dir);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

/* What is beyond it stays: nothing here needs the room. */
START_TEST(a_smaller_disk_costs_nothing)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	uint64_t n_durable;

	ask_all(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	n_durable = rig_counter(c, "tenants", "a", "durable_segments");
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rewrite(d, "disk = 128M", "disk = 001M");
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_lt(rig_counter(c, "tenants", "a", "restored_segments"),
			  n_durable);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rewrite(d, "disk = 001M", "disk = 128M");
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "restored_segments"),
			  n_durable);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* ---- kill -9 under load ------------------------------------------------------------ */

/* Shared with the children: what the daemon has acknowledged. */
struct truth {
	int acked[N];
	uint64_t n_acks;
	uint64_t n_restored; /* by the last start */
};

/* Ask and persist until the daemon is gone; wrong answers end the child with 1. */
static void load_child(const char *socket, struct truth *t, unsigned int seed)
{
	const struct kvc_options opt = { .socket = socket };
	struct kvc *c;
	int asked[N] = { 0 };

	if (kvc_open(&c, &opt))
		_exit(0);
	for (;;) {
		const int i = rand_r(&seed) % N;
		char text[128];
		const int ret = rig_ask(c, &questions[i], text, NULL);

		if (ret < 0)
			_exit(ret == -ECONNRESET ? 0 : 2);
		if (strcmp(text, questions[i].answer))
			_exit(1);
		asked[i] = 1;
		if (rand_r(&seed) % 3)
			continue;
		if (kvc_persist(c))
			_exit(0);
		for (int k = 0; k < N; k++)
			if (asked[k])
				t->acked[k] = 1;
		__atomic_add_fetch(&t->n_acks, 1, __ATOMIC_RELAXED);
	}
}

/*
 * Everything acknowledged so far is found, none of it computed unless that is
 * faster. What was on disk once is on disk: nothing here needs its room.
 */
static void check_warm(const struct rig_daemon *d, struct truth *t, int load)
{
	struct kvc *c = rig_join(d->socket);
	const uint64_t n = rig_counter(c, "tenants", "a", "restored_segments");

	ck_assert_uint_ge(n, t->n_restored);
	t->n_restored = n;
	for (int i = 0; i < N; i++) {
		struct kv_gen_stats st;
		char text[128];

		if (!t->acked[i])
			continue;
		ck_assert_int_gt(rig_ask(c, &questions[i], text, &st), 0);
		ck_assert_str_eq(text, questions[i].answer);
		ck_assert_msg(!load || n_missed(&st) <= 64,
			      "question %d: %llu of %llu", i,
			      (unsigned long long)n_missed(&st),
			      (unsigned long long)st.n_prompt);
	}
	kvc_close(c);
}

/* Until there is one more; on a slow machine moments at random are all too early. */
static void await_ack(const struct truth *t, uint64_t n)
{
	for (int i = 0; i < 30000; i++) {
		if (__atomic_load_n(&t->n_acks, __ATOMIC_RELAXED) > n)
			return;
		(void)usleep(1000);
	}
}

START_TEST(kill_under_load)
{
	const char *env = getenv("KVD_CYCLES");
	const int n_cycles = env ? atoi(env) : getenv("KVD_LONG") ? 300 : 30;
	const char *recompute = _i ? "auto" : "no";
	unsigned int seed = (unsigned int)time(NULL);
	struct rig_daemon *d = start_recompute(recompute, "");
	struct kvc *c = rig_join(d->socket);
	struct truth *t = mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	printf("kill_under_load: seed %u, %d cycles, recompute = %s\n", seed,
	       n_cycles, recompute);
	ck_assert_ptr_ne(t, MAP_FAILED);
	ask_all(c);
	kvc_close(c);
	/* begin with an empty store, but known answers */
	rig_daemon_kill(d);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	for (int cycle = 0; cycle < n_cycles; cycle++) {
		const uint64_t n_acks = t->n_acks;
		pid_t pid[2];

		for (int k = 0; k < 2; k++) {
			pid[k] = fork();
			ck_assert_int_ge(pid[k], 0);
			if (!pid[k])
				load_child(d->socket, t, seed + (unsigned)k);
		}
		if (cycle % 3 == 2)
			await_ack(t, n_acks);
		(void)usleep((unsigned int)(rand_r(&seed) % 150000) + 1000);
		rig_daemon_kill(d);
		for (int k = 0; k < 2; k++) {
			ck_assert_int_eq(waitpid(pid[k], &status, 0), pid[k]);
			ck_assert_msg(!status, "cycle %d: client %d, 0x%x",
				      cycle, k, status);
		}
		ck_assert_int_eq(rig_daemon_restart(d), 0);
		check_warm(d, t, !_i);
	}
	printf("kill_under_load: %llu acknowledged persists\n",
	       (unsigned long long)t->n_acks);
	ck_assert(n_cycles < 3 || t->n_acks);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	munmap(t, sizeof(*t));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("restart");
	TCase *tc = tcase_create("restart");
	SRunner *r;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_unchecked_fixture(tc, load, unload);
	tcase_set_timeout(tc, 3600);
	tcase_add_test(tc, acknowledged_is_warm_after_kill);
	tcase_add_test(tc, an_orderly_stop_keeps_everything);
	tcase_add_test(tc, no_means_no);
	tcase_add_test(tc, on_request_only);
	tcase_add_test(tc, damaged_pages_are_computed_again);
	tcase_add_test(tc, a_damaged_superblock_is_refused_and_kept);
	tcase_add_test(tc, a_file_of_others_is_not_touched);
	tcase_add_test(tc, a_mistake_in_the_configuration_costs_nothing);
	tcase_add_test(tc, changes_of_the_configuration_cost_no_answer);
	tcase_add_test(tc, a_smaller_disk_costs_nothing);
	tcase_add_test(tc, a_lost_disk_costs_what_was_on_it);
	tcase_add_test(tc, a_damaged_disk_is_left_out);
	tcase_add_test(tc, no_two_daemons_share_a_state_directory);
	tcase_add_loop_test(tc, kill_under_load, 0, 2);
	suite_add_tcase(s, tc);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n ? 1 : 0;
}
