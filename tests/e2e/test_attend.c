/*
 * test_attend.c - the attention service refuses what it must: budgets, shapes,
 * places; what it computes is compared in test_random.c
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

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

/* An append that may wait, for room that only this client could give. */
START_TEST(a_call_that_waits_can_be_cancelled)
{
	struct rig_daemon *d;
	char conf[256];
	struct kvc_options opt = { 0 };
	const struct kv_geometry g = {
		.n_layers = 1, .n_heads = 4, .n_kv_heads = 4, .head_dim = 64
	};
	struct kvc_req r = { 0 };
	struct kv_attend_item *it;
	struct kv_seq_info info;
	struct kv_sqe e;
	struct kvc *c;
	int geo, seq, ret = 0;
	char *buf;

	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 1M\ndisk = 1M\n", getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	opt.socket = d->socket;
	ck_assert_int_eq(kvc_open(&c, &opt), 0);
	geo = kvc_geometry(c, &g);
	seq = kvc_seq_new(c, geo, 0);
	ck_assert_int_gt(kvc_seq_new(c, geo, 0), 0); /* it could be freed */
	it = kvc_alloc(c, sizeof(*it));
	buf = kvc_alloc(c, 128 * 1024);
	memset(buf, 0, 128 * 1024);
	memset(it, 0, sizeof(*it));
	it->seq = (uint32_t)seq;
	it->n_tokens = 128;
	it->q_off = it->o_off = KV_NO_OFF;
	it->k_off = it->v_off = kvc_off(c, buf);
	for (; !ret; it->pos += ret ? 0 : 128)
		ret = kvc_append(c, it, 1, 0, 0);
	ck_assert_int_eq(ret, -EDQUOT);
	e = (struct kv_sqe){ .opcode = KV_OP_APPEND,
			     .flags = KV_SQE_WAIT,
			     .arg = { kvc_off(c, it), 1, 0 } };
	ck_assert_int_eq(kvc_submit(c, &e, &r), 0);
	ck_assert_int_eq(kvc_wait(c, &r, 50), -ETIMEDOUT);
	ck_assert_int_eq(kvc_cancel(c, &r), 0);
	ck_assert_int_eq(kvc_wait(c, &r, 10000), -ECANCELED);
	ck_assert_int_eq(it->res, -ECANCELED);
	ck_assert_int_eq(kvc_seq_info(c, seq, &info), 0);
	ck_assert_uint_eq(info.n_tokens, it->pos);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* ---- frames come before they are needed ------------------------------------- */

static int64_t of_pages(struct kvc *c, const char *key)
{
	char *text, *at;
	int64_t n;

	ck_assert_int_ge(kvc_query(c, "pages", "", &text), 0);
	at = strstr(text, key);
	ck_assert_msg(at != NULL, "no %s in %s", key, text);
	n = strtoll(at + strlen(key), NULL, 10);
	free(text);
	return n;
}

static int64_t map_waits(struct kvc *c)
{
	return of_pages(c, "\"map_waits_total\":");
}

static int64_t mapped(struct kvc *c)
{
	return of_pages(c, "\"mapped_total\":");
}

static struct rig_daemon *start_with_model(struct kvc **c)
{
	struct rig_daemon *d;
	char conf[512];

	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 64M\ndisk = 64M\n",
		 rig_data_dir(), getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	*c = rig_join(d->socket);
	return d;
}

/*
 * The client takes its time: then each page has a frame when its first row comes, the
 * first of a segment too, but for the first of all.
 */
START_TEST(an_append_finds_its_frame)
{
	const struct kv_geometry g = {
		.n_layers = 1, .n_heads = 32, .n_kv_heads = 32, .head_dim = 128
	};
	const uint32_t n = 1024, each = 16, segment = 256;
	struct kv_attend_item *it;
	struct rig_daemon *d;
	struct kvc *c;
	char *rows;

	d = start_with_model(&c);
	it = kvc_alloc(c, sizeof(*it));
	rows = kvc_alloc(c, each * 32 * 128 * 4);
	memset(rows, 0, each * 32 * 128 * 4);
	*it = (struct kv_attend_item){ .n_tokens = each,
				       .q_off = KV_NO_OFF,
				       .o_off = KV_NO_OFF };
	it->k_off = it->v_off = kvc_off(c, rows);
	it->seq = (uint32_t)kvc_seq_new(c, kvc_geometry(c, &g), n);
	for (it->pos = 0; it->pos < n; it->pos += each) {
		ck_assert_int_eq(kvc_append(c, it, 1, 0, 0), 0);
		while (of_pages(c, "\"in_flight\":"))
			(void)usleep(200);
		ck_assert_int_le(map_waits(c), 1);
	}
	ck_assert_int_ge(mapped(c), 3 * n / segment);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

/* Several answers, each over many pages that are mapped while it grows. */
START_TEST(a_decode_finds_its_frame)
{
	const struct kvc_part part = { .kind = KV_PART_TEXT, .text = "the" };
	const struct kvc_generate q = { .parts = &part,
					.n_parts = 1,
					.temperature = 1,
					.flags = KV_GEN_IGNORE_EOS,
					.max_tokens = 400 };
	struct rig_daemon *d;
	struct kvc *c;
	int64_t n_mapped;
	int n = 0;

	d = start_with_model(&c);
	n_mapped = mapped(c);
	for (uint64_t seed = 1; seed < 5; seed++) {
		struct kvc_generate s = q;
		struct kvc_gen *gen;
		int ret;

		s.seed = seed;
		ret = kvc_generate(c, &s, &gen);
		ck_assert_msg(ret >= 0, "%s", strerror(-ret));
		n += ret;
		kvc_generate_free(c, gen);
	}
	n_mapped = mapped(c) - n_mapped;
	printf("%d tokens, %d pages mapped, %d waited for\n", n, (int)n_mapped,
	       (int)map_waits(c));
	ck_assert_int_gt(n_mapped, 16);
	/* a worker that does not get the processor may be late */
	ck_assert_int_le(map_waits(c), n_mapped / 4);
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
	tcase_set_timeout(t, 60);
	tcase_add_test(t, budgets_and_bad_calls_are_refused);
	tcase_add_test(t, a_call_that_waits_can_be_cancelled);
	tcase_add_test(t, an_append_finds_its_frame);
	tcase_add_test(t, a_decode_finds_its_frame);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
