/*
 * test_any_end.c - sessions of two tenants that share do anything at random, and end in the
 * middle of it, while the disk fails and its bytes go bad
 *
 * All invariants are walked after each turn. Each request ends; what an answer says does not
 * depend on what happened; at the end nothing is held. The same with all KV on a device, of which
 * clients map pages while calls of the driver fail, until it is lost. KVD_SEED=n repeats the
 * operations, KVD_LONG=1 does twenty times as many.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "io/fault.h"
#include "kernels/kern.h"
#include "kvd/base/clock.h"
#include "kvd/mem/stores.h"
#include "kvd/serve/tenant.h"
#include "libkvclient/kv_abi.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_serve.h"

#define N_SESSIONS 5u /* 3 of t0, 2 of t1 */
#define N_PROMPTS  12u
#define N_CHUNKS   4u
#define CHUNK	   (on_device ? 40u : 130u)
#define N_CALLS	   24u /* in flight at most */
#define N_SEQS	   6u /* of a session */
#define N_ENTRIES  32u
#define N_FDS	   8u
#define N_EXPORTS  8u /* remembered, of a session */
#define ROW	   64u
#define MAX_ROWS   (on_device ? 60u : 300u)
#define FIRST_BAD  (8l << 20) /* of the store's file: behind its index */
#define PATIENCE   300000000000ull
#define CARD	   (256ull << 20)
#define FRAME	   65536u
#ifdef __SANITIZE_THREAD__
#define DEVICE_ROUNDS 150u /* threads of blocks are slow there */
#else
#define DEVICE_ROUNDS 1000u
#endif

static uint64_t seed;
static int on_device, is_lost;
static struct fake_ctl fake;

static uint32_t dice(uint32_t n)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((seed >> 33) % n);
}

/* ---- what is asked ----------------------------------------------------------- */

struct prompt {
	uint32_t *tokens, n; /* behind the chunks */
	uint32_t chunks[2], n_chunks;
	uint32_t repair, permille, flags;
	int is_open; /* the answer depends on which variants there are */
	uint32_t out[64]; /* the answer, once known */
	uint32_t n_out;
};
static struct prompt prompts[N_PROMPTS];
static uint32_t *chunks[N_CHUNKS];

/* Families of three that begin alike. */
static void make_prompts(void)
{
	for (uint32_t i = 0; i < N_CHUNKS; i++)
		chunks[i] = rig_ids(CHUNK, 900 + i);
	for (uint32_t i = 0; i < N_PROMPTS; i++) {
		struct prompt *p = &prompts[i];
		const uint32_t step = on_device ? 30 : 170;
		uint32_t *head = rig_ids(1000, i / 3),
			 n = step / 2 + step * (i % 3);

		p->n = n + (on_device ? 8 + i : 20 + 7 * i);
		p->tokens = rig_ids(p->n, 100 + i);
		memcpy(p->tokens, head, n * sizeof(*head));
		free(head);
		p->n_chunks = i % 4 == 1 ? 2 : i % 4 == 3 ? 1 : 0;
		p->chunks[0] = i % N_CHUNKS;
		p->chunks[1] = (i + 1) % N_CHUNKS;
		p->repair = i % 8 == 1 ? KV_REPAIR_BLEND : 0;
		p->permille = p->repair ? 200 : 0;
		if (i % 6 == 5) {
			p->n_chunks = 2;
			p->repair = KV_REPAIR_CRAFT;
			p->permille = 300;
			p->flags = i > 6 ? SERVE_GEN_FOCUS : 0;
			p->is_open = 1;
		}
	}
}

struct call {
	enum { FREE, GEN, ATTEND, PERSIST, PUT, EXPORT, PAGES } kind;
	struct rig_gen *g; /* of GEN */
	struct prompt *p;
	struct serve_attend attend;
	struct serve_attend_item items[2];
	struct serve_persist persist;
	struct serve_chunk_put put;
	struct serve_export export;
	struct serve_export_entry entries[N_ENTRIES];
	struct serve_export_pages pages;
	int fds[N_FDS];
	struct member *of;
	int told, ret, cancelled;
	uint64_t since_ns;
};

