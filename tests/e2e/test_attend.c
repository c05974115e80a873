/*
 * test_attend.c - the attention service under paging: random sequences of several
 * clients and two tenants, budgets so small that everything pages, every output
 * compared byte for byte with the same kernels run over plain memory
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "kernels/kern.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"

#define MAX_TOKENS 400u
#define N_SEQS	   6
#define MAX_STEP   70u

struct rng {
	uint64_t s;
};
static uint32_t rnd(struct rng *r, uint32_t n)
{
	r->s = r->s * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(r->s >> 33) % n;
}

/* What the daemon should hold, in plain memory: [layer][K|V][token][row]. */
struct model {
	struct kv_geometry g;
	size_t es, kv_row, q_row;
	int handle;
};
struct mirror {
	int seq; /* handle, 0: none */
	uint32_t n;
	char *kv;
	uint8_t skip[MAX_TOKENS];
};

static char *at(const struct model *m, const struct mirror *s, uint32_t layer,
		int v, uint32_t t)
{
	return s->kv +
	       (((size_t)layer * 2 + (size_t)v) * MAX_TOKENS + t) * m->kv_row;
}

static void fill(struct rng *r, enum kern_type type, char *dst, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const float f = ((float)rnd(r, 2001) - 1000) * 2e-3f;

		kern_from_f32(type, &f, dst + i * kern_type_bytes(type), 1);
	}
}

static void rotate(const struct model *m, char *rows, uint32_t n,
		   uint32_t heads, uint64_t pos)
{
	const struct kern_rope p = {
		.kind = m->g.rotary,
		.n_rot = m->g.n_rot ? m->g.n_rot : m->g.head_dim,
		.theta = m->g.theta,
		.scale = 1,
	};
	const size_t row = (size_t)heads * m->g.head_dim;
	float *f = malloc(row * sizeof(float));

	for (uint32_t i = 0; i < n && m->g.rotary; i++) {
		const int64_t at_pos = (int64_t)(pos + i);
		char *x = rows + i * row * m->es;

		kern_to_f32(m->g.type, x, f, row);
		kern_rope(&p, f, f, &at_pos, 1, heads, m->g.head_dim);
		kern_from_f32(m->g.type, f, x, row);
	}
	free(f);
}

/* The same attention over the mirror, in one page. */
static void expect(const struct model *m, const struct mirror *s,
		   uint32_t layer, uint64_t pos, uint32_t n, char *q, char *out)
{
	const struct kv_geometry *g = &m->g;
	const uint32_t pt = (MAX_TOKENS + 31) / 32 * 32;
	const size_t head = (size_t)pt * g->head_dim * m->es;
	const size_t n_q = (size_t)n * g->n_heads;
	char *k = calloc(2, head * g->n_kv_heads), *v;
	float *o = malloc(n_q * g->head_dim * 4), *ml = malloc(n_q * 8);
	int64_t *qp = malloc(n * 8);
	uint64_t skip[(MAX_TOKENS + 63) / 64] = { 0 };
	struct kern_span span;
	struct kern_attn a;

	v = k + head * g->n_kv_heads;
	for (uint32_t t = 0; t < s->n; t++) {
		for (uint32_t h = 0; h < g->n_kv_heads; h++) {
			const size_t d = g->head_dim * m->es;

			memcpy(k + h * head + t * d,
			       at(m, s, layer, 0, t) + h * d, d);
			memcpy(v + h * head + t * d,
			       at(m, s, layer, 1, t) + h * d, d);
		}
		skip[t / 64] |= (uint64_t)s->skip[t] << t % 64;
	}
	for (uint32_t i = 0; i < n; i++)
		qp[i] = (int64_t)(pos + i);
	rotate(m, q, n, g->n_heads, pos);
	span = (struct kern_span){ .k = k,
				   .v = v,
				   .head_bytes = head,
				   .page_bytes = 0,
				   .page_tokens = pt,
				   .n_tokens = s->n,
				   .skip = skip };
	a = (struct kern_attn){
		.type = g->type,
		.n_heads = g->n_heads,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.scale = 1.0f / sqrtf((float)g->head_dim),
		.q = q,
		.q_pos = qp,
		.n_rows = n,
		.spans = &span,
		.n_spans = 1,
		.o = o,
		.m = ml,
		.l = ml + n_q,
		.kv_head_to = g->n_kv_heads,
		.row_to = n,
	};
	kern_attn_clear(&a);
	ck_assert_int_eq(kern_attn(&a), 0);
	kern_attn_finish(&a);
	kern_from_f32(g->type, o, out, n_q * g->head_dim);
	free(k);
	free(o);
	free(ml);
	free(qp);
}

