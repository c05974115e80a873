/*
 * demo.c - the main job, front to back, for somebody who watches
 *
 * Starts a private kvd with two tenants (a socket each, so nobody needs root), lets
 * four client processes ask a few hundred questions over recurring chunks, each
 * twice in shuffled order, with a memory budget of about a quarter of what the KV needs;
 * then the same with room for all, and compares every answer. Then the restart: the
 * daemon is killed in the middle, started again, and answers the same questions from
 * what survived on disk. At the end the ways to reuse stand side by side: nothing,
 * prefixes, chunks, and chunks of which a part is computed again. Last line: "demo: PASS" or "demo: FAIL reason".
 *
 *   usage: demo KVD MODEL QUESTIONS DIR [N_QUESTIONS]
 */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"

#define N_TENANTS   2
#define N_CLIENTS   4
#define N_IN_FLIGHT 4
#define MAX_PARTS   32
#define ANSWER_MAX  64
#define NEWLINE	    13u
enum { PAGED, ROOMY, KILLED, WARM, FULL, PREFIX, REPAIRED, VARIANTS, PASSES };

struct question {
	json_t *json;
	const char *system, *question, *answer;
	const char *chunks[MAX_PARTS];
	uint32_t n_chunks;
};

/* One asked question; shared with the clients. */
struct result {
	char text[ANSWER_MAX];
	int ret;
	uint64_t ttft_ns, n_prefix, n_chunk, n_prompt, n_out;
};
struct shared {
	uint32_t n_done;
	uint32_t n_errors;
	struct result results[];
};

struct totals {
	double seconds;
	uint64_t mapped, evicted, read, written, read_bytes, written_bytes;
	uint64_t budget_bytes, chunk_hits, prefix_hits, peak_bytes;
	uint64_t durable, restored; /* segments */
	double start_ms; /* from exec to an answer */
};

static struct question *questions;
static uint32_t n_questions, n_asked;
static uint32_t *order; /* [n_asked] question numbers, shuffled */
/* How the pass asks. */
static struct {
	uint32_t flags; /* KV_GEN_* */
	uint32_t chunk_flags; /* KV_PART_* of chunks */
	uint32_t repair, repair_permille;
} how;
static pid_t daemon_pid;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void stop_daemon(void)
{
	if (daemon_pid <= 0)
		return;
	kill(daemon_pid, SIGTERM);
	(void)waitpid(daemon_pid, NULL, 0); /* gone either way */
	daemon_pid = 0;
}

static __attribute__((noreturn)) void fail(const char *why)
{
	stop_daemon();
	printf("demo: FAIL %s\n", why);
	exit(1);
}

/* ---- questions ------------------------------------------------------------ */

static void take_question(struct question *q, json_t *j)
{
	json_t *chunks = json_object_get(j, "chunks");

	q->json = j;
	q->system = json_string_value(json_object_get(j, "system"));
	q->question = json_string_value(json_object_get(j, "question"));
	q->answer = json_string_value(json_object_get(j, "answer"));
	for (size_t i = 0; i < json_array_size(chunks) && i + 2 < MAX_PARTS;
	     i++)
		q->chunks[q->n_chunks++] =
			json_string_value(json_array_get(chunks, i));
	if (!q->system || !q->question || !q->answer)
		fail("a question lacks a field");
}

static void load_questions(const char *path, uint32_t n)
{
	FILE *f = fopen(path, "r");
	char *line = NULL;
	size_t room = 0;

	questions = calloc(n, sizeof(*questions));
	if (!f || !questions)
		fail("cannot read the questions");
	while (n_questions < n && getline(&line, &room, f) > 0) {
		json_t *j = json_loads(line, 0, NULL);

		if (!j)
			fail("a question is not JSON");
		take_question(&questions[n_questions++], j);
	}
	free(line);
	fclose(f);
}

