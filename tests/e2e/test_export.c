/*
 * test_export.c - pages of a daemon's device memory in a client's process, over the fake
 * driver: what is read there, what is written there, who may not, who dies
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernels/kern.h"
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/rig_cuda.h"

#define LAYERS	 2u
#define HEADS	 4u
#define KV_HEADS 2u
#define DIM	 64u
#define TOKENS	 300u
#define STEP	 50u /* tokens of one append */

static struct rig_daemon *d;
static struct kvc *c;

/* 0: none there, the test is to be skipped. keys: of the tenant, of [kvd]. */
static int start_with(const char *keys, const char *kvd_keys)
{
	char conf[1024];

	if (strlen(rig_cuda_path()) > 200) {
		printf("skipped: %s is too long\n", rig_cuda_path());
		return 0;
	}
	snprintf(conf, sizeof(conf),
		 "cuda_library = %s\ncuda_image = %s\ndevice = cuda\n"
		 "host_memory = 8M\n%s"
		 "[tenant a]\nuid = %u\nmemory = 8M\ndisk = 0\n%s",
		 rig_cuda_path(), rig_cuda_path(), kvd_keys,
		 (unsigned int)getuid(), keys);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(
		kvc_open(&c, &(struct kvc_options){ .socket = d->socket }), 0);
	return 1;
}

static int start(const char *keys)
{
	return start_with(keys, "");
}

static void stop(void)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

/* Of element x of head h of token t, layer l: exact in bf16. */
static float value(uint32_t l, int v, uint64_t t, uint32_t h, uint32_t x)
{
	const uint32_t n =
		(uint32_t)(t * 131 + l * 17 + h * 29 + x * 7) + (v ? 11u : 3u);

	return (float)((int)(n % 61) - 30) / 32.0f;
}

static uint16_t bf16(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return (uint16_t)(u >> 16);
}

static float from_bf16(uint16_t x)
{
	const uint32_t u = (uint32_t)x << 16;
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static int new_seq(uint32_t page_tokens, uint64_t max_tokens)
{
	const struct kv_geometry g = { .n_layers = LAYERS,
				       .n_heads = HEADS,
				       .n_kv_heads = KV_HEADS,
				       .head_dim = DIM,
				       .type = KV_BF16,
				       .page_tokens = page_tokens };
	const int geometry = kvc_geometry(c, &g);
	int seq;

	if (geometry < 0)
		return geometry;
	seq = kvc_seq_new(c, geometry, max_tokens);
	ck_assert_int_gt(seq, 0);
	return seq;
}

static void rows(uint16_t *to, int v, uint32_t l, uint64_t from, uint32_t n)
{
	for (uint64_t t = 0; t < n; t++)
		for (uint32_t h = 0; h < KV_HEADS; h++)
			for (uint32_t x = 0; x < DIM; x++)
				*to++ = bf16(value(l, v, from + t, h, x));
}

static void append(int seq, uint64_t from, uint32_t n)
{
	const size_t n_bytes = n * KV_HEADS * DIM * 2;
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	uint16_t *k = kvc_alloc(c, n_bytes), *v = kvc_alloc(c, n_bytes);

	ck_assert(it && k && v);
	for (uint32_t l = 0; l < LAYERS; l++) {
		rows(k, 0, l, from, n);
		rows(v, 1, l, from, n);
		*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
					       .n_tokens = n,
					       .pos = from,
					       .q_off = KV_NO_OFF,
					       .k_off = kvc_off(c, k),
					       .v_off = kvc_off(c, v),
					       .o_off = KV_NO_OFF };
		ck_assert_int_eq(kvc_append(c, it, 1, l, KV_SQE_WAIT), 0);
	}
	kvc_free(c, it);
	kvc_free(c, k);
	kvc_free(c, v);
}

static int filled(uint32_t page_tokens, uint32_t n)
{
	const int seq = new_seq(page_tokens, 1024);

	ck_assert_int_gt(seq, 0);
	for (uint32_t t = 0; t < n; t += STEP)
		append(seq, t, n - t < STEP ? n - t : STEP);
	return seq;
}