/* ---- one client ---------------------------------------------------------- */

struct client {
	struct kvc *c;
	struct rng r;
	struct model m;
	struct mirror s[N_SEQS];
	char *q[N_SEQS], *k[N_SEQS], *v[N_SEQS], *o[N_SEQS];
	struct kv_attend_item *items;
};

static void pick_geometry(struct client *c)
{
	static const uint32_t dims[] = { 32, 64, 72, 128 };
	struct kv_geometry *g = kvc_alloc(c->c, sizeof(*g));
	struct model *m = &c->m;

	memset(g, 0, sizeof(*g));
	g->n_layers = 1 + rnd(&c->r, 3);
	g->n_kv_heads = 1 + rnd(&c->r, 2);
	g->n_heads = g->n_kv_heads * (1 + rnd(&c->r, 3));
	g->head_dim = dims[rnd(&c->r, 4)];
	g->type = rnd(&c->r, 3);
	g->rotary = rnd(&c->r, 3);
	g->theta = 10000;
	g->page_layers = rnd(&c->r, g->n_layers + 1);
	g->page_tokens = 32 * rnd(&c->r, 3);
	m->handle = kvc_geometry(c->c, g);
	ck_assert_int_gt(m->handle, 0);
	m->g = *g;
	m->es = kern_type_bytes(g->type);
	m->kv_row = (size_t)g->n_kv_heads * g->head_dim * m->es;
	m->q_row = (size_t)g->n_heads * g->head_dim * m->es;
	kvc_free(c->c, g);
	for (int i = 0; i < N_SEQS; i++) {
		c->q[i] = kvc_alloc(c->c, MAX_STEP * m->q_row);
		c->o[i] = kvc_alloc(c->c, MAX_STEP * m->q_row);
		c->k[i] = kvc_alloc(c->c, MAX_STEP * m->kv_row);
		c->v[i] = kvc_alloc(c->c, MAX_STEP * m->kv_row);
		ck_assert_ptr_nonnull(c->v[i]);
	}
	c->items = kvc_alloc(c->c, N_SEQS * sizeof(*c->items));
	ck_assert_ptr_nonnull(c->items);
}

static void drop(struct client *c, struct mirror *s)
{
	ck_assert_int_eq(kvc_seq_free(c->c, s->seq), 0);
	free(s->kv);
	memset(s, 0, sizeof(*s));
}

static void begin(struct client *c, struct mirror *s)
{
	s->seq = kvc_seq_new(c->c, c->m.handle, MAX_TOKENS);
	ck_assert_msg(s->seq > 0, "seq_new: %s", strerror(-s->seq));
	s->kv = calloc(c->m.g.n_layers * 2 * MAX_TOKENS, c->m.kv_row);
	ck_assert_ptr_nonnull(s->kv);
}

static void item(struct client *c, struct kv_attend_item *it, int i, uint32_t n,
		 uint32_t layer)
{
	struct mirror *s = &c->s[i];
	const struct model *m = &c->m;

	fill(&c->r, m->g.type, c->q[i], n * m->q_row / m->es);
	fill(&c->r, m->g.type, c->k[i], n * m->kv_row / m->es);
	fill(&c->r, m->g.type, c->v[i], n * m->kv_row / m->es);
	memset(it, 0, sizeof(*it));
	it->seq = (uint32_t)s->seq;
	it->n_tokens = n;
	it->pos = s->n;
	it->q_off = kvc_off(c->c, c->q[i]);
	it->k_off = kvc_off(c->c, c->k[i]);
	it->v_off = kvc_off(c->c, c->v[i]);
	it->o_off = kvc_off(c->c, c->o[i]);
	memcpy(at(m, s, layer, 0, s->n), c->k[i], n * m->kv_row);
	memcpy(at(m, s, layer, 1, s->n), c->v[i], n * m->kv_row);
	rotate(m, at(m, s, layer, 0, s->n), n, m->g.n_kv_heads, s->n);
}