/* Each question twice, in an order that is always the same. */
static void shuffle(void)
{
	uint64_t s = 20231;

	n_asked = 2 * n_questions;
	order = calloc(n_asked, sizeof(*order));
	if (!order)
		fail("no memory");
	for (uint32_t i = 0; i < n_asked; i++)
		order[i] = i % n_questions;
	for (uint32_t i = n_asked - 1; i; i--) {
		uint32_t k, t;

		s = s * 6364136223846793005ull + 1442695040888963407ull;
		k = (uint32_t)(s >> 33) % (i + 1);
		t = order[i];
		order[i] = order[k];
		order[k] = t;
	}
}

/* ---- one client process ------------------------------------------------------ */

struct slot {
	struct kvc_gen *gen;
	uint32_t i_asked;
};

static int start(struct kvc *c, struct slot *s, uint32_t i)
{
	static const uint32_t stop[] = { NEWLINE };
	const struct question *q = &questions[order[i]];
	struct kvc_part p[MAX_PARTS];
	struct kvc_generate g = { .parts = p,
				  .flags = how.flags,
				  .max_tokens = 16,
				  .repair = how.repair,
				  .repair_permille = how.repair_permille,
				  .stop_tokens = stop,
				  .n_stop_tokens = 1,
				  .sqe_flags = KV_SQE_WAIT };

	p[g.n_parts++] = (struct kvc_part){ .kind = KV_PART_TEXT,
					    .flags = KV_PART_BOS,
					    .text = q->system };
	for (uint32_t k = 0; k < q->n_chunks; k++)
		p[g.n_parts++] = (struct kvc_part){ .kind = KV_PART_TEXT,
						    .flags = how.chunk_flags,
						    .text = q->chunks[k] };
	p[g.n_parts++] =
		(struct kvc_part){ .kind = KV_PART_TEXT, .text = q->question };
	s->i_asked = i;
	return kvc_generate_start(c, &g, &s->gen);
}

static void strip(char *dst, const char *src)
{
	size_t n;

	while (*src == ' ')
		src++;
	n = strcspn(src, "\n");
	while (n && src[n - 1] == ' ')
		n--;
	if (n >= ANSWER_MAX)
		n = ANSWER_MAX - 1;
	memcpy(dst, src, n);
	dst[n] = 0;
}

static void finish(struct kvc *c, struct slot *s, struct shared *sh)
{
	struct result *r = &sh->results[s->i_asked];
	const struct kv_gen_stats *st;

	r->ret = kvc_generate_wait(c, s->gen, -1);
	if (r->ret < 0) {
		__atomic_fetch_add(&sh->n_errors, 1, __ATOMIC_RELAXED);
	} else {
		strip(r->text, kvc_gen_text(s->gen));
		st = kvc_gen_stats(s->gen);
		r->ttft_ns = st->ttft_ns;
		r->n_prefix = st->n_prefix;
		r->n_chunk = st->n_chunk;
		r->n_prompt = st->n_prompt;
		r->n_out = (uint64_t)r->ret;
	}
	kvc_generate_free(c, s->gen);
	s->gen = NULL;
	__atomic_fetch_add(&sh->n_done, 1, __ATOMIC_RELEASE);
}

static int client(const char *socket, uint32_t id, struct shared *sh)
{
	const struct kvc_options opt = { .socket = socket, .name = "demo" };
	struct slot slots[N_IN_FLIGHT] = { 0 };
	struct kvc *c;
	uint32_t k = 0;

	if (kvc_open(&c, &opt))
		return 1;
	for (uint32_t i = id; i < n_asked; i += N_CLIENTS) {
		struct slot *s = &slots[k++ % N_IN_FLIGHT];

		if (s->gen)
			finish(c, s, sh);
		if (start(c, s, i))
			return 1;
	}
	for (uint32_t i = 0; i < N_IN_FLIGHT; i++, k++)
		if (slots[k % N_IN_FLIGHT].gen)
			finish(c, &slots[k % N_IN_FLIGHT], sh);
	kvc_close(c);
	return 0;
}

/* ---- the daemon ------------------------------------------------------------------ */

