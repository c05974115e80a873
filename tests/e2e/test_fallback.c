/*
 * test_fallback.c - what newer kernels or more rights offer, taken away one by
 * one: the daemon says so and gives the same answers
 *
 * Taken away by a seccomp filter around the test, its client and the daemon,
 * that answers a call (of some argument) with an error. The answers to compare
 * with come from a daemon that has everything.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include "kernels/kern.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/mirror.h"
#include "tests/rig/questions.h"
#include "tests/rig/switches.h"

#define N_QUESTIONS 6
#define N_TOKENS    96u
#define PEER_PIDFD  77 /* SO_PEERPIDFD */

static struct rig_question questions[N_QUESTIONS];

struct away {
	const char *name;
	const char *calls[4]; /* of the kernel */
	struct {
		unsigned int i; /* argument number */
		uint64_t mask, value; /* 0, 0: whatever it is */
	} arg;
	int err;
	const char *log; /* what the daemon says */
	const char *conf; /* more keys of [kvd] */
};

static const struct away table[] = {
	{ "nothing", { NULL }, { 0 }, 0, "storage io_uring", "" },
	{ "io_uring, forbidden",
	  { "io_uring_setup" },
	  { 0 },
	  EPERM,
	  "storage threads",
	  "" },
	{ "io_uring, unknown",
	  { "io_uring_setup" },
	  { 0 },
	  ENOSYS,
	  "storage threads",
	  "" },
	{ "files registered with io_uring",
	  { "io_uring_register" },
	  { 1, 0xffffffff, 13 /* IORING_REGISTER_FILES2 */ },
	  EINVAL,
	  "storage io_uring",
	  "" },
	{ "events of io_uring",
	  { "io_uring_register" },
	  { 1, 0xffffffff, 4 /* IORING_REGISTER_EVENTFD */ },
	  EINVAL,
	  "storage threads",
	  "" },
	{ "O_DIRECT",
	  { "openat", "open" },
	  { 2, O_DIRECT, O_DIRECT },
	  EINVAL,
	  "buffered, there is no O_DIRECT",
	  "" },
	{ "SO_PEERPIDFD (6.5)",
	  { "getsockopt" },
	  { 2, 0xffffffff, PEER_PIDFD },
	  ENOPROTOOPT,
	  "",
	  "" },
	{ "a tmpfs of huge pages, forbidden",
	  { "fsopen" },
	  { 0 },
	  EPERM,
	  "no tmpfs with huge pages",
	  "" },
	{ "a tmpfs of huge pages, without fsmount",
	  { "fsmount" },
	  { 0 },
	  EPERM,
	  "no tmpfs with huge pages",
	  "" },
	{ "locked memory",
	  { "mlock2" },
	  { 0 },
	  EPERM,
	  "frames are not locked",
	  "" },
	{ "NUMA placement",
	  { "mbind" },
	  { 0 },
	  EPERM,
	  "node 0",
	  "numa_node = 0\n" },
	{ "the system call filter",
	  { "seccomp", "prctl" },
	  { 0, 0, 0 },
	  EINVAL,
	  "no system call filter",
	  "" },
	{ "more open files",
	  { "prlimit64", "setrlimit" },
	  { 2, 0, 0 },
	  EPERM,
	  "RLIMIT_NOFILE",
	  "" },
	{ "AMX", { "arch_prctl" }, { 0, 0xffffffff, 0x1023 }, EINVAL, "", "" },
	{ "populated mappings (5.14)",
	  { "madvise" },
	  { 2, 0xffffffff, 23 /* MADV_POPULATE_WRITE */ },
	  EINVAL,
	  "",
	  "" },
};
#define N_AWAY (sizeof(table) / sizeof(table[0]))

static struct rig_daemon *start(const char *more)
{
	struct rig_daemon *d;
	char conf[1024];