static void compare(struct client *c, int i, uint32_t n, uint32_t layer)
{
	const struct model *m = &c->m;
	char *want = malloc(n * m->q_row);
	struct mirror s = c->s[i];

	s.n += n;
	expect(m, &s, layer, c->s[i].n, n, c->q[i], want);
	ck_assert_msg(!memcmp(want, c->o[i], n * m->q_row),
		      "seq %d layer %u: %u + %u tokens, head_dim %u, type %u",
		      i, layer, c->s[i].n, n, m->g.head_dim, m->g.type);
	free(want);
}

/* All layers of a step for some sequences, as a model would. */
static void step(struct client *c)
{
	uint32_t n[N_SEQS];

	for (int i = 0; i < N_SEQS; i++) {
		const uint32_t room = MAX_TOKENS - c->s[i].n;

		n[i] = rnd(&c->r, 2) ? 1 : rnd(&c->r, MAX_STEP + 1);
		if (!c->s[i].seq || n[i] > room || !rnd(&c->r, 3))
			n[i] = 0;
	}
	for (uint32_t l = 0; l < c->m.g.n_layers; l++) {
		uint32_t k = 0;
		int ret;

		for (int i = 0; i < N_SEQS; i++)
			if (n[i])
				item(c, &c->items[k++], i, n[i], l);
		if (!k)
			return;
		ret = kvc_attend(c->c, c->items, k, l, KV_SQE_WAIT);
		ck_assert_msg(!ret, "attend: %s", strerror(-ret));
		for (int i = 0; i < N_SEQS; i++)
			if (n[i])
				compare(c, i, n[i], l);
	}
	for (int i = 0; i < N_SEQS; i++)
		c->s[i].n += n[i];
}

static void fork_seq(struct client *c, struct mirror *s, struct mirror *to)
{
	const size_t bytes = c->m.g.n_layers * 2 * MAX_TOKENS * c->m.kv_row;

	if (to->seq)
		drop(c, to);
	*to = *s;
	to->seq = kvc_seq_fork(c->c, s->seq);
	ck_assert_msg(to->seq > 0, "fork: %s", strerror(-to->seq));
	to->kv = malloc(bytes);
	memcpy(to->kv, s->kv, bytes);
}

static void other(struct client *c)
{
	struct mirror *s = &c->s[rnd(&c->r, N_SEQS)];
	uint32_t a, b;

	if (!s->seq) {
		begin(c, s);
		return;
	}
	switch (rnd(&c->r, 6)) {
	case 0:
		drop(c, s);
		break;
	case 1:
		a = (uint32_t)(s - c->s);
		b = rnd(&c->r, N_SEQS);
		if (a != b)
			fork_seq(c, s, &c->s[b]);
		break;
	case 2:
		a = s->n ? rnd(&c->r, s->n + 1) : 0;
		ck_assert_int_eq(kvc_seq_truncate(c->c, s->seq, a), 0);
		memset(s->skip + a, 0, MAX_TOKENS - a);
		s->n = a;
		break;
	case 3:
		ck_assert_int_eq(kvc_seq_seal(c->c, s->seq), 0);
		break;
	case 4:
		a = rnd(&c->r, s->n + 1);
		b = a + rnd(&c->r, s->n - a + 1);
		ck_assert_int_eq(kvc_seq_skip(c->c, s->seq, a, b), 0);
		memset(s->skip + a, 1, b - a);
		break;
	default:
		break;
	}
}

static void run_client(const char *socket, uint64_t seed, double seconds)
{
	const struct kvc_options opt = { .socket = socket,
					 .arena_bytes = 32u << 20 };
	struct client c = { .r = { seed } };
	const time_t end = time(NULL) + (time_t)seconds;

	kern_init(KERN_ISA_AMX);
	ck_assert_int_eq(kvc_open(&c.c, &opt), 0);
	pick_geometry(&c);
	for (int i = 0; i < 3; i++)
		begin(&c, &c.s[i]);
	for (uint32_t i = 0; i < 40 || time(NULL) < end; i++) {
		step(&c);
		other(&c);
	}
	for (int i = 0; i < N_SEQS; i++)
		if (c.s[i].seq)
			drop(&c, &c.s[i]);
	kvc_close(c.c);
}

static double seconds(void)
{
	return getenv("KVD_LONG") ? 600 : 20;
}

/* Anonymous memory of the daemon that is in use, in KiB. */
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

#define ANON_MAX_KIB (32 * 1024) /* docs/ops.md */