static int export(int seq, int with_tail, struct kvc_export **x)
{
	return kvc_export(
		c, seq,
		&(struct kvc_export_args){ .with_tail = with_tail,
					   .cuda_library = rig_cuda_path() },
		x);
}

static float query(uint32_t l, uint32_t h, uint32_t x)
{
	return value(l + 5, 0, 77, h, x);
}

/* The driver's memory can be read by the host here, which a device's cannot. */
static const uint16_t *row(const struct kvc_export *x, uint32_t i, uint32_t l,
			   int v, uint32_t h, uint64_t t)
{
	return (const uint16_t *)kvc_export_row(x, &x->entries[i], l, v, h, t);
}

static void check_rows(const struct kvc_export *x)
{
	uint64_t pos = 0;

	for (uint32_t i = 0; i < x->n_entries; i++) {
		ck_assert_int_eq(x->entries[i].pos, (int64_t)pos);
		for (uint64_t t = 0; t < x->entries[i].n_tokens; t++, pos++)
			for (uint32_t l = 0; l < LAYERS; l++)
				for (uint32_t h = 0; h < KV_HEADS; h++)
					for (uint32_t e = 0; e < DIM; e++) {
						ck_assert_uint_eq(
							row(x, i, l, 0, h,
							    t)[e],
							bf16(value(l, 0, pos, h,
								   e)));
						ck_assert_uint_eq(
							row(x, i, l, 1, h,
							    t)[e],
							bf16(value(l, 1, pos, h,
								   e)));
					}
	}
	ck_assert_uint_eq(pos, x->n_tokens);
}

/* ---- an attention that knows strides and nothing of kvd ------------------------- */

struct tensors {
	const char *q, *k, *v; /* bf16 [head][token][DIM], by strides */
	size_t token_stride, head_stride;
	uint32_t n_tokens;
};

static void plain_attention(const struct tensors *a, float *o)
{
	static float w[2048];
	const float scale = 0.125f;

	for (uint32_t h = 0; h < HEADS; h++) {
		const uint32_t kh = h / (HEADS / KV_HEADS);
		const uint16_t *q = (const uint16_t *)a->q + h * DIM;
		float top = -INFINITY, sum = 0;

		for (uint32_t t = 0; t < a->n_tokens; t++) {
			const uint16_t *k =
				(const uint16_t *)(a->k + t * a->token_stride +
						   kh * a->head_stride);
			float dot = 0;

			for (uint32_t x = 0; x < DIM; x++)
				dot += from_bf16(q[x]) * from_bf16(k[x]);
			w[t] = dot * scale;
			top = fmaxf(top, w[t]);
		}
		for (uint32_t t = 0; t < a->n_tokens; t++)
			sum += w[t] = expf(w[t] - top);
		for (uint32_t x = 0; x < DIM; x++) {
			float acc = 0;

			for (uint32_t t = 0; t < a->n_tokens; t++)
				acc += w[t] *
				       from_bf16((
					       (const uint16_t
							*)(a->v +
							   t * a->token_stride +
							   kh * a->head_stride))
							 [x]);
			o[h * DIM + x] = acc / sum;
		}
	}
}

