/*
 * rig_map.c - sequences whose every element is known, mapped and read; see rig_map.h
 */
#include "tests/rig/rig_map.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define KV_HEADS 2u
#define HEAD_DIM 64u
#define ROW	 (KV_HEADS * HEAD_DIM) /* floats of a token */
#define STEP	 128u

uint32_t rig_map_page_tokens;
int rig_map_by_signal;

/* What stands in element x of token t: different everywhere, and for each salt. */
static float value(uint32_t salt, uint32_t l, int v, uint32_t t, uint32_t x)
{
	uint32_t n = (((salt * 7 + l) * 2 + (uint32_t)v) * 65536 + t) * ROW + x;

	n = (n ^ n >> 15) * 2654435761u;
	return (float)(n >> 9) + 1.0f; /* never 0 */
}

static int geometry(struct kvc *c)
{
	const struct kv_geometry g = { .n_layers = RIG_MAP_LAYERS,
				       .n_heads = KV_HEADS,
				       .n_kv_heads = KV_HEADS,
				       .head_dim = HEAD_DIM,
				       .type = KV_F32,
				       .page_tokens = rig_map_page_tokens,
				       .page_layers = 2 };
	const int ret = kvc_geometry(c, &g);

	ck_assert_int_gt(ret, 0);
	return ret;
}

void rig_append_layer(struct kvc *c, int seq, uint32_t salt, uint32_t from,
		      uint32_t n, uint32_t l)
{
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	float *k = kvc_alloc(c, n * ROW * sizeof(float));
	float *v = kvc_alloc(c, n * ROW * sizeof(float));

	ck_assert(it && k && v);
	for (uint32_t i = 0; i < n * ROW; i++) {
		k[i] = value(salt, l, 0, from + i / ROW, i % ROW);
		v[i] = value(salt, l, 1, from + i / ROW, i % ROW);
	}
	*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
				       .n_tokens = n,
				       .pos = from,
				       .q_off = KV_NO_OFF,
				       .k_off = kvc_off(c, k),
				       .v_off = kvc_off(c, v),
				       .o_off = KV_NO_OFF };
	ck_assert_int_eq(kvc_append(c, it, 1, l, KV_SQE_WAIT), 0);
	kvc_free(c, it);
	kvc_free(c, k);
	kvc_free(c, v);
}

void rig_append(struct kvc *c, int seq, uint32_t salt, uint32_t from,
		uint32_t n)
{
	for (; n; from += STEP) {
		const uint32_t m = n < STEP ? n : STEP;

		for (uint32_t l = 0; l < RIG_MAP_LAYERS; l++)
			rig_append_layer(c, seq, salt, from, m, l);
		n -= m;
	}
}

/* A sealed sequence of n tokens. */
int rig_sequence(struct kvc *c, uint32_t salt, uint32_t n)
{
	const int seq = kvc_seq_new(c, geometry(c), 0);

	ck_assert_int_gt(seq, 0);
	rig_append(c, seq, salt, 0, n);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	return seq;
}

/* 1 if token i of the entry is what was appended, all layers. */
int rig_token_ok(const struct kvc_map *m, const struct kvc_map_entry *e,
		 uint32_t salt, uint32_t i)
{
	for (uint32_t l = 0; l < RIG_MAP_LAYERS; l++)
		for (int v = 0; v < 2; v++)
			for (uint32_t h = 0; h < KV_HEADS; h++) {
				const float *row =
					kvc_map_row(m, e, l, v, h, i);

				for (uint32_t x = 0; x < HEAD_DIM; x++)
					if (row[x] !=
					    value(salt, l, v,
						  (uint32_t)e->pos + i,
						  h * HEAD_DIM + x))
						return 0;
			}
	return 1;
}

void rig_check_map(const struct kvc_map *m, uint32_t salt, uint32_t n)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < m->n_entries; i++) {
		const struct kvc_map_entry *e = &m->entries[i];

		ck_assert_int_eq(e->pos, sum);
		for (uint32_t t = 0; t < e->n_tokens; t++)
			ck_assert_msg(rig_token_ok(m, e, salt, t), "token %u",
				      sum + t);
		sum += e->n_tokens;
	}
	ck_assert_uint_eq(sum, n);
	ck_assert_uint_eq(m->n_tokens, n);
}

struct kvc_map *rig_map(struct kvc *c, int seq)
{
	struct kvc_map *m = NULL;
	int ret = rig_map_by_signal ? kvc_map_by_signal(c) : 0;

	if (!ret || ret == -EBUSY) /* there are maps already */
		ret = kvc_map(c, seq, &m);
	ck_assert_msg(!ret, "kvc_map: %s", strerror(-ret));
	return m;
}

static sigjmp_buf jump;
static volatile sig_atomic_t caught;

static void on_signal(int sig)
{
	caught = sig;
	siglongjmp(jump, 1);
}

void rig_catch_signals(void)
{
	const struct sigaction sa = { .sa_handler = on_signal,
				      .sa_flags = SA_NODEFER };
	static int done;

	if (done && rig_map_by_signal)
		return; /* the library's handler stands before ours */
	done = 1;
	ck_assert(!sigaction(SIGBUS, &sa, NULL) &&
		  !sigaction(SIGSEGV, &sa, NULL));
}

/* 0 it is right, 1 it is wrong, or the signal. */
int rig_touch(const struct kvc_map *m, const struct kvc_map_entry *e,
	      uint32_t salt, uint32_t i)
{
	caught = 0;
	if (sigsetjmp(jump, 1))
		return caught;
	return !rig_token_ok(m, e, salt, i);
}

/* Flip bits all over the daemon's store. */
void rig_damage(const char *dir)
{
	char path[128], byte;
	off_t end;
	int fd;

	snprintf(path, sizeof(path), "%s/state/kvd.store", dir);
	fd = open(path, O_RDWR);
	ck_assert_int_ge(fd, 0);
	end = lseek(fd, 0, SEEK_END);
	for (off_t at = 777; at < end; at += 65536) {
		ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
		byte ^= 16;
		ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
	}
	ck_assert_int_eq(fsync(fd), 0);
	close(fd);
}
