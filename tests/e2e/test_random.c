/*
 * test_random.c - 8 clients, 2 tenants, random valid operations, budgets so
 * small that everything pages: every output equals the same kernels run
 * unpaged, by memcmp
 *
 * Attention is compared with the kernels over plain memory (rig/mirror.h),
 * generated tokens, log-probabilities, logits and text with a second daemon
 * that has all the memory it wants. A minute by the wall clock, ten with
 * KVD_LONG=1, KVD_SECONDS=n otherwise; KVD_SEED=n repeats a run's operations.
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "kernels/kern.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/mirror.h"
#include "tests/rig/questions.h"

#define N_CLIENTS      8
#define N_SEQS	       6
#define MAX_STEP       70u
#define ERA_OPS	       150u /* then all is dropped: another geometry */
#define N_QUESTIONS    20
#define N_CHUNKS       12
#define MAX_LOGITS     2048
#define ANON_KIB       (32 * 1024) /* docs/ops.md */
#define ANON_MODEL_KIB (48 * 1024) /* with rag-mini */

static struct rig_question questions[N_QUESTIONS];

enum {
	N_STEP,
	N_AGAIN,
	N_APPEND,
	N_FORK,
	N_CUT,
	N_SEAL,
	N_SKIP,
	N_FREE,
	N_GENERATE,
	N_CANCEL,
	N_CHUNK,
	N_ERA,
	N_KINDS
};
static const char *const kinds[] = { "step",	 "again",  "append", "fork",
				     "truncate", "seal",   "skip",   "free",
				     "generate", "cancel", "chunk",  "era" };

struct client {
	struct kvc *c;
	struct kvc *plenty; /* the daemon that never pages */
	struct kvc_options opt;
	struct rng r;
	struct mirror_shape m;
	struct mirror s[N_SEQS];
	char *q[N_SEQS], *k[N_SEQS], *v[N_SEQS], *o[N_SEQS];
	struct kv_attend_item *items;
	uint32_t n_done[N_KINDS];
	uint64_t budget_bytes; /* of the tenant */
	time_t end;
};

static uint32_t dice(struct client *c, uint32_t n)
{
	return rnd(&c->r, n);
}

/* ---- attention ----------------------------------------------------------- */

static void drop(struct client *c, struct mirror *s)
{
	ck_assert_int_eq(kvc_seq_free(c->c, s->seq), 0);
	mirror_free(s);
}

static void begin(struct client *c, struct mirror *s)
{
	const int seq = kvc_seq_new(c->c, c->m.handle, MIRROR_TOKENS);

	ck_assert_msg(seq > 0, "seq_new: %s", strerror(-seq));
	mirror_new(&c->m, s);
	s->seq = seq;
}

static void era_begin(struct client *c)
{
	struct mirror_shape *m = &c->m;

	ck_assert_int_eq(kvc_open(&c->c, &c->opt), 0);
	mirror_shape_pick(m, &c->r, c->budget_bytes);
	m->handle = kvc_geometry(c->c, &m->g);
	ck_assert_msg(m->handle > 0, "geometry: %s", strerror(-m->handle));
	for (int i = 0; i < N_SEQS; i++) {
		c->q[i] = kvc_alloc(c->c, MAX_STEP * m->q_row);
		c->o[i] = kvc_alloc(c->c, MAX_STEP * m->q_row);
		c->k[i] = kvc_alloc(c->c, MAX_STEP * m->kv_row);
		c->v[i] = kvc_alloc(c->c, MAX_STEP * m->kv_row);
		ck_assert_ptr_nonnull(c->v[i]);
	}
	c->items = kvc_alloc(c->c, N_SEQS * sizeof(*c->items));
	ck_assert_ptr_nonnull(c->items);
	for (int i = 0; i < 3; i++)
		begin(c, &c->s[i]);
}

/* By frees, or by leaving: the daemon frees then. */
static void era_end(struct client *c)
{
	const uint32_t tidy = dice(c, 2);

	for (int i = 0; i < N_SEQS; i++) {
		if (c->s[i].seq && tidy)
			drop(c, &c->s[i]);
		else
			mirror_free(&c->s[i]);
	}
	kvc_close(c->c);
}