/* The daemon's attention over all of seq and the plain one over its pages. */
static void check_attention(int seq, const struct kvc_export *x)
{
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	uint16_t *q = kvc_alloc(c, HEADS * DIM * 2);
	uint16_t *o = kvc_alloc(c, HEADS * DIM * 2);
	struct kv_seq_info info;
	float want[HEADS * DIM];

	ck_assert_int_eq(kvc_seq_info(c, seq, &info), 0);
	ck_assert(it && q && o);
	for (uint32_t l = 0; l < LAYERS; l++) {
		const struct tensors a = {
			.q = (const char *)q,
			.k = (const char *)row(x, 0, l, 0, 0, 0),
			.v = (const char *)row(x, 0, l, 1, 0, 0),
			.token_stride = x->token_stride,
			.head_stride = x->head_stride,
			.n_tokens = (uint32_t)info.n_tokens,
		};

		for (uint32_t h = 0; h < HEADS; h++)
			for (uint32_t e = 0; e < DIM; e++)
				q[h * DIM + e] = bf16(query(l, h, e));
		*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
					       .n_tokens = 1,
					       .pos = info.n_tokens - 1,
					       .q_off = kvc_off(c, q),
					       .k_off = KV_NO_OFF,
					       .v_off = KV_NO_OFF,
					       .o_off = kvc_off(c, o) };
		ck_assert_int_eq(kvc_attend(c, it, 1, l, KV_SQE_WAIT), 0);
		plain_attention(&a, want);
		for (uint32_t e = 0; e < HEADS * DIM; e++)
			ck_assert_float_le(fabsf(from_bf16(o[e]) - want[e]),
					   4e-3f);
	}
	kvc_free(c, it);
	kvc_free(c, q);
	kvc_free(c, o);
}

/* ---- tests --------------------------------------------------------------------- */

static double metric(const char *name)
{
	char key[96], *text = NULL, *at;
	double v = -1;

	snprintf(key, sizeof(key), "%s{tenant=\"a\"} ", name);
	ck_assert_int_ge(kvc_query(c, "metrics", "", &text), 0);
	at = strstr(text, key);
	if (at)
		v = strtod(at + strlen(key), NULL);
	free(text);
	return v;
}

START_TEST(an_unmodified_kernel_runs_on_it)
{
	struct kvc_export *x;
	int seq;

	if (!start("device_share = yes\n"))
		return;
	seq = filled(1, TOKENS);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	ck_assert_int_eq(export(seq, 0, &x), 0);
	ck_assert_int_eq(x->n_entries, 1);
	ck_assert_int_eq(x->is_contiguous, 1);
	ck_assert_int_eq(x->is_writable, 0);
	ck_assert_uint_eq(x->n_tokens, TOKENS);
	check_rows(x);
	check_attention(seq, x);
	ck_assert_double_eq(metric("kvd_exports"), 1);
	ck_assert_double_gt(metric("kvd_export_bytes"), 0);
	/* it shows what was there, though the sequence is gone */
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	check_rows(x);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	ck_assert_double_eq(metric("kvd_exports"), 0);
	ck_assert_double_eq(metric("kvd_export_bytes"), 0);
	stop();
}
END_TEST

START_TEST(pages_by_head_are_there_too)
{
	struct kvc_export *x;
	int seq;

	if (!start("device_share = yes\n"))
		return;
	seq = filled(32, TOKENS);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	ck_assert_int_eq(export(seq, 0, &x), 0);
	ck_assert_int_eq(x->is_contiguous, 0);
	check_rows(x);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	stop();
}
END_TEST

/* The client writes K and V itself, the daemon computes over them. */
START_TEST(a_tail_is_written_by_the_client)
{
	const uint32_t n = 70;
	struct kvc_export *x;
	int seq;

	if (!start("device_share = yes\n"))
		return;
	seq = filled(1, TOKENS);
	ck_assert_int_eq(kvc_seq_wrote(c, seq, 1), -EINVAL);
	ck_assert_int_eq(export(seq, 1, &x), 0);
	ck_assert_int_eq(x->n_entries, 1);
	ck_assert_uint_ge(x->entries[0].n_room, TOKENS + n);
	check_rows(x);
	for (uint64_t t = TOKENS; t < TOKENS + n; t++)
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t h = 0; h < KV_HEADS; h++)
				for (uint32_t e = 0; e < DIM; e++) {
					((uint16_t *)row(x, 0, l, 0, h, t))[e] =
						bf16(value(l, 0, t, h, e));
					((uint16_t *)row(x, 0, l, 1, h, t))[e] =
						bf16(value(l, 1, t, h, e));
				}
	ck_assert_int_eq(kvc_seq_wrote(c, seq, 5000), -ENOSPC);
	ck_assert_int_eq(kvc_seq_wrote(c, seq, n), 0);
	check_attention(seq, x);
	append(seq, TOKENS + n, 3); /* the daemon goes on behind it */
	check_attention(seq, x);
	ck_assert_int_eq(kvc_seq_free(c, seq), -EBUSY);
	ck_assert_int_eq(kvc_seq_seal(c, seq), -EBUSY);
	ck_assert_int_eq(kvc_seq_fork(c, seq), -EBUSY);
	ck_assert_int_eq(kvc_seq_truncate(c, seq, 1), -EBUSY);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	ck_assert_int_eq(kvc_seq_wrote(c, seq, 1), -EINVAL);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	ck_assert_int_eq(export(seq, 0, &x), 0);
	ck_assert_uint_eq(x->n_tokens, TOKENS + n + 3);
	check_rows(x);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	ck_assert_int_eq(kvc_seq_free(c, seq), 0);
	stop();
}
END_TEST

