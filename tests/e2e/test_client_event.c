/*
 * test_client_event.c - a client whose event never comes delays nobody else
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/rig_cuda.h"

#define DIM 64u

static struct rig_daemon *d;
static struct kvc *c, *other;
static struct cuda_api *api;
static struct fake_ctl ctl;
static cuda_ptr at;
static cuda_stream st;
static cuda_event ev;
static int buffer;

static int start(void)
{
	char conf[1024];

	if (strlen(rig_cuda_path()) > 200) {
		printf("skipped: %s is too long\n", rig_cuda_path());
		return 0;
	}
	snprintf(conf, sizeof(conf),
		 "cuda_library = %s\ncuda_image = %s\ndevice = cuda\n"
		 "host_memory = 8M\nevent_wait_ms = 400\n"
		 "[tenant a]\nuid = %u\nmemory = 8M\ndisk = 0\n"
		 "device_share = yes\n",
		 rig_cuda_path(), rig_cuda_path(), (unsigned int)getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(
		kvc_open(&c, &(struct kvc_options){ .socket = d->socket }), 0);
	ck_assert_int_eq(
		kvc_open(&other, &(struct kvc_options){ .socket = d->socket }),
		0);
	return 1;
}

/* Memory of this process, whose event is behind what does not go on. */
static void stuck(void)
{
	struct kv_buffer b = { .n_bytes = 65536, .flags = KV_BUFFER_EVENT };
	struct cuda_ipc h;
	cuda_handle ctx;

	api = rig_cuda_open(&ctl, 8 << 20, 65536);
	ck_assert_int_eq(api->ctx_retain(&ctx, 0), 0);
	ck_assert_int_eq(api->ctx_set(ctx), 0);
	ck_assert_int_eq(api->alloc(&at, 65536), 0);
	memset((void *)at, 0, 65536);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->event_new(&ev, CUDA_EVENT_DISABLE_TIMING |
						     CUDA_EVENT_INTERPROCESS),
			 0);
	ck_assert_int_eq(api->ipc_mem(&h, at), 0);
	memcpy(b.memory, &h, sizeof(h));
	ck_assert_int_eq(api->ipc_event(&h, ev), 0);
	memcpy(b.event, &h, sizeof(h));
	buffer = kvc_buffer(c, &b);
	ck_assert_int_gt(buffer, 0);
	ctl.hold();
	ck_assert_int_eq(ctl.kernel(st, at, 4096, 0), 0);
	ck_assert_int_eq(api->event_record(ev, st), 0);
}