static void write_conf(const char *dir, const char *model, uint64_t memory)
{
	char path[512];
	const char *more = getenv("KVD_DEMO_CONF"); /* of [kvd] */
	FILE *f;

	snprintf(path, sizeof(path), "%s/kvd.conf", dir);
	f = fopen(path, "w");
	if (!f)
		fail("cannot write the configuration");
	fprintf(f,
		/* the plainest policy: the others page less, and this is to
		 * show paging */
		"[kvd]\nsocket = %s/kvd.sock\nstate_dir = %s\npolicy = clock\n%s\n"
		"[model rag-mini]\npath = %s\nmath = bf16\n",
		dir, dir, more ? more : "", model);
	for (int t = 0; t < N_TENANTS; t++)
		fprintf(f,
			"[tenant demo%d]\nsocket = %s/demo%d.sock\n"
			"socket_mode = 0600\nmemory = %llu\ndisk = 1G\n",
			t, dir, t, (unsigned long long)memory);
	if (fclose(f))
		fail("cannot write the configuration");
}

static struct kvc *admin(const char *dir)
{
	char path[512];
	const struct kvc_options opt = { .socket = path };
	struct kvc *c;

	snprintf(path, sizeof(path), "%s/demo0.sock", dir);
	for (int i = 0; i < 500; i++) {
		if (!kvc_open(&c, &opt))
			return c;
		if (waitpid(daemon_pid, NULL, WNOHANG) == daemon_pid) {
			daemon_pid = 0;
			fail("kvd did not start; its log is in the demo's "
			     "folder");
		}
		usleep(20000);
	}
	fail("kvd does not answer");
}

static void start_daemon(const char *kvd, const char *dir)
{
	char conf[512], log[512];

	snprintf(conf, sizeof(conf), "%s/kvd.conf", dir);
	snprintf(log, sizeof(log), "%s/kvd.log", dir);
	daemon_pid = fork();
	if (daemon_pid < 0)
		fail("fork");
	if (daemon_pid)
		return;
	if (!freopen(log, "a", stderr))
		_exit(1);
	execl(kvd, kvd, "-c", conf, (char *)NULL);
	_exit(1);
}

static uint64_t get(json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

/* Sum of all tenants' counters; our uid administers our own daemon. */
static void read_totals(struct kvc *c, struct totals *t)
{
	char *text;
	json_t *list, *o;
	size_t i;

	if (kvc_query(c, "pages", "", &text) < 0)
		fail("kvd does not tell of its pages");
	list = json_loads(text, 0, NULL);
	free(text);
	const double start_ms = t->start_ms;

	memset(&t->mapped, 0, sizeof(*t) - offsetof(struct totals, mapped));
	t->start_ms = start_ms;
	json_array_foreach(list, i, o)
	{
		t->mapped += get(o, "mapped_total");
		t->evicted += get(o, "evicted_total");
		t->read += get(o, "read_total");
		t->written += get(o, "written_total");
		t->read_bytes += get(o, "read_bytes_total");
		t->written_bytes += get(o, "written_bytes_total");
		t->budget_bytes += get(o, "memory_bytes");
		t->peak_bytes += get(o, "mapped_bytes");
	}
	json_decref(list);
	if (kvc_query(c, "tenants", "", &text) < 0)
		return;
	list = json_loads(text, 0, NULL);
	free(text);
	json_array_foreach(list, i, o)
	{
		t->chunk_hits += get(o, "chunk_hits");
		t->prefix_hits += get(o, "prefix_hits");
		t->durable += get(o, "durable_segments");
		t->restored += get(o, "restored_segments");
	}
	json_decref(list);
}

/* ---- a pass ----------------------------------------------------------------------- */

static void show_progress(const struct shared *sh, uint64_t start_ns)
{
	static uint32_t shown;
	const uint32_t n = __atomic_load_n(&sh->n_done, __ATOMIC_ACQUIRE);
	const double s = (double)(now_ns() - start_ns) * 1e-9;

	if (n < shown)
		shown = 0;
	for (uint32_t i = shown; i < n_asked && i < shown + 1; i++)
		if (sh->results[i].text[0])
			printf("  %s -> %s\n",
			       questions[order[i]].question +
				       strlen("Question: "),
			       sh->results[i].text);
	shown = n;
	printf("  %u of %u answered, %.1f s\n", n, n_asked, s);
	fflush(stdout);
}

/* kill_at: this many answers and the daemon is killed; 0: never. */
static void wait_clients(pid_t *pids, struct shared *sh, uint64_t start_ns,
			 uint32_t kill_at)
{
	uint64_t next = start_ns + 2000000000u;
	int left = N_CLIENTS, status;

	while (left) {
		const pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid > 0 && pid == daemon_pid) {
			daemon_pid = 0;
			fail("kvd died; its log is in the demo's folder");
		}
		for (int i = 0; i < N_CLIENTS && pid > 0; i++)
			if (pids[i] == pid) {
				left--;
				if (status && !kill_at)
					fail("a client failed");
			}
		if (kill_at && daemon_pid &&
		    __atomic_load_n(&sh->n_done, __ATOMIC_ACQUIRE) >= kill_at) {
			kill(daemon_pid, SIGKILL);
			(void)waitpid(daemon_pid, NULL, 0);
			daemon_pid = 0;
		}
		if (pid <= 0)
			usleep(kill_at ? 1000 : 10000);
		if (now_ns() > next) {
			show_progress(sh, start_ns);
			next += 2000000000u;
		}
	}
}