/* Managed memory serves too, and is nobody else's. */
START_TEST(managed_memory)
{
	struct kv_attend_item *it;
	int seq;

	if (!start_with("device_share = yes\n", "device_memory = uvm\n"))
		return;
	ck_assert_uint_eq(kvc_features(c) & KV_FEATURE_EXPORT, 0);
	seq = filled(32, TOKENS);
	it = kvc_alloc(c, sizeof(*it) + 8 * HEADS * DIM);
	*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
				       .n_tokens = 1,
				       .pos = TOKENS - 1,
				       .q_off = kvc_off(c, it + 1),
				       .k_off = KV_NO_OFF,
				       .v_off = KV_NO_OFF,
				       .o_off = kvc_off(c, it + 1) +
						2 * HEADS * DIM };
	memset(it + 1, 0, 2 * HEADS * DIM);
	ck_assert_int_eq(kvc_attend(c, it, 1, 0, KV_SQE_WAIT), 0);
	for (uint32_t h = 0; h < HEADS; h++) /* weights are equal: the mean */
		for (uint32_t x = 0; x < DIM; x++) {
			const uint16_t *o =
				(const uint16_t *)(it + 1) + HEADS * DIM;
			float mean = 0;

			for (uint32_t t = 0; t < TOKENS; t++)
				mean += value(0, 1, t, h / 2, x) / TOKENS;
			ck_assert_float_le(
				fabsf(from_bf16(o[h * DIM + x]) - mean), 4e-3f);
		}
	kvc_free(c, it);
	stop();
}
END_TEST

START_TEST(who_may_not)
{
	struct kv_sqe e = { .opcode = KV_OP_EXPORT_PAGES, .arg = { 1, 0, 1 } };
	struct kvc_export *x;
	int seq;

	if (!start(""))
		return;
	ck_assert_uint_eq(kvc_features(c) & KV_FEATURE_EXPORT, 0);
	seq = filled(32, 64);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	ck_assert_int_eq(export(seq, 0, &x), -ENOTSUP);
	ck_assert_int_eq(kvc_call(c, &e), -ENOENT);
	stop();
}
END_TEST

/* ---- device memory of the client ------------------------------------------------- */

static struct cuda_api *api;
static struct fake_ctl ctl;

struct mine {
	cuda_ptr at;
	cuda_stream st;
	cuda_event e;
	int buffer;
};

static void mine_open(struct mine *m, size_t n)
{
	struct kv_buffer b = { .n_bytes = n, .flags = KV_BUFFER_EVENT };
	struct cuda_ipc h;
	cuda_handle ctx;

	api = rig_cuda_open(&ctl, 8 << 20, 65536);
	ck_assert_int_eq(api->ctx_retain(&ctx, 0), 0);
	ck_assert_int_eq(api->ctx_set(ctx), 0);
	ck_assert_int_eq(api->alloc(&m->at, n), 0);
	ck_assert_int_eq(api->stream_new(&m->st, CUDA_STREAM_NON_BLOCKING, 0),
			 0);
	ck_assert_int_eq(api->event_new(&m->e, CUDA_EVENT_DISABLE_TIMING |
						       CUDA_EVENT_INTERPROCESS),
			 0);
	ck_assert_int_eq(api->ipc_mem(&h, m->at), 0);
	memcpy(b.memory, &h, sizeof(h));
	ck_assert_int_eq(api->ipc_event(&h, m->e), 0);
	memcpy(b.event, &h, sizeof(h));
	m->buffer = kvc_buffer(c, &b);
	ck_assert_int_gt(m->buffer, 0);
}