struct member {
	struct serve_tenant *t;
	struct serve_session *ss;
	int geometry, seq[N_SEQS];
	uint32_t exports[N_EXPORTS];
	struct wait closed;
	int leaving, left;
};

static struct rig_serve *r;
static struct member members[N_SESSIONS];
static struct call calls[N_CALLS];
static float *x, *o;
static uint32_t n_ended[8], n_failed[200], n_answers;

static void told(struct call *c, int ret)
{
	ck_assert(!c->told);
	c->ret = ret;
	c->told = 1;
}

static void attend_told(struct wait *w, int ret)
{
	told(container_of(container_of(w, struct serve_attend, wait),
			  struct call, attend),
	     ret);
}

static void persist_told(struct wait *w, int ret)
{
	told(container_of(container_of(w, struct serve_persist, wait),
			  struct call, persist),
	     ret);
}

static void put_told(struct wait *w, int ret)
{
	told(container_of(container_of(w, struct serve_chunk_put, wait),
			  struct call, put),
	     ret);
}

static void export_told(struct wait *w, int ret)
{
	struct call *c =
		container_of(container_of(w, struct serve_export, wait),
			     struct call, export);

	for (uint32_t i = 0; !ret && i < c->export.n_entries; i++)
		c->of->exports[dice(N_EXPORTS)] = c->entries[i].id;
	told(c, ret);
}

static void pages_told(struct wait *w, int ret)
{
	struct call *c =
		container_of(container_of(w, struct serve_export_pages, wait),
			     struct call, pages);

	for (uint32_t i = 0; !ret && i < c->pages.n_fds; i++)
		ck_assert_int_eq(close(c->fds[i]), 0);
	told(c, ret);
}

static void closed(struct wait *w, int ret)
{
	(void)ret; /* there is no failure */
	container_of(w, struct member, closed)->left = 1;
}

static void join(struct member *m)
{
	m->leaving = m->left = 0;
	ck_assert_int_eq(serve_session_open(m->t, &m->ss), 0);
	m->geometry = serve_geometry(
		m->ss, &(struct serve_geometry){ .n_layers = 2,
						 .n_heads = 2,
						 .n_kv_heads = 1,
						 .head_dim = ROW,
						 .type = KERN_F32,
						 .page_layers = 1 });
	ck_assert_int_gt(m->geometry, 0);
	memset(m->seq, 0, sizeof(m->seq));
	memset(m->exports, 0, sizeof(m->exports));
}

/* ---- ends ------------------------------------------------------------------------ */

/* What may become of a request, whatever goes wrong. */
static void look_at_error(const struct call *c, int ret)
{
	const int bad = ret == -EBADMSG || ret == -EIO;
	const int full = ret == -EDQUOT || ret == -ENOSPC;
	const int gone = ret == -ECANCELED && (c->cancelled || c->of->leaving);

	/* of a driver that failed */
	const int of_device = on_device && (ret == -ENOMEM || ret == -EAGAIN ||
					    (ret == -ENODEV && is_lost));

	ck_assert_msg(bad || full || gone || of_device || ret == -EINVAL ||
			      ret == -ENOENT || ret == -EBUSY,
		      "kind %d: %s", (int)c->kind, strerror(-ret));
	ck_assert_msg(c->kind != GEN || ret != -EINVAL, "gen");
	n_failed[-ret]++;
}

static void look_at_answer(struct call *c)
{
	const struct rig_gen *g = c->g;
	struct prompt *p = c->p;

	if (c->ret < 0)
		look_at_error(c, c->ret);
	n_answers += c->ret >= 0;
	if (c->ret < 0 && c->ret != -ECANCELED)
		return;
	for (uint32_t i = 0; i < g->n_out && !p->is_open; i++) {
		if (i >= p->n_out)
			p->out[p->n_out++] = g->tokens[i].id;
		ck_assert_msg(p->out[i] == g->tokens[i].id,
			      "prompt %d, token %u of %u", (int)(p - prompts),
			      i, g->n_out);
	}
}

