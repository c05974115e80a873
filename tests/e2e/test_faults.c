/*
 * test_faults.c - a disk that is full, fails, or transfers less than was asked:
 * the request fails with the documented error or is computed again; nothing
 * else notices
 *
 * The real daemon with the points of io/fault.h armed from outside (see
 * rig/fault_ctl.h), and, as root, a file system that is really full. Tenant a
 * pages all the time, tenant b has the memory it needs.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernels/kern.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/fault_ctl.h"
#include "tests/rig/mirror.h"
#include "tests/rig/questions.h"

#define N_QUESTIONS 12

static struct rig_question questions[N_QUESTIONS];
static struct rig_daemon *d;
static struct kvc *a, *b;
static char socket_b[64];

static void start(const char *store)
{
	char conf[1024];

	snprintf(socket_b, sizeof(socket_b), "/tmp/kvd-faults-%d.sock",
		 getpid());
	snprintf(
		conf, sizeof(conf),
		"%s[model m]\npath = %s/models/rag-mini.gguf\n"
		"[tenant a]\nuid = %u\nmemory = 3M\ndisk = 96M\n"
		"[tenant b]\nsocket = %s\nmemory = 64M\ndisk = 64M\npersist = no\n",
		store, rig_data_dir(), getuid(), socket_b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	a = rig_join(d->socket);
	b = rig_join(socket_b);
}

/* What is right, before anything fails. */
static void learn(void)
{
	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(b, &questions[i], questions[i].answer, NULL),
			0);
}

static void begin(void)
{
	rig_questions_load(questions, N_QUESTIONS);
	start("");
	learn();
}

static void end(void)
{
	kvc_close(a);
	kvc_close(b);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	rig_questions_free(questions, N_QUESTIONS);
}

static void right(struct kvc *c, int i)
{
	char text[128];
	const int ret = rig_ask(c, &questions[i], text, NULL);

	ck_assert_msg(ret > 0, "question %d: %s", i, strerror(-ret));
	ck_assert_str_eq(text, questions[i].answer);
}

static void all_right(struct kvc *c)
{
	for (int i = 0; i < N_QUESTIONS; i++)
		right(c, i);
}

/* The right answer, or an error that docs/ops.md names; 1: answered. */
static int right_or_error(struct kvc *c, int i)
{
	char text[128];
	const int ret = rig_ask(c, &questions[i], text, NULL);

	if (ret < 0) {
		ck_assert_msg(ret == -EIO || ret == -ENOSPC || ret == -EBADMSG,
			      "question %d: %s", i, strerror(-ret));
		return 0;
	}
	ck_assert_str_eq(text, questions[i].answer);
	return 1;
}

/* Both tenants, in turn; how many a answered. b must not notice. */
static int both(void)
{
	int n = 0;

	for (int i = 0; i < N_QUESTIONS; i++) {
		n += right_or_error(a, i);
		right(b, i);
	}
	return n;
}

static double metric(const char *name)
{
	char *text, *at;
	double v;

	ck_assert_int_ge(kvc_query(a, "metrics", "", &text), 0);
	at = strstr(text, name);
	ck_assert_msg(at != NULL, "no %s", name);
	v = strtod(at + strlen(name), NULL);
	free(text);
	return v;
}

/* ---- answers ----------------------------------------------------------------- */

static const int write_errors[] = { EIO, ENOSPC };

START_TEST(writes_that_fail_lose_nothing)
{
	int n;
	char *log;

	rig_fault("forever uring.write 1 %d", write_errors[_i]);
	n = both();
	ck_assert_uint_gt(rig_fault("off"), 0);
	printf("%s: %d of %d answered meanwhile\n", strerror(write_errors[_i]),
	       n, N_QUESTIONS);
	all_right(a);
	all_right(b);
	ck_assert(metric("kvd_page_write_errors_total{tenant=\"a\"}") > 0);
	ck_assert(metric("kvd_page_write_errors_total{tenant=\"b\"}") == 0);
	ck_assert(metric("kvd_pages_lost_total{tenant=\"a\"}") == 0);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "kept in host"));
	free(log);
}
END_TEST