static void mine_close(struct mine *m)
{
	ck_assert_int_eq(kvc_buffer_free(c, m->buffer), 0);
	ck_assert_int_eq(kvc_buffer_free(c, m->buffer), -ENOENT);
	ck_assert_int_eq(api->event_free(m->e), 0);
	ck_assert_int_eq(api->stream_free(m->st), 0);
	ck_assert_int_eq(api->free(m->at), 0);
	ck_assert_int_eq(api->ctx_release(0), 0);
	rig_cuda_close(api, &ctl);
}

#define Q_OFF 0u
#define O_OFF 4096u
#define K_OFF 65536u
#define V_OFF 131072u

/* Append n tokens and attend, from and to device memory; o is compared with what
 * the same call gives through the arena on a sequence that has the same tokens. */
static void same_by_both(const struct mine *m, int seq, int twin, uint32_t n)
{
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	uint16_t *q = kvc_alloc(c, n * HEADS * DIM * 2);
	uint16_t *o = kvc_alloc(c, n * HEADS * DIM * 2);
	uint16_t *k = kvc_alloc(c, n * KV_HEADS * DIM * 2);
	uint16_t *v = kvc_alloc(c, n * KV_HEADS * DIM * 2);

	for (uint32_t l = 0; l < LAYERS; l++) {
		for (uint32_t i = 0; i < n * HEADS * DIM; i++)
			q[i] = bf16(query(l, i / DIM, i % DIM));
		rows(k, 0, l, TOKENS, n);
		rows(v, 1, l, TOKENS, n);
		memcpy((void *)(m->at + Q_OFF), q, n * HEADS * DIM * 2);
		memcpy((void *)(m->at + K_OFF), k, n * KV_HEADS * DIM * 2);
		memcpy((void *)(m->at + V_OFF), v, n * KV_HEADS * DIM * 2);
		ck_assert_int_eq(api->event_record(m->e, m->st), 0);
		*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
					       .n_tokens = n,
					       .pos = TOKENS,
					       .q_off = Q_OFF,
					       .k_off = K_OFF,
					       .v_off = V_OFF,
					       .o_off = O_OFF,
					       .buffer = (uint32_t)m->buffer };
		ck_assert_int_eq(kvc_attend(c, it, 1, l, KV_SQE_WAIT), 0);
		*it = (struct kv_attend_item){ .seq = (uint32_t)twin,
					       .n_tokens = n,
					       .pos = TOKENS,
					       .q_off = kvc_off(c, q),
					       .k_off = kvc_off(c, k),
					       .v_off = kvc_off(c, v),
					       .o_off = kvc_off(c, o) };
		ck_assert_int_eq(kvc_attend(c, it, 1, l, KV_SQE_WAIT), 0);
		ck_assert_int_eq(
			memcmp((void *)(m->at + O_OFF), o, n * HEADS * DIM * 2),
			0);
	}
	kvc_free(c, it);
	kvc_free(c, q);
	kvc_free(c, o);
	kvc_free(c, k);
	kvc_free(c, v);
}

START_TEST(calls_with_device_pointers)
{
	struct mine m;
	int seq, twin;

	if (!start("device_share = yes\n"))
		return;
	mine_open(&m, 3 * 65536);
	seq = filled(32, TOKENS);
	twin = filled(32, TOKENS);
	same_by_both(&m, seq, twin, 3);
	mine_close(&m);
	stop();
}
END_TEST