static void start_clients(const char *dir, struct shared *sh, pid_t *pids)
{
	for (uint32_t i = 0; i < N_CLIENTS; i++) {
		fflush(stdout);
		pids[i] = fork();
		if (pids[i] < 0)
			fail("fork");
		if (!pids[i]) {
			char path[512];

			snprintf(path, sizeof(path), "%s/demo%u.sock", dir,
				 i % N_TENANTS);
			_exit(client(path, i, sh));
		}
	}
}

struct pass {
	const char *kvd, *dir, *model;
	uint64_t memory;
	int keep_store; /* of the pass before */
	uint32_t kill_at;
};

static void run_pass(const struct pass *p, struct shared *sh, struct totals *t)
{
	pid_t pids[N_CLIENTS];
	uint64_t start_ns;
	char path[512];
	struct kvc *c;

	snprintf(path, sizeof(path), "%s/kvd.store", p->dir);
	if (!p->keep_store)
		(void)unlink(path); /* it may be the first time */
	write_conf(p->dir, p->model, p->memory);
	start_ns = now_ns();
	start_daemon(p->kvd, p->dir);
	c = admin(p->dir);
	t->start_ms = (double)(now_ns() - start_ns) * 1e-6;
	start_ns = now_ns();
	start_clients(p->dir, sh, pids);
	wait_clients(pids, sh, start_ns, p->kill_at);
	t->seconds = (double)(now_ns() - start_ns) * 1e-9;
	if (!p->kill_at)
		read_totals(c, t);
	kvc_close(c);
	stop_daemon();
}