	snprintf(conf, sizeof(conf),
		 "%s[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 24M\ndisk = 96M\n"
		 "[tenant t]\nsocket = /tmp/kvd-fallback-%d.sock\n"
		 "memory = 3M\ndisk = 64M\n",
		 more, rig_data_dir(), getuid(), getpid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static struct kvc *join_small(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/kvd-fallback-%d.sock", getpid());
	return rig_join(path);
}

static void learn(void)
{
	struct rig_daemon *d;
	struct kvc *c;

	rig_questions_load(questions, N_QUESTIONS);
	d = start("");
	c = join_small();
	for (int i = 0; i < N_QUESTIONS; i++)
		ck_assert_int_gt(
			rig_ask(c, &questions[i], questions[i].answer, NULL),
			0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

static void forget(void)
{
	rig_questions_free(questions, N_QUESTIONS);
}

/* ---- what is taken away ---------------------------------------------------- */

static void refuse(scmp_filter_ctx ctx, const struct away *w, const char *call)
{
	const int nr = seccomp_syscall_resolve_name(call);
	const struct scmp_arg_cmp cmp = { .arg = w->arg.i,
					  .op = SCMP_CMP_MASKED_EQ,
					  .datum_a = w->arg.mask,
					  .datum_b = w->arg.value };
	struct scmp_arg_cmp set = { .arg = 0,
				    .op = SCMP_CMP_EQ,
				    .datum_a = PR_SET_SECCOMP };
	int ret;

	ck_assert_int_ne(nr, __NR_SCMP_ERROR);
	if (!strcmp(call, "prctl"))
		ret = seccomp_rule_add_array(
			ctx, SCMP_ACT_ERRNO((uint32_t)w->err), nr, 1, &set);
	else if (!strcmp(call, "prlimit64")) {
		set = (struct scmp_arg_cmp){ .arg = 2,
					     .op = SCMP_CMP_NE,
					     .datum_a = 0 };
		ret = seccomp_rule_add_array(
			ctx, SCMP_ACT_ERRNO((uint32_t)w->err), nr, 1, &set);
	} else if (w->arg.mask)
		ret = seccomp_rule_add_array(
			ctx, SCMP_ACT_ERRNO((uint32_t)w->err), nr, 1, &cmp);
	else
		ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO((uint32_t)w->err),
				       nr, 0);
	ck_assert_int_eq(ret, 0);
}

static void take(const struct away *w)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);

	ck_assert_ptr_nonnull(ctx);
	for (int i = 0; i < 4 && w->calls[i]; i++)
		refuse(ctx, w, w->calls[i]);
	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	ck_assert_int_eq(seccomp_load(ctx), 0);
	seccomp_release(ctx);
}

/* ---- what must still be right ------------------------------------------------ */

static void answers(void)
{
	struct kvc *c = join_small();
	char text[128];

	for (int i = 0; i < 2 * N_QUESTIONS; i++) {
		const struct rig_question *q = &questions[i % N_QUESTIONS];

		ck_assert_int_gt(rig_ask(c, q, text, NULL), 0);
		ck_assert_str_eq(text, q->answer);
	}
	ck_assert_uint_gt(rig_counter(c, "pages", "t", "evicted_total"), 0);
	ck_assert_uint_gt(rig_counter(c, "pages", "t", "read_total"), 0);
	kvc_close(c);
}

/* Pages of 2 MiB: those that a tmpfs of huge pages is made for. */
static void large_pages(struct kvc *c)
{
	struct rng r = { 12 };
	struct mirror_shape m = { .g = { .n_layers = 1,
					 .n_heads = 2,
					 .n_kv_heads = 2,
					 .head_dim = 32,
					 .page_tokens = 4096,
					 .page_layers = 1,
					 .type = KV_F32 },
				  .es = 4,
				  .kv_row = 256,
				  .q_row = 256 };
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	char *q = kvc_alloc(c, N_TOKENS * m.q_row);
	char *kv = kvc_alloc(c, N_TOKENS * m.kv_row);
	char *o = kvc_alloc(c, N_TOKENS * m.q_row);
	char want[N_TOKENS * 256];
	struct mirror s;

	ck_assert_ptr_nonnull(o);
	mirror_new(&m, &s);
	s.seq = kvc_seq_new(c, kvc_geometry(c, &m.g), 0);
	ck_assert_msg(s.seq > 0, "%s", strerror(-s.seq));
	mirror_fill(&m, &r, q, N_TOKENS * 64);
	mirror_fill(&m, &r, kv, N_TOKENS * 64);
	mirror_put(&m, &s, 0, N_TOKENS, kv, kv);
	*it = (struct kv_attend_item){ .seq = (uint32_t)s.seq,
				       .n_tokens = N_TOKENS,
				       .q_off = kvc_off(c, q),
				       .k_off = kvc_off(c, kv),
				       .v_off = kvc_off(c, kv),
				       .o_off = kvc_off(c, o) };
	ck_assert_int_eq(kvc_attend(c, it, 1, 0, KV_SQE_WAIT), 0);
	mirror_attend(&m, &s, 0, N_TOKENS, 0, N_TOKENS, q, want);
	ck_assert_int_eq(memcmp(want, o, sizeof(want)), 0);
	mirror_free(&s);
}

START_TEST(without_it_the_answers_are_the_same)
{
	const struct away *w = &table[_i];
	struct rig_daemon *d;
	struct kvc *c;
	char *log;

#ifdef __SANITIZE_THREAD__
	if (!strcmp(w->name, "more open files")) {
		printf("%s: skipped, the sanitizer sets limits itself\n",
		       w->name);
		return;
	}
#endif
	if (!strcmp(w->name, "more open files")) { /* something to ask for */
		const struct rlimit r = { 512, 1024 };

		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &r), 0);
	}
	kern_init(KERN_ISA_AMX);
	take(w);
	d = start(w->conf);
	c = rig_join(d->socket);
	ck_assert_int_eq(kvc_nop(c), 0);
	answers();
	large_pages(c);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	log = rig_daemon_log(d);
	ck_assert_msg(strstr(log, w->log) != NULL,
		      "without %s: no \"%s\" in\n%s", w->name, w->log, log);
	ck_assert_msg(!strstr(log, " error "), "without %s:\n%s", w->name, log);
	free(log);
	rig_daemon_free(d);
}
END_TEST

