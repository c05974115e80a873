/*
 * bench_relay.c - kvbench relay: a batch of rows that share most of what they see
 *
 * Sequences of the attention service, one layer of the 1B class: a prompt that all share
 * and some tokens of their own; one query of each in one call. Against the same
 * number of sequences that each have the prompt for themselves; and with text of their own
 * before what is shared as well, each of another length. The bytes that attention
 * went over are the daemon's own count.
 */
#include "tools/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_SEQS	  16u
#define N_SHARED  2048u
#define N_OWN	  32u
#define HEADS	  32u
#define KV_HEADS  8u
#define DIM	  64u
#define ROW_BYTES (HEADS * DIM * 2u)
#define KV_BYTES  (KV_HEADS * DIM * 2u)
#define ROUNDS	  20u

enum sharing { ALONE, SHARED, MOVED, N_SHARING };

struct relay {
	struct kvc *c;
	int geometry;
	enum sharing sharing;
	int seq[N_SEQS];
	char *k, *q, *o; /* arena */
	struct kv_attend_item *items;
};

static int append(struct relay *r, int seq, uint64_t pos, uint32_t n)
{
	const uint64_t off = kvc_off(r->c, r->k);

	r->items[0] = (struct kv_attend_item){ .seq = (uint32_t)seq,
					       .n_tokens = n,
					       .pos = pos,
					       .q_off = KV_NO_OFF,
					       .k_off = off,
					       .v_off = off,
					       .o_off = KV_NO_OFF };
	return kvc_append(r->c, r->items, 1, 0, KV_SQE_WAIT);
}

/* Tokens that sequence i begins with before what is shared. */
static uint32_t n_before(enum sharing sharing, uint32_t i)
{
	return sharing == MOVED ? 1 + i : 0;
}

/* Sequence i: a fork of the first (or its own copy), its beginning and its end. */
static int begin_one(struct relay *r, enum sharing sharing, uint32_t i)
{
	const uint32_t n = n_before(sharing, i);
	int ret = 0;

	if (n)
		ret = kvc_seq_edit(r->c, r->seq[i], 0, 0, n);
	if (n && !ret)
		ret = append(r, r->seq[i], 0, n);
	return ret ? ret : append(r, r->seq[i], n + N_SHARED, N_OWN);
}

static int begin(struct relay *r, enum sharing sharing)
{
	int ret = 0;

	for (uint32_t i = 0; i < N_SEQS && !ret; i++) {
		const int fork = i && sharing != ALONE;

		r->seq[i] = fork ? kvc_seq_fork(r->c, r->seq[0])
				 : kvc_seq_new(r->c, r->geometry, 65536);
		if (r->seq[i] < 0)
			return r->seq[i];
		if (!fork)
			ret = append(r, r->seq[i], 0, N_SHARED);
	}
	for (uint32_t i = 0; i < N_SEQS && !ret; i++)
		ret = begin_one(r, sharing, i);
	return ret;
}

static int end(struct relay *r)
{
	for (uint32_t i = 0; i < N_SEQS; i++) {
		const int ret = kvc_seq_free(r->c, r->seq[i]);

		if (ret)
			return ret;
	}
	return 0;
}

/* Bytes that attention has gone over so far; negative: not known. */
static double read_bytes(struct relay *r)
{
	static const char name[] = "\nkvd_attention_read_bytes_total ";
	double bytes = -1;
	char *text;
	const char *at;

	if (kvc_query(r->c, "metrics", NULL, &text))
		return -1;
	at = strstr(text, name);
	if (at)
		bytes = strtod(at + strlen(name), NULL);
	free(text);
	return bytes;
}

