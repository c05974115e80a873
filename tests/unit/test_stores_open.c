/*
 * test_stores_open.c - several disks, of which not all can be opened
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/mem/stores.h"
#include "tests/rig/rig_store.h"

#define N     3u
#define BYTES (34ull << 20)

static struct rig_store disks[N]; /* with i + 1 records */
static struct loop *loop;
static struct stores *stores;
static struct stores_conf conf;
static uint32_t n_found[N];
static char err[256];

static void begin(void)
{
	static struct rig_record x;

	memset(&conf, 0, sizeof(conf));
	memset(n_found, 0, sizeof(n_found));
	ck_assert_int_eq(loop_new(&loop), 0);
	conf.kind = KIO_ENGINE_AUTO;
	conf.loop = loop;
	conf.depth = 4;
	conf.n = N;
	for (uint32_t i = 0; i < N; i++) {
		rig_store_init(&disks[i], KIO_ENGINE_THREADS, "/var/tmp");
		ck_assert_int_eq(rig_store_open(&disks[i], BYTES, 0), 0);
		for (uint32_t k = 0; k <= i; k++)
			rig_store_add(&disks[i], &x, 10 * i + k + 1, 2, 100);
		rig_store_close(&disks[i]);
		conf.disks[i] =
			(struct stores_disk_conf){ disks[i].path, BYTES };
	}
}

static void end(void)
{
	stores_free(stores);
	loop_free(loop);
	for (uint32_t i = 0; i < N; i++)
		rig_store_fini(&disks[i]);
}

static int found(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	(void)ctx, (void)r;
	n_found[i_disk]++;
	return KIO_RECORD_ORPHAN;
}

static int open_all(void)
{
	ck_assert_int_eq(stores_new(&stores, &conf), 0);
	return stores_open(stores, found, NULL, err, sizeof(err));
}

/* Both superblocks of disk i, there and back. */
static void damage(uint32_t i)
{
	for (uint64_t at = 100; at < 8192; at += 4096) {
		char c;

		rig_store_peek(&disks[i], at, &c, 1);
		c = (char)~c;
		rig_store_poke(&disks[i], at, &c, 1);
	}
}

static void written(struct kio_req *r)
{
	stores_end(stores, 1, r);
	ck_assert_int_eq(r->ret, 0);
	++*(int *)r->buf;
}

/* A page goes to the disk that has moved up, through its engine and its bell. */
static void write_one(void)
{
	struct kio_req r = { .n_bytes = 4096, .done = written };
	struct stores_flow f;
	int64_t at;

	stores_flow_init(&f, 100, 0);
	ck_assert(!posix_memalign(&r.buf, 4096, 4096));
	memset(r.buf, 0, 4096);
	at = kio_store_alloc(stores_disk(stores, 1), 4096);
	ck_assert_int_gt(at, 0);
	r.block = (uint64_t)at;
	stores_write(stores, 1, &f, 0, &r);
	while (!*(int *)r.buf)
		ck_assert_int_eq(loop_turn(loop, 10), 0);
	free(r.buf);
}

/* The others serve, with their own records; it comes back as it was. */
START_TEST(one_that_is_damaged_is_left_out)
{
	const uint32_t bad = (uint32_t)_i;

	damage(bad);
	ck_assert_msg(!open_all(), "%s", err);
	ck_assert_uint_eq(stores_n(stores), N - 1);
	for (uint32_t i = 0; i < N - 1; i++) {
		const uint32_t was = i + (i >= bad);

		ck_assert_str_eq(stores_path(stores, i), disks[was].path);
		ck_assert_uint_eq(n_found[i], was + 1);
	}
	ck_assert_uint_eq(stores_n_missing(stores), 1);
	ck_assert_str_eq(stores_missing(stores, 0)->path, disks[bad].path);
	ck_assert_ptr_nonnull(strstr(stores_missing(stores, 0)->why, "kvfsck"));
	ck_assert_ptr_nonnull(strstr(err, disks[bad].path));
	write_one();
	stores_free(stores);
	damage(bad);
	memset(n_found, 0, sizeof(n_found));
	ck_assert_msg(!open_all(), "%s", err);
	ck_assert_uint_eq(stores_n_missing(stores), 0);
	for (uint32_t i = 0; i < N; i++)
		ck_assert_uint_eq(n_found[i], i + 1);
}
END_TEST