/* What the client queued before its event is waited for. */
START_TEST(an_event_is_waited_for)
{
	struct kv_attend_item *it;
	struct kvc_req req = { 0 };
	struct kv_sqe e = { .opcode = KV_OP_ATTEND, .arg = { 0, 1, 0 } };
	struct mine m;

	if (!start("device_share = yes\n"))
		return;
	mine_open(&m, 3 * 65536);
	it = kvc_alloc(c, sizeof(*it));
	*it = (struct kv_attend_item){ .seq = (uint32_t)filled(32, 32),
				       .n_tokens = 1,
				       .pos = 31,
				       .k_off = KV_NO_OFF,
				       .v_off = KV_NO_OFF,
				       .o_off = O_OFF,
				       .buffer = (uint32_t)m.buffer };
	memset((void *)m.at, 0xff, 65536); /* NaN */
	ctl.hold();
	ck_assert_int_eq(ctl.kernel(m.st, m.at, 4096, 0), 0);
	ck_assert_int_eq(api->event_record(m.e, m.st), 0);
	e.arg[0] = kvc_off(c, it);
	ck_assert_int_eq(kvc_submit(c, &e, &req), 0);
	ck_assert_int_eq(kvc_wait(c, &req, 100), -ETIMEDOUT);
	ck_assert_int_eq(kvc_buffer_free(c, m.buffer), -EBUSY);
	ctl.go();
	ck_assert_int_eq(kvc_wait(c, &req, -1), 0);
	for (uint32_t i = 0; i < HEADS * DIM; i++)
		ck_assert(!isnan(from_bf16(((uint16_t *)(m.at + O_OFF))[i])));
	kvc_free(c, it);
	mine_close(&m);
	stop();
}
END_TEST

START_TEST(hostile_handles)
{
	struct kv_buffer b = { .n_bytes = 100, .memory = { 1, 2, 3 } };
	struct kv_attend_item *it;
	struct cuda_ipc h;
	struct mine m;
	int seq;

	if (!start("device_share = yes\n"))
		return;
	ck_assert_int_eq(kvc_buffer(c, &b), -EINVAL);
	mine_open(&m, 65536);
	ck_assert_int_eq(api->ipc_mem(&h, m.at), 0);
	memcpy(b.memory, &h, sizeof(h));
	b.n_bytes = 65537; /* more than there is */
	ck_assert_int_eq(kvc_buffer(c, &b), -EINVAL);
	b.n_bytes = UINT64_MAX;
	ck_assert_int_eq(kvc_buffer(c, &b), -EINVAL);
	b.n_bytes = 0;
	ck_assert_int_eq(kvc_buffer(c, &b), -EINVAL);
	b.n_bytes = 65536;
	b.flags = 2;
	ck_assert_int_eq(kvc_buffer(c, &b), -EINVAL);
	b.flags = KV_BUFFER_EVENT; /* which is no event */
	ck_assert_int_eq(kvc_buffer(c, &b), -EINVAL);
	seq = filled(32, 32);
	it = kvc_alloc(c, sizeof(*it));
	for (int i = 0; i < 5; i++) {
		*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
					       .n_tokens = 1,
					       .pos = 31,
					       .k_off = KV_NO_OFF,
					       .v_off = KV_NO_OFF,
					       .o_off = O_OFF,
					       .buffer = (uint32_t)m.buffer };
		if (i == 0)
			it->buffer = 99;
		else if (i == 1)
			it->o_off = 65536 - 64;
		else if (i == 2)
			it->q_off = UINT64_MAX - 63;
		else if (i == 3)
			it->q_off = 2;
		else
			it->buffer = UINT32_MAX;
		ck_assert_int_eq(kvc_attend(c, it, 1, 0, KV_SQE_WAIT), -EINVAL);
	}
	kvc_free(c, it);
	mine_close(&m);
	stop();
}
END_TEST