/* One query of each sequence; a bench_side run(): microseconds. */
static double ask(void *arg)
{
	struct relay *r = arg;
	uint64_t t0;
	int ret;

	for (uint32_t i = 0; i < N_SEQS; i++)
		r->items[i] = (struct kv_attend_item){
			.seq = (uint32_t)r->seq[i],
			.n_tokens = 1,
			.pos = n_before(r->sharing, i) + N_SHARED + N_OWN - 1,
			.q_off = kvc_off(r->c, r->q + i * ROW_BYTES),
			.k_off = KV_NO_OFF,
			.v_off = KV_NO_OFF,
			.o_off = kvc_off(r->c, r->o + i * ROW_BYTES)
		};
	t0 = clock_ns();
	ret = kvc_attend(r->c, r->items, N_SEQS, 0, KV_SQE_WAIT);
	return ret ? -1 : (double)(clock_ns() - t0) * 1e-3;
}

/* us and bytes of a call. */
static int measure(struct relay *r, enum sharing sharing, double *us,
		   double *bytes)
{
	double v[ROUNDS], before;
	int ret = begin(r, sharing);

	r->sharing = sharing;
	if (ret)
		return ret;
	for (uint32_t i = 0; i < ROUNDS; i++) {
		v[i] = ask(r);
		if (v[i] < 0)
			return -EIO;
	}
	*us = bench_quantile(v, ROUNDS, 0.5);
	before = read_bytes(r);
	if (ask(r) < 0 || before < 0)
		return -EIO;
	*bytes = read_bytes(r) - before;
	return end(r);
}

static int run(struct bench *b, struct relay *r)
{
	const struct kv_geometry g = { .n_layers = 1,
				       .n_heads = HEADS,
				       .n_kv_heads = KV_HEADS,
				       .head_dim = DIM,
				       .type = KV_BF16,
				       .rotary = KV_ROTARY_HALVES,
				       .theta = 10000 };
	const double token = 2.0 * KV_BYTES;
	double us[N_SHARING], bytes[N_SHARING];
	uint32_t n = N_SHARED;
	int ret;

	r->geometry = kvc_geometry(r->c, &g);
	if (r->geometry < 0)
		return r->geometry;
	r->k = kvc_alloc(r->c, N_SHARED * KV_BYTES);
	r->q = kvc_alloc(r->c, N_SEQS * ROW_BYTES);
	r->o = kvc_alloc(r->c, N_SEQS * ROW_BYTES);
	r->items = kvc_alloc(r->c, N_SEQS * sizeof(*r->items));
	if (!r->k || !r->q || !r->o || !r->items)
		return -ENOMEM;
	bench_fill_bf16(r->k, N_SHARED * KV_BYTES);
	bench_fill_bf16(r->q, N_SEQS * ROW_BYTES);
	for (enum sharing i = ALONE; i < N_SHARING; i++) {
		ret = measure(r, i, &us[i], &bytes[i]);
		if (ret)
			return ret;
	}
	bench_put(b, us[0], "us", "reuse.relay.alone_us");
	bench_put(b, us[1], "us", "reuse.relay.shared_us");
	bench_put(b, us[1] / us[0], "x", "reuse.relay.time_ratio");
	bench_put(b, bytes[0] / token, "tokens", "reuse.relay.alone_tokens");
	bench_put(b, bytes[1] / token, "tokens", "reuse.relay.shared_tokens");
	/* 1: what is shared once, and all that is not */
	bench_put(b, bytes[1] / token / (N_SHARED + N_SEQS * N_OWN), "x",
		  "reuse.relay.bytes_ratio");
	for (uint32_t i = 0; i < N_SEQS; i++)
		n += n_before(MOVED, i) + N_OWN;
	bench_put(b, us[MOVED] / us[ALONE], "x",
		  "reuse.relay.moved.time_ratio");
	bench_put(b, bytes[MOVED] / token / n, "x",
		  "reuse.relay.moved.bytes_ratio");
	return 0;
}

int bench_relay(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	struct relay r = { 0 };
	struct bench_daemon d;
	int ret = bench_daemon_start(b, &d, 0);

	if (ret)
		return ret;
	opt.socket = d.socket;
	ret = kvc_open(&r.c, &opt);
	if (!ret) {
		ret = run(b, &r);
		kvc_close(r.c);
	}
	if (ret)
		(void)bench_fail(ret, "relay");
	bench_daemon_stop(&d);
	return ret;
}