static void reap(struct call *c)
{
	if (c->kind == GEN) {
		if (!c->g->told)
			return;
		c->ret = c->g->ret;
		look_at_answer(c);
		free(c->g);
	} else if (!c->told) {
		return;
	} else if (c->ret < 0) {
		look_at_error(c, c->ret);
	}
	n_ended[c->kind]++;
	memset(c, 0, sizeof(*c));
}

/* Who waits for room of others does so as long as they like. */
static int may_last(const struct call *c)
{
	return !c->kind || (c->kind == ATTEND && c->attend.may_wait);
}

static void turn(void)
{
	rig_serve_turn(r);
	for (uint32_t i = 0; i < N_CALLS; i++) {
		if (calls[i].kind)
			reap(&calls[i]);
		ck_assert_msg(may_last(&calls[i]) ||
				      clock_ns() - calls[i].since_ns < PATIENCE,
			      "kind %d hangs", (int)calls[i].kind);
	}
	for (uint32_t i = 0; i < N_SESSIONS; i++)
		if (members[i].left)
			join(&members[i]);
}

/* ---- begins ----------------------------------------------------------------------- */

static struct call *free_call(struct member *m)
{
	for (uint32_t i = 0; i < N_CALLS; i++)
		if (!calls[i].kind) {
			calls[i] = (struct call){ .of = m,
						  .since_ns = clock_ns() };
			return &calls[i];
		}
	return NULL;
}

static void generate(struct member *m)
{
	struct call *c = free_call(m);
	struct rig_gen *g;
	int ret;

	if (!c)
		return;
	c->p = &prompts[dice(N_PROMPTS)];
	g = c->g = rig_gen_new();
	for (uint32_t i = 0; i < c->p->n_chunks; i++)
		rig_gen_part(g, chunks[c->p->chunks[i]], CHUNK,
			     SERVE_PART_REUSE);
	rig_gen_part(g, c->p->tokens, c->p->n, 0);
	g->gen.repair = c->p->repair;
	g->gen.repair_permille = c->p->permille;
	g->gen.max_tokens = 1 + dice(dice(3) ? 4 : 40);
	g->gen.priority = dice(4);
	g->gen.deadline_ms = dice(3) ? 0 : 1 + dice(50);
	g->gen.flags |= dice(6) ? 0 : SERVE_GEN_NO_REUSE;
	if (c->p->n_chunks)
		g->gen.flags &= ~SERVE_GEN_NO_REUSE;
	g->gen.flags |= c->p->flags;
	g->gen.may_wait = 1;
	ret = rig_gen_start(g, m->ss);
	ck_assert_msg(!ret, "generate: %s", strerror(-ret));
	c->kind = GEN;
}

static int *any_seq(struct member *m)
{
	return &m->seq[dice(N_SEQS)];
}

static void attend(struct member *m)
{
	struct call *c = free_call(m);
	const uint32_t n_items = 1 + dice(2), layer = dice(2);

	if (!c)
		return;
	c->attend = (struct serve_attend){ .wait.done = attend_told,
					   .layer = layer,
					   .items = c->items,
					   .append_only = !dice(2),
					   .may_wait = !dice(2) };
	for (uint32_t i = 0; i < n_items; i++) {
		int *seq = any_seq(m);
		struct session_seq *s;

		if (!*seq)
			*seq = serve_seq_new(m->ss, (uint32_t)m->geometry, 0);
		s = *seq > 0 ? session_seq_find(m->ss, (uint32_t)*seq) : NULL;
		if (!s) {
			*seq = 0;
			continue;
		}
		c->items[c->attend.n_items++] = (struct serve_attend_item){
			.seq = (uint32_t)*seq,
			.n_tokens = 1 + dice(dice(2) ? 8 : MAX_ROWS),
			.pos = s->layer_tokens[layer],
			.q = c->attend.append_only ? NULL : x,
			.k = x,
			.v = x,
			.o = c->attend.append_only ? NULL : o,
		};
	}
	if (c->attend.n_items && !serve_attend(m->ss, &c->attend))
		c->kind = ATTEND;
}

