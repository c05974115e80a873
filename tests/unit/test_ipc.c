/*
 * test_ipc.c - client library and daemon transport, end to end over fake_serve
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kvd/ipc/sockfile.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/ipc_rig.h"
#include "tests/rig/raw.h"

static struct ipc_rig *rig;

static void open_rig(void)
{
	rig = ipc_rig_open(NULL);
}

static void close_rig(void)
{
	ipc_rig_close(rig);
}

static struct kvc *connect_with(uint32_t sq_entries)
{
	const struct kvc_options opt = { .socket = rig->path,
					 .name = "test",
					 .sq_entries = sq_entries };
	struct kvc *c;

	ck_assert_int_eq(kvc_open(&c, &opt), 0);
	return c;
}

static struct kvc *connect_rig(void)
{
	return connect_with(0);
}

/* ---- handshake --------------------------------------------------------- */

START_TEST(peer_learns_its_tenant)
{
	struct kvc *c = connect_rig(), *own;

	ck_assert_str_eq(kvc_tenant(c), "t0");
	ck_assert(kvc_features(c) & KV_FEATURE_ATTEND);
	ck_assert(kvc_features(c) & KV_FEATURE_GENERATE);
	ck_assert_int_eq(
		kvc_open(&own,
			 &(struct kvc_options){ .socket = rig->own_path }),
		0);
	ck_assert_str_eq(kvc_tenant(own), "t1");
	kvc_close(own);
	kvc_close(c);
}
END_TEST

static int raw_connect(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, rig->path);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static int hello_err(const struct kv_hello *h, size_t n)
{
	struct kv_welcome w = { 0 };
	const int fd = raw_connect();

	ck_assert_int_eq(send(fd, h, n, 0), (int)n);
	ck_assert_int_eq(recv(fd, &w, sizeof(w), 0), (int)sizeof(w));
	ck_assert_uint_eq(w.magic, KV_MAGIC);
	ck_assert(!w.err || w.text[0]);
	close(fd);
	return w.err;
}

START_TEST(a_bad_hello_is_refused_with_a_reason)
{
	const struct kv_hello good = { .magic = KV_MAGIC,
				       .major = 1,
				       .name = "x" };
	struct kv_hello h = good;

	ck_assert_int_eq(hello_err(&h, sizeof(h)), 0);
	h.magic = 1;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h = good;
	ck_assert_int_eq(hello_err(&h, sizeof(h) - 8), -EINVAL);
	h.major = 2;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EPROTONOSUPPORT);
	h = good;
	h.minor = 7; /* a newer client is served */
	ck_assert_int_eq(hello_err(&h, sizeof(h)), 0);
	h = good;
	h.features_want = 1ull << 40;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EPROTONOSUPPORT);
	h = good;
	h._rsvd[3] = 1;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h = good;
	h.name[1] = '\n';
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h = good;
	memset(h.name, 'a', sizeof(h.name));
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h = good;
	h.sq_entries = 3;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h.sq_entries = 8192;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h.sq_entries = 64;
	h.cq_entries = 32;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
	h = good;
	h.arena_bytes = UINT64_MAX;
	ck_assert_int_eq(hello_err(&h, sizeof(h)), -EINVAL);
}
END_TEST

START_TEST(no_daemon_is_said_at_once)
{
	struct kvc *c;

	ck_assert_int_eq(
		kvc_open(&c,
			 &(struct kvc_options){ .socket = "/nonexistent/s" }),
		-ENOENT);
}
END_TEST

/* Whoever listens there, and in whatever way: only what nobody listens on is removed. */
START_TEST(a_socket_of_others_is_not_taken_away)
{
	static const int types[] = { SOCK_SEQPACKET, SOCK_STREAM, SOCK_DGRAM };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, ret;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/kvd-sock-%d",
		 (int)getpid());
	fd = socket(AF_UNIX, types[_i] | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(types[_i] != SOCK_DGRAM && listen(fd, 1), 0);
	ck_assert_int_eq(sockfile_open(addr.sun_path, SOCK_SEQPACKET, 0600),
			 -EADDRINUSE);
	ck_assert_int_eq(sockfile_open(addr.sun_path, SOCK_STREAM, 0600),
			 -EADDRINUSE);
	ck_assert_int_eq(access(addr.sun_path, F_OK), 0);
	close(fd);
	ret = sockfile_open(addr.sun_path, SOCK_SEQPACKET, 0600);
	ck_assert_int_ge(ret, 0);
	close(ret);
	ck_assert_int_eq(unlink(addr.sun_path), 0);
}
END_TEST