/* ---- the table ------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void row(const char *name, const char *unit, double a, double b)
{
	printf("  %-28s %14.6g %14.6g  %s\n", name, a, b, unit);
}

struct summary {
	double exact, tokens_per_s, p50_ms, p99_ms;
	double prefix_requests, prefix_tokens, chunk_tokens;
};

static void sum_up(const struct shared *sh, double seconds, struct summary *s)
{
	uint64_t *ttft = calloc(n_asked, sizeof(*ttft)), tokens = 0;

	memset(s, 0, sizeof(*s));
	for (uint32_t i = 0; i < n_asked && ttft; i++) {
		const struct result *r = &sh->results[i];

		ttft[i] = r->ttft_ns;
		tokens += r->n_prompt + r->n_out;
		s->exact += !strcmp(r->text, questions[order[i]].answer);
		s->prefix_requests += r->n_prefix > 0;
		s->prefix_tokens += (double)r->n_prefix;
		s->chunk_tokens += (double)r->n_chunk;
	}
	if (ttft)
		qsort(ttft, n_asked, sizeof(*ttft), by_value);
	s->exact *= 100.0 / n_asked;
	s->tokens_per_s = (double)tokens / seconds;
	s->p50_ms = ttft ? (double)ttft[n_asked / 2] * 1e-6 : 0;
	s->p99_ms = ttft ? (double)ttft[n_asked * 99 / 100] * 1e-6 : 0;
	free(ttft);
}

static void table(struct shared *const sh[PASSES], const struct totals *t)
{
	struct summary a, b;

	sum_up(sh[PAGED], t[PAGED].seconds, &a);
	sum_up(sh[ROOMY], t[ROOMY].seconds, &b);
	printf("\n  %-28s %14s %14s\n", "", "paged", "all in memory");
	row("questions", "", n_asked, n_asked);
	row("exact match", "%", a.exact, b.exact);
	row("time", "s", t[0].seconds, t[1].seconds);
	row("tokens/s", "prompt and answer", a.tokens_per_s, b.tokens_per_s);
	row("first token p50", "ms", a.p50_ms, b.p50_ms);
	row("first token p99", "ms", a.p99_ms, b.p99_ms);
	row("memory budget", "MB", (double)t[0].budget_bytes * 1e-6,
	    (double)t[1].budget_bytes * 1e-6);
	row("pages mapped", "", (double)t[0].mapped, (double)t[1].mapped);
	row("pages evicted", "", (double)t[0].evicted, (double)t[1].evicted);
	row("pages read back", "", (double)t[0].read, (double)t[1].read);
	row("bytes written", "MB", (double)t[0].written_bytes * 1e-6,
	    (double)t[1].written_bytes * 1e-6);
	row("bytes read", "MB", (double)t[0].read_bytes * 1e-6,
	    (double)t[1].read_bytes * 1e-6);
	row("prefix hits", "requests", (double)t[0].prefix_hits,
	    (double)t[1].prefix_hits);
	row("prefix hits", "tokens", a.prefix_tokens, b.prefix_tokens);
	row("chunk hits", "chunks", (double)t[0].chunk_hits,
	    (double)t[1].chunk_hits);
	row("chunk hits", "tokens", a.chunk_tokens, b.chunk_tokens);
	printf("  KV of the whole job: %.1f MB, the paged budget is %.0f %% of "
	       "it\n\n",
	       (double)t[1].peak_bytes * 1e-6,
	       100.0 * (double)t[0].budget_bytes / (double)t[1].peak_bytes);
}

/* Of a hundred prompt tokens, so many were found in the cache. */
static double hit_rate(const struct shared *sh)
{
	double found = 0, all = 0;

	for (uint32_t i = 0; i < n_asked; i++) {
		const struct result *r = &sh->results[i];

		found += (double)(r->n_prefix + r->n_chunk);
		all += (double)r->n_prompt;
	}
	return all > 0 ? 100.0 * found / all : 0;
}

static void restart_table(struct shared *const sh[PASSES],
			  const struct totals *t)
{
	struct summary w;

	sum_up(sh[WARM], t[WARM].seconds, &w);
	printf("  killed (-9) after %u answers; started again in %.0f ms with "
	       "%llu segments from disk\n"
	       "  tokens found in the cache: %.1f %% from an empty disk, "
	       "%.1f %% after the restart\n"
	       "  exact match %.4g %%, first token p50 %.3g ms, %llu pages "
	       "read\n\n",
	       n_asked / 2, t[WARM].start_ms,
	       (unsigned long long)t[WARM].restored, hit_rate(sh[PAGED]),
	       hit_rate(sh[WARM]), w.exact, w.p50_ms,
	       (unsigned long long)t[WARM].read);
}

static void reuse_table(struct shared *const sh[PASSES], const struct totals *t)
{
	static const struct {
		int pass;
		const char *name;
	} rows[] = { { FULL, "nothing reused" },
		     { PREFIX, "prefixes" },
		     { ROOMY, "prefixes and chunks" },
		     { REPAIRED, "and 15 % of them repaired" },
		     { VARIANTS, "or variants of chunks" } };

	printf("  %-28s %12s %16s %12s\n", "reuse, all in memory",
	       "exact match", "first token p50", "tokens/s");
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct summary s;

		sum_up(sh[rows[i].pass], t[rows[i].pass].seconds, &s);
		printf("  %-28s %10.4g %% %13.3g ms %12.5g\n", rows[i].name,
		       s.exact, s.p50_ms, s.tokens_per_s);
	}
	printf("\n");
}