/* n tokens of sequence i, in the arena; the mirror gets k and v. */
static void item(struct client *c, struct kv_attend_item *it, int i, uint32_t n,
		 uint32_t layer)
{
	struct mirror *s = &c->s[i];
	const struct mirror_shape *m = &c->m;

	mirror_fill(m, &c->r, c->q[i], n * m->q_row / m->es);
	mirror_fill(m, &c->r, c->k[i], n * m->kv_row / m->es);
	mirror_fill(m, &c->r, c->v[i], n * m->kv_row / m->es);
	*it = (struct kv_attend_item){ .seq = (uint32_t)s->seq,
				       .n_tokens = n,
				       .pos = s->n,
				       .q_off = kvc_off(c->c, c->q[i]),
				       .k_off = kvc_off(c->c, c->k[i]),
				       .v_off = kvc_off(c->c, c->v[i]),
				       .o_off = kvc_off(c->c, c->o[i]) };
	mirror_put(m, s, layer, n, c->k[i], c->v[i]);
}

static void compare(struct client *c, int i, uint32_t layer, uint32_t have,
		    uint32_t pos, uint32_t n)
{
	const struct mirror_shape *m = &c->m;
	char *want = malloc(n * m->q_row);

	mirror_attend(m, &c->s[i], layer, have, pos, n, c->q[i], want);
	ck_assert_msg(!memcmp(want, c->o[i], n * m->q_row),
		      "seq %d layer %u: %u tokens at %u of %u, head_dim %u, "
		      "type %u",
		      i, layer, n, pos, have, m->g.head_dim, m->g.type);
	free(want);
}

/* Run the items; those of no consequence without queries. */
static void run_items(struct client *c, uint32_t n, uint32_t layer, int append)
{
	int ret;

	for (uint32_t i = 0; append && i < n; i++)
		c->items[i].q_off = c->items[i].o_off = KV_NO_OFF;
	ret = append ? kvc_append(c->c, c->items, n, layer, KV_SQE_WAIT)
		     : kvc_attend(c->c, c->items, n, layer, KV_SQE_WAIT);
	for (uint32_t i = 0; i < n && ret; i++)
		printf("%s: item %u of %u: seq %u, %u tokens at %llu: %s; "
		       "%u layers in pages of %u x %u, %zu bytes a row\n",
		       append ? "append" : "attend", i, n, c->items[i].seq,
		       c->items[i].n_tokens,
		       (unsigned long long)c->items[i].pos,
		       strerror(-c->items[i].res), c->m.g.n_layers,
		       c->m.g.page_layers, c->m.g.page_tokens, c->m.kv_row);
	fflush(stdout);
	ck_assert_msg(!ret, "%s: %s", append ? "append" : "attend",
		      strerror(-ret));
}

/* All layers of a step for some sequences, as a model would. */
static void step(struct client *c)
{
	const int append = !dice(c, 6);
	uint32_t n[N_SEQS];

	for (int i = 0; i < N_SEQS; i++) {
		n[i] = dice(c, 2) ? 1 : dice(c, MAX_STEP + 1);
		if (!c->s[i].seq || n[i] > MIRROR_TOKENS - c->s[i].n ||
		    !dice(c, 3))
			n[i] = 0;
	}
	for (uint32_t l = 0; l < c->m.g.n_layers; l++) {
		uint32_t k = 0;

		for (int i = 0; i < N_SEQS; i++)
			if (n[i])
				item(c, &c->items[k++], i, n[i], l);
		if (!k)
			return;
		run_items(c, k, l, append);
		for (int i = 0; i < N_SEQS && !append; i++)
			if (n[i])
				compare(c, i, l, c->s[i].n + n[i], c->s[i].n,
					n[i]);
	}
	for (int i = 0; i < N_SEQS; i++)
		c->s[i].n += n[i];
	c->n_done[append ? N_APPEND : N_STEP]++;
}

/* Queries at any place of what is there, in any layer. */
static void ask_again(struct client *c, int i)
{
	const struct mirror *s = &c->s[i];
	const uint32_t layer = dice(c, c->m.g.n_layers);
	uint32_t pos, n;

	if (!s->n)
		return;
	pos = dice(c, s->n);
	n = s->n - pos < MAX_STEP ? s->n - pos : MAX_STEP;
	n = 1 + dice(c, n);
	mirror_fill(&c->m, &c->r, c->q[i], n * c->m.q_row / c->m.es);
	c->items[0] =
		(struct kv_attend_item){ .seq = (uint32_t)s->seq,
					 .n_tokens = n,
					 .pos = pos,
					 .q_off = kvc_off(c->c, c->q[i]),
					 .k_off = KV_NO_OFF,
					 .v_off = KV_NO_OFF,
					 .o_off = kvc_off(c->c, c->o[i]) };
	run_items(c, 1, layer, 0);
	compare(c, i, layer, s->n, pos, n);
	c->n_done[N_AGAIN]++;
}