START_TEST(silent_peers_are_dropped_and_keep_nobody_out)
{
	int fds[200];
	char byte;
	struct kvc *c;

	for (size_t i = 0; i < 200; i++)
		fds[i] = raw_connect();
	/* 32 of one uid stay half open for a second, the others are closed */
	ck_assert_int_eq(recv(fds[199], &byte, 1, 0), 0);
	ck_assert_int_eq(recv(fds[0], &byte, 1, 0), 0);
	for (size_t i = 0; i < 200; i++)
		close(fds[i]);
	c = connect_rig();
	ck_assert_int_eq(kvc_nop(c), 0);
	kvc_close(c);
}
END_TEST

START_TEST(sessions_of_a_tenant_are_bounded)
{
	struct kvc *c[65];
	int ret = 0;
	uint32_t n;

	for (n = 0; n < 65 && !ret; n++)
		ret = kvc_open(&c[n],
			       &(struct kvc_options){ .socket = rig->path,
						      .arena_bytes = 4096 });
	ck_assert_int_eq(ret, -EDQUOT);
	ck_assert_uint_eq(n, 65);
	kvc_close(c[0]);
	ck_assert(ipc_rig_sessions(rig, 63));
	c[0] = connect_rig();
	for (uint32_t i = 0; i < 64; i++)
		kvc_close(c[i]);
}
END_TEST

/* ---- calls ------------------------------------------------------------- */

START_TEST(calls_return_what_serve_says)
{
	struct kvc *c = connect_rig();
	const struct kv_geometry g = { .n_layers = 2 }, bad = { 0 };
	struct kv_seq_info info;
	uint32_t ids[8];
	uint64_t id[2];
	char text[8];
	char *json;
	int seq;

	ck_assert_int_eq(kvc_nop(c), 0);
	ck_assert_int_eq(kvc_geometry(c, &bad), -EINVAL);
	ck_assert_int_eq(kvc_geometry(c, &g), 1);
	seq = kvc_seq_new(c, 1, 0);
	ck_assert_int_gt(seq, 0);
	ck_assert_int_eq(kvc_seq_new(c, 9, 0), -ENOENT);
	ck_assert_int_gt(kvc_seq_fork(c, seq), seq);
	ck_assert_int_eq(kvc_seq_truncate(c, seq, 1), -EINVAL);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	ck_assert_int_eq(kvc_seq_info(c, seq, &info), 0);
	ck_assert_uint_eq(info.n_tokens, 0);
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	ck_assert_int_eq(kvc_seq_free(c, seq), -ENOENT);
	ck_assert_int_eq(kvc_tokenize(c, NULL, "abc", 3, ids, 8), 3);
	ck_assert_uint_eq(ids[2], 'c');
	ck_assert_int_eq(kvc_tokenize(c, NULL, "abc", 3, ids, 1), 3);
	ck_assert_int_eq(kvc_detokenize(c, NULL, ids, 3, text, 8), 3);
	ck_assert_int_eq(kvc_chunk_put(c, NULL, "chunk", 5, id), 5);
	ck_assert_uint_eq(id[0], 5);
	ck_assert_int_eq(kvc_chunk_rm(c, id), 0);
	ck_assert_int_eq(kvc_query(c, "version", NULL, &json), 0);
	ck_assert_ptr_nonnull(strstr(json, "\"abi_major\":1"));
	free(json);
	ck_assert_int_eq(kvc_query(c, "nonsense", NULL, &json), -ENOENT);
	kvc_close(c);
}
END_TEST