START_TEST(one_that_is_not_there_is_left_out)
{
	char path[160];

	(void)snprintf(path, sizeof(path), "%s.d/store", disks[1].path);
	conf.disks[1].path = path;
	if (_i) { /* a device, by its configuration */
		path[strlen(disks[1].path)] = 0;
		conf.disks[1].bytes = 0;
		ck_assert_int_eq(unlink(disks[1].path), 0);
	}
	ck_assert_msg(!open_all(), "%s", err);
	ck_assert_uint_eq(stores_n(stores), 2);
	ck_assert_uint_eq(n_found[1], 3);
	ck_assert_int_ne(access(path, F_OK), 0); /* nothing is made */
}
END_TEST

START_TEST(without_any_there_is_no_start)
{
	for (uint32_t i = 0; i < N; i++)
		damage(i);
	ck_assert_int_eq(open_all(), -EBADMSG);
	ck_assert_ptr_nonnull(strstr(err, "kvfsck"));
}
END_TEST

/* Nobody is to go on where the configuration is wrong, or another daemon runs. */
START_TEST(what_is_no_fault_of_a_disk_ends_the_start)
{
	if (_i) {
		ck_assert_int_eq(rig_store_open(&disks[1], BYTES, 0), 0);
		ck_assert_int_eq(open_all(), -EBUSY);
		ck_assert_ptr_nonnull(strstr(err, "another process"));
	} else {
		rig_store_poke(&disks[1], 0, "precious", 8);
		rig_store_poke(&disks[1], 4096, "precious", 8);
		rig_store_poke(&disks[1], 32768, "precious", 8);
		ck_assert_int_eq(open_all(), -EMEDIUMTYPE);
	}
}
END_TEST

/* By another name. */
START_TEST(no_store_is_there_twice)
{
	char path[160];

	(void)snprintf(path, sizeof(path), "%s.again", disks[0].path);
	ck_assert_int_eq(link(disks[0].path, path), 0);
	conf.disks[2].path = path;
	ck_assert_int_eq(open_all(), -EEXIST);
	ck_assert_ptr_nonnull(strstr(err, "another store"));
	ck_assert_int_eq(unlink(path), 0);
}
END_TEST

#define LARGE	   (1ull << 30) /* so that its index may be 4 MiB */
#define META_BYTES 60000u

/* n records; then opened again: how fast its disk is taken to be. */
static double speed_found(uint32_t n, int *direct)
{
	static struct rig_record x;
	struct rig_store r;
	struct stores_flow f;
	struct kio_store_info info;
	double v;

	rig_store_init(&r, KIO_ENGINE_THREADS, "/var/tmp");
	ck_assert_int_eq(rig_store_open(&r, LARGE, 0), 0);
	for (uint32_t i = 1; i <= n; i++)
		rig_store_add(&r, &x, i, 1, META_BYTES);
	rig_store_close(&r);
	conf.n = 1;
	conf.disks[0] = (struct stores_disk_conf){ r.path, LARGE };
	ck_assert_msg(!open_all(), "%s", err);
	ck_assert_uint_eq(n_found[0], n);
	stores_flow_init(&f, 100, 0);
	v = stores_speed(stores, 0, &f).bytes_per_s;
	kio_store_info(stores_disk(stores, 0), &info);
	*direct = info.direct;
	stores_free(stores);
	stores = NULL;
	rig_store_fini(&r);
	memset(n_found, 0, sizeof(n_found));
	return v;
}

/* Before a page has been read: not what any disk is taken to give. */
START_TEST(reading_the_index_says_how_fast_a_disk_is)
{
	int direct;
	double v;

	v = speed_found(2, &direct);
	ck_assert(v == 1e9); /* too little to say */
	v = speed_found(40, &direct);
	ck_assert(v > 0);
	ck_assert(direct ? v != 1e9 : v == 1e9);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("stores_open");
	TCase *tc = tcase_create("stores_open");
	SRunner *sr;
	int n;

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, begin, end);
	tcase_add_loop_test(tc, one_that_is_damaged_is_left_out, 0, (int)N);
	tcase_add_loop_test(tc, one_that_is_not_there_is_left_out, 0, 2);
	tcase_add_test(tc, without_any_there_is_no_start);
	tcase_add_loop_test(tc, what_is_no_fault_of_a_disk_ends_the_start, 0,
			    2);
	tcase_add_test(tc, no_store_is_there_twice);
	tcase_add_test(tc, reading_the_index_says_how_fast_a_disk_is);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