static void fork_seq(struct client *c, struct mirror *s, struct mirror *to)
{
	if (to->seq)
		drop(c, to);
	mirror_copy(&c->m, to, s);
	to->seq = kvc_seq_fork(c->c, s->seq);
	ck_assert_msg(to->seq > 0, "fork: %s", strerror(-to->seq));
	c->n_done[N_FORK]++;
}

static void truncate_seq(struct client *c, struct mirror *s)
{
	const uint32_t n = dice(c, s->n + 1);

	ck_assert_int_eq(kvc_seq_truncate(c->c, s->seq, n), 0);
	memset(s->skip + n, 0, MIRROR_TOKENS - n);
	s->n = n;
	c->n_done[N_CUT]++;
}

static void skip_tokens(struct client *c, struct mirror *s)
{
	const uint32_t a = dice(c, s->n + 1), b = a + dice(c, s->n - a + 1);

	ck_assert_int_eq(kvc_seq_skip(c->c, s->seq, a, b), 0);
	memset(s->skip + a, 1, b - a);
	c->n_done[N_SKIP]++;
}

static void check_info(struct client *c, const struct mirror *s)
{
	struct kv_seq_info info;

	ck_assert_int_eq(kvc_seq_info(c->c, s->seq, &info), 0);
	ck_assert_uint_eq(info.n_tokens, s->n);
}

static void other(struct client *c)
{
	const int i = (int)dice(c, N_SEQS);
	struct mirror *s = &c->s[i], *to = &c->s[dice(c, N_SEQS)];

	if (!s->seq) {
		begin(c, s);
		return;
	}
	switch (dice(c, 8)) {
	case 0:
		drop(c, s);
		c->n_done[N_FREE]++;
		break;
	case 1:
		if (s != to)
			fork_seq(c, s, to);
		break;
	case 2:
		truncate_seq(c, s);
		break;
	case 3:
		ck_assert_int_eq(kvc_seq_seal(c->c, s->seq), 0);
		c->n_done[N_SEAL]++;
		break;
	case 4:
		skip_tokens(c, s);
		break;
	case 5:
	case 6:
		ask_again(c, i);
		break;
	default:
		check_info(c, s);
	}
}

/* ---- hosted model ---------------------------------------------------------- */

static struct kvc_gen *generated(struct kvc *c, const struct kvc_generate *g)
{
	struct kvc_gen *gen = NULL;
	const int ret = kvc_generate(c, g, &gen);

	ck_assert_msg(ret >= 0, "generate: %s", strerror(-ret));
	return gen;
}

static void same_generation(const struct kvc_gen *a, const struct kvc_gen *b)
{
	const struct kv_token *x, *y;
	uint32_t n, k;

	x = kvc_gen_tokens(a, &n);
	y = kvc_gen_tokens(b, &k);
	ck_assert_uint_eq(n, k);
	ck_assert_msg(!memcmp(x, y, n * sizeof(*x)), "tokens differ: %s | %s",
		      kvc_gen_text(a), kvc_gen_text(b));
	ck_assert_str_eq(kvc_gen_text(a), kvc_gen_text(b));
	n = kvc_gen_n_logits(a);
	ck_assert_uint_eq(n, kvc_gen_n_logits(b));
	ck_assert_int_eq(
		memcmp(kvc_gen_logits(a), kvc_gen_logits(b), n * sizeof(float)),
		0);
}

static struct kvc_generate any_request(struct client *c, struct kvc_part *parts)
{
	const struct rig_question *q = &questions[dice(c, N_QUESTIONS)];
	const uint32_t n = 1 + dice(c, q->n_parts);
	struct kvc_generate g = { .parts = parts,
				  .n_parts = n,
				  .flags = KV_GEN_LOGITS,
				  .n_logits = MAX_LOGITS,
				  .max_tokens = 1 + dice(c, 12),
				  .seed = dice(c, 4),
				  .priority = dice(c, 4),
				  .sqe_flags = KV_SQE_WAIT };