static void change(struct member *m)
{
	int *seq = any_seq(m), *to = any_seq(m), ret = 0;
	struct serve_seq_info info = { 0 };
	const uint32_t s = (uint32_t)*seq;

	if (!*seq || serve_seq_info(m->ss, s, &info))
		return;
	switch (dice(6)) {
	case 0:
		ret = serve_seq_free(m->ss, s);
		*seq = ret ? *seq : 0;
		break;
	case 1:
		if (*to)
			break;
		ret = serve_seq_fork(m->ss, s);
		*to = ret > 0 ? ret : 0;
		break;
	case 2:
		ret = serve_seq_truncate(m->ss, s,
					 dice((uint32_t)info.n_tokens + 1));
		break;
	case 3:
		ret = serve_seq_seal(m->ss, s);
		break;
	case 4:
		ret = serve_seq_skip(m->ss, s, info.n_tokens / 3,
				     info.n_tokens / 2);
		break;
	default:
		ret = serve_seq_edit(m->ss, s, info.n_tokens / 4,
				     info.n_tokens / 4, dice(60));
	}
	ck_assert_msg(ret >= 0 || ret == -EBUSY || ret == -EDQUOT ||
			      ret == -EINVAL || ret == -ENOSPC,
		      "change: %s", strerror(-ret));
}

static void persist(struct member *m)
{
	struct call *c = free_call(m);

	if (!c)
		return;
	c->persist.wait.done = persist_told;
	if (!serve_persist(m->ss, &c->persist))
		c->kind = PERSIST;
}

static void put_or_rm(struct member *m)
{
	struct call *c = free_call(m);
	const uint32_t *t = chunks[dice(N_CHUNKS)];

	if (!c)
		return;
	if (!dice(3)) {
		const struct map_id id =
			chunk_id(r->serve->models[0].id, t, CHUNK);

		(void)serve_chunk_rm(m->ss, id.w);
		return;
	}
	c->put = (struct serve_chunk_put){ .wait.done = put_told,
					   .model = "",
					   .part = { .kind = SERVE_PART_TOKENS,
						     .tokens = t,
						     .n_tokens = CHUNK } };
	if (!serve_chunk_put(m->ss, &c->put))
		c->kind = PUT;
}

static void export(struct member *m)
{
	struct call *c = free_call(m);

	if (!c)
		return;
	c->export = (struct serve_export){ .wait.done = export_told,
					   .seq = (uint32_t)*any_seq(m),
					   .with_tail = !dice(3),
					   .entries = c->entries,
					   .n_room = N_ENTRIES };
	if (!serve_export(m->ss, &c->export))
		c->kind = EXPORT;
}

static void export_more(struct member *m)
{
	uint32_t *id = &m->exports[dice(N_EXPORTS)];
	struct call *c = free_call(m);

	if (!*id || !c)
		return;
	if (dice(2)) {
		const int ret = serve_unexport(m->ss, *id);

		ck_assert(!ret || ret == -EBUSY || ret == -ENOENT);
		return;
	}
	c->pages = (struct serve_export_pages){ .wait.done = pages_told,
						.id = *id,
						.first = dice(2),
						.n = 1 + dice(2),
						.fds = c->fds,
						.n_fds_room = N_FDS };
	if (!serve_export_pages(m->ss, &c->pages))
		c->kind = PAGES;
}

static void cancel(void)
{
	struct call *c = &calls[dice(N_CALLS)];

	c->cancelled = 1;
	if (c->kind == GEN)
		serve_cancel(c->of->ss, &c->g->gen);
	else if (c->kind == ATTEND)
		serve_attend_cancel(c->of->ss, &c->attend);
	else if (c->kind == PUT)
		serve_chunk_put_cancel(c->of->ss, &c->put);
	else
		c->cancelled = 0;
}

static void leave(struct member *m)
{
	m->leaving = 1;
	m->closed.done = closed;
	serve_session_close(m->ss, &m->closed);
}