START_TEST(attention_reads_and_writes_the_arena)
{
	struct kvc *c = connect_rig();
	const struct kv_geometry g = { .n_layers = 2 };
	struct kv_attend_item *it = kvc_alloc(c, 2 * sizeof(*it));
	char *data = kvc_alloc(c, 4 * 128);

	ck_assert_int_eq(kvc_geometry(c, &g), 1);
	for (uint32_t i = 0; i < 2; i++) {
		it[i] = (struct kv_attend_item){
			.seq = (uint32_t)kvc_seq_new(c, 1, 0),
			.n_tokens = 1,
			.q_off = kvc_off(c, data + 64 * i),
			.k_off = kvc_off(c, data),
			.v_off = kvc_off(c, data),
			.o_off = kvc_off(c, data + 256 + 64 * i),
			.res = 77
		};
		memset(data + 64 * i, (int)i + 1, 64);
	}
	ck_assert_int_eq(kvc_attend(c, it, 2, 0, 0), 0);
	ck_assert_int_eq(it[1].res, 0);
	ck_assert_int_eq(memcmp(data, data + 256, 128), 0);
	ck_assert_int_eq(kvc_append(c, it, 2, 0, 0), -EINVAL); /* has q */
	it[0].o_off += 4;
	ck_assert_int_eq(kvc_attend(c, it, 2, 0, 0), -EINVAL);
	it[0].o_off = UINT64_MAX - 63;
	ck_assert_int_eq(kvc_attend(c, it, 2, 0, 0), -EINVAL);
	it[0].o_off = 0;
	it[0].n_tokens = UINT32_MAX;
	ck_assert_int_eq(kvc_attend(c, it, 1, 0, 0), -EINVAL);
	ck_assert_int_eq(kvc_attend(c, it, 0, 0, 0), -EINVAL);
	kvc_free(c, data);
	kvc_free(c, it);
	kvc_close(c);
}
END_TEST

struct stream {
	uint32_t n_calls, n_tokens;
	char text[4096];
};

static void on_tokens(void *user, const struct kv_token *tokens, uint32_t n,
		      const char *text, size_t len)
{
	struct stream *s = user;

	s->n_calls++;
	for (uint32_t i = 0; i < n; i++)
		ck_assert_uint_eq(tokens[i].id, ++s->n_tokens);
	strncat(s->text, text, len);
}

START_TEST(tokens_stream_in_order)
{
	struct kvc *c = connect_rig();
	const struct kvc_part part = { .text = "hello" };
	const char *stop[] = { "one", "two" };
	struct stream s = { 0 };
	const struct kvc_generate g = { .parts = &part,
					.n_parts = 1,
					.max_tokens = 500,
					.flags = KV_GEN_LOGITS,
					.stop = stop,
					.n_stop = 2,
					.on_tokens = on_tokens,
					.user = &s };
	struct kvc_gen *gen;
	uint32_t n;

	ck_assert_int_eq(kvc_generate(c, &g, &gen), 500);
	ck_assert_uint_eq(s.n_tokens, 500);
	ck_assert_uint_gt(s.n_calls, 1);
	ck_assert_uint_eq(strlen(kvc_gen_text(gen)), 2000);
	ck_assert_str_eq(kvc_gen_text(gen), s.text);
	ck_assert_uint_eq(kvc_gen_tokens(gen, &n)[499].text_off, 499 * 4);
	ck_assert_uint_eq(n, 500);
	ck_assert_int_eq(kvc_gen_end(gen), KV_END_LENGTH);
	ck_assert_uint_eq(kvc_gen_n_logits(gen), 16);
	ck_assert_uint_eq(kvc_gen_stats(gen)->n_prompt, 1);
	kvc_generate_free(c, gen);
	kvc_close(c);
}
END_TEST

START_TEST(a_generation_can_be_cancelled)
{
	struct kvc *c = connect_rig();
	const struct kvc_part part = { .text = "x" };
	const struct kvc_generate g = { .parts = &part,
					.n_parts = 1,
					.max_tokens = 100,
					.flags = KV_GEN_IGNORE_EOS };
	struct kvc_gen *gen;

	ck_assert_int_eq(kvc_generate_start(c, &g, &gen), 0);
	ck_assert_int_eq(kvc_generate_wait(c, gen, 1), -ETIMEDOUT);
	ck_assert_int_eq(kvc_generate_cancel(c, gen), 0);
	ck_assert_int_eq(kvc_generate_wait(c, gen, -1), -ECANCELED);
	kvc_generate_free(c, gen);
	ck_assert_int_eq(kvc_generate_start(c, &g, &gen), 0);
	kvc_generate_free(c, gen); /* cancels by itself */
	kvc_close(c);
}
END_TEST

/* ---- many at once ------------------------------------------------------ */

#define N_THREADS 6
#define N_CALLS	  3000

static void *caller(void *arg)
{
	struct kvc *c = arg;
	char *p;

	for (int i = 0; i < N_CALLS; i++) {
		if (kvc_nop(c))
			return "nop";
		p = kvc_alloc(c, (size_t)(i % 700));
		if (!p)
			return "alloc";
		memset(p, i, (size_t)(i % 700));
		if (i % 64 == 0 && kvc_seq_free(c, 99) != -ENOENT)
			return "seq_free";
		kvc_free(c, p);
	}
	return NULL;
}