	for (uint32_t i = 0; i < n; i++) /* the last part is the question */
		parts[i] = q->parts[i + 1 == n ? q->n_parts - 1 : i];
	parts[0].flags |= KV_PART_BOS;
	g.flags |= dice(c, 4) ? 0 : KV_GEN_NO_REUSE;
	g.flags |= dice(c, 4) ? 0 : KV_GEN_IGNORE_EOS;
	g.temperature = dice(c, 2) ? 0 : 0.8f;
	g.top_k = dice(c, 2) ? 0 : 20;
	g.top_p = dice(c, 2) ? 0 : 0.9f;
	return g;
}

static void generate(struct client *c)
{
	struct kvc_part parts[RIG_MAX_PARTS];
	const struct kvc_generate g = any_request(c, parts);
	struct kvc_gen *a = generated(c->c, &g), *b = generated(c->plenty, &g);

	same_generation(a, b);
	kvc_generate_free(c->c, a);
	kvc_generate_free(c->plenty, b);
	c->n_done[N_GENERATE]++;
}

static void start_and_cancel(struct client *c)
{
	struct kvc_part parts[RIG_MAX_PARTS];
	struct kvc_generate g = any_request(c, parts);
	struct kvc_gen *gen;
	int ret;

	g.max_tokens = 200;
	ret = kvc_generate_start(c->c, &g, &gen);
	ck_assert_msg(!ret, "start: %s", strerror(-ret));
	usleep(dice(c, 20000));
	ck_assert_int_eq(kvc_generate_cancel(c->c, gen), 0);
	ret = kvc_generate_wait(c->c, gen, -1);
	ck_assert_msg(ret >= 0 || ret == -ECANCELED, "cancelled: %s",
		      strerror(-ret));
	kvc_generate_free(c->c, gen);
	c->n_done[N_CANCEL]++;
}

static void chunk(struct client *c)
{
	const struct kvc_part *p = &questions[dice(c, N_CHUNKS)].parts[1];
	uint64_t id[2];
	int ret;

	ret = kvc_chunk_put(c->c, NULL, p->text, strlen(p->text), id);
	ck_assert_msg(ret > 0, "chunk_put: %s", strerror(-ret));
	c->n_done[N_CHUNK]++;
	if (dice(c, 2))
		return;
	ret = kvc_chunk_rm(c->c, id); /* another client may have been first */
	ck_assert_msg(!ret || ret == -ENOENT, "chunk_rm: %s", strerror(-ret));
}

/* ---- the run --------------------------------------------------------------- */

static void any_operation(struct client *c)
{
	const uint32_t kind = dice(c, 60);

	if (kind < 4 && !c->plenty)
		return;
	if (kind < 2)
		generate(c);
	else if (kind == 2 && !dice(c, 2))
		start_and_cancel(c);
	else if (kind == 3 && !dice(c, 2))
		chunk(c);
	else if (kind & 1)
		step(c);
	else
		other(c);
}

static void run_client(struct client *c)
{
	c->opt.arena_bytes = 32u << 20;
	kern_init(KERN_ISA_AMX);
	while (time(NULL) < c->end) {
		era_begin(c);
		for (uint32_t i = 0; i < ERA_OPS && time(NULL) < c->end; i++)
			any_operation(c);
		era_end(c);
		c->n_done[N_ERA]++;
	}
	kvc_close(c->plenty);
	for (int i = 0; i < N_KINDS; i++)
		printf("%s%s %u", i ? ", " : "", kinds[i], c->n_done[i]);
	printf("\n");
	fflush(stdout);
}

static int seconds(void)
{
	const char *s = getenv("KVD_SECONDS");

	if (s)
		return atoi(s);
	return getenv("KVD_LONG") ? 600 : 60;
}

static uint64_t seed(void)
{
	const char *s = getenv("KVD_SEED");

	return s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
}

static long anon_kib(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "r");
	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %ld", &kib) == 1)
			break;
	fclose(f);
	return kib;
}

/* A sanitizer's own memory is not the daemon's. */
static int sanitized(void)
{
	const char *bin = rig_daemon_binary();

	return strstr(bin, "asan") || strstr(bin, "tsan") ||
	       strstr(bin, "ubsan");
}

static void start_clients(pid_t pids[N_CLIENTS], const char *const paths[2],
			  const char *plenty, uint64_t first_seed,
			  int n_seconds)
{
	const time_t end = time(NULL) + n_seconds;

	for (int i = 0; i < N_CLIENTS; i++) {
		pids[i] = fork();
		ck_assert_int_ge(pids[i], 0);
		if (!pids[i]) {
			struct client c = { .opt = { .socket = paths[i % 2] },
					    .r = { (first_seed + (uint64_t)i) *
						   0x9e3779b97f4a7c15u },
					    .budget_bytes = i % 2 ? 3u << 20
								  : 1u << 20,
					    .end = end };

			if (plenty)
				c.plenty = rig_join(plenty);
			run_client(&c);
			_exit(0);
		}
	}
}