/* auto would go on without. */
START_TEST(always_huge_means_it)
{
	struct rig_daemon *d;
	char conf[512], *log;

	snprintf(conf, sizeof(conf),
		 "huge = always\nhuge_dir = /proc/self\n"
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 24M\n",
		 rig_data_dir(), getuid());
	if (getuid()) {
		ck_assert_ptr_null(rig_daemon_start(conf));
		return;
	}
	d = rig_daemon_start(conf);
	if (!d) /* nor may root, in a container */
		return;
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, "huge_dir /proc/self:"));
	free(log);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(what_the_kernel_is_set_to_can_be_kept)
{
	static const struct {
		const char *huge, *after;
	} rows[] = { { "keep", "[never]" },
		     { "never", "[never]" },
		     { "auto", "advise" } };
	struct rig_daemon *d;
	char conf[512];

	if (rig_switches("never")) {
		printf("switches: skipped, no mount namespace here\n");
		return;
	}
	snprintf(conf, sizeof(conf),
		 "huge = %s\n[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 24M\n",
		 rows[_i].huge, rig_data_dir(), getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	ck_assert(rig_switch_is(16, rows[_i].after));
	ck_assert(rig_switch_is(2048, rows[_i].after));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fallback");
	TCase *t = tcase_create("fallback");
	const char *bin = rig_daemon_binary();
	SRunner *r;
	int n;

	if (!bin) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	/* its run time gives up where it may not forbid cores */
	(void)setenv("ASAN_OPTIONS", "disable_coredump=0", 0);
	tcase_set_timeout(t, 120);
	tcase_add_unchecked_fixture(t, learn, forget);
	tcase_add_loop_test(t, without_it_the_answers_are_the_same, 0,
			    (int)N_AWAY);
	tcase_add_test(t, always_huge_means_it);
	tcase_add_loop_test(t, what_the_kernel_is_set_to_can_be_kept, 0, 3);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