/* A call of the driver fails once, or others have some of the card for a while. */
static void harm_device(void)
{
	static const char *const calls_of[] = {
		"cuMemCreate",	       "cuMemMap",
		"cuMemSetAccess",      "cuMemcpyHtoD",
		"cuMemcpyDtoH",	       "cuLaunchKernel",
		"cuMemAlloc",	       "cuMemHostAlloc",
		"cuEventRecord",       "cuMemExport",
		"cuMemRelease",	       "cuMemsetD8Async",
		"cuStreamBegin",       "cuGraphInstantiate",
		"cuGraphLaunch",       "cuEventSynchronize",
		"cuStreamSynchronize", "cuMemUnmap",
		"cuEventQuery",	       "cuEventCreate",
	};
	struct fake_stats st;

	if (dice(4))
		fake.arm(FAKE_ONCE, calls_of[dice(KV_ARRAY_LEN(calls_of))],
			 1 + dice(6),
			 dice(2) ? CUDA_OUT_OF_MEMORY : CUDA_OPERATING_SYSTEM);
	else if (dice(2))
		fake.others(0);
	else {
		fake.stats(&st);
		fake.others(CARD - st.used_bytes - dice(4) * FRAME);
	}
}

/* The disk: an error that passes, one that does not, a page of junk. */
static void harm(void)
{
	static const char junk[4096] = "junk";
	char path[128];
	FILE *f;
	long end;

	if (on_device && dice(2)) {
		harm_device();
		return;
	}
	if (dice(2)) {
		kio_fault_arm(KIO_FAULT_ONCE,
			      dice(2) ? "uring.read" : "uring.write",
			      1 + dice(4), EIO);
		return;
	}
	snprintf(path, sizeof(path), "%s/kvd.store", r->dir);
	f = fopen(path, "r+");
	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
	end = ftell(f) / 4096;
	if (end > FIRST_BAD / 4096) {
		const long at = FIRST_BAD / 4096 +
				(long)dice((uint32_t)(end - FIRST_BAD / 4096));

		ck_assert_int_eq(fseek(f, at * 4096, SEEK_SET), 0);
		ck_assert_uint_eq(fwrite(junk, sizeof(junk), 1, f), 1);
	}
	ck_assert_int_eq(fclose(f), 0);
}

static void any_operation(void)
{
	struct member *m = &members[dice(N_SESSIONS)];

	if (m->leaving)
		return;
	switch (dice(40)) {
	case 0:
		if (!dice(4))
			leave(m);
		return;
	case 1:
		cancel();
		return;
	case 2:
	case 3:
	case 4:
	case 5:
		if (!getenv("KVD_NO_HARM"))
			harm();
		return;
	case 6:
		persist(m);
		return;
	case 7:
	case 8:
		put_or_rm(m);
		return;
	case 9:
	case 10:
	case 11:
		if (on_device)
			export(m);
		return;
	case 12:
	case 13:
	case 14:
		if (on_device)
			export_more(m);
		return;
	default:
		break;
	}
	if (dice(3))
		generate(m);
	else if (dice(3))
		attend(m);
	else
		change(m);
}

/* ---- the run ------------------------------------------------------------------------ */

static int n_busy(void)
{
	int n = 0;

	for (uint32_t i = 0; i < N_CALLS; i++)
		n += calls[i].kind != FREE;
	for (uint32_t i = 0; i < N_SESSIONS; i++)
		n += members[i].leaving;
	return n;
}

static void nothing_is_held(void)
{
	for (uint32_t i = 0; i < 2; i++) {
		struct serve_tenant *t = r->serve->tenants[i];
		struct pager_info info;

		for (int k = 0; k < 5000; k++) {
			rig_serve_turn(r);
			pager_info(t->pager, &info);
			/* statistics are looked at behind the answers */
			if (!info.n_in_flight && !t->n_active &&
			    list_empty(&t->chunk_jobs))
				break;
		}
		ck_assert_uint_eq(info.pinned_bytes, 0);
		ck_assert_uint_eq(info.reserved_bytes, 0);
		ck_assert_uint_eq(info.n_in_flight, 0);
		ck_assert_uint_eq(t->n_requests + t->n_uncounted, 0);
		ck_assert_uint_eq(t->n_sequences, 0);
		ck_assert_uint_eq(t->n_active, 0);
		ck_assert_uint_eq(t->lent_bytes, 0);
		ck_assert(list_empty(&t->waiting));
	}
	for (uint32_t i = 0; i < r->serve->n_models; i++)
		ck_assert_uint_eq(r->serve->models[i].queued_rows, 0);
}