START_TEST(threads_share_a_session)
{
	struct kvc *c = connect_with(4);
	pthread_t t[N_THREADS];
	void *failed;

	for (int i = 0; i < N_THREADS; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, caller, c), 0);
	for (int i = 0; i < N_THREADS; i++) {
		ck_assert_int_eq(pthread_join(t[i], &failed), 0);
		ck_assert_msg(!failed, "%s", (char *)failed);
	}
	/* all of the arena came back */
	ck_assert_ptr_nonnull(kvc_alloc(c, (16u << 20) - 128));
	kvc_close(c);
}
END_TEST

static uint32_t n_told;

static void told(struct kvc_req *r)
{
	ck_assert_int_eq(r->res, 0);
	n_told++;
}

START_TEST(more_requests_than_the_rings_hold)
{
	const struct kv_sqe nop = { .opcode = KV_OP_NOP };
	struct kvc *c = connect_with(2);
	static struct kvc_req r[1000];

	n_told = 0;
	for (int i = 0; i < 1000; i++) {
		r[i] = (struct kvc_req){ .on_cqe = told };
		ck_assert_int_eq(kvc_submit(c, &nop, &r[i]), 0);
	}
	for (int i = 0; i < 1000; i++)
		ck_assert_int_eq(kvc_wait(c, &r[i], -1), 0);
	ck_assert_uint_eq(n_told, 1000);
	kvc_close(c);
}
END_TEST

static struct kvc_req chained[3];
static struct kvc *chain_c;

static void chain(struct kvc_req *r)
{
	const struct kv_sqe nop = { .opcode = KV_OP_NOP };
	struct kv_sqe sync = nop;

	ck_assert_int_eq(kvc_call(chain_c, &sync), -EDEADLK);
	if (r != &chained[2])
		ck_assert_int_eq(kvc_submit(chain_c, &nop, r + 1), 0);
}

START_TEST(a_callback_may_submit_but_not_wait)
{
	const struct kv_sqe nop = { .opcode = KV_OP_NOP };

	chain_c = connect_rig();
	for (int i = 0; i < 3; i++)
		chained[i] = (struct kvc_req){ .on_cqe = chain };
	ck_assert_int_eq(kvc_submit(chain_c, &nop, &chained[0]), 0);
	ck_assert_int_eq(kvc_wait(chain_c, &chained[0], -1), 0);
	ck_assert_int_eq(kvc_wait(chain_c, &chained[1], -1), 0);
	ck_assert_int_eq(kvc_wait(chain_c, &chained[2], -1), 0);
	kvc_close(chain_c);
}
END_TEST

START_TEST(every_progress_is_seen_by_wait_more)
{
	struct kvc *c = connect_rig();
	char *p = kvc_alloc(c, 65536);
	struct kv_generate *q = (struct kv_generate *)p;
	struct kv_part *part = (struct kv_part *)(p + 256);
	const struct kv_sqe e = { .opcode = KV_OP_GENERATE,
				  .arg = { kvc_off(c, p) } };
	struct kvc_req r = { 0 };
	int n = 0, last = 0;

	memset(p, 0, 65536);
	*part = (struct kv_part){ .kind = KV_PART_TEXT,
				  .off = kvc_off(c, p + 512),
				  .len = 3 };
	q->parts_off = kvc_off(c, part);
	q->n_parts = 1;
	q->max_tokens = 100;
	q->tokens_off = kvc_off(c, p + 1024);
	q->stats_off = KV_NO_OFF;
	ck_assert_int_eq(kvc_submit(c, &e, &r), 0);
	while (!r.done) {
		last = kvc_wait_more(c, &r, -1);
		ck_assert_int_ge(last, n);
		n = last;
	}
	ck_assert_int_eq(r.res, 100);
	q->_pad = 1;
	ck_assert_int_eq(kvc_call(c, (struct kv_sqe *)&e), -EINVAL);
	kvc_close(c);
}
END_TEST

/* ---- the end of either side -------------------------------------------- */