START_TEST(reads_that_fail_are_computed_again_or_reported)
{
	all_right(a);
	rig_fault("forever uring.read 1 %d", EIO);
	printf("EIO: %d of %d answered meanwhile\n", both(), N_QUESTIONS);
	ck_assert_uint_gt(rig_fault("off"), 0);
	ck_assert(metric("kvd_pages_lost_total{tenant=\"a\"}") > 0);
	ck_assert(metric("kvd_pages_lost_total{tenant=\"b\"}") == 0);
	all_right(a);
	all_right(b);
}
END_TEST

START_TEST(single_failures_anywhere)
{
	static const char *const points[] = { "uring.read", "uring.write" };

	all_right(a);
	for (int nth = 1; nth <= 24; nth++) {
		rig_fault("once %s %d %d", points[nth & 1], nth * nth / 4 + 1,
			  EIO);
		(void)right_or_error(a, nth % N_QUESTIONS);
		right(b, nth % N_QUESTIONS);
		rig_fault("off");
		right(a, nth % N_QUESTIONS);
	}
}
END_TEST

/* What passes is no reason to throw a page away. */
START_TEST(reads_that_fail_for_want_of_memory_lose_nothing)
{
	all_right(a);
	for (int i = 0; i < N_QUESTIONS; i++) {
		rig_fault("once uring.read %d %d", i * 3 + 1, ENOMEM);
		right(a, i);
		right(b, i);
		rig_fault("off");
	}
	ck_assert(metric("kvd_pages_lost_total{tenant=\"a\"}") == 0);
}
END_TEST

START_TEST(short_transfers_are_continued)
{
	all_right(a);
	rig_fault("forever uring.short 1 1");
	all_right(a);
	all_right(b);
	ck_assert_uint_gt(rig_fault("off"), 100);
	ck_assert(metric("kvd_pages_lost_total{tenant=\"a\"}") == 0);
	ck_assert(metric("kvd_page_write_errors_total{tenant=\"a\"}") == 0);
}
END_TEST

START_TEST(a_cache_that_cannot_be_made_durable_still_answers)
{
	int ret;

	all_right(a);
	rig_fault("forever sys.fdatasync 1 %d", EIO);
	ret = kvc_persist(a);
	rig_fault("off");
	ck_assert_msg(ret == -EIO || !ret, "persist: %s", strerror(-ret));
	all_right(a);
	all_right(b);
}
END_TEST

/* What the last line about it says. */
static void told_left(unsigned long long *n, unsigned long long *bytes)
{
	char *log = rig_daemon_log(d);
	const char *at = strstr(log, "tenant a: ");

	*n = *bytes = 0;
	ck_assert_msg(
		!at || sscanf(at,
			      "tenant a: %llu segments, %llu bytes, are not durable",
			      n, bytes) == 2,
		"%s", at);
	ck_assert_ptr_null(strstr(log, "tenant b: "));
	free(log);
}