static void all_end(void)
{
	kio_fault_disarm();
	if (on_device) {
		fake.arm(FAKE_OFF, "", 0, 0);
		fake.others(0);
	}
	for (uint32_t i = 0; i < N_SESSIONS; i++)
		if (!members[i].leaving)
			leave(&members[i]);
	while (n_busy())
		turn();
	for (uint32_t i = 0; i < N_SESSIONS; i++) {
		leave(&members[i]);
		while (!members[i].left)
			rig_serve_turn(r);
	}
	nothing_is_held();
	for (uint32_t i = 0; i < N_SESSIONS; i++)
		join(&members[i]);
}

static void run(uint32_t n_rounds)
{
	struct cuda_api *api = on_device ? rig_cuda_open(&fake, CARD, FRAME)
					 : NULL;

	if (on_device)
		fake.quick(1);
	r = rig_serve_open((struct rig_serve_options){
		.cuda = api,
		.host_bytes = (1u + dice(6)) << 20,
		.memory_bytes = ((on_device ? 2u : 3u) + dice(6)) << 20,
		.disk_bytes = (6u + dice(20)) << 20,
		.n_layers = on_device ? 3 : 4,
		.n_kv_heads = on_device ? 1 : 2,
		.head_dim = 64,
		.page_tokens = 128,
		.page_layers = 1,
		.max_requests = 12,
		.prefill_slice = 64,
		.persist = CONF_PERSIST_AUTO,
		.share = { "both", "both" },
	});
	stores_set_window(r->serve->stores, 1);
	for (uint32_t i = 0; i < N_SESSIONS; i++) {
		members[i].t = r->serve->tenants[i >= 3];
		join(&members[i]);
	}
	for (uint32_t k = 0; k < n_rounds; k++) {
		for (uint32_t i = dice(5); i--;)
			any_operation();
		for (uint32_t i = dice(dice(4) ? 10 : 60); i--;)
			turn();
		if (k % 1000 == 999) /* all comes to its end */
			all_end();
		if (on_device && k + 50 == n_rounds) {
			fake.lose(CUDA_ILLEGAL_ADDRESS);
			is_lost = 1;
		}
	}
	all_end();
	for (uint32_t i = 0; i < N_SESSIONS; i++) {
		leave(&members[i]);
		while (!members[i].left)
			rig_serve_turn(r);
	}
	rig_serve_close(r);
	if (api)
		rig_cuda_drop(api, &fake);
}

static void anything(uint32_t n_rounds)
{
	const char *s = getenv("KVD_SEED");

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("%s, seed %llu\n", on_device ? "device" : "host",
	       (unsigned long long)seed);
	fflush(stdout);
	make_prompts();
	x = calloc(MAX_ROWS * 2 * ROW, sizeof(*x));
	o = calloc(MAX_ROWS * 2 * ROW, sizeof(*o));
	run(getenv("KVD_LONG") ? 20 * n_rounds : n_rounds);
	printf("%u answers, %u calls of attention, %u times durable, %u chunks; "
	       "%u cancelled, %u without room, %u of bad pages\n",
	       n_answers, n_ended[ATTEND], n_ended[PERSIST], n_ended[PUT],
	       n_failed[ECANCELED], n_failed[EDQUOT] + n_failed[ENOSPC],
	       n_failed[EBADMSG] + n_failed[EIO]);
	/* of few rounds no request may have come to its end */
	ck_assert_uint_gt(n_answers + (n_rounds < 1000 ? n_ended[ATTEND] : 0),
			  n_rounds / 200);
}

START_TEST(anything_may_end_at_any_time)
{
	anything(2000);
}
END_TEST

START_TEST(and_on_a_device)
{
	on_device = 1;
	anything(DEVICE_ROUNDS);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("any_end");
	TCase *t = tcase_create("host"), *d = tcase_create("device");
	SRunner *sr;
	int failed;

	tcase_add_test(t, anything_may_end_at_any_time);
	tcase_add_test(d, and_on_a_device);
	tcase_set_timeout(t, 1800);
	tcase_set_timeout(d, 1800);
	suite_add_tcase(s, t);
	suite_add_tcase(s, d);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
