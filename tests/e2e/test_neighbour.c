/*
 * test_neighbour.c - one tenant floods, the other's hot set stays where it is
 *
 * B asks the same questions again and again, within its floor. A asks about texts
 * that nobody asks about twice, without end, and may use all memory. How much B
 * finds, and how much of it has to come from disk, does not change by a point.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

#define N_HOT	 6
#define N_ROUNDS 4

static struct rig_question questions[N_HOT];

static void load(void)
{
	rig_questions_load(questions, N_HOT);
}

static void unload(void)
{
	rig_questions_free(questions, N_HOT);
}

static struct rig_daemon *start(const char *floor, unsigned int weight_b,
				char socket_b[128])
{
	char conf[1024];
	struct rig_daemon *d;

	snprintf(socket_b, 128, "/tmp/kvd-neighbour-%d.sock", getpid());
	snprintf(conf, sizeof(conf),
		 "memory = 24M\n[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 24M\ndisk = 64M\n"
		 "weight = 1000\n"
		 "[tenant b]\nsocket = %s\nmemory = 16M\ndisk = 64M\n"
		 "%sweight = %u\n",
		 rig_data_dir(), getuid(), socket_b, floor, weight_b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

/* Questions about texts of random words, each once. */
static void flood(const char *socket)
{
	const struct kvc_options opt = { .socket = socket };
	unsigned int seed = 5;
	struct kvc *c;

	if (kvc_open(&c, &opt))
		_exit(1);
	for (;;) {
		char text[3000];
		size_t n = 0;
		const struct kvc_part part = { .kind = KV_PART_TEXT,
					       .text = text };
		const struct kvc_generate r = { .parts = &part,
						.n_parts = 1,
						.max_tokens = 1,
						.sqe_flags = KV_SQE_WAIT };
		struct kvc_gen *g = NULL;

		for (int i = 0; i < 300; i++)
			n += (size_t)snprintf(text + n, sizeof(text) - n,
					      "%c%c%c ",
					      'a' + rand_r(&seed) % 26,
					      'a' + rand_r(&seed) % 26,
					      'a' + rand_r(&seed) % 26);
		if (kvc_generate(c, &r, &g) < 0)
			_exit(0); /* the daemon stops */
		kvc_generate_free(c, g);
	}
}

struct hits {
	uint64_t n_prompt, n_found, n_pages_read;
};

/* The hot set, N_ROUNDS times. */
static struct hits replay(struct kvc *c)
{
	struct hits h = { 0 };

	for (int k = 0; k < N_ROUNDS * N_HOT; k++) {
		const struct rig_question *q = &questions[k % N_HOT];
		struct kv_gen_stats st;
		char text[128];

		ck_assert_int_gt(rig_ask(c, q, text, &st), 0);
		if (q->answer[0])
			ck_assert_str_eq(text, q->answer);
		h.n_prompt += st.n_prompt;
		h.n_found += st.n_prefix + st.n_chunk;
		h.n_pages_read += st.n_read_back;
	}
	return h;
}

/* In percent: tokens found; pages that had to come from disk. */
static double found(const struct hits *h)
{
	return 100.0 * (double)h->n_found / (double)h->n_prompt;
}

static double read_back(const struct hits *h)
{
	return 100.0 * (double)h->n_pages_read * 32 / (double)h->n_prompt;
}

/* Replay alone, then while A floods; how B's pages fared. */
static void compare(const char *floor, unsigned int weight_b,
		    struct hits *alone, struct hits *beside, uint64_t *evicted)
{
	char socket_b[128];
	struct rig_daemon *d = start(floor, weight_b, socket_b);
	struct kvc *b = rig_join(socket_b), *admin = rig_join(d->socket);
	pid_t pid;

	for (int i = 0; i < N_HOT; i++)
		ck_assert_int_gt(
			rig_ask(b, &questions[i], questions[i].answer, NULL),
			0);
	*alone = replay(b);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid)
		flood(d->socket);
	/* all that is not B's by right has been used, more than once */
	while (rig_counter(admin, "pages", "a", "mapped_total") * 98304 <
	       (48u << 20)) {
		ck_assert_int_eq(waitpid(pid, NULL, WNOHANG), 0);
		(void)usleep(20000);
	}
	*beside = replay(b);
	*evicted = rig_counter(admin, "pages", "b", "evicted_total");
	ck_assert_uint_gt(rig_counter(admin, "pages", "a", "evicted_total"), 0);
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	kvc_close(b);
	kvc_close(admin);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
	printf("neighbour: floor \"%s\": found %.2f %% alone, %.2f %% beside; "
	       "read back %.2f %%, %.2f %%\n",
	       floor[0] ? "14M" : "none", found(alone), found(beside),
	       read_back(alone), read_back(beside));
}

START_TEST(a_flood_costs_less_than_a_point)
{
	struct hits alone, beside;
	uint64_t evicted;

	compare("memory_floor = 14M\n", 100, &alone, &beside, &evicted);
	ck_assert_double_gt(found(&alone), 50);
	ck_assert_double_gt(found(&beside), found(&alone) - 1);
	ck_assert_double_lt(read_back(&beside), read_back(&alone) + 1);
	ck_assert_uint_eq(evicted, 0);
}
END_TEST

/* The same without a floor and with next to no weight: the test can fail. */
START_TEST(without_a_floor_it_does_cost)
{
	struct hits alone, beside;
	uint64_t evicted;

	compare("", 1, &alone, &beside, &evicted);
	ck_assert_uint_gt(evicted, 10);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("neighbour");
	TCase *t = tcase_create("neighbour");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_add_unchecked_fixture(t, load, unload);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, a_flood_costs_less_than_a_point);
	tcase_add_test(t, without_a_floor_it_does_cost);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