START_TEST(eight_clients_page_and_nothing_changes)
{
	struct rig_daemon *d;
	char conf[1024], a[128], b[128], *json;
	struct kvc_options opt = { 0 };
	pid_t pids[8];
	struct kvc *c;
	int status;

	snprintf(a, sizeof(a), "/tmp/kvd-attend-%d-a.sock", getpid());
	snprintf(b, sizeof(b), "/tmp/kvd-attend-%d-b.sock", getpid());
	snprintf(conf, sizeof(conf),
		 "[tenant a]\nsocket = %s\nmemory = 1M\ndisk = 256M\n"
		 "[tenant b]\nsocket = %s\nmemory = 3M\ndisk = 256M\n",
		 a, b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	for (uint64_t i = 0; i < 8; i++) {
		pids[i] = fork();
		ck_assert_int_ge(pids[i], 0);
		if (!pids[i]) {
			run_client(i % 2 ? b : a, 77 + i, seconds());
			_exit(0);
		}
	}
	for (int i = 0; i < 8; i++) {
		ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
		ck_assert_msg(!status, "client %d: status %x", i, status);
	}
	printf("anonymous memory of the daemon: %ld KiB\n", anon_kib(d->pid));
	ck_assert(sanitized() || anon_kib(d->pid) <= ANON_MAX_KIB);
	opt.socket = a;
	ck_assert_int_eq(kvc_open(&c, &opt), 0);
	ck_assert_int_ge(kvc_query(c, "pages", "", &json), 0);
	ck_assert_msg(!strstr(json, "\"evicted_total\":0,"), "%s", json);
	ck_assert_ptr_nonnull(strstr(json, "\"slot_bytes\":0"));
	free(json);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

START_TEST(budgets_and_bad_calls_are_refused)
{
	struct rig_daemon *d;
	char conf[256];
	struct kvc_options opt = { 0 };
	struct kv_geometry *g;
	struct kv_attend_item *it;
	struct kvc *c;
	char *buf;
	int geo, seq, ret = 0;

	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 1M\ndisk = 2M\n"
		 "sequences = 3\n",
		 getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	opt.socket = d->socket;
	ck_assert_int_eq(kvc_open(&c, &opt), 0);
	g = kvc_alloc(c, sizeof(*g));
	memset(g, 0, sizeof(*g));
	g->n_layers = 1;
	g->n_heads = g->n_kv_heads = 4;
	g->head_dim = 20;
	ck_assert_int_eq(kvc_geometry(c, g), -EINVAL);
	g->head_dim = 64;
	geo = kvc_geometry(c, g);
	ck_assert_int_gt(geo, 0);
	ck_assert_int_eq(kvc_seq_new(c, geo + 1, 0), -ENOENT);
	seq = kvc_seq_new(c, geo, 0);
	ck_assert_int_gt(seq, 0);
	ck_assert_int_gt(kvc_seq_new(c, geo, 0), 0);
	ck_assert_int_gt(kvc_seq_new(c, geo, 0), 0);
	ck_assert_int_eq(kvc_seq_new(c, geo, 0), -EDQUOT);
	ck_assert_int_eq(kvc_seq_free(c, seq + 1000000), -ENOENT);
	it = kvc_alloc(c, sizeof(*it));
	buf = kvc_alloc(c, 256 * 1024);
	memset(buf, 0, 256 * 1024);
	memset(it, 0, sizeof(*it));
	it->seq = (uint32_t)seq;
	it->n_tokens = 128;
	it->q_off = it->o_off = KV_NO_OFF;
	it->k_off = it->v_off = kvc_off(c, buf);
	ck_assert_int_eq(kvc_append(c, it, 1, 7, 0), -EINVAL);
	it->pos = 5;
	ck_assert_int_eq(kvc_append(c, it, 1, 0, 0), -EINVAL);
	for (it->pos = 0; it->pos < 4096 && !ret; it->pos += 128)
		ret = kvc_append(c, it, 1, 0, 0);
	ck_assert_int_eq(ret, -EDQUOT);
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	ck_assert_int_eq(kvc_seq_free(c, seq), -ENOENT);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("attend");
	TCase *t = tcase_create("attend");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 1200);
	tcase_add_test(t, eight_clients_page_and_nothing_changes);
	tcase_add_test(t, budgets_and_bad_calls_are_refused);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