/* Entries that no library would send. */
START_TEST(hostile_entries)
{
	struct kv_export *k;
	struct kvc_export *x;
	struct kv_sqe e = { .opcode = KV_OP_EXPORT };
	int seq;

	if (!start("device_share = yes\n"))
		return;
	seq = filled(1, 64);
	k = kvc_alloc(c, sizeof(*k));
	e.seq = (uint32_t)seq;
	e.arg[0] = kvc_off(c, k);
	*k = (struct kv_export){ .n_entries = UINT32_MAX };
	ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	*k = (struct kv_export){ .entries_off = UINT64_MAX - 7,
				 .n_entries = 1 };
	ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	*k = (struct kv_export){ .flags = 4 };
	ck_assert_int_eq(kvc_call(c, &e), -EINVAL);
	*k = (struct kv_export){ .flags = KV_EXPORT_TAIL };
	ck_assert_int_eq(kvc_call(c, &e), -EMSGSIZE);
	ck_assert_uint_eq(k->n_entries, 1);
	kvc_free(c, k);
	ck_assert_int_eq(export(seq, 1, &x), 0);
	e = (struct kv_sqe){ .opcode = KV_OP_EXPORT_PAGES };
	for (uint64_t id = 0; id < 3; id++) {
		const uint64_t bad[][2] = { { 0, 0 },
					    { 0, 1000 },
					    { 1000, 1 },
					    { UINT32_MAX, 2 },
					    { 1ull << 40, 1 } };

		for (size_t i = 0; i < 5; i++) {
			e.arg[0] = id;
			e.arg[1] = bad[i][0];
			e.arg[2] = bad[i][1];
			ck_assert_int_lt(kvc_call(c, &e), 0);
		}
	}
	e = (struct kv_sqe){ .opcode = KV_OP_UNEXPORT, .arg = { 99 } };
	ck_assert_int_eq(kvc_call(c, &e), -ENOENT);
	check_rows(x);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	stop();
}
END_TEST

/* Another process takes what may be taken, and is killed. */
static void take_and_wait(int out)
{
	struct kvc_export *x;
	int seq;

	c = NULL;
	ck_assert_int_eq(
		kvc_open(&c, &(struct kvc_options){ .socket = d->socket }), 0);
	seq = filled(1, 1000);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	ck_assert_int_eq(export(seq, 0, &x), 0);
	ck_assert_int_eq(write(out, "", 1), 1);
	pause();
}

START_TEST(who_dies_lets_go)
{
	static struct kvc_export *kept[16]; /* to the end */
	struct kvc_export *x;
	uint32_t n = 0;
	int seq, pipes[2], ret = -1;
	char byte;
	pid_t pid;

	if (!start("device_share = yes\nmemory_floor = 0\n"))
		return;
	ck_assert_int_eq(pipe(pipes), 0);
	pid = fork();
	if (!pid) {
		take_and_wait(pipes[1]);
		_exit(0);
	}
	ck_assert_int_eq(read(pipes[0], &byte, 1), 1);
	seq = filled(1, 1000);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	/* 1 MiB each: half of 8 MiB is four */
	ck_assert_int_eq(export(seq, 0, &x), 0);
	while (n < 8 && (ret = export(seq, 0, &kept[n])) == 0)
		n++;
	ck_assert_uint_ge(n, 1);
	ck_assert_int_eq(ret, -EDQUOT);
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	for (int i = 0; i < 500 && export(seq, 0, &kept[n]); i++)
		usleep(10000);
	check_rows(x);
	check_rows(kept[n]);
	ck_assert_int_eq(kvc_unexport(c, x), 0);
	stop(); /* with the others still exported */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("export");
	TCase *t = tcase_create("all");
	SRunner *sr = srunner_create(s);
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: no kvd\n");
		return 77;
	}
	tcase_set_timeout(t, 120);
	tcase_add_test(t, an_unmodified_kernel_runs_on_it);
	tcase_add_test(t, pages_by_head_are_there_too);
	tcase_add_test(t, a_tail_is_written_by_the_client);
	tcase_add_test(t, managed_memory);
	tcase_add_test(t, who_may_not);
	tcase_add_test(t, hostile_entries);
	tcase_add_test(t, calls_with_device_pointers);
	tcase_add_test(t, an_event_is_waited_for);
	tcase_add_test(t, hostile_handles);
	tcase_add_test(t, who_dies_lets_go);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