START_TEST(a_stopping_daemon_resets_its_clients)
{
	struct kvc *c = connect_rig();
	const struct kvc_part part = { .text = "x" };
	const struct kvc_generate g = { .parts = &part,
					.n_parts = 1,
					.max_tokens = 100,
					.flags = KV_GEN_IGNORE_EOS };
	struct kvc_gen *gen;

	ck_assert_int_eq(kvc_generate_start(c, &g, &gen), 0);
	ck_assert_int_eq(kvc_generate_wait(c, gen, 1), -ETIMEDOUT);
	ipc_rig_close(rig);
	ck_assert_int_eq(kvc_generate_wait(c, gen, -1), -ECONNRESET);
	kvc_generate_free(c, gen);
	ck_assert_int_eq(kvc_nop(c), -ECONNRESET);
	ck_assert_int_lt(kvc_reconnect(c), 0);
	ck_assert_int_eq(kvc_nop(c), -ECONNRESET);
	ck_assert_ptr_null(kvc_alloc(c, 1));
	kvc_close(c);
	rig = ipc_rig_open(NULL);
}
END_TEST

START_TEST(a_child_of_fork_cannot_use_the_session)
{
	struct kvc *c = connect_rig();
	struct kvc *mine;
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (kvc_nop(c) != -EPERM || kvc_alloc(c, 8) ||
		    kvc_reconnect(c) != -EPERM)
			_exit(1);
		kvc_close(c);
		if (kvc_open(&mine,
			     &(struct kvc_options){ .socket = rig->path }) ||
		    kvc_nop(mine))
			_exit(2);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert_int_eq(kvc_nop(c), 0); /* the parent's is as it was */
	kvc_close(c);
}
END_TEST

/* A client that is killed while a child of its holds the socket. */
static void be_killed(void)
{
	struct kvc *c = connect_rig();

	if (!fork()) {
		(void)sleep(3);
		_exit(0);
	}
	(void)kvc_nop(c);
	(void)raise(SIGKILL);
}

START_TEST(death_is_noticed_though_a_child_holds_the_socket)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		be_killed();
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
	ck_assert(ipc_rig_sessions(rig, 0));
}
END_TEST

/* ---- hostile ----------------------------------------------------------- */

START_TEST(nonsense_costs_only_its_sender)
{
	struct kvc *good = connect_rig();

	for (uint64_t seed = 1; seed <= 30; seed++) {
		const struct raw_hostile h = { .path = rig->path,
					       .seed = seed *
						       0x9e3779b97f4a7c15u,
					       .n_entries = 500,
					       .jump = seed % 3 != 0 };

		ck_assert_msg(!raw_hostile(&h), "seed %lu",
			      (unsigned long)seed);
		ck_assert_int_eq(kvc_nop(good), 0);
	}
	ck_assert(ipc_rig_sessions(rig, 1));
	kvc_close(good);
}
END_TEST

START_TEST(bits_that_mean_nothing_are_refused)
{
	struct kvc *c = connect_rig();
	struct kv_sqe e = { .opcode = KV_OP_NOP };

	for (int i = 0; i < 6; i++) {
		e = (struct kv_sqe){ .opcode = KV_OP_NOP };
		if (i < 4)
			e.arg[i] = 1;
		else
			e._rsvd[i - 4] = 1;
		ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	}
	e = (struct kv_sqe){ .opcode = KV_OP_NOP, .seq = 1 };
	ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	e = (struct kv_sqe){ .opcode = KV_OP_NOP, .flags = KV_SQE_WAIT };
	ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	e = (struct kv_sqe){ .opcode = KV_OP_ATTEND, .flags = 2 };
	ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	for (uint32_t op = 0; op < 65536; op += op < 64 ? 1 : 997) {
		e = (struct kv_sqe){ .opcode = (uint16_t)op };
		if (op >= 64 || (op > 14 && op < 16))
			ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	}
	kvc_close(c);
}
END_TEST

START_TEST(a_message_after_the_handshake_ends_the_session)
{
	struct raw r;

	ck_assert_int_eq(raw_open(&r, rig->path, 8), 0);
	ck_assert_int_eq(send(r.sock, "x", 1, 0), 1);
	ck_assert_int_eq(raw_wait_closed(&r, 1000), -EPROTO);
	raw_close(&r);
}
END_TEST