START_TEST(what_a_stop_leaves_behind_is_told)
{
	unsigned long long n, bytes;

	rig_fault("forever uring.write 1 %d", ENOSPC);
	for (int i = 0; i < 2; i++)
		right(a, i); /* what fits into memory */
	kvc_close(a);
	kvc_close(b);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	told_left(&n, &bytes);
	ck_assert_uint_gt(n, 1);
	ck_assert_uint_gt(bytes, n * 4096);
	ck_assert_int_eq(unlink(d->log), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	a = rig_join(d->socket);
	b = rig_join(socket_b);
	ck_assert_uint_eq(rig_counter(a, "tenants", "a", "restored_segments"),
			  0);
	all_right(a);
	kvc_close(a);
	kvc_close(b);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	told_left(&n, &bytes);
	ck_assert_uint_eq(n, 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	a = rig_join(d->socket);
	b = rig_join(socket_b);
}
END_TEST

/* ---- what only a client knows --------------------------------------------------- */

#define N_SEQS	 8
#define STEP	 40u
#define N_TOKENS 400u

struct own {
	struct mirror_shape m;
	struct mirror s[N_SEQS];
	struct rng r;
	struct kv_attend_item *item;
	char *q, *k, *v, *o;
};

static void own_begin(struct own *w)
{
	w->r.s = 4711;
	kern_init(KERN_ISA_AMX);
	mirror_shape_pick(&w->m, &w->r, 1u << 20);
	w->m.g = (struct kv_geometry){ .n_layers = 1,
				       .n_heads = 4,
				       .n_kv_heads = 2,
				       .head_dim = 128,
				       .rotary = KV_ROTARY_HALVES,
				       .theta = 10000 };
	w->m.es = 4;
	w->m.kv_row = 2 * 128 * 4;
	w->m.q_row = 4 * 128 * 4;
	w->m.handle = kvc_geometry(a, &w->m.g);
	ck_assert_int_gt(w->m.handle, 0);
	w->item = kvc_alloc(a, sizeof(*w->item));
	w->q = kvc_alloc(a, STEP * w->m.q_row);
	w->o = kvc_alloc(a, STEP * w->m.q_row);
	w->k = kvc_alloc(a, STEP * w->m.kv_row);
	w->v = kvc_alloc(a, STEP * w->m.kv_row);
	ck_assert_ptr_nonnull(w->v);
	for (int i = 0; i < N_SEQS; i++) {
		mirror_new(&w->m, &w->s[i]);
		w->s[i].seq = kvc_seq_new(a, w->m.handle, MIRROR_TOKENS);
		ck_assert_int_gt(w->s[i].seq, 0);
	}
}

/* Documented, and what was there before is there still. */
static void own_failed(struct own *w, struct mirror *s, int ret)
{
	struct kv_seq_info info;

	ck_assert_msg(ret == -EIO || ret == -ENOSPC || ret == -EBADMSG, "%s",
		      strerror(-ret));
	ck_assert_int_eq(kvc_seq_info(a, s->seq, &info), 0);
	ck_assert_uint_eq(info.n_tokens, s->n);
	(void)w;
}

static int own_append(struct own *w, int i)
{
	struct mirror *s = &w->s[i];
	int ret;

	if (s->n + STEP > N_TOKENS)
		return 0;
	mirror_fill(&w->m, &w->r, w->k, STEP * w->m.kv_row / w->m.es);
	mirror_fill(&w->m, &w->r, w->v, STEP * w->m.kv_row / w->m.es);
	mirror_put(&w->m, s, 0, STEP, w->k, w->v);
	*w->item = (struct kv_attend_item){ .seq = (uint32_t)s->seq,
					    .n_tokens = STEP,
					    .pos = s->n,
					    .q_off = KV_NO_OFF,
					    .o_off = KV_NO_OFF,
					    .k_off = kvc_off(a, w->k),
					    .v_off = kvc_off(a, w->v) };
	ret = kvc_append(a, w->item, 1, 0, KV_SQE_WAIT);
	if (ret)
		own_failed(w, s, ret);
	else
		s->n += STEP;
	return ret;
}

/* The attention of the last tokens over all; 0 or the documented error. */
static int own_look(struct own *w, int i)
{
	static char want[STEP * 4 * 128 * 4];
	struct mirror *s = &w->s[i];
	int ret;

	if (!s->n)
		return 0;
	mirror_fill(&w->m, &w->r, w->q, STEP * w->m.q_row / w->m.es);
	*w->item = (struct kv_attend_item){ .seq = (uint32_t)s->seq,
					    .n_tokens = STEP,
					    .pos = s->n - STEP,
					    .q_off = kvc_off(a, w->q),
					    .o_off = kvc_off(a, w->o),
					    .k_off = KV_NO_OFF,
					    .v_off = KV_NO_OFF };
	ret = kvc_attend(a, w->item, 1, 0, KV_SQE_WAIT);
	if (ret) {
		own_failed(w, s, ret);
		return ret;
	}
	mirror_attend(&w->m, s, 0, s->n, s->n - STEP, STEP, w->q, want);
	ck_assert_int_eq(memcmp(want, w->o, STEP * w->m.q_row), 0);
	return 0;
}

/* The same, with time for pages to be written that could not be. */
static int own_look_soon(struct own *w, int i)
{
	int ret = -EIO;

	for (int k = 0; ret && k < 200; k++) {
		ret = own_look(w, i);
		if (ret)
			(void)usleep(50000);
	}
	return ret;
}

static void own_end(struct own *w)
{
	for (int i = 0; i < N_SEQS; i++) {
		ck_assert_int_eq(kvc_seq_free(a, w->s[i].seq), 0);
		mirror_free(&w->s[i]);
	}
}

static int own_fill(struct own *w)
{
	int n_failed = 0;

	for (uint32_t t = 0; t < N_TOKENS; t += STEP)
		for (int i = 0; i < N_SEQS; i++)
			n_failed += own_append(w, i) != 0;
	return n_failed;
}

START_TEST(appends_that_find_no_room_leave_what_was_there)
{
	struct own w;
	int n_failed;

	own_begin(&w);
	rig_fault("forever uring.write 1 %d", write_errors[_i]);
	n_failed = own_fill(&w);
	ck_assert_int_gt(n_failed, 0);
	rig_fault("off");
	for (int i = 0; i < N_SEQS; i++)
		ck_assert_int_eq(own_look_soon(&w, i), 0);
	/* and now there is room, when the pages are tried again */
	for (int i = 0; i < N_SEQS; i++)
		for (int k = 0; w.s[i].n < N_TOKENS; k++) {
			ck_assert_int_lt(k, 200);
			if (own_append(&w, i))
				(void)usleep(50000);
		}
	for (int i = 0; i < N_SEQS; i++)
		ck_assert_int_eq(own_look(&w, i), 0);
	own_end(&w);
	all_right(a);
	all_right(b);
}
END_TEST

START_TEST(a_sequence_that_cannot_be_read_fails_alone)
{
	struct own w;
	int n_failed = 0, n_again = 0;

	own_begin(&w);
	ck_assert_int_eq(own_fill(&w), 0);
	rig_fault("forever uring.read 5 %d", EIO);
	for (int i = 0; i < N_SEQS; i++)
		if (own_look(&w, i)) {
			n_failed++;
			rig_fault("off");
		}
	for (int i = 0; i < N_SEQS; i++)
		n_again += own_look(&w, i) != 0;
	printf("%d of %d sequences failed, %d later\n", n_failed, N_SEQS,
	       n_again);
	ck_assert_int_eq(n_failed, 1);
	ck_assert_int_le(n_again, 1);
	own_end(&w);
	all_right(a);
	all_right(b);
}
END_TEST

/* ---- a file system that is full ------------------------------------------------- */

START_TEST(a_full_file_system)
{
	char dir[] = "/tmp/kvd-full-XXXXXX", path[64], conf[128];
	struct own w;
	int n_failed, n_looks = 0;

	if (getuid() || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		printf("a full file system: skipped, cannot mount one\n");
		return;
	}
	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_int_eq(mount("none", dir, "tmpfs", 0, "size=5m"), 0);
	snprintf(path, sizeof(path), "%s/s.store", dir);
	snprintf(conf, sizeof(conf), "[store s]\npath = %s\nsize = 256M\n",
		 path);
	rig_questions_load(questions, N_QUESTIONS);
	start(conf);
	learn();
	own_begin(&w);
	n_failed = own_fill(&w); /* 6.4 MB into 3 MB and the disk's 5 */
	(void)both();
	n_failed += own_fill(&w);
	for (int i = 0; i < N_SEQS; i++) /* right, or no room to read into */
		n_looks += own_look(&w, i) == 0;
	printf("%d appends found no room, %d of %d sequences are within reach\n",
	       n_failed, n_looks, N_SEQS);
	ck_assert_int_gt(n_failed, 0);
	own_end(&w);
	all_right(b);
	all_right(a); /* room has been given back */
	end();
	ck_assert_int_eq(umount2(dir, MNT_DETACH), 0);
	ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

#define MOST_AT_START 1000

/* ---- start ------------------------------------------------------------------------ */

/* 1: refused; 0: it serves; -1: it serves, and met no such point. */
static int start_with_fault(const char *point, int nth, int err)
{
	const struct kvc_options opt = { .socket = d->socket };
	struct kvc *c;
	uint64_t n_met;
	char text[64];
	int status;

	snprintf(text, sizeof(text), "once %s %d %d", point, nth, err);
	ck_assert_int_eq(setenv("KVD_FAULT_START", text, 1), 0);
	if (!rig_daemon_restart(d)) {
		/* the first client may be who meets it; or it listened, and had
		 * more to do */
		if (kvc_open(&c, &opt) && kvc_open(&c, &opt)) {
			status = rig_daemon_wait(d);
			ck_assert_msg(status != -1 && WIFEXITED(status) &&
					      WEXITSTATUS(status),
				      "%s: %x", text, status);
			return 1;
		}
		n_met = rig_fault("off");
		kvc_close(c);
		status = rig_daemon_stop(d);
		ck_assert_msg(!status, "%s: stop: %x", text, status);
		return n_met < (uint64_t)nth ? -1 : 0;
	}
	return 1;
}

/* Of allocations, of which there are thousands, all the first and then some. */
static const struct at_start {
	const char *points;
	int err, each, step;
} at_start[] = { { "sys.", EIO, MOST_AT_START, 1 },
		 { "mem.", ENOMEM, 60, 41 } };

START_TEST(a_call_that_fails_at_start_ends_it_with_a_reason_or_is_done_without)
{
	const struct at_start *at = &at_start[_i];
	char *log, *crash;
	int n = 0, n_starts = 0, nth = 1, ret = 0;

	d = rig_daemon_start(NULL);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	(void)!freopen("/dev/null", "w", stderr); /* the rig shows each log */
	for (; ret >= 0; nth += nth < at->each ? 1 : at->step) {
		ck_assert_int_lt(n_starts++, MOST_AT_START);
		ret = start_with_fault(at->points, nth, at->err);
		n += ret > 0;
	}
	n += start_with_fault("uring.setup", 1, EIO);
	log = rig_daemon_log(d);
	crash = strstr(log, "Assert");
	if (!crash)
		crash = strstr(log, "Sanitizer");
	ck_assert_msg(!crash, "%s", crash);
	printf("%s: %d of %d starts refused\n", at->points, n, n_starts);
	ck_assert_int_gt(n, 0);
	ck_assert_ptr_nonnull(strstr(log, "storage threads"));
	free(log);
	ck_assert_int_eq(unsetenv("KVD_FAULT_START"), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("faults");
	TCase *t = tcase_create("with a daemon"), *u = tcase_create("without");

	tcase_set_timeout(t, 120);
	tcase_set_timeout(u, 120);
	tcase_add_checked_fixture(t, begin, end);
	tcase_add_loop_test(t, writes_that_fail_lose_nothing, 0, 2);
	tcase_add_test(t, reads_that_fail_are_computed_again_or_reported);
	tcase_add_test(t, single_failures_anywhere);
	tcase_add_test(t, reads_that_fail_for_want_of_memory_lose_nothing);
	tcase_add_test(t, short_transfers_are_continued);
	tcase_add_test(t, a_cache_that_cannot_be_made_durable_still_answers);
	tcase_add_test(t, what_a_stop_leaves_behind_is_told);
	tcase_add_loop_test(t, appends_that_find_no_room_leave_what_was_there,
			    0, 2);
	tcase_add_test(t, a_sequence_that_cannot_be_read_fails_alone);
	tcase_add_test(u, a_full_file_system);
	tcase_add_loop_test(
		u,
		a_call_that_fails_at_start_ends_it_with_a_reason_or_is_done_without,
		0, (int)(sizeof(at_start) / sizeof(at_start[0])));
	suite_add_tcase(s, t);
	suite_add_tcase(s, u);
	return s;
}

int main(void)
{
	SRunner *r;
	int n;

	if (rig_fault_use()) {
		printf("skipped: there is no kvd-faulty binary\n");
		return 77;
	}
	r = srunner_create(suite());
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