/* Everything of the clients is gone; only what is reused may be left. */
static void nothing_left(const char *socket, int model)
{
	struct kvc *c = rig_join(socket);
	const char *name = kvc_tenant(c);
	uint64_t open = 1, pinned = 1;

	for (int i = 0; i < 100 && (open || pinned); i++) {
		pinned = rig_counter(c, "pages", name, "pinned_bytes");
		open = rig_counter(c, "sequences", name, "handle");
		usleep(10000);
	}
	ck_assert_uint_eq(pinned, 0);
	ck_assert_uint_eq(open, 0);
	if (model) { /* long enough for that, whatever the machine does */
		ck_assert_uint_gt(
			rig_counter(c, "pages", name, "evicted_total"), 0);
		ck_assert_uint_gt(rig_counter(c, "pages", name, "read_total"),
				  0);
	}
	ck_assert_uint_eq(rig_counter(c, "pages", name, "lost"), 0);
	if (!model) {
		ck_assert_uint_eq(rig_counter(c, "pages", name, "slot_bytes"),
				  0);
		ck_assert_uint_eq(rig_counter(c, "pages", name, "mapped_bytes"),
				  0);
	}
	kvc_close(c);
}

static void small_daemon(struct rig_daemon **d, const char *model,
			 const char *const paths[2])
{
	char conf[1024];

	snprintf(conf, sizeof(conf),
		 "%s[tenant a]\nsocket = %s\nmemory = 1M\ndisk = 192M\n"
		 "[tenant b]\nsocket = %s\nmemory = 3M\ndisk = 192M\n",
		 model, paths[0], paths[1]);
	*d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(*d);
}

/* Eight clients of a daemon with small budgets; plenty: or NULL. */
static void run(const char *model, struct rig_daemon *plenty, int n_seconds,
		long anon_max_kib)
{
	const uint64_t first = seed();
	char a[64], b[64];
	const char *const paths[2] = { a, b };
	pid_t pids[N_CLIENTS];
	struct rig_daemon *d;
	int status;

	printf("seed %llu, %d s\n", (unsigned long long)first, n_seconds);
	fflush(stdout);
	snprintf(a, sizeof(a), "/tmp/kvd-random-%d-a.sock", getpid());
	snprintf(b, sizeof(b), "/tmp/kvd-random-%d-b.sock", getpid());
	small_daemon(&d, model, paths);
	start_clients(pids, paths, plenty ? plenty->socket : NULL, first,
		      n_seconds);
	for (int i = 0; i < N_CLIENTS; i++) {
		ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
		ck_assert_msg(!status, "client %d, seed %llu: status %x", i,
			      (unsigned long long)first, status);
	}
	printf("anonymous memory of the daemon: %ld KiB\n", anon_kib(d->pid));
	ck_assert(sanitized() || anon_kib(d->pid) <= anon_max_kib);
	nothing_left(a, plenty != NULL);
	nothing_left(b, plenty != NULL);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

START_TEST(random_operations_equal_the_same_kernels_unpaged)
{
	struct rig_daemon *plenty;
	char model[600], conf[1024];

	rig_questions_load(questions, N_QUESTIONS);
	snprintf(model, sizeof(model),
		 "[model m]\npath = %s/models/rag-mini.gguf\n", rig_data_dir());
	snprintf(conf, sizeof(conf),
		 "%s[tenant p]\nuid = %u\nmemory = 1G\ndisk = 0\n", model,
		 getuid());
	plenty = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(plenty);
	run(model, plenty, seconds(), ANON_MODEL_KIB);
	ck_assert_int_eq(rig_daemon_stop(plenty), 0);
	rig_daemon_free(plenty);
	rig_questions_free(questions, N_QUESTIONS);
}
END_TEST

START_TEST(without_a_model_nothing_at_all_is_left)
{
	run("", NULL, seconds() / 10, ANON_KIB);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("random");
	TCase *t = tcase_create("random");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, seconds() * 3 + 60);
	tcase_add_test(t, random_operations_equal_the_same_kernels_unpaged);
	tcase_add_test(t, without_a_model_nothing_at_all_is_left);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
