/*
 * test_gpu_tier.c - a daemon with device = cuda: what starts and what does not, restarts,
 * a pool without a disk, what kvctl tells and gives back
 *
 * On the fake driver: real daemons, sockets and files.
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_cuda.h"

static struct rig_question questions[3];
static char image[64];

/* A daemon with these lines of [kvd], of [tenant t]; NULL: it did not start. */
static struct rig_daemon *start(const char *kvd, const char *tenant)
{
	char conf[4096];

	snprintf(conf, sizeof(conf),
		 "cuda_library = %s\ncublas_library = %s\ncuda_image = %s\n%s"
		 "[model m]\npath = %s/models/rag-draft.gguf\nmath = f32\n"
		 "gate = no\npage_tokens = 32\npage_layers = 2\n"
		 "[tenant t]\nuid = %u\n%s",
		 rig_cuda_path(), rig_cuda_path(), image, kvd, rig_data_dir(),
		 getuid(), tenant);
	return rig_daemon_start(conf);
}

static void stop(struct rig_daemon *d)
{
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

static void log_has(struct rig_daemon *d, const char *line)
{
	char *log = rig_daemon_log(d);

	ck_assert_msg(strstr(log, line) != NULL, "no \"%s\" in:\n%s", line,
		      log);
	free(log);
}

/* kvctl's exit code, and what it printed. */
static int ctl(const struct rig_daemon *d, const char *args, char *out,
	       size_t out_len)
{
	char bin[PATH_MAX], cmd[3 * PATH_MAX];
	int status;
	size_t n;
	FILE *f;

	snprintf(bin, sizeof(bin), "%s", rig_daemon_binary());
	snprintf(cmd, sizeof(cmd), "%s/kvctl --socket %s %s 2>&1", dirname(bin),
		 d->socket, args);
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	n = fread(out, 1, out_len - 1, f);
	out[n] = '\0';
	status = pclose(f);
	ck_assert_msg(WIFEXITED(status), "%s: %s", args, out);
	return WEXITSTATUS(status);
}

struct answer {
	char text[128];
	struct kv_gen_stats st;
};

/* Question q, each with two chunks of its own. */
static void ask(struct kvc *c, int q, struct answer *out)
{
	const struct rig_question *x = &questions[q % 3];
	const struct kvc_part p[] = { x->parts[0], x->parts[1 + q / 3 * 2],
				      x->parts[2 + q / 3 * 2],
				      x->parts[x->n_parts - 1] };
	const struct kvc_generate r = { .parts = p,
					.n_parts = 4,
					.flags = KV_GEN_IGNORE_EOS,
					.max_tokens = 2,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *g = NULL;

	ck_assert_int_eq(kvc_generate(c, &r, &g), 2);
	snprintf(out->text, sizeof(out->text), "%s", kvc_gen_text(g));
	out->st = *kvc_gen_stats(g);
	kvc_generate_free(c, g);
}

#define N_ASKED 5 /* more than 1 MiB of pages */

/* A number that `kvctl device` has. */
static uint64_t device(struct kvc *c, const char *key)
{
	char *text;
	json_t *j;
	uint64_t n;

	ck_assert_int_ge(kvc_query(c, "device", NULL, &text), 0);
	j = json_loads(text, 0, NULL);
	ck_assert(json_is_integer(json_object_get(j, key)));
	n = (uint64_t)json_integer_value(json_object_get(j, key));
	json_decref(j);
	free(text);
	return n;
}

static void ask_all(struct kvc *c, struct answer *out, int n)
{
	for (int i = 0; i < n; i++)
		ask(c, i, &out[i]);
}

/* ---- start ------------------------------------------------------------------ */

START_TEST(what_cannot_be_had_is_said)
{
	static const char tenant[] = "memory = 4M\ndisk = 16M\n";
	struct rig_daemon *d;
	char big[512];

	/* the fake has 64 MiB */
	ck_assert_ptr_null(
		start("device = cuda\n", "memory = 1G\ndisk = 16M\n"));
	ck_assert_ptr_null(start("device = cuda\ndevice_index = 3\n", tenant));
	/* so much cannot be there, let alone be pinned */
	ck_assert_ptr_null(
		start("device = cuda\nhost_memory = 512T\n", tenant));
	/* an eighth of the pool is less than a page */
	snprintf(big, sizeof(big),
		 "device = cuda\nhost_memory = 1M\n[model big]\n"
		 "path = %s/models/rag-draft.gguf\npage_tokens = 2048\n",
		 rig_data_dir());
	ck_assert_ptr_null(start(big, tenant));
	d = start("device = auto\ndevice_index = 3\n", tenant);
	ck_assert_ptr_nonnull(d);
	log_has(d, "KV is kept in host memory");
	stop(d);
}
END_TEST

/* ---- what survives ------------------------------------------------------------ */

/* Records written from the pinned pool are found, also by one that was killed. */
START_TEST(what_is_persisted_is_found_again)
{
	const int direct = _i & 2;
	const char *path = rig_cuda_path();
	struct answer first[2], again[2];
	char lines[PATH_MAX + 128];
	struct rig_daemon *d;
	struct kvc *c;

	snprintf(lines, sizeof(lines),
		 "device = cuda\nhost_memory = 8M\n%s%.*s%s\n",
		 direct ? "direct_storage = " : "",
		 direct ? (int)(strrchr(path, '/') - path) : 0, path,
		 direct ? "/libfakecufile.so" : "");
	d = start(lines, "memory = 2M\ndisk = 64M\n");

	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	ask_all(c, first, 2);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	if (_i & 1)
		rig_daemon_kill(d);
	else
		ck_assert_int_eq(rig_daemon_stop(d), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	c = rig_join(d->socket);
	ask_all(c, again, 2);
	for (int i = 0; i < 2; i++) {
		ck_assert_str_eq(first[i].text, again[i].text);
		ck_assert_uint_gt(again[i].st.n_prefix + again[i].st.n_chunk,
				  0);
	}
	ck_assert_uint_eq(rig_counter(c, "pages", NULL, "lost"), 0);
	kvc_close(c);
	stop(d);
}
END_TEST

/* Nobody has a disk: pages go to the pool, and come back from it. */
START_TEST(a_pool_without_a_disk)
{
	struct rig_daemon *d = start("device = cuda\nhost_memory = 16M\n",
				     "memory = 1M\ndisk = 0\n");
	struct answer first[N_ASKED], again[N_ASKED];
	struct kvc *c;

	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	ask_all(c, first, N_ASKED);
	ask_all(c, again, N_ASKED);
	for (int i = 0; i < N_ASKED; i++)
		ck_assert_str_eq(first[i].text, again[i].text);
	ck_assert_uint_gt(rig_counter(c, "pages", NULL, "evicted_total"), 0);
	ck_assert_uint_gt(rig_counter(c, "pages", NULL, "read_total"), 0);
	ck_assert_uint_gt(rig_counter(c, "pages", NULL, "host_bytes"), 0);
	ck_assert_uint_gt(rig_counter(c, "usage", NULL, "host_used"), 0);
	ck_assert_uint_eq(rig_counter(c, "usage", NULL, "host_limit"),
			  16 << 20);
	ck_assert_uint_gt(rig_counter(c, "usage", NULL, "host_byte_s"), 0);
	ck_assert_uint_eq(rig_counter(c, "pages", NULL, "lost"), 0);
	kvc_close(c);
	stop(d);
}
END_TEST

/* ---- kvctl -------------------------------------------------------------------- */

START_TEST(kvctl_tells_and_trims)
{
	struct rig_daemon *d =
		start("device = cuda\n", "memory = 4M\ndisk = 16M\n");
	struct answer x;
	static char out[1 << 16];
	uint64_t taken;
	struct kvc *c;

	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	ask(c, 0, &x);
	ck_assert_int_eq(ctl(d, "device", out, sizeof(out)), 0);
	ck_assert_ptr_nonnull(strstr(out, "Fake GPU"));
	ck_assert_int_eq(ctl(d, "metrics", out, sizeof(out)), 0);
	ck_assert_ptr_nonnull(
		strstr(out, "kvd_host_byte_seconds_total{tenant=\"t\"}"));
	taken = device(c, "taken_bytes");
	ck_assert_uint_gt(taken, 0);
	ck_assert_uint_gt(device(c, "idle_bytes"), 0);
	ck_assert_int_eq(ctl(d, "trim", out, sizeof(out)), 0);
	ck_assert_ptr_nonnull(strstr(out, "trimmed_bytes"));
	ck_assert_uint_lt(device(c, "taken_bytes"), taken);
	ck_assert_int_eq(ctl(d, "trim 1M", out, sizeof(out)), 0);
	ck_assert_int_eq(ctl(d, "trim much", out, sizeof(out)), 1);
	ck_assert_int_eq(ctl(d, "pages", out, sizeof(out)), 0);
	ck_assert_ptr_nonnull(strstr(out, "host_dirty_bytes"));
	ck_assert_int_eq(ctl(d, "metrics", out, sizeof(out)), 0);
	ck_assert_ptr_nonnull(strstr(out, "\nkvd_device_frame_bytes "));
	ck_assert_ptr_nonnull(strstr(out, "\nkvd_host_pool_dirty_bytes "));
	kvc_close(c);
	stop(d);
	/* host memory has nothing to trim */
	d = start("", "memory = 4M\ndisk = 16M\n");
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(ctl(d, "trim", out, sizeof(out)), 1);
	stop(d);
}
END_TEST

static void setup(void)
{
	FILE *f;

	snprintf(image, sizeof(image), "/tmp/kvd-gpu-tier-%d", (int)getpid());
	f = fopen(image, "w");
	ck_assert_ptr_nonnull(f);
	fputs("the fake takes any image\n", f);
	ck_assert_int_eq(fclose(f), 0);
	rig_questions_load(questions, 3);
}

static void teardown(void)
{
	rig_questions_free(questions, 3);
	(void)unlink(image);
}

int main(void)
{
	Suite *s = suite_create("gpu_tier");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, what_cannot_be_had_is_said);
	tcase_add_loop_test(t, what_is_persisted_is_found_again, 0, 4);
	tcase_add_test(t, a_pool_without_a_disk);
	tcase_add_test(t, kvctl_tells_and_trims);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
