/*
 * test_export_lost.c - segments whose pages are lost on the disk below the device are not
 * exported, however often they are asked for
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_map.h"

#define N_SEQS 12
#define TOKENS 1000u

static struct rig_daemon *start(void)
{
	char conf[1024];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf),
		 "cuda_library = %s\ncuda_image = %s\ndevice = cuda\n"
		 "host_memory = 8M\nscrub = 0\n"
		 "[tenant a]\nuid = %u\nmemory = 16M\ndisk = 128M\n"
		 "device_share = yes\n",
		 rig_cuda_path(), rig_cuda_path(), (unsigned int)getuid());
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

START_TEST(what_is_lost_is_not_exported)
{
	const struct kvc_export_args args = { .cuda_library = rig_cuda_path() };
	struct rig_daemon *d = start();
	struct kvc *c = rig_join(d->socket);
	int seqs[N_SEQS], n_lost = 0;

	for (uint32_t i = 0; i < N_SEQS; i++)
		seqs[i] = rig_sequence(c, i, TOKENS);
	rig_damage(d->dir);
	for (int i = 0; i < N_SEQS; i++) {
		struct kvc_export *x;
		const int ret = kvc_export(c, seqs[i], &args, &x);

		n_lost += ret == -EBADMSG;
		if (!ret)
			ck_assert_int_eq(kvc_unexport(c, x), 0);
		else
			ck_assert_int_eq(ret, -EBADMSG);
		ck_assert_int_eq(kvc_export(c, seqs[i], &args, &x), ret);
		if (!ret)
			ck_assert_int_eq(kvc_unexport(c, x), 0);
	}
	ck_assert_int_gt(n_lost, 0);
	ck_assert_uint_eq(rig_counter(c, "pages", "a", "pinned_bytes"), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("export_lost");
	TCase *t = tcase_create("export_lost");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_test(t, what_is_lost_is_not_exported);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