static void stop(void)
{
	if (buffer)
		ck_assert_int_eq(kvc_buffer_free(c, buffer), 0);
	ck_assert_int_eq(api->event_free(ev), 0);
	ck_assert_int_eq(api->stream_free(st), 0);
	ck_assert_int_eq(api->free(at), 0);
	ck_assert_int_eq(api->ctx_release(0), 0);
	rig_cuda_close(api, &ctl);
	kvc_close(c);
	kvc_close(other);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

/* A token of zeros, and one item that attends to it: in the arena. */
static struct kv_attend_item *item(struct kvc *of)
{
	const struct kv_geometry g = { .n_layers = 1,
				       .n_heads = 1,
				       .n_kv_heads = 1,
				       .head_dim = DIM,
				       .type = KV_BF16,
				       .page_tokens = 32 };
	struct kv_attend_item *it = kvc_alloc(of, sizeof(*it));
	uint16_t *rows = kvc_alloc(of, 4 * DIM * sizeof(*rows));
	const int seq = kvc_seq_new(of, kvc_geometry(of, &g), 32);

	ck_assert(it && rows);
	ck_assert_int_gt(seq, 0);
	memset(rows, 0, 4 * DIM * sizeof(*rows));
	*it = (struct kv_attend_item){
		.seq = (uint32_t)seq,
		.n_tokens = 1,
		.q_off = kvc_off(of, rows),
		.k_off = kvc_off(of, rows + DIM),
		.v_off = kvc_off(of, rows + 2 * DIM),
		.o_off = kvc_off(of, rows + 3 * DIM),
	};
	ck_assert_int_eq(kvc_attend(of, it, 1, 0, KV_SQE_WAIT), 0);
	it->k_off = it->v_off = KV_NO_OFF;
	return it;
}

/* The same, in the memory that is waited for. */
static struct kv_attend_item *item_there(void)
{
	struct kv_attend_item *it = item(c);

	it->buffer = (uint32_t)buffer;
	it->q_off = 0;
	it->o_off = 4096;
	return it;
}

START_TEST(others_go_on)
{
	struct kv_attend_item *mine, *theirs;
	struct kvc_req req = { 0 };
	struct kv_sqe e = { .opcode = KV_OP_ATTEND, .arg = { 0, 1, 0 } };
	uint32_t n = 0;

	if (!start())
		return;
	theirs = item(other);
	stuck();
	mine = item_there();
	e.arg[0] = kvc_off(c, mine);
	ck_assert_int_eq(kvc_submit(c, &e, &req), 0);
	do {
		ck_assert_int_eq(kvc_attend(other, theirs, 1, 0, KV_SQE_WAIT),
				 0);
		(void)kvc_poll(c);
		n += !req.done;
	} while (!req.done);
	ck_assert_uint_gt(n, 0);
	ck_assert_int_eq(req.res, -ETIMEDOUT);
	ck_assert_int_eq(mine->res, -ETIMEDOUT);
	ctl.go();
	ck_assert_int_eq(api->stream_sync(st), 0);
	ck_assert_int_eq(kvc_attend(c, mine, 1, 0, KV_SQE_WAIT), 0);
	stop();
}
END_TEST

/* Of two items only the one whose event does not come fails. */
START_TEST(only_its_item_fails)
{
	struct kv_attend_item *it, *one, *two;

	if (!start())
		return;
	stuck();
	one = item_there();
	two = item(c);
	it = kvc_alloc(c, 2 * sizeof(*it));
	ck_assert_ptr_nonnull(it);
	it[0] = *one;
	it[1] = *two;
	ck_assert_int_eq(kvc_attend(c, it, 2, 0, KV_SQE_WAIT), -ETIMEDOUT);
	ck_assert_int_eq(it[0].res, -ETIMEDOUT);
	ck_assert_int_eq(it[1].res, 0);
	ctl.go();
	stop();
}
END_TEST

/* Cancelled while it waits for it, and a session that ends then. */
START_TEST(cancelled)
{
	struct kvc_req req = { 0 };
	struct kv_sqe e = { .opcode = KV_OP_ATTEND, .arg = { 0, 1, 0 } };

	if (!start())
		return;
	stuck();
	e.arg[0] = kvc_off(c, item_there());
	ck_assert_int_eq(kvc_submit(c, &e, &req), 0);
	ck_assert_int_eq(kvc_cancel(c, &req), 0);
	ck_assert_int_eq(kvc_wait(c, &req, -1), -ECANCELED);
	e.arg[0] = kvc_off(c, item_there());
	req = (struct kvc_req){ 0 };
	ck_assert_int_eq(kvc_submit(c, &e, &req), 0);
	kvc_close(c);
	ck_assert_int_eq(kvc_attend(other, item(other), 1, 0, KV_SQE_WAIT), 0);
	ck_assert_int_eq(
		kvc_open(&c, &(struct kvc_options){ .socket = d->socket }), 0);
	buffer = 0; /* went with its session */
	ctl.go();
	stop();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("client_event");
	TCase *t = tcase_create("client_event");
	SRunner *r = srunner_create(s);
	int failed;

	if (!rig_daemon_binary()) {
		printf("skipped: no kvd\n");
		return 77;
	}
	tcase_set_timeout(t, 60);
	tcase_add_test(t, others_go_on);
	tcase_add_test(t, only_its_item_fails);
	tcase_add_test(t, cancelled);
	suite_add_tcase(s, t);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