START_TEST(who_does_not_read_completions_stops_only_himself)
{
	const struct kv_sqe nop = { .opcode = KV_OP_NOP };
	struct kvc *good = connect_rig();
	struct raw r;
	uint32_t n = 0;

	ck_assert_int_eq(raw_open(&r, rig->path, 8), 0);
	for (int i = 0; i < 24; i++) { /* 16 completions, 8 entries wait */
		for (int k = 0; i >= 8 && k < 1000 && r.tail - r.sq->head >= 8;
		     k++)
			(void)usleep(1000);
		raw_push(&r, &nop);
	}
	(void)usleep(20000);
	ck_assert_uint_eq(r.cq->tail, 16);
	ck_assert_int_eq(kvc_nop(good), 0);
	for (int k = 0; k < 1000 && n < 24; k++) {
		n += raw_reap(&r);
		(void)usleep(1000);
	}
	ck_assert_uint_eq(n, 24);
	raw_close(&r);
	kvc_close(good);
}
END_TEST

START_TEST(connects_by_the_thousand)
{
	struct kvc *good = connect_rig(), *c;

	for (int i = 0; i < 1000; i++) {
		const int fd = raw_socket(rig->path);

		if (fd >= 0)
			close(fd);
		if (i % 2)
			continue;
		ck_assert_int_eq(
			kvc_open(&c,
				 &(struct kvc_options){ .socket = rig->path }),
			0);
		if (i % 4)
			ck_assert_int_eq(kvc_nop(c), 0);
		kvc_close(c);
	}
	ck_assert_int_eq(kvc_nop(good), 0);
	ck_assert(ipc_rig_sessions(rig, 1));
	kvc_close(good);
}
END_TEST

/* ---- arena ------------------------------------------------------------- */

START_TEST(the_arena_fills_and_empties)
{
	struct kvc *c = connect_rig();
	static void *p[400];
	const uint64_t all = 16u << 20;

	for (int round = 0; round < 3; round++) {
		int n = 0;

		while (n < 400 && (p[n] = kvc_alloc(c, 65000 + (size_t)n)))
			n++;
		ck_assert_int_gt(n, 240);
		for (int i = 0; i < n; i += 2)
			kvc_free(c, p[i]);
		for (int i = 1; i < n; i += 2)
			kvc_free(c, p[i]);
	}
	p[0] = kvc_alloc(c, all - 128);
	ck_assert_ptr_nonnull(p[0]);
	ck_assert_uint_eq((uintptr_t)p[0] % 64, 0);
	ck_assert_ptr_null(kvc_alloc(c, 1));
	ck_assert_int_eq(kvc_seq_info(c, 1, &(struct kv_seq_info){ 0 }),
			 -EAGAIN);
	kvc_free(c, p[0]);
	kvc_free(c, p[0]); /* twice is ignored */
	ck_assert_ptr_null(kvc_alloc(c, all));
	ck_assert_ptr_null(kvc_alloc(c, SIZE_MAX));
	ck_assert_uint_eq(kvc_off(c, NULL), KV_NO_OFF);
	kvc_close(c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ipc");
	TCase *t = tcase_create("ipc");
	SRunner *sr = srunner_create(s);
	int failed;

	suite_add_tcase(s, t);
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, open_rig, close_rig);
	tcase_add_test(t, peer_learns_its_tenant);
	tcase_add_test(t, a_bad_hello_is_refused_with_a_reason);
	tcase_add_test(t, no_daemon_is_said_at_once);
	tcase_add_loop_test(t, a_socket_of_others_is_not_taken_away, 0, 3);
	tcase_add_test(t, silent_peers_are_dropped_and_keep_nobody_out);
	tcase_add_test(t, sessions_of_a_tenant_are_bounded);
	tcase_add_test(t, calls_return_what_serve_says);
	tcase_add_test(t, attention_reads_and_writes_the_arena);
	tcase_add_test(t, tokens_stream_in_order);
	tcase_add_test(t, a_generation_can_be_cancelled);
	tcase_add_test(t, threads_share_a_session);
	tcase_add_test(t, more_requests_than_the_rings_hold);
	tcase_add_test(t, a_callback_may_submit_but_not_wait);
	tcase_add_test(t, every_progress_is_seen_by_wait_more);
	tcase_add_test(t, a_stopping_daemon_resets_its_clients);
	tcase_add_test(t, a_child_of_fork_cannot_use_the_session);
	tcase_add_test(t, death_is_noticed_though_a_child_holds_the_socket);
	tcase_add_test(t, nonsense_costs_only_its_sender);
	tcase_add_test(t, bits_that_mean_nothing_are_refused);
	tcase_add_test(t, a_message_after_the_handshake_ends_the_session);
	tcase_add_test(t, who_does_not_read_completions_stops_only_himself);
	tcase_add_test(t, connects_by_the_thousand);
	tcase_add_test(t, the_arena_fills_and_empties);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