static void compare(const struct shared *a, const struct shared *b,
		    const char *name_a, const char *name_b)
{
	char why[200];

	for (uint32_t i = 0; i < n_asked; i++)
		if (strcmp(a->results[i].text, b->results[i].text)) {
			snprintf(why, sizeof(why),
				 "question %u: %s says '%s', %s '%s'", order[i],
				 name_a, a->results[i].text, name_b,
				 b->results[i].text);
			fail(why);
		}
}

static void judge(struct shared *const sh[PASSES], const struct totals *t)
{
	for (int i = 0; i < PASSES; i++)
		if (i != KILLED && sh[i]->n_errors)
			fail("requests failed");
	compare(sh[PAGED], sh[ROOMY], "paged", "unpaged");
	compare(sh[PAGED], sh[WARM], "paged", "restarted");
	if (!t[0].evicted)
		fail("nothing was evicted");
	if (t[1].evicted)
		fail("the second pass was to need no paging");
	if (!t[0].prefix_hits || !t[0].chunk_hits)
		fail("nothing was reused");
	if (2 * t[0].read < t[0].evicted)
		fail("less than half of what was evicted came back");
	if (!t[WARM].restored)
		fail("nothing survived the kill");
	if (hit_rate(sh[WARM]) <= hit_rate(sh[PAGED]))
		fail("what survived was not used");
}

static struct shared *new_shared(void)
{
	const size_t n =
		sizeof(struct shared) + n_asked * sizeof(struct result);
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fail("no memory");
	return p;
}

int main(int argc, char **argv)
{
	static const char *const titles[PASSES] = {
		[PAGED] = "with a budget of %.1f MB a tenant:\n",
		[ROOMY] = "again, with room for everything:\n",
		[KILLED] = "from an empty disk, and killed in the middle:\n",
		[WARM] = "started again, the same questions:\n",
		[FULL] = "nothing reused, for comparison:\n",
		[PREFIX] = "only prefixes reused:\n",
		[REPAIRED] = "chunks reused, 15 %% of their tokens repaired:\n",
		[VARIANTS] =
			"chunks reused with the company they had, 15 %% of others "
			"repaired:\n",
	};
	struct shared *sh[PASSES];
	struct totals t[PASSES] = { 0 };
	struct pass p;
	uint64_t paged;

	if (argc < 5) {
		fprintf(stderr,
			"usage: demo KVD MODEL QUESTIONS DIR [N [MB]]\n");
		return 2;
	}
	load_questions(argv[3], argc > 5 ? (uint32_t)atoi(argv[5]) : 300);
	shuffle();
	/* a question leaves about 0.36 MB of KV with a tenant; a quarter of it */
	paged = argc > 6 ? (uint64_t)atoi(argv[6]) << 20
			 : (uint64_t)n_questions * 82 << 10;
	(void)mkdir(argv[4], 0700); /* there from the last time */
	printf("kvd: %u questions, each twice, by %d processes of %d "
	       "tenants\n",
	       n_questions, N_CLIENTS, N_TENANTS);
	p = (struct pass){ argv[1], argv[4], argv[2], 0, 0, 0 };
	for (int i = 0; i < PASSES; i++) {
		sh[i] = new_shared();
		printf(titles[i], (double)paged * 1e-6);
		p.memory = i == ROOMY || i >= FULL ? 1ull << 30 : paged;
		how.flags = i == FULL ? KV_GEN_NO_REUSE : 0;
		how.chunk_flags = i == FULL || i == PREFIX ? 0 : KV_PART_REUSE;
		how.repair = i == REPAIRED   ? KV_REPAIR_BLEND
			     : i == VARIANTS ? KV_REPAIR_CRAFT
					     : KV_REPAIR_NONE;
		how.repair_permille = how.repair ? 150 : 0;
		p.kill_at = i == KILLED ? n_asked / 2 : 0;
		p.keep_store = i == WARM;
		run_pass(&p, sh[i], &t[i]);
	}
	table(sh, t);
	restart_table(sh, t);
	reuse_table(sh, t);
	judge(sh, t);
	printf("demo: PASS\n");
	return 0;
}
